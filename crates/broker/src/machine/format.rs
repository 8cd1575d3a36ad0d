//! What the broker writes into its store: the records, and their bytes.
//!
//! A record begins with its kind and the version of its layout; integers are big endian, texts and
//! byte strings have a length of four bytes before them. Written records are read for ever: a layout
//! that changes gets a new version beside the old one, and `tests/fixtures` keeps bytes of each.
//!
//! ```text
//! session       client id, principal, expiry, when its connection ended, will
//! subscription  of which session, filter, options
//! message       when it came, the PUBLISH
//! delivery      to which session or shared subscription, of which message, how far it got
//! inbound       a QoS 2 packet id a session's client has used and not released
//! retained      the message retained for its topic
//! sequence      how far the numbers of presence events may have got
//! ```

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use journal::RecordId;
use mqtt::{PacketId, QoS};

use super::frame::SubscriptionIds;
use super::subscriber::{OwnMessages, RetainFlag};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Session(SessionRecord),
    Subscription(SubscriptionRecord),
    Message(MessageRecord),
    Delivery(DeliveryRecord),
    Inbound(InboundRecord),
    Retained(RetainedRecord),
    Sequence(SequenceRecord),
}

/// A stored session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    pub(crate) client_id: Arc<str>,
    pub(crate) principal: Arc<str>,
    /// Seconds it outlives its connection; `u32::MAX` for ever.
    pub(crate) expiry: u32,
    /// When its last connection ended, in microseconds since the Unix epoch; `None` while connected.
    pub(crate) disconnected_us: Option<i64>,
    /// It lost a subscription and is not taken up again.
    pub(crate) curtailed: bool,
    pub(crate) will: Option<WillRecord>,
}

/// A will that has not been published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WillRecord {
    /// Will Delay Interval, seconds.
    pub(crate) delay: u32,
    /// As [`mqtt::Publish::keep`] writes it.
    pub(crate) body: Bytes,
}

/// A subscription of a stored session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubscriptionRecord {
    pub(crate) session: RecordId,
    /// As the client sent it, `$share` included.
    pub(crate) filter: Arc<str>,
    pub(crate) granted: QoS,
    pub(crate) own: OwnMessages,
    pub(crate) retain: RetainFlag,
    /// Subscription identifier, 0 for none.
    pub(crate) id: u32,
    pub(crate) retained: RetainedOwed,
}

/// Whether a subscription's retained messages are on their way to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetainedOwed {
    /// All of them, or none were asked for.
    No,
    /// Not all of them yet.
    Yes,
}

/// A message that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MessageRecord {
    /// When it came, in microseconds since the Unix epoch.
    pub(crate) received_us: i64,
    /// As [`mqtt::Publish::keep`] writes it.
    pub(crate) body: Bytes,
}

/// A message on its way to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeliveryRecord {
    pub(crate) owner: Owner,
    /// 0 once the client has it and only the exchange of QoS 2 must be completed.
    pub(crate) message: RecordId,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) ids: SubscriptionIds,
    pub(crate) stage: Stage,
    /// The shared subscription it came by (`$share/name/filter`).
    pub(crate) share: Option<Arc<str>>,
}

/// Who is to have a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Session(RecordId),
    /// Whoever of the shared subscription comes first; named by the delivery's `share`.
    Share,
}

/// How far a delivery got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    /// It has a packet identifier, and the client may have seen it.
    Sent(PacketId),
    /// The client has it (PUBREC); PUBREL is owed or was sent.
    Released(PacketId),
}

/// A QoS 2 message received from a session's client and not released yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InboundRecord {
    pub(crate) session: RecordId,
    pub(crate) packet_id: PacketId,
    pub(crate) tapped: Tapped,
}

/// Whether the tap is done with a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tapped {
    /// It has its copy for good, or wants none.
    Settled,
    /// It has not said. After a restart the message is offered to it again when it comes again.
    Unsettled,
}

/// The retained message of a topic. Of two for one topic, the one with the higher record id counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetainedRecord {
    pub(crate) message: RecordId,
}

/// How far the numbers of presence events may have got; there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SequenceRecord {
    /// No number from here on was used.
    pub(crate) below: u64,
}

const SESSION: u8 = 1;
const SUBSCRIPTION: u8 = 2;
const MESSAGE: u8 = 3;
const DELIVERY: u8 = 4;
const INBOUND: u8 = 5;
const RETAINED: u8 = 6;
const SEQUENCE: u8 = 7;

/// Of every layout so far.
const VERSION: u8 = 1;

const NEVER: i64 = i64::MIN;

const WILL: u8 = 0b0000_0001;
const CURTAILED: u8 = 0b0000_0010;

