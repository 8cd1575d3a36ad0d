//! Connecting, staying connected and leaving: CONNECT, CONNACK, PINGREQ, DISCONNECT (MQTT 5
//! sections 3.1, 3.2, 3.12 to 3.14, 4.13) and the words of MQTT 3.1.1 for the same.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use broker::Limits;
use common::{
    Access, Client, VERSIONS, dial, exchange_bytes, qos0, qos1, start_tcp, start_with, stored,
    until, wish,
};
use mqtt::{
    Connect, Decoder, Disconnect, Packet, PacketId, Property, PubRec, PubRel, QoS, ReasonCode,
    Secret, Unsubscribe, UnsubscribeProperties, Version,
};

const V3: Version = Version::V311;
const V5: Version = Version::V5;

fn encode(packet: impl Into<Packet>, version: Version) -> Vec<u8> {
    let mut out = mqtt::BytesMut::new();
    mqtt::encode(&packet.into(), version, &mut out).expect("a valid packet");
    out.to_vec()
}

#[test]
fn a_second_connect_ends_the_connection() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut car = setup.client(version, "car");
        car.send(Connect::new(version, "car"));
        car.is_closed_for(ReasonCode::ProtocolError);
    }
}

#[test]
fn connack_says_what_the_broker_has() {
    let limits = Limits {
        max_inflight: 77,
        max_packet_size: 100_000,
        topic_alias_maximum: 5,
        keep_alive_max: Duration::from_secs(100),
        ..Limits::default()
    };
    let setup = start_with(limits);
    let (_car, ack) = setup.join(Connect::new(V5, "car"));
    assert!(!ack.session_present);
    let said = ack.properties;
    assert_eq!(said.receive_maximum.map(u16::from), Some(77));
    assert_eq!(said.maximum_packet_size.map(u32::from), Some(100_000));
    assert_eq!(said.topic_alias_maximum, Some(5));
    assert_eq!(said.server_keep_alive, Some(100), "none was asked for");
    // What is left out is available.
    assert_eq!(said.maximum_qos, None);
    assert_ne!(said.retain_available, Some(false));
    assert_ne!(said.wildcard_subscription_available, Some(false));
    assert_ne!(said.subscription_identifiers_available, Some(false));
    assert_ne!(said.shared_subscription_available, Some(false));
    assert_eq!(said.assigned_client_id, None);
    assert_eq!(said.authentication_method, None);
}

#[test]
fn a_keep_alive_the_broker_accepts_is_not_replaced() {
    let limits = Limits {
        keep_alive_max: Duration::from_secs(100),
        ..Limits::default()
    };
    let setup = start_with(limits);
    let rows = [(50, None), (100, None), (101, Some(100)), (0, Some(100))];
    for (asked, told) in rows {
        let mut connect = Connect::new(V5, "car");
        connect.keep_alive = asked;
        let (_car, ack) = setup.join(connect);
        assert_eq!(ack.properties.server_keep_alive, told, "{asked}");
    }
}

#[test]
fn silence_ends_the_connection_and_a_ping_is_no_silence() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut connect = Connect::new(version, "silent");
        connect.keep_alive = 1;
        // Not between them: a slow machine could make that a silence of its own.
        let mut silent = Client::open_with(dial(setup.addr), connect, [Packet::PingReq]);
        assert_eq!(silent.connack().reason, ReasonCode::Success);
        assert_eq!(silent.next(), Some(Packet::PingResp));
        silent.is_closed_for(ReasonCode::KeepAliveTimeout);
    }
    assert_eq!(setup.handle.stats().keep_alive_timeouts, 2);
}

#[test]
fn a_keep_alive_set_by_the_broker_is_the_one_that_counts() {
    let limits = Limits {
        keep_alive_max: Duration::from_secs(1),
        ..Limits::default()
    };
    let setup = start_with(limits);
    let mut connect = Connect::new(V5, "silent");
    connect.keep_alive = 3600;
    let (mut silent, ack) = setup.join(connect);
    assert_eq!(ack.properties.server_keep_alive, Some(1));
    assert_eq!(silent.farewell(), Some(ReasonCode::KeepAliveTimeout));
}

#[test]
fn a_client_without_a_name_gets_one_of_its_own() {
    let setup = start_tcp();
    let mut names = HashSet::new();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (client, ack) = setup.join(Connect::new(V5, ""));
        let name = ack.properties.assigned_client_id.expect("a name");
        assert!(!name.is_empty() && names.insert(name.to_string()), "{name}");
        clients.push(client);
        // MQTT 3.1.1 cannot be told, but is treated the same.
        clients.push(setup.client(V3, ""));
    }
    for client in &mut clients {
        client.ping();
    }
}

