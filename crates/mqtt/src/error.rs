//! What was wrong with a packet, and what to tell the sender.

use crate::{
    packet::PacketType, property::Property, reason::ReasonCode, topic::TopicError, utf8::Utf8Error,
    version::Version,
};

/// Bytes that are no MQTT packet, or a packet the sender may not send.
///
/// The connection cannot go on: after one of these nobody knows where the next packet begins. MQTT 5
/// asks to say why ([`reason`](Self::reason)) and close `[MQTT-4.13.1-1]`; 3.1.1 to close
/// (`v3.1.1` `[MQTT-4.8.0-1]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Packet type 0 (section 2.1.2), or 15 in 3.1.1 (`v3.1.1` section 2.2.1).
    #[error("packet type {value} is reserved in {version}", version = NameOf(.version))]
    ReservedPacketType {
        /// The four bits.
        value: u8,
        /// The version of the connection, once known.
        version: Option<Version>,
    },
    /// The low four bits of the first byte are fixed except in PUBLISH `[MQTT-2.1.3-1]`,
    /// `[MQTT-3.6.1-1]`, `[MQTT-3.8.1-1]`, `[MQTT-3.10.1-1]`, `[MQTT-3.14.1-1]`, `[MQTT-3.15.1-1]`
    /// (`v3.1.1` `[MQTT-2.2.2-1]`, `[MQTT-2.2.2-2]`).
    #[error("{packet} has the fixed header flags {flags:04b}, must be {expected:04b}")]
    FixedHeaderFlags {
        /// The packet.
        packet: PacketType,
        /// What came.
        flags: u8,
        /// What must come.
        expected: u8,
    },
    /// A variable byte integer takes at most four bytes (section 1.5.5).
    #[error("{packet}: {field} is a variable byte integer of more than four bytes")]
    OverlongVarint {
        /// The packet.
        packet: PacketType,
        /// The field.
        field: &'static str,
    },
    /// A variable byte integer takes as few bytes as possible `[MQTT-1.5.5-1]`; not asked for in 3.1.1,
    /// where some senders pad the remaining length to a fixed width.
    #[error("{packet}: {field} is a variable byte integer that fewer bytes could say")]
    PaddedVarint {
        /// The packet.
        packet: PacketType,
        /// The field.
        field: &'static str,
    },
    /// More than the receiver takes (section 3.1.2.11.4, 3.2.2.3.6).
    #[error(
        "{packet} has {size} bytes, the limit is {limit}; raise the maximum packet size or send less"
    )]
    PacketTooLarge {
        /// The packet.
        packet: PacketType,
        /// Bytes of the whole packet, fixed header included.
        size: u32,
        /// The limit in bytes.
        limit: u32,
    },
    /// The packet type has one possible length and this is another (for example section 3.12.1).
    #[error("{packet} has a remaining length of {length}, must be {expected}")]
    RemainingLength {
        /// The packet.
        packet: PacketType,
        /// What came.
        length: u32,
        /// What must come.
        expected: u32,
    },
    /// The packet, or the property block the field stands in, ends before the field does.
    #[error("{packet} ends within {field}")]
    Truncated {
        /// The packet.
        packet: PacketType,
        /// The field.
        field: &'static str,
    },
    /// The packet goes on after its last field.
    #[error("{packet} has {extra} bytes after its last field")]
    TrailingBytes {
        /// The packet.
        packet: PacketType,
        /// How many.
        extra: usize,
    },
    /// Not from this side, or not now: `[MQTT-3.1.0-1]`, `[MQTT-3.1.0-2]`, `[MQTT-3.2.0-1]`,
    /// `[MQTT-3.2.0-2]`, and the direction of flow in Table 2-1.
    #[error("{packet} is not allowed here; {expected}")]
    UnexpectedPacket {
        /// The packet.
        packet: PacketType,
        /// What is.
        expected: &'static str,
    },
    /// Bytes of [`Publish::kept`](crate::Publish::kept), never of a connection: written by a later
    /// release, or no kept message at all.
    #[error(
        "a kept PUBLISH has the form {form}, this release reads 1; use the release that wrote it"
    )]
    KeptForm {
        /// The first byte.
        form: u8,
    },
    /// CONNECT does not begin with `MQTT` `[MQTT-3.1.2-1]`.
    #[error("CONNECT: the protocol name is not \"MQTT\"")]
    ProtocolName,
    /// CONNECT asks for a level other than 4 and 5 `[MQTT-3.1.2-2]`.
    #[error("CONNECT: protocol level {level} is not supported, use 4 (MQTT 3.1.1) or 5 (MQTT 5)")]
    UnsupportedVersion {
        /// The byte.
        level: u8,
    },
    /// Flags that are reserved or contradict each other: CONNECT `[MQTT-3.1.2-3]`, `[MQTT-3.1.2-11]`,
    /// `[MQTT-3.1.2-13]` and, `v3.1.1`, `[MQTT-3.1.2-22]`; CONNACK `[MQTT-3.2.2-1]`; SUBSCRIBE
    /// `[MQTT-3.8.3-5]`.
    #[error("{packet}: {field} {value:08b}: {problem}")]
    Flags {
        /// The packet.
        packet: PacketType,
        /// The byte's name.
        field: &'static str,
        /// The byte.
        value: u8,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Quality of service 3: PUBLISH `[MQTT-3.3.1-4]`, will `[MQTT-3.1.2-12]`.
    #[error("{packet}: {field} is 3, must be 0, 1 or 2")]
    QoS {
        /// The packet.
        packet: PacketType,
        /// The field.
        field: &'static str,
    },
    /// Quality of service 3 in a subscription (section 3.8.3.1; `v3.1.1` `[MQTT-3.8.3-4]`).
    #[error("SUBSCRIBE: the maximum QoS of a subscription is 3, must be 0, 1 or 2")]
    SubscriptionQoS,
    /// Retain handling 3 (section 3.8.3.1).
    #[error("SUBSCRIBE: the retain handling of a subscription is 3, must be 0, 1 or 2")]
    RetainHandling,
    /// No local on a shared subscription `[MQTT-3.8.3-4]`.
    #[error("SUBSCRIBE: a shared subscription asks for no local")]
    NoLocalOnShared,
    /// A first transmission cannot be a duplicate `[MQTT-3.3.1-2]`.
    #[error("PUBLISH with QoS 0 is marked as duplicate")]
    DuplicateAtMostOnce,
    /// Packet identifiers are not 0 `[MQTT-2.2.1-3]`, `[MQTT-2.2.1-4]` (`v3.1.1` `[MQTT-2.3.1-1]`).
    #[error("{packet}: the packet identifier is 0")]
    PacketIdZero {
        /// The packet.
        packet: PacketType,
    },
    /// A string that is none `[MQTT-1.5.4-1]`, `[MQTT-1.5.4-2]`.
    #[error("{packet}: {field} {problem}")]
    Utf8 {
        /// The packet.
        packet: PacketType,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        problem: Utf8Error,
    },
    /// A topic name or topic filter that is none: see [`TopicError`] for the statements.
    #[error("{packet}: {field} {problem}")]
    Topic {
        /// The packet.
        packet: PacketType,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        problem: TopicError,
    },
    /// MQTT 5 allows an empty topic only with a topic alias (section 3.3.2.1).
    #[error("PUBLISH has neither a topic name nor a topic alias")]
    TopicMissing,
    /// 3.1.1: an empty client identifier needs a clean session (`v3.1.1` `[MQTT-3.1.3-8]`).
    #[error("CONNECT has an empty client identifier, which in MQTT 3.1.1 needs a clean session")]
    ClientIdMissing,
    /// SUBSCRIBE `[MQTT-3.8.3-2]`, UNSUBSCRIBE `[MQTT-3.10.3-2]`, and their acknowledgements, which answer
    /// each entry `[MQTT-3.8.4-6]`, `[MQTT-3.11.3-1]`.
    #[error("{packet} has no entry, must have at least one")]
    NoEntries {
        /// The packet.
        packet: PacketType,
    },
    /// An identifier that is no property (section 2.2.2.2).
    #[error("{place}: property identifier {id} does not exist")]
    UnknownProperty {
        /// The packet, or its will.
        place: &'static str,
        /// The identifier.
        id: u32,
    },
    /// A property of other packets (section 2.2.2.2, Table 2-4).
    #[error("{place} does not have the property {property}")]
    PropertyNotAllowed {
        /// The packet, or its will.
        place: &'static str,
        /// The property.
        property: Property,
    },
    /// A property only the other side sends: a client sends no subscription identifier in PUBLISH
    /// `[MQTT-3.3.4-6]`, a server no session expiry interval in DISCONNECT `[MQTT-3.14.2-2]`.
    #[error("{place} from this side does not have the property {property}")]
    PropertyFromWrongSide {
        /// The packet.
        place: &'static str,
        /// The property.
        property: Property,
    },
    /// All but user property, and subscription identifier in PUBLISH, come at most once (section 2.2.2.2
    /// and each property's own).
    #[error("{place} has the property {property} twice")]
    DuplicateProperty {
        /// The packet, or its will.
        place: &'static str,
        /// The property.
        property: Property,
    },
    /// The value is not one the property can have; its section in the specification lists them.
    #[error("{packet}: the property {property} has the value {value}, must be {allowed}")]
    PropertyValue {
        /// The packet.
        packet: PacketType,
        /// The property.
        property: Property,
        /// What came.
        value: u32,
        /// What may come.
        allowed: &'static str,
    },
    /// CONNECT with authentication data but no method (section 3.1.2.11.10), or AUTH with properties but
    /// no method (section 3.15.2.2.2).
    #[error("{packet} has no authentication method")]
    AuthenticationMethodMissing {
        /// The packet.
        packet: PacketType,
    },
    /// A code this packet does not carry, or not from this side: `[MQTT-3.2.2-8]`, `[MQTT-3.4.2-1]`,
    /// `[MQTT-3.5.2-1]`, `[MQTT-3.6.2-1]`, `[MQTT-3.7.2-1]`, `[MQTT-3.9.3-2]`, `[MQTT-3.11.3-2]`,
    /// `[MQTT-3.14.2-1]`, `[MQTT-3.15.2-1]` (`v3.1.1`: return codes, section 3.2.2.3 and
    /// `[MQTT-3.9.3-2]`).
    #[error("{packet}: 0x{value:02X} is not one of its reason codes")]
    ReasonCode {
        /// The packet.
        packet: PacketType,
        /// The byte.
        value: u8,
    },
    /// A refused connection has no session `[MQTT-3.2.2-6]` (`v3.1.1` `[MQTT-3.2.2-4]`).
    #[error("CONNACK: session present on a refused connection")]
    SessionPresentOnRefusal,
}

