//! The broker without sockets, clock or dice.
//!
//! Everything the broker decides is decided here: what a packet means ([`connection`]), who gets a
//! message ([`filter_index`], [`share`]), what waits for a client and what it is owed ([`session`]), what
//! is kept ([`format`], [`store`]) and what that was before the last start ([`restore`]). [`shard`] ties
//! them together for the sessions of one worker; [`exchange`] is what all shards share.
//!
//! The shell around it (`crate::shell`) hands in packets, mail and the time, and carries bytes out.
//! So a test, or a simulation of many shards, drives the same code that serves sockets. A test in
//! `tests/boundaries.rs` keeps IO and clocks out.

pub(crate) mod admitting;
pub(crate) mod age;
pub(crate) mod alias;
mod announcing;
pub(crate) mod charging;
#[cfg(test)]
mod clock_stories;
pub(crate) mod connection;
pub(crate) mod deferred;
pub(crate) mod delivery;
pub(crate) mod departed;
pub(crate) mod departure;
mod description;
pub(crate) mod exchange;
pub(crate) mod fanout;
pub(crate) mod filter_index;
pub(crate) mod filters;
pub(crate) mod flights;
pub(crate) mod format;
pub(crate) mod frame;
#[cfg(test)]
mod fuzz_stories;
pub(crate) mod gauge;
mod inbound_aliases;
pub(crate) mod inspecting;
mod joining;
mod leaving;
pub(crate) mod mailbox;
pub(crate) mod message;
pub(crate) mod outbox;
pub(crate) mod owed;
mod planted;
pub(crate) mod principals;
mod publishing;
pub(crate) mod registry;
pub(crate) mod restore;
pub(crate) mod retained;
pub(crate) mod sequence;
pub(crate) mod session;
mod session_memory;
pub(crate) mod shard;
pub(crate) mod share;
pub(crate) mod slots;
pub(crate) mod store;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod stories_operator;
#[cfg(test)]
mod stories_stalled;
#[cfg(test)]
mod stories_unconnected;
pub(crate) mod subscriber;
mod subscribing;
pub(crate) mod tenants;
pub(crate) mod timers;
pub(crate) mod tracer;
pub(crate) mod walks;
pub(crate) mod will;
#[cfg(test)]
mod world;

/// The time, as told by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Milliseconds since the broker started; never goes back.
    pub(crate) tick: u64,
    /// Wall clock, microseconds since the Unix epoch; for records, never for decisions.
    pub(crate) wall_us: i64,
}

/// Number of a QoS 1 or 2 message received in a session, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Receipt(pub(crate) u64);

impl Receipt {
    /// Of a message that nobody waits for: QoS 0, or a will.
    pub(crate) const NONE: Receipt = Receipt(0);
}
