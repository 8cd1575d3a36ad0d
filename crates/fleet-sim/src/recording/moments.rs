//! Moments: readings that share a time, gathered into messages of native telemetry.

use crate::message::{Channel, Message, Telemetry};

use super::RecordingError;

/// A value of a recording.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(f64),
    Flag(bool),
    Text(String),
}

/// What was known at one time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    /// Microseconds since the Unix epoch.
    pub(super) time_us: i64,
    pub(super) readings: Vec<(String, Value)>,
}

/// Payload size at which a message is closed early: far below any broker's packet limit.
const LARGEST_PAYLOAD: usize = 64 * 1024;

/// Gathers moments until a message spans `window_us` or is large.
pub(super) struct Gathered<S> {
    source: S,
    channel: Channel,
    window_us: i64,
    ahead: Option<Moment>,
    telemetry: Telemetry,
}

impl<S> Gathered<S> {
    pub(super) fn new(source: S, channel: Channel, window_us: i64) -> Self {
        Self {
            source,
            channel,
            window_us,
            ahead: None,
            telemetry: Telemetry::new(),
        }
    }
}

impl<S: Iterator<Item = Result<Moment, RecordingError>>> Iterator for Gathered<S> {
    type Item = Result<Message, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut span: Option<(i64, i64)> = None;
        loop {
            let moment = match self.ahead.take() {
                Some(moment) => moment,
                None => match self.source.next() {
                    Some(Ok(moment)) => moment,
                    Some(Err(error)) => return Some(Err(error)),
                    None => break,
                },
            };
            let (first, last) = span.unwrap_or((moment.time_us, moment.time_us));
            // A clock that went back begins a new message, as does a full window.
            let fits = (first..first.saturating_add(self.window_us)).contains(&moment.time_us);
            if span.is_some() && (!fits || self.telemetry.len() > LARGEST_PAYLOAD) {
                self.ahead = Some(moment);
                break;
            }
            span = Some((first, last.max(moment.time_us)));
            self.telemetry.moment(moment.time_us);
            for (name, value) in &moment.readings {
                match value {
                    Value::Number(number) => self.telemetry.exact(name, *number),
                    Value::Flag(flag) => self.telemetry.flag(name, *flag),
                    Value::Text(text) => self.telemetry.text(name, text),
                }
            }
        }
        let (_, last) = span?;
        Some(Ok(Message {
            time_us: last,
            channel: self.channel,
            payload: self.telemetry.take(),
        }))
    }
}
