//! Load: many connections that publish as fast as they may, or only stay, at little cost of their
//! own.
//!
//! The point is to measure the server, so the generator keeps out of its way: two threads with a
//! runtime each and no work shared between them, one task per connection, one write per batch of
//! messages. A message is a copy of one encoded template with packet identifier and a counter
//! patched in; acknowledgements are read from their bytes without building packets.
//!
//! ```text
//! connect all (so many at once) ─► wait for each other ─► publish until time or count is over
//!     ─► wait for acknowledgements ─► DISCONNECT ─► report
//! ```
//!
//! At most `window` messages of a connection are in flight, and acknowledgements are smaller than
//! messages, so a connection may write a batch whole before it reads: the server's send buffer
//! always holds the answers.

mod connection;
pub mod connects;
pub mod sessions;
mod template;

use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mqtt::Version;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::LocalSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{
    Address, AddressError, ClientError, ClientOptions, Delivery, QuicSocket, Scheme, Server,
    Transport,
};
use crate::credentials::{Credentials, CredentialsError, anonymous_client_config};
use crate::histogram::Histogram;
use crate::open_files::{OpenFilesError, allow_open_files};
use crate::private_ca;

use connection::{Outcome, Share};
pub use template::MOST_PAYLOAD;

/// Who connects.
#[derive(Debug, Clone)]
pub enum Identities {
    /// Without proof and encryption; client id and vehicle id are `{prefix}-00001` and so on. For
    /// loopback listeners with `anonymous = "allow-all"`.
    Anonymous {
        /// How many.
        count: usize,
        /// What their names begin with.
        prefix: String,
    },
    /// Without proof but encrypted: they check the server, which asks them for no certificate.
    Trusting {
        /// How many.
        count: usize,
        /// What their names begin with.
        prefix: String,
        /// The CA of the server, PEM.
        ca_pem: String,
    },
    /// With a certificate, each as its device.
    Provisioned(Vec<Credentials>),
}

impl Identities {
    /// `count` vehicles with the credentials that are kept in `dir`.
    ///
    /// # Errors
    /// [`CredentialsError`]; [`CredentialsError::Missing`] if one has none.
    pub fn kept(dir: &Path, prefix: &str, count: usize) -> Result<Self, CredentialsError> {
        let vehicles = (0..count).map(|index| Self::anonymous_id(prefix, index));
        Ok(Self::Provisioned(private_ca::kept_vehicles(dir, vehicles)?))
    }

    /// `count` clients without certificates that trust the CA that is kept in `dir`.
    ///
    /// # Errors
    /// [`CredentialsError::Io`].
    pub fn trusting_kept(dir: &Path, prefix: &str, count: usize) -> Result<Self, CredentialsError> {
        Ok(Self::Trusting {
            count,
            prefix: prefix.to_owned(),
            ca_pem: private_ca::kept_pem(dir)?,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Anonymous { count, .. } | Self::Trusting { count, .. } => *count,
            Self::Provisioned(credentials) => credentials.len(),
        }
    }

    /// Client id and vehicle of number `index` from 0.
    fn names(&self, index: usize) -> (String, String) {
        match self {
            Self::Anonymous { prefix, .. } | Self::Trusting { prefix, .. } => {
                let id = Self::anonymous_id(prefix, index);
                (id.clone(), id)
            }
            Self::Provisioned(credentials) => {
                let device = &credentials[index];
                (device.device_id.clone(), device.vehicle_id.clone())
            }
        }
    }

    /// The id of the vehicle with this number from 0, of those without credentials.
    pub fn anonymous_id(prefix: &str, index: usize) -> String {
        format!("{prefix}-{:05}", index + 1)
    }
}

/// What connections do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Publish.
    Publish {
        /// QoS 0, 1 or 2.
        delivery: Delivery,
        /// Bytes per payload.
        payload: usize,
        /// Messages in flight per connection, for QoS 0 messages per write.
        window: u16,
        /// Messages per second of all connections together; as fast as possible without.
        rate: Option<f64>,
        /// Messages per topic; until the time is over without.
        count: Option<u64>,
        /// Where to.
        topics: Topics,
    },
    /// Stay connected.
    Idle {
        /// Whether each also subscribes to its commands, as a vehicle does.
        subscribed: Subscribed,
    },
}

/// What publishing connections publish to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topics {
    /// Each to its own vehicle's, `dt/load/bench/{vehicle}/x`.
    Own,
    /// To those of numbered sessions ([`sessions`]); each session has one publisher.
    Sessions {
        /// How many sessions there are; not fewer than connections.
        count: usize,
    },
}

