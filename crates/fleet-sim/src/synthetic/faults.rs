//! Faults: diagnostic trouble codes that come and go.

use crate::dice::Dice;

use super::powertrain::Powertrain;

/// Codes of combustion engines (SAE J2012).
const COMBUSTION: [&str; 6] = ["P0301", "P0302", "P0420", "P0171", "P0128", "P0442"];
/// Codes of electric drives and of everything else.
const ELECTRIC: [&str; 5] = ["P0A80", "P0AA6", "P0A0F", "P0C73", "U0293"];
const COMMON: [&str; 4] = ["C0035", "U0121", "B1318", "P0562"];

/// Codes per hour of driving.
const PER_HOUR: f64 = 0.35;

/// A stored code.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// As in SAE J2012, e.g. `P0301`.
    pub code: &'static str,
    /// How often it was detected since it was first stored.
    pub count: u32,
    /// Seconds of driving until it clears itself.
    clears_in: f64,
}

/// The fault memory of one vehicle.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultMemory {
    faults: Vec<Fault>,
}

impl FaultMemory {
    /// One in fifteen vehicles has something stored already.
    pub fn draw(powertrain: &Powertrain, dice: &mut Dice) -> Self {
        let mut memory = Self::default();
        if dice.chance(1.0 / 15.0) {
            memory.detect(powertrain, dice);
        }
        memory
    }

    /// Drives on for `seconds`; true if the stored codes changed.
    pub fn drive(&mut self, powertrain: &Powertrain, seconds: f64, dice: &mut Dice) -> bool {
        let before = self.faults.len();
        for fault in &mut self.faults {
            fault.clears_in -= seconds;
            if dice.happens(20.0, seconds) {
                fault.count += 1;
            }
        }
        self.faults.retain(|fault| fault.clears_in > 0.0);
        let cleared = self.faults.len() != before;
        let new = dice.happens(PER_HOUR, seconds) && self.detect(powertrain, dice);
        cleared || new
    }

    /// Stores one more code, at most five.
    fn detect(&mut self, powertrain: &Powertrain, dice: &mut Dice) -> bool {
        let own: &[&'static str] = match powertrain {
            Powertrain::Electric(_) => &ELECTRIC,
            Powertrain::Combustion(_) => &COMBUSTION,
        };
        let choice = dice.below(own.len() + COMMON.len());
        let code = own
            .get(choice)
            .copied()
            .unwrap_or_else(|| COMMON[choice - own.len()]);
        if self.faults.len() >= 5 || self.faults.iter().any(|fault| fault.code == code) {
            return false;
        }
        self.faults.push(Fault {
            code,
            count: 1,
            clears_in: dice.between(600.0, 5_400.0),
        });
        true
    }

    /// What is stored now, oldest first.
    pub fn stored(&self) -> &[Fault] {
        &self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_now_and_then_and_go_again() {
        let mut dice = Dice::seeded(11);
        let drive = Powertrain::draw_one(&mut dice);
        let mut memory = FaultMemory::default();
        let (mut changes, mut most) = (0, 0);
        for _ in 0..200 * 3_600 {
            changes += usize::from(memory.drive(&drive, 1.0, &mut dice));
            most = most.max(memory.stored().len());
            for fault in memory.stored() {
                assert!(fault.count >= 1 && fault.code.len() == 5);
            }
        }
        assert!((60..240).contains(&changes), "{changes} changes in 200 h");
        assert!(most <= 5);
    }
}
