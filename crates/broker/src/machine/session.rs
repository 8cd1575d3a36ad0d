//! A client's state: what it subscribed to, what waits for it, what it is owed.
//!
//! ```text
//! delivery ─► waiting ──window open──► flight ──► outbox of the connection
//!                │                       │ PUBACK, PUBCOMP: over, its record goes
//!                └ full: overflow rule   └ connection lost: taken up again on the next
//! ```
//! A *transient* session (Session Expiry Interval 0) ends with its connection and leaves no trace. A
//! *stored* one outlives it; each change is written into the batch of the moment, and what the client
//! may conclude from it is said when the batch is in the store (`Deferred`).

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use journal::{Batch, RecordId};
use mqtt::{Attempt, PacketId, Publish, QoS, ReasonCode, Version};

use super::deferred::{Answer, Deferred};
use super::delivery::{Access, Delivery, Recorded};
use super::exchange::{Exchange, Share, hash};
use super::filters::Filters;
use super::flights::{Flights, Phase};
use super::format::{InboundRecord, Owner, SessionRecord, Stage, Tapped, WillRecord};
use super::frame::Frame;
use super::message::Priority;
use super::outbox::{self, BatchNumber, Outbox, Withheld};
use super::owed::{Due, Owed};
use super::planted::planted;
use super::session_memory::{self, RECEIVED};
use super::slots::{ConnectionId, SessionId};
use super::subscriber::TRANSIENT;
use super::walks::Walks;
use super::{Moment, Receipt};
use crate::admission::account::{Account, Holding};
use crate::admission::memory::{Fits, Reader};
use crate::hooks::{Decision, Identity};
use crate::limits::Overflow;
use crate::stats::Counters;

/// Bytes of a message that waits in a transient session beside its packet, as in the outbox.
const WAITING: usize = 2 * size_of::<Delivery>() + 192;

/// Bytes of an exchange under way in a list that may have twice the room it uses.
pub(crate) const FLIGHT: usize = 2 * size_of::<super::flights::Flight>();

/// State of one client.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// [`TRANSIENT`] if it is not stored.
    pub(crate) record: RecordId,
    pub(crate) client_id: Arc<str>,
    pub(crate) principal: Arc<str>,
    /// Who its client is; `None` after a restart, until it comes back.
    pub(crate) identity: Option<Arc<Identity>>,
    /// A hash of its client identifier, for shared subscriptions that stick to publishers.
    pub(crate) hash: u64,
    /// Seconds it outlives its connection; `u32::MAX` for ever.
    pub(crate) expiry: u32,
    pub(crate) link: Link,
    /// Of the last connection.
    pub(crate) version: Version,
    /// By filter as the client sent it.
    pub(crate) subscriptions: Filters,
    /// Deliveries of QoS 1 and 2 without packet identifier, oldest first.
    waiting: VecDeque<Delivery>,
    waiting_bytes: usize,
    flights: Flights,
    /// What the client of this connection takes at once.
    receive_maximum: u16,
    /// QoS 2 messages received and not released, by packet identifier.
    received: BTreeMap<u16, Received>,
    pub(crate) owed: Owed,
    /// Retained messages still to be sent for new subscriptions.
    pub(crate) walks: Walks,
    pub(crate) will: Option<Box<Will>>,
    /// When the will is published if nobody comes back.
    pub(crate) will_at: Option<u64>,
    /// When the session ends if nobody comes back.
    pub(crate) ends_at: Option<u64>,
    /// What it holds of its client's choosing, the will apart.
    pub(crate) memory: Holding,
    /// It lost a subscription to a change of access, and its client, which was not told, must not rely
    /// on it: it is not taken up again.
    pub(crate) curtailed: bool,
    /// When its last connection ended, wall clock.
    pub(crate) disconnected_us: Option<i64>,
    /// The tick at which the timers bring this session up; older entries are stale.
    pub(crate) next_look: u64,
}

/// Whether a session has a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Away,
    /// CONNACK waits for the store.
    Joining(ConnectionId),
    Online(ConnectionId),
}

/// A subscription as its session keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) record: RecordId,
    pub(crate) share: Option<Arc<Share>>,
}

/// What is published when a client goes without a word.
#[derive(Debug)]
pub(crate) struct Will {
    /// Will Delay Interval, seconds.
    pub(crate) delay: u32,
    pub(crate) publish: Publish,
    _memory: Holding,
}

impl Will {
    pub(crate) fn new(delay: u32, publish: Publish, account: &Arc<Account>) -> Box<Will> {
        let mut memory = Holding::none(account);
        memory.add(session_memory::of_will(&publish));
        Box::new(Will {
            delay,
            publish,
            _memory: memory,
        })
    }
}

