//! The wall clock is set to anything at any time, and nobody who is served notices.

use bytes::BytesMut;
use journal::RecordId;
use mqtt::{Connect, Packet, Publish, QoS, ReasonCode, Version};

use super::Moment;
use super::format::{
    DeliveryRecord, MessageRecord, Owner, RetainedOwed, SessionRecord, Stage, SubscriptionRecord,
};
use super::frame::SubscriptionIds;
use super::restore::Loading;
use super::subscriber::{OwnMessages, RetainFlag};
use super::world::{World, qos0, qos1, with_will};

const YEAR_US: i64 = 365 * 24 * 3600 * 1_000_000;

/// What a clock may be set to.
const CLOCKS: [i64; 7] = [
    1_700_000_001_000_000,
    1_699_999_999_000_000,
    1_700_000_000_000_000 + 10 * YEAR_US,
    1_700_000_000_000_000 - 10 * YEAR_US,
    0,
    i64::MAX,
    1_700_000_000_000_000,
];

/// Seconds pass, and the clock is set in each of them.
fn wait(world: &mut World, seconds: u64) {
    for second in 0..seconds {
        world.now.wall_us = CLOCKS[second as usize % CLOCKS.len()];
        world.wait(1);
    }
}

#[test]
fn keep_alive_goes_by_the_tick() {
    let mut world = World::new();
    let mut connect = Connect::new(Version::V5, "car");
    connect.keep_alive = 20;
    let car = world.connect(0, connect);
    world.connack(car);
    wait(&mut world, 29);
    assert!(!world.look(car).closed);
    wait(&mut world, 3);
    assert_eq!(world.closed_with(car), Some(ReasonCode::KeepAliveTimeout));
}

#[test]
fn messages_sessions_and_wills_go_by_the_tick() {
    let mut world = World::new();
    let watcher = world.subscriber(0, Version::V5, "watcher", "gone", QoS::AtMostOnce);
    let expiring = |expiry| {
        let mut connect = with_will(Connect::new(Version::V5, "car"), "gone");
        connect.properties.session_expiry_interval = Some(expiry);
        if let Some(will) = &mut connect.will {
            will.properties.will_delay_interval = Some(40);
        }
        connect
    };
    let car = world.connect(1, expiring(60));
    world.connack(car);
    world.subscribe(car, "cmd", QoS::AtLeastOnce);
    world.shards[car.shard()].release(car);
    world.shards[car.shard()].settle();
    for (expiry, payload) in [(30, "short"), (50, "long")] {
        let mut command = qos1(7, "cmd", payload);
        command.properties.message_expiry_interval = Some(expiry);
        world.send(watcher, command);
    }
    world.look(watcher); // its PUBACKs
    wait(&mut world, 38);
    assert!(world.messages(watcher).is_empty(), "its will is not due");
    wait(&mut world, 4);
    assert_eq!(world.messages(watcher).len(), 1, "its will is due");
    // Its session and one of the messages are still there.
    let (present, messages) = comes_back(&mut world);
    assert!(present);
    assert_eq!(messages, ["cmd Some(8)"]);
    wait(&mut world, 63);
    assert!(!comes_back(&mut world).0, "its time was over");
}

