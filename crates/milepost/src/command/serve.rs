//! `milepost serve`: the server.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use server::{
    Server, StartError,
    config::{Config, Source},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::drive::grouped;

/// How long owed acknowledgements and open queries are waited for when stopping.
const DRAIN: Duration = Duration::from_secs(20);

/// Run the server
///
/// Prints the memory it may use, one line per bound address and then `ready` on stderr. SIGTERM and ctrl-c
/// drain and exit 0; a second one ends at once; SIGHUP reads certificates again. An empty configuration
/// is safe: loopback, TLS, certificates.
#[derive(clap::Args)]
pub struct Serve {
    /// The configuration file; `milepost.toml` in this folder is used when it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where data is kept, stronger than the configuration
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        crate::logging::start();
        let config = Config::load(&Source {
            file: self.config,
            data_dir: self.data_dir,
        })?;
        // Before anything listens, so that a signal during start-up is not lost.
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for ctrl-c")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
        let server = match Box::pin(Server::start(config)).await {
            Ok(server) => server,
            // One line per problem, as `check` prints them.
            Err(StartError::Config(problems)) => {
                eprintln!("{problems}");
                return Ok(ExitCode::FAILURE);
            }
            Err(error) => return Err(error.into()),
        };
        let restored = server.recovery();
        if restored.sessions + restored.retained > 0 {
            eprintln!(
                "restored in {:.1} s: sessions {}, queued messages {}, retained messages {}",
                restored.took.as_secs_f64(),
                grouped(restored.sessions),
                grouped(restored.deliveries),
                grouped(restored.retained)
            );
        }
        if restored.torn_bytes > 0 {
            eprintln!(
                "cut off {} bytes of an unfinished write of sessions; nothing acknowledged is lost",
                grouped(restored.torn_bytes)
            );
        }
        let memory = server.memory();
        eprintln!("{memory}");
        if memory.exceeds_machine() {
            eprintln!(
                "warning: this machine has less memory than the limits add up to; lower the largest of them \
                 (docs/operations.md)"
            );
        }
        if let Some(shortage) = server.shortage() {
            eprintln!("warning: {shortage}");
        }
        for line in server.addresses().lines() {
            eprintln!("{line}");
        }
        eprintln!("ready");
        loop {
            tokio::select! {
                _ = terminate.recv() => break, // cancel-safe: a signal is taken or stays
                _ = interrupt.recv() => break, // cancel-safe, as above
                _ = hang_up.recv() => {} // cancel-safe, as above
            }
            // An error was logged where it happened, with the file.
            if server.reload().await.is_ok() {
                eprintln!("certificates reloaded");
            }
        }
        eprintln!("stopping: finishing what was accepted");
        tokio::select! {
            stopped = server.shutdown(DRAIN) => {
                stopped?;
                eprintln!("stopped");
                Ok(ExitCode::SUCCESS)
            }
            // Whoever asks twice means now; what was acknowledged is on disk already.
            _ = terminate.recv() => Ok(ExitCode::FAILURE),
            _ = interrupt.recv() => Ok(ExitCode::FAILURE),
        }
    }
}
