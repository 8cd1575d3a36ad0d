//! `[mqtt]`: bounds of MQTT connections, sessions and messages.

use std::{num::NonZeroU32, time::Duration};

use broker::{Overflow, Retain, ShareStrategy};

use super::{
    Durability,
    quantity::ByteSize,
    rate::{Counted, Rate},
    read_durability,
    reading::Section,
};

/// `[mqtt]`.
#[derive(Debug, Clone)]
pub struct MqttConfig {
    /// Largest packet either way.
    pub max_packet_size: ByteSize,
    /// Unacknowledged QoS 1 and 2 messages one connection may have, each way.
    pub max_inflight: u16,
    /// Messages that wait for one receiver, connected or not.
    pub max_queued: u32,
    /// Bytes of these; not below `max_packet_size`.
    pub max_queued_bytes: ByteSize,
    /// What happens to a message for a stored session whose queue is full.
    pub overflow: Overflow,
    /// Longest keep-alive; a client that asks for more is told this one.
    pub keep_alive_max: Duration,
    /// Longest time a session outlives its connection; a client that asks for more is told this one.
    pub session_expiry_max: Duration,
    /// Connections at once over all listeners.
    pub max_connections: u32,
    /// Sessions, connected or not.
    pub max_sessions: u32,
    /// Subscriptions of one session.
    pub max_subscriptions: u32,
    /// Memory for messages that stored sessions wait for, each message once; not below
    /// `max_packet_size`.
    pub max_stored_bytes: ByteSize,
    /// Which member of a shared subscription gets a message.
    pub share_strategy: ShareStrategy,
    /// Whether messages may be retained.
    pub retain: Retain,
    /// Retained messages.
    pub max_retained: u32,
    /// Bytes of these.
    pub max_retained_bytes: ByteSize,
    /// Topic aliases one client may use towards the server.
    pub topic_alias_maximum: u16,
    /// Topic aliases the server uses towards one client at most.
    pub topic_alias_maximum_out: u16,
    /// Whether what sessions are told is kept for them is on disk by then.
    pub durability: Durability,
    /// New connections over all listeners.
    pub connect_rate: Option<Rate>,
    /// TLS handshakes at once over all listeners.
    pub max_handshakes: u32,
    /// Sockets of one address that are not connected clients yet.
    pub max_pending_per_address: u32,
    /// Messages of one client to the server.
    pub client_message_rate_in: Option<Rate>,
    /// Messages of the server to one client.
    pub client_message_rate_out: Option<Rate>,
    /// Bytes of one client to the server.
    pub client_byte_rate_in: Option<Rate>,
    /// Bytes of the server to one client.
    pub client_byte_rate_out: Option<Rate>,
    /// Messages of all clients together.
    pub message_rate_in: Option<Rate>,
    /// Bytes of all clients together.
    pub byte_rate_in: Option<Rate>,
    /// Levels of a topic that is published to.
    pub max_topic_levels: u32,
    /// Memory for packets of which not everything has come yet, over all connections; not below
    /// `max_packet_size`.
    pub max_read_memory: ByteSize,
    /// Memory for what waits for connected clients, over all of them; not below `max_packet_size`.
    pub max_queue_memory: ByteSize,
    /// Memory for what sessions hold of their clients' choosing, over all of them; not below twice
    /// `max_packet_size`.
    pub max_session_memory: ByteSize,
    /// Memory for wide windows of QUIC connections, over all of them.
    pub max_window_memory: ByteSize,
}

const fn rate(per_second: u32, burst: u32) -> Rate {
    // Both are written here, and neither is zero.
    match (NonZeroU32::new(per_second), NonZeroU32::new(burst)) {
        (Some(per_second), Some(burst)) => Rate::new(per_second, burst),
        _ => Rate::new(NonZeroU32::MIN, NonZeroU32::MIN),
    }
}

