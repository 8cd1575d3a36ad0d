//! Messages in both directions: PUBLISH and its acknowledgements (MQTT 5 sections 3.3 to 3.7, 4.3,
//! 4.4, 4.6, 4.9), and the same of MQTT 3.1.1.

mod common;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use broker::Limits;
use common::{
    Access, Client, QUALITIES, Setup, VERSIONS, again, elapse, expiring, message, packet_id, qos0,
    qos1, qos2, start_tcp, start_with, stored, text, until,
};
use mqtt::{
    Connect, Packet, PacketId, PayloadFormat, PubAck, PubComp, PubRec, PubRel, Publish, QoS,
    ReasonCode, TopicName, Version,
};

const V3: Version = Version::V311;
const V5: Version = Version::V5;

fn receive_maximum(name: &str, count: u16) -> Connect {
    let mut connect = Connect::new(V5, name);
    connect.properties.receive_maximum = count.try_into().ok();
    connect
}

fn subscriber(setup: &Setup, version: Version, name: &str, filter: &str, qos: QoS) -> Client {
    let mut client = setup.client(version, name);
    client.subscribe(filter, qos);
    client
}

#[test]
fn a_message_arrives_with_the_lower_of_both_qualities() {
    let setup = start_tcp();
    for from in VERSIONS {
        for to in VERSIONS {
            for granted in QUALITIES {
                let mut app = subscriber(&setup, to, "app", "a", granted);
                let mut car = setup.client(from, "car");
                for sent in QUALITIES {
                    let reason = car.publish(message(sent, 7, "a", "x"));
                    assert_eq!(reason, ReasonCode::Success);
                    let got = app.take();
                    assert_eq!(got.qos, sent.min(granted), "{from} to {to}");
                    assert_eq!((got.dup, got.retain), (false, false));
                    assert_eq!(text(&got), "a: x");
                }
            }
        }
    }
}

#[test]
fn qos_1_is_acknowledged_with_its_own_packet_id() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut car = setup.client(version, "car");
        for id in [1, 2, 40_000, 65_535, 1] {
            car.send(qos1(id, "nobody/is/there", "x"));
            let (acknowledged, reason) = car.puback();
            assert!(!reason.is_error());
            assert_eq!(acknowledged, id);
        }
    }
}

#[test]
fn qos_2_goes_through_its_four_steps_in_both_directions() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version, "app", "a", QoS::ExactlyOnce);
        let mut car = setup.client(version, "car");
        for id in [1, 65_535] {
            car.send(qos2(id, "a", "x"));
            assert_eq!(car.pubrec(), (id, ReasonCode::Success));
            car.send(PubRel::success(packet_id(id)));
            assert_eq!(car.pubcomp(), (id, ReasonCode::Success));

            let got = app.message();
            assert_eq!((got.qos, got.dup), (QoS::ExactlyOnce, false));
            let own = got.packet_id.expect("QoS 2");
            app.send(PubRec::success(own));
            assert_eq!(app.pubrel(), (own.get(), ReasonCode::Success));
            app.send(PubComp::success(own));
            app.ping();
        }
    }
}

#[test]
fn a_qos_2_message_sent_again_before_pubrel_is_the_same_message() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version, "app", "a", QoS::ExactlyOnce);
        let mut car = setup.client(version, "car");
        car.send(qos2(7, "a", "once"));
        assert_eq!(car.pubrec(), (7, ReasonCode::Success));
        for _ in 0..3 {
            car.send(again(qos2(7, "a", "once")));
            assert_eq!(car.pubrec().0, 7);
        }
        car.release(packet_id(7));
        // From here on the number stands for another message.
        car.publish(qos2(7, "a", "the next"));
        assert_eq!(app.texts(2), ["a: once", "a: the next"]);
    }
}

