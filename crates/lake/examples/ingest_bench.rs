//! How many signal rows a second reach `silver.signals`: building batches, and committing them
//! (sort, Parquet, zstd, fsync, log entry). One feeder; bounded by `--rows`.
//!
//! `cargo run --release -p lake -p server -p milepost --example ingest_bench -- [ROWS]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eventlog::Offset;
use lake::{Lake, LakeOptions, QueryLimits};
use pipeline::{Message, Processed, Text};
use signals::{Reading, Value};

const VEHICLES: u64 = 1_000;
const READINGS: usize = 20;
const RECORDS_PER_BATCH: u64 = 1_000;

fn record(offset: u64, names: &[Arc<str>]) -> Processed {
    let vehicle = format!("vehicle-{:04}", offset % VEHICLES);
    let time_us = 1_795_168_800_000_000 + i64::try_from(offset / VEHICLES).unwrap_or(0) * 1_000_000;
    let readings = names
        .iter()
        .zip(0_u64..)
        .map(|(name, index)| Reading {
            signal: Arc::clone(name),
            time_us,
            // Measured values: some digits, seldom equal.
            value: match index % 10 {
                0 => Value::Flag(offset.is_multiple_of(7)),
                _ => Value::Number(((offset * 31 + index * 977) % 100_000) as f64 / 128.0),
            },
        })
        .collect();
    let text = |text: &str| Text::from(text);
    Processed {
        message: Message {
            id: text(&format!("0190-{offset:012x}")),
            source: text(&format!("/vehicles/{vehicle}/devices/{vehicle}-tcu")),
            kind: text("telemetry"),
            topic: text(&format!("dt/bench/fleet/{vehicle}/telemetry")),
            vehicle_id: text(&vehicle),
            device_id: text(&format!("{vehicle}-tcu")),
            time_us,
            received_us: time_us + 50_000,
            content_type: Some(text("application/json")),
            content_encoding: None,
            priority: text("low"),
            traceparent: None,
            payload: Bytes::from(vec![b'x'; 200]),
            partition: 0,
            offset: Offset::new(offset),
        },
        readings,
        can: None,
        dead: None,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows: u64 = std::env::args()
        .nth(1)
        .map_or(Ok(1_000_000), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let options = LakeOptions {
        partitions: 1,
        commit_every: Duration::from_secs(3_600),
        commit_rows: usize::MAX,
        hot_bytes: usize::MAX,
        ..LakeOptions::default()
    };
    let lake = Lake::open(dir.path(), options).await?;
    let names: Vec<Arc<str>> = (0..READINGS)
        .map(|n| Arc::from(format!("Vehicle.Bench.Group{}.Signal{n}", n % 4)))
        .collect();

    let records = rows.div_ceil(READINGS as u64);
    let mut building = Duration::ZERO;
    let mut from = 0;
    while from < records {
        let to = (from + RECORDS_PER_BATCH).min(records);
        let batch: Vec<Processed> = (from..to).map(|offset| record(offset, &names)).collect();
        let started = Instant::now();
        lake.ingest(batch).await?;
        building += started.elapsed();
        from = to;
    }
    let metrics = lake.metrics();
    let started = Instant::now();
    lake.flush().await?;
    let committing = started.elapsed();

    let started = Instant::now();
    let answer = lake
        .query(
            "select count(*), sum(value) from signals",
            QueryLimits::default(),
        )
        .await?;
    let scanning = started.elapsed();
    let written = lake.metrics();
    let per_second = |took: Duration| metrics.ingested_signals as f64 / took.as_secs_f64();
    eprintln!(
        "{} signal rows, {records} records",
        metrics.ingested_signals
    );
    eprintln!(
        "hot: {:.0} bytes a record",
        metrics.hot_bytes as f64 / records as f64
    );
    eprintln!(
        "ingest (build, append, last known state): {:.0} rows/s",
        per_second(building)
    );
    eprintln!(
        "commit (sort, Parquet, zstd, fsync; both tables): {:.0} rows/s",
        per_second(committing)
    );
    eprintln!("both: {:.0} rows/s", per_second(building + committing));
    eprintln!(
        "{:.1} bytes a signal row on disk with its share of bronze",
        written.committed_bytes as f64 / metrics.ingested_signals as f64
    );
    eprintln!("count and sum of all: {scanning:?}, {} row", answer.rows());
    Ok(())
}
