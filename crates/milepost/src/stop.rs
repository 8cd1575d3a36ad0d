//! Ctrl-c and SIGTERM as a token: the first asks to end, the second ends.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Status of a process that was told twice (128 + SIGINT, as shells have it).
const INTERRUPTED: i32 = 130;

/// Cancels `token` at the first signal; at the second the process ends at once.
pub fn on_ctrl_c(token: CancellationToken) -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {} // cancel-safe: a signal is taken or stays
                _ = terminate.recv() => {} // cancel-safe, as above
            }
            if stop.is_cancelled() {
                std::process::exit(INTERRUPTED);
            }
            eprintln!("\nstopping: waiting for open acknowledgements (ctrl-c again ends at once)");
            stop.cancel();
        }
    });
    Ok(token)
}
