//! The same conversation over every transport.

mod support;

use std::time::Duration;

use fleet_sim::client::{
    Address, Client, ClientError, ClientOptions, Delivery, Outgoing, Quic, QuicSocket, Scheme,
    Transport,
};
use fleet_sim::load::connects::{self, Connects};
use fleet_sim::load::{self, Identities, LoadLive, LoadOptions, Resumption, Work};
use mqtt::{Publish, QoS};
use support::{Broker, Script, Seen, TestCa};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(30);

fn message(payload: impl Into<mqtt::Bytes>) -> Outgoing {
    Outgoing {
        topic: "dt/a".into(),
        payload: payload.into(),
        delivery: Delivery::AtLeastOnce,
        ..Outgoing::default()
    }
}

fn options(broker: &Broker, transport: Transport) -> ClientOptions {
    ClientOptions {
        keep_alive: Duration::ZERO,
        ..ClientOptions::new(broker.address.into(), transport, "car-1")
    }
}

async fn broker(scheme: Scheme, script: Script, ca: &TestCa) -> Broker {
    match scheme {
        Scheme::Mqtt => Broker::start(script).await,
        Scheme::Mqtts => Broker::start_tls(script, ca).await,
        // Frames that cut every packet.
        Scheme::Ws => Broker::start_web_socket(script, 3, None).await,
        Scheme::Wss => Broker::start_web_socket(script, 3, Some(ca)).await,
        Scheme::Quic => Broker::start_quic(script, ca).await,
    }
}

#[tokio::test]
async fn messages_go_both_ways_over_every_transport() {
    let ca = TestCa::new();
    for scheme in Scheme::ALL {
        let script = Script {
            greeting: Some(Publish {
                qos: QoS::AtLeastOnce,
                packet_id: Some(mqtt::PacketId::FIRST),
                topic: "cmd/a".into(),
                payload: vec![7; 70_000].into(),
                ..Publish::default()
            }),
            ..Script::default()
        };
        let mut broker = broker(scheme, script, &ca).await;
        let address = Address {
            scheme,
            server: broker.address.into(),
            path: None,
        };
        let tls = ca.device("car-1").client_config().unwrap();
        let transport = address.transport(Some(tls)).unwrap();
        let (client, mut incoming) = Client::connect(options(&broker, transport)).await.unwrap();
        client
            .subscribe(&[("cmd/a", Delivery::AtLeastOnce)])
            .await
            .unwrap();
        let greeting = incoming.recv().await.unwrap();
        assert_eq!(greeting.payload, vec![7; 70_000], "{scheme:?}");
        // Larger than any buffer on the way.
        let large = vec![9; 900_000];
        for _ in 0..3 {
            client.post(message(large.clone())).await.unwrap();
        }
        client.finish(LONG).await.unwrap();
        let messages = broker.messages_until_goodbye().await;
        assert_eq!(messages.len(), 3, "{scheme:?}");
        assert!(messages.iter().all(|m| m.payload == large), "{scheme:?}");
    }
}

#[tokio::test]
async fn each_failure_names_its_transport() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let tls = other.device("car-1").client_config().unwrap();

    // A plain MQTT server is no web server, and its port takes no datagrams.
    let plain = Broker::start(Script::default()).await;
    let web = Transport::WebSocket {
        path: "/mqtt".into(),
    };
    let short = ClientOptions {
        connect_timeout: Duration::from_millis(300),
        ..options(&plain, web)
    };
    let error = Client::connect(short).await.unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::WebSocket { .. } | ClientError::TimedOut { .. }
        ),
        "{error}"
    );

    // The server is of another fleet.
    let quic = Broker::start_quic(Script::default(), &ca).await;
    let stranger = Transport::Quic(Quic::new(&tls).unwrap());
    let error = Client::connect(options(&quic, stranger)).await.unwrap_err();
    assert!(matches!(error, ClientError::Quic { .. }), "{error}");

    let wss = Broker::start_web_socket(Script::default(), 100, Some(&ca)).await;
    let stranger = Transport::secure_web_socket(&tls, "/mqtt");
    let error = Client::connect(options(&wss, stranger)).await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn over_quic_a_client_goes_on_from_another_address() {
    let ca = TestCa::new();
    let mut broker = Broker::start_quic(Script::default(), &ca).await;
    let socket = QuicSocket::default();
    let tls = ca.device("car-1").client_config().unwrap();
    let quic = Quic::new(&tls).unwrap().over(socket.clone());
    let options = options(&broker, Transport::Quic(quic));
    let counters = std::sync::Arc::clone(&options.counters);
    let (client, _incoming) = Client::connect(options).await.unwrap();
    let receipt = client.publish(message("before")).await.unwrap();
    receipt.await.unwrap();
    socket.rebind().unwrap();
    let receipt = client.publish(message("after")).await.unwrap();
    receipt.await.unwrap();
    client.finish(LONG).await.unwrap();
    assert_eq!(counters.connects(), 1);
    let moved = broker.next(|seen| match seen {
        Seen::Moved => Some(true),
        Seen::Closed => Some(false),
        _ => None,
    });
    assert!(moved.await, "the server saw no other address");
}

#[tokio::test]
async fn load_goes_over_every_transport() {
    let ca = TestCa::new();
    for scheme in Scheme::ALL {
        let broker = broker(scheme, Script::default(), &ca).await;
        let identities = match scheme.is_secure() {
            false => Identities::Anonymous {
                count: 4,
                prefix: "car".into(),
            },
            true => {
                Identities::Provisioned((1..=4).map(|n| ca.device(&format!("c-{n}"))).collect())
            }
        };
        let defaults = LoadOptions::new(broker.address.into(), identities);
        let Work::Publish { .. } = defaults.work else {
            panic!("publishing is the default");
        };
        let load = LoadOptions {
            scheme,
            work: Work::Publish {
                delivery: Delivery::AtLeastOnce,
                payload: 200,
                window: 16,
                rate: None,
                count: Some(50),
                topics: load::Topics::Own,
            },
            duration: LONG,
            ..defaults
        };
        let (live, stop) = (
            std::sync::Arc::new(LoadLive::default()),
            CancellationToken::new(),
        );
        let report = tokio::task::spawn_blocking(move || load::run(&load, &live, &stop))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (report.acknowledged, report.broken, report.failed),
            (200, 0, 0),
            "{scheme:?}: {report}"
        );
    }
}

#[tokio::test]
async fn a_car_that_comes_back_resumes_if_it_may() {
    let ca = TestCa::new();
    for (resumption, all) in [(Resumption::No, false), (Resumption::Yes, true)] {
        let broker = Broker::start_tls(Script::default(), &ca).await;
        let connects = Connects {
            address: Address {
                scheme: Scheme::Mqtts,
                server: broker.address.into(),
                path: None,
            },
            identities: Identities::Provisioned(vec![ca.device("c-1"), ca.device("c-2")]),
            resumption,
            duration: Duration::from_millis(200),
            threads: 2,
        };
        let report = tokio::task::spawn_blocking(move || connects::run(&connects, || {}))
            .await
            .unwrap()
            .unwrap();
        assert!(report.connects > 0, "{:?}", report.troubles);
        assert_eq!(report.failed, 0, "{:?}", report.troubles);
        assert_eq!(report.resumed, if all { report.connects } else { 0 });
    }
}
