//! Template: a PUBLISH encoded once, of which every message is a copy with a few bytes changed.

use bytes::BytesMut;
use mqtt::{Attempt, EncodeError, Layout, PacketId, Publish, PublishFrame, QoS, Version};

use crate::client::Delivery;

/// Largest payload.
pub const MOST_PAYLOAD: usize = 256 * 1024;

/// Hexadecimal digits of the counter that payloads begin with.
const DIGITS: usize = 16;

/// An encoded message of one connection.
pub(super) struct Template {
    bytes: Box<[u8]>,
    packet_id_at: Option<usize>,
    /// Where the counter is, if the payload has room for it.
    counter_at: Option<usize>,
}

impl Template {
    pub(super) fn new(
        vehicle: &str,
        delivery: Delivery,
        payload: usize,
        version: Version,
    ) -> Result<Self, EncodeError> {
        let publish = Publish {
            qos: delivery.into(),
            topic: format!("dt/load/bench/{vehicle}/x").into(),
            // Not JSON, so the server keeps it as it is; not all the same, so it does not compress
            // to nothing.
            payload: (0..payload)
                .map(|index| b'a' + (index * index % 26) as u8)
                .collect::<Vec<_>>()
                .into(),
            ..Publish::default()
        };
        let frame = PublishFrame::new(&publish, Layout::of(&publish, version))?;
        let id = (publish.qos != QoS::AtMostOnce).then_some(PacketId::FIRST);
        let mut bytes = BytesMut::new();
        frame.write(id, Attempt::First, &mut bytes)?;
        Ok(Self {
            packet_id_at: frame.packet_id_offset(),
            counter_at: (payload >= DIGITS).then(|| bytes.len() - payload),
            bytes: bytes.to_vec().into(),
        })
    }

    /// Appends message number `counter`; `id` is its packet identifier, if it has one.
    pub(super) fn append(&self, id: u16, counter: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let message = &mut out[start..];
        if let Some(at) = self.packet_id_at {
            message[at..at + 2].copy_from_slice(&id.to_be_bytes());
        }
        if let Some(at) = self.counter_at {
            for (place, digit) in message[at..at + DIGITS].iter_mut().enumerate() {
                let nibble = (counter >> (4 * (DIGITS - 1 - place))) & 0xf;
                *digit = b"0123456789abcdef"[nibble as usize];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mqtt::{Connect, Decoder, Packet};

    #[test]
    fn copies_are_whole_messages_with_their_own_id_and_number() {
        for version in [Version::V311, Version::V5] {
            for (delivery, payload) in [
                (Delivery::AtLeastOnce, 200),
                (Delivery::AtMostOnce, 200),
                (Delivery::AtLeastOnce, 3),
                (Delivery::AtLeastOnce, 0),
                (Delivery::AtLeastOnce, 70_000),
            ] {
                let template = Template::new("car-1", delivery, payload, version).unwrap();
                let mut bytes = BytesMut::new();
                let connect = Packet::Connect(Box::new(Connect::new(version, "c")));
                mqtt::encode(&connect, version, &mut bytes).unwrap();
                let mut out = Vec::new();
                template.append(7, 0xab, &mut out);
                template.append(65_535, u64::MAX, &mut out);
                bytes.extend_from_slice(&out);
                let mut decoder = Decoder::for_server(1_000_000);
                decoder.decode(&mut bytes).unwrap();
                for (id, counter) in [(7, 0xab), (65_535, u64::MAX)] {
                    let Some(Packet::Publish(publish)) = decoder.decode(&mut bytes).unwrap() else {
                        panic!("no PUBLISH");
                    };
                    assert_eq!(publish.topic, "dt/load/bench/car-1/x");
                    assert_eq!(publish.payload.len(), payload);
                    let expected = (delivery == Delivery::AtLeastOnce).then_some(id);
                    assert_eq!(publish.packet_id.map(PacketId::get), expected);
                    if payload >= DIGITS {
                        let digits = format!("{counter:016x}");
                        assert_eq!(&publish.payload[..DIGITS], digits.as_bytes());
                    }
                }
                assert!(bytes.is_empty());
            }
        }
    }
}
