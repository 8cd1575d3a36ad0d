//! Offline: sessions whose clients are away fill up, and are drained when they come back.
//!
//! ```text
//! leave: CONNECT, SUBSCRIBE, DISCONNECT ─► fill: one publisher for each ─► drain: CONNECT, everything, once
//! ```
//! Two reports: messages stored per second, and messages fetched per second, the reconnects included.
//! What was stored and does not come back is lost in both.

use std::time::Instant;

use mqtt::QoS;

use super::door::Guest;
use super::engine::{Engine, Wait, accepted, refuse_goodbye};
use super::flow::{AT_ONCE, acknowledge, answer, following};
use super::frame::{self, Frame, Keeping, PUBCOMP, PUBREL, Retain, Topics};
use super::ledger::{Arrival, Lane, Tally};
use super::meter::{Meter, Report};
use super::scanner::{Found, Kind};
use super::stamp::Stamp;
use super::{Common, Door, PeersError};
use crate::open_files::allow_open_files;

/// Sessions that are away.
#[derive(Debug, Clone)]
pub struct Offline {
    /// What all scenarios have.
    pub common: Common,
    /// How many.
    pub sessions: usize,
    /// Messages for each.
    pub each: usize,
    /// Messages a publisher has under way.
    pub depth: usize,
}

impl Offline {
    /// Leaves, fills and drains.
    ///
    /// # Errors
    /// [`PeersError`] if the sessions cannot be made.
    pub fn run(&self, door: &Door) -> Result<Vec<Report>, PeersError> {
        self.common.check()?;
        if self.common.qos == QoS::AtMostOnce
            || self.sessions == 0
            || self.each == 0
            || self.depth == 0
            || door.most().is_some()
        {
            return Err(PeersError::Options {
                problem:
                    "sessions that are away get messages at QoS 1 or 2: at least one of each, \
                          from clients without certificates of their own"
                        .into(),
            });
        }
        allow_open_files(2 * self.sessions)?;
        let topics = Topics::below(&format!("{}/away/", self.common.root));
        let guests = door.guests("sleeper", self.sessions, Keeping::Stored);
        let mut engine = Engine::new()?;
        self.leave(door, &mut engine, &guests, &topics)?;
        let part = |part, unit| Report {
            part,
            unit,
            ..Report::default()
        };
        let (mut fill, mut drain) = (part("fill", "stored"), part("drain", "deliveries"));
        let mut tally = Tally::default();
        let meter = Meter::start(&self.common.processes, 0);
        if let Err(error) = self.fill(door, &mut engine, &topics, &mut tally) {
            fill.troubles.push(error.in_words());
        }
        fill.window = meter.stop(&self.common.processes, tally.acknowledged);
        let meter = Meter::start(&self.common.processes, 0);
        if let Err(error) = self.drain(door, &guests, &mut tally) {
            drain.troubles.push(error.in_words());
        }
        drain.window = meter.stop(&self.common.processes, tally.received);
        for report in [&mut fill, &mut drain] {
            report.tally = tally;
            report.peak_bytes = self.common.processes.peak();
        }
        Ok(vec![fill, drain])
    }

