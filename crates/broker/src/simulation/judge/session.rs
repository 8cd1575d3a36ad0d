//! The session the broker must have for each client.

use std::collections::{BTreeMap, BTreeSet};

use mqtt::{ConnAck, Disconnect, QoS, ReasonCode};

use super::Judge;
use super::connection::{Leaving, milliseconds};
use super::delivery::{Copies, Flight};
use super::subscriptions::Sub;
use crate::simulation::invariants::{Invariant, Verdict, Violation, demand};
use crate::simulation::ledger::When;

/// Whether there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Exists {
    #[default]
    No,
    /// Nobody at the edge can know.
    Unsure,
    Yes,
}

#[derive(Debug, Default)]
pub(super) struct Session {
    /// Which of the sessions of this client it is.
    pub(super) epoch: u64,
    pub(super) exists: Exists,
    /// CONNACKs of this session.
    pub(super) connacks: Vec<When>,
    pub(super) connection: Option<usize>,
    /// How long it outlives its connection, at least and at most, in milliseconds.
    pub(super) expiry: (u64, u64),
    /// What its last CONNECT asked for.
    expiry_asked: u64,
    /// When its last connection ended, at the earliest and at the latest.
    pub(super) away: (u64, u64),
    /// The point of the run at which its last connection ended.
    pub(super) left: u64,
    /// CONNECTs without answer.
    pub(super) attempts: Vec<usize>,
    pub(super) subs: Vec<Sub>,
    /// Exchanges from the broker to the client, by packet identifier.
    pub(super) flights: BTreeMap<u16, Flight>,
    /// How often each message was sent.
    pub(super) copies: BTreeMap<u32, Copies>,
    /// Messages it must still get.
    pub(super) owed: BTreeSet<u32>,
    /// The last message first delivered, and when it was taken in, by publisher, topic, QoS published
    /// and QoS delivered.
    pub(super) order: BTreeMap<(usize, usize, QoS, QoS), (u64, u32)>,
    /// A change of access may have taken a subscription: then it is not taken up again.
    pub(super) may_be_curtailed: bool,
    /// When it ended without anybody having been told: at the wish of its client, or by its expiry.
    ended_quietly: Option<u64>,
}

impl Session {
    /// Whether it outlives its connection, as far as is known.
    pub(super) fn is_stored(&self) -> bool {
        self.expiry.0 > 0
    }

    /// The first CONNACK, if it was seen.
    pub(super) fn began(&self) -> Option<When> {
        self.connacks.first().copied()
    }

    /// What was certain is not any more.
    fn blur(&mut self) {
        if self.exists == Exists::Yes {
            self.exists = Exists::Unsure;
        }
        self.owed.clear();
        for flight in self.flights.values_mut() {
            flight.is_loose = true;
        }
        for sub in &mut self.subs {
            sub.is_sure = false;
        }
    }
}

impl Judge {
    /// Whether the client had better start clean, because nobody knows what the broker has for it.
    ///
    /// `known` is the session its last CONNACK was about. A CONNACK with session present 0 that is lost
    /// on the way leaves a client with a state that belongs to no session, and MQTT gives it no means to
    /// notice.
    pub(in crate::simulation) fn is_unsure(&self, client: usize, known: u64) -> bool {
        let session = &self.sessions[client];
        let is_another = session.exists == Exists::Yes && session.epoch != known;
        session.exists == Exists::Unsure || !session.attempts.is_empty() || is_another
    }

    /// Whether the CONNECT of a connection is under way, or was not answered.
    pub(in crate::simulation) fn is_greeting(&self, conn: usize) -> bool {
        let conn = &self.conns[conn];
        conn.served.is_none() && conn.ended.is_none()
    }

    /// Which of its sessions a client has now.
    pub(in crate::simulation) fn epoch(&self, client: usize) -> u64 {
        self.sessions[client].epoch
    }

    /// Whether it may be over by now.
    pub(super) fn may_be_expired(&self, client: usize) -> bool {
        let session = &self.sessions[client];
        session.connection.is_none()
            && self.now.ms + self.slack() >= session.away.0.saturating_add(session.expiry.0)
    }

    /// Whether it must be over by now.
    fn must_be_expired(&self, client: usize) -> bool {
        let session = &self.sessions[client];
        let end = session.away.1.saturating_add(session.expiry.1);
        session.connection.is_none() && self.turned > end.saturating_add(self.slack())
    }

