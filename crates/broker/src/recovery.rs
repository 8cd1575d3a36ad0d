//! What a broker found in its store when it started.

use std::time::Duration;

/// What was there, for the operator's log and for tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Sessions that wait for their clients again.
    pub sessions: u64,
    /// Subscriptions of these.
    pub subscriptions: u64,
    /// Messages kept, each once: queued or retained.
    pub messages: u64,
    /// Bytes of these.
    pub message_bytes: u64,
    /// Deliveries waiting or in flight, over all sessions and shared subscriptions.
    pub deliveries: u64,
    /// Topics with a retained message.
    pub retained: u64,
    /// Sessions that had expired meanwhile.
    pub expired_sessions: u64,
    /// Bytes at the end of the journal that a crash had cut short; nothing in them was acknowledged.
    pub torn_bytes: u64,
    /// Bytes of the journal on disk.
    pub disk_bytes: u64,
    /// Time from opening the store to sessions being in place.
    pub took: Duration,
}
