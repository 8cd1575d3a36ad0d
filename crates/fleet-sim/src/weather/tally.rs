//! Tally: how often a storm was told what.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Counts by name. Names are few: reason codes, and ways of being cut off.
#[derive(Default)]
pub(super) struct Tally {
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Tally {
    pub(super) fn count(&self, what: impl ToString) {
        self.add(what, 1);
    }

    pub(super) fn add(&self, what: impl ToString, times: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what.to_string()).or_default() += times;
    }

    /// Most frequent first.
    pub(super) fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts: Vec<_> = counts.iter().map(|(k, v)| (k.clone(), *v)).collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }
}
