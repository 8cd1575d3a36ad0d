//! What is still to be sent of the retained messages, for the new subscriptions of one session.
//!
//! Nothing but a pointer while there is none: a walk is over moments after its SUBSCRIBE, and most
//! sessions idle for hours.

use std::collections::VecDeque;

use super::subscribing::RetainedWalk;

/// Walks under way, the oldest first.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "a pointer is what it is about")]
pub(crate) struct Walks(Option<Box<VecDeque<RetainedWalk>>>);

impl Walks {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn push_back(&mut self, walk: RetainedWalk) {
        self.0.get_or_insert_default().push_back(walk);
    }

    /// The one whose turn it is.
    pub(crate) fn front_mut(&mut self) -> Option<&mut RetainedWalk> {
        self.0.as_mut()?.front_mut()
    }

    pub(crate) fn pop_front(&mut self) -> Option<RetainedWalk> {
        let walk = self.0.as_mut()?.pop_front();
        self.give_back();
        walk
    }

    /// Ends those that are not wanted any more.
    pub(crate) fn retain(&mut self, wanted: impl FnMut(&RetainedWalk) -> bool) {
        if let Some(walks) = &mut self.0 {
            walks.retain(wanted);
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if self.0.as_ref().is_some_and(|walks| walks.is_empty()) {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use mqtt::Version;

    use super::super::subscribing::WALK_BUDGET;
    use super::super::world::{World, qos0, subscribe_to};

    const KEPT: usize = 10 * WALK_BUDGET;

    /// A world with retained messages and a client.
    fn world() -> (World, super::super::slots::ConnectionId) {
        let mut world = World::new();
        let publisher = world.client(0, Version::V5, "publisher");
        for n in 0..KEPT {
            let mut publish = qos0(&format!("kept/{n}/x"), "kept");
            publish.retain = true;
            world.send(publisher, publish);
        }
        let id = world.client(0, Version::V5, "walker");
        (world, id)
    }

    #[test]
    fn what_is_looked_up_at_once_is_bounded_also_when_nothing_is_found() {
        for (filter, found) in [("kept/+/x", KEPT), ("kept/+/y", 0)] {
            let (mut world, id) = world();
            let subscribe = subscribe_to(filter);
            world.put(id, subscribe);
            let shard = &mut world.shards[id.shard()];
            let mut bytes = bytes::BytesMut::new();
            let (mut pieces, mut most, mut before) = (0, 0, 0);
            loop {
                let _ = shard.write(id, &mut bytes, usize::MAX);
                let got = shard.counters().messages_out() as usize;
                most = most.max(got - before);
                before = got;
                if !shard.walk_on(id) {
                    break;
                }
                pieces += 1;
            }
            assert_eq!(before, found, "{filter}");
            assert!(most <= WALK_BUDGET, "{filter}: {most} at once");
            let wanted = KEPT / WALK_BUDGET;
            assert!(pieces >= wanted, "{filter}: {pieces} pieces");
        }
    }

    #[test]
    fn a_client_of_many_filters_does_not_wait_for_a_turn_for_each() {
        let (mut world, id) = world();
        for n in 0..12 {
            let subscribe = subscribe_to(&format!("kept/{n}/x"));
            let shard = &mut world.shards[id.shard()];
            shard.packet(id, subscribe.into());
        }
        let shard = &mut world.shards[id.shard()];
        shard.settle();
        let mut bytes = bytes::BytesMut::new();
        assert!(shard.walk_on(id));
        let _ = shard.write(id, &mut bytes, usize::MAX);
        assert_eq!(shard.counters().messages_out(), 12);
        assert!(!shard.walk_on(id));
    }
}
