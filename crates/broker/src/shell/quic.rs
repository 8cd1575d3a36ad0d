//! MQTT over QUIC (RFC 9000): the first bidirectional stream that the client opens carries MQTT, as a
//! TCP connection would.
//!
//! One thread, `mqtt-quic`, has the UDP sockets and does the work of all QUIC connections: handshakes,
//! acknowledgements, encryption. Streams go to the workers as sockets do and are served by the same
//! link; what passes between the threads is in quinn.
//!
//! - A client whose address changes (another cell, Wi-Fi to LTE, a NAT that forgot) goes on with the same
//!   connection; [`ConnectAttempt::peer`](crate::ConnectAttempt::peer) is where it began.
//! - 0-RTT is refused. What comes in early data can be replayed by whoever recorded it, and the first
//!   things a client sends are CONNECT and PUBLISH; holding them back until the handshake is confirmed
//!   would save nothing.
//! - MQTT's keep-alive decides how long a silent client is kept, as over TCP: QUIC's own idle timeout is
//!   longer than any keep-alive we grant. (The client's counts too; it sets its own.)
//! - ALPN is `mqtt`, whatever else the TLS configuration offers on other ports.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{
    Connecting, Connection, EndpointConfig, IdleTimeout, Incoming, RecvStream, SendStream,
    TokioRuntime, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::acceptor::{Admitted, Arrival, Caller, HandOut, Place};
use super::broker::{Bound, StartError};
use super::door;
use super::handshake::Failure;
use super::handshake_turns::{HandshakeTurns, Share};
use super::socket::{Movable, Widened};
use crate::admission::account::{Account, Holding};
use crate::admission::gate::Handshake;
use crate::admission::neighbours::Network;
use crate::admission::{PutOff, Refused};
use crate::limits::Limits;
use crate::machine::exchange::Exchange;
use crate::transport::{Bind, ClientCertificate, ListenerConfig, Tls, TlsSettings, Transport};

/// The protocol's name in the TLS handshake.
const ALPN: &[u8] = b"mqtt";

/// Bytes a client may be ahead of what was read from it, and bytes sent to it that it did not acknowledge:
/// what one connection can make us hold, each way, in the beginning. Enough for CONNECT and for what a car
/// says in a second.
const NARROW: u32 = 16 * 1024;

/// The same for a client that is known and moves more than that. 256 KiB in 100 ms are 20 Mbit/s, more
/// than a cellular uplink gives for long.
const WIDE: u32 = 256 * 1024;

/// Bytes that a connection with narrow windows costs at most: 40 KiB of quinn and TLS, 16 KiB sent, and
/// what quinn keeps to put together what came out of order. That is 32 KiB of datagrams beside the window,
/// and up to 2,048 places of 56 bytes for the pieces.
pub(crate) const CONNECTION: u64 = (40 + 32 + 112) * 1024 + 2 * NARROW as u64;

/// Bytes that wide windows cost beyond narrow ones: sent; and received, for which quinn keeps up to one
/// and a half as much in datagrams that are not full.
const WIDENING: usize = (WIDE - NARROW) as usize + (WIDE - NARROW) as usize * 5 / 2;

/// Bytes that the handshakes which wait for their turn at one listener keep.
pub(crate) const WAITING: u64 = MAX_INCOMING as u64 * INCOMING_BYTES;

/// Silence after which we ask a client for a sign of life: it keeps the way back open through NATs,
/// which forget UDP after 30 seconds at the earliest, and is below the idle timeout that most QUIC stacks
/// begin with (30 seconds).
const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// By how much QUIC's idle timeout is longer than the longest keep-alive.
const IDLE_MARGIN: Duration = Duration::from_secs(60);

/// Datagrams the kernel keeps while the thread is busy: asked for, and granted as far as `rmem_max` goes.
const SOCKET_BUFFER: usize = 4 << 20;

/// Clients that wait for their handshake in turn, and what is kept of each meanwhile: a ClientHello with
/// post-quantum keys takes two datagrams. The next one is refused.
const MAX_INCOMING: usize = 1024;
const INCOMING_BYTES: u64 = 8 * 1024;

