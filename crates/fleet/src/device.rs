//! Devices: what has credentials and connects. A device belongs to one vehicle for life; a TCU
//! that moves to another vehicle is deleted there and registered here, with a new certificate.

use serde_json::json;
use sqlx::{Any, AnyConnection, Executor, Row, any::AnyRow};

use crate::{
    Actor, Change, DeviceId, Fleet, FleetError, Kind, Page, PageRequest, VehicleId,
    audit::{self, Act},
    certificate,
    directory::Standing,
    fleet::{check_version, now_us, unbroken},
    vehicle,
};

const MAX_KIND: usize = 64;

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id, for life.
    pub id: DeviceId,
    /// The vehicle it belongs to, for life.
    pub vehicle_id: VehicleId,
    /// What it is, in the operator's words: `tcu`, `ivi`, `phone`.
    pub kind: String,
    /// Whether it may connect (its vehicle must be enabled too).
    pub enabled: bool,
    /// Grows by one with every change; what `if_match` is compared with.
    pub version: u64,
    /// When it was registered, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// When it was last changed, in microseconds since the Unix epoch.
    pub updated_us: i64,
}

/// A device to register, as the caller typed it; checked by [`Fleet::create_device`].
#[derive(Clone, Debug, Default)]
pub struct NewDevice {
    /// Its id; a new UUID (version 7) if not given.
    pub id: Option<String>,
    /// The id of an existing vehicle.
    pub vehicle_id: String,
    /// What it is: 1 to 64 characters `[A-Za-z0-9._-]`.
    pub kind: String,
}

impl NewDevice {
    fn check(self, now_us: i64) -> Result<Device, FleetError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if self.kind.is_empty() || self.kind.len() > MAX_KIND || !self.kind.bytes().all(plain) {
            return Err(FleetError::invalid(
                "kind",
                format!(
                    "must be 1 to {MAX_KIND} characters of A-Z a-z 0-9 . _ -, for example `tcu`"
                ),
            ));
        }
        Ok(Device {
            id: match self.id {
                Some(id) => DeviceId::parse(&id)?,
                None => DeviceId::fresh(),
            },
            vehicle_id: VehicleId::parse(&self.vehicle_id)?,
            kind: self.kind,
            enabled: true,
            version: 1,
            created_us: now_us,
            updated_us: now_us,
        })
    }
}

const LIST: &str = "devices";

