//! What the broker owes: messages it acknowledged, to sessions and to shared subscriptions, and
//! whether it has paid once nothing moves any more.

use std::collections::BTreeMap;

use mqtt::{Publish, QoS, Version};

use super::Judge;
use super::session::Exists;
use super::subscriptions::Sub;
use crate::simulation::invariants::{Invariant, Verdict, Violation, demand};
use crate::simulation::ledger::Message;
use crate::simulation::topics::Area;

/// A message that some member of a shared subscription must get.
#[derive(Debug)]
pub(super) struct SharedDebt {
    /// When the message was handed in.
    since: u64,
    /// Some member was stored: then the message is, too, whoever has it.
    is_stored: bool,
}

impl Judge {
    /// Whether a message fits a client whatever is added to it.
    pub(super) fn fits(&self, client: usize, message: &Message) -> bool {
        let most = self.plan.characters[client]
            .max_packet
            .map_or(usize::MAX, |bytes| bytes as usize);
        // Packet identifier, alias, expiry, a few subscription identifiers.
        const ADDED: usize = 40;
        mqtt::encoded_len(&message.publish.clone().into(), Version::V5)
            .is_ok_and(|len| len + ADDED <= most)
    }

    /// The broker has promised to deliver a message.
    pub(super) fn acknowledged(&mut self, number: u32) {
        let now = self.now;
        self.retained_acknowledged(number);
        let Some(message) = self.ledger.get_mut(number) else {
            return;
        };
        if message.acknowledged.is_some() {
            return;
        }
        message.acknowledged = Some(now);
        let Some(message) = self.ledger.get(number).cloned() else {
            return;
        };
        let Some(first) = message.first_in else {
            return;
        };
        if message.qos() == QoS::AtMostOnce || message.may_be_refused {
            return;
        }
        let area = Area::of(message.topic());
        for client in 0..self.sessions.len() {
            let session = &self.sessions[client];
            let has_session = session.exists == Exists::Yes
                && session.began().is_some_and(|began| began.seq < first.seq)
                && (session.connection.is_some() || session.is_stored())
                && session.attempts.is_empty()
                && !self.may_be_expired(client);
            let can_tell =
                !(message.deletes() && self.plan.characters[client].version == Version::V311);
            let has_arrived = session
                .copies
                .get(&number)
                .is_some_and(|copies| copies.has_arrived);
            if !has_session
                || !can_tell
                || !self.fits(client, &message)
                || !self.access.held_since(client, area, first.seq)
            {
                continue;
            }
            let own = message.publisher == client;
            let mut owed = false;
            let mut shares = Vec::new();
            for sub in session.subs.iter().filter(|sub| sub.must_match(&message)) {
                if sub.is_shared() {
                    shares.push(sub.filter.as_str().to_owned());
                } else if !(own && sub.no_local) {
                    owed = true;
                }
            }
            if owed && !has_arrived {
                self.sessions[client].owed.insert(number);
            }
            for share in shares {
                let paid = self.served.contains(&(share.clone(), number));
                // If it goes to a member that may not have it, does not take its size, or takes part at
                // QoS 0, it may be lost there.
                let members = 0..self.sessions.len();
                let all_take_it = members
                    .filter(|client| self.may_be_member(*client, &share))
                    .all(|client| {
                        self.fits(client, &message)
                            && !self.may_lose(client, &share)
                            && self.access.held_since(client, area, first.seq)
                    });
                let since = |times: &BTreeMap<String, u64>| {
                    times.get(&share).is_some_and(|at| *at >= first.seq)
                };
                let was_risky = since(&self.risky)
                    || message.qos() == QoS::ExactlyOnce && since(&self.deserted);
                if !paid && all_take_it && !was_risky && !message.deletes() {
                    let is_stored = self.sessions[client].is_stored();
                    let debt = self.shared.entry((share, number)).or_insert(SharedDebt {
                        since: first.seq,
                        is_stored,
                    });
                    debt.is_stored |= is_stored;
                }
            }
        }
    }

    /// A session need not get certain messages any more.
    pub(super) fn forgive(&mut self, client: usize, which: impl Fn(&Judge, &Message) -> bool) {
        let owed = std::mem::take(&mut self.sessions[client].owed);
        let left = owed
            .into_iter()
            .filter(|number| self.ledger.get(*number).is_some_and(|m| !which(self, m)))
            .collect();
        self.sessions[client].owed = left;
    }

    pub(super) fn debts_denied(&mut self, client: usize, area: Area) {
        self.forgive(client, |_, message| Area::of(message.topic()) == area);
        self.forgive_shared(|judge, share, message| {
            Area::of(message.topic()) == area && judge.may_be_member(client, share)
        });
    }

