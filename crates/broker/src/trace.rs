//! A live view of what some clients say and are told, packet by packet.
//!
//! Flow: a shard that has a traced client decodes what passes and puts it into the queue of the trace;
//! whoever holds the [`Trace`](crate::Trace) takes it out. The queue is bounded by events and by bytes;
//! what does not fit is counted, and the broker never waits. Passwords, data of enhanced
//! authentications and the payload of a will are never in it, payloads of messages only if asked for.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mqtt::{QoS, ReasonCode};

/// Traces there can be at once: each one decodes what it follows a second time.
pub const MAX_TRACES: usize = 16;

/// Principals and clients one trace can follow: those of a few vehicles. What to trace is looked up for
/// every CONNECT.
pub const MAX_TRACED: usize = 256;

/// Events that can wait in one trace.
pub const MAX_TRACE_CAPACITY: usize = 65_536;

/// Bytes of one payload that can be shown.
pub const MAX_TRACE_PAYLOAD: usize = 64 * 1024;

/// Bytes that can wait in one trace; with [`MAX_TRACES`] 64 MiB in all.
pub(crate) const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// Whom to follow: clients of one of these principals, and these clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// Authenticated subjects.
    pub principals: Vec<Arc<str>>,
    /// Client identifiers, as the broker keeps them or as a client asks for them: so a client that is
    /// refused before anybody knows who it is can be followed, too.
    pub clients: Vec<Arc<str>>,
}

/// What of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceOptions {
    /// What is shown of payloads.
    pub payload: TracePayload,
    /// Events that can wait to be taken, 1 to [`MAX_TRACE_CAPACITY`].
    pub capacity: usize,
}

impl Default for TraceOptions {
    fn default() -> TraceOptions {
        TraceOptions {
            payload: TracePayload::Redacted,
            // Two seconds of a busy vehicle at 500 messages a second.
            capacity: 1024,
        }
    }
}

/// What a trace shows of the payloads of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TracePayload {
    /// Their length.
    Redacted,
    /// Their first bytes.
    Shown {
        /// How many, at most [`MAX_TRACE_PAYLOAD`].
        max_bytes: usize,
    },
}

/// Why a trace did not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// There are as many as there can be.
    #[error("{MAX_TRACES} traces are running, which is the limit; end one of them")]
    TooMany,
    /// The filter names nobody.
    #[error("a trace must name at least one principal or client")]
    Nobody,
    /// The filter names too many.
    #[error("a trace can follow {MAX_TRACED} principals and clients, not {0}; use several traces")]
    TooManyNames(usize),
    /// The queue cannot have this size.
    #[error("the capacity of a trace is {0}, must be 1 to {MAX_TRACE_CAPACITY} events")]
    Capacity(usize),
    /// So much of a payload cannot be shown.
    #[error("a trace can show {MAX_TRACE_PAYLOAD} bytes of each payload, not {0}")]
    Payload(usize),
}

/// One packet, or one moment, in the life of a traced client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEvent {
    /// When, wall clock, microseconds since the Unix epoch.
    pub at_us: i64,
    /// The client identifier: the broker's, or while that is not known the one asked for.
    pub client_id: Arc<str>,
    /// The authenticated subject, once it is known.
    pub principal: Option<Arc<str>>,
    /// Where the connection comes from.
    pub peer: SocketAddr,
    /// Which way the packet went.
    pub direction: Direction,
    /// `CONNECT`, `PUBLISH`, ... or, with [`Direction::None`], `connected`, `disconnected`, `malformed`,
    /// `unreadable`.
    pub kind: &'static str,
    /// One line for people. Begins with `kind`; what clients chose in it is escaped.
    pub packet: String,
    /// Topic of a message, its alias resolved where that is possible; of a CONNECT that of its will.
    pub topic: Option<String>,
    /// Quality of a message.
    pub qos: Option<QoS>,
    /// Packet identifier.
    pub packet_id: Option<u16>,
    /// Reason code, of packets that have one (the first that is an error, if they have several) and of
    /// `disconnected`.
    pub reason: Option<ReasonCode>,
    /// Bytes of the packet, its header included; 0 for what is not a packet.
    pub bytes: usize,
    /// Bytes of the payload of a message.
    pub payload_bytes: Option<usize>,
    /// The payload of a message, as far as it is to be shown.
    pub payload: Option<Bytes>,
    /// Events lost between the one before and this one, because the queue was full.
    pub missed: u64,
}

impl TraceEvent {
    /// Bytes it counts for in its queue.
    fn weight(&self) -> usize {
        size_of::<TraceEvent>()
            + self.packet.len()
            + self.topic.as_ref().map_or(0, String::len)
            + self.payload.as_ref().map_or(0, Bytes::len)
    }
}

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client.
    In,
    /// To the client.
    Out,
    /// It is not a packet.
    None,
}

/// One trace: whom it follows, and the queue between the shards and its reader.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) principals: HashSet<Arc<str>>,
    pub(crate) clients: HashSet<Arc<str>>,
    payload: TracePayload,
    capacity: usize,
    queue: Mutex<Queue>,
    missed: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<TraceEvent>,
    bytes: usize,
    /// Since the last event that fitted.
    missed: u64,
    waker: Option<Waker>,
    reader: Reader,
}

/// Whether somebody will take what is put in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Reader {
    #[default]
    Present,
    Gone,
}

