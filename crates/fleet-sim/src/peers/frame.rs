//! Frame: a PUBLISH encoded once, of which every message is these bytes with a few changed in place.
//!
//! Topics end in a number of seven digits, so that one frame serves all publishers and stays in the
//! CPU's cache: a frame for each of a thousand publishers would not.

use std::sync::Arc;

use bytes::BytesMut;
use mqtt::{
    Connect, Disconnect, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    SubscribeProperties, Subscription, TopicFilter, Unsubscribe, UnsubscribeProperties, Version,
};

use super::PeersError;
use super::stamp::Stamp;

/// A PINGREQ: who has its answer has everything that was sent before it.
pub(super) const PINGREQ: [u8; 2] = [0xC0, 0];
/// First bytes of the acknowledgements a client sends.
pub(super) const PUBACK: u8 = 0x40;
pub(super) const PUBREC: u8 = 0x50;
pub(super) const PUBREL: u8 = 0x62;
pub(super) const PUBCOMP: u8 = 0x70;

/// Decimal digits of a topic's number.
const DIGITS: usize = 7;
/// Seconds a stored session is kept: longer than any run.
const EXPIRY: u32 = 86_400;

/// Whether a session outlives its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keeping {
    /// It ends with the connection.
    #[default]
    Clean,
    /// The broker keeps it.
    Stored,
}

/// The topics of numbered publishers: the same but for a number.
#[derive(Debug, Clone)]
pub(super) struct Topics {
    prefix: Arc<str>,
}

impl Topics {
    /// Below `prefix`, which ends in a slash.
    pub(super) fn below(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// Topic number `number`.
    pub(super) fn number(&self, number: usize) -> String {
        format!("{}{number:0DIGITS$}/x", self.prefix)
    }

    /// The filter for all of them.
    pub(super) fn all(&self) -> String {
        format!("{}+/x", self.prefix)
    }
}

/// As many messages as are written at once.
pub(super) struct Frame {
    bytes: Vec<u8>,
    /// Bytes of one message.
    size: usize,
    digits_at: usize,
    id_at: Option<usize>,
    payload_at: usize,
}

impl Frame {
    /// `burst` messages to `topics` with payloads of `payload` bytes, at least [`Stamp::SIZE`].
    pub(super) fn new(
        version: Version,
        qos: QoS,
        topics: &Topics,
        payload: usize,
        burst: usize,
        retain: Retain,
    ) -> Result<Self, PeersError> {
        let publish = Publish {
            qos,
            retain: retain == Retain::Yes,
            packet_id: (qos != QoS::AtMostOnce).then_some(PacketId::FIRST),
            topic: topics.number(0).into(),
            // Not all the same, so that nothing that compresses makes it vanish.
            payload: (0..payload)
                .map(|index| b'a' + (index * index % 26) as u8)
                .collect::<Vec<_>>()
                .into(),
            ..Publish::default()
        };
        let one = encoded(Packet::Publish(Box::new(publish)), version)?;
        let length_bytes = one[1..].iter().take_while(|byte| **byte >= 0x80).count() + 1;
        let digits_at = 1 + length_bytes + 2 + topics.prefix.len();
        let behind_topic = digits_at + DIGITS + "/x".len();
        Ok(Self {
            bytes: one.repeat(burst),
            size: one.len(),
            digits_at,
            id_at: (qos != QoS::AtMostOnce).then_some(behind_topic),
            payload_at: one.len() - payload,
        })
    }

