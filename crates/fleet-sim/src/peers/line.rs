//! Line: one connection's socket, its TLS if it has any, and what could not be written yet.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

use super::PeersError;
use super::scanner::{Found, Scanner};

/// A connection that is being made, or stands. It never blocks.
pub(super) struct Line {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    scanner: Scanner,
    /// What the socket did not take, from `written` on. Over TLS the same waits in there.
    outbox: Vec<u8>,
    written: usize,
}

/// What a read came to.
pub(super) enum Pulled {
    /// There may be more.
    More,
    /// The other end closed.
    End,
}

impl Line {
    /// Begins a connection; what is sent meanwhile waits.
    pub(super) fn open(
        address: SocketAddr,
        tls: Option<(&Arc<ClientConfig>, &ServerName<'static>)>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(IN_PROGRESS) => return Err(error),
            _ => {}
        }
        let tls = match tls {
            None => None,
            Some((config, name)) => {
                let mut tls = ClientConnection::new(Arc::clone(config), name.clone())
                    .map_err(io::Error::other)?;
                tls.set_buffer_limit(None); // the window of messages under way is the limit
                Some(Box::new(tls))
            }
        };
        Ok(Self {
            socket: socket.into(),
            tls,
            scanner: Scanner::default(),
            outbox: Vec::new(),
            written: 0,
        })
    }

    /// Sends these bytes now, or when the socket takes them.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(bytes)?;
            return self.flush();
        }
        let mut done = 0;
        if self.outbox.is_empty() {
            done = taken(self.socket.write(bytes))?;
        }
        if done < bytes.len() {
            self.outbox.extend_from_slice(&bytes[done..]);
        }
        Ok(())
    }

    /// Writes what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                if taken(tls.write_tls(&mut self.socket))? == 0 {
                    break;
                }
            }
            return Ok(());
        }
        while self.written < self.outbox.len() {
            match taken(self.socket.write(&self.outbox[self.written..]))? {
                0 => return Ok(()),
                some => self.written += some,
            }
        }
        self.outbox = Vec::new();
        self.written = 0;
        Ok(())
    }

    /// Whether something waits for the socket.
    pub(super) fn waiting(&self) -> bool {
        !self.outbox.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads once, and hands out the packets that are whole.
    pub(super) fn read(
        &mut self,
        scratch: &mut [u8],
        mut each: impl FnMut(Found<'_>) -> Result<(), PeersError>,
    ) -> Result<Pulled, PeersError> {
        let count = match self.socket.read(scratch) {
            Ok(0) => return Ok(Pulled::End),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pulled::More),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Pulled::More),
            Err(source) => return Err(PeersError::Broken { source }),
        };
        let Some(tls) = &mut self.tls else {
            self.scanner.feed(&scratch[..count], each)?;
            return Ok(Pulled::More);
        };
        let mut sealed = &scratch[..count];
        let broken = |source| PeersError::Broken { source };
        while !sealed.is_empty() {
            tls.read_tls(&mut sealed).map_err(broken)?;
            let state = tls
                .process_new_packets()
                .map_err(|error| broken(io::Error::other(error)))?;
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let mut reader = tls.reader();
                let plain = reader.fill_buf().map_err(broken)?;
                let length = plain.len();
                self.scanner.feed(plain, &mut each)?;
                reader.consume(length);
                left -= length;
            }
            if state.peer_has_closed() {
                return Ok(Pulled::End);
            }
        }
        // A handshake answers, and so does a change of keys.
        self.flush().map_err(broken)?;
        Ok(Pulled::More)
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// EINPROGRESS: the connection is being made.
const IN_PROGRESS: i32 = rustix::io::Errno::INPROGRESS.raw_os_error();

/// How many bytes were taken; none if there was no room for any, or no connection yet.
fn taken(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::NotConnected
            ) =>
        {
            Ok(0)
        }
        other => other,
    }
}
