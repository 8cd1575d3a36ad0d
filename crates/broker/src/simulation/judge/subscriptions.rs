//! The subscriptions of a session: which there may be, and which there must be.

use std::collections::BTreeMap;

use mqtt::{
    QoS, ReasonCode, RetainHandling, SubAck, Subscribe, TopicFilter, UnsubAck, Unsubscribe,
};

use super::Judge;
use crate::simulation::invariants::{Invariant, Verdict, Violation, demand};
use crate::simulation::ledger::Message;
use crate::simulation::topics::{Area, TOPICS};

/// One SUBSCRIBE of one filter.
#[derive(Debug)]
pub(super) struct Sub {
    pub(super) filter: TopicFilter,
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) keeps_retain: bool,
    pub(super) id: Option<u32>,
    pub(super) asked: u64,
    /// SUBACK said yes.
    pub(super) granted: Option<u64>,
    pub(super) is_refused: bool,
    /// From here on it need not be there.
    pub(super) closing: Option<u64>,
    /// It is closing because the same filter was subscribed again, at a QoS that keeps the promises.
    pub(super) is_replaced: bool,
    /// From here on it must not take in anything.
    pub(super) closed: Option<u64>,
    pub(super) is_unsubscribed: bool,
    pub(super) is_sure: bool,
    /// Whether it brings retained messages.
    pub(super) brings_retained: BringsRetained,
    /// By topic: the place, in the order of retained messages, of the last one acknowledged when it was
    /// asked for.
    pub(super) floors: BTreeMap<usize, usize>,
    /// Topics whose retained message it brought, and how many times.
    pub(super) brought: BTreeMap<usize, u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BringsRetained {
    No,
    Unsure,
    Yes,
}

impl Sub {
    pub(super) fn is_shared(&self) -> bool {
        self.filter.is_shared()
    }

    /// Whether it can have to do with a message.
    pub(super) fn may_match(&self, message: &Message) -> bool {
        !self.is_refused
            && self.filter.matches(message.topic())
            && message
                .first_in
                .is_some_and(|first| self.closed.is_none_or(|closed| closed >= first.seq))
    }

    /// Whether it can have taken in a message as it was published.
    pub(super) fn may_be_live_for(&self, message: &Message) -> bool {
        self.may_match(message)
            && message
                .last_taken()
                .is_some_and(|taken| taken.seq >= self.asked)
    }

    /// Whether it must have taken in a message that was acknowledged just now.
    pub(super) fn must_match(&self, message: &Message) -> bool {
        self.is_sure
            && !self.is_refused
            && self.qos > QoS::AtMostOnce
            && (self.closing.is_none() || self.is_replaced && self.closed.is_none())
            && self.filter.matches(message.topic())
            && self
                .granted
                .zip(message.first_in)
                .is_some_and(|(granted, first)| granted < first.seq)
    }

    /// Whether it stands and nothing is about to change it.
    pub(super) fn stands(&self) -> bool {
        self.is_sure && self.granted.is_some() && self.closing.is_none()
    }

    fn begin_to_close(&mut self, now: u64) {
        self.closing.get_or_insert(now);
        self.is_replaced = false;
    }
}

impl Judge {
    pub(super) fn subscribe_in(&mut self, conn: usize, subscribe: &Subscribe) -> Verdict {
        let now = self.now.seq;
        let client = self.conns[conn].client;
        let id = subscribe.properties.subscription_id.map(|id| id.get());
        let mut places = Vec::new();
        for asked in &subscribe.subscriptions {
            let takes_all = asked.qos > QoS::AtMostOnce
                && self.plan.characters[client]
                    .max_packet
                    .is_none_or(|max| max > 1_000)
                && !self.access.is_denied_anything(client);
            if asked.filter.is_shared() && !takes_all {
                self.shared_member_may_lose(asked.filter.as_str());
            }
            let floors = TOPICS
                .iter()
                .enumerate()
                .filter(|(_, topic)| asked.filter.matches(topic))
                .map(|(place, _)| (place, self.retained_floor(place)))
                .collect();
            let subs = &mut self.sessions[client].subs;
            let mut known = Vec::new();
            for sub in subs.iter_mut() {
                if sub.filter.as_str() != asked.filter.as_str()
                    || sub.is_refused
                    || sub.closed.is_some()
                {
                    continue;
                }
                known.push(sub.stands());
                let keeps = asked.qos > QoS::AtMostOnce
                    && sub.qos > QoS::AtMostOnce
                    && asked.no_local == sub.no_local;
                let stood = sub.stands() || sub.is_replaced;
                sub.closing.get_or_insert(now);
                sub.is_replaced = stood && keeps;
            }
            let brings_retained = match asked.retain_handling {
                _ if asked.filter.is_shared() => BringsRetained::No,
                RetainHandling::Never => BringsRetained::No,
                RetainHandling::AtSubscribe => BringsRetained::Yes,
                RetainHandling::AtNewSubscription if known.is_empty() => BringsRetained::Yes,
                RetainHandling::AtNewSubscription if known.iter().any(|stands| *stands) => {
                    BringsRetained::No
                }
                RetainHandling::AtNewSubscription => BringsRetained::Unsure,
            };
            places.push(subs.len());
            subs.push(Sub {
                filter: asked.filter.clone(),
                qos: asked.qos,
                no_local: asked.no_local,
                keeps_retain: asked.retain_as_published,
                id,
                asked: now,
                granted: None,
                is_refused: false,
                closing: None,
                is_replaced: false,
                closed: None,
                is_unsubscribed: false,
                is_sure: true,
                brings_retained,
                floors,
                brought: BTreeMap::new(),
            });
        }
        self.conns[conn]
            .subscribes
            .push_back((subscribe.packet_id.get(), places));
        Ok(())
    }

