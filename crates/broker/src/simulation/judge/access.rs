//! Who was denied what, and since when that is in force.

use std::collections::BTreeMap;

use super::Judge;
use crate::simulation::topics::Area;

/// Denials, by client and area.
#[derive(Debug, Default)]
pub(super) struct Access {
    denials: BTreeMap<(usize, Area), Denial>,
}

#[derive(Debug, Clone, Copy)]
struct Denial {
    /// When the outside began to say no.
    from: u64,
    /// When the broker had been told, on every shard.
    applied: Option<u64>,
    /// When the outside said yes again.
    to: Option<u64>,
}

impl Access {
    /// Whether access was there all the time since `seq`.
    pub(super) fn held_since(&self, client: usize, area: Area, seq: u64) -> bool {
        self.denials
            .get(&(client, area))
            .is_none_or(|denial| denial.to.is_some_and(|to| to < seq))
    }

    /// Whether the outside has said no without a break since `seq` or before.
    pub(super) fn denied_since(&self, client: usize, area: Area, seq: u64) -> bool {
        self.denials
            .get(&(client, area))
            .is_some_and(|denial| denial.to.is_none() && denial.from <= seq)
    }

    /// Whether something is denied to a client now.
    pub(super) fn is_denied_anything(&self, client: usize) -> bool {
        self.denials
            .iter()
            .any(|((who, _), denial)| *who == client && denial.to.is_none())
    }

    /// Whether the broker knew at `seq`, and nothing has changed.
    pub(super) fn known_denied_at(&self, client: usize, area: Area, seq: u64) -> bool {
        self.denials.get(&(client, area)).is_some_and(|denial| {
            denial.to.is_none() && denial.applied.is_some_and(|applied| applied <= seq)
        })
    }
}

impl Judge {
    /// The outside says no from now on. The broker is told later.
    pub(in crate::simulation) fn denied(&mut self, client: usize, area: Area) {
        let now = self.tick();
        let denial = self.access.denials.entry((client, area)).or_insert(Denial {
            from: now.seq,
            applied: None,
            to: None,
        });
        if denial.to.is_some() {
            *denial = Denial {
                from: now.seq,
                applied: None,
                to: None,
            };
        }
        self.subscriptions_denied(client, area);
        self.flights_denied(client, area);
        self.debts_denied(client, area);
    }

    /// The outside says yes again.
    pub(in crate::simulation) fn granted(&mut self, client: usize, area: Area) {
        let now = self.tick();
        if let Some(denial) = self.access.denials.get_mut(&(client, area)) {
            denial.to.get_or_insert(now.seq);
        }
    }

    /// Every shard has heard that the access of a client changed, after the last change.
    pub(in crate::simulation) fn access_applied(&mut self, client: usize) {
        let now = self.tick();
        let wildcards = self.plan.weather.wildcards;
        for ((who, area), denial) in &mut self.access.denials {
            if *who == client && denial.to.is_none() && denial.applied.is_none() {
                denial.applied = Some(now.seq);
                for sub in &mut self.sessions[client].subs {
                    if area.is_met_by(sub.filter.filter(), wildcards) {
                        sub.closed.get_or_insert(now.seq);
                    }
                }
            }
        }
    }
}
