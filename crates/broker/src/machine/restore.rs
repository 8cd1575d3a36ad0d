//! What the store has, made sessions again.
//!
//! Records come in any order, each once; they are put together when all are there. What belongs to
//! nobody any more (a crash fell between two batches) is deleted. A session that was connected counts as
//! disconnected at this moment, and so does its will.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use journal::{Batch, RecordId};
use mqtt::{Publish, QoS, Version};

use super::Moment;
use super::age;
use super::delivery::{Access, Delivery, Recorded};
use super::exchange::{Exchange, Kept};
use super::format::{
    DeliveryRecord, FormatError, InboundRecord, Owner, Record, RetainedOwed, RetainedRecord,
    SessionRecord, Stage, SubscriptionRecord,
};
use super::frame::SubscriptionIds;
use super::message::{Claim, Message};
use super::retained::Walk;
use super::session::{Held, Session, Will};
use super::shard::{LARGE_BATCH, Shard};
use super::share::Presence;
use super::slots::SessionId;
use super::subscriber::Subscriber;
use super::subscribing::{RetainedWalk, Round, place};
use crate::admission::account::Holding;
use crate::recovery::Recovery;

/// Records as they come.
pub(crate) struct Loading {
    exchange: Arc<Exchange>,
    now: Moment,
    last: RecordId,
    sessions: Vec<(RecordId, SessionRecord)>,
    subscriptions: Vec<(RecordId, SubscriptionRecord)>,
    messages: HashMap<RecordId, Arc<Message>>,
    deliveries: Vec<(RecordId, DeliveryRecord)>,
    inbound: Vec<(RecordId, InboundRecord)>,
    retained: Vec<(RecordId, RetainedRecord)>,
}

/// A record that stops the start: going on without it would lose what it holds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("record {}", record.0)]
    Format {
        record: RecordId,
        source: FormatError,
    },
    #[error("the message in record {} cannot be read", record.0)]
    Message {
        record: RecordId,
        source: mqtt::DecodeError,
    },
    #[error("more sessions than a worker can hold")]
    Full,
}

impl Loading {
    pub(crate) fn new(exchange: &Arc<Exchange>, now: Moment) -> Loading {
        Loading {
            exchange: Arc::clone(exchange),
            now,
            last: RecordId(0),
            sessions: Vec::new(),
            subscriptions: Vec::new(),
            messages: HashMap::new(),
            deliveries: Vec::new(),
            inbound: Vec::new(),
            retained: Vec::new(),
        }
    }

    /// Takes a record.
    pub(crate) fn take(&mut self, id: RecordId, bytes: &[u8]) -> Result<(), LoadError> {
        self.last = self.last.max(id);
        let record =
            Record::read(bytes).map_err(|source| LoadError::Format { record: id, source })?;
        match record {
            Record::Session(session) => self.sessions.push((id, session)),
            Record::Subscription(subscription) => self.subscriptions.push((id, subscription)),
            Record::Delivery(delivery) => self.deliveries.push((id, delivery)),
            Record::Inbound(inbound) => self.inbound.push((id, inbound)),
            Record::Retained(retained) => self.retained.push((id, retained)),
            Record::Sequence(sequence) => {
                self.exchange.sequence.begin_above(sequence.below, id);
            }
            Record::Message(message) => {
                let age = age::since(message.received_us, self.now);
                let since = self.now.tick as i64 - age as i64;
                let trash = &self.exchange.trash;
                let message = Message::restored(id, message.body, since, trash)
                    .map_err(|source| LoadError::Message { record: id, source })?;
                self.messages.insert(id, message);
            }
        }
        Ok(())
    }

