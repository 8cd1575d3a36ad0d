//! Names of signals, kept once. A fleet sends the same few hundred names millions of times; a reading holds
//! a pointer to the name, and this is where the pointer comes from.
//!
//! Bounded, because names come from vehicles: two generations of [`GENERATION`] names. When the young one is
//! full it becomes the old one, and names in use move back on their next sight. A vehicle that invents names
//! can so push others out for a moment (they are then allocated anew) but can neither fill the memory nor
//! switch the sharing off for good, which "stop taking names when full" would allow.
//!
//! One per thread: no lock, and the reference counts of hot names do not travel between cores.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;

/// Names per generation: three times the VSS (1,367 signals). Two generations of names at their greatest
/// length ([`crate::MAX_NAME_BYTES`]) are about 2 MiB per thread.
const GENERATION: usize = 4_096;

#[derive(Default)]
pub(crate) struct Names {
    young: HashSet<Arc<str>>,
    old: HashSet<Arc<str>>,
    unnamed: Arc<str>,
}

impl Names {
    /// Stands in a reading until its name is known. Not among the names: an empty one is never known.
    pub(crate) fn unnamed(&self) -> Arc<str> {
        Arc::clone(&self.unnamed)
    }

    /// The shared copy of a name in use; `None` on its first sight and after a long absence.
    pub(crate) fn known(&self, name: &str) -> Option<Arc<str>> {
        self.young.get(name).map(Arc::clone)
    }

    /// The shared copy of `name`, made now if need be.
    pub(crate) fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.known(name) {
            return known;
        }
        let name = self.old.take(name).unwrap_or_else(|| Arc::from(name));
        if self.young.len() >= GENERATION {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_seen_again_is_the_same_allocation() {
        let mut names = Names::default();
        let first = names.share("Vehicle.Speed");
        assert!(Arc::ptr_eq(&first, &names.share("Vehicle.Speed")));
    }

    #[test]
    fn a_flood_of_invented_names_neither_grows_the_store_nor_ends_the_sharing() {
        let mut names = Names::default();
        let speed = names.share("Vehicle.Speed");
        for n in 0..GENERATION * 5 {
            names.share(&format!("junk.{n}"));
            // In use all the time, so it outlives every generation.
            assert!(Arc::ptr_eq(&speed, &names.share("Vehicle.Speed")));
        }
        assert!(names.young.len() + names.old.len() <= 2 * GENERATION);
    }
}
