//! Encoding and decoding undo each other, for every packet of both versions in both directions, however
//! the bytes are cut.

mod support;

use mqtt::*;
use proptest::prelude::*;
use support::{
    At,
    oracle::{check_stream, decode_in_steps},
    packets::{self, Side},
    wire,
};

const NO_LIMIT: u32 = u32::MAX;

fn any_conversation() -> impl Strategy<Value = (Side, Version, Vec<Packet>)> {
    let speakers = proptest::sample::select(vec![
        (Side::Client, Version::V311),
        (Side::Client, Version::V5),
        (Side::Server, Version::V311),
        (Side::Server, Version::V5),
    ]);
    speakers.prop_flat_map(|(side, version)| {
        packets::conversation(side, version).prop_map(move |packets| (side, version, packets))
    })
}

fn listener_to(side: Side, version: Version) -> Decoder {
    match side {
        Side::Client => Decoder::for_server(NO_LIMIT),
        Side::Server => Decoder::for_client(version, NO_LIMIT),
    }
}

fn encode_all(packets: &[Packet], version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    for packet in packets {
        let before = out.len();
        encode(packet, version, &mut out).expect("can be said");
        assert_eq!(
            encoded_len(packet, version),
            Ok(out.len() - before),
            "{packet:?}"
        );
    }
    out
}

