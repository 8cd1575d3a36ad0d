//! Messages of clients, from PUBLISH to the last answer of their exchange.
//!
//! ```text
//! PUBLISH ─► may they? ─► tap ─► retained ─► receivers, store ─► (all durable) ─► PUBACK, PUBREC
//! PUBREL  ─► forgotten, store ─► PUBCOMP
//! PUBREC  ─► the client's own from here on, store ─► PUBREL
//! ```

use std::sync::Arc;

use mqtt::{
    Packet, PacketId, PacketType, PubAck, PubRec, PubRel, Publish, QoS, ReasonCode, Utf8, Version,
};

use super::Receipt;
use super::connection::{LastWord, ProblemInformation};
use super::deferred::{Answer, Deferred};
use super::exchange::{Lasting, RetainError};
use super::fanout::{Publisher, Routed};
use super::format;
use super::owed::Listener;
use super::planted::planted;
use super::session::Known;
use super::session_memory::RECEIVED;
use super::shard::{Shard, State};
use super::slots::{ConnectionId, SessionId};
use super::tenants::Denials;
use crate::acknowledge::{self, Acknowledge};
use crate::admission::memory::Fits;
use crate::hooks::{Decision, Identity, Tap};

/// What the tap made of a message.
pub(super) enum Tapped {
    NotWanted,
    Pending,
    /// Taken, and the outcome is known already.
    Done(ReasonCode),
    Refused(ReasonCode),
}

impl Shard {
    /// PUBLISH came.
    pub(super) fn publish(&mut self, id: ConnectionId, publish: &mut Publish) {
        match publish.qos {
            QoS::AtMostOnce => self.counters.messages_in_qos0.one(),
            QoS::AtLeastOnce => self.counters.messages_in_qos1.one(),
            QoS::ExactlyOnce => self.counters.messages_in_qos2.one(),
        }
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        tenant.counted.messages_in += 1;
        let account = &self.exchange.admission.session_memory;
        if tenant.connection.count_aliases(account) == Fits::No {
            let why = "no memory for the topics of its aliases (`max_session_memory`)";
            return self.close(id, ReasonCode::QuotaExceeded, why);
        }
        let Some(session_id) = tenant.session else {
            return;
        };
        let Some(session) = self.sessions.get(session_id) else {
            return;
        };
        if let (QoS::ExactlyOnce, Some(packet_id)) = (publish.qos, publish.packet_id)
            && session.has_received(packet_id)
        {
            // Sent again: answered again, and not a second message [MQTT-4.3.3-10].
            tenant.connection.repeated();
            self.counters.messages_repeated.one();
            if session.is_undecided(packet_id) && session.owe_again(packet_id).is_some() {
                return;
            }
            let receipt = session.owe(packet_id, QoS::ExactlyOnce);
            if session.wants_tap_again(packet_id) {
                return self.tap_again(session_id, receipt, packet_id, publish);
            }
            return self.decide(session_id, receipt, ReasonCode::Success);
        }
        let receipt = match publish.packet_id {
            Some(packet_id) => session.owe(packet_id, publish.qos),
            None => Receipt::NONE,
        };
        let Some(identity) = session.identity.clone() else {
            return;
        };
        let hash = session.hash;
        if let Some(reason) = self.exchange.too_deep(&publish.topic) {
            if receipt == Receipt::NONE {
                self.counters.dropped_topic_levels.one();
            }
            return self.decide(session_id, receipt, reason);
        }
        if self.exchange.hooks.may_publish(&identity, &publish.topic) == Decision::Deny {
            self.counters.dropped_unauthorized.one();
            if tenant.denials == Denials::Unseen {
                tenant.denials = Denials::Logged;
                tracing::warn!(
                    event = "client.publish_denied",
                    client = %identity.client_id,
                    principal = %identity.principal,
                    group = identity.group.as_deref(),
                    peer = %tenant.origin.peer,
                    listener = %tenant.origin.listener,
                    topic = %publish.topic,
                    "further ones of this connection are only counted",
                );
            }
            return self.decide(session_id, receipt, ReasonCode::NotAuthorized);
        }
        if publish.qos == QoS::ExactlyOnce && session.memory.fits(RECEIVED) == Fits::No {
            self.counters.dropped_store_full.one();
            return self.decide(session_id, receipt, ReasonCode::QuotaExceeded);
        }
        let tapped = self.tap(&identity, (session_id, receipt), publish);
        let refused = match tapped {
            Tapped::Refused(reason) => Some(reason),
            // Taken, and failed at once.
            Tapped::Done(reason) if reason.is_error() => Some(reason),
            _ => None,
        };
        if let Some(reason) = refused {
            if receipt == Receipt::NONE {
                self.counters.dropped_tap_refused.one();
            }
            return self.decide(session_id, receipt, reason);
        }
        if let Tapped::Pending = tapped
            && let Some(session) = self.sessions.get(session_id)
        {
            session.owed.expect_one_more(receipt);
        }
        let before = (self.storing.number(), self.storing.batch.len());
        if let (QoS::ExactlyOnce, Some(packet_id)) = (publish.qos, publish.packet_id) {
            let settled = match tapped {
                Tapped::Pending => format::Tapped::Unsettled,
                _ => format::Tapped::Settled,
            };
            self.with_session(session_id, |session, _, cx| {
                session.receive(packet_id, receipt, settled, cx);
            });
        }
        let publisher = Publisher {
            session: Some(session_id),
            hash,
        };
        let outcome = match (self.distribute(publish, publisher), &tapped) {
            (Err(error), _) => {
                self.counters.dropped_store_full.one();
                tracing::warn!(
                    event = "publish.not_retained",
                    client = %identity.client_id,
                    topic = %publish.topic,
                    %error,
                );
                ReasonCode::QuotaExceeded
            }
            (_, Tapped::Done(outcome)) => *outcome,
            (Ok(routed), Tapped::NotWanted) if routed.receivers == 0 && !publish.retain => {
                match routed.refused {
                    0 => {
                        self.counters.messages_unmatched.one();
                        ReasonCode::NoMatchingSubscribers
                    }
                    _ => ReasonCode::QuotaExceeded,
                }
            }
            (Ok(_), _) => ReasonCode::Success,
        };
        if receipt == Receipt::NONE {
            return;
        }
        if outcome.is_error()
            && let (QoS::ExactlyOnce, Some(packet_id)) = (publish.qos, publish.packet_id)
            && let Some(session) = self.sessions.get(session_id)
        {
            // Nobody has it, so it was not received, whatever happens before that is said.
            session.forget_received(packet_id, &mut self.storing.batch);
        }
        // An error promises nothing that the store would have to keep.
        let unchanged = (self.storing.number(), self.storing.batch.len()) == before;
        if unchanged || (outcome.is_error() && self.storing.number() == before.0) {
            return self.decide(session_id, receipt, outcome);
        }
        let early = match publish.qos {
            QoS::ExactlyOnce => planted!(self.exchange, PubRecBeforeDurable),
            _ => planted!(self.exchange, PubAckBeforeDurable),
        };
        if early {
            return self.decide(session_id, receipt, outcome);
        }
        self.storing
            .deferred
            .push(Deferred::Decide(session_id, receipt, outcome));
        if planted!(self.exchange, DeliveryInLaterBatch) {
            self.submit_deliveries_later();
        }
    }

