//! The records a journal had when it was opened.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use crate::batch::{Operation, Operations, RecordId};
use crate::chain::Chain;
use crate::error::ReadError;
use crate::frame::{FrameReader, Step};
use crate::queue::Shared;
use crate::recovery::RecoveryReport;
use crate::segment::HEADER;

/// What [`Journal::open`](crate::Journal::open) found on disk.
///
/// Nothing that is submitted becomes durable before this is read or dropped: the files and the
/// index stay as they were found until then.
pub struct Recovered {
    shared: Arc<Shared>,
    report: RecoveryReport,
    max_id: Option<RecordId>,
}

impl Recovered {
    pub(crate) fn new(
        shared: Arc<Shared>,
        report: RecoveryReport,
        max_id: Option<RecordId>,
    ) -> Recovered {
        Recovered {
            shared,
            report,
            max_id,
        }
    }

    /// What recovery found and repaired.
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// The highest id of the log; no live record has a higher one. Records with higher ids may have
    /// been there and gone: their ids are free again.
    pub fn max_id(&self) -> Option<RecordId> {
        self.max_id
    }

    /// Calls `each` with every live record, once. The order is that of the log: that of the last
    /// puts, except that compaction puts what it copies later. Sort by id if ids have an order.
    ///
    /// Reads the files from the oldest on through one buffer; what `each` does not keep is not kept.
    pub fn for_each(self, mut each: impl FnMut(RecordId, &[u8])) -> Result<(), ReadError> {
        let chain = self.shared.recovered();
        match &*chain {
            Some(chain) => read(chain, &mut each),
            None => Err(ReadError::Closed),
        }
    }
}

fn read(chain: &Chain, each: &mut impl FnMut(RecordId, &[u8])) -> Result<(), ReadError> {
    let mut spare: Option<FrameReader> = None;
    for (place, segment) in chain.segments() {
        let path = &segment.path;
        let io = |source| ReadError::Io {
            file: path.clone(),
            source,
        };
        if segment.live_records == 0 {
            continue;
        }
        let file = File::open(path).map_err(io)?;
        let (salt, end, first) = (
            segment.header.salt,
            segment.length,
            segment.header.first_sequence,
        );
        let mut reader = match spare.take() {
            Some(reader) => reader.reuse(file, salt, HEADER, end, first),
            None => FrameReader::new(file, salt, HEADER, end, first),
        };
        loop {
            match reader.advance().map_err(io)? {
                Step::End => break,
                Step::Bad(reason) => {
                    return Err(ReadError::Damaged {
                        file: path.clone(),
                        at: reader.at(),
                        reason,
                    });
                }
                Step::Frame => {}
            }
            let frame = reader.frame();
            for placed in Operations::new(frame.body) {
                if let Operation::Put(id, value) = placed.operation
                    && chain.is_live(id, place, frame.body_at + placed.at as u64)
                {
                    each(id, value);
                }
            }
        }
        spare = Some(reader);
    }
    Ok(())
}

impl Drop for Recovered {
    fn drop(&mut self) {
        self.shared.release();
    }
}

impl fmt::Debug for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recovered")
            .field("report", &self.report)
            .field("max_id", &self.max_id)
            .finish_non_exhaustive()
    }
}
