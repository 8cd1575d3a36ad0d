//! A journal in memory that is as slow as the dice say, and forgets what a crash makes it forget.
//!
//! It keeps every batch that was submitted, in order. A batch is durable once the simulation says
//! so, always in order; a crash keeps all that is durable and, as a real disk may, some of what was
//! on its way.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use journal::{Batch, Operation, RecordId};

/// The records that are there, each with its place in the order in which it was put last.
type Live = BTreeMap<u64, (u64, Bytes)>;

#[derive(Debug, Default)]
pub(super) struct SimStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What was durable when the current life of the broker began.
    base: Live,
    /// Batches of this life.
    batches: Vec<Vec<Change>>,
    durable: usize,
    puts: u64,
    stalled: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Put(u64, Bytes),
    Delete(u64),
}

impl SimStore {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch; says how many there are now.
    pub(super) fn append(&self, batch: &Batch) -> usize {
        let mut inner = self.lock();
        let changes = batch
            .operations()
            .map(|operation| match operation {
                Operation::Put(id, value) => Change::Put(id.0, Bytes::copy_from_slice(value)),
                Operation::Delete(id) => Change::Delete(id.0),
            })
            .collect();
        inner.batches.push(changes);
        inner.batches.len()
    }

    pub(super) fn submitted(&self) -> usize {
        self.lock().batches.len()
    }

    /// What the batches after the first `seen` do, each record with its value, or none if it goes.
    pub(super) fn since(&self, seen: usize) -> Vec<(u64, Option<Bytes>)> {
        let inner = self.lock();
        let new = inner.batches.iter().skip(seen).flatten();
        new.map(|change| match change {
            Change::Put(id, value) => (*id, Some(value.clone())),
            Change::Delete(id) => (*id, None),
        })
        .collect()
    }

    pub(super) fn durable_batches(&self) -> usize {
        self.lock().durable
    }

    /// Makes up to `count` more batches durable; says whether there were any.
    pub(super) fn sync(&self, count: usize) -> bool {
        let mut inner = self.lock();
        let before = inner.durable;
        inner.durable = (before + count).min(inner.batches.len());
        inner.durable > before
    }

    pub(super) fn set_stalled(&self, stalled: bool) {
        self.lock().stalled = stalled;
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.lock().stalled
    }

    /// The broker dies, and of its batches the first `kept` are found again. Returns the records in
    /// the order of their puts.
    pub(super) fn crash(&self, kept: usize) -> Vec<(RecordId, Bytes)> {
        let mut inner = self.lock();
        let Inner {
            base,
            batches,
            durable,
            puts,
            stalled,
        } = &mut *inner;
        debug_assert!(kept >= *durable);
        apply(base, puts, &batches[..kept.min(batches.len())]);
        batches.clear();
        *durable = 0;
        *stalled = false;
        let mut records: Vec<(u64, u64, Bytes)> = base
            .iter()
            .map(|(id, (order, value))| (*order, *id, value.clone()))
            .collect();
        records.sort_by_key(|(order, ..)| *order);
        records
            .into_iter()
            .map(|(_, id, value)| (RecordId(id), value))
            .collect()
    }

    /// What would be found if all that was submitted were durable.
    pub(super) fn records(&self) -> Vec<(u64, Bytes)> {
        let inner = self.lock();
        let mut live = inner.base.clone();
        let mut puts = inner.puts;
        apply(&mut live, &mut puts, &inner.batches);
        live.into_iter()
            .map(|(id, (_, value))| (id, value))
            .collect()
    }
}

fn apply(live: &mut Live, puts: &mut u64, batches: &[Vec<Change>]) {
    for change in batches.iter().flatten() {
        match change {
            Change::Put(id, value) => {
                *puts += 1;
                live.insert(*id, (*puts, value.clone()));
            }
            Change::Delete(id) => {
                live.remove(id);
            }
        }
    }
}
