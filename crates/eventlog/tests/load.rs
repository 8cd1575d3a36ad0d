//! Many appenders at once: order per appender, group commit, and what happens when it is too much.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Barrier};
use std::thread;

use common::*;
use eventlog::{AppendError, ReadFrom, StreamConfig};

#[test]
fn each_appender_finds_its_records_in_its_order_and_syncs_are_shared() {
    const APPENDERS: usize = 32;
    const EACH: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        partitions: 2,
        segment_bytes: 256 << 10,
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config).unwrap();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let start = Arc::new(Barrier::new(APPENDERS));
    thread::scope(|scope| {
        for appender in 0..APPENDERS {
            let (stream, acknowledged, start) =
                (stream.clone(), acknowledged.clone(), start.clone());
            scope.spawn(move || {
                start.wait();
                for n in 0..EACH {
                    let acknowledged = acknowledged.clone();
                    stream
                        .append(
                            (appender % 2) as u16,
                            record(format!("{appender} {n}")),
                            move |result| {
                                result.unwrap();
                                acknowledged.fetch_add(1, Ordering::Relaxed);
                            },
                        )
                        .unwrap();
                }
            });
        }
    });
    stream.flush();
    assert_eq!(acknowledged.load(Ordering::Relaxed), APPENDERS * EACH);

    let mut next: HashMap<String, usize> = HashMap::new();
    for partition in 0..2 {
        for text in values(&stream, partition) {
            let (appender, n) = text.split_once(' ').unwrap();
            let expected = next.entry(appender.to_owned()).or_default();
            assert_eq!(
                n.parse::<usize>().unwrap(),
                *expected,
                "appender {appender}"
            );
            *expected += 1;
        }
    }
    assert!(next.len() == APPENDERS && next.values().all(|n| *n == EACH));
    let total = stream.stats().total();
    assert_eq!(
        (
            total.appended_records,
            total.queued_records,
            total.queued_bytes
        ),
        ((APPENDERS * EACH) as u64, 0, 0)
    );
    assert_eq!(total.fsyncs, total.groups);
    assert!(total.fsyncs < total.appended_records / 4, "{total:?}");
}

#[test]
fn completions_come_in_order_with_the_offsets_of_their_records() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    let (told, tell) = channel();
    for n in 0..3000 {
        let told = told.clone();
        let done = move |result: Result<eventlog::Offset, _>| {
            told.send((n, result.unwrap().get())).unwrap()
        };
        if n % 3 == 0 {
            stream
                .append_batch(
                    0,
                    (0..3).map(|k| record(format!("{n} {k}"))).collect(),
                    done,
                )
                .unwrap();
        } else {
            stream.append(0, record(n.to_string()), done).unwrap();
        }
    }
    drop(told);
    let mut reader = stream.reader(0, ReadFrom::Earliest);
    let (mut last, mut expected) = (None, 0);
    for (n, offset) in tell {
        assert!(last.is_none_or(|last| n == last + 1), "{n} after {last:?}");
        assert_eq!(offset, expected);
        expected += if n % 3 == 0 { 3 } else { 1 };
        last = Some(n);
        reader.seek(offset.into());
        let first = &reader.read(1, 1, None).unwrap()[0];
        let text = if n % 3 == 0 {
            format!("{n} 0")
        } else {
            n.to_string()
        };
        assert_eq!(value(first), text, "readable when acknowledged");
    }
    assert_eq!(last, Some(2999));
}

#[test]
fn a_full_queue_refuses_at_once_and_takes_again_when_the_disk_has_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    for (by, config) in [
        (
            "records",
            StreamConfig {
                queue_records: 3,
                ..StreamConfig::default()
            },
        ),
        (
            "bytes",
            StreamConfig {
                queue_bytes: 3 * 1100,
                ..StreamConfig::default()
            },
        ),
    ] {
        let stream = log.stream(by, config).unwrap();
        // The writer stands still in the first record's completion; so the rest stays queued.
        let (reached, at) = sync_channel(1);
        let (go, gone) = sync_channel::<()>(1);
        stream
            .append(0, record("x"), move |_| {
                reached.send(()).unwrap();
                gone.recv().unwrap();
            })
            .unwrap();
        at.recv().unwrap();
        for _ in 0..3 {
            stream
                .append(0, record("x".repeat(1000)), |result| {
                    assert!(result.is_ok())
                })
                .unwrap();
        }
        let error = stream
            .append(0, record("x".repeat(1000)), |_| {
                panic!("refused, so never called")
            })
            .unwrap_err();
        assert!(
            matches!(
                error,
                AppendError::Busy {
                    queued_records: 3,
                    ..
                }
            ),
            "{by}: {error}"
        );
        assert_eq!(stream.stats().total().refused_busy, 1);
        go.send(()).unwrap();
        stream.flush();
        stream.append_wait(0, record("x".repeat(1000))).unwrap();
        assert_eq!(stream.end(0).get(), 5);
    }
}

#[test]
fn what_alone_exceeds_the_queue_is_taken_when_nothing_else_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        queue_bytes: 1024,
        batch_bytes: 1024,
        segment_bytes: 4096,
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config).unwrap();
    stream.append_wait(0, record("x".repeat(100_000))).unwrap();
    append(&stream, 0, &vec!["y"; 1000]);
    assert_eq!(stream.end(0).get(), 1001);
    assert_eq!(values(&stream, 0).len(), 1001);
}

#[test]
fn a_linger_gathers_and_a_flush_does_not_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        // The longest there is: a slow machine must not come to its end before the flush.
        linger: std::time::Duration::from_secs(1),
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config).unwrap();
    for n in 0..100 {
        stream
            .append(0, record(n.to_string()), |result| assert!(result.is_ok()))
            .unwrap();
    }
    stream.flush();
    let total = stream.stats().total();
    assert_eq!((total.appended_records, total.groups), (100, 1));
}
