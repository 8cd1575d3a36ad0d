//! CAN recordings: candump lines in, batches of raw frames out.

use signals::can::{CanFrame, encode_frames};

use crate::message::{Channel, Message};

use super::RecordingError;
use super::lines::Lines;

/// Frames per message at most: some 60 KiB, two seconds of a busy bus.
const MOST_FRAMES: usize = 4_096;

/// Gathers frames until a message spans `window_us` or is full.
pub(super) struct Batches {
    lines: Lines,
    window_us: i64,
    ahead: Option<CanFrame>,
}

impl Batches {
    pub(super) fn new(lines: Lines, window_us: i64) -> Self {
        Self {
            lines,
            window_us,
            ahead: None,
        }
    }

    fn batch(&mut self) -> Result<Option<Message>, RecordingError> {
        let mut frames: Vec<CanFrame> = Vec::new();
        loop {
            let frame = match self.ahead.take() {
                Some(frame) => Some(frame),
                None => self.lines.find(|line| {
                    signals::candump::frame(line).map_err(|problem| problem.to_string())
                })?,
            };
            let Some(frame) = frame else { break };
            let first = frames.first().map_or(frame.time_us, |first| first.time_us);
            // A clock that went back begins a new message.
            let fits = (first..first.saturating_add(self.window_us)).contains(&frame.time_us);
            if frames.len() >= MOST_FRAMES || !fits {
                self.ahead = Some(frame);
                break;
            }
            frames.push(frame);
        }
        let Some(time_us) = frames.iter().map(|frame| frame.time_us).max() else {
            return Ok(None);
        };
        let payload = encode_frames(&frames).map_err(|source| RecordingError::Frames { source })?;
        Ok(Some(Message {
            time_us,
            channel: Channel::Can,
            payload: payload.into(),
        }))
    }
}

impl Iterator for Batches {
    type Item = Result<Message, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batch().transpose()
    }
}
