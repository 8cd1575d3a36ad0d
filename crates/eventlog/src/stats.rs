//! Counters: what a stream has done and how full it is, cheap enough to be always on.

use crate::Offset;

/// A snapshot of one stream. Counters count since the log was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStats {
    /// The stream.
    pub stream: String,
    /// One entry per partition, in order.
    pub partitions: Vec<PartitionStats>,
}

/// A snapshot of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionStats {
    /// The first offset that is left.
    pub start: Offset,
    /// The durable end: the offset the next record gets.
    pub end: Offset,
    /// Bytes on disk.
    pub bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Records made durable.
    pub appended_records: u64,
    /// Bytes made durable, as on disk.
    pub appended_bytes: u64,
    /// Record batches written, one per group commit.
    pub groups: u64,
    /// `fdatasync` calls on segments.
    pub fsyncs: u64,
    /// Records waiting for the disk right now.
    pub queued_records: u64,
    /// Bytes waiting for the disk right now.
    pub queued_bytes: u64,
    /// Records refused because the queue was full.
    pub refused_busy: u64,
    /// Records refused because the stream was at its `max_bytes`.
    pub refused_full: u64,
    /// Records refused because the disk was full or failed.
    pub failed: u64,
    /// Segments removed by retention.
    pub removed_segments: u64,
}

impl StreamStats {
    /// Sums over the partitions; `start` and `end` are the sums too (records left = end - start).
    pub fn total(&self) -> PartitionStats {
        self.partitions
            .iter()
            .fold(PartitionStats::default(), |sum, p| PartitionStats {
                start: sum.start.advance(p.start.get()),
                end: sum.end.advance(p.end.get()),
                bytes: sum.bytes + p.bytes,
                segments: sum.segments + p.segments,
                appended_records: sum.appended_records + p.appended_records,
                appended_bytes: sum.appended_bytes + p.appended_bytes,
                groups: sum.groups + p.groups,
                fsyncs: sum.fsyncs + p.fsyncs,
                queued_records: sum.queued_records + p.queued_records,
                queued_bytes: sum.queued_bytes + p.queued_bytes,
                refused_busy: sum.refused_busy + p.refused_busy,
                refused_full: sum.refused_full + p.refused_full,
                failed: sum.failed + p.failed,
                removed_segments: sum.removed_segments + p.removed_segments,
            })
    }
}