#[test]
fn the_same_qos_1_packet_id_again_is_another_message() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version, "app", "a", QoS::AtLeastOnce);
        let mut car = setup.client(version, "car");
        car.publish(qos1(7, "a", "one"));
        car.publish(again(qos1(7, "a", "two")));
        assert_eq!(app.texts(2), ["a: one", "a: two"]);
    }
}

#[test]
fn the_dup_flag_of_a_publisher_is_not_passed_on() {
    let setup = start_tcp();
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut app = subscriber(&setup, V5, "app", "a", qos);
        setup
            .client(V5, "car")
            .publish(again(message(qos, 7, "a", "x")));
        assert!(!app.take().dup);
    }
}

#[test]
fn packet_ids_of_both_directions_do_not_touch() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut car = subscriber(&setup, version, "car", "to/car", QoS::ExactlyOnce);
        setup.client(V5, "app").publish(qos2(9, "to/car", "x"));
        let got = car.message();
        let id = got.packet_id.expect("QoS 2");
        // The same number in the other direction, in the middle of the exchange.
        car.send(qos2(id.get(), "from/car", "y"));
        assert_eq!(car.pubrec().0, id.get());
        car.send(PubRec::success(id));
        assert_eq!(car.pubrel().0, id.get());
        car.release(id);
        car.send(PubComp::success(id));
        car.ping();
    }
}

#[test]
fn no_packet_id_is_used_twice_at_the_same_time() {
    let setup = start_tcp();
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut app = subscriber(&setup, V5, "app", "a", qos);
        let mut car = setup.client(V5, "car");
        let mut in_flight = HashSet::new();
        let mut waiting = VecDeque::new();
        for n in 0..300u16 {
            car.publish(message(qos, n % 50 + 1, "a", n.to_string()));
            let got = app.message();
            assert_eq!(&got.payload[..], n.to_string().as_bytes());
            let id = got.packet_id.expect("not QoS 0");
            assert!(in_flight.insert(id), "{id} is in use");
            waiting.push_back(got);
            // Some are acknowledged at once, some much later.
            if n % 3 > 0 {
                let got = match n % 2 {
                    0 => waiting.pop_back(),
                    _ => waiting.pop_front(),
                }
                .expect("one waits");
                app.acknowledge(&got);
                app.ping();
                in_flight.remove(&got.packet_id.expect("not QoS 0"));
            }
        }
    }
}

#[test]
fn pubacks_leave_in_the_order_of_the_messages_and_so_do_pubrecs() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut car = setup.client(version, "car");
        for id in [5, 3, 9, 1] {
            car.send(qos1(id, "log/a", "x"));
        }
        // The outside is done with them in another order.
        for done in setup.outside.tapped(4).into_iter().rev() {
            done.done(Ok(()));
        }
        for id in [5, 3, 9, 1] {
            assert_eq!(car.puback(), (id, ReasonCode::Success));
        }
        for id in [5, 3, 9, 1] {
            car.send(qos2(id, "log/a", "x"));
        }
        for done in setup.outside.tapped(4).into_iter().rev() {
            done.done(Ok(()));
        }
        for id in [5, 3, 9, 1] {
            assert_eq!(car.pubrec(), (id, ReasonCode::Success));
        }
    }
}

#[test]
fn pubrels_leave_in_the_order_of_the_pubrecs() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version, "app", "a", QoS::ExactlyOnce);
        let mut car = setup.client(V5, "car");
        let ids: Vec<PacketId> = (1..=4)
            .map(|n| {
                car.publish(qos2(n, "a", "x"));
                app.message().packet_id.expect("QoS 2")
            })
            .collect();
        let order = [2, 0, 3, 1].map(|place| ids[place]);
        for id in order {
            app.send(PubRec::success(id));
        }
        for id in order {
            assert_eq!(app.pubrel(), (id.get(), ReasonCode::Success));
        }
    }
}

