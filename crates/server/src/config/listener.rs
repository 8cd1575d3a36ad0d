//! `[[listener]]`: where MQTT clients connect, by which transport, and how they are known there.
//!
//! What only some transports have (a path, certificates, a proxy in front) lives in those variants, so
//! that the rest of the program cannot ask a plain port for its certificate.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use broker::AddressRange;

use super::{
    access::{Access, Anonymous},
    document::Place,
    loopback,
    rate::{Counted, Rate},
    reading::{Placed, Section},
};

/// Where WebSocket clients expect MQTT.
const DEFAULT_PATH: &str = "/mqtt";

/// One `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens. Port 0 lets the system choose.
    pub bind: SocketAddr,
    /// What is spoken there.
    pub transport: Transport,
    /// By what clients are known.
    pub auth: Auth,
    /// What becomes of a client without credentials, where [`Auth`] lets one come.
    pub anonymous: Anonymous,
    /// Proxies in front of it, each of which says for whom it connects; `None`: clients connect themselves.
    pub proxies: Option<Vec<AddressRange>>,
    /// Bounds of this listener beside those of all.
    pub limits: ListenerLimits,
}

/// What a listener speaks, with what only that has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// MQTT over TCP.
    Mqtt,
    /// MQTT over TLS; with a path, WebSocket and HTTPS on the same port.
    Mqtts {
        /// Certificates and trust.
        tls: Tls,
        /// Path of WebSocket requests, if they are served.
        path: Option<String>,
    },
    /// MQTT in a WebSocket.
    Ws {
        /// Path of the request.
        path: String,
    },
    /// MQTT in a WebSocket over TLS.
    Wss {
        /// Certificates and trust.
        tls: Tls,
        /// Path of the request.
        path: String,
    },
    /// MQTT in a stream of QUIC.
    Quic {
        /// Certificates and trust.
        tls: Tls,
    },
}

impl Transport {
    /// As it is named in the configuration.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts { .. } => "mqtts",
            Self::Ws { .. } => "ws",
            Self::Wss { .. } => "wss",
            Self::Quic { .. } => "quic",
        }
    }

    /// Certificates and trust, where there is TLS.
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Mqtts { tls, .. } | Self::Wss { tls, .. } | Self::Quic { tls } => Some(tls),
            Self::Mqtt | Self::Ws { .. } => None,
        }
    }
}

/// The TLS layer of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Names and addresses in the certificate of the fleet CA, besides the bound address and `localhost`.
    pub names: Vec<String>,
    /// Certificates of other CAs, chosen by the name a client asks for; the first where none fits.
    pub certificates: Vec<CertificateFiles>,
    /// CAs whose clients are let through the handshake, besides the fleet CA; PEM files.
    pub client_ca: Vec<PathBuf>,
    /// The oldest version spoken.
    pub minimum: TlsVersion,
}

impl Tls {
    /// Whether the fleet CA's certificate is shown here: always, unless files take its place.
    pub fn shows_fleet_certificate(&self) -> bool {
        self.certificates.is_empty() || !self.names.is_empty()
    }
}

/// One `[[listener.certificate]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the server's certificate, then what stands above it.
    pub chain: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// `listener.tls_min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3.
    V12,
    /// TLS 1.3 only.
    V13,
}

/// `listener.auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// By certificate; nobody else.
    Certificate,
    /// By certificate; who has none is anonymous.
    CertificateOrAnonymous,
    /// No certificate is asked for.
    Anonymous,
}

impl Auth {
    /// Whether certificates are looked at.
    pub fn by_certificate(self) -> bool {
        self != Self::Anonymous
    }

    /// Whether a client without one may ask to be let in.
    pub fn without_certificate(self) -> bool {
        self != Self::Certificate
    }
}

/// Bounds of one listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Connections at once.
    pub max_connections: Option<u32>,
    /// New connections.
    pub connect_rate: Option<Rate>,
    /// TLS handshakes at once.
    pub max_handshakes: Option<u32>,
    /// Messages of all its clients.
    pub message_rate_in: Option<Rate>,
    /// Bytes of all its clients.
    pub byte_rate_in: Option<Rate>,
}

/// An address that is taken, and in which of the two port spaces.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub(super) bind: Placed<SocketAddr>,
    pub(super) port: Port,
}

/// TCP and UDP number their ports apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Port {
    Tcp,
    Udp,
}

/// The one listener of an empty file.
pub(super) fn by_default(binds: &mut Vec<Taken>) -> Vec<Listener> {
    let bind = loopback(8883);
    binds.push(Taken {
        bind: Placed {
            value: bind,
            place: Place::Default,
        },
        port: Port::Tcp,
    });
    vec![Listener {
        bind,
        transport: Transport::Mqtts {
            tls: Tls {
                names: Vec::new(),
                certificates: Vec::new(),
                client_ca: Vec::new(),
                minimum: TlsVersion::V12,
            },
            path: None,
        },
        auth: Auth::Certificate,
        anonymous: Anonymous::Deny,
        proxies: None,
        limits: ListenerLimits::default(),
    }]
}

