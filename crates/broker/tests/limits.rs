//! Limits and fairness over real sockets: who is refused, by which reason and counter, and that whoever
//! is not meant by it keeps its service.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{
    Ban, BanTarget, Broker, BrokerConfig, HoldOff, HoldOffReason, Hooks, Limits, ListenerConfig,
    ListenerLimits, Rate, StartError, Transport,
};
use common::{Client, Outside, Setup, dial, qos0, qos1, start_with, unhurried, until, wait};
use mqtt::{Connect, Packet, PubAck, QoS, ReasonCode, Version};

const V3: Version = Version::V311;
const V5: Version = Version::V5;

fn rate(per_second: u32, burst: u32) -> Option<Rate> {
    Some(Rate::new(per_second.try_into().expect("not 0"), burst))
}

/// A broker with one listener of these limits.
fn start_listener(own: ListenerLimits, limits: Limits) -> Setup {
    let outside: Arc<Outside> = Arc::default();
    let mut config = BrokerConfig::new(vec![ListenerConfig {
        limits: own,
        ..ListenerConfig::new(
            "test",
            SocketAddr::from(([127, 0, 0, 1], 0)),
            Transport::Tcp,
        )
    }]);
    config.limits = unhurried(limits);
    config.workers = 2.try_into().ok();
    let hooks: Arc<dyn Hooks> = Arc::clone(&outside) as _;
    let handle = Broker::start(config, hooks).expect("starts");
    let addr = handle.listeners()[0].addr;
    Setup {
        handle,
        outside,
        addr,
    }
}

/// A socket that comes from 127.0.0.`host`.
fn dial_from(host: u8, addr: SocketAddr) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let own: IpAddr = Ipv4Addr::new(127, 0, 0, host).into();
    socket
        .bind(&SocketAddr::new(own, 0).into())
        .expect("loopback");
    socket.connect(&addr.into()).expect("the broker listens");
    let stream = TcpStream::from(socket);
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience).expect("settable");
    stream
}

/// Whether the broker closes a socket without a word.
fn is_closed_unheard(mut stream: TcpStream) -> bool {
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = stream.read_to_end(&mut answer);
    answer.is_empty()
}

#[track_caller]
fn refused(setup: &Setup, name: &str) -> u64 {
    count(&setup.handle.stats().refused(), name)
}

#[track_caller]
fn throttled(setup: &Setup, name: &str) -> u64 {
    count(&setup.handle.stats().throttled(), name)
}

fn count(counters: &[(&str, u64)], name: &str) -> u64 {
    let found = counters.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1
}

/// Sends 300 messages at once; says how long it took until the last one was delivered.
fn flood(setup: &Setup) -> Duration {
    let mut app = Client::new(setup, V5, "app");
    app.subscribe("flood/#", QoS::AtMostOnce);
    let mut other = Client::new(setup, V5, "other");
    let mut flooder = Client::new(setup, V5, "flooder");
    let begin = Instant::now();
    let message = flooder.encode(qos0("flood/a", "x"));
    flooder.raw(&message.repeat(100));
    flooder.ping();
    flooder.raw(&message.repeat(100));
    flooder.ping();
    flooder.raw(&message.repeat(100));
    // Others do not wait for it, in either direction.
    other.ping();
    app.ping();
    for _ in 0..300 {
        app.take();
    }
    begin.elapsed()
}

#[test]
fn a_client_that_is_too_fast_is_slowed_down_and_nothing_is_lost() {
    let rows = [
        (
            "client_messages_in",
            Limits {
                client_messages_in: rate(200, 100),
                ..Limits::default()
            },
        ),
        (
            "client_bytes_in",
            Limits {
                // A message has 12 bytes.
                client_bytes_in: rate(200 * 12, 100 * 12),
                ..Limits::default()
            },
        ),
        (
            "messages_in",
            Limits {
                messages_in: rate(200, 100),
                ..Limits::default()
            },
        ),
        (
            "bytes_in",
            Limits {
                bytes_in: rate(200 * 12, 100 * 12),
                ..Limits::default()
            },
        ),
    ];
    for (name, limits) in rows {
        let setup = start_with(limits);
        let took = flood(&setup);
        assert!(throttled(&setup, name) > 0, "{name}");
        // 200 before the last 100 may be read, of which 100 at once: never earlier than this.
        assert!(took > Duration::from_millis(300), "{name}: {took:?}");
    }
}

