//! Runs the simulation of the broker's machine: one seed, a range of seeds, or without end.
//!
//! Progress goes to stderr. The exit code is 0 if every invariant held, 1 if one did not, 2 if the
//! command line was wrong.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use broker::simulation::{Detail, Fault, Options, run};

const USAGE: &str = "\
usage: simulate [--seed N | --seeds A..B | --forever] [--steps N] [--trace] [--fault NAME|list]
  --seed N      runs one seed
  --seeds A..B  runs the seeds from A to B - 1 (default: 0..1000)
  --forever     runs from a seed of the day on, until something breaks
  --steps N     steps of a run before it is brought to its end (default: 600)
  --trace       prints every event
  --fault NAME  switches a planted defect on: the simulation must find it
  --keep-going  counts the seeds that break something instead of stopping at the first";

struct Arguments {
    from: u64,
    to: u64,
    steps: usize,
    detail: Detail,
    fault: Option<Fault>,
    keep_going: bool,
}

fn parse() -> Result<Option<Arguments>, String> {
    let mut parsed = Arguments {
        from: 0,
        to: 1000,
        steps: 600,
        detail: Detail::Off,
        fault: None,
        keep_going: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seed" => {
                parsed.from = number(&value()?)?;
                parsed.to = parsed.from + 1;
            }
            "--seeds" => {
                let range = value()?;
                let (from, to) = range
                    .split_once("..")
                    .ok_or_else(|| format!("`{range}` is not A..B"))?;
                parsed.from = number(from)?;
                parsed.to = number(to)?;
            }
            "--forever" => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                parsed.from = since.map_or(0, |since| since.as_secs()) << 20;
                parsed.to = u64::MAX;
            }
            "--steps" => parsed.steps = number(&value()?)? as usize,
            "--trace" => parsed.detail = Detail::Printed,
            "--keep-going" => parsed.keep_going = true,
            "--fault" => {
                let name = value()?;
                if name == "list" {
                    for fault in Fault::ALL {
                        eprintln!("{fault}");
                    }
                    return Ok(None);
                }
                parsed.fault = Some(name.parse().map_err(|e| format!("{e}"))?);
            }
            "--help" | "-h" => {
                eprintln!("{USAGE}");
                return Ok(None);
            }
            other => return Err(format!("`{other}` is no option")),
        }
    }
    Ok(Some(parsed))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a number"))
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let mut told = began;
    let (mut seeds, mut steps, mut messages, mut crashes) = (0u64, 0u64, 0u64, 0u64);
    let mut broken: Vec<(u64, String)> = Vec::new();
    for seed in arguments.from..arguments.to {
        let outcome = run(Options {
            seed,
            steps: arguments.steps,
            fault: arguments.fault,
            detail: arguments.detail,
        });
        seeds += 1;
        match outcome {
            Ok(report) => {
                steps += report.steps as u64;
                messages += report.messages as u64;
                crashes += report.crashes as u64;
            }
            Err(failure) if arguments.keep_going => {
                eprintln!("seed {seed}: {}: {}", failure.invariant, failure.detail);
                broken.push((seed, failure.invariant.name().to_owned()));
            }
            Err(failure) => {
                eprintln!("{failure}\nafter {seeds} seeds");
                return ExitCode::FAILURE;
            }
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            progress(began, seeds, steps, messages, crashes);
        }
    }
    progress(began, seeds, steps, messages, crashes);
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    broken.sort_by(|a, b| a.1.cmp(&b.1));
    for chunk in broken.chunk_by(|a, b| a.1 == b.1) {
        let seeds: Vec<u64> = chunk.iter().map(|(seed, _)| *seed).take(12).collect();
        eprintln!("{:>5}  {}: {seeds:?}", chunk.len(), chunk[0].1);
    }
    ExitCode::FAILURE
}

fn progress(began: Instant, seeds: u64, steps: u64, messages: u64, crashes: u64) {
    let seconds = began.elapsed().as_secs_f64();
    eprintln!(
        "{seeds} seeds, {steps} steps ({:.0}/s), {messages} messages, {crashes} crashes, {seconds:.0} s",
        steps as f64 / seconds
    );
}
