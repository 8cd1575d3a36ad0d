//! Histogram: how long things took, in a fixed 18 KiB and with an error below 1 %.
//!
//! Buckets grow with the value: 128 of them between a power of two and the next, so the width of a
//! bucket is at most 1/128 of what is in it. Adding is an increment; two histograms add up.

use std::time::Duration;

/// Steps between two powers of two, as a power of two itself.
const FINE: u32 = 7;
const STEPS: usize = 1 << FINE;
/// Longest time told apart: 2^25 µs, half a minute. Longer ones count as that.
const POWERS: usize = 25 - FINE as usize;

/// Durations, counted by how long they were.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    longest_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; (POWERS + 1) * STEPS].into(),
            count: 0,
            longest_us: 0,
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        self.add_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one, in microseconds.
    pub fn add_us(&mut self, us: u64) {
        let last = self.buckets.len() - 1;
        self.buckets[bucket(us).min(last)] += 1;
        self.count += 1;
        self.longest_us = self.longest_us.max(us);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.longest_us = self.longest_us.max(other.longest_us);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The time within which this share (0 to 1) of all was done; zero if nothing was counted.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(upper(index).min(self.longest_us));
            }
        }
        Duration::ZERO
    }

    /// The longest of all, exactly.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us)
    }
}

/// The first `STEPS` buckets hold one value each; then every power of two has `STEPS`.
fn bucket(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let power = us.ilog2() - FINE;
    let step = (us >> power) as usize - STEPS; // the bits below the leading one
    (power as usize + 1) * STEPS + step
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let power = index / STEPS - 1;
    let step = index % STEPS;
    (((STEPS + step + 1) as u64) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut histogram = Histogram::default();
        for us in 1..=100_000 {
            histogram.add_us(us);
        }
        for (share, expected) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0)] {
            let us = histogram.quantile(share).as_micros() as f64;
            assert!((us / expected - 1.0).abs() < 0.01, "{share}: {us}");
        }
        assert_eq!(histogram.quantile(1.0), Duration::from_micros(100_000));
        assert_eq!(histogram.longest(), Duration::from_micros(100_000));
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_follow_each_other() {
        for us in (0..3_000).chain([1 << 20, (1 << 24) - 1, 1 << 24]) {
            let index = bucket(us);
            assert!(us <= upper(index), "{us}");
            assert!(index == 0 || us > upper(index - 1), "{us}");
        }
    }

    #[test]
    fn very_long_is_counted_and_histograms_add_up() {
        let mut one = Histogram::default();
        one.add(Duration::from_secs(100));
        let mut other = Histogram::default();
        other.add(Duration::from_micros(5));
        other.merge(&one);
        assert_eq!(other.count(), 2);
        assert_eq!(other.quantile(0.5), Duration::from_micros(5));
        assert_eq!(other.longest(), Duration::from_secs(100));
    }
}
