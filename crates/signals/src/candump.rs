//! Logs of `candump -l` (can-utils): one frame per line, `(1533226488.301000) can0 025#00001000C00000FD`.
//!
//! Read are data frames: standard ids in up to three hexadecimal digits, extended ones in eight, CAN FD after
//! `##` and one digit of flags. A direction (`R`, `T`) at the end and the raw DLC of classic frames (`_9`) are
//! passed over; so are remote frames (`#R`) and error frames, which carry no signals.
//! The bus is the number at the end of the interface's name (`can0`, `vcan12`), 0 without one.

use crate::can::{CanData, CanFrame, CanId};

/// Why a line is no candump line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}; expected e.g. `(1533226488.301000) can0 025#00001000C00000FD`")]
pub struct CandumpError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: CandumpProblem,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CandumpProblem {
    /// Not three columns and perhaps a direction.
    #[error("there are not three columns: time, interface and frame")]
    Columns,
    /// The time is not `(seconds.fraction)`.
    #[error("the time is not seconds since the epoch in parentheses")]
    Time,
    /// The interface's number is above 255.
    #[error("the interface's number is above 255")]
    Bus,
    /// No `#` after an identifier of 1 to 3 or of 8 hexadecimal digits.
    #[error(
        "the identifier is not 1 to 3 (standard) or 8 (extended) hexadecimal digits before `#`"
    )]
    Id,
    /// The data are not pairs of hexadecimal digits, or of a length that no frame has.
    #[error("the data are not pairs of hexadecimal digits of a length that frames have")]
    Data,
}

/// SocketCAN's flag for error frames in an identifier.
const ERROR_FRAME: u32 = 0x2000_0000;

/// The data frames of a log, line by line.
///
/// # Errors
/// Each line that is none gives a [`CandumpError`]; the iterator goes on after it.
pub fn frames(log: &str) -> impl Iterator<Item = Result<CanFrame, CandumpError>> {
    log.lines().enumerate().filter_map(|(index, line)| {
        frame(line)
            .map_err(|problem| CandumpError {
                line: index + 1,
                problem,
            })
            .transpose()
    })
}

/// The data frame of one line; `None` for empty lines, remote frames and error frames.
///
/// # Errors
/// [`CandumpProblem`] when it is no candump line.
pub fn frame(line: &str) -> Result<Option<CanFrame>, CandumpProblem> {
    let mut columns = line.split_ascii_whitespace();
    let Some(time) = columns.next() else {
        return Ok(None);
    };
    let (Some(interface), Some(frame)) = (columns.next(), columns.next()) else {
        return Err(CandumpProblem::Columns);
    };
    if !matches!(columns.next(), None | Some("R" | "T")) || columns.next().is_some() {
        return Err(CandumpProblem::Columns);
    }
    let time_us = time_us(time).ok_or(CandumpProblem::Time)?;
    let bus = bus(interface)?;
    let (id, rest) = frame.split_once('#').ok_or(CandumpProblem::Id)?;
    let Some(id) = can_id(id)? else {
        return Ok(None);
    };
    let data = match rest.strip_prefix('#') {
        Some(fd) => fd
            .split_at_checked(1)
            .filter(|(flags, _)| flags.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .map(|(_, data)| data)
            .ok_or(CandumpProblem::Data)?,
        None if rest.starts_with('R') => return Ok(None),
        None => rest.split_once('_').map_or(rest, |(data, _)| data),
    };
    let data = can_data(data).ok_or(CandumpProblem::Data)?;
    Ok(Some(CanFrame {
        time_us,
        bus,
        id,
        data,
    }))
}

fn time_us(column: &str) -> Option<i64> {
    let (seconds, fraction) = column
        .strip_prefix('(')?
        .strip_suffix(')')?
        .split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) {
        return None;
    }
    // Six digits; shorter fractions are filled up, finer ones cut off.
    let fraction = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(6)
        .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    seconds
        .parse::<i64>()
        .ok()?
        .checked_mul(1_000_000)?
        .checked_add(fraction)
}

fn bus(interface: &str) -> Result<u8, CandumpProblem> {
    let number = interface.trim_start_matches(|c: char| !c.is_ascii_digit());
    match number {
        "" => Ok(0),
        number => number.parse().map_err(|_| CandumpProblem::Bus),
    }
}

