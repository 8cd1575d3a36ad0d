//! Clients that people have, unchanged, against the real binary on every transport: mosquitto, Paho,
//! MQTT.js, the AWS IoT device SDK, rumqttc, and QUIC by aioquic.
//!
//! A client library has a program in `clients/` that takes what the client can through the same steps and
//! prints one line for each (`clients/story.py` says how). Here the programs run, as devices with
//! certificates of their own where the transport knows certificates, and what they say they published
//! below `dt/` is then to be found in the lake: every message, once, and nothing else.
//!
//! The libraries are where `MILEPOST_TEST_CLIENTS` says (`make test` installs them and sets it). Without it
//! these tests are skipped, and say so; with it, a client that is missing is a failure.

mod harness;
#[path = "clients/mosquitto.rs"]
mod mosquitto;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use harness::{PATIENCE, Serving, UNHURRIED, have, signal};
use serde_json::Value;

/// How long one client program may take. They take a second or two, and end themselves after thirty.
const LIMIT: Duration = Duration::from_secs(45);
const VEHICLE: &str = "car-1";
const DEVICE: &str = "car-1-tcu";
/// Whose topics the device must not use.
const FOREIGN: &str = "car-2";
/// Where the secure WebSocket listener is reached; the plain one has the default.
const WSS_PATH: &str = "/fleet/mqtt";

/// A way into the server. In this order they are listeners of the server under test.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Door {
    Tcp,
    Tls,
    WebSocket,
    SecureWebSocket,
    /// MQTT over TLS and WebSocket over TLS on one port.
    OnePort,
    Quic,
}

const DOORS: [Door; 6] = [
    Door::Tcp,
    Door::Tls,
    Door::WebSocket,
    Door::SecureWebSocket,
    Door::OnePort,
    Door::Quic,
];

impl Door {
    fn listener(self) -> String {
        let (protocol, more) = match self {
            Self::Tcp => ("mqtt", String::new()),
            Self::Tls => ("mqtts", String::new()),
            Self::WebSocket => ("ws", String::new()),
            Self::SecureWebSocket => ("wss", format!("path = \"{WSS_PATH}\"\n")),
            Self::OnePort => ("mqtts", "path = \"/mqtt\"\n".to_owned()),
            Self::Quic => ("quic", String::new()),
        };
        format!("[[listener]]\nprotocol = \"{protocol}\"\nbind = \"127.0.0.1:0\"\n{more}")
    }

    /// The beginning of its line at start-up.
    fn scheme(self) -> &'static str {
        match self {
            Self::Tcp => "mqtt://",
            Self::Tls | Self::OnePort => "mqtts://",
            Self::WebSocket => "ws://",
            Self::SecureWebSocket => "wss://",
            Self::Quic => "quic://",
        }
    }

    /// Whether clients show a certificate, and so are a device.
    fn knows_certificates(self) -> bool {
        !matches!(self, Self::Tcp | Self::WebSocket)
    }
}

/// A server with every door.
fn config() -> String {
    let listeners: String = DOORS.iter().map(|door| door.listener()).collect();
    format!(
        "{listeners}\
         [access]\nanonymous = \"allow-all\"\n\
         [http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n\
         [lake]\ncommit_every = \"500ms\"\n{UNHURRIED}"
    )
}

/// Where the client libraries are.
fn libraries() -> Option<PathBuf> {
    let folder = std::env::var_os("MILEPOST_TEST_CLIENTS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!(
            "skipped: MILEPOST_TEST_CLIENTS is not set (`make test` installs the clients and sets it)"
        );
    }
    folder
}

/// A program of the distribution; missing it is no failure only where all clients may be missing.
fn installed(program: &str) -> bool {
    let found = have(program);
    assert!(
        found || std::env::var_os("MILEPOST_TEST_CLIENTS").is_none(),
        "{program} is not installed (`make setup-test` installs it)"
    );
    found
}

