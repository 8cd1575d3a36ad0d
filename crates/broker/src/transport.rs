//! What the broker listens on: addresses, how bytes travel there, and who may speak for others.
//!
//! A listener has up to three layers, and a connection passes them in this order: the header of a
//! proxy that says for whom it speaks ([`Proxies`]), TLS ([`Tls`]), and what is spoken inside, which
//! is MQTT as it is, MQTT in a WebSocket, or either on one port ([`Web`]).

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fmt, io};

use rustls::ServerConfig;

use crate::address_range::AddressRange;
use crate::listener_limits::ListenerLimits;
use crate::shell::web::WebConnection;

/// One address to listen on.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Name in logs and in [`ConnectAttempt::listener`](crate::ConnectAttempt::listener).
    pub name: Arc<str>,
    /// Where connections come in.
    pub bind: Bind,
    /// How bytes travel.
    pub transport: Transport,
    /// Who says for whom they connect.
    pub proxies: Proxies,
    /// Bounds of this listener, beside those of the broker.
    pub limits: ListenerLimits,
}

impl ListenerConfig {
    /// A listener that clients connect to themselves.
    pub fn new(
        name: impl Into<Arc<str>>,
        bind: impl Into<Bind>,
        transport: Transport,
    ) -> ListenerConfig {
        ListenerConfig {
            name: name.into(),
            bind: bind.into(),
            transport,
            proxies: Proxies::None,
            limits: ListenerLimits::default(),
        }
    }
}

/// Where a listener's connections come in.
#[derive(Debug, Clone)]
pub enum Bind {
    /// An address to listen on; port 0 lets the system choose, see
    /// [`BrokerHandle::listeners`](crate::BrokerHandle::listeners).
    Address(SocketAddr),
    /// A socket that listens already, so that a program can take all its ports before it serves
    /// any. Shared only because a configuration can be cloned.
    Socket(Arc<TcpListener>),
    /// The same for [`Transport::Quic`], which travels in datagrams.
    Datagrams(Arc<UdpSocket>),
}

impl From<SocketAddr> for Bind {
    fn from(address: SocketAddr) -> Bind {
        Bind::Address(address)
    }
}

impl From<TcpListener> for Bind {
    fn from(socket: TcpListener) -> Bind {
        Bind::Socket(Arc::new(socket))
    }
}

impl From<UdpSocket> for Bind {
    fn from(socket: UdpSocket) -> Bind {
        Bind::Datagrams(Arc::new(socket))
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address: io::Result<SocketAddr> = match self {
            Bind::Address(address) => Ok(*address),
            Bind::Socket(socket) => socket.local_addr(),
            Bind::Datagrams(socket) => socket.local_addr(),
        };
        match address {
            Ok(address) => address.fmt(f),
            Err(_) => f.write_str("a socket without an address"),
        }
    }
}

/// How bytes travel between client and broker.
#[derive(Clone)]
pub enum Transport {
    /// MQTT over plain TCP (`mqtt`). Who may listen like this, and where, is the caller's concern.
    Tcp,
    /// MQTT over TLS (`mqtts`), with [`Tls::web`] also HTTPS and WebSocket on the same port.
    Tls(Tls),
    /// MQTT in a WebSocket over plain TCP (`ws`).
    WebSocket(WebSocket),
    /// MQTT in a WebSocket over TLS (`wss`). Of [`Tls::web`] only [`Web::other`] is looked at.
    SecureWebSocket(Tls, WebSocket),
    /// MQTT in the first stream of a QUIC connection (`quic`). [`Tls::web`] is not looked at.
    Quic(Tls),
}

impl Transport {
    /// The protocol's name in configuration: `mqtt`, `mqtts`, `ws`, `wss` or `quic`.
    pub fn protocol(&self) -> &'static str {
        self.kind().name()
    }

    pub(crate) fn kind(&self) -> Protocol {
        match self {
            Transport::Tcp => Protocol::Mqtt,
            Transport::Tls(_) => Protocol::Mqtts,
            Transport::WebSocket(_) => Protocol::Ws,
            Transport::SecureWebSocket(..) => Protocol::Wss,
            Transport::Quic(_) => Protocol::Quic,
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.protocol())
    }
}

/// What one connection speaks. Not always what its listener is called: a port may serve several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Mqtt,
    Mqtts,
    Ws,
    Wss,
    Quic,
}

