//! One encoded message, shared by all receivers of the same layout.
//!
//! Its bytes are its own: it does not keep the publisher's read buffer alive, however long it waits
//! in a slow receiver's queue.

use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::BytesMut;
use mqtt::{
    AliasedTopic, Attempt, EncodeError, PacketId, Publish, PublishFrame, QoS, SubscriptionId,
    Version,
};

use super::Moment;
use super::message::is_expired;

/// A PUBLISH ready to be written; cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Frame(Arc<Encoded>);

#[derive(Debug)]
struct Encoded {
    frame: PublishFrame,
    version: Version,
    qos: QoS,
    expiry: Option<u32>,
    /// Tick at which the message came in; negative if that was before the broker started.
    since: i64,
}

/// What receivers that can share a frame have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) version: Version,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) ids: SubscriptionIds,
}

/// The subscription identifiers of a delivery, in ascending order; nearly always none or one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum SubscriptionIds {
    #[default]
    None,
    One([u32; 1]),
    Many(Arc<[u32]>),
}

impl SubscriptionIds {
    /// Of one subscription; 0 for none.
    pub(crate) fn one(id: u32) -> SubscriptionIds {
        match id {
            0 => SubscriptionIds::None,
            id => SubscriptionIds::One([id]),
        }
    }

    /// Adds that of another matching subscription; 0 for none.
    pub(crate) fn add(&mut self, id: u32) {
        if id == 0 {
            return;
        }
        if let Err(place) = self.as_slice().binary_search(&id) {
            let mut ids = self.as_slice().to_vec();
            ids.insert(place, id);
            *self = SubscriptionIds::from(ids);
        }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            SubscriptionIds::None => &[],
            SubscriptionIds::One(one) => one,
            SubscriptionIds::Many(many) => many,
        }
    }
}

impl From<Vec<u32>> for SubscriptionIds {
    fn from(ids: Vec<u32>) -> SubscriptionIds {
        match ids[..] {
            [] => SubscriptionIds::None,
            [one] => SubscriptionIds::One([one]),
            _ => SubscriptionIds::Many(ids.into()),
        }
    }
}

impl Frame {
    /// Encodes `publish` for one layout. A payload of more than [`PublishFrame::COPIED`] bytes is shared, and
    /// must own its memory. `since` is the tick at which it came in.
    pub(crate) fn encode(
        publish: &Publish,
        layout: &Layout,
        since: i64,
    ) -> Result<Frame, EncodeError> {
        let ids: Vec<SubscriptionId> = layout
            .ids
            .as_slice()
            .iter()
            .filter_map(|id| SubscriptionId::new(*id))
            .collect();
        let frame = PublishFrame::new(
            publish,
            mqtt::Layout {
                version: layout.version,
                qos: layout.qos,
                retain: layout.retain,
                subscription_ids: &ids,
                message_expiry_interval: publish.properties.message_expiry_interval,
            },
        )?;
        Ok(Frame(Arc::new(Encoded {
            frame,
            version: layout.version,
            qos: layout.qos,
            expiry: publish.properties.message_expiry_interval,
            since,
        })))
    }

    pub(crate) fn topic(&self) -> &str {
        self.0.frame.topic()
    }

    pub(crate) fn version(&self) -> Version {
        self.0.version
    }

    /// Tick at which the message came in.
    pub(crate) fn since(&self) -> i64 {
        self.0.since
    }

    /// The message, as far as the frame says it: QoS and RETAIN are those of the delivery.
    pub(crate) fn publish(&self) -> Option<Publish> {
        match self.0.frame.publish() {
            Ok(mut publish) => {
                // Of the subscription it was encoded for.
                publish.properties.subscription_ids.clear();
                Some(publish)
            }
            Err(error) => {
                tracing::error!(event = "frame.unreadable", %error);
                None
            }
        }
    }

    pub(crate) fn qos(&self) -> QoS {
        self.0.qos
    }

    /// Bytes of the whole packet.
    pub(crate) fn len(&self) -> usize {
        self.0.frame.len()
    }

    /// Whether its Message Expiry Interval has passed [MQTT-3.3.2-5].
    pub(crate) fn is_expired(&self, now: Moment) -> bool {
        is_expired(self.0.since, self.0.expiry, now)
    }

    /// Appends the packet for one receiver; the expiry interval is what is left of it
    /// [MQTT-3.3.2-6].
    pub(crate) fn write(
        &self,
        packet_id: Option<PacketId>,
        attempt: Attempt,
        alias: Option<(NonZeroU16, AliasedTopic)>,
        now: Moment,
        out: &mut BytesMut,
    ) {
        let start = out.len();
        let frame = &self.0.frame;
        let expiry_at = match alias {
            None => frame
                .write(packet_id, attempt, out)
                .map(|()| frame.message_expiry_offset()),
            Some((alias, topic)) => frame
                .write_aliased(packet_id, attempt, alias, topic, out)
                .map(|written| written.message_expiry_offset),
        };
        debug_assert!(expiry_at.is_ok(), "a packet id exactly for QoS 1 and 2");
        if let (Some(interval), Ok(Some(at))) = (self.0.expiry, expiry_at) {
            let waited = (now.tick as i64 - self.0.since) / 1000;
            if waited > 0 {
                let waited = u32::try_from(waited).unwrap_or(u32::MAX);
                let left = interval.saturating_sub(waited).to_be_bytes();
                out[start + at..start + at + 4].copy_from_slice(&left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mqtt::{Decoder, Packet};

    use super::*;

    fn moment(tick: u64) -> Moment {
        Moment { tick, wall_us: 0 }
    }

    /// Decodes what a receiver would see.
    fn read(bytes: BytesMut) -> Publish {
        let mut buf = BytesMut::new();
        mqtt::encode(&mqtt::ConnAck::default().into(), Version::V5, &mut buf).expect("encodes");
        buf.extend_from_slice(&bytes);
        let mut decoder = Decoder::for_client(Version::V5, u32::MAX);
        decoder.decode(&mut buf).expect("CONNACK");
        match decoder.decode(&mut buf).expect("decodes") {
            Some(Packet::Publish(publish)) => *publish,
            other => panic!("not a PUBLISH: {other:?}"),
        }
    }

    #[test]
    fn the_expiry_interval_counts_down_while_the_message_waits() {
        let mut publish = Publish {
            topic: "a".into(),
            payload: "hello".into(),
            ..Publish::default()
        };
        publish.properties.message_expiry_interval = Some(300);
        publish.properties.payload_format = Some(mqtt::PayloadFormat::Utf8);
        publish.properties.user_properties = vec![("k".into(), "v".into())];
        let layout = Layout {
            version: Version::V5,
            qos: QoS::AtMostOnce,
            retain: false,
            ids: SubscriptionIds::one(9),
        };
        let frame = Frame::encode(&publish, &layout, 5_000).expect("fits");
        for (tick, left) in [(5_000, 300), (5_999, 300), (6_000, 299), (305_000, 0)] {
            let mut out = BytesMut::new();
            frame.write(None, Attempt::First, None, moment(tick), &mut out);
            let read = read(out);
            assert_eq!(read.properties.message_expiry_interval, Some(left));
            assert_eq!(read.properties.user_properties.len(), 1);
            assert_eq!(read.properties.subscription_ids[0].get(), 9);
            assert_eq!(&read.payload[..], b"hello");
            assert!(!frame.is_expired(moment(tick)));
        }
        assert!(frame.is_expired(moment(305_001)));
    }
}