/// A record that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error(
        "a record of kind {kind} in layout {version}, which this version of the program does not know; was the store written by a newer one?"
    )]
    Unknown { kind: u8, version: u8 },
    #[error("a record of kind {kind} is cut short or has a value that is not possible")]
    Malformed { kind: u8 },
}

impl Record {
    /// Appends its bytes.
    #[cfg(test)]
    pub(crate) fn write(&self, out: &mut BytesMut) {
        match self {
            Record::Session(session) => session.write(out),
            Record::Subscription(subscription) => subscription.write(out),
            Record::Message(message) => message.write(out),
            Record::Delivery(delivery) => delivery.write(out),
            Record::Inbound(inbound) => inbound.write(out),
            Record::Retained(retained) => retained.write(out),
            Record::Sequence(sequence) => sequence.write(out),
        }
    }

    /// Reads one; what it keeps is a copy.
    pub(crate) fn read(bytes: &[u8]) -> Result<Record, FormatError> {
        let [kind, version, rest @ ..] = bytes else {
            return Err(FormatError::Malformed { kind: 0 });
        };
        let (kind, version) = (*kind, *version);
        if version != VERSION || !(SESSION..=SEQUENCE).contains(&kind) {
            return Err(FormatError::Unknown { kind, version });
        }
        let mut from = Fields(rest);
        let record = match kind {
            SESSION => SessionRecord::read(&mut from).map(Record::Session),
            SUBSCRIPTION => SubscriptionRecord::read(&mut from).map(Record::Subscription),
            MESSAGE => MessageRecord::read(&mut from).map(Record::Message),
            DELIVERY => DeliveryRecord::read(&mut from).map(Record::Delivery),
            INBOUND => InboundRecord::read(&mut from).map(Record::Inbound),
            RETAINED => RetainedRecord::read(&mut from).map(Record::Retained),
            _ => SequenceRecord::read(&mut from).map(Record::Sequence),
        };
        match record {
            Some(record) if from.0.is_empty() => Ok(record),
            _ => Err(FormatError::Malformed { kind }),
        }
    }
}

fn head(kind: u8, out: &mut BytesMut) {
    out.put_slice(&[kind, VERSION]);
}

fn put_bytes(bytes: &[u8], out: &mut BytesMut) {
    out.put_u32(bytes.len() as u32); // at most a packet, 256 MiB
    out.put_slice(bytes);
}

impl SessionRecord {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        head(SESSION, out);
        put_bytes(self.client_id.as_bytes(), out);
        put_bytes(self.principal.as_bytes(), out);
        out.put_u32(self.expiry);
        out.put_i64(self.disconnected_us.unwrap_or(NEVER));
        let curtailed = if self.curtailed { CURTAILED } else { 0 };
        let will = if self.will.is_some() { WILL } else { 0 };
        out.put_u8(curtailed | will);
        if let Some(will) = &self.will {
            out.put_u32(will.delay);
            put_bytes(&will.body, out);
        }
    }

    fn read(from: &mut Fields<'_>) -> Option<SessionRecord> {
        let client_id = from.text()?;
        let principal = from.text()?;
        let expiry = from.u32()?;
        let disconnected_us = Some(from.i64()?).filter(|at| *at != NEVER);
        let flags = from.u8()?;
        if flags & !(WILL | CURTAILED) != 0 {
            return None;
        }
        let will = match flags & WILL {
            0 => None,
            _ => Some(WillRecord {
                delay: from.u32()?,
                body: Bytes::copy_from_slice(from.bytes()?),
            }),
        };
        Some(SessionRecord {
            client_id,
            principal,
            expiry,
            disconnected_us,
            curtailed: flags & CURTAILED != 0,
            will,
        })
    }
}

const NO_LOCAL: u8 = 0b0000_0100;
const RETAIN_AS_PUBLISHED: u8 = 0b0000_1000;
const RETAINED_OWED: u8 = 0b0001_0000;

impl SubscriptionRecord {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        head(SUBSCRIPTION, out);
        out.put_u64(self.session.0);
        let own = match self.own {
            OwnMessages::Deliver => 0,
            OwnMessages::Skip => NO_LOCAL,
        };
        let retain = match self.retain {
            RetainFlag::Clear => 0,
            RetainFlag::AsPublished => RETAIN_AS_PUBLISHED,
        };
        let owed = match self.retained {
            RetainedOwed::No => 0,
            RetainedOwed::Yes => RETAINED_OWED,
        };
        out.put_u8(self.granted.as_u8() | own | retain | owed);
        out.put_u32(self.id);
        put_bytes(self.filter.as_bytes(), out);
    }

    fn read(from: &mut Fields<'_>) -> Option<SubscriptionRecord> {
        let session = RecordId(from.u64()?);
        let options = from.u8()?;
        Some(SubscriptionRecord {
            session,
            granted: QoS::from_u8(options & 0b11)?,
            own: match options & NO_LOCAL {
                0 => OwnMessages::Deliver,
                _ => OwnMessages::Skip,
            },
            retain: match options & RETAIN_AS_PUBLISHED {
                0 => RetainFlag::Clear,
                _ => RetainFlag::AsPublished,
            },
            retained: match options & RETAINED_OWED {
                0 => RetainedOwed::No,
                _ => RetainedOwed::Yes,
            },
            id: from.u32()?,
            filter: from.text()?,
        })
    }
}