    fn forgive_shared(&mut self, which: impl Fn(&Judge, &str, &Message) -> bool) {
        let mut shared = std::mem::take(&mut self.shared);
        shared.retain(|(share, number), _| {
            self.ledger
                .get(*number)
                .is_some_and(|message| !which(self, share, message))
        });
        self.shared = shared;
    }

    /// What only transient members could have had ended with them.
    pub(super) fn shared_crashed(&mut self) {
        self.shared.retain(|_, debt| debt.is_stored);
    }

    fn may_be_member(&self, client: usize, share: &str) -> bool {
        self.sessions[client]
            .subs
            .iter()
            .any(|sub| sub.filter.as_str() == share && !sub.is_refused)
    }

    fn may_lose(&self, client: usize, share: &str) -> bool {
        let mut subs = self.sessions[client].subs.iter();
        subs.any(|sub| {
            sub.filter.as_str() == share && !sub.is_refused && sub.qos == QoS::AtMostOnce
        })
    }

    /// A member may come that does not take everything, or at QoS 0: what waits may go to it and be lost
    /// there.
    pub(super) fn shared_member_may_lose(&mut self, filter: &str) {
        self.forgive_shared(|_, share, _| share == filter);
    }

    /// The membership that will last: its session is there for certain and will be.
    fn standing_member(&self, client: usize, share: &str) -> Option<&Sub> {
        let session = &self.sessions[client];
        let lasts = session.exists == Exists::Yes
            && !self.may_be_expired(client)
            && (session.connection.is_some() || session.is_stored());
        if !lasts {
            return None;
        }
        session
            .subs
            .iter()
            .find(|sub| sub.filter.as_str() == share && sub.stands() && sub.qos > QoS::AtMostOnce)
    }

    /// The session of a client is over, or nobody knows.
    pub(super) fn shared_member_went(&mut self, client: usize) {
        let now = self.now.seq;
        let denied = self.access.is_denied_anything(client);
        let subs = self.sessions[client].subs.iter();
        for sub in subs.filter(|sub| sub.is_shared() && !sub.is_refused) {
            self.deserted.insert(sub.filter.as_str().to_owned(), now);
            let small = self.plan.characters[client]
                .max_packet
                .is_some_and(|max| max < 1_000);
            if small || denied || sub.qos == QoS::AtMostOnce {
                self.risky.insert(sub.filter.as_str().to_owned(), now);
            }
        }
        let clients = self.sessions.len();
        self.forgive_shared(|judge, share, message| {
            judge.may_be_member(client, share)
                && (message.qos() == QoS::ExactlyOnce
                    || !(0..clients).any(|other| {
                        other != client && judge.standing_member(other, share).is_some()
                    }))
        });
    }

    /// A client unsubscribes from a shared subscription.
    pub(super) fn shared_member_left(&mut self, client: usize, filter: &str) {
        self.deserted.insert(filter.to_owned(), self.now.seq);
        let clients = self.sessions.len();
        self.forgive_shared(|judge, share, message| {
            share == filter
                && judge.may_be_member(client, share)
                && (message.qos() == QoS::ExactlyOnce
                    || !(0..clients).any(|other| {
                        other != client && judge.standing_member(other, share).is_some()
                    }))
        });
    }

    /// A client got a message: whatever shared subscription it is a member of is served.
    pub(super) fn shared_arrived(&mut self, client: usize, number: u32) {
        let subs = self.sessions[client].subs.iter();
        for sub in subs.filter(|sub| sub.is_shared() && !sub.is_refused) {
            let debt = (sub.filter.as_str().to_owned(), number);
            self.shared.remove(&debt);
            self.served.insert(debt);
        }
    }

    /// A client got a message that can only have come by one shared subscription.
    pub(super) fn shared_once(
        &mut self,
        client: usize,
        share: &str,
        number: u32,
        publish: &Publish,
    ) -> Verdict {
        let Some(message) = self.ledger.get(number) else {
            return Ok(());
        };
        let (Some(first), 1) = (message.first_in, message.taken.len()) else {
            return Ok(());
        };
        let key = (share.to_owned(), number);
        let before = self.shared_receipts.get(&key).copied();
        self.shared_receipts
            .entry(key)
            .or_insert((client, publish.qos));
        let Some((other, qos)) = before else {
            return Ok(());
        };
        let exact = qos == QoS::ExactlyOnce && publish.qos == QoS::ExactlyOnce;
        let nothing_broke = self
            .conns
            .iter()
            .all(|conn| conn.ended.is_none_or(|ended| ended.seq < first.seq));
        let no_crash = self.crashes_since(first.seq) == 0;
        demand(
            other == client || !no_crash || !(exact || nothing_broke),
            Invariant::SharedToOneMember,
            || {
                format!(
                    "m{number} of `{share}` went to {} and to {} ({:?})",
                    self.name(other),
                    self.name(client),
                    publish.qos
                )
            },
        )
    }

