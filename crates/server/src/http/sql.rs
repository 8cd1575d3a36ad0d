//! `/sql`: one query, answered as JSON or as an Arrow IPC stream.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
};
use lake::{ARROW_STREAM, QueryError, QueryErrorKind};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body::Body,
    problem::{Problem, ProblemBody, ProblemType},
};
use crate::state::AppState;

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(query))
}

/// A question.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct QueryBody {
    /// One statement that only reads: SELECT, EXPLAIN, SHOW, DESCRIBE.
    #[schema(
        example = "SELECT vehicle_id, value FROM last_known_state WHERE signal = 'Vehicle.Speed'"
    )]
    query: String,
}

/// An answer. Written by the lake; this describes it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct AnswerBody {
    /// The columns, in the order of the query.
    columns: Vec<ColumnBody>,
    /// The rows, each a list with a value per column. Times are RFC 3339, bytes base64.
    rows: Vec<Vec<serde_json::Value>>,
    /// How many rows.
    row_count: u64,
    /// From arrival to the last row, milliseconds.
    elapsed_ms: u64,
}

/// A column of an answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ColumnBody {
    /// Its name.
    name: String,
    /// `bigint`, `double`, `text`, `timestamp`, `boolean`, `bytes`, `date`, …
    #[serde(rename = "type")]
    data_type: String,
}

/// Answers a query over hot and cold tables
///
/// JSON, or with `Accept: application/vnd.apache.arrow.stream` an Arrow IPC stream. Rows, time and memory
/// are limited; a query that reaches a limit is refused with a problem that names it, never cut short.
#[utoipa::path(post, path = "/sql", tag = "query", request_body = QueryBody,
    responses((status = 200, content((AnswerBody = "application/json"),
                                     (Vec<u8> = "application/vnd.apache.arrow.stream"))),
              (status = 400, body = ProblemBody), (status = 403, body = ProblemBody),
              (status = 404, body = ProblemBody), (status = 422, body = ProblemBody),
              (status = 503, body = ProblemBody)))]
async fn query(
    State(app): State<Arc<AppState>>,
    headers: HeaderMap,
    Body(body): Body<QueryBody>,
) -> Result<impl IntoResponse, Problem> {
    let wants_arrow = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|accept| accept.to_str().ok())
        .any(|accept| accept.contains(ARROW_STREAM));
    let answer = app.lake.query(&body.query, app.sql_limits).await?;
    // Encoding a large answer takes a while of CPU; other requests go on meanwhile.
    let encoded = tokio::task::spawn_blocking(move || match wants_arrow {
        true => answer.to_arrow_ipc().map(|bytes| (ARROW_STREAM, bytes)),
        false => answer.to_json().map(|bytes| ("application/json", bytes)),
    });
    match encoded.await {
        Ok(Ok((content_type, bytes))) => Ok(([(header::CONTENT_TYPE, content_type)], bytes)),
        Ok(Err(error)) => Err(Problem::internal(&error)),
        Err(error) => Err(Problem::internal(&error)),
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        let kind = match error.kind() {
            QueryErrorKind::Syntax => ProblemType::SqlSyntax,
            QueryErrorKind::NotFound => ProblemType::SqlNotFound,
            QueryErrorKind::NotReadOnly => ProblemType::SqlReadOnly,
            QueryErrorKind::RowLimit => ProblemType::SqlRowLimit,
            QueryErrorKind::TimeLimit => ProblemType::SqlTimeLimit,
            QueryErrorKind::MemoryLimit => ProblemType::SqlMemoryLimit,
            QueryErrorKind::Execution => ProblemType::SqlExecution,
            QueryErrorKind::Busy => ProblemType::Busy,
            QueryErrorKind::Internal => return Self::internal(&error),
        };
        Self::new(kind, error.to_string())
    }
}