/// Topic, length and beginning of the payload of each message.
type Messages = Vec<(String, u64, String)>;

/// One way in which a client program runs.
#[derive(Clone)]
struct Run {
    door: Door,
    /// As the program says it.
    transport: &'static str,
    version: &'static str,
    /// Further arguments.
    more: &'static [&'static str],
}

fn run(door: Door, transport: &'static str, version: &'static str) -> Run {
    Run {
        door,
        transport,
        version,
        more: &[],
    }
}

impl Run {
    fn with(self, more: &'static [&'static str]) -> Run {
        Run { more, ..self }
    }
}

/// Both versions through these doors.
fn both_versions(doors: &[(Door, &'static str)]) -> Vec<Run> {
    let of =
        |version| move |(door, transport): &(Door, &'static str)| run(*door, transport, version);
    let three = doors.iter().map(of("3.1.1"));
    three.chain(doors.iter().map(of("5"))).collect()
}

/// A server with every door, and a registered device.
struct World {
    folder: tempfile::TempDir,
    serving: Serving,
    /// Where the doors are.
    ports: BTreeMap<&'static str, Vec<String>>,
    /// What clients said they published below `dt/`.
    said: Messages,
}

impl World {
    fn start() -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let serving = Serving::start(&folder.path().join("data"), &config());
        for vehicle in [VEHICLE, FOREIGN] {
            serving.client_ok(&["vehicle", "create", "--id", vehicle]);
        }
        serving.client_ok(&["device", "create", "--vehicle", VEHICLE, "--id", DEVICE]);
        let certificate = folder.path().join(DEVICE);
        let out = certificate.to_str().expect("UTF-8");
        serving.client_ok(&["cert", "new", "--device", DEVICE, "--out", out]);
        let mut ports: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for door in DOORS {
            ports.entry(door.scheme()).or_insert_with_key(|scheme| {
                let lines = serving.start_up.iter();
                let urls = lines.filter_map(|line| line.strip_prefix("listening on "));
                urls.filter_map(|url| url.strip_prefix(*scheme)?.rsplit_once(':'))
                    .map(|(_, port)| port.to_owned())
                    .collect()
            });
        }
        World {
            folder,
            serving,
            ports,
            said: Messages::new(),
        }
    }

    fn port(&self, door: Door) -> &str {
        let before = DOORS.iter().take_while(|other| **other != door);
        let nth = before
            .filter(|other| other.scheme() == door.scheme())
            .count();
        &self.ports[door.scheme()][nth]
    }

    fn certificate(&self, file: &str) -> String {
        let path = self.folder.path().join(DEVICE).join(file);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Runs a client program through every one of these doors; it must do all of its steps.
    fn runs(&mut self, name: &str, program: &[String], runs: impl IntoIterator<Item = Run>) {
        for run in runs {
            self.runs_once(name, program, &run);
        }
    }

    fn runs_once(&mut self, name: &str, program: &[String], run: &Run) {
        let title = format!(
            "{name}-{:?}-{}-{}{}",
            run.door,
            run.transport,
            run.version,
            // A level of the topics it publishes to.
            run.more.concat().replace('/', "-")
        );
        let mut command = Command::new(&program[0]);
        command
            .args(&program[1..])
            .args(["--transport", run.transport, "--version", run.version])
            .args(["--port", self.port(run.door), "--run", &title])
            .args(["--vehicle", VEHICLE])
            .args(run.more);
        if run.door == Door::SecureWebSocket {
            command.args(["--path", WSS_PATH]);
        }
        if run.door.knows_certificates() {
            command.args(["--device", DEVICE, "--foreign", FOREIGN]);
            for (argument, file) in [
                ("--ca", "ca.pem"),
                ("--cert", "cert.pem"),
                ("--key", "key.pem"),
            ] {
                command.arg(argument).arg(self.certificate(file));
            }
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let (status, stdout, stderr) = within_limit(&mut command);
        let steps: Vec<_> = stdout.lines().filter(|l| !l.starts_with("kept ")).collect();
        assert!(
            status.success() && steps.last() == Some(&"done"),
            "{title}: {status}\n{}\n{stderr}",
            steps.join("\n"),
        );
        let kept = stdout.lines().filter_map(|l| l.strip_prefix("kept "));
        let kept = kept.map(|line| match *line.split(' ').collect::<Vec<_>>() {
            [topic, bytes, head] => message(topic, bytes, head),
            _ => panic!("{title}: not a topic, a length and a beginning: {line}"),
        });
        self.said.extend(kept);
    }

    /// What the clients published is in bronze, once each, and nothing else is.
    fn everything_is_in_the_lake(mut self) {
        let mut said = std::mem::take(&mut self.said);
        assert!(!said.is_empty(), "no client ran");
        said.sort();
        let deadline = Instant::now() + PATIENCE;
        let count = || self.serving.number("SELECT count(*) FROM bronze.messages");
        while count() < said.len() as f64 && Instant::now() < deadline {}
        let rows = self.serving.sql(
            "SELECT topic, length(encode(payload, 'hex')) / 2 AS bytes, \
             substr(encode(payload, 'hex'), 1, 32) AS head FROM bronze.messages",
        );
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut there: Messages = rows
            .iter()
            .map(|row| {
                let head = match &*text(&row["head"]) {
                    "" => "-".to_owned(),
                    head => head.to_owned(),
                };
                message(&text(&row["topic"]), &text(&row["bytes"]), &head)
            })
            .collect();
        there.sort();
        let missing: Vec<_> = difference(&said, &there);
        let too_much: Vec<_> = difference(&there, &said);
        assert!(
            missing.is_empty() && too_much.is_empty(),
            "of {} messages the lake lacks {missing:?} and has {too_much:?} too much",
            said.len()
        );
        assert_eq!(self.serving.terminate().code(), Some(0));
    }
}

fn message(topic: &str, bytes: &str, head: &str) -> (String, u64, String) {
    let bytes = bytes.parse().expect("a length");
    (topic.to_owned(), bytes, head.to_owned())
}

/// What is in `a`, as often as it is there more than in `b`.
fn difference(a: &Messages, b: &Messages) -> Messages {
    let mut rest = b.clone();
    a.iter()
        .filter(|one| match rest.iter().position(|other| other == *one) {
            Some(place) => {
                rest.swap_remove(place);
                false
            }
            None => true,
        })
        .cloned()
        .collect()
}

/// Runs a program to its end, or kills it. What it said, on stdout and stderr.
fn within_limit(command: &mut Command) -> (ExitStatus, String, String) {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let pid = child.id();
    let (ended, end) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            signal(pid, "KILL");
        }
    });
    let output = child.wait_with_output().expect("it can be waited for");
    drop(ended);
    // It panics only if `kill` finds no process, which then has ended.
    let _ = guard.join();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status, text(output.stdout), text(output.stderr))
}

