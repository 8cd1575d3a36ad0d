//! What an operator can see of clients, and do to them.

mod common;

use std::sync::Arc;
use std::time::Duration;

use broker::{
    ClientPage, ClientQuery, Limits, MAX_CLIENTS_PER_PAGE, Purged, Store, StoreConfig,
    SubscriptionDetail,
};
use common::witness::{Scene, connect_as, scene, scene_with};
use common::{Client, delayed, qos1, stored, until, wait, wish, with_will};
use mqtt::{Connect, QoS, ReasonCode, Version};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const V3: Version = Version::V311;
const V5: Version = Version::V5;

fn names(page: &ClientPage) -> Vec<&str> {
    page.items.iter().map(|item| &*item.client_id).collect()
}

fn list(scene: &Scene, query: ClientQuery) -> ClientPage {
    wait(scene.handle.clients(query))
}

fn text(text: &str) -> Option<Arc<str>> {
    Some(text.into())
}

/// Ten cars in two groups, the even ones stored; those below 4 are away.
fn street(scene: &Scene) -> Vec<Client> {
    let mut present = Vec::new();
    for n in 0..10 {
        let name = format!("car-{n}");
        let group = if n < 5 { "north" } else { "south" };
        let mut connect = connect_as(V5, &name, &format!("tcu-{n}@{group}"));
        connect.clean_start = false;
        if n % 2 == 0 || n < 4 {
            connect.properties.session_expiry_interval = Some(3600);
        }
        let client = scene.enter(connect);
        match n < 4 {
            true => client.leave(),
            false => present.push(client),
        }
    }
    until("four are gone", || scene.handle.stats().connections == 6);
    present
}

#[test]
fn pages_go_through_all_workers_in_order() {
    let scene = scene();
    let _present = street(&scene);
    let all: Vec<String> = (0..10).map(|n| format!("car-{n}")).collect();
    let whole = list(&scene, ClientQuery::default());
    assert_eq!(names(&whole), all);
    assert_eq!(whole.next, None);
    for limit in [1, 3, 5, 10] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = list(
                &scene,
                ClientQuery {
                    after: after.clone(),
                    limit,
                    ..ClientQuery::default()
                },
            );
            assert!(page.items.len() <= limit);
            found.extend(names(&page).iter().map(|name| (*name).to_owned()));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, all, "by {limit}");
    }
}

#[test]
fn a_page_holds_who_was_asked_for() {
    let scene = scene();
    let _present = street(&scene);
    let query = ClientQuery::default;
    let rows = [
        (
            ClientQuery {
                connected: Some(false),
                ..query()
            },
            "car-0 car-1 car-2 car-3",
        ),
        (
            ClientQuery {
                connected: Some(true),
                group: text("north"),
                ..query()
            },
            "car-4",
        ),
        (
            ClientQuery {
                group: text("south"),
                ..query()
            },
            "car-5 car-6 car-7 car-8 car-9",
        ),
        (
            ClientQuery {
                principal: text("tcu-3@north"),
                ..query()
            },
            "car-3",
        ),
        (
            ClientQuery {
                prefix: text("car-9"),
                ..query()
            },
            "car-9",
        ),
        (
            ClientQuery {
                after: text("car-7"),
                ..query()
            },
            "car-8 car-9",
        ),
        (
            ClientQuery {
                principal: text("nobody"),
                ..query()
            },
            "",
        ),
    ];
    for (query, expected) in rows {
        let page = list(&scene, query.clone());
        assert_eq!(names(&page).join(" "), expected, "{query:?}");
        assert_eq!(page.next, None, "{query:?}");
    }
}

/// Lets this process have so many files open; says whether the machine allows it.
fn may_open(files: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let more = Rlimit {
        current: Some(files),
        ..limit
    };
    limit.current.is_none_or(|now| now >= files) || setrlimit(Resource::Nofile, more).is_ok()
}

