//! The properties of MQTT 5 (section 2.2.2): their identifiers, their values, and the one place that
//! reads and writes a property block.
//!
//! Each packet declares its own struct with [`properties!`](crate::property::properties): the list of
//! fields is at once the list of what the packet may carry, so "not allowed here" and "twice" need no
//! second table. A generic map of properties was refused: every reader would check types and presence
//! again.

use std::{fmt, num::NonZeroU16, num::NonZeroU32};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::{DecodeError, EncodeError},
    qos::QoS,
    reader::Reader,
    secret::Secret,
    topic::TopicName,
    utf8::Utf8,
    varint,
};

macro_rules! property_table {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $text:literal;)*) => {
        /// A property by its identifier (section 2.2.2.2, Table 2-4).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Property {
            $($(#[$doc])* $name = $id,)*
        }

        impl Property {
            /// Every property, in the order of its identifier.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The property of an identifier on the wire.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The name the specification gives it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

property_table! {
    /// PUBLISH, will.
    PayloadFormatIndicator = 0x01, "Payload Format Indicator";
    /// PUBLISH, will.
    MessageExpiryInterval = 0x02, "Message Expiry Interval";
    /// PUBLISH, will.
    ContentType = 0x03, "Content Type";
    /// PUBLISH, will.
    ResponseTopic = 0x08, "Response Topic";
    /// PUBLISH, will.
    CorrelationData = 0x09, "Correlation Data";
    /// PUBLISH, SUBSCRIBE.
    SubscriptionIdentifier = 0x0B, "Subscription Identifier";
    /// CONNECT, CONNACK, DISCONNECT.
    SessionExpiryInterval = 0x11, "Session Expiry Interval";
    /// CONNACK.
    AssignedClientIdentifier = 0x12, "Assigned Client Identifier";
    /// CONNACK.
    ServerKeepAlive = 0x13, "Server Keep Alive";
    /// CONNECT, CONNACK, AUTH.
    AuthenticationMethod = 0x15, "Authentication Method";
    /// CONNECT, CONNACK, AUTH.
    AuthenticationData = 0x16, "Authentication Data";
    /// CONNECT.
    RequestProblemInformation = 0x17, "Request Problem Information";
    /// Will.
    WillDelayInterval = 0x18, "Will Delay Interval";
    /// CONNECT.
    RequestResponseInformation = 0x19, "Request Response Information";
    /// CONNACK.
    ResponseInformation = 0x1A, "Response Information";
    /// CONNACK, DISCONNECT.
    ServerReference = 0x1C, "Server Reference";
    /// All acknowledgements, DISCONNECT, AUTH.
    ReasonString = 0x1F, "Reason String";
    /// CONNECT, CONNACK.
    ReceiveMaximum = 0x21, "Receive Maximum";
    /// CONNECT, CONNACK.
    TopicAliasMaximum = 0x22, "Topic Alias Maximum";
    /// PUBLISH.
    TopicAlias = 0x23, "Topic Alias";
    /// CONNACK.
    MaximumQoS = 0x24, "Maximum QoS";
    /// CONNACK.
    RetainAvailable = 0x25, "Retain Available";
    /// Every packet with properties, and the will.
    UserProperty = 0x26, "User Property";
    /// CONNECT, CONNACK.
    MaximumPacketSize = 0x27, "Maximum Packet Size";
    /// CONNACK.
    WildcardSubscriptionAvailable = 0x28, "Wildcard Subscription Available";
    /// CONNACK.
    SubscriptionIdentifierAvailable = 0x29, "Subscription Identifier Available";
    /// CONNACK.
    SharedSubscriptionAvailable = 0x2A, "Shared Subscription Available";
}

impl Property {
    /// The identifier on the wire.
    pub const fn id(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name and a value that mean something to the application (section 3.1.2.11.8). Names may repeat;
/// the order is kept `[MQTT-3.3.2-18]`.
pub type UserProperty = (Utf8, Utf8);

/// What a payload is, as its sender promises (section 3.3.2.3.2). Not checked here: the receiver may,
/// and answers [`PayloadFormatInvalid`](crate::ReasonCode::PayloadFormatInvalid).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PayloadFormat {
    /// Bytes; the same as not sending the property.
    Unspecified = 0,
    /// UTF-8 text.
    Utf8 = 1,
}

/// A number a client gives a subscription: 1 to 268,435,455 (section 3.8.2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(NonZeroU32);

impl SubscriptionId {
    /// The largest: 268,435,455.
    pub const MAX: u32 = varint::MAX;

    /// `None` for 0 and above [`MAX`](Self::MAX).
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(nonzero) if id <= Self::MAX => Some(Self(nonzero)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// The value of a property as it is written after its identifier.
pub(crate) trait Value: Sized {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError>;
    /// Bytes that [`write`](Self::write) will take; refuses what cannot be written.
    fn size(&self, property: Property) -> Result<usize, EncodeError>;
    fn write(&self, out: &mut BytesMut);
}

/// A field of a property struct: `Option` for at most once, `Vec` for any number of times.
pub(crate) trait Field {
    fn read(
        &mut self,
        place: &'static str,
        property: Property,
        from: &mut Reader,
    ) -> Result<(), DecodeError>;
    fn size(&self, property: Property) -> Result<usize, EncodeError>;
    fn write(&self, property: Property, out: &mut BytesMut);
}

impl<T: Value> Field for Option<T> {
    fn read(
        &mut self,
        place: &'static str,
        property: Property,
        from: &mut Reader,
    ) -> Result<(), DecodeError> {
        if self.is_some() {
            return Err(DecodeError::DuplicateProperty { place, property });
        }
        *self = Some(T::read(property, from)?);
        Ok(())
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        self.as_ref()
            .map_or(Ok(0), |value| Ok(1 + value.size(property)?))
    }

    fn write(&self, property: Property, out: &mut BytesMut) {
        if let Some(value) = self {
            out.put_u8(property.id());
            value.write(out);
        }
    }
}

impl<T: Value> Field for Vec<T> {
    fn read(
        &mut self,
        _place: &'static str,
        property: Property,
        from: &mut Reader,
    ) -> Result<(), DecodeError> {
        self.push(T::read(property, from)?);
        Ok(())
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        self.iter()
            .try_fold(0, |sum, value| Ok(sum + 1 + value.size(property)?))
    }

    fn write(&self, property: Property, out: &mut BytesMut) {
        for value in self {
            out.put_u8(property.id());
            value.write(out);
        }
    }
}

fn out_of_range(
    from: &Reader,
    property: Property,
    value: u32,
    allowed: &'static str,
) -> DecodeError {
    DecodeError::PropertyValue {
        packet: from.packet,
        property,
        value,
        allowed,
    }
}

impl Value for bool {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        match from.u8(property.name())? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(out_of_range(from, property, other.into(), "0 or 1")),
        }
    }

    fn size(&self, _: Property) -> Result<usize, EncodeError> {
        Ok(1)
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8((*self).into());
    }
}

impl Value for PayloadFormat {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        bool::read(property, from).map(|is_text| {
            if is_text {
                Self::Utf8
            } else {
                Self::Unspecified
            }
        })
    }

    fn size(&self, _: Property) -> Result<usize, EncodeError> {
        Ok(1)
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(*self as u8);
    }
}

/// The value of [`Property::MaximumQoS`], which cannot be 2: that is what leaving it out means.
impl Value for QoS {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        match from.u8(property.name())? {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            other => Err(out_of_range(from, property, other.into(), "0 or 1")),
        }
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        match self {
            Self::ExactlyOnce => Err(EncodeError::PropertyValue { property }),
            _ => Ok(1),
        }
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(self.as_u8());
    }
}

impl Value for u16 {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        from.u16(property.name())
    }

    fn size(&self, _: Property) -> Result<usize, EncodeError> {
        Ok(2)
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u16(*self);
    }
}

impl Value for NonZeroU16 {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        Self::new(from.u16(property.name())?)
            .ok_or_else(|| out_of_range(from, property, 0, "1 to 65535"))
    }

    fn size(&self, _: Property) -> Result<usize, EncodeError> {
        Ok(2)
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u16(self.get());
    }
}

