//! Ledger: what was sent, and what of it came: once, twice, or never.
//!
//! A lane is the numbered messages of one publisher on their way to one reader, or to one group that
//! shares them. Members of a group overtake each other, so a lane remembers what came above the first
//! number that is missing, as bits: a few words, because a publisher has few messages under way.

use std::collections::VecDeque;

/// What a message that came is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It came for the first time.
    New,
    /// It was here before.
    Again,
    /// Nobody sent it.
    Alien,
}

/// Messages from one publisher to one receiver, by their numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Lane {
    /// All before it have come.
    low: u32,
    /// Of what is not before `low`: which have come. Bit 0 of the first word is `low`.
    above: VecDeque<u64>,
}

impl Lane {
    /// Notes that number `number` came, of which `sent` were sent.
    pub(super) fn take(&mut self, number: u32, sent: u32) -> Arrival {
        if number >= sent {
            return Arrival::Alien;
        }
        if number < self.low {
            return Arrival::Again;
        }
        if number == self.low && self.above.is_empty() {
            self.low += 1;
            return Arrival::New;
        }
        let (word, bit) = (
            ((number - self.low) / 64) as usize,
            (number - self.low) % 64,
        );
        if self.above.len() <= word {
            self.above.resize(word + 1, 0);
        }
        if self.above[word] & 1 << bit != 0 {
            return Arrival::Again;
        }
        self.above[word] |= 1 << bit;
        // Whole words go; then, if nothing is missing in between, everything does.
        while self.above.front() == Some(&u64::MAX) {
            self.above.pop_front();
            self.low += 64;
        }
        if let [only] = self.above.make_contiguous() {
            let run = only.trailing_ones();
            if run > 0 && *only >> run == 0 {
                self.low += run;
                self.above.clear();
            }
        }
        Arrival::New
    }
}

/// Counts of all lanes together. Nothing is counted twice: what was due is what arrived and what is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages sent.
    pub sent: u64,
    /// Deliveries that should come of these: as many, or as many for each reader.
    pub due: u64,
    /// Deliveries that came, each counted once.
    pub received: u64,
    /// Deliveries that came once more.
    pub duplicated: u64,
    /// Deliveries of what was never sent, or to the wrong place.
    pub alien: u64,
    /// Messages the server acknowledged, at QoS 1 and 2.
    pub acknowledged: u64,
    /// Messages the server refused, by a reason code.
    pub refused: u64,
}

impl Tally {
    /// Deliveries that did not come.
    pub fn lost(&self) -> u64 {
        self.due.saturating_sub(self.received)
    }

    /// Deliveries that are still to come, while it goes on.
    pub(super) fn under_way(&self) -> u64 {
        self.lost()
    }

    pub(super) fn count(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::New => self.received += 1,
            Arrival::Again => self.duplicated += 1,
            Arrival::Alien => self.alien += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_and_repetitions_are_seen() {
        let mut lane = Lane::default();
        for (number, expected) in [
            (0, Arrival::New),
            (1, Arrival::New),
            (1, Arrival::Again),
            (3, Arrival::New), // 2 is missing
            (3, Arrival::Again),
            (70, Arrival::New),
            (2, Arrival::New),
            (2, Arrival::Again),
            (0, Arrival::Again),
            (99, Arrival::New),
            (100, Arrival::Alien),
        ] {
            assert_eq!(lane.take(number, 100), expected, "{number}");
        }
    }

    proptest! {
        #[test]
        fn a_lane_is_a_set(numbers in prop::collection::vec(0_u32..400, 0..2_000)) {
            let (mut lane, mut seen) = (Lane::default(), HashSet::new());
            for number in numbers {
                let expected = match () {
                    () if number >= 300 => Arrival::Alien,
                    () if seen.insert(number) => Arrival::New,
                    () => Arrival::Again,
                };
                prop_assert_eq!(lane.take(number, 300), expected);
            }
        }
    }
}
