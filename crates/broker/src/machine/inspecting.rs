//! Answers what an operator asks about clients, and does what they want done to one.
//!
//! Flow: a question comes by mail, to all shards (a page) or to the one where the session lives; the
//! answer leaves through the [`Reply`] in it, a function of the shell's, so that nothing here knows who
//! waits for it or how.
//!
//! A page is put together without an index by client identifier, which every client would have to pay
//! for all the time: the shard goes through its sessions and keeps the first ones beyond the cursor.
//! It does so a stretch at a time and puts itself to the end of its own mail in between, so that no
//! client waits for more than one stretch.

use std::collections::BinaryHeap;
use std::fmt;
use std::sync::Arc;

use mqtt::ReasonCode;

use super::connection::EndedBy;
use super::deferred::Deferred;
use super::mailbox::Mail;
use super::session::Session;
use super::shard::Shard;
use super::slots::SessionId;
use super::subscriber::{OwnMessages, RetainFlag};
use super::tenants::Start;
use crate::clients::{
    ClientDetail, ClientQuery, ClientSummary, ConnectionDetail, ConnectionSummary,
    MAX_SUBSCRIPTIONS_SHOWN, Purged, SessionDetail, SubscriptionDetail, WillDetail,
};

/// Slots gone through in one go: a quarter of a millisecond, when each one's session is a cache miss and
/// belongs into the page.
pub(super) const STRETCH: u32 = 1_024;

/// Sessions in one go whose group the outside is asked for: those of a restart whose clients have not
/// come back. A question is some hundred times as dear as a look.
const RECALLED: u32 = 256;

/// Summaries made in one go.
pub(super) const SUMMARISED: usize = 256;

/// Takes an answer to where it is waited for. Dropped without a call if nobody can answer any more.
pub(crate) struct Reply<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Reply<T> {
    pub(crate) fn new(take: impl FnOnce(T) + Send + 'static) -> Reply<T> {
        Reply(Box::new(take))
    }

