//! What all shards share: subscriptions, the registry of clients, each other's mailboxes.
//!
//! Locks are held for a lookup or an insertion, never while hooks, encoding or delivery run. The
//! index is read by every message and written by SUBSCRIBE and the end of connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use mqtt::{Publish, QoS, ReasonCode};

use super::fanout::Fanout;
use super::filter_index::FilterIndex;
use super::mailbox::{Delivery, Mail, Mailbox};
use super::registry::Registry;
use super::{ConnectionId, Moment};
use crate::hooks::Hooks;
use crate::limits::Limits;
use crate::stats::{Counters, Stats};

/// The middle of the broker.
pub(crate) struct Exchange {
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) limits: Limits,
    pub(crate) index: RwLock<FilterIndex>,
    registry: Mutex<Registry>,
    /// One for each shard.
    mailboxes: Vec<Arc<Mailbox>>,
    /// One for each shard, and one for everybody else.
    counters: Vec<Arc<Counters>>,
    /// Makes assigned client identifiers differ from those of earlier runs.
    started_us: i64,
    assigned: AtomicU64,
}

impl Exchange {
    pub(crate) fn new(
        hooks: Arc<dyn Hooks>,
        limits: Limits,
        shards: usize,
        now: Moment,
    ) -> Exchange {
        Exchange {
            hooks,
            limits,
            index: RwLock::default(),
            registry: Mutex::default(),
            mailboxes: (0..shards).map(|_| Arc::default()).collect(),
            counters: (0..=shards).map(|_| Arc::default()).collect(),
            started_us: now.wall_us,
            assigned: AtomicU64::new(1),
        }
    }

    pub(crate) fn shards(&self) -> usize {
        self.mailboxes.len()
    }

    pub(crate) fn mailbox(&self, shard: usize) -> &Arc<Mailbox> {
        &self.mailboxes[shard]
    }

    pub(crate) fn counters(&self, shard: usize) -> &Arc<Counters> {
        &self.counters[shard]
    }

    /// Counters of what happens outside of the shards.
    pub(crate) fn outside_counters(&self) -> &Counters {
        &self.counters[self.mailboxes.len()]
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        // Its methods leave it consistent wherever they could panic.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, FilterIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends mail to the shard of a connection.
    pub(crate) fn post(&self, to: ConnectionId, mail: Mail) {
        self.mailboxes[to.shard()].post(mail);
    }

    pub(crate) fn post_to_all(&self, mail: impl Fn() -> Mail) {
        for mailbox in &self.mailboxes {
            mailbox.post(mail());
        }
    }

    /// Whether some shard is so far behind that publishers should pause.
    pub(crate) fn is_congested(&self) -> bool {
        self.mailboxes
            .iter()
            .any(|mailbox| mailbox.is_congested(self.limits.max_handover))
    }

    /// A client identifier for a client that left it to us [MQTT-3.1.3-6].
    pub(crate) fn assign_client_id(&self) -> String {
        let number = self.assigned.fetch_add(1, Ordering::Relaxed);
        format!("auto-{:x}-{number:x}", self.started_us)
    }

    /// See [`BrokerHandle::disconnect_principal`](crate::BrokerHandle::disconnect_principal).
    pub(crate) fn disconnect_principal(&self, principal: &str, reason: ReasonCode) -> usize {
        let connections = self.registry().of_principal(principal);
        for connection in &connections {
            self.post(*connection, Mail::Disconnect(*connection, reason));
        }
        connections.len()
    }

    /// See [`BrokerHandle::publish`](crate::BrokerHandle::publish).
    pub(crate) fn publish_from_outside(&self, message: &Publish, now: Moment) -> usize {
        let mut message = message.clone();
        message.retain = false;
        message.qos = message.qos.min(QoS::AtLeastOnce);
        let mut mail: Vec<Vec<Delivery>> = (0..self.shards()).map(|_| Vec::new()).collect();
        let delivered =
            Fanout::default().route(&self.index, &mut message, None, now, |to, frame| {
                mail[to.shard()].push(Delivery {
                    to,
                    frame: frame.clone(),
                });
            });
        for (mailbox, deliveries) in self.mailboxes.iter().zip(mail) {
            if !deliveries.is_empty() {
                mailbox.post(Mail::Deliver(deliveries));
            }
        }
        delivered
    }

    pub(crate) fn connections(&self) -> usize {
        self.registry().connections()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            connections: self.connections() as u64,
            subscriptions: self
                .index
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .len() as u64,
            ..Stats::default()
        };
        for counters in &self.counters {
            stats.add(counters);
        }
        stats
    }
}
