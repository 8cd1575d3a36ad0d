//! What every HTTP handler can reach.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use broker::{BrokerHandle, Stats};
use eventlog::{Log, Stream};
use fleet::Fleet;
use lake::{Lake, QueryLimits};

use crate::{
    bans::Bans, decoders::Decoders, ingest::IngestStats, memory::MemoryBound,
    open_files::OpenFiles, presence::PresenceQueue, tls::Renewal,
};

/// The assembled server, as its handlers see it.
pub struct AppState {
    /// The register.
    pub fleet: Fleet,
    /// CAN decoders by model.
    pub decoders: Arc<Decoders>,
    /// The tables.
    pub lake: Lake,
    /// The event log.
    pub log: Log,
    /// The stream of device data.
    pub raw: Stream,
    /// The consumers between log and lake.
    pub ingest: Arc<IngestStats>,
    /// The broker.
    pub broker: Arc<BrokerHandle>,
    /// Certificates of the MQTT listeners.
    pub tls: Arc<Renewal>,
    /// Who is kept out.
    pub bans: Bans,
    /// The way of presence events, for its counters.
    pub presence: PresenceQueue,
    /// The memory the server may use.
    pub memory: MemoryBound,
    /// The files it may open.
    pub files: OpenFiles,
    /// Bounds of a query through HTTP.
    pub sql_limits: QueryLimits,
    /// How far start-up or shutdown is.
    pub phase: PhaseCell,
}

impl AppState {
    /// The broker's counters now.
    pub fn broker_stats(&self) -> Stats {
        self.broker.stats()
    }
}

/// Whether requests are welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not all parts run yet.
    Starting,
    /// Everything runs.
    Ready,
    /// No new work, please.
    Stopping,
}

/// A [`Phase`] that many threads read and one changes.
#[derive(Debug)]
pub struct PhaseCell(AtomicU8);

impl Default for PhaseCell {
    fn default() -> Self {
        Self(AtomicU8::new(Phase::Starting as u8))
    }
}

impl PhaseCell {
    /// The phase now.
    pub fn load(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Stopping,
        }
    }

    /// Goes on to another phase.
    pub fn store(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }
}
