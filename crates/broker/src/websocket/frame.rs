//! Frames (RFC 6455 section 5): what a client sends, decoded in place, and what we send.
//!
//! The decoder never fails half-way: a violation is an [`End`] as a close frame is, so everything before
//! it counts, and the outcome does not depend on how the bytes were cut.

use std::fmt;

/// Longest frame taken, in bytes of payload: the longest MQTT packet there can be. Nothing is held for
/// a frame, so this bounds no memory; but a client that claims more speaks something else.
pub const MAX_PAYLOAD: u64 = 268_435_460;

/// Longest payload of a control frame (section 5.5).
pub const MAX_CONTROL: usize = 125;

/// Two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// Why a connection is closed (section 7.4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// Done.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The server stops.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// The other side broke the protocol.
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    /// Data of a kind that is not taken: text.
    pub const UNSUPPORTED: CloseCode = CloseCode(1003);
    /// Data that is not what its kind says: a reason that is not UTF-8.
    pub const INVALID_DATA: CloseCode = CloseCode(1007);
    /// A frame that is too long.
    pub const TOO_BIG: CloseCode = CloseCode(1009);

    /// A code that may be sent in a close frame.
    pub fn new(code: u16) -> Option<CloseCode> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(CloseCode(code)),
            _ => None,
        }
    }

    /// As it is sent.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a client broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Section 5.1: a client masks every frame.
    #[error("a WebSocket frame is not masked (RFC 6455 section 5.1)")]
    Unmasked,
    /// Section 5.2: we agreed to no extension.
    #[error("a WebSocket frame has reserved bits set, and no extension was agreed")]
    ReservedBits,
    /// Section 5.2.
    #[error("a WebSocket frame has the unknown opcode {0:#x}")]
    UnknownOpcode(u8),
    /// MQTT 5 section 6: MQTT packets travel in binary frames [MQTT-6.0.0-1].
    #[error("a WebSocket text frame came; MQTT travels in binary frames")]
    Text,
    /// Section 5.4.
    #[error("a WebSocket continuation frame came without a message to continue")]
    StrayContinuation,
    /// Section 5.4.
    #[error("a WebSocket message began inside another one")]
    MessageInMessage,
    /// Section 5.4.
    #[error("a WebSocket control frame is fragmented")]
    FragmentedControl,
    /// Section 5.5.
    #[error("a WebSocket control frame is longer than {MAX_CONTROL} bytes")]
    LongControl,
    /// Section 5.2: the shortest form of the length must be used, and its first bit is 0.
    #[error("a WebSocket frame writes its length in a form that is not allowed")]
    BadLength,
    /// Longer than [`MAX_PAYLOAD`].
    #[error("a WebSocket frame claims {0} bytes; at most {MAX_PAYLOAD} are taken")]
    TooLong(u64),
    /// Section 5.5.1: one byte, or a code that must not be sent.
    #[error("a WebSocket close frame carries a code that must not be sent")]
    BadCloseCode,
    /// Section 5.5.1.
    #[error("a WebSocket close frame gives a reason that is not UTF-8")]
    BadCloseReason,
}

impl Violation {
    /// What the client is told.
    pub fn code(self) -> CloseCode {
        match self {
            Violation::Text => CloseCode::UNSUPPORTED,
            Violation::TooLong(_) => CloseCode::TOO_BIG,
            Violation::BadCloseReason => CloseCode::INVALID_DATA,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }
}

/// What ended the client's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It sent a close frame, perhaps with a code.
    Closed(Option<CloseCode>),
    /// It broke the protocol.
    Violation(Violation),
}

impl End {
    /// What is said in the close frame that answers it: what the client said, or what it did.
    pub fn code(self) -> Option<CloseCode> {
        match self {
            End::Closed(code) => code,
            End::Violation(violation) => Some(violation.code()),
        }
    }
}

/// A control frame of ours, unmasked as a server's are.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    bytes: [u8; 2 + MAX_CONTROL],
}

impl Reply {
    fn new(opcode: u8) -> Reply {
        let mut bytes = [0; 2 + MAX_CONTROL];
        bytes[0] = FIN | opcode;
        Reply { bytes }
    }

