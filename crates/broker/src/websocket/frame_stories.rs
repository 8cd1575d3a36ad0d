//! What a client may send and what it may not, and that it does not matter how the bytes are cut.

use proptest::prelude::*;

use super::frame::*;

const MASK: [u8; 4] = [0xA5, 0x00, 0x3C, 0xFF];

/// A frame as a client sends it, with the first byte given and the shortest length.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, k)| b ^ k));
    out
}

/// All that came of it: MQTT bytes, the pong that is owed, the end.
#[derive(Debug, PartialEq)]
struct Outcome {
    mqtt: Vec<u8>,
    pong: Option<Vec<u8>>,
    end: Option<End>,
}

fn decode(pieces: impl IntoIterator<Item = Vec<u8>>) -> Outcome {
    let mut decoder = Decoder::new();
    let mut mqtt = Vec::new();
    for mut piece in pieces {
        let count = decoder.decode(&mut piece);
        mqtt.extend_from_slice(&piece[..count]);
    }
    Outcome {
        mqtt,
        pong: decoder.take_pong().map(|pong| pong.as_bytes().to_vec()),
        end: decoder.end(),
    }
}

fn whole(bytes: &[u8]) -> Outcome {
    decode([bytes.to_vec()])
}

fn byte_by_byte(bytes: &[u8]) -> Outcome {
    decode(bytes.iter().map(|byte| vec![*byte]))
}

/// Frames that give these MQTT bytes and nothing else.
fn gives(frames: &[Vec<u8>], mqtt: &[u8]) {
    let bytes = frames.concat();
    let expected = Outcome {
        mqtt: mqtt.to_vec(),
        pong: None,
        end: None,
    };
    assert_eq!(whole(&bytes), expected);
    assert_eq!(byte_by_byte(&bytes), expected);
}

#[test]
fn binary_frames_of_every_length_are_unmasked() {
    for len in [0, 1, 2, 7, 8, 9, 125, 126, 127, 65_535, 65_536, 300_001] {
        let payload: Vec<u8> = (0..len as u32).map(|n| (n * 7) as u8).collect();
        gives(&[frame(0x82, &payload)], &payload);
    }
}

#[test]
fn fragments_and_merged_frames_are_one_stream() {
    let three = [frame(0x02, b"ab"), frame(0x00, b""), frame(0x80, b"c")];
    gives(&three, b"abc");
    gives(&[frame(0x82, b"ab"), frame(0x82, b"cd")], b"abcd");
    // A message begins after another one's end, however that was cut.
    let two = [frame(0x02, b"a"), frame(0x80, b"b"), frame(0x82, b"c")];
    gives(&two, b"abc");
    // A pong that nobody asked for, anywhere.
    let pong = [frame(0x02, b"a"), frame(0x8A, b"hello"), frame(0x80, b"b")];
    gives(&pong, b"ab");
}

#[test]
fn only_the_latest_ping_is_answered_and_frames_around_it_count() {
    let frames = [
        frame(0x02, b"a"),
        frame(0x89, b"one"),
        frame(0x89, b"two"),
        frame(0x80, b"b"),
    ];
    let expected = Outcome {
        mqtt: b"ab".to_vec(),
        pong: Some(b"\x8A\x03two".to_vec()),
        end: None,
    };
    assert_eq!(whole(&frames.concat()), expected);
    assert_eq!(byte_by_byte(&frames.concat()), expected);
    let long = [b'x'; MAX_CONTROL];
    let pong = whole(&frame(0x89, &long)).pong.expect("a pong");
    assert_eq!(pong, [&[0x8A, 125][..], &long].concat());
    assert_eq!(whole(&frame(0x89, b"")).pong.expect("a pong"), [0x8A, 0]);
}

