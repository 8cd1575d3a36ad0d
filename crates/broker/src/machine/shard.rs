//! The connections and sessions of one worker, and everything that happens to them.
//!
//! The shell opens a connection, hands in packets, mail and the time, and takes bytes out. A batch
//! of inputs ends with [`Shard::settle`]: then what is to be kept goes to the store as one atomic batch,
//! what is for other shards is posted, one item of mail per shard however many messages there were (in
//! this order: what another shard adds to the store about a message comes after the message), and
//! connections that could not keep up are closed. That is also what keeps a closing storm flat: a
//! connection that overflows because of a will is closed after the will's owner, not within it.
//!
//! A batch may stop early. Tasks of a worker run in turn, so a thousand publishers could fill the
//! queue of a quick receiver before its own task runs once, and it would be taken for a slow one.
//! While some receiver's queue is well filled and its task has not had its turn
//! ([`Shard::is_pressed`]), no more is handed in. A receiver whose socket is full does not count: it
//! is slow, and nobody waits for it.
//!
//! What happens is in the neighbours: [`joining`](super::joining) (CONNECT and sessions),
//! [`publishing`](super::publishing) (messages of clients and their answers),
//! [`subscribing`](super::subscribing) (subscriptions, retained messages, access),
//! [`leaving`](super::leaving) (ends of connections and sessions, wills).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use bytes::BytesMut;
use journal::{Batch, Condition, Position};
use mqtt::{DecodeError, Packet, QoS, ReasonCode, Utf8, Version};

use super::Moment;
use super::connection::{Answers, Appetite, Connection, EndedBy, Output, TimedOut};
use super::deferred::{Deferred, MAX_ANSWERS, Subscribed, Unsubscribed};
use super::delivery::Access;
use super::departure::Departure;
use super::exchange::{Exchange, Parked, Share};
use super::fanout::Fanout;
use super::mailbox::{Mail, Mailbox, Order, Post};
use super::message::Message;
use super::outbox::{BatchNumber, More, Withheld};
use super::planted::planted;
use super::principals::Principals;
use super::session::{Context, Offered, Session};
use super::share::Presence;
use super::slots::{ConnectionId, SessionId, Slots};
use super::tenants::{Farewell, News, Origin, Rest, Tenant, Tenants};
use super::timers::Timers;
use crate::admission::account::Float;
use crate::admission::debts::Debts;
use crate::admission::memory::{Fits, QueueTally, Reader, Standing};
use crate::limits::Limits;
use crate::stats::Counters;
use crate::trace::Sink;

/// Bytes of a batch that is not to grow further, where it can be cut.
pub(super) const LARGE_BATCH: usize = 16 << 20;

/// Messages from other workers that are handed to their sessions in one turn: a millisecond of work.
const DELIVERIES_PER_TURN: usize = 2048;

/// The connections and sessions of one worker.
pub(crate) struct Shard {
    pub(super) number: usize,
    pub(super) exchange: Arc<Exchange>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) tenants: Tenants,
    pub(super) sessions: Slots<Session>,
    pub(super) clients: HashMap<Arc<str>, SessionId>,
    pub(super) principals: Principals,
    timers: Timers<ConnectionId>,
    session_timers: Timers<SessionId>,
    pub(super) now: Moment,
    pub(super) state: State,
    /// Messages for other shards, by shard.
    pub(super) remote: Vec<Vec<Post>>,
    /// Mail to itself is on its way, and they are posted then.
    hand_over_asked: bool,
    /// Deliveries that are to wait in their shares once the batch at hand is submitted.
    pub(super) parked: Vec<Parked>,
    pub(super) fanout: Fanout,
    pub(super) storing: Storing,
    /// Bytes of answers that wait for the store.
    pub(super) answers: Float,
    /// What clients owe of their rates whose connection has ended.
    pub(super) debts: Debts,
    /// Changes of what waits for connected clients.
    pub(super) queued: QueueTally,
    /// Connections on which retained messages are to be sent from now on.
    pub(super) walkers: Vec<ConnectionId>,
    /// Connections whose next message waits for a batch.
    gated: BTreeSet<(BatchNumber, ConnectionId)>,
    /// Empty lists, kept for their memory.
    spare_outputs: Vec<Vec<Output>>,
    pub(super) spare_posts: Vec<Post>,
    due: Vec<ConnectionId>,
    sessions_due: Vec<SessionId>,
    /// Where the next sweep of the retained messages begins.
    swept: String,
    /// The second of the last one.
    swept_at: u64,
    /// The second in which it was last looked who waits for a store that cannot write.
    stalled_at: u64,
    /// Traces that are running: usually none.
    pub(super) traces: Vec<Arc<Sink>>,
    /// The client identifier of the CONNECT at hand, should it be refused at once.
    pub(super) greeting: Option<(ConnectionId, Utf8)>,
    /// Subscriptions that were granted and are not in place: a planted defect.
    pub(super) late: Vec<(Arc<str>, super::subscriber::Subscriber)>,
}

/// What is on its way to the store, and what waits for it.
#[derive(Default)]
pub(super) struct Storing {
    /// Of the inputs at hand.
    pub(super) batch: Batch,
    /// Messages in that batch, or replaced by it: the record of one that is dropped is deleted by
    /// whichever shard submits next, and must not be before the batch is.
    pub(super) held: Vec<Arc<Message>>,
    /// To be done once that batch is stored.
    pub(super) deferred: Vec<Deferred>,
    /// The number of that batch; the first has 1.
    number: u64,
    /// Batches submitted and not stored yet, with what waits for each.
    submitted: VecDeque<(Position, BatchNumber, Vec<Deferred>)>,
    /// The last batch known to be stored.
    stored: BatchNumber,
    /// Clients whose stored session ended in a batch that is not stored yet, and in which.
    ending: HashMap<Arc<str>, BatchNumber>,
    /// The same in the order of the batches.
    ended: VecDeque<(BatchNumber, Arc<str>)>,
}

