//! From the log into the lake: one consumer thread per partition.
//!
//! Flow: durable records → `pipeline::Processor` → hot tables of the lake (visible at once) → Delta,
//! some seconds later. The consumer starts where the lake's tables end, so a crash at any moment
//! replays exactly what they do not hold yet. What can not be decoded goes to the dead-letter stream;
//! the consumer group `processor` remembers how far that is done, so that a replay does not write a
//! letter twice (after a crash between the two, it may).
//!
//! Backpressure: `Lake::ingest` waits while the hot tables are full; then the consumer lags, the log
//! holds the records, and publishers notice nothing until its own bounds are reached.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread::JoinHandle,
    time::Duration,
};

use eventlog::{Group, Offset, ReadError, ReadFrom, Reader, Stream};
use lake::Lake;
use pipeline::Processor;
use tokio::runtime::Handle;

/// Records taken from the log at once: with the usual record of 300 bytes, a third of a megabyte.
const READ_RECORDS: usize = 1024;
/// Bytes taken at once.
const READ_BYTES: usize = 4 << 20;
/// The stream of dead letters has one partition.
const DEAD_PARTITION: u16 = 0;
/// What one append of dead letters may hold: a whole read (the largest record besides) with the headers
/// that say why.
pub const DEAD_APPEND_BYTES: usize = 32 << 20;
/// How long a read waits before the thread looks whether it should stop.
const READ_WAIT: Duration = Duration::from_millis(200);
/// Pause before a failed step is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Counters of all consumers.
#[derive(Debug, Default)]
pub struct IngestStats {
    /// Records taken from the log.
    pub records: AtomicU64,
    /// Readings decoded from them.
    pub readings: AtomicU64,
    /// Records that went to the dead-letter stream.
    pub dead: AtomicU64,
    /// Records lost to retention before they were read: the lake was behind for too long.
    pub overtaken: AtomicU64,
    /// Batches on disk that can not be read.
    pub corrupt: AtomicU64,
}

/// The running consumers.
pub struct Ingest {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    stats: Arc<IngestStats>,
}

/// What a consumer works with.
struct Consumer {
    partition: u16,
    raw: Stream,
    dead: Stream,
    group: Group,
    lake: Lake,
    processor: Processor,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    stats: Arc<IngestStats>,
}

impl Ingest {
    /// Starts one consumer per partition of `raw`.
    pub fn start(
        raw: &Stream,
        dead: &Stream,
        group: &Group,
        lake: &Lake,
        processor: &Processor,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(IngestStats::default());
        let mut threads = Vec::new();
        for partition in 0..raw.partitions() {
            let consumer = Consumer {
                partition,
                raw: raw.clone(),
                dead: dead.clone(),
                group: group.clone(),
                lake: lake.clone(),
                processor: processor.clone(),
                runtime: Handle::current(),
                stop: stop.clone(),
                stats: stats.clone(),
            };
            let name = format!("ingest-{partition}");
            threads.push(
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || consumer.run())?,
            );
        }
        Ok(Self {
            threads,
            stop,
            stats,
        })
    }

    /// Counters so far.
    pub fn stats(&self) -> Arc<IngestStats> {
        self.stats.clone()
    }

    /// Lets every consumer reach the end of the log, then ends it. Appending must have ended.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Release);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!(event = "ingest.panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!(event = "ingest.join_failed");
        }
    }
}

impl Consumer {
    fn run(self) {
        let from = self.lake.resume_from(self.partition);
        let mut reader = self.raw.reader(self.partition, ReadFrom::At(from));
        loop {
            // Read before the look at the end, so that what was appended before the stop is seen.
            let stopping = self.stop.load(Ordering::Acquire);
            match reader.read(READ_RECORDS, READ_BYTES, Some(READ_WAIT)) {
                Ok(records) if records.is_empty() => {
                    if stopping {
                        return;
                    }
                }
                Ok(records) => {
                    let next = reader.offset();
                    if !self.take(&records, next) {
                        return;
                    }
                }
                Err(error) => {
                    if !self.survive(&mut reader, &error) || (stopping && !is_skippable(&error)) {
                        return;
                    }
                }
            }
        }
    }

