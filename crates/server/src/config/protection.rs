//! `[overload]` and `[hold_off]`: how the broker defends those who are connected against those who come.

use std::time::Duration;

use super::reading::Section;

/// `[overload]`.
#[derive(Debug, Clone)]
pub struct OverloadConfig {
    /// A worker whose loop is later than this refuses new connections.
    pub max_loop_delay: Duration,
    /// Refusals are spread over this time, so that those refused do not come back all at once.
    pub retry_spread: Duration,
}

/// `[hold_off]`.
#[derive(Debug, Clone)]
pub struct HoldOffConfig {
    /// Refused credentials after which who shows them is not listened to for a while.
    pub failures: u32,
    /// Connections after which a client that comes and goes is not listened to for a while.
    pub connects: u32,
    /// The time in which these are counted.
    pub within: Duration,
    /// How long it lasts; `None`: nobody is held off.
    pub lasts: Option<Duration>,
}

pub(super) fn read_overload(mut section: Section<'_>) -> OverloadConfig {
    let config = OverloadConfig {
        max_loop_delay: section.duration(
            "max_loop_delay",
            Duration::from_millis(500),
            Duration::from_millis(20)..=Duration::from_secs(60),
        ),
        retry_spread: section.duration(
            "retry_spread",
            Duration::from_secs(10),
            Duration::ZERO..=Duration::from_secs(60),
        ),
    };
    section.finish();
    config
}

pub(super) fn read_hold_off(mut section: Section<'_>) -> HoldOffConfig {
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    let config = HoldOffConfig {
        failures: section.integer("failures", 10, 1..=1_000_000) as u32,
        connects: section.integer("connects", 30, 1..=1_000_000) as u32,
        within: section.duration("within", 60 * second, second..=day),
        lasts: section.duration_or_off("lasts", 300 * second, second..=day),
    };
    section.finish();
    config
}
