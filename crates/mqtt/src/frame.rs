//! A PUBLISH encoded once for many receivers.
//!
//! Fan-out to a thousand subscribers would encode the same message a thousand times. But what differs
//! between them is little: the version, the QoS, the retain flag, the subscription identifiers (all of
//! that is a [`Layout`], and few layouts occur per message) and the packet identifier, which is two
//! bytes at a known place. So a message is encoded once per layout, and each receiver copies the frame
//! and patches two bytes.
//!
//! The payload stays a shared slice of its own: not copied per layout, and a transport that can write
//! vectored need not copy it at all.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    encode::{check_remaining_length, put_fixed_header},
    error::EncodeError,
    packet::{Flags, PacketType, Publish, PublishProperties, publish_head_size},
    packet_id::PacketId,
    property::{SubscriptionId, put_binary},
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

/// An encoded PUBLISH without packet identifier. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct PublishFrame {
    /// Everything before the payload, with a packet identifier of 0 if there is one.
    head: Bytes,
    payload: Bytes,
    /// Where in `head` the packet identifier is; 0 for QoS 0, which has none.
    packet_id_at: u32,
    /// Where in `head` the value of the message expiry interval is; 0 if there is none.
    expiry_at: u32,
}

impl PublishFrame {
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
        let mut out = BytesMut::with_capacity(1 + varint::len(remaining) + head);
        let flags = Flags {
            dup: false,
            qos: layout.qos,
            retain: layout.retain,
        };
        put_fixed_header(PacketType::Publish, flags.bits(), remaining, &mut out);
        put_binary(publish.topic.as_bytes(), &mut out);
        let mut packet_id_at = 0;
        if layout.qos > QoS::AtMostOnce {
            packet_id_at = out.len() as u32; // at most 5 + 2 + 65,535
            out.put_u16(0);
        }
        let mut expiry_at = 0;
        if layout.version == Version::V5 {
            properties.write(&mut out);
            if properties.message_expiry_interval.is_some() {
                expiry_at = (out.len() - properties.size_from_message_expiry()?) as u32;
            }
        }
        Ok(Self {
            head: out.freeze(),
            payload: publish.payload.clone(),
            packet_id_at,
            expiry_at,
        })
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
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Bytes of the whole packet, to be held against the receiver's maximum packet size.
    #[allow(clippy::len_without_is_empty)] // a packet is never empty
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.len()
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
        out.reserve(self.len());
        self.write_head(packet_id, attempt, out)?;
        out.put_slice(&self.payload);
        Ok(())
    }

    /// Appends everything before the payload, for a transport that sends [`payload`](Self::payload)
    /// without copying it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_head(
        &self,
        packet_id: Option<PacketId>,
        attempt: Attempt,
        out: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        let start = out.len();
        match (self.packet_id_offset(), packet_id) {
            (None, None) => out.put_slice(&self.head),
            (Some(at), Some(id)) => {
                out.put_slice(&self.head);
                let at = start + at;
                out[at..at + 2].copy_from_slice(&id.get().to_be_bytes());
                if attempt == Attempt::Again {
                    out[start] |= Flags::DUP;
                }
            }
            _ => return Err(EncodeError::PacketId),
        }
        Ok(())
    }
}
