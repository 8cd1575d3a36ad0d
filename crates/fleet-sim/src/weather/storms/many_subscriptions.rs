//! Many subscriptions: a client takes a hundred thousand of them, gets a message for some, and goes
//! without a goodbye; then the next one.

use super::prelude::*;

const SUBSCRIPTIONS: usize = 100_000;
/// Filters per SUBSCRIBE.
const BATCH: usize = 500;
/// Messages to as many of them.
const MESSAGES: usize = 100;

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    scene.prepared().await;
    let count = scene.share(SUBSCRIPTIONS);
    let (mut clients, mut granted, mut delivered) = (0, 0, 0);
    while !scene.is_over() {
        let visit = async {
            let tcp = scene.plain(Receives::Usual).await?;
            let mut visitor = Visitor::arrive(tcp, &format!("many-{clients}")).await?;
            clients += 1;
            for first in (0..count).step_by(BATCH) {
                let filters: Vec<_> = (first..(first + BATCH).min(count)).map(filter).collect();
                for code in visitor.subscribe(&filters, QoS::AtMostOnce).await? {
                    match code.is_error() {
                        true => scene.tally.count(format!("SUBACK {}", Code(code))),
                        false => granted += 1,
                    }
                }
            }
            for number in 0..MESSAGES {
                let topic = format!("weather/many/{}/x", number * count / MESSAGES);
                visitor.publish(&topic, "many").await?;
                delivered += 1;
            }
            Ok::<_, Turned>(())
        };
        if let Some(Err(turned)) = scene.while_it_lasts(visit).await {
            scene.tally.count(turned);
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(format!(
        "{granted} subscriptions granted to {clients} clients that wanted {count} each, {delivered} messages to them"
    ))
}

/// Every second one with a wildcard.
fn filter(number: usize) -> String {
    match number % 2 {
        0 => format!("weather/many/{number}/x"),
        _ => format!("weather/many/{number}/+"),
    }
}
