//! Reading a DBC file: its text, and what can be wrong with it.

use std::borrow::Cow;

use super::CanId;

/// Bytes of DBC text. The largest in opendbc has 0.4 MB; a whole-vehicle database of an OEM a few.
pub const MAX_DBC_BYTES: usize = 16 << 20;

/// The text of a DBC file. Most tools write them in Windows code page 1252 (Latin-1 and the euro sign), some in
/// UTF-8; what is not valid UTF-8 is taken for the former, in which every byte means something.
#[must_use]
pub fn dbc_text(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => can_dbc::decode_cp1252(bytes).unwrap_or_else(|| String::from_utf8_lossy(bytes)),
    }
}

/// Why a DBC is refused.
#[derive(Debug, thiserror::Error)]
pub enum DbcError {
    /// More text than [`MAX_DBC_BYTES`].
    #[error(
        "the DBC has {0} bytes, more than {MAX_DBC_BYTES}; remove messages that are not needed"
    )]
    TooLarge(usize),
    /// Not the DBC format.
    #[error("the DBC cannot be parsed")]
    Syntax {
        /// Line, column and what was expected there.
        source: can_dbc::DbcError,
    },
    /// It parses, but has no message, like an empty file.
    #[error("the DBC defines no message (`BO_`); is it the right file?")]
    NoMessages,
    /// An identifier above 11 bits without the flag for 29.
    #[error(
        "message {message} has identifier {id}, but 11-bit ones end at 2047; \
         add 2147483648 (the flag for 29 bits) if it is an extended one"
    )]
    Identifier {
        /// The message.
        message: String,
        /// Its identifier as written.
        id: u64,
    },
    /// Two messages with one identifier.
    #[error("messages {first} and {second} both have identifier {id}; remove or renumber one")]
    Duplicate {
        /// The message defined first.
        first: String,
        /// The message defined later.
        second: String,
        /// Their identifier, hexadecimal.
        id: CanId,
    },
    /// A signal whose definition contradicts itself.
    #[error("signal {message}.{signal}: {problem}")]
    Signal {
        /// The message.
        message: String,
        /// The signal.
        signal: String,
        /// What is wrong with it.
        problem: DbcProblem,
    },
}

/// What can be wrong with a signal's definition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DbcProblem {
    /// Not 1 to 64 bits.
    #[error("it has {0} bits; 1 to 64 are possible")]
    Length(u64),
    /// `SIG_VALTYPE_` says float or double, the length something else.
    #[error("`SIG_VALTYPE_` needs {needed} bits, but it has {found}")]
    Float {
        /// Bits of the IEEE 754 number.
        needed: u8,
        /// Bits of the signal.
        found: u64,
    },
    /// Factor or offset is not finite.
    #[error("its factor or offset is not a finite number")]
    Scale,
    /// Multiplexed, but by nothing.
    #[error("it is multiplexed, but the message has no multiplexor (`M`)")]
    NoMultiplexor,
    /// Multiplexed by several.
    #[error("the message has several multiplexors (`M`); say which one selects it (`SG_MUL_VAL_`)")]
    WhichMultiplexor,
    /// `SG_MUL_VAL_` names a multiplexor that is not there.
    #[error("`SG_MUL_VAL_` names {0}, which the message does not have")]
    UnknownMultiplexor(String),
    /// It selects itself, perhaps through others.
    #[error("its multiplexors select each other in a circle")]
    Circle,
}

/// The first message whose identifier needs the flag for 29 bits and lacks it. The parser would cut such a
/// number to 16 bits, and frames would be decoded as something they are not.
pub(super) fn unflagged_identifier(text: &str) -> Option<(String, u64)> {
    const FLAG: u64 = 1 << 31;
    text.lines().find_map(|line| {
        let mut words = line.strip_prefix("BO_ ")?.split_ascii_whitespace();
        let id = words.next()?.parse::<u64>().ok()?;
        let message = words.next()?.trim_end_matches(':');
        let wrong = id & FLAG == 0 && id > u64::from(CanId::MAX_STANDARD);
        wrong.then(|| (message.to_owned(), id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_in_either_encoding() {
        assert_eq!(dbc_text("\"°C\" \"µs\"".as_bytes()), "\"°C\" \"µs\"");
        assert_eq!(
            dbc_text(b"\"\xB0C\" \"\xB5s\" \"\x80\""),
            "\"°C\" \"µs\" \"€\""
        );
        assert_eq!(dbc_text(b"\xEF\xBB\xBFVERSION"), "VERSION");
    }

    #[test]
    fn an_identifier_without_its_flag_is_found() {
        assert_eq!(
            unflagged_identifier("BO_ 2047 A: 8 X\nBO_ 2364540158 B: 8 X"),
            None
        );
        let found = unflagged_identifier("VERSION \"\"\nBO_ 217056510 EEC1: 8 X");
        assert_eq!(found, Some(("EEC1".to_owned(), 217_056_510)));
    }
}
