//! The connections of one worker, and everything that happens to them.
//!
//! The shell opens a connection, hands in packets, mail and the time, and takes bytes out. A batch
//! of inputs ends with [`Shard::settle`]: then what is for other shards is posted, one item of mail
//! per shard however many messages there were, and connections that could not keep up are closed.
//! That is also what keeps a closing storm flat: a connection that overflows because of a will is
//! closed after the will's owner, not within it.
//!
//! A batch may stop early. Tasks of a worker run in turn, so a thousand publishers could fill the
//! queue of a quick receiver before its own task runs once, and it would be taken for a slow one.
//! While some receiver's queue is well filled and its task has not had its turn
//! ([`Shard::is_pressed`]), no more is handed in. A receiver whose socket is full does not count: it
//! is slow, and nobody waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::BytesMut;
use mqtt::{
    Connect, DecodeError, Packet, Publish, QoS, ReasonCode, SubAck, SubAckProperties, Subscribe,
    UnsubAck, UnsubAckProperties, Unsubscribe, Version,
};

use super::connection::{Appetite, Connection, End, EndedBy, Output, TimedOut};
use super::exchange::Exchange;
use super::fanout::Fanout;
use super::mailbox::{Delivery, Mail, Mailbox};
use super::outbox::More;
use super::registry::Admission;
use super::subscriber::{OwnMessages, RetainFlag, Subscriber};
use super::tenants::{Denials, Farewell, Origin, Rest, Tenant, Tenants};
use super::timers::Timers;
use super::{ConnectionId, Moment, Receipt};
use crate::acknowledge::{self, Acknowledge};
use crate::hooks::{ConnectAttempt, Decision, Identity, Refusal, Tap};
use crate::limits::Limits;
use crate::stats::Counters;

/// Times a client is asked who it is while access keeps changing, before it is told to come back.
const MAX_AUTHENTICATIONS: u32 = 8;

