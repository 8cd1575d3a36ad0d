//! The QoS 1 and 2 messages of one session that have a packet identifier: sent and not acknowledged,
//! or acknowledged by PUBREC and not completed.
//!
//! ```text
//! QoS 1: depart ─► Sent ──PUBACK──► over
//! QoS 2: depart ─► Sent ──PUBREC──► Released ──PUBCOMP──► over
//! ```
//! They outlive the connection if the session does. On the next connection those whose PUBREL is owed
//! come first, then the others go out again in the order in which they were first sent [MQTT-4.6.0-1],
//! as the client's new Receive Maximum allows; nothing new departs before [MQTT-4.4.0-1]. A packet
//! identifier is free again when its exchange is over, and rests as long as possible then.

use std::collections::VecDeque;

use mqtt::{PacketId, QoS};

use super::delivery::Delivery;

/// Exchanges under way. Nothing but a pointer until the first one: most vehicles get little.
#[derive(Debug, Default)]
pub(crate) struct Flights(Option<Box<UnderWay>>);

#[derive(Debug, Default)]
struct UnderWay {
    /// In the order of sending; those on the wire of this connection first.
    flights: VecDeque<Flight>,
    /// How many of `flights` were sent on this connection.
    on_wire: usize,
    /// Bytes of frames that are kept for other receivers.
    frames: usize,
    identifiers: Identifiers,
}

/// One exchange.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) packet_id: PacketId,
    pub(crate) phase: Phase,
    pub(crate) delivery: Delivery,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// PUBACK or PUBREC is awaited.
    Sent,
    /// PUBCOMP is awaited.
    Released,
}

