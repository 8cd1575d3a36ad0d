//! The client against a broker that does what real ones do on bad days.

mod support;

use std::sync::Arc;
use std::time::Duration;

use fleet_sim::client::{
    Client, ClientError, ClientEvent, ClientOptions, Delivery, Outgoing, Reconnect, SessionStart,
    Transport,
};
use mqtt::{PubAck, ReasonCode, Version};
use support::{Broker, Script, Seen, TestCa, greeting};

const LONG: Duration = Duration::from_secs(20);

fn options(broker: &Broker) -> ClientOptions {
    ClientOptions {
        reconnect: Reconnect::Backoff {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
        },
        ..ClientOptions::new(broker.address.into(), Transport::Tcp, "car-1")
    }
}

fn message(text: &str) -> Outgoing {
    Outgoing {
        topic: "dt/telemetry/drive/car-1/signals".into(),
        payload: text.to_owned().into(),
        content_type: Some("application/json".into()),
        user_properties: vec![("id".into(), text.into())],
        ..Outgoing::default()
    }
}

fn text(publish: &mqtt::Publish) -> String {
    String::from_utf8(publish.payload.to_vec()).unwrap()
}

#[tokio::test]
async fn messages_arrive_in_order_and_are_acknowledged_in_both_versions() {
    for version in [Version::V311, Version::V5] {
        let mut broker = Broker::start(Script::default()).await;
        let options = ClientOptions {
            version,
            ..options(&broker)
        };
        let (client, _) = Client::connect(options).await.unwrap();
        let receipt = client.publish(message("0")).await.unwrap();
        receipt.await.unwrap();
        for n in 1..200 {
            client.post(message(&n.to_string())).await.unwrap();
        }
        client
            .post(Outgoing {
                delivery: Delivery::AtMostOnce,
                ..message("200")
            })
            .await
            .unwrap();
        let counters = Arc::clone(client.counters());
        client.finish(LONG).await.unwrap();
        assert_eq!((counters.published(), counters.acknowledged()), (201, 201));

        let seen = broker.messages_until_goodbye().await;
        let texts: Vec<_> = seen.iter().map(text).collect();
        let expected: Vec<_> = (0..=200).map(|n| n.to_string()).collect();
        assert_eq!(texts, expected);
        let properties = &seen[7].properties;
        if version == Version::V5 {
            assert_eq!(properties.content_type.as_deref(), Some("application/json"));
            assert_eq!(properties.user_properties, [("id".into(), "7".into())]);
        } else {
            assert!(properties.is_empty());
        }
    }
}

#[tokio::test]
async fn no_more_is_in_flight_than_the_server_receives_at_once() {
    let mut broker = Broker::start(Script {
        receive_maximum: Some(3),
        hold: 3,
        ..Script::default()
    })
    .await;
    let (client, _) = Client::start(options(&broker));
    for n in 0..9 {
        client.post(message(&n.to_string())).await.unwrap();
    }
    client.finish(LONG).await.unwrap();
    let mut most = 0;
    loop {
        match broker.next(Some).await {
            Seen::Publish(_, _, open) => most = most.max(open),
            Seen::Disconnect => break,
            _ => {}
        }
    }
    assert_eq!(most, 3);
}

#[tokio::test]
async fn what_a_broken_connection_left_open_comes_again() {
    for (knows_session, dup) in [(true, true), (false, false)] {
        let mut broker = Broker::start(Script {
            break_after: Some(5),
            knows_session,
            ..Script::default()
        })
        .await;
        let (client, _) = Client::start(ClientOptions {
            session: SessionStart::Resume { expiry: 3_600 },
            ..options(&broker)
        });
        for n in 0..5 {
            client.post(message(&n.to_string())).await.unwrap();
        }
        let counters = Arc::clone(client.counters());
        client.finish(LONG).await.unwrap();
        assert_eq!((counters.published(), counters.acknowledged()), (5, 5));
        assert_eq!((counters.resent(), counters.connects()), (5, 2));

        let (mut first, mut second) = (Vec::new(), Vec::new());
        loop {
            match broker.next(Some).await {
                Seen::Publish(0, publish, _) => first.push(*publish),
                Seen::Publish(_, publish, _) => second.push(*publish),
                Seen::Disconnect => break,
                _ => {}
            }
        }
        let texts: Vec<_> = second.iter().map(text).collect();
        assert_eq!(texts, ["0", "1", "2", "3", "4"]);
        assert!(first.iter().all(|publish| !publish.dup));
        assert!(second.iter().all(|publish| publish.dup == dup));
        let ids = |all: &[mqtt::Publish]| all.iter().map(|p| p.packet_id).collect::<Vec<_>>();
        assert_eq!(ids(&first) == ids(&second), knows_session);
    }
}