#[test]
fn messages_of_a_topic_arrive_in_the_order_they_were_sent() {
    let setup = start_tcp();
    for qos in QUALITIES {
        // Both on the publisher's worker and on the other one.
        let mut apps = ["app", "bpp", "cpp"].map(|name| subscriber(&setup, V5, name, "a", qos));
        let mut car = setup.client(V5, "car");
        for n in 0..200u16 {
            car.send(message(qos, n + 1, "a", n.to_string()));
        }
        if qos == QoS::ExactlyOnce {
            for id in 1..=200 {
                assert_eq!(car.pubrec(), (id, ReasonCode::Success));
                car.send(PubRel::success(packet_id(id)));
            }
        }
        for app in &mut apps {
            for n in 0..200u16 {
                assert_eq!(app.text(), format!("a: {n}"));
            }
        }
    }
}

#[test]
fn topic_and_payload_arrive_byte_for_byte() {
    let setup = start_tcp();
    let topics = [
        "a",
        "A",
        "/",
        "//",
        "/a",
        "a/",
        "a//b",
        " ",
        "a b/ c",
        "Straße/日本/🚗",
        "\u{feff}bom",
        "$not/sys/but/own",
    ];
    let long = "x/".repeat(100);
    let topics = topics.into_iter().chain([long.as_str()]);
    let payloads: [&[u8]; 3] = [b"", b"\x00\xff\xfe", b"\xef\xbb\xbftext"];
    let mut apps = VERSIONS.map(|version| setup.client(version, &format!("app {version}")));
    let mut car = setup.client(V5, "car");
    for topic in topics {
        for app in &mut apps {
            app.subscribe(topic, QoS::AtLeastOnce);
        }
        for payload in payloads {
            car.publish(qos1(1, topic, payload));
            for app in &mut apps {
                let got = app.take();
                assert_eq!((got.topic.as_str(), &got.payload[..]), (topic, payload));
            }
        }
    }
}

#[test]
fn properties_arrive_unaltered_and_in_order() {
    let setup = start_tcp();
    for qos in QUALITIES {
        let mut app = subscriber(&setup, V5, "app", "a", qos);
        let mut old = subscriber(&setup, V3, "old", "a", qos);
        let mut sent = message(qos, 1, "a", "текст");
        sent.properties.payload_format = Some(PayloadFormat::Utf8);
        sent.properties.content_type = Some("text/plain".into());
        sent.properties.response_topic = Some(TopicName::parse("answers/here").expect("valid"));
        sent.properties.correlation_data = Some(b"\x00\x01\xff"[..].into());
        sent.properties.user_properties = [("b", "1"), ("a", "2"), ("b", "1"), ("", ""), ("B", "")]
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec();
        setup.client(V5, "car").publish(sent.clone());
        let got = app.take();
        assert_eq!(got.properties, sent.properties);
        assert_eq!(text(&old.take()), "a: текст", "MQTT 3.1.1 has none of it");
    }
}

