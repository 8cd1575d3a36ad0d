//! What must hold for every sequence of bytes that a WebSocket client may send. The kept corpus and the
//! fuzz targets both ask here.

use broker::websocket::frame::{CloseCode, Decoder, End, MAX_PAYLOAD, Violation};
use broker::websocket::upgrade::{self, Head, MAX_HEAD};

/// What became of some bytes.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub mqtt: Vec<u8>,
    pub pong: Option<Vec<u8>>,
    pub end: Option<End>,
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = Decoder::new();
    let mut outcome = Outcome::default();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let ended = decoder.end().is_some();
        let count = decoder.decode(&mut piece);
        assert!(
            count <= piece.len() && !(ended && count > 0),
            "bytes come from nowhere"
        );
        outcome.mqtt.extend_from_slice(&piece[..count]);
    }
    outcome.pong = decoder.take_pong().map(|pong| pong.as_bytes().to_vec());
    outcome.end = decoder.end();
    outcome
}

/// The first byte says in pieces of how many bytes the rest arrives. It must come out as the plain
/// reading of RFC 6455 has it, however it is cut.
pub fn check_frames(data: &[u8]) -> Outcome {
    let Some((&step, bytes)) = data.split_first() else {
        return Outcome::default();
    };
    let outcome = read_plainly(bytes);
    assert_eq!(decode(std::iter::once(bytes)), outcome, "in one piece");
    assert_eq!(decode(bytes.chunks(1)), outcome, "byte by byte");
    let step = usize::from(step).max(1);
    assert_eq!(decode(bytes.chunks(step)), outcome, "in pieces of {step}");
    outcome
}

/// Frame after frame from one slice: slow and easy to check against the specification.
fn read_plainly(mut rest: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut in_message = false;
    loop {
        let [first, second, after_start @ ..] = rest else {
            return outcome;
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
        let violation = match opcode {
            _ if first & 0x70 != 0 => Some(Violation::ReservedBits),
            0 if !in_message => Some(Violation::StrayContinuation),
            1 => Some(Violation::Text),
            2 if in_message => Some(Violation::MessageInMessage),
            8..=10 if !fin => Some(Violation::FragmentedControl),
            8..=10 if second & 0x7F > 125 => Some(Violation::LongControl),
            0 | 2 | 8..=10 => (second & 0x80 == 0).then_some(Violation::Unmasked),
            other => Some(Violation::UnknownOpcode(other)),
        };
        if let Some(violation) = violation {
            outcome.end = Some(End::Violation(violation));
            return outcome;
        }
        let extended = match second & 0x7F {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if after_start.len() < extended + 4 {
            return outcome;
        }
        let (length, after_length) = after_start.split_at(extended);
        let (mask, body) = after_length.split_at(4);
        let length = match extended {
            0 => u64::from(second & 0x7F),
            _ => length
                .iter()
                .fold(0, |all, byte| all << 8 | u64::from(*byte)),
        };
        let shortest = match length {
            0..126 => 0,
            126..65_536 => 2,
            _ => 8,
        };
        if extended != shortest || length >> 63 != 0 {
            outcome.end = Some(End::Violation(Violation::BadLength));
            return outcome;
        }
        if length > MAX_PAYLOAD {
            outcome.end = Some(End::Violation(Violation::TooLong(length)));
            return outcome;
        }
        let here = body.len().min(length as usize);
        let payload: Vec<u8> = (0..here).map(|n| body[n] ^ mask[n % 4]).collect();
        let complete = here as u64 == length;
        match opcode {
            0 | 2 => {
                in_message = !fin;
                outcome.mqtt.extend(payload);
            }
            9 if complete => outcome.pong = Some([&[0x8A, here as u8], &payload[..]].concat()),
            8 if complete => {
                outcome.end = Some(close(&payload));
                return outcome;
            }
            _ => {}
        }
        if !complete {
            return outcome;
        }
        rest = &body[here..];
    }
}

fn close(payload: &[u8]) -> End {
    let [high, low, reason @ ..] = payload else {
        return match payload.len() {
            0 => End::Closed(None),
            _ => End::Violation(Violation::BadCloseCode),
        };
    };
    match CloseCode::new(u16::from(*high) << 8 | u16::from(*low)) {
        None => End::Violation(Violation::BadCloseCode),
        Some(_) if std::str::from_utf8(reason).is_err() => {
            End::Violation(Violation::BadCloseReason)
        }
        code => End::Closed(code),
    }
}

/// A request: read without panic; complete only once, whatever follows it; every answer is whole.
pub fn check_upgrade(bytes: &[u8]) -> Head {
    let head = upgrade::read(bytes, "/mqtt");
    let answer = match &head {
        Head::Incomplete => {
            assert!(
                bytes.len() < MAX_HEAD,
                "it is not waited for more than {MAX_HEAD} bytes"
            );
            return head;
        }
        Head::Upgrade { len, upgrade } => {
            assert!(
                bytes[..*len].ends_with(b"\n"),
                "frames begin behind the head"
            );
            let alone = upgrade::read(&bytes[..*len], "/mqtt");
            assert_eq!(alone, head, "what follows the head does not matter");
            upgrade.response()
        }
        Head::Refused(refusal) | Head::Elsewhere(refusal) => refusal.response(),
    };
    let (head_of_answer, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head_of_answer.starts_with("HTTP/1.1 "));
    assert!(body.is_empty() || head_of_answer.contains(&format!("Content-Length: {}", body.len())));
    head
}