    /// Decodes records and hands them on; `false` when the lake is closed.
    fn take(&self, records: &[eventlog::Record], next: Offset) -> bool {
        let letters_until = self
            .group
            .committed(&self.raw, self.partition)
            .unwrap_or(Offset::ZERO);
        let mut letters = Vec::new();
        let mut batch = Vec::with_capacity(records.len());
        let mut readings = 0;
        for record in records {
            let processed = self.processor.process(record);
            readings += processed.readings.len() as u64;
            if let Some(dead) = &processed.dead {
                self.stats.dead.fetch_add(1, Ordering::Relaxed);
                if record.offset >= letters_until {
                    letters.push(dead.to_record(record));
                }
            }
            batch.push(processed);
        }
        self.stats
            .records
            .fetch_add(records.len() as u64, Ordering::Relaxed);
        self.stats.readings.fetch_add(readings, Ordering::Relaxed);
        // Not into the lake without their letters: the next start replays them together.
        if !letters.is_empty() && !self.bury(letters, next) {
            return false;
        }
        match self.runtime.block_on(self.lake.ingest(batch)) {
            Ok(_) => true,
            Err(error) => {
                // The records stay in the log; the next start replays them.
                tracing::error!(event = "ingest.stopped", partition = self.partition, error = %error);
                false
            }
        }
    }

    /// Writes dead letters, all in one group commit (a device that sends nothing but rubbish must not
    /// cost its partition a sync per message), and remembers that they are written. `false` when they
    /// could not be written before the stop.
    fn bury(&self, letters: Vec<eventlog::NewRecord>, next: Offset) -> bool {
        while let Err(error) = self.append_letters(letters.clone()) {
            tracing::error!(event = "ingest.dead_letter_failed", error);
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            pause();
        }
        if let Err(error) = self.group.commit(&self.raw, self.partition, next) {
            tracing::error!(event = "ingest.commit_failed", error = %error);
        }
        true
    }

    fn append_letters(&self, letters: Vec<eventlog::NewRecord>) -> Result<(), String> {
        let (answer, answered) = sync_channel(1);
        self.dead
            .append_batch(DEAD_PARTITION, letters, move |outcome| {
                // The other end waits below.
                let _ = answer.send(outcome.map(drop));
            })
            .map_err(|error| error.to_string())?;
        match answered.recv() {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err("the log was closed".to_owned()),
        }
    }

    /// Goes on after a read error where that is possible, and says what was lost.
    fn survive(&self, reader: &mut Reader, error: &ReadError) -> bool {
        tracing::error!(event = "ingest.read_failed", partition = self.partition, error = %error);
        match error {
            ReadError::Truncated {
                first_available, ..
            } => {
                let lost = first_available.get().saturating_sub(reader.offset().get());
                self.stats.overtaken.fetch_add(lost, Ordering::Relaxed);
                reader.seek(*first_available);
                true
            }
            ReadError::Corrupt { .. } => {
                self.stats.corrupt.fetch_add(1, Ordering::Relaxed);
                match reader.skip_corrupt() {
                    Ok(next) => {
                        tracing::warn!(
                            event = "ingest.skipped_corrupt",
                            partition = self.partition,
                            next = next.get()
                        );
                        true
                    }
                    Err(error) => {
                        tracing::error!(event = "ingest.skip_failed", error = %error);
                        pause();
                        !self.stop.load(Ordering::Acquire)
                    }
                }
            }
            _ => {
                pause();
                !self.stop.load(Ordering::Acquire)
            }
        }
    }
}

fn is_skippable(error: &ReadError) -> bool {
    matches!(
        error,
        ReadError::Truncated { .. } | ReadError::Corrupt { .. }
    )
}

/// Waits a moment before a failed step of a disk is tried again.
#[expect(
    clippy::disallowed_methods,
    reason = "a consumer thread of its own, retrying a failing disk"
)]
fn pause() {
    std::thread::sleep(RETRY);
}
