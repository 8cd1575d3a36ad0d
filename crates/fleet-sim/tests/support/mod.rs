//! Small servers for the tests: a broker that does as its script says, and a factory API. They
//! speak the real protocols and keep nothing.

#![allow(dead_code)] // each test file uses its part

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use fleet_sim::Credentials;
use mqtt::{
    ConnAck, Connect, Decoder, Disconnect, Packet, PubAck, PubComp, PubRec, PubRel, Publish, QoS,
    ReasonCode, SubAck, SubAckProperties, Version,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa,
    KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What the broker does.
#[derive(Clone, Default)]
pub struct Script {
    pub receive_maximum: Option<u16>,
    pub server_keep_alive: Option<u16>,
    /// Says that it still knows the session, from the second connection on.
    pub knows_session: bool,
    pub refuse: Option<ReasonCode>,
    /// Closes the first connection, acknowledging nothing, once it has this many messages.
    pub break_after: Option<usize>,
    /// Closes the first connection at the first PUBREL.
    pub break_at_release: bool,
    /// Acknowledges only when this many messages are open.
    pub hold: usize,
    pub never_acknowledge: bool,
    pub answer: ReasonCode,
    pub ignore_pings: bool,
    /// Sent to whoever subscribes. With QoS 2 it comes twice before it is released.
    pub greeting: Option<Publish>,
    /// Sent to whoever connects.
    pub waiting: Vec<Publish>,
    /// Said after the first message, and then the connection is closed.
    pub send_away: Option<ReasonCode>,
}

/// What the broker saw.
#[derive(Debug)]
pub enum Seen {
    Connect(usize, Box<Connect>),
    /// With the number of the connection, from 0, and how many were open then.
    Publish(usize, Box<Publish>, usize),
    Subscribe(usize, Vec<String>),
    PubAck(u16),
    PubRec(u16),
    PubRel(usize, u16),
    PubComp(u16, ReasonCode),
    Ping,
    Disconnect,
    Closed,
    /// Closed, and the client had another address than at first.
    Moved,
}

pub struct Broker {
    pub address: SocketAddr,
    pub seen: mpsc::UnboundedReceiver<Seen>,
}

impl Broker {
    pub async fn start(script: Script) -> Self {
        Self::serve(script, None).await
    }

    /// Demands certificates of `ca`.
    pub async fn start_tls(script: Script, ca: &TestCa) -> Self {
        Self::serve(script, Some(ca.server_config())).await
    }

    /// WebSocket on any path, in frames of at most `frame` bytes, over TLS if there is a CA.
    pub async fn start_web_socket(script: Script, frame: usize, ca: Option<&TestCa>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        let tls = ca.map(|ca| tokio_rustls::TlsAcceptor::from(ca.server_config()));
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((socket, _)) = listener.accept().await else {
                    return;
                };
                let (script, tell, tls) = (script.clone(), tell.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => web_socket(socket, frame, script, number, &tell).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(socket).await {
                                web_socket(stream, frame, script, number, &tell).await;
                            }
                        }
                    }
                    let _ = tell.send(Seen::Closed);
                });
            }
        });
        Self { address, seen }
    }

    /// The first stream of each QUIC connection; tells the address of a client that moved.
    pub async fn start_quic(script: Script, ca: &TestCa) -> Self {
        let mut tls = (*ca.server_config()).clone();
        tls.alpn_protocols = vec![b"mqtt".to_vec()];
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut number = 0;
            while let Some(incoming) = endpoint.accept().await {
                let (script, tell) = (script.clone(), tell.clone());
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await
                        && let Ok((send, receive)) = connection.accept_bi().await
                    {
                        let stream = tokio::io::join(receive, send);
                        let from = connection.remote_address();
                        converse(stream, script, number, &tell).await;
                        let moved = connection.remote_address() != from;
                        let _ = tell.send(if moved { Seen::Moved } else { Seen::Closed });
                    }
                });
                number += 1;
            }
        });
        Self { address, seen }
    }

    async fn serve(script: Script, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((socket, _)) = listener.accept().await else {
                    return;
                };
                let (script, tell, tls) = (script.clone(), tell.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(socket, script, number, &tell).await,
                        Some(config) => {
                            let acceptor = tokio_rustls::TlsAcceptor::from(config);
                            if let Ok(stream) = acceptor.accept(socket).await {
                                converse(stream, script, number, &tell).await;
                            }
                        }
                    }
                    let _ = tell.send(Seen::Closed);
                });
            }
        });
        Self { address, seen }
    }

    /// The next thing it sees that `pick` makes something of.
    pub async fn next<T>(&mut self, mut pick: impl FnMut(Seen) -> Option<T>) -> T {
        loop {
            let seen = self.seen.recv().await.expect("the broker lives on");
            if let Some(picked) = pick(seen) {
                return picked;
            }
        }
    }

    /// All messages until the client has taken leave.
    pub async fn messages_until_goodbye(&mut self) -> Vec<Publish> {
        let mut messages = Vec::new();
        loop {
            match self.seen.recv().await.expect("the broker lives on") {
                Seen::Publish(_, publish, _) => messages.push(*publish),
                Seen::Disconnect => return messages,
                _ => {}
            }
        }
    }
}

