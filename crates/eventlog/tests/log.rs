//! The everyday life of a log: append, read, reopen, close; and who may open it.

mod common;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use eventlog::{
    AppendError, Log, LogOptions, NewRecord, Offset, OpenError, ReadError, ReadFrom, StreamConfig,
};

/// Long enough that a test fails instead of hanging, never waited for in full.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_record_comes_back_as_it_was_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let put = NewRecord {
        key: Bytes::from_static(b"car-1"),
        time_us: -1,
        headers: vec![
            (Bytes::from_static(b"ce_id"), Bytes::from_static(b"1")),
            (Bytes::from_static(b"ce_id"), Bytes::from_static(b"")),
        ],
        value: Bytes::from_static(b"\x00payload\xff"),
    };
    let (log, report) = open(dir.path());
    assert!(report.is_clean());
    let stream = log
        .stream(
            "raw.telemetry",
            StreamConfig {
                partitions: 3,
                ..StreamConfig::default()
            },
        )
        .unwrap();
    assert_eq!(stream.append_wait(2, put.clone()).unwrap(), Offset::ZERO);
    assert_eq!(
        (stream.start(2), stream.end(2), stream.end(0)),
        (Offset::ZERO, Offset::new(1), Offset::ZERO)
    );

    for reopened in [false, true] {
        let (log, stream) = if reopened {
            log.close();
            let (log, report) = open(dir.path());
            assert_eq!(
                (report.is_clean(), report.streams, report.partitions),
                (true, 1, 3)
            );
            let stream = log
                .stream(
                    "raw.telemetry",
                    StreamConfig {
                        partitions: 3,
                        ..StreamConfig::default()
                    },
                )
                .unwrap();
            (log, stream)
        } else {
            (log.clone(), stream.clone())
        };
        let read = stream
            .reader(2, ReadFrom::Earliest)
            .read(10, 1 << 20, None)
            .unwrap();
        assert_eq!(read.len(), 1);
        let got = &read[0];
        assert_eq!(
            (got.partition, got.offset, got.time_us),
            (2, Offset::ZERO, -1)
        );
        assert_eq!(
            (&got.key, &got.headers, &got.value),
            (&put.key, &put.headers, &put.value)
        );
        drop(log);
    }
}

#[test]
fn a_reader_at_the_end_is_woken_by_the_next_durable_record() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    append(&stream, 0, &["old"]);
    let mut reader = stream.reader(0, ReadFrom::End);
    assert!(reader.read(10, 1 << 20, None).unwrap().is_empty());
    let waiter = {
        let stream = stream.clone();
        thread::spawn(move || stream.wait_durable(0, Offset::new(1), LONG))
    };
    let reading = thread::spawn(move || reader.read(10, 1 << 20, Some(LONG)).unwrap());
    append(&stream, 0, &["new"]);
    assert_eq!(
        reading
            .join()
            .unwrap()
            .iter()
            .map(value)
            .collect::<Vec<_>>(),
        ["new"]
    );
    assert_eq!(waiter.join().unwrap(), Offset::new(2));
    assert_eq!(
        stream.wait_durable(0, Offset::new(2), Duration::from_millis(1)),
        Offset::new(2),
        "timeout"
    );
}

#[test]
fn closing_wakes_readers_keeps_what_was_queued_and_refuses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    let waiting = {
        let stream = stream.clone();
        thread::spawn(move || {
            stream
                .reader(0, ReadFrom::At(Offset::ZERO))
                .read(1, 1, Some(LONG))
                .unwrap()
                .len()
        })
    };
    let (told, tell) = channel();
    for n in 0..1000 {
        let told = told.clone();
        stream
            .append(0, record(n.to_string()), move |result| {
                told.send(result.unwrap().get()).unwrap()
            })
            .unwrap();
    }
    drop(told);
    log.close();
    log.close();
    assert_eq!(
        tell.iter().collect::<Vec<_>>(),
        (0..1000).collect::<Vec<_>>()
    );
    assert!(waiting.join().unwrap() <= 1);
    assert!(matches!(
        stream.append(0, record("late"), |_| ()),
        Err(AppendError::Closed { .. })
    ));
    assert!(matches!(
        log.stream("t", StreamConfig::default()),
        Err(OpenError::Closed)
    ));
    assert_eq!(
        values(&stream, 0).len(),
        1000,
        "what is durable stays readable"
    );
    stream.flush();

    // Dropping the last handle closes too.
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    append(&stream, 0, &["more"]);
    drop(log);
    assert_eq!(
        values(
            &open(dir.path())
                .0
                .stream("s", StreamConfig::default())
                .unwrap(),
            0
        )
        .len(),
        1001
    );
}

#[test]
fn the_last_handle_may_be_dropped_by_a_completion() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    let (told, tell) = sync_channel(1);
    stream
        .append(0, record("x"), move |result| {
            drop(log);
            told.send(result.unwrap()).unwrap();
        })
        .unwrap();
    assert_eq!(tell.recv_timeout(LONG).unwrap(), Offset::ZERO);
}

