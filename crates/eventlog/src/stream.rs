//! A stream: named partitions with one configuration, and the handle everybody holds.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::batch::MICROS;
use crate::error::{AppendError, OpenError};
use crate::partition::Partition;
use crate::queue::{Append, Done, Item, Records};
use crate::reader::{ReadFrom, Reader};
use crate::record::{NewRecord, Offset};
use crate::retention;
use crate::stats::StreamStats;

/// When old records go. Whole sealed segments only, by size and by age, whichever comes first.
///
/// Consumer groups do not hold retention back: a consumer that is too slow gets
/// [`ReadError::Truncated`](crate::ReadError::Truncated) and knows it, and a dead one cannot fill
/// the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// A segment goes when its last record was appended longer ago than this (by the file's
    /// modification time, not by the records' own times).
    pub max_age: Option<Duration>,
    /// Oldest segments go while all partitions of the stream together are larger than this.
    pub max_bytes: Option<u64>,
}

/// When a record counts as kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Acknowledged after `fdatasync`: survives power loss.
    #[default]
    Fsync,
    /// Acknowledged after `write`: survives `kill -9`, **not** power loss or a kernel crash. For
    /// benchmarks; no product setting leads here.
    None,
}

/// How a stream is kept. `Default` is a safe stream with one partition that keeps everything.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Partitions, 1 to 1,024; fixed once the stream exists. One writer thread each.
    pub partitions: u16,
    /// When old records go.
    pub retention: Retention,
    /// Hard cap for all partitions together, in bytes; beyond it appends get
    /// [`AppendError::Full`]. `None`: the disk is the limit.
    pub max_bytes: Option<u64>,
    /// A segment is sealed before it grows beyond this many bytes (64 MiB: retention and recovery
    /// work in steps of one segment, and 64 MiB are scanned in a fraction of a second).
    pub segment_bytes: u64,
    /// A segment is sealed this long after its creation even if small, so that a quiet stream's
    /// records can expire too.
    pub segment_age: Duration,
    /// Target size of one group commit (one record batch), in bytes. 1 MiB is about 3,000
    /// telemetry records: far beyond what gathers during one `fdatasync`, and the largest batch
    /// Kafka clients take by default.
    pub batch_bytes: usize,
    /// The largest single append (a record, or a batch handed over in one call), in bytes.
    pub max_append_bytes: usize,
    /// Records that may wait for the disk, per partition.
    pub queue_records: usize,
    /// Bytes that may wait for the disk, per partition. 64 MiB: the design load of one node
    /// (40,000 messages of 400 bytes a second, 16 MB/s) on one partition, through a disk that
    /// stalls for four seconds. Longer than that, senders should hear that we are slow. (A stream
    /// promises this much memory once per partition.)
    pub queue_bytes: usize,
    /// How long a group waits for company after its first record. Zero: the `fdatasync` of the
    /// group before is wait enough, and a lone record is not delayed. Where a sync takes
    /// milliseconds and senders wait for their acknowledgement, half a millisecond lets those just
    /// acknowledged join the next group: 1,000 such senders got about 1.5 times as many records
    /// through (`examples/append_bench.rs`).
    pub linger: Duration,
    /// What an acknowledgement means.
    pub durability: Durability,
    /// How often retention and sealing by age are looked at, per partition.
    pub housekeeping: Duration,
}

impl Default for StreamConfig {
    fn default() -> StreamConfig {
        StreamConfig {
            partitions: 1,
            retention: Retention::default(),
            max_bytes: None,
            segment_bytes: 64 << 20,
            segment_age: Duration::from_secs(3600),
            batch_bytes: 1 << 20,
            max_append_bytes: 16 << 20,
            queue_records: 262_144,
            queue_bytes: 64 << 20,
            linger: Duration::ZERO,
            durability: Durability::Fsync,
            housekeeping: Duration::from_secs(10),
        }
    }
}