impl MessageRecord {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        head(MESSAGE, out);
        out.put_i64(self.received_us);
        put_bytes(&self.body, out);
    }

    fn read(from: &mut Fields<'_>) -> Option<MessageRecord> {
        Some(MessageRecord {
            received_us: from.i64()?,
            body: Bytes::copy_from_slice(from.bytes()?),
        })
    }
}

const RETAIN: u8 = 0b0000_0100;
const SHARED: u8 = 0b0000_1000;
const WAITING: u8 = 0;
const SENT: u8 = 0b0001_0000;
const RELEASED: u8 = 0b0010_0000;
const STAGE: u8 = 0b0011_0000;

impl DeliveryRecord {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        head(DELIVERY, out);
        let (stage, packet_id) = match self.stage {
            Stage::Waiting => (WAITING, 0),
            Stage::Sent(id) => (SENT, id.get()),
            Stage::Released(id) => (RELEASED, id.get()),
        };
        let retain = if self.retain { RETAIN } else { 0 };
        let shared = if self.share.is_some() { SHARED } else { 0 };
        out.put_u8(self.qos.as_u8() | retain | shared | stage);
        out.put_u64(match self.owner {
            Owner::Session(session) => session.0,
            Owner::Share => 0,
        });
        out.put_u64(self.message.0);
        out.put_u16(packet_id);
        let ids = self.ids.as_slice();
        out.put_u16(ids.len() as u16); // one for each matching filter of the session at most
        for id in ids {
            out.put_u32(*id);
        }
        if let Some(share) = &self.share {
            put_bytes(share.as_bytes(), out);
        }
    }

    fn read(from: &mut Fields<'_>) -> Option<DeliveryRecord> {
        let flags = from.u8()?;
        let owner = match from.u64()? {
            0 => Owner::Share,
            session => Owner::Session(RecordId(session)),
        };
        let message = RecordId(from.u64()?);
        let packet_id = PacketId::new(from.u16()?);
        let count = from.u16()?;
        let ids = (0..count)
            .map(|_| from.u32())
            .collect::<Option<Vec<u32>>>()?;
        let share = match flags & SHARED {
            0 => None,
            _ => Some(from.text()?),
        };
        if owner == Owner::Share && share.is_none() {
            return None;
        }
        Some(DeliveryRecord {
            owner,
            message,
            qos: QoS::from_u8(flags & 0b11)?,
            retain: flags & RETAIN != 0,
            ids: SubscriptionIds::from(ids),
            stage: match flags & STAGE {
                WAITING => Stage::Waiting,
                SENT => Stage::Sent(packet_id?),
                RELEASED => Stage::Released(packet_id?),
                _ => return None,
            },
            share,
        })
    }
}

impl InboundRecord {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        head(INBOUND, out);
        out.put_u64(self.session.0);
        out.put_u16(self.packet_id.get());
        out.put_u8(match self.tapped {
            Tapped::Settled => 0,
            Tapped::Unsettled => 1,
        });
    }

    fn read(from: &mut Fields<'_>) -> Option<InboundRecord> {
        Some(InboundRecord {
            session: RecordId(from.u64()?),
            packet_id: PacketId::new(from.u16()?)?,
            tapped: match from.u8()? {
                0 => Tapped::Settled,
                1 => Tapped::Unsettled,
                _ => return None,
            },
        })
    }
}

impl RetainedRecord {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        head(RETAINED, out);
        out.put_u64(self.message.0);
    }

    fn read(from: &mut Fields<'_>) -> Option<RetainedRecord> {
        Some(RetainedRecord {
            message: RecordId(from.u64()?),
        })
    }
}

impl SequenceRecord {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        head(SEQUENCE, out);
        out.put_u64(self.below);
    }

    fn read(from: &mut Fields<'_>) -> Option<SequenceRecord> {
        Some(SequenceRecord { below: from.u64()? })
    }
}

