//! What the broker may hold at most: its limits, added up.

use crate::limits::Limits;
use crate::machine::alias::LONGEST;
use crate::shell::handshake::SENDABLE;
use crate::shell::quic;

/// What carries the connections of a listener, by what one of them costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carrier {
    /// TCP, with or without WebSocket.
    Tcp,
    /// TLS, with or without WebSocket.
    Tls,
    /// QUIC.
    Quic,
}

impl Carrier {
    /// Bytes of a connected client with an empty queue, at most: the transport, the link, the protocol
    /// state. What a full socket does not take is counted with the queues.
    fn connection(self) -> u64 {
        match self {
            // 2.8 KiB while idle; a timer, a queue that was used.
            Carrier::Tcp => 6 * 1024,
            // 12.3 KiB while idle. A record that is not complete, and one that was not read.
            Carrier::Tls => 16 * 1024 + 18 * 1024 + SENDABLE as u64,
            Carrier::Quic => quic::CONNECTION,
        }
    }
}

/// Bytes of a socket that is not a connected client and not in its handshake, where that is cheaper.
const PENDING: u64 = 16 * 1024;

/// Bytes of a TLS handshake under way: keys, certificates, messages of up to 16 KiB each way.
const HANDSHAKE: u64 = 40 * 1024;

/// Bytes of an HTTP connection at a web service, with the buffers it usually has.
const WEB: u64 = 64 * 1024;

/// Bytes of answers that a client has not read, in a buffer that may be twice as large as 8 KiB; and of what
/// it is sent when memory is used up.
const ANSWERS: u64 = 16 * 1024 + 4 * 1024;

/// What waits to be written to disk, and a group of it on its way; see `journal::Options`.
const TO_BE_STORED: u64 = 2 * (64 << 20);

/// A packet decoded takes at most so many times its bytes: of topic filters or user properties of one letter.
const DECODED: u64 = 16;

/// Bytes of a topic alias towards a client.
const ALIAS: u64 = LONGEST as u64 + 128;

/// Bytes of a session beside what is counted of it.
const SESSION: u64 = 2 * 1024;

/// Bytes of a retained message beside its text: the nodes of the tree, its record.
const RETAINED: u64 = 256;

/// Bytes of a delivery on its way from one worker to another.
const HANDED_OVER: u64 = 256;

/// Bytes of an entry of the hold-off tables, with two names of 128 bytes.
const WATCHED: u64 = 600;

/// Bytes of what the clients of a worker owe of their rates.
const DEBTS: u64 = 400 * 1024;

/// One part of so many goes to the allocator: it rounds each block up to one of eight sizes for each power
/// of two, so at most an eighth of a block is wasted.
const ROUNDED_UP: u64 = 8;

/// Read and write buffers of a worker, one message of the largest size in each; one that was let in
/// while another worker let in the last that fits; and its debts.
fn worker(limits: &Limits) -> u64 {
    2 * (64 * 1024 + u64::from(limits.max_packet_size))
        + DECODED * u64::from(limits.max_packet_size)
        + 2 * u64::from(limits.max_packet_size)
        + limits.max_queued_bytes as u64
        + DEBTS
}

impl Limits {
    /// What a broker with these limits and `listeners` may hold in memory at most, in bytes, by part. Each
    /// listener is given by what carries its connections, and by how many it takes at most if it has a bound
    /// of its own. All parts at their end at once is what nobody will see; that their sum fits into the
    /// machine is what makes it certain. Kernel buffers of sockets are not in it, nor is what the program
    /// around the broker holds.
    pub fn memory_bound(
        &self,
        listeners: impl IntoIterator<Item = (Carrier, Option<usize>)>,
    ) -> Vec<(&'static str, u64)> {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        self.memory_bound_of(workers, listeners.into_iter().collect())
    }

