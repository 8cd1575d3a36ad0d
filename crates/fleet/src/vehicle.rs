//! Vehicles: what a device belongs to, and what every record is about.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::{Any, AnyConnection, Executor, Row, any::AnyRow};

use crate::{
    Actor, Change, DeviceId, Fingerprint, Fleet, FleetError, Kind, ModelName, Page, PageRequest,
    VehicleId, Vin,
    audit::{self, Act},
    certificate, device,
    directory::Standing,
    fleet::{check_version, now_us, unbroken},
    model,
};

/// Attributes of one vehicle, names and values together, in bytes (Event Grid's limit).
const MAX_ATTRIBUTES_BYTES: usize = 4096;
const MAX_ATTRIBUTE_NAME: usize = 64;

/// A registered vehicle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vehicle {
    /// Its id, for life.
    pub id: VehicleId,
    /// Its vehicle identification number, unique in the fleet.
    pub vin: Option<Vin>,
    /// Its model, which says how its raw frames are decoded.
    pub model: Option<ModelName>,
    /// What else the operator wants to know it by.
    pub attributes: BTreeMap<String, String>,
    /// Whether its devices may connect.
    pub enabled: bool,
    /// Grows by one with every change; what `if_match` is compared with.
    pub version: u64,
    /// When it was registered, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// When it was last changed, in microseconds since the Unix epoch.
    pub updated_us: i64,
}

/// A vehicle to register, as the caller typed it; checked by [`Fleet::create_vehicle`].
#[derive(Clone, Debug, Default)]
pub struct NewVehicle {
    /// Its id; a new UUID (version 7) if not given.
    pub id: Option<String>,
    /// Its VIN.
    pub vin: Option<String>,
    /// The name of an existing model.
    pub model: Option<String>,
    /// Names of 1 to 64 characters `[A-Za-z0-9_]`; names and values together at most 4096 bytes.
    pub attributes: BTreeMap<String, String>,
}

/// What to do with one optional field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Leave it as it is.
    #[default]
    Keep,
    /// Make it empty.
    Clear,
    /// Give it this value.
    Set(T),
}

impl<T> Patch<T> {
    fn parse<U>(
        self,
        parse: impl FnOnce(T) -> Result<U, FleetError>,
    ) -> Result<Patch<U>, FleetError> {
        Ok(match self {
            Self::Keep => Patch::Keep,
            Self::Clear => Patch::Clear,
            Self::Set(value) => Patch::Set(parse(value)?),
        })
    }

    fn apply(self, field: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = None,
            Self::Set(value) => *field = Some(value),
        }
    }
}

/// A change of a vehicle; what is not named stays.
#[derive(Clone, Debug, Default)]
pub struct VehiclePatch {
    /// Its VIN.
    pub vin: Patch<String>,
    /// The name of an existing model.
    pub model: Patch<String>,
    /// All its attributes; `None` leaves them.
    pub attributes: Option<BTreeMap<String, String>>,
}

fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), FleetError> {
    let invalid = |reason: String| Err(FleetError::invalid("attributes", reason));
    for name in attributes.keys() {
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !plain || name.is_empty() || name.len() > MAX_ATTRIBUTE_NAME {
            return invalid(format!(
                "the name {name:?} is not allowed; use 1 to {MAX_ATTRIBUTE_NAME} characters of A-Z a-z 0-9 _"
            ));
        }
    }
    let bytes: usize = attributes
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > MAX_ATTRIBUTES_BYTES {
        return invalid(format!(
            "have {bytes} bytes; allowed are {MAX_ATTRIBUTES_BYTES}"
        ));
    }
    Ok(())
}

impl NewVehicle {
    fn check(self, now_us: i64) -> Result<Vehicle, FleetError> {
        check_attributes(&self.attributes)?;
        Ok(Vehicle {
            id: match self.id {
                Some(id) => VehicleId::parse(&id)?,
                None => VehicleId::fresh(),
            },
            vin: self.vin.as_deref().map(Vin::parse).transpose()?,
            model: self.model.as_deref().map(ModelName::parse).transpose()?,
            attributes: self.attributes,
            enabled: true,
            version: 1,
            created_us: now_us,
            updated_us: now_us,
        })
    }
}

