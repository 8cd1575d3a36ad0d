//! Dead letters: messages that a step of the pipeline refused, kept with the step, the reason and the original
//! bytes, so that they can be looked at and sent through again once the reason is gone.

use bytes::Bytes;
use eventlog::{NewRecord, Record};

/// The stream of messages that could not be refined.
pub const DEAD_TELEMETRY: &str = "dead.telemetry";

/// Bytes of a reason; what is longer quotes too much.
const MAX_REASON: usize = 1_024;

/// Which step refused a message, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The step, by a name that stays: `decode`.
    pub step: &'static str,
    /// What is wrong and what to do about it.
    pub reason: String,
}

impl DeadLetter {
    /// Refused by the decoder.
    pub(crate) fn decode(error: &dyn std::error::Error) -> DeadLetter {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            cause = error.source();
        }
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        DeadLetter {
            step: "decode",
            reason,
        }
    }

    /// The record for [`DEAD_TELEMETRY`]: key, time, headers and payload of the refused one, and the headers
    /// `dead_step`, `dead_reason`, `dead_partition` and `dead_offset` (its place in its stream).
    #[must_use]
    pub fn to_record(&self, refused: &Record) -> NewRecord {
        let mut headers = Vec::with_capacity(refused.headers.len() + 4);
        headers.extend_from_slice(&refused.headers);
        let mut add = |name: &'static str, value: Bytes| {
            headers.push((Bytes::from_static(name.as_bytes()), value));
        };
        add("dead_step", Bytes::from_static(self.step.as_bytes()));
        add(
            "dead_reason",
            Bytes::copy_from_slice(self.reason.as_bytes()),
        );
        add("dead_partition", Bytes::from(refused.partition.to_string()));
        add("dead_offset", Bytes::from(refused.offset.to_string()));
        NewRecord {
            key: refused.key.clone(),
            time_us: refused.time_us,
            headers,
            value: refused.value.clone(),
        }
    }
}