    pub(crate) fn send(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// What an operator wants.
#[derive(Debug)]
pub(crate) enum Inquiry {
    /// The clients of this shard that belong into a page.
    List(Listing),
    /// Everything about a client.
    Show(Arc<str>, Reply<Option<ClientDetail>>),
    /// The end of a client's connection; whether it had one.
    Disconnect(Arc<str>, ReasonCode, Reply<bool>),
    /// The end of a client's session; what that removed.
    Purge(Arc<str>, Reply<Option<Purged>>),
}

/// A page in the making.
#[derive(Debug)]
pub(crate) struct Listing {
    query: Arc<ClientQuery>,
    /// One more than the page has: it tells whether there is another page.
    limit: usize,
    stage: Stage,
    reply: Reply<Part>,
}

/// What one shard has for a page.
#[derive(Debug)]
pub(crate) struct Part {
    /// In the order of the client identifiers.
    pub(crate) items: Vec<ClientSummary>,
    /// Clients beyond this one were not looked at; `None` if there are none.
    pub(crate) covers: Option<Arc<str>>,
}

#[derive(Debug)]
enum Stage {
    /// From this slot on there is still to be looked; the first ones so far, last on top.
    Looking(u32, BinaryHeap<(Arc<str>, SessionId)>),
    /// Those found, last first, and what is to be said of the first ones.
    Summarising(Vec<SessionId>, Part),
}

impl Listing {
    pub(crate) fn new(query: Arc<ClientQuery>, reply: Reply<Part>) -> Listing {
        Listing {
            limit: query.limit + 1,
            query,
            stage: Stage::Looking(0, BinaryHeap::new()),
            reply,
        }
    }
}

impl Shard {
    /// An operator wants something.
    pub(super) fn inquire(&mut self, inquiry: Inquiry) {
        match inquiry {
            Inquiry::List(listing) => self.list(listing),
            Inquiry::Show(client_id, reply) => {
                let detail = self.find(&client_id).and_then(|id| self.detail(id));
                reply.send(detail);
            }
            Inquiry::Disconnect(client_id, reason, reply) => {
                let session = self.find(&client_id).and_then(|id| self.sessions.get(id));
                let connection = session.and_then(|session| session.connection());
                if let Some(connection) = connection {
                    self.close_by_operator(connection, reason);
                }
                reply.send(connection.is_some());
            }
            Inquiry::Purge(client_id, reply) => self.purge(&client_id, reply),
        }
    }

    fn find(&self, client_id: &str) -> Option<SessionId> {
        self.clients.get(client_id).copied()
    }

    fn close_by_operator(&mut self, connection: super::slots::ConnectionId, reason: ReasonCode) {
        self.step(connection, |connection, _, _, out| {
            let by = EndedBy::Operator;
            connection.close_by(by, reason, "an operator ended the connection", out);
        });
    }

    // ----- pages -----

    /// One step of a page; the next one comes behind the other mail.
    fn list(&mut self, listing: Listing) {
        let Listing {
            query,
            limit,
            stage,
            reply,
        } = listing;
        let stage = match stage {
            Stage::Looking(slot, mut found) => match self.look(&query, limit, slot, &mut found) {
                Some(next) => Stage::Looking(next, found),
                None => {
                    let full = found.len() >= limit;
                    let found = found.into_sorted_vec();
                    let last = found.last().filter(|_| full);
                    let part = Part {
                        items: Vec::with_capacity(found.len()),
                        covers: last.map(|(client_id, _)| Arc::clone(client_id)),
                    };
                    let ids = found.into_iter().map(|(_, id)| id).rev().collect();
                    Stage::Summarising(ids, part)
                }
            },
            Stage::Summarising(mut ids, mut part) => {
                let rest = ids.len().saturating_sub(SUMMARISED);
                for id in ids.drain(rest..).rev() {
                    // It may have ended since it was found.
                    let summary = self.summary(id);
                    part.items.extend(summary.filter(|s| fits_still(&query, s)));
                }
                if ids.is_empty() {
                    return reply.send(part);
                }
                Stage::Summarising(ids, part)
            }
        };
        self.mailbox.post(Mail::Inquiry(Inquiry::List(Listing {
            query,
            limit,
            stage,
            reply,
        })));
    }

    /// Goes through a stretch of sessions; says where the next one begins.
    fn look(
        &mut self,
        query: &ClientQuery,
        limit: usize,
        first: u32,
        found: &mut BinaryHeap<(Arc<str>, SessionId)>,
    ) -> Option<u32> {
        let hooks = &self.exchange.hooks;
        let mut recalled = 0;
        let stretch = self.sessions.stretch(self.number, first, STRETCH)?;
        for (id, session) in stretch {
            let id: SessionId = id;
            let client_id = &session.client_id;
            if query.after.as_ref().is_some_and(|after| client_id <= after)
                || (found.len() >= limit && found.peek().is_some_and(|(last, _)| client_id > last))
                || query
                    .prefix
                    .as_ref()
                    .is_some_and(|prefix| !client_id.starts_with(&**prefix))
                || query
                    .principal
                    .as_ref()
                    .is_some_and(|principal| *principal != session.principal)
                || query
                    .connected
                    .is_some_and(|connected| connected != session.online().is_some())
            {
                continue;
            }
            if let Some(group) = &query.group {
                let known = session.identity.as_deref();
                let theirs = match known {
                    Some(identity) => identity.group.clone(),
                    None => {
                        recalled += 1;
                        let identity = hooks.recall(client_id, &session.principal);
                        identity.and_then(|identity| identity.group)
                    }
                };
                if theirs.as_ref() != Some(group) {
                    if recalled >= RECALLED {
                        return Some(id.slot() + 1);
                    }
                    continue;
                }
            }
            found.push((Arc::clone(client_id), id));
            if found.len() > limit {
                found.pop();
            }
            if recalled >= RECALLED {
                return Some(id.slot() + 1);
            }
        }
        Some(first + STRETCH)
    }

    fn summary(&mut self, id: SessionId) -> Option<ClientSummary> {
        let session = self.sessions.get(id)?;
        let group = match session.identity.as_deref() {
            Some(identity) => identity.group.clone(),
            None => {
                let hooks = &self.exchange.hooks;
                let identity = hooks.recall(&session.client_id, &session.principal);
                identity.and_then(|identity| identity.group)
            }
        };
        let tenant = session.online().and_then(|id| self.tenants.get(id));
        Some(ClientSummary {
            client_id: Arc::clone(&session.client_id),
            principal: Arc::clone(&session.principal),
            group,
            connection: tenant.map(|tenant| ConnectionSummary {
                peer: tenant.origin.peer,
                listener: Arc::clone(&tenant.origin.listener),
                transport: tenant.origin.protocol.name(),
                version: tenant.connection.version(),
                since_us: tenant.since_us,
                number: tenant.number,
            }),
            disconnected_us: session.disconnected_us,
            subscriptions: session.subscriptions.len(),
            queued: session.waiting(),
            queued_bytes: session.waiting_bytes(),
        })
    }

    // ----- one client -----

    fn detail(&mut self, id: SessionId) -> Option<ClientDetail> {
        let summary = self.summary(id)?;
        let session = self.sessions.get(id)?;
        let tenant = session.online().and_then(|id| self.tenants.get(id));
        let expiry = (session.expiry != u32::MAX).then_some(session.expiry);
        let lasts_us = expiry.map(|seconds| i64::from(seconds) * 1_000_000);
        let expires_us = match (session.disconnected_us, lasts_us) {
            (Some(since), Some(lasts)) => Some(since.saturating_add(lasts)),
            _ => None,
        };
        Some(ClientDetail {
            connection: tenant.map(|tenant| ConnectionDetail {
                keep_alive: tenant.connection.keep_alive(),
                clean_start: tenant.start == Start::Clean,
                receive_maximum: tenant.receive_maximum,
                unsent_bytes: tenant.outbox.ready_bytes(),
                traffic: tenant.traffic(),
            }),
            in_flight: session.undelivered() - session.waiting(),
            will: session.will.as_deref().map(|will| WillDetail {
                topic: will.publish.topic.to_string(),
                qos: will.publish.qos,
                retain: will.publish.retain,
                delay: will.delay,
                payload_bytes: will.publish.payload.len(),
            }),
            session: SessionDetail {
                stored: session.is_stored(),
                expiry,
                expires_us,
                curtailed: session.curtailed,
            },
            subscriptions: subscriptions(&self.exchange, session),
            summary,
        })
    }

    /// Ends connection and session of a client. Says so once the store knows.
    fn purge(&mut self, client_id: &str, reply: Reply<Option<Purged>>) {
        let id = self.find(client_id);
        let Some((id, session)) = id.and_then(|id| Some((id, self.sessions.get(id)?))) else {
            // It may have ended a moment ago, by another purge: then the store is to know first.
            let ending = self.storing.is_ending(client_id);
            return self.once_stored(ending, Deferred::Purged(reply, None));
        };
        let purged = Purged {
            queued: session.undelivered(),
            subscriptions: session.subscriptions.len(),
        };
        // One of the client that is just ending must not be back after a crash either.
        let stored = session.is_stored() || self.storing.is_ending(&session.client_id);
        tracing::info!(
            event = "session.purged",
            client = %session.client_id,
            principal = %session.principal,
            group = session.identity.as_ref().and_then(|i| i.group.as_deref()),
            queued = purged.queued,
            subscriptions = purged.subscriptions,
        );
        if let Some(connection) = session.connection() {
            self.close_by_operator(connection, ReasonCode::AdministrativeAction);
        }
        // Not if it ended with its connection.
        self.end_session(id);
        self.once_stored(stored, Deferred::Purged(reply, Some(purged)));
    }
}

/// Whether what is said of a client still belongs into the page: it may have come or gone since.
fn fits_still(query: &ClientQuery, summary: &ClientSummary) -> bool {
    query
        .connected
        .is_none_or(|connected| connected == summary.connection.is_some())
}

/// The subscriptions of a session, with what the index has of them.
fn subscriptions(
    exchange: &super::exchange::Exchange,
    session: &Session,
) -> Vec<SubscriptionDetail> {
    let index = exchange.subscriptions();
    let held = session.subscriptions.iter().take(MAX_SUBSCRIPTIONS_SHOWN);
    let mut shown: Vec<SubscriptionDetail> = held
        .filter_map(|(filter, held)| {
            let subscriber = match &held.share {
                None => index.own.get(filter, session.id),
                Some(share) => share.group().options(session.id),
            }?;
            Some(SubscriptionDetail {
                filter: Arc::clone(filter),
                qos: subscriber.granted,
                no_local: subscriber.own == OwnMessages::Skip,
                retain_as_published: subscriber.retain == RetainFlag::AsPublished,
                id: (subscriber.id > 0).then_some(subscriber.id),
            })
        })
        .collect();
    drop(index);
    shown.sort_unstable_by(|a, b| a.filter.cmp(&b.filter));
    shown
}

#[cfg(test)]
impl Shard {
    /// The client identifier of a connection.
    pub(super) fn client_of(&mut self, id: super::slots::ConnectionId) -> Arc<str> {
        let session = self.tenants.get(id).and_then(|tenant| tenant.session);
        let session = session.and_then(|id| self.sessions.get(id));
        Arc::clone(&session.expect("it is connected").client_id)
    }
}
