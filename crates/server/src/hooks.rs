//! What the broker asks, answered: who is this (the fleet directory), may they (its access rules),
//! and who takes a copy (the router and the event log).
//!
//! Flow of a publish: broker → [`FleetHooks::tap`] → `pipeline::route` → partition of the stream →
//! group commit → acknowledgement back to the broker, which then sends PUBACK.
//!
//! A session may outlive its connection: what waits in it is delivered under what the directory says
//! then ([`FleetHooks::may_receive`](Hooks::may_receive)), and what is said in its name after a restart
//! under the device's newest certificate ([`FleetHooks::recall`](Hooks::recall)).
//!
//! Everything here answers from memory. The one place where a message can wait is the log's own
//! bounded queue; when that is full the publisher is told so (0x97) instead of the broker growing.

use std::sync::Arc;

use broker::{Acknowledge, ConnectAttempt, Decision, Hooks, Identity, Presence, Refusal, Tap};
use eventlog::{AppendError, Stream};
use fleet::{DevicePrincipal, Directory};
use mqtt::{Publish, ReasonCode};
use pipeline::Incoming;

use crate::{
    clock::now_us,
    config::{Anonymous, listener::Auth},
    presence::PresenceQueue,
};

/// Trees that the server alone publishes to: its figures, and what happened to clients. Whoever could
/// publish there could say of others that they left.
const OWN_TREES: [&str; 3] = ["$SYS/", "$milepost/events/", "$aws/events/"];
/// The tree of device data; everything below it is kept.
const DATA_TREE: &str = "dt/";
/// What clients without credentials are called, and what their client ids begin with.
const ANONYMOUS: &str = "anonymous";

/// The transport of a request that came in over HTTPS.
pub const HTTPS: &str = "https";

/// Who a connection is to the hooks.
enum Who {
    /// A registered device that showed its certificate.
    Device(DevicePrincipal),
    /// Anybody, on a loopback listener that was opened for trials; by the client id it gave.
    Anyone(String),
}

/// Who is let in by a listener.
#[derive(Debug, Clone)]
pub struct Doorway {
    /// Its name.
    pub listener: Arc<str>,
    /// By what clients are known there.
    pub auth: Auth,
    /// What becomes of those without credentials.
    pub anonymous: Anonymous,
}

/// The fleet and the log, plugged into the broker.
pub struct FleetHooks {
    directory: Arc<Directory>,
    raw: Stream,
    doorways: Vec<Doorway>,
    presence: PresenceQueue,
}

impl FleetHooks {
    /// `raw` takes a copy of everything published below `dt/`, `presence` every coming and going.
    pub fn new(
        directory: Arc<Directory>,
        raw: Stream,
        doorways: Vec<Doorway>,
        presence: PresenceQueue,
    ) -> Self {
        Self {
            directory,
            raw,
            doorways,
            presence,
        }
    }

    /// The device behind a connection; `None` if it shows no certificate.
    fn device(&self, attempt: &ConnectAttempt<'_>) -> Result<Option<DevicePrincipal>, Refusal> {
        let refused = |why: String| Refusal::new(ReasonCode::NotAuthorized, why);
        if let Some(leaf) = attempt.certificates.first() {
            let identified = self.directory.identify(leaf, now_us());
            return identified
                .map(Some)
                .map_err(|denied| refused(denied.to_string()));
        }
        // A proxy in front has ended TLS and names whose certificate it verified. Which certificate it
        // was it cannot say, so any valid one of the device will do.
        let Some(name) = attempt
            .proxied
            .and_then(|it| it.certificate_name.as_deref())
        else {
            return Ok(None);
        };
        match self.directory.recall(name, now_us()) {
            Some(principal) => Ok(Some(principal)),
            None => Err(refused(format!(
                "the proxy verified a certificate of `{name}`, but no enabled device with a valid \
                 certificate is called that"
            ))),
        }
    }
}

/// A client's own choice of a client id, kept apart from what others choose: below its device's name it
/// can take over only sessions of the same device.
fn client_id(owner: &str, chosen: &str) -> String {
    format!("{owner}/{chosen}")
}

/// Where answers to a device go (MQTT 5 section 4.10): among the topics of its vehicle, so that it may
/// subscribe to them and the vehicle's other devices may publish there.
fn response_topic(principal: &DevicePrincipal) -> String {
    let (vehicle, device) = (principal.vehicle_id(), principal.device_id());
    format!("dt/rpc/response/{vehicle}/{device}")
}