fn program(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(file);
    path.to_str().expect("UTF-8").to_owned()
}

fn python(libraries: &Path, file: &str) -> Vec<String> {
    let python = libraries.join("python/bin/python");
    assert!(
        python.exists(),
        "{} is missing (`make setup-test` installs it)",
        python.display()
    );
    vec![python.to_str().expect("UTF-8").to_owned(), program(file)]
}

#[test]
fn paho() {
    let Some(libraries) = libraries() else {
        return;
    };
    let mut world = World::start();
    let program = python(&libraries, "paho_client.py");
    let doors = [
        (Door::Tcp, "mqtt"),
        (Door::Tls, "mqtts"),
        (Door::WebSocket, "ws"),
        (Door::SecureWebSocket, "wss"),
        (Door::OnePort, "mqtts"),
        (Door::OnePort, "wss"),
    ];
    world.runs("paho", &program, both_versions(&doors));
    let more = [
        run(Door::Tls, "mqtts", "5").with(&["--tls", "TLSv1_2"]),
        run(Door::Tls, "mqtts", "5").with(&["--tls", "TLSv1_3"]),
        run(Door::SecureWebSocket, "wss", "5").with(&["--tls", "TLSv1_2"]),
        run(Door::OnePort, "mqtts", "5").with(&["--alpn", "mqtt"]),
        run(Door::OnePort, "mqtts", "3.1.1").with(&["--alpn", "x-amzn-mqtt-ca"]),
        run(Door::OnePort, "wss", "5").with(&["--alpn", "http/1.1"]),
    ];
    world.runs("paho", &program, more);
    world.everything_is_in_the_lake();
}

