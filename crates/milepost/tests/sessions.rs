//! Sessions that outlive connection and server, as unchanged clients meet them (`mosquitto_sub -c`), and
//! what an operator can do about them: take access away, choose what a full queue does.

mod harness;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use harness::{Serving, config_on_free_ports, have};
use serde_json::Value;

/// A device, or anybody: how `mosquitto_pub` and `mosquitto_sub` reach the server as that.
struct Client {
    port: String,
    /// Of key, certificate and CA; none for anybody.
    folder: Option<PathBuf>,
}

impl Client {
    /// The device `car-1-tcu`, with a certificate of its own in a folder of this name.
    fn with_new_certificate(serving: &Serving, folder: &Path) -> Client {
        let out = folder.to_str().expect("UTF-8");
        serving.client_ok(&["cert", "new", "--device", "car-1-tcu", "--out", out]);
        Client {
            port: serving.mqtt.port().to_string(),
            folder: Some(folder.to_owned()),
        }
    }

    fn anybody(serving: &Serving) -> Client {
        let url = serving
            .mqtt_urls
            .iter()
            .find(|url| url.starts_with("mqtt://"));
        let (_, port) = url
            .expect("a plain listener")
            .rsplit_once(':')
            .expect("a port");
        Client {
            port: port.to_owned(),
            folder: None,
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-V", "5"]);
        if let Some(folder) = &self.folder {
            for (flag, file) in [
                ("--cafile", "ca.pem"),
                ("--cert", "cert.pem"),
                ("--key", "key.pem"),
            ] {
                command.arg(flag).arg(folder.join(file));
            }
        }
        command.args(arguments).output().expect("it runs")
    }

    /// Begins a session with a subscription, and goes.
    fn leave_session(&self, filter: &str) {
        let session = ["-c", "-x", "3600", "-i", "reader", "-q", "2", "-t", filter];
        let output = self.run("mosquitto_sub", &[&session[..], &["-E"]].concat());
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Takes the session up again and gives back the first payloads that come.
    fn resume(&self, filter: &str, count: usize) -> Vec<String> {
        let session = ["-c", "-x", "3600", "-i", "reader", "-q", "2", "-t", filter];
        let count = count.to_string();
        let until = ["-C", &count, "-W", "30"];
        let output = self.run("mosquitto_sub", &[&session[..], &until].concat());
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(str::to_owned).collect()
    }

    fn publish(&self, topic: &str, payload: &str, more: &[&str]) -> Output {
        let message = ["-i", "writer", "-q", "2", "-t", topic, "-m", payload];
        self.run("mosquitto_pub", &[&message, more].concat())
    }

    fn publish_all(&self, topic: &str, payloads: &[&str]) {
        for payload in payloads {
            let output = self.publish(topic, payload, &[]);
            assert!(output.status.success(), "{}", said(&output));
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn metrics(serving: &Serving) -> String {
    // Another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let url = format!("{}/metrics", serving.api);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let answer = reqwest::get(url).await.expect("sent");
        answer.text().await.expect("text")
    })
}

fn with_a_car(serving: &Serving) {
    serving.client_ok(&["vehicle", "create", "--id", "car-1"]);
    serving.client_ok(&[
        "device",
        "create",
        "--vehicle",
        "car-1",
        "--id",
        "car-1-tcu",
    ]);
}

const OWN: &str = "dt/+/+/car-1/#";
const NOTES: &str = "dt/demo/notes/car-1/note";

#[test]
fn what_waited_for_an_unchanged_client_is_there_after_a_kill() {
    if !have("mosquitto_sub") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    // The figures below `$SYS` are retained messages too.
    let config = config_on_free_ports("[sys]\ninterval = \"off\"\n");
    let serving = Serving::start(&data, &config);
    with_a_car(&serving);
    let mut car = Client::with_new_certificate(&serving, &folder.path().join("car"));
    car.leave_session(OWN);
    car.publish_all(NOTES, &["one", "two", "three"]);
    let counted = metrics(&serving);
    for line in [
        "milepost_mqtt_stored_sessions 1",
        "milepost_mqtt_stored_deliveries_total 3",
        "milepost_mqtt_pubrecs_sent_total 3",
        "milepost_mqtt_received_messages_by_qos_total{qos=\"2\"} 3",
        "milepost_mqtt_store_stalled 0",
    ] {
        assert!(counted.contains(line), "{line} is not in\n{counted}");
    }

    serving.kill9();
    let serving = Serving::start(&data, &config);
    let said = serving.start_up.join("\n");
    assert!(
        said.contains("s: sessions 1, queued messages 3, retained messages 0"),
        "{said}"
    );
    car.port = serving.mqtt.port().to_string();
    assert_eq!(car.resume(OWN, 3), ["one", "two", "three"]);

    // An orderly end keeps as much as a disorderly one.
    car.publish_all(NOTES, &["four", "five"]);
    assert_eq!(serving.terminate().code(), Some(0));
    let serving = Serving::start(&data, &config_on_free_ports(""));
    car.port = serving.mqtt.port().to_string();
    assert_eq!(car.resume(OWN, 2), ["four", "five"]);
    assert_eq!(serving.terminate().code(), Some(0));
}

#[test]
fn sessions_that_can_not_be_read_stop_the_start_and_say_what_to_do() {
    if !have("mosquitto_sub") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let serving = Serving::start(&data, &config_on_free_ports(""));
    with_a_car(&serving);
    let car = Client::with_new_certificate(&serving, &folder.path().join("car"));
    car.leave_session(OWN);
    car.publish_all(NOTES, &["one", "two", "three"]);
    serving.kill9();

    // One bit, in the middle of what was durable.
    let segments = harness::newest_files(&data.join("sessions"), "segment");
    let [segment] = &segments[..] else {
        panic!("one segment: {segments:?}")
    };
    let mut bytes = std::fs::read(segment).expect("a segment");
    let middle = bytes.len() / 3;
    bytes[middle] ^= 4;
    std::fs::write(segment, &bytes).expect("written");

    let refused = harness::milepost()
        .args(["serve", "--config"])
        .arg(folder.path().join("data.toml"))
        .arg("--data-dir")
        .arg(&data)
        .output()
        .expect("runs");
    let words = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    for expected in [
        segment.to_str().expect("UTF-8"),
        "is damaged at byte",
        "move it away",
    ] {
        assert!(words.contains(expected), "{expected} is not in\n{words}");
    }
    assert!(!words.contains("listening on"), "{words}");
    assert_eq!(
        std::fs::read(segment).expect("a segment"),
        bytes,
        "unchanged"
    );
}

#[test]
fn a_device_that_lost_its_access_gets_nothing_of_what_waited() {
    if !have("mosquitto_sub") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Serving::start(&folder.path().join("data"), &config_on_free_ports(""));
    with_a_car(&serving);
    let first = Client::with_new_certificate(&serving, &folder.path().join("first"));
    first.leave_session(OWN);
    first.publish_all(NOTES, &["before"]);

    // Another certificate in place of the first: the same device, the same session.
    let listed = serving.client_ok(&["cert", "list", "car-1-tcu", "--json"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let serial = listed[0]["serial"].as_str().expect("a serial").to_owned();
    let second = Client::with_new_certificate(&serving, &folder.path().join("second"));
    serving.client_ok(&["cert", "revoke", &serial]);
    let refused = first.publish(NOTES, "no more", &[]);
    assert!(
        !refused.status.success(),
        "the first certificate is revoked"
    );
    assert_eq!(second.resume(OWN, 1), ["before"]);

    // Shut out as a whole, and let in again: what waited is not for it any more.
    second.publish_all(NOTES, &["secret"]);
    serving.client_ok(&["device", "disable", "car-1-tcu"]);
    serving.client_ok(&["device", "enable", "car-1-tcu"]);
    let marker = second.publish("dt/demo/notes/car-1/marker", "marker", &["-r"]);
    assert!(marker.status.success(), "{}", said(&marker));
    assert_eq!(second.resume(OWN, 1), ["marker"]);
    let counted = metrics(&serving);
    let line = "milepost_mqtt_subscriptions_revoked_total 1";
    assert!(counted.contains(line), "{line} is not in\n{counted}");
    assert_eq!(serving.terminate().code(), Some(0));
}

#[test]
fn a_full_queue_does_what_the_configuration_says() {
    if !have("mosquitto_sub") {
        return;
    }
    for (overflow, kept, line) in [
        (
            "refuse_new",
            ["0", "1", "2", "3"],
            "milepost_mqtt_dropped_messages_total{reason=\"refused_new\"} 2",
        ),
        (
            "drop_oldest",
            ["2", "3", "4", "5"],
            "milepost_mqtt_dropped_messages_total{reason=\"oldest\"} 2",
        ),
        (
            "drop_lowest_priority",
            ["0", "3", "4", "5"],
            "milepost_mqtt_dropped_messages_total{reason=\"low_priority\"} 2",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config_on_free_ports(&format!(
            "[[listener]]\nprotocol = \"mqtt\"\nbind = \"127.0.0.1:0\"\n\
             [access]\nanonymous = \"allow-all\"\n\
             [mqtt]\nmax_queued = 4\noverflow = \"{overflow}\"\n"
        ));
        let serving = Serving::start(&folder.path().join("data"), &config);
        let anybody = Client::anybody(&serving);
        anybody.leave_session("news/#");
        for number in 0..6 {
            // All but the second and third are important.
            let priority = match number {
                1 | 2 => "low",
                _ => "high",
            };
            let property = ["-D", "publish", "user-property", "priority", priority];
            let output = anybody.publish("news/today", &number.to_string(), &property);
            // "Warning: Publish 1 failed: Quota exceeded."
            let refused = said(&output).contains("Quota exceeded");
            assert_eq!(
                refused,
                overflow == "refuse_new" && number > 3,
                "{}",
                said(&output)
            );
        }
        assert_eq!(anybody.resume("news/#", 4), kept, "{overflow}");
        let counted = metrics(&serving);
        assert!(counted.contains(line), "{line} is not in\n{counted}");
    }
}
