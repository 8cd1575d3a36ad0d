//! Consumer groups: how far each consumer has come, durably.
//!
//! One small file per group, `groups/{group}.offsets`. A commit appends one entry and syncs it; an
//! entry holds one or more offsets, which become durable together. On opening, the last entry per
//! partition counts, and an unfinished entry at the end is cut off. When the file has grown, it is
//! written anew beside the old one and renamed over it.
//!
//! ```text
//! 8 bytes  "MPGROUP" and the version, 1
//! entries  u32 length of the body, u32 CRC32C of the body, body:
//!          u16 how many, each: u8 length of the stream name, name, u16 partition, u64 offset
//! ```
//! All integers are big-endian.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk;
use crate::error::GroupError;
use crate::name;
use crate::record::Offset;

const MAGIC: &[u8; 8] = b"MPGROUP\x01";
/// The file is written anew beyond this: some 1,500 commits, and read in no time.
const REWRITE_AT: u64 = 64 << 10;
/// Offsets in one entry of a rewritten file.
const ENTRY_OFFSETS: usize = 1000;

/// A consumer group's offsets: cheap to clone, usable from every thread.
#[derive(Debug, Clone)]
pub struct Group {
    name: Arc<str>,
    offsets: Arc<Mutex<Offsets>>,
}

#[derive(Debug)]
struct Offsets {
    path: PathBuf,
    durable: HashMap<(String, u16), Offset>,
    file: GroupFile,
}

#[derive(Debug)]
enum GroupFile {
    /// Entries can be appended at `length`.
    Open { file: File, length: u64 },
    /// Not there yet, or an attempt to write it has failed: the next commit writes it anew.
    Rewrite,
    /// The log is closed; another process may own the file.
    Closed,
}

