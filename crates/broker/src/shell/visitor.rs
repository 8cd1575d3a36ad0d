//! Who comes without a connection of MQTT, over HTTP: let in as a CONNECT would be, or told why not.
//!
//! Asked anew for each request, because the socket was let in once and may stand for a while: behind a proxy
//! the address is known only after that, and a ban may have come since.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mqtt::ReasonCode;
use sha2::{Digest, Sha256};

use super::broker::BrokerHandle;
use crate::admission::gate::Entrance;
use crate::admission::hold_off::Applicant;
use crate::admission::{Fingerprint, Refused};
use crate::hooks::{ConnectAttempt, Identity, Refusal};
use crate::machine::Moment;

/// Somebody who was let in for a request: [`BrokerHandle::identify`] makes one.
#[derive(Debug, Clone)]
pub struct Visitor {
    pub(super) identity: Identity,
    address: IpAddr,
    certificate: Option<Fingerprint>,
    /// The listener it came through, if that is one of the broker's.
    pub(super) entrance: Option<Arc<Entrance>>,
}

impl Visitor {
    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// Why somebody without a connection of MQTT is not served.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// By an operator ([`BrokerHandle::set_bans`]).
    #[error("this {} is banned; only an operator of the fleet can lift that", .0.name())]
    Banned(Whom),
    /// Its address, its certificate or its name failed to authenticate too often
    /// ([`HoldOff::failures`](crate::HoldOff::failures)).
    #[error(
        "{failures} or more attempts of this address, certificate or client failed to authenticate; come \
         again in {} s, with credentials that are valid", seconds(*retry_after)
    )]
    HeldOff {
        /// How many are too many.
        failures: u32,
        /// Until it is let in again.
        retry_after: Duration,
    },
    /// Connections of this client broke too often ([`HoldOff::connects`](crate::HoldOff::connects)).
    #[error(
        "{connects} or more connections of this client broke; come again in {} s, and let no two devices \
         use one client identifier", seconds(*retry_after)
    )]
    Flapping {
        /// How many are too many.
        connects: u32,
        /// Until it is let in again.
        retry_after: Duration,
    },
    /// The outside does not know it. What that says of it is for operators, not for the client.
    #[error("not authenticated: {}", .0.log)]
    Unknown(Refusal),
    /// The client is faster than [`Limits::client_messages_in`](crate::Limits::client_messages_in) or
    /// [`client_bytes_in`](crate::Limits::client_bytes_in) allows; what it sends over MQTT counts too.
    #[error(
        "a client may send {per_second} {} per second and this one has sent more; come again in {} s, and \
         send less at a time", .rate.name(), seconds(*retry_after)
    )]
    TooFast {
        /// Of what.
        rate: RateUnit,
        /// How many are allowed in the long run.
        per_second: u32,
        /// Until what it sent so far is allowed.
        retry_after: Duration,
    },
    /// All clients together, or all of its listener, are faster than they may be.
    #[error(
        "all clients together send more than they may; come again in {} s, or have an operator raise \
         `message_rate_in` or `byte_rate_in`", seconds(*retry_after)
    )]
    Crowded {
        /// Until it may be worth while.
        retry_after: Duration,
    },
    /// The broker has more to deliver, or to write to its disk, than it may.
    #[error(
        "the broker has more to deliver or to write than it may; come again in {} s, and see the disk if \
         that lasts", seconds(*retry_after)
    )]
    Behind {
        /// Until it may be worth while.
        retry_after: Duration,
    },
    /// The message is not taken, for the reason that PUBACK would bring.
    #[error("{0}")]
    Reason(ReasonCode),
}

/// What a ban is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The address it comes from, or a range around it.
    Address,
    /// The certificate it shows.
    Certificate,
    /// The client as the broker knows it.
    Client,
    /// The authenticated subject.
    Principal,
}

impl Whom {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Whom::Address => "address",
            Whom::Certificate => "certificate",
            Whom::Client => "client",
            Whom::Principal => "device",
        }
    }
}

/// What a rate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateUnit {
    /// Messages.
    Messages,
    /// Bytes of topics, payloads and user properties.
    Bytes,
}

impl RateUnit {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            RateUnit::Messages => "messages",
            RateUnit::Bytes => "bytes",
        }
    }
}

