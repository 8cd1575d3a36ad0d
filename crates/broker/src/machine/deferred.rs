//! What waits for the store before it may be said, and what it holds in memory meanwhile.
//!
//! Usually that is one group commit. While the disk is full it lasts, and whoever goes on asking would have
//! us keep an answer each time. So all of it is counted: answers of the broker's own size by the shard, over
//! all its connections and for each of them; what is asked for with SUBSCRIBE by its text, of which no more is
//! kept than the answer needs; acknowledgements of PUBLISH by their session ([`owed`](super::owed)). All of it
//! is in [`Limits::max_session_memory`], and who has answers waiting when that is used up is not read from
//! until they are said ([`Shard::appetite`](super::shard::Shard::appetite)).
//!
//! [`Limits::max_session_memory`]: crate::Limits::max_session_memory

use std::mem::size_of;

use mqtt::{Packet, PacketId, PubComp, PubRel, ReasonCode, SubAck, UnsubAck};

use super::Receipt;
use super::inspecting::Reply;
use super::slots::{ConnectionId, SessionId};
use crate::clients::Purged;

/// What waits for a batch to be in the store.
#[derive(Debug)]
pub(crate) enum Deferred {
    /// A message of this session is stored.
    Decide(SessionId, Receipt, ReasonCode),
    /// The client may know this.
    Send(ConnectionId, Answer),
    /// The client may know what became of what it asked for, and gets retained messages for its new
    /// subscriptions.
    Subscribed(ConnectionId, Box<Subscribed>),
    /// The same for what it wants to end.
    Unsubscribed(ConnectionId, Box<Unsubscribed>),
    /// The session is as it must be; CONNACK may be sent.
    Admit(ConnectionId),
    /// An operator may know that a session is gone.
    Purged(Reply<Option<Purged>>, Option<Purged>),
}

/// A step of a QoS 2 exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// PUBREL.
    Release(PacketId),
    /// PUBCOMP.
    Complete(PacketId),
}

impl From<Answer> for Packet {
    fn from(answer: Answer) -> Packet {
        match answer {
            Answer::Release(id) => PubRel::success(id).into(),
            Answer::Complete(id) => PubComp::success(id).into(),
        }
    }
}

/// What became of a SUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Subscribed {
    /// What was granted, as the client sent it.
    pub(crate) granted: Vec<Box<str>>,
    pub(crate) answer: SubAck,
}

/// What became of an UNSUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Unsubscribed {
    /// What has ended, as the client sent it.
    pub(crate) ended: Vec<Box<str>>,
    pub(crate) answer: UnsubAck,
}

/// Bytes of a step that waits, in a list that may have twice the room it uses.
const STEP: usize = 2 * size_of::<Deferred>();

/// Bytes of a filter beside its text: its place in the list, its block.
const FILTER: usize = size_of::<Box<str>>() + 16;

/// Bytes of what a message holds that is not acknowledged: the wait for the store. See
/// [`owed`](super::owed) for the rest.
pub(crate) const DECISION: usize = STEP;

/// Bytes that the answers to one connection may hold. It is not read from beyond that.
pub(crate) const MAX_ANSWERS: usize = 64 * 1024;

/// Bytes that the answer to a SUBSCRIBE or UNSUBSCRIBE of `asked` filters holds, if `kept` of them are kept
/// with `text` bytes in all.
pub(crate) fn of_filters(asked: usize, kept: usize, text: usize) -> usize {
    STEP + size_of::<Subscribed>().max(size_of::<Unsubscribed>()) + asked + kept * FILTER + text
}

fn of_kept(asked: usize, kept: &[Box<str>]) -> usize {
    let text = kept.iter().map(|filter| filter.len()).sum();
    of_filters(asked, kept.len(), text)
}

impl Deferred {
    /// The connection that it is an answer to, and how many bytes it holds.
    pub(crate) fn answer(&self) -> Option<(ConnectionId, usize)> {
        match self {
            Deferred::Send(id, _) => Some((*id, STEP)),
            Deferred::Subscribed(id, it) => {
                Some((*id, of_kept(it.answer.reasons.len(), &it.granted)))
            }
            Deferred::Unsubscribed(id, it) => {
                Some((*id, of_kept(it.answer.reasons.len(), &it.ended)))
            }
            // Of a session; of a connection that has no answer yet; of an operator, who has few.
            Deferred::Decide(..) | Deferred::Admit(_) | Deferred::Purged(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every acknowledged message and every step of QoS 2 passes through one.
    #[test]
    fn what_waits_is_small() {
        assert!(size_of::<Deferred>() <= 48, "{}", size_of::<Deferred>());
    }
}
