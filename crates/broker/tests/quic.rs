//! The broker over QUIC.

#[path = "common/authority.rs"]
mod authority;
mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use authority::{Authority, Shown};
use broker::{
    Bind, Broker, BrokerConfig, ClientCertificate, HoldOff, Limits, ListenerConfig, ListenerLimits,
    Rate, ShutdownOutcome, StartError, Tls, TlsSettings, Transport,
};
use common::{Client, Setup, listener, qos0, qos1, start, start_listener, stored, until, wait};
use mqtt::{Connect, Disconnect, QoS, ReasonCode, Version};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream,
    TokioRuntime, VarInt,
};
use tokio::runtime::Runtime;

const V5: Version = Version::V5;
const PATIENCE: Duration = Duration::from_secs(30);

fn localhost() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A broker with its authority.
struct Site {
    authority: Authority,
    settings: TlsSettings,
    setup: Setup,
}

impl Site {
    fn open(client_certificate: ClientCertificate, limits: Limits) -> Site {
        let authority = Authority::new();
        let settings = TlsSettings::new(authority.server());
        let setup = start(
            Transport::Quic(Tls {
                settings: settings.clone(),
                client_certificate,
                web: None,
            }),
            limits,
        );
        Site {
            authority,
            settings,
            setup,
        }
    }

    fn required() -> Site {
        Site::open(ClientCertificate::Required, Limits::default())
    }

    fn dial(&self, name: &str) -> Quic {
        let own = self.authority.issue(name);
        Quic::dial(&self.setup, &self.authority, Some(own), b"mqtt").expect("let in")
    }

    fn enter(&self, name: &str) -> Client<Quic> {
        let mut client = Client::open(self.dial(name), Connect::new(V5, name));
        assert_eq!(client.connack().reason, ReasonCode::Success);
        client
    }
}

