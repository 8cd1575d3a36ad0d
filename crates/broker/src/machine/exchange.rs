//! What all shards share: subscriptions, retained messages, the store, each other's mailboxes.
//!
//! Locks are held for a lookup or an insertion, never while encoding or delivery run; with one
//! exception: publishing a message with RETAIN holds the lock of the retained messages until its
//! records are submitted, so that their order in the store is their order here.
//!
//! Order of locks: retained, then subscriptions, then a share. The registry's is held alone.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use journal::{Batch, Condition, Position, RecordId};
use mqtt::{Publish, ReasonCode};

use super::admitting::Search;
use super::departed::PIECE;
use super::fanout::{Fanout, Publisher};
use super::filter_index::{FilterIndex, Matches};
use super::format::RetainedRecord;
use super::gauge::{Gauge, Gauges};
use super::mailbox::{Mail, Mailbox, Order, Post};
use super::message::{Message, Trash};
use super::planted::planted;
use super::registry::Registry;
use super::retained::Retained;
use super::sequence::Sequence;
use super::share::Group;
use super::slots::SessionId;
use super::store::Store;
use super::subscriber::{Subscriber, TRANSIENT};
use super::{Moment, delivery::Delivery};
use crate::admission::Admission;
use crate::admission::bans::Ban;
use crate::hooks::Hooks;
use crate::limits::{Limits, Retain};
use crate::stats::{Counters, Stats};

/// The middle of the broker.
pub(crate) struct Exchange {
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) limits: Limits,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) trash: Arc<Trash>,
    subscriptions: RwLock<Subscriptions>,
    /// Whether somebody has shared a subscription since the start: most brokers need not look.
    shares: AtomicBool,
    retained: RwLock<RetainedMessages>,
    registry: Mutex<Registry>,
    /// One for each shard.
    mailboxes: Vec<Arc<Mailbox>>,
    /// One for each shard.
    gauges: Vec<Gauges>,
    /// One for each shard, and one for everybody else.
    counters: Vec<Arc<Counters>>,
    /// Sessions, connected or not.
    pub(crate) sessions: AtomicUsize,
    /// Those of them that are stored.
    pub(crate) stored_sessions: AtomicUsize,
    /// Decides which shard a client's session lives on; different in each run, so that nobody can
    /// choose client identifiers that all live on one.
    seed: u64,
    /// Makes assigned client identifiers differ from those of earlier runs.
    started_us: i64,
    assigned: AtomicU64,
    /// The next record id.
    records: AtomicU64,
    /// Of presence events.
    pub(crate) sequence: Sequence,
    /// Traces that are running.
    pub(crate) traces: AtomicUsize,
    /// Who is let in, and how much of what.
    pub(crate) admission: Admission,
    /// See [`departed`](super::departed).
    pub(crate) departed_per_turn: usize,
    /// A defect to be found by the simulation.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fault: Option<crate::simulation::Fault>,
}

/// Who gets what.
#[derive(Default)]
pub(crate) struct Subscriptions {
    /// Each session for itself.
    pub(crate) own: FilterIndex,
    /// Shared ones: "session" is the place of the share in `shares`.
    pub(crate) shared: FilterIndex,
    shares: Vec<Option<Arc<Share>>>,
    free: Vec<u32>,
    by_filter: std::collections::HashMap<Arc<str>, u32>,
}

/// The members of a share, and what waits for one.
pub(crate) type ShareGroup = Group<SessionId, Subscriber, Delivery>;

/// One shared subscription.
pub(crate) struct Share {
    /// `$share/name/filter`.
    filter: Arc<str>,
    group: Mutex<Group<SessionId, Subscriber, Delivery>>,
    /// Bytes that wait in the group.
    waiting_bytes: AtomicUsize,
    /// The second in which what has expired there was last looked for.
    purged: AtomicU64,
}

/// A delivery that is to wait in its share once the store has it: another shard may take it from there
/// at once, and what it writes about it must come later.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) share: Arc<Share>,
    pub(crate) delivery: Delivery,
}

/// Topics looked at in one sweep for expired messages, once a second; a million takes a quarter of an
/// hour. Until then nobody gets them, they only take room.
const SWEPT: usize = 1000;

/// The retained messages, by topic.
#[derive(Default)]
pub(crate) struct RetainedMessages {
    pub(crate) topics: Retained<Kept>,
    bytes: usize,
}

