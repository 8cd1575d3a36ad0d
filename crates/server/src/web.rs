//! HTTPS on the ports that MQTT clients use: health, and publishing with a device's certificate.
//!
//! A load balancer in front of an MQTT port asks there whether the server is well, a device without an MQTT
//! client publishes there ([`device_publish`]). The API of the operators is at `http.bind`, which asks for
//! no sign-in and so is not for vehicles to reach.
//!
//! Flow: a worker of the broker finds HTTP on a connection → [`WebDoor`] → a bounded queue → axum, on the
//! runtime of the API. The broker bounds how many there are (1,024), here each has a minute.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, connect_info::Connected},
    serve::{IncomingStream, Listener},
};
use broker::{Proxied, WebConnection, WebIo, WebService};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::Sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    device_publish,
    http::{
        self,
        problem::{Problem, ProblemType},
    },
    state::AppState,
};

/// Connections between the broker's workers and axum: a balancer's probes of a second.
const WAITING: usize = 128;
/// Longest life of a connection. A probe takes milliseconds; who holds one for longer holds it for harm.
const LIFETIME: Duration = Duration::from_secs(60);

/// Where the broker hands HTTP connections in.
pub struct WebDoor(mpsc::Sender<WebConnection>);

/// Where they come out.
pub struct WebVisitors(mpsc::Receiver<WebConnection>);

/// Both ends.
pub fn door() -> (Arc<dyn WebService>, WebVisitors) {
    let (send, receive) = mpsc::channel(WAITING);
    (Arc::new(WebDoor(send)), WebVisitors(receive))
}

impl WebService for WebDoor {
    fn serve(&self, connection: WebConnection) {
        // Full: dropping it closes it.
        if let Err(error) = self.0.try_send(connection) {
            let connection = error.into_inner();
            tracing::warn!(event = "web.busy", peer = %connection.peer, waiting = WAITING);
        }
    }
}

impl Listener for WebVisitors {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            let Some(connection) = self.0.recv().await else {
                // The broker has stopped; who serves this is stopped by its token.
                std::future::pending::<()>().await;
                continue;
            };
            let peer = connection.peer;
            let caller = Caller {
                peer,
                listener: Arc::clone(&connection.listener),
                certificates: connection.certificates.clone().into(),
                proxied: connection.proxied.clone(),
            };
            match connection.into_io() {
                Ok(io) => {
                    let ends = Box::pin(tokio::time::sleep(LIFETIME));
                    return (Visit { io, ends, caller }, peer);
                }
                Err(error) => tracing::warn!(event = "web.socket_failed", %peer, %error),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // Of no single socket; axum asks for its log only.
        Ok(SocketAddr::from(([0, 0, 0, 0], 0)))
    }
}

/// A connection that ends after a while, whatever it does.
pub struct Visit {
    io: WebIo,
    ends: Pin<Box<Sleep>>,
    caller: Caller,
}

/// Whose connection it is.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The listener it came through.
    pub listener: Arc<str>,
    /// What it showed in the TLS handshake, leaf first.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// What a proxy said of it.
    pub proxied: Option<Proxied>,
}

impl Connected<IncomingStream<'_, WebVisitors>> for Caller {
    fn connect_info(stream: IncomingStream<'_, WebVisitors>) -> Caller {
        stream.io().caller.clone()
    }
}

impl Visit {
    fn poll_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ends.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Serves them until `stop`.
pub async fn serve(
    visitors: WebVisitors,
    state: Arc<AppState>,
    max_body: usize,
    stop: CancellationToken,
) {
    let router = Router::new()
        .merge(http::health_routes())
        .merge(device_publish::routes(max_body))
        .fallback(elsewhere)
        .with_state(state);
    let served = axum::serve(
        visitors,
        router.into_make_service_with_connect_info::<Caller>(),
    )
    .with_graceful_shutdown(async move { stop.cancelled().await })
    .await;
    if let Err(error) = served {
        tracing::error!(event = "web.ended", error = %error);
    }
}

async fn elsewhere(request: Request) -> Problem {
    let path = request.uri().path();
    Problem::new(
        ProblemType::NotFound,
        format!("{path} is not served on this port: MQTT is, POST /topics/…, /healthz and /readyz"),
    )
}
