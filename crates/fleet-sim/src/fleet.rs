//! Fleet: many vehicles at once, each with its own certificate and connection.
//!
//! A vehicle is one client task (its connection) and, for synthetic drives, a place in one of a few
//! driver tasks that advance their vehicles in turn: thousands of timers would cost more than the
//! driving. Vehicles connect one after the other at a bounded rate, as cars do in the morning; the
//! whole fleet in one second would measure nothing but handshakes.
//!
//! A vehicle whose connection is down goes on driving; its messages wait in its client's queue
//! (four minutes' worth). What comes after that is lost, and counted as dropped.
//!
//! Stopping: trips are said to be interrupted, queues and acknowledgements are drained within a
//! deadline, every connection takes leave. What is then still open is reported per vehicle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ClientCounters, ClientError, ClientEvent, ClientOptions, Server};
use crate::credentials::{Credentials, CredentialsError};
use crate::message::Message;
use crate::open_files::{OpenFilesError, allow_open_files};
use crate::recording::{BadLines, Pace, Recording, RecordingError, ReplayOptions, Speed};
use crate::speaker::{self, Speaker};
use crate::synthetic::{City, Place, VirtualVehicle};

/// Driver tasks of a fleet.
const DRIVERS: usize = 4;

/// What the vehicles of a fleet send.
#[derive(Debug, Clone)]
pub enum Drive {
    /// Made-up drives in a real place.
    Synthetic {
        /// Where.
        place: Place,
        /// What everything follows from.
        seed: u64,
    },
    /// A recording, by every vehicle.
    Recorded(Recording),
}

/// How a fleet runs.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// MQTT over TLS.
    pub server: Server,
    /// One vehicle each.
    pub credentials: Vec<Credentials>,
    /// What they send.
    pub drive: Drive,
    /// Time between a vehicle's messages; for recordings, the time one message spans.
    pub interval: Duration,
    /// When to stop; without it at the end of the recording, or only when cancelled.
    pub duration: Option<Duration>,
    /// How fast time goes by.
    pub speed: Speed,
    /// New connections per second, at most.
    pub connects_per_second: u32,
    /// For acknowledgements that are still open at the end.
    pub drain: Duration,
}

impl FleetOptions {
    /// Synthetic drives around Stuttgart, a message per second, until cancelled.
    pub fn new(server: Server, credentials: Vec<Credentials>) -> Self {
        Self {
            server,
            credentials,
            drive: Drive::Synthetic {
                place: Place::STUTTGART,
                seed: 1,
            },
            interval: Duration::from_secs(1),
            duration: None,
            speed: Speed::REAL,
            connects_per_second: 100,
            drain: Duration::from_secs(20),
        }
    }
}

/// Why a fleet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The options contradict each other or make no sense.
    #[error("{problem}")]
    Options {
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// Too few open files allowed.
    #[error(transparent)]
    OpenFiles(#[from] OpenFilesError),
    /// A vehicle's credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The recording cannot be replayed.
    #[error(transparent)]
    Recording(#[from] RecordingError),
}

/// One vehicle while it runs.
#[derive(Debug)]
struct Running {
    counters: Arc<ClientCounters>,
    dropped: AtomicU64,
    trouble: Mutex<Option<Arc<ClientError>>>,
}

/// A running fleet, to be watched from outside.
#[derive(Debug)]
pub struct Live {
    run: String,
    vehicles: Vec<Running>,
}

/// The sums over a fleet at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Vehicles.
    pub vehicles: u64,
    /// Vehicles whose connection stands.
    pub connected: u64,
    /// Messages sent, each counted once.
    pub published: u64,
    /// Messages the server acknowledged.
    pub acknowledged: u64,
    /// Messages the server refused.
    pub refused: u64,
    /// Messages taken and neither acknowledged nor refused.
    pub open: u64,
    /// Messages lost because a vehicle's queue was full.
    pub dropped: u64,
    /// Messages sent again after a connection broke.
    pub resent: u64,
    /// Connections after the first of a vehicle.
    pub reconnects: u64,
    /// Connections that broke, were refused or not made.
    pub failures: u64,
}

impl Live {
    fn new(vehicles: usize) -> Self {
        let vehicle = || Running {
            counters: Arc::default(),
            dropped: AtomicU64::new(0),
            trouble: Mutex::new(None),
        };
        Self {
            run: speaker::run_name(),
            vehicles: (0..vehicles).map(|_| vehicle()).collect(),
        }
    }

    /// The name of this run; message ids are `{device}-{run}-{n}` with n from 0.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The sums now. Costs a few loads per vehicle.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for vehicle in &self.vehicles {
            let counters = &vehicle.counters;
            totals.vehicles += 1;
            totals.connected += u64::from(counters.is_connected());
            totals.acknowledged += counters.acknowledged();
            totals.refused += counters.refused();
            totals.published += counters.published();
            totals.open += counters.open();
            totals.dropped += vehicle.dropped.load(Ordering::Relaxed);
            totals.resent += counters.resent();
            totals.reconnects += counters.connects().saturating_sub(1);
            totals.failures += counters.failures();
        }
        totals
    }

    /// The latest trouble of any vehicle that is not connected, in words; for a status line.
    pub fn trouble(&self) -> Option<Arc<ClientError>> {
        self.vehicles
            .iter()
            .filter(|vehicle| !vehicle.counters.is_connected())
            .find_map(|vehicle| lock(&vehicle.trouble).clone())
    }
}

