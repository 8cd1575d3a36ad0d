//! Who gets what: SUBSCRIBE and UNSUBSCRIBE with all their options, wildcards, and shared
//! subscriptions (MQTT 5 sections 3.8 to 3.11, 4.7, 4.8; MQTT 3.1.1 the same without options).

mod common;

use std::collections::BTreeSet;

use broker::{Limits, ShareStrategy};
use common::{
    Access, Client, QUALITIES, Setup, VERSIONS, filter, message, packet_id, qos0, qos1, qos2,
    retained, start_tcp, start_with, stored, text, until, wish,
};
use mqtt::{
    Packet, PubAck, PubComp, PubRec, Publish, QoS, ReasonCode, Subscribe, Subscription, Version,
};

const V3: Version = Version::V311;
const V5: Version = Version::V5;
const ONCE: QoS = QoS::AtMostOnce;
const LEAST: QoS = QoS::AtLeastOnce;
const EXACTLY: QoS = QoS::ExactlyOnce;

/// The identifiers of the subscriptions a message came for.
fn ids(publish: &Publish) -> BTreeSet<u32> {
    let ids: Vec<u32> = publish
        .properties
        .subscription_ids
        .iter()
        .map(|id| id.get())
        .collect();
    let set: BTreeSet<u32> = ids.iter().copied().collect();
    assert_eq!(set.len(), ids.len(), "no identifier twice: {ids:?}");
    set
}

#[test]
fn suback_answers_each_filter_in_order_with_the_id_of_its_request() {
    let setup = start_tcp();
    setup.outside.deny(Access::Subscribe, "*", "secret/");
    for version in VERSIONS {
        let mut car = setup.client(version, "car");
        let denied = match version {
            V3 => ReasonCode::UnspecifiedError,
            V5 => ReasonCode::NotAuthorized,
        };
        for id in [1, 500, 65_535] {
            car.send(Subscribe {
                packet_id: packet_id(id),
                subscriptions: vec![
                    wish("a", EXACTLY),
                    wish("secret/b", LEAST),
                    wish("c/#", ONCE),
                    wish("d/+", LEAST),
                    wish("a", LEAST),
                ],
                properties: Default::default(),
            });
            let ack = car.suback();
            assert_eq!(ack.packet_id.get(), id);
            let expected = [
                ReasonCode::GrantedQoS2,
                denied,
                ReasonCode::GRANTED_QOS_0,
                ReasonCode::GrantedQoS1,
                ReasonCode::GrantedQoS1,
            ];
            assert_eq!(ack.reasons, expected);
        }
        // The last word on "a" was QoS 1; what was refused is not subscribed.
        let mut app = setup.client(V5, "app");
        app.publish(qos2(1, "a", "x"));
        app.publish(qos2(1, "secret/b", "x"));
        app.publish(qos2(1, "d/", "x"));
        let got = car.take();
        assert_eq!((text(&got).as_str(), got.qos), ("a: x", LEAST));
        assert_eq!(car.text(), "d/: x");
    }
}

