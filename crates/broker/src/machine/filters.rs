//! The subscriptions of one session, by filter.
//!
//! Most clients have one or two, so a few are a sorted list of just the room they need: a hash map
//! takes 160 bytes for one, on each of hundreds of thousands of sessions. Many are a tree. Both are gone
//! through in the order of the filters, so what is done for each is done in the same order in every run.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;
use std::slice;
use std::sync::Arc;

use super::exchange::Share;
use super::session::Held;

/// Up to here a list is shorter to search and to move than a tree.
const FEW: usize = 8;

/// Subscriptions by filter as the client sent it. How many there can be is bounded by
/// `max_subscriptions`.
#[derive(Debug)]
pub(crate) struct Filters(Kept);

#[derive(Debug)]
#[expect(
    clippy::box_collection,
    reason = "few have many, and all pay for the larger"
)]
enum Kept {
    /// In the order of the filters.
    Few(Vec<(Arc<str>, Held)>),
    Many(Box<BTreeMap<Arc<str>, Held>>),
}

impl Default for Filters {
    fn default() -> Filters {
        Filters(Kept::Few(Vec::new()))
    }
}

impl Filters {
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Kept::Few(list) => list.len(),
            Kept::Many(map) => map.len(),
        }
    }

    pub(crate) fn get_key_value(&self, filter: &str) -> Option<(&Arc<str>, &Held)> {
        match &self.0 {
            Kept::Few(list) => {
                let (filter, held) = &list[place(list, filter).ok()?];
                Some((filter, held))
            }
            Kept::Many(map) => map.get_key_value(filter),
        }
    }

    /// Adds a subscription or replaces the one there is.
    pub(crate) fn insert(&mut self, filter: Arc<str>, held: Held) {
        let list = match &mut self.0 {
            Kept::Many(map) => {
                map.insert(filter, held);
                return;
            }
            Kept::Few(list) => list,
        };
        match place(list, &filter) {
            Ok(at) => list[at].1 = held,
            Err(_) if list.len() == FEW => {
                let mut map: BTreeMap<_, _> = std::mem::take(list).into_iter().collect();
                map.insert(filter, held);
                self.0 = Kept::Many(Box::new(map));
            }
            Err(at) => {
                if list.is_empty() {
                    list.reserve_exact(1);
                }
                list.insert(at, (filter, held));
            }
        }
    }

    pub(crate) fn remove(&mut self, filter: &str) -> Option<Held> {
        match &mut self.0 {
            Kept::Few(list) => {
                let at = place(list, filter).ok()?;
                let (_, held) = list.remove(at);
                if list.is_empty() {
                    *list = Vec::new();
                }
                Some(held)
            }
            Kept::Many(map) => {
                let held = map.remove(filter)?;
                // Half of it, so that a client that comes and goes at the border costs nothing.
                if map.len() <= FEW / 2 {
                    let list = std::mem::take(&mut **map).into_iter().collect();
                    self.0 = Kept::Few(list);
                }
                Some(held)
            }
        }
    }

    /// Takes one of them away: the last of few, of many the first.
    pub(crate) fn pop(&mut self) -> Option<(Arc<str>, Held)> {
        match &mut self.0 {
            Kept::Few(list) => list.pop(),
            Kept::Many(map) => map.pop_first(),
        }
    }

    /// The shared ones, without going through the others.
    pub(crate) fn shared(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Share>)> {
        let iter = match &self.0 {
            Kept::Few(list) => Iter::Few(list.iter()),
            Kept::Many(map) => {
                // `0` comes after `/`.
                let bounds = (Bound::Included("$share/"), Bound::Excluded("$share0"));
                Iter::Range(map.range::<str, _>(bounds))
            }
        };
        iter.filter_map(|(filter, held)| Some((filter, held.share.as_ref()?)))
    }

    /// All of them, in the order of the filters.
    pub(crate) fn iter(&self) -> Iter<'_> {
        match &self.0 {
            Kept::Few(list) => Iter::Few(list.iter()),
            Kept::Many(map) => Iter::Many(map.iter()),
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.iter().map(|(filter, _)| filter)
    }
}

/// Where a filter is in a list, or would be.
fn place(list: &[(Arc<str>, Held)], filter: &str) -> Result<usize, usize> {
    list.binary_search_by(|(known, _)| (**known).cmp(filter))
}

/// Goes through the subscriptions.
pub(crate) enum Iter<'a> {
    Few(slice::Iter<'a, (Arc<str>, Held)>),
    Many(btree_map::Iter<'a, Arc<str>, Held>),
    Range(btree_map::Range<'a, Arc<str>, Held>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Arc<str>, &'a Held);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Iter::Few(list) => list.next().map(|(filter, held)| (filter, held)),
            Iter::Many(map) => map.next(),
            Iter::Range(map) => map.next(),
        }
    }
}

impl<'a> IntoIterator for &'a Filters {
    type Item = (&'a Arc<str>, &'a Held);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use journal::RecordId;
    use proptest::prelude::*;

    use super::*;

    fn held(record: u64) -> Held {
        Held {
            record: RecordId(record),
            share: None,
        }
    }

    #[test]
    fn one_subscription_takes_no_more_room_than_it_needs() {
        let mut filters = Filters::default();
        filters.insert("cmd/car/request".into(), held(1));
        match &filters.0 {
            Kept::Few(list) => assert_eq!(list.capacity(), 1),
            Kept::Many(_) => panic!("one is not many"),
        }
    }

    proptest! {
        /// Across the border between few and many, in both directions.
        #[test]
        fn they_are_what_a_map_would_be(
            steps in prop::collection::vec((0u8..3, 0u8..14, 0u64..9), 0..200),
        ) {
            let mut filters = Filters::default();
            let mut map = BTreeMap::new();
            for (step, name, record) in steps {
                let name: Arc<str> = format!("a/{name}").into();
                if step == 0 {
                    let gone = filters.remove(&name).map(|held| held.record.0);
                    prop_assert_eq!(gone, map.remove(&name));
                } else {
                    filters.insert(Arc::clone(&name), held(record));
                    map.insert(name, record);
                }
                prop_assert_eq!(filters.len(), map.len());
                let all: Vec<_> = filters.iter().map(|(f, h)| (Arc::clone(f), h.record.0)).collect();
                prop_assert_eq!(all, map.clone().into_iter().collect::<Vec<_>>());
                for name in 0..14 {
                    let name = format!("a/{name}");
                    let found = filters.get_key_value(&name).map(|(f, h)| (&**f, h.record.0));
                    prop_assert_eq!(found, map.get_key_value(&*name).map(|(f, r)| (&**f, *r)));
                }
            }
        }
    }
}