/// What became of one vehicle.
#[derive(Debug, Clone)]
pub struct VehicleReport {
    /// The vehicle.
    pub vehicle: String,
    /// Its device.
    pub device: String,
    /// Messages sent, each counted once.
    pub published: u64,
    /// Messages the server acknowledged.
    pub acknowledged: u64,
    /// Messages the server refused.
    pub refused: u64,
    /// Messages that nobody acknowledged in time.
    pub open: u64,
    /// Messages lost because the queue was full.
    pub dropped: u64,
    /// Messages sent again after the connection broke.
    pub resent: u64,
    /// Connections the server accepted.
    pub connects: u64,
    /// What went wrong last, if anything.
    pub trouble: Option<Arc<ClientError>>,
}

/// What became of a fleet.
#[derive(Debug, Clone)]
pub struct FleetReport {
    /// The name of the run; see [`Live::run`].
    pub run: String,
    /// Vehicle by vehicle, in the order of their credentials.
    pub vehicles: Vec<VehicleReport>,
    /// The sums.
    pub totals: Totals,
    /// From the first connection to the last goodbye.
    pub elapsed: Duration,
    /// Lines of the recording that were passed over.
    pub bad_lines: BadLines,
}

/// A fleet that is ready to drive.
pub struct Fleet {
    options: FleetOptions,
    clients: Vec<ClientOptions>,
    live: Arc<Live>,
}