    fn leave(
        &self,
        door: &Door,
        engine: &mut Engine,
        guests: &[Guest],
        topics: &Topics,
    ) -> Result<(), PeersError> {
        let first = engine.connect(door, guests, AT_ONCE)?;
        let wishes = (0..self.sessions)
            .map(|number| {
                let filter = topics.number(number);
                let packet = frame::subscribe(door.version, self.common.qos, &[filter])?;
                Ok((first + number, vec![packet]))
            })
            .collect::<Result<Vec<_>, PeersError>>()?;
        engine.subscribe(&wishes, AT_ONCE)?;
        let goodbye = frame::disconnect(door.version)?;
        for number in 0..self.sessions {
            engine.send(first + number, &goodbye)?;
        }
        // They are away when the broker has closed.
        let (mut gone, begun) = (0, Instant::now());
        while gone < self.sessions {
            let left = self.common.patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(PeersError::Silent {
                    what: "the end of a connection",
                });
            }
            engine.turn(
                Wait::About(left),
                &mut |_, _: Found<'_>, _: &mut Vec<u8>| Ok(()),
            )?;
            gone += std::mem::take(&mut engine.ended).len();
        }
        Ok(())
    }

    fn fill(
        &self,
        door: &Door,
        engine: &mut Engine,
        topics: &Topics,
        tally: &mut Tally,
    ) -> Result<(), PeersError> {
        let Common { qos, payload, .. } = self.common;
        let mut frame = Frame::new(door.version, qos, topics, payload, self.depth, Retain::No)?;
        let guests = door.guests("filler", self.sessions, Keeping::Clean);
        let first = engine.connect(door, &guests, AT_ONCE)?;
        let (mut sent, mut open) = (vec![0; self.sessions], vec![0; self.sessions]);
        let mut ids = vec![1; self.sessions];
        let mut ready: Vec<_> = (0..self.sessions).collect();
        let (mut seen, mut progress) = (0, Instant::now());
        let all = (self.sessions * self.each) as u64;
        while tally.acknowledged + tally.refused < all {
            for one in ready.drain(..) {
                let count = self.depth.min(self.each - sent[one]);
                for place in 0..count {
                    let stamp = Stamp {
                        publisher: one as u32,
                        number: (sent[one] + place) as u32,
                        at_ns: 0,
                    };
                    frame.patch(place, one, ids[one], stamp);
                    ids[one] = following(ids[one]);
                }
                sent[one] += count;
                open[one] = count;
                tally.sent += count as u64;
                tally.due += count as u64;
                engine.send(first + one, frame.first(count))?;
            }
            let now = Instant::now();
            if tally.acknowledged != seen {
                (seen, progress) = (tally.acknowledged, now);
            }
            let left = self.common.patience.saturating_sub(now - progress);
            if left.is_zero() {
                return Err(PeersError::Silent {
                    what: "an acknowledgement",
                });
            }
            engine.turn(
                Wait::About(left),
                &mut |number: usize, found: Found<'_>, out: &mut Vec<u8>| {
                    match found.kind {
                        Kind::PubRec if found.reason() < 0x80 => {
                            answer(PUBREL, found.id()?, out);
                            return Ok(());
                        }
                        Kind::PubAck | Kind::PubComp | Kind::PubRec => {}
                        _ => return refuse_goodbye(&found),
                    }
                    match found.reason() {
                        0x80.. => tally.refused += 1,
                        _ => tally.acknowledged += 1,
                    }
                    let one = number - first;
                    open[one] -= 1;
                    if open[one] == 0 && sent[one] < self.each {
                        ready.push(one);
                    }
                    Ok(())
                },
            )?;
            engine.all_stand()?;
        }
        Ok(())
    }

    fn drain(&self, door: &Door, guests: &[Guest], tally: &mut Tally) -> Result<(), PeersError> {
        let mut engine = Engine::new()?;
        let mut lanes = vec![Lane::default(); self.sessions];
        let (mut begun, mut standing, mut known) = (0, 0, 0);
        let (mut seen, mut progress) = (0, Instant::now());
        let mut hear = |number: usize,
                        found: Found<'_>,
                        out: &mut Vec<u8>,
                        tally: &mut Tally,
                        standing: &mut usize| {
            match found.kind {
                Kind::ConnAck => {
                    known += usize::from(accepted(&found)?);
                    *standing += 1;
                }
                Kind::Publish => {
                    let message = found.message(door.version)?;
                    if let Some(id) = message.id {
                        acknowledge(message.qos, id, out);
                    }
                    let arrival = match message.stamp() {
                        Some(stamp) if stamp.publisher as usize == number => {
                            lanes[number].take(stamp.number, self.each as u32)
                        }
                        _ => Arrival::Alien,
                    };
                    tally.count(arrival);
                }
                Kind::PubRel => answer(PUBCOMP, found.id()?, out),
                _ => refuse_goodbye(&found)?,
            }
            Ok(())
        };
        while tally.lost() > 0 || standing < self.sessions {
            while begun < self.sessions && begun - standing < AT_ONCE {
                engine.add(door.open(&guests[begun])?)?;
                engine.send(begun, &door.connect(&guests[begun])?)?;
                begun += 1;
            }
            let now = Instant::now();
            let count = tally.received + standing as u64;
            if count != seen {
                (seen, progress) = (count, now);
            }
            let left = self.common.patience.saturating_sub(now - progress);
            if left.is_zero() {
                break; // what is missing is lost
            }
            engine.turn(
                Wait::About(left),
                &mut |number: usize, found: Found<'_>, out: &mut Vec<u8>| {
                    hear(number, found, out, tally, &mut standing)
                },
            )?;
            engine.all_stand()?;
        }
        engine.barrier(
            0..begun,
            self.common.patience,
            &mut |number: usize, found: Found<'_>, out: &mut Vec<u8>| {
                hear(number, found, out, tally, &mut standing)
            },
        )?;
        engine.all_stand()?;
        if known < self.sessions {
            return Err(PeersError::Options {
                problem: format!(
                    "{} of {} sessions were not there any more",
                    self.sessions - known,
                    self.sessions
                ),
            });
        }
        Ok(())
    }
}
