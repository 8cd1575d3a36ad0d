//! Each record is in each table once, whatever is repeated, cut off or concurrent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use eventlog::Offset;
use lake::{Lake, LakeError, LakeOptions};
use serde_json::json;

use crate::world::{NOON, SECOND, by_hand, drive, drives, number, open, received_at, record, rows};

const EACH_ONCE: &str =
    "select count(*), count(distinct \"partition\" * 1000000 + \"offset\") from ";

#[tokio::test(flavor = "multi_thread")]
async fn records_that_come_again_after_a_restart_are_skipped() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    assert_eq!(lake.resume_from(0), Offset::ZERO);
    lake.ingest(drives(0, 0..100)).await.expect("ingests");
    lake.ingest(drives(1, 0..10)).await.expect("ingests");
    lake.flush().await.expect("commits");
    // Hot only: lost with the process, still in the log.
    lake.ingest(drives(0, 100..120)).await.expect("ingests");
    drop(lake);

    let lake = open(dir.path()).await;
    assert_eq!(lake.resume_from(0), Offset::new(100));
    assert_eq!(lake.resume_from(1), Offset::new(10));
    assert_eq!(lake.resume_from(2), Offset::ZERO);
    let report = lake.ingest(drives(0, 90..130)).await.expect("ingests");
    assert_eq!(
        (report.messages, report.signals, report.duplicates),
        (30, 60, 10)
    );
    let report = lake.ingest(drives(0, 95..130)).await.expect("ingests");
    assert_eq!((report.messages, report.duplicates), (0, 35));
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} messages")).await,
        json!([[140, 140]])
    );
    lake.flush().await.expect("commits");
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} bronze.messages")).await,
        json!([[140, 140]])
    );
    assert_eq!(
        number(&lake, "select count(*) from silver.signals").await,
        280
    );
    assert_eq!(lake.metrics().duplicates, 45);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_two_tables_is_made_good() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    lake.ingest(drives(0, 0..50)).await.expect("ingests");
    lake.flush().await.expect("commits");
    // A file where silver wants a folder: bronze is committed, silver is not.
    lake.ingest(vec![received_at(
        NOON + 86_400 * SECOND,
        0,
        50,
        "car-0",
        drive(0, 50).readings,
    )])
    .await
    .expect("ingests");
    let blocked = dir.path().join("silver/signals/date=2026-11-21");
    std::fs::write(&blocked, "in the way").expect("writes");
    let error = lake.flush().await.expect_err("silver cannot be written");
    assert!(
        matches!(
            error,
            LakeError::Table {
                table: "silver.signals",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(lake.metrics().commit_failures, 1);
    // Nothing is hidden meanwhile.
    assert_eq!(number(&lake, "select count(*) from signals").await, 102);
    assert_eq!(number(&lake, "select count(*) from messages").await, 51);
    drop(lake);
    std::fs::remove_file(&blocked).expect("removes");

    let lake = open(dir.path()).await;
    assert_eq!(
        number(&lake, "select count(*) from bronze.messages").await,
        51
    );
    assert_eq!(
        number(&lake, "select count(*) from silver.signals").await,
        100
    );
    assert_eq!(
        lake.resume_from(0),
        Offset::new(50),
        "the slower table decides"
    );
    lake.ingest(drives(0, 50..60)).await.expect("ingests");
    lake.flush().await.expect("commits");
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} bronze.messages")).await,
        json!([[60, 60]])
    );
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} silver.signals")).await,
        json!([[120, 60]])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_commit_is_tried_again_with_what_came_since() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let blocked = dir.path().join("silver/signals/date=2026-11-20");
    std::fs::write(&blocked, "in the way").expect("writes");
    lake.ingest(drives(0, 0..10)).await.expect("ingests");
    lake.flush().await.expect_err("silver cannot be written");
    lake.ingest(drives(0, 10..20)).await.expect("ingests");
    lake.flush().await.expect_err("still not");
    std::fs::remove_file(&blocked).expect("removes");
    lake.flush().await.expect("commits");
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} silver.signals")).await,
        json!([[40, 20]])
    );
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} bronze.messages")).await,
        json!([[20, 20]])
    );
    assert_eq!(lake.metrics().hot_bytes, 0);
}