#[test]
fn an_assigned_name_is_good_for_coming_back() {
    let setup = start_tcp();
    let mut connect = Connect::new(V5, "");
    connect.properties.session_expiry_interval = Some(3600);
    let (mut client, ack) = setup.join(connect);
    let name = ack.properties.assigned_client_id.expect("a name");
    client.subscribe("a", QoS::AtLeastOnce);
    client.leave();
    setup.resume(stored(V5, &name)).ping();
}

#[test]
fn client_ids_of_every_length_and_alphabet_are_taken() {
    let setup = start_tcp();
    let alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut names: Vec<String> = (0..alphabet.len() - 22)
        .step_by(13)
        .map(|from| alphabet[from..from + 23].to_owned())
        .collect();
    names.push(alphabet[39..].to_owned());
    names.push("x".to_owned());
    names.push("Straße/日本 +#".to_owned());
    names.push("y".repeat(200));
    for version in VERSIONS {
        for name in &names {
            setup.client(version, name).ping();
        }
    }
}

#[test]
fn user_name_and_password_reach_the_outside_as_they_are() {
    let setup = start_tcp();
    let rows = [
        (V3, None, None),
        (V5, None, None),
        (V3, Some("u"), None),
        (V3, Some("u"), Some(&b"\x00p\xff"[..])),
        (V5, Some("ü"), Some(&b""[..])),
        // A password alone is for MQTT 5 only.
        (V5, None, Some(&b"token"[..])),
    ];
    for (version, username, password) in rows {
        let mut connect = Connect::new(version, "car");
        connect.username = username.map(Into::into);
        connect.password = password.map(Secret::from);
        let _car = setup.enter(connect);
        let seen = setup.outside.last_credentials.lock().unwrap().clone();
        let expected = (username.map(str::to_owned), password.map(<[u8]>::to_vec));
        assert_eq!(seen, expected);
    }
}

#[test]
fn a_refused_client_hears_the_reason_and_is_closed() {
    let setup = start_tcp();
    let wrong = ReasonCode::BadUserNameOrPassword;
    for version in VERSIONS {
        let mut connect = Connect::new(version, "car");
        connect.username = Some("u".into());
        connect.password = Some("wrong".into());
        // Even with a session to come back to, a refusal says that there is none.
        setup.enter(stored(version, "car")).leave();
        connect.clean_start = false;
        let (mut car, ack) = setup.join(connect);
        assert_eq!((ack.reason, ack.session_present), (wrong, false));
        assert_eq!(car.next(), None);
    }
    assert_eq!(setup.handle.stats().connects_refused, [(wrong, 2)]);
}

#[test]
fn what_a_refused_client_sends_after_connect_is_not_handled() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    for version in VERSIONS {
        let mut connect = Connect::new(version, "car");
        connect.username = Some("u".into());
        connect.password = Some("wrong".into());
        let mut bytes = encode(connect, version);
        bytes.extend(encode(qos0("a", "smuggled"), version));
        exchange_bytes(setup.addr, &bytes);
    }
    setup.client(V5, "honest").publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

#[test]
fn packets_sent_before_connack_came_are_answered_after_it() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut bytes = encode(
            mqtt::Subscribe {
                packet_id: PacketId::FIRST,
                subscriptions: vec![wish("a", QoS::AtLeastOnce)],
                properties: Default::default(),
            },
            version,
        );
        bytes.extend(encode(qos1(2, "a", "x"), version));
        let mut car = Client::open(dial(setup.addr), Connect::new(version, "car"));
        car.raw(&bytes);
        assert_eq!(car.connack().reason, ReasonCode::Success);
        assert_eq!(car.suback().packet_id, PacketId::FIRST);
        assert_eq!(car.text(), "a: x");
        assert_eq!(car.puback(), (2, ReasonCode::Success));
    }
}

#[test]
fn the_newer_connection_of_a_name_throws_the_older_out() {
    let setup = start_tcp();
    for first in VERSIONS {
        for second in VERSIONS {
            let mut older = setup.client(first, "car");
            let mut newer = setup.client(second, "car");
            older.is_closed_for(ReasonCode::SessionTakenOver);
            newer.ping();
        }
    }
}

