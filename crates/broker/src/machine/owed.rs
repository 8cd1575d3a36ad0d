//! PUBACKs and PUBRECs owed to a publisher.
//!
//! They leave in the order in which the PUBLISH packets came [MQTT-4.6.0-2, MQTT-4.6.0-3], while what
//! they wait for (the tap, the store) comes in any order. So each message waits until all before it are
//! decided.
//!
//! Belongs to the session, not to the connection: a QoS 2 message that was received before the
//! connection broke is decided afterwards, and its PUBLISH that comes again on the next connection
//! waits for the same decision.

use std::collections::VecDeque;
use std::mem::size_of;

use mqtt::{PacketId, QoS, ReasonCode};

use super::Receipt;
use super::deferred::DECISION;

/// The QoS 1 and 2 messages of one session that are received and not answered yet.
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
    qos: QoS,
    /// Outcomes that are still to come.
    to_come: u8,
    /// Of those that came, the first that is not success.
    outcome: ReasonCode,
    /// The earlier copy whose decision this one shares.
    follows: Option<Receipt>,
    listener: Listener,
}

/// Whether somebody is there to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    Present,
    /// The connection the message came on is gone.
    Gone,
}

/// An answer that may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) packet_id: PacketId,
    pub(crate) qos: QoS,
    pub(crate) outcome: ReasonCode,
    pub(crate) listener: Listener,
}

/// A queue that grew beyond this gives its memory back when it is empty.
const KEPT: usize = 16;

/// Bytes of a message that waits for an answer.
const MESSAGE: usize = size_of::<Message>() + DECISION;

impl Owed {
    /// Whether an answer is owed to the connection there is.
    pub(crate) fn is_settled(&self) -> bool {
        self.waiting
            .back()
            .is_none_or(|message| message.listener == Listener::Gone)
    }

    /// Bytes of memory beyond what every session may have.
    pub(crate) fn weight(&self) -> usize {
        match self.waiting.capacity() {
            0..=KEPT => 0,
            many => many * MESSAGE,
        }
    }

    /// Notes a message that came in and waits for one outcome.
    pub(crate) fn received(&mut self, packet_id: PacketId, qos: QoS) -> Receipt {
        let receipt = Receipt(self.first + self.waiting.len() as u64);
        self.waiting.push_back(Message {
            packet_id,
            qos,
            to_come: 1,
            outcome: ReasonCode::Success,
            follows: None,
            listener: Listener::Present,
        });
        receipt
    }

    /// Notes another copy of a message of which one is being decided: the same answer is due twice.
    pub(crate) fn received_again(&mut self, packet_id: PacketId) -> Option<Receipt> {
        let place = self.waiting.iter().rposition(|message| {
            message.packet_id == packet_id && message.qos == QoS::ExactlyOnce
        })?;
        let first = Receipt(self.first + place as u64);
        let receipt = self.received(packet_id, QoS::ExactlyOnce);
        if let Some(message) = self.waiting.back_mut() {
            message.follows = Some(first);
        }
        Some(receipt)
    }

    /// One more outcome is awaited.
    pub(crate) fn expect_one_more(&mut self, receipt: Receipt) {
        if let Some(message) = self.message(receipt) {
            message.to_come += 1;
        }
    }

    /// An outcome came.
    pub(crate) fn decide(&mut self, receipt: Receipt, outcome: ReasonCode) {
        let Some(message) = self.message(receipt) else {
            return;
        };
        message.to_come = message.to_come.saturating_sub(1);
        if !message.outcome.is_error() {
            message.outcome = outcome;
        }
    }

    /// The packet identifier and QoS behind a receipt, while it is not answered.
    pub(crate) fn packet(&mut self, receipt: Receipt) -> Option<(PacketId, QoS)> {
        self.message(receipt).map(|m| (m.packet_id, m.qos))
    }

