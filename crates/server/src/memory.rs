//! The memory this server may use at most: the sum of its queues, tables and buffers, printed when it
//! starts. What is bounded by a key can be lowered by that key; the operator sees beforehand whether the
//! machine can keep the promise.
//!
//! Not in it: buffers of the kernel for sockets, the page cache, and the stacks of idle threads.

use std::{fmt, fs};

use broker::{Carrier, Limits};
use lake::LakeOptions;

use crate::{
    config::{Config, listener::Transport},
    presence, tls,
};

/// The program itself: code that is mapped, the register, catalogues, the allocator's slack. Measured after a
/// start with an empty data folder: 24 MiB of its own, 128 MiB with the code; 0.6 KB per vehicle on top.
const PROGRAM: u64 = 256 << 20;
/// One request body and what is made of it, for as many as a person's tools send at once.
const HTTP: u64 = 16 * 3 * (8 << 20);
/// A session of a TLS 1.2 client without tickets, with its certificate.
const TLS_SESSION: u64 = 1536;
/// An entry of the last known states.
const LAST_KNOWN: u64 = 200;
/// What one consumer has in its hands: a chunk that was read, and the readings decoded from it.
const CONSUMER: u64 = 4 * (4 << 20);

/// The sum, and what there is.
#[derive(Debug, Clone)]
pub struct MemoryBound {
    /// What it consists of, bytes, largest first.
    pub parts: Vec<(&'static str, u64)>,
    /// What this machine, or this container, has; `None` if it does not say.
    pub machine: Option<u64>,
}

impl MemoryBound {
    /// Of a server with this configuration.
    pub fn of(config: &Config, limits: &Limits, lake: &LakeOptions) -> Self {
        let listeners = config.listeners.iter();
        let with_tls = listeners.filter(|it| it.transport.tls().is_some()).count() as u64;
        let streams = eventlog::StreamConfig::default();
        // Raw data, dead letters, presence.
        let partitions = u64::from(config.log.partitions) + 2;
        let queries = lake.concurrent_queries as u64 * config.sql.max_memory.0;
        let mut parts = limits.memory_bound(config.listeners.iter().map(|listener| {
            let carrier = match listener.transport {
                Transport::Mqtt | Transport::Ws { .. } => Carrier::Tcp,
                Transport::Mqtts { .. } | Transport::Wss { .. } => Carrier::Tls,
                Transport::Quic { .. } => Carrier::Quic,
            };
            let most = listener.limits.max_connections.map(|most| most as usize);
            (carrier, most)
        }));
        parts.extend([
            ("log queues", partitions * streams.queue_bytes as u64),
            ("log consumers", u64::from(config.log.partitions) * CONSUMER),
            // As much again while rows are sorted and encoded.
            ("lake rows", 2 * config.lake.max_hot.0),
            (
                "last known states",
                lake.last_known_entries as u64 * LAST_KNOWN,
            ),
            ("queries", queries),
            ("presence events", presence::MEMORY),
            (
                "TLS sessions",
                with_tls * tls::RESUMABLE_SESSIONS as u64 * TLS_SESSION,
            ),
            ("HTTP", HTTP),
            ("program", PROGRAM),
        ]);
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Self {
            parts,
            machine: machine_bytes(),
        }
    }

    /// All parts together, bytes.
    pub fn total(&self) -> u64 {
        self.parts
            .iter()
            .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Whether the machine has less than that.
    pub fn exceeds_machine(&self) -> bool {
        self.machine.is_some_and(|machine| self.total() > machine)
    }
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Small ones together; `/metrics` has each.
        let large = |bytes: u64| bytes >= self.total() / 64;
        let mut parts: Vec<String> = self
            .parts
            .iter()
            .filter(|(_, bytes)| large(*bytes))
            .map(|(name, bytes)| format!("{name} {}", Bytes(*bytes)))
            .collect();
        let small = self.parts.iter().map(|(_, bytes)| *bytes);
        let small: u64 = small.filter(|bytes| !large(*bytes)).sum();
        if small > 0 {
            parts.push(format!("others {}", Bytes(small)));
        }
        write!(
            f,
            "memory: at most {} ({})",
            Bytes(self.total()),
            parts.join(", ")
        )?;
        match self.machine {
            Some(machine) => write!(f, "; this machine has {}", Bytes(machine)),
            None => Ok(()),
        }
    }
}

/// `9.8 GiB`, `64.0 MiB`.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GIB: f64 = (1u64 << 30) as f64;
        let bytes = self.0 as f64;
        match bytes >= GIB {
            true => write!(f, "{:.1} GiB", bytes / GIB),
            false => write!(f, "{:.1} MiB", bytes / (1u64 << 20) as f64),
        }
    }
}

/// The smaller of what the machine has and what the control group allows.
fn machine_bytes() -> Option<u64> {
    let text = |path: &str| fs::read_to_string(path).ok();
    let total = text("/proc/meminfo").and_then(|text| mem_total(&text));
    let allowed = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let allowed = allowed
        .iter()
        .find_map(|path| text(path)?.trim().parse::<u64>().ok());
    match (total, allowed) {
        (Some(total), Some(allowed)) => Some(total.min(allowed)),
        (total, allowed) => total.or(allowed),
    }
}

/// `MemTotal:       24684092 kB`.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_sum_is_said_with_its_parts_and_what_there_is() {
        let bound = MemoryBound {
            parts: vec![
                ("connections", 3 << 30),
                ("queries", 504 << 20),
                ("HTTP", 6 << 20),
                ("hold-offs", 2 << 20),
            ],
            machine: Some(2 << 30),
        };
        assert_eq!(
            bound.to_string(),
            "memory: at most 3.5 GiB (connections 3.0 GiB, queries 504.0 MiB, others 8.0 MiB); this machine has 2.0 GiB"
        );
        assert!(bound.exceeds_machine());
        assert_eq!(
            mem_total("A: 1 kB\nMemTotal:       24684092 kB\n"),
            Some(24_684_092 << 10)
        );
        assert_eq!(mem_total("MemFree: 1 kB"), None);
    }

    #[test]
    fn a_key_that_is_lowered_lowers_the_sum() {
        let total = |text: &str| {
            let config = Config::parse(Path::new("t.toml"), text, std::iter::empty());
            let config = config.expect(text);
            let limits = crate::limits::of(&config, 10_000);
            MemoryBound::of(&config, &limits, &LakeOptions::default()).total()
        };
        for key in [
            "[mqtt]\nmax_queue_memory = \"64MiB\"",
            "[mqtt]\nmax_read_memory = \"64MiB\"",
            "[mqtt]\nmax_session_memory = \"64MiB\"",
            "[mqtt]\nmax_stored_bytes = \"64MiB\"",
            "[mqtt]\nmax_retained_bytes = \"64MiB\"",
            "[mqtt]\nmax_connections = 100",
            "[lake]\nmax_hot = \"8MiB\"",
            "[sql]\nmax_memory = \"16MiB\"",
            "[log]\npartitions = 1",
        ] {
            assert!(total(key) < total(""), "{key}");
        }
    }
}
