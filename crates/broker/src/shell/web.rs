//! HTTP on a port that the broker shares: given to a [`WebService`](crate::WebService), or answered that
//! there is none.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::acceptor::{Place, WebPlace};
use super::socket::Movable;
use super::worker::Worker;
use crate::limits::Limits;
use crate::machine::tenants::Origin;
use crate::proxy::Proxied;
use crate::transport::Web;

/// An HTTP connection that came in on a port of the broker. Nothing of it was read, or what was read comes
/// first again.
pub struct WebConnection {
    /// The client.
    pub peer: SocketAddr,
    /// Name of the listener it came through, as configured.
    pub listener: Arc<str>,
    /// Certificate chain of the client, leaf first, as verified in the TLS handshake; empty without.
    pub certificates: Vec<CertificateDer<'static>>,
    /// What a proxy in between said.
    pub proxied: Option<Proxied>,
    io: WebIo,
}

impl WebConnection {
    /// The connection itself, in the runtime this is called in. It counts as one of
    /// [`Limits::max_web_connections`] until it is dropped.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    ///
    /// # Panics
    /// Outside a tokio runtime with IO enabled.
    pub fn into_io(self) -> io::Result<WebIo> {
        let WebConnection { mut io, .. } = self;
        io.stream.attach()?;
        Ok(io)
    }
}

impl std::fmt::Debug for WebConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebConnection")
            .field("peer", &self.peer)
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

/// The bytes of a [`WebConnection`], both ways.
pub struct WebIo {
    stream: Box<dyn Movable>,
    /// Read by the broker before it knew whose the connection is.
    read: BytesMut,
    _place: WebPlace,
}

impl std::fmt::Debug for WebIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebIo").finish_non_exhaustive()
    }
}

impl AsyncRead for WebIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..count]);
        self.read.advance(count);
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Gives a connection that speaks HTTP to the service behind `web`; `read` is what was read of it so far.
pub(crate) async fn hand_over(
    worker: &Worker,
    mut stream: impl Movable,
    read: BytesMut,
    web: &Web,
    origin: Origin,
    place: Place,
) {
    let limits = &worker.exchange.limits;
    let peer = origin.peer;
    let Some(service) = &web.other else {
        return answer(stream, read, NOT_FOUND, limits).await;
    };
    let place = match place.for_web(limits.max_web_connections) {
        Ok(place) => place,
        Err(_place) => {
            worker.shard.borrow().counters().web_refused.one();
            let limit = limits.max_web_connections;
            tracing::warn!(event = "web.refused", %peer, listener = %origin.listener, limit);
            return answer(stream, read, UNAVAILABLE, limits).await;
        }
    };
    if let Err(error) = stream.detach() {
        tracing::warn!(event = "web.socket_failed", %peer, %error);
        return;
    }
    service.serve(WebConnection {
        peer,
        listener: origin.listener,
        certificates: origin.certificates,
        proxied: origin.proxied.map(|proxied| *proxied),
        io: WebIo {
            stream: Box::new(stream),
            read,
            _place: place,
        },
    });
}

/// What the broker itself has to say.
struct Words {
    status: &'static str,
    text: &'static str,
}

const NOT_FOUND: Words = Words {
    status: "404 Not Found",
    text: "This port serves MQTT; there is no web service behind it.\n",
};

const UNAVAILABLE: Words = Words {
    status: "503 Service Unavailable",
    text: "Too many HTTP connections are open; close some or try again later.\n",
};

/// Answers a request, whatever it is, and closes the connection so that the client can read the answer.
async fn answer(mut stream: impl Movable, read: BytesMut, words: Words, limits: &Limits) {
    let mut buffer = [0; 1024];
    let asked = async {
        // An answer before the question would puzzle some clients.
        if read.is_empty() && stream.read(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Words { status, text } = words;
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    let asked = tokio::time::timeout(limits.connect_timeout, asked).await;
    if !matches!(asked, Ok(Ok(()))) {
        return;
    }
    // Closing while bytes are still coming in would make TCP throw away the answer.
    let rest = async { while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    let _ = tokio::time::timeout(limits.close_timeout, rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ListenerLimits;
    use crate::admission::gate::Entrance;
    use crate::shell::acceptor::Sockets;
    use crate::shell::socket::Socket;

    #[test]
    fn what_was_read_before_comes_first_in_the_runtime_of_the_service() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut client = std::net::TcpStream::connect(address).expect("it listens");
        io::Write::write_all(&mut client, b" / HTTP/1.1").expect("taken");
        client.shutdown(std::net::Shutdown::Write).expect("open");
        let (accepted, peer) = listener.accept().expect("there is one");
        accepted.set_nonblocking(true).expect("settable");

        let sockets = Arc::new(Sockets::default());
        let entrance = Arc::new(Entrance::new(&ListenerLimits::default(), 1));
        let place = Place::take(&sockets, &entrance)
            .for_web(1)
            .expect("room for one");
        let another = Place::take(&sockets, &entrance).for_web(1);
        drop(another.expect_err("and for no more"));
        assert_eq!((sockets.web(), sockets.pending(0)), (1, 0));

        let connection = WebConnection {
            peer,
            listener: "test".into(),
            certificates: Vec::new(),
            proxied: None,
            io: WebIo {
                stream: Box::new(Socket::Detached(accepted)),
                read: BytesMut::from("GET"),
                _place: place,
            },
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut io = connection.into_io().expect("a runtime with IO");
            let mut pieces = Vec::new();
            let mut piece = [0; 2];
            loop {
                let count = io.read(&mut piece).await.expect("readable");
                if count == 0 {
                    break;
                }
                pieces.extend_from_slice(&piece[..count]);
            }
            assert_eq!(pieces, b"GET / HTTP/1.1");
            assert_eq!(sockets.web(), 1, "as long as it is open");
        });
        assert_eq!((sockets.web(), sockets.open()), (0, 0));
    }
}
