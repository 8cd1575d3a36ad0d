//! Trip: from ignition on to ignition off, with a name of its own.

use crate::message::{Channel, Message, Telemetry};

/// Signals the VSS has no path for lie outside its tree, under a root of our own.
const TRIP_ID: &str = "Milepost.Trip.Id";
const TRIP_STATE: &str = "Milepost.Trip.State";

/// How a trip is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TripState {
    /// Ignition on.
    Started,
    /// Ignition off.
    Ended,
    /// The vehicle stopped reporting while under way.
    Interrupted,
}

impl TripState {
    fn word(self) -> &'static str {
        match self {
            Self::Started => "STARTED",
            Self::Ended => "ENDED",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

/// A trip under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Trip {
    /// Unique for all vehicles and times: vehicle and moment of start.
    pub id: String,
    /// Microseconds since the Unix epoch.
    pub started_us: i64,
    /// Metres so far.
    pub distance: f64,
}

impl Trip {
    pub(super) fn begin(vehicle: &str, started_us: i64) -> Self {
        Self {
            id: format!("{vehicle}-{}", started_us / 1_000),
            started_us,
            distance: 0.0,
        }
    }

    /// Seconds since it began.
    pub fn duration(&self, now_us: i64) -> f64 {
        (now_us - self.started_us).max(0) as f64 / 1e6
    }

    /// km/h over all of it so far.
    pub fn average_speed(&self, now_us: i64) -> f64 {
        let seconds = self.duration(now_us);
        if seconds > 0.0 {
            self.distance / seconds * 3.6
        } else {
            0.0
        }
    }

    /// The message that announces its state, in the words of the VSS: `Vehicle.TripDuration` is set
    /// to 0 at the start and to the actual duration at the end.
    pub(super) fn announce(&self, state: TripState, now_us: i64) -> Message {
        let mut telemetry = Telemetry::new();
        telemetry.moment(now_us);
        telemetry.text(TRIP_ID, &self.id);
        telemetry.text(TRIP_STATE, state.word());
        if let Ok(start) = jiff::Timestamp::from_microsecond(self.started_us) {
            telemetry.text("Vehicle.StartTime", &start.to_string()); // RFC 3339, UTC
        }
        let duration = match state {
            TripState::Started => 0.0,
            TripState::Ended | TripState::Interrupted => self.duration(now_us),
        };
        telemetry.number("Vehicle.TripDuration", duration, 1);
        telemetry.number("Vehicle.TraveledDistanceSinceStart", self.distance, 0);
        telemetry.number("Vehicle.AverageSpeed", self.average_speed(now_us), 1);
        Message {
            time_us: now_us,
            channel: Channel::Trip,
            payload: telemetry.take(),
        }
    }
}
