//! What strangers found (`simulation::strangers`), each told once more so that it can be read.

use std::num::NonZeroU32;

use mqtt::{Connect, Packet, QoS, ReasonCode, Version};

use super::world::{World, qos1};

fn as_somebody(name: &str, principal: &str) -> Connect {
    let mut connect = Connect::new(Version::V5, name);
    connect.username = Some(principal.into());
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(600);
    connect
}

#[test]
fn somebody_else_with_the_same_client_identifier_gets_nothing_of_a_session() {
    let mut world = World::new();
    let sender = world.client(0, Version::V5, "sender");
    let first = world.connect(0, as_somebody("tablet", "anna"));
    assert!(!world.connack(first).session_present);
    world.subscribe(first, "for/anna", QoS::AtLeastOnce);
    world.shards[first.shard()].release(first);
    world.shards[first.shard()].settle();
    world.send(sender, qos1(1, "for/anna", "secret"));
    let second = world.connect(1, as_somebody("tablet", "ben"));
    assert!(!world.connack(second).session_present);
    assert!(world.messages(second).is_empty());
    // And an order about either of them reaches who it is meant for.
    let exchange = std::sync::Arc::clone(&world.exchange);
    let reason = ReasonCode::NotAuthorized;
    assert_eq!(exchange.disconnect_principal("anna", reason), 0);
    world.deliver_mail();
    assert!(!world.look(second).closed);
    assert_eq!(exchange.disconnect_principal("ben", reason), 1);
    world.deliver_mail();
    assert_eq!(world.closed_with(second), Some(reason));
    assert_eq!(exchange.connections(), 1, "the sender");
}

#[test]
fn a_client_that_cannot_take_connack_is_told_by_a_smaller_one() {
    // The whole of it has some 20 bytes, the smallest 5.
    for (max, heard) in [(8, Some(ReasonCode::PacketTooLarge)), (4, None)] {
        let mut world = World::new();
        let mut connect = Connect::new(Version::V5, "watch");
        connect.properties.maximum_packet_size = NonZeroU32::new(max);
        let watch = world.connect(0, connect);
        let seen = world.look(watch);
        assert!(seen.closed);
        let said: Vec<_> = seen
            .packets
            .iter()
            .map(|packet| match packet {
                Packet::ConnAck(ack) => ack.reason,
                other => panic!("not CONNACK: {other:?}"),
            })
            .collect();
        assert_eq!(said, Vec::from_iter(heard), "{max}");
        assert_eq!(world.exchange.connections(), 0);
    }
}

#[test]
fn what_waits_in_a_share_goes_with_the_broker() {
    let mut world = World::new();
    let sender = world.client(0, Version::V5, "sender");
    let worker = world.connect(0, as_somebody("worker", "worker"));
    world.connack(worker);
    world.subscribe(worker, "$share/g/job", QoS::AtLeastOnce);
    world.shards[worker.shard()].release(worker);
    world.shards[worker.shard()].settle();
    world.send(sender, qos1(1, "job", "one"));
    let share = world
        .exchange
        .subscriptions()
        .existing_share("$share/g/job");
    let share = std::sync::Arc::downgrade(&share.expect("has a member"));
    assert!(
        share
            .upgrade()
            .is_some_and(|share| share.group().waiting() == 1)
    );
    drop(world);
    assert!(share.upgrade().is_none(), "it is still there");
}
