//! A PUBLISH that leaves the broker, its exchange, and its arrival at the application.

use std::collections::BTreeSet;

use mqtt::{Publish, PublishProperties, QoS, ReasonCode, Version};

use super::Judge;
use super::session::Session;
use super::subscriptions::{BringsRetained, Sub};
use crate::simulation::invariants::{Invariant, Verdict, Violation, demand};
use crate::simulation::ledger::{Kind, Message, UNNAMED};
use crate::simulation::topics::Area;

/// An exchange of QoS 1 or 2 towards a client.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) number: u32,
    pub(super) qos: QoS,
    pub(super) stage: Stage,
    /// The connection it was last sent on.
    conn: usize,
    /// The broker may know nothing of it: it crashed since and this was not stored, or it was given to
    /// another member of a shared subscription, or access to it went.
    pub(super) is_loose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Sent,
    /// PUBREC was handed in.
    Received,
}

/// How often a message was sent to a session, resends left out.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// As published.
    live: usize,
    /// Because of a subscription.
    brought: usize,
    /// When exchanges of it were completed.
    completed: Vec<u64>,
    /// Times the application got it at QoS 2, as published.
    exact: usize,
    /// The application got it at all.
    pub(super) has_arrived: bool,
}

impl Copies {
    /// What was completed after `safe` may come again.
    pub(super) fn crashed(&mut self, safe: u64) {
        self.completed.retain(|at| *at <= safe);
    }
}

impl Judge {
    pub(super) fn publish_out(&mut self, conn: usize, publish: &Publish, begun: u64) -> Verdict {
        let client = self.conns[conn].client;
        if self.sessions[client].connection != Some(conn) {
            // The rest of what was on its way when the connection ended.
            return Ok(());
        }
        let topic = self.resolve_alias(conn, publish)?;
        let Some(number) = self.identify(publish, &topic) else {
            return Err(Violation::new(
                Invariant::NothingInvented,
                format!(
                    "{} is sent {publish:?}, which nobody published",
                    self.name(client)
                ),
            ));
        };
        self.check_access(conn, number, &topic, publish, begun)?;
        let session = &self.sessions[client];
        let id = publish.packet_id.map_or(0, |id| id.get());
        let resend = publish.qos > QoS::AtMostOnce
            && session
                .flights
                .get(&id)
                .is_some_and(|flight| flight.number == number && flight.qos == publish.qos);
        if number != UNNAMED
            && let Some(message) = self.ledger.get(number)
        {
            self.check_content(client, message, publish, &topic)?;
            let way = Way::of(session, message, |sub| {
                self.retained_place(message) >= sub.floors.get(&message.topic).copied().unwrap_or(0)
            });
            way.check_cause(self.name(client), session, message, publish)?;
            way.check_options(self.name(client), client, message, publish)?;
            if !resend {
                self.check_lifetime(client, message, publish)?;
                self.check_copies(client, message, publish, &way)?;
            }
            self.note_copy(client, number, publish, resend);
        }
        self.check_exchange(conn, number, &topic, publish, resend)
    }

    /// The topic of a PUBLISH to a client.
    fn resolve_alias(&mut self, conn: usize, publish: &Publish) -> Result<String, Violation> {
        let c = &mut self.conns[conn];
        let topic = publish.topic.as_str();
        let broken = |detail: String| Err(Violation::new(Invariant::AliasResolvable, detail));
        let Some(alias) = publish.properties.topic_alias.map(u16::from) else {
            return match topic.is_empty() {
                true => broken("a PUBLISH without topic and alias".to_owned()),
                false => Ok(topic.to_owned()),
            };
        };
        if alias > c.alias_maximum {
            let maximum = c.alias_maximum;
            return broken(format!("alias {alias} to a client that takes {maximum}"));
        }
        if topic.is_empty() {
            return match c.aliases.get(&alias) {
                Some(topic) => Ok(topic.clone()),
                None => broken(format!(
                    "alias {alias}, which was never set on this connection"
                )),
            };
        }
        c.aliases.insert(alias, topic.to_owned());
        Ok(topic.to_owned())
    }

