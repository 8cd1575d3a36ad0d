//! DISCONNECT: the last packet (section 3.14). In 3.1.1 only a client sends it, without a reason.

use bytes::{BufMut, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::{PacketType, check_reason, read_reason},
    property::{Property, UserProperty, properties},
    reader::{Reader, Sender},
    reason::ReasonCode,
    utf8::Utf8,
    version::Version,
};

/// The last packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disconnect {
    /// Why; always [`ReasonCode::NORMAL_DISCONNECTION`] when read from 3.1.1.
    pub reason: ReasonCode,
    /// Empty in 3.1.1.
    pub properties: DisconnectProperties,
}

properties! {
    /// The properties of DISCONNECT (section 3.14.2.2).
    DisconnectProperties of "DISCONNECT" {
        /// Seconds the session outlives the connection, replacing that of CONNECT; from a client only
        /// `[MQTT-3.14.2-2]`.
        SessionExpiryInterval => session_expiry_interval: Option<u32>,
        /// For a person who reads the log.
        ReasonString => reason_string: Option<Utf8>,
        /// For diagnosis.
        UserProperty => user_properties: Vec<UserProperty>,
        /// Another server to use.
        ServerReference => server_reference: Option<Utf8>,
    }
}

impl Disconnect {
    /// A reason and no properties.
    pub fn new(reason: ReasonCode) -> Self {
        Self {
            reason,
            properties: DisconnectProperties::default(),
        }
    }

    pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let mut disconnect = Self::default();
        // Both may be left out, the properties first (sections 3.14.2.1, 3.14.2.2.1).
        if version == Version::V311 || from.remaining() == 0 {
            return Ok(disconnect);
        }
        disconnect.reason = read_reason(from)?;
        let allowed = match from.sender {
            Sender::Client => disconnect.reason.may_client_disconnect_with(),
            Sender::Server => disconnect.reason.may_server_disconnect_with(),
        };
        if !allowed {
            return Err(DecodeError::ReasonCode {
                packet: PacketType::Disconnect,
                value: disconnect.reason.as_u8(),
            });
        }
        if from.remaining() > 0 {
            disconnect.properties = DisconnectProperties::read(from)?;
        }
        if from.sender == Sender::Server && disconnect.properties.session_expiry_interval.is_some()
        {
            return Err(DecodeError::PropertyFromWrongSide {
                place: DisconnectProperties::PLACE,
                property: Property::SessionExpiryInterval,
            });
        }
        Ok(disconnect)
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        check_reason(self.reason, PacketType::Disconnect)?;
        match version {
            Version::V311 if self.reason != ReasonCode::NORMAL_DISCONNECTION => {
                Err(EncodeError::NotInV311 {
                    packet: PacketType::Disconnect,
                    what: "a reason; close the connection without it",
                })
            }
            Version::V311 => Ok(0),
            Version::V5 if !self.properties.is_empty() => Ok(1 + self.properties.size()?),
            Version::V5 if self.reason != ReasonCode::NORMAL_DISCONNECTION => Ok(1),
            Version::V5 => Ok(0),
        }
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        if version == Version::V311 {
            return;
        }
        let has_properties = !self.properties.is_empty();
        if has_properties || self.reason != ReasonCode::NORMAL_DISCONNECTION {
            out.put_u8(self.reason.as_u8());
        }
        if has_properties {
            self.properties.write(out);
        }
    }
}
