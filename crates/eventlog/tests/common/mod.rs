//! What the stories share: short ways to append and read, and a look at the files.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use eventlog::{
    Log, LogOptions, NewRecord, Offset, ReadError, ReadFrom, Reader, Record, RecoveryReport, Stream,
};

pub fn open(dir: &Path) -> (Log, RecoveryReport) {
    Log::open(dir, LogOptions::default()).expect("the log opens")
}

pub fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord {
        key: Bytes::from_static(b"car-1"),
        time_us: 1_700_000_000_123_456,
        headers: Vec::new(),
        value: value.into(),
    }
}

/// Appends as one batch and waits until it is durable.
pub fn append(stream: &Stream, partition: u16, values: &[&str]) -> Offset {
    let (told, tell) = sync_channel(1);
    let records = values
        .iter()
        .map(|value| record(value.to_string()))
        .collect();
    stream
        .append_batch(partition, records, move |result| told.send(result).unwrap())
        .expect("queued");
    tell.recv().unwrap().expect("durable")
}

pub fn value(record: &Record) -> String {
    String::from_utf8(record.value.to_vec()).unwrap()
}

/// Everything from the reader's place to the end.
pub fn drain(reader: &mut Reader) -> Result<Vec<Record>, ReadError> {
    let mut all = Vec::new();
    loop {
        let some = reader.read(100, 1 << 20, None)?;
        if some.is_empty() {
            return Ok(all);
        }
        all.extend(some);
    }
}

pub fn values(stream: &Stream, partition: u16) -> Vec<String> {
    drain(&mut stream.reader(partition, ReadFrom::Earliest))
        .expect("readable")
        .iter()
        .map(value)
        .collect()
}

/// The segment files of a partition, in order.
pub fn segments(dir: &Path, stream: &str, partition: u16) -> Vec<PathBuf> {
    let dir = dir.join("streams").join(stream).join(partition.to_string());
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    found.sort();
    found
}

/// Where the batches of a segment file begin, by their length fields.
pub fn batch_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        starts.push(at);
        at += 12 + u32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
    }
    starts
}

/// Small, repeatable dice.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}