#[test]
fn a_panicking_completion_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    stream
        .append(0, record("a"), |_| panic!("on purpose"))
        .unwrap();
    assert_eq!(stream.append_wait(0, record("b")).unwrap(), Offset::new(1));
}

#[test]
fn a_reader_stands_anywhere_and_reads_no_more_than_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        segment_bytes: 4096,
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config).unwrap();
    for n in 0..60 {
        let five: Vec<_> = (0..5).map(|k| format!("{:0>40}", n * 5 + k)).collect();
        append(
            &stream,
            0,
            &five.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }
    assert!(stream.stats().partitions[0].segments > 4);
    let mut reader = stream.reader(0, ReadFrom::Earliest);
    for at in (0..300).rev().step_by(7) {
        reader.seek(Offset::new(at));
        let read = reader.read(3, 1 << 20, None).unwrap();
        assert_eq!(read[0].offset.get(), at);
        assert_eq!(
            value(&read[0]).trim_start_matches('0').parse().unwrap_or(0),
            at
        );
        assert!(read.len() <= 3 && reader.offset() == read[read.len() - 1].offset.next());
    }
    reader.seek(Offset::ZERO);
    assert_eq!(reader.read(100, 1, None).unwrap().len(), 1, "at least one");
    assert_eq!(
        reader.read(100, 100, None).unwrap().len(),
        3,
        "ends with the record that reaches the bytes"
    );
    reader.seek(Offset::new(301));
    assert!(
        matches!(reader.read(1, 1, None), Err(ReadError::BeyondEnd { end, .. }) if end.get() == 300)
    );
    assert!(matches!(
        stream.reader(1, ReadFrom::End).read(1, 1, None),
        Err(ReadError::NoSuchPartition { .. })
    ));
}

#[test]
fn appends_that_cannot_be_taken_are_refused_at_once_and_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let config = StreamConfig {
        max_append_bytes: 2048,
        ..StreamConfig::default()
    };
    let stream = log.stream("s", config).unwrap();
    let header = NewRecord {
        headers: vec![(Bytes::from_static(b"mp-us"), Bytes::new())],
        ..record("x")
    };
    for (result, text) in [
        (stream.append(1, record("x"), |_| ()), "no partition 1"),
        (
            stream.append(0, record("x".repeat(3000)), |_| ()),
            "at most 2048 bytes",
        ),
        (stream.append(0, header, |_| ()), "mp-us"),
        (stream.append_batch(0, Vec::new(), |_| ()), "empty batch"),
    ] {
        let error = result.expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    }
    assert_eq!(stream.end(0), Offset::ZERO);
}

#[test]
fn streams_that_cannot_be_opened_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    log.stream(
        "s",
        StreamConfig {
            partitions: 2,
            ..StreamConfig::default()
        },
    )
    .unwrap();
    append(
        &log.stream("t", StreamConfig::default()).unwrap(),
        0,
        &["x"],
    );
    for reopened in [false, true] {
        let (log, _) = if reopened {
            (log.close(), open(dir.path())).1
        } else {
            (log.clone(), Default::default())
        };
        for (name, partitions, segment_bytes, text) in [
            ("../s", 1, 1 << 20, "not allowed"),
            (
                "s",
                3,
                1 << 20,
                "has 2 partitions and cannot be opened with 3",
            ),
            ("s", 0, 1 << 20, "partitions = 0 is out of range"),
            ("s", 2, 10, "segment_bytes = 10 is out of range"),
        ] {
            let error = log.stream(
                name,
                StreamConfig {
                    partitions,
                    segment_bytes,
                    ..StreamConfig::default()
                },
            );
            let error = error.expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(log.group("a/b").is_err());
        log.close();
    }

    let marker = dir.path().join("streams/t/stream.meta");
    let text = fs::read_to_string(&marker).unwrap();
    assert_eq!(text, "milepost-eventlog 1\npartitions 1\n");
    fs::write(&marker, text.replace(" 1\np", " 2\np")).unwrap();
    assert!(
        matches!(Log::open(dir.path(), LogOptions::default()), Err(OpenError::Format { found, .. }) if found == "milepost-eventlog 2")
    );
    fs::remove_file(&marker).unwrap();
    assert!(
        matches!(
            Log::open(dir.path(), LogOptions::default()),
            Err(OpenError::NoMarker { .. })
        ),
        "records without a marker"
    );
    fs::write(&marker, text).unwrap();
    open(dir.path());
}

#[test]
fn a_stream_that_a_crash_left_half_made_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("streams/s/0")).unwrap();
    fs::write(dir.path().join("streams/s/stream.meta.tmp"), "mile").unwrap();
    let (log, report) = open(dir.path());
    assert_eq!(report.streams, 0);
    append(
        &log.stream("s", StreamConfig::default()).unwrap(),
        0,
        &["x"],
    );
}

