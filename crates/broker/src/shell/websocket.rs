//! A connection that was upgraded to WebSocket, as a stream of MQTT bytes.
//!
//! Reading: bytes land in the buffer that the reader handed in and are decoded there, so an idle
//! connection holds the state of the decoder and nothing else. Writing: what the link writes at once
//! becomes one binary frame; header and payload leave in one system call. A frame that the full
//! socket took half of is finished by the next writes.
//!
//! Pongs and close frames go out between two frames of ours. There is at most one on its way and one
//! waiting, so a client that pings without reading costs 256 bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::socket::Movable;
use crate::transport::WebSocket;
use crate::websocket::frame::{CloseCode, Decoder, End, Header, Reply};
use crate::websocket::upgrade::{self, Head, MAX_HEAD, Refusal};

/// Reads in one turn that bring no MQTT bytes; more would make others on this worker wait.
const IDLE_READS: usize = 16;

/// Bytes of such reads.
const IDLE_BYTES: u32 = 64 * 1024;

/// Time a client has to take the answer to a request that was refused, and to hang up.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Bytes of such a client that are read and forgotten, so that TCP does not throw the answer away.
const REFUSAL_BYTES: u64 = 64 * 1024;

/// What becomes of requests that are not for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// They are answered with an error.
    Refuse,
    /// They are handed back.
    HandBack,
}

/// A connection after its first request.
#[derive(Debug)]
pub(crate) enum Accepted<S> {
    /// It speaks WebSocket from now on.
    WebSocket(WebSocketStream<S>),
    /// A request that is not for us, with all that was read.
    Other { stream: S, read: BytesMut },
}

/// Why a connection was not upgraded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    /// The client sent an end instead of a request.
    #[error("the client left before its request was complete")]
    Left,
    /// It was answered.
    #[error("the request was answered with {}: {}", .0.status(), .0)]
    Refused(Refusal),
    /// The caller's bound of time.
    #[error("no complete request came within {0:?}")]
    Late(Duration),
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a request and, if it asks for MQTT over WebSocket, grants it. `read_so_far` is what was read of
/// it already. The caller bounds the time.
///
/// # Errors
/// After one of them the connection is to be dropped; the client was told what it can be told.
pub(crate) async fn accept<S: Movable>(
    mut stream: S,
    settings: &WebSocket,
    others: Others,
    read_so_far: BytesMut,
) -> Result<Accepted<S>, UpgradeError> {
    let mut read = read_so_far;
    let mut looked_at = 0;
    let head = loop {
        // Only when it may be whole: a client that sends byte by byte does not have its request
        // parsed for each.
        if may_be_whole(&read, looked_at) {
            match upgrade::read(&read, &settings.path) {
                Head::Incomplete => {}
                head => break head,
            }
        }
        looked_at = read.len();
        read.reserve(looked_at.clamp(512, MAX_HEAD));
        if stream.read_buf(&mut read).await? == 0 {
            return Err(UpgradeError::Left);
        }
    };
    let refusal = match head {
        Head::Upgrade { len, upgrade } => {
            stream.write_all(upgrade.response().as_bytes()).await?;
            stream.flush().await?;
            read.advance(len);
            return Ok(Accepted::WebSocket(WebSocketStream::new(stream, read)));
        }
        Head::Elsewhere(_) if others == Others::HandBack => {
            return Ok(Accepted::Other { stream, read });
        }
        Head::Elsewhere(refusal) | Head::Refused(refusal) => refusal,
        Head::Incomplete => return Err(UpgradeError::Left),
    };
    // However this goes, the client is refused.
    let _ = tokio::time::timeout(REFUSAL_TIME, refuse(&mut stream, refusal)).await;
    Err(UpgradeError::Refused(refusal))
}

/// Whether there is a reason to look at a request of which so much was looked at before: its head
/// ends, is too long, or is none.
fn may_be_whole(read: &[u8], looked_at: usize) -> bool {
    let new = &read[looked_at.saturating_sub(3)..];
    !upgrade::may_begin(read)
        || read.len() >= MAX_HEAD
        || new.windows(4).any(|window| window == b"\r\n\r\n")
}