impl Storing {
    /// A stored session of this client has ended, which is in the batch at hand.
    pub(super) fn ends(&mut self, client_id: Arc<str>) {
        let number = self.number();
        self.ended.push_back((number, Arc::clone(&client_id)));
        self.ending.insert(client_id, number);
    }

    /// Whether a stored session of this client has ended and the store does not know it yet.
    pub(super) fn is_ending(&self, client_id: &str) -> bool {
        self.ending.contains_key(client_id)
    }

    /// The store has all batches up to this one.
    fn stored(&mut self, number: BatchNumber) {
        self.stored = number;
        while let Some((number, client_id)) = self.ended.pop_front_if(|(at, _)| *at <= number) {
            if self.ending.get(&client_id) == Some(&number) {
                self.ending.remove(&client_id);
            }
        }
    }

    /// The batch at hand was submitted: what is deferred waits for it, and the next one begins.
    fn begin_next(&mut self, position: Position) {
        self.number += 1;
        let number = BatchNumber(self.number);
        match self.submitted.back_mut() {
            // It had nothing to be stored, and was not the first to wait for just that.
            Some((at, last, waiting)) if *at == position => {
                *last = number;
                waiting.append(&mut self.deferred);
            }
            _ => {
                let deferred = std::mem::take(&mut self.deferred);
                self.submitted.push_back((position, number, deferred));
            }
        }
    }

    /// The batch of the inputs at hand.
    pub(super) fn number(&self) -> BatchNumber {
        BatchNumber(self.number + 1)
    }
}

/// When messages for other shards are posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandOver {
    Now,
    Soon,
}

/// Messages for another shard that do not wait for more: what it can do meanwhile is worth a wake-up.
const MANY_POSTS: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// The broker stops: nobody new.
    Closing,
}

