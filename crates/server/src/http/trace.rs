//! `/trace`: what a vehicle or a client says and is told, packet by packet, as it happens.
//!
//! The answer has no end: one JSON object a line (NDJSON) until whoever asked hangs up or the server
//! stops. What the reader is too slow for is counted in `missed`; the broker never waits for it. An empty
//! line now and then finds out whether anybody still reads.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use broker::{
    Direction, MAX_TRACE_PAYLOAD, Trace, TraceError, TraceEvent, TraceFilter, TraceOptions,
    TracePayload,
};
use bytes::Bytes;
use fleet::{Kind, PageRequest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    actor,
    body::Query,
    problem::{Problem, ProblemBody, ProblemType},
    timestamp,
};
use crate::state::AppState;

/// How often a line is written at least.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(trace))
}

/// Whom to follow, and what of it.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct TraceQuery {
    /// All devices that this vehicle has now.
    vehicle: Option<String>,
    /// One client, `DEVICE/CLIENT-ID`, or by the id it asks for, also while it is refused.
    client: Option<String>,
    /// `redacted` (the default): the length of payloads; `shown`: their first 64 KiB.
    payload: Option<Payload>,
}

/// What is shown of payloads.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
enum Payload {
    Redacted,
    Shown,
}

/// One line of a trace.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct TraceBody {
    /// When.
    time: String,
    /// The client.
    client: String,
    /// The device, once it is known.
    principal: Option<String>,
    /// Where the connection comes from.
    peer: String,
    /// `in` from the client, `out` to it, `none` for what is not a packet.
    direction: &'static str,
    /// `CONNECT`, `PUBLISH`, …; `connected`, `disconnected`.
    kind: &'static str,
    /// One line for people.
    packet: String,
    /// Topic of a message.
    topic: Option<String>,
    /// Quality of service of a message.
    qos: Option<u8>,
    /// Packet identifier.
    packet_id: Option<u16>,
    /// Reason in words.
    reason: Option<&'static str>,
    /// Reason code.
    reason_code: Option<u8>,
    /// Bytes of the packet.
    bytes: usize,
    /// Bytes of the payload.
    payload_bytes: Option<usize>,
    /// The payload, if it is shown and text.
    payload: Option<String>,
    /// The payload in base64, if it is shown and not text.
    payload_base64: Option<String>,
    /// Events lost before this one, because they were not read quickly enough.
    missed: u64,
}

impl From<TraceEvent> for TraceBody {
    fn from(event: TraceEvent) -> Self {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let (payload, payload_base64) = match event.payload {
            None => (None, None),
            Some(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => (Some(text.to_owned()), None),
                Err(_) => (None, Some(STANDARD.encode(&bytes))),
            },
        };
        Self {
            time: timestamp(event.at_us),
            client: event.client_id.to_string(),
            principal: event.principal.map(|principal| principal.to_string()),
            peer: event.peer.to_string(),
            direction: match event.direction {
                Direction::In => "in",
                Direction::Out => "out",
                Direction::None => "none",
            },
            kind: event.kind,
            packet: event.packet,
            topic: event.topic,
            qos: event.qos.map(|qos| qos as u8),
            packet_id: event.packet_id,
            reason: event.reason.map(|reason| reason.name()),
            reason_code: event.reason.map(|reason| reason.as_u8()),
            bytes: event.bytes,
            payload_bytes: event.payload_bytes,
            payload,
            payload_base64,
            missed: event.missed,
        }
    }
}

/// Follows a vehicle or a client live, packet by packet
///
/// One JSON object a line, until the reader hangs up. Passwords are never in it; payloads only if asked
/// for. At most 16 traces at once.
#[utoipa::path(get, path = "/trace", tag = "clients", params(TraceQuery),
    responses((status = 200, body = TraceBody, content_type = "application/x-ndjson"),
              (status = 400, body = ProblemBody), (status = 404, body = ProblemBody),
              (status = 503, body = ProblemBody)))]
async fn trace(
    State(app): State<Arc<AppState>>,
    Query(query): Query<TraceQuery>,
) -> Result<Response, Problem> {
    let payload = query.payload.unwrap_or(Payload::Redacted);
    let (kind, name, filter) = match (query.vehicle, query.client) {
        (Some(vehicle), None) => {
            let principals = devices(&app, &vehicle).await?;
            let filter = TraceFilter {
                principals,
                ..TraceFilter::default()
            };
            (Kind::Vehicle, vehicle, filter)
        }
        (None, Some(client)) => {
            let filter = TraceFilter {
                clients: vec![client.as_str().into()],
                ..TraceFilter::default()
            };
            (Kind::Client, client, filter)
        }
        _ => {
            return Err(Problem::new(
                ProblemType::Invalid,
                "name either a vehicle or a client to follow",
            ));
        }
    };
    let shown = payload == Payload::Shown;
    let details = json!({ "payload": if shown { "shown" } else { "redacted" } });
    app.fleet
        .record(&actor(), "client.trace", kind, &name, details)
        .await?;
    let options = TraceOptions {
        payload: match payload {
            Payload::Redacted => TracePayload::Redacted,
            Payload::Shown => TracePayload::Shown {
                max_bytes: MAX_TRACE_PAYLOAD,
            },
        },
        ..TraceOptions::default()
    };
    let trace = app.broker.trace(filter, options)?;
    let lines = futures::stream::unfold(trace, next_line);
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// The next line, or an empty one when nothing has happened for a while.
async fn next_line(mut trace: Trace) -> Option<(Result<Bytes, Infallible>, Trace)> {
    let line = match tokio::time::timeout(HEARTBEAT, trace.next()).await {
        Ok(event) => {
            let mut line = serde_json::to_vec(&TraceBody::from(event?)).unwrap_or_default();
            line.push(b'\n');
            Bytes::from(line)
        }
        Err(_) => Bytes::from_static(b"\n"),
    };
    Some((Ok(line), trace))
}

/// The devices of a vehicle, as the broker calls them.
async fn devices(app: &AppState, vehicle: &str) -> Result<Vec<Arc<str>>, Problem> {
    let mut names = Vec::new();
    let mut cursor = None;
    loop {
        let request = PageRequest::new(fleet::MAX_PAGE, cursor)?;
        let page = app.fleet.list_devices(Some(vehicle), &request).await?;
        names.extend(page.items.iter().map(|device| device.id.to_shared()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    match names.is_empty() {
        false => Ok(names),
        true => Err(Problem::new(
            ProblemType::NotFound,
            format!("vehicle `{vehicle}` has no device that could be followed"),
        )),
    }
}

impl From<TraceError> for Problem {
    fn from(error: TraceError) -> Self {
        let kind = match error {
            TraceError::TooMany => ProblemType::Busy,
            _ => ProblemType::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}
