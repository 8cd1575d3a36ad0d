//! One message on its way to one session.

use std::sync::Arc;

use journal::{Batch, RecordId};
use mqtt::{Publish, QoS, Version};

use super::Moment;
use super::exchange::Share;
use super::format::{DeliveryRecord, Owner, Stage};
use super::frame::{Frame, Layout, SubscriptionIds};
use super::gauge::Gauge;
use super::message::{Claim, Message, Priority, Trash};
use super::subscriber::TRANSIENT;

/// A message for one session, and in what shape it gets it.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// [`TRANSIENT`] if it is not stored.
    pub(crate) record: RecordId,
    /// Encoded for the connection there is. At least one of this and `message` is there, until the
    /// client has the message. While it is on its way to a member of a share, one of them stays until it is
    /// acknowledged, for another member.
    pub(crate) frame: Option<Frame>,
    /// Kept for later, too: for a session that outlives its connection.
    pub(crate) message: Option<Arc<Message>>,
    /// Of one that is kept, also when its message is not needed any more.
    pub(crate) claim: Option<Claim>,
    pub(crate) qos: QoS,
    pub(crate) published: Published,
    pub(crate) retain: bool,
    pub(crate) ids: SubscriptionIds,
    /// The shared subscription it came by.
    pub(crate) share: Option<Arc<Share>>,
    /// Whether it was let in by a decision about access that may be old when it is sent.
    pub(crate) access: Access,
    /// How it was counted in the session's gauge, if it was.
    pub(crate) counted: Counted,
    /// What the store has of it.
    pub(crate) recorded: Recorded,
}

/// What a frame does not say of how its message was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

impl Published {
    pub(crate) fn as_in(publish: &Publish) -> Published {
        Published {
            qos: publish.qos,
            retain: publish.retain,
        }
    }
}

/// How a delivery stands in the gauge of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    No,
    /// With so many bytes.
    Bytes(usize),
    /// The same, and as one that makes room for others while it waits.
    Droppable(usize),
}

/// Whether access must be checked before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It goes out as it comes in, under a decision that holds.
    Current,
    /// It waited.
    Check,
}

/// Whether the store knows of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    No,
    /// As waiting for its session.
    Waiting,
    /// As waiting for some other owner, or in some other stage.
    Otherwise,
}

impl Delivery {
    /// In the place of one that is looked at.
    pub(crate) fn empty() -> Delivery {
        Delivery {
            record: TRANSIENT,
            frame: None,
            message: None,
            claim: None,
            qos: QoS::AtMostOnce,
            published: Published {
                qos: QoS::AtMostOnce,
                retain: false,
            },
            retain: false,
            ids: SubscriptionIds::None,
            share: None,
            access: Access::Current,
            counted: Counted::No,
            recorded: Recorded::No,
        }
    }

    /// Marks it as counted in, with room that was reserved in `gauge` for `bytes`.
    pub(crate) fn count_in(&mut self, gauge: &Gauge, bytes: usize) {
        self.counted = match self.priority() {
            Priority::High => Counted::Bytes(bytes),
            Priority::Low => {
                gauge.add_droppable();
                Counted::Droppable(bytes)
            }
        };
    }

    /// It does not wait any more.
    pub(crate) fn waits_no_more(&mut self, gauge: &Gauge) {
        if let Counted::Droppable(bytes) = self.counted {
            gauge.remove_droppable();
            self.counted = Counted::Bytes(bytes);
        }
    }

    /// Takes it out of the gauge.
    pub(crate) fn count_out(&mut self, gauge: &Gauge) {
        self.waits_no_more(gauge);
        if let Counted::Bytes(bytes) = self.counted {
            gauge.remove(bytes);
            self.counted = Counted::No;
        }
    }

    pub(crate) fn is_stored(&self) -> bool {
        self.record != TRANSIENT
    }

    /// Looks at its topic, while it has a message.
    pub(crate) fn with_topic<R>(&self, look: impl FnOnce(&str) -> R) -> Option<R> {
        match (&self.frame, &self.message) {
            (Some(frame), _) => Some(look(frame.topic())),
            (None, Some(message)) => Some(look(&message.publish().topic)),
            (None, None) => None,
        }
    }

