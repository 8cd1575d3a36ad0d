//! The protocol of one connection: what each packet means at this point, and what to answer.
//!
//! In: packets, the time, and word from elsewhere (identified, admitted, taken over, stopping). Out: a
//! list of [`Output`]s that the shard carries out in order. What needs the session, other connections or
//! the outside is an output; its answer comes back as an input.
//!
//! ```text
//! Opening ──CONNECT──► Identifying ──known──► Joining ──admitted──► Serving ──drain──► Draining ─┐
//!    │                  ▲    │ AUTH              │                    │                     │
//!    └──────────────────┼────┴───────────────────┴─────── ended ──────┴─────────────────────┴─► Ended
//!                       └──────┘
//! ```

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;

use mqtt::{
    Auth, ConnAck, ConnAckProperties, Connect, DecodeError, Disconnect, Packet, PacketId,
    PacketType, Publish, QoS, ReasonCode, Subscribe, Unsubscribe, Utf8, Version,
};

use super::Moment;
use super::inbound_aliases::InboundAliases;
use crate::admission::PutOff;
use crate::admission::account::Account;
use crate::admission::memory::Fits;
use crate::limits::{Limits, Retain};

/// Why a client is told to come back later, for the operator's log.
pub(crate) const OVERLOADED: &str = "the workers are late with what is due (`max_loop_delay`)";

/// Topic filters that one SUBSCRIBE or UNSUBSCRIBE may bring. Each is work, and a byte of its answer: a packet
/// of a megabyte would bring a quarter of a million.
pub(crate) const MAX_FILTERS: usize = 1024;

const TOO_MANY_FILTERS: &str = "more than 1024 topic filters in one SUBSCRIBE or UNSUBSCRIBE";

/// State of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    version: Version,
    /// Tick at which the last packet came.
    last_heard: u64,
    /// One and a half times the keep-alive in milliseconds; `None` without keep-alive.
    patience: Option<NonZeroU32>,
    session_expiry: SessionExpiry,
    problem_information: ProblemInformation,
    /// The method of an enhanced authentication, from CONNECT.
    auth_method: Option<Box<Utf8>>,
    /// QoS 1 and 2 messages of this connection that are not answered for good (PUBACK, PUBREC with an
    /// error, PUBCOMP), to be held against our Receive Maximum.
    unanswered: u16,
    /// Topics of the aliases in use. Few clients use any.
    aliases: Option<Box<InboundAliases>>,
}

#[derive(Debug)]
enum Phase {
    /// No CONNECT yet.
    Opening { until: u64 },
    /// CONNECT came when there was too much to do; it is told at this tick.
    PutOff { until: u64, _place: Box<PutOff> },
    /// CONNECT came; who is it?
    Identifying { until: u64, answer: Box<ConnAck> },
    /// Identified; waits for its session to be in the store.
    Joining { until: u64, answer: Box<ConnAck> },
    /// CONNACK is sent.
    Serving,
    /// Nothing more is read; answers are still owed.
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

/// Whether answers other than CONNACK and DISCONNECT may bring reason strings [MQTT-3.1.2-29].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProblemInformation {
    Wanted,
    Unwanted,
}

/// What the shard is to do.
#[derive(Debug)]
pub(crate) enum Output {
    /// Send this packet.
    Send(Packet),
    /// Find out who this is; answer with [`Connection::identified`] or [`Connection::refuse`].
    Authenticate(Box<Connect>),
    /// A step of an enhanced authentication.
    Auth(Auth),
    /// Check, tap, keep and route a message.
    Publish(Box<Publish>),
    /// The client released a QoS 2 message.
    Release(PacketId),
    /// Check and subscribe, then send SUBACK.
    Subscribe(Subscribe),
    /// Unsubscribe, then send UNSUBACK.
    Unsubscribe(Unsubscribe),
    /// The client has this QoS 1 message.
    Acknowledged(PacketId),
    /// The client has this QoS 2 message, or will not have it.
    Delivered(PacketId, ReasonCode),
    /// The exchange of this QoS 2 message is complete.
    Completed(PacketId),
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
    pub(crate) will: WillFate,
    /// The Session Expiry Interval that DISCONNECT brought.
    pub(crate) session_expiry: Option<u32>,
}

