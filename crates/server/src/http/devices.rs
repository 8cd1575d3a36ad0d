//! `/vehicles/{vehicle}/devices` and `/devices`: what holds the credentials of a vehicle.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use fleet::{Device, NewDevice};
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
        .routes(routes!(list_devices, create_device))
        .routes(routes!(get_device, update_device))
}

/// A device of a vehicle.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct DeviceBody {
    /// Its id: the subject of its certificates.
    #[schema(example = "truck-17-tcu")]
    id: String,
    /// The vehicle it belongs to.
    vehicle_id: String,
    /// What it is: `tcu`, `ivi`, `phone`, …
    kind: String,
    /// Whether it may connect.
    enabled: bool,
    /// Counts changes; also the ETag.
    version: u64,
    /// When it was registered.
    created: String,
}

impl From<Device> for DeviceBody {
    fn from(device: Device) -> Self {
        Self {
            id: device.id.to_string(),
            vehicle_id: device.vehicle_id.to_string(),
            kind: device.kind,
            enabled: device.enabled,
            version: device.version,
            created: timestamp(device.created_us),
        }
    }
}

/// A device to register.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewDeviceBody {
    /// 1 to 128 characters of `A-Za-z0-9._:-`; made by the server when left out.
    id: Option<String>,
    /// What it is; `tcu` when left out.
    kind: Option<String>,
}

/// What to change.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct DeviceChangeBody {
    /// `false` disconnects it at once and refuses it.
    enabled: bool,
}

/// Lists the devices of a vehicle by id
#[utoipa::path(get, path = "/vehicles/{vehicle}/devices", tag = "fleet",
    params(("vehicle" = String, Path, description = "The vehicle's id"), PageQuery),
    responses((status = 200, body = PageBody<DeviceBody>), (status = 404, body = ProblemBody)))]
async fn list_devices(
    State(app): State<Arc<AppState>>,
    Path(vehicle): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<PageBody<DeviceBody>>, Problem> {
    let page = app
        .fleet
        .list_devices(Some(&vehicle), &page.request()?)
        .await?;
    Ok(Json(PageBody::new(page, DeviceBody::from)))
}

/// Registers a device of a vehicle
#[utoipa::path(post, path = "/vehicles/{vehicle}/devices", tag = "fleet", request_body = NewDeviceBody,
    params(("vehicle" = String, Path, description = "The vehicle's id")),
    responses((status = 201, body = DeviceBody), (status = 404, body = ProblemBody),
              (status = 409, body = ProblemBody)))]
async fn create_device(
    State(app): State<Arc<AppState>>,
    Path(vehicle): Path<String>,
    Body(body): Body<NewDeviceBody>,
) -> Result<impl IntoResponse, Problem> {
    let new = NewDevice {
        id: body.id,
        vehicle_id: vehicle,
        kind: body.kind.unwrap_or_else(|| "tcu".to_owned()),
    };
    let device = DeviceBody::from(app.fleet.create_device(&actor(), new).await?);
    let location = [(header::LOCATION, format!("/api/v1/devices/{}", device.id))];
    Ok((
        StatusCode::CREATED,
        location,
        etag(device.version),
        Json(device),
    ))
}

/// Shows a device
#[utoipa::path(get, path = "/devices/{device}", tag = "fleet",
    params(("device" = String, Path, description = "The device's id")),
    responses((status = 200, body = DeviceBody), (status = 404, body = ProblemBody)))]
async fn get_device(
    State(app): State<Arc<AppState>>,
    Path(device): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let device = app.fleet.get_device(&device).await?;
    Ok((etag(device.version), Json(DeviceBody::from(device))))
}

/// Enables or disables a device; disabling disconnects it at once
#[utoipa::path(patch, path = "/devices/{device}", tag = "fleet", request_body = DeviceChangeBody,
    params(("device" = String, Path, description = "The device's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag this change is made for")),
    responses((status = 200, body = DeviceBody), (status = 404, body = ProblemBody),
              (status = 412, body = ProblemBody)))]
async fn update_device(
    State(app): State<Arc<AppState>>,
    Path(device): Path<String>,
    headers: HeaderMap,
    Body(body): Body<DeviceChangeBody>,
) -> Result<impl IntoResponse, Problem> {
    let expected = if_match(&headers)?;
    let device = app
        .fleet
        .set_device_enabled(&actor(), &device, body.enabled, expected)
        .await?;
    Ok((etag(device.version), Json(DeviceBody::from(device))))
}