#[test]
fn filters_match_live_messages_as_the_specification_says() {
    let setup = start_tcp();
    let topics = [
        "sport",
        "sport/",
        "sport/tennis",
        "sport/tennis/player1",
        "sport/tennis/player1/score",
        "/finance",
        "finance",
        "/",
        "//",
        "Sport",
        "sport/Tennis",
        "$SYS",
        "$SYS/monitor",
        "$SYS/monitor/clients",
        "$own/topic",
    ];
    let rows: [(&str, &[&str]); 15] = [
        ("sport/tennis/player1", &["sport/tennis/player1"]),
        (
            "sport/tennis/player1/#",
            &["sport/tennis/player1", "sport/tennis/player1/score"],
        ),
        (
            "sport/#",
            &[
                "sport",
                "sport/",
                "sport/tennis",
                "sport/tennis/player1",
                "sport/tennis/player1/score",
                "sport/Tennis",
            ],
        ),
        (
            "#",
            &[
                "sport",
                "sport/",
                "sport/tennis",
                "sport/tennis/player1",
                "sport/tennis/player1/score",
                "/finance",
                "finance",
                "/",
                "//",
                "Sport",
                "sport/Tennis",
            ],
        ),
        ("sport/+", &["sport/", "sport/tennis", "sport/Tennis"]),
        ("+", &["sport", "finance", "Sport"]),
        (
            "+/+",
            &["sport/", "sport/tennis", "/finance", "/", "sport/Tennis"],
        ),
        ("/+", &["/finance", "/"]),
        ("+/+/+", &["sport/tennis/player1", "//"]),
        (
            "+/tennis/#",
            &[
                "sport/tennis",
                "sport/tennis/player1",
                "sport/tennis/player1/score",
            ],
        ),
        ("sport/+/player1", &["sport/tennis/player1"]),
        ("$SYS/#", &["$SYS", "$SYS/monitor", "$SYS/monitor/clients"]),
        ("$SYS/monitor/+", &["$SYS/monitor/clients"]),
        ("+/monitor/clients", &[]),
        ("$own/topic", &["$own/topic"]),
    ];
    let mut car = setup.client(V5, "car");
    for version in VERSIONS {
        for (wanted, matching) in rows {
            let mut app = setup.client(version, "app");
            app.ask(vec![wish(wanted, ONCE), wish("the/end", ONCE)], None);
            for topic in topics.into_iter().chain(["the/end"]) {
                car.publish(qos0(topic, ""));
            }
            for topic in matching {
                assert_eq!(app.message().topic.as_str(), *topic, "{wanted}");
            }
            assert_eq!(app.message().topic, "the/end", "{wanted}");
        }
    }
}

#[test]
fn a_subscription_made_again_replaces_the_first() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        let mut car = setup.client(V5, "car");
        for qos in [ONCE, EXACTLY, LEAST] {
            app.subscribe("a", qos);
            car.publish(qos2(1, "a", "x"));
            car.publish(qos2(2, "a", "end"));
            let got = app.take();
            assert_eq!((text(&got).as_str(), got.qos), ("a: x", qos));
            assert_eq!(app.text(), "a: end", "each message once");
        }
        until("one filter, one subscription", || {
            setup.handle.stats().subscriptions == 1
        });
    }
}

#[test]
fn no_message_is_lost_while_a_subscription_is_replaced() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        app.subscribe("a", EXACTLY);
        let addr = setup.addr;
        let publisher = std::thread::spawn(move || {
            let connect = mqtt::Connect::new(V5, "car");
            let mut car = Client::open(common::dial(addr), connect);
            car.connack();
            for n in 0..500u16 {
                car.publish(qos2(1, "a", n.to_string()));
            }
        });
        for round in 0..20 {
            app.subscribe("a", [LEAST, EXACTLY][round % 2]);
        }
        for n in 0..500 {
            assert_eq!(app.text(), format!("a: {n}"));
        }
        publisher.join().expect("all was accepted");
    }
}

#[test]
fn overlapping_subscriptions_bring_one_copy_with_the_best_quality_and_all_identifiers() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.ask(vec![wish("a/+", ONCE)], Some(1));
    app.ask(vec![wish("a/b", EXACTLY)], Some(268_435_455));
    app.ask(vec![wish("a/#", LEAST), wish("b/#", LEAST)], Some(128));
    app.ask(vec![wish("#", ONCE)], None);
    let mut car = setup.client(V5, "car");
    for qos in QUALITIES {
        car.publish(message(qos, 1, "a/b", "x"));
        let got = app.take();
        assert_eq!(got.qos, qos, "the best that was granted");
        assert_eq!(ids(&got), BTreeSet::from([1, 128, 268_435_455]));
        car.publish(message(qos, 2, "b/c", "y"));
        let got = app.take();
        assert_eq!(text(&got), "b/c: y", "no second copy of the first");
        assert_eq!(ids(&got), BTreeSet::from([128]));
        car.publish(message(qos, 3, "c", "z"));
        let got = app.take();
        assert_eq!((text(&got).as_str(), ids(&got)), ("c: z", BTreeSet::new()));
    }
}

#[test]
fn overlapping_subscriptions_of_mqtt_3_bring_a_message_at_the_best_quality() {
    let setup = start_tcp();
    let mut app = setup.client(V3, "app");
    app.ask(
        vec![wish("a/+", ONCE), wish("a/b", EXACTLY), wish("#", LEAST)],
        None,
    );
    let mut car = setup.client(V3, "car");
    car.publish(qos2(1, "a/b", "x"));
    car.publish(qos2(2, "a/b", "end"));
    let got = app.take();
    assert_eq!((text(&got).as_str(), got.qos), ("a/b: x", EXACTLY));
    assert_eq!(app.text(), "a/b: end");
}

