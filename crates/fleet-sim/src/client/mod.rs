//! MQTT client: what a device runs, on the `mqtt` codec and tokio.
//!
//! A [`Client`] is a handle to one task that owns the connection. Messages wait in a bounded queue
//! until the in-flight window has room, go out, and stay until they are acknowledged; when the
//! connection breaks the task connects again and sends what was not acknowledged once more. So a
//! message that was accepted is delivered at least once, unless [`Client::finish`] runs out of time
//! and says how many are open. With QoS 2 and a session that the server keeps
//! ([`SessionStart::Resume`]) it is delivered exactly once.
//!
//! MQTT 3.1.1 and 5, QoS 0 to 2, over TCP, TLS, WebSocket and QUIC. The client's half of a session lives as long as
//! the [`Client`], over all its connections, and not on disk: a virtual vehicle that dies is started
//! anew.

mod address;
pub(crate) mod connection;
mod quic;
mod session;
pub(crate) mod transport;
#[cfg(feature = "web-socket")]
mod web_socket;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use mqtt::{
    DecodeError, EncodeError, Layout, Publish, PublishFrame, PublishProperties, QoS, ReasonCode,
    Subscription, TopicError, TopicFilter, Utf8, Version, Will,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use address::{Address, AddressError, Scheme};
pub use quic::{Quic, QuicError, QuicSocket};
use session::Message;
pub use transport::{Server, ServerError, Transport};

/// How often a message may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// QoS 0: gone when it is written.
    AtMostOnce,
    /// QoS 1: kept until acknowledged.
    #[default]
    AtLeastOnce,
    /// QoS 2: kept until acknowledged twice.
    ExactlyOnce,
}

impl From<Delivery> for QoS {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::AtMostOnce => Self::AtMostOnce,
            Delivery::AtLeastOnce => Self::AtLeastOnce,
            Delivery::ExactlyOnce => Self::ExactlyOnce,
        }
    }
}

/// What a broker does with what it knew of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionStart {
    /// Begin anew with every connection.
    #[default]
    Clean,
    /// Go on where the last connection broke, if the server still knows.
    Resume {
        /// How long the server should know, seconds (MQTT 5).
        expiry: u32,
    },
}

/// What to do when a connection breaks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reconnect {
    /// Give up.
    Never,
    /// Try again, waiting twice as long each time, within half and one and a half of it.
    Backoff {
        /// First wait.
        first: Duration,
        /// Longest wait.
        longest: Duration,
    },
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::Backoff {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(30),
        }
    }
}

/// How a client connects.
#[derive(Clone)]
pub struct ClientOptions {
    /// Where to.
    pub server: Server,
    /// How.
    pub transport: Transport,
    /// Which MQTT.
    pub version: Version,
    /// Client identifier; with a certificate usually the device id.
    pub client_id: String,
    /// User name and password.
    pub login: Option<(String, String)>,
    /// What the server publishes if the connection breaks.
    pub will: Option<Will>,
    /// Fresh or resumed sessions.
    pub session: SessionStart,
    /// Longest silence, whole seconds; zero for none. The server may shorten it (MQTT 5).
    pub keep_alive: Duration,
    /// For connection, TLS and CONNACK together.
    pub connect_timeout: Duration,
    /// What to do when the connection breaks.
    pub reconnect: Reconnect,
    /// Messages sent and not yet acknowledged, at most; the server may want fewer (MQTT 5 Receive
    /// Maximum). Not 0.
    pub window: u16,
    /// Messages that wait for the window, at most; then [`Client::publish`] waits and
    /// [`Client::try_publish`] refuses.
    pub queue: usize,
    /// Largest packet accepted from the server, bytes.
    pub max_packet_size: u32,
    /// Hears of connections and their ends.
    pub observer: Option<Observer>,
    /// Where it counts what it does.
    pub counters: Arc<ClientCounters>,
}

/// Hears of [`ClientEvent`]s. Called on the client's task: must not block.
pub type Observer = Arc<dyn Fn(ClientEvent) + Send + Sync>;

impl ClientOptions {
    /// MQTT 5, clean sessions, 30 s keep-alive, reconnecting, 64 in flight, 256 waiting (four
    /// minutes of a message per second).
    pub fn new(server: Server, transport: Transport, client_id: impl Into<String>) -> Self {
        Self {
            server,
            transport,
            version: Version::V5,
            client_id: client_id.into(),
            login: None,
            will: None,
            session: SessionStart::Clean,
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(15),
            reconnect: Reconnect::default(),
            window: 64,
            queue: 256,
            max_packet_size: 1024 * 1024,
            observer: None,
            counters: Arc::default(),
        }
    }
}

