//! Stories about several clients, shards and the outside, told without sockets or clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use mqtt::{
    Connect, Decoder, Disconnect, Packet, PubAck, Publish, QoS, ReasonCode, Subscribe,
    SubscribeProperties, Subscription, SubscriptionId, TopicFilter, Unsubscribe,
    UnsubscribeProperties, Version,
};

use super::connection::Appetite;
use super::mailbox::Mail;
use super::shard::Shard;
use super::slots::ConnectionId;
use super::tenants::{Origin, Rest};
use super::world::{World, packet_id, qos0, qos1, subscribe_to, with_will};
use crate::limits::{Limits, Overflow, Retain};
use crate::transport::Protocol;

const V3: Version = Version::V311;
const V5: Version = Version::V5;

#[test]
fn connack_says_what_the_client_gets() {
    let mut world = World::with(Limits {
        session_expiry_max: Duration::from_secs(1800),
        ..Limits::default()
    });
    let mut connect = Connect::new(V5, "");
    connect.keep_alive = 0;
    connect.properties.session_expiry_interval = Some(3600);
    let id = world.connect(0, connect);
    let ack = world.connack(id);
    let properties = &ack.properties;
    assert!(!ack.session_present);
    assert_eq!(properties.maximum_qos, None, "all of them");
    assert_eq!(properties.retain_available, None, "yes");
    assert_eq!(properties.shared_subscription_available, None, "yes");
    assert_eq!(properties.session_expiry_interval, Some(1800));
    assert_eq!(properties.server_keep_alive, Some(1200));
    assert_eq!(properties.receive_maximum.map(u16::from), Some(1024));
    assert_eq!(
        properties.maximum_packet_size.map(u32::from),
        Some(1024 * 1024)
    );
    assert_eq!(properties.topic_alias_maximum, Some(16));
    let assigned = properties.assigned_client_id.as_deref().expect("assigned");
    assert!(assigned.starts_with("auto-"), "{assigned}");
}

#[test]
fn connects_that_ask_for_what_is_not_there_are_refused_with_the_reason() {
    let auth = |mut c: Connect| {
        c.properties.authentication_method = Some("SCRAM".into());
        c
    };
    let retained_will = |c: Connect| {
        let mut c = with_will(c, "a");
        c.will.as_mut().expect("set").retain = true;
        c
    };
    let forbidden_will = |c: Connect| with_will(c, "forbidden/a");
    #[allow(clippy::type_complexity)] // a table
    let rows: [(fn(Connect) -> Connect, _, _); 3] = [
        (auth, ReasonCode::BadAuthenticationMethod, None),
        (retained_will, ReasonCode::RetainNotSupported, None),
        (
            forbidden_will,
            ReasonCode::NotAuthorized,
            Some(ReasonCode::NotAuthorized),
        ),
    ];
    for (change, v5, v311) in rows {
        let mut world = World::with(Limits {
            retain: Retain::Unavailable,
            ..Limits::default()
        });
        let id = world.connect(0, change(Connect::new(V5, "car")));
        assert_eq!(world.closed_with(id), Some(v5));
        if v5 != ReasonCode::BadAuthenticationMethod {
            let id = world.connect(0, change(Connect::new(V3, "car")));
            assert_eq!(world.closed_with(id), v311, "{v5}");
        }
        assert_eq!(world.exchange.connections(), 0);
        let refused = world.exchange.stats().connects_refused;
        assert!(matches!(refused[..], [(reason, _)] if reason == v5));
    }
}

#[test]
fn an_mqtt_3_client_without_a_name_needs_a_clean_session() {
    let mut world = World::new();
    let mut connect = Connect::new(V3, "");
    connect.clean_start = false;
    let id = world.connect(0, connect);
    assert_eq!(
        world.closed_with(id),
        Some(ReasonCode::ClientIdentifierNotValid)
    );
    world.client(0, V3, "");
}

#[test]
fn what_is_used_although_it_is_not_there_is_refused_with_the_reason() {
    let unavailable = || {
        World::with(Limits {
            retain: Retain::Unavailable,
            ..Limits::default()
        })
    };
    let retained = || Publish {
        retain: true,
        ..qos0("a", "x")
    };
    let alias = |topic: &str, n: u16| {
        let mut publish = qos0(topic, "x");
        publish.properties.topic_alias = n.try_into().ok();
        publish
    };
    let rows: [(Packet, ReasonCode); 4] = [
        (retained().into(), ReasonCode::RetainNotSupported),
        (alias("a", 17).into(), ReasonCode::TopicAliasInvalid),
        (alias("", 3).into(), ReasonCode::ProtocolError),
        (
            mqtt::Auth {
                reason: ReasonCode::ReAuthenticate,
                ..Default::default()
            }
            .into(),
            ReasonCode::ProtocolError,
        ),
    ];
    for (packet, reason) in rows {
        let mut world = unavailable();
        let id = world.client(0, V5, "car");
        world.send(id, packet);
        assert_eq!(world.closed_with(id), Some(reason));
    }
    let mut world = unavailable();
    let id = world.client(0, V3, "car");
    world.send(id, retained());
    assert_eq!(
        world.closed_with(id),
        None,
        "3.1.1 is closed without a word"
    );
}