    pub(super) fn suback_out(&mut self, conn: usize, ack: &SubAck) -> Verdict {
        let now = self.now.seq;
        let client = self.conns[conn].client;
        let asked = &mut self.conns[conn].subscribes;
        let found = asked.iter().position(|(id, _)| *id == ack.packet_id.get());
        let Some((id, places)) = found.and_then(|place| asked.remove(place)) else {
            return Err(Violation::new(
                Invariant::AnswersInOrder,
                format!("SUBACK {} answers nothing", ack.packet_id),
            ));
        };
        demand(
            places.len() == ack.reasons.len(),
            Invariant::AnswersInOrder,
            || {
                format!(
                    "SUBACK {id} has {:?} for {} filters",
                    ack.reasons,
                    places.len()
                )
            },
        )?;
        if self.sessions[client].connection != Some(conn) {
            return Ok(()); // flushed after the end
        }
        for (place, reason) in places.into_iter().zip(&ack.reasons) {
            let subs = &mut self.sessions[client].subs;
            let filter = subs[place].filter.as_str().to_owned();
            if reason.is_error() {
                subs[place].is_refused = true;
                for sub in subs.iter_mut().filter(|s| s.filter.as_str() == filter) {
                    sub.is_replaced = false;
                }
                continue;
            }
            let asked = subs[place].qos;
            demand(
                *reason == ReasonCode::granted(asked),
                Invariant::GrantedQosHeld,
                || format!("SUBACK grants {reason:?} of `{filter}`, {asked:?} was asked for"),
            )?;
            subs[place].granted = Some(now);
            for sub in &mut subs[..place] {
                if sub.filter.as_str() == filter {
                    sub.closed.get_or_insert(now);
                }
            }
        }
        Ok(())
    }

    pub(super) fn unsubscribe_in(&mut self, conn: usize, unsubscribe: &Unsubscribe) -> Verdict {
        let now = self.now.seq;
        let client = self.conns[conn].client;
        let filters: Vec<String> = unsubscribe
            .filters
            .iter()
            .map(|filter| filter.as_str().to_owned())
            .collect();
        for filter in &unsubscribe.filters {
            self.forgive(client, |_, message| filter.matches(message.topic()));
            if filter.is_shared() {
                self.shared_member_left(client, filter.as_str());
            }
        }
        for sub in &mut self.sessions[client].subs {
            if filters.iter().any(|filter| filter == sub.filter.as_str()) {
                sub.begin_to_close(now);
            }
        }
        self.conns[conn]
            .unsubscribes
            .push_back((unsubscribe.packet_id.get(), filters, now));
        Ok(())
    }

    pub(super) fn unsuback_out(&mut self, conn: usize, ack: &UnsubAck) -> Verdict {
        let now = self.now.seq;
        let client = self.conns[conn].client;
        let asked = &mut self.conns[conn].unsubscribes;
        let found = asked.iter().position(|(id, ..)| *id == ack.packet_id.get());
        let Some((_, filters, at)) = found.and_then(|place| asked.remove(place)) else {
            return Err(Violation::new(
                Invariant::AnswersInOrder,
                format!("UNSUBACK {} answers nothing", ack.packet_id),
            ));
        };
        if self.sessions[client].connection != Some(conn) {
            return Ok(());
        }
        for sub in &mut self.sessions[client].subs {
            if sub.asked < at && filters.iter().any(|filter| filter == sub.filter.as_str()) {
                sub.closed.get_or_insert(now);
                sub.is_unsubscribed = true;
            }
        }
        Ok(())
    }

    pub(super) fn subscriptions_denied(&mut self, client: usize, area: Area) {
        let now = self.now.seq;
        let wildcards = self.plan.weather.wildcards;
        let session = &mut self.sessions[client];
        for sub in &mut session.subs {
            if area.is_met_by(sub.filter.filter(), wildcards) {
                session.may_be_curtailed |= !sub.is_refused && sub.closed.is_none();
                sub.begin_to_close(now);
            }
        }
    }
}
