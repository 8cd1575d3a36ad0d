//! `/bans` and `/holdoffs`: who is kept out, by an operator and by the broker itself.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use broker::{BanTarget, HeldOff, HoldOffReason};
use fleet::{Ban, Kind, NewBan};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    PageBody, actor,
    body::Body,
    problem::{Problem, ProblemBody, ProblemType},
    timestamp,
};
use crate::{clock::now_us, config::quantity::parse_duration, state::AppState};

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(list_bans, set_ban))
        .routes(routes!(lift_ban))
        .routes(routes!(list_hold_offs))
        .routes(routes!(release))
}

/// A ban.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct BanBody {
    /// `client:DEVICE/CLIENT-ID`, `principal:DEVICE`, `address:10.0.0.0/8` or `certificate:SHA256`.
    target: String,
    /// Why.
    reason: String,
    /// Until when; `null`: until it is lifted.
    until: Option<String>,
    /// Whether it keeps somebody out now.
    in_force: bool,
    /// Since when.
    created: String,
    /// By whom.
    created_by: String,
}

impl BanBody {
    fn new(ban: Ban, now_us: i64) -> Self {
        Self {
            target: ban.target,
            reason: ban.reason,
            until: ban.until_us.map(timestamp),
            in_force: ban.until_us.is_none_or(|until| until > now_us),
            created: timestamp(ban.created_us),
            created_by: ban.created_by,
        }
    }
}

/// A ban to set.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewBanBody {
    /// `client:DEVICE/CLIENT-ID`, `principal:DEVICE`, `address:10.0.0.0/8` or `certificate:SHA256`.
    #[schema(example = "principal:truck-17-tcu")]
    target: String,
    /// Why, for whoever wonders later.
    reason: Option<String>,
    /// How long, such as `1h`; for ever when left out.
    #[schema(example = "1h")]
    duration: Option<String>,
}

/// Lists bans, those whose time is over among them
#[utoipa::path(get, path = "/bans", tag = "clients",
    responses((status = 200, body = PageBody<BanBody>)))]
async fn list_bans(State(app): State<Arc<AppState>>) -> Result<Json<PageBody<BanBody>>, Problem> {
    let (bans, now) = (app.fleet.list_bans().await?, now_us());
    let items = bans.into_iter().map(|ban| BanBody::new(ban, now));
    Ok(whole(items.collect()))
}

/// Bans a client, a device, addresses or a certificate; their connections end at once
///
/// A ban of the same target is replaced. Bans outlive the server.
#[utoipa::path(post, path = "/bans", tag = "clients", request_body = NewBanBody,
    responses((status = 201, body = BanBody), (status = 400, body = ProblemBody)))]
async fn set_ban(
    State(app): State<Arc<AppState>>,
    Body(body): Body<NewBanBody>,
) -> Result<(StatusCode, Json<BanBody>), Problem> {
    let target = parse_target(&body.target)?;
    let now = now_us();
    let until_us = match &body.duration {
        None => None,
        Some(text) => Some(now.saturating_add(lasting(text)?)),
    };
    let new = NewBan {
        target: target.to_string(),
        reason: body.reason.unwrap_or_default(),
        until_us,
    };
    let ban = app.fleet.set_ban(&actor(), new).await?;
    app.bans.enforce().await?;
    Ok((StatusCode::CREATED, Json(BanBody::new(ban, now))))
}

/// Lifts a ban
#[utoipa::path(delete, path = "/bans/{target}", tag = "clients",
    params(("target" = String, Path, description = "Its target, percent-encoded: `address:10.0.0.0%2F8`")),
    responses((status = 204), (status = 404, body = ProblemBody)))]
async fn lift_ban(
    State(app): State<Arc<AppState>>,
    Path(target): Path<String>,
) -> Result<StatusCode, Problem> {
    // In the one spelling; one that cannot be read is looked for as it is.
    let target = target
        .parse::<BanTarget>()
        .map_or(target, |target| target.to_string());
    app.fleet.lift_ban(&actor(), &target).await?;
    app.bans.enforce().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Somebody whom the broker does not listen to for a while.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct HoldOffBody {
    /// Who, as in bans.
    target: String,
    /// `bad_credentials` or `flapping`.
    why: &'static str,
    /// How often it had happened.
    count: u32,
    /// Until when.
    until: String,
}

impl From<HeldOff> for HoldOffBody {
    fn from(held: HeldOff) -> Self {
        Self {
            target: held.target.to_string(),
            why: match held.why {
                HoldOffReason::BadCredentials => "bad_credentials",
                HoldOffReason::Flapping => "flapping",
            },
            count: held.count,
            until: timestamp(held.until_us),
        }
    }
}

/// Lists whom the broker holds off: for bad credentials, or for connecting again and again
#[utoipa::path(get, path = "/holdoffs", tag = "clients",
    responses((status = 200, body = PageBody<HoldOffBody>)))]
async fn list_hold_offs(State(app): State<Arc<AppState>>) -> Json<PageBody<HoldOffBody>> {
    whole(app.broker.held_off().into_iter().map(Into::into).collect())
}

/// Listens to somebody again
#[utoipa::path(delete, path = "/holdoffs/{target}", tag = "clients",
    params(("target" = String, Path, description = "Its target, percent-encoded")),
    responses((status = 204), (status = 404, body = ProblemBody)))]
async fn release(
    State(app): State<Arc<AppState>>,
    Path(target): Path<String>,
) -> Result<StatusCode, Problem> {
    let target = parse_target(&target)?;
    match app.broker.release(&target) {
        true => {
            let name = target.to_string();
            app.fleet
                .record(&actor(), "hold-off.release", Kind::Client, &name, json!({}))
                .await?;
            Ok(StatusCode::NO_CONTENT)
        }
        false => Err(Problem::new(
            ProblemType::NotFound,
            format!("`{target}` is not held off"),
        )),
    }
}

fn parse_target(text: &str) -> Result<BanTarget, Problem> {
    text.parse()
        .map_err(|error| Problem::new(ProblemType::Invalid, format!("target: {error}")))
}

/// Microseconds.
fn lasting(text: &str) -> Result<i64, Problem> {
    parse_duration(text)
        .filter(|duration| *duration > Duration::ZERO)
        .and_then(|duration| i64::try_from(duration.as_micros()).ok())
        .ok_or_else(|| {
            let what = format!("duration: \"{text}\" is not a time with a unit, such as \"1h\"");
            Problem::new(ProblemType::Invalid, what)
        })
}

/// A list that is short enough to be one page.
fn whole<T>(items: Vec<T>) -> Json<PageBody<T>> {
    Json(PageBody {
        items,
        next_cursor: None,
    })
}