/// A broker that starts at `wall_us` with a session that was left, and a message that came for it, at
/// `stored_us`. The session lasts ten minutes from then, the message one.
fn restarted(stored_us: i64, wall_us: i64) -> World {
    let mut world = World::new();
    world.now = Moment { tick: 0, wall_us };
    let message = Publish {
        qos: QoS::AtLeastOnce,
        topic: "cmd".into(),
        payload: "go".into(),
        properties: mqtt::PublishProperties {
            message_expiry_interval: Some(60),
            ..Default::default()
        },
        ..Publish::default()
    };
    let mut body = BytesMut::new();
    message.keep(&mut body).expect("can be kept");
    let mut records = Vec::new();
    let mut put = |id, write: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        write(&mut out);
        records.push((RecordId(id), out.freeze()));
    };
    let session = SessionRecord {
        client_id: "car".into(),
        principal: "car".into(),
        expiry: 600,
        disconnected_us: Some(stored_us),
        curtailed: false,
        will: None,
    };
    put(1, &|out| session.write(out));
    let message = MessageRecord {
        received_us: stored_us,
        body: body.freeze(),
    };
    put(2, &|out| message.write(out));
    let delivery = DeliveryRecord {
        owner: Owner::Session(RecordId(1)),
        message: RecordId(2),
        qos: QoS::AtLeastOnce,
        retain: false,
        ids: SubscriptionIds::None,
        share: None,
        stage: Stage::Waiting,
    };
    put(3, &|out| delivery.write(out));
    let subscription = SubscriptionRecord {
        session: RecordId(1),
        filter: "cmd".into(),
        granted: QoS::AtLeastOnce,
        own: OwnMessages::Deliver,
        retain: RetainFlag::Clear,
        id: 0,
        retained: RetainedOwed::No,
    };
    put(4, &|out| subscription.write(out));
    let mut loading = Loading::new(&world.exchange, world.now);
    for (id, bytes) in &records {
        loading.take(*id, bytes).expect("as written");
    }
    let (shards, _) = loading.finish().expect("fits");
    world.shards = shards;
    world
}

/// The client `car` comes back for a minute, and goes at once; says whether its session is there, and
/// what waited.
fn comes_back(world: &mut World) -> (bool, Vec<String>) {
    let mut connect = Connect::new(Version::V5, "car");
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(60);
    let car = world.connect(0, connect);
    let mut packets = world.look(car).packets.into_iter();
    world.shards[car.shard()].release(car);
    world.shards[car.shard()].settle();
    let Some(Packet::ConnAck(answer)) = packets.next() else {
        panic!("no CONNACK");
    };
    let messages = packets
        .map(|packet| match packet {
            Packet::Publish(publish) => {
                let left = publish.properties.message_expiry_interval;
                format!("{} {left:?}", publish.topic)
            }
            other => panic!("not a message: {other:?}"),
        })
        .collect();
    (answer.session_present, messages)
}

const NOW_US: i64 = 1_700_000_000_000_000;

#[test]
fn what_is_stored_ages_by_the_wall_clock_over_a_restart() {
    let minutes = |minutes: i64| restarted(NOW_US, NOW_US + minutes * 60_000_000);
    assert_eq!(
        comes_back(&mut minutes(0)),
        (true, vec!["cmd Some(60)".to_owned()])
    );
    assert_eq!(comes_back(&mut minutes(2)), (true, vec![]));
    assert_eq!(comes_back(&mut minutes(11)), (false, vec![]));
}

#[test]
fn a_clock_set_back_over_a_restart_makes_nothing_last_longer_than_from_there() {
    for ahead_us in [1_000_000, YEAR_US, 10 * YEAR_US, i64::MAX / 2] {
        let at = |seconds| {
            let mut world = restarted(NOW_US + ahead_us, NOW_US);
            world.wait(seconds);
            comes_back(&mut world)
        };
        assert_eq!(
            at(10),
            (true, vec!["cmd Some(50)".to_owned()]),
            "{ahead_us}"
        );
        assert_eq!(at(62), (true, vec![]), "{ahead_us}");
        assert_eq!(at(602), (false, vec![]), "{ahead_us}");
    }
}

#[test]
fn a_clock_at_either_end_of_time_stops_nothing() {
    let ends = [i64::MIN + 1, 0, i64::MAX];
    for (stored_us, wall_us) in ends.into_iter().flat_map(|a| ends.map(|b| (a, b))) {
        let mut world = restarted(stored_us, wall_us);
        world.wait(1);
        let (present, _) = comes_back(&mut world);
        assert_eq!(present, stored_us >= wall_us, "{stored_us} at {wall_us}");
        wait(&mut world, 20);
        let truck = world.subscriber(0, Version::V5, "truck", "cmd", QoS::AtMostOnce);
        world.send(truck, qos0("cmd", "on"));
        assert_eq!(world.messages(truck), ["cmd: on"]);
    }
}
