//! What other threads have for a shard: outcomes of the tap, deliveries from publishers on other
//! shards, word from the store, and orders (disconnect, check access, stop).
//!
//! Senders append to one list under a lock held for a few instructions; the shard swaps the list
//! for an empty one and works through it. It is woken when the list stops being empty, so once per
//! batch however many senders there are.
//!
//! Bound: outcomes are bounded by the messages in flight (`max_inflight` per connection); deliveries by `max_handover`, past which publishers are not read from
//! ([`Mailbox::is_congested`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use mqtt::ReasonCode;

use journal::Position;

use super::Receipt;
use super::admitting::Search;
use super::charging::Visit;
use super::delivery::Delivery;
use super::departed::Departed;
use super::exchange::Parked;
use super::format::Owner;
use super::inspecting::Inquiry;
use super::slots::SessionId;
use super::tracer::TraceOrder;

/// One item of mail.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A tapped message is durable, or will never be.
    Durable {
        session: SessionId,
        receipt: Receipt,
        outcome: Result<(), ReasonCode>,
    },
    /// Messages for sessions of this shard.
    Deliver(Vec<Post>),
    /// The rest of them.
    DeliverRest(std::vec::IntoIter<Post>),
    /// Deliveries that the store has, to wait in their shares.
    Park(Vec<Parked>),
    /// A publisher found the queue of a session full.
    QueueFull(SessionId),
    /// The store has everything up to here.
    Stored(Position),
    /// The store can write nothing at present.
    Stalled,
    /// For all sessions of a principal, or of all of them.
    Principal(Option<Arc<str>>, Order),
    /// Something an operator wants. How many there are at once is bounded by whoever asks.
    Inquiry(Inquiry),
    /// Somebody without a connection wants to publish. As many at once as there are HTTP connections.
    Visit(Visit),
    /// A trace begins or ends.
    Trace(TraceOrder),
    /// Bans came into force.
    Ban(Search),
    /// What a session that is gone has in the index.
    Departed(Departed),
    /// From the shard to itself: it has messages for others, and its ready tasks have had their turn.
    HandOver,
    /// Close all connections once their owed answers are out.
    Drain,
    /// Close all connections now.
    Stop,
}

/// What is to happen to the sessions of a principal.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// Close its connections for this reason.
    Disconnect(ReasonCode),
    /// What it may do has changed.
    CheckAccess,
}

/// One message on its way to one session.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) to: SessionId,
    /// Whose it is in the store.
    pub(crate) owner: Owner,
    pub(crate) delivery: Delivery,
}

/// A list of mail and whom to wake for it.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    /// Deliveries posted and not yet handled.
    deliveries: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    mail: VecDeque<Mail>,
    waker: Option<Waker>,
}

impl Mailbox {
    /// Appends one item and wakes the shard if it has nothing else to do.
    pub(crate) fn post(&self, mail: Mail) {
        if let Mail::Deliver(deliveries) = &mail {
            self.deliveries
                .fetch_add(deliveries.len(), Ordering::Relaxed);
        }
        let waker = {
            let mut inner = self.lock();
            inner.mail.push_back(mail);
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves all mail into `into` (which must be empty); when there is none, remembers whom to
    /// wake. Says whether there was any.
    pub(crate) fn take(&self, into: &mut VecDeque<Mail>, waker: &Waker) -> bool {
        debug_assert!(into.is_empty());
        let mut inner = self.lock();
        if inner.mail.is_empty() {
            inner.waker = Some(waker.clone());
            return false;
        }
        std::mem::swap(&mut inner.mail, into);
        true
    }

    /// Marks deliveries as handled.
    pub(crate) fn delivered(&self, count: usize) {
        self.deliveries.fetch_sub(count, Ordering::Relaxed);
    }

    /// Whether more than `limit` deliveries wait.
    pub(crate) fn is_congested(&self, limit: usize) -> bool {
        self.deliveries.load(Ordering::Relaxed) > limit
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that can panic runs under the lock, so a poisoned one is still consistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct CountWakes(AtomicUsize);

    impl Wake for CountWakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_thousand_outcomes_wake_the_shard_once() {
        let wakes = Arc::new(CountWakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mailbox = Mailbox::default();
        let mut mail = VecDeque::new();
        assert!(!mailbox.take(&mut mail, &waker));
        for n in 1..=1000 {
            mailbox.post(Mail::Durable {
                session: SessionId::new(0, 1, 1),
                receipt: Receipt(n),
                outcome: Ok(()),
            });
        }
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert!(mailbox.take(&mut mail, &waker));
        assert_eq!(mail.len(), 1000);
        mail.clear();
        assert!(!mailbox.take(&mut mail, &waker));
        mailbox.post(Mail::Drain);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
    }
}