#[test]
fn subscriptions_are_granted_or_refused_one_by_one() {
    let limits = Limits {
        max_subscriptions: 1,
        max_filter_levels: 3,
        ..Limits::default()
    };
    let mut world = World::with(limits);
    let id = world.client(0, V5, "car");
    let rows = [
        ("a", QoS::ExactlyOnce, ReasonCode::GrantedQoS2),
        ("a", QoS::AtMostOnce, ReasonCode::Success),
        ("b", QoS::AtMostOnce, ReasonCode::QuotaExceeded),
        ("$share/g/a", QoS::AtMostOnce, ReasonCode::QuotaExceeded),
        ("a/b/c/d", QoS::AtMostOnce, ReasonCode::TopicFilterInvalid),
    ];
    for (filter, qos, reason) in rows {
        assert_eq!(world.subscribe(id, filter, qos), [reason], "{filter}");
    }
    let other = world.client(0, V5, "other");
    assert_eq!(
        world.subscribe(other, "forbidden/#", QoS::AtMostOnce),
        [ReasonCode::NotAuthorized]
    );
    let old = world.client(0, V3, "old");
    assert_eq!(
        world.subscribe(old, "forbidden/#", QoS::AtMostOnce),
        [ReasonCode::UnspecifiedError],
        "0x80 is all that 3.1.1 can say"
    );
}

#[test]
fn a_message_reaches_subscribers_of_both_versions_on_all_shards() {
    let mut world = World::new();
    let publisher = world.client(0, V5, "publisher");
    let receivers = [
        world.subscriber(0, V5, "a", "dt/+/speed", QoS::AtLeastOnce),
        world.subscriber(1, V3, "b", "dt/#", QoS::AtLeastOnce),
        world.subscriber(2, V5, "c", "dt/car/speed", QoS::AtMostOnce),
    ];
    world.send(publisher, qos1(7, "dt/car/speed", "42"));
    for receiver in receivers {
        assert_eq!(world.messages(receiver), ["dt/car/speed: 42"]);
    }
    assert_eq!(world.pubacks(publisher), [(7, ReasonCode::Success)]);
    world.send(publisher, qos1(8, "nobody/cares", "42"));
    assert_eq!(
        world.pubacks(publisher),
        [(8, ReasonCode::NoMatchingSubscribers)]
    );
}

#[test]
fn properties_travel_with_the_message_and_stay_out_of_mqtt_3() {
    let mut world = World::new();
    let publisher = world.client(0, V5, "publisher");
    let new = world.client(1, V5, "new");
    let filter = TopicFilter::parse("#").expect("valid");
    world.send(
        new,
        Subscribe {
            packet_id: packet_id(1),
            subscriptions: vec![Subscription::new(filter, QoS::AtMostOnce)],
            properties: SubscribeProperties {
                subscription_id: SubscriptionId::new(77),
                ..Default::default()
            },
        },
    );
    world.look(new);
    let old = world.subscriber(1, V3, "old", "#", QoS::AtMostOnce);
    let mut publish = qos0("a", "{}");
    publish.properties = mqtt::PublishProperties {
        payload_format: Some(mqtt::PayloadFormat::Utf8),
        message_expiry_interval: Some(60),
        topic_alias: 5.try_into().ok(),
        response_topic: mqtt::TopicName::parse("answers").ok(),
        correlation_data: Some("c1".into()),
        user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
        subscription_ids: Vec::new(),
        content_type: Some("application/json".into()),
    };
    let mut expected = publish.properties.clone();
    expected.topic_alias = None;
    expected.subscription_ids = SubscriptionId::new(77).into_iter().collect();
    world.send(publisher, publish.clone());
    match world.look(new).packets.as_slice() {
        [Packet::Publish(got)] => assert_eq!(got.properties, expected),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.messages(old), ["a: {}"]);
    publish.topic = "".into();
    world.send(publisher, publish);
    assert_eq!(world.messages(old), ["a: {}"], "the alias stands for `a`");
}

#[test]
fn puback_waits_until_the_message_is_durable() {
    let mut world = World::new();
    for version in [V3, V5] {
        let car = world.client(0, version, "car");
        world.send(car, qos1(1, "log/a", "x"));
        assert_eq!(world.pubacks(car), []);
        world.tell(0, Ok(()));
        assert_eq!(world.pubacks(car), [(1, ReasonCode::Success)]);
    }
}

