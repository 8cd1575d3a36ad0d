//! The broker without sockets, clock or dice.
//!
//! Everything the broker decides is decided here: what a packet means ([`connection`]), who gets a
//! message ([`filter_index`]), what a receiver's queue does when it is full ([`outbox`]), which of
//! two connections keeps a client identifier ([`registry`]). [`shard`] ties them together for the
//! connections of one worker; [`exchange`] is what all shards share.
//!
//! The shell around it (`crate::shell`) hands in packets, mail and the time, and carries bytes out.
//! So a test, or a simulation of many shards, drives the same code that serves sockets. A test in
//! `tests/boundaries.rs` keeps IO and clocks out.

pub(crate) mod connection;
pub(crate) mod exchange;
pub(crate) mod fanout;
pub(crate) mod filter_index;
pub(crate) mod frame;
pub(crate) mod mailbox;
pub(crate) mod outbox;
pub(crate) mod owed;
pub(crate) mod registry;
pub(crate) mod shard;
#[cfg(test)]
mod stories;
pub(crate) mod subscriber;
pub(crate) mod tenants;
pub(crate) mod timers;
pub(crate) mod will;
#[cfg(test)]
mod world;

use std::fmt;

/// The time, as told by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Milliseconds since the broker started; never goes back.
    pub(crate) tick: u64,
    /// Wall clock, microseconds since the Unix epoch; for records, never for decisions.
    pub(crate) wall_us: i64,
}

/// A connection: its shard, its slot there, and which of the slot's tenants it is, so that mail for
/// one that has gone never reaches its successor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId {
    /// Shard in the upper 8 bits, slot in the lower 24.
    place: u32,
    tenancy: u32,
}

impl ConnectionId {
    /// Most shards there can be.
    pub(crate) const MAX_SHARDS: usize = 1 << 8;
    /// Most connections one shard can hold.
    pub(crate) const MAX_SLOTS: usize = 1 << 24;

    pub(crate) fn new(shard: usize, slot: u32, tenancy: u32) -> ConnectionId {
        debug_assert!(shard < Self::MAX_SHARDS && (slot as usize) < Self::MAX_SLOTS);
        ConnectionId {
            place: (shard as u32) << 24 | slot,
            tenancy,
        }
    }

    pub(crate) fn shard(self) -> usize {
        (self.place >> 24) as usize
    }

    pub(crate) fn slot(self) -> u32 {
        self.place & 0x00FF_FFFF
    }

    pub(crate) fn tenancy(self) -> u32 {
        self.tenancy
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.shard(), self.slot(), self.tenancy)
    }
}

/// Number of a QoS 1 message received on a connection, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Receipt(pub(crate) u64);

impl Receipt {
    /// Of a message that nobody waits for: QoS 0, or a will.
    pub(crate) const NONE: Receipt = Receipt(0);
}
