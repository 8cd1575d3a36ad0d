//! Session: what was sent and not acknowledged, and what was received and may come again. A state
//! machine without IO.
//!
//! On a new connection everything open goes out again in its old order. If the server still has the
//! session it goes with its old packet identifier and the DUP flag `[MQTT-4.4.0-1]`; if not, the
//! server knows nothing of it, so it is a first transmission with a new identifier: DUP would claim
//! that this server may have seen it `[MQTT-3.3.1-1]`. Within a connection nothing is repeated.
//!
//! A message of QoS 2 that the server has received (PUBREC) is never sent again, whatever becomes of
//! the session: the server owns it, and only its identifier is still to be released.

use std::collections::{HashSet, VecDeque};

use bytes::BytesMut;
use mqtt::{Attempt, EncodeError, PacketId, PubRel, PublishFrame, ReasonCode, Version};

use super::{ClientError, Delivery, Done};

/// A message on its way out.
pub(super) struct Message {
    pub(super) frame: PublishFrame,
    pub(super) delivery: Delivery,
    pub(super) done: Option<Done>,
}

struct Open {
    id: PacketId,
    stage: Stage,
    done: Option<Done>,
}

enum Stage {
    /// Sent. The frame is kept for sending it again.
    Sent(PublishFrame, Delivery),
    /// Received by the server (QoS 2): PUBREL sent, PUBCOMP outstanding.
    Released,
}

/// What became of an acknowledgement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// The server has the message.
    Accepted,
    /// The server will not have it.
    Refused,
    /// Nothing open has that identifier and waits for such an answer.
    Unknown,
}

/// What became of a PUBREC.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// The server has the message; PUBREL was written.
    Released,
    /// The server will not have it.
    Refused,
    /// Nothing open of QoS 2 has that identifier.
    Unknown,
}

/// The messages of QoS 1 and 2 that are in flight, in the order they were sent, and the identifiers
/// of incoming messages of QoS 2 that are not released.
pub(super) struct Session {
    version: Version,
    open: VecDeque<Open>,
    incoming: HashSet<PacketId>,
    next_id: PacketId,
    own_window: usize,
    window: usize,
}

impl Session {
    pub(super) fn new(window: u16, version: Version) -> Self {
        let window = usize::from(window.max(1));
        Self {
            version,
            open: VecDeque::new(),
            incoming: HashSet::new(),
            next_id: PacketId::FIRST,
            own_window: window,
            window,
        }
    }

