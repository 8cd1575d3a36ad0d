//! Publishing over HTTPS: for devices without an MQTT client, with the certificate they have.
//!
//! `POST /topics/{topic}?qos=1` on a port that serves MQTT and HTTPS, in the shape of AWS IoT's HTTPS
//! interface, so that what was written for that works unchanged.
//!
//! Flow: [`web`](crate::web) → who is it, asked anew for each request ([`BrokerHandle::identify`]: bans,
//! hold-offs, the fleet) → [`BrokerHandle::publish_as`] (rates, may they, the event log, subscribers) → 200
//! once what PUBACK promises holds. Whoever is too fast or not wanted over MQTT is so here too: 429 or 403,
//! and `retry-after` where time helps.
//!
//! [`BrokerHandle::identify`]: broker::BrokerHandle::identify
//! [`BrokerHandle::publish_as`]: broker::BrokerHandle::publish_as

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use broker::{ConnectAttempt, Denied, Visitor};
use mqtt::{Publish, PublishProperties, QoS, ReasonCode, TopicName, Utf8};
use serde::Deserialize;
use serde_json::json;

use crate::{hooks::HTTPS, state::AppState, web::Caller};

/// What a device's requests are called where MQTT clients have their client id.
const CLIENT_ID: &str = "https";

/// The route, for messages of up to so many bytes.
pub fn routes(max_body: usize) -> Router<Arc<AppState>> {
    Router::new()
        .route("/topics/{*topic}", post(publish))
        .layer(DefaultBodyLimit::max(max_body))
}

/// The query of a publish, as AWS names it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PublishQuery {
    /// 0 or 1; 0 when left out.
    qos: Option<u8>,
    retain: Option<bool>,
    content_type: Option<String>,
    response_topic: Option<String>,
    /// Seconds.
    message_expiry: Option<u32>,
}

async fn publish(
    State(app): State<Arc<AppState>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path(topic): Path<String>,
    Query(query): Query<PublishQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let who = match identify(&app, &caller) {
        Ok(who) => who,
        Err(why) => {
            tracing::warn!(event = "web.denied", peer = %caller.peer, detail = %why);
            return denied(&why, &caller, &topic);
        }
    };
    let message = match message(&topic, query, &headers, body) {
        Ok(message) => message,
        Err(wrong) => {
            return failed(StatusCode::BAD_REQUEST, "InvalidRequestException", &wrong);
        }
    };
    match app.broker.publish_as(&who, &message).await {
        Ok(()) => answer(StatusCode::OK, None, "OK"),
        Err(why) => denied(&why, &caller, &topic),
    }
}

/// Who is it, this time: its certificate may have been revoked since the last request, or its address banned.
fn identify(app: &AppState, caller: &Caller) -> Result<Visitor, Denied> {
    app.broker.identify(&ConnectAttempt {
        listener: &caller.listener,
        peer: caller.peer,
        transport: HTTPS,
        client_id: CLIENT_ID,
        username: None,
        password: None,
        certificates: &caller.certificates,
        proxied: caller.proxied.as_ref(),
    })
}

fn message(
    topic: &str,
    query: PublishQuery,
    headers: &HeaderMap,
    payload: Bytes,
) -> Result<Publish, String> {
    let qos = match query.qos {
        None | Some(0) => QoS::AtMostOnce,
        Some(1) => QoS::AtLeastOnce,
        Some(other) => return Err(format!("qos={other} is not served; write 0 or 1")),
    };
    let properties = PublishProperties {
        content_type: query.content_type.as_deref().map(text).transpose()?,
        response_topic: query
            .response_topic
            .as_deref()
            .map(topic_name)
            .transpose()?,
        message_expiry_interval: query.message_expiry,
        user_properties: user_properties(headers)?,
        ..PublishProperties::default()
    };
    Ok(Publish {
        qos,
        retain: query.retain.unwrap_or(false),
        topic: text(topic)?,
        properties,
        payload,
        ..Publish::default()
    })
}

fn topic_name(name: &str) -> Result<TopicName, String> {
    TopicName::parse(name).map_err(|error| format!("`{}`: {error}", name.escape_debug()))
}

