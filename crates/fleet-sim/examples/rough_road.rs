//! One car on a bad road: what connecting, delivering and moving to another address take.
//! ```text
//! rough_road --server quic://10.77.0.1:14567 --credentials keys --device bench-00001-tcu
//! ```
//! Prints one line of JSON. For the move it says `move` on stderr, and goes on at the next line of stdin:
//! over QUIC with the same connection, over the others with a new one (TLS resumed).

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fleet_sim::client::{Address, Client, ClientOptions, Delivery, Outgoing, Reconnect, Transport};
use fleet_sim::{Credentials, Histogram};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Connects, delivers, and moves
#[derive(Parser)]
struct Arguments {
    /// Such as quic://HOST:PORT or mqtts://HOST:PORT
    #[arg(long)]
    server: Address,
    /// Directory with the credentials of the device
    #[arg(long)]
    credentials: PathBuf,
    /// The device
    #[arg(long)]
    device: String,
    /// Connections made one after the other, to see how long one takes
    #[arg(long, default_value_t = 20)]
    connects: usize,
    /// Messages
    #[arg(long, default_value_t = 1_000)]
    messages: usize,
    /// In flight
    #[arg(long, default_value_t = 20)]
    window: u16,
    /// Bytes per message
    #[arg(long, default_value_t = 200)]
    payload: usize,
}

/// For anything to happen at all.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    // The process's default; a second installation is impossible here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let line = runtime.block_on(drive(&arguments))?;
    writeln!(std::io::stdout().lock(), "{line}")?;
    Ok(())
}

async fn drive(arguments: &Arguments) -> anyhow::Result<serde_json::Value> {
    let credentials = Credentials::load(&arguments.credentials, &arguments.device)?
        .with_context(|| format!("there are no credentials of {}", arguments.device))?;
    let full = arguments
        .server
        .transport(Some(credentials.client_config()?))?;
    let resuming = credentials.resuming_client_config()?;
    let resuming = arguments.server.transport(Some(resuming))?;
    let topic = format!("dt/load/bench/{}/x", credentials.vehicle_id);
    let connect = |transport: &Transport| {
        let options = ClientOptions {
            window: arguments.window,
            queue: usize::from(arguments.window),
            reconnect: Reconnect::Never,
            connect_timeout: LIMIT,
            ..ClientOptions::new(
                arguments.server.server.clone(),
                transport.clone(),
                &credentials.device_id,
            )
        };
        async move { anyhow::Ok(Client::connect(options).await?.0) }
    };
    let message = || Outgoing {
        topic: topic.as_str().into(),
        payload: vec![b'r'; arguments.payload].into(),
        delivery: Delivery::AtLeastOnce,
        ..Outgoing::default()
    };

    let mut connecting = Histogram::default();
    for _ in 0..arguments.connects {
        let begin = Instant::now();
        let client = connect(&full).await?;
        connecting.add(begin.elapsed());
        client.finish(LIMIT).await?;
    }
    // The second one has a ticket.
    connect(&resuming).await?.finish(LIMIT).await?;
    let begin = Instant::now();
    let client = connect(&resuming).await?;
    let resumed = begin.elapsed();

    let mut latency = Histogram::default();
    let begin = Instant::now();
    let mut open = JoinSet::new();
    for _ in 0..arguments.messages {
        if open.len() >= usize::from(arguments.window)
            && let Some(took) = open.join_next().await
        {
            latency.add(took??);
        }
        let sent = Instant::now();
        let receipt = client.publish(message()).await?;
        open.spawn(async move { receipt.await.map(|()| sent.elapsed()) });
    }
    while let Some(took) = open.join_next().await {
        latency.add(took??);
    }
    let delivering = begin.elapsed();

    eprintln!("move");
    let moved = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().next());
    moved
        .await?
        .context("nobody said that the address changed")??;
    let begin = Instant::now();
    let client = match &resuming {
        Transport::Quic(quic) => {
            quic.socket.rebind()?;
            client
        }
        _ => {
            // No goodbye: nothing leaves from an address that is lost.
            drop(client);
            connect(&resuming).await?
        }
    };
    let receipt = client.publish(message()).await?;
    timeout(LIMIT, receipt).await??;
    let recovered = begin.elapsed();
    client.finish(LIMIT).await?;

    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let quantiles = |histogram: &Histogram| {
        serde_json::json!({
            "p50_ms": ms(histogram.quantile(0.5)),
            "p99_ms": ms(histogram.quantile(0.99)),
            "max_ms": ms(histogram.longest()),
        })
    };
    Ok(serde_json::json!({
        "connect": quantiles(&connecting),
        "connect_resumed_ms": ms(resumed),
        "deliver_s": delivering.as_secs_f64(),
        "acknowledged": quantiles(&latency),
        "moved_ms": ms(recovered),
    }))
}
