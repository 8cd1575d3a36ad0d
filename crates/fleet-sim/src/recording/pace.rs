//! Pace: when a recorded moment is due.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

/// How fast time goes by in a replay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// This many times as fast as it was; 1 is as it was.
    Times(f64),
    /// As fast as the server takes it.
    Max,
}

impl Speed {
    /// As fast as it was.
    pub const REAL: Speed = Speed::Times(1.0);
}

impl Default for Speed {
    fn default() -> Self {
        Self::REAL
    }
}

/// A text is no speed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("speed `{text}` is neither `max` nor a number from 0.01 to 1000000, such as 1 or 10")]
pub struct SpeedError {
    /// The text.
    pub text: String,
}

impl FromStr for Speed {
    type Err = SpeedError;

    fn from_str(text: &str) -> Result<Self, SpeedError> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let number = text.strip_suffix('x').unwrap_or(text);
        match number.parse::<f64>() {
            Ok(times) if (0.01..=1e6).contains(&times) => Ok(Self::Times(times)),
            _ => Err(SpeedError {
                text: text.to_owned(),
            }),
        }
    }
}

/// Maps recorded time to the clock of this process. Time that goes back in a recording stands
/// still meanwhile.
#[derive(Debug)]
pub struct Pace {
    speed: Speed,
    begin: Option<(i64, Instant)>,
}

impl Pace {
    /// Begins with the first moment it is asked about.
    pub fn new(speed: Speed) -> Self {
        Self { speed, begin: None }
    }

    /// When a recorded moment (microseconds since the Unix epoch) is due; `None` for at once.
    pub fn due(&mut self, time_us: i64) -> Option<Instant> {
        let Speed::Times(times) = self.speed else {
            return None;
        };
        let (first_us, begin) = *self.begin.get_or_insert_with(|| (time_us, Instant::now()));
        let elapsed_us = time_us.saturating_sub(first_us).max(0);
        Some(begin + Duration::from_secs_f64(elapsed_us as f64 / 1e6 / times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_read() {
        for (text, expected) in [
            ("1", Some(Speed::REAL)),
            ("10", Some(Speed::Times(10.0))),
            ("2.5x", Some(Speed::Times(2.5))),
            ("max", Some(Speed::Max)),
            ("0", None),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("", None),
            ("fast", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn moments_are_due_as_recorded_or_faster() {
        let begin = Instant::now();
        let mut pace = Pace::new(Speed::Times(10.0));
        let dues: Vec<_> = [5_000_000, 15_000_000, 4_000_000, 25_000_000]
            .map(|time| pace.due(time).unwrap().duration_since(begin).as_secs_f64())
            .into();
        assert_eq!(dues, [0.0, 1.0, 0.0, 2.0]);
        assert_eq!(Pace::new(Speed::Max).due(5), None);
    }
}
