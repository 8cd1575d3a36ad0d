//! From CONNECT to CONNACK: who is it, which session is theirs, and who has it now.
//!
//! ```text
//! CONNECT ─► authenticate ─► the session lives on another shard? ─► departs, arrives there
//!                                             │
//!            the old connection is closed ◄───┘ (its will, its end)
//!            the session is taken up, or a new one begun ─► store ─► CONNACK ─► what is owed and waits
//! ```
//! All of the second half happens on the shard of the session, so no two connections with one client
//! identifier are ever served at once [MQTT-3.1.4-3].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use mqtt::{Auth, AuthProperties, Connect, PubRel, ReasonCode, Version};

use super::connection::EndedBy;
use super::deferred::Deferred;
use super::planted::planted;
use super::registry::{Admission, Epoch, Room};
use super::session::{Link, Session, Will};
use super::session_memory;
use super::shard::Shard;
use super::share::Presence;
use super::slots::{ConnectionId, SessionId};
use super::subscriber::TRANSIENT;
use super::tenants::{Joiner, Start};
use super::will;
use crate::admission::account::Holding;
use crate::admission::memory::Fits;
use crate::hooks::{AuthStep, ConnectAttempt, Decision, Identity, Refusal};
use crate::limits::Limits;

/// Times a client is asked who it is while access keeps changing, before it is told to come back.
const MAX_AUTHENTICATIONS: u32 = 8;

/// The interval that means "for ever" (section 3.1.2.11.2).
const FOR_EVER: u32 = u32::MAX;

impl Shard {
    /// Notes what the client takes, before anything is said to it.
    pub(super) fn set_client_limits(&mut self, id: ConnectionId, connect: &Connect) {
        let most_aliases = self.exchange.limits.topic_alias_maximum_out;
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        if tenant.connection.is_serving() {
            return;
        }
        let properties = &connect.properties;
        tenant.outbox.set_client_limits(
            properties
                .maximum_packet_size
                .map_or(usize::MAX, |size| size.get() as usize),
            properties
                .topic_alias_maximum
                .unwrap_or(0)
                .min(most_aliases),
        );
    }

    /// CONNECT came.
    pub(super) fn authenticate(&mut self, id: ConnectionId, mut connect: Box<Connect>) {
        if !self.admits(id, &connect) {
            return;
        }
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let assigned = connect
            .client_id
            .is_empty()
            .then(|| self.exchange.assign_client_id());
        let method = connect.properties.authentication_method.clone();
        let data = connect.properties.authentication_data.take();
        tenant.joiner = Some(Box::new(Joiner {
            connect,
            assigned,
            known: None,
            auth_data: None,
        }));
        let Some(method) = method else {
            return self.identify(id);
        };
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(joiner) = &tenant.joiner else {
            return;
        };
        let attempt = attempt(joiner, tenant);
        let authentication = self.exchange.hooks.begin_authentication(&attempt, &method);
        let Some(authentication) = authentication else {
            return self.refuse(
                id,
                Refusal::new(
                    ReasonCode::BadAuthenticationMethod,
                    format!("authentication method `{method}` is not offered"),
                ),
            );
        };
        tenant.authentication = Some(authentication);
        let data = data.map(|data| Bytes::copy_from_slice(data.as_ref()));
        self.authentication_step(id, data.as_deref().unwrap_or_default());
    }

