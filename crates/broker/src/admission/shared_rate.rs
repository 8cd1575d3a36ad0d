//! A rate that many connections on many workers share, at the price of one that nobody shares.
//!
//! Each worker adds up what came on a cache line of its own and books it with the others only when it
//! is a good part of what the rate allows; and whether all must wait is one number that changes only
//! when it does. Price: at most one such part per worker more than the rate says, once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::rate::{Gcra, Pace, Rate, nanoseconds};

/// A rate of all connections of a broker, or of a listener.
#[derive(Debug)]
pub(crate) struct SharedRate {
    pace: Pace,
    /// What a worker keeps to itself at most.
    part: u64,
    used: AtomicU64,
    /// Nobody is read from before this tick; 0 if nobody has to wait.
    closed_until: AtomicU64,
    unbooked: Box<[Own]>,
}

/// Of one worker, which alone writes it; on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Own(AtomicU64);

/// The shortest time for which somebody waits: however many wait, they look rarely.
const SHORTEST_MS: u64 = 20;

/// The longest time, before looking again.
const LONGEST_MS: u64 = 1_000;

impl SharedRate {
    pub(crate) fn new(rate: Rate, workers: usize) -> SharedRate {
        // A hundredth of a second of the rate, and no more than an eighth of the burst by all of them.
        let hundredth = u64::from(rate.per_second.get()) / 100;
        let of_burst = u64::from(rate.burst) / (8 * workers.max(1) as u64);
        SharedRate {
            pace: rate.into(),
            part: hundredth.min(of_burst).max(1),
            used: AtomicU64::new(0),
            closed_until: AtomicU64::new(0),
            unbooked: (0..workers).map(|_| Own::default()).collect(),
        }
    }

    /// Whether one may come now; counts it if so.
    pub(crate) fn take(&self, tick: u64) -> bool {
        self.book(|used| used.take(self.pace, nanoseconds(tick), 1))
    }

    /// Counts what came on a worker. Says whether all have to wait now.
    pub(crate) fn charge(&self, worker: usize, tick: u64, count: u64) -> bool {
        let Some(Own(unbooked)) = self.unbooked.get(worker) else {
            return false;
        };
        let sum = unbooked.load(Ordering::Relaxed).saturating_add(count);
        if sum < self.part {
            unbooked.store(sum, Ordering::Relaxed);
            return self.is_closed();
        }
        unbooked.store(0, Ordering::Relaxed);
        self.charge_at_once(tick, sum)
    }

    /// The same for what came to no worker, or is much: booked at once.
    pub(crate) fn charge_at_once(&self, tick: u64, count: u64) -> bool {
        let wait = self.book(|used| used.charge(self.pace, nanoseconds(tick), count));
        if wait == 0 {
            return self.is_closed();
        }
        let until = tick + wait.div_ceil(1_000_000);
        self.closed_until.fetch_max(until, Ordering::Relaxed);
        true
    }

    /// Whether somebody may have to wait. A glance that costs nothing.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed_until.load(Ordering::Relaxed) != 0
    }

    /// Milliseconds until nobody has to wait any more.
    pub(crate) fn closed_for(&self, tick: u64) -> u64 {
        let until = self.closed_until.load(Ordering::Relaxed);
        until.saturating_sub(tick)
    }

    /// Milliseconds to wait now; `None` if there is no need. Different for each, by `dice`, or all who
    /// wait would come at once, and always the same of them first.
    pub(crate) fn wait(&self, tick: u64, dice: u64) -> Option<u64> {
        let until = self.closed_until.load(Ordering::Relaxed);
        if until <= tick {
            // Over. Should it have closed again meanwhile, that stays.
            let _ =
                self.closed_until
                    .compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
            return None;
        }
        let wait = (until - tick).clamp(SHORTEST_MS, LONGEST_MS);
        Some(wait + dice % wait)
    }

    fn book<T>(&self, count: impl Fn(&mut Gcra) -> T) -> T {
        let mut before = self.used.load(Ordering::Relaxed);
        loop {
            let mut used = Gcra::at(before);
            let answer = count(&mut used);
            let exchanged = self.used.compare_exchange_weak(
                before,
                used.time(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match exchanged {
                Ok(_) => return answer,
                Err(now) => before = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_one_rate_and_all_wait_when_it_is_used_up() {
        let rate = SharedRate::new(Rate::of(1_000, 100), 2);
        let mut came = 0;
        for n in 0.. {
            came += 10;
            if rate.charge(n % 2, 1_000, 10) {
                break;
            }
        }
        // The burst, and what both keep to themselves.
        assert!((100..=130).contains(&came), "{came} came");
        let wait = rate.wait(1_000, 0).expect("all wait");
        assert!((20..=100).contains(&wait), "{wait} ms");
        assert!(rate.wait(1_000, 7).is_some_and(|other| other != wait));
        assert_eq!(rate.wait(1_200, 0), None);
        assert!(!rate.is_closed());
        assert!(!rate.charge(0, 1_200, 10));
    }

    #[test]
    fn a_debt_is_paid_before_anybody_goes_on() {
        let rate = SharedRate::new(Rate::of(100, 10), 1);
        assert!(rate.charge(0, 1_000, 500), "five seconds of it at once");
        assert!(rate.wait(5_800, 0).is_some());
        assert_eq!(rate.wait(6_000, 0), None);
    }

    #[test]
    fn one_at_a_time() {
        let rate = SharedRate::new(Rate::of(10, 2), 0);
        let taken: Vec<bool> = [0, 0, 0, 100, 100].map(|tick| rate.take(tick)).into();
        assert_eq!(taken, [true, true, false, true, false]);
    }
}
