//! SUBSCRIBE and SUBACK: the client asks for messages (sections 3.8 and 3.9).

use bytes::{BufMut, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    packet::{PacketType, check_reason, read_reason},
    packet_id::PacketId,
    property::{SubscriptionId, UserProperty, properties, put_binary, utf8_size},
    qos::QoS,
    reader::Reader,
    reason::ReasonCode,
    topic::TopicFilter,
    utf8::Utf8,
    version::Version,
};

const QOS: u8 = 0b0000_0011;
const NO_LOCAL: u8 = 0b0000_0100;
const RETAIN_AS_PUBLISHED: u8 = 0b0000_1000;
const RETAIN_HANDLING_SHIFT: u8 = 4;
const RETAIN_HANDLING: u8 = 0b11 << RETAIN_HANDLING_SHIFT;
const RESERVED: u8 = 0b1100_0000;

/// The client asks for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// For the SUBACK.
    pub packet_id: PacketId,
    /// At least one.
    pub subscriptions: Vec<Subscription>,
    /// Empty in 3.1.1.
    pub properties: SubscribeProperties,
}

properties! {
    /// The properties of SUBSCRIBE (section 3.8.2.1).
    SubscribeProperties of "SUBSCRIBE" {
        /// Comes back with each message that matches one of these subscriptions.
        SubscriptionIdentifier => subscription_id: Option<SubscriptionId>,
        /// For the application.
        UserProperty => user_properties: Vec<UserProperty>,
    }
}

/// One entry of SUBSCRIBE: a filter and its options (section 3.8.3.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subscription {
    /// Which topics.
    pub filter: TopicFilter,
    /// The highest quality wanted.
    pub qos: QoS,
    /// Not what this client published itself; never on a shared subscription. MQTT 5.
    pub no_local: bool,
    /// Leave the retain flag of a message as it is. MQTT 5.
    pub retain_as_published: bool,
    /// When retained messages are sent. MQTT 5.
    pub retain_handling: RetainHandling,
}

/// When a subscription brings retained messages (section 3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum RetainHandling {
    /// With every SUBSCRIBE, as in 3.1.1.
    #[default]
    AtSubscribe = 0,
    /// Only if the subscription did not exist.
    AtNewSubscription = 1,
    /// Never.
    Never = 2,
}

impl RetainHandling {
    const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::AtSubscribe),
            1 => Some(Self::AtNewSubscription),
            2 => Some(Self::Never),
            _ => None,
        }
    }
}

impl Subscription {
    /// With the options that 3.1.1 has.
    pub fn new(filter: TopicFilter, qos: QoS) -> Self {
        Self {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::AtSubscribe,
        }
    }

    fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let filter = from.topic_filter()?;
        let options = from.u8("the subscription options")?;
        let reserved = match version {
            Version::V311 => !QOS,
            Version::V5 => RESERVED,
        };
        if options & reserved != 0 {
            return Err(DecodeError::Flags {
                packet: PacketType::Subscribe,
                field: "the subscription options",
                value: options,
                problem: match version {
                    Version::V311 => "bits 7 to 2 are reserved",
                    Version::V5 => "bits 7 and 6 are reserved",
                },
            });
        }
        let qos = QoS::from_u8(options & QOS).ok_or(DecodeError::SubscriptionQoS)?;
        let no_local = options & NO_LOCAL != 0;
        if no_local && filter.is_shared() {
            return Err(DecodeError::NoLocalOnShared);
        }
        let retain_handling =
            RetainHandling::from_u8((options & RETAIN_HANDLING) >> RETAIN_HANDLING_SHIFT)
                .ok_or(DecodeError::RetainHandling)?;
        Ok(Self {
            filter,
            qos,
            no_local,
            retain_as_published: options & RETAIN_AS_PUBLISHED != 0,
            retain_handling,
        })
    }

    fn options(&self) -> u8 {
        self.qos.as_u8()
            | if self.no_local { NO_LOCAL } else { 0 }
            | if self.retain_as_published {
                RETAIN_AS_PUBLISHED
            } else {
                0
            }
            | (self.retain_handling as u8) << RETAIN_HANDLING_SHIFT
    }

    fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if self.no_local && self.filter.is_shared() {
            return Err(EncodeError::NoLocalOnShared);
        }
        if version == Version::V311 && self.options() & !QOS != 0 {
            return Err(EncodeError::NotInV311 {
                packet: PacketType::Subscribe,
                what: "subscription options other than the QoS",
            });
        }
        Ok(utf8_size(self.filter.as_utf8(), "a topic filter")? + 1)
    }
}

