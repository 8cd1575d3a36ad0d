//! Stories about what an operator sees and does, with the store and the mail in the test's hand.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use mqtt::{
    Connect, Packet, PubComp, PubRec, Publish, QoS, ReasonCode, Subscribe, SubscribeProperties,
    Subscription, TopicFilter, Unsubscribe, UnsubscribeProperties, Version,
};

use super::inspecting::{Inquiry, Listing, Part, Reply, STRETCH, SUMMARISED};
use super::mailbox::Mail;
use super::slots::ConnectionId;
use super::store::Store;
use super::world::{World, lasting, packet_id, qos0, qos1, slow_world};
use crate::clients::{ClientQuery, Purged};
use crate::limits::Limits;

const V3: Version = Version::V311;
const V5: Version = Version::V5;

impl World {
    /// What was told of a client.
    fn told(&self, client: &str) -> Vec<String> {
        let told = self.outside.told.lock().unwrap();
        let of = told.iter().filter(|(of, _)| of == client);
        of.map(|(_, what)| what.clone()).collect()
    }

    fn wish(&mut self, id: ConnectionId, filter: &str) {
        let filter = TopicFilter::parse(filter).expect("a valid filter");
        self.send(
            id,
            Subscribe {
                packet_id: packet_id(1),
                subscriptions: vec![Subscription::new(filter, QoS::AtLeastOnce)],
                properties: SubscribeProperties::default(),
            },
        );
    }
}

/// An answer, once it is there.
type Answer<T> = Arc<Mutex<Option<T>>>;

fn reply<T: Send + 'static>() -> (Reply<T>, Answer<T>) {
    let answer = Answer::default();
    let place = Arc::clone(&answer);
    let reply = Reply::new(move |said| *place.lock().unwrap() = Some(said));
    (reply, answer)
}

#[test]
fn what_must_be_stored_first_is_told_when_it_is() {
    let (mut world, store) = slow_world(Limits::default());
    let car = world.connect(0, lasting("car"));
    assert_eq!(world.told("car"), [""; 0], "CONNACK waits");
    world.stored(&store);
    assert_eq!(world.told("car"), ["connected"]);
    world.wish(car, "a");
    assert_eq!(world.told("car").len(), 1, "SUBACK waits");
    world.stored(&store);
    assert_eq!(world.told("car")[1..], ["subscribed [\"a\"]"]);
    world.send(
        car,
        Unsubscribe {
            packet_id: packet_id(2),
            filters: vec![TopicFilter::parse("a").expect("valid")],
            properties: UnsubscribeProperties::default(),
        },
    );
    assert_eq!(world.told("car").len(), 2, "UNSUBACK waits");
    world.stored(&store);
    assert_eq!(world.told("car")[2..], ["unsubscribed [\"a\"]"]);
}

#[test]
fn nothing_is_told_of_a_connection_after_its_end() {
    let (mut world, store) = slow_world(Limits::default());
    let car = world.connect(0, lasting("car"));
    world.stored(&store);
    world.wish(car, "a");
    world.shards[car.shard()].lost(car, "the tunnel".to_owned());
    world.shards[car.shard()].settle();
    world.stored(&store);
    assert_eq!(world.told("car"), ["connected", "disconnected by network"]);
}

#[test]
fn a_client_that_goes_before_connack_has_failed_to_connect() {
    let (mut world, store) = slow_world(Limits::default());
    let car = world.connect(0, lasting("car"));
    let next = world.connect(1, lasting("car"));
    assert_eq!(
        world.told("car"),
        ["failed: Session taken over (0x8E)"],
        "the second one, whose CONNACK waits too, takes over"
    );
    world.stored(&store);
    assert!(world.look(car).closed);
    assert!(!world.look(next).closed);
    assert_eq!(world.told("car")[1..], ["connected"]);
}

#[test]
fn time_and_slowness_are_causes_of_their_own() {
    let mut world = World::with(Limits {
        max_queued: 1,
        ..Limits::default()
    });
    let mut connect = Connect::new(V3, "quiet");
    connect.keep_alive = 10;
    let quiet = world.connect(0, connect);
    world.look(quiet);
    world.wait(16);
    assert_eq!(
        world.told("quiet"),
        ["connected", "disconnected by keep_alive"]
    );
    let mut connect = Connect::new(V5, "slow");
    connect.properties.receive_maximum = 1.try_into().ok();
    let slow = world.connect(0, connect);
    world.look(slow);
    world.subscribe(slow, "a", QoS::AtLeastOnce);
    let car = world.client(1, V5, "car");
    for n in 1..=4 {
        world.send(car, qos1(n, "a", "x"));
    }
    assert_eq!(
        world.told("slow").last().map(String::as_str),
        Some("disconnected by throttled")
    );
}

