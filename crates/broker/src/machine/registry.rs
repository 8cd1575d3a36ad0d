//! How many connections each principal has, and since when what it may do is known.
//!
//! Losing access goes by an epoch: [`Registry::begin_epoch`] moves it on under the same lock that
//! registration takes, before the shards are told, and a connection that was authenticated in an older
//! epoch is not registered but asked to authenticate again. So either it is registered before, and the
//! order finds it on its shard, or it hears of the new state of things.
//!
//! Which of two connections keeps a client identifier is decided on the shard where its session lives.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// All connections of the broker, by principal.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    principals: HashMap<Arc<str>, usize>,
    connections: usize,
    epoch: Epoch,
}

/// Counts the times that access may have changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

/// Answer to a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Granted,
    /// Access changed since the connection was authenticated: do it again.
    Stale,
    /// There are as many connections as allowed.
    Full,
}

impl Registry {
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Registered connections.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// Registers a connection that was authenticated in `epoch`. With `room` it takes the place of
    /// another one that is about to leave, and is never too many.
    pub(crate) fn join(
        &mut self,
        principal: &Arc<str>,
        epoch: Epoch,
        max_connections: usize,
        room: Room,
    ) -> Admission {
        if epoch != self.epoch {
            return Admission::Stale;
        }
        if self.connections >= max_connections && room == Room::Needed {
            return Admission::Full;
        }
        self.connections += 1;
        *self.principals.entry(Arc::clone(principal)).or_default() += 1;
        Admission::Granted
    }

    /// A registered connection has ended.
    pub(crate) fn leave(&mut self, principal: &Arc<str>) {
        self.connections -= 1;
        let Entry::Occupied(mut occupied) = self.principals.entry(Arc::clone(principal)) else {
            debug_assert!(false, "{principal} left without having joined");
            return;
        };
        *occupied.get_mut() -= 1;
        if *occupied.get() == 0 {
            occupied.remove();
        }
    }

    /// Access of a principal may have changed: whoever is authenticating at this moment will have to
    /// do it again. Returns how many connections the principal has.
    pub(crate) fn begin_epoch(&mut self, principal: &str) -> usize {
        self.epoch.0 += 1;
        self.principals.get(principal).copied().unwrap_or(0)
    }
}

/// Whether a connection needs a place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Needed,
    /// It takes over from one that is about to leave.
    TakenOver,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(registry: &mut Registry, name: &str, room: Room) -> Admission {
        let epoch = registry.epoch();
        registry.join(&name.into(), epoch, 2, room)
    }

    #[test]
    fn a_full_house_still_lets_a_client_replace_itself() {
        let mut registry = Registry::default();
        assert_eq!(join(&mut registry, "car", Room::Needed), Admission::Granted);
        assert_eq!(
            join(&mut registry, "truck", Room::Needed),
            Admission::Granted
        );
        assert_eq!(join(&mut registry, "bus", Room::Needed), Admission::Full);
        assert_eq!(
            join(&mut registry, "car", Room::TakenOver),
            Admission::Granted
        );
        assert_eq!(registry.begin_epoch("car"), 2);
        for name in ["car", "car", "truck"] {
            registry.leave(&name.into());
        }
        assert_eq!(registry.connections(), 0);
        assert!(registry.principals.is_empty());
    }

    #[test]
    fn who_authenticated_before_access_changed_does_it_again() {
        let mut registry = Registry::default();
        let before = registry.epoch();
        registry.begin_epoch("other");
        let admission = registry.join(&"car".into(), before, 10, Room::Needed);
        assert_eq!(admission, Admission::Stale);
        assert_eq!(registry.connections(), 0);
    }
}
