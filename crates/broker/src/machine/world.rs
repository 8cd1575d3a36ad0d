//! A broker of a few shards with its time, its mail and its outside in a test's hand.
//!
//! A client is a connection and a decoder for what it is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use bytes::BytesMut;
use journal::{Batch, Condition, Position};
use mqtt::{
    ConnAck, Connect, Decoder, Packet, PacketId, Publish, QoS, ReasonCode, SubAck, Subscribe,
    SubscribeProperties, Subscription, TopicFilter, Version, Will, WillProperties,
};

use super::Moment;
use super::connection::Appetite;
use super::exchange::Exchange;
use super::mailbox::Mail;
use super::outbox::More;
use super::shard::Shard;
use super::slots::ConnectionId;
use super::store::{Forgetful, Store};
use super::tenants::{Origin, Rest};
use crate::acknowledge::Acknowledge;
use crate::hooks::{
    AuthStep, ConnectAttempt, Decision, EnhancedAuthentication, Hooks, Identity, Refusal, Tap,
};
use crate::limits::Limits;
use crate::presence::{Presence, PresenceEvent};
use crate::transport::Protocol;

/// The outside as the stories need it.
#[derive(Default)]
pub(crate) struct Outside {
    /// Topics below `log/` are tapped and wait here for the test's word.
    pub(crate) untold: Mutex<Vec<(String, Acknowledge)>>,
    pub(crate) barred: Mutex<Vec<String>>,
    /// Presence events, client and what.
    pub(crate) told: Mutex<Vec<(String, String)>>,
    /// Runs once, in the middle of the next authentication.
    #[allow(clippy::type_complexity)] // a test's one-off
    pub(crate) meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Hooks for Outside {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        let principal = attempt.username.unwrap_or(attempt.client_id);
        let barred = self.barred.lock().unwrap().iter().any(|b| b == principal);
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        match barred {
            true => Err(Refusal::new(ReasonCode::NotAuthorized, "barred")),
            // More than a CONNACK can say.
            false if principal == "verbose" => Ok(Identity::new(attempt.client_id, principal)
                .with_response_information("x".repeat(70_000))),
            false => Ok(Identity::new(attempt.client_id, principal)),
        }
    }

    fn begin_authentication(
        &self,
        _: &ConnectAttempt<'_>,
        method: &str,
    ) -> Option<Box<dyn EnhancedAuthentication>> {
        (method == "endless").then(|| Box::new(Endless) as _)
    }

    fn may_publish(&self, _: &Identity, topic: &str) -> Decision {
        match topic.starts_with("forbidden/") {
            true => Decision::Deny,
            false => Decision::Allow,
        }
    }

    fn may_subscribe(&self, _: &Identity, filter: &str) -> Decision {
        self.may_publish(&Identity::new("", ""), filter)
    }

    fn presence(&self, event: &Presence<'_>) {
        let what = match event.what {
            PresenceEvent::Connected { .. } => "connected".to_owned(),
            PresenceEvent::Disconnected { by, .. } => format!("disconnected by {}", by.name()),
            PresenceEvent::ConnectFailed { reason, .. } => format!("failed: {reason}"),
            PresenceEvent::Subscribed { filters } => format!("subscribed {filters:?}"),
            PresenceEvent::Unsubscribed { filters } => format!("unsubscribed {filters:?}"),
        };
        let event = (event.client_id.to_owned(), what);
        self.told.lock().unwrap().push(event);
    }

    fn tap(&self, _: &Identity, publish: &Publish, _: i64, done: Acknowledge) -> Tap {
        match &*publish.topic {
            "log/at-once" => {
                done.done(Ok(()));
                Tap::Taken
            }
            "log/lost" => {
                drop(done);
                Tap::Taken
            }
            "log/refused" => Tap::Refused(ReasonCode::QuotaExceeded),
            topic if topic.starts_with("log/") => {
                self.untold.lock().unwrap().push((topic.to_owned(), done));
                Tap::Taken
            }
            _ => Tap::NotWanted,
        }
    }
}

/// An authentication that always wants to hear more.
struct Endless;

impl EnhancedAuthentication for Endless {
    fn step(&mut self, _: &[u8]) -> AuthStep {
        AuthStep::Continue(mqtt::Bytes::new())
    }
}

/// A store that is as slow as the test wants.
#[derive(Default)]
pub(crate) struct Slow {
    pub(crate) submitted: AtomicU64,
    durable: AtomicU64,
    stalled: AtomicBool,
}

impl Store for Slow {
    fn submit(&self, _: Batch) -> Position {
        Position::new(self.submitted.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn durable(&self) -> Position {
        Position::new(self.durable.load(Ordering::Relaxed))
    }

    fn condition(&self) -> Condition {
        match self.stalled.load(Ordering::Relaxed) {
            true => Condition::Stalled,
            false => Condition::Ready,
        }
    }
}

pub(crate) fn slow_world(limits: Limits) -> (World, Arc<Slow>) {
    let store = Arc::new(Slow::default());
    (World::over(limits, Arc::clone(&store) as _), store)
}

pub(crate) struct World {
    pub(crate) outside: Arc<Outside>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) now: Moment,
    pub(crate) decoders: HashMap<ConnectionId, Decoder>,
}

/// What a client sees at one look.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) packets: Vec<Packet>,
    /// The broker closed the connection.
    pub(crate) closed: bool,
}

