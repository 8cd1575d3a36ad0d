//! What other brokers got wrong, one test each. The names say what must be true here.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use broker::{Limits, Retain};
use common::{
    Access, Client, Setup, Site, VERSIONS, again, delayed, elapse, exchange_bytes, expiring,
    packet_id, qos0, qos1, qos2, retained, start_tcp, start_with, stored, text, until, wish,
    with_will,
};
use mqtt::{
    Connect, Disconnect, Packet, PubComp, PubRec, PubRel, Publish, QoS, ReasonCode, Version,
};

const V3: Version = Version::V311;
const V5: Version = Version::V5;
const LEAST: QoS = QoS::AtLeastOnce;
const EXACTLY: QoS = QoS::ExactlyOnce;

/// A stored session of `app` that subscribes to `a/#`.
fn subscriber(setup: &Setup, version: Version) -> Client {
    let mut app = setup.enter(stored(version, "app"));
    app.subscribe("a/#", EXACTLY);
    app
}

/// The connection breaks, and the broker knows; `left` clients stay.
fn broken(setup: &Setup, client: Client, left: u64) {
    client.reset();
    setup.settled(left);
}

// When a session is resumed.

#[test]
fn an_unacknowledged_publish_is_resent_with_dup_on_resume() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version);
        let mut car = setup.client(V5, "car");
        car.publish(qos1(1, "a/b", "1"));
        car.publish(qos2(2, "a/b", "2"));
        let sent = [app.message(), app.message()];
        assert!(!sent[0].dup && !sent[1].dup);
        broken(&setup, app, 1);
        let mut app = setup.resume(stored(version, "app"));
        for sent in sent {
            let expected = Publish { dup: true, ..sent };
            assert_eq!(app.take(), expected, "the same packet id, marked");
        }
        app.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn a_message_never_sent_is_not_marked_as_sent_before() {
    let setup = start_tcp();
    for version in VERSIONS {
        subscriber(&setup, version).leave();
        let mut car = setup.client(V5, "car");
        car.publish(qos1(1, "a/b", "1"));
        car.publish(qos2(2, "a/b", "2"));
        let mut app = setup.resume(stored(version, "app"));
        assert!(!app.take().dup && !app.take().dup);
        app.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn an_owed_pubrel_is_resent_with_its_own_packet_id() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version);
        let mut car = setup.client(V5, "car");
        let mut ids = Vec::new();
        for n in 1..=5u16 {
            car.publish(qos2(n, "a/b", n.to_string()));
            ids.push(app.message().packet_id.expect("QoS 2"));
        }
        // Two are received; the PUBRELs are lost on the way.
        for place in [3, 1] {
            app.send(PubRec::success(ids[place]));
            assert_eq!(app.pubrel().0, ids[place].get());
        }
        for _ in 0..2 {
            broken(&setup, app, 1);
            app = setup.resume(stored(version, "app"));
            let (mut resent, mut released) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                match app.next() {
                    Some(Packet::Publish(publish)) => resent.push(publish.packet_id.expect("id")),
                    Some(Packet::PubRel(release)) => released.push(release.packet_id),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(resent, [ids[0], ids[2], ids[4]]);
            released.sort();
            assert_eq!(released, [ids[1], ids[3]], "and no message again");
        }
        app.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn an_inbound_qos_2_replayed_before_pubrel_is_delivered_once_across_reconnect() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(V5, "app");
        app.subscribe("a/#", EXACTLY);
        let mut car = setup.enter(stored(version, "car"));
        car.send(qos2(7, "a/b", "once"));
        assert_eq!(car.pubrec(), (7, ReasonCode::Success));
        broken(&setup, car, 1);
        let mut car = setup.resume(stored(version, "car"));
        car.send(again(qos2(7, "a/b", "once")));
        assert_eq!(car.pubrec().0, 7);
        broken(&setup, car, 1);
        let mut car = setup.resume(stored(version, "car"));
        car.release(packet_id(7));
        car.publish(qos2(7, "a/b", "the next"));
        assert_eq!(app.texts(2), ["a/b: once", "a/b: the next"]);
        car.leave();
        setup.client(version, "car").leave();
    }
}

