//! The broker over real sockets.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use broker::{
    Broker, BrokerConfig, Limits, ListenerConfig, ShutdownOutcome, StartError, Transport,
};
use common::{Client, dial, exchange_bytes, qos0, qos1, start, start_tcp, until, wait};
use mqtt::{Connect, Disconnect, PacketId, PubAck, QoS, ReasonCode, Version, Will, WillProperties};

const V3: Version = Version::V311;
const V5: Version = Version::V5;

#[test]
fn from_connect_to_disconnect() {
    let setup = start_tcp();
    for version in [V3, V5] {
        // Two workers serve connections in turn: these live on different ones.
        let mut app = Client::new(&setup, version, "app");
        let mut car = Client::new(&setup, version, "car");
        app.subscribe("dt/+/speed", QoS::AtLeastOnce);
        car.send(qos1(7, "dt/car/speed", "42"));
        assert_eq!(car.puback(), (7, ReasonCode::Success));
        car.send(qos0("dt/car/speed", "43"));
        let first = app.message();
        assert_eq!(
            (&first.payload[..], first.qos),
            (&b"42"[..], QoS::AtLeastOnce)
        );
        app.send(PubAck::success(first.packet_id.expect("QoS 1")));
        assert_eq!(&app.message().payload[..], b"43");
        app.ping();
        for mut client in [app, car] {
            client.send(Disconnect::default());
            assert_eq!(client.next(), None, "the broker closes");
        }
    }
    until("all are gone", || setup.handle.stats().connections == 0);
    let stats = setup.handle.stats();
    assert_eq!(stats.connects_accepted, 4);
    assert_eq!((stats.messages_in(), stats.messages_out()), (4, 4));
    assert_eq!((stats.pubacks_sent, stats.pubacks_received), (2, 2));
    assert_eq!(stats.disconnects, [(ReasonCode::Success, 4)]);
    assert_eq!(stats.subscriptions, 0);
}

