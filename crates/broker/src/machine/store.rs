//! "Keep this": what the machine asks of durable storage, in terms of a journal of records.
//!
//! The machine writes what changed into a batch while it handles inputs, submits the batch when it has
//! handled them, and holds back what must not be seen (acknowledgements, mostly) until the position it
//! got is durable. A store that keeps nothing calls everything durable at once.

use std::sync::atomic::{AtomicU64, Ordering};

use journal::{Batch, Condition, Position};

/// A place for records. Order of submission is order of durability.
pub(crate) trait Store: Send + Sync {
    /// Takes an atomic batch; never refuses, never waits for the disk.
    fn submit(&self, batch: Batch) -> Position;

    /// Up to here everything survives.
    fn durable(&self) -> Position;

    /// Whether new work should be taken on.
    fn condition(&self) -> Condition;

    /// Whether so much waits to be written that clients should not even be read from.
    fn is_full(&self) -> bool {
        self.condition() == Condition::Behind
    }
}

/// For sessions that end with the process.
#[derive(Debug, Default)]
pub(crate) struct Forgetful {
    submitted: AtomicU64,
}

impl Store for Forgetful {
    fn submit(&self, _: Batch) -> Position {
        Position::new(self.submitted.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn durable(&self) -> Position {
        Position::new(u64::MAX)
    }

    fn condition(&self) -> Condition {
        Condition::Ready
    }
}
