//! What outlives a connection, for how long, and what of it is there after a restart (MQTT 5
//! sections 3.1.2.4, 3.1.2.11.2, 3.14.2.2.2, 4.1, 4.4; MQTT 3.1.1 sections 3.1.2.4, 4.1, 4.4).

mod common;

use std::time::Duration;

use broker::{Limits, Overflow};
use common::{
    Access, QUALITIES, Setup, Site, VERSIONS, again, elapse, expiring, message, packet_id, qos0,
    qos1, qos2, start_tcp, start_with, stored, text, until, wish,
};
use mqtt::{
    Connect, Disconnect, Packet, PubComp, PubRec, PubRel, Publish, QoS, ReasonCode, Subscription,
    Version,
};

const V3: Version = Version::V311;
const V5: Version = Version::V5;
const LEAST: QoS = QoS::AtLeastOnce;
const EXACTLY: QoS = QoS::ExactlyOnce;

/// A session that subscribes to `a/#` and is away.
fn sleeper(setup: &Setup, version: Version, name: &str) {
    let mut app = setup.enter(stored(version, name));
    app.subscribe("a/#", EXACTLY);
    app.leave();
}

fn expiring_after(seconds: u32, name: &str) -> Connect {
    let mut connect = stored(V5, name);
    connect.properties.session_expiry_interval = Some(seconds);
    connect
}

fn with_expiry(seconds: u32) -> Disconnect {
    let mut disconnect = Disconnect::default();
    disconnect.properties.session_expiry_interval = Some(seconds);
    disconnect
}

#[test]
fn session_present_says_whether_there_was_one() {
    let setup = start_tcp();
    for version in VERSIONS {
        let present = |connect: Connect| {
            let (client, ack) = setup.join(connect);
            assert_eq!(ack.reason, ReasonCode::Success);
            client.leave();
            ack.session_present
        };
        let clean = || Connect::new(version, "car");
        assert!(!present(clean()));
        assert!(!present(stored(version, "car")), "the first ended at once");
        assert!(present(stored(version, "car")));
        assert!(present(stored(version, "car")));
        assert!(!present(clean()), "thrown away");
        assert!(!present(stored(version, "car")), "and gone");
        assert!(!present(clean()));
    }
}

#[test]
fn clean_start_with_an_expiry_begins_a_session_that_stays() {
    let setup = start_tcp();
    let mut connect = stored(V5, "car");
    connect.clean_start = true;
    setup.enter(connect.clone()).leave();
    let mut car = setup.resume(stored(V5, "car"));
    car.subscribe("a", LEAST);
    car.leave();
    let (mut car, ack) = setup.join(connect);
    assert!(!ack.session_present);
    assert_eq!(
        car.unsubscribe(&["a"]),
        [ReasonCode::NoSubscriptionExisted],
        "the old subscriptions are gone"
    );
}

#[test]
fn a_session_without_expiry_ends_with_its_connection() {
    let setup = start_tcp();
    for expiry in [None, Some(0)] {
        let mut connect = Connect::new(V5, "car");
        connect.clean_start = false;
        connect.properties.session_expiry_interval = expiry;
        let mut car = setup.enter(connect.clone());
        car.subscribe("a", LEAST);
        car.reset();
        setup.settled(0);
        let (car, ack) = setup.join(connect);
        assert!(!ack.session_present);
        car.leave();
    }
    until("no subscription is left", || {
        setup.handle.stats().subscriptions == 0
    });
}

#[test]
fn what_comes_while_a_client_is_away_waits_for_it_in_order() {
    let setup = start_tcp();
    for version in VERSIONS {
        for from in VERSIONS {
            sleeper(&setup, version, "app");
            let mut car = setup.client(from, "car");
            for n in 1..=20u16 {
                let qos = if n % 2 == 0 { LEAST } else { EXACTLY };
                let reason = car.publish(message(qos, n, "a/b", n.to_string()));
                assert_eq!(reason, ReasonCode::Success);
            }
            let mut app = setup.resume(stored(version, "app"));
            for n in 1..=20u16 {
                let got = app.take();
                assert_eq!(text(&got), format!("a/b: {n}"));
                assert!(!got.dup, "sent for the first time");
                assert_eq!(got.qos, if n % 2 == 0 { LEAST } else { EXACTLY });
            }
            // And each once.
            app.leave();
            let mut app = setup.resume(stored(version, "app"));
            car.publish(qos1(1, "a/b", "end"));
            assert_eq!(app.text(), "a/b: end");
            app.leave();
            setup.client(version, "app").leave();
        }
    }
}