    /// Makes the shards, with everything that was taken in them.
    pub(crate) fn finish(mut self) -> Result<(Vec<Shard>, Recovery), LoadError> {
        self.exchange.records_used(self.last);
        let mut shards: Vec<Shard> = (0..self.exchange.shards())
            .map(|number| Shard::new(number, Arc::clone(&self.exchange), self.now))
            .collect();
        let mut recovery = Recovery {
            messages: self.messages.len() as u64,
            message_bytes: self.messages.values().map(|m| m.len() as u64).sum(),
            ..Recovery::default()
        };
        let mut batch = Batch::default();
        let mut sessions = HashMap::with_capacity(self.sessions.len());
        self.sessions.sort_unstable_by_key(|(id, _)| *id);
        for (record, session) in std::mem::take(&mut self.sessions) {
            let id = self.session(record, session, &mut shards, &mut recovery, &mut batch)?;
            // Each may have a will, and all of them together more than a batch takes.
            if batch.bytes() > LARGE_BATCH {
                self.exchange.submit(&mut batch);
            }
            sessions.insert(record, id);
        }
        self.subscriptions.sort_unstable_by_key(|(id, _)| *id);
        for (record, subscription) in std::mem::take(&mut self.subscriptions) {
            match sessions.get(&subscription.session) {
                Some(id) => {
                    recovery.subscriptions += 1;
                    self.subscription(record, subscription, *id, &mut shards);
                }
                None => batch.delete(record),
            }
        }
        self.inbound.sort_unstable_by_key(|(id, _)| *id);
        for (record, inbound) in std::mem::take(&mut self.inbound) {
            let session = sessions.get(&inbound.session).copied();
            match session.and_then(|id| shards[id.shard()].sessions.get(id)) {
                Some(session) => {
                    session.restore_received(inbound.packet_id, inbound.tapped, record);
                }
                None => batch.delete(record),
            }
        }
        self.deliveries.sort_unstable_by_key(|(id, _)| *id);
        for (record, delivery) in std::mem::take(&mut self.deliveries) {
            if self.delivery(record, delivery, &sessions, &mut shards, &mut batch) {
                recovery.deliveries += 1;
            } else {
                batch.delete(record);
            }
        }
        self.retained.sort_unstable_by_key(|(id, _)| *id);
        for (record, retained) in std::mem::take(&mut self.retained) {
            self.keep(record, retained, &mut batch);
        }
        recovery.retained = self.exchange.retained().topics.len() as u64;
        // Messages that nobody refers to go now.
        self.messages.clear();
        for shard in &mut shards {
            shard.look_after_all();
        }
        self.exchange.submit(&mut batch);
        Ok((shards, recovery))
    }

    fn session(
        &self,
        record: RecordId,
        stored: SessionRecord,
        shards: &mut [Shard],
        recovery: &mut Recovery,
        batch: &mut Batch,
    ) -> Result<SessionId, LoadError> {
        let shard = &mut shards[self.exchange.home(&stored.client_id)];
        let id = shard
            .sessions
            .next_id(shard.number)
            .ok_or(LoadError::Full)?;
        let account = &self.exchange.admission.session_memory;
        let memory = Holding::none(account);
        let mut session = Session::new(id, record, stored.client_id, stored.principal, memory);
        session.expiry = stored.expiry;
        session.curtailed = stored.curtailed;
        let was_connected = stored.disconnected_us.is_none();
        let since_us = stored.disconnected_us.unwrap_or(self.now.wall_us);
        session.disconnected_us = Some(since_us);
        let away = age::since(since_us, self.now);
        let at = |seconds: u32| self.now.tick + (u64::from(seconds) * 1000).saturating_sub(away);
        session.ends_at = (stored.expiry != u32::MAX).then(|| at(stored.expiry));
        session.will = match stored.will {
            None => None,
            Some(will) => {
                let publish = Publish::kept(&will.body)
                    .map_err(|source| LoadError::Message { record, source })?;
                session.will_at = Some(at(will.delay.min(stored.expiry)));
                Some(Will::new(will.delay, publish, account))
            }
        };
        if was_connected {
            session.put(batch);
        }
        match session.ends_at {
            Some(at) if at <= self.now.tick => recovery.expired_sessions += 1,
            _ => recovery.sessions += 1,
        }
        shard.move_in(session).ok_or(LoadError::Full)
    }