    /// Nothing that was sent waits for an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.len() < self.window
    }

    /// A packet identifier that nothing open has. There is one: the window is smaller than 65,535
    /// plus the one SUBSCRIBE at a time.
    pub(super) fn fresh_id(&mut self) -> PacketId {
        loop {
            let id = self.next_id;
            self.next_id = id.next();
            if !self.open.iter().any(|open| open.id == id) {
                return id;
            }
        }
    }

    /// Sends a message for the first time.
    pub(super) fn send(&mut self, message: Message, out: &mut BytesMut) -> Result<(), EncodeError> {
        let Message {
            frame,
            delivery,
            done,
        } = message;
        let id = self.fresh_id();
        frame.write(Some(id), Attempt::First, out)?;
        let stage = Stage::Sent(frame, delivery);
        self.open.push_back(Open { id, stage, done });
        Ok(())
    }

    /// Where a message with this identifier is that waits for such an answer. Almost always the first:
    /// servers acknowledge in order.
    fn find(&self, id: PacketId, waits: impl Fn(&Stage) -> bool) -> Option<usize> {
        let mut open = self.open.iter();
        open.position(|open| open.id == id && waits(&open.stage))
    }

    /// PUBACK.
    pub(super) fn acknowledge(&mut self, id: PacketId, reason: ReasonCode) -> Acknowledged {
        let waits = |stage: &Stage| matches!(stage, Stage::Sent(_, Delivery::AtLeastOnce));
        match self.find(id, waits) {
            Some(index) => self.conclude(index, reason),
            None => Acknowledged::Unknown,
        }
    }

    /// PUBREC: the first half of QoS 2. Writes the PUBREL.
    pub(super) fn received(
        &mut self,
        id: PacketId,
        reason: ReasonCode,
        out: &mut BytesMut,
    ) -> Result<Received, EncodeError> {
        let waits = |stage: &Stage| match stage {
            Stage::Sent(_, delivery) => *delivery == Delivery::ExactlyOnce,
            Stage::Released => true,
        };
        let Some(index) = self.find(id, waits) else {
            return Ok(Received::Unknown);
        };
        if reason.is_error() {
            self.conclude(index, reason);
            return Ok(Received::Refused);
        }
        self.open[index].stage = Stage::Released;
        mqtt::encode(&PubRel::success(id).into(), self.version, out)?;
        Ok(Received::Released)
    }

    /// PUBCOMP: the second half. Also a server that does not know the identifier has the message.
    pub(super) fn complete(&mut self, id: PacketId) -> Acknowledged {
        match self.find(id, |stage| matches!(stage, Stage::Released)) {
            Some(index) => self.conclude(index, ReasonCode::Success),
            None => Acknowledged::Unknown,
        }
    }

    fn conclude(&mut self, index: usize, reason: ReasonCode) -> Acknowledged {
        let done = self.open.remove(index).and_then(|open| open.done);
        let (acknowledged, result) = if reason.is_error() {
            let error = ClientError::MessageRefused { reason };
            (Acknowledged::Refused, Err(error))
        } else {
            (Acknowledged::Accepted, Ok(()))
        };
        if let Some(done) = done {
            let _ = done.send(result); // the caller may have lost interest
        }
        acknowledged
    }

    /// An incoming message of QoS 2 is handed on.
    pub(super) fn handed_on(&mut self, id: PacketId) {
        self.incoming.insert(id);
    }

    /// Whether the message with this identifier was handed on and is not released.
    pub(super) fn knows(&self, id: PacketId) -> bool {
        self.incoming.contains(&id)
    }

    /// PUBREL for an incoming message; whether the identifier was known.
    pub(super) fn release(&mut self, id: PacketId) -> bool {
        self.incoming.remove(&id)
    }

    /// A new connection: sends what is open again, as far as `receive_maximum` allows at once. The
    /// rest is returned for later, with what waits for it; in order.
    pub(super) fn reconnected(
        &mut self,
        session_present: bool,
        receive_maximum: u16,
        out: &mut BytesMut,
    ) -> Result<Resent, EncodeError> {
        self.window = self.own_window.min(usize::from(receive_maximum.max(1)));
        let mut resent = Resent::default();
        if session_present {
            // All of them keep their identifiers, whatever the server wants at once.
            for open in &self.open {
                match &open.stage {
                    Stage::Sent(frame, _) => {
                        frame.write(Some(open.id), Attempt::Again, out)?;
                        resent.count += 1;
                    }
                    Stage::Released => {
                        mqtt::encode(&PubRel::success(open.id).into(), self.version, out)?;
                    }
                }
            }
            return Ok(resent);
        }
        self.incoming.clear();
        for open in std::mem::take(&mut self.open) {
            match open.stage {
                Stage::Released => {
                    resent.completed += 1;
                    if let Some(done) = open.done {
                        let _ = done.send(Ok(())); // the caller may have lost interest
                    }
                }
                Stage::Sent(frame, delivery) => {
                    let message = Message {
                        frame,
                        delivery,
                        done: open.done,
                    };
                    if self.has_room() {
                        self.send(message, out)?;
                        resent.count += 1;
                    } else {
                        resent.waiting.push_back(message);
                    }
                }
            }
        }
        Ok(resent)
    }
}

/// What a reconnection did with the open messages.
#[derive(Default)]
pub(super) struct Resent {
    /// How many were sent again.
    pub(super) count: u64,
    /// How many the server had received and forgotten: they are done.
    pub(super) completed: u64,
    /// Those that have to wait for room.
    pub(super) waiting: VecDeque<Message>,
}

#[cfg(test)]
mod tests {
    use super::super::Outgoing;
    use super::*;
    use mqtt::{Decoder, Packet, Version};

    fn message(text: &'static str) -> Message {
        of(text, Delivery::AtLeastOnce)
    }

    fn of(text: &'static str, delivery: Delivery) -> Message {
        let outgoing = Outgoing {
            topic: "t".into(),
            payload: text.into(),
            delivery,
            ..Outgoing::default()
        };
        Message {
            frame: outgoing.frame(Version::V5).unwrap(),
            delivery,
            done: None,
        }
    }

    /// What is on the wire: identifier, payload and whether it is marked as duplicate.
    fn wire(out: &mut BytesMut) -> Vec<(u16, String, bool)> {
        let mut decoder = Decoder::for_server(1_000_000);
        let mut connect = BytesMut::new();
        let hello = Packet::Connect(Box::new(mqtt::Connect::new(Version::V5, "c")));
        mqtt::encode(&hello, Version::V5, &mut connect).unwrap();
        connect.extend_from_slice(out);
        out.clear();
        let mut seen = Vec::new();
        while let Some(packet) = decoder.decode(&mut connect).unwrap() {
            match packet {
                Packet::Publish(publish) => {
                    let text = String::from_utf8(publish.payload.to_vec()).unwrap();
                    seen.push((publish.packet_id.unwrap().get(), text, publish.dup));
                }
                Packet::PubRel(release) => {
                    seen.push((release.packet_id.get(), "released".to_owned(), false));
                }
                _ => {}
            }
        }
        seen
    }

