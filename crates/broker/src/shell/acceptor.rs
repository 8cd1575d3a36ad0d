//! Takes connections from all listeners and hands them to the workers in turn.
//!
//! Its own thread: accepting goes on however busy the workers are, and a burst of connects costs
//! the workers only what they take.
//!
//! Sockets get TCP_NODELAY, TCP keep-alive and user timeout by inheritance from their listener (Linux,
//! BSD), which saves four system calls for each.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker::{Bound, StartError};
use super::clock::Clock;
use super::door::Door;
use super::quic::QuicArrival;
use crate::admission::gate::{Entrance, Overloaded};
use crate::admission::memory::Standing;
use crate::admission::neighbours::{Neighbours, Network};
use crate::admission::{PutOff, Refused};
use crate::machine::Moment;
use crate::machine::exchange::Exchange;
use crate::transport::{Bind, ListenerConfig, Proxies};

/// Connections the kernel completes ahead of us: a second of a connect storm.
const BACKLOG: i32 = 4096;

/// Silence after which TCP asks whether the peer is still there, and how often it repeats that. Finds
/// cars that lost their link without a word and have no MQTT keep-alive.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long what we sent may go unacknowledged before the peer counts as gone (RFC 5482, Linux). Without
/// it the kernel repeats itself for a quarter of an hour into a cellular link that is half open, and a
/// client with a long keep-alive looks connected for as long.
///
/// It replaces the number of keep-alive probes too: a connection is over at the first probe due after this
/// much silence. So it is the silence before the first probe plus three intervals; with less, one lost
/// probe would end the connection of a car that stands in a garage. It also ends a client that takes
/// nothing of what we send for as long, though its system is alive.
#[cfg(target_os = "linux")]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(90);

/// Pause after a failed accept: out of file descriptors, nothing else helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a failing accept is logged: each of them is counted.
const ACCEPT_TELLS: Duration = Duration::from_secs(10);

/// `accept` failed because the process, or the system, has as many files open as it may.
const OUT_OF_DESCRIPTORS: [i32; 2] = [24, 23]; // EMFILE, ENFILE: the same on every Unix

/// A listener that is bound.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    door: Arc<Door>,
    pub(crate) bound: Bound,
}

impl Listener {
    /// Its bounds.
    pub(crate) fn entrance(&self) -> Arc<Entrance> {
        Arc::clone(&self.door.entrance)
    }
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) caller: Caller,
    pub(crate) peer: SocketAddr,
    pub(crate) door: Arc<Door>,
    pub(crate) place: Place,
}

/// What a worker is handed.
#[derive(Debug)]
pub(crate) enum Caller {
    /// A socket; what its transport needs is still to come.
    Tcp(TcpStream),
    /// A stream that stands.
    Quic(Box<QuicArrival>),
}

/// Counts open sockets.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    open: AtomicUsize,
    /// Of these, handed to a web service.
    web: AtomicUsize,
    /// Who is with a web service is not among them.
    neighbours: Neighbours,
}

impl Sockets {
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn web(&self) -> usize {
        self.web.load(Ordering::Relaxed)
    }

    /// Sockets that are neither `connected` clients nor with a web service.
    pub(crate) fn pending(&self, connected: usize) -> usize {
        self.open().saturating_sub(self.web() + connected)
    }
}

/// One open socket in the counts of [`Sockets`] and of its listener; dropped with it.
#[derive(Debug)]
pub(crate) struct Place {
    sockets: Arc<Sockets>,
    entrance: Arc<Entrance>,
    /// Where it comes from, as far as that is known.
    network: Option<Network>,
    who: Standing,
}

impl Place {
    pub(crate) fn take(sockets: &Arc<Sockets>, entrance: &Arc<Entrance>) -> Place {
        sockets.open.fetch_add(1, Ordering::Relaxed);
        entrance.enter();
        Place {
            sockets: Arc::clone(sockets),
            entrance: Arc::clone(entrance),
            network: None,
            who: Standing::Stranger,
        }
    }

    /// It is known where it comes from: counts it there, unless `most` strangers of that network are
    /// counted already.
    pub(crate) fn comes_from(&mut self, address: IpAddr, most: usize) -> Result<(), Refused> {
        self.leave_network();
        let network = Network::of(address);
        if !self.sockets.neighbours.enter(network, most) {
            return Err(Refused::PendingAddress);
        }
        self.network = Some(network);
        Ok(())
    }

    /// Where it comes from; `None` if only a proxy knows, and did not say.
    pub(crate) fn network(&self) -> Option<Network> {
        self.network
    }

    /// How many clients of its network are connected.
    pub(crate) fn clients_beside(&self) -> usize {
        let network = self.network;
        network.map_or(0, |network| self.sockets.neighbours.clients(network))
    }