/// Prints the version of a connection that may not have one yet.
struct NameOf<'a>(&'a Option<Version>);

impl std::fmt::Display for NameOf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(version) => version.fmt(f),
            None => f.write_str("every version of MQTT"),
        }
    }
}

impl DecodeError {
    /// What to answer with, in the CONNACK before the connection is accepted, in DISCONNECT after
    /// (section 4.13). To a 3.1.1 client say
    /// [`reason().connect_return_code()`](ReasonCode::connect_return_code) in the CONNACK, or close.
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::ReservedPacketType { .. }
            | Self::FixedHeaderFlags { .. }
            | Self::OverlongVarint { .. }
            | Self::PaddedVarint { .. }
            | Self::RemainingLength { .. }
            | Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::KeptForm { .. }
            | Self::Flags { .. }
            | Self::QoS { .. }
            | Self::DuplicateAtMostOnce
            | Self::Utf8 { .. }
            | Self::Topic { .. }
            | Self::UnknownProperty { .. }
            | Self::PropertyNotAllowed { .. } => ReasonCode::MalformedPacket,
            Self::UnexpectedPacket { .. }
            | Self::SubscriptionQoS
            | Self::RetainHandling
            | Self::NoLocalOnShared
            | Self::PacketIdZero { .. }
            | Self::TopicMissing
            | Self::NoEntries { .. }
            | Self::DuplicateProperty { .. }
            | Self::PropertyFromWrongSide { .. }
            | Self::AuthenticationMethodMissing { .. }
            | Self::ReasonCode { .. }
            | Self::SessionPresentOnRefusal => ReasonCode::ProtocolError,
            Self::PropertyValue {
                property: Property::TopicAlias,
                ..
            } => ReasonCode::TopicAliasInvalid,
            Self::PropertyValue { .. } => ReasonCode::ProtocolError,
            Self::PacketTooLarge { .. } => ReasonCode::PacketTooLarge,
            Self::ProtocolName | Self::UnsupportedVersion { .. } => {
                ReasonCode::UnsupportedProtocolVersion
            }
            Self::ClientIdMissing => ReasonCode::ClientIdentifierNotValid,
        }
    }
}

