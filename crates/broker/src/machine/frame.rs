//! One encoded message, shared by all receivers of the same layout.
//!
//! Its bytes are its own: it does not keep the publisher's read buffer alive, however long it waits
//! in a slow receiver's queue.

use std::sync::Arc;

use bytes::BytesMut;
use mqtt::{
    Attempt, EncodeError, Layout, PacketId, Publish, PublishFrame, QoS, SubscriptionId, Version,
};

use super::Moment;

/// A PUBLISH ready to be written; cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Frame(Arc<Encoded>);

#[derive(Debug)]
struct Encoded {
    frame: PublishFrame,
    qos: QoS,
    expiry: Option<Expiry>,
}

#[derive(Debug)]
struct Expiry {
    /// Tick at which the message came in.
    since: u64,
    /// Message Expiry Interval then, seconds.
    interval: u32,
    /// Where in the frame its four bytes are; `None` in MQTT 3.1.1, which does not send it.
    at: Option<usize>,
}

impl Frame {
    /// Encodes `publish`, whose payload must own its memory, for one layout. `subscription` is the
    /// subscription identifier, 0 for none.
    pub(crate) fn encode(
        publish: &Publish,
        version: Version,
        qos: QoS,
        subscription: u32,
        now: Moment,
    ) -> Result<Frame, EncodeError> {
        let id = SubscriptionId::new(subscription);
        let layout = Layout {
            version,
            qos,
            retain: false,
            subscription_ids: id.as_slice(),
            message_expiry_interval: publish.properties.message_expiry_interval,
        };
        let frame = PublishFrame::new(publish, layout)?;
        let expiry = match publish.properties.message_expiry_interval {
            None => None,
            Some(interval) => Some(Expiry {
                since: now.tick,
                interval,
                at: expiry_offset(publish, layout)?,
            }),
        };
        Ok(Frame(Arc::new(Encoded { frame, qos, expiry })))
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
        let Some(expiry) = &self.0.expiry else {
            return false;
        };
        now.tick.saturating_sub(expiry.since) > u64::from(expiry.interval) * 1000
    }

    /// Appends the packet for one receiver; the expiry interval is what is left of it
    /// [MQTT-3.3.2-6].
    pub(crate) fn write(&self, packet_id: Option<PacketId>, now: Moment, out: &mut BytesMut) {
        let start = out.len();
        let written = self.0.frame.write(packet_id, Attempt::First, out);
        debug_assert!(written.is_ok(), "a packet id exactly for QoS 1");
        if let Some(Expiry {
            since,
            interval,
            at: Some(at),
        }) = &self.0.expiry
        {
            let waited = (now.tick.saturating_sub(*since) / 1000) as u32;
            if waited > 0 {
                let left = interval.saturating_sub(waited).to_be_bytes();
                out[start + at..start + at + 4].copy_from_slice(&left);
            }
        }
    }
}

/// Where the codec puts the expiry interval: where two encodings differ that differ in nothing
/// else. Costs a second encoding of the head, for messages with an expiry only, and knows nothing
/// about the order of properties.
fn expiry_offset(publish: &Publish, layout: Layout<'_>) -> Result<Option<usize>, EncodeError> {
    let encode = |interval| {
        PublishFrame::new(
            publish,
            Layout {
                message_expiry_interval: Some(interval),
                ..layout
            },
        )
    };
    let (zeros, ones) = (encode(0)?, encode(u32::MAX)?);
    Ok(zeros
        .head()
        .iter()
        .zip(ones.head())
        .position(|(zero, one)| zero != one))
}

#[cfg(test)]
mod tests {
    use mqtt::Decoder;

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
            Some(mqtt::Packet::Publish(publish)) => *publish,
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
        let frame =
            Frame::encode(&publish, Version::V5, QoS::AtMostOnce, 9, moment(5_000)).expect("fits");
        for (tick, left) in [(5_000, 300), (5_999, 300), (6_000, 299), (305_000, 0)] {
            let mut out = BytesMut::new();
            frame.write(None, moment(tick), &mut out);
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
