//! Filling the directory at start: three narrow tables, each read on a connection and a task of
//! its own, then linked in order (vehicles, devices of vehicles, certificates of devices).
//!
//! Nobody writes meanwhile: the data directory is locked and the fleet is not open yet. The rows
//! are held twice for a moment, some 30 MB for a hundred thousand vehicles.

use std::time::Instant;

use futures::TryStreamExt;
use sqlx::{AnyPool, Row, any::AnyRow};

use crate::{
    DeviceId, Directory, Fingerprint, FleetError, ModelName, VehicleId,
    directory::{Credentials, Standing},
    fleet::joined,
    store::Store,
};

struct VehicleRow {
    id: VehicleId,
    standing: Standing,
    model: Option<ModelName>,
}

struct DeviceRow {
    id: DeviceId,
    vehicle_id: VehicleId,
    standing: Standing,
}

struct CertificateRow {
    fingerprint: String,
    serial: String,
    device_id: DeviceId,
    not_before_us: i64,
    not_after_us: i64,
    revoked_us: Option<i64>,
}

/// Reads everything the hot path needs.
pub(crate) async fn load(store: &Store) -> Result<Directory, FleetError> {
    let begin = Instant::now();
    let pool = store.pool();
    let vehicles = tokio::spawn(read_all(
        pool.clone(),
        "load vehicles",
        "SELECT id, enabled, model FROM vehicles",
        |row| {
            Ok(VehicleRow {
                id: VehicleId::stored(row.try_get(0)?),
                standing: Standing::of(row.try_get::<i16, _>(1)? != 0),
                model: row.try_get::<Option<String>, _>(2)?.map(ModelName::stored),
            })
        },
    ));
    let devices = tokio::spawn(read_all(
        pool.clone(),
        "load devices",
        "SELECT id, vehicle_id, enabled FROM devices",
        |row| {
            Ok(DeviceRow {
                id: DeviceId::stored(row.try_get(0)?),
                vehicle_id: VehicleId::stored(row.try_get(1)?),
                standing: Standing::of(row.try_get::<i16, _>(2)? != 0),
            })
        },
    ));
    let certificates = tokio::spawn(read_all(
        pool.clone(),
        "load certificates",
        "SELECT fingerprint, serial, device_id, not_before_us, not_after_us, revoked_us \
         FROM certificates",
        |row| {
            Ok(CertificateRow {
                fingerprint: row.try_get(0)?,
                serial: row.try_get(1)?,
                device_id: DeviceId::stored(row.try_get(2)?),
                not_before_us: row.try_get(3)?,
                not_after_us: row.try_get(4)?,
                revoked_us: row.try_get(5)?,
            })
        },
    ));

    let directory = Directory::default();
    for row in joined(vehicles).await? {
        directory.put_vehicle(&row.id, row.standing, row.model);
    }
    for row in joined(devices).await? {
        directory.put_device(&row.id, &row.vehicle_id, row.standing);
    }
    for row in joined(certificates).await? {
        let Some(fingerprint) = Fingerprint::parse(&row.fingerprint) else {
            return Err(FleetError::Damaged {
                table: "certificates",
                id: row.serial,
                reason: "its fingerprint is not 64 hexadecimal digits".to_owned(),
            });
        };
        directory.put_certificate(Credentials {
            fingerprint,
            serial: &row.serial,
            device_id: &row.device_id,
            not_before_us: row.not_before_us,
            not_after_us: row.not_after_us,
            revoked_us: row.revoked_us,
        });
    }

    let (counts, took) = (directory.counts(), begin.elapsed());
    tracing::info!(
        vehicles = counts.vehicles,
        devices = counts.devices,
        certificates = counts.certificates,
        ?took,
        "directory loaded"
    );
    Ok(directory)
}

async fn read_all<T>(
    pool: AnyPool,
    doing: &'static str,
    query: &'static str,
    read: fn(&AnyRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, FleetError> {
    let rows = sqlx::query(query).fetch(&pool);
    rows.and_then(|row| std::future::ready(read(&row)))
        .try_collect()
        .await
        .map_err(FleetError::storage(doing))
}
