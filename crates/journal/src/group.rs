//! A group: batches that are written together, as one frame.
//!
//! One frame is there as a whole or not at all, so a group goes from the state before its first
//! batch to the state after its last one in one step, and every state a crash can leave is the
//! state after some batch. That makes it safe to write only what the group comes to:
//! - a put that a later operation of the group replaces or deletes is not written;
//! - nor is a delete, if the record is not on disk from an earlier group.
//!
//! A message that is stored, delivered and acknowledged while the disk syncs the group before
//! costs nothing at all. Not done: the same across groups. The first of two frames can be all that
//! a crash leaves, and then what it put must be there.

use std::collections::VecDeque;

use crate::batch::{Batch, Operation, Operations, RecordId};
use crate::chain::Chain;
use crate::frame;
use crate::index::ById;

/// Batches join a group until this many bytes are to be written: what one `write` and one sync
/// should carry, and what a crash can make unreadable at once. One larger batch is a group of its own.
pub(crate) const GROUP_BYTES: usize = 8 << 20;
/// And until this many were submitted or operations are in it, however few are to be written: it
/// bounds the time and the memory that deciding takes.
const SUBMITTED_BYTES: usize = 4 * GROUP_BYTES;
const OPERATIONS: u64 = 1 << 20;
/// Memory of a larger group is given back after it.
const KEEP_BYTES: usize = 2 * GROUP_BYTES;
const KEEP_ENTRIES: usize = 1 << 18;

#[derive(Default)]
pub(crate) struct Group {
    /// Room for a frame's head, and its body.
    frame: Vec<u8>,
    /// How much of the frame the batches are; the rest are copies for compaction.
    own: usize,
    /// The last operation on an id, as its place in `entries`.
    last: ById<RecordId, u32>,
    entries: Vec<Entry>,
    /// Bytes of the batches that are to be written.
    to_write: usize,
    pub(crate) tally: Tally,
}

/// One operation of one of the batches.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where it begins in its batch.
    from: u32,
    /// Its bytes; 0: it is not written.
    size: u32,
    is_put: bool,
}

/// What a group is for those who count.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) batches: u64,
    pub(crate) operations: u64,
    /// Bytes submitted.
    pub(crate) bytes: usize,
    /// Puts that are not written.
    pub(crate) elided: u64,
    /// Bytes of copies.
    pub(crate) copied: u64,
}

impl Group {
    /// There is something to write.
    pub(crate) fn has_frame(&self) -> bool {
        self.frame.len() > frame::HEAD
    }

    pub(crate) fn frame(&mut self) -> &mut [u8] {
        &mut self.frame
    }

    pub(crate) fn body(&self) -> &[u8] {
        self.frame.get(frame::HEAD..).unwrap_or_default()
    }

    /// Takes as many batches as a group may have.
    pub(crate) fn gather(&mut self, waiting: &mut VecDeque<Batch>, chain: &Chain) {
        self.clear();
        let mut count = 0;
        for batch in waiting.iter() {
            let full = self.to_write + batch.bytes() > GROUP_BYTES
                || self.tally.bytes + batch.bytes() > SUBMITTED_BYTES
                || self.tally.operations + batch.len() as u64 > OPERATIONS;
            if full && count > 0 {
                break;
            }
            count += 1;
            self.tally.bytes += batch.bytes();
            self.tally.operations += batch.len() as u64;
            self.settle(batch, chain);
        }
        self.tally.batches = count as u64;
        self.frame.reserve(frame::HEAD + self.to_write);
        self.frame.resize(frame::HEAD, 0);
        let mut entries = self.entries.as_slice();
        for batch in waiting.drain(..count) {
            let (of_batch, others) = entries.split_at(batch.len());
            entries = others;
            append_runs(&mut self.frame, batch.wire(), of_batch);
        }
        self.own = self.frame.len();
    }

    /// Decides which of the operations so far are to be written, now that these follow.
    fn settle(&mut self, batch: &Batch, chain: &Chain) {
        for placed in Operations::new(batch.wire()) {
            let id = placed.operation.id();
            // Entries are as many as operations, at least 12 bytes each, in at most 1 GiB.
            let place = self.entries.len() as u32;
            if let Some(before) = self.last.insert(id, place) {
                let before = &mut self.entries[before as usize];
                self.to_write -= before.size as usize;
                before.size = 0;
                self.tally.elided += u64::from(before.is_put);
            }
            let (is_put, size) = match placed.operation {
                Operation::Delete(_) if !chain.contains(id) => (false, 0),
                Operation::Delete(_) => (false, placed.operation.size()),
                Operation::Put(..) => (true, placed.operation.size()),
            };
            self.to_write += size;
            self.entries.push(Entry {
                from: placed.at as u32,
                size: size as u32,
                is_put,
            });
        }
    }

    /// Adds a live record that is to leave the oldest segment. If the group changes or deletes the
    /// record itself, that will do.
    pub(crate) fn copy(&mut self, id: RecordId, wire: &[u8]) {
        if self.last.contains_key(&id) {
            return;
        }
        if self.frame.is_empty() {
            self.frame.resize(frame::HEAD, 0);
            self.own = frame::HEAD;
        }
        self.frame.extend_from_slice(wire);
        self.tally.copied += wire.len() as u64;
    }

    /// Takes the copies out again: the batches are what must be written.
    pub(crate) fn drop_copies(&mut self) {
        self.frame.truncate(self.own);
        self.tally.copied = 0;
    }

    pub(crate) fn clear(&mut self) {
        self.frame.clear();
        self.frame.shrink_to(KEEP_BYTES);
        self.own = 0;
        self.to_write = 0;
        if self.last.len() < KEEP_ENTRIES / 16 && self.last.capacity() > KEEP_ENTRIES {
            self.last = ById::default();
            self.entries = Vec::new();
        }
        self.last.clear();
        self.entries.clear();
        self.tally = Tally::default();
    }
}

/// Appends the operations that are to be written, neighbours together.
fn append_runs(out: &mut Vec<u8>, wire: &[u8], entries: &[Entry]) {
    let mut run = 0..0;
    for entry in entries.iter().filter(|entry| entry.size > 0) {
        let (from, to) = (entry.from as usize, (entry.from + entry.size) as usize);
        if from == run.end {
            run.end = to;
        } else {
            out.extend_from_slice(&wire[run]);
            run = from..to;
        }
    }
    out.extend_from_slice(&wire[run]);
}
