//! Transport: from an address to a stream of bytes, over TCP, TLS, WebSocket or QUIC.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ClientError;
use super::quic::Quic;
#[cfg(feature = "web-socket")]
use super::web_socket::WebSocket;

/// Host and port of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    host: Arc<str>,
    port: u16,
}

/// A text is no `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("server `{text}` is not HOST:PORT, such as localhost:8883 or [::1]:8883")]
pub struct ServerError {
    /// The text.
    pub text: String,
}

impl Server {
    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn name(&self) -> Result<ServerName<'static>, io::Error> {
        ServerName::try_from(self.host.to_string())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let host = match host.strip_prefix('[') {
                Some(inner) => inner.strip_suffix(']')?,
                None if host.contains(':') => return None, // an IPv6 address without brackets
                None => host,
            };
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (!host.is_empty()).then(|| Self {
                host: host.into(),
                port,
            })
        };
        parse().ok_or_else(|| ServerError {
            text: text.to_owned(),
        })
    }
}

impl From<std::net::SocketAddr> for Server {
    fn from(address: std::net::SocketAddr) -> Self {
        Self {
            host: address.ip().to_string().into(),
            port: address.port(),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How bytes travel.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Plain TCP: loopback and tests.
    Tcp,
    /// TLS; the configuration says whom to trust and who we are.
    Tls(Arc<ClientConfig>),
    /// WebSocket over plain TCP.
    WebSocket {
        /// Path of the request, such as `/mqtt`.
        path: Arc<str>,
    },
    /// WebSocket over TLS. [`Transport::secure_web_socket`] makes one.
    SecureWebSocket {
        /// Whom to trust and who we are.
        tls: Arc<ClientConfig>,
        /// Path of the request, such as `/mqtt`.
        path: Arc<str>,
    },
    /// The first stream of a QUIC connection.
    Quic(Quic),
}

impl Transport {
    /// WebSocket over TLS, which says `http/1.1` in ALPN: a port may serve MQTT as well.
    pub fn secure_web_socket(tls: &ClientConfig, path: impl Into<Arc<str>>) -> Self {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self::SecureWebSocket {
            tls: Arc::new(tls),
            path: path.into(),
        }
    }
}

/// A connected stream of any kind.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A stream, and how it came about.
pub(crate) struct Connected {
    pub(crate) wire: Box<dyn Wire>,
    /// Whether TLS was shortened by resumption; over TCP and QUIC it is not known.
    pub(crate) handshake: Option<HandshakeKind>,
}

impl Connected {
    fn plain(wire: impl Wire + 'static) -> Self {
        Self {
            wire: Box::new(wire),
            handshake: None,
        }
    }
}

/// Connects.
pub(crate) async fn connect(
    server: &Server,
    transport: &Transport,
) -> Result<Connected, ClientError> {
    match transport {
        Transport::Tcp => Ok(Connected::plain(tcp(server).await?)),
        Transport::Tls(config) => {
            let stream = tls(server, config).await?;
            Ok(Connected {
                handshake: stream.get_ref().1.handshake_kind(),
                wire: Box::new(stream),
            })
        }
        #[cfg(feature = "web-socket")]
        Transport::WebSocket { path } => {
            let stream = tcp(server).await?;
            let socket = Box::pin(WebSocket::open(stream, server, path)).await;
            Ok(Connected::plain(socket.map_err(no_upgrade(server))?))
        }
        #[cfg(feature = "web-socket")]
        Transport::SecureWebSocket { tls: config, path } => {
            let stream = tls(server, config).await?;
            let handshake = stream.get_ref().1.handshake_kind();
            let socket = Box::pin(WebSocket::open(stream, server, path)).await;
            Ok(Connected {
                wire: Box::new(socket.map_err(no_upgrade(server))?),
                handshake,
            })
        }
        #[cfg(not(feature = "web-socket"))]
        Transport::WebSocket { .. } | Transport::SecureWebSocket { .. } => {
            Err(no_upgrade(server)(io::Error::new(
                io::ErrorKind::Unsupported,
                "this program was built without the feature `web-socket`",
            )))
        }
        Transport::Quic(quic) => {
            let stream = Box::pin(quic.connect(server)).await;
            let failed = |source| ClientError::Quic {
                server: server.clone(),
                source,
            };
            Ok(Connected::plain(stream.map_err(failed)?))
        }
    }
}

async fn tcp(server: &Server) -> Result<TcpStream, ClientError> {
    let connected = async {
        let tcp = TcpStream::connect((server.host(), server.port())).await?;
        // Small messages, each waited for: delaying them to fill segments would only add latency.
        tcp.set_nodelay(true)?;
        Ok(tcp)
    };
    connected.await.map_err(|source| ClientError::Unreachable {
        server: server.clone(),
        source,
    })
}

async fn tls(
    server: &Server,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ClientError> {
    let tls_failed = |source| ClientError::Tls {
        server: server.clone(),
        source,
    };
    let tcp = tcp(server).await?;
    let name = server.name().map_err(tls_failed)?;
    let connector = TlsConnector::from(Arc::clone(config));
    // Boxed: the handshake's state is large, and thousands may wait at once.
    Box::pin(connector.connect(name, tcp))
        .await
        .map_err(tls_failed)
}

fn no_upgrade(server: &Server) -> impl FnOnce(io::Error) -> ClientError {
    let server = server.clone();
    |source| ClientError::WebSocket { server, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, expected) in [
            ("localhost:8883", Some(("localhost", 8883))),
            ("127.0.0.1:1", Some(("127.0.0.1", 1))),
            ("[::1]:8883", Some(("::1", 8883))),
            ("::1:8883", None),
            ("localhost", None),
            (":8883", None),
            ("localhost:0", None),
            ("localhost:99999", None),
            ("[::1:8883", None),
        ] {
            let server = text.parse::<Server>().ok();
            let parts = server.as_ref().map(|s| (s.host(), s.port()));
            assert_eq!(parts, expected, "{text}");
            if let Some(server) = server {
                assert_eq!(server.to_string(), text);
            }
        }
    }
}
