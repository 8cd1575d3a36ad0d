//! Every bound of the broker in one place, with the reason for its default and what a client
//! hears when it meets it.

use std::time::Duration;

use crate::admission::hold_off::HoldOff;
use crate::admission::rate::Rate;
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
    /// The same of one address, over all listeners: an IPv4 address, or an IPv6 /64; behind a proxy, what
    /// that announces. The next one is closed like that. 2,048, a quarter of all: one host that opens
    /// sockets and says nothing does not keep others out, and a fleet behind one address that comes back
    /// at once has room. So that they do not take all handshakes either, one address has half of these at
    /// a time (`max_handshakes`), and waits for itself beyond that.
    pub max_pending_per_address: usize,
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
    /// Memory for the messages that stored sessions wait for or that are retained, in bytes over all, each
    /// message once; and 256 bytes for each of them and for each session that waits for one. Beyond it a
    /// message for a stored session is refused with 0x97. 4 GiB.
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
    /// TLS handshakes in progress at once, over all workers; further connections wait their turn. Half of
    /// them at most are of one address.
    /// Bounds memory: a handshake holds up to 40 KiB, an established connection 8.
    pub max_handshakes: usize,
    /// Deliveries waiting between two workers, per receiving worker. Publishers are not read from
    /// while it is exceeded, so nothing is lost by it. 20,000: what one works off in about ten
    /// milliseconds, which is how long a flood makes others wait.
    pub max_handover: usize,
    /// Time a closing connection has to take its last packets (CONNACK, DISCONNECT, PUBACKs).
    pub close_timeout: Duration,
    /// New sockets, over all listeners. One that is too many is closed before its handshake. None: the
    /// bounds of handshakes and pending connections, and the overload signal, do it by what it costs.
    pub connect_rate: Option<Rate>,
    /// PUBLISH packets of one client, over all its connections. A client that is faster is not read from
    /// until it is not: TCP slows it down and nothing is lost. 20,000/s and 100,000 at once: forty times a busy car, and a car that
    /// was offline for a day empties its queue at full speed.
    pub client_messages_in: Option<Rate>,
    /// Messages to one client. One that is to get more waits for them, within the bounds of its queue;
    /// answers go out at once. None: a client that reads quickly may.
    pub client_messages_out: Option<Rate>,
    /// Bytes of one client, above TLS; as `client_messages_in`. 64 MiB/s and 256 MiB at once: no car has
    /// such a link, a gateway or a broken loop has.
    pub client_bytes_in: Option<Rate>,
    /// Bytes to one client, above TLS; as `client_messages_out`. None.
    pub client_bytes_out: Option<Rate>,
    /// PUBLISH packets of all clients together; all wait while it is exceeded. None: the machine's own
    /// speed is the bound.
    pub messages_in: Option<Rate>,
    /// Bytes of all clients together, above TLS; as `messages_in`. None.
    pub bytes_in: Option<Rate>,
    /// Levels of a topic that is published to. A deeper one is refused with 0x90 in PUBACK, PUBREC, and,
    /// for the will, CONNACK; at QoS 0 the message is dropped. 128, as for filters.
    pub max_topic_levels: usize,
    /// Open sockets, connected clients or not; the next one is closed at once. To be below what the
    /// process may open, so that its other files never run out. As many as the two bounds above for
    /// connections allow together.
    pub max_sockets: usize,
    /// Memory for packets that are not complete, over all connections, in bytes. Who would exceed it is
    /// closed with 0x97. 256 MiB: that many half-sent packets of the largest size. The last quarter is
    /// for connections that hold at most 64 KiB.
    pub max_read_memory: usize,
    /// Memory for messages that wait for connected clients, over all of them, in bytes. Above it
    /// what may wait for one of them shrinks to 64 KiB, and at a quarter more to nothing for those that
    /// do not read: slow readers pay, not publishers. QoS 0 is dropped then, and a transient session that
    /// would get QoS 1 or 2 is ended as a slow consumer. Half of it may be what full sockets did not take;
    /// who would exceed that is ended as a slow consumer, too. 1 GiB.
    pub max_queue_memory: usize,
    /// Memory for what sessions hold of their clients' choosing, over all of them, in bytes: wills,
    /// subscriptions, names, identifiers of QoS 2 messages that are not released; and for answers that wait
    /// for the disk. What does not fit is refused with 0x97: a CONNECT for its will, a filter in SUBACK, a
    /// QoS 2 message in PUBREC; who waits for an answer is not read from meanwhile. 1 GiB:
    /// two million subscriptions of 60 bytes. The last quarter is for sessions that hold at most 64 KiB.
    pub max_session_memory: usize,
    /// Memory for wide windows of QUIC connections, over all of them, in bytes. Each begins with 16 KiB
    /// each way, and gets 256 KiB when it moves more than that in a second, as long as there is room
    /// here; otherwise it stays as slow as that makes it. 1 GiB: a thousand of them.
    pub max_window_memory: usize,
    /// How late a worker may be with what is due before new connections are refused: closed before a TLS
    /// handshake, else 0x89 in CONNACK. Those that stand are not touched. It ends at half of this.
    /// 500 ms: what a person notices, and ten times what a busy worker needs.
    pub max_loop_delay: Duration,
    /// Over which time refusals for overload are spread, at random, so that those refused do not all
    /// come back at once. As many as a quarter of `max_pending_connections` wait like that; others are
    /// refused at once. 10 s.
    pub retry_spread: Duration,
    /// Who is held off for failing to authenticate, or for connecting again and again.
    pub hold_off: HoldOff,
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
            max_pending_per_address: 2_048,
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
            max_handover: 20_000,
            close_timeout: Duration::from_secs(2),
            connect_rate: None,
            client_messages_in: Some(Rate::of(20_000, 100_000)),
            client_messages_out: None,
            client_bytes_in: Some(Rate::of(64 << 20, 256 << 20)),
            client_bytes_out: None,
            messages_in: None,
            bytes_in: None,
            max_topic_levels: 128,
            max_sockets: 400_000 + 8_192,
            max_read_memory: 256 << 20,
            max_queue_memory: 1 << 30,
            max_session_memory: 1 << 30,
            max_window_memory: 1 << 30,
            max_loop_delay: Duration::from_millis(500),
            retry_spread: Duration::from_secs(10),
            hold_off: HoldOff::default(),
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
