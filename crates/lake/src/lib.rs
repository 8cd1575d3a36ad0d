//! The lake: what vehicles sent, as open tables and as SQL.
//!
//! ```text
//! records of the log ──ingest──► hot rows ──commit──► bronze.messages, silver.signals (Delta)
//!                        │          │                      │
//!                        │          └──── one View ────────┴──► signals, messages ──┐
//!                        └──► last known state ─────────────► last_known_state ─────┼─► query,
//!                                            registry ──────► vehicles, fleet.* ────┘   psql
//! ```
//! - [`Lake::ingest`] makes rows visible in SQL at once and holds them in bounded memory.
//! - A commit writes them as sorted Parquet, with the log offsets in the same Delta transaction: each
//!   record is in each table exactly once, whatever crashes when ([`Lake::resume_from`]).
//! - Every query, whichever door it came through, takes one path with one set of limits.
//!
//! Any engine that reads Delta reads the tables, also while Milepost writes them: `bronze/messages`
//! and `silver/signals` below the lake's folder.
//!
//! How many files: each commit adds one file to each table that got rows (two at midnight UTC), so
//! at the default of one commit in ten seconds at most 8,640 a day and table. When 64 small ones
//! have gathered in a day they are merged, so a day keeps some 64 small files at most beside its
//! files of about 128 MiB. Files that were merged, and files of a commit that a crash cut off, stay
//! on disk, named by no log entry, until they are vacuumed.
//!
//! This is the only crate that may say DataFusion or Delta; it knows nothing of MQTT.

mod batch;
mod capped;
mod catalog;
mod columns;
mod committer;
mod delta;
mod durable;
mod encode;
mod error;
mod hot;
mod last_known;
mod lock;
mod metrics;
mod options;
mod order;
mod postgres;
mod query;
mod registry;
mod saved_state;
mod statement;
mod tables;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eventlog::Offset;
use pipeline::Processed;
use signals::Catalogue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use encode::{ARROW_STREAM, Column};
pub use error::LakeError;
pub use metrics::{FRESHNESS_BUCKETS_MS, Freshness, LakeMetrics, LastCommit};
pub use options::{LakeOptions, QueryLimits};
pub use query::{QueryError, QueryErrorKind, QueryResult};
pub use registry::{FleetDevice, FleetRows, FleetSource, FleetVehicle};

use crate::catalog::Sources;
use crate::columns::RowTable;
use crate::committer::Committer;
use crate::delta::LakeTable;
use crate::last_known::LastKnown;
use crate::lock::DirLock;
use crate::metrics::{Counters, add, get};
use crate::query::Engine;
use crate::registry::Registry;
use crate::tables::{NextOffsets, NotAppended, Tables};

/// Readings up to which batches are built on the calling thread: some tens of microseconds.
const BUILD_INLINE: usize = 64;

/// The lake. Cheap to clone; the last clone that goes stops the background commits, without a last
/// one: call [`Lake::close`] for that.
#[derive(Clone)]
pub struct Lake {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    options: LakeOptions,
    tables: Arc<Tables>,
    last_known: Arc<LastKnown>,
    registry: Arc<Registry>,
    counters: Arc<Counters>,
    committer: Arc<Committer>,
    engine: Arc<Engine>,
    /// As the tables had them when they were opened.
    opened_at: NextOffsets,
    closed: AtomicBool,
    stop: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What [`Lake::ingest`] did with its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ingested {
    /// Records that are new to at least one of the tables.
    pub messages: usize,
    /// Readings that are new.
    pub signals: usize,
    /// Records both tables had already.
    pub duplicates: usize,
}

impl Lake {
    /// Opens the lake in `dir`, making what is not there, and starts committing in the background.
    ///
    /// Call it in a multi-threaded tokio runtime. After a crash nothing needs repair: the tables say
    /// where they stand. The last known state is brought up to date in the background; until then
    /// SQL computes it.
    ///
    /// # Errors
    /// [`LakeError::Locked`] if another process has it, otherwise what cannot be read or created.
    pub async fn open(dir: impl AsRef<Path>, options: LakeOptions) -> Result<Lake, LakeError> {
        let dir = std::path::absolute(dir.as_ref()).map_err(|source| LakeError::Io {
            action: "find",
            path: dir.as_ref().to_owned(),
            source,
        })?;
        let lock = DirLock::take(&dir)?;
        let bronze = LakeTable::open(&dir, RowTable::Messages, options.partitions).await?;
        let silver = LakeTable::open(&dir, RowTable::Signals, options.partitions).await?;
        let opened_at = NextOffsets([bronze.next().to_vec(), silver.next().to_vec()]);
        let cold = [bronze.provider().await?, silver.provider().await?];
        let schemas = [cold[0].schema(), cold[1].schema()];
        let [bronze_cold, silver_cold] = cold;
        let tables = Arc::new(Tables::new([
            (bronze.next().to_vec(), bronze_cold),
            (silver.next().to_vec(), silver_cold),
        ]));
        let counters = Arc::new(Counters::default());
        let registry = Arc::new(Registry::default());
        let last_known = Arc::new(LastKnown::new(options.last_known_entries));
        let engine = Engine::new(
            options.query_threads.max(1),
            options.concurrent_queries,
            Arc::clone(&tables),
            schemas,
            Sources {
                last_known: Arc::clone(&last_known),
                registry: Arc::clone(&registry),
                units: Arc::clone(&options.catalogue),
            },
            Arc::clone(&counters),
        )
        .await?;
        let committer = Arc::new(Committer::new(
            dir.clone(),
            [bronze, silver],
            Arc::clone(&tables),
            Arc::clone(&last_known),
            Arc::clone(&counters),
            options.compact_after_files,
            lock,
        ));
        let stop = CancellationToken::new();
        tokio::spawn(committer::run(
            Arc::downgrade(&committer),
            committer.wanted(),
            options.commit_every,
            stop.clone(),
        ));
        let shared = Shared {
            dir,
            options,
            tables,
            last_known,
            registry,
            counters,
            committer,
            engine: Arc::new(engine),
            opened_at,
            closed: AtomicBool::new(false),
            stop,
        };
        shared.load_last_known();
        Ok(Lake {
            shared: Arc::new(shared),
        })
    }

