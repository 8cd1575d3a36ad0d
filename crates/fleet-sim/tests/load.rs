//! The load generator counts what a broker sees.

mod support;

use std::sync::Arc;
use std::time::Duration;

use fleet_sim::client::Delivery;
use fleet_sim::load::sessions::{self, Sessions};
use fleet_sim::load::{
    self, Identities, LoadError, LoadLive, LoadOptions, LoadReport, Subscribed, Topics, Work,
};
use mqtt::{ReasonCode, Version};
use support::{Broker, Script, Seen, TestCa, greeting};
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
        topics: Topics::Own,
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
        (Version::V5, Delivery::ExactlyOnce, 16),
        (Version::V311, Delivery::ExactlyOnce, 1),
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
        let expected = if delivery == Delivery::AtMostOnce {
            0
        } else {
            450
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
            topics: Topics::Own,
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
        // Enough for the first messages on a slow machine.
        duration: Duration::from_secs(3),
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
                topics: Topics::Own,
            },
            "more than the 262144",
        ),
        (
            Work::Publish {
                delivery: Delivery::AtLeastOnce,
                payload: 200,
                window: 1,
                rate: None,
                count: Some(1),
                topics: Topics::Sessions { count: 0 },
            },
            "sessions, not 0",
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

fn sessions(broker: &Broker, count: usize) -> Sessions {
    Sessions {
        server: broker.address.into(),
        count,
        delivery: Delivery::ExactlyOnce,
        expiry: 3_600,
        at_once: 2,
        threads: 2,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_left_with_a_subscription_each_and_filled_evenly() {
    let mut broker = Broker::start(Script::default()).await;
    let which = sessions(&broker, 7);
    let left = tokio::task::spawn_blocking(move || sessions::leave(&which));
    let left = left.await.unwrap().unwrap();
    assert_eq!((left.sessions, left.known), (7, 0), "{:?}", left.troubles);
    let (mut filters, mut expiries, mut gone) = (Vec::new(), Vec::new(), 0);
    while gone < 7 {
        match broker.next(Some).await {
            Seen::Connect(_, connect) => {
                assert!(!connect.clean_start);
                expiries.push(connect.properties.session_expiry_interval);
            }
            Seen::Subscribe(_, names) => filters.extend(names),
            Seen::Disconnect => gone += 1,
            _ => {}
        }
    }
    filters.sort();
    let expected: Vec<_> = (0..7).map(|n| format!("bench/session/{n:07}")).collect();
    assert_eq!(filters, expected);
    assert_eq!(expiries, [Some(3_600); 7]);

    // Three connections, seven topics, five messages each.
    let report = run(LoadOptions {
        work: Work::Publish {
            delivery: Delivery::ExactlyOnce,
            payload: 200,
            window: 4,
            rate: None,
            count: Some(5),
            topics: Topics::Sessions { count: 7 },
        },
        ..LoadOptions::new(broker.address.into(), anonymous(3))
    });
    let report = report.await.unwrap();
    assert_eq!((report.acknowledged, report.lost()), (35, 0));
    let mut topics: Vec<String> = Vec::new();
    while topics.len() < 35 {
        if let Seen::Publish(_, publish, _) = broker.next(Some).await {
            topics.push(publish.topic.to_string());
        }
    }
    topics.sort();
    let expected: Vec<_> = expected.iter().flat_map(|t| [t; 5]).collect();
    assert_eq!(topics.iter().collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_twice_or_out_of_order_in_a_session_is_counted() {
    for (numbers, distinct, repeated, disordered) in [
        (&[0, 1, 2, 3][..], 4, 0, 0),
        (&[0, 1, 3], 3, 0, 0),
        (&[0, 1, 1, 2, 3], 4, 1, 0),
        (&[0, 2, 1, 3], 4, 0, 1),
        (&[], 0, 0, 0),
    ] {
        let waiting = numbers.iter().enumerate().map(|(index, number)| {
            let mut publish = greeting("bench/session/0000000", 1 + index as u16);
            publish.payload = format!("{number:016x}").into();
            publish.qos = mqtt::QoS::ExactlyOnce;
            publish
        });
        let broker = Broker::start(Script {
            waiting: waiting.collect(),
            ..Script::default()
        })
        .await;
        let which = sessions(&broker, 1);
        // Short only where something is missing, and then nothing else comes.
        let patience = Duration::from_secs(if distinct < 4 { 2 } else { 20 });
        let fetched =
            tokio::task::spawn_blocking(move || sessions::fetch(&which, 4, patience, |_| {}));
        let fetched = fetched.await.unwrap().unwrap();
        assert_eq!(fetched.sessions, 1, "{:?}", fetched.troubles);
        assert_eq!(
            (fetched.distinct, fetched.repeated(), fetched.disordered),
            (distinct, repeated, disordered),
            "{numbers:?}"
        );
    }
}
