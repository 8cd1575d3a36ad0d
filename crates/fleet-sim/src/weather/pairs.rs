//! Pairs: well-behaved publishers and subscribers, and what they notice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mqtt::Version;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{
    Client, ClientCounters, ClientError, ClientEvent, ClientOptions, Delivery, Incoming, Outgoing,
    Reconnect, Server, Transport,
};
use crate::histogram::Histogram;

/// Bytes per message: a few signals.
const PAYLOAD: usize = 200;
/// Messages waiting in a publisher: more than a minute of them, so that a stall delays them and does
/// not stop the clock.
const QUEUE: usize = 2_000;
/// Troubles kept in words.
const TROUBLES_KEPT: usize = 3;

/// Pairs at work.
pub(super) struct Pairs {
    pairs: Vec<Pair>,
    stop: CancellationToken,
    phases: Arc<Phases>,
    troubles: Arc<Troubles>,
}

/// A publisher, a subscriber, and the tasks that drive them.
struct Pair {
    publisher: Arc<Client>,
    published: Arc<ClientCounters>,
    sending: JoinHandle<Sent>,
    receiving: JoinHandle<Received>,
    // Dropped with the pair: the connection lives as long as its handle.
    _subscriber: Client,
}

/// When phases began, microseconds since `origin`; `u64::MAX` is not yet.
struct Phases {
    origin: Instant,
    storm: AtomicU64,
    after: AtomicU64,
}

/// Connections that were lost, each pair counted once.
#[derive(Default)]
struct Troubles {
    pairs: Mutex<Vec<usize>>,
    words: Mutex<Vec<String>>,
}

/// What they noticed.
#[derive(Default)]
pub(super) struct Noticed {
    pub(super) latency: Phased,
    /// Of the generator itself: from when a message was due to when it was handed to the connection.
    pub(super) late: Phased,
    pub(super) sent: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
    pub(super) disconnected: u64,
    pub(super) troubles: Vec<String>,
}

/// A histogram for each phase.
#[derive(Default)]
pub(super) struct Phased {
    pub(super) quiet: Histogram,
    pub(super) during: Histogram,
    pub(super) after: Histogram,
}

impl Phased {
    /// That of the phase in which a message was due, microseconds.
    fn of(&mut self, due: u64, phases: &Phases) -> &mut Histogram {
        if due >= phases.after.load(Ordering::Relaxed) {
            &mut self.after
        } else if due >= phases.storm.load(Ordering::Relaxed) {
            &mut self.during
        } else {
            &mut self.quiet
        }
    }

    fn merge(&mut self, other: &Self) {
        self.quiet.merge(&other.quiet);
        self.during.merge(&other.during);
        self.after.merge(&other.after);
    }
}

/// What one subscriber got.
#[derive(Default)]
struct Received {
    distinct: u64,
    latency: Phased,
}

/// What one publisher sent.
#[derive(Default)]
struct Sent {
    count: u64,
    late: Phased,
}

impl Phases {
    fn now_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }
}

impl Troubles {
    fn lost(&self, pair: usize, error: &ClientError) {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let text = error.to_string();
        if words.len() < TROUBLES_KEPT && !words.contains(&text) {
            words.push(text);
        }
    }
}

impl Pairs {
    /// Connects all, and begins to send: `rate` messages per second and pair, the pairs taking turns.
    pub(super) async fn start(
        server: &Server,
        count: usize,
        rate: f64,
    ) -> Result<Self, ClientError> {
        let phases = Arc::new(Phases {
            origin: Instant::now(),
            storm: AtomicU64::new(u64::MAX),
            after: AtomicU64::new(u64::MAX),
        });
        let troubles = Arc::new(Troubles::default());
        let stop = CancellationToken::new();
        let interval = Duration::from_secs_f64(1.0 / rate);
        let mut ends = Vec::with_capacity(count);
        for number in 0..count {
            let connect = |role| connect(server, number, role, &troubles);
            let (subscriber, incoming) = connect("subscriber").await?;
            let topic = format!("weather/pair/{number}");
            let wanted = [(topic.as_str(), Delivery::AtLeastOnce)];
            let granted = subscriber.subscribe(&wanted).await?;
            if let Some(reason) = granted.into_iter().find(|reason| reason.is_error()) {
                return Err(ClientError::MessageRefused { reason });
            }
            let (publisher, _) = connect("publisher").await?;
            ends.push((publisher, subscriber, incoming, topic));
        }
        let begin = Instant::now();
        let pairs = ends
            .into_iter()
            .enumerate()
            .map(|(number, (publisher, subscriber, incoming, topic))| {
                let publisher = Arc::new(publisher);
                let turn = interval.mul_f64(number as f64 / count as f64);
                let sender = Sender {
                    publisher: Arc::clone(&publisher),
                    topic,
                    next: begin + turn,
                    interval,
                    phases: Arc::clone(&phases),
                    stop: stop.clone(),
                };
                Pair {
                    published: Arc::clone(publisher.counters()),
                    publisher,
                    sending: tokio::spawn(sender.run()),
                    receiving: tokio::spawn(receive(incoming, Arc::clone(&phases))),
                    _subscriber: subscriber,
                }
            })
            .collect();
        Ok(Self {
            pairs,
            stop,
            phases,
            troubles,
        })
    }

