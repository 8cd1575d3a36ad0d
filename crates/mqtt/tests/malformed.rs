//! Every way to be wrong that the specifications name, one row each, with the error and the reason code
//! it must be answered with.

mod support;

use mqtt::{
    BytesMut, DecodeError as E, PacketType as P, Property, ReasonCode as R, TopicError, Utf8Error,
    Version::{V5, V311},
};
use support::{At, oracle::decode_in_steps, wire};

const MAX_PACKET_SIZE: u32 = 1024;

/// The bytes are refused with exactly this error, whole and byte by byte.
#[track_caller]
fn check(rows: &[(At, &str, E)], reason: R) {
    for (at, bytes, expected) in rows {
        let input = wire(bytes);
        for step in [input.len(), 1] {
            let outcome = decode_in_steps(at.decoder(MAX_PACKET_SIZE), &input, step);
            assert_eq!(
                outcome.error.as_ref(),
                Some(expected),
                "{at:?}: {bytes} in {step}"
            );
            assert_eq!(outcome.packets, [], "{at:?}: {bytes}");
        }
        assert_eq!(expected.reason(), reason, "{expected}");
    }
}

/// The same for bytes that would be fine in the other version: both columns must be right.
#[track_caller]
fn accepted(rows: &[(At, &str)]) {
    for (at, bytes) in rows {
        let mut buf = BytesMut::from(&wire(bytes)[..]);
        let result = at.decoder(MAX_PACKET_SIZE).decode(&mut buf);
        assert!(matches!(result, Ok(Some(_))), "{at:?}: {bytes}: {result:?}");
        assert!(buf.is_empty(), "{at:?}: {bytes}");
    }
}

const START: At = At::ServerStart;
const S3: At = At::Server(V311);
const S5: At = At::Server(V5);
const C3: At = At::Client(V311);
const C5: At = At::Client(V5);

fn flags(packet: P, flags: u8, expected: u8) -> E {
    E::FixedHeaderFlags {
        packet,
        flags,
        expected,
    }
}

fn connect_flags(value: u8, problem: &'static str) -> E {
    E::Flags {
        packet: P::Connect,
        field: "the connect flags",
        value,
        problem,
    }
}

fn truncated(packet: P, field: &'static str) -> E {
    E::Truncated { packet, field }
}

fn utf8(packet: P, field: &'static str, problem: Utf8Error) -> E {
    E::Utf8 {
        packet,
        field,
        problem,
    }
}

fn topic(packet: P, field: &'static str, problem: TopicError) -> E {
    E::Topic {
        packet,
        field,
        problem,
    }
}

fn value(packet: P, property: Property, value: u32, allowed: &'static str) -> E {
    E::PropertyValue {
        packet,
        property,
        value,
        allowed,
    }
}

#[test]
fn fixed_header() {
    let reserved = |value, version| E::ReservedPacketType { value, version };
    let overlong = |packet| E::OverlongVarint {
        packet,
        field: "the remaining length",
    };
    let padded = |packet| E::PaddedVarint {
        packet,
        field: "the remaining length",
    };
    let length = |packet, length, expected| E::RemainingLength {
        packet,
        length,
        expected,
    };
    check(
        &[
            (START, "00 00", reserved(0, None)),
            (S3, "0F 00", reserved(0, Some(V311))),
            (S5, "00 00", reserved(0, Some(V5))),
            (C5, "00 00", reserved(0, Some(V5))),
            // AUTH does not exist in 3.1.1.
            (S3, "F0 00", reserved(15, Some(V311))),
            (C3, "F0 00", reserved(15, Some(V311))),
            (At::ClientStart(V311), "F0 00", reserved(15, Some(V311))),
            // Flags.
            (START, "11 0C", flags(P::Connect, 1, 0)),
            (At::ClientStart(V5), "28 03", flags(P::ConnAck, 8, 0)),
            (S5, "41 02", flags(P::PubAck, 1, 0)),
            (S3, "52 02", flags(P::PubRec, 2, 0)),
            (S5, "60 02", flags(P::PubRel, 0, 2)),
            (S3, "63 02", flags(P::PubRel, 3, 2)),
            (C5, "74 02", flags(P::PubComp, 4, 0)),
            (S5, "80 06", flags(P::Subscribe, 0, 2)),
            (S3, "8A 06", flags(P::Subscribe, 10, 2)),
            (C3, "91 03", flags(P::SubAck, 1, 0)),
            (S5, "A0 05", flags(P::Unsubscribe, 0, 2)),
            (S3, "A1 05", flags(P::Unsubscribe, 1, 2)),
            (C5, "B2 04", flags(P::UnsubAck, 2, 0)),
            (S3, "C1 00", flags(P::PingReq, 1, 0)),
            (C3, "D8 00", flags(P::PingResp, 8, 0)),
            (S5, "E1 00", flags(P::Disconnect, 1, 0)),
            (S3, "E2 00", flags(P::Disconnect, 2, 0)),
            (S5, "F1 00", flags(P::Auth, 1, 0)),
            // PUBLISH: QoS 3, a duplicate of QoS 0.
            (
                S3,
                "36 05",
                E::QoS {
                    packet: P::Publish,
                    field: "the QoS",
                },
            ),
            (
                C5,
                "3F 05",
                E::QoS {
                    packet: P::Publish,
                    field: "the QoS",
                },
            ),
            (S5, "38 05", E::DuplicateAtMostOnce),
            (C3, "39 05", E::DuplicateAtMostOnce),
            // Remaining length.
            (START, "10 80808080 01", overlong(P::Connect)),
            (S3, "30 FFFFFFFF 7F", overlong(P::Publish)),
            (C5, "30 80808080", overlong(P::Publish)),
            (
                START,
                "10 8D00 0004 'MQTT' 05 02 0000 00 0000",
                padded(P::Connect),
            ),
            (S5, "C0 8000", padded(P::PingReq)),
            (S5, "30 8300", padded(P::Publish)),
            (C5, "30 85808000", padded(P::Publish)),
            (S3, "C0 01", length(P::PingReq, 1, 0)),
            (C5, "D0 05", length(P::PingResp, 5, 0)),
            (S3, "E0 02", length(P::Disconnect, 2, 0)),
            (At::ClientStart(V311), "20 03", length(P::ConnAck, 3, 2)),
            (S3, "40 04", length(P::PubAck, 4, 2)),
            (S3, "50 03", length(P::PubRec, 3, 2)),
            (S3, "62 03", length(P::PubRel, 3, 2)),
            (S3, "70 00", length(P::PubComp, 0, 2)),
            (C3, "B0 03", length(P::UnsubAck, 3, 2)),
        ],
        R::MalformedPacket,
    );
    // 3.1.1 does not ask for the shortest form.
    accepted(&[
        (S3, "C0 8000"),
        (C3, "30 85808000 0003 'a/b'"),
        (START, "10 8C00 0004 'MQTT' 04 02 0000 0000"),
    ]);
}

