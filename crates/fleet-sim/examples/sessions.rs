//! Sessions by the hundred thousand on a loopback listener with `anonymous = "allow-all"`:
//! ```text
//! sessions --server 127.0.0.1:1883 --count 100000 leave
//! load     --server 127.0.0.1:1883 --sessions 100000 --count 10 --connections 50
//! sessions --server 127.0.0.1:1883 --count 100000 fetch --each 10
//! ```
//! Prints one line of JSON. `fetch --at-once COUNT` while `load` runs makes clients that are online; it
//! says `connected` on stderr when all are.

use std::io::Write;
use std::time::Duration;

use clap::{Parser, Subcommand};
use fleet_sim::client::{Delivery, Server};
use fleet_sim::load::sessions::{self, Sessions};

/// Leaves sessions behind, or fetches what waits in them
#[derive(Parser)]
struct Arguments {
    /// MQTT address, HOST:PORT
    #[arg(long)]
    server: Server,
    /// Sessions
    #[arg(long, default_value_t = 1_000)]
    count: usize,
    /// Quality of their subscriptions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// How long the server keeps them, seconds
    #[arg(long, default_value_t = 86_400)]
    expiry: u32,
    /// Connected at the same time
    #[arg(long, default_value_t = 256)]
    at_once: usize,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(subcommand)]
    errand: Errand,
}

#[derive(Subcommand)]
enum Errand {
    /// Make them, each with one subscription, and go
    Leave,
    /// Take what waits in them, or comes
    Fetch {
        /// Messages expected in each
        #[arg(long)]
        each: u64,
        /// Leave a session that was silent for so many seconds
        #[arg(long, default_value_t = 5)]
        patience: u64,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let which = Sessions {
        server: arguments.server,
        count: arguments.count,
        delivery: match arguments.qos {
            0 => Delivery::AtMostOnce,
            1 => Delivery::AtLeastOnce,
            _ => Delivery::ExactlyOnce,
        },
        expiry: arguments.expiry,
        at_once: arguments.at_once,
        threads: arguments.threads,
    };
    let report = match arguments.errand {
        Errand::Leave => sessions::leave(&which)?,
        Errand::Fetch { each, patience } => {
            let all = which.count as u64;
            let online = which.at_once >= which.count;
            sessions::fetch(
                &which,
                each,
                Duration::from_secs(patience),
                move |connected| {
                    if online && connected == all {
                        eprintln!("connected");
                    }
                },
            )?
        }
    };
    let line = serde_json::json!({
        "sessions": report.sessions,
        "known": report.known,
        "received": report.received,
        "distinct": report.distinct,
        "repeated": report.repeated(),
        "disordered": report.disordered,
        "elapsed_s": report.elapsed.as_secs_f64(),
        "troubles": report.troubles,
    });
    writeln!(std::io::stdout().lock(), "{line}")?;
    Ok(())
}
