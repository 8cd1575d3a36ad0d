//! Other engines read the same tables and get the same numbers.

use std::process::Stdio;

use lake::{Lake, LakeOptions};
use serde_json::Value;
use tokio::process::Command;

use crate::world::{NOON, by_hand, drives, reading, record, rows};

#[tokio::test(flavor = "multi_thread")]
async fn deltalake_and_duckdb_count_and_sum_the_same() {
    let Some(python) = std::env::var_os("MILEPOST_TEST_PYTHON") else {
        eprintln!(
            "skipped: set MILEPOST_TEST_PYTHON to a Python that has the packages deltalake and duckdb"
        );
        return;
    };
    let dir = tempfile::tempdir().expect("temp dir");
    let options = LakeOptions {
        compact_after_files: usize::MAX,
        ..by_hand()
    };
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    // More commits than lie between two checkpoints.
    for batch in 0..60 {
        lake.ingest(drives(0, batch * 10..(batch + 1) * 10))
            .await
            .expect("ingests");
        lake.flush().await.expect("commits");
    }
    let text = vec![
        reading("Vehicle.Door", NOON, "open"),
        reading("Vehicle.Speed", NOON, 1.5),
    ];
    lake.ingest(vec![record(1, 0, "car-1", text)])
        .await
        .expect("ingests");
    lake.close().await.expect("closes");
    assert!(
        lake.metrics().compactions == 0,
        "sixty small files are what this is about"
    );

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines.py");
    let output = Command::new(python)
        .arg(script)
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("Python runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let engines: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let signals = rows(
        &lake,
        "select count(*), count(value), sum(value), count(text), count(distinct vehicle_id), \
         cast(min(extract(epoch from time)) as double), sum(\"offset\") from silver.signals",
    )
    .await;
    let messages = rows(
        &lake,
        "select count(*), sum(octet_length(cast(payload as text))), sum(\"offset\"), count(distinct id) \
         from bronze.messages",
    )
    .await;
    for engine in ["deltalake", "duckdb"] {
        assert_eq!(engines[engine]["signals"], signals[0], "{engine}");
        assert_eq!(engines[engine]["messages"], messages[0], "{engine}");
    }
}
