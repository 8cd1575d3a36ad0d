//! Presence: who connected, left, failed to connect, subscribed, unsubscribed; as records and as messages.
//!
//! ```text
//! broker worker ─ hook ─► bounded queue ─► one thread ─┬► stream events.presence   (CloudEvents, durable)
//!                          full: counted               ├► $milepost/events/…       (this shape)
//!                                                      └► $aws/events/…            (AWS IoT's shape)
//! ```
//!
//! One queue (bounded in number and in bytes) and one thread, so events of a client stay in order; over all clients, `sequence` puts them in
//! order. A worker never waits: what does not fit is dropped and counted, and the gap is seen by nobody
//! but the counter, for sequence numbers may skip. The messages are QoS 1, so a service with a stored
//! session gets what happened while it was away.
//!
//! Topics. A client is kept under `{device}/{the client id it chose}`. `$milepost/events/…` ends in these
//! two as two levels; in the second, `/ + # %` are written `%2F %2B %23 %25`, so that it is always one.
//! Who failed to connect before anybody knew who it is has `~` for a device, which no device is called.
//! `$aws/events/…` ends in the chosen id as it is, and as with AWS a client whose id holds `+` or `#` makes
//! no event there.

mod event;
mod shape;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use broker::{BrokerHandle, Presence, PresenceEvent, Publish, QoS, Version};
use bytes::Bytes;
use eventlog::Stream;
use mqtt::TopicName;

use event::Event;

/// The stream of presence events.
pub const STREAM: &str = "events.presence";

/// Events that can wait: all clients of a busy server coming back within a second.
const WAITING: usize = 16_384;
/// Bytes of these together. An ordinary event has 400; one of a client with long names has as many as it
/// likes, so they are bounded apart.
pub const MEMORY: u64 = 64 << 20;

/// How long the thread leaves events alone after it has dealt with all there were. While a fleet comes
/// back, it takes what came in this time together, and no worker has to wake it for each.
const PAUSE: Duration = Duration::from_millis(2);

/// The way of events to their thread. Clones are the same way.
#[derive(Clone)]
pub struct PresenceQueue {
    events: SyncSender<Item>,
    counters: Arc<PresenceCounters>,
}

/// Bytes that an event will take while it waits: itself, and its texts, each with its allocation.
fn weight(presence: &Presence<'_>) -> u64 {
    let texts = |texts: &[&str]| texts.iter().map(|text| text.len() + 32).sum();
    // The client id is kept whole and as the client chose it.
    let id = 2 * presence.client_id.len() + presence.requested_client_id.map_or(0, str::len);
    let more: usize = match presence.what {
        PresenceEvent::Subscribed { filters } | PresenceEvent::Unsubscribed { filters } => {
            texts(filters)
        }
        PresenceEvent::ConnectFailed { detail, .. } => detail.len(),
        _ => 0,
    };
    (size_of::<Event>() + 100 + id + more) as u64
}

/// What became of events.
#[derive(Debug, Default)]
pub struct PresenceCounters {
    /// Published and handed to the log.
    pub published: AtomicU64,
    /// Dropped because the queue was full.
    pub dropped: AtomicU64,
    /// Published, but not in the stream: the log was full or failed.
    pub not_logged: AtomicU64,
    /// Bytes that wait now.
    waiting_bytes: AtomicU64,
}

enum Item {
    /// With the bytes it counts for.
    Event(Box<Event>, u64),
    /// Nothing comes behind it.
    End,
}

/// The other end of the queue.
pub struct PresenceEvents(Receiver<Item>);

/// A queue and its end.
pub fn queue() -> (PresenceQueue, PresenceEvents) {
    let (events, receiver) = sync_channel(WAITING);
    let queue = PresenceQueue {
        events,
        counters: Arc::default(),
    };
    (queue, PresenceEvents(receiver))
}

