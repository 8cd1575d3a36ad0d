//! The writer of a partition: one thread, the only one that writes to its files.
//!
//! Group commit: everything that has gathered while the last group was being synced becomes one
//! record batch, one `write`, one `fdatasync`, and only then are the completions called. The busier
//! the partition, the larger the groups; a lone record waits for nobody (unless `linger` says so).
//!
//! One group is one batch, on purpose: the next batch is written only after this one is durable, so
//! after a crash anything readable behind something unreadable was once acknowledged, and is damage
//! to be reported rather than a torn tail to be cut off.
//!
//! Files grow as they are written. Preallocation was measured and left out: `fdatasync` of 400 bytes
//! to 1 MB took the same time on ext4 for a growing, an allocated and a zeroed file.
//!
//! When the disk says no:
//! - a failed `write` (disk full, I/O error) is taken back by truncation; the group fails, the next
//!   one tries again.
//! - after a failed `fdatasync` nobody knows what of the file is on disk (Linux marks the pages
//!   clean), so the file is *suspect*: it is cut to its last durable length, read back and checked,
//!   and left for a fresh segment before anything else is written. As long as that fails, so does
//!   every group. What was acknowledged before was synced before and stays.

use std::collections::VecDeque;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::batch::BatchBuilder;
use crate::disk::{self, ActiveFile};
use crate::error::{AppendError, OpenError};
use crate::log::DirLock;
use crate::partition::Partition;
use crate::queue::{Append, Done, Item, Wake};
use crate::record::Offset;
use crate::retention;
use crate::scan::{BatchScanner, Step};
use crate::segment::Segment;
use crate::stream::{Durability, Shared};

pub(crate) struct Writer {
    stream: Arc<Shared>,
    partition: Arc<Partition>,
    file: ActiveFile,
    segment: Arc<Segment>,
    health: Health,
    /// The offset of the next record.
    next: Offset,
    /// Taken from the queue, not yet written.
    items: VecDeque<Item>,
    group: Group,
    batch: BatchBuilder,
    housekeeping_due: Instant,
    /// The lock of the log's directory: nobody else opens it while this thread may write.
    _lock: Arc<DirLock>,
}

#[derive(Debug, PartialEq, Eq)]
enum Health {
    Good,
    /// A sync or a truncation of the active file has failed.
    Suspect,
}

/// The appends of the batch being written.
#[derive(Default)]
struct Group {
    /// Completions, each with the place of its first record in the batch.
    done: Vec<(Done, u32)>,
    weight: usize,
}

impl Writer {
    /// Starts the thread. The partition's first segment is made here if there is none.
    pub(crate) fn start(
        stream: Arc<Shared>,
        partition: Arc<Partition>,
        lock: Arc<DirLock>,
    ) -> Result<JoinHandle<()>, OpenError> {
        let (segment, file) = match partition.active() {
            Some(segment) => {
                let file = ActiveFile::open(segment.path()).map_err(|source| OpenError::Io {
                    action: "opening",
                    file: segment.path().to_owned(),
                    source,
                })?;
                (segment, file)
            }
            None => {
                let (segment, file) = make_segment(&partition, partition.end()).map_err(
                    |(action, file, source)| OpenError::Io {
                        action,
                        file,
                        source,
                    },
                )?;
                partition.roll_to(segment.clone());
                (segment, file)
            }
        };
        let housekeeping_due = Instant::now() + stream.config.housekeeping;
        let dir = partition.dir.clone();
        let mut writer = Writer {
            next: partition.end(),
            stream,
            partition,
            file,
            segment,
            health: Health::Good,
            items: VecDeque::new(),
            group: Group::default(),
            batch: BatchBuilder::default(),
            housekeeping_due,
            _lock: lock,
        };
        thread::Builder::new()
            .name(format!("log {}/{}", writer.partition.stream, writer.partition.index))
            .spawn(move || {
                let partition = writer.partition.clone();
                let ended = panic::catch_unwind(AssertUnwindSafe(|| writer.run()));
                if ended.is_err() {
                    tracing::error!(stream = %partition.stream, partition = partition.index, "log writer panicked; the partition takes no more records");
                }
                // Whoever still waits (only after a panic) must not wait for ever.
                partition.queue.close();
                partition.queue.take(&mut VecDeque::new(), None);
                partition.wake_readers();
            })
            .map_err(|source| OpenError::Io { action: "starting the writer thread of", file: dir, source })
    }

