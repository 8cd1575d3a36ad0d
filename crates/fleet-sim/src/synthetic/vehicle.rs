//! Vehicle: one virtual car with its driver, from parked to parked.
//!
//! A life goes round: parked → boarding → driving → alighting → (charging or refuelling) → parked.
//! [`VirtualVehicle::advance`] carries it to a moment in steps of a tenth of a second and appends
//! what the car has to say: its signals once per call, a trip's start and end when they happen.
//! Signals that move are in every message; states go when they change; what creeps (tyres,
//! temperatures) goes twice a minute. Each message is complete in itself.

use std::sync::Arc;

use super::faults::FaultMemory;
use super::motion::{DriverStyle, Motion, Progress};
use super::powertrain::{Body, Powertrain};
use super::roads::{NodeId, Place, Position, RoadNetwork};
use super::trip::{Trip, TripState};
use super::tyres::{self, Tyre};
use crate::dice::Dice;
use crate::message::{Channel, Message, Telemetry};

/// Step of the simulation, microseconds. Short enough for stable braking.
const STEP_US: i64 = 100_000;
/// Longer gaps are jumped over (a laptop was closed), microseconds.
const LONGEST_GAP_US: i64 = 3_600_000_000;
/// How often slow signals are repeated, microseconds.
const SLOW_EVERY_US: i64 = 30_000_000;
/// Below this level (percent) the car is charged or refuelled before the next trip. A trip takes
/// at most about a tenth of the smallest battery.
const REPLENISH_BELOW: f64 = 18.0;

/// The roads of a fleet, and the seed that its vehicles and their drives follow from.
#[derive(Debug, Clone)]
pub struct City {
    network: Arc<RoadNetwork>,
    seed: u64,
}

impl City {
    /// The city of a seed.
    pub fn new(place: Place, seed: u64) -> Self {
        Self {
            network: Arc::new(RoadNetwork::generate(place, seed)),
            seed,
        }
    }

    /// Its roads.
    pub fn network(&self) -> &Arc<RoadNetwork> {
        &self.network
    }

    /// A vehicle as it stands or drives at `now_us` (microseconds since the Unix epoch). The same
    /// id is the same car with the same driver every time; where it is and what happens to it
    /// follows from the seed.
    pub fn vehicle(&self, id: &str, now_us: i64) -> VirtualVehicle {
        VirtualVehicle::new(Arc::clone(&self.network), self.seed, id, now_us)
    }
}

/// What a vehicle is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Locked and left.
    Parked,
    /// Somebody gets in.
    Boarding,
    /// On a trip.
    Driving,
    /// Somebody gets out.
    Alighting,
    /// At a charger or a pump.
    Replenishing,
}

#[derive(Debug, Clone)]
enum Activity {
    Parked { left: f64 },
    Boarding { left: f64 },
    Driving { motion: Motion, trip: Trip },
    Alighting { left: f64 },
    Replenishing,
}

/// The switches of a car: what is sent when it changes.
#[derive(Debug, Clone, PartialEq)]
struct Switches {
    locked: bool,
    door_open: bool,
    supply: &'static str,
    moving: bool,
    replenishing: bool,
    harsh: bool,
    faults: Vec<&'static str>,
}

/// One virtual vehicle.
#[derive(Debug, Clone)]
pub struct VirtualVehicle {
    id: Arc<str>,
    network: Arc<RoadNetwork>,
    dice: Dice,
    style: DriverStyle,
    body: Body,
    powertrain: Powertrain,
    tyres: [Tyre; 4],
    faults: FaultMemory,
    /// K by which it is warmer here than in the city.
    warmth: f64,
    /// Metres in its life.
    odometer: f64,
    activity: Activity,
    /// Where it stands or drives.
    position: Position,
    now_us: i64,
    /// A harsh braking since the last message.
    harsh: bool,
    said: Option<Switches>,
    slow_due_us: i64,
    vin: String,
}

