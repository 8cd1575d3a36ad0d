//! Takes connections from all listeners and hands them to the workers in turn.
//!
//! Its own thread: accepting goes on however busy the workers are, and a burst of connects costs
//! the workers only what they take.
//!
//! Sockets get TCP_NODELAY and TCP keep-alive by inheritance from their listener (Linux, BSD), which
//! saves three system calls for each.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::broker::{Bind, Bound, ListenerConfig, StartError, Transport};
use crate::machine::exchange::Exchange;

/// Connections the kernel completes ahead of us: a second of a connect storm.
const BACKLOG: i32 = 4096;

/// Silence after which TCP asks whether the peer is still there, and how often it repeats that. Finds
/// cars that lost their link without a word and have no MQTT keep-alive.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Pause after a failed accept: out of file descriptors, nothing else helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that is bound.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    transport: Transport,
    pub(crate) bound: Bound,
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) listener: Arc<str>,
    pub(crate) transport: Transport,
    pub(crate) place: Place,
}

/// Counts open sockets.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    open: AtomicUsize,
}

impl Sockets {
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// One open socket in the count of [`Sockets`]; dropped with it.
#[derive(Debug)]
pub(crate) struct Place(Arc<Sockets>);

impl Place {
    fn take(sockets: &Arc<Sockets>) -> Place {
        sockets.open.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(sockets))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens a listener.
pub(crate) fn bind(config: ListenerConfig) -> Result<Listener, StartError> {
    let ListenerConfig {
        name,
        bind,
        transport,
    } = config;
    let opened = match &bind {
        Bind::Address(address) => listen(*address),
        Bind::Socket(socket) => socket.try_clone(),
    };
    let prepared = opened.and_then(|socket| {
        prepare(&socket)?;
        Ok((socket.local_addr()?, socket))
    });
    match prepared {
        Ok((addr, socket)) => {
            let protocol = transport.protocol();
            tracing::info!(event = "listener.bound", listener = %name, protocol, %addr);
            Ok(Listener {
                socket,
                transport,
                bound: Bound {
                    name,
                    protocol,
                    addr,
                },
            })
        }
        Err(source) => Err(StartError::Bind {
            name,
            addr: bind,
            source,
        }),
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets what connections inherit.
fn prepare(listener: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(TCP_KEEPALIVE)
            .with_interval(TCP_KEEPALIVE_INTERVAL),
    )
}

/// Starts the acceptor. It ends, and closes all listeners, when `stop` is cancelled.
pub(crate) fn spawn(
    listeners: Vec<Listener>,
    workers: Vec<mpsc::Sender<Arrival>>,
    exchange: Arc<Exchange>,
    sockets: Arc<Sockets>,
    stop: CancellationToken,
    running: watch::Sender<()>,
) -> Result<JoinHandle<()>, StartError> {
    let name = "mqtt-accept".to_owned();
    let failed = |source| StartError::Thread {
        name: "mqtt-accept".to_owned(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let _running = running;
            let hand_out = Arc::new(HandOut {
                workers,
                next: AtomicUsize::new(0),
                exchange,
                sockets,
            });
            runtime.block_on(async {
                let tasks: Vec<_> = listeners
                    .into_iter()
                    .map(|listener| {
                        let hand_out = Arc::clone(&hand_out);
                        let stop = stop.clone();
                        tokio::spawn(async move {
                            // Both arms may be dropped anywhere: a connection that was accepted and
                            // not handed out is closed, as all others will be in a moment.
                            tokio::select! {
                                () = stop.cancelled() => {}
                                () = accept_all(listener, &hand_out) => {}
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    // A panic was reported by the panic hook.
                    let _ = task.await;
                }
            });
        })
        .map_err(failed)
}

async fn accept_all(listener: Listener, hand_out: &HandOut) {
    let Listener {
        socket,
        transport,
        bound,
    } = listener;
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(event = "listener.failed", listener = %bound.name, %error);
            return;
        }
    };
    loop {
        let accepted = socket.accept().await;
        // Out of this runtime's poller again: the worker's is where it will live.
        match accepted.and_then(|(connection, peer)| Ok((connection.into_std()?, peer))) {
            Ok((connection, peer)) => {
                hand_out.give(connection, peer, &bound.name, &transport);
            }
            // The peer was gone before we came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                hand_out.exchange.outside_counters().accept_failures.one();
                tracing::error!(event = "listener.accept_failed", listener = %bound.name, %error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The workers, taken in turn.
struct HandOut {
    workers: Vec<mpsc::Sender<Arrival>>,
    next: AtomicUsize,
    exchange: Arc<Exchange>,
    sockets: Arc<Sockets>,
}

impl HandOut {
    fn give(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        listener: &Arc<str>,
        transport: &Transport,
    ) {
        let limit = self.exchange.limits.max_pending_connections;
        let pending = self
            .sockets
            .open()
            .saturating_sub(self.exchange.connections());
        if pending >= limit {
            self.exchange.outside_counters().overloaded_accepts.one();
            return;
        }
        let mut arrival = Arrival {
            socket,
            peer,
            listener: Arc::clone(listener),
            transport: transport.clone(),
            place: Place::take(&self.sockets),
        };
        for _ in 0..self.workers.len() {
            let next = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
            match self.workers[next].try_send(arrival) {
                Ok(()) => return,
                // This one is behind or gone; try the next.
                Err(mpsc::error::TrySendError::Full(back))
                | Err(mpsc::error::TrySendError::Closed(back)) => arrival = back,
            }
        }
        self.exchange.outside_counters().overloaded_accepts.one();
    }
}
