//! A broker on loopback, an outside that the test plays, and a small blocking client.

#![allow(dead_code)] // each test binary uses its part

pub mod certificates;
pub mod witness;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use broker::{
    Acknowledge, AuthStep, Broker, BrokerConfig, BrokerHandle, ConnectAttempt, Decision, Denied,
    EnhancedAuthentication, HoldOff, Hooks, Identity, Limits, ListenerConfig, Proxied, Refusal,
    Store, StoreConfig, Tap, Transport, Visitor,
};
use mqtt::{
    Bytes, BytesMut, ConnAck, Connect, Decoder, Disconnect, Packet, PacketId, PubAck, PubComp,
    PubRec, PubRel, Publish, QoS, ReasonCode, SubAck, Subscribe, SubscribeProperties, Subscription,
    SubscriptionId, TopicFilter, UnsubAck, Unsubscribe, UnsubscribeProperties, Version, Will,
    WillProperties,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

/// Both protocols, for what they share.
pub const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

/// Every quality of service.
pub const QUALITIES: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a rule of the outside forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Publish,
    Subscribe,
    Receive,
}

/// The outside. Topics below `log/` are tapped, and the test says when they are durable; those
/// below `sour/` are refused by the tap. Enhanced authentication is by `riddle` and by `nod`.
#[derive(Default)]
pub struct Outside {
    untold: Mutex<Vec<Acknowledge>>,
    arrived: Condvar,
    /// Held by a test, the worker of a client called `hangs` stands still.
    pub hanging: Mutex<()>,
    pub barred: Mutex<Vec<String>>,
    /// Leaf certificate of the last client, if it had one.
    pub last_certificate: Mutex<Option<Vec<u8>>>,
    /// What the last client speaks, its address, and the proxy it came through.
    pub last_origin: Mutex<Option<(&'static str, SocketAddr, Option<Proxied>)>>,
    /// User name and password of the last client.
    pub last_credentials: Mutex<(Option<String>, Option<Vec<u8>>)>,
    /// Who may not do what below which prefix; `*` is everybody.
    rules: Mutex<Vec<(Access, String, String)>>,
}

impl Hooks for Outside {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        *self.last_certificate.lock().unwrap() =
            attempt.certificates.first().map(|leaf| leaf.to_vec());
        *self.last_origin.lock().unwrap() =
            Some((attempt.transport, attempt.peer, attempt.proxied.cloned()));
        *self.last_credentials.lock().unwrap() = (
            attempt.username.map(str::to_owned),
            attempt.password.map(<[u8]>::to_vec),
        );
        if attempt.client_id == "hangs" {
            drop(self.hanging.lock().unwrap());
        }
        let principal = attempt.username.unwrap_or(attempt.client_id);
        if self.barred.lock().unwrap().iter().any(|b| b == principal) {
            return Err(Refusal::new(ReasonCode::NotAuthorized, "barred"));
        }
        match (attempt.username, attempt.password) {
            (Some("moved"), _) => Err(Refusal::new(ReasonCode::ServerMoved, "moved")
                .with_server_reference("b.example:1883")),
            (_, Some(b"wrong")) => Err(Refusal::new(
                ReasonCode::BadUserNameOrPassword,
                "wrong password",
            )),
            _ => Ok(identity(attempt.client_id, principal)),
        }
    }

    fn may_publish(&self, who: &Identity, topic: &str) -> Decision {
        self.decide(Access::Publish, who, topic)
    }

    fn may_subscribe(&self, who: &Identity, filter: &str) -> Decision {
        self.decide(Access::Subscribe, who, filter)
    }

    fn may_receive(&self, who: &Identity, topic: &str) -> Decision {
        self.decide(Access::Receive, who, topic)
    }

    fn recall(&self, client_id: &str, principal: &str) -> Option<Identity> {
        let barred = self.barred.lock().unwrap().iter().any(|b| b == principal);
        (!barred).then(|| identity(client_id, principal))
    }