#[test]
fn an_inbound_qos_2_replayed_before_pubrel_is_delivered_once_across_restart() {
    let site = Site::new();
    let mut setup = site.open();
    for version in VERSIONS {
        subscriber(&setup, version).leave();
        let mut car = setup.enter(stored(version, "car"));
        car.send(qos2(7, "a/b", "once"));
        assert_eq!(car.pubrec(), (7, ReasonCode::Success));
        drop(car);
        setup = site.restart(setup);
        let mut car = setup.resume(stored(version, "car"));
        car.send(again(qos2(7, "a/b", "once")));
        assert_eq!(car.pubrec().0, 7);
        drop(car);
        setup = site.restart(setup);
        let mut car = setup.resume(stored(version, "car"));
        car.release(packet_id(7));
        car.publish(qos2(7, "a/b", "the next"));
        let mut app = setup.resume(stored(version, "app"));
        assert_eq!(app.texts(2), ["a/b: once", "a/b: the next"]);
        for client in [car, app] {
            client.leave();
        }
        setup.client(version, "car").leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn message_expiry_never_cuts_an_exchange_after_pubrec() {
    let setup = start_tcp();
    // Towards the broker: PUBREL comes late.
    let mut car = setup.enter(stored(V5, "car"));
    car.send(expiring(qos2(7, "nobody", "short"), 3));
    assert!(!car.pubrec().1.is_error());
    // From the broker: the message is received, PUBREL is not. It must be sent before it expires, also by
    // a slow machine.
    let mut app = subscriber(&setup, V5);
    setup
        .client(V5, "other")
        .publish(expiring(qos2(1, "a/b", "short"), 3));
    let id = app.message().packet_id.expect("QoS 2");
    app.send(PubRec::success(id));
    assert_eq!(app.pubrel().0, id.get());
    broken(&setup, app, 1);
    elapse(Duration::from_millis(3500));
    car.release(packet_id(7));
    let mut app = setup.resume(stored(V5, "app"));
    assert_eq!(app.pubrel(), (id.get(), ReasonCode::Success));
    app.send(PubComp::success(id));
    car.publish(qos2(7, "a/b", "end"));
    assert_eq!(app.text(), "a/b: end");
}

#[test]
fn a_repeated_pubrel_is_answered_pubcomp_success() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut car = setup.enter(stored(version, "car"));
        car.publish(qos2(7, "a/b", "x"));
        for _ in 0..3 {
            car.send(PubRel::success(packet_id(7)));
            assert_eq!(car.pubcomp(), (7, ReasonCode::Success));
        }
        // PUBCOMP was lost with the connection.
        broken(&setup, car, 0);
        let mut car = setup.resume(stored(version, "car"));
        car.send(PubRel::success(packet_id(7)));
        assert_eq!(car.pubcomp(), (7, ReasonCode::Success));
        car.leave();
        setup.client(version, "car").leave();
        setup.settled(0);
    }
}

#[test]
fn the_send_quota_starts_anew_from_the_new_receive_maximum() {
    let setup = start_tcp();
    let with_maximum = |count: u16| {
        let mut connect = stored(V5, "app");
        connect.properties.receive_maximum = count.try_into().ok();
        connect
    };
    for qos in [LEAST, EXACTLY] {
        let mut app = setup.enter(with_maximum(2));
        app.subscribe("a/#", qos);
        app.subscribe("b", QoS::AtMostOnce);
        let mut car = setup.client(V5, "car");
        for n in 1..=6u16 {
            car.publish(common::message(qos, n, "a/b", n.to_string()));
        }
        // None is ever acknowledged: of a quota carried over nothing would be left.
        for (round, maximum) in [2, 2, 2, 1, 4, 100].into_iter().enumerate() {
            if round > 0 {
                broken(&setup, app, 1);
                app = setup.resume(with_maximum(maximum));
            }
            for n in 1..=maximum.min(6) {
                assert_eq!(text(&app.message()), format!("a/b: {n}"), "of {maximum}");
            }
            car.publish(qos0("b", "x"));
            assert_eq!(text(&app.message()), "b: x", "not one more than {maximum}");
        }
        app.leave();
        setup.client(V5, "app").leave();
    }
}