    /// Where the reader of a log partition continues: the smaller of what the two tables had when
    /// the lake was opened. Records that one of them has already are skipped by it.
    pub fn resume_from(&self, partition: u16) -> Offset {
        let next = |table: RowTable| {
            self.shared.opened_at.0[table as usize]
                .get(usize::from(partition))
                .copied()
                .unwrap_or_default()
        };
        Offset::new(next(RowTable::Messages).min(next(RowTable::Signals)))
    }

    /// Takes in records; when it returns, SQL sees them.
    ///
    /// The records of a partition must come in the order of their offsets; what has an offset below
    /// one that was taken in before is skipped as a repetition. Waits while
    /// [`LakeOptions::hot_bytes`] are in use.
    ///
    /// Cancel-safe: dropped early, it has taken in all of `records` or none.
    ///
    /// # Errors
    /// [`LakeError::UnknownPartition`], [`LakeError::Closed`], [`LakeError::Rows`]; nothing was
    /// taken in then.
    pub async fn ingest(&self, records: Vec<Processed>) -> Result<Ingested, LakeError> {
        let shared = &self.shared;
        if records.is_empty() {
            return Ok(Ingested::default());
        }
        let partitions = shared.options.partitions;
        if let Some(record) = records
            .iter()
            .find(|record| record.message.partition >= partitions)
        {
            let partition = record.message.partition;
            return Err(LakeError::UnknownPartition {
                partition,
                partitions,
            });
        }
        shared.room().await?;

        let readings: usize = records.iter().map(|record| record.readings.len()).sum();
        if records.len() + readings <= BUILD_INLINE {
            return shared.take_in(&records);
        }
        // Building is what costs; it must not hold up the messages of everybody on this thread.
        let shared = Arc::clone(shared);
        tokio::task::spawn_blocking(move || shared.take_in(&records))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Commits all rows taken in so far to the Delta tables.
    ///
    /// # Errors
    /// If a table cannot be written. The rows stay visible and are tried again by the next commit.
    pub async fn flush(&self) -> Result<(), LakeError> {
        self.shared.committer.commit().await
    }

    /// Stops background commits, commits what is left, and saves what a restart starts from.
    /// Queries still work; nothing can be added.
    ///
    /// # Errors
    /// If the last commit fails. Its records are still in the log: the next start takes them in
    /// again.
    pub async fn close(&self) -> Result<(), LakeError> {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.stop.cancel();
        let flushed = self.flush().await;
        self.shared.committer.save_state().await;
        flushed
    }

    /// Answers one statement that reads, with all rows in memory.
    ///
    /// # Errors
    /// See [`QueryError`]; reaching a limit is an error, an answer is never cut short.
    pub async fn query(&self, sql: &str, limits: QueryLimits) -> Result<QueryResult, QueryError> {
        self.shared.engine.query(sql, limits).await
    }

    /// Serves PostgreSQL clients on `listener` until `stop`. See the module `postgres` for who may
    /// connect.
    ///
    /// # Errors
    /// If the listener is not on a loopback address, or accepting fails for good.
    pub async fn serve_postgres(
        &self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let options = &self.shared.options;
        postgres::serve(
            Arc::clone(&self.shared.engine),
            listener,
            options.postgres_connections,
            options.postgres_limits,
            stop,
        )
        .await
    }

    /// Says where the rows of `fleet.vehicles`, `fleet.devices` and `vehicles` come from. It is
    /// asked at most once a second.
    pub async fn set_fleet_source(&self, source: FleetSource) {
        self.shared.registry.set_source(source).await;
    }

    /// State and counters of this moment.
    pub fn metrics(&self) -> LakeMetrics {
        let counters = &self.shared.counters;
        let (hot_messages, hot_signals, hot_bytes) = self.shared.tables.hot_size();
        LakeMetrics {
            hot_messages: hot_messages as u64,
            hot_signals: hot_signals as u64,
            hot_bytes: hot_bytes as u64,
            ingested_messages: get(&counters.ingested_messages),
            ingested_signals: get(&counters.ingested_signals),
            duplicates: get(&counters.duplicates),
            ingest_waits: get(&counters.ingest_waits),
            committed_messages: get(&counters.committed_messages),
            committed_signals: get(&counters.committed_signals),
            committed_bytes: get(&counters.committed_bytes),
            commits: get(&counters.commits),
            commit_failures: get(&counters.commit_failures),
            compactions: get(&counters.compactions),
            last_commit: counters.last_commit(),
            last_known_entries: self.shared.last_known.entries() as u64,
            freshness: counters.freshness(),
            queries: counters.queries(),
        }
    }

    /// The units and descriptions the lake was opened with.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.shared.options.catalogue
    }
}

impl Shared {
    /// Returns once there is room for more rows.
    async fn room(&self) -> Result<(), LakeError> {
        let mut waited = false;
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(LakeError::Closed);
            }
            // Registered before looking, so that room made in between wakes us.
            let freed = self.committer.freed();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let (messages, signals, bytes) = self.tables.hot_size();
            if bytes >= self.options.hot_bytes / 2
                || messages.max(signals) >= self.options.commit_rows
            {
                self.committer.want();
            }
            // One batch may go over the bound: it is there already, and refusing it forever because
            // it alone is larger would stop everything.
            if bytes < self.options.hot_bytes {
                return Ok(());
            }
            if !waited {
                waited = true;
                add(&self.counters.ingest_waits, 1);
            }
            tokio::select! {
                () = freed => {} // a missed wake-up is made good by looking again
                () = self.stop.cancelled() => {} // `closed` is looked at next
            }
        }
    }

    /// Builds and adds batches. Blocks for as long as building takes.
    fn take_in(&self, records: &[Processed]) -> Result<Ingested, LakeError> {
        let mut next: BTreeMap<u16, u64> = BTreeMap::new();
        for Processed { message, .. } in records {
            let wanted = next.entry(message.partition).or_default();
            *wanted = (*wanted).max(message.offset.get() + 1);
        }
        let next: Vec<(u16, u64)> = next.into_iter().collect();
        loop {
            let wants = self.tables.next();
            let new_to = |table: RowTable| {
                let wants = &wants;
                records.iter().filter(move |record| {
                    wants.wants(table, record.message.partition, record.message.offset.get())
                })
            };
            let rows = |table: RowTable| {
                move |source| LakeError::Rows {
                    table: table.qualified_name(),
                    source,
                }
            };
            let messages =
                batch::messages(new_to(RowTable::Messages)).map_err(rows(RowTable::Messages))?;
            let signals = batch::signals(new_to(RowTable::Signals), &self.options.catalogue)
                .map_err(rows(RowTable::Signals))?;
            let is_new = |record: &&Processed| {
                let (partition, offset) = (record.message.partition, record.message.offset.get());
                RowTable::ALL
                    .iter()
                    .any(|&table| wants.wants(table, partition, offset))
            };
            let new = records.iter().filter(is_new).count();
            let ingested = Ingested {
                messages: new,
                signals: signals.num_rows(),
                duplicates: records.len() - new,
            };
            match self.tables.append(&wants, [messages, signals], &next) {
                Ok(()) => {}
                Err(NotAppended::Overtaken) => continue,
                Err(NotAppended::Rows(source)) => return Err(rows(RowTable::Signals)(source)),
            }
            self.last_known.observe(records.iter());
            add(&self.counters.ingested_messages, ingested.messages);
            add(&self.counters.ingested_signals, ingested.signals);
            add(&self.counters.duplicates, ingested.duplicates);
            let now_us = batch::now_us();
            for record in records.iter().filter(is_new) {
                self.counters
                    .visible_after(now_us - record.message.received_us);
            }
            return Ok(ingested);
        }
    }

    /// Brings the last known state up to what the tables hold: the saved file first, then, in the
    /// background, the rows the file does not cover.
    fn load_last_known(&self) {
        let covered = saved_state::read(&self.dir, &self.last_known, self.options.partitions);
        if covered == self.opened_at {
            self.last_known.set_loaded();
            return;
        }
        let engine = Arc::clone(&self.engine);
        let last_known = Arc::clone(&self.last_known);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let loading = last_known::replay(&engine, &last_known, &covered);
            tokio::select! {
                () = stop.cancelled() => {} // what is loaded stays true, and is not called complete
                loaded = loading => match loaded {
                    Ok(()) => last_known.set_loaded(),
                    Err(error) => tracing::warn!(
                        %error,
                        "cannot load the last known state; it is computed by each query instead"
                    ),
                },
            }
        });
    }
}
