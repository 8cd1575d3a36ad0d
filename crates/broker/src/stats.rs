//! What the broker counts, and a snapshot of it for metrics.
//!
//! Each worker counts into its own [`Counters`], so that two workers never fight over a cache
//! line; a snapshot adds them up. Counters only grow; what goes up and down (connections,
//! subscriptions) is read where it lives.

use std::sync::atomic::{AtomicU64, Ordering};

use mqtt::ReasonCode;

use crate::admission::Refused;

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
            /// HTTP connections with a web service now.
            pub web_connections: u64,
            /// Subscriptions in place now.
            pub subscriptions: u64,
            /// Sessions, connected or not.
            pub sessions: u64,
            /// Sessions that are stored.
            pub sessions_stored: u64,
            /// Topics with a retained message.
            pub retained: u64,
            /// Bytes of retained messages.
            pub retained_bytes: u64,
            /// Messages kept for stored sessions and as retained ones, each once.
            pub messages_kept: u64,
            /// Bytes of these.
            pub messages_kept_bytes: u64,
            /// Memory of these and of their deliveries.
            pub stored_memory_bytes: u64,
            /// Memory held for packets that are not complete.
            pub read_memory_bytes: u64,
            /// Memory held for messages that wait for connected clients.
            pub queue_memory_bytes: u64,
            /// Memory of what sessions hold of their clients' choosing: wills, subscriptions, names, topics
            /// of aliases, identifiers, answers that wait for the disk.
            pub session_memory_bytes: u64,
            /// Memory that wide windows of QUIC connections may hold.
            pub window_memory_bytes: u64,
            /// How late the latest worker is with what is due, microseconds.
            pub loop_delay_us: u64,
            /// The store behind the sessions.
            pub store: StoreStats,
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
    /// Full handshakes of TLS 1.2 that succeeded.
    handshakes_tls12_full,
    /// Sessions of TLS 1.2 resumed.
    handshakes_tls12_resumed,
    /// Full handshakes of TLS 1.3 that succeeded.
    handshakes_tls13_full,
    /// Sessions of TLS 1.3 resumed.
    handshakes_tls13_resumed,
    /// Failed handshakes: a client certificate was wanted and none came.
    handshakes_no_certificate,
    /// Failed handshakes: the client's certificate is not good.
    handshakes_bad_certificate,
    /// Failed handshakes: no version, cipher or extension in common.
    handshakes_incompatible,
    /// Failed handshakes: the client asked by ALPN for something that is not served.
    handshakes_no_protocol,
    /// Failed handshakes: the client did not want ours (it does not trust the certificate, mostly).
    handshakes_refused_by_client,
    /// Failed handshakes: what came is not TLS, or not as it should be.
    handshakes_malformed,
    /// Failed handshakes: the connection ended.
    handshakes_closed,
    /// Failed handshakes for another reason (no certificate for the name the client asked for, for one).
    handshakes_other,
    /// Connections closed because they came past the proxies of their listener.
    proxy_strangers,
    /// Connections closed because a PROXY header was bad or none.
    proxy_malformed,
    /// Connections closed because a PROXY header did not come in time.
    proxy_timeouts,
    /// Connections that ended before their PROXY header did.
    proxy_closed,
    /// HTTP connections refused because too many others were open.
    web_refused,
    /// Connections to a WebSocket listener that were not upgraded: another path, no sub-protocol
    /// `mqtt`, not HTTP, no request within the timeout.
    upgrades_refused,
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
    /// PUBLISH packets received at QoS 2, repeated ones included.
    messages_in_qos2,
    /// PUBLISH packets received at QoS 2 for an exchange under way: not routed again.
    messages_repeated,
    /// Messages handed to a receiver's socket at QoS 0.
    messages_out_qos0,
    /// Messages handed to a receiver's socket at QoS 1.
    messages_out_qos1,
    /// Messages handed to a receiver's socket at QoS 2.
    messages_out_qos2,
    /// Messages handed to a receiver's socket again, after a reconnect.
    messages_resent,
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
    /// PUBRECs sent with success.
    pubrecs_sent,
    /// PUBRECs sent with a failure.
    pubrecs_sent_failed,
    /// PUBCOMPs received: QoS 2 deliveries completed.
    pubcomps_received,
    /// Deliveries queued for stored sessions.
    deliveries_stored,
    /// QoS 0 messages dropped because the receiver's queue was full.
    dropped_queue_full,
    /// Deliveries refused because the queue of a stored session was full (overflow rule: refuse new).
    dropped_refused_new,
    /// Waiting deliveries dropped to make room for newer ones (drop oldest).
    dropped_oldest,
    /// Waiting deliveries dropped to make room for newer or more urgent ones (drop lowest priority).
    dropped_low_priority,
    /// QoS 0 messages dropped because the receiver was not connected.
    dropped_offline,
    /// Messages dropped because their receiver may not have them any more.
    dropped_receive_unauthorized,
    /// Messages refused because the messages kept for all sessions, or the retained ones, have reached
    /// their bound.
    dropped_store_full,
    /// Messages a client answered with an error.
    dropped_by_receiver,
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
    /// QoS 0 messages dropped because the memory for what waits for all clients was used up.
    dropped_memory,
    /// QoS 0 messages and wills dropped because their topic has too many levels.
    dropped_topic_levels,
    /// Sockets and CONNECTs refused because their address is banned.
    refused_banned_address,
    /// CONNECTs refused because the client is banned.
    refused_banned_client,
    /// CONNECTs refused because the principal is banned.
    refused_banned_principal,
    /// CONNECTs refused because the certificate is banned.
    refused_banned_certificate,
    /// Sockets and CONNECTs refused because whoever it is failed to authenticate too often.
    refused_held_off,
    /// CONNECTs refused because the client connects again and again.
    refused_flapping,
    /// Sockets refused by the rate of all listeners.
    refused_connect_rate,
    /// Sockets refused by the rate of their listener.
    refused_listener_connect_rate,
    /// Sockets refused because their listener has as many as it may.
    refused_listener_full,
    /// Sockets refused because their listener has as many handshakes under way as it may.
    refused_handshakes,
    /// Sockets refused because there are as many as there may be, or no file descriptor was left.
    refused_sockets,
    /// Sockets refused because too many others of their address are not clients yet.
    refused_pending_address,
    /// Sockets and CONNECTs refused because the workers were late.
    refused_overload,
    /// Connections closed because the memory for incomplete packets was used up.
    refused_read_memory,
    /// Times a client had to wait because it sent too many messages.
    throttled_client_messages_in,
    /// Times a client had to wait because it sent too many bytes.
    throttled_client_bytes_in,
    /// Times messages had to wait because a client would have got too many.
    throttled_client_messages_out,
    /// Times messages had to wait because a client would have got too many bytes.
    throttled_client_bytes_out,
    /// Times a client had to wait because all together sent too many messages.
    throttled_messages_in,
    /// Times a client had to wait because all together sent too many bytes.
    throttled_bytes_in,
    /// Times a client had to wait because those of its listener sent too many messages.
    throttled_listener_messages_in,
    /// Times a client had to wait because those of its listener sent too many bytes.
    throttled_listener_bytes_in,
    /// Connections closed because their queue was full.
    slow_consumers,
    /// Connections taken over by another with the same client identifier.
    takeovers,
    /// Connections closed because nothing came for 1.5 times the keep-alive.
    keep_alive_timeouts,
    /// Wills published.
    wills_published,
    /// Wills not published because their client came back in time.
    wills_cancelled,
    /// Sessions begun.
    sessions_created,
    /// Sessions taken up again by a connection.
    sessions_resumed,
    /// Stored sessions that ended because nobody came back in time.
    sessions_expired,
    /// Subscriptions removed because access to them was lost.
    subscriptions_revoked,
    /// Messages of shared subscriptions given to another member because the first one went.
    share_redelivered,
    /// Filters granted in SUBACK.
    subscribes_granted,
    /// Filters refused in SUBACK.
    subscribes_refused,
}