#[test]
fn the_rates_of_a_listener_hold_for_its_clients_together() {
    let rows = [
        (
            "listener_messages_in",
            ListenerLimits {
                messages_in: rate(200, 100),
                ..ListenerLimits::default()
            },
        ),
        (
            "listener_bytes_in",
            ListenerLimits {
                bytes_in: rate(200 * 12, 100 * 12),
                ..ListenerLimits::default()
            },
        ),
    ];
    for (name, own) in rows {
        let setup = start_listener(own, Limits::default());
        let took = flood(&setup);
        assert!(throttled(&setup, name) > 0, "{name}");
        assert!(took > Duration::from_millis(300), "{name}: {took:?}");
    }
}

#[test]
fn messages_wait_for_their_rate_and_answers_do_not() {
    let rows = [
        (
            "client_messages_out",
            Limits {
                client_messages_out: rate(10, 5),
                ..Limits::default()
            },
        ),
        (
            "client_bytes_out",
            Limits {
                client_bytes_out: rate(10 * 1000, 5 * 1000),
                ..Limits::default()
            },
        ),
    ];
    for (name, limits) in rows {
        let setup = start_with(limits);
        let mut slow = Client::new(&setup, V5, "slow");
        slow.subscribe("a", QoS::AtMostOnce);
        let mut car = Client::new(&setup, V5, "car");
        for _ in 0..30 {
            car.send(qos0("a", [7; 990]));
        }
        car.ping();
        until("messages wait", || throttled(&setup, name) > 0);
        slow.send(Packet::PingReq);
        let mut before = 0;
        loop {
            match slow.next() {
                Some(Packet::Publish(_)) => before += 1,
                Some(Packet::PingResp) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(before < 30, "{name}: the answer came behind all messages");
        for _ in before..30 {
            slow.message();
        }
        assert_eq!(setup.handle.stats().dropped_queue_full, 0);
    }
}

#[test]
fn a_client_that_waits_for_its_rate_is_not_taken_for_dead() {
    let setup = start_with(Limits {
        client_messages_in: rate(20, 1),
        ..Limits::default()
    });
    let mut connect = Connect::new(V5, "car");
    connect.keep_alive = 1;
    // Four seconds of its rate, read at once: nothing is read from it meanwhile.
    let messages = (0..80).map(|_| Packet::from(qos0("a", "x")));
    let mut car = Client::open_with(dial(setup.addr), connect, messages);
    assert_eq!(car.connack().reason, ReasonCode::Success);
    until("they are read", || setup.handle.stats().messages_in() == 80);
    // Read after these seconds, and answered to whoever is still connected.
    car.ping();
}

#[test]
fn connects_beyond_the_rate_are_closed_before_they_cost_anything() {
    let of_all = Limits {
        connect_rate: rate(1, 3),
        ..Limits::default()
    };
    let of_listener = ListenerLimits {
        connect_rate: rate(1, 3),
        ..ListenerLimits::default()
    };
    let rows = [
        ("connect_rate", ListenerLimits::default(), of_all),
        ("listener_connect_rate", of_listener, Limits::default()),
    ];
    for (name, own, limits) in rows {
        let setup = start_listener(own, limits);
        let mut car = Client::new(&setup, V5, "car");
        let mut came = 0;
        until("some were refused", || {
            let _ = dial(setup.addr).write_all(b"\xc0\x00");
            came += 1;
            refused(&setup, name) > 0
        });
        assert!(refused(&setup, name) <= came);
        car.ping();
        // A second later there is room for one.
        until("a new one is let in", || {
            let mut client = dial(setup.addr);
            let _ = client.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).is_ok()
        });
        car.ping();
    }
}

#[test]
fn a_full_house_closes_the_next_at_the_door() {
    let own = ListenerLimits {
        max_connections: Some(2),
        ..ListenerLimits::default()
    };
    let limits = Limits {
        max_sockets: 2,
        ..Limits::default()
    };
    let rows = [
        ("listener_full", own, Limits::default()),
        ("sockets", ListenerLimits::default(), limits),
    ];
    for (name, own, limits) in rows {
        let setup = start_listener(own, limits);
        let mut first = Client::new(&setup, V5, "first");
        let second = Client::new(&setup, V5, "second");
        assert!(is_closed_unheard(dial(setup.addr)), "{name}");
        assert_eq!(refused(&setup, name), 1);
        first.ping();
        second.leave();
        setup.settled(1);
        until("its place is free", || {
            setup.handle.stats().pending_connections == 0
        });
        Client::new(&setup, V5, "third").ping();
    }
}

fn ban(target: &str) -> Ban {
    Ban {
        target: target.parse().expect("a target"),
        reason: "stolen".to_owned(),
        until_us: None,
    }
}

#[test]
fn a_ban_ends_what_stands_and_refuses_what_comes_and_can_be_lifted() {
    let setup = start_with(Limits::default());
    let enter = |host: u8, name: &str, principal: &str| {
        let mut connect = Connect::new(V5, name);
        connect.username = Some(principal.into());
        let mut client = Client::open(dial_from(host, setup.addr), connect);
        let reason = client.connack().reason;
        (client, reason)
    };
    let (mut other, _) = enter(1, "other", "somebody");
    let rows = [
        ("client:car", "banned_client"),
        ("principal:device-7", "banned_principal"),
    ];
    for (target, counter) in rows {
        let (mut car, reason) = enter(2, "car", "device-7");
        assert_eq!(reason, ReasonCode::Success);
        setup.handle.set_bans(vec![ban(target)]);
        // 0x8A is for CONNACK alone.
        assert_eq!(car.farewell(), Some(ReasonCode::AdministrativeAction));
        let (mut car, reason) = enter(2, "car", "device-7");
        assert_eq!(reason, ReasonCode::Banned);
        assert_eq!(car.next(), None);
        assert_eq!(refused(&setup, counter), 1);
        let old = Client::open(dial_from(2, setup.addr), {
            let mut connect = Connect::new(V3, "car");
            connect.username = Some("device-7".into());
            connect
        })
        .connack();
        assert_eq!(
            old.reason,
            ReasonCode::NotAuthorized,
            "the nearest of 3.1.1"
        );
        assert_eq!(setup.handle.bans(), [ban(target)]);
        setup.handle.set_bans(Vec::new());
    }
    let (mut car, _) = enter(2, "car", "device-7");
    setup.handle.set_bans(vec![ban("address:127.0.0.2/31")]);
    assert_eq!(car.farewell(), Some(ReasonCode::AdministrativeAction));
    assert!(is_closed_unheard(dial_from(2, setup.addr)));
    assert!(is_closed_unheard(dial_from(3, setup.addr)));
    assert_eq!(refused(&setup, "banned_address"), 2);
    other.ping();
    setup.handle.set_bans(Vec::new());
    assert_eq!(enter(2, "car", "device-7").1, ReasonCode::Success);
    let banned = setup.handle.stats().disconnects;
    assert!(banned.contains(&(ReasonCode::Banned, 3)), "{banned:?}");
}

#[test]
fn a_ban_that_has_ended_is_none() {
    let setup = start_with(Limits::default());
    let over = Ban {
        until_us: Some(1),
        ..ban("client:car")
    };
    setup.handle.set_bans(vec![over]);
    assert!(setup.handle.bans().is_empty());
    Client::new(&setup, V5, "car").ping();
}

fn quick_to_hold_off() -> Limits {
    Limits {
        hold_off: HoldOff {
            failures: 3,
            connects: 2,
            ..HoldOff::default()
        },
        ..Limits::default()
    }
}

#[test]
fn who_guesses_passwords_is_held_off_and_the_others_behind_its_address_are_not() {
    let setup = start_with(quick_to_hold_off());
    let attempt = |host: u8, name: &str, password: &str| {
        let mut connect = Connect::new(V5, name);
        connect.username = Some(name.into());
        connect.password = Some(password.into());
        Client::open(dial_from(host, setup.addr), connect)
            .connack()
            .reason
    };
    let mut standing = Client::new(&setup, V5, "standing");
    for _ in 0..3 {
        assert_eq!(
            attempt(1, "bad", "wrong"),
            ReasonCode::BadUserNameOrPassword
        );
    }
    assert_eq!(
        attempt(1, "bad", "right"),
        ReasonCode::ConnectionRateExceeded
    );
    assert_eq!(refused(&setup, "held_off"), 1);
    // The same name elsewhere, and another name here.
    assert_eq!(attempt(2, "bad", "right"), ReasonCode::Success);
    assert_eq!(attempt(1, "good", "right"), ReasonCode::Success);
    let held = setup.handle.held_off();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].target, BanTarget::Client("bad".into()));
    assert_eq!(
        (held[0].why, held[0].count),
        (HoldOffReason::BadCredentials, 3)
    );
    assert!(setup.handle.release(&held[0].target));
    assert!(!setup.handle.release(&held[0].target));
    assert_eq!(attempt(1, "bad", "right"), ReasonCode::Success);

    // One name after the other, and never a good one: the address itself.
    for name in ["a", "b", "c"] {
        assert_eq!(attempt(9, name, "wrong"), ReasonCode::BadUserNameOrPassword);
    }
    assert!(is_closed_unheard(dial_from(9, setup.addr)));
    assert_eq!(attempt(1, "good", "right"), ReasonCode::Success);
    standing.ping();
    let address: BanTarget = "address:127.0.0.9".parse().expect("a target");
    assert!(
        setup
            .handle
            .held_off()
            .iter()
            .any(|held| held.target == address)
    );
    assert!(setup.handle.release(&address));
    assert_eq!(attempt(9, "d", "right"), ReasonCode::Success);
}

