//! Compaction: gets the oldest segment's live records out of it, so that its file can be deleted.
//!
//! ```text
//! oldest segment ─► is this put what its record is now? ─► copies in the next frame ─► durable ─► file deleted
//! ```
//!
//! Always the oldest segment, and that is what makes tombstones simple: a delete hides puts of its
//! own segment and of older ones, never of later ones. In the oldest segment it hides only puts that
//! go with the same file. So it is not copied, and no tombstone lives longer than the file it is in.
//!
//! A copy is an ordinary put in an ordinary frame. A crash before the frame is durable leaves the
//! old file as it was; a crash between that and the deletion leaves the record twice, and the later
//! one, which is the same, counts. Files are deleted one by one and each deletion is made durable
//! before the next, so that what is left is always a chain without holes.
//!
//! Commits come first: a group of batches takes a slice along that is bounded by what the group
//! itself writes. Copying twice and looking at four times what is written keeps the files below the
//! limit: a round over all of them, at worst, ends when a quarter as much has been written.
//!
//! Refused: compacting the segment with the most garbage. It copies less, but then tombstones have
//! to be kept for as long as any older segment may hold what they hide, and somebody has to know.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::batch::{Operation, Operations};
use crate::chain::Chain;
use crate::frame::{FrameReader, Step};
use crate::group::Group;
use crate::options::Options;
use crate::segment::HEADER;

/// How eagerly to compact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Batches come in: stay within the rule.
    Busy,
    /// Nothing comes in: tidy up.
    Idle,
}

/// Garbage that is left alone even in an idle journal.
const IDLE_SPARE: u64 = 1 << 20;
/// The least and, for an idle journal, the most one slice looks at and copies, in bytes.
const SCAN: u64 = 1 << 20;
const COPY: u64 = 256 << 10;

/// The files hold more garbage than they should.
pub(crate) fn is_due(chain: &Chain, options: &Options, pace: Pace) -> bool {
    let spare = match pace {
        Pace::Busy => options.segment_bytes,
        Pace::Idle => options.segment_bytes.min(IDLE_SPARE),
    };
    chain.disk_bytes() > u64::from(options.compact_at.factor) * chain.live_bytes() + spare
}

/// Goes through the oldest segment, slice by slice.
#[derive(Debug, Default)]
pub(crate) struct Compactor {
    cursor: Option<Cursor>,
    /// Buffers of the last cursor.
    spare: Option<FrameReader>,
}

#[derive(Debug)]
struct Cursor {
    segment: u32,
    path: PathBuf,
    reader: FrameReader,
    /// Operations of the current frame before this are done.
    next: usize,
    /// The end has been reached.
    finished: bool,
}

/// Why the oldest segment cannot be copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Obstacle {
    #[error("{file} is damaged at byte {at}: {reason}", file = .file.display())]
    Damaged {
        file: PathBuf,
        at: u64,
        reason: &'static str,
    },
    #[error("reading {file} failed", file = .file.display())]
    Io { file: PathBuf, source: io::Error },
}

impl Compactor {
    /// Adds a slice of the oldest segment's live records to the group.
    pub(crate) fn slice(&mut self, chain: &Chain, group: &mut Group) -> Result<(), Obstacle> {
        let Some((oldest, segment)) = chain.oldest() else {
            return Ok(());
        };
        if self.cursor.as_ref().is_none_or(|at| at.segment != oldest) {
            let file = File::open(&segment.path).map_err(failed(&segment.path))?;
            let (salt, end, first) = (
                segment.header.salt,
                segment.length,
                segment.header.first_sequence,
            );
            self.forget_place();
            let reader = match self.spare.take() {
                Some(reader) => reader.reuse(file, salt, HEADER, end, first),
                None => FrameReader::new(file, salt, HEADER, end, first),
            };
            self.cursor = Some(Cursor {
                segment: oldest,
                path: segment.path.clone(),
                reader,
                next: 0,
                finished: false,
            });
        }
        let Some(cursor) = &mut self.cursor else {
            return Ok(());
        };
        if cursor.finished {
            // All copies are durable, so nothing can be live here. If it is, do not go on for ever.
            return match segment.live_records {
                0 => Ok(()),
                _ => Err(Obstacle::Damaged {
                    file: segment.path.clone(),
                    at: segment.length,
                    reason: "live records were not found in it",
                }),
            };
        }
        let written = group.body().len() as u64;
        cursor.copy(chain, group, SCAN.max(4 * written), COPY.max(2 * written))
    }

    /// Begins anew next time: copies were not written after all.
    pub(crate) fn forget_place(&mut self) {
        if let Some(cursor) = self.cursor.take() {
            self.spare = Some(cursor.reader);
        }
    }
}

impl Cursor {
    fn copy(
        &mut self,
        chain: &Chain,
        group: &mut Group,
        scan: u64,
        copy: u64,
    ) -> Result<(), Obstacle> {
        let mut scanned = 0;
        while scanned < scan && group.tally.copied < copy {
            let frame = self.reader.frame();
            let rest = &frame.body[self.next..];
            if rest.is_empty() {
                self.next = 0;
                match self.reader.advance().map_err(failed(&self.path))? {
                    Step::Frame => continue,
                    Step::End => {
                        self.finished = true;
                        return Ok(());
                    }
                    Step::Bad(reason) => {
                        return Err(Obstacle::Damaged {
                            file: self.path.clone(),
                            at: self.reader.at(),
                            reason,
                        });
                    }
                }
            }
            let begin = self.next;
            for placed in Operations::new(rest) {
                let (from, size) = (begin + placed.at, placed.operation.size());
                self.next = from + size;
                scanned += size as u64;
                if let Operation::Put(id, _) = placed.operation
                    && chain.is_live(id, self.segment, frame.body_at + from as u64)
                {
                    group.copy(id, &frame.body[from..from + size]);
                }
                if scanned >= scan || group.tally.copied >= copy {
                    break;
                }
            }
            if self.next == begin {
                return Err(Obstacle::Damaged {
                    file: self.path.clone(),
                    at: frame.body_at + begin as u64,
                    reason: "a frame is not made of operations",
                });
            }
        }
        Ok(())
    }
}

fn failed(file: &Path) -> impl FnOnce(io::Error) -> Obstacle {
    move |source| Obstacle::Io {
        file: file.to_owned(),
        source,
    }
}
