//! The record batch: the unit that is written, checked and served. One group commit is one batch.
//!
//! The layout is Kafka's record batch v2 (magic 2), byte for byte, so that a Kafka wire server can
//! send what lies on disk as it is. All integers are big-endian; `varint` is zigzag base 128.
//!
//! ```text
//! at  size  field                 what we write
//!  0   8    base offset           offset of the first record
//!  8   4    batch length          bytes after this field
//! 12   4    partition leader epoch 0: one machine leads for ever
//! 16   1    magic                 2
//! 17   4    crc                   CRC32C of everything from `attributes` to the end
//! 21   2    attributes            0: not compressed, create time, not transactional, no control
//! 23   4    last offset delta     records - 1
//! 27   8    base timestamp        time of the first record, milliseconds since the epoch
//! 35   8    max timestamp         largest time in the batch, milliseconds since the epoch
//! 43   8    producer id           -1: none
//! 51   2    producer epoch        -1
//! 53   4    base sequence         -1
//! 57   4    records               how many follow
//! 61   …    records, each:
//!             varint  length      bytes after this field
//!             i8      attributes  0
//!             varint  timestamp delta  to the base timestamp, milliseconds
//!             varint  offset delta     to the base offset: 0, 1, 2 …
//!             varint  key length  -1 for no key, then the key
//!             varint  value length      then the value
//!             varint  headers     how many, each: varint name length, name, varint value length
//!                                 (-1 for null), value
//! ```
//!
//! Kafka keeps milliseconds, we keep microseconds: what is left of a time (1 to 999 µs) travels as
//! a last header `mp-us`, two bytes big-endian, which reading takes off again. Kafka clients see it
//! as an ordinary header. A null header value reads as empty.
//!
//! The CRC does not cover the first 17 bytes (Kafka's choice: a broker may set base offset and
//! epoch). We know what they must be: the base offset follows from the batch before, epoch and
//! magic are constants, and a wrong length fails the CRC. So every flipped bit is found.

use bytes::Bytes;

use crate::record::{Header, NewRecord, Offset, Record};
use crate::varint;

/// Bytes before the first record.
pub(crate) const HEADER: usize = 61;
/// Bytes before what `batch length` counts.
const LENGTH_END: usize = 12;
/// Where what the CRC covers begins.
const CRC_END: usize = 21;
/// Name of the header that carries the microseconds of a record's time.
pub(crate) const MICROS: &[u8] = b"mp-us";

/// Builds one batch in a buffer that is used again and again.
#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    bytes: Vec<u8>,
    records: u32,
    base_ms: i64,
    max_ms: i64,
}

impl BatchBuilder {
    /// Forgets the last batch. A buffer that one huge append has blown up is given back.
    pub(crate) fn clear(&mut self, keep_capacity: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep_capacity);
        self.bytes.resize(HEADER, 0);
        self.records = 0;
    }

    /// Adds a record.
    pub(crate) fn push(&mut self, record: &NewRecord) {
        let ms = record.time_us.div_euclid(1000);
        let micros = record.time_us.rem_euclid(1000) as u16;
        if self.records == 0 {
            self.base_ms = ms;
            self.max_ms = ms;
        }
        self.max_ms = self.max_ms.max(ms);
        let time_delta = ms - self.base_ms;
        let offset_delta = i64::from(self.records);
        let headers = record.headers.len() + usize::from(micros != 0);

        let sized = |bytes: &Bytes| varint::size(bytes.len() as i64) + bytes.len();
        let key_size = if record.key.is_empty() {
            1
        } else {
            sized(&record.key)
        };
        let headers_size: usize = record
            .headers
            .iter()
            .map(|(name, value)| sized(name) + sized(value))
            .sum();
        let micros_size = if micros != 0 {
            1 + MICROS.len() + 1 + 2
        } else {
            0
        };
        let length = 1
            + varint::size(time_delta)
            + varint::size(offset_delta)
            + key_size
            + sized(&record.value)
            + varint::size(headers as i64)
            + headers_size
            + micros_size;

        let out = &mut self.bytes;
        out.reserve(length + varint::size(length as i64));
        varint::put(out, length as i64);
        out.push(0);
        varint::put(out, time_delta);
        varint::put(out, offset_delta);
        if record.key.is_empty() {
            varint::put(out, -1);
        } else {
            put_sized(out, &record.key);
        }
        put_sized(out, &record.value);
        varint::put(out, headers as i64);
        for (name, value) in &record.headers {
            put_sized(out, name);
            put_sized(out, value);
        }
        if micros != 0 {
            put_sized(out, MICROS);
            put_sized(out, &micros.to_be_bytes());
        }
        self.records += 1;
    }

    /// How many records it has.
    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    /// Bytes so far, with the header.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Completes the batch for this place in the log.
    pub(crate) fn finish(&mut self, base: Offset) -> &[u8] {
        let length = (self.bytes.len() - LENGTH_END) as u32;
        let head = &mut self.bytes[..HEADER];
        head[0..8].copy_from_slice(&base.get().to_be_bytes());
        head[8..12].copy_from_slice(&length.to_be_bytes());
        head[12..16].copy_from_slice(&0u32.to_be_bytes());
        head[16] = 2;
        head[21..23].copy_from_slice(&0u16.to_be_bytes());
        head[23..27].copy_from_slice(&(self.records.saturating_sub(1)).to_be_bytes());
        head[27..35].copy_from_slice(&self.base_ms.to_be_bytes());
        head[35..43].copy_from_slice(&self.max_ms.to_be_bytes());
        head[43..51].copy_from_slice(&(-1i64).to_be_bytes());
        head[51..53].copy_from_slice(&(-1i16).to_be_bytes());
        head[53..57].copy_from_slice(&(-1i32).to_be_bytes());
        head[57..61].copy_from_slice(&self.records.to_be_bytes());
        let crc = crc32c::crc32c(&self.bytes[CRC_END..]);
        self.bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        &self.bytes
    }
}

fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    varint::put(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// What is wrong with bytes that should be a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The fields of a batch header that reading needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) base: Offset,
    /// Bytes of the whole batch.
    pub(crate) size: u64,
    pub(crate) records: u32,
    base_ms: i64,
    crc: u32,
}

impl BatchHeader {
    /// Reads a header and checks everything that can be checked without the records.
    /// `bytes` needs [`HEADER`] bytes or more.
    pub(crate) fn parse(bytes: &[u8]) -> Result<BatchHeader, Malformed> {
        let Some(head) = bytes.first_chunk::<HEADER>() else {
            return Err(Malformed("the batch header is cut short"));
        };
        let u32_at =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if head[16] != 2 {
            return Err(Malformed("the batch's magic byte is not 2"));
        }
        if u32_at(12) != 0 {
            return Err(Malformed("the batch's leader epoch is not 0"));
        }
        let base = u64_at(0);
        let size = size_field(head);
        let records = u32_at(57);
        if base > i64::MAX as u64 {
            return Err(Malformed("the batch's base offset is negative"));
        }
        if size < HEADER as u64 || u32_at(8) > i32::MAX as u32 {
            return Err(Malformed("the batch's length is impossible"));
        }
        if [head[21], head[22]] != [0, 0] {
            return Err(Malformed(
                "the batch's attributes ask for compression or transactions",
            ));
        }
        // A record is at least seven bytes long.
        if records == 0
            || u64::from(records) * 7 > size - HEADER as u64
            || u32_at(23) != records - 1
        {
            return Err(Malformed("the batch's record count is impossible"));
        }
        Ok(BatchHeader {
            base: Offset::new(base),
            size,
            records,
            base_ms: u64_at(27) as i64,
            crc: u32_at(17),
        })
    }

    /// The offset after the batch.
    pub(crate) fn end(&self) -> Offset {
        self.base.advance(u64::from(self.records))
    }

    /// Is `batch` (all [`size`](Self::size) bytes of it) what was written?
    pub(crate) fn verify(&self, batch: &[u8]) -> Result<(), Malformed> {
        match batch.get(CRC_END..) {
            Some(covered) if crc32c::crc32c(covered) == self.crc => Ok(()),
            _ => Err(Malformed("the batch's checksum does not match")),
        }
    }
}

/// The size of a batch as its length field has it, right or wrong.
pub(crate) fn size_field(head: &[u8; HEADER]) -> u64 {
    u64::from(u32::from_be_bytes([head[8], head[9], head[10], head[11]])) + LENGTH_END as u64
}

/// Takes a verified batch apart, one record at a time.
#[derive(Debug)]
pub(crate) struct BatchRecords {
    batch: Bytes,
    at: usize,
    next: u32,
    header: BatchHeader,
}