#[test]
fn a_subscription_identifier_is_replaced_and_removed_with_its_subscription() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    let mut car = setup.client(V5, "car");
    for id in [Some(1), Some(2), None, Some(3)] {
        app.ask(vec![wish("a", LEAST)], id);
        car.publish(qos1(1, "a", "x"));
        assert_eq!(ids(&app.take()), id.into_iter().collect());
    }
    app.unsubscribe(&["a"]);
    app.ask(vec![wish("a", LEAST)], None);
    car.publish(qos1(1, "a", "x"));
    assert_eq!(ids(&app.take()), BTreeSet::new());
    // Clients of one topic do not see each other's identifiers.
    let mut other = setup.client(V5, "other");
    other.ask(vec![wish("a", LEAST)], Some(7));
    app.ask(vec![wish("a", LEAST)], Some(8));
    car.publish(qos1(1, "a", "x"));
    assert_eq!(ids(&app.take()), BTreeSet::from([8]));
    assert_eq!(ids(&other.take()), BTreeSet::from([7]));
}

#[test]
fn no_local_keeps_a_client_from_hearing_itself_and_nobody_else() {
    let setup = start_tcp();
    let quiet = Subscription {
        no_local: true,
        ..wish("a", LEAST)
    };
    let mut car = setup.enter(stored(V5, "car"));
    car.ask(vec![quiet], None);
    let mut other = setup.client(V5, "other");
    other.subscribe("a", LEAST);
    car.publish(qos1(1, "a", "own"));
    assert_eq!(other.text(), "a: own");
    other.publish(qos1(1, "a", "other's"));
    assert_eq!(car.text(), "a: other's");
    assert_eq!(
        other.text(),
        "a: other's",
        "without the option it hears itself"
    );
    // The session remembers.
    car.leave();
    let mut car = setup.resume(stored(V5, "car"));
    car.publish(qos1(1, "a", "own"));
    assert_eq!(other.text(), "a: own");
    // Another subscription of the same client does want it.
    car.subscribe("#", LEAST);
    car.publish(qos1(1, "a", "own"));
    assert_eq!(car.text(), "a: own");
}

#[test]
fn unsubscribe_ends_what_it_names_letter_by_letter() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        let mut car = setup.client(V5, "car");
        app.ask(
            vec![wish("a/+", LEAST), wish("b", LEAST), wish("c", LEAST)],
            None,
        );
        let reasons = app.unsubscribe(&["a/#", "a/b", "B", "c", "c"]);
        if version == V5 {
            let none = ReasonCode::NoSubscriptionExisted;
            assert_eq!(reasons, [none, none, none, ReasonCode::Success, none]);
        }
        for topic in ["c", "a/b", "c", "b"] {
            car.publish(qos1(1, topic, "x"));
        }
        assert_eq!(app.texts(2), ["a/b: x", "b: x"]);
        app.unsubscribe(&["a/+", "b"]);
        app.subscribe("the/end", LEAST);
        for topic in ["a/b", "b", "the/end"] {
            car.publish(qos1(1, topic, "x"));
        }
        assert_eq!(app.text(), "the/end: x");
        app.leave();
    }
    until("no subscription is left", || {
        setup.handle.stats().subscriptions == 0
    });
}

#[test]
fn unsuback_carries_the_id_of_its_request() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        for id in [1, 300, 65_535] {
            app.send(mqtt::Unsubscribe {
                packet_id: packet_id(id),
                filters: vec![filter("never"), filter("ever")],
                properties: Default::default(),
            });
            let ack = app.unsuback();
            assert_eq!(ack.packet_id.get(), id, "even if nothing was removed");
            let codes = match version {
                V3 => 0,
                V5 => 2,
            };
            assert_eq!(ack.reasons.len(), codes);
        }
    }
}

#[test]
fn exchanges_under_way_are_finished_after_unsubscribe() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        app.subscribe("a", EXACTLY);
        let mut car = setup.client(V5, "car");
        car.publish(qos1(1, "a", "1"));
        car.publish(qos2(2, "a", "2"));
        let (first, second) = (app.message(), app.message());
        let id = second.packet_id.expect("QoS 2");
        app.unsubscribe(&["a"]);
        app.acknowledge(&first);
        app.send(PubRec::success(id));
        assert_eq!(app.pubrel(), (id.get(), ReasonCode::Success));
        app.send(PubComp::success(id));
        app.ping();
    }
    until("both are acknowledged", || {
        setup.handle.stats().pubacks_received == 2
    });
}

