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
//! lowest claim on the processor, and the pairs a higher one than the server where the system grants
//! it, so what the pairs notice is the server's work for the storm, and not that of the storm itself.
//! How late they were with their own messages is in the report: of any latency, that much is not the
//! server's.
//!
//! The server's resident memory is compared with the bound it promises. Nothing that clients do may
//! make it break that promise, so a report says so as it does of a lost message.

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
use server::Watched;
pub use server::{Resident, Subject};
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
    /// Of that, what the generator itself made before it sent: its timer, and its turn on the processor.
    pub late: Histogram,
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
    /// Why, the first few; and what else was wrong with the server.
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
    /// Resident memory of the server, if it was watched.
    pub resident: Option<Resident>,
    /// The most memory the server may use, bytes, if it promises anything.
    pub bound: Option<u64>,
    /// The parts of what it promises, bytes, largest first.
    pub bound_parts: Vec<(String, u64)>,
    /// Metrics that changed from the storm's begin to the end, and by how much.
    pub metrics: Vec<(String, f64)>,
}

impl WeatherReport {
    /// Whether the server used more memory than it promised.
    pub fn exceeds_bound(&self) -> bool {
        let used = self.resident.map(|resident| resident.highest);
        used.zip(self.bound)
            .is_some_and(|(used, bound)| used > bound)
    }

    /// Whether a storm harmed anybody or anything it must not.
    pub fn shows_harm(&self) -> bool {
        self.lost + self.disconnected > 0 || !self.troubles.is_empty() || self.exceeds_bound()
    }
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
    let _favoured = Favoured::now();
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

/// This thread's higher claim on the processor, until it is dropped. Refused to most users, and then the
/// pairs share with the server, and their lateness says what that made of it.
struct Favoured {
    before: Option<i32>,
}

impl Favoured {
    /// Enough to be served before a server of the usual claim.
    const NICE: i32 = -10;

    fn now() -> Self {
        let before = rustix::process::getpriority_process(None).ok();
        let granted = rustix::process::setpriority_process(None, Self::NICE).is_ok();
        Self {
            before: before.filter(|_| granted),
        }
    }
}

impl Drop for Favoured {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // Less than we have is never refused.
            let _ = rustix::process::setpriority_process(None, before);
        }
    }
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
    let resident = watched.resident();
    let mut troubles = noticed.troubles;
    // A server that died has no metrics, and what the pairs saw of that is still to be told.
    let metrics = match watched.metrics().await {
        Ok(after) => server::changes(&before, &after),
        Err(error) => {
            troubles.push(format!("{error}: it did not answer after the storm"));
            Vec::new()
        }
    };
    let bound_parts = server::bound(&before);
    let promised = || bound_parts.iter().map(|(_, bytes)| bytes).sum();
    let bound = options.subject.bound;
    let (latency, late) = (noticed.latency, noticed.late);
    Ok(WeatherReport {
        storm,
        quiet: Calm {
            latency: latency.quiet,
            late: late.quiet,
        },
        during: Calm {
            latency: latency.during,
            late: late.during,
        },
        after: Calm {
            latency: latency.after,
            late: late.after,
        },
        sent: noticed.sent,
        refused: noticed.refused,
        lost: noticed.lost,
        disconnected: noticed.disconnected,
        troubles,
        newcomers: newcomers.came,
        turned_away: newcomers.turned_away,
        welcome: newcomers.welcome,
        met: scene.tally.counts(),
        did,
        lasted,
        resident,
        bound: bound.or_else(|| (!bound_parts.is_empty()).then(promised)),
        bound_parts,
        metrics,
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
        write!(
            f,
            "; generator late p99 {:.1} ms",
            ms(self.during.late.quantile(0.99))
        )?;
        if let Some(Resident { quiet, highest, .. }) = self.resident {
            write!(f, "; resident {} -> {} MiB", quiet >> 20, highest >> 20)?;
        }
        if let Some(bound) = self.bound {
            let verdict = match self.exceeds_bound() {
                true => "EXCEEDS the bound",
                false => "of at most",
            };
            write!(f, " ({verdict} {} MiB)", bound >> 20)?;
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
