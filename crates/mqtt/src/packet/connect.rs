//! CONNECT: the first packet of a client (section 3.1).

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::PacketType,
    property::{PayloadFormat, UserProperty, binary_size, properties, put_binary, utf8_size},
    qos::QoS,
    reader::Reader,
    secret::Secret,
    topic::TopicName,
    utf8::Utf8,
    version::Version,
};

const PROTOCOL_NAME: &[u8] = b"MQTT";

const USER_NAME: u8 = 0b1000_0000;
const PASSWORD: u8 = 0b0100_0000;
const WILL_RETAIN: u8 = 0b0010_0000;
const WILL_QOS_SHIFT: u8 = 3;
const WILL_QOS: u8 = 0b11 << WILL_QOS_SHIFT;
const WILL: u8 = 0b0000_0100;
const CLEAN_START: u8 = 0b0000_0010;
const RESERVED: u8 = 0b0000_0001;

/// The client asks for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The version of everything that follows on this connection.
    pub version: Version,
    /// May be empty: in MQTT 5 the server assigns one, in 3.1.1 it needs `clean_start`.
    pub client_id: Utf8,
    /// Forget an earlier session ("clean session" in 3.1.1, where it also ends with the connection).
    pub clean_start: bool,
    /// Seconds between two packets at most; 0 for no limit.
    pub keep_alive: u16,
    /// Who the client says it is.
    pub username: Option<Utf8>,
    /// Does not print. In 3.1.1 only with a user name.
    pub password: Option<Secret>,
    /// What to publish when the client goes without a word.
    pub will: Option<Will>,
    /// Empty in 3.1.1.
    pub properties: ConnectProperties,
}

/// A message for the time after its sender (section 3.1.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Quality of service to publish it with.
    pub qos: QoS,
    /// Whether it will be retained.
    pub retain: bool,
    /// Where it goes.
    pub topic: TopicName,
    /// At most 65,535 bytes.
    pub payload: Bytes,
    /// Empty in 3.1.1.
    pub properties: WillProperties,
}

properties! {
    /// The properties of CONNECT (section 3.1.2.11).
    ConnectProperties of "CONNECT" {
        /// Seconds the session outlives the connection; `u32::MAX` for ever, absent is 0.
        SessionExpiryInterval => session_expiry_interval: Option<u32>,
        /// QoS 1 and 2 messages the client takes unacknowledged; absent is 65,535.
        ReceiveMaximum => receive_maximum: Option<NonZeroU16>,
        /// Bytes of the largest packet the client takes; absent is no limit.
        MaximumPacketSize => maximum_packet_size: Option<NonZeroU32>,
        /// Highest topic alias the client takes; absent is 0, none.
        TopicAliasMaximum => topic_alias_maximum: Option<u16>,
        /// Whether CONNACK may bring response information; absent is no.
        RequestResponseInformation => request_response_information: Option<bool>,
        /// Whether packets other than PUBLISH, CONNACK and DISCONNECT may bring reason strings and user
        /// properties; absent is yes.
        RequestProblemInformation => request_problem_information: Option<bool>,
        /// For the application.
        UserProperty => user_properties: Vec<UserProperty>,
        /// Name of an enhanced authentication.
        AuthenticationMethod => authentication_method: Option<Utf8>,
        /// What the method asks for; only with a method.
        AuthenticationData => authentication_data: Option<Secret>,
    }
}

properties! {
    /// The properties of a will (section 3.1.3.2).
    WillProperties of "the will of CONNECT" {
        /// Seconds to wait whether the client comes back; absent is 0.
        WillDelayInterval => will_delay_interval: Option<u32>,
        /// What the payload is.
        PayloadFormatIndicator => payload_format: Option<PayloadFormat>,
        /// Seconds until nobody wants the message any more.
        MessageExpiryInterval => message_expiry_interval: Option<u32>,
        /// For example a MIME type.
        ContentType => content_type: Option<Utf8>,
        /// Where an answer goes.
        ResponseTopic => response_topic: Option<TopicName>,
        /// Which request an answer belongs to.
        CorrelationData => correlation_data: Option<Bytes>,
        /// For the application, in order.
        UserProperty => user_properties: Vec<UserProperty>,
    }
}

impl Connect {
    /// A clean start with no keep alive, no credentials and no will.
    pub fn new(version: Version, client_id: impl Into<Utf8>) -> Self {
        Self {
            version,
            client_id: client_id.into(),
            clean_start: true,
            keep_alive: 0,
            username: None,
            password: None,
            will: None,
            properties: ConnectProperties::default(),
        }
    }

    /// Reads the protocol name and level. What follows depends on them.
    pub(crate) fn read_version(from: &mut Reader) -> Result<Version, DecodeError> {
        let name = from.binary("the protocol name")?;
        if name != PROTOCOL_NAME {
            return Err(DecodeError::ProtocolName);
        }
        let level = from.u8("the protocol level")?;
        Version::from_level(level).ok_or(DecodeError::UnsupportedVersion { level })
    }