/// A QoS 2 message that was received.
#[derive(Debug)]
struct Received {
    /// [`TRANSIENT`] if it is not stored.
    record: RecordId,
    /// Whose outcome decides about it.
    receipt: Receipt,
    tapped: Tapped,
    state: ReceivedState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReceivedState {
    /// PUBREC waits for the tap or the store.
    Undecided,
    /// PUBREC was sent, or would be again.
    Taken,
}

/// What comes with every step: the outside of a session.
pub(crate) struct Context<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) counters: &'a Counters,
    pub(crate) now: Moment,
    /// What is to be stored, submitted when the inputs at hand are done.
    pub(crate) batch: &'a mut Batch,
    pub(crate) number: BatchNumber,
    /// What happens once `batch` is in the store.
    pub(crate) deferred: &'a mut Vec<Deferred>,
}

/// What became of a message for a session.
#[derive(Debug)]
pub(crate) enum Offered {
    Queued,
    Dropped,
    /// A transient session without room: its client is too slow to be kept. What came by a shared
    /// subscription comes back, for others.
    Overflow(Option<Box<Delivery>>),
}

impl Session {
    pub(crate) fn new(
        id: SessionId,
        record: RecordId,
        client_id: Arc<str>,
        principal: Arc<str>,
        mut memory: Holding,
    ) -> Session {
        memory.add(session_memory::of_names(&client_id, &principal));
        Session {
            memory,
            id,
            record,
            hash: hash(0, client_id.as_bytes()),
            client_id,
            principal,
            identity: None,
            expiry: 0,
            link: Link::Away,
            version: Version::V5,
            subscriptions: Filters::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flights: Flights::default(),
            receive_maximum: 0,
            received: BTreeMap::new(),
            owed: Owed::default(),
            walks: Walks::default(),
            will: None,
            will_at: None,
            ends_at: None,
            curtailed: false,
            disconnected_us: None,
            next_look: u64::MAX,
        }
    }

    pub(crate) fn is_stored(&self) -> bool {
        self.record != TRANSIENT
    }

    /// Whether there is memory for one more subscription.
    pub(crate) fn has_room_for(&self, filter: &str) -> Fits {
        self.memory.fits(session_memory::of_subscription(filter))
    }

    /// Notes a subscription, or replaces the one there is.
    pub(crate) fn subscribed(&mut self, filter: Arc<str>, held: Held) {
        if self.subscriptions.get_key_value(&filter).is_none() {
            self.memory.add(session_memory::of_subscription(&filter));
        }
        self.subscriptions.insert(filter, held);
    }

    /// Forgets a subscription.
    pub(crate) fn unsubscribed(&mut self, filter: &str) -> Option<Held> {
        let held = self.subscriptions.remove(filter)?;
        self.memory.remove(session_memory::of_subscription(filter));
        Some(held)
    }

    /// To whom its deliveries belong in the store. What a transient session has there came by a shared
    /// subscription that has stored members, too, and is theirs should this session end.
    fn owner(&self) -> Owner {
        match self.record {
            TRANSIENT => Owner::Share,
            record => Owner::Session(record),
        }
    }

    /// Notes a message that came in and is to be answered.
    pub(crate) fn owe(&mut self, packet_id: PacketId, qos: QoS) -> Receipt {
        self.while_owed_is_counted(|owed| owed.received(packet_id, qos))
    }

    /// The same of one that came again while it is being decided about.
    pub(crate) fn owe_again(&mut self, packet_id: PacketId) -> Option<Receipt> {
        self.while_owed_is_counted(|owed| owed.received_again(packet_id))
    }

    /// The next answer to a message that may leave.
    pub(crate) fn next_due(&mut self) -> Option<Due> {
        self.while_owed_is_counted(Owed::next_due)
    }

    fn while_owed_is_counted<T>(&mut self, change: impl FnOnce(&mut Owed) -> T) -> T {
        let before = self.owed.weight();
        let answer = change(&mut self.owed);
        let after = self.owed.weight();
        match after.cmp(&before) {
            Ordering::Equal => {}
            Ordering::Greater => self.memory.add(after - before),
            Ordering::Less => self.memory.remove(before - after),
        }
        answer
    }

    /// Its connection, if CONNACK was sent.
    pub(crate) fn online(&self) -> Option<ConnectionId> {
        match self.link {
            Link::Online(connection) => Some(connection),
            Link::Away | Link::Joining(_) => None,
        }
    }

