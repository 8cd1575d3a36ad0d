//! `/clients`: MQTT clients and their sessions, connected or waited for.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use broker::{
    ClientDetail, ClientQuery, ClientSummary, ConnectionDetail, ConnectionSummary,
    MAX_CLIENTS_PER_PAGE, ReasonCode, SubscriptionDetail, WillDetail,
};
use fleet::Kind;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    PageBody, actor,
    body::Query,
    problem::{Problem, ProblemBody, ProblemType},
    timestamp,
};
use crate::{presence::version_text, state::AppState};

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(list_clients))
        .routes(routes!(get_client, purge_client))
        .routes(routes!(disconnect_client))
}

/// A client.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ClientBody {
    /// The device and, behind a slash, the client id it chose.
    #[schema(example = "truck-17-tcu/app")]
    id: String,
    /// The device it authenticated as, or `anonymous`.
    principal: String,
    /// The device's vehicle.
    vehicle: Option<String>,
    /// Whether it is connected.
    connected: bool,
    /// Where it connects from.
    peer: Option<String>,
    /// The listener it came through.
    listener: Option<String>,
    /// `mqtt`, `mqtts`, `ws`, `wss` or `quic`.
    transport: Option<&'static str>,
    /// `3.1.1` or `5`.
    mqtt_version: Option<&'static str>,
    /// Since when it is connected.
    connected_since: Option<String>,
    /// Number of the connection, as in presence events.
    connection: Option<u64>,
    /// When it was last connected, if it is not.
    disconnected_at: Option<String>,
    /// Subscriptions.
    subscriptions: usize,
    /// Messages of QoS 1 and 2 that wait for it, those in flight not included.
    queued: usize,
    /// Bytes of these.
    queued_bytes: usize,
}

impl From<ClientSummary> for ClientBody {
    fn from(client: ClientSummary) -> Self {
        let ConnectionColumns {
            peer,
            listener,
            transport,
            mqtt_version,
            connected_since,
            connection,
        } = client
            .connection
            .as_ref()
            .map(ConnectionColumns::of)
            .unwrap_or_default();
        Self {
            id: client.client_id.to_string(),
            principal: client.principal.to_string(),
            vehicle: client.group.map(|group| group.to_string()),
            connected: client.connection.is_some(),
            peer,
            listener,
            transport,
            mqtt_version,
            connected_since,
            connection,
            disconnected_at: client.disconnected_us.map(timestamp),
            subscriptions: client.subscriptions,
            queued: client.queued,
            queued_bytes: client.queued_bytes,
        }
    }
}

/// What a client has only while it is connected.
#[derive(Default)]
struct ConnectionColumns {
    peer: Option<String>,
    listener: Option<String>,
    transport: Option<&'static str>,
    mqtt_version: Option<&'static str>,
    connected_since: Option<String>,
    connection: Option<u64>,
}

impl ConnectionColumns {
    fn of(connection: &ConnectionSummary) -> Self {
        Self {
            peer: Some(connection.peer.to_string()),
            listener: Some(connection.listener.to_string()),
            transport: Some(connection.transport),
            mqtt_version: Some(version_text(connection.version)),
            connected_since: Some(timestamp(connection.since_us)),
            connection: Some(connection.number),
        }
    }
}

/// A client with everything the broker knows of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ClientDetailBody {
    /// As in the list.
    #[serde(flatten)]
    client: ClientBody,
    /// Its session.
    session: SessionBody,
    /// More about its connection, while it has one.
    connection_detail: Option<ConnectionBody>,
    /// Messages sent to it and not acknowledged.
    in_flight: usize,
    /// Its will, if it left one.
    will: Option<WillBody>,
    /// Its subscriptions, at most 1,000.
    subscription_list: Vec<SubscriptionBody>,
}

/// What becomes of a session.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct SessionBody {
    /// Whether it outlives its connection.
    stored: bool,
    /// Seconds it outlives its connection; `null` for ever.
    expiry: Option<u32>,
    /// When it ends if the client does not come back.
    expires: Option<String>,
    /// Whether it lost a subscription because access changed: the client begins anew when it comes back.
    curtailed: bool,
}

