//! Listeners behind proxies: the PROXY protocol header, and who may send one.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use broker::{
    Broker, BrokerConfig, Limits, ListenerConfig, Proxied, Proxies, StartError, Stats, TlsSettings,
    Transport,
};
use common::certificates::{Asks, Authority, TLS_VERSIONS, secure};
use common::{Client, Setup, dial, listener, start_listener, start_tcp, until};
use mqtt::{Connect, ReasonCode, Version};

const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

fn behind(proxies: &[&str], transport: Transport) -> ListenerConfig {
    let ranges = proxies.iter().map(|text| text.parse().expect("a range"));
    ListenerConfig {
        proxies: Proxies::From(ranges.collect()),
        ..listener(transport)
    }
}

fn start_behind_loopback(transport: Transport) -> Setup {
    start_listener(behind(&["127.0.0.0/8"], transport), Limits::default())
}

fn refused(stats: &Stats, kind: &str) -> u64 {
    let kinds = stats.proxy_refused();
    let (_, count) = kinds.iter().find(|(name, _)| *name == kind).expect(kind);
    *count
}

/// A header of version 2.
fn v2(command: u8, family: u8, addresses: &[u8], fields: &[Vec<u8>]) -> Vec<u8> {
    let body = [addresses, &fields.concat()].concat();
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([command, family]);
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = (value.len() as u16).to_be_bytes();
    [&[kind][..], &len, value].concat()
}

/// What a proxy says of the client's certificate.
fn certificate(verify: u32, name: &str) -> Vec<u8> {
    let fields = [field(0x21, b"TLSv1.3"), field(0x22, name.as_bytes())];
    field(
        0x20,
        &[&[7][..], &verify.to_be_bytes(), &fields.concat()].concat(),
    )
}

/// 203.0.113.7:4711 to 192.0.2.1:1883.
const V4: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 0x07, 0x5b];

/// [2001:db8::7]:4711 to [2001:db8::7]:1883.
fn v6() -> Vec<u8> {
    let address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    [&address[..], &address, &V4[8..]].concat()
}

fn v1(line: &str) -> Vec<u8> {
    format!("{line}\r\n").into_bytes()
}

/// Sends it all, and expects CONNACK.
fn expect_welcome(stream: &mut TcpStream) {
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("CONNACK");
    assert_eq!(answer, CONNACK);
}

/// The connection ends, and nothing was said.
fn expect_silence(stream: &mut TcpStream, what: &str) {
    let mut answer = Vec::new();
    // An end or a reset.
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"", "{what}");
}

#[test]
fn the_client_is_who_the_proxy_says() {
    let setup = start_behind_loopback(Transport::Tcp);
    let client: SocketAddr = "203.0.113.7:4711".parse().expect("valid");
    let client_v6: SocketAddr = "[2001:db8::7]:4711".parse().expect("valid");
    let rows = [
        (
            "v1",
            v1("PROXY TCP4 203.0.113.7 192.0.2.1 4711 1883"),
            Some(client),
            None,
        ),
        (
            "v1, IPv6",
            v1("PROXY TCP6 2001:db8::7 2001:db8::1 4711 1883"),
            Some(client_v6),
            None,
        ),
        ("v1, not known", v1("PROXY UNKNOWN"), None, None),
        ("v2", v2(0x21, 0x11, &V4, &[]), Some(client), None),
        (
            "v2, IPv6",
            v2(0x21, 0x21, &v6(), &[]),
            Some(client_v6),
            None,
        ),
        ("v2, for itself", v2(0x20, 0, &[], &[]), None, None),
        (
            "v2, with a name",
            v2(0x21, 0x11, &V4, &[certificate(0, "tcu-1")]),
            Some(client),
            Some("tcu-1"),
        ),
        (
            "v2, with a name that is not verified",
            v2(0x21, 0x11, &V4, &[certificate(1, "tcu-1")]),
            Some(client),
            None,
        ),
    ];
    for (what, header, peer, name) in rows {
        // The CONNECT right behind the header, in one piece.
        let mut stream = dial(setup.addr);
        let own = stream.local_addr().expect("connected");
        stream
            .write_all(&[&header, CONNECT].concat())
            .expect("taken");
        expect_welcome(&mut stream);
        let (transport, seen, proxied) = setup
            .outside
            .last_origin
            .lock()
            .unwrap()
            .take()
            .expect(what);
        assert_eq!((transport, seen), ("mqtt", peer.unwrap_or(own)), "{what}");
        let Proxied {
            proxy,
            certificate_name,
            ..
        } = proxied.expect(what);
        assert_eq!((proxy, certificate_name.as_deref()), (own, name), "{what}");
    }
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let setup = start_behind_loopback(Transport::Tcp);
    let headers = [
        v1("PROXY TCP4 203.0.113.7 192.0.2.1 4711 1883"),
        v2(0x21, 0x11, &V4, &[certificate(0, "tcu-1")]),
    ];
    for header in headers {
        let mut stream = dial(setup.addr);
        for byte in [&header[..], CONNECT].concat() {
            stream.write_all(&[byte]).expect("taken");
            // Lets the other side see this byte before the next.
            std::thread::yield_now();
        }
        expect_welcome(&mut stream);
        let (_, peer, _) = setup
            .outside
            .last_origin
            .lock()
            .unwrap()
            .take()
            .expect("asked");
        assert_eq!(peer.to_string(), "203.0.113.7:4711");
    }
}

