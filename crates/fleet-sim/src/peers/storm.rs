//! Storm: clients that connect and leave, over and over.
//!
//! ```text
//! TCP (and TLS) ─► CONNECT ─► CONNACK ─► DISCONNECT ─► the broker closes ─► again
//! ```
//! A client waits for the broker to close, so that the ports that TCP keeps from use for a minute are the
//! broker's one and not ours. Handshakes are full ones.

use std::time::{Duration, Instant};

use super::engine::{Engine, PATIENCE, Wait, accepted};
use super::frame::{self, Keeping};
use super::meter::{Meter, Report, Window};
use super::scanner::{Found, Kind};
use super::{Common, Door, PeersError};
use crate::histogram::Histogram;
use crate::open_files::allow_open_files;

/// Failures after which a run is over: the figures would be of something else.
const MOST_FAILURES: u64 = 100;
/// How often it is looked for who waits too long, and for the end.
const LOOK: Duration = Duration::from_millis(10);

/// Clients that come and go.
#[derive(Debug, Clone)]
pub struct Storm {
    /// What all scenarios have.
    pub common: Common,
    /// Clients, each with one connection at a time.
    pub clients: usize,
}

/// Where a client is with its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Leaving,
}

struct Client {
    begun: Instant,
    stage: Stage,
    visits: usize,
}

impl Storm {
    /// Storms, and counts.
    ///
    /// # Errors
    /// [`PeersError`] if not even a first connection can be begun.
    pub fn run(&self, door: &Door) -> Result<Report, PeersError> {
        self.common.check()?;
        if self.clients == 0 || door.most().is_some_and(|most| most < self.clients) {
            return Err(PeersError::Options {
                problem: format!(
                    "{} clients: ask for one, and for as many as have certificates",
                    self.clients
                ),
            });
        }
        allow_open_files(self.clients)?;
        let mut engine = Engine::new()?;
        let goodbye = frame::disconnect(door.version)?;
        let mut clients = Vec::with_capacity(self.clients);
        let begun = Instant::now();
        for number in 0..self.clients {
            clients.push(Client {
                begun,
                stage: Stage::Connecting,
                visits: 0,
            });
            engine.add(door.open(&self.guest(door, number, 0))?)?;
            let hello = door.connect(&self.guest(door, number, 0))?;
            engine.send(number, &hello)?;
        }
        let mut report = Report {
            unit: "connects",
            ..Report::default()
        };
        let mut latency = Histogram::default();
        let (mut made, mut failed) = (0_u64, 0_u64);
        let opens = begun + self.common.warm_up;
        let (mut meter, mut closes) = (None, None);
        let mut next_look = begun;
        loop {
            let now = Instant::now();
            if meter.is_none() && now >= opens {
                latency = Histogram::default();
                meter = Some(Meter::start(&self.common.processes, made));
                closes = Some(now + self.common.lasts);
            }
            if closes.is_some_and(|closes| now >= closes) || failed >= MOST_FAILURES {
                break;
            }
            let mut heard = |number: usize, found: Found<'_>, answers: &mut Vec<u8>| {
                if found.kind == Kind::ConnAck {
                    accepted(&found)?;
                    let client = &mut clients[number];
                    client.stage = Stage::Leaving;
                    latency.add(client.begun.elapsed());
                    made += 1;
                    answers.extend_from_slice(&goodbye);
                }
                Ok(())
            };
            match engine.turn(Wait::About(LOOK), &mut heard) {
                Ok(()) => {}
                Err(error) => {
                    // Refused: who it was is not known, and the run is worth nothing.
                    report.troubles.push(error.in_words());
                    break;
                }
            }
            for (number, why) in std::mem::take(&mut engine.ended) {
                if clients[number].stage == Stage::Connecting {
                    failed += 1;
                    let why = why.unwrap_or(PeersError::Closed).in_words();
                    if !report.troubles.contains(&why) {
                        report.troubles.push(why);
                    }
                }
                self.again(door, &mut engine, number, &mut clients[number])?;
            }
            if now < next_look {
                continue;
            }
            next_look = now + LOOK;
            for (number, client) in clients.iter_mut().enumerate() {
                if now.saturating_duration_since(client.begun) > PATIENCE {
                    // A broker that does not close is one that does not answer.
                    failed += 1;
                    report.troubles.push("no end within 30 s".to_owned());
                    engine.close(number);
                    self.again(door, &mut engine, number, client)?;
                }
            }
        }
        report.window = match &meter {
            Some(meter) => meter.stop(&self.common.processes, made),
            None => Window::default(),
        };
        report.latency = Some(latency);
        report.peak_bytes = self.common.processes.peak();
        Ok(report)
    }

    fn guest(&self, door: &Door, number: usize, visit: usize) -> super::door::Guest {
        let mut guest = door.guest("storm", number, Keeping::Clean);
        if door.most().is_none() {
            guest.client_id = format!("{}-{visit}", guest.client_id);
        }
        guest
    }

    fn again(
        &self,
        door: &Door,
        engine: &mut Engine,
        number: usize,
        client: &mut Client,
    ) -> Result<(), PeersError> {
        client.visits += 1;
        client.stage = Stage::Connecting;
        client.begun = Instant::now();
        let guest = self.guest(door, number, client.visits);
        engine.place(number, door.open(&guest)?)?;
        engine.send(number, &door.connect(&guest)?)
    }
}