#[test]
fn nothing_after_disconnect_is_handled() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    for version in VERSIONS {
        let mut car = setup.client(version, "car");
        let mut bytes = encode(qos0("a", "before"), version);
        bytes.extend(encode(Disconnect::default(), version));
        bytes.extend(encode(qos0("a", "after"), version));
        car.raw(&bytes);
        assert_eq!(car.farewell(), None, "nothing is answered to DISCONNECT");
        assert_eq!(app.text(), "a: before");
    }
    setup.client(V5, "other").publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

#[test]
fn a_malformed_packet_ends_the_connection_with_its_reason() {
    let setup = start_tcp();
    // The same mistakes in both versions. Every other mistake is a row of `mqtt/tests/malformed.rs`.
    let rows: [(&[u8], &[u8], ReasonCode); 6] = [
        // Reserved flags.
        (b"\x83\x00", b"\x83\x00", ReasonCode::MalformedPacket),
        // PUBLISH with QoS 3.
        (
            b"\x36\x05\x00\x01a\x00\x01",
            b"\x36\x06\x00\x01a\x00\x01\x00",
            ReasonCode::MalformedPacket,
        ),
        // A topic that is no UTF-8, one with U+0000.
        (
            b"\x30\x03\x00\x01\xff",
            b"\x30\x04\x00\x01\xff\x00",
            ReasonCode::MalformedPacket,
        ),
        (
            b"\x30\x03\x00\x01\x00",
            b"\x30\x04\x00\x01\x00\x00",
            ReasonCode::MalformedPacket,
        ),
        // SUBSCRIBE of nothing, packet identifier 0.
        (
            b"\x82\x02\x00\x01",
            b"\x82\x03\x00\x01\x00",
            ReasonCode::ProtocolError,
        ),
        (
            b"\x32\x05\x00\x01a\x00\x00",
            b"\x32\x06\x00\x01a\x00\x00\x00",
            ReasonCode::ProtocolError,
        ),
    ];
    for (v3, v5, reason) in rows {
        for (version, bytes) in [(V3, v3), (V5, v5)] {
            let mut car = setup.client(version, "car");
            car.raw(bytes);
            car.is_closed_for(reason);
        }
    }
}

#[test]
fn packets_only_a_server_sends_end_the_connection() {
    let setup = start_tcp();
    let rows: [&[u8]; 4] = [
        b"\x20\x02\x00\x00",     // CONNACK
        b"\x90\x03\x00\x01\x00", // SUBACK
        b"\xb0\x02\x00\x01",     // UNSUBACK
        b"\xd0\x00",             // PINGRESP
    ];
    for bytes in rows {
        for version in VERSIONS {
            let mut car = setup.client(version, "car");
            car.raw(bytes);
            car.is_closed_for(ReasonCode::ProtocolError);
        }
    }
}

#[test]
fn a_connect_that_contradicts_itself_is_refused() {
    let setup = start_tcp();
    let code = |answer: &[u8]| {
        let mut decoder = Decoder::for_client(V5, 1024);
        match decoder.decode(&mut answer.into()) {
            Ok(Some(Packet::ConnAck(ack))) => Some(ack.reason),
            _ => None,
        }
    };
    // Reserved flag, a property twice, an invalid value, a user name that is announced and missing.
    let rows: [(&[u8], ReasonCode); 4] = [
        (
            b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01a",
            ReasonCode::MalformedPacket,
        ),
        (
            b"\x10\x14\x00\x04MQTT\x05\x02\x00\x00\x06\x21\x00\x01\x21\x00\x01\x00\x01a",
            ReasonCode::ProtocolError,
        ),
        (
            b"\x10\x11\x00\x04MQTT\x05\x02\x00\x00\x03\x21\x00\x00\x00\x01a",
            ReasonCode::ProtocolError,
        ),
        (
            b"\x10\x0e\x00\x04MQTT\x05\x82\x00\x00\x00\x00\x01a",
            ReasonCode::MalformedPacket,
        ),
    ];
    for (bytes, reason) in rows {
        assert_eq!(code(&exchange_bytes(setup.addr, bytes)), Some(reason));
    }
    // MQTT 3.1.1 has no return code for these: closed without a word.
    let v3 = b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01a";
    assert_eq!(exchange_bytes(setup.addr, v3), b"");
}

#[test]
fn response_information_comes_only_when_asked_for() {
    let setup = start_tcp();
    for (asked, told) in [
        (None, None),
        (Some(false), None),
        (Some(true), Some("answers/car")),
    ] {
        let mut connect = Connect::new(V5, "car");
        connect.properties.request_response_information = asked;
        let (_car, ack) = setup.join(connect);
        let said = ack.properties.response_information;
        assert_eq!(said.as_ref().map(|topic| topic.as_str()), told);
    }
}

