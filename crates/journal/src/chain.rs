//! What is durable: the chain of segments, oldest first, and the index of what is live in them.
//!
//! Changed only by frames that are durable. Recovery and the writer tell it about them in the same
//! way, so what a restart finds is what the writer knew.

use std::collections::VecDeque;
use std::path::PathBuf;

use crate::batch::{Operation, Operations, RecordId};
use crate::disk::{Disk, Failure, SegmentFile};
use crate::frame::Frame;
use crate::index::{Index, Location};
use crate::segment::{self, HEADER, Header, Previous, Segment};

/// The end of the last segment, where frames are added.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) file: SegmentFile,
    pub(crate) salt: u32,
    /// Where the next frame goes.
    pub(crate) end: u64,
}

/// See the module's documentation.
pub(crate) struct Chain {
    segments: VecDeque<Segment>,
    /// Segments are counted in the order they joined; this many have left.
    gone: u32,
    index: Index,
    live_bytes: u64,
    disk_bytes: u64,
    /// Sequence of the next frame.
    pub(crate) next_sequence: u64,
    /// The next segment's number. Numbers of attempts that failed are not used again.
    pub(crate) next_number: u64,
    /// Files of attempts that failed, which may be there.
    pub(crate) leftovers: Vec<PathBuf>,
}

impl Chain {
    pub(crate) fn empty() -> Chain {
        Chain {
            segments: VecDeque::new(),
            gone: 0,
            index: Index::new(),
            live_bytes: 0,
            disk_bytes: 0,
            next_sequence: 1,
            next_number: 1,
            leftovers: Vec::new(),
        }
    }

    pub(crate) fn segments(&self) -> impl ExactSizeIterator<Item = (u32, &Segment)> {
        self.segments
            .iter()
            .enumerate()
            // As many as there can be of 4 KiB and more: far fewer than 2^32.
            .map(|(place, segment)| (self.gone.wrapping_add(place as u32), segment))
    }

    /// The segment everything can be copied away from: the first one, if it is not the only one.
    pub(crate) fn oldest(&self) -> Option<(u32, &Segment)> {
        (self.segments.len() > 1).then(|| (self.gone, &self.segments[0]))
    }

    pub(crate) fn last(&self) -> Option<&Segment> {
        self.segments.back()
    }

    pub(crate) fn records(&self) -> u64 {
        self.index.records()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// There is a live record of this id.
    pub(crate) fn contains(&self, id: RecordId) -> bool {
        self.index.get(id).is_some()
    }

    /// The put at this place is what its record is now.
    pub(crate) fn is_live(&self, id: RecordId, segment: u32, at: u64) -> bool {
        self.index
            .get(id)
            .is_some_and(|found| found.segment == segment && u64::from(found.at) == at)
    }

    /// Begins the next segment on disk. A failure changes nothing but the number of the next try.
    pub(crate) fn extend(&mut self, disk: &Disk) -> Result<Head, Failure> {
        let number = self.next_number;
        self.next_number += 1;
        let header = Header {
            salt: segment::fresh_salt(number),
            number,
            previous: self.last().map(|last| Previous {
                number: last.header.number,
                length: last.length,
            }),
            first_sequence: self.next_sequence,
        };
        let created = Segment::create(disk, header);
        if created.is_err() {
            self.leftovers.push(segment::path_of(disk.dir(), number));
        }
        let (segment, file) = created?;
        self.push(segment);
        Ok(Head {
            file,
            salt: header.salt,
            end: HEADER,
        })
    }

    pub(crate) fn push(&mut self, segment: Segment) {
        self.disk_bytes += segment.length;
        self.segments.push_back(segment);
    }

    /// A frame has become durable at the end of the last segment. `false`: its body is not made of
    /// operations.
    pub(crate) fn apply(&mut self, frame: Frame<'_>) -> bool {
        // Wraps after 2^32 segments, long after those that were counted before are gone.
        let last = self
            .gone
            .wrapping_add(self.segments.len() as u32)
            .wrapping_sub(1);
        let mut operations = Operations::new(frame.body);
        for placed in &mut operations {
            match placed.operation {
                Operation::Put(id, _) => {
                    // A segment ends below 4 GiB: 1 GiB, or one frame (`Batch::MAX_BYTES`).
                    let location = Location {
                        segment: last,
                        at: (frame.body_at + placed.at as u64) as u32,
                        size: placed.operation.size() as u32,
                    };
                    if let Some(before) = self.index.insert(id, location) {
                        self.forget(before);
                    }
                    self.live_bytes += u64::from(location.size);
                    if let Some(segment) = self.segments.back_mut() {
                        segment.live_records += 1;
                        segment.live_bytes += u64::from(location.size);
                    }
                }
                Operation::Delete(id) => {
                    if let Some(before) = self.index.remove(id) {
                        self.forget(before);
                    }
                }
            }
        }
        self.next_sequence += 1;
        if let Some(segment) = self.segments.back_mut() {
            let end = frame.body_at + frame.body.len() as u64;
            self.disk_bytes += end - segment.length;
            segment.length = end;
        }
        operations.is_whole()
    }

    fn forget(&mut self, before: Location) {
        self.live_bytes -= u64::from(before.size);
        let place = before.segment.wrapping_sub(self.gone) as usize;
        if let Some(segment) = self.segments.get_mut(place) {
            segment.live_records -= 1;
            segment.live_bytes -= u64::from(before.size);
        }
    }

    /// The oldest file has been deleted; nothing in it was live.
    pub(crate) fn remove_oldest(&mut self) {
        if let Some(segment) = self.segments.pop_front() {
            self.disk_bytes -= segment.length;
            self.gone = self.gone.wrapping_add(1);
        }
    }

    /// Gives memory back that a larger past has left.
    pub(crate) fn shrink(&mut self) {
        self.index.shrink();
    }
}