impl Flights {
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |all| all.flights.len())
    }

    /// Bytes of frames that are kept for other receivers, should this one go.
    pub(crate) fn frames(&self) -> usize {
        self.0.as_ref().map_or(0, |all| all.frames)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.0.iter().flat_map(|all| &all.flights)
    }

    /// Whether all that was under way before this connection is on the wire again.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|all| all.on_wire == all.flights.len())
    }

    /// Whether something may be sent with a client that takes `receive_maximum` at once.
    pub(crate) fn has_room(&self, receive_maximum: u16) -> bool {
        let on_wire = self.0.as_ref().map_or(0, |all| all.on_wire);
        on_wire < usize::from(receive_maximum)
    }

    /// A packet identifier for a new exchange, of 1 to `highest`.
    pub(crate) fn identifier(&mut self, highest: u16) -> Option<PacketId> {
        self.under_way().identifiers.take(highest)
    }

    /// Begins an exchange with an [`identifier`](Flights::identifier).
    pub(crate) fn depart(&mut self, packet_id: PacketId, delivery: Delivery) {
        debug_assert!(self.is_caught_up(), "nothing new before what is owed");
        let all = self.under_way();
        all.frames += frame_of(&delivery);
        all.flights.push_back(Flight {
            packet_id,
            phase: Phase::Sent,
            delivery,
        });
        all.on_wire += 1;
    }

    /// Puts back an exchange out of the store, in the order of sending.
    pub(crate) fn restore(&mut self, flight: Flight) {
        let all = self.under_way();
        all.identifiers.mark(flight.packet_id);
        all.flights.push_back(flight);
    }

    /// A new connection: nothing is on its wire yet. Returns the packet identifiers for which PUBREL
    /// is owed; these count as sent.
    pub(crate) fn reconnect(&mut self) -> Vec<PacketId> {
        let Some(all) = &mut self.0 else {
            return Vec::new();
        };
        // Stable: within both, the order of sending stays.
        let (released, sent): (Vec<_>, Vec<_>) = std::mem::take(&mut all.flights)
            .into_iter()
            .partition(|flight| flight.phase == Phase::Released);
        all.on_wire = released.len();
        let owed = released.iter().map(|flight| flight.packet_id).collect();
        all.flights = released.into_iter().chain(sent).collect();
        owed
    }

    /// Takes identifiers in use for free: a planted defect.
    pub(crate) fn forget_identifiers(&mut self) {
        self.under_way().identifiers = Identifiers::default();
    }

    /// Gives the next exchange to be taken up another identifier: a planted defect.
    pub(crate) fn renumber(&mut self, highest: u16) -> PacketId {
        let all = self.under_way();
        let new = all.identifiers.take(highest).unwrap_or(PacketId::FIRST);
        if let Some(flight) = all.flights.get_mut(all.on_wire) {
            flight.packet_id = new;
        }
        new
    }

    /// The next exchange to be taken up again on this connection.
    pub(crate) fn next_owed(&mut self) -> Option<&mut Flight> {
        let all = self.0.as_mut()?;
        all.flights.get_mut(all.on_wire)
    }

    /// The one that [`next_owed`](Flights::next_owed) named is on the wire.
    pub(crate) fn resent(&mut self) {
        let all = self.under_way();
        all.on_wire += 1;
        debug_assert!(all.on_wire <= all.flights.len());
    }

    /// The exchange of a packet identifier.
    pub(crate) fn get(&mut self, packet_id: PacketId) -> Option<&mut Flight> {
        let all = self.0.as_mut()?;
        let place = all.place(packet_id)?;
        all.flights.get_mut(place)
    }

    /// PUBREC came: the message is the client's, and nobody else's.
    pub(crate) fn release(&mut self, packet_id: PacketId) -> Option<&mut Flight> {
        let all = self.0.as_mut()?;
        let place = all.place(packet_id)?;
        let flight = all.flights.get_mut(place)?;
        all.frames -= frame_of(&flight.delivery);
        flight.phase = Phase::Released;
        flight.delivery.message = None;
        flight.delivery.frame = None;
        Some(flight)
    }

    /// Ends an exchange.
    pub(crate) fn land(&mut self, packet_id: PacketId) -> Option<Flight> {
        let all = self.0.as_mut()?;
        let place = all.place(packet_id)?;
        let flight = all.flights.remove(place)?;
        all.on_wire -= usize::from(place < all.on_wire);
        all.frames -= frame_of(&flight.delivery);
        all.identifiers.free(packet_id);
        if all.flights.is_empty() && all.flights.capacity() > KEPT {
            all.flights = VecDeque::new();
        }
        Some(flight)
    }

    /// Takes out those that `leave` says, in order; their exchanges are off.
    pub(crate) fn take(&mut self, mut leave: impl FnMut(&Flight) -> bool) -> Vec<Flight> {
        let ids: Vec<PacketId> = self
            .iter()
            .filter(|flight| leave(flight))
            .map(|flight| flight.packet_id)
            .collect();
        ids.into_iter().filter_map(|id| self.land(id)).collect()
    }

    /// Made on first use.
    fn under_way(&mut self) -> &mut UnderWay {
        self.0.get_or_insert_default()
    }
}

/// Bytes of the frame that a delivery keeps.
fn frame_of(delivery: &Delivery) -> usize {
    delivery
        .frame
        .as_ref()
        .map_or(0, |frame| frame.len() + FRAME)
}

/// Bytes of a frame beside the packet.
const FRAME: usize = 128;

impl UnderWay {
    /// Where an identifier is: nearly always at the front.
    fn place(&self, packet_id: PacketId) -> Option<usize> {
        self.flights.iter().position(|f| f.packet_id == packet_id)
    }
}

impl Flight {
    /// Whether a client might have begun to act on it in a way that another receiver must not repeat.
    pub(crate) fn is_bound_to_client(&self) -> bool {
        self.delivery.qos == QoS::ExactlyOnce
    }
}

/// Queues of this capacity are kept when empty; larger ones are given back.
const KEPT: usize = 16;

/// Packet identifiers in use, one bit each, so that taking and returning one is a few instructions in
/// any order.
#[derive(Debug, Default)]
struct Identifiers {
    /// Where to look for a free one: behind the last one taken.
    cursor: u16,
    /// Bit `n` for identifier `n + 1`.
    taken: Vec<u64>,
}