#[test]
fn too_large_is_refused_from_the_fixed_header() {
    let too_large = |packet, size| E::PacketTooLarge {
        packet,
        size,
        limit: MAX_PACKET_SIZE,
    };
    check(
        &[
            (S5, "30 FE07", too_large(P::Publish, 1025)),
            (S3, "82 8008", too_large(P::Subscribe, 1027)),
            (START, "10 FFFFFF7F", too_large(P::Connect, 268_435_460)),
            (C5, "30 FFFFFF7F", too_large(P::Publish, 268_435_460)),
        ],
        R::PacketTooLarge,
    );
    // 1,024 bytes are allowed.
    let mut largest = wire("30 FD07 0003 'a/b' 00");
    largest.resize(1024, b'x');
    let outcome = decode_in_steps(S5.decoder(MAX_PACKET_SIZE), &largest, 1);
    assert_eq!((outcome.error, outcome.packets.len()), (None, 1));
}

#[test]
fn wrong_side_or_wrong_time() {
    let unexpected = |packet, expected| E::UnexpectedPacket { packet, expected };
    check(
        &[
            (
                START,
                "30 03",
                unexpected(P::Publish, "the first packet must be CONNECT"),
            ),
            (
                START,
                "C0 00",
                unexpected(P::PingReq, "the first packet must be CONNECT"),
            ),
            (
                START,
                "F0 00",
                unexpected(P::Auth, "the first packet must be CONNECT"),
            ),
            (S3, "10 0C", unexpected(P::Connect, "CONNECT comes once")),
            (S5, "10 0D", unexpected(P::Connect, "CONNECT comes once")),
            (
                S3,
                "20 02",
                unexpected(P::ConnAck, "only a server sends it"),
            ),
            (S5, "90 04", unexpected(P::SubAck, "only a server sends it")),
            (
                S3,
                "B0 02",
                unexpected(P::UnsubAck, "only a server sends it"),
            ),
            (
                S5,
                "D0 00",
                unexpected(P::PingResp, "only a server sends it"),
            ),
            (
                At::ClientStart(V5),
                "30 03",
                unexpected(P::Publish, "the first packet must be CONNACK"),
            ),
            (
                At::ClientStart(V5),
                "E0 00",
                unexpected(P::Disconnect, "the first packet must be CONNACK"),
            ),
            (C3, "20 02", unexpected(P::ConnAck, "CONNACK comes once")),
            (C5, "20 03", unexpected(P::ConnAck, "CONNACK comes once")),
            (C5, "10 0D", unexpected(P::Connect, "CONNECT comes once")),
            (
                C3,
                "82 06",
                unexpected(P::Subscribe, "only a client sends it"),
            ),
            (
                C5,
                "A2 06",
                unexpected(P::Unsubscribe, "only a client sends it"),
            ),
            (
                C5,
                "C0 00",
                unexpected(P::PingReq, "only a client sends it"),
            ),
            (
                C3,
                "E0 00",
                unexpected(P::Disconnect, "in MQTT 3.1.1 only a client sends it"),
            ),
        ],
        R::ProtocolError,
    );
}

