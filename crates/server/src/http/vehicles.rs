//! `/vehicles`: the register of vehicles.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use fleet::{NewVehicle, Patch, Vehicle, VehiclePatch};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    PageBody, PageQuery, actor,
    body::{Body, Query},
    etag, if_match,
    problem::{Problem, ProblemBody},
    timestamp,
};
use crate::state::AppState;

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(list_vehicles, create_vehicle))
        .routes(routes!(get_vehicle, update_vehicle, delete_vehicle))
}

/// A vehicle.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct VehicleBody {
    /// Its id: the vehicle level of its topics.
    #[schema(example = "truck-17")]
    id: String,
    /// Its vehicle identification number.
    vin: Option<String>,
    /// Its model.
    model: Option<String>,
    /// What the operator notes about it.
    attributes: BTreeMap<String, String>,
    /// Whether its devices may connect.
    enabled: bool,
    /// Counts changes; also the ETag.
    version: u64,
    /// When it was registered.
    created: String,
    /// When it was last changed.
    updated: String,
}

impl From<Vehicle> for VehicleBody {
    fn from(vehicle: Vehicle) -> Self {
        Self {
            id: vehicle.id.to_string(),
            vin: vehicle.vin.map(|vin| vin.as_str().to_owned()),
            model: vehicle.model.map(|model| model.to_string()),
            attributes: vehicle.attributes,
            enabled: vehicle.enabled,
            version: vehicle.version,
            created: timestamp(vehicle.created_us),
            updated: timestamp(vehicle.updated_us),
        }
    }
}

/// A vehicle to register.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewVehicleBody {
    /// 1 to 128 characters of `A-Za-z0-9._:-`; made by the server when left out.
    id: Option<String>,
    /// 17 characters.
    vin: Option<String>,
    /// The name of a model.
    model: Option<String>,
    /// What to note about it.
    #[serde(default)]
    attributes: Option<BTreeMap<String, String>>,
}

/// What to change; fields left out stay.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct VehicleChangeBody {
    /// `false` disconnects its devices at once and refuses them.
    enabled: Option<bool>,
    /// Its model from now on.
    model: Option<String>,
    /// All its attributes from now on.
    attributes: Option<BTreeMap<String, String>>,
}

/// Lists vehicles by id
#[utoipa::path(get, path = "/vehicles", tag = "fleet", params(PageQuery),
    responses((status = 200, body = PageBody<VehicleBody>), (status = 400, body = ProblemBody)))]
async fn list_vehicles(
    State(app): State<Arc<AppState>>,
    Query(page): Query<PageQuery>,
) -> Result<Json<PageBody<VehicleBody>>, Problem> {
    let page = app.fleet.list_vehicles(&page.request()?).await?;
    Ok(Json(PageBody::new(page, VehicleBody::from)))
}

/// Registers a vehicle
#[utoipa::path(post, path = "/vehicles", tag = "fleet", request_body = NewVehicleBody,
    responses((status = 201, body = VehicleBody), (status = 400, body = ProblemBody),
              (status = 409, body = ProblemBody)))]
async fn create_vehicle(
    State(app): State<Arc<AppState>>,
    Body(body): Body<NewVehicleBody>,
) -> Result<impl IntoResponse, Problem> {
    let new = NewVehicle {
        id: body.id,
        vin: body.vin,
        model: body.model,
        attributes: body.attributes.unwrap_or_default(),
    };
    let vehicle = VehicleBody::from(app.fleet.create_vehicle(&actor(), new).await?);
    let location = [(header::LOCATION, format!("/api/v1/vehicles/{}", vehicle.id))];
    Ok((
        StatusCode::CREATED,
        location,
        etag(vehicle.version),
        Json(vehicle),
    ))
}

/// Shows a vehicle
#[utoipa::path(get, path = "/vehicles/{vehicle}", tag = "fleet",
    params(("vehicle" = String, Path, description = "The vehicle's id")),
    responses((status = 200, body = VehicleBody), (status = 404, body = ProblemBody)))]
async fn get_vehicle(
    State(app): State<Arc<AppState>>,
    Path(vehicle): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let vehicle = app.fleet.get_vehicle(&vehicle).await?;
    Ok((etag(vehicle.version), Json(VehicleBody::from(vehicle))))
}

/// Changes a vehicle; disabling it disconnects its devices at once
#[utoipa::path(patch, path = "/vehicles/{vehicle}", tag = "fleet", request_body = VehicleChangeBody,
    params(("vehicle" = String, Path, description = "The vehicle's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag this change is made for")),
    responses((status = 200, body = VehicleBody), (status = 404, body = ProblemBody),
              (status = 412, body = ProblemBody)))]
async fn update_vehicle(
    State(app): State<Arc<AppState>>,
    Path(vehicle): Path<String>,
    headers: HeaderMap,
    Body(body): Body<VehicleChangeBody>,
) -> Result<impl IntoResponse, Problem> {
    let mut expected = if_match(&headers)?;
    let mut changed = None;
    if body.model.is_some() || body.attributes.is_some() {
        let patch = VehiclePatch {
            model: body.model.map_or(Patch::Keep, Patch::Set),
            attributes: body.attributes,
            ..VehiclePatch::default()
        };
        let updated = app
            .fleet
            .update_vehicle(&actor(), &vehicle, patch, expected)
            .await?;
        expected = Some(updated.version);
        changed = Some(updated);
    }
    if let Some(enabled) = body.enabled {
        changed = Some(
            app.fleet
                .set_vehicle_enabled(&actor(), &vehicle, enabled, expected)
                .await?,
        );
    }
    let vehicle = match changed {
        Some(changed) => changed,
        None => app.fleet.get_vehicle(&vehicle).await?,
    };
    Ok((etag(vehicle.version), Json(VehicleBody::from(vehicle))))
}

/// Removes a vehicle with its devices; its data stays in the lake
#[utoipa::path(delete, path = "/vehicles/{vehicle}", tag = "fleet",
    params(("vehicle" = String, Path, description = "The vehicle's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag this change is made for")),
    responses((status = 204), (status = 404, body = ProblemBody), (status = 412, body = ProblemBody)))]
async fn delete_vehicle(
    State(app): State<Arc<AppState>>,
    Path(vehicle): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    app.fleet
        .delete_vehicle(&actor(), &vehicle, if_match(&headers)?)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
