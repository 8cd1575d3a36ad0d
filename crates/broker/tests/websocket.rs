//! The broker over WebSocket, plain and over TLS.

#[path = "common/authority.rs"]
mod authority;
mod common;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use authority::Authority;
use broker::{
    ClientCertificate, Limits, Rate, ShutdownOutcome, Tls, TlsSettings, Transport, WebSocket,
};
use common::{Client, Setup, dial, qos0, qos1, start, until, wait};
use futures::{SinkExt, StreamExt};
use mqtt::{Connect, Disconnect, QoS, ReasonCode, Version};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

const V3: Version = Version::V311;
const V5: Version = Version::V5;

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

fn websocket() -> WebSocket {
    WebSocket {
        path: "/mqtt".to_owned(),
    }
}

fn start_ws() -> Setup {
    start(Transport::WebSocket(websocket()), Limits::default())
}

fn request(path: &str, protocols: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocols}\r\nOrigin: https://elsewhere.example\r\n\r\n"
    )
}

/// A frame as a client sends it, masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, k)| b ^ k));
    out
}

/// The client's side: every write is one frame, unless the test writes to `stream` itself.
struct Ws<S> {
    stream: S,
    /// Of a binary frame, not handed out yet.
    payload: Vec<u8>,
    /// Control frames that came.
    control: Vec<(u8, Vec<u8>)>,
}

impl<S: Read + Write> Ws<S> {
    fn open(mut stream: S) -> Ws<S> {
        let asked = request("/mqtt", "mqtt");
        stream.write_all(asked.as_bytes()).expect("taken");
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(answer.contains("Sec-WebSocket-Protocol: mqtt"));
        Ws {
            stream,
            payload: Vec::new(),
            control: Vec::new(),
        }
    }

    /// The next frame: first byte and payload.
    fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut start = [0; 2];
        self.stream.read_exact(&mut start)?;
        assert_eq!(start[1] & 0x80, 0, "a server does not mask");
        let len = match start[1] {
            126 => {
                let mut len = [0; 2];
                self.stream.read_exact(&mut len)?;
                u64::from(u16::from_be_bytes(len))
            }
            127 => {
                let mut len = [0; 8];
                self.stream.read_exact(&mut len)?;
                u64::from_be_bytes(len)
            }
            len => u64::from(len),
        };
        let mut payload = vec![0; len as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((start[0], payload))
    }

    /// Reads on to the broker's close frame; says its code.
    fn closed_with(&mut self) -> Option<u16> {
        loop {
            let (first, payload) = self.frame().expect("a close frame comes");
            if first != CLOSE {
                continue;
            }
            return payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        }
    }
}

/// Reads an answer's head.
fn head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8(head).expect("text")
}

impl<S: Read + Write> Read for Ws<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.payload.is_empty() {
            match self.frame()? {
                (BINARY, payload) => self.payload = payload,
                (CLOSE, payload) => {
                    let _ = self.stream.write_all(&frame(CLOSE, &payload));
                    self.control.push((CLOSE, payload));
                    return Ok(0);
                }
                other => self.control.push(other),
            }
        }
        let count = buf.len().min(self.payload.len());
        buf[..count].copy_from_slice(&self.payload[..count]);
        self.payload.drain(..count);
        Ok(count)
    }
}

impl<S: Read + Write> Write for Ws<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write_all(&frame(BINARY, buf))?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn client(setup: &Setup, version: Version, name: &str) -> Client<Ws<TcpStream>> {
    let stream = Ws::open(dial(setup.addr));
    let mut client = Client::open(stream, Connect::new(version, name));
    assert_eq!(client.connack().reason, ReasonCode::Success);
    client
}