/// Of these, clients that are to be refused because there is too much to do, and wait until they are: as
/// over TCP, not all are to come back at once. What one of them repeats meanwhile is known to be its own.
const MAX_PUT_OFF: usize = MAX_INCOMING / 2;

/// One handshake of so many at once, and whoever comes next must first prove its address by a round
/// trip: a forged one costs nothing then. Where coming alone uses something up (a connect rate), everybody
/// must.
const PROOF_FROM: usize = 4;

/// Time for the last packets of a broker that stops.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// Application error codes in CONNECTION_CLOSE. MQTT's own reason stands in DISCONNECT before.
const ENDED: VarInt = VarInt::from_u32(0);
const CUT: VarInt = VarInt::from_u32(1);
const NO_CERTIFICATE: VarInt = VarInt::from_u32(2);
const NO_STREAM: VarInt = VarInt::from_u32(3);

/// Why a TLS configuration does not do for QUIC.
#[derive(Debug, thiserror::Error)]
pub enum QuicSettingsError {
    /// QUIC is TLS 1.3.
    #[error("QUIC needs TLS 1.3; allow it in the TLS configuration of the listener")]
    Tls(#[source] rustls::Error),
    /// The first packets are protected with it.
    #[error(
        "QUIC needs the cipher suite TLS13_AES_128_GCM_SHA256; allow it in the TLS configuration"
    )]
    Suite(#[source] NoInitialCipherSuite),
}

/// A UDP socket that is bound.
pub(crate) struct Listener {
    socket: UdpSocket,
    settings: Settings,
    tls: Tls,
    entrance: Arc<door::Door>,
    pub(crate) bound: Bound,
}

/// Opens a listener.
pub(crate) fn bind(
    config: ListenerConfig,
    tls: Tls,
    limits: &Limits,
    workers: usize,
) -> Result<Listener, StartError> {
    let entrance = door::Door::new(&config, workers).map_err(|why| StartError::Listener {
        name: Arc::clone(&config.name),
        protocol: config.transport.protocol(),
        why,
    })?;
    let ListenerConfig { name, bind, .. } = config;
    let settings = Settings::new(tls.settings.clone(), limits).map_err(|source| {
        let name = Arc::clone(&name);
        StartError::Quic { name, source }
    })?;
    let opened = match &bind {
        Bind::Address(address) => open(*address),
        Bind::Datagrams(socket) => socket.try_clone(),
        Bind::Socket(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "QUIC runs over a UDP socket",
        )),
    };
    let prepared = opened.and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok((socket.local_addr()?, socket))
    });
    let protocol = Transport::Quic(tls.clone()).protocol();
    let (bound, socket) = Bound::of(name, protocol, bind, prepared)?;
    Ok(Listener {
        socket,
        settings,
        tls,
        entrance: Arc::new(entrance),
        bound,
    })
}

fn open(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // As much as the system gives.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// The configuration of handshakes, which follows that of TLS.
struct Settings {
    tls: TlsSettings,
    /// What `current` was made of.
    seen: Arc<rustls::ServerConfig>,
    current: Arc<quinn::ServerConfig>,
}

impl Settings {
    fn new(tls: TlsSettings, limits: &Limits) -> Result<Settings, QuicSettingsError> {
        let seen = tls.current();
        let mut config = quinn::ServerConfig::with_crypto(crypto(&seen)?);
        config
            .transport_config(Arc::new(transport(limits)))
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(MAX_INCOMING as u64 * INCOMING_BYTES)
            .migration(true);
        Ok(Settings {
            tls,
            seen,
            current: Arc::new(config),
        })
    }

    /// For the next handshake. What was replaced by something unusable stays.
    fn current(&mut self) -> Arc<quinn::ServerConfig> {
        let latest = self.tls.current();
        if !Arc::ptr_eq(&latest, &self.seen) {
            match crypto(&latest) {
                Ok(crypto) => {
                    // The key of address tokens stays the same.
                    let mut config = quinn::ServerConfig::clone(&self.current);
                    config.crypto = crypto;
                    self.current = Arc::new(config);
                }
                Err(error) => {
                    tracing::error!(event = "tls.settings_unusable", protocol = "quic", %error);
                }
            }
            self.seen = latest;
        }
        Arc::clone(&self.current)
    }
}

fn crypto(tls: &rustls::ServerConfig) -> Result<Arc<QuicServerConfig>, QuicSettingsError> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    tls.send_half_rtt_data = false;
    let tls = Arc::new(tls);
    // Asked here, because quinn would not ask before the first handshake.
    let version = rustls::quic::Version::V1;
    rustls::quic::ServerConnection::new(Arc::clone(&tls), version, Vec::new())
        .map_err(QuicSettingsError::Tls)?;
    let config = QuicServerConfig::try_from(tls).map_err(QuicSettingsError::Suite)?;
    Ok(Arc::new(config))
}

