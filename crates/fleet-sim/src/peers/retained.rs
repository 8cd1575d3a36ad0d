//! Retained: many retained messages, sent to whoever subscribes, again and again.
//!
//! ```text
//! one publisher fills ─► readers: SUBSCRIBE ─► all of them ─► UNSUBSCRIBE ─► again, until the time is over
//! ```

use std::time::Instant;

use mqtt::QoS;

use super::engine::{Engine, Wait, refuse_goodbye};
use super::flow::{AT_ONCE, acknowledge, answer, following};
use super::frame::{self, Frame, Keeping, PUBCOMP, PUBREL, Retain, Topics};
use super::ledger::{Arrival, Lane, Tally};
use super::meter::{Meter, Report};
use super::scanner::{Found, Kind};
use super::stamp::Stamp;
use super::{Common, Door, PeersError};
use crate::open_files::allow_open_files;

/// Messages the filling publisher has under way.
const UNDER_WAY: usize = 64;

/// Retained messages that are replayed.
#[derive(Debug, Clone)]
pub struct Retained {
    /// What all scenarios have.
    pub common: Common,
    /// Retained messages, each on a topic of its own.
    pub messages: usize,
    /// Readers that subscribe to all of them at the same time.
    pub readers: usize,
}

struct Reader {
    lane: Lane,
    came: usize,
    granted: bool,
}

impl Retained {
    /// Fills, and replays.
    ///
    /// # Errors
    /// [`PeersError`] if the messages cannot be left with the broker.
    pub fn run(&self, door: &Door) -> Result<Report, PeersError> {
        self.common.check()?;
        if self.messages == 0 || self.messages > 9_999_999 || self.readers == 0 {
            return Err(PeersError::Options {
                problem: "retained messages: 1 to 9,999,999, and at least one reader".into(),
            });
        }
        allow_open_files(self.readers + 1)?;
        let topics = Topics::below(&format!("{}/kept/", self.common.root));
        let mut engine = Engine::new()?;
        self.fill(door, &mut engine, &topics)?;
        let guests = door.guests("reader", self.readers, Keeping::Clean);
        let first = engine.connect(door, &guests, AT_ONCE)?;
        let mut report = Report {
            unit: "deliveries",
            ..Report::default()
        };
        let meter = Meter::start(&self.common.processes, 0);
        let mut tally = Tally {
            sent: self.messages as u64,
            ..Tally::default()
        };
        if let Err(error) = self.replay(door, &mut engine, &topics, first, &mut tally) {
            report.troubles.push(error.in_words());
        }
        report.window = meter.stop(&self.common.processes, tally.received);
        report.tally = tally;
        report.peak_bytes = self.common.processes.peak();
        Ok(report)
    }

    /// Leaves the messages with the broker.
    fn fill(&self, door: &Door, engine: &mut Engine, topics: &Topics) -> Result<(), PeersError> {
        let (qos, version) = (self.common.qos, door.version);
        let mut frame = Frame::new(
            version,
            qos,
            topics,
            self.common.payload,
            UNDER_WAY,
            Retain::Yes,
        )?;
        let line = engine.connect(door, &[door.guest("filler", 0, Keeping::Clean)], 1)?;
        let (mut sent, mut id) = (0, 1);
        while sent < self.messages {
            let count = UNDER_WAY.min(self.messages - sent);
            for place in 0..count {
                let number = sent + place;
                let stamp = Stamp {
                    publisher: 0,
                    number: number as u32,
                    at_ns: 0,
                };
                frame.patch(place, number, id, stamp);
                id = following(id);
            }
            engine.send(line, frame.first(count))?;
            engine.send(line, &frame::PINGREQ)?;
            sent += count;
            let (mut open, mut answered) = (if qos == QoS::AtMostOnce { 0 } else { count }, false);
            engine.wait_for("an acknowledgement", |_, found, out| {
                match found.kind {
                    Kind::PubRec if found.reason() < 0x80 => answer(PUBREL, found.id()?, out),
                    Kind::PubAck | Kind::PubRec if found.reason() >= 0x80 => {
                        return Err(PeersError::Refused {
                            what: "a retained message",
                            code: found.reason(),
                        });
                    }
                    Kind::PubAck | Kind::PubComp => open -= 1,
                    Kind::PingResp => answered = true,
                    _ => {}
                }
                Ok(open == 0 && answered)
            })?;
        }
        engine.close(line);
        Ok(())
    }

    fn replay(
        &self,
        door: &Door,
        engine: &mut Engine,
        topics: &Topics,
        first: usize,
        tally: &mut Tally,
    ) -> Result<(), PeersError> {
        let all = self.messages as u32;
        let subscribe = frame::subscribe(door.version, self.common.qos, &[topics.all()])?;
        let unsubscribe = frame::unsubscribe(door.version, &topics.all())?;
        let fresh = || Reader {
            lane: Lane::default(),
            came: 0,
            granted: false,
        };
        let mut readers: Vec<_> = (0..self.readers).map(|_| fresh()).collect();
        for reader in 0..self.readers {
            engine.send(first + reader, &subscribe)?;
            tally.due += u64::from(all);
        }
        let closes = Instant::now() + self.common.lasts;
        let (mut seen, mut progress, mut busy) = (0, Instant::now(), self.readers);
        while busy > 0 {
            let now = Instant::now();
            if tally.received != seen {
                (seen, progress) = (tally.received, now);
            }
            let left = self.common.patience.saturating_sub(now - progress);
            if left.is_zero() {
                return Ok(()); // what is missing is lost
            }
            engine.turn(
                Wait::About(left),
                &mut |number: usize, found: Found<'_>, out: &mut Vec<u8>| {
                    let reader = &mut readers[number - first];
                    match found.kind {
                        Kind::Publish => {
                            let message = found.message(door.version)?;
                            if let Some(id) = message.id {
                                acknowledge(message.qos, id, out);
                            }
                            let arrival = match message.stamp() {
                                Some(stamp) if stamp.publisher == 0 => {
                                    reader.lane.take(stamp.number, all)
                                }
                                _ => Arrival::Alien,
                            };
                            tally.count(arrival);
                            reader.came += usize::from(arrival == Arrival::New);
                            if arrival != Arrival::New {
                                return Ok(());
                            }
                        }
                        Kind::PubRel => {
                            answer(PUBCOMP, found.id()?, out);
                            return Ok(());
                        }
                        Kind::SubAck => reader.granted = true,
                        Kind::UnsubAck => {
                            if Instant::now() >= closes {
                                busy -= 1;
                                return Ok(());
                            }
                            *reader = fresh();
                            out.extend_from_slice(&subscribe);
                            tally.due += u64::from(all);
                            return Ok(());
                        }
                        _ => return refuse_goodbye(&found),
                    }
                    if reader.granted && reader.came == self.messages {
                        out.extend_from_slice(&unsubscribe);
                    }
                    Ok(())
                },
            )?;
            engine.all_stand()?;
        }
        Ok(())
    }
}
