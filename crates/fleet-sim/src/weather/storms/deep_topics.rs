//! Deep topics: as many levels as 65,535 bytes have room for, to publish to and to subscribe to.

use super::prelude::*;

const CLIENTS: usize = 20;
const LONGEST: usize = 65_535;

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let topic = "/".repeat(LONGEST);
    let filters = [
        topic.clone(),
        "+/".repeat(LONGEST / 2),
        format!("{}#", "+/".repeat(LONGEST / 2)),
        format!("{}#", "/".repeat(LONGEST - 1)),
    ];
    scene.prepared().await;
    let count = scene.share(CLIENTS);
    let (topic, filters) = (&topic, &filters);
    let said = crowd(count, |number| async move {
        let mut said = 0;
        while !scene.is_over() {
            let visit = async {
                let tcp = scene.plain(Receives::Usual).await?;
                let mut visitor = Visitor::arrive(tcp, &format!("deep-{number}")).await?;
                loop {
                    for filter in filters {
                        let one = std::slice::from_ref(filter);
                        for code in visitor.subscribe(one, QoS::AtLeastOnce).await? {
                            scene.tally.count(format!("SUBACK {}", Code(code)));
                        }
                        said += 1;
                    }
                    let code = visitor.publish(topic, "deep").await;
                    said += 1;
                    scene.tally.count(format!("PUBACK {}", Code(code?)));
                }
            };
            if let Some(Err::<(), Turned>(turned)) = scene.while_it_lasts(visit).await {
                scene.tally.count(turned);
            }
        }
        said
    })
    .await;
    Ok(format!(
        "{said} filters and topics of up to {} levels from {count} clients",
        LONGEST + 1
    ))
}
