//! What one connection has to write: answers, and messages that may go now.
//!
//! ```text
//! answers (CONNACK, PUBACK, ...) ──► control ─┐
//! QoS 0 ──────────────────────────► ready ────┼─► bytes, when the socket takes them
//! QoS 1 and 2 with a packet id ────► ready ────┘
//! ```
//! What waits for the client's window, or for the client, is in its session. Order is kept per QoS, as
//! [MQTT-4.6.0-6] asks.
//!
//! A message that the client must not see before the store has it is behind a *gate*: the batch that
//! records it. What comes after it waits too; that is a group commit at most.
//!
//! Bounds: `max_queued` messages of QoS 0 and `max_queued_bytes` of them; of QoS 1 and 2 the window.
//! `control` is bounded by its reader: nothing more is read from a client whose answers pile up
//! ([`Outbox::is_clogged`]).

use std::collections::VecDeque;

use bytes::BytesMut;
use mqtt::{AliasedTopic, Attempt, PacketId, PublishFrame, QoS, Version};

use super::Moment;
use super::alias::{Alias, Aliases};
use super::frame::Frame;
use crate::admission::memory::Reader;
use crate::limits::Limits;
use crate::stats::Counters;

/// Bytes of unread answers at which nothing more is read from a client: 2,000 PUBACKs.
const CLOGGED: usize = 8 * 1024;

/// Bytes of a message that waits to be written beside its packet: its place in a queue that may have twice
/// the room it uses, and what is around the packet if nobody shares it.
const READY: usize = 2 * size_of::<Ready>() + 192;

/// Queues of this capacity are kept when empty; larger ones are given back.
const KEPT: usize = 16;

/// Bytes for answers that are kept when they are written: a dozen PUBACKs.
const KEPT_ANSWERS: usize = 64;

/// Number of a batch of one shard; see [`Outbox`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatchNumber(pub(crate) u64);

impl BatchNumber {
    /// In the store from the beginning.
    pub(crate) const NONE: BatchNumber = BatchNumber(0);
}

/// The sending side of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// Encoded answers.
    control: BytesMut,
    ready: VecDeque<Ready>,
    /// Bytes in `ready`.
    ready_bytes: usize,
    /// The client's Maximum Packet Size.
    max_packet_size: usize,
    aliases: Aliases,
    /// Messages written so far.
    sent: u64,
    /// What was counted of it, and of what waits in its session, in the memory for all queues.
    counted: usize,
    pub(crate) reader: Reader,
    /// Whether messages wait for want of memory alone.
    pub(crate) withheld: Withheld,
}

/// Whether messages that may be sent wait until what is ready is written, for want of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Withheld {
    #[default]
    No,
    Yes,
}

#[derive(Debug)]
struct Ready {
    frame: Frame,
    /// `None` for QoS 0.
    packet_id: Option<PacketId>,
    attempt: Attempt,
    gate: BatchNumber,
}

/// What became of a QoS 0 message for this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Queued,
    /// There is no room: dropped.
    Dropped,
}

/// Whether output is left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Yes,
    No,
}

impl Outbox {
    /// For a connection whose client has not said yet what it takes.
    pub(crate) fn new() -> Outbox {
        Outbox {
            control: BytesMut::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            max_packet_size: usize::MAX,
            aliases: Aliases::new(0),
            sent: 0,
            counted: 0,
            reader: Reader::Reading,
            withheld: Withheld::No,
        }
    }

    /// Counts anew what waits, with `elsewhere` bytes in the session. Returns by how much it changed.
    pub(crate) fn recount(&mut self, elsewhere: usize) -> isize {
        let now = self.weight() + elsewhere;
        let before = std::mem::replace(&mut self.counted, now);
        self.counted as isize - before as isize
    }

    /// The same after a write, which began with a weight of `before`, and took nothing elsewhere.
    pub(crate) fn recount_written(&mut self, before: usize) -> isize {
        let written = before.saturating_sub(self.weight()).min(self.counted);
        self.counted -= written;
        -(written as isize)
    }

    /// Nothing waits any more that was counted. Returns by how much that changes.
    pub(crate) fn uncount(&mut self) -> isize {
        -(std::mem::take(&mut self.counted) as isize)
    }