#[test]
fn from_upgrade_to_close() {
    let setup = start_ws();
    assert_eq!(setup.handle.listeners()[0].protocol, "ws");
    for version in [V3, V5] {
        // Two workers: one of these moves to the worker of its session.
        let mut app = client(&setup, version, "app");
        let mut car = client(&setup, version, "car");
        app.subscribe("dt/+/speed", QoS::AtLeastOnce);
        for size in [1, 100, 125, 126, 127, 65_000, 65_536, 1_000_000] {
            let payload: Vec<u8> = (0..size as u32).map(|n| (n * 3) as u8).collect();
            car.send(qos1(7, "dt/car/speed", &payload));
            assert_eq!(car.puback(), (7, ReasonCode::Success));
            let message = app.take();
            assert!(message.payload == payload, "{size} bytes as they were sent");
        }
        for mut client in [app, car] {
            client.send(Disconnect::default());
            assert_eq!(client.next(), None);
            assert_eq!(client.stream.control, [(CLOSE, vec![0x03, 0xE8])]);
        }
    }
    until("all are gone", || {
        setup.handle.stats().pending_connections == 0
    });
    let stats = setup.handle.stats();
    assert_eq!(stats.disconnects, [(ReasonCode::Success, 4)]);
    assert_eq!(stats.upgrades_refused, 0);
}

