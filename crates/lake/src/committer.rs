//! Brings hot rows into Delta: by the clock, when enough have gathered, and when asked.
//!
//! One task per lake. Both tables are committed one after the other; each stands by its own
//! offsets, so a crash in between loses and doubles nothing. A commit that fails leaves the rows
//! where they are and is tried again with the next one; meanwhile memory fills up, ingest waits and
//! the log keeps what comes.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::batch;
use crate::columns::RowTable;
use crate::delta::LakeTable;
use crate::error::LakeError;
use crate::last_known::LastKnown;
use crate::lock::DirLock;
use crate::metrics::{Counters, LastCommit, add};
use crate::saved_state;
use crate::tables::{NextOffsets, Tables};

/// The saved state is written at most this often; after a crash that much is replayed.
const SAVE_EVERY: Duration = Duration::from_secs(300);

/// The writing side of the tables, used by one commit at a time.
pub(crate) struct Committer {
    dir: PathBuf,
    writers: Mutex<Writers>,
    tables: Arc<Tables>,
    last_known: Arc<LastKnown>,
    counters: Arc<Counters>,
    compact_after_files: usize,
    /// Rows left memory: whoever waits for room may look again.
    freed: Notify,
    /// Enough rows have gathered.
    wanted: Arc<Notify>,
    /// Keeps other processes away for as long as a commit may run, even if the lake is dropped
    /// under it.
    _lock: DirLock,
}

struct Writers {
    tables: [LakeTable; 2],
    saved: Instant,
}

impl Committer {
    pub(crate) fn new(
        dir: PathBuf,
        writers: [LakeTable; 2],
        tables: Arc<Tables>,
        last_known: Arc<LastKnown>,
        counters: Arc<Counters>,
        compact_after_files: usize,
        lock: DirLock,
    ) -> Committer {
        Committer {
            dir,
            writers: Mutex::new(Writers {
                tables: writers,
                saved: Instant::now(),
            }),
            tables,
            last_known,
            counters,
            compact_after_files,
            freed: Notify::new(),
            wanted: Arc::new(Notify::new()),
            _lock: lock,
        }
    }