#[test]
fn a_purge_is_answered_when_the_store_has_it() {
    let (mut world, store) = slow_world(Limits::default());
    let car = world.connect(0, lasting("car"));
    world.stored(&store);
    world.wish(car, "a");
    world.stored(&store);
    let ask = |world: &mut World| {
        let (reply, answer) = reply();
        let home = world.exchange.home("car");
        let mail = Mail::Inquiry(Inquiry::Purge("car".into(), reply));
        world.exchange.mailbox(home).post(mail);
        world.deliver_mail();
        answer
    };
    let first = ask(&mut world);
    let second = ask(&mut world);
    assert_eq!(
        world.closed_with(car),
        Some(ReasonCode::AdministrativeAction)
    );
    assert!(first.lock().unwrap().is_none(), "it is not on disk yet");
    assert!(second.lock().unwrap().is_none(), "nor is what it would say");
    world.stored(&store);
    let purged = Purged {
        queued: 0,
        subscriptions: 1,
    };
    assert_eq!(*first.lock().unwrap(), Some(Some(purged)));
    assert_eq!(*second.lock().unwrap(), Some(None));
    let stats = world.exchange.stats();
    assert_eq!((stats.sessions, stats.subscriptions), (0, 0));
}

#[test]
fn a_long_list_lets_others_have_their_turn() {
    let mut world = World::new();
    let ids: Vec<ConnectionId> = (0..9_000)
        .map(|n| world.connect(0, Connect::new(V3, format!("car-{n:04}"))))
        .collect();
    let shard = ids[0].shard();
    let query = Arc::new(ClientQuery {
        limit: 1000,
        ..ClientQuery::default()
    });
    let (reply, answer) = reply::<Part>();
    let mailbox = Arc::clone(world.exchange.mailbox(shard));
    let list = Inquiry::List(Listing::new(query, reply));
    mailbox.post(Mail::Inquiry(list));
    let mut turns = 0;
    let mut mail = VecDeque::new();
    while answer.lock().unwrap().is_none() {
        turns += 1;
        assert!(
            mailbox.take(&mut mail, Waker::noop()),
            "it goes on by itself"
        );
        assert_eq!(mail.len(), 1, "one step at a time");
        world.shards[shard].mail(&mut mail);
        world.shards[shard].settle();
        if turns == 1 {
            // The first ones of the list go, after they were looked at.
            for id in ids.iter().filter(|id| id.shard() == shard).take(10) {
                world.shards[shard].lost(*id, "gone".to_owned());
            }
            world.shards[shard].settle();
        }
    }
    // All sessions, a look at the end, then the summaries.
    let sessions = ids.iter().filter(|id| id.shard() == shard).count();
    let looks = sessions.div_ceil(STRETCH as usize) + 1;
    assert_eq!(turns, looks + 1001_usize.div_ceil(SUMMARISED));
    assert!(looks > 3, "{sessions}");
    let part = answer.lock().unwrap().take().expect("it is there");
    assert_eq!(part.items.len(), 1001 - 10);
    let last = part.items.last().map(|item| item.client_id.clone());
    assert_eq!(part.covers, last);
    assert!(part.items.is_sorted_by(|a, b| a.client_id < b.client_id));
}

#[test]
fn a_client_that_was_here_all_along_is_in_the_list_whoever_comes_and_goes() {
    let mut world = World::new();
    let mut rooms: Vec<ConnectionId> = (0..8_000)
        .map(|n| world.connect(0, Connect::new(V3, format!("old-{n:04}"))))
        .collect();
    let shard = rooms[0].shard();
    rooms.retain(|id| id.shard() == shard);
    let query = Arc::new(ClientQuery {
        limit: 1000,
        prefix: Some("old".into()),
        // So that all that follow fit into the page, from several steps.
        after: Some("old-5200".into()),
        ..ClientQuery::default()
    });
    let (reply, answer) = reply::<Part>();
    let mailbox = Arc::clone(world.exchange.mailbox(shard));
    mailbox.post(Mail::Inquiry(Inquiry::List(Listing::new(query, reply))));
    let mut mail = VecDeque::new();
    let mut left = rooms.split_off(rooms.len() - 100);
    let mut turn = 0;
    while answer.lock().unwrap().is_none() {
        mailbox.take(&mut mail, Waker::noop());
        world.shards[shard].mail(&mut mail);
        world.shards[shard].settle();
        for id in left.drain(left.len().saturating_sub(20)..) {
            world.shards[shard].release(id);
        }
        turn += 1;
        for n in 0..20 {
            world.connect(0, Connect::new(V3, format!("new-{turn}-{n}")));
        }
    }
    let part = answer.lock().unwrap().take().expect("it is there");
    let items: Vec<Arc<str>> = part.items.iter().map(|i| i.client_id.clone()).collect();
    let mut stayed = 0;
    for id in &rooms {
        let name = world.shards[shard].client_of(*id);
        if &*name > "old-5200" {
            assert!(items.contains(&name), "{name} was here all along");
            stayed += 1;
        }
    }
    assert!(stayed > 500, "{stayed}");
    assert_eq!(part.covers, None);
}