#[test]
fn subscribers_do_not_wait_for_the_disk() {
    let mut world = World::new();
    let car = world.client(0, V5, "car");
    let app = world.subscriber(1, V5, "app", "log/#", QoS::AtMostOnce);
    world.send(car, qos1(1, "log/a", "x"));
    assert_eq!(world.messages(app), ["log/a: x"]);
    assert_eq!(world.pubacks(car), []);
}

#[test]
fn pubacks_keep_the_order_of_the_messages_whatever_the_disk_does() {
    let mut world = World::new();
    let car = world.client(0, V5, "car");
    for n in 1..=3 {
        world.send(car, qos1(n, "log/a", "x"));
    }
    world.send(car, qos1(4, "elsewhere", "x"));
    world.tell(2, Ok(()));
    world.tell(1, Err(ReasonCode::QuotaExceeded));
    assert_eq!(world.pubacks(car), []);
    world.tell(0, Ok(()));
    assert_eq!(
        world.pubacks(car),
        [
            (1, ReasonCode::Success),
            (2, ReasonCode::QuotaExceeded),
            (3, ReasonCode::Success),
            (4, ReasonCode::NoMatchingSubscribers),
        ]
    );
}

#[test]
fn an_outcome_told_within_the_tap_counts_at_once() {
    let mut world = World::new();
    let car = world.client(0, V5, "car");
    world.put(car, qos1(1, "log/at-once", "x"));
    world.put(car, qos1(2, "log/lost", "x"));
    world.put(car, qos1(3, "log/refused", "x"));
    assert_eq!(
        world.pubacks(car),
        [
            (1, ReasonCode::Success),
            (2, ReasonCode::UnspecifiedError),
            (3, ReasonCode::QuotaExceeded),
        ]
    );
}

#[test]
fn a_receipt_that_is_dropped_later_counts_as_failure() {
    let mut world = World::new();
    let car = world.client(0, V5, "car");
    world.send(car, qos1(1, "log/a", "x"));
    world.outside.untold.lock().unwrap().clear();
    world.deliver_mail();
    assert_eq!(world.pubacks(car), [(1, ReasonCode::UnspecifiedError)]);
}

#[test]
fn an_mqtt_3_client_is_closed_rather_than_told_a_lie() {
    for topic in ["log/a", "log/refused", "forbidden/a"] {
        let mut world = World::new();
        let car = world.client(0, V3, "car");
        world.send(car, qos1(1, topic, "x"));
        if topic == "log/a" {
            world.tell(0, Err(ReasonCode::QuotaExceeded));
        }
        let seen = world.look(car);
        assert!(seen.closed && seen.packets.is_empty(), "{topic}: {seen:?}");
    }
}

#[test]
fn a_refused_message_reaches_nobody() {
    let mut world = World::new();
    let car = world.client(0, V5, "car");
    let app = world.subscriber(0, V5, "app", "#", QoS::AtMostOnce);
    world.send(car, qos1(1, "log/refused", "x"));
    world.send(car, qos1(2, "forbidden/a", "x"));
    world.send(car, qos0("forbidden/a", "x"));
    assert_eq!(world.messages(app), [""; 0]);
    assert_eq!(
        world.pubacks(car),
        [
            (1, ReasonCode::QuotaExceeded),
            (2, ReasonCode::NotAuthorized)
        ]
    );
    assert_eq!(world.exchange.stats().dropped_unauthorized, 2);
}

#[test]
fn the_receive_maximum_holds_in_both_directions() {
    let limits = Limits {
        max_inflight: 2,
        ..Limits::default()
    };
    let mut world = World::with(limits);
    let car = world.client(0, V5, "car");
    let mut connect = Connect::new(V5, "app");
    connect.properties.receive_maximum = 1.try_into().ok();
    let app = world.connect(1, connect);
    world.look(app);
    world.subscribe(app, "log/#", QoS::AtLeastOnce);
    world.send(car, qos1(1, "log/a", "1"));
    world.send(car, qos1(2, "log/a", "2"));
    assert_eq!(world.messages(app), ["log/a: 1"]);
    world.send(app, PubAck::success(packet_id(1)));
    assert_eq!(world.messages(app), ["log/a: 2"]);
    world.send(car, qos1(3, "log/a", "3"));
    assert_eq!(
        world.closed_with(car),
        Some(ReasonCode::ReceiveMaximumExceeded)
    );
}

