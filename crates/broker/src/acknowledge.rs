//! The receipt that a tap gives back once its copy is durable.
//!
//! Flow: shard calls the tap with an [`Acknowledge`] -> the log writes and syncs -> its writer
//! thread calls [`Acknowledge::done`] for every record of the group commit -> outcomes gather in
//! the mailbox of the connection's shard, which is woken once -> PUBACKs leave in the order of
//! their PUBLISH packets, one write per connection.
//!
//! Cost per message: one reference count and a small entry in the mailbox; no allocation. An outcome
//! that is known before the tap returns (or a receipt dropped there because no copy was wanted) does
//! not even go through the mailbox.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use mqtt::ReasonCode;
use tokio::sync::oneshot;

use crate::machine::Receipt;
use crate::machine::mailbox::{Mail, Mailbox};
use crate::machine::slots::SessionId;

/// Says whether a tapped message is durable. Dropped without a word it counts as failed, so a
/// message can never stay unanswered.
#[must_use = "dropping it tells the publisher that its message failed"]
pub struct Acknowledge {
    /// `None` once it is said.
    to: Option<To>,
}

/// Who waits for it.
enum To {
    /// A client, on its shard.
    Client {
        mailbox: Arc<Mailbox>,
        session: SessionId,
        receipt: Receipt,
    },
    /// A part of this program that published in somebody's name.
    Caller(oneshot::Sender<Result<(), ReasonCode>>),
}

impl Acknowledge {
    pub(crate) fn new(mailbox: Arc<Mailbox>, session: SessionId, receipt: Receipt) -> Acknowledge {
        Acknowledge {
            to: Some(To::Client {
                mailbox,
                session,
                receipt,
            }),
        }
    }

    /// For a caller who waits for the answer itself.
    pub(crate) fn for_caller() -> (Acknowledge, oneshot::Receiver<Result<(), ReasonCode>>) {
        let (send, answer) = oneshot::channel();
        let to = Some(To::Caller(send));
        (Acknowledge { to }, answer)
    }

    /// Reports the outcome: `Ok` once the copy would survive a crash, else why it will not.
    ///
    /// May be called from any thread, in any order; never blocks for longer than another thread
    /// needs to append to a list.
    pub fn done(mut self, outcome: Result<(), ReasonCode>) {
        self.say(outcome);
    }

    fn say(&mut self, outcome: Result<(), ReasonCode>) {
        let (mailbox, session, receipt) = match self.to.take() {
            None => return,
            Some(To::Caller(caller)) => {
                // Who does not wait any more need not know.
                let _ = caller.send(outcome);
                return;
            }
            Some(To::Client {
                mailbox,
                session,
                receipt,
            }) => (mailbox, session, receipt),
        };
        // Nobody waits for the success of a QoS 0 message; its failure is counted.
        if receipt == Receipt::NONE && outcome.is_ok() {
            return;
        }
        if TAPPING.get() == Tapping::Asking(session, receipt) {
            TAPPING.set(Tapping::Answered(outcome));
            return;
        }
        mailbox.post(Mail::Durable {
            session,
            receipt,
            outcome,
        });
    }
}

/// What this thread is doing with the tap.
#[derive(Clone, Copy, PartialEq)]
enum Tapping {
    Idle,
    Asking(SessionId, Receipt),
    Answered(Result<(), ReasonCode>),
}

thread_local! {
    static TAPPING: Cell<Tapping> = const { Cell::new(Tapping::Idle) };
}

/// Calls a tap; also returns the outcome, if it was said before the tap returned.
pub(crate) fn while_tapping<T>(
    session: SessionId,
    receipt: Receipt,
    tap: impl FnOnce() -> T,
) -> (T, Option<Result<(), ReasonCode>>) {
    TAPPING.set(Tapping::Asking(session, receipt));
    let answer = tap();
    match TAPPING.replace(Tapping::Idle) {
        Tapping::Answered(outcome) => (answer, Some(outcome)),
        Tapping::Idle | Tapping::Asking(..) => (answer, None),
    }
}

impl Drop for Acknowledge {
    fn drop(&mut self) {
        self.say(Err(ReasonCode::UnspecifiedError));
    }
}

impl fmt::Debug for Acknowledge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Acknowledge");
        if let Some(To::Client {
            session, receipt, ..
        }) = &self.to
        {
            f.field("session", session).field("receipt", receipt);
        }
        f.finish_non_exhaustive()
    }
}
