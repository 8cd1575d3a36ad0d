//! The main job with the tools people have: a vehicle is registered on the command line, publishes
//! with `mosquitto_pub` and its own certificate, and every SQL door answers. Who may not, can not.

mod harness;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::mpsc,
};

use fleet_sim::{
    Credentials,
    client::{Client, ClientEvent, ClientOptions, Reconnect, Server, Transport},
};
use harness::{Serving, config_on_free_ports, config_with_sql, have};
use serde_json::{Value, json};

struct Vehicle {
    folder: PathBuf,
    port: String,
}

impl Vehicle {
    /// Registered, with one device and its certificate.
    fn registered(serving: &Serving, id: &str, folder: &Path) -> Vehicle {
        let device = format!("{id}-tcu");
        let folder = folder.join(id);
        serving.client_ok(&["vehicle", "create", "--id", id]);
        serving.client_ok(&["device", "create", "--vehicle", id, "--id", &device]);
        let out = folder.to_str().expect("UTF-8");
        serving.client_ok(&["cert", "new", "--device", &device, "--out", out]);
        Vehicle {
            folder,
            port: serving.mqtt.port().to_string(),
        }
    }

    fn mosquitto(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-V", "5"]);
        for (flag, file) in [
            ("--cafile", "ca.pem"),
            ("--cert", "cert.pem"),
            ("--key", "key.pem"),
        ] {
            command.arg(flag).arg(self.folder.join(file));
        }
        command.args(arguments);
        command
    }

    fn publish(&self, topic: &str, payload: &str) -> Output {
        self.mosquitto("mosquitto_pub", &["-q", "1", "-t", topic, "-m", payload])
            .output()
            .expect("mosquitto_pub runs")
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
        reqwest::get(url)
            .await
            .expect("sent")
            .text()
            .await
            .expect("text")
    })
}

#[test]
fn what_mosquitto_publishes_every_sql_door_answers() {
    if !have("mosquitto_pub") || !have("psql") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Serving::start(&folder.path().join("data"), &config_on_free_ports(""));
    let car = Vehicle::registered(&serving, "car-1", folder.path());

    let native = r#"{"time": "2026-05-01T10:00:00Z", "signals": {"Vehicle.Speed": 87.25, "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen": true}}"#;
    let viss = r#"{"values":[{"path":"Vehicle.Speed","dp":[{"value":"90.5","ts":"2026-05-01T10:00:01Z"}]}]}"#;
    for payload in [native, viss, "not json at all"] {
        let published = car.publish("dt/demo/drive/car-1/signals", payload);
        assert!(published.status.success(), "{}", said(&published));
    }

    // A shape that nobody knows: kept as it came, and a dead letter with its reason.
    let published = car.publish("dt/demo/drive/car-1/signals", r#"{"signal": {}}"#);
    assert!(published.status.success(), "{}", said(&published));

    // Hot and cold together, once each, while rows move from one to the other.
    serving.until("SELECT count(*) FROM messages", |n| n == 4.0);
    serving.until("SELECT count(*) FROM signals", |n| n == 3.0);
    serving.until("SELECT count(*) FROM bronze.messages", |n| n == 4.0);
    serving.until("SELECT count(*) FROM silver.signals", |n| n == 3.0);
    assert_eq!(serving.number("SELECT count(*) FROM signals"), 3.0);
    assert_eq!(
        serving.number("SELECT sum(value) FROM signals WHERE signal = 'Vehicle.Speed'"),
        177.75
    );
    let metrics = metrics(&serving);
    for line in [
        "milepost_ingest_dead_letters_total 1",
        "milepost_log_appended_records_total{stream=\"dead.telemetry\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let last = serving.sql("SELECT value, unit, time FROM last_known_state WHERE vehicle_id = 'car-1' AND signal = 'Vehicle.Speed'");
    assert_eq!(
        last,
        vec![json!({"value": 90.5, "unit": "km/h", "time": "2026-05-01T10:00:01Z"})]
    );
    let joined = serving.sql("SELECT v.vehicle_id, count(*) AS n FROM vehicles v JOIN signals s ON s.vehicle_id = v.vehicle_id GROUP BY v.vehicle_id");
    assert_eq!(joined, vec![json!({"vehicle_id": "car-1", "n": 3})]);
    let kept =
        serving.sql("SELECT topic, device_id FROM messages WHERE payload = 'not json at all'");
    assert_eq!(
        kept,
        vec![json!({"topic": "dt/demo/drive/car-1/signals", "device_id": "car-1-tcu"})]
    );

    let psql = |query: &str| {
        Command::new("psql")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &serving.sql.port().to_string(),
                "-U",
                "milepost",
                "-d",
                "milepost",
            ])
            .args(["-X", "-A", "-t", "-c", query])
            .env("PGCONNECT_TIMEOUT", "30")
            .output()
            .expect("psql runs")
    };
    let answer = psql("SELECT sum(value) FROM signals WHERE signal = 'Vehicle.Speed'");
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout).trim(),
        "177.75",
        "{}",
        said(&answer)
    );
    for forbidden in [
        "CREATE TABLE t (a INT)",
        "INSERT INTO signals VALUES (1)",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "DROP TABLE signals",
    ] {
        let refused = psql(forbidden);
        assert!(!refused.status.success(), "{forbidden}: {}", said(&refused));
        let refused = serving.client(&["sql", forbidden]);
        assert_eq!(
            refused.status.code(),
            Some(1),
            "{forbidden}: {}",
            said(&refused)
        );
    }
    assert_eq!(serving.terminate().code(), Some(0));
}

