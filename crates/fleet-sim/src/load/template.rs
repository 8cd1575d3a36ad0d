//! Template: a PUBLISH encoded once, of which every message is a copy with a few bytes changed.

use bytes::BytesMut;
use mqtt::{Attempt, EncodeError, Layout, PacketId, Publish, PublishFrame, QoS, Version};

use crate::client::Delivery;

/// Largest payload.
pub const MOST_PAYLOAD: usize = 256 * 1024;

/// Hexadecimal digits of the counter that payloads begin with.
pub(super) const DIGITS: usize = 16;

/// Decimal digits at the end of the topic of a numbered session.
const TOPIC_DIGITS: usize = 7;

/// The topic that numbered session `number` subscribes to.
pub(super) fn session_topic(number: usize) -> String {
    format!("bench/session/{number:0TOPIC_DIGITS$}")
}

/// Where the messages of one connection go, one after the other.
pub(super) enum Round {
    /// All to one topic.
    Topic(String),
    /// To the topics of these sessions in turn: from the first, in steps, so many.
    Sessions {
        first: usize,
        step: usize,
        count: usize,
    },
}

impl Round {
    /// The part of `sessions` that connection `index` of `connections` sends to.
    pub(super) fn part(sessions: usize, connections: usize, index: usize) -> Self {
        Self::Sessions {
            first: index,
            step: connections,
            count: sessions.saturating_sub(index).div_ceil(connections),
        }
    }

    /// How many topics it goes round.
    pub(super) fn topics(&self) -> usize {
        match self {
            Self::Topic(_) => 1,
            Self::Sessions { count, .. } => *count,
        }
    }
}

/// An encoded message of one connection.
pub(super) struct Template {
    bytes: Box<[u8]>,
    round: Round,
    /// Behind the last byte of the topic.
    topic_end: usize,
    packet_id_at: Option<usize>,
    /// Where the counter is, if the payload has room for it.
    counter_at: Option<usize>,
}

impl Template {
    pub(super) fn new(
        round: Round,
        delivery: Delivery,
        payload: usize,
        version: Version,
    ) -> Result<Self, EncodeError> {
        let topic = match &round {
            Round::Topic(topic) => topic.clone(),
            Round::Sessions { first, .. } => session_topic(*first),
        };
        let topic_len = topic.len();
        let publish = Publish {
            qos: delivery.into(),
            topic: topic.into(),
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
        // Behind the first byte and the remaining length, whose last byte has no high bit.
        let length_bytes = bytes[1..].iter().take_while(|byte| **byte >= 0x80).count() + 1;
        Ok(Self {
            topic_end: 1 + length_bytes + 2 + topic_len,
            packet_id_at: frame.packet_id_offset(),
            counter_at: (payload >= DIGITS).then(|| bytes.len() - payload),
            bytes: bytes.to_vec().into(),
            round,
        })
    }

    /// Appends message number `number`; `id` is its packet identifier, if it has one. The counter in
    /// the payload is the number among those to the same topic.
    pub(super) fn append(&self, id: u16, number: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let message = &mut out[start..];
        let mut counter = number;
        if let Round::Sessions { first, step, count } = self.round {
            let count = count.max(1) as u64;
            let session = first + step * (number % count) as usize;
            counter = number / count;
            let mut left = session;
            for digit in message[self.topic_end - TOPIC_DIGITS..self.topic_end]
                .iter_mut()
                .rev()
            {
                *digit = b'0' + (left % 10) as u8;
                left /= 10;
            }
        }
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

    fn to_one() -> Round {
        Round::Topic("dt/load/bench/car-1/x".into())
    }

    #[test]
    fn sessions_get_their_messages_in_turn_each_with_a_number_of_its_own() {
        // The second of three connections, for eight sessions: 1, 4 and 7.
        let round = Round::part(8, 3, 1);
        assert_eq!(round.topics(), 3);
        let delivery = Delivery::ExactlyOnce;
        let template = Template::new(round, delivery, 200, Version::V5).unwrap();
        let mut bytes = BytesMut::new();
        let connect = Packet::Connect(Box::new(Connect::new(Version::V5, "c")));
        mqtt::encode(&connect, Version::V5, &mut bytes).unwrap();
        let mut out = Vec::new();
        for number in 0..4 {
            template.append(1 + number as u16, number, &mut out);
        }
        bytes.extend_from_slice(&out);
        let mut decoder = Decoder::for_server(1_000_000);
        decoder.decode(&mut bytes).unwrap();
        let mut seen = Vec::new();
        while let Some(Packet::Publish(publish)) = decoder.decode(&mut bytes).unwrap() {
            seen.push((publish.topic.to_string(), publish.payload[DIGITS - 1]));
        }
        let expected = [(1, b'0'), (4, b'0'), (7, b'0'), (1, b'1')];
        let expected = expected.map(|(session, digit)| (session_topic(session), digit));
        assert_eq!(seen, expected);
        let all: usize = (0..3).map(|index| Round::part(8, 3, index).topics()).sum();
        assert_eq!(all, 8);
    }

    #[test]
    fn copies_are_whole_messages_with_their_own_id_and_number() {
        for version in [Version::V311, Version::V5] {
            for (delivery, payload) in [
                (Delivery::AtLeastOnce, 200),
                (Delivery::AtMostOnce, 200),
                (Delivery::ExactlyOnce, 200),
                (Delivery::AtLeastOnce, 3),
                (Delivery::AtLeastOnce, 0),
                (Delivery::AtLeastOnce, 70_000),
            ] {
                let template = Template::new(to_one(), delivery, payload, version).unwrap();
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
                    let expected = (delivery != Delivery::AtMostOnce).then_some(id);
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
