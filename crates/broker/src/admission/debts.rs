//! What clients have used of their rates in when their connection ends, until it is made up for.
//!
//! A connection counts for itself while it stands. Forgotten with it, a client that connects, sends a burst,
//! says goodbye and connects again would be bound by nothing. So what is left of the count goes here, is taken
//! up by the next connection of the same client, and is dropped once the clock has passed it, which for a
//! client within its rates is a moment later: the table is empty most of the time, and no session pays for it.
//!
//! Bound: so many at a time; the one that would be through first goes. Who wants that for itself needs as
//! many others that owe more. In memory only: a restart forgives.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;

use super::meter::Inbound;
use super::rate::nanoseconds;

/// Clients of one worker that owe something: 4,096, some 400 KiB. As many connections as one ends in a
/// few seconds, which is how long most of them owe.
const MOST: usize = 4_096;

/// Whose debt it is: a keyed hash of client identifier and principal, so that names of 64 KiB cost 8 bytes.
/// Two clients with one hash, which nobody can bring about, would be slowed down together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Account(NonZeroU64);

/// The debts of the clients whose sessions live on one worker.
#[derive(Debug, Default)]
pub(crate) struct Debts {
    keys: RandomState,
    owed: HashMap<Account, Inbound>,
    /// By the time at which each is through.
    ends: BTreeSet<(u64, Account)>,
}

impl Debts {
    /// The account of a client.
    pub(crate) fn account(&self, client_id: &str, principal: &str) -> Account {
        let hash = self.keys.hash_one((client_id, principal));
        Account(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }

    /// Adds to what a client owes.
    pub(crate) fn add(&mut self, account: Account, used: Inbound, tick: u64) {
        let now = nanoseconds(tick);
        while let Some((end, account)) = self.ends.first().copied()
            && end <= now
        {
            self.ends.pop_first();
            self.owed.remove(&account);
        }
        if used.clear_at() <= now {
            return;
        }
        let mut sum = self.take(account).unwrap_or_default();
        sum.take_on(used, tick);
        self.ends.insert((sum.clear_at(), account));
        self.owed.insert(account, sum);
        if self.owed.len() > MOST
            && let Some((_, least)) = self.ends.pop_first()
        {
            self.owed.remove(&least);
        }
    }

    /// What a client owes, to be counted elsewhere from now on.
    pub(crate) fn take(&mut self, account: Account) -> Option<Inbound> {
        let owed = self.owed.remove(&account)?;
        self.ends.remove(&(owed.clear_at(), account));
        Some(owed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::meter::{Came, Paces};
    use super::super::rate::Rate;
    use super::*;
    use crate::limits::Limits;
    use crate::stats::Counters;

    /// What somebody owes who sent so many messages at once, at one in a millisecond.
    fn used(tick: u64, messages: u64) -> Inbound {
        let paces = paces();
        let came = Came { messages, bytes: 0 };
        let mut used = Inbound::default();
        used.charge(&paces, tick, came, &Counters::default());
        used
    }

    fn paces() -> Paces {
        Paces::new(&Limits {
            client_messages_in: Some(Rate::of(1_000, 10)),
            client_bytes_in: None,
            ..Limits::default()
        })
    }

    #[test]
    fn a_debt_is_there_until_it_is_taken_or_made_up_for() {
        let mut debts = Debts::default();
        let car = debts.account("car", "p");
        assert_ne!(car, debts.account("car", "q"));
        assert_ne!(car, debts.account("carp", ""));
        debts.add(car, used(1_000, 500), 1_000);
        debts.add(car, used(1_000, 500), 1_000);
        let owed = debts.take(car).expect("it owes");
        assert_eq!(owed.clear_at(), nanoseconds(2_000), "both together");
        assert!(owed.is_held(&paces(), 1_990) && !owed.is_held(&paces(), 1_991));
        assert_eq!(debts.take(car), None);
        debts.add(car, owed, 1_500);
        // Somebody else's end shows that time has passed.
        let other = debts.account("other", "p");
        debts.add(other, used(2_000, 1), 2_000);
        assert_eq!((debts.owed.len(), debts.ends.len()), (1, 1));
        debts.add(other, Inbound::default(), 2_001);
        assert_eq!((debts.owed.len(), debts.ends.len()), (0, 0));
    }

    #[test]
    fn who_owes_least_is_forgotten_first_when_there_are_too_many() {
        let mut debts = Debts::default();
        let account = |debts: &Debts, n: usize| debts.account(&n.to_string(), "p");
        for n in 0..MOST + 10 {
            // The later, the less.
            let account = account(&debts, n);
            debts.add(account, used(0, (2 * MOST - n) as u64), 0);
        }
        assert_eq!((debts.owed.len(), debts.ends.len()), (MOST, MOST));
        let (first, late) = (account(&debts, 0), account(&debts, MOST + 9));
        assert_eq!(debts.take(late), None);
        assert!(debts.take(first).is_some());
    }
}
