//! The writer: one thread, the only one that changes the files.
//!
//! ```text
//! waiting batches ─► group (`group.rs`) ─► write ─► fdatasync ─► chain and index ─► position, event
//!                    + a slice of compaction                                     └► dead files deleted
//! ```
//!
//! What gathered while the last group was being synced is the next group. The index changes when a
//! group is durable, not before: until then a group can be written again, elsewhere.
//!
//! When the disk says no, the group stays in hand, nothing is dropped, and it is tried again:
//! - a failed `write` (disk full, I/O error) is taken back by truncation, and the same file is used
//!   again; if even that fails, the file is left.
//! - after a failed `fdatasync` nobody knows what of the file is on disk (Linux marks the pages
//!   clean), so the file is left at its last durable length. The next segment's header says that
//!   length: whatever is behind it does not count, at the next start or ever.
//!
//! Files that hold nothing live any more are deleted even then: on a full disk that may be the only
//! space there is to get.

use std::collections::VecDeque;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::Batch;
use crate::chain::{Chain, Head};
use crate::compaction::{self, Compactor, Obstacle, Pace};
use crate::disk::{Disk, Failure};
use crate::error::StallError;
use crate::event::Event;
use crate::frame::{self, Frame};
use crate::group::{GROUP_BYTES, Group};
use crate::options::{Durability, Options};
use crate::position::Position;
use crate::queue::{Shared, Wait, Wake};
use crate::segment::HEADER;
use crate::stats::Stats;

/// Tries to write what is left when a journal is closed while its disk fails.
const LAST_TRIES: u32 = 3;

pub(crate) struct Writer {
    options: Options,
    disk: Disk,
    chain: Chain,
    /// Where the next frame goes; `None`: into a new segment.
    head: Option<Head>,
    /// Taken from the queue, not yet in a group.
    pub(crate) waiting: VecDeque<Batch>,
    group: Group,
    /// Batches that are durable.
    done: u64,
    compactor: Compactor,
    compaction: Compaction,
    /// A deletion that may not be durable yet.
    unsynced_deletion: bool,
    /// A dead file could not be deleted.
    deletion_failed: bool,
    stats: Stats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compaction {
    On,
    /// Something failed that may work again; until the next group.
    Paused,
    /// The oldest segment cannot be read.
    Stopped,
}

/// What a turn has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) position: Position,
    /// Bytes submitted that are durable now.
    pub(crate) bytes: usize,
}

impl Writer {
    pub(crate) fn new(options: Options, disk: Disk, chain: Chain, head: Head) -> Writer {
        let mut stats = Stats::default();
        stats.count_disk(&chain);
        Writer {
            options,
            disk,
            chain,
            head: Some(head),
            waiting: VecDeque::new(),
            group: Group::default(),
            done: 0,
            compactor: Compactor::default(),
            compaction: Compaction::On,
            unsynced_deletion: true,
            deletion_failed: false,
            stats,
        }
    }

    /// Works until the journal is closed.
    pub(crate) fn run(mut self, shared: &Shared, tell: impl Fn(Event)) {
        let mut pace = Pace::Busy;
        let mut failed = 0;
        loop {
            let wait = if self.has_work(pace) {
                Wait::No
            } else {
                match pace {
                    Pace::Busy => Wait::For(self.options.compact_at.idle_after),
                    Pace::Idle => Wait::Forever,
                }
            };
            let linger = match failed {
                0 => self.options.linger,
                _ => Duration::ZERO,
            };
            let wake = shared.take(&mut self.waiting, wait, linger, GROUP_BYTES);
            match wake {
                Wake::Batches => pace = Pace::Busy,
                Wake::Nothing if wait == Wait::No => {}
                Wake::Nothing => {
                    pace = Pace::Idle;
                    self.chain.shrink();
                    if self.compaction == Compaction::Paused {
                        self.compaction = Compaction::On;
                    }
                }
                Wake::Closed if !self.has_batches() => break,
                Wake::Closed => {}
            }
            match self.turn(pace) {
                Ok(done) => {
                    shared.set_stats(self.stats);
                    let recovered = failed > 0 && done.is_some();
                    if let Some(done) = &done {
                        shared.publish(done.position, done.bytes);
                    }
                    if recovered {
                        failed = 0;
                        shared.set_trouble(None);
                        tracing::info!("the journal's disk works again");
                        tell(Event::Resumed);
                    }
                    if let Some(done) = done {
                        tell(Event::Durable(done.position));
                    }
                    self.delete_dead_files();
                    shared.set_stats(self.stats);
                }
                Err(error) => {
                    shared.set_stats(self.stats);
                    failed += 1;
                    let error = Arc::new(error);
                    shared.set_trouble(Some(error.clone()));
                    if failed == 1 {
                        tracing::error!(
                            error = &*error as &dyn Error,
                            "the journal cannot be written; what is submitted is kept and tried again"
                        );
                        tell(Event::Stalled(error));
                    }
                    let closing = shared.pause(self.options.retry_pause);
                    if closing && failed >= LAST_TRIES {
                        break;
                    }
                }
            }
        }
    }

    fn has_batches(&self) -> bool {
        !self.waiting.is_empty() || self.group.tally.batches > 0
    }

    fn has_work(&self, pace: Pace) -> bool {
        self.has_batches() || self.may_compact(pace)
    }

    fn may_compact(&self, pace: Pace) -> bool {
        // A dead file that cannot be deleted is tried again with the next group, not at once.
        self.compaction == Compaction::On
            && !self.deletion_failed
            && compaction::is_due(&self.chain, &self.options, pace)
    }