impl World {
    pub(crate) fn new() -> World {
        World::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> World {
        World::over(limits, Arc::new(Forgetful::default()))
    }

    pub(crate) fn over(limits: Limits, store: Arc<dyn Store>) -> World {
        let outside = Arc::new(Outside::default());
        let now = Moment {
            tick: 0,
            wall_us: 1_700_000_000_000_000,
        };
        let hooks: Arc<dyn Hooks> = Arc::clone(&outside) as _;
        let exchange = Arc::new(Exchange::new(hooks, limits, 3, now, 0, store));
        let shards = (0..3)
            .map(|n| Shard::new(n, Arc::clone(&exchange), now))
            .collect();
        World {
            outside,
            exchange,
            shards,
            now,
            decoders: HashMap::new(),
        }
    }

    /// A transport stands on shard `shard`; nothing is said yet.
    pub(crate) fn dial(&mut self, shard: usize) -> ConnectionId {
        let origin = Origin {
            listener: "test".into(),
            peer: "192.0.2.1:4711".parse().expect("an address"),
            protocol: Protocol::Mqtt,
            certificates: Vec::new(),
            proxied: None,
        };
        self.shards[shard].open(origin).expect("there is room")
    }

    /// Hands in one packet, without letting any mail arrive.
    pub(crate) fn put(&mut self, id: ConnectionId, packet: impl Into<Packet>) {
        let shard = &mut self.shards[id.shard()];
        if shard.appetite(id) == Appetite::Hungry {
            shard.packet(id, packet.into());
        }
        shard.settle();
    }

    /// A connection that belongs to another shard moves there; returns its id there.
    pub(crate) fn settle_in(&mut self, id: ConnectionId) -> ConnectionId {
        let Some(departure) = self.shards[id.shard()].departure(id) else {
            return id;
        };
        let to = departure.to();
        let moved = self.shards[to].arrive(departure).expect("there is room");
        if let Some(decoder) = self.decoders.remove(&id) {
            self.decoders.insert(moved, decoder);
        }
        self.deliver_mail();
        moved
    }

    /// Hands in one packet and lets everything that follows happen.
    pub(crate) fn send(&mut self, id: ConnectionId, packet: impl Into<Packet>) {
        self.put(id, packet);
        self.deliver_mail();
    }

    pub(crate) fn deliver_mail(&mut self) {
        let mut mail = VecDeque::new();
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for (number, shard) in self.shards.iter_mut().enumerate() {
                if self.exchange.mailbox(number).take(&mut mail, Waker::noop()) {
                    while !mail.is_empty() {
                        // Everyone has a turn, and finds the socket full.
                        for id in self.decoders.keys() {
                            shard.sleep(*id, Rest::Blocked, Waker::noop());
                        }
                        shard.mail(&mut mail);
                        shard.settle();
                    }
                    quiet = false;
                }
            }
        }
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now.tick += seconds * 1000;
        for shard in &mut self.shards {
            shard.set_time(self.now);
            shard.turn();
            shard.settle();
        }
        self.deliver_mail();
    }

    pub(crate) fn connect(&mut self, shard: usize, connect: Connect) -> ConnectionId {
        let id = self.dial(shard);
        let decoder = Decoder::for_client(connect.version, u32::MAX);
        self.decoders.insert(id, decoder);
        self.send(id, connect);
        self.settle_in(id)
    }

    /// A client that is connected.
    pub(crate) fn client(&mut self, shard: usize, version: Version, name: &str) -> ConnectionId {
        let id = self.connect(shard, Connect::new(version, name));
        assert_eq!(self.connack(id).reason, ReasonCode::Success);
        id
    }

    pub(crate) fn subscriber(
        &mut self,
        shard: usize,
        version: Version,
        name: &str,
        filter: &str,
        qos: QoS,
    ) -> ConnectionId {
        let id = self.client(shard, version, name);
        assert_eq!(self.subscribe(id, filter, qos), [ReasonCode::granted(qos)]);
        id
    }

    pub(crate) fn subscribe(
        &mut self,
        id: ConnectionId,
        filter: &str,
        qos: QoS,
    ) -> Vec<ReasonCode> {
        self.subscribe_with(id, filter, |s| s.qos = qos)
    }

    pub(crate) fn subscribe_with(
        &mut self,
        id: ConnectionId,
        filter: &str,
        set: impl FnOnce(&mut Subscription),
    ) -> Vec<ReasonCode> {
        let mut subscribe = subscribe_to(filter);
        set(&mut subscribe.subscriptions[0]);
        self.send(id, subscribe);
        match self.look(id).packets.pop() {
            Some(Packet::SubAck(SubAck { reasons, .. })) => reasons,
            other => panic!("no SUBACK but {other:?}"),
        }
    }