    /// Nothing is sent that may not be had. What goes through a subscription as it comes in is covered by
    /// the decision about its filter, as long as that stands; everything else is asked for when it is sent.
    fn check_access(
        &self,
        conn: usize,
        number: u32,
        topic: &str,
        publish: &Publish,
        begun: u64,
    ) -> Verdict {
        let c = &self.conns[conn];
        let area = Area::of(topic);
        if self.access.held_since(c.client, area, begun) {
            return Ok(());
        }
        let session = &self.sessions[c.client];
        let message = self.ledger.get(number);
        let is_covered = session.subs.iter().any(|sub| {
            sub.filter.matches(topic)
                && !area.is_met_by(sub.filter.filter(), self.plan.weather.wildcards)
                && (!publish.retain || sub.keeps_retain)
                && !sub.is_refused
        });
        let told = !is_covered && self.access.known_denied_at(c.client, area, begun);
        let denied_since = |seq| self.access.denied_since(c.client, area, seq);
        let waited = c.asked.zip(message.and_then(Message::last_taken));
        // Between two shards it may be on its way for a while, and still come as it was published.
        let waited = waited
            .is_some_and(|(asked, taken)| taken.seq < asked.safe && denied_since(asked.at.seq));
        let mut bringing = session
            .subs
            .iter()
            .filter(|sub| !sub.is_refused && sub.filter.matches(topic))
            .filter(|sub| sub.brings_retained != BringsRetained::No)
            .peekable();
        let keeps = |sub: &Sub| sub.keeps_retain && !sub.is_refused && sub.filter.matches(topic);
        let brought = publish.retain
            && !session.subs.iter().any(keeps)
            && bringing.peek().is_some()
            && bringing.all(|sub| denied_since(sub.asked));
        let wrong = match (told, waited, brought) {
            (true, ..) => "and the broker had been told that its access is gone",
            (_, true, _) => "which had waited while its access went",
            (.., true) => "which is retained and not for it",
            _ => return Ok(()),
        };
        Err(Violation::new(
            Invariant::AccessHeld,
            format!(
                "{} is sent m{number} on `{topic}`, {wrong}",
                self.name(c.client)
            ),
        ))
    }

    /// It is the message it says it is.
    fn check_content(
        &self,
        client: usize,
        message: &Message,
        publish: &Publish,
        topic: &str,
    ) -> Verdict {
        let kept = |p: &PublishProperties| PublishProperties {
            message_expiry_interval: None,
            topic_alias: None,
            subscription_ids: Vec::new(),
            ..p.clone()
        };
        let same = topic == message.topic()
            && publish.payload == message.publish.payload
            && (self.plan.characters[client].version == Version::V311
                || kept(&publish.properties) == kept(&message.publish.properties));
        demand(same, Invariant::NothingInvented, || {
            format!(
                "m{} was {:?} and became {publish:?}",
                message.number, message.publish
            )
        })
    }

    fn check_lifetime(&self, client: usize, message: &Message, publish: &Publish) -> Verdict {
        let Some(lifetime) = message.lifetime() else {
            return demand(
                publish.properties.message_expiry_interval.is_none(),
                Invariant::ExpiryCountedDown,
                || format!("m{} has no expiry and is sent with one", message.number),
            );
        };
        let (Some(first), Some(last)) = (message.first_in, message.last_taken()) else {
            return Ok(());
        };
        let (oldest, youngest) = (self.now.ms - first.ms, self.now.ms - last.ms);
        let slack = self.slack();
        // With DUP the broker says that it had begun to send it, on a connection that broke.
        let in_time = publish.dup || youngest <= lifetime + slack;
        demand(in_time, Invariant::ExpiryCountedDown, || {
            format!(
                "m{} lives {lifetime} ms and is first sent to {} after {youngest} ms",
                message.number,
                self.name(client)
            )
        })?;
        if publish.dup || self.plan.characters[client].version == Version::V311 {
            return Ok(());
        }
        let left = publish
            .properties
            .message_expiry_interval
            .map(|seconds| u64::from(seconds) * 1000);
        let fits = left.is_some_and(|left| {
            left + youngest <= lifetime + slack && left + oldest + slack >= lifetime
        });
        demand(fits, Invariant::ExpiryCountedDown, || {
            format!(
                "m{} lives {lifetime} ms, is {youngest} to {oldest} ms old and says {left:?} ms are left",
                message.number
            )
        })
    }

