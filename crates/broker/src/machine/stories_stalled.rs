//! Stories about clients that go on asking while the disk takes nothing: all of it is bounded, nobody is read
//! from without end, and everything is answered when the disk is back.

use mqtt::{
    Connect, Packet, PubRec, PubRel, Publish, QoS, ReasonCode, SubAck, Subscribe, Subscription,
    TopicFilter, Unsubscribe, UnsubscribeProperties, Version,
};

use super::connection::{Appetite, MAX_FILTERS};
use super::slots::ConnectionId;
use super::world::{Slow, World, lasting, packet_id, qos1, slow_world, subscribe_to};
use crate::limits::Limits;

/// Of everything that waits; small, so that it is reached.
const MEMORY: usize = 1 << 20;

/// What clients do again and again, each in its own way.
const HABITS: usize = 5;

/// The last of them: clears a retained topic.
const CLEARS: usize = 4;

fn limits() -> Limits {
    Limits {
        max_session_memory: MEMORY,
        ..Limits::default()
    }
}

/// Filters of 200 bytes that are the same every time.
fn filters(count: usize) -> impl Iterator<Item = TopicFilter> {
    (0..count).map(|n| TopicFilter::parse(&format!("{n}/{}", "x".repeat(200))).expect("a filter"))
}

fn subscribe(count: usize) -> Subscribe {
    Subscribe {
        subscriptions: filters(count)
            .map(|filter| Subscription::new(filter, QoS::AtMostOnce))
            .collect(),
        ..subscribe_to("a")
    }
}

fn unsubscribe(count: usize) -> Unsubscribe {
    Unsubscribe {
        packet_id: packet_id(9),
        filters: filters(count).collect(),
        properties: UnsubscribeProperties::default(),
    }
}

fn habit(which: usize, round: u16) -> Packet {
    let id = round % 1000 + 1;
    match which {
        0 => subscribe(20).into(),
        1 => unsubscribe(20).into(),
        2 => PubRel::success(packet_id(id)).into(),
        3 => PubRec::new(packet_id(1), ReasonCode::Success).into(),
        // Which takes no memory itself.
        _ => Publish {
            retain: true,
            ..qos1(id, "state", "")
        }
        .into(),
    }
}

/// Does it until it is not read from any more. Says how often that was.
fn asks_on(world: &mut World, id: ConnectionId, which: usize) -> usize {
    // A client that keeps to Receive Maximum stops there by itself.
    let most = if which == CLEARS { 1000 } else { 20_000 };
    for round in 0..most {
        if world.shards[id.shard()].appetite(id) != Appetite::Hungry {
            return usize::from(round);
        }
        world.put(id, habit(which, round));
    }
    assert_eq!(which, CLEARS, "read from without end");
    usize::from(most)
}

fn connected(world: &mut World, store: &Slow, name: &str) -> ConnectionId {
    enter(world, store, lasting(name))
}

fn enter(world: &mut World, store: &Slow, connect: Connect) -> ConnectionId {
    let id = world.connect(0, connect);
    world.stored(store);
    assert_eq!(world.connack(id).reason, ReasonCode::Success);
    id
}