    /// The order in which stored deliveries came.
    pub(crate) fn age(&self) -> u64 {
        self.record.0
    }

    /// Bytes it counts for.
    pub(crate) fn len(&self) -> usize {
        match (&self.message, &self.frame) {
            (Some(message), _) => message.len(),
            (None, Some(frame)) => frame.len(),
            (None, None) => 0,
        }
    }

    pub(crate) fn priority(&self) -> Priority {
        self.message.as_ref().map_or(Priority::Low, |m| m.priority)
    }

    pub(crate) fn is_expired(&self, now: Moment) -> bool {
        match (&self.message, &self.frame) {
            (Some(message), _) => message.is_expired(now),
            (None, Some(frame)) => frame.is_expired(now),
            (None, None) => false,
        }
    }

    /// Whether it can go to another member of its share.
    pub(crate) fn can_go_to_another(&self) -> bool {
        self.share.is_some() && (self.message.is_some() || self.has_telling_frame())
    }

    /// Whether it has a frame to make its message of. At QoS 0 it is its session's, and nobody else's.
    fn has_telling_frame(&self) -> bool {
        self.frame.is_some() && self.qos > QoS::AtMostOnce
    }

    /// Its frame is of no use to its session any more. It stays while it is all there is for another member of
    /// its share.
    pub(crate) fn let_go_of_frame(&mut self) {
        if self.message.is_some() || self.share.is_none() {
            self.frame = None;
        }
    }

    /// Its message, for a receiver of another kind than its frame was made for: out of the frame, if that is
    /// all there is.
    pub(crate) fn message(&mut self, trash: &Arc<Trash>) -> Option<Arc<Message>> {
        if self.message.is_none()
            && self.has_telling_frame()
            && let Some(frame) = &self.frame
        {
            let mut publish = frame.publish()?;
            publish.qos = self.published.qos;
            publish.retain = self.published.retain;
            let message = Message::new(TRANSIENT, &publish, frame.since(), trash).ok()?;
            self.claim = Some(message.claim());
            self.message = Some(message);
        }
        self.message.clone()
    }

    /// Its frame for a client of `version`; `None` if it cannot be encoded.
    pub(crate) fn frame_for(&mut self, version: Version, trash: &Arc<Trash>) -> Option<Frame> {
        if self
            .frame
            .as_ref()
            .is_some_and(|it| it.version() != version)
        {
            self.message(trash)?;
            self.frame = None;
        }
        if self.frame.is_none() {
            let message = self.message.as_ref()?;
            let layout = Layout {
                version,
                qos: self.qos,
                retain: self.retain,
                ids: self.ids.clone(),
            };
            let frame = Frame::encode(&message.publish(), &layout, message.since());
            if let Err(error) = &frame {
                tracing::warn!(event = "publish.unencodable", %error);
            }
            self.frame = frame.ok();
        }
        self.frame.clone()
    }

    /// Writes how far it got into the batch, if it is stored.
    pub(crate) fn put(&self, owner: Owner, stage: Stage, batch: &mut Batch) {
        if !self.is_stored() {
            return;
        }
        let record = DeliveryRecord {
            owner,
            message: self.message.as_ref().map_or(RecordId(0), |m| m.record()),
            qos: self.qos,
            retain: self.retain,
            ids: self.ids.clone(),
            stage,
            share: self.share.as_ref().map(|share| Arc::clone(share.filter())),
        };
        batch.put_with(self.record, |out| record.write(out));
    }

    /// Writes that it waits for its owner into the batch.
    pub(crate) fn put_waiting(&mut self, owner: Owner, batch: &mut Batch) {
        self.recorded = Recorded::Waiting;
        self.put(owner, Stage::Waiting, batch);
    }

    /// It is over: nobody needs it any more.
    pub(crate) fn done(mut self, gauge: &Gauge, batch: &mut Batch) {
        if self.is_stored() {
            batch.delete(self.record);
        }
        self.count_out(gauge);
    }
}