#[test]
fn connect() {
    check(
        &[
            (
                START,
                "10 0C 0004 'MQTT' 03 02 0000 0000",
                E::UnsupportedVersion { level: 3 },
            ),
            (
                START,
                "10 0C 0004 'MQTT' 06 02 0000 0000",
                E::UnsupportedVersion { level: 6 },
            ),
            // A bridge of Mosquitto marks itself so.
            (
                START,
                "10 0C 0004 'MQTT' 84 02 0000 0000",
                E::UnsupportedVersion { level: 0x84 },
            ),
            (
                START,
                "10 0E 0006 'MQIsdp' 03 02 0000 0000",
                E::ProtocolName,
            ),
            (START, "10 0C 0004 'mqtt' 04 02 0000 0000", E::ProtocolName),
            (START, "10 0B 0003 'MQT' 04 02 0000 0000", E::ProtocolName),
            (START, "10 0D 0005 'MQTT5' 05 02 0000 0000", E::ProtocolName),
        ],
        R::UnsupportedProtocolVersion,
    );
    check(
        &[(
            START,
            "10 0C 0004 'MQTT' 04 00 0000 0000",
            E::ClientIdMissing,
        )],
        R::ClientIdentifierNotValid,
    );
    accepted(&[(START, "10 0D 0004 'MQTT' 05 00 0000 00 0000")]);

    let no_will_qos = "a will QoS without a will";
    let no_will = "will retain without a will";
    let lone_password = "a password without a user name";
    check(
        &[
            (START, "10 00", truncated(P::Connect, "the protocol name")),
            (
                START,
                "10 05 0004 'MQT'",
                truncated(P::Connect, "the protocol name"),
            ),
            (
                START,
                "10 06 FFFF 'MQTT'",
                truncated(P::Connect, "the protocol name"),
            ),
            (
                START,
                "10 06 0004 'MQTT'",
                truncated(P::Connect, "the protocol level"),
            ),
            (
                START,
                "10 07 0004 'MQTT' 04",
                truncated(P::Connect, "the connect flags"),
            ),
            (
                START,
                "10 09 0004 'MQTT' 05 02 00",
                truncated(P::Connect, "the keep alive"),
            ),
            (
                START,
                "10 0A 0004 'MQTT' 05 02 0000",
                truncated(P::Connect, "the property length"),
            ),
            (
                START,
                "10 0B 0004 'MQTT' 05 02 0000 05",
                truncated(P::Connect, "the properties"),
            ),
            (
                START,
                "10 0D 0004 'MQTT' 04 02 0000 0004 'c'",
                truncated(P::Connect, "the client identifier"),
            ),
            (
                START,
                "10 0C 0004 'MQTT' 04 C2 0000 0000",
                truncated(P::Connect, "the user name"),
            ),
            (
                START,
                "10 0F 0004 'MQTT' 04 C2 0000 0000 0001 'u'",
                truncated(P::Connect, "the password"),
            ),
            (
                START,
                "10 0C 0004 'MQTT' 04 06 0000 0000",
                truncated(P::Connect, "the will topic"),
            ),
            (
                START,
                "10 0F 0004 'MQTT' 04 06 0000 0000 0001 't'",
                truncated(P::Connect, "the will payload"),
            ),
            (
                START,
                "10 0D 0004 'MQTT' 04 02 0000 0000 FF",
                E::TrailingBytes {
                    packet: P::Connect,
                    extra: 1,
                },
            ),
            (
                // A user name without its flag.
                START,
                "10 10 0004 'MQTT' 05 02 0000 00 0000 0001 'u'",
                E::TrailingBytes {
                    packet: P::Connect,
                    extra: 3,
                },
            ),
            (
                START,
                "10 0C 0004 'MQTT' 04 03 0000 0000",
                connect_flags(3, "bit 0 is reserved"),
            ),
            (
                START,
                "10 0D 0004 'MQTT' 05 01 0000 00 0000",
                connect_flags(1, "bit 0 is reserved"),
            ),
            (
                START,
                "10 0C 0004 'MQTT' 04 0A 0000 0000",
                connect_flags(0x0A, no_will_qos),
            ),
            (
                START,
                "10 0D 0004 'MQTT' 05 12 0000 00 0000",
                connect_flags(0x12, no_will_qos),
            ),
            (
                START,
                "10 0C 0004 'MQTT' 04 22 0000 0000",
                connect_flags(0x22, no_will),
            ),
            (
                START,
                "10 0D 0004 'MQTT' 05 22 0000 00 0000",
                connect_flags(0x22, no_will),
            ),
            (
                START,
                "10 0E 0004 'MQTT' 04 42 0000 0000 0000",
                connect_flags(0x42, lone_password),
            ),
            (
                START,
                "10 11 0004 'MQTT' 04 1E 0000 0000 0001 't' 0000",
                E::QoS {
                    packet: P::Connect,
                    field: "the will QoS",
                },
            ),
            (
                START,
                "10 13 0004 'MQTT' 05 1E 0000 00 0000 00 0001 't' 0000",
                E::QoS {
                    packet: P::Connect,
                    field: "the will QoS",
                },
            ),
            (
                START,
                "10 11 0004 'MQTT' 04 06 0000 0000 0001 '#' 0000",
                topic(P::Connect, "the will topic", TopicError::WildcardInName),
            ),
            (
                START,
                "10 12 0004 'MQTT' 05 06 0000 00 0000 00 0000 0000",
                topic(P::Connect, "the will topic", TopicError::Empty),
            ),
            (
                START,
                "10 0D 0004 'MQTT' 04 02 0000 0001 00",
                utf8(
                    P::Connect,
                    "the client identifier",
                    Utf8Error::NullCharacter,
                ),
            ),
            (
                START,
                "10 0E 0004 'MQTT' 05 02 0000 00 0001 FF",
                utf8(P::Connect, "the client identifier", Utf8Error::Invalid),
            ),
            (
                START,
                "10 11 0004 'MQTT' 05 82 0000 00 0000 0002 C0AF",
                utf8(P::Connect, "the user name", Utf8Error::Invalid),
            ),
            (
                START,
                "10 13 0004 'MQTT' 04 06 0000 0000 0003 EDA080 0000",
                utf8(P::Connect, "the will topic", Utf8Error::Invalid),
            ),
        ],
        R::MalformedPacket,
    );
    // MQTT 5 takes a password alone.
    accepted(&[(START, "10 0F 0004 'MQTT' 05 42 0000 00 0000 0000")]);
}

