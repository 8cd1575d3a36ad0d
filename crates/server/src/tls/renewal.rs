//! Certificates that change while the server runs: replaced by an operator or by a renewal program, and
//! the fleet CA's own, which ends after a year.
//!
//! Everything is read and every set-up made before the first one is swapped; if anything is wrong, all
//! stay as they are, the file is named in the log, and nobody who is connected notices either way. Files
//! are looked at every ten seconds, by time, size and place on disk. Notices of the file system were
//! refused: on network mounts and behind the symbolic links of Kubernetes they come late or never, and ten
//! seconds are nothing to a certificate.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use broker::TlsSettings;
use fleet::Fleet;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio_util::sync::CancellationToken;

use super::{
    FileError, TlsError, authorities,
    certificate::{ServerPair, fleet_pair},
    server_config, server_pair,
};
use crate::{
    clock::now_us,
    config::{
        Listener,
        listener::{Auth, Tls},
    },
};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How soon the fleet CA is asked again when it had no new certificate.
const RETRY_US: i64 = 3600 * 1_000_000;
/// From then on each reading warns that a certificate will end: two weeks.
const ENDS_SOON_US: i64 = 14 * 86_400 * 1_000_000;

/// The TLS of all listeners, and what it is made from.
pub struct Renewal {
    fleet: Fleet,
    /// What clients may call this server, for the certificate of the fleet CA.
    names: Vec<String>,
    listeners: Vec<TlsListener>,
    /// One reading at a time.
    reading: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

/// A listener with TLS.
struct TlsListener {
    name: Arc<str>,
    tls: Tls,
    auth: Auth,
    settings: TlsSettings,
}

/// What the last reading found.
#[derive(Default)]
struct Seen {
    stamps: Vec<Option<Stamp>>,
    /// When the fleet CA is asked for another certificate.
    renew_after_us: i64,
    /// CAs of clients besides the fleet CA, of all listeners.
    authorities: Vec<CertificateDer<'static>>,
    /// The earliest end of a certificate, by listener.
    ends: Vec<(Arc<str>, i64)>,
}

/// By what a change of a file is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    place: (u64, u64),
}

/// A reading that was put into effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Listeners with new set-ups.
    pub listeners: Vec<Arc<str>>,
}

/// For metrics.
#[derive(Debug, Clone)]
pub struct TlsStatus {
    /// The earliest end of a certificate of each listener, microseconds since the Unix epoch.
    pub ends: Vec<(Arc<str>, i64)>,
    /// Readings that were put into effect, the first not counted.
    pub succeeded: u64,
    /// Readings that changed nothing because something was wrong.
    pub failed: u64,
}

/// What one reading gives: everything, or nothing.
struct Reading {
    configs: Vec<ServerConfig>,
    seen: Seen,
}

