//! Segment files: their names, and the header that makes them a chain.
//!
//! A segment is a file `{number, 20 digits}.segment`: a header of 64 bytes, then frames (`frame.rs`).
//! Integers are little-endian:
//! ```text
//!  0  magic            b"mpjournl"
//!  8  version          u32   1
//! 12  salt             u32   what checksums of this file begin with
//! 16  number           u64   of this segment, from 1
//! 24  previous number  u64   of the segment before this one; 0: there was none
//! 32  previous length  u64   how much of the segment before this one counts
//! 40  first sequence   u64   of the first frame
//! 48  reserved         12 bytes, zero
//! 60  checksum         u32   CRC-32C of bytes 0 to 59
//! ```
//!
//! A segment is sealed by its successor's header, not by a change of its own: what is behind
//! `previous length` was never durable (a write or a sync failed there) and does not count, whatever
//! it looks like; what is before it was, and must be readable. So a file whose disk has failed is
//! never needed again to get on, and recovery can tell an abandoned tail from damage.
//!
//! The header is synced, with the file's name, before the first frame is written. The salt is made
//! from the process's random hash keys: nobody outside can put bytes into a value that look like a
//! frame to a recovery that searches for one.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, Failure, SegmentFile};

/// Bytes of the header.
pub(crate) const HEADER: u64 = 64;
const MAGIC: &[u8; 8] = b"mpjournl";
const VERSION: u32 = 1;

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) salt: u32,
    pub(crate) number: u64,
    pub(crate) previous: Option<Previous>,
    pub(crate) first_sequence: u64,
}

/// The segment before, as its successor knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Previous {
    pub(crate) number: u64,
    pub(crate) length: u64,
}

/// What the first bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Header(Header),
    /// A header of another version.
    Version(u32),
    /// Not a header.
    Nothing,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER as usize] {
        let previous = self.previous.unwrap_or(Previous {
            number: 0,
            length: 0,
        });
        let mut bytes = [0; HEADER as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.salt.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&previous.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&previous.length.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_sequence.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER as usize]) -> Found {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        if &bytes[..8] != MAGIC {
            return Found::Nothing;
        }
        if u32_at(8) != VERSION {
            return Found::Version(u32_at(8));
        }
        if crc32c::crc32c(&bytes[..60]) != u32_at(60) {
            return Found::Nothing;
        }
        let previous = Previous {
            number: u64_at(24),
            length: u64_at(32),
        };
        Found::Header(Header {
            salt: u32_at(12),
            number: u64_at(16),
            previous: Some(previous).filter(|previous| previous.number > 0),
            first_sequence: u64_at(40),
        })
    }
}

/// A segment of the chain, as the writer knows it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    /// Bytes that are durable, header included.
    pub(crate) length: u64,
    /// Live records in it and their bytes.
    pub(crate) live_records: u64,
    pub(crate) live_bytes: u64,
}

impl Segment {
    pub(crate) fn new(path: PathBuf, header: Header, length: u64) -> Segment {
        Segment {
            path,
            header,
            length,
            live_records: 0,
            live_bytes: 0,
        }
    }

    /// Makes the file, durably, name and all. When it fails the file may be there or not.
    pub(crate) fn create(disk: &Disk, header: Header) -> Result<(Segment, SegmentFile), Failure> {
        let path = path_of(disk.dir(), header.number);
        let file = disk.create(&path)?;
        file.write(&header.encode(), 0)?;
        file.sync()?;
        disk.sync_names()?;
        Ok((Segment::new(path, header, HEADER), file))
    }
}

/// A number nobody outside this process can guess.
pub(crate) fn fresh_salt(number: u64) -> u32 {
    RandomState::new().hash_one(number) as u32
}

pub(crate) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.segment"))
}

/// The segment files in `dir`, by number.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in dir.read_dir()? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".segment"));
        if let Some(digits) = digits
            && digits.len() == 20
            && let Ok(number @ 1..) = digits.parse()
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_any_bit_flipped_is_not_one() {
        let header = Header {
            salt: 7,
            number: 3,
            previous: Some(Previous {
                number: 1,
                length: 4711,
            }),
            first_sequence: 12,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Found::Header(header));
        for bit in 0..64 * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !matches!(Header::decode(&bad), Found::Header(_)),
                "bit {bit}"
            );
        }
        assert_eq!(Header::decode(&[0; 64]), Found::Nothing);
    }

    #[test]
    fn only_whole_names_are_segments() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "00000000000000000002.segment",
            "00000000000000000010.segment",
            "00000000000000000000.segment",
            "1.segment",
            "00000000000000000003.removed",
            "lock",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [2, 10]);
    }
}
