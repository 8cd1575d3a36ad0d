//! What an operator can ask about clients: pages of them, and everything about one.
//!
//! A client is here while it has a session: connected, or stored and waited for. The answers are put
//! together by the workers that own the sessions, in small steps between their other work (see
//! `machine/inspecting.rs`), so they are true of each client at some moment during the call, not of all
//! at the same one.

use std::net::SocketAddr;
use std::sync::Arc;

use mqtt::{QoS, Version};

use crate::presence::Traffic;

/// Most clients in one page.
pub const MAX_CLIENTS_PER_PAGE: usize = 1_000;

/// Most subscriptions in a [`ClientDetail`]: what one worker can look up without holding up its clients.
pub const MAX_SUBSCRIPTIONS_SHOWN: usize = 1_000;

/// Which clients, and from where on. The default is the first hundred of all.
#[derive(Debug, Clone)]
pub struct ClientQuery {
    /// Only clients whose identifier comes after this one: [`ClientPage::next`] of the page before.
    pub after: Option<Arc<str>>,
    /// Clients in the page, 1 to [`MAX_CLIENTS_PER_PAGE`]; what is outside of that counts as its nearest
    /// end.
    pub limit: usize,
    /// Only those that are connected, or only those that are not.
    pub connected: Option<bool>,
    /// Only those of this principal.
    pub principal: Option<Arc<str>>,
    /// Only those whose principal belongs to this group ([`Identity::group`](crate::Identity::group)).
    pub group: Option<Arc<str>>,
    /// Only those whose client identifier begins like this.
    pub prefix: Option<Arc<str>>,
}

impl Default for ClientQuery {
    fn default() -> ClientQuery {
        ClientQuery {
            after: None,
            limit: 100,
            connected: None,
            principal: None,
            group: None,
            prefix: None,
        }
    }
}

/// Some clients, in the order of their identifiers (byte by byte).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientPage {
    /// The clients.
    pub items: Vec<ClientSummary>,
    /// Where the next page begins ([`ClientQuery::after`]); `None` if this is the last one.
    pub next: Option<Arc<str>>,
}

/// A client in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSummary {
    /// The identifier under which the broker keeps it.
    pub client_id: Arc<str>,
    /// The authenticated subject.
    pub principal: Arc<str>,
    /// What the principal belongs to.
    pub group: Option<Arc<str>>,
    /// Its connection; `None` while its session waits for it.
    pub connection: Option<ConnectionSummary>,
    /// When its last connection ended, wall clock, microseconds since the Unix epoch; `None` while it is
    /// connected.
    pub disconnected_us: Option<i64>,
    /// Subscriptions it has.
    pub subscriptions: usize,
    /// QoS 1 and 2 messages waiting for it, those in flight not included.
    pub queued: usize,
    /// Bytes of these.
    pub queued_bytes: usize,
}

/// A connection in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSummary {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Name of its listener.
    pub listener: Arc<str>,
    /// Protocol of its listener: `mqtt`, `mqtts`, ...
    pub transport: &'static str,
    /// Of the protocol.
    pub version: Version,
    /// Since when, wall clock, microseconds since the Unix epoch.
    pub since_us: i64,
    /// [`Presence::connection`](crate::Presence::connection).
    pub number: u64,
}

/// Everything about one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientDetail {
    /// As in a list.
    pub summary: ClientSummary,
    /// More about its connection, if it has one.
    pub connection: Option<ConnectionDetail>,
    /// Messages sent to it and not acknowledged in full.
    pub in_flight: usize,
    /// Subscriptions in the order of their filters; of more than [`MAX_SUBSCRIPTIONS_SHOWN`] as many of
    /// them, any. [`ClientSummary::subscriptions`] says how many there are.
    pub subscriptions: Vec<SubscriptionDetail>,
    /// What will be published when it goes without a word.
    pub will: Option<WillDetail>,
    /// What becomes of its session.
    pub session: SessionDetail,
}

/// More about a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionDetail {
    /// Agreed interval in seconds, 0 for none.
    pub keep_alive: u16,
    /// Whether the client asked to forget its earlier session.
    pub clean_start: bool,
    /// QoS 1 and 2 messages it is sent at once at most: its Receive Maximum, or ours.
    pub receive_maximum: u16,
    /// Bytes of messages that may be written and wait for its socket.
    pub unsent_bytes: usize,
    /// What went over it so far.
    pub traffic: Traffic,
}

/// One subscription of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionDetail {
    /// As the client sent it, `$share/…` included.
    pub filter: Arc<str>,
    /// Highest quality of what it gets.
    pub qos: QoS,
    /// It does not get what it published itself.
    pub no_local: bool,
    /// RETAIN stays as it was published.
    pub retain_as_published: bool,
    /// Subscription identifier.
    pub id: Option<u32>,
}

/// A will. Its payload is the client's own affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WillDetail {
    /// Where it goes.
    pub topic: String,
    /// With which quality.
    pub qos: QoS,
    /// Whether it will be retained.
    pub retain: bool,
    /// Seconds after the connection ended.
    pub delay: u32,
    /// Of the payload.
    pub payload_bytes: usize,
}

/// What becomes of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionDetail {
    /// Whether it outlives its connection.
    pub stored: bool,
    /// Seconds it outlives its connection; `None` for ever.
    pub expiry: Option<u32>,
    /// When it ends if nobody comes back, wall clock, microseconds since the Unix epoch; `None` while
    /// connected, and for ever.
    pub expires_us: Option<i64>,
    /// It lost a subscription to a change of access: its client begins a new one when it comes back.
    pub curtailed: bool,
}

/// Purges that wait for the store at once: a few hundred bytes each. While the disk works they wait a
/// few milliseconds.
pub const MAX_PURGES: usize = 256;

/// Why a client is not purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PurgeError {
    /// [`MAX_PURGES`] wait.
    #[error(
        "{MAX_PURGES} purges wait for the disk; try again when it writes (see \
         `milepost_mqtt_store_stalled`)"
    )]
    TooMany,
}

/// What a purge removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// QoS 1 and 2 messages that waited for the client or were in flight.
    pub queued: usize,
    /// Subscriptions.
    pub subscriptions: usize,
}