    fn run(&mut self) {
        loop {
            if self.items.is_empty() {
                match self
                    .partition
                    .queue
                    .take(&mut self.items, Some(self.housekeeping_due))
                {
                    Wake::Items => self.linger(),
                    Wake::Timeout => {}
                    Wake::Closed => break,
                }
            } else {
                // Company for what did not fit into the last batch.
                self.partition.queue.take(&mut self.items, None);
            }
            self.step();
            if Instant::now() >= self.housekeeping_due {
                self.housekeep();
            }
        }
        if self.stream.config.durability == Durability::None
            && let Err(error) = self.file.sync()
        {
            tracing::warn!(file = %self.segment.path().display(), %error, "last sync of a stream without durability failed");
        }
    }

    /// Waits for company, if configured.
    fn linger(&mut self) {
        let linger = self.stream.config.linger;
        if linger.is_zero() {
            return;
        }
        let deadline = Instant::now() + linger;
        let (mut seen, mut weight) = (0, 0);
        loop {
            for item in self.items.range(seen..) {
                match item {
                    Item::Append(append) => weight += append.weight,
                    // Somebody waits for an answer.
                    Item::Barrier(_) | Item::Housekeep(_) => return,
                }
            }
            seen = self.items.len();
            if weight >= self.stream.config.batch_bytes {
                return;
            }
            if self.partition.queue.take(&mut self.items, Some(deadline)) != Wake::Items {
                return;
            }
        }
    }

    /// Deals with one group, or with one request.
    fn step(&mut self) {
        match self.items.pop_front() {
            None => {}
            Some(Item::Append(first)) => {
                self.gather(first);
                self.commit();
            }
            // The asker may have gone; that is its business.
            Some(Item::Barrier(answer)) => {
                let _ = answer.send(());
            }
            Some(Item::Housekeep(answer)) => {
                self.housekeep();
                let _ = answer.send(());
            }
        }
    }

    /// Builds the next batch out of what has been taken from the queue.
    fn gather(&mut self, first: Append) {
        let target = self.stream.config.batch_bytes;
        self.batch.clear(2 * target);
        self.add(first);
        while let Some(Item::Append(append)) = self.items.front()
            && self.batch.len() + append.weight <= target
            && let Some(Item::Append(append)) = self.items.pop_front()
        {
            self.add(append);
        }
    }

    fn add(&mut self, append: Append) {
        self.group.done.push((append.done, self.batch.records()));
        self.group.weight += append.weight;
        for record in append.records.as_slice() {
            self.batch.push(record);
        }
    }

    /// Writes the batch and tells everybody.
    fn commit(&mut self) {
        let records = self.batch.records();
        let result = self.write_batch();
        // First, so that a completion that appends again finds room.
        self.partition
            .queue
            .release(records as usize, std::mem::take(&mut self.group.weight));
        match result {
            Ok(base) => {
                for (done, place) in self.group.done.drain(..) {
                    complete(done, Ok(base.advance(u64::from(place))));
                }
            }
            Err(error) => {
                let counters = &self.partition.counters;
                let counter = if matches!(error, AppendError::Full { .. }) {
                    &counters.refused_full
                } else {
                    &counters.failed
                };
                counter.fetch_add(u64::from(records), Ordering::Relaxed);
                let error = Arc::new(error);
                for (done, _) in self.group.done.drain(..) {
                    complete(done, Err(error.clone()));
                }
            }
        }
    }

