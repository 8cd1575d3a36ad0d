//! Publishing in somebody's name without a connection of MQTT: what comes in over HTTP.
//!
//! The same road as a PUBLISH: who is it ([`visitor`](super::visitor)), is it its turn
//! ([`patience`](super::patience)), may they ([`Hooks::may_publish`](crate::Hooks::may_publish)), the tap, the
//! subscribers, and an answer once everything that is to be kept is kept.

use std::time::Duration;

use journal::{Condition, Position};
use mqtt::{Publish, QoS, ReasonCode, TopicName};

use super::broker::BrokerHandle;
use super::visitor::{Denied, Visitor};
use crate::acknowledge::Acknowledge;
use crate::hooks::{Decision, Identity, Tap};
use crate::stats::Counters;

/// How often the store is asked whether it has a message: about the time of a group commit.
const STORE_PAUSE: Duration = Duration::from_millis(1);

impl BrokerHandle {
    /// Publishes in the name of `who`, as if it were connected and had sent this: it is held to its rates,
    /// access is checked, the tap gets its copy, then the subscribers. At QoS 1 the answer comes when a
    /// PUBACK would. Packet id and topic alias are ignored, QoS 2 is QoS 1: nothing here would recognise a
    /// second attempt.
    ///
    /// A message that is too early waits, for two seconds at most.
    ///
    /// # Errors
    /// [`Denied::TooFast`], [`Crowded`](Denied::Crowded) or [`Behind`](Denied::Behind) if it would have to
    /// wait for longer, [`Banned`](Denied::Banned) or [`Flapping`](Denied::Flapping) if that came in
    /// between; else [`Reason`](Denied::Reason) with the code that PUBACK would bring:
    /// [`TopicNameInvalid`](ReasonCode::TopicNameInvalid), [`NotAuthorized`](ReasonCode::NotAuthorized),
    /// [`QuotaExceeded`](ReasonCode::QuotaExceeded),
    /// [`RetainNotSupported`](ReasonCode::RetainNotSupported), or what the tap says. That nobody subscribes
    /// is no error.
    pub async fn publish_as(&self, who: &Visitor, message: &Publish) -> Result<(), Denied> {
        self.wait_for_turn(who, message).await?;
        self.admits(who, self.inner.clock.now())?;
        let published = self.publish_in_turn(&who.identity, message).await;
        published.map_err(Denied::Reason)
    }

    async fn publish_in_turn(&self, who: &Identity, message: &Publish) -> Result<(), ReasonCode> {
        let exchange = &self.inner.exchange;
        let counters = exchange.outside_counters();
        count(counters, message);
        if TopicName::parse(&message.topic).is_err() {
            return Err(ReasonCode::TopicNameInvalid);
        }
        if let Some(reason) = exchange.too_deep(&message.topic) {
            return Err(reason);
        }
        if let Some(reason) = exchange.refuses_retain(message) {
            return Err(reason);
        }
        if exchange.hooks.may_publish(who, &message.topic) == Decision::Deny {
            counters.dropped_unauthorized.one();
            return Err(ReasonCode::NotAuthorized);
        }
        let now = self.inner.clock.now();
        let (done, answer) = Acknowledge::for_caller();
        let copied = match exchange.hooks.tap(who, message, now.wall_us, done) {
            Tap::NotWanted => None,
            Tap::Taken => {
                counters.tap_taken.one();
                Some(answer)
            }
            Tap::Refused(reason) => return Err(reason),
        };
        let published = exchange.publish_from_outside(message, now)?;
        if message.qos == QoS::AtMostOnce {
            return Ok(());
        }
        if published.receivers == 0 && published.refused > 0 && copied.is_none() {
            return Err(ReasonCode::QuotaExceeded);
        }
        if let Some(answer) = copied {
            // The tap answers, or drops the receipt, which is an answer too.
            let outcome = answer.await.unwrap_or(Err(ReasonCode::UnspecifiedError));
            outcome.inspect_err(|_| counters.tap_failed.one())?;
        }
        match published.position {
            Some(position) => self.stored(position).await,
            None => Ok(()),
        }
    }

    /// Waits until the store has everything up to `position`, or can write nothing.
    async fn stored(&self, position: Position) -> Result<(), ReasonCode> {
        let store = &self.inner.exchange.store;
        while store.durable() < position {
            if store.condition() == Condition::Stalled {
                return Err(ReasonCode::QuotaExceeded);
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
        Ok(())
    }
}

fn count(counters: &Counters, message: &Publish) {
    match message.qos {
        QoS::AtMostOnce => counters.messages_in_qos0.one(),
        QoS::AtLeastOnce | QoS::ExactlyOnce => counters.messages_in_qos1.one(),
    }
}
