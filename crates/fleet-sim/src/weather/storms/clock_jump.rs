//! Clock jump: clients with a short keep-alive stay and send their pings, while somebody else turns the
//! server's clock. Whoever is sent away was measured by the wrong clock.

use mqtt::{Connect, Version};

use super::prelude::*;

const CLIENTS: usize = 50;
/// Seconds.
const KEEP_ALIVE: u16 = 5;
const PINGREQ: [u8; 2] = [0xC0, 0];

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let count = scene.share(CLIENTS);
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        let tcp = scene.plain(Receives::Usual).await?;
        let mut connect = Connect::new(Version::V5, format!("clock-{number}").as_str());
        connect.keep_alive = KEEP_ALIVE;
        clients.push(Some(Visitor::arrive_as(tcp, connect).await?));
    }
    scene.prepared().await;
    let stayed = crowd(count, |number| {
        let client = clients[number].take();
        async move {
            let Some(mut client) = client else { return 0 };
            while !scene.is_over() {
                client.spit(&PINGREQ);
                let beat = async {
                    client.flush().await?;
                    client.answer().await
                };
                if let Some(Err(turned)) = scene.while_it_lasts(beat).await {
                    scene.tally.count(turned);
                    return 0;
                }
                let half = Duration::from_secs(KEEP_ALIVE.into()) / 2;
                let _ = scene.while_it_lasts(sleep(half)).await;
            }
            1
        }
    })
    .await;
    Ok(format!(
        "{stayed} of {count} clients with a keep-alive of {KEEP_ALIVE} s stayed"
    ))
}