    pub(super) fn session_asked(&mut self, conn: usize) {
        let client = self.conns[conn].client;
        let clean = self.conns[conn].asked.is_some_and(|asked| asked.clean);
        if clean || self.may_be_expired(client) || self.sessions[client].may_be_curtailed {
            // It may end now, and CONNACK tells of it later.
            self.shared_member_went(client);
        }
        self.sessions[client].attempts.push(conn);
    }

    pub(super) fn connack_out(&mut self, conn: usize, ack: &ConnAck) -> Verdict {
        let now = self.now;
        let client = self.conns[conn].client;
        let Some(asked) = self.conns[conn].asked else {
            return Err(Violation::new(
                Invariant::AnswersInOrder,
                "CONNACK without CONNECT",
            ));
        };
        if self.conns[conn].ended.is_some() {
            return Ok(()); // flushed after the end, and no promise any more
        }
        if ack.reason.is_error() {
            return self.attempt_failed(conn, Some(ack.reason));
        }
        for (other, c) in self.conns.iter().enumerate() {
            let served = other != conn && c.client == client && c.served.is_some();
            if served && c.ended.is_none() {
                return Err(Violation::new(
                    Invariant::OneConnectionPerClient,
                    format!(
                        "{} is served on connection {conn} while connection {other} is",
                        self.name(client)
                    ),
                ));
            }
        }
        let session = &self.sessions[client];
        let others = session.attempts.iter().any(|other| *other != conn);
        let (may, must) = match session.exists {
            _ if asked.clean => (false, false),
            // The attempt may have created it, and another one before it.
            Exists::No => (others, false),
            Exists::Unsure => (true, false),
            Exists::Yes if others => (true, false),
            Exists::Yes => (
                !self.must_have_been_expired(client, asked.at),
                !self.may_be_expired(client) && !session.may_be_curtailed,
            ),
        };
        demand(
            if ack.session_present { may } else { !must },
            Invariant::SessionPresentTrue,
            || {
                format!(
                    "CONNACK to {} says session present = {}; clean start: {}, the session exists: {:?}, \
                     away since {:?} ms, expiry {:?} ms, now {} ms",
                    self.name(client),
                    ack.session_present,
                    asked.clean,
                    session.exists,
                    session.away,
                    session.expiry,
                    now.ms
                )
            },
        )?;
        let session = &mut self.sessions[client];
        session.attempts.retain(|other| *other != conn);
        if ack.session_present {
            self.will_resumed(client, asked.at);
        } else {
            self.wills_of_ended_session(client);
            self.end_session(client);
        }
        let session = &mut self.sessions[client];
        session.exists = Exists::Yes;
        session.connacks.push(now);
        session.connection = Some(conn);
        session.expiry = (asked.expiry, asked.expiry);
        session.expiry_asked = asked.expiry;
        session.away = (u64::MAX, 0);
        self.conns[conn].served = Some(now);
        self.will_armed(conn);
        Ok(())
    }

    fn must_have_been_expired(&self, client: usize, at: When) -> bool {
        let session = &self.sessions[client];
        let end = session.away.1.saturating_add(session.expiry.1);
        session.connection.is_none()
            && self.turned > end.saturating_add(self.slack())
            && at.ms > end.saturating_add(self.slack())
    }

    /// A CONNECT was refused, or its connection ended before the answer.
    fn attempt_failed(&mut self, conn: usize, reason: Option<ReasonCode>) -> Verdict {
        let client = self.conns[conn].client;
        let Some(asked) = self.conns[conn].asked else {
            return Ok(());
        };
        let unsure_time = self.may_be_expired(client);
        let When { seq, ms: now } = self.now;
        let attempts = &mut self.sessions[client].attempts;
        let known = attempts.iter().position(|other| *other == conn);
        let Some(place) = known else { return Ok(()) };
        attempts.remove(place);
        if matches!(
            reason,
            Some(ReasonCode::NotAuthorized | ReasonCode::BadUserNameOrPassword)
        ) {
            return Ok(());
        }
        let may_have_ended = asked.clean
            || asked.expiry == 0
            || unsure_time
            || self.sessions[client].may_be_curtailed;
        if may_have_ended {
            self.shared_member_went(client);
        }
        let session = &mut self.sessions[client];
        match session.exists {
            Exists::Yes if may_have_ended => session.blur(),
            // It was resumed, or it was not.
            Exists::Yes => {
                session.expiry.0 = session.expiry.0.min(asked.expiry);
                session.expiry.1 = session.expiry.1.max(asked.expiry);
                session.away.0 = session.away.0.min(now);
                session.away.1 = session.away.1.max(now);
            }
            Exists::No if asked.expiry > 0 => session.exists = Exists::Unsure,
            Exists::No | Exists::Unsure => {}
        }
        if session.connection.is_none() {
            session.left = seq;
        }
        if let Exists::Unsure = session.exists {
            session.expiry.1 = session.expiry.1.max(asked.expiry);
            session.away.1 = session.away.1.max(now);
        }
        self.wills_unsure(client);
        Ok(())
    }