impl Sink {
    pub(crate) fn new(filter: TraceFilter, options: TraceOptions) -> Result<Sink, TraceError> {
        let TraceFilter {
            principals,
            clients,
        } = filter;
        let TraceOptions { payload, capacity } = options;
        match principals.len() + clients.len() {
            0 => return Err(TraceError::Nobody),
            1..=MAX_TRACED => {}
            names => return Err(TraceError::TooManyNames(names)),
        }
        if !(1..=MAX_TRACE_CAPACITY).contains(&capacity) {
            return Err(TraceError::Capacity(capacity));
        }
        if let TracePayload::Shown { max_bytes } = payload
            && max_bytes > MAX_TRACE_PAYLOAD
        {
            return Err(TraceError::Payload(max_bytes));
        }
        Ok(Sink {
            principals: principals.into_iter().collect(),
            clients: clients.into_iter().collect(),
            payload,
            capacity,
            queue: Mutex::default(),
            missed: AtomicU64::new(0),
        })
    }

    /// What of a payload may be shown. A copy: the original is part of a read buffer.
    pub(crate) fn shown(&self, payload: &[u8]) -> Option<Bytes> {
        match self.payload {
            TracePayload::Redacted => None,
            TracePayload::Shown { max_bytes } => {
                let length = payload.len().min(max_bytes);
                Some(Bytes::copy_from_slice(&payload[..length]))
            }
        }
    }

    /// Puts an event in, or counts it as missed.
    pub(crate) fn push(&self, mut event: TraceEvent) {
        let waker = {
            let mut queue = self.queue();
            if queue.reader == Reader::Gone {
                return;
            }
            let weight = event.weight();
            // One that is larger than the room there is at all still gets through an empty queue.
            let fits = queue.events.is_empty()
                || (queue.events.len() < self.capacity
                    && queue.bytes + weight <= MAX_WAITING_BYTES);
            if !fits {
                queue.missed += 1;
                self.missed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            event.missed = std::mem::take(&mut queue.missed);
            queue.bytes += weight;
            queue.events.push_back(event);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the oldest event.
    pub(crate) fn pop(&self) -> Option<TraceEvent> {
        self.queue().pop()
    }

    /// Takes the oldest event, or asks to be told of the next.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<TraceEvent> {
        let mut queue = self.queue();
        match queue.pop() {
            Some(event) => Poll::Ready(event),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        let mut queue = self.queue();
        *queue = Queue {
            reader: Reader::Gone,
            ..Queue::default()
        };
    }

    /// Whether somebody reads.
    pub(crate) fn is_open(&self) -> bool {
        self.queue().reader == Reader::Present
    }

    /// Events lost so far.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic runs under the lock, so a poisoned one is still consistent.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn pop(&mut self) -> Option<TraceEvent> {
        let event = self.events.pop_front()?;
        self.bytes -= event.weight();
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(packet: &str) -> TraceEvent {
        TraceEvent {
            at_us: 0,
            client_id: "car".into(),
            principal: None,
            peer: ([192, 0, 2, 1], 4711).into(),
            direction: Direction::In,
            kind: "PINGREQ",
            packet: packet.to_owned(),
            topic: None,
            qos: None,
            packet_id: None,
            reason: None,
            bytes: 2,
            payload_bytes: None,
            payload: None,
            missed: 0,
        }
    }

    fn sink(capacity: usize) -> Sink {
        let filter = TraceFilter {
            clients: vec!["car".into()],
            ..TraceFilter::default()
        };
        let options = TraceOptions {
            capacity,
            ..TraceOptions::default()
        };
        Sink::new(filter, options).expect("it can be traced")
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told_with_the_next_that_does() {
        let sink = sink(2);
        for n in 1..=5 {
            sink.push(event(&n.to_string()));
        }
        assert_eq!(sink.missed(), 3);
        let taken = |sink: &Sink| sink.pop().map(|event| (event.packet, event.missed));
        assert_eq!(taken(&sink), Some(("1".to_owned(), 0)));
        sink.push(event("6"));
        assert_eq!(taken(&sink), Some(("2".to_owned(), 0)));
        assert_eq!(taken(&sink), Some(("6".to_owned(), 3)));
        assert_eq!(taken(&sink), None);
        assert_eq!(sink.queue().bytes, 0);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let sink = sink(MAX_TRACE_CAPACITY);
        let large = "x".repeat(MAX_WAITING_BYTES / 4);
        for _ in 0..10 {
            sink.push(event(&large));
        }
        assert_eq!((sink.queue().events.len(), sink.missed()), (3, 7));
        sink.close();
        assert!(!sink.is_open());
        sink.push(event("late"));
        assert_eq!(sink.pop(), None);
    }

    #[test]
    fn a_trace_that_cannot_be_names_the_limit() {
        let named = |count: usize| TraceFilter {
            principals: (0..count).map(|n| n.to_string().into()).collect(),
            ..TraceFilter::default()
        };
        let options = TraceOptions::default();
        let shown = |max_bytes| TracePayload::Shown { max_bytes };
        let rows = [
            (named(0), options, TraceError::Nobody),
            (named(257), options, TraceError::TooManyNames(257)),
            (
                named(1),
                TraceOptions {
                    capacity: 0,
                    ..options
                },
                TraceError::Capacity(0),
            ),
            (
                named(1),
                TraceOptions {
                    payload: shown(65_537),
                    ..options
                },
                TraceError::Payload(65_537),
            ),
        ];
        for (filter, options, error) in rows {
            assert_eq!(Sink::new(filter, options).err(), Some(error));
        }
    }
}
