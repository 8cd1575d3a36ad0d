//! A reading: what one signal was at one moment. Every decoder of this crate ends here, and rows of
//! `silver.signals` begin here.

use std::sync::Arc;

/// One value of one signal at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The signal: a VSS path (`Vehicle.Speed`) where one is known, else `MESSAGE.SIGNAL` of the DBC.
    /// Shared: decoding a signal seen before copies a pointer, not the name.
    pub signal: Arc<str>,
    /// When the value held, in microseconds since the Unix epoch, UTC.
    pub time_us: i64,
    /// The value, in the unit the catalogue states for the signal.
    pub value: Value,
}

/// The value of a signal.
///
/// Integers become [`Value::Number`]: exact up to 2^53, which no signal of the VSS exceeds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any number. Never NaN or infinite when it came from a decoder of this crate.
    Number(f64),
    /// Yes or no.
    Flag(bool),
    /// Text, one of a signal's allowed words, or, for arrays and structs, their compact JSON text.
    Text(Arc<str>),
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Flag(flag)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(Arc::from(text))
    }
}
