//! The sessions of a shard by principal: whose access, when it changes, concerns which sessions.
//!
//! A device has one session, an application that uses one account many; so one takes no memory of its
//! own. The sessions of a principal are gone through in their order, the same in every run.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::slots::SessionId;

/// All sessions of a shard, by principal.
#[derive(Debug, Default)]
pub(crate) struct Principals(HashMap<Arc<str>, Sessions>);

#[derive(Debug)]
#[expect(
    clippy::box_collection,
    reason = "few have many, and all pay for the larger"
)]
enum Sessions {
    One(SessionId),
    /// More than one, or one that is left of them.
    Many(Box<BTreeSet<SessionId>>),
}

impl Principals {
    /// A session begins.
    pub(crate) fn insert(&mut self, principal: Arc<str>, session: SessionId) {
        match self.0.entry(principal) {
            Entry::Vacant(vacant) => {
                vacant.insert(Sessions::One(session));
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Sessions::One(one) if *one == session => {}
                Sessions::One(one) => {
                    let both = BTreeSet::from([*one, session]);
                    occupied.insert(Sessions::Many(Box::new(both)));
                }
                Sessions::Many(many) => {
                    many.insert(session);
                }
            },
        }
    }

    /// A session is over.
    pub(crate) fn remove(&mut self, principal: &str, session: SessionId) {
        let none_left = match self.0.get_mut(principal) {
            None => return,
            Some(Sessions::One(one)) => *one == session,
            Some(Sessions::Many(many)) => {
                many.remove(&session);
                many.is_empty()
            }
        };
        if none_left {
            self.0.remove(principal);
        }
    }

    /// The sessions of a principal, in their order.
    pub(crate) fn of(&self, principal: &str) -> Vec<SessionId> {
        match self.0.get(principal) {
            None => Vec::new(),
            Some(Sessions::One(one)) => vec![*one],
            Some(Sessions::Many(many)) => many.iter().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_come_and_go_and_the_last_one_takes_the_principal_along() {
        let [a, b, c] = [1, 2, 3].map(|slot| SessionId::new(0, slot, 0));
        let mut principals = Principals::default();
        for session in [b, b, c, a] {
            principals.insert("app".into(), session);
        }
        principals.insert("car".into(), c);
        assert_eq!(principals.of("app"), [a, b, c]);
        assert_eq!(principals.of("car"), [c]);
        principals.remove("car", b);
        assert_eq!(principals.of("car"), [c], "that one was not its own");
        for session in [c, a, b, a] {
            principals.remove("app", session);
        }
        principals.remove("car", c);
        assert!(principals.of("app").is_empty() && principals.0.is_empty());
    }
}
