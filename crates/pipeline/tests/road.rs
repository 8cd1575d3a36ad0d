//! The road of a message: from the broker's publish to the log's record, and from there to bronze, silver or
//! the dead letters.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use eventlog::{NewRecord, Offset, Record};
use pipeline::{Incoming, Message, ModelDecoders, Processed, Processor, route};
use proptest::prelude::*;
use signals::can::encode_frames;
use signals::{CAN_CONTENT_TYPE, CanData, CanDecoder, CanFrame, CanId, Value};

const RECEIVED: i64 = 1_533_226_488_301_000;
const TOPIC: &str = "dt/telemetry/prod/car-1/events/door";

fn incoming(payload: impl Into<Bytes>) -> Incoming<'static> {
    Incoming::new(TOPIC, "car-1", "tcu-7", payload.into(), RECEIVED)
}

/// What the log gives back.
fn stored(new: NewRecord) -> Record {
    Record {
        partition: 3,
        offset: Offset::new(41),
        time_us: new.time_us,
        key: new.key,
        headers: new.headers,
        value: new.value,
    }
}

fn record(incoming: &Incoming<'_>) -> Record {
    stored(route(incoming).expect("an uplink topic").record)
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    record
        .header(name)
        .map(|value| std::str::from_utf8(value).expect("headers are text"))
}

/// Vehicle `car-1` has a model with one CAN message; no other vehicle has a model.
fn processor() -> Processor {
    let dbc = "BO_ 16 M: 8 X\n SG_ S : 0|8@1+ (0.5,0) [0|0] \"km/h\" X\n";
    let decoder = Arc::new(CanDecoder::new(dbc, None).expect("a good DBC"));
    let models: ModelDecoders =
        Arc::new(move |vehicle| (vehicle == "car-1").then(|| decoder.clone()));
    Processor::new(models)
}

fn process(incoming: &Incoming<'_>) -> Processed {
    processor().process(&record(incoming))
}

