//! The protocol of one connection: what each packet means at this point, and what to answer.
//!
//! In: packets, outcomes of the tap, the time, and word from elsewhere (taken over, disconnected,
//! stopping). Out: a list of [`Output`]s that the shard carries out in order. What needs other
//! connections or the outside (authenticate, subscribe, route) is an output; its answer comes back
//! as an input.
//!
//! ```text
//! Opening ──CONNECT──► Joining ──admitted──► Serving ──drain──► Draining ─┐
//!    └────────────────────┴──────────── ended ──┴────────────────────────┴──► Ended
//! ```

use std::borrow::Cow;

use mqtt::{
    ConnAck, ConnAckProperties, Connect, DecodeError, Disconnect, Packet, PacketId, PacketType,
    PubAck, PubComp, PubRel, Publish, QoS, ReasonCode, Subscribe, Unsubscribe, Utf8, Version,
};

use super::owed::Owed;
use super::will;
use super::{Moment, Receipt};
use crate::limits::Limits;

/// State of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    version: Version,
    /// Tick at which the last packet came.
    last_heard: u64,
    /// One and a half times the keep-alive in milliseconds; `None` without keep-alive.
    patience: Option<u64>,
    session_expiry: SessionExpiry,
    will: Option<Box<Publish>>,
    owed: Owed,
    /// Topics of the aliases in use, alias 1 first.
    aliases: Vec<Option<Utf8>>,
}

#[derive(Debug)]
enum Phase {
    /// No CONNECT yet.
    Opening { until: u64 },
    /// Identified; waits until nobody else has the client identifier.
    Joining { until: u64, answer: Box<ConnAck> },
    /// CONNACK is sent.
    Serving,
    /// Nothing more is read; PUBACKs are still owed.
    Draining,
    /// Over. Nothing changes this.
    Ended,
}

/// What the client said in CONNECT about its session; decides what DISCONNECT may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionExpiry {
    Zero,
    Asked,
}

/// What the shard is to do.
#[derive(Debug)]
pub(crate) enum Output {
    /// Send this packet.
    Send(Packet),
    /// Find out who this is; answer with [`Connection::identified`] or [`Connection::refuse`].
    Authenticate(Box<Connect>),
    /// Check, tap and route a message; if it has a receipt, answer with [`Connection::decide`].
    Publish(Box<Publish>, Receipt),
    /// Check and subscribe, then send SUBACK.
    Subscribe(Subscribe),
    /// Unsubscribe, then send UNSUBACK.
    Unsubscribe(Unsubscribe),
    /// The client has this message.
    Acknowledged(PacketId),
    /// The connection is over; close the transport once everything is sent.
    End(End),
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: ReasonCode,
    pub(crate) by: EndedBy,
    /// For the operator's log.
    pub(crate) detail: Cow<'static, str>,
    /// To be published now: the session ends with the connection, so a will delay never outlasts it
    /// [MQTT-3.1.3-9].
    pub(crate) will: Option<Box<Publish>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// DISCONNECT came.
    Client,
    /// The broker closes it.
    Broker,
    /// The broker closes it before it was connected.
    Refusal,
    /// The transport is gone.
    Network,
}

/// Whether the next packet may be handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appetite {
    Hungry,
    /// Not now. What was read must be kept.
    Waiting,
    /// Never again.
    Over,
}

impl Connection {
    pub(crate) fn new(now: Moment, limits: &Limits) -> Connection {
        Connection {
            phase: Phase::Opening {
                until: now.tick + limits.connect_timeout.as_millis() as u64,
            },
            version: Version::V311,
            last_heard: now.tick,
            patience: None,
            session_expiry: SessionExpiry::Zero,
            will: None,
            owed: Owed::default(),
            aliases: Vec::new(),
        }
    }