impl Fleet {
    /// Registers a device of an existing vehicle, enabled. It can connect once it has a
    /// certificate ([`Fleet::issue_certificate`]).
    ///
    /// # Errors
    /// [`FleetError::NotFound`] for the vehicle, [`FleetError::AlreadyExists`],
    /// [`FleetError::Invalid`], [`FleetError::Storage`].
    pub async fn create_device(&self, actor: &Actor, new: NewDevice) -> Result<Device, FleetError> {
        let device = new.check(now_us())?;
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let mut turn = fleet.store().write().await?;
            vehicle::must_find(turn.connection(), &device.vehicle_id).await?;
            insert(turn.connection(), &device).await?;
            let details = json!({ "vehicle": device.vehicle_id.as_str(), "kind": device.kind });
            let act = Act::done("device.create", Kind::Device, device.id.as_str(), details);
            audit::record(turn.connection(), &actor, act).await?;
            fleet.conclude_device(turn, &device, None).await?;
            Ok(device)
        })
        .await
    }

    /// One device.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Invalid`] for an impossible id,
    /// [`FleetError::Storage`].
    pub async fn get_device(&self, id: &str) -> Result<Device, FleetError> {
        must_find(self.store().pool(), &DeviceId::parse(id)?).await
    }

    /// Devices by id: all of them, or those of one vehicle.
    ///
    /// # Errors
    /// [`FleetError::NotFound`] for the vehicle, [`FleetError::Invalid`] for a foreign cursor or
    /// an impossible id, [`FleetError::Storage`].
    pub async fn list_devices(
        &self,
        vehicle_id: Option<&str>,
        request: &PageRequest,
    ) -> Result<Page<Device>, FleetError> {
        let after = request.after(LIST)?.unwrap_or_default();
        let query = match vehicle_id {
            None => sqlx::query("SELECT * FROM devices WHERE id > $1 ORDER BY id LIMIT $2")
                .bind(after)
                .bind(request.fetch_limit()),
            Some(vehicle_id) => {
                let vehicle_id = VehicleId::parse(vehicle_id)?;
                vehicle::must_find(self.store().pool(), &vehicle_id).await?;
                sqlx::query(
                    "SELECT * FROM devices WHERE vehicle_id = $3 AND id > $1 ORDER BY id LIMIT $2",
                )
                .bind(after)
                .bind(request.fetch_limit())
                .bind(vehicle_id.as_str().to_owned())
            }
        };
        let rows = query
            .fetch_all(self.store().pool())
            .await
            .map_err(FleetError::storage("list devices"))?;
        let devices = rows
            .iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(FleetError::storage("list devices"))?;
        Ok(request.page(LIST, devices, |device: &Device| device.id.as_str()))
    }

    /// Lets a device connect, or shuts it out at once: its next message is refused and
    /// [`Change::AccessLost`] is sent.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Conflict`], [`FleetError::Invalid`] for an
    /// impossible id, [`FleetError::Storage`].
    pub async fn set_device_enabled(
        &self,
        actor: &Actor,
        id: &str,
        enabled: bool,
        if_match: Option<u64>,
    ) -> Result<Device, FleetError> {
        let id = DeviceId::parse(id)?;
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let mut turn = fleet.store().write().await?;
            let mut device = must_find(turn.connection(), &id).await?;
            check_version(Kind::Device, &id, if_match, device.version)?;
            if device.enabled == enabled {
                return Ok(device);
            }
            device.enabled = enabled;
            device.version += 1;
            device.updated_us = now_us();
            sqlx::query(
                "UPDATE devices SET enabled = $2, version = $3, updated_us = $4 WHERE id = $1",
            )
            .bind(id.as_str())
            .bind(i16::from(enabled))
            .bind(device.version as i64)
            .bind(device.updated_us)
            .execute(turn.connection())
            .await
            .map_err(FleetError::storage("update a device"))?;
            let action = if enabled {
                "device.enable"
            } else {
                "device.disable"
            };
            let act = Act::done(action, Kind::Device, id.as_str(), json!({}));
            audit::record(turn.connection(), &actor, act).await?;
            let lost = (!enabled).then(|| Change::AccessLost {
                device_id: id.clone(),
            });
            fleet.conclude_device(turn, &device, lost).await?;
            Ok(device)
        })
        .await
    }

    /// Deletes a device and revokes its certificates.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Conflict`], [`FleetError::Invalid`] for an
    /// impossible id, [`FleetError::Storage`].
    pub async fn delete_device(
        &self,
        actor: &Actor,
        id: &str,
        if_match: Option<u64>,
    ) -> Result<(), FleetError> {
        let id = DeviceId::parse(id)?;
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let now = now_us();
            let mut turn = fleet.store().write().await?;
            let device = must_find(turn.connection(), &id).await?;
            check_version(Kind::Device, &id, if_match, device.version)?;
            let revoked = certificate::revoke_all_of(turn.connection(), &id, now).await?;
            sqlx::query("DELETE FROM devices WHERE id = $1")
                .bind(id.as_str())
                .execute(turn.connection())
                .await
                .map_err(FleetError::storage("delete a device"))?;
            let details = json!({
                "vehicle": device.vehicle_id.as_str(),
                "kind": device.kind,
                "certificates": revoked.iter().map(|(serial, _)| serial).collect::<Vec<_>>(),
            });
            let act = Act::done("device.delete", Kind::Device, id.as_str(), details);
            audit::record(turn.connection(), &actor, act).await?;
            let mirror = |directory: &crate::Directory| {
                for (_, fingerprint) in &revoked {
                    directory.revoke_certificate(fingerprint, now);
                }
                directory.remove_device(&id);
            };
            let changes = [
                Change::AccessLost {
                    device_id: id.clone(),
                },
                Change::DeviceChanged { id: id.clone() },
            ];
            fleet.conclude(turn, mirror, changes).await
        })
        .await
    }

    async fn conclude_device(
        &self,
        turn: crate::store::WriteTurn<'_>,
        device: &Device,
        lost: Option<Change>,
    ) -> Result<(), FleetError> {
        let standing = Standing::of(device.enabled);
        self.conclude(
            turn,
            |directory| directory.put_device(&device.id, &device.vehicle_id, standing),
            lost.into_iter().chain([Change::DeviceChanged {
                id: device.id.clone(),
            }]),
        )
        .await
    }
}

async fn insert(connection: &mut AnyConnection, device: &Device) -> Result<(), FleetError> {
    let inserted = sqlx::query(
        "INSERT INTO devices (id, vehicle_id, kind, enabled, version, created_us, updated_us) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(device.id.as_str())
    .bind(device.vehicle_id.as_str())
    .bind(device.kind.as_str())
    .bind(i16::from(device.enabled))
    .bind(device.version as i64)
    .bind(device.created_us)
    .bind(device.updated_us)
    .execute(connection)
    .await
    .map_err(FleetError::storage("register a device"))?;
    if inserted.rows_affected() == 1 {
        Ok(())
    } else {
        Err(FleetError::already_exists(Kind::Device, &device.id))
    }
}

pub(crate) async fn must_find<'e>(
    executor: impl Executor<'e, Database = Any>,
    id: &DeviceId,
) -> Result<Device, FleetError> {
    sqlx::query("SELECT * FROM devices WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(executor)
        .await
        .and_then(|row| row.as_ref().map(read).transpose())
        .map_err(FleetError::storage("read a device"))?
        .ok_or_else(|| FleetError::not_found(Kind::Device, id))
}

pub(crate) async fn ids_of(
    connection: &mut AnyConnection,
    vehicle_id: &VehicleId,
) -> Result<Vec<DeviceId>, FleetError> {
    let ids: Vec<String> =
        sqlx::query_scalar("SELECT id FROM devices WHERE vehicle_id = $1 ORDER BY id")
            .bind(vehicle_id.as_str())
            .fetch_all(connection)
            .await
            .map_err(FleetError::storage("list the devices of a vehicle"))?;
    Ok(ids.into_iter().map(DeviceId::stored).collect())
}

fn read(row: &AnyRow) -> Result<Device, sqlx::Error> {
    Ok(Device {
        id: DeviceId::stored(row.try_get("id")?),
        vehicle_id: VehicleId::stored(row.try_get("vehicle_id")?),
        kind: row.try_get("kind")?,
        enabled: row.try_get::<i16, _>("enabled")? != 0,
        version: row.try_get::<i64, _>("version")? as u64,
        created_us: row.try_get("created_us")?,
        updated_us: row.try_get("updated_us")?,
    })
}
