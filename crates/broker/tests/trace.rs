//! Clients followed live: what is seen, what never is, and what it costs to read too slowly.

mod common;

use std::time::Duration;

use broker::{
    Direction, MAX_TRACES, Trace, TraceError, TraceEvent, TraceFilter, TraceOptions, TracePayload,
};
use common::witness::{Scene, connect_as, scene};
use common::{Client, qos0, qos1, stored, until, wait, with_will};
use mqtt::{Connect, Disconnect, QoS, ReasonCode, Version};

const V3: Version = Version::V311;
const V5: Version = Version::V5;

fn client(name: &str) -> TraceFilter {
    TraceFilter {
        clients: vec![name.into()],
        ..TraceFilter::default()
    }
}

fn principal(name: &str) -> TraceFilter {
    TraceFilter {
        principals: vec![name.into()],
        ..TraceFilter::default()
    }
}

fn shown(max_bytes: usize) -> TraceOptions {
    TraceOptions {
        payload: TracePayload::Shown { max_bytes },
        ..TraceOptions::default()
    }
}

/// A trace that every worker knows of: one that reaches a worker in the middle of a CONNECT rightly
/// begins there.
fn trace(scene: &Scene, filter: TraceFilter, options: TraceOptions) -> Trace {
    let trace = scene.handle.trace(filter, options).expect("there is room");
    settle(scene);
    trace
}

/// All workers have handled what was sent to them before.
fn settle(scene: &Scene) {
    wait(scene.handle.clients(broker::ClientQuery::default()));
}

fn next(trace: &mut Trace) -> TraceEvent {
    let patience = Duration::from_secs(30);
    wait(async { tokio::time::timeout(patience, trace.next()).await })
        .expect("there is another event")
        .expect("the broker runs")
}

/// Events up to the one of this kind, as lines.
fn lines(trace: &mut Trace, last: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let event = next(trace);
        let arrow = match event.direction {
            Direction::In => ">",
            Direction::Out => "<",
            Direction::None => "-",
        };
        lines.push(format!("{arrow} {}", event.packet));
        if event.kind == last {
            return lines;
        }
    }
}

#[test]
fn a_client_is_followed_from_connect_to_the_end() {
    let scene = scene();
    let mut trace = trace(&scene, principal("tcu@truck"), TraceOptions::default());
    let mut connect = connect_as(V5, "car", "tcu@truck");
    connect.password = Some("s3cret".into());
    connect.keep_alive = 60;
    let mut car = scene.enter(with_will(connect, "gone", "s3cret"));
    car.subscribe("a/+", QoS::AtLeastOnce);
    car.publish(qos1(7, "a/b", "s3cret"));
    car.take();
    car.ping();
    car.leave_with(Disconnect::default());
    let seen = lines(&mut trace, "disconnected");
    let expected = [
        "> CONNECT MQTT 5 client=car clean keep-alive=60 user=tcu@truck password=(6 bytes hidden) \
         will=[q0 topic=gone 6 bytes hidden]",
        "- connected",
        "< CONNACK Success (0x00)",
        "> SUBSCRIBE id=9999 a/+ q1",
        "< SUBACK id=9999 Granted QoS 1 (0x01)",
        "> PUBLISH q1 id=7 topic=a/b 6 bytes",
        "> PINGREQ",
        "> DISCONNECT Success (0x00)",
        "- disconnected by=client Success (0x00) DISCONNECT",
    ];
    for line in expected {
        assert!(seen.contains(&line.to_owned()), "{line} in {seen:#?}");
    }
    assert!(
        seen.contains(&"< PUBLISH q1 id=1 topic=a/b 6 bytes".to_owned()),
        "{seen:#?}"
    );
    assert!(
        seen.iter().all(|line| !line.contains("s3cret")),
        "{seen:#?}"
    );
    assert_eq!((&seen[0][..9], &seen[1][..]), ("> CONNECT", "- connected"));
}