#[test]
fn a_page_has_no_more_than_a_thousand() {
    // Both ends of each connection, and what the other tests have open.
    if !may_open(4096) {
        eprintln!("skipped: this process may not have 4096 files open (`ulimit -n -H`)");
        return;
    }
    let scene = scene();
    let clients: Vec<Client> = (0..MAX_CLIENTS_PER_PAGE + 5)
        .map(|n| scene.enter(Connect::new(V3, format!("car-{n:05}"))))
        .collect();
    let query = ClientQuery {
        limit: usize::MAX,
        ..ClientQuery::default()
    };
    let page = list(&scene, query.clone());
    assert_eq!(page.items.len(), MAX_CLIENTS_PER_PAGE);
    assert_eq!(page.next, text("car-00999"));
    let rest = list(
        &scene,
        ClientQuery {
            after: page.next,
            ..query
        },
    );
    assert_eq!((rest.items.len(), rest.next), (5, None));
    drop(clients);
}

#[test]
fn one_client_is_shown_with_everything_about_it() {
    let scene = scene();
    let mut connect = connect_as(V5, "car", "tcu@truck");
    connect.clean_start = false;
    connect.keep_alive = 30;
    connect.properties.session_expiry_interval = Some(3600);
    connect.properties.receive_maximum = 2.try_into().ok();
    let connect = delayed(with_will(connect, "gone", "goodbye"), 5);
    let mut car = scene.enter(connect.clone());
    let mut own = wish("a/+", QoS::AtLeastOnce);
    own.no_local = true;
    car.ask(vec![own], Some(7));
    car.ask(vec![wish("$share/g/b", QoS::ExactlyOnce)], None);
    let mut app = scene.enter(Connect::new(V3, "app"));
    for n in 1..=5 {
        app.publish(qos1(n, "a/b", "hello"));
    }
    car.take();
    car.ping();

    let detail = wait(scene.handle.client("car")).expect("it is here");
    let summary = &detail.summary;
    assert_eq!(&*summary.client_id, "car");
    assert_eq!(&*summary.principal, "tcu@truck");
    assert_eq!(summary.group, text("truck"));
    assert_eq!(summary.disconnected_us, None);
    let line = summary.connection.as_ref().expect("connected");
    assert!(line.peer.ip().is_loopback());
    assert_eq!((&*line.listener, line.transport), ("test", "mqtt"));
    assert_eq!(line.version, V5);
    assert!(line.since_us > 1_600_000_000_000_000);
    assert_eq!(line.number, scene.witness.of("car")[0].connection);
    let connection = detail.connection.as_ref().expect("connected");
    assert_eq!(connection.keep_alive, 30);
    assert!(!connection.clean_start);
    assert_eq!(connection.receive_maximum, 2);
    // One was acknowledged; two of the others fit into the window.
    assert_eq!((detail.in_flight, summary.queued), (2, 2));
    assert!(summary.queued_bytes > 0);
    assert_eq!(connection.traffic.messages_out, 3);
    assert_eq!(connection.traffic.messages_in, 0);
    assert!(connection.traffic.bytes_in > 0 && connection.traffic.bytes_out > 0);
    let subscription = |filter: &str, qos, no_local, id| SubscriptionDetail {
        filter: filter.into(),
        qos,
        no_local,
        retain_as_published: false,
        id,
    };
    let expected = [
        subscription("$share/g/b", QoS::ExactlyOnce, false, None),
        subscription("a/+", QoS::AtLeastOnce, true, Some(7)),
    ];
    assert_eq!(detail.subscriptions, expected);
    assert_eq!(summary.subscriptions, 2);
    let will = detail.will.as_ref().expect("it has one");
    assert_eq!(
        (&*will.topic, will.delay, will.payload_bytes),
        ("gone", 5, 7)
    );
    assert!(detail.session.stored);
    assert_eq!(detail.session.expiry, Some(3600));
    assert_eq!(detail.session.expires_us, None);

    drop(car);
    until("it is away", || {
        let detail = wait(scene.handle.client("car")).expect("its session waits");
        detail.connection.is_none()
    });
    let detail = wait(scene.handle.client("car")).expect("its session waits");
    let since = detail.summary.disconnected_us.expect("it is away");
    assert_eq!(detail.session.expires_us, Some(since + 3_600_000_000));
    assert_eq!(detail.summary.connection, None);

    let traffic = wait(scene.handle.client("app")).and_then(|app| app.connection);
    assert_eq!(traffic.expect("connected").traffic.messages_in, 5);
    assert_eq!(wait(scene.handle.client("nobody")), None);
}

