//! The directory: who is who, in memory, for the broker's hot path.
//!
//! ```text
//! certificate (fingerprint) ──► credential ──► device ──► vehicle
//!                              revoked?       standing    standing, model
//! ```
//! Loaded from the store at start and changed after every commit, in commit order. One change
//! touches one entry, so registering a hundred thousand devices in a row stays linear; a snapshot
//! swapped as a whole would copy the map each time.
//!
//! Two kinds of reads with two prices. *Connecting* looks a fingerprint up in one of 64 map shards
//! under a read lock that writers hold for one insert. *A message* looks nothing up: the principal
//! that [`Directory::identify`] returns points at its entries, and their standing is atomic. So a
//! disabled vehicle is refused on its very next message, even by a session that was authenticated
//! a moment before the change and never heard of it.
//!
//! Memory: 0.6 KB per vehicle with one device and one certificate. Revoked certificates
//! stay (so that the operator reads "revoked" instead of "unknown"), as do expired ones.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicI64, AtomicU8, Ordering},
    },
};

use jiff::Timestamp;

use crate::{DeviceId, Fingerprint, ModelName, VehicleId, access};

/// Whether something may take part. Deleted entries live on in the principals that point at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Standing {
    Enabled,
    Disabled,
    Deleted,
}

impl Standing {
    pub(crate) fn of(enabled: bool) -> Self {
        if enabled {
            Self::Enabled
        } else {
            Self::Disabled
        }
    }
}

#[derive(Debug)]
struct AtomicStanding(AtomicU8);

impl AtomicStanding {
    fn new(standing: Standing) -> Self {
        Self(AtomicU8::new(standing as u8))
    }

    fn set(&self, standing: Standing) {
        self.0.store(standing as u8, Ordering::Release);
    }

    fn get(&self) -> Standing {
        match self.0.load(Ordering::Acquire) {
            0 => Standing::Enabled,
            1 => Standing::Disabled,
            _ => Standing::Deleted,
        }
    }
}

#[derive(Debug)]
struct VehicleEntry {
    id: VehicleId,
    standing: AtomicStanding,
    model: RwLock<Option<ModelName>>,
}

#[derive(Debug)]
struct DeviceEntry {
    id: DeviceId,
    vehicle: Arc<VehicleEntry>,
    standing: AtomicStanding,
    /// Its certificates in the order they were issued. Weak, for they point here.
    credentials: RwLock<Vec<Weak<Credential>>>,
}

/// Not revoked; no certificate was revoked in 1970.
const NOT_REVOKED: i64 = 0;

#[derive(Debug)]
struct Credential {
    serial: String,
    device: Arc<DeviceEntry>,
    not_before_us: i64,
    not_after_us: i64,
    /// Microseconds since the Unix epoch, or [`NOT_REVOKED`].
    revoked_us: AtomicI64,
}

/// What the directory keeps of a certificate.
pub(crate) struct Credentials<'a> {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) serial: &'a str,
    pub(crate) device_id: &'a DeviceId,
    pub(crate) not_before_us: i64,
    pub(crate) not_after_us: i64,
    pub(crate) revoked_us: Option<i64>,
}

/// An authenticated device: proof that [`Directory::identify`] knew its certificate, or that
/// [`Directory::recall`] found one that it could come back with.
///
/// Cheap to clone. Stays connected to the directory: once the device, its vehicle or the
/// certificate loses its standing, `may_publish`, `may_subscribe` and `may_receive` say no.
#[derive(Clone, Debug)]
pub struct DevicePrincipal {
    credential: Arc<Credential>,
}

impl DevicePrincipal {
    /// The device.
    pub fn device_id(&self) -> &DeviceId {
        &self.credential.device.id
    }

    /// The vehicle it belongs to.
    pub fn vehicle_id(&self) -> &VehicleId {
        &self.credential.device.vehicle.id
    }

    /// The serial of the certificate it came with, lower-case hexadecimal.
    pub fn certificate_serial(&self) -> &str {
        &self.credential.serial
    }