/// Whether an idle connection has a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    /// None.
    No,
    /// One, to `dt/load/bench/{vehicle}/command`.
    Yes,
}

/// How much load, and where.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to.
    pub server: Server,
    /// Over what.
    pub scheme: Scheme,
    /// Path of WebSockets; `/mqtt` without.
    pub path: Option<Arc<str>>,
    /// Who.
    pub identities: Identities,
    /// Which MQTT.
    pub version: Version,
    /// What they do.
    pub work: Work,
    /// How long they do it.
    pub duration: Duration,
    /// For acknowledgements after that.
    pub drain: Duration,
    /// Connections being made at the same time.
    pub connects_at_once: usize,
    /// Threads; two leave a machine of many cores to the server.
    pub threads: usize,
    /// Keep-alive of idle connections; publishing ones send none.
    pub keep_alive: Duration,
}

impl LoadOptions {
    /// 200-byte messages at QoS 1, 16 in flight per connection, as fast as possible for 10 s; over TCP
    /// or TLS, as the identities need.
    pub fn new(server: Server, identities: Identities) -> Self {
        Self {
            server,
            scheme: match identities {
                Identities::Anonymous { .. } => Scheme::Mqtt,
                Identities::Trusting { .. } | Identities::Provisioned(_) => Scheme::Mqtts,
            },
            path: None,
            identities,
            version: Version::V5,
            work: Work::Publish {
                delivery: Delivery::AtLeastOnce,
                payload: 200,
                window: 16,
                rate: None,
                count: None,
                topics: Topics::Own,
            },
            duration: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            connects_at_once: 64,
            threads: 2,
            keep_alive: Duration::from_secs(60),
        }
    }
}

/// Why load cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An option makes no sense.
    #[error("{problem}")]
    Options {
        /// What is wrong and what to do.
        problem: String,
    },
    /// Too few open files allowed.
    #[error(transparent)]
    OpenFiles(#[from] OpenFilesError),
    /// Credentials that cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// An address that cannot be used like this.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A message that cannot be said.
    #[error("cannot encode the message")]
    Encode(#[from] mqtt::EncodeError),
    /// No thread or runtime.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// Nobody could connect.
    #[error("not one of {count} connections was made")]
    Nobody {
        /// How many were tried.
        count: usize,
        /// Why the first failed.
        source: ClientError,
    },
}

/// What happens so far; read at any time.
#[derive(Debug, Default)]
pub struct LoadLive {
    connected: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
}

impl LoadLive {
    /// Connections accepted and not yet ended.
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Messages written.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Messages acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Connections the server accepted.
    pub connections: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Connections that broke before they were done.
    pub broken: u64,
    /// From the first connection's start to the last one's CONNACK.
    pub connecting: Duration,
    /// How long a connection took, TCP to CONNACK.
    pub connect_latency: Histogram,
    /// Messages written.
    pub sent: u64,
    /// Messages acknowledged; for QoS 0 those that the server read, shown by a PINGRESP after the
    /// last.
    pub acknowledged: u64,
    /// Messages the server refused.
    pub refused: u64,
    /// From the first message to the last acknowledgement.
    pub elapsed: Duration,
    /// From a message to its acknowledgement (QoS 2: to PUBCOMP). With a rate, from the moment it was due: a
    /// server that stalls has all waiting messages to answer for.
    pub latency: Histogram,
    /// Why connections failed or broke, the first few.
    pub troubles: Vec<String>,
}

/// Troubles kept in words.
const TROUBLES_KEPT: usize = 5;

impl LoadReport {
    /// Messages sent that were neither acknowledged nor refused.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged + self.refused)
    }

    /// Acknowledged messages per second.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.acknowledged as f64 / seconds
        } else {
            0.0
        }
    }

    fn merge(&mut self, other: Self) {
        self.connections += other.connections;
        self.failed += other.failed;
        self.broken += other.broken;
        self.connecting = self.connecting.max(other.connecting);
        self.connect_latency.merge(&other.connect_latency);
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.merge(&other.latency);
        self.troubles.extend(other.troubles);
        self.troubles.truncate(TROUBLES_KEPT);
    }

    fn trouble(&mut self, trouble: String) {
        if self.troubles.len() < TROUBLES_KEPT && !self.troubles.contains(&trouble) {
            self.troubles.push(trouble);
        }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = self.connections as f64 / self.connecting.as_secs_f64().max(1e-9);
        writeln!(
            f,
            "connections   {} made in {:.2} s ({per_second:.0}/s), {} failed, {} broken",
            self.connections,
            self.connecting.as_secs_f64(),
            self.failed,
            self.broken,
        )?;
        writeln!(f, "connect time  {}", Quantiles(&self.connect_latency))?;
        if self.sent > 0 {
            writeln!(
                f,
                "messages      {} sent, {} acknowledged, {} refused, {} lost",
                self.sent,
                self.acknowledged,
                self.refused,
                self.lost(),
            )?;
            let (rate, seconds) = (self.rate(), self.elapsed.as_secs_f64());
            writeln!(
                f,
                "rate          {rate:.0} acknowledged/s over {seconds:.2} s"
            )?;
        }
        if self.latency.count() > 0 {
            writeln!(f, "latency       {}", Quantiles(&self.latency))?;
        }
        for trouble in &self.troubles {
            writeln!(f, "trouble       {trouble}")?;
        }
        Ok(())
    }
}