#[test]
fn who_says_goodbye_may_come_as_often_as_it_likes() {
    let setup = start_with(quick_to_hold_off());
    for _ in 0..20 {
        Client::new(&setup, V5, "script").leave();
    }
    assert_eq!(refused(&setup, "flapping"), 0);
}

#[test]
fn twins_that_throw_each_other_out_are_held_off() {
    let setup = start_with(quick_to_hold_off());
    let mut other = Client::new(&setup, V5, "other");
    let mut twins: Vec<Client> = (0..3).map(|_| Client::new(&setup, V5, "twin")).collect();
    let (_, ack) = setup.join(Connect::new(V5, "twin"));
    assert_eq!(ack.reason, ReasonCode::ConnectionRateExceeded);
    assert_eq!(refused(&setup, "flapping"), 1);
    twins.pop().expect("the last one in").ping();
    other.ping();
    let held = setup.handle.held_off();
    assert_eq!((held.len(), held[0].why), (1, HoldOffReason::Flapping));
    assert!(setup.handle.release(&BanTarget::Client("twin".into())));
    Client::new(&setup, V5, "twin").ping();
}

#[test]
fn a_broker_that_cannot_keep_up_refuses_the_new_and_keeps_the_old() {
    let setup = start_with(Limits {
        max_loop_delay: Duration::from_secs(1),
        retry_spread: Duration::ZERO,
        ..Limits::default()
    });
    // The machine itself may be too slow now and then: such a refusal is none of those meant here.
    let let_in = |name: &str| {
        let mut client = None;
        until("it is let in", || {
            let (other, ack) = setup.join(Connect::new(V5, name));
            client = (ack.reason == ReasonCode::Success).then_some(other);
            client.is_some()
        });
        client.expect("it was let in")
    };
    let mut old: Vec<Client> = (0..4).map(|n| let_in(&format!("old-{n}"))).collect();
    until("it is quiet", || !setup.handle.overload().refusing);
    let before = refused(&setup, "overload");
    // An outside that does not answer: the worker of this client hangs.
    let stuck = setup.outside.hanging.lock().unwrap();
    let mut first = Client::open(dial(setup.addr), Connect::new(V5, "hangs"));
    // For so long that it is that worker, and stays so: a machine that is slow for a moment is late by less.
    until("it is noticed", || {
        let overload = setup.handle.overload();
        overload.refusing && overload.delay_us > 2_000_000
    });
    // They are handed to the workers in turn: half of these are told at once.
    let mut others: Vec<Client> = (0..4)
        .map(|n| Client::open(dial(setup.addr), Connect::new(V5, &*format!("new-{n}"))))
        .collect();
    until("one is refused", || refused(&setup, "overload") > before);
    drop(stuck);
    assert_eq!(first.connack().reason, ReasonCode::Success);
    let told: Vec<ReasonCode> = others.iter_mut().map(|c| c.connack().reason).collect();
    assert!(told.contains(&ReasonCode::ServerBusy), "{told:?}");
    for client in &mut old {
        client.ping();
    }
    until("it is over", || !setup.handle.overload().refusing);
    let_in("late").ping();
}

