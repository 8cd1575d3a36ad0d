//! When a message that came without a connection of MQTT may go on: as if it were still unread on one.
//!
//! A connection that is too fast is not read from, and TCP slows the client down. A request has been read
//! when its rate is asked for, so it waits itself: for as long as a client may be expected to, then it is
//! refused, with the time after which it would be taken. Those that wait are bounded by the HTTP
//! connections there may be ([`Limits::max_web_connections`](crate::Limits::max_web_connections)).

use std::time::Duration;

use mqtt::{Publish, ReasonCode};

use super::broker::BrokerHandle;
use super::operator::reply;
use super::visitor::{Denied, RateUnit, Visitor};
use crate::admission::meter::{Came, ClientRate, TooLong};
use crate::machine::charging::Visit;
use crate::machine::mailbox::Mail;

/// How long a request waits at most for its turn, milliseconds: less than clients wait for an answer.
const PATIENCE_MS: u64 = 2_000;

/// How often it is looked whether the broker has caught up, milliseconds.
const BEHIND_PAUSE_MS: u64 = 10;

/// When somebody is to come again who was refused because the broker has not caught up.
const BEHIND_RETRY: Duration = Duration::from_secs(1);

impl BrokerHandle {
    /// Waits until the message may go on, and counts it against all rates in.
    pub(super) async fn wait_for_turn(
        &self,
        who: &Visitor,
        message: &Publish,
    ) -> Result<(), Denied> {
        let came = Came {
            messages: 1,
            bytes: size(message),
        };
        let give_up = self.inner.clock.now().tick + PATIENCE_MS;
        self.wait_for_all(who, give_up).await?;
        self.wait_for_own(who, came, give_up).await?;
        let tick = self.inner.clock.now().tick;
        let admission = &self.inner.exchange.admission;
        admission.charge_visit(who.entrance.as_deref(), tick, came);
        Ok(())
    }

    /// Until the broker keeps up, and all together are no faster than they may be.
    async fn wait_for_all(&self, who: &Visitor, give_up: u64) -> Result<(), Denied> {
        let exchange = &self.inner.exchange;
        let admission = &exchange.admission;
        let entrance = who.entrance.as_deref();
        loop {
            let tick = self.inner.clock.now().tick;
            let shared_wait = || match admission.is_closed(entrance) {
                true => admission.shared_wait(entrance, tick, exchange.outside_counters()),
                false => None,
            };
            let (wait, denied) = if exchange.is_congested() {
                let retry_after = BEHIND_RETRY;
                (BEHIND_PAUSE_MS, Denied::Behind { retry_after })
            } else if let Some(wait) = shared_wait() {
                // What is waited for is a part of that: one looks again.
                let whole = wait.max(admission.closed_for(entrance, tick));
                let retry_after = Duration::from_millis(whole);
                (whole, Denied::Crowded { retry_after })
            } else {
                return Ok(());
            };
            if tick + wait > give_up {
                return Err(denied);
            }
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// Until the client itself is no faster than it may be: its account is where its session would be.
    async fn wait_for_own(&self, who: &Visitor, came: Came, give_up: u64) -> Result<(), Denied> {
        let exchange = &self.inner.exchange;
        if !exchange.admission.paces.limit_inbound() {
            return Ok(());
        }
        let patience = give_up.saturating_sub(self.inner.clock.now().tick);
        let (reply, answer) = reply(None);
        let visit = Visit {
            client_id: who.identity.client_id.clone(),
            principal: who.identity.principal.clone(),
            came,
            patience,
            reply,
        };
        let home = exchange.home(&visit.client_id);
        exchange.mailbox(home).post(Mail::Visit(visit));
        let answer = self.answer(answer);
        match tokio::time::timeout(Duration::from_millis(PATIENCE_MS), answer).await {
            Ok(Some(Ok(0))) => Ok(()),
            Ok(Some(Ok(wait))) => {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                Ok(())
            }
            Ok(Some(Err(too_long))) => Err(self.too_fast(too_long)),
            Ok(None) => Err(Denied::Reason(ReasonCode::ServerShuttingDown)),
            // A worker that is so late has enough to do.
            Err(_elapsed) => Err(Denied::Behind {
                retry_after: BEHIND_RETRY,
            }),
        }
    }

    fn too_fast(&self, too_long: TooLong) -> Denied {
        let limits = &self.inner.exchange.limits;
        let (rate, limit) = match too_long.rate {
            ClientRate::Messages => (RateUnit::Messages, limits.client_messages_in),
            ClientRate::Bytes => (RateUnit::Bytes, limits.client_bytes_in),
        };
        Denied::TooFast {
            rate,
            // There is one, or nobody would have had to wait.
            per_second: limit.map_or(0, |limit| limit.per_second.get()),
            retry_after: Duration::from_millis(too_long.wait),
        }
    }
}

/// Bytes of a message that a client chose: about those of its PUBLISH.
fn size(message: &Publish) -> u64 {
    let properties = message.properties.user_properties.iter();
    let properties: usize = properties
        .map(|(name, value)| name.len() + value.len())
        .sum();
    (message.topic.len() + message.payload.len() + properties) as u64
}
