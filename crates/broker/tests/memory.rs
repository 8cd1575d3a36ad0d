//! The memory bound is one: whatever clients fill, its account stays within its limit, and the process
//! within the sum. One test, in a process of its own, because it measures the process.

mod common;

use std::fs;
use std::sync::Arc;

use broker::{
    Broker, BrokerConfig, BrokerHandle, Carrier, ClientCertificate, Hooks, Limits, Store, Tls,
    TlsSettings, Transport,
};
use common::certificates::{Asks, Authority, TLS_VERSIONS, dial_tls};
use common::*;
use mqtt::{Connect, QoS, ReasonCode, Version};

const V5: Version = Version::V5;

fn limits() -> Limits {
    Limits {
        max_packet_size: 64 * 1024,
        max_connections: 100,
        max_sockets: 200,
        max_pending_connections: 100,
        max_handshakes: 8,
        max_web_connections: 0,
        max_sessions: 100,
        max_queued: 1_000_000,
        max_queued_bytes: 8 << 20,
        max_subscriptions: 100_000,
        max_filter_levels: 10_000,
        max_queue_memory: 16 << 20,
        max_stored_bytes: 4 << 20,
        max_session_memory: 4 << 20,
        max_read_memory: 1 << 20,
        max_retained: 1_000,
        max_retained_bytes: 1 << 20,
        max_handover: 1_000,
        ..Limits::default()
    }
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("a number")
        * 1024
}

/// Clients with wills, until one is refused.
fn fill_with_wills(setup: &Setup) -> Vec<Client> {
    let payload = "x".repeat(60_000);
    let mut clients = Vec::new();
    loop {
        assert!(clients.len() < 90, "nobody was refused");
        let name = format!("will-{}", clients.len());
        let (client, ack) = setup.join(with_will(Connect::new(V5, &*name), "w", &payload));
        match ack.reason {
            ReasonCode::Success => clients.push(client),
            refused => {
                assert_eq!(refused, ReasonCode::QuotaExceeded);
                return clients;
            }
        }
    }
}

/// Subscriptions, short ones and long ones, with levels and without, until one is refused.
fn fill_with_subscriptions(setup: &Setup, shape: impl Fn(usize) -> String) -> Client {
    let mut client = Client::new(setup, V5, "subscriber");
    for n in 0.. {
        assert!(n < 1_000, "nothing was refused");
        let wishes = (0..50).map(|k| wish(&shape(n * 50 + k), QoS::AtMostOnce));
        let reasons = client.ask(wishes.collect(), None);
        if reasons.contains(&ReasonCode::QuotaExceeded) {
            break;
        }
    }
    client
}

/// The most that the process had, and what it is not to have more than.
struct Watch {
    handle: BrokerHandle,
    before: u64,
    most: u64,
}

impl Watch {
    fn look(&mut self, what: &str) {
        let stats = self.handle.stats();
        let limits = limits();
        let rows = [
            (
                "session",
                stats.session_memory_bytes,
                limits.max_session_memory,
            ),
            ("stored", stats.stored_memory_bytes, limits.max_stored_bytes),
            ("read", stats.read_memory_bytes, limits.max_read_memory),
            (
                "queue",
                stats.queue_memory_bytes,
                limits.max_queue_memory / 4 * 7,
            ),
        ];
        for (account, used, limit) in rows {
            // Others may add before one sees that it is full.
            let slack = 4 * u64::from(limits.max_packet_size);
            assert!(used <= limit as u64 + slack, "{what}: {account} has {used}");
        }
        self.most = self.most.max(resident().saturating_sub(self.before));
    }
}