#[test]
fn connect_properties() {
    // A CONNECT of MQTT 5 with these properties, and one whose will has them.
    let connect = |properties: &str| {
        let len = wire(properties).len();
        format!(
            "10 {:02X} 0004 'MQTT' 05 02 0000 {len:02X} {properties} 0000",
            13 + len
        )
    };
    let will = |properties: &str| {
        let len = wire(properties).len();
        let will = format!("{len:02X} {properties} 0001 't' 0000");
        format!("10 {:02X} 0004 'MQTT' 05 06 0000 00 0000 {will}", 19 + len)
    };
    #[track_caller]
    fn check_all(rows: Vec<(String, E)>, reason: R) {
        for (bytes, error) in rows {
            check(&[(START, &bytes, error)], reason);
        }
    }

    let of_connect = |property, value, allowed| self::value(P::Connect, property, value, allowed);
    let twice = |property| E::DuplicateProperty {
        place: "CONNECT",
        property,
    };
    let u16s = "1 to 65535";
    let u32s = "1 to 4294967295";
    check_all(
        vec![
            (
                connect("21 0000"),
                of_connect(Property::ReceiveMaximum, 0, u16s),
            ),
            (
                connect("27 00000000"),
                of_connect(Property::MaximumPacketSize, 0, u32s),
            ),
            (
                connect("19 02"),
                of_connect(Property::RequestResponseInformation, 2, "0 or 1"),
            ),
            (
                connect("17 FF"),
                of_connect(Property::RequestProblemInformation, 255, "0 or 1"),
            ),
            (
                connect("11 00000001 11 00000001"),
                twice(Property::SessionExpiryInterval),
            ),
            (connect("21 0001 21 0001"), twice(Property::ReceiveMaximum)),
            (
                connect("27 00000001 27 00000001"),
                twice(Property::MaximumPacketSize),
            ),
            (
                connect("22 0001 22 0001"),
                twice(Property::TopicAliasMaximum),
            ),
            (
                connect("19 00 19 00"),
                twice(Property::RequestResponseInformation),
            ),
            (
                connect("17 01 17 01"),
                twice(Property::RequestProblemInformation),
            ),
            (
                connect("15 0001 'm' 15 0001 'm'"),
                twice(Property::AuthenticationMethod),
            ),
            (
                connect("15 0001 'm' 16 0000 16 0000"),
                twice(Property::AuthenticationData),
            ),
            (
                connect("16 0001 'd'"),
                E::AuthenticationMethodMissing { packet: P::Connect },
            ),
            (
                will("01 02"),
                of_connect(Property::PayloadFormatIndicator, 2, "0 or 1"),
            ),
            (
                will("18 00000001 18 00000001"),
                E::DuplicateProperty {
                    place: "the will of CONNECT",
                    property: Property::WillDelayInterval,
                },
            ),
        ],
        R::ProtocolError,
    );

    let not_here = |property| E::PropertyNotAllowed {
        place: "CONNECT",
        property,
    };
    let not_in_will = |property| E::PropertyNotAllowed {
        place: "the will of CONNECT",
        property,
    };
    let unknown = |id| E::UnknownProperty {
        place: "CONNECT",
        id,
    };
    check_all(
        vec![
            (connect("00 00"), unknown(0)),
            (connect("04 00"), unknown(4)),
            (connect("2B 00"), unknown(0x2B)),
            (connect("7F 00"), unknown(0x7F)),
            (connect("FFFF7F 00"), unknown(0x1F_FFFF)),
            (
                connect("9100 00000001"),
                E::PaddedVarint {
                    packet: P::Connect,
                    field: "a property identifier",
                },
            ),
            (
                connect("8080808001"),
                E::OverlongVarint {
                    packet: P::Connect,
                    field: "a property identifier",
                },
            ),
            (connect("01 00"), not_here(Property::PayloadFormatIndicator)),
            (
                connect("18 00000001"),
                not_here(Property::WillDelayInterval),
            ),
            (
                connect("12 0001 'c'"),
                not_here(Property::AssignedClientIdentifier),
            ),
            (connect("23 0001"), not_here(Property::TopicAlias)),
            (connect("24 00"), not_here(Property::MaximumQoS)),
            (connect("1F 0001 'r'"), not_here(Property::ReasonString)),
            (
                will("11 00000001"),
                not_in_will(Property::SessionExpiryInterval),
            ),
            (will("23 0001"), not_in_will(Property::TopicAlias)),
            (will("0B 01"), not_in_will(Property::SubscriptionIdentifier)),
            (
                connect("11 000000"),
                truncated(P::Connect, "Session Expiry Interval"),
            ),
            (connect("21 00"), truncated(P::Connect, "Receive Maximum")),
            (
                connect("26 0001 'k' 0005 'v'"),
                truncated(P::Connect, "User Property"),
            ),
            (
                connect("26 0001 'k'"),
                truncated(P::Connect, "User Property"),
            ),
            (
                connect("26 0001 00 0000"),
                utf8(P::Connect, "User Property", Utf8Error::NullCharacter),
            ),
            (
                connect("15 0002 'm' FF"),
                utf8(P::Connect, "Authentication Method", Utf8Error::Invalid),
            ),
            (
                will("08 0001 '+'"),
                topic(P::Connect, "Response Topic", TopicError::WildcardInName),
            ),
        ],
        R::MalformedPacket,
    );
}

