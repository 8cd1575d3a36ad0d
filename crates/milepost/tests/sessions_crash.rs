//! `kill -9` at random moments: what clients of stored sessions were told is kept, is kept.
//!
//! The real binary serves publishers and subscribers with stored sessions, over TLS with certificates
//! and over plain TCP: some subscribers are there all the time, some take their time, some come and go,
//! some are away until the end, some share a subscription. The server is killed a dozen times, its
//! journal gets torn tails as a power cut leaves them, and it starts again on the same folder. At the
//! end every message is at every subscriber, in the order of its publisher, and those of QoS 2 once.
//!
//! Clients reach the server over a [`Road`], which stays where it is when the server comes back on
//! another port, and which can be closed to take one client off the net.

mod harness;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use fleet_sim::{
    Credentials, Dice,
    client::{
        Client, ClientCounters, ClientOptions, Delivery, Incoming, Outgoing, Reconnect,
        SessionStart, Transport,
    },
    provision::{Factory, Order},
};
use harness::{PATIENCE, Serving};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

const KILLS: u64 = 12;
/// Topics with a retained message.
const STATES: u64 = 8;
/// Publisher and number of a message.
type Name = (String, u64);

/// Where the server's listeners are now; nowhere between two lives.
#[derive(Clone)]
struct Doors {
    tls: watch::Sender<Option<SocketAddr>>,
    plain: watch::Sender<Option<SocketAddr>>,
}

impl Doors {
    fn open(&self, serving: &Serving) {
        let address = |scheme: &str| {
            let url = serving
                .mqtt_urls
                .iter()
                .find_map(|url| url.strip_prefix(scheme));
            url.expect("a listener").parse().expect("an address")
        };
        self.tls.send_replace(Some(address("mqtts://")));
        self.plain.send_replace(Some(address("mqtt://")));
    }

    fn close(&self) {
        self.tls.send_replace(None);
        self.plain.send_replace(None);
    }
}

/// A way to the server with an address that stays.
struct Road {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Road {
    async fn to(door: &watch::Sender<Option<SocketAddr>>) -> Road {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (open, is_open) = watch::channel(true);
        let door = door.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, door.clone(), is_open.clone()));
            }
        });
        Road { address, open }
    }
}

/// Carries bytes until one side hangs up, the road is closed or the server is gone.
async fn carry(
    mut client: TcpStream,
    mut door: watch::Receiver<Option<SocketAddr>>,
    mut open: watch::Receiver<bool>,
) {
    let server = *door.borrow_and_update();
    let (Some(server), true) = (server, *open.borrow_and_update()) else {
        return;
    };
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    // What is cut off here is what the net loses.
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = door.changed() => {}
        _ = open.changed() => {}
    }
}

/// How a client comes in.
#[derive(Clone, Copy)]
enum Entrance<'a> {
    Plain,
    /// MQTT 3.1.1, without clean session.
    Plain311,
    Certificate(&'a Credentials),
}

struct World {
    doors: Doors,
}

impl World {
    async fn connect(&self, name: &str, entrance: Entrance<'_>) -> (Road, Client, Incoming) {
        let (door, transport) = match entrance {
            Entrance::Plain | Entrance::Plain311 => (&self.doors.plain, Transport::Tcp),
            Entrance::Certificate(credentials) => {
                let config = credentials.client_config().expect("usable credentials");
                (&self.doors.tls, Transport::Tls(config))
            }
        };
        let road = Road::to(door).await;
        let options = ClientOptions {
            version: match entrance {
                Entrance::Plain311 => mqtt::Version::V311,
                _ => mqtt::Version::V5,
            },
            session: SessionStart::Resume { expiry: 3_600 },
            reconnect: Reconnect::Backoff {
                first: Duration::from_millis(5),
                longest: Duration::from_millis(100),
            },
            window: 32,
            queue: 16,
            ..ClientOptions::new(road.address.into(), transport, name)
        };
        let (client, incoming) = Client::connect(options).await.expect("connected");
        (road, client, incoming)
    }
}

/// What one publisher sends, and how.
struct Plan {
    name: &'static str,
    topic: fn(&str, u64) -> String,
    delivery: Delivery,
    retained: bool,
}

/// A publisher at work.
struct Publishing {
    plan: Plan,
    counters: Arc<ClientCounters>,
    acknowledged: Arc<AtomicU64>,
    /// Ends with the number of messages, all of them acknowledged.
    task: JoinHandle<u64>,
}

