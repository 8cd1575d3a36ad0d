//! Retained messages (MQTT 5 sections 3.3.1.3, 3.8.3.1, 4.5; MQTT 3.1.1 section 3.3.1.3).

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use broker::{Limits, Retain};
use common::{
    Client, QUALITIES, Setup, Site, VERSIONS, elapse, expiring, message, qos0, qos1, qos2,
    retained, start_tcp, start_with, stored, text, wish, with_will,
};
use mqtt::{
    Connect, PayloadFormat, Publish, QoS, ReasonCode, RetainHandling, Subscription, TopicName,
    Version,
};

const V3: Version = Version::V311;
const V5: Version = Version::V5;
const LEAST: QoS = QoS::AtLeastOnce;
const EXACTLY: QoS = QoS::ExactlyOnce;

/// What a new subscriber of `filter` finds, in any order.
fn kept(setup: &Setup, version: Version, filter: &str) -> BTreeSet<String> {
    let mut late = setup.client(version, "late");
    late.ask(vec![wish(filter, EXACTLY)], None);
    let mut found = BTreeSet::new();
    for got in rest(setup, &mut late) {
        assert!(got.retain, "what was kept says so");
        assert!(found.insert(text(&got)), "each once");
    }
    found
}

/// Everything that was on its way to `client`.
fn rest(setup: &Setup, client: &mut Client) -> Vec<Publish> {
    client.subscribe("the/end", EXACTLY);
    setup.client(V5, "herald").publish(qos2(1, "the/end", ""));
    let mut rest = Vec::new();
    loop {
        let got = client.take();
        if got.topic == "the/end" {
            return rest;
        }
        rest.push(got);
    }
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn the_last_retained_message_of_a_topic_waits_for_new_subscribers() {
    let setup = start_tcp();
    for from in VERSIONS {
        for qos in QUALITIES {
            let mut car = setup.client(from, "car");
            car.publish(retained(message(qos, 1, "a", "old")));
            car.publish(retained(message(qos, 2, "a", "new")));
            car.publish(message(qos, 3, "a", "not to be kept"));
            car.ping();
            for to in VERSIONS {
                for granted in QUALITIES {
                    let mut late = setup.client(to, "late");
                    late.subscribe("a", granted);
                    let got = late.take();
                    assert_eq!(text(&got), "a: new");
                    assert_eq!(got.qos, qos.min(granted));
                    assert!(got.retain && !got.dup);
                    assert_eq!(rest(&setup, &mut late), [], "only the last");
                }
            }
        }
    }
}

#[test]
fn an_empty_payload_clears_and_is_delivered_like_any_message() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        app.subscribe("a", LEAST);
        let mut car = setup.client(version, "car");
        car.publish(retained(qos1(1, "a", "kept")));
        assert_eq!(app.text(), "a: kept");
        car.publish(retained(qos1(2, "a", "")));
        let got = app.take();
        assert_eq!((text(&got).as_str(), got.retain), ("a: ", false));
        assert_eq!(kept(&setup, version, "a"), set([]));
        // Nothing there to clear is no mistake.
        assert!(!car.publish(retained(qos1(3, "a", ""))).is_error());
    }
}

#[test]
fn established_subscribers_get_a_retained_message_as_a_live_one() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        app.subscribe("a", LEAST);
        setup
            .client(version, "car")
            .publish(retained(qos1(1, "a", "x")));
        let got = app.take();
        assert_eq!((text(&got).as_str(), got.retain), ("a: x", false));
        setup
            .client(version, "car")
            .publish(retained(qos1(1, "a", "")));
        app.take();
    }
}

#[test]
fn a_wildcard_brings_all_that_match_and_none_that_begin_with_a_dollar() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    for topic in ["a", "a/b", "a/c", "a/b/c", "/a", "$own/a"] {
        car.publish(retained(qos1(1, topic, "x")));
    }
    let rows = [
        ("#", set(["a: x", "a/b: x", "a/c: x", "a/b/c: x", "/a: x"])),
        ("a/#", set(["a: x", "a/b: x", "a/c: x", "a/b/c: x"])),
        ("a/+", set(["a/b: x", "a/c: x"])),
        ("+", set(["a: x"])),
        ("+/+", set(["a/b: x", "a/c: x", "/a: x"])),
        ("+/a", set(["/a: x"])),
        ("$own/+", set(["$own/a: x"])),
        ("b/#", set([])),
    ];
    for version in VERSIONS {
        for (filter, expected) in &rows {
            assert_eq!(&kept(&setup, version, filter), expected, "{filter}");
        }
    }
}

