//! The listeners of the configuration in the broker's words.

use std::sync::Arc;

use broker::{
    Bind, ClientCertificate, ListenerConfig, Proxies, Tls, TlsSettings, Transport, Web, WebService,
    WebSocket,
};

use crate::{
    config::{
        Listener,
        listener::{self, Auth},
    },
    hooks::Doorway,
    limits,
    tls::Renewal,
};

/// The name of a listener in logs, metrics and the API: its protocol and its place in the configuration.
pub fn name(index: usize, listener: &Listener) -> Arc<str> {
    format!("{}-{index}", listener.transport.protocol()).into()
}

/// All of them with their names.
pub fn named(listeners: &[Listener]) -> impl Iterator<Item = (Arc<str>, &Listener)> {
    let numbered = listeners.iter().enumerate();
    numbered.map(|(index, listener)| (name(index, listener), listener))
}

/// Who is let in by which listener.
pub fn doorways(listeners: &[Listener]) -> Vec<Doorway> {
    let doorway = |(name, listener): (Arc<str>, &Listener)| Doorway {
        listener: name,
        auth: listener.auth,
        anonymous: listener.anonymous,
    };
    named(listeners).map(doorway).collect()
}

/// What the broker listens on: each listener with its socket and, where it has TLS, its settings.
/// `web` takes HTTP that comes in on these ports.
pub fn for_broker(
    listeners: &[Listener],
    sockets: Vec<Bind>,
    tls: &Renewal,
    web: &Arc<dyn WebService>,
) -> Vec<ListenerConfig> {
    let with_sockets = named(listeners).zip(sockets);
    let configs = with_sockets.map(|((name, listener), bind)| ListenerConfig {
        transport: transport(listener, tls.settings(&name), web),
        proxies: match &listener.proxies {
            None => Proxies::None,
            Some(ranges) => Proxies::From(ranges.clone()),
        },
        limits: limits::of_listener(&listener.limits),
        name,
        bind,
    });
    configs.collect()
}

fn transport(
    listener: &Listener,
    settings: Option<TlsSettings>,
    web: &Arc<dyn WebService>,
) -> Transport {
    let socket = |path: &str| WebSocket {
        path: path.to_owned(),
    };
    let tls = |websocket: Option<WebSocket>, serves_web: bool| Tls {
        settings: settings
            .clone()
            .expect("`Renewal::begin` made settings for each listener that has TLS"),
        client_certificate: match listener.auth {
            Auth::Certificate => ClientCertificate::Required,
            Auth::CertificateOrAnonymous | Auth::Anonymous => ClientCertificate::Optional,
        },
        web: serves_web.then(|| Web {
            websocket,
            other: Some(web.clone()),
        }),
    };
    match &listener.transport {
        listener::Transport::Mqtt => Transport::Tcp,
        listener::Transport::Mqtts { path, .. } => {
            Transport::Tls(tls(path.as_deref().map(socket), path.is_some()))
        }
        listener::Transport::Ws { path } => Transport::WebSocket(socket(path)),
        listener::Transport::Wss { path, .. } => {
            Transport::SecureWebSocket(tls(None, true), socket(path))
        }
        listener::Transport::Quic { .. } => Transport::Quic(tls(None, false)),
    }
}
