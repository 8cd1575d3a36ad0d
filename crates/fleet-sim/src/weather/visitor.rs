//! Visitor: a client that does as it is told, however bad that is, and knows how it was sent away.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use mqtt::{
    Connect, Decoder, Disconnect, EncodeError, Packet, PacketId, Publish, QoS, ReasonCode,
    Subscribe, SubscribeProperties, Subscription, TopicFilter, Version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::transport::Wire;

/// For an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const READ_ROOM: usize = 16 * 1024;
const V5: Version = Version::V5;

/// How a visit ended before the visitor wanted it to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Turned {
    /// Not even a connection.
    #[error("no connection ({0})")]
    Unreachable(io::ErrorKind),
    /// CONNACK said no.
    #[error("CONNACK {}", Code(*.0))]
    Refused(ReasonCode),
    /// DISCONNECT.
    #[error("DISCONNECT {}", Code(*.0))]
    Disconnected(ReasonCode),
    /// Without a word.
    #[error("closed")]
    Closed,
    /// Without a word, and not in order.
    #[error("reset")]
    Reset,
    /// No TLS.
    #[error("TLS alert")]
    Tls,
    /// No answer in time.
    #[error("no answer")]
    Silent,
    /// The server said what it may not.
    #[error("the server broke the protocol")]
    Protocol(#[from] mqtt::DecodeError),
    /// We cannot say this.
    #[error("cannot be said")]
    Encode(#[from] EncodeError),
}

/// A reason code with its name.
pub(super) struct Code(pub(super) ReasonCode);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:02X} {}", self.0 as u8, self.0.name())
    }
}

impl From<io::Error> for Turned {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Self::Closed,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset,
            io::ErrorKind::InvalidData => Self::Tls,
            io::ErrorKind::TimedOut => Self::Silent,
            other => Self::Unreachable(other),
        }
    }
}

/// A client in the storm.
pub(super) struct Visitor<W = Box<dyn Wire>> {
    pub(super) wire: W,
    decoder: Decoder,
    inbox: BytesMut,
    out: BytesMut,
    /// What CONNACK allows.
    pub(super) receive_maximum: u16,
}

impl<W: Wire> Visitor<W> {
    /// Says CONNECT and waits for CONNACK. MQTT 5, clean, no keep-alive.
    pub(super) async fn arrive(wire: W, client_id: &str) -> Result<Self, Turned> {
        Self::arrive_as(wire, Connect::new(V5, client_id)).await
    }

    pub(super) async fn arrive_as(wire: W, connect: Connect) -> Result<Self, Turned> {
        let mut visitor = Self {
            wire,
            decoder: Decoder::for_client(V5, 16 * 1024 * 1024),
            inbox: BytesMut::new(),
            out: BytesMut::new(),
            receive_maximum: u16::MAX,
        };
        visitor.say(Packet::Connect(Box::new(connect)))?;
        // Refused in the middle of it: what the server said is still to be read.
        let _ = visitor.flush().await;
        match visitor.answer().await? {
            Packet::ConnAck(hello) if !hello.reason.is_error() => {
                if let Some(most) = hello.properties.receive_maximum {
                    visitor.receive_maximum = most.get();
                }
                Ok(visitor)
            }
            Packet::ConnAck(hello) => Err(Turned::Refused(hello.reason)),
            _ => Err(Turned::Closed),
        }
    }

    /// Appends a packet to what is to be written.
    pub(super) fn say(&mut self, packet: impl Into<Packet>) -> Result<(), Turned> {
        Ok(mqtt::encode(&packet.into(), V5, &mut self.out)?)
    }

    /// Appends bytes to what is to be written.
    pub(super) fn spit(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    pub(super) async fn flush(&mut self) -> Result<(), Turned> {
        self.wire.write_all(&self.out).await?;
        self.out.clear();
        self.wire.flush().await?;
        Ok(())
    }

    /// The next packet of the server, however long it takes.
    pub(super) async fn next(&mut self) -> Result<Packet, Turned> {
        loop {
            match self.decoder.decode(&mut self.inbox)? {
                Some(Packet::Disconnect(goodbye)) => {
                    return Err(Turned::Disconnected(goodbye.reason));
                }
                Some(packet) => return Ok(packet),
                None => {}
            }
            self.inbox.reserve(READ_ROOM);
            if self.wire.read_buf(&mut self.inbox).await? == 0 {
                return Err(Turned::Closed);
            }
        }
    }

    /// Whether a whole packet may have been read already.
    pub(super) fn has_read_more(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// The next packet, if it comes in time.
    pub(super) async fn answer(&mut self) -> Result<Packet, Turned> {
        tokio::time::timeout(PATIENCE, self.next())
            .await
            .unwrap_or(Err(Turned::Silent))
    }

    /// Subscribes, and returns what was granted. Messages that come before the answer are dropped.
    pub(super) async fn subscribe(
        &mut self,
        filters: &[String],
        qos: QoS,
    ) -> Result<Vec<ReasonCode>, Turned> {
        let subscriptions = filters
            .iter()
            .filter_map(|filter| TopicFilter::parse(filter).ok())
            .map(|filter| Subscription::new(filter, qos))
            .collect();
        self.say(Subscribe {
            packet_id: PacketId::FIRST,
            subscriptions,
            properties: SubscribeProperties::default(),
        })?;
        self.flush().await?;
        loop {
            if let Packet::SubAck(granted) = self.answer().await? {
                return Ok(granted.reasons);
            }
        }
    }

    /// Publishes at QoS 1 and returns the answer.
    pub(super) async fn publish(
        &mut self,
        topic: &str,
        payload: impl Into<bytes::Bytes>,
    ) -> Result<ReasonCode, Turned> {
        self.say(Publish {
            qos: QoS::AtLeastOnce,
            packet_id: Some(PacketId::FIRST),
            topic: topic.into(),
            payload: payload.into(),
            ..Publish::default()
        })?;
        self.flush().await?;
        loop {
            if let Packet::PubAck(answer) = self.answer().await? {
                return Ok(answer.reason);
            }
        }
    }

    /// Reads until it is sent away.
    pub(super) async fn linger(&mut self) -> Turned {
        loop {
            if let Err(turned) = self.next().await {
                return turned;
            }
        }
    }

    /// Says goodbye and waits for the server to close, for a moment.
    pub(super) async fn leave(mut self) {
        let goodbye = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        if self.say(goodbye).is_ok() && self.flush().await.is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.linger()).await;
        }
    }
}