    fn memory_bound_of(
        &self,
        workers: u64,
        mut listeners: Vec<(Carrier, Option<usize>)>,
    ) -> Vec<(&'static str, u64)> {
        let count = |number: usize| number as u64;
        let sockets = count(self.max_sockets);
        let connections = count(self.max_connections).min(sockets);
        let pending = count(self.max_pending_connections).min(sockets);
        let handshakes = count(self.max_handshakes).min(pending);
        let bytes = |number: u64, each: u64| number.saturating_mul(each);
        let queue = count(self.max_queue_memory);
        let retained_bytes = count(self.max_retained_bytes);
        // As many as there may be on the dearest, and so on.
        listeners.sort_by_key(|(carrier, _)| std::cmp::Reverse(*carrier));
        let mut left = connections;
        let mut connected = 0u64;
        for (carrier, most) in &listeners {
            let here = most.map_or(left, |most| count(most).min(left));
            left -= here;
            connected = connected.saturating_add(bytes(here, carrier.connection()));
        }
        let dearest = listeners.first().map_or(PENDING, |(it, _)| it.connection());
        let of = |carrier| listeners.iter().filter(|(it, _)| *it == carrier).count() as u64;
        let kinds = of(Carrier::Tls).min(1) + of(Carrier::Quic).min(1);
        let windows = match of(Carrier::Quic) {
            0 => 0,
            several => count(self.max_window_memory).saturating_add(bytes(several, quic::WAITING)),
        };
        let aliases = match u64::from(self.topic_alias_maximum_out) {
            0 => 0,
            some => 256 + some * ALIAS,
        };
        let mut parts = vec![
            ("connections", connected),
            ("answers", bytes(connections, ANSWERS)),
            ("topic aliases", bytes(connections, aliases)),
            ("pending connections", bytes(pending, dearest.max(PENDING))),
            ("handshakes", bytes(kinds * handshakes, HANDSHAKE)),
            ("QUIC windows", windows),
            (
                "HTTP connections",
                bytes(count(self.max_web_connections), WEB),
            ),
            ("incomplete packets", count(self.max_read_memory)),
            // Beyond the limit it grows for those that read, by a quarter; half is what full sockets hold
            // of messages that were counted before.
            (
                "queues of connected clients",
                queue.saturating_add(queue / 4).saturating_add(queue / 2),
            ),
            ("sessions", bytes(count(self.max_sessions), SESSION)),
            (
                "wills, subscriptions, names, answers that wait for the disk",
                count(self.max_session_memory),
            ),
            ("stored messages", count(self.max_stored_bytes)),
            // The topic is there twice: in the message and in the tree.
            (
                "retained messages",
                retained_bytes
                    .saturating_mul(2)
                    .saturating_add(bytes(count(self.max_retained), RETAINED)),
            ),
            (
                "handover between workers",
                bytes(bytes(workers, count(self.max_handover)), HANDED_OVER),
            ),
            ("store queue", TO_BE_STORED),
            ("buffers of workers", bytes(workers, worker(self))),
            (
                "hold-offs",
                bytes(4 * count(self.hold_off.max_entries), WATCHED),
            ),
        ];
        let sum = parts
            .iter()
            .fold(0u64, |sum, (_, it)| sum.saturating_add(*it));
        parts.push(("allocator", sum / ROUNDED_UP));
        parts.retain(|(_, bytes)| *bytes > 0);
        parts
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admission::hold_off::HoldOff;
    use crate::limits::{Overflow, Retain};
    use crate::machine::share::ShareStrategy;

    /// Every limit either makes the bound larger, or is named here with the reason why it does not. A new
    /// field does not compile before somebody has thought about it.
    #[test]
    fn every_limit_that_bounds_memory_is_in_the_sum() {
        let limits = Limits::default();
        let Limits {
            max_packet_size: _,
            max_queued_bytes: _,
            max_connections: _,
            max_pending_connections: _,
            max_handshakes: _,
            max_web_connections: _,
            max_sessions: _,
            max_stored_bytes: _,
            max_retained: _,
            max_retained_bytes: _,
            max_handover: _,
            max_sockets: _,
            max_read_memory: _,
            max_queue_memory: _,
            max_session_memory: _,
            max_window_memory: _,
            topic_alias_maximum_out: _,
            hold_off:
                HoldOff {
                    max_entries: _,
                    failures: _,
                    connects: _,
                    within: _,
                    lasts: _,
                },
            // Within `max_queue_memory` and `max_stored_bytes`.
            max_inflight: _,
            max_queued: _,
            // Within `max_session_memory`.
            max_subscriptions: _,
            max_filter_levels: _,
            max_topic_levels: _,
            topic_alias_maximum: _,
            // Within `max_pending_connections`.
            max_pending_per_address: _,
            // Times, rates and rules.
            keep_alive_max: _,
            session_expiry_max: _,
            overflow: Overflow::RefuseNew | Overflow::DropOldest | Overflow::DropLowestPriority,
            share_strategy:
                ShareStrategy::RoundRobin
                | ShareStrategy::LeastInFlight
                | ShareStrategy::StickyByPublisher,
            retain: Retain::Available | Retain::Unavailable,
            handshake_timeout: _,
            connect_timeout: _,
            close_timeout: _,
            connect_rate: _,
            client_messages_in: _,
            client_messages_out: _,
            client_bytes_in: _,
            client_bytes_out: _,
            messages_in: _,
            bytes_in: _,
            max_loop_delay: _,
            retry_spread: _,
        } = limits.clone();
        let sum = |limits: &Limits| -> u128 {
            let parts =
                limits.memory_bound_of(2, vec![(Carrier::Tls, None), (Carrier::Quic, Some(10))]);
            parts.iter().map(|(_, bytes)| u128::from(*bytes)).sum()
        };
        let before = sum(&limits);
        type Change = fn(&mut Limits);
        let rows: [(&str, Change); 18] = [
            ("max_packet_size", |l| l.max_packet_size *= 2),
            ("max_queued_bytes", |l| l.max_queued_bytes *= 2),
            ("max_connections", |l| {
                l.max_connections *= 2;
                l.max_sockets *= 2;
            }),
            ("max_pending_connections", |l| {
                l.max_pending_connections *= 2
            }),
            ("max_handshakes", |l| l.max_handshakes *= 2),
            ("max_web_connections", |l| l.max_web_connections *= 2),
            ("max_sessions", |l| l.max_sessions *= 2),
            ("max_stored_bytes", |l| l.max_stored_bytes *= 2),
            ("max_retained", |l| l.max_retained *= 2),
            ("max_retained_bytes", |l| l.max_retained_bytes *= 2),
            ("max_handover", |l| l.max_handover *= 2),
            ("max_read_memory", |l| l.max_read_memory *= 2),
            ("max_queue_memory", |l| l.max_queue_memory *= 2),
            ("max_session_memory", |l| l.max_session_memory *= 2),
            ("max_window_memory", |l| l.max_window_memory *= 2),
            ("topic_alias_maximum_out", |l| {
                l.topic_alias_maximum_out *= 2;
            }),
            ("max_sockets", |l| l.max_sockets /= 2),
            ("hold_off.max_entries", |l| l.hold_off.max_entries *= 2),
        ];
        for (name, change) in rows {
            let mut changed = limits.clone();
            change(&mut changed);
            assert_ne!(sum(&changed), before, "{name} changes nothing");
        }
    }

    #[test]
    fn limits_without_end_add_up_without_overflow() {
        let limits = Limits {
            max_connections: usize::MAX,
            max_sockets: usize::MAX,
            max_sessions: usize::MAX,
            max_queue_memory: usize::MAX,
            max_retained_bytes: usize::MAX,
            max_retained: usize::MAX,
            handshake_timeout: Duration::MAX,
            ..Limits::default()
        };
        let parts = limits.memory_bound([(Carrier::Quic, None)]);
        assert!(parts.iter().any(|(_, bytes)| *bytes == u64::MAX));
    }

    #[test]
    fn connections_cost_what_their_listeners_may_have() {
        let limits = Limits {
            max_connections: 100,
            ..Limits::default()
        };
        let rows = [
            (vec![(Carrier::Tcp, None)], 100 * Carrier::Tcp.connection()),
            (
                vec![(Carrier::Tcp, None), (Carrier::Quic, Some(10))],
                10 * Carrier::Quic.connection() + 90 * Carrier::Tcp.connection(),
            ),
            (
                vec![(Carrier::Tls, Some(400)), (Carrier::Quic, None)],
                100 * Carrier::Quic.connection(),
            ),
            (
                vec![(Carrier::Tls, Some(30)), (Carrier::Tls, Some(30))],
                60 * Carrier::Tls.connection(),
            ),
        ];
        for (listeners, expected) in rows {
            let has_quic = listeners.iter().any(|(it, _)| *it == Carrier::Quic);
            let parts = limits.memory_bound_of(2, listeners);
            let part = |name| parts.iter().find(|(it, _)| *it == name).map(|(_, it)| *it);
            assert_eq!(part("connections"), Some(expected));
            assert_eq!(part("QUIC windows").is_some(), has_quic);
        }
    }
}