#[test]
fn an_mqtt_3_client_with_too_much_in_flight_is_not_read_from() {
    let limits = Limits {
        max_inflight: 2,
        ..Limits::default()
    };
    let mut world = World::with(limits);
    let mut connect = Connect::new(V3, "car");
    connect.keep_alive = 10;
    let car = world.connect(0, connect);
    world.look(car);
    world.send(car, qos1(1, "log/a", "1"));
    world.send(car, qos1(2, "log/a", "2"));
    assert_eq!(world.shards[car.shard()].appetite(car), Appetite::Waiting);
    for _ in 0..10 {
        world.wait(10);
    }
    assert!(!world.look(car).closed, "its silence is our doing");
    world.tell(0, Ok(()));
    assert_eq!(world.shards[car.shard()].appetite(car), Appetite::Hungry);
}

#[test]
fn no_local_keeps_a_client_from_hearing_itself() {
    let mut world = World::new();
    let a = world.client(0, V5, "a");
    world.subscribe_with(a, "chat", |s| s.no_local = true);
    let b = world.subscriber(0, V5, "b", "chat", QoS::AtMostOnce);
    world.send(a, qos0("chat", "hello"));
    assert_eq!(world.messages(a), [""; 0]);
    assert_eq!(world.messages(b), ["chat: hello"]);
}

#[test]
fn unsubscribe_ends_delivery() {
    let mut world = World::new();
    let app = world.subscriber(0, V5, "app", "a/+", QoS::AtMostOnce);
    let filters = ["a/+", "never"].map(|f| TopicFilter::parse(f).expect("valid"));
    world.send(
        app,
        Unsubscribe {
            packet_id: packet_id(3),
            filters: filters.to_vec(),
            properties: UnsubscribeProperties::default(),
        },
    );
    match world.look(app).packets.as_slice() {
        [Packet::UnsubAck(ack)] => assert_eq!(
            ack.reasons,
            [ReasonCode::Success, ReasonCode::NoSubscriptionExisted]
        ),
        other => panic!("{other:?}"),
    }
    let car = world.client(0, V5, "car");
    world.send(car, qos0("a/b", "x"));
    assert_eq!(world.messages(app), [""; 0]);
    assert_eq!(world.exchange.stats().subscriptions, 0);
}

#[test]
fn a_slow_reader_loses_qos_0_and_is_closed_for_qos_1_while_others_get_everything() {
    let limits = Limits {
        max_queued: 3,
        max_inflight: 2,
        ..Limits::default()
    };
    let mut world = World::with(limits);
    let car = world.client(0, V5, "car");
    let slow = world.subscriber(1, V5, "slow", "#", QoS::AtLeastOnce);
    let quick = world.subscriber(1, V5, "quick", "#", QoS::AtLeastOnce);
    let mut received = 0;
    for n in 0..5 {
        world.send(car, qos0("a", &n.to_string()));
        received += world.messages(quick).len();
    }
    assert_eq!(received, 5);
    assert_eq!(world.messages(slow), ["a: 0", "a: 1", "a: 2"]);
    assert_eq!(world.exchange.stats().dropped_queue_full, 2);
    for n in 1..=6 {
        world.send(car, qos1(n, "b", "x"));
        world.look(car);
        for packet in world.look(quick).packets {
            let Packet::Publish(publish) = packet else {
                panic!("{packet:?}");
            };
            received += 1;
            world.send(quick, PubAck::success(publish.packet_id.expect("QoS 1")));
        }
    }
    assert_eq!(received, 11);
    assert_eq!(world.closed_with(slow), Some(ReasonCode::QuotaExceeded));
    assert_eq!(world.exchange.stats().slow_consumers, 1);
}

#[test]
fn a_well_filled_queue_asks_for_a_turn_and_a_full_socket_does_not() {
    let limits = Limits {
        max_queued: 8,
        ..Limits::default()
    };
    let mut world = World::with(limits);
    let app = world.subscriber(0, V5, "app", "#", QoS::AtMostOnce);
    let here = app.shard();
    let car = (0..)
        .map(|n| world.client(here, V5, &format!("car-{n}")))
        .find(|car| car.shard() == here)
        .expect("names do not end");
    world.shards[here].sleep(app, Rest::Asleep, Waker::noop());
    for _ in 0..3 {
        assert!(!world.shards[here].is_pressed());
        world.put(car, qos0("a", "x"));
    }
    assert!(world.shards[here].is_pressed());
    assert_eq!(world.messages(app).len(), 3);
    assert!(!world.shards[here].is_pressed(), "it had its turn");
    world.shards[here].sleep(app, Rest::Blocked, Waker::noop());
    for _ in 0..20 {
        world.put(car, qos0("a", "x"));
        assert!(
            !world.shards[here].is_pressed(),
            "nobody waits for a slow one"
        );
    }
    assert_eq!(world.messages(app).len(), 8);
}