fn transport(limits: &Limits) -> TransportConfig {
    let idle = limits.keep_alive_max * 3 / 2 + IDLE_MARGIN;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        // There is one stream, so that of the connection is the smaller one until it is wide.
        .stream_receive_window(VarInt::from_u32(WIDE))
        .receive_window(VarInt::from_u32(NARROW))
        .send_window(u64::from(NARROW))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // Longer than the format can say is as good as never.
        .max_idle_timeout(IdleTimeout::try_from(idle).ok());
    transport
}

/// Starts the thread of all QUIC listeners. It takes nobody any more once `stop` is cancelled, and ends
/// when the workers have let go of the last stream.
pub(crate) fn spawn(
    listeners: Vec<Listener>,
    hand_out: Arc<HandOut>,
    exchange: Arc<Exchange>,
    stop: CancellationToken,
    running: watch::Sender<()>,
) -> Result<JoinHandle<()>, StartError> {
    let failed = |source| StartError::Thread {
        name: "mqtt-quic".to_owned(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let mut endpoints = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let _runtime = runtime.enter();
        let Listener {
            socket,
            settings,
            tls,
            entrance,
            ..
        } = listener;
        let endpoint = quinn::Endpoint::new(
            EndpointConfig::default(),
            Some(quinn::ServerConfig::clone(&settings.current)),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(failed)?;
        endpoints.push((endpoint, settings, tls, entrance));
    }
    std::thread::Builder::new()
        .name("mqtt-quic".to_owned())
        .spawn(move || {
            let _running = running;
            runtime.block_on(serve(endpoints, hand_out, exchange, stop));
        })
        .map_err(failed)
}

async fn serve(
    endpoints: Vec<(quinn::Endpoint, Settings, Tls, Arc<door::Door>)>,
    hand_out: Arc<HandOut>,
    exchange: Arc<Exchange>,
    stop: CancellationToken,
) {
    let (alive, mut streams) = mpsc::channel(1);
    let handshakes = HandshakeTurns::new(exchange.limits.max_handshakes);
    let put_off = Arc::new(Semaphore::new(MAX_PUT_OFF));
    let (mut open, mut tasks) = (Vec::new(), Vec::new());
    for (endpoint, settings, tls, entrance) in endpoints {
        open.push(endpoint.clone());
        let door = Door {
            endpoint,
            tls,
            entrance,
            hand_out: Arc::clone(&hand_out),
            exchange: Arc::clone(&exchange),
            handshakes: Arc::clone(&handshakes),
            put_off: Arc::clone(&put_off),
            stop: stop.clone(),
            alive: alive.clone(),
        };
        tasks.push(tokio::spawn(accept_all(Arc::new(door), settings)));
    }
    drop((alive, hand_out));
    for task in tasks {
        // A panic was reported by the panic hook.
        let _ = task.await;
    }
    // Nothing is ever sent: this ends once every stream is dropped.
    let _ = streams.recv().await;
    for endpoint in &open {
        endpoint.close(ENDED, b"");
        // So that clients hear of it; those that do not answer are not waited for.
        let _ = tokio::time::timeout(CLOSE_TIME, endpoint.wait_idle()).await;
    }
}

/// What the handshakes of a listener share.
struct Door {
    endpoint: quinn::Endpoint,
    tls: Tls,
    entrance: Arc<door::Door>,
    hand_out: Arc<HandOut>,
    exchange: Arc<Exchange>,
    handshakes: Arc<HandshakeTurns>,
    put_off: Arc<Semaphore>,
    stop: CancellationToken,
    alive: mpsc::Sender<Infallible>,
}

async fn accept_all(door: Arc<Door>, mut settings: Settings) {
    loop {
        let next = async {
            let incoming = door.endpoint.accept().await?;
            // Those behind it wait in the endpoint, at most MAX_INCOMING of them.
            let turn = door.handshakes.any().await?;
            Some((incoming, turn))
        };
        let next = tokio::select! {
            () = door.stop.cancelled() => None, // waiting on the token changes nothing
            next = next => next, // dropped half-way, its client is refused
        };
        let Some((incoming, turn)) = next else {
            if !door.stop.is_cancelled() {
                // quinn reads no more from a socket that failed.
                tracing::error!(event = "listener.failed", listener = %door.entrance.name);
            }
            door.endpoint.set_server_config(None);
            return;
        };
        door.take(incoming, turn, &mut settings);
    }
}

impl Door {
    /// Lets a handshake begin, if it may.
    fn take(
        self: &Arc<Door>,
        incoming: Incoming,
        turn: OwnedSemaphorePermit,
        settings: &mut Settings,
    ) {
        let at_once = self.exchange.limits.max_handshakes;
        let many = self.handshakes.taken() > at_once / PROOF_FROM;
        let proof_wanted = many || self.hand_out.is_scarce(&self.entrance);
        if proof_wanted && !incoming.remote_address_validated() && incoming.may_retry() {
            // It comes back, and is asked for no second time.
            let _ = incoming.retry();
            return;
        }
        let peer = incoming.remote_address();
        let Some(share) = self.handshakes.share(Network::of(peer.ip())) else {
            // It waits for others of its network without taking room here: unheard, it tries again ever
            // more slowly, as QUIC demands.
            return incoming.ignore();
        };
        let place = match self.hand_out.admit(peer, &self.entrance) {
            Admitted::In(place) => place,
            Admitted::No => return incoming.refuse(),
            Admitted::NotNow(put_off, place) => return self.refuse_later(incoming, put_off, place),
        };
        let Some(handshake) = place.entrance().handshake() else {
            let counters = self.exchange.outside_counters();
            counters.refused(Refused::Handshakes);
            return incoming.refuse();
        };
        match incoming.accept_with(settings.current()) {
            Ok(connecting) => {
                let door = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::select! {
                        () = door.stop.cancelled() => {} // waiting on the token changes nothing
                        // Dropped half-way, the connection is closed, as all others will be.
                        () = door.shake(connecting, peer, (turn, share, handshake), place) => {}
                    }
                });
            }
            Err(error) => self.failed(peer, Failure::of_quic(&error), &error, &place),
        }
    }

    /// Refuses a client after a while. Until then its Initial is at hand, so that those it repeats are
    /// not taken for somebody else's, and counted again.
    fn refuse_later(self: &Arc<Door>, incoming: Incoming, put_off: PutOff, place: Place) {
        let Ok(room) = Arc::clone(&self.put_off).try_acquire_owned() else {
            return incoming.refuse();
        };
        let door = Arc::clone(self);
        tokio::spawn(async move {
            let wait = Duration::from_millis(put_off.wait_ms);
            tokio::select! {
                () = door.stop.cancelled() => {} // waiting on the token changes nothing
                () = tokio::time::sleep(wait) => {} // nor does waiting for the time
            }
            incoming.refuse();
            // Whole: it counts as long as it waits.
            drop((put_off, place, room));
        });
    }

    async fn shake(
        &self,
        connecting: Connecting,
        peer: SocketAddr,
        turn: (OwnedSemaphorePermit, Share, Handshake),
        place: Place,
    ) {
        let limits = &self.exchange.limits;
        let timeout = limits.handshake_timeout;
        let connection = match tokio::time::timeout(timeout, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                return self.failed(peer, Failure::of_quic(&error), &error, &place);
            }
            Err(_) => {
                self.exchange.outside_counters().handshake_timeouts.one();
                let detail = format_args!("not done after {timeout:?}");
                tracing::warn!(event = "tls.handshake_failed", %peer, reason = "timeout", %detail);
                return;
            }
        };
        drop(turn);
        let certificates = certificates(&connection);
        if certificates.is_empty() && self.tls.client_certificate == ClientCertificate::Required {
            connection.close(NO_CERTIFICATE, b"a client certificate is required");
            let detail = "the client showed no certificate";
            self.failed(peer, Failure::NoCertificate, &detail, &place);
            return;
        }
        if !certificates.is_empty() {
            let hold_offs = &self.exchange.admission.hold_offs;
            hold_offs.good_certificate(self.hand_out.now(), peer.ip());
        }
        // A stream is there once the client has sent something on it.
        let stream =
            match tokio::time::timeout(limits.connect_timeout, connection.accept_bi()).await {
                Ok(Ok(stream)) => stream,
                // The client left.
                Ok(Err(_)) => return,
                Err(_) => {
                    connection.close(NO_STREAM, b"no stream was opened in time");
                    self.exchange.outside_counters().connect_timeouts.one();
                    return;
                }
            };
        let (send, recv) = stream;
        self.hand_out.give(Arrival {
            caller: Caller::Quic(Box::new(QuicArrival {
                stream: QuicStream {
                    connection,
                    send,
                    recv,
                    finishing: None,
                    outcome: CUT,
                    wide: None,
                    second: 0,
                    in_second: 0,
                    _alive: self.alive.clone(),
                },
                certificates,
            })),
            peer,
            door: Arc::clone(&self.entrance),
            place,
        });
    }

    fn failed(&self, peer: SocketAddr, failure: Failure, detail: &dyn fmt::Display, place: &Place) {
        failure.count(self.exchange.outside_counters());
        failure.hold_off(&self.exchange, self.hand_out.now(), Some(peer.ip()), place);
        let reason = failure.name();
        tracing::warn!(event = "tls.handshake_failed", %peer, reason, %detail);
    }
}

