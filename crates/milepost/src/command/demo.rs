//! `milepost demo`: the whole road in one command, on embedded defaults.
//!
//! Starts a server in this process, provisions vehicles through its public API as a factory would,
//! drives them over mutual TLS, and at the end compares what was acknowledged with what the lake
//! holds, vehicle by vehicle.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use fleet_sim::{
    fleet::FleetReport,
    simulate::{SimulateOptions, Simulation},
};
use serde_json::{Value, json};
use server::{Server, StartError, config::Config};
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    drive::{self, grouped},
    output, stop,
};

/// How long the lake may take to hold what was acknowledged, once the vehicles have stopped.
const SETTLE: Duration = Duration::from_secs(60);
/// How long the server may take to stop.
const DRAIN: Duration = Duration::from_secs(20);
/// Rows go to Delta this often: often enough to watch it happen.
const COMMIT_EVERY: &str = "5s";

/// Start a server and drive a fleet of virtual vehicles, to see it work
///
/// Every vehicle is registered through the public API, makes its own key, gets a certificate and
/// connects with it over mutual TLS. Runs until ctrl-c, or for --duration; then checks that every
/// acknowledged message is in the lake, prints the totals and exits 0.
#[derive(clap::Args)]
pub struct Demo {
    /// How many vehicles
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    vehicles: u32,
    /// End by itself after the vehicles have driven for so long (30s, 5m)
    #[arg(long, value_name = "TIME", value_parser = drive::duration)]
    duration: Option<Duration>,
    /// Keep the data here; without it, it goes when the demo ends
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Open the server's page in a browser
    #[arg(long)]
    open: bool,
    /// Print the totals as JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        crate::logging::start_at(crate::logging::QUIET);
        let begun = Instant::now();
        // Watched from the first moment, so that ctrl-c during set-up ends in order too.
        let stop = stop::on_ctrl_c(CancellationToken::new()).context("cannot watch for ctrl-c")?;
        // Removed when dropped, at the end of this function.
        let scratch;
        let data_dir = match &self.data_dir {
            Some(data_dir) => data_dir.clone(),
            None => {
                scratch = tempfile::Builder::new()
                    .prefix("milepost-demo-")
                    .tempdir()
                    .context("cannot make a temporary folder; name one with --data-dir")?;
                scratch.path().join("data")
            }
        };

        let server = match Server::start(config(&data_dir)?).await {
            Ok(server) => server,
            Err(StartError::Config(problems)) => bail!("{problems}"),
            Err(error) => return Err(error.into()),
        };
        let api = format!("http://{}", server.addresses().http);
        let outcome = Box::pin(self.drive(&server, &api, &data_dir, begun, stop)).await;
        // Stopped in order also when something failed: the data may be kept.
        let stopped = server.shutdown(DRAIN).await;
        let code = outcome?;
        stopped?;
        Ok(code)
    }

    async fn drive(
        &self,
        server: &Server,
        api: &str,
        data_dir: &Path,
        begun: Instant,
        stop: CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        for line in server.addresses().lines() {
            eprintln!("{line}");
        }
        let (_, mqtt) = server.addresses().mqtt[0];
        let options = SimulateOptions {
            duration: self.duration,
            credentials: self
                .data_dir
                .is_some()
                .then(|| data_dir.join("demo-credentials")),
            ..SimulateOptions::new(mqtt.into(), api, self.vehicles as usize)
        };
        let bar = drive::provision_bar(self.vehicles as usize);
        let progress = bar.clone();
        let simulation = tokio::select! {
            prepared = Simulation::prepare(options, move |done, _| {
                progress.set_position(done as u64);
            }) => prepared?, // not cancel-safe, and need not be: what is registered stays registered
            () = stop.cancelled() => { // cancel-safe: waiting on the token changes nothing
                bar.finish_and_clear();
                return Ok(ExitCode::FAILURE);
            }
        };
        bar.finish_and_clear();
        eprintln!(
            "{} vehicles registered, certificates signed, {:.1} s after the start; they drive now",
            self.vehicles,
            begun.elapsed().as_secs_f64()
        );
        self.invite(server, api);

        let client = Api::new(api)?;
        let live = simulation.live();
        let summary = drive::summary(live.clone(), {
            let client = client.clone();
            move || {
                let client = client.clone();
                async move { lake_summary(&client).await }
            }
        });
        let report = simulation.run(stop).await;
        summary.end().await;
        let report = report?;
        drive::troubles(&report);

        let verdict = verify(server, &client, &report).await?;
        self.conclude(&report, &verdict, data_dir)
    }

    /// What to do while it runs, ready to paste.
    fn invite(&self, server: &Server, api: &str) {
        let exe = std::env::current_exe().unwrap_or_else(|_| "milepost".into());
        let milepost = exe.display();
        let addresses = server.addresses();
        let option = match addresses.http.port() {
            8080 => String::new(),
            _ => format!(" --api {api}"),
        };
        eprintln!(
            "\nAsk while they drive, in another terminal:\n\n  \
             {milepost} sql{option} \"SELECT vehicle_id, value AS km_h, time FROM last_known_state \
             WHERE signal = 'Vehicle.Speed' ORDER BY value DESC LIMIT 10\"\n  \
             {milepost} sql{option} \"SELECT signal, unit, count(*) AS readings, avg(value) AS mean \
             FROM signals GROUP BY signal, unit ORDER BY readings DESC LIMIT 20\"\n  \
             psql -h 127.0.0.1 -p {} -U milepost -c \"SELECT model, count(*) FROM vehicles GROUP BY model\"\n\n  \
             {api}  in a browser; ctrl-c ends the demo\n",
            addresses.sql.port()
        );
        if self.open
            && let Err(error) = std::process::Command::new("xdg-open").arg(api).spawn()
        {
            eprintln!("warning: cannot open a browser ({error}); open {api} yourself");
        }
    }

    fn conclude(
        &self,
        report: &FleetReport,
        verdict: &Verdict,
        data_dir: &Path,
    ) -> anyhow::Result<ExitCode> {
        let totals = report.totals;
        if self.json {
            output::json(&json!({
                "vehicles": totals.vehicles,
                "published": totals.published,
                "acknowledged": totals.acknowledged,
                "refused": totals.refused,
                "reconnects": totals.reconnects,
                "messages_in_lake": verdict.messages,
                "signals_in_lake": verdict.signals,
                "missing": verdict.missing,
                "twice": verdict.twice,
                "freshness_p50_ms": verdict.status["freshness_p50_ms"],
                "freshness_p99_ms": verdict.status["freshness_p99_ms"],
                "elapsed_s": report.elapsed.as_secs_f64(),
            }))?;
        }
        eprintln!(
            "{} vehicles drove for {:.0} s: {} messages published, {} acknowledged, {} refused, {} reconnects",
            totals.vehicles,
            report.elapsed.as_secs_f64(),
            grouped(totals.published),
            grouped(totals.acknowledged),
            grouped(totals.refused),
            grouped(totals.reconnects)
        );
        eprintln!(
            "in the lake: {} messages, {} readings",
            grouped(verdict.messages),
            grouped(verdict.signals)
        );
        if self.data_dir.is_some() {
            eprintln!("the data is kept in {}", data_dir.display());
        }
        let complete = verdict.missing == 0 && verdict.twice == 0 && totals.acknowledged > 0;
        if complete {
            eprintln!("verified: every acknowledged message of every vehicle is in the lake, once");
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!(
            "error: {} acknowledged messages are not in the lake, {} are in it twice",
            verdict.missing, verdict.twice
        );
        Ok(ExitCode::FAILURE)
    }
}

