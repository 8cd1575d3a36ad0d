//! A topic alias put into an encoded frame changes what it should and nothing else.

mod support;

use std::num::NonZeroU16;

use mqtt::*;
use proptest::prelude::*;
use support::{
    At,
    packets::{self, Side},
    wire,
};

const BEFORE: &[u8] = b"what came before";

fn alias(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("is not 0")
}

fn frame_of(delivery: &Publish) -> PublishFrame {
    let layout = Layout {
        retain: delivery.retain,
        subscription_ids: &delivery.properties.subscription_ids,
        ..Layout::of(delivery, Version::V5)
    };
    PublishFrame::new(delivery, layout).expect("can be said")
}

/// Writes `delivery` with each use of an alias and reads it as a client does.
fn check(delivery: &Publish, number: NonZeroU16) {
    let frame = frame_of(delivery);
    let attempt = match delivery.dup {
        true => Attempt::Again,
        false => Attempt::First,
    };
    for topic in [AliasedTopic::Introduced, AliasedTopic::Omitted] {
        let mut out = BytesMut::from(BEFORE);
        let written = frame
            .write_aliased(delivery.packet_id, attempt, number, topic, &mut out)
            .expect("can be said");
        let mut bytes = out.split_off(BEFORE.len());
        assert_eq!(out, BEFORE);
        assert_eq!(written.len, bytes.len());
        assert_eq!(frame.aliased_len(topic), Ok(bytes.len()));
        assert!(bytes.len() <= frame.len() + PublishFrame::MAX_ALIAS_GROWTH);

        let mut expected = delivery.clone();
        expected.properties.topic_alias = Some(number);
        if topic == AliasedTopic::Omitted {
            expected.topic = Utf8::EMPTY;
        }
        let expiry = &mut expected.properties.message_expiry_interval;
        assert_eq!(written.message_expiry_offset.is_some(), expiry.is_some());
        if let (Some(at), Some(left)) = (written.message_expiry_offset, expiry) {
            assert_eq!(bytes[at..at + 4], left.to_be_bytes());
            *left = left.wrapping_sub(1);
            bytes[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        let whole = encoded_len(&expected.clone().into(), Version::V5);
        assert_eq!(whole, Ok(bytes.len()), "no byte is spent");
        let mut decoder = At::Client(Version::V5).decoder(u32::MAX);
        assert_eq!(decoder.decode(&mut bytes), Ok(Some(expected.into())));
        assert!(bytes.is_empty());
    }
}

proptest! {
    #[test]
    fn a_client_reads_what_was_meant(
        publish in packets::publish(Side::Server, Version::V5),
        number in 1_u16..,
    ) {
        prop_assume!(!publish.topic.is_empty());
        let mut delivery = publish;
        delivery.properties.topic_alias = None;
        check(&delivery, alias(number));
    }

    /// Lengths at which the property length or the remaining length take one byte more.
    #[test]
    fn lengths_around_the_borders_of_varints(
        properties in prop_oneof![Just(0_usize), 100..140_usize, 16_350..16_400_usize],
        remaining in prop_oneof![Just(0_usize), 100..140_usize, 16_350..16_400_usize],
        topic in 1..30_usize,
        qos in 0..3_u8,
        expiry in proptest::option::of(any::<u32>()),
        flags in any::<(bool, bool)>(),
    ) {
        let qos = QoS::from_u8(qos).expect("0 to 2");
        let mut delivery = Publish {
            dup: flags.0 && qos > QoS::AtMostOnce,
            qos,
            retain: flags.1,
            topic: "t".repeat(topic).into(),
            packet_id: PacketId::new(0xABCD).filter(|_| qos > QoS::AtMostOnce),
            ..Publish::default()
        };
        delivery.properties.message_expiry_interval = expiry;
        // Five bytes of each user property are not text.
        if let Some(len) = properties.checked_sub(5) {
            delivery.properties.user_properties = vec![("".into(), "v".repeat(len).into())];
        }
        let len = encoded_len(&delivery.clone().into(), Version::V5).expect("can be said");
        delivery.payload = vec![7; remaining.saturating_sub(len)].into();
        check(&delivery, alias(1));
    }
}

/// Bytes written by hand: the alias comes first among the properties, the interval behind it.
#[test]
fn an_alias_looks_as_the_specification_draws_it() {
    let mut publish = Publish {
        qos: QoS::AtLeastOnce,
        topic: "a/b".into(),
        payload: Bytes::from_static(b"hi"),
        ..Publish::default()
    };
    publish.properties.message_expiry_interval = Some(258);
    let frame = PublishFrame::new(&publish, Layout::of(&publish, Version::V5)).expect("fits");
    for (topic, bytes, expiry_at) in [
        (
            AliasedTopic::Introduced,
            "3A 12 0003 'a/b' 1234 08 23 0007 02 00000102 'hi'",
            14,
        ),
        (
            AliasedTopic::Omitted,
            "3A 0F 0000 1234 08 23 0007 02 00000102 'hi'",
            11,
        ),
    ] {
        let mut out = BytesMut::new();
        let written = frame.write_aliased(
            PacketId::new(0x1234),
            Attempt::Again,
            alias(7),
            topic,
            &mut out,
        );
        assert_eq!(out, wire(bytes));
        assert_eq!(
            written,
            Ok(Written {
                len: out.len(),
                message_expiry_offset: Some(expiry_at)
            })
        );
    }
}

#[test]
fn what_cannot_be_said_is_refused_and_leaves_no_trace() {
    let publish = Publish {
        topic: "a/b".into(),
        ..Publish::default()
    };
    let mut confirmed = publish.clone();
    confirmed.qos = QoS::AtLeastOnce;
    let mut full = publish.clone();
    full.payload = vec![0; 268_435_455 - 6].into(); // 2 + 3 + 1 before it
    let id = PacketId::new(1);
    let no_alias = EncodeError::NotInV311 {
        packet: PacketType::Publish,
        what: "a topic alias",
    };
    let too_large = EncodeError::PacketTooLarge {
        packet: PacketType::Publish,
        len: 268_435_458,
    };
    for (publish, version, packet_id, expected) in [
        (&publish, Version::V311, None, no_alias),
        (&confirmed, Version::V311, id, no_alias),
        (&publish, Version::V5, id, EncodeError::PacketId),
        (&confirmed, Version::V5, None, EncodeError::PacketId),
        (&full, Version::V5, None, too_large),
    ] {
        let frame = PublishFrame::new(publish, Layout::of(publish, version)).expect("fits");
        let mut out = BytesMut::from(BEFORE);
        let topic = AliasedTopic::Introduced;
        let refused = frame.write_aliased(packet_id, Attempt::First, alias(1), topic, &mut out);
        assert_eq!(refused, Err(expected));
        assert_eq!(out, BEFORE);
    }
}
