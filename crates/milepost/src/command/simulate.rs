//! `milepost simulate`: virtual vehicles against a running server.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use fleet_sim::{
    client::Server,
    recording::Speed,
    simulate::{RecordingFiles, SimulateOptions, Simulation},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{drive, output, stop};

/// Drive virtual vehicles against a running server
///
/// Provisions vehicles through the HTTP API as a factory would and drives them over MQTT with their own
/// certificates: synthetic drives, or with --recording a recorded one. Exits 0 when every message was
/// acknowledged.
#[derive(clap::Args)]
pub struct Simulate {
    /// MQTT over TLS of the server
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8883")]
    server: Server,
    /// HTTP API of the server
    #[arg(
        long,
        value_name = "URL",
        env = "MILEPOST_API",
        default_value = "http://127.0.0.1:8080"
    )]
    api: String,
    /// How many vehicles
    #[arg(long, value_name = "N", default_value_t = 1)]
    vehicles: usize,
    /// Id of the vehicle, if it is one; otherwise vehicle-0001 and so on
    #[arg(long, value_name = "ID")]
    vehicle: Option<String>,
    /// When to stop (30s, 5m); without it at the end of the recording, or at ctrl-c
    #[arg(long, value_name = "TIME", value_parser = drive::duration)]
    duration: Option<Duration>,
    /// A recording to replay: candump log, drive cycle (CSV) or truck signals (CSV)
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
    /// What decodes the frames of a candump log
    #[arg(long, value_name = "FILE", requires = "recording")]
    dbc: Option<PathBuf>,
    /// Positions beside a candump log (CSV)
    #[arg(long, value_name = "FILE", requires = "recording")]
    gnss: Option<PathBuf>,
    /// Which DBC signal is which VSS signal (TOML); common names are known without it
    #[arg(long, value_name = "FILE", requires = "dbc")]
    mapping: Option<PathBuf>,
    /// How fast time goes by: 1, 10, … or max
    #[arg(long, value_name = "X", default_value = "1")]
    speed: Speed,
    /// Time between messages, or that one message of a recording spans
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = drive::duration)]
    interval: Duration,
    /// What synthetic drives follow from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where keys and certificates are kept for the next time
    #[arg(long, value_name = "DIR")]
    credentials: Option<PathBuf>,
    /// Print the totals as JSON
    #[arg(long)]
    json: bool,
}

impl Simulate {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        crate::logging::start_at(crate::logging::QUIET);
        let recording = self.recording.map(|recording| RecordingFiles {
            recording,
            dbc: self.dbc,
            gnss: self.gnss,
            mapping: self.mapping,
        });
        let options = SimulateOptions {
            vehicle: self.vehicle,
            duration: self.duration,
            recording,
            speed: self.speed,
            interval: self.interval,
            seed: self.seed,
            credentials: self.credentials,
            ..SimulateOptions::new(self.server, self.api, self.vehicles)
        };
        let bar = drive::provision_bar(self.vehicles);
        let progress = bar.clone();
        let simulation =
            Simulation::prepare(options, move |done, _| progress.set_position(done as u64)).await?;
        bar.finish_and_clear();
        let stop = stop::on_ctrl_c(CancellationToken::new()).context("cannot watch for ctrl-c")?;
        let summary = drive::summary(simulation.live(), || async { String::new() });
        let report = simulation.run(stop).await?;
        summary.end().await;

        let totals = report.totals;
        if self.json {
            output::json(&json!({
                "run": report.run,
                "vehicles": totals.vehicles,
                "published": totals.published,
                "acknowledged": totals.acknowledged,
                "refused": totals.refused,
                "open": totals.open,
                "dropped": totals.dropped,
                "resent": totals.resent,
                "reconnects": totals.reconnects,
                "bad_lines": report.bad_lines.count,
                "elapsed_s": report.elapsed.as_secs_f64(),
            }))?;
        } else {
            eprintln!(
                "{} vehicles, {} messages published, {} acknowledged, {:.1} s",
                totals.vehicles,
                totals.published,
                totals.acknowledged,
                report.elapsed.as_secs_f64()
            );
        }
        for line in &report.bad_lines.first {
            eprintln!("warning: {line}");
        }
        let unsaid = report
            .bad_lines
            .count
            .saturating_sub(report.bad_lines.first.len() as u64);
        if unsaid > 0 {
            eprintln!("warning: and {unsaid} more lines that were passed over");
        }
        drive::troubles(&report);
        let all_kept = totals.acknowledged == totals.published && totals.dropped + totals.open == 0;
        Ok(if all_kept {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