#[test]
fn whoever_goes_on_asking_is_not_read_from_until_it_is_answered() {
    let (mut world, store) = slow_world(limits());
    let clients: Vec<ConnectionId> = (0..40)
        .map(|n| {
            let mut connect = lasting(&format!("car-{n}"));
            if n % HABITS == CLEARS {
                // Which it may go on with, so its silence is its own: as long as it may be.
                connect.keep_alive = 0;
            }
            enter(&mut world, &store, connect)
        })
        .collect();
    let publisher = connected(&mut world, &store, "publisher");
    for (n, id) in clients.iter().enumerate() {
        // One message of QoS 2 for each, which it says it has, again and again.
        let mut wish = subscribe_to(&format!("to/{n}"));
        wish.subscriptions[0].qos = QoS::ExactlyOnce;
        world.send(*id, wish);
        let message = Publish {
            qos: QoS::ExactlyOnce,
            ..qos1(n as u16 + 1, &format!("to/{n}"), "x")
        };
        world.send(publisher, message);
        world.stored(&store);
        world.look(*id);
    }
    let before = world.exchange.stats().session_memory_bytes as usize;

    world.stall(&store);
    for id in &clients {
        // Something that must be stored: what is asked for after it waits for it, whatever it is.
        world.send(*id, subscribe_to("first"));
    }
    let asked: Vec<usize> = (0..clients.len())
        .map(|n| asks_on(&mut world, clients[n], n % HABITS))
        .collect();
    let held = world.exchange.stats().session_memory_bytes as usize;
    // Each shard may have counted some steps ahead, each client one answer more than fits.
    assert!(held <= MEMORY + 3 * 3 * (64 << 10), "{held} bytes");
    assert!(held > MEMORY / 2, "they are held back too early: {held}");
    // The first of each habit has 64 KiB of answers, the last but the one that waits already.
    assert!(asked[..HABITS].iter().all(|n| *n > 5), "{asked:?}");
    assert_eq!(asked.last(), Some(&0), "{asked:?}");
    for (n, id) in clients.iter().enumerate() {
        let seen = world.look(*id);
        let habit = n % HABITS;
        assert!(!seen.closed, "habit {habit}: {:?}", seen.packets.last());
        assert_eq!(seen.packets.first(), None, "habit {habit}");
    }
    // Silence is not theirs. Whose messages wait is told that they are not stored.
    world.wait(600);
    let mut answered = vec![0; clients.len()];
    for (n, id) in clients.iter().enumerate() {
        let seen = world.look(*id);
        assert!(!seen.closed, "habit {}", n % HABITS);
        assert!(seen.packets.is_empty() || n % HABITS == CLEARS);
        answered[n] = seen.packets.len();
    }

    world.stored(&store);
    for (n, id) in clients.iter().enumerate() {
        let seen = world.look(*id);
        assert!(!seen.closed, "{n} was closed");
        let answered = answered[n] + seen.packets.len();
        assert_eq!(answered, asked[n] + 1, "habit {}", n % HABITS);
        assert_eq!(world.shards[id.shard()].appetite(*id), Appetite::Hungry);
    }
    let after = world.exchange.stats().session_memory_bytes as usize;
    // The subscriptions that were made meanwhile; the rest is given back.
    assert!(after - before < 8 * 20 * 1024, "{before}, then {after}");
}

#[test]
fn a_subscribe_for_whose_answer_there_is_no_memory_is_refused() {
    let (mut world, store) = slow_world(limits());
    let [car, van] = ["car", "van"].map(|name| connected(&mut world, &store, name));
    world.stall(&store);
    world.send(car, subscribe(1000));
    world.send(van, subscribe(1000));
    assert!(world.look(car).packets.is_empty() && world.look(van).packets.is_empty());
    world.stored(&store);
    let granted = |world: &mut World, id| match &world.look(id).packets[..] {
        [Packet::SubAck(SubAck { reasons, .. })] => {
            let granted = reasons.iter().filter(|reason| !reason.is_error());
            granted.count()
        }
        other => panic!("one SUBACK, not {}", other.len()),
    };
    assert!(granted(&mut world, car) > 500);
    assert_eq!(granted(&mut world, van), 0);
}

#[test]
fn a_packet_with_too_many_filters_ends_the_connection() {
    let rows: [(Packet, Option<ReasonCode>); 4] = [
        (subscribe(MAX_FILTERS).into(), None),
        (
            subscribe(MAX_FILTERS + 1).into(),
            Some(ReasonCode::QuotaExceeded),
        ),
        (unsubscribe(MAX_FILTERS).into(), None),
        (
            unsubscribe(MAX_FILTERS + 1).into(),
            Some(ReasonCode::QuotaExceeded),
        ),
    ];
    for (packet, refused) in rows {
        let mut world = World::new();
        let car = world.client(0, Version::V5, "car");
        world.send(car, packet);
        match refused {
            None => assert!(!world.look(car).closed),
            Some(reason) => assert_eq!(world.closed_with(car), Some(reason)),
        }
    }
}
