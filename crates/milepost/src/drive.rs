//! Watching vehicles drive: progress while they are provisioned, a summary line while they drive, and
//! what went wrong at the end.

use std::{
    future::Future,
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_sim::fleet::{FleetReport, Live, Totals};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often the summary is renewed where somebody looks, and written where nobody does.
const LIVE: Duration = Duration::from_secs(1);
const LOGGED: Duration = Duration::from_secs(5);

/// `--duration` and `--interval`: `30s`, `5m`, `100ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    server::config::quantity::parse_duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "write a time with its unit, such as 30s or 5m".to_owned())
}

/// A bar over the vehicles to be provisioned; on stderr, and only where somebody looks.
pub fn provision_bar(vehicles: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(vehicles as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:32}] {pos}/{len}  {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message("registering vehicles, signing certificates");
    bar
}

/// A running summary.
pub struct Summary {
    stop: CancellationToken,
    task: JoinHandle<()>,
    line: ProgressBar,
}

impl Summary {
    /// Takes it away.
    pub async fn end(self) {
        self.stop.cancel();
        // It only waits and prints: nothing in it can fail.
        let _ = self.task.await;
        self.line.finish_and_clear();
    }
}

/// Shows what the vehicles do, and behind it what `server` says; one line that renews itself on a
/// terminal, a line every few seconds in a log.
pub fn summary<F, S>(live: Arc<Live>, server: S) -> Summary
where
    S: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = String> + Send,
{
    let stop = CancellationToken::new();
    let line = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        line.set_style(style);
    }
    let on_terminal = std::io::stderr().is_terminal();
    let task = tokio::spawn({
        let (stop, line) = (stop.clone(), line.clone());
        async move {
            let mut tick = tokio::time::interval(if on_terminal { LIVE } else { LOGGED });
            tick.tick().await;
            let mut before = (Instant::now(), Totals::default());
            loop {
                tokio::select! {
                    () = stop.cancelled() => return, // cancel-safe: waiting changes nothing
                    _ = tick.tick() => {} // cancel-safe: a tick is taken or stays
                }
                let (now, totals) = (Instant::now(), live.totals());
                let seconds = now.duration_since(before.0).as_secs_f64().max(0.001);
                let rate = (totals.acknowledged - before.1.acknowledged) as f64 / seconds;
                before = (now, totals);
                let mut text = format!(
                    "{}/{} vehicles | {rate:.0} messages/s | {} acknowledged",
                    totals.connected,
                    totals.vehicles,
                    grouped(totals.acknowledged)
                );
                let behind = server().await;
                if !behind.is_empty() {
                    text = format!("{text} | {behind}");
                }
                if totals.connected < totals.vehicles
                    && let Some(trouble) = live.trouble()
                {
                    text = format!("{text} | {trouble}");
                }
                match on_terminal {
                    true => line.set_message(text),
                    false => eprintln!("{text}"),
                }
                line.tick();
            }
        }
    });
    Summary { stop, task, line }
}

/// `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Says on stderr which vehicles did not get everything through, and why; the first few of them.
pub fn troubles(report: &FleetReport) {
    let troubled: Vec<_> = report
        .vehicles
        .iter()
        .filter(|vehicle| {
            vehicle.acknowledged < vehicle.published || vehicle.dropped + vehicle.open > 0
        })
        .collect();
    for vehicle in troubled.iter().take(5) {
        let cause = vehicle
            .trouble
            .as_ref()
            .map(|error| format!(": {error}"))
            .unwrap_or_default();
        eprintln!(
            "warning: {}: {} of {} messages acknowledged, {} refused, {} without an answer, {} dropped{cause}",
            vehicle.vehicle,
            vehicle.acknowledged,
            vehicle.published,
            vehicle.refused,
            vehicle.open,
            vehicle.dropped
        );
    }
    if troubled.len() > 5 {
        eprintln!("warning: and {} more vehicles", troubled.len() - 5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
