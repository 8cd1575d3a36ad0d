//! JSON telemetry: from payload bytes to readings, in one pass.
//!
//! Two shapes, told apart by their members, alone or as an array of them:
//!
//! - native: `{"time": RFC 3339 or epoch milliseconds, "signals": {"Vehicle.Speed": 87.2, …}}`;
//! - VISS (W3C Vehicle Information Service Specification 2): `{"values": [{"path": …, "dp": [{"value": …,
//!   "ts": …}]}]}`, also with `data` for `values`, with one object where an array may stand, and without the
//!   envelope (`{"path": …, "dp": …}`). VISS writes every value as a string; strings that are JSON numbers
//!   become numbers, `"true"` and `"false"` flags. Strings of the native shape stay text.
//!
//! Numbers are exact up to fifteen digits; with more, the last bit may differ from the nearest `f64`.
//!
//! A missing time is the time of receipt. `null` is "no value now" and makes no reading. Arrays and objects
//! as values become their compact JSON text. A name given twice in one object makes two readings.
//!
//! Strict: an unknown member is an error, not a shrug, because `"signal"` for `"signals"` would otherwise
//! lose a fleet's data without a word. All or nothing: after an error no reading of the payload is kept.
//!
//! This is on the way of every message, so nothing is built in between: values go from the parser straight
//! into readings. The time may come after the signals and the path after its data points; readings are then
//! filled in place when the object ends.

mod value;
mod viss;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use self::value::{Datum, Strings};
use self::viss::{OneOrMany, Part};
use crate::names::Names;
use crate::reading::Reading;
use crate::timestamp::{PLAUSIBLE, parse_rfc3339};

/// Readings one payload may hold: about 3 MB of memory. Ten minutes of a hundred signals at one per second.
pub const MAX_READINGS: usize = 65_536;
/// Bytes of a signal's name. The longest path of the VSS has 123.
pub const MAX_NAME_BYTES: usize = 256;
/// Arrays and objects inside each other within one value. Struct signals of the VSS need three.
pub const MAX_VALUE_DEPTH: usize = 8;

/// Stands in a reading until its time is known; outside [`PLAUSIBLE`], so never a time that was sent.
const NO_TIME: i64 = i64::MIN;

/// Why a payload is not telemetry we can read. The text names the place (`values[3].dp[0].ts`), what is
/// wrong there and what to send instead; it quotes at most a few dozen characters of the payload.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or cut short.
    #[error("{place}: not JSON, or cut short")]
    Syntax {
        /// Where in the payload.
        place: String,
        /// What the parser met, with line and column.
        source: serde_json::Error,
    },
    /// JSON, but not of a shape we know, or with a value that cannot be.
    #[error("{place}: {problem}")]
    Shape {
        /// Where in the payload.
        place: String,
        /// What is wrong and what to send instead, with line and column.
        problem: String,
    },
    /// More than one payload may hold.
    #[error("{place}: {limit}")]
    Limit {
        /// Where in the payload.
        place: String,
        /// The limit that is passed.
        limit: Limit,
    },
}

/// The limits of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// More than [`MAX_READINGS`].
    #[error("more than {MAX_READINGS} readings in one message; send them in several")]
    Readings,
    /// A name longer than [`MAX_NAME_BYTES`].
    #[error("the signal's name has more than {MAX_NAME_BYTES} bytes; send a VSS path")]
    NameBytes,
    /// A value nested deeper than [`MAX_VALUE_DEPTH`].
    #[error(
        "the value is nested more than {MAX_VALUE_DEPTH} deep; send its parts as signals of their own"
    )]
    ValueDepth,
}

thread_local! {
    static NAMES: RefCell<Names> = RefCell::default();
}

