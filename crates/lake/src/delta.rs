//! One Delta table of the lake: opened or created, appended to exactly once per record.
//!
//! Every commit carries, for each partition of the log, the offset of the next record the table
//! wants, as a Delta application transaction (`silver-3` = 42,017). Rows and offsets become visible
//! in the same log entry or not at all, so after a crash the table itself says where to continue and
//! nothing is counted twice. Before each write the offsets are read back from the log: a commit that
//! was reported as failed but did land is recognised, and its rows are not written again.
//!
//! Files written by an attempt that never committed stay behind; no log entry names them, so no
//! reader sees them. A vacuum removes them.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use deltalake::delta_datafusion::DeltaScanNext;
use deltalake::kernel::Transaction;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::operations::optimize::OptimizeType;
use deltalake::protocol::SaveMode;
use deltalake::writer::{DeltaWriter as _, RecordBatchWriter};
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError, TableProperty, ensure_table_uri};
use deltalake::{FilterOp, FilterValue};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::batch::signed;
use crate::columns::{self, PARTITION_COLUMN, RowTable};
use crate::durable;
use crate::error::LakeError;
use crate::hot::Sealed;
use crate::order;

/// Log entries between checkpoints: readers replay at most so many small files.
const CHECKPOINT_INTERVAL: u64 = 50;
/// Rows of a Parquet row group: large enough to compress well, small enough that a filter on a
/// vehicle skips most of a compacted file.
const ROW_GROUP_ROWS: usize = 131_072;

/// A file that is worth merging with others.
const SMALL_FILE_BYTES: u64 = 32 << 20;
/// What merged files grow to.
const TARGET_FILE_BYTES: NonZeroU64 = NonZeroU64::new(128 << 20).unwrap();

/// A table that is open for writing. There is one per table and process.
pub(crate) struct LakeTable {
    kind: RowTable,
    table: DeltaTable,
    /// For each log partition the next offset …
    next: Vec<u64>,
    /// … as this version of the table says.
    next_as_of: Option<u64>,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) rows: usize,
    pub(crate) bytes: u64,
}

impl LakeTable {
    /// Opens the table below `dir`, or makes it.
    pub(crate) async fn open(
        dir: &Path,
        kind: RowTable,
        partitions: u16,
    ) -> Result<LakeTable, LakeError> {
        let failed = |action| failed(kind, action);
        let folder = dir.join(kind.folder());
        durable::create_folder(&folder).map_err(|source| LakeError::Io {
            action: "create",
            path: folder.clone(),
            source,
        })?;
        let url = ensure_table_uri(folder.to_string_lossy()).map_err(failed("open"))?;
        let mut table = DeltaTableBuilder::from_url(url.clone())
            .map_err(failed("open"))?
            .with_storage_backend(durable::shared(), url)
            .build()
            .map_err(failed("open"))?;
        // The kernel logs an error when it finds no table, which on a first start is none.
        let loaded = if folder.join("_delta_log").is_dir() {
            table.load().await
        } else {
            Err(DeltaTableError::NotATable(folder.display().to_string()))
        };
        match loaded {
            Ok(()) => {}
            Err(DeltaTableError::NotATable(_)) => {
                table = create(&table, kind).await.map_err(failed("create"))?;
            }
            Err(error) => return Err(failed("open")(error)),
        }
        let mut opened = LakeTable {
            kind,
            table,
            next: vec![0; usize::from(partitions)],
            next_as_of: None,
        };
        opened
            .read_offsets()
            .await
            .map_err(failed("read the offsets of"))?;
        Ok(opened)
    }

    /// For each log partition the next offset this table wants.
    pub(crate) fn next(&self) -> &[u64] {
        &self.next
    }

    /// The table as it is now, for queries: a snapshot that later commits do not change.
    pub(crate) async fn provider(&self) -> Result<Arc<dyn TableProvider>, LakeError> {
        let scan = async {
            let snapshot = self.table.snapshot()?.snapshot().clone();
            DeltaScanNext::builder()
                .with_log_store(self.table.log_store())
                .with_eager_snapshot(snapshot)
                .build()
                .await
                .map_err(DeltaTableError::from)
        };
        match scan.await {
            Ok(scan) => Ok(Arc::new(scan)),
            Err(source) => Err(failed(self.kind, "read")(source)),
        }
    }