/// A packet that cannot be said on the wire. The output buffer is as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A string with U+0000 or more than 65,535 bytes `[MQTT-1.5.4-2]`.
    #[error("{field} {problem}")]
    Utf8 {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        problem: Utf8Error,
    },
    /// Binary data is at most 65,535 bytes (section 1.5.6).
    #[error("{field} has {len} bytes, at most 65535 can be sent")]
    BinaryTooLong {
        /// The field.
        field: &'static str,
        /// Length in bytes.
        len: usize,
    },
    /// The remaining length is at most 268,435,455 bytes (section 2.1.4).
    #[error("{packet} has {len} bytes after the fixed header, at most 268435455 can be sent")]
    PacketTooLarge {
        /// The packet.
        packet: PacketType,
        /// Length in bytes.
        len: usize,
    },
    /// The topic of a PUBLISH is no topic name.
    #[error("the topic {problem}")]
    Topic {
        /// What is wrong with it.
        #[source]
        problem: TopicError,
    },
    /// QoS 1 and 2 need a packet identifier, QoS 0 has none `[MQTT-2.2.1-2]`, `[MQTT-2.2.1-4]`.
    #[error("PUBLISH needs a packet identifier exactly when its QoS is 1 or 2")]
    PacketId,
    /// A first transmission cannot be a duplicate `[MQTT-3.3.1-2]`.
    #[error("PUBLISH with QoS 0 is marked as duplicate")]
    DuplicateAtMostOnce,
    /// See [`DecodeError::NoEntries`].
    #[error("{packet} has no entry, must have at least one")]
    NoEntries {
        /// The packet.
        packet: PacketType,
    },
    /// A code this packet does not carry.
    #[error("{packet} cannot say {code}")]
    ReasonCode {
        /// The packet.
        packet: PacketType,
        /// The code.
        code: ReasonCode,
    },
    /// A property value that the property cannot have.
    #[error("the property {property} cannot have this value")]
    PropertyValue {
        /// The property.
        property: Property,
    },
    /// MQTT 3.1.1 has no way to say this.
    #[error("{packet}: MQTT 3.1.1 has no way to say {what}")]
    NotInV311 {
        /// The packet.
        packet: PacketType,
        /// What cannot be said.
        what: &'static str,
    },
    /// See [`DecodeError::SessionPresentOnRefusal`].
    #[error("CONNACK: session present on a refused connection")]
    SessionPresentOnRefusal,
    /// See [`DecodeError::NoLocalOnShared`].
    #[error("SUBSCRIBE: a shared subscription asks for no local")]
    NoLocalOnShared,
    /// See [`DecodeError::AuthenticationMethodMissing`].
    #[error("{packet} has no authentication method")]
    AuthenticationMethodMissing {
        /// The packet.
        packet: PacketType,
    },
    /// The CONNECT is of another version than the one to encode for.
    #[error("CONNECT of {connect} cannot be encoded as {asked}")]
    Version {
        /// The version in the packet.
        connect: Version,
        /// The version asked for.
        asked: Version,
    },
    /// See [`DecodeError::ClientIdMissing`].
    #[error("CONNECT has an empty client identifier, which in MQTT 3.1.1 needs a clean session")]
    ClientIdMissing,
}