    /// Whether it is not a client yet.
    pub(crate) fn is_strangers(&self) -> bool {
        self.who == Standing::Stranger
    }

    /// It is a client now.
    pub(crate) fn let_in(&mut self) {
        if self.is_strangers() {
            self.who = Standing::Client;
            if let Some(network) = self.network {
                self.sockets.neighbours.let_in(network);
            }
        }
    }

    fn leave_network(&mut self) {
        if let Some(network) = self.network.take() {
            self.sockets.neighbours.leave(network, self.who);
        }
    }

    /// Where it came in.
    pub(crate) fn entrance(&self) -> &Arc<Entrance> {
        &self.entrance
    }

    /// The place of a connection that goes to a web service, if fewer than `limit` have.
    pub(crate) fn for_web(mut self, limit: usize) -> Result<WebPlace, Place> {
        let taken = self
            .sockets
            .web
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < limit).then_some(count + 1)
            });
        match taken {
            Ok(_) => {
                self.leave_network();
                Ok(WebPlace(self))
            }
            Err(_) => Err(self),
        }
    }
}

/// The place of a connection that a web service has.
#[derive(Debug)]
pub(crate) struct WebPlace(Place);

impl Drop for WebPlace {
    fn drop(&mut self) {
        self.0.sockets.web.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_network();
        // In this order: who sees that it is gone may come in by the same listener.
        self.entrance.leave();
        self.sockets.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens a listener.
pub(crate) fn bind(config: ListenerConfig, workers: usize) -> Result<Listener, StartError> {
    let door = Door::new(&config, workers).map_err(|why| StartError::Listener {
        name: Arc::clone(&config.name),
        protocol: config.transport.protocol(),
        why,
    })?;
    let ListenerConfig {
        name,
        bind,
        transport,
        ..
    } = config;
    let opened = match &bind {
        Bind::Address(address) => listen(*address),
        Bind::Socket(socket) => socket.try_clone(),
        Bind::Datagrams(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "only QUIC runs over a UDP socket",
        )),
    };
    let prepared = opened.and_then(|socket| {
        prepare(&socket)?;
        Ok((socket.local_addr()?, socket))
    });
    let (bound, socket) = Bound::of(name, transport.protocol(), bind, prepared)?;
    Ok(Listener {
        socket,
        door: Arc::new(door),
        bound,
    })
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
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(())
}

/// Starts the acceptor. It ends, and closes all listeners, when `stop` is cancelled.
pub(crate) fn spawn(
    listeners: Vec<Listener>,
    hand_out: Arc<HandOut>,
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
        door,
        bound,
    } = listener;
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(event = "listener.failed", listener = %bound.name, %error);
            return;
        }
    };
    let mut spare = Spare::new();
    let mut told = None;
    loop {
        let accepted = socket.accept().await;
        // Out of this runtime's poller again: the worker's is where it will live.
        match accepted.and_then(|(connection, peer)| Ok((connection.into_std()?, peer))) {
            Ok((connection, peer)) => {
                if is_stranger(&door, peer) {
                    hand_out.exchange.outside_counters().proxy_strangers.one();
                    let (listener, reason) = (&door.name, "stranger");
                    tracing::warn!(event = "proxy.refused", proxy = %peer, %listener, reason);
                    continue;
                }
                match hand_out.admit(peer, &door) {
                    Admitted::In(place) => hand_out.give(Arrival {
                        caller: Caller::Tcp(connection),
                        peer,
                        door: Arc::clone(&door),
                        place,
                    }),
                    Admitted::No => {}
                    Admitted::NotNow(put_off, place) => {
                        drop(tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(put_off.wait_ms)).await;
                            // Whole: it counts as long as it waits.
                            drop((connection, place, put_off));
                        }));
                    }
                }
            }
            // The peer was gone before we came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                hand_out.exchange.outside_counters().accept_failures.one();
                if told.is_none_or(|told: Instant| told.elapsed() > ACCEPT_TELLS) {
                    told = Some(Instant::now());
                    tracing::error!(event = "listener.accept_failed", listener = %bound.name, %error);
                }
                let out = error.raw_os_error();
                if out.is_none_or(|code| !OUT_OF_DESCRIPTORS.contains(&code))
                    || !spare.turn_away(&socket, hand_out).await
                {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether somebody comes past the proxies.
fn is_stranger(door: &Door, peer: SocketAddr) -> bool {
    match &door.proxies {
        Proxies::None => false,
        Proxies::From(ranges) => !ranges.iter().any(|range| range.contains(peer.ip())),
    }
}

/// A file descriptor kept for the time when there is none left: with it the connections that wait are
/// taken and closed, so that their clients learn of it, and do not fill the kernel's queue.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Spare {
        Spare(File::open("/dev/null").ok())
    }

    /// Takes one connection and closes it. Says whether that was possible.
    async fn turn_away(&mut self, socket: &tokio::net::TcpListener, hand_out: &HandOut) -> bool {
        if self.0.take().is_none() {
            // Somebody else was quicker the last time.
            *self = Spare::new();
            return false;
        }
        // Without waiting: without descriptors `accept` fails also when nobody is there, and whoever
        // comes later may find that there are some again.
        let accepted = poll_fn(|cx| Poll::Ready(socket.poll_accept(cx))).await;
        let turned_away = matches!(accepted, Poll::Ready(Ok(_)));
        if turned_away {
            let counters = hand_out.exchange.outside_counters();
            counters.refused(Refused::Sockets);
        }
        drop(accepted);
        *self = Spare::new();
        turned_away
    }
}