#[test]
fn silence_ends_a_connection_after_one_and_a_half_keep_alives() {
    let mut world = World::new();
    let mut connect = Connect::new(V5, "car");
    connect.keep_alive = 10;
    let car = world.connect(0, connect);
    world.look(car);
    for _ in 0..3 {
        world.wait(14);
        world.send(car, Packet::PingReq);
        assert!(matches!(
            world.look(car).packets.as_slice(),
            [Packet::PingResp]
        ));
    }
    world.wait(16);
    assert_eq!(world.closed_with(car), Some(ReasonCode::KeepAliveTimeout));
    assert_eq!(world.exchange.stats().keep_alive_timeouts, 1);
}

#[test]
fn whoever_says_nothing_at_first_is_closed() {
    let mut world = World::new();
    let silent = world.dial(0);
    world.wait(9);
    assert!(!world.look(silent).closed);
    world.wait(2);
    assert!(world.look(silent).closed);
    assert_eq!(world.exchange.stats().connect_timeouts, 1);
}

#[test]
fn the_will_is_published_unless_the_client_says_goodbye() {
    let goodbye = |reason| Packet::from(Disconnect::new(reason));
    #[allow(clippy::type_complexity)] // a table
    let rows: [(&str, &dyn Fn(&mut World, ConnectionId), bool); 6] = [
        (
            "goodbye",
            &|w, id| w.send(id, goodbye(ReasonCode::NORMAL_DISCONNECTION)),
            false,
        ),
        (
            "goodbye with will",
            &|w, id| w.send(id, goodbye(ReasonCode::DisconnectWithWill)),
            true,
        ),
        (
            "connection lost",
            &|w, id| w.shards[id.shard()].lost(id, "reset".into()),
            true,
        ),
        ("silence", &|w, _| w.wait(20), true),
        (
            "taken over",
            &|w, _| {
                w.connect(1, Connect::new(V5, "car"));
            },
            true,
        ),
        (
            "protocol error",
            &|w, id| {
                let mut publish = qos0("a", "x");
                publish.properties.topic_alias = 17.try_into().ok();
                w.send(id, publish);
            },
            true,
        ),
    ];
    for (story, ending, published) in rows {
        let mut world = World::new();
        let app = world.subscriber(2, V5, "app", "gone/#", QoS::AtMostOnce);
        let mut connect = with_will(Connect::new(V5, "car"), "gone/car");
        connect.keep_alive = 10;
        let properties = &mut connect.will.as_mut().expect("set").properties;
        properties.will_delay_interval = Some(300);
        let car = world.connect(0, connect);
        ending(&mut world, car);
        for shard in &mut world.shards {
            shard.settle();
        }
        world.deliver_mail();
        let expected: &[&str] = match published {
            true => &["gone/car: gone"],
            false => &[],
        };
        assert_eq!(world.messages(app), expected, "{story}");
    }
}

#[test]
fn the_second_connection_is_served_once_the_first_is_gone() {
    let mut world = World::new();
    let first = world.connect(0, with_will(Connect::new(V5, "car"), "gone/car"));
    world.look(first);
    world.subscribe(first, "news", QoS::AtMostOnce);
    let watcher = world.subscriber(2, V5, "app", "gone/#", QoS::AtMostOnce);

    let second = world.dial(1);
    world.decoders.insert(second, Decoder::for_client(V5, 1000));
    world.put(second, Connect::new(V5, "car"));
    let second = world.settle_in(second);
    world.deliver_mail();
    assert_eq!(world.closed_with(first), Some(ReasonCode::SessionTakenOver));
    assert_eq!(world.connack(second).reason, ReasonCode::Success);
    assert_eq!(world.messages(watcher), ["gone/car: gone"]);
    world.send(watcher, qos0("news", "x"));
    assert!(world.messages(second).is_empty(), "a new session is empty");
    let stats = world.exchange.stats();
    assert_eq!((stats.takeovers, stats.connections), (1, 2));
}

#[test]
fn one_that_gives_up_on_its_way_to_its_session_changes_nothing() {
    let mut world = World::new();
    let first = world.client(0, V5, "car");
    let from = (first.shard() + 1) % 3;
    let [second, third] = [from, from].map(|shard| {
        let id = world.dial(shard);
        world.decoders.insert(id, Decoder::for_client(V5, 1000));
        id
    });
    world.put(second, Connect::new(V5, "car"));
    world.shards[from].lost(second, "reset".into());
    assert!(!world.look(first).closed, "nobody came");
    world.put(third, Connect::new(V5, "car"));
    assert!(world.look(third).packets.is_empty(), "the first is served");
    let third = world.settle_in(third);
    assert_eq!(world.closed_with(first), Some(ReasonCode::SessionTakenOver));
    assert_eq!(world.connack(third).reason, ReasonCode::Success);
}