const LIST: &str = "vehicles";

impl Fleet {
    /// Registers a vehicle, enabled.
    ///
    /// # Errors
    /// [`FleetError::AlreadyExists`] naming the id or the VIN that is taken,
    /// [`FleetError::Invalid`], [`FleetError::Storage`].
    pub async fn create_vehicle(
        &self,
        actor: &Actor,
        new: NewVehicle,
    ) -> Result<Vehicle, FleetError> {
        let vehicle = new.check(now_us())?;
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let mut turn = fleet.store().write().await?;
            if let Some(model) = &vehicle.model {
                model::must_exist(turn.connection(), model).await?;
            }
            insert(turn.connection(), &vehicle).await?;
            let act = Act::done(
                "vehicle.create",
                Kind::Vehicle,
                vehicle.id.as_str(),
                state(&vehicle),
            );
            audit::record(turn.connection(), &actor, act).await?;
            fleet.conclude_vehicle(turn, &vehicle, Vec::new()).await?;
            Ok(vehicle)
        })
        .await
    }

    /// One vehicle.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Invalid`] for an impossible id,
    /// [`FleetError::Storage`].
    pub async fn get_vehicle(&self, id: &str) -> Result<Vehicle, FleetError> {
        must_find(self.store().pool(), &VehicleId::parse(id)?).await
    }

    /// All vehicles, by id.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for a foreign cursor, [`FleetError::Storage`].
    pub async fn list_vehicles(&self, request: &PageRequest) -> Result<Page<Vehicle>, FleetError> {
        let rows = sqlx::query("SELECT * FROM vehicles WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(request.after(LIST)?.unwrap_or_default())
            .bind(request.fetch_limit())
            .fetch_all(self.store().pool())
            .await
            .map_err(FleetError::storage("list vehicles"))?;
        let vehicles = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(request.page(LIST, vehicles, |vehicle: &Vehicle| vehicle.id.as_str()))
    }

    /// Changes what is named in `patch`. A patch that changes nothing leaves the version alone.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Conflict`], [`FleetError::AlreadyExists`] for a
    /// taken VIN, [`FleetError::Invalid`], [`FleetError::Storage`].
    pub async fn update_vehicle(
        &self,
        actor: &Actor,
        id: &str,
        patch: VehiclePatch,
        if_match: Option<u64>,
    ) -> Result<Vehicle, FleetError> {
        let id = VehicleId::parse(id)?;
        let vin = patch.vin.parse(|text| Vin::parse(&text))?;
        let model = patch.model.parse(|text| ModelName::parse(&text))?;
        if let Some(attributes) = &patch.attributes {
            check_attributes(attributes)?;
        }
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let mut turn = fleet.store().write().await?;
            let before = must_find(turn.connection(), &id).await?;
            check_version(Kind::Vehicle, &id, if_match, before.version)?;
            let mut vehicle = before.clone();
            if let Patch::Set(model) = &model {
                model::must_exist(turn.connection(), model).await?;
            }
            vin.apply(&mut vehicle.vin);
            model.apply(&mut vehicle.model);
            if let Some(attributes) = patch.attributes {
                vehicle.attributes = attributes;
            }
            if vehicle == before {
                return Ok(before);
            }
            update(turn.connection(), &mut vehicle).await?;
            let details = json!({ "before": state(&before), "after": state(&vehicle) });
            let act = Act::done("vehicle.update", Kind::Vehicle, id.as_str(), details);
            audit::record(turn.connection(), &actor, act).await?;
            fleet.conclude_vehicle(turn, &vehicle, Vec::new()).await?;
            Ok(vehicle)
        })
        .await
    }

    /// Lets the devices of a vehicle connect, or shuts them all out at once: their next message is
    /// refused and [`Change::AccessLost`] is sent for each.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Conflict`], [`FleetError::Invalid`] for an
    /// impossible id, [`FleetError::Storage`].
    pub async fn set_vehicle_enabled(
        &self,
        actor: &Actor,
        id: &str,
        enabled: bool,
        if_match: Option<u64>,
    ) -> Result<Vehicle, FleetError> {
        let id = VehicleId::parse(id)?;
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let mut turn = fleet.store().write().await?;
            let mut vehicle = must_find(turn.connection(), &id).await?;
            check_version(Kind::Vehicle, &id, if_match, vehicle.version)?;
            if vehicle.enabled == enabled {
                return Ok(vehicle);
            }
            vehicle.enabled = enabled;
            update(turn.connection(), &mut vehicle).await?;
            let action = if enabled {
                "vehicle.enable"
            } else {
                "vehicle.disable"
            };
            let act = Act::done(action, Kind::Vehicle, id.as_str(), json!({}));
            audit::record(turn.connection(), &actor, act).await?;
            let shut_out = match enabled {
                true => Vec::new(),
                false => device::ids_of(turn.connection(), &id).await?,
            };
            fleet.conclude_vehicle(turn, &vehicle, shut_out).await?;
            Ok(vehicle)
        })
        .await
    }

    /// Deletes a vehicle with its devices and revokes their certificates. What it sent stays where
    /// it was kept; the audit log keeps its traces.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Conflict`], [`FleetError::Invalid`] for an
    /// impossible id, [`FleetError::Storage`].
    pub async fn delete_vehicle(
        &self,
        actor: &Actor,
        id: &str,
        if_match: Option<u64>,
    ) -> Result<(), FleetError> {
        let id = VehicleId::parse(id)?;
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let now = now_us();
            let mut turn = fleet.store().write().await?;
            let vehicle = must_find(turn.connection(), &id).await?;
            check_version(Kind::Vehicle, &id, if_match, vehicle.version)?;
            let devices = device::ids_of(turn.connection(), &id).await?;
            let mut revoked: Vec<(String, Fingerprint)> = Vec::new();
            for device in &devices {
                revoked.extend(certificate::revoke_all_of(turn.connection(), device, now).await?);
            }
            for statement in [
                "DELETE FROM devices WHERE vehicle_id = $1",
                "DELETE FROM vehicles WHERE id = $1",
            ] {
                sqlx::query(statement)
                    .bind(id.as_str())
                    .execute(turn.connection())
                    .await
                    .map_err(FleetError::storage("delete a vehicle"))?;
            }
            let details = json!({
                "was": state(&vehicle),
                "devices": devices.iter().map(DeviceId::as_str).collect::<Vec<_>>(),
                "certificates": revoked.iter().map(|(serial, _)| serial).collect::<Vec<_>>(),
            });
            let act = Act::done("vehicle.delete", Kind::Vehicle, id.as_str(), details);
            audit::record(turn.connection(), &actor, act).await?;
            let mirror = |directory: &crate::Directory| {
                for (_, fingerprint) in &revoked {
                    directory.revoke_certificate(fingerprint, now);
                }
                devices
                    .iter()
                    .for_each(|device| directory.remove_device(device));
                directory.remove_vehicle(&id);
            };
            let changes = devices
                .iter()
                .flat_map(|device| {
                    [
                        Change::AccessLost {
                            device_id: device.clone(),
                        },
                        Change::DeviceChanged { id: device.clone() },
                    ]
                })
                .chain([Change::VehicleChanged { id: id.clone() }]);
            fleet.conclude(turn, mirror, changes).await
        })
        .await
    }

    async fn conclude_vehicle(
        &self,
        turn: crate::store::WriteTurn<'_>,
        vehicle: &Vehicle,
        shut_out: Vec<DeviceId>,
    ) -> Result<(), FleetError> {
        let standing = Standing::of(vehicle.enabled);
        let changes = shut_out
            .into_iter()
            .map(|device_id| Change::AccessLost { device_id })
            .chain([Change::VehicleChanged {
                id: vehicle.id.clone(),
            }]);
        self.conclude(
            turn,
            |directory| directory.put_vehicle(&vehicle.id, standing, vehicle.model.clone()),
            changes,
        )
        .await
    }
}