#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    Mqtt,
    Mqtts,
    Ws,
    Wss,
    Quic,
}

impl Protocol {
    fn has_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss | Self::Quic)
    }

    /// The registered port of MQTT, with and without TLS; for the others, which have none, what other
    /// brokers use.
    fn default_port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 8083,
            Self::Wss => 8084,
            Self::Quic => 14567,
        }
    }
}

/// Reads one entry.
pub(super) fn read(
    mut section: Section<'_>,
    access: &Access,
    binds: &mut Vec<Taken>,
) -> Option<Listener> {
    let protocol = section.word(
        "protocol",
        Protocol::Mqtts,
        &[
            ("mqtt", Protocol::Mqtt),
            ("mqtts", Protocol::Mqtts),
            ("ws", Protocol::Ws),
            ("wss", Protocol::Wss),
            ("quic", Protocol::Quic),
        ],
    );
    let bind = section.address("bind", loopback(protocol.default_port()));
    let path = read_path(&mut section, protocol);
    let tls = read_tls(&mut section, protocol);
    let proxies = read_proxies(&mut section, protocol, bind.value);
    let auth = read_auth(&mut section, protocol, proxies.is_some());
    let anonymous = match auth.without_certificate() {
        true => access.anonymous.value,
        false => Anonymous::Deny,
    };
    refuse_open_doors(
        &mut section,
        protocol,
        &bind,
        proxies.is_some(),
        anonymous,
        access,
    );
    let limits = ListenerLimits {
        max_connections: section
            .optional_integer("max_connections", 1..=10_000_000)
            .map(|number| number as u32),
        connect_rate: section.rate("connect_rate", None, Counted::Things),
        max_handshakes: section
            .optional_integer("max_handshakes", 1..=1_000_000)
            .map(|number| number as u32),
        message_rate_in: section.rate("message_rate_in", None, Counted::Things),
        byte_rate_in: section.rate("byte_rate_in", None, Counted::Bytes),
    };
    let path_or_default = path.clone().unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let listener = Listener {
        bind: bind.value,
        transport: match protocol {
            Protocol::Mqtt => Transport::Mqtt,
            Protocol::Mqtts => Transport::Mqtts { tls, path },
            Protocol::Ws => Transport::Ws {
                path: path_or_default,
            },
            Protocol::Wss => Transport::Wss {
                tls,
                path: path_or_default,
            },
            Protocol::Quic => Transport::Quic { tls },
        },
        auth,
        anonymous,
        proxies,
        limits,
    };
    binds.push(Taken {
        bind,
        port: match protocol {
            Protocol::Quic => Port::Udp,
            _ => Port::Tcp,
        },
    });
    section.finish();
    Some(listener)
}

fn read_path(section: &mut Section<'_>, protocol: Protocol) -> Option<String> {
    match protocol {
        Protocol::Mqtt | Protocol::Quic => {
            section.refuse(
                "path",
                "this protocol has no WebSocket",
                "remove it, or make the protocol \"ws\", \"wss\" or \"mqtts\"",
            );
            None
        }
        Protocol::Mqtts | Protocol::Ws | Protocol::Wss => section
            .optional_text("path", "write a path such as \"/mqtt\"", |text| {
                let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
                match text.starts_with('/') && text.len() <= 256 && text.bytes().all(plain) {
                    true => Ok(text.to_owned()),
                    false => Err(format!(
                        "\"{text}\" is not a path: a slash and up to 255 visible characters without ? and #"
                    )),
                }
            })
            .map(|placed| placed.value),
    }
}