    /// Writes one group: the one in hand, or the next. `None`: there were no batches.
    ///
    /// After an error the group is still in hand.
    pub(crate) fn turn(&mut self, pace: Pace) -> Result<Option<Done>, StallError> {
        if self.group.tally.batches == 0 {
            self.group.gather(&mut self.waiting, &self.chain);
            if self.group.tally.batches > 0 && self.compaction == Compaction::Paused {
                self.compaction = Compaction::On;
            }
            if self.may_compact(pace) {
                self.compact();
            }
        }
        if let Err(failure) = self.write() {
            self.stats.failures += 1;
            self.compactor.forget_place();
            self.group.drop_copies();
            self.delete_dead_files();
            self.stats.count_disk(&self.chain);
            if self.group.tally.batches > 0 {
                return Err(failure.into());
            }
            // Only copies, which can wait.
            warn("compaction paused", failure);
            self.compaction = Compaction::Paused;
            self.group.clear();
            return Ok(None);
        }
        let tally = self.group.tally;
        self.group.clear();
        self.done += tally.batches;
        self.stats.batches += tally.batches;
        self.stats.operations += tally.operations;
        self.stats.elided += tally.elided;
        self.stats.compacted_bytes += tally.copied;
        self.stats.count_disk(&self.chain);
        Ok((tally.batches > 0).then_some(Done {
            position: Position::new(self.done),
            bytes: tally.bytes,
        }))
    }

    fn compact(&mut self) {
        if self.chain.oldest().is_none() {
            // Everything is in one file; it becomes the oldest when there is a next one.
            match self.begin_segment() {
                Ok(head) => self.head = Some(head),
                Err(failure) => {
                    warn("compaction paused", failure);
                    self.compaction = Compaction::Paused;
                    return;
                }
            }
        }
        if let Err(obstacle) = self.compactor.slice(&self.chain, &mut self.group) {
            self.group.drop_copies();
            self.compactor.forget_place();
            self.compaction = match obstacle {
                Obstacle::Damaged { .. } => Compaction::Stopped,
                Obstacle::Io { .. } => Compaction::Paused,
            };
            self.stats.compaction_stopped = self.compaction == Compaction::Stopped;
            tracing::error!(
                error = &obstacle as &dyn Error,
                "the oldest segment of the journal cannot be compacted; its files will grow, and the next start may refuse: check the disk"
            );
        }
    }

    /// Makes the group durable, if there is anything to write.
    fn write(&mut self) -> Result<(), Failure> {
        if !self.group.has_frame() {
            return Ok(());
        }
        let size = self.group.frame().len() as u64;
        let limit = self.options.segment_bytes;
        let mut head = match self.head.take() {
            Some(head) if head.end == HEADER || head.end + size <= limit => head,
            _ => self.begin_segment()?,
        };
        let frame = self.group.frame();
        frame::seal(frame, self.chain.next_sequence, head.salt);
        if let Err(failure) = head.file.write(frame, head.end) {
            match head.file.truncate(head.end) {
                Ok(()) => self.head = Some(head),
                Err(failure) => warn(
                    "could not take a failed write back; leaving the segment",
                    failure,
                ),
            }
            return Err(failure);
        }
        if let Err(failure) = head.file.sync() {
            // Gives the space back. Nothing depends on it.
            let _ = head.file.truncate(head.end);
            return Err(failure);
        }
        self.chain.apply(Frame {
            body_at: head.end + frame::HEAD as u64,
            body: self.group.body(),
        });
        head.end += size;
        self.head = Some(head);
        self.count_syncs(1);
        self.stats.groups += 1;
        self.stats.written_bytes += size;
        Ok(())
    }

    /// Leaves the last segment for a new one. From the first attempt on the last one is not written
    /// any more: a file may have come to be that says where it ends.
    fn begin_segment(&mut self) -> Result<Head, Failure> {
        self.head = None;
        let head = self.chain.extend(&self.disk)?;
        // The name was made durable, and with it what was done to others.
        self.unsynced_deletion = false;
        self.count_syncs(2);
        self.stats.written_bytes += HEADER;
        Ok(head)
    }

    /// Deletes the oldest files as long as they hold nothing live. Not a part of a turn: nobody who
    /// waits for the turn's batches shall wait for this.
    pub(crate) fn delete_dead_files(&mut self) {
        while let Some((_, oldest)) = self.chain.oldest()
            && oldest.live_records == 0
        {
            if let Err(failure) = self.delete(oldest.path.clone()) {
                if !self.deletion_failed {
                    warn(
                        "a segment without live records is kept; trying again with every group",
                        failure,
                    );
                }
                self.deletion_failed = true;
                break;
            }
            self.deletion_failed = false;
            self.chain.remove_oldest();
            self.compactor.forget_place();
            self.stats.removed_segments += 1;
        }
        self.stats.count_disk(&self.chain);
    }

    fn delete(&mut self, path: PathBuf) -> Result<(), Failure> {
        // First what failed attempts have left: to a recovery that finds nothing older, they would
        // look like the beginning of a chain with a hole. The sync before the next deletion is soon
        // enough for them.
        while let Some(path) = self.chain.leftovers.last() {
            self.disk.remove(path)?;
            self.chain.leftovers.pop();
        }
        if self.unsynced_deletion {
            self.count_syncs(1);
            self.disk.sync_names()?;
            self.unsynced_deletion = false;
        }
        self.disk.remove(&path)?;
        self.unsynced_deletion = true;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    fn count_syncs(&mut self, syncs: u64) {
        if self.options.durability == Durability::Fsync {
            self.stats.syncs += syncs;
        }
    }
}

fn warn(what: &str, failure: Failure) {
    let error = StallError::from(failure);
    tracing::warn!(error = &error as &dyn Error, "{what}");
}