#[test]
fn a_text_that_is_none_is_the_receivers_affair_or_refused() {
    let setup = start_tcp();
    let mut app = subscriber(&setup, V5, "app", "a", QoS::AtLeastOnce);
    let mut car = setup.client(V5, "car");
    let mut broken = qos1(1, "a", b"\xff\xfe");
    broken.properties.payload_format = Some(PayloadFormat::Utf8);
    match car.publish(broken.clone()) {
        // The broker may look [section 3.3.2.3.2], and must then say so.
        ReasonCode::PayloadFormatInvalid => {}
        reason => {
            assert_eq!(reason, ReasonCode::Success);
            assert_eq!(app.take().payload, broken.payload);
        }
    }
    car.publish(qos1(2, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

#[test]
fn an_answer_finds_its_way_back_with_its_correlation() {
    let setup = start_tcp();
    let mut asking = subscriber(&setup, V5, "asking", "answers/asking", QoS::AtLeastOnce);
    let mut answering = subscriber(&setup, V5, "answering", "questions", QoS::AtLeastOnce);
    let mut question = qos1(1, "questions", "how are you");
    question.properties.response_topic = Some(TopicName::parse("answers/asking").expect("valid"));
    question.properties.correlation_data = Some(b"q1"[..].into());
    asking.publish(question);
    let got = answering.take();
    let to = got.properties.response_topic.expect("a response topic");
    let mut answer = qos1(1, to.as_str(), "fine");
    answer.properties.correlation_data = got.properties.correlation_data;
    answering.publish(answer);
    let got = asking.take();
    assert_eq!(text(&got), "answers/asking: fine");
    assert_eq!(got.properties.correlation_data.as_deref(), Some(&b"q1"[..]));
}

#[test]
fn a_message_that_may_not_be_published_reaches_nobody_and_says_so() {
    let setup = start_tcp();
    setup.outside.deny(Access::Publish, "car", "secret/");
    let mut app = subscriber(&setup, V5, "app", "#", QoS::ExactlyOnce);
    let mut car = setup.client(V5, "car");
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let reason = car.publish(message(qos, 1, "secret/a", "x"));
        assert_eq!(reason, ReasonCode::NotAuthorized);
        // The exchange is over: the number is free.
        assert_eq!(car.publish(message(qos, 1, "a", "x")), ReasonCode::Success);
        assert_eq!(app.text(), "a: x");
    }
    car.publish(qos0("secret/a", "x"));
    car.publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
    // MQTT 3.1.1 cannot be told: positively acknowledged or closed, but never delivered.
    for qos in QUALITIES {
        let mut old = setup.client(V3, "car");
        old.send(message(qos, 1, "secret/a", "x"));
        old.send(Packet::PingReq);
        while !matches!(old.next(), None | Some(Packet::PingResp)) {}
    }
    setup.client(V5, "other").publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

#[test]
fn a_message_the_tap_refuses_is_refused_with_its_reason() {
    let setup = start_tcp();
    let mut app = subscriber(&setup, V5, "app", "#", QoS::ExactlyOnce);
    let mut car = setup.client(V5, "car");
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let reason = car.publish(message(qos, 1, "sour/a", "x"));
        assert_eq!(reason, ReasonCode::PayloadFormatInvalid);
    }
    car.publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

#[test]
fn a_qos_2_message_that_did_not_become_durable_is_refused_in_pubrec() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    car.send(qos2(4, "log/a", "x"));
    for done in setup.outside.tapped(1) {
        done.done(Err(ReasonCode::QuotaExceeded));
    }
    assert_eq!(car.pubrec(), (4, ReasonCode::QuotaExceeded));
    // Refused is over: the number stands for a new message.
    car.send(qos2(4, "log/a", "x"));
    for done in setup.outside.tapped(1) {
        done.done(Ok(()));
    }
    assert_eq!(car.pubrec(), (4, ReasonCode::Success));
    car.release(packet_id(4));
}

#[test]
fn topics_that_are_none_end_the_connection() {
    let setup = start_tcp();
    for version in VERSIONS {
        for topic in ["#", "a/#", "+", "a/+/b", ""] {
            let mut car = setup.client(version, "car");
            let mut bytes = vec![0x30, topic.len() as u8 + 2, 0, topic.len() as u8];
            bytes.extend(topic.bytes());
            if version == V5 {
                bytes[1] += 1;
                bytes.push(0);
            }
            car.raw(&bytes);
            let expected = match (version, topic) {
                (V3, _) => None,
                (V5, "") => Some(ReasonCode::ProtocolError),
                (V5, _) => Some(ReasonCode::MalformedPacket),
            };
            assert_eq!(car.farewell(), expected, "{topic:?}");
        }
    }
}

#[test]
fn acknowledgements_of_what_was_never_sent_do_no_harm() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut car = subscriber(&setup, version, "car", "a", QoS::ExactlyOnce);
        let id = packet_id(77);
        car.send(PubAck::success(id));
        car.send(PubComp::success(id));
        car.ping();
        car.send(PubRec::success(id));
        let reason = match version {
            V3 => ReasonCode::Success,
            V5 => ReasonCode::PacketIdentifierNotFound,
        };
        assert_eq!(car.pubrel(), (77, reason));
        car.send(PubRel::success(id));
        assert_eq!(car.pubcomp().0, 77);
        setup.client(V5, "app").publish(qos2(1, "a", "x"));
        assert_eq!(car.text(), "a: x");
    }
}

