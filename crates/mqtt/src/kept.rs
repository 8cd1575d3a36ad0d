//! A message as bytes to be kept, and back: what a journal writes when a message waits or is retained.
//!
//! ```text
//! 01 │ flags │ topic: length u16, text │ property length, properties │ payload, to the end
//! ```
//! The first byte is the form, [`FORM`]. The flags are the low four bits of a PUBLISH (section
//! 3.3.1); the four above are 0. Topic and properties stand as in MQTT 5 (section 3.3.2), whatever
//! version the message came in. There is no length: whoever keeps the bytes knows where they end.
//!
//! **This form is frozen**: bytes written by one release are read by all later ones. To change it,
//! add a form with the next number, write that, and go on reading this one.
//!
//! Left out is what belongs to the connection the message came on: packet identifier, topic alias
//! `[MQTT-3.3.2-7]`, subscription identifiers. A whole encoded PUBLISH was refused as the form: its
//! packet identifier and remaining length would say nothing.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    encode::check_remaining_length,
    error::{DecodeError, EncodeError},
    packet::{Flags, PacketType, Publish, PublishProperties, publish_head_size},
    property::{Property, put_binary},
    qos::QoS,
    reader::{Reader, Sender},
    version::Version,
};

/// The form this release writes.
const FORM: u8 = 1;

impl Publish {
    /// Appends the message in the form to be kept. Topic, flags, properties and payload come back
    /// from [`kept`](Self::kept); packet identifier, topic alias and subscription identifiers do not.
    ///
    /// # Errors
    /// [`EncodeError`] when the message has no topic (an alias must have been resolved), one of its
    /// texts or itself is too long, or QoS 0 is marked as duplicate; `out` is then as it was before.
    pub fn keep(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        if self.dup && self.qos == QoS::AtMostOnce {
            return Err(EncodeError::DuplicateAtMostOnce);
        }
        let without;
        let mut properties = &self.properties;
        if properties.topic_alias.is_some() || !properties.subscription_ids.is_empty() {
            without = PublishProperties {
                topic_alias: None,
                subscription_ids: Vec::new(),
                ..properties.clone()
            };
            properties = &without;
        }
        // QoS 0 is the layout without packet identifier.
        let head = publish_head_size(&self.topic, QoS::AtMostOnce, properties, Version::V5)?;
        check_remaining_length(PacketType::Publish, head + self.payload.len())?;
        let end = out.len() + 2 + head + self.payload.len();
        out.reserve(end - out.len());
        out.put_u8(FORM);
        out.put_u8(self.flags().bits());
        put_binary(self.topic.as_bytes(), out);
        properties.write(out);
        out.put_slice(&self.payload);
        debug_assert_eq!(out.len(), end, "{self:?}");
        Ok(())
    }

    /// The message of bytes written by [`keep`](Self::keep). Topic, texts and payload are slices of
    /// `bytes`. With QoS 1 and 2 there is no packet identifier yet: give it one before it is encoded.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not what `keep` writes, which is damage, or were written by
    /// a later release ([`DecodeError::KeptForm`]).
    pub fn kept(bytes: &Bytes) -> Result<Self, DecodeError> {
        let packet = PacketType::Publish;
        let mut from = Reader::new(bytes.clone(), packet, Sender::Client);
        match from.u8("the form")? {
            FORM => {}
            form => return Err(DecodeError::KeptForm { form }),
        }
        let bits = from.u8("the flags")?;
        if bits > 0b1111 {
            return Err(DecodeError::Flags {
                packet,
                field: "the flags",
                value: bits,
                problem: "the high four bits must be 0",
            });
        }
        let flags = Flags::from_bits(bits)?;
        let topic = from.publish_topic(Version::V311)?; // 3.1.1: it cannot be empty
        let properties = PublishProperties::read(&mut from)?;
        let of_a_connection = [
            (properties.topic_alias.is_some(), Property::TopicAlias),
            (
                !properties.subscription_ids.is_empty(),
                Property::SubscriptionIdentifier,
            ),
        ];
        if let Some(&(_, property)) = of_a_connection.iter().find(|(present, _)| *present) {
            return Err(DecodeError::PropertyNotAllowed {
                place: "a kept PUBLISH",
                property,
            });
        }
        Ok(Self {
            dup: flags.dup,
            qos: flags.qos,
            retain: flags.retain,
            topic,
            packet_id: None,
            properties,
            payload: from.rest(),
        })
    }
}
