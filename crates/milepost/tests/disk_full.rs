//! The disk fills up under the real binary, on a file system of its own, and has space again.
//!
//! While it is full, whoever wants something kept is told so by a reason code, clients that want nothing
//! kept are served as before, and nobody is disconnected. With space again all goes on by itself, and
//! what was acknowledged before, during and after is there, also after a `kill -9`.

mod harness;

use std::{
    fs,
    io::{self, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fleet_sim::client::{
    Client, ClientError, ClientOptions, Delivery, Incoming, Outgoing, Reconnect, SessionStart,
    Transport,
};
use harness::{PATIENCE, Serving, config_on_free_ports, milepost};
use mqtt::ReasonCode;

/// Size of the file system. A start takes about five.
const DISK: &str = "size=96m";

/// Trials: everybody is let in on a plain listener of this machine.
const OPEN: &str = "[[listener]]\nprotocol = \"mqtt\"\nbind = \"127.0.0.1:0\"\n[access]\nanonymous = \"allow-all\"\n";

/// In a namespace of its own, where it may mount a small file system over `folder`; then `then`.
fn on_a_small_disk(folder: &Path, then: &Command) -> Command {
    let mount = format!("mount -t tmpfs -o {DISK} none \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
        .arg(folder)
        .arg(then.get_program());
    for (name, value) in then.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// The disk as the server sees it.
struct Disk {
    root: PathBuf,
}

impl Disk {
    fn of(serving: &Serving) -> Disk {
        let root = format!("/proc/{}/root", serving.pid());
        let folder = serving.data_dir.strip_prefix("/").expect("absolute");
        Disk {
            root: Path::new(&root).join(folder),
        }
    }

    /// Takes all the space there is.
    fn fill(&self) {
        let mut file = fs::File::create(self.filler()).expect("a file");
        for size in [1 << 20, 4096, 1] {
            let block = vec![b'x'; size];
            loop {
                match file.write(&block) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).expect("it is there");
    }

    fn filler(&self) -> PathBuf {
        self.root.join("filler")
    }
}

struct Party {
    client: Client,
    incoming: Incoming,
    count: u64,
}

impl Party {
    async fn join(serving: &Serving, name: &str, session: SessionStart) -> Party {
        let url = serving
            .mqtt_urls
            .iter()
            .find_map(|url| url.strip_prefix("mqtt://"));
        let address: std::net::SocketAddr =
            url.expect("a plain listener").parse().expect("an address");
        let options = ClientOptions {
            session,
            reconnect: Reconnect::Never,
            ..ClientOptions::new(address.into(), Transport::Tcp, name)
        };
        let (client, incoming) = Client::connect(options).await.expect("connected");
        Party {
            client,
            incoming,
            count: 0,
        }
    }

    async fn publish(&mut self, topic: &str) -> Result<String, ClientError> {
        self.count += 1;
        let payload = format!("{{\"time\": {}, \"signals\": {{}}}}", self.count);
        let message = Outgoing {
            topic: topic.into(),
            payload: Bytes::from(payload.clone()),
            delivery: Delivery::AtLeastOnce,
            ..Outgoing::default()
        };
        let receipt = self
            .client
            .publish(message)
            .await
            .expect("it is still there");
        let answered = tokio::time::timeout(PATIENCE, receipt).await;
        answered
            .expect("answered, in words or not")
            .map(|()| payload)
    }

    /// Publishes until the answer is as `wanted`; what was acknowledged on the way is counted in `kept`.
    async fn until(
        &mut self,
        topic: &str,
        kept: &mut Vec<String>,
        wanted: impl Fn(&Result<String, ClientError>) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.publish(topic).await;
            let done = wanted(&answer);
            let said = format!("{answer:?}");
            kept.extend(answer);
            if done {
                return;
            }
            assert!(Instant::now() < deadline, "{topic} still answers {said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn receive(&mut self) -> String {
        let came = tokio::time::timeout(PATIENCE, self.incoming.recv()).await;
        let message = came.expect("in time").expect("still connected");
        String::from_utf8(message.payload.to_vec()).expect("text")
    }
}

fn is_refused_for_space(answer: &Result<String, ClientError>) -> bool {
    matches!(
        answer,
        Err(ClientError::MessageRefused {
            reason: ReasonCode::QuotaExceeded
        })
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_harms_nobody_else_and_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    fs::create_dir(&data_dir).expect("made");
    let possible = on_a_small_disk(&data_dir, &Command::new("true")).status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no file system of our own can be mounted here");
        return;
    }
    let config = config_on_free_ports(OPEN);
    let serving = Serving::start_by(on_a_small_disk(&data_dir, &milepost()), &data_dir, &config);
    let disk = Disk::of(&serving);

    let stored = SessionStart::Resume { expiry: 3_600 };
    let mut vehicle = Party::join(&serving, "vehicle", SessionStart::Clean).await;
    let mut app = Party::join(&serving, "app", SessionStart::Clean).await;
    let mut reader = Party::join(&serving, "reader", SessionStart::Clean).await;
    let keeper = Party::join(&serving, "keeper", stored).await;
    reader
        .client
        .subscribe(&[("bc/live", Delivery::AtLeastOnce)])
        .await
        .expect("subscribed");
    keeper
        .client
        .subscribe(&[("bc/kept", Delivery::AtLeastOnce)])
        .await
        .expect("subscribed");
    drop(keeper);

    let (uplink, live, kept) = ("dt/a/b/car-1/telemetry", "bc/live", "bc/kept");
    let (mut in_log, mut in_session) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        in_log.push(vehicle.publish(uplink).await.expect("kept"));
        in_session.push(app.publish(kept).await.expect("kept"));
    }

    disk.fill();
    vehicle
        .until(uplink, &mut in_log, is_refused_for_space)
        .await;
    app.until(kept, &mut in_session, is_refused_for_space).await;
    // Nothing of this is to be kept, so nothing has changed.
    for _ in 0..100 {
        let sent = app.publish(live).await.expect("taken");
        assert_eq!(reader.receive().await, sent);
    }
    let metrics = reqwest::get(format!("{}/metrics", serving.api)).await;
    let metrics = metrics.expect("answered").text().await.expect("text");
    assert!(
        metrics.contains("milepost_mqtt_store_stalled 1"),
        "{metrics}"
    );

    disk.make_room();
    vehicle.until(uplink, &mut in_log, Result::is_ok).await;
    app.until(kept, &mut in_session, Result::is_ok).await;
    for _ in 0..50 {
        in_log.push(vehicle.publish(uplink).await.expect("kept"));
        in_session.push(app.publish(kept).await.expect("kept"));
    }
    for party in [&vehicle, &app, &reader] {
        assert!(party.client.counters().is_connected());
        assert_eq!(party.client.counters().connects(), 1);
    }

    // What was said to be kept, is. The open folder keeps the file system from going with the process.
    let open = fs::File::open(&disk.root).expect("a folder");
    serving.kill9();
    let copy = folder.path().join("copy");
    let left = format!("/proc/{}/fd/{}", std::process::id(), open.as_raw_fd());
    let status = Command::new("cp").arg("-rL").arg(&left).arg(&copy).status();
    assert!(status.expect("cp runs").success());
    let serving = Serving::start(&copy, &config);
    let query = "SELECT count(DISTINCT id) FROM bronze.messages";
    let expected = in_log.len() as f64;
    serving.until(query, |rows| rows >= expected);
    let mut keeper = Party::join(&serving, "keeper", stored).await;
    let mut missing: Vec<&String> = in_session.iter().collect();
    while !missing.is_empty() {
        let came = keeper.receive().await;
        missing.retain(|payload| **payload != came);
    }
}