#[test]
fn a_client_that_is_there_is_followed_from_the_beginning_of_the_trace() {
    for version in [V3, V5] {
        let scene = scene();
        let mut car = scene.enter(connect_as(version, "car", "tcu@truck"));
        let mut other = scene.enter(Connect::new(version, "other"));
        car.subscribe("a", QoS::AtMostOnce);
        let mut trace = trace(&scene, principal("tcu@truck"), shown(3));
        other.send(qos0("a", "hello"));
        car.take();
        car.send(qos0("b", "good morning"));
        car.ping();
        let event = next(&mut trace);
        assert_eq!((event.kind, event.direction), ("PUBLISH", Direction::Out));
        assert_eq!(event.topic.as_deref(), Some("a"));
        assert_eq!(event.qos, Some(QoS::AtMostOnce));
        assert_eq!(event.payload_bytes, Some(5));
        assert_eq!(event.payload.as_deref(), Some(&b"hel"[..]));
        assert_eq!(
            (&*event.client_id, event.principal.as_deref()),
            ("car", Some("tcu@truck"))
        );
        assert!(event.peer.ip().is_loopback() && event.at_us > 1_600_000_000_000_000);
        let event = next(&mut trace);
        assert_eq!((event.kind, event.direction), ("PUBLISH", Direction::In));
        let size = if version == V5 { 18 } else { 17 };
        assert_eq!((event.bytes, event.payload_bytes), (size, Some(12)));
        assert_eq!(event.payload.as_deref(), Some(&b"goo"[..]));
        assert_eq!(next(&mut trace).kind, "PINGREQ");
    }
}

#[test]
fn topic_aliases_are_resolved_both_ways() {
    let scene = scene();
    let mut connect = Connect::new(V5, "car");
    connect.properties.topic_alias_maximum = Some(10);
    let mut car = scene.enter(connect);
    let mut trace = trace(&scene, client("car"), TraceOptions::default());
    car.subscribe("dt/speed", QoS::AtMostOnce);
    let alias = |topic: &str| {
        let mut publish = qos0(topic, "x");
        publish.properties.topic_alias = 3.try_into().ok();
        publish
    };
    car.send(alias("dt/speed"));
    car.send(alias(""));
    car.send(alias(""));
    for _ in 0..3 {
        car.find("a message", |packet| match packet {
            mqtt::Packet::Publish(_) => Some(()),
            _ => None,
        });
    }
    car.ping();
    let seen = lines(&mut trace, "PINGRESP");
    let count = |text: &str| seen.iter().filter(|line| line.starts_with(text)).count();
    assert_eq!(count("> PUBLISH q0 topic=dt/speed 1 bytes"), 3, "{seen:#?}");
    assert_eq!(count("< PUBLISH q0 topic=dt/speed 1 bytes"), 3, "{seen:#?}");
    assert_eq!(
        count("< PUBLISH q0 topic=dt/speed 1 bytes alias=1"),
        2,
        "{seen:#?}"
    );
}

#[test]
fn a_refused_client_is_seen_by_the_name_it_asks_for() {
    let scene = scene();
    let mut trace = trace(&scene, client("car"), TraceOptions::default());
    let mut connect = connect_as(V5, "car", "stranger");
    connect.password = Some("s3cret".into());
    scene.is_refused(connect, ReasonCode::NotAuthorized);
    let seen = lines(&mut trace, "CONNACK");
    assert_eq!(seen.len(), 3, "{seen:#?}");
    assert!(
        seen[0].starts_with("> CONNECT MQTT 5 client=car"),
        "{seen:#?}"
    );
    assert!(
        seen[1].ends_with("Not authorized (0x87) nobody knows it"),
        "{seen:#?}"
    );
    assert!(
        seen[2].starts_with("< CONNACK Not authorized (0x87)"),
        "{seen:#?}"
    );
    assert!(!seen.concat().contains("s3cret"));
}

#[test]
fn a_refused_client_is_seen_by_its_principal_where_that_is_known() {
    let scene = scene();
    let mut trace = trace(&scene, principal("tcu"), TraceOptions::default());
    let connect = with_will(connect_as(V5, "car", "tcu"), "forbidden/a", "s3cret");
    scene.is_refused(connect, ReasonCode::NotAuthorized);
    let seen = lines(&mut trace, "CONNACK");
    assert!(
        seen[0].ends_with("will=[q0 topic=forbidden/a 6 bytes hidden]"),
        "{seen:#?}"
    );
}

