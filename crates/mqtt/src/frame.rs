//! A PUBLISH encoded once for many receivers.
//!
//! Fan-out to a thousand subscribers would encode the same message a thousand times. But what differs
//! between them is little: the version, the QoS, the retain flag, the subscription identifiers (all of
//! that is a [`Layout`], and few layouts occur per message) and the packet identifier, which is two
//! bytes at a known place. So a message is encoded once per layout, and each receiver copies the frame
//! and patches two bytes.
//!
//! A small payload stands behind the head in one piece of memory, because a second one would cost more than
//! copying it. A larger one stays a shared slice of its own: not copied per layout.
//!
//! A topic alias belongs to one connection, so it is no part of a layout either: it is put in while
//! the frame is copied ([`PublishFrame::write_aliased`]).

use std::num::NonZeroU16;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    decode::Decoder,
    encode::{check_remaining_length, put_fixed_header},
    error::{DecodeError, EncodeError},
    packet::{Flags, Packet, PacketType, Publish, PublishProperties, publish_head_size},
    packet_id::PacketId,
    property::{Property, SubscriptionId, put_binary, with_length},
    qos::QoS,
    varint,
    version::Version,
};

/// What receivers that can share a frame have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout<'a> {
    /// The receiver's version.
    pub version: Version,
    /// The quality of this delivery.
    pub qos: QoS,
    /// The retain flag of this delivery `[MQTT-3.3.1-8]` to `[MQTT-3.3.1-13]`.
    pub retain: bool,
    /// Of the subscriptions that matched `[MQTT-3.3.4-3]`; nothing in 3.1.1.
    pub subscription_ids: &'a [SubscriptionId],
    /// Seconds left to live `[MQTT-3.3.2-6]`; nothing in 3.1.1.
    pub message_expiry_interval: Option<u32>,
}

impl Layout<'_> {
    /// A delivery of `publish` as it was published, not retained, for a subscription without
    /// identifier.
    pub fn of(publish: &Publish, version: Version) -> Layout<'static> {
        Layout {
            version,
            qos: publish.qos,
            retain: false,
            subscription_ids: &[],
            message_expiry_interval: publish.properties.message_expiry_interval,
        }
    }
}

/// Whether a receiver may have seen the message before (section 3.3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Sent for the first time.
    First,
    /// Sent again: the DUP flag is set, unless the QoS is 0.
    Again,
}

/// What becomes of the topic of a PUBLISH with a topic alias (section 3.3.2.3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AliasedTopic {
    /// It is sent: from here on the alias stands for it.
    Introduced,
    /// It is left empty: the receiver knows what the alias stands for.
    Omitted,
}

/// What [`PublishFrame::write_aliased`] appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the packet.
    pub len: usize,
    /// Where among them the four bytes of the message expiry interval are, to be patched with the
    /// seconds left `[MQTT-3.3.2-6]`; `None` if the message does not expire.
    pub message_expiry_offset: Option<usize>,
}

/// An encoded PUBLISH without packet identifier. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct PublishFrame {
    /// Everything before the payload, with a packet identifier of 0 if there is one; and the payload, if
    /// it is small.
    bytes: Bytes,
    /// What follows it.
    large_payload: Bytes,
    /// Bytes before the payload.
    head_len: u32,
    /// Where in `head` the packet identifier is; 0 for QoS 0, which has none.
    packet_id_at: u32,
    /// Where in `head` the text of the topic begins.
    topic_at: u32,
    /// Where in `head` the properties begin, after their length; 0 in 3.1.1, which has none.
    properties_at: u32,
    /// Where in `head` the value of the message expiry interval is; 0 if there is none.
    expiry_at: u32,
}

impl PublishFrame {
    /// Payloads of up to so many bytes are copied into the frame; of larger ones it holds a share, and with
    /// it whatever memory that is a slice of.
    pub const COPIED: usize = 4 * 1024;