#[test]
fn subscriptions_with_their_options_and_identifiers_are_remembered() {
    let setup = start_tcp();
    let mut app = setup.enter(stored(V5, "app"));
    let subscription = Subscription {
        retain_as_published: true,
        ..wish("a/+", LEAST)
    };
    app.ask(vec![subscription], Some(5));
    app.ask(vec![wish("b", EXACTLY)], Some(6));
    app.unsubscribe(&["b"]);
    app.leave();
    let mut app = setup.resume(stored(V5, "app"));
    let mut car = setup.client(V5, "car");
    car.publish(qos1(1, "b", "unsubscribed"));
    car.publish(Publish {
        retain: true,
        ..qos2(1, "a/b", "x")
    });
    let got = app.take();
    assert_eq!((text(&got).as_str(), got.qos), ("a/b: x", LEAST));
    assert!(got.retain);
    assert_eq!(got.properties.subscription_ids[0].get(), 5);
}

#[test]
fn a_session_passes_from_one_version_to_the_other() {
    let setup = start_tcp();
    for (first, second) in [(V3, V5), (V5, V3)] {
        sleeper(&setup, first, "app");
        setup.client(V5, "car").publish(qos2(1, "a/b", "x"));
        let mut app = setup.resume(stored(second, "app"));
        assert_eq!(app.text(), "a/b: x");
        app.leave();
        setup.resume(stored(first, "app")).leave();
        setup.client(first, "app").leave();
    }
}

#[test]
fn a_session_ends_when_it_has_expired_and_not_before() {
    let setup = start_tcp();
    sleeper(&setup, V5, "long");
    let mut short = setup.enter(expiring_after(1, "short"));
    short.subscribe("a/#", EXACTLY);
    short.leave();
    until("one of two is left", || {
        setup.handle.stats().subscriptions == 1
    });
    setup.client(V5, "car").publish(qos1(1, "a/b", "x"));
    let (_short, ack) = setup.join(expiring_after(1, "short"));
    assert!(!ack.session_present);
    assert_eq!(setup.resume(stored(V5, "long")).text(), "a/b: x");
}

#[test]
fn an_open_connection_keeps_its_session_whatever_the_expiry() {
    let setup = start_tcp();
    let mut car = setup.enter(expiring_after(1, "car"));
    car.subscribe("a", LEAST);
    elapse(Duration::from_millis(2500));
    car.publish(qos1(1, "a", "x"));
    assert_eq!(car.text(), "a: x");
    // Coming back begins the time anew.
    let mut connect = expiring_after(1, "car");
    connect.properties.session_expiry_interval = Some(3600);
    let car = setup.resume(connect);
    elapse(Duration::from_millis(2500));
    car.leave();
    setup.resume(stored(V5, "car")).ping();
}

#[test]
fn an_expiry_without_end_is_as_long_as_the_broker_allows() {
    let setup = start_with(Limits {
        session_expiry_max: Duration::from_secs(1),
        ..Limits::default()
    });
    // That of MQTT 3.1.1 is never said, but the same.
    for version in VERSIONS {
        let mut connect = stored(version, "car");
        if version == V5 {
            connect.properties.session_expiry_interval = Some(u32::MAX);
        }
        let mut car = setup.enter(connect.clone());
        car.subscribe("a", LEAST);
        car.leave();
        until("it is gone", || setup.handle.stats().subscriptions == 0);
        let (_car, ack) = setup.join(connect);
        assert!(!ack.session_present);
    }
}