    fn begin_authentication(
        &self,
        attempt: &ConnectAttempt<'_>,
        method: &str,
    ) -> Option<Box<dyn EnhancedAuthentication>> {
        let identity = identity(
            attempt.client_id,
            attempt.username.unwrap_or(attempt.client_id),
        );
        match method {
            "riddle" => Some(Box::new(Riddle {
                identity,
                asked: false,
            })),
            "nod" => Some(Box::new(Nod(identity))),
            _ => None,
        }
    }

    fn tap(&self, _: &Identity, publish: &Publish, received_us: i64, done: Acknowledge) -> Tap {
        assert!(received_us > 1_600_000_000_000_000, "the wall clock");
        if publish.topic.starts_with("sour/") {
            return Tap::Refused(ReasonCode::PayloadFormatInvalid);
        }
        if !publish.topic.starts_with("log/") {
            return Tap::NotWanted;
        }
        self.untold.lock().unwrap().push(done);
        self.arrived.notify_all();
        Tap::Taken
    }
}

fn identity(client_id: &str, principal: &str) -> Identity {
    Identity::new(client_id, principal).with_response_information(format!("answers/{client_id}"))
}

/// Asks a question and wants "answer". "impostor" passes too, as somebody else.
struct Riddle {
    identity: Identity,
    asked: bool,
}

impl EnhancedAuthentication for Riddle {
    fn step(&mut self, data: &[u8]) -> AuthStep {
        if !self.asked {
            self.asked = true;
            return AuthStep::Continue([b"riddle for ", data].concat().into());
        }
        match data {
            b"answer" => AuthStep::Done {
                identity: self.identity.clone(),
                data: Some(Bytes::from_static(b"welcome")),
            },
            b"impostor" => AuthStep::Done {
                identity: identity(&self.identity.client_id, "impostor"),
                data: None,
            },
            _ => AuthStep::Refused(Refusal::new(ReasonCode::NotAuthorized, "wrong answer")),
        }
    }
}

/// Lets everybody in at once.
struct Nod(Identity);

