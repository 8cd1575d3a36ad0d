//! Bytes that are left over: encoded, and refused by a full socket.
//!
//! Seldom there, so a connection has a pointer for them and no more. The memory goes with the last byte,
//! and is counted until then: what was written off the front is not given back before.

use bytes::{Buf, BytesMut};

/// Bytes that wait, or nothing.
#[derive(Debug, Default)]
pub(crate) struct Leftover(Option<Box<Left>>);

#[derive(Debug)]
struct Left {
    bytes: BytesMut,
    /// Bytes it was made for.
    room: usize,
}

impl Leftover {
    /// A copy of what was not taken.
    pub(crate) fn of(bytes: &[u8]) -> Leftover {
        Leftover(Some(Box::new(Left {
            bytes: BytesMut::from(bytes),
            room: bytes.len(),
        })))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |left| &left.bytes)
    }

    /// Bytes of memory it takes.
    pub(crate) fn room(&self) -> usize {
        self.0.as_deref().map_or(0, |left| left.room)
    }

    /// Takes bytes off the front. Returns how much memory that gave back.
    pub(crate) fn advance(&mut self, count: usize) -> usize {
        if let Some(left) = &mut self.0 {
            left.bytes.advance(count);
        }
        if !self.is_empty() {
            return 0;
        }
        let room = self.room();
        self.0 = None;
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_memory_is_there_until_the_last_byte_is_gone() {
        let mut left = Leftover::of(b"abc");
        assert_eq!(
            (left.room(), left.advance(2), left.bytes()),
            (3, 0, &b"c"[..])
        );
        assert_eq!((left.room(), left.advance(1), left.room()), (3, 3, 0));
        assert!(left.is_empty());
    }
}