// Topic aliases.

fn aliased(mut publish: Publish, alias: u16) -> Publish {
    publish.properties.topic_alias = alias.try_into().ok();
    publish
}

#[test]
fn an_alias_of_a_client_stands_for_its_topic_until_it_is_set_anew() {
    let setup = start_tcp();
    let mut app = subscriber(&setup, V5, "app", "#", QoS::ExactlyOnce);
    let mut car = setup.client(V5, "car");
    let highest = Limits::default().topic_alias_maximum;
    for qos in QUALITIES {
        car.publish(aliased(message(qos, 1, "long/topic", "1"), highest));
        car.publish(aliased(message(qos, 2, "", "2"), highest));
        car.publish(aliased(message(qos, 3, "other", "3"), 1));
        car.publish(aliased(message(qos, 4, "", "4"), highest));
        car.publish(aliased(message(qos, 5, "new", "5"), highest));
        car.publish(aliased(message(qos, 6, "", "6"), highest));
        car.publish(aliased(message(qos, 7, "", "7"), 1));
        let expected = [
            "long/topic: 1",
            "long/topic: 2",
            "other: 3",
            "long/topic: 4",
            "new: 5",
            "new: 6",
            "other: 7",
        ];
        for expected in expected {
            let got = app.take();
            assert_eq!(text(&got), expected);
            assert_eq!(
                got.properties.topic_alias, None,
                "aliases stay with their side"
            );
        }
    }
}

#[test]
fn an_alias_nobody_may_use_ends_the_connection() {
    let setup = start_tcp();
    let highest = Limits::default().topic_alias_maximum;
    let invalid = ReasonCode::TopicAliasInvalid;
    let mut car = setup.client(V5, "car");
    car.send(aliased(qos0("a", "x"), highest + 1));
    assert_eq!(car.farewell(), Some(invalid));
    let mut car = setup.client(V5, "car");
    car.raw(b"\x30\x08\x00\x01a\x03\x23\x00\x00x");
    assert_eq!(car.farewell(), Some(invalid), "0 is no alias");
    // One that was never set stands for nothing.
    let mut car = setup.client(V5, "car");
    car.send(aliased(qos0("", "x"), 1));
    assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
    let setup = start_with(Limits {
        topic_alias_maximum: 0,
        ..Limits::default()
    });
    let mut car = setup.client(V5, "car");
    car.send(aliased(qos0("a", "x"), 1));
    assert_eq!(car.farewell(), Some(invalid));
}

#[test]
fn aliases_of_a_client_end_with_its_connection() {
    let setup = start_tcp();
    let mut car = setup.enter(stored(V5, "car"));
    car.publish(aliased(qos1(1, "a", "x"), 1));
    car.leave();
    let mut car = setup.resume(stored(V5, "car"));
    car.send(aliased(qos0("", "x"), 1));
    assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
}

/// Puts the topics back in place of the aliases the broker used.
#[derive(Default)]
struct Aliases {
    topics: HashMap<u16, String>,
    used: usize,
}

impl Aliases {
    fn resolve(&mut self, publish: &Publish, maximum: u16) -> String {
        let Some(alias) = publish.properties.topic_alias else {
            return publish.topic.to_string();
        };
        assert!(alias.get() <= maximum, "alias {alias}");
        if publish.topic.is_empty() {
            self.used += 1;
            return self.topics[&alias.get()].clone();
        }
        self.topics.insert(alias.get(), publish.topic.to_string());
        publish.topic.to_string()
    }
}

