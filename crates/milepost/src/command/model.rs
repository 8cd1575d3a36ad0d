//! `milepost model`: what a vehicle model says on its CAN buses.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use serde_json::json;

use crate::{
    api::{Api, ApiArgs},
    output,
};

/// Describe vehicle models: the DBC their CAN frames are decoded with
#[derive(clap::Subcommand)]
pub enum Model {
    /// Create or replace a model
    Put {
        /// Its name
        model: String,
        /// The DBC file that describes its CAN messages
        #[arg(long, value_name = "FILE")]
        dbc: Option<PathBuf>,
        /// Which DBC signal is which VSS signal (TOML); common names are known without it
        #[arg(long, value_name = "FILE")]
        mapping: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List all models
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl Model {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Put {
                model,
                dbc,
                mapping,
                api,
            } => {
                let read = |path: Option<PathBuf>| -> anyhow::Result<Option<String>> {
                    let Some(path) = path else { return Ok(None) };
                    let bytes = std::fs::read(&path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    Ok(Some(signals::can::dbc_text(&bytes).into_owned()))
                };
                let body = json!({ "dbc": read(dbc)?, "mapping": read(mapping)? });
                let path = format!("/models/{model}");
                let put = Api::new(&api.api)?
                    .send_json(reqwest::Method::PUT, &path, &body)
                    .await?;
                output::object(&put, api.json)?;
            }
            Self::List { api } => {
                let models = Api::new(&api.api)?.list("/models").await?;
                output::list(
                    &models,
                    &["name", "has_dbc", "has_mapping", "updated"],
                    api.json,
                )?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