#[test]
fn mqtt_js() {
    let Some(libraries) = libraries() else {
        return;
    };
    installed("node");
    let modules = libraries.join("node_modules");
    assert!(
        modules.is_dir(),
        "{} is missing (`make setup-test` installs it)",
        modules.display()
    );
    let mut world = World::start();
    let program = vec![
        "node".to_owned(),
        program("mqttjs_client.mjs"),
        "--modules".to_owned(),
        libraries.to_str().expect("UTF-8").to_owned(),
    ];
    let doors = [
        (Door::Tcp, "mqtt"),
        (Door::Tls, "mqtts"),
        (Door::WebSocket, "ws"),
        (Door::SecureWebSocket, "wss"),
        (Door::OnePort, "mqtts"),
        (Door::OnePort, "wss"),
    ];
    world.runs("mqttjs", &program, both_versions(&doors));
    let more = [
        run(Door::OnePort, "mqtts", "5").with(&["--alpn", "mqtt"]),
        run(Door::OnePort, "wss", "5").with(&["--alpn", "http/1.1"]),
    ];
    world.runs("mqttjs", &program, more);
    world.everything_is_in_the_lake();
}

#[test]
fn aws_iot_device_sdk() {
    let Some(libraries) = libraries() else {
        return;
    };
    let mut world = World::start();
    let program = python(&libraries, "aws_client.py");
    let doors = [
        (Door::Tls, "mqtts"),
        (Door::WebSocket, "ws"),
        (Door::SecureWebSocket, "wss"),
    ];
    world.runs("aws", &program, both_versions(&doors));
    for version in ["3.1.1", "5"] {
        let more = [
            run(Door::OnePort, "mqtts", version).with(&["--alpn", "x-amzn-mqtt-ca"]),
            run(Door::OnePort, "wss", version),
            run(Door::OnePort, "wss", version).with(&["--alpn", "http/1.1"]),
        ];
        world.runs("aws", &program, more);
    }
    world.everything_is_in_the_lake();
}

#[test]
fn quic_by_aioquic() {
    let Some(libraries) = libraries() else {
        return;
    };
    let mut world = World::start();
    let program = python(&libraries, "quic_client.py");
    world.runs("quic", &program, both_versions(&[(Door::Quic, "quic")]));
    world.everything_is_in_the_lake();
}

#[test]
fn rumqttc() {
    if libraries().is_none() {
        return;
    }
    let folder = Path::new(env!("CARGO_BIN_EXE_milepost")).parent();
    let program = folder.expect("a folder").join("examples/rumqttc_client");
    assert!(
        program.exists(),
        "{} is missing; `cargo build --profile demo --example rumqttc_client` makes it",
        program.display()
    );
    let mut world = World::start();
    let program = vec![program.to_str().expect("UTF-8").to_owned()];
    world.runs("rumqttc", &program, both_versions(&[(Door::Tcp, "mqtt")]));
    world.everything_is_in_the_lake();
}

#[test]
fn mosquitto_clients() {
    if !["mosquitto_pub", "mosquitto_sub", "mosquitto_rr"]
        .map(installed)
        .contains(&false)
    {
        mosquitto::steps(World::start());
    }
}
