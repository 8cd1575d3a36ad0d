//! Scanner: finds MQTT packets in what was read, without decoding them.
//!
//! ```text
//! bytes of a read ─► whole packets (kind, flags, body) ─► what is left over waits for the next read
//! ```
//! A measuring client needs three things of a PUBLISH: its packet identifier, its stamp and that it was
//! whole. A decoder would build topics and properties that nobody looks at, at several times the cost.

use mqtt::Version;

use super::PeersError;
use super::stamp::Stamp;

/// The high half of a packet's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Connect = 1,
    ConnAck,
    Publish,
    PubAck,
    PubRec,
    PubRel,
    PubComp,
    Subscribe,
    SubAck,
    Unsubscribe,
    UnsubAck,
    PingReq,
    PingResp,
    Disconnect,
    Auth,
}

impl Kind {
    fn of(first: u8) -> Option<Self> {
        Some(match first >> 4 {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }
}

/// A whole packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<'a> {
    pub(super) kind: Kind,
    /// The low half of the first byte.
    pub(super) flags: u8,
    /// Behind the remaining length.
    pub(super) body: &'a [u8],
    /// All of it, as it came.
    pub(super) whole: &'a [u8],
}

/// What is of interest in a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) topic: &'a [u8],
    /// None at QoS 0.
    pub(super) id: Option<u16>,
    pub(super) qos: u8,
    pub(super) payload: &'a [u8],
}

impl<'a> Found<'a> {
    /// The packet identifier that acknowledgements begin with.
    pub(super) fn id(&self) -> Result<u16, PeersError> {
        match self.body {
            [high, low, ..] => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err(torn("an acknowledgement")),
        }
    }

    /// The reason code of an acknowledgement: MQTT 5 leaves it out when it is 0.
    pub(super) fn reason(&self) -> u8 {
        self.body.get(2).copied().unwrap_or(0)
    }

    /// The parts of a PUBLISH.
    pub(super) fn message(&self, version: Version) -> Result<Message<'a>, PeersError> {
        let (topic, mut rest) = text(self.body).ok_or_else(|| torn("a PUBLISH"))?;
        let qos = self.flags >> 1 & 3;
        let mut id = None;
        if qos > 0 {
            let [high, low, behind @ ..] = rest else {
                return Err(torn("a PUBLISH"));
            };
            id = Some(u16::from_be_bytes([*high, *low]));
            rest = behind;
        }
        if version == Version::V5 {
            let (length, bytes) = variable(rest)?.ok_or_else(|| torn("a PUBLISH"))?;
            rest = rest
                .get(bytes + length..)
                .ok_or_else(|| torn("a PUBLISH"))?;
        }
        Ok(Message {
            topic,
            id,
            qos,
            payload: rest,
        })
    }
}

impl Message<'_> {
    /// The stamp its payload begins with.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        Stamp::read(self.payload)
    }
}

/// A length of two bytes and so many bytes; and what follows.
pub(super) fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// A variable byte integer at the front, and the bytes it takes; `None` if it is not whole.
pub(super) fn variable(bytes: &[u8]) -> Result<Option<(usize, usize)>, PeersError> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Ok(Some((value, place + 1)));
        }
    }
    if bytes.len() >= 4 {
        return Err(torn("a length of more than four bytes"));
    }
    Ok(None)
}

fn torn(what: &str) -> PeersError {
    PeersError::Nonsense {
        what: what.to_owned(),
    }
}

/// Bytes of one connection that are not a whole packet yet.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    left: Vec<u8>,
}

impl Scanner {
    /// Goes through the packets that are whole with these bytes.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Found<'_>) -> Result<(), PeersError>,
    ) -> Result<(), PeersError> {
        if self.left.is_empty() {
            // The common case: nothing is copied but the end.
            let used = packets(bytes, &mut each)?;
            if used < bytes.len() {
                self.left.extend_from_slice(&bytes[used..]);
            }
            return Ok(());
        }
        self.left.extend_from_slice(bytes);
        let used = packets(&self.left, &mut each)?;
        self.left.drain(..used);
        if self.left.is_empty() {
            self.left = Vec::new(); // thousands of connections: none keeps a buffer it does not need
        }
        Ok(())
    }
}

