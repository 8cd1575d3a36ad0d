//! `milepost client`: MQTT clients: who is there, what passes, who is kept out.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    api::{Api, ApiArgs, segment},
    output,
};

/// Look at MQTT clients, end their connections, trace a vehicle, ban
#[derive(clap::Subcommand)]
pub enum Client {
    /// List clients, connected or with a session that waits for them
    List {
        /// Only those of this vehicle
        #[arg(long, value_name = "ID")]
        vehicle: Option<String>,
        /// Only those of this device
        #[arg(long, value_name = "ID")]
        device: Option<String>,
        /// Only those whose id begins like this
        #[arg(long, value_name = "TEXT")]
        prefix: Option<String>,
        /// Only those that are connected
        #[arg(long, conflicts_with = "away")]
        connected: bool,
        /// Only those that are not connected
        #[arg(long)]
        away: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one client: connection, session, subscriptions, will
    Show {
        /// Its id, DEVICE/CLIENT-ID
        client: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// End a client's connection; its session stays
    Disconnect {
        /// Its id, DEVICE/CLIENT-ID
        client: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// End a client's connection and session; its queue is gone for good
    Purge {
        /// Its id, DEVICE/CLIENT-ID
        client: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show live what a vehicle says and is told, packet by packet, until ctrl-c
    Trace {
        /// The vehicle
        #[arg(required_unless_present = "client")]
        vehicle: Option<String>,
        /// One client instead, DEVICE/CLIENT-ID
        #[arg(long, value_name = "ID", conflicts_with = "vehicle")]
        client: Option<String>,
        /// Show payloads too
        #[arg(long)]
        payload: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List bans
    Bans {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Keep somebody out whatever credentials they have; connections end at once
    Ban {
        /// client:DEVICE/CLIENT-ID, principal:DEVICE, address:10.0.0.0/8 or certificate:SHA256
        target: String,
        /// Why, for whoever wonders later
        #[arg(long, default_value = "")]
        reason: String,
        /// How long (30m, 1d); for ever when left out
        #[arg(long = "for", value_name = "TIME")]
        duration: Option<String>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Lift a ban
    Unban {
        /// Its target, as listed
        target: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List whom the server does not listen to for a while
    Holdoffs {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Listen to somebody again
    Release {
        /// Its target, as listed
        target: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl Client {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::List {
                vehicle,
                device,
                prefix,
                connected,
                away,
                api,
            } => {
                let filters = [
                    ("vehicle", vehicle),
                    ("principal", device),
                    ("prefix", prefix),
                    ("connected", connected.then(|| "true".to_owned())),
                    ("connected", away.then(|| "false".to_owned())),
                ];
                let filters: Vec<String> = filters
                    .into_iter()
                    .filter_map(|(key, value)| Some(format!("{key}={}", segment(&value?))))
                    .collect();
                let path = match filters.is_empty() {
                    true => "/clients".to_owned(),
                    false => format!("/clients?{}", filters.join("&")),
                };
                let clients = Api::new(&api.api)?.list(&path).await?;
                let columns = [
                    "id",
                    "vehicle",
                    "connected",
                    "peer",
                    "listener",
                    "connected_since",
                    "subscriptions",
                    "queued",
                ];
                output::list(&clients, &columns, api.json)?;
            }
            Self::Show { client, api } => {
                let path = format!("/clients/{}", segment(&client));
                let found = Api::new(&api.api)?.get(&path).await?;
                output::object(&found, api.json)?;
            }
            Self::Disconnect { client, api } => {
                let path = format!("/clients/{}/disconnect", segment(&client));
                let answer = Api::new(&api.api)?.post(&path, &json!({})).await?;
                if api.json {
                    output::json(&answer)?;
                } else if answer["disconnected"] == true {
                    eprintln!("client {client} disconnected");
                } else {
                    eprintln!("client {client} was not connected");
                }
            }
            Self::Purge { client, api } => {
                let path = format!("/clients/{}", segment(&client));
                let method = reqwest::Method::DELETE;
                let answer = Api::new(&api.api)?
                    .send_json(method, &path, &json!({}))
                    .await?;
                match api.json {
                    true => output::json(&answer)?,
                    false => eprintln!(
                        "client {client} purged: {} messages, {} subscriptions",
                        answer["queued"], answer["subscriptions"]
                    ),
                }
            }
            Self::Trace {
                vehicle,
                client,
                payload,
                api,
            } => trace(vehicle, client, payload, &api).await?,
            Self::Bans { api } => {
                let bans = Api::new(&api.api)?.get("/bans").await?;
                let columns = [
                    "target",
                    "in_force",
                    "until",
                    "reason",
                    "created",
                    "created_by",
                ];
                output::list(items(&bans), &columns, api.json)?;
            }
            Self::Ban {
                target,
                reason,
                duration,
                api,
            } => {
                let body = json!({ "target": target, "reason": reason, "duration": duration });
                let ban = Api::new(&api.api)?.post("/bans", &body).await?;
                output::object(&ban, api.json)?;
            }
            Self::Unban { target, api } => {
                let path = format!("/bans/{}", segment(&target));
                Api::new(&api.api)?.delete(&path).await?;
                eprintln!("{target} may come again");
            }
            Self::Holdoffs { api } => {
                let held = Api::new(&api.api)?.get("/holdoffs").await?;
                output::list(items(&held), &["target", "why", "count", "until"], api.json)?;
            }
            Self::Release { target, api } => {
                let path = format!("/holdoffs/{}", segment(&target));
                Api::new(&api.api)?.delete(&path).await?;
                eprintln!("{target} is listened to again");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn items(page: &Value) -> &[Value] {
    page["items"].as_array().map_or(&[], Vec::as_slice)
}

/// Prints a line per packet until the server ends, or nobody reads.
async fn trace(
    vehicle: Option<String>,
    client: Option<String>,
    payload: bool,
    api: &ApiArgs,
) -> anyhow::Result<()> {
    let whom = match (&vehicle, &client) {
        (_, Some(client)) => format!("client={}", segment(client)),
        (vehicle, None) => format!(
            "vehicle={}",
            segment(vehicle.as_deref().unwrap_or_default())
        ),
    };
    let shown = if payload { "shown" } else { "redacted" };
    let path = format!("/trace?{whom}&payload={shown}");
    let mut lines = Api::new(&api.api)?.lines(&path).await?;
    eprintln!("tracing; ctrl-c ends it");
    while let Some(line) = lines.next().await? {
        match api.json {
            true => output::line(&line)?,
            false => print_event(&serde_json::from_str(&line)?)?,
        }
    }
    eprintln!("the server ended the trace");
    Ok(())
}

fn print_event(event: &Value) -> anyhow::Result<()> {
    if event["missed"].as_u64().is_some_and(|missed| missed > 0) {
        output::line(format!("… {} events missed", event["missed"]))?;
    }
    let arrow = match event["direction"].as_str() {
        Some("in") => "→",
        Some("out") => "←",
        _ => "·",
    };
    let (time, client) = (output::cell(&event["time"]), output::cell(&event["client"]));
    output::line(format!(
        "{time}  {client}  {arrow} {}",
        output::cell(&event["packet"])
    ))?;
    for key in ["payload", "payload_base64"] {
        if let Some(payload) = event[key].as_str() {
            output::line(format!("    {payload}"))?;
        }
    }
    Ok(())
}
