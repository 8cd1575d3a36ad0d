//! The task of a client: connects, serves the connection until it breaks, connects again.
//!
//! One `select!` drives both directions at once, so that a server that is slow to read can never
//! stop us from reading (and the other way round): two peers that wait for each other's buffers
//! would wait for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use mqtt::{
    Attempt, ConnAck, Connect, Decoder, Disconnect, Packet, PubAck, PubComp, PubRec, Publish, QoS,
    ReasonCode, Subscribe, SubscribeProperties, Subscription, Version,
};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::session::{Acknowledged, Message, Received, Session};
use super::transport::{self, Connected, Wire};
use super::{
    ClientCounters, ClientError, ClientEvent, ClientOptions, Command, Delivery, INCOMING,
    Reconnect, SessionStart,
};
use crate::dice::Dice;

/// Bytes waiting to be written above which no more messages are taken from the queue.
const FULL: usize = 64 * 1024;
/// Room made for a read. Acknowledgements have 4 bytes, so this is enough for a burst of them.
const READ_ROOM: usize = 2 * 1024;

/// A client from start to end, over all its connections.
pub(super) struct Life {
    options: ClientOptions,
    inbox: mpsc::Receiver<Command>,
    deliver: mpsc::Sender<Publish>,
    counters: Arc<ClientCounters>,
    session: Session,
    /// Messages sent on an earlier connection that this one has had no room for yet.
    waiting: VecDeque<Message>,
    subscriptions: Vec<Subscription>,
    finishing: bool,
    dice: Dice,
}

/// A subscription the server has not answered yet.
struct Asked {
    id: mqtt::PacketId,
    count: usize,
    done: Option<oneshot::Sender<Result<Vec<ReasonCode>, ClientError>>>,
}

/// An accepted connection.
pub(crate) struct Accepted {
    pub(crate) wire: Box<dyn Wire>,
    pub(crate) decoder: Decoder,
    /// What came after the CONNACK.
    pub(crate) inbox: BytesMut,
    pub(crate) hello: Box<ConnAck>,
    /// Full or resumed, where that is known.
    pub(crate) handshake: Option<HandshakeKind>,
}

/// The changing parts of a connection.
struct Serving {
    out: BytesMut,
    asked: Option<Asked>,
    /// A message that waits for the caller to take earlier ones.
    held: Option<Publish>,
    last_sent: Instant,
    ping_open: bool,
    largest: usize,
    /// Written to TLS, perhaps not yet to the socket.
    unflushed: bool,
}

impl Life {
    pub(super) fn new(
        options: ClientOptions,
        inbox: mpsc::Receiver<Command>,
        deliver: mpsc::Sender<Publish>,
    ) -> Self {
        // Jitter that differs between clients and repeats for one.
        let dice = Dice::for_thing(0, &options.client_id);
        Self {
            session: Session::new(options.window, options.version),
            counters: Arc::clone(&options.counters),
            options,
            inbox,
            deliver,
            waiting: VecDeque::new(),
            subscriptions: Vec::new(),
            finishing: false,
            dice,
        }
    }

