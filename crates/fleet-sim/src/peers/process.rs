//! Process: what the system says of a broker's processes, and of this one.

use std::fs;

/// Ticks per second in `/proc/PID/stat`: USER_HZ, which the kernel promises to user space on every
/// architecture that Rust's Linux targets have.
const TICKS: f64 = 100.0;

/// The processes of a broker.
#[derive(Debug, Clone, Default)]
pub struct Processes(pub Vec<u32>);

impl Processes {
    /// User and system time of all of them so far, seconds, to a hundredth. One that ended counts no more.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.0
            .iter()
            .filter_map(|pid| cpu_seconds(&pid.to_string()))
            .sum()
    }

    /// Their resident memory, bytes.
    pub(super) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most their resident memory ever was, bytes.
    pub(super) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> u64 {
        self.0
            .iter()
            .filter_map(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let line = status.lines().find_map(|line| line.strip_prefix(what))?;
                let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
                Some(kib * 1024)
            })
            .sum()
    }
}

/// User and system time of this process, seconds.
pub(super) fn own_cpu_seconds() -> f64 {
    cpu_seconds("self").unwrap_or(0.0)
}

fn cpu_seconds(process: &str) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name is in brackets and may have any character.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).take(2);
    let user: f64 = ticks.next()?.parse().ok()?;
    let system: f64 = ticks.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

/// Lets timers of this thread end when they should, and not up to 50 µs later. Where the system does not
/// allow it, they are as late as that.
pub(super) fn sharpen_timers() {
    let _ = fs::write("/proc/self/timerslack_ns", "1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_one_that_is_gone_has_none() {
        let this = Processes(vec![std::process::id()]);
        assert!(this.resident() > 1 << 20);
        assert!(this.peak() >= this.resident() / 2);
        assert!(this.cpu_seconds() >= 0.0);
        let gone = Processes(vec![u32::MAX]);
        assert_eq!((gone.resident(), gone.cpu_seconds()), (0, 0.0));
    }
}