/// What the child process of the next test does.
#[test]
fn child_opens_the_log() {
    let Ok(dir) = std::env::var("EVENTLOG_OPEN") else {
        return;
    };
    match Log::open(dir.as_ref(), LogOptions::default()) {
        Ok(_) => std::process::exit(10),
        Err(error @ OpenError::InUse { .. }) => {
            eprintln!("{error}");
            std::process::exit(11)
        }
        Err(_) => std::process::exit(12),
    }
}

#[test]
fn a_second_process_is_refused_and_told_who_holds_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let second = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_opens_the_log", "--nocapture"])
            .env("EVENTLOG_OPEN", dir.path())
            .output()
            .unwrap()
    };
    let (log, _) = open(dir.path());
    let refused = second();
    assert_eq!(refused.status.code(), Some(11));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains(&format!("in use by process {}", std::process::id())),
        "{said}"
    );
    assert!(
        matches!(
            Log::open(dir.path(), LogOptions::default()),
            Err(OpenError::InUse { .. })
        ),
        "this process too"
    );
    log.close();
    assert_eq!(second().status.code(), Some(10), "free again");
}

#[test]
fn bytes_written_by_format_1_still_read() {
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let dir = tempfile::tempdir().unwrap();
    for file in [
        "streams/orders/stream.meta",
        "streams/orders/0/00000000000000000000.log",
        "groups/shipping.offsets",
    ] {
        let to = dir.path().join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixture.join(file), to).unwrap();
    }
    fs::create_dir_all(dir.path().join("streams/orders/1")).unwrap();
    let config = StreamConfig {
        partitions: 2,
        ..StreamConfig::default()
    };

    let (log, report) = open(dir.path());
    assert_eq!(
        (report.is_clean(), report.streams, report.partitions),
        (true, 1, 2),
        "{report}"
    );
    let stream = log.stream("orders", config.clone()).unwrap();
    let read = drain(&mut stream.reader(0, ReadFrom::Earliest)).unwrap();
    let expected = fixture_records();
    assert_eq!(read.len(), expected.len());
    for (read, put) in read.iter().zip(&expected) {
        assert_eq!(
            (read.time_us, &read.key, &read.headers, &read.value),
            (put.time_us, &put.key, &put.headers, &put.value)
        );
    }
    assert_eq!(
        log.group("shipping").unwrap().all_committed(),
        [
            ("orders".to_owned(), 0, Offset::new(2)),
            ("orders".to_owned(), 1, Offset::ZERO)
        ]
    );
    log.close();

    // And we still write the same bytes.
    let again = tempfile::tempdir().unwrap();
    write_fixture(again.path());
    for file in [
        "streams/orders/stream.meta",
        "streams/orders/0/00000000000000000000.log",
        "groups/shipping.offsets",
    ] {
        assert_eq!(
            fs::read(again.path().join(file)).unwrap(),
            fs::read(fixture.join(file)).unwrap(),
            "{file}"
        );
    }
}

fn fixture_records() -> Vec<NewRecord> {
    let header = |name: &'static str, value: &'static str| {
        (
            Bytes::from_static(name.as_bytes()),
            Bytes::from_static(value.as_bytes()),
        )
    };
    vec![
        NewRecord {
            key: Bytes::from_static(b"car-1"),
            time_us: 1_700_000_000_123_456,
            headers: vec![header("ce_id", "1"), header("ce_type", "")],
            value: Bytes::from_static(b"{\"signals\":{\"Vehicle.Speed\":87.2}}"),
        },
        NewRecord {
            key: Bytes::new(),
            time_us: 1_699_999_999_000_000,
            headers: Vec::new(),
            value: Bytes::new(),
        },
        NewRecord {
            key: Bytes::from_static(b"car-2"),
            time_us: -1,
            headers: Vec::new(),
            value: Bytes::from(vec![0xab; 300]),
        },
    ]
}

fn write_fixture(dir: &std::path::Path) {
    let (log, _) = open(dir);
    let stream = log
        .stream(
            "orders",
            StreamConfig {
                partitions: 2,
                ..StreamConfig::default()
            },
        )
        .unwrap();
    let mut records = fixture_records();
    let last = records.pop().unwrap();
    let (told, tell) = sync_channel(1);
    stream
        .append_batch(0, records, move |result| told.send(result).unwrap())
        .unwrap();
    tell.recv().unwrap().unwrap();
    stream.append_wait(0, last).unwrap();
    let group = log.group("shipping").unwrap();
    group
        .commit_all([("orders", 0, Offset::new(1)), ("orders", 1, Offset::ZERO)])
        .unwrap();
    group.commit(&stream, 0, Offset::new(2)).unwrap();
    log.close();
}

#[test]
fn handles_are_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Log>();
    shared::<eventlog::Stream>();
    shared::<eventlog::Group>();
    shared::<Arc<AppendError>>();
    sent::<eventlog::Reader>();
}
