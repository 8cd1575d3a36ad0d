//! Motion: how a driver moves a vehicle along a route.
//!
//! A longitudinal model: every step the driver looks ahead, turns what lies there (corner, lower
//! limit, red light, crossing, destination) into "at most u m/s in d metres", and picks one
//! acceleration; the vehicle follows it within its limits of acceleration and jerk. The position
//! is always a point on an edge of the route, and advances by speed times time along it.
//!
//! Not modelled: other traffic, lane changes, lateral motion. An obstacle that makes the driver
//! brake hard is drawn from the dice instead.

use super::roads::{EdgeId, Position, RoadNetwork};
use crate::dice::Dice;

/// Hardest braking of an ordinary stop, m/s². Above 4 counts as harsh and happens only on purpose.
pub const ORDINARY_BRAKING: f64 = 3.8;
/// Hardest braking of all, m/s²: dry asphalt.
pub const HARSHEST_BRAKING: f64 = 7.5;
/// Hardest acceleration, m/s².
pub const STRONGEST_ACCELERATION: f64 = 2.8;
/// How far above the limit the boldest driver goes, as a factor.
pub const BOLDEST: f64 = 1.06;
/// Where a vehicle stops before a red light or the destination, metres.
const STOP_SHORT: f64 = 3.0;

/// How somebody drives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DriverStyle {
    /// Wanted speed as a share of the limit.
    pub pace: f64,
    /// m/s².
    pub acceleration: f64,
    /// Comfortable braking, m/s².
    pub braking: f64,
    /// Change of acceleration, m/s³.
    pub jerk: f64,
    /// Lateral acceleration in corners, m/s².
    pub lateral: f64,
    /// Harsh brakings per hour of driving.
    pub harsh_per_hour: f64,
}

impl DriverStyle {
    /// Somebody between calm and bold.
    pub fn draw(dice: &mut Dice) -> Self {
        let boldness = dice.unit();
        let blend = |calm: f64, bold: f64| calm + (bold - calm) * boldness;
        Self {
            pace: blend(0.90, BOLDEST),
            acceleration: blend(1.1, 2.6),
            braking: blend(1.4, 2.6),
            jerk: blend(1.5, 3.0),
            lateral: blend(1.8, 3.2),
            harsh_per_hour: blend(0.3, 4.0),
        }
    }
}

/// What a vehicle is doing on the road.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress {
    /// Still under way.
    UnderWay,
    /// Standing at the end of the route.
    Arrived,
}

/// A vehicle on its route.
#[derive(Debug, Clone)]
pub struct Motion {
    route: Vec<EdgeId>,
    leg: usize,
    offset: f64,
    speed: f64,
    acceleration: f64,
    /// Leg whose light turned red too late to stop for.
    running: Option<usize>,
    /// Speed at which a harsh braking under way is over.
    bracing: Option<f64>,
}

impl Motion {
    /// Stands on the first edge of a route, `offset` metres from its beginning. `None` if the route
    /// is empty or not one piece, or the offset beyond the edge.
    pub fn starting_at(network: &RoadNetwork, route: Vec<EdgeId>, offset: f64) -> Option<Self> {
        let first = network.edge(*route.first()?);
        let whole = route
            .windows(2)
            .all(|pair| network.edge(pair[0]).to == network.edge(pair[1]).from);
        (whole && (0.0..=first.length).contains(&offset)).then_some(Self {
            route,
            leg: 0,
            offset,
            speed: 0.0,
            acceleration: 0.0,
            running: None,
            bracing: None,
        })
    }

    /// m/s, never negative.
    pub fn speed(&self) -> f64 {
        self.speed
    }

    /// m/s² of the last step.
    pub fn acceleration(&self) -> f64 {
        self.acceleration
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        Position {
            edge: self.route[self.leg],
            offset: self.offset,
        }
    }

    /// Whether a harsh braking is under way.
    pub fn is_braking_harshly(&self) -> bool {
        self.bracing.is_some()
    }

    /// The route from here on.
    pub fn remaining(&self) -> &[EdgeId] {
        &self.route[self.leg..]
    }

