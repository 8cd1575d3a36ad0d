//! The way of a socket to a client's connection: past its proxy's header, its TLS handshake, and the
//! question what it wants to speak.
//!
//! Not taken by plain MQTT, which has nothing to wait for. The header and the handshake together have
//! [`Limits::handshake_timeout`](crate::Limits::handshake_timeout), what comes after them
//! [`Limits::connect_timeout`](crate::Limits::connect_timeout), as a CONNECT has.

use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncBufReadExt;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::acceptor::Place;
use super::door::{Door, Inside};
use super::handshake::{self, Handshakes};
use super::proxied;
use super::socket::{Movable, Socket};
use super::web;
use super::websocket::{self, Accepted, Others, UpgradeError};
use super::worker::{Worker, connect};
use crate::machine::tenants::Origin;
use crate::transport::{Proxies, Web};

/// Brings a connection in, or closes it.
pub(crate) async fn enter(
    worker: Rc<Worker>,
    mut socket: Socket,
    door: Arc<Door>,
    mut origin: Origin,
    mut place: Place,
) {
    let deadline = Instant::now() + worker.exchange.limits.handshake_timeout;
    if door.proxies != Proxies::None {
        let introduced = proxied::introduce(&worker, &mut socket, &mut origin, deadline).await;
        if introduced.is_none() || !proxied::may_enter(&worker, &door, &origin, &mut place) {
            return;
        }
    }
    match &door.tls {
        None => match &door.inside {
            Inside::Mqtt => connect(worker, socket, origin, place),
            Inside::Web(web) | Inside::Either(web) => {
                serve_web(worker, socket, web, origin, place).await;
            }
        },
        Some(handshakes) => {
            enter_tls(
                worker,
                socket,
                handshakes,
                &door.inside,
                origin,
                place,
                deadline,
            )
            .await;
        }
    }
}

async fn enter_tls(
    worker: Rc<Worker>,
    socket: Socket,
    handshakes: &Handshakes,
    inside: &Inside,
    mut origin: Origin,
    place: Place,
    deadline: Instant,
) {
    let shaken = handshake::shake(&worker, socket, handshakes, &mut origin, &place, deadline).await;
    let Some(mut stream) = shaken else {
        return;
    };
    let web = match inside {
        Inside::Mqtt => None,
        Inside::Web(web) => Some(web),
        Inside::Either(web) => match wanted(&worker, &mut stream, &origin).await {
            Some(Wanted::Mqtt) => None,
            Some(Wanted::Web) => Some(web),
            None => return,
        },
    };
    match web {
        None => connect(worker, stream, origin, place),
        Some(web) => serve_web(worker, stream, web, origin, place).await,
    }
}

/// What a client of a shared port wants to speak.
enum Wanted {
    Mqtt,
    Web,
}

/// What the client wants, by ALPN or by what it sends first, which is not taken from the stream. `None` if
/// nothing comes in time.
async fn wanted(
    worker: &Worker,
    stream: &mut TlsStream<Socket>,
    origin: &Origin,
) -> Option<Wanted> {
    match stream.get_ref().1.alpn_protocol() {
        Some(handshake::HTTP) => return Some(Wanted::Web),
        Some(_) => return Some(Wanted::Mqtt),
        None => {}
    }
    let timeout = worker.exchange.limits.connect_timeout;
    match tokio::time::timeout(timeout, stream.fill_buf()).await {
        Ok(Ok([])) | Ok(Err(_)) => None,
        // An HTTP method. As MQTT this would be a SUBACK at best, which no client sends.
        Ok(Ok([b'A'..=b'Z', ..])) => Some(Wanted::Web),
        // Or nonsense: the codec says so.
        Ok(Ok(_)) => Some(Wanted::Mqtt),
        Err(_) => {
            worker.shard.borrow().counters().connect_timeouts.one();
            let (peer, listener) = (origin.peer, &origin.listener);
            tracing::info!(event = "client.silent", %peer, %listener, "nothing came in {timeout:?}");
            None
        }
    }
}

/// Serves a connection that speaks HTTP.
async fn serve_web<S: Movable>(
    worker: Rc<Worker>,
    stream: S,
    web: &Web,
    mut origin: Origin,
    place: Place,
) {
    let (stream, read) = match &web.websocket {
        None => (stream, BytesMut::new()),
        Some(settings) => {
            let others = match web.other {
                Some(_) => Others::HandBack,
                None => Others::Refuse,
            };
            let timeout = worker.exchange.limits.connect_timeout;
            let accepting = websocket::accept(stream, settings, others, BytesMut::new());
            let error = match tokio::time::timeout(timeout, accepting).await {
                Ok(Ok(Accepted::WebSocket(stream))) => {
                    origin.protocol = origin.protocol.in_websocket();
                    return connect(worker, stream, origin, place);
                }
                Ok(Ok(Accepted::Other { stream, read })) => {
                    return web::hand_over(&worker, stream, read, web, origin, place).await;
                }
                Ok(Err(error)) => error,
                Err(_) => UpgradeError::Late(timeout),
            };
            worker.shard.borrow().counters().upgrades_refused.one();
            let (peer, listener) = (origin.peer, &origin.listener);
            tracing::warn!(event = "websocket.refused", %peer, %listener, %error);
            return;
        }
    };
    web::hand_over(&worker, stream, read, web, origin, place).await;
}