#[test]
fn refused_filters_do_not_stop_the_granted_ones() {
    let limits = Limits {
        max_subscriptions: 2,
        max_filter_levels: 3,
        ..Limits::default()
    };
    let setup = start_with(limits);
    let mut app = setup.client(V5, "app");
    let reasons = app.ask(
        vec![
            wish("a/b/c/d", LEAST),
            wish("a", LEAST),
            wish("b", LEAST),
            wish("c", LEAST),
            wish("a", EXACTLY),
        ],
        None,
    );
    let expected = [
        ReasonCode::TopicFilterInvalid,
        ReasonCode::GrantedQoS1,
        ReasonCode::GrantedQoS1,
        ReasonCode::QuotaExceeded,
        // Not one more: the first once again.
        ReasonCode::GrantedQoS2,
    ];
    assert_eq!(reasons, expected);
    let mut car = setup.client(V5, "car");
    for topic in ["c", "a", "b"] {
        car.publish(qos2(1, topic, "x"));
    }
    assert_eq!(app.texts(2), ["a: x", "b: x"]);
}

#[test]
fn a_retained_flag_is_passed_on_only_to_who_asked_for_it() {
    let setup = start_tcp();
    let as_published = Subscription {
        retain_as_published: true,
        ..wish("a", LEAST)
    };
    let mut plain = setup.client(V5, "plain");
    plain.subscribe("a", LEAST);
    let mut old = setup.client(V3, "old");
    old.subscribe("a", LEAST);
    let mut exact = setup.client(V5, "exact");
    exact.ask(vec![as_published], None);
    let mut car = setup.client(V5, "car");
    for flag in [true, false] {
        car.publish(Publish {
            retain: flag,
            ..qos1(1, "a", "x")
        });
        assert!(!plain.take().retain);
        assert!(!old.take().retain);
        assert_eq!(exact.take().retain, flag);
    }
}

// Shared subscriptions.

fn members<const N: usize>(setup: &Setup, qos: QoS) -> [Client; N] {
    std::array::from_fn(|n| {
        let mut member = setup.client(V5, &format!("member {n}"));
        member.subscribe("$share/group/a/#", qos);
        member
    })
}

/// What each member has taken once all of them have seen the end.
fn shares(members: &mut [Client], car: &mut Client) -> Vec<Vec<String>> {
    for (n, member) in members.iter_mut().enumerate() {
        member.subscribe(&format!("end/{n}"), EXACTLY);
    }
    members
        .iter_mut()
        .enumerate()
        .map(|(n, member)| {
            car.publish(qos2(1, &format!("end/{n}"), ""));
            let mut share = Vec::new();
            loop {
                let got = member.take();
                if got.topic.starts_with("end/") {
                    return share;
                }
                share.push(text(&got));
            }
        })
        .collect()
}

#[test]
fn each_message_goes_to_one_member_of_a_share_in_turn() {
    let setup = start_tcp();
    for qos in QUALITIES {
        let mut members = members::<3>(&setup, qos);
        let mut car = setup.client(V5, "car");
        for n in 1..=30u16 {
            car.publish(message(qos, n, "a/b", n.to_string()));
        }
        let shares = shares(&mut members, &mut car);
        let sizes: Vec<usize> = shares.iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 10], "{shares:?}");
        let all: BTreeSet<&String> = shares.iter().flatten().collect();
        assert_eq!(all.len(), 30, "none twice");
    }
}

#[test]
fn mqtt_3_clients_share_too() {
    let setup = start_tcp();
    let mut members = [V3, V5].map(|version| {
        let mut member = setup.client(version, &version.to_string());
        member.subscribe("$share/group/a/#", LEAST);
        member
    });
    let mut car = setup.client(V3, "car");
    for n in 1..=10u16 {
        car.publish(qos1(n, "a/b", n.to_string()));
    }
    let shares = shares(&mut members, &mut car);
    assert_eq!((shares[0].len(), shares[1].len()), (5, 5));
}

