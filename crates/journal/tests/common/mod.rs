//! What the tests of the journal share.
#![allow(dead_code)] // Each test file uses a part of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use journal::{Batch, Event, Journal, Options, Position, RecordId, Recovered, RecoveryReport};

pub type State = BTreeMap<u64, Vec<u8>>;

pub fn small() -> Options {
    Options {
        segment_bytes: 4096,
        ..Options::default()
    }
}

/// An open journal and its events.
pub struct Open {
    pub journal: Journal,
    pub events: Receiver<Event>,
    pub found: State,
    pub report: RecoveryReport,
}

pub fn open(dir: &Path, options: Options) -> Open {
    let (told, events) = channel();
    let (journal, recovered) = Journal::open(dir, options, move |event| {
        // A test may have heard enough.
        let _ = told.send(event);
    })
    .unwrap();
    let report = recovered.report().clone();
    Open {
        journal,
        events,
        found: drain(recovered),
        report,
    }
}

pub fn drain(recovered: Recovered) -> State {
    let mut state = State::new();
    recovered
        .for_each(|id, value| assert_eq!(state.insert(id.0, value.to_vec()), None, "{id:?} twice"))
        .unwrap();
    state
}

impl Open {
    pub fn wait(&self, position: Position) {
        while self.journal.durable() < position {
            self.events.recv().unwrap();
        }
    }

    /// Submits and waits.
    pub fn commit(&self, batch: Batch) {
        self.wait(self.journal.submit(batch));
    }
}

pub fn put(id: u64, value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(RecordId(id), value);
    batch
}

pub fn delete(id: u64) -> Batch {
    let mut batch = Batch::new();
    batch.delete(RecordId(id));
    batch
}

pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "segment"))
        .collect();
    paths.sort();
    paths
}

pub fn disk_bytes(dir: &Path) -> u64 {
    segments(dir)
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum()
}

/// A directory with the same segments.
pub fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for path in segments(dir) {
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}
