//! The control packets, one file for each conversation.
//!
//! Each packet knows three things about the wire: how it is read, how many bytes it takes (this is also
//! where what cannot be said is refused), and how it is written. [`Decoder`](crate::Decoder) and
//! [`encode`](crate::encode()) add the fixed header.

use std::fmt;

use bytes::BytesMut;

use crate::{
    error::{DecodeError, EncodeError},
    reader::Reader,
    version::Version,
};

mod ack;
mod auth;
mod connack;
mod connect;
mod disconnect;
mod publish;
mod subscribe;
mod unsubscribe;

pub use ack::{
    PubAck, PubAckProperties, PubComp, PubCompProperties, PubRec, PubRecProperties, PubRel,
    PubRelProperties,
};
pub use auth::{Auth, AuthProperties};
pub use connack::{ConnAck, ConnAckProperties};
pub use connect::{Connect, ConnectProperties, Will, WillProperties};
pub use disconnect::{Disconnect, DisconnectProperties};
pub(crate) use publish::{Flags, head_size as publish_head_size};
pub use publish::{Publish, PublishProperties};
pub use subscribe::{
    RetainHandling, SubAck, SubAckProperties, Subscribe, SubscribeProperties, Subscription,
};
pub use unsubscribe::{UnsubAck, UnsubAckProperties, Unsubscribe, UnsubscribeProperties};

/// The type of a packet: the high four bits of its first byte (section 2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PacketType {
    /// The client asks for a connection.
    Connect = 1,
    /// The server accepts or refuses it.
    ConnAck = 2,
    /// A message, in either direction.
    Publish = 3,
    /// Answer to a QoS 1 message.
    PubAck = 4,
    /// Answer to a QoS 2 message.
    PubRec = 5,
    /// Answer to PUBREC.
    PubRel = 6,
    /// Answer to PUBREL.
    PubComp = 7,
    /// The client asks for messages.
    Subscribe = 8,
    /// Answer to SUBSCRIBE.
    SubAck = 9,
    /// The client asks for messages no longer.
    Unsubscribe = 10,
    /// Answer to UNSUBSCRIBE.
    UnsubAck = 11,
    /// The client is alive and asks whether the server is.
    PingReq = 12,
    /// The server is alive.
    PingResp = 13,
    /// The last packet; in 3.1.1 from the client only.
    Disconnect = 14,
    /// A step of an enhanced authentication; MQTT 5 only.
    Auth = 15,
}

impl PacketType {
    /// The type of the high four bits of a first byte; `None` for 0.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    /// The low four bits of the first byte, which only PUBLISH may choose (section 2.1.3).
    pub(crate) const fn fixed_flags(self) -> Option<u8> {
        match self {
            Self::Publish => None,
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => Some(0b0010),
            _ => Some(0),
        }
    }

    /// The remaining length of a packet that has only one.
    pub(crate) const fn fixed_len(self, version: Version) -> Option<u32> {
        match (self, version) {
            (Self::PingReq | Self::PingResp, _) | (Self::Disconnect, Version::V311) => Some(0),
            (
                Self::ConnAck
                | Self::PubAck
                | Self::PubRec
                | Self::PubRel
                | Self::PubComp
                | Self::UnsubAck,
                Version::V311,
            ) => Some(2),
            _ => None,
        }
    }
}

impl fmt::Display for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "CONNECT",
            Self::ConnAck => "CONNACK",
            Self::Publish => "PUBLISH",
            Self::PubAck => "PUBACK",
            Self::PubRec => "PUBREC",
            Self::PubRel => "PUBREL",
            Self::PubComp => "PUBCOMP",
            Self::Subscribe => "SUBSCRIBE",
            Self::SubAck => "SUBACK",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::UnsubAck => "UNSUBACK",
            Self::PingReq => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect => "DISCONNECT",
            Self::Auth => "AUTH",
        })
    }
}

/// One packet of MQTT 3.1.1 or 5.
///
/// The two that are large and the one that is frequent are boxed, so that a queue of packets is a queue
/// of small things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The client asks for a connection.
    Connect(Box<Connect>),
    /// The server accepts or refuses it.
    ConnAck(Box<ConnAck>),
    /// A message, in either direction.
    Publish(Box<Publish>),
    /// Answer to a QoS 1 message.
    PubAck(PubAck),
    /// Answer to a QoS 2 message.
    PubRec(PubRec),
    /// Answer to PUBREC.
    PubRel(PubRel),
    /// Answer to PUBREL.
    PubComp(PubComp),
    /// The client asks for messages.
    Subscribe(Subscribe),
    /// Answer to SUBSCRIBE.
    SubAck(SubAck),
    /// The client asks for messages no longer.
    Unsubscribe(Unsubscribe),
    /// Answer to UNSUBSCRIBE.
    UnsubAck(UnsubAck),
    /// The client is alive and asks whether the server is.
    PingReq,
    /// The server is alive.
    PingResp,
    /// The last packet.
    Disconnect(Disconnect),
    /// A step of an enhanced authentication.
    Auth(Auth),
}

