//! The outside of the simulated broker: who may do what (which changes), and a tap that takes its
//! time, refuses and fails.
//!
//! It also remembers what it was asked: that the tap was asked about a message is how the judge
//! knows that the broker took it in, and when a will was published.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use mqtt::{Publish, ReasonCode};

use super::dice::Dice;
use super::ledger;
use super::plan::TapWeather;
use super::topics::{Area, Wildcards};
use crate::acknowledge::Acknowledge;
use crate::hooks::{ConnectAttempt, Decision, Hooks, Identity, Refusal, Tap};

pub(super) struct Outside {
    inner: Mutex<Inner>,
}

struct Inner {
    dice: Dice,
    tap: TapWeather,
    wildcards: Wildcards,
    /// Principals that may not publish to, or receive from, an area.
    denied: BTreeSet<(String, Area)>,
    /// Messages the tap was asked about, and whether it accepted, since the judge looked.
    asked: Vec<Asked>,
    /// Receipts not answered yet.
    untold: Vec<(u32, Acknowledge)>,
    /// What became of copies, since the judge looked.
    outcomes: Vec<Outcome>,
}

/// The tap was asked about a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) number: u32,
    pub(super) accepted: bool,
    /// It makes a copy.
    pub(super) wanted: bool,
}

/// A copy is durable, or lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) number: u32,
    pub(super) is_durable: bool,
}

impl Outside {
    pub(super) fn new(dice: Dice, tap: TapWeather, wildcards: Wildcards) -> Outside {
        Outside {
            inner: Mutex::new(Inner {
                dice,
                tap,
                wildcards,
                denied: BTreeSet::new(),
                asked: Vec::new(),
                untold: Vec::new(),
                outcomes: Vec::new(),
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn deny(&self, principal: &str, area: Area) {
        self.lock().denied.insert((principal.to_owned(), area));
    }

    pub(super) fn grant(&self, principal: &str, area: Area) {
        self.lock().denied.remove(&(principal.to_owned(), area));
    }

    pub(super) fn denied(&self) -> Vec<(String, Area)> {
        self.lock().denied.iter().cloned().collect()
    }

    /// From now on the tap takes everything at once.
    pub(super) fn heal(&self) {
        let mut inner = self.lock();
        inner.denied.clear();
        if inner.tap != TapWeather::Absent {
            inner.tap = TapWeather::Prompt;
        }
    }

    pub(super) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.lock().asked)
    }

    pub(super) fn take_outcomes(&self) -> Vec<Outcome> {
        std::mem::take(&mut self.lock().outcomes)
    }

    /// Answers one of the receipts that wait, drawn; says whether there was one.
    pub(super) fn tell(&self, dice: &mut Dice, failing: u32) -> bool {
        let mut inner = self.lock();
        if inner.untold.is_empty() {
            return false;
        }
        let place = dice.below(inner.untold.len());
        let (number, receipt) = inner.untold.swap_remove(place);
        let fails = inner.tap == TapWeather::Unreliable && dice.chance(failing);
        inner.outcomes.push(Outcome {
            number,
            is_durable: !fails,
        });
        drop(inner);
        receipt.done(match fails {
            true => Err(ReasonCode::ImplementationSpecificError),
            false => Ok(()),
        });
        true
    }

    /// The broker died, and the receipts with it.
    pub(super) fn forget_untold(&self) {
        let untold = std::mem::take(&mut self.lock().untold);
        // Outside of the lock: dropping one tells the broker.
        drop(untold);
    }

    fn decide(&self, who: &Identity, denied: impl Fn(Area) -> bool) -> Decision {
        let inner = self.lock();
        let any = inner
            .denied
            .iter()
            .any(|(principal, area)| **principal == *who.principal && denied(*area));
        match any {
            true => Decision::Deny,
            false => Decision::Allow,
        }
    }
}

impl Hooks for Outside {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        let principal = attempt.username.unwrap_or(attempt.client_id);
        Ok(Identity::new(attempt.client_id, principal))
    }

    fn may_publish(&self, who: &Identity, topic: &str) -> Decision {
        self.decide(who, |area| area == Area::of(topic))
    }

    fn may_subscribe(&self, who: &Identity, filter: &str) -> Decision {
        let wildcards = self.lock().wildcards;
        self.decide(who, |area| area.is_met_by(filter, wildcards))
    }

    fn may_receive(&self, who: &Identity, topic: &str) -> Decision {
        self.decide(who, |area| area == Area::of(topic))
    }

    fn recall(&self, client_id: &str, principal: &str) -> Option<Identity> {
        Some(Identity::new(client_id, principal))
    }

    fn tap(&self, _: &Identity, publish: &Publish, _: i64, done: Acknowledge) -> Tap {
        let mut inner = self.lock();
        let number = ledger::number_of(publish).unwrap_or(ledger::UNNAMED);
        let wanted = publish.topic.starts_with("b/");
        let tap = match inner.tap {
            TapWeather::Absent => Tap::NotWanted,
            _ if !wanted => Tap::NotWanted,
            TapWeather::Prompt => Tap::Taken,
            TapWeather::Late => Tap::Taken,
            TapWeather::Unreliable => match inner.dice.chance(15) {
                true => Tap::Refused(ReasonCode::QuotaExceeded),
                false => Tap::Taken,
            },
        };
        inner.asked.push(Asked {
            number,
            accepted: !matches!(tap, Tap::Refused(_)),
            wanted: tap == Tap::Taken,
        });
        if tap != Tap::Taken {
            return tap;
        }
        let at_once = inner.tap == TapWeather::Prompt || inner.dice.chance(30);
        let outcome = match inner.tap == TapWeather::Unreliable && inner.dice.chance(10) {
            true => Err(ReasonCode::ImplementationSpecificError),
            false => Ok(()),
        };
        if at_once {
            inner.outcomes.push(Outcome {
                number,
                is_durable: outcome.is_ok(),
            });
            drop(inner);
            done.done(outcome);
        } else {
            inner.untold.push((number, done));
        }
        Tap::Taken
    }
}