proptest! {
    #[test]
    fn packets_come_back_whole((side, version, packets) in any_conversation()) {
        let bytes = encode_all(&packets, version);
        let heard = decode_in_steps(listener_to(side, version), &bytes, usize::MAX);
        prop_assert_eq!(heard.error, None);
        prop_assert_eq!(heard.left, 0);
        prop_assert_eq!(heard.packets, packets);
    }

    #[test]
    fn packets_come_back_cut_at_every_byte((side, version, packets) in any_conversation()) {
        let bytes = encode_all(&packets, version);
        let heard = decode_in_steps(listener_to(side, version), &bytes, 1);
        prop_assert_eq!(heard.error, None);
        prop_assert_eq!(&heard.packets, &packets);
        // In two pieces, at each place where they can be cut (at most 200 of them).
        for cut in (1..bytes.len()).step_by(bytes.len() / 200 + 1) {
            let mut decoder = listener_to(side, version);
            let mut heard = Vec::new();
            let mut buf = BytesMut::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                buf.extend_from_slice(piece);
                while let Some(packet) = decoder.decode(&mut buf).expect("is well-formed") {
                    heard.push(packet);
                }
            }
            prop_assert_eq!(&heard, &packets, "cut at {}", cut);
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_stream(&bytes);
    }

    /// Mostly right is where decoders go wrong.
    #[test]
    fn packets_with_a_few_wrong_bytes_do_no_harm(
        (side, version, packets) in any_conversation(),
        wrong in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode_all(&packets, version).to_vec();
        for (place, byte) in wrong {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(1 + cut.index(bytes.len()));
        let selector = match (side, version) {
            (Side::Client, _) => 0,
            (Side::Server, Version::V311) => 3,
            (Side::Server, Version::V5) => 5,
        };
        bytes.insert(0, selector);
        check_stream(&bytes);
    }

    #[test]
    fn a_frame_is_what_encoding_for_each_receiver_would_give(
        publish in packets::publish(Side::Server, Version::V5),
        to_v5 in any::<bool>(),
        qos in 0_u8..3,
        retain in any::<bool>(),
        again in any::<bool>(),
        ids in proptest::collection::vec(1..=SubscriptionId::MAX, 0..3),
        left in proptest::option::of(any::<u32>()),
        id in 1_u16..,
    ) {
        prop_assume!(!publish.topic.is_empty());
        let version = if to_v5 { Version::V5 } else { Version::V311 };
        let qos = QoS::from_u8(qos).expect("0 to 2");
        let ids: Vec<_> = ids.into_iter().filter_map(SubscriptionId::new).collect();
        let layout = Layout {
            version,
            qos,
            retain,
            subscription_ids: &ids,
            message_expiry_interval: left,
        };
        let frame = PublishFrame::new(&publish, layout).expect("can be said");
        let packet_id = PacketId::new(id).filter(|_| qos > QoS::AtMostOnce);
        let attempt = if again { Attempt::Again } else { Attempt::First };
        let mut framed = BytesMut::from(&b"what came before"[..]);
        frame.write(packet_id, attempt, &mut framed).expect("has an id exactly if it needs one");

        let mut expected = BytesMut::from(&b"what came before"[..]);
        let delivery = Publish {
            dup: again && qos > QoS::AtMostOnce,
            qos,
            retain,
            packet_id,
            properties: PublishProperties {
                topic_alias: None,
                subscription_ids: ids.clone(),
                message_expiry_interval: left,
                ..publish.properties.clone()
            },
            ..publish.clone()
        };
        encode(&delivery.clone().into(), version, &mut expected).expect("can be said");
        prop_assert_eq!(&framed, &expected);
        prop_assert_eq!(frame.len(), expected.len() - b"what came before".len());
        prop_assert_eq!(frame.packet_id_offset().is_some(), packet_id.is_some());

        // And back, but for what belongs to the connection.
        let read = frame.publish().expect("is a PUBLISH");
        let said = Publish { dup: false, packet_id: None, ..delivery };
        match to_v5 {
            true => prop_assert_eq!(read, said),
            false => prop_assert_eq!(read, Publish { properties: PublishProperties::default(), ..said }),
        }

        // One second less, by patching and by encoding.
        let at = frame.message_expiry_offset();
        prop_assert_eq!(at.is_some(), left.is_some() && to_v5);
        if let (Some(at), Some(left)) = (at, left) {
            let mut patched = frame.head().to_vec();
            patched[at..at + 4].copy_from_slice(&left.saturating_sub(1).to_be_bytes());
            let later = Layout { message_expiry_interval: Some(left.saturating_sub(1)), ..layout };
            let later = PublishFrame::new(&publish, later).expect("can be said");
            prop_assert_eq!(&patched[..], later.head());
        }
    }
}

#[test]
fn payload_and_strings_are_slices_of_the_buffer() {
    let mut decoder = At::Server(Version::V5).decoder(NO_LIMIT);
    let mut buf = BytesMut::from(&wire("30 0F 0003 'a/b' 04 03 0001 'j' 'hello'")[..]);
    let memory = buf.as_ptr_range();
    let Ok(Some(Packet::Publish(publish))) = decoder.decode(&mut buf) else {
        panic!("is a PUBLISH")
    };
    let content_type = publish.properties.content_type.as_ref().expect("was sent");
    for slice in [
        &publish.payload[..],
        publish.topic.as_bytes(),
        content_type.as_bytes(),
    ] {
        assert!(memory.contains(&slice.as_ptr()));
    }
    assert!(!memory.contains(&publish.topic.detached().as_bytes().as_ptr()));
    assert_eq!(publish.payload, "hello");
}

#[test]
fn a_large_announcement_reserves_nothing() {
    let mut decoder = At::Server(Version::V5).decoder(NO_LIMIT);
    let mut buf = BytesMut::with_capacity(64);
    buf.extend_from_slice(&wire("30 FFFFFF7F 0003 'a/b' 00"));
    let capacity = buf.capacity();
    assert_eq!(decoder.decode(&mut buf), Ok(None));
    assert_eq!(buf.capacity(), capacity);
}

#[test]
fn a_header_is_refused_before_its_body_arrives() {
    let mut decoder = At::Server(Version::V5).decoder(1024);
    let mut buf = BytesMut::from(&wire("30 FE07")[..]);
    let error = decoder.decode(&mut buf).expect_err("is larger than 1024");
    assert_eq!(error.reason(), ReasonCode::PacketTooLarge);
}

#[test]
fn a_smaller_limit_holds_from_the_next_packet_on() {
    let mut decoder = At::Server(Version::V311).decoder(1024);
    let mut buf = BytesMut::from(&wire("30 05 0003 'a/b' 30 05 0003 'a/b'")[..]);
    assert!(matches!(decoder.decode(&mut buf), Ok(Some(_))));
    decoder.set_max_packet_size(6);
    let error = decoder.decode(&mut buf).expect_err("has seven bytes");
    assert_eq!(
        error,
        DecodeError::PacketTooLarge {
            packet: PacketType::Publish,
            size: 7,
            limit: 6
        }
    );
}

/// The optional tails of short packets (sections 3.4.2.1, 3.14.2.1, 3.15.2.1) read the same and are not
/// written.
#[test]
fn what_may_be_left_out_is_left_out() {
    for (at, long, short) in [
        (At::Server(Version::V5), "40 04 0001 00 00", "40 02 0001"),
        (At::Server(Version::V5), "40 03 0001 00", "40 02 0001"),
        (At::Server(Version::V5), "40 04 0001 87 00", "40 03 0001 87"),
        (At::Client(Version::V5), "E0 02 00 00", "E0 00"),
        (At::Client(Version::V5), "E0 02 8B 00", "E0 01 8B"),
        (At::Server(Version::V5), "E0 01 00", "E0 00"),
    ] {
        let packet = at
            .decoder(NO_LIMIT)
            .decode(&mut BytesMut::from(&wire(long)[..]));
        let packet = packet.expect("is well-formed").expect("is whole");
        let mut out = BytesMut::new();
        encode(&packet, Version::V5, &mut out).expect("can be said");
        assert_eq!(out, wire(short), "{long}");
    }
}

/// Bytes written by hand from the tables of the specification, so that reading and writing cannot be
/// wrong in the same way.
#[test]
fn packets_look_as_the_specification_draws_them() {
    let id = PacketId::new(0x1234).expect("is not 0");
    let filter = |text| TopicFilter::parse(text).expect("is a filter");
    let user: Vec<UserProperty> = vec![("k".into(), "v".into())];
    let mut connect = Connect::new(Version::V5, "c1");
    connect.keep_alive = 60;
    connect.username = Some("u".into());
    connect.password = Some("p".into());
    connect.properties.session_expiry_interval = Some(16);
    connect.properties.receive_maximum = std::num::NonZeroU16::new(20);
    connect.will = Some(Will {
        qos: QoS::AtLeastOnce,
        retain: true,
        topic: TopicName::parse("w").expect("is a topic"),
        payload: Bytes::from_static(b"bye"),
        properties: WillProperties {
            will_delay_interval: Some(5),
            ..Default::default()
        },
    });
    let mut classic = Connect::new(Version::V311, "c1");
    classic.clean_start = false;
    let publish = Publish {
        dup: true,
        qos: QoS::ExactlyOnce,
        retain: true,
        topic: "a/b".into(),
        packet_id: Some(id),
        properties: PublishProperties {
            payload_format: Some(PayloadFormat::Utf8),
            message_expiry_interval: Some(258),
            topic_alias: std::num::NonZeroU16::new(7),
            response_topic: Some(TopicName::parse("r").expect("is a topic")),
            correlation_data: Some(Bytes::from_static(b"\x01\x02")),
            user_properties: user.clone(),
            subscription_ids: SubscriptionId::new(300).into_iter().collect(),
            content_type: Some("t".into()),
        },
        payload: Bytes::from_static(b"hi"),
    };
    let subscribe = Subscribe {
        packet_id: id,
        subscriptions: vec![
            Subscription {
                no_local: true,
                retain_as_published: true,
                retain_handling: RetainHandling::Never,
                ..Subscription::new(filter("a/#"), QoS::ExactlyOnce)
            },
            Subscription::new(filter("+"), QoS::AtMostOnce),
        ],
        properties: SubscribeProperties {
            subscription_id: SubscriptionId::new(1),
            ..Default::default()
        },
    };
    let unsubscribe = Unsubscribe {
        packet_id: id,
        filters: vec![filter("a"), filter("b")],
        properties: UnsubscribeProperties {
            user_properties: user.clone(),
        },
    };
    let (v3, v5) = (Version::V311, Version::V5);
    let rows: Vec<(Packet, Version, &str)> = vec![
        (
            connect.into(),
            v5,
            "10 2B 0004 'MQTT' 05 EE 003C 08 11 00000010 21 0014 0002 'c1'
             05 18 00000005 0001 'w' 0003 'bye' 0001 'u' 0001 'p'",
        ),
        (classic.into(), v3, "10 0E 0004 'MQTT' 04 00 0000 0002 'c1'"),
        (
            ConnAck {
                session_present: true,
                ..Default::default()
            }
            .into(),
            v3,
            "20 02 01 00",
        ),
        (
            ConnAck::refusal(ReasonCode::NotAuthorized).into(),
            v3,
            "20 02 00 05",
        ),
        (
            ConnAck::refusal(ReasonCode::NotAuthorized).into(),
            v5,
            "20 03 00 87 00",
        ),
        (
            publish.clone().into(),
            v5,
            "3D 2B 0003 'a/b' 1234 21 01 01 02 00000102 23 0007 08 0001 'r' 09 0002 0102
             26 0001 'k' 0001 'v' 0B AC02 03 0001 't' 'hi'",
        ),
        (publish.into(), v3, "3D 09 0003 'a/b' 1234 'hi'"),
        (PubAck::success(id).into(), v3, "40 02 1234"),
        (
            PubRec::new(id, ReasonCode::QuotaExceeded).into(),
            v5,
            "50 03 1234 97",
        ),
        (PubRel::success(id).into(), v5, "62 02 1234"),
        (
            PubComp {
                packet_id: id,
                reason: ReasonCode::PacketIdentifierNotFound,
                properties: PubCompProperties {
                    reason_string: Some("why".into()),
                    user_properties: user,
                },
            }
            .into(),
            v5,
            "70 11 1234 92 0D 1F 0003 'why' 26 0001 'k' 0001 'v'",
        ),
        (
            subscribe.into(),
            v5,
            "82 0F 1234 02 0B 01 0003 'a/#' 2E 0001 '+' 00",
        ),
        (
            SubAck {
                packet_id: id,
                reasons: vec![ReasonCode::GrantedQoS2, ReasonCode::NotAuthorized],
                properties: SubAckProperties::default(),
            }
            .into(),
            v3,
            "90 04 1234 02 80",
        ),
        (
            unsubscribe.into(),
            v5,
            "A2 10 1234 07 26 0001 'k' 0001 'v' 0001 'a' 0001 'b'",
        ),
        (
            UnsubAck {
                packet_id: id,
                reasons: vec![ReasonCode::Success, ReasonCode::NoSubscriptionExisted],
                properties: UnsubAckProperties::default(),
            }
            .into(),
            v5,
            "B0 05 1234 00 00 11",
        ),
        (Packet::PingReq, v3, "C0 00"),
        (Packet::PingResp, v5, "D0 00"),
        (Disconnect::default().into(), v3, "E0 00"),
        (
            Disconnect::new(ReasonCode::SessionTakenOver).into(),
            v5,
            "E0 01 8E",
        ),
        (
            Auth {
                reason: ReasonCode::ContinueAuthentication,
                properties: AuthProperties {
                    authentication_method: Some("m".into()),
                    authentication_data: Some("d".into()),
                    ..Default::default()
                },
            }
            .into(),
            v5,
            "F0 0A 18 08 15 0001 'm' 16 0001 'd'",
        ),
    ];
    for (packet, version, expected) in rows {
        let mut out = BytesMut::new();
        encode(&packet, version, &mut out).expect("can be said");
        assert_eq!(out, wire(expected), "{packet:?}");
    }
}

#[test]
fn what_cannot_be_said_is_refused_and_leaves_no_trace() {
    let id = Some(PacketId::FIRST);
    let publish = Publish {
        topic: "a".into(),
        ..Default::default()
    };
    let long = "x".repeat(65_536);
    let lone_password = Connect {
        password: Some("p".into()),
        ..Connect::new(Version::V311, "c")
    };
    let shared = TopicFilter::parse("$share/g/a").expect("is a filter");
    let no_local_on_shared = Subscribe {
        packet_id: PacketId::FIRST,
        subscriptions: vec![Subscription {
            no_local: true,
            ..Subscription::new(shared, QoS::AtMostOnce)
        }],
        properties: SubscribeProperties::default(),
    };
    let no_local = Subscribe {
        subscriptions: vec![Subscription {
            no_local: true,
            ..Subscription::new(
                TopicFilter::parse("a").expect("is a filter"),
                QoS::AtMostOnce,
            )
        }],
        ..no_local_on_shared.clone()
    };
    let nothing = Subscribe {
        subscriptions: Vec::new(),
        ..no_local_on_shared.clone()
    };
    let rows: Vec<(Packet, Version, &str)> = vec![
        (
            publish_with(&publish, |p| p.packet_id = id),
            Version::V5,
            "packet identifier",
        ),
        (
            publish_with(&publish, |p| p.qos = QoS::AtLeastOnce),
            Version::V311,
            "packet identifier",
        ),
        (
            publish_with(&publish, |p| p.dup = true),
            Version::V5,
            "duplicate",
        ),
        (
            publish_with(&publish, |p| p.topic = Utf8::EMPTY),
            Version::V5,
            "empty",
        ),
        (
            publish_with(&publish, |p| p.topic = "a/#".into()),
            Version::V311,
            "wildcard",
        ),
        (
            publish_with(&publish, |p| p.topic = "a\0".into()),
            Version::V5,
            "U+0000",
        ),
        (
            publish_with(&publish, |p| p.topic = long.as_str().into()),
            Version::V5,
            "65536 bytes",
        ),
        (
            publish_with(&publish, |p| {
                p.properties.content_type = Some("a\0".into());
            }),
            Version::V5,
            "Content Type contains",
        ),
        (
            publish_with(&publish, |p| {
                p.properties.correlation_data = Some(Bytes::from(long.clone()));
            }),
            Version::V5,
            "Correlation Data has 65536 bytes",
        ),
        (
            lone_password.into(),
            Version::V311,
            "a password without a user name",
        ),
        (
            Connect::new(Version::V5, "c").into(),
            Version::V311,
            "cannot be encoded",
        ),
        (
            Connect {
                clean_start: false,
                ..Connect::new(Version::V311, "")
            }
            .into(),
            Version::V311,
            "clean session",
        ),
        (no_local_on_shared.into(), Version::V5, "no local"),
        (no_local.into(), Version::V311, "subscription options"),
        (nothing.into(), Version::V311, "no entry"),
        (
            PubAck::new(PacketId::FIRST, ReasonCode::NotAuthorized).into(),
            Version::V311,
            "that it failed",
        ),
        (
            PubAck::new(PacketId::FIRST, ReasonCode::ServerBusy).into(),
            Version::V5,
            "cannot say Server busy (0x89)",
        ),
        (
            ConnAck::refusal(ReasonCode::MalformedPacket).into(),
            Version::V311,
            "cannot say",
        ),
        (
            ConnAck {
                session_present: true,
                ..ConnAck::refusal(ReasonCode::Banned)
            }
            .into(),
            Version::V5,
            "session present",
        ),
        (
            ConnAck {
                properties: ConnAckProperties {
                    maximum_qos: Some(QoS::ExactlyOnce),
                    ..Default::default()
                },
                ..Default::default()
            }
            .into(),
            Version::V5,
            "Maximum QoS",
        ),
        (
            Disconnect::new(ReasonCode::ServerBusy).into(),
            Version::V311,
            "a reason",
        ),
        (Auth::default().into(), Version::V311, "AUTH"),
        (
            Auth {
                reason: ReasonCode::ReAuthenticate,
                ..Default::default()
            }
            .into(),
            Version::V5,
            "no authentication method",
        ),
    ];
    for (packet, version, expected) in rows {
        let mut out = BytesMut::from(&b"before"[..]);
        let error = encode(&packet, version, &mut out).expect_err(expected);
        assert!(
            error.to_string().contains(expected),
            "{error}, expected {expected}"
        );
        assert_eq!(out, &b"before"[..], "{expected}");
        assert_eq!(encoded_len(&packet, version), Err(error));
    }
}

fn publish_with(publish: &Publish, change: impl FnOnce(&mut Publish)) -> Packet {
    let mut publish = publish.clone();
    change(&mut publish);
    publish.into()
}

#[test]
fn a_packet_beyond_the_remaining_length_is_refused() {
    let payload = Bytes::from(vec![0; 0x0FFF_FFFF]);
    let publish = Publish {
        topic: "a".into(),
        payload,
        ..Default::default()
    };
    let too_large = EncodeError::PacketTooLarge {
        packet: PacketType::Publish,
        len: 0x0FFF_FFFF + 3,
    };
    let frame = PublishFrame::new(&publish, Layout::of(&publish, Version::V311));
    assert_eq!(frame.err(), Some(too_large));
    let mut out = BytesMut::new();
    assert_eq!(
        encode(&publish.into(), Version::V311, &mut out),
        Err(too_large)
    );
    assert!(out.is_empty());
}

#[test]
fn a_frame_refuses_the_wrong_number_of_packet_ids() {
    let publish = Publish {
        topic: "a".into(),
        ..Default::default()
    };
    let zero = PublishFrame::new(&publish, Layout::of(&publish, Version::V5)).expect("has a topic");
    let layout = Layout {
        qos: QoS::AtLeastOnce,
        ..Layout::of(&publish, Version::V5)
    };
    let one = PublishFrame::new(&publish, layout).expect("has a topic");
    let mut out = BytesMut::new();
    let id = Some(PacketId::FIRST);
    assert_eq!(
        zero.write(id, Attempt::First, &mut out),
        Err(EncodeError::PacketId)
    );
    assert_eq!(
        one.write(None, Attempt::First, &mut out),
        Err(EncodeError::PacketId)
    );
    assert!(out.is_empty());
}

#[test]
fn secrets_do_not_print() {
    let mut connect = Connect::new(Version::V5, "c");
    connect.password = Some("hunter2".into());
    connect.properties.authentication_data = Some("hunter2".into());
    let printed = format!("{:?}", Packet::from(connect));
    assert!(
        printed.contains("(hidden)") && !printed.contains("hunter2"),
        "{printed}"
    );
}
