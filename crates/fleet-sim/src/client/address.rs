//! Address: a server and how to speak to it, in one text such as `mqtts://car.example:8883`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::ClientConfig;

use super::quic::Quic;
use super::transport::{Server, Transport};

/// Path of WebSockets when none is given.
const PATH: &str = "/mqtt";

/// A way of carrying MQTT, by its scheme in URLs and its name in the server's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `mqtt`: plain TCP.
    Mqtt,
    /// `mqtts`: TLS.
    Mqtts,
    /// `ws`: WebSocket over plain TCP.
    Ws,
    /// `wss`: WebSocket over TLS.
    Wss,
    /// `quic`: the first stream of a QUIC connection.
    Quic,
}

impl Scheme {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Mqtt, Self::Mqtts, Self::Ws, Self::Wss, Self::Quic];

    /// As in URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Quic => "quic",
        }
    }

    /// Whether it is encrypted, and so needs to know whom to trust.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss | Self::Quic)
    }
}

/// A server and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// How.
    pub scheme: Scheme,
    /// Where.
    pub server: Server,
    /// Path of the WebSocket; the others have none.
    pub path: Option<Arc<str>>,
}

/// A text is no address, or one that cannot be used like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form.
    #[error(
        "`{text}` is no address such as mqtt://HOST:PORT, mqtts://HOST:PORT, ws://HOST:PORT/mqtt, wss://HOST:PORT/mqtt or quic://HOST:PORT"
    )]
    Form {
        /// The text.
        text: String,
    },
    /// An encrypted scheme without anybody to trust.
    #[error("{scheme} needs a CA to check the server by", scheme = scheme.name())]
    NobodyTrusted {
        /// The scheme.
        scheme: Scheme,
    },
    /// TLS settings that QUIC cannot use.
    #[error("QUIC needs TLS 1.3 with AES-128-GCM; the TLS configuration does not offer it")]
    NoQuic,
}

impl Address {
    /// The transport for it. `tls` says whom to trust and who we are; schemes without encryption do
    /// without.
    ///
    /// # Errors
    /// [`AddressError::NobodyTrusted`] if the scheme needs `tls` and there is none;
    /// [`AddressError::NoQuic`].
    pub fn transport(&self, tls: Option<Arc<ClientConfig>>) -> Result<Transport, AddressError> {
        let path = || self.path.clone().unwrap_or_else(|| PATH.into());
        let tls = || {
            tls.ok_or(AddressError::NobodyTrusted {
                scheme: self.scheme,
            })
        };
        Ok(match self.scheme {
            Scheme::Mqtt => Transport::Tcp,
            Scheme::Mqtts => Transport::Tls(tls()?),
            Scheme::Ws => Transport::WebSocket { path: path() },
            Scheme::Wss => Transport::secure_web_socket(&*tls()?, path()),
            Scheme::Quic => Transport::Quic(Quic::new(&*tls()?).map_err(|_| AddressError::NoQuic)?),
        })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parse = || {
            let (scheme, rest) = text.split_once("://")?;
            let scheme = Scheme::ALL
                .into_iter()
                .find(|known| known.name() == scheme)?;
            let (server, path) = match rest.find('/') {
                Some(at) => (&rest[..at], Some(&rest[at..])),
                None => (rest, None),
            };
            let web = matches!(scheme, Scheme::Ws | Scheme::Wss);
            let path = match path {
                Some(path) if web => Some(path.into()),
                None | Some("/") => web.then(|| PATH.into()),
                Some(_) => return None, // only WebSockets have paths
            };
            Some(Self {
                scheme,
                server: server.parse().ok()?,
                path,
            })
        };
        parse().ok_or_else(|| AddressError::Form {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_deref().unwrap_or_default();
        write!(f, "{}://{}{path}", self.scheme.name(), self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, expected) in [
            ("mqtt://localhost:1883", Some("mqtt://localhost:1883")),
            ("mqtts://[::1]:8883/", Some("mqtts://[::1]:8883")),
            ("quic://car.example:14567", Some("quic://car.example:14567")),
            ("ws://localhost:80", Some("ws://localhost:80/mqtt")),
            ("ws://localhost:80/", Some("ws://localhost:80/")),
            (
                "wss://localhost:443/a/b?c",
                Some("wss://localhost:443/a/b?c"),
            ),
            ("mqtt://localhost:1883/mqtt", None),
            ("http://localhost:80", None),
            ("localhost:1883", None),
            ("mqtt://localhost", None),
            ("", None),
        ] {
            let address = text.parse::<Address>().ok().map(|a| a.to_string());
            assert_eq!(address.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_encrypted_wants_to_know_whom_to_trust() {
        for scheme in Scheme::ALL {
            let address: Address = format!("{}://localhost:1", scheme.name()).parse().unwrap();
            assert_eq!(
                address.transport(None).is_err(),
                scheme.is_secure(),
                "{scheme:?}"
            );
        }
    }
}