    /// When that certificate ends, in microseconds since the Unix epoch.
    pub fn certificate_not_after_us(&self) -> i64 {
        self.credential.not_after_us
    }

    /// The part of the check that needs no clock.
    fn in_good_standing(&self) -> bool {
        let device = &self.credential.device;
        self.credential.revoked_us.load(Ordering::Acquire) == NOT_REVOKED
            && device.standing.get() == Standing::Enabled
            && device.vehicle.standing.get() == Standing::Enabled
    }
}

/// Why a certificate is not let in. The text is for the operator; the client learns only that it
/// is not authorised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No certificate with this fingerprint was issued here.
    #[error(
        "certificate {fingerprint} is not registered; register the device and let this fleet's CA sign its request"
    )]
    UnknownCertificate {
        /// SHA-256 of the presented certificate.
        fingerprint: Fingerprint,
    },
    /// The certificate was revoked.
    #[error("certificate {serial} of device `{device}` was revoked at {since}; issue a new one")]
    Revoked {
        /// Serial of the certificate.
        serial: String,
        /// The device it was issued for.
        device: DeviceId,
        /// When.
        since: Timestamp,
    },
    /// The certificate's time is over.
    #[error("certificate {serial} of device `{device}` expired at {not_after}; issue a new one")]
    Expired {
        /// Serial of the certificate.
        serial: String,
        /// The device it was issued for.
        device: DeviceId,
        /// Its end.
        not_after: Timestamp,
    },
    /// The certificate's time has not come.
    #[error(
        "certificate {serial} of device `{device}` is not valid before {not_before}; check this machine's clock"
    )]
    NotYetValid {
        /// Serial of the certificate.
        serial: String,
        /// The device it was issued for.
        device: DeviceId,
        /// Its begin.
        not_before: Timestamp,
    },
    /// The device is disabled.
    #[error("device `{device}` is disabled")]
    DeviceDisabled {
        /// The device.
        device: DeviceId,
    },
    /// The device was deleted while it was connected.
    #[error("device `{device}` was deleted")]
    DeviceDeleted {
        /// The device.
        device: DeviceId,
    },
    /// The vehicle is disabled.
    #[error("vehicle `{vehicle}` of device `{device}` is disabled")]
    VehicleDisabled {
        /// The vehicle.
        vehicle: VehicleId,
        /// The device that came.
        device: DeviceId,
    },
}

/// How much the directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryCounts {
    /// Registered vehicles.
    pub vehicles: usize,
    /// Registered devices.
    pub devices: usize,
    /// Known certificates, revoked and expired ones too.
    pub certificates: usize,
}

/// Who is who, in memory: answers the broker without touching the store.
///
/// Sees a change as soon as it is durable. [`Directory::identify`] and [`Directory::check`] are for
/// connecting and re-checking; `may_publish`, `may_subscribe` and `may_receive` are for every message
/// and cost a few atomic reads and one pass over the topic.
#[derive(Debug, Default)]
pub struct Directory {
    vehicles: Shards<VehicleId, Arc<VehicleEntry>>,
    devices: Shards<DeviceId, Arc<DeviceEntry>>,
    credentials: Shards<Fingerprint, Arc<Credential>>,
}

impl Directory {
    /// The device that this certificate (DER, as presented in the TLS handshake, which has proved
    /// possession of its key) was issued for, if it may take part at `now_us`.
    ///
    /// # Errors
    /// [`Denied`], with the reason.
    pub fn identify(&self, leaf_der: &[u8], now_us: i64) -> Result<DevicePrincipal, Denied> {
        let fingerprint = Fingerprint::of(leaf_der);
        let credential = self
            .credentials
            .get(&fingerprint)
            .ok_or(Denied::UnknownCertificate { fingerprint })?;
        let principal = DevicePrincipal { credential };
        self.check(&principal, now_us)?;
        Ok(principal)
    }

