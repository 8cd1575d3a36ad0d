//! How raw CAN frames travel in a message: content type [`CAN_CONTENT_TYPE`], version 1.
//!
//! ```text
//! message   version   u8        1
//!           count     varint    frames that follow, at most 65,536
//!           base      i64       µs since the Unix epoch, little-endian
//!           frame × count
//! frame     delta     varint    µs since the frame before (the first: since base), zigzag
//!           bus       u8
//!           head      u8        bit 7: the id is extended; bits 6 to 0: bytes of data
//!           id        u16, or u32 if extended; little-endian
//!           data      0 to 8, 12, 16, 20, 24, 32, 48 or 64 bytes
//! varint    LEB128, at most 10 bytes, in its shortest form
//! zigzag    0, -1, 1, -2, … as 0, 1, 2, 3, …
//! ```
//!
//! A classic frame takes 14 bytes; a candump line takes 45. The count says how many to expect, so a payload
//! that was cut between two frames is noticed. There is exactly one encoding of a list of frames: whatever
//! decodes, encodes to the same bytes if its base is the time of its first frame, as [`encode_frames`] has it.
//!
//! Refused: PCAP's and MF4's richer headers (remote, error and status frames carry no signals) and a general
//! container such as protobuf, which needs twice the bytes for the same frames.

use super::{CanData, CanFrame, CanId};
use crate::timestamp::PLAUSIBLE;

/// Content type of payloads in this format.
pub const CAN_CONTENT_TYPE: &str = "application/vnd.milepost.can";

/// Frames one message may hold: some 20 seconds of a fully loaded 500 kbit/s bus, and 7 MB of memory.
pub const MAX_FRAMES: usize = 65_536;

const VERSION: u8 = 1;
const EXTENDED: u8 = 0x80;
/// Delta 1, bus 1, head 1, standard id 2, no data.
const SHORTEST_FRAME: usize = 5;

/// Why bytes are not frames: what is wrong, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of the CAN payload: {problem}")]
pub struct FramingError {
    /// Offset of the byte in the payload.
    pub offset: usize,
    /// What is wrong there.
    pub problem: FramingProblem,
}

/// What can be wrong with CAN frames and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingProblem {
    /// The payload ends before the frame does.
    #[error("the payload ends in the middle; it was cut short or its count is too high")]
    CutShort,
    /// Bytes after the last frame.
    #[error("bytes follow the last frame; the count is too low or something was appended")]
    Trailing,
    /// Not version 1.
    #[error("format version {0} is unknown; this server reads version {VERSION}")]
    Version(u8),
    /// More than [`MAX_FRAMES`].
    #[error("{0} frames in one message are more than {MAX_FRAMES}; send them in several")]
    TooMany(u64),
    /// A varint of more than 64 bits, or with needless bytes.
    #[error("this varint is longer than 64 bits or not in its shortest form")]
    Varint,
    /// Not between 1970 and 2100.
    #[error("the frame's time, {0} µs since the epoch, is not between 1970 and 2100")]
    Time(i64),
    /// No frame has so many bytes.
    #[error(
        "a CAN frame cannot carry {0} bytes; 0 to 8, 12, 16, 20, 24, 32, 48 or 64 are possible"
    )]
    Length(u8),
    /// The identifier does not fit its 11 or 29 bits.
    #[error("identifier {0:#x} does not fit into its 11 (standard) or 29 (extended) bits")]
    Id(u32),
}

/// Writes frames as one payload.
///
/// # Errors
/// [`FramingProblem::TooMany`], [`FramingProblem::Time`] and [`FramingProblem::Id`]. The offset is that of the byte
/// the frame would have begun at.
pub fn encode_frames(frames: &[CanFrame]) -> Result<Vec<u8>, FramingError> {
    let mut out = Vec::with_capacity(16 + frames.len() * 14);
    if frames.len() > MAX_FRAMES {
        let problem = FramingProblem::TooMany(frames.len() as u64);
        return Err(FramingError { offset: 1, problem });
    }
    out.push(VERSION);
    write_varint(frames.len() as u64, &mut out);
    let mut time_us = frames.first().map_or(0, |frame| frame.time_us);
    out.extend_from_slice(&time_us.to_le_bytes());
    for frame in frames {
        if !PLAUSIBLE.contains(&frame.time_us) {
            return Err(FramingError {
                offset: out.len(),
                problem: FramingProblem::Time(frame.time_us),
            });
        }
        if !frame.id.is_valid() {
            let id = match frame.id {
                CanId::Standard(id) => u32::from(id),
                CanId::Extended(id) => id,
            };
            return Err(FramingError {
                offset: out.len(),
                problem: FramingProblem::Id(id),
            });
        }
        write_varint(zigzag(frame.time_us.wrapping_sub(time_us)), &mut out);
        time_us = frame.time_us;
        out.push(frame.bus);
        match frame.id {
            CanId::Standard(id) => {
                out.push(frame.data.len);
                out.extend_from_slice(&id.to_le_bytes());
            }
            CanId::Extended(id) => {
                out.push(frame.data.len | EXTENDED);
                out.extend_from_slice(&id.to_le_bytes());
            }
        }
        out.extend_from_slice(&frame.data);
    }
    Ok(out)
}

