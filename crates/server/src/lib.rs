//! Assembles Milepost: configuration in, a running server out, and the way back.
//!
//! Start: check everything that can be wrong → take all ports → open fleet, log and lake (which
//! recover what a crash left) → read certificates → start the consumers → restore the sessions → serve.
//! Nobody is served by half a server.
//!
//! Stop, in this order and within a deadline: no new connections; owed acknowledgements go out as
//! their records become durable; sessions are kept as they are; presence says who left; the consumers
//! reach the end of the log; the lake commits; files are closed. What was acknowledged was on disk before any of this began.

pub mod config;
pub mod preflight;

mod bans;
mod clock;
mod decoders;
mod device_publish;
mod fleet_source;
mod hooks;
mod http;
mod ingest;
mod limits;
mod listeners;
mod memory;
mod open_files;
mod presence;
mod sessions;
mod state;
mod streams;
mod sys;
mod tls;
mod web;

use std::{
    fmt, io, net::SocketAddr, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc, time::Duration,
};

use broker::{Broker, BrokerConfig, BrokerHandle, Recovery};
use eventlog::Stream;
use fleet::{Change, Fleet, FleetError};
use lake::{Lake, LakeError, LakeOptions, QueryLimits};
use mqtt::ReasonCode;
use pipeline::Processor;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use bans::Bans;
use clock::now_us;
use config::{Config, problem::Problems};
use decoders::Decoders;
use hooks::FleetHooks;
use ingest::Ingest;
pub use memory::MemoryBound;
use open_files::OpenFiles;
pub use open_files::{Shortage, TooFewFiles};
use presence::PresenceQueue;
use state::{AppState, Phase, PhaseCell};
use streams::Streams;
use tls::Renewal;
pub use tls::{Renewed, TlsError};