    fn write_batch(&mut self) -> Result<Offset, AppendError> {
        let now = SystemTime::now();
        let size = self.batch.len() as u64;
        if self.health == Health::Suspect {
            self.leave_suspect_file()?;
        }
        self.stream.reserve(size, now)?;
        let written = self.write_reserved(size);
        match written {
            Ok(position) => {
                let base = self.next;
                self.segment.grew(base, position + size, now);
                self.next = base.advance(u64::from(self.batch.records()));
                let counters = &self.partition.counters;
                counters
                    .records
                    .fetch_add(u64::from(self.batch.records()), Ordering::Relaxed);
                counters.bytes.fetch_add(size, Ordering::Relaxed);
                counters.groups.fetch_add(1, Ordering::Relaxed);
                self.partition.publish(self.next);
                Ok(base)
            }
            Err(error) => {
                self.stream.used.fetch_sub(size, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn write_reserved(&mut self, size: u64) -> Result<u64, AppendError> {
        let mut position = self.segment.durable();
        if position > 0 && position + size > self.stream.segment_bytes {
            self.roll()?;
            position = 0;
        }
        if let Err(error) = self.file.write(self.batch.finish(self.next), position) {
            if let Err(error) = self.file.truncate(position) {
                tracing::error!(file = %self.segment.path().display(), %error, "could not take a failed write back; leaving the segment");
                self.health = Health::Suspect;
            }
            return Err(failure("writing", self.segment.path(), error));
        }
        if self.stream.config.durability == Durability::Fsync {
            self.sync()?;
        }
        Ok(position)
    }

    fn sync(&mut self) -> Result<(), AppendError> {
        self.partition
            .counters
            .fsyncs
            .fetch_add(1, Ordering::Relaxed);
        self.file.sync().map_err(|error| {
            tracing::error!(file = %self.segment.path().display(), %error, "fdatasync failed; leaving the segment");
            self.health = Health::Suspect;
            failure("syncing", self.segment.path(), error)
        })
    }

    /// Seals the active segment and begins the next one.
    fn roll(&mut self) -> Result<(), AppendError> {
        if self.stream.config.durability == Durability::None {
            // Sealed segments are whole, whatever the durability: recovery looks at the last only.
            self.sync()?;
        }
        let (segment, file) = make_segment(&self.partition, self.next)
            .map_err(|(action, file, source)| failure(action, &file, source))?;
        self.partition.roll_to(segment.clone());
        self.segment.seal();
        self.segment = segment;
        self.file = file;
        self.health = Health::Good;
        Ok(())
    }

    /// Cuts a suspect file to what is durable, checks it, and goes on in a fresh one.
    fn leave_suspect_file(&mut self) -> Result<(), AppendError> {
        let path = self.segment.path().to_owned();
        let length = self.segment.durable();
        self.file
            .truncate(length)
            .map_err(|error| failure("truncating", &path, error))?;
        self.partition
            .counters
            .fsyncs
            .fetch_add(1, Ordering::Relaxed);
        self.file
            .sync()
            .map_err(|error| failure("syncing", &path, error))?;

        let verification = self
            .file
            .for_verification()
            .map_err(|error| failure("reading back", &path, error))?;
        let mut scanner = BatchScanner::new(verification, 0, self.segment.base());
        loop {
            match scanner
                .next(length)
                .map_err(|error| failure("reading back", &path, error))?
            {
                Step::Batch(..) => {}
                Step::End => break,
                Step::Bad(malformed) => {
                    // New records do not depend on it, so they are taken; whoever reads this far
                    // is told.
                    tracing::error!(file = %path.display(), position = scanner.position(), reason = malformed.0, "acknowledged records are damaged; restore the file from a backup");
                    break;
                }
            }
        }
        self.roll()
    }

    fn housekeep(&mut self) {
        self.housekeeping_due = Instant::now() + self.stream.config.housekeeping;
        let now = SystemTime::now();
        let old = now
            .duration_since(self.segment.created())
            .unwrap_or(Duration::ZERO)
            >= self.stream.config.segment_age;
        if old
            && self.segment.durable() > 0
            && self.health == Health::Good
            && let Err(error) = self.roll()
        {
            tracing::warn!(stream = %self.partition.stream, partition = self.partition.index, %error, "segment not sealed; trying again later");
        }
        retention::enforce(&self.stream, now);
    }
}

/// Makes the segment that begins with `base`, durably, name and all.
fn make_segment(
    partition: &Partition,
    base: Offset,
) -> Result<(Arc<Segment>, ActiveFile), (&'static str, std::path::PathBuf, io::Error)> {
    let path = Segment::path_in(&partition.dir, base);
    // Nothing at or behind `base` was ever acknowledged: a file of this name is the remainder of
    // an attempt that failed, or a suspect file without a durable byte.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(("replacing", path, error));
        }
        _ => {}
    }
    let file = ActiveFile::create(&path).map_err(|error| ("creating", path.clone(), error))?;
    disk::sync_dir(&partition.dir).map_err(|error| ("syncing", partition.dir.clone(), error))?;
    Ok((
        Arc::new(Segment::fresh(base, path, SystemTime::now())),
        file,
    ))
}

fn failure(action: &'static str, file: &Path, source: io::Error) -> AppendError {
    let file = file.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AppendError::DiskFull {
            file,
            source: Arc::new(source),
        },
        _ => AppendError::Io {
            action,
            file,
            source: Arc::new(source),
        },
    }
}

/// Calls a completion. One that panics must not take the other senders' records with it.
fn complete(done: Done, result: Result<Offset, Arc<AppendError>>) {
    if panic::catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("an append's completion panicked");
    }
}