#[test]
fn no_packet_id_collides_between_resumed_and_new_deliveries() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version);
        let mut car = setup.client(V5, "car");
        let mut in_use = HashSet::new();
        for round in 0..5u16 {
            for n in 1..=4u16 {
                let publish = match n % 2 {
                    0 => qos1(n, "a/b", round.to_string()),
                    _ => qos2(n, "a/b", round.to_string()),
                };
                car.publish(publish);
                let id = app.message().packet_id.expect("not QoS 0");
                assert!(in_use.insert(id), "{id} in round {round}");
                // One of each round is half way.
                if n == 3 {
                    app.send(PubRec::success(id));
                    assert_eq!(app.pubrel().0, id.get());
                }
            }
            broken(&setup, app, 1);
            app = setup.resume(stored(version, "app"));
            let resent: HashSet<_> = (0..in_use.len())
                .map(|_| match app.next() {
                    Some(Packet::Publish(publish)) => publish.packet_id.expect("not QoS 0"),
                    Some(Packet::PubRel(release)) => release.packet_id,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(resent, in_use);
        }
        app.leave();
        setup.client(version, "app").leave();
    }
}

// Wills.

fn mourner(setup: &Setup) -> Client {
    let mut app = setup.client(V5, "mourner");
    app.subscribe("gone/#", LEAST);
    app
}

#[test]
fn will_on_rst() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        let connect = with_will(Connect::new(version, "car"), "gone/car", "rst");
        setup.enter(connect).reset();
        assert_eq!(app.text(), "gone/car: rst");
    }
}

#[test]
fn will_on_disconnect_0x04() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    let connect = with_will(Connect::new(V5, "car"), "gone/car", "0x04");
    let words = Disconnect::new(ReasonCode::DisconnectWithWill);
    setup.enter(connect).leave_with(words);
    assert_eq!(app.text(), "gone/car: 0x04");
}

#[test]
fn will_on_takeover_with_expiry_0() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    let connect = with_will(Connect::new(V5, "car"), "gone/car", "expiry 0");
    // The session ends with the takeover: the delay has nothing to wait for.
    let mut older = setup.enter(delayed(connect, 3600));
    let _newer = setup.enter(stored(V5, "car"));
    assert_eq!(older.farewell(), Some(ReasonCode::SessionTakenOver));
    assert_eq!(app.text(), "gone/car: expiry 0");
}

#[test]
fn will_on_takeover_with_delay_0() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        let connect = with_will(stored(version, "car"), "gone/car", "delay 0");
        let mut older = setup.enter(connect);
        let newer = setup.resume(stored(version, "car"));
        older.is_closed_for(ReasonCode::SessionTakenOver);
        assert_eq!(app.text(), "gone/car: delay 0");
        newer.leave();
        setup.client(version, "car").leave();
    }
}

#[test]
fn will_retain_with_retain_unavailable_is_refused_0x9a() {
    let setup = start_with(Limits {
        retain: Retain::Unavailable,
        ..Limits::default()
    });
    let mut connect = with_will(Connect::new(V5, "car"), "gone/car", "x");
    connect.will.as_mut().expect("set").retain = true;
    let (mut car, ack) = setup.join(connect);
    assert_eq!(ack.reason, ReasonCode::RetainNotSupported);
    assert_eq!(ack.reason.as_u8(), 0x9A);
    assert_eq!(car.next(), None);
}