    pub(super) fn storm_begins(&self) {
        self.phases
            .storm
            .store(self.phases.now_us(), Ordering::Relaxed);
    }

    pub(super) fn storm_ends(&self) {
        self.phases
            .after
            .store(self.phases.now_us(), Ordering::Relaxed);
    }

    /// Stops sending, waits until all has arrived or `drain` is over, and takes stock.
    pub(super) async fn finish(self, drain: Duration) -> Noticed {
        self.stop.cancel();
        let mut noticed = Noticed::default();
        let mut counters = Vec::new();
        let mut receivers = Vec::new();
        for pair in self.pairs {
            let sent = joined(pair.sending.await);
            noticed.sent += sent.count;
            noticed.late.merge(&sent.late);
            counters.push(pair.published);
            receivers.push((pair.receiving, pair.publisher, pair._subscriber));
        }
        let deadline = Instant::now() + drain;
        // Acknowledged or refused is decided then; what is on its way to subscribers comes soon after.
        while counters.iter().any(|c| c.open() > 0) && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        sleep(Duration::from_secs(1)).await;
        noticed.refused = counters.iter().map(|c| c.refused()).sum();
        let mut arrived = 0;
        for (receiving, publisher, subscriber) in receivers {
            drop(publisher);
            drop(subscriber); // its receiver sees the end, and says what it got
            let received = joined(receiving.await);
            arrived += received.distinct;
            noticed.latency.merge(&received.latency);
        }
        noticed.lost = noticed.sent.saturating_sub(arrived + noticed.refused);
        let pairs = &self.troubles.pairs;
        noticed.disconnected = pairs.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let words = &self.troubles.words;
        noticed.troubles = words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        noticed
    }
}

async fn connect(
    server: &Server,
    number: usize,
    role: &str,
    troubles: &Arc<Troubles>,
) -> Result<(Client, Incoming), ClientError> {
    let troubles = Arc::clone(troubles);
    Client::connect(ClientOptions {
        version: Version::V5,
        queue: QUEUE,
        reconnect: Reconnect::Never,
        connect_timeout: Duration::from_secs(30),
        observer: Some(Arc::new(move |event| {
            if let ClientEvent::Lost(error) | ClientEvent::GaveUp(error) = event {
                troubles.lost(number, &error);
            }
        })),
        ..ClientOptions::new(
            server.clone(),
            Transport::Tcp,
            format!("weather-{number}-{role}"),
        )
    })
    .await
}

/// A publisher's rhythm.
struct Sender {
    publisher: Arc<Client>,
    topic: String,
    next: Instant,
    interval: Duration,
    phases: Arc<Phases>,
    stop: CancellationToken,
}

impl Sender {
    /// Sends until stopped, or the connection is lost.
    async fn run(mut self) -> Sent {
        let mut sent = Sent::default();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return sent, // cancel-safe: waiting changes nothing
                () = sleep_until(self.next) => {}          // cancel-safe: waiting changes nothing
            }
            let due = self.next.duration_since(self.phases.origin).as_micros() as u64;
            let late = self.phases.now_us().saturating_sub(due);
            sent.late.of(due, &self.phases).add_us(late);
            let mut payload = vec![0; PAYLOAD];
            payload[..8].copy_from_slice(&due.to_be_bytes());
            payload[8..16].copy_from_slice(&sent.count.to_be_bytes());
            let message = Outgoing {
                topic: self.topic.as_str().into(),
                payload: payload.into(),
                delivery: Delivery::AtLeastOnce,
                ..Outgoing::default()
            };
            if self.publisher.post(message).await.is_err() {
                return sent;
            }
            sent.count += 1;
            self.next += self.interval;
        }
    }
}

/// Takes messages until the client is gone.
async fn receive(mut incoming: Incoming, phases: Arc<Phases>) -> Received {
    let mut received = Received::default();
    let mut next = 0;
    while let Some(publish) = incoming.recv().await {
        let now = phases.now_us();
        let Some((due, number)) = read(&publish.payload) else {
            continue; // not ours
        };
        if number < next {
            continue; // again
        }
        next = number + 1;
        received.distinct += 1;
        let latency = received.latency.of(due, &phases);
        latency.add_us(now.saturating_sub(due));
    }
    received
}

fn read(payload: &[u8]) -> Option<(u64, u64)> {
    let due = payload.first_chunk::<8>()?;
    let number = payload.get(8..)?.first_chunk::<8>()?;
    Some((u64::from_be_bytes(*due), u64::from_be_bytes(*number)))
}

fn joined<T>(task: Result<T, tokio::task::JoinError>) -> T {
    match task {
        Ok(part) => part,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