/// The connections of one worker.
pub(crate) struct Shard {
    number: usize,
    exchange: Arc<Exchange>,
    mailbox: Arc<Mailbox>,
    counters: Arc<Counters>,
    tenants: Tenants,
    timers: Timers,
    now: Moment,
    state: State,
    /// Deliveries for other shards, by shard.
    remote: Vec<Vec<Delivery>>,
    fanout: Fanout,
    /// Empty lists, kept for their memory.
    spare_outputs: Vec<Vec<Output>>,
    due: Vec<ConnectionId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
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
            timers: Timers::default(),
            now,
            state: State::Open,
            remote: (0..exchange.shards()).map(|_| Vec::new()).collect(),
            fanout: Fanout::default(),
            spare_outputs: Vec::new(),
            due: Vec::new(),
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
        let deadline = connection.deadline();
        let id = self
            .tenants
            .insert(self.number, Tenant::new(connection, origin))?;
        self.file(id, deadline);
        Some(id)
    }

    /// Whether the next packet of a connection may be handed in.
    pub(crate) fn appetite(&mut self, id: ConnectionId) -> Appetite {
        let Some(tenant) = self.tenants.get(id) else {
            return Appetite::Over;
        };
        match tenant.connection.appetite(&self.exchange.limits) {
            Appetite::Hungry if tenant.outbox.is_clogged() => Appetite::Waiting,
            appetite => appetite,
        }
    }

    /// Hands in the next packet.
    pub(crate) fn packet(&mut self, id: ConnectionId, packet: Packet) {
        self.counters.packets_in.one();
        self.step(id, |connection, now, limits, out| {
            connection.packet(now, limits, packet, out);
        });
    }

    /// What came next is not a packet.
    pub(crate) fn malformed(
        &mut self,
        id: ConnectionId,
        error: DecodeError,
        version: Option<Version>,
    ) {
        self.step(id, |connection, _, _, out| {
            connection.malformed(error, version, out);
        });
    }

    /// The transport is gone.
    pub(crate) fn lost(&mut self, id: ConnectionId, detail: String) {
        self.step(id, |connection, _, _, out| connection.lost(detail, out));
    }

    /// Appends what the connection has to send, up to about `limit` bytes.
    pub(crate) fn write(&mut self, id: ConnectionId, out: &mut BytesMut, limit: usize) -> More {
        self.tenants.relieve(id);
        match self.tenants.get(id) {
            Some(tenant) => tenant.outbox.write(self.now, out, limit, &self.counters),
            None => More::No,
        }
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
            match &mut tenant.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
    }

    /// The transport is closed: forget the connection.
    pub(crate) fn release(&mut self, id: ConnectionId) {
        self.lost(id, "the transport was closed".to_owned());
        self.tenants.remove(id);
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

    /// Works through mail from the front, until it is done or the shard is pressed.
    pub(crate) fn mail(&mut self, mail: &mut VecDeque<Mail>) {
        while !self.is_pressed()
            && let Some(mail) = mail.pop_front()
        {
            match mail {
                Mail::Durable {
                    connection,
                    receipt,
                    outcome,
                } => self.durable(connection, receipt, outcome),
                Mail::Deliver(deliveries) => {
                    self.mailbox.delivered(deliveries.len());
                    for Delivery { to, frame } in deliveries {
                        self.tenants
                            .offer(to, &frame, &self.exchange.limits, &self.counters);
                    }
                }
                Mail::Evict(id) => {
                    if self
                        .tenants
                        .get(id)
                        .is_some_and(|t| !t.connection.is_ended())
                    {
                        self.counters.takeovers.one();
                    }
                    self.close(
                        id,
                        ReasonCode::SessionTakenOver,
                        "another connection uses the same client identifier",
                    );
                }
                Mail::Admit(id) => self.admit(id),
                Mail::Disconnect(id, reason) => self.close(id, reason, "disconnected by order"),
                Mail::Drain => {
                    self.state = State::Closing;
                    for id in self.tenants.all(self.number) {
                        self.step(id, |connection, _, _, out| connection.drain(out));
                    }
                }
                Mail::Stop => {
                    self.state = State::Closing;
                    for id in self.tenants.all(self.number) {
                        self.close(id, ReasonCode::ServerShuttingDown, "the broker stops");
                    }
                }
            }
        }
    }

    /// Looks after deadlines. To be called about once a second.
    pub(crate) fn turn(&mut self) {
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
    }

    /// Ends a batch of inputs.
    pub(crate) fn settle(&mut self) {
        while let Some(id) = self.tenants.overflowed.pop() {
            let serving = |t: &mut Tenant| t.connection.is_serving();
            if self.tenants.get(id).is_some_and(serving) {
                self.counters.slow_consumers.one();
                self.close(
                    id,
                    ReasonCode::QuotaExceeded,
                    "slow consumer: its queue of QoS 1 messages is full",
                );
            }
        }
        for (shard, deliveries) in self.remote.iter_mut().enumerate() {
            if !deliveries.is_empty() {
                let deliveries = std::mem::take(deliveries);
                self.exchange.mailbox(shard).post(Mail::Deliver(deliveries));
            }
        }
    }

    // ----- inside -----

    /// Gives a connection an input and carries out what it answers.
    fn step(
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
            Output::Authenticate(connect) => self.authenticate(id, &connect),
            Output::Publish(mut publish, receipt) => self.publish(id, &mut publish, receipt),
            Output::Subscribe(subscribe) => self.subscribe(id, &subscribe),
            Output::Unsubscribe(unsubscribe) => self.unsubscribe(id, &unsubscribe),
            Output::Acknowledged(packet_id) => {
                self.counters.pubacks_received.one();
                if let Some(tenant) = self.tenants.get(id) {
                    tenant.outbox.acknowledged(packet_id);
                }
            }
            Output::End(end) => self.end(id, end),
        }
    }

    fn close(&mut self, id: ConnectionId, reason: ReasonCode, detail: &'static str) {
        self.step(id, |connection, _, _, out| {
            connection.close(reason, detail, out);
        });
    }

    fn file(&mut self, id: ConnectionId, deadline: Option<u64>) {
        if let (Some(tenant), Some(deadline)) = (self.tenants.get(id), deadline)
            && deadline < tenant.next_look
        {
            tenant.next_look = self.timers.file(deadline, id);
        }
    }

    /// Encodes an answer.
    fn send(&mut self, id: ConnectionId, packet: &Packet) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let version = tenant.connection.version();
        let limit = tenant.outbox.max_packet_size();
        let control = tenant.outbox.control();
        let start = control.len();
        match mqtt::encode(packet, version, control) {
            Ok(()) if control.len() - start <= limit => {
                match packet {
                    Packet::PubAck(ack) if ack.reason.is_error() => {
                        self.counters.pubacks_sent_failed.one();
                    }
                    Packet::PubAck(_) => self.counters.pubacks_sent.one(),
                    _ => {}
                }
                self.counters.packets_out.one();
                tenant.wake_to_send();
            }
            // The client takes no packet of this size [MQTT-3.1.2-24], and without its answer the
            // protocol cannot go on.
            Ok(()) => {
                control.truncate(start);
                if !tenant.connection.is_ended() {
                    self.close(
                        id,
                        ReasonCode::PacketTooLarge,
                        "an answer exceeds the client's maximum packet size",
                    );
                }
            }
            Err(error) => {
                tracing::error!(event = "packet.unencodable", packet = %packet.packet_type(), %error);
                self.close(
                    id,
                    ReasonCode::ImplementationSpecificError,
                    "an answer cannot be encoded",
                );
            }
        }
    }

    fn authenticate(&mut self, id: ConnectionId, connect: &Connect) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        tenant.outbox.set_client_limits(
            connect
                .properties
                .receive_maximum
                .map_or(u16::MAX, u16::from)
                .min(self.exchange.limits.max_inflight),
            connect
                .properties
                .maximum_packet_size
                .map_or(usize::MAX, |size| size.get() as usize),
        );
        let assigned = connect
            .client_id
            .is_empty()
            .then(|| self.exchange.assign_client_id());
        let joined = join(&self.exchange, tenant, id, connect, assigned.as_deref());
        match joined {
            Ok((identity, admission)) => {
                // Not needed again, and a kilobyte per connection.
                tenant.origin.certificates = Vec::new();
                tenant.identity = Some(identity);
                // MQTT 3.1.1 has no way to tell the client, nor does it need to know.
                let assigned = assigned.map(|assigned| assigned.as_str().into());
                tenant.connection.identified(assigned);
                match admission {
                    Admission::Wait { evict: Some(old) } => {
                        self.exchange.post(old, Mail::Evict(old));
                    }
                    Admission::Wait { evict: None } => {}
                    _ => self.admit(id),
                }
            }
            Err(Refusal { reason, log }) => {
                self.step(id, |connection, _, _, out| {
                    connection.refuse(reason, log, out);
                });
            }
        }
    }

    fn admit(&mut self, id: ConnectionId) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        if tenant.connection.is_ended() || tenant.connection.is_serving() {
            return;
        }
        if let Some(identity) = &tenant.identity {
            self.counters.connects_accepted.one();
            tracing::info!(
                event = "client.connected",
                client = %identity.client_id,
                principal = %identity.principal,
                peer = %tenant.origin.peer,
                listener = %tenant.origin.listener,
                version = %tenant.connection.version(),
            );
        }
        self.step(id, |connection, now, _, out| connection.admit(now, out));
        if let Some(tenant) = self.tenants.get(id) {
            let deadline = tenant.connection.deadline();
            // It may have stopped reading from its transport.
            tenant.wake();
            self.file(id, deadline);
        }
        if self.state == State::Closing {
            self.step(id, |connection, _, _, out| connection.drain(out));
        }
    }

    fn publish(&mut self, id: ConnectionId, publish: &mut Publish, receipt: Receipt) {
        match publish.qos {
            QoS::AtMostOnce => self.counters.messages_in_qos0.one(),
            _ => self.counters.messages_in_qos1.one(),
        }
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(identity) = &tenant.identity else {
            return;
        };
        if self.exchange.hooks.may_publish(identity, &publish.topic) == Decision::Deny {
            self.counters.dropped_unauthorized.one();
            if tenant.denials == Denials::Unseen {
                tenant.denials = Denials::Logged;
                tracing::warn!(
                    event = "client.publish_denied",
                    client = %identity.client_id,
                    principal = %identity.principal,
                    peer = %tenant.origin.peer,
                    topic = %publish.topic,
                    "further ones of this connection are only counted",
                );
            }
            return self.decide(id, receipt, ReasonCode::NotAuthorized);
        }
        let decided = match tap(
            &self.exchange,
            &self.mailbox,
            &self.counters,
            identity,
            (id, receipt),
            publish,
            self.now,
        ) {
            Tapped::Refused(reason) => {
                if receipt == Receipt::NONE {
                    self.counters.dropped_tap_refused.one();
                }
                return self.decide(id, receipt, reason);
            }
            Tapped::Pending => None,
            Tapped::Done(outcome) => Some(outcome),
            Tapped::NotWanted => Some(ReasonCode::NoMatchingSubscribers),
        };
        let receivers = self.route(publish, Some(id));
        match decided {
            None => {}
            Some(ReasonCode::NoMatchingSubscribers) if receivers > 0 => {
                self.decide(id, receipt, ReasonCode::Success);
            }
            Some(outcome) => {
                if outcome == ReasonCode::NoMatchingSubscribers {
                    self.counters.messages_unmatched.one();
                }
                self.decide(id, receipt, outcome);
            }
        }
    }

    /// Hands a message to its receivers; returns how many there are.
    fn route(&mut self, publish: &mut Publish, from: Option<ConnectionId>) -> usize {
        let Shard {
            number,
            exchange,
            counters,
            tenants,
            remote,
            fanout,
            now,
            ..
        } = self;
        fanout.route(&exchange.index, publish, from, *now, |to, frame| {
            if to.shard() == *number {
                tenants.offer(to, frame, &exchange.limits, counters);
            } else {
                remote[to.shard()].push(Delivery {
                    to,
                    frame: frame.clone(),
                });
            }
        })
    }

    fn durable(&mut self, id: ConnectionId, receipt: Receipt, outcome: Result<(), ReasonCode>) {
        if outcome.is_err() {
            self.counters.tap_failed.one();
        }
        let reason = match outcome {
            Ok(()) => ReasonCode::Success,
            Err(reason) => failure(reason),
        };
        self.decide(id, receipt, reason);
    }

    fn decide(&mut self, id: ConnectionId, receipt: Receipt, outcome: ReasonCode) {
        if receipt != Receipt::NONE {
            self.step(id, |connection, _, _, out| {
                connection.decide(receipt, outcome, out);
            });
        }
    }

    fn subscribe(&mut self, id: ConnectionId, subscribe: &Subscribe) {
        let exchange = &self.exchange;
        let limits = &exchange.limits;
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(identity) = &tenant.identity else {
            return;
        };
        let version = tenant.connection.version();
        let subscription_id = subscribe
            .properties
            .subscription_id
            .map_or(0, |id| id.get());
        let mut reasons = Vec::with_capacity(subscribe.subscriptions.len());
        let mut granted = Vec::with_capacity(subscribe.subscriptions.len());
        for asked in &subscribe.subscriptions {
            let filter = asked.filter.as_str();
            let known = tenant.subscriptions.get(filter).cloned();
            let reason = if asked.filter.is_shared() {
                ReasonCode::SharedSubscriptionsNotSupported
            } else if asked.filter.levels().count() > limits.max_filter_levels {
                ReasonCode::TopicFilterInvalid
            } else if known.is_none() && tenant.subscriptions.len() >= limits.max_subscriptions {
                ReasonCode::QuotaExceeded
            } else if exchange.hooks.may_subscribe(identity, filter) == Decision::Deny {
                tracing::warn!(
                    event = "client.subscribe_denied",
                    client = %identity.client_id,
                    principal = %identity.principal,
                    peer = %tenant.origin.peer,
                    filter,
                );
                ReasonCode::NotAuthorized
            } else {
                let qos = asked.qos.min(QoS::AtLeastOnce);
                let filter = known.unwrap_or_else(|| {
                    let filter: Arc<str> = filter.into();
                    tenant.subscriptions.insert(Arc::clone(&filter));
                    filter
                });
                granted.push((
                    filter,
                    Subscriber {
                        to: id,
                        id: subscription_id,
                        granted: qos,
                        version,
                        own: match asked.no_local {
                            true => OwnMessages::Skip,
                            false => OwnMessages::Deliver,
                        },
                        retain: match asked.retain_as_published {
                            true => RetainFlag::AsPublished,
                            false => RetainFlag::Clear,
                        },
                    },
                ));
                ReasonCode::granted(qos)
            };
            reasons.push(reason);
        }
        self.counters.subscribes_granted.many(granted.len() as u64);
        self.counters
            .subscribes_refused
            .many((reasons.len() - granted.len()) as u64);
        if !granted.is_empty() {
            let mut index = exchange.index_mut();
            for (filter, subscriber) in granted {
                index.subscribe(&filter, subscriber);
            }
        }
        // After the index has it: what is published once SUBACK is seen is delivered.
        let answer = SubAck {
            packet_id: subscribe.packet_id,
            reasons,
            properties: SubAckProperties::default(),
        };
        self.send(id, &answer.into());
    }

    fn unsubscribe(&mut self, id: ConnectionId, unsubscribe: &Unsubscribe) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            let existed = tenant.subscriptions.remove(filter.as_str());
            if existed {
                self.exchange.index_mut().unsubscribe(filter.as_str(), id);
            }
            reasons.push(match existed {
                true => ReasonCode::Success,
                false => ReasonCode::NoSubscriptionExisted,
            });
        }
        let answer = UnsubAck {
            packet_id: unsubscribe.packet_id,
            reasons,
            properties: UnsubAckProperties::default(),
        };
        self.send(id, &answer.into());
    }

    /// A connection is over: its subscriptions go, its will is published, its place becomes free.
    fn end(&mut self, id: ConnectionId, end: End) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        tenant.farewell = match end.by {
            EndedBy::Network => Farewell::Drop,
            EndedBy::Client => Farewell::Flush,
            EndedBy::Broker | EndedBy::Refusal => Farewell::Linger,
        };
        let undelivered = tenant.outbox.drop_messages();
        let subscriptions = std::mem::take(&mut tenant.subscriptions);
        let identity = tenant.identity.take();
        let peer = tenant.origin.peer;
        tenant.wake();
        self.counters.dropped_session_end.many(undelivered as u64);
        if !subscriptions.is_empty() {
            let mut index = self.exchange.index_mut();
            for filter in &subscriptions {
                index.unsubscribe(filter, id);
            }
        }
        let (client, principal) = match &identity {
            Some(identity) => (&*identity.client_id, &*identity.principal),
            None => ("", ""),
        };
        match end.by {
            EndedBy::Refusal => {
                self.counters.connects_refused.one(end.reason);
                tracing::warn!(
                    event = "client.refused",
                    client,
                    principal,
                    %peer,
                    reason = %end.reason,
                    detail = %end.detail,
                );
            }
            EndedBy::Client | EndedBy::Broker | EndedBy::Network => {
                self.counters.disconnects.one(end.reason);
                tracing::info!(
                    event = "client.disconnected",
                    client,
                    principal,
                    %peer,
                    by = ?end.by,
                    reason = %end.reason,
                    detail = %end.detail,
                    undelivered,
                );
            }
        }
        let Some(identity) = identity else {
            return;
        };
        if let Some(mut will) = end.will {
            self.publish_will(id, &identity, &mut will);
        }
        // Last: whoever waits for the client identifier must find nothing of this one.
        let next = self
            .exchange
            .registry()
            .leave(id, &identity.client_id, &identity.principal);
        if let Some(next) = next {
            self.exchange.post(next, Mail::Admit(next));
        }
    }

    fn publish_will(&mut self, id: ConnectionId, identity: &Identity, will: &mut Publish) {
        // Access may have changed since CONNECT.
        if self.exchange.hooks.may_publish(identity, &will.topic) == Decision::Deny {
            self.counters.dropped_unauthorized.one();
            return;
        }
        let tapped = tap(
            &self.exchange,
            &self.mailbox,
            &self.counters,
            identity,
            (id, Receipt::NONE),
            will,
            self.now,
        );
        if let Tapped::Refused(_) = tapped {
            self.counters.dropped_tap_refused.one();
            return;
        }
        self.counters.wills_published.one();
        self.route(will, Some(id));
    }
}

