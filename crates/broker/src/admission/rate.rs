//! Rates, by the generic cell rate algorithm (ITU-T I.371): one number per rate and subject.
//!
//! The number is the time at which all that came so far would have come, had it come evenly. It may run
//! ahead of the clock by what the burst takes; beyond that, whoever comes is too early. No timer refills
//! anything, and what is idle needs no attention: a time in the past says all there is to say.
//!
//! Two uses. *Take* asks first and refuses: never more than `burst + rate × t` in any time `t`. *Charge*
//! counts what has come already, as messages are known only once they are decoded, and says how long to
//! wait for more: in any time `t` never more than that and what the last one brought, and who brought
//! much waits long.

use std::num::NonZeroU32;

/// A rate: so many in a second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: NonZeroU32,
    /// At once, after a pause; 0 counts as 1. Who is held up looks again after 20 ms at the earliest, so
    /// with less than that in a burst the rate is not reached.
    pub burst: u32,
}

impl Rate {
    /// `per_second` in the long run, and `burst` at once.
    pub const fn new(per_second: NonZeroU32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    /// A default, from numbers that are known not to be 0.
    pub(crate) const fn of(per_second: u32, burst: u32) -> Rate {
        let per_second = match NonZeroU32::new(per_second) {
            Some(per_second) => per_second,
            None => NonZeroU32::MIN,
        };
        Rate { per_second, burst }
    }
}

/// A rate, made ready for use: what one costs in nanoseconds, in 32.32 fixed point and rounded up, and
/// what a burst does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    cost: u64,
    burst: u64,
}

const SECOND: u64 = 1_000_000_000;

impl From<Rate> for Pace {
    fn from(rate: Rate) -> Pace {
        let cost = (u128::from(SECOND) << 32).div_ceil(u128::from(rate.per_second.get()));
        let pace = Pace {
            // At most 2^62: a second for one.
            cost: cost as u64,
            burst: 0,
        };
        Pace {
            burst: pace.cost(u64::from(rate.burst.max(1))),
            ..pace
        }
    }
}

impl Pace {
    /// Nanoseconds that `count` take.
    pub(crate) fn cost(self, count: u64) -> u64 {
        let cost = (u128::from(count) * u128::from(self.cost)).div_ceil(1 << 32);
        u64::try_from(cost).unwrap_or(u64::MAX)
    }

    /// Nanoseconds that a burst takes.
    pub(crate) fn burst(self) -> u64 {
        self.burst
    }
}

/// How much of a rate one subject has used: the time, in nanoseconds, at which all of it would have come
/// evenly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gcra(u64);

impl Gcra {
    /// As [`time`](Gcra::time) wrote it down.
    pub(crate) fn at(time: u64) -> Gcra {
        Gcra(time)
    }

    /// The time at which all that came would have come evenly, nanoseconds.
    pub(crate) fn time(self) -> u64 {
        self.0
    }

    /// Whether `count` may come now; counts them if so.
    pub(crate) fn take(&mut self, pace: Pace, now: u64, count: u64) -> bool {
        let then = self.0.max(now).saturating_add(pace.cost(count));
        let fits = then - now <= pace.burst();
        if fits {
            self.0 = then;
        }
        fits
    }

    /// Counts what has come. Returns the nanoseconds to wait before more may come.
    pub(crate) fn charge(&mut self, pace: Pace, now: u64, count: u64) -> u64 {
        self.0 = self.0.max(now).saturating_add(pace.cost(count));
        self.wait(pace, now)
    }

    /// Nanoseconds until one more may come; 0 if it may now.
    pub(crate) fn wait(self, pace: Pace, now: u64) -> u64 {
        let ahead = self.0.max(now) - now;
        ahead
            .saturating_add(pace.cost(1))
            .saturating_sub(pace.burst())
    }

    /// How many may come now.
    pub(crate) fn room(self, pace: Pace, now: u64) -> u64 {
        let ahead = self.0.max(now) - now;
        let left = pace.burst().saturating_sub(ahead);
        u64::try_from((u128::from(left) << 32) / u128::from(pace.cost)).unwrap_or(u64::MAX)
    }
}

