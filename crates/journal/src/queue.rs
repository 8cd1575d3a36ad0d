//! What submitters and the writer share: batches on their way, and how far the disk has come.
//!
//! Nothing here is bounded by refusing: a batch is taken always, because what it says has already
//! happened in the state it stands for. [`Condition`] is how whoever makes new work learns that
//! there is too much of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::chain::Chain;
use crate::error::{CloseError, StallError};
use crate::event::Condition;
use crate::position::Position;
use crate::stats::Stats;

/// Memory for more waiting batches than this is given back when they are gone.
const KEEP_BATCHES: usize = 1 << 16;

pub(crate) struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    max_pending_bytes: usize,
    pending_bytes: AtomicUsize,
    durable: AtomicU64,
    stalled: AtomicBool,
    stats: Mutex<Stats>,
    /// What recovery found; the writer takes it when nobody reads it any more.
    recovered: Mutex<Option<Chain>>,
    trouble: Mutex<Option<Arc<StallError>>>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    submitted: u64,
    writer_sleeps: bool,
    /// The recovered records have been read.
    released: bool,
    closed: bool,
}

/// How long to wait for batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    No,
    For(Duration),
    Forever,
}

/// What waiting came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Batches,
    Nothing,
    /// Closed, and no batch is left.
    Closed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves none of these half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(max_pending_bytes: usize, recovered: Chain) -> Shared {
        let mut stats = Stats::default();
        stats.count_disk(&recovered);
        Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            max_pending_bytes,
            pending_bytes: AtomicUsize::new(0),
            durable: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            stats: Mutex::new(stats),
            recovered: Mutex::new(Some(recovered)),
            trouble: Mutex::new(None),
        }
    }

    // The submitters' side.

    pub(crate) fn submit(&self, batch: Batch) -> Position {
        let mut queue = lock(&self.queue);
        if batch.is_empty() {
            return Position::new(queue.submitted);
        }
        queue.submitted += 1;
        let position = Position::new(queue.submitted);
        if queue.closed {
            return position;
        }
        // Before the writer can see the batch, and take its bytes off again.
        self.pending_bytes
            .fetch_add(batch.bytes(), Ordering::Relaxed);
        queue.batches.push_back(batch);
        let wake = std::mem::take(&mut queue.writer_sleeps);
        drop(queue);
        if wake {
            self.changed.notify_all();
        }
        position
    }

    pub(crate) fn durable(&self) -> Position {
        Position::new(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn condition(&self) -> Condition {
        if self.stalled.load(Ordering::Relaxed) {
            Condition::Stalled
        } else if self.pending_bytes.load(Ordering::Relaxed) > self.max_pending_bytes {
            Condition::Behind
        } else {
            Condition::Ready
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.pending_bytes.load(Ordering::Relaxed) > self.max_pending_bytes
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            pending_bytes: self.pending_bytes.load(Ordering::Relaxed) as u64,
            ..*lock(&self.stats)
        }
    }

    /// What recovery found, for reading.
    pub(crate) fn recovered(&self) -> MutexGuard<'_, Option<Chain>> {
        lock(&self.recovered)
    }

    /// The writer may begin.
    pub(crate) fn release(&self) {
        lock(&self.queue).released = true;
        self.changed.notify_all();
    }

    /// Nothing more is taken.
    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
        self.changed.notify_all();
    }

    /// After the writer has ended: whether it got everything onto the disk.
    pub(crate) fn outcome(&self) -> Result<(), CloseError> {
        let submitted = lock(&self.queue).submitted;
        match lock(&self.trouble).clone() {
            Some(source) => Err(CloseError {
                batches: submitted - self.durable().get(),
                bytes: self.pending_bytes.load(Ordering::Relaxed),
                source,
            }),
            None => Ok(()),
        }
    }

    // The writer's side.

    /// Waits until the recovered records have been read, or will not be.
    pub(crate) fn take_recovered(&self) -> Option<Chain> {
        let mut queue = lock(&self.queue);
        while !queue.released && !queue.closed {
            queue = self.wait(queue);
        }
        drop(queue);
        // Waits for a reader at work.
        lock(&self.recovered).take()
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed
            .wait(queue)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(&self, queue: MutexGuard<'a, Queue>, time: Duration) -> MutexGuard<'a, Queue> {
        self.changed
            .wait_timeout(queue, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Moves all batches behind `waiting`. Having found none, waits for one, and having got the
    /// first, lingers for more.
    pub(crate) fn take(
        &self,
        waiting: &mut VecDeque<Batch>,
        wait: Wait,
        linger: Duration,
        enough: usize,
    ) -> Wake {
        let mut queue = lock(&self.queue);
        if queue.batches.is_empty() && !queue.closed {
            let deadline = match wait {
                Wait::No => return Wake::Nothing,
                Wait::For(time) => Some(Instant::now() + time),
                Wait::Forever => None,
            };
            while queue.batches.is_empty() && !queue.closed {
                queue.writer_sleeps = true;
                queue = match deadline {
                    None => self.wait(queue),
                    Some(deadline) => {
                        let left = deadline.saturating_duration_since(Instant::now());
                        if left.is_zero() {
                            queue.writer_sleeps = false;
                            return Wake::Nothing;
                        }
                        self.wait_for(queue, left)
                    }
                };
            }
        }
        if queue.batches.is_empty() {
            return Wake::Closed;
        }
        if !linger.is_zero() {
            let deadline = Instant::now() + linger;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let pending = self.pending_bytes.load(Ordering::Relaxed);
                if left.is_zero() || queue.closed || pending >= enough {
                    break;
                }
                queue.writer_sleeps = true;
                queue = self.wait_for(queue, left);
            }
        }
        queue.writer_sleeps = false;
        if waiting.is_empty() {
            if waiting.capacity() > KEEP_BATCHES {
                *waiting = VecDeque::new();
            }
            std::mem::swap(waiting, &mut queue.batches);
        } else {
            waiting.append(&mut queue.batches);
        }
        Wake::Batches
    }

    /// Waits, but not for a journal that is being closed. `true`: it is.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut queue = lock(&self.queue);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if queue.closed || left.is_zero() {
                return queue.closed;
            }
            queue = self.wait_for(queue, left);
        }
    }

    /// Everything up to `position` is durable; `bytes` less are pending.
    pub(crate) fn publish(&self, position: Position, bytes: usize) {
        self.durable.store(position.get(), Ordering::Release);
        self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_stats(&self, stats: Stats) {
        *lock(&self.stats) = stats;
    }

    /// Sets or clears what keeps batches from the disk.
    pub(crate) fn set_trouble(&self, trouble: Option<Arc<StallError>>) {
        self.stalled.store(trouble.is_some(), Ordering::Relaxed);
        *lock(&self.trouble) = trouble;
    }
}