#[test]
fn who_fills_the_memory_for_incomplete_packets_is_closed_and_the_small_are_not() {
    let setup = start_with(Limits {
        max_packet_size: 100_000,
        max_read_memory: 400_000,
        ..Limits::default()
    });
    let mut app = Client::new(&setup, V5, "app");
    app.subscribe("a", QoS::AtMostOnce);
    let mut car = Client::new(&setup, V5, "car");
    let mut hoarders = Vec::new();
    let mut most = 0;
    while refused(&setup, "read_memory") == 0 {
        assert!(hoarders.len() < 20, "nobody was closed");
        let mut hoarder = Client::new(&setup, V5, &format!("hoarder-{}", hoarders.len()));
        let packet = hoarder.encode(qos1(1, "a", vec![7; 90_000]));
        // It may be closed already.
        let _ = hoarder.stream.write_all(&packet[..85_000]);
        let before = setup.handle.stats();
        until("it is received", || {
            let now = setup.handle.stats();
            now.bytes_in >= before.bytes_in.max(85_000 * (hoarders.len() as u64 + 1))
                || now.refused_read_memory > 0
        });
        most = most.max(setup.handle.stats().read_memory_bytes);
        hoarders.push(hoarder);
    }
    assert!(most > 85_000, "{most}");
    // Mostly the last; another one may have come before the refusal was counted.
    let closed = (0..hoarders.len()).find(|n| {
        let connected = wait(setup.handle.client(&format!("hoarder-{n}")));
        connected.is_none()
    });
    let mut closed = hoarders.remove(closed.expect("one was closed"));
    assert_eq!(closed.farewell(), Some(ReasonCode::QuotaExceeded));
    // A packet in two parts still passes.
    let packet = car.encode(qos0("a", "small"));
    let (head, tail) = packet.split_at(5);
    car.raw(head);
    until("the head is held", || {
        setup.handle.stats().read_memory_bytes > most.min(1)
    });
    car.raw(tail);
    assert_eq!(&app.message().payload[..], b"small");
    drop(hoarders);
    until("all of it is given back", || {
        setup.handle.stats().read_memory_bytes == 0
    });
}

