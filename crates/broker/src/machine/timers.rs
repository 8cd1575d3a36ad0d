//! Timer wheel: which connections, or sessions, to look at this second.
//!
//! Every packet moves a connection's keep-alive deadline, so deadlines are not filed exactly: a
//! connection is filed once, looked at when its slot comes round, and filed again if it was active
//! meanwhile. A packet then costs one store, and an idle connection one look per keep-alive.

/// Slots of the wheel, one second each. A deadline farther away is looked at early and filed again.
const SLOTS: u64 = 256;

/// The wheel of one shard.
#[derive(Debug)]
pub(crate) struct Timers<Id> {
    slots: Vec<Vec<Id>>,
    /// First second that has not been handed out.
    next: u64,
}

impl<Id> Default for Timers<Id> {
    fn default() -> Timers<Id> {
        Timers {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            next: 0,
        }
    }
}

impl<Id> Timers<Id> {
    /// Files somebody to be looked at once `deadline` (milliseconds) has passed, or earlier if
    /// that is far away. Returns the tick before which it will not be handed out.
    pub(crate) fn file(&mut self, deadline: u64, who: Id) -> u64 {
        let second = deadline
            .div_ceil(1000)
            .clamp(self.next, self.next + SLOTS - 1);
        self.slots[(second % SLOTS) as usize].push(who);
        second * 1000
    }

    /// Moves those to look at now into `due`.
    pub(crate) fn turn(&mut self, tick: u64, due: &mut Vec<Id>) {
        let now = tick / 1000;
        // After a long pause one round hands out everything.
        let last = now.min(self.next + SLOTS - 1);
        for second in self.next..=last {
            due.append(&mut self.slots[(second % SLOTS) as usize]);
        }
        self.next = self.next.max(now + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(timers: &mut Timers<u32>, tick: u64) -> Vec<u32> {
        let mut due = Vec::new();
        timers.turn(tick, &mut due);
        due
    }

    #[test]
    fn nobody_is_early_by_more_than_the_wheel_and_nobody_is_forgotten() {
        let mut timers = Timers::default();
        for (slot, deadline) in [(1, 0), (2, 1), (3, 1500), (4, 2000), (5, 10_000_000)] {
            timers.file(deadline, slot);
        }
        assert_eq!(due(&mut timers, 0), [1]);
        assert_eq!(due(&mut timers, 999), [0; 0]);
        assert_eq!(due(&mut timers, 1000), [2]);
        assert_eq!(due(&mut timers, 2000), [3, 4]);
        assert_eq!(due(&mut timers, (SLOTS - 2) * 1000), [0; 0]);
        assert_eq!(due(&mut timers, (SLOTS - 1) * 1000), [5]);
    }

    #[test]
    fn a_clock_that_jumps_far_ahead_hands_out_everything_once() {
        let mut timers = Timers::default();
        for slot in 0..600 {
            timers.file(u64::from(slot) * 1000, slot);
        }
        let mut all = due(&mut timers, 86_400_000);
        all.sort_unstable();
        assert_eq!(all, (0..600).collect::<Vec<_>>());
        timers.file(0, 7);
        assert_eq!(due(&mut timers, 86_401_000), [7]);
    }
}
