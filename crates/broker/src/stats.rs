//! What the broker counts, and a snapshot of it for metrics.
//!
//! Each worker counts into its own [`Counters`], so that two workers never fight over a cache
//! line; a snapshot adds them up. Counters only grow; what goes up and down (connections,
//! subscriptions) is read where it lives.

use std::sync::atomic::{AtomicU64, Ordering};

use mqtt::ReasonCode;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one worker.
        #[derive(Debug)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            pub(crate) connects_refused: ByReason,
            pub(crate) disconnects: ByReason,
        }

        impl Default for Counters {
            fn default() -> Counters {
                Counters {
                    $($name: Counter::default(),)*
                    connects_refused: ByReason::default(),
                    disconnects: ByReason::default(),
                }
            }
        }

        /// Counts since start, over all workers and listeners.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            /// Clients connected now (CONNACK with success sent, not closed yet).
            pub connections: u64,
            /// Sockets open now that are not connected clients: handshake or CONNECT outstanding,
            /// or closing.
            pub pending_connections: u64,
            /// Subscriptions in place now.
            pub subscriptions: u64,
            $($(#[$doc])* pub $name: u64,)*
            /// CONNECTs refused, by the reason given in CONNACK (or what it would have been, where
            /// MQTT 3.1.1 has no code for it). Reasons that never occurred are left out.
            pub connects_refused: Vec<(ReasonCode, u64)>,
            /// Connections ended, by reason: 0x00 and 0x04 by the client's own DISCONNECT, 0x80
            /// when the connection broke, else the reason the broker closed it with.
            pub disconnects: Vec<(ReasonCode, u64)>,
        }

        impl Stats {
            /// Adds the counters of one worker.
            pub(crate) fn add(&mut self, counters: &Counters) {
                $(self.$name += counters.$name.get();)*
                counters.connects_refused.add_to(&mut self.connects_refused);
                counters.disconnects.add_to(&mut self.disconnects);
            }
        }
    };
}

counters! {
    /// CONNECTs accepted.
    connects_accepted,
    /// TLS handshakes that failed (no or bad certificate, no common version, not TLS at all).
    handshake_failures,
    /// TLS handshakes that did not end within their timeout.
    handshake_timeouts,
    /// Connections without a CONNECT within the timeout.
    connect_timeouts,
    /// Sockets closed unheard because too many others were pending.
    overloaded_accepts,
    /// `accept` calls that failed (file descriptors exhausted, for one).
    accept_failures,
    /// Bytes read from sockets, above TLS.
    bytes_in,
    /// Bytes written to sockets, above TLS.
    bytes_out,
    /// MQTT packets read.
    packets_in,
    /// MQTT packets written.
    packets_out,
    /// PUBLISH packets received at QoS 0.
    messages_in_qos0,
    /// PUBLISH packets received at QoS 1.
    messages_in_qos1,
    /// Messages handed to a receiver's socket at QoS 0.
    messages_out_qos0,
    /// Messages handed to a receiver's socket at QoS 1.
    messages_out_qos1,
    /// Messages that had no subscriber and no tap.
    messages_unmatched,
    /// Messages taken by the tap.
    tap_taken,
    /// Taken messages that turned out not durable.
    tap_failed,
    /// PUBACKs sent with success.
    pubacks_sent,
    /// PUBACKs sent with a failure.
    pubacks_sent_failed,
    /// PUBACKs received.
    pubacks_received,
    /// QoS 0 messages dropped because the receiver's queue was full.
    dropped_queue_full,
    /// Messages dropped because they expired while waiting.
    dropped_expired,
    /// Messages dropped because they exceed the receiver's maximum packet size.
    dropped_too_large,
    /// Messages dropped because the publisher may not publish there.
    dropped_unauthorized,
    /// QoS 0 messages dropped because the tap refused them.
    dropped_tap_refused,
    /// Messages that were waiting for a client when its connection ended.
    dropped_session_end,
    /// Connections closed because their queue was full.
    slow_consumers,
    /// Connections taken over by another with the same client identifier.
    takeovers,
    /// Connections closed because nothing came for 1.5 times the keep-alive.
    keep_alive_timeouts,
    /// Wills published.
    wills_published,
    /// Filters granted in SUBACK.
    subscribes_granted,
    /// Filters refused in SUBACK.
    subscribes_refused,
}

impl Stats {
    /// PUBLISH packets received.
    pub fn messages_in(&self) -> u64 {
        self.messages_in_qos0 + self.messages_in_qos1
    }

    /// Messages handed to receivers' sockets.
    pub fn messages_out(&self) -> u64 {
        self.messages_out_qos0 + self.messages_out_qos1
    }

    /// Messages dropped, with the reason as a short stable name for a metric label.
    pub fn dropped(&self) -> [(&'static str, u64); 6] {
        [
            ("queue_full", self.dropped_queue_full),
            ("expired", self.dropped_expired),
            ("too_large", self.dropped_too_large),
            ("unauthorized", self.dropped_unauthorized),
            ("tap_refused", self.dropped_tap_refused),
            ("session_end", self.dropped_session_end),
        ]
    }
}

/// One growing number. Written by one worker (and now and then by the acceptor), read by all.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn one(&self) {
        self.many(1);
    }

    pub(crate) fn many(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One growing number per reason code.
#[derive(Debug)]
pub(crate) struct ByReason(Box<[Counter; 256]>);

impl Default for ByReason {
    fn default() -> ByReason {
        ByReason(Box::new([const { Counter(AtomicU64::new(0)) }; 256]))
    }
}

impl ByReason {
    pub(crate) fn one(&self, reason: ReasonCode) {
        self.0[usize::from(reason.as_u8())].one();
    }

    fn add_to(&self, sums: &mut Vec<(ReasonCode, u64)>) {
        for &reason in ReasonCode::ALL {
            let count = self.0[usize::from(reason.as_u8())].get();
            if count == 0 {
                continue;
            }
            match sums.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, sum)) => *sum += count,
                None => sums.push((reason, count)),
            }
        }
    }
}