/// What became of a message that the program itself published.
#[derive(Debug)]
pub(crate) struct Published {
    /// Those who get it.
    pub(crate) receivers: usize,
    /// Those who have no room for it.
    pub(crate) refused: usize,
    /// Where it is in the store, if somebody it is kept for was among them.
    pub(crate) position: Option<Position>,
}

/// A retained message.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// [`TRANSIENT`] if it is not stored.
    pub(crate) record: RecordId,
    pub(crate) message: Arc<Message>,
}

/// How long a retained message lasts, if nothing replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// It is in the store.
    OverRestarts,
    /// In memory alone.
    ThisRun,
}

impl Lasting {
    /// Of what the program itself publishes: figures below `$SYS/` say something of this run, and come
    /// anew so often that an idle broker would write nothing else.
    fn of_own(topic: &str) -> Lasting {
        match topic.starts_with("$SYS/") {
            true => Lasting::ThisRun,
            false => Lasting::OverRestarts,
        }
    }
}

impl Kept {
    /// Takes its record out of the store.
    fn forget(&self, batch: &mut Batch) {
        if self.record != TRANSIENT {
            batch.delete(self.record);
        }
    }
}

impl Exchange {
    pub(crate) fn new(
        hooks: Arc<dyn Hooks>,
        limits: Limits,
        shards: usize,
        now: Moment,
        seed: u64,
        store: Arc<dyn Store>,
    ) -> Exchange {
        Exchange {
            admission: Admission::new(&limits, shards, seed),
            hooks,
            limits,
            store,
            trash: Arc::default(),
            subscriptions: RwLock::default(),
            shares: AtomicBool::new(false),
            retained: RwLock::default(),
            registry: Mutex::default(),
            mailboxes: (0..shards).map(|_| Arc::default()).collect(),
            gauges: (0..shards).map(|_| Gauges::default()).collect(),
            counters: (0..=shards).map(|_| Arc::default()).collect(),
            sessions: AtomicUsize::new(0),
            stored_sessions: AtomicUsize::new(0),
            seed,
            started_us: now.wall_us,
            assigned: AtomicU64::new(1),
            records: AtomicU64::new(1),
            sequence: Sequence::starting_at(now.wall_us),
            traces: AtomicUsize::new(0),
            departed_per_turn: PIECE,
            #[cfg(any(test, feature = "simulation"))]
            fault: None,
        }
    }

    pub(crate) fn shards(&self) -> usize {
        self.mailboxes.len()
    }

    /// The shard on which the session of a client lives.
    pub(crate) fn home(&self, client_id: &str) -> usize {
        (hash(self.seed, client_id.as_bytes()) % self.shards() as u64) as usize
    }

    pub(crate) fn mailbox(&self, shard: usize) -> &Arc<Mailbox> {
        &self.mailboxes[shard]
    }

    pub(crate) fn gauge(&self, session: SessionId) -> &Gauge {
        self.gauges[session.shard()].of(session)
    }

    pub(crate) fn counters(&self, shard: usize) -> &Arc<Counters> {
        &self.counters[shard]
    }