#[test]
fn reason_strings_and_user_properties_come_only_to_who_wants_them() {
    let setup = start_tcp();
    setup.outside.deny(Access::Subscribe, "*", "secret/");
    setup.outside.deny(Access::Publish, "*", "secret/");
    for wanted in [None, Some(true), Some(false)] {
        let mut connect = Connect::new(V5, "car");
        connect.properties.request_problem_information = wanted;
        let mut car = setup.enter(connect);
        let reason = ReasonCode::NotAuthorized;

        car.send(mqtt::Subscribe {
            packet_id: PacketId::FIRST,
            subscriptions: vec![wish("secret/a", QoS::AtMostOnce)],
            properties: Default::default(),
        });
        let suback = car.suback();
        assert_eq!(suback.reasons, [reason]);
        car.send(qos1(1, "secret/a", "x"));
        let Some(Packet::PubAck(puback)) = car.next() else {
            panic!("no PUBACK")
        };
        assert_eq!(puback.reason, reason);
        car.send(common::qos2(1, "secret/a", "x"));
        let Some(Packet::PubRec(pubrec)) = car.next() else {
            panic!("no PUBREC")
        };
        assert_eq!(pubrec.reason, reason);
        car.send(Unsubscribe {
            packet_id: PacketId::FIRST,
            filters: vec![common::filter("never/subscribed")],
            properties: UnsubscribeProperties::default(),
        });
        let unsuback = car.unsuback();
        assert_eq!(unsuback.reasons, [ReasonCode::NoSubscriptionExisted]);

        if wanted == Some(false) {
            assert_eq!(suback.properties, Default::default());
            assert_eq!(puback.properties, Default::default());
            assert_eq!(pubrec.properties, Default::default());
            assert_eq!(unsuback.properties, Default::default());
        } else {
            assert!(suback.properties.reason_string.is_some());
            assert!(puback.properties.reason_string.is_some());
            assert!(pubrec.properties.reason_string.is_some());
        }
    }
}

#[test]
fn a_refused_connect_says_why_unless_the_client_does_not_want_to_know() {
    let setup = start_tcp();
    for (wanted, told) in [(None, true), (Some(true), true), (Some(false), false)] {
        let mut connect = Connect::new(V5, "car");
        connect.password = Some("wrong".into());
        connect.properties.request_problem_information = wanted;
        let (_, ack) = setup.join(connect);
        assert_eq!(ack.properties.reason_string.is_some(), told, "{wanted:?}");
    }
}

#[test]
fn no_answer_is_larger_than_the_client_takes() {
    let setup = start_tcp();
    setup.outside.deny(Access::Subscribe, "*", "secret/");
    setup.outside.deny(Access::Publish, "*", "secret/");
    let (_, ack) = setup.join(Connect::new(V5, "probe"));
    let connack = encode(ack, V5).len();
    for more in [0, 1, 2, 5, 10, 20, 40, 80] {
        let size = connack + more;
        let mut connect = Connect::new(V5, "car");
        connect.properties.maximum_packet_size = (size as u32).try_into().ok();
        let mut car = setup.enter(connect);
        car.send(mqtt::Subscribe {
            packet_id: PacketId::FIRST,
            subscriptions: vec![wish("secret/a", QoS::AtMostOnce)],
            properties: Default::default(),
        });
        car.send(qos1(1, "secret/a", "x"));
        car.send(common::qos2(1, "secret/a", "x"));
        car.send(Unsubscribe {
            packet_id: PacketId::FIRST,
            filters: vec![common::filter("never/subscribed")],
            properties: UnsubscribeProperties::default(),
        });
        // PUBREL and PUBCOMP, for what is not known.
        car.send(PubRec::success(PacketId::FIRST));
        car.send(PubRel::success(PacketId::FIRST));
        // The last answer is DISCONNECT.
        car.send(Connect::new(V5, "car"));
        let mut answers = 0;
        while let Some(packet) = car.next() {
            answers += 1;
            let length = encode(packet.clone(), V5).len();
            assert!(length <= size, "{packet:?} of {length} bytes, not {size}");
        }
        assert_eq!(answers, 7, "what is too large is said in fewer words");
    }
}

#[test]
fn a_refusal_is_not_larger_than_the_client_takes() {
    let setup = start_tcp();
    for size in 5..60u32 {
        let mut connect = Connect::new(V5, "car");
        connect.password = Some("wrong".into());
        connect.properties.maximum_packet_size = size.try_into().ok();
        let (_, ack) = setup.join(connect);
        assert_eq!(ack.reason, ReasonCode::BadUserNameOrPassword);
        assert!(encode(ack, V5).len() <= size as usize, "{size}");
    }
}

