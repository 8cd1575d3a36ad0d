//! What a seed decides before the first step: how large the world is, who its clients are, and how
//! rough the weather.

use std::time::Duration;

use mqtt::{QoS, Version};

use super::dice::Dice;
use super::topics::{self, Wildcards};
use crate::admission::hold_off::HoldOff;
use crate::limits::{Limits, Overflow};
use crate::machine::share::ShareStrategy;

/// A run, as drawn.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) shards: usize,
    pub(super) characters: Vec<Character>,
    pub(super) limits: Limits,
    /// Whether queues are so small that they overflow.
    pub(super) room: Room,
    pub(super) weather: Weather,
    /// Of the hash that gives a client identifier its home.
    pub(super) hash_seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing overflows in a run.
    Roomy,
    /// A dozen messages fill a queue.
    Tight,
}

/// What a client is like, all through a run.
#[derive(Debug, Clone)]
pub(super) struct Character {
    pub(super) name: String,
    pub(super) version: Version,
    /// Seconds its session shall outlive its connection; `u32::MAX` for ever. Of MQTT 3.1.1: 0 or not.
    pub(super) expiry: u32,
    /// Percent of its connects that start clean although the session is stored.
    pub(super) clean: u32,
    pub(super) receive_maximum: Option<u16>,
    pub(super) max_packet: Option<u32>,
    pub(super) aliases_taken: u16,
    /// Percent of its messages with a topic alias, where the broker takes them.
    pub(super) aliases_used: u32,
    pub(super) keep_alive: u16,
    pub(super) will: Option<WillHabit>,
    /// Weights of publishing with QoS 0, 1 and 2.
    pub(super) qos: [u32; 3],
    pub(super) retain: u32,
    /// Percent of its messages that expire.
    pub(super) expiring: u32,
    /// Percent of subscriptions that are shared.
    pub(super) shared: u32,
    /// What is published to in this run.
    pub(super) topics: Vec<usize>,
    /// Percent of its turns in which it does not get to acknowledge.
    pub(super) slow: u32,
    /// Weights of what it does: publish, subscribe, unsubscribe, ping, disconnect, drop, repeat
    /// something, stop or go on reading.
    pub(super) habits: [u32; 8],
}

#[derive(Debug, Clone, Copy)]
pub(super) struct WillHabit {
    /// Seconds; MQTT 5 only.
    pub(super) delay: u32,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) topic: usize,
}

/// How often things happen that nobody wants. Weights of a step unless said otherwise.
#[derive(Debug, Clone)]
pub(super) struct Weather {
    pub(super) crash: u32,
    pub(super) access: u32,
    pub(super) wildcards: Wildcards,
    pub(super) clock: ClockWeather,
    /// Seconds that pass at most when time passes.
    pub(super) longest_pause: u64,
    pub(super) pause: u32,
    /// How the store behaves.
    pub(super) store: StoreWeather,
    pub(super) tap: TapWeather,
    /// Percent of transfers that stop at any byte.
    pub(super) choppy: u32,
    /// Weight of a pause in which everything comes to rest and is compared.
    pub(super) lull: u32,
}

/// What becomes of the wall clock. The ticks go on whatever it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClockWeather {
    Steady,
    /// A time server sets it right by seconds.
    Corrected,
    /// Somebody sets it, or it lost its battery: by anything from a second to ten years, to before
    /// 1970, to the end of what can be counted.
    Jumping,
}

impl ClockWeather {
    /// How often it is set. The weight of a step.
    pub(super) fn weight(self) -> u32 {
        match self {
            ClockWeather::Steady => 0,
            ClockWeather::Corrected | ClockWeather::Jumping => 3,
        }
    }

