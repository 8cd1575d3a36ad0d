//! Memory that grows with what clients do: incomplete packets, and what waits for slow readers.
//!
//! Each connection has its own bounds; these are those of all together, so that a hundred thousand of
//! them at their own bound do not take the machine.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

/// What one connection may take when memory is short: enough for what a car says in a minute.
pub(crate) const SMALL: usize = 64 * 1024;

/// What one client that acknowledges nothing may have us keep when there is no memory at all: twenty
/// messages under way, beside the message that is being sent.
pub(crate) const FEW: usize = 4 * 1024;

/// What is encoded for one connection between two writes when memory is short.
const CAREFUL: usize = 4 * 1024;

/// Memory for packets that are not complete, or not wanted yet, over all connections.
#[derive(Debug)]
pub(crate) struct ReadMemory {
    used: AtomicUsize,
    limit: usize,
}

impl ReadMemory {
    pub(crate) fn new(limit: usize) -> ReadMemory {
        ReadMemory {
            used: AtomicUsize::new(0),
            limit,
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A connection holds `after` bytes from now on, and held `before`. Says whether it may. It counts
    /// either way: what is there must be given back.
    ///
    /// A quarter is left to those that hold little, so that a few that fill their packets slowly do not
    /// stop those whose packet only happened to come in two parts; and half is left to clients, so that
    /// strangers with half a CONNECT do not stop those who are known.
    pub(crate) fn resize(&self, before: usize, after: usize, who: Standing) -> bool {
        if after <= before {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
            return true;
        }
        let growth = after - before;
        let used = self.used.fetch_add(growth, Ordering::Relaxed) + growth;
        if who == Standing::Stranger && used > self.limit / 2 {
            return false;
        }
        match after > SMALL {
            true => used <= self.limit - self.limit / 4,
            false => used <= self.limit,
        }
    }
}

/// Whether it is known who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// CONNECT is not answered.
    Stranger,
    Client,
}

/// Whether there is memory for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Fits {
    Yes,
    No,
}

/// Memory for messages that wait to be written to connected clients, over all of them.
#[derive(Debug)]
pub(crate) struct QueueMemory {
    /// Workers add and take as it comes, so one may be ahead of the other: below 0 for a moment.
    used: AtomicIsize,
    /// The part of it that full sockets did not take: copies, of which each is memory of its own. What
    /// else waits is shared, and counted for each of those who wait for it.
    held: AtomicIsize,
    limit: usize,
}

/// How much may wait for one client, by how much waits for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// As much as its own bounds allow.
    Ample,
    /// [`SMALL`], or one message: the limit is reached.
    Small,
    /// One message, and only if it reads: the limit is passed by a quarter.
    Exhausted,
}

/// Whether a client takes what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Reading,
    /// Its socket is full, or it is at its rate.
    Stuck,
}

impl QueueMemory {
    pub(crate) fn new(limit: usize) -> QueueMemory {
        QueueMemory {
            used: AtomicIsize::new(0),
            held: AtomicIsize::new(0),
            limit,
        }
    }

    /// What is held for full sockets changes. It counts either way; says whether more may be held: half
    /// of the limit.
    pub(crate) fn hold(&self, change: isize) -> Fits {
        let held = self.held.fetch_add(change, Ordering::Relaxed) + change;
        match change <= 0 || usize::try_from(held).unwrap_or(0) <= self.limit / 2 {
            true => Fits::Yes,
            false => Fits::No,
        }
    }

