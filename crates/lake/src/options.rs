//! What an operator may choose about the lake, with the bound of every buffer in it.

use std::sync::Arc;
use std::time::Duration;

use signals::Catalogue;

/// How a [`Lake`](crate::Lake) runs. `LakeOptions::default()` is safe on a small machine.
///
/// Memory the lake promises to stay within, with the defaults: `hot_bytes` (256 MiB) for rows that
/// are not yet in Delta, about as much again while such rows are sorted and encoded, 200 bytes for
/// each of `last_known_entries` (400 MiB when full), and `concurrent_queries` times
/// [`QueryLimits::memory`] (8 × 256 MiB) for queries.
#[derive(Clone)]
pub struct LakeOptions {
    /// Partitions of the log stream that is ingested; the lake keeps one committed offset per table
    /// and partition. May grow from one start to the next, never shrink.
    pub partitions: u16,
    /// Rows reach Delta at the latest this long after they were ingested, if anything came in.
    pub commit_every: Duration,
    /// A table is committed earlier once this many of its rows wait: enough for a good row group.
    pub commit_rows: usize,
    /// Bytes of rows held in memory, both tables together. At half of it a commit starts; when it
    /// is reached [`Lake::ingest`](crate::Lake::ingest) waits until a commit has freed room, so a
    /// slow disk slows the reader of the log and nothing is dropped.
    pub hot_bytes: usize,
    /// Vehicle × signal pairs whose newest value is kept in memory. Beyond it `last_known_state`
    /// stays exact but is computed from `signals`, which reads files.
    pub last_known_entries: usize,
    /// Small files per table and day that are merged into large ones when this many have gathered.
    pub compact_after_files: usize,
    /// Threads that plan and run queries, apart from the threads that carry messages.
    pub query_threads: usize,
    /// Queries that run at the same time; further ones wait up to two seconds, then are refused.
    pub concurrent_queries: usize,
    /// Open connections on the PostgreSQL port; further ones are refused with SQLSTATE 53300.
    pub postgres_connections: usize,
    /// Limits of a query on the PostgreSQL port. Rows are streamed there, so many more are allowed
    /// than where an answer is built in memory.
    pub postgres_limits: QueryLimits,
    /// Units of the known signals, written beside each reading.
    pub catalogue: Arc<Catalogue>,
}

impl Default for LakeOptions {
    fn default() -> LakeOptions {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        LakeOptions {
            partitions: 16,
            commit_every: Duration::from_secs(10),
            commit_rows: 1_000_000,
            hot_bytes: 256 << 20,
            last_known_entries: 2_000_000,
            compact_after_files: 64,
            query_threads: cores.div_ceil(2),
            concurrent_queries: 8,
            postgres_connections: 64,
            postgres_limits: QueryLimits {
                rows: 1_000_000,
                ..QueryLimits::default()
            },
            catalogue: Arc::new(Catalogue::builtin().clone()),
        }
    }
}

/// What one query may use. Reaching a limit ends the query with an error that names the limit;
/// an answer is never cut short silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryLimits {
    /// Rows in the answer.
    pub rows: usize,
    /// From the arrival of the query to its last row, waiting and planning included.
    pub time: Duration,
    /// Bytes for sorting, grouping, joining and (where it is collected) the answer.
    pub memory: usize,
}

impl Default for QueryLimits {
    fn default() -> QueryLimits {
        QueryLimits {
            rows: 10_000,
            time: Duration::from_secs(30),
            memory: 256 << 20,
        }
    }
}
