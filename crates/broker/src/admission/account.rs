//! An account of memory that is taken only while there is room, and given back by who took it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::memory::{Fits, SMALL};

/// Bytes that are taken of a limit.
#[derive(Debug)]
pub(crate) struct Account {
    used: AtomicUsize,
    limit: usize,
}

impl Account {
    pub(crate) fn new(limit: usize) -> Arc<Account> {
        Arc::new(Account {
            used: AtomicUsize::new(0),
            limit,
        })
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether somebody who holds `held` bytes may have `more`. The last quarter is for those that hold
    /// little: one with a hundred thousand subscriptions is not to be in the way of a car's first.
    pub(crate) fn fits(&self, held: usize, more: usize) -> Fits {
        let limit = match held.saturating_add(more) > SMALL {
            true => self.limit - self.limit / 4,
            false => self.limit,
        };
        match self.used().saturating_add(more) <= limit {
            true => Fits::Yes,
            false => Fits::No,
        }
    }
}

/// What one holder has taken; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Holding {
    account: Arc<Account>,
    bytes: usize,
}

impl Holding {
    /// Holds nothing yet.
    pub(crate) fn none(account: &Arc<Account>) -> Holding {
        Holding {
            account: Arc::clone(account),
            bytes: 0,
        }
    }

    /// Takes `bytes`, if there is room; all or nothing, whoever else takes at the same moment.
    pub(crate) fn try_new(account: &Arc<Account>, bytes: usize) -> Option<Holding> {
        let take = |used: usize| {
            let after = used.checked_add(bytes)?;
            (after <= account.limit).then_some(after)
        };
        let taken = account
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok().then(|| Holding {
            account: Arc::clone(account),
            bytes,
        })
    }

    /// Whether `more` may be added.
    pub(crate) fn fits(&self, more: usize) -> Fits {
        self.account.fits(self.bytes, more)
    }

    /// Adds bytes, which are there whether they fit or not.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.account.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives bytes back that were added before.
    pub(crate) fn remove(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes, "given back twice");
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.account.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.remove(self.bytes);
    }
}

/// What changes too often to be written into the account each time: taken and given back in [`STEP`]s,
/// so the account has a little more than there is, and workers do not fight over one number.
#[derive(Debug)]
pub(crate) struct Float {
    taken: Holding,
    bytes: usize,
}

/// By how much a [`Float`] takes.
const STEP: usize = 64 * 1024;

impl Float {
    /// Holds nothing yet.
    pub(crate) fn none(account: &Arc<Account>) -> Float {
        Float {
            taken: Holding::none(account),
            bytes: 0,
        }
    }

    /// Adds bytes, which are there whether they fit or not.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes > self.taken.bytes {
            let missing = self.bytes - self.taken.bytes;
            self.taken.add(missing.next_multiple_of(STEP));
        }
    }

    /// Gives bytes back that were added before.
    pub(crate) fn remove(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes, "given back twice");
        self.bytes = self.bytes.saturating_sub(bytes);
        let spare = self.taken.bytes - self.bytes;
        // A step is kept: what comes and goes at the edge of one must not be written each time.
        if spare > 2 * STEP || (self.bytes == 0 && spare > 0) {
            let kept = self.bytes.next_multiple_of(STEP);
            self.taken.remove(self.taken.bytes - kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_stop_before_the_small_and_all_of_it_comes_back() {
        let account = Account::new(1_000_000);
        let mut large = Holding::none(&account);
        large.add(700_000);
        assert_eq!(large.fits(60_000), Fits::No, "three quarters");
        let mut small = Holding::none(&account);
        assert_eq!(small.fits(60_000), Fits::Yes);
        small.add(60_000);
        assert_eq!(small.fits(SMALL), Fits::No, "it is not small then");
        assert_eq!(account.used(), 760_000);
        large.remove(1_000);
        drop(large);
        assert_eq!(account.used(), 60_000);
    }

    #[test]
    fn a_float_has_what_there_is_and_at_most_three_steps_more() {
        let account = Account::new(usize::MAX);
        let mut float = Float::none(&account);
        let mut there = 0usize;
        for round in 1..200usize {
            let bytes = round * 7919 % 40_000;
            float.add(bytes);
            there += bytes;
            if round % 3 == 0 {
                let back = there / 2;
                float.remove(back);
                there -= back;
            }
            let used = account.used();
            assert!(used >= there && used <= there + 3 * STEP, "{there}: {used}");
        }
        float.remove(there);
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn what_is_granted_stays_within_the_limit() {
        let account = Account::new(100);
        let first = Holding::try_new(&account, 60).expect("there is room");
        assert!(Holding::try_new(&account, 41).is_none());
        let second = Holding::try_new(&account, 40).expect("just as much as there is");
        drop((first, second));
        assert_eq!(account.used(), 0);
    }
}
