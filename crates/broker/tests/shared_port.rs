//! One TLS port for MQTT and HTTP: who gets what, and how an HTTP connection is handed over.

mod common;

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use broker::{
    ClientCertificate, Limits, TlsSettings, Transport, Web, WebConnection, WebIo, WebService,
};
use common::certificates::{Asks, Authority, TLS_VERSIONS, Tls, dial_tls};
use common::{Client, Setup, start, until};
use mqtt::{Connect, ReasonCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

/// Answers each request with what it was, in a runtime of its own.
struct Mirror {
    runtime: Option<Runtime>,
    seen: Mutex<Vec<String>>,
}

impl Mirror {
    fn new() -> Arc<Mirror> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Arc::new(Mirror {
            runtime: Some(runtime.expect("a runtime")),
            seen: Mutex::default(),
        })
    }
}

impl Drop for Mirror {
    /// Also on a thread of the broker, where a runtime may not simply be dropped.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl WebService for Mirror {
    fn serve(&self, connection: WebConnection) {
        assert!(connection.peer.ip().is_loopback());
        let said = format!(
            "{} with {} certificates",
            connection.listener,
            connection.certificates.len()
        );
        self.seen.lock().unwrap().push(said);
        let runtime = self.runtime.as_ref().expect("there until the end");
        runtime.spawn(async move {
            let io = connection.into_io().expect("this runtime has IO");
            // The client's end decides when it is over.
            let _ = mirror(io).await;
        });
    }
}

async fn mirror(mut io: WebIo) -> std::io::Result<()> {
    let mut request = Vec::new();
    loop {
        // Small, so that what was read before comes in pieces too.
        let mut piece = [0; 7];
        let count = io.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        request.extend_from_slice(&piece[..count]);
        if request.ends_with(b"\r\n\r\n") {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                request.len()
            );
            io.write_all(head.as_bytes()).await?;
            io.write_all(&request).await?;
            io.flush().await?;
            request.clear();
        }
    }
}

fn start_shared(authority: &Authority, other: Option<Arc<Mirror>>, limits: Limits) -> Setup {
    let tls = broker::Tls {
        settings: TlsSettings::new(authority.server(Asks::Accepts)),
        client_certificate: ClientCertificate::Optional,
        web: Some(Web {
            websocket: None,
            other: other.map(|service| service as Arc<dyn WebService>),
        }),
    };
    start(Transport::Tls(tls), limits)
}

const REQUEST: &str = "GET /api/v1/vehicles HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Sends a request and expects the mirror's answer.
fn expect_mirrored(stream: &mut Tls) {
    stream.write_all(REQUEST.as_bytes()).expect("taken");
    let len = REQUEST.len();
    let expected = format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n{REQUEST}");
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer), expected);
}

/// Sends a request and says what comes back until the connection is closed.
fn ask(stream: &mut Tls) -> String {
    stream.write_all(REQUEST.as_bytes()).expect("taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("closed in order");
    answer
}

#[test]
fn mqtt_and_http_share_a_port_by_alpn_and_by_first_bytes() {
    let authority = Authority::new();
    let service = Mirror::new();
    let setup = start_shared(&authority, Some(Arc::clone(&service)), Limits::default());
    for version in TLS_VERSIONS {
        for asked in [
            &["mqtt"][..],
            &["x-amzn-mqtt-ca"],
            &[],
            &["x-amzn-mqtt-ca", "http/1.1"],
        ] {
            let config = authority.client(&[version], None, asked);
            let connect = Connect::new(Version::V311, "car");
            let mut client = Client::open(dial_tls(setup.addr, &config), connect);
            assert_eq!(client.connack().reason, ReasonCode::Success, "{asked:?}");
            client.ping();
            client.leave();
        }
        for asked in [&["http/1.1"][..], &["h2", "http/1.1"], &[]] {
            let config = authority.client(&[version], None, asked);
            let mut stream = dial_tls(setup.addr, &config);
            // More than one request: the connection is the service's for good.
            expect_mirrored(&mut stream);
            expect_mirrored(&mut stream);
            assert_eq!(setup.handle.stats().web_connections, 1);
            drop(stream);
            until("it is over", || setup.handle.stats().web_connections == 0);
        }
        let config = authority.client(&[version], None, &["h2"]);
        let mut answer = Vec::new();
        let refused = dial_tls(setup.addr, &config).read_to_end(&mut answer);
        assert!(refused.is_err(), "an alert");
    }
    until("all are gone", || {
        setup.handle.stats().pending_connections == 0
    });
    assert_eq!(service.seen.lock().unwrap().len(), 6);
}

#[test]
fn the_service_sees_the_certificate_of_the_client() {
    let authority = Authority::new();
    let service = Mirror::new();
    let setup = start_shared(&authority, Some(Arc::clone(&service)), Limits::default());
    let own = authority.issue("person.example");
    for own in [Some(own), None] {
        let config = authority.client(&TLS_VERSIONS, own, &["http/1.1"]);
        expect_mirrored(&mut dial_tls(setup.addr, &config));
    }
    assert_eq!(
        *service.seen.lock().unwrap(),
        ["test with 1 certificates", "test with 0 certificates"]
    );
}

#[test]
fn http_without_a_service_is_told_so() {
    let authority = Authority::new();
    let setup = start_shared(&authority, None, Limits::default());
    for asked in [&["http/1.1"][..], &[]] {
        let config = authority.client(&TLS_VERSIONS, None, asked);
        let answer = ask(&mut dial_tls(setup.addr, &config));
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.contains(&format!("content-length: {}", text.len())),
            "{answer}"
        );
    }
    until("all are gone", || {
        setup.handle.stats().pending_connections == 0
    });
}