    /// Appends the answers alone to `out`.
    pub(crate) fn write_answers(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.control);
        match self.control.capacity() > KEPT_ANSWERS {
            true => self.control = BytesMut::new(),
            // Or there would be a piece of memory taken and given back for each PUBACK.
            false => self.control.clear(),
        }
    }

    /// Sets what the client takes, from its CONNECT.
    pub(crate) fn set_client_limits(&mut self, max_packet_size: usize, aliases: u16) {
        self.max_packet_size = max_packet_size;
        self.aliases = Aliases::new(aliases);
    }

    /// Where answers are encoded to.
    pub(crate) fn control(&mut self) -> &mut BytesMut {
        &mut self.control
    }

    /// Whether the client takes a packet of this size.
    pub(crate) fn takes(&self, size: usize) -> bool {
        size <= self.max_packet_size
    }

    /// Whether so many answers wait that the client must read before it is read from.
    pub(crate) fn is_clogged(&self) -> bool {
        self.control.len() >= CLOGGED
    }

    /// Whether there is nothing to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.control.is_empty() && self.ready.is_empty() && self.withheld == Withheld::No
    }

    /// Whether a good part of the room is taken: time to let the client's task write, before more
    /// is put in.
    pub(crate) fn is_pressing(&self, limits: &Limits) -> bool {
        self.ready.len() > limits.max_queued / 4 || self.ready_bytes > limits.max_queued_bytes / 4
    }

    /// Memory of messages that wait to be written.
    pub(crate) fn weight(&self) -> usize {
        self.ready_bytes + self.ready.len() * READY
    }

    /// Bytes of messages that wait to be written.
    pub(crate) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Messages written so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Takes a QoS 0 message, if there is room.
    pub(crate) fn offer(&mut self, frame: Frame, limits: &Limits) -> Offer {
        debug_assert_eq!(frame.qos(), QoS::AtMostOnce);
        if self.ready.len() >= limits.max_queued
            || self.ready_bytes + frame.len() > limits.max_queued_bytes
        {
            return Offer::Dropped;
        }
        self.push(frame, None, Attempt::First, BatchNumber::NONE);
        Offer::Queued
    }

    /// Takes a message of QoS 1 or 2 within the window.
    pub(crate) fn send(
        &mut self,
        frame: Frame,
        packet_id: PacketId,
        attempt: Attempt,
        gate: BatchNumber,
    ) {
        self.push(frame, Some(packet_id), attempt, gate);
    }

    fn push(
        &mut self,
        frame: Frame,
        packet_id: Option<PacketId>,
        attempt: Attempt,
        gate: BatchNumber,
    ) {
        self.ready_bytes += frame.len();
        self.ready.push_back(Ready {
            frame,
            packet_id,
            attempt,
            gate,
        });
    }

    /// Appends what can be sent now to `out`, up to about `limit` bytes; `durable` is the last batch
    /// that the store has. Says whether there is more. Puts the packet identifiers of messages that
    /// expired before they were sent into `expired`.
    pub(crate) fn write(
        &mut self,
        now: Moment,
        durable: BatchNumber,
        out: &mut BytesMut,
        limit: usize,
        counters: &Counters,
        expired: &mut Vec<PacketId>,
    ) -> More {
        if !self.control.is_empty() {
            self.write_answers(out);
        }
        while out.len() < limit {
            if self.ready.front().is_none_or(|ready| ready.gate > durable) {
                give_back(&mut self.ready);
                return More::No;
            }
            let Some(Ready {
                frame,
                packet_id,
                attempt,
                ..
            }) = self.ready.pop_front()
            else {
                return More::No;
            };
            self.ready_bytes -= frame.len();
            // Once begun, a delivery goes on whatever its age.
            if attempt == Attempt::First && frame.is_expired(now) {
                counters.dropped_expired.one();
                expired.extend(packet_id);
                continue;
            }
            let alias = self.alias(&frame);
            frame.write(packet_id, attempt, alias, now, out);
            counters.packets_out.one();
            self.sent += 1;
            match frame.qos() {
                QoS::AtMostOnce => counters.messages_out_qos0.one(),
                QoS::AtLeastOnce => counters.messages_out_qos1.one(),
                QoS::ExactlyOnce => counters.messages_out_qos2.one(),
            }
            if attempt == Attempt::Again {
                counters.messages_resent.one();
            }
        }
        match self.ready.front() {
            Some(ready) if ready.gate <= durable => More::Yes,
            _ => More::No,
        }
    }

    fn alias(&mut self, frame: &Frame) -> Option<(std::num::NonZeroU16, AliasedTopic)> {
        if frame.version() != Version::V5
            || !self.takes(frame.len() + PublishFrame::MAX_ALIAS_GROWTH)
        {
            return None;
        }
        match self.aliases.of(frame.topic()) {
            Alias::None => None,
            Alias::Introduce(alias) => Some((alias, AliasedTopic::Introduced)),
            Alias::Use(alias) => Some((alias, AliasedTopic::Omitted)),
        }
    }

    /// The batch that the next message waits for.
    pub(crate) fn gate(&self) -> Option<BatchNumber> {
        self.ready.front().map(|ready| ready.gate)
    }

    /// Takes out the messages whose topic `refused` says the client may not have; returns the packet
    /// identifiers of those that have one.
    pub(crate) fn withdraw(&mut self, mut refused: impl FnMut(&str) -> bool) -> Vec<PacketId> {
        let mut withdrawn = Vec::new();
        let bytes = &mut self.ready_bytes;
        self.ready.retain(|ready| {
            let goes = refused(ready.frame.topic());
            if goes {
                *bytes -= ready.frame.len();
                withdrawn.extend(ready.packet_id);
            }
            !goes
        });
        withdrawn
    }

    /// Drops all messages, not the answers; says how many of QoS 0 were dropped.
    pub(crate) fn drop_messages(&mut self) -> usize {
        let ready = std::mem::take(&mut self.ready);
        self.ready_bytes = 0;
        ready.iter().filter(|r| r.packet_id.is_none()).count()
    }
}

fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use mqtt::Publish;

    use super::super::frame::{Layout, SubscriptionIds};
    use super::*;

    const NOW: Moment = Moment {
        tick: 0,
        wall_us: 0,
    };

    fn frame(qos: QoS, payload: usize, expiry: Option<u32>) -> Frame {
        let mut publish = Publish {
            topic: "topic".into(),
            payload: vec![b'x'; payload].into(),
            ..Publish::default()
        };
        publish.properties.message_expiry_interval = expiry;
        let layout = Layout {
            version: Version::V5,
            qos,
            retain: false,
            ids: SubscriptionIds::None,
        };
        Frame::encode(&publish, &layout, 0).expect("encodes")
    }

    fn limits(max_queued: usize) -> Limits {
        Limits {
            max_queued,
            max_queued_bytes: 10_000,
            ..Limits::default()
        }
    }

    fn write(outbox: &mut Outbox, now: Moment, durable: u64) -> (usize, Vec<PacketId>) {
        let mut out = BytesMut::new();
        let (counters, mut expired) = (Counters::default(), Vec::new());
        let durable = BatchNumber(durable);
        while outbox.write(now, durable, &mut out, usize::MAX, &counters, &mut expired) == More::Yes
        {
        }
        (out.len(), expired)
    }

    fn id(n: u16) -> PacketId {
        PacketId::new(n).expect("not 0")
    }

    #[test]
    fn qos_0_is_dropped_when_there_is_no_room_for_messages_or_bytes() {
        let mut outbox = Outbox::new();
        let small = frame(QoS::AtMostOnce, 10, None);
        assert_eq!(outbox.offer(small.clone(), &limits(2)), Offer::Queued);
        assert_eq!(outbox.offer(small.clone(), &limits(2)), Offer::Queued);
        assert_eq!(outbox.offer(small.clone(), &limits(2)), Offer::Dropped);
        let large = frame(QoS::AtMostOnce, 9_990, None);
        assert_eq!(outbox.offer(large, &limits(100)), Offer::Dropped);
        assert_eq!(outbox.drop_messages(), 2);
        assert_eq!(outbox.ready_bytes(), 0);
    }

    #[test]
    fn what_is_behind_a_gate_waits_for_its_batch_and_holds_back_what_follows() {
        let mut outbox = Outbox::new();
        let exactly = frame(QoS::ExactlyOnce, 10, None);
        let often = frame(QoS::AtMostOnce, 10, None);
        outbox.send(exactly.clone(), id(1), Attempt::First, BatchNumber(7));
        outbox.offer(often.clone(), &limits(5));
        assert_eq!(write(&mut outbox, NOW, 6).0, 0);
        let both = exactly.len() + often.len();
        assert_eq!(write(&mut outbox, NOW, 7).0, both);
    }

    #[test]
    fn a_message_expires_before_it_is_sent_for_the_first_time_only() {
        let mut outbox = Outbox::new();
        let short = frame(QoS::AtLeastOnce, 10, Some(1));
        outbox.send(short.clone(), id(1), Attempt::First, BatchNumber::NONE);
        outbox.send(short.clone(), id(2), Attempt::Again, BatchNumber::NONE);
        let later = Moment {
            tick: 1001,
            wall_us: 0,
        };
        assert_eq!(write(&mut outbox, later, 0), (short.len(), vec![id(1)]));
    }

    #[test]
    fn a_topic_sent_often_is_sent_once() {
        let mut outbox = Outbox::new();
        outbox.set_client_limits(usize::MAX, 4);
        let frame = frame(QoS::AtMostOnce, 10, None);
        let mut sizes = Vec::new();
        for _ in 0..4 {
            outbox.offer(frame.clone(), &limits(5));
            sizes.push(write(&mut outbox, NOW, 0).0);
        }
        let plain = frame.len();
        assert_eq!(sizes, [plain, plain + 3, plain - 2, plain - 2]);
    }
}
