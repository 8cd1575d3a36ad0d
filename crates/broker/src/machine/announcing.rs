//! Tells the outside who came and went: one place where a presence event is put together.
//!
//! Everything in it is borrowed from the connection and its session, so an event costs a number and a
//! call, whether anybody listens or not.

use std::sync::Arc;

use mqtt::ReasonCode;

use super::connection::{End, EndedBy};
use super::shard::Shard;
use super::slots::ConnectionId;
use super::tenants::{Start, Tenant};
use crate::hooks::Identity;
use crate::presence::{DisconnectedBy, FILTERS_PER_EVENT, Presence, PresenceEvent};

/// Who was connected.
pub(super) struct Departed {
    pub(super) client_id: Arc<str>,
    pub(super) principal: Arc<str>,
    pub(super) identity: Option<Arc<Identity>>,
}

/// Whose CONNECT failed, as far as that is known.
pub(super) struct Refused<'a> {
    pub(super) identity: Option<&'a Identity>,
    pub(super) client_id: &'a str,
    /// In CONNECT, if that is still at hand.
    pub(super) requested: Option<&'a str>,
}

/// Whether a will was published at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WillPublished {
    Yes,
    /// There was none, it was not due, or it may not be.
    No,
}

impl Shard {
    /// CONNACK with success is on its way.
    pub(super) fn announce_connected(&mut self, id: ConnectionId, session_present: bool) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(session) = tenant.session.and_then(|id| self.sessions.get(id)) else {
            return;
        };
        let what = PresenceEvent::Connected {
            version: tenant.connection.version(),
            clean_start: tenant.start == Start::Clean,
            keep_alive: tenant.connection.keep_alive(),
            session_present,
            transport: tenant.origin.protocol.name(),
        };
        let exchange = &self.exchange;
        exchange.hooks.presence(&Presence {
            at_us: self.now.wall_us,
            sequence: exchange.next_event(),
            ..event(
                tenant,
                session.identity.as_deref(),
                &session.client_id,
                what,
            )
        });
    }

    /// A connection that was connected is over.
    pub(super) fn announce_disconnected(
        &mut self,
        id: ConnectionId,
        who: &Departed,
        end: &End,
        will: WillPublished,
    ) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let what = PresenceEvent::Disconnected {
            reason: end.reason,
            by: disconnected_by(end),
            will_published: will == WillPublished::Yes,
            since_us: tenant.since_us,
            traffic: tenant.traffic(),
        };
        let exchange = &self.exchange;
        exchange.hooks.presence(&Presence {
            at_us: self.now.wall_us,
            sequence: exchange.next_event(),
            ..event(tenant, who.identity.as_deref(), &who.client_id, what)
        });
    }

    /// A CONNECT was not accepted.
    pub(super) fn announce_refused(&mut self, id: ConnectionId, who: &Refused<'_>, end: &End) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let what = PresenceEvent::ConnectFailed {
            reason: end.reason,
            detail: &end.detail,
        };
        let exchange = &self.exchange;
        if tenant.number == 0 {
            tenant.number = exchange.next_event();
        }
        exchange.hooks.presence(&Presence {
            requested_client_id: who.requested,
            at_us: self.now.wall_us,
            sequence: exchange.next_event(),
            ..event(tenant, who.identity, who.client_id, what)
        });
    }

    /// SUBACK is on its way; it grants these.
    pub(super) fn announce_subscribed<'a>(
        &mut self,
        id: ConnectionId,
        filters: impl Iterator<Item = &'a str>,
    ) {
        self.announce_filters(id, filters, |filters| PresenceEvent::Subscribed { filters });
    }

    /// UNSUBACK is on its way; it ended these.
    pub(super) fn announce_unsubscribed<'a>(
        &mut self,
        id: ConnectionId,
        filters: impl Iterator<Item = &'a str>,
    ) {
        self.announce_filters(id, filters, |filters| PresenceEvent::Unsubscribed {
            filters,
        });
    }

    fn announce_filters<'a>(
        &mut self,
        id: ConnectionId,
        mut filters: impl Iterator<Item = &'a str>,
        what: impl for<'b> Fn(&'b [&'b str]) -> PresenceEvent<'b>,
    ) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let Some(session) = tenant.session.and_then(|id| self.sessions.get(id)) else {
            return;
        };
        let exchange = &self.exchange;
        loop {
            // On the stack: most of the time nobody listens.
            let mut few = [""; FILTERS_PER_EVENT];
            let mut count = 0;
            for (place, filter) in few.iter_mut().zip(&mut filters) {
                *place = filter;
                count += 1;
            }
            if count == 0 {
                return;
            }
            let what = what(&few[..count]);
            exchange.hooks.presence(&Presence {
                at_us: self.now.wall_us,
                sequence: exchange.next_event(),
                ..event(
                    tenant,
                    session.identity.as_deref(),
                    &session.client_id,
                    what,
                )
            });
        }
    }
}

/// An event about a connection, without time and number.
pub(super) fn event<'a>(
    tenant: &'a Tenant,
    identity: Option<&'a Identity>,
    client_id: &'a str,
    what: PresenceEvent<'a>,
) -> Presence<'a> {
    Presence {
        identity,
        client_id,
        requested_client_id: None,
        peer: tenant.origin.peer,
        listener: &tenant.origin.listener,
        at_us: 0,
        sequence: 0,
        connection: tenant.number,
        what,
    }
}

/// Whose doing the end of a connection was.
pub(super) fn disconnected_by(end: &End) -> DisconnectedBy {
    match end.by {
        EndedBy::Client => DisconnectedBy::Client,
        EndedBy::Network => DisconnectedBy::Network,
        EndedBy::Operator => DisconnectedBy::Operator,
        EndedBy::Access => DisconnectedBy::Access,
        EndedBy::Authentication => DisconnectedBy::Authentication,
        EndedBy::Broker | EndedBy::Refusal => match end.reason {
            ReasonCode::SessionTakenOver => DisconnectedBy::Takeover,
            ReasonCode::KeepAliveTimeout => DisconnectedBy::KeepAlive,
            ReasonCode::ServerShuttingDown => DisconnectedBy::Shutdown,
            ReasonCode::AdministrativeAction | ReasonCode::Banned => DisconnectedBy::Operator,
            ReasonCode::NotAuthorized => DisconnectedBy::Access,
            ReasonCode::QuotaExceeded
            | ReasonCode::MessageRateTooHigh
            | ReasonCode::ConnectionRateExceeded
            | ReasonCode::MaximumConnectTime
            | ReasonCode::ServerBusy => DisconnectedBy::Throttled,
            ReasonCode::MalformedPacket
            | ReasonCode::ProtocolError
            | ReasonCode::UnsupportedProtocolVersion
            | ReasonCode::ClientIdentifierNotValid
            | ReasonCode::BadAuthenticationMethod
            | ReasonCode::TopicFilterInvalid
            | ReasonCode::TopicNameInvalid
            | ReasonCode::PacketIdentifierInUse
            | ReasonCode::PacketIdentifierNotFound
            | ReasonCode::ReceiveMaximumExceeded
            | ReasonCode::TopicAliasInvalid
            | ReasonCode::PacketTooLarge
            | ReasonCode::PayloadFormatInvalid
            | ReasonCode::RetainNotSupported
            | ReasonCode::QoSNotSupported
            | ReasonCode::SharedSubscriptionsNotSupported
            | ReasonCode::SubscriptionIdentifiersNotSupported
            | ReasonCode::WildcardSubscriptionsNotSupported => DisconnectedBy::ClientError,
            _ => DisconnectedBy::Server,
        },
    }
}
