//! Retention: what goes, what stays, and what a slow reader is told.

mod common;

use std::fs::{self, OpenOptions};
use std::time::{Duration, SystemTime};

use common::*;
use eventlog::{ReadError, ReadFrom, Retention, StreamConfig};

const KIB: u64 = 1 << 10;

/// 50 appends of about 1 KiB to a stream with segments of 8 KiB.
fn fill(stream: &eventlog::Stream, partition: u16, from: usize) {
    let filler = "x".repeat(900);
    for n in from..from + 50 {
        append(stream, partition, &[&format!("{n} {filler}")]);
    }
}

#[test]
fn by_size_the_oldest_segments_go_and_a_slow_reader_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        segment_bytes: 8 * KIB,
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config.clone()).unwrap();
    fill(&stream, 0, 0);
    let mut slow = stream.reader(0, ReadFrom::Earliest);
    assert_eq!(slow.read(1, 1, None).unwrap().len(), 1);
    stream.housekeep();
    assert_eq!(
        stream.start(0).get(),
        0,
        "nothing is removed that nobody asked to remove"
    );
    log.close();

    let (log, _) = open(dir.path());
    let retention = Retention {
        max_bytes: Some(20 * KIB),
        ..Retention::default()
    };
    let stream = log
        .stream(
            "s",
            StreamConfig {
                retention,
                ..config.clone()
            },
        )
        .unwrap();
    let mut slow = stream.reader(0, ReadFrom::At(slow.offset()));
    slow.read(1, 1, None).unwrap();
    stream.housekeep();
    let stats = stream.stats().partitions[0];
    assert!(
        stats.bytes <= 20 * KIB && stats.bytes > 8 * KIB,
        "{stats:?}"
    );
    assert_eq!(
        segments(dir.path(), "s", 0).len() as u64,
        stats.segments,
        "the files are gone too"
    );
    assert!(
        !segments(dir.path(), "s", 0)[0]
            .to_string_lossy()
            .ends_with("00000000000000000000.log")
    );

    let first = stream.start(0);
    assert!(first.get() > 2 && stats.removed_segments > 0);
    let error = slow.read(10, 1 << 20, None).unwrap_err();
    assert!(
        matches!(error, ReadError::Truncated { wanted, first_available, .. } if wanted.get() == 2 && first_available == first),
        "{error}"
    );
    slow.seek(first);
    assert_eq!(drain(&mut slow).unwrap().len() as u64, 50 - first.get());

    // It goes on by itself while records come in, and the numbers go on after reopening.
    fill(&stream, 0, 50);
    log.close();
    let (log, report) = open(dir.path());
    assert!(report.is_clean());
    let stream = log
        .stream(
            "s",
            StreamConfig {
                retention,
                ..config
            },
        )
        .unwrap();
    assert_eq!(stream.end(0).get(), 100);
    assert_eq!(values(&stream, 0).len() as u64, 100 - stream.start(0).get());
}

#[test]
fn by_size_busy_partitions_get_the_room_of_quiet_ones_and_the_oldest_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let retention = Retention {
        max_bytes: Some(40 * KIB),
        ..Retention::default()
    };
    let config = StreamConfig {
        partitions: 2,
        segment_bytes: 8 * KIB,
        retention,
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config).unwrap();
    fill(&stream, 1, 0);
    fill(&stream, 0, 0);
    stream.housekeep();
    let stats = stream.stats();
    assert!(stats.total().bytes <= 40 * KIB);
    assert_eq!(
        stats.partitions[1].segments, 1,
        "the older records go first: {stats:?}"
    );
    assert!(stats.partitions[0].bytes > 25 * KIB, "{stats:?}");
}

#[test]
fn by_age_old_segments_go_whole_and_young_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let config = StreamConfig {
        segment_bytes: 8 * KIB,
        ..StreamConfig::default()
    };
    let (log, _) = open(dir.path());
    fill(&log.stream("s", config.clone()).unwrap(), 0, 0);
    log.close();
    let files = segments(dir.path(), "s", 0);
    assert!(files.len() > 4);
    for file in &files[..2] {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        OpenOptions::new()
            .append(true)
            .open(file)
            .unwrap()
            .set_modified(hour_ago)
            .unwrap();
    }

    let (log, _) = open(dir.path());
    let retention = Retention {
        max_age: Some(Duration::from_secs(1800)),
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
    stream.housekeep();
    assert_eq!(segments(dir.path(), "s", 0), files[2..]);
    assert_eq!(
        format!("{:0>20}.log", stream.start(0).get()),
        files[2].file_name().unwrap().to_str().unwrap()
    );
}

#[test]
fn a_quiet_partition_is_sealed_by_age_so_that_its_records_can_expire() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        segment_age: Duration::ZERO,
        retention: Retention {
            max_age: Some(Duration::ZERO),
            ..Retention::default()
        },
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config.clone()).unwrap();
    append(&stream, 0, &["a", "b"]);
    stream.housekeep();
    stream.housekeep();
    assert_eq!((stream.start(0).get(), stream.end(0).get()), (2, 2));
    assert_eq!(segments(dir.path(), "s", 0).len(), 1);
    assert_eq!(
        fs::metadata(&segments(dir.path(), "s", 0)[0])
            .unwrap()
            .len(),
        0
    );
    log.close();
    // Empty, but it has not forgotten where it was.
    let (log, _) = open(dir.path());
    let stream = log.stream("s", config).unwrap();
    assert_eq!(append(&stream, 0, &["c"]).get(), 2);
}

#[test]
fn sealing_by_age_without_retention_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log
        .stream(
            "s",
            StreamConfig {
                segment_age: Duration::ZERO,
                ..StreamConfig::default()
            },
        )
        .unwrap();
    for value in ["a", "b", "c"] {
        append(&stream, 0, &[value]);
        stream.housekeep();
    }
    assert_eq!(segments(dir.path(), "s", 0).len(), 4);
    assert_eq!(values(&stream, 0), ["a", "b", "c"]);
}
