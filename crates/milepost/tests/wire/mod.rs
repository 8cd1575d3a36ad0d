//! MQTT of the tests' own, packet by packet over any stream: plain, behind a PROXY header, over TLS with
//! whatever certificate, name and version a story needs. Blocking, with patience.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use bytes::BytesMut;
use mqtt::{
    ConnAck, Connect, Decoder, Disconnect, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    Subscription, TopicFilter, TopicName, Version, encode,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    client::WantsClientCert,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::harness::{PATIENCE, Serving};

/// A stream that a client can speak over.
pub trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// One MQTT connection.
pub struct Wire {
    version: Version,
    stream: Box<dyn Stream>,
    decoder: Decoder,
    read: BytesMut,
    next_id: u16,
}

/// A TCP connection that waits no longer than a test does.
pub fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// A device's key and certificate, PEM.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub certificate: &'a str,
    pub key: &'a str,
}

/// How a client speaks TLS.
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsClient {
    /// Trusts the CAs in `trusted` (PEM), asks for `name`.
    pub fn new(trusted: &str, name: &str, device: Option<Pair<'_>>) -> TlsClient {
        TlsClient::speaking(trusted, name, device, rustls::ALL_VERSIONS)
    }

    /// As [`TlsClient::new`], in these versions only.
    pub fn speaking(
        trusted: &str,
        name: &str,
        device: Option<Pair<'_>>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> TlsClient {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
            roots.add(certificate.expect("PEM")).expect("a CA");
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        TlsClient {
            config: Arc::new(with_device(builder, device)),
            name: ServerName::try_from(name.to_owned()).expect("a name"),
        }
    }

    /// Asks by ALPN for one protocol.
    pub fn asking_for(mut self, protocol: &str) -> TlsClient {
        let config = Arc::get_mut(&mut self.config).expect("nobody else has it yet");
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        self
    }

    /// Connects and shakes hands.
    pub fn dial(
        &self,
        address: SocketAddr,
    ) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let connection = ClientConnection::new(self.config.clone(), self.name.clone())
            .map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, tcp(address));
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    /// The certificate that the server shows, DER.
    pub fn shown(&self, address: SocketAddr) -> Vec<u8> {
        let stream = self.dial(address).expect("a handshake");
        let chain = stream.conn.peer_certificates().expect("a certificate");
        chain[0].to_vec()
    }
}

fn with_device(
    builder: rustls::ConfigBuilder<ClientConfig, WantsClientCert>,
    device: Option<Pair<'_>>,
) -> ClientConfig {
    let Some(Pair { certificate, key }) = device else {
        return builder.with_no_client_auth();
    };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    builder.with_client_auth_cert(chain, key).expect("a pair")
}

