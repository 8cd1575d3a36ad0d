//! CONNACK: the first packet of a server (section 3.2).

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{BufMut, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::{PacketType, check_reason, read_reason},
    property::{UserProperty, properties},
    qos::QoS,
    reader::Reader,
    reason::{ConnectReturnCode, ReasonCode},
    secret::Secret,
    utf8::Utf8,
    version::Version,
};

const SESSION_PRESENT: u8 = 0b0000_0001;

/// The server accepts or refuses a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnAck {
    /// The server goes on with an earlier session; never on a refusal.
    pub session_present: bool,
    /// [`ReasonCode::Success`] or why not. In 3.1.1 it is said as
    /// [`connect_return_code`](ReasonCode::connect_return_code).
    pub reason: ReasonCode,
    /// Empty in 3.1.1.
    pub properties: ConnAckProperties,
}

properties! {
    /// The properties of CONNACK (section 3.2.2.3).
    ConnAckProperties of "CONNACK" {
        /// Seconds the session outlives the connection; absent is what the client asked for.
        SessionExpiryInterval => session_expiry_interval: Option<u32>,
        /// QoS 1 and 2 messages the server takes unacknowledged; absent is 65,535.
        ReceiveMaximum => receive_maximum: Option<NonZeroU16>,
        /// Highest quality the server serves, 0 or 1; absent is 2.
        MaximumQoS => maximum_qos: Option<QoS>,
        /// Whether the server keeps retained messages; absent is yes.
        RetainAvailable => retain_available: Option<bool>,
        /// Bytes of the largest packet the server takes; absent is no limit.
        MaximumPacketSize => maximum_packet_size: Option<NonZeroU32>,
        /// The name of a client that came without one.
        AssignedClientIdentifier => assigned_client_id: Option<Utf8>,
        /// Highest topic alias the server takes; absent is 0, none.
        TopicAliasMaximum => topic_alias_maximum: Option<u16>,
        /// For a person who reads the log.
        ReasonString => reason_string: Option<Utf8>,
        /// For diagnosis.
        UserProperty => user_properties: Vec<UserProperty>,
        /// Whether filters may have wildcards; absent is yes.
        WildcardSubscriptionAvailable => wildcard_subscription_available: Option<bool>,
        /// Whether subscriptions may have identifiers; absent is yes.
        SubscriptionIdentifierAvailable => subscription_identifiers_available: Option<bool>,
        /// Whether subscriptions may be shared; absent is yes.
        SharedSubscriptionAvailable => shared_subscription_available: Option<bool>,
        /// Seconds that replace the client's keep alive.
        ServerKeepAlive => server_keep_alive: Option<u16>,
        /// Where response topics should begin.
        ResponseInformation => response_information: Option<Utf8>,
        /// Another server to use.
        ServerReference => server_reference: Option<Utf8>,
        /// The method of CONNECT.
        AuthenticationMethod => authentication_method: Option<Utf8>,
        /// What the method asks for.
        AuthenticationData => authentication_data: Option<Secret>,
    }
}

impl ConnAck {
    /// A refusal without properties.
    pub fn refusal(reason: ReasonCode) -> Self {
        Self {
            reason,
            ..Self::default()
        }
    }

    pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let flags = from.u8("the acknowledge flags")?;
        if flags & !SESSION_PRESENT != 0 {
            return Err(DecodeError::Flags {
                packet: PacketType::ConnAck,
                field: "the acknowledge flags",
                value: flags,
                problem: "bits 7 to 1 are reserved",
            });
        }
        let session_present = flags != 0;
        let (reason, properties) = match version {
            Version::V311 => {
                let value = from.u8("the return code")?;
                let code = ConnectReturnCode::from_u8(value).ok_or(DecodeError::ReasonCode {
                    packet: PacketType::ConnAck,
                    value,
                })?;
                (code.into(), ConnAckProperties::default())
            }
            Version::V5 => (read_reason(from)?, ConnAckProperties::read(from)?),
        };
        if session_present && reason.is_error() {
            return Err(DecodeError::SessionPresentOnRefusal);
        }
        Ok(Self {
            session_present,
            reason,
            properties,
        })
    }

    /// The byte of the code in `version`.
    fn code(&self, version: Version) -> Result<u8, EncodeError> {
        match version {
            Version::V5 => {
                check_reason(self.reason, PacketType::ConnAck).map(|()| self.reason.as_u8())
            }
            Version::V311 => match self.reason.connect_return_code() {
                Some(code) => Ok(code.as_u8()),
                None => Err(EncodeError::ReasonCode {
                    packet: PacketType::ConnAck,
                    code: self.reason,
                }),
            },
        }
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        self.code(version)?;
        if self.session_present && self.reason.is_error() {
            return Err(EncodeError::SessionPresentOnRefusal);
        }
        match version {
            Version::V311 => Ok(2),
            Version::V5 => Ok(2 + self.properties.size()?),
        }
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        out.put_u8(if self.session_present {
            SESSION_PRESENT
        } else {
            0
        });
        // `size` has refused what has no code.
        out.put_u8(
            self.code(version)
                .unwrap_or(ReasonCode::UnspecifiedError.as_u8()),
        );
        if version == Version::V5 {
            self.properties.write(out);
        }
    }
}
