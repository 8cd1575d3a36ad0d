//! Follows the connections that a trace is about.
//!
//! A shard knows the traces that are running; mostly there are none, and the way of a packet is one
//! question longer. A connection that a trace is about carries a [`Tracer`], from the moment it matches:
//! at CONNECT by the client identifier it asks for, when it is known by its principal, or when the trace
//! begins. It goes with the connection when that moves to another shard.
//!
//! In: packets as decoded, before they are acted upon. Out: the bytes as written, decoded again, which
//! shows topic aliases, packet identifiers and order as the client sees them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::BytesMut;
use mqtt::{ConnAck, Decoder, Packet, PacketType, ReasonCode, Version};

use super::connection::End;
use super::description::Description;
use super::mailbox::Mail;
use super::shard::Shard;
use super::slots::ConnectionId;
use super::tenants::Tenant;
use crate::hooks::Identity;
use crate::trace::{Direction, Sink, TraceEvent};

/// What a traced connection carries.
pub(crate) struct Tracer {
    sinks: Vec<Arc<Sink>>,
    client_id: Arc<str>,
    principal: Option<Arc<str>>,
    peer: SocketAddr,
    /// Of what is sent; made for the first bytes.
    decoder: Option<Decoder>,
    /// What the topic aliases sent stand for, as far as it was seen.
    aliases: HashMap<NonZeroU16, Arc<str>>,
}

/// What a shard is told about traces.
#[derive(Debug)]
pub(crate) enum TraceOrder {
    Begin(Arc<Sink>),
    End(Arc<Sink>),
    /// It has ended: no connection in this slot or behind it is to carry it.
    Forget(Arc<Sink>, usize),
}

/// Connections looked at in one piece when a trace ends.
const SEARCHED: usize = if cfg!(test) { 16 } else { 4096 };

impl Tracer {
    fn new(client_id: Arc<str>, peer: SocketAddr) -> Tracer {
        Tracer {
            sinks: Vec::new(),
            client_id,
            principal: None,
            peer,
            decoder: None,
            aliases: HashMap::new(),
        }
    }

    fn has(&self, sink: &Arc<Sink>) -> bool {
        self.sinks.iter().any(|known| Arc::ptr_eq(known, sink))
    }

    /// Some trace may have ended while its connection was between two shards. Says whether that was all.
    pub(super) fn forget_ended(&mut self) -> bool {
        self.sinks.retain(|sink| sink.is_open());
        self.sinks.is_empty()
    }

    /// The connection is over.
    pub(super) fn ended(&self, at_us: i64, end: &End) {
        let by = super::announcing::disconnected_by(end).name();
        let (reason, detail) = (end.reason, end.detail.escape_debug());
        let line = format!("disconnected by={by} {reason} {detail}");
        let event = TraceEvent {
            reason: Some(end.reason),
            ..self.mark(at_us, "disconnected", line)
        };
        self.tell(&event, None);
    }

    /// An event that is not a packet.
    fn mark(&self, at_us: i64, kind: &'static str, packet: String) -> TraceEvent {
        TraceEvent {
            at_us,
            client_id: Arc::clone(&self.client_id),
            principal: self.principal.clone(),
            peer: self.peer,
            direction: Direction::None,
            kind,
            packet,
            topic: None,
            qos: None,
            packet_id: None,
            reason: None,
            bytes: 0,
            payload_bytes: None,
            payload: None,
            missed: 0,
        }
    }

    fn event(
        &self,
        at_us: i64,
        direction: Direction,
        packet: &Packet,
        topic: Option<&str>,
        bytes: usize,
    ) -> TraceEvent {
        let Description {
            kind,
            line,
            topic,
            qos,
            packet_id,
            reason,
            payload_bytes,
        } = Description::of(packet, topic);
        TraceEvent {
            direction,
            topic,
            qos,
            packet_id,
            reason,
            bytes,
            payload_bytes,
            ..self.mark(at_us, kind, line)
        }
    }

    fn tell(&self, event: &TraceEvent, packet: Option<&Packet>) {
        for sink in &self.sinks {
            tell(sink, event, packet);
        }
    }

