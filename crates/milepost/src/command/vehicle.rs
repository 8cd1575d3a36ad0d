//! `milepost vehicle`: the register of vehicles.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::{
    api::{Api, ApiArgs},
    output,
};

/// Register, list and disable vehicles
#[derive(clap::Subcommand)]
pub enum Vehicle {
    /// Register a vehicle
    Create {
        /// Its id; made by the server when left out
        #[arg(long)]
        id: Option<String>,
        /// Its vehicle identification number (17 characters)
        #[arg(long)]
        vin: Option<String>,
        /// Its model, which decides how its CAN frames are decoded
        #[arg(long)]
        model: Option<String>,
        /// An attribute, as KEY=VALUE; may be given again
        #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = key_value)]
        attributes: Vec<(String, String)>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List all vehicles
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one vehicle
    Show {
        /// Its id
        vehicle: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Let a disabled vehicle's devices connect again
    Enable {
        /// Its id
        vehicle: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Disconnect a vehicle's devices at once and refuse them
    Disable {
        /// Its id
        vehicle: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a vehicle with its devices and certificates; its data stays in the lake
    Delete {
        /// Its id
        vehicle: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Vehicle {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create {
                id,
                vin,
                model,
                attributes,
                api,
            } => {
                let attributes: Map<String, Value> = attributes
                    .into_iter()
                    .map(|(k, v)| (k, Value::String(v)))
                    .collect();
                let body =
                    json!({ "id": id, "vin": vin, "model": model, "attributes": attributes });
                let vehicle = Api::new(&api.api)?.post("/vehicles", &body).await?;
                output::object(&vehicle, api.json)?;
            }
            Self::List { api } => {
                let vehicles = Api::new(&api.api)?.list("/vehicles").await?;
                output::list(&vehicles, &["id", "vin", "model", "enabled"], api.json)?;
            }
            Self::Show { vehicle, api } => {
                let found = Api::new(&api.api)?
                    .get(&format!("/vehicles/{vehicle}"))
                    .await?;
                output::object(&found, api.json)?;
            }
            Self::Enable { vehicle, api } => set_enabled(&api, "vehicles", &vehicle, true).await?,
            Self::Disable { vehicle, api } => {
                set_enabled(&api, "vehicles", &vehicle, false).await?
            }
            Self::Delete { vehicle, api } => {
                Api::new(&api.api)?
                    .delete(&format!("/vehicles/{vehicle}"))
                    .await?;
                eprintln!("vehicle {vehicle} deleted");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Enables or disables a vehicle or a device.
pub async fn set_enabled(
    api: &ApiArgs,
    collection: &str,
    id: &str,
    enabled: bool,
) -> anyhow::Result<()> {
    let path = format!("/{collection}/{id}");
    let changed = Api::new(&api.api)?
        .send_json(
            reqwest::Method::PATCH,
            &path,
            &json!({ "enabled": enabled }),
        )
        .await?;
    output::object(&changed, api.json)
}