impl Fleet {
    /// Checks everything that can be checked before the first connection.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn new(options: FleetOptions) -> Result<Self, FleetError> {
        let problem = |problem| Err(FleetError::Options { problem });
        if options.credentials.is_empty() {
            return problem("there are no vehicles; ask for at least 1");
        }
        if options.interval < Duration::from_millis(10) {
            return problem("the interval between messages is below 10 ms; choose a longer one");
        }
        if options.connects_per_second == 0 {
            return problem("with 0 connections per second nobody ever connects");
        }
        if let Drive::Synthetic { .. } = options.drive {
            match options.speed {
                Speed::Max => {
                    return problem(
                        "synthetic drives have no end, so they cannot go at `max`; choose a speed such as 10",
                    );
                }
                Speed::Times(times) if times > 1.0 && options.duration.is_none() => {
                    return problem(
                        "synthetic drives faster than time begin in the past and end now, which needs a duration",
                    );
                }
                Speed::Times(_) => {}
            }
        }
        allow_open_files(options.credentials.len())?;
        let live = Arc::new(Live::new(options.credentials.len()));
        let mut clients = Vec::with_capacity(options.credentials.len());
        for (index, credentials) in options.credentials.iter().enumerate() {
            let mut client = speaker::options(&options.server, credentials)?;
            client.counters = Arc::clone(&live.vehicles[index].counters);
            let (watched, device) = (Arc::clone(&live), credentials.device_id.clone());
            client.observer = Some(Arc::new(move |event| match event {
                ClientEvent::Connected => tracing::debug!(device, "connected"),
                ClientEvent::Lost(error) => {
                    tracing::debug!(device, %error, "connection lost, trying again");
                    *lock(&watched.vehicles[index].trouble) = Some(error);
                }
                ClientEvent::GaveUp(error) => {
                    tracing::warn!(device, %error, "connection lost for good");
                    *lock(&watched.vehicles[index].trouble) = Some(error);
                }
            }));
            clients.push(client);
        }
        Ok(Self {
            options,
            clients,
            live,
        })
    }

    /// For watching it run.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Drives until the duration is over, the recordings are, or `stop` is cancelled; then drains
    /// and takes leave.
    ///
    /// # Errors
    /// [`FleetError::Recording`] if a recording breaks off; connections that fail are in the
    /// report.
    pub async fn run(self, stop: CancellationToken) -> Result<FleetReport, FleetError> {
        let begin = Instant::now();
        let stop = stop.child_token();
        let deadline = self.options.duration.map(|duration| begin + duration);
        let timer = deadline.map(|deadline| {
            let stop = stop.clone();
            tokio::spawn(async move {
                sleep_until(deadline).await;
                stop.cancel();
            })
        });
        let outcome = match self.options.drive.clone() {
            Drive::Synthetic { place, seed } => {
                self.drive_synthetic(place, seed, begin, &stop).await;
                Ok(BadLines::default())
            }
            Drive::Recorded(recording) => self.replay(&recording, begin, &stop).await,
        };
        if let Some(timer) = timer {
            timer.abort();
        }
        let bad_lines = outcome?;
        Ok(self.report(begin.elapsed(), bad_lines))
    }

    async fn drive_synthetic(
        &self,
        place: Place,
        seed: u64,
        begin: Instant,
        stop: &CancellationToken,
    ) {
        let city = City::new(place, seed);
        let clock = Clock::new(begin, self.options.speed, self.options.duration);
        let shards = DRIVERS.min(self.clients.len());
        let mut drivers = JoinSet::new();
        for shard in 0..shards {
            let cars = (shard..self.clients.len())
                .step_by(shards)
                .map(|index| Car {
                    index,
                    due: self.first_due(index, begin),
                    options: self.clients[index].clone(),
                    credentials: self.options.credentials[index].clone(),
                    on_the_road: None,
                })
                .collect();
            let round = Round {
                cars,
                city: city.clone(),
                clock,
                wall_interval: clock.wall(self.options.interval),
                live: Arc::clone(&self.live),
                drain: self.options.drain,
            };
            drivers.spawn(round.drive(stop.clone()));
        }
        join(drivers).await;
    }

    async fn replay(
        &self,
        recording: &Recording,
        begin: Instant,
        stop: &CancellationToken,
    ) -> Result<BadLines, FleetError> {
        let replay_options = ReplayOptions {
            window: self.options.interval,
            start_us: jiff::Timestamp::now().as_microsecond(),
        };
        let mut replays = JoinSet::new();
        for (index, options) in self.clients.iter().cloned().enumerate() {
            let replay = Replay {
                recording: recording.clone(),
                options: replay_options,
                client: options,
                credentials: self.options.credentials[index].clone(),
                start: self.first_due(index, begin),
                pace: Pace::new(self.options.speed),
                run: self.live.run.clone(),
                drain: self.options.drain,
            };
            replays.spawn(replay.run(stop.clone()));
        }
        let mut bad_lines = BadLines::default();
        let mut broken = None;
        for result in join(replays).await {
            match result {
                Ok(bad) => bad_lines = bad, // the same file, so the same lines
                Err(error) => broken = Some(error),
            }
        }
        match broken {
            Some(error) => Err(error.into()),
            None => Ok(bad_lines),
        }
    }

    /// When a vehicle connects: one after the other, at most so many per second.
    fn first_due(&self, index: usize, begin: Instant) -> Instant {
        begin + Duration::from_secs(index as u64) / self.options.connects_per_second
    }

    fn report(&self, elapsed: Duration, bad_lines: BadLines) -> FleetReport {
        let vehicles = self.options.credentials.iter().zip(&self.live.vehicles);
        FleetReport {
            run: self.live.run.clone(),
            vehicles: vehicles
                .map(|(credentials, running)| VehicleReport {
                    vehicle: credentials.vehicle_id.clone(),
                    device: credentials.device_id.clone(),
                    published: running.counters.published(),
                    acknowledged: running.counters.acknowledged(),
                    refused: running.counters.refused(),
                    open: running.counters.open(),
                    dropped: running.dropped.load(Ordering::Relaxed),
                    resent: running.counters.resent(),
                    connects: running.counters.connects(),
                    trouble: lock(&running.trouble).clone(),
                })
                .collect(),
            totals: self.live.totals(),
            elapsed,
            bad_lines,
        }
    }
}

/// Simulated time. Faster than time begins in the past and meets the present at the end of the
/// run: telemetry from the future would be wrong everywhere.
#[derive(Debug, Clone, Copy)]
struct Clock {
    begin: Instant,
    begin_us: i64,
    times: f64,
}

impl Clock {
    fn new(begin: Instant, speed: Speed, duration: Option<Duration>) -> Self {
        let times = match speed {
            Speed::Times(times) => times,
            Speed::Max => 1.0,
        };
        let ahead = (times - 1.0).max(0.0) * duration.unwrap_or_default().as_secs_f64();
        Self {
            begin,
            begin_us: jiff::Timestamp::now().as_microsecond() - (ahead * 1e6) as i64,
            times,
        }
    }

    fn at(&self, moment: Instant) -> i64 {
        let elapsed = moment.duration_since(self.begin).as_secs_f64();
        let simulated = self.begin_us + (elapsed * self.times * 1e6) as i64;
        // A turn that comes a little late is a lot of simulated time late.
        simulated.min(jiff::Timestamp::now().as_microsecond())
    }