#[test]
fn packets_and_frames_need_not_begin_together() {
    let setup = start_ws();
    let mut app = client(&setup, V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    let mut car = client(&setup, V5, "car");
    let packet = car.encode(qos0("a", "in three frames"));
    let (one, rest) = packet.split_at(5);
    let (two, three) = rest.split_at(7);
    let bytes = [
        frame(0x02, one),
        frame(PING, b"are you there"),
        frame(0x00, two),
        frame(0x80, three),
    ];
    car.stream.stream.write_all(&bytes.concat()).expect("taken");
    assert_eq!(app.text(), "a: in three frames");
    car.ping();
    assert_eq!(car.stream.control, [(PONG, b"are you there".to_vec())]);

    let two = [car.encode(qos0("b", "1")), car.encode(qos0("b", "2"))].concat();
    car.raw(&two);
    assert_eq!(app.texts(2), ["b: 1", "b: 2"]);

    let packet = car.encode(qos0("c", "byte by byte"));
    for byte in frame(BINARY, &packet) {
        car.stream.stream.write_all(&[byte]).expect("taken");
    }
    assert_eq!(app.text(), "c: byte by byte");
    for byte in &packet {
        car.raw(&[*byte]);
    }
    assert_eq!(app.text(), "c: byte by byte");

    // One frame ends in the middle of a packet and the next one ends it and begins another.
    let both = [packet.clone(), car.encode(qos0("d", "after"))].concat();
    let (first, second) = both.split_at(packet.len() - 2);
    car.raw(first);
    car.raw(second);
    assert_eq!(app.texts(2), ["c: byte by byte", "d: after"]);
}

#[test]
fn frames_that_break_the_protocol_end_the_connection_with_their_code() {
    let setup = start_ws();
    let rows: &[(&str, &[u8], u16)] = &[
        ("unmasked", b"\x82\x02\xC0\x00", 1002),
        ("reserved bits", b"\xC2\x80\0\0\0\0", 1002),
        ("unknown opcode", b"\x83\x80\0\0\0\0", 1002),
        ("text", b"\x81\x82\0\0\0\0\xC0\x00", 1003),
        (
            "continuation without start",
            b"\x80\x82\0\0\0\0\xC0\x00",
            1002,
        ),
        (
            "message in message",
            b"\x02\x80\0\0\0\0\x82\x80\0\0\0\0",
            1002,
        ),
        ("fragment of a ping", b"\x09\x80\0\0\0\0", 1002),
        ("long ping", b"\x89\xFE\x00\x7E\0\0\0\0", 1002),
        (
            "long form of a length",
            b"\x82\xFE\x00\x02\0\0\0\0\xC0\x00",
            1002,
        ),
        ("huge length", b"\x82\xFF\0\0\0\x01\0\0\0\0\0\0\0\0", 1009),
        (
            "negative length",
            b"\x82\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\0\0\0\0",
            1002,
        ),
        ("bad close code", b"\x88\x82\0\0\0\0\x03\xED", 1002),
    ];
    for (n, (what, bytes, code)) in (1..).zip(rows) {
        let mut car = client(&setup, V5, "car");
        car.stream.stream.write_all(bytes).expect("taken");
        assert_eq!(car.stream.closed_with(), Some(*code), "{what}");
        until("it is gone", || {
            setup.handle.stats().disconnects == [(ReasonCode::UnspecifiedError, n)]
        });
    }
}

#[test]
fn who_breaks_the_protocol_and_goes_on_talking_is_told_all_the_same() {
    let limits = Limits {
        close_timeout: Duration::from_secs(60),
        ..Limits::default()
    };
    let setup = start(Transport::WebSocket(websocket()), limits);
    let mut car = client(&setup, V5, "car");
    // Text, and more of it than is read at once.
    let talk = frame(0x81, &vec![b'x'; 1 << 20]);
    car.stream.stream.write_all(&talk).expect("all is taken");
    assert_eq!(car.stream.closed_with(), Some(1003));
    // In order, and not by a reset, which throws away what was said.
    let mut rest = Vec::new();
    let end = car.stream.stream.read_to_end(&mut rest);
    assert_eq!(end.expect("no reset"), 0, "{rest:?}");
    drop(car);
    until("it is gone", || {
        setup.handle.stats().pending_connections == 0
    });
}

#[test]
fn frames_without_mqtt_count_for_the_rates() {
    let limits = Limits {
        client_bytes_in: NonZeroU32::new(20_000).map(|rate| Rate::new(rate, 10_000)),
        ..Limits::default()
    };
    let setup = start(Transport::WebSocket(websocket()), limits);
    let mut car = client(&setup, V5, "car");
    let waits = || {
        let throttled = setup.handle.stats().throttled();
        let count = throttled
            .iter()
            .find(|(name, _)| *name == "client_bytes_in");
        count.map(|(_, count)| *count)
    };
    assert_eq!(waits(), Some(0));
    for empty in [frame(BINARY, b""), frame(PONG, b"")] {
        let before = waits();
        let flood = empty.repeat(3_000);
        car.stream.stream.write_all(&flood).expect("taken");
        until("it waits", || waits() > before);
    }
    car.ping();
}

#[test]
fn mqtt_that_is_wrong_is_told_in_mqtt_first() {
    let setup = start_ws();
    let mut car = client(&setup, V5, "car");
    car.raw(b"\xF7\x00");
    assert_eq!(car.farewell(), Some(ReasonCode::MalformedPacket));
    assert_eq!(car.stream.control, [(CLOSE, vec![0x03, 0xE8])]);
}

#[test]
fn a_client_that_closes_its_websocket_is_answered_and_leaves_its_will() {
    let setup = start_ws();
    let mut app = client(&setup, V5, "app");
    app.subscribe("will", QoS::AtMostOnce);
    let will = |name| common::with_will(Connect::new(V5, name), "will", name);
    for (name, close) in [("closes", true), ("hangs up", false)] {
        let mut car = Client::open(Ws::open(dial(setup.addr)), will(name));
        car.connack();
        if close {
            car.stream
                .stream
                .write_all(&frame(CLOSE, b"\x03\xE9tab closed"))
                .expect("taken");
            assert_eq!(
                car.stream.frame().expect("an answer"),
                (CLOSE, b"\x03\xE9".to_vec())
            );
        }
        drop(car);
        assert_eq!(app.text(), format!("will: {name}"));
    }
}

#[test]
fn requests_that_are_not_for_mqtt_get_an_answer_in_http() {
    let setup = start_ws();
    let good = request("/mqtt", "mqtt");
    let rows = [
        (request("/other", "mqtt"), "404"),
        (good.replace("GET", "PUT"), "405"),
        (good.replace("Upgrade: websocket\r\n", ""), "426"),
        (good.replace("Version: 13", "Version: 7"), "426"),
        (request("/mqtt", "chat"), "400"),
        (
            "GET /favicon.ico HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            "404",
        ),
        (
            format!("GET / HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(9000)),
            "431",
        ),
        ("\x10\x0D\0\x04MQTT\x04\x02\0\0\0\x01a".to_owned(), "400"),
    ];
    for (n, (request, status)) in (1..).zip(rows) {
        let mut stream = dial(setup.addr);
        stream.write_all(request.as_bytes()).expect("taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("closed in order");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        drop(stream);
        until("it is counted", || {
            setup.handle.stats().upgrades_refused == n
        });
    }
    until("all are gone", || {
        setup.handle.stats().pending_connections == 0
    });
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

#[test]
fn a_request_that_is_never_complete_is_closed() {
    let limits = Limits {
        // Enough for the upgrade of the third one on a slow machine.
        connect_timeout: Duration::from_secs(3),
        ..Limits::default()
    };
    let setup = start(Transport::WebSocket(websocket()), limits);
    let mut silent = dial(setup.addr);
    let mut slow = dial(setup.addr);
    slow.write_all(b"GET /mqtt HTTP/1.1\r\nHost:")
        .expect("taken");
    // Upgraded, and then silent.
    let mut mute = Ws::open(dial(setup.addr));
    for stream in [&mut silent, &mut slow] {
        assert_eq!(stream.read(&mut [0]).expect("closed"), 0);
    }
    assert_eq!(mute.closed_with(), Some(1000));
    drop(mute);
    until("all are gone", || {
        setup.handle.stats().pending_connections == 0
    });
    let stats = setup.handle.stats();
    assert_eq!((stats.upgrades_refused, stats.connect_timeouts), (2, 1));
}

#[test]
fn a_client_that_does_not_read_its_messages_gets_them_whole_later() {
    let setup = start_ws();
    let mut app = client(&setup, V5, "app");
    app.subscribe("#", QoS::AtLeastOnce);
    let mut car = client(&setup, V5, "car");
    // More than the sockets take, so frames go out in pieces; pings come in between.
    let count = 100;
    let payload = |n: u16| vec![n as u8; 50_000 + usize::from(n)];
    for n in 0..count {
        car.send(qos1(n + 1, "a", payload(n)));
        assert_eq!(car.puback(), (n + 1, ReasonCode::Success));
        app.stream
            .stream
            .write_all(&frame(PING, &n.to_be_bytes()))
            .expect("taken");
    }
    for n in 0..count {
        assert!(app.take().payload == payload(n), "message {n}");
    }
    app.ping();
    let pongs = &app.stream.control;
    assert_eq!(
        pongs.last(),
        Some(&(PONG, (count - 1).to_be_bytes().to_vec()))
    );
}

#[test]
fn a_broker_that_stops_is_going_away() {
    let setup = start_ws();
    let mut car = client(&setup, V5, "car");
    let stopping = setup.handle.clone();
    let report = std::thread::spawn(move || wait(stopping.shutdown(Duration::from_secs(30))));
    assert_eq!(car.farewell(), Some(ReasonCode::ServerShuttingDown));
    assert_eq!(car.stream.control, [(CLOSE, vec![0x03, 0xE9])]);
    drop(car);
    let report = report.join().expect("no panic");
    assert_eq!(report.outcome, ShutdownOutcome::Drained);
}

#[test]
fn over_tls_with_a_certificate() {
    let authority = Authority::new();
    let settings = TlsSettings::new(authority.server());
    let tls = Tls {
        settings: settings.clone(),
        client_certificate: ClientCertificate::Required,
        web: None,
    };
    let transport = Transport::SecureWebSocket(tls, websocket());
    let setup = start(transport, Limits::default());
    assert_eq!(setup.handle.listeners()[0].protocol, "wss");
    let shake = |authority: &Authority, own| {
        let name = ServerName::try_from("localhost").expect("a name");
        let config = Arc::new(authority.client(own));
        let connection = ClientConnection::new(config, name).expect("a client");
        StreamOwned::new(connection, dial(setup.addr))
    };
    let enter = |name: &str| {
        let own = authority.issue(name);
        let leaf = own.0[0].to_vec();
        let stream = Ws::open(shake(&authority, Some(own)));
        let mut client = Client::open(stream, Connect::new(V5, name));
        assert_eq!(client.connack().reason, ReasonCode::Success);
        assert_eq!(
            setup.outside.last_certificate.lock().unwrap().as_ref(),
            Some(&leaf)
        );
        client
    };
    // Two, so that one of them moves to another worker.
    let (mut app, mut car) = (enter("app"), enter("car"));
    app.subscribe("#", QoS::AtMostOnce);
    let payload: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    car.send(qos0("a", &payload));
    assert!(app.take().payload == payload);

    let mut stranger = shake(&authority, None);
    let _ = stranger.write_all(request("/mqtt", "mqtt").as_bytes());
    assert_eq!(head(&mut stranger), "");
    until("it is counted", || {
        setup.handle.stats().handshake_failures == 1
    });

    // Another authority from now on: who is there stays, who comes is measured by the new one.
    let other = Authority::new();
    settings.replace(other.server());
    let late = Ws::open(shake(&other, Some(other.issue("late"))));
    let mut late = Client::open(late, Connect::new(V5, "late"));
    assert_eq!(late.connack().reason, ReasonCode::Success);
    car.send(qos0("a", "still here"));
    assert_eq!(app.text(), "a: still here");
}

/// The same through somebody else's WebSocket.
#[test]
fn another_implementation_agrees() {
    use tokio_websockets::{CloseCode, Message};

    let setup = start_ws();
    let mut app = client(&setup, V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    let encode = |packet: mqtt::Packet| {
        let mut out = mqtt::BytesMut::new();
        mqtt::encode(&packet, V5, &mut out).expect("a packet");
        out.freeze()
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async {
            let uri = format!("ws://{}/mqtt", setup.addr).parse().expect("a URI");
            let protocol = tokio_websockets::proto::Config::default();
            let (mut socket, answer) = tokio_websockets::ClientBuilder::from_uri(uri)
                .add_header(
                    "sec-websocket-protocol".parse().expect("a name"),
                    "mqtt".parse().expect("a value"),
                )
                .expect("a header")
                .config(protocol)
                .connect()
                .await
                .expect("upgraded");
            assert_eq!(answer.headers()["sec-websocket-protocol"], "mqtt");
            let connect = encode(Connect::new(V5, "car").into());
            socket.send(Message::binary(connect)).await.expect("taken");
            let ack = socket.next().await.expect("an answer").expect("a message");
            assert_eq!(ack.as_payload()[0], 0x20);
            socket.send(Message::ping("hello")).await.expect("taken");
            let pong = socket.next().await.expect("an answer").expect("a message");
            assert!(pong.is_pong());
            assert_eq!(&pong.as_payload()[..], b"hello");
            let publish = encode(qos0("a", vec![b'x'; 200_000]).into());
            socket.send(Message::binary(publish)).await.expect("taken");
            let goodbye = encode(Disconnect::default().into());
            socket.send(Message::binary(goodbye)).await.expect("taken");
            let close = socket.next().await.expect("an answer").expect("a message");
            assert_eq!(close.as_close(), Some((CloseCode::NORMAL_CLOSURE, "")));
            assert!(socket.next().await.is_none());
        });
    assert_eq!(app.take().payload.len(), 200_000);
    assert_eq!(setup.handle.stats().disconnects, [(ReasonCode::Success, 1)]);
}
