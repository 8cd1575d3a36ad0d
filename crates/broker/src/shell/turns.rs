//! Turns: work that can wait has a small share of a worker's time, so that clients who are served do not
//! wait for it.
//!
//! The tasks of a worker run one after the other. When a fleet comes back, a thousand sockets are ready at
//! once, and a CONNECT costs a hundred times what a message does (a TLS handshake a thousand times): all
//! others would be behind them. So whoever is not served yet, or not any more, does nothing before its turn:
//! newcomers (sockets taken, handshakes, CONNECT), connections that ended, and of clients what is
//! large: packets of many reads, and walks through the retained messages.
//!
//! ```text
//! round ─► the first that waits ─► the next ─► … until the share is used up
//!   ▲                                                      │ everybody else who is ready, the poller
//!   └──────────────────────────────────────────────────────┘
//! ```
//! A round begins when the poller was looked at, which the runtime does when all tasks that were ready have
//! run, or a few dozen of them (the worker's own task yields in between). In a round turns are taken one
//! after the other, each put at the end of the runtime's queue, until they took [`SHARE`]; what follows
//! waits for the next round. At least one turn is
//! taken in each, so nobody waits for ever. If nobody waits and there is time, no turn is waited for: while
//! it is quiet a newcomer costs one more look at the poller.
//!
//! A number of turns per round, in place of time, was refused: a refused CONNECT costs a tenth of one with a
//! session to restore, and on a busy worker, where rounds are long, a number that suits the dearest would
//! let hardly anybody in.
//!
//! Who waits is bounded by the connections there may be: each waits once. What waits for too long is
//! ended by the deadlines it has anyway.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::num::NonZeroU64;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

/// What turns may take of a round: a few CONNECTs, or one step of a TLS handshake. A message between two
/// clients of different workers waits for two or three rounds, and should not notice.
pub(crate) const SHARE: Duration = Duration::from_micros(500);

/// The turns of one worker.
#[derive(Debug)]
pub(crate) struct Turns {
    share: Duration,
    /// Time used in this round.
    used: Cell<Duration>,
    /// Whether anybody had, or was called to, a turn in this round.
    begun: Cell<bool>,
    /// Whoever waits, the first first.
    waiting: RefCell<VecDeque<Waker>>,
    /// Number of the ticket that was called last; those that wait have the ones after it.
    called: Cell<u64>,
    /// To be woken when there is something to make rounds for.
    rounds: RefCell<Option<Waker>>,
}

/// A place among those that wait; empty for whoever does not.
#[derive(Debug, Default)]
pub(crate) struct Ticket(Option<NonZeroU64>);

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Rc<Turns>,
    since: Instant,
}

impl Turns {
    /// Turns that may take so much of each round.
    pub(crate) fn new(share: Duration) -> Rc<Turns> {
        Rc::new(Turns {
            share,
            used: Cell::new(Duration::ZERO),
            begun: Cell::new(false),
            waiting: RefCell::default(),
            called: Cell::new(0),
            rounds: RefCell::default(),
        })
    }

    /// Whether this round has room for one more turn.
    pub(crate) fn has_room(&self) -> bool {
        !self.begun.get() || self.used.get() < self.share
    }

    /// A turn at once, for whoever has looked whether there is room.
    pub(crate) fn begin(self: &Rc<Self>) -> Turn {
        self.begun.set(true);
        Turn {
            turns: Rc::clone(self),
            since: Instant::now(),
        }
    }

    /// A turn, now or when the task is woken for it.
    pub(crate) fn poll_turn(
        self: &Rc<Self>,
        ticket: &mut Ticket,
        cx: &mut Context<'_>,
    ) -> Poll<Turn> {
        match ticket.0 {
            Some(number) if number.get() <= self.called.get() => {}
            // Woken for something else, which it will see in its turn.
            Some(_) => return Poll::Pending,
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.is_empty() || !self.has_room() {
                    waiting.push_back(cx.waker().clone());
                    let last = self.called.get() + waiting.len() as u64;
                    ticket.0 = NonZeroU64::new(last);
                    drop(waiting);
                    self.wake_rounds();
                    return Poll::Pending;
                }
            }
        }
        ticket.0 = None;
        Poll::Ready(self.begin())
    }

    /// Begins the next round, if the last one had turns or somebody waits. To be called by one task,
    /// which lets all others run between two calls; else it is woken when there is need for a round.
    pub(crate) fn poll_round(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.begun.replace(false) && self.waiting.borrow().is_empty() {
            self.rounds
                .borrow_mut()
                .get_or_insert_with(|| cx.waker().clone());
            return Poll::Pending;
        }
        self.used.set(Duration::ZERO);
        self.call();
        Poll::Ready(())
    }

    /// Calls the first of those that wait. Should it be gone, the next round calls the next.
    fn call(&self) {
        let first = self.waiting.borrow_mut().pop_front();
        if let Some(waker) = first {
            self.called.set(self.called.get() + 1);
            self.begun.set(true);
            waker.wake();
        }
    }

    fn wake_rounds(&self) {
        let waker = self.rounds.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Runs a future, each of its steps in a turn.
    pub(crate) async fn step_by_step<F: Future>(self: Rc<Self>, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut ticket = Ticket::default();
        poll_fn(|cx| {
            let _turn = ready!(self.poll_turn(&mut ticket, cx));
            future.as_mut().poll(cx)
        })
        .await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let turns = &self.turns;
        turns.used.set(turns.used.get() + self.since.elapsed());
        if turns.has_room() {
            turns.call();
        }
        turns.wake_rounds();
    }
}
