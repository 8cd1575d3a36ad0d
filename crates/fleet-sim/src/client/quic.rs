//! QUIC: MQTT on the first bidirectional stream of a connection, ALPN `mqtt`.
//!
//! A [`QuicSocket`] is one UDP socket with all connections over it: one for every client is how cars
//! do it, one for many spares a load generator sockets and buffers. The socket is bound when the
//! first connection is made, in the runtime of that moment, and all others must be made in the same.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, ConnectError, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, RecvStream,
    SendStream, TokioRuntime, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::transport::Server;

/// What the stream carries, in TLS terms.
const ALPN: &[u8] = b"mqtt";
/// Silence that a client sits out, in a tunnel for example.
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams the kernel keeps for many clients over one socket: asked for, and granted as far as `rmem_max`
/// goes. A handshake that loses its first answer waits for a second.
const SOCKET_BUFFER: usize = 4 << 20;
/// For the server to acknowledge the last bytes, before the connection is dropped.
const GOODBYE: Duration = Duration::from_secs(3);

/// QUIC, with whom to trust and who we are, and the socket to use.
#[derive(Clone, Debug)]
pub struct Quic {
    config: ClientConfig,
    /// Shared by all clients that were given it.
    pub socket: QuicSocket,
}

/// Why there is no QUIC connection.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// No socket, no address, or a stream that ended.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It cannot even be tried.
    #[error("cannot be tried")]
    Connect(#[from] ConnectError),
    /// The connection was refused or broke.
    #[error("refused or broken")]
    Connection(#[from] ConnectionError),
}

/// A UDP socket for connections to one family of addresses. Clones are the same socket.
#[derive(Clone, Debug, Default)]
pub struct QuicSocket {
    endpoint: Arc<Mutex<Option<Endpoint>>>,
}

impl Quic {
    /// QUIC with a socket of its own.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the TLS settings have no TLS 1.3 with AES-128-GCM, which
    /// QUIC begins with.
    pub fn new(tls: &rustls::ClientConfig) -> io::Result<Self> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = QuicClientConfig::try_from(Arc::new(tls))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut config = ClientConfig::new(Arc::new(tls));
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
        // A server opens no streams towards us.
        transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
        transport.max_concurrent_uni_streams(VarInt::from_u32(0));
        config.transport_config(Arc::new(transport));
        Ok(Self {
            config,
            socket: QuicSocket::default(),
        })
    }

    /// The same over this socket.
    pub fn over(self, socket: QuicSocket) -> Self {
        Self { socket, ..self }
    }

    /// Connects and opens the stream.
    pub(crate) async fn connect(&self, server: &Server) -> Result<QuicStream, QuicError> {
        let mut addresses = tokio::net::lookup_host((server.host(), server.port())).await?;
        let Some(address) = addresses.next() else {
            let none = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            return Err(none.into());
        };
        let endpoint = self.socket.endpoint(address)?;
        let connecting = endpoint.connect_with(self.config.clone(), address, server.host())?;
        let connection = connecting.await?;
        let (send, receive) = connection.open_bi().await?;
        Ok(QuicStream {
            send,
            receive,
            leaving: None,
        })
    }
}

impl QuicSocket {
    fn endpoint(&self, to: SocketAddr) -> io::Result<Endpoint> {
        // Whoever panicked with the lock left the socket as it was.
        let mut endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = &*endpoint {
            return Ok(endpoint.clone());
        }
        let socket = open(to.is_ipv6())?;
        let opened = Endpoint::new(
            EndpointConfig::default(),
            None,
            socket,
            Arc::new(TokioRuntime),
        )?;
        Ok(endpoint.insert(opened).clone())
    }

    /// Goes on with a new local port, and with whatever address the system now gives us: what happens
    /// to a car that moves to another network. Connections stay.
    ///
    /// # Errors
    /// No new socket.
    pub fn rebind(&self) -> io::Result<()> {
        let endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        match &*endpoint {
            Some(endpoint) => {
                let v6 = endpoint.local_addr()?.is_ipv6();
                endpoint.rebind(open(v6)?)
            }
            None => Ok(()), // nothing is bound yet
        }
    }
}

fn open(v6: bool) -> io::Result<UdpSocket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // As much as the system gives.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    socket.bind(&any(v6).into())?;
    Ok(socket.into())
}

fn any(v6: bool) -> SocketAddr {
    if v6 {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    }
}

/// The stream that carries MQTT. The connection ends with it.
pub(crate) struct QuicStream {
    send: SendStream,
    receive: RecvStream,
    /// Waits until everything written has arrived: dropping the connection would throw it away.
    leaving: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl AsyncRead for QuicStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), context, buffer)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let leaving = this.leaving.get_or_insert_with(|| {
            // Finished twice or already stopped: there is nothing to wait for then.
            let _ = this.send.finish();
            let arrived = this.send.stopped();
            Box::pin(async move {
                // A server that is gone does not keep us.
                let _ = tokio::time::timeout(GOODBYE, arrived).await;
            })
        });
        leaving.as_mut().poll(context).map(Ok)
    }
}
