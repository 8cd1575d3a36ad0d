//! Bytes that are left over: encoded, and refused by a full socket.
//!
//! Seldom there, so a connection has a pointer for them and no more. The memory goes with the last byte.

use bytes::{Buf, BytesMut};

/// Bytes that wait, or nothing.
#[derive(Debug, Default)]
pub(crate) struct Leftover(Option<Box<BytesMut>>);

impl Leftover {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |bytes| bytes)
    }

    /// To be filled or emptied; [`tidy`](Leftover::tidy) when done.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        self.0.get_or_insert_default()
    }

    /// Takes bytes off the front.
    pub(crate) fn advance(&mut self, count: usize) {
        self.buffer().advance(count);
        self.tidy();
    }

    /// Gives the memory back if nothing is left.
    pub(crate) fn tidy(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}
