//! From one message to its receivers: match, encode once per layout, keep once if anybody waits.
//!
//! A thousand receivers that differ in nothing but their packet id share one frame. What differs
//! is the protocol version, the QoS, RETAIN and the subscription identifiers; most messages need one
//! layout, few more than two. For stored sessions the message is kept besides: one record, one
//! allocation, whatever their number.

use std::sync::Arc;

use bytes::Bytes;
use journal::Batch;
use mqtt::{Publish, PublishFrame, PublishProperties, QoS, Version};

use super::Moment;
use super::delivery::{Access, Counted, Delivery, Published, Recorded};
use super::exchange::{Exchange, Parked, Share, ShareGroup};
use super::filter_index::Matches;
use super::format::Owner;
use super::frame::{Frame, Layout, SubscriptionIds};
use super::mailbox::Post;
use super::message::{Message, Priority};
use super::planted::planted;
use super::share::Choice;
use super::slots::SessionId;
use super::subscriber::{RetainFlag, Subscriber, TRANSIENT};
use crate::limits::Overflow;
use crate::stats::Counters;

/// Working memory of fan-outs, reused from message to message.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    matches: Matches,
    shares: Vec<Arc<Share>>,
    frames: Vec<(Layout, Frame)>,
    /// Sessions whose queue was full.
    full: Vec<SessionId>,
}

/// Who published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publisher {
    /// Its session, for No Local.
    pub(crate) session: Option<SessionId>,
    /// A hash of its client identifier, for shared subscriptions that stick to publishers.
    pub(crate) hash: u64,
}

impl Publisher {
    /// The program itself.
    pub(crate) const OUTSIDE: Publisher = Publisher {
        session: None,
        hash: 0,
    };
}

/// What became of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Routed {
    /// Deliveries made of it, those that wait included.
    pub(crate) receivers: usize,
    /// Stored sessions that would have got it, had there been room.
    pub(crate) refused: usize,
}

/// What all deliveries of one message need.
struct Routing<'a> {
    exchange: &'a Exchange,
    publish: &'a Publish,
    /// Made when the first one needs it.
    kept: Option<Arc<Message>>,
    since: i64,
    now: Moment,
    counters: &'a Counters,
    batch: &'a mut Batch,
    frames: &'a mut Vec<(Layout, Frame)>,
    full: &'a mut Vec<SessionId>,
    /// Messages put into the batch: kept alive until it is submitted, or their end could come first.
    held: &'a mut Vec<Arc<Message>>,
    parked: &'a mut Vec<Parked>,
    routed: Routed,
}

impl Fanout {
    /// The sessions whose queue the last message found full: what has expired there should go.
    pub(crate) fn full(&mut self) -> impl Iterator<Item = SessionId> {
        self.full.drain(..)
    }

    /// Makes a delivery for every receiver of a message and appends it to `posts`; to `parked` what is to
    /// wait in a share, and to `held` what must stay in memory, until the batch is submitted. What it keeps of
    /// the message gets memory of its own; `kept` is the message if it is kept already.
    #[allow(clippy::too_many_arguments)] // the parts of a shard, borrowed apart
    pub(crate) fn route(
        &mut self,
        exchange: &Exchange,
        publish: &mut Publish,
        from: Publisher,
        kept: Option<&Arc<Message>>,
        now: Moment,
        counters: &Counters,
        batch: &mut Batch,
        held: &mut Vec<Arc<Message>>,
        parked: &mut Vec<Parked>,
        posts: &mut Vec<Post>,
    ) -> Routed {
        self.shares.clear();
        self.full.clear();
        {
            // The lock is held for the match alone; encoding and delivery work on the copy.
            let subscriptions = exchange.subscriptions();
            if subscriptions.has_shares() {
                subscriptions
                    .shared
                    .find(&publish.topic, None, &mut self.matches);
                for (found, _) in self.matches.iter() {
                    self.shares.extend(subscriptions.share_at(found).cloned());
                }
            }
            subscriptions
                .own
                .find(&publish.topic, from.session, &mut self.matches);
        }
        if self.matches.is_empty() && self.shares.is_empty() {
            return Routed::default();
        }
        if publish.payload.len() > PublishFrame::COPIED {
            // A slice of the publisher's read buffer; frames may wait for long.
            publish.payload = Bytes::copy_from_slice(&publish.payload);
        }
        let mut routing = Routing {
            exchange,
            publish,
            kept: kept.cloned(),
            since: match planted!(exchange, ExpiryNotCountedDown) {
                true => i64::MAX / 2,
                false => now.tick as i64,
            },
            now,
            counters,
            batch,
            frames: &mut self.frames,
            full: &mut self.full,
            held,
            parked,
            routed: Routed::default(),
        };
        for (receiver, ids) in self.matches.iter() {
            if let Some(post) = routing.deliver(receiver, ids) {
                posts.push(post);
            }
        }
        for share in &self.shares {
            if let Some(post) = routing.share(share, from.hash) {
                posts.push(post);
            }
        }
        let routed = routing.routed;
        self.frames.clear();
        routed
    }
}