#[cfg(test)]
mod tests {
    //! A disk that fails, call by call.

    use std::path::PathBuf;

    use bytes::Bytes;

    use crate::disk::faults::Faults;
    use crate::segment::Segment;
    use crate::{AppendError, Log, LogOptions, NewRecord, Offset, ReadFrom, Stream, StreamConfig};

    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;

    struct World {
        dir: tempfile::TempDir,
        log: Log,
        stream: Stream,
        faults: Faults,
        /// What was acknowledged.
        kept: Vec<String>,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let (log, _) = Log::open(dir.path(), LogOptions::default()).unwrap();
            let stream = log.stream("s", StreamConfig::default()).unwrap();
            let faults = Faults::of(&dir.path().join("streams/s/0/any"));
            World {
                dir,
                log,
                stream,
                faults,
                kept: Vec::new(),
            }
        }

        fn append(&mut self, value: &str) -> Result<Offset, String> {
            let value_bytes = Bytes::copy_from_slice(value.as_bytes());
            let result = self.stream.append_wait(
                0,
                NewRecord {
                    value: value_bytes,
                    ..NewRecord::default()
                },
            );
            if let Ok(offset) = &result {
                assert_eq!(
                    offset.get(),
                    self.kept.len() as u64,
                    "failed records leave no holes"
                );
                self.kept.push(value.to_owned());
            }
            result.map_err(|error| match &*error {
                AppendError::DiskFull { .. } => "disk full".to_owned(),
                AppendError::Io { action, .. } => (*action).to_owned(),
                other => other.to_string(),
            })
        }

        fn segments(&self) -> Vec<PathBuf> {
            let dir = self.dir.path().join("streams/s/0");
            Segment::list(&dir)
                .unwrap()
                .into_iter()
                .map(|(_, path)| path)
                .collect()
        }

        fn read(stream: &Stream) -> Vec<String> {
            let records = stream
                .reader(0, ReadFrom::Earliest)
                .read(1000, 1 << 20, None)
                .unwrap();
            records
                .iter()
                .map(|record| String::from_utf8(record.value.to_vec()).unwrap())
                .collect()
        }

