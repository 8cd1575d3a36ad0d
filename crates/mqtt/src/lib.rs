//! MQTT 3.1.1 and 5 packets to bytes and back. No sockets, no clock, no sessions.
//!
//! Flow in: a transport appends what it read to a `BytesMut`; [`Decoder`] takes whole packets off
//! its front. Strings and payloads are slices of that buffer, so a packet costs no copy. Flow out:
//! [`encode`] appends one packet to a `BytesMut`; [`PublishFrame`] encodes a PUBLISH once for all
//! receivers that share a [`Layout`]. Flow to a disk and back: [`Publish::keep`], [`Publish::kept`].
//!
//! Strict on purpose: whatever a specification calls malformed or a protocol error, and that can be
//! seen in one packet, is refused with a [`DecodeError`] that names the field and carries the reason
//! code to answer with. Whoever gets a [`Packet`] need not check it again. What needs memory of
//! earlier packets (topic aliases in use, packet ids in flight, receive maximum) belongs to the
//! session, not here. A lenient codec was refused: every reader behind it would have to defend
//! itself, and two that disagree on a broken packet are a security hole.
//!
//! Slices keep the read buffer they came from alive. Copy what outlives the packet
//! ([`Utf8::detached`]).
//!
//! ```
//! use mqtt::{BytesMut, Connect, Decoder, Packet, Version, encode};
//!
//! let mut wire = BytesMut::new();
//! encode(&Connect::new(Version::V5, "car-1").into(), Version::V5, &mut wire)?;
//!
//! let mut decoder = Decoder::for_server(1024 * 1024);
//! let Some(Packet::Connect(connect)) = decoder.decode(&mut wire)? else {
//!     panic!("the packet is whole");
//! };
//! assert_eq!(connect.client_id, "car-1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Statement numbers such as `[MQTT-3.1.0-1]` are those of the OASIS standard MQTT 5.0; those of
//! 3.1.1 are marked `v3.1.1`.

mod decode;
mod encode;
mod error;
mod frame;
mod kept;
pub mod packet;
mod packet_id;
mod property;
mod qos;
mod reader;
mod reason;
mod secret;
mod topic;
mod utf8;
mod varint;
mod version;

pub use bytes::{Bytes, BytesMut};
pub use decode::Decoder;
pub use encode::{encode, encoded_len};
pub use error::{DecodeError, EncodeError};
pub use frame::{AliasedTopic, Attempt, Layout, PublishFrame, Written};
pub use packet::{
    Auth, AuthProperties, ConnAck, ConnAckProperties, Connect, ConnectProperties, Disconnect,
    DisconnectProperties, Packet, PacketType, PubAck, PubAckProperties, PubComp, PubCompProperties,
    PubRec, PubRecProperties, PubRel, PubRelProperties, Publish, PublishProperties, RetainHandling,
    SubAck, SubAckProperties, Subscribe, SubscribeProperties, Subscription, UnsubAck,
    UnsubAckProperties, Unsubscribe, UnsubscribeProperties, Will, WillProperties,
};
pub use packet_id::PacketId;
pub use property::{PayloadFormat, Property, SubscriptionId, UserProperty};
pub use qos::QoS;
pub use reason::{ConnectReturnCode, ReasonCode};
pub use secret::Secret;
pub use topic::{TopicError, TopicFilter, TopicName};
pub use utf8::{Utf8, Utf8Error};
pub use version::Version;