#[test]
fn will_flags_without_a_will_are_refused() {
    let setup = start_tcp();
    for flags in [0x0A, 0x12, 0x22, 0x3A] {
        let v3 = [
            b"\x10\x0d\x00\x04MQTT\x04",
            &[flags][..],
            b"\x00\x00\x00\x01a",
        ]
        .concat();
        assert_eq!(
            exchange_bytes(setup.addr, &v3),
            b"",
            "no return code says it"
        );
        let v5 = [
            b"\x10\x0e\x00\x04MQTT\x05",
            &[flags][..],
            b"\x00\x00\x00\x00\x01a",
        ]
        .concat();
        let answer = exchange_bytes(setup.addr, &v5);
        assert_eq!(&answer[..1], b"\x20", "{flags:#x}");
        assert_eq!(answer[3], ReasonCode::MalformedPacket.as_u8(), "{flags:#x}");
    }
    // QoS 3 of a will that is there.
    let v5 = b"\x10\x14\x00\x04MQTT\x05\x1e\x00\x00\x00\x00\x01a\x00\x00\x01t\x00\x00";
    let answer = exchange_bytes(setup.addr, v5);
    assert_eq!((answer[0], answer[3]), (0x20, 0x81));
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

// Connecting.

#[test]
fn an_empty_client_id_without_clean_start_is_refused_0x85() {
    let setup = start_tcp();
    let mut connect = Connect::new(V5, "");
    connect.clean_start = false;
    let (mut car, ack) = setup.join(connect);
    assert_eq!(ack.reason.as_u8(), 0x85);
    assert_eq!(car.next(), None);
    // MQTT 3.1.1 says it with return code 2. The codec does not even encode it.
    let bytes = b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00";
    assert_eq!(exchange_bytes(setup.addr, bytes), b"\x20\x02\x00\x02");
}

#[test]
fn the_first_packet_must_be_connect() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    let rows: [&[u8]; 15] = [
        b"\x20\x02\x00\x00",              // CONNACK
        b"\x30\x04\x00\x01ax",            // PUBLISH
        b"\x32\x06\x00\x01a\x00\x01x",    // PUBLISH QoS 1
        b"\x40\x02\x00\x01",              // PUBACK
        b"\x50\x02\x00\x01",              // PUBREC
        b"\x62\x02\x00\x01",              // PUBREL
        b"\x70\x02\x00\x01",              // PUBCOMP
        b"\x82\x06\x00\x01\x00\x01a\x00", // SUBSCRIBE
        b"\x90\x03\x00\x01\x00",          // SUBACK
        b"\xa2\x05\x00\x01\x00\x01a",     // UNSUBSCRIBE
        b"\xb0\x02\x00\x01",              // UNSUBACK
        b"\xc0\x00",                      // PINGREQ
        b"\xd0\x00",                      // PINGRESP
        b"\xe0\x00",                      // DISCONNECT
        b"\xf0\x00",                      // AUTH
    ];
    for bytes in rows {
        assert_eq!(exchange_bytes(setup.addr, bytes), b"", "to {bytes:x?}");
    }
    setup.client(V5, "car").publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

// Subscribing.

#[test]
fn no_local_on_a_shared_subscription_is_refused() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    // The codec does not encode it.
    car.raw(b"\x82\x0f\x00\x01\x00\x00\x09$share/g/\x04");
    assert!(car.farewell().is_some_and(ReasonCode::is_error));
    let mut car = setup.client(V5, "car");
    car.raw(b"\x82\x10\x00\x01\x00\x00\x0a$share/g/a\x04");
    assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
    assert_eq!(setup.handle.stats().subscriptions, 0);
}

#[test]
fn a_publish_with_a_subscription_identifier_from_a_client_is_refused() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("a", QoS::AtMostOnce);
    let mut car = setup.client(V5, "car");
    car.raw(b"\x30\x07\x00\x01a\x02\x0b\x01x");
    assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
    setup.client(V5, "car").publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
}

#[test]
fn a_publish_right_after_suback_is_delivered() {
    let setup = start_tcp();
    // Connections are spread over both workers: some of these pairs are on one, some on two.
    let mut cars = ["car 1", "car 2"].map(|name| setup.client(V5, name));
    let mut apps = ["app 1", "app 2"].map(|name| setup.client(V5, name));
    for round in 0..100 {
        for app in &mut apps {
            for car in &mut cars {
                let topic = format!("a/{round}");
                app.subscribe(&topic, LEAST);
                car.send(qos1(1, &topic, "x"));
                assert_eq!(app.text(), format!("{topic}: x"));
                assert_eq!(car.puback(), (1, ReasonCode::Success));
                // And right after UNSUBACK it is not.
                app.unsubscribe(&[&topic]);
                car.publish(qos1(1, &topic, "too late"));
            }
        }
    }
}

#[test]
fn a_publish_right_after_the_suback_of_a_share_is_delivered() {
    let setup = start_tcp();
    let mut cars = ["car 1", "car 2"].map(|name| setup.client(V5, name));
    let mut apps = ["app 1", "app 2"].map(|name| setup.client(V5, name));
    for round in 0..50 {
        for app in &mut apps {
            for car in &mut cars {
                let filter = format!("$share/group/a/{round}");
                app.subscribe(&filter, LEAST);
                car.publish(qos1(1, &format!("a/{round}"), "x"));
                assert_eq!(app.text(), format!("a/{round}: x"));
                app.unsubscribe(&[&filter]);
                car.publish(qos1(1, &format!("a/{round}"), "too late"));
            }
        }
    }
}

