//! Subscriptions of sessions: made, ended, checked again; and the retained messages they bring.

use std::collections::VecDeque;
use std::sync::Arc;

use journal::RecordId;
use mqtt::{
    QoS, ReasonCode, RetainHandling, SubAck, SubAckProperties, Subscribe, Subscription, UnsubAck,
    UnsubAckProperties, Unsubscribe, Utf8,
};

use super::connection::ProblemInformation;
use super::deferred::{self, Deferred, Subscribed, Unsubscribed};
use super::delivery::{Access, Delivery};
use super::exchange::{Exchange, Share};
use super::format::{Owner, RetainedOwed, SubscriptionRecord};
use super::frame::SubscriptionIds;
use super::mailbox::Post;
use super::message::Message;
use super::planted::planted;
use super::retained::{Progress, Walk};
use super::session::Held;
use super::shard::Shard;
use super::share::{Membership, Presence};
use super::slots::{ConnectionId, SessionId};
use super::subscriber::{OwnMessages, RetainFlag, Subscriber, TRANSIENT};
use crate::admission::memory::Fits;
use crate::hooks::Decision;

/// Topics looked at for retained messages in one go; a quarter of a millisecond at most.
pub(super) const WALK_BUDGET: usize = 256;

/// Walks that are begun in one go: most are over at the first topic, and each has something of its own to
/// look for.
const WALKS_BEGUN: usize = 16;

/// Retained messages still to be sent for one subscription.
#[derive(Debug)]
pub(crate) struct RetainedWalk {
    pub(crate) walk: Walk,
    pub(crate) subscriber: Subscriber,
    /// All topics were looked at.
    pub(crate) over: bool,
    /// Found, and there was no room for them.
    pub(crate) found: VecDeque<Arc<Message>>,
    /// Of the subscription, if it says that they are owed.
    pub(crate) record: RecordId,
    pub(crate) round: Round,
}

/// Whether some of the messages may have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    First,
    /// After a restart. What is sent at QoS 0 is not sent again; of the others, those that were in the
    /// store with the end of the walk are not either, as a walk that is short is stored with it.
    Again,
}

/// The filters that were granted.
fn granted_of<'a>(
    asked: &'a [Subscription],
    reasons: &'a [ReasonCode],
) -> impl Iterator<Item = &'a str> {
    let granted = asked.iter().zip(reasons);
    let granted = granted.filter(|(_, reason)| !reason.is_error());
    granted.map(|(asked, _)| asked.filter.as_str())
}

/// A filter without `$share/name/`.
pub(super) fn matching(filter: &str) -> &str {
    match filter.strip_prefix("$share/") {
        Some(rest) => rest.split_once('/').map_or(rest, |(_, filter)| filter),
        None => filter,
    }
}

