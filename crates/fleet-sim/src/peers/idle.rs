//! Idle: connections with one subscription each that say nothing, and what they cost the broker.
//!
//! The broker's resident memory is read when it has come to rest: before them, after as many others
//! have warmed it up, and with them.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::flow::AT_ONCE;
use super::frame::{self, Keeping, Topics};
use super::meter::{Memory, Meter, Report};
use super::{Common, Door, PeersError};
use crate::open_files::allow_open_files;

/// Connections that warm the broker up.
const WARM: usize = 100;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(250);
/// Looks without a change after which it has come to rest.
const STILL: usize = 6;
/// For it to come to rest; some never do.
const REST: Duration = Duration::from_secs(15);
/// Change that is none, bytes.
const NOISE: u64 = 64 * 1024;

/// Connections that only stay.
#[derive(Debug, Clone)]
pub struct Idle {
    /// What all scenarios have.
    pub common: Common,
    /// How many.
    pub connections: usize,
}

impl Idle {
    /// Connects and looks.
    ///
    /// # Errors
    /// [`PeersError`] if they cannot all connect and subscribe.
    pub fn run(&self, door: &Door) -> Result<Report, PeersError> {
        self.common.check()?;
        if self.connections == 0 || door.most().is_some_and(|most| most < self.connections) {
            return Err(PeersError::Options {
                problem: format!(
                    "{} connections: ask for one, and for as many as have certificates",
                    self.connections
                ),
            });
        }
        allow_open_files(self.connections + WARM)?;
        let mut warm = Engine::new()?;
        self.stay(door, &mut warm, "warm", WARM.min(self.connections))?;
        drop(warm);
        let before = self.at_rest();
        let meter = Meter::start(&self.common.processes, 0);
        let mut engine = Engine::new()?;
        self.stay(door, &mut engine, "idle", self.connections)?;
        let window = meter.stop(&self.common.processes, self.connections as u64);
        let after = self.at_rest();
        // Everybody must still be there: a connection that was given up costs nothing.
        let all = 0..self.connections;
        engine.barrier(all, self.common.patience, &mut |_, _, _: &mut Vec<u8>| {
            Ok(())
        })?;
        engine.all_stand()?;
        Ok(Report {
            unit: "connections",
            window,
            memory: Some(Memory {
                connections: self.connections as u64,
                before,
                after,
            }),
            peak_bytes: self.common.processes.peak(),
            ..Report::default()
        })
    }

    fn stay(
        &self,
        door: &Door,
        engine: &mut Engine,
        role: &str,
        count: usize,
    ) -> Result<(), PeersError> {
        // Who has a certificate may have only its own topics, or so it is with some brokers.
        let guests = door.guests(role, count, Keeping::Clean);
        let first = engine.connect(door, &guests, AT_ONCE)?;
        let topics = Topics::below(&format!("{}/idle/", self.common.root));
        let wishes = (0..count)
            .map(|number| {
                let topic = match door.vehicle(number) {
                    Some(vehicle) => format!("dt/bench/idle/{vehicle}/x"),
                    None => topics.number(number),
                };
                let packet = frame::subscribe(door.version, self.common.qos, &[topic])?;
                Ok((first + number, vec![packet]))
            })
            .collect::<Result<Vec<_>, PeersError>>()?;
        engine.subscribe(&wishes, AT_ONCE)
    }

    fn at_rest(&self) -> u64 {
        // Nobody sends: what is waited for is only the time.
        let (_open, silence) = mpsc::channel::<()>();
        let give_up = Instant::now() + REST;
        let (mut last, mut still) = (self.common.processes.resident(), 0);
        while still < STILL && Instant::now() < give_up {
            let _ = silence.recv_timeout(LOOK);
            let now = self.common.processes.resident();
            still = if now.abs_diff(last) < NOISE {
                still + 1
            } else {
                0
            };
            last = now;
        }
        last
    }
}
