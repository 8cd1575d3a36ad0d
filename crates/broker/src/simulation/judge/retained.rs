//! What is retained for each topic, as far as the edge can know.

use super::Judge;
use super::session::Exists;
use super::subscriptions::BringsRetained;
use crate::simulation::invariants::{Invariant, Verdict, demand};
use crate::simulation::ledger::Message;
use crate::simulation::topics::{Area, TOPICS};
use mqtt::QoS;

/// A message with RETAIN that the broker took in.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) number: u32,
    pub(super) deletes: bool,
    /// It took the place of what was retained before.
    pub(super) is_sure: bool,
    pub(super) acknowledged: bool,
}

impl Judge {
    /// The place, counted from 1, of the last message of a topic that was acknowledged: nothing older
    /// may be brought from now on. 0 if there is none.
    pub(super) fn retained_floor(&self, topic: usize) -> usize {
        self.retained[topic]
            .iter()
            .rposition(|put| put.acknowledged)
            .map_or(0, |place| place + 1)
    }

    /// The place of a message among those retained for its topic, 0 if it never was.
    pub(super) fn retained_place(&self, message: &Message) -> usize {
        self.retained[message.topic]
            .iter()
            .rposition(|put| put.number == message.number)
            .map_or(0, |place| place + 1)
    }

    pub(super) fn retained_acknowledged(&mut self, number: u32) {
        let Some(topic) = self.ledger.get(number).map(|message| message.topic) else {
            return;
        };
        let put = self.retained[topic]
            .iter_mut()
            .rev()
            .find(|put| put.number == number && put.is_sure);
        if let Some(put) = put {
            put.acknowledged = true;
        }
    }

    /// Nothing moves any more: what subscriptions were to bring has come.
    pub(super) fn retained_at_rest(&self) -> Verdict {
        for (client, session) in self.sessions.iter().enumerate() {
            let is_there = session.exists == Exists::Yes && session.connection.is_some();
            if !is_there || !self.is_roomy() {
                continue;
            }
            for sub in &session.subs {
                if sub.brings_retained != BringsRetained::Yes
                    || !sub.stands()
                    || sub.qos == QoS::AtMostOnce
                {
                    continue;
                }
                for (topic, floor) in &sub.floors {
                    if *floor == 0 || sub.brought.contains_key(topic) {
                        continue;
                    }
                    let area = Area::of(TOPICS[*topic]);
                    let candidates = &self.retained[*topic][floor - 1..];
                    // Whatever of these was there then, it must have been sent.
                    let certain = candidates.iter().all(|put| {
                        let message = self.ledger.get(put.number);
                        !put.deletes
                            && message.is_some_and(|m| {
                                m.lifetime().is_none()
                                    && m.qos() > QoS::AtMostOnce
                                    && self.fits(client, m)
                                    && !(sub.no_local && m.publisher == client)
                            })
                    });
                    demand(
                        !certain || !self.access.held_since(client, area, sub.asked),
                        Invariant::RetainedIsSent,
                        || {
                            format!(
                                "`{}` of {} did not bring what is retained for `{}`, m{} or later",
                                sub.filter.as_str(),
                                self.name(client),
                                TOPICS[*topic],
                                candidates[0].number
                            )
                        },
                    )?;
                }
            }
        }
        Ok(())
    }
}