/// Reads the section.
pub(super) fn read(mut section: Section<'_>) -> MqttConfig {
    let day = Duration::from_secs(86_400);
    let max_packet_size = section.size(
        "max_packet_size",
        ByteSize(1 << 20),
        ByteSize(1 << 10)..=ByteSize(256 << 20),
    );
    let max_queued_bytes = room_for_a_packet(
        &mut section,
        "max_queued_bytes",
        ByteSize((8 << 20).max(4 * max_packet_size.0)),
        max_packet_size,
    );
    let config = MqttConfig {
        max_packet_size,
        max_inflight: section.integer("max_inflight", 1024, 1..=65_535) as u16,
        max_queued: section.integer("max_queued", 10_000, 1..=10_000_000) as u32,
        // By default a few of the largest packets fit.
        max_queued_bytes,
        overflow: section.word(
            "overflow",
            Overflow::RefuseNew,
            &[
                ("refuse_new", Overflow::RefuseNew),
                ("drop_oldest", Overflow::DropOldest),
                ("drop_lowest_priority", Overflow::DropLowestPriority),
            ],
        ),
        keep_alive_max: section.duration(
            "keep_alive_max",
            Duration::from_secs(20 * 60),
            Duration::from_secs(1)..=Duration::from_secs(65_535),
        ),
        session_expiry_max: section.duration(
            "session_expiry_max",
            7 * day,
            Duration::ZERO..=3650 * day,
        ),
        max_connections: section.integer("max_connections", 500_000, 1..=10_000_000) as u32,
        max_sessions: section.integer("max_sessions", 500_000, 1..=10_000_000) as u32,
        max_subscriptions: section.integer("max_subscriptions", 1_000, 1..=1_000_000) as u32,
        max_stored_bytes: room_for_a_packet(
            &mut section,
            "max_stored_bytes",
            ByteSize(4 << 30),
            max_packet_size,
        ),
        share_strategy: section.word(
            "share_strategy",
            ShareStrategy::RoundRobin,
            &[
                ("round_robin", ShareStrategy::RoundRobin),
                ("least_in_flight", ShareStrategy::LeastInFlight),
                ("sticky_by_publisher", ShareStrategy::StickyByPublisher),
            ],
        ),
        retain: match section.flag("retain", true) {
            true => Retain::Available,
            false => Retain::Unavailable,
        },
        max_retained: section.integer("max_retained", 1_000_000, 1..=100_000_000) as u32,
        max_retained_bytes: room_for_a_packet(
            &mut section,
            "max_retained_bytes",
            ByteSize(1 << 30),
            max_packet_size,
        ),
        topic_alias_maximum: section.integer("topic_alias_maximum", 16, 0..=65_535) as u16,
        topic_alias_maximum_out: section.integer("topic_alias_maximum_out", 16, 0..=65_535) as u16,
        durability: read_durability(&mut section),
        connect_rate: section.rate("connect_rate", None, Counted::Things),
        max_handshakes: section.integer("max_handshakes", 1024, 1..=1_000_000) as u32,
        // Up to what all addresses may have together.
        max_pending_per_address: section.integer("max_pending_per_address", 2_048, 1..=8_192)
            as u32,
        client_message_rate_in: section.rate(
            "client_message_rate_in",
            Some(rate(20_000, 100_000)),
            Counted::Things,
        ),
        client_message_rate_out: section.rate("client_message_rate_out", None, Counted::Things),
        client_byte_rate_in: section.rate(
            "client_byte_rate_in",
            Some(rate(64 << 20, 256 << 20)),
            Counted::Bytes,
        ),
        client_byte_rate_out: section.rate("client_byte_rate_out", None, Counted::Bytes),
        message_rate_in: section.rate("message_rate_in", None, Counted::Things),
        byte_rate_in: section.rate("byte_rate_in", None, Counted::Bytes),
        max_topic_levels: section.integer("max_topic_levels", 128, 5..=32_768) as u32,
        max_read_memory: memory_for_all(
            &mut section,
            "max_read_memory",
            256 << 20,
            (max_packet_size.0 * 4, "four times mqtt.max_packet_size"),
        ),
        max_queue_memory: memory_for_all(
            &mut section,
            "max_queue_memory",
            1 << 30,
            (max_queued_bytes.0, "mqtt.max_queued_bytes"),
        ),
        max_session_memory: memory_for_all(
            &mut section,
            "max_session_memory",
            1 << 30,
            (max_packet_size.0 * 2, "twice mqtt.max_packet_size"),
        ),
        max_window_memory: section.size(
            "max_window_memory",
            ByteSize(1 << 30),
            ByteSize(64 << 10)..=ByteSize(1 << 42),
        ),
    };
    section.finish();
    config
}

/// Bytes for messages, of which the largest must fit, or it could never be kept.
fn room_for_a_packet(
    section: &mut Section<'_>,
    name: &'static str,
    default: ByteSize,
    max_packet_size: ByteSize,
) -> ByteSize {
    let placed = section.size_and_place(name, default, ByteSize(64 << 10)..=ByteSize(1 << 40));
    if placed.value < max_packet_size {
        section.problem(
            &placed.place,
            name,
            format!(
                "{} is less than mqtt.max_packet_size, {max_packet_size}: the largest message would \
                 never fit",
                placed.value
            ),
            "raise this one or lower max_packet_size".into(),
        );
    }
    placed.value
}

/// Memory of all clients together, which must do for one of them; the default grows with that.
fn memory_for_all(
    section: &mut Section<'_>,
    name: &'static str,
    default: u64,
    (one, of_one): (u64, &str),
) -> ByteSize {
    let default = ByteSize(default.max(one));
    let placed = section.size_and_place(name, default, ByteSize(64 << 10)..=ByteSize(1 << 42));
    if placed.value.0 < one {
        section.problem(
            &placed.place,
            name,
            format!(
                "{} is less than {of_one}, {}: what one client may have would not fit",
                placed.value,
                ByteSize(one)
            ),
            "raise this one or lower the other".into(),
        );
    }
    placed.value
}
