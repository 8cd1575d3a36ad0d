//! The one place where the broker reads a clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::machine::Moment;

/// Clock shared by all workers of a broker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock {
            start: Instant::now(),
        }
    }

    pub(crate) fn now(self) -> Moment {
        // A wall clock before 1970 or after the year 294,000 reads as 0: a record keeps a wrong
        // time, nothing is decided by it.
        let wall_us = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_micros()).ok())
            .unwrap_or(0);
        Moment {
            tick: self.start.elapsed().as_millis() as u64,
            wall_us,
        }
    }
}