impl Shard {
    /// SUBSCRIBE came.
    pub(super) fn subscribe(&mut self, id: ConnectionId, subscribe: Subscribe) {
        let exchange = Arc::clone(&self.exchange);
        let limits = &exchange.limits;
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(session) = tenant.session.and_then(|id| self.sessions.get(id)) else {
            return;
        };
        let Some(identity) = session.identity.clone() else {
            return;
        };
        let session_id = session.id;
        let session_record = session.record;
        let version = tenant.connection.version();
        let subscription_id = subscribe
            .properties
            .subscription_id
            .map_or(0, |id| id.get());
        let mut reasons = Vec::with_capacity(subscribe.subscriptions.len());
        // What became of it may have to wait for the store, which takes memory.
        let texts = subscribe.subscriptions.iter();
        let text = texts.map(|asked| asked.filter.as_str().len()).sum();
        let asked = subscribe.subscriptions.len();
        let waiting = deferred::of_filters(asked, asked, text);
        let account = &exchange.admission.session_memory;
        let no_memory = session.is_stored() && account.fits(tenant.deferred, waiting) == Fits::No;
        let any_retained = exchange.retained().topics.len() > 0;
        let mut joined = Vec::new();
        let mut granted = 0;
        for asked in &subscribe.subscriptions {
            let filter = asked.filter.as_str();
            let known = session.subscriptions.get_key_value(filter);
            let known = known.map(|(filter, held)| (Arc::clone(filter), held.clone()));
            let is_new = known.is_none();
            let reason = if exchange.is_filter_too_deep(asked.filter.filter()) {
                ReasonCode::TopicFilterInvalid
            } else if no_memory
                || is_new
                    && (session.subscriptions.len() >= limits.max_subscriptions
                        || session.has_room_for(filter) == Fits::No)
            {
                ReasonCode::QuotaExceeded
            } else if exchange
                .hooks
                .may_subscribe(&identity, asked.filter.filter())
                == Decision::Deny
            {
                tracing::warn!(
                    event = "client.subscribe_denied",
                    client = %identity.client_id,
                    principal = %identity.principal,
                    group = identity.group.as_deref(),
                    peer = %tenant.origin.peer,
                    listener = %tenant.origin.listener,
                    filter,
                );
                ReasonCode::NotAuthorized
            } else {
                granted += 1;
                let (filter, record) = match known {
                    Some((filter, held)) => (filter, held.record),
                    None if session.is_stored() => (filter.into(), exchange.next_record()),
                    None => (filter.into(), TRANSIENT),
                };
                let subscriber = Subscriber {
                    to: session_id,
                    session: session_record,
                    id: subscription_id,
                    granted: asked.qos,
                    version,
                    own: match asked.no_local {
                        true => OwnMessages::Skip,
                        false => OwnMessages::Deliver,
                    },
                    retain: match asked.retain_as_published {
                        true => RetainFlag::AsPublished,
                        false => RetainFlag::Clear,
                    },
                };
                let share = if planted!(exchange, SubAckBeforeIndex) && !asked.filter.is_shared() {
                    self.late.push((Arc::clone(&filter), subscriber));
                    None
                } else {
                    place(&exchange, &filter, subscriber, Presence::Online)
                };
                let wants_retained = match asked.retain_handling {
                    RetainHandling::AtSubscribe => true,
                    RetainHandling::AtNewSubscription => is_new,
                    RetainHandling::Never => false,
                };
                // A shared subscription gets none (section 4.8.2).
                let walks = wants_retained && any_retained && share.is_none();
                let owed = match walks && asked.qos > QoS::AtMostOnce {
                    true => RetainedOwed::Yes,
                    false => RetainedOwed::No,
                };
                if record != TRANSIENT {
                    let kept = SubscriptionRecord {
                        session: session_record,
                        filter: Arc::clone(&filter),
                        granted: subscriber.granted,
                        own: subscriber.own,
                        retain: subscriber.retain,
                        id: subscriber.id,
                        retained: owed,
                    };
                    let batch = &mut self.storing.batch;
                    batch.put_with(record, |out| kept.write(out));
                }
                joined.extend(share.clone());
                if share.is_none() {
                    session.walks.retain(|walk| walk.walk.filter() != &*filter);
                }
                if walks {
                    session.walks.push_back(RetainedWalk {
                        walk: Walk::new(&filter),
                        subscriber,
                        over: false,
                        found: VecDeque::new(),
                        record: match owed {
                            RetainedOwed::Yes => record,
                            RetainedOwed::No => TRANSIENT,
                        },
                        round: Round::First,
                    });
                }
                session.subscribed(filter, Held { record, share });
                ReasonCode::granted(asked.qos)
            };
            reasons.push(reason);
        }
        self.counters.subscribes_granted.many(granted);
        self.counters
            .subscribes_refused
            .many(reasons.len() as u64 - granted);
        let refusal = match tenant.connection.problem_information() {
            ProblemInformation::Wanted => reasons.iter().find_map(|reason| explanation(*reason)),
            ProblemInformation::Unwanted => None,
        };
        // After the index has it: what is published once SUBACK is seen is delivered.
        let answer = SubAck {
            packet_id: subscribe.packet_id,
            reasons,
            properties: SubAckProperties {
                reason_string: refusal,
                ..SubAckProperties::default()
            },
        };
        if session_record == TRANSIENT {
            let granted = granted_of(&subscribe.subscriptions, &answer.reasons);
            self.announce_subscribed(id, granted);
            self.send(id, &answer.into());
            self.begin_walks(id);
        } else {
            let granted = granted_of(&subscribe.subscriptions, &answer.reasons);
            let granted = granted.map(Box::from).collect();
            let subscribed = Box::new(Subscribed { granted, answer });
            self.once_stored(true, Deferred::Subscribed(id, subscribed));
        }
        for share in joined {
            self.hand_out(&share);
        }
    }