/// What happens to a connection.
#[derive(Debug)]
pub enum ClientEvent {
    /// The server accepted.
    Connected,
    /// The connection could not be made, was refused or broke; the client tries again.
    Lost(Arc<ClientError>),
    /// The same, and the client gives up.
    GaveUp(Arc<ClientError>),
}

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot reach {server}; is the server running, and is this its MQTT address?")]
    Unreachable {
        /// Where to.
        server: Server,
        /// Why not.
        source: std::io::Error,
    },
    /// TLS failed, for example because one side does not trust the other.
    #[error("no TLS with {server}; is the certificate of this fleet, and is this a TLS listener?")]
    Tls {
        /// Where to.
        server: Server,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no MQTT behind a WebSocket there.
    #[error(
        "no WebSocket for MQTT at {server}; is this a `ws` or `wss` listener, and is the path right?"
    )]
    WebSocket {
        /// Where to.
        server: Server,
        /// Why not.
        source: std::io::Error,
    },
    /// QUIC failed.
    #[error("no QUIC connection to {server}; is this a `quic` listener (UDP), and of this fleet?")]
    Quic {
        /// Where to.
        server: Server,
        /// Why not.
        source: QuicError,
    },
    /// The server said no to the connection.
    #[error("{server} refused the connection: {reason}{}", in_words(.text))]
    Refused {
        /// Which server.
        server: Server,
        /// Its reason.
        reason: ReasonCode,
        /// What it says about it.
        text: Option<String>,
    },
    /// The server ended the connection.
    #[error("the server ended the connection: {reason}{}", in_words(.text))]
    Disconnected {
        /// Its reason.
        reason: ReasonCode,
        /// What it says about it.
        text: Option<String>,
    },
    /// The server refused a message; it will not be sent again.
    #[error("the server refused a message: {reason}")]
    MessageRefused {
        /// Its reason.
        reason: ReasonCode,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Broken {
        /// How.
        source: std::io::Error,
    },
    /// The server was silent for too long.
    #[error("no {what} within {}", seconds(*.after))]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The server sent what MQTT does not allow.
    #[error("the server broke the protocol")]
    Decode {
        /// How.
        #[from]
        source: DecodeError,
    },
    /// The server sent what does not belong there.
    #[error("the server broke the protocol: {what}")]
    Unexpected {
        /// What it sent.
        what: String,
    },
    /// A message that cannot be said.
    #[error("cannot send this")]
    Encode {
        /// Why not.
        #[from]
        source: EncodeError,
    },
    /// A topic filter that is none.
    #[error("topic filter `{filter}` {source}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: TopicError,
    },
    /// The message is larger than the server takes.
    #[error("the message has {size} bytes, the server takes at most {limit}")]
    TooLarge {
        /// Bytes of the packet.
        size: usize,
        /// The server's limit.
        limit: usize,
    },
    /// As many messages wait as may.
    #[error("{limit} messages wait already; send more slowly or raise the queue's limit")]
    QueueFull {
        /// How many may.
        limit: usize,
    },
    /// The client has given up or was finished.
    #[error("the client has stopped")]
    Stopped,
    /// Time ran out with messages unacknowledged.
    #[error("{open} messages are not acknowledged after {}", seconds(*.after))]
    Unfinished {
        /// How many.
        open: u64,
        /// How long was waited.
        after: Duration,
    },
}

fn in_words(text: &Option<String>) -> String {
    text.as_ref()
        .map(|text| format!(" ({text})"))
        .unwrap_or_default()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

impl ClientError {
    /// Whether trying again cannot help: somebody else took over, or the server will never take us.
    fn is_final(&self) -> bool {
        let reason = match self {
            Self::Refused { reason, .. } | Self::Disconnected { reason, .. } => *reason,
            Self::Encode { .. } => return true, // the CONNECT itself
            _ => return false,
        };
        matches!(
            reason,
            ReasonCode::SessionTakenOver
                | ReasonCode::UnsupportedProtocolVersion
                | ReasonCode::ClientIdentifierNotValid
                | ReasonCode::ServerMoved
        )
    }
}

/// A message to be published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outgoing {
    /// Topic.
    pub topic: Utf8,
    /// Bytes.
    pub payload: Bytes,
    /// How often it may arrive.
    pub delivery: Delivery,
    /// Whether the server keeps it for later subscribers.
    pub retained: bool,
    /// What the bytes are (MQTT 5).
    pub content_type: Option<Utf8>,
    /// Names and values (MQTT 5).
    pub user_properties: Vec<(Utf8, Utf8)>,
}

