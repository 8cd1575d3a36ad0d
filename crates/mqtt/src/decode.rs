//! Takes whole packets off the front of a buffer.
//!
//! Flow: the fixed header is looked at as soon as it is there, and whatever it alone shows to be wrong
//! (type, flags, direction, size) is refused before a byte of the body is waited for. The body is then
//! split off in one piece and read by the packet.
//!
//! The decoder keeps no copy of the header between calls: reading it again costs at most five bytes, so
//! a packet that trickles in byte by byte costs no more than linear time. It reserves no memory by what
//! a header declares; the buffer grows by what arrives, which the transport bounds by reading. What is
//! read from a packet takes up to about thirteen times the packet's bytes, when it consists of nothing
//! but empty user properties.

use bytes::{Buf, BytesMut};

use crate::{
    error::DecodeError,
    packet::{Connect, Flags, Packet, PacketType},
    reader::{Reader, Sender},
    varint::{self, Front},
    version::Version,
};

/// Decodes the packets of one direction of one connection.
#[derive(Debug, Clone)]
pub struct Decoder {
    sender: Sender,
    phase: Phase,
    max_packet_size: u32,
    /// On the heap: once in the life of a connection at most.
    failed: Option<Box<DecodeError>>,
}

/// How far the connection is.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Nothing came from the client yet.
    AwaitConnect,
    /// Nothing but AUTH came from the server yet.
    AwaitConnAck(Version),
    Connected(Version),
}

impl Decoder {
    /// For what a server receives. The first packet must be CONNECT, which fixes the version.
    ///
    /// `max_packet_size` is the largest whole packet in bytes, fixed header included, as in the
    /// property [Maximum Packet Size](crate::Property::MaximumPacketSize).
    pub fn for_server(max_packet_size: u32) -> Self {
        Self {
            sender: Sender::Client,
            phase: Phase::AwaitConnect,
            max_packet_size,
            failed: None,
        }
    }

    /// For what a client receives after it sent a CONNECT of `version`. The first packet must be
    /// CONNACK, in MQTT 5 possibly after AUTH.
    pub fn for_client(version: Version, max_packet_size: u32) -> Self {
        Self {
            sender: Sender::Server,
            phase: Phase::AwaitConnAck(version),
            max_packet_size,
            failed: None,
        }
    }

    /// In the middle of a connection, for what a client of `version` receives.
    pub(crate) fn within(version: Version) -> Self {
        Self {
            sender: Sender::Server,
            phase: Phase::Connected(version),
            max_packet_size: u32::MAX,
            failed: None,
        }
    }

    /// Changes the limit, for example once it is known who connected.
    pub fn set_max_packet_size(&mut self, bytes: u32) {
        self.max_packet_size = bytes;
    }

    /// The version of the connection, known as soon as the protocol level of CONNECT was read: also
    /// when the rest of it was refused, so that the refusal can be said in the right version. While it
    /// is `None`, a CONNACK of 3.1.1 is what every client understands.
    pub fn version(&self) -> Option<Version> {
        match self.phase {
            Phase::AwaitConnect => None,
            Phase::AwaitConnAck(version) | Phase::Connected(version) => Some(version),
        }
    }

