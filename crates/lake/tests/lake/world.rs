//! A lake in a temporary folder, and records to feed it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eventlog::Offset;
use lake::{Lake, LakeOptions, QueryError, QueryLimits};
use pipeline::{Message, Processed, Text};
use signals::{Reading, Value};

/// 2026-11-20T10:00:00Z
pub const NOON: i64 = 1_795_168_800_000_000;
pub const SECOND: i64 = 1_000_000;

/// Options with which nothing is committed unless a test asks.
pub fn by_hand() -> LakeOptions {
    // What the lake warns of belongs to a failed test's output.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_test_writer()
        .try_init();
    LakeOptions {
        partitions: 4,
        commit_every: Duration::from_secs(3_600),
        query_threads: 2,
        ..LakeOptions::default()
    }
}

pub async fn open(dir: &Path) -> Lake {
    Lake::open(dir, by_hand()).await.expect("the lake opens")
}

pub fn reading(signal: &str, time_us: i64, value: impl Into<Value>) -> Reading {
    Reading {
        signal: Arc::from(signal),
        time_us,
        value: value.into(),
    }
}

/// A record of `vehicle` with these readings, received a second after the first of them.
pub fn record(partition: u16, offset: u64, vehicle: &str, readings: Vec<Reading>) -> Processed {
    let time_us = readings.first().map_or(NOON, |reading| reading.time_us);
    received_at(time_us + SECOND, partition, offset, vehicle, readings)
}

pub fn received_at(
    received_us: i64,
    partition: u16,
    offset: u64,
    vehicle: &str,
    readings: Vec<Reading>,
) -> Processed {
    let time_us = readings
        .first()
        .map_or(received_us, |reading| reading.time_us);
    let device = format!("{vehicle}-tcu");
    Processed {
        message: Message {
            id: text(&format!("{partition}-{offset}")),
            source: text(&format!("/vehicles/{vehicle}/devices/{device}")),
            kind: text("telemetry"),
            topic: text(&format!("dt/demo/fleet/{vehicle}/telemetry")),
            vehicle_id: text(vehicle),
            device_id: text(&device),
            time_us,
            received_us,
            content_type: Some(text("application/json")),
            content_encoding: None,
            priority: text("low"),
            traceparent: None,
            payload: Bytes::from(format!("{{\"n\":{offset}}}")),
            partition,
            offset: Offset::new(offset),
        },
        readings,
        can: None,
        dead: None,
    }
}

fn text(text: &str) -> Text {
    Text::from(text)
}

/// Record number `offset` of a partition: two readings of `car-{partition}`, one second each.
pub fn drive(partition: u16, offset: u64) -> Processed {
    let time_us = NOON + i64::try_from(offset).expect("small") * SECOND;
    let speed = (offset % 130) as f64;
    record(
        partition,
        offset,
        &format!("car-{partition}"),
        vec![
            reading("Vehicle.Speed", time_us, speed),
            reading("Vehicle.IsMoving", time_us, speed > 0.0),
        ],
    )
}

pub fn drives(partition: u16, offsets: std::ops::Range<u64>) -> Vec<Processed> {
    offsets.map(|offset| drive(partition, offset)).collect()
}

/// The answer as JSON rows.
pub async fn rows(lake: &Lake, sql: &str) -> serde_json::Value {
    let answer = lake.query(sql, QueryLimits::default()).await;
    let answer = answer.unwrap_or_else(|error| panic!("{sql}: {error}"));
    serde_json::from_slice(&answer.to_json_rows().expect("encodes")).expect("is JSON")
}

/// The only number of the answer.
pub async fn number(lake: &Lake, sql: &str) -> i64 {
    rows(lake, sql).await[0][0]
        .as_i64()
        .unwrap_or_else(|| panic!("{sql}: not a number"))
}

pub async fn refused(lake: &Lake, sql: &str) -> QueryError {
    refused_within(lake, sql, QueryLimits::default()).await
}

pub async fn refused_within(lake: &Lake, sql: &str, limits: QueryLimits) -> QueryError {
    match lake.query(sql, limits).await {
        Ok(answer) => panic!("{sql}: answered with {} rows", answer.rows()),
        Err(error) => error,
    }
}

/// Waits until `condition` holds; the test runner's own limit ends a test that waits forever.
pub async fn until(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::task::yield_now().await;
    }
}