    /// Its connection, also while CONNACK waits.
    pub(crate) fn connection(&self) -> Option<ConnectionId> {
        match self.link {
            Link::Online(connection) | Link::Joining(connection) => Some(connection),
            Link::Away => None,
        }
    }

    /// Deliveries of QoS 1 and 2 that wait or are in flight.
    pub(crate) fn undelivered(&self) -> usize {
        self.waiting.len() + self.flights.len()
    }

    /// Deliveries of QoS 1 and 2 without packet identifier.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Memory of these that is counted nowhere else: what stored sessions wait for is counted for all of
    /// them.
    pub(crate) fn transient_weight(&self) -> usize {
        match self.is_stored() {
            true => 0,
            false => self.waiting_weight() + self.flights_weight(),
        }
    }

    fn waiting_weight(&self) -> usize {
        self.waiting_bytes + self.waiting.len() * WAITING
    }

    /// Memory of exchanges of which nothing is kept but their number, and a frame for others who share.
    fn flights_weight(&self) -> usize {
        match self.is_stored() {
            true => 0,
            false => self.flights.len() * FLIGHT + self.flights.frames(),
        }
    }

    /// Bytes of these.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether a good part of the room for waiting messages is taken.
    pub(crate) fn is_pressing(&self, exchange: &Exchange) -> bool {
        self.waiting.len() > exchange.limits.max_queued / 4
            || self.waiting_bytes > exchange.limits.max_queued_bytes / 4
    }

    /// Writes the session itself into the batch, if it is stored.
    pub(crate) fn put(&self, batch: &mut Batch) {
        if !self.is_stored() {
            return;
        }
        let record = SessionRecord {
            client_id: Arc::clone(&self.client_id),
            principal: Arc::clone(&self.principal),
            expiry: self.expiry,
            disconnected_us: self.disconnected_us,
            curtailed: self.curtailed,
            will: self.will.as_ref().and_then(|will| {
                let mut body = bytes::BytesMut::new();
                will.publish.keep(&mut body).ok()?;
                Some(WillRecord {
                    delay: will.delay,
                    body: body.freeze(),
                })
            }),
        };
        batch.put_with(self.record, |out| record.write(out));
    }

    // ----- to the client -----

    /// Takes a message. Of QoS 1 and 2 for a stored session, room was reserved in its gauge.
    pub(crate) fn offer(
        &mut self,
        mut delivery: Delivery,
        mut outbox: Option<&mut Outbox>,
        cx: &mut Context<'_>,
    ) -> Offered {
        let limits = &cx.exchange.limits;
        if delivery.qos == QoS::AtMostOnce {
            return self.offer_at_most_once(delivery, outbox, cx);
        }
        if !self.is_stored() {
            let bytes = self.waiting_bytes + outbox.as_ref().map_or(0, |o| o.ready_bytes());
            let weight = self.waiting_weight() + outbox.as_ref().map_or(0, |o| o.weight());
            let reader = outbox.as_ref().map_or(Reader::Stuck, |o| o.reader);
            let room = cx.exchange.admission.queue_memory.room();
            if !planted!(cx.exchange, QueueUnbounded)
                && (self.waiting.len() >= limits.max_queued
                    || bytes + delivery.len() > limits.max_queued_bytes
                    || !room.takes(weight, delivery.len(), reader))
            {
                if delivery.can_go_to_another() {
                    return Offered::Overflow(Some(Box::new(delivery)));
                }
                delivery.done(cx.exchange.gauge(self.id), cx.batch);
                return Offered::Overflow(None);
            }
        } else {
            cx.counters.deliveries_stored.one();
        }
        if let Some(outbox) = outbox.as_deref_mut()
            && self.waiting.is_empty()
            && self.has_window()
            && self.sends_on(outbox, cx)
        {
            // Nearly always: straight on, past the queue.
            match self.launch(delivery, outbox, cx) {
                None => return Offered::Queued,
                Some(back) => delivery = back,
            }
        }
        let online = outbox.is_some();
        if !online {
            delivery.access = Access::Check;
            delivery.let_go_of_frame();
        }
        self.push_waiting(delivery);
        if let Some(outbox) = outbox {
            self.pump(outbox, cx);
        }
        // Whatever is still here has to wait.
        if let Some(last) = self.waiting.back_mut()
            && last.access == Access::Current
        {
            last.access = Access::Check;
        }
        let owner = self.owner();
        if let Some(last) = self.waiting.back_mut()
            && last.recorded != Recorded::Waiting
        {
            last.recorded = Recorded::Waiting;
            last.put(owner, Stage::Waiting, cx.batch);
        }
        if self.is_stored() {
            self.make_room(cx);
        }
        Offered::Queued
    }

