//! What a connection has received and not handed in: an incomplete packet, or packets that must wait.
//!
//! Most connections hold none most of the time, so it is one pointer that is null. What is held is counted
//! in the memory for all of them ([`ReadMemory`](crate::admission::memory::ReadMemory)) for exactly as
//! long as it is there, wherever the connection moves and however it ends.

use std::sync::Arc;

use bytes::BytesMut;

use crate::admission::memory::{Fits, Standing};
use crate::machine::exchange::Exchange;

/// Bytes from which on the rest of a packet is read in [`turns`](super::turns): more than one read brings.
const LARGE: usize = 64 * 1024;

/// Received bytes.
#[derive(Default)]
pub(crate) struct Partial(Option<Box<Held>>);

struct Held {
    bytes: BytesMut,
    /// Room of `bytes` as it was counted last.
    counted: usize,
    exchange: Arc<Exchange>,
}

impl Partial {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|held| held.bytes.is_empty())
    }

    /// Whether it is part of a packet that takes many reads.
    pub(crate) fn is_large(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|held| held.bytes.len() >= LARGE)
    }

    /// The bytes, to read more behind them or to take from the front. To be followed by
    /// [`recount`](Partial::recount).
    pub(crate) fn bytes(&mut self) -> Option<&mut BytesMut> {
        self.0.as_mut().map(|held| &mut held.bytes)
    }

    /// Appends bytes.
    pub(crate) fn keep(&mut self, exchange: &Arc<Exchange>, bytes: &[u8], who: Standing) -> Fits {
        let held = self.0.get_or_insert_with(|| {
            Box::new(Held {
                bytes: BytesMut::new(),
                counted: 0,
                exchange: Arc::clone(exchange),
            })
        });
        held.bytes.extend_from_slice(bytes);
        self.recount(who)
    }

    /// Counts what there is now, and gives back what is empty.
    pub(crate) fn recount(&mut self, who: Standing) -> Fits {
        let Some(held) = &mut self.0 else {
            return Fits::Yes;
        };
        if held.bytes.is_empty() {
            self.0 = None;
            return Fits::Yes;
        }
        held.recount(held.bytes.capacity(), who)
    }
}

impl Held {
    fn recount(&mut self, now: usize, who: Standing) -> Fits {
        if self.counted == now {
            return Fits::Yes;
        }
        let before = std::mem::replace(&mut self.counted, now);
        match self.exchange.admission.read_memory.resize(before, now, who) {
            true => Fits::Yes,
            false => Fits::No,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Less always fits.
        let _ = self.recount(0, Standing::Client);
    }
}