impl Counters {
    /// A socket or a CONNECT was refused.
    pub(crate) fn refused(&self, why: Refused) {
        let counter = match why {
            Refused::BannedAddress => &self.refused_banned_address,
            Refused::BannedClient => &self.refused_banned_client,
            Refused::BannedPrincipal => &self.refused_banned_principal,
            Refused::BannedCertificate => &self.refused_banned_certificate,
            Refused::HeldOff => &self.refused_held_off,
            Refused::Flapping => &self.refused_flapping,
            Refused::ConnectRate => &self.refused_connect_rate,
            Refused::ListenerConnectRate => &self.refused_listener_connect_rate,
            Refused::ListenerFull => &self.refused_listener_full,
            Refused::Handshakes => &self.refused_handshakes,
            Refused::Sockets => &self.refused_sockets,
            Refused::PendingAddress => &self.refused_pending_address,
            Refused::Overload => &self.refused_overload,
            Refused::ReadMemory => &self.refused_read_memory,
        };
        counter.one();
    }

    /// Messages written so far.
    pub(crate) fn messages_out(&self) -> u64 {
        self.messages_out_qos0.get() + self.messages_out_qos1.get() + self.messages_out_qos2.get()
    }
}

impl Stats {
    /// PUBLISH packets received.
    pub fn messages_in(&self) -> u64 {
        self.messages_in_qos0 + self.messages_in_qos1 + self.messages_in_qos2
    }

