//! What must hold for every sequence of bytes. Property tests, the kept corpus and the fuzz targets all
//! ask here.

use mqtt::{BytesMut, DecodeError, Decoder, Packet, TopicFilter, TopicName, Version, encode};

const MAX_PACKET_SIZE: u32 = 64 * 1024;

/// What became of some bytes.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub packets: Vec<Packet>,
    pub error: Option<DecodeError>,
    /// Bytes of a packet that has not arrived in full; 0 after an error.
    pub left: usize,
}

fn drain(decoder: &mut Decoder, buf: &mut BytesMut, outcome: &mut Outcome) {
    while outcome.error.is_none() {
        let before = buf.len();
        let result = decoder.decode(buf);
        assert!(buf.len() <= before, "decoding makes no bytes");
        match result {
            Ok(Some(packet)) => {
                assert!(buf.len() <= before - 2, "a packet has at least two bytes");
                outcome.packets.push(packet);
            }
            Ok(None) => {
                assert_eq!(buf.len(), before, "an incomplete packet stays");
                outcome.left = before;
                return;
            }
            Err(error) => {
                outcome.error = Some(error);
                outcome.left = 0;
                assert_eq!(decoder.decode(buf), Err(error), "an error is final");
            }
        }
    }
}

/// Decodes `bytes` handed over in pieces of `step`.
pub fn decode_in_steps(mut decoder: Decoder, bytes: &[u8], step: usize) -> Outcome {
    let mut outcome = Outcome {
        packets: Vec::new(),
        error: None,
        left: 0,
    };
    let mut buf = BytesMut::new();
    for piece in bytes.chunks(step.max(1)) {
        buf.extend_from_slice(piece);
        drain(&mut decoder, &mut buf, &mut outcome);
    }
    outcome
}

/// The decoder a first byte stands for, with the opening of its connection already seen.
fn decoder_for(selector: u8) -> Decoder {
    let after = |mut decoder: Decoder, opening: &[u8]| {
        let mut buf = BytesMut::from(opening);
        assert!(matches!(decoder.decode(&mut buf), Ok(Some(_))));
        decoder
    };
    let server = Decoder::for_server(MAX_PACKET_SIZE);
    let client = |version| Decoder::for_client(version, MAX_PACKET_SIZE);
    match selector % 7 {
        0 => server,
        1 => after(server, b"\x10\x0C\0\x04MQTT\x04\x02\0\0\0\0"),
        2 => after(server, b"\x10\x0D\0\x04MQTT\x05\x02\0\0\0\0\0"),
        3 => client(Version::V311),
        4 => after(client(Version::V311), b"\x20\x02\0\0"),
        5 => client(Version::V5),
        _ => after(client(Version::V5), b"\x20\x03\0\0\0"),
    }
}

/// The first byte selects side, version and phase; the others are what arrives. They must decode
/// without panic, to the same packets however they are cut, and each packet must come back from its own
/// encoding.
pub fn check_stream(data: &[u8]) -> Outcome {
    let Some((&selector, bytes)) = data.split_first() else {
        return Outcome {
            packets: Vec::new(),
            error: None,
            left: 0,
        };
    };
    let decoder = decoder_for(selector);
    let whole = decode_in_steps(decoder.clone(), bytes, bytes.len());
    for step in [1, 2, 7] {
        let cut = decode_in_steps(decoder.clone(), bytes, step);
        assert_eq!(cut, whole, "in pieces of {step}");
    }

    let mut version = decoder.version();
    let mut out = BytesMut::new();
    for packet in &whole.packets {
        if let Packet::Connect(connect) = packet {
            version = Some(connect.version);
        }
        let version = version.expect("nothing comes before CONNECT");
        encode(packet, version, &mut out).expect("what was decoded can be encoded");
    }
    assert!(out.len() <= bytes.len(), "the encoding is the shortest");
    let again = decode_in_steps(decoder, &out, usize::MAX);
    assert_eq!(again.packets, whole.packets);
    assert_eq!((again.error, again.left), (None, 0));
    whole
}

/// Matches level by level, written as the specification reads.
fn matches_naively(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) | ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => matches_naively(filter, topic),
        ([wanted, filter @ ..], [level, topic @ ..]) => {
            wanted == level && matches_naively(filter, topic)
        }
        _ => false,
    }
}

/// `text` is a filter and a topic with a line feed between. The two must match as the specification
/// reads.
pub fn check_match(text: &str) {
    let (filter, topic) = text.split_once('\n').unwrap_or((text, "a/b"));
    let (Ok(filter), Ok(topic)) = (TopicFilter::parse(filter), TopicName::parse(topic)) else {
        return;
    };
    let filter_levels: Vec<_> = filter.levels().collect();
    let topic_levels: Vec<_> = topic.split('/').collect();
    let hidden = topic.starts_with('$') && matches!(filter_levels[0], "+" | "#");
    let expected = !hidden && matches_naively(&filter_levels, &topic_levels);
    assert_eq!(filter.matches(&topic), expected, "{filter} {topic}");
    assert_eq!(filter.is_shared(), filter.share_name().is_some());
    if !filter.has_wildcards() {
        assert_eq!(filter.matches(&topic), filter.filter() == topic.as_str());
    }
}
