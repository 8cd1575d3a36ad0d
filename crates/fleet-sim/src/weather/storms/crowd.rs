//! Crowd: many of one kind at once.

use std::future::Future;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// Runs `each` for 0 to `count` at the same time, on this thread, and adds up what they return.
pub(super) async fn crowd<F: Future<Output = u64>>(
    count: usize,
    each: impl FnMut(usize) -> F,
) -> u64 {
    // Not tasks of their own: they may borrow, and all end when this does.
    let mut all: FuturesUnordered<F> = (0..count).map(each).collect();
    let mut sum = 0;
    while let Some(part) = all.next().await {
        sum += part;
    }
    sum
}