impl PresenceQueue {
    /// Takes an event, or counts it as dropped. Never waits.
    pub fn push(&self, presence: &Presence<'_>) {
        let counters = &self.counters;
        let bytes = weight(presence);
        let waiting = counters.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = waiting <= MEMORY && {
            let event = Box::new(Event::of(presence));
            // Full, or the thread has ended with the server.
            self.events.try_send(Item::Event(event, bytes)).is_ok()
        };
        if !fits {
            counters.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of events so far.
    pub fn counters(&self) -> &PresenceCounters {
        &self.counters
    }

    /// Lets the thread end behind everything that was pushed before. Waits while the queue is full.
    pub fn end(&self) {
        // The thread may have ended already.
        let _ = self.events.send(Item::End);
    }
}

impl PresenceEvents {
    /// The next one. There is a pause before the wait for one that has not come yet.
    #[expect(
        clippy::disallowed_methods,
        reason = "to let events gather, not to wait for one"
    )]
    fn next(&self) -> Result<Item, RecvError> {
        match self.0.try_recv() {
            Ok(item) => Ok(item),
            Err(TryRecvError::Disconnected) => Err(RecvError),
            Err(TryRecvError::Empty) => {
                std::thread::sleep(PAUSE);
                self.0.recv()
            }
        }
    }

    /// Starts the thread that publishes.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn publish(
        self,
        queue: &PresenceQueue,
        stream: Stream,
        broker: BrokerHandle,
    ) -> io::Result<JoinHandle<()>> {
        let counters = Arc::clone(&queue.counters);
        let thread = std::thread::Builder::new().name("presence".into());
        thread.spawn(move || {
            while let Ok(Item::Event(event, bytes)) = self.next() {
                tell(&event, &stream, &broker, &counters);
                counters.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
                counters.published.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}

/// Appends the record and publishes the messages.
fn tell(event: &Event, stream: &Stream, broker: &BrokerHandle, counters: &Arc<PresenceCounters>) {
    let Some((group, name)) = event.kind() else {
        return;
    };
    let body = Bytes::from(event.to_json(name));
    let record = event.record(name, body.clone());
    let partition = stream.partition_for(&record.key);
    let failed = Arc::clone(counters);
    let appended = stream.append(partition, record, move |outcome| {
        if outcome.is_err() {
            failed.not_logged.fetch_add(1, Ordering::Relaxed);
        }
    });
    if appended.is_err() {
        counters.not_logged.fetch_add(1, Ordering::Relaxed);
    }
    publish(broker, &event.topic(group, name), || body);
    if let Some(topic) = event.aws_topic(group, name) {
        publish(broker, &topic, || event.to_aws(name).into());
    }
}

/// Publishes a message, which is made only if somebody gets it: most fleets have few who listen.
fn publish(broker: &BrokerHandle, topic: &str, body: impl FnOnce() -> Bytes) {
    // A topic has 65,535 bytes at most, and a client id may have as many: then it is in the stream only.
    let Ok(topic) = TopicName::parse(topic) else {
        return;
    };
    if !broker.has_subscribers(&topic) {
        return;
    }
    broker.publish(&Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: topic.into(),
        packet_id: None,
        properties: Default::default(),
        payload: body(),
    });
}

/// The version as people write it.
pub fn version_text(version: Version) -> &'static str {
    match version {
        Version::V311 => "3.1.1",
        Version::V5 => "5",
    }
}

#[cfg(test)]
mod tests {
    use super::{event::tests::*, *};

    #[test]
    fn a_full_queue_holds_nobody_up_and_is_counted() {
        let (queue, events) = queue();
        let car = car();
        let presence = Presence {
            identity: Some(&car),
            client_id: "tcu-1/app",
            requested_client_id: None,
            peer: ([192, 0, 2, 7], 4711).into(),
            listener: "mqtts-0",
            at_us: 0,
            sequence: 1,
            connection: 1,
            what: connected(),
        };
        for _ in 0..WAITING + 3 {
            queue.push(&presence);
        }
        assert_eq!(queue.counters().dropped.load(Ordering::Relaxed), 3);
        drop(events);
    }

    #[test]
    fn long_names_fill_the_queue_by_their_bytes() {
        let (queue, events) = queue();
        let car = car();
        let long = "x".repeat(65_000);
        let filters = vec![long.as_str(); broker::FILTERS_PER_EVENT];
        let presence = Presence {
            identity: Some(&car),
            client_id: "tcu-1/app",
            requested_client_id: None,
            peer: ([192, 0, 2, 7], 4711).into(),
            listener: "mqtts-0",
            at_us: 0,
            sequence: 1,
            connection: 1,
            what: PresenceEvent::Subscribed { filters: &filters },
        };
        let fit = MEMORY / (65_000 * filters.len() as u64);
        for _ in 0..fit + 5 {
            queue.push(&presence);
        }
        assert_eq!(queue.counters().dropped.load(Ordering::Relaxed), 5);
        assert!(queue.counters().waiting_bytes.load(Ordering::Relaxed) <= MEMORY);
        drop(events);
    }
}
