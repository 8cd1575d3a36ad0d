//! The writer, turn by turn and without its thread, on a disk that fails, crashes and loses power.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use tempfile::TempDir;

use crate::batch::{Batch, RecordId};
use crate::compaction::Pace;
use crate::disk::Disk;
use crate::disk::faults::{Call, EIO, ENOSPC, Faults, PowerCut, segments};
use crate::error::{OpenError, StallError};
use crate::event::{Condition, Event};
use crate::frame::{FrameReader, Step};
use crate::journal::Journal;
use crate::options::{Durability, Options};
use crate::queue::Shared;
use crate::recovered::Recovered;
use crate::recovery::{self, RecoveryReport};
use crate::segment::{Found, HEADER, Header, Segment};
use crate::writer::Writer;

type State = BTreeMap<u64, Vec<u8>>;

fn small() -> Options {
    Options {
        segment_bytes: 4096,
        retry_pause: std::time::Duration::ZERO,
        ..Options::default()
    }
}

/// What is in a directory, and the report about it.
fn read(dir: &Path) -> (State, RecoveryReport) {
    let disk = Disk::open(dir, Durability::Fsync).unwrap();
    disk.faults.simulate();
    let found = recovery::recover(&disk).unwrap();
    let shared = Shared::new(0, found.chain).into();
    let mut state = State::new();
    Recovered::new(shared, found.report.clone(), found.max_id)
        .for_each(|id, value| assert_eq!(state.insert(id.0, value.to_vec()), None, "{id:?} twice"))
        .unwrap();
    assert!(state.keys().next_back().copied() <= found.max_id.map(|id| id.0));
    assert_eq!(found.report.records, state.len() as u64);
    (state, found.report)
}