fn tls(authority: &Authority, own: Option<Shown>, alpn: &[u8]) -> rustls::ClientConfig {
    let mut config = authority.client(own);
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

fn quic(tls: rustls::ClientConfig) -> ClientConfig {
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3")))
}

/// A client's connection with its one stream, as blocking as a test likes it.
struct Quic {
    // Before the runtime, which they need to be dropped.
    send: SendStream,
    recv: RecvStream,
    connection: Connection,
    endpoint: Endpoint,
    runtime: Runtime,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

impl Quic {
    /// Shakes hands. The broker learns of the stream with the first bytes on it.
    fn dial(
        setup: &Setup,
        authority: &Authority,
        own: Option<Shown>,
        alpn: &[u8],
    ) -> Result<Quic, ConnectionError> {
        Quic::dial_with(setup.addr, quic(tls(authority, own, alpn)))
    }

    fn dial_with(addr: SocketAddr, config: ClientConfig) -> Result<Quic, ConnectionError> {
        let runtime = runtime();
        let (endpoint, connection, (send, recv)) = runtime.block_on(async {
            let endpoint = Endpoint::client(localhost()).expect("a socket");
            let connecting = endpoint.connect_with(config, addr, "localhost");
            let connection = connecting.expect("a good configuration").await?;
            let streams = connection.open_bi().await?;
            Ok::<_, ConnectionError>((endpoint, connection, streams))
        })?;
        Ok(Quic {
            send,
            recv,
            connection,
            endpoint,
            runtime,
        })
    }

    /// Waits until the connection is over.
    fn closed(&self) -> ConnectionError {
        self.runtime.block_on(async {
            let closed = tokio::time::timeout(PATIENCE, self.connection.closed());
            closed.await.expect("it ends")
        })
    }
}

impl Read for Quic {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = async { tokio::time::timeout(PATIENCE, self.recv.read(buf)).await };
        match self.runtime.block_on(read) {
            Ok(read) => Ok(read?.unwrap_or(0)),
            Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Quic {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(self.runtime.block_on(self.send.write(buf))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn code(error: ConnectionError) -> Option<VarInt> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code),
        _ => None,
    }
}

#[test]
fn from_handshake_to_close() {
    let site = Site::required();
    let setup = &site.setup;
    assert_eq!(setup.handle.listeners()[0].protocol, "quic");
    let own = site.authority.issue("car");
    let leaf = own.0[0].to_vec();
    let stream = Quic::dial(setup, &site.authority, Some(own), b"mqtt").expect("let in");
    let mut car = Client::open(stream, Connect::new(V5, "car"));
    assert_eq!(car.connack().reason, ReasonCode::Success);
    let seen = setup.outside.last_certificate.lock().unwrap().clone();
    assert_eq!(seen, Some(leaf), "the hooks see the certificate");
    // Two workers: one of the two moves to the other's.
    let mut app = site.enter("app");
    app.subscribe("#", QoS::AtLeastOnce);
    // Far more than what may be on its way at once.
    for size in [0, 1, 1_000, 100_000, 1_000_000] {
        let payload: Vec<u8> = (0..size as u32).map(|n| (n * 3) as u8).collect();
        car.send(qos1(1, "a", &payload));
        assert_eq!(car.puback(), (1, ReasonCode::Success));
        assert!(
            app.take().payload == payload,
            "{size} bytes as they were sent"
        );
    }
    for mut client in [app, car] {
        client.send(Disconnect::default());
        assert_eq!(client.next(), None);
        assert_eq!(code(client.stream.closed()), Some(VarInt::from_u32(0)));
    }
    until("all are gone", || {
        setup.handle.stats().pending_connections == 0
    });
    assert_eq!(setup.handle.stats().disconnects, [(ReasonCode::Success, 2)]);
}

#[test]
fn a_client_whose_address_changes_goes_on() {
    let site = Site::required();
    let mut app = site.enter("app");
    app.subscribe("#", QoS::AtLeastOnce);
    let mut car = site.enter("car");
    car.subscribe("to/car", QoS::AtLeastOnce);
    for round in 0..3 {
        let before = car.stream.endpoint.local_addr().expect("an address");
        let socket = UdpSocket::bind(localhost()).expect("a port");
        {
            let _runtime = car.stream.runtime.enter();
            car.stream.endpoint.rebind(socket).expect("moved");
        }
        assert_ne!(
            car.stream.endpoint.local_addr().expect("an address"),
            before
        );
        car.send(qos1(1, "a", format!("{round}")));
        assert_eq!(car.puback(), (1, ReasonCode::Success));
        assert_eq!(app.text(), format!("a: {round}"));
        app.send(qos0("to/car", "still there?"));
        assert_eq!(car.text(), "to/car: still there?");
        app.text();
    }
    let stats = site.setup.handle.stats();
    assert_eq!(
        (stats.connects_accepted, stats.connections),
        (2, 2),
        "the same connections"
    );
}

#[test]
fn who_speaks_something_else_or_is_a_stranger_is_refused() {
    let site = Site::required();
    let (setup, ours) = (&site.setup, &site.authority);
    let stranger = Authority::new();
    let rows = [
        (b"h3".as_slice(), ours.issue("car")),
        (b"http/1.1", ours.issue("car")),
        (b"mqtt", stranger.issue("car")),
    ];
    for (n, (alpn, own)) in (1..).zip(rows) {
        // Whose certificate is bad may believe for a moment that it is in.
        if let Ok(stream) = Quic::dial(setup, ours, Some(own), alpn) {
            assert!(matches!(
                stream.closed(),
                ConnectionError::ConnectionClosed(_)
            ));
        }
        until("it is counted", || {
            setup.handle.stats().handshake_failures == n
        });
    }
    // Without ALPN.
    let mut config = ours.client(Some(ours.issue("car")));
    config.alpn_protocols.clear();
    assert!(Quic::dial_with(setup.addr, quic(config)).is_err());
    until("it is counted", || {
        setup.handle.stats().handshake_failures == 4
    });
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

#[test]
fn a_client_without_a_certificate_is_let_in_where_it_is_optional() {
    let site = Site::required();
    let dial = |site: &Site| Quic::dial(&site.setup, &site.authority, None, b"mqtt");
    // The client may hear of it before or after it thinks that it is in.
    let refused = dial(&site).map_or_else(|error| error, |stream| stream.closed());
    assert_eq!(code(refused), Some(VarInt::from_u32(2)));
    until("it is counted", || {
        site.setup.handle.stats().handshake_failures == 1
    });

    let site = Site::open(ClientCertificate::Optional, Limits::default());
    let mut car = Client::open(dial(&site).expect("let in"), Connect::new(V5, "car"));
    assert_eq!(car.connack().reason, ReasonCode::Success);
    assert_eq!(*site.setup.outside.last_certificate.lock().unwrap(), None);
}

#[test]
fn a_client_that_the_hooks_bar_is_told_and_closed() {
    let site = Site::required();
    let mut car = site.enter("car");
    site.setup
        .outside
        .barred
        .lock()
        .unwrap()
        .push("car".to_owned());
    let handle = &site.setup.handle;
    assert_eq!(
        handle.disconnect_principal("car", ReasonCode::NotAuthorized),
        1
    );
    assert_eq!(car.farewell(), Some(ReasonCode::NotAuthorized));
    let told = car.stream.closed();
    assert!(code(told.clone()).is_some(), "{told}");
    let mut again = Client::open(site.dial("car"), Connect::new(V5, "car"));
    assert_eq!(again.connack().reason, ReasonCode::NotAuthorized);
    assert_eq!(again.next(), None);
}

#[test]
fn a_session_outlives_its_connection() {
    let site = Site::required();
    let mut car = Client::open(site.dial("car"), stored(V5, "car"));
    assert!(!car.connack().session_present);
    car.subscribe("a", QoS::AtLeastOnce);
    // Gone without a word: the connection is closed under it.
    car.stream.connection.close(VarInt::from_u32(7), b"");
    site.setup.settled(0);
    let mut app = site.enter("app");
    app.send(qos1(1, "a", "kept"));
    assert_eq!(app.puback(), (1, ReasonCode::Success));
    let mut car = Client::open(site.dial("car"), stored(V5, "car"));
    assert!(car.connack().session_present);
    assert_eq!(car.text(), "a: kept");
}

#[test]
fn one_stream_is_all_there_is() {
    let site = Site::required();
    let car = site.enter("car");
    car.stream.runtime.block_on(async {
        let connection = &car.stream.connection;
        // The broker's limits are known since the handshake: these would wait for more for ever.
        for _ in 0..3 {
            tokio::task::yield_now().await;
            let mut one_more = std::pin::pin!(connection.open_bi());
            let mut one_way = std::pin::pin!(connection.open_uni());
            let waits = std::future::poll_fn(|cx| {
                let both = one_more.as_mut().poll(cx).is_pending()
                    && one_way.as_mut().poll(cx).is_pending();
                std::task::Poll::Ready(both)
            });
            assert!(waits.await);
        }
        assert_eq!(connection.max_datagram_size(), None);
    });
}

#[test]
fn who_opens_no_stream_is_closed() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let site = Site::open(ClientCertificate::Required, limits);
    // Its time may be over before it knows that it is in.
    let own = Some(site.authority.issue("silent"));
    let silent = Quic::dial(&site.setup, &site.authority, own, b"mqtt");
    let closed = silent.map_or_else(|error| error, |stream| stream.closed());
    assert_eq!(code(closed), Some(VarInt::from_u32(3)));
    until("it is gone", || {
        site.setup.handle.stats().pending_connections == 0
    });
    assert_eq!(site.setup.handle.stats().connect_timeouts, 1);
}

#[test]
fn replaced_settings_are_for_those_who_come() {
    let site = Site::required();
    let mut car = site.enter("car");
    let other = Authority::new();
    site.settings.replace(other.server());
    let late = Quic::dial(&site.setup, &other, Some(other.issue("late")), b"mqtt");
    let mut late = Client::open(late.expect("let in"), Connect::new(V5, "late"));
    assert_eq!(late.connack().reason, ReasonCode::Success);
    let old = Some(site.authority.issue("old"));
    assert!(Quic::dial(&site.setup, &site.authority, old, b"mqtt").is_err());
    car.ping();

    // Settings that QUIC cannot use change nothing.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (chain, key) = other.issue("localhost");
    let old = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    site.settings.replace(old);
    let more = Quic::dial(&site.setup, &other, Some(other.issue("more")), b"mqtt");
    let mut more = Client::open(more.expect("let in"), Connect::new(V5, "more"));
    assert_eq!(more.connack().reason, ReasonCode::Success);
}

/// Early data could be replayed. Nothing of it may come to the broker's ears.
#[test]
fn early_data_is_refused() {
    let authority = Authority::new();
    let mut server = authority.server();
    // Somebody allowed it, and the client has a ticket that says so: here from another server with the
    // same tickets.
    server.max_early_data_size = u32::MAX;
    server.alpn_protocols = vec![b"mqtt".to_vec()];
    let mut client = tls(&authority, Some(authority.issue("car")), b"mqtt");
    client.enable_early_data = true;
    let client = quic(client);
    let giver = runtime();
    let lenient = giver.block_on(async {
        let crypto = QuicServerConfig::try_from(Arc::new(server.clone())).expect("TLS 1.3");
        Endpoint::new(
            EndpointConfig::default(),
            Some(quinn::ServerConfig::with_crypto(Arc::new(crypto))),
            UdpSocket::bind(localhost()).expect("a port"),
            Arc::new(TokioRuntime),
        )
        .expect("an endpoint")
    });
    let address = lenient.local_addr().expect("an address");
    giver.spawn(async move {
        while let Some(incoming) = lenient.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await.expect("shaken");
                // Tickets go before it.
                let mut hint = connection.open_uni().await.expect("a stream");
                hint.write_all(b"!").await.expect("taken");
                connection.closed().await
            });
        }
    });
    let tls = Tls {
        settings: TlsSettings::new(server),
        client_certificate: ClientCertificate::Required,
        web: None,
    };
    let setup = start(Transport::Quic(tls), Limits::default());

    let runtime = runtime();
    runtime.block_on(async {
        let endpoint = Endpoint::client(localhost()).expect("a socket");
        let connect = |addr| {
            endpoint
                .connect_with(client.clone(), addr, "localhost")
                .expect("a good configuration")
        };
        let first = connect(address).await.expect("shaken");
        let mut hint = first.accept_uni().await.expect("a stream");
        hint.read_exact(&mut [0])
            .await
            .expect("the tickets are here");
        let early = connect(address).into_0rtt();
        let (_second, accepted) = early.expect("a ticket for early data");
        assert!(accepted.await, "the other server takes it");
        let early = connect(setup.addr).into_0rtt();
        let (connection, accepted) = early.expect("another ticket");
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        let mut bytes = mqtt::BytesMut::new();
        let packet = mqtt::Packet::from(Connect::new(V5, "replayed"));
        mqtt::encode(&packet, V5, &mut bytes).expect("a packet");
        let _ = send.write_all(&bytes).await;
        assert!(!accepted.await, "early data is not taken");
        assert!(recv.read(&mut [0; 8]).await.is_err());
        // The connection as such is good.
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        let mut bytes = mqtt::BytesMut::new();
        let packet = mqtt::Packet::from(Connect::new(V5, "car"));
        mqtt::encode(&packet, V5, &mut bytes).expect("a packet");
        send.write_all(&bytes).await.expect("taken");
        let mut answer = [0; 1];
        recv.read_exact(&mut answer).await.expect("CONNACK");
        assert_eq!(answer, [0x20]);
    });
    assert_eq!(setup.handle.stats().connects_accepted, 1);
}

