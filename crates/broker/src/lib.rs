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
//! # What is refused for now, and how
//! Not there yet, said so in CONNACK, and answered with its reason code when used anyway: QoS 2
//! (Maximum QoS 1; PUBLISH 0x9B), retained messages (Retain Available 0; 0x9A), shared
//! subscriptions (0x9E in SUBACK), enhanced authentication (0x8C), sessions that outlive their
//! connection (Session Expiry Interval 0). MQTT 3.1.1 has no words for these: SUBSCRIBE at QoS 2 is
//! granted 1, a shared subscription 0x80, a PUBLISH at QoS 2 or with RETAIN ends the connection,
//! session present is always 0.
//!
//! # What is bounded
//! Everything, by [`Limits`]. A receiver that does not keep up loses QoS 0 messages (counted) and
//! is disconnected when its QoS 1 queue is full; it never slows others down.

mod acknowledge;
mod hooks;
mod limits;
mod machine;
mod shell;
mod stats;

pub use acknowledge::Acknowledge;
pub use hooks::{ConnectAttempt, Decision, Hooks, Identity, Refusal, Tap};
pub use limits::Limits;
pub use mqtt::{Publish, ReasonCode};
pub use shell::broker::{
    Bind, Bound, Broker, BrokerConfig, BrokerHandle, ListenerConfig, ShutdownOutcome,
    ShutdownReport, StartError, Transport,
};
pub use stats::Stats;
