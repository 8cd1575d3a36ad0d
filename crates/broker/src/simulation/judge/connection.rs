//! A connection at the broker's edge: what is asked and not answered, what is in flight on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mqtt::{Connect, Publish, QoS, ReasonCode, Version};

use super::Judge;
use crate::simulation::invariants::{Invariant, Verdict, Violation, demand};
use crate::simulation::ledger::{self, TapCopy, When};

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) client: usize,
    pub(super) asked: Option<Asked>,
    /// CONNACK with success has left.
    pub(super) served: Option<When>,
    pub(super) ended: Option<When>,
    pub(super) receive_maximum: usize,
    pub(super) max_packet: usize,
    pub(super) alias_maximum: u16,
    /// What the broker's aliases stand for.
    pub(super) aliases: BTreeMap<u16, String>,
    /// Packet identifiers of QoS 1 and 2 messages sent on this connection and not complete.
    pub(super) in_flight: BTreeSet<u16>,
    /// QoS 1 messages without PUBACK, QoS 2 messages without PUBREC, in order.
    pub(super) publishes: VecDeque<(u16, u32)>,
    pub(super) exact: VecDeque<(u16, u32)>,
    /// PUBRELs without PUBCOMP.
    pub(super) releases: Vec<u16>,
    /// SUBSCRIBEs without SUBACK, with the places of what they asked for.
    pub(super) subscribes: VecDeque<(u16, Vec<usize>)>,
    /// UNSUBSCRIBEs without UNSUBACK, with their filters and when they were handed in.
    pub(super) unsubscribes: VecDeque<(u16, Vec<String>, u64)>,
    pub(super) pings: usize,
    pub(super) leaving: Option<Leaving>,
    pub(super) will: Option<u32>,
}

/// What CONNECT asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) clean: bool,
    /// Milliseconds; `u64::MAX` for ever.
    pub(super) expiry: u64,
    pub(super) at: When,
    /// All that happened before this had got where it went by then.
    pub(super) safe: u64,
    pub(super) will_delay: u64,
}

/// DISCONNECT was handed in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    pub(super) with_will: bool,
    /// Milliseconds, if it changes.
    pub(super) expiry: Option<u64>,
}

impl Conn {
    pub(super) fn new(client: usize) -> Conn {
        Conn {
            client,
            asked: None,
            served: None,
            ended: None,
            receive_maximum: usize::MAX,
            max_packet: usize::MAX,
            alias_maximum: 0,
            aliases: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            publishes: VecDeque::new(),
            exact: VecDeque::new(),
            releases: Vec::new(),
            subscribes: VecDeque::new(),
            unsubscribes: VecDeque::new(),
            pings: 0,
            leaving: None,
            will: None,
        }
    }

    /// What nobody has answered, in words.
    pub(super) fn unanswered(&self) -> Option<String> {
        let what = if self.served.is_none() && self.asked.is_some() {
            "CONNECT".to_owned()
        } else if let Some((id, number)) = self.publishes.front() {
            format!("PUBLISH {id} (m{number})")
        } else if let Some((id, number)) = self.exact.front() {
            format!("PUBLISH {id} (m{number}, QoS 2)")
        } else if let Some(id) = self.releases.first() {
            format!("PUBREL {id}")
        } else if let Some((id, _)) = self.subscribes.front() {
            format!("SUBSCRIBE {id}")
        } else if let Some((id, ..)) = self.unsubscribes.front() {
            format!("UNSUBSCRIBE {id}")
        } else if self.pings > 0 {
            "PINGREQ".to_owned()
        } else {
            return None;
        };
        Some(what)
    }
}