#[test]
fn the_header_comes_before_tls() {
    let authority = Authority::new();
    let settings = TlsSettings::new(authority.server(Asks::Insists));
    let setup = start_behind_loopback(Transport::Tls(broker::Tls::new(settings)));
    for version in TLS_VERSIONS {
        let own = authority.issue("car.example");
        let leaf = own.0[0].to_vec();
        let mut stream = dial(setup.addr);
        let fields = [field(0x02, b"mqtt.example"), certificate(0, "tcu-1")];
        stream
            .write_all(&v2(0x21, 0x11, &V4, &fields))
            .expect("taken");
        let stream = secure(
            stream,
            &authority.client(&[version], Some(own), &[]),
            "localhost",
        );
        let mut client = Client::open(stream, Connect::new(Version::V5, "car"));
        assert_eq!(client.connack().reason, ReasonCode::Success);
        let (transport, peer, proxied) = setup
            .outside
            .last_origin
            .lock()
            .unwrap()
            .take()
            .expect("asked");
        assert_eq!(
            (transport, peer.to_string().as_str()),
            ("mqtts", "203.0.113.7:4711")
        );
        let proxied = proxied.expect("said");
        assert_eq!(proxied.server_name.as_deref(), Some("mqtt.example"));
        assert_eq!(proxied.tls_version.as_deref(), Some("TLSv1.3"));
        let seen = setup.outside.last_certificate.lock().unwrap().take();
        assert_eq!(seen, Some(leaf), "the certificate of our own handshake too");
    }
    // TLS without a header is no header.
    let stream = secure(
        dial(setup.addr),
        &authority.client(&TLS_VERSIONS, None, &[]),
        "localhost",
    );
    let mut stream = stream;
    let _ = stream.write_all(CONNECT);
    expect_silence(&mut stream.sock, "no header");
    until("it is counted", || {
        refused(&setup.handle.stats(), "malformed") == 1
    });
}