/// Appends the readings of a JSON payload to `out`. `received_us` (microseconds since the epoch) is the
/// time of readings that state none.
///
/// # Errors
/// [`DecodeError`]; `out` is then as it was before.
pub fn decode_json(
    payload: &[u8],
    received_us: i64,
    out: &mut Vec<Reading>,
) -> Result<(), DecodeError> {
    let start = out.len();
    NAMES.with_borrow_mut(|names| {
        let mut sink = Sink {
            out,
            full: start.saturating_add(MAX_READINGS),
            received_us,
            names,
            passed: None,
            place: Vec::new(),
        };
        let mut json = serde_json::Deserializer::from_slice(payload);
        let done = Payload(&mut sink)
            .deserialize(&mut json)
            .and_then(|()| json.end());
        done.map_err(|error| {
            let (place, passed) = (sink.place(), sink.passed);
            sink.out.truncate(start);
            match passed {
                Some(limit) => DecodeError::Limit { place, limit },
                None if error.is_data() => DecodeError::Shape {
                    place,
                    problem: bounded(&error),
                },
                None => DecodeError::Syntax {
                    place,
                    source: error,
                },
            }
        })
    })
}

/// Where readings go, and what is known about the way there.
struct Sink<'a> {
    out: &'a mut Vec<Reading>,
    /// Length of `out` at which the payload is too large.
    full: usize,
    received_us: i64,
    names: &'a mut Names,
    /// The limit that ended the decoding, if one did.
    passed: Option<Limit>,
    /// Steps from the root to the error, innermost first: written while an error travels outwards, so the
    /// good case pays nothing for it.
    place: Vec<Step>,
}

enum Step {
    Index(usize),
    Member(Cow<'static, str>),
}

impl Sink<'_> {
    fn push(&mut self, reading: Reading) -> Result<(), Limit> {
        if self.out.len() >= self.full {
            return Err(Limit::Readings);
        }
        self.out.push(reading);
        Ok(())
    }

    /// Ends the decoding at a limit.
    fn pass<E: de::Error>(&mut self, limit: Limit) -> E {
        self.passed = Some(limit);
        E::custom(limit)
    }

    /// Notes the step an error came out of.
    fn within<T, E>(&mut self, step: impl FnOnce() -> Step, result: Result<T, E>) -> Result<T, E> {
        if result.is_err() {
            self.place.push(step());
        }
        result
    }

    fn place(&self) -> String {
        if self.place.is_empty() {
            return "payload".to_owned();
        }
        let mut place = String::new();
        for step in self.place.iter().rev() {
            // Writing to a `String` cannot fail.
            let _ = match step {
                Step::Index(index) => write!(place, "[{index}]"),
                Step::Member(name) if place.is_empty() => write!(place, "{name}"),
                Step::Member(name) => write!(place, ".{name}"),
            };
        }
        place
    }
}

fn member(name: &'static str) -> impl FnOnce() -> Step {
    move || Step::Member(Cow::Borrowed(name))
}

/// The first few dozen characters of something a vehicle sent, fit for an error text.
fn excerpt(text: &str) -> String {
    const CHARACTERS: usize = 48;
    let mut short: String = text
        .chars()
        .take(CHARACTERS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(CHARACTERS).is_some() {
        short.push('…');
    }
    short
}

/// The error's text without the megabyte of payload that it may quote.
fn bounded(error: &serde_json::Error) -> String {
    const CHARACTERS: usize = 320;
    let text = error.to_string();
    match text.char_indices().nth(CHARACTERS) {
        None => text,
        Some((end, _)) => format!(
            "{}… at line {} column {}",
            &text[..end],
            error.line(),
            error.column()
        ),
    }
}

/// The whole payload: one message or an array of them.
struct Payload<'a, 'b>(&'a mut Sink<'b>);

impl<'de> DeserializeSeed<'de> for Payload<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Payload<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `signals` or `values`, or an array of such objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Message(self.0).visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        each(self.0, &mut seq, |sink, seq| {
            seq.next_element_seed(Message(sink))
        })
    }
}

/// Takes all elements of an array; `next` takes one and says whether there was one.
fn each<'de, 'b, A: SeqAccess<'de>>(
    sink: &mut Sink<'b>,
    seq: &mut A,
    mut next: impl FnMut(&mut Sink<'b>, &mut A) -> Result<Option<()>, A::Error>,
) -> Result<(), A::Error> {
    let mut index = 0;
    loop {
        let element = next(sink, seq);
        if sink.within(|| Step::Index(index), element)?.is_none() {
            return Ok(());
        }
        index += 1;
    }
}

