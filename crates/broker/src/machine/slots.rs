//! Things that live on one shard, by slot: connections and sessions.
//!
//! An id names the shard, the slot there, and which of the slot's tenants is meant, so that what is
//! still on its way to one that has gone never reaches its successor.

use std::fmt;
use std::marker::PhantomData;

/// Where something lives: its shard, its slot there, and which of the slot's tenants it is.
pub(crate) struct Place<Of> {
    /// Shard in the upper 8 bits, slot in the lower 24.
    place: u32,
    tenancy: u32,
    of: PhantomData<fn() -> Of>,
}

/// What a [`ConnectionId`] names.
#[derive(Debug)]
pub(crate) enum OfConnection {}

/// What a [`SessionId`] names.
#[derive(Debug)]
pub(crate) enum OfSession {}

/// A transport that stands.
pub(crate) type ConnectionId = Place<OfConnection>;

/// A client's state, whether it is connected or not.
pub(crate) type SessionId = Place<OfSession>;

impl<Of> Place<Of> {
    /// Most shards there can be.
    pub(crate) const MAX_SHARDS: usize = 1 << 8;
    /// Most slots one shard can have.
    pub(crate) const MAX_SLOTS: usize = 1 << 24;

    pub(crate) fn new(shard: usize, slot: u32, tenancy: u32) -> Self {
        debug_assert!(shard < Self::MAX_SHARDS && (slot as usize) < Self::MAX_SLOTS);
        Place {
            place: (shard as u32) << 24 | slot,
            tenancy,
            of: PhantomData,
        }
    }

    pub(crate) fn shard(self) -> usize {
        (self.place >> 24) as usize
    }

    pub(crate) fn slot(self) -> u32 {
        self.place & 0x00FF_FFFF
    }

    pub(crate) fn tenancy(self) -> u32 {
        self.tenancy
    }
}

// By hand: derived ones would ask the same of `Of`, of which there is never any.
impl<Of> Clone for Place<Of> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Of> Copy for Place<Of> {}

impl<Of> PartialEq for Place<Of> {
    fn eq(&self, other: &Self) -> bool {
        (self.place, self.tenancy) == (other.place, other.tenancy)
    }
}

impl<Of> Eq for Place<Of> {}

impl<Of> PartialOrd for Place<Of> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<Of> Ord for Place<Of> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.place, self.tenancy).cmp(&(other.place, other.tenancy))
    }
}

impl<Of> std::hash::Hash for Place<Of> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.place, self.tenancy).hash(state);
    }
}

impl<Of> fmt::Debug for Place<Of> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.shard(), self.slot(), self.tenancy)
    }
}

/// The inhabitants of a shard, each in a slot.
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    tenancy: u32,
    tenant: Option<Box<T>>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn get<Of>(&mut self, id: Place<Of>) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.slot() as usize)?;
        if slot.tenancy != id.tenancy() {
            return None;
        }
        slot.tenant.as_deref_mut()
    }

    /// Moves somebody in; `None` if the shard is full.
    pub(crate) fn insert<Of>(&mut self, shard: usize, tenant: Box<T>) -> Option<Place<Of>> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.slots.len() >= Place::<Of>::MAX_SLOTS => return None,
            None => {
                self.slots.push(Slot {
                    tenancy: 0,
                    tenant: None,
                });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[number as usize];
        slot.tenancy = slot.tenancy.wrapping_add(1);
        slot.tenant = Some(tenant);
        Some(Place::new(shard, number, slot.tenancy))
    }

    pub(crate) fn remove<Of>(&mut self, id: Place<Of>) -> Option<Box<T>> {
        self.get(id)?;
        self.free.push(id.slot());
        self.slots[id.slot() as usize].tenant.take()
    }

    /// The id the next one to move in will have; `None` if the shard is full.
    pub(crate) fn next_id<Of>(&self, shard: usize) -> Option<Place<Of>> {
        let number = match self.free.last() {
            Some(number) => *number,
            None if self.slots.len() >= Place::<Of>::MAX_SLOTS => return None,
            None => self.slots.len() as u32,
        };
        let tenancy = self.slots.get(number as usize).map_or(0, |s| s.tenancy);
        Some(Place::new(shard, number, tenancy.wrapping_add(1)))
    }

    /// Those in the `count` slots from `first` on; `None` beyond the last slot. To go through all of them
    /// with pauses: who stays is met, who comes or goes meanwhile may be.
    pub(crate) fn stretch<Of>(
        &self,
        shard: usize,
        first: u32,
        count: u32,
    ) -> Option<impl Iterator<Item = (Place<Of>, &T)>> {
        let end = (first as usize + count as usize).min(self.slots.len());
        let slots = self.slots.get(first as usize..end)?;
        (!slots.is_empty()).then(|| {
            (first..).zip(slots).filter_map(move |(number, slot)| {
                let place = Place::new(shard, number, slot.tenancy);
                Some((place, slot.tenant.as_deref()?))
            })
        })
    }

    /// The ids of those in up to `count` slots from `from` on, and the slot after them, if there is one.
    pub(crate) fn some<Of>(
        &self,
        shard: usize,
        from: usize,
        count: usize,
    ) -> (Vec<Place<Of>>, Option<usize>) {
        let end = self.slots.len().min(from.saturating_add(count));
        let ids = (from..end)
            .zip(self.slots.iter().skip(from))
            .filter(|(_, slot)| slot.tenant.is_some())
            .map(|(number, slot)| Place::new(shard, number as u32, slot.tenancy))
            .collect();
        (ids, (end < self.slots.len()).then_some(end))
    }

    /// The ids of everyone here, in the order of the slots.
    pub(crate) fn all<Of>(&self, shard: usize) -> Vec<Place<Of>> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.tenant.is_some())
            .map(|(number, slot)| Place::new(shard, number, slot.tenancy))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_is_not_its_predecessor() {
        let mut slots = Slots::default();
        let first: ConnectionId = slots.insert(3, Box::new("first")).expect("there is room");
        assert_eq!(slots.remove(first).as_deref(), Some(&"first"));
        let second: ConnectionId = slots.insert(3, Box::new("second")).expect("there is room");
        assert_eq!(
            (first.shard(), first.slot()),
            (second.shard(), second.slot())
        );
        assert_ne!(first, second);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&mut "second"));
        assert_eq!(slots.all(3), [second]);
    }
}
