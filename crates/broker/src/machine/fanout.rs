//! From one message to its receivers: match, encode once per layout, hand out.
//!
//! A thousand receivers that differ in nothing but their packet id share one frame. What differs
//! is the protocol version, the QoS and the subscription identifier; most messages need one layout,
//! few more than two.

use std::sync::RwLock;

use bytes::Bytes;
use mqtt::{Publish, QoS, Version};

use super::filter_index::{FilterIndex, Matches};
use super::frame::Frame;
use super::{ConnectionId, Moment};

/// Working memory of fan-outs, reused from message to message.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    matches: Matches,
    frames: Vec<(Layout, Frame)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    version: Version,
    qos: QoS,
    subscription: u32,
}

impl Fanout {
    /// Calls `deliver` for every receiver of a message, whose payload gets memory of its own if there
    /// is one. Returns their number.
    pub(crate) fn route(
        &mut self,
        index: &RwLock<FilterIndex>,
        publish: &mut Publish,
        from: Option<ConnectionId>,
        now: Moment,
        mut deliver: impl FnMut(ConnectionId, &Frame),
    ) -> usize {
        // The lock is held for the match alone; encoding and delivery work on the copy.
        index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .find(&publish.topic, from, &mut self.matches);
        if self.matches.found.is_empty() {
            return 0;
        }
        // The payload is a slice of the publisher's read buffer; frames may wait for long.
        publish.payload = Bytes::copy_from_slice(&publish.payload);
        let mut delivered = 0;
        for receiver in &self.matches.found {
            let layout = Layout {
                version: receiver.version,
                qos: receiver.granted.min(publish.qos),
                subscription: receiver.id,
            };
            let known = self.frames.iter().position(|(known, _)| *known == layout);
            let place = match known {
                Some(place) => place,
                None => {
                    let Layout {
                        version,
                        qos,
                        subscription,
                    } = layout;
                    let frame = match Frame::encode(publish, version, qos, subscription, now) {
                        Ok(frame) => frame,
                        // What came in through the codec goes out through it; only a message of
                        // the program itself can be unsayable.
                        Err(error) => {
                            tracing::warn!(event = "publish.unencodable", %error);
                            continue;
                        }
                    };
                    self.frames.push((layout, frame));
                    self.frames.len() - 1
                }
            };
            deliver(receiver.to, &self.frames[place].1);
            delivered += 1;
        }
        self.frames.clear();
        delivered
    }
}
