//! The marker file of a stream directory: which format its files have, and what never changes.
//!
//! `stream.meta`, two lines of text:
//! ```text
//! milepost-eventlog 1
//! partitions 4
//! ```
//! It is written last when a stream is made (partition directories first), by renaming a synced
//! file, so a stream is either there as a whole or not there. The 1 stands for everything under the
//! directory: file names, batches (`batch.rs`) and indexes (`index.rs`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk;
use crate::error::OpenError;
use crate::segment::Segment;

const FIRST_LINE: &str = "milepost-eventlog 1";

/// The directory of one partition.
pub(crate) fn partition_dir(stream_dir: &Path, partition: u16) -> PathBuf {
    stream_dir.join(partition.to_string())
}

/// The number of partitions of the stream in `dir`; `None` if there is no stream (or one that a
/// crash left half made, without a record).
pub(crate) fn read(dir: &Path) -> Result<Option<u16>, OpenError> {
    let file = dir.join("stream.meta");
    let text = match fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match has_records(dir) {
                Ok(false) => Ok(None),
                Ok(true) => Err(OpenError::NoMarker {
                    dir: dir.to_owned(),
                }),
                Err(source) => Err(OpenError::Io {
                    action: "listing",
                    file: dir.to_owned(),
                    source,
                }),
            };
        }
        Err(source) => {
            return Err(OpenError::Io {
                action: "reading",
                file,
                source,
            });
        }
    };
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if first != FIRST_LINE {
        return Err(OpenError::Format {
            file,
            found: first.chars().take(80).collect(),
        });
    }
    let partitions = lines
        .next()
        .and_then(|line| line.strip_prefix("partitions "))
        .and_then(|n| n.parse().ok());
    match partitions {
        Some(partitions @ 1..=1024) => Ok(Some(partitions)),
        _ => Err(OpenError::NoMarker {
            dir: dir.to_owned(),
        }),
    }
}

fn has_records(dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for (_, segment) in Segment::list(&entry.path())? {
                if fs::metadata(segment)?.len() > 0 {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Makes an empty stream in `dir`.
pub(crate) fn create(dir: &Path, partitions: u16) -> Result<(), OpenError> {
    let io = |action, file: &Path| {
        let file = file.to_owned();
        move |source| OpenError::Io {
            action,
            file,
            source,
        }
    };
    for partition in 0..partitions {
        let dir = partition_dir(dir, partition);
        disk::create_dir(&dir).map_err(io("creating", &dir))?;
    }
    let (marker, fresh) = (dir.join("stream.meta"), dir.join("stream.meta.tmp"));
    File::create(&fresh)
        .and_then(|mut file| {
            writeln!(file, "{FIRST_LINE}\npartitions {partitions}")?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, &marker))
        .map_err(io("writing", &marker))?;
    disk::sync_dir(dir).map_err(io("syncing", dir))?;
    let streams = dir.parent().unwrap_or(dir);
    disk::sync_dir(streams).map_err(io("syncing", streams))
}
