//! Newcomers: good clients that come while it storms. Turning them away is allowed (overload refuses
//! the new rather than harming the old), being slow with them is seen.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::visitor::Visitor;
use crate::client::Server;
use crate::histogram::Histogram;

/// Between two of them.
const EVERY: Duration = Duration::from_millis(200);
/// Longer than a driver waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Those who come.
pub(super) struct Newcomers {
    stop: CancellationToken,
    task: JoinHandle<Came>,
}

/// How many came, and how it went.
#[derive(Default)]
pub(super) struct Came {
    pub(super) came: u64,
    pub(super) turned_away: u64,
    pub(super) welcome: Histogram,
}

impl Newcomers {
    pub(super) fn start(server: &Server) -> Self {
        let (stop, server) = (CancellationToken::new(), server.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut came = Came::default();
            let mut beat = interval(EVERY);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return came, // cancel-safe: waiting changes nothing
                    _ = beat.tick() => {}                    // cancel-safe: says so
                }
                let begin = Instant::now();
                let id = format!("newcomer-{}", came.came);
                came.came += 1;
                match timeout(PATIENCE, visit(&server, &id)).await {
                    Ok(Some(visitor)) => {
                        came.welcome.add(begin.elapsed());
                        visitor.leave().await;
                    }
                    _ => came.turned_away += 1,
                }
            }
        });
        Self { stop, task }
    }

    pub(super) async fn finish(self) -> Came {
        self.stop.cancel();
        match self.task.await {
            Ok(came) => came,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

async fn visit(server: &Server, id: &str) -> Option<Visitor<TcpStream>> {
    let tcp = TcpStream::connect((server.host(), server.port()))
        .await
        .ok()?;
    Visitor::arrive(tcp, id).await.ok()
}
