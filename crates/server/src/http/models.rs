//! `/models`: what the vehicles of a model say on their CAN buses.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
};
use fleet::{Model, ModelSummary, NewModel};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    PageBody, PageQuery, actor,
    body::{Body, Query},
    if_match,
    problem::{Problem, ProblemBody, ProblemType},
    timestamp,
};
use crate::{decoders, state::AppState};

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(list_models))
        .routes(routes!(get_model, put_model))
}

/// A vehicle model.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ModelBody {
    /// Its name, which vehicles refer to.
    name: String,
    /// Its DBC.
    dbc: Option<String>,
    /// Its mapping from DBC signals to VSS signals.
    mapping: Option<String>,
    /// Counts changes; what `If-Match` names.
    version: u64,
    /// When it was last changed.
    updated: String,
}

impl From<Model> for ModelBody {
    fn from(model: Model) -> Self {
        Self {
            name: model.name.to_string(),
            dbc: model.dbc,
            mapping: model.mapping,
            version: model.version,
            updated: timestamp(model.updated_us),
        }
    }
}

/// A model in a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ModelSummaryBody {
    /// Its name.
    name: String,
    /// Whether CAN frames of its vehicles can be decoded.
    has_dbc: bool,
    /// Whether it has a mapping of its own.
    has_mapping: bool,
    /// When it was last changed.
    updated: String,
}

impl From<ModelSummary> for ModelSummaryBody {
    fn from(model: ModelSummary) -> Self {
        Self {
            name: model.name.to_string(),
            has_dbc: model.has_dbc,
            has_mapping: model.has_mapping,
            updated: timestamp(model.updated_us),
        }
    }
}

/// What a model is to be.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct ModelChangeBody {
    /// The text of a DBC file.
    dbc: Option<String>,
    /// TOML: which DBC signal is which VSS signal. Common names are known without it.
    mapping: Option<String>,
}

/// Lists models by name
#[utoipa::path(get, path = "/models", tag = "fleet", params(PageQuery),
    responses((status = 200, body = PageBody<ModelSummaryBody>)))]
async fn list_models(
    State(app): State<Arc<AppState>>,
    Query(page): Query<PageQuery>,
) -> Result<Json<PageBody<ModelSummaryBody>>, Problem> {
    let page = app.fleet.list_models(&page.request()?).await?;
    Ok(Json(PageBody::new(page, ModelSummaryBody::from)))
}

/// Shows a model
#[utoipa::path(get, path = "/models/{model}", tag = "fleet",
    params(("model" = String, Path, description = "The model's name")),
    responses((status = 200, body = ModelBody), (status = 404, body = ProblemBody)))]
async fn get_model(
    State(app): State<Arc<AppState>>,
    Path(model): Path<String>,
) -> Result<Json<ModelBody>, Problem> {
    Ok(Json(app.fleet.get_model(&model).await?.into()))
}

/// Creates or replaces a model; frames that arrive from now on are decoded by it
#[utoipa::path(put, path = "/models/{model}", tag = "fleet", request_body = ModelChangeBody,
    params(("model" = String, Path, description = "The model's name")),
    responses((status = 200, body = ModelBody), (status = 400, body = ProblemBody)))]
async fn put_model(
    State(app): State<Arc<AppState>>,
    Path(model): Path<String>,
    headers: HeaderMap,
    Body(body): Body<ModelChangeBody>,
) -> Result<Json<ModelBody>, Problem> {
    // Refused here, where somebody can mend it, and not when the first frame arrives.
    decoders::build(body.dbc.as_deref(), body.mapping.as_deref())
        .map_err(|error| Problem::new(ProblemType::Invalid, error.to_string()))?;
    let new = NewModel {
        name: model,
        dbc: body.dbc,
        mapping: body.mapping,
    };
    let model = app
        .fleet
        .put_model(&actor(), new, if_match(&headers)?)
        .await?;
    // At once, so that a frame sent after this answer is decoded by it.
    app.decoders.set(&model);
    Ok(Json(model.into()))
}
