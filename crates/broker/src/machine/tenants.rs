//! The connections of a shard, each with all that belongs to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use mqtt::Connect;
use rustls::pki_types::CertificateDer;

use super::connection::Connection;
use super::outbox::Outbox;
use super::registry::Epoch;
use super::slots::{ConnectionId, SessionId, Slots};
use super::tracer::Tracer;
use crate::admission::Fingerprint;
use crate::admission::debts::Account;
use crate::admission::meter::Inbound;
use crate::hooks::{EnhancedAuthentication, Identity};
use crate::presence::Traffic;
use crate::proxy::Proxied;
use crate::transport::Protocol;

/// Where a connection comes from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) listener: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) peer: SocketAddr,
    /// Verified by TLS, leaf first; empty without TLS.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Of a connection through a proxy.
    pub(crate) proxied: Option<Box<Proxied>>,
}

impl Origin {
    /// Where the client is; `None` if only its proxy knows, and did not say.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match &self.proxied {
            Some(proxied) if proxied.proxy == self.peer => None,
            _ => Some(self.peer.ip()),
        }
    }
}

/// One connection with all that belongs to it. Some 500 bytes while idle, its session apart.
pub(crate) struct Tenant {
    pub(crate) connection: Connection,
    pub(crate) outbox: Outbox,
    pub(crate) origin: Origin,
    /// From CONNECT until its session is there; of one that is put off, no more than its name.
    pub(crate) joiner: Option<Box<Joiner>>,
    /// An enhanced authentication under way.
    pub(crate) authentication: Option<Box<dyn EnhancedAuthentication>>,
    /// Of its certificate, from CONNECT on.
    pub(crate) fingerprint: Option<Box<Fingerprint>>,
    /// Set while the session has this connection.
    pub(crate) session: Option<SessionId>,
    /// The client's Receive Maximum, as far as we use it.
    pub(crate) receive_maximum: u16,
    /// The tick at which the timers bring this connection up; older entries are stale.
    pub(crate) next_look: u64,
    /// Whom to tell that there is something to do. Kept, not taken: telling is by reference.
    pub(crate) waker: Option<Waker>,
    pub(crate) rest: Rest,
    /// There is something new since the task last looked, and it was not told: it is awake.
    pub(crate) news: News,
    pub(crate) pressure: Pressure,
    /// Whether its session may have retained messages to be looked up.
    pub(crate) walks: bool,
    /// Bytes of its answers that wait for the store.
    pub(crate) deferred: usize,
    /// A refused publish is logged once per connection, not once per message.
    pub(crate) denials: Denials,
    pub(crate) farewell: Farewell,
    /// [`Presence::connection`](crate::Presence::connection), from the moment it has a session.
    pub(crate) number: u64,
    /// When it was connected, wall clock.
    pub(crate) since_us: i64,
    pub(crate) start: Start,
    /// What went over it; messages sent are in the outbox.
    pub(crate) counted: Counted,
    /// What it has used of its client's rates in.
    pub(crate) inbound: Inbound,
    /// Where that goes when it ends; there once it has had a session, if clients have such rates.
    pub(crate) account: Option<Account>,
    /// Set while it is traced.
    pub(crate) tracer: Option<Box<Tracer>>,
}

/// What a connection read, and wrote.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted {
    pub(crate) messages_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// Whether a client asked to forget its earlier session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Clean,
    Resume,
}

/// A client between CONNECT and its session.
pub(crate) struct Joiner {
    pub(crate) connect: Box<Connect>,
    /// The client identifier we gave it, if it had none.
    pub(crate) assigned: Option<String>,
    /// Once it is known, and since when that holds.
    pub(crate) known: Option<(Identity, Epoch)>,
    /// The last word of an enhanced authentication.
    pub(crate) auth_data: Option<Bytes>,
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
    /// It has had as many messages as its rate allows: told of answers, not of messages.
    Throttled,
}

/// Whether a task that goes to rest must look again first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    None,
    Some,
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
            joiner: None,
            authentication: None,
            fingerprint: None,
            session: None,
            receive_maximum: 0,
            next_look: u64::MAX,
            waker: None,
            rest: Rest::Awake,
            news: News::None,
            pressure: Pressure::None,
            walks: false,
            deferred: 0,
            denials: Denials::Unseen,
            farewell: Farewell::Drop,
            number: 0,
            since_us: 0,
            start: Start::Clean,
            counted: Counted::default(),
            inbound: Inbound::default(),
            account: None,
            tracer: None,
        }
    }

    /// What went over it.
    pub(crate) fn traffic(&self) -> Traffic {
        let Counted {
            messages_in,
            bytes_in,
            bytes_out,
        } = self.counted;
        Traffic {
            messages_in,
            messages_out: self.outbox.sent(),
            bytes_in,
            bytes_out,
        }
    }

    /// There is more to send.
    pub(crate) fn wake_to_send(&mut self) {
        if self.rest != Rest::Blocked {
            self.wake();
        }
    }

    /// There is a message to send.
    pub(crate) fn wake_for_message(&mut self) {
        if self.rest != Rest::Throttled {
            self.wake_to_send();
        }
    }

    /// Something changed.
    pub(crate) fn wake(&mut self) {
        if self.rest == Rest::Awake {
            self.news = News::Some;
        } else {
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
    slots: Slots<Tenant>,
    /// Connections whose queue is full; closed when the batch ends.
    pub(crate) overflowed: Vec<ConnectionId>,
    /// Number of tenants that are [`Pressure::Pressing`].
    pub(crate) pressing: usize,
}

impl Tenants {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut Tenant> {
        self.slots.get(id)
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self, shard: usize) -> bool {
        self.slots.next_id::<Tenant>(shard).is_some()
    }

    pub(crate) fn insert(&mut self, shard: usize, tenant: Box<Tenant>) -> Option<ConnectionId> {
        self.slots.insert(shard, tenant)
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

    /// Others wait until the connection's task had its turn, unless that would not help.
    pub(crate) fn press(&mut self, id: ConnectionId) {
        if let Some(tenant) = self.slots.get(id)
            && tenant.pressure == Pressure::None
            && !matches!(tenant.rest, Rest::Blocked | Rest::Throttled)
        {
            tenant.pressure = Pressure::Pressing;
            self.pressing += 1;
        }
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Box<Tenant>> {
        self.relieve(id);
        self.slots.remove(id)
    }

    /// The ids of those in up to `count` slots from `from` on, and where to go on.
    pub(crate) fn some(
        &self,
        shard: usize,
        from: usize,
        count: usize,
    ) -> (Vec<ConnectionId>, Option<usize>) {
        self.slots.some(shard, from, count)
    }

    /// The ids of everyone here. Only for stopping.
    pub(crate) fn all(&self, shard: usize) -> Vec<ConnectionId> {
        self.slots.all(shard)
    }
}
