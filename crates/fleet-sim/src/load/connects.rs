//! Connects: clients that come and go, for what a connection costs.
//!
//! ```text
//! connect ─► CONNACK ─► DISCONNECT ─► the server closes ─► again, until the time is over
//! ```
//! Each client is one task that never has two connections. It waits for the server to close, so that the
//! ports that TCP keeps from use for a minute afterwards are the server's one, and not all of ours.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use mqtt::{Disconnect, ReasonCode, Version};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, timeout};

use super::{Identities, LoadError, Resumption, TROUBLES_KEPT, in_words, transports};
use crate::client::connection::{Accepted, handshake};
use crate::client::{Address, ClientError, ClientOptions};
use crate::histogram::Histogram;
use crate::open_files::allow_open_files;

/// For CONNACK, and for the server to close.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a failure, so that a server that refuses is not asked ten thousand times a second.
const PAUSE: Duration = Duration::from_millis(100);

/// Who comes and goes, and where.
#[derive(Debug, Clone)]
pub struct Connects {
    /// Where, and over what.
    pub address: Address,
    /// Who: one task each. Those without a certificate take a new client id every time.
    pub identities: Identities,
    /// Full handshakes, or resumed ones after the first.
    pub resumption: Resumption,
    /// How long.
    pub duration: Duration,
    /// Threads.
    pub threads: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct ConnectsReport {
    /// Connections the server accepted.
    pub connects: u64,
    /// Of these, with a TLS handshake that was resumed. QUIC does not tell.
    pub resumed: u64,
    /// Connections that were not made, or refused.
    pub failed: u64,
    /// From the first to the last.
    pub elapsed: Duration,
    /// From the first packet to CONNACK.
    pub latency: Histogram,
    /// Why connections failed, the first few.
    pub troubles: Vec<String>,
}

impl ConnectsReport {
    /// Connections per second.
    pub fn rate(&self) -> f64 {
        self.connects as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn merge(&mut self, other: Self) {
        self.connects += other.connects;
        self.resumed += other.resumed;
        self.failed += other.failed;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.merge(&other.latency);
        for trouble in other.troubles {
            self.trouble(trouble);
        }
    }

    fn trouble(&mut self, trouble: String) {
        if self.troubles.len() < TROUBLES_KEPT && !self.troubles.contains(&trouble) {
            self.troubles.push(trouble);
        }
    }
}

/// Comes and goes until the time is over. Blocks: call it outside of an async runtime. `begin` is
/// called when the counted connections begin: with [`Resumption::Yes`] after each client's first.
///
/// # Errors
/// [`LoadError`]; connections that fail are in the report.
pub fn run(
    connects: &Connects,
    begin: impl Fn() + Send + Sync + 'static,
) -> Result<ConnectsReport, LoadError> {
    let count = connects.identities.count();
    if count == 0 {
        return Err(LoadError::Options {
            problem: "0 clients never connect; ask for at least 1".into(),
        });
    }
    allow_open_files(count)?;
    let threads = connects.threads.clamp(1, count);
    let transports = transports(
        &connects.address,
        &connects.identities,
        connects.resumption,
        threads,
    )?;
    let mut shares = vec![Vec::new(); threads];
    for (index, transport) in transports.into_iter().enumerate() {
        let (client_id, _) = connects.identities.names(index);
        let server = connects.address.server.clone();
        let options = ClientOptions {
            keep_alive: Duration::ZERO,
            connect_timeout: PATIENCE,
            ..ClientOptions::new(server, transport, client_id)
        };
        shares[index % threads].push(options);
    }
    // Counted down, and not waited for: a thread that fails leaves nobody hanging.
    let starting = Arc::new(AtomicUsize::new(threads));
    let begin = Arc::new(begin);
    std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| {
                let (starting, begin) = (Arc::clone(&starting), Arc::clone(&begin));
                std::thread::Builder::new()
                    .name("connects".into())
                    .spawn_scoped(scope, move || {
                        worker(connects, share, || {
                            if starting.fetch_sub(1, Ordering::Relaxed) == 1 {
                                begin();
                            }
                        })
                    })
                    .map_err(LoadError::Thread)
            })
            .collect::<Result<_, _>>()?;
        let mut report = ConnectsReport::default();
        for worker in workers {
            match worker.join() {
                Ok(part) => report.merge(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(report)
    })
}

/// The clients of one thread.
fn worker(
    connects: &Connects,
    clients: Vec<ClientOptions>,
    begin: impl FnOnce(),
) -> Result<ConnectsReport, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LoadError::Thread)?;
    let rename = !matches!(connects.identities, Identities::Provisioned(_));
    LocalSet::new().block_on(&runtime, async {
        let clients: Rc<[ClientOptions]> = clients.into();
        let mut report = ConnectsReport::default();
        if connects.resumption == Resumption::Yes {
            let mut first = JoinSet::new();
            for index in 0..clients.len() {
                let clients = Rc::clone(&clients);
                first.spawn_local(async move { once(&clients[index]).await.err() });
            }
            while let Some(error) = first.join_next().await {
                if let Some(error) = joined(error) {
                    report.failed += 1;
                    report.trouble(in_words(&error));
                }
            }
        }
        begin();
        let begin = Instant::now();
        let end = begin + connects.duration;
        let mut tasks = JoinSet::new();
        for index in 0..clients.len() {
            let mut client = clients[index].clone();
            let id = rename.then(|| client.client_id.clone());
            tasks.spawn_local(async move {
                let mut part = ConnectsReport::default();
                for number in 0_u64.. {
                    if Instant::now() >= end {
                        break;
                    }
                    if let Some(id) = &id {
                        client.client_id = format!("{id}-{number}");
                    }
                    match once(&client).await {
                        Ok(visit) => {
                            part.connects += 1;
                            part.resumed += u64::from(visit.resumed);
                            part.latency.add(visit.connecting);
                            part.elapsed = begin.elapsed();
                        }
                        Err(error) => {
                            part.failed += 1;
                            part.trouble(in_words(&error));
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
                part
            });
        }
        while let Some(part) = tasks.join_next().await {
            report.merge(joined(part));
        }
        Ok(report)
    })
}

fn joined<T>(task: Result<T, tokio::task::JoinError>) -> T {
    match task {
        Ok(part) => part,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

struct Visit {
    connecting: Duration,
    resumed: bool,
}

/// Connects and leaves.
async fn once(options: &ClientOptions) -> Result<Visit, ClientError> {
    let begin = Instant::now();
    let accepted = match timeout(PATIENCE, Box::pin(handshake(options))).await {
        Ok(accepted) => accepted?,
        Err(_) => {
            return Err(ClientError::TimedOut {
                what: "connection",
                after: PATIENCE,
            });
        }
    };
    let visit = Visit {
        connecting: begin.elapsed(),
        resumed: accepted.handshake == Some(HandshakeKind::Resumed),
    };
    leave(accepted, options.version).await;
    Ok(visit)
}

/// Says DISCONNECT and waits for the server to close. That is courtesy: failing at it changes nothing.
async fn leave(accepted: Accepted, version: Version) {
    let Accepted {
        mut wire,
        mut inbox,
        ..
    } = accepted;
    let mut out = BytesMut::new();
    let goodbye = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
    if mqtt::encode(&goodbye.into(), version, &mut out).is_err() {
        return;
    }
    let said = async {
        wire.write_all(&out).await?;
        wire.flush().await?;
        while wire.read_buf(&mut inbox).await? > 0 {
            inbox.clear();
        }
        std::io::Result::Ok(())
    };
    let _ = timeout(PATIENCE, said).await;
}
