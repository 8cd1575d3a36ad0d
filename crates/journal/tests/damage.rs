//! Files that are not as they were left: what is cut, what is refused, what is said.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::*;
use journal::{Journal, OpenError, Options, TornTail};

/// A journal of five frames in one file. Returns where each frame begins and the last one ends.
fn five_frames(dir: &Path) -> (PathBuf, Vec<u64>) {
    let open = open(dir, Options::default());
    let mut ends = vec![disk_bytes(dir)];
    for id in 1..=5 {
        open.commit(put(id, format!("value {id}").as_bytes()));
        ends.push(disk_bytes(dir));
    }
    open.journal.close().unwrap();
    (segments(dir).pop().unwrap(), ends)
}

fn refusal(dir: &Path) -> OpenError {
    match Journal::open(dir, Options::default(), |_| {}) {
        Ok((_, recovered)) => panic!("opened: {}", recovered.report()),
        Err(error) => error,
    }
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ends) = five_frames(dir.path());
    let (begin, end) = (ends[4], ends[5]);
    for length in begin..end {
        let copy = copy_of(dir.path());
        let torn = copy.path().join(path.file_name().unwrap());
        let file = OpenOptions::new().write(true).open(&torn).unwrap();
        file.set_len(length).unwrap();
        let first = open(copy.path(), Options::default());
        let expected = (length > begin).then(|| TornTail {
            segment: torn.clone(),
            at: begin,
            bytes: length - begin,
        });
        assert_eq!(first.report.torn_tail, expected);
        assert_eq!(
            first.found.keys().copied().collect::<Vec<_>>(),
            [1, 2, 3, 4]
        );
        first.commit(put(6, b"after"));
        first.journal.close().unwrap();
        let again = open(copy.path(), Options::default());
        assert_eq!(again.report.torn_tail, None);
        assert_eq!(
            again.found.keys().copied().collect::<Vec<_>>(),
            [1, 2, 3, 4, 6]
        );
    }
}

#[test]
fn a_last_frame_with_any_byte_changed_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ends) = five_frames(dir.path());
    for at in ends[4]..ends[5] {
        let copy = copy_of(dir.path());
        flip(&copy.path().join(path.file_name().unwrap()), at);
        let open = open(copy.path(), Options::default());
        assert_eq!(open.report.torn_tail.unwrap().bytes, ends[5] - ends[4]);
        assert_eq!(open.found.len(), 4);
    }
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_changed_byte_before_the_last_frame_is_refused_by_name_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ends) = five_frames(dir.path());
    for at in 0..ends[4] {
        let copy = copy_of(dir.path());
        let path = copy.path().join(path.file_name().unwrap());
        flip(&path, at);
        let before = fs::read(&path).unwrap();
        let error = refusal(copy.path());
        assert_eq!(fs::read(&path).unwrap(), before);
        match &error {
            // The four bytes of the version.
            OpenError::Version { file, .. } if (8..12).contains(&at) => assert_eq!(*file, path),
            OpenError::Damaged { file, at: said, .. } => {
                let begin = ends.iter().rev().find(|&&end| end <= at).unwrap_or(&0);
                assert_eq!((file, said), (&path, begin), "byte {at}");
                assert!(error.to_string().contains("restore"), "{error}");
            }
            _ => panic!("{error}"),
        }
    }
}

/// A journal of several files, all of them needed.
fn several_files(dir: &Path) -> Vec<PathBuf> {
    let open = open(dir, small());
    for id in 0..40 {
        open.commit(put(id, &[id as u8; 700]));
    }
    open.journal.close().unwrap();
    let files = segments(dir);
    assert!(files.len() >= 5);
    files
}

#[test]
fn damage_anywhere_in_a_file_with_a_successor_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = several_files(dir.path());
    for file in &files[..files.len() - 1] {
        for at in [20, 64, 100, 1000, fs::metadata(file).unwrap().len() - 1] {
            let copy = copy_of(dir.path());
            let path = copy.path().join(file.file_name().unwrap());
            flip(&path, at);
            let error = refusal(copy.path());
            assert!(
                matches!(&error, OpenError::Damaged { file, .. } if *file == path),
                "{error}"
            );
        }
        let copy = copy_of(dir.path());
        let path = copy.path().join(file.file_name().unwrap());
        let short = fs::metadata(file).unwrap().len() - 1;
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(short)
            .unwrap();
        let error = refusal(copy.path());
        assert!(
            matches!(&error, OpenError::Damaged { file, .. } if *file == path),
            "{error}"
        );
    }
}

#[test]
fn a_file_missing_between_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = several_files(dir.path());
    for file in &files[1..files.len() - 1] {
        let copy = copy_of(dir.path());
        let path = copy.path().join(file.file_name().unwrap());
        fs::remove_file(&path).unwrap();
        let error = refusal(copy.path());
        assert!(
            matches!(&error, OpenError::Missing { file } if *file == path),
            "{error}"
        );
    }
}

#[test]
fn a_file_begun_by_a_crash_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let files = several_files(dir.path());
    let next = dir
        .path()
        .join(format!("{:020}.segment", files.len() as u64 + 1));
    for length in [0, 1, 63, 64] {
        fs::write(&next, vec![0; length]).unwrap();
        let open = open(dir.path(), small());
        assert_eq!(open.report.torn_tail, None);
        assert_eq!(open.found.len(), 40);
        assert!(!next.exists());
    }
    // But not one in which something was written.
    fs::write(&next, vec![0; 65]).unwrap();
    let error = refusal(dir.path());
    assert!(
        matches!(&error, OpenError::Damaged { file, at: 0, .. } if *file == next),
        "{error}"
    );
}

#[test]
fn a_later_format_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = five_frames(dir.path());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&2u32.to_le_bytes(), 8).unwrap();
    let error = refusal(dir.path());
    assert!(
        matches!(&error, OpenError::Version { found: 2, .. }),
        "{error}"
    );
}

/// Frozen: files of format 1 are read for ever. The bytes were written by the first release;
/// `failing_disk.rs` checks that today's writer makes the same.
#[test]
fn format_version_1_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/version-1.segment");
    let path = dir.path().join("00000000000000000001.segment");
    fs::copy(kept, path).unwrap();
    let open = open(dir.path(), Options::default());
    let expected = State::from([
        (3, Vec::new()),
        (4, (0..=255).collect()),
        (u64::MAX, b"last".to_vec()),
    ]);
    assert_eq!(open.found, expected);
    assert_eq!(open.report.torn_tail, None);
}
