//! What the broker asks the outside: who is this, may they, and who else wants a copy.
//!
//! The broker knows neither vehicles nor databases. The program around it plugs one [`Hooks`]
//! in and gets every decision put before it: a CONNECT, each topic published to, each filter
//! subscribed to, and each message for a durable copy (the *tap*).
//!
//! Every method is called on the worker thread that serves the connection, between two packets of
//! that connection. A slow answer delays every client of that worker, so answers come from memory:
//! no disk, no network, no lock that is held for long. Something that takes longer belongs behind
//! [`Tap::Taken`].

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use mqtt::{Publish, ReasonCode};
use rustls::pki_types::CertificateDer;

use crate::acknowledge::Acknowledge;

/// The outside of the broker. One implementation serves all listeners.
pub trait Hooks: Send + Sync + 'static {
    /// Decides who a connecting client is. Called once per CONNECT, and a second time when
    /// [`BrokerHandle::disconnect_principal`](crate::BrokerHandle::disconnect_principal) was
    /// called in between, so that nobody slips in on an answer that is no longer true.
    ///
    /// # Errors
    /// [`Refusal`] is sent to the client in CONNACK; its `log` text goes to the operator only.
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal>;

    /// May this client publish to `topic`? Asked for every PUBLISH and for the will.
    fn may_publish(&self, who: &Identity, topic: &str) -> Decision;

    /// May this client subscribe to `filter`? Asked for every filter of every SUBSCRIBE.
    fn may_subscribe(&self, who: &Identity, filter: &str) -> Decision;

    /// Offers a copy of a message that passed [`may_publish`](Hooks::may_publish).
    ///
    /// `publish` is as the client sent it, topic alias resolved. `received_us` is the wall clock
    /// at reception, in microseconds since the Unix epoch. A QoS 1 message that is
    /// [`Taken`](Tap::Taken) is answered with PUBACK only when `done` says so. A will passes here
    /// too, after its client is gone.
    ///
    /// The payload is a slice of the worker's read buffer (tens of KiB): hold it as long as the
    /// copy takes, copy it to keep it.
    fn tap(&self, who: &Identity, publish: &Publish, received_us: i64, done: Acknowledge) -> Tap;
}

/// What a client presented with its CONNECT.
#[derive(Debug)]
pub struct ConnectAttempt<'a> {
    /// Name of the listener it came through, as configured.
    pub listener: &'a Arc<str>,
    /// Address the connection comes from.
    pub peer: SocketAddr,
    /// Client identifier; when the client left it empty, the one assigned by the broker.
    pub client_id: &'a str,
    /// User name, if sent.
    pub username: Option<&'a str>,
    /// Password, if sent. Not to be logged.
    pub password: Option<&'a [u8]>,
    /// Certificate chain of the client, leaf first, as verified in the TLS handshake; empty on a
    /// listener without TLS.
    pub certificates: &'a [CertificateDer<'static>],
}

/// Who a connection is, for as long as it lasts.
#[derive(Clone)]
pub struct Identity {
    /// The client identifier under which the broker keeps the connection: two connections with
    /// the same one take over from each other [MQTT-3.1.4-3]. Nothing but
    /// [`Hooks::authenticate`] keeps a client from using the identifier of another one and so
    /// throwing it out: let it be the principal's own, or begin with it.
    pub client_id: Arc<str>,
    /// The authenticated subject (a device id); what
    /// [`disconnect_principal`](crate::BrokerHandle::disconnect_principal) names.
    pub principal: Arc<str>,
    /// Whatever the hooks want to find again in later calls.
    pub context: Arc<dyn Any + Send + Sync>,
}

impl Identity {
    /// An identity without context of its own.
    pub fn new(client_id: impl Into<Arc<str>>, principal: impl Into<Arc<str>>) -> Identity {
        Identity {
            client_id: client_id.into(),
            principal: principal.into(),
            context: Arc::new(()),
        }
    }

    /// The same identity carrying `context` for the hooks.
    #[must_use]
    pub fn with_context(mut self, context: Arc<dyn Any + Send + Sync>) -> Identity {
        self.context = context;
        self
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("client_id", &self.client_id)
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

/// A CONNECT that was turned down.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What the client is told (CONNACK; MQTT 3.1.1 gets the nearest return code).
    pub reason: ReasonCode,
    /// What the operator is told. Never sent to the client.
    pub log: String,
}

impl Refusal {
    /// A refusal with its reason for the client and its explanation for the operator.
    pub fn new(reason: ReasonCode, log: impl Into<String>) -> Refusal {
        Refusal {
            reason,
            log: log.into(),
        }
    }
}

/// Answer to "may they".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refused with [`ReasonCode::NotAuthorized`].
    Deny,
}

/// Answer of [`Hooks::tap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tap {
    /// No copy wanted. The message still goes to its subscribers.
    NotWanted,
    /// The copy is being made durable; [`Acknowledge::done`] will be called exactly once.
    /// Subscribers get the message at once.
    Taken,
    /// The message is not accepted: subscribers do not get it. QoS 1 over MQTT 5 is answered with
    /// PUBACK and this reason; MQTT 3.1.1 has no way to say so, its connection is closed
    /// [MQTT-3.3.5-2]; QoS 0 is counted.
    Refused(ReasonCode),
}