impl Protocol {
    /// The same in a WebSocket.
    pub(crate) fn in_websocket(self) -> Protocol {
        match self {
            Protocol::Mqtt => Protocol::Ws,
            Protocol::Mqtts => Protocol::Wss,
            other => other,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Mqtt => "mqtt",
            Protocol::Mqtts => "mqtts",
            Protocol::Ws => "ws",
            Protocol::Wss => "wss",
            Protocol::Quic => "quic",
        }
    }
}

/// The TLS layer of a listener.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificates, trust and versions.
    pub settings: TlsSettings,
    /// Whether a client must show a certificate.
    pub client_certificate: ClientCertificate,
    /// What else the port serves; `None` for MQTT alone.
    ///
    /// A client says by ALPN (RFC 7301) what it wants: `mqtt` or `x-amzn-mqtt-ca` for MQTT, `http/1.1`
    /// for HTTPS and WebSocket. Who says nothing is served by what it sends first. Who asks only for
    /// something else is refused in the handshake, also where the port serves MQTT alone.
    pub web: Option<Web>,
}

impl Tls {
    /// TLS with a client certificate, for MQTT alone.
    pub fn new(settings: TlsSettings) -> Tls {
        Tls {
            settings,
            client_certificate: ClientCertificate::Required,
            web: None,
        }
    }
}

/// Whether a client must show a certificate. The settings say which ones are good; this says what
/// happens to a client without any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// It is refused: by the handshake if the settings insist too, else after it. So settings that were
    /// made too lax by mistake do not open the port, nor do sessions resumed from other listeners.
    Required,
    /// It is served, and [`ConnectAttempt::certificates`](crate::ConnectAttempt::certificates) is empty.
    Optional,
}

/// Certificates, keys, trust and versions of one or more listeners, replaceable while they serve.
///
/// Clones are the same settings. A connection keeps what it was made with, so replacing disturbs
/// nobody.
///
/// A client that resumes a session is not verified again: its certificate is the one of its first
/// handshake. Settings that trust less than those before must therefore come with session storage and
/// tickets of their own (what a new `ServerConfig` has), and whoever answers
/// [`Hooks::authenticate`](crate::Hooks::authenticate) must look at the certificate each time. Settings
/// that differ in the server's certificate alone may take the old storage over, and save the fleet a
/// full handshake.
#[derive(Clone)]
pub struct TlsSettings {
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl TlsSettings {
    /// Settings to begin with. What it says of ALPN and early data is not used: the first follows from
    /// what a listener serves, the second is off, since a CONNECT in it could be replayed.
    pub fn new(config: ServerConfig) -> TlsSettings {
        TlsSettings {
            current: Arc::new(RwLock::new(Arc::new(config))),
        }
    }

    /// Uses `config` for every handshake that begins from now on. Standing connections, and handshakes
    /// under way, go on with what they have.
    pub fn replace(&self, config: ServerConfig) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(config);
    }

    /// What handshakes use now.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSettings")
    }
}

/// What a TLS port serves besides MQTT.
#[derive(Clone)]
pub struct Web {
    /// WebSocket connections that carry MQTT; `None` for none.
    pub websocket: Option<WebSocket>,
    /// Everything else that speaks HTTP. `None`: it is answered with 404 and closed.
    pub other: Option<Arc<dyn WebService>>,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web")
            .field("websocket", &self.websocket)
            .field("other", &self.other.is_some())
            .finish()
    }
}

/// How MQTT is offered in a WebSocket (MQTT 5 section 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocket {
    /// Path of the request that opens it, `/mqtt` by default. Begins with a slash.
    pub path: String,
}

impl Default for WebSocket {
    fn default() -> WebSocket {
        WebSocket {
            path: "/mqtt".to_owned(),
        }
    }
}

/// Takes the HTTP connections of a port that the broker shares.
///
/// The broker may be the last to let go of it, on a thread where no runtime may be dropped: hold a
/// `tokio::runtime::Handle`, not the runtime.
pub trait WebService: Send + Sync + 'static {
    /// Takes a connection over. Called on a worker of the broker, so it must not block: spawn, and let
    /// the task call [`WebConnection::into_io`].
    fn serve(&self, connection: WebConnection);
}

/// Who says for whom they connect: proxies and load balancers in front of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxies {
    /// Nobody; a connection is its client's own.
    None,
    /// Who connects from one of these addresses must begin with a PROXY protocol header, version 1 or 2.
    /// Everybody else is closed unheard: what a header says is believed.
    From(Vec<AddressRange>),
}
