//! Weather: what well-behaved clients notice while hostile ones do their worst.
//!
//! ```text
//!        prepare            quiet              storm                after
//! storm  ───────► waits ──────────────► does its worst ──► gone
//! pairs            connect, publish ─────────────────────────────────────► all arrived?
//! ```
//! A hundred pairs (publisher and subscriber, QoS 1) send at a modest, fixed rate. Latency counts from
//! the moment a message was *due*: if the server stalls, all messages that wait for it have that to
//! answer for. Every storm is bounded in count and time, comes from another address than the pairs
//! where it can, and writes down every refusal it meets by its reason code.
//!
//! Pairs and storm share the machine with the server. The storm has a thread of its own with the
//! lowest claim on the processor, so what the pairs notice is the server's work for the storm, and
//! not that of the storm itself.

mod newcomers;
mod pairs;
mod scene;
mod server;
mod storm;
mod storms;
mod tally;
mod visitor;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::client::{ClientError, Server};
use crate::credentials::Credentials;
use crate::histogram::Histogram;
use crate::open_files::{OpenFilesError, allow_open_files};

use newcomers::Newcomers;
use pairs::Pairs;
use scene::{Scene, Signal};
pub use server::Subject;
use server::Watched;
pub use storm::{Storm, StormError, UnknownStorm};

/// Where the server listens.
#[derive(Debug, Clone)]
pub struct Place {
    /// A plain listener that takes everybody.
    pub plain: Server,
    /// A TLS listener that wants certificates, for the storms that need one.
    pub secure: Option<Secure>,
}

/// A TLS listener.
#[derive(Debug, Clone)]
pub struct Secure {
    /// Where.
    pub server: Server,
    /// The CA to trust, PEM.
    pub ca_pem: String,
    /// Devices it takes.
    pub credentials: Vec<Credentials>,
}

/// How to make weather.
#[derive(Debug, Clone)]
pub struct WeatherOptions {
    /// Where.
    pub place: Place,
    /// Which.
    pub storm: Storm,
    /// Well-behaved pairs.
    pub pairs: usize,
    /// Messages per second of each pair.
    pub rate: f64,
    /// How long they are watched before the storm.
    pub quiet: Duration,
    /// How long the storm lasts.
    pub lasts: Duration,
    /// How long they are watched when it is over.
    pub after: Duration,
    /// The storm's share (above 0, at most 1) of its full counts, for small machines and tests.
    pub scale: f64,
    /// What of the server can be watched from here.
    pub subject: Subject,
}