#[test]
fn a_shared_subscription_member_that_goes_offline_does_not_keep_receiving() {
    let setup = start_tcp();
    for qos in [LEAST, EXACTLY] {
        let [mut stays, goes] = ["stays", "goes"].map(|name| {
            let mut member = setup.enter(stored(V5, name));
            member.subscribe("$share/group/a", qos);
            member
        });
        goes.leave();
        let mut car = setup.client(V5, "car");
        for n in 1..=10u16 {
            car.publish(common::message(qos, n, "a", n.to_string()));
        }
        for n in 1..=10 {
            assert_eq!(stays.text(), format!("a: {n}"), "all of them");
        }
        let mut back = setup.resume(stored(V5, "goes"));
        back.subscribe("end", LEAST);
        car.publish(qos1(1, "end", "x"));
        assert_eq!(back.text(), "end: x", "and none waits for it");
        back.leave();
        stays.leave();
        setup.client(V5, "goes").leave();
        setup.client(V5, "stays").leave();
    }
}

// Access on the concrete topic.

#[test]
fn access_is_checked_again_for_retained_deliveries() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    car.publish(retained(qos1(1, "a/open", "x")));
    car.publish(retained(qos1(2, "a/secret", "x")));
    setup.outside.deny(Access::Receive, "app", "a/secret");
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        // The filter as such is allowed.
        app.subscribe("a/#", LEAST);
        assert_eq!(app.text(), "a/open: x");
        car.publish(qos1(3, "a/open", "end"));
        assert_eq!(app.text(), "a/open: end");
    }
}

#[test]
fn access_is_checked_again_for_queued_deliveries() {
    let setup = start_tcp();
    for version in VERSIONS {
        subscriber(&setup, version).leave();
        let mut car = setup.client(V5, "car");
        for n in 1..=3 {
            car.publish(qos1(n, &format!("a/{version}/secret"), "x"));
            car.publish(qos2(n, "a/open", "x"));
        }
        let secret = format!("a/{version}/secret");
        setup.outside.deny(Access::Receive, "app", &secret);
        let mut app = setup.resume(stored(version, "app"));
        assert_eq!(app.texts(3), ["a/open: x"; 3]);
        car.publish(qos1(1, "a/open", "end"));
        assert_eq!(app.text(), "a/open: end");
        app.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn access_is_checked_again_for_replayed_deliveries() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = subscriber(&setup, version);
        let mut car = setup.client(V5, "car");
        let secret = format!("a/{version}/secret");
        car.publish(qos1(1, &secret, "x"));
        car.publish(qos2(2, &secret, "y"));
        car.publish(qos2(3, "a/open", "x"));
        for _ in 0..3 {
            app.message();
        }
        broken(&setup, app, 1);
        setup.outside.deny(Access::Receive, "app", &secret);
        let mut app = setup.resume(stored(version, "app"));
        let got = app.take();
        assert_eq!((text(&got).as_str(), got.dup), ("a/open: x", true));
        car.publish(qos1(1, "a/open", "end"));
        assert_eq!(app.text(), "a/open: end");
        app.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn access_is_checked_again_for_the_subscriptions_of_a_resumed_session() {
    let setup = start_tcp();
    for version in VERSIONS {
        let name = format!("app {version}");
        let mut app = setup.enter(stored(version, &name));
        app.ask(vec![wish("a/#", LEAST), wish("b/#", LEAST)], None);
        app.leave();
        setup.outside.deny(Access::Subscribe, &name, "a/");
        // Its client must not rely on what it lost: it is told to subscribe again, and then why not.
        let (mut app, ack) = setup.join(stored(version, &name));
        assert_eq!(
            (ack.reason, ack.session_present),
            (ReasonCode::Success, false)
        );
        let reasons = app.ask(vec![wish("a/#", LEAST), wish("b/#", LEAST)], None);
        assert!(
            reasons[0].is_error() && !reasons[1].is_error(),
            "{reasons:?}"
        );
        let mut car = setup.client(V5, "car");
        car.publish(qos1(1, "a/b", "x"));
        car.publish(qos1(1, "b/c", "end"));
        assert_eq!(app.text(), "b/c: end");
    }
}

// Things that pile up.

#[test]
fn a_client_that_comes_and_goes_leaves_nothing_behind() {
    let setup = start_tcp();
    for round in 0..50u16 {
        for version in VERSIONS {
            let mut app = setup.client(version, "app");
            app.subscribe("a/#", EXACTLY);
            app.subscribe("$share/group/b", LEAST);
            app.send(qos2(round + 1, "a/b", "x"));
            app.reset();
        }
    }
    until("nothing is left", || {
        let stats = setup.handle.stats();
        (stats.connections, stats.subscriptions) == (0, 0)
    });
    assert_eq!(setup.handle.publish(&qos0("a/b", "x")), 0);
    let mut app = setup.client(V3, "app");
    app.ping();
}