#[test]
fn too_many_http_connections_are_told_so_and_keep_no_client_out() {
    let authority = Authority::new();
    let limits = Limits {
        max_web_connections: 1,
        max_pending_connections: 1,
        ..Limits::default()
    };
    let setup = start_shared(&authority, Some(Mirror::new()), limits);
    let config = authority.client(&TLS_VERSIONS, None, &["http/1.1"]);
    let mut first = dial_tls(setup.addr, &config);
    expect_mirrored(&mut first);
    let answer = ask(&mut dial_tls(setup.addr, &config));
    assert!(
        answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{answer}"
    );
    assert_eq!(setup.handle.stats().web_refused, 1);
    until("the refused one is gone", || {
        setup.handle.stats().pending_connections == 0
    });

    // The one that stays takes no place among the connections that are not clients yet.
    let mqtt = authority.client(&TLS_VERSIONS, None, &["mqtt"]);
    let mut car = Client::open(
        dial_tls(setup.addr, &mqtt),
        Connect::new(Version::V5, "car"),
    );
    assert_eq!(car.connack().reason, ReasonCode::Success);
    expect_mirrored(&mut first);
    drop(first);
    until("its place is free", || {
        let stats = setup.handle.stats();
        (stats.web_connections, stats.pending_connections) == (0, 0)
    });
    expect_mirrored(&mut dial_tls(setup.addr, &config));
}

#[test]
fn who_does_not_say_what_it_wants_is_not_waited_for() {
    let authority = Authority::new();
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let setup = start_shared(&authority, Some(Mirror::new()), limits);
    let config = authority.client(&TLS_VERSIONS, None, &[]);
    let mut silent = dial_tls(setup.addr, &config);
    let mut answer = Vec::new();
    let _ = silent.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    until("it is counted", || {
        setup.handle.stats().connect_timeouts == 1
    });
    until("it is gone", || {
        setup.handle.stats().pending_connections == 0
    });
}

#[test]
fn what_is_neither_mqtt_nor_http_is_closed() {
    let authority = Authority::new();
    let setup = start_shared(&authority, Some(Mirror::new()), Limits::default());
    let config = authority.client(&TLS_VERSIONS, None, &[]);
    for bytes in [&b"\0\0\0\0"[..], b"get / http/1.1\r\n\r\n", b"\xff"] {
        let mut stream = dial_tls(setup.addr, &config);
        stream.write_all(bytes).expect("taken");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{bytes:?}");
    }
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

#[test]
fn a_broker_that_stops_leaves_the_service_its_connections() {
    let authority = Authority::new();
    let service = Mirror::new();
    let setup = start_shared(&authority, Some(Arc::clone(&service)), Limits::default());
    let config = authority.client(&TLS_VERSIONS, None, &["http/1.1"]);
    let mut stream = dial_tls(setup.addr, &config);
    expect_mirrored(&mut stream);
    common::wait(setup.handle.shutdown(Duration::from_secs(30)));
    expect_mirrored(&mut stream);
}