    /// Decodes what was written. Without a decoder yet, `version` and the first byte say which one it
    /// takes.
    fn read(&mut self, at_us: i64, version: Version, written: &[u8]) {
        let mut rest = BytesMut::from(written);
        let first = written.first().and_then(|b| PacketType::from_bits(b >> 4));
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None if first == Some(PacketType::ConnAck) => Decoder::for_client(version, u32::MAX),
            None => connected(version),
        };
        loop {
            let before = rest.len();
            match decoder.decode(&mut rest) {
                Ok(Some(packet)) => {
                    let topic = self.resolve(&packet);
                    let bytes = before - rest.len();
                    let topic = topic.as_deref();
                    let event = self.event(at_us, Direction::Out, &packet, topic, bytes);
                    self.tell(&event, Some(&packet));
                }
                Ok(None) => break,
                Err(error) => {
                    // Ours, not the client's: worth seeing, and no reason to stop looking.
                    let line = format!("unreadable: {error}");
                    let event = TraceEvent {
                        direction: Direction::Out,
                        ..self.mark(at_us, "unreadable", line)
                    };
                    self.tell(&event, None);
                    decoder = connected(version);
                    break;
                }
            }
        }
        self.decoder = Some(decoder);
    }

    /// The topic of a message sent with an alias.
    fn resolve(&mut self, packet: &Packet) -> Option<Arc<str>> {
        let Packet::Publish(publish) = packet else {
            return None;
        };
        let alias = publish.properties.topic_alias?;
        if publish.topic.is_empty() {
            return self.aliases.get(&alias).cloned();
        }
        let topic: Arc<str> = (&*publish.topic).into();
        self.aliases.insert(alias, Arc::clone(&topic));
        Some(topic)
    }
}

/// Tells one trace, with what it may see of the payload.
fn tell(sink: &Sink, event: &TraceEvent, packet: Option<&Packet>) {
    let mut event = event.clone();
    if let Some(Packet::Publish(publish)) = packet {
        event.payload = sink.shown(&publish.payload);
    }
    sink.push(event);
}

/// A decoder for what comes after CONNACK.
fn connected(version: Version) -> Decoder {
    let mut decoder = Decoder::for_client(version, u32::MAX);
    let mut bytes = BytesMut::new();
    // It lets nothing else be the first, so it gets one.
    let greeting = ConnAck {
        session_present: false,
        reason: ReasonCode::Success,
        properties: mqtt::ConnAckProperties::default(),
    };
    if mqtt::encode(&greeting.into(), version, &mut bytes).is_ok() {
        let _ = decoder.decode(&mut bytes);
    }
    decoder
}

impl Shard {
    /// A trace begins or ends.
    pub(super) fn trace_order(&mut self, order: TraceOrder) {
        match order {
            TraceOrder::Begin(sink) => {
                if !sink.is_open() {
                    return;
                }
                for id in self.traced(&sink) {
                    self.follow(id, &sink, None);
                }
                self.traces.push(sink);
            }
            TraceOrder::End(sink) => {
                self.traces.retain(|known| !Arc::ptr_eq(known, &sink));
                self.forget(sink, 0);
            }
            TraceOrder::Forget(sink, from) => self.forget(sink, from),
        }
    }

    /// Takes a trace that has ended from those that carry it. All are asked, as some have no session to
    /// be found by: who authenticates, or is put off. Who comes from elsewhere forgets it on arrival.
    fn forget(&mut self, sink: Arc<Sink>, from: usize) {
        let (ids, next) = self.tenants.some(self.number, from, SEARCHED);
        for id in ids {
            let Some(tenant) = self.tenants.get(id) else {
                continue;
            };
            if let Some(tracer) = &mut tenant.tracer {
                tracer.sinks.retain(|known| !Arc::ptr_eq(known, &sink));
            }
            tenant.tracer.take_if(|tracer| tracer.sinks.is_empty());
        }
        if let Some(from) = next {
            // Behind what others want: their turn comes in between.
            self.mailbox
                .post(Mail::Trace(TraceOrder::Forget(sink, from)));
        }
    }

    /// The connections here that a trace is about.
    fn traced(&mut self, sink: &Sink) -> Vec<ConnectionId> {
        let mut sessions = Vec::new();
        for principal in &sink.principals {
            sessions.extend(self.principals.of(principal));
        }
        for client in &sink.clients {
            sessions.extend(self.clients.get(client));
        }
        let connection = |id| self.sessions.get(id).and_then(|s| s.connection());
        sessions.into_iter().filter_map(connection).collect()
    }