    fn offer_at_most_once(
        &mut self,
        mut delivery: Delivery,
        outbox: Option<&mut Outbox>,
        cx: &mut Context<'_>,
    ) -> Offered {
        let Some(outbox) = outbox else {
            cx.counters.dropped_offline.one();
            return Offered::Dropped;
        };
        if delivery.access == Access::Check && self.refuses(&delivery, cx) {
            cx.counters.dropped_receive_unauthorized.one();
            return Offered::Dropped;
        }
        let Some(frame) = self.frame(&mut delivery, outbox, cx) else {
            return Offered::Dropped;
        };
        let room = cx.exchange.admission.queue_memory.room();
        if !room.takes(outbox.weight(), frame.len(), outbox.reader) {
            cx.counters.dropped_memory.one();
            return Offered::Dropped;
        }
        match outbox.offer(frame, &cx.exchange.limits) {
            outbox::Offer::Queued => Offered::Queued,
            outbox::Offer::Dropped => {
                cx.counters.dropped_queue_full.one();
                Offered::Dropped
            }
        }
    }

    /// Sends what the client's window allows: first what is owed from before, then what waits.
    pub(crate) fn pump(&mut self, outbox: &mut Outbox, cx: &mut Context<'_>) {
        self.take_up_again(outbox, cx);
        while self.has_window() {
            if !self.sends_on(outbox, cx) {
                // Maybe nothing is in flight, and no acknowledgement will bring this on.
                if !self.waiting.is_empty() {
                    outbox.withheld = Withheld::Yes;
                }
                return;
            }
            let Some(delivery) = self.pop_waiting() else {
                return;
            };
            if let Some(delivery) = self.launch(delivery, outbox, cx) {
                self.waiting_bytes += delivery.len();
                self.waiting.push_front(delivery);
                return;
            }
        }
    }

    /// Whether one more may be sent.
    fn has_window(&self) -> bool {
        self.flights.is_caught_up() && self.flights.has_room(self.receive_maximum)
    }

    /// Whether there is memory for more in flight.
    fn sends_on(&self, outbox: &Outbox, cx: &Context<'_>) -> bool {
        let room = cx.exchange.admission.queue_memory.room();
        room.sends_on(outbox.weight(), self.flights_weight())
    }

    /// Sends one message, if it is still to be sent. Comes back if there is no packet identifier for it.
    fn launch(
        &mut self,
        mut delivery: Delivery,
        outbox: &mut Outbox,
        cx: &mut Context<'_>,
    ) -> Option<Delivery> {
        if delivery.is_expired(cx.now) {
            cx.counters.dropped_expired.one();
            self.done(delivery, cx);
            return None;
        }
        if delivery.access == Access::Check && self.refuses(&delivery, cx) {
            cx.counters.dropped_receive_unauthorized.one();
            self.done(delivery, cx);
            return None;
        }
        let Some(frame) = self.frame(&mut delivery, outbox, cx) else {
            self.done(delivery, cx);
            return None;
        };
        let highest = cx.exchange.limits.max_inflight;
        let Some(packet_id) = self.flights.identifier(highest) else {
            return Some(delivery);
        };
        let mut gate = BatchNumber::NONE;
        if self.is_stored() {
            delivery.recorded = Recorded::Otherwise;
            delivery.put(self.owner(), Stage::Sent(packet_id), cx.batch);
            // Exactly once: should we forget that we sent it, it would be sent as another one.
            if delivery.qos == QoS::ExactlyOnce && delivery.is_stored() {
                gate = cx.number;
            }
        } else if delivery.share.is_none() {
            // Never sent again; the exchange needs its number only.
            delivery.message = None;
        } else if delivery.qos == QoS::ExactlyOnce {
            // Its own from here on, and it ends with it [MQTT-4.8.2-5]: nobody else may get it, also
            // not after a crash.
            if delivery.is_stored() {
                cx.batch.delete(delivery.record);
                delivery.record = TRANSIENT;
                gate = cx.number;
            }
        } else if delivery.recorded == Recorded::No {
            delivery.recorded = Recorded::Waiting;
            delivery.put(self.owner(), Stage::Waiting, cx.batch);
        }
        delivery.access = Access::Check;
        match delivery.qos {
            QoS::ExactlyOnce => delivery.frame = None,
            _ => delivery.let_go_of_frame(),
        }
        delivery.waits_no_more(cx.exchange.gauge(self.id));
        self.flights.depart(packet_id, delivery);
        outbox.send(frame, packet_id, Attempt::First, gate);
        None
    }

