//! A message as `bronze.messages` keeps it: the record's envelope read back, the payload as it came.

use bytes::Bytes;
use eventlog::{Offset, Record};
use signals::timestamp::parse_rfc3339;

use crate::cloud_event as ce;
use crate::text::Text;

/// A message out of the log. Shares the record's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `ce_id`; unique together with `source`.
    pub id: Text,
    /// `ce_source`: `/vehicles/{vehicle}/devices/{device}`.
    pub source: Text,
    /// `ce_type`: the last levels of the topic.
    pub kind: Text,
    /// `ce_subject`: the topic it was published to.
    pub topic: Text,
    /// `ce_vehicleid`.
    pub vehicle_id: Text,
    /// `ce_deviceid`.
    pub device_id: Text,
    /// When it happened as the sender says, else when it was received; microseconds since the epoch.
    pub time_us: i64,
    /// `ce_receivedtime`: when the broker received it; microseconds since the epoch.
    pub received_us: i64,
    /// `content-type`, if the sender gave one.
    pub content_type: Option<Text>,
    /// `content-encoding`, if the sender gave one. The payload is still encoded so.
    pub content_encoding: Option<Text>,
    /// `ce_priority`.
    pub priority: Text,
    /// `ce_traceparent`, if the sender gave one.
    pub traceparent: Option<Text>,
    /// The payload as it came.
    pub payload: Bytes,
    /// Where the record lies in the log: partition …
    pub partition: u16,
    /// … and position.
    pub offset: Offset,
}

impl Message {
    /// Reads a record's envelope. Total: a record that another program wrote may lack headers; its id is then
    /// its place in the log, its vehicle its key, its times the record's, and the rest is empty.
    #[must_use]
    pub fn from_record(record: &Record) -> Message {
        let mut message = Message {
            id: Text::default(),
            source: Text::default(),
            kind: Text::default(),
            topic: Text::default(),
            vehicle_id: Text::default(),
            device_id: Text::default(),
            time_us: record.time_us,
            received_us: record.time_us,
            content_type: None,
            content_encoding: None,
            priority: Text::default(),
            traceparent: None,
            payload: record.value.clone(),
            partition: record.partition,
            offset: record.offset,
        };
        let mut time: Option<&Bytes> = None;
        let mut received: Option<&Bytes> = None;
        for (name, value) in &record.headers {
            let Ok(name) = std::str::from_utf8(name) else {
                continue;
            };
            let text = || Text::from(value.clone());
            match name {
                ce::ID => message.id = text(),
                ce::SOURCE => message.source = text(),
                ce::TYPE => message.kind = text(),
                ce::SUBJECT => message.topic = text(),
                ce::TIME => time = Some(value),
                ce::RECEIVED_TIME => received = Some(value),
                ce::VEHICLE_ID => message.vehicle_id = text(),
                ce::DEVICE_ID => message.device_id = text(),
                ce::CONTENT_TYPE => message.content_type = Some(text()),
                ce::CONTENT_ENCODING => message.content_encoding = Some(text()),
                ce::PRIORITY => message.priority = text(),
                ce::TRACE_PARENT => message.traceparent = Some(text()),
                _ => {}
            }
        }
        // The record's time is `ce_time`, and mostly the time of receipt too: then there is nothing to parse.
        if received != time
            && let Some(received_us) = received
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .and_then(parse_rfc3339)
        {
            message.received_us = received_us;
        }
        if message.id.is_empty() {
            let place = format!("{}-{}", record.partition, record.offset);
            message.id = Text::from(Bytes::from(place));
        }
        if message.vehicle_id.is_empty() {
            message.vehicle_id = Text::from(record.key.clone());
        }
        message
    }
}