    /// Lives until finished, given up or dropped by the handle. `first` hears how the first
    /// connection went, and then a failure of it is final.
    pub(super) async fn run(mut self, mut first: Option<oneshot::Sender<Result<(), ClientError>>>) {
        let mut failures = 0;
        loop {
            let error = match self.connect().await {
                Ok(accepted) => {
                    failures = 0;
                    if let Some(first) = first.take() {
                        let _ = first.send(Ok(())); // nobody waits any more: serve anyway
                    }
                    self.counters.add(|c| &c.connects);
                    self.counters.connected.store(true, Ordering::Relaxed);
                    self.tell(ClientEvent::Connected);
                    let end = self.serve(accepted).await;
                    self.counters.connected.store(false, Ordering::Relaxed);
                    match end {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.counters.add(|c| &c.failures);
            if let Some(first) = first.take() {
                let _ = first.send(Err(error));
                return;
            }
            let error = Arc::new(error);
            let wait = match self.options.reconnect {
                Reconnect::Backoff { first, longest } if !error.is_final() => {
                    let doubled = first.saturating_mul(1 << failures.min(20)).min(longest);
                    doubled.mul_f64(self.dice.between(0.5, 1.5))
                }
                _ => {
                    self.tell(ClientEvent::GaveUp(error));
                    return;
                }
            };
            self.tell(ClientEvent::Lost(error));
            failures += 1;
            tokio::time::sleep(wait).await;
        }
    }

    fn tell(&self, event: ClientEvent) {
        if let Some(observer) = &self.options.observer {
            observer(event);
        }
    }

    async fn connect(&mut self) -> Result<Accepted, ClientError> {
        let limit = self.options.connect_timeout;
        // Boxed: lives only while connecting, and would otherwise weigh on every idle client.
        match timeout(limit, Box::pin(handshake(&self.options))).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::TimedOut {
                what: "connection",
                after: limit,
            }),
        }
    }

    /// Serves a connection until it is finished (`Ok`) or breaks.
    async fn serve(&mut self, accepted: Accepted) -> Result<(), ClientError> {
        let Accepted {
            wire,
            mut decoder,
            mut inbox,
            hello,
            ..
        } = accepted;
        let (mut reader, mut writer) = tokio::io::split(wire);
        let mut serving = self.greet(&hello)?;
        let keep_alive = hello
            .properties
            .server_keep_alive
            .map_or(self.options.keep_alive, |s| Duration::from_secs(s.into()));
        // Twice per keep-alive: what went out since the last look needs no ping, so the silence is
        // never longer than the keep-alive.
        let beat = keep_alive / 2;
        let look = sleep_until(Instant::now() + beat);
        tokio::pin!(look);
        loop {
            // Before waiting: whatever the last wake-up brought and needs no more bytes.
            while serving.held.is_none()
                && let Some(packet) = decoder.decode(&mut inbox)?
            {
                self.take(packet, &mut serving)?;
            }
            while serving.out.len() < FULL
                && self.session.has_room()
                && let Some(message) = self.waiting.pop_front()
            {
                self.counters.add(|c| &c.resent);
                self.session.send(message, &mut serving.out)?;
            }
            while self.can_take(&serving)
                && let Ok(command) = self.inbox.try_recv()
            {
                self.obey(command, &mut serving)?;
            }
            let idle = serving.out.is_empty() && !serving.unflushed;
            if self.finishing && idle && self.session.is_empty() && self.waiting.is_empty() {
                return self.leave(&mut writer).await;
            }

            let take_commands = self.can_take(&serving);
            inbox.reserve(READ_ROOM);
            tokio::select! {
                // Cancel-safe: takes a command or takes nothing.
                command = self.inbox.recv(), if take_commands => match command {
                    Some(command) => self.obey(command, &mut serving)?,
                    None => self.finishing = true, // the handle is gone without finishing
                },
                // Cancel-safe: reads into the buffer or reads nothing.
                read = reader.read_buf(&mut inbox), if serving.held.is_none() => match read {
                    Ok(0) => return Err(closed()),
                    Ok(_) => {}
                    Err(source) => return Err(ClientError::Broken { source }),
                },
                // Cancel-safe: see `push`.
                pushed = push(&mut writer, &serving.out), if !idle => match pushed {
                    Ok(0) if serving.out.is_empty() => serving.unflushed = false,
                    Ok(0) => return Err(closed()),
                    Ok(count) => {
                        serving.out.advance(count);
                        serving.unflushed = true;
                        serving.last_sent = Instant::now();
                    }
                    Err(source) => return Err(ClientError::Broken { source }),
                },
                // Cancel-safe: the slot is given back, and only this task fills slots.
                () = room(&self.deliver), if serving.held.is_some() => {
                    if let Some(publish) = serving.held.take() {
                        self.receive(publish, &mut serving)?;
                    }
                },
                // Cancel-safe: waiting for a time changes nothing.
                () = &mut look, if !beat.is_zero() => {
                    look.as_mut().reset(Instant::now() + beat);
                    if serving.ping_open && serving.held.is_none() {
                        return Err(ClientError::TimedOut { what: "PINGRESP", after: beat });
                    }
                    if serving.last_sent.elapsed() >= beat && !serving.ping_open {
                        mqtt::encode(&Packet::PingReq, self.options.version, &mut serving.out)?;
                        serving.ping_open = true;
                    }
                },
            }
        }
    }

    /// The first bytes of a connection: open messages again, subscriptions again.
    fn greet(&mut self, hello: &ConnAck) -> Result<Serving, ClientError> {
        let properties = &hello.properties;
        let mut out = BytesMut::new();
        let most = properties
            .receive_maximum
            .map_or(u16::MAX, |most| most.get());
        let mut resent = self
            .session
            .reconnected(hello.session_present, most, &mut out)?;
        self.counters
            .resent
            .fetch_add(resent.count, Ordering::Relaxed);
        self.counters
            .acknowledged
            .fetch_add(resent.completed, Ordering::Relaxed);
        if hello.session_present {
            self.counters.add(|c| &c.resumed);
        }
        resent.waiting.append(&mut self.waiting);
        self.waiting = resent.waiting;
        let mut asked = None;
        if !hello.session_present && !self.subscriptions.is_empty() {
            let subscriptions = self.subscriptions.clone();
            asked = Some(self.ask(subscriptions, None, &mut out)?);
        }
        Ok(Serving {
            out,
            asked,
            held: None,
            last_sent: Instant::now(),
            ping_open: false,
            largest: properties
                .maximum_packet_size
                .map_or(usize::MAX, |size| size.get() as usize),
            unflushed: false,
        })
    }

    /// Whether another command could be carried out now.
    fn can_take(&self, serving: &Serving) -> bool {
        serving.out.len() < FULL
            && self.session.has_room()
            && serving.asked.is_none()
            && self.waiting.is_empty()
            && !self.finishing
    }

    fn obey(&mut self, command: Command, serving: &mut Serving) -> Result<(), ClientError> {
        match command {
            Command::Publish(message) => self.send(message, serving),
            Command::Subscribe {
                subscriptions,
                done,
            } => {
                for new in &subscriptions {
                    self.subscriptions.retain(|old| old.filter != new.filter);
                    self.subscriptions.push(new.clone());
                }
                serving.asked = Some(self.ask(subscriptions, Some(done), &mut serving.out)?);
                Ok(())
            }
            Command::Finish => {
                self.finishing = true;
                Ok(())
            }
        }
    }

    fn send(&mut self, message: Message, serving: &mut Serving) -> Result<(), ClientError> {
        let frame = &message.frame;
        if frame.len() > serving.largest {
            self.counters.add(|c| &c.refused);
            let error = ClientError::TooLarge {
                size: frame.len(),
                limit: serving.largest,
            };
            tracing::warn!(client = %self.options.client_id, "{error}");
            if let Some(done) = message.done {
                let _ = done.send(Err(error)); // the caller may have lost interest
            }
            return Ok(());
        }
        self.counters.add(|c| &c.published);
        if message.delivery != Delivery::AtMostOnce {
            self.session.send(message, &mut serving.out)?;
        } else {
            frame.write(None, Attempt::First, &mut serving.out)?;
            self.counters.add(|c| &c.acknowledged);
            if let Some(done) = message.done {
                let _ = done.send(Ok(())); // the caller may have lost interest
            }
        }
        Ok(())
    }

    fn ask(
        &mut self,
        subscriptions: Vec<Subscription>,
        done: Option<oneshot::Sender<Result<Vec<ReasonCode>, ClientError>>>,
        out: &mut BytesMut,
    ) -> Result<Asked, ClientError> {
        let asked = Asked {
            id: self.session.fresh_id(),
            count: subscriptions.len(),
            done,
        };
        let subscribe = Subscribe {
            packet_id: asked.id,
            subscriptions,
            properties: SubscribeProperties::default(),
        };
        mqtt::encode(&subscribe.into(), self.options.version, out)?;
        Ok(asked)
    }

    /// Takes a packet from the server.
    fn take(&mut self, packet: Packet, serving: &mut Serving) -> Result<(), ClientError> {
        match packet {
            Packet::PubAck(ack) => {
                let acknowledged = self.session.acknowledge(ack.packet_id, ack.reason);
                self.count("PUBACK", &acknowledged, ack.packet_id, ack.reason)
            }
            Packet::PubRec(ack) => {
                let (id, reason) = (ack.packet_id, ack.reason);
                match self.session.received(id, reason, &mut serving.out)? {
                    Received::Released => Ok(()),
                    Received::Refused => self.count("PUBREC", &Acknowledged::Refused, id, reason),
                    Received::Unknown => self.count("PUBREC", &Acknowledged::Unknown, id, reason),
                }
            }
            Packet::PubComp(ack) => {
                let completed = self.session.complete(ack.packet_id);
                self.count("PUBCOMP", &completed, ack.packet_id, ack.reason)
            }
            Packet::PubRel(release) => {
                let id = release.packet_id;
                let reason = match self.session.release(id) {
                    // MQTT 3.1.1 has no other answer.
                    true => ReasonCode::Success,
                    false if self.options.version == Version::V311 => ReasonCode::Success,
                    false => ReasonCode::PacketIdentifierNotFound,
                };
                let complete = PubComp::new(id, reason);
                mqtt::encode(&complete.into(), self.options.version, &mut serving.out)?;
                Ok(())
            }
            Packet::Publish(publish) => self.receive(*publish, serving),
            Packet::SubAck(ack) => match serving.asked.take() {
                Some(asked) if asked.id == ack.packet_id && asked.count == ack.reasons.len() => {
                    if let Some(done) = asked.done {
                        let _ = done.send(Ok(ack.reasons)); // the caller may have lost interest
                    }
                    Ok(())
                }
                _ => Err(ClientError::Unexpected {
                    what: "SUBACK for another SUBSCRIBE".into(),
                }),
            },
            Packet::PingResp => {
                serving.ping_open = false;
                Ok(())
            }
            Packet::Disconnect(disconnect) => Err(ClientError::Disconnected {
                reason: disconnect.reason,
                text: disconnect
                    .properties
                    .reason_string
                    .map(|text| text.to_string()),
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Counts how a message ended.
    fn count(
        &self,
        packet: &str,
        acknowledged: &Acknowledged,
        id: mqtt::PacketId,
        reason: ReasonCode,
    ) -> Result<(), ClientError> {
        match acknowledged {
            Acknowledged::Accepted => self.counters.add(|c| &c.acknowledged),
            Acknowledged::Refused => {
                self.counters.add(|c| &c.refused);
                tracing::debug!(client = %self.options.client_id, %reason, "message refused");
            }
            Acknowledged::Unknown => {
                return Err(ClientError::Unexpected {
                    what: format!("{packet} for {id}, which is not open"),
                });
            }
        }
        Ok(())
    }

    fn receive(&mut self, publish: Publish, serving: &mut Serving) -> Result<(), ClientError> {
        let exactly_once = publish
            .packet_id
            .filter(|_| publish.qos == QoS::ExactlyOnce);
        if exactly_once.is_some_and(|id| self.session.knows(id)) {
            // Handed on before, on this connection or an earlier one.
            return acknowledge(&publish, self.options.version, &mut serving.out);
        }
        match self.deliver.try_reserve() {
            Ok(permit) => {
                self.counters.add(|c| &c.received);
                if let Some(id) = exactly_once {
                    self.session.handed_on(id);
                }
                acknowledge(&publish, self.options.version, &mut serving.out)?;
                permit.send(publish);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                serving.held = Some(publish);
                Ok(())
            }
            // Nobody listens: a device that only sends still has to acknowledge.
            Err(mpsc::error::TrySendError::Closed(())) => {
                acknowledge(&publish, self.options.version, &mut serving.out)
            }
        }
    }

    /// Takes leave: no will, no reconnection.
    async fn leave<W>(&self, writer: &mut W) -> Result<(), ClientError>
    where
        W: AsyncWriteExt + Unpin,
    {
        let mut out = BytesMut::new();
        let goodbye = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        mqtt::encode(&goodbye.into(), self.options.version, &mut out)?;
        // Everything is acknowledged; if the goodbye gets lost the work is done all the same.
        let said = async {
            writer.write_all(&out).await?;
            writer.shutdown().await
        };
        if let Err(error) = said.await {
            tracing::debug!(client = %self.options.client_id, %error, "the goodbye got lost");
        }
        Ok(())
    }
}

/// Connects, says CONNECT and waits for a CONNACK that accepts.
pub(crate) async fn handshake(options: &ClientOptions) -> Result<Accepted, ClientError> {
    let Connected {
        mut wire,
        handshake,
    } = transport::connect(&options.server, &options.transport).await?;
    let mut out = BytesMut::new();
    let greeting = Packet::Connect(Box::new(greeting(options)));
    mqtt::encode(&greeting, options.version, &mut out)?;
    let broken = |source| ClientError::Broken { source };
    wire.write_all(&out).await.map_err(broken)?;
    wire.flush().await.map_err(broken)?;
    let mut decoder = Decoder::for_client(options.version, options.max_packet_size);
    let mut inbox = BytesMut::new();
    loop {
        match decoder.decode(&mut inbox)? {
            Some(Packet::ConnAck(hello)) if !hello.reason.is_error() => {
                return Ok(Accepted {
                    wire,
                    decoder,
                    inbox,
                    hello,
                    handshake,
                });
            }
            Some(Packet::ConnAck(hello)) => {
                return Err(ClientError::Refused {
                    server: options.server.clone(),
                    reason: hello.reason,
                    text: hello.properties.reason_string.map(|text| text.to_string()),
                });
            }
            Some(other) => return Err(unexpected(&other)),
            None => {
                inbox.reserve(READ_ROOM);
                if wire.read_buf(&mut inbox).await.map_err(broken)? == 0 {
                    return Err(closed());
                }
            }
        }
    }
}

fn greeting(options: &ClientOptions) -> Connect {
    let mut connect = Connect::new(options.version, options.client_id.as_str());
    connect.keep_alive = options.keep_alive.as_secs().min(u64::from(u16::MAX)) as u16;
    connect.will.clone_from(&options.will);
    if let Some((user, password)) = &options.login {
        connect.username = Some(user.as_str().into());
        connect.password = Some(password.as_str().into());
    }
    connect.clean_start = options.session == SessionStart::Clean;
    if options.version == Version::V5 {
        let properties = &mut connect.properties;
        if let SessionStart::Resume { expiry } = options.session {
            properties.session_expiry_interval = Some(expiry);
        }
        properties.receive_maximum = std::num::NonZeroU16::new(INCOMING as u16);
        properties.maximum_packet_size = std::num::NonZeroU32::new(options.max_packet_size);
    }
    connect
}

/// Writes what is there, or flushes what was written when nothing is. Cancel-safe: dropped before
/// it is done, nothing was written, and flushing starts over.
async fn push<W>(writer: &mut W, out: &[u8]) -> std::io::Result<usize>
where
    W: AsyncWriteExt + Unpin,
{
    if out.is_empty() {
        writer.flush().await.map(|()| 0)
    } else {
        writer.write(out).await
    }
}

/// Waits until the caller has taken a message, or is gone.
async fn room(deliver: &mpsc::Sender<Publish>) {
    let _ = deliver.reserve().await;
}

fn acknowledge(publish: &Publish, version: Version, out: &mut BytesMut) -> Result<(), ClientError> {
    let answer: Packet = match (publish.qos, publish.packet_id) {
        (QoS::AtLeastOnce, Some(id)) => PubAck::success(id).into(),
        (QoS::ExactlyOnce, Some(id)) => PubRec::success(id).into(),
        _ => return Ok(()), // QoS 0, the only one without an identifier
    };
    Ok(mqtt::encode(&answer, version, out)?)
}

fn unexpected(packet: &Packet) -> ClientError {
    ClientError::Unexpected {
        what: format!("{} does not belong here", packet.packet_type()),
    }
}

fn closed() -> ClientError {
    ClientError::Broken {
        source: std::io::ErrorKind::UnexpectedEof.into(),
    }
}