    /// Brings the table to `sealed.next` with the sealed rows, once.
    ///
    /// Encodes Parquet on the calling thread: call it where blocking is allowed.
    pub(crate) async fn append(&mut self, sealed: &Sealed) -> Result<Committed, LakeError> {
        let kind = self.kind;
        let failed = |action| failed(kind, action);
        self.table.update_state().await.map_err(failed("refresh"))?;
        // Offsets belong to a version. If there is a newer one than ours, someone else has written
        // (another engine compacted), or our last commit landed although it reported an error.
        if self.table.version() != self.next_as_of {
            self.read_offsets()
                .await
                .map_err(failed("read the offsets of"))?;
        }

        let rows = |source| LakeError::Rows {
            table: kind.qualified_name(),
            source,
        };
        let batches = self.without_committed(&sealed.batches).map_err(rows)?;
        let file_rows = order::for_files(self.kind, &batches).map_err(rows)?;

        let transactions: Vec<Transaction> = (0_u16..)
            .zip(self.next.iter().zip(&sealed.next))
            .filter(|(_, (have, want))| have < want)
            .map(|(partition, (_, &want))| {
                Transaction::new(application_id(self.kind, partition), signed(want))
            })
            .collect();
        if transactions.is_empty() {
            return Ok(Committed { rows: 0, bytes: 0 });
        }

        let version = self.table.version().unwrap_or_default();
        // Looking for expired log entries lists the whole log, so not with every commit.
        let clean_up = (version + 1).is_multiple_of(CHECKPOINT_INTERVAL);
        let commit = CommitProperties::default()
            .with_application_transactions(transactions)
            .with_cleanup_expired_logs(Some(clean_up));
        let mut writer = RecordBatchWriter::for_table(&self.table)
            .map_err(failed("write"))?
            .with_writer_properties(parquet_properties(kind, FileOrder::Sorted))
            .with_commit_properties(commit);
        let mut written = 0;
        for batch in file_rows {
            let batch = batch.map_err(rows)?;
            written += batch.num_rows();
            writer.write(batch).await.map_err(failed("write"))?;
        }
        let bytes = writer.buffer_len() as u64;
        writer
            .flush_and_commit(&mut self.table)
            .await
            .map_err(failed("commit to"))?;
        self.next.clone_from(&sealed.next);
        self.next_as_of = self.table.version();
        Ok(Committed {
            rows: written,
            bytes,
        })
    }

    /// Merges the small files of a day, the one with the most, if there are at least `after_files`
    /// of them. Says whether it did.
    ///
    /// Moves rows, adds and removes none: such a commit carries no offsets, and a reader sees either
    /// the old files or the new one.
    pub(crate) async fn compact(&mut self, after_files: usize) -> Result<bool, LakeError> {
        let kind = self.kind;
        let failed = |action| failed(kind, action);
        let mut small: HashMap<String, usize> = HashMap::new();
        for file in self
            .table
            .snapshot()
            .map_err(failed("read"))?
            .log_data()
            .iter()
        {
            if u64::try_from(file.size()).is_ok_and(|size| size < SMALL_FILE_BYTES)
                && let Some(Some(day)) = file.partition_values_map().remove(PARTITION_COLUMN)
            {
                *small.entry(day).or_default() += 1;
            }
        }
        let Some((day, files)) = small.into_iter().max_by_key(|(_, files)| *files) else {
            return Ok(false);
        };
        if files < after_files.max(2) {
            return Ok(false);
        }
        let filters = [(PARTITION_COLUMN, FilterOp::Eq, FilterValue::Scalar(&day))];
        let (table, merged) = self
            .table
            .clone()
            .optimize()
            .with_type(OptimizeType::Compact)
            .with_filters(&filters)
            .with_target_size(TARGET_FILE_BYTES)
            .with_writer_properties(parquet_properties(kind, FileOrder::Merged))
            // One at a time: this runs beside everything else.
            .with_max_concurrent_tasks(1)
            .with_commit_properties(
                CommitProperties::default().with_cleanup_expired_logs(Some(false)),
            )
            .await
            .map_err(failed("merge small files of"))?;
        tracing::debug!(
            table = self.kind.qualified_name(),
            day,
            removed = merged.num_files_removed,
            added = merged.num_files_added,
            "merged small files"
        );
        self.table = table;
        Ok(true)
    }

