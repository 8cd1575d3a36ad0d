//! Storms: each prepares, waits until it is time ([`Scene::prepared`]), does its worst until the time is
//! over, and says what it did.
//!
//! [`Scene::prepared`]: super::scene::Scene::prepared

pub(super) mod bad_credentials;
pub(super) mod clock_jump;
mod crowd;
pub(super) mod deep_topics;
pub(super) mod disk_full;
pub(super) mod files_exhausted;
pub(super) mod flapping;
pub(super) mod flood;
pub(super) mod half_handshake;
pub(super) mod half_open;
pub(super) mod malformed;
pub(super) mod many_subscriptions;
pub(super) mod memory_limit;
pub(super) mod reconnect;
pub(super) mod retained;
pub(super) mod slow_readers;
pub(super) mod trickle;
pub(super) mod unfinished;
mod volley;

/// What every storm needs.
mod prelude {
    pub(super) use std::time::Duration;

    pub(super) use mqtt::{Packet, QoS};
    pub(super) use tokio::time::{Instant, sleep};

    pub(super) use super::crowd::crowd;
    pub(super) use crate::weather::scene::{Receives, Scene};
    pub(super) use crate::weather::storm::StormError;
    pub(super) use crate::weather::visitor::{Code, Turned, Visitor};
}