    fn subscription(
        &self,
        record: RecordId,
        stored: SubscriptionRecord,
        id: SessionId,
        shards: &mut [Shard],
    ) {
        let Some(session) = shards[id.shard()].sessions.get(id) else {
            return;
        };
        let subscriber = Subscriber {
            to: id,
            session: stored.session,
            id: stored.id,
            granted: stored.granted,
            // What it will speak next is known when it does.
            version: Version::V5,
            own: stored.own,
            retain: stored.retain,
        };
        let share = place(&self.exchange, &stored.filter, subscriber, Presence::Away);
        if stored.retained == RetainedOwed::Yes {
            session.walks.push_back(RetainedWalk {
                walk: Walk::new(&stored.filter),
                subscriber,
                over: false,
                found: VecDeque::new(),
                record,
                round: Round::Again,
            });
        }
        session.subscribed(stored.filter, Held { record, share });
    }

    /// Says whether it is still somebody's.
    fn delivery(
        &self,
        record: RecordId,
        stored: DeliveryRecord,
        sessions: &HashMap<RecordId, SessionId>,
        shards: &mut [Shard],
        batch: &mut Batch,
    ) -> bool {
        let message = self.messages.get(&stored.message).cloned();
        let mut stage = stored.stage;
        match (stage, &message) {
            (_, Some(_)) | (Stage::Released(_), None) => {}
            // The message goes when all its receivers have it: this one did. At QoS 2 it must still
            // let go of the identifier.
            (Stage::Sent(packet_id), None) if stored.qos == QoS::ExactlyOnce => {
                stage = Stage::Released(packet_id);
            }
            (Stage::Sent(_) | Stage::Waiting, None) => return false,
        }
        let share = match &stored.share {
            None => None,
            Some(filter) => self.exchange.subscriptions().existing_share(filter),
        };
        let mut delivery = Delivery {
            record,
            message,
            claim: Some(Claim::new(&self.exchange.trash)),
            qos: stored.qos,
            retain: stored.retain,
            ids: stored.ids,
            share,
            access: Access::Check,
            recorded: Recorded::Waiting,
            ..Delivery::empty()
        };
        let owner = match stored.owner {
            Owner::Session(owner) => sessions.get(&owner).copied(),
            Owner::Share => None,
        };
        match owner {
            Some(id) => {
                let Some(session) = shards[id.shard()].sessions.get(id) else {
                    return false;
                };
                let bytes = delivery.len();
                let gauge = self.exchange.gauge(id);
                gauge.add(bytes);
                delivery.count_in(gauge, bytes);
                if stage != Stage::Waiting {
                    delivery.waits_no_more(gauge);
                }
                if stage != stored.stage {
                    delivery.put(stored.owner, stage, batch);
                }
                session.restore(delivery, stage);
                true
            }
            // Of the share, or of a member whose session ended: then another one gets it, unless that
            // one was sent it at QoS 2 [MQTT-4.8.2-5].
            None => {
                let bound = stored.qos == QoS::ExactlyOnce && stage != Stage::Waiting;
                let (Some(share), Some(message)) =
                    (delivery.share.clone(), delivery.message.clone())
                else {
                    return false;
                };
                let mut group = share.group();
                if bound || !group.can_wait() {
                    return false;
                }
                if stored.owner != Owner::Share {
                    delivery.qos = message.qos;
                    delivery.retain = false;
                    delivery.ids = SubscriptionIds::None;
                    delivery.put_waiting(Owner::Share, batch);
                }
                share.park(&mut group, delivery);
                true
            }
        }
    }

    fn keep(&self, record: RecordId, stored: RetainedRecord, batch: &mut Batch) {
        let Some(message) = self.messages.get(&stored.message) else {
            return batch.delete(record);
        };
        let kept = Kept {
            record,
            message: Arc::clone(message),
        };
        let topic = message.publish().topic;
        // In the order of their ids: the later one counts.
        let old = self.exchange.retained_mut().restore(&topic, kept);
        if let Some(old) = old {
            batch.delete(old.record);
        }
    }
}