/// The fields of a record, from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.0.try_get_u16().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    fn i64(&mut self) -> Option<i64> {
        self.0.try_get_i64().ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<Arc<str>> {
        std::str::from_utf8(self.bytes()?).ok().map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One of each kind, in every shape that has bytes of its own.
    fn examples() -> Vec<(&'static str, Record)> {
        let packet_id = PacketId::new(7).expect("not 0");
        let session = SessionRecord {
            client_id: "device/car".into(),
            principal: "device".into(),
            expiry: 3600,
            disconnected_us: Some(1_700_000_000_000_001),
            curtailed: false,
            will: None,
        };
        let delivery = DeliveryRecord {
            owner: Owner::Session(RecordId(9)),
            message: RecordId(11),
            qos: QoS::ExactlyOnce,
            retain: true,
            ids: SubscriptionIds::from(vec![3, 268_435_455]),
            stage: Stage::Sent(packet_id),
            share: None,
        };
        vec![
            ("session", Record::Session(session.clone())),
            (
                "session_connected_with_will",
                Record::Session(SessionRecord {
                    disconnected_us: None,
                    curtailed: true,
                    will: Some(WillRecord {
                        delay: 30,
                        body: Bytes::from_static(b"\x01will"),
                    }),
                    ..session
                }),
            ),
            (
                "subscription",
                Record::Subscription(SubscriptionRecord {
                    session: RecordId(9),
                    filter: "$share/g/dt/+/speed".into(),
                    granted: QoS::AtLeastOnce,
                    own: OwnMessages::Skip,
                    retain: RetainFlag::AsPublished,
                    id: 5,
                    retained: RetainedOwed::Yes,
                }),
            ),
            (
                "message",
                Record::Message(MessageRecord {
                    received_us: -1,
                    body: Bytes::from_static(b"\x01publish"),
                }),
            ),
            ("delivery_sent", Record::Delivery(delivery.clone())),
            (
                "delivery_released",
                Record::Delivery(DeliveryRecord {
                    message: RecordId(0),
                    retain: false,
                    ids: SubscriptionIds::None,
                    stage: Stage::Released(packet_id),
                    ..delivery.clone()
                }),
            ),
            (
                "delivery_of_a_share",
                Record::Delivery(DeliveryRecord {
                    owner: Owner::Share,
                    qos: QoS::AtLeastOnce,
                    ids: SubscriptionIds::one(4),
                    stage: Stage::Waiting,
                    share: Some("$share/g/a".into()),
                    ..delivery
                }),
            ),
            (
                "inbound",
                Record::Inbound(InboundRecord {
                    session: RecordId(9),
                    packet_id,
                    tapped: Tapped::Unsettled,
                }),
            ),
            (
                "retained",
                Record::Retained(RetainedRecord {
                    message: RecordId(11),
                }),
            ),
            (
                "sequence",
                Record::Sequence(SequenceRecord {
                    below: 1_700_000_016_777_216,
                }),
            ),
        ]
    }

    fn bytes(record: &Record) -> Vec<u8> {
        let mut out = BytesMut::new();
        record.write(&mut out);
        out.to_vec()
    }

    /// `tests/fixtures/records_v1.txt`: a name and bytes in hexadecimal on each line. Lines are added for
    /// new layouts, and none is ever changed.
    const FIXTURE: &str = include_str!("../../tests/fixtures/records_v1.txt");

    #[test]
    fn records_of_the_first_layout_are_read_and_written_for_ever() {
        let today: String = examples()
            .iter()
            .map(|(name, record)| {
                let hex: String = bytes(record).iter().map(|b| format!("{b:02x}")).collect();
                format!("{name} {hex}\n")
            })
            .collect();
        assert_eq!(today, FIXTURE, "the bytes of a layout are frozen");
        for ((name, record), line) in examples().iter().zip(FIXTURE.lines()) {
            let hex = line.split_once(' ').expect("a name and bytes").1;
            let kept: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
                .collect();
            assert_eq!(Record::read(&kept).as_ref(), Ok(record), "{name}");
        }
    }

    #[test]
    fn a_record_cut_short_or_of_a_later_layout_is_an_error() {
        for (name, record) in examples() {
            let whole = bytes(&record);
            for length in 0..whole.len() {
                assert!(Record::read(&whole[..length]).is_err(), "{name} {length}");
            }
            let mut later = whole.clone();
            later[1] = 2;
            assert!(matches!(
                Record::read(&later),
                Err(FormatError::Unknown { version: 2, .. })
            ));
            let mut longer = whole;
            longer.push(0);
            assert!(Record::read(&longer).is_err(), "{name} and a byte");
        }
    }

    proptest! {
        #[test]
        fn bytes_of_chance_are_no_trouble(bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0u8..9) {
            let _ = Record::read(&bytes);
            let mut framed = vec![kind, 1];
            framed.extend(bytes);
            let _ = Record::read(&framed);
        }
    }
}