    /// Drives `seconds` (at most 0.2 for stable braking); `time` (seconds) decides about lights.
    /// Returns the metres driven and whether the destination is reached.
    pub fn advance(
        &mut self,
        network: &RoadNetwork,
        style: &DriverStyle,
        time: f64,
        seconds: f64,
        dice: &mut Dice,
    ) -> (f64, Progress) {
        let wish = self.wish(network, style, time, seconds, dice);
        let jerk = if self.bracing.is_some() || self.acceleration < -ORDINARY_BRAKING - 0.2 {
            25.0 // stamping on the pedal, and letting go of it
        } else if wish < self.acceleration {
            style.jerk.max(4.0)
        } else {
            style.jerk
        };
        let change = (wish - self.acceleration).clamp(-jerk * seconds, jerk * seconds);
        let planned = self.acceleration + change;
        let before = self.speed;
        self.speed = (before + planned * seconds).max(0.0);
        self.acceleration = (self.speed - before) / seconds;
        let metres = (before + self.speed) / 2.0 * seconds;
        let arrived = self.roll(network, metres);
        (metres, arrived)
    }

    /// Moves along the route; stops for good at its end.
    fn roll(&mut self, network: &RoadNetwork, metres: f64) -> Progress {
        self.offset += metres;
        loop {
            let length = network.edge(self.route[self.leg]).length;
            let last = self.leg + 1 == self.route.len();
            if last {
                self.offset = self.offset.min(length);
                let near = length - self.offset < STOP_SHORT + 2.0;
                return if near && self.speed < 0.3 {
                    self.speed = 0.0;
                    self.acceleration = 0.0;
                    Progress::Arrived
                } else {
                    Progress::UnderWay
                };
            }
            if self.offset < length {
                return Progress::UnderWay;
            }
            self.offset -= length;
            self.leg += 1;
        }
    }

    /// The acceleration the driver wants now.
    fn wish(
        &mut self,
        network: &RoadNetwork,
        style: &DriverStyle,
        time: f64,
        seconds: f64,
        dice: &mut Dice,
    ) -> f64 {
        let here = network.edge(self.route[self.leg]);
        if let Some(target) = self.bracing {
            if self.speed > target && self.speed > 0.5 {
                return -HARSHEST_BRAKING;
            }
            self.bracing = None;
        } else if self.speed > 9.0 && dice.happens(style.harsh_per_hour, seconds) {
            self.bracing = Some(self.speed * dice.between(0.3, 0.7));
        }

        let wanted = here.limit * style.pace;
        let free = if self.speed > wanted {
            ((wanted - self.speed) / 1.5).max(-style.braking)
        } else {
            ((wanted - self.speed) / 1.5).min(style.acceleration.min(STRONGEST_ACCELERATION))
        };
        let (needed, must_hold) = self.needed_braking(network, style, time);
        if must_hold {
            -ORDINARY_BRAKING
        } else if needed >= 0.7 * style.braking {
            // A little more than needed makes up for what the jerk limit costs.
            -(needed * 1.08).min(ORDINARY_BRAKING)
        } else if needed > 0.4 * style.braking {
            free.min(0.0)
        } else {
            free
        }
    }

    /// The braking (m/s²) the hardest condition ahead asks for, and whether the vehicle stands (or
    /// nearly) where it has to wait.
    fn needed_braking(
        &mut self,
        network: &RoadNetwork,
        style: &DriverStyle,
        time: f64,
    ) -> (f64, bool) {
        let v = self.speed;
        let horizon = v * v / (2.0 * 0.4 * 1.4) + 20.0;
        let mut needed: f64 = 0.0;
        let mut hold = false;
        let mut distance = network.edge(self.route[self.leg]).length - self.offset;
        for leg in self.leg..self.route.len() {
            if distance > horizon {
                break;
            }
            let id = self.route[leg];
            let edge = network.edge(id);
            let node = network.node(edge.to);
            let to_line = distance - STOP_SHORT;
            let stop = match self.route.get(leg + 1) {
                None => true,
                Some(_) => match &node.light {
                    Some(light) if self.running != Some(leg) => light.is_red(time, edge.bearing),
                    _ => false,
                },
            };
            if stop {
                let braking = braking_to(v, 0.0, to_line);
                let last = leg + 1 == self.route.len();
                if !last && braking > 3.0 && to_line < 40.0 && v > 1.0 {
                    self.running = Some(leg); // too late: yellow was just now
                } else {
                    needed = needed.max(braking);
                    hold |= to_line < 1.5 && v < 1.0;
                }
            }
            if let Some(&next) = self.route.get(leg + 1) {
                let onward = network.edge(next);
                let mut most =
                    (onward.limit * style.pace).min(network.corner_speed(id, next, style.lateral));
                if node.light.is_none() && network.leaving(edge.to).len() > 2 {
                    most = most.min(edge.limit.max(onward.limit) * 0.75);
                }
                if most < v {
                    needed = needed.max(braking_to(v, most, distance));
                }
                distance += onward.length;
            }
        }
        (needed, hold)
    }
}

