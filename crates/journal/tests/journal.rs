//! What whoever uses a journal sees of it.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::*;
use journal::{
    Batch, Condition, Durability, Event, GarbageRule, Journal, OpenError, Options, Position,
    RecordId,
};

#[test]
fn what_was_put_is_there_again_and_what_was_deleted_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made/with/parents");
    let first = open(&dir, Options::default());
    assert!(first.found.is_empty());
    assert_eq!(first.journal.durable(), Position::START);
    first.commit(put(1, b"one"));
    first.commit(put(2, b"two"));
    let mut batch = put(3, b"three");
    batch.delete(RecordId(1));
    batch.put(RecordId(2), b"TWO");
    first.commit(batch);
    assert_eq!(first.journal.durable(), Position::new(3));
    first.journal.close().unwrap();

    let (journal, recovered) = Journal::open(&dir, Options::default(), |_| {}).unwrap();
    assert_eq!(recovered.max_id(), Some(RecordId(3)));
    assert_eq!(recovered.report().records, 2);
    assert_eq!(recovered.report().torn_tail, None);
    assert_eq!(journal.durable(), Position::START, "positions start again");
    let state = drain(recovered);
    assert_eq!(
        state,
        State::from([(2, b"TWO".to_vec()), (3, b"three".to_vec())])
    );
}

#[test]
fn an_empty_batch_has_the_position_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let open = open(dir.path(), Options::default());
    assert_eq!(open.journal.submit(Batch::new()), Position::START);
    let position = open.journal.submit(put(1, b"x"));
    assert_eq!(open.journal.submit(Batch::new()), position);
    open.wait(position);
    assert_eq!(open.journal.stats().batches, 1);
}

#[test]
fn nobody_else_opens_the_directory_while_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovered) = Journal::open(dir.path(), Options::default(), |_| {}).unwrap();
    let error = Journal::open(dir.path(), Options::default(), |_| {}).unwrap_err();
    assert!(matches!(&error, OpenError::InUse { .. }));
    let process = format!("process {}", std::process::id());
    assert!(error.to_string().contains(&process), "{error}");
    drop(recovered);
    journal.close().unwrap();
    Journal::open(dir.path(), Options::default(), |_| {}).unwrap();
}

#[test]
fn options_out_of_range_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let defaults = Options::default;
    for (options, key) in [
        (
            Options {
                segment_bytes: 4095,
                ..defaults()
            },
            "segment_bytes = 4095",
        ),
        (
            Options {
                segment_bytes: (1 << 30) + 1,
                ..defaults()
            },
            "segment_bytes = 1073741825",
        ),
        (
            Options {
                compact_at: GarbageRule {
                    factor: 1,
                    ..GarbageRule::default()
                },
                ..defaults()
            },
            "compact_at.factor = 1",
        ),
    ] {
        let error = Journal::open(dir.path(), options, |_| {}).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn records_are_for_the_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    open(&dir, Options::default());
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn nothing_becomes_durable_before_the_recovered_records_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let before = open(dir.path(), Options::default());
    before.commit(put(1, b"old"));
    before.journal.close().unwrap();

    let (journal, recovered) = Journal::open(dir.path(), Options::default(), |_| {}).unwrap();
    journal.submit(put(1, b"new"));
    journal.submit(put(2, b"new"));
    assert_eq!(drain(recovered), State::from([(1, b"old".to_vec())]));
    journal.close().unwrap();
    assert_eq!(open(dir.path(), Options::default()).found.len(), 2);
}

#[test]
fn a_journal_closed_before_its_records_are_read_still_keeps_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovered) = Journal::open(dir.path(), Options::default(), |_| {}).unwrap();
    journal.submit(put(1, b"x"));
    journal.close().unwrap();
    assert!(recovered.for_each(|_, _| {}).is_err());
    assert_eq!(open(dir.path(), Options::default()).found.len(), 1);
}

