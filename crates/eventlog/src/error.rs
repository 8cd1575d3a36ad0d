//! What can go wrong at the boundary of the log: one variant per thing a caller can do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Offset;

/// Why a log directory, a stream or a group could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another [`Log`](crate::Log) in this one) holds the directory.
    #[error(
        "log directory {dir} is in use by {holder}; stop it first, or give this one another data directory",
        dir = .dir.display()
    )]
    InUse {
        /// The log directory.
        dir: PathBuf,
        /// Who holds it, as far as the lock file tells.
        holder: String,
    },
    /// A stream or group name that cannot be a file name.
    #[error(
        "{what} name `{name}` is not allowed: use 1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot"
    )]
    Name {
        /// `stream` or `group`.
        what: &'static str,
        /// The refused name.
        name: String,
    },
    /// A configured value outside its range.
    #[error("stream {stream}: {key} = {value} is out of range; allowed is {allowed}")]
    Config {
        /// The stream.
        stream: String,
        /// Field of [`StreamConfig`](crate::StreamConfig).
        key: &'static str,
        /// What was asked for.
        value: u64,
        /// The range.
        allowed: &'static str,
    },
    /// The number of partitions decides where a key lives, so it is fixed when a stream is made.
    #[error(
        "stream {stream} has {on_disk} partitions and cannot be opened with {asked}: \
         keep the old number, or make a stream with another name and copy the records over"
    )]
    Partitions {
        /// The stream.
        stream: String,
        /// What it was made with.
        on_disk: u16,
        /// What was asked for.
        asked: u16,
    },
    /// Written by a newer program, or not ours.
    #[error(
        "{file} does not start with `milepost-eventlog 1` (found `{found}`): \
         the directory is of another program or version; open it with that one, or move it away",
        file = .file.display()
    )]
    Format {
        /// The marker file.
        file: PathBuf,
        /// Its first line.
        found: String,
    },
    /// A stream directory with records in it has lost its marker file.
    #[error(
        "{dir} has segments but no readable `stream.meta`: restore the file \
         (`milepost-eventlog 1`, then `partitions N`), or move the directory away",
        dir = .dir.display()
    )]
    NoMarker {
        /// The stream directory.
        dir: PathBuf,
    },
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
    /// The operating system refused.
    #[error("{action} {file} failed; check that the directory exists, is writable and has space", file = .file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why a record is not acknowledged.
///
/// A refusal that [`Stream::append`](crate::Stream::append) returns at once (`Busy`, `TooLarge`,
/// `Header`, `NoSuchPartition`, `Closed`) means the record was never queued. An error handed to
/// the completion means that it is not readable now; after `Io` on a failing disk followed by a
/// crash it may be found again, as with every log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The queue before the disk is full: slow the sender down and try again.
    #[error(
        "{stream}/{partition}: {queued_records} records ({queued_bytes} bytes) already wait for the disk; \
         slow down and retry, or raise queue_records/queue_bytes"
    )]
    Busy {
        /// The stream.
        stream: Arc<str>,
        /// The partition.
        partition: u16,
        /// Records waiting.
        queued_records: usize,
        /// Bytes waiting.
        queued_bytes: usize,
    },
    /// The stream has reached its `max_bytes`, and retention has nothing more to give.
    #[error(
        "stream {stream} is full ({used} of {limit} bytes); shorten its retention or raise its max_bytes"
    )]
    Full {
        /// The stream.
        stream: Arc<str>,
        /// Bytes on disk, all partitions.
        used: u64,
        /// The cap.
        limit: u64,
    },
    /// One append is larger than the stream takes.
    #[error(
        "stream {stream} takes at most {limit} bytes in one append, this one has {bytes}; split it or raise max_append_bytes"
    )]
    TooLarge {
        /// The stream.
        stream: Arc<str>,
        /// Bytes of the append.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// An empty batch has no first offset.
    #[error("an empty batch was appended to stream {stream}; append at least one record")]
    Empty {
        /// The stream.
        stream: Arc<str>,
    },
    /// A header with the name the log itself uses.
    #[error(
        "stream {stream}: header name `mp-us` is the log's own (microseconds of the record's time); choose another"
    )]
    Header {
        /// The stream.
        stream: Arc<str>,
    },
    /// The stream has fewer partitions.
    #[error("stream {stream} has {partitions} partitions, there is no partition {partition}")]
    NoSuchPartition {
        /// The stream.
        stream: Arc<str>,
        /// The partition asked for.
        partition: u16,
        /// How many there are.
        partitions: u16,
    },
    /// The disk is full. The partition goes on by itself as soon as there is space.
    #[error("no space left to write {file}; free disk space, or shorten retention", file = .file.display())]
    DiskFull {
        /// The segment.
        file: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The disk failed. The partition moves to a fresh segment and goes on if that works.
    #[error("{action} {file} failed; check the disk (dmesg, SMART) and the file's owner and mode", file = .file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The segment or directory.
        file: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The log has been closed.
    #[error("stream {stream} is closed")]
    Closed {
        /// The stream.
        stream: Arc<str>,
    },
}

