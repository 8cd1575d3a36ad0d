//! Who publishes without a connection is held to what holds for those who have one: bans, hold-offs, rates.

mod common;

use std::time::Duration;

use broker::{
    Ban, Denied, HoldOff, HoldOffReason, Limits, ListenerConfig, ListenerLimits, Rate, RateUnit,
    Transport, Whom,
};
use common::{
    Client, Setup, listener, qos0, qos1, start_listener, start_with, stored, until, visitor,
    visitor_from, wait,
};
use mqtt::{Connect, Disconnect, QoS, ReasonCode, Version};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

const V5: Version = Version::V5;

fn rate(per_second: u32, burst: u32) -> Option<Rate> {
    Some(Rate::new(per_second.try_into().expect("not 0"), burst))
}

#[track_caller]
fn count(counters: &[(&str, u64)], name: &str) -> u64 {
    let found = counters.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1
}

fn ban(setup: &Setup, target: &str) {
    let ban = Ban {
        target: target.parse().expect("a target"),
        reason: "test".into(),
        until_us: None,
    };
    setup.handle.set_bans(vec![ban]);
}

/// Sends 300 messages at once, at one per second, and waits until they count.
fn flood(setup: &Setup, client: &mut Client) {
    let throttled = || count(&setup.handle.stats().throttled(), "client_messages_in");
    let before = throttled();
    let messages = client.encode(qos0("b", "x")).repeat(300);
    client.raw(&messages);
    until("they are too many", || throttled() > before);
}

/// A message of 200 bytes and a topic, for a rate of one byte per second: three minutes of it.
fn three_minutes(setup: &Setup, client_id: &str) -> Result<(), Denied> {
    let who = visitor(setup, client_id, "car").expect("let in");
    wait(setup.handle.publish_as(&who, &qos1(1, "a", [7; 200])))
}

#[test]
fn whom_an_operator_banned_is_refused_also_if_it_was_let_in_before() {
    let setup = start_with(Limits::default());
    let certificate = CertificateDer::from(b"stolen".to_vec());
    let digest = Sha256::digest(&certificate);
    let print: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let print = format!("certificate:{print}");
    let come = || {
        let shown = std::slice::from_ref(&certificate);
        visitor_from(&setup, "203.0.113.7", shown, "http/car", "car")
    };
    let message = qos1(1, "own/a", "x");
    for (target, whom, counter) in [
        ("client:http/car", Whom::Client, "banned_client"),
        ("principal:car", Whom::Principal, "banned_principal"),
        ("address:203.0.113.0/24", Whom::Address, "banned_address"),
        (&print, Whom::Certificate, "banned_certificate"),
    ] {
        setup.handle.set_bans(Vec::new());
        let before = come().expect("let in");
        ban(&setup, target);
        for denied in [
            come().map(drop),
            wait(setup.handle.publish_as(&before, &message)),
        ] {
            let denied = denied.expect_err("banned");
            assert!(
                matches!(denied, Denied::Banned(it) if it == whom),
                "{target}: {denied}"
            );
            assert_eq!(denied.retry_after(), None);
        }
        let stats = setup.handle.stats();
        assert_eq!(count(&stats.refused(), counter), 2, "{target}");
        assert_eq!(stats.messages_in(), 0);
    }
    setup.handle.set_bans(Vec::new());
    let who = come().expect("let in");
    wait(setup.handle.publish_as(&who, &message)).expect("published");
}

