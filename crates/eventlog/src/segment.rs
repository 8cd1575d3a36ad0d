//! A segment: one file of a partition, named by the offset of its first record
//! (`00000000000000004711.log`), with its sparse index beside it (`.index`).
//!
//! Only the last segment of a partition is written to; the others are sealed. No file is kept
//! open for a sealed segment: thousands of them must not need thousands of descriptors.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::index::SparseIndex;
use crate::record::Offset;
use crate::scan::{self, BatchScanner, Step};

/// A segment, as everybody sees it.
#[derive(Debug)]
pub(crate) struct Segment {
    base: Offset,
    path: PathBuf,
    /// Bytes that count. Behind them there may be a write that is not durable yet, or one that
    /// failed and could not be taken back.
    durable: AtomicU64,
    created: SystemTime,
    /// When its last record was appended.
    touched: Mutex<SystemTime>,
    /// In memory while active; `None` when sealed: then it is in its file.
    index: Mutex<Option<SparseIndex>>,
}

impl Segment {
    /// A new, empty segment whose file has just been made.
    pub(crate) fn fresh(base: Offset, path: PathBuf, now: SystemTime) -> Segment {
        Segment {
            base,
            path,
            durable: AtomicU64::new(0),
            created: now,
            touched: Mutex::new(now),
            index: Mutex::new(Some(SparseIndex::default())),
        }
    }

    /// A segment found on disk; sealed unless an index is given.
    pub(crate) fn found(
        base: Offset,
        path: PathBuf,
        index: Option<SparseIndex>,
    ) -> io::Result<Segment> {
        let meta = fs::metadata(&path)?;
        let touched = meta.modified()?;
        Ok(Segment {
            base,
            path,
            durable: AtomicU64::new(meta.len()),
            // Not every file system knows the birth of a file.
            created: meta.created().unwrap_or(touched).min(touched),
            touched: Mutex::new(touched),
            index: Mutex::new(index),
        })
    }

    /// The file of the segment that begins with `base`.
    pub(crate) fn path_in(dir: &Path, base: Offset) -> PathBuf {
        dir.join(format!("{base:0>20}.log", base = base.to_string()))
    }

    /// The segment files of a partition, in order.
    pub(crate) fn list(dir: &Path) -> io::Result<Vec<(Offset, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let base = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".log"))
                .filter(|digits| digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok());
            if let Some(base) = base {
                found.push((Offset::new(base), path));
            }
        }
        found.sort();
        Ok(found)
    }

    pub(crate) fn base(&self) -> Offset {
        self.base
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn created(&self) -> SystemTime {
        self.created
    }

    /// Bytes that count.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// When its last record was appended.
    pub(crate) fn touched(&self) -> SystemTime {
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The batch of offset `base` has become durable and ends at `end`.
    pub(crate) fn grew(&self, base: Offset, end: u64, now: SystemTime) {
        if let Some(index) = &mut *self.index.lock().unwrap_or_else(PoisonError::into_inner) {
            index.note(self.base, base, self.durable());
        }
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.durable.store(end, Ordering::Release);
    }

    /// Moves the index from memory to its file.
    pub(crate) fn seal(&self) {
        let index = self
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(index) = index
            && let Err(error) = index.save(&self.index_path())
        {
            tracing::warn!(file = %self.index_path().display(), %error, "index not written; it will be made again when needed");
        }
    }

    /// Removes the files. The segment is no longer listed, so nobody looks for them.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(self.index_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.index_path().display(), %error, "index not removed");
            }
            _ => {}
        }
        fs::remove_file(&self.path)
    }

    /// Where to begin looking for `offset`: a batch boundary and the offset there.
    pub(crate) fn locate(
        &self,
        file: &File,
        offset: Offset,
        end: Option<Offset>,
    ) -> io::Result<(u64, Offset)> {
        if let Some(index) = &*self.index.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(index.floor(self.base, offset));
        }
        if let Some(index) = SparseIndex::load(&self.index_path()) {
            let (position, base) = index.floor(self.base, offset);
            // An index beside another segment's bytes (a restored backup, say) shows here.
            let mut there = BatchScanner::new(file.try_clone()?, position, base);
            if position == 0 || matches!(there.next(self.durable())?, Step::Batch(..)) {
                return Ok((position, base));
            }
        }
        let index = self.rebuild_index(file, end)?;
        if let Err(error) = index.save(&self.index_path()) {
            tracing::warn!(file = %self.index_path().display(), %error, "rebuilt index not written");
        }
        Ok(index.floor(self.base, offset))
    }

    /// Where reading can go on behind damage at `position`, where the batch of offset `expected`
    /// should be: the batch right behind it if its length can be believed, else what a search finds.
    /// The batches that the index knows bound the search.
    pub(crate) fn resume_behind(
        &self,
        file: &File,
        position: u64,
        expected: Offset,
        end: Option<Offset>,
    ) -> io::Result<Option<(u64, Offset)>> {
        if let Some(found) = scan::by_length(file, position, expected, self.durable())? {
            return Ok(Some(found));
        }
        let in_memory = self
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let index = in_memory
            .or_else(|| SparseIndex::load(&self.index_path()))
            .unwrap_or_default();
        let (mut from, mut expected) = (position, expected);
        for (known, base) in index.behind(self.base, position) {
            if let Some(found) = scan::resync(file, from, expected, known, Some(base))? {
                return Ok(Some(found));
            }
            let mut there = BatchScanner::new(file.try_clone()?, known, base);
            if matches!(there.next(self.durable())?, Step::Batch(..)) {
                return Ok(Some((known, base)));
            }
            (from, expected) = (known, base);
        }
        scan::resync(file, from, expected, self.durable(), end)
    }

    fn rebuild_index(&self, file: &File, end: Option<Offset>) -> io::Result<SparseIndex> {
        let limit = self.durable();
        let mut index = SparseIndex::default();
        let mut scanner = BatchScanner::new(file.try_clone()?, 0, self.base);
        loop {
            let position = scanner.position();
            match scanner.next(limit)? {
                Step::Batch(header, _) if end.is_some_and(|end| header.base >= end) => {
                    return Ok(index);
                }
                Step::Batch(header, _) => index.note(self.base, header.base, position),
                Step::End => return Ok(index),
                Step::Bad(_) => {
                    match scan::resync(file, position, scanner.expected(), limit, end)? {
                        Some((position, base)) => scanner.jump(position, base),
                        None => return Ok(index),
                    }
                }
            }
        }
    }

    fn index_path(&self) -> PathBuf {
        self.path.with_extension("index")
    }
}