#[test]
fn whatever_clients_fill_the_process_stays_within_its_bound() {
    let authority = Authority::new();
    let tls = Tls {
        client_certificate: ClientCertificate::Optional,
        ..Tls::new(TlsSettings::new(authority.server(Asks::Accepts)))
    };
    let mut config = BrokerConfig::new(vec![
        listener(Transport::Tcp),
        listener(Transport::Tls(tls)),
    ]);
    config.limits = limits();
    config.workers = 2.try_into().ok();
    config.store = Store::Memory;
    let outside: Arc<Outside> = Arc::default();
    let hooks: Arc<dyn Hooks> = Arc::clone(&outside) as _;
    let handle = Broker::start(config, hooks).expect("starts");
    let [addr, tls_addr] = [0, 1].map(|n| handle.listeners()[n].addr);
    let setup = Setup {
        handle: handle.clone(),
        outside,
        addr,
    };
    let bound: u64 = limits()
        .memory_bound([(Carrier::Tcp, None), (Carrier::Tls, None)])
        .iter()
        .map(|(_, bytes)| bytes)
        .sum();
    Client::new(&setup, V5, "first").ping();
    let mut watch = Watch {
        handle: handle.clone(),
        before: resident(),
        most: 0,
    };
    let freed = |what: &str| {
        until(what, || handle.stats().session_memory_bytes < 100_000);
    };

    // Wills. Who comes without one still gets in.
    let wills = fill_with_wills(&setup);
    assert!(wills.len() > 60, "{} fit", wills.len());
    watch.look("wills");
    drop(wills);
    freed("the wills are gone");

    // Subscriptions: one client cannot take what others need for theirs.
    type Shape = fn(usize) -> String;
    let shapes: [(&str, Shape); 3] = [
        ("short filters", |n| format!("a/{n}")),
        ("long filters", |n| format!("{n}/{}", "x".repeat(1_000))),
        ("filters of many levels", |n| {
            format!("{n}/{}#", "y/".repeat(100))
        }),
    ];
    for (what, shape) in shapes {
        let before = resident();
        let subscriber = fill_with_subscriptions(&setup, shape);
        watch.look(what);
        let counted = handle.stats().session_memory_bytes;
        let grown = resident().saturating_sub(before);
        eprintln!("{what}: {grown} resident, {counted} counted");
        assert!(counted > 5 << 19, "{what}: {counted}");
        Client::new(&setup, V5, "car").subscribe("cmd/car", QoS::AtLeastOnce);
        drop(subscriber);
        freed("the subscriptions are gone");
    }

    // Small messages for a session that is away: what they cost beside their bytes counts.
    let mut away = Connect::new(V5, "away");
    away.properties.session_expiry_interval = Some(3600);
    let mut client = setup.enter(away);
    client.subscribe("small/#", QoS::AtLeastOnce);
    drop(client);
    let mut publisher = Client::new(&setup, V5, "publisher");
    let mut stored = 0u64;
    let refused = loop {
        assert!(stored < 100_000, "it is never full");
        match publisher.publish(qos1(1, "small/a", "x")) {
            ReasonCode::Success => stored += 1,
            refused => break refused,
        }
    };
    assert_eq!(refused, ReasonCode::QuotaExceeded);
    watch.look("small messages");

    // Readers that do not read, over TCP and TLS.
    let mut stuck: Vec<Client> = Vec::new();
    let mut stuck_tls = Vec::new();
    for n in 0..20 {
        let mut client = Client::new(&setup, V5, &format!("stuck-{n}"));
        client.subscribe("flood", QoS::AtMostOnce);
        stuck.push(client);
        let config = authority.client(&TLS_VERSIONS, None, &["mqtt"]);
        let stream = dial_tls(tls_addr, &config);
        let mut client = Client::open(stream, Connect::new(V5, &*format!("stuck-tls-{n}")));
        assert_eq!(client.connack().reason, ReasonCode::Success);
        client.subscribe("flood", QoS::AtMostOnce);
        stuck_tls.push(client);
    }
    let flood = publisher.encode(qos0("flood", vec![7; 16 * 1024]));
    let mut rounds = 0;
    // What the kernel buffers is its own affair: go on until the broker is full.
    while handle.stats().dropped_memory < 1_000 {
        rounds += 1;
        assert!(rounds < 100_000, "the broker is never full");
        publisher.raw(&flood);
        if rounds % 16 == 0 {
            publisher.ping();
            watch.look("readers that do not read");
        }
    }
    watch.look("readers that do not read");

    eprintln!(
        "{} KiB at most, {} KiB are the bound",
        watch.most / 1024,
        bound / 1024
    );
    assert!(watch.most < bound, "{} of {bound}", watch.most);
    drop((stuck, stuck_tls));
    until("the queues are gone", || {
        handle.stats().queue_memory_bytes == 0
    });
}
