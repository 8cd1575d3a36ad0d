//! Disk full: publishers whose messages are kept on disk go on while somebody else fills it and empties
//! it again. They must be told, and their service must come back.

use std::cell::RefCell;

use super::prelude::*;

const PUBLISHERS: usize = 4;
const PAYLOAD: usize = 4_096;
/// Between two messages of one.
const BEAT: Duration = Duration::from_millis(5);
/// Without an answer a publisher looks elsewhere.
const PATIENCE: Duration = Duration::from_secs(5);

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    scene.prepared().await;
    let begin = Instant::now();
    let count = scene.share(PUBLISHERS);
    let trouble: RefCell<(Option<Instant>, Option<Instant>)> = RefCell::default();
    let last = RefCell::new(None);
    let kept = crowd(count, |number| {
        let (trouble, last) = (&trouble, &last);
        async move {
            let mut kept = 0;
            while !scene.is_over() {
                let visit = async {
                    let tcp = scene.plain(Receives::Usual).await?;
                    let mut visitor = Visitor::arrive(tcp, &format!("disk-{number}")).await?;
                    let topic = format!("dt/load/bench/disk-{number}/x");
                    loop {
                        let asked = visitor.publish(&topic, vec![b'd'; PAYLOAD]);
                        let answer = tokio::time::timeout(PATIENCE, asked).await;
                        let answer = answer.unwrap_or(Err(Turned::Silent))?;
                        if answer.is_error() {
                            scene.tally.count(format!("PUBACK {}", Code(answer)));
                            note(&mut trouble.borrow_mut());
                        } else {
                            kept += 1;
                            *last.borrow_mut() = Some(Instant::now());
                        }
                        sleep(BEAT).await;
                    }
                };
                if let Some(Err::<(), Turned>(turned)) = scene.while_it_lasts(visit).await {
                    scene.tally.count(turned);
                    note(&mut trouble.borrow_mut());
                    sleep(Duration::from_millis(100)).await;
                }
            }
            kept
        }
    })
    .await;
    let since = |at: Option<Instant>| match at {
        Some(at) => format!("{:.1} s", (at - begin).as_secs_f64()),
        None => "never".to_owned(),
    };
    let (first, latest) = trouble.take();
    Ok(format!(
        "{kept} messages kept for {count} publishers; first refused at {}, last refused at {}, last kept at {}",
        since(first),
        since(latest),
        since(last.take())
    ))
}

/// Notes the first and the latest.
fn note(trouble: &mut (Option<Instant>, Option<Instant>)) {
    let now = Instant::now();
    trouble.0.get_or_insert(now);
    trouble.1 = Some(now);
}