#[test]
fn what_is_not_mqtt_is_seen_as_such() {
    let scene = scene();
    let mut trace = trace(&scene, client("car"), TraceOptions::default());
    let mut car = scene.enter(Connect::new(V5, "car"));
    // PUBLISH of QoS 3.
    car.raw(&[0x36, 2, 0, 0]);
    car.is_closed_for(ReasonCode::MalformedPacket);
    let seen = lines(&mut trace, "DISCONNECT");
    let malformed = seen.iter().find(|line| line.starts_with("- malformed: "));
    assert!(malformed.is_some(), "{seen:#?}");
}

#[test]
fn a_takeover_and_two_traces_do_not_disturb_each_other() {
    let scene = scene();
    let mut first = trace(&scene, client("car"), TraceOptions::default());
    let mut second = trace(&scene, principal("car"), shown(10));
    let mut old = scene.enter(stored(V5, "car"));
    let mut new = scene.enter(stored(V5, "car"));
    old.is_closed_for(ReasonCode::SessionTakenOver);
    new.publish(qos1(1, "a", "x"));
    for trace in [&mut first, &mut second] {
        let seen = lines(trace, "PUBACK");
        let place = |text: &str| seen.iter().position(|line| line.starts_with(text));
        let ends = place("- disconnected by=takeover").expect("the old one ends");
        let last = seen.iter().rposition(|line| line == "- connected");
        assert!(ends < last.expect("the new one begins"), "{seen:#?}");
        let connects = seen.iter().filter(|line| line.starts_with("> CONNECT"));
        assert_eq!(connects.count(), 2, "{seen:#?}");
    }
}

#[test]
fn others_are_not_followed_and_a_dropped_trace_sees_nothing() {
    let scene = scene();
    let mut trace = trace(&scene, client("car"), TraceOptions::default());
    let mut other = scene.enter(Connect::new(V5, "car-2"));
    other.publish(qos1(1, "a", "x"));
    let mut car = scene.enter(Connect::new(V5, "car"));
    car.ping();
    for _ in 0..5 {
        assert_eq!(&*next(&mut trace).client_id, "car");
    }
    drop(trace);
    settle(&scene);
    car.ping();
    // Its place is free again.
    let all: Vec<Trace> = (0..MAX_TRACES)
        .map(|_| scene.handle.trace(client("car"), TraceOptions::default()))
        .collect::<Result<_, _>>()
        .expect("as many as there can be");
    let one_more = scene.handle.trace(client("car"), TraceOptions::default());
    let error = one_more.expect_err("one too many");
    assert_eq!(error, TraceError::TooMany);
    assert!(error.to_string().contains("16 traces"), "{error}");
    drop(all);
    scene
        .handle
        .trace(client("car"), TraceOptions::default())
        .expect("there is room again");
}

#[test]
fn who_reads_too_slowly_misses_events_and_the_broker_does_not_wait() {
    let scene = scene();
    let mut car = scene.enter(Connect::new(V5, "car"));
    let options = TraceOptions {
        capacity: 3,
        ..TraceOptions::default()
    };
    let mut trace = trace(&scene, client("car"), options);
    for _ in 0..10 {
        car.ping();
    }
    until("17 events are missed", || trace.missed() == 17);
    let kinds: Vec<&str> = (0..3).map(|_| next(&mut trace).kind).collect();
    assert_eq!(kinds, ["PINGREQ", "PINGRESP", "PINGREQ"]);
    car.ping();
    let event = next(&mut trace);
    assert_eq!((event.kind, event.missed), ("PINGREQ", 17));
    assert_eq!(next(&mut trace).missed, 0);
}

#[test]
fn a_trace_ends_with_the_broker() {
    let scene = scene();
    let mut trace = trace(&scene, client("car"), TraceOptions::default());
    let car: Client = scene.enter(Connect::new(V3, "car"));
    wait(scene.handle.shutdown(Duration::ZERO));
    let mut kinds = Vec::new();
    while let Some(event) = wait(trace.next()) {
        kinds.push(event.kind);
    }
    assert_eq!(kinds, ["CONNECT", "connected", "CONNACK", "disconnected"]);
    assert_eq!(wait(trace.next()), None);
    drop(car);
}
