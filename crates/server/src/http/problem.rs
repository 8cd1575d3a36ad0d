//! Errors of the HTTP API: `application/problem+json` (RFC 9457) with a closed set of types.
//!
//! The `type` is a contract: clients match on it, texts may change.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// What kind of thing went wrong, one for each thing a client can do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// The request says something impossible.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// A thing of that name exists already.
    AlreadyExists,
    /// The vehicle or device is disabled.
    Disabled,
    /// `If-Match` names a version that is no longer current.
    VersionConflict,
    /// The body is longer than this door accepts.
    TooLarge,
    /// The SQL text is not valid.
    SqlSyntax,
    /// A table, column or function that the query names does not exist.
    SqlNotFound,
    /// The data does not allow it: a division by zero, text that is no number.
    SqlExecution,
    /// The statement would change something.
    SqlReadOnly,
    /// More rows than allowed.
    SqlRowLimit,
    /// More time than allowed.
    SqlTimeLimit,
    /// More memory than allowed.
    SqlMemoryLimit,
    /// Certificates could not be read again; the old ones stay.
    ReloadFailed,
    /// Too many at once; try again.
    Busy,
    /// A fault of the server, which its log explains.
    Internal,
}

impl ProblemType {
    /// The stable `type` and `title` and the status.
    const fn parts(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Self::Invalid => (
                "/problems/invalid",
                "Invalid request",
                StatusCode::BAD_REQUEST,
            ),
            Self::NotFound => ("/problems/not-found", "Not found", StatusCode::NOT_FOUND),
            Self::AlreadyExists => (
                "/problems/already-exists",
                "Already exists",
                StatusCode::CONFLICT,
            ),
            Self::Disabled => ("/problems/disabled", "Disabled", StatusCode::CONFLICT),
            Self::VersionConflict => (
                "/problems/version-conflict",
                "Changed by somebody else",
                StatusCode::PRECONDITION_FAILED,
            ),
            Self::TooLarge => (
                "/problems/too-large",
                "Too large",
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            Self::SqlSyntax => (
                "/problems/sql-syntax",
                "Not a valid query",
                StatusCode::BAD_REQUEST,
            ),
            Self::SqlNotFound => (
                "/problems/sql-not-found",
                "Not in the lake",
                StatusCode::NOT_FOUND,
            ),
            Self::SqlExecution => (
                "/problems/sql-execution",
                "Query failed",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Self::SqlReadOnly => (
                "/problems/sql-read-only",
                "Queries only read",
                StatusCode::FORBIDDEN,
            ),
            Self::SqlRowLimit => (
                "/problems/sql-row-limit",
                "Too many rows",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Self::SqlTimeLimit => (
                "/problems/sql-time-limit",
                "Query took too long",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Self::SqlMemoryLimit => (
                "/problems/sql-memory-limit",
                "Query needed too much memory",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Self::ReloadFailed => (
                "/problems/reload-failed",
                "Nothing was reloaded",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Self::Busy => ("/problems/busy", "Busy", StatusCode::SERVICE_UNAVAILABLE),
            Self::Internal => (
                "/problems/internal",
                "Internal error",
                StatusCode::INTERNAL_SERVER_ERROR,
            ),
        }
    }
}

/// A problem as it goes over the wire.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ProblemBody {
    /// The stable kind, such as `/problems/not-found`.
    #[schema(example = "/problems/not-found")]
    r#type: &'static str,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// This case: the thing, the limit, the remedy.
    detail: String,
}

/// What a handler returns instead of an answer.
#[derive(Debug)]
pub struct Problem {
    kind: ProblemType,
    detail: String,
}

impl Problem {
    /// A problem whose text is written for the client.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }

    /// A fault of ours: the cause goes to the log, the client learns only where to look.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut causes = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            causes = format!("{causes}: {cause}");
            source = cause.source();
        }
        tracing::error!(event = "http.internal_error", error = causes);
        Self::new(
            ProblemType::Internal,
            "the server failed; its log has the cause",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (kind, title, status) = self.kind.parts();
        let body = ProblemBody {
            r#type: kind,
            title,
            status: status.as_u16(),
            detail: self.detail,
        };
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}
