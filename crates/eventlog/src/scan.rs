//! Walking over the batches of one segment file: for readers, for recovery, for a lost index.
//!
//! A batch is believed when its checksum matches **and** its base offset follows the batch before.
//! After damage, [`resync`] looks for the place where the walk can go on. It accepts a place only
//! if whole, checked batches lead from there to the end: a payload may itself contain the bytes of
//! a valid batch, and nobody may smuggle records in that way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};

use crate::batch::{self, BatchHeader, HEADER, Malformed};
use crate::record::Offset;

/// How much is read at once: enough that system calls do not count, little enough that a reader
/// costs little memory.
const CHUNK: u64 = 256 << 10;

/// What the next step of the walk found.
pub(crate) enum Step {
    /// A whole, checked batch.
    Batch(BatchHeader, Bytes),
    /// The limit.
    End,
    /// Something else. The walk stands still.
    Bad(Malformed),
}

/// A walk over the batches of one file.
#[derive(Debug)]
pub(crate) struct BatchScanner {
    file: File,
    /// Bytes read ahead; they begin at `position`.
    chunk: Bytes,
    position: u64,
    expected: Offset,
}

impl BatchScanner {
    /// Begins at a batch boundary: the batch at `position` begins with offset `expected`.
    pub(crate) fn new(file: File, position: u64, expected: Offset) -> BatchScanner {
        BatchScanner {
            file,
            chunk: Bytes::new(),
            position,
            expected,
        }
    }

    /// The file it walks over.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where the next batch begins.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next batch's first offset.
    pub(crate) fn expected(&self) -> Offset {
        self.expected
    }

    /// Goes to another batch boundary.
    pub(crate) fn jump(&mut self, position: u64, expected: Offset) {
        self.chunk = Bytes::new();
        self.position = position;
        self.expected = expected;
    }

    /// Can what is at the walk's place be the beginning of one write that did not get finished
    /// before `limit`, and nothing else?
    pub(crate) fn is_torn(&self, limit: u64) -> bool {
        let left = limit - self.position;
        left < HEADER as u64
            || BatchHeader::parse(&self.chunk)
                .is_ok_and(|found| found.base == self.expected && found.size >= left)
    }

    /// The next batch before `limit` (bytes of the file that count).
    pub(crate) fn next(&mut self, limit: u64) -> io::Result<Step> {
        let left = limit.saturating_sub(self.position);
        if left == 0 {
            return Ok(Step::End);
        }
        if left < HEADER as u64 {
            return Ok(Step::Bad(Malformed("the batch header is cut short")));
        }
        if !self.fill(HEADER as u64, left)? {
            return Ok(Step::Bad(Malformed("the file is shorter than it was")));
        }
        let header = match BatchHeader::parse(&self.chunk) {
            Ok(header) => header,
            Err(malformed) => return Ok(Step::Bad(malformed)),
        };
        if header.base != self.expected {
            return Ok(Step::Bad(Malformed(
                "the batch's base offset does not follow the batch before",
            )));
        }
        if header.size > left {
            return Ok(Step::Bad(Malformed("the batch is cut short")));
        }
        if !self.fill(header.size, left)? {
            return Ok(Step::Bad(Malformed("the file is shorter than it was")));
        }
        let batch = self.chunk.slice(..header.size as usize);
        if let Err(malformed) = header.verify(&batch) {
            return Ok(Step::Bad(malformed));
        }
        self.chunk = self.chunk.split_off(header.size as usize);
        self.position += header.size;
        self.expected = header.end();
        Ok(Step::Batch(header, batch))
    }

    /// Makes sure that `needed` of the `left` bytes at `position` are in the chunk. `false`: the
    /// file ends before.
    fn fill(&mut self, needed: u64, left: u64) -> io::Result<bool> {
        if self.chunk.len() as u64 >= needed {
            return Ok(true);
        }
        let mut chunk = BytesMut::zeroed(needed.max(left.min(CHUNK)) as usize);
        let mut got = 0;
        while got < chunk.len() {
            match self
                .file
                .read_at(&mut chunk[got..], self.position + got as u64)
            {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        chunk.truncate(got);
        self.chunk = chunk.freeze();
        Ok(got as u64 >= needed)
    }
}

/// Where the walk can go on behind damage: the first place after `from` (where the batch of offset
/// `expected` should be) from which whole batches lead to the end. The end is exactly `limit`, or
/// the offset `end` where the next segment begins.
pub(crate) fn resync(
    file: &File,
    from: u64,
    expected: Offset,
    limit: u64,
    end: Option<Offset>,
) -> io::Result<Option<(u64, Offset)>> {
    let mut window = vec![0; CHUNK as usize];
    let mut at = from + 1;
    while at + (HEADER as u64) <= limit {
        let length = (limit - at).min(CHUNK) as usize;
        let window = &mut window[..length];
        match file.read_exact_at(window, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let candidates = length - HEADER + 1;
        for start in 0..candidates {
            // Three bytes that never differ, before anything costs time.
            if window[start + 16] != 2 || window[start] != 0 || window[start + 12] != 0 {
                continue;
            }
            let Ok(header) = BatchHeader::parse(&window[start..]) else {
                continue;
            };
            let position = at + start as u64;
            // Every record lost between here and there took at least a byte.
            let lost = header.base.get().checked_sub(expected.get());
            let plausible = lost.is_some_and(|lost| lost > 0 && lost <= position - from)
                && end.is_none_or(|end| header.end() <= end);
            if plausible && leads_to_the_end(file, position, header.base, limit, end)? {
                return Ok(Some((position, header.base)));
            }
        }
        at += candidates as u64;
    }
    Ok(None)
}

fn leads_to_the_end(
    file: &File,
    position: u64,
    base: Offset,
    limit: u64,
    end: Option<Offset>,
) -> io::Result<bool> {
    let mut scanner = BatchScanner::new(file.try_clone()?, position, base);
    loop {
        if end.is_some_and(|end| scanner.expected() == end) {
            return Ok(true);
        }
        match scanner.next(limit)? {
            Step::Batch(..) => {}
            Step::End => return Ok(end.is_none()),
            Step::Bad(_) => return Ok(false),
        }
    }
}

/// The batch behind a damaged one at `from`, if the damaged one's length field is still right.
pub(crate) fn by_length(
    file: &File,
    from: u64,
    expected: Offset,
    limit: u64,
) -> io::Result<Option<(u64, Offset)>> {
    let mut head = [0; HEADER];
    if limit.saturating_sub(from) < HEADER as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut head, from)?;
    let behind = from + batch::size_field(&head);
    if limit.saturating_sub(behind) < HEADER as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut head, behind)?;
    let Ok(header) = BatchHeader::parse(&head) else {
        return Ok(None);
    };
    let lost = header.base.get().saturating_sub(expected.get());
    if lost == 0 || lost > behind - from {
        return Ok(None);
    }
    let step = BatchScanner::new(file.try_clone()?, behind, header.base).next(limit)?;
    Ok(matches!(step, Step::Batch(..)).then_some((behind, header.base)))
}
