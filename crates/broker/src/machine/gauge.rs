//! How full each session's queue is, for everybody to see.
//!
//! A publisher on one shard must know whether the queue of a session on another has room before its
//! message is recorded for it; asking would cost a round trip. So each session slot has two numbers
//! that any shard may add to and the session's own shard takes from. Every message that was counted in
//! is counted out exactly once, by the shard of the session, also if the session is gone by then: so a
//! slot's numbers are right whoever lives there.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::slots::SessionId;

const CHUNK: usize = 1024;

/// Messages and bytes waiting for the session in one slot: QoS 1 and 2, queued or in flight.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    messages: AtomicU32,
    bytes: AtomicUsize,
    /// Messages that wait and have low priority.
    droppable: AtomicU32,
    /// The second in which its session was last told that it is full.
    told: AtomicU64,
}

/// The gauges of one shard. Grows by chunks that never move, so that reading takes no lock.
pub(crate) struct Gauges {
    chunks: Box<[OnceLock<Box<[Gauge; CHUNK]>>]>,
}

impl Default for Gauges {
    fn default() -> Gauges {
        Gauges {
            chunks: (0..SessionId::MAX_SLOTS / CHUNK)
                .map(|_| OnceLock::new())
                .collect(),
        }
    }
}

impl Gauges {
    pub(crate) fn of(&self, session: SessionId) -> &Gauge {
        let slot = session.slot() as usize;
        let chunk = self.chunks[slot / CHUNK]
            .get_or_init(|| Box::new(std::array::from_fn(|_| Gauge::default())));
        &chunk[slot % CHUNK]
    }
}

impl Gauge {
    /// Messages that could make room for others, being of low priority.
    pub(crate) fn droppable(&self) -> u32 {
        self.droppable.load(Ordering::Relaxed)
    }

    /// Whether its session is to be told that it is full: once a second at most, as it then looks
    /// through all that waits.
    pub(crate) fn tells(&self, tick: u64) -> bool {
        let second = tick / 1000 + 1;
        self.told.swap(second, Ordering::Relaxed) != second
    }

    /// One more message of low priority waits.
    pub(crate) fn add_droppable(&self) {
        self.droppable.fetch_add(1, Ordering::Relaxed);
    }

    /// One does not wait any more.
    pub(crate) fn remove_droppable(&self) {
        let before = self.droppable.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a message stopped waiting twice");
    }

    pub(crate) fn messages(&self) -> u32 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a message in, whatever there is already.
    pub(crate) fn add(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a message in if there is room for it; says whether there was.
    pub(crate) fn reserve(&self, bytes: usize, max_messages: usize, max_bytes: usize) -> bool {
        let before = self.messages.fetch_add(1, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = (before as usize) < max_messages && bytes_before + bytes <= max_bytes;
        if !fits {
            self.remove(bytes);
        }
        fits
    }

    /// Counts a message out.
    pub(crate) fn remove(&self, bytes: usize) {
        let before = self.messages.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a message was counted out twice");
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_and_is_left_as_it_was() {
        let gauges = Gauges::default();
        let gauge = gauges.of(SessionId::new(0, 5000, 1));
        assert!(gauge.reserve(60, 2, 100));
        assert!(!gauge.reserve(41, 2, 100), "bytes");
        assert!(gauge.reserve(40, 2, 100));
        assert!(!gauge.reserve(0, 2, 100), "messages");
        assert_eq!((gauge.messages(), gauge.bytes()), (2, 100));
        gauge.remove(60);
        gauge.remove(40);
        assert_eq!((gauge.messages(), gauge.bytes()), (0, 0));
    }
}