#[test]
fn disconnect_may_change_the_expiry() {
    let setup = start_tcp();
    // To nothing: ends at once.
    setup.enter(stored(V5, "car")).leave_with(with_expiry(0));
    setup.settled(0);
    let (car, ack) = setup.join(stored(V5, "car"));
    assert!(!ack.session_present);
    // To longer.
    car.leave();
    setup
        .resume(expiring_after(1, "car"))
        .leave_with(with_expiry(3600));
    elapse(Duration::from_millis(2500));
    let mut car = setup.resume(stored(V5, "car"));
    // To shorter.
    car.subscribe("a", LEAST);
    car.leave_with(with_expiry(1));
    until("it is gone", || setup.handle.stats().subscriptions == 0);
    let (_car, ack) = setup.join(stored(V5, "car"));
    assert!(!ack.session_present);
}

#[test]
fn a_disconnect_that_gives_an_expiry_to_a_session_without_one_is_refused() {
    let setup = start_tcp();
    for expiry in [None, Some(0)] {
        let mut connect = Connect::new(V5, "car");
        connect.properties.session_expiry_interval = expiry;
        let mut car = setup.enter(connect);
        car.send(with_expiry(10));
        assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
        let (_car, ack) = setup.join(stored(V5, "car"));
        assert!(!ack.session_present);
        setup.client(V5, "car").leave();
    }
    // 0 instead of 0 is no change.
    setup.client(V5, "car").leave_with(with_expiry(0));
    setup.settled(0);
    let disconnects = setup.handle.stats().disconnects;
    assert!(disconnects.contains(&(ReasonCode::ProtocolError, 2)));
}

#[test]
fn a_takeover_continues_the_session() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut older = setup.enter(stored(version, "app"));
        older.subscribe("a/#", EXACTLY);
        let mut car = setup.client(V5, "car");
        car.publish(qos1(1, "a/b", "unacknowledged"));
        car.publish(qos2(1, "a/b", "half way"));
        let first = older.message();
        let second = older.message();
        let id = second.packet_id.expect("QoS 2");
        older.send(PubRec::success(id));
        assert_eq!(older.pubrel().0, id.get());
        let mut newer = setup.resume(stored(version, "app"));
        older.is_closed_for(ReasonCode::SessionTakenOver);
        let got = newer.find("the message", |packet| match packet {
            Packet::Publish(publish) => Some(Publish::clone(publish)),
            _ => None,
        });
        assert!(got.dup);
        assert_eq!((text(&got), got.packet_id), (text(&first), first.packet_id));
        newer.acknowledge(&got);
        let release = newer.pubrel();
        assert_eq!(release.0, id.get());
        newer.send(PubComp::success(id));
        car.publish(qos1(1, "a/b", "end"));
        assert_eq!(newer.text(), "a/b: end");
        newer.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn unacknowledged_messages_are_sent_again_in_their_order() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.enter(stored(version, "app"));
        app.subscribe("a/#", EXACTLY);
        let mut car = setup.client(V5, "car");
        for n in 1..=6u16 {
            let qos = if n % 2 == 0 { LEAST } else { EXACTLY };
            car.publish(message(qos, n, "a/b", n.to_string()));
        }
        let sent: Vec<Publish> = (0..6).map(|_| app.message()).collect();
        // One in the middle is done with; the rest is sent again as often as it takes.
        app.acknowledge(&sent[2]);
        app.ping();
        for _ in 0..3 {
            app.reset();
            setup.settled(1);
            app = setup.resume(stored(version, "app"));
            for n in [0, 1, 3, 4, 5] {
                let got = app.message();
                assert!(got.dup);
                assert_eq!(Publish { dup: false, ..got }, sent[n]);
            }
        }
        for n in [0, 1, 3, 4, 5] {
            app.acknowledge(&sent[n]);
        }
        app.ping();
        app.leave();
        let mut app = setup.resume(stored(version, "app"));
        car.publish(qos1(1, "a/b", "end"));
        assert_eq!(app.text(), "a/b: end");
        app.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn nothing_is_sent_again_while_the_connection_stands() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.enter(stored(version, "app"));
        app.subscribe("a/#", EXACTLY);
        let mut car = setup.client(V5, "car");
        car.publish(qos1(1, "a/b", "1"));
        car.publish(qos2(2, "a/b", "2"));
        let (first, second) = (app.message(), app.message());
        let id = second.packet_id.expect("QoS 2");
        app.send(PubRec::success(id));
        assert_eq!(app.pubrel().0, id.get());
        elapse(Duration::from_secs(2));
        app.send(Packet::PingReq);
        assert_eq!(app.next(), Some(Packet::PingResp), "nothing before it");
        app.acknowledge(&first);
        app.send(PubComp::success(id));
        app.leave();
        setup.client(version, "app").leave();
    }
}

