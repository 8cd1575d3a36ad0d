//! Retained: half a million retained messages, and clients that subscribe to all of them at once.

use bytes::Bytes;

use super::prelude::*;
use super::volley::{Shot, volley};

const MESSAGES: usize = 500_000;
const CLIENTS: usize = 10;
const PAYLOAD: usize = 50;
/// In flight while they are loaded.
const BATCH: usize = 500;

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let messages = scene.share(MESSAGES);
    load(scene, messages).await?;
    scene.prepared().await;
    let count = scene.share(CLIENTS);
    let received = crowd(count, |number| async move {
        let mut received = 0;
        while !scene.is_over() {
            let visit = async {
                let tcp = scene.plain(Receives::Usual).await?;
                let mut visitor = Visitor::arrive(tcp, &format!("retained-{number}")).await?;
                let all = ["weather/retained/#".to_owned()];
                for code in visitor.subscribe(&all, QoS::AtMostOnce).await? {
                    if code.is_error() {
                        scene.tally.count(format!("SUBACK {}", Code(code)));
                    }
                }
                let mut left = messages;
                while left > 0 {
                    if let Packet::Publish(_) = visitor.answer().await? {
                        received += 1;
                        left -= 1;
                    }
                }
                visitor.leave().await;
                Ok::<_, Turned>(())
            };
            match scene.while_it_lasts(visit).await {
                None => {}
                Some(Ok(())) => scene.tally.count("all received"),
                Some(Err(turned)) => {
                    scene.tally.count(turned);
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        received
    })
    .await;
    Ok(format!(
        "{received} messages to {count} clients that subscribe to {messages} retained ones"
    ))
}

async fn load(scene: &Scene, messages: usize) -> Result<(), StormError> {
    let tcp = scene.plain(Receives::Usual).await?;
    let mut loader = Visitor::arrive(tcp, "retained-loader").await?;
    let payload = Bytes::from(vec![b'r'; PAYLOAD]);
    for first in (0..messages).step_by(BATCH) {
        let shots = (first..messages.min(first + BATCH)).map(|number| Shot {
            topic: format!("weather/retained/{}/{number}", number % 1_000),
            payload: payload.clone(),
            retain: true,
        });
        if let Some(reason) = volley(&mut loader, shots).await?.reason {
            return Err(StormError::Unwelcome {
                answer: format!("PUBACK {} for a retained message", Code(reason)),
            });
        }
    }
    loader.leave().await;
    Ok(())
}
