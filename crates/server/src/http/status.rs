//! Is it alive, is it ready, what is it doing: `/healthz`, `/readyz`, `/api/v1/status`, and `/` for
//! whoever opens the port in a browser.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse},
    routing::get,
};
use serde::Serialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::state::{AppState, Phase};

pub fn routes() -> Router<Arc<AppState>> {
    health_routes().route("/", get(index))
}

pub fn health_routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

pub fn api_routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(get_status))
}

async fn ready(State(app): State<Arc<AppState>>) -> impl IntoResponse {
    match app.phase.load() {
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn index() -> Html<&'static str> {
    Html(include_str!("index.html"))
}

/// What the server has and does.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct StatusBody {
    /// Version of the program.
    version: &'static str,
    /// Registered vehicles.
    vehicles: usize,
    /// Registered devices.
    devices: usize,
    /// MQTT clients connected now.
    connections: u64,
    /// MQTT sessions, connected or not.
    sessions: u64,
    /// Messages published by clients.
    messages_received: u64,
    /// Messages acknowledged to publishers.
    messages_acknowledged: u64,
    /// Records durable in the log.
    records_logged: u64,
    /// Records taken from the log into the lake.
    records_ingested: u64,
    /// Records that could not be decoded.
    dead_letters: u64,
    /// Half of the records were in `live.*` within this many milliseconds of their reception.
    freshness_p50_ms: Option<u64>,
    /// 99 of 100 records, likewise.
    freshness_p99_ms: Option<u64>,
    /// Rows committed to Delta since the start: `bronze.messages`.
    bronze_rows: u64,
    /// Rows committed to Delta since the start: `silver.signals`.
    silver_rows: u64,
    /// Rows visible in `live.*` that are not yet in Delta.
    hot_rows: u64,
}

/// What the server has and does
#[utoipa::path(get, path = "/status", tag = "operation", responses((status = 200, body = StatusBody)))]
async fn get_status(State(app): State<Arc<AppState>>) -> Json<StatusBody> {
    let counts = app.fleet.directory().counts();
    let broker = app.broker_stats();
    let lake = app.lake.metrics();
    Json(StatusBody {
        version: env!("CARGO_PKG_VERSION"),
        vehicles: counts.vehicles,
        devices: counts.devices,
        connections: broker.connections,
        sessions: broker.sessions,
        messages_received: broker.messages_in(),
        messages_acknowledged: broker.pubacks_sent + broker.pubrecs_sent,
        records_logged: app.raw.stats().total().appended_records,
        records_ingested: app.ingest.records.load(Ordering::Relaxed),
        dead_letters: app.ingest.dead.load(Ordering::Relaxed),
        freshness_p50_ms: lake.freshness.quantile_ms(0.5),
        freshness_p99_ms: lake.freshness.quantile_ms(0.99),
        bronze_rows: lake.committed_messages,
        silver_rows: lake.committed_signals,
        hot_rows: lake.hot_messages + lake.hot_signals,
    })
}