#[test]
fn a_client_is_sent_to_another_server() {
    let setup = start_tcp();
    let mut connect = Connect::new(V5, "car");
    connect.username = Some("moved".into());
    let (mut car, ack) = setup.join(connect.clone());
    assert_eq!(ack.reason, ReasonCode::ServerMoved);
    let server = ack.properties.server_reference.expect("a reference");
    assert_eq!(server, "b.example:1883");
    assert_eq!(car.next(), None);
    // MQTT 3.1.1 has no words for it: the service is not available here.
    connect.version = V3;
    connect.properties = Default::default();
    let (mut car, ack) = setup.join(connect);
    assert_eq!(ack.reason, ReasonCode::ServerUnavailable);
    assert_eq!(car.next(), None);
}

#[test]
fn a_session_expiry_above_the_maximum_is_lowered_and_said_so() {
    let limits = Limits {
        session_expiry_max: Duration::from_secs(100),
        ..Limits::default()
    };
    let setup = start_with(limits);
    let rows = [
        (None, None),
        (Some(0), None),
        (Some(100), None),
        (Some(101), Some(100)),
        (Some(u32::MAX), Some(100)),
    ];
    for (asked, told) in rows {
        let mut connect = Connect::new(V5, "car");
        connect.properties.session_expiry_interval = asked;
        let (_car, ack) = setup.join(connect);
        assert_eq!(ack.properties.session_expiry_interval, told, "{asked:?}");
    }
}

#[test]
fn what_mqtt_5_lets_both_sides_leave_out_may_be_left_out() {
    let setup = start_tcp();
    // DISCONNECT without reason, with reason and without property length.
    for bytes in [&b"\xe0\x00"[..], b"\xe0\x01\x00", b"\xe0\x02\x00\x00"] {
        let mut car = setup.client(V5, "car");
        car.raw(bytes);
        assert_eq!(car.farewell(), None);
    }
    setup.settled(0);
    assert_eq!(setup.handle.stats().disconnects, [(ReasonCode::Success, 3)]);
    // PUBACK with and without reason.
    let mut app = setup.client(V5, "app");
    app.subscribe("a", QoS::AtLeastOnce);
    for bytes in [&b"\x40\x02"[..], b"\x40\x03", b"\x40\x04"] {
        setup.client(V5, "car").publish(qos1(1, "a", "x"));
        let id = app.message().packet_id.expect("QoS 1").get();
        let ack = [
            bytes,
            &id.to_be_bytes(),
            &b"\x00\x00"[..bytes[1] as usize - 2],
        ]
        .concat();
        app.raw(&ack);
        app.ping();
    }
    until("all are acknowledged", || {
        setup.handle.stats().pubacks_received == 3
    });
}

#[test]
fn a_disconnect_from_the_broker_keeps_session_expiry_to_itself() {
    let setup = start_tcp();
    let mut car = setup.enter(stored(V5, "car"));
    let reason = ReasonCode::AdministrativeAction;
    assert_eq!(setup.handle.disconnect_principal("car", reason), 1);
    match car.next() {
        Some(Packet::Disconnect(said)) => {
            assert_eq!(said.reason, reason);
            let expiry = said.properties.session_expiry_interval;
            assert_eq!(expiry, None, "{}", Property::SessionExpiryInterval);
        }
        other => panic!("no DISCONNECT but {other:?}"),
    }
    assert_eq!(car.next(), None);
}

#[test]
fn one_client_is_served_whatever_another_does() {
    let setup = start_tcp();
    let mut good = setup.client(V5, "good");
    for version in VERSIONS {
        let mut bad = setup.client(version, "bad");
        bad.raw(b"\xff\xff\xff\xff\xff\xff");
        assert!(bad.farewell().is_none() || version == V5);
        good.ping();
    }
}

#[test]
fn disconnect_of_mqtt_5_may_bring_a_reason_that_is_counted() {
    let setup = start_tcp();
    let rows = [
        ReasonCode::DisconnectWithWill,
        ReasonCode::UnspecifiedError,
        ReasonCode::ImplementationSpecificError,
    ];
    for reason in rows {
        setup.client(V5, "car").leave_with(Disconnect::new(reason));
    }
    setup.settled(0);
    let disconnects = setup.handle.stats().disconnects;
    for reason in rows {
        assert!(disconnects.contains(&(reason, 1)), "{disconnects:?}");
    }
}
