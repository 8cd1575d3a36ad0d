//! Tyres: pressure follows the temperature of the air inside, and now and then one leaks.

use crate::dice::Dice;

/// Which of the four.
pub const PLACES: [&str; 4] = [
    "Row1.Wheel.Left",
    "Row1.Wheel.Right",
    "Row2.Wheel.Left",
    "Row2.Wheel.Right",
];

const ATMOSPHERE: f64 = 101.3;
/// Filling temperature, K.
const FILLED_AT: f64 = 293.15;

/// One tyre.
#[derive(Debug, Clone, PartialEq)]
pub struct Tyre {
    /// Gauge pressure at 20 °C, kPa.
    cold: f64,
    /// As filled, kPa.
    nominal: f64,
    /// °C of the air inside.
    temperature: f64,
    /// kPa lost per hour.
    leak: f64,
}

impl Tyre {
    /// A tyre as found in the street. One in twenty-five leaks slowly.
    pub fn draw(nominal: f64, ambient: f64, dice: &mut Dice) -> Self {
        Self {
            cold: nominal * dice.between(0.95, 1.03),
            nominal,
            temperature: ambient,
            leak: if dice.chance(0.04) {
                dice.between(6.0, 40.0)
            } else {
                dice.between(0.0, 0.002)
            },
        }
    }

    /// Rolls for `seconds` at `speed` m/s. Rubber works itself warm, about 25 K above the air at
    /// motorway speed.
    pub fn roll(&mut self, speed: f64, ambient: f64, seconds: f64) {
        let target = ambient + 0.75 * speed;
        self.temperature += (target - self.temperature) * (seconds / 700.0).min(1.0);
        self.cold = (self.cold - self.leak * seconds / 3_600.0).max(0.0);
        if self.cold < 0.6 * self.nominal {
            self.cold = self.nominal; // mended and pumped up overnight
            self.leak = 0.001;
        }
    }

    /// Gauge pressure now, kPa: Gay-Lussac on the absolute pressure.
    pub fn pressure(&self) -> f64 {
        (self.cold + ATMOSPHERE) * (self.temperature + 273.15) / FILLED_AT - ATMOSPHERE
    }

    /// °C.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// A fifth below nominal, where a warning lamp comes on.
    pub fn is_low(&self) -> bool {
        self.cold < 0.8 * self.nominal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driving_warms_and_raises_pressure_and_a_leak_is_noticed() {
        let mut tyre = Tyre {
            cold: 240.0,
            nominal: 240.0,
            temperature: 20.0,
            leak: 0.0,
        };
        assert!((tyre.pressure() - 240.0).abs() < 0.1);
        for _ in 0..1_800 {
            tyre.roll(33.0, 20.0, 1.0);
        }
        assert!(
            (255.0..275.0).contains(&tyre.pressure()),
            "{}",
            tyre.pressure()
        );
        tyre.leak = 30.0;
        let hours = (0..10)
            .take_while(|_| {
                (0..3_600).for_each(|_| tyre.roll(0.0, 20.0, 1.0));
                !tyre.is_low()
            })
            .count();
        assert_eq!(hours, 1, "a fifth of 240 kPa at 30 kPa/h");
    }
}
