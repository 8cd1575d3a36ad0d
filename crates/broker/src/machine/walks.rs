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