    /// The device as the holder of its newest certificate that it could come back with at `now_us`: for
    /// what is kept in its name while it is not there to show one (a stored session, a will that comes
    /// due). `None` if it is unknown or shut out, or has no such certificate left.
    pub fn recall(&self, device_id: &str, now_us: i64) -> Option<DevicePrincipal> {
        let device = self.devices.get(device_id)?;
        let credentials = device
            .credentials
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        credentials
            .iter()
            .rev()
            .filter_map(Weak::upgrade)
            .map(|credential| DevicePrincipal { credential })
            .find(|principal| self.check(principal, now_us).is_ok())
    }

    /// The devices that could not come back at `now_us`: disabled, or without a valid certificate. For
    /// whoever missed changes; goes through all devices, each under a short lock.
    pub fn shut_out(&self, now_us: i64) -> Vec<DeviceId> {
        let mut devices = self.devices.values();
        devices.retain(|device| self.recall(device.id.as_str(), now_us).is_none());
        devices.iter().map(|device| device.id.clone()).collect()
    }

    /// Whether a principal may still take part: to be asked after
    /// [`Change::AccessLost`](crate::Change::AccessLost), after a lagged change feed, and now and
    /// then by long sessions, whose certificate may end while they last.
    ///
    /// # Errors
    /// [`Denied`], with the reason.
    pub fn check(&self, principal: &DevicePrincipal, now_us: i64) -> Result<(), Denied> {
        let credential = &principal.credential;
        let (device, vehicle) = (&credential.device, &credential.device.vehicle);
        let (serial, device_id) = (|| credential.serial.clone(), || device.id.clone());
        let revoked_us = credential.revoked_us.load(Ordering::Acquire);
        if revoked_us != NOT_REVOKED {
            let since = timestamp(revoked_us);
            return Err(Denied::Revoked {
                serial: serial(),
                device: device_id(),
                since,
            });
        }
        if now_us < credential.not_before_us {
            let not_before = timestamp(credential.not_before_us);
            return Err(Denied::NotYetValid {
                serial: serial(),
                device: device_id(),
                not_before,
            });
        }
        if now_us > credential.not_after_us {
            let not_after = timestamp(credential.not_after_us);
            return Err(Denied::Expired {
                serial: serial(),
                device: device_id(),
                not_after,
            });
        }
        match (device.standing.get(), vehicle.standing.get()) {
            (Standing::Enabled, Standing::Enabled) => Ok(()),
            (Standing::Deleted, _) | (_, Standing::Deleted) => Err(Denied::DeviceDeleted {
                device: device_id(),
            }),
            (Standing::Disabled, _) => Err(Denied::DeviceDisabled {
                device: device_id(),
            }),
            (_, Standing::Disabled) => Err(Denied::VehicleDisabled {
                vehicle: vehicle.id.clone(),
                device: device_id(),
            }),
        }
    }

    /// Whether the device may publish to this topic: below
    /// `dt/{application}/{context}/{its vehicle}/`, all levels non-empty.
    pub fn may_publish(&self, who: &DevicePrincipal, topic: &str) -> bool {
        who.in_good_standing() && access::may_publish(who.vehicle_id().as_str(), topic)
    }

    /// Whether the device may subscribe to this filter: `dt/+/+/{its vehicle}/#`, `bc/#`, and
    /// whatever matches no more than those.
    pub fn may_subscribe(&self, who: &DevicePrincipal, filter: &str) -> bool {
        who.in_good_standing() && access::may_subscribe(who.vehicle_id().as_str(), filter)
    }

    /// Whether the device may be given a message on this topic: what `may_subscribe` says of the filter
    /// that matches this topic alone.
    pub fn may_receive(&self, who: &DevicePrincipal, topic: &str) -> bool {
        who.in_good_standing() && access::may_receive(who.vehicle_id().as_str(), topic)
    }

