//! Load on a Milepost server, bounded in connections and time.
//!
//! Over mTLS, with vehicles provisioned through the API:
//! ```text
//! cargo run --release -p fleet-sim --example load -- --server localhost:8883 \
//!     --api http://127.0.0.1:8080 --connections 1000 --duration 10s
//! ```
//! Over plain TCP, for a loopback listener with `anonymous = "allow-all"`: leave `--api` away. Over another
//! transport: `--server quic://localhost:14567` and so on; `--api` with `--anonymous` fetches only the CA.
//! Data goes to stdout, progress to stderr.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use fleet_sim::client::{Address, Delivery, Scheme};
use fleet_sim::load::{
    self, Identities, LoadLive, LoadOptions, LoadReport, Subscribed, Topics, Work,
};
use fleet_sim::provision::{Factory, Order};
use mqtt::Version;
use tokio_util::sync::CancellationToken;

/// Puts load on an MQTT server and counts what it acknowledges
#[derive(Parser)]
struct Arguments {
    /// MQTT address, such as mqtts://HOST:PORT or wss://HOST:PORT/mqtt; HOST:PORT alone is mqtts with
    /// --api or --credentials, and mqtt without
    #[arg(long)]
    server: String,
    /// HTTP API to provision vehicles through; connections are then mTLS, else plain and anonymous
    #[arg(long)]
    api: Option<String>,
    /// Connections show no certificate; --api or --credentials then only says which CA to trust
    #[arg(long)]
    anonymous: bool,
    /// Directory that keeps keys and certificates for the next time; without --api they are there
    /// already
    #[arg(long)]
    credentials: Option<PathBuf>,
    /// Connections, each its own vehicle
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    connections: u32,
    /// What vehicles are called, before their number
    #[arg(long, default_value = "bench")]
    prefix: String,
    /// Only connect and stay, for measuring memory
    #[arg(long, conflicts_with_all = ["qos", "payload", "window", "rate", "count", "sessions"])]
    idle: bool,
    /// Idle connections also subscribe to one topic each
    #[arg(long, requires = "idle")]
    subscribe: bool,
    /// 0, 1 or 2
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Bytes per payload
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Messages in flight per connection; for QoS 0 messages per write
    #[arg(long, default_value_t = 16)]
    window: u16,
    /// Messages per second of all connections together [default: as fast as possible]
    #[arg(long)]
    rate: Option<f64>,
    /// Messages per topic, which is per connection unless --sessions is given [default: until the time
    /// is over]
    #[arg(long)]
    count: Option<u64>,
    /// Publish to the topics of this many numbered sessions (see the example `sessions`) instead
    #[arg(long)]
    sessions: Option<usize>,
    /// How long, such as 10s or 5m; at most 1h
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Connections being made at the same time
    #[arg(long, default_value_t = 64)]
    connects_at_once: usize,
    /// Threads of the generator
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// MQTT version
    #[arg(long, value_enum, default_value_t = Protocol::V5)]
    mqtt: Protocol,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    #[value(name = "3.1.1")]
    V311,
    #[value(name = "5")]
    V5,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from(parsed)
        .ok()
        .filter(|duration| (1..=3_600).contains(&duration.as_secs()))
        .ok_or_else(|| "choose between 1s and 1h".to_owned())
}

fn main() -> anyhow::Result<()> {
    // The process's default; a second installation is impossible here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let options = options(&arguments)?;
    let live = Arc::new(LoadLive::default());
    let stop = CancellationToken::new();
    stop_on_interrupt(stop.clone());
    let (running, watcher) = watch(Arc::clone(&live));
    let report = load::run(&options, &live, &stop);
    drop(running);
    if watcher.join().is_err() {
        bail!("the progress display broke");
    }
    print(&report?, arguments.json)
}

