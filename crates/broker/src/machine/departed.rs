//! What sessions that are gone still have in the index of subscriptions.
//!
//! A session ends at once. But a client may have a hundred thousand subscriptions, and taking them out of the
//! index takes a microsecond each, during which nobody else on the worker would get a message. So they
//! go in pieces, between which others have their turn: the rest comes back as mail. Nobody notices: from
//! the first moment on the index finds nothing for the session ([`FilterIndex::depart`]), and a client that
//! comes back meanwhile has a new session with an id of its own.
//!
//! Their records go in the same pieces, after that of the session. Should the broker end in between, the
//! next start finds subscriptions of nobody, and deletes them.
//!
//! Shared subscriptions go at once: others get what was meant for this member, which cannot wait.
//!
//! [`FilterIndex::depart`]: super::filter_index::FilterIndex::depart

use std::sync::Arc;

use super::filters::Filters;
use super::mailbox::Mail;
use super::shard::Shard;
use super::slots::SessionId;
use super::subscriber::TRANSIENT;

/// Subscriptions taken out of the index in one go: a quarter of a millisecond. Nearly all sessions have
/// fewer.
pub(crate) const PIECE: usize = 256;

/// The subscriptions of a session that is gone. How many there are at once is bounded by the subscriptions
/// that sessions may have.
#[derive(Debug)]
pub(crate) struct Departed {
    session: SessionId,
    left: Filters,
}

impl Shard {
    /// A session is about to go: nothing is found for it any more.
    pub(super) fn give_up_subscriptions(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let shared: Vec<_> = session
            .subscriptions
            .shared()
            .map(|(filter, _)| Arc::clone(filter))
            .collect();
        for filter in shared {
            self.remove_subscription(id, &filter);
        }
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let mut left = std::mem::take(&mut session.subscriptions);
        let piece = self.exchange.departed_per_turn;
        if left.len() <= piece {
            return self.take_out(id, &mut left, piece);
        }
        let mut subscriptions = self.exchange.subscriptions_mut();
        subscriptions.own.depart(id, left.len());
        drop(subscriptions);
        self.depart(Departed { session: id, left });
    }

    /// Takes a few subscriptions out of the index; the rest later.
    pub(super) fn depart(&mut self, departed: Departed) {
        let Departed { session, mut left } = departed;
        self.take_out(session, &mut left, self.exchange.departed_per_turn);
        match left.len() {
            0 => self.exchange.subscriptions_mut().own.departed(session),
            // Behind what others want.
            _ => self
                .mailbox
                .post(Mail::Departed(Departed { session, left })),
        }
    }

