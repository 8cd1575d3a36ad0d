//! An outside that writes down who came and went, for the operator's side of the broker.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use broker::{
    Acknowledge, Broker, BrokerConfig, BrokerHandle, ConnectAttempt, Decision, DisconnectedBy,
    Hooks, Identity, Limits, ListenerConfig, Presence, PresenceEvent, Refusal, Store, Tap,
    Transport,
};
use mqtt::{Connect, Publish, ReasonCode, Version};

use super::{Client, dial, unhurried, until};

/// Lets everybody in but `stranger`. The principal is the user name, or else the client identifier;
/// it belongs to the group that its name has behind `@`. Nobody may do anything below `forbidden/`.
#[derive(Default)]
pub struct Witness {
    seen: Mutex<Vec<Seen>>,
}

/// An event as it was told.
#[derive(Debug, Clone)]
pub struct Seen {
    pub client: String,
    pub requested: Option<String>,
    pub principal: Option<String>,
    pub group: Option<String>,
    pub peer: SocketAddr,
    pub listener: String,
    pub at_us: i64,
    pub sequence: u64,
    pub connection: u64,
    pub what: What,
}

/// What was told of, with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Connected {
        clean_start: bool,
        keep_alive: u16,
        session_present: bool,
        transport: &'static str,
        version: Version,
    },
    Disconnected(ReasonCode, DisconnectedBy, WillSeen),
    ConnectFailed(ReasonCode, String),
    Subscribed(Vec<String>),
    Unsubscribed(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WillSeen {
    Published,
    Not,
}

impl Hooks for Witness {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        let principal = attempt.username.unwrap_or(attempt.client_id);
        if principal == "stranger" {
            return Err(Refusal::new(ReasonCode::NotAuthorized, "nobody knows it"));
        }
        Ok(identity(attempt.client_id, principal))
    }

    fn may_publish(&self, _: &Identity, topic: &str) -> Decision {
        match topic.starts_with("forbidden/") {
            true => Decision::Deny,
            false => Decision::Allow,
        }
    }

    fn may_subscribe(&self, who: &Identity, filter: &str) -> Decision {
        self.may_publish(who, filter)
    }

    fn recall(&self, client_id: &str, principal: &str) -> Option<Identity> {
        Some(identity(client_id, principal))
    }

    fn tap(&self, _: &Identity, _: &Publish, _: i64, _: Acknowledge) -> Tap {
        Tap::NotWanted
    }

    fn presence(&self, event: &Presence<'_>) {
        let owned = |filters: &[&str]| filters.iter().map(|f| (*f).to_owned()).collect();
        let what = match event.what {
            PresenceEvent::Connected {
                version,
                clean_start,
                keep_alive,
                session_present,
                transport,
            } => What::Connected {
                clean_start,
                keep_alive,
                session_present,
                transport,
                version,
            },
            PresenceEvent::Disconnected {
                reason,
                by,
                will_published,
                ..
            } => What::Disconnected(
                reason,
                by,
                match will_published {
                    true => WillSeen::Published,
                    false => WillSeen::Not,
                },
            ),
            PresenceEvent::ConnectFailed { reason, detail } => {
                What::ConnectFailed(reason, detail.to_owned())
            }
            PresenceEvent::Subscribed { filters } => What::Subscribed(owned(filters)),
            PresenceEvent::Unsubscribed { filters } => What::Unsubscribed(owned(filters)),
            other => panic!("not known here: {other:?}"),
        };
        let identity = event.identity;
        self.seen.lock().unwrap().push(Seen {
            client: event.client_id.to_owned(),
            requested: event.requested_client_id.map(str::to_owned),
            principal: identity.map(|identity| identity.principal.to_string()),
            group: identity.and_then(|i| Some(i.group.as_ref()?.to_string())),
            peer: event.peer,
            listener: event.listener.to_owned(),
            at_us: event.at_us,
            sequence: event.sequence,
            connection: event.connection,
            what,
        });
    }
}

fn identity(client_id: &str, principal: &str) -> Identity {
    let identity = Identity::new(client_id, principal);
    match principal.split_once('@') {
        Some((_, group)) => identity.with_group(group),
        None => identity,
    }
}

impl Witness {
    /// All events so far, in the order of their numbers.
    pub fn all(&self) -> Vec<Seen> {
        let mut seen = self.seen.lock().unwrap().clone();
        seen.sort_by_key(|event| event.sequence);
        seen
    }

    /// The events of one client.
    pub fn of(&self, client: &str) -> Vec<Seen> {
        let mut seen = self.all();
        seen.retain(|event| event.client == client);
        seen
    }

    /// Waits until a client has `count` events, and says what they are.
    pub fn whats(&self, client: &str, count: usize) -> Vec<What> {
        until(&format!("{count} events of {client}"), || {
            self.of(client).len() >= count
        });
        self.of(client)
            .into_iter()
            .map(|event| event.what)
            .collect()
    }
}

/// A broker with two workers and a witness.
pub struct Scene {
    pub handle: BrokerHandle,
    pub witness: Arc<Witness>,
    pub addr: SocketAddr,
}

pub fn scene() -> Scene {
    scene_with(Limits::default(), Store::Memory)
}

pub fn scene_with(limits: Limits, store: Store) -> Scene {
    let witness = Arc::new(Witness::default());
    let mut config = BrokerConfig::new(vec![ListenerConfig::new(
        "test",
        SocketAddr::from(([127, 0, 0, 1], 0)),
        Transport::Tcp,
    )]);
    config.limits = unhurried(limits);
    config.workers = 2.try_into().ok();
    config.store = store;
    let handle = Broker::start(config, Arc::clone(&witness) as _).expect("starts");
    let addr = handle.listeners()[0].addr;
    Scene {
        handle,
        witness,
        addr,
    }
}

impl Scene {
    /// Connects and expects to be accepted.
    pub fn enter(&self, connect: Connect) -> Client {
        let mut client = Client::open(dial(self.addr), connect);
        assert_eq!(client.connack().reason, ReasonCode::Success);
        client
    }

    /// Connects and expects to be refused.
    pub fn is_refused(&self, connect: Connect, reason: ReasonCode) {
        let mut client = Client::open(dial(self.addr), connect);
        assert_eq!(client.connack().reason, reason);
        assert_eq!(client.next(), None);
    }
}

/// CONNECT of a client of a principal.
pub fn connect_as(version: Version, name: &str, principal: &str) -> Connect {
    Connect {
        username: Some(principal.into()),
        ..Connect::new(version, name)
    }
}
