//! One life of the broker: from a start, with what the store had, to a crash.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use journal::{Batch, Condition, Position, RecordId};

use super::faults::Fault;
use super::invariants::{Invariant, Verdict, demand};
use super::outside::Outside;
use super::plan::Plan;
use super::store::SimStore;
use crate::limits::Limits;
use crate::machine::Moment;
use crate::machine::departure::Departure;
use crate::machine::exchange::Exchange;
use crate::machine::mailbox::Mail;
use crate::machine::restore::Loading;
use crate::machine::shard::Shard;
use crate::machine::slots::ConnectionId;
use crate::machine::store::Store;
use crate::machine::tenants::Origin;
use crate::transport::Protocol;

pub(super) struct Life {
    pub(super) exchange: Arc<Exchange>,
    pub(super) shards: Vec<Shard>,
    /// Taken out of the mailboxes, not worked through.
    mail: Vec<VecDeque<Mail>>,
}

impl Store for SimStore {
    fn submit(&self, batch: Batch) -> Position {
        Position::new(self.append(&batch) as u64)
    }

    fn durable(&self) -> Position {
        Position::new(self.durable_batches() as u64)
    }

    fn condition(&self) -> Condition {
        match self.is_stalled() {
            true => Condition::Stalled,
            false => Condition::Ready,
        }
    }
}

impl Life {
    /// Starts the broker with what the store had.
    pub(super) fn begin(
        plan: &Plan,
        outside: &Arc<Outside>,
        store: &Arc<SimStore>,
        records: Vec<(RecordId, Bytes)>,
        now: Moment,
        fault: Option<Fault>,
    ) -> Life {
        let mut exchange = Exchange::new(
            Arc::clone(outside) as _,
            plan.limits.clone(),
            plan.shards,
            now,
            plan.hash_seed,
            Arc::clone(store) as _,
        );
        exchange.fault = fault;
        // Sessions here have few subscriptions, and are to go in pieces all the same.
        exchange.departed_per_turn = 1;
        let exchange = Arc::new(exchange);
        let mut loading = Loading::new(&exchange, now);
        for (id, value) in &records {
            loading
                .take(*id, value)
                .expect("the broker reads what it wrote");
        }
        let (shards, _) = loading.finish().expect("what fitted before fits again");
        Life {
            mail: (0..plan.shards).map(|_| VecDeque::new()).collect(),
            exchange,
            shards,
        }
    }

    pub(super) fn open(&mut self, shard: usize, now: Moment) -> Option<ConnectionId> {
        let origin = Origin {
            listener: "simulated".into(),
            peer: ([192, 0, 2, 1], 4711).into(),
            protocol: Protocol::Mqtt,
            certificates: Vec::new(),
            proxied: None,
        };
        self.shards[shard].set_time(now);
        self.shards[shard].open(origin)
    }

    pub(super) fn arrive(&mut self, departure: Departure, now: Moment) -> Option<ConnectionId> {
        let shard = &mut self.shards[departure.to()];
        shard.set_time(now);
        let id = shard.arrive(departure);
        shard.settle();
        id
    }

    /// Whether connections of a shard must wait before they are read from.
    pub(super) fn is_held_up(&self, shard: usize) -> bool {
        self.shards[shard].is_pressed() || self.exchange.is_congested()
    }

    /// Lets a shard work through its mail.
    pub(super) fn mail(&mut self, shard: usize, now: Moment) {
        self.fetch(shard);
        self.shards[shard].set_time(now);
        self.shards[shard].mail(&mut self.mail[shard]);
        self.shards[shard].settle();
    }

    fn fetch(&mut self, shard: usize) {
        let mut new = VecDeque::new();
        self.exchange.mailbox(shard).take(&mut new, Waker::noop());
        self.mail[shard].append(&mut new);
    }

    pub(super) fn has_mail(&mut self, shard: usize) -> bool {
        self.fetch(shard);
        !self.mail[shard].is_empty()
    }

    /// Whether no mail is under way.
    pub(super) fn is_quiet(&mut self) -> bool {
        (0..self.shards.len()).all(|shard| !self.has_mail(shard))
    }

    pub(super) fn turn(&mut self, shard: usize, now: Moment) {
        self.shards[shard].set_time(now);
        self.shards[shard].turn();
        self.shards[shard].settle();
    }

    /// The store has the first `batches` of this life.
    pub(super) fn stored(&self, batches: usize) {
        let position = Position::new(batches as u64);
        self.exchange.post_to_all(|| Mail::Stored(position));
    }

    /// Messages that full queues dropped, as the broker counts.
    pub(super) fn counted_losses(&self) -> u64 {
        let stats = self.exchange.stats();
        stats.dropped_refused_new
            + stats.dropped_oldest
            + stats.dropped_low_priority
            + stats.dropped_queue_full
            + stats.slow_consumers
    }

    /// No queue is fuller than it may be.
    pub(super) fn check_bounds(&mut self, limits: &Limits) -> Verdict {
        for shard in &mut self.shards {
            for session in shard.inspect() {
                let fits = session.waiting <= limits.max_queued
                    && session.waiting_bytes <= limits.max_queued_bytes;
                demand(fits, Invariant::QueueBoundsHeld, || format!("{session:?}"))?;
            }
        }
        Ok(())
    }

    /// When nothing is under way, the gauges count what is queued and in flight.
    pub(super) fn check_gauges(&mut self) -> Verdict {
        for shard in &mut self.shards {
            for session in shard.inspect() {
                let holds = session.waiting + session.in_flight;
                let is_counted =
                    session.gauge_messages <= holds && session.waiting <= session.gauge_messages;
                demand(is_counted, Invariant::QueueBoundsHeld, || {
                    format!("the gauge is wrong at rest: {session:?}")
                })?;
            }
        }
        Ok(())
    }

    /// Nothing is left of sessions and messages, in memory and in the store.
    pub(super) fn is_empty(&self, store: &SimStore) -> Verdict {
        let stats = self.exchange.stats();
        let left = [
            ("connections", stats.connections),
            ("sessions", stats.sessions),
            ("stored sessions", stats.sessions_stored),
            ("subscriptions", stats.subscriptions),
            ("retained messages", stats.retained),
            ("retained bytes", stats.retained_bytes),
            ("messages kept", stats.messages_kept),
            ("bytes of messages kept", stats.messages_kept_bytes),
            ("records", store.records().len() as u64),
        ];
        for (what, count) in left {
            demand(count == 0, Invariant::NothingLeftBehind, || {
                format!("{count} {what} are left; records: {:?}", store.records())
            })?;
        }
        Ok(())
    }
}
