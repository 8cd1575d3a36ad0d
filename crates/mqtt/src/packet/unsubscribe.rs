//! UNSUBSCRIBE and UNSUBACK: the client asks for messages no longer (sections 3.10 and 3.11).

use bytes::{BufMut, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::{PacketType, check_reason, read_reason},
    packet_id::PacketId,
    property::{UserProperty, properties, put_binary, utf8_size},
    reader::Reader,
    reason::ReasonCode,
    topic::TopicFilter,
    utf8::Utf8,
    version::Version,
};

/// The client asks for messages no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// For the UNSUBACK.
    pub packet_id: PacketId,
    /// At least one; letter by letter those of the subscriptions.
    pub filters: Vec<TopicFilter>,
    /// Empty in 3.1.1.
    pub properties: UnsubscribeProperties,
}

properties! {
    /// The properties of UNSUBSCRIBE (section 3.10.2.1).
    UnsubscribeProperties of "UNSUBSCRIBE" {
        /// For the application.
        UserProperty => user_properties: Vec<UserProperty>,
    }
}

impl Unsubscribe {
    pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let packet_id = from.packet_id()?;
        let properties = match version {
            Version::V311 => UnsubscribeProperties::default(),
            Version::V5 => UnsubscribeProperties::read(from)?,
        };
        if from.remaining() == 0 {
            return Err(DecodeError::NoEntries {
                packet: PacketType::Unsubscribe,
            });
        }
        let mut filters = Vec::with_capacity(1);
        while from.remaining() > 0 {
            filters.push(from.topic_filter()?);
        }
        Ok(Self {
            packet_id,
            filters,
            properties,
        })
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if self.filters.is_empty() {
            return Err(EncodeError::NoEntries {
                packet: PacketType::Unsubscribe,
            });
        }
        let mut size = 2;
        if version == Version::V5 {
            size += self.properties.size()?;
        }
        self.filters.iter().try_fold(size, |sum, filter| {
            Ok(sum + utf8_size(filter.as_utf8(), "a topic filter")?)
        })
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        out.put_u16(self.packet_id.get());
        if version == Version::V5 {
            self.properties.write(out);
        }
        for filter in &self.filters {
            put_binary(filter.as_utf8().as_bytes(), out);
        }
    }
}

/// Answer to UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsubAck {
    /// Of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// One for each filter, in their order. 3.1.1 has none: they read as empty and are not written.
    pub reasons: Vec<ReasonCode>,
    /// Empty in 3.1.1.
    pub properties: UnsubAckProperties,
}

properties! {
    /// The properties of UNSUBACK (section 3.11.2.1).
    UnsubAckProperties of "UNSUBACK" {
        /// For a person who reads the log.
        ReasonString => reason_string: Option<Utf8>,
        /// For diagnosis.
        UserProperty => user_properties: Vec<UserProperty>,
    }
}

impl UnsubAck {
    pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let packet_id = from.packet_id()?;
        if version == Version::V311 {
            return Ok(Self {
                packet_id,
                reasons: Vec::new(),
                properties: UnsubAckProperties::default(),
            });
        }
        let properties = UnsubAckProperties::read(from)?;
        if from.remaining() == 0 {
            return Err(DecodeError::NoEntries {
                packet: PacketType::UnsubAck,
            });
        }
        let mut reasons = Vec::with_capacity(1);
        while from.remaining() > 0 {
            reasons.push(read_reason(from)?);
        }
        Ok(Self {
            packet_id,
            reasons,
            properties,
        })
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if version == Version::V311 {
            return Ok(2);
        }
        if self.reasons.is_empty() {
            return Err(EncodeError::NoEntries {
                packet: PacketType::UnsubAck,
            });
        }
        for &reason in &self.reasons {
            check_reason(reason, PacketType::UnsubAck)?;
        }
        Ok(2 + self.properties.size()? + self.reasons.len())
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        out.put_u16(self.packet_id.get());
        if version == Version::V5 {
            self.properties.write(out);
            for reason in &self.reasons {
                out.put_u8(reason.as_u8());
            }
        }
    }
}