#[test]
fn three_at_once_with_one_name_leave_one() {
    let mut world = World::new();
    let ids: Vec<_> = (0..3)
        .map(|shard| {
            let id = world.dial(shard);
            world.decoders.insert(id, Decoder::for_client(V5, 1000));
            world.put(id, Connect::new(V5, "car"));
            id
        })
        .collect();
    let ids: Vec<_> = ids.into_iter().map(|id| world.settle_in(id)).collect();
    let open = ids.iter().filter(|id| !world.look(**id).closed).count();
    assert_eq!(open, 1);
    assert_eq!(world.exchange.connections(), 1);
}

#[test]
fn a_principal_that_loses_access_is_out_at_once() {
    let mut world = World::new();
    let mut connect = Connect::new(V5, "car");
    connect.username = Some("device-1".into());
    let car = world.connect(0, connect.clone());
    let other = world.client(0, V5, "other");
    world.look(car);
    world.outside.barred.lock().unwrap().push("device-1".into());
    let count = world
        .exchange
        .disconnect_principal("device-1", ReasonCode::NotAuthorized);
    world.deliver_mail();
    assert_eq!(count, 1);
    assert_eq!(world.closed_with(car), Some(ReasonCode::NotAuthorized));
    assert!(!world.look(other).closed);
    let again = world.connect(0, connect);
    assert_eq!(world.closed_with(again), Some(ReasonCode::NotAuthorized));
}

#[test]
fn a_principal_that_loses_access_while_it_connects_does_not_slip_in() {
    let mut world = World::new();
    let outside = Arc::clone(&world.outside);
    let exchange = Arc::clone(&world.exchange);
    *world.outside.meanwhile.lock().unwrap() = Some(Box::new(move || {
        outside.barred.lock().unwrap().push("car".into());
        exchange.disconnect_principal("car", ReasonCode::NotAuthorized);
    }));
    let car = world.connect(0, Connect::new(V5, "car"));
    assert_eq!(world.closed_with(car), Some(ReasonCode::NotAuthorized));
    assert_eq!(world.exchange.connections(), 0);
}

#[test]
fn a_full_broker_says_so() {
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    let mut world = World::with(limits);
    world.client(0, V5, "one");
    let two = world.connect(0, Connect::new(V5, "two"));
    assert_eq!(world.closed_with(two), Some(ReasonCode::QuotaExceeded));
    let three = world.connect(0, Connect::new(V3, "three"));
    // 3.1.1 says "server unavailable", which reads back as this.
    assert_eq!(
        world.closed_with(three),
        Some(ReasonCode::ServerUnavailable)
    );
}

#[test]
fn stopping_waits_for_what_is_owed() {
    let mut world = World::new();
    let idle = world.client(0, V5, "idle");
    let car = world.client(1, V5, "car");
    world.send(car, qos1(1, "log/a", "x"));
    world.exchange.post_to_all(|| Mail::Drain);
    world.deliver_mail();
    assert_eq!(
        world.closed_with(idle),
        Some(ReasonCode::ServerShuttingDown)
    );
    assert!(!world.look(car).closed);
    world.tell(0, Ok(()));
    match world.look(car).packets.as_slice() {
        [Packet::PubAck(ack), Packet::Disconnect(bye)] => {
            assert_eq!(ack.packet_id.get(), 1);
            assert_eq!(bye.reason, ReasonCode::ServerShuttingDown);
        }
        other => panic!("{other:?}"),
    }
    assert!(
        world.shards[0]
            .open(Origin {
                listener: "test".into(),
                peer: "192.0.2.1:1".parse().expect("an address"),
                protocol: Protocol::Mqtt,
                certificates: Vec::new(),
                proxied: None,
            })
            .is_none()
    );
    for id in [idle, car] {
        world.shards[id.shard()].release(id);
    }
    assert!(world.shards.iter().all(Shard::is_done));
}

#[test]
fn word_for_a_connection_that_is_gone_does_not_reach_its_successor() {
    let mut world = World::new();
    let first = world.client(0, V5, "first");
    world.send(first, qos1(1, "log/a", "x"));
    world.shards[first.shard()].release(first);
    let second = world.client(0, V5, "first");
    assert_eq!(first.slot(), second.slot(), "the slot is used again");
    world.send(second, qos1(2, "log/a", "x"));
    world.tell(0, Ok(()));
    assert_eq!(world.pubacks(second), []);
    world.tell(0, Ok(()));
    assert_eq!(world.pubacks(second), [(2, ReasonCode::Success)]);
}

#[test]
fn a_message_from_the_program_itself_reaches_subscribers() {
    let mut world = World::new();
    let app = world.subscriber(1, V5, "app", "bc/#", QoS::AtLeastOnce);
    let count = world
        .exchange
        .publish_from_outside(&qos0("bc/news", "x"), world.now)
        .map_or(0, |published| published.receivers);
    world.deliver_mail();
    assert_eq!(count, 1);
    assert_eq!(world.messages(app), ["bc/news: x"]);
}

