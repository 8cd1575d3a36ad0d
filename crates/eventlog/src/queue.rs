//! The queue before a partition's disk: bounded by records and bytes, many senders, one writer.
//!
//! The bound counts what waits *and* what is being written, until it is durable: it is the memory
//! a slow disk may cost. A full queue refuses ([`AppendError::Busy`]); it never blocks the sender.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::AppendError;
use crate::record::{NewRecord, Offset};

/// Called with the offset of the first record, or with the reason why there is none.
pub(crate) type Done = Box<dyn FnOnce(Result<Offset, Arc<AppendError>>) + Send>;

/// Records that stand or fall together.
pub(crate) enum Records {
    One(NewRecord),
    Many(Vec<NewRecord>),
}

impl Records {
    pub(crate) fn as_slice(&self) -> &[NewRecord] {
        match self {
            Records::One(record) => std::slice::from_ref(record),
            Records::Many(records) => records,
        }
    }
}

/// One append on its way.
pub(crate) struct Append {
    pub(crate) records: Records,
    /// Bytes it counts for.
    pub(crate) weight: usize,
    pub(crate) done: Done,
}

/// What the writer is asked for, in order.
pub(crate) enum Item {
    Append(Append),
    /// Answer when everything before is done.
    Barrier(SyncSender<()>),
    /// Seal by age and apply retention, then answer.
    Housekeep(SyncSender<()>),
}

/// Why waiting for items ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Items,
    Timeout,
    /// Closed, and nothing is left.
    Closed,
}

#[derive(Default)]
struct State {
    items: Vec<Item>,
    /// Counted until durable.
    records: usize,
    bytes: usize,
    writer_sleeps: bool,
    closed: bool,
}

pub(crate) struct Queue {
    stream: Arc<str>,
    partition: u16,
    max_records: usize,
    max_bytes: usize,
    state: Mutex<State>,
    arrived: Condvar,
    refused: AtomicU64,
}

impl Queue {
    pub(crate) fn new(
        stream: Arc<str>,
        partition: u16,
        max_records: usize,
        max_bytes: usize,
    ) -> Queue {
        Queue {
            stream,
            partition,
            max_records,
            max_bytes,
            state: Mutex::default(),
            arrived: Condvar::new(),
            refused: AtomicU64::new(0),
        }
    }

    /// Queues an append. One that alone exceeds the bounds is taken when nothing else waits.
    pub(crate) fn push(&self, append: Append) -> Result<(), AppendError> {
        let records = append.records.as_slice().len();
        let mut state = self.state();
        if state.closed {
            return Err(AppendError::Closed {
                stream: self.stream.clone(),
            });
        }
        let full = state.records + records > self.max_records
            || state.bytes + append.weight > self.max_bytes;
        if full && state.records > 0 {
            let (queued_records, queued_bytes) = (state.records, state.bytes);
            drop(state);
            self.refused.fetch_add(records as u64, Ordering::Relaxed);
            return Err(AppendError::Busy {
                stream: self.stream.clone(),
                partition: self.partition,
                queued_records,
                queued_bytes,
            });
        }
        state.records += records;
        state.bytes += append.weight;
        self.put(state, Item::Append(append));
        Ok(())
    }

    /// Queues a request that is not an append. `false`: closed.
    pub(crate) fn ask(&self, item: Item) -> bool {
        let state = self.state();
        let open = !state.closed;
        if open {
            self.put(state, item);
        }
        open
    }

    fn put(&self, mut state: MutexGuard<'_, State>, item: Item) {
        state.items.push(item);
        let wake = std::mem::take(&mut state.writer_sleeps);
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
    }

    /// Moves everything that waits behind `items`, waiting for it until `deadline` if need be.
    pub(crate) fn take(&self, items: &mut VecDeque<Item>, deadline: Option<Instant>) -> Wake {
        let mut state = self.state();
        while state.items.is_empty() {
            if state.closed {
                return Wake::Closed;
            }
            let left = deadline.map_or(Duration::ZERO, |at| {
                at.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                state.writer_sleeps = false;
                return Wake::Timeout;
            }
            state.writer_sleeps = true;
            state = self
                .arrived
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.writer_sleeps = false;
        items.extend(state.items.drain(..));
        Wake::Items
    }

    /// Appends with these sums are durable (or have failed): others may come.
    pub(crate) fn release(&self, records: usize, bytes: usize) {
        let mut state = self.state();
        state.records -= records;
        state.bytes -= bytes;
    }

    /// Refuses new items. The writer still gets those that wait.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Records and bytes that wait.
    pub(crate) fn depth(&self) -> (u64, u64) {
        let state = self.state();
        (state.records as u64, state.bytes as u64)
    }

    /// Records refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; should it ever, the counts are still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