/// Why the server did not start. No port is open after one of these.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration asks for what is not to be had here.
    #[error("{0}")]
    Config(#[from] Problems),
    /// The data folder could not be made.
    #[error("cannot make the data folder {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The register did not open.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The event log did not open.
    #[error("the event log could not be opened")]
    Log(#[from] eventlog::OpenError),
    /// The lake did not open.
    #[error("the lake could not be opened")]
    Lake(#[from] LakeError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system lets this process open too few files.
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    /// The broker did not start.
    #[error("the broker could not be started")]
    Broker(#[from] broker::StartError),
    /// A thread or socket was refused by the system.
    #[error("the system refused a thread or a socket")]
    System(#[from] io::Error),
}

/// Something did not end as it should have; nothing acknowledged is lost.
#[derive(Debug, thiserror::Error)]
#[error(
    "the lake could not commit its last rows; the log holds them, the next start goes on there"
)]
pub struct StopError(#[from] LakeError);

/// Where the server can be reached.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Protocol and address of each MQTT listener, in the order of the configuration.
    pub mqtt: Vec<(&'static str, SocketAddr)>,
    /// The HTTP API.
    pub http: SocketAddr,
    /// The PostgreSQL wire port.
    pub sql: SocketAddr,
}

impl Addresses {
    /// One URL per address.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .mqtt
            .iter()
            .map(|(protocol, address)| format!("listening on {protocol}://{address}"))
            .collect();
        lines.push(format!("listening on http://{}", self.http));
        lines.push(format!("listening on postgresql://{}", self.sql));
        lines
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

/// A running server.
pub struct Server {
    addresses: Addresses,
    state: Arc<AppState>,
    shortage: Option<Shortage>,
    ingest: Ingest,
    presence: PresenceQueue,
    announcing: std::thread::JoinHandle<()>,
    stop: CancellationToken,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
}

impl Server {
    /// Starts everything; returns when all ports are open.
    ///
    /// # Errors
    /// See [`StartError`]. On an error no port stays open.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let reserved = preflight::reserve(&config)?;
        let files = OpenFiles::claim(&config)?;
        make_data_dir(&config)?;

        let fleet = Fleet::open(&config.data_dir).await?;
        let Streams {
            log,
            raw,
            dead,
            presence: presence_stream,
        } = streams::open(&config)?;
        let group = log.group("processor")?;
        let lake_options = lake_options(&config, &raw);
        let limits = limits::of(
            &config,
            usize::try_from(files.sockets).unwrap_or(usize::MAX),
        );
        let memory = MemoryBound::of(&config, &limits, &lake_options);
        let lake = Lake::open(&config.data_dir.join("lake"), lake_options).await?;
        lake.set_fleet_source(fleet_source::of(&fleet)).await;
        // Before the models are read, so that no change falls between.
        let changes = fleet.subscribe_changes();
        let decoders = Decoders::load(&fleet).await?;
        let processor = Processor::new({
            let decoders = decoders.clone();
            Arc::new(move |vehicle: &str| decoders.of_vehicle(vehicle))
        });
        let named = listeners::named(&config.listeners);
        let tls = Arc::new(Renewal::begin(fleet.clone(), named).await?);

        // From here on people may come in.
        let ingest = Ingest::start(&raw, &dead, &group, &lake, &processor)?;
        let sockets = reserved.listen()?;
        let (presence, events) = presence::queue();
        let doorways = listeners::doorways(&config.listeners);
        let hooks = FleetHooks::new(fleet.directory(), raw.clone(), doorways, presence.clone());
        let hooks = Arc::new(hooks);
        let (web_door, web_visitors) = web::door();
        let listeners = listeners::for_broker(&config.listeners, sockets.mqtt, &tls, &web_door);
        let broker_config = BrokerConfig {
            limits,
            store: sessions::store(&config),
            ..BrokerConfig::new(listeners)
        };
        sessions::announce(&config.data_dir);
        let broker = start_broker(broker_config, hooks).await?;
        sessions::report(broker.recovery());
        let bans = Bans::new(fleet.clone(), broker.clone());
        bans.enforce().await?;
        let http = tokio::net::TcpListener::from_std(sockets.http)?;
        let sql = tokio::net::TcpListener::from_std(sockets.sql)?;
        let addresses = Addresses {
            mqtt: broker
                .listeners()
                .iter()
                .map(|bound| (bound.protocol, bound.addr))
                .collect(),
            http: http.local_addr()?,
            sql: sql.local_addr()?,
        };
        let announcing = events.publish(&presence, presence_stream, broker.clone())?;
        let state = Arc::new(AppState {
            fleet: fleet.clone(),
            decoders: decoders.clone(),
            lake: lake.clone(),
            log,
            raw,
            ingest: ingest.stats(),
            broker: Arc::new(broker.clone()),
            tls: tls.clone(),
            bans,
            presence: presence.clone(),
            memory,
            files,
            sql_limits: query_limits(&config),
            phase: PhaseCell::default(),
        });
        let stop = CancellationToken::new();
        let mut tasks = vec![
            (
                "changes",
                tokio::spawn(follow_changes(
                    changes,
                    fleet,
                    decoders,
                    broker.clone(),
                    stop.clone(),
                )),
            ),
            (
                "http",
                tokio::spawn(serve_http(http, state.clone(), stop.clone())),
            ),
            (
                "web",
                tokio::spawn(web::serve(
                    web_visitors,
                    state.clone(),
                    usize::try_from(config.mqtt.max_packet_size.0).unwrap_or(usize::MAX),
                    stop.clone(),
                )),
            ),
            ("tls", tokio::spawn(tls.watch(stop.clone()))),
            ("sql", {
                let stop = stop.clone();
                tokio::spawn(async move {
                    if let Err(error) = lake.serve_postgres(sql, stop).await {
                        tracing::error!(event = "sql.ended", error = %error);
                    }
                })
            }),
        ];
        if let Some(interval) = config.sys.interval {
            let publishing = sys::publish(broker, interval, config.mqtt.retain, stop.clone());
            tasks.push(("sys", tokio::spawn(publishing)));
        }
        state.phase.store(Phase::Ready);
        Ok(Self {
            addresses,
            state,
            shortage: files.shortage(&config),
            ingest,
            presence,
            announcing,
            stop,
            tasks,
        })
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The memory it may use at most.
    pub fn memory(&self) -> &MemoryBound {
        &self.state.memory
    }

    /// Whether fewer connections fit than are configured.
    pub fn shortage(&self) -> Option<Shortage> {
        self.shortage
    }

    /// Reads certificates, keys and CA files again and uses them for all handshakes from now on. Nobody
    /// who is connected notices.
    ///
    /// # Errors
    /// [`TlsError`], naming the file; then everything is as before.
    pub async fn reload(&self) -> Result<Renewed, TlsError> {
        self.state.tls.renew().await
    }

    /// The broker, for counters.
    pub fn broker(&self) -> &BrokerHandle {
        &self.state.broker
    }

    /// What was there of sessions when it started.
    pub fn recovery(&self) -> &Recovery {
        self.state.broker.recovery()
    }

    /// The lake, for counters and queries from within.
    pub fn lake(&self) -> &Lake {
        &self.state.lake
    }

    /// Stops in order. `deadline` bounds the wait for clients and for open requests; the log and the
    /// lake are always finished.
    ///
    /// # Errors
    /// [`StopError`] when the last rows could not be committed to Delta.
    pub async fn shutdown(self, deadline: Duration) -> Result<(), StopError> {
        self.state.phase.store(Phase::Stopping);
        let report = self.state.broker.shutdown(deadline).await;
        tracing::info!(event = "server.clients_gone", outcome = ?report.outcome, cut = report.cut);
        // Blocking: waits for the thread.
        let (presence, announcing) = (self.presence, self.announcing);
        let announced = tokio::task::spawn_blocking(move || {
            presence.end();
            announcing.join()
        });
        if !matches!(announced.await, Ok(Ok(()))) {
            tracing::error!(event = "server.presence_panicked");
        }
        // Blocking: waits for the disk.
        let log = self.state.log.clone();
        let flushed = tokio::task::spawn_blocking(move || log.flush()).await;
        if flushed.is_err() {
            tracing::error!(event = "server.flush_panicked");
        }
        self.ingest.finish().await;
        let committed = self.state.lake.close().await;
        self.stop.cancel();
        for (name, task) in self.tasks {
            if tokio::time::timeout(deadline, task).await.is_err() {
                tracing::warn!(event = "server.task_late", task = name);
            }
        }
        let log = self.state.log.clone();
        if tokio::task::spawn_blocking(move || log.close())
            .await
            .is_err()
        {
            tracing::error!(event = "server.close_panicked");
        }
        self.state.fleet.close().await;
        Ok(committed?)
    }
}

/// The data folder belongs to its owner: it holds private keys and people's movements.
fn make_data_dir(config: &Config) -> Result<(), StartError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .map_err(|source| StartError::DataDir {
            path: config.data_dir.clone(),
            source,
        })
}

/// Restores the sessions, which may take seconds, and serves.
async fn start_broker(
    config: BrokerConfig,
    hooks: Arc<FleetHooks>,
) -> Result<BrokerHandle, StartError> {
    let started = tokio::task::spawn_blocking(move || Broker::start(config, hooks));
    match started.await {
        Ok(started) => Ok(started?),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Not run at all: the runtime is going down.
            Err(error) => Err(StartError::System(io::Error::other(error))),
        },
    }
}

fn lake_options(config: &Config, raw: &Stream) -> LakeOptions {
    LakeOptions {
        partitions: raw.partitions(),
        commit_every: config.lake.commit_every,
        hot_bytes: usize::try_from(config.lake.max_hot.0).unwrap_or(usize::MAX),
        postgres_limits: query_limits(config),
        ..LakeOptions::default()
    }
}

fn query_limits(config: &Config) -> QueryLimits {
    QueryLimits {
        rows: usize::try_from(config.sql.max_rows).unwrap_or(usize::MAX),
        time: config.sql.max_time,
        memory: usize::try_from(config.sql.max_memory.0).unwrap_or(usize::MAX),
    }
}

async fn serve_http(
    listener: tokio::net::TcpListener,
    state: Arc<AppState>,
    stop: CancellationToken,
) {
    let router = http::router(state);
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await;
    if let Err(error) = served {
        tracing::error!(event = "http.ended", error = %error);
    }
}

/// Carries changes of the register to whoever keeps something that depends on it: lost access ends
/// connections and empties sessions, a changed model changes its decoder.
///
/// Access that is gained is not passed on: the broker remembers only what was allowed, and asks anew
/// for whatever it was denied.
async fn follow_changes(
    mut changes: broadcast::Receiver<Change>,
    fleet: Fleet,
    decoders: Arc<Decoders>,
    broker: BrokerHandle,
    stop: CancellationToken,
) {
    loop {
        let change = tokio::select! {
            () = stop.cancelled() => return, // cancel-safe: waiting on the token changes nothing
            change = changes.recv() => change, // cancel-safe: takes a change or takes nothing
        };
        match change {
            Ok(Change::AccessLost { device_id }) => {
                let ended = broker
                    .disconnect_principal(device_id.as_str(), ReasonCode::AdministrativeAction);
                tracing::info!(event = "access.lost", device = %device_id, connections = ended);
                // A device that can come back with another certificate finds its session as it left
                // it, and is checked then. One that can not has its subscriptions taken away.
                if fleet
                    .directory()
                    .recall(device_id.as_str(), now_us())
                    .is_none()
                {
                    broker.access_changed(device_id.as_str());
                }
            }
            Ok(Change::ModelChanged { name }) => {
                if let Err(error) = decoders.refresh(&fleet, &name).await {
                    tracing::error!(event = "model.refresh_failed", model = %name, error = %error);
                }
            }
            Ok(_) => {}
            // Unknown changes were missed: everything that depends on them is looked at again. What a
            // device without access sends is refused one by one meanwhile (the directory decides).
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(event = "changes.lagged", missed);
                for device in fleet.directory().shut_out(now_us()) {
                    broker.disconnect_principal(device.as_str(), ReasonCode::AdministrativeAction);
                }
                // A device that was deleted cannot be named any more.
                broker.access_changed_for_all();
                if let Err(error) = decoders.reload(&fleet).await {
                    tracing::error!(event = "model.reload_failed", error = %error);
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}