/// Ticks as nanoseconds: the precision in which the broker knows the time between two messages is a
/// millisecond, which a rate per second does not mind.
pub(crate) fn nanoseconds(tick: u64) -> u64 {
    tick.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    #[test]
    fn a_burst_then_one_at_a_time() {
        let pace = Pace::from(Rate::of(10, 3));
        let mut gcra = Gcra::default();
        // (millisecond, may it)
        let rows = [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, false),
            (100, true),
            (100, false),
            (350, true),
            (350, true),
            (350, false),
            (10_000, true),
            (10_000, true),
            (10_000, true),
            (10_000, false),
        ];
        for (row, (at, may)) in rows.into_iter().enumerate() {
            let now = SECOND + at * MILLISECOND;
            assert_eq!(gcra.take(pace, now, 1), may, "row {row}");
        }
    }

    #[test]
    fn who_brought_much_waits_long() {
        let pace = Pace::from(Rate::of(1_000, 10));
        let mut gcra = Gcra::default();
        assert_eq!(gcra.room(pace, SECOND), 10);
        assert_eq!(gcra.charge(pace, SECOND, 9), 0, "one is left");
        assert_eq!(gcra.charge(pace, SECOND, 1), MILLISECOND);
        assert_eq!(gcra.charge(pace, SECOND, 100), 101 * MILLISECOND);
        assert_eq!(gcra.room(pace, SECOND), 0);
        let later = SECOND + 101 * MILLISECOND;
        assert_eq!(gcra.wait(pace, later), 0);
        assert_eq!(gcra.wait(pace, later - 1), 1);
        assert_eq!(gcra.room(pace, later), 1);
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        for (per_second, burst) in [(1, 0), (1, u32::MAX), (u32::MAX, 1), (u32::MAX, u32::MAX)] {
            let pace = Pace::from(Rate::of(per_second, burst));
            let mut gcra = Gcra::default();
            assert!(gcra.take(pace, 0, 1), "{per_second}/s, burst {burst}");
            gcra.charge(pace, u64::MAX / 2, u64::MAX);
            assert!(!gcra.take(pace, u64::MAX / 2, 1));
            assert!(gcra.wait(pace, u64::MAX / 2) > 0);
        }
    }

    proptest! {
        /// In any window: never more than the burst and what the rate gives in its time.
        #[test]
        fn never_more_than_burst_and_rate(
            per_second in 1u32..5_000_000,
            burst in 0u32..1_000,
            steps in prop::collection::vec((0u64..5_000_000, 1u64..300), 1..200),
        ) {
            let pace = Pace::from(Rate::of(per_second, burst));
            let mut gcra = Gcra::default();
            let mut now = 0;
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (pause, count) in steps {
                now += pause;
                if gcra.take(pace, now, count) {
                    taken.push((now, count));
                }
            }
            for (first, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0u128;
                for (to, count) in &taken[first..] {
                    sum += u128::from(*count);
                    let by_rate = u128::from(to - from) * u128::from(per_second) / u128::from(SECOND);
                    let most = u128::from(burst.max(1)) + by_rate;
                    prop_assert!(sum <= most, "{sum} of {most} in {} ns", to - from);
                }
            }
        }

        /// The same with counting afterwards, if nobody comes before the time: and what the last brought.
        #[test]
        fn who_waits_when_told_keeps_the_rate(
            per_second in 1u32..5_000_000,
            burst in 0u32..1_000,
            steps in prop::collection::vec((0u64..5_000_000, 1u64..300), 1..200),
        ) {
            let pace = Pace::from(Rate::of(per_second, burst));
            let mut gcra = Gcra::default();
            let (mut now, mut not_before) = (0, 0);
            let mut came: Vec<(u64, u64)> = Vec::new();
            for (pause, count) in steps {
                now = (now + pause).max(not_before);
                not_before = now + gcra.charge(pace, now, count);
                came.push((now, count));
            }
            for (first, (from, _)) in came.iter().enumerate() {
                let mut before_last = 0u128;
                for (to, count) in &came[first..] {
                    let by_rate = u128::from(to - from) * u128::from(per_second) / u128::from(SECOND);
                    let most = u128::from(burst.max(1)) + by_rate;
                    prop_assert!(before_last <= most, "{before_last} of {most}");
                    before_last += u128::from(*count);
                }
            }
        }
    }
}
