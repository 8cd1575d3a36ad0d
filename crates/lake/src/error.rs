//! What can go wrong with the lake as a store. Queries have their own error, see
//! [`QueryError`](crate::QueryError).

use std::io;
use std::path::PathBuf;

use deltalake::DeltaTableError;

/// Why the lake could not be opened, or could not take or keep rows.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// Another process has this lake open; two writers would corrupt its checkpoints.
    #[error(
        "the lake in {} is in use by another process; stop that one or choose another data_dir",
        .dir.display()
    )]
    Locked {
        /// The folder of the lake.
        dir: PathBuf,
    },
    /// A file or folder of the lake could not be used.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried: "create", "lock" …
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk is all but full.
    #[error(
        "{} MiB are free where {} lies, and a commit is not begun with less than {} MiB; make room",
        .free >> 20, .dir.display(), .least >> 20
    )]
    DiskFull {
        /// The folder of the lake.
        dir: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        least: u64,
    },
    /// A Delta table could not be read or written.
    #[error("cannot {action} the table {table}")]
    Table {
        /// What was tried.
        action: &'static str,
        /// Which table.
        table: &'static str,
        /// Why not.
        #[source]
        source: Box<DeltaTableError>,
    },
    /// Rows could not be brought into the shape of the table: a mistake in this program.
    #[error("cannot build rows of {table}")]
    Rows {
        /// Which table.
        table: &'static str,
        /// Why not.
        source: arrow::error::ArrowError,
    },
    /// A record came from a partition the lake was not opened for.
    #[error(
        "record of partition {partition}, but the lake was opened for {partitions} partitions; \
         set `LakeOptions::partitions` to the stream's number of partitions"
    )]
    UnknownPartition {
        /// The partition of the record.
        partition: u16,
        /// How many there are.
        partitions: u16,
    },
    /// The SQL engine could not be set up.
    #[error("cannot set up the SQL engine")]
    Engine {
        /// Why not.
        #[source]
        source: Box<datafusion::error::DataFusionError>,
    },
    /// The lake was closed; nothing can be added any more.
    #[error("the lake is closed")]
    Closed,
}
