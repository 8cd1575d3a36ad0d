//! Messages kept as bytes come back, and bytes that are none are refused.

mod support;

use std::num::NonZeroU16;

use mqtt::*;
use proptest::prelude::*;
use support::{
    packets::{self, Side},
    wire,
};

/// What comes back of a message: all but what belongs to the connection it came on.
fn without_connection(publish: &Publish) -> Publish {
    Publish {
        packet_id: None,
        properties: PublishProperties {
            topic_alias: None,
            subscription_ids: Vec::new(),
            ..publish.properties.clone()
        },
        ..publish.clone()
    }
}

fn keep(publish: &Publish) -> Bytes {
    let mut out = BytesMut::new();
    publish.keep(&mut out).expect("can be said");
    out.freeze()
}

/// Bytes of form 1, written by hand. A release that cannot read them loses what its users stored.
#[test]
fn form_1_is_frozen() {
    let full = Publish {
        dup: true,
        qos: QoS::ExactlyOnce,
        retain: true,
        topic: "a/b".into(),
        packet_id: PacketId::new(7),
        properties: PublishProperties {
            payload_format: Some(PayloadFormat::Utf8),
            message_expiry_interval: Some(258),
            topic_alias: NonZeroU16::new(7),
            response_topic: Some(TopicName::parse("r").expect("is a topic")),
            correlation_data: Some(Bytes::from_static(b"\x01\x02")),
            user_properties: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
            subscription_ids: SubscriptionId::new(300).into_iter().collect(),
            content_type: Some("t".into()),
        },
        payload: Bytes::from_static(b"hi"),
    };
    let bare = Publish {
        topic: "t".into(),
        ..Publish::default()
    };
    for (publish, bytes) in [
        (
            full,
            "01 0D 0003 'a/b' 22 01 01 02 00000102 08 0001 'r' 09 0002 0102
             26 0001 'k' 0001 'v' 26 0001 'k' 0001 'w' 03 0001 't' 'hi'",
        ),
        (bare, "01 00 0001 't' 00"),
    ] {
        assert_eq!(keep(&publish), wire(bytes), "{bytes}");
        let back = Publish::kept(&Bytes::from(wire(bytes)));
        assert_eq!(back, Ok(without_connection(&publish)), "{bytes}");
    }
}

#[test]
fn texts_and_payload_are_slices_of_what_was_kept() {
    let bytes = Bytes::from(wire("01 00 0003 'a/b' 04 03 0001 'j' 'hello'"));
    let memory = bytes.as_ptr_range();
    let publish = Publish::kept(&bytes).expect("is a message");
    let content_type = publish.properties.content_type.expect("was kept");
    for slice in [
        &publish.payload[..],
        publish.topic.as_bytes(),
        content_type.as_bytes(),
    ] {
        assert!(memory.contains(&slice.as_ptr()));
    }
}

#[test]
fn what_keep_never_writes_is_refused() {
    for (bytes, part) in [
        ("", "ends within the form"),
        ("00 00 0001 't' 00", "the form 0"),
        ("02 00 0001 't' 00", "the form 2"),
        ("01", "ends within the flags"),
        ("01 10 0001 't' 00", "the high four bits must be 0"),
        ("01 06 0001 't' 00", "the QoS is 3"),
        ("01 08 0001 't' 00", "marked as duplicate"),
        ("01 00 00", "ends within the topic name"),
        ("01 00 0002 't'", "ends within the topic name"),
        ("01 00 0000 00", "the topic name is empty"),
        ("01 00 0001 '#' 00", "contains a wildcard"),
        ("01 00 0001 FF 00", "is not well-formed UTF-8"),
        ("01 00 0001 't'", "ends within the property length"),
        ("01 00 0001 't' 05 01", "ends within the properties"),
        ("01 00 0001 't' 02 01 02", "Payload Format Indicator"),
        (
            "01 00 0001 't' 03 23 0001",
            "a kept PUBLISH does not have the property Topic Alias",
        ),
        (
            "01 00 0001 't' 02 0B 01",
            "a kept PUBLISH does not have the property Subscription Identifier",
        ),
        (
            "01 00 0001 't' 03 11 0000",
            "does not have the property Session Expiry",
        ),
    ] {
        let error = Publish::kept(&Bytes::from(wire(bytes))).expect_err(bytes);
        assert!(error.to_string().contains(part), "{bytes}: {error}");
    }
}

#[test]
fn what_cannot_come_back_is_not_kept() {
    let message = |topic: &str| Publish {
        topic: topic.into(),
        ..Publish::default()
    };
    let mut by_alias = message("");
    by_alias.properties.topic_alias = NonZeroU16::new(1);
    let mut again = message("t");
    again.dup = true;
    let mut long = message("t");
    long.properties.correlation_data = Some(vec![0; 65_536].into());
    for publish in [message(""), message("a/#"), by_alias, again, long] {
        let mut out = BytesMut::from(&b"before"[..]);
        assert!(publish.keep(&mut out).is_err(), "{publish:?}");
        assert_eq!(&out[..], b"before");
    }
}

proptest! {
    #[test]
    fn messages_come_back(publish in packets::publish(Side::Server, Version::V5)) {
        prop_assume!(!publish.topic.is_empty());
        prop_assert_eq!(Publish::kept(&keep(&publish)), Ok(without_connection(&publish)));
    }

    /// Cut anywhere: an error, or the message with less payload.
    #[test]
    fn a_cut_never_passes_for_another_message(
        publish in packets::publish(Side::Client, Version::V5),
        cut in any::<prop::sample::Index>(),
    ) {
        prop_assume!(!publish.topic.is_empty());
        let mut bytes = keep(&publish);
        let head = bytes.len() - publish.payload.len();
        bytes.truncate(cut.index(bytes.len()));
        let mut expected = without_connection(&publish);
        match Publish::kept(&bytes) {
            Err(_) => prop_assert!(bytes.len() < head),
            Ok(read) => {
                expected.payload.truncate(bytes.len() - head);
                prop_assert_eq!(read, expected);
            }
        }
    }

    /// Whatever is read can be kept again and says the same.
    #[test]
    fn wrong_bytes_do_no_harm(
        publish in packets::publish(Side::Client, Version::V5),
        wrong in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        noise in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)),
    ) {
        prop_assume!(!publish.topic.is_empty());
        let mut bytes = noise.unwrap_or_else(|| keep(&publish).to_vec());
        for (place, byte) in wrong {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        if let Ok(read) = Publish::kept(&Bytes::from(bytes)) {
            prop_assert_eq!(Publish::kept(&keep(&read)), Ok(read));
        }
    }
}