#[test]
fn after_close_nothing_becomes_durable() {
    let dir = tempfile::tempdir().unwrap();
    let open = open(dir.path(), Options::default());
    let last = open.journal.submit(put(1, b"x"));
    open.journal.close().unwrap();
    assert_eq!(open.journal.durable(), last);
    let late = open.journal.submit(put(2, b"x"));
    assert!(late > open.journal.durable());
    open.journal.close().unwrap();
    assert_eq!(open.journal.durable(), last);
}

#[test]
fn dropping_it_makes_durable_what_was_submitted() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), Options::default());
    for id in 0..1000 {
        first.journal.submit(put(id, b"value"));
    }
    drop(first);
    assert_eq!(open(dir.path(), Options::default()).found.len(), 1000);
}

#[test]
fn a_listener_may_submit_and_hold_the_last_handle() {
    let dir = tempfile::tempdir().unwrap();
    let handle: Arc<std::sync::Mutex<Option<Journal>>> = Arc::default();
    let (told, tell) = std::sync::mpsc::channel();
    let held = handle.clone();
    let (journal, recovered) = Journal::open(dir.path(), Options::default(), move |event| {
        let mut held = held.lock().unwrap();
        match event {
            Event::Durable(at) if at == Position::new(1) => {
                let journal = held.as_ref().unwrap();
                journal.submit(put(2, b"from the listener"));
            }
            Event::Durable(_) => {
                drop(held.take());
                told.send(()).unwrap();
            }
            other => panic!("{other:?}"),
        }
    })
    .unwrap();
    drop(recovered);
    let mut slot = handle.lock().unwrap();
    journal.submit(put(1, b"x"));
    *slot = Some(journal);
    drop(slot);
    tell.recv().unwrap();
}

#[test]
fn a_listener_that_panics_does_not_stop_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (told, tell) = std::sync::mpsc::channel();
    let (journal, _) = Journal::open(dir.path(), Options::default(), move |event| {
        told.send(()).unwrap();
        panic!("{event:?}");
    })
    .unwrap();
    for id in 0..3 {
        journal.submit(put(id, b"x"));
        tell.recv().unwrap();
    }
    journal.close().unwrap();
    assert_eq!(open(dir.path(), Options::default()).found.len(), 3);
}

#[test]
fn more_than_the_limit_pending_is_behind_and_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        max_pending_bytes: 1000,
        ..Options::default()
    };
    let (told, tell) = std::sync::mpsc::channel();
    let (journal, recovered) = Journal::open(dir.path(), options, move |event| {
        let _ = told.send(event);
    })
    .unwrap();
    assert_eq!(journal.condition(), Condition::Ready);
    // Nothing is written while the recovered records are there.
    let mut last = Position::START;
    for id in 0..100 {
        last = journal.submit(put(id, &[7; 100]));
    }
    assert_eq!(journal.condition(), Condition::Behind);
    assert_eq!(journal.stats().pending_bytes, 100 * 112);
    drop(recovered);
    while journal.durable() < last {
        tell.recv().unwrap();
    }
    assert_eq!(journal.condition(), Condition::Ready);
    assert_eq!(journal.stats().pending_bytes, 0);
}

#[test]
fn what_is_put_and_deleted_while_it_waits_costs_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovered) = Journal::open(dir.path(), Options::default(), |_| {}).unwrap();
    for id in 0..1000 {
        journal.submit(put(id, &[7; 500]));
        journal.submit(delete(id));
    }
    drop(recovered);
    journal.close().unwrap();
    let stats = journal.stats();
    assert_eq!((stats.elided, stats.batches), (1000, 2000));
    assert_eq!(stats.written_bytes, 0);
    assert_eq!(disk_bytes(dir.path()), 64);
}

