//! How many files this process may have open, and how many of these may be sockets of MQTT clients.
//!
//! A log that cannot open its next segment because clients hold all descriptors stops the road for
//! everybody, so the broker gets what is left after the server's own files, and refuses beyond it.

use std::{fmt, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Files beside those of the log: the state store, tables being read and written, HTTP and SQL clients.
const OWN_FILES: u64 = 1024;
/// Files of one partition of the log: segments being written, indexed, read by consumers, sealed.
const FILES_PER_PARTITION: u64 = 16;
/// What the kernel allows where it says "unlimited" (fs.nr_open).
const UNLIMITED: u64 = 1 << 20;
/// Below this nothing useful runs.
const LEAST: u64 = 256;

/// Descriptors of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// That may be open at once.
    pub limit: u64,
    /// Of these, sockets of MQTT clients.
    pub sockets: u64,
}

/// The limit is too low to start.
#[derive(Debug, thiserror::Error)]
#[error(
    "this process may open {limit} files only; at least {LEAST} are needed: raise it with `ulimit -n`, or LimitNOFILE= in systemd"
)]
pub struct TooFewFiles {
    limit: u64,
}

impl OpenFiles {
    /// Raises the limit as far as the system lets this process, and divides it.
    ///
    /// # Errors
    /// [`TooFewFiles`].
    pub fn claim(config: &Config) -> Result<Self, TooFewFiles> {
        let limit = raise();
        if limit < LEAST {
            return Err(TooFewFiles { limit });
        }
        // The streams: raw, dead and presence.
        let partitions = u64::from(config.log.partitions) + 2;
        Ok(Self::divided(limit, partitions))
    }

    fn divided(limit: u64, partitions: u64) -> Self {
        let own = OWN_FILES + FILES_PER_PARTITION * partitions;
        // On a small machine half of little rather than nothing for one of both.
        let sockets = limit.saturating_sub(own).max(limit / 2);
        Self { limit, sockets }
    }

    /// What the operator should know: that not as many clients as configured will fit.
    pub fn shortage(self, config: &Config) -> Option<Shortage> {
        let wanted = u64::from(config.mqtt.max_connections);
        (wanted > self.sockets).then_some(Shortage {
            wanted,
            files: self,
        })
    }
}

/// Fewer sockets than configured connections.
#[derive(Debug, Clone, Copy)]
pub struct Shortage {
    wanted: u64,
    files: OpenFiles,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenFiles { limit, sockets } = self.files;
        write!(
            f,
            "mqtt.max_connections is {}, but only {sockets} sockets fit into the {limit} files that this \
             process may open; raise that (`ulimit -Hn`, LimitNOFILE= in systemd) or lower the key",
            self.wanted
        )
    }
}

/// Raises the soft limit to the hard one; what it is then.
fn raise() -> u64 {
    let limits = getrlimit(Resource::Nofile);
    let as_number = |limit: Option<u64>| limit.unwrap_or(UNLIMITED);
    let wanted = Rlimit {
        current: Some(as_number(limits.maximum)),
        maximum: limits.maximum,
    };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => as_number(limits.maximum),
        Err(error) => {
            let error = io::Error::from(error);
            tracing::warn!(event = "files.limit_stays", error = %error);
            as_number(limits.current)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_files_are_left_out() {
        for (limit, sockets) in [
            (1 << 20, (1 << 20) - 1024 - 96),
            (20_000, 20_000 - 1120),
            (2048, 1024),
            (1024, 512),
        ] {
            assert_eq!(OpenFiles::divided(limit, 6), OpenFiles { limit, sockets });
        }
    }

    #[test]
    fn a_shortage_names_both_numbers_and_the_key() {
        let text = "[mqtt]\nmax_connections = 1000";
        let config = Config::parse(std::path::Path::new("t.toml"), text, std::iter::empty());
        let config = config.expect("valid");
        let files = OpenFiles {
            limit: 1024,
            sockets: 512,
        };
        let said = files.shortage(&config).expect("too few").to_string();
        for part in ["mqtt.max_connections is 1000", "512 sockets", "1024 files"] {
            assert!(said.contains(part), "{said}");
        }
        let enough = OpenFiles {
            limit: 4096,
            sockets: 1000,
        };
        assert!(enough.shortage(&config).is_none());
    }
}
