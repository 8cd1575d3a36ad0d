//! Who came and went, as the outside is told: what, in which order, with which reason.

mod common;

use broker::{DisconnectedBy, Limits, Store, StoreConfig};
use common::witness::{What, WillSeen, connect_as, scene, scene_with};
use common::{dial, filter, packet_id, qos1, stored, until, wait, wish, with_will};
use mqtt::{Connect, Disconnect, QoS, ReasonCode, Unsubscribe, UnsubscribeProperties, Version};
use std::io::Write;
use std::time::Duration;

const V3: Version = Version::V311;
const V5: Version = Version::V5;

fn texts(filters: &[&str]) -> Vec<String> {
    filters.iter().map(|filter| (*filter).to_owned()).collect()
}

fn gone(by: DisconnectedBy, reason: ReasonCode, will: WillSeen) -> What {
    What::Disconnected(reason, by, will)
}

#[test]
fn the_life_of_a_client_is_told_in_order() {
    let scene = scene();
    let mut connect = connect_as(V5, "car", "tcu@truck-1");
    connect.keep_alive = 60;
    let mut car = scene.enter(connect);
    let asked = vec![
        wish("a/+", QoS::AtLeastOnce),
        wish("forbidden/a", QoS::AtLeastOnce),
        wish("$share/g/b", QoS::AtMostOnce),
    ];
    let answers = car.ask(asked, None);
    assert_eq!(answers[1], ReasonCode::NotAuthorized);
    assert_eq!(
        car.unsubscribe(&["never", "a/+"])[0],
        ReasonCode::NoSubscriptionExisted
    );
    car.ask(vec![wish("forbidden/b", QoS::AtMostOnce)], None);
    car.unsubscribe(&["never"]);
    car.leave();
    let expected = [
        What::Connected {
            clean_start: true,
            keep_alive: 60,
            session_present: false,
            transport: "mqtt",
            version: V5,
        },
        What::Subscribed(texts(&["a/+", "$share/g/b"])),
        What::Unsubscribed(texts(&["a/+"])),
        gone(DisconnectedBy::Client, ReasonCode::Success, WillSeen::Not),
    ];
    assert_eq!(scene.witness.whats("car", 4), expected);
    let all = scene.witness.of("car");
    let first = &all[0];
    for event in &all {
        assert_eq!(event.connection, first.connection);
        assert_eq!(event.principal.as_deref(), Some("tcu@truck-1"));
        assert_eq!(event.group.as_deref(), Some("truck-1"));
        assert_eq!(event.listener, "test");
        assert_eq!(event.peer, first.peer);
        assert!(event.peer.ip().is_loopback());
        assert!(event.at_us > 1_600_000_000_000_000, "the wall clock");
        assert_eq!(event.requested, None);
    }
    assert!(all.is_sorted_by(|a, b| a.sequence < b.sequence));
}

