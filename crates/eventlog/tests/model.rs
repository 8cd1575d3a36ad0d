//! Random lives of a log against a model: every acknowledged record is there exactly once, in
//! order, except those whose bytes the test itself has destroyed.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use eventlog::{Log, ReadError, ReadFrom, Stream, StreamConfig};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Act {
    /// One batch of so many records with values of this size.
    Append {
        records: usize,
        size: usize,
    },
    /// Close, do this to the files, open.
    Reopen(Harm),
    /// Read a little from this place (of 1000).
    ReadFrom(usize),
    Housekeep,
}

#[derive(Debug, Clone)]
enum Harm {
    None,
    /// Cut so many bytes off the last segment.
    Cut(usize),
    /// Bytes that are no batch behind the last one.
    Garbage(Vec<u8>),
    /// Flip a bit of the last batch, at this place (of 1000).
    FlipLast(usize, u8),
    /// Flip a bit anywhere: segment, place (of 1000).
    FlipAny(usize, usize, u8),
    /// Delete all indexes.
    NoIndex,
}

fn act() -> impl Strategy<Value = Act> {
    let harm = prop_oneof![
        2 => Just(Harm::None),
        2 => (0usize..3000).prop_map(Harm::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Harm::Garbage),
        1 => (0usize..1000, 0u8..8).prop_map(|(at, bit)| Harm::FlipLast(at, bit)),
        1 => (any::<usize>(), 0usize..1000, 0u8..8).prop_map(|(file, at, bit)| Harm::FlipAny(file, at, bit)),
        1 => Just(Harm::NoIndex),
    ];
    prop_oneof![
        8 => (1usize..6, 0usize..900).prop_map(|(records, size)| Act::Append { records, size }),
        3 => harm.prop_map(Act::Reopen),
        2 => (0usize..1000).prop_map(Act::ReadFrom),
        1 => Just(Act::Housekeep),
    ]
}

/// One batch as acknowledged.
#[derive(Debug)]
struct Batch {
    first: u64,
    values: Vec<String>,
    destroyed: bool,
}

#[derive(Default)]
struct Model {
    batches: Vec<Batch>,
    written: usize,
}

impl Model {
    fn end(&self) -> u64 {
        self.batches
            .last()
            .map_or(0, |batch| batch.first + batch.values.len() as u64)
    }

    /// Offset and value of every record that can be read, from `from` on.
    fn readable(&self, from: u64) -> Vec<(u64, String)> {
        let whole = self.batches.iter().filter(|batch| !batch.destroyed);
        let records = whole.flat_map(|batch| (batch.first..).zip(batch.values.iter().cloned()));
        records.filter(|(offset, _)| *offset >= from).collect()
    }

    fn batch_at(&mut self, offset: u64) -> &mut Batch {
        let at = self
            .batches
            .iter()
            .position(|batch| batch.first == offset)
            .expect("a batch on disk is in the model");
        &mut self.batches[at]
    }
}

struct World<'a> {
    dir: &'a Path,
    log: Log,
    stream: Stream,
    model: Model,
}

fn config() -> StreamConfig {
    StreamConfig {
        segment_bytes: 24 << 10,
        ..StreamConfig::default()
    }
}

