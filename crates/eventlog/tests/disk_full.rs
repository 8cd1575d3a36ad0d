//! No space: by the stream's own cap, and on a real file system that is full.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::*;
use eventlog::{AppendError, Retention, StreamConfig};

#[test]
fn a_stream_at_its_cap_refuses_by_name_and_goes_on_when_retention_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        max_bytes: Some(40_000),
        segment_bytes: 8192,
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config.clone()).unwrap();
    let filler = "x".repeat(900);
    let mut taken = 0;
    let error = loop {
        match stream.append_wait(0, record(filler.clone())) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100);
    };
    assert!(
        matches!(&*error, AppendError::Full { limit: 40_000, used, .. } if *used <= 40_000),
        "{error}"
    );
    assert!(error.to_string().contains("stream s is full"), "{error}");
    stream
        .append_wait(0, record(""))
        .expect("a smaller one still fits");
    assert_eq!(stream.stats().total().refused_full, 1);
    let on_disk: u64 = segments(dir.path(), "s", 0)
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert_eq!(on_disk, stream.stats().total().bytes);
    log.close();

    let (log, _) = open(dir.path());
    let retention = Retention {
        max_bytes: Some(20_000),
        ..Retention::default()
    };
    let stream = log
        .stream(
            "s",
            StreamConfig {
                retention,
                ..config
            },
        )
        .unwrap();
    for _ in 0..100 {
        stream
            .append_wait(0, record(filler.clone()))
            .expect("retention makes room by itself");
    }
    assert_eq!(stream.end(0).get(), taken + 1 + 100);
}

/// In a user namespace of its own, on a file system of one megabyte.
#[test]
fn child_fills_a_small_disk() {
    let Ok(dir) = std::env::var("EVENTLOG_SMALL_DISK") else {
        return;
    };
    let dir = Path::new(&dir);
    let (log, _) = open(&dir.join("log"));
    let stream = log
        .stream(
            "s",
            StreamConfig {
                segment_bytes: 256 << 10,
                ..StreamConfig::default()
            },
        )
        .unwrap();
    let group = log.group("g").unwrap();
    fs::write(dir.join("other"), vec![0; 300 << 10]).unwrap();
    let filler = "x".repeat(10_000);
    let mut taken = 0;
    let error = loop {
        match stream.append_wait(0, record(format!("{taken} {filler}"))) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(*error, AppendError::DiskFull { .. }), "{error:?}");
    for _ in 0..3 {
        stream
            .append_wait(0, record(filler.clone()))
            .expect_err("still full");
    }
    assert_eq!(values(&stream, 0).len(), taken);

    fs::remove_file(dir.join("other")).unwrap();
    stream
        .append_wait(0, record("after"))
        .expect("there is space again");
    group.commit("s", 0, stream.end(0)).unwrap();
    assert_eq!(stream.end(0).get() as usize, taken + 1);
    log.close();
    let (log, report) = open(&dir.join("log"));
    assert!(report.is_clean(), "failed writes were taken back: {report}");
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    assert_eq!(values(&stream, 0).len(), taken + 1);
    assert_eq!(
        log.group("g").unwrap().committed("s", 0),
        Some(stream.end(0))
    );
}

#[test]
fn a_full_disk_fails_only_what_does_not_fit_and_the_partition_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let small_disk =
        "mount -t tmpfs -o size=1m none \"$EVENTLOG_SMALL_DISK\" || exit 77; exec \"$@\"";
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            small_disk,
            "sh",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_fills_a_small_disk", "--nocapture"])
        .env("EVENTLOG_SMALL_DISK", dir.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(101) => {
            panic!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        }
        Ok(output) => {
            eprintln!(
                "skipped: no file system of our own here: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        }
        Err(error) => eprintln!("skipped: `unshare` is not here: {error}"),
    }
}
