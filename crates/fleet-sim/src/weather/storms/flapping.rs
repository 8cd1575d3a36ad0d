//! Flapping: a few clients connect and leave as fast as they can, half of them without a goodbye.

use super::prelude::*;

const CLIENTS: usize = 50;

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    scene.prepared().await;
    let count = scene.share(CLIENTS);
    let came = crowd(count, |number| async move {
        let mut came = 0;
        while !scene.is_over() {
            let visit = async {
                let tcp = scene.plain(Receives::Usual).await?;
                let visitor = Visitor::arrive(tcp, &format!("flapping-{number}")).await?;
                came += 1;
                if number % 2 == 0 {
                    visitor.leave().await;
                }
                Ok::<_, Turned>(())
            };
            if let Some(Err(turned)) = scene.while_it_lasts(visit).await {
                scene.tally.count(turned);
                // Not faster than a device can be, even if it is told no at once.
                sleep(Duration::from_millis(1)).await;
            }
        }
        came
    })
    .await;
    Ok(format!("{came} connections of {count} clients"))
}
