//! One subscription as the index keeps it, and the set of them under one filter.

use std::collections::HashMap;

use journal::RecordId;
use mqtt::{QoS, Version};

use super::slots::SessionId;

/// Where a matching message goes and in what shape. Small (24 bytes): a fan-out copies thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subscriber {
    pub(crate) to: SessionId,
    /// The record of a stored session; [`TRANSIENT`] if there is none.
    pub(crate) session: RecordId,
    /// Subscription identifier, 0 for none (0 is not a legal one).
    pub(crate) id: u32,
    pub(crate) granted: QoS,
    pub(crate) version: Version,
    pub(crate) own: OwnMessages,
    pub(crate) retain: RetainFlag,
}

impl Subscriber {
    /// In the index of shared filters: the place of a share instead of a session.
    pub(crate) fn share(place: u32) -> Subscriber {
        Subscriber {
            to: SessionId::new(0, place & 0x00FF_FFFF, place >> 24),
            session: TRANSIENT,
            id: 0,
            granted: QoS::AtMostOnce,
            version: Version::V5,
            own: OwnMessages::Deliver,
            retain: RetainFlag::Clear,
        }
    }

    /// The place of a share, in the index of shared filters.
    pub(crate) fn share_place(&self) -> usize {
        (self.to.tenancy() << 24 | self.to.slot()) as usize
    }
}

/// In place of the record of a session that has none.
pub(crate) const TRANSIENT: RecordId = RecordId(0);

/// Whether a subscriber gets what its own connection published (No Local, section 3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnMessages {
    Deliver,
    Skip,
}

/// Retain As Published (section 3.8.3.1): what becomes of RETAIN on a message that is delivered as it
/// comes in. Ordered: where two subscriptions of a session match, the greater one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RetainFlag {
    Clear,
    AsPublished,
}

/// What became of a subscription put into a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    New,
    Replaced,
}

/// Up to here a set is searched; above, it keeps a map of places.
const SEARCHED: usize = 16;

/// All subscribers of one filter. Most filters have one (a vehicle's own commands), a few have the
/// whole fleet (broadcasts), so both ends are cheap: one needs no allocation, and joining or
/// leaving a crowd does not walk through it.
#[derive(Debug, Default)]
pub(crate) enum Subscribers {
    #[default]
    None,
    One(Subscriber),
    Crowd(Box<Crowd>),
}

#[derive(Debug, Default)]
pub(crate) struct Crowd {
    list: Vec<Subscriber>,
    /// Position of each subscriber in `list`, once there are more than [`SEARCHED`].
    places: HashMap<SessionId, u32>,
}

impl Subscribers {
    pub(crate) fn as_slice(&self) -> &[Subscriber] {
        match self {
            Subscribers::None => &[],
            Subscribers::One(one) => std::slice::from_ref(one),
            Subscribers::Crowd(crowd) => &crowd.list,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Subscribers::None)
    }

    /// Adds a subscriber or replaces its options.
    pub(crate) fn insert(&mut self, subscriber: Subscriber) -> Placed {
        match self {
            Subscribers::None => {
                *self = Subscribers::One(subscriber);
                Placed::New
            }
            Subscribers::One(one) if one.to == subscriber.to => {
                *one = subscriber;
                Placed::Replaced
            }
            Subscribers::One(one) => {
                *self = Subscribers::Crowd(Box::new(Crowd {
                    list: vec![*one, subscriber],
                    places: HashMap::new(),
                }));
                Placed::New
            }
            Subscribers::Crowd(crowd) => crowd.insert(subscriber),
        }
    }

    pub(crate) fn get(&self, who: SessionId) -> Option<Subscriber> {
        match self {
            Subscribers::None => None,
            Subscribers::One(one) => Some(*one).filter(|one| one.to == who),
            Subscribers::Crowd(crowd) => crowd.list.get(crowd.place_of(who)?).copied(),
        }
    }

    pub(crate) fn get_mut(&mut self, who: SessionId) -> Option<&mut Subscriber> {
        match self {
            Subscribers::None => None,
            Subscribers::One(one) => Some(one).filter(|one| one.to == who),
            Subscribers::Crowd(crowd) => {
                let place = crowd.place_of(who)?;
                crowd.list.get_mut(place)
            }
        }
    }

    /// Removes a subscriber; says whether it was there.
    pub(crate) fn remove(&mut self, who: SessionId) -> bool {
        match self {
            Subscribers::None => false,
            Subscribers::One(one) if one.to == who => {
                *self = Subscribers::None;
                true
            }
            Subscribers::One(_) => false,
            Subscribers::Crowd(crowd) => {
                let removed = crowd.remove(who);
                if let [last] = crowd.list[..] {
                    *self = Subscribers::One(last);
                }
                removed
            }
        }
    }
}

impl Crowd {
    fn place_of(&self, who: SessionId) -> Option<usize> {
        if self.places.is_empty() {
            self.list.iter().position(|s| s.to == who)
        } else {
            self.places.get(&who).map(|&place| place as usize)
        }
    }

    fn insert(&mut self, subscriber: Subscriber) -> Placed {
        if let Some(place) = self.place_of(subscriber.to) {
            self.list[place] = subscriber;
            return Placed::Replaced;
        }
        self.list.push(subscriber);
        if !self.places.is_empty() {
            self.places
                .insert(subscriber.to, (self.list.len() - 1) as u32);
        } else if self.list.len() > SEARCHED {
            self.places = (0u32..)
                .zip(&self.list)
                .map(|(place, s)| (s.to, place))
                .collect();
        }
        Placed::New
    }

    fn remove(&mut self, who: SessionId) -> bool {
        let Some(place) = self.place_of(who) else {
            return false;
        };
        self.list.swap_remove(place);
        if !self.places.is_empty() {
            self.places.remove(&who);
            if let Some(moved) = self.list.get(place) {
                self.places.insert(moved.to, place as u32);
            }
        }
        // A crowd that went home gives its room back.
        if self.list.len() * 4 < self.list.capacity() {
            self.list.shrink_to(self.list.len() * 2);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber(slot: u32) -> Subscriber {
        Subscriber {
            to: SessionId::new(0, slot, 0),
            session: TRANSIENT,
            id: 0,
            granted: QoS::AtMostOnce,
            version: Version::V5,
            own: OwnMessages::Deliver,
            retain: RetainFlag::Clear,
        }
    }

    #[test]
    fn a_crowd_joins_and_leaves_in_any_order_and_nobody_is_forgotten() {
        for size in [1, 2, 3, SEARCHED as u32, SEARCHED as u32 + 1, 500] {
            let mut set = Subscribers::default();
            for n in 0..size {
                assert_eq!(set.insert(subscriber(n)), Placed::New);
                assert_eq!(set.insert(subscriber(n)), Placed::Replaced);
            }
            assert_eq!(set.as_slice().len(), size as usize);
            // 7 is coprime to every size above but 0 mod 7 ones; walk all residues anyway.
            let mut order: Vec<u32> = (0..size).collect();
            order.sort_by_key(|n| (n * 7) % 13);
            for (gone, n) in order.iter().enumerate() {
                assert!(set.remove(subscriber(*n).to), "{n} of {size}");
                assert!(!set.remove(subscriber(*n).to), "{n} of {size} twice");
                assert_eq!(set.as_slice().len(), size as usize - gone - 1);
            }
            assert!(set.is_empty());
        }
    }
}
