//! Sockets, threads, TLS and the clock around [`crate::machine`].
//!
//! One acceptor thread takes connections from all listeners and hands them to the workers in turn
//! ([`acceptor`]). Each worker is a thread with a single-threaded runtime and one shard
//! ([`worker`]). Once a client is known, its connection moves to the worker on which its session lives and
//! stays there, so everything it touches per message is touched by one thread. Each connection is one
//! small task ([`link`]); those of whoever is not served yet, or not any more, have [`turns`].
//!
//! What comes before MQTT on a connection, if anything does, is the way through [`entrance`]: the header of a
//! proxy ([`proxied`]), TLS ([`handshake`]), and on a shared port the choice between MQTT and HTTP, which goes
//! to a service of the program around us ([`web`]). A [`door`] says which of these a listener has.

pub(crate) mod acceptor;
pub(crate) mod broker;
pub(crate) mod clock;
mod discard;
pub(crate) mod door;
pub(crate) mod entrance;
pub(crate) mod handshake;
pub(crate) mod handshake_turns;
pub(crate) mod leftover;
pub(crate) mod link;
pub(crate) mod on_behalf;
pub(crate) mod operator;
pub(crate) mod partial;
pub(crate) mod patience;
pub(crate) mod proxied;
pub(crate) mod quic;
pub(crate) mod socket;
pub(crate) mod store;
pub(crate) mod turns;
pub(crate) mod visitor;
pub(crate) mod web;
pub(crate) mod websocket;
pub(crate) mod worker;

#[cfg(test)]
mod turns_stories;
#[cfg(test)]
mod websocket_stories;
