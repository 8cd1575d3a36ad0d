//! Sessions by the hundred thousand: leaves them behind, and fetches what waited in them.
//!
//! ```text
//! leave ──► sessions without clients      load::run with Topics::Sessions ──► messages wait
//!                                                                              │
//! fetch ◄── every message of every session, counted, in order, once? ◄─────────┘
//! ```
//! A `fetch` that runs while messages are published is a set of clients that are online. Payloads
//! begin with a counter per session, so that what is missing, twice or out of order is seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use mqtt::{
    Disconnect, Packet, PacketId, PubAck, PubComp, PubRec, Publish, QoS, ReasonCode, Subscribe,
    SubscribeProperties, Subscription, TopicFilter, Version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, timeout};

use super::template::{DIGITS, session_topic};
use super::{LoadError, TROUBLES_KEPT, in_words};
use crate::client::connection::{Accepted, handshake};
use crate::client::{ClientError, ClientOptions, Delivery, Server, SessionStart, Transport};
use crate::open_files::allow_open_files;

/// Most sessions: their number has seven digits.
pub const MOST: usize = 10_000_000;

/// Bytes read at once.
const READ_ROOM: usize = 4 * 1024;

/// Which sessions, and how to get at them. Over TCP without proof, for loopback listeners.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// Where.
    pub server: Server,
    /// How many, numbered from 0.
    pub count: usize,
    /// Quality of their subscription.
    pub delivery: Delivery,
    /// How long the server keeps them, seconds.
    pub expiry: u32,
    /// Connected at the same time.
    pub at_once: usize,
    /// Threads.
    pub threads: usize,
}

/// What came of leaving or fetching.
#[derive(Debug, Clone, Default)]
pub struct SessionReport {
    /// Sessions that did what they should.
    pub sessions: u64,
    /// Of these, how many the server knew before.
    pub known: u64,
    /// Messages received, repetitions too.
    pub received: u64,
    /// Different messages.
    pub distinct: u64,
    /// First receptions of a message after a later one of the same session.
    pub disordered: u64,
    /// From the first connection to the last message, or the last session left.
    pub elapsed: Duration,
    /// What went wrong, the first few.
    pub troubles: Vec<String>,
}

impl SessionReport {
    /// Messages that came a second time.
    pub fn repeated(&self) -> u64 {
        self.received - self.distinct
    }

    fn add(&mut self, visit: Result<Visit, ClientError>) {
        match visit {
            Ok(visit) => {
                self.sessions += 1;
                self.known += u64::from(visit.known);
                self.received += visit.received;
                self.distinct += visit.distinct;
                self.disordered += visit.disordered;
                self.elapsed = self.elapsed.max(visit.last);
            }
            Err(error) => {
                let trouble = in_words(&error);
                if self.troubles.len() < TROUBLES_KEPT && !self.troubles.contains(&trouble) {
                    self.troubles.push(trouble);
                }
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.known += other.known;
        self.received += other.received;
        self.distinct += other.distinct;
        self.disordered += other.disordered;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.troubles.extend(other.troubles);
        self.troubles.truncate(TROUBLES_KEPT);
    }
}

/// Makes the sessions, each with one subscription, and leaves them behind. Blocks: call it outside
/// of an async runtime.
///
/// # Errors
/// [`LoadError`]; sessions that fail while others do not are in the report.
pub fn leave(sessions: &Sessions) -> Result<SessionReport, LoadError> {
    each(sessions, Errand::Leave, Arc::new(|_| {}))
}

/// Visits the sessions and takes the `each_has` messages that should wait in every one of them, or come
/// while it is there; leaves a session that was silent for `patience`. One that the server does not
/// know is begun. `told` hears how many sessions
/// have been visited, with each. Blocks, as [`leave`].
///
/// # Errors
/// As [`leave`].
pub fn fetch(
    sessions: &Sessions,
    each_has: u64,
    patience: Duration,
    told: impl Fn(u64) + Send + Sync + 'static,
) -> Result<SessionReport, LoadError> {
    let errand = Errand::Fetch {
        expected: each_has,
        patience,
    };
    each(sessions, errand, Arc::new(told))
}

/// How many sessions have been connected.
struct Connected {
    count: AtomicU64,
    told: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Connected {
    fn one_more(&self) {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        (self.told)(before + 1);
    }
}

#[derive(Clone, Copy)]
enum Errand {
    Leave,
    Fetch { expected: u64, patience: Duration },
}

/// What one session saw.
struct Visit {
    known: bool,
    received: u64,
    distinct: u64,
    disordered: u64,
    /// Since the very beginning.
    last: Duration,
}

fn each(
    sessions: &Sessions,
    errand: Errand,
    told: Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<SessionReport, LoadError> {
    if sessions.count == 0 || sessions.count > MOST || sessions.at_once == 0 {
        return Err(LoadError::Options {
            problem: format!(
                "{} sessions, {} at once: ask for 1 to {MOST}, and at least one at once",
                sessions.count, sessions.at_once
            ),
        });
    }
    let threads = sessions.threads.clamp(1, sessions.count);
    allow_open_files(sessions.at_once.min(sessions.count))?;
    let begin = Instant::now();
    let connected = Arc::new(Connected {
        count: AtomicU64::new(0),
        told,
    });
    let parts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let connected = Arc::clone(&connected);
                std::thread::Builder::new()
                    .name("sessions".into())
                    .spawn_scoped(scope, move || {
                        share(sessions, errand, thread, threads, begin, &connected)
                    })
                    .map_err(LoadError::Thread)
            })
            .collect::<Result<_, _>>()?;
        workers
            .into_iter()
            .map(|worker| match worker.join() {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Result<Vec<_>, LoadError>>()
    })?;
    let mut report = SessionReport::default();
    for part in parts {
        report.merge(part);
    }
    Ok(report)
}

/// The sessions of one thread.
fn share(
    sessions: &Sessions,
    errand: Errand,
    thread: usize,
    threads: usize,
    begin: Instant,
    connected: &Arc<Connected>,
) -> Result<SessionReport, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LoadError::Thread)?;
    let slots = Arc::new(Semaphore::new(sessions.at_once.div_ceil(threads)));
    LocalSet::new().block_on(&runtime, async {
        let mut report = SessionReport::default();
        let mut visits = JoinSet::new();
        for number in (thread..sessions.count).step_by(threads) {
            // Never closed, so a slot always comes.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            while let Some(visit) = visits.try_join_next() {
                report.add(joined(visit));
            }
            let (sessions, connected) = (sessions.clone(), Arc::clone(connected));
            visits.spawn_local(async move {
                let _slot = slot;
                visit(&sessions, number, errand, begin, &connected).await
            });
        }
        while let Some(visit) = visits.join_next().await {
            report.add(joined(visit));
        }
        Ok(report)
    })
}