impl Renewal {
    /// Reads everything for the first time. `listeners` are all listeners with their names; those without
    /// TLS are left out.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub async fn begin(
        fleet: Fleet,
        listeners: impl IntoIterator<Item = (Arc<str>, &Listener)>,
    ) -> Result<Self, TlsError> {
        let (mut names, mut parts) = (BTreeSet::new(), Vec::new());
        for (name, listener) in listeners {
            let Some(tls) = listener.transport.tls() else {
                continue;
            };
            if tls.shows_fleet_certificate() {
                names.extend(server_names(listener.bind, &tls.names));
            }
            parts.push((name, tls.clone(), listener.auth));
        }
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort();
        let reading = read(&fleet, &names, &parts).await?;
        let listeners = parts.into_iter().zip(reading.configs);
        let listeners = listeners.map(|((name, tls, auth), config)| TlsListener {
            name,
            tls,
            auth,
            settings: TlsSettings::new(config),
        });
        let renewal = Self {
            fleet,
            names,
            listeners: listeners.collect(),
            reading: tokio::sync::Mutex::default(),
            seen: Mutex::new(reading.seen),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        renewal.warn_of_ends();
        Ok(renewal)
    }

    /// The settings of a listener, which follow every later reading; `None` where there is no TLS.
    pub fn settings(&self, listener: &str) -> Option<TlsSettings> {
        let listener = self.listeners.iter().find(|it| &*it.name == listener)?;
        Some(listener.settings.clone())
    }

    /// CAs whose clients pass the handshake, besides the fleet CA.
    pub fn authorities(&self) -> Vec<CertificateDer<'static>> {
        self.seen().authorities.clone()
    }

    /// For metrics.
    pub fn status(&self) -> TlsStatus {
        TlsStatus {
            ends: self.seen().ends.clone(),
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    /// Reads everything again and, if all of it is good, uses it for all handshakes from now on. Standing
    /// connections stay; sessions cannot be resumed across it.
    ///
    /// # Errors
    /// [`TlsError`], naming the file; then everything is as before.
    pub async fn renew(&self) -> Result<Renewed, TlsError> {
        let _turn = self.reading.lock().await;
        let parts: Vec<_> = self
            .listeners
            .iter()
            .map(|it| (it.name.clone(), it.tls.clone(), it.auth))
            .collect();
        // Taken first: what changes while it is read is read once more.
        let stamps = self.stamps().await;
        let reading = match read(&self.fleet, &self.names, &parts).await {
            Ok(reading) => reading,
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut seen = self.seen();
                // The same files fail in the same way; they are tried again when they change.
                seen.stamps = stamps;
                seen.renew_after_us = seen.renew_after_us.max(now_us() + RETRY_US);
                drop(seen);
                let file = match &error {
                    TlsError::File(error) => error.path().display().to_string(),
                    _ => String::new(),
                };
                tracing::error!(
                    event = "tls.reload_failed",
                    file,
                    reason = with_causes(&error),
                    "certificates stay as they were"
                );
                return Err(error);
            }
        };
        for (listener, config) in self.listeners.iter().zip(reading.configs) {
            listener.settings.replace(config);
        }
        *self.seen() = Seen {
            stamps,
            ..reading.seen
        };
        self.succeeded.fetch_add(1, Ordering::Relaxed);
        let renewed = Renewed {
            listeners: self.listeners.iter().map(|it| it.name.clone()).collect(),
        };
        tracing::info!(
            event = "tls.reloaded",
            listeners = renewed.listeners.join(",")
        );
        self.warn_of_ends();
        Ok(renewed)
    }

    /// Looks at the files now and then, until `stop`.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut clock = tokio::time::interval(LOOK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return, // cancel-safe: waiting on the token changes nothing
                _ = clock.tick() => {} // cancel-safe: a tick is taken or stays
            }
            if self.is_due().await {
                // Said in the log, and counted.
                let _ = self.renew().await;
            }
        }
    }

    async fn is_due(&self) -> bool {
        let stamps = self.stamps().await;
        let seen = self.seen();
        seen.stamps != stamps || now_us() >= seen.renew_after_us
    }

    async fn stamps(&self) -> Vec<Option<Stamp>> {
        let files: Vec<PathBuf> = self
            .listeners
            .iter()
            .flat_map(|it| files(&it.tls))
            .collect();
        stamps_of(files).await
    }

    fn warn_of_ends(&self) {
        for (listener, end) in &self.seen().ends {
            if *end < now_us() + ENDS_SOON_US {
                let at = jiff::Timestamp::from_microsecond(*end).unwrap_or(jiff::Timestamp::MIN);
                tracing::warn!(
                    event = "tls.certificate_ends",
                    listener = &**listener,
                    at = %at,
                    "renew it: from then on clients refuse this server"
                );
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn files(tls: &Tls) -> Vec<PathBuf> {
    let pairs = tls.certificates.iter();
    let pairs = pairs.flat_map(|pair| [pair.chain.clone(), pair.key.clone()]);
    pairs.chain(tls.client_ca.iter().cloned()).collect()
}

/// Of what the files are now; a link counts as what it leads to. A mount that hangs holds up the next look,
/// and nothing else.
async fn stamps_of(files: Vec<PathBuf>) -> Vec<Option<Stamp>> {
    let count = files.len();
    let looked = tokio::task::spawn_blocking(move || {
        let stamp = |file: PathBuf| {
            let metadata = fs::metadata(file).ok()?;
            Some(Stamp {
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                size: metadata.size(),
                place: (metadata.dev(), metadata.ino()),
            })
        };
        files.into_iter().map(stamp).collect()
    });
    looked.await.unwrap_or_else(|_| vec![None; count])
}

/// Everything that the listeners need, or the first thing that is wrong.
async fn read(
    fleet: &Fleet,
    names: &[String],
    listeners: &[(Arc<str>, Tls, Auth)],
) -> Result<Reading, TlsError> {
    let all: Vec<Tls> = listeners.iter().map(|(_, tls, _)| tls.clone()).collect();
    let stamps = stamps_of(all.iter().flat_map(files).collect()).await;
    let from_files = tokio::task::spawn_blocking(move || {
        let read = |tls: &Tls| {
            let pairs: Vec<ServerPair> = tls
                .certificates
                .iter()
                .map(server_pair)
                .collect::<Result<_, _>>()?;
            let mut trusted = Vec::new();
            for file in &tls.client_ca {
                trusted.extend(authorities(file)?);
            }
            Ok::<_, FileError>((pairs, trusted))
        };
        all.iter().map(read).collect::<Result<Vec<_>, _>>()
    });
    let from_files = match from_files.await {
        Ok(read) => read?,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Not run at all: the runtime is going down, and nobody will see this.
            Err(_) => return Err(rustls::Error::General("the program is ending".into()).into()),
        },
    };
    let mut seen = Seen {
        stamps,
        renew_after_us: i64::MAX,
        ..Seen::default()
    };
    let own = match names.is_empty() {
        true => None,
        false => {
            let certificate = fleet.issue_server_certificate(names).await?;
            seen.renew_after_us = certificate.renew_after_us;
            Some(fleet_pair(certificate)?)
        }
    };
    let mut configs = Vec::with_capacity(listeners.len());
    for ((name, tls, auth), (mut pairs, mut trusted)) in listeners.iter().zip(from_files) {
        if tls.shows_fleet_certificate() {
            pairs.extend(own.clone());
        }
        if let Some(end) = pairs.iter().map(|pair| pair.not_after_us).min() {
            seen.ends.push((name.clone(), end));
        }
        for authority in &trusted {
            if !seen.authorities.contains(authority) {
                seen.authorities.push(authority.clone());
            }
        }
        trusted.push(fleet.ca().cert_der().clone());
        configs.push(server_config(pairs, &trusted, *auth, tls.minimum)?);
    }
    Ok(Reading { configs, seen })
}

/// What clients may call this server: what the operator named, and what this machine is to itself.
fn server_names(bind: SocketAddr, names: &[String]) -> Vec<String> {
    let mut all = names.to_vec();
    all.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    if !bind.ip().is_unspecified() {
        all.push(bind.ip().to_string());
    }
    all
}