    /// Nothing moves any more: whoever is connected and reads has what it is owed.
    pub(in crate::simulation) fn at_rest(&mut self) -> Verdict {
        self.tick();
        self.end_expired();
        self.answered_at_rest()?;
        self.paid_at_rest()?;
        self.shared_at_rest()?;
        self.retained_at_rest()?;
        self.wills_at_rest()
    }

    fn answered_at_rest(&self) -> Verdict {
        for conn in self.conns.iter().filter(|conn| conn.ended.is_none()) {
            if let Some(what) = conn.unanswered() {
                return Err(Violation::new(
                    Invariant::EverythingAnswered,
                    format!("{what} of {} has no answer", self.name(conn.client)),
                ));
            }
        }
        for (client, session) in self.sessions.iter().enumerate() {
            if session.connection.is_none() {
                continue;
            }
            if let Some((id, flight)) = session.flights.iter().find(|(_, f)| !f.is_loose) {
                return Err(Violation::new(
                    Invariant::ExchangeGoesOn,
                    format!(
                        "the exchange of packet id {id} with {} (m{}, {:?}) stands still: {:?}",
                        self.name(client),
                        flight.number,
                        flight.qos,
                        flight.stage
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Whether a message may be gone because its time is over.
    fn may_have_expired(&self, message: &Message) -> bool {
        message
            .lifetime()
            .zip(message.first_in)
            .is_some_and(|(lifetime, first)| {
                self.now.ms + self.slack() >= first.ms.saturating_add(lifetime)
            })
    }

    fn paid_at_rest(&mut self) -> Verdict {
        for client in 0..self.sessions.len() {
            if self.sessions[client].connection.is_none() {
                continue;
            }
            let owed = std::mem::take(&mut self.sessions[client].owed);
            for number in owed {
                let Some(message) = self.ledger.get(number) else {
                    continue;
                };
                if self.may_have_expired(message) {
                    continue;
                }
                if !self.is_roomy() {
                    let client = self.name(client).to_owned();
                    self.missing.push(format!("m{number} for {client}"));
                    continue;
                }
                return Err(Violation::new(
                    Invariant::NothingAcknowledgedIsLost,
                    format!(
                        "m{number} on `{}` ({:?}) was acknowledged and did not reach {}",
                        message.topic(),
                        message.qos(),
                        self.name(client)
                    ),
                ));
            }
        }
        Ok(())
    }

    fn shared_at_rest(&mut self) -> Verdict {
        let shared = std::mem::take(&mut self.shared);
        for ((share, number), debt) in shared {
            let Some(message) = self.ledger.get(number) else {
                continue;
            };
            if self.may_have_expired(message) {
                continue;
            }
            let area = Area::of(message.topic());
            let mut there = None;
            let mut somebody_may_hold_it = false;
            for (client, session) in self.sessions.iter().enumerate() {
                if !self.may_be_member(client, &share) {
                    continue;
                }
                let stands = self.standing_member(client, &share).is_some();
                somebody_may_hold_it |=
                    !self.fits(client, message) || self.may_lose(client, &share);
                if session.connection.is_some() {
                    if stands && self.access.held_since(client, area, debt.since) {
                        there = Some(client);
                    }
                } else {
                    let since_then = session.left >= debt.since;
                    somebody_may_hold_it |= session.exists == Exists::Unsure || since_then;
                }
            }
            let Some(member) = there.filter(|_| !somebody_may_hold_it) else {
                self.shared.insert((share, number), debt);
                continue;
            };
            let member = self.name(member).to_owned();
            if !self.is_roomy() {
                self.missing
                    .push(format!("m{number} for {member} by {share}"));
                continue;
            }
            return Err(Violation::new(
                Invariant::SharedIsDelivered,
                format!(
                    "m{number} ({:?}) of `{share}` waits while {member} is there",
                    message.qos()
                ),
            ));
        }
        Ok(())
    }

    /// What the broker counts as dropped by full queues explains what is missing.
    pub(in crate::simulation) fn losses_are_counted(&self, counted_in_this_life: u64) -> Verdict {
        let counted = self.counted_losses + counted_in_this_life;
        demand(
            self.missing.len() as u64 <= counted,
            Invariant::LossIsCounted,
            || format!("missing: {:?}; counted as dropped: {counted}", self.missing),
        )?;
        demand(
            counted == 0 || !self.is_roomy(),
            Invariant::LossIsCounted,
            || format!("{counted} messages were dropped from queues that were never full"),
        )
    }
}