    fn row(id: u16, text: &str, dup: bool) -> (u16, String, bool) {
        (id, text.to_owned(), dup)
    }

    #[test]
    fn what_is_open_goes_out_again_with_dup_only_if_the_server_knows_it() {
        let mut out = BytesMut::new();
        let mut session = Session::new(10, Version::V5);
        for text in ["a", "b", "c"] {
            session.send(message(text), &mut out).unwrap();
        }
        assert_eq!(
            wire(&mut out),
            [row(1, "a", false), row(2, "b", false), row(3, "c", false)]
        );
        let id = |id| PacketId::new(id).unwrap();
        let ok = ReasonCode::Success;
        assert_eq!(session.acknowledge(id(2), ok), Acknowledged::Accepted);
        assert_eq!(session.acknowledge(id(2), ok), Acknowledged::Unknown);

        session.reconnected(true, u16::MAX, &mut out).unwrap();
        assert_eq!(wire(&mut out), [row(1, "a", true), row(3, "c", true)]);

        session.reconnected(false, u16::MAX, &mut out).unwrap();
        assert_eq!(wire(&mut out), [row(4, "a", false), row(5, "c", false)]);
        let refused = session.acknowledge(id(4), ReasonCode::NotAuthorized);
        assert_eq!(refused, Acknowledged::Refused);
        assert!(!session.is_empty());
    }

    #[test]
    fn the_window_is_the_smaller_of_ours_and_the_servers() {
        let mut out = BytesMut::new();
        let mut session = Session::new(3, Version::V5);
        for text in ["a", "b", "c"] {
            assert!(session.has_room());
            session.send(message(text), &mut out).unwrap();
        }
        assert!(!session.has_room());
        out.clear();
        let resent = session.reconnected(false, 2, &mut out).unwrap();
        assert_eq!(wire(&mut out), [row(4, "a", false), row(5, "b", false)]);
        assert_eq!((resent.count, resent.waiting.len()), (2, 1));
        assert!(!session.has_room());
    }

    #[test]
    fn identifiers_in_use_are_passed_over_when_they_come_round() {
        let mut out = BytesMut::new();
        let mut session = Session::new(4, Version::V5);
        session.send(message("first"), &mut out).unwrap();
        for _ in 0..u16::MAX - 1 {
            session.fresh_id();
        }
        assert_eq!(session.fresh_id().get(), 2, "1 is still open");
    }

    #[test]
    fn exactly_once_is_sent_again_until_received_and_released_again_until_complete() {
        let mut out = BytesMut::new();
        let mut session = Session::new(10, Version::V5);
        let id = |id| PacketId::new(id).unwrap();
        let ok = ReasonCode::Success;
        for text in ["a", "b", "c"] {
            session
                .send(of(text, Delivery::ExactlyOnce), &mut out)
                .unwrap();
        }
        wire(&mut out);
        assert_eq!(session.acknowledge(id(1), ok), Acknowledged::Unknown);
        assert_eq!(session.complete(id(1)), Acknowledged::Unknown);
        let released = session.received(id(1), ok, &mut out).unwrap();
        assert_eq!(released, Received::Released);
        let refused = session.received(id(2), ReasonCode::QuotaExceeded, &mut out);
        assert_eq!(refused.unwrap(), Received::Refused);
        assert_eq!(wire(&mut out), [row(1, "released", false)]);

        session.reconnected(true, u16::MAX, &mut out).unwrap();
        assert_eq!(
            wire(&mut out),
            [row(1, "released", false), row(3, "c", true)]
        );

        // A server that has forgotten: the first is its own affair, the other begins anew.
        let resent = session.reconnected(false, u16::MAX, &mut out).unwrap();
        assert_eq!((resent.completed, resent.count), (1, 1));
        assert_eq!(wire(&mut out), [row(4, "c", false)]);
        session.received(id(4), ok, &mut out).unwrap();
        session.received(id(4), ok, &mut out).unwrap();
        let twice = [row(4, "released", false), row(4, "released", false)];
        assert_eq!(wire(&mut out), twice, "asked again, answered again");
        assert_eq!(session.complete(id(4)), Acknowledged::Accepted);
        assert!(session.is_empty());
    }

    #[test]
    fn what_came_in_is_known_until_it_is_released_or_the_session_is_gone() {
        let mut session = Session::new(1, Version::V5);
        let id = PacketId::FIRST;
        assert!(!session.release(id));
        session.handed_on(id);
        assert!(session.knows(id));
        session.reconnected(true, 1, &mut BytesMut::new()).unwrap();
        assert!(session.knows(id) && session.release(id) && !session.knows(id));
        session.handed_on(id);
        session.reconnected(false, 1, &mut BytesMut::new()).unwrap();
        assert!(!session.knows(id));
    }
}
