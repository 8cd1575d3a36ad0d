//! A listener as its connections find it: whom it hears, whether it encrypts, and what is spoken inside.

use std::sync::Arc;

use super::handshake::Handshakes;
use crate::admission::gate::Entrance;
use crate::transport::{ListenerConfig, Protocol, Proxies, Transport, Web, WebSocket};

/// What all connections of a listener share.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) name: Arc<str>,
    /// What its connections speak, unless they choose a WebSocket.
    pub(crate) protocol: Protocol,
    pub(crate) proxies: Proxies,
    /// Its bounds.
    pub(crate) entrance: Arc<Entrance>,
    /// The TLS layer, if there is one.
    pub(crate) tls: Option<Handshakes>,
    pub(crate) inside: Inside,
}

/// What is spoken inside a connection.
#[derive(Debug)]
pub(crate) enum Inside {
    Mqtt,
    /// HTTP, and MQTT in WebSockets.
    Web(Web),
    /// The client chooses, by ALPN or by what it sends first. Only with TLS.
    Either(Web),
}

impl Door {
    /// A listener whose connections are served by so many workers.
    ///
    /// # Errors
    /// What cannot be served as configured, with the remedy.
    pub(crate) fn new(config: &ListenerConfig, workers: usize) -> Result<Door, &'static str> {
        check(config)?;
        let (tls, inside) = match &config.transport {
            Transport::Tcp => (None, Inside::Mqtt),
            Transport::Tls(tls) => match &tls.web {
                None => (Some(tls), Inside::Mqtt),
                Some(web) => (Some(tls), Inside::Either(web.clone())),
            },
            Transport::WebSocket(websocket) => (None, Inside::Web(web(websocket, None))),
            Transport::SecureWebSocket(tls, websocket) => {
                (Some(tls), Inside::Web(web(websocket, tls.web.as_ref())))
            }
            Transport::Quic(tls) => (Some(tls), Inside::Mqtt),
        };
        Ok(Door {
            name: Arc::clone(&config.name),
            protocol: config.transport.kind(),
            proxies: config.proxies.clone(),
            entrance: Arc::new(Entrance::new(&config.limits, workers)),
            tls: tls.map(|tls| Handshakes::new(tls, &inside)),
            inside,
        })
    }

    /// Whether a connection is MQTT from its first byte on.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(
            self,
            Door {
                proxies: Proxies::None,
                tls: None,
                inside: Inside::Mqtt,
                ..
            }
        )
    }
}

/// A port for WebSocket, with the service that its TLS layer names for other requests.
fn web(websocket: &WebSocket, shared: Option<&Web>) -> Web {
    Web {
        websocket: Some(websocket.clone()),
        other: shared.and_then(|web| web.other.clone()),
    }
}

fn check(config: &ListenerConfig) -> Result<(), &'static str> {
    let websocket = match &config.transport {
        Transport::Tcp => None,
        Transport::Tls(tls) => tls.web.as_ref().and_then(|web| web.websocket.as_ref()),
        Transport::WebSocket(websocket) | Transport::SecureWebSocket(_, websocket) => {
            Some(websocket)
        }
        Transport::Quic(_) if config.proxies != Proxies::None => {
            return Err("a PROXY header does not travel over QUIC; use `mqtts` behind proxies");
        }
        Transport::Quic(_) => return Ok(()),
    };
    if websocket.is_some_and(|websocket| !websocket.path.starts_with('/')) {
        return Err("the path of its WebSocket does not begin with a slash; write `/mqtt`");
    }
    if matches!(&config.proxies, Proxies::From(ranges) if ranges.is_empty()) {
        return Err("it hears only proxies and none is listed; list their addresses");
    }
    Ok(())
}
