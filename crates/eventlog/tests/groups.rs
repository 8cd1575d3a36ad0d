//! Consumer groups: committed offsets survive, unfinished commits do not.

mod common;

use std::fs;

use common::*;
use eventlog::{GroupError, Offset, StreamConfig};

#[test]
fn a_committed_offset_survives_reopening_and_may_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let stream = log
        .stream("raw.telemetry", StreamConfig::default())
        .unwrap();
    let group = log.group("archiver").unwrap();
    assert_eq!(group.committed(&stream, 0), None);
    group.commit(&stream, 0, Offset::new(7)).unwrap();
    group
        .commit_all([
            ("raw.telemetry", 0, Offset::new(5)),
            ("other", 3, Offset::new(9)),
        ])
        .unwrap();
    log.close();

    let (log, report) = open(dir.path());
    assert!(report.is_clean());
    let again = log.group("archiver").unwrap();
    assert_eq!(again.committed("raw.telemetry", 0), Some(Offset::new(5)));
    assert_eq!(again.committed("other", 3), Some(Offset::new(9)));
    assert_eq!(again.committed("other", 0), None);
    assert_eq!(log.group("somebody-else").unwrap().all_committed(), []);
    assert!(matches!(
        again.commit("a/b", 0, Offset::ZERO),
        Err(GroupError::StreamName { .. })
    ));
    assert!(
        matches!(group.commit("s", 0, Offset::ZERO), Err(GroupError::Closed)),
        "a handle of the closed log"
    );
}

#[test]
fn a_commit_torn_at_any_byte_is_as_if_it_had_not_been() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let group = log.group("g").unwrap();
    group.commit("s", 0, Offset::new(1)).unwrap();
    let file = dir.path().join("groups/g.offsets");
    let before = fs::read(&file).unwrap().len();
    group
        .commit_all([("s", 0, Offset::new(2)), ("s", 1, Offset::new(2))])
        .unwrap();
    log.close();
    let whole = fs::read(&file).unwrap();

    for length in before..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        let (log, report) = open(dir.path());
        let torn: Vec<_> = report
            .torn_groups
            .iter()
            .map(|torn| (torn.group.as_str(), torn.bytes))
            .collect();
        let expected = if length == before {
            vec![]
        } else {
            vec![("g", (length - before) as u64)]
        };
        assert_eq!(torn, expected, "cut to {length} bytes");
        let group = log.group("g").unwrap();
        assert_eq!(group.all_committed(), [("s".to_owned(), 0, Offset::new(1))]);
        group.commit("s", 1, Offset::new(3)).unwrap();
        log.close();
        let (log, report) = open(dir.path());
        assert!(report.is_clean());
        assert_eq!(
            log.group("g").unwrap().committed("s", 1),
            Some(Offset::new(3))
        );
    }
    for position in before..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 1;
        fs::write(&file, bytes).unwrap();
        let (log, _) = open(dir.path());
        assert_eq!(
            log.group("g").unwrap().committed("s", 0),
            Some(Offset::new(1)),
            "byte {position} flipped"
        );
    }
}

#[test]
fn the_file_stays_small_however_often_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let group = log.group("g").unwrap();
    let streams: Vec<_> = (0..40)
        .map(|n| format!("a-stream-with-a-rather-long-name-{n}"))
        .collect();
    for round in 0..100 {
        group
            .commit_all(streams.iter().map(|stream| (stream, 0, Offset::new(round))))
            .unwrap();
        let size = fs::metadata(dir.path().join("groups/g.offsets"))
            .unwrap()
            .len();
        assert!(size < 70_000, "{size} bytes after round {round}");
    }
    log.close();
    let (log, _) = open(dir.path());
    let all = log.group("g").unwrap().all_committed();
    assert_eq!(all.len(), 40);
    assert!(all.iter().all(|(_, _, offset)| offset.get() == 99));
}

#[test]
fn a_group_file_of_another_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    log.close();
    fs::write(dir.path().join("groups/g.offsets"), "MPGROUP\x02").unwrap();
    let error = eventlog::Log::open(dir.path(), Default::default()).unwrap_err();
    assert!(error.to_string().contains("g.offsets"), "{error}");
}