impl World<'_> {
    fn act(&mut self, act: Act) -> Result<(), TestCaseError> {
        match act {
            Act::Append { records, size } => {
                let values: Vec<_> = (0..records)
                    .map(|n| format!("{} {}", self.model.written + n, "v".repeat(size)))
                    .collect();
                let first = append(
                    &self.stream,
                    0,
                    &values.iter().map(String::as_str).collect::<Vec<_>>(),
                );
                prop_assert_eq!(first.get(), self.model.end());
                self.model.written += records;
                self.model.batches.push(Batch {
                    first: first.get(),
                    values,
                    destroyed: false,
                });
            }
            Act::Housekeep => self.stream.housekeep(),
            Act::ReadFrom(at) => {
                let from = self.model.end() * at as u64 / 1000;
                let mut reader = self.stream.reader(0, ReadFrom::At(from.into()));
                if let Ok(read) = reader.read(3, 1 << 20, None) {
                    let read: Vec<_> = read
                        .iter()
                        .map(|record| (record.offset.get(), value(record)))
                        .collect();
                    let expected = self.model.readable(from);
                    prop_assert_eq!(&read[..], &expected[..read.len()]);
                    prop_assert!(!read.is_empty() || from == self.model.end());
                }
            }
            Act::Reopen(harm) => {
                self.log.close();
                let (torn, damaged) = self.harm(harm);
                let (log, report) = open(self.dir);
                prop_assert_eq!(
                    (report.torn_tails.len(), report.damaged.len()),
                    (torn, damaged),
                    "{}",
                    report
                );
                self.stream = log.stream("s", config()).unwrap();
                self.log = log;
                prop_assert_eq!(self.stream.end(0).get(), self.model.end());
            }
        }
        Ok(())
    }

    /// Harms the files, and the model with them; returns how many torn tails and damaged places
    /// the report has to name.
    fn harm(&mut self, harm: Harm) -> (usize, usize) {
        let files = segments(self.dir, "s", 0);
        let last = files.last().unwrap();
        let mut bytes = fs::read(last).unwrap();
        let starts = batch_starts(&bytes);
        let base = |file: &Path| {
            file.file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        match harm {
            Harm::None => (0, 0),
            Harm::NoIndex => {
                for file in &files {
                    let _ = fs::remove_file(file.with_extension("index"));
                }
                (0, 0)
            }
            Harm::Garbage(garbage) => {
                bytes.extend(garbage);
                fs::write(last, bytes).unwrap();
                (1, 0)
            }
            Harm::Cut(cut) => {
                let length = bytes.len().saturating_sub(cut);
                fs::write(last, &bytes[..length]).unwrap();
                // Batches of this file that end at or before the cut stay.
                let mut ends: Vec<_> = starts
                    .iter()
                    .skip(1)
                    .copied()
                    .chain([bytes.len()])
                    .collect();
                ends.truncate(starts.len());
                let whole = ends.iter().filter(|end| **end <= length).count();
                let in_file = self
                    .model
                    .batches
                    .iter()
                    .filter(|batch| batch.first >= base(last))
                    .count();
                assert_eq!(in_file, starts.len());
                self.model
                    .batches
                    .truncate(self.model.batches.len() - (in_file - whole));
                (
                    usize::from(length != whole.checked_sub(1).map_or(0, |n| ends[n])),
                    0,
                )
            }
            Harm::FlipLast(at, bit) => {
                let Some(start) = starts.last() else {
                    return (0, 0);
                };
                let position = start + (bytes.len() - start) * at / 1000;
                bytes[position] ^= 1 << bit;
                fs::write(last, bytes).unwrap();
                self.model.batches.pop();
                (1, 0)
            }
            Harm::FlipAny(file, at, bit) => {
                let next = files
                    .get(file % files.len() + 1)
                    .map_or(u64::MAX, |next| base(next));
                let file = &files[file % files.len()];
                let mut bytes = fs::read(file).unwrap();
                if bytes.is_empty() {
                    return (0, 0);
                }
                // Sizes from the model: a damaged file does not know them.
                let sizes: Vec<(u64, usize)> = self
                    .model
                    .batches
                    .iter()
                    .filter(|batch| batch.first >= base(file) && batch.first < next)
                    .map(|batch| (batch.first, batch_size(&batch.values)))
                    .collect();
                let position = bytes.len() * at / 1000;
                let mut start = 0;
                let in_last = file == last;
                let (n, (first, _)) = sizes
                    .iter()
                    .enumerate()
                    .find(|(_, (_, size))| {
                        start += size;
                        start > position
                    })
                    .expect("every byte belongs to a batch");
                // One damaged place per segment: if a length field is damaged too, nobody can tell
                // where the batches between two damaged places begin (see `scan.rs`).
                let mut in_file = sizes.iter().map(|(first, _)| *first);
                if in_file.any(|first| self.model.batch_at(first).destroyed) {
                    return (0, 0);
                }
                bytes[position] ^= 1 << bit;
                fs::write(file, bytes).unwrap();
                match (in_last, n + 1 == sizes.len()) {
                    (true, true) => {
                        self.model.batches.pop();
                        (1, 0)
                    }
                    (in_last, _) => {
                        self.model.batch_at(*first).destroyed = true;
                        (0, usize::from(in_last))
                    }
                }
            }
        }
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let mut reader = self.stream.reader(0, ReadFrom::Earliest);
        let mut read = Vec::new();
        loop {
            match reader.read(10, 1 << 20, None) {
                Ok(some) if some.is_empty() => break,
                Ok(some) => read.extend(
                    some.iter()
                        .map(|record| (record.offset.get(), value(record))),
                ),
                Err(ReadError::Corrupt { .. }) => drop(reader.skip_corrupt().unwrap()),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
        prop_assert_eq!(read, self.model.readable(0));
        Ok(())
    }
}

/// Bytes of a batch on disk, computed from the format.
fn batch_size(values: &[String]) -> usize {
    let varint = |n: usize| {
        if n < 64 {
            1
        } else if n < 8192 {
            2
        } else {
            3
        }
    };
    let record = |value: &String| {
        // attributes, two deltas, key "car-1", value, one header `mp-us` of two bytes
        let body = 1 + 1 + 1 + 6 + varint(value.len()) + value.len() + 1 + 9;
        varint(body) + body
    };
    61 + values.iter().map(record).sum::<usize>()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        max_shrink_iters: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_acknowledged_record_is_readable_exactly_once_and_in_order(acts in prop::collection::vec(act(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        let stream = log.stream("s", config()).unwrap();
        let mut world = World { dir: dir.path(), log, stream, model: Model::default() };
        for act in acts {
            world.act(act)?;
        }
        world.check()?;
        world.act(Act::Reopen(Harm::None))?;
        world.check()?;
    }
}
