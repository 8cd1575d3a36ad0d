//! A presence event as it waits for its thread: its own, for the broker's is borrowed.

use std::{net::SocketAddr, sync::Arc};

use broker::{DisconnectedBy, Presence, PresenceEvent, ReasonCode, Traffic, Version};

/// An event as it waits.
pub(super) struct Event {
    pub(super) at_us: i64,
    pub(super) sequence: u64,
    pub(super) connection: u64,
    pub(super) client_id: String,
    /// What the client calls itself.
    pub(super) chosen: String,
    pub(super) principal: Option<Arc<str>>,
    pub(super) vehicle: Option<Arc<str>>,
    pub(super) peer: SocketAddr,
    pub(super) listener: String,
    pub(super) what: What,
}

pub(super) enum What {
    Connected {
        version: Version,
        clean_start: bool,
        keep_alive: u16,
        session_present: bool,
        transport: &'static str,
    },
    Disconnected {
        reason: ReasonCode,
        by: DisconnectedBy,
        will_published: bool,
        since_us: i64,
        traffic: Traffic,
    },
    ConnectFailed {
        reason: ReasonCode,
        detail: String,
    },
    Subscribed(Vec<String>),
    Unsubscribed(Vec<String>),
    /// Of a newer broker than this file knows.
    Other,
}

impl Event {
    pub(super) fn of(presence: &Presence<'_>) -> Self {
        let principal = presence.identity.map(|identity| identity.principal.clone());
        // The broker's client id is `{principal}/{chosen}`, see `hooks`.
        let chosen = presence.requested_client_id.or_else(|| {
            let rest = presence.client_id.strip_prefix(principal.as_deref()?)?;
            rest.strip_prefix('/')
        });
        let own = |filters: &[&str]| filters.iter().map(|&filter| filter.to_owned()).collect();
        Self {
            at_us: presence.at_us,
            sequence: presence.sequence,
            connection: presence.connection,
            client_id: presence.client_id.to_owned(),
            chosen: chosen.unwrap_or(presence.client_id).to_owned(),
            principal,
            vehicle: presence
                .identity
                .and_then(|identity| identity.group.clone()),
            peer: presence.peer,
            listener: presence.listener.to_owned(),
            what: match presence.what {
                PresenceEvent::Connected {
                    version,
                    clean_start,
                    keep_alive,
                    session_present,
                    transport,
                } => What::Connected {
                    version,
                    clean_start,
                    keep_alive,
                    session_present,
                    transport,
                },
                PresenceEvent::Disconnected {
                    reason,
                    by,
                    will_published,
                    since_us,
                    traffic,
                } => What::Disconnected {
                    reason,
                    by,
                    will_published,
                    since_us,
                    traffic,
                },
                PresenceEvent::ConnectFailed { reason, detail } => What::ConnectFailed {
                    reason,
                    detail: detail.to_owned(),
                },
                PresenceEvent::Subscribed { filters } => What::Subscribed(own(filters)),
                PresenceEvent::Unsubscribed { filters } => What::Unsubscribed(own(filters)),
                _ => What::Other,
            },
        }
    }

    /// `presence` or `subscriptions`, and the event's name; as in the topics.
    pub(super) fn kind(&self) -> Option<(&'static str, &'static str)> {
        Some(match self.what {
            What::Connected { .. } => ("presence", "connected"),
            What::Disconnected { .. } => ("presence", "disconnected"),
            What::ConnectFailed { .. } => ("presence", "connect_failed"),
            What::Subscribed(_) => ("subscriptions", "subscribed"),
            What::Unsubscribed(_) => ("subscriptions", "unsubscribed"),
            What::Other => return None,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use broker::Identity;

    use super::*;

    pub(crate) fn event(
        identity: Option<&Identity>,
        client_id: &str,
        what: PresenceEvent<'_>,
    ) -> Event {
        Event::of(&Presence {
            identity,
            client_id,
            requested_client_id: identity.is_none().then_some(client_id),
            peer: ([192, 0, 2, 7], 4711).into(),
            listener: "mqtts-0",
            at_us: 1_800_000_000_123_456,
            sequence: 41,
            connection: 7,
            what,
        })
    }

    pub(crate) fn car() -> Identity {
        Identity::new("tcu-1/app", "tcu-1").with_group("car-1")
    }

    pub(crate) fn connected() -> PresenceEvent<'static> {
        PresenceEvent::Connected {
            version: Version::V5,
            clean_start: true,
            keep_alive: 30,
            session_present: false,
            transport: "mqtts",
        }
    }

    pub(crate) fn disconnected(by: DisconnectedBy) -> PresenceEvent<'static> {
        PresenceEvent::Disconnected {
            reason: ReasonCode::SessionTakenOver,
            by,
            will_published: true,
            since_us: 1_800_000_000_000_000,
            traffic: Traffic::default(),
        }
    }
}
