//! Starting a broker, and the handle to a running one.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, io};

use journal::{Durability, Journal};
use mqtt::{Publish, ReasonCode};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::acceptor::{self, HandOut, Sockets};
use super::clock::Clock;
use super::operator;
use super::quic::{self, QuicSettingsError};
use super::store::{self, Loaded, StoreError};
use super::worker::{self, Ways};
use crate::admission::bans::{Ban, BanTarget};
use crate::admission::gate::Entrance;
use crate::admission::hold_off::HeldOff;
use crate::admission::overload::Overload;
use crate::clients::MAX_PURGES;
use crate::hooks::Hooks;
use crate::limits::Limits;
use crate::machine::exchange::Exchange;
use crate::machine::mailbox::Mail;
use crate::machine::slots::ConnectionId;
use crate::recovery::Recovery;
use crate::stats::Stats;
use crate::transport::{Bind, ListenerConfig, Transport};

/// What to listen on, and within which limits.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// At least one.
    pub listeners: Vec<ListenerConfig>,
    /// Bounds of everything.
    pub limits: Limits,
    /// Worker threads, at most 256; `None` for one per processor.
    pub workers: Option<NonZeroUsize>,
    /// Where sessions, queued and retained messages are kept.
    pub store: Store,
}

/// Where sessions, queued and retained messages are kept.
#[derive(Debug, Clone, Default)]
pub enum Store {
    /// In memory: they end with the process.
    #[default]
    Memory,
    /// In a directory too: they survive the process, however it ends.
    Directory(StoreConfig),
}

/// A directory for sessions.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Made if it is not there. One broker at a time.
    pub dir: PathBuf,
    /// Whether "kept" means synced to the disk.
    pub durability: Durability,
}

impl StoreConfig {
    /// Synced to the disk.
    pub fn new(dir: impl Into<PathBuf>) -> StoreConfig {
        StoreConfig {
            dir: dir.into(),
            durability: Durability::Fsync,
        }
    }
}

impl BrokerConfig {
    /// Default limits, one worker per processor.
    pub fn new(listeners: Vec<ListenerConfig>) -> BrokerConfig {
        BrokerConfig {
            listeners,
            limits: Limits::default(),
            workers: None,
            store: Store::Memory,
        }
    }
}

/// A listener that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// As configured.
    pub name: Arc<str>,
    /// As in [`Transport::protocol`](crate::Transport::protocol).
    pub protocol: &'static str,
    /// The address with the real port.
    pub addr: SocketAddr,
}

impl Bound {
    /// What became of a listener that was to open at `bind`, with its socket.
    pub(super) fn of<S>(
        name: Arc<str>,
        protocol: &'static str,
        bind: Bind,
        opened: io::Result<(SocketAddr, S)>,
    ) -> Result<(Bound, S), StartError> {
        match opened {
            Ok((addr, socket)) => {
                tracing::info!(event = "listener.bound", listener = %name, protocol, %addr);
                let bound = Bound {
                    name,
                    protocol,
                    addr,
                };
                Ok((bound, socket))
            }
            Err(source) => Err(StartError::Bind {
                name,
                addr: bind,
                source,
            }),
        }
    }
}