    /// Has a trace follow a connection. It is told of the CONNECT, where that is still at hand.
    fn follow(&mut self, id: ConnectionId, sink: &Arc<Sink>, known: Option<&Identity>) {
        let at_us = self.now.wall_us;
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Tenant {
            tracer,
            joiner,
            session,
            origin,
            connection,
            ..
        } = tenant;
        let requested = || joiner.as_ref().map(|joiner| &*joiner.connect.client_id);
        let session = session.and_then(|id| self.sessions.get(id));
        let tracer = tracer.get_or_insert_with(|| {
            let client_id = requested().unwrap_or_default().into();
            Box::new(Tracer::new(client_id, origin.peer))
        });
        match (known, session) {
            (Some(identity), _) => {
                tracer.client_id = Arc::clone(&identity.client_id);
                tracer.principal = Some(Arc::clone(&identity.principal));
            }
            (None, Some(session)) => {
                tracer.client_id = Arc::clone(&session.client_id);
                tracer.principal = Some(Arc::clone(&session.principal));
            }
            (None, None) => {}
        }
        if tracer.has(sink) {
            return;
        }
        tracer.sinks.push(Arc::clone(sink));
        if let Some(joiner) = joiner {
            let version = connection.version();
            let packet = Packet::Connect(joiner.connect.clone());
            let bytes = mqtt::encoded_len(&packet, version).unwrap_or(0);
            let event = tracer.event(at_us, Direction::In, &packet, None, bytes);
            tell(sink, &event, None);
        }
    }

    /// It is known who a connection is.
    pub(super) fn trace_known(&mut self, id: ConnectionId, identity: &Identity) {
        let concerns = |sink: &Sink| {
            sink.principals.contains(&identity.principal)
                || sink.clients.contains(&identity.client_id)
        };
        for sink in self.traces.clone() {
            if concerns(&sink) {
                self.follow(id, &sink, Some(identity));
            }
        }
        // The name it asked for counted as long as nobody knew who it is. Anybody may ask for any.
        if let Some(tenant) = self.tenants.get(id)
            && let Some(tracer) = &mut tenant.tracer
        {
            tracer.sinks.retain(|sink| concerns(sink));
            tenant.tracer.take_if(|tracer| tracer.sinks.is_empty());
        }
    }

    /// A connection came from another shard.
    pub(super) fn trace_arrival(&mut self, id: ConnectionId) {
        let joiner = self.tenants.get(id).and_then(|t| t.joiner.as_ref());
        let known = joiner.and_then(|joiner| joiner.known.as_ref());
        if let Some(identity) = known.map(|(identity, _)| identity.clone()) {
            self.trace_known(id, &identity);
        }
    }

    /// A packet came.
    pub(super) fn trace_in(&mut self, id: ConnectionId, packet: &Packet) {
        let at_us = self.now.wall_us;
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let mut version = tenant.connection.version();
        if let Packet::Connect(connect) = packet {
            version = connect.version;
            for sink in &self.traces {
                if sink.clients.contains(&*connect.client_id) {
                    let peer = tenant.origin.peer;
                    let client_id = || (&*connect.client_id).into();
                    let tracer = tenant
                        .tracer
                        .get_or_insert_with(|| Box::new(Tracer::new(client_id(), peer)));
                    tracer.sinks.push(Arc::clone(sink));
                }
            }
        }
        let Some(tracer) = &tenant.tracer else {
            return;
        };
        let topic = match packet {
            Packet::Publish(publish) => publish
                .properties
                .topic_alias
                .and_then(|alias| tenant.connection.topic_of(alias.get())),
            _ => None,
        };
        let bytes = mqtt::encoded_len(packet, version).unwrap_or(0);
        let event = tracer.event(at_us, Direction::In, packet, topic, bytes);
        tracer.tell(&event, Some(packet));
    }

    /// What came is not a packet.
    pub(super) fn trace_malformed(&mut self, id: ConnectionId, error: &mqtt::DecodeError) {
        self.trace_mark(id, "malformed", Some(error.reason()), || {
            format!("malformed: {error}")
        });
    }

    /// These bytes were written.
    pub(super) fn trace_out(&mut self, id: ConnectionId, written: &[u8]) {
        let at_us = self.now.wall_us;
        if let Some(tenant) = self.tenants.get(id)
            && let Some(tracer) = &mut tenant.tracer
            && !written.is_empty()
        {
            tracer.read(at_us, tenant.connection.version(), written);
        }
    }

    /// CONNACK with success is on its way.
    pub(super) fn trace_connected(&mut self, id: ConnectionId) {
        self.trace_mark(id, "connected", None, || "connected".to_owned());
    }

    /// The connection is over.
    pub(super) fn trace_end(&mut self, id: ConnectionId, end: &End) {
        let at_us = self.now.wall_us;
        if let Some(tracer) = self.tenants.get(id).and_then(|t| t.tracer.as_ref()) {
            tracer.ended(at_us, end);
        }
    }

    fn trace_mark(
        &mut self,
        id: ConnectionId,
        kind: &'static str,
        reason: Option<ReasonCode>,
        line: impl FnOnce() -> String,
    ) {
        let at_us = self.now.wall_us;
        if let Some(tracer) = self.tenants.get(id).and_then(|t| t.tracer.as_ref()) {
            let event = TraceEvent {
                reason,
                ..tracer.mark(at_us, kind, line())
            };
            tracer.tell(&event, None);
        }
    }
}