fn device_identity(client_id: impl Into<Arc<str>>, principal: DevicePrincipal) -> Identity {
    let response_topic = response_topic(&principal);
    Identity::new(client_id, principal.device_id().as_str())
        .with_group(principal.vehicle_id().to_shared())
        .with_response_information(response_topic)
        .with_context(Arc::new(Who::Device(principal)))
}

fn anonymous_identity(client_id: impl Into<Arc<str>>, chosen: &str) -> Identity {
    let who = Who::Anyone(chosen.to_owned());
    Identity::new(client_id, ANONYMOUS).with_context(Arc::new(who))
}

/// Every identity is made in this file, with a `Who` for its context; one that is not may do nothing.
fn who(identity: &Identity) -> Option<&Who> {
    identity.context.downcast_ref()
}

impl Hooks for FleetHooks {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        let mut doorways = self.doorways.iter();
        let Some(doorway) = doorways.find(|it| it.listener == *attempt.listener) else {
            let why = format!("listener {} is not known to the server", attempt.listener);
            return Err(Refusal::new(ReasonCode::NotAuthorized, why));
        };
        // A request comes from nowhere in particular: it is a device's, shown in the handshake, or nobody's.
        if attempt.transport == HTTPS && attempt.certificates.is_empty() {
            let why = "no certificate, which publishing over HTTPS needs";
            return Err(Refusal::new(ReasonCode::NotAuthorized, why));
        }
        if doorway.auth.by_certificate()
            && let Some(principal) = self.device(attempt)?
        {
            let client_id = client_id(principal.device_id().as_str(), attempt.client_id);
            return Ok(device_identity(client_id, principal));
        }
        match (doorway.auth.without_certificate(), doorway.anonymous) {
            (true, Anonymous::AllowAll) => {
                let client_id = client_id(ANONYMOUS, attempt.client_id);
                Ok(anonymous_identity(client_id, attempt.client_id))
            }
            (true, Anonymous::Deny) => Err(Refusal::new(
                ReasonCode::NotAuthorized,
                "no credentials, and access.anonymous is \"deny\"",
            )),
            (false, _) => Err(Refusal::new(
                ReasonCode::NotAuthorized,
                "no certificate, and listener.auth asks for one",
            )),
        }
    }

    fn may_publish(&self, identity: &Identity, topic: &str) -> Decision {
        decision(match who(identity) {
            Some(Who::Device(principal)) => self.directory.may_publish(principal, topic),
            Some(Who::Anyone(_)) => !OWN_TREES.iter().any(|tree| topic.starts_with(tree)),
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

    fn may_receive(&self, identity: &Identity, topic: &str) -> Decision {
        decision(match who(identity) {
            Some(Who::Device(principal)) => self.directory.may_receive(principal, topic),
            Some(Who::Anyone(_)) => true,
            None => false,
        })
    }

    fn recall(&self, client_id: &str, principal: &str) -> Option<Identity> {
        // What follows the name of its owner, as `client_id` made it.
        let chosen = client_id.strip_prefix(principal)?.strip_prefix('/')?;
        let mut doorways = self.doorways.iter();
        let lets_anybody_in = doorways.any(|it| it.anonymous == Anonymous::AllowAll);
        match principal == ANONYMOUS && lets_anybody_in {
            true => Some(anonymous_identity(client_id, chosen)),
            false => {
                let principal = self.directory.recall(principal, now_us())?;
                Some(device_identity(client_id, principal))
            }
        }
    }

    fn presence(&self, event: &Presence<'_>) {
        self.presence.push(event);
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
        AppendError::Busy { .. } | AppendError::Full { .. } | AppendError::DiskFull { .. } => {
            ReasonCode::QuotaExceeded
        }
        // Never as it is.
        AppendError::TooLarge { .. } => ReasonCode::PacketTooLarge,
        AppendError::Closed { .. } => ReasonCode::ServerShuttingDown,
        _ => ReasonCode::ImplementationSpecificError,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use broker::Proxied;
    use eventlog::{Log, LogOptions, StreamConfig};
    use fleet::{Actor, Fleet, NewDevice, NewVehicle};
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;
    use crate::presence::queue;

    /// One that asks for certificates, one that does not, and one behind a proxy.
    fn doorways(anonymous: Anonymous) -> Vec<Doorway> {
        let doorway = |listener: &str, auth, anonymous| Doorway {
            listener: listener.into(),
            auth,
            anonymous,
        };
        vec![
            doorway("mqtts-0", Auth::Certificate, Anonymous::Deny),
            doorway("mqtt-1", Auth::Anonymous, anonymous),
            doorway("mqtt-2", Auth::CertificateOrAnonymous, anonymous),
        ]
    }

    /// A fleet of one car, and the hooks over it.
    struct Yard {
        _folder: tempfile::TempDir,
        fleet: Fleet,
        operator: Actor,
        hooks: FleetHooks,
        certificate: CertificateDer<'static>,
    }

    impl Yard {
        async fn open(anonymous: Anonymous) -> Yard {
            let folder = tempfile::tempdir().expect("a folder");
            let fleet = Fleet::open(folder.path()).await.expect("a fleet");
            let (log, _) =
                Log::open(&folder.path().join("log"), LogOptions::default()).expect("a log");
            let raw = log
                .stream(pipeline::RAW_TELEMETRY, StreamConfig::default())
                .expect("a stream");
            let operator = Actor::new("person:anna").expect("a name");
            let vehicle = NewVehicle {
                id: Some("car-1".into()),
                ..NewVehicle::default()
            };
            fleet.create_vehicle(&operator, vehicle).await.expect("new");
            let device = NewDevice {
                id: Some("tcu-1".into()),
                vehicle_id: "car-1".into(),
                kind: "tcu".into(),
            };
            fleet.create_device(&operator, device).await.expect("new");
            let key = rcgen::KeyPair::generate().expect("a key");
            let request = rcgen::CertificateParams::default();
            let request = request.serialize_request(&key).expect("a request");
            let issued = fleet
                .issue_certificate(&operator, "tcu-1", &request.pem().expect("PEM"))
                .await
                .expect("signed");
            Yard {
                hooks: FleetHooks::new(fleet.directory(), raw, doorways(anonymous), queue().0),
                certificate: CertificateDer::from_pem_slice(issued.pem.as_bytes()).expect("DER"),
                _folder: folder,
                fleet,
                operator,
            }
        }

        fn connect(&self, client_id: &str, certificates: &[CertificateDer<'static>]) -> Identity {
            let listener = match certificates {
                [] => "mqtt-1",
                _ => "mqtts-0",
            };
            let attempt = self.attempt(listener, client_id, certificates, None);
            attempt.expect("let in")
        }

        fn attempt(
            &self,
            listener: &str,
            client_id: &str,
            certificates: &[CertificateDer<'static>],
            proxied: Option<&Proxied>,
        ) -> Result<Identity, Refusal> {
            self.hooks.authenticate(&ConnectAttempt {
                listener: &listener.into(),
                transport: "mqtt",
                peer: SocketAddr::from(([127, 0, 0, 1], 1)),
                proxied,
                client_id,
                username: None,
                password: None,
                certificates,
            })
        }
    }

    fn behind_proxy(certificate_name: Option<&str>) -> Proxied {
        Proxied {
            proxy: SocketAddr::from(([10, 0, 0, 1], 1)),
            certificate_name: certificate_name.map(Into::into),
            server_name: None,
            tls_version: None,
        }
    }

    #[tokio::test]
    async fn each_listener_lets_in_whom_it_is_for() {
        let yard = Yard::open(Anonymous::AllowAll).await;
        let shown = std::slice::from_ref(&yard.certificate);
        let (tcu, other, none) = (
            behind_proxy(Some("tcu-1")),
            behind_proxy(Some("tcu-9")),
            behind_proxy(None),
        );
        type Row<'a> = (
            &'a str,
            &'a [CertificateDer<'static>],
            Option<&'a Proxied>,
            Option<&'a str>,
        );
        let rows: [Row<'_>; 8] = [
            ("mqtts-0", shown, None, Some("tcu-1")),
            ("mqtts-0", &[], None, None),
            // Asked for no certificate, so none counts.
            ("mqtt-1", &[], Some(&tcu), Some("anonymous")),
            ("mqtt-2", &[], Some(&tcu), Some("tcu-1")),
            ("mqtt-2", &[], Some(&other), None),
            ("mqtt-2", &[], Some(&none), Some("anonymous")),
            ("mqtt-2", &[], None, Some("anonymous")),
            ("mqtt-3", shown, None, None),
        ];
        for (listener, certificates, proxied, expected) in rows {
            let identity = yard.attempt(listener, "app", certificates, proxied);
            let principal = identity.as_ref().map(|identity| &*identity.principal).ok();
            assert_eq!(principal, expected, "{listener} {proxied:?}");
        }
        let device = yard
            .attempt("mqtt-2", "app", &[], Some(&tcu))
            .expect("let in");
        assert_eq!(device.group.as_deref(), Some("car-1"));
        let fleet = &yard.fleet;
        let disabled = fleet.set_device_enabled(&yard.operator, "tcu-1", false, None);
        disabled.await.expect("disabled");
        let refused = yard
            .attempt("mqtt-2", "app", &[], Some(&tcu))
            .expect_err("shut out");
        assert!(refused.log.contains("`tcu-1`"), "{}", refused.log);
    }

    #[tokio::test]
    async fn over_https_nobody_comes_without_a_certificate() {
        let yard = Yard::open(Anonymous::AllowAll).await;
        let come = |certificates: &[CertificateDer<'static>]| {
            let identity = yard.hooks.authenticate(&ConnectAttempt {
                listener: &"mqtt-2".into(),
                transport: HTTPS,
                peer: SocketAddr::from(([127, 0, 0, 1], 1)),
                proxied: Some(&behind_proxy(Some("tcu-1"))),
                client_id: "https",
                username: None,
                password: None,
                certificates,
            });
            identity.map(|identity| identity.client_id.to_string()).ok()
        };
        let shown = std::slice::from_ref(&yard.certificate);
        assert_eq!(come(shown).as_deref(), Some("tcu-1/https"));
        assert_eq!(come(&[]), None);
    }

    #[tokio::test]
    async fn nobody_speaks_in_the_servers_name() {
        let yard = Yard::open(Anonymous::AllowAll).await;
        let anybody = yard.connect("trial", &[]);
        let device = yard.connect("app", std::slice::from_ref(&yard.certificate));
        for topic in [
            "$SYS/broker/version",
            "$milepost/events/presence/connected/tcu-1/app",
            "$aws/events/presence/connected/app",
        ] {
            assert_eq!(yard.hooks.may_publish(&anybody, topic), Decision::Deny);
            assert_eq!(yard.hooks.may_publish(&device, topic), Decision::Deny);
            assert_eq!(yard.hooks.may_subscribe(&anybody, topic), Decision::Allow);
            assert_eq!(yard.hooks.may_subscribe(&device, topic), Decision::Deny);
        }
    }

    #[tokio::test]
    async fn a_session_is_recalled_under_what_the_directory_says_now() {
        let yard = Yard::open(Anonymous::Deny).await;
        let there = yard.connect("app", std::slice::from_ref(&yard.certificate));
        assert_eq!(
            (&*there.client_id, &*there.principal),
            ("tcu-1/app", "tcu-1")
        );

        let hooks = &yard.hooks;
        let recalled = hooks.recall("tcu-1/app", "tcu-1").expect("known");
        for who in [&there, &recalled] {
            assert_eq!(&*who.client_id, "tcu-1/app");
            let own = "dt/a/b/car-1/x";
            assert_eq!(hooks.may_publish(who, own), Decision::Allow);
            assert_eq!(hooks.may_receive(who, own), Decision::Allow);
            assert_eq!(hooks.may_receive(who, "dt/a/b/car-2/x"), Decision::Deny);
            // Where answers go is a topic that it may subscribe to and its vehicle may publish to.
            let answers = who.response_information.as_deref().expect("a topic");
            assert_eq!(answers, "dt/rpc/response/car-1/tcu-1");
            let filter = format!("{answers}/#");
            assert_eq!(hooks.may_subscribe(who, &filter), Decision::Allow);
            assert_eq!(hooks.may_publish(who, answers), Decision::Allow);
        }
        for (client_id, principal) in [
            ("tcu-1/app", "tcu-2"),
            ("tcu-1", "tcu-1"),
            ("tcu-10/app", "tcu-1"),
            ("tcu-2/app", "tcu-2"),
            ("anonymous/app", "anonymous"),
        ] {
            assert!(hooks.recall(client_id, principal).is_none(), "{client_id}");
        }

        let fleet = &yard.fleet;
        let disabled = fleet.set_device_enabled(&yard.operator, "tcu-1", false, None);
        disabled.await.expect("disabled");
        assert!(hooks.recall("tcu-1/app", "tcu-1").is_none());
        for who in [&there, &recalled] {
            assert_eq!(hooks.may_receive(who, "dt/a/b/car-1/x"), Decision::Deny);
        }
    }

    #[tokio::test]
    async fn anybody_is_recalled_as_anybody_where_anybody_is_let_in() {
        let yard = Yard::open(Anonymous::AllowAll).await;
        let there = yard.connect("trial", &[]);
        let recalled = yard.hooks.recall(&there.client_id, &there.principal);
        let recalled = recalled.expect("let in");
        assert_eq!(&*recalled.client_id, "anonymous/trial");
        assert_eq!(yard.hooks.may_publish(&recalled, "a"), Decision::Allow);
        assert!(matches!(who(&recalled), Some(Who::Anyone(id)) if id == "trial"));
        // A device is still itself.
        let device = yard.hooks.recall("tcu-1/app", "tcu-1").expect("known");
        assert_eq!(yard.hooks.may_publish(&device, "a"), Decision::Deny);
    }
}
