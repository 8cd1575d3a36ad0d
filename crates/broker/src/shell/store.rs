//! The journal behind the machine's store, and how it is read at the start.

use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use journal::{Batch, Condition, Event, Journal, Options, Position};

use super::broker::{StartError, Store, StoreConfig};
use super::clock::Clock;
use crate::hooks::Hooks;
use crate::limits::Limits;
use crate::machine;
use crate::machine::exchange::Exchange;
use crate::machine::mailbox::Mail;
use crate::machine::restore::Loading;
use crate::machine::shard::Shard;
use crate::machine::store::Forgetful;
use crate::recovery::Recovery;
use crate::stats::StoreStats;

/// Why a store could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreError(Box<dyn std::error::Error + Send + Sync>);

impl StoreError {
    fn new(source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
        StoreError(Box::new(source))
    }
}

/// A broker's state as it is at the start, before it has threads.
pub(crate) struct Loaded {
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) recovery: Recovery,
    pub(crate) journal: Option<Arc<Journal>>,
}

impl machine::store::Store for Journal {
    fn submit(&self, batch: Batch) -> Position {
        Journal::submit(self, batch)
    }

    fn durable(&self) -> Position {
        Journal::durable(self)
    }

    fn condition(&self) -> Condition {
        Journal::condition(self)
    }

    fn is_full(&self) -> bool {
        Journal::is_full(self)
    }
}

/// Opens the store and makes the machine with what is in it.
pub(crate) fn load(
    store: &Store,
    hooks: Arc<dyn Hooks>,
    limits: Limits,
    workers: usize,
    clock: Clock,
) -> Result<Loaded, StartError> {
    // So that nobody can choose client identifiers that all live on one worker.
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    let now = clock.now();
    match store {
        Store::Memory => {
            let store = Arc::new(Forgetful::default());
            let exchange = Exchange::new(hooks, limits, workers, now, seed, store);
            let exchange = Arc::new(exchange);
            let shards = (0..workers)
                .map(|number| Shard::new(number, Arc::clone(&exchange), now))
                .collect();
            Ok(Loaded {
                exchange,
                shards,
                recovery: Recovery::default(),
                journal: None,
            })
        }
        Store::Directory(config) => {
            let StoreConfig { dir, durability } = config;
            let failed = |source| StartError::Store {
                dir: dir.clone(),
                source,
            };
            let options = Options {
                durability: *durability,
                ..Options::default()
            };
            open(dir, options, hooks, limits, workers, clock, seed).map_err(failed)
        }
    }
}

fn open(
    dir: &Path,
    options: Options,
    hooks: Arc<dyn Hooks>,
    limits: Limits,
    workers: usize,
    clock: Clock,
    seed: u64,
) -> Result<Loaded, StoreError> {
    let start = Instant::now();
    // The journal is there before those who wait for it. Weakly: they own the journal.
    let listener: Arc<OnceLock<Weak<Exchange>>> = Arc::default();
    let told = Arc::clone(&listener);
    let (journal, recovered) = Journal::open(dir, options, move |event| {
        if let Some(exchange) = told.get().and_then(Weak::upgrade) {
            tell(&exchange, event);
        }
    })
    .map_err(StoreError::new)?;
    let journal = Arc::new(journal);
    let store: Arc<dyn machine::store::Store> = Arc::clone(&journal) as _;
    let now = clock.now();
    let exchange = Arc::new(Exchange::new(hooks, limits, workers, now, seed, store));
    let _ = listener.set(Arc::downgrade(&exchange));
    let (torn_bytes, disk_bytes) = {
        let report = recovered.report();
        let torn = report.torn_tail.as_ref();
        (torn.map_or(0, |torn| torn.bytes), report.bytes)
    };
    let mut loading = Loading::new(&exchange, now);
    let mut unreadable = None;
    recovered
        .for_each(|id, bytes| {
            if unreadable.is_none() {
                unreadable = loading.take(id, bytes).err();
            }
        })
        .map_err(StoreError::new)?;
    if let Some(error) = unreadable {
        return Err(StoreError::new(error));
    }
    let (shards, mut recovery) = loading.finish().map_err(StoreError::new)?;
    exchange.keep_sequence();
    recovery.torn_bytes = torn_bytes;
    recovery.disk_bytes = disk_bytes;
    recovery.took = start.elapsed();
    Ok(Loaded {
        exchange,
        shards,
        recovery,
        journal: Some(journal),
    })
}

/// Passes on what the journal says.
fn tell(exchange: &Exchange, event: Event) {
    match event {
        Event::Durable(position) => exchange.post_to_all(|| Mail::Stored(position)),
        Event::Stalled(error) => {
            tracing::error!(
                event = "store.stalled",
                %error,
                "messages for stored sessions are refused until it can write again"
            );
            exchange.post_to_all(|| Mail::Stalled);
        }
        Event::Resumed => tracing::info!(event = "store.resumed"),
    }
}

/// The journal as it is now.
pub(crate) fn stats(journal: &Journal) -> StoreStats {
    let stats = journal.stats();
    StoreStats {
        live_records: stats.live_records,
        live_bytes: stats.live_bytes,
        disk_bytes: stats.disk_bytes,
        pending_bytes: stats.pending_bytes,
        syncs: stats.syncs,
        stalled: u64::from(journal.condition() == Condition::Stalled),
    }
}