    /// Sends again what was under way when the last connection broke [MQTT-4.4.0-1], as far as there is
    /// memory: after a restart all clients come back at once, and each frame is encoded anew.
    fn take_up_again(&mut self, outbox: &mut Outbox, cx: &mut Context<'_>) {
        let room = cx.exchange.admission.queue_memory.room();
        while self.flights.has_room(self.receive_maximum) {
            let Some(flight) = self.flights.next_owed() else {
                return;
            };
            // What is in flight is there, sent or not.
            if !room.sends_on(outbox.weight(), 0) {
                outbox.withheld = Withheld::Yes;
                return;
            }
            let packet_id = flight.packet_id;
            let qos = flight.delivery.qos;
            let mut delivery = std::mem::replace(&mut flight.delivery, Delivery::empty());
            let refused = self.refuses(&delivery, cx);
            let frame = match refused {
                true => None,
                false => self.frame(&mut delivery, outbox, cx),
            };
            delivery.frame = None;
            if let Some(flight) = self.flights.next_owed() {
                flight.delivery = delivery;
            }
            if refused {
                cx.counters.dropped_receive_unauthorized.one();
            }
            match (frame, qos) {
                (Some(frame), _) => {
                    let mut packet_id = packet_id;
                    let mut attempt = Attempt::Again;
                    if planted!(cx.exchange, FlightsRenumberedAtReconnect) {
                        packet_id = self.flights.renumber(cx.exchange.limits.max_inflight);
                    }
                    if planted!(cx.exchange, DupForgotten) {
                        attempt = Attempt::First;
                    }
                    self.flights.resent();
                    outbox.send(frame, packet_id, attempt, BatchNumber::NONE);
                }
                (None, QoS::ExactlyOnce) => {
                    // The client may have it and must let go of the identifier, or it would take the
                    // next message with it for this one.
                    self.flights.resent();
                    self.release(packet_id, cx);
                }
                (None, _) => {
                    if let Some(flight) = self.flights.land(packet_id) {
                        self.done(flight.delivery, cx);
                    }
                }
            }
        }
    }

    /// The frame for this connection's client, unless it cannot take it: such a message counts as sent
    /// [MQTT-3.1.2-25].
    fn frame(&self, delivery: &mut Delivery, outbox: &Outbox, cx: &Context<'_>) -> Option<Frame> {
        let frame = delivery.frame_for(self.version, &cx.exchange.trash)?;
        if !outbox.takes(frame.len()) {
            cx.counters.dropped_too_large.one();
            return None;
        }
        Some(frame)
    }

    /// Whether the client may not have a message that waited.
    fn refuses(&self, delivery: &Delivery, cx: &Context<'_>) -> bool {
        if planted!(cx.exchange, QueuedAccessUnchecked) {
            return false;
        }
        let Some(identity) = &self.identity else {
            return true;
        };
        let decision = delivery.with_topic(|topic| cx.exchange.hooks.may_receive(identity, topic));
        decision != Some(Decision::Allow)
    }

    fn push_waiting(&mut self, delivery: Delivery) {
        self.waiting_bytes += delivery.len();
        self.waiting.push_back(delivery);
    }

    fn pop_waiting(&mut self) -> Option<Delivery> {
        let delivery = self.waiting.pop_front()?;
        self.waiting_bytes -= delivery.len();
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        Some(delivery)
    }

    fn done(&self, delivery: Delivery, cx: &mut Context<'_>) {
        delivery.done(cx.exchange.gauge(self.id), cx.batch);
    }

    /// Applies the overflow rule after a message came in, or many came back.
    pub(crate) fn make_room(&mut self, cx: &mut Context<'_>) {
        let limits = &cx.exchange.limits;
        if limits.overflow == Overflow::RefuseNew {
            return;
        }
        loop {
            let gauge = cx.exchange.gauge(self.id);
            if gauge.messages() as usize <= limits.max_queued
                && gauge.bytes() <= limits.max_queued_bytes
            {
                return;
            }
            let lowest = match limits.overflow {
                Overflow::RefuseNew | Overflow::DropOldest => None,
                Overflow::DropLowestPriority => self
                    .waiting
                    .iter()
                    .position(|delivery| delivery.priority() == Priority::Low),
            };
            if limits.overflow == Overflow::DropLowestPriority
                && lowest.is_none()
                && gauge.droppable() > 0
            {
                // Those of low priority that are on their way make room when they are here.
                return;
            }
            let Some(delivery) = self.waiting.remove(lowest.unwrap_or(0)) else {
                // What is in flight is the client's already.
                return;
            };
            match lowest {
                _ if planted!(cx.exchange, OverflowUncounted) => {}
                None => cx.counters.dropped_oldest.one(),
                Some(_) => cx.counters.dropped_low_priority.one(),
            }
            self.waiting_bytes -= delivery.len();
            self.done(delivery, cx);
        }
    }

