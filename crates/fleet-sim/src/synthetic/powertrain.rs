//! Powertrain: what driving costs, in kilowatt-hours or litres.
//!
//! Power at the wheels is mass times acceleration, plus rolling, grade and air. A battery pays for
//! it through the drive's efficiency and gets part back while braking; a tank pays through the
//! engine's efficiency and for idling, and never gets anything back. Both pay for auxiliaries.

use crate::dice::Dice;

const GRAVITY: f64 = 9.81;
const AIR_DENSITY: f64 = 1.2;
/// Petrol, kWh per litre.
const ENERGY_PER_LITRE: f64 = 8.9;

/// The body that has to be moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Body {
    /// kg, loaded.
    pub mass: f64,
    /// Rolling resistance coefficient.
    pub rolling: f64,
    /// Drag coefficient times frontal area, m².
    pub drag_area: f64,
}

impl Body {
    /// Power at the wheels, W; negative when the motion gives energy back.
    pub fn wheel_power(&self, speed: f64, acceleration: f64, grade: f64) -> f64 {
        let slope = grade.atan();
        let rolling = if speed > 0.0 {
            self.mass * GRAVITY * self.rolling * slope.cos()
        } else {
            0.0
        };
        let force = self.mass * acceleration
            + rolling
            + self.mass * GRAVITY * slope.sin()
            + 0.5 * AIR_DENSITY * self.drag_area * speed * speed;
        force * speed
    }
}

/// A traction battery.
#[derive(Debug, Clone, PartialEq)]
pub struct Battery {
    /// Usable, kWh.
    pub capacity: f64,
    /// In it now, kWh.
    pub energy: f64,
    /// Flowing out of it (positive) or into it, W.
    pub power: f64,
    /// °C.
    pub temperature: f64,
}

impl Battery {
    /// Most that braking may put back, W.
    const REGENERATION_LIMIT: f64 = 70_000.0;

    /// Percent.
    pub fn state_of_charge(&self) -> f64 {
        (self.energy / self.capacity * 100.0).clamp(0.0, 100.0)
    }

    /// Pack voltage under load: 96 cells in series.
    pub fn voltage(&self) -> f64 {
        let open = 96.0 * (3.35 + 0.8 * self.energy / self.capacity);
        open - 0.06 * self.power / open
    }

    fn draw(&mut self, wheel: f64, auxiliary: f64, speed: f64, seconds: f64) {
        let drive = if wheel >= 0.0 {
            wheel / 0.89
        } else if speed > 2.0 {
            (wheel * 0.66).max(-Self::REGENERATION_LIMIT)
        } else {
            0.0 // the friction brake has the last metres
        };
        self.power = drive + auxiliary;
        self.energy = (self.energy - self.power * seconds / 3.6e6).clamp(0.0, self.capacity);
        self.temperature +=
            (self.power.abs() * 2.0e-8 - 2.0e-5 * (self.temperature - 20.0)) * seconds;
    }

    /// Charges from a station of `station` watts; the car takes less above 80 %.
    fn charge(&mut self, station: f64, seconds: f64) {
        let charge = self.energy / self.capacity;
        let taper = if charge < 0.8 {
            1.0
        } else {
            (1.0 - charge) / 0.2 * 0.9 + 0.1
        };
        self.power = -station * taper;
        self.energy = (self.energy - self.power * seconds / 3.6e6).min(self.capacity);
    }
}

/// A combustion engine with its tank.
#[derive(Debug, Clone, PartialEq)]
pub struct Engine {
    /// Litres.
    pub capacity: f64,
    /// Litres in it now.
    pub fuel: f64,
    /// Litres per hour.
    pub consumption: f64,
    /// rpm; 0 when off.
    pub speed: f64,
    /// 0 neutral, 1.. forward.
    pub gear: u8,
    /// Coolant, °C.
    pub coolant: f64,
}

impl Engine {
    const IDLE_SPEED: f64 = 780.0;
    /// rpm per m/s in each gear.
    const RATIOS: [f64; 6] = [430.0, 245.0, 165.0, 122.0, 96.0, 78.0];