    /// Says goodbye.
    pub fn close(code: Option<CloseCode>) -> Reply {
        let mut reply = Reply::new(CLOSE);
        if let Some(code) = code {
            reply.push(&code.get().to_be_bytes());
        }
        reply
    }

    /// The whole frame.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..2 + usize::from(self.bytes[1])]
    }

    fn payload(&self) -> &[u8] {
        &self.as_bytes()[2..]
    }

    /// Adds to the payload. What does not fit is not taken: the length of a control frame was checked.
    fn push(&mut self, more: &[u8]) {
        let start = self.as_bytes().len();
        let count = more.len().min(self.bytes.len() - start);
        self.bytes[start..start + count].copy_from_slice(&more[..count]);
        self.bytes[1] += count as u8;
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({:02x?})", self.as_bytes())
    }
}

/// The header of a binary frame of ours that carries a whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; 10],
    len: u8,
}

impl Header {
    /// For so many bytes of payload.
    pub fn binary(payload: usize) -> Header {
        let mut bytes = [0; 10];
        bytes[0] = FIN | BINARY;
        let len = match payload {
            0..=125 => {
                bytes[1] = payload as u8;
                2
            }
            126..=0xFFFF => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(payload as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
                10
            }
        };
        Header { bytes, len }
    }

    /// As it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Takes what a client sends apart, as it comes. Holds no payload but that of a ping or close frame.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    message: Message,
    /// As much of a header as came.
    header: [u8; MAX_HEADER],
    header_len: u8,
    mask: Mask,
    /// Bytes of payload of this frame that did not come yet.
    left: u32,
    /// The ping or close frame that is coming, as the frame that answers it.
    control: Option<Box<Reply>>,
    /// The pong that is owed for the latest ping.
    pong: Option<Box<Reply>>,
    end: Option<End>,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Header,
    Data,
    Ping,
    /// Nobody asked for it; its payload is ignored (section 5.5.3).
    Pong,
    Close,
}

/// Whether a message was begun and not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Message {
    #[default]
    None,
    Unfinished,
}

impl Decoder {
    /// For a connection that was just upgraded.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Decodes the next `bytes` of the client in place: afterwards the MQTT bytes among them are at the
    /// front. Returns how many these are. After an [`end`](Decoder::end) there are none.
    pub fn decode(&mut self, bytes: &mut [u8]) -> usize {
        let (mut at, mut out) = (0, 0);
        while at < bytes.len() && self.end.is_none() {
            if self.state == State::Header {
                at += self.decode_header(&bytes[at..]);
                continue;
            }
            let count = (self.left as usize).min(bytes.len() - at);
            let payload = &mut bytes[at..at + count];
            match self.state {
                State::Header | State::Pong => {}
                State::Data => {
                    self.mask.apply(payload);
                    if out < at {
                        bytes.copy_within(at..at + count, out);
                    }
                    out += count;
                }
                State::Ping | State::Close => {
                    self.mask.apply(payload);
                    if let Some(control) = &mut self.control {
                        control.push(payload);
                    }
                }
            }
            at += count;
            // At most `left`, which is a u32.
            self.left -= count as u32;
            if self.left == 0 {
                self.finish_frame();
            }
        }
        out
    }

    /// What ended the client's side, if that happened.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The pong that is owed. Only the latest ping is answered, as section 5.5.3 allows: so a client
    /// that pings and does not read costs one frame.
    pub fn take_pong(&mut self) -> Option<Box<Reply>> {
        self.pong.take()
    }

    /// Whether a pong is owed.
    pub fn owes_pong(&self) -> bool {
        self.pong.is_some()
    }