struct Quantiles<'a>(&'a Histogram);

impl fmt::Display for Quantiles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
            let ms = self.0.quantile(share).as_secs_f64() * 1e3;
            write!(f, "{name} {ms:.2} ms  ")?;
        }
        write!(f, "max {:.2} ms", self.0.longest().as_secs_f64() * 1e3)
    }
}

/// Makes load and returns when it is over, or `stop` was cancelled and the connections were closed.
/// Blocks: call it outside of an async runtime.
///
/// # Errors
/// [`LoadError`]; connections that fail while others do not are in the report.
pub fn run(
    options: &LoadOptions,
    live: &Arc<LoadLive>,
    stop: &CancellationToken,
) -> Result<LoadReport, LoadError> {
    check(options)?;
    allow_open_files(options.identities.count())?;
    let count = options.identities.count();
    let threads = options.threads.clamp(1, count);
    let clients = clients(options, threads)?;
    // Everybody on every thread, connected or not, before the first message.
    let together = Arc::new(Barrier::new(count));
    let mut shares: Vec<Vec<(usize, ClientOptions, String)>> = vec![Vec::new(); threads];
    for (index, (client, vehicle)) in clients.into_iter().enumerate() {
        shares[index % threads].push((index, client, vehicle));
    }
    let begin = Instant::now();
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| {
                let (together, live) = (Arc::clone(&together), Arc::clone(live));
                let worker = Worker {
                    options,
                    together,
                    live,
                    stop: stop.clone(),
                    begin,
                };
                std::thread::Builder::new()
                    .name("load".into())
                    .spawn_scoped(scope, move || worker.run(share))
                    .map_err(LoadError::Thread)
            })
            .collect::<Result<_, _>>()?;
        workers
            .into_iter()
            .map(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Result<Vec<_>, LoadError>>()
    })?;
    let mut report = LoadReport::default();
    let mut first_failure = None;
    for (part, failure) in results {
        report.merge(part);
        first_failure = first_failure.or(failure);
    }
    match first_failure {
        Some(source) if report.connections == 0 => Err(LoadError::Nobody { count, source }),
        _ => Ok(report),
    }
}

fn check(options: &LoadOptions) -> Result<(), LoadError> {
    let problem = |problem: &str| {
        Err(LoadError::Options {
            problem: problem.to_owned(),
        })
    };
    if options.identities.count() == 0 {
        return problem("0 connections make no load; ask for at least 1");
    }
    if options.connects_at_once == 0 {
        return problem("with 0 connections at once nobody ever connects");
    }
    if let Work::Publish {
        payload,
        window,
        rate,
        topics,
        ..
    } = options.work
    {
        if payload > MOST_PAYLOAD {
            return Err(LoadError::Options {
                problem: format!("{payload} bytes are more than the {MOST_PAYLOAD} of a payload"),
            });
        }
        if window == 0 {
            return problem("a window of 0 sends nothing; use at least 1");
        }
        if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return problem("the rate must be above 0; leave it out for as fast as possible");
        }
        if let Topics::Sessions { count } = topics {
            let connections = options.identities.count();
            if !(connections..=sessions::MOST).contains(&count) {
                return Err(LoadError::Options {
                    problem: format!(
                        "{connections} connections can fill {connections} to {} sessions, not {count}",
                        sessions::MOST
                    ),
                });
            }
        }
    }
    Ok(())
}

/// Whether a client that connects again may shorten the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    /// Every handshake is a full one.
    No,
    /// With the ticket of the last one.
    Yes,
}

/// Connections over one UDP socket of the generator: few enough for its buffers to hold their bursts.
const PER_SOCKET: usize = 512;

