//! What a connection costs: clients that connect and leave, over and over, bounded in time.
//! ```text
//! connects --server mqtt://127.0.0.1:1883
//! connects --server mqtts://localhost:8883 --api http://127.0.0.1:8080 --anonymous
//! connects --server mqtts://localhost:8883 --api http://127.0.0.1:8080 --resume --pid 4711
//! connects --server quic://localhost:14567 --api http://127.0.0.1:8080
//! connects --server mqtts://localhost:8883 --credentials made-by-the-example-certificates
//! ```
//! Prints one line of JSON.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fleet_sim::client::Address;
use fleet_sim::load::connects::{self, Connects};
use fleet_sim::load::{Identities, Resumption};
use fleet_sim::provision::{Factory, Order};

/// Connects and leaves, as often as it can
#[derive(Parser)]
struct Arguments {
    /// Such as mqtt://HOST:PORT or wss://HOST:PORT/mqtt
    #[arg(long)]
    server: Address,
    /// HTTP API to get certificates from
    #[arg(long)]
    api: Option<String>,
    /// Show no certificate; --api or --credentials then only says which CA to trust
    #[arg(long)]
    anonymous: bool,
    /// Directory that keeps keys and certificates for the next time; without --api they are there
    /// already
    #[arg(long)]
    credentials: Option<PathBuf>,
    /// Clients, each with one connection at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Resume TLS after the first time
    #[arg(long)]
    resume: bool,
    /// Seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The server's process, to say what CPU it took
    #[arg(long)]
    pid: Option<u32>,
}

fn main() -> anyhow::Result<()> {
    // The process's default; a second installation is impossible here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let (count, prefix) = (arguments.clients as usize, "connects".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let identities = match (&arguments.api, &arguments.credentials) {
        (None, None) => Identities::Anonymous { count, prefix },
        (None, Some(dir)) if arguments.anonymous => Identities::trusting_kept(dir, &prefix, count)?,
        (None, Some(dir)) => Identities::kept(dir, &prefix, count)?,
        (Some(api), _) if arguments.anonymous => Identities::Trusting {
            count,
            prefix,
            ca_pem: runtime.block_on(Factory::new(api)?.ca())?,
        },
        (Some(api), _) => {
            let orders: Vec<_> = (0..count)
                .map(|index| Order::vehicle(&Identities::anonymous_id(&prefix, index)))
                .collect();
            let factory = Factory::new(api)?;
            let made = factory.provision(&orders, arguments.credentials.as_deref(), |_, _| {});
            Identities::Provisioned(runtime.block_on(made)?)
        }
    };
    drop(runtime);
    let connects = Connects {
        address: arguments.server,
        identities,
        resumption: match arguments.resume {
            true => Resumption::Yes,
            false => Resumption::No,
        },
        duration: Duration::from_secs(arguments.seconds),
        threads: arguments.threads,
    };
    let (pid, before) = (arguments.pid, Arc::new(Mutex::new(None)));
    let noted = Arc::clone(&before);
    let report = connects::run(&connects, move || {
        *noted.lock().unwrap_or_else(PoisonError::into_inner) = pid.and_then(cpu_seconds);
    })?;
    let before = *before.lock().unwrap_or_else(PoisonError::into_inner);
    let cpu = before
        .zip(pid.and_then(cpu_seconds))
        .map(|(before, after)| 1e6 * (after - before) / report.connects.max(1) as f64);
    let ms = |share| report.latency.quantile(share).as_secs_f64() * 1e3;
    let line = serde_json::json!({
        "connects": report.connects,
        "resumed": report.resumed,
        "failed": report.failed,
        "elapsed_s": report.elapsed.as_secs_f64(),
        "per_s": report.rate(),
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
        "max_ms": report.latency.longest().as_secs_f64() * 1e3,
        "server_cpu_us": cpu,
        "troubles": report.troubles,
    });
    writeln!(std::io::stdout().lock(), "{line}")?;
    Ok(())
}

/// CPU time of a process, user and system, to a hundredth of a second.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).take(2);
    let user: f64 = ticks.next()?.parse().ok()?;
    let system: f64 = ticks.next()?.parse().ok()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some((user + system) / per_second as f64)
}
