//! Reading a partition by offset.
//!
//! A reader has its own open file and its own place in it, and shares nothing with others but the
//! page cache: a slow one delays nobody. What it cannot read it says: [`ReadError::Truncated`] when
//! retention was faster, [`ReadError::Corrupt`] when bytes are damaged, and it stands still until
//! the caller has decided to [`seek`](Reader::seek) or to [`skip`](Reader::skip_corrupt).

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::{BatchRecords, Malformed};
use crate::error::ReadError;
use crate::partition::Partition;
use crate::record::{Offset, Record};
use crate::scan::{BatchScanner, Step};
use crate::segment::Segment;
use crate::stream::Shared;

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the first record that retention has left.
    Earliest,
    /// At this offset.
    At(Offset),
    /// After the last durable record: only what comes from now on.
    End,
}

/// A position in one partition.
pub struct Reader {
    stream: Arc<Shared>,
    partition: u16,
    next: Offset,
    cursor: Option<Cursor>,
    /// The batch that `next` lies in, once it has been read.
    batch: Option<BatchRecords>,
    stuck: Option<Stuck>,
}

/// A place in a segment: always a batch boundary.
struct Cursor {
    segment: Arc<Segment>,
    scanner: BatchScanner,
}

/// What the last `Corrupt` was about.
#[derive(Clone, Copy)]
enum Stuck {
    /// A batch's checksum is right, a record in it is not.
    Record,
    /// No batch where one should be.
    Batch,
}

impl Reader {
    pub(crate) fn new(stream: Arc<Shared>, partition: u16, from: ReadFrom) -> Reader {
        let range = stream.partitions.get(usize::from(partition));
        let next = match from {
            ReadFrom::At(offset) => offset,
            ReadFrom::Earliest => range.map_or(Offset::ZERO, |p| p.start()),
            ReadFrom::End => range.map_or(Offset::ZERO, |p| p.end()),
        };
        Reader {
            stream,
            partition,
            next,
            cursor: None,
            batch: None,
            stuck: None,
        }
    }

    /// The partition it reads.
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// The offset of the next record.
    pub fn offset(&self) -> Offset {
        self.next
    }

    /// Goes to another offset.
    pub fn seek(&mut self, to: Offset) {
        self.next = to;
        self.cursor = None;
        self.batch = None;
        self.stuck = None;
    }