    fn check_copies(
        &self,
        client: usize,
        message: &Message,
        publish: &Publish,
        way: &Way<'_>,
    ) -> Verdict {
        let session = &self.sessions[client];
        let Some(copies) = session.copies.get(&message.number) else {
            return Ok(());
        };
        if !way.shared.is_empty() {
            return Ok(()); // it may come back from another member
        }
        let (Some(first), published) = (message.first_in, message.taken.len()) else {
            return Ok(());
        };
        let crashes = match message.qos() {
            QoS::AtMostOnce => 0,
            _ => self.crashes_since(first.seq),
        };
        let as_published = way.live.len().min(1) * published;
        // What a crash cuts short is brought from the beginning again.
        let brought = way
            .bringing
            .iter()
            .map(|sub| 1 + self.crashes_since(sub.asked));
        let (sent, cause) = match publish.retain {
            false => (copies.live, as_published * (1 + crashes)),
            true => (
                copies.brought,
                (brought.sum::<usize>() + as_published) * (1 + crashes),
            ),
        };
        demand(sent < cause, Invariant::NoCopyWithoutCause, || {
            format!(
                "copy {} of m{} (retain {}) to {}, published {published} times, {} subscriptions bring it, \
                 {crashes} crashes since",
                sent + 1,
                message.number,
                publish.retain,
                self.name(client),
                way.bringing.len()
            )
        })?;
        let safe = self.safe;
        let completed = copies.completed.iter().filter(|at| **at <= safe).count();
        let settled = !publish.retain && completed >= published && copies.brought == 0;
        demand(!settled, Invariant::AcknowledgedNotRepeated, || {
            format!(
                "m{} is sent to {} again, who acknowledged it long ago",
                message.number,
                self.name(client)
            )
        })
    }

    fn note_copy(&mut self, client: usize, number: u32, publish: &Publish, resend: bool) {
        let topic = self.ledger.get(number).map_or(0, |message| message.topic);
        let place = self
            .ledger
            .get(number)
            .map_or(0, |m| self.retained_place(m));
        let session = &mut self.sessions[client];
        if !resend {
            let copies = session.copies.entry(number).or_default();
            match publish.retain {
                false => copies.live += 1,
                true => copies.brought += 1,
            }
        }
        if publish.retain {
            for sub in &mut session.subs {
                if sub.brings_retained != BringsRetained::No
                    && sub.floors.get(&topic).is_some_and(|floor| place >= *floor)
                {
                    *sub.brought.entry(topic).or_default() += 1;
                }
            }
        }
    }

