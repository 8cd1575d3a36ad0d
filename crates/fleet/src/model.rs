//! Vehicle models: how the raw frames of a kind of vehicle are to be read. A model is a name with
//! a DBC and a mapping from DBC signals to VSS paths, both as text; whoever decodes parses them,
//! so the edge that takes them in should have parsed them once before.

use serde_json::json;
use sqlx::{Any, AnyConnection, Executor, Row, any::AnyRow};

use crate::{
    Actor, Change, Fingerprint, Fleet, FleetError, Kind, ModelName, Page, PageRequest,
    audit::{self, Act},
    fleet::{check_version, now_us, unbroken},
};

/// The largest public DBC files have about 2 MB.
const MAX_DBC_BYTES: usize = 8 * 1024 * 1024;
/// A mapping line per signal of the largest DBC.
const MAX_MAPPING_BYTES: usize = 1024 * 1024;

/// A vehicle model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its name, for life.
    pub name: ModelName,
    /// The DBC text.
    pub dbc: Option<String>,
    /// The mapping text (TOML).
    pub mapping: Option<String>,
    /// Grows by one with every change; what `if_match` is compared with.
    pub version: u64,
    /// When it was made, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// When it was last changed, in microseconds since the Unix epoch.
    pub updated_us: i64,
}

/// A model without its texts, for lists: a thousand DBCs would not fit an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSummary {
    /// Its name.
    pub name: ModelName,
    /// Whether it has a DBC.
    pub has_dbc: bool,
    /// Whether it has a mapping.
    pub has_mapping: bool,
    /// See [`Model::version`].
    pub version: u64,
    /// When it was made, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// When it was last changed, in microseconds since the Unix epoch.
    pub updated_us: i64,
}

/// A model to put, as the caller typed it; checked by [`Fleet::put_model`].
#[derive(Clone, Debug, Default)]
pub struct NewModel {
    /// Its name: 1 to 128 characters `[A-Za-z0-9._:-]`.
    pub name: String,
    /// The DBC text, at most 8 MiB.
    pub dbc: Option<String>,
    /// The mapping text, at most 1 MiB.
    pub mapping: Option<String>,
}

impl NewModel {
    fn check(self) -> Result<(ModelName, Option<String>, Option<String>), FleetError> {
        for (field, text, limit) in [
            ("dbc", &self.dbc, MAX_DBC_BYTES),
            ("mapping", &self.mapping, MAX_MAPPING_BYTES),
        ] {
            let length = text.as_ref().map_or(0, String::len);
            if length > limit {
                return Err(FleetError::invalid(
                    field,
                    format!("has {length} bytes; allowed are {limit}"),
                ));
            }
            if text.as_ref().is_some_and(|text| text.contains('\0')) {
                // PostgreSQL cannot keep it, and no such format has it.
                return Err(FleetError::invalid(field, "holds a NUL character"));
            }
        }
        Ok((ModelName::parse(&self.name)?, self.dbc, self.mapping))
    }
}

const LIST: &str = "models";