    /// Milliseconds by which it is set now.
    pub(super) fn step(self, dice: &mut Dice) -> i64 {
        const SECOND: i64 = 1000;
        const DAY: i64 = 24 * 3600 * SECOND;
        const YEAR: i64 = 365 * DAY;
        let by = match self {
            ClockWeather::Steady => 0,
            ClockWeather::Corrected => *dice.pick(&[500, 700, 5 * SECOND, 20 * SECOND]),
            ClockWeather::Jumping => *dice.pick(&[
                SECOND,
                60 * SECOND,
                3600 * SECOND,
                DAY,
                30 * DAY,
                10 * YEAR,
                // Twice that is more than microseconds since 1970 can say.
                200_000 * YEAR,
            ]),
        };
        match dice.chance(50) {
            true => by,
            false => -by,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreWeather {
    /// Durable before anybody looks.
    Fast,
    /// A few steps.
    Slow,
    /// Now and then not at all for a while.
    Stalling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TapWeather {
    /// Wants nothing.
    Absent,
    /// Takes what is below `b/` and says so at once.
    Prompt,
    /// Says so later, out of order.
    Late,
    /// Late, and refuses or fails some.
    Unreliable,
}

impl Plan {
    pub(super) fn draw(dice: &mut Dice) -> Plan {
        let room = match dice.chance(25) {
            true => Room::Tight,
            false => Room::Roomy,
        };
        let clients = dice.between(2, 8);
        let long_pauses = dice.chance(60);
        let topics = topics::draw_topics(dice);
        Plan {
            shards: dice.between(1, 3),
            characters: (0..clients)
                .map(|n| Character::draw(dice, n, &topics))
                .collect(),
            limits: draw_limits(dice, room),
            room,
            hash_seed: dice.next(),
            weather: Weather {
                crash: *dice.pick(&[0, 4, 8, 16]),
                access: *dice.pick(&[0, 0, 5, 15]),
                wildcards: *dice.pick(&[Wildcards::Judged, Wildcards::Open]),
                clock: *dice.pick(&[
                    ClockWeather::Steady,
                    ClockWeather::Steady,
                    ClockWeather::Corrected,
                    ClockWeather::Jumping,
                ]),
                longest_pause: if long_pauses { 60 } else { 2 },
                pause: dice.between(5, 40) as u32,
                store: *dice.pick(&[
                    StoreWeather::Fast,
                    StoreWeather::Slow,
                    StoreWeather::Slow,
                    StoreWeather::Stalling,
                ]),
                tap: *dice.pick(&[
                    TapWeather::Absent,
                    TapWeather::Prompt,
                    TapWeather::Late,
                    TapWeather::Unreliable,
                ]),
                choppy: *dice.pick(&[0, 10, 50]),
                lull: *dice.pick(&[2, 4, 8]),
            },
        }
    }
}

fn draw_limits(dice: &mut Dice, room: Room) -> Limits {
    let (max_queued, max_queued_bytes) = match room {
        Room::Roomy => (100_000, 64 << 20),
        Room::Tight => (dice.between(3, 12), *dice.pick(&[2_000, 64 << 20])),
    };
    Limits {
        max_inflight: *dice.pick(&[1, 2, 5, 20, 1024]),
        max_queued,
        max_queued_bytes,
        topic_alias_maximum: *dice.pick(&[0, 2, 16]),
        topic_alias_maximum_out: *dice.pick(&[0, 1, 3, 16]),
        session_expiry_max: Duration::from_secs(*dice.pick(&[30, 3600, 7 * 24 * 3600])),
        // Its clients come as often as they like.
        hold_off: HoldOff {
            failures: 0,
            connects: 0,
            ..HoldOff::default()
        },
        overflow: *dice.pick(&[
            Overflow::RefuseNew,
            Overflow::DropOldest,
            Overflow::DropLowestPriority,
        ]),
        share_strategy: *dice.pick(&[
            ShareStrategy::RoundRobin,
            ShareStrategy::LeastInFlight,
            ShareStrategy::StickyByPublisher,
        ]),
        ..Limits::default()
    }
}

impl Character {
    fn draw(dice: &mut Dice, number: usize, topics: &[usize]) -> Character {
        let version = match dice.chance(35) {
            true => Version::V311,
            false => Version::V5,
        };
        let five = version == Version::V5;
        let patience = |dice: &mut Dice| *dice.pick(&[0, 0, 2, 20, 3_000]);
        Character {
            name: format!("client-{number}"),
            version,
            expiry: *dice.pick(&[0, 0, 15, 300, 100_000, 100_000, u32::MAX, u32::MAX]),
            clean: *dice.pick(&[0, 0, 0, 10, 50]),
            receive_maximum: if five {
                *dice.pick(&[None, Some(1), Some(2), Some(7), Some(100)])
            } else {
                None
            },
            max_packet: if five {
                *dice.pick(&[None, None, None, Some(120), Some(100_000)])
            } else {
                None
            },
            aliases_taken: if five {
                *dice.pick(&[0, 0, 1, 3, 20])
            } else {
                0
            },
            aliases_used: if five { *dice.pick(&[0, 30, 90]) } else { 0 },
            keep_alive: *dice.pick(&[0, 0, 10, 600]),
            will: dice.chance(50).then(|| WillHabit {
                delay: if five { patience(dice) } else { 0 },
                qos: *dice.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]),
                retain: dice.chance(30),
                topic: match dice.chance(70) {
                    true => topics::place("w/1").expect("in the table"),
                    false => *dice.pick(topics),
                },
            }),
            qos: *dice.pick(&[[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 4, 4], [0, 1, 0]]),
            retain: *dice.pick(&[0, 10, 30]),
            expiring: if five { *dice.pick(&[0, 10, 40]) } else { 0 },
            shared: *dice.pick(&[0, 20, 40, 80]),
            topics: topics.to_vec(),
            slow: *dice.pick(&[0, 0, 40, 80]),
            habits: *dice.pick(&[
                [40, 15, 3, 1, 3, 6, 3, 2],
                [60, 8, 1, 1, 2, 3, 1, 1],
                [5, 20, 6, 2, 6, 12, 3, 4],
                [20, 20, 2, 1, 1, 20, 8, 2],
            ]),
        }
    }
}