fn copy_of(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for path in segments(dir) {
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

struct World {
    dir: TempDir,
    faults: Faults,
    writer: Writer,
    /// The state after each batch; what must be found is one of them.
    states: Vec<State>,
    /// Batches that are durable.
    durable: usize,
}

impl World {
    fn new() -> World {
        World::with(small())
    }

    fn with(options: Options) -> World {
        World::open(tempfile::tempdir().unwrap(), options, vec![State::new()])
    }

    fn open(dir: TempDir, options: Options, states: Vec<State>) -> World {
        let disk = Disk::open(dir.path(), Durability::Fsync).unwrap();
        let faults = disk.faults.clone();
        faults.simulate();
        let found = recovery::recover(&disk).unwrap();
        World {
            dir,
            faults,
            writer: Writer::new(options, disk, found.chain, found.head),
            durable: states.len() - 1,
            states,
        }
    }

    /// Batches are written in the notation `"+1 +2=text -1"`.
    fn submit(&mut self, batch: &str) {
        let mut state = self.states.last().unwrap().clone();
        let mut wire = Batch::new();
        for word in batch.split_whitespace() {
            let (sign, rest) = word.split_at(1);
            let (id, value) = rest.split_once('=').unwrap_or((rest, rest));
            let id = id.parse().unwrap();
            if sign == "+" {
                wire.put(RecordId(id), value.as_bytes());
                state.insert(id, value.as_bytes().to_vec());
            } else {
                wire.delete(RecordId(id));
                state.remove(&id);
            }
        }
        self.writer.waiting.push_back(wire);
        self.states.push(state);
    }

    fn turn_at(&mut self, pace: Pace) -> Result<(), StallError> {
        let before = self.durable as u64;
        if let Some(done) = self.writer.turn(pace)? {
            assert!(done.position.get() > before);
            self.durable = done.position.get() as usize;
        }
        self.writer.delete_dead_files();
        Ok(())
    }

    fn turn(&mut self) -> Result<(), StallError> {
        self.turn_at(Pace::Busy)
    }

    fn commit(&mut self, batch: &str) {
        self.submit(batch);
        self.turn().unwrap();
    }

    fn segments(&self) -> Vec<PathBuf> {
        segments(self.dir.path())
    }

    /// All that was submitted is there after a restart, and nothing else.
    fn check(&mut self) {
        assert_eq!(self.durable, self.states.len() - 1);
        let copy = copy_of(self.dir.path());
        let (state, report) = read(copy.path());
        assert_eq!(&state, self.states.last().unwrap());
        assert_eq!(report.torn_tail, None);
    }
}

#[test]
fn a_failed_write_is_taken_back_and_the_segment_goes_on() {
    let mut world = World::new();
    world.commit("+1");
    for errno in [ENOSPC, EIO] {
        world.faults.fail(Call::Write, errno);
        let before = fs::metadata(&world.segments()[0]).unwrap().len();
        world.submit("+2 -1");
        let error = world.turn().unwrap_err();
        assert_eq!(
            matches!(error, StallError::DiskFull { .. }),
            errno == ENOSPC,
            "{error}"
        );
        let after = fs::metadata(&world.segments()[0]).unwrap().len();
        assert_eq!(after, before, "taken back");
        assert_eq!(world.durable + 1, world.states.len() - 1);
        world.turn().unwrap();
        world.check();
        world.commit("+1 -2");
    }
    assert_eq!(world.segments().len(), 1);
    world.check();
}

#[test]
fn a_write_that_can_not_be_taken_back_leaves_the_segment() {
    let mut world = World::new();
    world.commit("+1");
    world.faults.fail(Call::Write, EIO);
    world.faults.fail(Call::Truncate, EIO);
    world.submit("+2");
    world.turn().unwrap_err();
    world.turn().unwrap();
    world.commit("+3");
    assert_eq!(world.segments().len(), 2);
    world.check();
}

#[test]
fn after_a_failed_sync_the_segment_is_left_and_its_tail_never_counts() {
    let mut world = World::new();
    world.commit("+1");
    world.faults.fail(Call::Sync, EIO);
    // The whole frame stays in the file, good to look at.
    world.faults.fail(Call::Truncate, EIO);
    world.submit("+2=never");
    world.turn().unwrap_err();
    let left = world.segments().pop().unwrap();
    assert_eq!(
        fs::metadata(&left).unwrap().len(),
        HEADER + 29 + 16 + 12 + 5
    );
    world.submit("-2 +3");
    world.turn().unwrap();
    world.turn().unwrap();
    assert_eq!(world.segments().len(), 2);
    world.check();
    // Whatever is there.
    fs::OpenOptions::new()
        .write(true)
        .open(left)
        .unwrap()
        .write_all_at(&[0x55; 100], HEADER + 29)
        .unwrap();
    world.check();
}

#[test]
fn while_the_disk_stays_broken_everything_is_kept_and_then_written() {
    let mut world = World::new();
    world.commit("+1");
    world.submit("+2");
    for call in [Call::Sync, Call::Create, Call::Write, Call::SyncNames] {
        world.faults.fail(call, EIO);
        world.turn().unwrap_err();
        world.submit("+3 -1 +1");
    }
    world.turn().unwrap();
    world.turn().unwrap();
    world.commit("-1");
    world.check();
}

#[test]
fn what_failed_attempts_left_goes_before_the_files_they_followed() {
    let mut world = World::new();
    world.commit("+1 +2");
    // 1 is left, 2 and 3 are attempts whose files stay, 4 works.
    world.faults.fail(Call::Sync, EIO);
    world.submit("+3");
    world.turn().unwrap_err();
    for _ in 0..2 {
        world.faults.fail(Call::SyncNames, EIO);
        world.turn().unwrap_err();
    }
    world.turn().unwrap();
    assert_eq!(world.segments().len(), 4);
    world.check();
    // Nothing lives in 1 now, but first 2 and 3 cannot be deleted.
    world.faults.break_down(Some((Call::Remove, EIO)));
    world.commit("-1 -2");
    assert_eq!(world.segments().len(), 4);
    world.check();
    world.faults.break_down(None);
    world.commit("+4");
    assert_eq!(world.segments().len(), 1);
    world.check();
}

#[test]
fn on_a_full_disk_dead_files_make_room() {
    let mut world = World::new();
    world.commit(&format!("+1={}", "x".repeat(4000)));
    // A copy of 1 leaves the first file, but the deletion fails.
    world.faults.break_down(Some((Call::Remove, EIO)));
    world.commit(&format!("+1={}", "y".repeat(4000)));
    assert_eq!(world.segments().len(), 2);
    world.faults.break_down(None);
    world.faults.fail(Call::Write, ENOSPC);
    world.submit("+2");
    world.turn().unwrap_err();
    assert_eq!(world.segments().len(), 1);
    world.turn().unwrap();
    world.check();
}

#[test]
fn a_put_deleted_in_its_group_is_not_written() {
    let mut world = World::new();
    world.submit("+1 +2");
    world.submit("-1");
    world.submit("-2 -3");
    world.turn().unwrap();
    assert_eq!(world.durable, 3, "durable without a write");
    let file = world.segments().pop().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().len(), HEADER);

    world.commit("+1=old");
    world.submit("+1=new");
    world.submit("+2=a +2=b");
    world.submit("-1 +4");
    world.submit("-4 +4=again");
    let before = fs::metadata(&file).unwrap().len();
    world.turn().unwrap();
    // A tombstone for 1, the last 2, the last 4.
    let written = fs::metadata(&file).unwrap().len() - before;
    assert_eq!(written, 16 + 12 + 13 + 17);
    world.check();
}

#[test]
fn cut_at_any_frame_the_log_is_the_state_after_some_batch() {
    let mut world = World::with(Options::default());
    // The state on disk after each frame is the state after the group's last batch.
    let mut after_frames = vec![State::new()];
    let mut dice = Dice(7);
    for _ in 0..60 {
        let length = fs::metadata(&world.segments()[0]).unwrap().len();
        for _ in 0..1 + dice.below(5) {
            let batch = dice.batch(6, 6);
            world.submit(&batch);
        }
        world.turn().unwrap();
        if fs::metadata(&world.segments()[0]).unwrap().len() > length {
            after_frames.push(world.states.last().unwrap().clone());
        } else {
            // Nothing was written: the group comes to nothing.
            assert_eq!(after_frames.last(), world.states.last());
        }
    }
    assert!(after_frames.len() > 20);
    let path = world.segments()[0].clone();
    let ends = frame_ends(&path);
    for (end, state) in ends.iter().zip(&after_frames) {
        let dir = tempfile::tempdir().unwrap();
        let cut = dir.path().join(path.file_name().unwrap());
        fs::copy(&path, &cut).unwrap();
        let file = fs::OpenOptions::new().write(true).open(cut).unwrap();
        file.set_len(*end).unwrap();
        assert_eq!(&read(dir.path()).0, state);
    }
}

/// Where each frame of a file ends, the header first.
fn frame_ends(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let Found::Header(header) = Header::decode(bytes.first_chunk().unwrap()) else {
        panic!("a header");
    };
    let file = fs::File::open(path).unwrap();
    let limit = bytes.len() as u64;
    let mut reader = FrameReader::new(file, header.salt, HEADER, limit, header.first_sequence);
    let mut ends = vec![HEADER];
    while reader.advance().unwrap() == Step::Frame {
        ends.push(reader.at());
    }
    ends
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    fn batch(&mut self, ids: u64, operations: u64) -> String {
        let mut batch = String::new();
        for _ in 0..1 + self.below(operations) {
            let id = self.below(ids);
            match self.below(3) {
                0 => batch += &format!("-{id} "),
                _ => {
                    let letter = (b'a' + self.below(26) as u8) as char;
                    let value = String::from(letter).repeat(self.below(300) as usize);
                    batch += &format!("+{id}={value} ");
                }
            }
        }
        batch
    }
}

/// A life with rolls and compaction; ends with the first error. `false`: it came to the end.
fn live(world: &mut World, seed: u64) -> bool {
    let mut dice = Dice(seed);
    for round in 0..24 {
        for _ in 0..1 + dice.below(4) {
            let batch = dice.batch(30, 8);
            world.submit(&batch);
        }
        if world.turn().is_err() {
            return true;
        }
        if round % 8 == 7 {
            for _ in 0..5 {
                if world.turn_at(Pace::Idle).is_err() {
                    return true;
                }
            }
        }
    }
    for batch in ["-0 -1 -2 -3 -4 -5 -6 -7 -8 -9", "+1=last"] {
        world.submit(batch);
        if world.turn().is_err() {
            return true;
        }
    }
    false
}

#[test]
fn a_crash_between_any_two_calls_leaves_the_state_after_some_batch() {
    let mut full = World::new();
    full.faults.crash_at(usize::MAX); // Never: counts.
    assert!(!live(&mut full, 1));
    full.check();
    let steps = full.faults.steps();
    for call in [Call::Create, Call::Remove, Call::SyncNames, Call::Sync] {
        let count = steps.iter().filter(|&&step| step == call).count();
        assert!(count > 5, "{call:?} only {count} times");
    }

    let mut torn = 0;
    for (at, call) in steps.iter().enumerate() {
        for how in [
            PowerCut::Spared,
            PowerCut::Lost,
            PowerCut::Reordered,
            PowerCut::Half,
            PowerCut::Zeroed,
            PowerCut::ZeroedAhead,
        ] {
            let mut world = World::new();
            world.faults.crash_at(at);
            live(&mut world, 1);
            world.faults.cut_power(world.dir.path(), how);
            let context = format!("step {at} ({call:?}), {how:?}");
            let World {
                dir,
                states,
                durable,
                ..
            } = world;
            let (state, report) = read(dir.path());
            torn += usize::from(report.torn_tail.is_some());
            let found = states.iter().rposition(|possible| *possible == state);
            let found = found.unwrap_or_else(|| panic!("{context}: no state after a batch"));
            assert!(
                found >= durable,
                "{context}: the state after batch {found}, {durable} were durable"
            );
            // And it goes on from there.
            let mut world = World::open(dir, small(), vec![state]);
            world.commit("+100 -1");
            world.commit("+101 -2 +2=two");
            for _ in 0..10 {
                world.turn_at(Pace::Idle).unwrap();
            }
            world.check();
        }
    }
    assert!(torn > 50, "only {torn} torn tails");
}

#[test]
fn one_error_at_any_call_loses_nothing() {
    let mut full = World::new();
    full.faults.crash_at(usize::MAX); // Never: counts.
    live(&mut full, 2);
    let calls = [
        Call::Create,
        Call::Write,
        Call::Sync,
        Call::Truncate,
        Call::Remove,
        Call::SyncNames,
    ];
    let mut dice = Dice(3);
    for round in 0..60 {
        let mut world = World::new();
        let mut errors = 0;
        let mut dice_of_life = Dice(round);
        for _ in 0..60 {
            for _ in 0..dice.below(3) {
                world.faults.fail(
                    calls[dice.below(6) as usize],
                    [EIO, ENOSPC][dice.below(2) as usize],
                );
            }
            let batch = dice_of_life.batch(30, 8);
            world.submit(&batch);
            errors += u32::from(world.turn().is_err());
        }
        while world.durable < world.states.len() - 1 {
            errors += u32::from(world.turn().is_err());
        }
        assert!(errors > 10);
        world.check();
        // And what compaction had begun when something failed, it finishes.
        world.faults.recover();
        for _ in 0..200 {
            world.turn_at(Pace::Idle).unwrap();
        }
        let stats = world.writer.stats();
        assert!(!stats.compaction_stopped);
        assert!(stats.disk_bytes <= 2 * stats.live_bytes + 4096, "{stats:?}");
        world.check();
    }
}

#[test]
fn a_compaction_that_cannot_read_stops_and_commits_go_on() {
    let mut world = World::new();
    world.commit(&format!("+1={} +2", "x".repeat(3000)));
    let first = world.segments()[0].clone();
    let file = fs::OpenOptions::new().write(true).open(&first).unwrap();
    file.write_all_at(b"?", HEADER + 100).unwrap();
    for n in 0..20 {
        world.commit(&format!("+3={}", "y".repeat(3000 + n)));
    }
    assert!(world.writer.stats().compaction_stopped);
    assert!(first.exists());
    let disk = Disk::open(world.dir.path(), Durability::Fsync).unwrap();
    let error = recovery::recover(&disk).err().unwrap();
    assert!(
        matches!(&error, OpenError::Damaged { file, at: HEADER, .. } if *file == first),
        "{error}"
    );
}

#[test]
fn todays_writer_writes_the_bytes_of_the_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), Durability::Fsync).unwrap();
    let header = Header {
        salt: 0x6d70_6a31,
        number: 1,
        previous: None,
        first_sequence: 1,
    };
    Segment::create(&disk, header).unwrap();
    let mut world = World::open(dir, small(), vec![State::new()]);
    world.submit("+1=one +2=two");
    world.submit("+3= -2");
    world.turn().unwrap();
    world.commit("+18446744073709551615=last -1");
    let mut binary = Batch::with_capacity(300);
    binary.put_with(RecordId(4), |out| out.extend(0..=255));
    world.writer.waiting.push_back(binary);
    world.turn().unwrap();
    let written = fs::read(world.segments().pop().unwrap()).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/version-1.segment");
    assert_eq!(written, fs::read(fixture).unwrap());
}

