//! Those who are not clients yet must not keep others out: silent sockets and endless handshakes from one
//! address, bad certificates, forged addresses.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use broker::{
    BanTarget, Broker, BrokerConfig, HoldOff, HoldOffReason, Hooks, Limits, ListenerConfig,
    Proxies, TlsSettings, Transport,
};
use common::certificates::{Asks, Authority, Credentials, secure};
use common::{Client, Outside, Setup, listener, start, start_listener, until};
use mqtt::{Connect, ReasonCode, Version};

const V5: Version = Version::V5;
const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

/// The first byte of a TLS handshake.
const ONE_BYTE: &[u8] = b"\x16";

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

fn count(counters: &[(&str, u64)], name: &str) -> u64 {
    let found = counters.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1
}

#[track_caller]
fn refused(setup: &Setup, name: &str) -> u64 {
    count(&setup.handle.stats().refused(), name)
}

fn failed(setup: &Setup, name: &str) -> u64 {
    count(&setup.handle.stats().handshakes_failed(), name)
}

fn pending(setup: &Setup) -> u64 {
    setup.handle.stats().pending_connections
}

/// A broker with a plain listener, whose address is the setup's, and one over TLS.
fn start_both(authority: &Authority, limits: Limits) -> (Setup, SocketAddr) {
    let outside: Arc<Outside> = Arc::default();
    let settings = TlsSettings::new(authority.server(Asks::Insists));
    let tls = Transport::Tls(broker::Tls::new(settings));
    let mut config = BrokerConfig::new(vec![listener(Transport::Tcp), listener(tls)]);
    config.limits = limits;
    config.workers = 2.try_into().ok();
    let hooks: Arc<dyn Hooks> = Arc::clone(&outside) as _;
    let handle = Broker::start(config, hooks).expect("starts");
    let [plain, over_tls] = [0, 1].map(|n| handle.listeners()[n].addr);
    let setup = Setup {
        handle,
        outside,
        addr: plain,
    };
    (setup, over_tls)
}

fn enter_tls(
    host: u8,
    addr: SocketAddr,
    authority: &Authority,
    own: Credentials,
    name: &str,
) -> Client<common::certificates::Tls> {
    let config = authority.client(&[&rustls::version::TLS13], Some(own), &[]);
    let stream = secure(dial_from(host, addr), &config, "localhost");
    let mut client = Client::open(stream, Connect::new(V5, name));
    assert_eq!(client.connack().reason, ReasonCode::Success);
    client
}

/// One address opens as many sockets as it likes, on both listeners, and says nothing, or the first byte
/// of a handshake. Clients from another come at once over both.
#[test]
fn one_address_of_silent_sockets_keeps_nobody_else_out() {
    let authority = Authority::new();
    let limits = Limits {
        max_pending_connections: 100,
        max_pending_per_address: 40,
        max_handshakes: 8,
        // Longer than anybody here is patient.
        handshake_timeout: Duration::from_secs(300),
        connect_timeout: Duration::from_secs(300),
        ..Limits::default()
    };
    let (setup, tls) = start_both(&authority, limits);
    let mut standing = Client::open(dial_from(2, setup.addr), Connect::new(V5, "standing"));
    assert_eq!(standing.connack().reason, ReasonCode::Success);
    // Twice as many as there are turns, in each worker.
    let mut strangers: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = dial_from(2, tls);
            stream.write_all(ONE_BYTE).expect("taken");
            stream
        })
        .collect();
    for n in 0..200 {
        let addr = if n % 2 == 0 { setup.addr } else { tls };
        strangers.push(dial_from(2, addr));
    }
    until("the address has all its places", || {
        pending(&setup) == 40 && refused(&setup, "pending_address") == 176
    });
    let cars: Vec<_> = (0..20)
        .map(|n| {
            let addr = setup.addr;
            let own = authority.issue("car.example");
            let config = authority.client(&[&rustls::version::TLS13], Some(own), &[]);
            std::thread::spawn(move || {
                let connect = Connect::new(V5, format!("car-{n}"));
                if n % 2 == 0 {
                    let mut car = Client::open(dial_from(3, addr), connect);
                    assert_eq!(car.connack().reason, ReasonCode::Success);
                    car.ping();
                } else {
                    let stream = secure(dial_from(3, tls), &config, "localhost");
                    let mut car = Client::open(stream, connect);
                    assert_eq!(car.connack().reason, ReasonCode::Success);
                    car.ping();
                }
            })
        })
        .collect();
    for car in cars {
        car.join().expect("it is served");
    }
    standing.ping();
    assert_eq!(refused(&setup, "pending_address"), 176, "of nobody else");
    assert_eq!(setup.handle.stats().overloaded_accepts, 0);
    drop(strangers);
    until("the places are free again", || pending(&setup) == 0);
    let mut late = Client::open(dial_from(2, setup.addr), Connect::new(V5, "late"));
    assert_eq!(late.connack().reason, ReasonCode::Success);
}

