//! Processor: from a record of the log to a message for bronze and readings for silver.
//!
//! What a payload is, its content type says (MQTT 5 property); without one, what begins like JSON is taken for
//! JSON, and everything else is opaque: kept in bronze, with neither readings nor dead letter. Readings that
//! state no time have the message's. A payload that is said to be telemetry and cannot be decoded is a dead
//! letter; all or nothing, so half of a broken message never counts.

use std::fmt;
use std::sync::Arc;

use eventlog::Record;
use signals::can::{CanSummary, Decoded, FramingError, decode_frames};
use signals::{CanDecoder, Reading, decode_json};

use crate::content::{Content, ContentError, MAX_DECOMPRESSED, declared, decompressed, sniffed};
use crate::dead_letter::DeadLetter;
use crate::message::Message;

/// Finds the decoder of a vehicle's model by the vehicle's id. Called for every message with CAN frames, so it
/// must be quick: a look-up, not a query.
pub type ModelDecoders = Arc<dyn Fn(&str) -> Option<Arc<CanDecoder>> + Send + Sync>;

/// Readings that the CAN frames of one message may make: some 50 MB of memory.
pub const MAX_CAN_READINGS: usize = 1 << 20;

/// Processes records. Holds no state of its own; share it or make one per thread.
#[derive(Clone)]
pub struct Processor {
    models: ModelDecoders,
    max_decompressed: usize,
}

/// What became of a record.
#[derive(Debug, Clone)]
pub struct Processed {
    /// The message, whatever became of its payload.
    pub message: Message,
    /// What the payload says. Empty if it is opaque or a dead letter.
    pub readings: Vec<Reading>,
    /// Of a payload of CAN frames: how many there were, and how many the DBC does not know.
    pub can: Option<CanSummary>,
    /// Why the payload could not be decoded, if so.
    pub dead: Option<DeadLetter>,
}

/// Why a payload could not be decoded.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Json(#[from] signals::DecodeError),
    #[error(transparent)]
    Framing(#[from] FramingError),
    #[error(
        "no DBC is known for vehicle {0}; give the vehicle a model, and the model a DBC, then replay this message"
    )]
    NoModel(String),
    #[error("the frames make more than {MAX_CAN_READINGS} readings; send fewer frames per message")]
    TooManyReadings,
}

impl Processor {
    /// A processor that finds DBC files through `models`.
    #[must_use]
    pub fn new(models: ModelDecoders) -> Processor {
        Processor {
            models,
            max_decompressed: MAX_DECOMPRESSED,
        }
    }

    /// Sets how many bytes a payload may have once decompressed.
    #[must_use]
    pub fn with_max_decompressed(self, bytes: usize) -> Processor {
        Processor {
            max_decompressed: bytes,
            ..self
        }
    }

    /// Processes a record. Never fails: what is wrong with the payload is in [`Processed::dead`].
    #[must_use]
    pub fn process(&self, record: &Record) -> Processed {
        let message = Message::from_record(record);
        let mut readings = Vec::new();
        let (can, dead) = match self.decode(&message, &mut readings) {
            Ok(can) => (can, None),
            Err(refusal) => {
                readings.clear();
                (None, Some(DeadLetter::decode(&refusal)))
            }
        };
        Processed {
            message,
            readings,
            can,
            dead,
        }
    }

    fn decode(
        &self,
        message: &Message,
        readings: &mut Vec<Reading>,
    ) -> Result<Option<CanSummary>, Refusal> {
        let declared = declared(message.content_type.as_deref());
        if declared == Some(Content::Opaque) {
            return Ok(None);
        }
        let encoding = message.content_encoding.as_deref();
        let payload = decompressed(&message.payload, encoding, self.max_decompressed)?;
        match declared.unwrap_or_else(|| sniffed(&payload)) {
            Content::Opaque => Ok(None),
            Content::Json => {
                decode_json(&payload, message.time_us, readings)?;
                Ok(None)
            }
            Content::Can => self.decode_can(message, &payload, readings).map(Some),
        }
    }

    fn decode_can(
        &self,
        message: &Message,
        payload: &[u8],
        readings: &mut Vec<Reading>,
    ) -> Result<CanSummary, Refusal> {
        let frames = decode_frames(payload)?;
        let decoder = (self.models)(&message.vehicle_id)
            .ok_or_else(|| Refusal::NoModel(message.vehicle_id.to_string()))?;
        let mut summary = CanSummary {
            frames: frames.len(),
            ..CanSummary::default()
        };
        for frame in &frames {
            match decoder.decode(frame, readings) {
                Decoded::Known { cut_short, .. } => summary.cut_short += cut_short,
                Decoded::UnknownMessage => summary.unknown += 1,
            }
            if readings.len() > MAX_CAN_READINGS {
                return Err(Refusal::TooManyReadings);
            }
        }
        Ok(summary)
    }
}

impl fmt::Debug for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processor")
            .field("max_decompressed", &self.max_decompressed)
            .finish_non_exhaustive()
    }
}
