//! Recorded truck signals: CSV with the columns `field,signal,value,delay`, the format of Eclipse
//! Kuksa's CSV provider.
//!
//! `delay` is what its player waits **after** a row, in seconds (its README says so, and in the
//! recordings a position and the speed that follows it with the delay agree best when taken as one
//! moment). So a row's time is the start plus the delays of all rows before it, and rows with
//! delay 0 share the time of the next.
//!
//! There is no absolute time in the file; the caller says when it starts. `True` and `False` are
//! flags, what reads as a finite number is one, everything else is text.

use super::RecordingError;
use super::lines::{Lines, columns, number_in};
use super::moments::{Moment, Value};

pub(super) const COLUMNS: [&str; 4] = ["field", "signal", "value", "delay"];

/// Longest wait between two rows that is believed, seconds.
const LONGEST_DELAY: f64 = 7.0 * 24.0 * 3600.0;

pub(super) struct Rows {
    lines: Lines,
    places: [usize; 4],
    /// When the next row was recorded; in seconds, so that tiny delays add up exactly enough.
    elapsed: f64,
    start_us: i64,
    ahead: Option<(i64, String, Value)>,
}

impl Rows {
    pub(super) fn new(mut lines: Lines, start_us: i64) -> Result<Self, RecordingError> {
        let places = lines.header(COLUMNS)?;
        Ok(Self {
            lines,
            places,
            elapsed: 0.0,
            start_us,
            ahead: None,
        })
    }

    fn row(&mut self) -> Result<Option<(i64, String, Value)>, RecordingError> {
        let places = self.places;
        let found = self.lines.find(|line| {
            let [field, signal, value, delay] = columns(line, places)?;
            let delay = number_in(delay, "delay", 0.0..=LONGEST_DELAY)?;
            if signal.is_empty() {
                return Err("`signal` is empty".to_owned());
            }
            match field {
                "current" => {}
                "target" => return Err("is a target value, not one the vehicle reported".into()),
                _ => return Err("`field` is neither `current` nor `target`".into()),
            }
            Ok(Some((signal.to_owned(), parse(value), delay)))
        })?;
        Ok(found.map(|(signal, value, delay)| {
            let time_us = self.start_us + (self.elapsed * 1e6).round() as i64;
            self.elapsed += delay;
            (time_us, signal, value)
        }))
    }
}

impl Iterator for Rows {
    type Item = Result<Moment, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut moment: Option<Moment> = None;
        loop {
            let row = match self.ahead.take() {
                Some(row) => Some(row),
                None => match self.row() {
                    Ok(row) => row,
                    Err(error) => return Some(Err(error)),
                },
            };
            let Some((time_us, signal, value)) = row else {
                return moment.map(Ok);
            };
            match &mut moment {
                None => {
                    moment = Some(Moment {
                        time_us,
                        readings: vec![(signal, value)],
                    });
                }
                // The same signal twice at one time (it happens) makes two moments.
                Some(open)
                    if open.time_us == time_us
                        && !open.readings.iter().any(|(name, _)| *name == signal) =>
                {
                    open.readings.push((signal, value));
                }
                Some(_) => {
                    self.ahead = Some((time_us, signal, value));
                    return moment.map(Ok);
                }
            }
        }
    }
}

fn parse(value: &str) -> Value {
    match value {
        "True" | "true" => Value::Flag(true),
        "False" | "false" => Value::Flag(false),
        _ => match value.parse::<f64>() {
            Ok(number) if number.is_finite() => Value::Number(number),
            _ => Value::Text(value.to_owned()),
        },
    }
}
