//! A fleet in a directory of its own, and what the world around it would bring.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::path::Path;

use fleet::{Actor, Certificate, Fleet, NewDevice, NewVehicle, PageRequest};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tempfile::TempDir;

pub struct Garage {
    pub dir: TempDir,
    pub fleet: Fleet,
    pub anna: Actor,
}

impl Garage {
    pub async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::open(dir.path()).await.unwrap();
        Self {
            dir,
            fleet,
            anna: Actor::new("person:anna").unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Stops everything and starts it again on the same directory.
    pub async fn reopen(self) -> Self {
        let Self { dir, fleet, anna } = self;
        fleet.close().await;
        drop(fleet);
        let fleet = Fleet::open(dir.path()).await.unwrap();
        Self { dir, fleet, anna }
    }

    pub async fn vehicle(&self, id: &str) {
        let new = NewVehicle {
            id: Some(id.into()),
            ..NewVehicle::default()
        };
        self.fleet.create_vehicle(&self.anna, new).await.unwrap();
    }

    pub async fn device(&self, id: &str, vehicle_id: &str) {
        let new = NewDevice {
            id: Some(id.into()),
            vehicle_id: vehicle_id.into(),
            kind: "tcu".into(),
        };
        self.fleet.create_device(&self.anna, new).await.unwrap();
    }

    /// A device with a fresh key and its certificate.
    pub async fn certificate(&self, device_id: &str) -> Certificate {
        self.fleet
            .issue_certificate(&self.anna, device_id, &request())
            .await
            .unwrap()
    }

    /// A vehicle `car-N` with a device `tcu-N` and its certificate.
    pub async fn car(&self, n: u32) -> Certificate {
        let (vehicle, device) = (format!("car-{n}"), format!("tcu-{n}"));
        self.vehicle(&vehicle).await;
        self.device(&device, &vehicle).await;
        self.certificate(&device).await
    }

    /// The audit log as lines, oldest first.
    pub async fn audit(&self) -> Vec<String> {
        let page = PageRequest::new(1000, None).unwrap();
        let mut entries = self.fleet.list_audit(None, &page).await.unwrap().items;
        entries.reverse();
        let line = |entry: &fleet::AuditEntry| {
            format!(
                "{} {} {} {} {}",
                entry.actor,
                entry.action,
                entry.object_kind,
                entry.object_id,
                entry.outcome.as_str()
            )
        };
        entries.iter().map(line).collect()
    }
}

/// A request as a well-behaved device makes it.
pub fn request() -> String {
    request_for(&KeyPair::generate().unwrap())
}

pub fn request_for(key: &KeyPair) -> String {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

pub fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