impl StreamConfig {
    pub(crate) fn check(&self, stream: &str) -> Result<(), OpenError> {
        let checks = [
            (
                "partitions",
                u64::from(self.partitions),
                1..=1024,
                "1 to 1024",
            ),
            // Positions in a segment's index are 32 bits wide, and one append may stand on top.
            (
                "segment_bytes",
                self.segment_bytes,
                4096..=1 << 30,
                "4 KiB to 1 GiB",
            ),
            (
                "batch_bytes",
                self.batch_bytes as u64,
                1024..=256 << 20,
                "1 KiB to 256 MiB",
            ),
            (
                "max_append_bytes",
                self.max_append_bytes as u64,
                1024..=1 << 30,
                "1 KiB to 1 GiB",
            ),
            (
                "queue_records",
                self.queue_records as u64,
                1..=1 << 32,
                "1 to 4294967296",
            ),
            (
                "queue_bytes",
                self.queue_bytes as u64,
                1024..=1 << 40,
                "1 KiB to 1 TiB",
            ),
            (
                "linger (us)",
                self.linger.as_micros() as u64,
                0..=1_000_000,
                "0 to 1 s",
            ),
            (
                "housekeeping (ms)",
                self.housekeeping.as_millis() as u64,
                10..=86_400_000,
                "10 ms to 1 day",
            ),
        ];
        match checks
            .into_iter()
            .find(|(_, value, allowed, _)| !allowed.contains(value))
        {
            None => Ok(()),
            Some((key, value, _, allowed)) => Err(OpenError::Config {
                stream: stream.to_owned(),
                key,
                value,
                allowed,
            }),
        }
    }
}

/// What all handles, writers and readers of a stream share.
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) config: StreamConfig,
    pub(crate) partitions: Vec<Arc<Partition>>,
    /// Where segments are sealed: `config.segment_bytes`, or less if retention needs finer steps.
    pub(crate) segment_bytes: u64,
    /// Bytes of all partitions, those being written included.
    pub(crate) used: AtomicU64,
    /// Held while retention is at work.
    pub(crate) retiring: Mutex<()>,
}

impl Shared {
    pub(crate) fn new(
        name: Arc<str>,
        config: StreamConfig,
        partitions: Vec<Arc<Partition>>,
    ) -> Shared {
        let used = partitions
            .iter()
            .map(|partition| partition.stats().bytes)
            .sum();
        // Active segments do not expire: all of them together should be a quarter of what may stay.
        let finest = 1 << 20;
        let step = config
            .retention
            .max_bytes
            .map(|max| (max / 4 / u64::from(config.partitions)).max(finest));
        let segment_bytes = config.segment_bytes.min(step.unwrap_or(u64::MAX));
        Shared {
            name,
            config,
            partitions,
            segment_bytes,
            used: AtomicU64::new(used),
            retiring: Mutex::new(()),
        }
    }

    /// Counts `bytes` that are about to be written, if the stream's cap allows.
    pub(crate) fn reserve(&self, bytes: u64, now: SystemTime) -> Result<(), AppendError> {
        let Some(limit) = self.config.max_bytes else {
            self.used.fetch_add(bytes, Ordering::Relaxed);
            return Ok(());
        };
        let take = |used: u64| used.checked_add(bytes).filter(|after| *after <= limit);
        let reserve = || {
            self.used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        };
        if reserve().is_ok() {
            return Ok(());
        }
        retention::enforce(self, now);
        match reserve() {
            Ok(_) => Ok(()),
            Err(used) => Err(AppendError::Full {
                stream: self.name.clone(),
                used,
                limit,
            }),
        }
    }
}