    /// Drops what has expired while it waited. Says how many that were.
    pub(crate) fn drop_expired(&mut self, cx: &mut Context<'_>) -> usize {
        let before = self.waiting.len();
        if !self.waiting.iter().any(|d| d.is_expired(cx.now)) {
            return 0;
        }
        for delivery in std::mem::take(&mut self.waiting) {
            if delivery.is_expired(cx.now) {
                self.waiting_bytes -= delivery.len();
                cx.counters.dropped_expired.one();
                self.done(delivery, cx);
            } else {
                self.waiting.push_back(delivery);
            }
        }
        before - self.waiting.len()
    }

    /// Takes back what is about to be written and the client may not have.
    pub(crate) fn withdraw(
        &mut self,
        refused: impl FnMut(&str) -> bool,
        outbox: &mut Outbox,
        cx: &mut Context<'_>,
    ) {
        for packet_id in outbox.withdraw(refused) {
            cx.counters.dropped_receive_unauthorized.one();
            let Some(flight) = self.flights.get(packet_id) else {
                continue;
            };
            // It may have been sent before, on an earlier connection: then the client must let go of
            // the identifier.
            if flight.delivery.qos == QoS::ExactlyOnce {
                self.release(packet_id, cx);
            } else if let Some(flight) = self.flights.land(packet_id) {
                self.done(flight.delivery, cx);
            }
        }
        self.pump(outbox, cx);
    }

    /// PUBACK came. An identifier that is not of a QoS 1 message under way changes nothing.
    pub(crate) fn acknowledged(
        &mut self,
        packet_id: PacketId,
        outbox: &mut Outbox,
        cx: &mut Context<'_>,
    ) {
        let is_due = |f: &mut super::flights::Flight| {
            f.delivery.qos == QoS::AtLeastOnce && f.phase == Phase::Sent
        };
        if self.flights.get(packet_id).is_some_and(is_due)
            && let Some(mut flight) = self.flights.land(packet_id)
        {
            if planted!(cx.exchange, DeliveryKeptAfterPubAck) {
                flight.delivery.record = TRANSIENT;
            }
            self.done(flight.delivery, cx);
            self.pump(outbox, cx);
        }
    }

    /// PUBREC came. Returns PUBREL's reason if it is to be sent now.
    pub(crate) fn delivered(
        &mut self,
        packet_id: PacketId,
        reason: ReasonCode,
        outbox: &mut Outbox,
        cx: &mut Context<'_>,
    ) -> Option<ReasonCode> {
        let Some(flight) = self.flights.get(packet_id) else {
            return Some(ReasonCode::PacketIdentifierNotFound);
        };
        if flight.delivery.qos != QoS::ExactlyOnce {
            return Some(ReasonCode::PacketIdentifierNotFound);
        }
        if flight.phase == Phase::Released {
            // Again: so is the answer, behind what may still be on its way to the store.
            self.send_release(packet_id, cx);
            return None;
        }
        let cut = planted!(cx.exchange, ExpiryCutsExchange) && flight.delivery.is_expired(cx.now);
        if reason.is_error() || cut {
            // [MQTT-4.3.3-4]: the client will not have it, and the identifier is free.
            cx.counters.dropped_by_receiver.one();
            if let Some(flight) = self.flights.land(packet_id) {
                self.done(flight.delivery, cx);
            }
            self.pump(outbox, cx);
            return None;
        }
        self.release(packet_id, cx);
        match planted!(cx.exchange, PubRelBeforeDurable) {
            true => Some(ReasonCode::Success),
            false => None,
        }
    }

    /// From here on the message is the client's; PUBREL follows once that is in the store.
    fn release(&mut self, packet_id: PacketId, cx: &mut Context<'_>) {
        let owner = self.owner();
        if let Some(flight) = self.flights.release(packet_id) {
            let stage = Stage::Released(packet_id);
            flight.delivery.put(owner, stage, cx.batch);
        }
        self.send_release(packet_id, cx);
    }

    fn send_release(&self, packet_id: PacketId, cx: &mut Context<'_>) {
        if let Some(connection) = self.online()
            && !planted!(cx.exchange, PubRelBeforeDurable)
        {
            let answer = Deferred::Send(connection, Answer::Release(packet_id));
            cx.deferred.push(answer);
        }
    }

