//! What waits for one client: answers, and messages of others.
//!
//! ```text
//! answers (CONNACK, PUBACK, ...) ──► control ─┐
//! QoS 0 ──────────────────────────► ready ────┼─► bytes, when the socket takes them
//! QoS 1, window open: packet id ──► ready ────┘
//! QoS 1, window full ─────────────► waiting ──► ready, on PUBACK
//! ```
//! The window is the client's Receive Maximum [MQTT-3.3.4-9]. A message leaves memory once its
//! bytes are with the socket: sessions end with their connection, so nothing is ever sent twice.
//! Order is kept per QoS, as [MQTT-4.6.0-6] asks; QoS 0 may pass QoS 1 that waits for the window.
//!
//! Bounds: `max_queued` messages each in `ready` and `waiting`, `max_queued_bytes` over both
//! (a frame shared by a thousand receivers counts in full for each). Beyond, QoS 0 is dropped, and
//! QoS 1 means that this client is too slow to be kept. `control` is bounded by its reader: nothing
//! more is read from a client whose answers pile up ([`Outbox::is_clogged`]).

use std::collections::VecDeque;

use bytes::BytesMut;
use mqtt::{PacketId, QoS};

use super::Moment;
use super::frame::Frame;
use crate::limits::Limits;
use crate::stats::Counters;

/// Bytes of unread answers at which nothing more is read from a client: 4,000 PUBACKs.
const CLOGGED: usize = 16 * 1024;

/// Queues of this capacity are kept when empty; larger ones are given back.
const KEPT: usize = 16;

/// The sending side of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// Encoded answers.
    control: BytesMut,
    /// Messages that may be written.
    ready: VecDeque<Ready>,
    /// QoS 1 messages for which the window is too small.
    waiting: VecDeque<Frame>,
    /// Bytes in `ready` and `waiting`.
    queued_bytes: usize,
    window: Window,
    /// The client's Maximum Packet Size.
    max_packet_size: usize,
}

#[derive(Debug)]
struct Ready {
    frame: Frame,
    /// `None` for QoS 0.
    packet_id: Option<PacketId>,
}

/// What became of a message for this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It is queued.
    Queued,
    /// QoS 0, and there is no room: dropped.
    Dropped,
    /// Larger than the client takes: left out, as if it had been sent [MQTT-3.1.2-25].
    TooLarge,
    /// QoS 1, and there is no room: the client is too slow.
    Overflow,
}

impl Outbox {
    /// For a connection whose client has not said yet what it takes.
    pub(crate) fn new() -> Outbox {
        Outbox {
            control: BytesMut::new(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            queued_bytes: 0,
            window: Window::new(0),
            max_packet_size: usize::MAX,
        }
    }

    /// Sets what the client takes, from its CONNECT.
    pub(crate) fn set_client_limits(&mut self, receive_maximum: u16, max_packet_size: usize) {
        self.window = Window::new(receive_maximum);
        self.max_packet_size = max_packet_size;
    }

    /// Where answers are encoded to.
    pub(crate) fn control(&mut self) -> &mut BytesMut {
        &mut self.control
    }

    pub(crate) fn max_packet_size(&self) -> usize {
        self.max_packet_size
    }

    /// Whether so many answers wait that the client must read before it is read from.
    pub(crate) fn is_clogged(&self) -> bool {
        self.control.len() >= CLOGGED
    }

    /// Whether a good part of the room is taken: time to let the client's task write, before more
    /// is put in.
    pub(crate) fn is_pressing(&self, limits: &Limits) -> bool {
        let (messages, bytes) = (limits.max_queued / 4, limits.max_queued_bytes / 4);
        self.ready.len().max(self.waiting.len()) > messages || self.queued_bytes > bytes
    }

    /// Takes a message, if there is room.
    pub(crate) fn offer(&mut self, frame: &Frame, limits: &Limits) -> Offer {
        let len = frame.len();
        if len > self.max_packet_size {
            return Offer::TooLarge;
        }
        let bytes_fit = self.queued_bytes + len <= limits.max_queued_bytes;
        match frame.qos() {
            QoS::AtMostOnce => {
                if !bytes_fit || self.ready.len() >= limits.max_queued {
                    return Offer::Dropped;
                }
                self.push_ready(frame.clone(), None);
            }
            QoS::AtLeastOnce | QoS::ExactlyOnce => {
                if !bytes_fit {
                    return Offer::Overflow;
                }
                let packet_id = match self.waiting.is_empty() {
                    true => self.window.open(),
                    false => None,
                };
                match packet_id {
                    Some(id) => self.push_ready(frame.clone(), Some(id)),
                    None if self.waiting.len() >= limits.max_queued => return Offer::Overflow,
                    None => self.waiting.push_back(frame.clone()),
                }
            }
        }
        self.queued_bytes += len;
        Offer::Queued
    }

    /// The client acknowledged a message. An identifier that is not in flight changes nothing.
    pub(crate) fn acknowledged(&mut self, id: PacketId) {
        if !self.window.close(id) {
            return;
        }
        if let Some(frame) = self.waiting.pop_front() {
            let id = self.window.open();
            debug_assert!(id.is_some(), "a place was just vacated");
            self.push_ready(frame, id);
            give_back(&mut self.waiting);
        }
    }

    /// Appends what can be sent now to `out`, up to about `limit` bytes. Says whether there is more.
    pub(crate) fn write(
        &mut self,
        now: Moment,
        out: &mut BytesMut,
        limit: usize,
        counters: &Counters,
    ) -> More {
        if !self.control.is_empty() {
            out.extend_from_slice(&self.control);
            self.control = BytesMut::new();
        }
        while out.len() < limit {
            let Some(Ready { frame, packet_id }) = self.ready.pop_front() else {
                give_back(&mut self.ready);
                return More::No;
            };
            self.queued_bytes -= frame.len();
            if frame.is_expired(now) {
                counters.dropped_expired.one();
                if let Some(id) = packet_id {
                    self.acknowledged(id);
                }
                continue;
            }
            frame.write(packet_id, now, out);
            counters.packets_out.one();
            match packet_id {
                None => counters.messages_out_qos0.one(),
                Some(_) => counters.messages_out_qos1.one(),
            }
        }
        match self.ready.is_empty() {
            true => More::No,
            false => More::Yes,
        }
    }

    /// Drops all messages, not the answers; says how many were dropped.
    pub(crate) fn drop_messages(&mut self) -> usize {
        let dropped = self.ready.len() + self.waiting.len();
        self.ready = VecDeque::new();
        self.waiting = VecDeque::new();
        self.queued_bytes = 0;
        dropped
    }

    fn push_ready(&mut self, frame: Frame, packet_id: Option<PacketId>) {
        self.ready.push_back(Ready { frame, packet_id });
    }
}

/// Whether output is left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Yes,
    No,
}

fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
}

/// The packet identifiers in flight: at most as many as the client's Receive Maximum, numbered from
/// 1 to that, one bit each, so that taking and returning one is a few instructions in any order.
#[derive(Debug)]
struct Window {
    size: u16,
    in_flight: u16,
    /// Where to look for a free identifier: behind the last one taken, so that each rests as long
    /// as possible.
    cursor: u16,
    /// Bit `n` for identifier `n + 1`. Made on first use: most vehicles get little.
    taken: Vec<u64>,
}

impl Window {
    fn new(size: u16) -> Window {
        Window {
            size,
            in_flight: 0,
            cursor: 0,
            taken: Vec::new(),
        }
    }

    /// Takes an identifier, unless all are in flight.
    fn open(&mut self) -> Option<PacketId> {
        if self.in_flight >= self.size {
            return None;
        }
        if self.taken.is_empty() {
            self.taken = vec![0; usize::from(self.size).div_ceil(64)];
        }
        let mut bit = self.cursor;
        loop {
            let word = self.taken[usize::from(bit / 64)];
            let free_from_here = (!word) >> (bit % 64);
            if free_from_here == 0 {
                bit = (bit / 64 + 1) * 64;
            } else {
                bit += free_from_here.trailing_zeros() as u16;
                if bit < self.size {
                    break;
                }
            }
            if bit >= self.size {
                bit = 0;
            }
        }
        self.taken[usize::from(bit / 64)] |= 1 << (bit % 64);
        self.in_flight += 1;
        self.cursor = (bit + 1) % self.size;
        PacketId::new(bit + 1)
    }

