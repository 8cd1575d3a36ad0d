//! The newest reading of every signal of every vehicle.

use lake::{Lake, LakeOptions};
use serde_json::{Value, json};

use crate::world::{
    NOON, SECOND, by_hand, number, open, reading, received_at, record, rows, until,
};

const STATE: &str = "select vehicle_id, signal, value, text from last_known_state order by 1, 2";

/// Two vehicles, readings late, repeated, and from a clock in the future.
async fn feed(lake: &Lake) {
    let car = |offset, time, value: f64| {
        record(
            0,
            offset,
            "car-0",
            vec![reading("Vehicle.Speed", time, value)],
        )
    };
    lake.ingest(vec![
        car(0, NOON, 10.0),
        car(1, NOON + 5 * SECOND, 15.0),
        // Late: was on its way when 15 came.
        car(2, NOON + 2 * SECOND, 12.0),
        // Same time again: the later record wins.
        car(3, NOON + 5 * SECOND, 16.0),
    ])
    .await
    .expect("ingests");
    lake.flush().await.expect("commits");
    let ahead = NOON + 365 * 86_400 * SECOND;
    lake.ingest(vec![
        // A clock that is a year ahead counts as of its reception …
        received_at(NOON, 1, 0, "car-1", vec![reading("Door", ahead, "open")]),
        // … so a later honest reading replaces it.
        received_at(
            NOON + 9 * SECOND,
            1,
            1,
            "car-1",
            vec![reading("Door", NOON + 8 * SECOND, "closed")],
        ),
    ])
    .await
    .expect("ingests");
}

fn expected() -> Value {
    json!([
        ["car-0", "Vehicle.Speed", 16.0, null],
        ["car-1", "Door", null, "closed"]
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn is_the_newest_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    feed(&lake).await;
    assert_eq!(rows(&lake, STATE).await, expected());
    assert_eq!(
        rows(
            &lake,
            "select signal, unit, device_id, time, received_time from last_known_state \
                     where vehicle_id = 'car-0'"
        )
        .await,
        json!([[
            "Vehicle.Speed",
            "km/h",
            "car-0-tcu",
            "2026-11-20T10:00:05Z",
            "2026-11-20T10:00:06Z"
        ]])
    );
    lake.close().await.expect("closes");
    drop(lake);
    // From the saved file.
    let lake = open(dir.path()).await;
    assert_eq!(lake.metrics().last_known_entries, 2);
    assert_eq!(rows(&lake, STATE).await, expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn is_right_without_its_file_and_with_a_torn_one() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    feed(&lake).await;
    lake.close().await.expect("closes");
    drop(lake);
    let file = dir.path().join("live/last_known_state.arrow");
    let whole = std::fs::read(&file).expect("was saved");
    for damaged in [
        None,
        Some(&whole[..whole.len() / 2]),
        Some(&whole[..0]),
        Some(b"nonsense"),
    ] {
        match damaged {
            None => std::fs::remove_file(&file).expect("removes"),
            Some(bytes) => std::fs::write(&file, bytes).expect("writes"),
        }
        let lake = open(dir.path()).await;
        // Computed while loading, from memory after: the same answer at every moment.
        assert_eq!(rows(&lake, STATE).await, expected());
        until(async || lake.metrics().last_known_entries == 2).await;
        assert_eq!(rows(&lake, STATE).await, expected());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_after_the_file_is_replayed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    feed(&lake).await;
    lake.close().await.expect("closes");
    drop(lake);
    let lake = open(dir.path()).await;
    let later = vec![reading("Vehicle.Speed", NOON + 60 * SECOND, 60.0)];
    lake.ingest(vec![record(0, 4, "car-0", later)])
        .await
        .expect("ingests");
    lake.flush().await.expect("commits");
    // A crash: the file is that of the restart before.
    drop(lake);
    let lake = open(dir.path()).await;
    until(async || rows(&lake, STATE).await[0][2] == json!(60.0)).await;
    assert_eq!(
        number(&lake, "select count(*) from last_known_state").await,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn is_computed_when_there_are_more_pairs_than_memory() {
    let dir = tempfile::tempdir().expect("temp dir");
    let options = LakeOptions {
        last_known_entries: 1,
        ..by_hand()
    };
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    feed(&lake).await;
    assert_eq!(lake.metrics().last_known_entries, 1);
    assert_eq!(rows(&lake, STATE).await, expected());
    assert_eq!(
        rows(
            &lake,
            "select l.text from last_known_state l where l.vehicle_id = 'car-1'"
        )
        .await,
        json!([["closed"]])
    );
    assert_eq!(
        number(&lake, "select count(*) from last_known_state").await,
        2
    );
}