/// What becomes of the will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WillFate {
    /// To be published: now or after its delay.
    Due,
    /// The client said goodbye [MQTT-3.14.4-3].
    Discarded,
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
    /// The broker closes it because an operator wants it.
    Operator,
    /// The broker closes it because its principal lost access.
    Access,
    /// The broker closes it because it authenticated again, in vain.
    Authentication,
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
            problem_information: ProblemInformation::Wanted,
            auth_method: None,
            unanswered: 0,
            aliases: None,
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

    pub(crate) fn problem_information(&self) -> ProblemInformation {
        self.problem_information
    }

    /// The method of the enhanced authentication it began with.
    pub(crate) fn auth_method(&self) -> Option<&Utf8> {
        self.auth_method.as_deref()
    }

    /// The agreed keep-alive in seconds, 0 for none.
    pub(crate) fn keep_alive(&self) -> u16 {
        // Made of as many seconds.
        self.patience
            .map_or(0, |patience| (patience.get() / 1500) as u16)
    }

    /// Whether CONNACK, which waits, says that an earlier session is taken up.
    pub(crate) fn takes_up_session(&self) -> bool {
        match &self.phase {
            Phase::Joining { answer, .. } => answer.session_present,
            _ => false,
        }
    }

    /// What an alias of the client stands for.
    pub(crate) fn topic_of(&self, alias: u16) -> Option<&str> {
        let place = usize::from(alias).checked_sub(1)?;
        self.aliases.as_ref()?.get(place).map(|topic| &**topic)
    }

    /// Counts what the client's aliases stand for. Says whether there is memory for that.
    pub(crate) fn count_aliases(&mut self, account: &Arc<Account>) -> Fits {
        match &mut self.aliases {
            Some(aliases) => aliases.recount(account),
            None => Fits::Yes,
        }
    }

    pub(crate) fn is_identifying(&self) -> bool {
        matches!(self.phase, Phase::Identifying { .. })
    }

    pub(crate) fn appetite(&self, limits: &Limits) -> Appetite {
        match self.phase {
            Phase::Opening { .. } => Appetite::Hungry,
            // An MQTT 5 client knows our Receive Maximum and is closed for exceeding it; of an
            // MQTT 3.1.1 client we simply do not read. It may have to release QoS 2 messages first,
            // which are bounded by their identifiers: of those it may have as many as it has.
            Phase::Serving
                if self.version == Version::V311 && self.unanswered >= limits.max_inflight =>
            {
                Appetite::Waiting
            }
            Phase::Serving => Appetite::Hungry,
            // AUTH may come, and nothing else.
            Phase::Identifying { .. } => match self.auth_method {
                Some(_) => Appetite::Hungry,
                None => Appetite::Waiting,
            },
            Phase::PutOff { .. } | Phase::Joining { .. } | Phase::Draining => Appetite::Waiting,
            Phase::Ended => Appetite::Over,
        }
    }

    /// When to call [`tick`](Connection::tick), if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Opening { until }
            | Phase::PutOff { until, .. }
            | Phase::Identifying { until, .. }
            | Phase::Joining { until, .. } => Some(until),
            Phase::Serving => self
                .patience
                .map(|patience| self.last_heard + u64::from(patience.get())),
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
            (Phase::Identifying { .. }, Packet::Auth(auth)) => out.push(Output::Auth(auth)),
            (Phase::Identifying { .. }, Packet::Disconnect(_)) => {
                self.end_refused(ReasonCode::NORMAL_DISCONNECTION, "DISCONNECT", out);
            }
            // [MQTT-3.1.2-30]
            (Phase::Identifying { .. }, _) => self.refuse(
                ReasonCode::ProtocolError,
                "neither AUTH nor DISCONNECT during an enhanced authentication",
                out,
            ),
            (Phase::Serving, packet) => self.serve(limits, packet, out),
            (Phase::PutOff { .. } | Phase::Joining { .. } | Phase::Draining | Phase::Ended, _) => {}
        }
    }

    /// The CONNECT at hand is refused for overload, at tick `until`.
    pub(crate) fn put_off(&mut self, until: u64, place: PutOff) {
        if matches!(self.phase, Phase::Identifying { .. }) {
            self.phase = Phase::PutOff {
                until,
                _place: Box::new(place),
            };
        }
    }

    /// Nothing is read before this tick: silence until then is not the client's.
    pub(crate) fn not_read_before(&mut self, tick: u64) {
        self.last_heard = self.last_heard.max(tick);
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
                // What it takes could not be read.
                self.problem_information = ProblemInformation::Unwanted;
                self.refuse(error.reason(), detail, out);
            }
            (Phase::Identifying { .. } | Phase::Joining { .. }, _) => {
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

    /// The outside knows the client; CONNACK waits for [`admit`](Connection::admit). `amend` adds what
    /// the session and the outside have to say.
    pub(crate) fn identified(&mut self, amend: impl FnOnce(&mut ConnAck, Version)) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Identifying { until, mut answer } => {
                amend(&mut answer, self.version);
                self.phase = Phase::Joining { until, answer };
            }
            other => self.phase = other,
        }
    }

    /// The session is as it must be.
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

    /// The CONNACK that says yes cannot be sent: it exceeds the client's Maximum Packet Size, for one.
    /// Nothing else may come first [MQTT-3.2.0-1], so one without properties says no.
    pub(crate) fn turn_away(
        &mut self,
        reason: ReasonCode,
        detail: &'static str,
        out: &mut Vec<Output>,
    ) {
        if self.is_ended() {
            return;
        }
        // Of 3.1.1, where it is not to be encoded, nothing is sent.
        if self.version == Version::V5 || reason.connect_return_code().is_some() {
            out.push(Output::Send(ConnAck::refusal(reason).into()));
        }
        self.end_refused(reason, detail, out);
    }

    /// Turns the CONNECT down.
    pub(crate) fn refuse(
        &mut self,
        reason: ReasonCode,
        detail: impl Into<Cow<'static, str>>,
        out: &mut Vec<Output>,
    ) {
        self.refuse_naming(reason, detail, None, out);
    }

    /// Turns the CONNECT down and says where to go instead.
    pub(crate) fn refuse_naming(
        &mut self,
        reason: ReasonCode,
        detail: impl Into<Cow<'static, str>>,
        server_reference: Option<Arc<str>>,
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
            let mut answer = ConnAck::refusal(said);
            answer.properties.server_reference = server_reference.map(|server| (&*server).into());
            if self.version == Version::V5 && self.problem_information == ProblemInformation::Wanted
            {
                answer.properties.reason_string = explanation(said);
            }
            out.push(Output::Send(answer.into()));
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
        self.close_by(EndedBy::Broker, reason, detail, out);
    }

    /// The same, because somebody wants it.
    pub(crate) fn close_by(
        &mut self,
        by: EndedBy,
        reason: ReasonCode,
        detail: impl Into<Cow<'static, str>>,
        out: &mut Vec<Output>,
    ) {
        match self.phase {
            Phase::Ended => {}
            Phase::Opening { .. } => self.end_refused(reason, detail, out),
            Phase::PutOff { .. } | Phase::Identifying { .. } | Phase::Joining { .. } => {
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
                    let mut last = Disconnect::new(said);
                    if self.problem_information == ProblemInformation::Wanted {
                        last.properties.reason_string = explanation(said);
                    }
                    out.push(Output::Send(last.into()));
                }
                self.end(reason, by, detail.into(), WillFate::Due, None, out);
            }
        }
    }

    /// The transport is gone.
    pub(crate) fn lost(&mut self, detail: impl Into<Cow<'static, str>>, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Ended => {}
            Phase::Opening { .. }
            | Phase::PutOff { .. }
            | Phase::Identifying { .. }
            | Phase::Joining { .. } => {
                self.end_refused(ReasonCode::UnspecifiedError, detail, out);
            }
            Phase::Serving | Phase::Draining => self.end(
                ReasonCode::UnspecifiedError,
                EndedBy::Network,
                detail.into(),
                WillFate::Due,
                None,
                out,
            ),
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
            Phase::PutOff { .. } => {
                self.refuse(ReasonCode::ServerBusy, OVERLOADED, out);
                TimedOut::No
            }
            Phase::Identifying { .. } => {
                self.refuse(
                    ReasonCode::NotAuthorized,
                    "the authentication was not completed within the timeout",
                    out,
                );
                TimedOut::Connect
            }
            Phase::Joining { .. } => {
                self.refuse(
                    ReasonCode::ServerBusy,
                    "the store did not take the session in time",
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

    /// Reads nothing more and closes as soon as no answer is owed.
    pub(crate) fn drain(&mut self, answers: Answers, out: &mut Vec<Output>) {
        match (&self.phase, answers) {
            (Phase::Serving | Phase::Draining, Answers::Owed) => self.phase = Phase::Draining,
            _ => self.close(ReasonCode::ServerShuttingDown, "the broker stops", out),
        }
    }

    /// An answer to a QoS 1 or 2 message left: `last` says whether it was the last of its exchange.
    pub(crate) fn answered(&mut self, last: LastWord) {
        // Of an MQTT 3.1.1 client nothing would be read while too many are unanswered, and PUBREL must
        // be: there PUBREC counts.
        let counts = match self.version {
            Version::V5 => last != LastWord::No,
            Version::V311 => last != LastWord::Completes,
        };
        if counts {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
    }

    /// A repeated message is answered with the first one.
    pub(crate) fn repeated(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    fn connect(
        &mut self,
        now: Moment,
        limits: &Limits,
        connect: Box<Connect>,
        out: &mut Vec<Output>,
    ) {
        self.version = connect.version;
        if connect.will.as_ref().is_some_and(|will| will.retain)
            && limits.retain == Retain::Unavailable
        {
            // [MQTT-3.2.2-13]
            return self.refuse(
                ReasonCode::RetainNotSupported,
                "the will is to be retained",
                out,
            );
        }
        if connect.client_id.is_empty() && !connect.clean_start {
            // [MQTT-3.1.3-8] of 3.1.1; and what would it be that an MQTT 5 client without a name
            // takes up again?
            return self.refuse(
                ReasonCode::ClientIdentifierNotValid,
                "an empty client identifier needs a clean start",
                out,
            );
        }
        if connect.properties.session_expiry_interval.unwrap_or(0) > 0 {
            self.session_expiry = SessionExpiry::Asked;
        }
        if connect.properties.request_problem_information == Some(false) {
            self.problem_information = ProblemInformation::Unwanted;
        }
        self.auth_method = connect
            .properties
            .authentication_method
            .as_ref()
            .map(|method| Box::new(method.detached()));
        let keep_alive = self.agree_keep_alive(connect.keep_alive, limits);
        self.phase = Phase::Identifying {
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
        self.patience = NonZeroU32::new(u32::from(seconds) * 1500);
        told
    }

    /// CONNACK as far as it does not depend on the session.
    fn answer(&self, server_keep_alive: Option<u16>, limits: &Limits) -> ConnAck {
        let properties = match self.version {
            Version::V311 => ConnAckProperties::default(),
            Version::V5 => ConnAckProperties {
                receive_maximum: limits.max_inflight.try_into().ok(),
                retain_available: match limits.retain {
                    Retain::Available => None,
                    Retain::Unavailable => Some(false),
                },
                maximum_packet_size: limits.max_packet_size.try_into().ok(),
                topic_alias_maximum: Some(limits.topic_alias_maximum),
                server_keep_alive,
                authentication_method: self.auth_method().cloned(),
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
            Packet::Subscribe(subscribe) if subscribe.subscriptions.len() > MAX_FILTERS => {
                self.close(ReasonCode::QuotaExceeded, TOO_MANY_FILTERS, out);
            }
            Packet::Unsubscribe(unsubscribe) if unsubscribe.filters.len() > MAX_FILTERS => {
                self.close(ReasonCode::QuotaExceeded, TOO_MANY_FILTERS, out);
            }
            Packet::Subscribe(subscribe) => out.push(Output::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => out.push(Output::Unsubscribe(unsubscribe)),
            Packet::PingReq => out.push(Output::Send(Packet::PingResp)),
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect, out),
            Packet::PubRec(received) => {
                out.push(Output::Delivered(received.packet_id, received.reason));
            }
            Packet::PubRel(release) => out.push(Output::Release(release.packet_id)),
            Packet::PubComp(complete) => out.push(Output::Completed(complete.packet_id)),
            Packet::Auth(auth) => match &self.auth_method {
                None => self.close(
                    ReasonCode::ProtocolError,
                    "AUTH without an authentication method in CONNECT",
                    out,
                ),
                Some(_) => out.push(Output::Auth(auth)),
            },
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
        if publish.retain && limits.retain == Retain::Unavailable {
            return self.close(
                ReasonCode::RetainNotSupported,
                "PUBLISH with RETAIN, which CONNACK said is not available",
                out,
            );
        }
        if publish.qos > QoS::AtMostOnce {
            if self.version == Version::V5 && self.unanswered >= limits.max_inflight {
                return self.close(
                    ReasonCode::ReceiveMaximumExceeded,
                    "more unacknowledged messages than the receive maximum",
                    out,
                );
            }
            self.unanswered = self.unanswered.saturating_add(1);
        }
        out.push(Output::Publish(publish));
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
            match self.aliases.as_ref().and_then(|known| known.get(place)) {
                Some(topic) => publish.topic = topic.clone(),
                _ => return Err((ReasonCode::ProtocolError, "topic alias never set")),
            }
        } else {
            let aliases = self.aliases.get_or_insert_default();
            aliases.set(place, &publish.topic);
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
        let will = match disconnect.reason {
            ReasonCode::NORMAL_DISCONNECTION => WillFate::Discarded,
            _ => WillFate::Due,
        };
        self.end(
            disconnect.reason,
            EndedBy::Client,
            "DISCONNECT".into(),
            will,
            disconnect.properties.session_expiry_interval,
            out,
        );
    }

    fn end_refused(
        &mut self,
        reason: ReasonCode,
        detail: impl Into<Cow<'static, str>>,
        out: &mut Vec<Output>,
    ) {
        let detail = detail.into();
        self.end(
            reason,
            EndedBy::Refusal,
            detail,
            WillFate::Discarded,
            None,
            out,
        );
    }

    fn end(
        &mut self,
        reason: ReasonCode,
        by: EndedBy,
        detail: Cow<'static, str>,
        will: WillFate,
        session_expiry: Option<u32>,
        out: &mut Vec<Output>,
    ) {
        self.phase = Phase::Ended;
        self.aliases = None;
        out.push(Output::End(End {
            reason,
            by,
            detail,
            will,
            session_expiry,
        }));
    }
}

/// Whether answers are owed to a publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    Owed,
    Settled,
}

/// Whether an answer is the last one of its exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastWord {
    /// PUBREC with success.
    No,
    /// PUBACK, or PUBREC with an error.
    Yes,
    /// PUBCOMP, after a PUBREC.
    Completes,
}

/// What to do about the end of a connection, for whoever reads the client's log. What exactly happened
/// is for the operator's log alone: it may tell of others.
fn explanation(reason: ReasonCode) -> Option<Utf8> {
    let text = match reason {
        ReasonCode::NotAuthorized => "this client may not connect, or not like this",
        ReasonCode::BadUserNameOrPassword => "user name or password is wrong",
        ReasonCode::BadAuthenticationMethod => "this authentication method is not offered here",
        ReasonCode::ClientIdentifierNotValid => "this client identifier cannot be used",
        ReasonCode::RetainNotSupported => "messages are not retained here",
        ReasonCode::QuotaExceeded => "a limit of the server is reached; see its documentation",
        ReasonCode::ServerBusy | ReasonCode::ServerUnavailable => "try again in a while",
        ReasonCode::ServerShuttingDown => "the server stops; connect again in a while",
        ReasonCode::SessionTakenOver => "another connection uses this client identifier",
        ReasonCode::KeepAliveTimeout => "nothing came for one and a half times the keep-alive",
        ReasonCode::PacketTooLarge => "a packet is larger than the maximum packet size",
        ReasonCode::ReceiveMaximumExceeded => "more messages unanswered than the receive maximum",
        ReasonCode::TopicAliasInvalid => "a topic alias is above the maximum",
        ReasonCode::MalformedPacket => "a packet cannot be read",
        ReasonCode::ProtocolError => "a packet does not belong here",
        ReasonCode::AdministrativeAction => "the operator ended the connection",
        ReasonCode::Banned => "the operator does not let this client in",
        ReasonCode::ConnectionRateExceeded => {
            "it came, or failed, too often; do not try again for some minutes"
        }
        ReasonCode::TopicNameInvalid => "the topic of the will has too many levels",
        _ => return None,
    };
    Some(Utf8::from_static(text))
}

/// What a tick found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimedOut {
    No,
    Connect,
    KeepAlive,
}