/// Whether patience is at its end.
fn waited(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

impl Wire {
    /// Says CONNECT; the connection and the answer, whatever it is.
    pub fn connect(stream: impl Stream + 'static, connect: Connect) -> (Wire, ConnAck) {
        Wire::try_connect(stream, connect).expect("CONNACK, not the end")
    }

    /// As [`Wire::connect`]; `None` if the server ends it without an answer.
    pub fn try_connect(stream: impl Stream + 'static, connect: Connect) -> Option<(Wire, ConnAck)> {
        let mut wire = Wire {
            version: connect.version,
            stream: Box::new(stream),
            decoder: Decoder::for_client(connect.version, 1 << 20),
            read: BytesMut::new(),
            next_id: 0,
        };
        wire.try_send(Packet::Connect(Box::new(connect))).ok()?;
        match wire.next()? {
            Packet::ConnAck(answer) => Some((wire, *answer)),
            other => panic!("not CONNACK: {other:?}"),
        }
    }

    /// A clean MQTT 5 session that must be accepted.
    pub fn open(stream: impl Stream + 'static, client_id: &str) -> Wire {
        let (wire, answer) = Wire::connect(stream, Connect::new(Version::V5, client_id));
        assert_eq!(answer.reason, ReasonCode::Success);
        wire
    }

    pub fn send(&mut self, packet: Packet) {
        self.try_send(packet).expect("written");
    }

    fn try_send(&mut self, packet: Packet) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        encode(&packet, self.version, &mut bytes).expect("a packet");
        self.stream.write_all(&bytes)?;
        self.stream.flush()
    }

    /// The next packet; `None` once the server has closed.
    pub fn next(&mut self) -> Option<Packet> {
        let mut chunk = [0; 4096];
        loop {
            let decoded = self.decoder.decode(&mut self.read);
            if let Some(packet) = decoded.expect("a packet") {
                return Some(packet);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.read.extend_from_slice(&chunk[..count]),
                Err(error) if waited(&error) => panic!("nothing came: {error}"),
                // Cut, reset, or ended by an alert of TLS.
                Err(_) => return None,
            }
        }
    }

    /// Waits for the end of the connection; the reason in DISCONNECT, if one came.
    pub fn end(&mut self) -> Option<ReasonCode> {
        let mut reason = None;
        while let Some(packet) = self.next() {
            if let Packet::Disconnect(disconnect) = packet {
                reason = Some(disconnect.reason);
            }
        }
        reason
    }

    fn packet_id(&mut self) -> PacketId {
        self.next_id += 1;
        PacketId::new(self.next_id).expect("not 0")
    }

    /// Subscribes at QoS 1; the answer.
    pub fn subscribe(&mut self, filter: &str) -> ReasonCode {
        let packet_id = self.packet_id();
        let filter = TopicFilter::parse(filter).expect("a filter");
        self.send(Packet::Subscribe(Subscribe {
            packet_id,
            subscriptions: vec![Subscription::new(filter, QoS::AtLeastOnce)],
            properties: Default::default(),
        }));
        loop {
            match self.next() {
                Some(Packet::SubAck(answer)) => return answer.reasons[0],
                // Of an earlier subscription.
                Some(Packet::Publish(_)) => {}
                other => panic!("not SUBACK: {other:?}"),
            }
        }
    }

    /// Publishes at QoS 1; the answer.
    pub fn publish(&mut self, topic: &str, payload: &str) -> ReasonCode {
        let packet_id = self.packet_id();
        self.send(Packet::Publish(Box::new(Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: TopicName::parse(topic).expect("a topic").into(),
            packet_id: Some(packet_id),
            properties: Default::default(),
            payload: payload.to_owned().into(),
        })));
        loop {
            match self.next() {
                Some(Packet::PubAck(answer)) => return answer.reason,
                Some(Packet::Publish(_)) => {}
                other => panic!("not PUBACK: {other:?}"),
            }
        }
    }

    /// The next message, acknowledged.
    pub fn message(&mut self) -> (String, String) {
        match self.next() {
            Some(Packet::Publish(publish)) => {
                if let Some(packet_id) = publish.packet_id {
                    self.send(Packet::PubAck(mqtt::PubAck::success(packet_id)));
                }
                let payload = String::from_utf8(publish.payload.to_vec()).expect("UTF-8");
                (publish.topic.to_string(), payload)
            }
            other => panic!("not a message: {other:?}"),
        }
    }

    /// Says goodbye, and waits until the server has closed: it is gone then, also for others.
    pub fn leave(mut self) {
        self.send(Packet::Disconnect(Disconnect::default()));
        self.end();
    }
}

/// A vehicle with one device and its certificate, registered by the command line.
pub struct Car {
    pub device: String,
    pub certificate: String,
    pub key: String,
    /// The fleet CA, PEM.
    pub ca: String,
}

impl Car {
    /// Vehicle `car-1` with device `car-1-tcu` and so on; its files in a folder beside the data.
    pub fn register(serving: &Serving, number: u32) -> Car {
        let (vehicle, device) = (format!("car-{number}"), format!("car-{number}-tcu"));
        serving.client_ok(&["vehicle", "create", "--id", &vehicle]);
        serving.client_ok(&["device", "create", "--vehicle", &vehicle, "--id", &device]);
        let folder = serving.data_dir.with_extension(&device);
        let out = folder.to_str().expect("UTF-8");
        serving.client_ok(&["cert", "new", "--device", &device, "--out", out]);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("written");
        Car {
            certificate: read("cert.pem"),
            key: read("key.pem"),
            ca: read("ca.pem"),
            device,
        }
    }

    pub fn pair(&self) -> Pair<'_> {
        Pair {
            certificate: &self.certificate,
            key: &self.key,
        }
    }

    /// How it connects to this machine.
    pub fn tls(&self) -> TlsClient {
        TlsClient::new(&self.ca, "localhost", Some(self.pair()))
    }

    /// A connection at `address` under this client id.
    pub fn open(&self, address: SocketAddr, client_id: &str) -> Wire {
        let stream = self.tls().dial(address).expect("a handshake");
        Wire::open(stream, client_id)
    }
}

/// The address behind `listening on PROTOCOL://…`, the first of it.
pub fn address(serving: &Serving, protocol: &str) -> SocketAddr {
    let prefix = format!("listening on {protocol}://");
    let mut lines = serving.start_up.iter();
    let found = lines.find_map(|line| line.strip_prefix(&prefix));
    let found = found.unwrap_or_else(|| panic!("no {protocol}: {:?}", serving.start_up));
    found.parse().expect("an address")
}

/// What `/metrics` says of one series, such as `milepost_mqtt_connections`.
pub fn metric(serving: &Serving, series: &str) -> Option<f64> {
    // Another test of this process may have been first.
    let _ = aws_lc_rs::default_provider().install_default();
    let url = format!("{}/metrics", serving.api);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let text = runtime.block_on(async {
        let answer = reqwest::get(url).await.expect("sent");
        answer.text().await.expect("text")
    });
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(value.parse().expect("a number"))
}
