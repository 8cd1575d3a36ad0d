//! How old what comes out of the store is.
//!
//! While the broker runs, all time is counted in ticks, which nobody can set: keep-alive, expiry of
//! messages and sessions, delays of wills. Ticks begin anew with each start, so records carry the wall
//! clock, and a restart is the one moment at which it decides anything:
//!
//! - set forward (while the broker was down, or at any time since the record was written), what is stored
//!   is older by as much, and expires earlier;
//! - set back, a time that lies in the future counts as now: nothing lives longer than its whole time from
//!   the restart on. The record keeps its time: the clock that is wrong may be today's.

use super::Moment;

/// Milliseconds from `us`, microseconds since the Unix epoch, until now.
pub(crate) fn since(us: i64, now: Moment) -> u64 {
    u64::try_from(now.wall_us.saturating_sub(us) / 1000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_clocks_said_nothing_comes_from_the_future() {
        let rows = [
            (1_000_000, 3_500_000, 2_500),
            (3_500_000, 1_000_000, 0),
            (0, 0, 0),
            (0, i64::MAX, i64::MAX as u64 / 1000),
            (i64::MAX, 0, 0),
            (i64::MIN, i64::MAX, i64::MAX as u64 / 1000),
            (i64::MAX, i64::MIN, 0),
        ];
        for (us, wall_us, expected) in rows {
            let now = Moment { tick: 7, wall_us };
            assert_eq!(since(us, now), expected, "{us} at {wall_us}");
        }
    }
}