fn can_id(digits: &str) -> Result<Option<CanId>, CandumpProblem> {
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(CandumpProblem::Id);
    }
    let number = u32::from_str_radix(digits, 16).map_err(|_| CandumpProblem::Id)?;
    let id = match digits.len() {
        1..=3 => CanId::Standard(number as u16),
        8 if number & ERROR_FRAME != 0 => return Ok(None),
        8 => CanId::Extended(number),
        _ => return Err(CandumpProblem::Id),
    };
    if id.is_valid() {
        Ok(Some(id))
    } else {
        Err(CandumpProblem::Id)
    }
}

fn can_data(digits: &str) -> Option<CanData> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > 2 * CanData::MAX {
        return None;
    }
    let mut bytes = [0; CanData::MAX];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    CanData::new(&bytes[..digits.len() / 2])
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_can_utils_writes_them() {
        let rows = [
            (
                "(1533226488.301000) can0 025#00001000C00000FD",
                1_533_226_488_301_000,
                0,
                CanId::Standard(0x25),
                8,
            ),
            (
                "(1533226488.3) vcan12 25#0011\r",
                1_533_226_488_300_000,
                12,
                CanId::Standard(0x25),
                2,
            ),
            (
                "(0.000001999) can3 18FEF1FE#",
                1,
                3,
                CanId::Extended(0x18FE_F1FE),
                0,
            ),
            (
                "(1.0) can0 00000025#aB",
                1_000_000,
                0,
                CanId::Extended(0x25),
                1,
            ),
            (
                "(1.0) any 123##1112233445566778899AABBCC",
                1_000_000,
                0,
                CanId::Standard(0x123),
                12,
            ),
            (
                "(1.0) can0 123#1122334455667788_9 R",
                1_000_000,
                0,
                CanId::Standard(0x123),
                8,
            ),
        ];
        for (line, time_us, bus, id, len) in rows {
            let frame = frame(line).expect(line).expect(line);
            let found = (frame.time_us, frame.bus, frame.id, frame.data.len());
            assert_eq!(found, (time_us, bus, id, len), "{line}");
        }
        let row = frame("(1.0) can0 123#A1b2")
            .expect("reads")
            .expect("a frame");
        assert_eq!(*row.data, [0xA1, 0xB2]);
    }

    #[test]
    fn lines_without_data_are_passed_over() {
        for line in [
            "",
            "   ",
            "(1.0) can0 123#R",
            "(1.0) can0 123#R8",
            "(1.0) can0 20000004#0000000000000000",
        ] {
            assert_eq!(frame(line), Ok(None), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        use CandumpProblem::{Bus, Columns, Data, Id, Time};
        let rows = [
            ("hello", Columns),
            ("(1.0) can0", Columns),
            ("(1.0) can0 123#00 X", Columns),
            ("(1.0) can0 123#00 R R", Columns),
            ("1.0 can0 123#00", Time),
            ("(1,0) can0 123#00", Time),
            ("(-1.0) can0 123#00", Time),
            ("(1.) can0 123#00", Time),
            ("(99999999999999.0) can0 123#00", Time),
            ("(1.0) can256 123#00", Bus),
            ("(1.0) can0 12300", Id),
            ("(1.0) can0 #00", Id),
            ("(1.0) can0 800#00", Id),
            ("(1.0) can0 1234#00", Id),
            ("(1.0) can0 +12#00", Id),
            ("(1.0) can0 40000000#00", Id),
            ("(1.0) can0 123#0", Data),
            ("(1.0) can0 123#0G", Data),
            ("(1.0) can0 123#+1", Data),
            ("(1.0) can0 123#001122334455667788", Data),
            ("(1.0) can0 123##", Data),
            ("(1.0) can0 123##é", Data),
        ];
        for (line, problem) in rows {
            assert_eq!(frame(line), Err(problem), "{line}");
        }
    }

    #[test]
    fn an_error_names_its_line_and_the_reading_goes_on() {
        let log = "(1.0) can0 1#00\nnonsense\n\n(2.0) can0 1#00\n";
        let found: Vec<_> = frames(log).collect();
        assert_eq!(found.len(), 3);
        let error = found[1].as_ref().expect_err("nonsense");
        assert_eq!(error.line, 2);
        assert!(error.to_string().starts_with("line 2: "), "{error}");
    }
}
