//! The broker alone, for profiles: everybody may do everything, and nothing is behind it. Builds in a minute
//! where the program takes many; what the program adds is seen by `bench/peers.py`.
//!
//! ```sh
//! cargo run --release -p broker --example bare -- 127.0.0.1:1883 [DIRECTORY]
//! ```
//! With a directory sessions are stored there, otherwise in memory. `WORKERS` is the number of its threads.
//! Ends with its standard input.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use broker::{
    Acknowledge, Broker, BrokerConfig, ConnectAttempt, Decision, HoldOff, Hooks, Identity, Limits,
    ListenerConfig, Publish, Refusal, Store, StoreConfig, Tap, Transport,
};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Open;

impl Hooks for Open {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        Ok(Identity::new(attempt.client_id, attempt.client_id))
    }

    fn may_publish(&self, _: &Identity, _: &str) -> Decision {
        Decision::Allow
    }

    fn may_subscribe(&self, _: &Identity, _: &str) -> Decision {
        Decision::Allow
    }

    fn tap(&self, _: &Identity, _: &Publish, _: i64, _: Acknowledge) -> Tap {
        Tap::NotWanted
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(address) = words
        .next()
        .and_then(|word| word.parse::<SocketAddr>().ok())
    else {
        eprintln!("usage: bare ADDRESS:PORT [DIRECTORY]");
        return ExitCode::from(2);
    };
    let mut config = BrokerConfig::new(vec![ListenerConfig::new("bare", address, Transport::Tcp)]);
    config.limits = Limits {
        max_queued: 10_000_000,
        max_queued_bytes: 8 << 30,
        max_queue_memory: 8 << 30,
        hold_off: HoldOff {
            failures: 0,
            connects: 0,
            ..HoldOff::default()
        },
        ..Limits::default()
    };
    config.workers = std::env::var("WORKERS").ok().and_then(|it| it.parse().ok());
    config.store = match words.next() {
        Some(directory) => Store::Directory(StoreConfig::new(PathBuf::from(directory))),
        None => Store::Memory,
    };
    let broker = match Broker::start(config, Arc::new(Open)) {
        Ok(broker) => broker,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    eprintln!("{}", broker.listeners()[0].addr);
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(broker);
    ExitCode::SUCCESS
}