/// Passes datagrams of one client on, and keeps the first byte of each that the broker sends.
fn relay(runtime: &Runtime, broker: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let first_bytes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&first_bytes);
    let (near, far) = runtime.block_on(async {
        let bind = || tokio::net::UdpSocket::bind(localhost());
        (bind().await.expect("a port"), bind().await.expect("a port"))
    });
    let address = near.local_addr().expect("an address");
    runtime.spawn(async move {
        let (mut there, mut back) = ([0; 2048], [0; 2048]);
        let mut client = None;
        loop {
            tokio::select! {
                came = near.recv_from(&mut there) => {
                    let (len, from) = came.expect("a datagram");
                    client = Some(from);
                    far.send_to(&there[..len], broker).await.expect("sent");
                }
                came = far.recv_from(&mut back) => {
                    let (len, _) = came.expect("a datagram");
                    seen.lock().unwrap().push(back[0]);
                    let client = client.expect("it spoke first");
                    near.send_to(&back[..len], client).await.expect("sent");
                }
            }
        }
    });
    (address, first_bytes)
}

#[test]
fn under_load_an_address_is_proven_first() {
    // With one handshake at once, every client comes under load.
    for (max_handshakes, proof) in [(1024, false), (1, true)] {
        let limits = Limits {
            max_handshakes,
            ..Limits::default()
        };
        let site = Site::open(ClientCertificate::Required, limits);
        let runtime = runtime();
        let (address, first_bytes) = relay(&runtime, site.setup.addr);
        let own = site.authority.issue("car");
        let config = quic(tls(&site.authority, Some(own), b"mqtt"));
        let stream = Quic::dial_with(address, config).expect("let in");
        let mut car = Client::open(stream, Connect::new(V5, "car"));
        assert_eq!(car.connack().reason, ReasonCode::Success);
        // RFC 9000 section 17.2.5: a long header of type 3.
        let is_retry = first_bytes.lock().unwrap()[0] & 0xF0 == 0xF0;
        assert_eq!(is_retry, proof);
        car.leave();
        // Each gave its turn back.
        site.enter("next").leave();
    }
}