    /// The model of a vehicle, which names the DBC its frames are decoded with.
    pub fn model_of(&self, vehicle_id: &str) -> Option<ModelName> {
        let vehicle = self.vehicles.get(vehicle_id)?;
        vehicle
            .model
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How much the directory holds.
    pub fn counts(&self) -> DirectoryCounts {
        DirectoryCounts {
            vehicles: self.vehicles.len(),
            devices: self.devices.len(),
            certificates: self.credentials.len(),
        }
    }

    /// Every vehicle and device with its standing, to compare two directories by.
    #[cfg(test)]
    pub(crate) fn standings(&self) -> Vec<(String, Standing)> {
        let vehicles = self.vehicles.values().into_iter();
        let vehicles = vehicles.map(|entry| (entry.id.to_string(), entry.standing.get()));
        let devices = self.devices.values().into_iter();
        let devices = devices.map(|entry| (entry.id.to_string(), entry.standing.get()));
        let mut all: Vec<_> = vehicles.chain(devices).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }

    pub(crate) fn put_vehicle(&self, id: &VehicleId, standing: Standing, model: Option<ModelName>) {
        if let Some(vehicle) = self.vehicles.get(id.as_str()) {
            vehicle.standing.set(standing);
            *vehicle
                .model
                .write()
                .unwrap_or_else(PoisonError::into_inner) = model;
            return;
        }
        let entry = VehicleEntry {
            id: id.clone(),
            standing: AtomicStanding::new(standing),
            model: RwLock::new(model),
        };
        self.vehicles.insert(id.clone(), Arc::new(entry));
    }

    pub(crate) fn remove_vehicle(&self, id: &VehicleId) {
        if let Some(vehicle) = self.vehicles.remove(id.as_str()) {
            vehicle.standing.set(Standing::Deleted);
        }
    }

    /// The vehicle must be there already; without it the device stays unknown, which denies it.
    pub(crate) fn put_device(&self, id: &DeviceId, vehicle_id: &VehicleId, standing: Standing) {
        if let Some(device) = self.devices.get(id.as_str()) {
            device.standing.set(standing);
            return;
        }
        let Some(vehicle) = self.vehicles.get(vehicle_id.as_str()) else {
            tracing::error!(device = %id, vehicle = %vehicle_id, "device of an unknown vehicle is left out of the directory");
            return;
        };
        let entry = DeviceEntry {
            id: id.clone(),
            vehicle,
            standing: AtomicStanding::new(standing),
            credentials: RwLock::default(),
        };
        self.devices.insert(id.clone(), Arc::new(entry));
    }

    pub(crate) fn remove_device(&self, id: &DeviceId) {
        if let Some(device) = self.devices.remove(id.as_str()) {
            device.standing.set(Standing::Deleted);
        }
    }

    pub(crate) fn put_certificate(&self, certificate: Credentials<'_>) {
        let device = match (
            self.devices.get(certificate.device_id.as_str()),
            certificate.revoked_us,
        ) {
            (Some(device), _) => device,
            // A revoked certificate outlives its device.
            (None, Some(_)) => Arc::new(DeviceEntry::deleted(certificate.device_id)),
            (None, None) => {
                tracing::error!(
                    serial = certificate.serial,
                    device = %certificate.device_id,
                    "certificate of an unknown device is left out of the directory"
                );
                return;
            }
        };
        let credential = Arc::new(Credential {
            serial: certificate.serial.to_owned(),
            device,
            not_before_us: certificate.not_before_us,
            not_after_us: certificate.not_after_us,
            revoked_us: AtomicI64::new(certificate.revoked_us.unwrap_or(NOT_REVOKED)),
        });
        {
            let mut of_device = credential
                .device
                .credentials
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            // Most devices have one certificate and get another in a year.
            of_device.reserve_exact(1);
            of_device.push(Arc::downgrade(&credential));
        }
        self.credentials.insert(certificate.fingerprint, credential);
    }

    pub(crate) fn revoke_certificate(&self, fingerprint: &Fingerprint, at_us: i64) {
        if let Some(credential) = self.credentials.get(fingerprint) {
            credential.revoked_us.store(at_us, Ordering::Release);
        }
    }
}

impl DeviceEntry {
    fn deleted(id: &DeviceId) -> Self {
        let vehicle = VehicleEntry {
            id: VehicleId::stored(String::new()),
            standing: AtomicStanding::new(Standing::Deleted),
            model: RwLock::new(None),
        };
        Self {
            id: id.clone(),
            vehicle: Arc::new(vehicle),
            standing: AtomicStanding::new(Standing::Deleted),
            credentials: RwLock::default(),
        }
    }
}

/// Times of certificates are within the range of dates; anything else shows as its nearest date.
fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(if us < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

/// So many that a burst of connecting clients and one writer seldom meet.
const SHARDS: usize = 64;

/// A map in independently locked parts. Locks are held for one map operation, never across
/// anything else, so a poisoned lock still guards a sound map.
#[derive(Debug)]
struct Shards<K, V> {
    hasher: RandomState,
    parts: [RwLock<HashMap<K, V>>; SHARDS],
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            parts: std::array::from_fn(|_| RwLock::default()),
        }
    }
}