    /// UNSUBSCRIBE came.
    pub(super) fn unsubscribe(&mut self, id: ConnectionId, unsubscribe: Unsubscribe) {
        let Some(session_id) = self.tenants.get(id).and_then(|tenant| tenant.session) else {
            return;
        };
        let stored = self.sessions.get(session_id).is_some_and(|s| s.is_stored());
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            let removed = self.remove_subscription(session_id, filter.as_str());
            reasons.push(match removed {
                true => ReasonCode::Success,
                false => ReasonCode::NoSubscriptionExisted,
            });
        }
        let answer = UnsubAck {
            packet_id: unsubscribe.packet_id,
            reasons,
            properties: UnsubAckProperties::default(),
        };
        let ended = unsubscribe.filters.iter().zip(&answer.reasons);
        let ended = ended.filter(|(_, reason)| **reason == ReasonCode::Success);
        let ended = ended.map(|(filter, _)| filter.as_str());
        if stored {
            // There is memory for it: what has ended held more.
            let ended = ended.map(Box::from).collect();
            let unsubscribed = Box::new(Unsubscribed { ended, answer });
            self.once_stored(true, Deferred::Unsubscribed(id, unsubscribed));
        } else {
            self.announce_unsubscribed(id, ended);
            self.send(id, &answer.into());
        }
    }

    /// Says something to the client of a stored session once the store has everything up to now, also
    /// what other inputs brought: an answer that changed nothing may still tell of a change a moment
    /// ago. To that of a transient one, now.
    pub(super) fn once_stored(&mut self, stored: bool, deferred: Deferred) {
        if stored {
            if let Some((id, bytes)) = deferred.answer() {
                self.count_answer(id, bytes);
            }
            self.storing.deferred.push(deferred);
        } else {
            self.say(deferred);
        }
    }

    /// Ends one subscription of a session; says whether there was one.
    pub(super) fn remove_subscription(&mut self, id: SessionId, filter: &str) -> bool {
        let session = self.sessions.get(id);
        let Some(held) = session.and_then(|s| s.unsubscribed(filter)) else {
            return false;
        };
        if let Some(session) = self.sessions.get(id) {
            session.walks.retain(|walk| walk.walk.filter() != filter);
        }
        let exchange = Arc::clone(&self.exchange);
        match &held.share {
            None => {
                exchange.subscriptions_mut().own.unsubscribe(filter, id);
            }
            Some(share) => {
                let mut left = Vec::new();
                {
                    let mut subscriptions = exchange.subscriptions_mut();
                    let mut group = share.group();
                    group.leave(id);
                    // Nobody will come for what waits.
                    while !group.can_wait()
                        && let Some(delivery) = share.unpark(&mut group)
                    {
                        left.push(delivery);
                    }
                    drop(group);
                    subscriptions.drop_share_if_empty(share, matching(filter));
                }
                self.counters.dropped_session_end.many(left.len() as u64);
                for delivery in left {
                    if delivery.is_stored() {
                        self.storing.batch.delete(delivery.record);
                    }
                }
            }
        }
        if held.record != TRANSIENT {
            self.storing.batch.delete(held.record);
        }
        true
    }

    /// Puts a session's subscriptions into the index again, under what has changed: its version.
    pub(super) fn index_again(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let mut subscriptions = self.exchange.subscriptions_mut();
        for (filter, held) in &session.subscriptions {
            match &held.share {
                None => subscriptions.own.set_version(filter, id, session.version),
                Some(share) => share
                    .group()
                    .update(id, |member| member.version = session.version),
            }
        }
    }

    /// What the client may do has, or may have, changed: ends the subscriptions it may not have any
    /// more, and takes back what waits to be written.
    pub(super) fn check_access(&mut self, id: SessionId) {
        let Some(identity) = self.recall(id) else {
            // Checked when its client comes back.
            return;
        };
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let hooks = Arc::clone(&self.exchange.hooks);
        let denied: Vec<Arc<str>> = session
            .subscriptions
            .keys()
            .filter(|filter| hooks.may_subscribe(&identity, matching(filter)) == Decision::Deny)
            .cloned()
            .collect();
        let lost = !denied.is_empty();
        let connection = session.connection();
        for filter in denied {
            self.counters.subscriptions_revoked.one();
            let origin = connection.and_then(|id| self.tenants.get(id));
            let origin = origin.map(|tenant| &tenant.origin);
            tracing::warn!(
                event = "client.subscription_revoked",
                client = %identity.client_id,
                principal = %identity.principal,
                group = identity.group.as_deref(),
                peer = origin.map(|origin| tracing::field::display(origin.peer)),
                listener = origin.map(|origin| &*origin.listener),
                %filter,
            );
            self.remove_subscription(id, &filter);
        }
        let connection = self.sessions.get(id).and_then(|session| {
            if lost {
                session.curtailed = true;
                session.put(&mut self.storing.batch);
            }
            session.online()
        });
        let Some(connection) = connection else {
            return;
        };
        self.with_outbox(connection, |session, outbox, cx| {
            let refused = |topic: &str| hooks.may_receive(&identity, topic) == Decision::Deny;
            session.withdraw(refused, outbox, cx);
        });
    }

    /// Sends retained messages for new subscriptions, as far as there is room and up to about as many as
    /// are looked at in one go. Says whether there was room.
    pub(super) fn walk_some(&mut self, id: ConnectionId) -> bool {
        let mut room = WALK_BUDGET;
        let mut walked = false;
        for _ in 0..WALKS_BEGUN {
            if room == 0 || !self.has_room_for_retained(id) {
                break;
            }
            match self.walk(id, &mut room) {
                Some(Progress::Done) => walked = true,
                Some(Progress::More) => return true,
                None => break,
            }
        }
        walked
    }

    /// Goes on with the oldest walk, for at most `room` topics, of which it takes what it offered. `None` if
    /// there is none.
    fn walk(&mut self, id: ConnectionId, room: &mut usize) -> Option<Progress> {
        let exchange = Arc::clone(&self.exchange);
        let now = self.now;
        let session = self.session_of(id)?;
        let session_id = session.id;
        let walk = session.walks.front_mut()?;
        let (subscriber, round) = (walk.subscriber, walk.round);
        let mut progress = Progress::More;
        if walk.found.is_empty() {
            let retained = exchange.retained();
            progress = walk.walk.next(&retained.topics, *room, |_, kept| {
                let qos = kept.message.qos.min(subscriber.granted);
                let wanted = round == Round::First || qos > QoS::AtMostOnce;
                if wanted && !kept.message.is_expired(now) {
                    walk.found.push_back(Arc::clone(&kept.message));
                }
            });
        }
        let over = progress == Progress::Done;
        loop {
            let walk = self.session_of(id).and_then(|s| s.walks.front_mut())?;
            let Some(message) = walk.found.pop_front() else {
                break;
            };
            *room = room.saturating_sub(1);
            self.offer_retained(session_id, subscriber, message);
            if !self.has_room_for_retained(id) {
                break;
            }
        }
        let session = self.session_of(id)?;
        let walk = session.walks.front_mut()?;
        walk.over |= over;
        if !walk.over || !walk.found.is_empty() {
            return Some(Progress::More);
        }
        if let Some(walk) = session.walks.pop_front()
            && walk.record != TRANSIENT
        {
            let kept = SubscriptionRecord {
                session: subscriber.session,
                filter: walk.walk.filter().into(),
                granted: subscriber.granted,
                own: subscriber.own,
                retain: subscriber.retain,
                id: subscriber.id,
                retained: RetainedOwed::No,
            };
            let batch = &mut self.storing.batch;
            batch.put_with(walk.record, |out| kept.write(out));
        }
        Some(Progress::Done)
    }

    fn session_of(&mut self, id: ConnectionId) -> Option<&mut super::session::Session> {
        let session = self.tenants.get(id)?.session?;
        self.sessions.get(session)
    }

    /// Whether a connection can take one more retained message.
    pub(super) fn has_room_for_retained(&mut self, id: ConnectionId) -> bool {
        let exchange = Arc::clone(&self.exchange);
        let limits = &exchange.limits;
        let memory = exchange.admission.queue_memory.room();
        let pressing = match self.tenants.get(id) {
            Some(tenant) => {
                tenant.outbox.is_pressing(limits) || !memory.sends_on(tenant.outbox.weight(), 0)
            }
            None => return false,
        };
        self.session_of(id).is_some_and(|session| {
            session.online() == Some(id)
                && !pressing
                && !session.is_pressing(&exchange)
                && session.undelivered() <= limits.max_queued / 4
        })
    }

    fn offer_retained(&mut self, to: SessionId, subscriber: Subscriber, message: Arc<Message>) {
        let qos = message.qos.min(subscriber.granted);
        let mut delivery = Delivery {
            qos,
            retain: true,
            ids: SubscriptionIds::one(subscriber.id),
            access: Access::Check,
            ..Delivery::empty()
        };
        let size = message.len();
        // What lasts for this run only is not delivered after the next start.
        let stored = message.is_stored();
        delivery.claim = Some(message.claim());
        delivery.message = Some(message);
        if subscriber.session != TRANSIENT && qos > QoS::AtMostOnce {
            let gauge = self.exchange.gauge(to);
            gauge.add(size);
            delivery.count_in(gauge, size);
            if stored {
                delivery.record = self.exchange.next_record();
            }
        }
        self.offer(Post {
            to,
            owner: Owner::Session(subscriber.session),
            delivery,
        });
    }
}

/// What to do about a refusal, for whoever reads the client's log.
fn explanation(reason: ReasonCode) -> Option<Utf8> {
    let text = match reason {
        ReasonCode::NotAuthorized => "this client may not subscribe to one of the filters",
        ReasonCode::QuotaExceeded => {
            "this client has as many subscriptions as it may have, or all have"
        }
        ReasonCode::TopicFilterInvalid => "one of the filters has more levels than are allowed",
        _ => return None,
    };
    Some(Utf8::from_static(text))
}

/// Puts a subscription where messages find it; returns its share, if it is a shared one.
pub(super) fn place(
    exchange: &Exchange,
    filter: &Arc<str>,
    subscriber: Subscriber,
    presence: Presence,
) -> Option<Arc<Share>> {
    let mut subscriptions = exchange.subscriptions_mut();
    let matching = matching(filter);
    if matching.len() == filter.len() {
        subscriptions.own.subscribe(filter, subscriber);
        return None;
    }
    exchange.shared();
    let share = subscriptions.share(filter, matching, &exchange.limits);
    let membership = match subscriber.session {
        TRANSIENT => Membership::Transient,
        _ => Membership::Stored,
    };
    share
        .group()
        .join(subscriber.to, subscriber, membership, presence);
    Some(share)
}
