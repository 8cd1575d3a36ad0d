//! Rates in, per client: charged to its connection while it has one, to its [debt](crate::admission::debts)
//! between two of them, and to whichever there is when it publishes without one.
//!
//! All on the shard of the session, so that however many connections a client has, one after the other or at
//! once (MQTT and HTTPS), there is one count.

use std::sync::Arc;

use super::inspecting::Reply;
use super::shard::Shard;
use super::slots::{ConnectionId, SessionId};
use crate::admission::meter::{Came, TooLong};

/// Somebody without a connection wants to publish.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) client_id: Arc<str>,
    pub(crate) principal: Arc<str>,
    /// What it brings.
    pub(crate) came: Came,
    /// For how long it may be kept waiting, milliseconds.
    pub(crate) patience: u64,
    /// For how long it is.
    pub(crate) reply: Reply<Result<u64, TooLong>>,
}

impl Shard {
    /// Bytes that may be read from a connection at once, of `most`.
    pub(crate) fn room_in(&mut self, id: ConnectionId, most: usize) -> usize {
        let paces = &self.exchange.admission.paces;
        match self.tenants.get(id) {
            Some(tenant) => tenant.inbound.room(paces, self.now.tick, most),
            None => most,
        }
    }

    /// Counts what came over a connection. Returns the milliseconds for which nothing more is to be taken
    /// from it, if any; its silence is not its own meanwhile.
    pub(crate) fn charge(&mut self, id: ConnectionId, came: Came) -> Option<u64> {
        let tick = self.now.tick;
        let paces = &self.exchange.admission.paces;
        let tenant = self.tenants.get(id)?;
        let wait = tenant.inbound.charge(paces, tick, came, &self.counters);
        if tenant.connection.is_ended() {
            // What came last ended it, and is known only now.
            self.keep_debt(id);
            return wait;
        }
        if let Some(wait) = wait {
            tenant.connection.not_read_before(tick.saturating_add(wait));
        }
        wait
    }

    /// Whether nothing more is to be taken from a connection now, whoever it just turned out to be.
    pub(crate) fn owes(&mut self, id: ConnectionId) -> bool {
        let paces = &self.exchange.admission.paces;
        let tick = self.now.tick;
        let tenant = self.tenants.get(id);
        tenant.is_some_and(|tenant| tenant.inbound.is_held(paces, tick))
    }

    /// A connection has its session: what its client owes is counted there from now on.
    pub(super) fn take_on_debt(&mut self, id: ConnectionId, session: SessionId) {
        if !self.exchange.admission.paces.limit_inbound() {
            return;
        }
        let (Some(tenant), Some(session)) = (self.tenants.get(id), self.sessions.get(session))
        else {
            return;
        };
        let account = self.debts.account(&session.client_id, &session.principal);
        tenant.account = Some(account);
        if let Some(owed) = self.debts.take(account) {
            tenant.inbound.take_on(owed, self.now.tick);
        }
    }

    /// A connection has ended: what it used is its client's debt.
    pub(super) fn keep_debt(&mut self, id: ConnectionId) {
        if let Some(tenant) = self.tenants.get(id)
            && let Some(account) = tenant.account
        {
            let used = std::mem::take(&mut tenant.inbound);
            self.debts.add(account, used, self.now.tick);
        }
    }

    /// Says for how long somebody without a connection has to wait, and counts what it brings.
    pub(super) fn visit(&mut self, visit: Visit) {
        let Visit {
            client_id,
            principal,
            came,
            patience,
            reply,
        } = visit;
        let tick = self.now.tick;
        let paces = &self.exchange.admission.paces;
        let account = self.debts.account(&client_id, &principal);
        let session = self.clients.get(&client_id).copied();
        let connection = session.and_then(|id| self.sessions.get(id)?.connection());
        let tenant = connection.and_then(|id| self.tenants.get(id));
        let answer = match tenant.filter(|tenant| tenant.account == Some(account)) {
            Some(tenant) => tenant
                .inbound
                .reserve(paces, tick, came, patience, &self.counters),
            None => {
                let mut used = self.debts.take(account).unwrap_or_default();
                let answer = used.reserve(paces, tick, came, patience, &self.counters);
                self.debts.add(account, used, tick);
                answer
            }
        };
        reply.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use mqtt::{Connect, Disconnect, Version};

    use super::super::world::World;
    use super::*;
    use crate::admission::rate::Rate;
    use crate::limits::Limits;
    use crate::machine::mailbox::Mail;

    const V5: Version = Version::V5;

    fn messages(messages: u64) -> Came {
        Came { messages, bytes: 0 }
    }

    /// Ten messages in a second, and ten at once.
    fn world() -> World {
        World::with(Limits {
            client_messages_in: Some(Rate::of(10, 10)),
            ..Limits::default()
        })
    }

    impl World {
        /// One message in the name of a client, with two seconds of patience.
        fn visit(&mut self, client_id: &str, principal: &str) -> Result<u64, u64> {
            let answer = Arc::new(Mutex::new(None));
            let into = Arc::clone(&answer);
            let visit = Visit {
                client_id: client_id.into(),
                principal: principal.into(),
                came: messages(1),
                patience: 2_000,
                reply: Reply::new(move |it| *into.lock().unwrap() = Some(it)),
            };
            let home = self.exchange.home(client_id);
            self.exchange.mailbox(home).post(Mail::Visit(visit));
            self.deliver_mail();
            let answer: Result<u64, TooLong> = answer.lock().unwrap().take().expect("answered");
            answer.map_err(|too_long| too_long.wait)
        }

        fn charge(&mut self, id: ConnectionId, count: u64) -> Option<u64> {
            self.shards[id.shard()].charge(id, messages(count))
        }
    }

    #[test]
    fn a_client_has_one_account_however_it_comes() {
        let mut world = world();
        let first = world.client(0, V5, "car");
        assert_eq!(world.charge(first, 25), Some(1_600));
        assert_eq!(world.visit("car", "car"), Ok(1_600), "behind them");
        assert_eq!(world.visit("car", "else"), Ok(0), "somebody else");
        assert_eq!(world.charge(first, 0), Some(1_700), "and it behind that");
        // Taken over, the connection leaves its debt to the next one.
        let second = world.client(1, V5, "car");
        assert_eq!(world.charge(second, 0), Some(1_700));
        assert_eq!(world.charge(first, 0), None);
        world.send(second, Disconnect::default());
        assert_eq!(world.visit("car", "car"), Ok(1_700));
        // What came with the goodbye is known only after it.
        world.charge(second, 10);
        assert_eq!(world.visit("car", "car"), Err(2_800));
        let third = world.connect(2, Connect::new(V5, "car"));
        world.connack(third);
        assert_eq!(world.charge(third, 0), Some(2_800));
        world.wait(3);
        assert!(!world.shards[third.shard()].owes(third));
        assert_eq!(world.visit("car", "car"), Ok(0));
    }
}
