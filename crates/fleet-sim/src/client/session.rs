//! Session: what was sent and not acknowledged. A state machine without IO.
//!
//! On a new connection everything open goes out again in its old order. If the server still has the
//! session it goes with its old packet identifier and the DUP flag `[MQTT-4.4.0-1]`; if not, the
//! server knows nothing of it, so it is a first transmission with a new identifier: DUP would claim
//! that this server may have seen it `[MQTT-3.3.1-1]`. Within a connection nothing is repeated.

use std::collections::VecDeque;

use bytes::BytesMut;
use mqtt::{Attempt, EncodeError, PacketId, PublishFrame, ReasonCode};

use super::{ClientError, Done};

struct Open {
    id: PacketId,
    frame: PublishFrame,
    done: Option<Done>,
}

/// What became of an acknowledgement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// The server has the message.
    Accepted,
    /// The server will not have it.
    Refused,
    /// Nothing open has that identifier.
    Unknown,
}

/// The messages of QoS 1 that are in flight, in the order they were sent.
pub(super) struct Session {
    open: VecDeque<Open>,
    next_id: PacketId,
    own_window: usize,
    window: usize,
}

impl Session {
    pub(super) fn new(window: u16) -> Self {
        let window = usize::from(window.max(1));
        Self {
            open: VecDeque::new(),
            next_id: PacketId::FIRST,
            own_window: window,
            window,
        }
    }

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
    pub(super) fn send(
        &mut self,
        frame: PublishFrame,
        done: Option<Done>,
        out: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        let id = self.fresh_id();
        frame.write(Some(id), Attempt::First, out)?;
        self.open.push_back(Open { id, frame, done });
        Ok(())
    }

    /// The server answered for a message.
    pub(super) fn acknowledge(&mut self, id: PacketId, reason: ReasonCode) -> Acknowledged {
        // Almost always the first: servers acknowledge in order.
        let Some(index) = self.open.iter().position(|open| open.id == id) else {
            return Acknowledged::Unknown;
        };
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

    /// A new connection: sends what is open again, as far as `receive_maximum` allows at once. The
    /// rest is returned for later, with what waits for it; in order.
    pub(super) fn reconnected(
        &mut self,
        session_present: bool,
        receive_maximum: u16,
        out: &mut BytesMut,
    ) -> Result<Resent, EncodeError> {
        self.window = self.own_window.min(usize::from(receive_maximum.max(1)));
        let mut again = std::mem::take(&mut self.open);
        // A server that wants fewer in flight than before, and does not know the earlier ones
        // anyway: these go back to the queue. Those it knows must keep their identifiers.
        let fits = if session_present {
            again.len()
        } else {
            self.window.min(again.len())
        };
        let waiting = again.split_off(fits);
        for open in again {
            if session_present {
                open.frame.write(Some(open.id), Attempt::Again, out)?;
                self.open.push_back(open);
            } else {
                self.send(open.frame, open.done, out)?;
            }
        }
        Ok(Resent {
            count: fits as u64,
            waiting: waiting
                .into_iter()
                .map(|open| (open.frame, open.done))
                .collect(),
        })
    }
}

/// What a reconnection did with the open messages.
pub(super) struct Resent {
    /// How many were sent again.
    pub(super) count: u64,
    /// Those that have to wait for room.
    pub(super) waiting: VecDeque<(PublishFrame, Option<Done>)>,
}

#[cfg(test)]
mod tests {
    use super::super::Outgoing;
    use super::*;
    use mqtt::{Decoder, Packet, Version};

    fn frame(text: &'static str) -> PublishFrame {
        Outgoing {
            topic: "t".into(),
            payload: text.into(),
            ..Outgoing::default()
        }
        .frame(Version::V5)
        .unwrap()
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
            if let Packet::Publish(publish) = packet {
                let text = String::from_utf8(publish.payload.to_vec()).unwrap();
                seen.push((publish.packet_id.unwrap().get(), text, publish.dup));
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
        let mut session = Session::new(10);
        for text in ["a", "b", "c"] {
            session.send(frame(text), None, &mut out).unwrap();
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
        let mut session = Session::new(3);
        for text in ["a", "b", "c"] {
            assert!(session.has_room());
            session.send(frame(text), None, &mut out).unwrap();
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
        let mut session = Session::new(4);
        session.send(frame("first"), None, &mut out).unwrap();
        for _ in 0..u16::MAX - 1 {
            session.fresh_id();
        }
        assert_eq!(session.fresh_id().get(), 2, "1 is still open");
    }
}
