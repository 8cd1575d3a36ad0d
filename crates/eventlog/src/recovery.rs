//! Recovery: what opening a log finds, repairs and reports.
//!
//! Only the last segment of a partition is scanned: the ones before were whole and synced when they
//! were sealed, and damage there is found when it is read. An unfinished write at the very end was
//! never acknowledged and is cut off. Good batches *behind* something unreadable were acknowledged
//! (see `writer.rs`: a batch is written only when the one before is durable), so there nothing is
//! cut: the damage is reported, the segment is sealed, and readers meet
//! [`ReadError::Corrupt`](crate::ReadError::Corrupt).
//!
//! What cannot be told apart: a last batch that was acknowledged and then damaged looks like a torn
//! write. It is cut, and the report says how much. Whenever the tail does not look like the beginning
//! of exactly one write, it is copied to a file of its own first.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Offset;
use crate::disk::{self, ActiveFile};
use crate::index::SparseIndex;
use crate::scan::{self, BatchScanner, Step};
use crate::segment::Segment;

/// A partition's files, ready to go on.
pub(crate) struct Recovered {
    pub(crate) segments: VecDeque<Arc<Segment>>,
    /// The offset of the next record.
    pub(crate) end: Offset,
}

impl Recovered {
    /// A partition without a record.
    pub(crate) fn empty() -> Recovered {
        Recovered {
            segments: VecDeque::new(),
            end: Offset::ZERO,
        }
    }
}

/// Opens the partition in `dir` and repairs its tail.
pub(crate) fn recover(
    stream: &str,
    partition: u16,
    dir: &Path,
    report: &mut RecoveryReport,
) -> Result<Recovered, (PathBuf, io::Error)> {
    let mut files = Segment::list(dir).map_err(|error| (dir.to_owned(), error))?;
    report.partitions += 1;
    let Some((base, path)) = files.pop() else {
        return Ok(Recovered::empty());
    };
    let mut segments = VecDeque::with_capacity(files.len() + 1);
    for (base, path) in files {
        let segment = Segment::found(base, path.clone(), None).map_err(|error| (path, error))?;
        segments.push_back(Arc::new(segment));
    }
    let last = recover_last(stream, partition, base, &path, report);
    let last = last.and_then(|last| {
        Ok((
            Segment::found(base, path.clone(), Some(last.index))?,
            last.end,
            last.damaged,
        ))
    });
    let (segment, end, damaged) = last.map_err(|error| (path, error))?;
    segments.push_back(Arc::new(segment));
    if damaged {
        // A later crash must not find old damage and a torn tail in one file.
        let path = Segment::path_in(dir, end);
        let fresh = ActiveFile::create(&path)
            .and_then(|_| disk::sync_dir(dir))
            .and_then(|()| Segment::found(end, path.clone(), Some(SparseIndex::default())));
        let fresh = fresh.map_err(|error| (path, error))?;
        if let Some(sealed) = segments.back() {
            sealed.seal();
        }
        segments.push_back(Arc::new(fresh));
    }
    Ok(Recovered { segments, end })
}

/// What a scan of the last segment has found.
struct LastSegment {
    index: SparseIndex,
    end: Offset,
    damaged: bool,
}

fn recover_last(
    stream: &str,
    partition: u16,
    base: Offset,
    path: &Path,
    report: &mut RecoveryReport,
) -> io::Result<LastSegment> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut index = SparseIndex::default();
    let mut damaged = false;
    let mut scanner = BatchScanner::new(file.try_clone()?, 0, base);
    loop {
        let (position, expected) = (scanner.position(), scanner.expected());
        match scanner.next(length)? {
            Step::Batch(header, _) => {
                index.note(base, header.base, position);
                continue;
            }
            Step::End => {}
            Step::Bad(_) => {
                if let Some((good, to)) = scan::resync(&file, position, expected, length, None)? {
                    report.damaged.push(Damage {
                        stream: stream.to_owned(),
                        partition,
                        segment: path.to_owned(),
                        position,
                        from: expected,
                        to,
                    });
                    damaged = true;
                    scanner.jump(good, to);
                    continue;
                }
                let set_aside = if scanner.is_torn(length) {
                    None
                } else {
                    Some(set_aside(&file, path, position)?)
                };
                file.set_len(position)?;
                file.sync_all()?;
                report.torn_tails.push(TornTail {
                    stream: stream.to_owned(),
                    partition,
                    segment: path.to_owned(),
                    position,
                    bytes: length - position,
                    offset: expected,
                    set_aside,
                });
            }
        }
        return Ok(LastSegment {
            index,
            end: expected,
            damaged,
        });
    }
}