fn joined<T>(visit: Result<T, tokio::task::JoinError>) -> T {
    match visit {
        Ok(visit) => visit,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn visit(
    sessions: &Sessions,
    number: usize,
    errand: Errand,
    begin: Instant,
    connected: &Connected,
) -> Result<Visit, ClientError> {
    let options = ClientOptions {
        session: SessionStart::Resume {
            expiry: sessions.expiry,
        },
        keep_alive: Duration::ZERO,
        connect_timeout: Duration::from_secs(60),
        ..ClientOptions::new(
            sessions.server.clone(),
            Transport::Tcp,
            format!("session-{number:07}"),
        )
    };
    let limit = options.connect_timeout;
    let accepted = match timeout(limit, Box::pin(handshake(&options))).await {
        Ok(accepted) => accepted?,
        Err(_) => {
            return Err(ClientError::TimedOut {
                what: "connection",
                after: limit,
            });
        }
    };
    let mut guest = Guest {
        known: accepted.hello.session_present,
        accepted,
        out: BytesMut::new(),
    };
    match errand {
        Errand::Leave => {
            guest.subscribe(number, sessions.delivery).await?;
            guest.goodbye().await?;
            connected.one_more();
            Ok(Visit {
                known: guest.known,
                received: 0,
                distinct: 0,
                disordered: 0,
                last: begin.elapsed(),
            })
        }
        Errand::Fetch { expected, patience } => {
            let mut seen = Seen::new(expected);
            if !guest.known {
                guest.ask(number, sessions.delivery).await?;
                // What was retained, or is published already, may come before the answer.
                loop {
                    match guest.next().await? {
                        Packet::SubAck(_) => break,
                        packet => guest.take(packet, &mut seen, begin)?,
                    }
                }
                guest.flush().await?;
            }
            connected.one_more();
            while !seen.is_whole() {
                let Ok(packet) = timeout(patience, guest.next()).await else {
                    break; // silent: what is missing is missing
                };
                guest.take(packet?, &mut seen, begin)?;
                if guest.accepted.inbox.is_empty() || guest.out.len() > READ_ROOM {
                    guest.flush().await?;
                }
            }
            guest.flush().await?;
            guest.goodbye().await?;
            Ok(Visit {
                known: guest.known,
                received: seen.received,
                distinct: seen.distinct,
                disordered: seen.disordered,
                last: seen.last,
            })
        }
    }
}

/// What came in a session.
struct Seen {
    /// By counter.
    numbers: Vec<bool>,
    /// Messages of QoS 2 that are not released.
    unreleased: usize,
    highest: Option<u64>,
    received: u64,
    distinct: u64,
    disordered: u64,
    last: Duration,
}

impl Seen {
    fn new(expected: u64) -> Self {
        Self {
            numbers: vec![false; usize::try_from(expected).unwrap_or(usize::MAX)],
            unreleased: 0,
            highest: None,
            received: 0,
            distinct: 0,
            disordered: 0,
            last: Duration::ZERO,
        }
    }

    fn is_whole(&self) -> bool {
        self.distinct == self.numbers.len() as u64 && self.unreleased == 0
    }

    fn add(&mut self, publish: &Publish, at: Duration) -> Result<(), ClientError> {
        let text = publish.payload.get(..DIGITS);
        let number = text
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let slot = number.and_then(|number| {
            let index = usize::try_from(number).ok()?;
            self.numbers.get_mut(index)
        });
        let (Some(number), Some(slot)) = (number, slot) else {
            return Err(ClientError::Unexpected {
                what: format!("a message nobody sent, on {}", &*publish.topic),
            });
        };
        self.received += 1;
        self.last = at;
        if !std::mem::replace(slot, true) {
            self.distinct += 1;
            self.disordered += u64::from(self.highest.is_some_and(|highest| number < highest));
            self.highest = self.highest.max(Some(number));
        }
        Ok(())
    }
}

/// One connection of one session.
struct Guest {
    known: bool,
    accepted: Accepted,
    out: BytesMut,
}

impl Guest {
    fn say(&mut self, packet: Packet) -> Result<(), ClientError> {
        Ok(mqtt::encode(&packet, Version::V5, &mut self.out)?)
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        let written = self.accepted.wire.write_all(&self.out).await;
        self.out.clear();
        written.map_err(|source| ClientError::Broken { source })
    }

    /// The next packet. Cancel-safe: reads into the buffer or reads nothing.
    async fn next(&mut self) -> Result<Packet, ClientError> {
        loop {
            let Accepted {
                wire,
                decoder,
                inbox,
                ..
            } = &mut self.accepted;
            if let Some(packet) = decoder.decode(inbox)? {
                return Ok(packet);
            }
            inbox.reserve(READ_ROOM);
            match wire.read_buf(inbox).await {
                Ok(0) => {
                    return Err(ClientError::Broken {
                        source: std::io::ErrorKind::UnexpectedEof.into(),
                    });
                }
                Ok(_) => {}
                Err(source) => return Err(ClientError::Broken { source }),
            }
        }
    }

    /// Sends the SUBSCRIBE.
    async fn ask(&mut self, number: usize, delivery: Delivery) -> Result<(), ClientError> {
        let filter = session_topic(number);
        let parsed =
            TopicFilter::parse(&filter).map_err(|source| ClientError::Filter { filter, source })?;
        let subscribe = Subscribe {
            packet_id: PacketId::FIRST,
            subscriptions: vec![Subscription::new(parsed, delivery.into())],
            properties: SubscribeProperties::default(),
        };
        self.say(subscribe.into())?;
        self.flush().await
    }

    async fn subscribe(&mut self, number: usize, delivery: Delivery) -> Result<(), ClientError> {
        self.ask(number, delivery).await?;
        match self.next().await? {
            Packet::SubAck(answer) if answer.reasons.iter().all(|reason| !reason.is_error()) => {
                Ok(())
            }
            other => Err(ClientError::Unexpected {
                what: format!("{} for SUBSCRIBE", other.packet_type()),
            }),
        }
    }

    fn take(&mut self, packet: Packet, seen: &mut Seen, begin: Instant) -> Result<(), ClientError> {
        match packet {
            Packet::Publish(publish) => {
                seen.add(&publish, begin.elapsed())?;
                match (publish.qos, publish.packet_id) {
                    (QoS::AtLeastOnce, Some(id)) => self.say(PubAck::success(id).into()),
                    (QoS::ExactlyOnce, Some(id)) => {
                        seen.unreleased += 1;
                        self.say(PubRec::success(id).into())
                    }
                    _ => Ok(()),
                }
            }
            Packet::PubRel(release) => {
                // What an earlier visit left unreleased was not counted then either.
                seen.unreleased = seen.unreleased.saturating_sub(1);
                self.say(PubComp::success(release.packet_id).into())
            }
            Packet::Disconnect(disconnect) => Err(ClientError::Disconnected {
                reason: disconnect.reason,
                text: None,
            }),
            _ => Ok(()),
        }
    }

    /// Takes leave and waits until the server has closed: the port is free again, and what was
    /// acknowledged has been read.
    async fn goodbye(&mut self) -> Result<(), ClientError> {
        self.say(Disconnect::new(ReasonCode::NORMAL_DISCONNECTION).into())?;
        self.flush().await?;
        let closed = async { while self.next().await.is_ok() {} };
        // A server that keeps the connection open costs a port, nothing more.
        let _ = timeout(Duration::from_secs(5), closed).await;
        Ok(())
    }
}
