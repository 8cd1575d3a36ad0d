//! Recovery: what opening a journal finds, repairs and reports.
//!
//! Every segment is read once, from the oldest on, and told to the chain as the writer told it. What
//! a crash can leave, and what becomes of it:
//! - a last segment whose header is not whole: nothing was written behind it yet; deleted.
//! - a last frame that is not whole: never durable; cut off, and reported. As a frame is begun only
//!   when the one before is durable, there can be just one. A whole frame behind a bad one means
//!   that the bad one was durable once: damage, and nothing is touched.
//! - bytes behind the length that the next segment's header gives: abandoned by the writer; ignored.
//! - a segment that the next one's header passes over: an attempt that failed; deleted.
//! - the oldest segment although its live records were copied already: the copies count.
//!
//! Not told apart: a last frame that was durable and then damaged looks like a torn one.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::batch::{Operation, Operations, RecordId};
use crate::chain::{Chain, Head};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::frame::{FrameReader, Step};
use crate::segment::{self, Found, HEADER, Header, Segment};

/// What [`Journal::open`](crate::Journal::open) found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// An unfinished write that was cut off. Normal after a crash: it was never durable.
    pub torn_tail: Option<TornTail>,
    /// Live records.
    pub records: u64,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// How long it took, without [`Recovered::for_each`](crate::Recovered::for_each).
    pub took: Duration,
}

/// An unfinished write at the end of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub segment: PathBuf,
    /// Where it ends now.
    pub at: u64,
    /// How many bytes were cut off.
    pub bytes: u64,
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "journal: {} records, {} segments, {} bytes, read in {:.3} s",
            self.records,
            self.segments,
            self.bytes,
            self.took.as_secs_f64()
        )?;
        match &self.torn_tail {
            None => f.write_str(", clean"),
            Some(torn) => write!(
                f,
                "\n  cut {} bytes of an unfinished write off {} at byte {}",
                torn.bytes,
                torn.segment.display(),
                torn.at
            ),
        }
    }
}

/// A journal's directory after recovery.
pub(crate) struct Recovery {
    pub(crate) chain: Chain,
    pub(crate) head: Head,
    pub(crate) report: RecoveryReport,
    /// The highest id in the log.
    pub(crate) max_id: Option<RecordId>,
}

/// Reads and repairs the directory.
pub(crate) fn recover(disk: &Disk) -> Result<Recovery, OpenError> {
    let started = Instant::now();
    let Listing { chained, spent } = Listing::read(disk)?;
    let mut scan = Scan {
        chain: Chain::empty(),
        max_id: None,
    };
    let mut torn_tail = None;
    let mut head = None;
    let mut reader = None;
    for (place, header) in chained.iter().enumerate() {
        let path = segment::path_of(disk.dir(), header.number);
        match chained.get(place + 1).and_then(|next| next.previous) {
            Some(sealed) => {
                reader = Some(scan.sealed(&path, *header, sealed.length, reader)?);
            }
            None => {
                let (end, torn) = scan.last(disk, &path, *header, reader.take())?;
                torn_tail = torn;
                head = Some(end);
            }
        }
    }
    let Scan { mut chain, max_id } = scan;
    // Now that all is readable: what failed attempts have left.
    for &number in &spent.numbers {
        disk.remove(&segment::path_of(disk.dir(), number))?;
    }
    chain.next_number = spent.next_number;
    let head = match head {
        Some(head) => head,
        None => chain.extend(disk)?,
    };
    let report = RecoveryReport {
        torn_tail,
        records: chain.records(),
        bytes: chain.disk_bytes(),
        segments: chain.segments().len() as u64,
        took: started.elapsed(),
    };
    Ok(Recovery {
        chain,
        head,
        report,
        max_id,
    })
}

/// Which files there are, and what they are to each other.
struct Listing {
    /// Oldest first, without holes.
    chained: Vec<Header>,
    spent: Spent,
}

/// Numbers that failed attempts have used.
struct Spent {
    numbers: Vec<u64>,
    next_number: u64,
}

impl Listing {
    fn read(disk: &Disk) -> Result<Listing, OpenError> {
        let dir = disk.dir();
        let mut numbers = segment::list(dir).map_err(OpenError::io("listing", dir))?;
        let next_number = numbers.last().map_or(1, |last| last + 1);
        let mut spent = Vec::new();
        let mut chained = Vec::new();
        let mut wanted = None;
        while let Some(number) = numbers.pop() {
            let path = segment::path_of(dir, number);
            match wanted {
                Some(wanted) if number > wanted => {
                    spent.push(number);
                    continue;
                }
                Some(wanted) if number < wanted => {
                    return Err(OpenError::Missing {
                        file: segment::path_of(dir, wanted),
                    });
                }
                _ => {}
            }
            match read_header(&path)? {
                (Found::Header(header), _) if header.number == number => {
                    chained.push(header);
                    match header.previous {
                        Some(previous) if previous.number < number => {
                            wanted = Some(previous.number);
                        }
                        Some(_) => return Err(damaged(&path, 0, NO_HEADER)),
                        None if numbers.is_empty() => {}
                        None => {
                            return Err(damaged(
                                &path,
                                0,
                                "the first segment, with others before it",
                            ));
                        }
                    }
                }
                (Found::Version(found), _) => {
                    return Err(OpenError::Version { file: path, found });
                }
                // A crash while it was made.
                (_, length) if chained.is_empty() && length <= HEADER => spent.push(number),
                _ => return Err(damaged(&path, 0, NO_HEADER)),
            }
        }
        chained.reverse();
        Ok(Listing {
            chained,
            spent: Spent {
                numbers: spent,
                next_number,
            },
        })
    }
}

