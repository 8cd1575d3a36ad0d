//! `kill -9` at random moments: every message that was acknowledged is in the lake exactly once.
//!
//! The real binary runs under load from vehicles with certificates, is killed a dozen times, its log
//! gets torn tails as a power cut leaves them, and it starts again on the same folder. A message that
//! was not acknowledged may be there or not, but never twice.

mod harness;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use fleet_sim::{
    Credentials, Dice,
    client::{Client, ClientOptions, Outgoing, Reconnect, Server, Transport},
    provision::{Factory, Order},
};
use harness::{PATIENCE, Serving};

const KILLS: u64 = 12;
const VEHICLES: usize = 8;

/// Ids of acknowledged messages.
type Acknowledged = Arc<Mutex<BTreeSet<String>>>;

/// Publishes as fast as it is acknowledged, four at a time, until the server is gone.
async fn drive(
    credentials: Credentials,
    address: Server,
    life: u64,
    acknowledged: Acknowledged,
    running: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) {
    let config = credentials.client_config().expect("usable credentials");
    let mut options = ClientOptions::new(
        address,
        Transport::Tls(config),
        credentials.device_id.clone(),
    );
    // A message is sent once: what is stored twice is the server's doing.
    options.reconnect = Reconnect::Never;
    let Ok((client, _incoming)) = Client::connect(options).await else {
        return;
    };
    let topic = format!("dt/crash/test/{}/signals", credentials.vehicle_id);
    let mut open = std::collections::VecDeque::new();
    for number in 0_u64.. {
        if !running.load(Ordering::Acquire) {
            break;
        }
        let id = format!("{}-{life}-{number}", credentials.vehicle_id);
        let message = Outgoing {
            topic: topic.as_str().into(),
            payload: Bytes::from(format!("{{\"signals\":{{\"Vehicle.Speed\":{number}}}}}")),
            user_properties: vec![("id".into(), id.as_str().into())],
            ..Outgoing::default()
        };
        let Ok(receipt) = client.publish(message).await else {
            break;
        };
        open.push_back((id, receipt));
        if open.len() >= 4 {
            let (id, receipt) = open.pop_front().expect("not empty");
            if receipt.await.is_err() {
                break;
            }
            acknowledged
                .lock()
                .expect("no test thread panicked")
                .insert(id);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn stored(serving: &Serving, table: &str) -> HashMap<String, u64> {
    let rows = serving.sql(&format!(
        "SELECT id, count(*) AS n FROM {table} GROUP BY id"
    ));
    rows.into_iter()
        .map(|row| {
            (
                row["id"].as_str().expect("an id").to_owned(),
                row["n"].as_u64().expect("a count"),
            )
        })
        .collect()
}

/// Waits until the table holds every acknowledged message (what a restart replays takes a moment), and
/// sees that it never holds any twice.
fn check(serving: &Serving, table: &str, acknowledged: &BTreeSet<String>, life: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stored = stored(serving, table);
        for (id, count) in &stored {
            assert_eq!(*count, 1, "life {life}: {id} is {count} times in {table}");
        }
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|id| !stored.contains_key(*id))
            .collect();
        if lost.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "life {life}: {} of {} acknowledged are not in {table}: {lost:?}",
            lost.len(),
            acknowledged.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_in_the_lake_exactly_once_after_every_kill() {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("the first");
    // Rows above the default of an answer; the lake commits often, so that kills meet commits.
    let config = harness::config_with_sql("max_rows = 10000000", "").replace("500ms", "150ms");
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    // Another seed each day of the year would do; a fixed one can be replayed.
    let seed = std::env::var("CRASH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(7);
    let mut dice = Dice::seeded(seed);
    let acknowledged = Acknowledged::default();
    let mut credentials: Vec<Credentials> = Vec::new();
    let mut torn = 0;

    for life in 0..=KILLS {
        let started = {
            let (data, config) = (data.clone(), config.clone());
            tokio::task::spawn_blocking(move || Serving::start(&data, &config))
                .await
                .expect("started")
        };
        if life > 0 {
            torn += started
                .start_up
                .iter()
                .filter(|line| line.contains("log.torn_tail_cut"))
                .count();
            let known = acknowledged
                .lock()
                .expect("no test thread panicked")
                .clone();
            // Replayed from the log where the tables end: hot and cold together at once, and bronze alone
            // as soon as that is committed.
            let serving = &started;
            tokio::task::block_in_place(|| {
                for table in ["messages", "bronze.messages"] {
                    check(serving, table, &known, life);
                }
            });
        }
        if credentials.is_empty() {
            let orders: Vec<Order> = (0..VEHICLES)
                .map(|n| Order::vehicle(&format!("car-{n}")))
                .collect();
            let factory = Factory::new(&started.api).expect("an HTTP client");
            credentials = factory
                .provision(&orders, None, |_, _| {})
                .await
                .expect("provisioned");
        }
        if life == KILLS {
            // … and after an orderly end, in Delta alone.
            let known = acknowledged
                .lock()
                .expect("no test thread panicked")
                .clone();
            assert!(
                known.len() > 500,
                "the load was too small to show anything: {}",
                known.len()
            );
            let started = tokio::task::spawn_blocking({
                let (data, config) = (data.clone(), config.clone());
                move || {
                    assert_eq!(started.terminate().code(), Some(0));
                    Serving::start(&data, &config)
                }
            });
            let started = started.await.expect("started again");
            tokio::task::block_in_place(|| {
                check(&started, "bronze.messages", &known, life);
                // One reading a message.
                let messages = started.number("SELECT count(*) FROM bronze.messages");
                assert_eq!(
                    started.number("SELECT count(*) FROM silver.signals"),
                    messages
                );
                let distinct = started.number("SELECT count(*) FROM (SELECT DISTINCT partition, \"offset\" FROM silver.signals)");
                assert_eq!(distinct, messages);
            });
            break;
        }

        let running = Arc::new(AtomicBool::new(true));
        let count = Arc::new(AtomicU64::new(0));
        let address: Server = started.mqtt.to_string().parse().expect("an address");
        let drivers: Vec<_> = credentials
            .iter()
            .map(|credentials| {
                tokio::spawn(drive(
                    credentials.clone(),
                    address.clone(),
                    life,
                    acknowledged.clone(),
                    running.clone(),
                    count.clone(),
                ))
            })
            .collect();
        // At least some were acknowledged in this life, then a random moment.
        let deadline = Instant::now() + PATIENCE;
        while count.load(Ordering::Relaxed) < 50 {
            assert!(
                Instant::now() < deadline,
                "life {life}: nothing is acknowledged"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_micros(dice.below(700_000) as u64)).await;
        tokio::task::spawn_blocking(move || started.kill9())
            .await
            .expect("killed");
        running.store(false, Ordering::Release);
        for driver in drivers {
            driver.await.expect("a driver ended");
        }
        if life % 2 == 0 {
            for segment in harness::newest_files(&data.join("log"), "log") {
                harness::tear(&segment, &mut dice);
            }
        }
    }
    assert!(torn > 0, "a torn tail was repaired and said so");
}
