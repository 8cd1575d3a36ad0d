//! Vehicles, devices, certificates, models and access: who belongs to the fleet and what they may
//! do, kept in one state store and answered from memory.
//!
//! - [`Fleet`] is the handle: it registers, changes and lists, each change durable, versioned and
//!   audited ([`Actor`]).
//! - [`Authority`] is the fleet CA; [`Fleet::issue_certificate`] turns a device's request into a
//!   certificate, [`Fleet::register_certificate`] takes one that another CA issued.
//! - [`Directory`] answers the broker's questions without touching the store: who is this
//!   certificate, may they publish here, may they subscribe to that.
//! - [`Change`]s tell the rest of the program what to look at again.
//!
//! This crate knows nothing of MQTT packets, streams or HTTP.

mod access;
mod audit;
mod authority;
mod ban;
mod certificate;
mod change;
mod device;
mod directory;
mod durable_file;
mod error;
mod fingerprint;
mod fleet;
mod foreign_certificate;
mod id;
mod load;
mod model;
mod page;
mod request;
mod server_certificate;
mod store;
mod vehicle;

pub use audit::{Actor, AuditEntry, Outcome};
pub use authority::Authority;
pub use ban::{Ban, MAX_BANS, NewBan};
pub use certificate::Certificate;
pub use change::{CHANGES_BUFFERED, Change};
pub use device::{Device, NewDevice};
pub use directory::{Denied, DevicePrincipal, Directory, DirectoryCounts};
pub use error::{FleetError, Kind};
pub use fingerprint::Fingerprint;
pub use fleet::{Fleet, FleetOptions};
pub use id::{DeviceId, MAX_ID_LENGTH, ModelName, VehicleId, Vin};
pub use model::{Model, ModelSummary, NewModel};
pub use page::{MAX_PAGE, Page, PageRequest};
pub use server_certificate::ServerCertificate;
pub use vehicle::{NewVehicle, Patch, Vehicle, VehiclePatch};
