//! What the broker asks, answered: who is this (the fleet directory), may they (its access rules),
//! and who takes a copy (the router and the event log).
//!
//! Flow of a publish: broker → [`FleetHooks::tap`] → `pipeline::route` → partition of the stream →
//! group commit → acknowledgement back to the broker, which then sends PUBACK.
//!
//! Everything here answers from memory. The one place where a message can wait is the log's own
//! bounded queue; when that is full the publisher is told so (0x97) instead of the broker growing.

use std::sync::Arc;

use broker::{Acknowledge, ConnectAttempt, Decision, Hooks, Identity, Refusal, Tap};
use eventlog::{AppendError, Stream};
use fleet::{DevicePrincipal, Directory};
use mqtt::{Publish, ReasonCode};
use pipeline::Incoming;

use crate::{clock::now_us, config::Anonymous};

/// The tree of device data; everything below it is kept.
const DATA_TREE: &str = "dt/";

/// Who a connection is to the hooks.
enum Who {
    /// A registered device that showed its certificate.
    Device(DevicePrincipal),
    /// Anybody, on a loopback listener that was opened for trials; by the client id it gave.
    Anyone(String),
}

/// The fleet and the log, plugged into the broker.
pub struct FleetHooks {
    directory: Arc<Directory>,
    raw: Stream,
    anonymous: Anonymous,
}

impl FleetHooks {
    /// `raw` takes a copy of everything published below `dt/`.
    pub fn new(directory: Arc<Directory>, raw: Stream, anonymous: Anonymous) -> Self {
        Self {
            directory,
            raw,
            anonymous,
        }
    }
}

/// Every identity is made in `authenticate`, with a `Who` for its context; one that is not may do nothing.
fn who(identity: &Identity) -> Option<&Who> {
    identity.context.downcast_ref()
}

impl Hooks for FleetHooks {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        match attempt.certificates.first() {
            Some(leaf) => {
                let principal = self.directory.identify(leaf, now_us()).map_err(|denied| {
                    Refusal::new(ReasonCode::NotAuthorized, denied.to_string())
                })?;
                // The client id is a client's own choice: below the device's name it can take over
                // only connections of the same device.
                let device = principal.device_id().to_string();
                let client_id = format!("{device}/{}", attempt.client_id);
                Ok(Identity::new(client_id, device).with_context(Arc::new(Who::Device(principal))))
            }
            None => match self.anonymous {
                Anonymous::AllowAll => {
                    // Apart from the devices' client ids, for the same reason.
                    let client_id = format!("anonymous/{}", attempt.client_id);
                    let who = Who::Anyone(attempt.client_id.to_owned());
                    Ok(Identity::new(client_id, "anonymous").with_context(Arc::new(who)))
                }
                Anonymous::Deny => Err(Refusal::new(
                    ReasonCode::NotAuthorized,
                    "no credentials, and access.anonymous is \"deny\"",
                )),
            },
        }
    }

    fn may_publish(&self, identity: &Identity, topic: &str) -> Decision {
        decision(match who(identity) {
            Some(Who::Device(principal)) => self.directory.may_publish(principal, topic),
            Some(Who::Anyone(_)) => true,
            None => false,
        })
    }

    fn may_subscribe(&self, identity: &Identity, filter: &str) -> Decision {
        decision(match who(identity) {
            Some(Who::Device(principal)) => self.directory.may_subscribe(principal, filter),
            Some(Who::Anyone(_)) => true,
            None => false,
        })
    }

    fn tap(
        &self,
        identity: &Identity,
        publish: &Publish,
        received_us: i64,
        done: Acknowledge,
    ) -> Tap {
        let topic: &str = &publish.topic;
        if !topic.starts_with(DATA_TREE) {
            return Tap::NotWanted;
        }
        // Below the tree and yet no topic of it: acknowledged it would be lost without a word.
        let Some(parsed) = pipeline::Topic::parse(topic) else {
            return Tap::Refused(ReasonCode::TopicNameInvalid);
        };
        let (vehicle_id, device_id) = match who(identity) {
            Some(Who::Device(principal)) => {
                // `may_publish` has no clock: a certificate that ended during a long connection is
                // noticed here.
                if self.directory.check(principal, received_us).is_err() {
                    return Tap::Refused(ReasonCode::NotAuthorized);
                }
                (
                    principal.vehicle_id().as_str(),
                    principal.device_id().as_str(),
                )
            }
            Some(Who::Anyone(client_id)) => (parsed.vehicle, client_id.as_str()),
            None => return Tap::Refused(ReasonCode::NotAuthorized),
        };
        let properties = &publish.properties;
        let incoming = Incoming::new(
            topic,
            vehicle_id,
            device_id,
            publish.payload.clone(),
            received_us,
        )
        .with_user_properties(
            properties
                .user_properties
                .iter()
                .map(|(name, value)| (&**name, &**value)),
        );
        let incoming = Incoming {
            content_type: properties.content_type.as_deref(),
            ..incoming
        };
        let record = match pipeline::route(&incoming) {
            Some(routed) => routed.record,
            None => return Tap::Refused(ReasonCode::TopicNameInvalid),
        };
        let partition = self.raw.partition_for(&record.key);
        let appended = self.raw.append(partition, record, move |outcome| {
            done.done(outcome.map(drop).map_err(|error| reason(&error)));
        });
        match appended {
            Ok(()) => Tap::Taken,
            Err(error) => Tap::Refused(reason(&error)),
        }
    }
}

fn decision(allowed: bool) -> Decision {
    match allowed {
        true => Decision::Allow,
        false => Decision::Deny,
    }
}

/// What a publisher is told when the log can not keep its message.
fn reason(error: &AppendError) -> ReasonCode {
    match error {
        // Try again later, more slowly.
        AppendError::Busy { .. } | AppendError::Full { .. } => ReasonCode::QuotaExceeded,
        // Never as it is.
        AppendError::TooLarge { .. } => ReasonCode::PacketTooLarge,
        AppendError::Closed { .. } => ReasonCode::ServerShuttingDown,
        _ => ReasonCode::ImplementationSpecificError,
    }
}