async fn refuse<S: Movable>(stream: &mut S, refusal: Refusal) -> io::Result<()> {
    stream.write_all(refusal.response().as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(REFUSAL_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// A WebSocket whose binary messages are one stream of bytes.
#[derive(Debug)]
pub(crate) struct WebSocketStream<S> {
    stream: S,
    decoder: Decoder,
    /// Read with the request.
    early: Option<Box<BytesMut>>,
    /// The frame that was begun and not finished.
    frame: Frame,
    /// The pong or close frame that goes out, and how much of it went.
    reply: Option<(Box<Reply>, u8)>,
    closing: Closing,
    flushing: Flushing,
    /// Bytes that were read and are not MQTT, since somebody asked.
    overhead: u32,
}

/// How far the connection's end has come on our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// It serves. When it is shut down, the client is told this.
    Open(CloseCode),
    /// The close frame waits for its turn.
    Wanted(Option<CloseCode>),
    /// The close frame is on its way, or out.
    Said,
}

/// Whether the transport may hold a control frame of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flushing {
    Clean,
    Needed,
}

/// A frame of ours of which a part was sent.
#[derive(Debug)]
struct Frame {
    header: Header,
    /// Bytes of the header that were sent.
    sent: u8,
    /// Bytes of the payload that were not.
    left: usize,
}

impl Frame {
    fn new(payload: usize) -> Frame {
        Frame {
            header: Header::binary(payload),
            sent: 0,
            left: payload,
        }
    }

    fn done() -> Frame {
        Frame::new(0)
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }

    fn is_begun(&self) -> bool {
        self.sent > 0
    }

    fn header(&self) -> &[u8] {
        &self.header.as_bytes()[usize::from(self.sent)..]
    }

    /// Notes that so many bytes went out; says how many of them were payload.
    fn advance(&mut self, written: usize) -> usize {
        let of_header = written.min(self.header().len());
        self.sent += of_header as u8;
        let of_payload = written - of_header;
        self.left -= of_payload;
        of_payload
    }
}

impl<S: Movable> WebSocketStream<S> {
    fn new(stream: S, early: BytesMut) -> WebSocketStream<S> {
        WebSocketStream {
            stream,
            decoder: Decoder::new(),
            early: (!early.is_empty()).then(|| Box::new(early)),
            frame: Frame::done(),
            reply: None,
            closing: Closing::Open(CloseCode::NORMAL),
            flushing: Flushing::Clean,
            overhead: 0,
        }
    }

    /// Sends what control frames are due, if no other frame is under way.
    fn send_replies(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.frame.is_done() {
            let Some((reply, sent)) = &mut self.reply else {
                match self.next_reply() {
                    Some(reply) => self.reply = Some((reply, 0)),
                    None => break,
                }
                continue;
            };
            let rest = &reply.as_bytes()[usize::from(*sent)..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written if written < rest.len() => *sent += written as u8,
                _ => self.reply = None,
            }
            self.flushing = Flushing::Needed;
        }
        Poll::Ready(Ok(()))
    }

    fn next_reply(&mut self) -> Option<Box<Reply>> {
        match self.closing {
            Closing::Open(_) => self.decoder.take_pong(),
            Closing::Wanted(code) => {
                self.closing = Closing::Said;
                Some(Box::new(Reply::close(code)))
            }
            Closing::Said => None,
        }
    }

    fn flush_replies(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.send_replies(cx))?;
        if self.flushing == Flushing::Needed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flushing = Flushing::Clean;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what control frames are due as far as the socket takes them; the task is woken for the
    /// rest.
    fn try_replies(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.flush_replies(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// The client's side ended. Who says goodbye is answered as far as the socket takes it; who broke the
    /// protocol is told when the connection is shut down, behind what is still on its way.
    fn ended(
        &mut self,
        end: End,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match (end, &mut self.closing) {
            (End::Closed(said), closing) => {
                if let Closing::Open(_) = closing {
                    *closing = Closing::Wanted(said);
                }
                let _ = self.try_replies(cx);
                Poll::Ready(Ok(()))
            }
            (End::Violation(violation), Closing::Open(code)) => {
                *code = violation.code();
                let error = io::Error::new(io::ErrorKind::InvalidData, violation);
                Poll::Ready(Err(error))
            }
            // Whatever it is: it is read to be forgotten.
            (End::Violation(_), _) => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }

    /// Reads once into `buf`; says how many MQTT bytes came, `None` at the end of the stream.
    fn read_once(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Option<usize>>> {
        let before = buf.filled().len();
        if let Some(early) = &mut self.early {
            let count = early.len().min(buf.remaining());
            buf.put_slice(&early.split_to(count));
            if early.is_empty() {
                self.early = None;
            }
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        }
        let new = &mut buf.filled_mut()[before..];
        if new.is_empty() {
            return Poll::Ready(Ok(None));
        }
        let (all, count) = (new.len(), self.decoder.decode(new));
        // No more than a buffer at once.
        self.overhead = self.overhead.saturating_add((all - count) as u32);
        buf.set_filled(before + count);
        Poll::Ready(Ok(Some(count)))
    }

    /// Reads and forgets until the client has said goodbye too.
    fn await_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut buffer = [0; 2048];
        for _ in 0..IDLE_READS {
            if self.decoder.end().is_some() {
                return Poll::Ready(());
            }
            match ready!(self.read_once(cx, &mut ReadBuf::new(&mut buffer))) {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: Movable> Movable for WebSocketStream<S> {
    fn detach(&mut self) -> io::Result<()> {
        self.stream.detach()
    }

    fn attach(&mut self) -> io::Result<()> {
        self.stream.attach()
    }

    fn holds(&self) -> u32 {
        self.stream.holds()
    }

    fn going_away(&mut self) {
        if let Closing::Open(code) = &mut self.closing {
            *code = CloseCode::GOING_AWAY;
        }
        self.stream.going_away();
    }

    fn take_overhead(&mut self) -> usize {
        std::mem::take(&mut self.overhead) as usize
    }
}

impl<S: Movable> AsyncRead for WebSocketStream<S> {
    /// After an end of the client's side this is the end of the stream, or the error that its last
    /// frame was: a [`Violation`](crate::websocket::frame::Violation). Once the stream was shut down after
    /// such an error, reads bring what comes as it comes, until the client hangs up.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = self.overhead;
        for _ in 0..IDLE_READS {
            self.try_replies(cx)?;
            if let Some(end) = self.decoder.end() {
                return self.ended(end, cx, buf);
            }
            let count = ready!(self.read_once(cx, buf))?;
            if self.decoder.owes_pong() {
                self.try_replies(cx)?;
            }
            match count {
                Some(0) if self.overhead - before < IDLE_BYTES => {}
                Some(0) => break,
                Some(_) | None => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: Movable> AsyncWrite for WebSocketStream<S> {
    /// All of `buf` becomes one frame. A frame of which a part was sent is finished first, with the
    /// first bytes of `buf`: whoever was told that less was written brings the rest next.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.send_replies(cx))?;
        if !matches!(this.closing, Closing::Open(_)) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.frame.is_done() {
            this.frame = Frame::new(buf.len());
        }
        loop {
            let payload = &buf[..buf.len().min(this.frame.left)];
            let stream = Pin::new(&mut this.stream);
            let written = match this.frame.header() {
                [] => stream.poll_write(cx, payload),
                header => {
                    let both = [IoSlice::new(header), IoSlice::new(payload)];
                    stream.poll_write_vectored(cx, &both)
                }
            };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => match this.frame.advance(written) {
                    // Only of the header.
                    0 => {}
                    count => return Poll::Ready(Ok(count)),
                },
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if !this.frame.is_begun() {
                        // Pongs may go first, and the next write may bring more.
                        this.frame = Frame::done();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.send_replies(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.flushing = Flushing::Clean;
        Poll::Ready(Ok(()))
    }

    /// Says goodbye, waits until the client has done the same (section 5.5.1), then closes the
    /// transport. The caller bounds the time.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Closing::Open(code) = self.closing {
            self.closing = Closing::Wanted(Some(code));
        }
        // In the middle of a frame nothing can be said.
        if self.frame.is_done() {
            ready!(self.flush_replies(cx))?;
            ready!(self.await_close(cx));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