/// What the audit log keeps of a vehicle.
fn state(vehicle: &Vehicle) -> serde_json::Value {
    json!({
        "vin": vehicle.vin.as_ref().map(Vin::as_str),
        "model": vehicle.model.as_ref().map(ModelName::as_str),
        "attributes": vehicle.attributes,
    })
}

async fn insert(connection: &mut AnyConnection, vehicle: &Vehicle) -> Result<(), FleetError> {
    let inserted = sqlx::query(
        "INSERT INTO vehicles (id, vin, model, attributes, enabled, version, created_us, updated_us) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(vehicle.id.as_str())
    .bind(vehicle.vin.as_ref().map(Vin::as_str))
    .bind(vehicle.model.as_ref().map(ModelName::as_str))
    .bind(json!(vehicle.attributes).to_string())
    .bind(i16::from(vehicle.enabled))
    .bind(vehicle.version as i64)
    .bind(vehicle.created_us)
    .bind(vehicle.updated_us)
    .execute(&mut *connection)
    .await
    .map_err(FleetError::storage("register a vehicle"))?;
    if inserted.rows_affected() == 1 {
        return Ok(());
    }
    // Which of the two unique columns was it?
    match (find(connection, &vehicle.id).await?, &vehicle.vin) {
        (None, Some(vin)) => Err(FleetError::already_exists(Kind::Vin, vin)),
        _ => Err(FleetError::already_exists(Kind::Vehicle, &vehicle.id)),
    }
}

/// Writes a changed vehicle with the next version.
async fn update(connection: &mut AnyConnection, vehicle: &mut Vehicle) -> Result<(), FleetError> {
    vehicle.version += 1;
    vehicle.updated_us = now_us();
    let updated = sqlx::query(
        "UPDATE vehicles SET vin = $2, model = $3, attributes = $4, enabled = $5, version = $6, \
         updated_us = $7 WHERE id = $1",
    )
    .bind(vehicle.id.as_str())
    .bind(vehicle.vin.as_ref().map(Vin::as_str))
    .bind(vehicle.model.as_ref().map(ModelName::as_str))
    .bind(json!(vehicle.attributes).to_string())
    .bind(i16::from(vehicle.enabled))
    .bind(vehicle.version as i64)
    .bind(vehicle.updated_us)
    .execute(connection)
    .await;
    match updated {
        Ok(_) => Ok(()),
        Err(cause) => match (&vehicle.vin, cause.as_database_error()) {
            (Some(vin), Some(database)) if database.is_unique_violation() => {
                Err(FleetError::already_exists(Kind::Vin, vin))
            }
            _ => Err(FleetError::storage("update a vehicle")(cause)),
        },
    }
}

async fn find<'e>(
    executor: impl Executor<'e, Database = Any>,
    id: &VehicleId,
) -> Result<Option<Vehicle>, FleetError> {
    sqlx::query("SELECT * FROM vehicles WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(executor)
        .await
        .map_err(FleetError::storage("read a vehicle"))?
        .as_ref()
        .map(read)
        .transpose()
}

pub(crate) async fn must_find<'e>(
    executor: impl Executor<'e, Database = Any>,
    id: &VehicleId,
) -> Result<Vehicle, FleetError> {
    find(executor, id)
        .await?
        .ok_or_else(|| FleetError::not_found(Kind::Vehicle, id))
}

fn read(row: &AnyRow) -> Result<Vehicle, FleetError> {
    let fields = || {
        Ok::<_, sqlx::Error>((
            Vehicle {
                id: VehicleId::stored(row.try_get("id")?),
                vin: row.try_get::<Option<String>, _>("vin")?.map(Vin::stored),
                model: row
                    .try_get::<Option<String>, _>("model")?
                    .map(ModelName::stored),
                attributes: BTreeMap::new(),
                enabled: row.try_get::<i16, _>("enabled")? != 0,
                version: row.try_get::<i64, _>("version")? as u64,
                created_us: row.try_get("created_us")?,
                updated_us: row.try_get("updated_us")?,
            },
            row.try_get::<String, _>("attributes")?,
        ))
    };
    let (mut vehicle, attributes) = fields().map_err(FleetError::storage("read a vehicle"))?;
    vehicle.attributes =
        serde_json::from_str(&attributes).map_err(|cause| FleetError::Damaged {
            table: "vehicles",
            id: vehicle.id.to_string(),
            reason: cause.to_string(),
        })?;
    Ok(vehicle)
}