#[test]
fn bad_credentials_are_held_off_as_those_of_connects_are() {
    let setup = start_with(Limits {
        hold_off: HoldOff {
            failures: 3,
            ..HoldOff::default()
        },
        ..Limits::default()
    });
    setup.outside.barred.lock().unwrap().push("thief".into());
    let (bad, good) = (b"bad".to_vec().into(), b"good".to_vec().into());
    let come = |certificate: &CertificateDer<'static>, principal| {
        let shown = std::slice::from_ref(certificate);
        visitor_from(&setup, "127.0.0.1", shown, "https", principal)
    };
    for _ in 0..3 {
        let denied = come(&bad, "thief").expect_err("barred");
        assert!(matches!(denied, Denied::Unknown(_)), "{denied}");
    }
    // By its certificate: wherever it comes from, whatever it says, and nobody else.
    let denied = come(&bad, "car").expect_err("held off");
    let retry_after = denied.retry_after().expect("it ends");
    assert!(
        matches!(denied, Denied::HeldOff { failures: 3, .. }),
        "{denied}"
    );
    let five_minutes = Duration::from_secs(300);
    assert!(
        retry_after > Duration::ZERO && retry_after <= five_minutes,
        "{retry_after:?}"
    );
    come(&good, "car").expect("let in");
    assert_eq!(count(&setup.handle.stats().refused(), "held_off"), 1);
    let held = setup.handle.held_off();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].why, HoldOffReason::BadCredentials);
    assert!(setup.handle.release(&held[0].target));
    come(&bad, "car").expect("let in");

    // Who shows none is known by its name and address, over MQTT as over HTTPS.
    for _ in 0..3 {
        let nobody = visitor_from(&setup, "127.0.0.1", &[], "car", "thief");
        nobody.expect_err("barred");
    }
    let (_, answer) = setup.join(Connect::new(V5, "car"));
    assert_eq!(answer.reason, ReasonCode::ConnectionRateExceeded);
    visitor_from(&setup, "192.0.2.7", &[], "car", "car").expect("let in elsewhere");

    // An address is held off for those who fail there, unless others do not.
    for (address, good) in [("198.51.100.1", true), ("198.51.100.2", false)] {
        let come = |name: &str, principal| visitor_from(&setup, address, &[], name, principal);
        for name in ["a", "b"] {
            come(name, "thief").expect_err("barred");
        }
        if good {
            come("good", "car").expect("let in");
        }
        come("c", "thief").expect_err("barred");
        assert_eq!(come("fresh", "car").is_ok(), good, "{address}");
    }
}

#[test]
fn a_client_whose_connections_break_too_often_does_not_come_by_another_way() {
    let setup = start_with(Limits {
        hold_off: HoldOff {
            connects: 2,
            ..HoldOff::default()
        },
        ..Limits::default()
    });
    let _last = [(); 3].map(|()| setup.client(V5, "twin"));
    let denied = visitor(&setup, "twin", "twin").expect_err("held off");
    assert!(
        matches!(denied, Denied::Flapping { connects: 2, .. }),
        "{denied}"
    );
    assert!(denied.retry_after() > Some(Duration::ZERO));
    visitor(&setup, "other", "twin").expect("let in");
}

#[test]
fn a_client_that_is_too_fast_is_told_by_how_much() {
    let setup = start_with(Limits {
        client_bytes_in: rate(1, 100),
        ..Limits::default()
    });
    three_minutes(&setup, "car/https").expect("published");
    let denied = three_minutes(&setup, "car/https").expect_err("too fast");
    assert!(
        matches!(
            denied,
            Denied::TooFast {
                rate: RateUnit::Bytes,
                per_second: 1,
                ..
            }
        ),
        "{denied}"
    );
    let retry_after = denied.retry_after().expect("it ends");
    assert!(
        retry_after <= Duration::from_secs(102),
        "201 bytes, 100 of them at once: {retry_after:?}"
    );
    // Others do not pay for it, and it was not counted twice.
    three_minutes(&setup, "van/https").expect("published");
    let stats = setup.handle.stats();
    assert_eq!(count(&stats.throttled(), "client_bytes_in"), 1);
    assert_eq!(stats.messages_in(), 2);
}