impl Identifiers {
    /// Takes one of 1 to `highest`, unless all are in use.
    fn take(&mut self, highest: u16) -> Option<PacketId> {
        let words = usize::from(highest).div_ceil(64);
        if self.taken.len() < words {
            self.taken.resize(words, 0);
        }
        let mut bit = if self.cursor < highest {
            self.cursor
        } else {
            0
        };
        let mut wrapped = false;
        loop {
            let word = self.taken[usize::from(bit / 64)];
            let free_from_here = (!word) >> (bit % 64);
            let found = match free_from_here {
                0 => u32::from(bit / 64 + 1) * 64,
                free => u32::from(bit) + free.trailing_zeros(),
            };
            match u16::try_from(found) {
                Ok(found) if found < highest && free_from_here != 0 => {
                    bit = found;
                    break;
                }
                Ok(found) if found < highest => bit = found,
                _ if wrapped => return None,
                _ => {
                    wrapped = true;
                    bit = 0;
                }
            }
        }
        self.taken[usize::from(bit / 64)] |= 1 << (bit % 64);
        self.cursor = bit.wrapping_add(1);
        PacketId::new(bit + 1)
    }

    /// Marks one as in use.
    fn mark(&mut self, id: PacketId) {
        let bit = id.get() - 1;
        let word = usize::from(bit / 64);
        if self.taken.len() <= word {
            self.taken.resize(word + 1, 0);
        }
        self.taken[word] |= 1 << (bit % 64);
        self.cursor = self.cursor.max(bit.saturating_add(1));
    }

    fn free(&mut self, id: PacketId) {
        let bit = id.get() - 1;
        if let Some(word) = self.taken.get_mut(usize::from(bit / 64)) {
            *word &= !(1 << (bit % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn delivery(qos: QoS) -> Delivery {
        Delivery {
            qos,
            ..Delivery::empty()
        }
    }

    fn depart(flights: &mut Flights) -> PacketId {
        let id = flights.identifier(100).expect("there are free ones");
        flights.depart(id, delivery(QoS::ExactlyOnce));
        id
    }

    #[test]
    fn what_is_owed_comes_first_and_counts_against_the_new_receive_maximum() {
        let mut flights = Flights::default();
        let ids: Vec<PacketId> = (0..4).map(|_| depart(&mut flights)).collect();
        flights.get(ids[2]).expect("under way").phase = Phase::Released;
        assert_eq!(flights.reconnect(), [ids[2]]);
        assert!(flights.has_room(2) && !flights.has_room(1));
        assert!(!flights.is_caught_up());
        for id in [ids[0], ids[1], ids[3]] {
            assert_eq!(flights.next_owed().map(|f| f.packet_id), Some(id));
            flights.resent();
        }
        assert!(flights.is_caught_up());
        let new = depart(&mut flights);
        assert!(!ids.contains(&new));
    }

    #[test]
    fn an_exchange_that_ends_before_it_is_taken_up_again_does_not_disturb_the_others() {
        let mut flights = Flights::default();
        let ids: Vec<PacketId> = (0..3).map(|_| depart(&mut flights)).collect();
        flights.reconnect();
        flights.resent();
        assert!(flights.land(ids[1]).is_some(), "not on the wire yet");
        assert_eq!(flights.next_owed().map(|f| f.packet_id), Some(ids[2]));
        assert!(flights.land(ids[0]).is_some());
        assert_eq!(flights.next_owed().map(|f| f.packet_id), Some(ids[2]));
        assert!(flights.land(ids[0]).is_none());
    }

    proptest! {
        #[test]
        fn no_identifier_is_in_use_twice(
            highest in 1u16..200,
            steps in prop::collection::vec((any::<bool>(), any::<u16>()), 0..500),
        ) {
            let mut identifiers = Identifiers::default();
            let mut used = BTreeSet::new();
            for (take, pick) in steps {
                if take {
                    match identifiers.take(highest) {
                        Some(id) => prop_assert!(id.get() <= highest && used.insert(id.get())),
                        None => prop_assert_eq!(used.len(), usize::from(highest)),
                    }
                } else if let Some(id) = PacketId::new(pick % 256) {
                    identifiers.free(id);
                    used.remove(&id.get());
                }
            }
        }
    }
}