#[test]
fn a_session_that_was_thrown_away_delivers_nothing_of_the_old_one() {
    let setup = start_tcp();
    for version in VERSIONS {
        sleeper(&setup, version, "app");
        let mut car = setup.client(V5, "car");
        car.publish(qos1(1, "a/b", "old"));
        let mut app = setup.client(version, "app");
        app.subscribe("a/#", EXACTLY);
        car.publish(qos1(1, "a/b", "new"));
        assert_eq!(app.text(), "a/b: new");
        app.leave();
    }
}

#[test]
fn a_full_queue_refuses_the_new_and_says_so() {
    let setup = start_with(Limits {
        max_queued: 3,
        ..Limits::default()
    });
    sleeper(&setup, V5, "app");
    let mut car = setup.client(V5, "car");
    for n in 1..=3u16 {
        assert_eq!(
            car.publish(qos1(n, "a/b", n.to_string())),
            ReasonCode::Success
        );
    }
    let full = ReasonCode::QuotaExceeded;
    assert_eq!(car.publish(qos1(4, "a/b", "4")), full);
    assert_eq!(car.publish(qos2(5, "a/b", "5")), full);
    // MQTT 3.1.1 has no words for it.
    let mut old = setup.client(V3, "old");
    old.send(qos1(6, "a/b", "6"));
    assert_eq!(old.farewell(), None);
    // A message that somebody takes is accepted.
    let mut other = setup.client(V5, "other");
    other.subscribe("a/b", LEAST);
    assert_eq!(car.publish(qos1(7, "a/b", "7")), ReasonCode::Success);
    assert_eq!(other.text(), "a/b: 7");
    let mut app = setup.resume(stored(V5, "app"));
    assert_eq!(app.texts(3), ["a/b: 1", "a/b: 2", "a/b: 3"]);
    // Once the broker has heard of it, there is room again.
    app.ping();
    car.publish(qos1(8, "a/b", "8"));
    assert_eq!(app.text(), "a/b: 8");
}

#[test]
fn a_full_queue_may_drop_the_oldest_instead() {
    let setup = start_with(Limits {
        max_queued: 3,
        overflow: Overflow::DropOldest,
        ..Limits::default()
    });
    sleeper(&setup, V5, "app");
    let mut car = setup.client(V5, "car");
    for n in 1..=10u16 {
        let reason = car.publish(qos1(n, "a/b", n.to_string()));
        assert_eq!(reason, ReasonCode::Success);
    }
    until("seven are dropped", || {
        setup.handle.stats().dropped_oldest == 7
    });
    let mut app = setup.resume(stored(V5, "app"));
    assert_eq!(app.texts(3), ["a/b: 8", "a/b: 9", "a/b: 10"]);
}

#[test]
fn a_full_queue_may_drop_what_matters_least() {
    let setup = start_with(Limits {
        max_queued: 3,
        overflow: Overflow::DropLowestPriority,
        ..Limits::default()
    });
    sleeper(&setup, V5, "app");
    let mut car = setup.client(V5, "car");
    let prior = |n: u16, priority: &str| {
        let mut publish = qos1(n, "a/b", n.to_string());
        publish.properties.user_properties = vec![("priority".into(), priority.into())];
        publish
    };
    let taken = ReasonCode::Success;
    assert_eq!(car.publish(prior(1, "high")), taken);
    assert_eq!(car.publish(qos1(2, "a/b", "2")), taken);
    assert_eq!(car.publish(prior(3, "low")), taken);
    assert_eq!(car.publish(prior(4, "high")), taken, "instead of 2");
    assert_eq!(car.publish(prior(5, "high")), taken, "instead of 3");
    // The session may be at home on another worker than the publisher.
    let dropped = || {
        let stats = setup.handle.stats();
        (stats.dropped_low_priority, stats.dropped_oldest)
    };
    until("2 and 3 are dropped", || dropped() == (2, 0));
    assert_eq!(car.publish(prior(6, "low")), ReasonCode::QuotaExceeded);
    assert_eq!(car.publish(prior(7, "high")), taken, "instead of 1");
    until("1 is dropped", || {
        let (low, oldest) = dropped();
        low + oldest == 3
    });
    let mut app = setup.resume(stored(V5, "app"));
    assert_eq!(app.texts(3), ["a/b: 4", "a/b: 5", "a/b: 7"]);
}

