//! Positions from a satellite receiver: CSV with the columns
//! `unix_time_s,latitude_deg,longitude_deg,speed_m_s,altitude_m,bearing_deg`.
//!
//! The receiver's speed is not the vehicle's (that comes from its wheels, over CAN), so it gets a
//! name of its own outside the VSS tree: two sources under one name would make a saw-tooth.

use super::RecordingError;
use super::lines::{Lines, columns, number, number_in};
use super::moments::{Moment, Value};

pub(super) const COLUMNS: [&str; 6] = [
    "unix_time_s",
    "latitude_deg",
    "longitude_deg",
    "speed_m_s",
    "altitude_m",
    "bearing_deg",
];

/// Seconds since the epoch that are plausible: 1970 to 2100.
const TIME: std::ops::RangeInclusive<f64> = 0.0..=4_102_444_799.0;

pub(super) struct Fixes {
    lines: Lines,
    places: [usize; 6],
}

impl Fixes {
    pub(super) fn new(mut lines: Lines) -> Result<Self, RecordingError> {
        let places = lines.header(COLUMNS)?;
        Ok(Self { lines, places })
    }
}

impl Iterator for Fixes {
    type Item = Result<Moment, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let places = self.places;
        self.lines
            .find(|line| fix(columns(line, places)?).map(Some))
            .transpose()
    }
}

fn fix([time, latitude, longitude, speed, altitude, bearing]: [&str; 6]) -> Result<Moment, String> {
    let [
        c_time,
        c_latitude,
        c_longitude,
        c_speed,
        c_altitude,
        c_bearing,
    ] = COLUMNS;
    let time = number_in(time, c_time, TIME)?;
    let place = |leaf: &str, value: f64| {
        (
            format!("Vehicle.CurrentLocation.{leaf}"),
            Value::Number(value),
        )
    };
    Ok(Moment {
        time_us: (time * 1e6).round() as i64,
        readings: vec![
            place("Latitude", number_in(latitude, c_latitude, -90.0..=90.0)?),
            place(
                "Longitude",
                number_in(longitude, c_longitude, -180.0..=180.0)?,
            ),
            place("Altitude", number(altitude, c_altitude)?),
            place("Heading", number(bearing, c_bearing)?.rem_euclid(360.0)),
            (
                "Milepost.Gnss.Speed".to_owned(), // km/h
                Value::Number(number_in(speed, c_speed, 0.0..=150.0)? * 3.6),
            ),
        ],
    })
}
