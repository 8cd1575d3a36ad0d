//! The log of the server: stable event names on stderr, one line each.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// The log of the commands that talk to a person themselves: faults only. The Delta kernel reports a
/// table that is about to be made as an error, which it is not.
pub const QUIET: &str = "error,buoyant_kernel=off";

/// Starts it. `MILEPOST_LOG` sets what is logged (`debug`, `broker=trace`, …; default `info`, with the
/// libraries at `warn`), `MILEPOST_LOG_FORMAT=json` writes JSON lines.
pub fn start() {
    start_at(
        "warn,buoyant_kernel=off,deltalake_core=error,milepost=info,server=info,broker=info,eventlog=info,fleet=info,lake=info,pipeline=info",
    );
}

/// As [`start`], with another default.
pub fn start_at(default: &str) {
    let filter =
        EnvFilter::try_from_env("MILEPOST_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let json = std::env::var("MILEPOST_LOG_FORMAT").is_ok_and(|format| format == "json");
    // A second start (a test in this process) keeps the first.
    let _ = match json {
        true => builder.json().try_init(),
        false => builder.try_init(),
    };
}
