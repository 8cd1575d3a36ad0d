//! Crashes and damage: what is cut, what is kept, and that it is said.

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;

use common::*;
use eventlog::{ReadError, ReadFrom, StreamConfig};

fn flip(path: &std::path::Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_last_batch_torn_at_any_byte_is_cut_and_everything_before_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    append(&stream, 0, &["one", "two"]);
    append(&stream, 0, &["three"]);
    append(&stream, 0, &["torn", "torn too"]);
    log.close();
    let file = &segments(dir.path(), "s", 0)[0];
    let whole = fs::read(file).unwrap();
    let last = batch_starts(&whole)[2];

    for length in last..whole.len() {
        fs::write(file, &whole[..length]).unwrap();
        let (log, report) = open(dir.path());
        let stream = log.stream("s", StreamConfig::default()).unwrap();
        if length == last {
            assert!(report.is_clean(), "cut between batches: {report}");
        } else {
            let torn = &report.torn_tails[0];
            assert_eq!(
                (
                    torn.stream.as_str(),
                    torn.partition,
                    torn.position,
                    torn.bytes,
                    torn.offset.get()
                ),
                ("s", 0, last as u64, (length - last) as u64, 3),
                "cut to {length} bytes"
            );
            assert_eq!(
                torn.set_aside, None,
                "the beginning of one write needs no copy"
            );
        }
        assert_eq!(values(&stream, 0), ["one", "two", "three"]);
        assert_eq!(append(&stream, 0, &["next"]).get(), 3);
        assert_eq!(values(&stream, 0), ["one", "two", "three", "next"]);
        log.close();
    }
}

#[test]
fn every_flipped_byte_of_the_last_batch_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    append(&stream, 0, &["one"]);
    append(&stream, 0, &["damaged"]);
    log.close();
    let file = &segments(dir.path(), "s", 0)[0];
    let whole = fs::read(file).unwrap();

    for position in batch_starts(&whole)[1]..whole.len() {
        fs::write(file, &whole).unwrap();
        flip(file, position);
        let (log, report) = open(dir.path());
        assert_eq!(report.torn_tails.len(), 1, "byte {position}");
        assert_eq!(
            values(&log.stream("s", StreamConfig::default()).unwrap(), 0),
            ["one"],
            "byte {position}"
        );
    }
}

#[test]
fn garbage_behind_the_last_batch_is_cut_but_a_copy_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    append(
        &log.stream("s", StreamConfig::default()).unwrap(),
        0,
        &["one"],
    );
    log.close();
    let file = &segments(dir.path(), "s", 0)[0];
    let garbage = vec![0xa5; 5000];
    OpenOptions::new()
        .append(true)
        .open(file)
        .unwrap()
        .write_all(&garbage)
        .unwrap();

    let (log, report) = open(dir.path());
    assert_eq!(report.torn_tails[0].bytes, 5000);
    let copy = report.torn_tails[0]
        .set_aside
        .as_ref()
        .expect("not the beginning of a write");
    assert_eq!(fs::read(copy).unwrap(), garbage);
    assert_eq!(
        values(&log.stream("s", StreamConfig::default()).unwrap(), 0),
        ["one"]
    );
    log.close();
    assert!(open(dir.path()).1.is_clean(), "repaired once and for all");
}

#[test]
fn damage_before_acknowledged_records_cuts_nothing_and_is_passed_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    for batch in [["a0", "a1"], ["b0", "b1"], ["c0", "c1"]] {
        append(&stream, 0, &batch);
    }
    log.close();
    let file = &segments(dir.path(), "s", 0)[0];
    let whole = fs::read(file).unwrap();
    let starts = batch_starts(&whole);

    for position in starts[1]..starts[2] {
        fs::write(file, &whole).unwrap();
        for later in &segments(dir.path(), "s", 0)[1..] {
            fs::remove_file(later).unwrap();
        }
        flip(file, position);
        let (log, report) = open(dir.path());
        assert!(report.torn_tails.is_empty(), "byte {position}: {report}");
        let damage = &report.damaged[0];
        assert_eq!(
            (damage.position, damage.from.get(), damage.to.get()),
            (starts[1] as u64, 2, 4),
            "byte {position}"
        );

        let stream = log.stream("s", StreamConfig::default()).unwrap();
        let mut reader = stream.reader(0, ReadFrom::Earliest);
        assert_eq!(
            reader.skip_corrupt().unwrap().get(),
            0,
            "nothing to skip yet"
        );
        let before = reader.read(10, 1 << 20, None).unwrap();
        assert_eq!(before.iter().map(value).collect::<Vec<_>>(), ["a0", "a1"]);
        for _ in 0..2 {
            let error = reader.read(10, 1 << 20, None).unwrap_err();
            assert!(
                matches!(&error, ReadError::Corrupt { segment, position, offset, .. }
                    if segment == file && *position == starts[1] as u64 && offset.get() == 2),
                "byte {position}: {error}"
            );
        }
        assert_eq!(reader.skip_corrupt().unwrap().get(), 4);
        assert_eq!(append(&stream, 0, &["d0"]).get(), 6);
        assert_eq!(
            drain(&mut reader)
                .unwrap()
                .iter()
                .map(value)
                .collect::<Vec<_>>(),
            ["c0", "c1", "d0"]
        );
    }
}

