//! What changed, told to whoever keeps something that depends on it.
//!
//! A change is sent after it is on disk and in the directory, so a receiver that looks there sees
//! at least that change. The feed is a hint to look, not a log: a receiver that falls behind gets
//! `RecvError::Lagged` and has missed an unknown number of changes. It must then re-check
//! everything it holds: ask [`Directory::check`](crate::Directory::check) for every live session
//! and re-read the models it decodes with. Nothing is unsafe meanwhile, because
//! [`Directory::may_publish`](crate::Directory::may_publish) and
//! [`Directory::may_subscribe`](crate::Directory::may_subscribe) refuse a principal that has lost
//! its standing whether or not the notice arrived.

use crate::{DeviceId, ModelName, VehicleId};

/// How many changes a receiver may be behind: an operator's script that disables a few thousand
/// vehicles stays within it; at some 32 bytes a change the buffer is 128 KiB.
pub const CHANGES_BUFFERED: usize = 4096;

/// One change. Carries names only: the state is where it always is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sessions of this device may have lost their right to be connected: it or its vehicle was
    /// disabled or deleted, or one of its certificates was revoked. Disconnect every session for
    /// which [`Directory::check`](crate::Directory::check) now says no.
    AccessLost {
        /// The device.
        device_id: DeviceId,
    },
    /// A vehicle was created, changed, enabled, disabled or deleted.
    VehicleChanged {
        /// The vehicle.
        id: VehicleId,
    },
    /// A device was created, enabled, disabled or deleted, or its certificates changed.
    DeviceChanged {
        /// The device.
        id: DeviceId,
    },
    /// A model was created or changed.
    ModelChanged {
        /// The model.
        name: ModelName,
    },
}