impl Denied {
    /// After how long it makes sense to come again; `None` if nobody knows.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Denied::HeldOff { retry_after, .. }
            | Denied::Flapping { retry_after, .. }
            | Denied::TooFast { retry_after, .. }
            | Denied::Crowded { retry_after }
            | Denied::Behind { retry_after } => Some(*retry_after),
            Denied::Banned(_) | Denied::Unknown(_) | Denied::Reason(_) => None,
        }
    }
}

/// Whole seconds, rounded up, as `Retry-After` has them.
fn seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000) as u64
}

impl BrokerHandle {
    /// Lets in somebody who shows credentials without a connection of MQTT, for one request: bans and
    /// hold-offs are looked at, then [`Hooks::authenticate`](crate::Hooks::authenticate) is asked, and what that says counts towards
    /// hold-offs, all as for a CONNECT. What is refused is counted as there.
    ///
    /// # Errors
    /// [`Denied::Banned`], [`HeldOff`](Denied::HeldOff), [`Flapping`](Denied::Flapping) or
    /// [`Unknown`](Denied::Unknown).
    pub fn identify(&self, attempt: &ConnectAttempt<'_>) -> Result<Visitor, Denied> {
        let exchange = &self.inner.exchange;
        let admission = &exchange.admission;
        let now = self.inner.clock.now();
        let leaf = attempt.certificates.first();
        let certificate: Option<Fingerprint> = leaf.map(|leaf| Sha256::digest(leaf).into());
        let applicant = Applicant {
            address: attempt.peer.ip(),
            certificate: certificate.as_ref(),
            client_id: attempt.client_id,
        };
        if let Err(refused) = admission.connect(now, &applicant) {
            exchange.outside_counters().refused(refused);
            let wait = admission.hold_offs.held_for(now, &applicant);
            return Err(self.denied(refused, wait));
        }
        let identity = exchange.hooks.authenticate(attempt).map_err(|refusal| {
            if let Some(target) = admission.disbelieved(now, &applicant, refusal.reason) {
                tracing::warn!(
                    event = "client.held_off",
                    %target,
                    peer = %attempt.peer,
                    "it failed to authenticate too often"
                );
            }
            Denied::Unknown(refusal)
        })?;
        admission.hold_offs.succeeded(now, applicant.address);
        let visitor = Visitor {
            identity,
            address: applicant.address,
            certificate,
            entrance: self.inner.entrance(attempt.listener),
        };
        self.admits(&visitor, now)?;
        Ok(visitor)
    }

    /// Whether somebody who was identified may go on: a ban may have come since.
    pub(super) fn admits(&self, who: &Visitor, now: Moment) -> Result<(), Denied> {
        let exchange = &self.inner.exchange;
        let admission = &exchange.admission;
        let Identity {
            principal,
            client_id,
            ..
        } = &who.identity;
        let applicant = Applicant {
            address: who.address,
            certificate: who.certificate.as_ref(),
            client_id: "",
        };
        let verdict = admission.client(now, principal, client_id);
        let verdict = verdict.and_then(|()| admission.banned(now, &applicant));
        verdict.map_err(|refused| {
            exchange.outside_counters().refused(refused);
            let wait = admission.hold_offs.flaps_for(now, principal, client_id);
            self.denied(refused, wait)
        })
    }

    /// A refusal of admission in words; `wait` is for how long, in milliseconds, if that is known.
    fn denied(&self, refused: Refused, wait: Option<u64>) -> Denied {
        let rules = self.inner.exchange.limits.hold_off;
        // Over already: now.
        let retry_after = Duration::from_millis(wait.unwrap_or(0));
        match refused {
            Refused::BannedAddress => Denied::Banned(Whom::Address),
            Refused::BannedCertificate => Denied::Banned(Whom::Certificate),
            Refused::BannedClient => Denied::Banned(Whom::Client),
            Refused::BannedPrincipal => Denied::Banned(Whom::Principal),
            Refused::HeldOff => Denied::HeldOff {
                failures: rules.failures,
                retry_after,
            },
            Refused::Flapping => Denied::Flapping {
                connects: rules.connects,
                retry_after,
            },
            // Of sockets, and not said here.
            Refused::ConnectRate
            | Refused::ListenerConnectRate
            | Refused::ListenerFull
            | Refused::Handshakes
            | Refused::Sockets
            | Refused::PendingAddress
            | Refused::Overload
            | Refused::ReadMemory => Denied::Reason(ReasonCode::ServerBusy),
        }
    }
}
