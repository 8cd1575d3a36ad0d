//! Variable-length integers of the record format: zigzag, then base 128, least significant group
//! first (Kafka's `varint` and `varlong`, the same as protobuf's `sint32` and `sint64`).

/// Bytes that `value` takes.
pub(crate) fn size(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `value`.
pub(crate) fn put(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Takes a number off the front of `bytes`. `None`: it does not end within `bytes`, or is longer
/// than 64 bits.
pub(crate) fn take(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        if at == 9 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *bytes = &bytes[at + 1..];
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_encodings() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (-65, &[0x81, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (
                i64::MIN,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            ),
        ] {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(
                (out.as_slice(), size(value)),
                (bytes, bytes.len()),
                "{value}"
            );
            let mut rest = bytes;
            assert_eq!((take(&mut rest), rest.len()), (Some(value), 0), "{value}");
            assert_eq!(
                take(&mut &bytes[..bytes.len() - 1]),
                None,
                "{value} cut short"
            );
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        assert_eq!(
            take(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..]),
            None
        );
        assert_eq!(take(&mut &[0x80; 11][..]), None);
    }
}
