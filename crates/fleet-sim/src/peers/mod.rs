//! Peers: what brokers cost and how fast they are, measured the same way for each of them.
//!
//! Knows nothing of any broker but its address and its processes: MQTT 3.1.1 or 5, TCP or TLS. One
//! scenario per run:
//!
//! ```text
//! connect all ─► subscribe ─► warm up ─► [ the measured window ] ─► stop ─► drain ─► count
//!                                         CPU of the broker's processes and of this one, at both ends
//! ```
//! Every message is stamped with its publisher and its number, so that what is lost and what comes twice
//! is known, and not guessed from sums; [`Report::rate`] is nothing if anything was lost. Publishers
//! send only while few enough messages are under way, so a broker that drops what it cannot keep up with
//! is measured at a rate where it need not.
//!
//! `echo` is a broker that does nothing but move the bytes: what is above it is a broker's own cost,
//! and what the generator takes beside it is the generator's.

mod door;
pub mod echo;
mod engine;
mod flow;
mod frame;
mod idle;
mod ledger;
mod line;
mod meter;
mod offline;
mod process;
mod retained;
mod scanner;
mod stamp;
mod storm;

use std::io;
use std::time::Duration;

use mqtt::QoS;

pub use door::{Access, Door, Own};
pub use flow::{Flow, Requests, Shape};
pub use frame::Keeping;
pub use idle::Idle;
pub use ledger::Tally;
pub use meter::{Memory, Report, Window};
pub use offline::Offline;
pub use process::Processes;
pub use retained::Retained;
pub use storm::Storm;

use crate::open_files::OpenFilesError;

/// Smallest payload: it begins with 16 bytes that say who sent it, as which message, and when.
pub const LEAST_PAYLOAD: usize = stamp::Stamp::SIZE;
/// Largest payload.
pub const MOST_PAYLOAD: usize = 256 * 1024;

/// What all scenarios have in common.
#[derive(Debug, Clone)]
pub struct Common {
    /// Of publishing and of subscriptions.
    pub qos: QoS,
    /// Bytes of a payload, [`LEAST_PAYLOAD`] to [`MOST_PAYLOAD`].
    pub payload: usize,
    /// What topics begin with, without a slash at the end.
    pub root: String,
    /// Before the window, with the same work.
    pub warm_up: Duration,
    /// The window.
    pub lasts: Duration,
    /// Silence after which what is under way counts as lost.
    pub patience: Duration,
    /// The broker's processes.
    pub processes: Processes,
}

impl Common {
    fn check(&self) -> Result<(), PeersError> {
        if !(LEAST_PAYLOAD..=MOST_PAYLOAD).contains(&self.payload) {
            return Err(PeersError::Options {
                problem: format!(
                    "payloads of {} bytes: choose {LEAST_PAYLOAD} to {MOST_PAYLOAD}",
                    self.payload
                ),
            });
        }
        if self.root.is_empty() || self.root.contains(['+', '#']) || self.root.ends_with('/') {
            return Err(PeersError::Options {
                problem: format!("topics below `{}`: choose a name such as bench", self.root),
            });
        }
        Ok(())
    }
}

/// Why a run has no report.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The options make no sense together.
    #[error("{problem}")]
    Options {
        /// What is wrong, and what would not be.
        problem: String,
    },
    /// Too few files.
    #[error(transparent)]
    OpenFiles(#[from] OpenFilesError),
    /// A packet cannot be built.
    #[error("cannot build a packet")]
    Packet(#[from] mqtt::EncodeError),
    /// A connection could not be made, or broke.
    #[error("a connection failed")]
    Broken {
        /// How.
        source: io::Error,
    },
    /// The broker closed a connection without a word.
    #[error("the broker closed a connection without a word")]
    Closed,
    /// The broker said DISCONNECT.
    #[error("the broker disconnected a client with reason code {code:#04x}")]
    Disconnected {
        /// The reason code.
        code: u8,
    },
    /// The broker refused something.
    #[error("the broker refused {what} with code {code:#04x}")]
    Refused {
        /// The packet.
        what: &'static str,
        /// The reason or return code.
        code: u8,
    },
    /// The broker did not answer.
    #[error("the broker did not answer with {what} within 30 s")]
    Silent {
        /// The packet waited for.
        what: &'static str,
    },
    /// What came is no MQTT.
    #[error("the broker sent what is no MQTT: {what}")]
    Nonsense {
        /// What.
        what: String,
    },
    /// The operating system refused something.
    #[error("the system refuses")]
    System {
        /// What it said.
        source: io::Error,
    },
}

impl PeersError {
    /// The error and its causes in one line.
    fn in_words(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}