    /// Percent.
    pub fn level(&self) -> f64 {
        (self.fuel / self.capacity * 100.0).clamp(0.0, 100.0)
    }

    fn draw(&mut self, wheel: f64, auxiliary: f64, speed: f64, seconds: f64) {
        self.shift(speed, wheel);
        let idle = 0.7;
        let shaft = wheel.max(0.0) / 0.92 + auxiliary;
        // Overrun cuts the injection; standing and pulling both cost.
        let overrun = wheel < -1_000.0 && self.speed > 1_200.0;
        self.consumption = if overrun {
            0.0
        } else {
            idle + shaft / 1_000.0 / 0.34 / ENERGY_PER_LITRE
        };
        self.fuel = (self.fuel - self.consumption * seconds / 3_600.0).max(0.0);
        let warm = 90.0 + 4.0 * (shaft / 40_000.0).min(1.0);
        self.coolant += (warm - self.coolant) * seconds / 240.0;
    }

    fn shift(&mut self, speed: f64, wheel: f64) {
        let top = if wheel > 25_000.0 { 3_600.0 } else { 2_400.0 };
        if speed < 0.3 {
            self.gear = 0;
            self.speed = Self::IDLE_SPEED;
            return;
        }
        let mut gear = usize::from(self.gear.max(1));
        while gear < Self::RATIOS.len() && Self::RATIOS[gear - 1] * speed > top {
            gear += 1;
        }
        while gear > 1 && Self::RATIOS[gear - 1] * speed < 1_250.0 {
            gear -= 1;
        }
        self.gear = gear as u8;
        self.speed = (Self::RATIOS[gear - 1] * speed).max(Self::IDLE_SPEED);
    }
}

/// What moves a vehicle.
#[derive(Debug, Clone, PartialEq)]
pub enum Powertrain {
    /// Battery and motor.
    Electric(Battery),
    /// Tank and engine.
    Combustion(Engine),
}

impl Powertrain {
    /// Three of five are electric.
    pub fn draw_one(dice: &mut Dice) -> Self {
        if dice.chance(0.6) {
            let capacity = [42.0, 58.0, 77.0, 94.0][dice.below(4)];
            Self::Electric(Battery {
                capacity,
                energy: capacity * dice.between(0.25, 0.95),
                power: 0.0,
                temperature: dice.between(15.0, 26.0),
            })
        } else {
            let capacity = [40.0, 50.0, 60.0][dice.below(3)];
            Self::Combustion(Engine {
                capacity,
                fuel: capacity * dice.between(0.2, 1.0),
                consumption: 0.0,
                speed: 0.0,
                gear: 0,
                coolant: 20.0,
            })
        }
    }

    /// Pays for `seconds` of motion; `auxiliary` watts run besides.
    pub fn pay(
        &mut self,
        body: &Body,
        speed: f64,
        acceleration: f64,
        grade: f64,
        auxiliary: f64,
        seconds: f64,
    ) {
        let wheel = body.wheel_power(speed, acceleration, grade);
        match self {
            Self::Electric(battery) => battery.draw(wheel, auxiliary, speed, seconds),
            Self::Combustion(engine) => engine.draw(wheel, auxiliary, speed, seconds),
        }
    }

    /// Ignition off.
    pub fn rest(&mut self, ambient: f64, seconds: f64) {
        match self {
            Self::Electric(battery) => battery.power = 0.0,
            Self::Combustion(engine) => {
                engine.speed = 0.0;
                engine.gear = 0;
                engine.consumption = 0.0;
                engine.coolant += (ambient - engine.coolant) * seconds / 3_600.0;
            }
        }
    }

    /// Percent of what fits in.
    pub fn level(&self) -> f64 {
        match self {
            Self::Electric(battery) => battery.state_of_charge(),
            Self::Combustion(engine) => engine.level(),
        }
    }