impl Value for u32 {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        from.u32(property.name())
    }

    fn size(&self, _: Property) -> Result<usize, EncodeError> {
        Ok(4)
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u32(*self);
    }
}

impl Value for NonZeroU32 {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        Self::new(from.u32(property.name())?)
            .ok_or_else(|| out_of_range(from, property, 0, "1 to 4294967295"))
    }

    fn size(&self, _: Property) -> Result<usize, EncodeError> {
        Ok(4)
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u32(self.get());
    }
}

impl Value for SubscriptionId {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        Self::new(from.varint(property.name())?)
            .ok_or_else(|| out_of_range(from, property, 0, "1 to 268435455"))
    }

    fn size(&self, _: Property) -> Result<usize, EncodeError> {
        Ok(varint::len(self.get()))
    }

    fn write(&self, out: &mut BytesMut) {
        varint::write(self.get(), out);
    }
}

impl Value for Utf8 {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        from.utf8(property.name())
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        utf8_size(self, property.name())
    }

    fn write(&self, out: &mut BytesMut) {
        put_binary(self.as_bytes(), out);
    }
}

impl Value for TopicName {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        from.topic_name(property.name())
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        utf8_size(self.as_utf8(), property.name())
    }

    fn write(&self, out: &mut BytesMut) {
        put_binary(self.as_bytes(), out);
    }
}

