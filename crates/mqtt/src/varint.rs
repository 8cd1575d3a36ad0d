//! Variable byte integers: seven bits a byte, least significant first, at most four bytes
//! (section 1.5.5).

use bytes::{BufMut, BytesMut};

/// The largest value four bytes can say: 268,435,455.
pub(crate) const MAX: u32 = 0x0FFF_FFFF;

/// A value as it stood on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Varint {
    pub value: u32,
    /// Bytes taken, 1 to 4.
    pub len: usize,
}

impl Varint {
    /// Whether fewer bytes would have said the same, which MQTT 5 forbids `[MQTT-1.5.5-1]`.
    pub fn is_padded(self) -> bool {
        self.len > len(self.value)
    }
}

/// What stands at the front of `bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    Whole(Varint),
    /// The last byte seen announces another one that has not arrived.
    Partial,
    /// The fourth byte announces a fifth.
    Overlong,
}

/// Reads at most four bytes.
pub(crate) fn read(bytes: &[u8]) -> Front {
    let mut value = 0;
    for (i, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Front::Whole(Varint { value, len: i + 1 });
        }
    }
    if bytes.len() < 4 {
        Front::Partial
    } else {
        Front::Overlong
    }
}

/// Bytes that [`write`] takes for `value`.
pub(crate) const fn len(value: u32) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// Writes the shortest form. `value` is at most [`MAX`].
pub(crate) fn write(mut value: u32, out: &mut BytesMut) {
    debug_assert!(value <= MAX);
    while value > 0x7F {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_borders_of_each_length_come_back() {
        for (value, expected_len) in [
            (0, 1),
            (127, 1),
            (128, 2),
            (16_383, 2),
            (16_384, 3),
            (2_097_151, 3),
            (2_097_152, 4),
            (MAX, 4),
        ] {
            let mut out = BytesMut::new();
            write(value, &mut out);
            assert_eq!(out.len(), expected_len, "{value}");
            assert_eq!(len(value), expected_len, "{value}");
            let whole = Varint {
                value,
                len: expected_len,
            };
            assert_eq!(read(&out), Front::Whole(whole));
            assert!(!whole.is_padded());
            assert_eq!(read(&out[..expected_len - 1]), Front::Partial);
        }
    }

    #[test]
    fn padding_and_a_fifth_byte_are_seen() {
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x01]), Front::Overlong);
        assert_eq!(read(&[0xFF; 4]), Front::Overlong);
        let Front::Whole(padded) = read(&[0x82, 0x00]) else {
            panic!("two bytes are enough")
        };
        assert_eq!(padded.value, 2);
        assert!(padded.is_padded());
    }
}