#[test]
fn every_end_has_its_cause() {
    #[derive(Debug, Clone, Copy)]
    enum Ending {
        Goodbye,
        GoodbyeWithWill,
        Silence,
        Nonsense,
        Takeover,
        NoAccess,
        ByOperator,
        Purge,
        Stop,
    }
    use Ending::*;
    use ReasonCode as R;
    use WillSeen::{Not, Published};
    let rows = [
        (Goodbye, DisconnectedBy::Client, R::Success, Not),
        (
            GoodbyeWithWill,
            DisconnectedBy::Client,
            R::DisconnectWithWill,
            Published,
        ),
        (
            Silence,
            DisconnectedBy::Network,
            R::UnspecifiedError,
            Published,
        ),
        (
            Nonsense,
            DisconnectedBy::ClientError,
            R::MalformedPacket,
            Published,
        ),
        (
            Takeover,
            DisconnectedBy::Takeover,
            R::SessionTakenOver,
            Published,
        ),
        (
            NoAccess,
            DisconnectedBy::Access,
            R::AdministrativeAction,
            Published,
        ),
        (
            ByOperator,
            DisconnectedBy::Operator,
            R::UseAnotherServer,
            Published,
        ),
        (
            Purge,
            DisconnectedBy::Operator,
            R::AdministrativeAction,
            Published,
        ),
        (
            Stop,
            DisconnectedBy::Shutdown,
            R::ServerShuttingDown,
            Published,
        ),
    ];
    for (ending, by, reason, will) in rows {
        let scene = scene();
        let mut car = scene.enter(with_will(Connect::new(V5, "car"), "gone", "car"));
        match ending {
            Goodbye => car.leave(),
            GoodbyeWithWill => car.leave_with(Disconnect::new(R::DisconnectWithWill)),
            Silence => drop(car),
            Nonsense => {
                // PUBLISH of QoS 3.
                car.raw(&[0x36, 2, 0, 0]);
                car.is_closed_for(reason);
            }
            Takeover => {
                scene.enter(Connect::new(V5, "car"));
                car.is_closed_for(reason);
            }
            NoAccess => {
                scene.handle.disconnect_principal("car", reason);
                car.is_closed_for(reason);
            }
            ByOperator => {
                assert!(wait(scene.handle.disconnect_client("car", reason)));
                car.is_closed_for(reason);
            }
            Purge => {
                assert!(matches!(
                    wait(scene.handle.purge_client("car")),
                    Ok(Some(_))
                ));
                car.is_closed_for(reason);
            }
            Stop => {
                let handle = scene.handle.clone();
                wait(handle.shutdown(Duration::from_secs(0)));
            }
        }
        let whats = scene.witness.whats("car", 2);
        assert_eq!(whats[1], gone(by, reason, will), "{ending:?}");
    }
}

#[test]
fn a_will_that_is_delayed_is_not_published_yet() {
    let scene = scene();
    let connect = common::delayed(with_will(stored(V5, "car"), "gone", "car"), 600);
    drop(scene.enter(connect));
    assert_eq!(
        scene.witness.whats("car", 2)[1],
        gone(
            DisconnectedBy::Network,
            ReasonCode::UnspecifiedError,
            WillSeen::Not
        )
    );
}

#[test]
fn a_takeover_ends_the_old_connection_before_the_new_one_begins() {
    let scene = scene();
    // Many times: the connections come in on both workers and move to the client's.
    let mut cars = Vec::new();
    for _ in 0..20 {
        cars.push(scene.enter(stored(V5, "car")));
    }
    scene.witness.whats("car", 39);
    let seen = scene.witness.of("car");
    let mut last = 0;
    for pair in seen.chunks(2) {
        assert!(
            matches!(pair[0].what, What::Connected { .. }),
            "{:?}",
            pair[0]
        );
        assert!(pair[0].connection > last, "it grows with each connection");
        last = pair[0].connection;
        if let [_, end] = pair {
            let expected = gone(
                DisconnectedBy::Takeover,
                ReasonCode::SessionTakenOver,
                WillSeen::Not,
            );
            assert_eq!(end.what, expected);
            assert_eq!(end.connection, last);
        }
    }
}

#[test]
fn a_session_that_is_taken_up_brings_no_subscriptions_as_events() {
    let scene = scene();
    let mut car = scene.enter(stored(V5, "car"));
    car.subscribe("a", QoS::AtLeastOnce);
    car.leave();
    let car = scene.enter(stored(V5, "car"));
    car.leave();
    let whats = scene.witness.whats("car", 5);
    assert_eq!(whats.len(), 5);
    assert_eq!(whats[1], What::Subscribed(texts(&["a"])));
    assert_eq!(
        whats[3],
        What::Connected {
            clean_start: false,
            keep_alive: 1200,
            session_present: true,
            transport: "mqtt",
            version: V5,
        }
    );
}