impl Fleet {
    /// Makes a model or replaces its texts. Putting what is there already changes nothing.
    /// `if_match` of a model that does not exist yet is a conflict with version 0.
    ///
    /// # Errors
    /// [`FleetError::Conflict`], [`FleetError::Invalid`], [`FleetError::Storage`].
    pub async fn put_model(
        &self,
        actor: &Actor,
        new: NewModel,
        if_match: Option<u64>,
    ) -> Result<Model, FleetError> {
        let (name, dbc, mapping) = new.check()?;
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let now = now_us();
            let mut turn = fleet.store().write().await?;
            let before = find(turn.connection(), &name).await?;
            let version = before.as_ref().map_or(0, |model| model.version);
            check_version(Kind::Model, &name, if_match, version)?;
            let created_us = match before {
                Some(model) if model.dbc == dbc && model.mapping == mapping => return Ok(model),
                Some(model) => model.created_us,
                None => now,
            };
            let model = Model {
                name,
                dbc,
                mapping,
                version: version + 1,
                created_us,
                updated_us: now,
            };
            write(turn.connection(), &model).await?;
            let print = |text: &Option<String>| {
                text.as_ref()
                    .map(|text| Fingerprint::of(text.as_bytes()).to_string())
            };
            let details = json!({
                "version": model.version,
                "dbc_sha256": print(&model.dbc),
                "mapping_sha256": print(&model.mapping),
            });
            let act = Act::done("model.put", Kind::Model, model.name.as_str(), details);
            audit::record(turn.connection(), &actor, act).await?;
            let change = Change::ModelChanged {
                name: model.name.clone(),
            };
            fleet.conclude(turn, |_| {}, [change]).await?;
            Ok(model)
        })
        .await
    }

    /// One model with its texts.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Invalid`] for an impossible name,
    /// [`FleetError::Storage`].
    pub async fn get_model(&self, name: &str) -> Result<Model, FleetError> {
        let name = ModelName::parse(name)?;
        find(self.store().pool(), &name)
            .await?
            .ok_or_else(|| FleetError::not_found(Kind::Model, &name))
    }

    /// All models, by name, without their texts.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for a foreign cursor, [`FleetError::Storage`].
    pub async fn list_models(
        &self,
        request: &PageRequest,
    ) -> Result<Page<ModelSummary>, FleetError> {
        let failed = FleetError::storage;
        let rows = sqlx::query(
            "SELECT name, version, created_us, updated_us, \
             CASE WHEN dbc IS NULL THEN 0 ELSE 1 END AS has_dbc, \
             CASE WHEN mapping IS NULL THEN 0 ELSE 1 END AS has_mapping \
             FROM models WHERE name > $1 ORDER BY name LIMIT $2",
        )
        .bind(request.after(LIST)?.unwrap_or_default())
        .bind(request.fetch_limit())
        .fetch_all(self.store().pool())
        .await
        .map_err(failed("list models"))?;
        let summary = |row: &AnyRow| {
            Ok(ModelSummary {
                name: ModelName::stored(row.try_get("name")?),
                has_dbc: row.try_get::<i32, _>("has_dbc")? != 0,
                has_mapping: row.try_get::<i32, _>("has_mapping")? != 0,
                version: row.try_get::<i64, _>("version")? as u64,
                created_us: row.try_get("created_us")?,
                updated_us: row.try_get("updated_us")?,
            })
        };
        let models = rows
            .iter()
            .map(summary)
            .collect::<Result<_, _>>()
            .map_err(failed("list models"))?;
        Ok(request.page(LIST, models, |model: &ModelSummary| model.name.as_str()))
    }
}

async fn write(connection: &mut AnyConnection, model: &Model) -> Result<(), FleetError> {
    sqlx::query(
        "INSERT INTO models (name, dbc, mapping, version, created_us, updated_us) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (name) DO UPDATE SET dbc = $2, mapping = $3, version = $4, updated_us = $6",
    )
    .bind(model.name.as_str())
    .bind(model.dbc.as_deref())
    .bind(model.mapping.as_deref())
    .bind(model.version as i64)
    .bind(model.created_us)
    .bind(model.updated_us)
    .execute(connection)
    .await
    .map_err(FleetError::storage("put a model"))?;
    Ok(())
}

async fn find<'e>(
    executor: impl Executor<'e, Database = Any>,
    name: &ModelName,
) -> Result<Option<Model>, FleetError> {
    sqlx::query("SELECT * FROM models WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(executor)
        .await
        .and_then(|row| row.as_ref().map(read).transpose())
        .map_err(FleetError::storage("read a model"))
}

fn read(row: &AnyRow) -> Result<Model, sqlx::Error> {
    Ok(Model {
        name: ModelName::stored(row.try_get("name")?),
        dbc: row.try_get("dbc")?,
        mapping: row.try_get("mapping")?,
        version: row.try_get::<i64, _>("version")? as u64,
        created_us: row.try_get("created_us")?,
        updated_us: row.try_get("updated_us")?,
    })
}

/// A vehicle names its model; the name must mean something.
pub(crate) async fn must_exist(
    connection: &mut AnyConnection,
    name: &ModelName,
) -> Result<(), FleetError> {
    let found: Option<String> = sqlx::query_scalar("SELECT name FROM models WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(connection)
        .await
        .map_err(FleetError::storage("read a model"))?;
    match found {
        Some(_) => Ok(()),
        None => Err(FleetError::invalid(
            "model",
            format!("`{name}` does not exist; put the model first, or leave it out"),
        )),
    }
}