#[test]
fn retain_handling_decides_when_retained_messages_are_sent() {
    let setup = start_tcp();
    setup
        .client(V5, "car")
        .publish(retained(qos1(1, "a", "kept")));
    let subscription = |retain_handling| Subscription {
        retain_handling,
        ..wish("a", LEAST)
    };
    let rows = [
        (RetainHandling::AtSubscribe, [true, true, true]),
        (RetainHandling::AtNewSubscription, [true, false, true]),
        (RetainHandling::Never, [false, false, false]),
    ];
    for (handling, expected) in rows {
        let mut app = setup.client(V5, "app");
        for (n, expected) in expected.into_iter().enumerate() {
            if n == 2 {
                app.unsubscribe(&["a"]);
            }
            app.ask(vec![subscription(handling)], None);
            let sent = rest(&setup, &mut app).len();
            assert_eq!(sent == 1, expected, "{handling:?}, time {n}");
        }
    }
    // A session that is resumed has its subscription already.
    for (handling, expected) in [
        (RetainHandling::AtSubscribe, 1),
        (RetainHandling::AtNewSubscription, 0),
    ] {
        let mut app = setup.enter(stored(V5, "stored"));
        app.ask(vec![subscription(handling)], None);
        rest(&setup, &mut app);
        app.leave();
        let mut app = setup.resume(stored(V5, "stored"));
        app.ask(vec![subscription(handling)], None);
        assert_eq!(rest(&setup, &mut app).len(), expected);
        app.leave();
        setup.client(V5, "stored").leave();
    }
}

#[test]
fn mqtt_3_gets_retained_messages_with_every_subscribe() {
    let setup = start_tcp();
    setup
        .client(V3, "car")
        .publish(retained(qos1(1, "a", "kept")));
    let mut app = setup.client(V3, "app");
    for _ in 0..3 {
        app.subscribe("a", LEAST);
        let got = app.take();
        assert_eq!((text(&got).as_str(), got.retain), ("a: kept", true));
    }
}

#[test]
fn retain_as_published_does_not_matter_for_what_was_kept() {
    let setup = start_tcp();
    setup
        .client(V5, "car")
        .publish(retained(qos1(1, "a", "kept")));
    for retain_as_published in [false, true] {
        let mut app = setup.client(V5, "app");
        let subscription = Subscription {
            retain_as_published,
            ..wish("a", LEAST)
        };
        app.ask(vec![subscription], Some(5));
        let got = app.take();
        assert!(got.retain);
        let ids: Vec<u32> = got
            .properties
            .subscription_ids
            .iter()
            .map(|id| id.get())
            .collect();
        assert_eq!(ids, [5], "it comes for the subscription just made");
    }
}

#[test]
fn a_retained_message_keeps_its_properties() {
    let setup = start_tcp();
    let mut sent = retained(qos2(1, "a", "text"));
    sent.properties.payload_format = Some(PayloadFormat::Utf8);
    sent.properties.content_type = Some("text/plain".into());
    sent.properties.response_topic = Some(TopicName::parse("answers").expect("valid"));
    sent.properties.correlation_data = Some(b"\x00\x01"[..].into());
    sent.properties.user_properties = vec![("b".into(), "1".into()), ("a".into(), "2".into())];
    setup.client(V5, "car").publish(sent.clone());
    let mut late = setup.client(V5, "late");
    late.subscribe("a", EXACTLY);
    assert_eq!(late.take().properties, sent.properties);
}

#[test]
fn a_retained_message_expires() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    car.publish(expiring(retained(qos1(1, "short", "x")), 1));
    car.publish(expiring(retained(qos1(2, "long", "x")), 3600));
    elapse(Duration::from_secs(2));
    for version in VERSIONS {
        assert_eq!(kept(&setup, version, "#"), set(["long: x"]));
    }
    let mut late = setup.client(V5, "late");
    late.subscribe("long", LEAST);
    let left = late.take().properties.message_expiry_interval;
    assert!(matches!(left, Some(3500..=3598)), "{left:?}");
}

#[test]
fn a_retained_message_replaces_one_with_an_expiry() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    car.publish(expiring(retained(qos1(1, "a", "short")), 1));
    car.publish(retained(qos1(2, "a", "for ever")));
    elapse(Duration::from_millis(1500));
    assert_eq!(kept(&setup, V5, "a"), set(["a: for ever"]));
}

#[test]
fn retained_messages_belong_to_no_session() {
    let setup = start_tcp();
    for version in VERSIONS {
        setup
            .client(version, "car")
            .publish(retained(qos1(1, "a", "kept")));
        // Its session ends, a new one with the same name begins.
        setup.client(version, "car").leave();
        assert_eq!(kept(&setup, version, "a"), set(["a: kept"]));
    }
}

#[test]
fn a_will_may_be_retained() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut connect = with_will(Connect::new(version, "car"), "gone", "car");
        connect.will.as_mut().expect("set").retain = true;
        setup.enter(connect).reset();
        setup.settled(0);
        assert_eq!(kept(&setup, version, "gone"), set(["gone: car"]));
        let mut clear = setup.client(V5, "clear");
        clear.publish(retained(qos1(1, "gone", "")));
        clear.leave();
        setup.settled(0);
    }
}

