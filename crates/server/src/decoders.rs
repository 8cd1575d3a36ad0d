//! The CAN decoders of all vehicle models, ready to use: vehicle → model → decoder.
//!
//! Built from the models in the fleet store at start and again whenever one changes. A model whose
//! DBC no longer parses keeps its last good decoder and says so in the log.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use fleet::{Directory, Fleet, FleetError, Model, ModelName, PageRequest};
use signals::{CanDecoder, Mapping};

/// Decoders by model; cheap to ask for every record.
pub struct Decoders {
    directory: Arc<Directory>,
    by_model: RwLock<HashMap<ModelName, Arc<CanDecoder>>>,
}

/// Why a model can not decode.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its DBC or how it fits the mapping.
    #[error("dbc: {0}")]
    Dbc(signals::can::DbcError),
    /// Its mapping.
    #[error("mapping: {0}")]
    Mapping(signals::MappingError),
}

/// The decoder a model describes; `None` for a model without a DBC. A mapping of its own takes the place
/// of the built-in one.
pub fn build(dbc: Option<&str>, mapping: Option<&str>) -> Result<Option<CanDecoder>, ModelError> {
    let Some(dbc) = dbc else { return Ok(None) };
    let own = mapping
        .map(Mapping::parse)
        .transpose()
        .map_err(ModelError::Mapping)?;
    let mapping = own.as_ref().unwrap_or_else(|| Mapping::builtin());
    CanDecoder::new(dbc, Some(mapping))
        .map(Some)
        .map_err(ModelError::Dbc)
}

impl Decoders {
    /// Builds the decoders of all models.
    pub async fn load(fleet: &Fleet) -> Result<Arc<Self>, FleetError> {
        let decoders = Arc::new(Self {
            directory: fleet.directory(),
            by_model: RwLock::new(HashMap::new()),
        });
        decoders.reload(fleet).await?;
        Ok(decoders)
    }

    /// Builds all of them anew, after an unknown number of changes.
    pub async fn reload(&self, fleet: &Fleet) -> Result<(), FleetError> {
        let mut cursor = None;
        loop {
            let page = fleet
                .list_models(&PageRequest::new(fleet::MAX_PAGE, cursor)?)
                .await?;
            for model in &page.items {
                self.refresh(fleet, &model.name).await?;
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Takes up a change of one model.
    pub async fn refresh(&self, fleet: &Fleet, name: &ModelName) -> Result<(), FleetError> {
        self.set(&fleet.get_model(name.as_str()).await?);
        Ok(())
    }

    /// As [`Decoders::refresh`], with the model at hand.
    pub fn set(&self, model: &Model) {
        match build(model.dbc.as_deref(), model.mapping.as_deref()) {
            Ok(decoder) => {
                let mut by_model = self
                    .by_model
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                match decoder {
                    Some(decoder) => by_model.insert(model.name.clone(), Arc::new(decoder)),
                    None => by_model.remove(&model.name),
                };
            }
            // The API refuses such a model; this one was stored by another version.
            Err(error) => {
                tracing::error!(event = "model.unusable", model = %model.name, error = %error);
            }
        }
    }

    /// The decoder for a vehicle, by its model.
    pub fn of_vehicle(&self, vehicle_id: &str) -> Option<Arc<CanDecoder>> {
        let model = self.directory.model_of(vehicle_id)?;
        let by_model = self.by_model.read().unwrap_or_else(PoisonError::into_inner);
        by_model.get(&model).cloned()
    }
}
