//! PUBACK, PUBREC, PUBREL, PUBCOMP: the answers to QoS 1 and QoS 2 messages (sections 3.4 to 3.7).
//!
//! Four types of one shape: which of them comes when is the point of QoS 2, so they must not be mixed
//! up. In 3.1.1 they are a packet identifier and nothing else.

use bytes::{BufMut, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::{PacketType, check_reason, read_reason},
    packet_id::PacketId,
    property::{UserProperty, properties},
    reader::Reader,
    reason::ReasonCode,
    utf8::Utf8,
    version::Version,
};

macro_rules! acknowledgement {
    ($(#[$doc:meta])* $name:ident, $(#[$properties_doc:meta])* $properties:ident of $place:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            /// Of the message this is about.
            pub packet_id: PacketId,
            /// How it went; always [`ReasonCode::Success`] when read from 3.1.1.
            pub reason: ReasonCode,
            /// Empty in 3.1.1.
            pub properties: $properties,
        }

        properties! {
            $(#[$properties_doc])*
            $properties of $place {
                /// For a person who reads the log.
                ReasonString => reason_string: Option<Utf8>,
                /// For diagnosis.
                UserProperty => user_properties: Vec<UserProperty>,
            }
        }

        impl $name {
            /// All is well.
            pub fn success(packet_id: PacketId) -> Self {
                Self::new(packet_id, ReasonCode::Success)
            }

            /// A code and no properties.
            pub fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
                Self { packet_id, reason, properties: $properties::default() }
            }

            pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
                let packet_id = from.packet_id()?;
                let mut reason = ReasonCode::Success;
                let mut properties = $properties::default();
                // Both may be left out, the properties first (section 3.4.2.1).
                if version == Version::V5 && from.remaining() > 0 {
                    reason = read_reason(from)?;
                    if from.remaining() > 0 {
                        properties = $properties::read(from)?;
                    }
                }
                Ok(Self { packet_id, reason, properties })
            }

            pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
                check_reason(self.reason, PacketType::$name)?;
                match version {
                    Version::V311 if self.reason.is_error() => Err(EncodeError::NotInV311 {
                        packet: PacketType::$name,
                        what: "that it failed",
                    }),
                    Version::V311 => Ok(2),
                    Version::V5 if !self.properties.is_empty() => Ok(3 + self.properties.size()?),
                    Version::V5 if self.reason != ReasonCode::Success => Ok(3),
                    Version::V5 => Ok(2),
                }
            }

            pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
                out.put_u16(self.packet_id.get());
                if version == Version::V311 {
                    return;
                }
                let has_properties = !self.properties.is_empty();
                if has_properties || self.reason != ReasonCode::Success {
                    out.put_u8(self.reason.as_u8());
                }
                if has_properties {
                    self.properties.write(out);
                }
            }
        }
    };
}

acknowledgement! {
    /// Answer to a QoS 1 message (section 3.4).
    PubAck,
    /// The properties of PUBACK (section 3.4.2.2).
    PubAckProperties of "PUBACK"
}

acknowledgement! {
    /// First answer to a QoS 2 message: received (section 3.5).
    PubRec,
    /// The properties of PUBREC (section 3.5.2.2).
    PubRecProperties of "PUBREC"
}

acknowledgement! {
    /// Second: the sender forgets the message (section 3.6).
    PubRel,
    /// The properties of PUBREL (section 3.6.2.2).
    PubRelProperties of "PUBREL"
}

acknowledgement! {
    /// Third: the receiver forgets the identifier (section 3.7).
    PubComp,
    /// The properties of PUBCOMP (section 3.7.2.2).
    PubCompProperties of "PUBCOMP"
}