impl Routing<'_> {
    /// A delivery to a session that subscribed for itself.
    fn deliver(&mut self, receiver: Subscriber, ids: SubscriptionIds) -> Option<Post> {
        let layout = self.layout(receiver, ids);
        if layout.qos == QoS::AtMostOnce || receiver.session == TRANSIENT {
            let frame = self.frame(&layout)?;
            return Some(self.post(receiver.to, Owner::Share, layout, Some(frame), None));
        }
        let message = self.kept().filter(|_| self.exchange.takes_deliveries());
        let Some(message) = message else {
            self.refuse_store_full();
            return None;
        };
        let gauge = self.exchange.gauge(receiver.to);
        let limits = &self.exchange.limits;
        match limits.overflow {
            Overflow::RefuseNew => {
                if planted!(self.exchange, QueueUnbounded) {
                    gauge.add(message.len());
                } else if !gauge.reserve(message.len(), limits.max_queued, limits.max_queued_bytes)
                {
                    self.refuse_new(receiver.to);
                    return None;
                }
            }
            // Room is made by the session itself.
            Overflow::DropOldest => gauge.add(message.len()),
            Overflow::DropLowestPriority => {
                let fits = (gauge.messages() as usize) < limits.max_queued
                    && gauge.bytes() + message.len() <= limits.max_queued_bytes;
                if !fits && message.priority == Priority::Low && gauge.droppable() == 0 {
                    self.refuse_new(receiver.to);
                    return None;
                }
                gauge.add(message.len());
            }
        }
        let frame = self.frame(&layout);
        let owner = Owner::Session(receiver.session);
        let mut post = self.post(
            receiver.to,
            owner,
            layout,
            frame,
            Some(Arc::clone(&message)),
        );
        post.delivery.record = self.exchange.next_record();
        post.delivery.count_in(gauge, message.len());
        Some(post)
    }

    /// A delivery to one member of a shared subscription.
    fn share(&mut self, share: &Arc<Share>, publisher: u64) -> Option<Post> {
        let exchange = self.exchange;
        let qos = self.publish.qos;
        let size = self.publish.payload.len() + self.publish.topic.len();
        let in_flight = |member| exchange.gauge(member).messages();
        let mut group = share.group();
        let can_wait = group.can_wait() && qos > QoS::AtMostOnce;
        let chosen = match can_wait {
            // Behind what waits already, whoever is there: until members have room for it.
            true if group.waiting() > 0 => Choice::Nobody,
            true => group.choose(publisher, in_flight, |member| {
                exchange.has_room(member, size)
            }),
            // If it is too slow, it is disconnected, as it would be with a subscription of its own.
            false => group.choose(publisher, in_flight, |_| true),
        };
        let Choice::Member(_, member) = chosen else {
            if can_wait {
                self.park(share, &mut group);
            }
            return None;
        };
        drop(group);
        let layout = self.layout(member, SubscriptionIds::one(member.id));
        let frame = self.frame(&layout);
        if layout.qos == QoS::AtMostOnce {
            let mut post = self.post(member.to, Owner::Share, layout, Some(frame?), None);
            post.delivery.share = Some(Arc::clone(share));
            return Some(post);
        }
        // For another member, should this one go. A frame that says all of it is enough for that.
        let message = match (can_wait, &frame) {
            (true, _) => Some(self.kept()),
            (false, Some(_)) if self.is_said_by(&layout) => None,
            (false, _) => Some(self.unstored()),
        };
        let (message, size) = match (message, &frame) {
            (None, Some(frame)) => (None, frame.len()),
            (Some(Some(message)), _) => {
                let size = message.len();
                (Some(message), size)
            }
            (None | Some(None), _) => {
                self.refuse_store_full();
                return None;
            }
        };
        let gauge = exchange.gauge(member.to);
        gauge.add(size);
        let owner = match member.session {
            TRANSIENT => Owner::Share,
            session => Owner::Session(session),
        };
        let mut post = self.post(member.to, owner, layout, frame, message);
        if can_wait {
            post.delivery.record = exchange.next_record();
        }
        post.delivery.count_in(gauge, size);
        post.delivery.share = Some(Arc::clone(share));
        Some(post)
    }

    /// Keeps the message for whichever member comes first, or has room first.
    fn park(&mut self, share: &Arc<Share>, group: &mut ShareGroup) {
        let limits = &self.exchange.limits;
        let size = self.publish.payload.len() + self.publish.topic.len();
        let parked = self
            .parked
            .iter()
            .filter(|p| Arc::ptr_eq(&p.share, share))
            .count();
        let full = |group: &ShareGroup| {
            !share.has_room(group, size, limits) || group.waiting() + parked >= limits.max_queued
        };
        if full(group) && share.purges(self.now.tick) {
            let now = self.now;
            while let Some(gone) = share.unpark_first(group, |waits| waits.is_expired(now)) {
                self.counters.dropped_expired.one();
                self.batch.delete(gone.record);
            }
        }
        while full(group) {
            let priority = Priority::of(self.publish);
            let gone = match limits.overflow {
                Overflow::RefuseNew => None,
                Overflow::DropOldest => share.unpark(group),
                Overflow::DropLowestPriority => share
                    .unpark_first(group, |waits| waits.priority() == Priority::Low)
                    .or_else(|| match priority {
                        Priority::High => share.unpark(group),
                        Priority::Low => None,
                    }),
            };
            let Some(gone) = gone else {
                if !planted!(self.exchange, OverflowUncounted) {
                    self.counters.dropped_refused_new.one();
                }
                self.routed.refused += 1;
                return;
            };
            match gone.priority() {
                _ if planted!(self.exchange, OverflowUncounted) => {}
                Priority::Low if limits.overflow == Overflow::DropLowestPriority => {
                    self.counters.dropped_low_priority.one();
                }
                _ => self.counters.dropped_oldest.one(),
            }
            self.batch.delete(gone.record);
        }
        let Some(message) = self.kept() else {
            return self.refuse_store_full();
        };
        let mut delivery = Delivery {
            record: self.exchange.next_record(),
            claim: Some(message.claim()),
            message: Some(message),
            // What it will be granted is known when it is known to whom it goes.
            qos: self.publish.qos,
            share: Some(Arc::clone(share)),
            access: Access::Check,
            ..Delivery::empty()
        };
        delivery.put_waiting(Owner::Share, self.batch);
        self.counters.deliveries_stored.one();
        self.routed.receivers += 1;
        self.parked.push(Parked {
            share: Arc::clone(share),
            delivery,
        });
    }

    fn layout(&self, receiver: Subscriber, ids: SubscriptionIds) -> Layout {
        Layout {
            version: receiver.version,
            qos: receiver.granted.min(self.publish.qos),
            retain: self.publish.retain && receiver.retain == RetainFlag::AsPublished,
            ids,
        }
    }

    fn post(
        &mut self,
        to: SessionId,
        owner: Owner,
        layout: Layout,
        frame: Option<Frame>,
        message: Option<Arc<Message>>,
    ) -> Post {
        self.routed.receivers += 1;
        Post {
            to,
            owner,
            delivery: Delivery {
                record: TRANSIENT,
                frame,
                claim: message.as_ref().map(|message| message.claim()),
                message,
                qos: layout.qos,
                published: Published::as_in(self.publish),
                retain: layout.retain,
                ids: layout.ids,
                share: None,
                access: Access::Current,
                counted: Counted::No,
                recorded: Recorded::No,
            },
        }
    }

    fn frame(&mut self, layout: &Layout) -> Option<Frame> {
        if let Some((_, frame)) = self.frames.iter().find(|(known, _)| known == layout) {
            return Some(frame.clone());
        }
        match Frame::encode(self.publish, layout, self.since) {
            Ok(frame) => {
                self.frames.push((layout.clone(), frame.clone()));
                Some(frame)
            }
            // What came in through the codec goes out through it; only a message of the program
            // itself can be unsayable.
            Err(error) => {
                tracing::warn!(event = "publish.unencodable", %error);
                None
            }
        }
    }

    /// Whether a frame in this layout has everything that another receiver might need.
    fn is_said_by(&self, layout: &Layout) -> bool {
        layout.version == Version::V5 || self.publish.properties == PublishProperties::default()
    }

    /// The message, kept in the store; `None` if there is no room for it.
    fn kept(&mut self) -> Option<Arc<Message>> {
        if let Some(kept) = &self.kept
            && kept.is_stored()
        {
            return Some(Arc::clone(kept));
        }
        if !self.exchange.takes_messages(self.publish.payload.len()) {
            return None;
        }
        let record = self.exchange.next_record();
        let message = Message::new(record, self.publish, self.since, &self.exchange.trash).ok()?;
        message.put(self.now.wall_us, self.batch);
        self.held.push(Arc::clone(&message));
        self.kept = Some(Arc::clone(&message));
        Some(message)
    }

    /// The message, kept in memory.
    fn unstored(&mut self) -> Option<Arc<Message>> {
        if self.kept.is_none() {
            let message =
                Message::new(TRANSIENT, self.publish, self.since, &self.exchange.trash).ok()?;
            self.kept = Some(message);
        }
        self.kept.clone()
    }

    fn refuse_new(&mut self, to: SessionId) {
        if !planted!(self.exchange, OverflowUncounted) {
            self.counters.dropped_refused_new.one();
        }
        self.routed.refused += 1;
        if self.exchange.gauge(to).tells(self.now.tick) {
            self.full.push(to);
        }
    }

    fn refuse_store_full(&mut self) {
        self.counters.dropped_store_full.one();
        self.routed.refused += 1;
    }
}