#[test]
fn connack() {
    let start3 = At::ClientStart(V311);
    let start5 = At::ClientStart(V5);
    let reserved = |value| E::Flags {
        packet: P::ConnAck,
        field: "the acknowledge flags",
        value,
        problem: "bits 7 to 1 are reserved",
    };
    check(
        &[
            (start3, "20 02 02 00", reserved(2)),
            (start5, "20 03 81 00 00", reserved(0x81)),
            (
                start5,
                "20 00",
                truncated(P::ConnAck, "the acknowledge flags"),
            ),
            (start5, "20 01 00", truncated(P::ConnAck, "the reason code")),
            (
                start5,
                "20 02 00 00",
                truncated(P::ConnAck, "the property length"),
            ),
            (
                start5,
                "20 04 00 00 00 FF",
                E::TrailingBytes {
                    packet: P::ConnAck,
                    extra: 1,
                },
            ),
            (
                start5,
                "20 06 00 00 03 23 0001",
                E::PropertyNotAllowed {
                    place: "CONNACK",
                    property: Property::TopicAlias,
                },
            ),
        ],
        R::MalformedPacket,
    );
    let code = |value| E::ReasonCode {
        packet: P::ConnAck,
        value,
    };
    check(
        &[
            (start3, "20 02 00 06", code(6)),
            (start3, "20 02 00 80", code(0x80)),
            (start5, "20 03 00 01 00", code(1)),
            (start5, "20 03 00 8E 00", code(0x8E)),
            (start5, "20 03 00 FF 00", code(0xFF)),
            (start3, "20 02 01 05", E::SessionPresentOnRefusal),
            (start5, "20 03 01 87 00", E::SessionPresentOnRefusal),
            (
                start5,
                "20 05 00 00 02 24 02",
                value(P::ConnAck, Property::MaximumQoS, 2, "0 or 1"),
            ),
            (
                start5,
                "20 05 00 00 02 25 02",
                value(P::ConnAck, Property::RetainAvailable, 2, "0 or 1"),
            ),
            (
                start5,
                "20 05 00 00 02 28 03",
                value(
                    P::ConnAck,
                    Property::WildcardSubscriptionAvailable,
                    3,
                    "0 or 1",
                ),
            ),
            (
                start5,
                "20 05 00 00 02 29 02",
                value(
                    P::ConnAck,
                    Property::SubscriptionIdentifierAvailable,
                    2,
                    "0 or 1",
                ),
            ),
            (
                start5,
                "20 05 00 00 02 2A 02",
                value(
                    P::ConnAck,
                    Property::SharedSubscriptionAvailable,
                    2,
                    "0 or 1",
                ),
            ),
            (
                start5,
                "20 06 00 00 03 21 0000",
                value(P::ConnAck, Property::ReceiveMaximum, 0, "1 to 65535"),
            ),
            (
                start5,
                "20 08 00 00 05 27 00000000",
                value(
                    P::ConnAck,
                    Property::MaximumPacketSize,
                    0,
                    "1 to 4294967295",
                ),
            ),
            (
                start5,
                "20 09 00 00 06 13 0001 13 0001",
                E::DuplicateProperty {
                    place: "CONNACK",
                    property: Property::ServerKeepAlive,
                },
            ),
        ],
        R::ProtocolError,
    );
}

#[test]
fn publish() {
    let name = "the topic name";
    check(
        &[
            (S3, "30 00", truncated(P::Publish, name)),
            (S3, "30 01 00", truncated(P::Publish, name)),
            (S5, "30 04 0003 'a/'", truncated(P::Publish, name)),
            (
                S3,
                "32 04 0001 'a' 00",
                truncated(P::Publish, "the packet identifier"),
            ),
            (
                S5,
                "30 03 0001 'a'",
                truncated(P::Publish, "the property length"),
            ),
            (
                S5,
                "30 04 0001 'a' 02",
                truncated(P::Publish, "the properties"),
            ),
            (S3, "30 02 0000", topic(P::Publish, name, TopicError::Empty)),
            (
                S3,
                "30 03 0001 '#'",
                topic(P::Publish, name, TopicError::WildcardInName),
            ),
            (
                S5,
                "30 06 0003 'a/+' 00",
                topic(P::Publish, name, TopicError::WildcardInName),
            ),
            (
                S3,
                "30 05 0003 'a' 00 'b'",
                utf8(P::Publish, name, Utf8Error::NullCharacter),
            ),
            (
                S5,
                "30 04 0001 80 00",
                utf8(P::Publish, name, Utf8Error::Invalid),
            ),
            // Overlong `/`, a surrogate, above U+10FFFF, a cut character.
            (
                S5,
                "30 05 0002 C0AF 00",
                utf8(P::Publish, name, Utf8Error::Invalid),
            ),
            (
                S3,
                "30 05 0003 EDBFBF",
                utf8(P::Publish, name, Utf8Error::Invalid),
            ),
            (
                S5,
                "30 07 0004 F4908080 00",
                utf8(P::Publish, name, Utf8Error::Invalid),
            ),
            (
                S3,
                "30 04 0002 E282",
                utf8(P::Publish, name, Utf8Error::Invalid),
            ),
            (
                S5,
                "30 08 0001 'a' 04 08 0001 '#'",
                topic(P::Publish, "Response Topic", TopicError::WildcardInName),
            ),
            (
                S5,
                "30 07 0001 'a' 03 08 0000",
                topic(P::Publish, "Response Topic", TopicError::Empty),
            ),
            (
                S5,
                "30 08 0001 'a' 04 03 0001 00",
                utf8(P::Publish, "Content Type", Utf8Error::NullCharacter),
            ),
            (
                S5,
                "30 09 0001 'a' 05 11 00000001",
                E::PropertyNotAllowed {
                    place: "PUBLISH",
                    property: Property::SessionExpiryInterval,
                },
            ),
            (
                C5,
                "30 06 0001 'a' 02 0B 80",
                truncated(P::Publish, "Subscription Identifier"),
            ),
            (
                C5,
                "30 07 0001 'a' 03 0B 8100",
                E::PaddedVarint {
                    packet: P::Publish,
                    field: "Subscription Identifier",
                },
            ),
            (
                C5,
                "30 0A 0001 'a' 06 0B 8080808001",
                E::OverlongVarint {
                    packet: P::Publish,
                    field: "Subscription Identifier",
                },
            ),
            // A property block that ends within a value although the packet goes on.
            (
                S5,
                "30 09 0001 'a' 03 02 0000 0001",
                truncated(P::Publish, "Message Expiry Interval"),
            ),
        ],
        R::MalformedPacket,
    );
    let alias = "1 to 65535";
    check(
        &[(
            S5,
            "30 07 0001 'a' 03 23 0000",
            value(P::Publish, Property::TopicAlias, 0, alias),
        )],
        R::TopicAliasInvalid,
    );
    let twice = |property| E::DuplicateProperty {
        place: "PUBLISH",
        property,
    };
    check(
        &[
            (
                S3,
                "32 05 0001 'a' 0000",
                E::PacketIdZero { packet: P::Publish },
            ),
            (
                S5,
                "3C 06 0001 'a' 0000 00",
                E::PacketIdZero { packet: P::Publish },
            ),
            (S5, "30 03 0000 00", E::TopicMissing),
            (C5, "30 05 0000 02 01 01", E::TopicMissing),
            (
                S5,
                "30 06 0001 'a' 02 01 02",
                value(P::Publish, Property::PayloadFormatIndicator, 2, "0 or 1"),
            ),
            (
                S5,
                "30 08 0001 'a' 04 01 01 01 01",
                twice(Property::PayloadFormatIndicator),
            ),
            (
                S5,
                "30 0E 0001 'a' 0A 02 00000001 02 00000001",
                twice(Property::MessageExpiryInterval),
            ),
            (
                S5,
                "30 0A 0001 'a' 06 23 0001 23 0001",
                twice(Property::TopicAlias),
            ),
            (
                S5,
                "30 0C 0001 'a' 08 08 0001 'r' 08 0001 'r'",
                twice(Property::ResponseTopic),
            ),
            (
                S5,
                "30 0A 0001 'a' 06 09 0000 09 0000",
                twice(Property::CorrelationData),
            ),
            (
                S5,
                "30 0A 0001 'a' 06 03 0000 03 0000",
                twice(Property::ContentType),
            ),
            (
                C5,
                "30 06 0001 'a' 02 0B 00",
                value(
                    P::Publish,
                    Property::SubscriptionIdentifier,
                    0,
                    "1 to 268435455",
                ),
            ),
            (
                S5,
                "30 06 0001 'a' 02 0B 01",
                E::PropertyFromWrongSide {
                    place: "PUBLISH",
                    property: Property::SubscriptionIdentifier,
                },
            ),
        ],
        R::ProtocolError,
    );
    accepted(&[
        (S5, "30 06 0000 03 23 0001"),
        (C5, "30 08 0001 'a' 04 0B 01 0B 01"),
        (S3, "30 03 0001 'a'"),
        (S5, "30 06 0003 EFBBBF 00"),
    ]);
}

