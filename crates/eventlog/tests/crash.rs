//! `kill -9` at random moments: nothing acknowledged is lost, and nothing is there twice.

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use common::*;
use eventlog::{Log, Offset, ReadFrom, StreamConfig};

const PARTITIONS: u16 = 2;

fn config() -> StreamConfig {
    StreamConfig {
        partitions: PARTITIONS,
        segment_bytes: 64 << 10,
        queue_records: 500,
        ..StreamConfig::default()
    }
}

/// The child: appends as fast as it can, commits group offsets now and then, and says on stdout
/// what has been acknowledged, until it is killed.
#[test]
fn child_writes_until_it_is_killed() {
    let Ok(dir) = std::env::var("EVENTLOG_CRASH") else {
        return;
    };
    let round: u64 = std::env::var("EVENTLOG_ROUND").unwrap().parse().unwrap();
    let (log, _) = open(Path::new(&dir));
    let stream = log.stream("s", config()).unwrap();
    let group = log.group("g").unwrap();
    // One write call per line: a kill leaves whole lines.
    let say = Arc::new(Mutex::new(io::stdout()));
    for n in 0u64.. {
        let partition = (n % u64::from(PARTITIONS)) as u16;
        let text = format!(
            "round {round} number {n} {}",
            "x".repeat((n % 300) as usize)
        );
        loop {
            let say = say.clone();
            let told = text.clone();
            let queued = stream.append(partition, record(text.clone()), move |result| {
                let line = format!("ack {partition} {} {told}\n", result.expect("durable"));
                let _ = say.lock().unwrap().write_all(line.as_bytes());
            });
            match queued {
                Ok(()) => break,
                Err(_) => stream.flush(),
            }
        }
        if n % 200 == 199 {
            let next = Offset::new(round * 1_000_000 + n);
            group.commit("s", partition, next).unwrap();
            let line = format!("group {partition} {next}\n");
            say.lock().unwrap().write_all(line.as_bytes()).unwrap();
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(20_261_120);
    let mut acknowledged: [BTreeMap<u64, String>; PARTITIONS as usize] = Default::default();
    let mut committed = [0; PARTITIONS as usize];
    let mut cut = 0;

    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
            .env("EVENTLOG_CRASH", dir.path())
            .env("EVENTLOG_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: &str| {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("ack"), Some(partition), Some(offset), Some(text)) => {
                    let partition: usize = partition.parse().unwrap();
                    let before =
                        acknowledged[partition].insert(offset.parse().unwrap(), text.to_owned());
                    assert_eq!(before, None, "offset {offset} acknowledged twice");
                }
                (Some("group"), Some(partition), Some(offset), None) => {
                    committed[partition.parse::<usize>().unwrap()] = offset.parse().unwrap();
                }
                _ => {} // The test harness talks too.
            }
        };
        // At a random acknowledgement; what the child got out before it died counts too.
        for _ in 0..10 + dice.below(3000) {
            note(
                &lines
                    .next()
                    .expect("the child writes until it is killed")
                    .unwrap(),
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines
            .map_while(Result::ok)
            .filter(|line| !line.is_empty())
            .for_each(|line| note(&line));

        // Every other time the power fails too, in the middle of a write.
        if round % 2 == 1 {
            let last = segments(dir.path(), "s", 0).pop().unwrap();
            let half_a_batch =
                &std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap()
                    [..700];
            OpenOptions::new()
                .append(true)
                .open(last)
                .unwrap()
                .write_all(half_a_batch)
                .unwrap();
        }

        let (log, report) = open(dir.path());
        assert!(report.damaged.is_empty(), "{report}");
        cut += report.torn_tails.len();
        let stream = log.stream("s", config()).unwrap();
        for partition in 0..PARTITIONS {
            let read = drain(&mut stream.reader(partition, ReadFrom::Earliest)).unwrap();
            let mut seen = std::collections::HashSet::new();
            for (at, record) in read.iter().enumerate() {
                assert_eq!(record.offset.get(), at as u64, "no holes");
                assert!(
                    seen.insert(value(record)),
                    "{} is there twice",
                    value(record)
                );
            }
            for (offset, text) in &acknowledged[usize::from(partition)] {
                let found = read.get(*offset as usize).map(value);
                assert_eq!(
                    found.as_ref(),
                    Some(text),
                    "round {round}: acknowledged as {partition}/{offset}"
                );
            }
            // Commits only grow here, so what is durable is at least what was said.
            let durable = log
                .group("g")
                .unwrap()
                .committed("s", partition)
                .map_or(0, Offset::get);
            assert!(
                durable >= committed[usize::from(partition)],
                "group offset lost"
            );
        }
        Log::close(&log);
    }
    assert!(cut >= 4, "the injected torn tails were found");
    assert!(acknowledged.iter().map(BTreeMap::len).sum::<usize>() > 1000);
}