/// A string as MQTT takes it.
fn text(text: &str) -> Result<Utf8, String> {
    Utf8::try_from(Bytes::copy_from_slice(text.as_bytes()))
        .map_err(|error| format!("`{}`: {error}", text.escape_debug()))
}

/// `x-amz-mqtt5-user-properties`: base64 of a JSON array of objects with one key each, or of a JSON
/// string that holds such an array (what SDKs make of a string).
fn user_properties(headers: &HeaderMap) -> Result<Vec<(Utf8, Utf8)>, String> {
    const NAME: &str = "x-amz-mqtt5-user-properties";
    let Some(header) = headers.get(NAME) else {
        return Ok(Vec::new());
    };
    let wrong = |why: &dyn std::fmt::Display| {
        format!("{NAME} is not base64 of a JSON array of objects with one key each: {why}")
    };
    let json = BASE64_STANDARD
        .decode(header.as_bytes())
        .map_err(|error| wrong(&error))?;
    let mut value: serde_json::Value =
        serde_json::from_slice(&json).map_err(|error| wrong(&error))?;
    if let serde_json::Value::String(inner) = &value {
        value = serde_json::from_str(inner).map_err(|error| wrong(&error))?;
    }
    let list: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_value(value).map_err(|error| wrong(&error))?;
    let mut properties = Vec::new();
    for (name, value) in list.into_iter().flatten() {
        let value = value
            .as_str()
            .ok_or_else(|| wrong(&format_args!("`{name}` is not a string")))?;
        properties.push((text(&name)?, text(value)?));
    }
    Ok(properties)
}

/// Why somebody is not served, and when to come again, in the words of HTTP.
fn denied(why: &Denied, caller: &Caller, topic: &str) -> Response {
    let forbidden = (StatusCode::FORBIDDEN, "ForbiddenException");
    let ((status, kind), message) = match why {
        // What the fleet says of it is for its operators.
        Denied::Unknown(_) if caller.certificates.is_empty() => (
            (StatusCode::UNAUTHORIZED, "UnauthorizedException"),
            "publishing over HTTPS needs a client certificate".to_owned(),
        ),
        Denied::Unknown(_) => (
            forbidden,
            "this certificate may not publish here".to_owned(),
        ),
        Denied::Banned(_) => (forbidden, why.to_string()),
        Denied::Reason(reason) => return refused(*reason, topic),
        // Not the client's own doing.
        Denied::Crowded { .. } | Denied::Behind { .. } => (
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailableException",
            ),
            why.to_string(),
        ),
        _ => (
            (StatusCode::TOO_MANY_REQUESTS, "ThrottlingException"),
            why.to_string(),
        ),
    };
    let mut response = failed(status, kind, &message);
    if let Some(wait) = why.retry_after() {
        let seconds = wait.as_millis().div_ceil(1000) as u64;
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A reason code in the words of HTTP.
fn refused(reason: ReasonCode, topic: &str) -> Response {
    let (status, kind) = match reason {
        ReasonCode::NotAuthorized => (StatusCode::FORBIDDEN, "ForbiddenException"),
        ReasonCode::TopicNameInvalid | ReasonCode::PayloadFormatInvalid => {
            (StatusCode::BAD_REQUEST, "InvalidRequestException")
        }
        ReasonCode::RetainNotSupported => (StatusCode::BAD_REQUEST, "InvalidRequestException"),
        ReasonCode::PacketTooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLargeException",
        ),
        ReasonCode::QuotaExceeded => (StatusCode::TOO_MANY_REQUESTS, "ThrottlingException"),
        ReasonCode::ServerShuttingDown | ReasonCode::ServerBusy => (
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailableException",
        ),
        _ => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalFailureException",
        ),
    };
    failed(status, kind, &format!("{reason}: {topic}"))
}

fn failed(status: StatusCode, kind: &'static str, message: &str) -> Response {
    answer(status, Some(kind), message)
}

fn answer(status: StatusCode, kind: Option<&'static str>, message: &str) -> Response {
    let trace = uuid::Uuid::now_v7().to_string();
    let body = Json(json!({ "message": message, "traceId": trace }));
    let mut response = (status, [("x-amzn-requestid", trace)], body).into_response();
    if let Some(kind) = kind {
        let value = HeaderValue::from_static(kind);
        response.headers_mut().insert("x-amzn-errortype", value);
    }
    response
}