#[test]
fn acknowledgements() {
    check(
        &[
            (S5, "40 00", truncated(P::PubAck, "the packet identifier")),
            (
                S5,
                "50 01 00",
                truncated(P::PubRec, "the packet identifier"),
            ),
            (
                S5,
                "40 04 0001 00 05",
                truncated(P::PubAck, "the properties"),
            ),
            (
                S5,
                "62 05 0001 00 00 FF",
                E::TrailingBytes {
                    packet: P::PubRel,
                    extra: 1,
                },
            ),
            (
                C5,
                "70 06 0001 00 02 01 01",
                E::PropertyNotAllowed {
                    place: "PUBCOMP",
                    property: Property::PayloadFormatIndicator,
                },
            ),
        ],
        R::MalformedPacket,
    );
    check(
        &[
            (S3, "40 02 0000", E::PacketIdZero { packet: P::PubAck }),
            (C3, "50 02 0000", E::PacketIdZero { packet: P::PubRec }),
            (S5, "62 02 0000", E::PacketIdZero { packet: P::PubRel }),
            (C5, "70 03 0000 00", E::PacketIdZero { packet: P::PubComp }),
            (
                S5,
                "40 03 0001 01",
                E::ReasonCode {
                    packet: P::PubAck,
                    value: 1,
                },
            ),
            (
                S5,
                "40 03 0001 92",
                E::ReasonCode {
                    packet: P::PubAck,
                    value: 0x92,
                },
            ),
            (
                C5,
                "50 03 0001 FF",
                E::ReasonCode {
                    packet: P::PubRec,
                    value: 0xFF,
                },
            ),
            (
                S5,
                "62 03 0001 10",
                E::ReasonCode {
                    packet: P::PubRel,
                    value: 0x10,
                },
            ),
            (
                C5,
                "70 03 0001 80",
                E::ReasonCode {
                    packet: P::PubComp,
                    value: 0x80,
                },
            ),
            (
                S5,
                "40 0C 0001 00 08 1F 0001 'a' 1F 0001 'b'",
                E::DuplicateProperty {
                    place: "PUBACK",
                    property: Property::ReasonString,
                },
            ),
        ],
        R::ProtocolError,
    );
}