/// Why a reader cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Retention has removed what the reader wanted next. [`Reader::seek`](crate::Reader::seek)
    /// to `first_available` to go on, knowing what was missed.
    #[error(
        "{stream}/{partition}: offset {wanted} has been removed by retention, the first one left is {first_available}; \
         go on there, and lengthen retention or speed the consumer up"
    )]
    Truncated {
        /// The stream.
        stream: Arc<str>,
        /// The partition.
        partition: u16,
        /// What the reader wanted.
        wanted: Offset,
        /// The first offset that is left.
        first_available: Offset,
    },
    /// The reader stands behind the durable end: the log was truncated or replaced under it.
    #[error(
        "{stream}/{partition}: offset {wanted} does not exist yet, the log ends at {end}; \
         the log lost a tail or is another one: check the recovery report, then start again at {end} or earlier"
    )]
    BeyondEnd {
        /// The stream.
        stream: Arc<str>,
        /// The partition.
        partition: u16,
        /// What the reader wanted.
        wanted: Offset,
        /// The durable end.
        end: Offset,
    },
    /// Bytes on disk are not what was written. [`Reader::skip_corrupt`](crate::Reader::skip_corrupt)
    /// goes on after the damage.
    #[error(
        "{stream}/{partition}: segment {segment} is damaged at byte {position} (offset {offset}): {reason}; \
         restore the file from a backup, or skip to the next good batch",
        segment = .segment.display()
    )]
    Corrupt {
        /// The stream.
        stream: Arc<str>,
        /// The partition.
        partition: u16,
        /// The file.
        segment: PathBuf,
        /// Where in the file.
        position: u64,
        /// The first offset that cannot be read.
        offset: Offset,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The stream has fewer partitions.
    #[error("stream {stream} has {partitions} partitions, there is no partition {partition}")]
    NoSuchPartition {
        /// The stream.
        stream: Arc<str>,
        /// The partition asked for.
        partition: u16,
        /// How many there are.
        partitions: u16,
    },
    /// The operating system refused.
    #[error("reading {file} failed; check the disk and the file's owner and mode", file = .file.display())]
    Io {
        /// The segment.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why a group's offsets are not durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// A stream name that no stream can have.
    #[error(
        "`{stream}` is not a stream name: use 1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot"
    )]
    StreamName {
        /// The refused name.
        stream: String,
    },
    /// More offsets than one entry of the file can hold.
    #[error("{commits} offsets in one commit; commit at most 65535 at once")]
    TooMany {
        /// How many there were.
        commits: usize,
    },
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
    /// The file could not be written; the last durable offsets stand. Commit again.
    #[error("{action} {file} failed, the group keeps its last durable offsets; free space or repair the disk, then commit again", file = .file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The group's file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}
