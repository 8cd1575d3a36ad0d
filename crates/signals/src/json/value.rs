//! Values: a scalar as it is, an array or object as its compact JSON text, written while it is read.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::viss::unwrapped;
use super::{Limit, MAX_VALUE_DEPTH, Sink};
use crate::reading::Value;

/// How strings are to be read.
#[derive(Clone, Copy)]
pub(super) enum Strings {
    /// As they are.
    Text,
    /// As VISS writes all values.
    Viss,
}

/// A value; `None` for `null`.
pub(super) struct Datum<'a, 'b> {
    pub(super) strings: Strings,
    pub(super) sink: &'a mut Sink<'b>,
}

impl<'de> DeserializeSeed<'de> for Datum<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Datum<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(Some(Value::Flag(flag)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(Value::Number(number as f64)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(Value::Number(number as f64)))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Some(Value::Number(number)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(match self.strings {
            Strings::Text => Value::from(text),
            Strings::Viss => unwrapped(text),
        }))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        let mut text = Vec::new();
        JsonText::outermost(self.sink, &mut text).visit_seq(seq)?;
        json_text(text).map(Some)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let mut text = Vec::new();
        JsonText::outermost(self.sink, &mut text).visit_map(map)?;
        json_text(text).map(Some)
    }
}

fn json_text<E: de::Error>(text: Vec<u8>) -> Result<Value, E> {
    String::from_utf8(text)
        .map(|text| Value::Text(Arc::from(text)))
        .map_err(E::custom)
}

/// Writes an array or object, as it is read, as compact JSON text.
struct JsonText<'a, 'b> {
    sink: &'a mut Sink<'b>,
    text: &'a mut Vec<u8>,
    depth: usize,
}

impl<'a, 'b> JsonText<'a, 'b> {
    fn outermost(sink: &'a mut Sink<'b>, text: &'a mut Vec<u8>) -> JsonText<'a, 'b> {
        JsonText {
            sink,
            text,
            depth: 0,
        }
    }

    fn deeper<E: de::Error>(&mut self) -> Result<JsonText<'_, 'b>, E> {
        if self.depth >= MAX_VALUE_DEPTH {
            return Err(self.sink.pass(Limit::ValueDepth));
        }
        Ok(JsonText {
            sink: self.sink,
            text: self.text,
            depth: self.depth + 1,
        })
    }

    fn scalar<E: de::Error>(self, value: impl serde::Serialize) -> Result<(), E> {
        serde_json::to_writer(self.text, &value).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for JsonText<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonText<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<(), E> {
        self.scalar(flag)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<(), E> {
        self.scalar(number)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<(), E> {
        self.scalar(number)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<(), E> {
        self.scalar(number)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.scalar(text)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.scalar(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        inner.text.push(b'[');
        loop {
            let element = JsonText {
                sink: inner.sink,
                text: inner.text,
                depth: inner.depth,
            };
            if seq.next_element_seed(element)?.is_none() {
                break;
            }
            inner.text.push(b',');
        }
        close(inner.text, b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        inner.text.push(b'{');
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            serde_json::to_writer(&mut *inner.text, &key).map_err(de::Error::custom)?;
            inner.text.push(b':');
            map.next_value_seed(JsonText {
                sink: inner.sink,
                text: inner.text,
                depth: inner.depth,
            })?;
            inner.text.push(b',');
        }
        close(inner.text, b'}');
        Ok(())
    }
}

/// Ends an array or object, in place of the comma after its last element.
fn close(text: &mut Vec<u8>, end: u8) {
    if text.last() == Some(&b',') {
        text.pop();
    }
    text.push(end);
}
