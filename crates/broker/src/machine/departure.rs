//! A connection on its way to the shard of its session, and what is told of one that does not arrive.
//!
//! Its CONNECT was read and is not answered yet. On the way it belongs to no shard: if its transport cannot
//! move, or the other shard has no room, or is gone because the broker stops, there is none that would speak
//! of its end. So the departure does, wherever it is dropped: every CONNECT that does not lead to Connected
//! has its ConnectFailed. (The client sees the connection close.)

use std::borrow::Cow;
use std::sync::Arc;

use mqtt::ReasonCode;

use super::Moment;
use super::announcing::event;
use super::connection::{End, EndedBy, WillFate};
use super::exchange::Exchange;
use super::tenants::{Joiner, Tenant};
use crate::presence::{Presence, PresenceEvent};

/// A connection on its way to the shard of its session.
pub(crate) struct Departure {
    to: usize,
    /// `None` once it has arrived, or its end was told.
    tenant: Option<Box<Tenant>>,
    exchange: Arc<Exchange>,
    left: Moment,
}

impl Departure {
    pub(super) fn new(
        to: usize,
        tenant: Box<Tenant>,
        exchange: &Arc<Exchange>,
        now: Moment,
    ) -> Departure {
        Departure {
            to,
            tenant: Some(tenant),
            exchange: Arc::clone(exchange),
            left: now,
        }
    }

    /// The shard to take it to.
    pub(crate) fn to(&self) -> usize {
        self.to
    }

    /// It is there.
    pub(super) fn arrived(mut self) -> Option<Box<Tenant>> {
        self.tenant.take()
    }

    /// It is not taken in.
    pub(super) fn fail(mut self, reason: ReasonCode, detail: &'static str) {
        self.lost(reason, detail);
    }

    fn lost(&mut self, reason: ReasonCode, detail: &'static str) {
        let Some(mut tenant) = self.tenant.take() else {
            return;
        };
        let Some(joiner) = tenant.joiner.take() else {
            return;
        };
        let end = End {
            reason,
            by: EndedBy::Refusal,
            detail: Cow::Borrowed(detail),
            will: WillFate::Due,
            session_expiry: None,
        };
        self.tell(&mut tenant, &joiner, &end);
    }

    fn tell(&self, tenant: &mut Tenant, joiner: &Joiner, end: &End) {
        let exchange = &self.exchange;
        let requested = &*joiner.connect.client_id;
        let identity = joiner.known.as_ref().map(|(identity, _)| identity);
        let client_id = match identity {
            Some(identity) => &*identity.client_id,
            None => joiner.assigned.as_deref().unwrap_or(requested),
        };
        exchange.outside_counters().connects_refused.one(end.reason);
        tracing::warn!(
            event = "client.refused",
            client = client_id,
            principal = identity.map_or("", |identity| &*identity.principal),
            group = identity.and_then(|identity| identity.group.as_deref()),
            peer = %tenant.origin.peer,
            listener = %tenant.origin.listener,
            reason = %end.reason,
            detail = %end.detail,
        );
        if let Some(tracer) = &tenant.tracer {
            tracer.ended(self.left.wall_us, end);
        }
        if tenant.number == 0 {
            tenant.number = exchange.next_event();
        }
        let what = PresenceEvent::ConnectFailed {
            reason: end.reason,
            detail: &end.detail,
        };
        exchange.hooks.presence(&Presence {
            requested_client_id: Some(requested),
            at_us: self.left.wall_us,
            sequence: exchange.next_event(),
            ..event(tenant, identity, client_id, what)
        });
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        let detail = "the connection was lost on its way from one worker to another";
        self.lost(ReasonCode::UnspecifiedError, detail);
    }
}

impl std::fmt::Debug for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let peer = self.tenant.as_ref().map(|tenant| tenant.origin.peer);
        f.debug_struct("Departure")
            .field("to", &self.to)
            .field("peer", &peer)
            .finish_non_exhaustive()
    }
}