impl Outgoing {
    fn encoded(self, version: Version, done: Option<Done>) -> Result<Message, EncodeError> {
        Ok(Message {
            delivery: self.delivery,
            frame: self.frame(version)?,
            done,
        })
    }

    fn frame(self, version: Version) -> Result<PublishFrame, EncodeError> {
        let publish = Publish {
            qos: self.delivery.into(),
            retain: self.retained,
            topic: self.topic,
            payload: self.payload,
            properties: PublishProperties {
                content_type: self.content_type,
                user_properties: self.user_properties,
                ..PublishProperties::default()
            },
            ..Publish::default()
        };
        let layout = Layout {
            retain: self.retained,
            ..Layout::of(&publish, version)
        };
        PublishFrame::new(&publish, layout)
    }
}

/// What a client has done so far. Read at any time.
#[derive(Debug, Default)]
pub struct ClientCounters {
    accepted: AtomicU64,
    published: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    resent: AtomicU64,
    connects: AtomicU64,
    resumed: AtomicU64,
    failures: AtomicU64,
    received: AtomicU64,
    connected: AtomicBool,
}

macro_rules! counted {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])* pub fn $name(&self) -> u64 { self.$name.load(Ordering::Relaxed) })*
    };
}

impl ClientCounters {
    counted! {
        /// Messages taken from the caller.
        accepted,
        /// Messages sent, each counted once however often it was.
        published,
        /// Messages that are done: acknowledged with success, or QoS 0 and written.
        acknowledged,
        /// Messages the server refused for good.
        refused,
        /// Messages sent again after a connection broke.
        resent,
        /// Connections the server accepted.
        connects,
        /// Connections on which the server still knew the session.
        resumed,
        /// Connections that broke, were refused or not made.
        failures,
        /// Messages received.
        received,
    }

    /// Whether the server has accepted a connection that still stands.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Messages taken and not done yet.
    pub fn open(&self) -> u64 {
        // In this order: what is done was accepted before.
        let done = self.acknowledged() + self.refused();
        self.accepted().saturating_sub(done)
    }

    fn add(&self, counter: fn(&Self) -> &AtomicU64) {
        counter(self).fetch_add(1, Ordering::Relaxed);
    }
}

type Done = oneshot::Sender<Result<(), ClientError>>;

/// What the handle asks of the task.
enum Command {
    Publish(Message),
    Subscribe {
        subscriptions: Vec<Subscription>,
        done: oneshot::Sender<Result<Vec<ReasonCode>, ClientError>>,
    },
    Finish,
}

/// A connection to a server that is kept up. Dropping it drops the connection without a goodbye,
/// as a power cut does; [`Client::finish`] takes leave.
#[derive(Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    counters: Arc<ClientCounters>,
    version: Version,
    queue: usize,
    task: JoinHandle<()>,
}

/// The messages a client receives.
pub type Incoming = mpsc::Receiver<Publish>;

/// Messages received and not yet taken, at most; the connection then waits, and the server with it.
const INCOMING: usize = 64;

impl Client {
    /// Connects, and returns when the server has accepted.
    ///
    /// # Errors
    /// [`ClientError`] of the first try; later breaks are the task's business.
    pub async fn connect(options: ClientOptions) -> Result<(Self, Incoming), ClientError> {
        let (first, connected) = oneshot::channel();
        let (client, incoming) = Self::spawn(options, Some(first));
        match connected.await {
            Ok(Ok(())) => Ok((client, incoming)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ClientError::Stopped),
        }
    }

    /// Starts a client that connects in the background, trying as often as it takes. Must be called
    /// within a tokio runtime.
    pub fn start(options: ClientOptions) -> (Self, Incoming) {
        Self::spawn(options, None)
    }