impl EnhancedAuthentication for Nod {
    fn step(&mut self, _: &[u8]) -> AuthStep {
        AuthStep::Done {
            identity: self.0.clone(),
            data: None,
        }
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

    /// From now on `principal` (`*`: everybody) has no `access` below `prefix`.
    pub fn deny(&self, access: Access, principal: &str, prefix: &str) {
        let rule = (access, principal.to_owned(), prefix.to_owned());
        self.rules.lock().unwrap().push(rule);
    }

    fn decide(&self, access: Access, who: &Identity, topic: &str) -> Decision {
        let rules = self.rules.lock().unwrap();
        let denied = rules.iter().any(|(what, principal, prefix)| {
            *what == access
                && (principal == "*" || **principal == *who.principal)
                && topic.starts_with(prefix.as_str())
        });
        match denied {
            true => Decision::Deny,
            false => Decision::Allow,
        }
    }
}

pub struct Setup {
    pub handle: BrokerHandle,
    pub outside: Arc<Outside>,
    pub addr: SocketAddr,
}

/// A broker with two workers on a port of its own.
pub fn start(transport: Transport, limits: Limits) -> Setup {
    start_on(transport, limits, Store::Memory, Arc::default())
}

/// A listener on a port of its own.
pub fn listener(transport: Transport) -> ListenerConfig {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    ListenerConfig::new("test", loopback, transport)
}

/// The same for a listener that is more than its transport.
pub fn start_listener(listener: ListenerConfig, limits: Limits) -> Setup {
    open(listener, limits, Store::Memory, Arc::default())
}

fn start_on(transport: Transport, limits: Limits, store: Store, outside: Arc<Outside>) -> Setup {
    open(listener(transport), limits, store, outside)
}

fn open(listener: ListenerConfig, limits: Limits, store: Store, outside: Arc<Outside>) -> Setup {
    let mut config = BrokerConfig::new(vec![listener]);
    config.limits = unhurried(limits);
    config.workers = 2.try_into().ok();
    config.store = store;
    let hooks: Arc<dyn Hooks> = Arc::clone(&outside) as _;
    let handle = Broker::start(config, hooks).expect("starts");
    let addr = handle.listeners()[0].addr;
    Setup {
        handle,
        outside,
        addr,
    }
}

/// The same limits for a machine that is busy with other tests too: a broker that comes late to its
/// clients rightly refuses new ones, which is what only a test of that waits for.
pub fn unhurried(mut limits: Limits) -> Limits {
    if limits.max_loop_delay == Limits::default().max_loop_delay {
        limits.max_loop_delay = Duration::from_secs(60);
    }
    limits
}

/// A broker with the default limits, except that clients come and fail as often as the test likes.
pub fn start_tcp() -> Setup {
    let limits = Limits {
        hold_off: HoldOff {
            failures: 0,
            connects: 0,
            ..HoldOff::default()
        },
        ..Limits::default()
    };
    start(Transport::Tcp, limits)
}

pub fn start_with(limits: Limits) -> Setup {
    start(Transport::Tcp, limits)
}

/// A directory that outlives the brokers that run over it, one after the other.
pub struct Site {
    dir: TempDir,
    pub outside: Arc<Outside>,
    pub limits: Limits,
}

impl Site {
    pub fn new() -> Site {
        Site {
            dir: tempfile::tempdir().expect("a directory"),
            outside: Arc::default(),
            limits: Limits::default(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a broker over the directory.
    pub fn open(&self) -> Setup {
        let store = Store::Directory(StoreConfig::new(self.dir.path()));
        let outside = Arc::clone(&self.outside);
        start_on(Transport::Tcp, self.limits.clone(), store, outside)
    }

    /// Stops the broker and starts the next one. The clients of the first must be gone or must not
    /// mind.
    pub fn restart(&self, setup: Setup) -> Setup {
        wait(setup.handle.shutdown(PATIENCE));
        drop(setup);
        self.open()
    }
}

/// Somebody who comes without a connection of MQTT, from 192.0.2.7 and without a certificate.
pub fn visitor(setup: &Setup, client_id: &str, principal: &str) -> Result<Visitor, Denied> {
    visitor_from(setup, "192.0.2.7", &[], client_id, principal)
}

/// The same from somewhere, with certificates.
pub fn visitor_from(
    setup: &Setup,
    address: &str,
    certificates: &[CertificateDer<'static>],
    client_id: &str,
    principal: &str,
) -> Result<Visitor, Denied> {
    setup.handle.identify(&ConnectAttempt {
        listener: &"test".into(),
        transport: "https",
        peer: SocketAddr::new(address.parse().expect("an address"), 4711),
        proxied: None,
        client_id,
        username: Some(principal),
        password: None,
        certificates,
    })
}

impl Setup {
    /// The same broker, for another thread.
    pub fn again(&self) -> Setup {
        Setup {
            handle: self.handle.clone(),
            outside: Arc::clone(&self.outside),
            addr: self.addr,
        }
    }

    /// Connects, whatever the answer is.
    pub fn join(&self, connect: Connect) -> (Client, ConnAck) {
        let mut client = Client::open(dial(self.addr), connect);
        let ack = client.connack();
        (client, ack)
    }

    /// Connects and expects to be accepted.
    pub fn enter(&self, connect: Connect) -> Client {
        let (client, ack) = self.join(connect);
        assert_eq!(ack.reason, ReasonCode::Success);
        client
    }

    /// Connects and expects to find its session.
    pub fn resume(&self, connect: Connect) -> Client {
        let (client, ack) = self.join(connect);
        assert_eq!(ack.reason, ReasonCode::Success);
        assert!(ack.session_present, "the session is there");
        client
    }

    /// A client with a clean start.
    pub fn client(&self, version: Version, name: &str) -> Client {
        self.enter(Connect::new(version, name))
    }

    /// Waits until `count` clients are connected: all others are known to be gone.
    pub fn settled(&self, count: u64) {
        until(&format!("{count} connections"), || {
            self.handle.stats().connections == count
        });
    }
}

/// Waits for something that the broker does in its own time.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

/// Lets at least this much time pass. Only for what the specification itself measures in time:
/// that an interval is over is certain afterwards, however slow the machine is.
#[allow(
    clippy::disallowed_methods,
    reason = "the passing of time is the event"
)]
pub fn elapse(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::sleep(time.saturating_sub(start.elapsed()));
    }
}

pub fn dial(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the broker listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    stream.set_write_timeout(Some(PATIENCE)).expect("settable");
    stream.set_nodelay(true).expect("settable");
    stream
}

/// Sends `bytes` as they are; says what comes back until the broker closes the connection.
pub fn exchange_bytes(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = dial(addr);
    stream.write_all(bytes).expect("the broker reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("closed in order");
    answer
}

/// A client that reads and writes when told.
pub struct Client<S = TcpStream> {
    pub stream: S,
    decoder: Decoder,
    buf: BytesMut,
    version: Version,
    /// Packets that were read while another was looked for, oldest first.
    passed: VecDeque<Packet>,
}

impl Client {
    /// Connects with CONNECT of this name and expects to be accepted.
    pub fn new(setup: &Setup, version: Version, name: &str) -> Client {
        setup.client(version, name)
    }

    /// Breaks the connection with RST.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("settable");
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends CONNECT over a transport that stands.
    pub fn open(stream: S, connect: Connect) -> Client<S> {
        Client::open_with(stream, connect, [])
    }

    /// Sends CONNECT and what follows it in one go: no time passes between them, however slow the machine
    /// is.
    pub fn open_with(
        stream: S,
        connect: Connect,
        following: impl IntoIterator<Item = Packet>,
    ) -> Client<S> {
        let version = connect.version;
        let mut client = Client {
            stream,
            decoder: Decoder::for_client(version, u32::MAX),
            buf: BytesMut::new(),
            version,
            passed: VecDeque::new(),
        };
        let mut bytes = client.encode(connect);
        for packet in following {
            bytes.unsplit(client.encode(packet));
        }
        client.raw(&bytes);
        client
    }

    pub fn send(&mut self, packet: impl Into<Packet>) {
        let bytes = self.encode(packet);
        self.raw(&bytes);
    }

    /// Sends bytes that the codec would not make.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    pub fn encode(&self, packet: impl Into<Packet>) -> BytesMut {
        let mut out = BytesMut::new();
        mqtt::encode(&packet.into(), self.version, &mut out).expect("a valid packet");
        out
    }

    /// The next packet; `None` once the broker closed the connection.
    pub fn next(&mut self) -> Option<Packet> {
        if let Some(packet) = self.passed.pop_front() {
            return Some(packet);
        }
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

    /// The next packet that `pick` takes. Those before it stay for later, in their order.
    pub fn find<T>(&mut self, what: &str, pick: impl Fn(&Packet) -> Option<T>) -> T {
        let mut before = VecDeque::new();
        loop {
            let packet = self.next();
            let packet = packet.unwrap_or_else(|| panic!("closed before {what}: {before:?}"));
            if let Some(found) = pick(&packet) {
                before.append(&mut self.passed);
                self.passed = before;
                return found;
            }
            before.push_back(packet);
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

    pub fn pubrec(&mut self) -> (u16, ReasonCode) {
        match self.next() {
            Some(Packet::PubRec(ack)) => (ack.packet_id.get(), ack.reason),
            other => panic!("no PUBREC but {other:?}"),
        }
    }

    pub fn pubrel(&mut self) -> (u16, ReasonCode) {
        match self.next() {
            Some(Packet::PubRel(ack)) => (ack.packet_id.get(), ack.reason),
            other => panic!("no PUBREL but {other:?}"),
        }
    }

    pub fn pubcomp(&mut self) -> (u16, ReasonCode) {
        match self.next() {
            Some(Packet::PubComp(ack)) => (ack.packet_id.get(), ack.reason),
            other => panic!("no PUBCOMP but {other:?}"),
        }
    }

    pub fn suback(&mut self) -> SubAck {
        self.find("SUBACK", |packet| match packet {
            Packet::SubAck(ack) => Some(ack.clone()),
            _ => None,
        })
    }

    pub fn unsuback(&mut self) -> UnsubAck {
        self.find("UNSUBACK", |packet| match packet {
            Packet::UnsubAck(ack) => Some(ack.clone()),
            _ => None,
        })
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

    /// The broker closes the connection for `reason`, which only MQTT 5 hears.
    #[track_caller]
    pub fn is_closed_for(&mut self, reason: ReasonCode) {
        let expected = match self.version {
            Version::V311 => None,
            Version::V5 => Some(reason),
        };
        assert_eq!(self.farewell(), expected);
    }

    /// Subscribes and expects to get what was asked for.
    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, qos: QoS) {
        let reasons = self.ask(vec![wish(filter, qos)], None);
        assert_eq!(reasons, [ReasonCode::granted(qos)], "{filter}");
    }

    /// Subscribes and says what the broker granted.
    pub fn ask(&mut self, subscriptions: Vec<Subscription>, id: Option<u32>) -> Vec<ReasonCode> {
        let packet_id = PacketId::new(9_999).expect("not 0");
        self.send(Subscribe {
            packet_id,
            subscriptions,
            properties: SubscribeProperties {
                subscription_id: id.map(|id| SubscriptionId::new(id).expect("a valid id")),
                ..SubscribeProperties::default()
            },
        });
        let ack = self.suback();
        assert_eq!(ack.packet_id, packet_id);
        ack.reasons
    }

    pub fn unsubscribe(&mut self, filters: &[&str]) -> Vec<ReasonCode> {
        let packet_id = PacketId::new(9_998).expect("not 0");
        self.send(Unsubscribe {
            packet_id,
            filters: filters.iter().map(|text| filter(text)).collect(),
            properties: UnsubscribeProperties::default(),
        });
        let ack = self.unsuback();
        assert_eq!(ack.packet_id, packet_id);
        ack.reasons
    }

    /// A round trip: all that was sent before has been handled.
    pub fn ping(&mut self) {
        self.send(Packet::PingReq);
        self.find("PINGRESP", |packet| match packet {
            Packet::PingResp => Some(()),
            _ => None,
        });
    }

    /// Publishes and sees the exchange through. What the receiver said, if anything.
    pub fn publish(&mut self, publish: Publish) -> ReasonCode {
        let (qos, id) = (publish.qos, publish.packet_id);
        self.send(publish);
        match qos {
            QoS::AtMostOnce => ReasonCode::Success,
            QoS::AtLeastOnce => self.find("PUBACK", |packet| match packet {
                Packet::PubAck(ack) if Some(ack.packet_id) == id => Some(ack.reason),
                _ => None,
            }),
            QoS::ExactlyOnce => {
                let reason = self.find("PUBREC", |packet| match packet {
                    Packet::PubRec(ack) if Some(ack.packet_id) == id => Some(ack.reason),
                    _ => None,
                });
                if !reason.is_error() {
                    self.release(id.expect("QoS 2"));
                }
                reason
            }
        }
    }

    /// Sends PUBREL and waits for its PUBCOMP.
    pub fn release(&mut self, id: PacketId) {
        self.send(PubRel::success(id));
        let reason = self.find("PUBCOMP", |packet| match packet {
            Packet::PubComp(ack) if ack.packet_id == id => Some(ack.reason),
            _ => None,
        });
        assert_eq!(reason, ReasonCode::Success);
    }

    /// Takes the next message and acknowledges it in full.
    pub fn take(&mut self) -> Publish {
        let publish = self.find("a message", |packet| match packet {
            Packet::Publish(publish) => Some(Publish::clone(publish)),
            _ => None,
        });
        self.acknowledge(&publish);
        publish
    }

    /// Acknowledges a message in full.
    pub fn acknowledge(&mut self, publish: &Publish) {
        match (publish.qos, publish.packet_id) {
            (QoS::AtLeastOnce, Some(id)) => self.send(PubAck::success(id)),
            (QoS::ExactlyOnce, Some(id)) => {
                self.send(PubRec::success(id));
                let reason = self.find("PUBREL", |packet| match packet {
                    Packet::PubRel(ack) if ack.packet_id == id => Some(ack.reason),
                    _ => None,
                });
                assert_eq!(reason, ReasonCode::Success);
                self.send(PubComp::success(id));
            }
            _ => {}
        }
    }

    /// Takes the next message, as `topic: payload`.
    pub fn text(&mut self) -> String {
        text(&self.take())
    }

    /// Takes `count` messages.
    pub fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.text()).collect()
    }

    /// Says goodbye and waits until the broker has closed the connection.
    pub fn leave(self) {
        self.leave_with(Disconnect::default());
    }

    /// Says goodbye with these words and waits until the broker has closed the connection.
    pub fn leave_with(mut self, disconnect: Disconnect) {
        self.send(disconnect);
        while self.next().is_some() {}
    }
}

/// `topic: payload`.
pub fn text(publish: &Publish) -> String {
    let payload = String::from_utf8_lossy(&publish.payload);
    format!("{}: {payload}", publish.topic)
}

/// CONNECT for a session that outlives its connection, and to come back to it.
pub fn stored(version: Version, name: &str) -> Connect {
    let mut connect = Connect {
        clean_start: false,
        ..Connect::new(version, name)
    };
    if version == Version::V5 {
        connect.properties.session_expiry_interval = Some(3600);
    }
    connect
}

/// The same CONNECT with a will at QoS 0.
pub fn with_will(mut connect: Connect, topic: &str, payload: &str) -> Connect {
    connect.will = Some(Will {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: mqtt::TopicName::parse(topic).expect("a topic"),
        payload: payload.to_owned().into(),
        properties: WillProperties::default(),
    });
    connect
}

/// The same CONNECT, its will delayed by so many seconds.
pub fn delayed(mut connect: Connect, seconds: u32) -> Connect {
    let will = connect.will.as_mut().expect("it has a will");
    will.properties.will_delay_interval = Some(seconds);
    connect
}

pub fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).expect("a valid filter")
}

/// A subscription without options.
pub fn wish(text: &str, qos: QoS) -> Subscription {
    Subscription::new(filter(text), qos)
}

pub fn packet_id(id: u16) -> PacketId {
    PacketId::new(id).expect("not 0")
}

pub fn qos0(topic: &str, payload: impl AsRef<[u8]>) -> Publish {
    Publish {
        topic: topic.into(),
        payload: payload.as_ref().to_vec().into(),
        ..Publish::default()
    }
}

pub fn qos1(id: u16, topic: &str, payload: impl AsRef<[u8]>) -> Publish {
    message(QoS::AtLeastOnce, id, topic, payload)
}

pub fn qos2(id: u16, topic: &str, payload: impl AsRef<[u8]>) -> Publish {
    message(QoS::ExactlyOnce, id, topic, payload)
}

/// A message of any quality; QoS 0 leaves the id out.
pub fn message(qos: QoS, id: u16, topic: &str, payload: impl AsRef<[u8]>) -> Publish {
    Publish {
        qos,
        packet_id: match qos {
            QoS::AtMostOnce => None,
            _ => PacketId::new(id),
        },
        ..qos0(topic, payload)
    }
}

/// The same message, to be retained.
pub fn retained(publish: Publish) -> Publish {
    Publish {
        retain: true,
        ..publish
    }
}

/// The same message, marked as sent before.
pub fn again(publish: Publish) -> Publish {
    Publish {
        dup: true,
        ..publish
    }
}

/// The same message with so many seconds to live.
pub fn expiring(mut publish: Publish, seconds: u32) -> Publish {
    publish.properties.message_expiry_interval = Some(seconds);
    publish
}

/// Runs an asynchronous call of the handle.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(future)
}
