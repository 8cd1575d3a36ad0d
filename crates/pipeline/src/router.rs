//! Router: decides which stream a publish goes to and makes the record.
//!
//! The record is a CloudEvent 1.0 in binary mode. On every publish's way, so: one text buffer holds all header
//! values, and headers, key and ids are slices of it; names are static; the payload is not copied.
//!
//! The id (`ce_id`) is the sender's, if it gives a sane one: then a repetition (QoS 1, or a sender that stores
//! and forwards) has the same id. Otherwise it is the time of receipt and a number that counts up in this
//! process. That needs neither randomness nor state on disk, and is unique together with `ce_source`, as
//! CloudEvents asks: two messages of one device would have to be received in the same microsecond, before and
//! after a restart, under the same number. Refused: partition and offset, which are known only after the write,
//! when the header is already on disk.
//!
//! Everything goes to [`RAW_TELEMETRY`]; the priority is recorded, a stream of its own for messages in a hurry
//! comes with the processor that serves it first.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use eventlog::NewRecord;
use signals::timestamp::{PLAUSIBLE, parse_rfc3339, write_rfc3339};

use crate::cloud_event as ce;
use crate::incoming::Incoming;
use crate::topic::Topic;

/// The stream of everything vehicles send below `dt/`.
pub const RAW_TELEMETRY: &str = "raw.telemetry";

/// A record and the stream it belongs to.
#[derive(Debug)]
pub struct Routed {
    /// The stream.
    pub stream: &'static str,
    /// The record; its key is the vehicle's id, so a vehicle's records stay in order.
    pub record: NewRecord,
}

/// Makes the record of a publish; `None` if it is not for the log, because its topic is no uplink topic.
#[must_use]
pub fn route(incoming: &Incoming<'_>) -> Option<Routed> {
    let topic = Topic::parse(incoming.topic)?;
    let time_us = incoming
        .time
        .and_then(parse_rfc3339)
        .filter(|time_us| PLAUSIBLE.contains(time_us));

    let mut text = Values::with_room_for(incoming);
    let id = match incoming.message_id.filter(|id| is_sane_id(id)) {
        Some(id) => text.put(id),
        None => text.put_new_id(incoming.received_us),
    };
    text.put("/vehicles/");
    let vehicle = text.put(incoming.vehicle_id);
    text.put("/devices/");
    let device = text.put(incoming.device_id);
    let source = vehicle.start - "/vehicles/".len()..device.end;
    let subject = text.put(incoming.topic);
    let kind = subject.end - topic.kind.len()..subject.end;
    let received = text.put_time(incoming.received_us);
    let time = match time_us {
        Some(time_us) => text.put_time(time_us),
        None => received.clone(),
    };
    let content_type = incoming.content_type.map(|it| text.put(it));
    let content_encoding = incoming.content_encoding.map(|it| text.put(it));
    let traceparent = incoming
        .traceparent
        .filter(|it| is_traceparent(it))
        .map(|it| text.put(it));

    let text = Bytes::from(text.0);
    let mut headers = Vec::with_capacity(13);
    let mut add = |name: &'static str, value: Bytes| {
        headers.push((Bytes::from_static(name.as_bytes()), value));
    };
    add(ce::SPEC_VERSION, Bytes::from_static(b"1.0"));
    add(ce::ID, text.slice(id));
    add(ce::SOURCE, text.slice(source));
    add(ce::TYPE, text.slice(kind));
    add(ce::SUBJECT, text.slice(subject));
    add(ce::TIME, text.slice(time));
    if let Some(range) = content_type {
        add(ce::CONTENT_TYPE, text.slice(range));
    }
    if let Some(range) = content_encoding {
        add(ce::CONTENT_ENCODING, text.slice(range));
    }
    add(ce::VEHICLE_ID, text.slice(vehicle.clone()));
    add(ce::DEVICE_ID, text.slice(device));
    add(ce::RECEIVED_TIME, text.slice(received));
    let priority = incoming.priority.as_str();
    add(ce::PRIORITY, Bytes::from_static(priority.as_bytes()));
    if let Some(range) = traceparent {
        add(ce::TRACE_PARENT, text.slice(range));
    }
    Some(Routed {
        stream: RAW_TELEMETRY,
        record: NewRecord {
            key: text.slice(vehicle),
            time_us: time_us.unwrap_or(incoming.received_us),
            headers,
            value: incoming.payload.clone(),
        },
    })
}

/// The values of all headers, one after the other.
struct Values(String);

impl Values {
    fn with_room_for(incoming: &Incoming<'_>) -> Values {
        let given = [
            Some(incoming.topic),
            Some(incoming.vehicle_id),
            Some(incoming.device_id),
            incoming.content_type,
            incoming.content_encoding,
            incoming.message_id,
            incoming.traceparent,
        ];
        let given: usize = given.iter().flatten().map(|text| text.len()).sum();
        // 19 bytes of source, 27 of each time, up to 33 of a new id.
        Values(String::with_capacity(given + 112))
    }

    fn put(&mut self, value: &str) -> Range<usize> {
        let start = self.0.len();
        self.0.push_str(value);
        start..self.0.len()
    }

    fn put_time(&mut self, time_us: i64) -> Range<usize> {
        let start = self.0.len();
        write_rfc3339(time_us, &mut self.0);
        start..self.0.len()
    }

    fn put_new_id(&mut self, received_us: i64) -> Range<usize> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let start = self.0.len();
        // Writing to a `String` cannot fail.
        let _ = write!(self.0, "{received_us:016x}-{number:x}");
        start..self.0.len()
    }
}

/// Visible ASCII of a length that an id needs; anything else would only be trouble further on.
fn is_sane_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `00-{32 hex}-{16 hex}-{2 hex}` (W3C Trace Context, level 1).
fn is_traceparent(text: &str) -> bool {
    text.len() == 55
        && text.bytes().enumerate().all(|(at, byte)| match at {
            2 | 35 | 52 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}