impl Judge {
    pub(super) fn connect_in(&mut self, conn: usize, connect: &Connect) -> Verdict {
        let now = self.now;
        let max = self.plan.limits.session_expiry_max.as_millis() as u64;
        let properties = &connect.properties;
        let asked_expiry = match (connect.version, connect.clean_start) {
            (Version::V311, true) => 0,
            (Version::V311, false) => max,
            (Version::V5, _) => milliseconds(properties.session_expiry_interval.unwrap_or(0)),
        };
        let c = &mut self.conns[conn];
        c.receive_maximum = properties
            .receive_maximum
            .map_or(65_535, |n| usize::from(n.get()));
        c.max_packet = properties
            .maximum_packet_size
            .map_or(usize::MAX, |n| n.get() as usize);
        c.alias_maximum = properties.topic_alias_maximum.unwrap_or(0);
        let will_delay = connect
            .will
            .as_ref()
            .and_then(|will| will.properties.will_delay_interval)
            .unwrap_or(0);
        c.will = connect.will.as_ref().and_then(|will| {
            ledger::number_of(&Publish {
                payload: will.payload.clone(),
                ..Publish::default()
            })
        });
        c.asked = Some(Asked {
            clean: connect.clean_start,
            expiry: asked_expiry.min(max),
            at: now,
            safe: self.safe,
            will_delay: milliseconds(will_delay),
        });
        self.session_asked(conn);
        Ok(())
    }

    pub(super) fn publish_in(&mut self, conn: usize, publish: &Publish) -> Verdict {
        let now = self.now;
        let Some(number) = ledger::number_of(publish) else {
            return Ok(());
        };
        if let Some(message) = self.ledger.get_mut(number) {
            message.first_in.get_or_insert(now);
        }
        let c = &mut self.conns[conn];
        match (publish.qos, publish.packet_id) {
            (QoS::AtLeastOnce, Some(id)) => c.publishes.push_back((id.get(), number)),
            (QoS::ExactlyOnce, Some(id)) => c.exact.push_back((id.get(), number)),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn puback_out(&mut self, conn: usize, id: u16, reason: ReasonCode) -> Verdict {
        let first = self.conns[conn].publishes.pop_front();
        self.answered(conn, "PUBACK", id, reason, first)
    }

    pub(super) fn pubrec_out(&mut self, conn: usize, id: u16, reason: ReasonCode) -> Verdict {
        let first = self.conns[conn].exact.pop_front();
        self.answered(conn, "PUBREC", id, reason, first)
    }

    fn answered(
        &mut self,
        conn: usize,
        what: &str,
        id: u16,
        reason: ReasonCode,
        first: Option<(u16, u32)>,
    ) -> Verdict {
        let client = self.conns[conn].client;
        let Some((expected, number)) = first else {
            return Err(Violation::new(
                Invariant::AnswersInOrder,
                format!("{what} {id} to {} answers nothing", self.name(client)),
            ));
        };
        demand(expected == id, Invariant::AnswersInOrder, || {
            format!(
                "{what} {id} to {}, the oldest without answer is {expected} (m{number})",
                self.name(client)
            )
        })?;
        if !reason.is_error() {
            let copy = self.ledger.get(number).map(|message| message.copy);
            demand(
                copy != Some(TapCopy::Wanted),
                Invariant::AcknowledgedIsTapped,
                || {
                    format!(
                        "{what} {id} says success, and the tap has no durable copy of m{number}"
                    )
                },
            )?;
            self.acknowledged(number);
        }
        Ok(())
    }

    pub(super) fn pubcomp_out(&mut self, conn: usize, id: u16) -> Verdict {
        let client = self.conns[conn].client;
        let releases = &mut self.conns[conn].releases;
        match releases.iter().position(|release| *release == id) {
            Some(place) => {
                releases.remove(place);
                Ok(())
            }
            None => Err(Violation::new(
                Invariant::AnswersInOrder,
                format!("PUBCOMP {id} to {} answers nothing", self.name(client)),
            )),
        }
    }
}

/// Milliseconds of an interval in seconds, where the highest number is "for ever".
pub(super) fn milliseconds(seconds: u32) -> u64 {
    match seconds {
        u32::MAX => u64::MAX,
        seconds => u64::from(seconds) * 1000,
    }
}
