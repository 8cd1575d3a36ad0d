//! A partition as everybody but its writer sees it: segments, durable range, queue, counters.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::queue::Queue;
use crate::record::Offset;
use crate::segment::Segment;
use crate::stats::PartitionStats;

pub(crate) struct Partition {
    pub(crate) stream: Arc<str>,
    pub(crate) index: u16,
    pub(crate) dir: PathBuf,
    pub(crate) queue: Queue,
    pub(crate) counters: Counters,
    /// In order; the last one is active. Never empty once the writer runs.
    segments: RwLock<VecDeque<Arc<Segment>>>,
    start: AtomicU64,
    end: AtomicU64,
    /// How many threads wait for `end` to grow. They hold `gate` while they look.
    waiting: AtomicUsize,
    gate: Mutex<()>,
    grown: Condvar,
}

/// What the writer counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) fsyncs: AtomicU64,
    pub(crate) refused_full: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) removed_segments: AtomicU64,
}

impl Partition {
    pub(crate) fn new(
        stream: Arc<str>,
        index: u16,
        dir: PathBuf,
        queue: Queue,
        segments: VecDeque<Arc<Segment>>,
        end: Offset,
    ) -> Partition {
        let start = segments.front().map_or(end, |first| first.base());
        Partition {
            stream,
            index,
            dir,
            queue,
            counters: Counters::default(),
            segments: RwLock::new(segments),
            start: AtomicU64::new(start.get()),
            end: AtomicU64::new(end.get()),
            waiting: AtomicUsize::new(0),
            gate: Mutex::new(()),
            grown: Condvar::new(),
        }
    }

    pub(crate) fn start(&self) -> Offset {
        Offset::new(self.start.load(Ordering::Acquire))
    }

    pub(crate) fn end(&self) -> Offset {
        Offset::new(self.end.load(Ordering::SeqCst))
    }

    /// Records before `end` are durable from now on.
    pub(crate) fn publish(&self, end: Offset) {
        // Sequentially consistent, together with `wait_beyond`: either we see the waiting thread
        // or it sees the new end.
        self.end.store(end.get(), Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.wake_readers();
        }
    }

    pub(crate) fn wake_readers(&self) {
        drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
        self.grown.notify_all();
    }

    /// Blocks until the durable end is beyond `after`, the time is over or the queue is closed.
    pub(crate) fn wait_beyond(&self, after: Offset, timeout: Duration) -> Offset {
        let end = self.end();
        if end > after || timeout.is_zero() {
            return end;
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.end() <= after && !self.queue.is_closed() {
            let left = deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            gate = self
                .grown
                .wait_timeout(gate, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        drop(gate);
        self.end()
    }

    /// The segment that has `offset`, or would have it next.
    pub(crate) fn segment_of(&self, offset: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let after = segments.partition_point(|segment| segment.base() <= offset);
        after.checked_sub(1).map(|at| segments[at].clone())
    }

    /// The segment behind the one that begins with `base`.
    pub(crate) fn segment_behind(&self, base: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments
            .get(segments.partition_point(|segment| segment.base() <= base))
            .cloned()
    }

    /// The active segment; `None` only before the writer has made the first one.
    pub(crate) fn active(&self) -> Option<Arc<Segment>> {
        self.segments
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .back()
            .cloned()
    }

    /// The oldest segment, if it is sealed.
    pub(crate) fn oldest_sealed(&self) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        (segments.len() > 1).then(|| segments[0].clone())
    }

    /// Seals the active segment (if any) and makes this one active. One with the same base is
    /// replaced.
    pub(crate) fn roll_to(&self, fresh: Arc<Segment>) {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if segments
            .back()
            .is_some_and(|last| last.base() == fresh.base())
        {
            segments.pop_back();
        }
        segments.push_back(fresh);
    }

    /// Takes the oldest segment, which is sealed, off the list. Readers that want it are told that
    /// it is gone from here on.
    pub(crate) fn let_go_of_oldest(&self) {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if segments.len() > 1 {
            segments.pop_front();
            self.start
                .store(segments[0].base().get(), Ordering::Release);
        }
    }

    pub(crate) fn stats(&self) -> PartitionStats {
        let (segments, bytes) = {
            let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
            (
                segments.len() as u64,
                segments.iter().map(|segment| segment.durable()).sum(),
            )
        };
        let (queued_records, queued_bytes) = self.queue.depth();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PartitionStats {
            start: self.start(),
            end: self.end(),
            bytes,
            segments,
            appended_records: count(&self.counters.records),
            appended_bytes: count(&self.counters.bytes),
            groups: count(&self.counters.groups),
            fsyncs: count(&self.counters.fsyncs),
            queued_records,
            queued_bytes,
            refused_busy: self.queue.refused(),
            refused_full: count(&self.counters.refused_full),
            failed: count(&self.counters.failed),
            removed_segments: count(&self.counters.removed_segments),
        }
    }
}