/// Copies everything from `position` on into a file beside the segment, durably.
fn set_aside(file: &File, segment: &Path, position: u64) -> io::Result<PathBuf> {
    let mut from = file.try_clone()?;
    from.seek(SeekFrom::Start(position))?;
    let path = (0..u32::MAX)
        .map(|n| segment.with_extension(format!("cut-{n}")))
        .find(|path| !path.exists())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    let mut to = File::create_new(&path)?;
    io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    disk::sync_dir(segment.parent().unwrap_or(Path::new(".")))?;
    Ok(path)
}

/// What [`Log::open`](crate::Log::open) found. Print it: a truncated tail is normal after a crash
/// (those records were never acknowledged), damage is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Streams found.
    pub streams: usize,
    /// Partitions found.
    pub partitions: usize,
    /// Tails that were cut off.
    pub torn_tails: Vec<TornTail>,
    /// Damage in the middle of the last segment, which is kept: the records after it are good.
    pub damaged: Vec<Damage>,
    /// Group files whose last, unfinished commit was cut off.
    pub torn_groups: Vec<TornGroup>,
}

/// An unfinished write at the end of a partition that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The stream.
    pub stream: String,
    /// The partition.
    pub partition: u16,
    /// The file that was truncated.
    pub segment: PathBuf,
    /// Where it ends now.
    pub position: u64,
    /// How many bytes were dropped.
    pub bytes: u64,
    /// The offset at which the partition goes on.
    pub offset: Offset,
    /// A copy of what was cut, if it was more than one unfinished write: look at it, then delete it.
    pub set_aside: Option<PathBuf>,
}

/// Bytes that cannot be read, with good records behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The stream.
    pub stream: String,
    /// The partition.
    pub partition: u16,
    /// The file.
    pub segment: PathBuf,
    /// Where the damage begins.
    pub position: u64,
    /// The first offset that cannot be read.
    pub from: Offset,
    /// The first offset that can be read again.
    pub to: Offset,
}

/// A group file with an unfinished commit at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornGroup {
    /// The group.
    pub group: String,
    /// How many bytes were dropped.
    pub bytes: u64,
}

impl RecoveryReport {
    /// Nothing had to be repaired.
    pub fn is_clean(&self) -> bool {
        self.torn_tails.is_empty() && self.damaged.is_empty() && self.torn_groups.is_empty()
    }
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "log: {} streams, {} partitions",
            self.streams, self.partitions
        )?;
        if self.is_clean() {
            return f.write_str(", clean");
        }
        for torn in &self.torn_tails {
            write!(
                f,
                "\n  {}/{}: cut {} bytes of an unfinished write off {}; goes on at offset {}",
                torn.stream,
                torn.partition,
                torn.bytes,
                torn.segment.display(),
                torn.offset
            )?;
            if let Some(copy) = &torn.set_aside {
                write!(f, "; a copy of what was cut is in {}", copy.display())?;
            }
        }
        for damage in &self.damaged {
            write!(
                f,
                "\n  {}/{}: DAMAGED {} at byte {}: offsets {} to {} cannot be read; restore it from a backup",
                damage.stream,
                damage.partition,
                damage.segment.display(),
                damage.position,
                damage.from,
                damage.to.get().saturating_sub(1)
            )?;
        }
        for torn in &self.torn_groups {
            write!(
                f,
                "\n  group {}: cut {} bytes of an unfinished commit off",
                torn.group, torn.bytes
            )?;
        }
        Ok(())
    }
}
