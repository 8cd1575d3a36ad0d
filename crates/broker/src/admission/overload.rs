//! Overload, by the one thing that clients feel: how long a worker takes to come round to them.
//!
//! Each worker has an appointment with itself every 100 ms, in line with everybody else's work, and
//! writes down how late it was, smoothed over about a second: a moment's pause is none. A worker that
//! does not come at all is found by that: half of the time by which it is overdue counts, too, so that
//! one that hangs is noticed within two limits.
//!
//! New connections are refused while the latest of all workers is later than the limit, and until it is
//! below half of it: the worker that a client belongs to is not known before it is known who it is, and a
//! threshold without a gap would flutter. Connections that stand are not touched: load is shed where it
//! is cheapest, and where it can come back later.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often a worker looks how late it is.
pub(crate) const PROBE: Duration = Duration::from_millis(100);

/// The part of a new measurement in the smoothed one: 1/8, so a second counts for most of it.
const SMOOTHING: u64 = 8;

/// How late a broker's workers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload {
    /// Of the worker that is latest: microseconds that something due waits for its turn.
    pub delay_us: u64,
    /// Whether new connections are refused for it
    /// ([`Limits::max_loop_delay`](crate::Limits::max_loop_delay)).
    pub refusing: bool,
}

/// The delay of each worker, written by that worker.
#[derive(Debug)]
pub(crate) struct LoopDelays {
    workers: Box<[LoopDelay]>,
    max_us: u64,
    refusing: AtomicBool,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct LoopDelay {
    smoothed_us: AtomicU64,
    /// The tick of the last look, counted from 1; 0 before the first.
    looked: AtomicU64,
}

impl LoopDelays {
    pub(crate) fn new(workers: usize, max: Duration) -> LoopDelays {
        LoopDelays {
            workers: (0..workers).map(|_| LoopDelay::default()).collect(),
            max_us: max.as_micros() as u64,
            refusing: AtomicBool::new(false),
        }
    }

    /// A worker kept its appointment, `late` after the time.
    pub(crate) fn looked(&self, worker: usize, tick: u64, late: Duration) {
        let Some(worker) = self.workers.get(worker) else {
            return;
        };
        let late = late.as_micros() as u64;
        let before = worker.smoothed_us.load(Ordering::Relaxed);
        let after = (before * (SMOOTHING - 1) + late) / SMOOTHING;
        worker.smoothed_us.store(after, Ordering::Relaxed);
        worker.looked.store(tick + 1, Ordering::Relaxed);
    }

    /// A worker has ended: nobody waits for it.
    pub(crate) fn ended(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker) {
            worker.looked.store(0, Ordering::Relaxed);
            worker.smoothed_us.store(0, Ordering::Relaxed);
        }
    }

    /// How late the latest worker is, microseconds.
    pub(crate) fn worst_us(&self, tick: u64) -> u64 {
        let delays = self.workers.iter().map(|worker| {
            let smoothed = worker.smoothed_us.load(Ordering::Relaxed);
            let overdue = match worker.looked.load(Ordering::Relaxed) {
                0 => 0,
                looked => {
                    let silent = (tick + 1).saturating_sub(looked) * 1000;
                    silent.saturating_sub(PROBE.as_micros() as u64)
                }
            };
            smoothed.max(overdue / 2)
        });
        delays.max().unwrap_or(0)
    }

    /// Whether new connections are refused.
    pub(crate) fn refuses(&self, tick: u64) -> bool {
        self.now(tick).refusing
    }

    /// How late the workers are, and what follows from it.
    pub(crate) fn now(&self, tick: u64) -> Overload {
        let delay_us = self.worst_us(tick);
        let before = self.refusing.load(Ordering::Relaxed);
        let refusing = match before {
            false => delay_us > self.max_us,
            true => delay_us > self.max_us / 2,
        };
        if refusing != before && self.refusing.swap(refusing, Ordering::Relaxed) == before {
            match refusing {
                true => tracing::warn!(
                    event = "broker.overloaded",
                    delay_us,
                    "new connections are refused until the workers keep up again"
                ),
                false => tracing::info!(event = "broker.overload_over", delay_us),
            }
        }
        Overload { delay_us, refusing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays() -> LoopDelays {
        LoopDelays::new(2, Duration::from_millis(500))
    }

    fn look(delays: &LoopDelays, worker: usize, tick: u64, late_ms: u64) {
        delays.looked(worker, tick, Duration::from_millis(late_ms));
    }

    #[test]
    fn a_moment_is_no_overload_and_one_late_worker_is_enough() {
        let delays = delays();
        assert!(!delays.refuses(0), "before anybody has looked");
        for tick in 0..10 {
            look(&delays, 0, tick * 100, 1);
            look(&delays, 1, tick * 100, 1);
        }
        look(&delays, 1, 1_900, 900);
        look(&delays, 0, 1_900, 1);
        assert!(!delays.refuses(1_900));
        for n in 0..10 {
            look(&delays, 1, 2_000 + n * 1_000, 900);
            look(&delays, 0, 2_000 + n * 1_000, 1);
        }
        let now = delays.now(11_000);
        assert!(now.refusing && now.delay_us > 500_000, "{now:?}");
    }

    #[test]
    fn refusing_ends_below_half_of_where_it_began() {
        let delays = LoopDelays::new(1, Duration::from_millis(500));
        let mut tick = 0;
        let mut look = |late_ms| {
            tick += 100;
            look(&delays, 0, tick, late_ms);
            delays.now(tick)
        };
        while !look(2_000).refusing {}
        let mut now = look(0);
        while now.refusing {
            assert!(now.delay_us > 250_000, "{now:?}");
            now = look(0);
        }
        assert!(now.delay_us <= 250_000, "{now:?}");
    }

    #[test]
    fn a_worker_that_hangs_is_noticed_and_one_that_has_ended_is_not_missed() {
        let delays = delays();
        look(&delays, 0, 1_000, 0);
        look(&delays, 1, 1_000, 0);
        assert!(!delays.refuses(1_900));
        look(&delays, 0, 2_200, 0);
        assert!(delays.refuses(2_200));
        delays.ended(1);
        assert!(!delays.refuses(2_200));
    }
}