#[test]
fn clients_take_no_place_of_those_who_come() {
    // Each of the two workers may be about to count one in while the next comes.
    let setup = start(
        Transport::Tcp,
        Limits {
            max_pending_per_address: 4,
            ..Limits::default()
        },
    );
    let mut cars: Vec<Client> = (0..40)
        .map(|n| Client::new(&setup, V5, &format!("car-{n}")))
        .collect();
    for car in &mut cars {
        car.ping();
    }
    assert_eq!(refused(&setup, "pending_address"), 0);
}

#[test]
fn behind_a_proxy_the_address_it_announces_counts_and_its_own_does_not() {
    let loopback = "127.0.0.0/8".parse().expect("a range");
    let proxied = ListenerConfig {
        proxies: Proxies::From(vec![loopback]),
        ..listener(Transport::Tcp)
    };
    let setup = start_listener(
        proxied,
        Limits {
            max_pending_per_address: 2,
            ..Limits::default()
        },
    );
    let mut sockets: Vec<TcpStream> = (0..6).map(|_| dial_from(1, setup.addr)).collect();
    until("all wait for their header", || pending(&setup) == 6);
    assert_eq!(refused(&setup, "pending_address"), 0);
    let header = |host: u8| format!("PROXY TCP4 203.0.113.{host} 192.0.2.1 4711 1883\r\n");
    for socket in &mut sockets {
        socket.write_all(header(7).as_bytes()).expect("taken");
    }
    until("two are left", || pending(&setup) == 2);
    assert_eq!(refused(&setup, "pending_address"), 4);
    for line in [header(8).as_str(), "PROXY UNKNOWN\r\n"] {
        let mut other = dial_from(1, setup.addr);
        other
            .write_all(&[line.as_bytes(), CONNECT].concat())
            .expect("taken");
        let mut answer = [0; 4];
        other.read_exact(&mut answer).expect("CONNACK");
        assert_eq!(answer, CONNACK, "{line}");
    }
}

/// Ten failed handshakes are one failure.
fn quick_to_hold_off() -> Limits {
    Limits {
        hold_off: HoldOff {
            failures: 1,
            ..HoldOff::default()
        },
        ..Limits::default()
    }
}

/// Shows a certificate that the broker does not take, from 127.0.0.`host`.
fn fail_from(host: u8, addr: SocketAddr, authority: &Authority, bad: &Authority) {
    let own = bad.issue("car.example");
    let config = authority.client(&[&rustls::version::TLS13], Some(own), &[]);
    let mut stream = secure(dial_from(host, addr), &config, "localhost");
    // With TLS 1.3 the client is done before the server has looked at its certificate.
    let _ = stream.write_all(CONNECT);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"");
}