#[test]
fn the_program_itself_may_retain() {
    let setup = start_tcp();
    setup.handle.publish(&retained(qos0("a", "kept")));
    assert_eq!(kept(&setup, V5, "a"), set(["a: kept"]));
}

#[test]
fn without_retained_messages_connack_says_so_and_they_are_refused() {
    let setup = start_with(Limits {
        retain: Retain::Unavailable,
        ..Limits::default()
    });
    let refused = ReasonCode::RetainNotSupported;
    let (mut car, ack) = setup.join(Connect::new(V5, "car"));
    assert_eq!(ack.properties.retain_available, Some(false));
    car.send(retained(qos0("a", "x")));
    assert_eq!(car.farewell(), Some(refused));
    let mut app = setup.client(V5, "app");
    let subscription = Subscription {
        retain_handling: RetainHandling::AtNewSubscription,
        ..wish("a", LEAST)
    };
    assert_eq!(app.ask(vec![subscription], None), [ReasonCode::GrantedQoS1]);
}

#[test]
fn more_retained_messages_than_there_is_room_for_are_refused() {
    let setup = start_with(Limits {
        max_retained: 2,
        ..Limits::default()
    });
    let mut car = setup.client(V5, "car");
    let full = ReasonCode::QuotaExceeded;
    assert!(!car.publish(retained(qos1(1, "a", "x"))).is_error());
    assert!(!car.publish(retained(qos1(2, "b", "x"))).is_error());
    assert_eq!(car.publish(retained(qos1(3, "c", "x"))), full);
    assert_eq!(car.publish(retained(qos2(3, "c", "x"))), full);
    // A topic that is there may change, and one that is cleared makes room.
    assert!(!car.publish(retained(qos1(4, "a", "y"))).is_error());
    assert!(!car.publish(retained(qos1(5, "b", ""))).is_error());
    assert!(!car.publish(retained(qos1(6, "c", "y"))).is_error());
    assert_eq!(kept(&setup, V5, "#"), set(["a: y", "c: y"]));
}

#[test]
fn retained_messages_survive_a_restart() {
    let site = Site::new();
    let setup = site.open();
    let mut car = setup.client(V5, "car");
    for (n, qos) in QUALITIES.into_iter().enumerate() {
        car.publish(retained(message(qos, 1, &format!("a/{n}"), "old")));
        car.publish(retained(message(qos, 2, &format!("a/{n}"), "kept")));
        car.publish(retained(message(qos, 3, &format!("b/{n}"), "cleared")));
        car.publish(retained(message(qos, 4, &format!("b/{n}"), "")));
    }
    car.publish(expiring(retained(qos1(5, "c", "short")), 1));
    car.publish(expiring(retained(qos1(6, "d", "long")), 3600));
    car.leave();
    elapse(Duration::from_millis(1500));
    let setup = site.restart(setup);
    let expected = set(["a/0: kept", "a/1: kept", "a/2: kept", "d: long"]);
    assert_eq!(kept(&setup, V5, "#"), expected);
    let mut late = setup.client(V5, "late too");
    late.subscribe("d", LEAST);
    let left = late.take().properties.message_expiry_interval;
    assert!(matches!(left, Some(3500..=3599)), "{left:?}");
}

#[test]
fn what_the_program_says_of_itself_ends_with_the_run() {
    const UPTIME: &str = "$SYS/broker/uptime";
    let site = Site::new();
    let own = |setup: &Setup, topic: &str, payload: &str| {
        let message = retained(qos0(topic, payload));
        setup.handle.publish(&message)
    };
    let figures = |setup: &Setup| kept(setup, V5, "$SYS/#");
    let setup = site.open();
    for n in 1..=3 {
        own(&setup, UPTIME, &n.to_string());
    }
    own(&setup, "own/a", "kept");
    assert_eq!(figures(&setup), [format!("{UPTIME}: 3")].into());

    let setup = site.restart(setup);
    let found = setup.handle.recovery();
    assert_eq!((found.retained, found.messages), (1, 1));
    assert!(figures(&setup).is_empty());
    // What an earlier version left there is what it was, until it is replaced.
    let mut earlier = setup.client(V5, "earlier");
    for (id, topic) in [(1, UPTIME), (2, "$SYS/broker/gone")] {
        earlier.publish(retained(qos1(id, topic, "old")));
    }
    earlier.leave();
    let setup = site.restart(setup);
    assert_eq!(setup.handle.recovery().retained, 3);
    own(&setup, UPTIME, "1");
    own(&setup, "$SYS/broker/gone", "");
    assert_eq!(figures(&setup), [format!("{UPTIME}: 1")].into());
    let setup = site.restart(setup);
    let found = setup.handle.recovery();
    assert_eq!((found.retained, found.messages), (1, 1));
    assert_eq!(kept(&setup, V5, "#"), ["own/a: kept".to_owned()].into());
    assert!(figures(&setup).is_empty());
}
