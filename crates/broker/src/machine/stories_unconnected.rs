//! Stories of CONNECTs that did not lead to Connected: each has one ConnectFailed, wherever it got stuck.
//! And of traces that end while somebody is on the way.

use std::sync::Arc;
use std::time::Duration;

use mqtt::{Connect, ReasonCode, Version};

use super::mailbox::Mail;
use super::slots::ConnectionId;
use super::tracer::TraceOrder;
use super::world::World;
use crate::limits::Limits;
use crate::trace::{Sink, TraceFilter, TraceOptions};

const V5: Version = Version::V5;
const V311: Version = Version::V311;

/// What was told of a client.
fn told(world: &World, client: &str) -> Vec<String> {
    let told = world.outside.told.lock().unwrap();
    let of = told.iter().filter(|(of, _)| of == client);
    of.map(|(_, what)| what.clone()).collect()
}

fn overloaded(world: &World) {
    let tick = world.now.tick;
    let delays = &world.exchange.admission.delays;
    delays.looked(0, tick, Duration::from_secs(100));
}

fn spread() -> Limits {
    Limits {
        max_pending_connections: 100,
        retry_spread: Duration::from_secs(10),
        ..Limits::default()
    }
}

#[test]
fn who_is_put_off_has_failed_to_connect_once_it_is_told_or_gone() {
    let mut world = World::with(spread());
    overloaded(&world);
    let names = ["told", "gone", "stopped"];
    let [patient, gone, stopped] = names.map(|name| world.connect(1, Connect::new(V5, name)));
    for name in names {
        assert_eq!(told(&world, name), Vec::<String>::new(), "{name}: not yet");
    }
    world.shards[1].lost(gone, "gone".to_owned());
    world.shards[1].close(stopped, ReasonCode::ServerShuttingDown, "the broker stops");
    world.wait(11);
    assert_eq!(world.closed_with(patient), Some(ReasonCode::ServerBusy));
    let rows = [
        ("told", "failed: Server busy (0x89)"),
        ("gone", "failed: Unspecified error (0x80)"),
        ("stopped", "failed: Server unavailable (0x88)"),
    ];
    for (name, expected) in rows {
        assert_eq!(told(&world, name), [expected], "{name}");
    }
}

/// A client that is known, and is to go to another shard.
fn on_its_way(world: &mut World, name: &str) -> ConnectionId {
    let elsewhere = (world.exchange.home(name) + 1) % 3;
    let id = world.dial(elsewhere);
    world.put(id, Connect::new(V5, name));
    id
}

#[test]
fn who_is_lost_between_two_shards_has_failed_to_connect() {
    type Loss = fn(&mut World, super::departure::Departure);
    let rows: [(&str, Loss, &str); 2] = [
        (
            "cut",
            |_, departure| drop(departure),
            "failed: Unspecified error (0x80)",
        ),
        (
            "stopped",
            |world, departure| {
                let home = departure.to();
                world.exchange.mailbox(home).post(Mail::Stop);
                world.deliver_mail();
                assert!(world.shards[home].arrive(departure).is_none());
            },
            "failed: Server unavailable (0x88)",
        ),
    ];
    for (name, lose, expected) in rows {
        let mut world = World::new();
        let id = on_its_way(&mut world, name);
        let departure = world.shards[id.shard()].departure(id).expect("it leaves");
        lose(&mut world, departure);
        assert_eq!(told(&world, name), [expected], "{name}");
        let refused = world.exchange.stats().connects_refused;
        assert_eq!(refused.iter().map(|(_, count)| count).sum::<u64>(), 1);
    }
    let mut world = World::new();
    let id = on_its_way(&mut world, "arrived");
    world.settle_in(id);
    assert_eq!(told(&world, "arrived"), ["connected"]);
}

#[test]
fn who_cannot_be_told_that_it_is_connected_is_not() {
    let mut world = World::new();
    let mut connect = Connect::new(V5, "verbose");
    connect.properties.request_response_information = Some(true);
    let id = world.connect(0, connect);
    assert_eq!(
        world.closed_with(id),
        Some(ReasonCode::ImplementationSpecificError)
    );
    assert_eq!(
        told(&world, "verbose"),
        ["failed: Implementation specific error (0x83)"]
    );
    let stats = world.exchange.stats();
    assert_eq!((stats.connections, stats.connects_accepted), (0, 0));
    // Who does not ask for what cannot be said, is.
    world.client(0, V5, "verbose");
    world.client(0, V311, "verbose");
}

#[test]
fn a_trace_that_ends_is_carried_by_nobody() {
    let mut world = World::with(spread());
    let filter = TraceFilter {
        clients: vec!["car".into(), "late".into(), "asks".into()],
        ..TraceFilter::default()
    };
    let sink = Arc::new(Sink::new(filter, TraceOptions::default()).expect("a filter"));
    let order = |world: &mut World, order: fn(Arc<Sink>) -> TraceOrder| {
        let sink = &sink;
        world
            .exchange
            .post_to_all(|| Mail::Trace(order(Arc::clone(sink))));
        world.deliver_mail();
    };
    order(&mut world, TraceOrder::Begin);
    // More than are looked at in one piece, all over the shards.
    for n in 0..100 {
        world.client(n % 3, V5, &format!("other-{n}"));
    }
    let car = world.client(0, V5, "car");
    let asks = {
        let mut connect = Connect::new(V5, "asks");
        connect.properties.authentication_method = Some("endless".into());
        world.connect(1, connect)
    };
    let leaves = on_its_way(&mut world, "late");
    let departure = world.shards[leaves.shard()].departure(leaves);
    overloaded(&world);
    let put_off = world.connect(2, Connect::new(V5, "late"));
    let carry = |world: &mut World, id: ConnectionId| {
        let tenant = world.shards[id.shard()].tenants.get(id);
        tenant.expect("it is there").tracer.is_some()
    };
    for id in [car, asks, put_off] {
        assert!(carry(&mut world, id), "{id:?}");
    }
    sink.close();
    order(&mut world, TraceOrder::End);
    for id in [car, asks, put_off] {
        assert!(!carry(&mut world, id), "{id:?}");
    }
    let departure = departure.expect("it left");
    let late = world.shards[departure.to()]
        .arrive(departure)
        .expect("there is room");
    assert!(!carry(&mut world, late));
    assert_eq!(Arc::strong_count(&sink), 1, "and kept by nobody");
}
