//! A message that is kept: once, however many sessions wait for it.
//!
//! It is one record in the store and one allocation in memory, in the form in which it is stored; who
//! sends it decodes it then. When the last one that refers to it lets go, its record goes too: it is
//! thrown into [`Trash`], which the next batch of any shard empties. A crash in between leaves records
//! that nobody refers to; they are removed at the next start.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use journal::{Batch, RecordId};
use mqtt::{Publish, QoS};

use super::Moment;
use super::format::MessageRecord;
use super::subscriber::TRANSIENT;

/// A message with memory of its own.
#[derive(Debug)]
pub(crate) struct Message {
    record: RecordId,
    /// As [`Publish::keep`] writes it.
    body: Bytes,
    /// Tick at which it came in; negative if that was before this start of the broker.
    since: i64,
    expiry: Option<u32>,
    pub(crate) qos: QoS,
    /// Whether it was published with RETAIN.
    pub(crate) retain: bool,
    pub(crate) priority: Priority,
    trash: Arc<Trash>,
}

/// What matters when a queue is full (user property `priority`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    Low,
    High,
}

impl Priority {
    pub(crate) fn of(publish: &Publish) -> Priority {
        let is_high = publish
            .properties
            .user_properties
            .iter()
            .any(|(name, value)| &**name == "priority" && &**value == "high");
        match is_high {
            true => Priority::High,
            false => Priority::Low,
        }
    }
}

impl Message {
    /// Keeps `publish` under the record id `record`, which must be new, or [`TRANSIENT`] if the store
    /// will not have it.
    pub(crate) fn new(
        record: RecordId,
        publish: &Publish,
        since: i64,
        trash: &Arc<Trash>,
    ) -> Result<Arc<Message>, mqtt::EncodeError> {
        let mut body = BytesMut::new();
        publish.keep(&mut body)?;
        Ok(Message::with_body(
            record,
            body.freeze(),
            publish,
            since,
            trash,
        ))
    }

    /// A message out of the store.
    pub(crate) fn restored(
        record: RecordId,
        body: Bytes,
        since: i64,
        trash: &Arc<Trash>,
    ) -> Result<Arc<Message>, mqtt::DecodeError> {
        let publish = Publish::kept(&body)?;
        Ok(Message::with_body(record, body, &publish, since, trash))
    }

    fn with_body(
        record: RecordId,
        body: Bytes,
        publish: &Publish,
        since: i64,
        trash: &Arc<Trash>,
    ) -> Arc<Message> {
        trash.messages.fetch_add(1, Ordering::Relaxed);
        trash.bytes.fetch_add(body.len(), Ordering::Relaxed);
        Arc::new(Message {
            record,
            since,
            expiry: publish.properties.message_expiry_interval,
            qos: publish.qos,
            retain: publish.retain,
            priority: Priority::of(publish),
            body,
            trash: Arc::clone(trash),
        })
    }

    /// Writes it into the batch. `now_us` is when it came.
    pub(crate) fn put(&self, now_us: i64, batch: &mut Batch) {
        let record = MessageRecord {
            received_us: now_us,
            body: self.body.clone(),
        };
        batch.put_with(self.record, |out| record.write(out));
    }

    /// Whether the store has it.
    pub(crate) fn is_stored(&self) -> bool {
        self.record != TRANSIENT
    }

    pub(crate) fn record(&self) -> RecordId {
        self.record
    }

    /// Bytes it counts for in a queue.
    pub(crate) fn len(&self) -> usize {
        self.body.len()
    }

    pub(crate) fn since(&self) -> i64 {
        self.since
    }

    /// For one more delivery of it.
    pub(crate) fn claim(&self) -> Claim {
        Claim::new(&self.trash)
    }

    /// The message as it was published.
    pub(crate) fn publish(&self) -> Publish {
        Publish::kept(&self.body).unwrap_or_else(|error| {
            // Written by `keep`, or read by `kept` once before.
            tracing::error!(event = "message.unreadable", record = self.record.0, %error);
            Publish::default()
        })
    }

    /// Whether its Message Expiry Interval has passed [MQTT-3.3.2-5].
    pub(crate) fn is_expired(&self, now: Moment) -> bool {
        is_expired(self.since, self.expiry, now)
    }
}

/// Whether a message that came at tick `since` is past its Message Expiry Interval, in seconds.
pub(crate) fn is_expired(since: i64, expiry: Option<u32>, now: Moment) -> bool {
    expiry.is_some_and(|interval| now.tick as i64 - since > i64::from(interval) * 1000)
}

impl Drop for Message {
    fn drop(&mut self) {
        self.trash.messages.fetch_sub(1, Ordering::Relaxed);
        self.trash
            .bytes
            .fetch_sub(self.body.len(), Ordering::Relaxed);
        if self.record != TRANSIENT {
            self.trash.throw(self.record);
        }
    }
}

/// The place that a delivery takes beside its message, counted for as long as there is one.
#[derive(Debug)]
pub(crate) struct Claim(Arc<Trash>);

impl Claim {
    pub(crate) fn new(trash: &Arc<Trash>) -> Claim {
        trash.deliveries.fetch_add(1, Ordering::Relaxed);
        Claim(Arc::clone(trash))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.deliveries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes of a message beside its body, with its place in the store's index.
const MESSAGE: usize = 256;

/// Bytes of a delivery in the queue of a session, which may have twice the room it uses, with its place in
/// the store's index.
const DELIVERY: usize = 256;

/// Records nobody refers to any more, and what the messages that are left weigh.
#[derive(Debug, Default)]
pub(crate) struct Trash {
    records: Mutex<Vec<RecordId>>,
    /// Length of `records`, so that an empty one costs no lock.
    count: AtomicUsize,
    messages: AtomicU64,
    bytes: AtomicUsize,
    /// Deliveries of these.
    deliveries: AtomicUsize,
    closed: AtomicBool,
}

impl Trash {
    /// From here on nothing is thrown away: what is dropped is the broker's memory of messages that
    /// are still waited for.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn throw(&self, record: RecordId) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(record);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes out what was thrown in.
    pub(crate) fn empty(&self, mut remove: impl FnMut(RecordId)) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let records =
            std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner));
        self.count.fetch_sub(records.len(), Ordering::Relaxed);
        records.into_iter().for_each(&mut remove);
    }

    /// Messages kept.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Memory of all messages kept and of their deliveries.
    pub(crate) fn memory(&self) -> usize {
        let messages = self.messages.load(Ordering::Relaxed) as usize;
        let deliveries = self.deliveries.load(Ordering::Relaxed);
        self.bytes() + messages * MESSAGE + deliveries * DELIVERY
    }

    /// Bytes of all messages kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}