fn read_tls(section: &mut Section<'_>, protocol: Protocol) -> Tls {
    if !protocol.has_tls() {
        for key in [
            "names",
            "certificate",
            "client_ca",
            "tls_min",
            "max_handshakes",
        ] {
            section.refuse(
                key,
                "this protocol has no TLS",
                "remove it, or make the protocol \"mqtts\", \"wss\" or \"quic\"",
            );
        }
    }
    let names = section
        .list(
            "names",
            "write the names clients connect to, such as [\"mqtt.example.com\"]",
            |name| match name.is_empty() || name.len() > 253 {
                true => Err("holds an empty name or one beyond 253 characters".into()),
                false => Ok(name.to_owned()),
            },
        )
        .map_or_else(Vec::new, |placed| placed.value);
    let certificates = section.sections("certificate", |mut section| {
        let chain =
            section.required_path("chain", "the file of the certificate and those above it");
        let key = section.required_path("key", "the file of its private key");
        section.finish();
        Some(CertificateFiles {
            chain: chain?,
            key: key?,
        })
    });
    let client_ca = section
        .list(
            "client_ca",
            "write the files of CA certificates (PEM)",
            |text| match text {
                "" => Err("holds an empty path".into()),
                text => Ok(Path::new(text).to_owned()),
            },
        )
        .map_or_else(Vec::new, |placed| placed.value);
    let minimum = match protocol {
        Protocol::Quic => {
            section
                .text(
                    "tls_min",
                    TlsVersion::V13,
                    "write \"1.3\" or leave the key out",
                    |text| match text {
                        "1.3" => Ok(TlsVersion::V13),
                        other => Err(format!("\"{other}\" is not what QUIC speaks")),
                    },
                )
                .value
        }
        _ => section.word(
            "tls_min",
            TlsVersion::V12,
            &[("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)],
        ),
    };
    Tls {
        names,
        certificates: certificates.unwrap_or_default(),
        client_ca,
        minimum,
    }
}

fn read_proxies(
    section: &mut Section<'_>,
    protocol: Protocol,
    bind: SocketAddr,
) -> Option<Vec<AddressRange>> {
    let on = section.flag_and_place("proxy_protocol", false);
    if !on.value {
        section.refuse(
            "proxies",
            "nobody is asked for whom it connects here",
            "remove it, or write proxy_protocol = true",
        );
        return None;
    }
    if protocol == Protocol::Quic {
        section.problem(
            &on.place,
            "proxy_protocol",
            "the PROXY protocol is not spoken over QUIC".into(),
            "remove it; QUIC clients reach this server directly".into(),
        );
    }
    let listed = section.list(
        "proxies",
        "write the addresses of the proxies, such as [\"10.0.0.0/8\"]",
        |text| AddressRange::from_str(text).map_err(|error| error.to_string()),
    );
    match listed {
        Some(listed) if !listed.value.is_empty() => Some(listed.value),
        None if bind.ip().is_loopback() => {
            let loopback = ["127.0.0.0/8", "::1"];
            Some(
                loopback
                    .iter()
                    .filter_map(|text| text.parse().ok())
                    .collect(),
            )
        }
        listed => {
            let place = listed.map_or(on.place, |listed| listed.place);
            section.problem(
                &place,
                "proxies",
                "is needed: whoever connects from there is believed for whom it connects".into(),
                "name the addresses of the proxies, such as [\"10.0.0.0/8\"]".into(),
            );
            Some(Vec::new())
        }
    }
}

fn read_auth(section: &mut Section<'_>, protocol: Protocol, behind_proxy: bool) -> Auth {
    #[derive(Clone, Copy, PartialEq)]
    enum Way {
        X509,
        Anonymous,
    }
    let default = match protocol.has_tls() {
        true => Auth::Certificate,
        false => Auth::Anonymous,
    };
    let listed = section.list(
        "auth",
        "write [\"x509\"], [\"x509\", \"anonymous\"] or [\"anonymous\"]",
        |text| match text {
            "x509" => Ok(Way::X509),
            "anonymous" => Ok(Way::Anonymous),
            "jwt" | "password" => Err(format!("\"{text}\" is not in this version")),
            other => Err(format!("\"{other}\" is not a way to authenticate")),
        },
    );
    let Some(listed) = listed else {
        return default;
    };
    let auth = match listed.value[..] {
        [Way::X509] => Auth::Certificate,
        [Way::X509, Way::Anonymous] => Auth::CertificateOrAnonymous,
        [Way::Anonymous] => Auth::Anonymous,
        _ => {
            section.problem(
                &listed.place,
                "auth",
                "is no order in which ways to authenticate could be tried".into(),
                "write [\"x509\"], [\"x509\", \"anonymous\"] or [\"anonymous\"]".into(),
            );
            return default;
        }
    };
    if auth.by_certificate() && !protocol.has_tls() && !behind_proxy {
        section.problem(
            &listed.place,
            "auth",
            "a listener without TLS sees no certificates".into(),
            "write [\"anonymous\"], make the protocol \"mqtts\" or \"wss\", or put a proxy in front that \
             checks them (proxy_protocol = true)"
                .into(),
        );
    }
    auth
}

/// What would be open to people who were not meant needs the word that says so.
fn refuse_open_doors(
    section: &mut Section<'_>,
    protocol: Protocol,
    bind: &Placed<SocketAddr>,
    behind_proxy: bool,
    anonymous: Anonymous,
    access: &Access,
) {
    let danger_plaintext = section.flag("danger_plaintext", false);
    let is_loopback = bind.value.ip().is_loopback();
    if !protocol.has_tls() && !is_loopback && !danger_plaintext {
        section.problem(
            &bind.place,
            "bind",
            format!("{} would carry plain text beyond this machine", bind.value),
            "bind to 127.0.0.1, use TLS (\"mqtts\", \"wss\"), or accept it with danger_plaintext = true"
                .into(),
        );
    }
    // Who comes through a proxy on this machine comes from anywhere.
    if anonymous == Anonymous::AllowAll
        && (!is_loopback || behind_proxy)
        && !access.danger_allow_open
    {
        section.problem(
            &bind.place,
            "bind",
            format!(
                "{} with access.anonymous = \"allow-all\" lets everybody in",
                bind.value
            ),
            "bind to 127.0.0.1 without a proxy, or accept it with access.danger_allow_open = true"
                .into(),
        );
    }
}