/// Where each that comes is counted, whoever sends a datagram in another's name must not be.
#[test]
fn where_connects_have_a_rate_every_address_is_proven_first() {
    let rate = || Some(Rate::new(1000.try_into().expect("not 0"), 1000));
    let of_all = Limits {
        connect_rate: rate(),
        ..Limits::default()
    };
    let of_listener = ListenerLimits {
        connect_rate: rate(),
        ..ListenerLimits::default()
    };
    let rows = [
        (of_all, ListenerLimits::default()),
        (Limits::default(), of_listener),
    ];
    for (limits, own) in rows {
        let authority = Authority::new();
        let settings = TlsSettings::new(authority.server());
        let quic_listener = ListenerConfig {
            limits: own,
            ..listener(Transport::Quic(Tls::new(settings)))
        };
        let setup = start_listener(quic_listener, limits);
        let runtime = runtime();
        let (address, first_bytes) = relay(&runtime, setup.addr);
        let config = quic(tls(&authority, Some(authority.issue("car")), b"mqtt"));
        let stream = Quic::dial_with(address, config).expect("let in");
        let mut car = Client::open(stream, Connect::new(V5, "car"));
        assert_eq!(car.connack().reason, ReasonCode::Success);
        // RFC 9000 section 17.2.5: a long header of type 3.
        assert_eq!(first_bytes.lock().unwrap()[0] & 0xF0, 0xF0);
    }
}