    /// Returns an identifier; says whether it was in flight.
    fn close(&mut self, id: PacketId) -> bool {
        let bit = id.get() - 1;
        let Some(word) = self.taken.get_mut(usize::from(bit / 64)) else {
            return false;
        };
        let mask = 1 << (bit % 64);
        let was_in_flight = *word & mask != 0;
        *word &= !mask;
        self.in_flight -= u16::from(was_in_flight);
        was_in_flight
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use mqtt::{Publish, Version};
    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment {
        tick: 0,
        wall_us: 0,
    };

    fn frame(qos: QoS, payload: usize) -> Frame {
        frame_with_expiry(qos, payload, None)
    }

    fn frame_with_expiry(qos: QoS, payload: usize, expiry: Option<u32>) -> Frame {
        let mut publish = Publish {
            topic: "t".into(),
            payload: vec![b'x'; payload].into(),
            ..Publish::default()
        };
        publish.properties.message_expiry_interval = expiry;
        Frame::encode(&publish, Version::V5, qos, 0, NOW).expect("encodes")
    }

    fn outbox(window: u16) -> Outbox {
        let mut outbox = Outbox::new();
        outbox.set_client_limits(window, 1000);
        outbox
    }

    fn limits(max_queued: usize) -> Limits {
        Limits {
            max_queued,
            max_queued_bytes: 10_000,
            ..Limits::default()
        }
    }

    fn write(outbox: &mut Outbox, now: Moment) -> usize {
        let mut out = BytesMut::new();
        let counters = Counters::default();
        while outbox.write(now, &mut out, usize::MAX, &counters) == More::Yes {}
        out.len()
    }

    fn id(n: u16) -> PacketId {
        PacketId::new(n).expect("not 0")
    }

    #[test]
    fn qos_1_beyond_the_window_waits_for_an_acknowledgement() {
        let mut outbox = outbox(1);
        let frame = frame(QoS::AtLeastOnce, 10);
        assert_eq!(outbox.offer(&frame, &limits(2)), Offer::Queued);
        assert_eq!(outbox.offer(&frame, &limits(2)), Offer::Queued);
        assert_eq!(write(&mut outbox, NOW), frame.len());
        assert_eq!(write(&mut outbox, NOW), 0);
        outbox.acknowledged(id(7));
        assert_eq!(write(&mut outbox, NOW), 0, "7 is not in flight");
        outbox.acknowledged(id(1));
        assert_eq!(write(&mut outbox, NOW), frame.len());
        outbox.acknowledged(id(1));
        assert_eq!(write(&mut outbox, NOW), 0);
    }

    #[test]
    fn qos_0_is_dropped_and_qos_1_overflows_when_there_is_no_room() {
        let mut outbox = outbox(1);
        let (often, once) = (frame(QoS::AtLeastOnce, 10), frame(QoS::AtMostOnce, 10));
        for _ in 0..3 {
            assert_eq!(outbox.offer(&often, &limits(2)), Offer::Queued);
        }
        assert_eq!(outbox.offer(&often, &limits(2)), Offer::Overflow);
        assert_eq!(outbox.offer(&once, &limits(2)), Offer::Queued);
        assert_eq!(outbox.offer(&once, &limits(2)), Offer::Dropped);
        assert_eq!(outbox.drop_messages(), 4);
    }

    #[test]
    fn the_bound_in_bytes_holds_for_both_qualities() {
        let mut outbox = outbox(1000);
        for _ in 0..10 {
            assert_eq!(
                outbox.offer(&frame(QoS::AtLeastOnce, 980), &limits(100)),
                Offer::Queued
            );
        }
        assert_eq!(
            outbox.offer(&frame(QoS::AtLeastOnce, 980), &limits(100)),
            Offer::Overflow
        );
        assert_eq!(
            outbox.offer(&frame(QoS::AtMostOnce, 980), &limits(100)),
            Offer::Dropped
        );
        write(&mut outbox, NOW);
        assert_eq!(
            outbox.offer(&frame(QoS::AtMostOnce, 980), &limits(100)),
            Offer::Queued
        );
    }

    #[test]
    fn a_message_larger_than_the_client_takes_is_left_out() {
        let mut outbox = outbox(1);
        assert_eq!(
            outbox.offer(&frame(QoS::AtLeastOnce, 1000), &limits(1)),
            Offer::TooLarge
        );
        assert_eq!(
            outbox.offer(&frame(QoS::AtLeastOnce, 10), &limits(1)),
            Offer::Queued
        );
    }

    #[test]
    fn an_expired_message_is_dropped_and_frees_its_place_in_the_window() {
        let mut outbox = outbox(1);
        let short = frame_with_expiry(QoS::AtLeastOnce, 10, Some(1));
        let long = frame_with_expiry(QoS::AtLeastOnce, 10, Some(60));
        outbox.offer(&short, &limits(5));
        outbox.offer(&long, &limits(5));
        let later = Moment {
            tick: 1001,
            wall_us: 0,
        };
        assert_eq!(write(&mut outbox, later), long.len());
    }

    proptest! {
        #[test]
        fn no_identifier_is_in_flight_twice(
            size in 1u16..200,
            steps in prop::collection::vec((any::<bool>(), any::<u16>()), 0..500),
        ) {
            let mut window = Window::new(size);
            let mut in_flight = HashSet::new();
            for (open, pick) in steps {
                if open {
                    match window.open() {
                        Some(id) => prop_assert!(id.get() <= size && in_flight.insert(id.get())),
                        None => prop_assert_eq!(in_flight.len(), usize::from(size)),
                    }
                } else if let Some(id) = PacketId::new(pick % 256) {
                    prop_assert_eq!(window.close(id), in_flight.remove(&id.get()));
                }
            }
        }
    }
}
