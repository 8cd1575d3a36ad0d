//! A broker on loopback, an outside that the test plays, and a small blocking client.

#![allow(dead_code)] // each test binary uses its part

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use broker::{
    Acknowledge, Broker, BrokerConfig, BrokerHandle, ConnectAttempt, Decision, Hooks, Identity,
    Limits, ListenerConfig, Refusal, Tap, Transport,
};
use mqtt::{
    BytesMut, ConnAck, Connect, Decoder, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    SubscribeProperties, Subscription, TopicFilter, Version,
};

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The outside: topics below `log/` are tapped, and the test says when they are durable.
#[derive(Default)]
pub struct Outside {
    untold: Mutex<Vec<Acknowledge>>,
    arrived: Condvar,
    pub barred: Mutex<Vec<String>>,
    /// Leaf certificate of the last client, if it had one.
    pub last_certificate: Mutex<Option<Vec<u8>>>,
}

impl Hooks for Outside {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        *self.last_certificate.lock().unwrap() =
            attempt.certificates.first().map(|leaf| leaf.to_vec());
        let principal = attempt.username.unwrap_or(attempt.client_id);
        match self.barred.lock().unwrap().iter().any(|b| b == principal) {
            true => Err(Refusal::new(ReasonCode::NotAuthorized, "barred")),
            false => Ok(Identity::new(attempt.client_id, principal)),
        }
    }

    fn may_publish(&self, _: &Identity, _: &str) -> Decision {
        Decision::Allow
    }

    fn may_subscribe(&self, _: &Identity, _: &str) -> Decision {
        Decision::Allow
    }

    fn tap(&self, _: &Identity, publish: &Publish, received_us: i64, done: Acknowledge) -> Tap {
        assert!(received_us > 1_600_000_000_000_000, "the wall clock");
        if !publish.topic.starts_with("log/") {
            return Tap::NotWanted;
        }
        self.untold.lock().unwrap().push(done);
        self.arrived.notify_all();
        Tap::Taken
    }
}

impl Outside {
    /// Waits until `count` messages are tapped and not told, and takes them.
    pub fn tapped(&self, count: usize) -> Vec<Acknowledge> {
        let (mut untold, wait) = self
            .arrived
            .wait_timeout_while(self.untold.lock().unwrap(), PATIENCE, |u| u.len() < count)
            .unwrap();
        assert!(!wait.timed_out(), "only {} messages came", untold.len());
        std::mem::take(&mut *untold)
    }
}

pub struct Setup {
    pub handle: BrokerHandle,
    pub outside: Arc<Outside>,
    pub addr: SocketAddr,
}

/// A broker with two workers on a port of its own.
pub fn start(transport: Transport, limits: Limits) -> Setup {
    let outside = Arc::new(Outside::default());
    let mut config = BrokerConfig::new(vec![ListenerConfig {
        name: "test".into(),
        bind: SocketAddr::from(([127, 0, 0, 1], 0)).into(),
        transport,
    }]);
    config.limits = limits;
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

pub fn start_tcp() -> Setup {
    start(Transport::Tcp, Limits::default())
}

/// Waits for something that the broker does in its own time.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

pub fn dial(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the broker listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    stream.set_write_timeout(Some(PATIENCE)).expect("settable");
    stream.set_nodelay(true).expect("settable");
    stream
}

/// A client that reads and writes when told.
pub struct Client<S = TcpStream> {
    pub stream: S,
    decoder: Decoder,
    buf: BytesMut,
    version: Version,
}

impl Client {
    /// Connects with CONNECT of this name and expects to be accepted.
    pub fn new(setup: &Setup, version: Version, name: &str) -> Client {
        let mut client = Client::open(dial(setup.addr), Connect::new(version, name));
        assert_eq!(client.connack().reason, ReasonCode::Success);
        client
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends CONNECT over a transport that stands.
    pub fn open(stream: S, connect: Connect) -> Client<S> {
        let version = connect.version;
        let mut client = Client {
            stream,
            decoder: Decoder::for_client(version, u32::MAX),
            buf: BytesMut::new(),
            version,
        };
        client.send(connect);
        client
    }

    pub fn send(&mut self, packet: impl Into<Packet>) {
        let bytes = self.encode(packet);
        self.stream.write_all(&bytes).expect("the broker reads");
    }

    pub fn encode(&self, packet: impl Into<Packet>) -> BytesMut {
        let mut out = BytesMut::new();
        mqtt::encode(&packet.into(), self.version, &mut out).expect("a valid packet");
        out
    }

    /// The next packet; `None` once the broker closed the connection.
    pub fn next(&mut self) -> Option<Packet> {
        loop {
            let packet = self.decoder.decode(&mut self.buf);
            if let Some(packet) = packet.expect("the broker sends MQTT") {
                return Some(packet);
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.buf.extend_from_slice(&chunk[..count]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => panic!("nothing came"),
                // A TLS peer that is gone without close_notify, or a reset.
                Err(_) => return None,
            }
        }
    }

    pub fn connack(&mut self) -> ConnAck {
        match self.next() {
            Some(Packet::ConnAck(ack)) => *ack,
            other => panic!("no CONNACK but {other:?}"),
        }
    }

    pub fn message(&mut self) -> Publish {
        match self.next() {
            Some(Packet::Publish(publish)) => *publish,
            other => panic!("no message but {other:?}"),
        }
    }

    pub fn puback(&mut self) -> (u16, ReasonCode) {
        match self.next() {
            Some(Packet::PubAck(ack)) => (ack.packet_id.get(), ack.reason),
            other => panic!("no PUBACK but {other:?}"),
        }
    }

    /// What the broker says last; nothing may come between.
    pub fn farewell(&mut self) -> Option<ReasonCode> {
        match self.next() {
            None => None,
            Some(Packet::Disconnect(disconnect)) => {
                assert_eq!(self.next(), None);
                Some(disconnect.reason)
            }
            Some(other) => panic!("no farewell but {other:?}"),
        }
    }

    pub fn subscribe(&mut self, filter: &str, qos: QoS) {
        let filter = TopicFilter::parse(filter).expect("a valid filter");
        self.send(Subscribe {
            packet_id: PacketId::FIRST,
            subscriptions: vec![Subscription::new(filter, qos)],
            properties: SubscribeProperties::default(),
        });
        match self.next() {
            Some(Packet::SubAck(ack)) => assert_eq!(ack.reasons, [ReasonCode::granted(qos)]),
            other => panic!("no SUBACK but {other:?}"),
        }
    }

    /// A round trip: all that was sent before has been handled.
    pub fn ping(&mut self) {
        self.send(Packet::PingReq);
        assert_eq!(self.next(), Some(Packet::PingResp));
    }
}

pub fn qos0(topic: &str, payload: impl AsRef<[u8]>) -> Publish {
    Publish {
        topic: topic.into(),
        payload: payload.as_ref().to_vec().into(),
        ..Publish::default()
    }
}

pub fn qos1(id: u16, topic: &str, payload: impl AsRef<[u8]>) -> Publish {
    Publish {
        qos: QoS::AtLeastOnce,
        packet_id: PacketId::new(id),
        ..qos0(topic, payload)
    }
}

/// Runs an asynchronous call of the handle.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(future)
}
