//! The connections of a shard, each with all that belongs to it, by slot.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use rustls::pki_types::CertificateDer;

use super::ConnectionId;
use super::connection::Connection;
use super::frame::Frame;
use super::outbox::{Offer, Outbox};
use crate::hooks::Identity;
use crate::limits::Limits;
use crate::stats::Counters;

/// Where a connection comes from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) listener: Arc<str>,
    pub(crate) peer: SocketAddr,
    /// Verified by TLS, leaf first; empty without TLS.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// One connection with all that belongs to it. Some 600 bytes while idle.
pub(crate) struct Tenant {
    pub(crate) connection: Connection,
    pub(crate) outbox: Outbox,
    pub(crate) origin: Origin,
    /// Set while registered.
    pub(crate) identity: Option<Identity>,
    pub(crate) subscriptions: HashSet<Arc<str>>,
    /// The tick at which the timers bring this connection up; older entries are stale.
    pub(crate) next_look: u64,
    /// Whom to tell that there is something to do. Kept, not taken: telling is by reference.
    pub(crate) waker: Option<Waker>,
    pub(crate) rest: Rest,
    pub(crate) pressure: Pressure,
    /// A refused publish is logged once per connection, not once per message.
    pub(crate) denials: Denials,
    pub(crate) farewell: Farewell,
}

/// Whether the connection's task waits, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It runs, or will in its turn.
    Awake,
    /// It has nothing to do.
    Asleep,
    /// Its socket is full: there is no use in telling it of more messages.
    Blocked,
}

/// Whether others wait for this connection's task to have its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    None,
    Pressing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denials {
    Unseen,
    Logged,
}

/// How the transport is to be closed once the connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// Nobody is there to be told.
    Drop,
    /// Send what is left, then close.
    Flush,
    /// Send what is left and give the client time to read it: closing while its bytes are still
    /// coming in would make TCP throw away what we said.
    Linger,
}

impl Tenant {
    pub(crate) fn new(connection: Connection, origin: Origin) -> Tenant {
        Tenant {
            connection,
            outbox: Outbox::new(),
            origin,
            identity: None,
            subscriptions: HashSet::new(),
            next_look: u64::MAX,
            waker: None,
            rest: Rest::Awake,
            pressure: Pressure::None,
            denials: Denials::Unseen,
            farewell: Farewell::Drop,
        }
    }

    /// There is more to send.
    pub(crate) fn wake_to_send(&mut self) {
        if self.rest != Rest::Blocked {
            self.wake();
        }
    }

    /// Something changed.
    pub(crate) fn wake(&mut self) {
        if self.rest != Rest::Awake {
            self.rest = Rest::Awake;
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
    }
}

/// The tenants by slot.
#[derive(Default)]
pub(crate) struct Tenants {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections whose queue is full; closed when the batch ends.
    pub(crate) overflowed: Vec<ConnectionId>,
    /// Number of tenants that are [`Pressure::Pressing`].
    pub(crate) pressing: usize,
}

#[derive(Default)]
struct Slot {
    tenancy: u32,
    tenant: Option<Box<Tenant>>,
}

impl Tenants {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut Tenant> {
        let slot = self.slots.get_mut(id.slot() as usize)?;
        if slot.tenancy != id.tenancy() {
            return None;
        }
        slot.tenant.as_deref_mut()
    }

    pub(crate) fn insert(&mut self, shard: usize, tenant: Tenant) -> Option<ConnectionId> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.slots.len() >= ConnectionId::MAX_SLOTS => return None,
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[number as usize];
        slot.tenancy = slot.tenancy.wrapping_add(1);
        slot.tenant = Some(Box::new(tenant));
        Some(ConnectionId::new(shard, number, slot.tenancy))
    }

    /// The connection's task had its turn.
    pub(crate) fn relieve(&mut self, id: ConnectionId) {
        if let Some(tenant) = self.get(id)
            && tenant.pressure == Pressure::Pressing
        {
            tenant.pressure = Pressure::None;
            self.pressing -= 1;
        }
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) {
        self.relieve(id);
        if self.get(id).is_some() {
            self.slots[id.slot() as usize].tenant = None;
            self.free.push(id.slot());
        }
    }

    /// The ids of everyone here. Only for stopping.
    pub(crate) fn all(&self, shard: usize) -> Vec<ConnectionId> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.tenant.is_some())
            .map(|(number, slot)| ConnectionId::new(shard, number, slot.tenancy))
            .collect()
    }

    /// Queues a message for a connection.
    pub(crate) fn offer(
        &mut self,
        to: ConnectionId,
        frame: &Frame,
        limits: &Limits,
        counters: &Counters,
    ) {
        let Some(tenant) = self.get(to) else {
            return;
        };
        if !tenant.connection.is_serving() {
            return;
        }
        match tenant.outbox.offer(frame, limits) {
            Offer::Queued => {
                tenant.wake_to_send();
                if tenant.pressure == Pressure::None
                    && tenant.rest != Rest::Blocked
                    && tenant.outbox.is_pressing(limits)
                {
                    tenant.pressure = Pressure::Pressing;
                    self.pressing += 1;
                }
            }
            Offer::Dropped => counters.dropped_queue_full.one(),
            Offer::TooLarge => counters.dropped_too_large.one(),
            Offer::Overflow => self.overflowed.push(to),
        }
    }
}