#[test]
fn subscribe_and_unsubscribe() {
    let filter = "a topic filter";
    let options = |value, problem| E::Flags {
        packet: P::Subscribe,
        field: "the subscription options",
        value,
        problem,
    };
    let bits3 = "bits 7 to 2 are reserved";
    let bits5 = "bits 7 and 6 are reserved";
    check(
        &[
            (
                S3,
                "82 01 00",
                truncated(P::Subscribe, "the packet identifier"),
            ),
            (
                S5,
                "82 02 0001",
                truncated(P::Subscribe, "the property length"),
            ),
            (
                S3,
                "82 05 0001 0001 'a'",
                truncated(P::Subscribe, "the subscription options"),
            ),
            (S3, "82 04 0001 0005", truncated(P::Subscribe, filter)),
            (
                S3,
                "82 07 0001 0001 'a' 00 00",
                truncated(P::Subscribe, filter),
            ),
            (S3, "82 06 0001 0001 'a' 04", options(4, bits3)),
            (S3, "82 06 0001 0001 'a' 81", options(0x81, bits3)),
            (S5, "82 07 0001 00 0001 'a' 40", options(0x40, bits5)),
            (S5, "82 07 0001 00 0001 'a' 81", options(0x81, bits5)),
            (
                S3,
                "82 05 0001 0000 00",
                topic(P::Subscribe, filter, TopicError::Empty),
            ),
            (
                S3,
                "82 07 0001 0002 'a#' 00",
                topic(P::Subscribe, filter, TopicError::MisplacedHash),
            ),
            (
                S5,
                "82 09 0001 00 0003 '#/a' 00",
                topic(P::Subscribe, filter, TopicError::MisplacedHash),
            ),
            (
                S3,
                "82 07 0001 0002 'a+' 00",
                topic(P::Subscribe, filter, TopicError::MisplacedPlus),
            ),
            (
                S5,
                "82 0B 0001 00 0005 'a/+b/' 00",
                topic(P::Subscribe, filter, TopicError::MisplacedPlus),
            ),
            (
                S5,
                "82 0D 0001 00 0007 '$share/' 00",
                topic(P::Subscribe, filter, TopicError::ShareName),
            ),
            (
                S5,
                "82 0F 0001 00 0009 '$share//a' 00",
                topic(P::Subscribe, filter, TopicError::ShareName),
            ),
            (
                S5,
                "82 10 0001 00 000A '$share/+/a' 00",
                topic(P::Subscribe, filter, TopicError::ShareName),
            ),
            (
                S5,
                "82 0E 0001 00 0008 '$share/g' 00",
                topic(P::Subscribe, filter, TopicError::ShareWithoutFilter),
            ),
            (
                S5,
                "82 0F 0001 00 0009 '$share/g/' 00",
                topic(P::Subscribe, filter, TopicError::ShareWithoutFilter),
            ),
            (
                S5,
                "82 11 0001 00 000B '$share/g/a#' 00",
                topic(P::Subscribe, filter, TopicError::MisplacedHash),
            ),
            (
                S3,
                "82 06 0001 0001 00 00",
                utf8(P::Subscribe, filter, Utf8Error::NullCharacter),
            ),
            (
                S5,
                "82 07 0001 00 0001 FE 00",
                utf8(P::Subscribe, filter, Utf8Error::Invalid),
            ),
            (
                S5,
                "82 09 0001 02 01 01 0001 'a' 00",
                E::PropertyNotAllowed {
                    place: "SUBSCRIBE",
                    property: Property::PayloadFormatIndicator,
                },
            ),
            (S3, "A2 05 0001 0002 'a'", truncated(P::Unsubscribe, filter)),
            (
                S3,
                "A2 04 0001 0000",
                topic(P::Unsubscribe, filter, TopicError::Empty),
            ),
            (
                S5,
                "A2 07 0001 00 0002 '##'",
                topic(P::Unsubscribe, filter, TopicError::MisplacedHash),
            ),
            (
                S5,
                "A2 09 0001 02 0B 01 0002 'aa'",
                E::PropertyNotAllowed {
                    place: "UNSUBSCRIBE",
                    property: Property::SubscriptionIdentifier,
                },
            ),
        ],
        R::MalformedPacket,
    );
    check(
        &[
            (
                S3,
                "82 02 0001",
                E::NoEntries {
                    packet: P::Subscribe,
                },
            ),
            (
                S5,
                "82 03 0001 00",
                E::NoEntries {
                    packet: P::Subscribe,
                },
            ),
            (
                S3,
                "A2 02 0001",
                E::NoEntries {
                    packet: P::Unsubscribe,
                },
            ),
            (
                S5,
                "A2 03 0001 00",
                E::NoEntries {
                    packet: P::Unsubscribe,
                },
            ),
            (
                S3,
                "82 06 0000 0001 'a' 00",
                E::PacketIdZero {
                    packet: P::Subscribe,
                },
            ),
            (
                S5,
                "A2 06 0000 00 0001 'a'",
                E::PacketIdZero {
                    packet: P::Unsubscribe,
                },
            ),
            (S3, "82 06 0001 0001 'a' 03", E::SubscriptionQoS),
            (S5, "82 07 0001 00 0001 'a' 03", E::SubscriptionQoS),
            (S5, "82 07 0001 00 0001 'a' 30", E::RetainHandling),
            (S5, "82 10 0001 00 000A '$share/g/a' 04", E::NoLocalOnShared),
            (
                S5,
                "82 09 0001 02 0B 00 0001 'a' 00",
                value(
                    P::Subscribe,
                    Property::SubscriptionIdentifier,
                    0,
                    "1 to 268435455",
                ),
            ),
            (
                S5,
                "82 0B 0001 04 0B 01 0B 02 0001 'a' 00",
                E::DuplicateProperty {
                    place: "SUBSCRIBE",
                    property: Property::SubscriptionIdentifier,
                },
            ),
        ],
        R::ProtocolError,
    );
}

#[test]
fn suback_and_unsuback() {
    check(
        &[
            (
                C3,
                "90 01 00",
                truncated(P::SubAck, "the packet identifier"),
            ),
            (C5, "90 03 0001 01", truncated(P::SubAck, "the properties")),
            (
                C5,
                "B0 02 0001",
                truncated(P::UnsubAck, "the property length"),
            ),
        ],
        R::MalformedPacket,
    );
    check(
        &[
            (C3, "90 03 0000 00", E::PacketIdZero { packet: P::SubAck }),
            (C3, "90 02 0001", E::NoEntries { packet: P::SubAck }),
            (C5, "90 03 0001 00", E::NoEntries { packet: P::SubAck }),
            (
                C5,
                "B0 03 0001 00",
                E::NoEntries {
                    packet: P::UnsubAck,
                },
            ),
            (
                C3,
                "B0 02 0000",
                E::PacketIdZero {
                    packet: P::UnsubAck,
                },
            ),
            (
                C3,
                "90 03 0001 03",
                E::ReasonCode {
                    packet: P::SubAck,
                    value: 3,
                },
            ),
            (
                C3,
                "90 03 0001 87",
                E::ReasonCode {
                    packet: P::SubAck,
                    value: 0x87,
                },
            ),
            (
                C5,
                "90 04 0001 00 03",
                E::ReasonCode {
                    packet: P::SubAck,
                    value: 3,
                },
            ),
            (
                C5,
                "90 05 0001 00 00 85",
                E::ReasonCode {
                    packet: P::SubAck,
                    value: 0x85,
                },
            ),
            (
                C5,
                "B0 04 0001 00 01",
                E::ReasonCode {
                    packet: P::UnsubAck,
                    value: 1,
                },
            ),
        ],
        R::ProtocolError,
    );
    accepted(&[(C3, "90 06 0001 00 01 02 80"), (C5, "90 05 0001 00 87 A2")]);
}