#[test]
fn a_stalled_journal_says_so_once_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), Durability::Fsync).unwrap();
    let faults = disk.faults.clone();
    let (told, tell) = channel();
    let (journal, recovered) =
        Journal::open_on(disk, small(), move |event| told.send(event).unwrap()).unwrap();
    drop(recovered);
    let put = |id| {
        let mut batch = Batch::new();
        batch.put(RecordId(id), b"value");
        journal.submit(batch)
    };
    let first = put(1);
    assert!(matches!(tell.recv().unwrap(), Event::Durable(at) if at == first));

    faults.break_down(Some((Call::Sync, EIO)));
    put(2);
    let Event::Stalled(error) = tell.recv().unwrap() else {
        panic!("stalled");
    };
    assert!(error.to_string().contains("syncing"), "{error}");
    assert_eq!(journal.condition(), Condition::Stalled);
    let last = put(3);
    assert_eq!(journal.durable(), first);
    faults.break_down(None);
    assert!(matches!(tell.recv().unwrap(), Event::Resumed));
    assert_eq!(journal.condition(), Condition::Ready);
    loop {
        match tell.recv().unwrap() {
            Event::Durable(at) if at == last => break,
            Event::Durable(_) => {}
            other => panic!("{other:?}"),
        }
    }
    journal.close().unwrap();
    assert_eq!(
        read(dir.path()).0.into_keys().collect::<Vec<_>>(),
        [1, 2, 3]
    );
}

