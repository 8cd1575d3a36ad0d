//! Files exhausted: connections until the server has no more files for them, held open.

use tokio::io::AsyncReadExt;

use super::prelude::*;

/// At the same time; the server is to be started with fewer files.
pub(in crate::weather) const SOCKETS: usize = 3_000;
/// Before a client that was turned away comes again.
const PAUSE: Duration = Duration::from_secs(1);
/// For CONNACK. The system accepts connections that the server cannot.
const PATIENCE: Duration = Duration::from_secs(3);

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    scene.prepared().await;
    let count = scene.share(SOCKETS);
    let most = std::cell::Cell::new(0_u64);
    let now = std::cell::Cell::new(0_u64);
    let (most, now) = (&most, &now);
    let tried = crowd(count, |number| async move {
        let mut tried = 0;
        while !scene.is_over() {
            tried += 1;
            let visit = async {
                let tcp = scene.plain(Receives::Usual).await?;
                let id = format!("file-{number}");
                let arrival = Visitor::arrive(tcp, &id);
                let arrival = tokio::time::timeout(PATIENCE, arrival).await;
                let mut visitor = arrival.unwrap_or(Err(Turned::Silent))?;
                now.set(now.get() + 1);
                most.set(most.get().max(now.get()));
                let end = scene.while_it_lasts(visitor.wire.read_u8()).await;
                now.set(now.get() - 1);
                match end {
                    None => Ok(()),
                    Some(Ok(_)) => Err(Turned::Closed), // a DISCONNECT
                    Some(Err(error)) => Err(error.into()),
                }
            };
            if let Some(Err(turned)) = scene.while_it_lasts(visit).await {
                scene.tally.count(turned);
                sleep(PAUSE).await;
            }
        }
        tried
    })
    .await;
    Ok(format!(
        "{tried} connections tried by {count} clients, at most {} held at a time",
        most.get()
    ))
}