impl Shard {
    pub(crate) fn new(number: usize, exchange: Arc<Exchange>, now: Moment) -> Shard {
        Shard {
            number,
            mailbox: Arc::clone(exchange.mailbox(number)),
            counters: Arc::clone(exchange.counters(number)),
            tenants: Tenants::default(),
            sessions: Slots::default(),
            clients: HashMap::new(),
            principals: Principals::default(),
            timers: Timers::default(),
            session_timers: Timers::default(),
            now,
            state: State::Open,
            remote: (0..exchange.shards()).map(|_| Vec::new()).collect(),
            hand_over_asked: false,
            parked: Vec::new(),
            fanout: Fanout::default(),
            storing: Storing::default(),
            answers: Float::none(&exchange.admission.session_memory),
            debts: Debts::default(),
            queued: QueueTally::default(),
            walkers: Vec::new(),
            gated: BTreeSet::new(),
            spare_outputs: Vec::new(),
            spare_posts: Vec::new(),
            due: Vec::new(),
            sessions_due: Vec::new(),
            swept: String::new(),
            swept_at: 0,
            stalled_at: 0,
            traces: Vec::new(),
            greeting: None,
            late: Vec::new(),
            exchange,
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The time of all that follows.
    pub(crate) fn set_time(&mut self, now: Moment) {
        self.now = now;
    }

    /// Whether the broker stops.
    pub(crate) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Whether the broker stops and nobody is left here.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Closing && self.tenants.is_empty()
    }

    // ----- one connection -----

    /// Takes in a connection; `None` if the broker stops or the shard is full.
    pub(crate) fn open(&mut self, origin: Origin) -> Option<ConnectionId> {
        if self.state == State::Closing {
            return None;
        }
        let connection = Connection::new(self.now, &self.exchange.limits);
        self.take_in(Box::new(Tenant::new(connection, origin)))
    }

    /// Takes in a connection from another shard, which goes on here; `None` as in
    /// [`open`](Shard::open).
    pub(crate) fn arrive(&mut self, departure: Departure) -> Option<ConnectionId> {
        debug_assert_eq!(departure.to(), self.number);
        if self.state == State::Closing {
            departure.fail(ReasonCode::ServerUnavailable, "the broker stops");
            return None;
        }
        if !self.tenants.has_room(self.number) {
            departure.fail(ReasonCode::QuotaExceeded, "the shard is full");
            return None;
        }
        let mut tenant = departure.arrived()?;
        tenant.waker = None;
        tenant.rest = Rest::Awake;
        tenant.next_look = u64::MAX;
        tenant.tracer.take_if(|tracer| tracer.forget_ended());
        let id = self.take_in(tenant)?;
        if !self.traces.is_empty() {
            // One may have begun while it was on its way.
            self.trace_arrival(id);
        }
        self.join(id);
        self.settle();
        Some(id)
    }

    fn take_in(&mut self, tenant: Box<Tenant>) -> Option<ConnectionId> {
        let deadline = tenant.connection.deadline();
        let id = self.tenants.insert(self.number, tenant)?;
        self.file(id, deadline);
        Some(id)
    }

    /// The connection leaves for the shard its session lives on, with all that belongs to it; its id
    /// means nothing here any more. What it has to send was sent before.
    pub(crate) fn departure(&mut self, id: ConnectionId) -> Option<Departure> {
        let to = self.destination(id)?;
        let mut tenant = self.tenants.remove(id)?;
        let memory = &self.exchange.admission.queue_memory;
        self.queued.add(tenant.outbox.uncount(), memory);
        if self.is_done() {
            self.mailbox.post(Mail::Drain);
        }
        Some(Departure::new(to, tenant, &self.exchange, self.now))
    }

    /// Whether the next packet of a connection may be handed in.
    pub(crate) fn appetite(&mut self, id: ConnectionId) -> Appetite {
        let Some(tenant) = self.tenants.get(id) else {
            return Appetite::Over;
        };
        match tenant.connection.appetite(&self.exchange.limits) {
            Appetite::Hungry if tenant.outbox.is_clogged() || self.is_held_back(id) => {
                Appetite::Waiting
            }
            appetite => appetite,
        }
    }

    /// Whether so many answers to a connection wait for the store, or there is so little memory for more,
    /// that they are to be said before the next packet is handed in.
    fn is_held_back(&mut self, id: ConnectionId) -> bool {
        let Some(tenant) = self.tenants.get(id) else {
            return false;
        };
        let owed = tenant.session.and_then(|id| self.sessions.get(id));
        let owed = owed.map_or(0, |session| session.owed.weight());
        let held = tenant.deferred + owed;
        if held == 0 {
            return false;
        }
        tenant.deferred >= MAX_ANSWERS
            || self.exchange.admission.session_memory.fits(held, 0) == Fits::No
    }

    /// Hands in the next packet.
    pub(crate) fn packet(&mut self, id: ConnectionId, packet: Packet) {
        self.counters.packets_in.one();
        if let Packet::Connect(connect) = &packet {
            self.set_client_limits(id, connect);
            self.greeting = Some((id, connect.client_id.clone()));
        }
        if !self.traces.is_empty() {
            self.trace_in(id, &packet);
        }
        self.step(id, |connection, now, limits, out| {
            connection.packet(now, limits, packet, out);
        });
        self.greeting = None;
    }

    /// Counts bytes that were read from a transport.
    pub(crate) fn count_read(&mut self, id: ConnectionId, bytes: usize) {
        self.counters.bytes_in.many(bytes as u64);
        if let Some(tenant) = self.tenants.get(id) {
            tenant.counted.bytes_in += bytes as u64;
        }
    }

    /// Counts bytes that go to a transport.
    pub(crate) fn count_written(&mut self, id: ConnectionId, bytes: usize) {
        self.counters.bytes_out.many(bytes as u64);
        if let Some(tenant) = self.tenants.get(id) {
            tenant.counted.bytes_out += bytes as u64;
        }
    }

    /// What came next is not a packet.
    pub(crate) fn malformed(
        &mut self,
        id: ConnectionId,
        error: DecodeError,
        version: Option<Version>,
    ) {
        if !self.traces.is_empty() {
            self.trace_malformed(id, &error);
        }
        self.step(id, |connection, _, _, out| {
            connection.malformed(error, version, out);
        });
    }

    /// The transport is gone.
    pub(crate) fn lost(&mut self, id: ConnectionId, detail: String) {
        self.step(id, |connection, _, _, out| connection.lost(detail, out));
    }

    /// The client broke the protocol that carries its packets, and can still be told.
    pub(crate) fn violated(&mut self, id: ConnectionId, detail: String) {
        self.lost(id, detail);
        if let Some(tenant) = self.tenants.get(id) {
            tenant.farewell = Farewell::Linger;
        }
    }

    /// Appends what the connection has to send, up to about `limit` bytes.
    pub(crate) fn write(&mut self, id: ConnectionId, out: &mut BytesMut, limit: usize) -> More {
        let start = out.len();
        let more = self.write_ready(id, out, limit);
        if !self.traces.is_empty() {
            self.trace_out(id, &out[start..]);
        }
        // Retained messages, and what took the place of expired ones, may have to be stored.
        if !self.storing.batch.is_empty() {
            self.settle();
        }
        more
    }

    /// Appends the answers that the connection has to send, and no messages.
    pub(crate) fn write_answers(&mut self, id: ConnectionId, out: &mut BytesMut) {
        self.tenants.relieve(id);
        if let Some(tenant) = self.tenants.get(id) {
            tenant.news = News::None;
            let start = out.len();
            tenant.outbox.write_answers(out);
            if !self.traces.is_empty() {
                self.trace_out(id, &out[start..]);
            }
        }
    }

    /// Bytes were encoded and wait for a full socket, or do not any more. They count either way; says
    /// whether there is memory for more.
    pub(crate) fn count_unsent(&mut self, change: isize) -> Fits {
        let memory = &self.exchange.admission.queue_memory;
        self.queued.add(change, memory);
        memory.hold(change)
    }

    /// How much to encode between two writes, if `usual` is what it is while there is memory.
    pub(crate) fn room_to_write(&self, usual: usize) -> usize {
        let memory = &self.exchange.admission.queue_memory;
        memory.room().to_write(usual)
    }

    /// Whether it is known who is at the other end.
    pub(crate) fn standing(&mut self, id: ConnectionId) -> Standing {
        let serving = |tenant: &mut Tenant| tenant.connection.is_serving();
        match self.tenants.get(id).is_some_and(serving) {
            true => Standing::Client,
            false => Standing::Stranger,
        }
    }

    /// The time of what is at hand.
    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    /// Sends what was withheld for want of memory. Says whether there was any.
    fn send_on(&mut self, id: ConnectionId) -> bool {
        let withheld = match self.tenants.get(id) {
            Some(tenant) => std::mem::take(&mut tenant.outbox.withheld),
            None => return false,
        };
        if withheld == Withheld::Yes {
            self.with_outbox(id, |session, outbox, cx| session.pump(outbox, cx));
        }
        withheld == Withheld::Yes
    }

    fn write_ready(&mut self, id: ConnectionId, out: &mut BytesMut, limit: usize) -> More {
        self.tenants.relieve(id);
        if let Some(tenant) = self.tenants.get(id) {
            tenant.news = News::None;
        }
        let start = out.len();
        let mut expired = Vec::new();
        loop {
            let stored = self.storing.stored;
            let Some(tenant) = self.tenants.get(id) else {
                return More::No;
            };
            let before = tenant.outbox.weight();
            let more =
                tenant
                    .outbox
                    .write(self.now, stored, out, limit, &self.counters, &mut expired);
            let wrote = tenant.outbox.weight() < before;
            let memory = &self.exchange.admission.queue_memory;
            self.queued
                .add(tenant.outbox.recount_written(before), memory);
            if let Some(gate) = tenant.outbox.gate().filter(|gate| *gate > stored) {
                self.gated.insert((gate, id));
            }
            if more == More::Yes {
                self.expired(id, &mut expired);
                return More::Yes;
            }
            // What expired made room.
            let made_room = !expired.is_empty();
            self.expired(id, &mut expired);
            // What waited for memory alone can go on: something was written.
            let sent_on = wrote && self.send_on(id);
            if !made_room && !sent_on {
                break;
            }
            if out.len() - start >= limit {
                return More::Yes;
            }
        }
        More::No
    }

    /// Whether retained messages are to be looked up for a connection, and it has room for them.
    pub(crate) fn can_walk(&mut self, id: ConnectionId) -> bool {
        if !self.tenants.get(id).is_some_and(|tenant| tenant.walks) {
            return false;
        }
        if !self.has_walks(id) {
            if let Some(tenant) = self.tenants.get(id) {
                tenant.walks = false;
            }
            return false;
        }
        self.has_room_for_retained(id)
    }

    /// Whether there may be something to write, or to look up in order to write it. To be asked, like
    /// [`write`](Shard::write), when the connection's task has its turn.
    pub(crate) fn has_output(&mut self, id: ConnectionId) -> bool {
        self.tenants.relieve(id);
        self.tenants.get(id).is_some_and(|tenant| {
            tenant.news = News::None;
            !tenant.outbox.is_idle() || tenant.walks
        })
    }

    /// Looks up retained messages for a connection, as many as are looked at in one go. Says whether it did;
    /// then there may be something to write, and more to look up.
    pub(crate) fn walk_on(&mut self, id: ConnectionId) -> bool {
        let walked = self.can_walk(id) && self.walk_some(id);
        self.settle();
        walked
    }

    /// How to close the transport, once the connection has ended.
    pub(crate) fn farewell(&mut self, id: ConnectionId) -> Option<Farewell> {
        let tenant = self.tenants.get(id)?;
        tenant.connection.is_ended().then_some(tenant.farewell)
    }

    /// The connection's task runs; it will look for output itself.
    pub(crate) fn awake(&mut self, id: ConnectionId) {
        if let Some(tenant) = self.tenants.get(id) {
            tenant.rest = Rest::Awake;
        }
    }

    /// The connection's task goes to rest until `waker` is called.
    pub(crate) fn sleep(&mut self, id: ConnectionId, rest: Rest, waker: &Waker) {
        self.tenants.relieve(id);
        if let Some(tenant) = self.tenants.get(id) {
            tenant.rest = rest;
            tenant.outbox.reader = match rest {
                Rest::Awake | Rest::Asleep => Reader::Reading,
                Rest::Blocked | Rest::Throttled => Reader::Stuck,
            };
            if tenant.news == News::Some && rest != Rest::Blocked {
                // It came after the task had looked.
                tenant.rest = Rest::Awake;
                tenant.news = News::None;
                waker.wake_by_ref();
            }
            match &mut tenant.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
    }

    /// The transport is closed: forget the connection.
    pub(crate) fn release(&mut self, id: ConnectionId) {
        self.lost(id, "the transport was closed".to_owned());
        if let Some(mut tenant) = self.tenants.remove(id) {
            let memory = &self.exchange.admission.queue_memory;
            self.queued.add(tenant.outbox.uncount(), memory);
        }
        if self.is_done() {
            // The last one is gone: the worker waits for just this.
            self.mailbox.post(Mail::Drain);
        }
    }

    // ----- all connections -----

    /// Whether some receiver should have its turn before more is handed in.
    pub(crate) fn is_pressed(&self) -> bool {
        self.tenants.pressing > 0
    }

    /// Works through mail from the front, until it is done, the shard is pressed or others should have
    /// their turn.
    pub(crate) fn mail(&mut self, mail: &mut VecDeque<Mail>) {
        let mut room = DELIVERIES_PER_TURN;
        while !self.is_pressed()
            && room > 0
            && let Some(item) = mail.pop_front()
        {
            match item {
                Mail::Durable {
                    session,
                    receipt,
                    outcome,
                } => self.durable(session, receipt, outcome),
                Mail::Deliver(posts) => mail.push_front(Mail::DeliverRest(posts.into_iter())),
                Mail::DeliverRest(mut posts) => {
                    // A burst of another worker's publisher may be longer than a receiver's queue.
                    let count = posts.len();
                    while !self.is_pressed()
                        && room > 0
                        && let Some(post) = posts.next()
                    {
                        room -= 1;
                        self.offer(post);
                    }
                    self.mailbox.delivered(count - posts.len());
                    if posts.len() > 0 {
                        mail.push_front(Mail::DeliverRest(posts));
                    }
                }
                Mail::Park(parked) => self.park(parked),
                Mail::QueueFull(session) => {
                    self.with_session(session, |session, _, cx| {
                        session.drop_expired(cx);
                    });
                }
                Mail::Stored(position) => self.stored(position),
                Mail::Stalled => self.stalled(),
                Mail::Ban(search) => self.enforce(search),
                Mail::Departed(departed) => self.depart(departed),
                Mail::Principal(principal, order) => self.principal(principal.as_deref(), order),
                Mail::Inquiry(inquiry) => self.inquire(inquiry),
                Mail::Visit(visit) => self.visit(visit),
                Mail::Trace(order) => self.trace_order(order),
                // Done by `settle`, which follows.
                Mail::HandOver => self.hand_over_asked = false,
                Mail::Drain => {
                    self.state = State::Closing;
                    for id in self.tenants.all(self.number) {
                        self.drain(id);
                        self.submit_if_large();
                    }
                }
                Mail::Stop => {
                    self.state = State::Closing;
                    for id in self.tenants.all(self.number) {
                        self.close(id, ReasonCode::ServerShuttingDown, "the broker stops");
                        self.submit_if_large();
                    }
                }
            }
        }
    }

    fn principal(&mut self, principal: Option<&str>, order: Order) {
        let sessions: Vec<SessionId> = match principal {
            None => self.sessions.all(self.number),
            Some(principal) => self.principals.of(principal),
        };
        for id in sessions {
            match order {
                Order::Disconnect(reason) => {
                    if let Some(connection) = self.sessions.get(id).and_then(|s| s.connection()) {
                        self.step(connection, |connection, _, _, out| {
                            let detail = "its principal was disconnected";
                            connection.close_by(EndedBy::Access, reason, detail, out);
                        });
                    }
                }
                Order::CheckAccess => self.check_access(id),
            }
            self.submit_if_large();
        }
    }

    pub(super) fn drain(&mut self, id: ConnectionId) {
        let session = self.tenants.get(id).and_then(|tenant| tenant.session);
        let answers = match session.and_then(|id| self.sessions.get(id)) {
            Some(session) if !session.owed.is_settled() => Answers::Owed,
            _ => Answers::Settled,
        };
        self.step(id, |connection, _, _, out| connection.drain(answers, out));
    }

    /// Looks after deadlines. To be called about once a second.
    pub(crate) fn turn(&mut self) {
        self.queued.book(&self.exchange.admission.queue_memory);
        for (filter, subscriber) in std::mem::take(&mut self.late) {
            super::subscribing::place(&self.exchange, &filter, subscriber, Presence::Online);
        }
        let mut due = std::mem::take(&mut self.due);
        self.timers.turn(self.now.tick, &mut due);
        for id in due.drain(..) {
            let Some(tenant) = self.tenants.get(id) else {
                continue;
            };
            if self.now.tick < tenant.next_look {
                continue;
            }
            tenant.next_look = u64::MAX;
            if self.is_held_back(id)
                && let Some(tenant) = self.tenants.get(id)
            {
                // We do not read, so silence is not the client's.
                tenant.connection.not_read_before(self.now.tick);
            }
            let mut timed_out = TimedOut::No;
            self.step(id, |connection, now, limits, out| {
                timed_out = connection.tick(now, limits, out);
            });
            match timed_out {
                TimedOut::No => {
                    let deadline = self.tenants.get(id).and_then(|t| t.connection.deadline());
                    self.file(id, deadline);
                }
                TimedOut::Connect => self.counters.connect_timeouts.one(),
                TimedOut::KeepAlive => self.counters.keep_alive_timeouts.one(),
            }
        }
        self.due = due;
        let mut due = std::mem::take(&mut self.sessions_due);
        self.session_timers.turn(self.now.tick, &mut due);
        for id in due.drain(..) {
            let Some(session) = self.sessions.get(id) else {
                continue;
            };
            if self.now.tick < session.next_look {
                continue;
            }
            session.next_look = u64::MAX;
            self.look_after(id);
        }
        self.sessions_due = due;
        // Some of what came since it was said waits for it all the same.
        let second = self.now.tick / 1000;
        if second > self.stalled_at && self.exchange.store.condition() == Condition::Stalled {
            self.stalled_at = second;
            self.stalled();
        }
        // One shard does it for all.
        let second = self.now.tick / 1000;
        if self.number == 0 && second > self.swept_at && self.exchange.retained().topics.len() > 0 {
            self.swept_at = second;
            let exchange = Arc::clone(&self.exchange);
            let mut retained = exchange.retained_mut();
            retained.sweep(&mut self.swept, self.now, &mut self.storing.batch);
            self.submit();
        }
    }

    /// Files the deadlines of all sessions, after a start.
    pub(super) fn look_after_all(&mut self) {
        for id in self.sessions.all(self.number) {
            if let Some(session) = self.sessions.get(id) {
                let next = session.ends_at.into_iter().chain(session.will_at).min();
                self.file_session(id, next);
            }
            // Stored by a publisher's shard, and the crash came before this one made room for it.
            self.with_session(id, |session, _, cx| session.make_room(cx));
        }
    }

    /// Ends a batch of inputs.
    pub(crate) fn settle(&mut self) {
        self.settle_and(HandOver::Now);
    }

    /// Ends a batch of inputs of which many follow. What is for other shards is posted when the tasks that are
    /// ready now have had their turn, or when it is much: one piece of mail and one wake-up for all of them.
    pub(crate) fn settle_among_many(&mut self) {
        self.settle_and(HandOver::Soon);
    }

    fn settle_and(&mut self, hand_over: HandOver) {
        loop {
            while let Some(id) = self.tenants.overflowed.pop() {
                let serving = |t: &mut Tenant| t.connection.is_serving();
                if self.tenants.get(id).is_some_and(serving) {
                    self.counters.slow_consumers.one();
                    self.close(
                        id,
                        ReasonCode::QuotaExceeded,
                        "slow consumer: its queue of QoS 1 and 2 messages is full",
                    );
                }
            }
            // Their tasks look for them, each in its turn.
            while let Some(id) = self.walkers.pop() {
                if let Some(tenant) = self.tenants.get(id) {
                    tenant.wake_to_send();
                }
            }
            self.submit();
            let parked = std::mem::take(&mut self.parked);
            self.park(parked);
            if !self.storing.deferred.is_empty() {
                self.file_deferred();
            }
            let mut left = false;
            for (shard, posts) in self.remote.iter_mut().enumerate() {
                if posts.is_empty() {
                    continue;
                }
                if hand_over == HandOver::Soon && posts.len() < MANY_POSTS {
                    left = true;
                    continue;
                }
                let posts = std::mem::take(posts);
                self.exchange.mailbox(shard).post(Mail::Deliver(posts));
            }
            if left && !self.hand_over_asked {
                self.hand_over_asked = true;
                self.mailbox.post(Mail::HandOver);
            }
            // What needed no storing, and stores that are quick: done at once, which may lead to more.
            let before = self.storing.number;
            self.stored(self.exchange.store.durable());
            if self.storing.batch.is_empty()
                && self.storing.deferred.is_empty()
                && self.tenants.overflowed.is_empty()
                && (left || self.remote.iter().all(Vec::is_empty))
                && self.parked.is_empty()
                && self.storing.number == before
            {
                return;
            }
        }
    }

    // ----- the store -----

    /// Submits what there is to be stored, and files what waits for it. Carries nothing on: this may be
    /// called under a lock.
    pub(super) fn submit(&mut self) {
        if self.storing.batch.is_empty() {
            return;
        }
        let position = self.exchange.submit(&mut self.storing.batch);
        self.storing.held.clear();
        self.storing.begin_next(position);
    }

    /// Between things that need not be in one batch. All sessions of a shard, each with its will, may be
    /// more than a batch takes.
    fn submit_if_large(&mut self) {
        if self.storing.batch.bytes() > LARGE_BATCH {
            self.submit();
        }
    }

    /// What is deferred from here on waits for all that was submitted so far, by any shard.
    pub(super) fn wait_for_all(&mut self) {
        let position = self.exchange.store.submit(Batch::default());
        self.storing.begin_next(position);
    }

    /// Files what waits and brought nothing to be stored itself: what was submitted before is enough.
    fn file_deferred(&mut self) {
        let deferred = std::mem::take(&mut self.storing.deferred);
        match self.storing.submitted.back_mut() {
            Some((_, _, waiting)) => waiting.extend(deferred),
            None => {
                for deferred in deferred {
                    self.carry_on(deferred);
                }
            }
        }
    }

    /// The store has everything up to `position`.
    fn stored(&mut self, position: Position) {
        while let Some((_, number, deferred)) = self
            .storing
            .submitted
            .pop_front_if(|(at, _, _)| *at <= position)
        {
            self.storing.stored(number);
            for deferred in deferred {
                self.carry_on(deferred);
            }
        }
        while let Some((gate, id)) = self.gated.first().copied()
            && gate <= self.storing.stored
        {
            self.gated.remove(&(gate, id));
            if let Some(tenant) = self.tenants.get(id) {
                tenant.wake_to_send();
            }
        }
    }

    /// The store can write nothing (a full disk, for one), and nobody knows until when. Publishers of
    /// QoS 1 that wait for it are refused, so that they can slow down or keep the message themselves. It
    /// may still be kept, and delivered; sent again it is then there twice, as QoS 1 allows. QoS 2 does
    /// not: there they go on waiting, and so do clients of MQTT 3.1.1, which cannot be told.
    fn stalled(&mut self) {
        let mut refused = Vec::new();
        let sessions = &mut self.sessions;
        for (_, _, deferred) in &mut self.storing.submitted {
            deferred.retain(|deferred| {
                let &Deferred::Decide(id, receipt, outcome) = deferred else {
                    return true;
                };
                let waits = |session: &mut Session| {
                    let qos = session.owed.packet(receipt).map(|(_, qos)| qos);
                    session.version == Version::V5 && qos == Some(QoS::AtLeastOnce)
                };
                if outcome.is_error() || !sessions.get(id).is_some_and(waits) {
                    return true;
                }
                refused.push((id, receipt));
                false
            });
        }
        for (id, receipt) in refused {
            self.decide(id, receipt, ReasonCode::QuotaExceeded);
        }
    }

    /// Does what waited for the store.
    pub(super) fn carry_on(&mut self, deferred: Deferred) {
        if let Some((id, bytes)) = deferred.answer() {
            self.answers.remove(bytes);
            if let Some(tenant) = self.tenants.get(id) {
                tenant.deferred = tenant.deferred.saturating_sub(bytes);
            }
        }
        self.say(deferred);
    }

    /// Does what waits for the store, or would.
    pub(super) fn say(&mut self, deferred: Deferred) {
        match deferred {
            Deferred::Decide(session, receipt, outcome) => self.decide(session, receipt, outcome),
            Deferred::Send(id, answer) => {
                if self
                    .tenants
                    .get(id)
                    .is_some_and(|t| t.connection.is_serving())
                {
                    self.send(id, &answer.into());
                }
            }
            Deferred::Subscribed(id, subscribed) => {
                if self
                    .tenants
                    .get(id)
                    .is_some_and(|t| t.connection.is_serving())
                {
                    let Subscribed { granted, answer } = *subscribed;
                    self.announce_subscribed(id, granted.iter().map(|filter| &**filter));
                    self.send(id, &answer.into());
                    self.begin_walks(id);
                }
            }
            Deferred::Unsubscribed(id, unsubscribed) => {
                if self
                    .tenants
                    .get(id)
                    .is_some_and(|t| t.connection.is_serving())
                {
                    let Unsubscribed { ended, answer } = *unsubscribed;
                    self.announce_unsubscribed(id, ended.iter().map(|filter| &**filter));
                    self.send(id, &answer.into());
                }
            }
            Deferred::Admit(id) => self.admit(id),
            Deferred::Purged(reply, purged) => reply.send(purged),
        }
    }

    /// How full each session is, for the simulation.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn inspect(&mut self) -> Vec<Inspection> {
        let ids: Vec<SessionId> = self.sessions.all(self.number);
        ids.into_iter()
            .filter_map(|id| {
                let session = self.sessions.get(id)?;
                let gauge = self.exchange.gauge(id);
                Some(Inspection {
                    waiting: session.waiting(),
                    waiting_bytes: session.waiting_bytes(),
                    in_flight: session.undelivered() - session.waiting(),
                    gauge_messages: gauge.messages() as usize,
                })
            })
            .collect()
    }

    // ----- inside -----

    /// Works on a session, together with the outbox of its connection, if it has one.
    pub(super) fn with_session<T>(
        &mut self,
        id: SessionId,
        work: impl FnOnce(&mut Session, Option<&mut super::outbox::Outbox>, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let session = self.sessions.get(id)?;
        let number = self.storing.number();
        let waiting = self.storing.deferred.len();
        let Storing {
            batch, deferred, ..
        } = &mut self.storing;
        let mut cx = Context {
            exchange: &self.exchange,
            counters: &self.counters,
            now: self.now,
            batch,
            number,
            deferred,
        };
        let tenant = session.online().and_then(|id| self.tenants.get(id));
        let mut outbox = tenant.map(|t| &mut t.outbox);
        let answer = work(session, outbox.as_deref_mut(), &mut cx);
        if let Some(outbox) = outbox {
            let change = outbox.recount(session.transient_weight());
            let memory = &self.exchange.admission.queue_memory;
            self.queued.add(change, memory);
        }
        for place in waiting..self.storing.deferred.len() {
            if let Some((id, bytes)) = self.storing.deferred[place].answer() {
                self.count_answer(id, bytes);
            }
        }
        Some(answer)
    }

    /// An answer waits for the store that holds so many bytes.
    pub(super) fn count_answer(&mut self, id: ConnectionId, bytes: usize) {
        self.answers.add(bytes);
        if let Some(tenant) = self.tenants.get(id) {
            tenant.deferred += bytes;
        }
    }

    /// As [`with_session`](Shard::with_session), for the session of a connection that is served.
    pub(super) fn with_outbox(
        &mut self,
        id: ConnectionId,
        work: impl FnOnce(&mut Session, &mut super::outbox::Outbox, &mut Context<'_>),
    ) {
        let Some(session) = self.tenants.get(id).and_then(|tenant| tenant.session) else {
            return;
        };
        self.with_session(session, |session, outbox, cx| {
            if let Some(outbox) = outbox {
                work(session, outbox, cx);
            }
        });
        if let Some(tenant) = self.tenants.get(id) {
            tenant.wake_to_send();
        }
    }

    fn expired(&mut self, id: ConnectionId, expired: &mut Vec<mqtt::PacketId>) {
        if !expired.is_empty() {
            self.with_outbox(id, |session, outbox, cx| {
                session.expired(expired, outbox, cx);
            });
            expired.clear();
        }
    }

    /// Hands a message to its session.
    pub(super) fn offer(&mut self, post: Post) {
        let Post {
            to,
            owner,
            mut delivery,
        } = post;
        if to.shard() != self.number {
            delivery.put_waiting(owner, &mut self.storing.batch);
            self.remote[to.shard()].push(Post {
                to,
                owner,
                delivery,
            });
            return;
        }
        let gone = match self.sessions.get(to) {
            None => true,
            Some(session) => {
                delivery.share.is_some()
                    && session.online().is_none()
                    && !planted!(self.exchange, SharedToAway)
            }
        };
        if gone {
            return self.pass_on(to, vec![delivery]);
        }
        // Routed before it lost a subscription, perhaps.
        if self.sessions.get(to).is_some_and(|s| s.curtailed) {
            delivery.access = Access::Check;
        }
        let offered = self.with_session(to, |session, outbox, cx| {
            let offered = session.offer(delivery, outbox, cx);
            (session.online(), offered, session.is_pressing(cx.exchange))
        });
        let Some((Some(id), offered, session_presses)) = offered else {
            return;
        };
        match offered {
            Offered::Queued => {
                let Some(tenant) = self.tenants.get(id) else {
                    return;
                };
                tenant.wake_for_message();
                // While memory is short, whoever reads has its turn before more is handed in: a burst
                // to many is counted for each of them, and is no fault of theirs.
                let short = self.exchange.admission.queue_memory.is_short();
                if session_presses || short || tenant.outbox.is_pressing(&self.exchange.limits) {
                    self.tenants.press(id);
                }
            }
            Offered::Dropped => {}
            Offered::Overflow(back) => {
                self.tenants.overflowed.push(id);
                if let Some(delivery) = back
                    && let Some(share) = delivery.share.clone()
                {
                    // Others may have room; this one is about to go.
                    share.group().set_presence(to, Presence::Away);
                    self.pass_on(to, vec![*delivery]);
                }
            }
        }
    }

    /// Whether retained messages are still to be sent on a connection.
    fn has_walks(&mut self, id: ConnectionId) -> bool {
        let session = self.tenants.get(id).and_then(|tenant| tenant.session);
        let session = session.and_then(|id| self.sessions.get(id));
        session.is_some_and(|session| session.online() == Some(id) && !session.walks.is_empty())
    }

    /// Sends retained messages on a connection, if any are to be sent.
    pub(super) fn begin_walks(&mut self, id: ConnectionId) {
        if self.has_walks(id)
            && let Some(tenant) = self.tenants.get(id)
        {
            tenant.walks = true;
            self.walkers.push(id);
        }
    }

    /// Gives a connection an input and carries out what it answers.
    pub(super) fn step(
        &mut self,
        id: ConnectionId,
        input: impl FnOnce(&mut Connection, Moment, &Limits, &mut Vec<Output>),
    ) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let mut outputs = self.spare_outputs.pop().unwrap_or_default();
        input(
            &mut tenant.connection,
            self.now,
            &self.exchange.limits,
            &mut outputs,
        );
        for output in outputs.drain(..) {
            self.carry_out(id, output);
        }
        self.spare_outputs.push(outputs);
    }

    fn carry_out(&mut self, id: ConnectionId, output: Output) {
        match output {
            Output::Send(packet) => self.send(id, &packet),
            Output::Authenticate(connect) => self.authenticate(id, connect),
            Output::Auth(auth) => self.auth(id, &auth),
            Output::Publish(mut publish) => self.publish(id, &mut publish),
            Output::Release(packet_id) => self.released(id, packet_id),
            Output::Subscribe(subscribe) => self.subscribe(id, subscribe),
            Output::Unsubscribe(unsubscribe) => self.unsubscribe(id, unsubscribe),
            Output::Acknowledged(packet_id) => {
                self.counters.pubacks_received.one();
                self.with_outbox(id, |session, outbox, cx| {
                    session.acknowledged(packet_id, outbox, cx);
                });
                self.has_room_again(id);
            }
            Output::Delivered(packet_id, reason) => self.delivered(id, packet_id, reason),
            Output::Completed(packet_id) => {
                self.counters.pubcomps_received.one();
                self.with_outbox(id, |session, outbox, cx| {
                    session.completed(packet_id, outbox, cx);
                });
                self.has_room_again(id);
            }
            Output::End(end) => self.end(id, end),
        }
    }

    /// A session has room again, also for what waits in its shared subscriptions.
    fn has_room_again(&mut self, id: ConnectionId) {
        if !self.exchange.has_shares() {
            return;
        }
        let session = self.tenants.get(id).and_then(|tenant| tenant.session);
        let Some(session) = session.and_then(|id| self.sessions.get(id)) else {
            return;
        };
        let shares: Vec<Arc<Share>> = session
            .subscriptions
            .shared()
            .filter(|(_, share)| share.group().waiting() > 0)
            .map(|(_, share)| Arc::clone(share))
            .collect();
        for share in shares {
            self.hand_out(&share);
        }
    }

    pub(super) fn close(&mut self, id: ConnectionId, reason: ReasonCode, detail: &'static str) {
        self.step(id, |connection, _, _, out| {
            connection.close(reason, detail, out);
        });
    }

    pub(super) fn file(&mut self, id: ConnectionId, deadline: Option<u64>) {
        if let (Some(tenant), Some(deadline)) = (self.tenants.get(id), deadline)
            && deadline < tenant.next_look
        {
            tenant.next_look = self.timers.file(deadline, id);
        }
    }

    pub(super) fn file_session(&mut self, id: SessionId, deadline: Option<u64>) {
        if let (Some(session), Some(deadline)) = (self.sessions.get(id), deadline)
            && deadline < session.next_look
        {
            session.next_look = self.session_timers.file(deadline, id);
        }
    }

    /// Encodes an answer.
    pub(super) fn send(&mut self, id: ConnectionId, packet: &Packet) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let version = tenant.connection.version();
        let control = tenant.outbox.control();
        let start = control.len();
        let encoded = mqtt::encode(packet, version, control);
        let size = control.len() - start;
        match encoded {
            Ok(()) if tenant.outbox.takes(size) => {
                match packet {
                    Packet::PubAck(ack) if ack.reason.is_error() => {
                        self.counters.pubacks_sent_failed.one();
                    }
                    Packet::PubAck(_) => self.counters.pubacks_sent.one(),
                    Packet::PubRec(ack) if ack.reason.is_error() => {
                        self.counters.pubrecs_sent_failed.one();
                    }
                    Packet::PubRec(_) => self.counters.pubrecs_sent.one(),
                    _ => {}
                }
                self.counters.packets_out.one();
                tenant.wake_to_send();
            }
            // The client takes no packet of this size [MQTT-3.1.2-24]. What explains it may be left
            // out; without the answer itself the protocol cannot go on.
            Ok(()) => {
                tenant.outbox.control().truncate(start);
                if let Some(shorter) = super::publishing::without_explanation(packet) {
                    return self.send(id, &shorter);
                }
                if tenant.connection.is_ended() {
                    return;
                }
                match packet {
                    Packet::ConnAck(_) => self.step(id, |connection, _, _, out| {
                        let detail = "CONNACK exceeds the client's maximum packet size";
                        connection.turn_away(ReasonCode::PacketTooLarge, detail, out);
                    }),
                    _ => self.close(
                        id,
                        ReasonCode::PacketTooLarge,
                        "an answer exceeds the client's maximum packet size",
                    ),
                }
            }
            Err(error) => {
                tracing::error!(event = "packet.unencodable", packet = %packet.packet_type(), %error);
                let reason = ReasonCode::ImplementationSpecificError;
                match packet {
                    // Without it nobody is connected.
                    Packet::ConnAck(_) => self.step(id, |connection, _, _, out| {
                        connection.turn_away(reason, "CONNACK cannot be encoded", out);
                    }),
                    _ => self.close(id, reason, "an answer cannot be encoded"),
                }
            }
        }
    }
}

impl Drop for Shard {
    /// The broker stops, and other shards may still be at work: what goes out of memory here must not
    /// go out of the store.
    fn drop(&mut self) {
        self.exchange.trash.close();
    }
}

/// How full a session is, for the simulation.
#[cfg(any(test, feature = "simulation"))]
#[derive(Debug, Clone)]
pub(crate) struct Inspection {
    pub(crate) waiting: usize,
    pub(crate) waiting_bytes: usize,
    pub(crate) in_flight: usize,
    pub(crate) gauge_messages: usize,
}
