//! Reads the fields of one packet, by name, so that each error can say where it happened.

use std::mem;

use bytes::{Buf, Bytes};

use crate::{
    error::DecodeError,
    packet::PacketType,
    packet_id::PacketId,
    topic::{self, TopicError, TopicFilter, TopicName},
    utf8::{Utf8, Utf8Error},
    varint::{self, Front},
    version::Version,
};

/// Who sent the packet: some fields may come from one side only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

/// The bytes of a packet after its fixed header.
pub(crate) struct Reader {
    body: Bytes,
    at: usize,
    /// No field reaches beyond: the end of the packet, or of the property block being read.
    end: usize,
    pub packet: PacketType,
    pub sender: Sender,
}

impl Reader {
    pub fn new(body: Bytes, packet: PacketType, sender: Sender) -> Self {
        Self {
            at: 0,
            end: body.len(),
            body,
            packet,
            sender,
        }
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.end - self.at
    }

    fn truncated(&self, field: &'static str) -> DecodeError {
        DecodeError::Truncated {
            packet: self.packet,
            field,
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.body[self.at..self.end].first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(self.truncated(field)),
        }
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// A variable byte integer within an MQTT 5 packet.
    pub fn varint(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        match varint::read(&self.body[self.at..self.end]) {
            Front::Whole(read) if read.is_padded() => Err(DecodeError::PaddedVarint {
                packet: self.packet,
                field,
            }),
            Front::Whole(read) => {
                self.at += read.len;
                Ok(read.value)
            }
            Front::Partial => Err(self.truncated(field)),
            Front::Overlong => Err(DecodeError::OverlongVarint {
                packet: self.packet,
                field,
            }),
        }
    }

    pub fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.u16("the packet identifier")?).ok_or(DecodeError::PacketIdZero {
            packet: self.packet,
        })
    }

    /// Bytes with a two-byte length before them.
    pub fn binary(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let len = usize::from(self.u16(field)?);
        if len > self.remaining() {
            return Err(self.truncated(field));
        }
        let bytes = self.body.slice(self.at..self.at + len);
        self.at += len;
        Ok(bytes)
    }

    pub fn utf8(&mut self, field: &'static str) -> Result<Utf8, DecodeError> {
        let bytes = self.binary(field)?;
        Utf8::try_from(bytes).map_err(|problem| self.bad_text(field, problem))
    }

    fn bad_text(&self, field: &'static str, problem: Utf8Error) -> DecodeError {
        DecodeError::Utf8 {
            packet: self.packet,
            field,
            problem,
        }
    }

    fn bad_topic(&self, field: &'static str, problem: TopicError) -> DecodeError {
        match problem {
            TopicError::Text(problem) => self.bad_text(field, problem),
            problem => DecodeError::Topic {
                packet: self.packet,
                field,
                problem,
            },
        }
    }

    pub fn topic_name(&mut self, field: &'static str) -> Result<TopicName, DecodeError> {
        let text = self.utf8(field)?;
        TopicName::try_from(text).map_err(|problem| self.bad_topic(field, problem))
    }

    /// The topic of a PUBLISH, which in MQTT 5 may be empty.
    pub fn publish_topic(&mut self, version: Version) -> Result<Utf8, DecodeError> {
        let field = "the topic name";
        let text = self.utf8(field)?;
        if text.is_empty() && version == Version::V5 {
            return Ok(text);
        }
        match topic::check_name(&text) {
            Ok(()) => Ok(text),
            Err(problem) => Err(self.bad_topic(field, problem)),
        }
    }

    pub fn topic_filter(&mut self) -> Result<TopicFilter, DecodeError> {
        let field = "a topic filter";
        let text = self.utf8(field)?;
        TopicFilter::try_from(text).map_err(|problem| self.bad_topic(field, problem))
    }

    /// Everything up to the end of the packet. Takes the body itself instead of a slice of it, which
    /// spares each message two steps of a shared counter.
    pub fn rest(&mut self) -> Bytes {
        let mut bytes = mem::take(&mut self.body);
        bytes.truncate(self.end);
        bytes.advance(self.at);
        (self.at, self.end) = (0, 0);
        bytes
    }

    /// Reads the property length and stops [`remaining`](Self::remaining) at the end of the block.
    /// Hand the result to [`leave_properties`](Self::leave_properties).
    pub fn enter_properties(&mut self) -> Result<usize, DecodeError> {
        let field = "the properties";
        let len = self.varint("the property length")? as usize;
        if len > self.remaining() {
            return Err(self.truncated(field));
        }
        let outer = self.end;
        self.end = self.at + len;
        Ok(outer)
    }

    pub fn leave_properties(&mut self, outer: usize) {
        self.end = outer;
    }

    /// Nothing may follow the last field.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            extra => Err(DecodeError::TrailingBytes {
                packet: self.packet,
                extra,
            }),
        }
    }
}