    fn check_exchange(
        &mut self,
        conn: usize,
        number: u32,
        topic: &str,
        publish: &Publish,
        resend: bool,
    ) -> Verdict {
        let Some(id) = publish.packet_id.map(|id| id.get()) else {
            return Ok(());
        };
        let client = self.conns[conn].client;
        let name = self.plan.characters[client].name.as_str();
        let session = &mut self.sessions[client];
        let taken = self.ledger.get(number).and_then(|m| m.taken.first());
        // It can have been on its way on a connection before, unseen here: the broker may have filled
        // a buffer that was lost with the connection.
        let unseen_before = match (taken, session.connacks.last()) {
            (Some(taken), Some(connack)) => taken.seq < connack.seq,
            _ => true,
        };
        match session.flights.get(&id) {
            Some(flight) if resend => {
                demand(flight.conn != conn, Invariant::DupOnResendsOnly, || {
                    format!("m{number} is sent to {name} twice on one connection (packet id {id})")
                })?;
                let must_say = flight.qos == QoS::ExactlyOnce || !flight.is_loose;
                demand(
                    publish.dup || !must_say,
                    Invariant::DupOnResendsOnly,
                    || format!("m{number} is sent to {name} again (packet id {id}) without DUP"),
                )?;
                demand(
                    flight.stage == Stage::Sent || flight.is_loose,
                    Invariant::ExchangeGoesOn,
                    || format!("m{number} is sent to {name} again (packet id {id}) after PUBREC"),
                )?;
            }
            Some(flight)
                if !flight.is_loose
                    || flight.qos == QoS::ExactlyOnce && flight.stage == Stage::Sent =>
            {
                return Err(Violation::new(
                    Invariant::PacketIdOnce,
                    format!(
                        "packet id {id} to {name} names m{number} (QoS {}) while it names m{} (QoS {})",
                        publish.qos.as_u8(),
                        flight.number,
                        flight.qos.as_u8()
                    ),
                ));
            }
            _ => demand(
                !publish.dup || unseen_before,
                Invariant::DupOnResendsOnly,
                || {
                    format!(
                        "m{number} is sent to {name} for the first time with DUP (packet id {id})"
                    )
                },
            )?,
        }
        let area = Area::of(topic);
        session.flights.insert(
            id,
            Flight {
                number,
                qos: publish.qos,
                stage: Stage::Sent,
                conn,
                is_loose: self.access.denied_since(client, area, u64::MAX),
            },
        );
        let c = &mut self.conns[conn];
        c.in_flight.insert(id);
        let (flying, maximum) = (c.in_flight.len(), c.receive_maximum);
        demand(flying <= maximum, Invariant::ReceiveMaximumHeld, || {
            format!("{flying} messages in flight to {name}, whose Receive Maximum is {maximum}")
        })
    }

    /// What came by a shared subscription may go to another member now, at QoS 1.
    pub(super) fn flights_lost_connection(&mut self, client: usize) {
        let session = &mut self.sessions[client];
        for flight in session.flights.values_mut() {
            let message = self.ledger.get(flight.number);
            let mut subs = session.subs.iter().filter(|sub| sub.is_shared());
            let by_share = subs.any(|sub| message.is_none_or(|message| sub.may_match(message)));
            flight.is_loose |= by_share && flight.qos == QoS::AtLeastOnce;
        }
    }

    /// What is not to be had any more is not sent again: its exchange is given up, or finished without
    /// its message.
    pub(super) fn flights_denied(&mut self, client: usize, area: Area) {
        for flight in self.sessions[client].flights.values_mut() {
            let message = self.ledger.get(flight.number);
            flight.is_loose |= message.is_none_or(|m| Area::of(m.topic()) == area);
        }
    }

    pub(super) fn puback_in(&mut self, conn: usize, id: u16) -> Verdict {
        self.completed(conn, id, QoS::AtLeastOnce);
        Ok(())
    }

    pub(super) fn pubrec_in(&mut self, conn: usize, id: u16, reason: ReasonCode) -> Verdict {
        if reason.is_error() {
            self.completed(conn, id, QoS::ExactlyOnce);
        } else if let Some(flight) = self.flight_of(conn, id) {
            flight.stage = Stage::Received;
            flight.is_loose = false;
        }
        Ok(())
    }

