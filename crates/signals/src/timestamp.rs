//! Moments as the wire writes them (RFC 3339) and as we keep them: microseconds since the Unix epoch, UTC.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

/// Moments that telemetry can be of: 1970 up to 2100. Anything else is a unit mistaken (microseconds sent as
/// milliseconds end up far in the future), and would scatter the lake's days.
pub const PLAUSIBLE: std::ops::Range<i64> = 0..4_102_444_800_000_000;

/// Always six digits of fraction, so that the text sorts as the moments do.
const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// Reads an RFC 3339 time with its offset (`2026-11-20T10:00:00.25Z`, `2026-11-20T12:00:00+02:00`)
/// as microseconds since the epoch; finer digits are cut off. `None` when it is no such time.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    // jiff also reads looser ISO 8601 forms (`20261120T10Z`); RFC 3339 has dashes and colons in fixed places.
    let bytes = text.as_bytes();
    let fixed = bytes.len() >= 20
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b't' | b' ')
        && bytes[13] == b':'
        && bytes[16] == b':'
        && !bytes.ends_with(b"]");
    if !fixed {
        return None;
    }
    text.parse::<Timestamp>()
        .ok()
        .map(|time| time.as_microsecond())
}

/// Appends a moment as RFC 3339 in UTC with six digits of fraction.
///
/// Moments outside the years -9999 to 9999, which RFC 3339 cannot write, come out as the nearest it can.
pub fn write_rfc3339(time_us: i64, out: &mut String) {
    let time = Timestamp::from_microsecond(time_us).unwrap_or(if time_us < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    });
    // A `String` accepts every write, so this cannot fail; were it to, the text would merely be short.
    let _ = PRINTER.print_timestamp(&time, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_rfc_3339_writes_them() {
        let rows = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2018-08-02T16:14:48.301Z", Some(1_533_226_488_301_000)),
            (
                "2018-08-02T16:14:48.301000999Z",
                Some(1_533_226_488_301_000),
            ),
            ("2018-08-02T18:14:48.301+02:00", Some(1_533_226_488_301_000)),
            ("2018-08-02t16:14:48.301z", Some(1_533_226_488_301_000)),
            ("2018-08-02 16:14:48.301Z", Some(1_533_226_488_301_000)),
            ("2018-08-02T16:14:48", None), // no offset: whose noon?
            ("2018-08-02", None),
            ("20180802T161448Z", None),
            ("2018-13-02T16:14:48Z", None),
            ("2018-08-02T16:14:48Z[Europe/Berlin]", None),
            ("yesterday, around noon", None),
            ("", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_rfc3339(text), expected, "{text}");
        }
    }

    #[test]
    fn moments_are_written_in_sortable_form() {
        let rows = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_533_226_488_301_000, "2018-08-02T16:14:48.301000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
        ];
        for (time_us, expected) in rows {
            let mut text = String::new();
            write_rfc3339(time_us, &mut text);
            assert_eq!(text, expected);
            assert_eq!(parse_rfc3339(&text), Some(time_us));
        }
        let mut text = String::new();
        write_rfc3339(i64::MAX, &mut text);
        assert!(text.starts_with("9999-12-30"), "{text}");
    }
}