/// A handle to a stream: cheap to clone, usable from every thread.
#[derive(Clone)]
pub struct Stream {
    shared: Arc<Shared>,
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>) -> Stream {
        Stream { shared }
    }

    /// The stream's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> u16 {
        self.shared.config.partitions
    }

    /// The partition of a key: Kafka's default partitioner (murmur2), so that Kafka producers and
    /// we agree. Frozen: it decides where a vehicle's records lie.
    pub fn partition_for(&self, key: &[u8]) -> u16 {
        // Non-negative, as Kafka does it; below `partitions`, so it fits.
        ((murmur2(key) & 0x7fff_ffff) % u32::from(self.partitions())) as u16
    }

    /// Queues one record and returns at once.
    ///
    /// `done` runs once, on the partition's writer thread, after the record is durable (or has
    /// failed); it must be short and must not block. If this returns an error the record was not
    /// queued and `done` is dropped without being called. Records that one thread appends to one
    /// partition keep their order.
    pub fn append(
        &self,
        partition: u16,
        record: NewRecord,
        done: impl FnOnce(Result<Offset, Arc<AppendError>>) + Send + 'static,
    ) -> Result<(), AppendError> {
        self.push(partition, Records::One(record), Box::new(done))
    }

    /// Queues records that stand or fall together: one after the other in the log and in one
    /// record batch, so that a crash leaves all or none. `done` gets the offset of the first.
    pub fn append_batch(
        &self,
        partition: u16,
        records: Vec<NewRecord>,
        done: impl FnOnce(Result<Offset, Arc<AppendError>>) + Send + 'static,
    ) -> Result<(), AppendError> {
        self.push(partition, Records::Many(records), Box::new(done))
    }

    fn push(&self, partition: u16, records: Records, done: Done) -> Result<(), AppendError> {
        let stream = || self.shared.name.clone();
        let Some(target) = self.shared.partitions.get(usize::from(partition)) else {
            return Err(AppendError::NoSuchPartition {
                stream: stream(),
                partition,
                partitions: self.partitions(),
            });
        };
        let list = records.as_slice();
        if list.is_empty() {
            return Err(AppendError::Empty { stream: stream() });
        }
        if list
            .iter()
            .any(|record| record.headers.iter().any(|(name, _)| name == MICROS))
        {
            return Err(AppendError::Header { stream: stream() });
        }
        let weight = list.iter().map(NewRecord::weight).sum();
        let limit = self.shared.config.max_append_bytes;
        if weight > limit {
            return Err(AppendError::TooLarge {
                stream: stream(),
                bytes: weight,
                limit,
            });
        }
        target.queue.push(Append {
            records,
            weight,
            done,
        })
    }

    /// Appends and waits until the record is durable. For tools and tests; a server uses
    /// [`Stream::append`]. Never call it from a completion: it waits for the thread that runs it.
    pub fn append_wait(
        &self,
        partition: u16,
        record: NewRecord,
    ) -> Result<Offset, Arc<AppendError>> {
        let (told, tell) = sync_channel(1);
        self.append(partition, record, move |result| drop(told.send(result)))?;
        // The sender goes unused only if the writer thread has died.
        tell.recv().unwrap_or_else(|_| {
            Err(Arc::new(AppendError::Closed {
                stream: self.shared.name.clone(),
            }))
        })
    }

    /// A reader of one partition. It sees durable records only. A partition that does not exist
    /// is an error of the first [`Reader::read`].
    pub fn reader(&self, partition: u16, from: ReadFrom) -> Reader {
        Reader::new(self.shared.clone(), partition, from)
    }

    /// The durable end of a partition: the offset its next record gets.
    ///
    /// # Panics
    /// If the stream has no such partition, as indexing does.
    pub fn end(&self, partition: u16) -> Offset {
        self.partition(partition).end()
    }

    /// The first offset that retention has left in a partition.
    ///
    /// # Panics
    /// If the stream has no such partition, as indexing does.
    pub fn start(&self, partition: u16) -> Offset {
        self.partition(partition).start()
    }

    /// Blocks until there is a durable record at `after` or behind it (the durable end is beyond
    /// `after`), the timeout has passed or the log is closed; returns the durable end.
    ///
    /// # Panics
    /// If the stream has no such partition, as indexing does.
    pub fn wait_durable(&self, partition: u16, after: Offset, timeout: Duration) -> Offset {
        self.partition(partition).wait_beyond(after, timeout)
    }

    fn partition(&self, partition: u16) -> &Partition {
        &self.shared.partitions[usize::from(partition)]
    }

    /// Blocks until everything queued before this call is durable (or has failed). Never call it
    /// from a completion.
    pub fn flush(&self) {
        self.ask_writers(Item::Barrier);
    }

    /// Seals by age and applies retention now, and blocks until that is done. It also happens by
    /// itself, every [`StreamConfig::housekeeping`]. Never call it from a completion.
    pub fn housekeep(&self) {
        self.ask_writers(Item::Housekeep);
    }

    fn ask_writers(&self, request: impl Fn(SyncSender<()>) -> Item) {
        let answers: Vec<_> = self
            .shared
            .partitions
            .iter()
            .filter_map(|partition| {
                let (answer, answered) = sync_channel(1);
                partition.queue.ask(request(answer)).then_some(answered)
            })
            .collect();
        for answered in answers {
            // An error means the writer has ended, and with it what was queued.
            let _ = answered.recv();
        }
    }

    /// Counters right now.
    pub fn stats(&self) -> StreamStats {
        StreamStats {
            stream: self.name().to_owned(),
            partitions: self
                .shared
                .partitions
                .iter()
                .map(|partition| partition.stats())
                .collect(),
        }
    }
}

impl AsRef<str> for Stream {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("name", &self.name())
            .field("partitions", &self.partitions())
            .finish()
    }
}

/// MurmurHash2 with Kafka's seed.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        hash ^= rest
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::murmur2;

    #[test]
    fn keys_hash_as_in_kafka() {
        // From Kafka's own UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
