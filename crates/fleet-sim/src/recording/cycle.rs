//! Drive cycles: CSV with the columns `timestamp,cycle_sec,timestep,speed_mph,accel_meters_ps`, one
//! row per second, as NREL publishes them.
//!
//! Their times are local times without a zone. Which zone is not written anywhere, so they are
//! taken as UTC: distances between them are right, the hour of day is the driver's.
//!
//! `accel_meters_ps` is not what its name says: it is the change of `speed_mph` per second, also
//! across gaps of hours. The acceleration sent is made from the speeds instead, in m/s², and only
//! where rows follow each other within two seconds.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::RecordingError;
use super::lines::{Lines, columns, excerpt, number_in};
use super::moments::{Moment, Value};

pub(super) const COLUMNS: [&str; 5] = [
    "timestamp",
    "cycle_sec",
    "timestep",
    "speed_mph",
    "accel_meters_ps",
];

const KM_H_PER_MPH: f64 = 1.609_344;

pub(super) struct Rows {
    lines: Lines,
    places: [usize; 2],
    last: Option<(i64, f64)>,
}

impl Rows {
    pub(super) fn new(mut lines: Lines) -> Result<Self, RecordingError> {
        let [timestamp, _, _, speed, _] = lines.header(COLUMNS)?;
        Ok(Self {
            lines,
            places: [timestamp, speed],
            last: None,
        })
    }
}

impl Iterator for Rows {
    type Item = Result<Moment, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let places = self.places;
        let read = |line: &str| {
            let [timestamp, speed] = columns(line, places)?;
            let time = timestamp
                .parse::<DateTime>()
                .ok()
                .and_then(|local| local.to_zoned(TimeZone::UTC).ok())
                .ok_or_else(|| {
                    format!(
                        "`timestamp` is `{}`, not a date and time",
                        excerpt(timestamp)
                    )
                })?;
            let km_h = number_in(speed, COLUMNS[3], 0.0..=250.0)? * KM_H_PER_MPH;
            Ok(Some((time.timestamp().as_microsecond(), km_h)))
        };
        let (time_us, km_h) = match self.lines.find(read).transpose()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let mut readings = vec![("Vehicle.Speed".to_owned(), Value::Number(km_h))];
        if let Some((before_us, before_km_h)) = self.last.replace((time_us, km_h)) {
            let seconds = (time_us - before_us) as f64 / 1e6;
            if seconds > 0.0 && seconds <= 2.0 {
                let acceleration = (km_h - before_km_h) / 3.6 / seconds;
                readings.push((
                    "Vehicle.Acceleration.Longitudinal".to_owned(),
                    Value::Number(acceleration),
                ));
            }
        }
        Some(Ok(Moment { time_us, readings }))
    }
}
