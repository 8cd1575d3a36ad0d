//! Volley: many QoS 1 messages in one write, and what the server says to them.

use bytes::{Bytes, BytesMut};
use mqtt::{PacketId, Publish, ReasonCode, Version};

use super::prelude::*;
use crate::client::transport::Wire;

/// One message of a volley.
pub(super) struct Shot {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
}

/// What became of a volley.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) taken: u64,
    pub(super) refused: u64,
    /// The last refusal.
    pub(super) reason: Option<ReasonCode>,
}

/// Sends them all, not more at a time than the server allows, and waits for every answer.
pub(super) async fn volley<W: Wire>(
    visitor: &mut Visitor<W>,
    shots: impl IntoIterator<Item = Shot>,
) -> Result<Answers, Turned> {
    let mut shots = shots.into_iter().peekable();
    let mut answers = Answers::default();
    let mut bytes = BytesMut::new();
    while shots.peek().is_some() {
        bytes.clear();
        let mut open = 0_u16;
        for shot in shots.by_ref().take(visitor.receive_maximum.into()) {
            open += 1;
            let publish = Publish {
                qos: QoS::AtLeastOnce,
                retain: shot.retain,
                packet_id: PacketId::new(open),
                topic: shot.topic.into(),
                payload: shot.payload,
                ..Publish::default()
            };
            mqtt::encode(&publish.into(), Version::V5, &mut bytes)?;
        }
        visitor.spit(&bytes);
        visitor.flush().await?;
        while open > 0 {
            if let Packet::PubAck(answer) = visitor.answer().await? {
                open -= 1;
                if answer.reason.is_error() {
                    answers.refused += 1;
                    answers.reason = Some(answer.reason);
                } else {
                    answers.taken += 1;
                }
            }
        }
    }
    Ok(answers)
}