    /// Encodes `publish` in `layout`. Its own QoS, flags, packet identifier, subscription identifiers and
    /// expiry do not count, nor does its topic alias, which belongs to the connection it came on
    /// `[MQTT-3.3.2-7]`.
    ///
    /// # Errors
    /// [`EncodeError`] when the message has no topic, or one of its texts or itself is too long.
    pub fn new(publish: &Publish, layout: Layout<'_>) -> Result<Self, EncodeError> {
        let properties = match layout.version {
            Version::V311 => PublishProperties::default(),
            Version::V5 => PublishProperties {
                topic_alias: None,
                subscription_ids: layout.subscription_ids.to_vec(),
                message_expiry_interval: layout.message_expiry_interval,
                ..publish.properties.clone()
            },
        };
        let head = publish_head_size(&publish.topic, layout.qos, &properties, layout.version)?;
        let remaining = check_remaining_length(PacketType::Publish, head + publish.payload.len())?;
        let (copied, large_payload) = match publish.payload.len() <= Self::COPIED {
            true => (&publish.payload[..], Bytes::new()),
            false => (&[][..], publish.payload.clone()),
        };
        let head_len = 1 + varint::len(remaining) + head;
        // Exactly, so that it is one piece of memory when it is frozen.
        let mut out = BytesMut::with_capacity(head_len + copied.len());
        let flags = Flags {
            dup: false,
            qos: layout.qos,
            retain: layout.retain,
        };
        put_fixed_header(PacketType::Publish, flags.bits(), remaining, &mut out);
        let topic_at = (out.len() + 2) as u32;
        put_binary(publish.topic.as_bytes(), &mut out);
        let mut packet_id_at = 0;
        if layout.qos > QoS::AtMostOnce {
            packet_id_at = out.len() as u32; // at most 5 + 2 + 65,535
            out.put_u16(0);
        }
        let (mut properties_at, mut expiry_at) = (0, 0);
        if layout.version == Version::V5 {
            properties.write(&mut out);
            properties_at = (out.len() - properties.inner_size()?) as u32;
            if properties.message_expiry_interval.is_some() {
                expiry_at = (out.len() - properties.size_from_message_expiry()?) as u32;
            }
        }
        debug_assert_eq!(out.len(), head_len);
        out.extend_from_slice(copied);
        Ok(Self {
            bytes: out.freeze(),
            large_payload,
            head_len: head_len as u32, // at most 268,435,455 + 5
            packet_id_at,
            topic_at,
            properties_at,
            expiry_at,
        })
    }

    /// The topic it was published to.
    pub fn topic(&self) -> &str {
        let at = self.topic_at as usize;
        let length = usize::from(u16::from_be_bytes([self.bytes[at - 2], self.bytes[at - 1]]));
        // Written from a text.
        std::str::from_utf8(&self.bytes[at..at + length]).unwrap_or_default()
    }

    /// The message as a receiver would read it, without packet identifier. Its texts and payload are slices of
    /// one piece of memory of its own.
    ///
    /// # Errors
    /// None that a frame made by [`new`](Self::new) leads to.
    pub fn publish(&self) -> Result<Publish, DecodeError> {
        // There is a length of the properties exactly in MQTT 5.
        let version = match self.properties_at {
            0 => Version::V311,
            _ => Version::V5,
        };
        let mut packet = BytesMut::with_capacity(self.len());
        packet.extend_from_slice(&self.bytes);
        packet.extend_from_slice(&self.large_payload);
        if let Some(at) = self.packet_id_offset() {
            packet[at..at + 2].copy_from_slice(&PacketId::FIRST.get().to_be_bytes());
        }
        match Decoder::within(version).decode(&mut packet)? {
            Some(Packet::Publish(publish)) => Ok(Publish {
                packet_id: None,
                ..*publish
            }),
            _ => {
                debug_assert!(false, "a frame is a whole PUBLISH");
                Ok(Publish::default())
            }
        }
    }

    /// Where in [`head`](Self::head) the two bytes of the packet identifier are; `None` for QoS 0.
    pub fn packet_id_offset(&self) -> Option<usize> {
        (self.packet_id_at > 0).then_some(self.packet_id_at as usize)
    }

    /// Where in [`head`](Self::head) the four bytes of the message expiry interval are, to be patched in
    /// what was written with the seconds left `[MQTT-3.3.2-6]`; `None` if the message does not expire or
    /// the version cannot say so.
    pub fn message_expiry_offset(&self) -> Option<usize> {
        (self.expiry_at > 0).then_some(self.expiry_at as usize)
    }

    /// Everything before the payload. With QoS 1 and 2 the packet identifier in it is 0 and must be
    /// patched.
    pub fn head(&self) -> &[u8] {
        &self.bytes[..self.head_len as usize]
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        match self.large_payload.is_empty() {
            true => &self.bytes[self.head_len as usize..],
            false => &self.large_payload,
        }
    }

    /// Bytes of the whole packet, to be held against the receiver's maximum packet size.
    #[allow(clippy::len_without_is_empty)] // a packet is never empty
    pub fn len(&self) -> usize {
        self.bytes.len() + self.large_payload.len()
    }