#[test]
fn batches_of_one_thread_become_durable_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), small());
    let (journal, start) = (&first.journal, &Barrier::new(4));
    let submit = |thread: u64| {
        start.wait();
        let mut before = Position::START;
        for n in 0..500u64 {
            // The last one to write record 0 is the one with the highest position.
            let mut batch = put(0, &thread.to_le_bytes());
            batch.put(RecordId(1 + thread), &n.to_le_bytes());
            let position = journal.submit(batch);
            assert!(position > before);
            before = position;
        }
        (before, thread)
    };
    let last = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| scope.spawn(move || submit(thread)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .max()
    });
    let (position, thread) = last.unwrap();
    assert_eq!(position, Position::new(2000));
    first.journal.close().unwrap();
    assert_eq!(first.journal.durable(), position);

    let again = open(dir.path(), small());
    assert_eq!(again.found[&0], thread.to_le_bytes());
    for thread in 0..4 {
        assert_eq!(again.found[&(1 + thread)], 499u64.to_le_bytes());
    }
}

#[test]
fn a_record_larger_than_a_segment_is_kept_too() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), small());
    let large: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    first.commit(put(1, b"small"));
    first.commit(put(2, &large));
    first.commit(put(3, b"small"));
    first.journal.close().unwrap();
    assert_eq!(open(dir.path(), small()).found[&2], large);
}

#[test]
fn the_files_stay_within_the_rule_while_records_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 64 << 10,
        durability: Durability::None,
        ..Options::default()
    };
    let open = open(dir.path(), options);
    for id in 0..40_000u64 {
        open.journal.submit(put(id, &[7; 200]));
        // Nine of ten go soon, the others late: something lives in every file.
        if let Some(soon) = id.checked_sub(20).filter(|id| id % 10 != 0) {
            open.journal.submit(delete(soon));
        }
        if let Some(late) = id.checked_sub(10_000).filter(|id| id % 10 == 0) {
            open.journal.submit(delete(late));
        }
        if id % 4 == 0 {
            open.wait(open.journal.submit(Batch::new()));
        }
        let stats = open.journal.stats();
        // The rule, the segment that is being emptied, and one slice of copies.
        let bound = 2 * stats.live_bytes + 2 * (64 << 10) + (256 << 10);
        assert!(stats.disk_bytes <= bound, "{stats:?}");
    }
    let stats = open.journal.stats();
    assert!(
        stats.written_bytes > 8_000_000 && stats.removed_segments > 100,
        "{stats:?}"
    );
    assert!(
        stats.compacted_bytes > 100_000 && stats.compacted_bytes < stats.written_bytes / 2,
        "{stats:?}"
    );
}

#[test]
fn an_idle_journal_tidies_up_until_almost_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 256 << 10,
        compact_at: GarbageRule {
            idle_after: Duration::from_millis(1),
            ..GarbageRule::default()
        },
        ..Options::default()
    };
    let first = open(dir.path(), options);
    for id in 0..20_000 {
        first.journal.submit(put(id, &[id as u8; 300]));
    }
    first.wait(first.journal.submit(Batch::new()));
    let full = first.journal.stats().disk_bytes;
    for id in 0..20_000 {
        if id != 777 {
            first.journal.submit(delete(id));
        }
    }
    first.wait(first.journal.submit(Batch::new()));
    // Nothing is told about compaction, and nothing has to be: it only gets better.
    while first.journal.stats().disk_bytes > 300 << 10 {
        thread::yield_now();
    }
    first.journal.close().unwrap();
    let left = disk_bytes(dir.path());
    assert!(full > 6_000_000 && left <= 300 << 10, "{full} to {left}");
    let again = open(dir.path(), Options::default());
    assert_eq!(again.found, State::from([(777, vec![9; 300])]));
}

#[test]
fn without_durability_the_end_of_the_process_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        durability: Durability::None,
        ..small()
    };
    let first = open(dir.path(), options.clone());
    for id in 0..500 {
        first.commit(put(id, &[1; 100]));
    }
    assert_eq!(first.journal.stats().syncs, 0);
    first.journal.close().unwrap();
    assert_eq!(open(dir.path(), options).found.len(), 500);
}

#[test]
fn a_linger_gathers_and_delays_nothing_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        linger: Duration::from_millis(1),
        ..Options::default()
    };
    let open = open(dir.path(), options);
    for id in 0..50 {
        open.commit(put(id, b"x"));
    }
    let last = open.journal.submit(put(50, b"x"));
    open.journal.close().unwrap();
    assert_eq!(open.journal.durable(), last);
}