    /// How long a span of simulated time takes.
    fn wall(&self, simulated: Duration) -> Duration {
        simulated.div_f64(self.times).max(Duration::from_millis(1))
    }
}

/// A vehicle in a driver's round.
struct Car {
    index: usize,
    due: Instant,
    options: ClientOptions,
    credentials: Credentials,
    on_the_road: Option<(VirtualVehicle, Speaker)>,
}

/// A driver task: advances its vehicles in turn.
struct Round {
    cars: Vec<Car>,
    city: City,
    clock: Clock,
    wall_interval: Duration,
    live: Arc<Live>,
    drain: Duration,
}

impl Round {
    async fn drive(mut self, stop: CancellationToken) {
        let mut messages = Vec::new();
        // The cars are in the order of their first turn, and all wait equally long between turns,
        // so the order stays as it is: whoever just had a turn is last.
        let mut turn = 0;
        loop {
            let due = self.cars[turn].due;
            if due > Instant::now() {
                tokio::select! {
                    () = stop.cancelled() => break, // cancel-safe: waiting changes nothing
                    () = sleep_until(due) => {}     // cancel-safe: waiting changes nothing
                }
            } else if stop.is_cancelled() {
                break;
            } else {
                tokio::task::consume_budget().await; // late, but others want the core too
            }
            self.advance(turn, &mut messages);
            turn = (turn + 1) % self.cars.len();
        }
        self.leave().await;
    }

    fn advance(&mut self, turn: usize, messages: &mut Vec<Message>) {
        let car = &mut self.cars[turn];
        let now = Instant::now();
        let (vehicle, speaker) = car.on_the_road.get_or_insert_with(|| {
            let vehicle = self
                .city
                .vehicle(&car.credentials.vehicle_id, self.clock.at(now));
            let (client, _) = Client::start(car.options.clone());
            let speaker = Speaker::new(client, &car.credentials, &self.live.run);
            (vehicle, speaker)
        });
        vehicle.advance(self.clock.at(now), messages);
        for message in messages.drain(..) {
            say(speaker, message, &self.live.vehicles[car.index]);
        }
        // After a long delay (a laptop was closed) the missed turns are not made up for.
        let next = car.due + self.wall_interval;
        car.due = if next + self.wall_interval * 10 < now {
            now + self.wall_interval
        } else {
            next
        };
    }

    async fn leave(self) {
        let mut leaving = JoinSet::new();
        for car in self.cars {
            let Some((mut vehicle, mut speaker)) = car.on_the_road else {
                continue;
            };
            if let Some(message) = vehicle.fall_silent() {
                say(&mut speaker, message, &self.live.vehicles[car.index]);
            }
            // What stays open is in the counters.
            leaving.spawn(speaker.into_client().finish(self.drain));
        }
        join(leaving).await;
    }
}

fn say(speaker: &mut Speaker, message: Message, running: &Running) {
    if let Err(error) = speaker.try_say(message) {
        running.dropped.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(%error, "message dropped");
    }
}

/// One vehicle that replays a recording.
struct Replay {
    recording: Recording,
    options: ReplayOptions,
    client: ClientOptions,
    credentials: Credentials,
    start: Instant,
    pace: Pace,
    run: String,
    drain: Duration,
}

impl Replay {
    async fn run(mut self, stop: CancellationToken) -> Result<BadLines, RecordingError> {
        tokio::select! {
            () = stop.cancelled() => return Ok(BadLines::default()), // cancel-safe: as below
            () = sleep_until(self.start) => {}                       // cancel-safe: only waits
        }
        let mut messages = self.recording.messages(self.options)?;
        let (client, _) = Client::start(self.client.clone());
        let mut speaker = Speaker::new(client, &self.credentials, &self.run);
        let mut outcome = Ok(());
        for message in &mut messages {
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            let due = self.pace.due(message.time_us);
            let said = async {
                if let Some(due) = due {
                    sleep_until(due).await;
                }
                speaker.say(message).await
            };
            tokio::select! {
                () = stop.cancelled() => break, // cancel-safe: waiting changes nothing
                // Cancel-safe: dropped, the message was not said; we stop anyway.
                said = said => if said.is_err() {
                    break; // the client gave up; why is in its trouble
                },
            }
        }
        // What stays open is in the counters.
        let _ = speaker.into_client().finish(self.drain).await;
        outcome.map(|()| messages.bad_lines())
    }
}

/// Waits for all; a panic in one is a panic here.
async fn join<T: 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut results = Vec::with_capacity(tasks.len());
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok(result) => results.push(result),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    results
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