#[test]
fn no_header_or_a_bad_one_closes_the_connection_unheard() {
    let setup = start_behind_loopback(Transport::Tcp);
    let rows = [
        ("none", Vec::new()),
        ("half of one", b"PROXY TCP4 203.0.113.7\n".to_vec()),
        ("a bad line", v1("PROXY TCP4 203.0.113.7 192.0.2.1 4711")),
        ("a line without an end", [b'x'; 200].to_vec()),
        ("datagrams", v2(0x21, 0x12, &V4, &[])),
        ("beyond its end", v2(0x21, 0x11, &V4[..11], &[])),
        ("too long", v2(0x21, 0x11, &V4, &[field(4, &[0; 3000])])),
        (
            "two names",
            v2(0x21, 0x11, &V4, &[certificate(0, "a"), certificate(0, "b")]),
        ),
    ];
    for (n, (what, header)) in rows.into_iter().enumerate() {
        let mut stream = dial(setup.addr);
        stream
            .write_all(&[&header, CONNECT].concat())
            .expect("taken");
        expect_silence(&mut stream, what);
        until(what, || {
            refused(&setup.handle.stats(), "malformed") == n as u64 + 1
        });
    }
    drop(dial(setup.addr));
    until("who just looks is counted", || {
        refused(&setup.handle.stats(), "closed") == 1
    });
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

#[test]
fn a_header_that_does_not_end_in_time_is_not_waited_for() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let setup = start_listener(behind(&["127.0.0.1"], Transport::Tcp), limits);
    let header = v2(0x21, 0x11, &V4, &[]);
    for (n, sent) in [0, 1, header.len() - 1].into_iter().enumerate() {
        let mut stream = dial(setup.addr);
        stream.write_all(&header[..sent]).expect("taken");
        expect_silence(&mut stream, "late");
        until("it is counted", || {
            refused(&setup.handle.stats(), "timeout") == n as u64 + 1
        });
    }
    until("all are gone", || {
        setup.handle.stats().pending_connections == 0
    });
}

#[test]
fn who_comes_past_the_proxies_is_closed_unheard() {
    let setup = start_listener(
        behind(&["192.0.2.0/24", "::1"], Transport::Tcp),
        Limits::default(),
    );
    let mut stream = dial(setup.addr);
    let header = v1("PROXY TCP4 192.0.2.9 192.0.2.1 4711 1883");
    // It may be closed before all of this is sent.
    let _ = stream.write_all(&[&header, CONNECT].concat());
    expect_silence(&mut stream, "a stranger");
    until("it is counted", || {
        refused(&setup.handle.stats(), "stranger") == 1
    });
    assert_eq!(setup.handle.stats().pending_connections, 0);
}

#[test]
fn a_listener_without_proxies_believes_no_header() {
    let setup = start_tcp();
    let mut stream = dial(setup.addr);
    let header = v1("PROXY TCP4 203.0.113.7 192.0.2.1 4711 1883");
    stream
        .write_all(&[&header, CONNECT].concat())
        .expect("taken");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(CONNACK), "{answer:?}");
    assert!(
        setup.outside.last_origin.lock().unwrap().is_none(),
        "nobody was asked"
    );
}

#[test]
fn a_listener_that_hears_only_proxies_needs_some() {
    let config = BrokerConfig::new(vec![behind(&[], Transport::Tcp)]);
    match Broker::start(config, std::sync::Arc::<common::Outside>::default()) {
        Err(error @ StartError::Listener { .. }) => assert_eq!(
            error.to_string(),
            "listener `test` (mqtt) cannot be served: it hears only proxies and none is listed; \
             list their addresses"
        ),
        other => panic!("{other:?}"),
    }
}

/// The corpus kept for fuzzing (`fuzz/corpus/proxy_header`), on a stable compiler: what the fuzzer checks.
#[test]
fn headers_of_the_corpus_are_the_same_however_they_come() {
    use broker::proxy::{MAX_HEADER, Parse, parse};

    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/proxy_header");
    let mut seen = [0; 3];
    for file in std::fs::read_dir(folder).expect("the corpus is there") {
        let path = file.expect("readable").path();
        let bytes = std::fs::read(&path).expect("readable");
        let whole = parse(&bytes);
        match &whole {
            Parse::Incomplete => assert!(bytes.len() < MAX_HEADER, "{}", path.display()),
            Parse::Done { len, .. } => {
                assert_eq!(parse(&bytes[..*len]), whole, "{}", path.display());
                for cut in 0..*len {
                    let part = parse(&bytes[..cut]);
                    assert_eq!(part, Parse::Incomplete, "{} at {cut}", path.display());
                }
            }
            Parse::Malformed(_) => {}
        }
        seen[match whole {
            Parse::Incomplete => 0,
            Parse::Done { .. } => 1,
            Parse::Malformed(_) => 2,
        }] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}