#[test]
fn shares_of_another_name_or_filter_and_plain_subscriptions_get_their_own() {
    let setup = start_tcp();
    let filters = [
        "$share/one/a/b",
        "$share/two/a/b",
        "$share/one/a/+",
        "a/b",
        "#",
    ];
    let mut apps = filters.map(|filter| {
        let mut app = setup.client(V5, filter);
        app.subscribe(filter, LEAST);
        app
    });
    let mut car = setup.client(V5, "car");
    for n in 1..=5u16 {
        car.publish(qos1(n, "a/b", n.to_string()));
    }
    for (app, filter) in apps.iter_mut().zip(filters) {
        for n in 1..=5 {
            assert_eq!(app.text(), format!("a/b: {n}"), "{filter}");
        }
    }
}

#[test]
fn a_share_and_a_plain_subscription_of_one_client_are_two_things() {
    let setup = start_tcp();
    let mut both = setup.client(V5, "both");
    both.ask(vec![wish("$share/group/a", LEAST)], Some(1));
    both.ask(vec![wish("a", LEAST)], Some(2));
    let mut car = setup.client(V5, "car");
    car.publish(qos1(1, "a", "x"));
    let mut seen: Vec<BTreeSet<u32>> = Vec::new();
    both.subscribe("end", LEAST);
    car.publish(qos1(2, "end", "x"));
    loop {
        let got = both.take();
        if got.topic == "end" {
            break;
        }
        seen.push(ids(&got));
    }
    let all: BTreeSet<u32> = seen.iter().flatten().copied().collect();
    assert_eq!(all, BTreeSet::from([1, 2]), "{seen:?}");
}

#[test]
fn members_get_their_own_quality() {
    let setup = start_tcp();
    let mut members = QUALITIES.map(|qos| {
        let mut member = setup.client(V5, &format!("{qos:?}"));
        member.subscribe("$share/group/a", qos);
        member
    });
    let mut car = setup.client(V5, "car");
    for n in 1..=9u16 {
        car.publish(qos2(n, "a", n.to_string()));
    }
    for (member, qos) in members.iter_mut().zip(QUALITIES) {
        for _ in 0..3 {
            assert_eq!(member.take().qos, qos);
        }
    }
}

#[test]
fn a_share_brings_no_retained_messages() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    car.publish(retained(qos1(1, "a", "kept")));
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        app.subscribe("$share/group/a", LEAST);
        car.publish(qos1(1, "a", "live"));
        assert_eq!(app.text(), "a: live");
    }
}

#[test]
fn who_unsubscribes_from_a_share_gets_nothing_more_and_the_others_all() {
    let setup = start_tcp();
    let mut members = members::<2>(&setup, LEAST);
    let reasons = members[0].unsubscribe(&["$share/group/a/#"]);
    assert_eq!(reasons, [ReasonCode::Success]);
    let reasons = members[0].unsubscribe(&["a/#", "$share/other/a/#"]);
    assert_eq!(reasons, [ReasonCode::NoSubscriptionExisted; 2]);
    let mut car = setup.client(V5, "car");
    for n in 1..=6u16 {
        car.publish(qos1(n, "a/b", n.to_string()));
    }
    let shares = shares(&mut members, &mut car);
    assert_eq!((shares[0].len(), shares[1].len()), (0, 6));
}

#[test]
fn least_in_flight_gives_to_who_has_the_least_to_do() {
    let setup = start_with(Limits {
        share_strategy: ShareStrategy::LeastInFlight,
        ..Limits::default()
    });
    let mut members = members::<2>(&setup, LEAST);
    let mut car = setup.client(V5, "car");
    // One member holds what it gets, the other acknowledges at once: it gets all the rest.
    car.publish(qos1(1, "a/b", "1"));
    car.publish(qos1(2, "a/b", "2"));
    let held = members[0].message();
    let quick = &mut members[1];
    quick.take();
    quick.ping();
    for n in 3..=20u16 {
        car.publish(qos1(n, "a/b", n.to_string()));
        assert_eq!(quick.text(), format!("a/b: {n}"));
        quick.ping();
    }
    members[0].acknowledge(&held);
}