#[test]
fn who_is_disconnected_hears_the_reason_and_may_come_back() {
    let scene = scene();
    let mut car = scene.enter(stored(V5, "car"));
    car.subscribe("a", QoS::AtLeastOnce);
    let ask = scene
        .handle
        .disconnect_client("car", ReasonCode::ServerMoved);
    assert!(wait(ask));
    car.is_closed_for(ReasonCode::ServerMoved);
    let again = scene.handle.disconnect_client("car", ReasonCode::Success);
    assert!(!wait(again), "it is not connected");
    let nobody = scene
        .handle
        .disconnect_client("nobody", ReasonCode::Success);
    assert!(!wait(nobody));
    let mut car = Client::open(common::dial(scene.addr), stored(V5, "car"));
    assert!(car.connack().session_present, "its session was left alone");
}

#[test]
fn what_is_purged_does_not_come_back_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || {
        let store = Store::Directory(StoreConfig::new(dir.path()));
        scene_with(Limits::default(), store)
    };
    let scene = open();
    let mut app = scene.enter(Connect::new(V5, "app"));
    for name in ["away", "here", "kept"] {
        let mut car = scene.enter(stored(V5, name));
        car.subscribe("a", QoS::AtLeastOnce);
        match name {
            "here" => std::mem::forget(car),
            _ => car.leave(),
        }
    }
    app.publish(qos1(1, "a", "x"));
    let purged = Some(Purged {
        queued: 1,
        subscriptions: 1,
    });
    assert_eq!(wait(scene.handle.purge_client("away")), Ok(purged));
    assert_eq!(wait(scene.handle.purge_client("away")), Ok(None));
    assert_eq!(wait(scene.handle.purge_client("here")), Ok(purged));
    assert_eq!(wait(scene.handle.purge_client("nobody")), Ok(None));
    let page = list(&scene, ClientQuery::default());
    assert_eq!(names(&page), ["app", "kept"]);
    let stats = scene.handle.stats();
    assert_eq!((stats.sessions_stored, stats.subscriptions), (1, 1));

    wait(scene.handle.shutdown(Duration::from_secs(30)));
    let scene = open();
    let page = list(&scene, ClientQuery::default());
    assert_eq!(names(&page), ["kept"]);
    assert_eq!(page.items[0].queued, 1);
    let group = ClientQuery {
        group: text("nowhere"),
        ..ClientQuery::default()
    };
    assert_eq!(names(&list(&scene, group)), [""; 0]);
}

#[test]
fn a_client_of_before_the_restart_is_found_by_its_group() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..2 {
        let store = Store::Directory(StoreConfig::new(dir.path()));
        let scene = scene_with(Limits::default(), store);
        if round == 0 {
            let mut connect = stored(V3, "car");
            connect.username = Some("tcu@truck".into());
            scene.enter(connect).leave();
        }
        let query = ClientQuery {
            group: text("truck"),
            ..ClientQuery::default()
        };
        let page = list(&scene, query);
        assert_eq!(names(&page), ["car"]);
        assert_eq!(page.items[0].group, text("truck"));
        wait(scene.handle.shutdown(Duration::from_secs(30)));
    }
}

#[test]
fn a_broker_that_has_stopped_answers_at_once() {
    let scene = scene();
    let _present = street(&scene);
    wait(scene.handle.shutdown(Duration::ZERO));
    assert_eq!(list(&scene, ClientQuery::default()), ClientPage::default());
    assert_eq!(wait(scene.handle.client("car-1")), None);
    assert_eq!(wait(scene.handle.purge_client("car-1")), Ok(None));
    let ask = scene.handle.disconnect_client("car-9", ReasonCode::Success);
    assert!(!wait(ask));
}
