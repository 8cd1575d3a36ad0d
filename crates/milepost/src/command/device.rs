//! `milepost device`: the register of devices, which hold the credentials of vehicles.

use std::process::ExitCode;

use serde_json::json;

use super::vehicle::set_enabled;
use crate::{
    api::{Api, ApiArgs},
    output,
};

/// Register, list and disable the devices of vehicles
#[derive(clap::Subcommand)]
pub enum Device {
    /// Register a device of a vehicle
    Create {
        /// The vehicle it belongs to
        #[arg(long)]
        vehicle: String,
        /// Its id; made by the server when left out
        #[arg(long)]
        id: Option<String>,
        /// What it is: tcu, ivi, phone, …
        #[arg(long, default_value = "tcu")]
        kind: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List the devices of a vehicle
    List {
        /// The vehicle
        vehicle: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one device
    Show {
        /// Its id
        device: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Let a disabled device connect again
    Enable {
        /// Its id
        device: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Disconnect a device at once and refuse it
    Disable {
        /// Its id
        device: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl Device {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create {
                vehicle,
                id,
                kind,
                api,
            } => {
                let path = format!("/vehicles/{vehicle}/devices");
                let body = json!({ "id": id, "kind": kind });
                let device = Api::new(&api.api)?.post(&path, &body).await?;
                output::object(&device, api.json)?;
            }
            Self::List { vehicle, api } => {
                let path = format!("/vehicles/{vehicle}/devices");
                let devices = Api::new(&api.api)?.list(&path).await?;
                output::list(&devices, &["id", "vehicle_id", "kind", "enabled"], api.json)?;
            }
            Self::Show { device, api } => {
                let found = Api::new(&api.api)?
                    .get(&format!("/devices/{device}"))
                    .await?;
                output::object(&found, api.json)?;
            }
            Self::Enable { device, api } => set_enabled(&api, "devices", &device, true).await?,
            Self::Disable { device, api } => set_enabled(&api, "devices", &device, false).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