impl BatchRecords {
    /// `batch` is exactly one batch that has been verified.
    pub(crate) fn new(header: BatchHeader, batch: Bytes) -> BatchRecords {
        BatchRecords {
            batch,
            at: HEADER,
            next: 0,
            header,
        }
    }

    /// The next record's offset.
    pub(crate) fn offset(&self) -> Offset {
        self.header.base.advance(u64::from(self.next))
    }

    /// The next record; `None` at the end. The bytes passed their checksum, but a program with an
    /// error may have written them: nothing here trusts a length.
    pub(crate) fn next(&mut self, partition: u16) -> Option<Result<Record, Malformed>> {
        (self.next < self.header.records).then(|| self.record(partition))
    }

    /// Passes over the next record without making it.
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        let mut rest = &self.batch[self.at..];
        sized(&mut rest)?.ok_or(Malformed("a record has no length"))?;
        self.at = self.batch.len() - rest.len();
        self.next += 1;
        Ok(())
    }

    fn record(&mut self, partition: u16) -> Result<Record, Malformed> {
        let mut rest = &self.batch[self.at..];
        let mut body = sized(&mut rest)?.ok_or(Malformed("a record has no length"))?;
        let after = self.batch.len() - rest.len();

        let Some((_attributes, tail)) = body.split_first() else {
            return Err(Malformed("a record is cut short"));
        };
        body = tail;
        let time_delta = number(&mut body)?;
        let offset_delta = number(&mut body)?;
        if offset_delta != i64::from(self.next) {
            return Err(Malformed("a record is out of order"));
        }
        let key = sized(&mut body)?.unwrap_or_default();
        let value = sized(&mut body)?.unwrap_or_default();
        let count = number(&mut body)?;
        // A header is at least two bytes long: bounds what is reserved below.
        if count < 0 || count as u64 * 2 > body.len() as u64 {
            return Err(Malformed("a record's header count is impossible"));
        }
        let mut headers: Vec<Header> = Vec::with_capacity(count as usize);
        let mut micros = 0;
        for header in 1..=count {
            let name = sized(&mut body)?.ok_or(Malformed("a header has no name"))?;
            let value = sized(&mut body)?.unwrap_or_default();
            match value {
                [high, low] if header == count && name == MICROS => {
                    micros = i64::from(u16::from_be_bytes([*high, *low]))
                }
                _ => headers.push((self.batch.slice_ref(name), self.batch.slice_ref(value))),
            }
        }
        if !body.is_empty() {
            return Err(Malformed("a record is longer than its fields"));
        }
        // In 128 bits: the first milliseconds of `i64` begin before its first microsecond.
        let time_us =
            (i128::from(self.header.base_ms) + i128::from(time_delta)) * 1000 + i128::from(micros);
        let time_us =
            i64::try_from(time_us).map_err(|_| Malformed("a record's time is impossible"))?;
        let record = Record {
            partition,
            offset: self.offset(),
            time_us,
            key: self.batch.slice_ref(key),
            headers,
            value: self.batch.slice_ref(value),
        };
        self.at = after;
        self.next += 1;
        Ok(record)
    }
}

fn number(bytes: &mut &[u8]) -> Result<i64, Malformed> {
    varint::take(bytes).ok_or(Malformed("a number in a record is cut short"))
}