/// Hands the whole packets at the front to `each`; says how many bytes they take.
fn packets(
    bytes: &[u8],
    each: &mut impl FnMut(Found<'_>) -> Result<(), PeersError>,
) -> Result<usize, PeersError> {
    let mut at = 0;
    while let Some(&first) = bytes.get(at) {
        let Some((length, size)) = variable(&bytes[at + 1..])? else {
            break;
        };
        let body = at + 1 + size;
        let Some(whole) = bytes.get(at..body + length) else {
            break;
        };
        let kind = Kind::of(first).ok_or_else(|| torn("a packet of kind 0"))?;
        each(Found {
            kind,
            flags: first & 0xf,
            body: &bytes[body..body + length],
            whole,
        })?;
        at = body + length;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use mqtt::{Packet, PacketId, Publish, PublishProperties, QoS};
    use proptest::prelude::*;

    use super::*;

    fn publish(version: Version, qos: QoS, topic: &str, payload: Vec<u8>) -> Vec<u8> {
        let mut publish = Publish {
            qos,
            topic: topic.into(),
            payload: payload.into(),
            packet_id: (qos != QoS::AtMostOnce).then_some(PacketId::FIRST),
            ..Publish::default()
        };
        if version == Version::V5 {
            publish.properties = PublishProperties {
                content_type: Some("application/json".into()),
                ..PublishProperties::default()
            };
        }
        let mut out = BytesMut::new();
        mqtt::encode(&Packet::Publish(Box::new(publish)), version, &mut out).unwrap();
        out.to_vec()
    }

    #[test]
    fn what_the_codec_writes_is_found_with_its_parts() {
        for version in [Version::V311, Version::V5] {
            for (qos, id) in [
                (QoS::AtMostOnce, None),
                (QoS::AtLeastOnce, Some(1)),
                (QoS::ExactlyOnce, Some(1)),
            ] {
                let stamp = Stamp {
                    publisher: 7,
                    number: 9,
                    at_ns: 1 << 40,
                };
                let mut payload = vec![b'x'; 300];
                stamp.write(&mut payload);
                let bytes = publish(version, qos, "a/b", payload);
                let mut seen = 0;
                let each = |found: Found<'_>| {
                    let message = found.message(version)?;
                    assert_eq!((found.kind, message.topic), (Kind::Publish, &b"a/b"[..]));
                    assert_eq!((message.id, message.qos), (id, qos as u8));
                    assert_eq!(message.payload.len(), 300);
                    assert_eq!(message.stamp(), Some(stamp));
                    seen += 1;
                    Ok(())
                };
                Scanner::default().feed(&bytes, each).unwrap();
                assert_eq!(seen, 1);
            }
        }
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_message() {
        for bytes in [
            &[0x00, 0][..],                     // kind 0
            &[0x30, 0xff, 0xff, 0xff, 0xff, 1], // a length of five bytes
            &[0x30, 1, 0],                      // no topic
            &[0x30, 3, 0, 9, b'a'],             // a topic that ends behind the packet
            &[0x32, 3, 0, 1, b'a'],             // no packet identifier
            &[0x30, 4, 0, 1, b'a', 0x80],       // properties that end behind the packet
            &[0x40, 1, 0],                      // half an identifier
        ] {
            let each = |found: Found<'_>| match found.kind {
                Kind::Publish => found.message(Version::V5).map(drop),
                _ => found.id().map(drop),
            };
            assert!(Scanner::default().feed(bytes, each).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn however_reads_cut_them_packets_are_the_same(
            sizes in prop::collection::vec(0_usize..400, 1..12),
            cuts in prop::collection::vec(1_usize..90, 1..60),
        ) {
            let mut bytes = Vec::new();
            for size in &sizes {
                bytes.extend(publish(Version::V311, QoS::AtMostOnce, "t", vec![1; *size]));
            }
            let (mut scanner, mut seen, mut rest, mut cut) = (Scanner::default(), Vec::new(), &bytes[..], 0);
            while !rest.is_empty() {
                let (read, behind) = rest.split_at(cuts[cut % cuts.len()].min(rest.len()));
                scanner.feed(read, |found| {
                    seen.push(found.message(Version::V311)?.payload.len());
                    Ok(())
                }).unwrap();
                (rest, cut) = (behind, cut + 1);
            }
            prop_assert_eq!(seen, sizes);
            prop_assert!(scanner.left.is_empty());
        }
    }
}
