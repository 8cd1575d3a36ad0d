//! Transport: from an address to a stream of bytes, plain or TLS.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ClientError;

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
}

/// A connected stream of either kind.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Connects.
pub(crate) async fn connect(
    server: &Server,
    transport: &Transport,
) -> Result<Box<dyn Wire>, ClientError> {
    let unreachable = |source| ClientError::Unreachable {
        server: server.clone(),
        source,
    };
    let tcp = TcpStream::connect((server.host(), server.port()))
        .await
        .map_err(unreachable)?;
    // Small messages, each waited for: delaying them to fill segments would only add latency.
    tcp.set_nodelay(true).map_err(unreachable)?;
    match transport {
        Transport::Tcp => Ok(Box::new(tcp)),
        Transport::Tls(config) => {
            let tls_failed = |source| ClientError::Tls {
                server: server.clone(),
                source,
            };
            let name = server.name().map_err(tls_failed)?;
            let connector = TlsConnector::from(Arc::clone(config));
            // Boxed: the handshake's state is large, and thousands may wait at once.
            let stream = Box::pin(connector.connect(name, tcp))
                .await
                .map_err(tls_failed)?;
            Ok(Box::new(stream))
        }
    }
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
