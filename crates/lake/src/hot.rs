//! Rows that are not in Delta yet, and where each log partition stands.
//!
//! Flow: `append` (ingest) -> `snapshot` (a query) and `seal` (the committer) -> `committed`.
//!
//! One [`Hot`] per table behind one lock for both, held only to push or clone lists of batches. A
//! query takes hot batches and Delta snapshot under that lock in one go, and a commit exchanges the
//! two under it, so no query sees a row twice or misses one.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;

/// Rows up to which neighbouring batches are merged. A vehicle's message has some twenty readings
/// and messages come in dozens; without merging, a scan would spend its time on batch overhead.
const TIERS: [usize; 2] = [512, 8_192];
/// Batches of one tier that are merged into one: each row is copied at most `TIERS.len()` times.
const MERGE_AT: usize = 16;

/// Uncommitted rows of one table.
#[derive(Debug)]
pub(crate) struct Hot {
    batches: Vec<HotBatch>,
    /// The first so many batches belong to the commit that is under way.
    sealed: usize,
    /// For each log partition, the offset of the next record this table wants.
    next: Vec<u64>,
    rows: usize,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct HotBatch {
    rows: Arc<RecordBatch>,
    bytes: usize,
}

/// What a commit writes: rows, and the offsets it brings the table to.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) batches: Vec<Arc<RecordBatch>>,
    pub(crate) next: Vec<u64>,
    pub(crate) rows: usize,
}

impl Hot {
    pub(crate) fn new(next: Vec<u64>) -> Hot {
        Hot {
            batches: Vec::new(),
            sealed: 0,
            next,
            rows: 0,
            bytes: 0,
        }
    }

    pub(crate) fn next(&self) -> &[u64] {
        &self.next
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds rows and moves the offsets on. `next` holds (partition, next offset) pairs.
    pub(crate) fn append(
        &mut self,
        batch: RecordBatch,
        next: &[(u16, u64)],
    ) -> Result<(), ArrowError> {
        if batch.num_rows() > 0 {
            let bytes = batch.get_array_memory_size();
            self.rows += batch.num_rows();
            self.bytes += bytes;
            self.batches.push(HotBatch {
                rows: Arc::new(batch),
                bytes,
            });
            self.merge_tail()?;
        }
        for &(partition, offset) in next {
            if let Some(slot) = self.next.get_mut(usize::from(partition)) {
                *slot = (*slot).max(offset);
            }
        }
        Ok(())
    }

    fn merge_tail(&mut self) -> Result<(), ArrowError> {
        for limit in TIERS {
            let open = &self.batches[self.sealed..];
            let tail = open
                .iter()
                .rev()
                .take_while(|batch| batch.rows.num_rows() < limit)
                .count();
            if tail < MERGE_AT {
                return Ok(());
            }
            let from = self.batches.len() - tail;
            let schema = self.batches[from].rows.schema();
            let merged = concat_batches(&schema, self.batches[from..].iter().map(|b| &*b.rows))?;
            let bytes = merged.get_array_memory_size();
            for old in self.batches.drain(from..) {
                self.bytes -= old.bytes;
            }
            self.bytes += bytes;
            self.batches.push(HotBatch {
                rows: Arc::new(merged),
                bytes,
            });
        }
        Ok(())
    }

    /// All uncommitted rows, for a query.
    pub(crate) fn snapshot(&self) -> Vec<Arc<RecordBatch>> {
        self.batches
            .iter()
            .map(|batch| Arc::clone(&batch.rows))
            .collect()
    }

    /// Closes what is there now for a commit. Repeated until [`Hot::committed`], it returns a
    /// superset of what it returned before.
    pub(crate) fn seal(&mut self) -> Sealed {
        self.sealed = self.batches.len();
        Sealed {
            batches: self.snapshot(),
            next: self.next.clone(),
            rows: self.rows,
        }
    }

    /// Forgets the sealed rows: they are in Delta now.
    pub(crate) fn committed(&mut self) {
        for batch in self.batches.drain(..self.sealed) {
            self.rows -= batch.rows.num_rows();
            self.bytes -= batch.bytes;
        }
        self.sealed = 0;
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray as _, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};

    use super::*;

    fn rows(values: std::ops::Range<i64>) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let values: Int64Array = values.collect::<Vec<_>>().into();
        RecordBatch::try_new(schema, vec![Arc::new(values)]).expect("one column, one type")
    }

    fn values(batches: &[Arc<RecordBatch>]) -> Vec<i64> {
        batches
            .iter()
            .flat_map(|batch| {
                batch
                    .column(0)
                    .as_primitive::<Int64Type>()
                    .values()
                    .to_vec()
            })
            .collect()
    }

    #[test]
    fn many_small_batches_become_few_and_keep_their_order() {
        let mut hot = Hot::new(vec![0]);
        for n in 0..1_000 {
            hot.append(rows(n..n + 1), &[(0, 1)]).expect("appends");
        }
        let batches = hot.snapshot();
        assert!(batches.len() < 2 * MERGE_AT, "{} batches", batches.len());
        assert_eq!(values(&batches), (0..1_000).collect::<Vec<_>>());
        assert_eq!(hot.rows(), 1_000);
    }

    #[test]
    fn rows_that_arrive_during_a_commit_survive_it() {
        let mut hot = Hot::new(vec![0, 0]);
        hot.append(rows(0..3), &[(0, 3)]).expect("appends");
        let sealed = hot.seal();
        for n in 3..40 {
            // Enough to merge: never into the sealed part.
            hot.append(rows(n..n + 1), &[(1, 7)]).expect("appends");
        }
        assert_eq!(values(&sealed.batches), [0, 1, 2]);
        assert_eq!(sealed.next, [3, 0]);
        hot.committed();
        assert_eq!(values(&hot.snapshot()), (3..40).collect::<Vec<_>>());
        assert_eq!(hot.rows(), 37);
        assert_eq!(hot.next(), [3, 7]);
    }

    #[test]
    fn memory_is_given_back() {
        let mut hot = Hot::new(vec![0]);
        for n in 0..100 {
            hot.append(rows(n..n + 1), &[]).expect("appends");
        }
        assert!(hot.bytes() > 0);
        hot.seal();
        hot.committed();
        assert_eq!((hot.rows(), hot.bytes()), (0, 0));
    }
}