impl Subscribe {
    pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let packet_id = from.packet_id()?;
        let properties = match version {
            Version::V311 => SubscribeProperties::default(),
            Version::V5 => SubscribeProperties::read(from)?,
        };
        if from.remaining() == 0 {
            return Err(DecodeError::NoEntries {
                packet: PacketType::Subscribe,
            });
        }
        let mut subscriptions = Vec::with_capacity(1);
        while from.remaining() > 0 {
            subscriptions.push(Subscription::read(from, version)?);
        }
        Ok(Self {
            packet_id,
            subscriptions,
            properties,
        })
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if self.subscriptions.is_empty() {
            return Err(EncodeError::NoEntries {
                packet: PacketType::Subscribe,
            });
        }
        let mut size = 2;
        if version == Version::V5 {
            size += self.properties.size()?;
        }
        self.subscriptions
            .iter()
            .try_fold(size, |sum, entry| Ok(sum + entry.size(version)?))
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        out.put_u16(self.packet_id.get());
        if version == Version::V5 {
            self.properties.write(out);
        }
        for subscription in &self.subscriptions {
            put_binary(subscription.filter.as_utf8().as_bytes(), out);
            out.put_u8(subscription.options());
        }
    }
}

/// Answer to SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// Of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// One for each subscription, in their order. 3.1.1 says every error as 0x80.
    pub reasons: Vec<ReasonCode>,
    /// Empty in 3.1.1.
    pub properties: SubAckProperties,
}

properties! {
    /// The properties of SUBACK (section 3.9.2.1).
    SubAckProperties of "SUBACK" {
        /// For a person who reads the log.
        ReasonString => reason_string: Option<Utf8>,
        /// For diagnosis.
        UserProperty => user_properties: Vec<UserProperty>,
    }
}

impl SubAck {
    pub(crate) fn read(from: &mut Reader, version: Version) -> Result<Self, DecodeError> {
        let packet_id = from.packet_id()?;
        let properties = match version {
            Version::V311 => SubAckProperties::default(),
            Version::V5 => SubAckProperties::read(from)?,
        };
        if from.remaining() == 0 {
            return Err(DecodeError::NoEntries {
                packet: PacketType::SubAck,
            });
        }
        let mut reasons = Vec::with_capacity(1);
        while from.remaining() > 0 {
            let reason = read_reason(from)?;
            // The one failure of 3.1.1 is 0x80 (`v3.1.1` [MQTT-3.9.3-2]).
            let known_to_v311 = !reason.is_error() || reason == ReasonCode::UnspecifiedError;
            if version == Version::V311 && !known_to_v311 {
                let value = reason.as_u8();
                return Err(DecodeError::ReasonCode {
                    packet: PacketType::SubAck,
                    value,
                });
            }
            reasons.push(reason);
        }
        Ok(Self {
            packet_id,
            reasons,
            properties,
        })
    }

    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        if self.reasons.is_empty() {
            return Err(EncodeError::NoEntries {
                packet: PacketType::SubAck,
            });
        }
        for &reason in &self.reasons {
            check_reason(reason, PacketType::SubAck)?;
        }
        let size = 2 + self.reasons.len();
        match version {
            Version::V311 => Ok(size),
            Version::V5 => Ok(size + self.properties.size()?),
        }
    }

    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        out.put_u16(self.packet_id.get());
        if version == Version::V5 {
            self.properties.write(out);
        }
        for reason in &self.reasons {
            out.put_u8(match version {
                Version::V311 if reason.is_error() => ReasonCode::UnspecifiedError.as_u8(),
                _ => reason.as_u8(),
            });
        }
    }
}