    /// Appends the packet for one receiver.
    ///
    /// # Errors
    /// [`EncodeError::PacketId`] unless there is a packet identifier exactly for QoS 1 and 2; `out` is
    /// then as it was before.
    pub fn write(
        &self,
        packet_id: Option<PacketId>,
        attempt: Attempt,
        out: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        if packet_id.is_some() != (self.packet_id_at > 0) {
            return Err(EncodeError::PacketId);
        }
        out.reserve(self.len());
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(id) = packet_id {
            let at = start + self.packet_id_at as usize;
            out[at..at + 2].copy_from_slice(&id.get().to_be_bytes());
            if attempt == Attempt::Again {
                out[start] |= Flags::DUP;
            }
        }
        out.extend_from_slice(&self.large_payload);
        Ok(())
    }

    /// Most bytes that a topic alias adds to [`len`](Self::len): three of the property, one each of
    /// the property length and the remaining length.
    pub const MAX_ALIAS_GROWTH: usize = ALIAS_SIZE + 2;

    /// Bytes that [`write_aliased`](Self::write_aliased) will append, to be held against the
    /// receiver's maximum packet size.
    ///
    /// # Errors
    /// As [`write_aliased`](Self::write_aliased), the packet identifier left aside.
    pub fn aliased_len(&self, topic: AliasedTopic) -> Result<usize, EncodeError> {
        let parts = self.aliased(topic)?;
        Ok(1 + varint::len(parts.remaining) + parts.remaining as usize)
    }

    /// Appends the packet for one receiver as [`write`](Self::write) does, with a topic alias.
    ///
    /// # Errors
    /// [`EncodeError::NotInV311`] for a frame of 3.1.1, [`EncodeError::PacketId`] unless there is a
    /// packet identifier exactly for QoS 1 and 2, [`EncodeError::PacketTooLarge`] when the alias is
    /// what makes it too large; `out` is then as it was before.
    pub fn write_aliased(
        &self,
        packet_id: Option<PacketId>,
        attempt: Attempt,
        alias: NonZeroU16,
        topic: AliasedTopic,
        out: &mut BytesMut,
    ) -> Result<Written, EncodeError> {
        if packet_id.is_some() != (self.packet_id_at > 0) {
            return Err(EncodeError::PacketId);
        }
        let parts = self.aliased(topic)?;
        let start = out.len();
        out.reserve(1 + varint::len(parts.remaining) + parts.remaining as usize);
        let dup = match (packet_id, attempt) {
            (Some(_), Attempt::Again) => Flags::DUP,
            (None, _) | (_, Attempt::First) => 0,
        };
        out.put_u8(self.bytes[0] | dup);
        varint::write(parts.remaining, out);
        put_binary(parts.topic, out);
        if let Some(id) = packet_id {
            out.put_u16(id.get());
        }
        varint::write((ALIAS_SIZE + parts.properties.len()) as u32, out);
        out.put_u8(Property::TopicAlias.id());
        out.put_u16(alias.get());
        out.put_slice(parts.properties);
        // From the interval to the end of the head nothing has moved.
        let message_expiry_offset = self
            .message_expiry_offset()
            .map(|at| out.len() - start - (self.head_len as usize - at));
        out.put_slice(self.payload());
        Ok(Written {
            len: out.len() - start,
            message_expiry_offset,
        })
    }

    /// What an aliased packet is put together from.
    fn aliased(&self, topic: AliasedTopic) -> Result<Aliased<'_>, EncodeError> {
        let packet = PacketType::Publish;
        if self.properties_at == 0 {
            let what = "a topic alias";
            return Err(EncodeError::NotInV311 { packet, what });
        }
        let (front, properties) = self.head().split_at(self.properties_at as usize);
        let topic_end = self
            .packet_id_offset()
            .unwrap_or(front.len() - (with_length(properties.len()) - properties.len()));
        let topic = match topic {
            AliasedTopic::Introduced => &front[self.topic_at as usize..topic_end],
            AliasedTopic::Omitted => &[],
        };
        let packet_id = if self.packet_id_at > 0 { 2 } else { 0 };
        let block = with_length(ALIAS_SIZE + properties.len());
        let len = 2 + topic.len() + packet_id + block + self.payload().len();
        Ok(Aliased {
            remaining: check_remaining_length(packet, len)?,
            topic,
            properties,
        })
    }
}

/// Bytes of the property topic alias: its identifier and two of its value.
const ALIAS_SIZE: usize = 3;

/// A packet with a topic alias before it is written.
struct Aliased<'a> {
    remaining: u32,
    topic: &'a [u8],
    /// The other properties, without property length.
    properties: &'a [u8],
}