/// Asks who a client is and registers it.
fn join(
    exchange: &Exchange,
    tenant: &Tenant,
    id: ConnectionId,
    connect: &Connect,
    assigned: Option<&str>,
) -> Result<(Identity, Admission), Refusal> {
    for _ in 0..MAX_AUTHENTICATIONS {
        let epoch = exchange.registry().epoch();
        let identity = exchange.hooks.authenticate(&ConnectAttempt {
            listener: &tenant.origin.listener,
            peer: tenant.origin.peer,
            client_id: assigned.unwrap_or(&connect.client_id),
            username: connect.username.as_deref(),
            password: connect.password.as_deref(),
            certificates: &tenant.origin.certificates,
        })?;
        if let Some(will) = tenant.connection.will()
            && exchange.hooks.may_publish(&identity, &will.topic) == Decision::Deny
        {
            return Err(Refusal::new(
                ReasonCode::NotAuthorized,
                format!("the will may not be published to `{}`", will.topic),
            ));
        }
        let admission = exchange.registry().join(
            id,
            &identity.client_id,
            &identity.principal,
            epoch,
            exchange.limits.max_connections,
        );
        match admission {
            Admission::Stale => {}
            Admission::Full => {
                let limit = exchange.limits.max_connections;
                return Err(Refusal::new(
                    ReasonCode::QuotaExceeded,
                    format!("{limit} clients are connected, which is the limit"),
                ));
            }
            admission => return Ok((identity, admission)),
        }
    }
    Err(Refusal::new(
        ReasonCode::ServerBusy,
        "access kept changing while the client connected",
    ))
}