#[tokio::test]
async fn exactly_once_is_released_again_after_a_break_and_never_sent_again() {
    // Whether the server still knows the session or not: it had said that it received the message.
    for (knows_session, releases) in [(true, 2), (false, 1)] {
        let mut broker = Broker::start(Script {
            break_at_release: true,
            knows_session,
            ..Script::default()
        })
        .await;
        let (client, _) = Client::start(ClientOptions {
            session: SessionStart::Resume { expiry: 3_600 },
            ..options(&broker)
        });
        let receipt = client.publish(Outgoing {
            delivery: Delivery::ExactlyOnce,
            ..message("once")
        });
        receipt.await.unwrap().await.unwrap();
        let counters = Arc::clone(client.counters());
        client.finish(LONG).await.unwrap();
        assert_eq!((counters.published(), counters.acknowledged()), (1, 1));
        assert_eq!(counters.resumed(), u64::from(knows_session));
        let (mut published, mut released) = (0, Vec::new());
        loop {
            match broker.next(Some).await {
                Seen::Publish(..) => published += 1,
                Seen::PubRel(connection, id) => released.push((connection, id)),
                Seen::Disconnect => break,
                _ => {}
            }
        }
        assert_eq!(published, 1);
        assert_eq!(released, [(0, 1), (1, 1)][..releases]);
    }
}

#[tokio::test]
async fn what_comes_exactly_once_is_handed_on_once() {
    for version in [Version::V311, Version::V5] {
        let mut broker = Broker::start(Script {
            greeting: Some(mqtt::Publish {
                qos: mqtt::QoS::ExactlyOnce,
                ..greeting("dt/command/x/car-1/unlock", 77)
            }),
            ..Script::default()
        })
        .await;
        let options = ClientOptions {
            version,
            ..options(&broker)
        };
        let (client, mut incoming) = Client::connect(options).await.unwrap();
        let filter = [("dt/+/+/car-1/#", Delivery::ExactlyOnce)];
        let granted = client.subscribe(&filter).await.unwrap();
        assert_eq!(granted, [ReasonCode::GrantedQoS2]);
        let mut answers = Vec::new();
        while answers.len() < 4 {
            match broker.next(Some).await {
                Seen::PubRec(id) => answers.push(format!("received {id}")),
                Seen::PubComp(id, reason) => answers.push(format!("complete {id} {reason}")),
                _ => {}
            }
        }
        // The second PUBREL finds nothing any more, which only MQTT 5 can say.
        let second = match version {
            Version::V311 => "complete 77 Success (0x00)",
            Version::V5 => "complete 77 Packet Identifier not found (0x92)",
        };
        let first = "complete 77 Success (0x00)";
        assert_eq!(answers, ["received 77", "received 77", first, second]);
        client.finish(LONG).await.unwrap();
        assert_eq!(text(&incoming.recv().await.unwrap()), "unlock");
        assert!(incoming.recv().await.is_none(), "once");
    }
}

