//! Ends: of a connection, of a session, and what they leave behind.
//!
//! A connection that ends gives its session back. The session ends too if it is transient; else it waits
//! for its client until it expires, and so does its will, for its delay. What a shared subscription gave
//! to one member goes to another one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mqtt::{Publish, QoS};

use super::Receipt;
use super::announcing::{Departed, Refused, WillPublished, disconnected_by};
use super::connection::{End, EndedBy, WillFate};
use super::delivery::{Access, Delivery, Recorded};
use super::exchange::{Parked, Share};
use super::fanout::Publisher;
use super::format::Owner;
use super::frame::SubscriptionIds;
use super::joining::whole_seconds;
use super::mailbox::Post;
use super::message::Message;
use super::planted::planted;
use super::publishing::Tapped;
use super::session::{AlsoSent, Link};
use super::shard::{Shard, State};
use super::share::{Choice, Presence};
use super::slots::{ConnectionId, SessionId};
use super::subscriber::{RetainFlag, TRANSIENT};
use super::tenants::Farewell;
use crate::hooks::{Decision, Identity};

impl Shard {
    /// A connection is over.
    pub(super) fn end(&mut self, id: ConnectionId, end: End) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        tenant.farewell = match end.by {
            EndedBy::Network => Farewell::Drop,
            EndedBy::Client => Farewell::Flush,
            EndedBy::Broker
            | EndedBy::Refusal
            | EndedBy::Operator
            | EndedBy::Access
            | EndedBy::Authentication => Farewell::Linger,
        };
        let dropped = tenant.outbox.drop_messages();
        let joiner = tenant.joiner.take();
        let memory = &self.exchange.admission.queue_memory;
        self.queued.add(tenant.outbox.uncount(), memory);
        tenant.authentication = None;
        let session_id = tenant.session.take();
        // Not that of another one, which takes over from this one.
        let greeting = self.greeting.take_if(|(of, _)| *of == id);
        let (peer, listener) = (tenant.origin.peer, &tenant.origin.listener);
        let connection = tenant.number;
        self.counters.dropped_session_end.many(dropped as u64);
        let session = session_id.and_then(|id| self.sessions.get(id));
        let identity = session.as_ref().and_then(|s| s.identity.clone());
        let joining = joiner.as_ref().and_then(|j| Some(&j.known.as_ref()?.0));
        let known = identity.as_deref().or(joining);
        let requested = match (&joiner, &greeting) {
            (Some(joiner), _) => Some(&*joiner.connect.client_id),
            (None, Some((_, client_id))) => Some(&**client_id),
            (None, None) => None,
        };
        let assigned = joiner.as_ref().and_then(|j| j.assigned.as_deref());
        let client = match (&session, known) {
            (Some(session), _) => &*session.client_id,
            (None, Some(identity)) => &*identity.client_id,
            (None, None) => assigned.or(requested).unwrap_or_default(),
        };
        let principal = match (&session, known) {
            (Some(session), _) => &*session.principal,
            (None, Some(identity)) => &*identity.principal,
            (None, None) => "",
        };
        let group = known.and_then(|identity| identity.group.as_deref());
        match end.by {
            EndedBy::Refusal => {
                self.counters.connects_refused.one(end.reason);
                tracing::warn!(
                    event = "client.refused",
                    client,
                    principal,
                    group,
                    %peer,
                    %listener,
                    reason = %end.reason,
                    detail = %end.detail,
                );
            }
            _ => {
                self.counters.disconnects.one(end.reason);
                tracing::info!(
                    event = "client.disconnected",
                    client,
                    principal,
                    group,
                    %peer,
                    %listener,
                    connection,
                    by = disconnected_by(&end).name(),
                    reason = %end.reason,
                    detail = %end.detail,
                    undelivered = session.as_ref().map_or(0, |s| s.undelivered()),
                );
            }
        }
        let departed = session.map(|session| Departed {
            client_id: Arc::clone(&session.client_id),
            principal: Arc::clone(&session.principal),
            identity: identity.clone(),
        });
        if let Some(tenant) = self.tenants.get(id) {
            tenant.wake();
        }
        self.keep_debt(id);
        if !self.traces.is_empty() {
            self.trace_end(id, &end);
        }
        let is_refusal = end.by == EndedBy::Refusal;
        // Without a CONNECT that was read there is nobody to speak of.
        if is_refusal && (departed.is_some() || requested.is_some()) {
            let who = Refused {
                identity: identity.as_deref().or(joining),
                client_id: match (&departed, joining) {
                    (Some(departed), _) => &departed.client_id,
                    (None, Some(identity)) => &identity.client_id,
                    (None, None) => assigned.or(requested).unwrap_or_default(),
                },
                requested,
            };
            self.announce_refused(id, &who, &end);
        }
        let (Some(departed), Some(session_id)) = (departed, session_id) else {
            return;
        };
        let will = self.give_back(session_id, &end);
        if !is_refusal {
            let by = disconnected_by(&end);
            if by.is_broken() {
                let (principal, client_id) = (&departed.principal, &departed.client_id);
                let hold_offs = &self.exchange.admission.hold_offs;
                hold_offs.broke(self.now, principal, client_id);
            }
            self.announce_disconnected(id, &departed, &end, will);
        }
        // Last: who sees that there is one connection less finds all that it left behind in its place.
        self.exchange.registry().leave(&departed.principal);
    }

    /// The session has no connection any more.
    fn give_back(&mut self, id: SessionId, end: &End) -> WillPublished {
        let Some(session) = self.sessions.get(id) else {
            return WillPublished::No;
        };
        let max = whole_seconds(self.exchange.limits.session_expiry_max);
        if let Some(expiry) = end.session_expiry {
            session.expiry = expiry.min(max);
        }
        if end.will == WillFate::Discarded {
            session.will = None;
        }
        let ends = session.expiry == 0;
        self.set_presence(id, Presence::Away);
        let Some(session) = self.sessions.get(id) else {
            return WillPublished::No;
        };
        if ends {
            session.link = Link::Away;
            return self.end_session(id);
        }
        let also_sent = match session.shares_in_flight() && others_online(session, id) {
            true => AlsoSent::AtLeastOnce,
            false => AlsoSent::No,
        };
        let shared = session.disconnected(also_sent);
        let lasts = u64::from(session.expiry) * 1000;
        let now = self.now;
        session.disconnected_us = Some(now.wall_us);
        session.ends_at = (session.expiry != u32::MAX).then_some(now.tick + lasts);
        let mut due = None;
        // When the broker stops, wills of sessions it will know again wait for it.
        if self.state == State::Open {
            match &session.will {
                Some(will) if will.delay == 0 => due = session.will.take(),
                Some(will) => {
                    session.will_at = Some(now.tick + lasts.min(u64::from(will.delay) * 1000));
                }
                None => {}
            }
        }
        session.put(&mut self.storing.batch);
        let next = session.ends_at.into_iter().chain(session.will_at).min();
        self.file_session(id, next);
        self.pass_on(id, shared);
        match due {
            Some(will) => self.publish_will(id, will.publish),
            None => WillPublished::No,
        }
    }

    /// A deadline of a session may have come.
    pub(super) fn look_after(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let now = self.now.tick;
        if session.connection().is_some() {
            return;
        }
        if session.ends_at.is_some_and(|at| at <= now)
            && !planted!(self.exchange, ExpiredSessionKept)
        {
            self.counters.sessions_expired.one();
            tracing::info!(
                event = "session.expired",
                client = %session.client_id,
                principal = %session.principal,
                group = session.identity.as_ref().and_then(|i| i.group.as_deref()),
                undelivered = session.undelivered(),
            );
            self.end_session(id);
            return;
        }
        if session.will_at.is_some_and(|at| at <= now) {
            session.will_at = None;
            let will = session.will.take();
            session.put(&mut self.storing.batch);
            if let Some(will) = will {
                self.publish_will(id, will.publish);
            }
        }
        if let Some(session) = self.sessions.get(id) {
            let next = session.ends_at.into_iter().chain(session.will_at).min();
            self.file_session(id, next);
        }
    }

    /// A session is over: its subscriptions go, its will is published, its place becomes free.
    pub(super) fn end_session(&mut self, id: SessionId) -> WillPublished {
        let mut published = WillPublished::No;
        self.give_up_subscriptions(id);
        let Some(session) = self.sessions.get(id) else {
            return published;
        };
        let will = session.will.take();
        if session.is_stored() {
            // Before its will is published: after a crash it must not be there to be published again.
            self.storing.batch.delete(session.record);
        }
        if let Some(will) = will {
            published = self.publish_will(id, will.publish);
        }
        let Some(mut session) = self.sessions.remove(id) else {
            return published;
        };
        self.exchange.sessions.fetch_sub(1, Ordering::Relaxed);
        if self.clients.get(&session.client_id) == Some(&id) {
            self.clients.remove(&session.client_id);
        }
        self.principals.remove(&session.principal, id);
        session.forget_all_received(&mut self.storing.batch);
        let mut shared = Vec::new();
        let mut dropped = 0;
        for (delivery, was_sent) in session.take_all() {
            // What was sent at QoS 2 nobody else may get [MQTT-4.8.2-5].
            let bound = was_sent && delivery.qos == QoS::ExactlyOnce;
            if delivery.can_go_to_another() && !bound {
                shared.push(delivery);
            } else {
                dropped += 1;
                delivery.done(self.exchange.gauge(id), &mut self.storing.batch);
            }
        }
        self.counters.dropped_session_end.many(dropped);
        if session.is_stored() {
            self.exchange
                .stored_sessions
                .fetch_sub(1, Ordering::Relaxed);
            self.storing.ends(Arc::clone(&session.client_id));
        }
        self.pass_on(id, shared);
        published
    }

    /// Who the client of a session is, also when it has not been here since the start.
    pub(super) fn recall(&mut self, id: SessionId) -> Option<Arc<Identity>> {
        let session = self.sessions.get(id)?;
        if session.identity.is_none() {
            session.identity = self
                .exchange
                .hooks
                .recall(&session.client_id, &session.principal)
                .map(Arc::new);
        }
        session.identity.clone()
    }

    /// Publishes the will of a session that is still there.
    pub(super) fn publish_will(&mut self, id: SessionId, mut will: Publish) -> WillPublished {
        let identity = self.recall(id);
        let Some(session) = self.sessions.get(id) else {
            return WillPublished::No;
        };
        let Some(identity) = identity else {
            self.counters.dropped_unauthorized.one();
            tracing::warn!(
                event = "will.dropped",
                client = %session.client_id,
                principal = %session.principal,
                "nobody knows this client any more",
            );
            return WillPublished::No;
        };
        let publisher = Publisher {
            session: Some(id),
            hash: session.hash,
        };
        // Access may have changed since CONNECT.
        if self.exchange.hooks.may_publish(&identity, &will.topic) == Decision::Deny {
            self.counters.dropped_unauthorized.one();
            tracing::warn!(
                event = "will.denied",
                client = %identity.client_id,
                principal = %identity.principal,
                group = identity.group.as_deref(),
                topic = %will.topic,
            );
            return WillPublished::No;
        }
        if let Tapped::Refused(_) = self.tap(&identity, (id, Receipt::NONE), &will) {
            self.counters.dropped_tap_refused.one();
            return WillPublished::No;
        }
        self.counters.wills_published.one();
        if self.distribute(&mut will, publisher).is_err() {
            self.counters.dropped_store_full.one();
            return WillPublished::No;
        }
        WillPublished::Yes
    }

    /// Tells the shared subscriptions of a session whether it can be sent something; when it can, it
    /// gets what waited for any of their members.
    pub(super) fn set_presence(&mut self, id: SessionId, presence: Presence) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let shares: Vec<Arc<Share>> = session
            .subscriptions
            .shared()
            .map(|(_, share)| Arc::clone(share))
            .collect();
        for share in shares {
            if presence == Presence::Online || !planted!(self.exchange, SharedToAway) {
                share.group().set_presence(id, presence);
            }
            if presence == Presence::Online {
                self.hand_out(&share);
            }
        }
    }

    /// Gives what waits in a share to members that are online and have room.
    pub(super) fn hand_out(&mut self, share: &Arc<Share>) {
        loop {
            let exchange = Arc::clone(&self.exchange);
            let mut group = share.group();
            let Some(delivery) = share.unpark(&mut group) else {
                return;
            };
            let size = delivery.len();
            let chosen = group.choose(
                delivery.age(),
                |member| exchange.gauge(member).messages(),
                |member| exchange.has_room(member, size),
            );
            let Choice::Member(_, member) = chosen else {
                share.park(&mut group, delivery);
                return;
            };
            drop(group);
            self.give(delivery, member);
        }
    }

    /// Lets deliveries wait in their shares, the batch about them being submitted.
    pub(super) fn park(&mut self, parked: Vec<Parked>) {
        let mut shares: Vec<Arc<Share>> = Vec::new();
        for Parked { share, delivery } in parked {
            let mut group = share.group();
            if group.can_wait() {
                share.park(&mut group, delivery);
                drop(group);
                if !shares.iter().any(|known| Arc::ptr_eq(known, &share)) {
                    shares.push(share);
                }
                continue;
            }
            // Whoever would have come for it has left meanwhile.
            let exchange = Arc::clone(&self.exchange);
            let in_flight = |member| exchange.gauge(member).messages();
            let chosen = group.choose(delivery.age(), in_flight, |_| true);
            drop(group);
            match chosen {
                Choice::Member(_, member) => self.give(delivery, member),
                Choice::Nobody => self.drop_orphan(delivery),
            }
        }
        for share in shares {
            // Somebody may have come meanwhile.
            self.hand_out(&share);
        }
    }

    /// Gives deliveries of shared subscriptions that `not` had to other members; what nobody can take
    /// now waits, if somebody will come for it.
    pub(super) fn pass_on(&mut self, not: SessionId, deliveries: Vec<Delivery>) {
        for mut delivery in deliveries {
            delivery.count_out(self.exchange.gauge(not));
            let message = delivery.message(&self.exchange.trash);
            let share = delivery.share.clone().filter(|_| message.is_some());
            let Some(share) = share else {
                self.drop_orphan(delivery);
                continue;
            };
            let exchange = Arc::clone(&self.exchange);
            let size = delivery.len();
            let mut group = share.group();
            let chosen = group.choose(
                delivery.age(),
                |member| exchange.gauge(member).messages(),
                |member| member != not && exchange.has_room(member, size),
            );
            let can_wait = group.can_wait();
            drop(group);
            match chosen {
                Choice::Member(_, member) => {
                    self.counters.share_redelivered.one();
                    self.give(delivery, member);
                }
                Choice::Nobody if can_wait => {
                    delivery.frame = None;
                    delivery.access = Access::Check;
                    if let Some(message) = &delivery.message {
                        delivery.qos = message.qos;
                    }
                    delivery.retain = false;
                    delivery.ids = SubscriptionIds::None;
                    self.ensure_stored(&mut delivery);
                    delivery.put_waiting(Owner::Share, &mut self.storing.batch);
                    self.parked.push(Parked { share, delivery });
                }
                Choice::Nobody => self.drop_orphan(delivery),
            }
        }
    }

    fn drop_orphan(&mut self, delivery: Delivery) {
        self.counters.dropped_session_end.one();
        if delivery.is_stored() {
            self.storing.batch.delete(delivery.record);
        }
    }

    /// Gives a delivery of a shared subscription to one member.
    fn give(&mut self, mut delivery: Delivery, member: super::subscriber::Subscriber) {
        let Some(message) = delivery.message(&self.exchange.trash) else {
            return self.drop_orphan(delivery);
        };
        delivery.frame = None;
        delivery.access = Access::Check;
        delivery.qos = message.qos.min(member.granted);
        delivery.retain = message.retain && member.retain == RetainFlag::AsPublished;
        delivery.ids = SubscriptionIds::one(member.id);
        let owner = match member.session {
            TRANSIENT => Owner::Share,
            session => Owner::Session(session),
        };
        if delivery.qos == QoS::AtMostOnce {
            // The member's own from here on.
            if delivery.is_stored() {
                self.storing.batch.delete(delivery.record);
                delivery.record = TRANSIENT;
            }
            delivery.recorded = Recorded::No;
        } else {
            if member.session != TRANSIENT {
                self.ensure_stored(&mut delivery);
            }
            delivery.recorded = Recorded::Otherwise;
            if delivery.is_stored() && member.session == TRANSIENT {
                // What another member had of it is over, and its packet identifier free.
                delivery.put_waiting(Owner::Share, &mut self.storing.batch);
            }
        }
        if delivery.qos > QoS::AtMostOnce {
            let gauge = self.exchange.gauge(member.to);
            gauge.add(message.len());
            delivery.count_in(gauge, message.len());
        }
        self.offer(Post {
            to: member.to,
            owner,
            delivery,
        });
    }

    /// Makes sure that the store has, or will have, the message of a delivery.
    fn ensure_stored(&mut self, delivery: &mut Delivery) {
        let Some(message) = &delivery.message else {
            return;
        };
        if !message.is_stored() {
            let record = self.exchange.next_record();
            let publish = message.publish();
            let since = message.since();
            if let Ok(stored) = Message::new(record, &publish, since, &self.exchange.trash) {
                let age_us = (self.now.tick as i64 - since).saturating_mul(1000);
                let received_us = self.now.wall_us.saturating_sub(age_us);
                stored.put(received_us, &mut self.storing.batch);
                self.storing.held.push(Arc::clone(&stored));
                delivery.claim = Some(stored.claim());
                delivery.message = Some(stored);
            }
        }
        if !delivery.is_stored() {
            delivery.record = self.exchange.next_record();
        }
    }
}

/// Whether one of the shared subscriptions of a session has another member online.
fn others_online(session: &super::session::Session, id: SessionId) -> bool {
    let mut shared = session.subscriptions.shared();
    shared.any(|(_, share)| share.group().has_online_besides(id))
}
