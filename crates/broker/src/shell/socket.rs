//! A TCP socket that can move from one runtime to another.
//!
//! A session lives on one worker; its client's connection comes in on any. The socket then leaves the
//! poller of the one runtime and enters that of the other, two system calls each way.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::handshake::SENDABLE;
use crate::admission::account::Account;

/// A transport that can be carried to another runtime.
pub(crate) trait Movable: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Leaves the runtime it is in.
    fn detach(&mut self) -> io::Result<()>;

    /// Enters the runtime this is called in.
    fn attach(&mut self) -> io::Result<()>;

    /// Bytes it may have taken and still hold while a flush is pending, beside what the kernel has.
    fn holds(&self) -> u32 {
        0
    }

    /// The broker stops: said before the transport is shut down, to one that can tell the client.
    fn going_away(&mut self) {}

    /// Bytes that were read since the last call and not handed out: what frames the client's MQTT, where
    /// that costs the worker something.
    fn take_overhead(&mut self) -> usize {
        0
    }

    /// Counts what was read at a tick. Says whether that is so much that it should be
    /// [`widen`](Movable::widen)ed.
    fn is_narrow(&mut self, _tick: u64, _read: usize) -> bool {
        false
    }

    /// A known client moves so much that its transport slows it down: what that may hold is to grow, if
    /// there is memory. Says whether it grew.
    fn widen(&mut self, _memory: &Arc<Account>) -> Widened {
        Widened::No
    }
}

/// Whether a transport may hold more than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Widened {
    Yes,
    No,
}

/// A TCP connection, in a runtime or between two.
#[derive(Debug)]
pub(crate) enum Socket {
    Attached(TcpStream),
    Detached(std::net::TcpStream),
    /// Moving failed.
    Gone,
}

impl Socket {
    /// Takes a socket into the runtime this is called in.
    pub(crate) fn new(socket: std::net::TcpStream) -> io::Result<Socket> {
        TcpStream::from_std(socket).map(Socket::Attached)
    }

    /// Waits until something has come, and looks at it without taking it. Nothing: it has ended.
    pub(crate) async fn peek(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream()?.peek(buf).await
    }

    /// Waits until something came, which stays unread.
    ///
    /// # Errors
    /// When the other side closed without a word, or the socket failed.
    pub(crate) async fn wait_for_bytes(&self) -> io::Result<()> {
        let Socket::Attached(stream) = self else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        match stream.peek(&mut [0]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match self {
            Socket::Attached(stream) => Ok(Pin::new(stream)),
            Socket::Detached(_) | Socket::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Movable for Socket {
    fn detach(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Socket::Gone) {
            Socket::Attached(stream) => Socket::Detached(stream.into_std()?),
            other => other,
        };
        Ok(())
    }

    fn attach(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Socket::Gone) {
            Socket::Detached(stream) => Socket::new(stream)?,
            other => other,
        };
        Ok(())
    }
}

impl Movable for TlsStream<Socket> {
    fn detach(&mut self) -> io::Result<()> {
        self.get_mut().0.detach()
    }

    fn attach(&mut self) -> io::Result<()> {
        self.get_mut().0.attach()
    }

    fn holds(&self) -> u32 {
        // And what is around its records.
        SENDABLE as u32 + 1024
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}
