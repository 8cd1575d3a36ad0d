//! Half open: sockets that never say CONNECT, opened again when the server closes them.

use tokio::io::AsyncReadExt;

use super::prelude::*;

/// At the same time.
pub(in crate::weather) const SOCKETS: usize = 5_000;
/// Before a socket that was closed is opened again.
const PAUSE: Duration = Duration::from_secs(1);

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    scene.prepared().await;
    let count = scene.share(SOCKETS);
    let opened = crowd(count, |_| async {
        let mut opened = 0;
        while !scene.is_over() {
            match scene.while_it_lasts(scene.plain(Receives::Usual)).await {
                None => break,
                Some(Err(error)) => scene.tally.count(Turned::Unreachable(error.kind())),
                Some(Ok(mut tcp)) => {
                    opened += 1;
                    match scene.while_it_lasts(tcp.read_u8()).await {
                        None => break,
                        Some(Ok(_)) => scene.tally.count("spoken to"),
                        Some(Err(error)) => scene.tally.count(Turned::from(error)),
                    }
                }
            }
            sleep(PAUSE).await;
        }
        opened
    })
    .await;
    Ok(format!(
        "{opened} sockets opened, at most {count} at a time"
    ))
}