#[test]
fn sticky_keeps_a_publisher_with_a_member() {
    let setup = start_with(Limits {
        share_strategy: ShareStrategy::StickyByPublisher,
        ..Limits::default()
    });
    let mut members = members::<2>(&setup, LEAST);
    for car in 0..40 {
        let mut client = setup.client(V5, &format!("car {car}"));
        for n in 1..=5u16 {
            client.publish(qos1(n, &format!("a/{car}"), n.to_string()));
        }
    }
    let shares = shares(&mut members, &mut setup.client(V5, "end"));
    for share in &shares {
        assert!(!share.is_empty(), "every member has its publishers");
        for car in 0..40 {
            let prefix = format!("a/{car}: ");
            let own: Vec<&str> = share
                .iter()
                .filter_map(|text| text.strip_prefix(&prefix))
                .collect();
            assert!(
                own.is_empty() || own == ["1", "2", "3", "4", "5"],
                "{own:?}"
            );
        }
    }
}

#[test]
fn what_a_member_did_not_acknowledge_goes_to_another_when_its_session_ends() {
    let setup = start_tcp();
    let [mut stays, mut goes] = members::<2>(&setup, LEAST);
    let mut car = setup.client(V5, "car");
    for n in 1..=6u16 {
        car.publish(qos1(n, "a/b", n.to_string()));
    }
    let mut seen: Vec<String> = stays.texts(3);
    for _ in 0..3 {
        goes.message();
    }
    goes.reset();
    seen.extend(stays.texts(3));
    seen.sort();
    let expected: Vec<String> = (1..=6).map(|n| format!("a/b: {n}")).collect();
    assert_eq!(seen, expected);
}

#[test]
fn a_member_that_refuses_a_message_ends_it_for_all() {
    let setup = start_tcp();
    let mut members = members::<2>(&setup, EXACTLY);
    let mut car = setup.client(V5, "car");
    car.publish(qos1(1, "a/b", "1"));
    car.publish(qos2(2, "a/b", "2"));
    let mut refused = 0;
    for member in &mut members {
        let got = member.message();
        let id = got.packet_id.expect("not QoS 0");
        let reason = ReasonCode::ImplementationSpecificError;
        match got.qos {
            LEAST => member.send(PubAck::new(id, reason)),
            _ => member.send(PubRec::new(id, reason)),
        }
        member.ping();
        refused += 1;
    }
    assert_eq!(refused, 2);
    let shares = shares(&mut members, &mut car);
    assert_eq!(shares, [Vec::<String>::new(), Vec::new()]);
}

#[test]
fn a_qos_2_message_stays_with_the_member_it_was_sent_to() {
    let setup = start_tcp();
    let mut goes = setup.enter(stored(V5, "goes"));
    goes.subscribe("$share/group/a", EXACTLY);
    let mut car = setup.client(V5, "car");
    car.publish(qos2(1, "a", "x"));
    let sent = goes.message();
    let mut stays = setup.client(V5, "stays");
    stays.subscribe("$share/group/a", EXACTLY);
    goes.reset();
    setup.settled(2);
    car.publish(qos2(2, "a", "end"));
    assert_eq!(stays.text(), "a: end");
    // Its delivery goes on when the member is back.
    let mut back = setup.resume(stored(V5, "goes"));
    let again = back.take();
    assert_eq!((text(&again).as_str(), again.dup), ("a: x", true));
    assert_eq!(again.packet_id, sent.packet_id);
}

#[test]
fn a_qos_2_message_ends_with_the_session_it_was_sent_to() {
    let setup = start_tcp();
    let mut goes = setup.client(V5, "goes");
    goes.subscribe("$share/group/a", EXACTLY);
    let mut car = setup.client(V5, "car");
    car.publish(qos2(1, "a", "x"));
    let id = goes.message().packet_id.expect("QoS 2");
    let mut stays = setup.client(V5, "stays");
    stays.subscribe("$share/group/a", EXACTLY);
    goes.send(PubRec::success(id));
    goes.pubrel();
    goes.reset();
    setup.settled(2);
    car.publish(qos2(2, "a", "end"));
    assert_eq!(stays.text(), "a: end");
}

#[test]
fn messages_wait_for_the_first_member_back_while_all_are_away() {
    let setup = start_tcp();
    for name in ["one", "two"] {
        let mut member = setup.enter(stored(V5, name));
        member.subscribe("$share/group/a", LEAST);
        member.leave();
    }
    let mut car = setup.client(V5, "car");
    for n in 1..=5u16 {
        let reason = car.publish(qos1(n, "a", n.to_string()));
        assert_eq!(reason, ReasonCode::Success);
    }
    let mut member = setup.resume(stored(V5, "two"));
    let expected: Vec<String> = (1..=5).map(|n| format!("a: {n}")).collect();
    assert_eq!(member.texts(5), expected);
    // Each once: the other one finds none of them.
    let mut other = setup.resume(stored(V5, "one"));
    other.subscribe("end", LEAST);
    car.publish(qos1(9, "end", "x"));
    assert_eq!(other.text(), "end: x");
}