impl Publishing {
    async fn start(
        world: &World,
        plan: Plan,
        entrance: Entrance<'_>,
        running: &Arc<AtomicBool>,
    ) -> Publishing {
        let (road, client, _incoming) = world.connect(plan.name, entrance).await;
        let counters = Arc::clone(client.counters());
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (name, topic) = (plan.name, plan.topic);
        let (delivery, retained) = (plan.delivery, plan.retained);
        let (running, done) = (Arc::clone(running), Arc::clone(&acknowledged));
        let task = tokio::spawn(async move {
            let _road = road;
            let mut open = VecDeque::new();
            let mut number = 0;
            loop {
                let more = running.load(Ordering::Acquire);
                if more {
                    let message = Outgoing {
                        topic: topic(name, number).into(),
                        payload: Bytes::from(format!("{name} {number}")),
                        delivery,
                        retained,
                        ..Outgoing::default()
                    };
                    open.push_back(client.publish(message).await.expect("the client lives on"));
                    number += 1;
                    // A load that the slowest of the subscribers can follow.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                if open.len() >= 16 || !more {
                    let Some(receipt) = open.pop_front() else {
                        break;
                    };
                    receipt.await.expect("nothing is refused");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
            client.finish(PATIENCE).await.expect("all is acknowledged");
            number
        });
        Publishing {
            plan,
            counters,
            acknowledged,
            task,
        }
    }
}

/// How a subscriber behaves until the end, when all of them are there and quick.
#[derive(Clone, Copy, PartialEq)]
enum Habit {
    There,
    Slow,
    ComesAndGoes,
    Away,
}

/// A subscriber and what it has heard so far, in order.
struct Subscriber {
    name: &'static str,
    filter: &'static str,
    delivery: Delivery,
    habit: Habit,
    road: Road,
    client: Client,
    heard: Arc<Mutex<Vec<Name>>>,
    _task: JoinHandle<()>,
}

impl Subscriber {
    async fn start(
        world: &World,
        name: &'static str,
        entrance: Entrance<'_>,
        filter: &'static str,
        delivery: Delivery,
        habit: Habit,
        hurry: &Arc<AtomicBool>,
    ) -> Subscriber {
        let (road, client, mut incoming) = world.connect(name, entrance).await;
        let granted = client.subscribe(&[(filter, delivery)]).await;
        let granted = granted.expect("answered");
        assert!(
            granted.iter().all(|reason| !reason.is_error()),
            "{name}: {granted:?}"
        );
        let heard: Arc<Mutex<Vec<Name>>> = Arc::default();
        let (list, hurry) = (Arc::clone(&heard), Arc::clone(hurry));
        let task = tokio::spawn(async move {
            while let Some(publish) = incoming.recv().await {
                let text = std::str::from_utf8(&publish.payload).expect("UTF-8");
                let (publisher, number) = text.split_once(' ').expect("a name and a number");
                let name = (publisher.to_owned(), number.parse().expect("a number"));
                list.lock().expect("no test thread panicked").push(name);
                if habit == Habit::Slow && !hurry.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
        });
        if habit == Habit::Away {
            road.open.send_replace(false);
        }
        Subscriber {
            name,
            filter,
            delivery,
            habit,
            road,
            client,
            heard,
            _task: task,
        }
    }

    fn heard(&self) -> Vec<Name> {
        self.heard.lock().expect("no test thread panicked").clone()
    }

    fn is_member(&self) -> bool {
        self.filter.starts_with("$share/")
    }

    /// First receptions are in the order of each publisher, none left out. Members of a shared
    /// subscription are promised no order `[MQTT-4.6.0-6]`.
    fn check_order(&self) {
        let mut known: HashSet<Name> = HashSet::new();
        let mut next: HashMap<String, u64> = HashMap::new();
        for (publisher, number) in self.heard() {
            if known.insert((publisher.clone(), number)) {
                let next = next.entry(publisher.clone()).or_default();
                let who = self.name;
                assert_eq!(number, *next, "{who}: the next of {publisher} is another");
                *next += 1;
            }
        }
    }

    fn check_session(&self) {
        let (connects, resumed) = (
            self.client.counters().connects(),
            self.client.counters().resumed(),
        );
        assert!(connects > 1, "{} was never away", self.name);
        assert_eq!(resumed, connects - 1, "{}: its session was lost", self.name);
    }
}

/// How many messages each publisher sent, all of them acknowledged, and at which quality.
type Sent = BTreeMap<&'static str, (u64, Delivery)>;

/// One or, for a shared subscription, several clients that have to hear of every message.
struct Audience<'a>(Vec<&'a Subscriber>);

impl<'a> Audience<'a> {
    fn all(subscribers: &'a [Subscriber]) -> Vec<Self> {
        let mut audiences: BTreeMap<&str, Vec<&Subscriber>> = BTreeMap::new();
        for subscriber in subscribers {
            let key = match subscriber.is_member() {
                true => subscriber.filter,
                false => subscriber.name,
            };
            audiences.entry(key).or_default().push(subscriber);
        }
        audiences.into_values().map(Audience).collect()
    }

    fn counts(&self) -> HashMap<Name, u64> {
        let mut counts = HashMap::new();
        for name in self.0.iter().flat_map(|subscriber| subscriber.heard()) {
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    /// The acknowledged messages that nobody here has heard of.
    fn missing(&self, sent: &Sent) -> Vec<Name> {
        let heard = self.counts();
        let publishers: &[&str] = match self.0[0].filter.contains("car-0") {
            true => &["car-one", "car-two"],
            false => &["one-a", "one-b", "two-a", "two-b"],
        };
        publishers
            .iter()
            .flat_map(|publisher| {
                let (count, _) = sent[publisher];
                (0..count).map(move |number| ((*publisher).to_owned(), number))
            })
            .filter(|name| !heard.contains_key(name))
            .collect()
    }

    async fn wait_for_all(&self, sent: &Sent) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let missing = self.missing(sent);
            if missing.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{}: {} messages that were acknowledged are missing, {:?} …",
                self.0[0].name,
                missing.len(),
                &missing[..missing.len().min(5)]
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What was published and subscribed to at QoS 2 came once.
    fn check_once(&self, sent: &Sent) {
        let first = self.0[0];
        for (name, count) in self.counts() {
            let (_, published) = sent[name.0.as_str()];
            let once = published == Delivery::ExactlyOnce && first.delivery == published;
            assert!(
                count == 1 || !once,
                "{}: {name:?} is to come exactly once and came {count} times",
                first.name
            );
        }
    }
}

async fn start(data: &Path, config: &str) -> Serving {
    let (data, config) = (data.to_owned(), config.to_owned());
    tokio::task::spawn_blocking(move || Serving::start(&data, &config))
        .await
        .expect("started")
}

async fn kill(serving: Serving, doors: &Doors) {
    tokio::task::spawn_blocking(move || serving.kill9())
        .await
        .expect("killed");
    doors.close();
}

/// The server as the test needs it: both listeners, and room for what waits for those who are away.
fn config() -> String {
    harness::config_on_free_ports(
        "[[listener]]\nprotocol = \"mqtt\"\nbind = \"127.0.0.1:0\"\n\
         [access]\nanonymous = \"allow-all\"\n\
         [mqtt]\nmax_queued = 1000000\nmax_queued_bytes = \"512MiB\"\n",
    )
}

fn own(name: &str, _: u64) -> String {
    format!("crash/{name}")
}

fn state(_: &str, number: u64) -> String {
    format!("state/{}", number % STATES)
}

fn of_the_car(name: &str, _: u64) -> String {
    format!("dt/crash/test/car-0/{name}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sessions_were_told_is_kept_is_there_after_every_kill() {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("the first");
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    // Another seed each day of the year would do; a fixed one can be replayed.
    let seed = std::env::var("CRASH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(7);
    let mut dice = Dice::seeded(seed);
    let config = config();

    let mut serving = start(&data, &config).await;
    let world = World {
        doors: Doors {
            tls: watch::channel(None).0,
            plain: watch::channel(None).0,
        },
    };
    world.doors.open(&serving);
    let orders = [Order::vehicle("car-0")];
    let factory = Factory::new(&serving.api).expect("an HTTP client");
    let credentials = factory.provision(&orders, None, |_, _| {}).await;
    let credentials = credentials.expect("provisioned").remove(0);
    let car = Entrance::Certificate(&credentials);

    let (once, twice) = (Delivery::AtLeastOnce, Delivery::ExactlyOnce);
    let hurry = Arc::new(AtomicBool::new(false));
    let mut subscribers = Vec::new();
    for (name, entrance, filter, delivery, habit) in [
        ("there-2", Entrance::Plain, "crash/#", twice, Habit::There),
        ("slow-1", Entrance::Plain311, "crash/#", once, Habit::Slow),
        ("slow-2", Entrance::Plain, "crash/#", twice, Habit::Slow),
        (
            "goes-1",
            Entrance::Plain,
            "crash/#",
            once,
            Habit::ComesAndGoes,
        ),
        (
            "goes-2",
            Entrance::Plain311,
            "crash/#",
            twice,
            Habit::ComesAndGoes,
        ),
        ("away-1", Entrance::Plain, "crash/#", once, Habit::Away),
        ("away-2", Entrance::Plain, "crash/#", twice, Habit::Away),
        (
            "car-there",
            car,
            "dt/crash/test/car-0/#",
            twice,
            Habit::There,
        ),
        ("car-away", car, "dt/+/+/car-0/#", twice, Habit::Away),
        (
            "member-there",
            Entrance::Plain,
            "$share/team/crash/#",
            twice,
            Habit::There,
        ),
        (
            "member-goes",
            Entrance::Plain,
            "$share/team/crash/#",
            twice,
            Habit::ComesAndGoes,
        ),
        (
            "lonely-goes",
            Entrance::Plain,
            "$share/lonely/crash/#",
            twice,
            Habit::ComesAndGoes,
        ),
    ] {
        let started = Subscriber::start(&world, name, entrance, filter, delivery, habit, &hurry);
        subscribers.push(started.await);
    }
    let running = Arc::new(AtomicBool::new(true));
    let mut publishers = Vec::new();
    for (name, entrance, topic, delivery, retained) in [
        (
            "one-a",
            Entrance::Plain,
            own as fn(&str, u64) -> String,
            once,
            false,
        ),
        ("one-b", Entrance::Plain311, own, once, false),
        ("two-a", Entrance::Plain, own, twice, false),
        ("two-b", Entrance::Plain311, own, twice, false),
        ("car-one", car, of_the_car, once, false),
        ("car-two", car, of_the_car, twice, false),
        ("states", Entrance::Plain, state, twice, true),
    ] {
        let plan = Plan {
            name,
            topic,
            delivery,
            retained,
        };
        publishers.push(Publishing::start(&world, plan, entrance, &running).await);
    }

    let acknowledged = |publishers: &[Publishing]| -> u64 {
        let each = publishers
            .iter()
            .map(|p| p.acknowledged.load(Ordering::Relaxed));
        each.sum()
    };
    let (mut torn, mut restored) = (0, 0);
    for life in 0..KILLS {
        let before = acknowledged(&publishers);
        let deadline = Instant::now() + PATIENCE;
        while acknowledged(&publishers) < before + 100 {
            assert!(
                Instant::now() < deadline,
                "life {life}: nothing is acknowledged"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Random moments: some leave, some come, then the power goes.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_micros(dice.below(150_000) as u64)).await;
            for subscriber in &subscribers {
                if subscriber.habit == Habit::ComesAndGoes {
                    subscriber.road.open.send_replace(dice.below(2) == 0);
                }
            }
        }
        kill(serving, &world.doors).await;
        if life % 2 == 0 {
            for segment in harness::newest_files(&data.join("sessions"), "segment") {
                harness::tear(&segment, &mut dice);
            }
        }
        serving = start(&data, &config).await;
        let said = |word: &str| serving.start_up.iter().filter(|l| l.contains(word)).count();
        torn += said("bytes of an unfinished write of sessions");
        restored += said("restored in ");
        world.doors.open(&serving);
    }

    // The publishers come to an end, everything acknowledged; once more the power goes.
    running.store(false, Ordering::Release);
    let mut sent = Sent::new();
    for publisher in publishers {
        let Publishing {
            plan,
            counters,
            task,
            ..
        } = publisher;
        let number = tokio::time::timeout(PATIENCE, task).await;
        let number = number
            .unwrap_or_else(|_| panic!("{}: not everything was acknowledged", plan.name))
            .expect("a publisher ended");
        assert!(
            number > 100,
            "{} sent too little to show anything: {number}",
            plan.name
        );
        let (connects, resumed) = (counters.connects(), counters.resumed());
        assert_eq!(resumed, connects - 1, "{}: its session was lost", plan.name);
        sent.insert(plan.name, (number, plan.delivery));
    }
    kill(serving, &world.doors).await;
    let serving = start(&data, &config).await;
    world.doors.open(&serving);
    assert!(torn > 0, "a torn tail was repaired and said so");
    assert_eq!(
        restored, KILLS as usize,
        "every start says what it restored"
    );

    // Everybody is there now, and quick.
    hurry.store(true, Ordering::Relaxed);
    for subscriber in &subscribers {
        subscriber.road.open.send_replace(true);
    }
    for audience in Audience::all(&subscribers) {
        audience.wait_for_all(&sent).await;
        audience.check_once(&sent);
    }
    for subscriber in &subscribers {
        subscriber.check_session();
        if !subscriber.is_member() {
            subscriber.check_order();
        }
    }

    // The latest of each retained state is there for whoever comes now.
    let states = Subscriber::start(
        &world,
        "late",
        Entrance::Plain,
        "state/+",
        twice,
        Habit::There,
        &hurry,
    );
    let states = states.await;
    let (count, _) = sent["states"];
    let mut expected: Vec<Name> = (count - STATES..count)
        .map(|number| ("states".to_owned(), number))
        .collect();
    expected.sort();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut heard = states.heard();
        heard.sort();
        if heard == expected {
            break;
        }
        assert!(
            heard.len() < expected.len() && Instant::now() < deadline,
            "retained are {heard:?}, last published were {expected:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(serving.terminate().code(), Some(0));
}