#[test]
fn a_packet_that_comes_byte_by_byte_is_one_packet() {
    let setup = start_tcp();
    let mut app = Client::new(&setup, V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    let mut car = Client::new(&setup, V5, "car");
    let bytes = car.encode(qos0("a", "hello"));
    for byte in bytes {
        car.stream.write_all(&[byte]).expect("the broker reads");
    }
    assert_eq!(&app.message().payload[..], b"hello");
}

#[test]
fn packets_up_to_the_limit_pass_and_larger_ones_end_the_connection() {
    let setup = start_tcp();
    let mut app = Client::new(&setup, V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    let mut car = Client::new(&setup, V5, "car");
    let limit = Limits::default().max_packet_size as usize;
    let head = car.encode(qos0("a", "")).len() + 2; // the length takes two bytes more
    let payload: Vec<u8> = (0..limit - head).map(|n| n as u8).collect();
    car.send(qos0("a", &payload));
    assert!(
        app.message().payload == payload,
        "every byte as it was sent"
    );
    // The broker refuses it by its header; the rest may find the connection closed already.
    let bytes = car.encode(qos0("a", vec![0; limit]));
    let _ = car.stream.write_all(&bytes);
    assert_eq!(car.farewell(), Some(ReasonCode::PacketTooLarge));
}

#[test]
fn what_is_not_a_connect_is_closed_without_an_answer() {
    let setup = start_tcp();
    let rows: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xc0\x00",
        b"\x82\x06\x00\x01\x00\x01a\x00",
        b"\x10\x0d\x00\x04MQTX\x04\x02\x00\x00\x00\x01a",
    ];
    for bytes in rows {
        let mut stream = dial(setup.addr);
        stream.write_all(bytes).expect("the broker reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("closed in order");
        assert_eq!(answer, b"", "to {bytes:?}");
    }
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

#[test]
fn a_broken_connect_is_answered_in_its_version() {
    let setup = start_tcp();
    let rows: [(&[u8], &[u8]); 2] = [
        // Level 6: return code 1, unacceptable protocol version.
        (
            b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x01a",
            b"\x20\x02\x00\x01",
        ),
        // MQTT 3.1.1 without name and clean session: return code 2.
        (
            b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00",
            b"\x20\x02\x00\x02",
        ),
    ];
    for (bytes, expected) in rows {
        assert_eq!(exchange_bytes(setup.addr, bytes), expected, "to {bytes:?}");
    }
    // MQTT 5 with a reserved connect flag: malformed, with the reason in words.
    let bytes = b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01a";
    let answer = exchange_bytes(setup.addr, bytes);
    assert_eq!((answer[0], &answer[2..4]), (0x20, &b"\x00\x81"[..]));
}

#[test]
fn half_open_connections_go_away() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let setup = start(Transport::Tcp, limits);
    let mut silent = dial(setup.addr);
    let mut halting = dial(setup.addr);
    halting.write_all(b"\x10\x0d\x00\x04MQ").expect("taken");
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).expect("closed in order");
    // On a slow machine its bytes come when it is closed already, and are answered with a reset.
    let _ = halting.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    until("no socket is left", || {
        setup.handle.stats().pending_connections == 0
    });
    assert_eq!(setup.handle.stats().connect_timeouts, 2);
}

#[test]
fn puback_waits_for_the_log_and_keeps_the_order() {
    let setup = start_tcp();
    let mut car = Client::new(&setup, V5, "car");
    for n in 1..=200 {
        car.send(qos1(n, "log/a", "x"));
    }
    // The ping overtakes the PUBACKs: none is sent before its time.
    car.ping();
    let untold = setup.outside.tapped(200);
    let log = std::thread::spawn(move || {
        let (early, late): (Vec<_>, Vec<_>) = untold
            .into_iter()
            .enumerate()
            .partition(|(n, _)| n % 3 == 0);
        for (n, done) in late.into_iter().rev().chain(early) {
            done.done(match n {
                99 => Err(ReasonCode::QuotaExceeded),
                _ => Ok(()),
            });
        }
    });
    for n in 1..=200 {
        let reason = match n {
            100 => ReasonCode::QuotaExceeded,
            _ => ReasonCode::Success,
        };
        assert_eq!(car.puback(), (n, reason));
    }
    log.join().expect("the log ends well");
}

#[test]
fn a_reader_that_stops_reading_is_closed_and_delays_nobody() {
    let limits = Limits {
        max_queued: 200,
        max_inflight: 10_000,
        max_queued_bytes: 4 * 1024 * 1024,
        ..Limits::default()
    };
    let setup = start(Transport::Tcp, limits);
    let mut stuck = Client::new(&setup, V5, "stuck");
    stuck.subscribe("#", QoS::AtLeastOnce);
    let mut quick = Client::new(&setup, V5, "quick");
    quick.subscribe("#", QoS::AtLeastOnce);
    let mut car = Client::new(&setup, V5, "car");
    let payload = vec![7; 16 * 1024];
    let mut rounds = 0;
    // What the kernel buffers for the stuck one is its own affair: go on until it is full.
    while setup.handle.stats().slow_consumers == 0 {
        rounds += 1;
        assert!(rounds < 10_000, "the stuck reader is never noticed");
        for n in 1..=10 {
            car.send(qos1(n, "a", &payload));
        }
        for n in 1..=10 {
            assert_eq!(car.puback(), (n, ReasonCode::Success));
        }
        for _ in 0..10 {
            let message = quick.message();
            quick.send(PubAck::success(message.packet_id.expect("QoS 1")));
        }
    }
    quick.ping();
    until("the stuck one is out", || {
        setup.handle.stats().connections == 2
    });
    assert_eq!(
        setup.handle.stats().disconnects,
        [(ReasonCode::QuotaExceeded, 1)]
    );
}

#[test]
fn a_burst_larger_than_any_queue_reaches_a_reader_that_keeps_up() {
    let limits = Limits {
        max_queued: 100,
        ..Limits::default()
    };
    let setup = start(Transport::Tcp, limits);
    // On both workers: beside the publisher and across.
    let mut receivers = ["a", "b"].map(|name| {
        let mut client = Client::new(&setup, V5, name);
        client.subscribe("#", QoS::AtMostOnce);
        client
    });
    let mut car = Client::new(&setup, V5, "car");
    let message = car.encode(qos0("a", "x"));
    car.stream
        .write_all(&message.repeat(20_000))
        .expect("the broker reads");
    car.ping();
    for receiver in &mut receivers {
        for _ in 0..20_000 {
            receiver.message();
        }
    }
    assert_eq!(setup.handle.stats().dropped_queue_full, 0);
}

#[test]
fn a_client_that_never_reads_its_answers_is_not_read_from() {
    let setup = start_tcp();
    let mut deaf = Client::new(&setup, V5, "deaf");
    deaf.stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("settable");
    let pings = b"\xc0\x00".repeat(32 * 1024);
    let mut sent = 0;
    // Ends when every buffer between us is full; a broker that kept reading would take all of it.
    while deaf.stream.write_all(&pings).is_ok() {
        sent += pings.len();
        assert!(sent < 1 << 30, "the broker keeps queueing answers");
    }
    let mut other = Client::new(&setup, V5, "other");
    other.ping();
}

#[test]
fn the_second_connection_takes_over_from_the_first() {
    let setup = start_tcp();
    let mut first = Client::new(&setup, V5, "car");
    let mut second = Client::new(&setup, V5, "car");
    assert_eq!(first.farewell(), Some(ReasonCode::SessionTakenOver));
    second.ping();
    let mut third = Client::new(&setup, V3, "car");
    assert_eq!(second.farewell(), Some(ReasonCode::SessionTakenOver));
    third.ping();
    let stats = setup.handle.stats();
    assert_eq!((stats.takeovers, stats.connections), (2, 1));
}

#[test]
fn the_will_is_published_when_the_connection_breaks() {
    let setup = start_tcp();
    let mut app = Client::new(&setup, V5, "app");
    app.subscribe("gone/#", QoS::AtMostOnce);
    for (n, how) in [Shutdown::Both, Shutdown::Write].into_iter().enumerate() {
        let mut connect = Connect::new(V3, "car");
        connect.will = Some(Will {
            qos: QoS::AtMostOnce,
            retain: false,
            topic: mqtt::TopicName::parse("gone/car").expect("a topic"),
            payload: n.to_string().into(),
            properties: WillProperties::default(),
        });
        let mut car = Client::open(dial(setup.addr), connect);
        car.connack();
        car.stream.shutdown(how).expect("possible");
        assert_eq!(&app.message().payload[..], n.to_string().as_bytes());
    }
    assert_eq!(setup.handle.stats().wills_published, 2);
}

#[test]
fn a_principal_that_loses_access_is_out_at_once() {
    let setup = start_tcp();
    let mut connect = Connect::new(V5, "car");
    connect.username = Some("device-1".into());
    let mut car = Client::open(dial(setup.addr), connect.clone());
    car.connack();
    setup.outside.barred.lock().unwrap().push("device-1".into());
    let reason = ReasonCode::NotAuthorized;
    assert_eq!(setup.handle.disconnect_principal("device-1", reason), 1);
    assert_eq!(car.farewell(), Some(reason));
    let mut car = Client::open(dial(setup.addr), connect);
    assert_eq!(car.connack().reason, reason);
    assert_eq!(car.next(), None);
}

#[test]
fn stopping_sends_what_is_owed_and_says_goodbye() {
    let setup = start_tcp();
    let mut idle = Client::new(&setup, V5, "idle");
    let mut old = Client::new(&setup, V3, "old");
    let mut car = Client::new(&setup, V5, "car");
    car.send(qos1(1, "log/a", "x"));
    let untold = setup.outside.tapped(1);
    let handle = setup.handle.clone();
    let stopping = std::thread::spawn(move || wait(handle.shutdown(Duration::from_secs(60))));
    // Whoever is told goodbye first proves that stopping has begun.
    assert_eq!(idle.farewell(), Some(ReasonCode::ServerShuttingDown));
    assert_eq!(old.farewell(), None);
    for done in untold {
        done.done(Ok(()));
    }
    assert_eq!(car.puback(), (1, ReasonCode::Success));
    assert_eq!(car.farewell(), Some(ReasonCode::ServerShuttingDown));
    drop((idle, old, car));
    let report = stopping.join().expect("no panic");
    assert_eq!(report.outcome, ShutdownOutcome::Drained);
    assert!(std::net::TcpStream::connect(setup.addr).is_err());
}

#[test]
fn stopping_does_not_wait_beyond_its_deadline() {
    let setup = start_tcp();
    let mut car = Client::new(&setup, V5, "car");
    car.send(qos1(1, "log/a", "x"));
    let _never_told = setup.outside.tapped(1);
    let report = wait(setup.handle.shutdown(Duration::from_millis(100)));
    assert_eq!(report.outcome, ShutdownOutcome::DeadlinePassed);
    assert_eq!(report.cut, 1);
    assert_eq!(car.farewell(), Some(ReasonCode::ServerShuttingDown));
}

#[test]
fn a_dropped_handle_stops_the_broker() {
    let setup = start_tcp();
    let mut car = Client::new(&setup, V5, "car");
    drop(setup.handle);
    assert_eq!(car.farewell(), Some(ReasonCode::ServerShuttingDown));
}

#[test]
fn a_fan_out_reaches_every_worker_in_every_layout() {
    let setup = start_tcp();
    let mut receivers: Vec<Client> = (0..40)
        .map(|n| {
            let version = if n % 2 == 0 { V3 } else { V5 };
            let qos = if n % 3 == 0 {
                QoS::AtLeastOnce
            } else {
                QoS::AtMostOnce
            };
            let mut client = Client::new(&setup, version, &format!("r{n}"));
            client.subscribe("bc/news", qos);
            client
        })
        .collect();
    let mut car = Client::new(&setup, V5, "car");
    for n in 1..=50u16 {
        car.send(qos1(n, "bc/news", n.to_string()));
    }
    for (r, receiver) in receivers.iter_mut().enumerate() {
        for n in 1..=50u16 {
            let message = receiver.message();
            assert_eq!(&message.payload[..], n.to_string().as_bytes());
            let id = (r % 3 == 0).then(|| PacketId::new(n)).flatten();
            assert_eq!(message.packet_id, id, "numbered per receiver");
        }
    }
}

#[test]
fn an_overloaded_broker_closes_the_new_and_keeps_the_old() {
    let limits = Limits {
        max_pending_connections: 2,
        ..Limits::default()
    };
    let setup = start(Transport::Tcp, limits);
    let mut car = Client::new(&setup, V5, "car");
    let pending = [dial(setup.addr), dial(setup.addr)];
    until("both are counted", || {
        setup.handle.stats().pending_connections == 2
    });
    let mut one_more = dial(setup.addr);
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = one_more.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    assert_eq!(setup.handle.stats().overloaded_accepts, 1);
    car.ping();
    drop(pending);
}

#[test]
fn a_start_that_cannot_succeed_says_why() {
    let setup = start_tcp();
    let listener = |bind: SocketAddr| ListenerConfig::new("second", bind, Transport::Tcp);
    let start = |config| match Broker::start(config, setup.outside.clone()) {
        Ok(_) => panic!("started"),
        Err(error) => error,
    };
    let taken = start(BrokerConfig::new(vec![listener(setup.addr)]));
    assert!(
        matches!(&taken, StartError::Bind { name, addr, .. } if &**name == "second" && addr.to_string() == setup.addr.to_string()),
        "{taken}"
    );
    let none = start(BrokerConfig::new(Vec::new()));
    assert!(matches!(none, StartError::NoListener), "{none}");
    let mut config = BrokerConfig::new(vec![listener("127.0.0.1:0".parse().expect("valid"))]);
    config.limits.max_inflight = 0;
    let limit = start(config);
    assert_eq!(
        limit.to_string(),
        "limit `max_inflight` is 0, must be 1 to 65535"
    );
}

#[test]
fn a_time_that_clocks_cannot_hold_is_refused_at_the_start() {
    let limits = Limits {
        handshake_timeout: Duration::MAX,
        ..Limits::default()
    };
    let listener = ListenerConfig::new("a", SocketAddr::from(([127, 0, 0, 1], 0)), Transport::Tcp);
    let config = BrokerConfig {
        limits,
        ..BrokerConfig::new(vec![listener])
    };
    let refused = Broker::start(config, std::sync::Arc::new(common::Outside::default()));
    let error = refused.expect_err("longer than a year").to_string();
    assert!(error.contains("handshake_timeout"), "{error}");
}
