//! Meter: the measured window, and what is reported of it.

use std::time::Instant;

use super::ledger::Tally;
use super::process::{Processes, own_cpu_seconds};
use crate::histogram::Histogram;

/// The beginning of a window.
pub(super) struct Meter {
    begun: Instant,
    broker_cpu: f64,
    own_cpu: f64,
    count: u64,
}

impl Meter {
    /// Begins now, at this count of what is measured.
    pub(super) fn start(processes: &Processes, count: u64) -> Self {
        Self {
            broker_cpu: processes.cpu_seconds(),
            own_cpu: own_cpu_seconds(),
            begun: Instant::now(),
            count,
        }
    }

    /// Ends now, at this count.
    pub(super) fn stop(&self, processes: &Processes, count: u64) -> Window {
        Window {
            seconds: self.begun.elapsed().as_secs_f64(),
            broker_cpu_seconds: processes.cpu_seconds() - self.broker_cpu,
            own_cpu_seconds: own_cpu_seconds() - self.own_cpu,
            count: count - self.count,
        }
    }
}

/// What happened from its beginning to its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// How long it was.
    pub seconds: f64,
    /// User and system time of the broker's processes, to a hundredth of a second.
    pub broker_cpu_seconds: f64,
    /// The same of the generator.
    pub own_cpu_seconds: f64,
    /// Deliveries, connections or messages stored in it.
    pub count: u64,
}

/// Memory of idle connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Connections.
    pub connections: u64,
    /// Resident memory of the broker before there were any, bytes.
    pub before: u64,
    /// And with them.
    pub after: u64,
}

impl Memory {
    /// Bytes of one connection.
    pub fn each(&self) -> f64 {
        (self.after as f64 - self.before as f64) / self.connections.max(1) as f64
    }
}

/// What came of a scenario.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Which part of the scenario it is about; empty if it has only one.
    pub part: &'static str,
    /// What the window counts.
    pub unit: &'static str,
    /// The window.
    pub window: Window,
    /// All messages, warming up and draining included.
    pub tally: Tally,
    /// From when a message was due to its arrival, where there is a fixed rate; of connections, to CONNACK.
    pub latency: Option<Histogram>,
    /// Of idle connections.
    pub memory: Option<Memory>,
    /// The most resident memory the broker ever had, bytes.
    pub peak_bytes: u64,
    /// What went wrong. Then there is no rate.
    pub troubles: Vec<String>,
}

impl Report {
    /// Whether everything that was sent came, nothing came that should not, and nobody was cut off.
    /// Twice is allowed at QoS 1 only, and shown there.
    pub fn sound(&self, qos: mqtt::QoS) -> bool {
        self.tally.lost() == 0
            && self.tally.alien == 0
            && self.tally.refused == 0
            && (self.tally.duplicated == 0 || qos == mqtt::QoS::AtLeastOnce)
            && self.troubles.is_empty()
    }

    /// Of what the window counts, per second; none if the run was not [`Report::sound`].
    pub fn rate(&self, qos: mqtt::QoS) -> Option<f64> {
        (self.sound(qos) && self.window.seconds > 0.0 && self.window.count > 0)
            .then(|| self.window.count as f64 / self.window.seconds)
    }

    /// Per second of the broker's CPU, under the same condition.
    pub fn per_cpu_second(&self, qos: mqtt::QoS) -> Option<f64> {
        self.rate(qos)
            .filter(|_| self.window.broker_cpu_seconds > 0.0)
            .map(|_| self.window.count as f64 / self.window.broker_cpu_seconds)
    }
}
