//! AUTH: a step of an enhanced authentication, MQTT 5 only (sections 3.15 and 4.12).

use bytes::{BufMut, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::{PacketType, check_reason, read_reason},
    property::{UserProperty, properties},
    reader::{Reader, Sender},
    reason::ReasonCode,
    secret::Secret,
    utf8::Utf8,
    version::Version,
};

/// A step of an enhanced authentication.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth {
    /// [`Success`](ReasonCode::Success) from a server,
    /// [`ReAuthenticate`](ReasonCode::ReAuthenticate) from a client,
    /// [`ContinueAuthentication`](ReasonCode::ContinueAuthentication) from both.
    pub reason: ReasonCode,
    /// With a method, unless the reason is success and there is no property at all.
    pub properties: AuthProperties,
}

properties! {
    /// The properties of AUTH (section 3.15.2.2).
    AuthProperties of "AUTH" {
        /// The method of CONNECT.
        AuthenticationMethod => authentication_method: Option<Utf8>,
        /// What the method asks for.
        AuthenticationData => authentication_data: Option<Secret>,
        /// For a person who reads the log.
        ReasonString => reason_string: Option<Utf8>,
        /// For diagnosis.
        UserProperty => user_properties: Vec<UserProperty>,
    }
}

impl Auth {
    pub(crate) fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let auth = if from.remaining() == 0 {
            Self::default() // "success" and no properties may be left out (section 3.15.2.1)
        } else {
            let reason = read_reason(from)?;
            let properties = AuthProperties::read(from)?;
            if properties.authentication_method.is_none() {
                return Err(DecodeError::AuthenticationMethodMissing {
                    packet: PacketType::Auth,
                });
            }
            Self { reason, properties }
        };
        let allowed = match from.sender {
            Sender::Client => auth.reason != ReasonCode::Success,
            Sender::Server => auth.reason != ReasonCode::ReAuthenticate,
        };
        if !allowed {
            let value = auth.reason.as_u8();
            return Err(DecodeError::ReasonCode {
                packet: PacketType::Auth,
                value,
            });
        }
        Ok(auth)
    }

    fn is_bare(&self) -> bool {
        self.reason == ReasonCode::Success && self.properties.is_empty()
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if version == Version::V311 {
            return Err(EncodeError::NotInV311 {
                packet: PacketType::Auth,
                what: "it at all",
            });
        }
        check_reason(self.reason, PacketType::Auth)?;
        if self.is_bare() {
            return Ok(0);
        }
        if self.properties.authentication_method.is_none() {
            return Err(EncodeError::AuthenticationMethodMissing {
                packet: PacketType::Auth,
            });
        }
        Ok(1 + self.properties.size()?)
    }

    pub(crate) fn write(&self, out: &mut BytesMut) {
        if !self.is_bare() {
            out.put_u8(self.reason.as_u8());
            self.properties.write(out);
        }
    }
}