/// One message of either shape.
struct Message<'a, 'b>(&'a mut Sink<'b>);

impl<'de> DeserializeSeed<'de> for Message<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Message<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `signals` or `values`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let sink = self.0;
        let start = sink.out.len();
        let mut time = None;
        let mut path = None;
        let mut shape = None;
        let mut has_dp = false;
        while let Some(field) = map.next_key::<Field>()? {
            let name = field.name();
            match field {
                Field::Time | Field::Ts => {
                    refuse_twice(sink, name, time.is_some())?;
                    let read = map.next_value_seed(Time);
                    time = Some(sink.within(member(name), read)?);
                }
                Field::Signals => {
                    refuse_two_shapes(sink, name, shape.replace(name))?;
                    let read = map.next_value_seed(Signals(sink));
                    sink.within(member(name), read)?;
                }
                Field::Values | Field::Data => {
                    refuse_two_shapes(sink, name, shape.replace(name))?;
                    let read = map.next_value_seed(OneOrMany(sink, Part::Node));
                    sink.within(member(name), read)?;
                }
                Field::Path => {
                    refuse_twice(sink, name, path.is_some())?;
                    let read = map.next_value_seed(Name(sink));
                    path = Some(sink.within(member(name), read)?);
                }
                Field::Dp => {
                    refuse_two_shapes(sink, name, shape.replace(name))?;
                    has_dp = true;
                    let read = map.next_value_seed(OneOrMany(sink, Part::Point));
                    sink.within(member(name), read)?;
                }
                Field::Envelope => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match (shape, path) {
            (None, None) => {
                return Err(de::Error::custom(
                    "nothing to read here; send `signals` (native), `values` (VISS) or `path` with `dp`",
                ));
            }
            (None, Some(_)) => return Err(de::Error::missing_field("dp")),
            (Some("dp"), None) => return Err(de::Error::missing_field("path")),
            (Some(_), None) => {}
            (Some(_), Some(path)) if has_dp => {
                for reading in &mut sink.out[start..] {
                    reading.signal = Arc::clone(&path);
                }
            }
            (Some(other), Some(_)) => {
                return Err(de::Error::custom(format_args!(
                    "`path` belongs with `dp`, not with `{other}`; remove it"
                )));
            }
        }
        let time = time.unwrap_or(sink.received_us);
        for reading in &mut sink.out[start..] {
            if reading.time_us == NO_TIME {
                reading.time_us = time;
            }
        }
        Ok(())
    }
}

fn refuse_twice<E: de::Error>(
    sink: &mut Sink<'_>,
    name: &'static str,
    seen: bool,
) -> Result<(), E> {
    if seen {
        return sink.within(
            member(name),
            Err(E::custom("given twice in one object; send it once")),
        );
    }
    Ok(())
}

fn refuse_two_shapes<E: de::Error>(
    sink: &mut Sink<'_>,
    name: &'static str,
    earlier: Option<&'static str>,
) -> Result<(), E> {
    match earlier {
        None => Ok(()),
        Some(earlier) => sink.within(
            member(name),
            Err(E::custom(format_args!(
                "`{earlier}` is there already; send one of `signals`, `values`, `data` or `dp` per object"
            ))),
        ),
    }
}

/// Members of a message.
#[derive(Clone, Copy)]
enum Field {
    Time,
    Ts,
    Signals,
    Values,
    Data,
    Path,
    Dp,
    /// What VISS puts around the data and we have no use for.
    Envelope,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Field::Time => "time",
            Field::Ts => "ts",
            Field::Signals => "signals",
            Field::Values => "values",
            Field::Data => "data",
            Field::Path => "path",
            Field::Dp => "dp",
            Field::Envelope => "action",
        }
    }
}