#[test]
fn a_message_that_waited_says_so_and_one_that_waited_too_long_is_dropped() {
    let mut world = World::new();
    let car = world.client(0, V5, "car");
    let app = world.subscriber(0, V5, "app", "#", QoS::AtMostOnce);
    for (payload, expiry) in [("short", 2), ("long", 10)] {
        let mut publish = qos0("a", payload);
        publish.properties.message_expiry_interval = Some(expiry);
        world.send(car, publish);
    }
    world.wait(3);
    match world.look(app).packets.as_slice() {
        [Packet::Publish(got)] => {
            assert_eq!(&got.payload[..], b"long");
            assert_eq!(got.properties.message_expiry_interval, Some(7));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.exchange.stats().dropped_expired, 1);
}

#[test]
fn an_answer_that_the_client_cannot_take_ends_the_connection() {
    let mut world = World::new();
    let mut connect = Connect::new(V5, "car");
    connect.properties.maximum_packet_size = 64.try_into().ok();
    let car = world.connect(0, connect);
    assert_eq!(world.connack(car).reason, ReasonCode::Success);
    let filter = TopicFilter::parse("a").expect("valid");
    world.send(
        car,
        Subscribe {
            packet_id: packet_id(1),
            subscriptions: vec![Subscription::new(filter, QoS::AtMostOnce); 100],
            properties: SubscribeProperties::default(),
        },
    );
    assert_eq!(world.closed_with(car), Some(ReasonCode::PacketTooLarge));
}

/// A stored member of `$share/g/#` that is away, and whoever publishes.
fn share_with_everybody_away(world: &mut World) -> ConnectionId {
    let mut connect = Connect::new(V5, "stored");
    connect.properties.session_expiry_interval = Some(3600);
    let stored = world.connect(0, connect);
    world.look(stored);
    world.subscribe(stored, "$share/g/#", QoS::AtLeastOnce);
    world.send(stored, Disconnect::new(ReasonCode::NORMAL_DISCONNECTION));
    world.client(1, V5, "publisher")
}

fn coming_back(world: &mut World) -> ConnectionId {
    let mut connect = Connect::new(V5, "stored");
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(3600);
    world.connect(2, connect)
}

/// The payloads a client got, whatever else it saw.
fn payloads(world: &mut World, id: ConnectionId) -> Vec<String> {
    world
        .look(id)
        .packets
        .iter()
        .filter_map(|packet| match packet {
            Packet::Publish(p) => Some(String::from_utf8_lossy(&p.payload).into_owned()),
            _ => None,
        })
        .collect()
}

#[test]
fn the_queue_of_a_share_keeps_to_its_bound_and_the_overflow_rule() {
    let rows = [
        (Overflow::RefuseNew, ReasonCode::QuotaExceeded, ["1", "2"]),
        (Overflow::DropOldest, ReasonCode::Success, ["2", "3"]),
    ];
    for (overflow, third, kept) in rows {
        let mut world = World::with(Limits {
            max_queued: 2,
            overflow,
            ..Limits::default()
        });
        let publisher = share_with_everybody_away(&mut world);
        for (n, reason) in [
            (1, ReasonCode::Success),
            (2, ReasonCode::Success),
            (3, third),
        ] {
            world.send(publisher, qos1(n, "a", &n.to_string()));
            assert_eq!(world.pubacks(publisher), [(n, reason)], "{overflow:?}");
        }
        let stored = coming_back(&mut world);
        assert_eq!(payloads(&mut world, stored), kept, "{overflow:?}");
    }
}

#[test]
fn what_has_expired_in_the_queue_of_a_share_makes_room() {
    let mut world = World::with(Limits {
        max_queued: 1,
        ..Limits::default()
    });
    let publisher = share_with_everybody_away(&mut world);
    let mut short = qos1(1, "a", "short");
    short.properties.message_expiry_interval = Some(1);
    world.send(publisher, short);
    world.wait(3);
    world.send(publisher, qos1(2, "a", "new"));
    assert_eq!(
        world.pubacks(publisher),
        [(1, ReasonCode::Success), (2, ReasonCode::Success)]
    );
    let stored = coming_back(&mut world);
    assert_eq!(payloads(&mut world, stored), ["new"]);
}

#[test]
fn a_transient_member_without_room_loses_nothing_of_its_share() {
    let mut world = World::with(Limits {
        max_queued: 4,
        max_inflight: 2,
        ..Limits::default()
    });
    let publisher = share_with_everybody_away(&mut world);
    for n in 1..=4 {
        world.send(publisher, qos1(n, "a", &n.to_string()));
        world.pubacks(publisher);
    }
    // Messages of its own fill most of its queue.
    let passing = world.subscriber(0, V5, "passing", "b", QoS::AtLeastOnce);
    for n in 5..=9 {
        world.send(publisher, qos1(n, "b", "own"));
    }
    let filter = TopicFilter::parse("$share/g/#").expect("valid");
    world.send(
        passing,
        Subscribe {
            packet_id: packet_id(1),
            subscriptions: vec![Subscription::new(filter, QoS::AtLeastOnce)],
            properties: SubscribeProperties::default(),
        },
    );
    assert_eq!(
        world.closed_with(passing),
        Some(ReasonCode::QuotaExceeded),
        "too slow for a share"
    );
    let stored = coming_back(&mut world);
    let mut got = payloads(&mut world, stored);
    for _ in 0..4 {
        for id in 1..=2 {
            world.send(stored, PubAck::success(packet_id(id)));
        }
        got.extend(payloads(&mut world, stored));
    }
    got.sort();
    got.dedup();
    assert_eq!(got, ["1", "2", "3", "4"], "nothing acknowledged is lost");
}

#[test]
fn a_full_member_does_not_stop_its_share() {
    let mut world = World::with(Limits {
        max_queued: 1,
        max_inflight: 1,
        ..Limits::default()
    });
    let publisher = share_with_everybody_away(&mut world);
    let full = coming_back(&mut world);
    world.look(full);
    world.send(publisher, qos1(1, "a", "1"));
    assert_eq!(payloads(&mut world, full), ["1"], "not acknowledged: full");
    let other = world.client(0, V5, "other");
    world.subscribe(other, "$share/g/#", QoS::AtLeastOnce);
    world.send(publisher, qos1(2, "a", "2"));
    assert_eq!(payloads(&mut world, other), ["2"]);
    world.send(publisher, qos1(3, "a", "3"));
    world.send(other, PubAck::success(packet_id(1)));
    assert_eq!(payloads(&mut world, other), ["3"], "it waited for room");
}

/// What was sent to a member of a share and not acknowledged goes to another as it was published, whatever
/// the first one was sent: nothing but what was sent may be left of it.
#[test]
fn a_message_under_way_goes_to_another_member_as_it_was_published() {
    for (first, second, size) in [
        (V5, V5, 10),
        (V5, V5, 10_000),
        (V5, V3, 10),
        (V3, V5, 10),
        (V3, V5, 10_000),
        (V3, V3, 10),
    ] {
        let mut world = World::new();
        let publisher = world.client(0, V5, "publisher");
        let one = world.client(1, first, "one");
        let mut wish = subscribe_to("$share/g/a");
        wish.subscriptions[0].qos = QoS::AtLeastOnce;
        if first == V5 {
            wish.properties.subscription_id = SubscriptionId::new(7);
        }
        world.send(one, wish);
        world.look(one);
        let mut published = Publish {
            qos: QoS::ExactlyOnce,
            packet_id: Some(packet_id(1)),
            ..qos0("a", &"x".repeat(size))
        };
        published.properties.content_type = Some("text/plain".into());
        published.properties.user_properties = vec![("k".into(), "v".into())];
        world.send(publisher, published.clone());
        let sent = world.look(one).packets;
        assert!(
            matches!(&sent[..], [Packet::Publish(p)] if p.qos == QoS::AtLeastOnce),
            "{sent:?}"
        );

        let other = world.subscriber(2, second, "other", "$share/g/a", QoS::ExactlyOnce);
        world.shards[one.shard()].lost(one, "reset".into());
        world.shards[one.shard()].settle();
        world.deliver_mail();
        if second == V3 {
            published.properties = Default::default();
        }
        let got = world.look(other).packets;
        assert_eq!(
            got,
            [Packet::from(published)],
            "{first:?}, then {second:?}, {size} bytes"
        );
        assert_eq!(world.exchange.stats().share_redelivered, 1);
    }
}

#[test]
fn a_task_that_goes_to_rest_looks_again_if_something_came_meanwhile() {
    struct Told(AtomicUsize);
    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let told = Arc::new(Told(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&told));
    let mut world = World::new();
    let app = world.subscriber(0, V5, "app", "a", QoS::AtMostOnce);
    let car = world.client(0, V5, "car");
    world.shards[app.shard()].awake(app);
    world.look(app);
    world.shards[app.shard()].sleep(app, Rest::Asleep, &waker);
    assert_eq!(told.0.load(Ordering::SeqCst), 0, "nothing came");
    world.shards[app.shard()].awake(app);
    world.look(app);
    // After it looked for output, and before it rests.
    world.put(car, qos0("a", "x"));
    let mut mail = VecDeque::new();
    if world
        .exchange
        .mailbox(app.shard())
        .take(&mut mail, Waker::noop())
    {
        world.shards[app.shard()].mail(&mut mail);
    }
    world.shards[app.shard()].sleep(app, Rest::Asleep, &waker);
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
}
