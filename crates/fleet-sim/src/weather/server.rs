//! Server: what is seen of it from outside: resident memory, metrics, and the bound it promises to keep.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::WeatherError;

/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(50);
/// For the metrics to be answered: a server in a storm may take its time.
const PATIENCE: Duration = Duration::from_secs(30);

/// What of the server can be watched from here.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// Its process.
    pub pid: Option<u32>,
    /// Address of its metrics, such as `http://127.0.0.1:8080/metrics`.
    pub metrics: Option<String>,
    /// The most memory it may use, bytes; without, what its metrics promise.
    pub bound: Option<u64>,
}

/// Resident memory of the server, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// The most that was seen while it was quiet.
    pub quiet: u64,
    /// The most that was seen while it stormed, and afterwards.
    pub storm: u64,
    /// The most since it was started, as the system has it (`VmHWM`): no moment is missed.
    pub highest: u64,
}

/// In the metrics: the parts of the bound that the server prints when it starts.
const BOUND: &str = "milepost_memory_bound_bytes{part=\"";

/// A server that is watched.
pub(super) struct Watched {
    metrics: Option<String>,
    memory: Option<Memory>,
}

/// A thread that looks at the memory until this is dropped.
struct Memory {
    peaks: Arc<Peaks>,
    running: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Highest resident memory, bytes.
#[derive(Default)]
struct Peaks {
    quiet: AtomicU64,
    storm: AtomicU64,
    highest: AtomicU64,
    /// 1 once it storms.
    phase: AtomicU64,
}

impl Watched {
    pub(super) fn start(subject: &Subject) -> Self {
        let memory = subject.pid.and_then(|pid| {
            let peaks = Arc::new(Peaks::default());
            let told = Arc::clone(&peaks);
            let (running, over) = mpsc::channel();
            let look = move || loop {
                let peak = match told.phase.load(Ordering::Relaxed) {
                    0 => &told.quiet,
                    _ => &told.storm,
                };
                if let Some((now, highest)) = resident(pid) {
                    peak.fetch_max(now, Ordering::Relaxed);
                    told.highest.fetch_max(highest, Ordering::Relaxed);
                }
                if over.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            };
            // Without the thread there are no figures, and nothing else is missing.
            let thread = std::thread::Builder::new()
                .name("watch".into())
                .spawn(look)
                .ok()?;
            Some(Memory {
                peaks,
                running: Some(running),
                thread: Some(thread),
            })
        });
        Self {
            metrics: subject.metrics.clone(),
            memory,
        }
    }

    pub(super) fn phase_storm(&self) {
        if let Some(Memory { peaks, .. }) = &self.memory {
            peaks.phase.store(1, Ordering::Relaxed);
        }
    }

    /// The most there was so far.
    pub(super) fn resident(&self) -> Option<Resident> {
        let peaks = &self.memory.as_ref()?.peaks;
        let seen = Resident {
            quiet: peaks.quiet.load(Ordering::Relaxed),
            storm: peaks.storm.load(Ordering::Relaxed),
            highest: peaks.highest.load(Ordering::Relaxed),
        };
        (seen.quiet > 0 && seen.storm > 0).then_some(seen)
    }

    /// All metrics at this moment; none if none are watched.
    pub(super) async fn metrics(&self) -> Result<BTreeMap<String, f64>, WeatherError> {
        let Some(url) = &self.metrics else {
            return Ok(BTreeMap::new());
        };
        let failed = |error: reqwest::Error| WeatherError::Watch {
            what: url.clone(),
            source: io::Error::other(error),
        };
        let client = reqwest::Client::builder().timeout(PATIENCE).build();
        let answer = client
            .map_err(failed)?
            .get(url)
            .send()
            .await
            .map_err(failed)?;
        let text = answer.error_for_status().map_err(failed)?.text().await;
        Ok(parse(&text.map_err(failed)?))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            // It has no result, and a panic of it was told already.
            let _ = thread.join();
        }
    }
}

/// Resident memory of a process, now and at its highest, bytes; `None` if it is gone.
fn resident(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    };
    bytes("VmRSS:").zip(bytes("VmHWM:"))
}

/// The parts of the bound that the server promises to keep, largest first; none if it promises nothing.
pub(super) fn bound(metrics: &BTreeMap<String, f64>) -> Vec<(String, u64)> {
    let mut parts: Vec<_> = metrics
        .iter()
        .filter_map(|(name, value)| {
            let part = name.strip_prefix(BOUND)?.strip_suffix("\"}")?;
            Some((part.to_owned(), *value as u64))
        })
        .collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    parts
}

/// Name with labels, and value, of every line of the text format.
fn parse(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// What is another number now, or is there now, and by how much. Buckets of histograms say the same
/// as their count many times over, and are left out.
pub(super) fn changes(
    before: &BTreeMap<String, f64>,
    after: &BTreeMap<String, f64>,
) -> Vec<(String, f64)> {
    after
        .iter()
        .filter(|(name, _)| !name.contains("_bucket"))
        .map(|(name, value)| (name.clone(), value - before.get(name).unwrap_or(&0.0)))
        .filter(|(_, change)| *change != 0.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_and_compared() {
        let before =
            parse("# TYPE a counter\na_total 1\nb{reason=\"x y\"} 2\nc_bucket{le=\"1\"} 1\n");
        let after =
            parse("a_total 4\nb{reason=\"x y\"} 2\nc_bucket{le=\"1\"} 5\nd 1\nnonsense\n# EOF");
        assert_eq!(before.len(), 3);
        let expected = vec![("a_total".to_owned(), 3.0), ("d".to_owned(), 1.0)];
        assert_eq!(changes(&before, &after), expected);
    }

    #[test]
    fn the_bound_is_the_sum_of_its_parts_and_nothing_else() {
        let metrics = parse(
            "# TYPE milepost_memory_bound_bytes gauge\n\
             milepost_memory_bound_bytes{part=\"TLS sessions\"} 15360000\n\
             milepost_memory_bound_bytes{part=\"HTTP\"} 402653184\n\
             milepost_machine_memory_bytes 25276510208\n",
        );
        let parts = bound(&metrics);
        let expected = [("HTTP", 402_653_184), ("TLS sessions", 15_360_000)];
        assert!(
            parts.iter().map(|(n, b)| (n.as_str(), *b)).eq(expected),
            "{parts:?}"
        );
        assert!(bound(&parse("a 1")).is_empty());
    }

    #[test]
    fn this_process_has_memory_and_others_may_be_gone() {
        if cfg!(target_os = "linux") {
            let (now, highest) = resident(std::process::id()).unwrap();
            assert!(now > 1 << 20 && highest >= now, "{now} {highest}");
        }
        assert_eq!(resident(u32::MAX), None);
    }
}