    /// Takes bytes of a header; says how many.
    fn decode_header(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            self.header[usize::from(self.header_len)] = bytes[at];
            self.header_len += 1;
            at += 1;
            let result = match usize::from(self.header_len) {
                1 => Ok(()),
                // Refused as early as it can be seen.
                2 => self.check_start(),
                len if len == self.header_size() => {
                    let begun = self.begin_frame();
                    self.header_len = 0;
                    if begun.is_ok() {
                        return at;
                    }
                    begun
                }
                _ => Ok(()),
            };
            if let Err(violation) = result {
                self.end = Some(End::Violation(violation));
                return at;
            }
        }
        at
    }

    /// Of this frame, mask included; its first two bytes are there.
    fn header_size(&self) -> usize {
        match self.header[1] & !MASKED {
            126 => 2 + 2 + 4,
            127 => 2 + 8 + 4,
            _ => 2 + 4,
        }
    }

    fn check_start(&self) -> Result<(), Violation> {
        let [first, second, ..] = self.header;
        if first & RESERVED != 0 {
            return Err(Violation::ReservedBits);
        }
        match (first & 0x0F, self.message) {
            (CONTINUATION, Message::None) => return Err(Violation::StrayContinuation),
            (BINARY, Message::Unfinished) => return Err(Violation::MessageInMessage),
            (CONTINUATION | BINARY, _) => {}
            (TEXT, _) => return Err(Violation::Text),
            (CLOSE | PING | PONG, _) => {
                if first & FIN == 0 {
                    return Err(Violation::FragmentedControl);
                }
                if usize::from(second & !MASKED) > MAX_CONTROL {
                    return Err(Violation::LongControl);
                }
            }
            (other, _) => return Err(Violation::UnknownOpcode(other)),
        }
        match second & MASKED {
            0 => Err(Violation::Unmasked),
            _ => Ok(()),
        }
    }

    /// The header is there.
    fn begin_frame(&mut self) -> Result<(), Violation> {
        let header = self.header;
        let (length, mask_at) = match header[1] & !MASKED {
            126 => match u16::from_be_bytes([header[2], header[3]]) {
                0..126 => return Err(Violation::BadLength),
                length => (u64::from(length), 4),
            },
            127 => {
                let mut length = [0; 8];
                length.copy_from_slice(&header[2..10]);
                match u64::from_be_bytes(length) {
                    0..=0xFFFF | 0x8000_0000_0000_0000.. => return Err(Violation::BadLength),
                    length @ ..=MAX_PAYLOAD => (length, 10),
                    length => return Err(Violation::TooLong(length)),
                }
            }
            length => (u64::from(length), 2),
        };
        // At most MAX_PAYLOAD.
        self.left = length as u32;
        self.mask.key.copy_from_slice(&header[mask_at..mask_at + 4]);
        self.state = match header[0] & 0x0F {
            PING => {
                self.control = Some(Box::new(Reply::new(PONG)));
                State::Ping
            }
            CLOSE => {
                self.control = Some(Box::new(Reply::new(CLOSE)));
                State::Close
            }
            PONG => State::Pong,
            _ => {
                self.message = match header[0] & FIN {
                    0 => Message::Unfinished,
                    _ => Message::None,
                };
                State::Data
            }
        };
        if self.left == 0 {
            self.finish_frame();
        }
        Ok(())
    }

    fn finish_frame(&mut self) {
        let state = std::mem::take(&mut self.state);
        let control = self.control.take();
        match (state, control) {
            (State::Ping, Some(pong)) => self.pong = Some(pong),
            (State::Close, Some(close)) => {
                self.end = Some(match close_code(close.payload()) {
                    Ok(code) => End::Closed(code),
                    Err(violation) => End::Violation(violation),
                });
            }
            _ => {}
        }
    }
}

/// Section 5.5.1.
fn close_code(payload: &[u8]) -> Result<Option<CloseCode>, Violation> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        _ => return Err(Violation::BadCloseCode),
    };
    let code = CloseCode::new(code).ok_or(Violation::BadCloseCode)?;
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(Violation::BadCloseReason),
    }
}

/// The mask of a frame, turned so that its first byte is the next one to be used.
#[derive(Debug, Clone, Copy, Default)]
struct Mask {
    key: [u8; 4],
}

impl Mask {
    /// Unmasks the next bytes of the payload (section 5.3).
    fn apply(&mut self, payload: &mut [u8]) {
        let [a, b, c, d] = self.key;
        let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (chunks, rest) = payload.as_chunks_mut::<8>();
        for chunk in chunks {
            *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(self.key.iter().cycle()) {
            *byte ^= key;
        }
        let turn = rest.len() % 4;
        self.key.rotate_left(turn);
    }
}