    /// Charges or refuels; true once it is enough to drive on.
    pub fn replenish(&mut self, seconds: f64) -> bool {
        match self {
            Self::Electric(battery) => {
                battery.charge(120_000.0, seconds);
                battery.energy >= 0.85 * battery.capacity
            }
            Self::Combustion(engine) => {
                engine.fuel = (engine.fuel + 0.5 * seconds).min(engine.capacity); // 30 l/min
                engine.fuel >= 0.98 * engine.capacity
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAR: Body = Body {
        mass: 1_900.0,
        rolling: 0.010,
        drag_area: 0.62,
    };

    fn battery() -> Powertrain {
        Powertrain::Electric(Battery {
            capacity: 77.0,
            energy: 50.0,
            power: 0.0,
            temperature: 20.0,
        })
    }

    fn engine() -> Powertrain {
        Powertrain::Combustion(Engine {
            capacity: 50.0,
            fuel: 30.0,
            consumption: 0.0,
            speed: 0.0,
            gear: 0,
            coolant: 20.0,
        })
    }

    /// kWh or litres for 100 km at a constant speed.
    fn per_100_km(mut drive: Powertrain, km_h: f64) -> f64 {
        let amount = |drive: &Powertrain| match drive {
            Powertrain::Electric(battery) => battery.energy,
            Powertrain::Combustion(engine) => engine.fuel,
        };
        let before = amount(&drive);
        let seconds = 10.0 / km_h * 3_600.0; // 10 km
        for _ in 0..seconds as usize {
            drive.pay(&CAR, km_h / 3.6, 0.0, 0.0, 500.0, 1.0);
        }
        (before - amount(&drive)) * 10.0
    }

    #[test]
    fn consumption_is_that_of_real_cars() {
        for (drive, km_h, range) in [
            (battery(), 50.0, 7.0..13.0),
            (battery(), 120.0, 17.0..24.0),
            (engine(), 50.0, 3.0..6.5),
            (engine(), 120.0, 5.5..9.0),
        ] {
            let used = per_100_km(drive.clone(), km_h);
            assert!(
                range.contains(&used),
                "{km_h} km/h: {used:.1} per 100 km, {drive:?}"
            );
        }
    }

    #[test]
    fn braking_gives_a_battery_something_back_and_a_tank_nothing() {
        let mut electric = battery();
        electric.pay(&CAR, 20.0, -2.0, 0.0, 500.0, 1.0);
        assert!(electric.level() > battery().level());
        let mut fuel = engine();
        fuel.pay(&CAR, 20.0, -2.0, 0.0, 500.0, 1.0);
        assert!(fuel.level() <= engine().level());
    }

    #[test]
    fn without_regeneration_energy_only_falls() {
        for mut drive in [battery(), engine()] {
            for second in 0..600 {
                let before = drive.level();
                let speed = f64::from(second % 30);
                drive.pay(&CAR, speed, 0.3, 0.01, 400.0, 1.0);
                assert!(drive.level() < before, "{drive:?}");
            }
        }
    }

    #[test]
    fn replenishing_ends_and_never_overfills() {
        for mut drive in [battery(), engine()] {
            let seconds = (0..7_200).take_while(|_| !drive.replenish(1.0)).count();
            assert!(seconds > 10 && seconds < 7_000, "{seconds}");
            assert!(drive.level() <= 100.0);
        }
    }

    #[test]
    fn gears_follow_speed() {
        let mut drive = engine();
        let mut gears = Vec::new();
        for speed in [0.0, 3.0, 8.0, 14.0, 20.0, 33.0] {
            drive.pay(&CAR, speed, 0.0, 0.0, 300.0, 1.0);
            let Powertrain::Combustion(engine) = &drive else {
                unreachable!("made above")
            };
            assert!((700.0..4_000.0).contains(&engine.speed), "{engine:?}");
            gears.push(engine.gear);
        }
        assert_eq!(gears[0], 0);
        assert!(gears.is_sorted(), "{gears:?}");
        assert_eq!(gears[5], 6);
    }
}
