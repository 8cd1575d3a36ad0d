//! The partitioned durable log of Milepost.
//!
//! ```text
//! append ─► bounded queue ─► writer thread (one per partition) ─► segment file
//!                             batch, write, fdatasync                 │
//!           completion ◄──────┘                                       ▼
//!                                    readers by offset ◄── durable records ──► retention
//! ```
//!
//! A completion is called only after `fdatasync`: what was acknowledged survives `kill -9` and
//! power loss. Appends gather while the disk is busy and share one write and one sync (group
//! commit, `writer.rs`), so thousands of senders cost few syncs. On disk, batches are Kafka's
//! (`batch.rs`); opening a log repairs what a crash left and reports it (`recovery.rs`).
//!
//! Threads and blocking calls, no async: an append never blocks (a full queue refuses), reads and
//! commits of group offsets block on the disk and belong on a thread that may.
//!
//! Knows nothing of MQTT, vehicles or payloads.

mod batch;
mod disk;
mod error;
mod group;
mod index;
mod log;
mod marker;
mod name;
mod partition;
mod queue;
mod reader;
mod record;
mod recovery;
mod retention;
mod scan;
mod segment;
mod stats;
mod stream;
mod varint;
mod writer;

pub use error::{AppendError, GroupError, OpenError, ReadError};
pub use group::Group;
pub use log::{Log, LogOptions};
pub use reader::{ReadFrom, Reader};
pub use record::{Header, NewRecord, Offset, Record};
pub use recovery::{Damage, RecoveryReport, TornGroup, TornTail};
pub use stats::{PartitionStats, StreamStats};
pub use stream::{Durability, Retention, Stream, StreamConfig};