fn options(arguments: &Arguments) -> anyhow::Result<LoadOptions> {
    let count = arguments.connections as usize;
    let prefix = &arguments.prefix;
    let identities = match (&arguments.api, &arguments.credentials) {
        (None, None) => Identities::Anonymous {
            count,
            prefix: prefix.clone(),
        },
        (None, Some(dir)) if arguments.anonymous => Identities::trusting_kept(dir, prefix, count)?,
        (None, Some(dir)) => Identities::kept(dir, prefix, count)?,
        (Some(api), _) if arguments.anonymous => Identities::Trusting {
            count,
            prefix: prefix.clone(),
            ca_pem: runtime()?.block_on(Factory::new(api)?.ca())?,
        },
        (Some(api), _) => Identities::Provisioned(provision(api, arguments, count)?),
    };
    let scheme = match identities {
        Identities::Anonymous { .. } => Scheme::Mqtt,
        Identities::Trusting { .. } | Identities::Provisioned(_) => Scheme::Mqtts,
    };
    let address: Address = match arguments.server.contains("://") {
        true => arguments.server.parse()?,
        false => format!("{}://{}", scheme.name(), arguments.server).parse()?,
    };
    Ok(LoadOptions {
        scheme: address.scheme,
        path: address.path,
        version: match arguments.mqtt {
            Protocol::V311 => Version::V311,
            Protocol::V5 => Version::V5,
        },
        work: if arguments.idle {
            Work::Idle {
                subscribed: match arguments.subscribe {
                    true => Subscribed::Yes,
                    false => Subscribed::No,
                },
            }
        } else {
            Work::Publish {
                delivery: match arguments.qos {
                    0 => Delivery::AtMostOnce,
                    1 => Delivery::AtLeastOnce,
                    _ => Delivery::ExactlyOnce,
                },
                payload: arguments.payload,
                window: arguments.window,
                rate: arguments.rate,
                count: arguments.count,
                topics: match arguments.sessions {
                    None => Topics::Own,
                    Some(count) => Topics::Sessions { count },
                },
            }
        },
        duration: arguments.duration,
        connects_at_once: arguments.connects_at_once,
        threads: arguments.threads,
        ..LoadOptions::new(address.server, identities)
    })
}

fn provision(
    api: &str,
    arguments: &Arguments,
    count: usize,
) -> anyhow::Result<Vec<fleet_sim::Credentials>> {
    let orders: Vec<_> = (0..count)
        .map(|index| Order::vehicle(&Identities::anonymous_id(&arguments.prefix, index)))
        .collect();
    let step = (count / 10).max(1);
    let told = move |done: usize, total: usize| {
        if done.is_multiple_of(step) {
            eprintln!("provisioned {done} of {total} vehicles");
        }
    };
    let factory = Factory::new(api)?;
    let made = factory.provision(&orders, arguments.credentials.as_deref(), told);
    Ok(runtime()?.block_on(made)?)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

/// Ctrl-C ends the load in good order; a second one ends the process.
fn stop_on_interrupt(stop: CancellationToken) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        if let Ok(runtime) = runtime
            && runtime.block_on(tokio::signal::ctrl_c()).is_ok()
        {
            stop.cancel();
            if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                std::process::exit(130);
            }
        }
    });
}

/// A line per second on stderr, if somebody looks; until the returned end of the channel is dropped.
fn watch(live: Arc<LoadLive>) -> (mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (running, over) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut before = 0;
        while over.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            if std::io::stderr().is_terminal() {
                let acknowledged = live.acknowledged();
                eprintln!(
                    "{} connected, {} sent, {acknowledged} acknowledged, {}/s",
                    live.connected(),
                    live.sent(),
                    acknowledged - before,
                );
                before = acknowledged;
            }
        }
    });
    (running, thread)
}

fn print(report: &LoadReport, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = if json {
        let quantiles = |histogram: &fleet_sim::Histogram| {
            let ms = |share| histogram.quantile(share).as_secs_f64() * 1e3;
            serde_json::json!({
                "p50_ms": ms(0.5), "p90_ms": ms(0.9), "p99_ms": ms(0.99), "p999_ms": ms(0.999),
                "max_ms": histogram.longest().as_secs_f64() * 1e3,
            })
        };
        let line = serde_json::json!({
            "connections": report.connections,
            "failed": report.failed,
            "broken": report.broken,
            "connecting_s": report.connecting.as_secs_f64(),
            "connect": quantiles(&report.connect_latency),
            "sent": report.sent,
            "acknowledged": report.acknowledged,
            "refused": report.refused,
            "lost": report.lost(),
            "elapsed_s": report.elapsed.as_secs_f64(),
            "acknowledged_per_s": report.rate(),
            "latency": quantiles(&report.latency),
            "troubles": report.troubles,
        });
        writeln!(out, "{line}")
    } else {
        write!(out, "{report}")
    };
    match written {
        // Whoever read us has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