    /// Rows that the table does not have yet: nearly always all of them.
    fn without_committed(
        &self,
        batches: &[Arc<RecordBatch>],
    ) -> Result<Vec<Arc<RecordBatch>>, ArrowError> {
        let schema = self.kind.hot_schema();
        let partition_at = schema.index_of("partition")?;
        let offset_at = schema.index_of("offset")?;
        let next: Vec<i64> = self.next.iter().map(|&next| signed(next)).collect();
        batches
            .iter()
            .map(|batch| {
                let partitions = batch.column(partition_at).as_primitive::<Int32Type>();
                let offsets = batch.column(offset_at).as_primitive::<Int64Type>();
                let wanted = partitions.values().iter().zip(offsets.values()).map(
                    |(&partition, &offset)| {
                        let next = usize::try_from(partition).ok().and_then(|at| next.get(at));
                        next.is_none_or(|&next| offset >= next)
                    },
                );
                if wanted.clone().all(|wanted| wanted) {
                    return Ok(Arc::clone(batch));
                }
                let wanted: BooleanArray = wanted.map(Some).collect();
                filter_record_batch(batch, &wanted).map(Arc::new)
            })
            .collect()
    }

    async fn read_offsets(&mut self) -> Result<(), DeltaTableError> {
        let snapshot = self.table.snapshot()?;
        let log_store = self.table.log_store();
        let mut next = vec![0; self.next.len()];
        for (partition, next) in (0_u16..).zip(next.iter_mut()) {
            let id = application_id(self.kind, partition);
            let found = snapshot.transaction_version(log_store.as_ref(), id).await?;
            *next = found
                .and_then(|found| u64::try_from(found).ok())
                .unwrap_or(0);
        }
        self.next = next;
        self.next_as_of = self.table.version();
        Ok(())
    }
}

fn failed(table: RowTable, action: &'static str) -> impl Fn(DeltaTableError) -> LakeError + Copy {
    move |source| LakeError::Table {
        action,
        table: table.qualified_name(),
        source: Box::new(source),
    }
}

/// Stored in the tables: never change.
fn application_id(table: RowTable, partition: u16) -> String {
    format!("{}-{partition}", table.application())
}

async fn create(table: &DeltaTable, kind: RowTable) -> Result<DeltaTable, DeltaTableError> {
    table
        .create()
        .with_table_name(kind.qualified_name())
        .with_columns(kind.delta_columns())
        .with_partition_columns([PARTITION_COLUMN])
        .with_save_mode(SaveMode::ErrorIfExists)
        .with_configuration_property(
            TableProperty::CheckpointInterval,
            Some(CHECKPOINT_INTERVAL.to_string()),
        )
        .with_configuration_property(
            TableProperty::DataSkippingStatsColumns,
            Some(kind.statistics_columns().join(",")),
        )
        // A commit every ten seconds leaves 8,640 entries a day; a checkpoint has all they say.
        .with_configuration_property(TableProperty::LogRetentionDuration, Some("interval 2 days"))
        // So does each merge leave names of files: long enough for any reader, short enough for the
        // checkpoints that carry them.
        .with_configuration_property(
            TableProperty::DeletedFileRetentionDuration,
            Some("interval 2 days"),
        )
        .await
}

/// What a file may say about the order of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileOrder {
    /// As [`order`] puts them.
    Sorted,
    /// Sorted pieces one after the other; a file that claimed more would mislead its readers.
    Merged,
}

/// How rows are encoded. Times and offsets ascend, so their differences are small; values of a
/// measured signal rarely repeat, so a dictionary of them is wasted work; words do repeat.
fn parquet_properties(kind: RowTable, order: FileOrder) -> WriterProperties {
    let level = ZstdLevel::default();
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_created_by(concat!("milepost ", env!("CARGO_PKG_VERSION")).to_owned());
    for name in ["time", "received_time", "offset"] {
        let column = ColumnPath::from(name);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    let plain: &[&str] = match kind {
        RowTable::Messages => &["id", "payload"],
        RowTable::Signals => &["value"],
    };
    for name in plain {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(*name), false);
    }
    if kind == RowTable::Signals && order == FileOrder::Sorted {
        let ascending = |index: usize| SortingColumn {
            // Twelve columns.
            column_idx: i32::try_from(index).unwrap_or_default(),
            descending: false,
            nulls_first: false,
        };
        let order = [
            columns::SIGNALS_VEHICLE,
            columns::SIGNALS_SIGNAL,
            columns::SIGNALS_TIME,
        ];
        properties = properties.set_sorting_columns(Some(order.map(ascending).to_vec()));
    }
    properties.build()
}

/// `batch` with the plain types of the files.
pub(crate) fn to_file_types(
    kind: RowTable,
    batch: &RecordBatch,
) -> Result<RecordBatch, ArrowError> {
    let schema = kind.file_schema();
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast(column, field.data_type())
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema, columns)
}
