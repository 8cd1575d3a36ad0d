//! Every bound of the broker in one place, with the reason for its default and what a client
//! hears when it meets it.

use std::time::Duration;

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
    /// Subscriptions of one connection. The next filter is refused with 0x97 in SUBACK.
    pub max_subscriptions: usize,
    /// Levels of a topic filter. A deeper one is refused with 0x8F in SUBACK. 128: ten times what
    /// a vehicle data model needs, and it bounds what one filter costs in the index.
    pub max_filter_levels: usize,
    /// Inbound topic aliases per connection, advertised as Topic Alias Maximum; a higher alias
    /// ends the connection with 0x94. The broker itself sends no aliases.
    pub topic_alias_maximum: u16,
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
            max_subscriptions: 1_000,
            max_filter_levels: 128,
            topic_alias_maximum: 16,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            max_handshakes: 1_024,
            max_handover: 100_000,
            close_timeout: Duration::from_secs(2),
        }
    }
}