/// The documented ports; where one is taken, any that is free.
fn config(data_dir: &Path) -> anyhow::Result<Config> {
    let port = |wanted: u16| match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) {
        Ok(_) => wanted,
        Err(_) => {
            eprintln!("port {wanted} is taken; using a free one");
            0
        }
    };
    let text = format!(
        "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:{}\"\n\
         [http]\nbind = \"127.0.0.1:{}\"\n[sql]\nbind = \"127.0.0.1:{}\"\n\
         [lake]\ncommit_every = \"{COMMIT_EVERY}\"\n",
        port(8883),
        port(8080),
        port(5433)
    );
    let mut config = Config::parse(Path::new("demo"), &text, std::iter::empty())?;
    config.data_dir = data_dir.to_owned();
    Ok(config)
}

/// What the server says of its lake, for the summary line.
async fn lake_summary(client: &Api) -> String {
    let Ok(status) = client.get("/status").await else {
        return "the API does not answer".into();
    };
    let count = |name: &str| status[name].as_u64().unwrap_or_default();
    let fresh = match status["freshness_p99_ms"].as_u64() {
        Some(ms) => format!("fresh within {ms} ms"),
        None => "no rows yet".to_owned(),
    };
    format!(
        "{} rows in Delta, {} live | {fresh}",
        grouped(count("bronze_rows") + count("silver_rows")),
        grouped(count("hot_rows"))
    )
}

/// What the lake holds of a run.
struct Verdict {
    messages: u64,
    signals: u64,
    missing: u64,
    twice: u64,
    status: Value,
}

/// Compares, vehicle by vehicle, what was acknowledged with what is in Delta. Acknowledged is in the log;
/// from there into the lake takes a moment, which is waited for.
async fn verify(server: &Server, client: &Api, report: &FleetReport) -> anyhow::Result<Verdict> {
    let deadline = Instant::now() + SETTLE;
    loop {
        server
            .lake()
            .flush()
            .await
            .context("the last rows could not be committed to Delta")?;
        let verdict = compare(client, report).await?;
        if verdict.missing == 0 || Instant::now() > deadline {
            return Ok(verdict);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn compare(client: &Api, report: &FleetReport) -> anyhow::Result<Verdict> {
    let answer = client
        .sql(&format!(
            "SELECT vehicle_id, count(*) AS messages, count(DISTINCT id) AS ids \
             FROM bronze.messages WHERE id LIKE '%-{}-%' GROUP BY vehicle_id",
            report.run
        ))
        .await?;
    let rows = answer.objects();
    let held: HashMap<&str, (u64, u64)> = rows
        .iter()
        .filter_map(|row| {
            let count = |name: &str| row[name].as_u64();
            Some((
                row["vehicle_id"].as_str()?,
                (count("messages")?, count("ids")?),
            ))
        })
        .collect();
    let mut verdict = Verdict {
        messages: held.values().map(|(messages, _)| messages).sum(),
        signals: number(client, "SELECT count(*) AS n FROM silver.signals").await?,
        missing: 0,
        twice: 0,
        status: client.get("/status").await?,
    };
    for vehicle in &report.vehicles {
        let (messages, ids) = held
            .get(vehicle.vehicle.as_str())
            .copied()
            .unwrap_or_default();
        verdict.missing += vehicle.acknowledged.saturating_sub(ids);
        // A message that was sent again after a broken connection may rightly be there twice (QoS 1).
        verdict.twice += (messages - ids).saturating_sub(vehicle.resent);
    }
    Ok(verdict)
}

async fn number(client: &Api, sql: &str) -> anyhow::Result<u64> {
    let answer = client.sql(sql).await?;
    let value = answer.rows.first().and_then(|row| row.first());
    value
        .and_then(Value::as_u64)
        .with_context(|| format!("the answer to `{sql}` is not a number"))
}
