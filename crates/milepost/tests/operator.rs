//! What an operator sees of clients and can do about them, through the command line and the real binary.

mod harness;
mod wire;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::mpsc,
    time::Instant,
};

use harness::{PATIENCE, Serving, milepost};
use mqtt::{Connect, Packet, ReasonCode, Version};
use serde_json::Value;
use wire::{Car, TlsClient, Wire, address, metric, tcp};

/// Vehicles by certificate, and services that may do everything: who they are comes with sign-in.
/// No server here is so late that it turns clients away (`overload`), however busy the machine is.
const CONFIG: &str = "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\n\
     [[listener]]\nprotocol = \"mqtt\"\nbind = \"127.0.0.1:0\"\n[access]\nanonymous = \"allow-all\"\n\
     [http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n[sys]\ninterval = \"1s\"\n\
     [overload]\nmax_loop_delay = \"1m\"\n";

fn start(folder: &tempfile::TempDir) -> Serving {
    Serving::start(&folder.path().join("data"), CONFIG)
}

fn json(serving: &Serving, arguments: &[&str]) -> Value {
    let text = serving.client_ok(&[arguments, &["--json"]].concat());
    serde_json::from_str(&text).expect("JSON")
}

fn ids(clients: &Value) -> Vec<&str> {
    let clients = clients.as_array().expect("a list").iter();
    clients
        .map(|client| client["id"].as_str().expect("an id"))
        .collect()
}

/// A session that outlives its connection by an hour.
fn stored(client_id: &str) -> Connect {
    let mut connect = Connect {
        clean_start: false,
        ..Connect::new(Version::V5, client_id)
    };
    connect.properties.session_expiry_interval = Some(3600);
    connect
}

fn open_stored(car: &Car, at: SocketAddr, client_id: &str) -> (Wire, bool) {
    let stream = car.tls().dial(at).expect("a handshake");
    let (wire, answer) = Wire::connect(stream, stored(client_id));
    assert_eq!(answer.reason, ReasonCode::Success);
    (wire, answer.session_present)
}

fn service(serving: &Serving, client_id: &str) -> Wire {
    Wire::open(tcp(address(serving, "mqtt")), client_id)
}

#[test]
fn clients_are_listed_shown_disconnected_and_purged() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = start(&folder);
    let (one, two) = (Car::register(&serving, 1), Car::register(&serving, 2));
    let (mut app, _) = open_stored(&one, serving.mqtt, "app");
    assert_eq!(app.subscribe("dt/+/+/car-1/#"), ReasonCode::GrantedQoS1);
    let _other = two.open(serving.mqtt, "ä/b");
    let _service = service(&serving, "console");

    let all = json(&serving, &["client", "list"]);
    assert_eq!(
        ids(&all),
        ["anonymous/console", "car-1-tcu/app", "car-2-tcu/ä/b"]
    );
    let of_vehicle = json(&serving, &["client", "list", "--vehicle", "car-1"]);
    assert_eq!(ids(&of_vehicle), ["car-1-tcu/app"]);
    let of_device = json(
        &serving,
        &["client", "list", "--device", "car-2-tcu", "--connected"],
    );
    assert_eq!(ids(&of_device), ["car-2-tcu/ä/b"]);
    assert!(ids(&json(&serving, &["client", "list", "--away"])).is_empty());
    let shown = json(&serving, &["client", "show", "car-1-tcu/app"]);
    assert_eq!(shown["listener"], "mqtts-0");
    assert_eq!(shown["transport"], "mqtts");
    assert_eq!(shown["session"]["stored"], true);
    assert_eq!(shown["subscription_list"][0]["filter"], "dt/+/+/car-1/#");
    assert_eq!(
        json(&serving, &["client", "show", "car-2-tcu/ä/b"])["vehicle"],
        "car-2"
    );

    let answer = json(&serving, &["client", "disconnect", "car-1-tcu/app"]);
    assert_eq!(answer["disconnected"], true);
    assert_eq!(app.end(), Some(ReasonCode::AdministrativeAction));
    let shown = json(&serving, &["client", "show", "car-1-tcu/app"]);
    assert_eq!(
        (&shown["connected"], &shown["subscriptions"]),
        (&false.into(), &1.into())
    );
    let (app, present) = open_stored(&one, serving.mqtt, "app");
    assert!(present, "its session stayed");
    app.leave();

    // What waits for it goes with the purge.
    let mut other = one.open(serving.mqtt, "writer");
    assert_eq!(
        other.publish("dt/a/b/car-1/c", "waits"),
        ReasonCode::Success
    );
    let purged = json(&serving, &["client", "purge", "car-1-tcu/app"]);
    assert_eq!(purged["subscriptions"], 1);
    let gone = serving.client(&["client", "show", "car-1-tcu/app"]);
    assert_eq!(gone.status.code(), Some(1));
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(said.contains("neither connected nor waited for"), "{said}");
    let (_app, present) = open_stored(&one, serving.mqtt, "app");
    assert!(!present, "it begins anew");
}