    /// The next answer that may leave.
    pub(crate) fn next_due(&mut self) -> Option<Due> {
        let message = self.waiting.front()?;
        if message.to_come > 0 {
            return None;
        }
        let due = Due {
            packet_id: message.packet_id,
            qos: message.qos,
            outcome: message.outcome,
            listener: message.listener,
        };
        let receipt = Receipt(self.first);
        self.waiting.pop_front();
        self.first += 1;
        for follower in &mut self.waiting {
            if follower.follows == Some(receipt) {
                follower.follows = None;
                follower.to_come = 0;
                follower.outcome = due.outcome;
            }
        }
        if self.waiting.is_empty() && self.waiting.capacity() > KEPT {
            self.waiting = VecDeque::new();
        }
        Some(due)
    }

    /// The connection is gone: nobody is there for what is owed so far.
    pub(crate) fn connection_lost(&mut self) {
        for message in &mut self.waiting {
            message.listener = Listener::Gone;
        }
    }

    fn message(&mut self, receipt: Receipt) -> Option<&mut Message> {
        let place = receipt.0.checked_sub(self.first)?;
        self.waiting.get_mut(place as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(n: u16) -> PacketId {
        PacketId::new(n).expect("not 0")
    }

    fn due(owed: &mut Owed) -> Option<(u16, ReasonCode)> {
        owed.next_due()
            .map(|due| (due.packet_id.get(), due.outcome))
    }

    #[test]
    fn the_second_waits_for_the_first() {
        let mut owed = Owed::default();
        let first = owed.received(packet(10), QoS::AtLeastOnce);
        let second = owed.received(packet(11), QoS::ExactlyOnce);
        owed.decide(second, ReasonCode::Success);
        assert_eq!(due(&mut owed), None);
        owed.decide(first, ReasonCode::QuotaExceeded);
        assert_eq!(due(&mut owed), Some((10, ReasonCode::QuotaExceeded)));
        assert_eq!(due(&mut owed), Some((11, ReasonCode::Success)));
        assert!(owed.is_settled());
    }

    #[test]
    fn all_awaited_outcomes_must_come_and_one_failure_is_enough() {
        let mut owed = Owed::default();
        let first = owed.received(packet(1), QoS::AtLeastOnce);
        owed.expect_one_more(first);
        owed.decide(first, ReasonCode::UnspecifiedError);
        assert_eq!(due(&mut owed), None);
        owed.decide(first, ReasonCode::Success);
        assert_eq!(due(&mut owed), Some((1, ReasonCode::UnspecifiedError)));
        owed.received(packet(2), QoS::AtLeastOnce);
        owed.decide(first, ReasonCode::UnspecifiedError);
        assert_eq!(due(&mut owed), None, "an outcome of long ago");
    }

    #[test]
    fn a_copy_on_the_next_connection_shares_the_decision() {
        let mut owed = Owed::default();
        let first = owed.received(packet(1), QoS::ExactlyOnce);
        owed.connection_lost();
        assert!(owed.is_settled());
        assert!(owed.received_again(packet(1)).is_some());
        assert_eq!(owed.received_again(packet(2)), None);
        assert!(!owed.is_settled());
        owed.decide(first, ReasonCode::QuotaExceeded);
        for listener in [Listener::Gone, Listener::Present] {
            let due = owed.next_due().expect("decided");
            assert_eq!(
                (due.listener, due.outcome),
                (listener, ReasonCode::QuotaExceeded)
            );
        }
        assert!(owed.waiting.is_empty());
    }

    proptest! {
        #[test]
        fn acknowledgements_leave_in_the_order_of_arrival(order in Just((1..200u16).collect::<Vec<_>>()).prop_shuffle()) {
            let mut owed = Owed::default();
            let receipts: Vec<Receipt> = (1..200)
                .map(|n| owed.received(packet(n), QoS::AtLeastOnce))
                .collect();
            let mut left = Vec::new();
            for n in order {
                owed.decide(receipts[usize::from(n) - 1], ReasonCode::Success);
                while let Some((id, _)) = due(&mut owed) {
                    left.push(id);
                }
            }
            prop_assert_eq!(left, (1..200).collect::<Vec<_>>());
        }
    }
}