    pub(super) fn pubrel_out(&mut self, conn: usize, id: u16) -> Verdict {
        let client = self.conns[conn].client;
        let name = self.plan.characters[client].name.clone();
        match self.flight_of(conn, id) {
            Some(flight) if flight.stage == Stage::Sent && !flight.is_loose => Err(Violation::new(
                Invariant::ExchangeGoesOn,
                format!("PUBREL {id} to {name} before its PUBREC"),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn pubcomp_in(&mut self, conn: usize, id: u16) -> Verdict {
        self.completed(conn, id, QoS::ExactlyOnce);
        Ok(())
    }

    fn flight_of(&mut self, conn: usize, id: u16) -> Option<&mut Flight> {
        let session = &mut self.sessions[self.conns[conn].client];
        if session.connection != Some(conn) {
            return None;
        }
        session.flights.get_mut(&id)
    }

    fn completed(&mut self, conn: usize, id: u16, qos: QoS) {
        let now = self.now.seq;
        self.conns[conn].in_flight.remove(&id);
        let Some(number) = self
            .flight_of(conn, id)
            .filter(|flight| flight.qos == qos)
            .map(|flight| flight.number)
        else {
            return;
        };
        let session = &mut self.sessions[self.conns[conn].client];
        session.flights.remove(&id);
        session
            .copies
            .entry(number)
            .or_default()
            .completed
            .push(now);
    }

    /// The application of a client got a message, over a connection.
    pub(in crate::simulation) fn arrived(
        &mut self,
        client: usize,
        conn: usize,
        number: u32,
        publish: &Publish,
    ) -> Verdict {
        self.tick();
        let Some(message) = self.ledger.get(number) else {
            return Ok(());
        };
        let served = self.conns[conn].served;
        let session = &self.sessions[client];
        let is_of_session = served
            .is_some_and(|served| session.began().is_some_and(|began| began.seq <= served.seq));
        if !is_of_session {
            self.shared_arrived(client, number);
            return Ok(());
        }
        let ways = Way::of(session, message, |_| true);
        let only_share = match (ways.live.is_empty(), ways.shared.len()) {
            (true, 1) if !publish.retain => ways.shared.first().map(|share| (*share).to_owned()),
            _ => None,
        };
        let key = (message.publisher, message.topic, message.qos(), publish.qos);
        // What was published again, after an answer was lost, comes in the order of that. And what
        // expired before it was sent may be found as sent after a crash.
        let ordered = ways.shared.is_empty()
            && !publish.retain
            && message.lifetime().is_none()
            && message.kind == Kind::Published
            && message.taken.len() == 1;
        let causes = ways.live.len().min(1) + ways.shared.len();
        let exact = publish.qos == QoS::ExactlyOnce && !publish.retain && !message.has_failed;
        let name = self.plan.characters[client].name.as_str();
        let session = &mut self.sessions[client];
        let copies = session.copies.entry(number).or_default();
        let is_first = !copies.has_arrived;
        copies.has_arrived = true;
        if exact {
            copies.exact += 1;
            let times = copies.exact;
            demand(times <= causes.max(1), Invariant::ExactlyOnce, || {
                format!("m{number} reached the application of {name} {times} times at QoS 2")
            })?;
        }
        session.owed.remove(&number);
        if let (true, true, Some(taken)) = (is_first, ordered, message.last_taken()) {
            let last = session.order.entry(key).or_default();
            let before = *last;
            *last = before.max((taken.seq, number));
            demand(before.0 <= taken.seq, Invariant::OrderKept, || {
                let before = before.1;
                format!(
                    "m{number} first reached {name} after m{before} of the same publisher, topic and QoS"
                )
            })?;
        }
        self.shared_arrived(client, number);
        match only_share {
            Some(share) => self.shared_once(client, &share, number, publish),
            None => Ok(()),
        }
    }
}

/// How a message can have come to a session.
pub(super) struct Way<'a> {
    /// Subscriptions of its own that took it in as it was published.
    pub(super) live: Vec<&'a Sub>,
    /// Shared subscriptions it is a member of.
    pub(super) shared: BTreeSet<&'a str>,
    shared_subs: Vec<&'a Sub>,
    /// Subscriptions that brought it as the retained message.
    bringing: Vec<&'a Sub>,
    /// The same, were it not for a later one that was acknowledged.
    stale: bool,
}

impl<'a> Way<'a> {
    pub(super) fn of(
        session: &'a Session,
        message: &Message,
        is_current: impl Fn(&Sub) -> bool,
    ) -> Way<'a> {
        let mut way = Way {
            live: Vec::new(),
            shared: BTreeSet::new(),
            shared_subs: Vec::new(),
            bringing: Vec::new(),
            stale: false,
        };
        for sub in &session.subs {
            // What waits for a shared subscription, or comes back to it, goes to whoever is there then.
            if sub.is_shared() && sub.may_match(message) {
                way.shared.insert(sub.filter.as_str());
                way.shared_subs.push(sub);
            } else if !sub.is_shared() && sub.may_be_live_for(message) {
                way.live.push(sub);
            }
            let brings = sub.brings_retained != BringsRetained::No
                && message.publish.retain
                && !sub.is_refused
                && sub.filter.matches(message.topic());
            if brings && is_current(sub) {
                way.bringing.push(sub);
            } else if brings {
                way.stale = true;
            }
        }
        way
    }

    /// Some subscription is the reason, and RETAIN says which kind.
    fn check_cause(
        &self,
        name: &str,
        session: &Session,
        message: &Message,
        publish: &Publish,
    ) -> Verdict {
        let number = message.number;
        let mut as_published = self.live.iter().chain(&self.shared_subs);
        if publish.retain {
            let kept = message.publish.retain && as_published.any(|sub| sub.keeps_retain);
            if kept || !self.bringing.is_empty() {
                return Ok(());
            }
            return Err(match self.stale {
                true => Violation::new(
                    Invariant::RetainedIsLatest,
                    format!(
                        "{name} is brought m{number}, after which another one was acknowledged"
                    ),
                ),
                false => Violation::new(
                    Invariant::RetainFlagTrue,
                    format!(
                        "m{number} to {name} says it was retained, and no subscription brings it"
                    ),
                ),
            });
        }
        if self.live.is_empty() && self.shared.is_empty() {
            return Err(Violation::new(
                Invariant::NothingInvented,
                format!(
                    "{name} is sent m{number} on `{}`, and no subscription of it matches; it has {:?}",
                    message.topic(),
                    session
                        .subs
                        .iter()
                        .map(|sub| sub.filter.as_str())
                        .collect::<Vec<_>>()
                ),
            ));
        }
        demand(
            !message.publish.retain || as_published.any(|sub| !sub.keeps_retain),
            Invariant::RetainFlagTrue,
            || {
                format!(
                    "m{number} to {name} was published with RETAIN, and its subscription keeps that"
                )
            },
        )
    }

    /// QoS, No Local and subscription identifiers are as the subscriptions say.
    fn check_options(
        &self,
        name: &str,
        client: usize,
        message: &Message,
        publish: &Publish,
    ) -> Verdict {
        let number = message.number;
        let all = || {
            self.live
                .iter()
                .chain(&self.shared_subs)
                .chain(&self.bringing)
        };
        let best = all().map(|sub| sub.qos).max().unwrap_or_default();
        let (qos, published) = (publish.qos, message.qos());
        demand(
            qos <= best.min(published),
            Invariant::GrantedQosHeld,
            || format!("m{number} (QoS {published:?}) to {name} has {qos:?}, granted is {best:?}"),
        )?;
        let own = message.publisher == client;
        if own && !publish.retain {
            let mut subs = self.live.iter().chain(&self.shared_subs);
            demand(
                subs.any(|sub| !sub.no_local),
                Invariant::NoLocalHeld,
                || format!("m{number} comes back to {name}, who wants none of its own"),
            )?;
        }
        let ids: BTreeSet<u32> = publish
            .properties
            .subscription_ids
            .iter()
            .map(|id| id.get())
            .collect();
        let known: BTreeSet<u32> = all().filter_map(|sub| sub.id).collect();
        demand(
            ids.is_subset(&known),
            Invariant::SubscriptionIdsTrue,
            || format!("m{number} to {name} bears {ids:?}, its subscriptions have {known:?}"),
        )?;
        if publish.retain || !self.shared.is_empty() {
            return Ok(());
        }
        let stood = |sub: &&&Sub| {
            sub.stands()
                && !(own && sub.no_local)
                && sub
                    .granted
                    .zip(message.first_in)
                    .is_some_and(|(granted, first)| granted < first.seq)
        };
        let least = self.live.iter().filter(stood).map(|sub| sub.qos).max();
        if let Some(least) = least {
            demand(
                qos >= least.min(published),
                Invariant::GrantedQosHeld,
                || {
                    format!(
                        "m{number} (QoS {published:?}) to {name} has {qos:?}, granted is {least:?}"
                    )
                },
            )?;
        }
        let wanted: BTreeSet<u32> = self
            .live
            .iter()
            .filter(stood)
            .filter_map(|sub| sub.id)
            .collect();
        demand(
            wanted.is_subset(&ids),
            Invariant::SubscriptionIdsTrue,
            || format!("m{number} to {name} bears {ids:?}, its subscriptions have {wanted:?}"),
        )
    }
}
