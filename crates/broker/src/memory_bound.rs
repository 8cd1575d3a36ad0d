//! What the broker may hold at most: its limits, added up.

use crate::limits::Limits;

/// Bytes of a connected client over TLS, the most expensive transport, with an empty queue: rustls with
/// its two buffers, the link, the protocol state. Over TCP it is a quarter.
const CONNECTION: u64 = 16 * 1024;

/// Bytes of a socket that is not a connected client and not in its handshake.
const PENDING: u64 = 16 * 1024;

/// Bytes of a TLS handshake under way: keys, certificates, messages of up to 16 KiB each way.
const HANDSHAKE: u64 = 40 * 1024;

/// Bytes of an HTTP connection at a web service, with the buffers it usually has.
const WEB: u64 = 64 * 1024;

/// Bytes of answers that a client has not read, at which nothing more is read from it.
const ANSWERS: u64 = 16 * 1024;

/// Bytes of a session beside its subscriptions and queue.
const SESSION: u64 = 2 * 1024;

/// Bytes of a retained message beside its text: the nodes of the tree, its record.
const RETAINED: u64 = 256;

/// Bytes of a delivery on its way from one worker to another.
const HANDED_OVER: u64 = 256;

/// Bytes of an entry of the hold-off tables, with two names of 128 bytes.
const WATCHED: u64 = 600;

/// Bytes of what the clients of a worker owe of their rates.
const DEBTS: u64 = 400 * 1024;

/// Read and write buffers of a worker, one message of the largest size in each, and its debts.
fn worker(limits: &Limits) -> u64 {
    2 * (64 * 1024 + u64::from(limits.max_packet_size)) + limits.max_queued_bytes as u64 + DEBTS
}

impl Limits {
    /// What a broker with these limits may hold in memory at most, in bytes, by part. All parts at their
    /// end at once is what nobody will see; that their sum fits into the machine is what makes it
    /// certain. Kernel buffers of sockets are not in it, nor is what the program around the broker holds.
    ///
    /// Not bounded in bytes, only in number, and counted by their usual size: the text of subscriptions
    /// and of client identifiers (`max_subscriptions` for each session, one read's worth of text each).
    /// Not in it at all: wills, QUIC's windows and TLS records that are in use, and what a waiting
    /// delivery costs beside its bytes.
    pub fn memory_bound(&self) -> Vec<(&'static str, u64)> {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        self.memory_bound_of(workers)
    }

    fn memory_bound_of(&self, workers: u64) -> Vec<(&'static str, u64)> {
        let count = |number: usize| number as u64;
        let sockets = count(self.max_sockets);
        let connections = count(self.max_connections).min(sockets);
        let pending = count(self.max_pending_connections).min(sockets);
        let handshakes = count(self.max_handshakes).min(pending);
        let bytes = |number: u64, each: u64| number.saturating_mul(each);
        let queue = count(self.max_queue_memory);
        let retained_bytes = count(self.max_retained_bytes);
        vec![
            ("connections", bytes(connections, CONNECTION)),
            ("answers", bytes(connections, ANSWERS)),
            ("pending connections", bytes(pending, PENDING)),
            ("handshakes", bytes(handshakes, HANDSHAKE)),
            (
                "HTTP connections",
                bytes(count(self.max_web_connections), WEB),
            ),
            ("incomplete packets", count(self.max_read_memory)),
            // Beyond the limit it grows for those that read, by a quarter.
            (
                "queues of connected clients",
                queue.saturating_add(queue / 4),
            ),
            ("sessions", bytes(count(self.max_sessions), SESSION)),
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
            ("buffers of workers", bytes(workers, worker(self))),
            (
                "hold-offs",
                bytes(4 * count(self.hold_off.max_entries), WATCHED),
            ),
        ]
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
            // By number, see the documentation of `memory_bound`.
            max_subscriptions: _,
            max_filter_levels: _,
            max_topic_levels: _,
            topic_alias_maximum: _,
            topic_alias_maximum_out: _,
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
            let parts = limits.memory_bound_of(2);
            parts.iter().map(|(_, bytes)| u128::from(*bytes)).sum()
        };
        let before = sum(&limits);
        type Change = fn(&mut Limits);
        let rows: [(&str, Change); 15] = [
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
        let parts = limits.memory_bound();
        assert!(parts.iter().any(|(_, bytes)| *bytes == u64::MAX));
    }
}