impl VirtualVehicle {
    fn new(network: Arc<RoadNetwork>, seed: u64, id: &str, now_us: i64) -> Self {
        // Two dice: the car and its driver are the same in every run, what happens to them
        // follows from the seed.
        let mut car = Dice::for_thing(0, id);
        let mut dice = Dice::for_thing(seed, id);
        let powertrain = Powertrain::draw_one(&mut car);
        let body = Body {
            mass: match powertrain {
                Powertrain::Electric(_) => car.between(1_700.0, 2_300.0),
                Powertrain::Combustion(_) => car.between(1_250.0, 1_800.0),
            },
            rolling: car.between(0.008, 0.011),
            drag_area: car.between(0.55, 0.72),
        };
        let vin = vin(&mut car);
        let style = DriverStyle::draw(&mut car);
        let nominal = [230.0, 240.0, 250.0, 260.0][car.below(4)];
        let odometer = car.between(800_000.0, 140_000_000.0);
        let warmth = dice.between(-1.0, 1.0);
        let ambient = ambient(now_us, warmth);
        let faults = FaultMemory::draw(&powertrain, &mut dice);
        let edge = network.edges().nth(dice.below(network.edges().len()));
        let mut vehicle = Self {
            id: Arc::from(id),
            style,
            body,
            powertrain,
            tyres: std::array::from_fn(|_| Tyre::draw(nominal, ambient, &mut dice)),
            faults,
            warmth,
            odometer,
            activity: Activity::Parked {
                left: dice.between(2.0, 60.0),
            },
            position: Position {
                edge: edge.expect("below the count, and a network has edges"),
                offset: 0.0,
            },
            now_us,
            harsh: false,
            said: None,
            slow_due_us: now_us,
            vin,
            network,
            dice,
        };
        // Most are on the road when the curtain rises; the others get in within the minute.
        if vehicle.dice.chance(0.75)
            && vehicle.powertrain.level() > REPLENISH_BELOW
            && let Some(activity) = vehicle.departure()
        {
            vehicle.activity = activity;
        }
        vehicle
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its vehicle identification number (ISO 3779, with the check digit of 49 CFR 565).
    pub fn vin(&self) -> &str {
        &self.vin
    }

    /// What is under the bonnet.
    pub fn powertrain(&self) -> &Powertrain {
        &self.powertrain
    }

    /// How its driver drives.
    pub fn style(&self) -> &DriverStyle {
        &self.style
    }

    /// What it is doing.
    pub fn doing(&self) -> Doing {
        match self.activity {
            Activity::Parked { .. } => Doing::Parked,
            Activity::Boarding { .. } => Doing::Boarding,
            Activity::Driving { .. } => Doing::Driving,
            Activity::Alighting { .. } => Doing::Alighting,
            Activity::Replenishing => Doing::Replenishing,
        }
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// m/s.
    pub fn speed(&self) -> f64 {
        match &self.activity {
            Activity::Driving { motion, .. } => motion.speed(),
            _ => 0.0,
        }
    }

    /// Metres in its life.
    pub fn odometer(&self) -> f64 {
        self.odometer
    }

    /// The trip under way.
    pub fn trip(&self) -> Option<&Trip> {
        match &self.activity {
            Activity::Driving { trip, .. } => Some(trip),
            _ => None,
        }
    }

    /// Lives on until `now_us` and appends what it has to say then. A moment before the last one
    /// changes nothing but says it again.
    pub fn advance(&mut self, now_us: i64, out: &mut Vec<Message>) {
        if now_us - self.now_us > LONGEST_GAP_US {
            self.now_us = now_us - STEP_US;
        }
        if self.said.is_none()
            && let Activity::Driving { trip, .. } = &self.activity
        {
            out.push(trip.announce(TripState::Started, self.now_us));
        }
        while self.now_us < now_us {
            let step = STEP_US.min(now_us - self.now_us);
            self.now_us += step;
            self.step(step as f64 / 1e6, out);
        }
        out.push(self.report());
    }

    /// The message of a vehicle that falls silent: the end of its trip's story, if it is on one.
    pub fn fall_silent(&mut self) -> Option<Message> {
        let Activity::Driving { trip, .. } = &self.activity else {
            return None;
        };
        let message = trip.announce(TripState::Interrupted, self.now_us);
        self.activity = Activity::Parked { left: 60.0 };
        Some(message)
    }

    fn step(&mut self, seconds: f64, out: &mut Vec<Message>) {
        let ambient = ambient(self.now_us, self.warmth);
        match &mut self.activity {
            Activity::Driving { motion, trip } => {
                let time = self.now_us as f64 / 1e6;
                let (metres, progress) =
                    motion.advance(&self.network, &self.style, time, seconds, &mut self.dice);
                let (speed, acceleration) = (motion.speed(), motion.acceleration());
                self.position = motion.position();
                self.odometer += metres;
                trip.distance += metres;
                self.harsh |= acceleration < -4.0;
                let grade = self.network.edge(self.position.edge).grade;
                let auxiliary = 350.0 + 60.0 * (ambient - 21.0).abs();
                self.powertrain
                    .pay(&self.body, speed, acceleration, grade, auxiliary, seconds);
                self.faults.drive(&self.powertrain, seconds, &mut self.dice);
                for tyre in &mut self.tyres {
                    tyre.roll(speed, ambient, seconds);
                }
                if progress == Progress::Arrived {
                    out.push(trip.announce(TripState::Ended, self.now_us));
                    self.activity = Activity::Alighting { left: 14.0 };
                }
            }
            Activity::Parked { left } => {
                *left -= seconds;
                let over = *left <= 0.0;
                self.stand(ambient, seconds);
                if over {
                    self.activity = Activity::Boarding { left: 15.0 };
                }
            }
            Activity::Boarding { left } => {
                *left -= seconds;
                if *left <= 0.0
                    && let Some(activity) = self.departure()
                {
                    if let Activity::Driving { trip, .. } = &activity {
                        out.push(trip.announce(TripState::Started, self.now_us));
                    }
                    self.activity = activity;
                }
            }
            Activity::Alighting { left } => {
                *left -= seconds;
                let over = *left <= 0.0;
                self.stand(ambient, seconds);
                if over {
                    self.activity = if self.powertrain.level() < REPLENISH_BELOW {
                        Activity::Replenishing
                    } else {
                        Activity::Parked {
                            left: self.dice.between(20.0, 240.0),
                        }
                    };
                }
            }
            Activity::Replenishing => {
                self.stand(ambient, seconds);
                if self.powertrain.replenish(seconds) {
                    self.activity = Activity::Parked {
                        left: self.dice.between(20.0, 240.0),
                    };
                }
            }
        }
    }

    fn stand(&mut self, ambient: f64, seconds: f64) {
        self.powertrain.rest(ambient, seconds);
        for tyre in &mut self.tyres {
            tyre.roll(0.0, ambient, seconds);
        }
    }

    /// A trip to somewhere 2 to 12 km away. `None` only if no such place was found in 40 tries.
    fn departure(&mut self) -> Option<Activity> {
        let here = self.network.edge(self.position.edge);
        // A car continues the way it stands: it leaves by the end of its road.
        let (start, from) = (here.to, self.network.node(here.to));
        let count = self.network.nodes().len();
        let far = |node: NodeId| {
            let there = self.network.node(node);
            (2_000.0..12_000.0).contains(&(there.east - from.east).hypot(there.north - from.north))
        };
        for _ in 0..40 {
            let goal = self.network.nodes().nth(self.dice.below(count))?;
            if !far(goal) {
                continue;
            }
            let mut route = vec![self.position.edge];
            route.extend(self.network.route(start, goal));
            if let Some(motion) = Motion::starting_at(&self.network, route, self.position.offset) {
                return Some(Activity::Driving {
                    motion,
                    trip: Trip::begin(&self.id, self.now_us),
                });
            }
        }
        None
    }

    fn switches(&self) -> Switches {
        let (locked, door_open, supply) = match self.activity {
            Activity::Parked { .. } => (true, false, "LOCK"),
            Activity::Boarding { left } => (
                left > 13.0,
                (7.0..12.0).contains(&left),
                if left < 4.0 { "ACC" } else { "OFF" },
            ),
            Activity::Driving { .. } => (true, false, "ON"),
            Activity::Alighting { left } => (
                left < 3.0,
                (5.0..11.0).contains(&left),
                if left < 3.0 { "LOCK" } else { "OFF" },
            ),
            Activity::Replenishing => (true, false, "LOCK"),
        };
        Switches {
            locked,
            door_open,
            supply,
            moving: self.speed() > 0.1,
            replenishing: matches!(self.activity, Activity::Replenishing),
            harsh: self.harsh,
            faults: self
                .faults
                .stored()
                .iter()
                .map(|fault| fault.code)
                .collect(),
        }
    }

    /// The signals of this moment.
    fn report(&mut self) -> Message {
        let mut t = Telemetry::new();
        t.moment(self.now_us);
        self.write_motion(&mut t);
        self.write_energy(&mut t);
        let switches = self.switches();
        let slow = self.now_us >= self.slow_due_us;
        if slow || self.said.as_ref() != Some(&switches) {
            self.write_switches(&switches, &mut t);
        }
        if slow {
            self.write_slow(&mut t);
            self.slow_due_us = self.now_us + SLOW_EVERY_US;
        }
        self.said = Some(switches);
        self.harsh = false;
        Message {
            time_us: self.now_us,
            channel: Channel::Drive,
            payload: t.take(),
        }
    }

    fn write_motion(&self, t: &mut Telemetry) {
        let (speed, acceleration) = match &self.activity {
            Activity::Driving { motion, .. } => (motion.speed(), motion.acceleration()),
            _ => (0.0, 0.0),
        };
        let (east, north, altitude) = self.network.coordinates(self.position);
        let (latitude, longitude) = self.network.place().degrees(east, north);
        let bearing = self.network.edge(self.position.edge).bearing.to_degrees();
        let heading = (bearing * 10.0).round() / 10.0 % 360.0; // 359.96 is north, not 360.0
        t.number("Vehicle.Speed", speed * 3.6, 2);
        t.number("Vehicle.CurrentLocation.Latitude", latitude, 7);
        t.number("Vehicle.CurrentLocation.Longitude", longitude, 7);
        t.number("Vehicle.CurrentLocation.Altitude", altitude, 1);
        t.number("Vehicle.CurrentLocation.Heading", heading, 1);
        t.number("Vehicle.Acceleration.Longitudinal", acceleration, 2);
        t.number("Vehicle.TraveledDistance", self.odometer, 0);
        if let Some(trip) = self.trip() {
            t.number("Vehicle.TraveledDistanceSinceStart", trip.distance, 0);
        }
    }

    fn write_energy(&self, t: &mut Telemetry) {
        match &self.powertrain {
            Powertrain::Electric(battery) => {
                let path = |leaf: &str| format!("Vehicle.Powertrain.TractionBattery.{leaf}");
                t.number(&path("StateOfCharge.Current"), battery.state_of_charge(), 3);
                t.number(&path("CurrentPower"), battery.power, 0);
                t.number(&path("CurrentVoltage"), battery.voltage(), 1);
            }
            Powertrain::Combustion(engine) => {
                t.number("Vehicle.Powertrain.CombustionEngine.Speed", engine.speed, 0);
                t.number(
                    "Vehicle.Powertrain.FuelSystem.RelativeLevel",
                    engine.level(),
                    0,
                );
                t.number(
                    "Vehicle.Powertrain.FuelSystem.AbsoluteLevel",
                    engine.fuel,
                    3,
                );
                t.number(
                    "Vehicle.Powertrain.Transmission.CurrentGear",
                    f64::from(engine.gear),
                    0,
                );
                let speed = self.speed();
                if speed > 2.0 {
                    let per_100_km = engine.consumption / (speed * 3.6) * 100.0;
                    t.number(
                        "Vehicle.Powertrain.FuelSystem.InstantConsumption",
                        per_100_km,
                        1,
                    );
                }
            }
        }
    }

    fn write_switches(&self, switches: &Switches, t: &mut Telemetry) {
        for side in ["DriverSide", "PassengerSide"] {
            let path = |leaf: &str| format!("Vehicle.Cabin.Door.Row1.{side}.{leaf}");
            t.flag(&path("IsLocked"), switches.locked);
            t.flag(&path("IsOpen"), switches.door_open && side == "DriverSide");
        }
        t.flag("Vehicle.IsMoving", switches.moving);
        t.text("Vehicle.LowVoltageSystemState", switches.supply);
        t.flag(
            "Vehicle.Chassis.Brake.IsDriverEmergencyBrakingDetected",
            switches.harsh,
        );
        t.number(
            "Vehicle.Diagnostics.DTCCount",
            switches.faults.len() as f64,
            0,
        );
        t.list(
            "Vehicle.Diagnostics.DTCList",
            switches.faults.iter().copied(),
        );
        match &self.powertrain {
            Powertrain::Electric(_) => t.flag(
                "Vehicle.Powertrain.TractionBattery.Charging.IsCharging",
                switches.replenishing,
            ),
            Powertrain::Combustion(_) => t.flag(
                "Vehicle.Powertrain.CombustionEngine.IsRunning",
                switches.supply == "ON",
            ),
        }
    }

    fn write_slow(&self, t: &mut Telemetry) {
        let ambient = ambient(self.now_us, self.warmth);
        t.number("Vehicle.Exterior.AirTemperature", ambient, 1);
        for (place, tyre) in tyres::PLACES.iter().zip(&self.tyres) {
            let path = |leaf: &str| format!("Vehicle.Chassis.Axle.{place}.Tire.{leaf}");
            t.number(&path("Pressure"), tyre.pressure(), 0);
            t.number(&path("Temperature"), tyre.temperature(), 1);
            t.flag(&path("IsPressureLow"), tyre.is_low());
        }
        match &self.powertrain {
            Powertrain::Electric(battery) => {
                let path = |leaf: &str| format!("Vehicle.Powertrain.TractionBattery.{leaf}");
                t.number(&path("Temperature.Average"), battery.temperature, 1);
                t.number(&path("StateOfCharge.CurrentEnergy"), battery.energy, 2);
                t.number(&path("Range"), battery.energy / 0.17 * 1_000.0, 0);
            }
            Powertrain::Combustion(engine) => {
                t.number(
                    "Vehicle.Powertrain.CombustionEngine.EngineCoolant.Temperature",
                    engine.coolant,
                    1,
                );
                t.number(
                    "Vehicle.Powertrain.FuelSystem.Range",
                    engine.fuel / 0.065 * 1_000.0,
                    0,
                );
            }
        }
    }
}

/// °C of the air: a mild day with its warmest hour at 15:00 UTC.
fn ambient(now_us: i64, warmth: f64) -> f64 {
    let hour = (now_us as f64 / 3.6e9).rem_euclid(24.0);
    13.0 + warmth + 6.0 * ((hour - 9.0) / 24.0 * std::f64::consts::TAU).sin()
}

/// A number for a car that never was: maker code `ZZZ`, which nobody holds, and a valid check digit.
fn vin(dice: &mut Dice) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHJKLMNPRSTUVWXYZ0123456789";
    let mut vin: Vec<u8> = b"ZZZ".to_vec();
    vin.extend((3..17).map(|place| match place {
        13.. => b'0' + dice.below(10) as u8,
        _ => LETTERS[dice.below(LETTERS.len())],
    }));
    vin[8] = check_digit(&vin);
    vin.into_iter().map(char::from).collect()
}

/// The ninth character of a VIN (49 CFR 565.15).
fn check_digit(vin: &[u8]) -> u8 {
    const WEIGHTS: [u32; 17] = [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2];
    let value = |c: u8| match c {
        b'0'..=b'9' => u32::from(c - b'0'),
        b'A'..=b'H' => u32::from(c - b'A') + 1,
        b'J'..=b'R' => u32::from(c - b'J') + 1,
        b'S'..=b'Z' => u32::from(c - b'S') + 2,
        _ => 0,
    };
    let sum: u32 = vin.iter().zip(WEIGHTS).map(|(c, w)| value(*c) * w).sum();
    match (sum % 11) as u8 {
        10 => b'X',
        digit => b'0' + digit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_digits_are_those_of_the_rule() {
        // The example of 49 CFR 565 is full of ones: its check digit is 1.
        assert_eq!(check_digit(b"11111111111111111"), b'1');
        assert_eq!(check_digit(b"1M8GDM9AXKP042788"), b'X');
        let mut dice = Dice::seeded(4);
        for _ in 0..50 {
            let vin = vin(&mut dice);
            assert_eq!(vin.len(), 17);
            assert!(!vin.contains(['I', 'O', 'Q']), "{vin}");
        }
    }

    #[test]
    fn a_day_in_the_life_goes_round() {
        let city = City::new(Place::STUTTGART, 1);
        let start = 1_760_000_000_000_000;
        for id in ["a", "b", "c", "d"] {
            let mut car = city.vehicle(id, start);
            let mut seen = std::collections::HashSet::new();
            let mut out = Vec::new();
            for second in 0..6 * 3_600 {
                car.advance(start + second * 1_000_000, &mut out);
                seen.insert(format!("{:?}", car.doing()));
                let level = car.powertrain().level();
                assert!(level > 3.0, "{id} ran dry after {second} s");
            }
            for doing in ["Parked", "Boarding", "Driving", "Alighting"] {
                assert!(seen.contains(doing), "{id} was never {doing}");
            }
            let trips = |word: &str| {
                out.iter()
                    .filter(|m| m.channel == Channel::Trip)
                    .filter(|m| std::str::from_utf8(&m.payload).unwrap().contains(word))
                    .count()
            };
            let (started, ended) = (trips("STARTED"), trips("ENDED"));
            assert!(started >= 8, "{id}: {started} trips in six hours");
            assert!(
                started - ended <= 1,
                "{id}: {started} started, {ended} ended"
            );
        }
    }
}