/// The constant braking that brings `v` down to `u` within `distance`; very large when it is over.
fn braking_to(v: f64, u: f64, distance: f64) -> f64 {
    ((v * v - u * u) / (2.0 * distance.max(0.05))).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::roads::Place;

    /// Drives a seed's trip to its end and hands every step to `look`.
    fn drive(seed: u64, mut look: impl FnMut(&RoadNetwork, &Motion, f64, f64)) -> f64 {
        let network = RoadNetwork::generate(Place::STUTTGART, seed % 3);
        let mut dice = Dice::seeded(seed);
        let style = DriverStyle::draw(&mut dice);
        let count = network.nodes().len();
        let pick = |dice: &mut Dice| network.nodes().nth(dice.below(count)).unwrap();
        let route = loop {
            let route = network.route(pick(&mut dice), pick(&mut dice));
            if route.len() > 8 {
                break route;
            }
        };
        let mut motion = Motion::starting_at(&network, route, 0.0).unwrap();
        let (step, mut time) = (0.1, 0.0);
        while time < 3_600.0 {
            let (metres, progress) = motion.advance(&network, &style, time, step, &mut dice);
            time += step;
            look(&network, &motion, metres, step);
            if progress == Progress::Arrived {
                return time;
            }
        }
        panic!(
            "seed {seed}: not there after an hour, at {:?}",
            motion.position()
        );
    }

    #[test]
    fn every_trip_arrives_within_the_limits_of_road_and_vehicle() {
        let (mut harsh, mut stops) = (0, 0);
        for seed in 0..60 {
            let (mut last_speed, mut moved) = (0.0, false);
            let (mut bracing, mut calm_steps) = (false, 0);
            drive(seed, |network, motion, metres, step| {
                let limit = network.edge(motion.position().edge).limit;
                let speed = motion.speed();
                assert!(speed >= 0.0);
                assert!(
                    speed <= limit * BOLDEST + 1.5,
                    "seed {seed}: {speed:.1} m/s where {limit:.1} is allowed"
                );
                let a = motion.acceleration();
                assert!(
                    (-HARSHEST_BRAKING - 1e-6..=STRONGEST_ACCELERATION + 1e-6).contains(&a),
                    "seed {seed}: {a} m/s²"
                );
                let braced = std::mem::replace(&mut bracing, motion.is_braking_harshly());
                if !braced && !bracing && calm_steps > 5 {
                    assert!(
                        a >= -ORDINARY_BRAKING - 0.2,
                        "seed {seed}: {a} m/s² without cause"
                    );
                }
                calm_steps = if braced || bracing { 0 } else { calm_steps + 1 };
                assert!((metres - (last_speed + speed) / 2.0 * step).abs() < 0.05);
                harsh += usize::from(a < -4.0);
                stops += usize::from(moved && speed == 0.0 && last_speed > 0.0);
                moved |= speed > 0.0;
                last_speed = speed;
            });
        }
        assert!(harsh > 0, "nobody ever braked hard in 60 trips");
        assert!(stops > 60, "nobody waits at lights: {stops} stops");
    }

    #[test]
    fn nobody_runs_a_light_that_was_red_for_long() {
        for seed in 0..40 {
            let mut time = 0.0;
            let mut last: Option<Position> = None;
            let mut speed_before = 0.0;
            drive(seed, |network, motion, _, step| {
                time += step;
                let here = motion.position();
                if let Some(before) = last
                    && before.edge != here.edge
                {
                    let edge = network.edge(before.edge);
                    if let Some(light) = &network.node(edge.to).light {
                        let long_red = (0..80)
                            .all(|back| light.is_red(time - f64::from(back) * 0.1, edge.bearing));
                        assert!(
                            !long_red,
                            "seed {seed}: crossed at {speed_before:.1} m/s, red for 8 s"
                        );
                    }
                }
                speed_before = motion.speed();
                last = Some(here);
            });
        }
    }

    #[test]
    fn a_route_in_pieces_is_no_trip() {
        let network = RoadNetwork::generate(Place::STUTTGART, 0);
        let edges: Vec<_> = network.edges().take(4).collect();
        let apart = vec![edges[0], edges[0]];
        for (route, offset) in [(Vec::new(), 0.0), (apart, 0.0), (vec![edges[0]], 1e6)] {
            assert!(Motion::starting_at(&network, route, offset).is_none());
        }
    }
}