    /// Asks for a commit soon.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Notified by [`Committer::want`].
    pub(crate) fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.wanted)
    }

    /// Completes after the next time rows left memory. Enable it before looking for room.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    /// Commits what is hot now, if anything.
    pub(crate) async fn commit(self: &Arc<Self>) -> Result<(), LakeError> {
        let this = Arc::clone(self);
        // Sorting and encoding would hold up the messages of everybody on this thread. Once
        // started it runs to its end even if nobody waits any more, so no commit is cut in half.
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || handle.block_on(this.commit_here()))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    async fn commit_here(&self) -> Result<(), LakeError> {
        let mut writers = self.writers.lock().await;
        let started = Instant::now();
        let mut rows = 0;
        for table in RowTable::ALL {
            let writer = &mut writers.tables[table as usize];
            let sealed = self.tables.seal(table);
            if sealed.rows == 0 && sealed.next == writer.next() {
                continue;
            }
            let appended = match self.room() {
                Ok(()) => writer.append(&sealed).await,
                Err(error) => Err(error),
            };
            let committed = match appended {
                Ok(committed) => committed,
                Err(error) => {
                    add(&self.counters.commit_failures, 1);
                    return Err(error);
                }
            };
            let snapshot = writer.provider().await?;
            self.tables.committed(table, snapshot);
            self.freed.notify_waiters();
            rows += committed.rows as u64;
            let counter = match table {
                RowTable::Messages => &self.counters.committed_messages,
                RowTable::Signals => &self.counters.committed_signals,
            };
            add(counter, committed.rows);
            add(&self.counters.commits, 1);
            self.counters
                .committed_bytes
                .fetch_add(committed.bytes, std::sync::atomic::Ordering::Relaxed);
        }
        if rows > 0 {
            self.counters.committed(LastCommit {
                at_us: batch::now_us(),
                took: started.elapsed(),
                rows,
            });
        }
        self.compact(&mut writers).await;
        if writers.saved.elapsed() >= SAVE_EVERY {
            self.save(&mut writers);
        }
        Ok(())
    }

    /// Whether the disk has room for a commit. One that fails in the middle is taken back and harms
    /// nothing, but writing what cannot be finished takes the last space from the event log.
    fn room(&self) -> Result<(), LakeError> {
        let stats = rustix::fs::statvfs(&self.dir).map_err(|source| LakeError::Io {
            action: "ask how much is free in",
            path: self.dir.clone(),
            source: source.into(),
        })?;
        let free = stats.f_bavail.saturating_mul(stats.f_frsize);
        match free < LEAST_FREE {
            false => Ok(()),
            true => Err(LakeError::DiskFull {
                dir: self.dir.clone(),
                free,
                least: LEAST_FREE,
            }),
        }
    }

    /// Merges small files. Not part of the promise to commit: a failure is reported and the next
    /// commit tries again.
    async fn compact(&self, writers: &mut Writers) {
        for table in RowTable::ALL {
            let writer = &mut writers.tables[table as usize];
            match writer.compact(self.compact_after_files).await {
                Ok(false) => {}
                Ok(true) => match writer.provider().await {
                    Ok(snapshot) => {
                        self.tables.compacted(table, snapshot);
                        add(&self.counters.compactions, 1);
                    }
                    Err(error) => warn_of(&error, "cannot read a compacted table"),
                },
                Err(error) => warn_of(&error, "cannot merge small files; trying again later"),
            }
        }
    }

    /// Writes the last known state, so that a restart need not read the tables for it.
    pub(crate) async fn save_state(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let handle = tokio::runtime::Handle::current();
        let saving = tokio::task::spawn_blocking(move || {
            handle.block_on(async {
                let mut writers = this.writers.lock().await;
                this.save(&mut writers);
            });
        });
        if let Err(panic) = saving.await {
            std::panic::resume_unwind(panic.into_panic());
        }
    }

    fn save(&self, writers: &mut Writers) {
        writers.saved = Instant::now();
        if !self.last_known.is_complete() {
            return;
        }
        let [messages, signals] = &writers.tables;
        let committed = NextOffsets([messages.next().to_vec(), signals.next().to_vec()]);
        if let Err(error) = saved_state::write(&self.dir, &self.last_known, &committed) {
            tracing::warn!(%error, "cannot save the last known state; a restart reads the tables");
        }
    }
}

fn warn_of(error: &LakeError, what: &str) {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    tracing::warn!(%error, %cause, "{what}");
}

/// Free space without which no commit is begun: a file of a busy commit, and a little for the log.
const LEAST_FREE: u64 = 16 << 20;

/// Longest wait after a commit that failed. What fails for a while (a full disk) must not fill the log
/// of the operator as well, and must be noticed soon when it is over.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Commits until `stop`, or until the lake is gone; after a failure, ever more rarely.
///
/// Holds the committer only while committing, so that dropping a lake gives back its lock.
pub(crate) async fn run(
    committer: Weak<Committer>,
    wanted: Arc<Notify>,
    every: Duration,
    stop: CancellationToken,
) {
    let mut clock = tokio::time::interval(every);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is at once.
    clock.tick().await;
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! { // cancel-safe: nothing is lost by sleeping less
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return, // waiting on the token changes nothing
            _ = clock.tick() => {} // a tick that is not taken stays due
            () = wanted.notified() => {} // takes the permit or leaves it
        }
        let Some(committer) = committer.upgrade() else {
            return;
        };
        pause = match committer.commit().await {
            Ok(()) => Duration::ZERO,
            Err(error) => {
                warn_of(
                    &error,
                    "cannot commit to the lake; the rows stay in memory, trying again",
                );
                (pause * 2).clamp(every.min(LONGEST_PAUSE), LONGEST_PAUSE)
            }
        };
    }
}
