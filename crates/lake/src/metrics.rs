//! Counters of the lake, read by the server's `/metrics` and by the demo's summary.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::query::QueryErrorKind;

/// Upper bounds, in milliseconds, of the buckets of [`Freshness`].
pub const FRESHNESS_BUCKETS_MS: [u64; 14] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000,
];

/// Time from a record's reception to when SQL could see it, counted per record since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// Records in each bucket of [`FRESHNESS_BUCKETS_MS`] (not cumulated); the last counts what was
    /// slower still.
    pub counts: [u64; FRESHNESS_BUCKETS_MS.len() + 1],
    /// Sum over all records, milliseconds.
    pub sum_ms: u64,
}

impl Freshness {
    /// The bucket bound below which the share `quantile` (0 to 1) of the records stayed; `None`
    /// before the first record or if it lies beyond the last bound.
    pub fn quantile_ms(&self, quantile: f64) -> Option<u64> {
        let total: u64 = self.counts.iter().sum();
        let wanted = (total as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (count, bound) in self.counts.iter().zip(FRESHNESS_BUCKETS_MS) {
            seen += count;
            if seen >= wanted {
                return Some(bound);
            }
        }
        None
    }
}

/// A commit that reached Delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastCommit {
    /// When it was done, microseconds since the epoch.
    pub at_us: i64,
    /// How long sorting, encoding, syncing and the log entries took, both tables together.
    pub took: Duration,
    /// Rows of both tables.
    pub rows: u64,
}

/// State and counters of a [`Lake`](crate::Lake) at one moment. Counters start at zero when the
/// lake is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LakeMetrics {
    /// Rows of `live.messages`.
    pub hot_messages: u64,
    /// Rows of `live.signals`.
    pub hot_signals: u64,
    /// Bytes of both, bounded by `LakeOptions::hot_bytes`.
    pub hot_bytes: u64,
    /// Records taken in (each once, repeated ones not counted).
    pub ingested_messages: u64,
    /// Readings taken in.
    pub ingested_signals: u64,
    /// Records that came again and were skipped.
    pub duplicates: u64,
    /// Times `ingest` had to wait for room.
    pub ingest_waits: u64,
    /// Rows committed to `bronze.messages`.
    pub committed_messages: u64,
    /// Rows committed to `silver.signals`.
    pub committed_signals: u64,
    /// Bytes of Parquet written by commits.
    pub committed_bytes: u64,
    /// Commits to either table.
    pub commits: u64,
    /// Commits that failed; their rows stay in memory and are tried again.
    pub commit_failures: u64,
    /// Times small files were merged.
    pub compactions: u64,
    /// The newest commit.
    pub last_commit: Option<LastCommit>,
    /// Vehicle × signal pairs in memory.
    pub last_known_entries: u64,
    /// Reception to visible in SQL.
    pub freshness: Freshness,
    /// Queries by how they ended: `("ok", n)`, one entry for each [`QueryErrorKind`] by its name,
    /// and `("cancelled", n)` for those whose client went away.
    pub queries: Vec<(&'static str, u64)>,
}

/// How a query ended, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Failed(QueryErrorKind),
    Cancelled,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) ingested_messages: AtomicU64,
    pub(crate) ingested_signals: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) ingest_waits: AtomicU64,
    pub(crate) committed_messages: AtomicU64,
    pub(crate) committed_signals: AtomicU64,
    pub(crate) committed_bytes: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) commit_failures: AtomicU64,
    pub(crate) compactions: AtomicU64,
    last_commit: Mutex<Option<LastCommit>>,
    fresh: [AtomicU64; FRESHNESS_BUCKETS_MS.len() + 1],
    fresh_sum_ms: AtomicU64,
    queries: [AtomicU64; QueryErrorKind::ALL.len() + 2],
}

pub(crate) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

pub(crate) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(crate) fn visible_after(&self, age_us: i64) {
        let age_ms = u64::try_from(age_us / 1_000).unwrap_or_default();
        let bucket = FRESHNESS_BUCKETS_MS.partition_point(|&bound| bound < age_ms);
        self.fresh[bucket].fetch_add(1, Ordering::Relaxed);
        self.fresh_sum_ms.fetch_add(age_ms, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self, commit: LastCommit) {
        *self
            .last_commit
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(commit);
    }

    pub(crate) fn last_commit(&self) -> Option<LastCommit> {
        *self
            .last_commit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn query_ended(&self, outcome: Outcome) {
        let slot = match outcome {
            Outcome::Ok => 0,
            Outcome::Failed(kind) => 1 + kind as usize,
            Outcome::Cancelled => 1 + QueryErrorKind::ALL.len(),
        };
        self.queries[slot].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn freshness(&self) -> Freshness {
        Freshness {
            counts: std::array::from_fn(|bucket| get(&self.fresh[bucket])),
            sum_ms: get(&self.fresh_sum_ms),
        }
    }

    pub(crate) fn queries(&self) -> Vec<(&'static str, u64)> {
        let kinds = QueryErrorKind::ALL.iter().map(|kind| kind.name());
        std::iter::once("ok")
            .chain(kinds)
            .chain(["cancelled"])
            .zip(&self.queries)
            .map(|(name, count)| (name, get(count)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_bounds_of_their_buckets() {
        let counters = Counters::default();
        assert_eq!(counters.freshness().quantile_ms(0.5), None);
        for age_ms in [3, 3, 3, 40, 999_999] {
            counters.visible_after(age_ms * 1_000);
        }
        let freshness = counters.freshness();
        assert_eq!(freshness.quantile_ms(0.5), Some(5));
        assert_eq!(freshness.quantile_ms(0.8), Some(50));
        assert_eq!(freshness.quantile_ms(0.99), None);
        assert_eq!(freshness.sum_ms, 1_000_048);
    }
}
