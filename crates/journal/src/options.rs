//! What can be set about a journal.

use std::time::Duration;

use crate::error::OpenError;

/// How a journal works. `Options::default()` is for production.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// A segment file is left for the next one when it would grow beyond this, in bytes; 4 KiB to
    /// 1 GiB. Default 64 MiB. One group of batches larger than this gets a file of its own.
    pub segment_bytes: u64,
    /// When a batch counts as durable.
    pub durability: Durability,
    /// With more bytes than this submitted and not durable, [`Condition`](crate::Condition) is
    /// `Behind`. It is the memory a slow disk may cost, if whoever submits stops then; the journal
    /// itself takes everything. Default 64 MiB.
    pub max_pending_bytes: usize,
    /// How long the writer waits for company after the first batch. Default 0: the time a sync
    /// takes gathers groups enough, and a lone batch waits for nobody.
    pub linger: Duration,
    /// The pause between tries while the disk refuses. Default 250 ms.
    pub retry_pause: Duration,
    /// How much garbage the files may hold.
    pub compact_at: GarbageRule,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            durability: Durability::Fsync,
            max_pending_bytes: 64 << 20,
            linger: Duration::ZERO,
            retry_pause: Duration::from_millis(250),
            compact_at: GarbageRule::default(),
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let out_of_range = |key, value, allowed| {
            Err(OpenError::Option {
                key,
                value,
                allowed,
            })
        };
        if !(4 << 10..=1 << 30).contains(&self.segment_bytes) {
            return out_of_range("segment_bytes", self.segment_bytes, "4096 to 1073741824");
        }
        if !(2..=100).contains(&self.compact_at.factor) {
            let factor = u64::from(self.compact_at.factor);
            return out_of_range("compact_at.factor", factor, "2 to 100");
        }
        Ok(())
    }
}

/// When a batch counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After `fdatasync`: it survives the end of the process, of the system and of the power.
    #[default]
    Fsync,
    /// After `write`: it survives the end of the process (`kill -9`) and nothing else. After a power
    /// cut the journal may refuse to open. For benches and tests only.
    None,
}

/// When live records are copied away from the oldest file so that it can be deleted.
///
/// While batches come in: when all files together are larger than `factor` times the live records
/// plus one segment. When nothing has come in for `idle_after`: when they are larger than `factor`
/// times the live records plus 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GarbageRule {
    /// 2 to 100. Default 2: every live byte is copied about once for each byte that is written.
    pub factor: u32,
    /// Default 1 s.
    pub idle_after: Duration,
}

impl Default for GarbageRule {
    fn default() -> GarbageRule {
        GarbageRule {
            factor: 2,
            idle_after: Duration::from_secs(1),
        }
    }
}