#[tokio::test]
async fn http_answers_json_and_arrow_and_refuses_with_stable_problems() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config_with_sql("max_rows = 10", "");
    let serving = Serving::start(&folder.path().join("data"), &config);
    // Another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let http = reqwest::Client::new();
    let sql = format!("{}/api/v1/sql", serving.api);

    let answer: Value = http
        .post(&sql)
        .json(&json!({"query": "SELECT 1 AS one, 'x' AS text"}))
        .send()
        .await
        .expect("sent")
        .json()
        .await
        .expect("JSON");
    assert_eq!(answer["rows"], json!([[1, "x"]]));
    assert_eq!(answer["columns"][0]["name"], "one");

    let arrow = http
        .post(&sql)
        .header("accept", "application/vnd.apache.arrow.stream")
        .json(&json!({"query": "SELECT 1 AS one"}))
        .send()
        .await
        .expect("sent");
    assert_eq!(
        arrow.headers()["content-type"],
        "application/vnd.apache.arrow.stream"
    );
    let bytes = arrow.bytes().await.expect("a body");
    assert_eq!(
        &bytes[..4],
        &[0xff; 4],
        "an Arrow IPC stream begins with the continuation marker"
    );

    let rows = [
        ("SELEC 1", 400, "/problems/sql-syntax"),
        ("SELECT * FROM nowhere", 404, "/problems/sql-not-found"),
        ("DELETE FROM signals", 403, "/problems/sql-read-only"),
        (
            "SELECT * FROM generate_series(1, 100)",
            422,
            "/problems/sql-row-limit",
        ),
    ];
    for (query, status, kind) in rows {
        let refused = http
            .post(&sql)
            .json(&json!({"query": query}))
            .send()
            .await
            .expect("sent");
        assert_eq!(refused.status().as_u16(), status, "{query}");
        assert_eq!(
            refused.headers()["content-type"],
            "application/problem+json",
            "{query}"
        );
        let problem: Value = refused.json().await.expect("JSON");
        assert_eq!(problem["type"], kind, "{query}: {problem}");
    }

    let vehicles = format!("{}/api/v1/vehicles", serving.api);
    let refused = http
        .post(&vehicles)
        .json(&json!({"id": "no spaces"}))
        .send()
        .await
        .expect("sent");
    assert_eq!(refused.status().as_u16(), 400);
    let made = http
        .post(&vehicles)
        .json(&json!({"id": "a"}))
        .send()
        .await
        .expect("sent");
    assert_eq!(made.status().as_u16(), 201);
    assert_eq!(made.headers()["etag"], "\"1\"");
    let twice = http
        .post(&vehicles)
        .json(&json!({"id": "a"}))
        .send()
        .await
        .expect("sent");
    assert_eq!(twice.status().as_u16(), 409);
    let stale = http
        .patch(format!("{vehicles}/a"))
        .header("if-match", "\"7\"")
        .json(&json!({"enabled": false}))
        .send()
        .await
        .expect("sent");
    assert_eq!(stale.status().as_u16(), 412);
    // A page of another origin in a browser on this machine, and one whose name was rebound to it.
    for (name, value) in [("origin", "http://evil.example"), ("host", "evil.example")] {
        let foreign = http.get(&vehicles).header(name, value).send().await;
        assert_eq!(foreign.expect("sent").status().as_u16(), 403, "{name}");
    }
    let document: Value = http
        .get(format!("{}/api/v1/openapi.json", serving.api))
        .send()
        .await
        .expect("sent")
        .json()
        .await
        .expect("JSON");
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1"))
    );
    assert!(
        document["paths"]["/api/v1/sql"]["post"].is_object(),
        "{document}"
    );
    let metrics = http
        .get(format!("{}/metrics", serving.api))
        .send()
        .await
        .expect("sent")
        .text()
        .await
        .expect("text");
    assert!(metrics.contains("milepost_fleet_vehicles 1"), "{metrics}");
    assert!(
        metrics.ends_with("# EOF\n"),
        "OpenMetrics ends with a marker"
    );
}