#[test]
fn a_trace_shows_what_passes_and_keeps_payloads_to_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = start(&folder);
    let car = Car::register(&serving, 1);
    let other = Car::register(&serving, 2);
    for (arguments, shows) in [(&[][..], false), (&["--payload"][..], true)] {
        let mut child = milepost()
            .args(["client", "trace", "car-1", "--json", "--api", &serving.api])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let stderr = child.stderr.take().expect("piped");
        let mut said = String::new();
        BufReader::new(stderr)
            .read_line(&mut said)
            .expect("it says that it traces");
        assert!(said.starts_with("tracing"), "{said}");
        let stdout = child.stdout.take().expect("piped");
        let (send, lines) = mpsc::channel::<Value>();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = send.send(serde_json::from_str(&line).expect("JSON"));
            }
        });

        let _unseen = other.open(serving.mqtt, "app");
        let mut wire = car.open(serving.mqtt, "app");
        assert_eq!(
            wire.publish("dt/a/b/car-1/c", "secret"),
            ReasonCode::Success
        );
        let mut seen = Vec::new();
        while seen.last() != Some(&("out".to_owned(), "PUBACK".to_owned())) {
            let event = lines.recv_timeout(PATIENCE).expect("an event");
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            assert!(
                text("client").contains("app") && text("client") != "car-2-tcu/app",
                "{event}"
            );
            if event["kind"] == "PUBLISH" {
                assert_eq!(event["topic"], "dt/a/b/car-1/c");
                assert_eq!(event["payload_bytes"], 6);
                assert_eq!(event["payload"] == "secret", shows, "{event}");
                assert_eq!(event.to_string().contains("secret"), shows, "{event}");
            }
            seen.push((text("direction"), text("kind")));
        }
        for step in [("in", "CONNECT"), ("out", "CONNACK"), ("in", "PUBLISH")] {
            let step = (step.0.to_owned(), step.1.to_owned());
            assert!(seen.contains(&step), "{step:?} in {seen:?}");
        }
        wire.leave();
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    let nobody = serving.client(&["client", "trace", "car-3"]);
    assert_eq!(nobody.status.code(), Some(1));
}

#[test]
fn a_ban_ends_connections_and_outlives_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = start(&folder);
    let car = Car::register(&serving, 1);
    let other = Car::register(&serving, 2);
    let mut wire = car.open(serving.mqtt, "app");
    let mut unharmed = other.open(serving.mqtt, "app");
    let ban = json(
        &serving,
        &[
            "client",
            "ban",
            "principal:car-1-tcu",
            "--reason",
            "stolen",
            "--for",
            "1d",
        ],
    );
    assert_eq!(ban["in_force"], true);
    // DISCONNECT has no "banned".
    assert_eq!(wire.end(), Some(ReasonCode::AdministrativeAction));
    assert_eq!(unharmed.publish("dt/a/b/car-2/c", "x"), ReasonCode::Success);
    let refused = |serving: &Serving| {
        let stream = car.tls().dial(serving.mqtt).expect("a handshake");
        Wire::connect(stream, Connect::new(Version::V5, "app"))
            .1
            .reason
    };
    assert_eq!(refused(&serving), ReasonCode::Banned);
    serving.kill9();

    let serving = start(&folder);
    assert_eq!(refused(&serving), ReasonCode::Banned);
    let bans = json(&serving, &["client", "bans"]);
    assert_eq!(
        (&bans[0]["target"], &bans[0]["reason"]),
        (&"principal:car-1-tcu".into(), &"stolen".into())
    );
    let series = "milepost_mqtt_refused_total{reason=\"banned_principal\"}";
    assert_eq!(metric(&serving, series), Some(1.0));
    serving.client_ok(&["client", "unban", "principal:car-1-tcu"]);
    assert_eq!(refused(&serving), ReasonCode::Success);
    let gone = serving.client(&["client", "unban", "principal:car-1-tcu"]);
    assert_eq!(gone.status.code(), Some(1));
    let wrong = serving.client(&["client", "ban", "car-1"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("principal:NAME"), "{said}");
}

