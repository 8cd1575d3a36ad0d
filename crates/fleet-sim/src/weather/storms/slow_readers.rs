//! Slow readers: subscribers that stop reading, as a car does that drove into a tunnel.

use super::prelude::*;

const READERS: usize = 200;
/// Messages per second, each for all readers.
const RATE: u64 = 1_000;
const PAYLOAD: usize = 200;
const TOPIC: &str = "weather/slow";

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let count = scene.share(READERS);
    let mut readers = Vec::with_capacity(count);
    for number in 0..count {
        let tcp = scene.plain(Receives::Little).await?;
        let mut reader = Visitor::arrive(tcp, &format!("slow-{number}")).await?;
        reader
            .subscribe(&[TOPIC.to_owned()], QoS::AtLeastOnce)
            .await?;
        readers.push(reader);
    }
    let tcp = scene.plain(Receives::Usual).await?;
    let mut publisher = Visitor::arrive(tcp, "slow-publisher").await?;
    scene.prepared().await;

    let mut beat = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut sent = 0;
    while !scene.is_over() {
        beat.tick().await;
        match publisher.publish(TOPIC, vec![b's'; PAYLOAD]).await {
            Ok(answer) if answer.is_error() => {
                scene.tally.count(format!("PUBACK {}", Code(answer)))
            }
            Ok(_) => sent += 1,
            Err(turned) => {
                scene.tally.count(format!("publisher: {turned}"));
                break;
            }
        }
    }
    // Now they read, and learn what became of them.
    let kept = crowd(readers.len(), |_| {
        let reader = readers.pop();
        async move {
            let Some(mut reader) = reader else { return 0 };
            match tokio::time::timeout(Duration::from_secs(2), reader.linger()).await {
                Ok(turned) => {
                    scene.tally.count(format!("reader: {turned}"));
                    0
                }
                Err(_) => 1,
            }
        }
    })
    .await;
    Ok(format!(
        "{sent} messages to each of {count} readers that read nothing, {kept} of them still connected"
    ))
}