impl Value for Bytes {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        from.binary(property.name())
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        binary_size(self, property.name())
    }

    fn write(&self, out: &mut BytesMut) {
        put_binary(self, out);
    }
}

impl Value for Secret {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        from.binary(property.name()).map(Self::from)
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        binary_size(self, property.name())
    }

    fn write(&self, out: &mut BytesMut) {
        put_binary(self, out);
    }
}

impl Value for UserProperty {
    fn read(property: Property, from: &mut Reader) -> Result<Self, DecodeError> {
        Ok((from.utf8(property.name())?, from.utf8(property.name())?))
    }

    fn size(&self, property: Property) -> Result<usize, EncodeError> {
        Ok(utf8_size(&self.0, property.name())? + utf8_size(&self.1, property.name())?)
    }

    fn write(&self, out: &mut BytesMut) {
        put_binary(self.0.as_bytes(), out);
        put_binary(self.1.as_bytes(), out);
    }
}

/// Bytes of a string with its length prefix.
pub(crate) fn utf8_size(text: &Utf8, field: &'static str) -> Result<usize, EncodeError> {
    text.check()
        .map_err(|problem| EncodeError::Utf8 { field, problem })?;
    Ok(2 + text.len())
}

/// Bytes of binary data with its length prefix.
pub(crate) fn binary_size(bytes: &[u8], field: &'static str) -> Result<usize, EncodeError> {
    match bytes.len() {
        len @ 0..=0xFFFF => Ok(2 + len),
        len => Err(EncodeError::BinaryTooLong { field, len }),
    }
}

/// Writes what [`utf8_size`] or [`binary_size`] let through.
pub(crate) fn put_binary(bytes: &[u8], out: &mut BytesMut) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}

/// Declares the properties one packet may carry, in the order they are written.
macro_rules! properties {
    (
        $(#[$doc:meta])*
        $name:ident of $place:literal {
            $($(#[$field_doc:meta])* $property:ident => $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $name {
            /// Where an error says a property stood.
            pub(crate) const PLACE: &'static str = $place;

            /// Reads the property length and the properties.
            pub(crate) fn read(
                from: &mut $crate::reader::Reader,
            ) -> Result<Self, $crate::error::DecodeError> {
                #[allow(unused_imports)]
                use $crate::{error::DecodeError, property::{Field, Property}};
                let mut properties = Self::default();
                let outer = from.enter_properties()?;
                while from.remaining() > 0 {
                    let id = from.varint("a property identifier")?;
                    match Property::from_id(id) {
                        $(Some(Property::$property) => {
                            properties.$field.read(Self::PLACE, Property::$property, from)?;
                        })*
                        Some(property) => {
                            return Err(DecodeError::PropertyNotAllowed { place: Self::PLACE, property });
                        }
                        None => return Err(DecodeError::UnknownProperty { place: Self::PLACE, id }),
                    }
                }
                from.leave_properties(outer);
                Ok(properties)
            }

            /// Whether there is none.
            pub fn is_empty(&self) -> bool {
                *self == Self::default()
            }

            /// Bytes of the properties without the property length.
            pub(crate) fn inner_size(&self) -> Result<usize, $crate::error::EncodeError> {
                use $crate::property::{Field, Property};
                Ok(0 $(+ self.$field.size(Property::$property)?)*)
            }

            /// Bytes of the property length and the properties.
            pub(crate) fn size(&self) -> Result<usize, $crate::error::EncodeError> {
                self.inner_size().map($crate::property::with_length)
            }

            /// Writes the property length and the properties.
            pub(crate) fn write(&self, out: &mut bytes::BytesMut) {
                use $crate::property::{Field, Property};
                // A failure shows in `size`, which comes first and stops the packet.
                $crate::varint::write(self.inner_size().unwrap_or(0) as u32, out);
                $(self.$field.write(Property::$property, out);)*
            }
        }
    };
}

pub(crate) use properties;

/// Adds the bytes of the length prefix. A block beyond what the prefix can say makes its packet too
/// large as well, which is where it is refused.
pub(crate) fn with_length(inner: usize) -> usize {
    inner + varint::len(u32::try_from(inner).unwrap_or(u32::MAX))
}