    /// Reads what follows the protocol level.
    pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let flags = from.u8("the connect flags")?;
        check_flags(flags, version)?;
        let keep_alive = from.u16("the keep alive")?;
        let properties = match version {
            Version::V311 => ConnectProperties::default(),
            Version::V5 => ConnectProperties::read(from)?,
        };
        if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
            return Err(DecodeError::AuthenticationMethodMissing {
                packet: PacketType::Connect,
            });
        }
        let clean_start = flags & CLEAN_START != 0;
        let client_id = from.utf8("the client identifier")?;
        if version == Version::V311 && client_id.is_empty() && !clean_start {
            return Err(DecodeError::ClientIdMissing);
        }
        let will = match flags & WILL {
            0 => None,
            _ => Some(Will::read(from, flags, version)?),
        };
        let username = match flags & USER_NAME {
            0 => None,
            _ => Some(from.utf8("the user name")?),
        };
        let password = match flags & PASSWORD {
            0 => None,
            _ => Some(from.binary("the password")?.into()),
        };
        Ok(Self {
            version,
            client_id,
            clean_start,
            keep_alive,
            username,
            password,
            will,
            properties,
        })
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if version != self.version {
            return Err(EncodeError::Version {
                connect: self.version,
                asked: version,
            });
        }
        let mut size = 2 + PROTOCOL_NAME.len() + 1 + 1 + 2;
        match version {
            Version::V5 => {
                let auth = &self.properties;
                if auth.authentication_data.is_some() && auth.authentication_method.is_none() {
                    return Err(EncodeError::AuthenticationMethodMissing {
                        packet: PacketType::Connect,
                    });
                }
                size += self.properties.size()?;
            }
            Version::V311 => {
                if self.client_id.is_empty() && !self.clean_start {
                    return Err(EncodeError::ClientIdMissing);
                }
                if self.password.is_some() && self.username.is_none() {
                    return Err(EncodeError::NotInV311 {
                        packet: PacketType::Connect,
                        what: "a password without a user name",
                    });
                }
            }
        }
        size += utf8_size(&self.client_id, "the client identifier")?;
        if let Some(will) = &self.will {
            size += will.size(version)?;
        }
        if let Some(username) = &self.username {
            size += utf8_size(username, "the user name")?;
        }
        if let Some(password) = &self.password {
            size += binary_size(password, "the password")?;
        }
        Ok(size)
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        put_binary(PROTOCOL_NAME, out);
        out.put_u8(version.level());
        out.put_u8(self.flags());
        out.put_u16(self.keep_alive);
        if version == Version::V5 {
            self.properties.write(out);
        }
        put_binary(self.client_id.as_bytes(), out);
        if let Some(will) = &self.will {
            will.write(version, out);
        }
        if let Some(username) = &self.username {
            put_binary(username.as_bytes(), out);
        }
        if let Some(password) = &self.password {
            put_binary(password, out);
        }
    }

    fn flags(&self) -> u8 {
        let when = |set: bool, bit: u8| if set { bit } else { 0 };
        let will = self.will.as_ref().map_or(0, |will| {
            WILL | will.qos.as_u8() << WILL_QOS_SHIFT | when(will.retain, WILL_RETAIN)
        });
        will | when(self.username.is_some(), USER_NAME)
            | when(self.password.is_some(), PASSWORD)
            | when(self.clean_start, CLEAN_START)
    }
}

fn check_flags(flags: u8, version: Version) -> Result<(), DecodeError> {
    let refuse = |problem| {
        Err(DecodeError::Flags {
            packet: PacketType::Connect,
            field: "the connect flags",
            value: flags,
            problem,
        })
    };
    if flags & RESERVED != 0 {
        return refuse("bit 0 is reserved");
    }
    if flags & WILL == 0 && flags & WILL_QOS != 0 {
        return refuse("a will QoS without a will");
    }
    if flags & WILL == 0 && flags & WILL_RETAIN != 0 {
        return refuse("will retain without a will");
    }
    if version == Version::V311 && flags & PASSWORD != 0 && flags & USER_NAME == 0 {
        return refuse("a password without a user name");
    }
    Ok(())
}

impl Will {
    fn read(from: &mut Reader, flags: u8, version: Version) -> Result<Self, DecodeError> {
        let qos = QoS::from_u8((flags & WILL_QOS) >> WILL_QOS_SHIFT).ok_or(DecodeError::QoS {
            packet: PacketType::Connect,
            field: "the will QoS",
        })?;
        let properties = match version {
            Version::V311 => WillProperties::default(),
            Version::V5 => WillProperties::read(from)?,
        };
        Ok(Self {
            qos,
            retain: flags & WILL_RETAIN != 0,
            properties,
            topic: from.topic_name("the will topic")?,
            payload: from.binary("the will payload")?,
        })
    }

    fn size(&self, version: Version) -> Result<usize, EncodeError> {
        let properties = match version {
            Version::V311 => 0,
            Version::V5 => self.properties.size()?,
        };
        Ok(properties
            + utf8_size(self.topic.as_utf8(), "the will topic")?
            + binary_size(&self.payload, "the will payload")?)
    }

    fn write(&self, version: Version, out: &mut BytesMut) {
        if version == Version::V5 {
            self.properties.write(out);
        }
        put_binary(self.topic.as_bytes(), out);
        put_binary(&self.payload, out);
    }
}