/// Why a broker did not start. Nothing keeps running after one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A broker without a listener serves nobody.
    #[error("no listener is configured; add at least one")]
    NoListener,
    /// A limit makes no sense.
    #[error("limit `{name}` is {value}, must be {allowed}")]
    Limit {
        /// Field of [`Limits`], or `workers`.
        name: &'static str,
        /// What was given.
        value: u64,
        /// What may be given.
        allowed: &'static str,
    },
    /// The address cannot be listened on.
    #[error(
        "listener `{name}` cannot listen on {addr}; is the port in use or the address not of this machine?"
    )]
    Bind {
        /// Name of the listener.
        name: Arc<str>,
        /// Where.
        addr: Bind,
        /// What the system says.
        source: io::Error,
    },
    /// The listener cannot be served as configured.
    #[error("listener `{name}` ({protocol}) cannot be served: {why}")]
    Listener {
        /// Name of the listener.
        name: Arc<str>,
        /// As in [`Transport::protocol`](crate::Transport::protocol).
        protocol: &'static str,
        /// What is in the way, and the remedy.
        why: &'static str,
    },
    /// QUIC cannot be served with the TLS configuration.
    #[error("listener `{name}` cannot serve QUIC")]
    Quic {
        /// Name of the listener.
        name: Arc<str>,
        /// Why.
        source: QuicSettingsError,
    },
    /// The store of sessions could not be opened or read.
    #[error("open the session store in {}", dir.display())]
    Store {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// A thread or its runtime could not be started.
    #[error("start thread `{name}`")]
    Thread {
        /// Name of the thread.
        name: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Starts brokers.
#[derive(Debug)]
pub struct Broker;

impl Broker {
    /// Binds all listeners, then starts the threads. The broker runs on threads of its own,
    /// independent of any runtime of the caller.
    ///
    /// # Errors
    /// See [`StartError`]; on error no port stays open.
    pub fn start(config: BrokerConfig, hooks: Arc<dyn Hooks>) -> Result<BrokerHandle, StartError> {
        let BrokerConfig {
            listeners,
            limits,
            workers,
            store,
        } = config;
        check(&limits)?;
        let workers = workers
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get);
        if workers > ConnectionId::MAX_SHARDS {
            return Err(StartError::Limit {
                name: "workers",
                value: workers as u64,
                allowed: "1 to 256",
            });
        }
        if listeners.is_empty() {
            return Err(StartError::NoListener);
        }
        let mut bound = Vec::with_capacity(listeners.len());
        let mut entrances = Vec::new();
        let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
        for config in listeners {
            match config.transport.clone() {
                Transport::Quic(tls) => {
                    let listener = quic::bind(config, tls, &limits, workers)?;
                    bound.push(listener.bound.clone());
                    datagrams.push(listener);
                }
                _ => {
                    let listener = acceptor::bind(config, workers)?;
                    bound.push(listener.bound.clone());
                    entrances.push((Arc::clone(&listener.bound.name), listener.entrance()));
                    streams.push(listener);
                }
            }
        }

        let clock = Clock::start();
        let Loaded {
            exchange,
            shards,
            recovery,
            journal,
        } = store::load(&store, hooks, limits, workers, clock)?;
        let sockets = Arc::new(Sockets::default());
        let accepting = CancellationToken::new();
        let (running, stopped) = watch::channel(());
        let mut threads = Vec::with_capacity(workers + 1);
        // Before the threads: if one fails to start, dropping `inner` stops those that did.
        let mut inner = Running {
            exchange: Arc::clone(&exchange),
            sockets: Arc::clone(&sockets),
            clock,
            bound,
            entrances,
            recovery,
            journal,
            accepting: accepting.clone(),
            stopped,
            inquiries: Semaphore::new(operator::INQUIRIES),
            purges: Arc::new(Semaphore::new(MAX_PURGES)),
            threads: Mutex::default(),
        };
        let mut inboxes = Vec::with_capacity(workers);
        let (removals, ways): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
        for ((number, shard), arrivals) in (0..).zip(shards).zip(ways) {
            let ways = Ways {
                removals: removals.clone(),
                arrivals,
            };
            let exchange = Arc::clone(&exchange);
            let (thread, inbox) =
                worker::spawn(number, shard, exchange, clock, ways, running.clone())?;
            threads.push(thread);
            inboxes.push(inbox);
        }
        let hand_out = HandOut::new(inboxes, Arc::clone(&exchange), clock, sockets);
        let hand_out = Arc::new(hand_out);
        if !datagrams.is_empty() {
            let (hand_out, stop) = (Arc::clone(&hand_out), accepting.clone());
            let thread = quic::spawn(datagrams, hand_out, exchange, stop, running.clone())?;
            threads.push(thread);
        }
        threads.push(acceptor::spawn(streams, hand_out, accepting, running)?);
        inner.threads = Mutex::new(threads);
        Ok(BrokerHandle {
            inner: Arc::new(inner),
        })
    }
}

/// The longest that something may be waited for.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

fn check(limits: &Limits) -> Result<(), StartError> {
    let seconds = limits.keep_alive_max.as_secs();
    let hold_off = &limits.hold_off;
    let times = [
        ("handshake_timeout", limits.handshake_timeout),
        ("connect_timeout", limits.connect_timeout),
        ("close_timeout", limits.close_timeout),
        ("retry_spread", limits.retry_spread),
        ("hold_off.within", hold_off.within),
        ("hold_off.lasts", hold_off.lasts),
    ];
    for (name, time) in times {
        // Added to clocks that would wrap.
        if time > LONGEST {
            return Err(StartError::Limit {
                name,
                value: time.as_secs(),
                allowed: "at most 31536000 seconds (a year)",
            });
        }
    }
    let rows = [
        (
            "max_packet_size",
            u64::from(limits.max_packet_size),
            64..=268_435_460,
            "64 to 268435460 bytes (MQTT 5 section 2.1.4)",
        ),
        (
            "max_inflight",
            u64::from(limits.max_inflight),
            1..=65_535,
            "1 to 65535",
        ),
        (
            "max_queued",
            limits.max_queued as u64,
            1..=u64::MAX,
            "at least 1",
        ),
        (
            "keep_alive_max",
            seconds,
            1..=65_535,
            "1 to 65535 seconds (MQTT 5 section 3.2.2.3.14)",
        ),
        (
            "max_queued_bytes",
            limits.max_queued_bytes as u64,
            u64::from(limits.max_packet_size)..=u64::MAX,
            "at least `max_packet_size`, or the largest message could never be delivered",
        ),
        (
            "max_pending_per_address",
            limits.max_pending_per_address as u64,
            1..=u64::MAX,
            "at least 1",
        ),
        (
            "max_handshakes",
            limits.max_handshakes as u64,
            1..=u64::MAX,
            "at least 1",
        ),
        (
            "max_topic_levels",
            limits.max_topic_levels as u64,
            1..=65_536,
            "1 to 65536: a topic has no more bytes (MQTT 5 section 1.5.4)",
        ),
        (
            "max_sockets",
            limits.max_sockets as u64,
            1..=u64::MAX,
            "at least 1",
        ),
        (
            "max_read_memory",
            limits.max_read_memory as u64,
            // Three quarters of it are for large packets, and its buffer may be twice as large.
            (u64::from(limits.max_packet_size) * 4).max(16 * 1024)..=u64::MAX,
            "at least 16 KiB and four times `max_packet_size`, or the largest packet could never be received",
        ),
        (
            "max_queue_memory",
            limits.max_queue_memory as u64,
            limits.max_queued_bytes as u64..=u64::MAX,
            "at least `max_queued_bytes`, or one client alone would exceed it",
        ),
        (
            "max_session_memory",
            limits.max_session_memory as u64,
            // Three quarters of it are for large wills.
            (u64::from(limits.max_packet_size) * 2).max(64 * 1024)..=u64::MAX,
            "at least 64 KiB and twice `max_packet_size`, or the largest will could never be kept",
        ),
        (
            "max_loop_delay",
            limits.max_loop_delay.as_millis() as u64,
            20..=60_000,
            "20 ms to 60 s",
        ),
    ];
    for (name, value, range, allowed) in rows {
        if !range.contains(&value) {
            return Err(StartError::Limit {
                name,
                value,
                allowed,
            });
        }
    }
    Ok(())
}

/// A running broker. Clones are handles to the same one; when the last is dropped without
/// [`shutdown`](BrokerHandle::shutdown), the broker stops at once.
#[derive(Clone)]
pub struct BrokerHandle {
    pub(super) inner: Arc<Running>,
}

pub(super) struct Running {
    pub(super) exchange: Arc<Exchange>,
    sockets: Arc<Sockets>,
    pub(super) clock: Clock,
    bound: Vec<Bound>,
    /// By the name of the listener; of those that may have HTTP connections.
    entrances: Vec<(Arc<str>, Arc<Entrance>)>,
    recovery: Recovery,
    journal: Option<Arc<Journal>>,
    accepting: CancellationToken,
    /// Errors once every thread has dropped its sender.
    pub(super) stopped: watch::Receiver<()>,
    /// Turns of operators who ask for pages.
    pub(super) inquiries: Semaphore,
    /// Places of purges that wait for the store.
    pub(super) purges: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Whether every owed PUBACK was sent and every client was told, within the deadline.
    pub outcome: ShutdownOutcome,
    /// Connections that were cut at the deadline.
    pub cut: u64,
}

/// Whether a shutdown ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownOutcome {
    /// All connections were closed in order.
    Drained,
    /// The deadline came first.
    DeadlinePassed,
}