#[test]
fn more_sessions_than_there_is_room_for_are_refused() {
    let setup = start_with(Limits {
        max_sessions: 2,
        ..Limits::default()
    });
    sleeper(&setup, V5, "one");
    sleeper(&setup, V5, "two");
    for version in VERSIONS {
        let (_, ack) = setup.join(stored(version, "three"));
        let expected = match version {
            V3 => ReasonCode::ServerUnavailable,
            V5 => ReasonCode::QuotaExceeded,
        };
        assert_eq!(ack.reason, expected);
    }
    // Who is known may come back, and who leaves for good makes room.
    setup.resume(stored(V5, "one")).leave_with(with_expiry(0));
    setup.settled(0);
    setup.enter(stored(V5, "three")).ping();
}

#[test]
fn losing_access_takes_effect_on_what_stands() {
    let setup = start_tcp();
    let mut car = setup.client(V5, "car");
    let mut app = setup.enter(stored(V5, "app"));
    app.subscribe("a/#", LEAST);
    app.subscribe("b/#", LEAST);
    sleeper(&setup, V5, "away");
    car.publish(qos1(1, "a/b", "before"));
    assert_eq!(app.text(), "a/b: before");
    for principal in ["app", "away"] {
        setup.outside.deny(Access::Subscribe, principal, "a/");
        setup.outside.deny(Access::Receive, principal, "a/");
        setup.handle.access_changed(principal);
    }
    until("two subscriptions are gone", || {
        setup.handle.stats().subscriptions == 1
    });
    car.publish(qos1(1, "a/b", "after"));
    car.publish(qos1(1, "b/c", "end"));
    assert_eq!(app.text(), "b/c: end");
    // Not told that it lost a subscription, its client must not rely on the session.
    let (mut away, ack) = setup.join(stored(V5, "away"));
    assert_eq!(
        (ack.reason, ack.session_present),
        (ReasonCode::Success, false)
    );
    away.subscribe("b/#", LEAST);
    car.publish(qos1(1, "b/c", "end"));
    assert_eq!(
        away.text(),
        "b/c: end",
        "what waited is not delivered either"
    );
}

// Over a restart.

#[test]
fn sessions_and_all_that_waits_in_them_survive_a_restart() {
    let site = Site::new();
    let setup = site.open();
    for version in VERSIONS {
        sleeper(&setup, version, &format!("app {version}"));
    }
    let mut car = setup.client(V5, "car");
    for n in 1..=100u16 {
        let qos = if n % 2 == 0 { LEAST } else { EXACTLY };
        let reason = car.publish(message(qos, n, "a/b", n.to_string()));
        assert_eq!(reason, ReasonCode::Success);
    }
    car.leave();
    let setup = site.restart(setup);
    for version in VERSIONS {
        let mut app = setup.resume(stored(version, &format!("app {version}")));
        for n in 1..=100u16 {
            assert_eq!(app.text(), format!("a/b: {n}"));
        }
        app.leave();
    }
    // And what was delivered is not delivered again after the next one.
    let setup = site.restart(setup);
    for version in VERSIONS {
        let mut app = setup.resume(stored(version, &format!("app {version}")));
        setup.client(V5, "car").publish(qos1(1, "a/b", "end"));
        assert_eq!(app.text(), "a/b: end");
    }
}

#[test]
fn an_ordered_stop_keeps_what_waits_on_every_worker() {
    let site = Site::new();
    let mut setup = site.open();
    let names: Vec<String> = (0..6).map(|n| format!("app-{n}")).collect();
    for name in &names {
        let mut app = setup.enter(stored(V5, name));
        app.subscribe(name, LEAST);
        app.leave();
    }
    for round in 0..10 {
        // Its session is stored too: that its connection ends is the last thing to be stored, when
        // workers without connections have long come to their end.
        let mut car = setup.enter(stored(V5, "car"));
        for name in &names {
            let reason = car.publish(qos1(1, name, round.to_string()));
            assert_eq!(reason, ReasonCode::Success);
        }
        // It hangs up by itself, so that nobody waits for it.
        let hangs_up = std::thread::spawn(move || while car.next().is_some() {});
        setup = site.restart(setup);
        hangs_up.join().expect("closed in order");
        for name in &names {
            let mut app = setup.resume(stored(V5, name));
            assert_eq!(app.text(), format!("{name}: {round}"));
            app.leave();
        }
    }
}