    /// Reads on: up to `max_records` records (at least 1), ending with the record that reaches
    /// `max_bytes`.
    ///
    /// Without new durable records it waits up to `wait` (`None`: not at all) and then returns an
    /// empty list; so does a closed log, at once.
    pub fn read(
        &mut self,
        max_records: usize,
        max_bytes: usize,
        wait: Option<Duration>,
    ) -> Result<Vec<Record>, ReadError> {
        let partition = self.target()?;
        if self.next < partition.start() {
            return Err(self.truncated(&partition));
        }
        let mut end = partition.end();
        if self.next == end {
            end = partition.wait_beyond(self.next, wait.unwrap_or_default());
        }
        if self.next > end {
            return Err(ReadError::BeyondEnd {
                stream: self.stream.name.clone(),
                partition: self.partition,
                wanted: self.next,
                end,
            });
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        while self.next < end {
            match self.next_record(&partition) {
                Ok(record) => {
                    bytes += record.size();
                    records.push(record);
                    if records.len() >= max_records || bytes >= max_bytes {
                        break;
                    }
                }
                // First what is good; the reader stands still, so the error comes again.
                Err(_) if !records.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// After [`ReadError::Corrupt`]: goes to the next batch that can be read and returns its
    /// offset. Without a `Corrupt` before, it stays where it is.
    pub fn skip_corrupt(&mut self) -> Result<Offset, ReadError> {
        let partition = self.target()?;
        let Some(stuck) = self.stuck.take() else {
            return Ok(self.next);
        };
        self.batch = None;
        if let Some(cursor) = &mut self.cursor {
            let behind = partition.segment_behind(cursor.segment.base());
            let segment_end = behind.as_ref().map(|segment| segment.base());
            let resumed = match stuck {
                // The scanner stands behind this batch already.
                Stuck::Record => Some(cursor.scanner.expected()),
                Stuck::Batch => {
                    let (position, expected) =
                        (cursor.scanner.position(), cursor.scanner.expected());
                    let found = cursor
                        .segment
                        .resume_behind(cursor.scanner.file(), position, expected, segment_end)
                        .map_err(|source| ReadError::Io {
                            file: cursor.segment.path().to_owned(),
                            source,
                        })?;
                    found.map(|(position, base)| {
                        cursor.scanner.jump(position, base);
                        base
                    })
                }
            };
            match resumed {
                Some(base) => self.next = self.next.max(base),
                None => self.seek(segment_end.unwrap_or_else(|| partition.end())),
            }
        }
        Ok(self.next)
    }

    fn target(&self) -> Result<Arc<Partition>, ReadError> {
        self.stream
            .partitions
            .get(usize::from(self.partition))
            .cloned()
            .ok_or_else(|| ReadError::NoSuchPartition {
                stream: self.stream.name.clone(),
                partition: self.partition,
                partitions: self.stream.config.partitions,
            })
    }

    /// The record at `next`, which is before the durable end.
    fn next_record(&mut self, partition: &Partition) -> Result<Record, ReadError> {
        loop {
            if let Some(batch) = &mut self.batch {
                match batch.next(self.partition) {
                    Some(Ok(record)) => {
                        self.next = record.offset.next();
                        return Ok(record);
                    }
                    Some(Err(malformed)) => {
                        self.stuck = Some(Stuck::Record);
                        return Err(self.corrupt(malformed));
                    }
                    None => self.batch = None,
                }
            }
            self.next_batch(partition)?;
        }
    }

    /// Reads the batch that has `next`.
    fn next_batch(&mut self, partition: &Partition) -> Result<(), ReadError> {
        // A suspect segment without a durable byte is replaced by one of the same name: look again
        // once when a segment ends too early.
        let mut looked_again = false;
        loop {
            let cursor = match &mut self.cursor {
                Some(cursor) => cursor,
                None => {
                    let cursor = self.locate(partition)?;
                    self.cursor.insert(cursor)
                }
            };
            // In this order: once there is a segment behind, this one's length is final.
            let behind = partition.segment_behind(cursor.segment.base());
            let limit = cursor.segment.durable();
            let expected = cursor.scanner.expected();
            if behind
                .as_ref()
                .is_some_and(|behind| behind.base() <= expected)
            {
                self.cursor = None;
                continue;
            }
            let io = |source| ReadError::Io {
                file: cursor.segment.path().to_owned(),
                source,
            };
            match cursor.scanner.next(limit).map_err(io)? {
                Step::Batch(header, _) if header.end() <= self.next => {}
                Step::Batch(header, bytes) => {
                    let mut batch = BatchRecords::new(header, bytes);
                    while batch.offset() < self.next {
                        if let Err(malformed) = batch.skip() {
                            self.stuck = Some(Stuck::Record);
                            return Err(self.corrupt(malformed));
                        }
                    }
                    self.batch = Some(batch);
                    return Ok(());
                }
                Step::End if behind.is_none() && !looked_again => {
                    looked_again = true;
                    self.cursor = None;
                }
                Step::End if expected < partition.start() => return Err(self.truncated(partition)),
                Step::End => {
                    self.stuck = Some(Stuck::Batch);
                    return Err(
                        self.corrupt(Malformed("the segment ends before the next one begins"))
                    );
                }
                Step::Bad(malformed) => {
                    self.stuck = Some(Stuck::Batch);
                    return Err(self.corrupt(malformed));
                }
            }
        }
    }

    /// Opens the segment that has `next`, at a batch boundary before it.
    fn locate(&self, partition: &Partition) -> Result<Cursor, ReadError> {
        let Some(segment) = partition.segment_of(self.next) else {
            return Err(self.truncated(partition));
        };
        let end = partition
            .segment_behind(segment.base())
            .map(|behind| behind.base());
        let opened = File::open(segment.path()).and_then(|file| {
            let (position, base) = segment.locate(&file, self.next, end)?;
            Ok(BatchScanner::new(file, position, base))
        });
        match opened {
            Ok(scanner) => Ok(Cursor { segment, scanner }),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && self.next < partition.start() =>
            {
                Err(self.truncated(partition))
            }
            Err(source) => Err(ReadError::Io {
                file: segment.path().to_owned(),
                source,
            }),
        }
    }

    fn truncated(&self, partition: &Partition) -> ReadError {
        ReadError::Truncated {
            stream: self.stream.name.clone(),
            partition: self.partition,
            wanted: self.next,
            first_available: partition.start(),
        }
    }

    fn corrupt(&self, malformed: Malformed) -> ReadError {
        let (segment, position, offset) = match &self.cursor {
            Some(cursor) => (
                cursor.segment.path().to_owned(),
                cursor.scanner.position(),
                // Damage before `next` is still in the way of `next`, and no earlier record is lost to
                // this reader.
                cursor.scanner.expected().max(self.next),
            ),
            None => (PathBuf::new(), 0, self.next),
        };
        ReadError::Corrupt {
            stream: self.stream.name.clone(),
            partition: self.partition,
            segment,
            position,
            offset,
            reason: malformed.0,
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("stream", &self.stream.name)
            .field("partition", &self.partition)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
