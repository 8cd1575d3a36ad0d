//! Scene: what a storm is given: where the server is, how much of everything, when to begin and end.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Place;
use super::tally::Tally;

/// Size of a receive buffer that is soon full.
const SMALL: u32 = 4_096;
/// Addresses that storms come from.
const ADDRESSES: u8 = 16;

/// How a storm and the pairs wait for each other.
pub(super) struct Signal {
    prepared: Mutex<Option<oneshot::Sender<()>>>,
    begins: watch::Receiver<Option<Instant>>,
}

impl Signal {
    pub(super) fn new(
        prepared: oneshot::Sender<()>,
        begins: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self {
            prepared: Mutex::new(Some(prepared)),
            begins,
        }
    }
}

/// How much a socket's system takes before it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Receives {
    /// As usual.
    Usual,
    /// As little as the system allows.
    Little,
}

/// Where and how a storm is.
pub(super) struct Scene {
    pub(super) place: Place,
    scale: f64,
    signal: Signal,
    until: OnceLock<Instant>,
    pub(super) tally: Tally,
}

impl Scene {
    pub(super) fn new(place: Place, scale: f64, signal: Signal) -> Self {
        Self {
            place,
            scale,
            signal,
            until: OnceLock::new(),
            tally: Tally::default(),
        }
    }

    /// So many, or this run's share of them, but one at least.
    pub(super) fn share(&self, full: usize) -> usize {
        ((full as f64 * self.scale).ceil() as usize).max(1)
    }

    /// Says that all is prepared, and waits until it is time.
    pub(super) async fn prepared(&self) {
        let ready = &self.signal.prepared;
        let ready = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ready) = ready {
            let _ = ready.send(()); // the pairs have given up, and the wait below ends at once
        }
        let mut begins = self.signal.begins.clone();
        let until = begins.wait_for(Option::is_some).await.ok().and_then(|u| *u);
        let _ = self.until.set(until.unwrap_or_else(Instant::now)); // set once: a storm has one task that prepares
    }

    /// When to end.
    pub(super) fn until(&self) -> Instant {
        self.until.get().copied().unwrap_or_else(Instant::now)
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until()
    }

    /// What the future comes to, or `None` if the time is over before.
    pub(super) async fn while_it_lasts<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout_at(self.until(), future).await.ok()
    }

    /// A connection to the plain listener, from the storm's own address if the server is on loopback.
    pub(super) async fn plain(&self, receives: Receives) -> std::io::Result<TcpStream> {
        socket(&self.place.plain, receives).await
    }

    /// The same to the TLS listener, before any handshake.
    pub(super) async fn secure(&self, receives: Receives) -> std::io::Result<TcpStream> {
        match &self.place.secure {
            Some(secure) => socket(&secure.server, receives).await,
            None => Err(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "there is no TLS listener",
            )),
        }
    }
}

async fn socket(server: &crate::client::Server, receives: Receives) -> std::io::Result<TcpStream> {
    let mut addresses = tokio::net::lookup_host((server.host(), server.port())).await?;
    // A name such as `localhost` may stand for both families; listeners of benches are on IPv4.
    let all: Vec<SocketAddr> = addresses.by_ref().collect();
    let Some(address) = all.iter().find(|a| a.is_ipv4()).or(all.first()).copied() else {
        return Err(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "the host has no address",
        ));
    };
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if receives == Receives::Little {
        socket.set_recv_buffer_size(SMALL)?;
    }
    if address.ip() == IpAddr::from(Ipv4Addr::LOCALHOST) && cfg!(target_os = "linux") {
        socket.bind((stormy(), 0).into())?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Where storms come from, on loopback: not from where good clients come, and from several addresses, for
/// one has 28,000 ports, and each rests for a minute after use.
fn stormy() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    IpAddr::from([
        127,
        0,
        66,
        1 + NEXT.fetch_add(1, Ordering::Relaxed) % ADDRESSES,
    ])
}
