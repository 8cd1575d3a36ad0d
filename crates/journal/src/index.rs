//! Where each live record is.
//!
//! 20 bytes per record in hash tables of 64 shards, so that growing one of them copies a 64th and no
//! commit waits for two million entries to move. A shard takes ids in runs of 4096: ids come from a
//! counter, and what is put and deleted together then stays in the CPU's cache together.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::batch::RecordId;

const SHARDS: usize = 64;
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Where a record's operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Which segment, counted by the chain.
    pub(crate) segment: u32,
    /// Where in the file the operation begins.
    pub(crate) at: u32,
    /// Bytes of the operation.
    pub(crate) size: u32,
}

/// An id in two halves: keeps the table's entries at 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key([u32; 2]);

impl Key {
    fn new(id: RecordId) -> Key {
        Key([id.0 as u32, (id.0 >> 32) as u32])
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.0[0]) | u64::from(self.0[1]) << 32);
    }
}

/// A hasher for ids. They come from a counter, not from an adversary.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(SPREAD);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(SPREAD);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

pub(crate) type ById<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// The live records.
#[derive(Default)]
pub(crate) struct Index {
    shards: Vec<ById<Key, Location>>,
    records: u64,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index {
            shards: (0..SHARDS).map(|_| HashMap::default()).collect(),
            records: 0,
        }
    }

    fn shard(id: RecordId) -> usize {
        ((id.0 >> 12).wrapping_mul(SPREAD) >> 58) as usize
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    pub(crate) fn get(&self, id: RecordId) -> Option<Location> {
        self.shards[Index::shard(id)].get(&Key::new(id)).copied()
    }

    /// Returns where the record was before.
    pub(crate) fn insert(&mut self, id: RecordId, location: Location) -> Option<Location> {
        let before = self.shards[Index::shard(id)].insert(Key::new(id), location);
        self.records += u64::from(before.is_none());
        before
    }

    pub(crate) fn remove(&mut self, id: RecordId) -> Option<Location> {
        let before = self.shards[Index::shard(id)].remove(&Key::new(id));
        self.records -= u64::from(before.is_some());
        before
    }

    /// Gives memory back that a larger past has left.
    pub(crate) fn shrink(&mut self) {
        for shard in &mut self.shards {
            if shard.capacity() > 1024 && shard.len() < shard.capacity() / 8 {
                shard.shrink_to(shard.len() * 2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_20_bytes() {
        assert_eq!(size_of::<(Key, Location)>(), 20);
    }

    #[test]
    fn finds_what_was_inserted_last() {
        let location = |at| Location {
            segment: 1,
            at,
            size: 12,
        };
        let mut index = Index::new();
        let ids = || (0..20_000u64).map(|n| RecordId(n.wrapping_mul(0x0001_0000_0000_0801)));
        for (at, id) in (0..).zip(ids()) {
            assert_eq!(index.insert(id, location(at)), None);
        }
        for (at, id) in (0..).zip(ids()) {
            assert_eq!(index.insert(id, location(at + 1)), Some(location(at)));
        }
        assert_eq!(index.records(), 20_000);
        for (at, id) in (0..).zip(ids()) {
            assert_eq!(index.get(id), Some(location(at + 1)));
            assert_eq!(index.remove(id), Some(location(at + 1)));
            assert_eq!(index.remove(id), None);
        }
        index.shrink();
        assert_eq!(index.records(), 0);
        assert!(index.shards.iter().all(|shard| shard.capacity() <= 1024));
    }
}
