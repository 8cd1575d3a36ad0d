//! Numbers about a journal.

use crate::chain::Chain;

/// A snapshot of a journal's counters; those without another word count since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Records on disk now.
    pub live_records: u64,
    /// Their bytes on disk now, 12 per record included.
    pub live_bytes: u64,
    /// Bytes of all segment files now.
    pub disk_bytes: u64,
    /// Segment files now.
    pub segments: u64,
    /// Bytes submitted and not durable now.
    pub pending_bytes: u64,
    /// Batches that became durable.
    pub batches: u64,
    /// Operations in them.
    pub operations: u64,
    /// Groups that were written, each with one `write`.
    pub groups: u64,
    /// `fdatasync` and `fsync` calls.
    pub syncs: u64,
    /// Bytes written, compaction's share included.
    pub written_bytes: u64,
    /// Bytes of live records that compaction copied.
    pub compacted_bytes: u64,
    /// Segment files that compaction deleted.
    pub removed_segments: u64,
    /// Puts that were replaced or deleted before they were written, and so never were.
    pub elided: u64,
    /// Failed attempts to make something durable.
    pub failures: u64,
    /// Compaction found damage in its oldest file and has stopped; the log says where.
    pub compaction_stopped: bool,
}

impl Stats {
    /// What is on disk now.
    pub(crate) fn count_disk(&mut self, chain: &Chain) {
        self.live_records = chain.records();
        self.live_bytes = chain.live_bytes();
        self.disk_bytes = chain.disk_bytes();
        self.segments = chain.segments().len() as u64;
    }
}
