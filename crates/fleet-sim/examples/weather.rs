//! What well-behaved clients notice of a storm:
//! ```text
//! weather --server 127.0.0.1:1883 slow-readers
//! weather --server 127.0.0.1:1883 --tls localhost:8883 --api http://127.0.0.1:8080 \
//!         --metrics http://127.0.0.1:8080/metrics --pid 4711 --json bad-credentials
//! weather --list
//! ```
//! The plain listener takes everybody (`anonymous = "allow-all"`), the TLS one wants certificates.
//! Says `prepared`, `storm` and `after` on stderr, for a script that fills the disk at the right time.
//! Exits with 1 if a pair lost a message or its connection, or the server used more memory than it
//! promised.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use fleet_sim::client::Server;
use fleet_sim::load::Identities;
use fleet_sim::private_ca;
use fleet_sim::provision::{Factory, Order};
use fleet_sim::weather::{
    self, Calm, Place, Secure, Storm, Subject, WeatherOptions, WeatherReport,
};
use fleet_sim::{Credentials, Histogram};

/// What the storms' own vehicles are called, before their number.
const PREFIX: &str = "weather";

/// Makes bad weather, and watches what good clients notice
#[derive(Parser)]
struct Arguments {
    /// Which storm; --list names them
    #[arg(required_unless_present = "list")]
    storm: Option<Storm>,
    /// Name the storms
    #[arg(long)]
    list: bool,
    /// Plain MQTT listener, HOST:PORT
    #[arg(long, required_unless_present = "list")]
    server: Option<Server>,
    /// TLS listener, HOST:PORT, for the storms that need one
    #[arg(long)]
    tls: Option<Server>,
    /// HTTP API to get certificates from
    #[arg(long)]
    api: Option<String>,
    /// Directory that keeps keys and certificates for the next time; without --api they are there
    /// already (see the example `certificates`, whose prefix is `weather`)
    #[arg(long)]
    credentials: Option<PathBuf>,
    /// The server's metrics
    #[arg(long)]
    metrics: Option<String>,
    /// The server's process
    #[arg(long)]
    pid: Option<u32>,
    /// The most memory the server may use, MiB [default: what its metrics promise]
    #[arg(long)]
    bound: Option<u64>,
    /// Well-behaved pairs
    #[arg(long, default_value_t = 100)]
    pairs: usize,
    /// Messages per second of each pair
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Seconds before the storm
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    quiet: u64,
    /// Seconds of storm
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    lasts: u64,
    /// Seconds after it
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    after: u64,
    /// Share of the storm's full counts
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Print one line of JSON instead of text
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    // The process's default; a second installation is impossible here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    let (Some(storm), Some(server), false) =
        (arguments.storm, arguments.server.clone(), arguments.list)
    else {
        for storm in Storm::ALL {
            writeln!(out, "{storm}")?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let options = WeatherOptions {
        place: Place {
            plain: server,
            secure: secure(&arguments, storm)?,
        },
        storm,
        pairs: arguments.pairs,
        rate: arguments.rate,
        quiet: Duration::from_secs(arguments.quiet),
        lasts: Duration::from_secs(arguments.lasts),
        after: Duration::from_secs(arguments.after),
        scale: arguments.scale,
        subject: Subject {
            pid: arguments.pid,
            metrics: arguments.metrics.clone(),
            bound: arguments.bound.map(|mebibytes| mebibytes << 20),
        },
    };
    let report = weather::run(&options, |step| eprintln!("{step}"))?;
    if arguments.json {
        writeln!(out, "{}", in_json(&report))?;
    } else {
        writeln!(out, "{report}")?;
    }
    Ok(match report.shows_harm() {
        false => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
    })
}

/// The TLS listener, with as many devices as the storm wants.
fn secure(arguments: &Arguments, storm: Storm) -> anyhow::Result<Option<Secure>> {
    let (Some(server), true) = (&arguments.tls, storm.needs_tls()) else {
        return Ok(None);
    };
    let count = (storm.devices() as f64 * arguments.scale).ceil() as usize;
    let (credentials, ca_pem) = match (&arguments.api, &arguments.credentials) {
        (Some(api), kept) => factory_made(api, kept.as_deref(), count)?,
        (None, Some(dir)) => {
            let vehicles = (0..count).map(|index| Identities::anonymous_id(PREFIX, index));
            (
                private_ca::kept_vehicles(dir, vehicles)?,
                private_ca::kept_pem(dir)?,
            )
        }
        (None, None) => bail!("--tls needs certificates: give --api, --credentials or both"),
    };
    Ok(Some(Secure {
        server: server.clone(),
        credentials,
        ca_pem,
    }))
}

/// Devices that the server signs, and its CA.
fn factory_made(
    api: &str,
    kept: Option<&Path>,
    count: usize,
) -> anyhow::Result<(Vec<Credentials>, String)> {
    let orders: Vec<_> = (0..count)
        .map(|index| Order::vehicle(&Identities::anonymous_id(PREFIX, index)))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let factory = Factory::new(api)?;
    let devices = runtime.block_on(factory.provision(&orders, kept, |_, _| {}))?;
    Ok((devices, runtime.block_on(factory.ca())?))
}

fn in_json(report: &WeatherReport) -> serde_json::Value {
    let latency = |histogram: &Histogram| {
        let ms = |share| histogram.quantile(share).as_secs_f64() * 1e3;
        serde_json::json!({
            "count": histogram.count(),
            "p50_ms": ms(0.5),
            "p99_ms": ms(0.99),
            "max_ms": histogram.longest().as_secs_f64() * 1e3,
        })
    };
    let phase = |calm: &Calm| {
        let mut phase = latency(&calm.latency);
        phase["late_p50_ms"] = (calm.late.quantile(0.5).as_secs_f64() * 1e3).into();
        phase["late_p99_ms"] = (calm.late.quantile(0.99).as_secs_f64() * 1e3).into();
        phase["late_max_ms"] = (calm.late.longest().as_secs_f64() * 1e3).into();
        phase
    };
    let met: serde_json::Map<_, _> = report
        .met
        .iter()
        .map(|(what, count)| (what.clone(), (*count).into()))
        .collect();
    let parts: serde_json::Map<_, _> = report
        .bound_parts
        .iter()
        .map(|(part, bytes)| (part.clone(), (*bytes).into()))
        .collect();
    let metrics: serde_json::Map<_, _> = report
        .metrics
        .iter()
        .map(|(name, change)| (name.clone(), (*change).into()))
        .collect();
    serde_json::json!({
        "storm": report.storm.name(),
        "did": report.did,
        "lasted_s": report.lasted.as_secs_f64(),
        "quiet": phase(&report.quiet),
        "during": phase(&report.during),
        "after": phase(&report.after),
        "sent": report.sent,
        "lost": report.lost,
        "refused": report.refused,
        "disconnected": report.disconnected,
        "troubles": report.troubles,
        "newcomers": report.newcomers,
        "turned_away": report.turned_away,
        "welcome": latency(&report.welcome),
        "met": met,
        "resident_quiet_bytes": report.resident.map(|resident| resident.quiet),
        "resident_storm_bytes": report.resident.map(|resident| resident.storm),
        "resident_highest_bytes": report.resident.map(|resident| resident.highest),
        "bound_bytes": report.bound,
        "bound_parts": parts,
        "exceeds_bound": report.exceeds_bound(),
        "metrics": metrics,
    })
}
