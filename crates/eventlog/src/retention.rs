//! Retention: which sealed segments go, and letting them go.
//!
//! By age each partition for itself; by size the stream as a whole, oldest segment first, so that a
//! partition with busy vehicles gets the room that quiet ones do not need. Whole sealed segments
//! only, from the front: a partition never has holes. Age is the time since the segment's last
//! append, not the records' own times.
//!
//! Flow: writer seals -> segment leaves the list (readers are told `Truncated`) -> files unlinked
//! -> directory synced, before the next one: after a crash a partition still begins somewhere and
//! goes on without a hole.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::disk;
use crate::partition::Partition;
use crate::segment::Segment;
use crate::stream::Shared;

/// Applies the stream's retention.
pub(crate) fn enforce(stream: &Shared, now: SystemTime) {
    let _one_at_a_time = stream
        .retiring
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let retention = stream.config.retention;

    if let Some(max_age) = retention.max_age {
        for partition in &stream.partitions {
            while let Some(oldest) = partition.oldest_sealed()
                // A time in the future (a clock set back) is young.
                && now.duration_since(oldest.touched()).is_ok_and(|age| age > max_age)
            {
                remove(stream, partition, &oldest);
            }
        }
    }

    if let Some(max_bytes) = retention.max_bytes {
        while stream.used.load(Ordering::Relaxed) > max_bytes {
            let oldest = stream
                .partitions
                .iter()
                .filter_map(|partition| Some((partition, partition.oldest_sealed()?)))
                .min_by_key(|(_, segment)| segment.touched());
            let Some((partition, segment)) = oldest else {
                break;
            };
            remove(stream, partition, &segment);
        }
    }
}

fn remove(stream: &Shared, partition: &Partition, segment: &Arc<Segment>) {
    partition.let_go_of_oldest();
    stream.used.fetch_sub(segment.durable(), Ordering::Relaxed);
    partition
        .counters
        .removed_segments
        .fetch_add(1, Ordering::Relaxed);
    if let Err(error) = segment
        .remove()
        .and_then(|()| disk::sync_dir(&partition.dir))
    {
        tracing::warn!(file = %segment.path().display(), %error, "expired segment not removed; it comes back with the next start");
    }
}
