//! Connections counted by the network they come from: how many of it are strangers still, and how many
//! are clients.
//!
//! Sockets that are not clients yet have their places in common (`Limits::max_pending_connections`), and
//! silence costs nothing: one host could take them all and keep everybody else out. So one network has a
//! part of them (`Limits::max_pending_per_address`), large enough for a fleet behind one address that comes
//! back at once. Clients are counted for those who ask whether an address is
//! a fleet's: it is not held off for the bad certificates of some ([`hold_off`](super::hold_off)).
//!
//! A network is here as long as it has a connection, so there are at most as many as sockets: some 40 bytes
//! each. Looked at when a connection comes, is let in, and goes; never for a message.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::memory::Standing;
use super::network_of;

/// A network as [`network_of`] draws its borders, in eight bytes: every connection carries one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network(NonZeroU64);

impl Network {
    pub(crate) fn of(address: IpAddr) -> Network {
        /// IPv4 is below this /32, where IPv6 has multicast groups: nobody connects from one.
        const V4: u64 = 0xffff_ffff << 32;
        let bits = match network_of(address) {
            IpAddr::V4(address) => V4 | u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        };
        // ::/64, home of ::1. The one it falls together with is reserved.
        Network(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }
}

/// Connections of one network.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    strangers: u32,
    clients: u32,
}

/// Parts of the table with a lock each, so that none is ever held for long: a table of half a million
/// takes milliseconds to grow.
const PARTS: usize = 32;

/// All networks that have a connection.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    parts: [Mutex<HashMap<Network, Count>>; PARTS],
}

impl Neighbours {
    /// A stranger comes. Says whether there was a place among the `most` of its network; if not, it is not
    /// counted.
    #[must_use]
    pub(crate) fn enter(&self, network: Network, most: usize) -> bool {
        let mut part = self.part(network);
        let count = part.entry(network).or_default();
        if count.strangers as usize >= most {
            if count.strangers == 0 && count.clients == 0 {
                part.remove(&network);
            }
            return false;
        }
        count.strangers += 1;
        true
    }

    /// A stranger has become a client.
    pub(crate) fn let_in(&self, network: Network) {
        if let Some(count) = self.part(network).get_mut(&network) {
            count.strangers = count.strangers.saturating_sub(1);
            count.clients += 1;
        }
    }

    /// One of them is gone.
    pub(crate) fn leave(&self, network: Network, who: Standing) {
        let mut part = self.part(network);
        let Some(count) = part.get_mut(&network) else {
            return;
        };
        match who {
            Standing::Stranger => count.strangers = count.strangers.saturating_sub(1),
            Standing::Client => count.clients = count.clients.saturating_sub(1),
        }
        if count.strangers == 0 && count.clients == 0 {
            part.remove(&network);
        }
    }

    /// How many clients a network has.
    pub(crate) fn clients(&self, network: Network) -> usize {
        let part = self.part(network);
        part.get(&network).map_or(0, |count| count.clients as usize)
    }

    /// Networks in memory.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let locked = self.parts.iter().map(|part| part.lock());
        locked.map(|part| part.map_or(0, |part| part.len())).sum()
    }

    fn part(&self, network: Network) -> MutexGuard<'_, HashMap<Network, Count>> {
        // Neighbouring networks fall apart by Fibonacci hashing.
        let mixed = network.0.get().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let part = &self.parts[(mixed >> 32) as usize % PARTS];
        // Nothing that can panic runs under the lock.
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> Network {
        Network::of(address.parse().expect("an address"))
    }

    #[test]
    fn a_network_is_an_address_or_what_one_ipv6_host_has_to_itself() {
        let same = [
            ("203.0.113.7", "::ffff:203.0.113.7"),
            ("2001:db8:0:1::5", "2001:db8:0:1:ffff::6"),
            ("::1", "::1"),
        ];
        for (one, other) in same {
            assert_eq!(network(one), network(other), "{one} {other}");
        }
        let different = [
            ("203.0.113.7", "203.0.113.8"),
            ("2001:db8:0:1::5", "2001:db8:0:2::5"),
            ("::1", "0.0.0.0"),
            ("255.255.255.255", "ffff:ffff:ffff:fffe::"),
        ];
        for (one, other) in different {
            assert_ne!(network(one), network(other), "{one} {other}");
        }
    }

    #[test]
    fn one_network_has_its_part_and_others_have_theirs() {
        let neighbours = Neighbours::default();
        let (one, other) = (network("203.0.113.7"), network("203.0.113.8"));
        assert!(neighbours.enter(one, 2) && neighbours.enter(one, 2));
        assert!(!neighbours.enter(one, 2), "full");
        assert!(neighbours.enter(other, 2), "others are not");
        neighbours.let_in(one);
        assert_eq!(neighbours.clients(one), 1);
        assert!(neighbours.enter(one, 2), "a client takes no place");
        neighbours.leave(one, Standing::Stranger);
        assert!(neighbours.enter(one, 2), "nor does who left");
    }

    #[test]
    fn nothing_stays_of_who_is_gone() {
        let neighbours = Neighbours::default();
        let networks: Vec<_> = (0..1000u32)
            .map(|n| Network::of(IpAddr::V4(n.into())))
            .collect();
        for network in &networks {
            assert!(neighbours.enter(*network, 9));
        }
        assert_eq!(neighbours.len(), 1000);
        for (n, network) in networks.iter().enumerate() {
            let mut who = Standing::Stranger;
            if n % 2 == 0 {
                neighbours.let_in(*network);
                who = Standing::Client;
            }
            neighbours.leave(*network, who);
        }
        assert_eq!(neighbours.len(), 0);
        assert!(!neighbours.enter(networks[0], 0));
        assert_eq!(neighbours.len(), 0, "nor of who was not let in");
    }
}