    /// Makes message number `place` of the burst this one, to topic number `topic`.
    pub(super) fn patch(&mut self, place: usize, topic: usize, id: u16, stamp: Stamp) {
        let message = &mut self.bytes[place * self.size..(place + 1) * self.size];
        let mut left = topic;
        for digit in message[self.digits_at..self.digits_at + DIGITS]
            .iter_mut()
            .rev()
        {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        if let Some(at) = self.id_at {
            message[at..at + 2].copy_from_slice(&id.to_be_bytes());
        }
        stamp.write(&mut message[self.payload_at..]);
    }

    /// The first `count` messages.
    pub(super) fn first(&self, count: usize) -> &[u8] {
        &self.bytes[..count * self.size]
    }
}

/// Whether the broker keeps a message for later subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retain {
    No,
    Yes,
}

/// A CONNECT without keep-alive.
pub(super) fn connect(
    version: Version,
    client_id: &str,
    keeping: Keeping,
) -> Result<Vec<u8>, PeersError> {
    let mut connect = Connect::new(version, client_id);
    connect.clean_start = keeping == Keeping::Clean;
    if keeping == Keeping::Stored && version == Version::V5 {
        connect.properties.session_expiry_interval = Some(EXPIRY);
    }
    encoded(Packet::Connect(Box::new(connect)), version)
}

/// A SUBSCRIBE with packet identifier 1.
pub(super) fn subscribe(
    version: Version,
    qos: QoS,
    filters: &[String],
) -> Result<Vec<u8>, PeersError> {
    let subscriptions = filters
        .iter()
        .map(|filter| Ok(Subscription::new(parsed(filter)?, qos)))
        .collect::<Result<_, PeersError>>()?;
    let subscribe = Subscribe {
        packet_id: PacketId::FIRST,
        subscriptions,
        properties: SubscribeProperties::default(),
    };
    encoded(subscribe.into(), version)
}

/// An UNSUBSCRIBE with packet identifier 1.
pub(super) fn unsubscribe(version: Version, filter: &str) -> Result<Vec<u8>, PeersError> {
    let unsubscribe = Unsubscribe {
        packet_id: PacketId::FIRST,
        filters: vec![parsed(filter)?],
        properties: UnsubscribeProperties::default(),
    };
    encoded(unsubscribe.into(), version)
}

/// A DISCONNECT without trouble.
pub(super) fn disconnect(version: Version) -> Result<Vec<u8>, PeersError> {
    encoded(
        Disconnect::new(ReasonCode::NORMAL_DISCONNECTION).into(),
        version,
    )
}

fn parsed(filter: &str) -> Result<TopicFilter, PeersError> {
    TopicFilter::parse(filter).map_err(|error| PeersError::Options {
        problem: format!("`{filter}` is no topic filter: {error}"),
    })
}

fn encoded(packet: Packet, version: Version) -> Result<Vec<u8>, PeersError> {
    let mut out = BytesMut::new();
    mqtt::encode(&packet, version, &mut out)?;
    Ok(out.to_vec())
}

#[cfg(test)]
mod tests {
    use mqtt::Decoder;

    use super::*;

    #[test]
    fn patched_messages_are_what_the_codec_reads() {
        let topics = Topics::below("bench/in/");
        for version in [Version::V311, Version::V5] {
            for (qos, payload) in [
                (QoS::AtMostOnce, 16),
                (QoS::AtLeastOnce, 200),
                (QoS::ExactlyOnce, 4096),
            ] {
                let mut frame = Frame::new(version, qos, &topics, payload, 3, Retain::No).unwrap();
                let stamp = |number| Stamp {
                    publisher: 41,
                    number,
                    at_ns: 99,
                };
                frame.patch(0, 41, 7, stamp(5));
                frame.patch(1, 1_234_567, 65_535, stamp(u32::MAX));
                let mut decoder = Decoder::for_server(1 << 20);
                let mut bytes =
                    BytesMut::from(&connect(version, "c", Keeping::Stored).unwrap()[..]);
                bytes.extend_from_slice(frame.first(2));
                decoder.decode(&mut bytes).unwrap();
                for (topic, id, number) in [(41, 7, 5), (1_234_567, 65_535, u32::MAX)] {
                    let Some(Packet::Publish(publish)) = decoder.decode(&mut bytes).unwrap() else {
                        panic!("no PUBLISH");
                    };
                    assert_eq!(publish.topic.to_string(), topics.number(topic));
                    let id = (qos != QoS::AtMostOnce).then_some(id);
                    assert_eq!(publish.packet_id.map(PacketId::get), id);
                    assert_eq!(publish.payload.len(), payload);
                    assert_eq!(Stamp::read(&publish.payload), Some(stamp(number)));
                }
                assert!(bytes.is_empty());
            }
        }
    }
}