const NO_HEADER: &str = "this is not the header of this segment";

fn read_header(path: &Path) -> Result<(Found, u64), OpenError> {
    let read = || -> io::Result<(Found, u64)> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut bytes = [0; HEADER as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok((Header::decode(&bytes), length)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok((Found::Nothing, length)),
            Err(error) => Err(error),
        }
    };
    read().map_err(OpenError::io("reading", path))
}

/// Reads segments into a chain.
struct Scan {
    chain: Chain,
    max_id: Option<RecordId>,
}

impl Scan {
    /// A segment with a successor: everything up to `length` was durable. Returns the reader.
    fn sealed(
        &mut self,
        path: &Path,
        header: Header,
        length: u64,
        spare: Option<FrameReader>,
    ) -> Result<FrameReader, OpenError> {
        let file = File::open(path).map_err(OpenError::io("opening", path))?;
        let size = file
            .metadata()
            .map_err(OpenError::io("reading", path))?
            .len();
        if size < length || length < HEADER {
            return Err(damaged(
                path,
                size,
                "the file is shorter than its successor says",
            ));
        }
        let mut reader = self.begin(path, header, file, length, spare)?;
        match self.frames(path, &mut reader)? {
            None => Ok(reader),
            Some(reason) => Err(damaged(path, reader.at(), reason)),
        }
    }

    /// The last segment, which is written on, after what is torn has been cut off.
    fn last(
        &mut self,
        disk: &Disk,
        path: &Path,
        header: Header,
        spare: Option<FrameReader>,
    ) -> Result<(Head, Option<TornTail>), OpenError> {
        let file = disk.open_file(path)?;
        // What is read now counts as durable, so it must be; and it must be what the disk has.
        file.sync()?;
        file.drop_cache();
        let source = File::open(path).map_err(OpenError::io("opening", path))?;
        let size = source
            .metadata()
            .map_err(OpenError::io("reading", path))?
            .len();
        let mut reader = self.begin(path, header, source, size, spare)?;
        let torn = match self.frames(path, &mut reader)? {
            None => None,
            Some(reason) => {
                let behind = reader
                    .find_behind()
                    .map_err(OpenError::io("reading", path))?;
                if behind.is_some() {
                    return Err(damaged(path, reader.at(), reason));
                }
                file.truncate(reader.at())?;
                file.sync()?;
                Some(TornTail {
                    segment: path.to_owned(),
                    at: reader.at(),
                    bytes: size - reader.at(),
                })
            }
        };
        let head = Head {
            file,
            salt: header.salt,
            end: reader.at(),
        };
        Ok((head, torn))
    }

    fn begin(
        &mut self,
        path: &Path,
        header: Header,
        file: File,
        limit: u64,
        spare: Option<FrameReader>,
    ) -> Result<FrameReader, OpenError> {
        if self.chain.last().is_none() {
            self.chain.next_sequence = header.first_sequence;
        }
        if self.chain.next_sequence != header.first_sequence {
            return Err(damaged(path, HEADER, "frames before it are missing"));
        }
        self.chain
            .push(Segment::new(path.to_owned(), header, HEADER));
        let sequence = header.first_sequence;
        Ok(match spare {
            Some(reader) => reader.reuse(file, header.salt, HEADER, limit, sequence),
            None => FrameReader::new(file, header.salt, HEADER, limit, sequence),
        })
    }

    /// Takes frames up to the end, or to one that is bad, and says why it is.
    fn frames(
        &mut self,
        path: &Path,
        reader: &mut FrameReader,
    ) -> Result<Option<&'static str>, OpenError> {
        loop {
            let begin = reader.at();
            match reader.advance().map_err(OpenError::io("reading", path))? {
                Step::End => return Ok(None),
                Step::Bad(reason) => return Ok(Some(reason)),
                Step::Frame => {}
            }
            let frame = reader.frame();
            for placed in Operations::new(frame.body) {
                if let Operation::Put(id, _) = placed.operation {
                    self.max_id = self.max_id.max(Some(id));
                }
            }
            if !self.chain.apply(frame) {
                // Its checksum is right, so this is what was written: not by this version.
                return Err(damaged(path, begin, "a frame is not made of operations"));
            }
        }
    }
}

fn damaged(file: &Path, at: u64, reason: &'static str) -> OpenError {
    OpenError::Damaged {
        file: file.to_owned(),
        at,
        reason,
    }
}
