//! Sizes and durations whose unit is part of the value: `"1MiB"`, `"20m"`.

use std::{fmt, time::Duration};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

const TIME_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

impl ByteSize {
    /// Parses `"64MiB"`, `"1 GB"`, `"512B"`; the unit is required.
    pub fn parse(text: &str) -> Option<Self> {
        scaled(text, &SIZE_UNITS).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = SIZE_UNITS[..4]
            .iter()
            .rev()
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match fits {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Parses `"250ms"`, `"30s"`, `"20m"`, `"7d"`; the unit is required.
pub fn parse_duration(text: &str) -> Option<Duration> {
    scaled(text, &TIME_UNITS).map(Duration::from_millis)
}

/// The shortest of the ways to write a duration that [`parse_duration`] reads.
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (name, unit) = TIME_UNITS
        .iter()
        .rev()
        .find(|(_, unit)| millis >= *unit && millis.is_multiple_of(*unit))
        .unwrap_or(&TIME_UNITS[0]);
    format!("{}{name}", millis / unit)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .bytes()
        .take_while(|b| b.is_ascii_digit() || *b == b'_');
    let (number, unit) = text.split_at(digits.count());
    let number: u64 = number.replace('_', "").parse().ok()?;
    let unit = unit.trim();
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_and_fit_into_64_bits() {
        let rows = [
            ("1MiB", Some(1 << 20)),
            ("64 KiB", Some(65_536)),
            ("10_000B", Some(10_000)),
            ("2GB", Some(2_000_000_000)),
            ("1024", None),
            ("MiB", None),
            ("-1MiB", None),
            ("1.5MiB", None),
            ("99999999999TiB", None),
        ];
        for (text, expected) in rows {
            assert_eq!(ByteSize::parse(text).map(|size| size.0), expected, "{text}");
        }
    }

    #[test]
    fn durations_read_back_as_they_print() {
        for text in ["250ms", "30s", "20m", "7d", "90s", "0ms"] {
            let parsed = parse_duration(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(format_duration(parsed), text);
        }
        assert_eq!(parse_duration("20"), None);
        assert_eq!(parse_duration("1y"), None);
    }

    #[test]
    fn sizes_print_in_the_largest_whole_unit() {
        assert_eq!(ByteSize(1 << 20).to_string(), "1MiB");
        assert_eq!(ByteSize(1_000).to_string(), "1000B");
        assert_eq!(ByteSize(3 << 30).to_string(), "3GiB");
    }
}