#[test]
fn what_a_client_sends_over_mqtt_counts_while_it_is_connected_and_afterwards() {
    let setup = start_with(Limits {
        client_messages_in: rate(1, 1),
        ..Limits::default()
    });
    let mut car = Client::new(&setup, V5, "car");
    flood(&setup, &mut car);
    let too_fast = || {
        let who = visitor(&setup, "car", "car").expect("let in");
        let denied = wait(setup.handle.publish_as(&who, &qos0("a", "x")));
        matches!(
            denied,
            Err(Denied::TooFast {
                rate: RateUnit::Messages,
                ..
            })
        )
    };
    assert!(too_fast());
    wait(setup.handle.disconnect_client("car", ReasonCode::Banned));
    setup.settled(0);
    assert!(too_fast());
    // Somebody else of the same name is somebody else.
    let other = visitor(&setup, "car", "other").expect("let in");
    wait(setup.handle.publish_as(&other, &qos0("a", "x"))).expect("published");
}

#[test]
fn the_rates_of_all_and_of_the_listener_hold_for_visitors_together() {
    let of_listener = ListenerConfig {
        limits: ListenerLimits {
            bytes_in: rate(1, 100),
            ..ListenerLimits::default()
        },
        ..listener(Transport::Tcp)
    };
    let of_all = Limits {
        bytes_in: rate(1, 100),
        ..Limits::default()
    };
    for (name, setup) in [
        ("bytes_in", start_with(of_all)),
        (
            "listener_bytes_in",
            start_listener(of_listener, Limits::default()),
        ),
    ] {
        three_minutes(&setup, "car").expect("published");
        let denied = three_minutes(&setup, "van").expect_err("crowded");
        assert!(matches!(denied, Denied::Crowded { .. }), "{name}: {denied}");
        assert!(denied.retry_after() > Some(Duration::from_secs(2)));
        let stats = setup.handle.stats();
        assert!(count(&stats.throttled(), name) > 0, "{name}");
        assert_eq!(stats.messages_in(), 1);
    }
}

/// What was exceeded before is made up for by waiting, however often one comes.
#[test]
fn a_client_does_not_get_a_new_burst_with_each_connection() {
    for connect in [Connect::new(V5, "flooder"), stored(V5, "flooder")] {
        let setup = start_with(Limits {
            client_messages_in: rate(200, 100),
            ..Limits::default()
        });
        let mut app = Client::new(&setup, V5, "app");
        app.subscribe("flood/#", QoS::AtMostOnce);
        let begin = std::time::Instant::now();
        for _ in 0..4 {
            let mut flooder = setup.enter(connect.clone());
            let messages = flooder.encode(qos0("flood/a", "x")).repeat(100);
            let goodbye = flooder.encode(Disconnect::default());
            // In one read, or its goodbye would wait too.
            flooder.raw(&[&messages[..], &goodbye].concat());
            while flooder.next().is_some() {}
        }
        for _ in 0..400 {
            app.take();
        }
        // 300 before the last 100 may be read, of which 100 at once: never earlier than this.
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(900), "{took:?}");
    }
}

#[test]
fn what_comes_with_a_connect_waits_too_if_its_client_owes() {
    let setup = start_with(Limits {
        client_messages_in: rate(1, 1),
        ..Limits::default()
    });
    let mut app = Client::new(&setup, V5, "app");
    app.subscribe("a/#", QoS::AtMostOnce);
    // Some come in on the worker of their session, some move there.
    for name in (0..12).map(|number| format!("car-{number}")) {
        let name = name.as_str();
        let mut car = Client::new(&setup, V5, name);
        flood(&setup, &mut car);
        wait(setup.handle.disconnect_client(name, ReasonCode::Banned));
        setup.settled(1);
        let connect = car.encode(Connect::new(V5, name));
        let late = car.encode(qos0("a/late", "x"));
        let mut again = common::dial(setup.addr);
        std::io::Write::write_all(&mut again, &[connect, late].concat()).expect("written");
        setup.settled(2);
        // Whatever came with it would have been handled with it.
        let mut other = Client::new(&setup, V5, "other");
        other.send(qos0("a/other", "x"));
        assert_eq!(app.text(), "a/other: x", "{name}");
        other.leave();
        // Not read from: it would not be missed.
        wait(setup.handle.disconnect_client(name, ReasonCode::Banned));
        setup.settled(1);
    }
}