    /// A QoS 2 message came again of which it is not known whether the tap has its copy. Its receivers
    /// have theirs.
    fn tap_again(
        &mut self,
        id: SessionId,
        receipt: Receipt,
        packet_id: PacketId,
        publish: &Publish,
    ) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        session.undecided_again(packet_id, receipt);
        let Some(identity) = session.identity.clone() else {
            return;
        };
        match self.tap(&identity, (id, receipt), publish) {
            Tapped::Pending => {}
            Tapped::NotWanted => self.durable(id, receipt, Ok(())),
            Tapped::Done(reason) | Tapped::Refused(reason) => {
                let outcome = match reason.is_error() {
                    true => Err(reason),
                    false => Ok(()),
                };
                self.durable(id, receipt, outcome);
            }
        }
    }

    /// Submits what there is to be stored but deliveries: a planted defect.
    fn submit_deliveries_later(&mut self) {
        use super::format::Record;
        let mut later = journal::Batch::default();
        let mut now = journal::Batch::default();
        for operation in self.storing.batch.operations() {
            match operation {
                journal::Operation::Put(id, bytes) => match Record::read(bytes) {
                    Ok(Record::Delivery(_)) => later.put(id, bytes),
                    _ => now.put(id, bytes),
                },
                journal::Operation::Delete(id) => now.delete(id),
            }
        }
        self.storing.batch = now;
        self.submit();
        self.storing.batch = later;
    }

    /// Hands a message to its receivers, and keeps it for its topic if it is to be retained.
    pub(super) fn distribute(
        &mut self,
        publish: &mut Publish,
        publisher: Publisher,
    ) -> Result<Routed, RetainError> {
        if !publish.retain {
            return Ok(self.route(publish, publisher, None));
        }
        let exchange = Arc::clone(&self.exchange);
        // Held until the records are submitted: their order is the order of the messages. And taken
        // before receivers are looked up: who subscribes at this moment misses nothing.
        let mut retained = exchange.retained_mut();
        let kept = retained.set(
            &exchange,
            publish,
            Lasting::OverRestarts,
            self.now,
            &mut self.storing.batch,
            &mut self.storing.held,
        )?;
        let routed = self.route(publish, publisher, kept.as_ref());
        if self.storing.batch.is_empty() {
            // Cleared a moment ago, perhaps by another shard: that must be in the store before this is
            // acknowledged.
            self.wait_for_all();
        }
        self.submit();
        Ok(routed)
    }

    fn route(
        &mut self,
        publish: &mut Publish,
        publisher: Publisher,
        kept: Option<&Arc<super::message::Message>>,
    ) -> Routed {
        let mut posts = std::mem::take(&mut self.spare_posts);
        let routed = self.fanout.route(
            &self.exchange,
            publish,
            publisher,
            kept,
            self.now,
            &self.counters,
            &mut self.storing.batch,
            &mut self.storing.held,
            &mut self.parked,
            &mut posts,
        );
        for session in self.fanout.full() {
            self.exchange
                .mailbox(session.shard())
                .post(super::mailbox::Mail::QueueFull(session));
        }
        for post in posts.drain(..) {
            self.offer(post);
        }
        self.spare_posts = posts;
        routed
    }

    /// Offers a message to the tap.
    pub(super) fn tap(
        &mut self,
        identity: &Identity,
        (session, receipt): (SessionId, Receipt),
        publish: &Publish,
    ) -> Tapped {
        let done = Acknowledge::new(Arc::clone(&self.mailbox), session, receipt);
        let (answer, said) = acknowledge::while_tapping(session, receipt, || {
            self.exchange
                .hooks
                .tap(identity, publish, self.now.wall_us, done)
        });
        match (answer, said) {
            (Tap::NotWanted, _) => Tapped::NotWanted,
            (Tap::Refused(reason), _) => Tapped::Refused(failure(reason)),
            (Tap::Taken, said) => {
                self.counters.tap_taken.one();
                match said {
                    None => Tapped::Pending,
                    Some(Ok(())) => Tapped::Done(ReasonCode::Success),
                    Some(Err(reason)) => {
                        self.counters.tap_failed.one();
                        Tapped::Done(failure(reason))
                    }
                }
            }
        }
    }

    /// The tap's copy of a message is durable, or will never be.
    pub(super) fn durable(
        &mut self,
        id: SessionId,
        receipt: Receipt,
        outcome: Result<(), ReasonCode>,
    ) {
        if outcome.is_err() {
            self.counters.tap_failed.one();
        }
        let reason = match outcome {
            Ok(()) => ReasonCode::Success,
            Err(reason) => failure(reason),
        };
        if !reason.is_error()
            && let Some(session) = self.sessions.get(id)
            && let Some((packet_id, QoS::ExactlyOnce)) = session.owed.packet(receipt)
            && session.tapped(packet_id, receipt, &mut self.storing.batch) == Known::Stored
        {
            // Or it would be offered to the tap again after a crash, and be there twice.
            self.storing
                .deferred
                .push(Deferred::Decide(id, receipt, reason));
            return;
        }
        self.decide(id, receipt, reason);
    }

    /// One of the outcomes that the answer to a message waits for.
    pub(super) fn decide(&mut self, id: SessionId, receipt: Receipt, outcome: ReasonCode) {
        if receipt == Receipt::NONE {
            return;
        }
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        if outcome.is_error()
            && let Some((packet_id, QoS::ExactlyOnce)) = session.owed.packet(receipt)
            && session.refuse_received(packet_id, receipt, &mut self.storing.batch) == Known::Stored
        {
            // The client may use the identifier again once it hears of this: not before the store
            // has forgotten it, or that next message would be taken for this one.
            self.storing
                .deferred
                .push(Deferred::Decide(id, receipt, outcome));
            return;
        }
        session.owed.decide(receipt, outcome);
        self.answer(id);
    }

    /// Sends the answers that may leave.
    fn answer(&mut self, id: SessionId) {
        while let Some(session) = self.sessions.get(id)
            && let Some(due) = session.next_due()
        {
            if due.qos == QoS::ExactlyOnce && !due.outcome.is_error() {
                session.taken(due.packet_id);
            }
            let connection = match due.listener {
                Listener::Present => session.online(),
                Listener::Gone => None,
            };
            let Some(connection) = connection else {
                continue;
            };
            let Some(tenant) = self.tenants.get(connection) else {
                continue;
            };
            let version = tenant.connection.version();
            if due.outcome.is_error() && version == Version::V311 {
                // MQTT 3.1.1 cannot say no: close instead [MQTT-3.3.5-2]. The client will send the
                // message again when it is back.
                self.step(connection, |connection, _, _, out| {
                    connection.close(due.outcome, "a message was not accepted", out);
                });
                continue;
            }
            let explanation = match tenant.connection.problem_information() {
                ProblemInformation::Wanted => explanation(due.outcome),
                ProblemInformation::Unwanted => None,
            };
            let (packet, last) = match due.qos {
                QoS::ExactlyOnce => {
                    let reason = fitting(due.outcome, PacketType::PubRec);
                    let mut answer = PubRec::new(due.packet_id, reason);
                    answer.properties.reason_string = explanation;
                    let last = match reason.is_error() {
                        true => LastWord::Yes,
                        false => LastWord::No,
                    };
                    (answer.into(), last)
                }
                _ => {
                    let reason = fitting(due.outcome, PacketType::PubAck);
                    let mut answer = PubAck::new(due.packet_id, reason);
                    answer.properties.reason_string = explanation;
                    (answer.into(), LastWord::Yes)
                }
            };
            tenant.connection.answered(last);
            self.send(connection, &packet);
        }
        if self.state == State::Closing
            && let Some(session) = self.sessions.get(id)
            && session.owed.is_settled()
            && let Some(connection) = session.online()
        {
            self.drain(connection);
        }
    }

    /// PUBREL came.
    pub(super) fn released(&mut self, id: ConnectionId, packet_id: PacketId) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        tenant.connection.answered(LastWord::Completes);
        let Some(session) = tenant.session.and_then(|id| self.sessions.get(id)) else {
            return;
        };
        let stored = session.is_stored();
        session.forget_received(packet_id, &mut self.storing.batch);
        // One that is not known was released before, and the answer did not get through: the client
        // asks again, and that is no error.
        self.once_stored(stored, Deferred::Send(id, Answer::Complete(packet_id)));
    }

    /// PUBREC came.
    pub(super) fn delivered(&mut self, id: ConnectionId, packet_id: PacketId, reason: ReasonCode) {
        let mut answer = None;
        self.with_outbox(id, |session, outbox, cx| {
            answer = session.delivered(packet_id, reason, outbox, cx);
        });
        let Some(mut reason) = answer else {
            return;
        };
        let version = self.tenants.get(id).map(|t| t.connection.version());
        if version == Some(Version::V311) {
            reason = ReasonCode::Success;
        }
        self.send(id, &PubRel::new(packet_id, reason).into());
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

fn fitting(reason: ReasonCode, packet: PacketType) -> ReasonCode {
    match reason.fits(packet) {
        true => reason,
        false => ReasonCode::ImplementationSpecificError,
    }
}

/// What to do about a refusal, for whoever reads the client's log.
fn explanation(reason: ReasonCode) -> Option<Utf8> {
    let text = match reason {
        ReasonCode::NotAuthorized => "this client may not publish to this topic",
        ReasonCode::QuotaExceeded => "a queue or the store is full; publish more slowly, or later",
        ReasonCode::TopicNameInvalid => "this is not a topic that is kept here",
        ReasonCode::PacketTooLarge => "the message is larger than what is kept here",
        ReasonCode::ServerShuttingDown => "the server stops; publish again when it is back",
        _ => return None,
    };
    Some(Utf8::from_static(text))
}

/// The same answer without reason string and user properties, if it has any [MQTT-3.4.2-2].
pub(super) fn without_explanation(packet: &Packet) -> Option<Packet> {
    let mut packet = packet.clone();
    let (reason_string, user_properties) = match &mut packet {
        Packet::ConnAck(p) => (
            &mut p.properties.reason_string,
            &mut p.properties.user_properties,
        ),
        Packet::PubAck(p) => (
            &mut p.properties.reason_string,
            &mut p.properties.user_properties,
        ),
        Packet::PubRec(p) => (
            &mut p.properties.reason_string,
            &mut p.properties.user_properties,
        ),
        Packet::SubAck(p) => (
            &mut p.properties.reason_string,
            &mut p.properties.user_properties,
        ),
        Packet::UnsubAck(p) => (
            &mut p.properties.reason_string,
            &mut p.properties.user_properties,
        ),
        Packet::Disconnect(p) => (
            &mut p.properties.reason_string,
            &mut p.properties.user_properties,
        ),
        _ => return None,
    };
    if reason_string.is_none() && user_properties.is_empty() {
        return None;
    }
    *reason_string = None;
    user_properties.clear();
    Some(packet)
}