#[tokio::test]
async fn a_refusal_is_told_in_words() {
    for (version, words) in [
        (Version::V5, "Not authorized (0x87) (as the script says)"),
        (Version::V311, "Not authorized (0x87)"),
    ] {
        let broker = Broker::start(Script {
            refuse: Some(ReasonCode::NotAuthorized),
            ..Script::default()
        })
        .await;
        let options = ClientOptions {
            version,
            ..options(&broker)
        };
        let error = Client::connect(options).await.unwrap_err();
        let expected = format!("{} refused the connection: {words}", broker.address);
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_the_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let options = ClientOptions::new(address.into(), Transport::Tcp, "car-1");
    let error = Client::connect(options).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()));
}

#[tokio::test]
async fn a_refused_message_is_not_sent_again() {
    let mut broker = Broker::start(Script {
        answer: ReasonCode::QuotaExceeded,
        ..Script::default()
    })
    .await;
    let (client, _) = Client::connect(options(&broker)).await.unwrap();
    let receipt = client.publish(message("a")).await.unwrap();
    let error = receipt.await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused a message: Quota exceeded (0x97)"
    );
    let counters = Arc::clone(client.counters());
    client.finish(LONG).await.unwrap();
    assert_eq!((counters.refused(), counters.acknowledged()), (1, 0));
    assert_eq!(broker.messages_until_goodbye().await.len(), 1);
}

#[tokio::test]
async fn subscriptions_deliver_are_acknowledged_and_survive_a_break() {
    let mut broker = Broker::start(Script {
        break_after: Some(1),
        greeting: Some(greeting("dt/command/x/car-1/unlock", 77)),
        ..Script::default()
    })
    .await;
    let (client, mut incoming) = Client::connect(options(&broker)).await.unwrap();
    let filter = [("dt/+/+/car-1/#", Delivery::AtLeastOnce)];
    let granted = client.subscribe(&filter).await.unwrap();
    assert_eq!(granted, [ReasonCode::GrantedQoS1]);
    assert_eq!(text(&incoming.recv().await.unwrap()), "unlock");
    let acked = broker
        .next(|seen| match seen {
            Seen::PubAck(id) => Some(id),
            _ => None,
        })
        .await;
    assert_eq!(acked, 77);

    client.post(message("breaks the connection")).await.unwrap();
    let again = broker
        .next(|seen| match seen {
            Seen::Subscribe(1, filters) => Some(filters),
            _ => None,
        })
        .await;
    assert_eq!(again, ["dt/+/+/car-1/#"]);
    assert_eq!(text(&incoming.recv().await.unwrap()), "unlock");
    client.finish(LONG).await.unwrap();

    let (client, _) = Client::connect(options(&broker)).await.unwrap();
    let error = client.subscribe(&[("a/#/b", Delivery::AtLeastOnce)]).await;
    assert!(matches!(error, Err(ClientError::Filter { .. })));
}

#[tokio::test]
async fn a_silent_connection_is_pinged_and_a_silent_server_is_left() {
    let script = Script {
        server_keep_alive: Some(1),
        ..Script::default()
    };
    let ping = |seen| matches!(seen, Seen::Ping).then_some(());
    let mut broker = Broker::start(script.clone()).await;
    let (client, _) = Client::connect(options(&broker)).await.unwrap();
    broker.next(ping).await;
    broker.next(ping).await;
    client.finish(LONG).await.unwrap();

    let mut broker = Broker::start(Script {
        ignore_pings: true,
        ..script
    })
    .await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (_client, _) = Client::connect(ClientOptions {
        observer: Some(Arc::new(move |event| drop(tell.send(event)))),
        ..options(&broker)
    })
    .await
    .unwrap();
    broker.next(ping).await;
    let lost = loop {
        if let ClientEvent::Lost(error) = told.recv().await.unwrap() {
            break error;
        }
    };
    assert!(lost.to_string().contains("no PINGRESP"), "{lost}");
    broker
        .next(|seen| matches!(seen, Seen::Connect(1, _)).then_some(()))
        .await;
}

