//! The VISS shape: signals with their data points, and values wrapped into strings.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::value::{Datum, Strings};
use super::{NO_TIME, Name, Sink, Time, each, member, refuse_twice};
use crate::reading::{Reading, Value};

/// What VISS allows once or as an array.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// `{"path", "dp"}`
    Node,
    /// `{"value", "ts"}`
    Point,
}

pub(super) struct OneOrMany<'a, 'b>(pub(super) &'a mut Sink<'b>, pub(super) Part);

impl<'de> DeserializeSeed<'de> for OneOrMany<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneOrMany<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.1 {
            Part::Node => "an object with `path` and `dp`, or an array of them",
            Part::Point => "an object with `value` and `ts`, or an array of them",
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        match self.1 {
            Part::Node => Node(self.0).visit_map(map),
            Part::Point => Point(self.0).visit_map(map),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        each(self.0, &mut seq, |sink, seq| match self.1 {
            Part::Node => seq.next_element_seed(Node(sink)),
            Part::Point => seq.next_element_seed(Point(sink)),
        })
    }
}

/// One signal of VISS with its data points.
struct Node<'a, 'b>(&'a mut Sink<'b>);

#[derive(serde::Deserialize, Clone, Copy)]
#[serde(field_identifier, rename_all = "lowercase")]
enum NodeField {
    Path,
    Dp,
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `path` and `dp`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let sink = self.0;
        let start = sink.out.len();
        let mut path = None;
        let mut has_dp = false;
        while let Some(field) = map.next_key::<NodeField>()? {
            match field {
                NodeField::Path => {
                    refuse_twice(sink, "path", path.is_some())?;
                    let read = map.next_value_seed(Name(sink));
                    path = Some(sink.within(member("path"), read)?);
                }
                NodeField::Dp => {
                    refuse_twice(sink, "dp", has_dp)?;
                    has_dp = true;
                    let read = map.next_value_seed(OneOrMany(sink, Part::Point));
                    sink.within(member("dp"), read)?;
                }
            }
        }
        let path = path.ok_or_else(|| de::Error::missing_field("path"))?;
        if !has_dp {
            return Err(de::Error::missing_field("dp"));
        }
        for reading in &mut sink.out[start..] {
            reading.signal = Arc::clone(&path);
        }
        Ok(())
    }
}

/// One data point of VISS. Its reading gets its name when the signal around it ends.
struct Point<'a, 'b>(&'a mut Sink<'b>);

#[derive(serde::Deserialize, Clone, Copy)]
#[serde(field_identifier, rename_all = "lowercase")]
enum PointField {
    Value,
    Ts,
}

impl<'de> DeserializeSeed<'de> for Point<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Point<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `value` and `ts`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let sink = self.0;
        let mut value = None;
        let mut time = None;
        while let Some(field) = map.next_key::<PointField>()? {
            match field {
                PointField::Value => {
                    refuse_twice(sink, "value", value.is_some())?;
                    let read = map.next_value_seed(Datum {
                        strings: Strings::Viss,
                        sink,
                    });
                    value = Some(sink.within(member("value"), read)?);
                }
                PointField::Ts => {
                    refuse_twice(sink, "ts", time.is_some())?;
                    let read = map.next_value_seed(Time);
                    time = Some(sink.within(member("ts"), read)?);
                }
            }
        }
        let Some(value) = value.ok_or_else(|| de::Error::missing_field("value"))? else {
            return Ok(()); // `null`
        };
        let signal = sink.names.unnamed();
        sink.push(Reading {
            signal,
            time_us: time.unwrap_or(NO_TIME),
            value,
        })
        .map_err(|limit| sink.pass(limit))
    }
}

/// A value that VISS wrapped into a string. Only what JSON itself calls a number is one, so that a part
/// number `007` or the word `infinity` stays text.
pub(super) fn unwrapped(text: &str) -> Value {
    match text {
        "true" => return Value::Flag(true),
        "false" => return Value::Flag(false),
        _ => {}
    }
    let looks_like_one = text
        .bytes()
        .next()
        .is_some_and(|first| first == b'-' || first.is_ascii_digit())
        && !text.ends_with(|last: char| last.is_ascii_whitespace());
    if looks_like_one && let Ok(number) = serde_json::from_str::<f64>(text) {
        return Value::Number(number);
    }
    Value::from(text)
}