#[test]
fn an_address_of_bad_certificates_is_held_off_and_can_be_released() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (setup, tls) = start_both(&authority, quick_to_hold_off());
    for n in 1..=10 {
        assert!(setup.handle.held_off().is_empty(), "{n}");
        fail_from(2, tls, &authority, &stranger);
        until("it is counted", || failed(&setup, "bad_certificate") == n);
    }
    until("it is held off", || !setup.handle.held_off().is_empty());
    let held = setup.handle.held_off();
    let address: BanTarget = "address:127.0.0.2".parse().expect("a target");
    assert_eq!((held.len(), &held[0].target), (1, &address));
    let why = (held[0].why, held[0].count);
    assert_eq!(why, (HoldOffReason::BadCredentials, 10));
    assert!(is_closed_unheard(dial_from(2, tls)), "before a handshake");
    assert_eq!(refused(&setup, "held_off"), 1);
    let good = authority.issue("car.example");
    enter_tls(3, tls, &authority, good, "elsewhere").ping();
    assert!(setup.handle.release(&address));
    let good = authority.issue("car.example");
    enter_tls(2, tls, &authority, good, "released").ping();
}

/// Some cars behind an address have certificates that expired, and try without end.
#[test]
fn bad_certificates_do_not_shut_out_the_fleet_behind_their_address() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (setup, tls) = start_both(&authority, quick_to_hold_off());
    let own = authority.issue("car.example");
    let mut standing = enter_tls(2, tls, &authority, own, "standing");
    for n in 1..=30 {
        fail_from(2, tls, &authority, &stranger);
        until("it is counted", || failed(&setup, "bad_certificate") == n);
    }
    let own = authority.issue("car.example");
    enter_tls(2, tls, &authority, own, "next").ping();
    standing.ping();
    assert!(setup.handle.held_off().is_empty());
    assert_eq!(refused(&setup, "held_off"), 0);
}

#[test]
fn behind_a_proxy_bad_certificates_are_the_clients_and_a_held_one_costs_no_handshake() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let settings = TlsSettings::new(authority.server(Asks::Insists));
    let loopback = "127.0.0.0/8".parse().expect("a range");
    let proxied = ListenerConfig {
        proxies: Proxies::From(vec![loopback]),
        ..listener(Transport::Tls(broker::Tls::new(settings)))
    };
    let setup = start_listener(proxied, quick_to_hold_off());
    let through = |line: &str, own: Credentials| {
        let mut stream = dial_from(1, setup.addr);
        stream.write_all(line.as_bytes()).expect("taken");
        let config = authority.client(&[&rustls::version::TLS13], Some(own), &[]);
        let mut stream = secure(stream, &config, "localhost");
        let _ = stream.write_all(CONNECT);
        let mut answer = [0; 4];
        // Without an answer it ends, or is reset.
        let count = stream.read(&mut answer).unwrap_or(0);
        answer[..count].to_vec()
    };
    let header = |host: u8| format!("PROXY TCP4 203.0.113.{host} 192.0.2.1 4711 1883\r\n");
    // Of those it names nobody for, nobody is held off: least of all itself.
    for n in 1..=20 {
        through("PROXY UNKNOWN\r\n", stranger.issue("car.example"));
        until("it is counted", || failed(&setup, "bad_certificate") == n);
    }
    assert!(setup.handle.held_off().is_empty());
    for n in 21..=30 {
        through(&header(7), stranger.issue("car.example"));
        until("it is counted", || failed(&setup, "bad_certificate") == n);
    }
    until("it is held off", || !setup.handle.held_off().is_empty());
    let held = setup.handle.held_off();
    assert_eq!(held[0].target.to_string(), "address:203.0.113.7");
    assert_eq!(through(&header(7), authority.issue("car.example")), b"");
    assert_eq!(refused(&setup, "held_off"), 1);
    let handshakes = setup.handle.stats().handshakes();
    assert_eq!(handshakes.iter().map(|(_, n)| n).sum::<u64>(), 0);
    for line in [header(8).as_str(), "PROXY UNKNOWN\r\n"] {
        assert_eq!(through(line, authority.issue("car.example")), CONNACK);
    }
}
