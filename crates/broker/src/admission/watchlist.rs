//! Counts what somebody did within a while, for those who were seen lately, and keeps who did it too
//! often.
//!
//! Bounded: counted are at most `max` at a time. They live in two generations: who is seen again moves
//! into the young one, and when that is half of `max`, the old one goes and the young becomes old. So who
//! comes often is always counted, and a flood of strangers pushes out strangers. Those held are at most
//! `max`, too; as all are held equally long, the one that goes first would be free first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Who was seen, and who is held.
#[derive(Debug)]
pub(crate) struct Watchlist<K> {
    young: HashMap<K, Tally>,
    old: HashMap<K, Tally>,
    held: HashMap<K, Held>,
    /// Of those held, by the end of it. Entries of those released are stale.
    ends: VecDeque<(u64, K)>,
    max: usize,
}

/// What somebody did since `since`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    since: u64,
    pub(crate) bad: u32,
    pub(crate) good: u32,
}

/// Somebody who is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) until: u64,
    pub(crate) count: u32,
}

impl<K: Clone + Eq + Hash> Watchlist<K> {
    pub(crate) fn new(max: usize) -> Watchlist<K> {
        Watchlist {
            young: HashMap::new(),
            old: HashMap::new(),
            held: HashMap::new(),
            ends: VecDeque::new(),
            max: max.max(2),
        }
    }

    /// The tally of somebody, begun anew if the one there was is older than `within`. Says whether it
    /// was.
    pub(crate) fn tally(&mut self, who: &K, now: u64, within: u64) -> (&mut Tally, Begun) {
        let known = self.young.remove(who).or_else(|| self.old.remove(who));
        let known = known.filter(|tally| now < tally.since + within);
        if self.young.len() >= self.max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        let begun = match known {
            Some(_) => Begun::Before,
            None => Begun::Now,
        };
        let tally = known.unwrap_or(Tally {
            since: now,
            ..Tally::default()
        });
        (self.young.entry(who.clone()).or_insert(tally), begun)
    }

    /// The tally of somebody who was seen, if that is not too long ago.
    pub(crate) fn known(&mut self, who: &K, now: u64, within: u64) -> Option<&mut Tally> {
        let tally = match self.young.get_mut(who) {
            Some(tally) => Some(tally),
            None => self.old.get_mut(who),
        };
        tally.filter(|tally| now < tally.since + within)
    }

    /// Holds somebody; what was counted is forgotten.
    pub(crate) fn hold(&mut self, who: &K, held: Held, now: u64) {
        self.young.remove(who);
        self.old.remove(who);
        self.sweep(now);
        while self.held.len() >= self.max {
            let Some((_, first)) = self.ends.pop_front() else {
                break;
            };
            self.held.remove(&first);
        }
        self.held.insert(who.clone(), held);
        self.ends.push_back((held.until, who.clone()));
    }

    /// Whether somebody is held.
    pub(crate) fn is_held(&self, who: &K, now: u64) -> bool {
        self.held.get(who).is_some_and(|held| held.until > now)
    }

    /// Until when somebody is held.
    pub(crate) fn held_until(&self, who: &K, now: u64) -> Option<u64> {
        let held = self.held.get(who)?;
        (held.until > now).then_some(held.until)
    }

    /// Whether anybody may be held.
    pub(crate) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// All who are held.
    pub(crate) fn all(&mut self, now: u64) -> impl Iterator<Item = (&K, Held)> {
        self.sweep(now);
        self.held.iter().map(|(who, held)| (who, *held))
    }

    /// Lets go of those that `which` says. Returns how many that were.
    pub(crate) fn release(&mut self, which: impl Fn(&K) -> bool, now: u64) -> usize {
        self.sweep(now);
        let before = self.held.len();
        self.held.retain(|who, _| !which(who));
        let held = &self.held;
        // Or a list that is released and held again would grow.
        self.ends
            .retain(|(until, who)| held.get(who).is_some_and(|held| held.until == *until));
        before - self.held.len()
    }

    /// Entries in memory.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len() + self.held.len()
    }

    fn sweep(&mut self, now: u64) {
        while let Some((until, who)) = self.ends.pop_front_if(|(until, _)| *until <= now) {
            if self.held.get(&who).is_some_and(|held| held.until == until) {
                self.held.remove(&who);
            }
        }
    }
}

/// Whether a tally was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    Before,
    Now,
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: u64 = 60_000;

    #[test]
    fn a_flood_of_strangers_does_not_push_out_who_comes_often() {
        let mut list = Watchlist::new(100);
        for stranger in 1000..20_000u32 {
            list.tally(&stranger, 0, WITHIN).0.bad += 1;
            if stranger % 20 == 0 {
                list.tally(&1, 0, WITHIN).0.bad += 1;
            }
            assert!(list.len() <= 101, "{}", list.len());
        }
        assert_eq!(list.known(&1, 0, WITHIN).map(|t| t.bad), Some(950));
        assert!(list.known(&1000, 0, WITHIN).is_none());
    }

    #[test]
    fn a_tally_begins_anew_after_its_time() {
        let mut list = Watchlist::new(10);
        list.tally(&1, 0, WITHIN).0.bad = 5;
        assert_eq!(list.tally(&1, WITHIN - 1, WITHIN).0.bad, 5);
        assert!(list.known(&1, WITHIN, WITHIN).is_none());
        let (tally, begun) = list.tally(&1, WITHIN, WITHIN);
        assert_eq!((tally.bad, begun), (0, Begun::Now));
    }

    #[test]
    fn who_is_held_is_free_in_time_or_when_released_or_when_there_are_too_many() {
        let held = |until| Held { until, count: 3 };
        let mut list = Watchlist::new(3);
        for who in 1..=3u32 {
            list.hold(&who, held(100 + u64::from(who)), 0);
        }
        assert!(list.is_held(&1, 100) && !list.is_held(&1, 101));
        assert_eq!(list.release(|who| *who == 2, 0), 1);
        assert_eq!(list.release(|who| *who == 2, 0), 0);
        assert!(!list.is_held(&2, 0));
        // Held again, the stale end of the first time frees nobody.
        list.hold(&2, held(500), 0);
        assert!(list.is_held(&2, 300));
        list.hold(&4, held(600), 0);
        assert!(!list.is_held(&1, 0), "the oldest is out");
        assert_eq!(list.len(), 3);
        assert_eq!(list.all(550).count(), 1);
    }
}