/// Speaks through a pipe, so that frames and packets have nothing to do with each other.
async fn web_socket<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    frame: usize,
    script: Script,
    number: usize,
    tell: &mpsc::UnboundedSender<Seen>,
) {
    use futures::{SinkExt as _, StreamExt as _};
    use reqwest::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
    use tokio_websockets::Message;

    let builder = tokio_websockets::ServerBuilder::new()
        .add_header(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"))
        .unwrap();
    let Ok((request, mut frames)) = builder.accept(stream).await else {
        return;
    };
    assert_eq!(request.headers()[SEC_WEBSOCKET_PROTOCOL], "mqtt");
    let (ours, mut pipe) = tokio::io::duplex(64 * 1024);
    let forward = async move {
        frames.send(Message::ping("are you there?")).await.unwrap();
        let mut buffer = vec![0; frame];
        loop {
            tokio::select! {
                message = frames.next() => match message {
                    Some(Ok(message)) if message.is_binary() => {
                        pipe.write_all(message.as_payload()).await.unwrap();
                    }
                    Some(Ok(message)) => assert!(!message.is_text()),
                    _ => return,
                },
                read = pipe.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => {
                        let _ = frames.close().await;
                        return;
                    }
                    Ok(count) => {
                        let message = Message::binary(buffer[..count].to_vec());
                        if frames.send(message).await.is_err() {
                            return;
                        }
                    }
                },
            }
        }
    };
    tokio::join!(converse(ours, script, number, tell), forward);
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: Script,
    number: usize,
    tell: &mpsc::UnboundedSender<Seen>,
) {
    let mut decoder = Decoder::for_server(1 << 20);
    let mut inbox = BytesMut::new();
    let mut open = Vec::new();
    let mut messages = 0;
    let mut version = Version::V5;
    loop {
        let mut out = BytesMut::new();
        while let Some(packet) = decoder
            .decode(&mut inbox)
            .expect("clients keep to the protocol")
        {
            match packet {
                Packet::Connect(connect) => {
                    version = connect.version;
                    let resumed = script.knows_session && number > 0;
                    let _ = tell.send(Seen::Connect(number, connect));
                    let mut hello = ConnAck::refusal(script.refuse.unwrap_or_default());
                    if script.refuse.is_none() {
                        hello.session_present = resumed;
                        if version == Version::V5 {
                            let properties = &mut hello.properties;
                            properties.receive_maximum =
                                script.receive_maximum.and_then(NonZeroU16::new);
                            properties.server_keep_alive = script.server_keep_alive;
                        }
                    } else if version == Version::V5 {
                        hello.properties.reason_string = Some("as the script says".into());
                    }
                    mqtt::encode(&hello.into(), version, &mut out).unwrap();
                    for publish in script.waiting.clone() {
                        mqtt::encode(&publish.into(), version, &mut out).unwrap();
                    }
                }
                Packet::Publish(publish) => {
                    messages += 1;
                    if let Some(id) = publish.packet_id {
                        open.push((id, publish.qos));
                    }
                    let _ = tell.send(Seen::Publish(number, publish, open.len()));
                    if let Some(reason) = script.send_away {
                        let away = Disconnect::new(reason);
                        mqtt::encode(&away.into(), version, &mut out).unwrap();
                    }
                }
                Packet::Subscribe(subscribe) => {
                    let filters = subscribe.subscriptions.iter();
                    let names = filters.clone().map(|s| s.filter.to_string()).collect();
                    let _ = tell.send(Seen::Subscribe(number, names));
                    let answer = SubAck {
                        packet_id: subscribe.packet_id,
                        reasons: filters.map(|s| ReasonCode::granted(s.qos)).collect(),
                        properties: SubAckProperties::default(),
                    };
                    mqtt::encode(&answer.into(), version, &mut out).unwrap();
                    if let Some(greeting) = script.greeting.clone() {
                        let twice = greeting.qos == QoS::ExactlyOnce;
                        let again = twice.then(|| Publish {
                            dup: true,
                            ..greeting.clone()
                        });
                        for publish in [greeting].into_iter().chain(again) {
                            mqtt::encode(&publish.into(), version, &mut out).unwrap();
                        }
                    }
                }
                Packet::PubAck(ack) => {
                    let _ = tell.send(Seen::PubAck(ack.packet_id.get()));
                }
                Packet::PubRec(ack) => {
                    let _ = tell.send(Seen::PubRec(ack.packet_id.get()));
                    let release = PubRel::success(ack.packet_id);
                    mqtt::encode(&release.into(), version, &mut out).unwrap();
                }
                Packet::PubRel(release) => {
                    let _ = tell.send(Seen::PubRel(number, release.packet_id.get()));
                    if number == 0 && script.break_at_release {
                        return;
                    }
                    let complete = PubComp::success(release.packet_id);
                    mqtt::encode(&complete.into(), version, &mut out).unwrap();
                }
                Packet::PubComp(ack) => {
                    let _ = tell.send(Seen::PubComp(ack.packet_id.get(), ack.reason));
                }
                Packet::PingReq => {
                    let _ = tell.send(Seen::Ping);
                    if !script.ignore_pings {
                        mqtt::encode(&Packet::PingResp, version, &mut out).unwrap();
                    }
                }
                Packet::Disconnect(_) => {
                    let _ = tell.send(Seen::Disconnect);
                    return;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        if number == 0 && script.break_after.is_some_and(|after| messages >= after) {
            return;
        }
        let breaks = number == 0 && script.break_after.is_some();
        if open.len() >= script.hold && !script.never_acknowledge && !breaks {
            for (id, qos) in open.drain(..) {
                let answer: Packet = match qos {
                    QoS::ExactlyOnce => PubRec::new(id, script.answer).into(),
                    _ => PubAck::new(id, script.answer).into(),
                };
                mqtt::encode(&answer, version, &mut out).unwrap();
            }
        }
        if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if script.send_away.is_some() && messages > 0 {
            let _ = stream.shutdown().await;
            return;
        }
        match stream.read_buf(&mut inbox).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// A message of QoS 1 for [`Script::greeting`].
pub fn greeting(topic: &str, id: u16) -> Publish {
    Publish {
        qos: QoS::AtLeastOnce,
        topic: topic.into(),
        packet_id: mqtt::PacketId::new(id),
        payload: "unlock".into(),
        ..Publish::default()
    }
}

/// A certificate authority.
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl TestCa {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test CA");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn sign(&self, csr: &str) -> String {
        let csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        csr.signed_by(&self.issuer).unwrap().pem()
    }

    pub fn device(&self, vehicle: &str) -> Credentials {
        let device = format!("{vehicle}-tcu");
        let request = fleet_sim::provision::KeyRequest::new(&device).unwrap();
        Credentials {
            vehicle_id: vehicle.to_owned(),
            chain_pem: self.sign(&request.csr_pem),
            key_pem: request.key_pem,
            ca_pem: self.pem(),
            not_after_us: i64::MAX,
            device_id: device,
        }
    }

    fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}

/// The part of the HTTP API that a factory uses.
pub struct Api {
    pub url: String,
    pub ca: Arc<TestCa>,
    pub certified: Arc<AtomicUsize>,
    pub requests: mpsc::UnboundedReceiver<(String, String)>,
}

#[derive(Default)]
struct Registry {
    vehicles: std::collections::HashMap<String, serde_json::Value>,
    devices: std::collections::HashMap<String, serde_json::Value>,
}

impl Api {
    /// `busy` requests are answered with 503 first.
    pub async fn start(ca: Arc<TestCa>, busy: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let certified = Arc::new(AtomicUsize::new(0));
        let (tell, requests) = mpsc::unbounded_channel();
        let registry = Arc::new(std::sync::Mutex::new(Registry::default()));
        let (signer, counter) = (Arc::clone(&ca), Arc::clone(&certified));
        let busy = Arc::new(AtomicUsize::new(busy));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (signer, counter, tell) = (signer.clone(), counter.clone(), tell.clone());
                let (registry, busy) = (registry.clone(), busy.clone());
                tokio::spawn(async move {
                    while let Some((line, body)) = request(&mut socket).await {
                        let _ = tell.send((line.clone(), body.clone()));
                        let was_busy = busy
                            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                                n.checked_sub(1)
                            })
                            .is_ok();
                        let (status, text) = if was_busy {
                            (503, problem("come back later"))
                        } else {
                            answer(&line, &body, &signer, &counter, &registry)
                        };
                        let head = format!(
                            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
                            text.len()
                        );
                        if socket.write_all((head + &text).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            url,
            ca,
            certified,
            requests,
        }
    }

    pub fn certified(&self) -> usize {
        self.certified.load(Ordering::Relaxed)
    }
}

async fn request(socket: &mut tokio::net::TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec())
        .unwrap()
        .to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim().parse::<usize>().unwrap());
    while bytes.len() < end + length {
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let line = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let line = line.lines().next().unwrap().replace(" HTTP/1.1", "");
    let body = String::from_utf8(bytes[end..end + length].to_vec()).unwrap();
    Some((line, body))
}

fn problem(detail: &str) -> String {
    serde_json::json!({ "type": "test", "title": "no", "detail": detail }).to_string()
}

fn answer(
    line: &str,
    body: &str,
    ca: &TestCa,
    certified: &AtomicUsize,
    registry: &std::sync::Mutex<Registry>,
) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let mut registry = registry.lock().unwrap();
    let (method, path) = line.split_once(' ').unwrap();
    let path: Vec<_> = path.trim_start_matches("/api/v1/").split('/').collect();
    match (method, path.as_slice()) {
        ("GET", ["ca"]) => (200, ca.pem()),
        ("PUT", ["models", _]) => (200, "{}".into()),
        ("POST", ["vehicles"]) => {
            let id = body["id"].as_str().unwrap().to_owned();
            if id == "forbidden" {
                return (403, problem("this vehicle is not yours"));
            }
            if registry.vehicles.contains_key(&id) {
                return (409, problem("exists"));
            }
            let text = body.to_string();
            registry.vehicles.insert(id, body);
            (201, text)
        }
        ("GET", ["vehicles", id]) => match registry.vehicles.get(*id) {
            Some(vehicle) => (200, vehicle.to_string()),
            None => (404, problem("no such vehicle")),
        },
        ("POST", ["vehicles", vehicle, "devices"]) => {
            let id = body["id"].as_str().unwrap().to_owned();
            if registry.devices.contains_key(&id) {
                return (409, problem("exists"));
            }
            let device = serde_json::json!({ "id": id, "vehicle_id": vehicle });
            let text = device.to_string();
            registry.devices.insert(id, device);
            (201, text)
        }
        ("GET", ["devices", id]) => match registry.devices.get(*id) {
            Some(device) => (200, device.to_string()),
            None => (404, problem("no such device")),
        },
        ("POST", ["devices", _, "certificates"]) => {
            certified.fetch_add(1, Ordering::Relaxed);
            let certificate = ca.sign(body["csr"].as_str().unwrap());
            let answer = serde_json::json!({
                "certificate": certificate,
                "chain": certificate + &ca.pem(),
                "serial": "01",
                "fingerprint": "00",
                "not_after": "2090-01-01T00:00:00Z",
            });
            (201, answer.to_string())
        }
        _ => (404, problem("no such path")),
    }
}
