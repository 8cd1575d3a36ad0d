//! `/reload`: certificates, keys and CA files again.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::problem::{Problem, ProblemBody, ProblemType};
use crate::{
    state::AppState,
    tls::{TlsError, with_causes},
};

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(reload))
}

/// What was reloaded.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ReloadedBody {
    /// Listeners that use what was read for every handshake from now on.
    listeners: Vec<String>,
}

/// Reads certificates, keys and CA files again
///
/// All of them or, if one of them is not good, none. Standing connections stay. The server also does this
/// by itself within ten seconds of a change, and on SIGHUP.
#[utoipa::path(post, path = "/reload", tag = "operation",
    responses((status = 200, body = ReloadedBody), (status = 422, body = ProblemBody)))]
async fn reload(State(app): State<Arc<AppState>>) -> Result<Json<ReloadedBody>, Problem> {
    let renewed = app.tls.renew().await?;
    let listeners = renewed.listeners.iter().map(|name| name.to_string());
    Ok(Json(ReloadedBody {
        listeners: listeners.collect(),
    }))
}

impl From<TlsError> for Problem {
    fn from(error: TlsError) -> Self {
        let what = format!("{}; everything is as before", with_causes(&error));
        Self::new(ProblemType::ReloadFailed, what)
    }
}