/// A connected subscriber, and where the reason of its end appears.
async fn connected(vehicle: &Vehicle, server: Server) -> (Client, mpsc::Receiver<String>) {
    let read = |file: &str| std::fs::read_to_string(vehicle.folder.join(file)).expect("a file");
    let credentials = Credentials {
        vehicle_id: "mine".into(),
        device_id: "mine-tcu".into(),
        chain_pem: read("cert.pem"),
        key_pem: read("key.pem"),
        ca_pem: read("ca.pem"),
        not_after_us: i64::MAX,
    };
    let (tell, told) = mpsc::channel();
    let transport = Transport::Tls(credentials.client_config().expect("usable credentials"));
    let mut options = ClientOptions::new(server, transport, "mine-tcu");
    options.reconnect = Reconnect::Never;
    options.observer = Some(std::sync::Arc::new(move |event| {
        if let ClientEvent::GaveUp(error) | ClientEvent::Lost(error) = event {
            // The test may have ended.
            let _ = tell.send(error.to_string());
        }
    }));
    let (client, _incoming) = Client::connect(options).await.expect("connected");
    (client, told)
}

#[test]
fn only_a_registered_enabled_device_gets_in_and_only_below_its_vehicle() {
    if !have("mosquitto_pub") || !have("openssl") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Serving::start(&folder.path().join("data"), &config_on_free_ports(""));
    let mine = Vehicle::registered(&serving, "mine", folder.path());
    let _other = Vehicle::registered(&serving, "other", folder.path());

    // Another vehicle's topics, and trees that are not a device's.
    for topic in [
        "dt/demo/drive/other/signals",
        "dt/demo",
        "$milepost/x",
        "bc/all",
    ] {
        let refused = mine.publish(topic, "{}");
        assert!(
            said(&refused).to_lowercase().contains("not authori"),
            "{topic}: {}",
            said(&refused)
        );
    }
    // A certificate of the right name from another CA.
    let forged = folder.path().join("forged");
    std::fs::create_dir(&forged).expect("a folder");
    std::fs::copy(mine.folder.join("ca.pem"), forged.join("ca.pem")).expect("copied");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=mine-tcu",
            "-keyout",
        ])
        .arg(forged.join("key.pem"))
        .arg("-out")
        .arg(forged.join("cert.pem"))
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", said(&made));
    let stranger = Vehicle {
        folder: forged,
        port: mine.port.clone(),
    };
    assert!(
        !stranger
            .publish("dt/demo/drive/mine/signals", "{}")
            .status
            .success()
    );
    // No certificate at all.
    let bare = Command::new("mosquitto_pub")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &mine.port,
            "-q",
            "1",
            "-t",
            "dt/demo/drive/mine/signals",
            "-m",
            "{}",
            "--cafile",
        ])
        .arg(mine.folder.join("ca.pem"))
        .output()
        .expect("mosquitto_pub runs");
    assert!(!bare.status.success());
    assert!(
        mine.publish("dt/demo/drive/mine/signals", "{}")
            .status
            .success()
    );
    serving.until("SELECT count(*) FROM messages", |n| n == 1.0);

    // Disabled while connected: out at once, told why, and not in again.
    // Another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (_client, told) = runtime.block_on(connected(&mine, serving.mqtt.into()));
    serving.client_ok(&["vehicle", "disable", "mine"]);
    let why = told
        .recv_timeout(harness::PATIENCE)
        .expect("the connection ends");
    assert!(why.to_lowercase().contains("administrative"), "{why}");
    assert!(
        !mine
            .publish("dt/demo/drive/mine/signals", "{}")
            .status
            .success()
    );
    serving.client_ok(&["vehicle", "enable", "mine"]);
    assert!(
        mine.publish("dt/demo/drive/mine/signals", "{}")
            .status
            .success()
    );
}