#[test]
fn damage_in_sealed_segments_is_found_by_reading_and_every_good_batch_stays_within_reach() {
    let dir = tempfile::tempdir().unwrap();
    let config = StreamConfig {
        segment_bytes: 64 << 10,
        ..StreamConfig::default()
    };
    let (log, _) = open(dir.path());
    let stream = log.stream("s", config.clone()).unwrap();
    let filler = "x".repeat(1000);
    for n in 0..300 {
        append(&stream, 0, &[&format!("{n} {filler}")]);
    }
    log.close();
    let files = segments(dir.path(), "s", 0);
    assert!(files.len() >= 4, "{files:?}");
    let starts = batch_starts(&fs::read(&files[1]).unwrap());
    let base: u64 = files[1]
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    // A header, a body, two neighbours, and the last batch of the segment.
    for (batch, inside) in [
        (3, 16),
        (10, 700),
        (30, 8),
        (31, 9),
        (starts.len() - 1, 500),
    ] {
        flip(&files[1], starts[batch] + inside);
    }

    let (log, report) = open(dir.path());
    assert!(
        report.is_clean(),
        "sealed segments are not scanned: {report}"
    );
    let stream = log.stream("s", config.clone()).unwrap();
    let mut reader = stream.reader(0, ReadFrom::Earliest);
    let (mut read, mut skips) = (Vec::new(), 0);
    loop {
        match reader.read(7, 1 << 20, None) {
            Ok(some) if some.is_empty() => break,
            Ok(some) => read.extend(some.iter().map(|record| record.offset.get())),
            Err(ReadError::Corrupt { .. }) => {
                reader.skip_corrupt().unwrap();
                skips += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let damaged = [3, 10, 30, 31, starts.len() as u64 - 1].map(|batch| base + batch);
    let expected: Vec<u64> = (0..300)
        .filter(|offset| !damaged.contains(offset))
        .collect();
    assert_eq!(read, expected);
    assert_eq!(skips, 4, "two neighbours are one damaged place");
}

#[test]
fn a_batch_hidden_in_a_payload_is_never_taken_for_a_record() {
    // Somebody sends the bytes of a valid batch, then the power fails while it is written.
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    append(&stream, 0, &["one"]);
    append(&stream, 0, &["two"]);
    append(&stream, 0, &["forged"]);
    log.close();
    let file = &segments(dir.path(), "s", 0)[0];
    let bytes = fs::read(file).unwrap();
    let forged = bytes[batch_starts(&bytes)[2]..].to_vec();
    fs::write(file, &bytes[..batch_starts(&bytes)[1]]).unwrap();

    let (log, _) = open(dir.path());
    let stream = log.stream("s", StreamConfig::default()).unwrap();
    let smuggled = eventlog::NewRecord {
        value: forged.into(),
        ..record("")
    };
    stream.append_wait(0, smuggled).unwrap();
    log.close();
    let whole = fs::read(file).unwrap();
    let start = batch_starts(&whole)[1];
    for (position, length) in [
        (start, whole.len()),
        (start + 16, whole.len()),
        (start + 9, whole.len() - 1),
    ] {
        fs::write(file, &whole[..length]).unwrap();
        flip(file, position);
        let (log, report) = open(dir.path());
        assert_eq!((report.torn_tails.len(), report.damaged.len()), (1, 0));
        assert_eq!(
            values(&log.stream("s", StreamConfig::default()).unwrap(), 0),
            ["one"]
        );
    }
}

#[test]
fn a_missing_or_torn_index_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = StreamConfig {
        segment_bytes: 64 << 10,
        ..StreamConfig::default()
    };
    let (log, _) = open(dir.path());
    let stream = log.stream("s", config.clone()).unwrap();
    let filler = "x".repeat(500);
    for n in 0..300 {
        append(&stream, 0, &[&format!("{n} {filler}")]);
    }
    log.close();
    let index = segments(dir.path(), "s", 0)[0].with_extension("index");
    let good = fs::read(&index).unwrap();
    assert!(good.len() > 20, "it has entries");

    for broken in [None, Some(&good[..good.len() / 2]), Some(&b"nonsense"[..])] {
        match broken {
            None => fs::remove_file(&index).unwrap(),
            Some(bytes) => fs::write(&index, bytes).unwrap(),
        }
        let (log, _) = open(dir.path());
        let stream = log.stream("s", config.clone()).unwrap();
        for wanted in [0u64, 1, 50, 99] {
            let read = stream
                .reader(0, ReadFrom::At(wanted.into()))
                .read(1, 1, None)
                .unwrap();
            assert_eq!((read.len(), read[0].offset.get()), (1, wanted));
        }
        assert_eq!(fs::read(&index).unwrap(), good);
    }
}