/// How each identity connects, with its vehicle.
fn clients(
    options: &LoadOptions,
    threads: usize,
) -> Result<Vec<(ClientOptions, String)>, LoadError> {
    let address = Address {
        scheme: options.scheme,
        server: options.server.clone(),
        path: options.path.clone(),
    };
    let transports = transports(&address, &options.identities, Resumption::No, threads)?;
    let names = (0..options.identities.count()).map(|index| options.identities.names(index));
    Ok(names
        .zip(transports)
        .map(|((client_id, vehicle), transport)| {
            let client = ClientOptions {
                version: options.version,
                keep_alive: match options.work {
                    Work::Publish { .. } => Duration::ZERO,
                    Work::Idle { .. } => options.keep_alive,
                },
                connect_timeout: Duration::from_secs(60),
                ..ClientOptions::new(options.server.clone(), transport, client_id)
            };
            (client, vehicle)
        })
        .collect())
}

/// How each identity gets there, if number `i` is driven by thread `i % threads`.
fn transports(
    address: &Address,
    identities: &Identities,
    resumption: Resumption,
    threads: usize,
) -> Result<Vec<Transport>, LoadError> {
    let all = match identities {
        Identities::Anonymous { count, .. } => vec![address.transport(None)?; *count],
        Identities::Trusting { count, ca_pem, .. } => {
            let tls = anonymous_client_config(ca_pem)?;
            match resumption {
                Resumption::No => vec![address.transport(Some(tls))?; *count],
                // Tickets are not shared between cars.
                Resumption::Yes => (0..*count)
                    .map(|_| {
                        let mut own = (*tls).clone();
                        own.resumption = rustls::client::Resumption::in_memory_sessions(4);
                        address.transport(Some(Arc::new(own)))
                    })
                    .collect::<Result<_, _>>()?,
            }
        }
        Identities::Provisioned(credentials) => credentials
            .iter()
            .map(|credentials| {
                let tls = match resumption {
                    Resumption::No => credentials.client_config()?,
                    Resumption::Yes => credentials.resuming_client_config()?,
                };
                Ok::<_, LoadError>(address.transport(Some(tls))?)
            })
            .collect::<Result<_, _>>()?,
    };
    // A socket belongs to one runtime, and so to one thread.
    let mut sockets = vec![QuicSocket::default(); threads];
    let shared = all.into_iter().enumerate().map(|(index, transport)| {
        let Transport::Quic(quic) = transport else {
            return transport;
        };
        let socket = &mut sockets[index % threads];
        if (index / threads).is_multiple_of(PER_SOCKET) {
            *socket = QuicSocket::default();
        }
        Transport::Quic(quic.over(socket.clone()))
    });
    Ok(shared.collect())
}

/// One thread of the generator.
struct Worker<'a> {
    options: &'a LoadOptions,
    together: Arc<Barrier>,
    live: Arc<LoadLive>,
    stop: CancellationToken,
    begin: Instant,
}

impl Worker<'_> {
    fn run(
        self,
        clients: Vec<(usize, ClientOptions, String)>,
    ) -> Result<(LoadReport, Option<ClientError>), LoadError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LoadError::Thread)?;
        let at_once = (self.options.connects_at_once / self.options.threads.max(1)).max(1);
        let share = Rc::new(Share {
            work: self.options.work,
            duration: self.options.duration,
            drain: self.options.drain,
            connections: self.options.identities.count(),
            together: self.together,
            slots: Semaphore::new(at_once),
            live: self.live,
            stop: self.stop,
            begin: self.begin,
            latency: Default::default(),
        });
        LocalSet::new().block_on(&runtime, async {
            let mut report = LoadReport::default();
            let mut first_failure = None;
            let mut tasks = tokio::task::JoinSet::new();
            for (index, client, vehicle) in clients {
                let share = Rc::clone(&share);
                tasks.spawn_local(async move { share.serve(index, client, &vehicle).await });
            }
            while let Some(joined) = tasks.join_next().await {
                match joined {
                    Ok(outcome) => absorb(&mut report, &mut first_failure, outcome?),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
            report.latency = share.latency.take();
            Ok((report, first_failure))
        })
    }
}

fn absorb(report: &mut LoadReport, first_failure: &mut Option<ClientError>, outcome: Outcome) {
    match outcome {
        Outcome::NotConnected(error) => {
            report.failed += 1;
            report.trouble(in_words(&error));
            first_failure.get_or_insert(error);
        }
        Outcome::Done(done) => {
            report.connections += 1;
            report.connecting = report.connecting.max(done.connected_after);
            report.connect_latency.add(done.connecting);
            report.sent += done.sent;
            report.acknowledged += done.acknowledged;
            report.refused += done.refused;
            report.elapsed = report.elapsed.max(done.working);
            if let Some(error) = done.broken {
                report.broken += 1;
                report.trouble(in_words(&error));
            }
        }
    }
}

/// An error with its causes.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