    /// Takes the next packet off the front of `buf`; `None` if it has not arrived in full.
    ///
    /// Call again until it returns `None`. Strings and payload are slices of `buf`'s memory.
    ///
    /// # Errors
    /// [`DecodeError`] when the next packet is malformed, not allowed or too large. The connection
    /// cannot go on: every later call returns the same error, and what is left in `buf` means nothing.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        if let Some(error) = self.failed.as_deref().copied() {
            return Err(error);
        }
        self.next(buf)
            .inspect_err(|&error| self.failed = Some(Box::new(error)))
    }

    fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(&first) = buf.first() else {
            return Ok(None);
        };
        let (packet, flags) = self.check_first_byte(first)?;
        let field = "the remaining length";
        let length = match varint::read(&buf[1..]) {
            Front::Whole(length) => length,
            Front::Partial => return Ok(None),
            Front::Overlong => return Err(DecodeError::OverlongVarint { packet, field }),
        };
        let padded = DecodeError::PaddedVarint { packet, field };
        if length.is_padded() && self.version() == Some(Version::V5) {
            return Err(padded);
        }
        let header = 1 + length.len;
        let size = header as u32 + length.value;
        if size > self.max_packet_size {
            return Err(DecodeError::PacketTooLarge {
                packet,
                size,
                limit: self.max_packet_size,
            });
        }
        if let Some(expected) = self.version().and_then(|version| packet.fixed_len(version))
            && length.value != expected
        {
            let length = length.value;
            return Err(DecodeError::RemainingLength {
                packet,
                length,
                expected,
            });
        }
        if buf.len() < size as usize {
            return Ok(None);
        }

        let mut body = buf.split_to(size as usize).freeze();
        body.advance(header);
        let mut reader = Reader::new(body, packet, self.sender);
        let version = match self.phase {
            Phase::AwaitConnAck(version) | Phase::Connected(version) => version,
            Phase::AwaitConnect => {
                let version = Connect::read_version(&mut reader)?;
                self.phase = Phase::Connected(version);
                if length.is_padded() && version == Version::V5 {
                    return Err(padded);
                }
                version
            }
        };
        let packet = Packet::read(&mut reader, flags, version)?;
        reader.finish()?;
        if let (Phase::AwaitConnAck(version), Packet::ConnAck(_)) = (self.phase, &packet) {
            self.phase = Phase::Connected(version);
        }
        Ok(Some(packet))
    }

    /// Everything the first byte shows to be wrong.
    fn check_first_byte(&self, first: u8) -> Result<(PacketType, Flags), DecodeError> {
        let (bits, flags) = (first >> 4, first & 0x0F);
        let reserved = DecodeError::ReservedPacketType {
            value: bits,
            version: self.version(),
        };
        let packet = PacketType::from_bits(bits).ok_or(reserved)?;
        if packet == PacketType::Auth && self.version() == Some(Version::V311) {
            return Err(reserved);
        }
        self.check_expected(packet)?;
        match packet.fixed_flags() {
            None => Ok((packet, Flags::from_bits(flags)?)),
            Some(expected) if flags == expected => Ok((packet, Flags::default())),
            Some(expected) => Err(DecodeError::FixedHeaderFlags {
                packet,
                flags,
                expected,
            }),
        }
    }

    /// Whether `packet` comes from the right side and at the right time (Table 2-1).
    fn check_expected(&self, packet: PacketType) -> Result<(), DecodeError> {
        use PacketType as P;
        let refuse = |expected| Err(DecodeError::UnexpectedPacket { packet, expected });
        match (self.phase, packet) {
            (Phase::AwaitConnect, P::Connect) => return Ok(()),
            (Phase::AwaitConnect, _) => return refuse("the first packet must be CONNECT"),
            (Phase::AwaitConnAck(_), P::ConnAck) | (Phase::AwaitConnAck(Version::V5), P::Auth) => {
                return Ok(());
            }
            (Phase::AwaitConnAck(_), _) => return refuse("the first packet must be CONNACK"),
            (Phase::Connected(_), P::Connect) => return refuse("CONNECT comes once"),
            (Phase::Connected(_), P::ConnAck) if self.sender == Sender::Server => {
                return refuse("CONNACK comes once");
            }
            (Phase::Connected(_), _) => {}
        }
        match (self.sender, packet) {
            (Sender::Client, P::ConnAck | P::SubAck | P::UnsubAck | P::PingResp) => {
                refuse("only a server sends it")
            }
            (Sender::Server, P::Subscribe | P::Unsubscribe | P::PingReq) => {
                refuse("only a client sends it")
            }
            (Sender::Server, P::Disconnect) if self.version() == Some(Version::V311) => {
                refuse("in MQTT 3.1.1 only a client sends it")
            }
            _ => Ok(()),
        }
    }
}