#[test]
fn the_broker_uses_as_many_aliases_as_the_client_takes_and_no_more() {
    let setup = start_tcp();
    let topics = ["first/topic", "second/topic", "third/topic", "fourth/topic"];
    for maximum in [0, 1, 2, 1000] {
        for qos in QUALITIES {
            let mut connect = Connect::new(V5, "app");
            connect.properties.topic_alias_maximum = Some(maximum);
            let mut app = setup.enter(connect);
            app.subscribe("+/topic", qos);
            let mut aliases = Aliases::default();
            let mut car = setup.client(V5, "car");
            for n in 0..40u16 {
                let topic = topics[usize::from(n % 4).min(usize::from(n / 10))];
                car.publish(message(qos, 1, topic, n.to_string()));
                let got = app.take();
                assert_eq!(aliases.resolve(&got, maximum), topic);
                assert_eq!(&got.payload[..], n.to_string().as_bytes());
            }
            assert_eq!(aliases.used > 0, maximum > 0, "of {maximum} at {qos:?}");
        }
    }
}

#[test]
fn the_aliases_of_the_broker_are_per_connection_and_bounded() {
    let setup = start_with(Limits {
        topic_alias_maximum_out: 3,
        ..Limits::default()
    });
    let mut connect = stored(V5, "app");
    connect.properties.topic_alias_maximum = Some(100);
    let mut app = setup.enter(connect.clone());
    app.subscribe("#", QoS::AtLeastOnce);
    let mut car = setup.client(V5, "car");
    for n in 0..10 {
        for _ in 0..2 {
            let topic = format!("topic/{n}");
            car.publish(qos1(1, &topic, "x"));
        }
    }
    let mut aliases = Aliases::default();
    for n in 0..10 {
        for _ in 0..2 {
            let got = app.message();
            assert_eq!(aliases.resolve(&got, 3), format!("topic/{n}"));
            // None is acknowledged: all are sent again on the next connection.
        }
    }
    app.reset();
    setup.settled(1);
    let mut app = setup.resume(connect);
    let mut aliases = Aliases::default();
    for n in 0..10 {
        for _ in 0..2 {
            let got = app.message();
            assert!(got.dup);
            assert_eq!(aliases.resolve(&got, 3), format!("topic/{n}"));
        }
    }
}

// Flow control.

