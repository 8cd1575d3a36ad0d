//! Records and their positions: what goes into a partition and what comes out of it.

use std::fmt;

use bytes::Bytes;

/// A record's position in its partition: 0 for the first record ever, without holes.
///
/// An offset is a position, not a count, so there is [`Offset::next`] and no `+`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(u64);

impl Offset {
    /// The first position of every partition.
    pub const ZERO: Offset = Offset(0);

    /// The position with this number.
    pub const fn new(value: u64) -> Offset {
        Offset(value)
    }

    /// The number of this position.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position after this one.
    pub const fn next(self) -> Offset {
        Offset(self.0 + 1)
    }

    /// The position `records` records further on.
    pub const fn advance(self, records: u64) -> Offset {
        Offset(self.0 + records)
    }
}

impl From<u64> for Offset {
    fn from(value: u64) -> Offset {
        Offset(value)
    }
}

impl From<Offset> for u64 {
    fn from(offset: Offset) -> u64 {
        offset.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name and value of one record header. Names may repeat and keep their order.
pub type Header = (Bytes, Bytes);

/// A record on its way into a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewRecord {
    /// Decides the partition (see [`Stream::partition_for`](crate::Stream::partition_for)).
    /// Empty means "no key" (null on disk, as Kafka has it).
    pub key: Bytes,
    /// The record's own time: microseconds since the Unix epoch, UTC. Retention does not look at
    /// it: a vehicle with a wrong clock must not delete or pin a segment.
    pub time_us: i64,
    /// Headers, in order.
    pub headers: Vec<Header>,
    /// The payload.
    pub value: Bytes,
}

impl NewRecord {
    /// An upper bound of the bytes this record takes on disk and (roughly) in the queue.
    pub(crate) fn weight(&self) -> usize {
        // Length, attributes, two deltas, three lengths: at most 36 bytes; two lengths per header;
        // and the header that carries the microseconds.
        let headers: usize = self
            .headers
            .iter()
            .map(|(n, v)| n.len() + v.len() + 10)
            .sum();
        self.key.len() + self.value.len() + headers + 48
    }
}

/// A durable record, as read back.
///
/// Key, headers and value are slices of the chunk that was read from disk (up to 256 KiB, or one
/// whole batch): whoever keeps a record for long should copy the parts worth keeping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The partition it lies in.
    pub partition: u16,
    /// Its position there.
    pub offset: Offset,
    /// The record's own time: microseconds since the Unix epoch, UTC.
    pub time_us: i64,
    /// The key; empty if it has none.
    pub key: Bytes,
    /// Headers, in order.
    pub headers: Vec<Header>,
    /// The payload.
    pub value: Bytes,
}

impl Record {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(n, _)| n == name.as_bytes())
            .map(|(_, value)| value.as_ref())
    }

    /// Bytes of key, headers and value.
    pub fn size(&self) -> usize {
        self.key.len()
            + self.value.len()
            + self
                .headers
                .iter()
                .map(|(n, v)| n.len() + v.len())
                .sum::<usize>()
    }
}