    /// Counters of what happens outside of the shards.
    pub(crate) fn outside_counters(&self) -> &Counters {
        &self.counters[self.mailboxes.len()]
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        // Its methods leave it consistent wherever they could panic.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there ever was a shared subscription.
    pub(crate) fn has_shares(&self) -> bool {
        self.shares.load(Ordering::Relaxed)
    }

    /// There is a shared subscription.
    pub(crate) fn shared(&self) {
        self.shares.store(true, Ordering::Relaxed);
    }

    pub(crate) fn subscriptions(&self) -> RwLockReadGuard<'_, Subscriptions> {
        self.subscriptions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscriptions_mut(&self) -> RwLockWriteGuard<'_, Subscriptions> {
        self.subscriptions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn retained(&self) -> RwLockReadGuard<'_, RetainedMessages> {
        self.retained.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn retained_mut(&self) -> RwLockWriteGuard<'_, RetainedMessages> {
        self.retained
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A record id that was never used.
    pub(crate) fn next_record(&self) -> RecordId {
        RecordId(self.records.fetch_add(1, Ordering::Relaxed))
    }

    /// Record ids up to this one are in use.
    pub(crate) fn records_used(&self, last: RecordId) {
        self.records.fetch_max(last.0 + 1, Ordering::Relaxed);
    }

    /// Whether the store takes new messages on.
    pub(crate) fn takes_messages(&self, bytes: usize) -> bool {
        self.store.condition() != Condition::Stalled
            && self.trash.memory() + bytes <= self.limits.max_stored_bytes
    }

    /// Whether one more delivery of a message that is kept may wait.
    pub(crate) fn takes_deliveries(&self) -> bool {
        self.trash.memory() <= self.limits.max_stored_bytes
    }

    /// Whether a member of a shared subscription has room for one more message.
    pub(crate) fn has_room(&self, member: SessionId, bytes: usize) -> bool {
        let gauge = self.gauge(member);
        (gauge.messages() as usize) < self.limits.max_queued
            && gauge.bytes() + bytes <= self.limits.max_queued_bytes
    }

    /// Submits a batch, together with the end of records that nobody refers to any more.
    pub(crate) fn submit(&self, batch: &mut Batch) -> Position {
        self.trash.empty(|record| batch.delete(record));
        self.store.submit(std::mem::take(batch))
    }

    pub(crate) fn post_to_all(&self, mail: impl Fn() -> Mail) {
        for mailbox in &self.mailboxes {
            mailbox.post(mail());
        }
    }

    /// Whether more waits to be written than may.
    pub(crate) fn is_store_full(&self) -> bool {
        self.store.is_full()
    }

    /// Whether some shard, or the store, is so far behind that publishers should pause.
    pub(crate) fn is_congested(&self) -> bool {
        self.store.is_full()
            || self
                .mailboxes
                .iter()
                .any(|mailbox| mailbox.is_congested(self.limits.max_handover))
    }

    /// A client identifier for a client that left it to us [MQTT-3.1.3-6].
    pub(crate) fn assign_client_id(&self) -> String {
        let number = self.assigned.fetch_add(1, Ordering::Relaxed);
        // With the seed: a clock that was set back may say the same twice.
        let run = hash(self.seed, &self.started_us.to_le_bytes());
        format!("auto-{run:x}-{number:x}")
    }

    /// See [`BrokerHandle::disconnect_principal`](crate::BrokerHandle::disconnect_principal).
    pub(crate) fn disconnect_principal(&self, principal: &str, reason: ReasonCode) -> usize {
        let connections = self.registry().begin_epoch(principal);
        let principal: Arc<str> = principal.into();
        self.post_to_all(|| {
            Mail::Principal(Some(Arc::clone(&principal)), Order::Disconnect(reason))
        });
        connections
    }

    /// See [`BrokerHandle::access_changed`](crate::BrokerHandle::access_changed).
    pub(crate) fn access_changed(&self, principal: &str) {
        self.registry().begin_epoch(principal);
        let principal: Arc<str> = principal.into();
        self.post_to_all(|| Mail::Principal(Some(Arc::clone(&principal)), Order::CheckAccess));
    }

    /// See [`BrokerHandle::access_changed_for_all`](crate::BrokerHandle::access_changed_for_all).
    pub(crate) fn access_changed_for_all(&self) {
        self.registry().begin_epoch("");
        self.post_to_all(|| Mail::Principal(None, Order::CheckAccess));
    }

    /// The reason to refuse a topic that has too many levels.
    pub(crate) fn too_deep(&self, topic: &str) -> Option<ReasonCode> {
        let most = self.limits.max_topic_levels;
        has_more_levels(topic, most).then_some(ReasonCode::TopicNameInvalid)
    }

    /// Whether a filter, without the name of its share, has too many levels.
    pub(crate) fn is_filter_too_deep(&self, filter: &str) -> bool {
        has_more_levels(filter, self.limits.max_filter_levels)
    }

    /// The reason to refuse a message that is to be retained where none are. Connections look themselves.
    pub(crate) fn refuses_retain(&self, message: &Publish) -> Option<ReasonCode> {
        let refused = message.retain && self.limits.retain == Retain::Unavailable;
        refused.then_some(ReasonCode::RetainNotSupported)
    }

    /// See [`BrokerHandle::set_bans`](crate::BrokerHandle::set_bans).
    pub(crate) fn set_bans(&self, bans: Vec<Ban>, now: Moment) {
        // In force before the shards look who it is about: whoever joins later is refused.
        let bans = Arc::new(self.admission.bans.set(now, bans));
        self.post_to_all(|| {
            let bans = Arc::clone(&bans);
            Mail::Ban(Search { bans, from: 0 })
        });
    }

    /// See [`BrokerHandle::publish`](crate::BrokerHandle::publish).
    pub(crate) fn publish_own(
        &self,
        message: &Publish,
        now: Moment,
    ) -> Result<Published, ReasonCode> {
        self.publish_lasting(message, Lasting::of_own(&message.topic), now)
    }

    /// See [`BrokerHandle::publish_as`](crate::BrokerHandle::publish_as).
    pub(crate) fn publish_from_outside(
        &self,
        message: &Publish,
        now: Moment,
    ) -> Result<Published, ReasonCode> {
        self.publish_lasting(message, Lasting::OverRestarts, now)
    }

    fn publish_lasting(
        &self,
        message: &Publish,
        lasting: Lasting,
        now: Moment,
    ) -> Result<Published, ReasonCode> {
        if let Some(reason) = self.refuses_retain(message) {
            return Err(reason);
        }
        let mut message = message.clone();
        message.dup = false;
        message.packet_id = None;
        message.properties.topic_alias = None;
        let mut batch = Batch::default();
        let (mut held, mut parked) = (Vec::new(), Vec::new());
        // As for a client's message: see `Shard::distribute`.
        let mut retained = message.retain.then(|| self.retained_mut());
        let kept = match &mut retained {
            None => None,
            Some(retained) => {
                match retained.set(self, &message, lasting, now, &mut batch, &mut held) {
                    Ok(kept) => kept,
                    Err(error) => {
                        self.outside_counters().dropped_store_full.one();
                        tracing::warn!(event = "publish.not_retained", topic = %message.topic, %error);
                        return Err(ReasonCode::QuotaExceeded);
                    }
                }
            }
        };
        let mut posts = Vec::new();
        let routed = Fanout::default().route(
            self,
            &mut message,
            Publisher::OUTSIDE,
            kept.as_ref(),
            now,
            self.outside_counters(),
            &mut batch,
            &mut held,
            &mut parked,
            &mut posts,
        );
        let mut mail: Vec<Vec<Post>> = (0..self.shards()).map(|_| Vec::new()).collect();
        for mut post in posts {
            post.delivery.put_waiting(post.owner, &mut batch);
            mail[post.to.shard()].push(post);
        }
        let position = match batch.is_empty() {
            // Clear already, perhaps by what is on its way: see `Shard::wait_for_all`.
            true if message.retain && lasting == Lasting::OverRestarts => {
                Some(self.store.submit(Batch::default()))
            }
            true => None,
            false => Some(self.submit(&mut batch)),
        };
        drop(retained);
        drop(held);
        if !parked.is_empty() {
            self.mailboxes[0].post(Mail::Park(parked));
        }
        for (mailbox, posts) in self.mailboxes.iter().zip(mail) {
            if !posts.is_empty() {
                mailbox.post(Mail::Deliver(posts));
            }
        }
        Ok(Published {
            receivers: routed.receivers,
            refused: routed.refused,
            position,
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.registry().connections()
    }

    pub(crate) fn stats(&self) -> Stats {
        let subscriptions = self.subscriptions().len() as u64;
        let (retained, retained_bytes) = {
            let retained = self.retained();
            (retained.topics.len() as u64, retained.bytes as u64)
        };
        let mut stats = Stats {
            connections: self.connections() as u64,
            subscriptions,
            sessions: self.sessions.load(Ordering::Relaxed) as u64,
            sessions_stored: self.stored_sessions.load(Ordering::Relaxed) as u64,
            retained,
            retained_bytes,
            messages_kept: self.trash.messages(),
            messages_kept_bytes: self.trash.bytes() as u64,
            stored_memory_bytes: self.trash.memory() as u64,
            read_memory_bytes: self.admission.read_memory.used() as u64,
            queue_memory_bytes: self.admission.queue_memory.used() as u64,
            session_memory_bytes: self.admission.session_memory.used() as u64,
            window_memory_bytes: self.admission.window_memory.used() as u64,
            ..Stats::default()
        };
        for counters in &self.counters {
            stats.add(counters);
        }
        stats
    }
}

/// Whether a topic or filter has more than `most` levels.
fn has_more_levels(text: &str, most: usize) -> bool {
    // It has at most one level more than it has bytes: most need no counting.
    // And of one of 65,536 levels only the first are looked at.
    let mut ends = text.bytes().filter(|b| *b == b'/');
    text.len() >= most
        && most
            .checked_sub(1)
            .is_none_or(|last| ends.nth(last).is_some())
}

impl Subscriptions {
    /// Number of subscriptions.
    pub(crate) fn len(&self) -> usize {
        let members: usize = self
            .shares
            .iter()
            .flatten()
            .map(|share| share.group().members())
            .sum();
        self.own.len() + members
    }

    /// The share of a shared subscription (`filter` begins with `$share/`), made if need be. `matching`
    /// is the filter without the share's name.
    pub(crate) fn share(
        &mut self,
        filter: &Arc<str>,
        matching: &str,
        limits: &Limits,
    ) -> Arc<Share> {
        if let Some(place) = self.by_filter.get(filter)
            && let Some(share) = &self.shares[*place as usize]
        {
            return Arc::clone(share);
        }
        let share = Arc::new(Share {
            filter: Arc::clone(filter),
            group: Mutex::new(Group::new(limits.share_strategy)),
            waiting_bytes: AtomicUsize::new(0),
            purged: AtomicU64::new(0),
        });
        let place = self.free.pop().unwrap_or_else(|| {
            self.shares.push(None);
            (self.shares.len() - 1) as u32
        });
        self.shares[place as usize] = Some(Arc::clone(&share));
        self.by_filter.insert(Arc::clone(filter), place);
        self.shared
            .subscribe(&Arc::from(matching), Subscriber::share(place));
        share
    }

    /// The share of a shared subscription, if it has members.
    pub(crate) fn existing_share(&self, filter: &str) -> Option<Arc<Share>> {
        let place = self.by_filter.get(filter)?;
        self.shares.get(*place as usize)?.clone()
    }

    /// Whether there are shared subscriptions at all.
    pub(crate) fn has_shares(&self) -> bool {
        !self.by_filter.is_empty()
    }

    /// Whether a message on `topic` would go to anybody.
    pub(crate) fn has_for(&self, topic: &str) -> bool {
        let mut matches = Matches::default();
        [&self.own, &self.shared].iter().any(|index| {
            index.find(topic, None, &mut matches);
            !matches.is_empty()
        })
    }

    /// The share at a place, as the index of shared filters found it.
    pub(crate) fn share_at(&self, found: Subscriber) -> Option<&Arc<Share>> {
        self.shares.get(found.share_place())?.as_ref()
    }

    /// Forgets a share without members.
    pub(crate) fn drop_share_if_empty(&mut self, share: &Share, matching: &str) {
        if !share.group().is_empty() {
            return;
        }
        if let Some(place) = self.by_filter.remove(&share.filter) {
            self.shares[place as usize] = None;
            self.free.push(place);
            self.shared
                .unsubscribe(matching, Subscriber::share(place).to);
        }
    }
}

impl Drop for Subscriptions {
    /// What waits in a share refers to the share: nothing would ever let go of the two.
    fn drop(&mut self) {
        for share in self.shares.iter().flatten() {
            let mut group = share.group();
            while share.unpark(&mut group).is_some() {}
        }
    }
}

impl Share {
    /// `$share/name/filter`.
    pub(crate) fn filter(&self) -> &Arc<str> {
        &self.filter
    }

    pub(crate) fn group(&self) -> MutexGuard<'_, ShareGroup> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a delivery wait, where its age says.
    pub(crate) fn park(&self, group: &mut ShareGroup, delivery: Delivery) {
        self.waiting_bytes
            .fetch_add(delivery.len(), Ordering::Relaxed);
        group.wait_again(vec![delivery], Delivery::age);
    }

    /// Takes the delivery that has waited longest.
    pub(crate) fn unpark(&self, group: &mut ShareGroup) -> Option<Delivery> {
        self.unpark_first(group, |_| true)
    }

    /// Takes the oldest delivery that is wanted.
    pub(crate) fn unpark_first(
        &self,
        group: &mut ShareGroup,
        wanted: impl FnMut(&Delivery) -> bool,
    ) -> Option<Delivery> {
        let delivery = group.take_first(wanted)?;
        self.waiting_bytes
            .fetch_sub(delivery.len(), Ordering::Relaxed);
        Some(delivery)
    }

    /// Whether one more message of so many bytes may wait.
    pub(crate) fn has_room(&self, group: &ShareGroup, bytes: usize, limits: &Limits) -> bool {
        group.waiting() < limits.max_queued
            && self.waiting_bytes.load(Ordering::Relaxed) + bytes <= limits.max_queued_bytes
    }

    /// Whether it is time to look for what has expired: once a second, when there is no room.
    pub(crate) fn purges(&self, tick: u64) -> bool {
        let second = tick / 1000 + 1;
        self.purged.swap(second, Ordering::Relaxed) != second
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Share").field(&self.filter).finish()
    }
}

impl RetainedMessages {
    /// Keeps a message with RETAIN for its topic, or clears the topic if it has no payload
    /// [MQTT-3.3.1-6]; writes that into the batch, which must be submitted under the same lock. What must
    /// not go before that is put into `held`.
    ///
    /// # Errors
    /// The bound that is reached.
    pub(crate) fn set(
        &mut self,
        exchange: &Exchange,
        publish: &Publish,
        lasting: Lasting,
        now: Moment,
        batch: &mut Batch,
        held: &mut Vec<Arc<Message>>,
    ) -> Result<Option<Arc<Message>>, RetainError> {
        if publish.payload.is_empty() {
            let mut forgotten = Batch::default();
            let stored = match planted!(exchange, RetainedDeletionNotStored) {
                true => &mut forgotten,
                false => batch,
            };
            self.clear(&publish.topic, stored);
            return Ok(None);
        }
        let limits = &exchange.limits;
        let before = self
            .topics
            .get(&publish.topic)
            .map(|kept| kept.message.len());
        let size = publish.payload.len() + publish.topic.len();
        if before.is_none() && self.topics.len() >= limits.max_retained {
            return Err(RetainError::Topics(limits.max_retained));
        }
        if self.bytes - before.unwrap_or(0) + size > limits.max_retained_bytes {
            return Err(RetainError::Bytes(limits.max_retained_bytes));
        }
        let record = match lasting {
            Lasting::ThisRun => TRANSIENT,
            Lasting::OverRestarts if exchange.store.condition() == Condition::Stalled => {
                return Err(RetainError::Stalled);
            }
            Lasting::OverRestarts => exchange.next_record(),
        };
        let mut owned = publish.clone();
        owned.payload = Bytes::copy_from_slice(&publish.payload);
        let message = Message::new(record, &owned, now.tick as i64, &exchange.trash)
            .map_err(|_| RetainError::Unsayable)?;
        let mut kept = Kept {
            record: TRANSIENT,
            message: Arc::clone(&message),
        };
        if lasting == Lasting::OverRestarts {
            message.put(now.wall_us, batch);
            held.push(Arc::clone(&message));
            kept.record = exchange.next_record();
            let record = RetainedRecord {
                message: message.record(),
            };
            batch.put_with(kept.record, |out| record.write(out));
        }
        self.bytes += message.len();
        if let Some(old) = self.topics.set(&publish.topic, kept) {
            self.bytes -= old.message.len();
            old.forget(batch);
            held.push(old.message);
        }
        Ok(Some(message))
    }

    /// Puts back a message out of the store.
    pub(crate) fn restore(&mut self, topic: &str, kept: Kept) -> Option<Kept> {
        self.bytes += kept.message.len();
        let old = self.topics.set(topic, kept)?;
        self.bytes -= old.message.len();
        Some(old)
    }

    /// Removes expired messages from some topics, going through all of them in time.
    pub(crate) fn sweep(&mut self, place: &mut String, now: Moment, batch: &mut Batch) {
        let expired = self
            .topics
            .sweep(place, SWEPT, |kept| kept.message.is_expired(now));
        for kept in expired {
            self.bytes -= kept.message.len();
            kept.forget(batch);
        }
    }

    /// Removes the message of a topic.
    pub(crate) fn clear(&mut self, topic: &str, batch: &mut Batch) {
        if let Some(old) = self.topics.remove(topic) {
            self.bytes -= old.message.len();
            old.forget(batch);
        }
    }
}

/// Why a message is not retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RetainError {
    #[error("{0} topics have a retained message, which is the limit (`max_retained`)")]
    Topics(usize),
    #[error("the retained messages have {0} bytes, which is the limit (`max_retained_bytes`)")]
    Bytes(usize),
    #[error("the store cannot write at the moment")]
    Stalled,
    #[error("the message cannot be kept")]
    Unsayable,
}

/// FNV-1a with a seed: spreads client identifiers over a few shards, the same on every run with the
/// same seed.
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325 ^ seed, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
    // The low bits of FNV alone depend on the low bits of the input alone.
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash ^ (hash >> 32)
}
