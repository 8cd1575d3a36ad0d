//! A frame: the batches of one group as they are on disk, whole or not there.
//!
//! ```text
//!  0  checksum  u32   CRC-32C of bytes 4 to the end, begun with the segment's salt
//!  4  length    u32   of the body
//!  8  sequence  u64   frames count through all segments, from 1
//! 16  body      operations (`batch.rs`)
//! ```
//! The next frame is written when this one is durable. So a frame that cannot be read is a torn
//! write if nothing follows it, and damage if anything does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes before the body.
pub(crate) const HEAD: usize = 16;
/// What is read at once: enough to keep a disk busy, little enough to stay in the CPU's cache.
const CHUNK: usize = 1 << 20;

/// Fills in the head of a frame; `frame` is 16 bytes of room and the body.
pub(crate) fn seal(frame: &mut [u8], sequence: u64, salt: u32) {
    // A batch and what joins it in a group stay far below 4 GiB (`Batch::MAX_BYTES`, `group.rs`).
    let length = (frame.len() - HEAD) as u32;
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    frame[8..16].copy_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c_append(salt, &frame[4..]);
    frame[..4].copy_from_slice(&checksum.to_le_bytes());
}

#[derive(Clone, Copy)]
struct Head {
    checksum: u32,
    length: usize,
    sequence: u64,
}

impl Head {
    fn decode(bytes: &[u8]) -> Option<Head> {
        let (checksum, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let sequence = rest.first_chunk()?;
        Some(Head {
            checksum: u32::from_le_bytes(*checksum),
            length: u32::from_le_bytes(*length) as usize,
            sequence: u64::from_le_bytes(*sequence),
        })
    }
}

/// What comes next in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A frame, see [`FrameReader::frame`].
    Frame,
    /// Nothing.
    End,
    /// Something that is not the next frame.
    Bad(&'static str),
}

/// A frame that was read.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// Where its body begins in the file.
    pub(crate) body_at: u64,
    pub(crate) body: &'a [u8],
}