/// More about a connection.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ConnectionBody {
    /// Seconds; 0 for none.
    keep_alive: u16,
    /// Whether it asked to forget its earlier session.
    clean_start: bool,
    /// Messages of QoS 1 and 2 that it takes at once.
    receive_maximum: u16,
    /// Bytes that wait for its socket.
    unsent_bytes: usize,
    /// Messages it published over this connection.
    messages_in: u64,
    /// Messages it was sent.
    messages_out: u64,
    /// Bytes it sent, above TLS.
    bytes_in: u64,
    /// Bytes it was sent.
    bytes_out: u64,
}

impl From<ConnectionDetail> for ConnectionBody {
    fn from(connection: ConnectionDetail) -> Self {
        Self {
            keep_alive: connection.keep_alive,
            clean_start: connection.clean_start,
            receive_maximum: connection.receive_maximum,
            unsent_bytes: connection.unsent_bytes,
            messages_in: connection.traffic.messages_in,
            messages_out: connection.traffic.messages_out,
            bytes_in: connection.traffic.bytes_in,
            bytes_out: connection.traffic.bytes_out,
        }
    }
}

/// A will. Its payload is the client's own affair.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct WillBody {
    /// Where it goes.
    topic: String,
    /// 0, 1 or 2.
    qos: u8,
    /// Whether it will be retained.
    retain: bool,
    /// Seconds between the end of the connection and the will.
    delay: u32,
    /// Bytes of its payload.
    payload_bytes: usize,
}

impl From<WillDetail> for WillBody {
    fn from(will: WillDetail) -> Self {
        Self {
            topic: will.topic,
            qos: will.qos as u8,
            retain: will.retain,
            delay: will.delay,
            payload_bytes: will.payload_bytes,
        }
    }
}

/// A subscription.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct SubscriptionBody {
    /// As the client sent it, `$share/…` included.
    filter: String,
    /// Highest quality of service of what it gets: 0, 1 or 2.
    qos: u8,
    /// Whether it does not get what it published itself.
    no_local: bool,
    /// Whether RETAIN stays as it was published.
    retain_as_published: bool,
    /// Subscription identifier.
    id: Option<u32>,
}

impl From<SubscriptionDetail> for SubscriptionBody {
    fn from(subscription: SubscriptionDetail) -> Self {
        Self {
            filter: subscription.filter.to_string(),
            qos: subscription.qos as u8,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            id: subscription.id,
        }
    }
}

impl From<ClientDetail> for ClientDetailBody {
    fn from(detail: ClientDetail) -> Self {
        Self {
            client: detail.summary.into(),
            session: SessionBody {
                stored: detail.session.stored,
                expiry: detail.session.expiry,
                expires: detail.session.expires_us.map(timestamp),
                curtailed: detail.session.curtailed,
            },
            connection_detail: detail.connection.map(Into::into),
            in_flight: detail.in_flight,
            will: detail.will.map(Into::into),
            subscription_list: detail.subscriptions.into_iter().map(Into::into).collect(),
        }
    }
}

/// Which clients are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ClientsQuery {
    /// Items of the page, 1 to 1000; 100 when left out.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only those that are connected (`true`), or only those that are not (`false`).
    connected: Option<bool>,
    /// Only those of this device.
    principal: Option<String>,
    /// Only those of this vehicle.
    vehicle: Option<String>,
    /// Only those whose id begins like this.
    prefix: Option<String>,
}

impl ClientsQuery {
    fn check(self) -> Result<ClientQuery, Problem> {
        let limit = self.limit.unwrap_or(100);
        if !(1..=MAX_CLIENTS_PER_PAGE).contains(&limit) {
            return Err(Problem::new(
                ProblemType::Invalid,
                format!("limit: {limit} is outside of 1 to {MAX_CLIENTS_PER_PAGE}"),
            ));
        }
        let after = self.cursor.map(|cursor| {
            let bytes = URL_SAFE_NO_PAD.decode(&cursor).ok();
            bytes
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| {
                    Problem::new(
                        ProblemType::Invalid,
                        "cursor: is not one of this list; leave it out to begin at the front",
                    )
                })
        });
        Ok(ClientQuery {
            after: after.transpose()?.map(Into::into),
            limit,
            connected: self.connected,
            principal: self.principal.map(Into::into),
            group: self.vehicle.map(Into::into),
            prefix: self.prefix.map(Into::into),
        })
    }
}