        /// All that was acknowledged is there, now and after a restart, and nothing else.
        fn check(self) {
            assert_eq!(World::read(&self.stream), self.kept);
            self.log.close();
            let (log, report) = Log::open(self.dir.path(), LogOptions::default()).unwrap();
            assert!(report.is_clean(), "{report}");
            assert_eq!(
                World::read(&log.stream("s", StreamConfig::default()).unwrap()),
                self.kept
            );
        }
    }

    #[test]
    fn a_failed_write_is_taken_back_and_the_segment_goes_on() {
        let mut world = World::new();
        world.append("before").unwrap();
        for (errno, action) in [(ENOSPC, "disk full"), (EIO, "writing")] {
            world.faults.write.inject(errno);
            assert_eq!(world.append("lost"), Err(action.to_owned()));
            world.append("after").unwrap();
        }
        assert_eq!(world.segments().len(), 1);
        assert_eq!(world.stream.stats().total().failed, 2);
        world.check();
    }

    #[test]
    fn after_a_failed_sync_the_segment_is_left_and_its_tail_never_shows_up() {
        let mut world = World::new();
        world.append("before").unwrap();
        world.faults.sync.inject(EIO);
        assert_eq!(world.append("lost"), Err("syncing".to_owned()));
        world.append("after").unwrap();
        assert_eq!(world.segments().len(), 2);
        world.check();
    }

    #[test]
    fn a_first_sync_that_fails_replaces_the_file_under_waiting_readers() {
        let mut world = World::new();
        let mut reader = world.stream.reader(0, ReadFrom::Earliest);
        world.faults.sync.inject(EIO);
        assert_eq!(world.append("lost"), Err("syncing".to_owned()));
        assert!(reader.read(1, 1, None).unwrap().is_empty());
        world.append("after").unwrap();
        assert_eq!(reader.read(1, 1, None).unwrap().len(), 1);
        assert_eq!(world.segments().len(), 1);
        world.check();
    }

    #[test]
    fn while_the_disk_stays_broken_nothing_is_acknowledged_and_then_all_is_well_again() {
        let mut world = World::new();
        world.append("before").unwrap();
        // Last in, first out: sync, then the truncation twice, then the sync after it.
        world.faults.sync.inject(EIO);
        assert_eq!(world.append("lost"), Err("syncing".to_owned()));
        world.faults.truncate.inject(EIO);
        assert_eq!(world.append("lost"), Err("truncating".to_owned()));
        world.faults.truncate.inject(EIO);
        assert_eq!(world.append("lost"), Err("truncating".to_owned()));
        world.faults.sync.inject(EIO);
        assert_eq!(world.append("lost"), Err("syncing".to_owned()));
        world.append("after").unwrap();
        world.check();
    }

    #[test]
    fn a_write_that_can_not_even_be_taken_back_leaves_the_segment_too() {
        let mut world = World::new();
        world.append("before").unwrap();
        world.faults.write.inject(ENOSPC);
        world.faults.truncate.inject(EIO);
        assert_eq!(world.append("lost"), Err("disk full".to_owned()));
        world.append("after").unwrap();
        assert_eq!(world.segments().len(), 2);
        world.check();
    }

    #[test]
    fn a_failed_group_fails_for_everybody_in_it() {
        let world = World::new();
        let (told, tell) = std::sync::mpsc::channel();
        let (reached, at) = std::sync::mpsc::sync_channel(1);
        let (go, gone) = std::sync::mpsc::sync_channel::<()>(1);
        let hold = move |_| {
            reached.send(()).unwrap();
            gone.recv().unwrap();
        };
        world.stream.append(0, NewRecord::default(), hold).unwrap();
        at.recv().unwrap();
        for _ in 0..10 {
            let told = told.clone();
            world
                .stream
                .append(0, NewRecord::default(), move |result| {
                    told.send(result.is_err()).unwrap()
                })
                .unwrap();
        }
        drop(told);
        world.faults.sync.inject(EIO);
        go.send(()).unwrap();
        assert_eq!(tell.iter().collect::<Vec<_>>(), [true; 10]);
        assert_eq!(world.stream.end(0), Offset::new(1));
    }
}
