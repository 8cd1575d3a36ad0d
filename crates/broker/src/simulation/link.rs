//! A connection between a client and the broker: bytes under way in both directions, and the broker's
//! end of it.
//!
//! Nothing is reordered, everything may wait, and when the connection breaks what is under way is
//! lost from any byte on. Each side learns of the end on its own.

use bytes::BytesMut;
use mqtt::{Decoder, Version};

use super::dice::Dice;
use crate::machine::departure::Departure;
use crate::machine::slots::ConnectionId;

/// Bytes under way to a client at which the broker's socket counts as full.
const SOCKET: usize = 2_000;

pub(super) struct Link {
    pub(super) client: usize,
    pub(super) conn: usize,
    pub(super) end: BrokerEnd,
    /// Under way to the broker, and arrived there but not taken in.
    pub(super) up: BytesMut,
    pub(super) inbox: BytesMut,
    pub(super) decoder: Decoder,
    /// Under way to the client.
    pub(super) down: BytesMut,
    /// Reads along what the broker writes.
    pub(super) watch: Decoder,
    pub(super) watched: BytesMut,
    /// When the first byte of the incomplete packet in `watched` was written.
    pub(super) begun: u64,
    /// The client is not there any more.
    pub(super) client_gone: bool,
    /// The broker will learn of the client's end behind what is in `up`.
    pub(super) closes: bool,
    /// The judge knows that the broker's side is over.
    pub(super) is_reported: bool,
}

pub(super) enum BrokerEnd {
    Here(ConnectionId),
    /// On its way to another shard.
    Moving(Departure),
    Gone,
}

impl Link {
    pub(super) fn new(
        client: usize,
        conn: usize,
        id: ConnectionId,
        version: Version,
        max: u32,
    ) -> Link {
        Link {
            client,
            conn,
            end: BrokerEnd::Here(id),
            up: BytesMut::new(),
            inbox: BytesMut::new(),
            decoder: Decoder::for_server(max),
            down: BytesMut::new(),
            watch: Decoder::for_client(version, u32::MAX),
            watched: BytesMut::new(),
            begun: 0,
            client_gone: false,
            closes: false,
            is_reported: false,
        }
    }

    pub(super) fn id(&self) -> Option<ConnectionId> {
        match self.end {
            BrokerEnd::Here(id) => Some(id),
            BrokerEnd::Moving(_) | BrokerEnd::Gone => None,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.end, BrokerEnd::Gone)
    }

    /// What the broker's socket takes now.
    pub(super) fn room(&self) -> usize {
        match self.client_gone {
            // Half open: the network takes it and loses it.
            true => SOCKET,
            false => SOCKET.saturating_sub(self.down.len()),
        }
    }

    /// The client closes, or dies: of what it has said some still arrives, and the broker may learn
    /// of it soon or much later.
    pub(super) fn abandon(&mut self, dice: &mut Dice, half_open: u32) {
        self.client_gone = true;
        self.down.clear();
        self.up.truncate(dice.between(0, self.up.len()));
        self.closes = !dice.chance(half_open);
    }

    /// The broker's side is over; of what it has said some still arrives.
    pub(super) fn cut(&mut self, dice: &mut Dice) {
        self.end = BrokerEnd::Gone;
        self.up.clear();
        self.inbox.clear();
        self.down.truncate(dice.between(0, self.down.len()));
    }

    /// The broker closed in good order: everything it has said arrives.
    pub(super) fn close(&mut self) {
        self.end = BrokerEnd::Gone;
        self.up.clear();
        self.inbox.clear();
    }
}