    pub(super) fn disconnect_in(&mut self, conn: usize, disconnect: &Disconnect) -> Verdict {
        let max = self.plan.limits.session_expiry_max.as_millis() as u64;
        let expiry = disconnect.properties.session_expiry_interval;
        self.conns[conn].leaving = Some(Leaving {
            with_will: disconnect.reason != ReasonCode::NORMAL_DISCONNECTION,
            expiry: expiry.map(|seconds| milliseconds(seconds).min(max)),
        });
        Ok(())
    }

    pub(super) fn session_lost_connection(&mut self, conn: usize) -> Verdict {
        let now = self.now;
        let client = self.conns[conn].client;
        if self.conns[conn].served.is_none() {
            return self.attempt_failed(conn, None);
        }
        let session = &mut self.sessions[client];
        if session.connection != Some(conn) {
            return Ok(());
        }
        session.connection = None;
        session.away = (now.ms, now.ms);
        session.left = now.seq;
        let leaving = self.conns[conn].leaving;
        if let Some(expiry) = leaving.and_then(|leaving| leaving.expiry) {
            session.expiry = (expiry, expiry);
        }
        self.will_connection_ended(conn);
        self.flights_lost_connection(client);
        let session = &mut self.sessions[client];
        if session.expiry.1 == 0 {
            self.end_session(client);
            self.sessions[client].ended_quietly = leaving.map(|_| now.seq);
        }
        Ok(())
    }

    /// The session is over: nothing of it comes back.
    pub(super) fn end_session(&mut self, client: usize) {
        self.shared_member_went(client);
        let old = &mut self.sessions[client];
        *old = Session {
            epoch: old.epoch + 1,
            attempts: std::mem::take(&mut old.attempts),
            ..Session::default()
        };
    }

    /// Sessions whose time is over are.
    pub(super) fn end_expired(&mut self) {
        for client in 0..self.sessions.len() {
            if self.sessions[client].exists != Exists::No && self.may_be_expired(client) {
                self.shared_member_went(client);
            }
            let session = &self.sessions[client];
            if session.exists != Exists::No
                && session.attempts.is_empty()
                && self.must_be_expired(client)
            {
                self.wills_of_ended_session(client);
                self.end_session(client);
                self.sessions[client].ended_quietly = Some(self.now.seq);
            }
        }
    }

    pub(super) fn session_crashed(&mut self, client: usize) {
        let now = self.now;
        let attempts = self.sessions[client].attempts.clone();
        for conn in attempts {
            // The error is for callers that demand something; a failed attempt demands nothing.
            let _ = self.attempt_failed(conn, None);
        }
        let safe = self.safe;
        let session = &mut self.sessions[client];
        if let Some(conn) = session.connection.take() {
            session.away = (now.ms, now.ms);
            session.left = now.seq;
            // DISCONNECT was handed in and nobody knows what came of it.
            if let Some(expiry) = self.conns[conn].leaving.and_then(|leaving| leaving.expiry) {
                session.expiry.0 = session.expiry.0.min(expiry);
            }
        } else if session.exists != Exists::No && session.left > safe {
            // That the connection had ended may be lost, and what its DISCONNECT said.
            session.away.1 = now.ms;
            session.expiry.0 = session.expiry.0.min(session.expiry_asked);
            session.expiry.1 = u64::MAX;
        }
        let lost_end = session.ended_quietly.is_some_and(|ended| ended > safe);
        if session.expiry.1 == 0 && session.exists != Exists::No {
            self.end_session(client);
        }
        let session = &mut self.sessions[client];
        if lost_end && session.exists == Exists::No {
            session.exists = Exists::Unsure;
            session.expiry = (0, u64::MAX);
            session.away = (0, now.ms);
        }
        for flight in session.flights.values_mut() {
            flight.is_loose = true;
        }
        for copies in session.copies.values_mut() {
            copies.crashed(safe);
        }
        for sub in &mut session.subs {
            // Removed by a change of access: that may be lost. UNSUBACK is a promise.
            if !sub.is_unsubscribed && sub.closed.is_some_and(|closed| closed > safe) {
                sub.closed = None;
                sub.is_replaced = false;
            }
        }
    }
}