#[test]
fn when_slow_readers_fill_the_memory_they_pay_and_the_quick_do_not() {
    let setup = start_with(Limits {
        max_packet_size: 64 * 1024,
        max_queued_bytes: 1 << 20,
        max_queue_memory: 1 << 20,
        ..Limits::default()
    });
    let stuck: Vec<Client> = (0..4)
        .map(|n| {
            let mut client = Client::new(&setup, V5, &format!("stuck-{n}"));
            client.subscribe("a", QoS::AtMostOnce);
            client
        })
        .collect();
    let mut quick = Client::new(&setup, V5, "quick");
    quick.subscribe("a", QoS::AtLeastOnce);
    let mut car = Client::new(&setup, V5, "car");
    let payload = vec![7; 16 * 1024];
    let mut rounds = 0;
    // What the kernel buffers for the stuck ones is its own affair: go on until it is full.
    while setup.handle.stats().dropped_memory == 0 {
        rounds += 1;
        assert!(rounds < 20_000, "the stuck readers are never noticed");
        car.send(qos1(1, "a", &payload));
        assert_eq!(car.puback(), (1, ReasonCode::Success));
        let message = quick.message();
        quick.send(PubAck::success(message.packet_id.expect("QoS 1")));
    }
    assert!(setup.handle.stats().queue_memory_bytes < 2 << 20);
    assert_eq!(count(&setup.handle.stats().dropped(), "queue_full"), 0);
    quick.ping();
    drop(stuck);
    until("all of it is given back", || {
        setup.handle.stats().queue_memory_bytes == 0
    });
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    type Change = fn(&mut Limits);
    let rows: [(&str, Change); 5] = [
        ("max_session_memory", |l| l.max_session_memory = 1 << 20),
        ("max_read_memory", |l| l.max_read_memory = 1 << 20),
        ("max_queue_memory", |l| l.max_queue_memory = 1 << 20),
        ("max_topic_levels", |l| l.max_topic_levels = 0),
        ("max_loop_delay", |l| l.max_loop_delay = Duration::ZERO),
    ];
    for (name, change) in rows {
        let mut config = BrokerConfig::new(vec![ListenerConfig {
            limits: ListenerLimits::default(),
            ..ListenerConfig::new(
                "test",
                SocketAddr::from(([127, 0, 0, 1], 0)),
                Transport::Tcp,
            )
        }]);
        change(&mut config.limits);
        let hooks: Arc<dyn Hooks> = Arc::new(Outside::default());
        match Broker::start(config, hooks) {
            Err(StartError::Limit { name: said, .. }) => assert_eq!(said, name),
            Err(other) => panic!("{name}: {other}"),
            Ok(_) => panic!("{name}: started"),
        }
    }
}
