//! Signals: from payload bytes to [`Reading`]s. Pure: bytes in, readings out; no clock, no files, no network.
//!
//! ```text
//! JSON (native, VISS) ── decode_json ─────────────────────────────► readings
//! CAN frames ── can::decode_frames ── can::CanDecoder (DBC + Mapping) ──► readings
//! candump log ── candump::frames ──┘
//! ```
//!
//! What a reading's number means (unit, type) is in the [`Catalogue`], not in the reading. Everything here is fed by
//! vehicles: malformed input gets an error that names the place and the remedy, and every size has a limit.

pub mod can;
pub mod candump;
mod catalogue;
mod json;
mod mapping;
mod names;
mod reading;
pub mod timestamp;

pub use can::{CAN_CONTENT_TYPE, CanData, CanDecoder, CanFrame, CanId};
pub use catalogue::{Catalogue, CatalogueError, SignalInfo};
pub use json::{DecodeError, Limit, MAX_NAME_BYTES, MAX_READINGS, MAX_VALUE_DEPTH, decode_json};
pub use mapping::{Mapping, MappingError, MappingProblem};
pub use reading::{Reading, Value};