/// What the client showed, leaf first.
fn certificates(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let shown = connection.peer_identity();
    let shown = shown.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    shown.map_or_else(Vec::new, |chain| *chain)
}

/// A stream on its way to a worker.
#[derive(Debug)]
pub(crate) struct QuicArrival {
    pub(crate) stream: QuicStream,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// The one stream of a QUIC connection, which ends with it.
pub(crate) struct QuicStream {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    /// Done when the client has acknowledged everything.
    finishing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// What the client is told when this is dropped.
    outcome: VarInt,
    /// Once its windows are wide.
    wide: Option<Holding>,
    /// Bytes read in this second, until then.
    second: u64,
    in_second: usize,
    /// The thread of the connection goes on as long as there is one.
    _alive: mpsc::Sender<Infallible>,
}

impl fmt::Debug for QuicStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicStream")
            .field("peer", &self.connection.remote_address())
            .finish_non_exhaustive()
    }
}

/// It is in no worker's runtime: its datagrams come and go on a thread of their own.
impl Movable for QuicStream {
    fn detach(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn attach(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_narrow(&mut self, tick: u64, read: usize) -> bool {
        if self.wide.is_some() {
            return false;
        }
        let second = tick / 1000;
        if self.second != second {
            (self.second, self.in_second) = (second, 0);
        }
        self.in_second += read;
        self.in_second > NARROW as usize
    }

    /// For as long as it lasts: what a client was promised cannot be taken back.
    fn widen(&mut self, memory: &Arc<Account>) -> Widened {
        if self.wide.is_some() {
            return Widened::No;
        }
        self.wide = Holding::try_new(memory, WIDENING);
        if self.wide.is_none() {
            return Widened::No;
        }
        self.connection.set_receive_window(VarInt::from_u32(WIDE));
        self.connection.set_send_window(u64::from(WIDE));
        Widened::Yes
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    /// Ends our side of the stream and waits until the client has everything: closing the connection
    /// would take back what is on its way. The caller bounds the time.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let finishing = this.finishing.get_or_insert_with(|| {
            // It fails if the client wants no more, and then there is nothing to wait for.
            let _ = this.send.finish();
            let stopped = this.send.stopped();
            Box::pin(async move {
                let _ = stopped.await;
            })
        });
        ready!(finishing.as_mut().poll(cx));
        this.finishing = None;
        this.outcome = ENDED;
        Poll::Ready(Ok(()))
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        self.connection.close(self.outcome, b"");
    }
}