fn shown(processed: &Processed) -> String {
    let readings = processed.readings.iter().map(|reading| {
        let value = match &reading.value {
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Text(text) => format!("'{text}'"),
        };
        format!("{}@{}={value}", reading.signal, reading.time_us)
    });
    readings.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_publish_becomes_a_cloud_event_of_its_vehicle() {
    let publish = Incoming {
        content_type: Some("application/json"),
        ..incoming("{}").with_user_properties([
            ("id", "m-1"),
            ("colour", "red"),
            ("time", "2018-08-02T18:14:40+02:00"),
            ("content-encoding", "identity"),
            ("priority", "high"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("id", "a second one does not count"),
        ])
    };
    let routed = route(&publish).expect("an uplink topic");
    assert_eq!(routed.stream, "raw.telemetry");
    assert_eq!(&*routed.record.key, b"car-1");
    assert_eq!(routed.record.time_us, 1_533_226_480_000_000);
    let found: Vec<_> = routed
        .record
        .headers
        .iter()
        .map(|(name, value)| {
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("text");
            format!("{}: {}", text(name), text(value))
        })
        .collect();
    assert_eq!(
        found,
        [
            "ce_specversion: 1.0",
            "ce_id: m-1",
            "ce_source: /vehicles/car-1/devices/tcu-7",
            "ce_type: events/door",
            "ce_subject: dt/telemetry/prod/car-1/events/door",
            "ce_time: 2018-08-02T16:14:40.000000Z",
            "content-type: application/json",
            "content-encoding: identity",
            "ce_vehicleid: car-1",
            "ce_deviceid: tcu-7",
            "ce_receivedtime: 2018-08-02T16:14:48.301000Z",
            "ce_priority: high",
            "ce_traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ]
    );
}

#[test]
fn what_is_not_said_is_not_written_and_what_is_not_sane_is_not_believed() {
    let long = "x".repeat(129);
    for (id, time, traceparent) in [
        (None, None, None),
        (Some(""), Some("yesterday"), Some("")),
        (
            Some("with space"),
            Some("9999-01-01T00:00:00Z"),
            Some("00-XYZ"),
        ),
        (
            Some("ünïcode"),
            Some("2018-08-02"),
            Some("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"),
        ),
        (
            Some(&*long),
            Some(""),
            Some("00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ),
    ] {
        let publish = Incoming {
            message_id: id,
            time,
            traceparent,
            ..incoming("{}")
        };
        let record = record(&publish);
        let own = header(&record, "ce_id").expect("always there");
        assert_ne!(Some(own), id);
        assert!(own.starts_with(&format!("{RECEIVED:016x}-")), "{own}");
        assert_eq!(record.time_us, RECEIVED);
        assert_eq!(
            header(&record, "ce_time"),
            header(&record, "ce_receivedtime")
        );
        assert_eq!(header(&record, "ce_priority"), Some("low"));
        for absent in ["content-type", "content-encoding", "ce_traceparent"] {
            assert_eq!(header(&record, absent), None, "{absent}");
        }
    }
}

#[test]
fn messages_without_an_id_get_different_ones() {
    let ids: BTreeSet<_> = (0..1_000)
        .map(|_| {
            header(&record(&incoming("{}")), "ce_id")
                .expect("an id")
                .to_owned()
        })
        .collect();
    assert_eq!(ids.len(), 1_000);
}

#[test]
fn other_topics_are_not_for_the_log() {
    for topic in [
        "bc/news",
        "$milepost/shadow",
        "dt/too/short",
        "dt/a/b/car-1/",
    ] {
        let publish = Incoming {
            topic,
            ..incoming("{}")
        };
        assert!(route(&publish).is_none(), "{topic}");
    }
}

#[test]
fn bronze_gets_back_what_was_sent() {
    let publish = Incoming {
        content_type: Some("application/octet-stream"),
        ..incoming(&b"\x00\xFF"[..])
            .with_user_properties([("id", "m-1"), ("time", "2018-08-02T16:14:40Z")])
    };
    let message = Message::from_record(&record(&publish));
    assert_eq!(message.id, "m-1");
    assert_eq!(message.source, "/vehicles/car-1/devices/tcu-7");
    assert_eq!(message.kind, "events/door");
    assert_eq!(message.topic, TOPIC);
    assert_eq!(
        (&*message.vehicle_id, &*message.device_id),
        ("car-1", "tcu-7")
    );
    assert_eq!(message.time_us, 1_533_226_480_000_000);
    assert_eq!(message.received_us, RECEIVED);
    assert_eq!(
        message.content_type.as_deref(),
        Some("application/octet-stream")
    );
    assert_eq!(message.content_encoding, None);
    assert_eq!(message.priority, "low");
    assert_eq!(message.payload, &b"\x00\xFF"[..]);
    assert_eq!((message.partition, message.offset), (3, Offset::new(41)));

    let message = Message::from_record(&record(&incoming("")));
    assert_eq!((message.time_us, message.received_us), (RECEIVED, RECEIVED));
}

#[test]
fn a_record_of_another_program_is_a_message_too() {
    let foreign = stored(NewRecord {
        key: Bytes::from_static(b"car-9"),
        time_us: 5,
        headers: vec![
            (Bytes::from_static(b"\xFF"), Bytes::from_static(b"?")),
            (
                Bytes::from_static(b"ce_type"),
                Bytes::from_static(b"caf\xE9"),
            ),
            (
                Bytes::from_static(b"ce_receivedtime"),
                Bytes::from_static(b"noon"),
            ),
        ],
        value: Bytes::from_static(b"{\"signals\":{\"A\":1}}"),
    });
    let processed = processor().process(&foreign);
    assert_eq!(processed.message.id, "3-41");
    assert_eq!(processed.message.vehicle_id, "car-9");
    assert_eq!(processed.message.kind, "caf\u{FFFD}");
    assert_eq!(
        (processed.message.time_us, processed.message.received_us),
        (5, 5)
    );
    assert_eq!(shown(&processed), "A@5=1");
}

#[test]
fn payloads_become_readings_by_their_type() {
    let native = r#"{"time": 1000, "signals": {"Vehicle.Speed": 87.5}}"#;
    let viss = r#"[{"path": "Vehicle.Speed", "dp": {"value": "12"}}]"#;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, native.as_bytes()).expect("to memory");
    let gzip = gzip.finish().expect("to memory");
    let zstd = zstd::encode_all(native.as_bytes(), 1).expect("to memory");
    type Row<'a> = (&'a str, &'a [u8], Option<&'a str>, Option<&'a str>, &'a str);
    let rows: [Row<'_>; 10] = [
        (
            "declared",
            native.as_bytes(),
            Some("application/json"),
            None,
            "Vehicle.Speed@1000000=87.5",
        ),
        (
            "sniffed",
            native.as_bytes(),
            None,
            None,
            "Vehicle.Speed@1000000=87.5",
        ),
        (
            "VISS, received now",
            viss.as_bytes(),
            None,
            None,
            "Vehicle.Speed@1533226488301000=12",
        ),
        (
            "gzip",
            &gzip,
            Some("application/json"),
            Some("gzip"),
            "Vehicle.Speed@1000000=87.5",
        ),
        (
            "gzip, sniffed",
            &gzip,
            None,
            Some("gzip"),
            "Vehicle.Speed@1000000=87.5",
        ),
        (
            "zstd",
            &zstd,
            None,
            Some("zstd"),
            "Vehicle.Speed@1000000=87.5",
        ),
        (
            "opaque by type",
            native.as_bytes(),
            Some("text/plain"),
            None,
            "",
        ),
        (
            "opaque, whatever its encoding",
            b"?",
            Some("image/png"),
            Some("br"),
            "",
        ),
        ("opaque by looks", b"\x89PNG", None, None, ""),
        ("empty", b"", None, None, ""),
    ];
    for (name, payload, content_type, content_encoding, expected) in rows {
        let publish = Incoming {
            content_type,
            content_encoding,
            ..incoming(payload.to_vec())
        };
        let processed = process(&publish);
        assert_eq!(processed.dead, None, "{name}");
        assert_eq!(shown(&processed), expected, "{name}");
        assert_eq!(
            processed.message.payload, payload,
            "{name}: bronze keeps the bytes as they came"
        );
    }
}

fn can_payload(ids: &[u16]) -> Vec<u8> {
    let frames: Vec<_> = ids
        .iter()
        .map(|&id| CanFrame {
            time_us: RECEIVED,
            bus: 0,
            id: CanId::Standard(id),
            data: CanData::new(&[100]).expect("one byte"),
        })
        .collect();
    encode_frames(&frames).expect("good frames")
}

#[test]
fn can_frames_are_decoded_with_the_dbc_of_the_vehicles_model() {
    let publish = Incoming {
        content_type: Some(CAN_CONTENT_TYPE),
        ..incoming(can_payload(&[16, 17, 16]))
    };
    let processed = process(&publish);
    assert_eq!(processed.dead, None);
    assert_eq!(
        shown(&processed),
        "M.S@1533226488301000=50 M.S@1533226488301000=50"
    );
    let can = processed.can.expect("CAN frames");
    assert_eq!((can.frames, can.unknown), (3, 1));
}

#[test]
fn what_cannot_be_decoded_is_a_dead_letter_with_its_reason_and_its_bytes() {
    let json = Some("application/json");
    let can = Some(CAN_CONTENT_TYPE);
    type Row<'a> = (&'a str, Vec<u8>, Option<&'a str>, Option<&'a str>, &'a str);
    let rows: [Row<'_>; 8] = [
        (
            "car-1",
            b"{\"signals\": {\"A\": }}".to_vec(),
            None,
            None,
            "signals.A: not JSON, or cut short: expected value at line 1 column 19",
        ),
        (
            "car-1",
            b"[{\"signals\": {\"A\": 1}}, {\"signal\": 1}]".to_vec(),
            json,
            None,
            "[1]: unknown member `signal`",
        ),
        ("car-1", b"hello".to_vec(), json, None, "payload: not JSON"),
        (
            "car-1",
            b"{}".to_vec(),
            None,
            Some("br"),
            "content-encoding `br` is unknown; send gzip, zstd or none",
        ),
        (
            "car-1",
            b"{\"signals\": {}} as plain text".to_vec(),
            None,
            Some("gzip"),
            "the payload is not gzip, or cut short: invalid gzip header",
        ),
        (
            "car-1",
            b"\x02".to_vec(),
            can,
            None,
            "format version 2 is unknown",
        ),
        (
            "car-1",
            can_payload(&[16])[..15].to_vec(),
            can,
            None,
            "the payload ends in the middle",
        ),
        (
            "car-2",
            can_payload(&[16]),
            can,
            None,
            "no DBC is known for vehicle car-2; give the vehicle a model",
        ),
    ];
    for (vehicle_id, payload, content_type, content_encoding, expected) in rows {
        let publish = Incoming {
            vehicle_id,
            content_type,
            content_encoding,
            ..incoming(payload.clone())
        };
        let record = record(&publish);
        let processed = processor().process(&record);
        assert!(processed.readings.is_empty(), "{expected}");
        assert_eq!(
            processed.message.payload, payload,
            "bronze has it all the same"
        );
        let dead = processed.dead.expect(expected);
        assert_eq!(dead.step, "decode");
        assert!(
            dead.reason.contains(expected),
            "{}\n{expected}",
            dead.reason
        );

        let letter = stored(dead.to_record(&record));
        assert_eq!((&letter.value, &letter.key), (&record.value, &record.key));
        assert_eq!(letter.headers[..record.headers.len()], record.headers);
        assert_eq!(header(&letter, "dead_step"), Some("decode"));
        assert_eq!(header(&letter, "dead_reason"), Some(&*dead.reason));
        assert_eq!(header(&letter, "dead_partition"), Some("3"));
        assert_eq!(header(&letter, "dead_offset"), Some("41"));
    }
}

#[test]
fn the_limit_of_decompression_is_named() {
    let payload = zstd::encode_all(&b"{\"signals\": {\"A\": 1}}      "[..], 1).expect("to memory");
    let publish = Incoming {
        content_encoding: Some("zstd"),
        ..incoming(payload)
    };
    let strict = processor().with_max_decompressed(20);
    let dead = strict.process(&record(&publish)).dead.expect("too large");
    assert!(
        dead.reason
            .contains("more than 20 bytes once decompressed (zstd)"),
        "{}",
        dead.reason
    );
    assert!(processor().process(&record(&publish)).dead.is_none());
}

#[test]
fn a_flood_of_readings_from_few_bytes_is_refused() {
    // One message with 64 one-bit signals, 65,536 times.
    let signals: String = (0..64)
        .map(|n| format!(" SG_ S{n} : {n}|1@1+ (1,0) [0|0] \"\" X\n"))
        .collect();
    let decoder =
        Arc::new(CanDecoder::new(&format!("BO_ 16 M: 8 X\n{signals}"), None).expect("a good DBC"));
    let processor = Processor::new(Arc::new(move |_| Some(decoder.clone())));
    let frame = CanFrame {
        time_us: RECEIVED,
        bus: 0,
        id: CanId::Standard(16),
        data: CanData::new(&[0; 8]).expect("eight bytes"),
    };
    let publish = Incoming {
        content_type: Some(CAN_CONTENT_TYPE),
        ..incoming(encode_frames(&vec![frame; 65_536]).expect("good frames"))
    };
    let processed = processor.process(&record(&publish));
    let dead = processed.dead.expect("four million readings");
    assert!(
        dead.reason.contains("more than 1048576 readings"),
        "{}",
        dead.reason
    );
    assert!(processed.readings.is_empty());
}

proptest! {
    #[test]
    fn nothing_that_a_vehicle_sends_makes_it_panic(
        topic in "(dt/)?[a-zé/+#]{0,30}",
        id in proptest::option::of("\\PC{0,40}"),
        time in proptest::option::of("\\PC{0,40}"),
        content_type in proptest::sample::select(vec![None, Some("application/json"), Some(CAN_CONTENT_TYPE), Some("é;")]),
        content_encoding in proptest::sample::select(vec![None, Some("gzip"), Some("zstd"), Some("é")]),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        received_us in any::<i64>(),
    ) {
        let publish = Incoming {
            topic: &topic,
            message_id: id.as_deref(),
            time: time.as_deref(),
            content_type,
            content_encoding,
            received_us,
            ..incoming(payload.clone())
        };
        if let Some(routed) = route(&publish) {
            let processed = processor().process(&stored(routed.record));
            prop_assert_eq!(processed.message.payload, payload);
            prop_assert_eq!(&*processed.message.topic, topic.as_str());
            prop_assert!(processed.dead.is_none() || processed.readings.is_empty());
        }
    }
}