#[test]
fn a_share_counts_as_one_more_subscription_and_ends_with_its_last_member() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("$share/group/a", LEAST);
    app.subscribe("$share/group/a", EXACTLY);
    assert_eq!(setup.handle.stats().subscriptions, 1);
    app.leave();
    setup.settled(0);
    until("it is gone", || setup.handle.stats().subscriptions == 0);
    assert_eq!(setup.handle.publish(&qos0("a", "x")), 0);
}

#[test]
fn whether_a_topic_has_subscribers_is_known_beforehand() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("a/b", LEAST);
    app.subscribe("c/+", LEAST);
    app.subscribe("$share/group/d/#", LEAST);
    for (topic, has) in [
        ("a/b", true),
        ("c/x", true),
        ("d/x/y", true),
        ("a", false),
        ("c", false),
        ("$share/group/d/x", false),
    ] {
        assert_eq!(setup.handle.has_subscribers(topic), has, "{topic}");
    }
}

#[test]
fn malformed_shares_are_refused() {
    let setup = start_tcp();
    for version in VERSIONS {
        for filter in [
            "$share/",
            "$share/g",
            "$share/g/",
            "$share//a",
            "$share/+/a",
            "$share/#",
        ] {
            let mut car = setup.client(version, "car");
            let mut body = vec![0, 1];
            if version == V5 {
                body.push(0);
            }
            body.extend([0, filter.len() as u8]);
            body.extend(filter.bytes());
            body.push(0);
            car.raw(&[&[0x82, body.len() as u8][..], &body].concat());
            car.is_closed_for(ReasonCode::MalformedPacket);
        }
    }
}

#[test]
fn a_subscription_of_a_denied_share_is_judged_by_its_filter() {
    let setup = start_tcp();
    setup.outside.deny(Access::Subscribe, "*", "secret/");
    let mut car = setup.client(V5, "car");
    let reasons = car.ask(vec![wish("$share/group/secret/a", LEAST)], None);
    assert_eq!(reasons, [ReasonCode::NotAuthorized]);
}

#[test]
fn subscribe_packet_ids_do_not_disturb_deliveries() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        app.subscribe("a", EXACTLY);
        let mut car = setup.client(V5, "car");
        car.publish(qos2(1, "a", "x"));
        let got = app.message();
        // The number the broker uses, used by the client for its own request.
        app.send(Subscribe {
            packet_id: got.packet_id.expect("QoS 2"),
            subscriptions: vec![wish("b", LEAST)],
            properties: Default::default(),
        });
        let ack = app.suback();
        assert_eq!(Some(ack.packet_id), got.packet_id);
        app.acknowledge(&got);
        app.ping();
    }
}

#[test]
fn a_subscription_to_everything_is_not_one_to_what_begins_with_a_dollar() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.client(version, "app");
        app.ask(
            vec![wish("#", ONCE), wish("+/a", ONCE), wish("end", ONCE)],
            None,
        );
        let mut car = setup.client(V5, "car");
        car.publish(qos0("$SYS/a", "x"));
        car.publish(qos0("$own", "x"));
        car.publish(qos0("end", "x"));
        assert_eq!(app.text(), "end: x");
    }
}

#[test]
fn empty_levels_are_levels() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("+/+/b", ONCE);
    let mut car = setup.client(V5, "car");
    for topic in ["/b", "//b", "a//b", "a/b", "///b"] {
        car.publish(qos0(topic, ""));
    }
    car.publish(qos0("the/end/b", ""));
    assert_eq!(app.texts(3), ["//b: ", "a//b: ", "the/end/b: "]);
}

#[test]
fn a_client_gets_nothing_it_did_not_subscribe_to() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    setup.client(V5, "car").publish(qos1(1, "a", "x"));
    app.ping();
    app.send(Packet::PingReq);
    assert_eq!(app.next(), Some(Packet::PingResp), "nothing before it");
}