impl Group {
    /// Opens a group; also says how many bytes of an unfinished commit were cut off.
    pub(crate) fn open(name: &str, dir: &Path) -> Result<(Group, u64), (PathBuf, io::Error)> {
        let path = dir.join(format!("{name}.offsets"));
        let (offsets, torn) = Offsets::load(&path).map_err(|error| (path, error))?;
        Ok((
            Group {
                name: name.into(),
                offsets: Arc::new(Mutex::new(offsets)),
            },
            torn,
        ))
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Remembers durably where the group goes on in a partition: the offset of the first record
    /// it has *not* yet dealt with. Going back is allowed. Blocks for one `fdatasync`. `stream` is
    /// a `&str` or a [`&Stream`](crate::Stream).
    pub fn commit(
        &self,
        stream: impl AsRef<str>,
        partition: u16,
        next: Offset,
    ) -> Result<(), GroupError> {
        self.commit_all([(stream, partition, next)])
    }

    /// Several commits with one `fdatasync`; after a crash all of them are there, or none.
    pub fn commit_all<S: AsRef<str>>(
        &self,
        commits: impl IntoIterator<Item = (S, u16, Offset)>,
    ) -> Result<(), GroupError> {
        let mut list = Vec::new();
        for (stream, partition, offset) in commits {
            let stream = stream.as_ref();
            if !name::is_allowed(stream) {
                return Err(GroupError::StreamName {
                    stream: stream.to_owned(),
                });
            }
            list.push(((stream.to_owned(), partition), offset));
        }
        if list.len() > usize::from(u16::MAX) {
            return Err(GroupError::TooMany {
                commits: list.len(),
            });
        }
        if list.is_empty() {
            return Ok(());
        }
        self.offsets().commit(list)
    }

    /// Where the group goes on in a partition; `None` if it never committed there.
    pub fn committed(&self, stream: impl AsRef<str>, partition: u16) -> Option<Offset> {
        self.offsets()
            .durable
            .get(&(stream.as_ref().to_owned(), partition))
            .copied()
    }

    /// Everything the group has committed: stream, partition, offset; sorted.
    pub fn all_committed(&self) -> Vec<(String, u16, Offset)> {
        let offsets = self.offsets();
        let mut all: Vec<_> = offsets
            .durable
            .iter()
            .map(|((s, p), offset)| (s.clone(), *p, *offset))
            .collect();
        all.sort();
        all
    }

    pub(crate) fn close(&self) {
        self.offsets().file = GroupFile::Closed;
    }

    fn offsets(&self) -> MutexGuard<'_, Offsets> {
        // The map changes only after the file; a panic in between leaves both whole.
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offsets {
    fn load(path: &Path) -> io::Result<(Offsets, u64)> {
        let mut offsets = Offsets {
            path: path.to_owned(),
            durable: HashMap::new(),
            file: GroupFile::Rewrite,
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((offsets, 0)),
            Err(error) => return Err(error),
        };
        // The file appears by renaming a synced one, so its head is never torn.
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a group file of version 1",
            ));
        };
        while let Some((entry, after)) = take_entry(rest) {
            offsets.durable.extend(entry);
            rest = after;
        }
        let torn = rest.len() as u64;
        let length = bytes.len() as u64 - torn;
        let file = OpenOptions::new().write(true).open(path)?;
        if torn > 0 {
            file.set_len(length)?;
            file.sync_all()?;
        }
        offsets.file = GroupFile::Open { file, length };
        Ok((offsets, torn))
    }

    fn commit(&mut self, list: Vec<((String, u16), Offset)>) -> Result<(), GroupError> {
        match &mut self.file {
            GroupFile::Closed => return Err(GroupError::Closed),
            GroupFile::Open { file, length } if *length < REWRITE_AT => {
                let entry = entry(
                    list.iter()
                        .map(|((stream, partition), offset)| (stream, *partition, *offset)),
                );
                let written = file
                    .write_all_at(&entry, *length)
                    .and_then(|()| file.sync_data());
                if let Err(source) = written {
                    // What is behind `length` now is unknown; the next commit writes a new file.
                    let _ = file.set_len(*length);
                    self.file = GroupFile::Rewrite;
                    return Err(self.failed("writing", source));
                }
                *length += entry.len() as u64;
                self.durable.extend(list);
            }
            GroupFile::Open { .. } | GroupFile::Rewrite => {
                let mut next = self.durable.clone();
                next.extend(list);
                self.file = GroupFile::Rewrite;
                self.file = self
                    .rewrite(&next)
                    .map_err(|source| self.failed("replacing", source))?;
                self.durable = next;
            }
        }
        Ok(())
    }

    fn rewrite(&self, offsets: &HashMap<(String, u16), Offset>) -> io::Result<GroupFile> {
        let mut all: Vec<_> = offsets
            .iter()
            .map(|((stream, partition), offset)| (stream, *partition, *offset))
            .collect();
        all.sort();
        let mut bytes = MAGIC.to_vec();
        for some in all.chunks(ENTRY_OFFSETS) {
            bytes.extend(entry(some.iter().copied()));
        }
        let fresh = self.path.with_extension("offsets.tmp");
        let file = File::create(&fresh)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        disk::sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(GroupFile::Open {
            file,
            length: bytes.len() as u64,
        })
    }

    fn failed(&self, action: &'static str, source: io::Error) -> GroupError {
        GroupError::Io {
            action,
            file: self.path.clone(),
            source,
        }
    }
}

fn entry<'a>(offsets: impl ExactSizeIterator<Item = (&'a String, u16, Offset)>) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend((offsets.len() as u16).to_be_bytes());
    for (stream, partition, offset) in offsets {
        bytes.push(stream.len() as u8);
        bytes.extend(stream.as_bytes());
        bytes.extend(partition.to_be_bytes());
        bytes.extend(offset.get().to_be_bytes());
    }
    let length = (bytes.len() - 8) as u32;
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes[4..8].copy_from_slice(&crc.to_be_bytes());
    bytes
}

type Entry = Vec<((String, u16), Offset)>;

/// The entry at the front, and what is behind it; `None` if there is no whole one.
fn take_entry(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (mut body, after) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*crc) {
        return None;
    }
    let mut entry = Vec::new();
    let (count, rest) = body.split_first_chunk::<2>()?;
    body = rest;
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, rest) = body.split_first()?;
        let (stream, rest) = rest.split_at_checked(usize::from(*length))?;
        let (partition, rest) = rest.split_first_chunk::<2>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let stream = std::str::from_utf8(stream).ok()?.to_owned();
        entry.push((
            (stream, u16::from_be_bytes(*partition)),
            Offset::new(u64::from_be_bytes(*offset)),
        ));
        body = rest;
    }
    body.is_empty().then_some((entry, after))
}
