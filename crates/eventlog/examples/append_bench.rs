//! How many records a second become durable?
//!
//! ```text
//! cargo run --release -p eventlog --example append_bench -- \
//!     --records 500000 --size 200 --appenders 1000 --partitions 1 --fsync on [--dir DIR]
//! ```
//!
//! Each appender has one record on its way and sends the next when that one is acknowledged, as an
//! MQTT client with one QoS 1 message in flight does; two driver threads carry them all. Then
//! everything is read back. The log lies in a fresh directory below `--dir` (default: the system's
//! temporary directory, which may be in memory: name a real disk) and is removed at the end.

use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use bytes::Bytes;
use eventlog::{Durability, Log, LogOptions, NewRecord, Offset, ReadFrom, Stream, StreamConfig};

const DRIVERS: usize = 2;

struct Args {
    records: usize,
    size: usize,
    appenders: usize,
    partitions: u16,
    durability: Durability,
    linger: Duration,
    dir: std::path::PathBuf,
}

fn args() -> Result<Args, String> {
    let mut args = Args {
        records: 200_000,
        size: 200,
        appenders: 1000,
        partitions: 1,
        durability: Durability::Fsync,
        linger: Duration::ZERO,
        dir: env::temp_dir(),
    };
    let mut words = env::args().skip(1);
    while let Some(key) = words.next() {
        let value = words.next().ok_or_else(|| format!("{key} needs a value"))?;
        let number = || {
            value
                .parse::<usize>()
                .map_err(|error| format!("{key} {value}: {error}"))
        };
        match key.as_str() {
            "--records" => args.records = number()?,
            "--size" => args.size = number()?,
            "--appenders" => args.appenders = number()?.max(DRIVERS),
            "--partitions" => args.partitions = number()?.clamp(1, 64) as u16,
            "--linger-us" => args.linger = Duration::from_micros(number()? as u64),
            "--dir" => args.dir = value.into(),
            "--fsync" => {
                args.durability = match value.as_str() {
                    "on" => Durability::Fsync,
                    "off" => Durability::None,
                    _ => return Err("--fsync is `on` or `off`".to_owned()),
                };
            }
            _ => {
                return Err(format!(
                    "unknown {key}; there are --records --size --appenders --partitions --fsync --linger-us --dir"
                ));
            }
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let dir = args.dir.join(format!("append-bench-{}", process::id()));
    let result = bench(&args, &dir);
    if let Err(error) = fs::remove_dir_all(&dir) {
        eprintln!("{} is left behind: {error}", dir.display());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args, dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let (log, _) = Log::open(dir, LogOptions::default())?;
    let config = StreamConfig {
        partitions: args.partitions,
        durability: args.durability,
        linger: args.linger,
        ..StreamConfig::default()
    };
    let stream = log.stream("bench", config)?;

    let started = Instant::now();
    let mut latencies: Vec<u32> = thread::scope(|scope| {
        let drivers: Vec<_> = (0..DRIVERS)
            .map(|driver| {
                let stream = &stream;
                scope.spawn(move || drive(stream, args, driver))
            })
            .collect();
        drivers
            .into_iter()
            .flat_map(|driver| driver.join().expect("a driver panicked"))
            .collect()
    });
    let took = started.elapsed().as_secs_f64();

    let total = stream.stats().total();
    latencies.sort_unstable();
    let percentile = |p: usize| f64::from(latencies[(latencies.len() - 1) * p / 100]) / 1000.0;
    eprintln!(
        "append: {:.0} records/s, {:.1} MB/s on disk, {} fsyncs ({:.0}/s), {:.0} records/group, \
         acknowledged after p50 {:.2} ms, p99 {:.2} ms",
        total.appended_records as f64 / took,
        total.appended_bytes as f64 / took / 1e6,
        total.fsyncs,
        total.fsyncs as f64 / took,
        total.appended_records as f64 / total.groups as f64,
        percentile(50),
        percentile(99),
    );

    let started = Instant::now();
    let mut read = 0;
    for partition in 0..args.partitions {
        let mut reader = stream.reader(partition, ReadFrom::At(Offset::ZERO));
        loop {
            let some = reader.read(1000, 1 << 20, None)?;
            if some.is_empty() {
                break;
            }
            read += some.len();
        }
    }
    eprintln!(
        "read:   {:.0} records/s",
        read as f64 / started.elapsed().as_secs_f64()
    );
    log.close();

    let started = Instant::now();
    let (_log, report) = Log::open(dir, LogOptions::default())?;
    eprintln!(
        "reopen: {:.1} ms; {report}",
        started.elapsed().as_secs_f64() * 1000.0
    );
    Ok(())
}

/// Carries a share of the appenders; returns how long each record took, in microseconds.
fn drive(stream: &Stream, args: &Args, driver: usize) -> Vec<u32> {
    let (records, appenders) = (args.records / DRIVERS, args.appenders / DRIVERS);
    let payload = Bytes::from(vec![b'x'; args.size]);
    let header = |name: &'static str, value: &'static str| {
        (
            Bytes::from_static(name.as_bytes()),
            Bytes::from_static(value.as_bytes()),
        )
    };
    let headers = vec![
        header("ce_id", "0192d3a4-5b6c-7d8e-9fa0-b1c2d3e4f506"),
        header("ce_source", "/vehicles/V000001/devices/D000001"),
        header("ce_type", "telemetry"),
        header("content-type", "application/json"),
    ];
    let (told, tell) = channel();
    let send = |appender: usize| {
        let key = Bytes::from(format!("V{:06}", driver * appenders + appender));
        let partition = stream.partition_for(&key);
        let record = NewRecord {
            key,
            time_us: 1_700_000_000_123_456,
            headers: headers.clone(),
            value: payload.clone(),
        };
        let (told, since) = (told.clone(), Instant::now());
        let done = move |result: Result<Offset, _>| {
            result.expect("append failed");
            told.send((appender, since.elapsed().as_micros() as u32))
                .expect("the driver listens");
        };
        stream
            .append(partition, record, done)
            .expect("appenders fit into the queue");
    };
    let first = appenders.min(records);
    (0..first).for_each(send);
    let mut latencies = Vec::with_capacity(records);
    let mut sent = first;
    while latencies.len() < records {
        let (appender, took) = tell.recv().expect("completions come");
        latencies.push(took);
        if sent < records {
            sent += 1;
            send(appender);
        }
    }
    latencies
}