/// What the pairs noticed in one phase.
#[derive(Debug, Clone, Default)]
pub struct Calm {
    /// From when messages were due to when they arrived.
    pub latency: Histogram,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct WeatherReport {
    /// Which storm.
    pub storm: Storm,
    /// Before it.
    pub quiet: Calm,
    /// While it lasted.
    pub during: Calm,
    /// When it was over.
    pub after: Calm,
    /// Messages of the pairs.
    pub sent: u64,
    /// Of these, refused by the server in PUBACK.
    pub refused: u64,
    /// Of these, neither arrived nor refused, ten seconds after the last.
    pub lost: u64,
    /// Pairs that lost their connection.
    pub disconnected: u64,
    /// Why, the first few.
    pub troubles: Vec<String>,
    /// Good clients that came while it stormed, one per 200 ms.
    pub newcomers: u64,
    /// Of these, not let in.
    pub turned_away: u64,
    /// How long the others took.
    pub welcome: Histogram,
    /// What the storm met, by what it was told, with counts.
    pub met: Vec<(String, u64)>,
    /// What the storm says it did.
    pub did: String,
    /// How long it took.
    pub lasted: Duration,
    /// Highest resident memory of the server while it was quiet and while it stormed, bytes.
    pub resident: Option<(u64, u64)>,
    /// Metrics that changed from the storm's begin to the end, and by how much.
    pub metrics: Vec<(String, f64)>,
}

/// Why there is no weather.
#[derive(Debug, thiserror::Error)]
pub enum WeatherError {
    /// An option makes no sense.
    #[error("{problem}")]
    Options {
        /// What is wrong and what to do.
        problem: String,
    },
    /// Too few open files allowed.
    #[error(transparent)]
    OpenFiles(#[from] OpenFilesError),
    /// No thread or runtime.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// The pairs could not connect while it was quiet.
    #[error("a well-behaved pair cannot connect")]
    Pair(#[source] ClientError),
    /// The storm could not be prepared or did not happen.
    #[error("the storm `{storm}` did not happen")]
    Storm {
        /// Which.
        storm: Storm,
        /// Why not.
        source: StormError,
    },
    /// The storm does not end.
    #[error("the storm `{storm}` did not end {} s after its time", .after.as_secs())]
    Endless {
        /// Which.
        storm: Storm,
        /// How long was waited.
        after: Duration,
    },
    /// The server cannot be watched.
    #[error("cannot watch the server: {what}")]
    Watch {
        /// What failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// For a storm to get ready: half a million retained messages take a while.
const PREPARE: Duration = Duration::from_secs(600);
/// For a storm to end after its time.
const END: Duration = Duration::from_secs(120);
/// For the last messages of the pairs.
const DRAIN: Duration = Duration::from_secs(10);

/// Watches pairs without and with a storm. Blocks: call it outside of an async runtime. `told` hears of
/// each step in a word (`prepared`, `storm`, `after`), for a script that does something at the time.
///
/// # Errors
/// [`WeatherError`]; what happens to the pairs is in the report.
pub fn run(
    options: &WeatherOptions,
    told: impl Fn(&str) + Send + Sync,
) -> Result<WeatherReport, WeatherError> {
    check(options)?;
    allow_open_files(2 * options.pairs + options.storm.sockets(options.scale))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(WeatherError::Thread)?;
    let (prepared, is_prepared) = oneshot::channel();
    let (begin, begins) = watch::channel(None);
    let scene = Arc::new(Scene::new(
        options.place.clone(),
        options.scale,
        Signal::new(prepared, begins),
    ));
    let (over, is_over) = oneshot::channel();
    let thread = {
        let (scene, storm) = (Arc::clone(&scene), options.storm);
        std::thread::Builder::new()
            .name("storm".into())
            .spawn(move || {
                // Refused only to those who want more than they have; we want less.
                let _ = rustix::process::setpriority_process(None, 19);
                // Nobody listens any more when the pairs have given up.
                let _ = over.send(storm::blow(storm, scene));
            })
            .map_err(WeatherError::Thread)?
    };
    let watched = Watched::start(&options.subject);
    let result = runtime.block_on(watch_pairs(
        options,
        &scene,
        &watched,
        is_prepared,
        begin,
        is_over,
        &told,
    ));
    if result.is_ok() && thread.join().is_err() {
        return Err(WeatherError::Storm {
            storm: options.storm,
            source: StormError::Panicked,
        });
    }
    result
}

fn check(options: &WeatherOptions) -> Result<(), WeatherError> {
    let problem = |problem: String| Err(WeatherError::Options { problem });
    if !(1..=5_000).contains(&options.pairs) {
        return problem(format!("{} pairs; choose 1 to 5,000", options.pairs));
    }
    if !(options.rate > 0.0 && options.rate <= 1_000.0) {
        return problem(format!(
            "{} messages per second and pair; choose above 0, at most 1,000",
            options.rate
        ));
    }
    if !(options.scale > 0.0 && options.scale <= 1.0) {
        return problem(format!(
            "a scale of {}; choose above 0, at most 1",
            options.scale
        ));
    }
    if options.storm.needs_tls() && options.place.secure.is_none() {
        return problem(format!(
            "the storm `{}` needs a TLS listener and certificates",
            options.storm
        ));
    }
    Ok(())
}

async fn watch_pairs(
    options: &WeatherOptions,
    scene: &Scene,
    watched: &Watched,
    is_prepared: oneshot::Receiver<()>,
    begin: watch::Sender<Option<Instant>>,
    mut is_over: oneshot::Receiver<Result<String, StormError>>,
    told: &impl Fn(&str),
) -> Result<WeatherReport, WeatherError> {
    let storm = options.storm;
    let failed = |source| WeatherError::Storm { storm, source };
    let gone = || failed(StormError::Panicked);
    tokio::select! {
        _ = is_prepared => {} // cancel-safe, as the others: they are not waited for again if this wins
        // It ended before it was ready, and says why.
        over = &mut is_over => return match over {
            Ok(Err(source)) => Err(failed(source)),
            _ => Err(gone()),
        },
        () = sleep(PREPARE) => return Err(failed(StormError::NotReady { after: PREPARE })),
    }
    told("prepared");
    let pairs = Pairs::start(&options.place.plain, options.pairs, options.rate)
        .await
        .map_err(WeatherError::Pair)?;
    sleep(options.quiet).await;

    let before = watched.metrics().await?;
    watched.phase_storm();
    pairs.storm_begins();
    let began = Instant::now();
    // The storm thread waits for this; if it is gone `is_over` says why.
    let _ = begin.send(Some(began + options.lasts));
    told("storm");
    let newcomers = Newcomers::start(&options.place.plain);
    let limit = options.lasts + END;
    let did = match timeout(limit, &mut is_over).await {
        Ok(Ok(Ok(did))) => did,
        Ok(Ok(Err(source))) => return Err(failed(source)),
        Ok(Err(_)) => return Err(gone()),
        Err(_) => return Err(WeatherError::Endless { storm, after: END }),
    };
    let lasted = began.elapsed();
    pairs.storm_ends();
    let newcomers = newcomers.finish().await;
    told("after");
    sleep(options.after).await;
    let noticed = pairs.finish(DRAIN).await;
    let resident = watched.peaks();
    let after = watched.metrics().await?;
    Ok(WeatherReport {
        storm,
        quiet: Calm {
            latency: noticed.quiet,
        },
        during: Calm {
            latency: noticed.during,
        },
        after: Calm {
            latency: noticed.after,
        },
        sent: noticed.sent,
        refused: noticed.refused,
        lost: noticed.lost,
        disconnected: noticed.disconnected,
        troubles: noticed.troubles,
        newcomers: newcomers.came,
        turned_away: newcomers.turned_away,
        welcome: newcomers.welcome,
        met: scene.tally.counts(),
        did,
        lasted,
        resident,
        metrics: server::changes(&before, &after),
    })
}

impl fmt::Display for WeatherReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let phase = |f: &mut fmt::Formatter<'_>, name, calm: &Calm| {
            let h = &calm.latency;
            write!(
                f,
                "{name} {:.1}/{:.1}/{:.0} ms, ",
                ms(h.quantile(0.5)),
                ms(h.quantile(0.99)),
                ms(h.longest())
            )
        };
        write!(f, "{}: p50/p99/max ", self.storm)?;
        phase(f, "quiet", &self.quiet)?;
        phase(f, "during", &self.during)?;
        phase(f, "after", &self.after)?;
        write!(
            f,
            "{} sent, {} lost, {} refused, {} disconnected; newcomers {} of {} in, p99 {:.0} ms; {}",
            self.sent,
            self.lost,
            self.refused,
            self.disconnected,
            self.newcomers - self.turned_away,
            self.newcomers,
            ms(self.welcome.quantile(0.99)),
            self.did,
        )?;
        if let Some((quiet, storm)) = self.resident {
            let (quiet, storm) = (quiet >> 20, storm >> 20);
            write!(f, "; resident {quiet} -> {storm} MiB")?;
        }
        for (index, (what, count)) in self.met.iter().enumerate() {
            write!(
                f,
                "{} {count} x {what}",
                if index == 0 { "; met" } else { "," }
            )?;
        }
        for trouble in &self.troubles {
            write!(f, "; trouble: {trouble}")?;
        }
        Ok(())
    }
}
