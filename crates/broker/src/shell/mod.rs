//! Sockets, threads, TLS and the clock around [`crate::machine`].
//!
//! One acceptor thread takes connections from all listeners and hands them to the workers in turn
//! ([`acceptor`]). Each worker is a thread with a single-threaded runtime and one shard
//! ([`worker`]). Once a client is known, its connection moves to the worker on which its session lives and
//! stays there, so everything it touches per message is touched by one thread. Each connection is one small task ([`link`]).

pub(crate) mod acceptor;
pub(crate) mod broker;
pub(crate) mod clock;
pub(crate) mod link;
pub(crate) mod on_behalf;
pub(crate) mod socket;
pub(crate) mod store;
pub(crate) mod worker;