#[test]
fn a_client_may_use_the_whole_receive_maximum_and_not_one_more() {
    let limits = Limits {
        max_inflight: 4,
        ..Limits::default()
    };
    // QoS 1 that is not durable yet, QoS 2 that is not released yet, and both mixed.
    let kinds: [fn(u16) -> Publish; 3] = [
        |n| qos1(n, "log/a", "x"),
        |n| qos2(n, "a", "x"),
        |n| match n % 2 {
            0 => qos1(n, "log/a", "x"),
            _ => qos2(n, "a", "x"),
        },
    ];
    for kind in kinds {
        let setup = start_with(limits.clone());
        let mut car = setup.client(V5, "car");
        for n in 1..=4 {
            car.send(kind(n));
        }
        for _ in 0..10 {
            car.send(qos0("a", "does not count"));
        }
        car.ping();
        car.send(kind(5));
        let reason = loop {
            match car.next() {
                Some(Packet::PubRec(_)) => {}
                Some(Packet::Disconnect(disconnect)) => break disconnect.reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(reason, ReasonCode::ReceiveMaximumExceeded);
        assert_eq!(car.next(), None);
    }
}

#[test]
fn a_finished_exchange_gives_its_place_back_to_the_client() {
    let setup = start_with(Limits {
        max_inflight: 2,
        ..Limits::default()
    });
    let mut car = setup.client(V5, "car");
    car.send(qos2(1, "a", "stays open"));
    assert_eq!(car.pubrec().0, 1);
    for n in 2..50 {
        assert!(!car.publish(qos2(n, "a", "x")).is_error());
        assert!(!car.publish(qos1(n, "a", "x")).is_error());
        // A message sent again is no new one.
        car.send(again(qos2(1, "a", "stays open")));
        assert_eq!(car.pubrec().0, 1);
    }
    car.release(packet_id(1));
}

#[test]
fn the_broker_keeps_to_the_receive_maximum_of_the_client() {
    let setup = start_tcp();
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut app = setup.enter(receive_maximum("app", 2));
        app.subscribe("a", qos);
        app.subscribe("b", QoS::AtMostOnce);
        let mut car = setup.client(V5, "car");
        for n in 1..=5u16 {
            car.publish(message(qos, n, "a", n.to_string()));
        }
        let (first, second) = (app.message(), app.message());
        assert_eq!(
            [text(&first), text(&second)],
            ["a: 1".to_owned(), "a: 2".to_owned()]
        );
        // QoS 0 and other packets pass while the window is closed.
        car.publish(qos0("b", "x"));
        assert_eq!(text(&app.message()), "b: x");
        app.ping();
        app.acknowledge(&second);
        let third = app.message();
        assert_eq!(text(&third), "a: 3");
        car.publish(qos0("b", "y"));
        assert_eq!(text(&app.message()), "b: y", "one place, one message");
        app.acknowledge(&first);
        app.acknowledge(&third);
        assert_eq!(app.texts(2), ["a: 4", "a: 5"]);
    }
}

#[test]
fn pubrec_keeps_its_place_in_the_window_until_pubcomp_unless_it_refuses() {
    let setup = start_tcp();
    let mut app = setup.enter(receive_maximum("app", 1));
    app.subscribe("a", QoS::ExactlyOnce);
    app.subscribe("b", QoS::AtMostOnce);
    let mut car = setup.client(V5, "car");
    for n in 1..=3 {
        car.publish(qos2(n, "a", n.to_string()));
    }
    let first = app.message().packet_id.expect("QoS 2");
    app.send(PubRec::success(first));
    assert_eq!(app.pubrel().0, first.get());
    car.publish(qos0("b", "between"));
    assert_eq!(text(&app.message()), "b: between");
    app.send(PubComp::success(first));
    let second = app.message();
    assert_eq!(text(&second), "a: 2");
    let id = second.packet_id.expect("QoS 2");
    app.send(PubRec::new(id, ReasonCode::UnspecifiedError));
    // Refused is over: no PUBREL, the next message follows.
    assert_eq!(text(&app.message()), "a: 3");
}

#[test]
fn a_message_the_receiver_refuses_is_not_sent_again() {
    let setup = start_tcp();
    let mut app = setup.enter(stored(V5, "app"));
    app.subscribe("a", QoS::ExactlyOnce);
    let mut car = setup.client(V5, "car");
    car.publish(qos1(1, "a", "refused"));
    let id = app.message().packet_id.expect("QoS 1");
    app.send(PubAck::new(id, ReasonCode::UnspecifiedError));
    car.publish(qos2(2, "a", "refused too"));
    let id = app.message().packet_id.expect("QoS 2");
    app.send(PubRec::new(id, ReasonCode::QuotaExceeded));
    app.ping();
    app.reset();
    setup.settled(1);
    let mut app = setup.resume(stored(V5, "app"));
    car.publish(qos1(3, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

#[test]
fn a_message_larger_than_the_client_takes_is_left_out() {
    let setup = start_tcp();
    for qos in QUALITIES {
        let mut connect = Connect::new(V5, "app");
        connect.properties.maximum_packet_size = 200.try_into().ok();
        let mut app = setup.enter(connect);
        app.subscribe("a", qos);
        let mut other = subscriber(&setup, V5, "other", "a", qos);
        let mut car = setup.client(V5, "car");
        let large = "x".repeat(200);
        let reason = car.publish(message(qos, 1, "a", &large));
        assert_eq!(reason, ReasonCode::Success, "others may want it");
        car.publish(message(qos, 2, "a", "small"));
        assert_eq!(app.text(), "a: small");
        assert_eq!(other.take().payload, large);
        assert_eq!(other.text(), "a: small");
    }
    until("all are counted", || {
        setup.handle.stats().dropped_too_large == 3
    });
}

#[test]
fn a_message_of_exactly_the_size_the_client_takes_is_sent() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    let fitting = qos0("a", "x".repeat(100));
    let size = car.encode(fitting.clone()).len() as u32;
    let mut connect = Connect::new(V5, "app");
    connect.properties.maximum_packet_size = size.try_into().ok();
    let mut app = setup.enter(connect);
    app.subscribe("a", QoS::AtMostOnce);
    car.publish(qos0("a", "x".repeat(101)));
    car.publish(fitting.clone());
    assert_eq!(app.take().payload, fitting.payload);
}

#[test]
fn a_packet_larger_than_the_broker_takes_ends_the_connection() {
    let setup = start_with(Limits {
        max_packet_size: 1_000,
        ..Limits::default()
    });
    for version in VERSIONS {
        let mut car = setup.client(version, "car");
        let bytes = car.encode(qos0("a", vec![0; 1_000]));
        car.raw(&bytes);
        car.is_closed_for(ReasonCode::PacketTooLarge);
    }
}

// Message expiry.

#[test]
fn a_message_that_expired_while_it_waited_is_not_delivered() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.enter(stored(version, "app"));
        app.subscribe("a", QoS::ExactlyOnce);
        app.leave();
        let mut car = setup.client(V5, "car");
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            car.publish(expiring(message(qos, 1, "a", "short"), 1));
            car.publish(expiring(message(qos, 2, "a", "long"), 3600));
            car.publish(message(qos, 3, "a", "for ever"));
        }
        elapse(Duration::from_millis(1500));
        let mut app = setup.resume(stored(version, "app"));
        let expected = ["a: long", "a: for ever", "a: long", "a: for ever"];
        assert_eq!(app.texts(4), expected);
        app.leave();
        // The next round begins without a session.
        setup.client(version, "app").leave();
    }
}