#[test]
fn who_fails_again_and_again_is_held_off_and_can_be_let_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = start(&folder);
    let car = Car::register(&serving, 1);
    serving.client_ok(&["device", "disable", "car-1-tcu"]);
    let attempt = || {
        let stream = car.tls().dial(serving.mqtt).expect("a handshake");
        Wire::connect(stream, Connect::new(Version::V5, "app"))
            .1
            .reason
    };
    let mut last = attempt();
    for _ in 0..20 {
        assert!(matches!(
            last,
            ReasonCode::NotAuthorized | ReasonCode::ConnectionRateExceeded
        ));
        last = attempt();
    }
    assert_eq!(last, ReasonCode::ConnectionRateExceeded);
    let held = json(&serving, &["client", "holdoffs"]);
    assert_eq!(held[0]["why"], "bad_credentials", "{held}");
    let target = held[0]["target"].as_str().expect("a target");
    assert!(target.starts_with("certificate:"), "{target}");
    serving.client_ok(&["device", "enable", "car-1-tcu"]);
    assert_eq!(attempt(), ReasonCode::ConnectionRateExceeded);
    serving.client_ok(&["client", "release", target]);
    assert_eq!(attempt(), ReasonCode::Success);
}

#[test]
fn coming_and_going_is_told_in_order_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = start(&folder);
    let car = Car::register(&serving, 1);
    let (mut own, mut aws) = (service(&serving, "own"), service(&serving, "aws"));
    assert_eq!(
        own.subscribe("$milepost/events/+/+/car-1-tcu/#"),
        ReasonCode::GrantedQoS1
    );
    for filter in ["connected", "disconnected", "subscribed"] {
        let filter = format!("$aws/events/+/{filter}/app");
        assert_eq!(aws.subscribe(&filter), ReasonCode::GrantedQoS1);
    }
    let mut wire = car.open(serving.mqtt, "app");
    assert_eq!(wire.subscribe("bc/#"), ReasonCode::GrantedQoS1);
    // Devices are not told of each other, and nobody speaks in the server's name.
    assert_eq!(wire.subscribe("$aws/events/#"), ReasonCode::NotAuthorized);
    assert_eq!(wire.subscribe("$SYS/#"), ReasonCode::NotAuthorized);
    let mut liar = service(&serving, "liar");
    let forged = liar.publish("$aws/events/presence/connected/app", "{}");
    assert_eq!(forged, ReasonCode::NotAuthorized);
    wire.leave();
    // A client id that is no topic level is told of in one place only.
    car.open(serving.mqtt, "a/+").leave();

    let mut last = 0;
    for (topic, event) in [
        (
            "$milepost/events/presence/connected/car-1-tcu/app",
            "connected",
        ),
        (
            "$milepost/events/subscriptions/subscribed/car-1-tcu/app",
            "subscribed",
        ),
        (
            "$milepost/events/presence/disconnected/car-1-tcu/app",
            "disconnected",
        ),
        (
            "$milepost/events/presence/connected/car-1-tcu/a%2F%2B",
            "connected",
        ),
        (
            "$milepost/events/presence/disconnected/car-1-tcu/a%2F%2B",
            "disconnected",
        ),
    ] {
        let (at, body) = own.message();
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(
            (at.as_str(), &body["event"]),
            (topic, &event.into()),
            "{body}"
        );
        assert_eq!(body["vehicle"], "car-1");
        let sequence = body["sequence"].as_u64().expect("a number");
        assert!(sequence > last, "{body}");
        last = sequence;
        if event == "disconnected" {
            assert_eq!(body["by"], "client");
        }
    }
    let mut sessions = Vec::new();
    for (topic, more) in [
        ("$aws/events/presence/connected/app", "ipAddress"),
        ("$aws/events/subscriptions/subscribed/app", "topics"),
        ("$aws/events/presence/disconnected/app", "disconnectReason"),
    ] {
        let (at, body) = aws.message();
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(at, topic);
        assert_eq!(body["clientId"], "app");
        assert!(!body[more].is_null(), "{body}");
        sessions.push(body["sessionIdentifier"].to_string());
    }
    sessions.dedup();
    assert_eq!(sessions.len(), 1, "one connection, one identifier");

    // And it is on disk.
    let segments = harness::newest_files(&serving.data_dir.join("log"), "log");
    let of_presence = |path: &PathBuf| path.display().to_string().contains("events.presence");
    let segment = segments.into_iter().find(of_presence).expect("a segment");
    assert!(serving.terminate().success());
    let bytes = std::fs::read(segment).expect("a file");
    let text = String::from_utf8_lossy(&bytes);
    for kind in ["connected", "disconnected", "subscribed"] {
        assert!(
            text.contains(&format!("com.milepost.client.{kind}")),
            "{kind}"
        );
    }
}