#[test]
fn a_message_at_qos_0_counts_for_both_ends() {
    let mut world = World::new();
    let car = world.subscriber(0, V5, "car", "a", QoS::AtMostOnce);
    world.send(car, qos0("a", "x"));
    assert!(matches!(world.look(car).packets[..], [Packet::Publish(_)]));
    let (reply, answer) = reply();
    let mail = Mail::Inquiry(Inquiry::Show("car".into(), reply));
    world.exchange.mailbox(car.shard()).post(mail);
    world.deliver_mail();
    let detail = answer.lock().unwrap().take().flatten().expect("it is here");
    let traffic = detail.connection.expect("connected").traffic;
    assert_eq!((traffic.messages_in, traffic.messages_out), (1, 1));
}

#[test]
fn a_topic_that_is_clear_already_is_cleared_once_the_store_knows() {
    let (world, store) = slow_world(Limits::default());
    let publish = |payload: &str| {
        let message = Publish {
            retain: true,
            ..qos1(1, "a", payload)
        };
        let published = world.exchange.publish_from_outside(&message, world.now);
        published.expect("it is taken").position
    };
    publish("x");
    let (first, second) = (publish(""), publish(""));
    assert!(first > Some(store.durable()), "it is on its way");
    assert!(
        second >= first,
        "{second:?}: no sooner than what cleared it"
    );
}

#[test]
fn figures_of_this_run_are_sent_without_the_store() {
    let (mut world, store) = slow_world(Limits::default());
    let car = world.connect(0, lasting("car"));
    world.stored(&store);
    world.look(car);
    let before = store.submitted.load(Ordering::Relaxed);
    for n in 1..=2 {
        let mut figure = qos1(1, "$SYS/broker/uptime", &n.to_string());
        (figure.qos, figure.retain) = (QoS::ExactlyOnce, true);
        let published = world.exchange.publish_own(&figure, world.now);
        assert_eq!(published.expect("it is taken").position, None);
    }
    let after = store.submitted.load(Ordering::Relaxed);
    assert_eq!(after, before, "nothing was written");
    let filter = TopicFilter::parse("$SYS/#").expect("a valid filter");
    world.send(
        car,
        Subscribe {
            packet_id: packet_id(1),
            subscriptions: vec![Subscription::new(filter, QoS::ExactlyOnce)],
            properties: SubscribeProperties::default(),
        },
    );
    world.stored(&store);
    let packets = world.look(car).packets;
    let [Packet::SubAck(_), Packet::Publish(found)] = &packets[..] else {
        panic!("{packets:?}");
    };
    assert_eq!((&found.payload[..], found.retain), (&b"2"[..], true));
    let id = found.packet_id.expect("QoS 2");
    world.send(car, PubRec::success(id));
    world.stored(&store);
    assert!(matches!(&world.look(car).packets[..], [Packet::PubRel(_)]));
    world.send(car, PubComp::success(id));
    assert_eq!(world.look(car).packets, []);
}

#[test]
fn who_comes_back_while_memory_is_short_gets_what_is_owed_bit_by_bit() {
    let mut world = World::with(Limits {
        max_queue_memory: 300_000,
        max_queued_bytes: 200_000,
        max_packet_size: 100_000,
        ..Limits::default()
    });
    let used = |world: &mut World| {
        // What a shard keeps to itself is booked every second.
        world.wait(1);
        world.exchange.stats().queue_memory_bytes
    };
    let payload = "x".repeat(10_000);
    let app = world.client(2, V5, "app");
    let car = world.connect(0, lasting("car"));
    world.connack(car);
    world.subscribe(car, "a", QoS::AtLeastOnce);
    for id in 1..=15 {
        world.send(app, qos1(id, "a", &payload));
    }
    assert_eq!(world.messages(car).len(), 15);
    // The tunnel. Meanwhile others do not read.
    world.shards[car.shard()].release(car);
    for name in ["slow", "slower", "slowest"] {
        world.subscriber(1, V5, name, "b", QoS::AtMostOnce);
    }
    for _ in 0..19 {
        world.send(app, qos0("b", &payload));
    }
    assert!(world.exchange.stats().dropped_memory > 0, "it is short");
    let before = used(&mut world);
    let car = world.connect(0, lasting("car"));
    let more = used(&mut world) - before;
    assert!((1..80_000).contains(&more), "{more} bytes at once");
    // Nothing is acknowledged: what it reads makes room for the rest.
    let packets = world.look(car).packets;
    let again = |p: &Packet| matches!(p, Packet::Publish(p) if p.dup);
    let again = packets.iter().filter(|packet| again(packet)).count();
    assert_eq!(again, 15);
}