/// A length and that many bytes; `None` for the length -1.
fn sized<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
    let length = number(bytes)?;
    if length == -1 {
        return Ok(None);
    }
    let (taken, rest) = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.split_at_checked(length))
        .ok_or(Malformed("a field is longer than its record"))?;
    *bytes = rest;
    Ok(Some(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(
        time_us: i64,
        key: &'static str,
        headers: &[(&'static str, &'static str)],
        value: &'static str,
    ) -> NewRecord {
        let headers = headers.iter().map(|(n, v)| {
            (
                Bytes::from_static(n.as_bytes()),
                Bytes::from_static(v.as_bytes()),
            )
        });
        NewRecord {
            key: key.into(),
            time_us,
            headers: headers.collect(),
            value: value.into(),
        }
    }

    fn build(base: u64, records: &[NewRecord]) -> Bytes {
        let mut builder = BatchBuilder::default();
        builder.clear(0);
        for record in records {
            builder.push(record);
        }
        Bytes::copy_from_slice(builder.finish(Offset::new(base)))
    }

    fn read(batch: &Bytes) -> Result<Vec<Record>, Malformed> {
        let header = BatchHeader::parse(batch)?;
        if header.size != batch.len() as u64 {
            return Err(Malformed("size"));
        }
        header.verify(batch)?;
        let mut records = BatchRecords::new(header, batch.clone());
        std::iter::from_fn(|| records.next(3)).collect()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let records = [
            record(
                1_700_000_000_123_456,
                "car-1",
                &[("ce_id", "1"), ("empty", "")],
                "hello",
            ),
            record(1_700_000_000_000_000, "", &[], ""),
            record(i64::MIN, "k", &[("ce_id", "2")], "earliest"),
            record(i64::MAX, "k", &[], "latest"),
            record(-1, "k", &[], "just before the epoch"),
        ];
        let out = read(&build(41, &records)).unwrap();
        assert_eq!(out.len(), records.len());
        for (at, (out, put)) in out.iter().zip(&records).enumerate() {
            assert_eq!(
                (out.partition, out.offset),
                (3, Offset::new(41 + at as u64))
            );
            assert_eq!(
                (out.time_us, &out.key, &out.headers, &out.value),
                (put.time_us, &put.key, &put.headers, &put.value)
            );
        }
        assert_eq!(out[0].header("ce_id"), Some(&b"1"[..]));
        assert_eq!(out[0].header("none"), None);
    }

    #[test]
    fn the_layout_is_kafkas() {
        // Built by hand from the field table of KIP-98, with the CRC32C of a second implementation.
        let batch = build(
            5,
            &[
                record(1_000_000, "k", &[("h", "v")], "val"),
                record(1_002_007, "", &[], "x"),
            ],
        );
        let mut by_hand = Vec::new();
        by_hand.extend(5i64.to_be_bytes());
        by_hand.extend(((batch.len() - 12) as i32).to_be_bytes());
        by_hand.extend(0i32.to_be_bytes());
        by_hand.push(2);
        by_hand.extend([0; 4]);
        by_hand.extend(0i16.to_be_bytes());
        by_hand.extend(1i32.to_be_bytes());
        by_hand.extend(1000i64.to_be_bytes());
        by_hand.extend(1002i64.to_be_bytes());
        by_hand.extend((-1i64).to_be_bytes());
        by_hand.extend((-1i16).to_be_bytes());
        by_hand.extend((-1i32).to_be_bytes());
        by_hand.extend(2i32.to_be_bytes());
        by_hand.extend([
            2 * 14,
            0,
            0,
            0,
            2,
            b'k',
            6,
            b'v',
            b'a',
            b'l',
            2,
            2,
            b'h',
            2,
            b'v',
        ]);
        by_hand.extend([
            2 * 16,
            0,
            4,
            2,
            1,
            2,
            b'x',
            2,
            10,
            b'm',
            b'p',
            b'-',
            b'u',
            b's',
            4,
            0,
            7,
        ]);
        let crc = bitwise_crc32c(&by_hand[21..]);
        by_hand[17..21].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(batch, by_hand);
    }

    /// CRC-32C from its definition: reflected polynomial 0x82f63b78.
    fn bitwise_crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        })
    }

    #[test]
    fn every_flipped_bit_behind_the_base_offset_is_found() {
        let batch = build(
            7,
            &[
                record(1, "key", &[("h", "v")], "value"),
                record(2, "key", &[], "value"),
            ],
        );
        // The base offset (bytes 0 to 7) is checked against the batch before, by the scanner.
        for bit in 8 * 8..batch.len() * 8 {
            let mut bytes = batch.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes.into()).is_err(), "bit {bit} flipped unnoticed");
        }
    }

    #[test]
    fn a_batch_of_nonsense_with_a_good_checksum_is_refused_not_trusted() {
        let good = build(0, &[record(5, "key", &[("name", "value")], "value")]);
        for at in HEADER..good.len() {
            for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut bytes = good.to_vec();
                bytes[at] = byte;
                let crc = crc32c::crc32c(&bytes[CRC_END..]);
                bytes[17..21].copy_from_slice(&crc.to_be_bytes());
                // Any answer is fine; a panic or a huge allocation is not.
                let _ = read(&bytes.into());
            }
        }
    }
}