#[test]
fn the_server_says_what_it_may_use_and_how_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = start(&folder);
    let said = serving
        .start_up
        .iter()
        .find(|line| line.starts_with("memory: at most "));
    let said = said.unwrap_or_else(|| panic!("{:?}", serving.start_up));
    for part in ["connections", "queries", "this machine has"] {
        assert!(said.contains(part), "{said}");
    }
    let part = "milepost_memory_bound_bytes{part=\"connections\"}";
    assert!(metric(&serving, part).is_some_and(|bytes| bytes > 0.0));
    assert!(metric(&serving, "milepost_open_files{bound=\"sockets\"}").is_some());
    assert!(metric(&serving, "milepost_mqtt_loop_delay_seconds").is_some_and(|late| late < 30.0));
    assert_eq!(metric(&serving, "milepost_mqtt_overloaded"), Some(0.0));

    let mut watcher = service(&serving, "watcher");
    assert_eq!(
        watcher.subscribe("$SYS/broker/clients/connected"),
        ReasonCode::GrantedQoS1
    );
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (topic, value) = watcher.message();
        assert_eq!(topic, "$SYS/broker/clients/connected");
        if value == "1" {
            break;
        }
        assert!(Instant::now() < deadline, "{value}");
    }
    // Retained: whoever comes later need not wait for the next interval.
    let mut late = service(&serving, "late");
    assert_eq!(
        late.subscribe("$SYS/broker/version"),
        ReasonCode::GrantedQoS1
    );
    let (_, version) = late.message();
    assert!(version.starts_with("milepost version "), "{version}");
}

#[test]
fn a_client_without_credentials_is_told_so_in_each_protocol() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = start(&folder);
    let ca = serving.client_ok(&["cert", "ca"]);
    // TLS with a certificate required: the handshake ends it.
    let client = TlsClient::new(&ca, "localhost", None);
    let outcome = client.dial(serving.mqtt).map(|mut stream| {
        use std::io::Read;
        stream.read(&mut [0; 1])
    });
    assert!(!matches!(outcome, Ok(Ok(1..))), "{:?}", outcome.map(|_| ()));
    let failed = "milepost_mqtt_tls_handshakes_failed_total{reason=\"no_certificate\"}";
    // The client may hear of it before it is counted.
    let deadline = Instant::now() + PATIENCE;
    while metric(&serving, failed) != Some(1.0) {
        assert!(Instant::now() < deadline, "{failed} is not 1");
    }
    // And MQTT 3.1.1 over the open listener works as MQTT 5 does.
    let connect = Connect::new(Version::V311, "old");
    let (mut wire, answer) = Wire::connect(tcp(address(&serving, "mqtt")), connect);
    assert_eq!(answer.reason, ReasonCode::Success);
    wire.send(Packet::PingReq);
    assert_eq!(wire.next(), Some(Packet::PingResp));
}
