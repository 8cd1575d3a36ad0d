//! Wills: which must be published by now, which must not.

use super::Judge;
use super::session::Exists;
use crate::simulation::invariants::{Invariant, Verdict, Violation, demand};
use crate::simulation::ledger::When;
use crate::simulation::topics::Area;

#[derive(Debug)]
pub(super) struct Will {
    pub(super) number: u32,
    client: usize,
    conn: usize,
    epoch: u64,
    /// Milliseconds.
    delay: u64,
    status: Status,
    /// When it got this status, and when it got to be a will at all.
    since: u64,
    armed: u64,
    pub(super) published: u32,
    /// That it was published is durable, or not to be relied on.
    pub(super) is_safe: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// Its connection stands.
    Armed,
    /// To be published at this time, at the earliest and at the latest.
    Due(u64, u64),
    /// Not to be published (again).
    Over,
    /// Either.
    Unsure,
}

impl Will {
    fn set(&mut self, status: Status, now: When) {
        self.status = status;
        self.since = now.seq;
    }
}

impl Judge {
    pub(super) fn will_armed(&mut self, conn: usize) {
        let c = &self.conns[conn];
        let (Some(number), Some(asked)) = (c.will, c.asked) else {
            return;
        };
        self.wills.push(Will {
            number,
            client: c.client,
            conn,
            epoch: self.sessions[c.client].epoch,
            delay: asked.will_delay,
            status: Status::Armed,
            since: self.now.seq,
            armed: self.now.seq,
            published: 0,
            is_safe: false,
        });
    }

    pub(super) fn will_connection_ended(&mut self, conn: usize) {
        let now = self.now;
        let c = &self.conns[conn];
        let expiry = self.sessions[c.client].expiry;
        let revoked = c.leaving.is_some_and(|leaving| !leaving.with_will);
        for will in self.wills.iter_mut().filter(|will| will.conn == conn) {
            if will.status == Status::Armed {
                let due = |expiry: u64| now.ms.saturating_add(will.delay.min(expiry));
                let status = match revoked {
                    true => Status::Over,
                    false => Status::Due(due(expiry.0), due(expiry.1)),
                };
                will.set(status, now);
            }
        }
    }

    /// A later connection goes on with the session; its CONNECT was handed in at `asked`.
    pub(super) fn will_resumed(&mut self, client: usize, asked: When) {
        let now = self.now;
        let slack = self.slack();
        for will in self.wills.iter_mut().filter(|will| will.client == client) {
            if let Status::Due(from, to) = will.status {
                if will.delay == 0 {
                    continue; // it was due with the end of its connection, also at a takeover
                }
                if asked.ms + slack < from && now.ms + slack < from {
                    will.set(Status::Over, now);
                } else if asked.ms <= to.saturating_add(slack) {
                    will.set(Status::Unsure, now);
                }
            }
        }
    }

    /// The session ended: nothing is waited for any longer.
    pub(super) fn wills_of_ended_session(&mut self, client: usize) {
        let now = self.now;
        for will in self.wills.iter_mut().filter(|will| will.client == client) {
            if let Status::Due(from, to) = will.status {
                will.status = Status::Due(from.min(now.ms), to.min(now.ms));
            }
        }
    }

    /// Nobody knows what a CONNECT without answer did.
    pub(super) fn wills_unsure(&mut self, client: usize) {
        let now = self.now;
        for will in self.wills.iter_mut().filter(|will| will.client == client) {
            if let Status::Due(..) = will.status {
                will.set(Status::Unsure, now);
            }
        }
    }

    pub(super) fn wills_crashed(&mut self) {
        let now = self.now;
        let safe = self.safe;
        for will in &mut self.wills {
            let session = &self.sessions[will.client];
            let is_kept = session.exists == Exists::Yes
                && session.is_stored()
                && session.epoch == will.epoch
                && session.attempts.is_empty();
            if !will.is_safe {
                will.published = 0;
            }
            let latest = now.ms.saturating_add(will.delay.min(session.expiry.1));
            let status = match will.status {
                Status::Over if will.since > safe => Status::Unsure,
                Status::Over | Status::Unsure => continue,
                Status::Armed if is_kept => {
                    let leaving = self.conns[will.conn].leaving;
                    match leaving {
                        Some(_) => Status::Unsure,
                        None => Status::Due(
                            latest.min(now.ms.saturating_add(will.delay.min(session.expiry.0))),
                            latest,
                        ),
                    }
                }
                Status::Due(from, to) if is_kept => Status::Due(from, latest.max(to)),
                Status::Armed | Status::Due(..) => Status::Unsure,
            };
            will.set(status, now);
        }
    }

    /// The broker publishes a message; if it is a will, it must be due.
    pub(super) fn will_published(&mut self, number: u32, may_be_lost: bool) -> Verdict {
        let now = self.now;
        let slack = self.slack();
        let Some(place) = self.wills.iter().position(|will| will.number == number) else {
            return Ok(());
        };
        let client = self.wills[place].client;
        let curtailed = self.sessions[client].may_be_curtailed;
        let ending = self.sessions[client].attempts.iter().any(|conn| {
            self.conns[*conn]
                .asked
                .is_some_and(|asked| asked.clean || asked.expiry == 0 || curtailed)
        });
        let name = self.plan.characters[client].name.as_str();
        let will = &mut self.wills[place];
        let wrong = match will.status {
            Status::Armed => Some("while its connection stands"),
            Status::Over if will.published > 0 => Some("a second time"),
            Status::Over => Some("although it was revoked or its session resumed in time"),
            Status::Due(from, _) if now.ms + slack < from && !ending => Some("too early"),
            Status::Due(..) | Status::Unsure => None,
        };
        if let Some(wrong) = wrong {
            return Err(Violation::new(
                Invariant::WillOnlyWhenDue,
                format!("the will m{number} of {name} is published {wrong}"),
            ));
        }
        will.published += 1;
        will.is_safe = may_be_lost;
        will.set(Status::Over, now);
        Ok(())
    }

    pub(super) fn wills_at_rest(&self) -> Verdict {
        for will in &self.wills {
            let Status::Due(_, to) = will.status else {
                continue;
            };
            let late = self.turned > to.saturating_add(self.slack());
            let Some(message) = self.ledger.get(will.number) else {
                continue;
            };
            let allowed =
                self.access
                    .held_since(will.client, Area::of(message.topic()), will.armed);
            demand(!late || !allowed, Invariant::WillWhenDue, || {
                format!(
                    "the will m{} of {} was due {} ms ago",
                    will.number,
                    self.name(will.client),
                    self.turned - to
                )
            })?;
        }
        Ok(())
    }
}