impl<K: Hash + Eq, V: Clone> Shards<K, V> {
    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> &RwLock<HashMap<K, V>> {
        // The remainder is below 64, so it fits every usize.
        &self.parts[(self.hasher.hash_one(key) % SHARDS as u64) as usize]
    }

    fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let part = self
            .part(key)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        part.get(key).cloned()
    }

    fn insert(&self, key: K, value: V) {
        let mut part = self
            .part(&key)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        part.insert(key, value);
    }

    fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut part = self
            .part(key)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        part.remove(key)
    }

    fn values(&self) -> Vec<V> {
        let part = |part: &RwLock<HashMap<K, V>>| {
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            part.values().cloned().collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(part).collect()
    }

    fn len(&self) -> usize {
        self.parts
            .iter()
            .map(|part| part.read().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with_one_car() -> (Directory, VehicleId, DeviceId) {
        let (vehicle, device) = (
            VehicleId::parse("car-1").unwrap(),
            DeviceId::parse("tcu-1").unwrap(),
        );
        let directory = Directory::default();
        directory.put_vehicle(&vehicle, Standing::Enabled, None);
        directory.put_device(&device, &vehicle, Standing::Enabled);
        directory.put_certificate(Credentials {
            fingerprint: Fingerprint::of(b"certificate"),
            serial: "01",
            device_id: &device,
            not_before_us: 100,
            not_after_us: 200,
            revoked_us: None,
        });
        (directory, vehicle, device)
    }

    #[test]
    fn validity_is_inclusive_at_both_ends() {
        let (directory, ..) = directory_with_one_car();
        for (now, expect) in [
            (99, "is not valid before"),
            (100, "fine"),
            (200, "fine"),
            (201, "expired at"),
        ] {
            let got = match directory.identify(b"certificate", now) {
                Ok(_) => "fine".to_owned(),
                Err(denied) => denied.to_string(),
            };
            assert!(got.contains(expect), "at {now}: {got}");
        }
    }

    #[test]
    fn a_principal_feels_every_loss_at_once_and_without_a_lookup() {
        let own = "dt/a/b/car-1/x";
        for (what, lose, regain) in [
            (
                "vehicle",
                (|d: &Directory, v: &VehicleId, _: &DeviceId| {
                    d.put_vehicle(v, Standing::Disabled, None);
                }) as fn(&Directory, &VehicleId, &DeviceId),
                Some(
                    (|d: &Directory, v: &VehicleId, _: &DeviceId| {
                        d.put_vehicle(v, Standing::Enabled, None);
                    }) as fn(&Directory, &VehicleId, &DeviceId),
                ),
            ),
            (
                "device",
                |d, v, id| d.put_device(id, v, Standing::Disabled),
                Some(|d, v, id| d.put_device(id, v, Standing::Enabled)),
            ),
            (
                "certificate",
                |d, _, _| d.revoke_certificate(&Fingerprint::of(b"certificate"), 1),
                None,
            ),
            ("deleted device", |d, _, id| d.remove_device(id), None),
            ("deleted vehicle", |d, v, _| d.remove_vehicle(v), None),
        ] {
            let (directory, vehicle, device) = directory_with_one_car();
            let principal = directory.identify(b"certificate", 150).unwrap();
            assert!(directory.may_publish(&principal, own), "{what}");
            assert!(directory.may_subscribe(&principal, "bc/#"), "{what}");
            lose(&directory, &vehicle, &device);
            assert!(!directory.may_publish(&principal, own), "{what}");
            assert!(!directory.may_subscribe(&principal, "bc/#"), "{what}");
            assert!(directory.check(&principal, 150).is_err(), "{what}");
            assert!(directory.identify(b"certificate", 150).is_err(), "{what}");
            if let Some(regain) = regain {
                regain(&directory, &vehicle, &device);
                assert!(directory.may_publish(&principal, own), "{what} again");
            }
        }
    }

    #[test]
    fn a_successor_with_the_same_name_does_not_revive_the_predecessor() {
        let (directory, vehicle, device) = directory_with_one_car();
        let principal = directory.identify(b"certificate", 150).unwrap();
        directory.remove_device(&device);
        directory.remove_vehicle(&vehicle);
        directory.put_vehicle(&vehicle, Standing::Enabled, None);
        directory.put_device(&device, &vehicle, Standing::Enabled);
        assert!(!directory.may_publish(&principal, "dt/a/b/car-1/x"));
        assert_eq!(
            directory.counts(),
            DirectoryCounts {
                vehicles: 1,
                devices: 1,
                certificates: 1
            }
        );
    }

    #[test]
    fn a_device_is_recalled_as_long_as_it_could_come_back() {
        let (directory, vehicle, device) = directory_with_one_car();
        let serial = |at| {
            let found = directory.recall("tcu-1", at);
            found.map(|principal| principal.certificate_serial().to_owned())
        };
        assert_eq!(serial(99), None, "its certificate is not valid yet");
        assert_eq!(serial(150).as_deref(), Some("01"));
        assert_eq!(serial(201), None, "it has expired");
        let next = |fingerprint: &[u8], serial, not_after_us| {
            directory.put_certificate(Credentials {
                fingerprint: Fingerprint::of(fingerprint),
                serial,
                device_id: &device,
                not_before_us: 100,
                not_after_us,
                revoked_us: None,
            });
        };
        next(b"second", "02", 300);
        assert_eq!(serial(150).as_deref(), Some("02"), "the newest");
        assert_eq!(serial(250).as_deref(), Some("02"));
        directory.revoke_certificate(&Fingerprint::of(b"second"), 160);
        assert_eq!(serial(170).as_deref(), Some("01"), "the other one is valid");
        assert!(directory.shut_out(170).is_empty());
        directory.revoke_certificate(&Fingerprint::of(b"certificate"), 170);
        assert_eq!(serial(180), None, "none is left");
        assert_eq!(directory.shut_out(180), std::slice::from_ref(&device));
        next(b"third", "03", 300);
        directory.put_vehicle(&vehicle, Standing::Disabled, None);
        assert_eq!(serial(180), None, "its vehicle is shut out");
        directory.put_vehicle(&vehicle, Standing::Enabled, None);
        let principal = directory.recall("tcu-1", 180).unwrap();
        assert!(directory.may_publish(&principal, "dt/a/b/car-1/x"));
        assert!(directory.may_receive(&principal, "bc/all"));
        assert!(!directory.may_receive(&principal, "dt/a/b/car-2/x"));
        directory.remove_device(&device);
        assert_eq!(serial(180), None);
        assert!(!directory.may_receive(&principal, "bc/all"));
        assert!(directory.recall("tcu-2", 180).is_none());
    }

    #[test]
    fn an_orphan_is_nobody() {
        let (directory, _, _) = directory_with_one_car();
        let stray = DeviceId::parse("stray").unwrap();
        directory.put_device(
            &stray,
            &VehicleId::parse("nowhere").unwrap(),
            Standing::Enabled,
        );
        directory.put_certificate(Credentials {
            fingerprint: Fingerprint::of(b"stray"),
            serial: "02",
            device_id: &stray,
            not_before_us: 0,
            not_after_us: i64::MAX,
            revoked_us: None,
        });
        assert!(matches!(
            directory.identify(b"stray", 1),
            Err(Denied::UnknownCertificate { .. })
        ));
    }
}
