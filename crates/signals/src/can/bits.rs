//! Where a signal's bits are in a frame, worked out once per DBC so that reading them is a loop over at most
//! nine bytes, a shift and a mask.
//!
//! A DBC counts bits sawtooth-wise: bit `b` is bit `b % 8` (0 the least significant) of byte `b / 8`. An Intel
//! signal begins at its least significant bit and goes up, byte after byte; a Motorola signal begins at its
//! *most* significant bit and goes down, then on from bit 7 of the next byte. Read as one number over the
//! bytes it touches (little- or big-endian), either is a run of bits at a fixed shift.

use super::CanData;

/// Order of a signal's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Little-endian, `@1` in a DBC.
    Intel,
    /// Big-endian, `@0` in a DBC.
    Motorola,
}

/// A run of 1 to 64 bits in a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bits {
    order: Order,
    first: u8,
    /// Bytes touched: 1 to 9.
    bytes: u8,
    shift: u8,
    len: u8,
}

impl Bits {
    /// The run of `len` bits that a DBC says begins at `start`; `None` if there is no such run in the 64 bytes
    /// a frame can have.
    pub(crate) fn new(order: Order, start: u64, len: u64) -> Option<Bits> {
        if !(1..=64).contains(&len) || start >= 8 * CanData::MAX as u64 {
            return None;
        }
        let (first, bit) = (start / 8, start % 8);
        let before = match order {
            Order::Intel => bit,
            Order::Motorola => 7 - bit,
        };
        let bytes = (before + len).div_ceil(8);
        if first + bytes > CanData::MAX as u64 {
            return None;
        }
        let shift = match order {
            Order::Intel => before,
            Order::Motorola => bytes * 8 - before - len,
        };
        // All below 72, as just worked out.
        Some(Bits {
            order,
            first: first as u8,
            bytes: bytes as u8,
            shift: shift as u8,
            len: len as u8,
        })
    }

    /// Number of bits.
    pub(crate) fn len(self) -> u8 {
        self.len
    }

    /// The bits as an unsigned number; `None` if the frame is too short to have them all.
    #[inline]
    pub(crate) fn read(self, data: &[u8]) -> Option<u64> {
        let first = usize::from(self.first);
        let bytes = data.get(first..first + usize::from(self.bytes))?;
        let mask = u64::MAX >> (64 - self.len);
        let raw = if bytes.len() <= 8 {
            let fold = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
            let all = match self.order {
                Order::Intel => bytes.iter().rev().fold(0, fold),
                Order::Motorola => bytes.iter().fold(0, fold),
            };
            all >> self.shift
        } else {
            let fold = |sum: u128, &byte: &u8| sum << 8 | u128::from(byte);
            let all = match self.order {
                Order::Intel => bytes.iter().rev().fold(0, fold),
                Order::Motorola => bytes.iter().fold(0, fold),
            };
            (all >> self.shift) as u64
        };
        Some(raw & mask)
    }

    /// The same number, read as two's complement of this length.
    #[inline]
    pub(crate) fn sign_extend(self, raw: u64) -> i64 {
        let unused = 64 - u32::from(self.len);
        (raw << unused) as i64 >> unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, as the DBC describes it, with no cleverness.
    fn naive(order: Order, start: u64, len: u64, data: &[u8]) -> Option<u64> {
        let mut value = 0_u64;
        let mut at = start;
        for n in 0..len {
            let byte = *data.get(usize::try_from(at / 8).expect("small"))?;
            let bit = u64::from(byte >> (at % 8) & 1);
            match order {
                Order::Intel => {
                    value |= bit << n;
                    at += 1;
                }
                Order::Motorola => {
                    value = value << 1 | bit;
                    at = if at.is_multiple_of(8) {
                        at + 15
                    } else {
                        at - 1
                    };
                }
            }
        }
        Some(value)
    }

    #[test]
    fn known_signals_are_read() {
        let angle = [0x0F, 0xFE, 0x10, 0, 0x20, 0, 0, 0];
        type Row<'a> = (Order, u64, u64, &'a [u8], Option<u64>);
        let rows: [Row<'_>; 9] = [
            (Order::Motorola, 3, 12, &angle, Some(0xFFE)),
            (Order::Motorola, 39, 4, &angle, Some(0x2)),
            (Order::Motorola, 7, 16, &angle, Some(0x0FFE)),
            (Order::Intel, 8, 16, &angle, Some(0x10FE)),
            (
                Order::Intel,
                0,
                64,
                &[1, 2, 3, 4, 5, 6, 7, 8],
                Some(0x0807_0605_0403_0201),
            ),
            (
                Order::Motorola,
                7,
                64,
                &[1, 2, 3, 4, 5, 6, 7, 8],
                Some(0x0102_0304_0506_0708),
            ),
            (
                Order::Intel,
                4,
                64,
                &[0xF0, 0, 0, 0, 0, 0, 0, 0, 0x01],
                Some(0x1000_0000_0000_000F),
            ),
            (Order::Intel, 56, 8, &[0; 7], None),
            (Order::Motorola, 0, 2, &[0], None),
        ];
        for (order, start, len, data, expected) in rows {
            let bits = Bits::new(order, start, len).expect("fits a frame");
            assert_eq!(bits.read(data), expected, "{order:?} {start}|{len}");
        }
    }

    #[test]
    fn runs_that_no_frame_has_are_refused() {
        for (order, start, len) in [
            (Order::Intel, 0, 0),
            (Order::Intel, 0, 65),
            (Order::Intel, 511, 2),
            (Order::Intel, 512, 1),
            (Order::Motorola, 504, 2),
            (Order::Motorola, u64::MAX, 1),
            (Order::Intel, 0, u64::MAX),
        ] {
            assert!(
                Bits::new(order, start, len).is_none(),
                "{order:?} {start}|{len}"
            );
        }
        assert!(Bits::new(Order::Intel, 511, 1).is_some());
        assert!(Bits::new(Order::Motorola, 504, 1).is_some());
    }

    #[test]
    fn negative_numbers_are_extended_from_their_own_sign_bit() {
        let bits = Bits::new(Order::Motorola, 3, 12).expect("fits");
        assert_eq!(bits.sign_extend(0xFFE), -2);
        assert_eq!(bits.sign_extend(0x7FF), 2_047);
        let whole = Bits::new(Order::Intel, 0, 64).expect("fits");
        assert_eq!(whole.sign_extend(u64::MAX), -1);
    }

    proptest! {
        #[test]
        fn reading_agrees_with_reading_bit_by_bit(
            data in proptest::collection::vec(any::<u8>(), 0..=64),
            start in 0_u64..520,
            len in 1_u64..=64,
            intel in any::<bool>(),
        ) {
            let order = if intel { Order::Intel } else { Order::Motorola };
            let expected = naive(order, start, len, &data);
            let found = Bits::new(order, start, len).and_then(|bits| bits.read(&data));
            prop_assert_eq!(found, expected);
        }
    }
}
