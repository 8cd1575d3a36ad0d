//! The handle of a journal, and its directory:
//!
//! ```text
//! {dir}/lock                          held while open; names the holder
//! {dir}/{number, 20 digits}.segment   the chain, see `segment.rs`
//! ```
//! Files have mode 0600 and a directory made here 0700: records are other people's messages.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::batch::Batch;
use crate::disk::Disk;
use crate::error::{CloseError, OpenError, StallError};
use crate::event::{Condition, Event};
use crate::options::Options;
use crate::position::Position;
use crate::queue::Shared;
use crate::recovered::Recovered;
use crate::recovery;
use crate::stats::Stats;
use crate::writer::Writer;

/// An open journal. All methods may be called from any thread; share it in an `Arc`.
///
/// Dropping it closes it as [`Journal::close`] does, without telling what came of it.
pub struct Journal {
    dir: PathBuf,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal in `dir`, making the directory if needed, and repairs what a crash left.
    ///
    /// Read the records, or drop them: what is submitted becomes durable only then.
    ///
    /// `on_event` is called on the journal's own thread, between two groups: it must be quick, and
    /// it may submit.
    ///
    /// # Errors
    /// If another process has the directory open, an option is out of range, records that were
    /// durable cannot be read ([`OpenError::Damaged`], [`OpenError::Missing`]; nothing is changed
    /// then), or the operating system refuses. Each names the file.
    pub fn open(
        dir: &Path,
        options: Options,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> Result<(Journal, Recovered), OpenError> {
        options.check()?;
        Journal::open_on(Disk::open(dir, options.durability)?, options, on_event)
    }

    pub(crate) fn open_on(
        disk: Disk,
        options: Options,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> Result<(Journal, Recovered), OpenError> {
        let dir = disk.dir().to_owned();
        let lock = lock(&dir)?;
        let found = recovery::recover(&disk)?;
        let shared = Arc::new(Shared::new(options.max_pending_bytes, found.chain));
        let recovered = Recovered::new(shared.clone(), found.report, found.max_id);
        let (head, shared_with) = (found.head, shared.clone());
        let writer = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                // Nobody else opens the directory while this thread may write.
                let _lock = lock;
                let shared = shared_with;
                let tell = |event| {
                    if panic::catch_unwind(AssertUnwindSafe(|| on_event(event))).is_err() {
                        tracing::error!("whoever listens to the journal's events panicked");
                    }
                };
                let work = AssertUnwindSafe(|| {
                    if let Some(chain) = shared.take_recovered() {
                        Writer::new(options, disk, chain, head).run(&shared, tell);
                    }
                });
                if panic::catch_unwind(work).is_err() {
                    tracing::error!("the journal's writer panicked; nothing becomes durable now");
                    let error = Arc::new(StallError::Panicked);
                    shared.set_trouble(Some(error.clone()));
                    tell(Event::Stalled(error));
                }
            })
            .map_err(OpenError::io("starting the writer thread of", &dir))?;
        let journal = Journal {
            dir,
            shared,
            writer: Mutex::new(Some(writer)),
        };
        Ok((journal, recovered))
    }

    /// Takes a batch: its operations become durable all together, after those of all batches
    /// submitted before. Never fails and waits for nothing but a short lock.
    ///
    /// An empty batch is nothing to do: it gets the position of the batch submitted last. After
    /// [`Journal::close`] a batch is dropped and its position never becomes durable.
    pub fn submit(&self, batch: Batch) -> Position {
        self.shared.submit(batch)
    }

    /// Everything submitted up to here is durable. One atomic load.
    pub fn durable(&self) -> Position {
        self.shared.durable()
    }

    /// Whether to make more work for the journal. Two atomic loads.
    pub fn condition(&self) -> Condition {
        self.shared.condition()
    }

    /// Whether more than [`Options::max_pending_bytes`] wait to be written, also while the disk does not
    /// work: then nothing more should be submitted that can be put off.
    pub fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// Counters, as of the last group.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Takes no more batches, makes durable what was submitted, ends the writer thread and lets go
    /// of the directory. A second call does nothing.
    ///
    /// # Errors
    /// If the disk refuses, after a few tries: how much of what was submitted is lost.
    pub fn close(&self) -> Result<(), CloseError> {
        self.shared.close();
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(writer) = writer else {
            return Ok(());
        };
        if writer.thread().id() == thread::current().id() {
            // A listener dropped the last handle, on the writer's own thread: it ends right after.
            return Ok(());
        }
        // A panic has been reported by the thread itself.
        let _ = writer.join();
        self.shared.outcome()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                dir = %self.dir.display(),
                "closing a journal"
            );
        }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("dir", &self.dir)
            .field("durable", &self.durable())
            .field("condition", &self.condition())
            .finish_non_exhaustive()
    }
}

/// Takes the directory for this process, as long as the file is open.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(OpenError::io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                id => format!("process {id}"),
            };
            return Err(OpenError::InUse {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(OpenError::io("locking", &path)(source)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(OpenError::io("writing", &path))?;
    Ok(file)
}