/// What the tap made of a message.
enum Tapped {
    NotWanted,
    Pending,
    /// Taken, and the outcome is known already.
    Done(ReasonCode),
    Refused(ReasonCode),
}

fn tap(
    exchange: &Exchange,
    mailbox: &Arc<Mailbox>,
    counters: &Counters,
    identity: &Identity,
    (id, receipt): (ConnectionId, Receipt),
    publish: &Publish,
    now: Moment,
) -> Tapped {
    let done = Acknowledge::new(Arc::clone(mailbox), id, receipt);
    let (answer, said) = acknowledge::while_tapping(id, receipt, || {
        exchange.hooks.tap(identity, publish, now.wall_us, done)
    });
    match (answer, said) {
        (Tap::NotWanted, _) => Tapped::NotWanted,
        (Tap::Refused(reason), _) => Tapped::Refused(failure(reason)),
        (Tap::Taken, said) => {
            counters.tap_taken.one();
            match said {
                None => Tapped::Pending,
                Some(Ok(())) => Tapped::Done(ReasonCode::Success),
                Some(Err(reason)) => {
                    counters.tap_failed.one();
                    Tapped::Done(failure(reason))
                }
            }
        }
    }
}

/// A reason that says no: hooks that fail with a code of success would have a message acknowledged
/// that nobody kept.
fn failure(reason: ReasonCode) -> ReasonCode {
    match reason.is_error() {
        true => reason,
        false => ReasonCode::UnspecifiedError,
    }
}