#[test]
fn a_connect_that_was_read_and_refused_is_told_with_its_reason() {
    let scene = scene_with(
        Limits {
            max_connections: 1,
            ..Limits::default()
        },
        Store::Memory,
    );
    let _first = scene.enter(Connect::new(V5, "first"));
    let nameless = Connect {
        clean_start: false,
        ..Connect::new(V5, "")
    };
    let mut riddle = connect_as(V5, "car-3", "tcu@truck");
    riddle.properties.authentication_method = Some("riddle".into());
    let rows = [
        (
            connect_as(V5, "car-1", "stranger"),
            ReasonCode::NotAuthorized,
            None,
        ),
        (
            with_will(connect_as(V3, "car-2", "tcu@truck"), "forbidden/a", "x"),
            ReasonCode::NotAuthorized,
            Some("tcu@truck"),
        ),
        (riddle, ReasonCode::BadAuthenticationMethod, None),
        (
            connect_as(V5, "car-4", "tcu@truck"),
            ReasonCode::QuotaExceeded,
            Some("tcu@truck"),
        ),
        (nameless, ReasonCode::ClientIdentifierNotValid, None),
    ];
    for (connect, reason, principal) in rows {
        let name = connect.client_id.to_string();
        scene.is_refused(connect, reason);
        let whats = scene.witness.whats(&name, 1);
        assert!(
            matches!(&whats[..], [What::ConnectFailed(said, detail)] if *said == reason && !detail.is_empty()),
            "{whats:?}"
        );
        let seen = &scene.witness.of(&name)[0];
        assert_eq!(seen.principal.as_deref(), principal, "{name}");
        assert_eq!(seen.requested.as_deref(), Some(&*name));
        assert!(seen.connection > 0 && seen.connection < seen.sequence);
    }
    // Who says nothing, or nothing that is MQTT, is nobody.
    drop(dial(scene.addr));
    dial(scene.addr)
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    until("both are gone", || {
        scene.handle.stats().pending_connections == 0
    });
    assert_eq!(scene.witness.all().len(), 6);
}

#[test]
fn a_subscribe_of_many_filters_makes_several_events() {
    let scene = scene();
    let mut car = scene.enter(Connect::new(V3, "car"));
    let names: Vec<String> = (0..150).map(|n| format!("a/{n}")).collect();
    let wishes = names.iter().map(|name| wish(name, QoS::AtMostOnce));
    car.ask(wishes.collect(), None);
    car.send(Unsubscribe {
        packet_id: packet_id(1),
        filters: names.iter().map(|name| filter(name)).collect(),
        properties: UnsubscribeProperties::default(),
    });
    car.unsuback();
    let whats = scene.witness.whats("car", 7);
    let count = |what: &What| match what {
        What::Subscribed(filters) | What::Unsubscribed(filters) => filters.len(),
        _ => 0,
    };
    let counts: Vec<usize> = whats.iter().map(count).collect();
    assert_eq!(counts, [0, 64, 64, 22, 64, 64, 22]);
    let mut told = Vec::new();
    for what in whats {
        if let What::Subscribed(filters) = what {
            told.extend(filters);
        }
    }
    assert_eq!(told, names);
}

#[test]
fn numbers_grow_over_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut last = (0, 0);
    for round in 0..3 {
        let store = Store::Directory(StoreConfig::new(dir.path()));
        let scene = scene_with(Limits::default(), store);
        let mut car = scene.enter(stored(V5, "car"));
        car.publish(qos1(1, "a", "x"));
        car.leave();
        let seen = scene.witness.of("car");
        assert!(seen[0].sequence > last.0, "round {round}");
        assert!(seen[0].connection > last.1, "round {round}");
        scene.witness.whats("car", 2);
        let seen = scene.witness.of("car");
        last = (seen[1].sequence, seen[1].connection);
        wait(scene.handle.shutdown(Duration::from_secs(30)));
    }
}
