//! The numbers of presence events: growing over all shards, and over restarts.
//!
//! They count on from the wall clock at the start, in microseconds, so a run begins above the one before
//! unless that had more than a million events a second, or the clock went back. With a store on disk
//! neither matters: it holds a mark that is always above the numbers in use, and a run begins at the
//! mark if that is above the clock. The mark moves on in large steps, so it costs a record of ten bytes
//! at the start and one every eight million events.
//!
//! A number is above the mark for the moment between a start and the mark's being on disk; what must
//! not be said before it is stored (a stored session) waits for that as well.

use std::sync::atomic::{AtomicU64, Ordering};

use journal::{Batch, RecordId};

use super::exchange::Exchange;
use super::format::SequenceRecord;

/// How far the mark is moved ahead: as many microseconds as 17 seconds, so that starting again at once
/// does not run away from the clock by much.
const STEP: u64 = 1 << 24;

/// How often it is moved. The store has half a step of events to write it.
const RENEWED: u64 = STEP / 2;

/// The next number, and where its mark is stored.
#[derive(Debug)]
pub(crate) struct Sequence {
    next: AtomicU64,
    /// The record of the mark; 0 if there is none.
    record: AtomicU64,
}

impl Sequence {
    /// Counts on from the wall clock.
    pub(crate) fn starting_at(wall_us: i64) -> Sequence {
        Sequence {
            next: AtomicU64::new(wall_us.max(1) as u64),
            record: AtomicU64::new(0),
        }
    }

    /// The store says that numbers below `mark` may have been used.
    pub(crate) fn begin_above(&self, mark: u64, record: RecordId) {
        self.next.fetch_max(mark, Ordering::Relaxed);
        self.record.store(record.0, Ordering::Relaxed);
    }
}

impl Exchange {
    /// The next number.
    pub(crate) fn next_event(&self) -> u64 {
        let number = self.sequence.next.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(RENEWED) {
            self.mark(number);
        }
        number
    }

    /// Has the store know how far the numbers may get, from now on. Once, at the start.
    pub(crate) fn keep_sequence(&self) {
        if self.sequence.record.load(Ordering::Relaxed) == 0 {
            let record = self.next_record();
            self.sequence.record.store(record.0, Ordering::Relaxed);
        }
        self.mark(self.sequence.next.load(Ordering::Relaxed));
    }

    fn mark(&self, number: u64) {
        let record = RecordId(self.sequence.record.load(Ordering::Relaxed));
        if record == RecordId(0) {
            return;
        }
        let mark = SequenceRecord {
            below: number.saturating_add(STEP),
        };
        let mut batch = Batch::default();
        batch.put_with(record, |out| mark.write(out));
        self.submit(&mut batch);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use journal::{Condition, Operation, Position};

    use super::super::Moment;
    use super::super::format::Record;
    use super::super::store::Store;
    use super::super::world::Outside;
    use super::*;
    use crate::limits::Limits;

    /// Remembers the last mark it was given.
    #[derive(Default)]
    struct Marks(Mutex<Vec<(RecordId, u64)>>);

    impl Store for Marks {
        fn submit(&self, batch: Batch) -> Position {
            for operation in batch.operations() {
                if let Operation::Put(id, bytes) = operation
                    && let Ok(Record::Sequence(mark)) = Record::read(bytes)
                {
                    self.0.lock().unwrap().push((id, mark.below));
                }
            }
            Position::new(1)
        }

        fn durable(&self) -> Position {
            Position::new(1)
        }

        fn condition(&self) -> Condition {
            Condition::Ready
        }
    }

    fn exchange(wall_us: i64, store: &Arc<Marks>) -> Exchange {
        let now = Moment { tick: 0, wall_us };
        let hooks = Arc::new(Outside::default());
        let store = Arc::clone(store) as _;
        Exchange::new(hooks, Limits::default(), 1, now, 0, store)
    }

    const NOON: u64 = 1_700_000_000_000_000;

    #[test]
    fn numbers_grow_over_restarts_whatever_the_clock_does() {
        let store = Arc::new(Marks::default());
        let mut last = 0;
        for clock in [NOON, NOON + 60_000_000, NOON - 3_600_000_000, 0, NOON] {
            let exchange = exchange(clock as i64, &store);
            if let Some((record, below)) = store.0.lock().unwrap().last() {
                exchange.sequence.begin_above(*below, *record);
            }
            exchange.keep_sequence();
            for _ in 0..3 {
                let number = exchange.next_event();
                assert!(number > last, "{number} after {last}");
                last = number;
            }
        }
        // Not by more than a few steps, although the clock stood still.
        assert!(last < NOON + 60_000_000 + 5 * STEP);
        let records = store.0.lock().unwrap();
        assert!(records.iter().all(|(record, _)| *record == records[0].0));
    }

    #[test]
    fn the_mark_stays_ahead_of_the_numbers() {
        let store = Arc::new(Marks::default());
        let exchange = exchange(NOON as i64, &store);
        exchange.keep_sequence();
        let mut number = exchange.next_event();
        for _ in 0..4 {
            // The next one is the first of a step, and the one after it is far in it.
            let sequence = &exchange.sequence;
            sequence
                .next
                .store(number.next_multiple_of(RENEWED), Ordering::Relaxed);
            exchange.next_event();
            sequence.next.fetch_add(RENEWED - 2, Ordering::Relaxed);
            number = exchange.next_event();
            let below = store.0.lock().unwrap().last().expect("there is one").1;
            assert!(number < below, "{number} of {below}");
        }
        assert_eq!(store.0.lock().unwrap().len(), 5);
    }
}