    /// Messages handed to receivers' sockets.
    pub fn messages_out(&self) -> u64 {
        self.messages_out_qos0 + self.messages_out_qos1 + self.messages_out_qos2
    }

    /// TLS handshakes that succeeded, by version and kind. A resumed session saves both sides most of the
    /// work.
    pub fn handshakes(&self) -> [(&'static str, u64); 4] {
        [
            ("tls12_full", self.handshakes_tls12_full),
            ("tls12_resumed", self.handshakes_tls12_resumed),
            ("tls13_full", self.handshakes_tls13_full),
            ("tls13_resumed", self.handshakes_tls13_resumed),
        ]
    }

    /// TLS handshakes that failed, with the reason as a short stable name for a metric label.
    pub fn handshakes_failed(&self) -> [(&'static str, u64); 9] {
        [
            ("timeout", self.handshake_timeouts),
            ("no_certificate", self.handshakes_no_certificate),
            ("bad_certificate", self.handshakes_bad_certificate),
            ("incompatible", self.handshakes_incompatible),
            ("no_protocol", self.handshakes_no_protocol),
            ("refused_by_client", self.handshakes_refused_by_client),
            ("malformed", self.handshakes_malformed),
            ("closed", self.handshakes_closed),
            ("other", self.handshakes_other),
        ]
    }

    /// Connections refused on a listener behind proxies, with the reason as a short stable name for a
    /// metric label.
    pub fn proxy_refused(&self) -> [(&'static str, u64); 4] {
        [
            ("stranger", self.proxy_strangers),
            ("malformed", self.proxy_malformed),
            ("timeout", self.proxy_timeouts),
            ("closed", self.proxy_closed),
        ]
    }

    /// Messages dropped, with the reason as a short stable name for a metric label.
    pub fn dropped(&self) -> [(&'static str, u64); 15] {
        [
            ("refused_new", self.dropped_refused_new),
            ("oldest", self.dropped_oldest),
            ("low_priority", self.dropped_low_priority),
            ("offline", self.dropped_offline),
            ("receive_unauthorized", self.dropped_receive_unauthorized),
            ("store_full", self.dropped_store_full),
            ("by_receiver", self.dropped_by_receiver),
            ("queue_full", self.dropped_queue_full),
            ("expired", self.dropped_expired),
            ("too_large", self.dropped_too_large),
            ("unauthorized", self.dropped_unauthorized),
            ("tap_refused", self.dropped_tap_refused),
            ("session_end", self.dropped_session_end),
            ("memory", self.dropped_memory),
            ("topic_levels", self.dropped_topic_levels),
        ]
    }

    /// Sockets and CONNECTs refused by a limit, a ban or a hold-off, with the reason as a short stable
    /// name for a metric label.
    pub fn refused(&self) -> [(&'static str, u64); 14] {
        [
            ("banned_address", self.refused_banned_address),
            ("banned_client", self.refused_banned_client),
            ("banned_principal", self.refused_banned_principal),
            ("banned_certificate", self.refused_banned_certificate),
            ("held_off", self.refused_held_off),
            ("flapping", self.refused_flapping),
            ("connect_rate", self.refused_connect_rate),
            ("listener_connect_rate", self.refused_listener_connect_rate),
            ("listener_full", self.refused_listener_full),
            ("handshakes", self.refused_handshakes),
            ("sockets", self.refused_sockets),
            ("pending_address", self.refused_pending_address),
            ("overload", self.refused_overload),
            ("read_memory", self.refused_read_memory),
        ]
    }

    /// Times somebody had to wait because of a rate, with the rate as a short stable name for a metric
    /// label. Nothing is lost by it.
    pub fn throttled(&self) -> [(&'static str, u64); 8] {
        [
            ("client_messages_in", self.throttled_client_messages_in),
            ("client_bytes_in", self.throttled_client_bytes_in),
            ("client_messages_out", self.throttled_client_messages_out),
            ("client_bytes_out", self.throttled_client_bytes_out),
            ("messages_in", self.throttled_messages_in),
            ("bytes_in", self.throttled_bytes_in),
            ("listener_messages_in", self.throttled_listener_messages_in),
            ("listener_bytes_in", self.throttled_listener_bytes_in),
        ]
    }
}

/// The store behind the sessions, as it is now. All zero when sessions end with the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Records that count.
    pub live_records: u64,
    /// Bytes of these.
    pub live_bytes: u64,
    /// Bytes of its files.
    pub disk_bytes: u64,
    /// Bytes submitted and not written yet.
    pub pending_bytes: u64,
    /// Group commits since start.
    pub syncs: u64,
    /// 1 while it can not write (disk full, for one), else 0.
    pub stalled: u64,
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
