//! The sparse index of a segment: from offset to file position, one entry every 16 KiB or so.
//!
//! It only saves time. The active segment's index is in memory; a segment's file is written when
//! it is sealed, and made again from the segment whenever it is missing, torn or wrong.
//!
//! ```text
//! 8 bytes  "MPINDEX" and the version, 1
//! entries  u32 base offset of a batch - base offset of the segment, u32 position (big-endian)
//! 4 bytes  CRC32C of everything before (big-endian)
//! ```

use std::fs;
use std::io;
use std::path::Path;

use crate::record::Offset;

const MAGIC: &[u8; 8] = b"MPINDEX\x01";
/// A seek reads half of this in vain, and 64 MiB of segment need 32 KiB of index.
const INTERVAL: u64 = 16 << 10;

/// Entries, ascending. Always has the segment's first batch, implicitly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    entries: Vec<(u32, u32)>,
}

impl SparseIndex {
    /// Notes the batch at `position`, if it is far enough from the last one noted.
    pub(crate) fn note(&mut self, segment_base: Offset, batch_base: Offset, position: u64) {
        let last = self
            .entries
            .last()
            .map_or(0, |(_, position)| u64::from(*position));
        let delta = batch_base.get() - segment_base.get();
        if position >= last + INTERVAL
            && let (Ok(delta), Ok(position)) = (u32::try_from(delta), u32::try_from(position))
        {
            self.entries.push((delta, position));
        }
    }

    /// The last batch noted at or before `offset`: its position and base offset.
    pub(crate) fn floor(&self, segment_base: Offset, offset: Offset) -> (u64, Offset) {
        let wanted = offset.get().saturating_sub(segment_base.get());
        let after = self
            .entries
            .partition_point(|(delta, _)| u64::from(*delta) <= wanted);
        match after.checked_sub(1).map(|at| self.entries[at]) {
            Some((delta, position)) => {
                (u64::from(position), segment_base.advance(u64::from(delta)))
            }
            None => (0, segment_base),
        }
    }

    /// The batches noted behind `position`.
    pub(crate) fn behind(
        &self,
        segment_base: Offset,
        position: u64,
    ) -> impl Iterator<Item = (u64, Offset)> {
        let after = self
            .entries
            .partition_point(|(_, noted)| u64::from(*noted) <= position);
        self.entries[after..].iter().map(move |(delta, position)| {
            (
                u64::from(*position),
                segment_base.advance(u64::from(*delta)),
            )
        })
    }

    /// Writes the index file. Not synced: a torn one is made again.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(MAGIC.len() + self.entries.len() * 8 + 4);
        bytes.extend(MAGIC);
        for (delta, position) in &self.entries {
            bytes.extend(delta.to_be_bytes());
            bytes.extend(position.to_be_bytes());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        fs::write(path, bytes)
    }

    /// Reads the index file. `None`: missing, torn or not one of ours.
    pub(crate) fn load(path: &Path) -> Option<SparseIndex> {
        let bytes = fs::read(path).ok()?;
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(covered) != u32::from_be_bytes(*crc) {
            return None;
        }
        let (entries, rest) = covered.strip_prefix(MAGIC)?.as_chunks::<8>();
        rest.is_empty().then(|| SparseIndex {
            entries: entries
                .iter()
                .map(|[a, b, c, d, e, f, g, h]| {
                    (
                        u32::from_be_bytes([*a, *b, *c, *d]),
                        u32::from_be_bytes([*e, *f, *g, *h]),
                    )
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_batch_at_or_before_an_offset_and_survives_its_file() {
        let base = Offset::new(100);
        let mut index = SparseIndex::default();
        for (offset, position) in [
            (100, 0),
            (110, 8_000),
            (120, 16_384),
            (130, 20_000),
            (140, 40_000),
        ] {
            index.note(base, Offset::new(offset), position);
        }
        for (offset, found) in [
            (99, (0, 100)),
            (100, (0, 100)),
            (119, (0, 100)),
            (120, (16_384, 120)),
            (139, (16_384, 120)),
            (900, (40_000, 140)),
        ] {
            assert_eq!(
                index.floor(base, Offset::new(offset)),
                (found.0, Offset::new(found.1)),
                "{offset}"
            );
        }

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.index");
        index.save(&path).unwrap();
        assert_eq!(SparseIndex::load(&path), Some(index));

        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(SparseIndex::load(&path), None, "cut to {length} bytes");
        }
        assert_eq!(SparseIndex::load(&dir.path().join("missing")), None);
    }
}