    /// PUBCOMP came.
    pub(crate) fn completed(
        &mut self,
        packet_id: PacketId,
        outbox: &mut Outbox,
        cx: &mut Context<'_>,
    ) {
        let released = |f: &mut super::flights::Flight| f.phase == Phase::Released;
        if self.flights.get(packet_id).is_some_and(released)
            && let Some(flight) = self.flights.land(packet_id)
        {
            self.done(flight.delivery, cx);
            self.pump(outbox, cx);
        }
    }

    /// Messages that expired before they were sent for the first time.
    pub(crate) fn expired(
        &mut self,
        packet_ids: &[PacketId],
        outbox: &mut Outbox,
        cx: &mut Context<'_>,
    ) {
        for packet_id in packet_ids {
            if let Some(flight) = self.flights.land(*packet_id) {
                self.done(flight.delivery, cx);
            }
        }
        self.pump(outbox, cx);
    }

    /// A connection is served from now on: sends PUBREL where it is owed, takes up what was under way,
    /// and goes on with what waits. Returns the packet identifiers for which PUBREL is due.
    pub(crate) fn connected(
        &mut self,
        connection: ConnectionId,
        receive_maximum: u16,
        exchange: &Exchange,
    ) -> Vec<PacketId> {
        self.link = Link::Online(connection);
        let former = match self.receive_maximum {
            0 => exchange.limits.max_inflight,
            former => former,
        };
        self.receive_maximum = match planted!(exchange, WindowOfFormerConnection) {
            true => former,
            false => receive_maximum,
        };
        if planted!(exchange, FlightIdsReused) {
            self.flights.forget_identifiers();
        }
        if planted!(exchange, InboundIdsForgottenAtReconnect) {
            self.memory.remove(self.received.len() * RECEIVED);
            self.received.clear();
        }
        self.flights.reconnect()
    }

    /// The connection is gone. Returns what a shared subscription gave this member and others can
    /// still have: what it was not sent, and with `also_sent` QoS 1 messages it has not acknowledged.
    pub(crate) fn disconnected(&mut self, also_sent: AlsoSent) -> Vec<Delivery> {
        self.link = Link::Away;
        self.owed.connection_lost();
        for delivery in &mut self.waiting {
            delivery.let_go_of_frame();
            delivery.access = Access::Check;
        }
        let mut shared: Vec<Delivery> = match also_sent {
            AlsoSent::No => Vec::new(),
            AlsoSent::AtLeastOnce => self
                .flights
                .take(|f| f.delivery.share.is_some() && !f.is_bound_to_client())
                .into_iter()
                .map(|flight| flight.delivery)
                .collect(),
        };
        if self.waiting.iter().any(|d| d.share.is_some()) {
            for delivery in std::mem::take(&mut self.waiting) {
                if delivery.share.is_some() {
                    self.waiting_bytes -= delivery.len();
                    shared.push(delivery);
                } else {
                    self.waiting.push_back(delivery);
                }
            }
        }
        shared
    }

    /// Everything that waits or is under way, when the session ends, and whether it was sent.
    pub(crate) fn take_all(&mut self) -> Vec<(Delivery, bool)> {
        let flights = self.flights.take(|_| true);
        let mut all: Vec<(Delivery, bool)> = flights
            .into_iter()
            .map(|flight| (flight.delivery, true))
            .collect();
        while let Some(delivery) = self.pop_waiting() {
            all.push((delivery, false));
        }
        all
    }

    /// Whether unacknowledged QoS 1 messages of shared subscriptions are in flight.
    pub(crate) fn shares_in_flight(&self) -> bool {
        self.flights
            .iter()
            .any(|f| f.delivery.share.is_some() && !f.is_bound_to_client())
    }

    /// Puts back a delivery out of the store.
    pub(crate) fn restore(&mut self, delivery: Delivery, stage: Stage) {
        let (packet_id, phase) = match stage {
            Stage::Waiting => return self.push_waiting(delivery),
            Stage::Sent(packet_id) => (packet_id, Phase::Sent),
            Stage::Released(packet_id) => (packet_id, Phase::Released),
        };
        self.flights.restore(super::flights::Flight {
            packet_id,
            phase,
            delivery,
        });
    }

    // ----- from the client -----

    /// Whether a QoS 2 message with this identifier is known.
    pub(crate) fn has_received(&self, packet_id: PacketId) -> bool {
        self.received.contains_key(&packet_id.get())
    }

