//! WebSocket: a stream of bytes in binary frames of RFC 6455, as MQTT section 6 wants them.
//!
//! What is written between two flushes may share frames or be cut by them; MQTT does not care where
//! frames end, and a server must not either [MQTT-6.0.0-2].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
// The same types as those of the WebSocket library.
use reqwest::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_websockets::{ClientBuilder, Error, Limits, Message, WebSocketStream};

use super::transport::Server;

/// Largest frame accepted from the server; larger than any packet a client accepts.
const MOST: usize = 16 * 1024 * 1024;

/// The bytes inside of a WebSocket.
pub(crate) struct WebSocket<S> {
    frames: WebSocketStream<S>,
    /// Of a frame that was read, what nobody has taken yet.
    unread: Bytes,
    /// Whether we have said that we leave.
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Asks for the upgrade, with the sub-protocol `mqtt`.
    pub(crate) async fn open(stream: S, server: &Server, path: &str) -> io::Result<Self> {
        // The scheme has no part in the request: the stream is connected, and encrypted if it is to be.
        let builder = ClientBuilder::new()
            .uri(&format!("ws://{server}{path}"))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?
            .limits(Limits::default().max_payload_len(Some(MOST)))
            .add_header(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"))
            .map_err(in_io)?;
        let (frames, answer) = builder.connect_on(stream).await.map_err(in_io)?;
        let agreed = answer.headers().get(SEC_WEBSOCKET_PROTOCOL);
        if agreed.is_none_or(|agreed| agreed != "mqtt") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the server did not agree to the WebSocket sub-protocol `mqtt` [MQTT-6.0.0-4]",
            ));
        }
        Ok(Self {
            frames,
            unread: Bytes::new(),
            closing: false,
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.frames).poll_next(context)) {
                Some(Ok(message)) if message.is_binary() => {
                    self.unread = message.into_payload().into();
                }
                Some(Ok(message)) if message.is_text() => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the server sent a text frame; MQTT is in binary ones [MQTT-6.0.0-1]",
                    )));
                }
                Some(Ok(_)) => {} // pings are answered, and closing is seen as the end of the stream
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(in_io(error))),
            }
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut frames = Pin::new(&mut self.frames);
        ready!(frames.as_mut().poll_ready(context)).map_err(in_io)?;
        let message = Message::binary(Bytes::copy_from_slice(bytes));
        frames.start_send(message).map_err(in_io)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames)
            .poll_flush(context)
            .map_err(in_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not `poll_close`, which waits for the other side's goodbye, however long that takes.
        let this = &mut *self;
        let mut frames = Pin::new(&mut this.frames);
        if !this.closing {
            ready!(frames.as_mut().poll_ready(context)).map_err(in_io)?;
            this.closing = true;
            frames
                .as_mut()
                .start_send(Message::close(None, ""))
                .map_err(in_io)?;
        }
        ready!(frames.as_mut().poll_flush(context)).map_err(in_io)?;
        Pin::new(frames.get_mut().get_mut()).poll_shutdown(context)
    }
}

fn in_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}
