//! Who is connected: at most one connection per client identifier [MQTT-3.1.4-3], and all
//! connections of a principal.
//!
//! Takeover goes by steps, because the old connection lives on another shard: the new one is
//! registered and asks for the eviction of the old; the old one closes, publishes its will, leaves
//! the registry; only then the new one gets its CONNACK. Should a third come meanwhile, it waits
//! for both. So no two connections with one identifier are ever served at once.
//!
//! Losing access goes by an epoch: [`Registry::of_principal`] moves it on under the same lock that
//! registration takes, and a connection that was authenticated in an older epoch is not registered
//! but asked to authenticate again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::ConnectionId;

/// All clients of the broker.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    clients: HashMap<Arc<str>, Client>,
    principals: HashMap<Arc<str>, Held>,
    connections: usize,
    epoch: Epoch,
}

/// Counts the times that somebody may have lost access.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

#[derive(Debug)]
struct Client {
    /// The connection that has, or will get, the identifier; `None` when it ended before those it
    /// was waiting for.
    current: Option<ConnectionId>,
    /// Evicted connections that have not ended yet.
    leaving: u32,
}

/// Connections of one principal: nearly always one.
#[derive(Debug)]
enum Held {
    One(ConnectionId),
    Many(Vec<ConnectionId>),
}

/// Answer to a registration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Nobody had the identifier: go ahead.
    Now,
    /// Wait for [`Registry::leave`] to name this connection. If `evict` is given, tell that one to
    /// go; else it has been told.
    Wait { evict: Option<ConnectionId> },
    /// Access changed since the connection was authenticated: do it again.
    Stale,
    /// There are as many connections as allowed.
    Full,
}

impl Registry {
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Registered connections, waiting ones included.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// Registers a connection that was authenticated in `epoch`.
    pub(crate) fn join(
        &mut self,
        connection: ConnectionId,
        client_id: &Arc<str>,
        principal: &Arc<str>,
        epoch: Epoch,
        max_connections: usize,
    ) -> Admission {
        if epoch != self.epoch {
            return Admission::Stale;
        }
        let admission = match self.clients.entry(Arc::clone(client_id)) {
            Entry::Vacant(_) if self.connections >= max_connections => return Admission::Full,
            Entry::Vacant(vacant) => {
                vacant.insert(Client {
                    current: Some(connection),
                    leaving: 0,
                });
                Admission::Now
            }
            Entry::Occupied(mut occupied) => {
                let client = occupied.get_mut();
                let evict = client.current.replace(connection);
                client.leaving += u32::from(evict.is_some());
                Admission::Wait { evict }
            }
        };
        self.connections += 1;
        match self.principals.entry(Arc::clone(principal)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Held::One(connection));
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Held::Many(all) => all.push(connection),
                one @ Held::One(_) => {
                    if let Held::One(first) = *one {
                        *one = Held::Many(vec![first, connection]);
                    }
                }
            },
        }
        admission
    }

    /// Removes a connection that has ended. Names the connection that may be admitted now, if one
    /// was waiting for just this.
    pub(crate) fn leave(
        &mut self,
        connection: ConnectionId,
        client_id: &Arc<str>,
        principal: &Arc<str>,
    ) -> Option<ConnectionId> {
        self.connections -= 1;
        self.forget_principal(connection, principal);
        let Entry::Occupied(mut occupied) = self.clients.entry(Arc::clone(client_id)) else {
            debug_assert!(false, "{connection:?} left without having joined");
            return None;
        };
        let client = occupied.get_mut();
        if client.current == Some(connection) {
            client.current = None;
            if client.leaving == 0 {
                occupied.remove();
            }
            return None;
        }
        client.leaving -= 1;
        if client.leaving > 0 {
            return None;
        }
        let next = client.current;
        if next.is_none() {
            occupied.remove();
        }
        next
    }

    /// All connections of a principal, and a new epoch: whoever of them is authenticating at this
    /// moment will have to do it again.
    pub(crate) fn of_principal(&mut self, principal: &str) -> Vec<ConnectionId> {
        self.epoch.0 += 1;
        match self.principals.get(principal) {
            None => Vec::new(),
            Some(Held::One(one)) => vec![*one],
            Some(Held::Many(all)) => all.clone(),
        }
    }

    fn forget_principal(&mut self, connection: ConnectionId, principal: &Arc<str>) {
        let Some(held) = self.principals.get_mut(principal) else {
            debug_assert!(false, "{connection:?} has no principal");
            return;
        };
        if let Held::Many(all) = held {
            all.retain(|id| *id != connection);
            if let [last] = all[..] {
                *held = Held::One(last);
            }
        } else {
            self.principals.remove(principal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId::new(0, slot, 0)
    }

    fn join(registry: &mut Registry, slot: u32) -> Admission {
        let epoch = registry.epoch();
        registry.join(id(slot), &"car".into(), &"device".into(), epoch, 10)
    }

    fn leave(registry: &mut Registry, slot: u32) -> Option<ConnectionId> {
        registry.leave(id(slot), &"car".into(), &"device".into())
    }

    fn assert_empty(registry: &Registry) {
        assert_eq!(registry.connections(), 0);
        assert!(registry.clients.is_empty());
        assert!(registry.principals.is_empty());
    }

    #[test]
    fn the_second_waits_until_the_first_is_gone() {
        let mut registry = Registry::default();
        assert_eq!(join(&mut registry, 1), Admission::Now);
        assert_eq!(
            join(&mut registry, 2),
            Admission::Wait { evict: Some(id(1)) }
        );
        assert_eq!(leave(&mut registry, 1), Some(id(2)));
        assert_eq!(leave(&mut registry, 2), None);
        assert_empty(&registry);
    }

    #[test]
    fn the_third_waits_for_both() {
        let mut registry = Registry::default();
        join(&mut registry, 1);
        join(&mut registry, 2);
        assert_eq!(
            join(&mut registry, 3),
            Admission::Wait { evict: Some(id(2)) }
        );
        assert_eq!(leave(&mut registry, 2), None, "the first is still there");
        assert_eq!(leave(&mut registry, 1), Some(id(3)));
        leave(&mut registry, 3);
        assert_empty(&registry);
    }

    #[test]
    fn a_waiting_one_that_gives_up_leaves_no_trace() {
        let mut registry = Registry::default();
        join(&mut registry, 1);
        join(&mut registry, 2);
        assert_eq!(leave(&mut registry, 2), None);
        assert_eq!(
            join(&mut registry, 3),
            Admission::Wait { evict: None },
            "the first was told to go already"
        );
        assert_eq!(leave(&mut registry, 1), Some(id(3)));
        leave(&mut registry, 3);
        assert_empty(&registry);
    }

    #[test]
    fn a_full_house_still_lets_a_client_replace_itself() {
        let mut registry = Registry::default();
        let epoch = registry.epoch();
        let mut join =
            |slot, client: &str| registry.join(id(slot), &client.into(), &client.into(), epoch, 1);
        assert_eq!(join(1, "car"), Admission::Now);
        assert_eq!(join(2, "truck"), Admission::Full);
        assert_eq!(join(3, "car"), Admission::Wait { evict: Some(id(1)) });
    }

    #[test]
    fn losing_access_reaches_those_connected_and_those_on_their_way() {
        let mut registry = Registry::default();
        let before = registry.epoch();
        join(&mut registry, 1);
        assert_eq!(registry.of_principal("device"), [id(1)]);
        assert_eq!(registry.of_principal("other"), []);
        let admission = registry.join(id(2), &"car-2".into(), &"device".into(), before, 10);
        assert_eq!(admission, Admission::Stale);
    }
}