    /// What the client has been sent since the last look.
    pub(crate) fn look(&mut self, id: ConnectionId) -> Seen {
        let shard = &mut self.shards[id.shard()];
        let mut bytes = BytesMut::new();
        while shard.write(id, &mut bytes, usize::MAX) == More::Yes || shard.walk_on(id) {}
        let mut packets = Vec::new();
        if let Some(decoder) = self.decoders.get_mut(&id) {
            while let Some(packet) = decoder.decode(&mut bytes).expect("the broker sends MQTT") {
                packets.push(packet);
            }
        }
        assert!(bytes.is_empty(), "bytes that are no packet: {bytes:?}");
        Seen {
            packets,
            closed: shard.farewell(id).is_some(),
        }
    }

    pub(crate) fn connack(&mut self, id: ConnectionId) -> ConnAck {
        match self.look(id).packets.pop() {
            Some(Packet::ConnAck(ack)) => *ack,
            other => panic!("no CONNACK but {other:?}"),
        }
    }

    /// The messages a client got, as "topic: payload".
    pub(crate) fn messages(&mut self, id: ConnectionId) -> Vec<String> {
        self.look(id)
            .packets
            .into_iter()
            .map(|packet| match packet {
                Packet::Publish(p) => {
                    format!("{}: {}", p.topic, String::from_utf8_lossy(&p.payload))
                }
                other => panic!("not a message: {other:?}"),
            })
            .collect()
    }

    /// The PUBACKs a client got.
    pub(crate) fn pubacks(&mut self, id: ConnectionId) -> Vec<(u16, ReasonCode)> {
        self.look(id)
            .packets
            .into_iter()
            .map(|packet| match packet {
                Packet::PubAck(ack) => (ack.packet_id.get(), ack.reason),
                other => panic!("not a PUBACK: {other:?}"),
            })
            .collect()
    }

    /// The log tells the outcome of the `n`th message it has not told yet.
    pub(crate) fn tell(&mut self, n: usize, outcome: Result<(), ReasonCode>) {
        let (_, done) = self.outside.untold.lock().unwrap().remove(n);
        done.done(outcome);
        self.deliver_mail();
    }

    /// The store has all there is.
    pub(crate) fn stored(&mut self, store: &Slow) {
        let all = store.submitted.load(Ordering::Relaxed);
        store.durable.store(all, Ordering::Relaxed);
        store.stalled.store(false, Ordering::Relaxed);
        self.exchange
            .post_to_all(|| Mail::Stored(Position::new(all)));
        self.deliver_mail();
    }

    /// The store writes nothing any more, and says so.
    pub(crate) fn stall(&mut self, store: &Slow) {
        store.stalled.store(true, Ordering::Relaxed);
        self.exchange.post_to_all(|| Mail::Stalled);
        self.deliver_mail();
    }

    /// What the client was told before it was closed, as the last packet's reason.
    pub(crate) fn closed_with(&mut self, id: ConnectionId) -> Option<ReasonCode> {
        let seen = self.look(id);
        assert!(seen.closed, "still open; saw {:?}", seen.packets);
        match seen.packets.last() {
            Some(Packet::Disconnect(disconnect)) => Some(disconnect.reason),
            Some(Packet::ConnAck(ack)) => Some(ack.reason),
            _ => None,
        }
    }
}

/// CONNECT of a client whose session is stored.
pub(crate) fn lasting(name: &str) -> Connect {
    let mut connect = Connect::new(Version::V5, name);
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(3600);
    connect
}

/// SUBSCRIBE to one filter at QoS 0.
pub(crate) fn subscribe_to(filter: &str) -> Subscribe {
    let filter = TopicFilter::parse(filter).expect("a valid filter");
    Subscribe {
        packet_id: packet_id(9),
        subscriptions: vec![Subscription::new(filter, QoS::AtMostOnce)],
        properties: SubscribeProperties::default(),
    }
}

pub(crate) fn packet_id(n: u16) -> PacketId {
    PacketId::new(n).expect("not 0")
}

pub(crate) fn qos0(topic: &str, payload: &str) -> Publish {
    Publish {
        topic: topic.into(),
        payload: payload.to_owned().into(),
        ..Publish::default()
    }
}

pub(crate) fn qos1(id: u16, topic: &str, payload: &str) -> Publish {
    Publish {
        qos: QoS::AtLeastOnce,
        packet_id: Some(packet_id(id)),
        ..qos0(topic, payload)
    }
}

pub(crate) fn with_will(mut connect: Connect, topic: &str) -> Connect {
    connect.will = Some(Will {
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: mqtt::TopicName::parse(topic).expect("a topic"),
        payload: "gone".into(),
        properties: WillProperties::default(),
    });
    connect
}