fn count(counters: &[(&str, u64)], name: &str) -> u64 {
    let found = counters.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1
}

/// It repeats what was not answered, for seconds, and is one client all the same.
#[test]
fn who_comes_in_overload_is_refused_once_and_after_a_while() {
    let limits = Limits {
        max_loop_delay: Duration::from_secs(1),
        retry_spread: Duration::from_secs(8),
        ..Limits::default()
    };
    let site = Site::open(ClientCertificate::Required, limits);
    let setup = &site.setup;
    let handle = setup.handle.clone();
    // The outside does not answer, so a worker that asks it hangs.
    let stuck = setup.outside.barred.lock().unwrap();
    let mut asks = Client::open(site.dial("asks"), Connect::new(V5, "asks"));
    until("it is noticed", || handle.overload().refusing);
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let own = site.authority.issue(&format!("late-{n}"));
            let config = quic(tls(&site.authority, Some(own), b"mqtt"));
            let addr = setup.addr;
            std::thread::spawn(move || Quic::dial_with(addr, config).map(drop))
        })
        .collect();
    let mut ends = Vec::new();
    for client in clients {
        ends.push(client.join().expect("no panic").expect_err("refused"));
    }
    for end in ends {
        assert!(
            matches!(&end, ConnectionError::ConnectionClosed(_)),
            "told so: {end:?}"
        );
    }
    let stats = handle.stats();
    assert_eq!(count(&stats.refused(), "overload"), 4);
    drop(stuck);
    assert_eq!(asks.connack().reason, ReasonCode::Success);
    until("their places are free", || {
        handle.stats().pending_connections == 0
    });
}