/// The one check that matters most: at every moment `signals` has what was ingested, while commits
/// and merges move rows from memory to files under it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_counted_twice_or_missed_at_any_moment() {
    const BATCHES: u64 = 150;
    const BATCH: u64 = 10;
    let dir = tempfile::tempdir().expect("temp dir");
    let options = LakeOptions {
        compact_after_files: 4,
        ..by_hand()
    };
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    let done = Arc::new(AtomicU64::new(0));

    let feeders: Vec<_> = (0..2_u16)
        .map(|partition| {
            let (lake, done) = (lake.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                for batch in 0..BATCHES {
                    let offsets = batch * BATCH..(batch + 1) * BATCH;
                    lake.ingest(drives(partition, offsets))
                        .await
                        .expect("ingests");
                    done.fetch_add(BATCH, Ordering::SeqCst);
                    // Not faster than commits and queries: they are what this is about.
                    let pace = (batch + 1) / 5;
                    while lake.metrics().commits < pace {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    let committer = tokio::spawn({
        let (lake, done) = (lake.clone(), Arc::clone(&done));
        async move {
            while done.load(Ordering::SeqCst) < 2 * BATCHES * BATCH {
                lake.flush().await.expect("commits");
            }
        }
    });

    let mut last = 0;
    let mut checks = 0;
    while last < 2 * BATCHES * BATCH {
        let before = done.load(Ordering::SeqCst);
        let answer = rows(
            &lake,
            "select (select count(*) from messages) as messages, \
             (select count(*) from signals) as signals, \
             (select count(*) from (select distinct \"partition\", \"offset\", seq from signals) d) \
             as readings",
        )
        .await;
        let after = done.load(Ordering::SeqCst) + 2 * BATCH;
        let seen = answer[0][0].as_u64().expect("a count");
        assert_eq!(
            answer[0][1].as_u64(),
            Some(seen * 2),
            "both tables at one moment: {answer}"
        );
        assert_eq!(
            answer[0][2].as_u64(),
            Some(seen * 2),
            "each row once: {answer}"
        );
        assert!(
            (before..=after).contains(&seen),
            "{seen} seen, {before} to {after} ingested"
        );
        assert!(seen >= last, "rows disappeared: {last}, then {seen}");
        last = seen;
        checks += 1;
    }
    for feeder in feeders {
        feeder.await.expect("feeds");
    }
    committer.await.expect("commits");
    lake.flush().await.expect("commits");
    let total = i64::try_from(2 * BATCHES * BATCH).expect("small");
    assert_eq!(
        number(&lake, "select count(*) from bronze.messages").await,
        total
    );
    assert_eq!(
        number(&lake, "select count(*) from silver.signals").await,
        2 * total
    );
    let metrics = lake.metrics();
    assert!(
        metrics.commits > 2 && checks > 2,
        "{} commits, {checks} checks",
        metrics.commits
    );
    assert!(metrics.compactions > 0, "merging was part of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_memory_slows_the_reader_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let options = LakeOptions {
        hot_bytes: 64 << 10,
        ..by_hand()
    };
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    for batch in 0..40 {
        lake.ingest(drives(0, batch * 50..(batch + 1) * 50))
            .await
            .expect("ingests");
        // A batch may go over the bound once.
        assert!(lake.metrics().hot_bytes < 128 << 10);
    }
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} messages")).await,
        json!([[2_000, 2_000]])
    );
    let metrics = lake.metrics();
    assert!(
        metrics.commits > 0 && metrics.ingest_waits > 0,
        "{metrics:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_process_has_the_lake() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let second = Lake::open(dir.path(), by_hand()).await;
    assert!(matches!(second.err(), Some(LakeError::Locked { .. })));
    lake.close().await.expect("closes");
    assert!(matches!(
        lake.ingest(drives(0, 0..1)).await,
        Err(LakeError::Closed)
    ));
    drop(lake);
    open(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_commit_that_was_cut_off_do_no_harm() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    lake.ingest(drives(0, 0..10)).await.expect("ingests");
    lake.flush().await.expect("commits");
    drop(lake);
    let day = dir.path().join("silver/signals/date=2026-11-20");
    let whole = std::fs::read_dir(&day)
        .expect("lists")
        .next()
        .expect("a file")
        .expect("lists")
        .path();
    let bytes = std::fs::read(&whole).expect("reads");
    std::fs::write(day.join("part-cut-off.parquet"), &bytes[..bytes.len() / 2]).expect("writes");
    std::fs::copy(&whole, day.join("part-never-committed.parquet")).expect("copies");
    let log = dir.path().join("silver/signals/_delta_log");
    std::fs::write(log.join("00000000000000000002.json#1"), "{\"comm").expect("writes");

    let lake = open(dir.path()).await;
    assert_eq!(number(&lake, "select count(*) from signals").await, 20);
    lake.ingest(drives(0, 0..20)).await.expect("ingests");
    lake.flush().await.expect("commits");
    assert_eq!(
        rows(&lake, &format!("{EACH_ONCE} silver.signals")).await,
        json!([[40, 20]])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_readings_move_both_tables_on() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    lake.ingest(
        (0..5)
            .map(|offset| record(3, offset, "car-3", vec![]))
            .collect(),
    )
    .await
    .expect("ok");
    lake.flush().await.expect("commits");
    drop(lake);
    let lake = open(dir.path()).await;
    assert_eq!(lake.resume_from(3), Offset::new(5));
    assert_eq!(
        number(&lake, "select count(*) from silver.signals").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_an_unknown_partition_is_refused_whole() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let error = lake
        .ingest(vec![drive(0, 0), drive(9, 0)])
        .await
        .expect_err("only four");
    assert!(matches!(
        error,
        LakeError::UnknownPartition {
            partition: 9,
            partitions: 4
        }
    ));
    assert_eq!(number(&lake, "select count(*) from messages").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_commits_by_itself() {
    let dir = tempfile::tempdir().expect("temp dir");
    let options = LakeOptions {
        commit_every: std::time::Duration::from_millis(50),
        ..by_hand()
    };
    let lake = Lake::open(dir.path(), options).await.expect("opens");
    lake.ingest(drives(0, 0..10)).await.expect("ingests");
    crate::world::until(async || lake.metrics().committed_signals == 20).await;
    assert_eq!(number(&lake, "select count(*) from live.signals").await, 0);
    assert!(
        lake.metrics()
            .last_commit
            .is_some_and(|commit| commit.rows == 30)
    );
}