#[tokio::test]
async fn running_out_of_time_says_how_many_are_open() {
    let broker = Broker::start(Script {
        never_acknowledge: true,
        ..Script::default()
    })
    .await;
    let (client, _) = Client::connect(options(&broker)).await.unwrap();
    for n in 0..3 {
        client.post(message(&n.to_string())).await.unwrap();
    }
    let error = client.finish(Duration::from_millis(50)).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Unfinished { open: 3, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_queue_refuses_and_what_it_took_is_sent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ClientOptions {
        queue: 4,
        ..ClientOptions::new(
            listener.local_addr().unwrap().into(),
            Transport::Tcp,
            "car-1",
        )
    };
    let (client, _) = Client::start(options); // nobody answers its CONNECT
    for n in 0..4 {
        client.try_publish(message(&n.to_string())).unwrap();
    }
    let error = client.try_publish(message("5")).unwrap_err();
    assert!(matches!(error, ClientError::QueueFull { limit: 4 }));
    assert_eq!(client.counters().open(), 4);
}

#[tokio::test]
async fn a_server_that_sends_us_away_for_good_is_not_bothered_again() {
    let mut broker = Broker::start(Script {
        send_away: Some(ReasonCode::SessionTakenOver),
        ..Script::default()
    })
    .await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (client, _) = Client::connect(ClientOptions {
        observer: Some(Arc::new(move |event| drop(tell.send(event)))),
        ..options(&broker)
    })
    .await
    .unwrap();
    client.post(message("a")).await.unwrap();
    let gone = loop {
        if let ClientEvent::GaveUp(error) = told.recv().await.unwrap() {
            break error;
        }
    };
    assert!(gone.to_string().contains("Session taken over"), "{gone}");
    let again = client.publish(message("b")).await.unwrap_err();
    assert!(matches!(again, ClientError::Stopped));
    let connects = |seen| matches!(seen, Seen::Connect(..)).then_some(());
    broker.next(connects).await;
    assert!(!client.counters().is_connected());
}

#[tokio::test]
async fn a_server_that_makes_things_up_is_left() {
    // An acknowledgement for something that was never sent.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut out = bytes::BytesMut::new();
        mqtt::encode(&mqtt::ConnAck::default().into(), Version::V5, &mut out).unwrap();
        let stray = PubAck::success(mqtt::PacketId::new(9).unwrap());
        mqtt::encode(&stray.into(), Version::V5, &mut out).unwrap();
        let mut connect = [0; 64];
        let _ = socket.read(&mut connect).await;
        socket.write_all(&out).await.unwrap();
        let _ = socket.read(&mut connect).await;
    });
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (_client, _) = Client::start(ClientOptions {
        reconnect: Reconnect::Never,
        observer: Some(Arc::new(move |event| drop(tell.send(event)))),
        ..ClientOptions::new(address.into(), Transport::Tcp, "car-1")
    });
    let gone = loop {
        if let ClientEvent::GaveUp(error) = told.recv().await.unwrap() {
            break error;
        }
    };
    assert!(gone.to_string().contains("PUBACK for 9"), "{gone}");
}

#[tokio::test]
async fn over_tls_both_sides_prove_who_they_are() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let mut broker = Broker::start_tls(Script::default(), &ca).await;
    let tls = |credentials: &fleet_sim::Credentials| ClientOptions {
        transport: Transport::Tls(credentials.client_config().unwrap()),
        ..options(&broker)
    };
    let good = tls(&ca.device("car-1"));
    let stranger = tls(&other.device("car-1"));
    let mut half = ca.device("car-1"); // trusts the server, but is not of its fleet
    let foreign = other.device("car-1");
    (half.chain_pem, half.key_pem) = (foreign.chain_pem, foreign.key_pem);
    let half = tls(&half);

    let (client, _) = Client::connect(good).await.unwrap();
    client.post(message("a")).await.unwrap();
    client.finish(LONG).await.unwrap();
    assert_eq!(broker.messages_until_goodbye().await.len(), 1);

    let error = Client::connect(stranger).await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error}");
    // With TLS 1.3 the server's verdict comes after our side is done, on the first read.
    let error = Client::connect(half).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Tls { .. } | ClientError::Broken { .. }),
        "{error}"
    );
}