#[test]
fn an_address_of_bad_certificates_alone_is_held_off() {
    let limits = Limits {
        hold_off: HoldOff {
            // Ten handshakes are one failure.
            failures: 1,
            ..HoldOff::default()
        },
        ..Limits::default()
    };
    let site = Site::open(ClientCertificate::Required, limits);
    let (setup, stranger) = (&site.setup, Authority::new());
    let rows = [
        (Some(stranger.issue("car")), "bad_certificate", 5),
        (None, "no_certificate", 5),
    ];
    for (own, kind, times) in rows {
        for n in 1..=times {
            assert!(setup.handle.held_off().is_empty());
            let own = own
                .as_ref()
                .map(|(chain, key)| (chain.clone(), key.clone_key()));
            // The client is done before the broker has looked.
            if let Ok(client) = Quic::dial(setup, &site.authority, own, b"mqtt") {
                client.closed();
            }
            until("it is counted", || {
                count(&setup.handle.stats().handshakes_failed(), kind) == n
            });
        }
    }
    until("it is held off", || !setup.handle.held_off().is_empty());
    let held = setup.handle.held_off();
    let own = site.authority.issue("car");
    let config = quic(tls(&site.authority, Some(own), b"mqtt"));
    let refused = Quic::dial_with(setup.addr, config.clone()).map(drop);
    assert!(
        matches!(&refused, Err(ConnectionError::ConnectionClosed(_))),
        "{refused:?}"
    );
    assert!(setup.handle.release(&held[0].target));
    let stream = Quic::dial_with(setup.addr, config).expect("let in");
    let mut car = Client::open(stream, Connect::new(V5, "car"));
    assert_eq!(car.connack().reason, ReasonCode::Success);
}

#[test]
fn a_broker_that_stops_tells_its_clients_and_ends() {
    let site = Site::required();
    let mut car = site.enter("car");
    // One that has not come as far as CONNECT.
    let pending = site.dial("pending");
    let handle = site.setup.handle.clone();
    let report = std::thread::spawn(move || wait(handle.shutdown(PATIENCE)));
    assert_eq!(car.farewell(), Some(ReasonCode::ServerShuttingDown));
    assert_eq!(car.next(), None);
    assert!(code(car.stream.closed()).is_some());
    // In the words of the transport, if the broker had not finished its handshake (RFC 9000 section 10.2.3).
    let told = pending.closed();
    assert!(
        matches!(
            told,
            ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_)
        ),
        "{told}"
    );
    let report = report.join().expect("no panic");
    assert_eq!(report.outcome, ShutdownOutcome::Drained);
}

#[test]
fn a_handle_that_is_dropped_ends_everything() {
    let site = Site::required();
    let car = site.enter("car");
    let Site { setup, .. } = site;
    drop(setup);
    assert!(code(car.stream.closed()).is_some());
}

#[test]
fn the_socket_may_be_the_callers() {
    let authority = Authority::new();
    let socket = UdpSocket::bind(localhost()).expect("a port");
    let addr = socket.local_addr().expect("an address");
    let tls = Tls {
        settings: TlsSettings::new(authority.server()),
        client_certificate: ClientCertificate::Required,
        web: None,
    };
    let config = |bind: Bind, transport| {
        BrokerConfig::new(vec![ListenerConfig::new("quic", bind, transport)])
    };
    let hooks = || Arc::new(common::Outside::default());
    let broker = config(socket.into(), Transport::Quic(tls.clone()));
    let handle = Broker::start(broker, hooks()).expect("starts");
    assert_eq!(handle.listeners()[0].addr, addr);
    drop(handle);

    let tcp = std::net::TcpListener::bind(localhost()).expect("a port");
    let wrong = Broker::start(config(tcp.into(), Transport::Quic(tls)), hooks());
    assert!(matches!(wrong, Err(StartError::Bind { .. })));
    let udp = UdpSocket::bind(localhost()).expect("a port");
    let wrong = Broker::start(config(udp.into(), Transport::Tcp), hooks());
    assert!(matches!(wrong, Err(StartError::Bind { .. })));
}

#[test]
fn tls_1_2_alone_is_not_enough() {
    let authority = Authority::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (chain, key) = authority.issue("localhost");
    let old = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let tls = Tls {
        settings: TlsSettings::new(old),
        client_certificate: ClientCertificate::Optional,
        web: None,
    };
    let config = BrokerConfig::new(vec![ListenerConfig::new(
        "quic",
        localhost(),
        Transport::Quic(tls),
    )]);
    let error = Broker::start(config, Arc::new(common::Outside::default()));
    assert!(matches!(error, Err(StartError::Quic { .. })));
}
