//! Every bound of the broker in one place, with the reason for its default and what a client
//! hears when it meets it.

use std::time::Duration;

use crate::machine::share::ShareStrategy;

/// Limits of a broker. The defaults suit vehicles: many quiet connections on poor links.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest packet accepted, in bytes, and the size of packet that ends a connection with
    /// 0x95. Advertised as Maximum Packet Size. 1 MiB: a second of raw CAN from a busy car fits
    /// many times; anything larger belongs into an upload.
    pub max_packet_size: u32,
    /// QoS 1 messages in flight in either direction, per connection. Advertised as Receive
    /// Maximum; an MQTT 5 client that exceeds it is closed with 0x93, an MQTT 3.1.1 client is
    /// simply not read from until acknowledgements are out. 1024: two seconds of 500 messages/s
    /// waiting for the disk.
    pub max_inflight: u16,
    /// Messages waiting for one client. A QoS 0 message that finds the queue full is dropped and
    /// counted; a QoS 1 message that does, ends the connection as a slow consumer with 0x97.
    pub max_queued: usize,
    /// Bytes waiting for one client, the same rule. 8 MiB: eight packets of the largest size. On top
    /// come at most 64 KiB, or one packet, that its full socket did not take.
    pub max_queued_bytes: usize,
    /// Longest keep-alive, seconds resolution. A longer or switched-off keep-alive is replaced by
    /// Server Keep Alive (MQTT 5); MQTT 3.1.1 cannot be told and keeps what it asked for.
    pub keep_alive_max: Duration,
    /// Connected clients. The next one is refused with 0x97 in CONNACK.
    pub max_connections: usize,
    /// Sockets that are not connected clients yet (handshake, CONNECT outstanding). The next one
    /// is closed without a word: a reason would cost the handshake this bound is there to save.
    pub max_pending_connections: usize,
    /// HTTP connections that came in on ports of the broker and are with a
    /// [`WebService`](crate::WebService) now. The next one is answered 503 and closed. 1,024: people and
    /// programs that look at a fleet, not the fleet; apart from the vehicles, so that neither keeps the
    /// other out.
    pub max_web_connections: usize,
    /// Subscriptions of one connection. The next filter is refused with 0x97 in SUBACK.
    pub max_subscriptions: usize,
    /// Levels of a topic filter. A deeper one is refused with 0x8F in SUBACK. 128: ten times what
    /// a vehicle data model needs, and it bounds what one filter costs in the index.
    pub max_filter_levels: usize,
    /// Inbound topic aliases per connection, advertised as Topic Alias Maximum; a higher alias
    /// ends the connection with 0x94. The broker itself sends no aliases.
    pub topic_alias_maximum: u16,
    /// Most topic aliases the broker uses towards one client, however many more the client offers. An
    /// alias costs some 100 bytes as long as the connection lasts.
    pub topic_alias_maximum_out: u16,
    /// Longest time a session outlives its connection. A client that asks for more is told this in
    /// CONNACK (MQTT 5); a session of MQTT 3.1.1 without clean session gets exactly this.
    pub session_expiry_max: Duration,
    /// Sessions, connected or not. The next new one is refused with 0x97 in CONNACK.
    pub max_sessions: usize,
    /// What happens when the queue of a stored session is full.
    pub overflow: Overflow,
    /// Memory for the messages that stored sessions wait for, in bytes over all sessions, each message
    /// once. Beyond it a message for a stored session is refused with 0x97. 4 GiB.
    pub max_stored_bytes: usize,
    /// Which member of a shared subscription gets a message.
    pub share_strategy: ShareStrategy,
    /// Whether messages can be retained. If not, CONNACK says so and a PUBLISH or will with RETAIN is
    /// refused with 0x9A.
    pub retain: Retain,
    /// Retained messages. A message on one more topic is refused with 0x97.
    pub max_retained: usize,
    /// Bytes of all retained messages together, the same rule.
    pub max_retained_bytes: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time from an open (for TLS: authenticated) connection to its CONNECT.
    pub connect_timeout: Duration,
    /// TLS handshakes in progress at once, over all workers; further connections wait their turn.
    /// Bounds memory: a handshake holds up to 40 KiB, an established connection 8.
    pub max_handshakes: usize,
    /// Deliveries waiting between two workers, per receiving worker. Publishers are not read from
    /// while it is exceeded, so nothing is lost by it.
    pub max_handover: usize,
    /// Time a closing connection has to take its last packets (CONNACK, DISCONNECT, PUBACKs).
    pub close_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_packet_size: 1024 * 1024,
            max_inflight: 1024,
            max_queued: 10_000,
            max_queued_bytes: 8 * 1024 * 1024,
            keep_alive_max: Duration::from_secs(20 * 60),
            max_connections: 400_000,
            max_pending_connections: 8_192,
            max_web_connections: 1_024,
            max_subscriptions: 1_000,
            max_filter_levels: 128,
            topic_alias_maximum: 16,
            topic_alias_maximum_out: 16,
            session_expiry_max: Duration::from_secs(7 * 24 * 3600),
            max_sessions: 400_000,
            overflow: Overflow::RefuseNew,
            max_stored_bytes: 4 << 30,
            share_strategy: ShareStrategy::RoundRobin,
            retain: Retain::Available,
            max_retained: 1_000_000,
            max_retained_bytes: 1 << 30,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            max_handshakes: 1_024,
            max_handover: 100_000,
            close_timeout: Duration::from_secs(2),
        }
    }
}

/// What happens when a message finds the queue of a stored session full (`max_queued`,
/// `max_queued_bytes`). Whatever is dropped is counted by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The new message is not queued for this session. When no receiver at all takes it, its publisher
    /// is told 0x97 (an MQTT 3.1.1 publisher, who cannot be told, is disconnected): nothing that was
    /// acknowledged is lost.
    #[default]
    RefuseNew,
    /// The oldest waiting message goes: for state, where the latest counts.
    DropOldest,
    /// The oldest waiting message of low priority goes; if there is none, the new one is refused unless
    /// it has high priority itself, and then the oldest goes. Priority is the user property `priority`,
    /// `high` or `low`; low if absent.
    DropLowestPriority,
}

/// Whether messages can be retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// They can.
    Available,
    /// They are refused (0x9A).
    Unavailable,
}