/// Reads the frames of a payload.
///
/// # Errors
/// [`FramingError`] names the first byte that is wrong.
pub fn decode_frames(payload: &[u8]) -> Result<Vec<CanFrame>, FramingError> {
    let mut bytes = Bytes {
        all: payload,
        at: 0,
    };
    let [version] = bytes.take()?;
    if version != VERSION {
        return Err(FramingError {
            offset: 0,
            problem: FramingProblem::Version(version),
        });
    }
    let count = bytes.varint()?;
    if count > MAX_FRAMES as u64 {
        return Err(FramingError {
            offset: 1,
            problem: FramingProblem::TooMany(count),
        });
    }
    let mut time_us = i64::from_le_bytes(bytes.take()?);
    // What the sender claims is believed only as far as its bytes could carry it.
    let plausible = (payload.len() / SHORTEST_FRAME).min(count as usize);
    let mut frames = Vec::with_capacity(plausible);
    for _ in 0..count {
        let at = bytes.at;
        time_us = time_us.wrapping_add(unzigzag(bytes.varint()?));
        if !PLAUSIBLE.contains(&time_us) {
            return Err(FramingError {
                offset: at,
                problem: FramingProblem::Time(time_us),
            });
        }
        frames.push(bytes.frame(time_us)?);
    }
    if bytes.at < payload.len() {
        return Err(bytes.wrong(FramingProblem::Trailing));
    }
    Ok(frames)
}

struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn wrong(&self, problem: FramingProblem) -> FramingError {
        FramingError {
            offset: self.at,
            problem,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], FramingError> {
        let rest = self.all.get(self.at..).unwrap_or_default();
        let Some((bytes, _)) = rest.split_first_chunk::<N>() else {
            return Err(self.wrong(FramingProblem::CutShort));
        };
        self.at += N;
        Ok(*bytes)
    }

    fn varint(&mut self) -> Result<u64, FramingError> {
        let start = self.at;
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take()?;
            let bits = u64::from(byte & 0x7F);
            let needless = byte == 0 && shift > 0;
            if needless || bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FramingError {
            offset: start,
            problem: FramingProblem::Varint,
        })
    }

    fn frame(&mut self, time_us: i64) -> Result<CanFrame, FramingError> {
        let [bus, head] = self.take()?;
        let at_head = self.at - 1;
        let at_id = self.at;
        let id = if head & EXTENDED == 0 {
            CanId::Standard(u16::from_le_bytes(self.take()?))
        } else {
            CanId::Extended(u32::from_le_bytes(self.take()?))
        };
        if !id.is_valid() {
            return Err(FramingError {
                offset: at_id,
                problem: FramingProblem::Id(match id {
                    CanId::Standard(id) => u32::from(id),
                    CanId::Extended(id) => id,
                }),
            });
        }
        let len = head & !EXTENDED;
        let Some(data) = self.all.get(self.at..self.at + usize::from(len)) else {
            return Err(self.wrong(FramingProblem::CutShort));
        };
        let Some(data) = CanData::new(data) else {
            return Err(FramingError {
                offset: at_head,
                problem: FramingProblem::Length(len),
            });
        };
        self.at += usize::from(len);
        Ok(CanFrame {
            time_us,
            bus,
            id,
            data,
        })
    }
}

fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(time_us: i64, id: CanId, data: &[u8]) -> CanFrame {
        CanFrame {
            time_us,
            bus: 1,
            id,
            data: CanData::new(data).expect("a length that frames have"),
        }
    }

    /// Frozen: recordings in bronze are read back for years.
    #[test]
    fn version_1_is_these_bytes() {
        let frames = [
            frame(1_000_000, CanId::Standard(0x7FF), &[0xAA, 0xBB]),
            frame(1_000_064, CanId::Extended(0x18FE_F1FE), &[]),
            frame(1_000_063, CanId::Standard(0x25), &[1, 2, 3, 4, 5, 6, 7, 8]),
        ];
        let expected: &[u8] = &[
            1, 3, 0x40, 0x42, 0x0F, 0, 0, 0, 0, 0, // version, count, base
            0, 1, 0x02, 0xFF, 0x07, 0xAA, 0xBB, //
            0x80, 0x01, 1, 0x80, 0xFE, 0xF1, 0xFE, 0x18, //
            1, 1, 0x08, 0x25, 0x00, 1, 2, 3, 4, 5, 6, 7, 8,
        ];
        assert_eq!(encode_frames(&frames).expect("encodes"), expected);
        assert_eq!(decode_frames(expected).expect("decodes"), frames);
    }

    #[test]
    fn no_frames_are_a_message_too() {
        let bytes = encode_frames(&[]).expect("encodes");
        assert_eq!(decode_frames(&bytes), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        use FramingProblem::{CutShort, Id, Length, Time, TooMany, Trailing, Varint, Version};
        let base = [0; 8];
        let rows: [(&str, &[&[u8]], usize, FramingProblem); 16] = [
            ("empty", &[], 0, CutShort),
            ("JSON by mistake", &[b"{\"time\": 1}"], 0, Version(b'{')),
            ("version 2", &[&[2, 0], &base], 0, Version(2)),
            ("no count", &[&[1]], 1, CutShort),
            (
                "65,537",
                &[&[1, 0x81, 0x80, 0x04], &base],
                1,
                TooMany(65_537),
            ),
            ("needless byte", &[&[1, 0x81, 0x00], &base], 1, Varint),
            ("65 bits", &[&[1], &[0xFF; 9], &[0x02], &base], 1, Varint),
            ("endless", &[&[1], &[0xFF; 20]], 1, Varint),
            ("half a base", &[&[1, 0, 9, 9]], 2, CutShort),
            ("no frame", &[&[1, 1], &base], 10, CutShort),
            (
                "half an id",
                &[&[1, 1], &base, &[0, 0, 0x80, 1, 2, 3]],
                13,
                CutShort,
            ),
            (
                "12-bit id",
                &[&[1, 1], &base, &[0, 0, 0, 0, 8]],
                13,
                Id(0x800),
            ),
            (
                "30-bit id",
                &[&[1, 1], &base, &[0, 0, 0x80, 0, 0, 0, 0x20]],
                13,
                Id(0x2000_0000),
            ),
            (
                "9 bytes",
                &[&[1, 1], &base, &[0, 0, 9, 1, 0], &[0; 9]],
                12,
                Length(9),
            ),
            ("1969", &[&[1, 1], &base, &[1, 0, 0, 1, 0]], 10, Time(-1)),
            ("one byte more", &[&[1, 0], &base, &[0]], 10, Trailing),
        ];
        for (name, parts, offset, problem) in rows {
            let expected = Err(FramingError { offset, problem });
            assert_eq!(decode_frames(&parts.concat()), expected, "{name}");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let frames: Vec<_> = (0..5)
            .map(|n| frame(n * 1_000, CanId::Standard(7), &[n as u8; 8]))
            .collect();
        let bytes = encode_frames(&frames).expect("encodes");
        for end in 0..bytes.len() {
            assert!(decode_frames(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn frames_that_cannot_be_are_not_written() {
        let wide = frame(0, CanId::Standard(0x800), &[]);
        let error = encode_frames(&[wide]).expect_err("12 bits");
        assert_eq!(error.problem, FramingProblem::Id(0x800));
        let late = frame(i64::MAX, CanId::Standard(1), &[]);
        let error = encode_frames(&[late]).expect_err("far future");
        assert_eq!(error.problem, FramingProblem::Time(i64::MAX));
        let many = vec![frame(0, CanId::Standard(1), &[]); MAX_FRAMES + 1];
        let error = encode_frames(&many).expect_err("one too many");
        assert_eq!(error.problem, FramingProblem::TooMany(65_537));
    }
}