    /// AUTH came: the next step of an authentication, or the first of a new one.
    pub(super) fn auth(&mut self, id: ConnectionId, auth: &Auth) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let method = tenant.connection.auth_method().cloned();
        let identifying = tenant.connection.is_identifying();
        // [MQTT-4.12.0-5]; and the codec knows no AUTH without a method but with data.
        if auth.properties.authentication_method != method {
            return self.fail_authentication(
                id,
                Refusal::new(
                    ReasonCode::ProtocolError,
                    "AUTH names another method than CONNECT",
                ),
            );
        }
        let data = auth.properties.authentication_data.as_ref();
        let data = data.map(|data| Bytes::copy_from_slice(data.as_ref()));
        match (auth.reason, tenant.authentication.is_some()) {
            (ReasonCode::ContinueAuthentication, true) => {}
            (ReasonCode::ReAuthenticate, false) if !identifying => {
                let session = tenant.session.and_then(|id| self.sessions.get(id));
                let Some(client_id) = session.map(|s| Arc::clone(&s.client_id)) else {
                    return;
                };
                let attempt = ConnectAttempt {
                    listener: &tenant.origin.listener,
                    transport: tenant.origin.protocol.name(),
                    peer: tenant.origin.peer,
                    proxied: tenant.origin.proxied.as_deref(),
                    client_id: &client_id,
                    username: None,
                    password: None,
                    certificates: &tenant.origin.certificates,
                };
                let method = method.as_deref().unwrap_or_default();
                tenant.authentication = self.exchange.hooks.begin_authentication(&attempt, method);
            }
            _ => {
                return self.fail_authentication(
                    id,
                    Refusal::new(
                        ReasonCode::ProtocolError,
                        "AUTH that is not due at this point",
                    ),
                );
            }
        }
        self.authentication_step(id, data.as_deref().unwrap_or_default());
    }

    fn authentication_step(&mut self, id: ConnectionId, data: &[u8]) {
        let epoch = self.exchange.registry().epoch();
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let step = match &mut tenant.authentication {
            Some(authentication) => authentication.step(data),
            None => AuthStep::Refused(Refusal::new(
                ReasonCode::BadAuthenticationMethod,
                "the method is not offered any more",
            )),
        };
        let method = tenant.connection.auth_method().cloned();
        let answer = |reason, data: Option<Bytes>| Auth {
            reason,
            properties: AuthProperties {
                authentication_method: method,
                authentication_data: data.map(Into::into),
                ..AuthProperties::default()
            },
        };
        match step {
            AuthStep::Continue(data) => {
                let answer = answer(ReasonCode::ContinueAuthentication, Some(data));
                self.send(id, &answer.into());
            }
            AuthStep::Refused(refusal) => {
                tenant.authentication = None;
                self.fail_authentication(id, refusal);
            }
            AuthStep::Done { identity, data } => {
                tenant.authentication = None;
                if tenant.connection.is_identifying() {
                    if let Some(joiner) = &mut tenant.joiner {
                        joiner.auth_data = data;
                    }
                    return self.known(id, identity, epoch);
                }
                let Some(session) = tenant.session.and_then(|id| self.sessions.get(id)) else {
                    return;
                };
                if session.client_id != identity.client_id
                    || session.principal != identity.principal
                {
                    return self.fail_authentication(
                        id,
                        Refusal::new(
                            ReasonCode::NotAuthorized,
                            "re-authenticated as somebody else",
                        ),
                    );
                }
                let session_id = session.id;
                session.identity = Some(Arc::new(identity));
                let answer = answer(ReasonCode::Success, data);
                self.send(id, &answer.into());
                self.check_access(session_id);
            }
        }
    }

    fn fail_authentication(&mut self, id: ConnectionId, refusal: Refusal) {
        if self
            .tenants
            .get(id)
            .is_some_and(|t| t.connection.is_identifying())
        {
            self.failed_to_authenticate(id, refusal.reason);
            return self.refuse(id, refusal);
        }
        let Refusal { reason, log, .. } = refusal;
        self.step(id, |connection, _, _, out| {
            connection.close_by(EndedBy::Authentication, reason, log, out);
        });
    }

    pub(super) fn refuse(&mut self, id: ConnectionId, refusal: Refusal) {
        let Refusal {
            reason,
            log,
            server_reference,
        } = refusal;
        self.step(id, |connection, _, _, out| {
            connection.refuse_naming(reason, log, server_reference, out);
        });
    }

    /// Asks the outside who it is.
    fn identify(&mut self, id: ConnectionId) {
        let epoch = self.exchange.registry().epoch();
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(joiner) = &tenant.joiner else {
            return;
        };
        let attempt = attempt(joiner, tenant);
        match self.exchange.hooks.authenticate(&attempt) {
            Ok(identity) => self.known(id, identity, epoch),
            Err(refusal) => {
                self.failed_to_authenticate(id, refusal.reason);
                self.refuse(id, refusal);
            }
        }
    }

    /// The outside knows it, as of `epoch`.
    fn known(&mut self, id: ConnectionId, identity: Identity, epoch: Epoch) {
        if !self.traces.is_empty() {
            self.trace_known(id, &identity);
        }
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(joiner) = &mut tenant.joiner else {
            return;
        };
        if let Some(will) = &joiner.connect.will
            && let Some(reason) = self.exchange.too_deep(will.topic.as_str())
        {
            let log = "the topic of the will has too many levels (`max_topic_levels`)";
            return self.refuse(id, Refusal::new(reason, log));
        }
        if let Some(will) = &joiner.connect.will
            && self
                .exchange
                .hooks
                .may_publish(&identity, will.topic.as_str())
                == Decision::Deny
        {
            let topic = will.topic.as_str().to_owned();
            joiner.known = Some((identity, epoch));
            return self.refuse(
                id,
                Refusal::new(
                    ReasonCode::NotAuthorized,
                    format!("the will may not be published to `{topic}`"),
                ),
            );
        }
        joiner.known = Some((identity, epoch));
        self.authenticated(id);
        if self.destination(id).is_none() {
            self.join(id);
        } else if let Some(tenant) = self.tenants.get(id) {
            tenant.wake();
        }
    }

    /// The other shard that a connection belongs to.
    pub(super) fn destination(&mut self, id: ConnectionId) -> Option<usize> {
        let tenant = self.tenants.get(id)?;
        if !tenant.connection.is_identifying() {
            return None;
        }
        let (identity, _) = tenant.joiner.as_ref()?.known.as_ref()?;
        let home = self.exchange.home(&identity.client_id);
        (home != self.number).then_some(home)
    }

    /// The connection is on the shard of its session: gives it that session.
    pub(super) fn join(&mut self, id: ConnectionId) {
        let joiner = self.tenants.get(id).and_then(|t| t.joiner.as_ref());
        let identity = joiner.and_then(|j| j.known.as_ref().map(|(identity, _)| identity.clone()));
        if let Some(identity) = identity
            && !self.admits_client(id, &identity)
        {
            return;
        }
        let limits = &self.exchange.limits;
        for _ in 0..MAX_AUTHENTICATIONS {
            let Some(tenant) = self.tenants.get(id) else {
                return;
            };
            let Some(joiner) = &tenant.joiner else {
                return;
            };
            let Some((identity, epoch)) = &joiner.known else {
                return;
            };
            let existing = self.clients.get(&identity.client_id).copied();
            let session = existing.and_then(|id| self.sessions.get(id));
            let room = match session.as_ref().and_then(|s| s.connection()) {
                Some(_) => Room::TakenOver,
                None => Room::Needed,
            };
            if session.is_none()
                && self.exchange.sessions.load(Ordering::Relaxed) >= limits.max_sessions
            {
                let max = limits.max_sessions;
                return self.refuse(
                    id,
                    Refusal::new(
                        ReasonCode::QuotaExceeded,
                        format!("there are {max} sessions, which is the limit (`max_sessions`)"),
                    ),
                );
            }
            let names = match session {
                Some(_) => 0,
                None => session_memory::of_names(&identity.client_id, &identity.principal),
            };
            let will = joiner.connect.will.as_ref();
            let will = will.map_or(0, |will| session_memory::of_will(&will::message(will)));
            let account = &self.exchange.admission.session_memory;
            if account.fits(names, names + will) == Fits::No {
                return self.refuse(
                    id,
                    Refusal::new(
                        ReasonCode::QuotaExceeded,
                        "no memory for its will and its name (`max_session_memory`)",
                    ),
                );
            }
            let admission = self.exchange.registry().join(
                &identity.principal,
                *epoch,
                limits.max_connections,
                room,
            );
            match admission {
                Admission::Granted => return self.take_session(id, existing),
                Admission::Full => {
                    let max = limits.max_connections;
                    return self.refuse(
                        id,
                        Refusal::new(
                            ReasonCode::QuotaExceeded,
                            format!("{max} clients are connected, which is the limit"),
                        ),
                    );
                }
                Admission::Stale if tenant.connection.auth_method().is_some() => break,
                Admission::Stale => {}
            }
            let epoch = self.exchange.registry().epoch();
            match self.exchange.hooks.authenticate(&attempt(joiner, tenant)) {
                Err(refusal) => return self.refuse(id, refusal),
                Ok(identity) if self.exchange.home(&identity.client_id) != self.number => {
                    return self.known(id, identity, epoch);
                }
                Ok(identity) => {
                    if let Some(tenant) = self.tenants.get(id)
                        && let Some(joiner) = &mut tenant.joiner
                    {
                        joiner.known = Some((identity, epoch));
                    }
                }
            }
        }
        self.refuse(
            id,
            Refusal::new(
                ReasonCode::ServerBusy,
                "access kept changing while the client connected",
            ),
        );
    }

    /// A registered connection gets its session: the one there is, or a new one.
    fn take_session(&mut self, id: ConnectionId, existing: Option<SessionId>) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(joiner) = tenant.joiner.take() else {
            return;
        };
        tenant.start = match joiner.connect.clean_start {
            true => Start::Clean,
            false => Start::Resume,
        };
        let Joiner {
            connect,
            assigned,
            known,
            auth_data,
        } = *joiner;
        let Some((identity, epoch)) = known else {
            return;
        };
        let identity = Arc::new(identity);
        // Not needed again, unless somebody authenticates again, and a kilobyte per connection.
        if tenant.connection.auth_method().is_none() {
            tenant.origin.certificates = Vec::new();
            tenant.origin.proxied = None;
        }
        let version = connect.version;
        let limits = &self.exchange.limits;
        tenant.receive_maximum = connect
            .properties
            .receive_maximum
            .map_or(u16::MAX, u16::from)
            .min(limits.max_inflight);
        let (asked, expiry) = session_expiry(&connect, limits);
        let mut stores = false;
        let mut taken_up = None;
        if let Some(existing) = existing {
            if planted!(self.exchange, NoWillAtTakeover)
                && let Some(session) = self.sessions.get(existing)
                && session.will.as_ref().is_some_and(|will| will.delay == 0)
            {
                session.will = None;
            }
            if let Some(old) = self.sessions.get(existing).and_then(|s| s.connection())
                && !planted!(self.exchange, TwoConnectionsServed)
            {
                self.counters.takeovers.one();
                self.close(
                    old,
                    ReasonCode::SessionTakenOver,
                    "another connection uses the same client identifier",
                );
            }
            // It belongs to who began it: somebody else with its client identifier gets nothing of it.
            if let Some(session) = self.sessions.get(existing)
                && session.principal != identity.principal
            {
                stores |= session.is_stored();
                self.end_session(existing);
            }
            // It may have ended with that connection.
            if let Some(session) = self.sessions.get(existing) {
                stores |= session.is_stored();
                let expired = session.ends_at.is_some_and(|at| at <= self.now.tick)
                    && !planted!(self.exchange, ExpiredSessionKept);
                // What it may subscribe to may have changed while it was away.
                session.identity = Some(Arc::clone(&identity));
                self.check_access(existing);
                let Some(session) = self.sessions.get(existing) else {
                    return;
                };
                if connect.clean_start || expired || session.curtailed {
                    self.end_session(existing);
                } else {
                    taken_up = Some(existing);
                }
            }
        }
        let session_id = match taken_up {
            Some(session) => {
                self.counters.sessions_resumed.one();
                session
            }
            None => match self.begin_session(&identity, expiry) {
                Some(session) => session,
                None => {
                    self.exchange.registry().leave(&identity.principal);
                    if let Some(tenant) = self.tenants.get(id) {
                        // For whoever is told of the refusal.
                        tenant.joiner = Some(Box::new(Joiner {
                            connect,
                            assigned,
                            known: Some((Identity::clone(&identity), epoch)),
                            auth_data: None,
                        }));
                    }
                    let refusal = Refusal::new(ReasonCode::QuotaExceeded, "the shard is full");
                    return self.refuse(id, refusal);
                }
            },
        };
        if planted!(self.exchange, WillDespiteResumption)
            && let Some(session) = self.sessions.get(session_id)
            && session.will_at.is_some()
            && let Some(will) = session.will.as_ref().map(|will| will.publish.clone())
        {
            self.publish_will(session_id, will);
        }
        // One that is due now, and only waited for its turn, is not cancelled by this.
        if let Some(session) = self.sessions.get(session_id)
            && session.will_at.is_some_and(|at| at <= self.now.tick)
            && let Some(will) = session.will.take()
        {
            session.will_at = None;
            // With it, or it would be published again after a crash.
            session.put(&mut self.storing.batch);
            self.publish_will(session_id, will.publish);
        }
        let Some(session) = self.sessions.get(session_id) else {
            return;
        };
        let version_before = std::mem::replace(&mut session.version, version);
        session.link = Link::Joining(id);
        session.expiry = expiry;
        session.disconnected_us = None;
        if session.will_at.take().is_some() {
            self.counters.wills_cancelled.one();
        }
        session.ends_at = None;
        let response_information = identity.response_information.clone();
        session.identity = Some(identity);
        // Gone before the new one counts.
        session.will = None;
        session.will = connect.will.as_ref().map(|will| {
            let delay = will.properties.will_delay_interval.unwrap_or(0);
            let account = &self.exchange.admission.session_memory;
            Will::new(delay, will::message(will), account)
        });
        stores |= session.is_stored();
        session.put(&mut self.storing.batch);
        if taken_up.is_some() && version_before != version {
            self.index_again(session_id);
        }
        let wants_response_information =
            connect.properties.request_response_information == Some(true);
        let number = self.exchange.next_event();
        if let Some(tenant) = self.tenants.get(id) {
            tenant.number = number;
            tenant.session = Some(session_id);
            tenant.connection.identified(|answer, version| {
                answer.session_present = taken_up.is_some();
                if version == Version::V311 {
                    // It has no way to be told more, nor does it need to know.
                    return;
                }
                let properties = &mut answer.properties;
                properties.session_expiry_interval = (asked != expiry).then_some(expiry);
                properties.assigned_client_id = assigned.map(|assigned| assigned.as_str().into());
                properties.response_information = response_information
                    .filter(|_| wants_response_information)
                    .map(|topic| (&*topic).into());
                properties.authentication_data = auth_data.map(Into::into);
            });
        }
        self.take_on_debt(id, session_id);
        // An earlier session of this client may have ended a moment ago, and the store not know it yet.
        let ends = self
            .sessions
            .get(session_id)
            .is_some_and(|session| self.storing.is_ending(&session.client_id));
        if stores || ends {
            self.storing.deferred.push(Deferred::Admit(id));
        } else {
            self.admit(id);
        }
    }

    /// A new session; `None` if the shard is full.
    fn begin_session(&mut self, identity: &Identity, expiry: u32) -> Option<SessionId> {
        let id = self.sessions.next_id(self.number)?;
        let record = match expiry {
            0 => TRANSIENT,
            _ => self.exchange.next_record(),
        };
        let session = Session::new(
            id,
            record,
            Arc::clone(&identity.client_id),
            Arc::clone(&identity.principal),
            Holding::none(&self.exchange.admission.session_memory),
        );
        self.counters.sessions_created.one();
        self.move_in(session)
    }

    /// Enters a session where sessions are found.
    pub(super) fn move_in(&mut self, session: Session) -> Option<SessionId> {
        let client_id = Arc::clone(&session.client_id);
        let principal = Arc::clone(&session.principal);
        let stored = session.is_stored();
        let id: SessionId = self.sessions.insert(self.number, Box::new(session))?;
        self.clients.insert(client_id, id);
        self.principals.insert(principal, id);
        self.exchange.sessions.fetch_add(1, Ordering::Relaxed);
        if stored {
            self.exchange
                .stored_sessions
                .fetch_add(1, Ordering::Relaxed);
        }
        Some(id)
    }

    /// The session is as it must be: CONNACK, then what is owed, then what waits.
    pub(super) fn admit(&mut self, id: ConnectionId) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        if tenant.connection.is_ended() || tenant.connection.is_serving() {
            return;
        }
        let receive_maximum = tenant.receive_maximum;
        let Some(session_id) = tenant.session else {
            return;
        };
        let resumed = tenant.connection.takes_up_session();
        self.step(id, |connection, now, _, out| connection.admit(now, out));
        let (Some(tenant), Some(session)) = (self.tenants.get(id), self.sessions.get(session_id))
        else {
            return;
        };
        if !tenant.connection.is_serving() {
            // Turned away: CONNACK is more than it takes.
            return;
        }
        tenant.since_us = self.now.wall_us;
        self.counters.connects_accepted.one();
        tracing::info!(
            event = "client.connected",
            client = %session.client_id,
            principal = %session.principal,
            group = session.identity.as_ref().and_then(|i| i.group.as_deref()),
            peer = %tenant.origin.peer,
            listener = %tenant.origin.listener,
            version = %tenant.connection.version(),
            connection = tenant.number,
        );
        self.announce_connected(id, resumed);
        if !self.traces.is_empty() {
            self.trace_connected(id);
        }
        let owed = match self.sessions.get(session_id) {
            Some(session) if session.link == Link::Joining(id) => {
                session.connected(id, receive_maximum, &self.exchange)
            }
            _ => return,
        };
        for packet_id in owed {
            self.send(id, &PubRel::success(packet_id).into());
        }
        self.with_outbox(id, |session, outbox, cx| session.pump(outbox, cx));
        self.set_presence(session_id, Presence::Online);
        self.begin_walks(id);
        if let Some(tenant) = self.tenants.get(id) {
            let deadline = tenant.connection.deadline();
            // It may have stopped reading from its transport.
            tenant.wake();
            self.file(id, deadline);
        }
        if self.state == super::shard::State::Closing {
            self.drain(id);
        }
    }
}

fn attempt<'a>(joiner: &'a Joiner, tenant: &'a super::tenants::Tenant) -> ConnectAttempt<'a> {
    let connect = &joiner.connect;
    ConnectAttempt {
        listener: &tenant.origin.listener,
        transport: tenant.origin.protocol.name(),
        peer: tenant.origin.peer,
        proxied: tenant.origin.proxied.as_deref(),
        client_id: joiner.assigned.as_deref().unwrap_or(&connect.client_id),
        username: connect.username.as_deref(),
        password: connect.password.as_deref(),
        certificates: &tenant.origin.certificates,
    }
}

/// The Session Expiry Interval the client asked for, and the one it gets.
fn session_expiry(connect: &Connect, limits: &Limits) -> (u32, u32) {
    let max = whole_seconds(limits.session_expiry_max);
    match connect.version {
        // A clean session ends with its connection; another one lasts, as long as we let it.
        Version::V311 if connect.clean_start => (0, 0),
        Version::V311 => (max, max),
        Version::V5 => {
            let asked = connect.properties.session_expiry_interval.unwrap_or(0);
            (asked, asked.min(max))
        }
    }
}

/// As many seconds as there are, "for ever" if there are too many.
pub(super) fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(FOR_EVER)
}