    fn spawn(
        options: ClientOptions,
        first: Option<oneshot::Sender<Result<(), ClientError>>>,
    ) -> (Self, Incoming) {
        let queue = options.queue.max(1);
        let (commands, inbox) = mpsc::channel(queue);
        let (deliver, incoming) = mpsc::channel(INCOMING);
        let counters = Arc::clone(&options.counters);
        let version = options.version;
        let life = connection::Life::new(options, inbox, deliver);
        let task = tokio::spawn(life.run(first));
        let client = Self {
            commands,
            counters,
            version,
            queue,
            task,
        };
        (client, incoming)
    }

    /// What it has done so far.
    pub fn counters(&self) -> &Arc<ClientCounters> {
        &self.counters
    }

    /// Publishes, waiting for room in the queue. The [`Receipt`] resolves when the message is done.
    ///
    /// # Errors
    /// [`ClientError::Encode`] for what cannot be said, [`ClientError::Stopped`].
    pub async fn publish(&self, message: Outgoing) -> Result<Receipt, ClientError> {
        let (done, receipt) = oneshot::channel();
        self.enqueue(message, Some(done)).await?;
        Ok(Receipt { receipt })
    }

    /// Publishes, waiting for room in the queue; what becomes of it shows in the counters.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn post(&self, message: Outgoing) -> Result<(), ClientError> {
        self.enqueue(message, None).await
    }

    /// Publishes if there is room in the queue; what becomes of it shows in the counters.
    ///
    /// # Errors
    /// As [`Self::publish`], and [`ClientError::QueueFull`].
    pub fn try_publish(&self, message: Outgoing) -> Result<(), ClientError> {
        let message = message.encoded(self.version, None)?;
        match self.commands.try_reserve() {
            Ok(slot) => {
                self.counters.add(|c| &c.accepted);
                slot.send(Command::Publish(message));
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                Err(ClientError::QueueFull { limit: self.queue })
            }
            Err(mpsc::error::TrySendError::Closed(())) => Err(ClientError::Stopped),
        }
    }

    async fn enqueue(&self, message: Outgoing, done: Option<Done>) -> Result<(), ClientError> {
        let message = message.encoded(self.version, done)?;
        let slot = self.commands.reserve().await;
        let slot = slot.map_err(|_| ClientError::Stopped)?;
        self.counters.add(|c| &c.accepted);
        slot.send(Command::Publish(message));
        Ok(())
    }

    /// Subscribes, and keeps the subscriptions over reconnections. Returns what the server granted
    /// for each filter.
    ///
    /// # Errors
    /// [`ClientError::Filter`], [`ClientError::Stopped`], or that of the connection on which the
    /// request was lost.
    pub async fn subscribe(
        &self,
        filters: &[(&str, Delivery)],
    ) -> Result<Vec<ReasonCode>, ClientError> {
        let subscriptions = filters
            .iter()
            .map(|(filter, delivery)| match TopicFilter::parse(filter) {
                Ok(parsed) => Ok(Subscription::new(parsed, (*delivery).into())),
                Err(source) => Err(ClientError::Filter {
                    filter: (*filter).to_owned(),
                    source,
                }),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (done, granted) = oneshot::channel();
        let command = Command::Subscribe {
            subscriptions,
            done,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| ClientError::Stopped)?;
        granted.await.unwrap_or(Err(ClientError::Stopped))
    }

    /// Sends what is queued, waits for all acknowledgements, says DISCONNECT and stops; at the
    /// deadline it stops anyway.
    ///
    /// # Errors
    /// [`ClientError::Unfinished`] with the number of messages that nobody acknowledged.
    pub async fn finish(mut self, within: Duration) -> Result<(), ClientError> {
        let deadline = Instant::now() + within;
        let leave = async {
            // A closed channel means the task has ended already.
            let _ = self.commands.send(Command::Finish).await;
            (&mut self.task).await
        };
        if tokio::time::timeout_at(deadline, leave).await.is_err() {
            self.task.abort();
            // Joined, so that the socket is closed when this returns.
            let _ = (&mut self.task).await;
        }
        match self.counters.open() {
            0 => Ok(()),
            open => Err(ClientError::Unfinished {
                open,
                after: within,
            }),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Resolves when a message is done: acknowledged, or for QoS 0 written.
#[derive(Debug)]
pub struct Receipt {
    receipt: oneshot::Receiver<Result<(), ClientError>>,
}

impl Future for Receipt {
    type Output = Result<(), ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(Pin::new(&mut self.receipt).poll(context));
        Poll::Ready(result.unwrap_or(Err(ClientError::Stopped)))
    }
}
