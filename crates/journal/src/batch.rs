//! A batch: what is done together or not at all, kept in the form it has on disk.
//!
//! The wire form of an operation, integers little-endian:
//! ```text
//! id      u64
//! length  u32   of the value; 0xFFFF_FFFF: the record is deleted, no value follows
//! value   `length` bytes
//! ```
//! A frame's body (`frame.rs`) is nothing but operations, so a batch is written with one copy.

use bytes::{BufMut, BytesMut};

/// The name of a record, chosen by whoever puts it. Use a counter: the index trusts ids not to be
/// made up by somebody who wants them to collide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordId(pub u64);

/// Bytes before the value.
pub(crate) const HEAD: usize = 12;
/// The length that says "deleted".
const DELETED: u32 = u32::MAX;

/// Operations that become visible together or not at all, in the order they were added.
#[derive(Default, Debug, Clone)]
pub struct Batch {
    wire: BytesMut,
    operations: u32,
}

impl Batch {
    /// The most bytes one batch may have ([`Batch::bytes`]): 1 GiB. The program's memory holds a
    /// batch up to three times, and places in a segment are 32 bits.
    pub const MAX_BYTES: usize = 1 << 30;

    /// A batch without operations.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// A batch without operations, with room for `bytes` (12 per operation, and the values).
    pub fn with_capacity(bytes: usize) -> Batch {
        Batch {
            wire: BytesMut::with_capacity(bytes),
            operations: 0,
        }
    }

    /// The record `id` shall have this value. Replaces the value it has, if any.
    ///
    /// # Panics
    /// If the batch becomes larger than [`Batch::MAX_BYTES`].
    pub fn put(&mut self, id: RecordId, value: &[u8]) {
        self.wire.reserve(HEAD + value.len());
        self.put_with(id, |out| out.extend_from_slice(value));
    }

    /// Like [`Batch::put`], with the value written by `write`, which may only append.
    ///
    /// # Panics
    /// If the batch becomes larger than [`Batch::MAX_BYTES`], or `write` took bytes away.
    pub fn put_with(&mut self, id: RecordId, write: impl FnOnce(&mut BytesMut)) {
        self.wire.reserve(HEAD);
        self.wire.put_u64_le(id.0);
        let length_at = self.wire.len();
        self.wire.put_u32_le(0);
        let value_at = self.wire.len();
        write(&mut self.wire);
        assert!(
            self.wire.len() >= value_at,
            "a value's writer may only append"
        );
        self.check();
        // Smaller than MAX_BYTES, so it fits and is not `DELETED`.
        let length = (self.wire.len() - value_at) as u32;
        self.wire[length_at..value_at].copy_from_slice(&length.to_le_bytes());
        self.operations += 1;
    }

    /// The record `id` shall be gone. It need not exist.
    ///
    /// # Panics
    /// If the batch becomes larger than [`Batch::MAX_BYTES`].
    pub fn delete(&mut self, id: RecordId) {
        self.wire.reserve(HEAD);
        self.wire.put_u64_le(id.0);
        self.wire.put_u32_le(DELETED);
        self.check();
        self.operations += 1;
    }

    fn check(&self) {
        assert!(
            self.wire.len() <= Batch::MAX_BYTES,
            "a batch of the journal may have at most {} bytes; submit smaller batches",
            Batch::MAX_BYTES
        );
    }

    /// No operations.
    pub fn is_empty(&self) -> bool {
        self.operations == 0
    }

    /// How many operations.
    pub fn len(&self) -> usize {
        self.operations as usize
    }

    /// Bytes on disk: 12 per operation, and the values.
    pub fn bytes(&self) -> usize {
        self.wire.len()
    }

    /// What the batch does, in order.
    pub fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        Operations::new(&self.wire).map(|placed| placed.operation)
    }

    /// Takes all operations out and keeps the memory.
    pub fn clear(&mut self) {
        self.wire.clear();
        self.operations = 0;
    }

    pub(crate) fn wire(&self) -> &[u8] {
        &self.wire
    }
}

/// One change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation<'a> {
    /// The record has this value from now on.
    Put(RecordId, &'a [u8]),
    /// The record does not exist from now on.
    Delete(RecordId),
}

impl Operation<'_> {
    pub(crate) fn id(&self) -> RecordId {
        match *self {
            Operation::Put(id, _) | Operation::Delete(id) => id,
        }
    }

    /// Bytes of the wire form.
    pub(crate) fn size(&self) -> usize {
        match self {
            Operation::Put(_, value) => HEAD + value.len(),
            Operation::Delete(_) => HEAD,
        }
    }
}

/// An operation and where its wire form begins.
pub(crate) struct Placed<'a> {
    pub(crate) at: usize,
    pub(crate) operation: Operation<'a>,
}

/// Reads operations in wire form. Ends early at bytes that are none; [`Operations::is_whole`] tells.
pub(crate) struct Operations<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Operations<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Operations<'a> {
        Operations { bytes, at: 0 }
    }

    /// All bytes have been read as operations.
    pub(crate) fn is_whole(&self) -> bool {
        self.at == self.bytes.len()
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = Placed<'a>;

    fn next(&mut self) -> Option<Placed<'a>> {
        let (id, rest) = self.bytes[self.at..].split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let id = RecordId(u64::from_le_bytes(*id));
        let operation = match u32::from_le_bytes(*length) {
            DELETED => Operation::Delete(id),
            length => Operation::Put(id, rest.get(..length as usize)?),
        };
        let at = self.at;
        self.at += operation.size();
        Some(Placed { at, operation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_in_order() {
        let mut batch = Batch::new();
        assert!(batch.is_empty());
        batch.put(RecordId(7), b"seven");
        batch.put_with(RecordId(8), |out| out.put_u16(0x0102));
        batch.put(RecordId(9), b"");
        batch.delete(RecordId(u64::MAX));
        assert_eq!((batch.len(), batch.bytes()), (4, 4 * 12 + 5 + 2));
        let expected = [
            Operation::Put(RecordId(7), b"seven"),
            Operation::Put(RecordId(8), &[1, 2]),
            Operation::Put(RecordId(9), b""),
            Operation::Delete(RecordId(u64::MAX)),
        ];
        assert_eq!(batch.operations().collect::<Vec<_>>(), expected);
        batch.clear();
        assert_eq!((batch.len(), batch.bytes()), (0, 0));
        assert_eq!(batch.operations().count(), 0);
    }

    #[test]
    fn bytes_that_end_early_are_not_whole() {
        let mut batch = Batch::new();
        batch.put(RecordId(1), b"abc");
        batch.delete(RecordId(1));
        for end in 0..=batch.bytes() {
            let mut operations = Operations::new(&batch.wire()[..end]);
            while operations.next().is_some() {}
            let whole = [0, 15, 27].contains(&end);
            assert_eq!(operations.is_whole(), whole, "{end}");
        }
    }

    #[test]
    #[should_panic(expected = "may only append")]
    fn a_writer_that_takes_bytes_away_is_a_mistake() {
        Batch::new().put_with(RecordId(1), BytesMut::clear);
    }
}
