//! CAN: frames as a vehicle records them, the format they travel in, and their decoding with a DBC file.
//!
//! The way of a frame: recorder (or [`candump`](crate::candump) log) → [`CanFrame`] → [`encode_frames`] →
//! MQTT → [`decode_frames`] → [`CanDecoder::decode`] → readings. Frames are kept raw until the last step, so a
//! better DBC can decode yesterday's bronze again.

mod bits;
mod dbc;
mod decoder;
mod framing;

pub use dbc::{DbcError, DbcProblem, MAX_DBC_BYTES, dbc_text};
pub use decoder::{CanDecoder, CanSummary, Decoded};
pub use framing::{
    CAN_CONTENT_TYPE, FramingError, FramingProblem, MAX_FRAMES, decode_frames, encode_frames,
};

use std::fmt;
use std::ops::Deref;

/// One CAN or CAN FD data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanFrame {
    /// When it was received, in microseconds since the Unix epoch, UTC.
    pub time_us: i64,
    /// The bus it was received on, as the vehicle counts them.
    pub bus: u8,
    /// Its identifier.
    pub id: CanId,
    /// Its data.
    pub data: CanData,
}

/// Identifier of a frame: 11 or 29 bits (ISO 11898-1). The same number is a different frame in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CanId {
    /// 11 bits: 0 to `0x7FF`.
    Standard(u16),
    /// 29 bits: 0 to `0x1FFF_FFFF`, without any flag.
    Extended(u32),
}

impl CanId {
    /// Greatest 11-bit identifier.
    pub const MAX_STANDARD: u16 = 0x7FF;
    /// Greatest 29-bit identifier.
    pub const MAX_EXTENDED: u32 = 0x1FFF_FFFF;

    /// Whether the number fits its kind.
    #[must_use]
    pub fn is_valid(self) -> bool {
        match self {
            CanId::Standard(id) => id <= CanId::MAX_STANDARD,
            CanId::Extended(id) => id <= CanId::MAX_EXTENDED,
        }
    }
}

impl fmt::Display for CanId {
    /// As candump writes it: three or eight hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CanId::Standard(id) => write!(f, "{id:03X}"),
            CanId::Extended(id) => write!(f, "{id:08X}"),
        }
    }
}

/// The data of a frame: 0 to 8 bytes, or 12, 16, 20, 24, 32, 48 or 64 (CAN FD). Inline, so that frames need no
/// allocation.
#[derive(Clone, Copy)]
pub struct CanData {
    len: u8,
    bytes: [u8; CanData::MAX],
}

impl CanData {
    /// Most bytes a CAN FD frame carries.
    pub const MAX: usize = 64;

    /// The data, or `None` for a length that no frame has.
    #[must_use]
    pub fn new(data: &[u8]) -> Option<CanData> {
        let len = match data.len() {
            len @ (0..=8 | 12 | 16 | 20 | 24 | 32 | 48 | 64) => len as u8,
            _ => return None,
        };
        let mut bytes = [0; CanData::MAX];
        bytes[..data.len()].copy_from_slice(data);
        Some(CanData { len, bytes })
    }
}

impl Deref for CanData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for CanData {
    fn eq(&self, other: &CanData) -> bool {
        **self == **other
    }
}

impl Eq for CanData {}

impl fmt::Debug for CanData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}
