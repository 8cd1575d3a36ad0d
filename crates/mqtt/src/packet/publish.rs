//! PUBLISH: a message, in either direction (section 3.3).

use std::num::NonZeroU16;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::PacketType,
    packet_id::PacketId,
    property::{PayloadFormat, Property, SubscriptionId, UserProperty, properties, put_binary},
    qos::QoS,
    reader::{Reader, Sender},
    topic::{self, TopicError, TopicName},
    utf8::Utf8,
    version::Version,
};

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publish {
    /// Sent before; never with QoS 0 `[MQTT-3.3.1-2]`.
    pub dup: bool,
    /// Quality of service of this transmission.
    pub qos: QoS,
    /// From a client: keep for later subscribers. From a server: was kept.
    pub retain: bool,
    /// Without wildcards. Empty only in MQTT 5, with a [topic alias](PublishProperties::topic_alias).
    pub topic: Utf8,
    /// Present exactly when the QoS is 1 or 2.
    pub packet_id: Option<PacketId>,
    /// Empty in 3.1.1.
    pub properties: PublishProperties,
    /// Any bytes, also none.
    pub payload: Bytes,
}

properties! {
    /// The properties of PUBLISH (section 3.3.2.3).
    PublishProperties of "PUBLISH" {
        /// What the payload is.
        PayloadFormatIndicator => payload_format: Option<PayloadFormat>,
        /// Seconds until nobody wants the message any more.
        MessageExpiryInterval => message_expiry_interval: Option<u32>,
        /// A number that stands for the topic on this connection.
        TopicAlias => topic_alias: Option<NonZeroU16>,
        /// Where an answer goes.
        ResponseTopic => response_topic: Option<TopicName>,
        /// Which request an answer belongs to.
        CorrelationData => correlation_data: Option<Bytes>,
        /// For the application, in order.
        UserProperty => user_properties: Vec<UserProperty>,
        /// Which subscriptions matched; from a server only `[MQTT-3.3.4-6]`.
        SubscriptionIdentifier => subscription_ids: Vec<SubscriptionId>,
        /// For example a MIME type.
        ContentType => content_type: Option<Utf8>,
    }
}

/// The low four bits of the first byte (section 3.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags {
    pub dup: bool,
    pub qos: QoS,
    pub retain: bool,
}

impl Flags {
    pub const DUP: u8 = 0b1000;

    pub fn from_bits(bits: u8) -> Result<Self, DecodeError> {
        let dup = bits & Self::DUP != 0;
        let qos = QoS::from_u8(bits >> 1 & 0b11).ok_or(DecodeError::QoS {
            packet: PacketType::Publish,
            field: "the QoS",
        })?;
        if dup && qos == QoS::AtMostOnce {
            return Err(DecodeError::DuplicateAtMostOnce);
        }
        Ok(Self {
            dup,
            qos,
            retain: bits & 1 != 0,
        })
    }

    pub fn bits(self) -> u8 {
        u8::from(self.dup) << 3 | self.qos.as_u8() << 1 | u8::from(self.retain)
    }
}

impl PublishProperties {
    /// Bytes from the value of the message expiry interval, which is there, to the end of the block:
    /// all but the payload format, which alone is written before it, and its own identifier.
    pub(crate) fn size_from_message_expiry(&self) -> Result<usize, EncodeError> {
        let before = if self.payload_format.is_some() { 2 } else { 0 };
        Ok(self.inner_size()? - before - 1)
    }
}

impl Publish {
    pub(crate) fn flags(&self) -> Flags {
        Flags {
            dup: self.dup,
            qos: self.qos,
            retain: self.retain,
        }
    }

    pub(crate) fn read(
        from: &mut Reader,
        flags: Flags,
        version: Version,
    ) -> Result<Self, DecodeError> {
        let topic = from.publish_topic(version)?;
        let packet_id = match flags.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce | QoS::ExactlyOnce => Some(from.packet_id()?),
        };
        let properties = match version {
            Version::V311 => PublishProperties::default(),
            Version::V5 => PublishProperties::read(from)?,
        };
        if topic.is_empty() && properties.topic_alias.is_none() {
            return Err(DecodeError::TopicMissing);
        }
        if from.sender == Sender::Client && !properties.subscription_ids.is_empty() {
            return Err(DecodeError::PropertyFromWrongSide {
                place: PublishProperties::PLACE,
                property: Property::SubscriptionIdentifier,
            });
        }
        Ok(Self {
            dup: flags.dup,
            qos: flags.qos,
            retain: flags.retain,
            topic,
            packet_id,
            properties,
            payload: from.rest(),
        })
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if self.packet_id.is_some() != (self.qos > QoS::AtMostOnce) {
            return Err(EncodeError::PacketId);
        }
        if self.dup && self.qos == QoS::AtMostOnce {
            return Err(EncodeError::DuplicateAtMostOnce);
        }
        Ok(head_size(&self.topic, self.qos, &self.properties, version)? + self.payload.len())
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        put_binary(self.topic.as_bytes(), out);
        if let Some(id) = self.packet_id {
            out.put_u16(id.get());
        }
        if version == Version::V5 {
            self.properties.write(out);
        }
        out.put_slice(&self.payload);
    }
}

/// Bytes between the fixed header and the payload.
pub(crate) fn head_size(
    topic: &Utf8,
    qos: QoS,
    properties: &PublishProperties,
    version: Version,
) -> Result<usize, EncodeError> {
    let may_be_empty = version == Version::V5 && properties.topic_alias.is_some();
    match topic::check_name(topic) {
        Ok(()) => {}
        Err(TopicError::Empty) if may_be_empty => {}
        Err(problem) => return Err(EncodeError::Topic { problem }),
    }
    let mut size = 2 + topic.len();
    if qos > QoS::AtMostOnce {
        size += 2;
    }
    if version == Version::V5 {
        size += properties.size()?;
    }
    Ok(size)
}
