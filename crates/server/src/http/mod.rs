//! The HTTP API, `/api/v1`: the register of the fleet, the broker's clients and SQL over the data; beside
//! it health and metrics. Its description is made from the handlers and served at `/api/v1/openapi.json`.
//!
//! There is no sign-in yet, so it listens on loopback unless the operator accepts the danger
//! (`config`). A browser on the same machine is kept out all the same: a request that carries the
//! `Origin` of another page, or asks for a name that is not this machine's, is refused.

mod bans;
mod body;
mod certificates;
mod clients;
mod devices;
mod metrics;
mod models;
pub(crate) mod problem;
mod reload;
mod sql;
mod status;
mod trace;
mod vehicles;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderMap, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use fleet::{Actor, FleetError, PageRequest};
use serde::{Deserialize, Serialize};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::state::AppState;
use problem::{Problem, ProblemType};

/// Largest body: a DBC of the largest trucks is about two megabytes.
const MAX_BODY: usize = 8 << 20;

/// Whole-request bound for everything but SQL, which has its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Milepost",
        description = "The connected-vehicle cloud: fleet register, certificates, SQL. Errors are \
                       `application/problem+json` (RFC 9457) with a stable `type`; lists are paged by \
                       an opaque cursor; changes take `If-Match`.",
        license(name = "Apache-2.0")
    ),
    tags(
        (name = "fleet", description = "Vehicles, devices, models and certificates"),
        (name = "clients", description = "MQTT clients: who is there, what passes, who is kept out"),
        (name = "query", description = "SQL over hot and cold tables"),
        (name = "operation", description = "Health, readiness, status")
    )
)]
struct Description;

/// All routes.
pub fn router(state: Arc<AppState>) -> Router {
    let api = OpenApiRouter::new()
        .merge(vehicles::routes())
        .merge(devices::routes())
        .merge(certificates::routes())
        .merge(models::routes())
        .merge(clients::routes())
        .merge(trace::routes())
        .merge(bans::routes())
        .merge(reload::routes())
        .merge(sql::routes())
        .merge(status::api_routes());
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .nest("/api/v1", api)
        .split_for_parts();
    let document = description.to_json().unwrap_or_else(|error| {
        tracing::error!(event = "http.openapi_failed", error = %error);
        String::from("{}")
    });
    router
        .route(
            "/api/v1/openapi.json",
            axum::routing::get(move || {
                let document = document.clone();
                async move { ([(header::CONTENT_TYPE, "application/json")], document) }
            }),
        )
        .merge(status::routes())
        .merge(metrics::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(refuse_foreign_pages))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(tower_http::timeout::TimeoutLayer::with_status_code(
            axum::http::StatusCode::GATEWAY_TIMEOUT,
            REQUEST_TIMEOUT.max(state.sql_limits.time + Duration::from_secs(5)),
        ))
        .with_state(state)
}

async fn not_found(request: Request) -> Problem {
    let path = request.uri().path();
    Problem::new(
        ProblemType::NotFound,
        format!("nothing is served at {path}; /api/v1/openapi.json lists what is"),
    )
}

async fn method_not_allowed(request: Request) -> Response {
    let detail = format!(
        "{} does not take {}",
        request.uri().path(),
        request.method()
    );
    let mut response = Problem::new(ProblemType::Invalid, detail).into_response();
    *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// Refuses what a page of another origin sends from a browser on this machine. Programs send no `Origin`,
/// our own pages send our own (cross-site request forgery); and whoever was led here by a name that
/// somebody else's DNS gave (rebinding) asks for that name, while this server is asked for by address or
/// as `localhost`.
async fn refuse_foreign_pages(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = match headers.get(header::HOST) {
        Some(host) => host.to_str().unwrap_or_default(),
        None => request
            .uri()
            .authority()
            .map_or("", |authority| authority.as_str()),
    };
    if !is_own_name(host) {
        return forbidden(format!(
            "host `{host}` is not served; ask for this server by its address or as localhost (a proxy \
             in front must do so too)"
        ));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let from = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        if from != Some(host) {
            return forbidden("requests of pages of another origin are not served".to_owned());
        }
    }
    next.run(request).await
}

/// An address or `localhost`, with or without a port.
fn is_own_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()
}

fn forbidden(detail: String) -> Response {
    let mut response = Problem::new(ProblemType::Invalid, detail).into_response();
    *response.status_mut() = axum::http::StatusCode::FORBIDDEN;
    response
}

impl From<FleetError> for Problem {
    fn from(error: FleetError) -> Self {
        let kind = match &error {
            FleetError::NotFound { .. } => ProblemType::NotFound,
            FleetError::AlreadyExists { .. } => ProblemType::AlreadyExists,
            FleetError::Invalid { .. } => ProblemType::Invalid,
            FleetError::Conflict { .. } => ProblemType::VersionConflict,
            FleetError::Disabled { .. } => ProblemType::Disabled,
            _ => return Self::internal(&error),
        };
        Self::new(kind, error.to_string())
    }
}

/// Who acts: until there is a sign-in, whoever reaches the port.
fn actor() -> Actor {
    Actor::system()
}

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    /// Items of the page, 1 to 1000; 100 when left out.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl PageQuery {
    fn request(self) -> Result<PageRequest, Problem> {
        Ok(PageRequest::new(self.limit.unwrap_or(100), self.cursor)?)
    }
}

/// A page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct PageBody<T> {
    /// The items, in a stable order.
    items: Vec<T>,
    /// Where the next page begins; `null` on the last.
    next_cursor: Option<String>,
}

impl<T> PageBody<T> {
    fn new<S>(page: fleet::Page<S>, convert: impl FnMut(S) -> T) -> Self {
        Self {
            items: page.items.into_iter().map(convert).collect(),
            next_cursor: page.next,
        }
    }
}

/// The version in `If-Match: "3"`, if the header is there.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    text.trim_matches('"').parse().map(Some).map_err(|_| {
        Problem::new(
            ProblemType::Invalid,
            format!("If-Match: {text} is not a version; send the ETag of the answer you read"),
        )
    })
}

/// `ETag: "3"`.
fn etag(version: u64) -> [(header::HeaderName, String); 1] {
    [(header::ETAG, format!("\"{version}\""))]
}

/// Health and readiness alone, for ports that others may reach too.
pub(crate) fn health_routes() -> Router<Arc<AppState>> {
    status::health_routes()
}

/// RFC 3339, UTC, from microseconds since the epoch.
pub(crate) fn timestamp(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::is_own_name;

    #[test]
    fn only_addresses_and_localhost_are_this_server() {
        for (host, own) in [
            ("127.0.0.1:8080", true),
            ("localhost", true),
            ("[::1]:8080", true),
            ("192.168.1.4:8080", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_own_name(host), own, "{host}");
        }
    }
}
