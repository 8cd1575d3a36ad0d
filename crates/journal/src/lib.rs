//! A durable store of small records by id, for state that changes all the time and must be there
//! after `kill -9`.
//!
//! ```text
//! Batch ─submit─► queue ─► writer thread: one frame per group, write, fdatasync ─► segment files
//!                                │                                                  │       ▲
//!   Position ◄─Event::Durable────┘                  live records of the oldest file ┴───────┘
//! ```
//!
//! Whoever uses it keeps the state in memory, submits every change as a [`Batch`] and holds back
//! what must not be seen before the batch's [`Position`] is durable. The journal answers no reads
//! but one: after a restart, [`Recovered::for_each`] gives every live record back.
//!
//! What it promises:
//! - A batch is there as a whole or not at all, and what a crash leaves is the state after some
//!   batch, never an earlier one than the last durable one.
//! - Nothing submitted is dropped while the process lives: a disk that is full or fails stalls the
//!   journal, which says so ([`Event::Stalled`]) and goes on when it can.
//! - Damage to what was durable is never passed over: the journal does not open, and says which
//!   file, where, and what to do.
//! - The files are at most about twice the live records plus one segment ([`GarbageRule`]), and
//!   small again when the records are gone and nothing comes in.
//!
//! A record that is put and deleted before its group is written costs no disk at all (`group.rs`).
//! Memory: 21 to 42 bytes per live record, and what is pending. Blocking calls and one thread of its
//! own; knows nothing of what is in the records.

mod batch;
mod chain;
mod compaction;
mod disk;
mod error;
mod event;
#[cfg(test)]
mod failing_disk;
mod frame;
mod group;
mod index;
mod journal;
mod options;
mod position;
mod queue;
mod recovered;
mod recovery;
mod segment;
mod stats;
mod writer;

pub use batch::{Batch, Operation, RecordId};
pub use error::{CloseError, OpenError, ReadError, StallError};
pub use event::{Condition, Event};
pub use journal::Journal;
pub use options::{Durability, GarbageRule, Options};
pub use position::Position;
pub use recovered::Recovered;
pub use recovery::{RecoveryReport, TornTail};
pub use stats::Stats;