    pub(crate) fn used(&self) -> usize {
        usize::try_from(self.used.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn add(&self, change: isize) {
        self.used.fetch_add(change, Ordering::Relaxed);
    }

    /// Whether the limit is passed.
    pub(crate) fn is_short(&self) -> bool {
        self.used() > self.limit
    }

    pub(crate) fn room(&self) -> Room {
        let used = self.used();
        if used <= self.limit {
            Room::Ample
        } else if used <= self.limit.saturating_add(self.limit / 4) {
            Room::Small
        } else {
            Room::Exhausted
        }
    }
}

impl Room {
    /// Whether a message of `bytes` may wait for a client for which `waiting` bytes do.
    pub(crate) fn takes(self, waiting: usize, bytes: usize, reader: Reader) -> bool {
        match self {
            Room::Ample => true,
            Room::Small => waiting == 0 || waiting + bytes <= SMALL,
            Room::Exhausted => waiting == 0 && reader == Reader::Reading,
        }
    }

    /// How much is encoded between two writes, of `usual` bytes: what the socket does not take of it is
    /// to be held.
    pub(crate) fn to_write(self, usual: usize) -> usize {
        match self {
            Room::Ample => usual,
            Room::Small | Room::Exhausted => usual.min(CAREFUL),
        }
    }

    /// Whether more is to be made ready for a client that acknowledges what it gets: what is not, stays
    /// where it takes less room, and its turn comes with the next acknowledgement.
    /// `unacknowledged` is what is kept of those that it did not acknowledge.
    pub(crate) fn sends_on(self, ready: usize, unacknowledged: usize) -> bool {
        match self {
            Room::Ample => true,
            Room::Small => ready + unacknowledged < SMALL,
            Room::Exhausted => ready == 0 && unacknowledged < FEW,
        }
    }
}

/// What one worker has added to [`QueueMemory`] and not booked yet: a part that does not matter, so that
/// workers do not fight over one number for each message.
#[derive(Debug, Default)]
pub(crate) struct QueueTally(isize);

/// What a worker keeps to itself.
const UNBOOKED: usize = 64 * 1024;

impl QueueTally {
    pub(crate) fn add(&mut self, change: isize, memory: &QueueMemory) {
        self.0 += change;
        if self.0.unsigned_abs() >= UNBOOKED {
            self.book(memory);
        }
    }

    pub(crate) fn book(&mut self, memory: &QueueMemory) {
        if self.0 != 0 {
            memory.add(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_half_to_those_who_are_known() {
        let memory = ReadMemory::new(1 << 20);
        let mut strangers = 0;
        while memory.resize(0, SMALL, Standing::Stranger) {
            strangers += 1;
        }
        assert_eq!(strangers, (1 << 19) / SMALL);
        assert!(memory.resize(0, SMALL, Standing::Client));
    }

    #[test]
    fn the_large_stop_before_the_small() {
        let memory = ReadMemory::new(1_000_000);
        assert!(memory.resize(0, 700_000, Standing::Client));
        assert!(
            !memory.resize(0, 100_000, Standing::Client),
            "three quarters"
        );
        assert!(memory.resize(100_000, 0, Standing::Client));
        assert!(
            memory.resize(0, 60_000, Standing::Client),
            "but it is small"
        );
        assert!(
            memory.resize(0, 60_000, Standing::Client)
                && memory.resize(0, 60_000, Standing::Client)
                && memory.resize(0, 60_000, Standing::Client)
        );
        assert!(!memory.resize(0, 64_000 + 1, Standing::Client));
        assert_eq!(memory.used(), 700_000 + 4 * 60_000 + 64_001);
        for (held, left) in [(700_000, 0), (64_001, 0), (60_000, 1), (1, 0)] {
            assert!(memory.resize(held, left, Standing::Client));
        }
        assert_eq!(memory.used(), 3 * 60_000);
    }

    #[test]
    fn full_sockets_have_half_of_it() {
        let memory = QueueMemory::new(1_000_000);
        assert_eq!(memory.hold(500_000), Fits::Yes);
        assert_eq!(memory.hold(1), Fits::No);
        assert_eq!(memory.hold(-2), Fits::Yes);
        assert_eq!(memory.hold(1), Fits::Yes, "what did not fit is gone again");
    }

    #[test]
    fn the_fuller_it_is_the_less_waits_for_one() {
        let memory = QueueMemory::new(1_000_000);
        let mut tally = QueueTally::default();
        assert_eq!(memory.room(), Room::Ample);
        tally.add(1_000_001, &memory);
        assert_eq!(memory.room(), Room::Small);
        tally.add(250_000, &memory);
        assert_eq!(memory.room(), Room::Exhausted);
        tally.add(-10, &memory);
        assert_eq!(memory.used(), 1_250_001, "not booked yet");
        tally.book(&memory);
        assert_eq!(memory.used(), 1_249_991);
        tally.add(-1_249_991, &memory);
        assert_eq!((memory.used(), memory.room()), (0, Room::Ample));

        use Reader::{Reading, Stuck};
        let rows = [
            (Room::Ample, 5_000_000, 1_000_000, Stuck, true),
            (Room::Small, 0, 1_000_000, Stuck, true),
            (Room::Small, 60_000, 1_000, Stuck, true),
            (Room::Small, 65_000, 1_000, Reading, false),
            (Room::Exhausted, 0, 1_000, Reading, true),
            (Room::Exhausted, 0, 1_000, Stuck, false),
            (Room::Exhausted, 1, 1_000, Reading, false),
        ];
        for (room, waiting, bytes, reader, takes) in rows {
            assert_eq!(
                room.takes(waiting, bytes, reader),
                takes,
                "{room:?}: {bytes} on top of {waiting}, {reader:?}"
            );
        }
    }
}