/// Lists MQTT clients by id: those connected, and those whose session waits for them
#[utoipa::path(get, path = "/clients", tag = "clients", params(ClientsQuery),
    responses((status = 200, body = PageBody<ClientBody>), (status = 400, body = ProblemBody)))]
async fn list_clients(
    State(app): State<Arc<AppState>>,
    Query(query): Query<ClientsQuery>,
) -> Result<Json<PageBody<ClientBody>>, Problem> {
    let page = app.broker.clients(query.check()?).await;
    Ok(Json(PageBody {
        items: page.items.into_iter().map(Into::into).collect(),
        next_cursor: page
            .next
            .map(|next| URL_SAFE_NO_PAD.encode(next.as_bytes())),
    }))
}

/// Shows a client: connection, session, subscriptions, will
#[utoipa::path(get, path = "/clients/{client}", tag = "clients",
    params(("client" = String, Path, description = "Its id, percent-encoded: `truck-17-tcu%2Fapp`")),
    responses((status = 200, body = ClientDetailBody), (status = 404, body = ProblemBody)))]
async fn get_client(
    State(app): State<Arc<AppState>>,
    Path(client): Path<String>,
) -> Result<Json<ClientDetailBody>, Problem> {
    match app.broker.client(&client).await {
        Some(detail) => Ok(Json(detail.into())),
        None => Err(unknown(&client)),
    }
}

/// Whether somebody was disconnected.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct DisconnectedBody {
    /// `false`: it was not connected.
    disconnected: bool,
}

/// Disconnects a client; its session and its queue stay, and nothing keeps it from coming back
#[utoipa::path(post, path = "/clients/{client}/disconnect", tag = "clients",
    params(("client" = String, Path, description = "Its id, percent-encoded: `truck-17-tcu%2Fapp`")),
    responses((status = 200, body = DisconnectedBody), (status = 404, body = ProblemBody)))]
async fn disconnect_client(
    State(app): State<Arc<AppState>>,
    Path(client): Path<String>,
) -> Result<Json<DisconnectedBody>, Problem> {
    let known = app
        .broker
        .client(&client)
        .await
        .ok_or_else(|| unknown(&client))?;
    let details = json!({ "connected": known.summary.connection.is_some() });
    app.fleet
        .record(
            &actor(),
            "client.disconnect",
            Kind::Client,
            &client,
            details,
        )
        .await?;
    let reason = ReasonCode::AdministrativeAction;
    let disconnected = app.broker.disconnect_client(&client, reason).await;
    Ok(Json(DisconnectedBody { disconnected }))
}

/// What went with a client.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct PurgedBody {
    /// Messages that waited for it.
    queued: usize,
    /// Subscriptions.
    subscriptions: usize,
}

/// Ends a client's connection and session: its queue and subscriptions are gone for good
#[utoipa::path(delete, path = "/clients/{client}", tag = "clients",
    params(("client" = String, Path, description = "Its id, percent-encoded: `truck-17-tcu%2Fapp`")),
    responses((status = 200, body = PurgedBody), (status = 404, body = ProblemBody),
        (status = 503, body = ProblemBody)))]
async fn purge_client(
    State(app): State<Arc<AppState>>,
    Path(client): Path<String>,
) -> Result<Json<PurgedBody>, Problem> {
    let known = app
        .broker
        .client(&client)
        .await
        .ok_or_else(|| unknown(&client))?;
    let details = json!({
        "queued": known.summary.queued,
        "subscriptions": known.summary.subscriptions,
    });
    app.fleet
        .record(&actor(), "client.purge", Kind::Client, &client, details)
        .await?;
    match app.broker.purge_client(&client).await {
        Ok(Some(purged)) => Ok(Json(PurgedBody {
            queued: purged.queued,
            subscriptions: purged.subscriptions,
        })),
        Ok(None) => Err(unknown(&client)),
        Err(error) => Err(Problem::new(ProblemType::Busy, error.to_string())),
    }
}

fn unknown(client: &str) -> Problem {
    Problem::new(
        ProblemType::NotFound,
        format!("client `{client}` is neither connected nor waited for; ids are DEVICE/CLIENT-ID"),
    )
}
