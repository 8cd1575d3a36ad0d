//! MQTT broker: takes connections, keeps subscriptions, delivers messages.
//!
//! Speaks MQTT 3.1.1 and 5 over TCP and TLS. Two halves: the *machine* decides and does no IO, the
//! *shell* owns sockets, threads and the clock. What the broker must ask the outside (who is this,
//! may they, who takes a durable copy) goes through [`Hooks`]; it knows nothing of vehicles.
//!
//! # The way of a message
//! ```text
//! socket -> link (bytes) -> codec -> connection (protocol) -> shard
//!   shard: may publish? -> tap (copy for the log) -> filter index -> one frame per layout
//!     -> outboxes of receivers on this shard, one item of mail for each other shard
//!   log: synced -> Acknowledge::done -> mailbox -> PUBACK, in the order of arrival
//! ```
//!
//! # What survives what
//! A *transient* session ends with its connection. A *stored* one outlives it, and with
//! [`Store::Directory`] the broker too: every change of it is in the journal before anybody is told.
//!
//! # What an operator sees
//! [`BrokerHandle::clients`] and [`BrokerHandle::client`] ask the workers, [`BrokerHandle::trace`]
//! follows clients packet by packet, and [`Hooks::presence`] is told who comes and goes. None of it
//! costs anything per message while nobody looks.
//!
//! # What is bounded
//! Everything, by [`Limits`]. A receiver that does not keep up loses QoS 0 messages (counted); when its
//! queue of QoS 1 and 2 is full, it is disconnected if its session is transient, and
//! [`Limits::overflow`] applies if it is stored. It never slows others down.
//!
//! Who may come at all, and how much of it, is decided in `admission`: rates, bans, overload, memory.

mod acknowledge;
mod address_range;
mod admission;
mod clients;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hooks;
mod limits;
mod listener_limits;
mod machine;
mod memory_bound;
mod presence;
#[doc(hidden)]
pub mod proxy;
mod recovery;
mod shell;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod stats;
mod trace;
mod transport;
#[doc(hidden)] // public for the fuzzer
pub mod websocket;

pub use acknowledge::Acknowledge;
pub use address_range::{AddressRange, AddressRangeError};
pub use admission::bans::{Ban, BanTarget, BanTargetError};
pub use admission::hold_off::{HeldOff, HoldOff, HoldOffReason};
pub use admission::overload::Overload;
pub use admission::rate::Rate;
pub use clients::{
    ClientDetail, ClientPage, ClientQuery, ClientSummary, ConnectionDetail, ConnectionSummary,
    MAX_CLIENTS_PER_PAGE, MAX_PURGES, MAX_SUBSCRIPTIONS_SHOWN, PurgeError, Purged, SessionDetail,
    SubscriptionDetail, WillDetail,
};
pub use hooks::{
    AuthStep, ConnectAttempt, Decision, EnhancedAuthentication, Hooks, Identity, Refusal, Tap,
};
pub use journal::Durability;
pub use limits::{Limits, Overflow, Retain};
pub use listener_limits::ListenerLimits;
pub use machine::share::ShareStrategy;
pub use memory_bound::Carrier;
pub use mqtt::{Publish, QoS, ReasonCode, Version};
pub use presence::{DisconnectedBy, FILTERS_PER_EVENT, Presence, PresenceEvent, Traffic};
pub use proxy::Proxied;
pub use recovery::Recovery;
pub use shell::broker::{
    Bound, Broker, BrokerConfig, BrokerHandle, ShutdownOutcome, ShutdownReport, StartError, Store,
    StoreConfig,
};
pub use shell::operator::Trace;
pub use shell::quic::QuicSettingsError;
pub use shell::store::StoreError;
pub use shell::visitor::{Denied, RateUnit, Visitor, Whom};
pub use shell::web::{WebConnection, WebIo};
pub use stats::{Stats, StoreStats};
pub use trace::{
    Direction, MAX_TRACE_CAPACITY, MAX_TRACE_PAYLOAD, MAX_TRACED, MAX_TRACES, TraceError,
    TraceEvent, TraceFilter, TraceOptions, TracePayload,
};
pub use transport::{
    Bind, ClientCertificate, ListenerConfig, Proxies, Tls, TlsSettings, Transport, Web, WebService,
    WebSocket,
};