/// Reads the frames of a file, one after the other, through one buffer.
#[derive(Debug)]
pub(crate) struct FrameReader {
    file: File,
    salt: u32,
    /// Where reading ends.
    limit: u64,
    /// Where the next frame begins.
    at: u64,
    /// Its sequence.
    sequence: u64,
    buffer: Vec<u8>,
    /// The last frame in the buffer.
    last: usize,
    /// The bytes from `at` on are in `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(crate) fn new(file: File, salt: u32, at: u64, limit: u64, sequence: u64) -> FrameReader {
        FrameReader {
            file,
            salt,
            limit,
            at,
            sequence,
            buffer: Vec::new(),
            last: 0,
            start: 0,
            end: 0,
        }
    }

    /// Like `new`, with the memory of a reader that has done its work.
    pub(crate) fn reuse(self, file: File, salt: u32, at: u64, limit: u64, sequence: u64) -> Self {
        FrameReader {
            buffer: self.buffer,
            ..FrameReader::new(file, salt, at, limit, sequence)
        }
    }

    /// Where the next frame begins.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Goes on to the next frame. After `Bad` it stays where it is.
    pub(crate) fn advance(&mut self) -> io::Result<Step> {
        if self.at == self.limit {
            return Ok(Step::End);
        }
        if self.limit - self.at < HEAD as u64 {
            return Ok(Step::Bad("the head of a frame is cut off"));
        }
        self.fill(HEAD)?;
        let Some(head) = Head::decode(&self.buffer[self.start..self.end]) else {
            return Ok(Step::Bad("the head of a frame is cut off"));
        };
        if head.sequence != self.sequence {
            return Ok(Step::Bad("this is not the next frame"));
        }
        let size = HEAD + head.length;
        if size as u64 > self.limit - self.at {
            return Ok(Step::Bad("a frame is cut off"));
        }
        self.fill(size)?;
        let frame = &self.buffer[self.start..self.start + size];
        if crc32c::crc32c_append(self.salt, &frame[4..]) != head.checksum {
            return Ok(Step::Bad("the checksum of a frame does not match"));
        }
        self.last = self.start;
        self.start += size;
        self.at += size as u64;
        self.sequence += 1;
        Ok(Step::Frame)
    }

    /// The frame that the last call of `advance` found.
    pub(crate) fn frame(&self) -> Frame<'_> {
        let body = &self.buffer[(self.last + HEAD).min(self.start)..self.start];
        Frame {
            body_at: self.at - body.len() as u64,
            body,
        }
    }

    /// Gets `size` bytes from `at` on into the buffer; the caller knows that the file has them.
    fn fill(&mut self, size: usize) -> io::Result<()> {
        let have = self.end - self.start;
        if have >= size {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.last, self.start, self.end) = (0, 0, have);
        if self.buffer.len() < size.max(CHUNK) {
            self.buffer.resize(size.max(CHUNK), 0);
        }
        while self.end < size {
            let from = self.at + self.end as u64;
            let room = (self.buffer.len() - self.end) as u64;
            let wanted = room.min(self.limit - from) as usize;
            let into = &mut self.buffer[self.end..self.end + wanted];
            match self.file.read_at(into, from) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Looks for a whole frame behind the place where `advance` said `Bad`, at any byte. Returns
    /// where it begins.
    pub(crate) fn find_behind(&self) -> io::Result<Option<u64>> {
        let remaining = self.limit - self.at;
        // Later frames have later sequences, and there cannot be more of them than fit.
        let later = self.sequence + 1..=self.sequence + remaining / HEAD as u64;
        let mut chunk = vec![0; CHUNK];
        let mut from = self.at + 1;
        while from + HEAD as u64 <= self.limit {
            let size = (self.limit - from).min(CHUNK as u64) as usize;
            self.file.read_exact_at(&mut chunk[..size], from)?;
            let places = size - HEAD + 1;
            for (place, bytes) in chunk[..size].windows(HEAD).enumerate() {
                let at = from + place as u64;
                if let Some(head) = Head::decode(bytes)
                    && later.contains(&head.sequence)
                    && head.length as u64 <= self.limit - at - HEAD as u64
                    && self.is_frame(head, at)?
                {
                    return Ok(Some(at));
                }
            }
            from += places as u64;
        }
        Ok(None)
    }

    fn is_frame(&self, head: Head, at: u64) -> io::Result<bool> {
        let mut frame = vec![0; HEAD + head.length - 4];
        self.file.read_exact_at(&mut frame, at + 4)?;
        Ok(crc32c::crc32c_append(self.salt, &frame) == head.checksum)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SALT: u32 = 0xABCD;

    fn file_of(bodies: &[Vec<u8>]) -> (File, Vec<u64>) {
        let mut file = tempfile::tempfile().unwrap();
        let mut begins = vec![0];
        for (sequence, body) in (5..).zip(bodies) {
            let mut frame = vec![0; HEAD];
            frame.extend_from_slice(body);
            seal(&mut frame, sequence, SALT);
            file.write_all(&frame).unwrap();
            begins.push(begins.last().unwrap() + frame.len() as u64);
        }
        (file, begins)
    }

    fn reader(file: &File, limit: u64) -> FrameReader {
        FrameReader::new(file.try_clone().unwrap(), SALT, 0, limit, 5)
    }

    #[test]
    fn frames_of_all_sizes_come_back() {
        let bodies: Vec<Vec<u8>> = [1, 0, 100, CHUNK - 10, CHUNK, 3 * CHUNK + 1, 7, 7]
            .iter()
            .enumerate()
            .map(|(n, &size)| vec![n as u8 + 1; size])
            .collect();
        let (file, begins) = file_of(&bodies);
        let mut reader = reader(&file, *begins.last().unwrap());
        for (body, begin) in bodies.iter().zip(&begins) {
            assert_eq!(reader.advance().unwrap(), Step::Frame);
            let frame = reader.frame();
            assert_eq!(frame.body_at, begin + HEAD as u64);
            assert!(frame.body == body);
        }
        assert_eq!(reader.advance().unwrap(), Step::End);
    }

    #[test]
    fn a_cut_frame_is_bad_and_nothing_is_behind_it() {
        let (file, begins) = file_of(&[vec![1; 30], vec![2; 40]]);
        for limit in begins[1] + 1..begins[2] {
            let mut reader = reader(&file, limit);
            assert_eq!(reader.advance().unwrap(), Step::Frame);
            assert!(matches!(reader.advance().unwrap(), Step::Bad(_)), "{limit}");
            assert_eq!(reader.at(), begins[1]);
            assert_eq!(reader.find_behind().unwrap(), None, "{limit}");
        }
    }

    #[test]
    fn what_is_behind_a_flipped_bit_is_found() {
        let (file, begins) = file_of(&[vec![1; 30], vec![2; 40], vec![3; 50]]);
        let all = *begins.last().unwrap();
        for at in 0..begins[2] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            let mut reader = reader(&file, all);
            while reader.advance().unwrap() == Step::Frame {}
            let bad = if at < begins[1] { 0 } else { 1 };
            assert_eq!(reader.at(), begins[bad]);
            assert_eq!(reader.find_behind().unwrap(), Some(begins[bad + 1]));
            file.write_all_at(&byte, at).unwrap();
        }
    }
}
