//! Extractors whose refusals are problems: JSON bodies and query strings.

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::problem::{Problem, ProblemType};

/// A JSON body; unlike axum's own it answers a bad one with a problem.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => {
                let kind = match &rejection {
                    JsonRejection::BytesRejection(rejection)
                        if rejection.status().as_u16() == 413 =>
                    {
                        ProblemType::TooLarge
                    }
                    _ => ProblemType::Invalid,
                };
                Err(Problem::new(kind, rejection.body_text()))
            }
        }
    }
}

/// A query string; a bad one is answered with a problem.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(ProblemType::Invalid, rejection.body_text())),
        }
    }
}
