//! Virtual vehicles: real protocols, recorded and synthetic drives, and load.
//!
//! Everything here is outside the server and knows only what a car maker and its cars know: the
//! HTTP API to register vehicles, and MQTT to send what they measure. Servers without that API get
//! their certificates from a [`private_ca`].
//!
//! ```text
//! provision ── Credentials ──┐
//! synthetic ── Message ──────┼── fleet (many vehicles) ──┐
//! recording ── Message ──────┴── simulate (as the CLI) ──┴── client ── MQTT ── server
//!                                load (bytes as fast as they go) ──────── MQTT ── server
//!                                weather (hostile clients beside good ones) ───── server
//!                                peers (the same work for every broker) ──────── brokers
//! ```

pub mod client;
pub mod credentials;
mod dice;
pub mod fleet;
mod histogram;
pub mod load;
pub mod message;
mod open_files;
#[cfg(target_os = "linux")] // one epoll, and what `/proc` says
pub mod peers;
pub mod private_ca;
pub mod provision;
pub mod recording;
pub mod simulate;
mod speaker;
pub mod synthetic;
pub mod weather;

pub use credentials::{Credentials, CredentialsError, anonymous_client_config};
pub use dice::Dice;
pub use histogram::Histogram;
pub use open_files::{OpenFilesError, allow_open_files};