impl BrokerHandle {
    /// The open listeners, in the order of the configuration.
    pub fn listeners(&self) -> &[Bound] {
        &self.inner.bound
    }

    /// Counts since start.
    pub fn stats(&self) -> Stats {
        let mut stats = self.inner.exchange.stats();
        if let Some(journal) = &self.inner.journal {
            stats.store = store::stats(journal);
        }
        let sockets = &self.inner.sockets;
        stats.web_connections = sockets.web() as u64;
        stats.pending_connections = sockets.pending(stats.connections as usize) as u64;
        stats.loop_delay_us = self.overload().delay_us;
        stats
    }

    /// What was found in the store at the start.
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }

    /// What `principal` may do has changed: its subscriptions, connected or not, are checked again and
    /// those denied are removed; what is queued for it is checked when it is delivered. Returns at once.
    ///
    /// A stored session that lost a subscription is not taken up again: its client is told "session
    /// present 0" the next time it connects, and subscribes to what it may have then.
    pub fn access_changed(&self, principal: &str) {
        self.inner.exchange.access_changed(principal);
    }

    /// As [`access_changed`](BrokerHandle::access_changed), for every principal: when it is not known
    /// whose access changed. Costs a question to the hooks for every subscription there is.
    pub fn access_changed_for_all(&self) {
        self.inner.exchange.access_changed_for_all();
    }

    /// Disconnects every connection of `principal` ([`Identity::principal`](crate::Identity)), now,
    /// with `reason` for MQTT 5 clients. Returns how many there were.
    ///
    /// A connection that is being authenticated at this moment is authenticated again, so a caller
    /// that first makes [`Hooks::authenticate`] refuse and then calls this can rely on the
    /// principal being out. What the principal's connections sent before is still served.
    pub fn disconnect_principal(&self, principal: &str, reason: ReasonCode) -> usize {
        self.inner.exchange.disconnect_principal(principal, reason)
    }

    /// Puts a ban list in the place of the one there was. Who is new in it and connected is disconnected
    /// (an MQTT 5 client with 0x98, as 0x8A is for CONNACK alone; `disconnects` counts it as banned); who
    /// connects is refused: closed before the handshake by address, with 0x8A in CONNACK by certificate,
    /// client or principal. Returns at once. The list is not kept over a restart: whoever keeps it sets
    /// it again.
    pub fn set_bans(&self, bans: Vec<Ban>) {
        self.inner.exchange.set_bans(bans, self.inner.clock.now());
    }

    /// The bans that have not ended.
    pub fn bans(&self) -> Vec<Ban> {
        let now = self.inner.clock.now();
        self.inner.exchange.admission.bans.all(now)
    }

    /// Who is held off at the moment for failing to authenticate, or for connecting again and again
    /// ([`Limits::hold_off`]).
    pub fn held_off(&self) -> Vec<HeldOff> {
        let now = self.inner.clock.now();
        self.inner.exchange.admission.hold_offs.all(now)
    }

    /// Lets everybody in again who is held off and whom `target` names; a range of addresses names all
    /// within it. Says whether there was anybody.
    pub fn release(&self, target: &BanTarget) -> bool {
        let now = self.inner.clock.now();
        self.inner.exchange.admission.hold_offs.release(now, target)
    }

    /// How late the workers are, and whether new connections are refused for it.
    pub fn overload(&self) -> Overload {
        let tick = self.inner.clock.now().tick;
        self.inner.exchange.admission.delays.now(tick)
    }

    /// Whether anybody subscribed to what `topic` matches, for itself or in a shared subscription. Saves
    /// making a message that nobody would get.
    pub fn has_subscribers(&self, topic: &str) -> bool {
        self.inner.exchange.subscriptions().has_for(topic)
    }

    /// Publishes on behalf of the program itself: to all subscribers, past access checks and tap, and
    /// into the retained messages if RETAIN is set; those below `$SYS/` stay in memory and end with this
    /// run. Packet id and topic alias are ignored. Returns the number of receivers; QoS 0 may still be
    /// dropped at a full queue. Nobody gets what is to be retained and cannot be: there is no room
    /// (`publish.not_retained` in the log), or [`Limits::retain`] rules it out.
    pub fn publish(&self, message: &Publish) -> usize {
        self.inner
            .exchange
            .publish_own(message, self.inner.clock.now())
            .map_or(0, |published| published.receivers)
    }

    /// Stops in order: no new connections; nothing more is read; each connection gets the PUBACKs
    /// it is owed as they become due, then DISCONNECT 0x8B (MQTT 5), and is closed. What is not
    /// done by then is cut after `deadline`. Returns when all threads have ended, at the latest
    /// [`Limits::close_timeout`] and a moment after `deadline`.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        tracing::info!(
            event = "broker.stopping",
            deadline_ms = deadline.as_millis() as u64
        );
        self.inner.accepting.cancel();
        self.inner.exchange.post_to_all(|| Mail::Drain);
        let mut stopped = self.inner.stopped.clone();
        // Nothing is ever sent: an answer, which is an error, means that all senders are gone.
        let drained = tokio::time::timeout(deadline, stopped.changed()).await;
        let report = match drained {
            Ok(_) => ShutdownReport {
                outcome: ShutdownOutcome::Drained,
                cut: 0,
            },
            Err(_) => {
                let cut = self.inner.exchange.connections() as u64;
                self.inner.exchange.post_to_all(|| Mail::Stop);
                let _ = stopped.changed().await;
                ShutdownReport {
                    // What is left otherwise is clients that were told and have not hung up.
                    outcome: match cut {
                        0 => ShutdownOutcome::Drained,
                        _ => ShutdownOutcome::DeadlinePassed,
                    },
                    cut,
                }
            }
        };
        let threads = std::mem::take(&mut *self.inner.threads());
        for thread in threads {
            // Past its last statement, so this does not block; a panic was reported by the hook.
            let _ = thread.join();
        }
        if let Some(journal) = &self.inner.journal
            && let Err(error) = journal.close()
        {
            tracing::error!(event = "store.close_failed", %error);
        }
        tracing::info!(event = "broker.stopped", cut = report.cut);
        report
    }
}

impl fmt::Debug for BrokerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerHandle")
            .field("listeners", &self.inner.bound)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// The bounds of a listener that may have HTTP connections.
    pub(super) fn entrance(&self, listener: &str) -> Option<Arc<Entrance>> {
        let mut entrances = self.entrances.iter();
        let found = entrances.find(|(name, _)| **name == *listener);
        found.map(|(_, entrance)| Arc::clone(entrance))
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.accepting.cancel();
        self.exchange.post_to_all(|| Mail::Stop);
    }
}
