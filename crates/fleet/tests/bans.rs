//! Stories of bans.

mod garage;

use fleet::{FleetError, Kind, NewBan};
use garage::{Garage, now_us};

fn ban(target: &str, until_us: Option<i64>) -> NewBan {
    NewBan {
        target: target.into(),
        reason: "floods".into(),
        until_us,
    }
}

#[tokio::test]
async fn a_ban_survives_a_restart_and_is_audited() {
    let garage = Garage::open().await;
    let fleet = &garage.fleet;
    let tomorrow = now_us() + 86_400_000_000;
    fleet
        .set_ban(&garage.anna, ban("client:tcu-1/app", None))
        .await
        .unwrap();
    fleet
        .set_ban(&garage.anna, ban("address:10.0.0.0/8", None))
        .await
        .unwrap();
    // The same target again: its newest form counts.
    fleet
        .set_ban(&garage.anna, ban("address:10.0.0.0/8", Some(tomorrow)))
        .await
        .unwrap();

    let garage = garage.reopen().await;
    let bans = garage.fleet.list_bans().await.unwrap();
    let listed: Vec<_> = bans
        .iter()
        .map(|ban| (ban.target.as_str(), ban.until_us, ban.created_by.as_str()))
        .collect();
    assert_eq!(
        listed,
        [
            ("address:10.0.0.0/8", Some(tomorrow), "person:anna"),
            ("client:tcu-1/app", None, "person:anna")
        ]
    );

    garage
        .fleet
        .lift_ban(&garage.anna, "client:tcu-1/app")
        .await
        .unwrap();
    let gone = garage
        .fleet
        .lift_ban(&garage.anna, "client:tcu-1/app")
        .await;
    assert!(matches!(
        gone,
        Err(FleetError::NotFound {
            kind: Kind::Ban,
            ..
        })
    ));
    assert_eq!(garage.fleet.list_bans().await.unwrap().len(), 1);
    let audit = garage.audit().await;
    assert!(audit.contains(&"person:anna ban.set ban address:10.0.0.0/8 done".to_owned()));
    assert!(audit.contains(&"person:anna ban.lift ban client:tcu-1/app done".to_owned()));
}

#[tokio::test]
async fn a_ban_that_bans_nobody_is_refused() {
    let garage = Garage::open().await;
    let over = garage
        .fleet
        .set_ban(&garage.anna, ban("client:a", Some(now_us() - 1)))
        .await;
    assert!(over.unwrap_err().to_string().contains("is over already"));
    let long = ban(&"x".repeat(1025), None);
    let long = garage.fleet.set_ban(&garage.anna, long).await;
    assert!(long.unwrap_err().to_string().contains("allowed are 1024"));
    assert!(garage.fleet.list_bans().await.unwrap().is_empty());
}