/// The workers, taken in turn.
pub(crate) struct HandOut {
    workers: Vec<mpsc::Sender<Arrival>>,
    next: AtomicUsize,
    exchange: Arc<Exchange>,
    clock: Clock,
    sockets: Arc<Sockets>,
}

impl HandOut {
    pub(crate) fn new(
        workers: Vec<mpsc::Sender<Arrival>>,
        exchange: Arc<Exchange>,
        clock: Clock,
        sockets: Arc<Sockets>,
    ) -> HandOut {
        HandOut {
            workers,
            next: AtomicUsize::new(0),
            exchange,
            clock,
            sockets,
        }
    }

    /// Whether one more connection may come in; if not, that is counted.
    pub(crate) fn admit(&self, peer: SocketAddr, door: &Door) -> Admitted {
        let counters = self.exchange.outside_counters();
        let limits = &self.exchange.limits;
        if self.sockets.pending(self.exchange.connections()) >= limits.max_pending_connections {
            counters.overloaded_accepts.one();
            return Admitted::No;
        }
        let admission = &self.exchange.admission;
        let overloaded = match door.tls {
            None => Overloaded::TellLater,
            Some(_) => Overloaded::CloseNow,
        };
        let (now, open) = (self.clock.now(), self.sockets.open());
        let entrance = &door.entrance;
        // Behind a proxy it is not the client's; that is looked at when the client is known.
        let address = (door.proxies == Proxies::None).then(|| peer.ip());
        let place = || {
            let mut place = Place::take(&self.sockets, entrance);
            if let Some(address) = address {
                place.comes_from(address, limits.max_pending_per_address)?;
            }
            Ok(place)
        };
        match admission.socket(now, address, entrance, open, limits, overloaded, place) {
            Ok(place) => Admitted::In(place),
            Err(refused) => {
                counters.refused(refused);
                let listener = &door.name;
                tracing::debug!(event = "socket.refused", %peer, %listener, why = ?refused);
                match refused {
                    Refused::Overload => match (admission.put_off(), place()) {
                        (Some(put_off), Ok(place)) => Admitted::NotNow(put_off, place),
                        _ => Admitted::No,
                    },
                    _ => Admitted::No,
                }
            }
        }
    }

    /// The time.
    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Whether coming uses up what there is little of, so that nobody may come in another's name.
    pub(crate) fn is_scarce(&self, door: &Door) -> bool {
        let limits = &self.exchange.limits;
        let delays = &self.exchange.admission.delays;
        limits.connect_rate.is_some()
            || door.entrance.has_connect_rate()
            || delays.refuses(self.clock.now().tick)
    }

    /// Hands a connection to a worker; if none can take it, it is closed and counted.
    pub(crate) fn give(&self, mut arrival: Arrival) {
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

/// Whether a connection may come in.
pub(crate) enum Admitted {
    In(Place),
    No,
    /// To be closed after a while, so that not all that are refused come back at once.
    NotNow(PutOff, Place),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Transport;

    #[test]
    fn accepted_sockets_have_what_was_set_on_their_listener() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ListenerConfig::new("test", loopback, Transport::Tcp);
        let listener = bind(config, 1).expect("a port");
        let _client = TcpStream::connect(listener.bound.addr).expect("it listens");
        listener.socket.set_nonblocking(false).expect("settable");
        let (accepted, _) = listener.socket.accept().expect("there is one");
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("readable"));
        assert!(socket.keepalive().expect("readable"));
        #[cfg(target_os = "linux")]
        {
            let idle = socket.tcp_keepalive_time().expect("readable");
            let interval = socket.tcp_keepalive_interval().expect("readable");
            let user = socket.tcp_user_timeout().expect("readable").expect("set");
            assert_eq!((idle, interval), (TCP_KEEPALIVE, TCP_KEEPALIVE_INTERVAL));
            assert_eq!(user, TCP_USER_TIMEOUT);
            assert!(user >= idle + 3 * interval, "three probes may be lost");
        }
    }
}
