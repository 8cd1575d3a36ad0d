//! Every message of a run: what it was, and how far its publisher got with it.
//!
//! A message bears its number in its payload, so that whoever sees it knows which it is. An empty
//! payload (which deletes what is retained) bears it in a user property, which MQTT 3.1.1 does not
//! see; there it is [`UNNAMED`].

use mqtt::{Publish, QoS};

use super::topics::TOPICS;

/// The number of a message that could not be told.
pub(super) const UNNAMED: u32 = 0;

/// A point in a run. `seq` orders everything that happened; `ms` is the simulated time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct When {
    pub(super) seq: u64,
    pub(super) ms: u64,
}

/// How a message comes into the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Published,
    Will,
}

/// The tap's copy of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TapCopy {
    NotWanted,
    /// Taken, and not durable as far as anybody knows.
    Wanted,
    Durable,
}

#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) number: u32,
    pub(super) publisher: usize,
    pub(super) kind: Kind,
    pub(super) topic: usize,
    /// As published. Packet identifier, alias and DUP are of no meaning here.
    pub(super) publish: Publish,
    /// The broker was handed it first.
    pub(super) first_in: Option<When>,
    /// The broker accepted it and asked the tap, each time.
    pub(super) taken: Vec<When>,
    /// The broker said PUBACK or PUBREC with success; of a will: its publication became durable.
    pub(super) acknowledged: Option<When>,
    /// The store was stalled when it came: sessions that are stored need not have it.
    pub(super) may_be_refused: bool,
    /// The tap lost its copy, after the message had gone to its subscribers: the publisher is told that
    /// it failed, and may send it again.
    pub(super) has_failed: bool,
    /// What the tap made of it.
    pub(super) copy: TapCopy,
    /// The publisher will never send it again.
    pub(super) done: bool,
}

impl Message {
    pub(super) fn qos(&self) -> QoS {
        self.publish.qos
    }

    pub(super) fn topic(&self) -> &'static str {
        TOPICS[self.topic]
    }

    /// Milliseconds it lives.
    pub(super) fn lifetime(&self) -> Option<u64> {
        let seconds = self.publish.properties.message_expiry_interval?;
        Some(u64::from(seconds) * 1000)
    }

    pub(super) fn deletes(&self) -> bool {
        self.publish.payload.is_empty()
    }

    /// When the broker last took it in.
    pub(super) fn last_taken(&self) -> Option<When> {
        self.taken.last().copied()
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    messages: Vec<Message>,
}

impl Ledger {
    pub(super) fn next_number(&self) -> u32 {
        self.messages.len() as u32 + 1
    }

    pub(super) fn enter(
        &mut self,
        publisher: usize,
        kind: Kind,
        topic: usize,
        publish: Publish,
    ) -> u32 {
        let number = self.next_number();
        self.messages.push(Message {
            number,
            publisher,
            kind,
            topic,
            publish,
            first_in: None,
            taken: Vec::new(),
            acknowledged: None,
            may_be_refused: false,
            has_failed: false,
            copy: TapCopy::NotWanted,
            done: false,
        });
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&Message> {
        self.messages.get((number as usize).checked_sub(1)?)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Message> {
        self.messages.get_mut((number as usize).checked_sub(1)?)
    }

    pub(super) fn all(&self) -> &[Message] {
        &self.messages
    }
}

/// The payload of message `number`, padded to `len` bytes.
pub(super) fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut payload = format!("m{number}.").into_bytes();
    if payload.len() < len {
        payload.resize(len, b'.');
    }
    payload
}

/// Which message this is.
pub(super) fn number_of(publish: &Publish) -> Option<u32> {
    if publish.payload.is_empty() {
        let named = publish
            .properties
            .user_properties
            .iter()
            .find(|(name, _)| name.as_str() == "n");
        return match named {
            Some((_, number)) => number.as_str().parse().ok(),
            None => Some(UNNAMED),
        };
    }
    let digits = publish.payload.strip_prefix(b"m")?;
    let end = digits.iter().position(|b| *b == b'.')?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}
