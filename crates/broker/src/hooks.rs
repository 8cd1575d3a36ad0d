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

use bytes::Bytes;
use mqtt::{Publish, ReasonCode};
use rustls::pki_types::CertificateDer;

use crate::acknowledge::Acknowledge;
use crate::presence::Presence;
use crate::proxy::Proxied;

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

    /// May this client subscribe to `filter`? Asked for every filter of every SUBSCRIBE, and again
    /// when a session is resumed and after
    /// [`BrokerHandle::access_changed`](crate::BrokerHandle::access_changed). For a shared
    /// subscription `filter` is what follows the share name.
    ///
    /// A yes covers every topic that the filter matches, until one of those moments: the broker does
    /// not ask for each delivery.
    fn may_subscribe(&self, who: &Identity, filter: &str) -> Decision;

    /// May this client have a message on `topic` that was not sent to it at once: a retained message,
    /// one that waited in its queue, one that is sent again? The decision that let the subscription in
    /// may be old by then.
    fn may_receive(&self, who: &Identity, topic: &str) -> Decision {
        self.may_subscribe(who, topic)
    }

    /// The identity of a stored session whose client is not there to show its credentials, for a will
    /// that comes due after a restart of the broker. `None` if it may do nothing any more.
    fn recall(&self, client_id: &str, principal: &str) -> Option<Identity> {
        let _ = (client_id, principal);
        None
    }

    /// Begins an enhanced authentication (MQTT 5 section 4.12) with the method the client named.
    /// `None` if it is not offered: the client is refused with 0x8C.
    ///
    /// Instead of [`authenticate`](Hooks::authenticate), the identity comes from the exchange. The same
    /// is asked again when a connected client re-authenticates.
    fn begin_authentication(
        &self,
        attempt: &ConnectAttempt<'_>,
        method: &str,
    ) -> Option<Box<dyn EnhancedAuthentication>> {
        let _ = (attempt, method);
        None
    }

    /// A client came, went, subscribed or unsubscribed; see [`Presence`] for what is told and in which
    /// order. For whoever keeps a record of it: what there is to be done is put into a queue, bounded,
    /// and done elsewhere. Must not call the broker: it may be in the middle of something.
    fn presence(&self, event: &Presence<'_>) {
        let _ = event;
    }

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
    /// What the connection speaks: `mqtt`, `mqtts`, `ws`, `wss` or `quic`. On a port that serves several,
    /// what this one chose.
    pub transport: &'static str,
    /// Address the connection comes from; behind a proxy, what the proxy says.
    pub peer: SocketAddr,
    /// The proxy it came through and what that says of the client, on a listener that has
    /// [`Proxies`](crate::Proxies).
    pub proxied: Option<&'a Proxied>,
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
    /// What the principal belongs to (a vehicle): named in logs, and to find its clients by.
    pub group: Option<Arc<str>>,
    /// Whatever the hooks want to find again in later calls.
    pub context: Arc<dyn Any + Send + Sync>,
    /// What a client that asks for response information is told: the topic below which it may have
    /// answers sent (MQTT 5 section 4.10.1).
    pub response_information: Option<Arc<str>>,
}

impl Identity {
    /// An identity without context of its own.
    pub fn new(client_id: impl Into<Arc<str>>, principal: impl Into<Arc<str>>) -> Identity {
        Identity {
            client_id: client_id.into(),
            principal: principal.into(),
            group: None,
            context: Arc::new(()),
            response_information: None,
        }
    }

    /// The same identity as part of a group.
    #[must_use]
    pub fn with_group(mut self, group: impl Into<Arc<str>>) -> Identity {
        self.group = Some(group.into());
        self
    }

    /// The same identity, to be told where answers to it go.
    #[must_use]
    pub fn with_response_information(mut self, topic: impl Into<Arc<str>>) -> Identity {
        self.response_information = Some(topic.into());
        self
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
            .field("group", &self.group)
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
    /// Where to go instead, for [`UseAnotherServer`](ReasonCode::UseAnotherServer) and
    /// [`ServerMoved`](ReasonCode::ServerMoved) (MQTT 5 section 4.11).
    pub server_reference: Option<Arc<str>>,
}

/// One enhanced authentication under way: a challenge and response mechanism (MQTT 5 section 4.12).
///
/// Lives with its connection, on its worker; the rules for [`Hooks`] hold: answer from memory.
pub trait EnhancedAuthentication: Send {
    /// Takes what the client said, in CONNECT or AUTH, and answers.
    fn step(&mut self, data: &[u8]) -> AuthStep;
}

/// Answer of an [`EnhancedAuthentication`].
#[derive(Debug)]
pub enum AuthStep {
    /// Say this and wait for the client's answer (AUTH 0x18).
    Continue(Bytes),
    /// The client is who it says.
    Done {
        /// Who that is. On re-authentication its client id and principal must be the ones the
        /// connection has.
        identity: Identity,
        /// A last word to the client (CONNACK or AUTH 0x00), so that it can verify the server.
        data: Option<Bytes>,
    },
    /// It is not.
    Refused(Refusal),
}

impl Refusal {
    /// A refusal with its reason for the client and its explanation for the operator.
    pub fn new(reason: ReasonCode, log: impl Into<String>) -> Refusal {
        Refusal {
            reason,
            log: log.into(),
            server_reference: None,
        }
    }

    /// The same refusal, naming the server to use instead.
    #[must_use]
    pub fn with_server_reference(mut self, server: impl Into<Arc<str>>) -> Refusal {
        self.server_reference = Some(server.into());
        self
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