impl Packet {
    /// Which packet this is.
    pub const fn packet_type(&self) -> PacketType {
        match self {
            Self::Connect(_) => PacketType::Connect,
            Self::ConnAck(_) => PacketType::ConnAck,
            Self::Publish(_) => PacketType::Publish,
            Self::PubAck(_) => PacketType::PubAck,
            Self::PubRec(_) => PacketType::PubRec,
            Self::PubRel(_) => PacketType::PubRel,
            Self::PubComp(_) => PacketType::PubComp,
            Self::Subscribe(_) => PacketType::Subscribe,
            Self::SubAck(_) => PacketType::SubAck,
            Self::Unsubscribe(_) => PacketType::Unsubscribe,
            Self::UnsubAck(_) => PacketType::UnsubAck,
            Self::PingReq => PacketType::PingReq,
            Self::PingResp => PacketType::PingResp,
            Self::Disconnect(_) => PacketType::Disconnect,
            Self::Auth(_) => PacketType::Auth,
        }
    }

    /// Reads what follows the fixed header; of CONNECT, what follows the protocol level, which is how
    /// `version` became known.
    pub(crate) fn read(
        from: &mut Reader,
        flags: Flags,
        version: Version,
    ) -> Result<Self, DecodeError> {
        Ok(match from.packet {
            PacketType::Connect => Connect::read(from, version)?.into(),
            PacketType::ConnAck => ConnAck::read(from, version)?.into(),
            PacketType::Publish => Publish::read(from, flags, version)?.into(),
            PacketType::PubAck => PubAck::read(from, version)?.into(),
            PacketType::PubRec => PubRec::read(from, version)?.into(),
            PacketType::PubRel => PubRel::read(from, version)?.into(),
            PacketType::PubComp => PubComp::read(from, version)?.into(),
            PacketType::Subscribe => Subscribe::read(from, version)?.into(),
            PacketType::SubAck => SubAck::read(from, version)?.into(),
            PacketType::Unsubscribe => Unsubscribe::read(from, version)?.into(),
            PacketType::UnsubAck => UnsubAck::read(from, version)?.into(),
            PacketType::PingReq => Self::PingReq,
            PacketType::PingResp => Self::PingResp,
            PacketType::Disconnect => Disconnect::read(from, version)?.into(),
            PacketType::Auth => Auth::read(from)?.into(),
        })
    }

    /// The low four bits of the first byte.
    pub(crate) fn flags(&self) -> u8 {
        match self {
            Self::Publish(publish) => publish.flags().bits(),
            other => other.packet_type().fixed_flags().unwrap_or(0),
        }
    }

    /// The remaining length; refuses what cannot be written.
    pub(crate) fn size(&self, version: Version) -> Result<usize, EncodeError> {
        match self {
            Self::Connect(packet) => packet.size(version),
            Self::ConnAck(packet) => packet.size(version),
            Self::Publish(packet) => packet.size(version),
            Self::PubAck(packet) => packet.size(version),
            Self::PubRec(packet) => packet.size(version),
            Self::PubRel(packet) => packet.size(version),
            Self::PubComp(packet) => packet.size(version),
            Self::Subscribe(packet) => packet.size(version),
            Self::SubAck(packet) => packet.size(version),
            Self::Unsubscribe(packet) => packet.size(version),
            Self::UnsubAck(packet) => packet.size(version),
            Self::PingReq | Self::PingResp => Ok(0),
            Self::Disconnect(packet) => packet.size(version),
            Self::Auth(packet) => packet.size(version),
        }
    }

    /// Writes what follows the fixed header, after [`size`](Self::size) has let it through.
    pub(crate) fn write(&self, version: Version, out: &mut BytesMut) {
        match self {
            Self::Connect(packet) => packet.write(version, out),
            Self::ConnAck(packet) => packet.write(version, out),
            Self::Publish(packet) => packet.write(version, out),
            Self::PubAck(packet) => packet.write(version, out),
            Self::PubRec(packet) => packet.write(version, out),
            Self::PubRel(packet) => packet.write(version, out),
            Self::PubComp(packet) => packet.write(version, out),
            Self::Subscribe(packet) => packet.write(version, out),
            Self::SubAck(packet) => packet.write(version, out),
            Self::Unsubscribe(packet) => packet.write(version, out),
            Self::UnsubAck(packet) => packet.write(version, out),
            Self::PingReq | Self::PingResp => {}
            Self::Disconnect(packet) => packet.write(version, out),
            Self::Auth(packet) => packet.write(out),
        }
    }
}

macro_rules! into_packet {
    ($($name:ident $(in $boxed:ident)?,)*) => {
        $(impl From<$name> for Packet {
            fn from(packet: $name) -> Self {
                into_packet!(@ $name packet $($boxed)?)
            }
        })*
    };
    (@ $name:ident $packet:ident) => { Packet::$name($packet) };
    (@ $name:ident $packet:ident $boxed:ident) => { Packet::$name($boxed::new($packet)) };
}

into_packet! {
    Connect in Box, ConnAck in Box, Publish in Box,
    PubAck, PubRec, PubRel, PubComp, Subscribe, SubAck, Unsubscribe, UnsubAck, Disconnect, Auth,
}

/// Reads a reason code and refuses one `from.packet` does not carry.
fn read_reason(from: &mut Reader) -> Result<crate::ReasonCode, DecodeError> {
    let value = from.u8("the reason code")?;
    match crate::ReasonCode::from_u8(value) {
        Some(code) if code.fits(from.packet) => Ok(code),
        _ => Err(DecodeError::ReasonCode {
            packet: from.packet,
            value,
        }),
    }
}

/// The same for writing.
fn check_reason(code: crate::ReasonCode, packet: PacketType) -> Result<(), EncodeError> {
    if code.fits(packet) {
        Ok(())
    } else {
        Err(EncodeError::ReasonCode { packet, code })
    }
}
