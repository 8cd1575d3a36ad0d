//! `kill -9` at random moments: nothing that was durable is lost, and no batch is there in part.

mod common;

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use journal::{Batch, Condition, Event, GarbageRule, Journal, Options, RecordId};

/// The record every batch puts: how many batches there have been.
const COUNT: u64 = 1_000_000;

fn options() -> Options {
    Options {
        segment_bytes: 32 << 10,
        max_pending_bytes: 64 << 10,
        compact_at: GarbageRule {
            idle_after: Duration::from_millis(1),
            ..GarbageRule::default()
        },
        ..Options::default()
    }
}

/// The batch that leads from the state after `n` batches to the next, the same in every process.
fn batch(n: u64, state: &mut State) -> Batch {
    let mut dice = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut roll = |limit: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) % limit
    };
    let mut batch = Batch::new();
    for _ in 0..roll(6) {
        let id = roll(400);
        if roll(5) < 2 {
            batch.delete(RecordId(id));
            state.remove(&id);
        } else {
            let value = vec![n as u8; roll(300) as usize];
            batch.put(RecordId(id), &value);
            state.insert(id, value);
        }
    }
    let count = (n + 1).to_le_bytes();
    batch.put(RecordId(COUNT), &count);
    state.insert(COUNT, count.to_vec());
    batch
}

fn count(state: &State) -> u64 {
    state.get(&COUNT).map_or(0, |bytes| {
        u64::from_le_bytes(bytes.as_slice().try_into().unwrap())
    })
}

/// The child: submits as fast as the journal goes and says on stdout what is durable, until it is
/// killed.
#[test]
fn child_submits_until_it_is_killed() {
    let Ok(dir) = std::env::var("JOURNAL_CRASH") else {
        return;
    };
    let (told, tell) = std::sync::mpsc::channel();
    let base = Arc::new(Mutex::new(0u64));
    let known = base.clone();
    let (journal, recovered) = Journal::open(Path::new(&dir), options(), move |event| {
        if let Event::Durable(position) = event {
            // One write call per line: a kill leaves whole lines.
            let line = format!("durable {}\n", *known.lock().unwrap() + position.get());
            io::stdout().write_all(line.as_bytes()).unwrap();
            let _ = told.send(position);
        }
    })
    .unwrap();
    // Before the journal begins: it waits for the records to be read.
    let mut state = State::new();
    let mut at_start = base.lock().unwrap();
    recovered
        .for_each(|id, value| {
            state.insert(id.0, value.to_vec());
        })
        .unwrap();
    *at_start = count(&state);
    drop(at_start);
    for n in count(&state).. {
        journal.submit(batch(n, &mut state));
        while journal.condition() != Condition::Ready {
            tell.recv().unwrap();
        }
    }
}

#[test]
fn nothing_durable_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = State::new();
    let mut dice = 20_251_120u64;
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_submits_until_it_is_killed", "--nocapture"])
            .env("JOURNAL_CRASH", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut durable = count(&model);
        let mut note = |line: &str| {
            // The test harness talks too, and its last words have no line end of their own.
            if let Some((_, number)) = line.split_once("durable ") {
                durable = number.parse().unwrap();
                return true;
            }
            false
        };
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut left = 5 + (dice >> 33) % 400;
        while left > 0 {
            let line = lines.next().expect("the child goes on until it is killed");
            left -= u64::from(note(&line.unwrap()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line);
        }

        let open = open(dir.path(), options());
        let found = count(&open.found);
        assert!(
            found >= durable,
            "round {round}: {durable} were durable, {found} found"
        );
        for n in count(&model)..found {
            batch(n, &mut model);
        }
        assert!(
            open.found == model,
            "round {round}: not the state after {found} batches"
        );
        open.journal.close().unwrap();
    }
    assert!(count(&model) > 1000);
    assert!(segments(dir.path())[0] > dir.path().join("00000000000000000002.segment"));
}
