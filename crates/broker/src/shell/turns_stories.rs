//! What a served client notices while a fleet comes, and while it goes: a worker with real sockets, and a
//! task beside its connections that is always ready. Between two of its turns there may be the end of
//! one round and the beginning of the next, and no more, however many sockets are ready at once.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mqtt::{Connect, Packet, Publish, Version};
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::acceptor::{Arrival, Caller, Place, Sockets};
use super::clock::Clock;
use super::door::Door;
use super::turns::Turns;
use super::worker::{Worker, work};
use crate::acknowledge::Acknowledge;
use crate::hooks::{ConnectAttempt, Decision, Hooks, Identity, Refusal, Tap};
use crate::limits::Limits;
use crate::machine::exchange::Exchange;
use crate::machine::mailbox::Mail;
use crate::machine::shard::Shard;
use crate::machine::store::Forgetful;
use crate::presence::{Presence, PresenceEvent};
use crate::transport::{ListenerConfig, Transport};

/// Clients of the fleet.
const FLEET: usize = 40;

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The served client had one.
    Served,
    Came,
    Went,
}

#[derive(Default)]
struct Outside(Mutex<Vec<Turn>>);

impl Outside {
    fn note(&self, turn: Turn) {
        self.0.lock().expect("nobody panics with it").push(turn);
    }

    fn count(&self, turn: Turn) -> usize {
        let turns = self.0.lock().expect("nobody panics with it");
        turns.iter().filter(|t| **t == turn).count()
    }

    /// Most that happened of one kind between two turns of the served client.
    fn most(&self, turn: Turn) -> usize {
        let turns = self.0.lock().expect("nobody panics with it");
        let between = turns.split(|t| *t == Turn::Served);
        let counts = between.map(|some| some.iter().filter(|t| **t == turn).count());
        counts.max().unwrap_or(0)
    }
}

impl Hooks for Outside {
    fn authenticate(&self, attempt: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
        self.note(Turn::Came);
        Ok(Identity::new(attempt.client_id, attempt.client_id))
    }

    fn may_publish(&self, _: &Identity, _: &str) -> Decision {
        Decision::Allow
    }

    fn may_subscribe(&self, _: &Identity, _: &str) -> Decision {
        Decision::Allow
    }

    fn presence(&self, event: &Presence<'_>) {
        if matches!(event.what, PresenceEvent::Disconnected { .. }) {
            self.note(Turn::Went);
        }
    }

    fn tap(&self, _: &Identity, _: &Publish, _: i64, _: Acknowledge) -> Tap {
        Tap::NotWanted
    }
}

/// Has a turn whenever everybody has had one, until `turn` was seen often enough.
async fn served(outside: Arc<Outside>, turn: Turn, often: usize) {
    let since = Instant::now();
    while outside.count(turn) < often {
        assert!(since.elapsed() < PATIENCE, "{turn:?} did not come");
        outside.note(Turn::Served);
        let mut ran = false;
        std::future::poll_fn(|cx| match std::mem::replace(&mut ran, true) {
            true => std::task::Poll::Ready(()),
            false => {
                // To the end of the queue, with which `yield_now` would wait for the poller.
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            }
        })
        .await;
    }
}

#[test]
fn between_two_turns_of_a_served_client_come_and_go_no_more_than_a_round_takes() {
    let outside = Arc::new(Outside::default());
    let (clock, limits) = (Clock::start(), Limits::default());
    let hooks = Arc::clone(&outside) as Arc<dyn Hooks>;
    let store = Arc::new(Forgetful::default());
    let exchange = Arc::new(Exchange::new(hooks, limits, 1, clock.now(), 0, store));
    let shard = Shard::new(0, Arc::clone(&exchange), clock.now());

    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ListenerConfig::new("test", loopback, Transport::Tcp);
    let door = Arc::new(Door::new(&config, 1).expect("it can be served"));
    let sockets = Arc::new(Sockets::default());
    let listener = TcpListener::bind(loopback).expect("a port");
    let (sender, arrivals) = mpsc::channel(FLEET);
    let mut fleet = Vec::new();
    let mut begun = 0;
    for number in 0..FLEET {
        let there = listener.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(there).expect("it listens");
        let mut bytes = BytesMut::new();
        let connect = Connect::new(Version::V5, format!("car-{number}").as_str());
        mqtt::encode(&Packet::from(connect), Version::V5, &mut bytes).expect("it can be said");
        // All but its end: it is to come for all of them at once, when they have been taken in.
        let last = bytes.split_off(bytes.len() - 1);
        client.write_all(&bytes).expect("there is room");
        begun += bytes.len() as u64;
        let (socket, peer) = listener.accept().expect("it came");
        socket.set_nonblocking(true).expect("settable");
        let arrival = Arrival {
            caller: Caller::Tcp(socket),
            peer,
            door: Arc::clone(&door),
            place: Place::take(&sockets, &door.entrance),
        };
        sender.try_send(arrival).expect("there is room");
        fleet.push((client, last));
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .expect("a runtime");
    runtime.block_on(async {
        let (removals, removed) = mpsc::unbounded_channel();
        // A share of no time: one turn in each round.
        let turns = Turns::new(Duration::ZERO);
        let there = Arc::clone(&exchange);
        let worker = Rc::new(Worker::new(0, shard, there, clock, vec![removals], turns));
        let work = spawn_local(work(0, worker, arrivals, removed));
        let all = |turn| spawn_local(served(Arc::clone(&outside), turn, FLEET));

        let until = async |what: &str, is_so: &dyn Fn() -> bool| {
            let since = Instant::now();
            while !is_so() {
                assert!(since.elapsed() < PATIENCE, "{what}");
                tokio::task::yield_now().await;
            }
        };
        until("not all were heard", &|| exchange.stats().bytes_in >= begun).await;
        for (client, last) in &mut fleet {
            client.write_all(last).expect("there is room");
        }
        all(Turn::Came).await.expect("all came");
        let accepted = || exchange.stats().connects_accepted >= FLEET as u64;
        until("not all were let in", &accepted).await;
        // All at once, and CONNACK unread: the network is gone.
        fleet.clear();
        all(Turn::Went).await.expect("all went");

        exchange.post_to_all(|| Mail::Stop);
        work.await.expect("it ends when all are gone");
    });
    let most = (outside.most(Turn::Came), outside.most(Turn::Went));
    assert!(most.0 <= 2 && most.1 <= 2, "came and went: {most:?}");
}
