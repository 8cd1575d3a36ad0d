//! PUBACKs owed to a publisher.
//!
//! They leave in the order in which the PUBLISH packets came [MQTT-4.6.0-2], while outcomes of the
//! tap come in any order: partitions of the log sync on their own. So each message waits until all
//! before it are decided.

use std::collections::VecDeque;

use mqtt::{PacketId, ReasonCode};

use super::Receipt;

/// The QoS 1 messages of one connection that are received and not answered yet.
#[derive(Debug)]
pub(crate) struct Owed {
    waiting: VecDeque<Message>,
    /// Receipt of the first in `waiting`.
    first: u64,
}

impl Default for Owed {
    fn default() -> Owed {
        Owed {
            waiting: VecDeque::new(),
            first: Receipt::NONE.0 + 1,
        }
    }
}

#[derive(Debug)]
struct Message {
    packet_id: PacketId,
    /// `None` until decided.
    outcome: Option<ReasonCode>,
}

/// A queue that grew beyond this gives its memory back when it is empty.
const KEPT: usize = 16;

impl Owed {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Notes a message that came in.
    pub(crate) fn received(&mut self, packet_id: PacketId) -> Receipt {
        let receipt = Receipt(self.first + self.waiting.len() as u64);
        self.waiting.push_back(Message {
            packet_id,
            outcome: None,
        });
        receipt
    }

    /// Decides a message. An outcome for one that was decided before is ignored.
    pub(crate) fn decide(&mut self, receipt: Receipt, outcome: ReasonCode) {
        let place = receipt.0.checked_sub(self.first);
        if let Some(message) = place.and_then(|place| self.waiting.get_mut(place as usize)) {
            message.outcome.get_or_insert(outcome);
        }
    }

    /// The next PUBACK that may leave.
    pub(crate) fn next_due(&mut self) -> Option<(PacketId, ReasonCode)> {
        let message = self.waiting.front()?;
        let due = (message.packet_id, message.outcome?);
        self.waiting.pop_front();
        self.first += 1;
        if self.waiting.is_empty() && self.waiting.capacity() > KEPT {
            self.waiting = VecDeque::new();
        }
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(n: u16) -> PacketId {
        PacketId::new(n).expect("not 0")
    }

    #[test]
    fn the_second_waits_for_the_first() {
        let mut owed = Owed::default();
        let first = owed.received(packet(10));
        let second = owed.received(packet(11));
        owed.decide(second, ReasonCode::Success);
        assert_eq!(owed.next_due(), None);
        owed.decide(first, ReasonCode::QuotaExceeded);
        assert_eq!(
            owed.next_due(),
            Some((packet(10), ReasonCode::QuotaExceeded))
        );
        assert_eq!(owed.next_due(), Some((packet(11), ReasonCode::Success)));
        assert!(owed.is_empty());
    }

    #[test]
    fn a_late_second_opinion_changes_nothing() {
        let mut owed = Owed::default();
        let first = owed.received(packet(1));
        owed.decide(first, ReasonCode::Success);
        owed.decide(first, ReasonCode::UnspecifiedError);
        assert_eq!(owed.next_due(), Some((packet(1), ReasonCode::Success)));
        owed.received(packet(2));
        owed.decide(first, ReasonCode::UnspecifiedError);
        assert_eq!(owed.next_due(), None);
    }

    proptest! {
        #[test]
        fn acknowledgements_leave_in_the_order_of_arrival(order in Just((1..200u16).collect::<Vec<_>>()).prop_shuffle()) {
            let mut owed = Owed::default();
            let receipts: Vec<Receipt> = (1..200).map(|n| owed.received(packet(n))).collect();
            let mut left = Vec::new();
            for n in order {
                owed.decide(receipts[usize::from(n) - 1], ReasonCode::Success);
                while let Some((id, _)) = owed.next_due() {
                    left.push(id.get());
                }
            }
            prop_assert_eq!(left, (1..200).collect::<Vec<_>>());
        }
    }
}