#[test]
fn closing_on_a_broken_disk_ends_and_says_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), Durability::Fsync).unwrap();
    disk.faults.break_down(None);
    let faults = disk.faults.clone();
    let (journal, _) = Journal::open_on(disk, small(), |_| {}).unwrap();
    faults.break_down(Some((Call::Write, ENOSPC)));
    for id in 1..=2 {
        let mut batch = Batch::new();
        batch.put(RecordId(id), b"value");
        journal.submit(batch);
    }
    let error = journal.close().unwrap_err();
    assert_eq!((error.batches, error.bytes), (2, 2 * 17));
    assert!(matches!(&*error.source, StallError::DiskFull { .. }));
    assert_eq!(read(dir.path()).0, State::new());
}

#[test]
fn a_queue_of_the_writer_empties_in_bounded_groups() {
    let mut world = World::new();
    let mut batches = VecDeque::new();
    for id in 0..40 {
        let mut batch = Batch::new();
        batch.put(RecordId(id), &vec![id as u8; 1 << 20]);
        batches.push_back(batch);
    }
    world.writer.waiting = batches;
    let mut turns = 0;
    while !world.writer.waiting.is_empty() {
        let before = world.writer.waiting.len();
        world.writer.turn(Pace::Busy).unwrap();
        assert!(before - world.writer.waiting.len() <= 8);
        turns += 1;
    }
    assert!(turns >= 5);
    assert_eq!(read(copy_of(world.dir.path()).path()).0.len(), 40);
}