#[test]
fn exchanges_go_on_after_a_restart_where_they_were() {
    let site = Site::new();
    for version in VERSIONS {
        let setup = site.open();
        let mut app = setup.enter(stored(version, "app"));
        app.subscribe("a/#", EXACTLY);
        let mut car = setup.enter(stored(version, "car"));
        car.publish(qos1(1, "a/b", "sent"));
        car.publish(qos2(2, "a/b", "sent twice"));
        car.publish(qos2(3, "a/b", "received"));
        let (one, two, three) = (app.message(), app.message(), app.message());
        let received = three.packet_id.expect("QoS 2");
        app.send(PubRec::success(received));
        assert_eq!(app.pubrel().0, received.get());
        // The publisher is in the middle of one, too.
        car.send(qos2(4, "a/b", "not released"));
        assert_eq!(car.pubrec(), (4, ReasonCode::Success));
        drop((app, car));

        let setup = site.restart(setup);
        let mut car = setup.resume(stored(version, "car"));
        car.send(again(qos2(4, "a/b", "not released")));
        assert_eq!(car.pubrec().0, 4);
        car.send(PubRel::success(packet_id(4)));
        assert_eq!(car.pubcomp(), (4, ReasonCode::Success));
        car.publish(qos1(5, "a/b", "end"));
        let mut app = setup.resume(stored(version, "app"));
        let (mut messages, mut released) = (Vec::new(), Vec::new());
        while messages.len() + released.len() < 5 {
            match app.next() {
                Some(Packet::Publish(publish)) => messages.push(*publish),
                Some(Packet::PubRel(release)) => released.push(release.packet_id),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(released, [received]);
        app.send(PubComp::success(received));
        for (got, before) in messages.iter().zip([&one, &two]) {
            assert!(got.dup);
            assert_eq!((text(got), got.packet_id), (text(before), before.packet_id));
        }
        assert_eq!(text(&messages[2]), "a/b: not released", "once");
        assert_eq!(text(&messages[3]), "a/b: end");
        for got in &messages {
            app.acknowledge(got);
        }
        app.leave();
        car.leave();
        setup.client(version, "app").leave();
        setup.client(version, "car").leave();
        common::wait(setup.handle.shutdown(Duration::from_secs(30)));
    }
}

#[test]
fn subscriptions_survive_a_restart_with_their_options() {
    let site = Site::new();
    let setup = site.open();
    let mut app = setup.enter(stored(V5, "app"));
    let quiet = Subscription {
        no_local: true,
        retain_as_published: true,
        ..wish("a/+", LEAST)
    };
    app.ask(vec![quiet], Some(5));
    app.ask(vec![wish("b", EXACTLY), wish("c", EXACTLY)], None);
    app.unsubscribe(&["c"]);
    app.ask(vec![wish("$share/group/d", LEAST)], Some(6));
    app.leave();
    let setup = site.restart(setup);
    assert_eq!(setup.handle.stats().subscriptions, 3);
    let mut app = setup.resume(stored(V5, "app"));
    app.publish(qos1(1, "a/own", "not heard"));
    let mut car = setup.client(V5, "car");
    car.publish(Publish {
        retain: true,
        ..qos2(2, "a/b", "x")
    });
    car.publish(qos2(3, "c", "unsubscribed"));
    car.publish(qos2(4, "b", "y"));
    car.publish(qos2(5, "d", "z"));
    let got = app.take();
    assert_eq!(
        (text(&got).as_str(), got.qos, got.retain),
        ("a/b: x", LEAST, true)
    );
    assert_eq!(got.properties.subscription_ids[0].get(), 5);
    let got = app.take();
    assert_eq!((text(&got).as_str(), got.qos), ("b: y", EXACTLY));
    let got = app.take();
    assert_eq!((text(&got).as_str(), got.qos), ("d: z", LEAST));
    assert_eq!(got.properties.subscription_ids[0].get(), 6);
}

#[test]
fn sessions_without_expiry_do_not_survive_a_restart() {
    let site = Site::new();
    let setup = site.open();
    for version in VERSIONS {
        let mut app = setup.client(version, &format!("app {version}"));
        app.subscribe("a/#", EXACTLY);
    }
    let setup = site.restart(setup);
    assert_eq!(setup.handle.stats().subscriptions, 0);
    for version in VERSIONS {
        let (_, ack) = setup.join(stored(version, &format!("app {version}")));
        assert!(!ack.session_present);
    }
}

#[test]
fn the_expiry_of_a_session_goes_on_over_a_restart() {
    let site = Site::new();
    let setup = site.open();
    sleeper(&setup, V5, "long");
    let mut short = setup.enter(expiring_after(1, "short"));
    short.subscribe("a/#", EXACTLY);
    short.leave();
    let setup = site.restart(setup);
    until("one of two is left", || {
        setup.handle.stats().subscriptions == 1
    });
    setup.resume(stored(V5, "long")).leave();
    let (_short, ack) = setup.join(expiring_after(1, "short"));
    assert!(!ack.session_present);
}

#[test]
fn a_message_expires_over_a_restart() {
    let site = Site::new();
    let setup = site.open();
    sleeper(&setup, V5, "app");
    let mut car = setup.client(V5, "car");
    car.publish(expiring(qos1(1, "a/b", "short"), 1));
    car.publish(expiring(qos1(2, "a/b", "long"), 3600));
    car.leave();
    elapse(Duration::from_millis(1500));
    let setup = site.restart(setup);
    let mut app = setup.resume(stored(V5, "app"));
    let got = app.take();
    assert_eq!(text(&got), "a/b: long");
    let left = got.properties.message_expiry_interval;
    assert!(matches!(left, Some(3500..=3599)), "{left:?}");
}

#[test]
fn recovery_says_what_it_found() {
    let site = Site::new();
    let setup = site.open();
    let found = setup.handle.recovery();
    assert_eq!(
        (found.sessions, found.subscriptions, found.retained),
        (0, 0, 0)
    );
    sleeper(&setup, V5, "one");
    sleeper(&setup, V3, "two");
    let mut car = setup.client(V5, "car");
    car.publish(qos1(1, "a/b", "x"));
    car.publish(qos1(2, "a/b", "y"));
    car.publish(Publish {
        retain: true,
        ..qos1(3, "c", "kept")
    });
    car.leave();
    let setup = site.restart(setup);
    let found = setup.handle.recovery();
    assert_eq!(
        (found.sessions, found.subscriptions, found.retained),
        (2, 2, 1)
    );
    let kept_once = 3;
    assert_eq!((found.messages, found.deliveries), (kept_once, 4));
}

#[test]
fn what_waits_for_a_share_survives_a_restart() {
    let site = Site::new();
    let setup = site.open();
    for name in ["one", "two"] {
        let mut member = setup.enter(stored(V5, name));
        member.subscribe("$share/group/a", LEAST);
        member.leave();
    }
    let mut car = setup.client(V5, "car");
    for n in 1..=4u16 {
        car.publish(qos1(n, "a", n.to_string()));
    }
    car.leave();
    let setup = site.restart(setup);
    let mut two = setup.resume(stored(V5, "two"));
    assert_eq!(two.texts(4), ["a: 1", "a: 2", "a: 3", "a: 4"]);
}

#[test]
fn every_quality_reaches_a_session_that_came_back() {
    let setup = start_tcp();
    for version in VERSIONS {
        sleeper(&setup, version, "app");
        let mut app = setup.resume(stored(version, "app"));
        let mut car = setup.client(V5, "car");
        for qos in QUALITIES {
            car.publish(message(qos, 1, "a/b", "x"));
            assert_eq!(app.take().qos, qos);
        }
        car.publish(qos0("a/b", "y"));
        assert_eq!(app.text(), "a/b: y");
        app.leave();
        setup.client(version, "app").leave();
    }
}
