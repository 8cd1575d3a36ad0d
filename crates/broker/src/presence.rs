//! What the outside is told of the coming and going of clients, as it happens.
//!
//! Flow: a shard has decided (CONNACK, SUBACK or the end of a connection is on its way) → the event →
//! [`Hooks::presence`](crate::Hooks::presence), on the worker, borrowed: nothing is allocated for it, so
//! a program without interest pays for a call and a number.
//!
//! **Order.** For one client: Connected, then its Subscribed and Unsubscribed, then Disconnected, before
//! the next Connected; at a takeover too. All of them come from the worker on which the session lives.
//! Events of different clients come from different threads; [`Presence::sequence`] puts them in order.
//!
//! Every Connected has its Disconnected, unless the process dies. A CONNECT that was read and did not
//! lead to Connected has one ConnectFailed.

use std::net::SocketAddr;

use mqtt::{ReasonCode, Version};

use crate::hooks::Identity;

/// Most filters in one [`PresenceEvent::Subscribed`] or [`PresenceEvent::Unsubscribed`]: a longer
/// SUBSCRIBE makes several events, so that none is larger than what takes it on.
pub const FILTERS_PER_EVENT: usize = 64;

/// One event in the life of a client.
#[derive(Debug, Clone, Copy)]
pub struct Presence<'a> {
    /// Who it is; `None` if a CONNECT failed before that was known.
    pub identity: Option<&'a Identity>,
    /// The client identifier under which the broker keeps it; where that is not known, the one it
    /// asked for, or was assigned.
    pub client_id: &'a str,
    /// The client identifier in CONNECT, as far as it is still at hand: only with
    /// [`PresenceEvent::ConnectFailed`].
    pub requested_client_id: Option<&'a str>,
    /// Where the connection comes from.
    pub peer: SocketAddr,
    /// Name of its listener.
    pub listener: &'a str,
    /// When it happened, wall clock, microseconds since the Unix epoch.
    pub at_us: i64,
    /// Grows from event to event, over all clients and workers, and over restarts of the broker: it
    /// counts on from the wall clock (microseconds) at the start. A clock that is set back within a run
    /// changes nothing. After a start with an earlier clock the numbers still grow if the broker has a
    /// store on disk, which knows how far they got; without one they begin at that earlier time.
    pub sequence: u64,
    /// The same in all events of one connection, and greater than that of any earlier connection of the
    /// client, also over restarts (as far as `sequence` is).
    pub connection: u64,
    /// What happened.
    pub what: PresenceEvent<'a>,
}

/// What happened to a client.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum PresenceEvent<'a> {
    /// CONNACK with success is on its way.
    Connected {
        /// Of the protocol.
        version: Version,
        /// Whether the client asked to forget its earlier session.
        clean_start: bool,
        /// Agreed interval in seconds, 0 for none.
        keep_alive: u16,
        /// Whether an earlier session was taken up. Its subscriptions are no events.
        session_present: bool,
        /// Protocol of the listener: `mqtt`, `mqtts`, ...
        transport: &'static str,
    },
    /// A connection that was Connected is over.
    Disconnected {
        /// Of DISCONNECT, the client's or the broker's (or what it would have been in MQTT 5); 0x80 when
        /// the network failed.
        reason: ReasonCode,
        /// Whose doing it was.
        by: DisconnectedBy,
        /// The will was published at this moment. `false` also when it is delayed and the session waits:
        /// it may still come.
        will_published: bool,
        /// When the connection was Connected, wall clock, microseconds since the Unix epoch.
        since_us: i64,
        /// What went over it.
        traffic: Traffic,
    },
    /// A CONNECT was read, and not accepted; or its connection ended before CONNACK.
    ConnectFailed {
        /// As in CONNACK (or what it would have been in MQTT 5).
        reason: ReasonCode,
        /// For the operator. Not for the client: it may tell of others.
        detail: &'a str,
    },
    /// SUBACK is on its way; the subscriptions of a stored session are in the store.
    Subscribed {
        /// Those granted, as the client sent them (`$share/…` included), also when they only replace the
        /// options of earlier ones. At most [`FILTERS_PER_EVENT`].
        filters: &'a [&'a str],
    },
    /// UNSUBACK is on its way. Not for subscriptions that end with their session or that access was
    /// withdrawn from.
    Unsubscribed {
        /// Those that existed, as the client sent them. At most [`FILTERS_PER_EVENT`].
        filters: &'a [&'a str],
    },
}

/// Whose doing the end of a connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DisconnectedBy {
    /// The client said DISCONNECT.
    Client,
    /// The client broke the protocol, or a limit it was told of.
    ClientError,
    /// The transport failed or was closed without DISCONNECT.
    Network,
    /// Nothing came for one and a half times the keep-alive.
    KeepAlive,
    /// Another connection with the same client identifier came.
    Takeover,
    /// The client authenticated again, in vain.
    Authentication,
    /// What it may do was withdrawn, or an MQTT 3.1.1 client did what it may not.
    Access,
    /// It did not keep up, or used more than its share.
    Throttled,
    /// An operator asked for it.
    Operator,
    /// The broker stops.
    Shutdown,
    /// The broker could not go on with it.
    Server,
}

impl DisconnectedBy {
    /// Whether it is how connections of a client that flaps end: nobody meant it to.
    pub(crate) const fn is_broken(self) -> bool {
        matches!(
            self,
            DisconnectedBy::ClientError
                | DisconnectedBy::Network
                | DisconnectedBy::KeepAlive
                | DisconnectedBy::Takeover
                | DisconnectedBy::Throttled
        )
    }

    /// A short stable name, for records and labels.
    pub const fn name(self) -> &'static str {
        match self {
            DisconnectedBy::Client => "client",
            DisconnectedBy::ClientError => "client_error",
            DisconnectedBy::Network => "network",
            DisconnectedBy::KeepAlive => "keep_alive",
            DisconnectedBy::Takeover => "takeover",
            DisconnectedBy::Authentication => "authentication",
            DisconnectedBy::Access => "access",
            DisconnectedBy::Throttled => "throttled",
            DisconnectedBy::Operator => "operator",
            DisconnectedBy::Shutdown => "shutdown",
            DisconnectedBy::Server => "server",
        }
    }
}

/// What went over one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// PUBLISH packets received.
    pub messages_in: u64,
    /// PUBLISH packets sent, repeated ones included.
    pub messages_out: u64,
    /// Bytes read, above TLS. What came before the client was known is not in it.
    pub bytes_in: u64,
    /// Bytes written, the same.
    pub bytes_out: u64,
}