    fn take_out(&mut self, session: SessionId, left: &mut Filters, most: usize) {
        for _ in 0..most {
            let Some((filter, held)) = left.pop() else {
                return;
            };
            // A lock for each: other workers look for receivers meanwhile.
            self.exchange
                .subscriptions_mut()
                .own
                .unsubscribe(&filter, session);
            if held.record != TRANSIENT {
                self.storing.batch.delete(held.record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use mqtt::{
        Connect, QoS, ReasonCode, Subscribe, SubscribeProperties, Subscription, TopicFilter,
        Version,
    };

    use super::super::slots::ConnectionId;
    use super::super::world::{World, packet_id, qos0};
    use super::*;
    use crate::limits::Limits;

    const V5: Version = Version::V5;

    /// More than three pieces.
    const MANY: usize = 3 * PIECE + 7;

    fn filters() -> impl Iterator<Item = TopicFilter> {
        // Of both kinds.
        let filter = |n| match n % 2 {
            0 => format!("many/{n}/x"),
            _ => format!("many/{n}/+"),
        };
        (0..MANY).map(move |n| TopicFilter::parse(&filter(n)).expect("a valid filter"))
    }

    impl World {
        /// A client with many subscriptions.
        fn collector(&mut self, connect: Connect) -> ConnectionId {
            let id = self.connect(0, connect);
            let _ = self.look(id);
            let subscribe = Subscribe {
                packet_id: packet_id(1),
                subscriptions: filters()
                    .map(|filter| Subscription::new(filter, QoS::AtLeastOnce))
                    .collect(),
                properties: SubscribeProperties::default(),
            };
            self.send(id, subscribe);
            let _ = self.look(id);
            id
        }

        /// The client is gone; what is to be done later stays undone.
        fn loses(&mut self, id: ConnectionId) {
            let shard = &mut self.shards[id.shard()];
            shard.lost(id, "the network is gone".to_owned());
            shard.settle();
            shard.release(id);
            shard.settle();
        }

        /// Subscriptions that the index still has of sessions that are gone, in pieces of mail.
        fn pieces(&mut self, shard: usize) -> usize {
            let mut pieces = 0;
            let mut mail = VecDeque::new();
            while self.exchange.mailbox(shard).take(&mut mail, Waker::noop()) {
                pieces += mail.len();
                self.shards[shard].mail(&mut mail);
                self.shards[shard].settle();
            }
            pieces
        }

        fn subscriptions(&self) -> u64 {
            self.exchange.stats().subscriptions
        }
    }

    fn limits() -> Limits {
        Limits {
            max_subscriptions: MANY,
            ..Limits::default()
        }
    }

    #[test]
    fn a_session_is_gone_at_once_and_its_subscriptions_go_in_pieces() {
        let mut world = World::with(limits());
        let collector = world.collector(Connect::new(V5, "collector"));
        let other = world.subscriber(1, V5, "other", "many/#", QoS::AtMostOnce);
        let publisher = world.client(1, V5, "publisher");
        assert_eq!(world.subscriptions(), MANY as u64 + 1);

        world.loses(collector);
        assert_eq!(world.subscriptions(), 1, "whose are they?");
        let dropped = world.exchange.stats().dropped_session_end;
        for n in 0..MANY {
            // Without the mail that takes them out.
            world.put(publisher, qos0(&format!("many/{n}/x"), "hello"));
        }
        world.deliver_mail();
        assert_eq!(world.messages(other).len(), MANY);
        let stats = world.exchange.stats();
        assert_eq!(stats.dropped_session_end, dropped, "found for nobody");
    }

    #[test]
    fn a_piece_is_no_more_than_is_stated() {
        let mut world = World::with(limits());
        let collector = world.collector(Connect::new(V5, "collector"));
        let shard = collector.shard();
        world.loses(collector);
        // The first one goes with the session.
        assert_eq!(world.pieces(shard), MANY.div_ceil(PIECE) - 1);
        let index = world.exchange.subscriptions();
        assert!(index.own.is_empty(), "something is left in the index");
    }

    #[test]
    fn whoever_comes_back_meanwhile_keeps_what_it_subscribes_to() {
        let mut world = World::with(limits());
        let first = world.collector(Connect::new(V5, "collector"));
        let shard = first.shard();
        world.loses(first);
        // Moves to its shard, which has mail of its predecessor.
        let id = world.dial(shard);
        world
            .decoders
            .insert(id, mqtt::Decoder::for_client(V5, u32::MAX));
        world.put(id, Connect::new(V5, "collector"));
        assert_eq!(world.connack(id).reason, ReasonCode::Success);
        let subscribe = Subscribe {
            packet_id: packet_id(1),
            subscriptions: filters()
                .map(|filter| Subscription::new(filter, QoS::AtMostOnce))
                .collect(),
            properties: SubscribeProperties::default(),
        };
        world.put(id, subscribe);
        let _ = world.look(id);
        assert_eq!(world.subscriptions(), MANY as u64);

        assert!(world.pieces(shard) > 1, "there was nothing to keep apart");
        assert_eq!(world.subscriptions(), MANY as u64);
        let publisher = world.client(1, V5, "publisher");
        for n in 0..MANY {
            world.send(publisher, qos0(&format!("many/{n}/x"), "hello"));
        }
        assert_eq!(world.messages(id).len(), MANY);
    }
}
