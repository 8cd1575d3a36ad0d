//! What a journal tells whoever uses it.

use std::sync::Arc;

use crate::error::StallError;
use crate::position::Position;

/// Something happened. Told on the journal's writer thread: hand it on, do not work here.
#[derive(Debug, Clone)]
pub enum Event {
    /// Everything submitted up to here is durable.
    Durable(Position),
    /// Nothing becomes durable at present. The journal keeps what is submitted in memory and tries
    /// again by itself; told once until `Resumed`.
    Stalled(Arc<StallError>),
    /// The trouble is over: what was kept is being made durable.
    Resumed,
}

/// Whether to submit more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Yes.
    Ready,
    /// More than [`Options::max_pending_bytes`](crate::Options::max_pending_bytes) wait for the
    /// disk: take nothing new that can wait.
    Behind,
    /// The disk refuses: take nothing new.
    Stalled,
}
