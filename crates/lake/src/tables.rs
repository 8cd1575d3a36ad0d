//! The two row tables as queries see them: hot rows and Delta snapshot exchanged together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;

use crate::columns::RowTable;
use crate::hot::{Hot, Sealed};

/// Hot rows and Delta snapshot of both tables, under one lock that is held for pushing and cloning
/// lists only.
pub(crate) struct Tables {
    sides: Mutex<[Side; 2]>,
}

struct Side {
    hot: Hot,
    cold: Arc<dyn TableProvider>,
}

/// What one query sees, from its first to its last row: every ingested row once, either in a Delta
/// snapshot or among the hot batches.
#[derive(Debug)]
pub(crate) struct View {
    sides: [TableView; 2],
}

/// See [`View`].
#[derive(Debug)]
pub(crate) struct TableView {
    pub(crate) hot: Vec<Arc<RecordBatch>>,
    pub(crate) cold: Arc<dyn TableProvider>,
}

impl View {
    pub(crate) fn table(&self, table: RowTable) -> &TableView {
        &self.sides[table as usize]
    }
}

/// For each table, for each log partition, the offset of the next record wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NextOffsets(pub(crate) [Vec<u64>; 2]);

impl NextOffsets {
    pub(crate) fn wants(&self, table: RowTable, partition: u16, offset: u64) -> bool {
        self.0[table as usize]
            .get(usize::from(partition))
            .is_some_and(|&next| offset >= next)
    }
}

/// Why an append was not made.
pub(crate) enum NotAppended {
    /// Someone else appended meanwhile; build the batches again with the new offsets.
    Overtaken,
    /// The batches do not fit the table.
    Rows(ArrowError),
}

impl Tables {
    pub(crate) fn new(tables: [(Vec<u64>, Arc<dyn TableProvider>); 2]) -> Tables {
        Tables {
            sides: Mutex::new(tables.map(|(next, cold)| Side {
                hot: Hot::new(next),
                cold,
            })),
        }
    }

    /// A panic while the lock was held leaves lists that are each still right: pushing is the last
    /// step of every change.
    fn lock(&self) -> MutexGuard<'_, [Side; 2]> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn view(&self) -> View {
        let sides = self.lock();
        View {
            sides: [&sides[0], &sides[1]].map(|side| TableView {
                hot: side.hot.snapshot(),
                cold: Arc::clone(&side.cold),
            }),
        }
    }

    pub(crate) fn next(&self) -> NextOffsets {
        let sides = self.lock();
        NextOffsets([sides[0].hot.next().to_vec(), sides[1].hot.next().to_vec()])
    }

    /// Adds batches that were built for records wanted under `built_for`, and moves both tables to
    /// `next`; all or nothing.
    pub(crate) fn append(
        &self,
        built_for: &NextOffsets,
        [messages, signals]: [RecordBatch; 2],
        next: &[(u16, u64)],
    ) -> Result<(), NotAppended> {
        let mut sides = self.lock();
        for (side, expected) in sides.iter().zip(&built_for.0) {
            let unchanged = next.iter().all(|&(partition, _)| {
                let partition = usize::from(partition);
                side.hot.next().get(partition) == expected.get(partition)
            });
            if !unchanged {
                return Err(NotAppended::Overtaken);
            }
        }
        sides[0]
            .hot
            .append(messages, next)
            .map_err(NotAppended::Rows)?;
        sides[1]
            .hot
            .append(signals, next)
            .map_err(NotAppended::Rows)
    }

    pub(crate) fn seal(&self, table: RowTable) -> Sealed {
        self.lock()[table as usize].hot.seal()
    }

    /// Exchanges the sealed rows for the snapshot that has them.
    pub(crate) fn committed(&self, table: RowTable, cold: Arc<dyn TableProvider>) {
        let side = &mut self.lock()[table as usize];
        side.hot.committed();
        side.cold = cold;
    }

    /// Takes a snapshot with the same rows in other files.
    pub(crate) fn compacted(&self, table: RowTable, cold: Arc<dyn TableProvider>) {
        self.lock()[table as usize].cold = cold;
    }

    /// (rows of messages, rows of signals, bytes of both)
    pub(crate) fn hot_size(&self) -> (usize, usize, usize) {
        let sides = self.lock();
        let [messages, signals] = [&sides[0].hot, &sides[1].hot];
        (
            messages.rows(),
            signals.rows(),
            messages.bytes() + signals.bytes(),
        )
    }
}