impl<'de> de::Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Field, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "time" => Field::Time,
                    "ts" => Field::Ts,
                    "signals" => Field::Signals,
                    "values" => Field::Values,
                    "data" => Field::Data,
                    "path" => Field::Path,
                    "dp" => Field::Dp,
                    "action" | "requestId" | "subscriptionId" => Field::Envelope,
                    other => {
                        return Err(E::custom(format_args!(
                            "unknown member `{}`; `time` and `signals` (native), `values`, `path`, `dp` \
                             and `ts` (VISS) are known, anything else goes below `signals`",
                            excerpt(other)
                        )));
                    }
                })
            }
        }
        json.deserialize_str(Key)
    }
}

/// A moment: RFC 3339 text or epoch milliseconds.
struct Time;

impl<'de> DeserializeSeed<'de> for Time {
    type Value = i64;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<i64, D::Error> {
        json.deserialize_any(self)
    }
}

impl Visitor<'_> for Time {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time: RFC 3339 text or epoch milliseconds")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<i64, E> {
        let Some(time_us) = parse_rfc3339(text) else {
            return Err(E::custom(format_args!(
                "`{}` is no RFC 3339 time; send e.g. \"2026-11-20T10:00:00.25Z\", with the offset",
                excerpt(text)
            )));
        };
        in_range(time_us).ok_or_else(|| out_of_range(text))
    }

    fn visit_u64<E: de::Error>(self, ms: u64) -> Result<i64, E> {
        i64::try_from(ms)
            .ok()
            .and_then(|ms| ms.checked_mul(1_000))
            .and_then(in_range)
            .ok_or_else(|| out_of_range(ms))
    }

    fn visit_i64<E: de::Error>(self, ms: i64) -> Result<i64, E> {
        ms.checked_mul(1_000)
            .and_then(in_range)
            .ok_or_else(|| out_of_range(ms))
    }

    fn visit_f64<E: de::Error>(self, ms: f64) -> Result<i64, E> {
        // The cast saturates, and what saturates is out of range.
        in_range((ms * 1_000.0).round() as i64).ok_or_else(|| out_of_range(format_args!("{ms:e}")))
    }
}

fn in_range(time_us: i64) -> Option<i64> {
    PLAUSIBLE.contains(&time_us).then_some(time_us)
}

fn out_of_range<E: de::Error>(time: impl fmt::Display) -> E {
    E::custom(format_args!(
        "{time} is not between 1970 and 2100; numbers are milliseconds since the epoch"
    ))
}

/// The `signals` object of the native shape.
struct Signals<'a, 'b>(&'a mut Sink<'b>);

impl<'de> DeserializeSeed<'de> for Signals<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Signals<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of signal names and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let sink = self.0;
        while let Some(signal) = map.next_key_seed(Name(sink))? {
            let read = map.next_value_seed(Datum {
                strings: Strings::Text,
                sink,
            });
            let step = || Step::Member(Cow::Owned(excerpt(&signal)));
            let Some(value) = sink.within(step, read)? else {
                continue;
            };
            sink.push(Reading {
                signal,
                time_us: NO_TIME,
                value,
            })
            .map_err(|limit| sink.pass::<A::Error>(limit))?;
        }
        Ok(())
    }
}

/// A signal's name, shared with earlier readings.
struct Name<'a, 'b>(&'a mut Sink<'b>);

impl<'de> DeserializeSeed<'de> for Name<'_, '_> {
    type Value = Arc<str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Arc<str>, D::Error> {
        json.deserialize_any(self)
    }
}

impl Visitor<'_> for Name<'_, '_> {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a signal's name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Arc<str>, E> {
        let sink = self.0;
        if let Some(known) = sink.names.known(name) {
            return Ok(known);
        }
        if name.len() > MAX_NAME_BYTES {
            sink.place.push(Step::Member(Cow::Owned(excerpt(name))));
            return Err(sink.pass(Limit::NameBytes));
        }
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(E::custom(format_args!(
                "`{}` is no signal name: empty, or with control characters; send a VSS path",
                excerpt(name)
            )));
        }
        Ok(sink.names.share(name))
    }
}