#[test]
fn the_time_a_message_waited_is_taken_off_its_expiry() {
    let setup = start_tcp();
    let mut app = setup.enter(stored(V5, "app"));
    app.subscribe("a", QoS::AtLeastOnce);
    let mut car = setup.client(V5, "car");
    car.publish(expiring(qos1(1, "a", "x"), 3600));
    let at_once = app.take().properties.message_expiry_interval;
    assert!(matches!(at_once, Some(3500..=3600)), "{at_once:?}");
    app.leave();
    car.publish(expiring(qos1(1, "a", "x"), 3600));
    elapse(Duration::from_secs(2));
    let mut app = setup.resume(stored(V5, "app"));
    let waited = app.take().properties.message_expiry_interval;
    assert!(matches!(waited, Some(3500..=3598)), "{waited:?}");
    car.publish(qos1(1, "a", "x"));
    assert_eq!(app.take().properties.message_expiry_interval, None);
}

#[test]
fn a_message_that_waits_for_the_window_can_expire() {
    let setup = start_tcp();
    let mut app = setup.enter(receive_maximum("app", 1));
    app.subscribe("a", QoS::AtLeastOnce);
    let mut car = setup.client(V5, "car");
    car.publish(qos1(1, "a", "first"));
    car.publish(expiring(qos1(2, "a", "expires"), 1));
    car.publish(qos1(3, "a", "last"));
    let first = app.message();
    elapse(Duration::from_millis(1500));
    app.acknowledge(&first);
    assert_eq!(app.text(), "a: last");
}