    /// Notes a QoS 2 message.
    pub(crate) fn receive(
        &mut self,
        packet_id: PacketId,
        receipt: Receipt,
        tapped: Tapped,
        cx: &mut Context<'_>,
    ) {
        let mut record = TRANSIENT;
        if self.is_stored() && !planted!(cx.exchange, InboundIdNotStored) {
            record = cx.exchange.next_record();
            let inbound = InboundRecord {
                session: self.record,
                packet_id,
                tapped,
            };
            cx.batch.put_with(record, |out| inbound.write(out));
        }
        let received = Received {
            record,
            receipt,
            tapped,
            state: ReceivedState::Undecided,
        };
        if self.received.insert(packet_id.get(), received).is_none() {
            self.memory.add(RECEIVED);
        }
    }

    /// Puts back an identifier out of the store.
    pub(crate) fn restore_received(
        &mut self,
        packet_id: PacketId,
        tapped: Tapped,
        record: RecordId,
    ) {
        let received = Received {
            record,
            receipt: Receipt::NONE,
            tapped,
            state: ReceivedState::Taken,
        };
        if self.received.insert(packet_id.get(), received).is_none() {
            self.memory.add(RECEIVED);
        }
    }

    /// Whether a received message must be offered to the tap again: the broker stopped before the tap
    /// had said that it has its copy.
    pub(crate) fn wants_tap_again(&self, packet_id: PacketId) -> bool {
        self.received.get(&packet_id.get()).is_some_and(|received| {
            received.tapped == Tapped::Unsettled && received.state == ReceivedState::Taken
        })
    }

    /// It is offered to the tap again.
    pub(crate) fn undecided_again(&mut self, packet_id: PacketId, receipt: Receipt) {
        if let Some(received) = self.received.get_mut(&packet_id.get()) {
            received.receipt = receipt;
            received.state = ReceivedState::Undecided;
        }
    }

    /// The tap has its copy of a received message. Says whether the store has to hear of it before
    /// anybody else.
    pub(crate) fn tapped(
        &mut self,
        packet_id: PacketId,
        receipt: Receipt,
        batch: &mut Batch,
    ) -> Known {
        let Some(received) = self.received.get_mut(&packet_id.get()) else {
            return Known::No;
        };
        if received.receipt != receipt {
            return Known::No;
        }
        if received.tapped == Tapped::Settled || received.record == TRANSIENT {
            return Known::InMemory;
        }
        received.tapped = Tapped::Settled;
        let inbound = InboundRecord {
            session: self.record,
            packet_id,
            tapped: Tapped::Settled,
        };
        batch.put_with(received.record, |out| inbound.write(out));
        Known::Stored
    }

    /// Whether the decision about a received message is still to come.
    pub(crate) fn is_undecided(&self, packet_id: PacketId) -> bool {
        self.received
            .get(&packet_id.get())
            .is_some_and(|received| received.state == ReceivedState::Undecided)
    }

    /// PUBREC with success is on its way.
    pub(crate) fn taken(&mut self, packet_id: PacketId) {
        if let Some(received) = self.received.get_mut(&packet_id.get()) {
            received.state = ReceivedState::Taken;
        }
    }

    /// The identifier is free again: PUBREL came, or the message was not accepted. Says whether the
    /// store has to hear of it first.
    pub(crate) fn forget_received(&mut self, packet_id: PacketId, batch: &mut Batch) -> Known {
        let received = self.received.remove(&packet_id.get());
        if received.is_some() {
            self.memory.remove(RECEIVED);
        }
        match received {
            None => Known::No,
            Some(received) if received.record == TRANSIENT => Known::InMemory,
            Some(received) => {
                batch.delete(received.record);
                Known::Stored
            }
        }
    }

    /// The message of this receipt was not accepted. A later one with its identifier is another one.
    pub(crate) fn refuse_received(
        &mut self,
        packet_id: PacketId,
        receipt: Receipt,
        batch: &mut Batch,
    ) -> Known {
        match self.received.get(&packet_id.get()) {
            Some(received) if received.receipt == receipt => self.forget_received(packet_id, batch),
            _ => Known::No,
        }
    }

    /// Removes all that the store has of received messages, when the session ends.
    pub(crate) fn forget_all_received(&mut self, batch: &mut Batch) {
        self.memory.remove(self.received.len() * RECEIVED);
        for received in std::mem::take(&mut self.received).into_values() {
            if received.record != TRANSIENT {
                batch.delete(received.record);
            }
        }
    }
}

/// Whether a received QoS 2 message was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    No,
    InMemory,
    Stored,
}

/// Whether messages that were sent and not acknowledged go to other members of their shared
/// subscription, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AlsoSent {
    No,
    /// Those of QoS 1. What was sent at QoS 2 stays with its session [MQTT-4.8.2-4].
    AtLeastOnce,
}
