//! What the journal does on this machine: records per second, elision, compaction, recovery.
//!
//! ```text
//! cargo run --release -p journal --example journal_bench [--dir DIR] [--rounds N] [--only WORD]
//! ```
//! Each line is the median of the rounds, with the lowest and the highest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitCode};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use journal::{
    Batch, Condition, Durability, Event, GarbageRule, Journal, Options, Position, RecordId,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Bytes of a small record's value.
const VALUE: usize = 60;
const RECORDS: u64 = 2_000_000;

struct Args {
    dir: PathBuf,
    rounds: usize,
    only: String,
}

fn args() -> Result<Args, String> {
    let mut args = Args {
        dir: std::env::temp_dir(),
        rounds: 5,
        only: String::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(key) = words.next() {
        let value = words.next().ok_or_else(|| format!("{key} needs a value"))?;
        match key.as_str() {
            "--dir" => args.dir = value.into(),
            "--rounds" => args.rounds = value.parse().map_err(|error| format!("{key}: {error}"))?,
            "--only" => args.only = value,
            _ => return Err(format!("unknown {key}; there are --dir --rounds --only")),
        }
    }
    args.rounds = args.rounds.max(1);
    Ok(args)
}

fn main() -> ExitCode {
    // The child that measures recovery in a process of its own.
    if let Ok(dir) = std::env::var("JOURNAL_BENCH_RECOVER") {
        return match recover(Path::new(&dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let args = match args() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Outcome<()> {
    let wanted = |name: &str| name.contains(&args.only);
    for durability in [Durability::Fsync, Durability::None] {
        for batch in [1, 16, 256] {
            let name = format!("put, {durability:?}, batches of {batch}");
            if wanted(&name) {
                rounds(args, &name, "records/s", |dir| puts(dir, durability, batch))?;
            }
        }
    }
    for durability in [Durability::Fsync, Durability::None] {
        for behind in [1_000, 100_000] {
            let name = format!("put and delete {behind} later, {durability:?}");
            if wanted(&name) {
                let mut notes = Vec::new();
                rounds(args, &name, "records/s", |dir| {
                    let (rate, note) = delivered(dir, durability, behind)?;
                    notes.push(note);
                    Ok(rate)
                })?;
                eprintln!("    {}", notes.join("; "));
            }
        }
    }
    for linger in [0, 200, 1000] {
        let name = format!("one record at a time, linger {linger} us");
        if wanted(&name) {
            rounds(args, &name, "records/s", |dir| alone(dir, linger))?;
        }
    }
    if wanted("churn") {
        let mut notes = Vec::new();
        rounds(
            args,
            "churn, 200k live, random replacement",
            "records/s",
            |dir| {
                let (rate, note) = churn(dir)?;
                notes.push(note);
                Ok(rate)
            },
        )?;
        eprintln!("    {}", notes.join("; "));
    }
    if wanted("recovery") {
        recovery(args)?;
    }
    Ok(())
}

fn rounds(
    args: &Args,
    name: &str,
    unit: &str,
    mut round: impl FnMut(&Path) -> Outcome<f64>,
) -> Outcome<()> {
    let mut figures = Vec::new();
    for _ in 0..args.rounds {
        let dir = args.dir.join(format!("journal-bench-{}", process::id()));
        let figure = round(&dir);
        fs::remove_dir_all(&dir)?;
        figures.push(figure?);
    }
    figures.sort_by(f64::total_cmp);
    eprintln!(
        "{name}: {:.0} {unit} ({:.0} to {:.0})",
        figures[figures.len() / 2],
        figures[0],
        figures[figures.len() - 1]
    );
    Ok(())
}

fn open(dir: &Path, options: Options) -> Outcome<(Journal, Receiver<Position>)> {
    let (told, tell) = channel();
    let (journal, recovered) = Journal::open(dir, options, move |event| {
        if let Event::Durable(position) = event {
            // Nobody may be listening any more.
            let _ = told.send(position);
        }
    })?;
    recovered.for_each(|_, _| {})?;
    Ok((journal, tell))
}

fn options(durability: Durability) -> Options {
    Options {
        durability,
        ..Options::default()
    }
}

/// Holds the submitter back as a broker would.
fn hold_back(journal: &Journal, tell: &Receiver<Position>) -> Outcome<()> {
    while journal.condition() == Condition::Behind {
        tell.recv()?;
    }
    Ok(())
}

fn wait(tell: &Receiver<Position>, position: Position) -> Outcome<()> {
    while tell.recv()? < position {}
    Ok(())
}

fn puts(dir: &Path, durability: Durability, size: u64) -> Outcome<f64> {
    let (journal, tell) = open(dir, options(durability))?;
    let value = [7; VALUE];
    let started = Instant::now();
    let mut last = Position::START;
    for first in (0..RECORDS).step_by(size as usize) {
        let mut batch = Batch::with_capacity(size as usize * (VALUE + 12));
        for id in first..(first + size).min(RECORDS) {
            batch.put(RecordId(id), &value);
        }
        last = journal.submit(batch);
        hold_back(&journal, &tell)?;
    }
    wait(&tell, last)?;
    let rate = RECORDS as f64 / started.elapsed().as_secs_f64();
    assert_eq!(journal.stats().live_records, RECORDS);
    journal.close()?;
    Ok(rate)
}

/// Every record is deleted `behind` puts later: messages that are delivered at once, or nearly.
fn delivered(dir: &Path, durability: Durability, behind: u64) -> Outcome<(f64, String)> {
    let (journal, tell) = open(dir, options(durability))?;
    let value = [7; VALUE];
    let started = Instant::now();
    let mut last = Position::START;
    for id in 0..RECORDS + behind {
        let mut batch = Batch::with_capacity(VALUE + 24);
        if id < RECORDS {
            batch.put(RecordId(id), &value);
        }
        if id >= behind {
            batch.delete(RecordId(id - behind));
        }
        last = journal.submit(batch);
        hold_back(&journal, &tell)?;
    }
    wait(&tell, last)?;
    let rate = RECORDS as f64 / started.elapsed().as_secs_f64();
    let stats = journal.stats();
    assert_eq!(stats.live_records, 0);
    journal.close()?;
    let note = format!(
        "{:.1}% elided, {:.1} MB written, {} groups",
        100.0 * stats.elided as f64 / RECORDS as f64,
        stats.written_bytes as f64 / 1e6,
        stats.groups
    );
    Ok((rate, note))
}

/// The next record is submitted when the last one is durable.
fn alone(dir: &Path, linger_us: u64) -> Outcome<f64> {
    let (journal, tell) = open(
        dir,
        Options {
            linger: Duration::from_micros(linger_us),
            ..Options::default()
        },
    )?;
    let count = 1000;
    let started = Instant::now();
    for id in 0..count {
        let mut batch = Batch::new();
        batch.put(RecordId(id), &[7; VALUE]);
        let position = journal.submit(batch);
        wait(&tell, position)?;
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    journal.close()?;
    Ok(rate)
}

/// Compaction at work: live records are replaced in random order.
fn churn(dir: &Path) -> Outcome<(f64, String)> {
    let (journal, tell) = open(
        dir,
        Options {
            segment_bytes: 16 << 20,
            ..Options::default()
        },
    )?;
    let (live, value) = (200_000, [7; 300]);
    let mut dice = 1u64;
    let started = Instant::now();
    let mut last = Position::START;
    let mut most = 0;
    for n in 0..RECORDS / 16 {
        let mut batch = Batch::with_capacity(16 * 312);
        for _ in 0..16 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            batch.put(RecordId((dice >> 33) % live), &value);
        }
        last = journal.submit(batch);
        hold_back(&journal, &tell)?;
        if n % 1000 == 0 {
            most = most.max(journal.stats().disk_bytes);
        }
    }
    wait(&tell, last)?;
    let rate = RECORDS as f64 / started.elapsed().as_secs_f64();
    let stats = journal.stats();
    journal.close()?;
    let note = format!(
        "{:.0} MB submitted, {:.0} MB written, {:.0} MB of them copies, {:.0} MB live, at most {:.0} MB on disk",
        RECORDS as f64 * 312.0 / 1e6,
        stats.written_bytes as f64 / 1e6,
        stats.compacted_bytes as f64 / 1e6,
        stats.live_bytes as f64 / 1e6,
        most as f64 / 1e6
    );
    Ok((rate, note))
}

/// 2,000,000 live records, half of 300 bytes and half of 40, in a process of its own; then they go.
fn recovery(args: &Args) -> Outcome<()> {
    let dir = args.dir.join(format!("journal-bench-{}", process::id()));
    let (journal, tell) = open(&dir, options(Durability::None))?;
    let mut last = Position::START;
    for pair in 0..RECORDS / 2 {
        let mut batch = Batch::with_capacity(400);
        batch.put(RecordId(2 * pair), &[7; 300]);
        batch.put(RecordId(2 * pair + 1), &[7; 40]);
        last = journal.submit(batch);
        hold_back(&journal, &tell)?;
    }
    wait(&tell, last)?;
    journal.close()?;
    for _ in 0..args.rounds {
        let status = Command::new(std::env::current_exe()?)
            .env("JOURNAL_BENCH_RECOVER", &dir)
            .status()?;
        if !status.success() {
            return Err("the child that recovers failed".into());
        }
    }

    let idle = Duration::from_millis(100);
    let (journal, tell) = open(
        &dir,
        Options {
            compact_at: GarbageRule {
                idle_after: idle,
                ..GarbageRule::default()
            },
            ..Options::default()
        },
    )?;
    let before = journal.stats();
    let started = Instant::now();
    let mut last = Position::START;
    for first in (0..RECORDS).step_by(100) {
        let mut batch = Batch::new();
        for id in first..first + 100 {
            batch.delete(RecordId(id));
        }
        last = journal.submit(batch);
        hold_back(&journal, &tell)?;
    }
    wait(&tell, last)?;
    let deleted = started.elapsed();
    let drained = journal.stats();
    while journal.stats().disk_bytes > 2 << 20 && started.elapsed() < Duration::from_secs(60) {
        // Nothing more becomes durable: this is only time passing.
        let _ = tell.recv_timeout(idle);
    }
    let after = journal.stats();
    eprintln!(
        "drain: {:.1} MB in {} files; all deleted in {:.2} s: {:.1} MB in {}; idle: {:.4} MB in {}",
        before.disk_bytes as f64 / 1e6,
        before.segments,
        deleted.as_secs_f64(),
        drained.disk_bytes as f64 / 1e6,
        drained.segments,
        after.disk_bytes as f64 / 1e6,
        after.segments
    );
    journal.close()?;
    fs::remove_dir_all(&dir)?;
    Ok(())
}

fn recover(dir: &Path) -> Outcome<()> {
    let started = Instant::now();
    let (journal, recovered) = Journal::open(dir, options(Durability::None), |_| {})?;
    let report = recovered.report().clone();
    let opened = started.elapsed();
    let (mut records, mut bytes) = (0u64, 0);
    recovered.for_each(|_, value| {
        records += 1;
        bytes += value.len();
    })?;
    let read = started.elapsed();
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or_default();
    eprintln!(
        "recovery: {records} records, {:.0} MB of values, {} segments: opened in {:.3} s, read in {:.3} s, together {:.3} s; peak memory {}",
        bytes as f64 / 1e6,
        report.segments,
        opened.as_secs_f64(),
        (read - opened).as_secs_f64(),
        read.as_secs_f64(),
        peak.trim()
    );
    journal.close()?;
    Ok(())
}