    /// The version of its packets; MQTT 3.1.1 until CONNECT says otherwise.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining)
    }

    pub(crate) fn appetite(&self, limits: &Limits) -> Appetite {
        match self.phase {
            Phase::Opening { .. } => Appetite::Hungry,
            // An MQTT 5 client knows our Receive Maximum and is closed for exceeding it; of an
            // MQTT 3.1.1 client we simply do not read.
            Phase::Serving
                if self.version == Version::V311
                    && self.owed.len() >= usize::from(limits.max_inflight) =>
            {
                Appetite::Waiting
            }
            Phase::Serving => Appetite::Hungry,
            Phase::Joining { .. } | Phase::Draining => Appetite::Waiting,
            Phase::Ended => Appetite::Over,
        }
    }

    /// When to call [`tick`](Connection::tick), if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Opening { until } | Phase::Joining { until, .. } => Some(until),
            Phase::Serving => self.patience.map(|patience| self.last_heard + patience),
            Phase::Draining | Phase::Ended => None,
        }
    }

    /// A packet came.
    pub(crate) fn packet(
        &mut self,
        now: Moment,
        limits: &Limits,
        packet: Packet,
        out: &mut Vec<Output>,
    ) {
        self.last_heard = now.tick;
        match (&self.phase, packet) {
            (Phase::Opening { .. }, Packet::Connect(connect)) => {
                self.connect(now, limits, connect, out);
            }
            // The codec lets nothing but CONNECT come first, and CONNECT come only once.
            (Phase::Opening { .. }, _) => self.end_refused(
                ReasonCode::ProtocolError,
                "the first packet is not CONNECT",
                out,
            ),
            (Phase::Serving, packet) => self.serve(limits, packet, out),
            (Phase::Joining { .. } | Phase::Draining | Phase::Ended, _) => {}
        }
    }

    /// What came is not a packet. `version` is that of CONNECT, if it got that far.
    pub(crate) fn malformed(
        &mut self,
        error: DecodeError,
        version: Option<Version>,
        out: &mut Vec<Output>,
    ) {
        let detail = error.to_string();
        match (&self.phase, version) {
            (Phase::Opening { .. }, Some(version)) => {
                self.version = version;
                self.refuse(error.reason(), detail, out);
            }
            // Not MQTT as we know it. A client of another MQTT version is told in the words of 3.1.1
            // [MQTT-3.1.2-2]; a stranger is told nothing.
            (Phase::Opening { .. }, None) => match error {
                DecodeError::UnsupportedVersion { .. } => {
                    self.refuse(error.reason(), detail, out);
                }
                _ => self.end_refused(error.reason(), detail, out),
            },
            _ => self.close(error.reason(), detail, out),
        }
    }

    /// The outside knows the client; CONNACK waits for [`admit`](Connection::admit).
    pub(crate) fn identified(&mut self, assigned_client_id: Option<Utf8>) {
        if let Phase::Joining { answer, .. } = &mut self.phase {
            answer.properties.assigned_client_id = assigned_client_id;
        }
    }

    /// What will be published when the client goes without a word.
    pub(crate) fn will(&self) -> Option<&Publish> {
        self.will.as_deref()
    }

    /// The client identifier is free.
    pub(crate) fn admit(&mut self, now: Moment, out: &mut Vec<Output>) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Joining { answer, .. } => {
                self.phase = Phase::Serving;
                self.last_heard = now.tick;
                out.push(Output::Send(Packet::ConnAck(answer)));
            }
            other => self.phase = other,
        }
    }

    /// Turns the CONNECT down.
    pub(crate) fn refuse(
        &mut self,
        reason: ReasonCode,
        detail: impl Into<Cow<'static, str>>,
        out: &mut Vec<Output>,
    ) {
        if self.is_ended() {
            return;
        }
        let said = match self.version {
            Version::V5 if reason.fits(PacketType::ConnAck) => Some(reason),
            Version::V5 => Some(ReasonCode::UnspecifiedError),
            // Where 3.1.1 has no code, the connection is closed without a word.
            Version::V311 => reason.connect_return_code().map(|_| reason),
        };
        if let Some(said) = said {
            out.push(Output::Send(ConnAck::refusal(said).into()));
        }
        self.end_refused(reason, detail, out);
    }

    /// Closes the connection for `reason`, in the words of its version.
    pub(crate) fn close(
        &mut self,
        reason: ReasonCode,
        detail: impl Into<Cow<'static, str>>,
        out: &mut Vec<Output>,
    ) {
        match self.phase {
            Phase::Ended => {}
            Phase::Opening { .. } => self.end_refused(reason, detail, out),
            Phase::Joining { .. } => {
                let reason = match reason {
                    ReasonCode::ServerShuttingDown => ReasonCode::ServerUnavailable,
                    other => other,
                };
                self.refuse(reason, detail, out);
            }
            Phase::Serving | Phase::Draining => {
                if self.version == Version::V5 {
                    let said = match reason {
                        reason if reason.may_server_disconnect_with() => reason,
                        ReasonCode::Banned => ReasonCode::AdministrativeAction,
                        _ => ReasonCode::UnspecifiedError,
                    };
                    out.push(Output::Send(Disconnect::new(said).into()));
                }
                let will = self.will.take();
                self.end(reason, EndedBy::Broker, detail.into(), will, out);
            }
        }
    }

    /// The transport is gone.
    pub(crate) fn lost(&mut self, detail: impl Into<Cow<'static, str>>, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Ended => {}
            Phase::Opening { .. } | Phase::Joining { .. } => {
                self.end_refused(ReasonCode::UnspecifiedError, detail, out);
            }
            Phase::Serving | Phase::Draining => {
                let will = self.will.take();
                self.end(
                    ReasonCode::UnspecifiedError,
                    EndedBy::Network,
                    detail.into(),
                    will,
                    out,
                );
            }
        }
    }

    /// Time has passed. Says whether the connection ran out of it.
    pub(crate) fn tick(&mut self, now: Moment, limits: &Limits, out: &mut Vec<Output>) -> TimedOut {
        if self.appetite(limits) == Appetite::Waiting && matches!(self.phase, Phase::Serving) {
            // We do not read, so silence is not the client's.
            self.last_heard = now.tick;
        }
        if self.deadline().is_none_or(|deadline| now.tick < deadline) {
            return TimedOut::No;
        }
        match self.phase {
            Phase::Opening { .. } => {
                self.end_refused(
                    ReasonCode::KeepAliveTimeout,
                    "no CONNECT within the timeout",
                    out,
                );
                TimedOut::Connect
            }
            Phase::Joining { .. } => {
                self.refuse(
                    ReasonCode::ServerBusy,
                    "the connection to be taken over did not end in time",
                    out,
                );
                TimedOut::Connect
            }
            Phase::Serving => {
                self.close(
                    ReasonCode::KeepAliveTimeout,
                    "nothing came for one and a half times the keep-alive",
                    out,
                );
                TimedOut::KeepAlive
            }
            Phase::Draining | Phase::Ended => TimedOut::No,
        }
    }

    /// Reads nothing more and closes as soon as no PUBACK is owed.
    pub(crate) fn drain(&mut self, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Serving) && !self.owed.is_empty() {
            self.phase = Phase::Draining;
        } else if !matches!(self.phase, Phase::Draining) {
            self.close(ReasonCode::ServerShuttingDown, "the broker stops", out);
        }
    }

    /// The outcome of a received QoS 1 message is known.
    pub(crate) fn decide(&mut self, receipt: Receipt, outcome: ReasonCode, out: &mut Vec<Output>) {
        if !self.is_serving() || receipt == Receipt::NONE {
            return;
        }
        if outcome.is_error() && self.version == Version::V311 {
            // PUBACK of 3.1.1 cannot say no: close instead [MQTT-3.3.5-2]. The client will send the
            // message again when it is back.
            self.close(outcome, "a message was not accepted", out);
            return;
        }
        self.owed.decide(receipt, outcome);
        while let Some((packet_id, outcome)) = self.owed.next_due() {
            let reason = match outcome.fits(PacketType::PubAck) {
                true => outcome,
                false => ReasonCode::ImplementationSpecificError,
            };
            out.push(Output::Send(PubAck::new(packet_id, reason).into()));
        }
        if matches!(self.phase, Phase::Draining) && self.owed.is_empty() {
            self.close(ReasonCode::ServerShuttingDown, "the broker stops", out);
        }
    }

    fn connect(
        &mut self,
        now: Moment,
        limits: &Limits,
        mut connect: Box<Connect>,
        out: &mut Vec<Output>,
    ) {
        self.version = connect.version;
        if connect.properties.authentication_method.is_some() {
            return self.refuse(
                ReasonCode::BadAuthenticationMethod,
                "enhanced authentication is not offered",
                out,
            );
        }
        match &connect.will {
            Some(will) if will.qos == QoS::ExactlyOnce => {
                // [MQTT-3.2.2-12]
                return self.refuse(ReasonCode::QoSNotSupported, "the will has QoS 2", out);
            }
            Some(will) if will.retain => {
                // [MQTT-3.2.2-13]
                return self.refuse(
                    ReasonCode::RetainNotSupported,
                    "the will is to be retained",
                    out,
                );
            }
            _ => {}
        }
        if connect.version == Version::V311 && connect.client_id.is_empty() && !connect.clean_start
        {
            return self.refuse(
                ReasonCode::ClientIdentifierNotValid,
                "an empty client identifier needs a clean session",
                out,
            );
        }
        self.will = connect
            .will
            .take()
            .map(|will| Box::new(will::message(&will)));
        if connect.properties.session_expiry_interval.unwrap_or(0) > 0 {
            self.session_expiry = SessionExpiry::Asked;
        }
        let keep_alive = self.agree_keep_alive(connect.keep_alive, limits);
        self.phase = Phase::Joining {
            until: now.tick + limits.connect_timeout.as_millis() as u64,
            answer: Box::new(self.answer(keep_alive, limits)),
        };
        out.push(Output::Authenticate(connect));
    }

    /// Settles the keep-alive. Returns what the client must be told, if anything.
    fn agree_keep_alive(&mut self, asked: u16, limits: &Limits) -> Option<u16> {
        let max = u16::try_from(limits.keep_alive_max.as_secs()).unwrap_or(u16::MAX);
        let (seconds, told) = match self.version {
            Version::V5 if asked == 0 || asked > max => (max, Some(max)),
            // 3.1.1 cannot be told: what it asks for is what it gets, down to none at all. TCP's own
            // keep-alive finds a peer that is gone.
            _ => (asked, None),
        };
        // [MQTT-3.1.2-22]
        self.patience = (seconds > 0).then(|| u64::from(seconds) * 1500);
        told
    }

    /// CONNACK with all that this broker does not do.
    fn answer(&self, server_keep_alive: Option<u16>, limits: &Limits) -> ConnAck {
        let properties = match self.version {
            Version::V311 => ConnAckProperties::default(),
            Version::V5 => ConnAckProperties {
                session_expiry_interval: match self.session_expiry {
                    SessionExpiry::Zero => None,
                    SessionExpiry::Asked => Some(0),
                },
                receive_maximum: limits.max_inflight.try_into().ok(),
                maximum_qos: Some(QoS::AtLeastOnce),
                retain_available: Some(false),
                maximum_packet_size: limits.max_packet_size.try_into().ok(),
                topic_alias_maximum: Some(limits.topic_alias_maximum),
                shared_subscription_available: Some(false),
                server_keep_alive,
                ..ConnAckProperties::default()
            },
        };
        ConnAck {
            session_present: false,
            reason: ReasonCode::Success,
            properties,
        }
    }

    fn serve(&mut self, limits: &Limits, packet: Packet, out: &mut Vec<Output>) {
        match packet {
            Packet::Publish(publish) => self.publish(limits, publish, out),
            Packet::PubAck(ack) => out.push(Output::Acknowledged(ack.packet_id)),
            Packet::Subscribe(subscribe) => out.push(Output::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => out.push(Output::Unsubscribe(unsubscribe)),
            Packet::PingReq => out.push(Output::Send(Packet::PingResp)),
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect, out),
            // No message of QoS 2 was ever accepted or sent, so none of these is known. A client
            // that carries them over from an earlier server is let off its exchange
            // [MQTT-4.3.3]; 0x92 says so.
            Packet::PubRel(release) => {
                let reason = ReasonCode::PacketIdentifierNotFound;
                out.push(Output::Send(match self.version {
                    Version::V5 => PubComp::new(release.packet_id, reason).into(),
                    Version::V311 => PubComp::success(release.packet_id).into(),
                }));
            }
            Packet::PubRec(received) => {
                let reason = ReasonCode::PacketIdentifierNotFound;
                out.push(Output::Send(match self.version {
                    Version::V5 => PubRel::new(received.packet_id, reason).into(),
                    Version::V311 => PubRel::success(received.packet_id).into(),
                }));
            }
            Packet::PubComp(_) => {}
            Packet::Auth(_) => self.close(
                ReasonCode::ProtocolError,
                "AUTH without an authentication method in CONNECT",
                out,
            ),
            // The codec refuses these from a client.
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => {
                self.close(ReasonCode::ProtocolError, "not a packet of a client", out);
            }
        }
    }

    fn publish(&mut self, limits: &Limits, mut publish: Box<Publish>, out: &mut Vec<Output>) {
        if let Err((reason, detail)) = self.resolve_alias(limits, &mut publish) {
            return self.close(reason, detail, out);
        }
        if publish.retain {
            return self.close(
                ReasonCode::RetainNotSupported,
                "PUBLISH with RETAIN, which CONNACK said is not available",
                out,
            );
        }
        let receipt = match (publish.qos, publish.packet_id) {
            (QoS::AtMostOnce, _) => Receipt::NONE,
            (QoS::AtLeastOnce, Some(packet_id)) => {
                if self.version == Version::V5
                    && self.owed.len() >= usize::from(limits.max_inflight)
                {
                    return self.close(
                        ReasonCode::ReceiveMaximumExceeded,
                        "more unacknowledged messages than the receive maximum",
                        out,
                    );
                }
                self.owed.received(packet_id)
            }
            (QoS::AtLeastOnce, None) | (QoS::ExactlyOnce, _) => {
                return self.close(
                    ReasonCode::QoSNotSupported,
                    "PUBLISH with QoS 2, which CONNACK said is not available",
                    out,
                );
            }
        };
        out.push(Output::Publish(publish, receipt));
    }

    /// Puts the topic in place of its alias, or remembers a new alias (section 3.3.2.3.4).
    fn resolve_alias(
        &mut self,
        limits: &Limits,
        publish: &mut Publish,
    ) -> Result<(), (ReasonCode, &'static str)> {
        let Some(alias) = publish.properties.topic_alias.take() else {
            return Ok(());
        };
        if alias.get() > limits.topic_alias_maximum {
            return Err((
                ReasonCode::TopicAliasInvalid,
                "topic alias above the maximum",
            ));
        }
        let place = usize::from(alias.get()) - 1;
        if publish.topic.is_empty() {
            match self.aliases.get(place) {
                Some(Some(topic)) => publish.topic = topic.clone(),
                _ => return Err((ReasonCode::ProtocolError, "topic alias never set")),
            }
        } else {
            if self.aliases.len() <= place {
                self.aliases.resize(place + 1, None);
            }
            // Kept for long: not as a slice of the read buffer.
            self.aliases[place] = Some(publish.topic.detached());
        }
        Ok(())
    }

    fn disconnect(&mut self, disconnect: &Disconnect, out: &mut Vec<Output>) {
        let expiry = disconnect.properties.session_expiry_interval.unwrap_or(0);
        if expiry > 0 && self.session_expiry == SessionExpiry::Zero {
            // Section 3.14.2.2.2
            return self.close(
                ReasonCode::ProtocolError,
                "DISCONNECT brings a session expiry, CONNECT had none",
                out,
            );
        }
        // [MQTT-3.14.4-3]
        let will = match disconnect.reason {
            ReasonCode::NORMAL_DISCONNECTION => None,
            _ => self.will.take(),
        };
        self.end(
            disconnect.reason,
            EndedBy::Client,
            "DISCONNECT".into(),
            will,
            out,
        );
    }

    fn end_refused(
        &mut self,
        reason: ReasonCode,
        detail: impl Into<Cow<'static, str>>,
        out: &mut Vec<Output>,
    ) {
        self.end(reason, EndedBy::Refusal, detail.into(), None, out);
    }

    fn end(
        &mut self,
        reason: ReasonCode,
        by: EndedBy,
        detail: Cow<'static, str>,
        will: Option<Box<Publish>>,
        out: &mut Vec<Output>,
    ) {
        self.phase = Phase::Ended;
        self.will = None;
        self.aliases = Vec::new();
        self.owed = Owed::default();
        out.push(Output::End(End {
            reason,
            by,
            detail,
            will,
        }));
    }
}

/// What a tick found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimedOut {
    No,
    Connect,
    KeepAlive,
}
