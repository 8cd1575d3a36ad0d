//! Decodes a candump log with a DBC file and prints what each signal did:
//! `cargo run -p signals --release --example decode_drive -- drive.log vehicle.dbc [mapping.toml]`

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;
use std::{env, fs};

use signals::can::{dbc_text, decode_frames, encode_frames};
use signals::{CanDecoder, Mapping, Value, candump};

#[derive(Default)]
struct Statistics {
    count: usize,
    min: f64,
    max: f64,
    sum: f64,
    /// The last value that is no number.
    last: Option<Value>,
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<_> = env::args().skip(1).collect();
    let [log, dbc, rest @ ..] = &files[..] else {
        return Err("usage: decode_drive LOG DBC [MAPPING]".into());
    };
    let own = match rest.first() {
        Some(file) => Some(Mapping::parse(&fs::read_to_string(file)?)?),
        None => None,
    };
    let mapping = own.as_ref().unwrap_or(Mapping::builtin());
    let decoder = CanDecoder::new(&dbc_text(&fs::read(dbc)?), Some(mapping))?;
    let log = fs::read_to_string(log)?;
    let frames: Vec<_> = candump::frames(&log).collect::<Result<_, _>>()?;

    let mut bytes = 0;
    for part in frames.chunks(1_000) {
        let payload = encode_frames(part)?;
        bytes += payload.len();
        assert_eq!(decode_frames(&payload)?, part, "framing there and back");
    }
    let mut readings = Vec::new();
    let start = Instant::now();
    let summary = decoder.decode_all(&frames, &mut readings);
    let took = start.elapsed();

    let mut signals: BTreeMap<&str, Statistics> = BTreeMap::new();
    for reading in &readings {
        let entry = signals.entry(&reading.signal).or_insert(Statistics {
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            ..Statistics::default()
        });
        entry.count += 1;
        match &reading.value {
            Value::Number(number) => {
                entry.min = entry.min.min(*number);
                entry.max = entry.max.max(*number);
                entry.sum += number;
            }
            other => entry.last = Some(other.clone()),
        }
    }
    println!(
        "{:<60} {:>7} {:>12} {:>12} {:>12}",
        "signal", "count", "min", "max", "mean"
    );
    for (signal, entry) in &signals {
        if let Some(last) = &entry.last {
            println!("{signal:<60} {:>7} {last:?}", entry.count);
        } else {
            let mean = entry.sum / entry.count as f64;
            println!(
                "{signal:<60} {:>7} {:>12.3} {:>12.3} {mean:>12.3}",
                entry.count, entry.min, entry.max
            );
        }
    }
    eprintln!(
        "{} frames ({} unknown to the DBC), {} readings in {took:.1?}; {bytes} bytes as raw CAN, {} as candump",
        summary.frames,
        summary.unknown,
        readings.len(),
        log.len(),
    );
    Ok(())
}