#[test]
fn what_ends_a_connection() {
    use Violation::*;
    let masked_length = |length: &[u8]| [&[0x82][..], length, &MASK].concat();
    let code = |code| End::Closed(CloseCode::new(code));
    let rows: &[(Vec<u8>, End)] = &[
        (vec![0x82, 0x01], Unmasked.end()),
        (vec![0x89, 0x00], Unmasked.end()),
        (vec![0xC2, 0x81], ReservedBits.end()),
        (vec![0xA2, 0x81], ReservedBits.end()),
        (vec![0x92, 0x81], ReservedBits.end()),
        (vec![0x83, 0x81], UnknownOpcode(3).end()),
        (vec![0x8B, 0x81], UnknownOpcode(0xB).end()),
        (vec![0x81, 0x81], Text.end()),
        (vec![0x80, 0x81], StrayContinuation.end()),
        (vec![0x00, 0x81], StrayContinuation.end()),
        (
            [frame(0x02, b"a"), vec![0x82, 0x81]].concat(),
            MessageInMessage.end(),
        ),
        ([frame(0x02, b"a"), vec![0x81, 0x81]].concat(), Text.end()),
        (vec![0x09, 0x80], FragmentedControl.end()),
        (vec![0x08, 0x80], FragmentedControl.end()),
        (vec![0x89, 0xFE], LongControl.end()),
        (vec![0x8A, 0xFF], LongControl.end()),
        (masked_length(b"\xFE\x00\x7D"), BadLength.end()),
        (
            masked_length(b"\xFF\x00\x00\x00\x00\x00\x00\xFF\xFF"),
            BadLength.end(),
        ),
        (
            masked_length(b"\xFF\x80\x00\x00\x00\x00\x01\x00\x00"),
            BadLength.end(),
        ),
        (
            masked_length(b"\xFF\x00\x00\x00\x00\x10\x00\x00\x05"),
            TooLong(0x1000_0005).end(),
        ),
        (
            masked_length(b"\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
            TooLong(u64::MAX >> 1).end(),
        ),
        (frame(0x88, b""), End::Closed(None)),
        (frame(0x88, b"\x03\xE8"), code(1000)),
        (frame(0x88, b"\x03\xE9gone"), code(1001)),
        (frame(0x88, b"\x0B\xB8"), code(3000)),
        (frame(0x88, b"\x03"), BadCloseCode.end()),
        (frame(0x88, b"\x03\xE7"), BadCloseCode.end()),
        (frame(0x88, b"\x03\xED"), BadCloseCode.end()),
        (frame(0x88, b"\x13\x88"), BadCloseCode.end()),
        (frame(0x88, b"\x03\xE8\xFF"), BadCloseReason.end()),
    ];
    for (bytes, end) in rows {
        // What came before the end counts, what comes after it does not.
        let before = frame(0x82, b"before");
        let bytes = match end {
            End::Violation(StrayContinuation | MessageInMessage) => bytes.clone(),
            _ => [&before[..], bytes].concat(),
        };
        let all = [&bytes[..], &frame(0x82, b"after")].concat();
        let outcome = whole(&all);
        assert_eq!(outcome.end, Some(*end), "{bytes:02x?}");
        assert!(!outcome.mqtt.ends_with(b"after"), "{bytes:02x?}");
        assert_eq!(byte_by_byte(&all), outcome, "{bytes:02x?}");
    }
    // The longest that is taken.
    let longest = masked_length(b"\xFF\x00\x00\x00\x00\x10\x00\x00\x04");
    assert_eq!(whole(&longest).end, None);
}

impl Violation {
    fn end(self) -> End {
        End::Violation(self)
    }
}

#[test]
fn each_end_has_its_code() {
    let rows = [
        (Violation::Text.end(), Some(1003)),
        (Violation::TooLong(1 << 40).end(), Some(1009)),
        (Violation::BadCloseReason.end(), Some(1007)),
        (Violation::Unmasked.end(), Some(1002)),
        (Violation::BadCloseCode.end(), Some(1002)),
        (End::Closed(CloseCode::new(4000)), Some(4000)),
        (End::Closed(None), None),
    ];
    for (end, code) in rows {
        assert_eq!(end.code().map(CloseCode::get), code, "{end:?}");
    }
}

#[test]
fn our_headers_have_the_shortest_form() {
    let rows: [(usize, &[u8]); 6] = [
        (1, b"\x82\x01"),
        (125, b"\x82\x7D"),
        (126, b"\x82\x7E\x00\x7E"),
        (65_535, b"\x82\x7E\xFF\xFF"),
        (65_536, b"\x82\x7F\x00\x00\x00\x00\x00\x01\x00\x00"),
        (1 << 20, b"\x82\x7F\x00\x00\x00\x00\x00\x10\x00\x00"),
    ];
    for (payload, header) in rows {
        assert_eq!(Header::binary(payload).as_bytes(), header);
    }
    assert_eq!(
        Reply::close(Some(CloseCode::GOING_AWAY)).as_bytes(),
        b"\x88\x02\x03\xE9"
    );
    assert_eq!(Reply::close(None).as_bytes(), b"\x88\x00");
}

#[test]
fn an_idle_connection_costs_no_more_than_its_state() {
    assert!(size_of::<Decoder>() <= 64, "{}", size_of::<Decoder>());
}

proptest! {
    #[test]
    fn bytes_do_not_depend_on_how_they_are_cut(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        prefix in prop::collection::vec((0usize..4, prop::collection::vec(any::<u8>(), 0..140)), 0..6),
        cuts in prop::collection::vec(1usize..40, 1..20),
    ) {
        // Sensible frames first, so that what is random meets every state.
        let mut all = Vec::new();
        for (kind, payload) in prefix {
            let first = [0x82, 0x02, 0x80, 0x89][kind];
            all.extend(frame(first, &payload[..payload.len().min(125)]));
        }
        all.extend(bytes);
        let mut rest = &all[..];
        let mut pieces = Vec::new();
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece.to_vec());
            rest = after;
        }
        prop_assert_eq!(decode(pieces), whole(&all));
        prop_assert_eq!(byte_by_byte(&all), whole(&all));
    }

    #[test]
    fn what_was_sent_is_what_comes_out(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
    ) {
        let last = payloads.len() - 1;
        let message = payloads.iter().enumerate().flat_map(|(n, payload)| {
            let opcode = if n == 0 { 0x02 } else { 0x00 };
            frame(if n == last { 0x80 | opcode } else { opcode }, payload)
        });
        prop_assert_eq!(whole(&message.collect::<Vec<_>>()).mqtt, payloads.concat());
    }
}
