//! Pipeline: what happens to a message between the broker and the lake. Pure: the log, the clock and the models
//! are handed in.
//!
//! ```text
//! MQTT publish ── route ──► raw.telemetry (log) ── Processor::process ──► message  → bronze.messages
//!  (Incoming)                CloudEvents headers       (Record)       ├─► readings → silver.signals
//!                                                                     └─► dead letter → dead.telemetry
//! ```
//!
//! Routing comes before the acknowledgement, so it only adds headers and never looks into the payload; decoding
//! comes after it and can be repeated from the log. A payload that cannot be decoded is not dropped: its message
//! stays in bronze, and [`DeadLetter::to_record`] keeps the bytes beside the reason.

mod cloud_event;
mod content;
mod dead_letter;
mod incoming;
mod message;
mod processor;
mod router;
mod text;
mod topic;

pub use content::{ContentError, MAX_DECOMPRESSED};
pub use dead_letter::{DEAD_TELEMETRY, DeadLetter};
pub use incoming::{Incoming, Priority};
pub use message::Message;
pub use processor::{MAX_CAN_READINGS, ModelDecoders, Processed, Processor};
pub use router::{RAW_TELEMETRY, Routed, route};
pub use text::Text;
pub use topic::Topic;