#[test]
fn disconnect_and_auth() {
    check(
        &[
            (
                S5,
                "E0 02 00 04",
                truncated(P::Disconnect, "the properties"),
            ),
            (
                S5,
                "E0 03 00 00 FF",
                E::TrailingBytes {
                    packet: P::Disconnect,
                    extra: 1,
                },
            ),
            (
                S5,
                "E0 05 00 03 23 0001",
                E::PropertyNotAllowed {
                    place: "DISCONNECT",
                    property: Property::TopicAlias,
                },
            ),
            (S5, "F0 01 18", truncated(P::Auth, "the property length")),
            (
                S5,
                "F0 07 18 05 11 00000001",
                E::PropertyNotAllowed {
                    place: "AUTH",
                    property: Property::SessionExpiryInterval,
                },
            ),
        ],
        R::MalformedPacket,
    );
    let from_wrong_side = E::PropertyFromWrongSide {
        place: "DISCONNECT",
        property: Property::SessionExpiryInterval,
    };
    check(
        &[
            (
                S5,
                "E0 01 01",
                E::ReasonCode {
                    packet: P::Disconnect,
                    value: 1,
                },
            ),
            // Only a server shuts down; only a client asks for its will.
            (
                S5,
                "E0 01 8B",
                E::ReasonCode {
                    packet: P::Disconnect,
                    value: 0x8B,
                },
            ),
            (
                C5,
                "E0 01 04",
                E::ReasonCode {
                    packet: P::Disconnect,
                    value: 4,
                },
            ),
            (C5, "E0 07 00 05 11 00000000", from_wrong_side),
            (
                S5,
                "E0 0C 00 0A 11 00000000 11 00000000",
                E::DuplicateProperty {
                    place: "DISCONNECT",
                    property: Property::SessionExpiryInterval,
                },
            ),
            (
                S5,
                "F0 00",
                E::ReasonCode {
                    packet: P::Auth,
                    value: 0,
                },
            ),
            (
                S5,
                "F0 02 18 00",
                E::AuthenticationMethodMissing { packet: P::Auth },
            ),
            (
                C5,
                "F0 06 19 04 15 0001 'm'",
                E::ReasonCode {
                    packet: P::Auth,
                    value: 0x19,
                },
            ),
            (
                S5,
                "F0 06 80 04 15 0001 'm'",
                E::ReasonCode {
                    packet: P::Auth,
                    value: 0x80,
                },
            ),
        ],
        R::ProtocolError,
    );
    accepted(&[
        (S5, "E0 00"),
        (S5, "E0 01 04"),
        (C5, "E0 01 8B"),
        (S5, "F0 06 19 04 15 0001 'm'"),
        (C5, "F0 00"),
        (At::ClientStart(V5), "F0 06 18 04 15 0001 'm'"),
    ]);
}

#[test]
fn the_version_is_known_even_when_the_rest_of_connect_is_refused() {
    for (bytes, version) in [
        ("10 0C 0004 'MQTT' 04 03 0000 0000", Some(V311)),
        ("10 0D 0004 'MQTT' 05 03 0000 00 0000", Some(V5)),
        ("10 0C 0004 'MQTT' 03 02 0000 0000", None),
    ] {
        let mut decoder = START.decoder(MAX_PACKET_SIZE);
        let result = decoder.decode(&mut BytesMut::from(&wire(bytes)[..]));
        assert!(result.is_err(), "{bytes}");
        assert_eq!(decoder.version(), version, "{bytes}");
    }
}

#[test]
fn a_refusal_says_it_in_the_words_of_each_version() {
    let unsupported = E::UnsupportedVersion { level: 3 }.reason();
    assert_eq!(unsupported.as_u8(), 0x84);
    assert_eq!(
        unsupported.connect_return_code().map(|code| code.as_u8()),
        Some(1)
    );
    let no_id = E::ClientIdMissing.reason();
    assert_eq!(
        no_id.connect_return_code().map(|code| code.as_u8()),
        Some(2)
    );
    // 3.1.1 closes without a word.
    assert_eq!(
        E::ProtocolName
            .reason()
            .connect_return_code()
            .map(|c| c.as_u8()),
        Some(1)
    );
    assert_eq!(connect_flags(1, "").reason().connect_return_code(), None);
}

#[test]
fn errors_name_the_thing_and_the_limit() {
    let large = E::PacketTooLarge {
        packet: P::Publish,
        size: 2000,
        limit: 1024,
    };
    assert_eq!(
        large.to_string(),
        "PUBLISH has 2000 bytes, the limit is 1024; raise the maximum packet size or send less"
    );
    let text = utf8(P::Connect, "the user name", Utf8Error::NullCharacter);
    assert_eq!(
        text.to_string(),
        "CONNECT: the user name contains the character U+0000"
    );
    let twice = E::DuplicateProperty {
        place: "PUBLISH",
        property: Property::TopicAlias,
    };
    assert_eq!(
        twice.to_string(),
        "PUBLISH has the property Topic Alias twice"
    );
}
