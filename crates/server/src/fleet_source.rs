//! The register of the fleet as rows for SQL: `fleet.vehicles`, `fleet.devices`, `vehicles`.

use std::{error::Error, sync::Arc};

use fleet::{Fleet, FleetError, PageRequest};
use lake::{FleetDevice, FleetRows, FleetSource, FleetVehicle};

/// Reads the register page by page whenever the lake asks.
pub fn of(fleet: &Fleet) -> FleetSource {
    let fleet = fleet.clone();
    Arc::new(move || {
        let fleet = fleet.clone();
        Box::pin(async move {
            rows(&fleet)
                .await
                .map_err(Box::<dyn Error + Send + Sync>::from)
        })
    })
}

async fn rows(fleet: &Fleet) -> Result<FleetRows, FleetError> {
    let mut rows = FleetRows::default();
    let mut cursor = None;
    loop {
        let page = fleet
            .list_vehicles(&PageRequest::new(fleet::MAX_PAGE, cursor)?)
            .await?;
        rows.vehicles
            .extend(page.items.into_iter().map(|vehicle| FleetVehicle {
                id: vehicle.id.to_string(),
                vin: vehicle.vin.map(|vin| vin.as_str().to_owned()),
                model: vehicle.model.map(|model| model.to_string()),
                enabled: vehicle.enabled,
                attributes: vehicle.attributes,
                created_us: vehicle.created_us,
            }));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    loop {
        let page = fleet
            .list_devices(None, &PageRequest::new(fleet::MAX_PAGE, cursor)?)
            .await?;
        rows.devices
            .extend(page.items.into_iter().map(|device| FleetDevice {
                id: device.id.to_string(),
                vehicle_id: device.vehicle_id.to_string(),
                kind: device.kind,
                enabled: device.enabled,
                created_us: device.created_us,
            }));
        cursor = page.next;
        if cursor.is_none() {
            return Ok(rows);
        }
    }
}
