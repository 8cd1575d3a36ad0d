//! The load generator counts what a broker sees.

mod support;

use std::sync::Arc;
use std::time::Duration;

use fleet_sim::client::Delivery;
use fleet_sim::load::{
    self, Identities, LoadError, LoadLive, LoadOptions, LoadReport, Subscribed, Work,
};
use mqtt::{ReasonCode, Version};
use support::{Broker, Script, Seen, TestCa};
use tokio_util::sync::CancellationToken;

fn anonymous(count: usize) -> Identities {
    Identities::Anonymous {
        count,
        prefix: "bench".into(),
    }
}

fn publish(delivery: Delivery, window: u16, count: u64) -> Work {
    Work::Publish {
        delivery,
        payload: 200,
        window,
        rate: None,
        count: Some(count),
    }
}

async fn run(options: LoadOptions) -> Result<LoadReport, LoadError> {
    let live = Arc::new(LoadLive::default());
    tokio::task::spawn_blocking(move || load::run(&options, &live, &CancellationToken::new()))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_sent_is_seen_and_counted() {
    for (version, delivery, window) in [
        (Version::V5, Delivery::AtLeastOnce, 1),
        (Version::V5, Delivery::AtLeastOnce, 16),
        (Version::V311, Delivery::AtLeastOnce, 7),
        (Version::V5, Delivery::AtMostOnce, 16),
    ] {
        let mut broker = Broker::start(Script::default()).await;
        let report = run(LoadOptions {
            version,
            work: publish(delivery, window, 50),
            ..LoadOptions::new(broker.address.into(), anonymous(9))
        })
        .await
        .unwrap();
        assert_eq!(
            (report.connections, report.failed, report.broken),
            (9, 0, 0)
        );
        assert_eq!(
            (report.sent, report.acknowledged, report.lost()),
            (450, 450, 0)
        );
        let expected = if delivery == Delivery::AtLeastOnce {
            450
        } else {
            0
        };
        assert_eq!(report.latency.count(), expected);

        let (mut messages, mut gone) = (Vec::new(), 0);
        while gone < 9 {
            match broker.next(Some).await {
                Seen::Publish(_, publish, open) => {
                    assert!(open <= usize::from(window));
                    assert_eq!(publish.payload.len(), 200);
                    messages.push((publish.topic.to_string(), publish.payload[..16].to_vec()));
                }
                Seen::Disconnect => gone += 1,
                _ => {}
            }
        }
        messages.sort();
        messages.dedup();
        assert_eq!(messages.len(), 450, "each message is one of its own");
        assert_eq!(messages[0].0, "dt/load/bench/bench-00001/x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_kept_and_the_time_too() {
    let broker = Broker::start(Script::default()).await;
    let report = run(LoadOptions {
        work: Work::Publish {
            delivery: Delivery::AtLeastOnce,
            payload: 20,
            window: 4,
            rate: Some(400.0),
            count: None,
        },
        duration: Duration::from_millis(500),
        ..LoadOptions::new(broker.address.into(), anonymous(4))
    })
    .await
    .unwrap();
    // Never more than is due; how many fewer depends on the machine.
    assert!((1..=204).contains(&report.sent), "{}", report.sent);
    assert_eq!(report.lost(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acknowledged_is_lost_and_what_is_refused_is_not_acknowledged() {
    let broker = Broker::start(Script {
        never_acknowledge: true,
        ..Script::default()
    })
    .await;
    let options = LoadOptions {
        work: publish(Delivery::AtLeastOnce, 5, 100),
        duration: Duration::from_millis(50),
        drain: Duration::from_millis(50),
        ..LoadOptions::new(broker.address.into(), anonymous(2))
    };
    let report = run(options.clone()).await.unwrap();
    assert_eq!(
        (report.sent, report.acknowledged, report.lost()),
        (10, 0, 10)
    );

    let broker = Broker::start(Script {
        answer: ReasonCode::QuotaExceeded,
        ..Script::default()
    })
    .await;
    let report = run(LoadOptions {
        server: broker.address.into(),
        work: publish(Delivery::AtLeastOnce, 5, 10),
        duration: Duration::from_secs(20),
        ..options
    })
    .await
    .unwrap();
    assert_eq!(
        (report.refused, report.acknowledged, report.lost()),
        (20, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_stay_over_mtls_and_subscribe_when_asked() {
    let ca = TestCa::new();
    let mut broker = Broker::start_tls(Script::default(), &ca).await;
    let credentials = (1..=3).map(|n| ca.device(&format!("car-{n}"))).collect();
    let report = run(LoadOptions {
        work: Work::Idle {
            subscribed: Subscribed::Yes,
        },
        duration: Duration::from_millis(300),
        ..LoadOptions::new(broker.address.into(), Identities::Provisioned(credentials))
    })
    .await
    .unwrap();
    assert_eq!((report.connections, report.broken, report.sent), (3, 0, 0));
    let (mut filters, mut gone) = (Vec::new(), 0);
    while gone < 3 {
        match broker.next(Some).await {
            Seen::Subscribe(_, names) => filters.extend(names),
            Seen::Disconnect => gone += 1,
            _ => {}
        }
    }
    filters.sort();
    assert_eq!(filters[0], "dt/load/bench/car-1/command");
    assert_eq!(filters.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn troubles_are_told() {
    let broker = Broker::start(Script {
        refuse: Some(ReasonCode::ServerBusy),
        ..Script::default()
    })
    .await;
    let options = LoadOptions::new(broker.address.into(), anonymous(3));
    let error = run(options.clone()).await.unwrap_err();
    assert!(
        matches!(error, LoadError::Nobody { count: 3, .. }),
        "{error}"
    );

    let broker = Broker::start(Script {
        send_away: Some(ReasonCode::ServerShuttingDown),
        ..Script::default()
    })
    .await;
    let report = run(LoadOptions {
        server: broker.address.into(),
        ..options.clone()
    })
    .await
    .unwrap();
    assert_eq!((report.connections, report.broken), (3, 3));
    assert!(
        report.to_string().contains("Server shutting down"),
        "{report}"
    );

    for (work, expected) in [
        (publish(Delivery::AtLeastOnce, 0, 1), "window of 0"),
        (
            Work::Publish {
                delivery: Delivery::AtLeastOnce,
                payload: 1 << 30,
                window: 1,
                rate: None,
                count: None,
            },
            "more than the 262144",
        ),
    ] {
        let error = run(LoadOptions {
            work,
            ..options.clone()
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
