//! A fleet on the road: certificates, trips, replays, and an end in good order.

mod support;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleet_sim::client::Server;
use fleet_sim::fleet::{Drive, Fleet, FleetError, FleetOptions};
use fleet_sim::recording::{Recording, Speed};
use fleet_sim::simulate::{RecordingFiles, SimulateError, SimulateOptions, Simulation};
use mqtt::{Publish, ReasonCode};
use support::{Api, Broker, Script, Seen, TestCa};
use tokio_util::sync::CancellationToken;

fn options(broker: &Broker, ca: &TestCa, vehicles: usize) -> FleetOptions {
    let credentials = (1..=vehicles)
        .map(|n| ca.device(&format!("car-{n}")))
        .collect();
    FleetOptions {
        connects_per_second: 1_000,
        ..FleetOptions::new(broker.address.into(), credentials)
    }
}

/// What was published, until the broker is gone or as many clients took leave.
async fn messages(broker: &mut Broker, vehicles: usize) -> Vec<Publish> {
    let (mut messages, mut gone) = (Vec::new(), 0);
    while gone < vehicles {
        match broker.seen.recv().await.expect("the broker lives on") {
            Seen::Publish(_, publish, _) => messages.push(*publish),
            Seen::Disconnect => gone += 1,
            _ => {}
        }
    }
    messages
}

fn readings(publish: &Publish) -> Vec<signals::Reading> {
    let mut readings = Vec::new();
    signals::decode_json(&publish.payload, 0, &mut readings).unwrap();
    readings
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn every_vehicle_drives_with_its_own_certificate_and_is_acknowledged() {
    let ca = TestCa::new();
    let mut broker = Broker::start_tls(Script::default(), &ca).await;
    let fleet = Fleet::new(FleetOptions {
        interval: Duration::from_millis(50),
        ..options(&broker, &ca, 12)
    })
    .unwrap();
    let live = fleet.live();
    let stop = CancellationToken::new();
    let running = tokio::spawn(fleet.run(stop.clone()));
    // Until each has spoken five times, however long that takes.
    let (mut heard, mut spoken) = (Vec::new(), HashMap::<String, u64>::new());
    while spoken.values().filter(|times| **times >= 5).count() < 12 {
        let publish = broker.next(|seen| match seen {
            Seen::Publish(_, publish, _) => Some(publish),
            _ => None,
        });
        let publish = publish.await;
        let vehicle = publish.topic.split('/').nth(3).unwrap();
        *spoken.entry(vehicle.to_owned()).or_default() += 1;
        heard.push(*publish);
    }
    stop.cancel();
    heard.extend(messages(&mut broker, 12).await);
    let messages = heard;
    let report = running.await.unwrap().unwrap();

    let totals = report.totals;
    assert_eq!(totals, live.totals());
    assert_eq!(totals.acknowledged as usize, messages.len());
    assert_eq!(
        (
            totals.vehicles,
            totals.connected,
            totals.open,
            totals.dropped,
            totals.reconnects
        ),
        (12, 0, 0, 0, 0)
    );
    let mut ids = HashSet::new();
    let mut per_vehicle: HashMap<String, u64> = HashMap::new();
    let (mut started, mut interrupted) = (0, 0);
    for message in &messages {
        let levels: Vec<_> = message.topic.split('/').collect();
        let vehicle = levels[3];
        *per_vehicle.entry(vehicle.to_owned()).or_default() += 1;
        let properties = &message.properties;
        assert_eq!(properties.content_type.as_deref(), Some("application/json"));
        let (name, id) = &properties.user_properties[0];
        assert_eq!(name, "id");
        assert!(
            id.starts_with(&format!("{vehicle}-tcu-{}-", report.run)),
            "{id}"
        );
        assert!(ids.insert(id.to_string()), "{id} twice");
        let readings = readings(message);
        assert!(!readings.is_empty());
        if levels[2] == "trip" {
            let text = String::from_utf8_lossy(&message.payload);
            started += usize::from(text.contains("STARTED"));
            interrupted += usize::from(text.contains("INTERRUPTED"));
        }
    }
    assert!(
        started > 3 && started == interrupted,
        "{started}, {interrupted}"
    );
    for vehicle in &report.vehicles {
        assert_eq!(vehicle.acknowledged, per_vehicle[&vehicle.vehicle]);
        assert!(vehicle.acknowledged >= 5, "{vehicle:?}");
        assert_eq!((vehicle.connects, vehicle.open), (1, 0));
    }
}

#[tokio::test]
async fn a_fleet_stops_when_told_and_says_what_nobody_acknowledged() {
    let ca = TestCa::new();
    let mut broker = Broker::start_tls(
        Script {
            never_acknowledge: true,
            ..Script::default()
        },
        &ca,
    )
    .await;
    let fleet = Fleet::new(FleetOptions {
        interval: Duration::from_millis(20),
        drain: Duration::from_millis(100),
        ..options(&broker, &ca, 3)
    })
    .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(fleet.run(stop.clone()));
    for _ in 0..20 {
        broker
            .next(|seen| matches!(seen, Seen::Publish(..)).then_some(()))
            .await;
    }
    stop.cancel();
    let report = running.await.unwrap().unwrap();
    assert_eq!(report.totals.acknowledged, 0);
    assert!(report.totals.open >= 20, "{:?}", report.totals);
}

#[tokio::test]
async fn vehicles_nobody_takes_say_why() {
    let ca = TestCa::new();
    let broker = Broker::start_tls(
        Script {
            refuse: Some(ReasonCode::NotAuthorized),
            ..Script::default()
        },
        &ca,
    )
    .await;
    let fleet = Fleet::new(FleetOptions {
        // Enough for the refusals to arrive on a slow machine.
        duration: Some(Duration::from_secs(3)),
        drain: Duration::from_millis(10),
        ..options(&broker, &ca, 2)
    })
    .unwrap();
    let report = fleet.run(CancellationToken::new()).await.unwrap();
    for vehicle in &report.vehicles {
        let trouble = vehicle.trouble.as_ref().unwrap().to_string();
        assert!(trouble.contains("Not authorized"), "{trouble}");
    }
}

#[tokio::test]
async fn simulated_time_that_hurries_ends_now_and_never_lies_ahead() {
    let ca = TestCa::new();
    let mut broker = Broker::start_tls(Script::default(), &ca).await;
    let before = jiff::Timestamp::now().as_microsecond();
    let fleet = Fleet::new(FleetOptions {
        // Begins five minutes ago; a slow machine may be late for the first of them.
        duration: Some(Duration::from_secs(3)),
        speed: Speed::Times(100.0),
        ..options(&broker, &ca, 1)
    })
    .unwrap();
    fleet.run(CancellationToken::new()).await.unwrap();
    let now = jiff::Timestamp::now().as_microsecond();
    let times: Vec<_> = messages(&mut broker, 1)
        .await
        .iter()
        .flat_map(readings)
        .map(|reading| reading.time_us)
        .collect();
    assert!(times.is_sorted());
    assert!(times[0] < before - 30_000_000, "began in the past");
    assert!(*times.last().unwrap() <= now, "ended in the future");
}

#[tokio::test]
async fn a_recording_is_replayed_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = String::from("broken line\n");
    log.insert_str(0, "(100.000000) can0 025#0000000000000001\n");
    for n in 1..5_000 {
        log += &format!(
            "({}.{:06}) can0 0B4#{n:016X}\n",
            100 + n / 1_000,
            n % 1_000 * 1_000
        );
    }
    let path = write(dir.path(), "drive.candump", &log);
    let gnss = write(
        dir.path(),
        "gnss.csv",
        "unix_time_s,latitude_deg,longitude_deg,speed_m_s,altitude_m,bearing_deg\n\
         100.5,48.1,9.1,10,300,359\n101.5,48.2,9.2,10,300,-1\n",
    );
    let ca = TestCa::new();
    let mut broker = Broker::start_tls(Script::default(), &ca).await;
    let fleet = Fleet::new(FleetOptions {
        drive: Drive::Recorded(Recording::open(&path, Some(&gnss)).unwrap()),
        speed: Speed::Max,
        ..options(&broker, &ca, 2)
    })
    .unwrap();
    let report = fleet.run(CancellationToken::new()).await.unwrap();
    assert_eq!(report.bad_lines.count, 1);
    assert!(
        report.bad_lines.first[0]
            .to_string()
            .starts_with("drive.candump:2: ")
    );
    assert_eq!(report.totals.open, 0);

    let messages = messages(&mut broker, 2).await;
    for vehicle in ["car-1", "car-2"] {
        let of = |channel: &str| {
            let topic = format!("dt/telemetry/{channel}/{vehicle}/");
            let mine = messages.iter().filter(move |m| m.topic.starts_with(&topic));
            mine.cloned().collect::<Vec<_>>()
        };
        let frames: Vec<_> = of("can")
            .iter()
            .flat_map(|m| {
                let content_type = m.properties.content_type.as_deref();
                assert_eq!(content_type, Some("application/vnd.milepost.can"));
                signals::can::decode_frames(&m.payload).unwrap()
            })
            .collect();
        assert_eq!(frames.len(), 5_000);
        assert!(frames.is_sorted_by_key(|frame| frame.time_us));
        assert_eq!(frames[4_999].time_us, 104_999_000);
        let positions: Vec<_> = of("gnss").iter().flat_map(readings).collect();
        let headings: Vec<_> = positions
            .iter()
            .filter(|r| &*r.signal == "Vehicle.CurrentLocation.Heading")
            .map(|r| (r.time_us, r.value.clone()))
            .collect();
        assert_eq!(
            headings,
            [
                (100_500_000, signals::Value::Number(359.0)),
                (101_500_000, signals::Value::Number(359.0))
            ]
        );
    }
}

#[tokio::test]
async fn a_recording_goes_at_its_speed() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(
        dir.path(),
        "truck.csv",
        "field,signal,value,delay\n\
         current,Vehicle.Speed,1,30\ncurrent,Vehicle.Speed,2,30\ncurrent,Vehicle.Speed,3,0\n",
    );
    let ca = TestCa::new();
    let broker = Broker::start_tls(Script::default(), &ca).await;
    let fleet = Fleet::new(FleetOptions {
        drive: Drive::Recorded(Recording::open(&path, None).unwrap()),
        speed: Speed::Times(200.0),
        ..options(&broker, &ca, 1)
    })
    .unwrap();
    let report = fleet.run(CancellationToken::new()).await.unwrap();
    assert_eq!(report.totals.acknowledged, 3);
    // A minute at 200 times its speed takes 300 ms: a lower bound holds on any machine.
    assert!(
        report.elapsed >= Duration::from_millis(300),
        "{:?}",
        report.elapsed
    );
}

#[tokio::test]
async fn a_fleet_that_makes_no_sense_is_refused_before_it_connects() {
    let ca = TestCa::new();
    let base = FleetOptions::new("localhost:1".parse().unwrap(), vec![ca.device("car-1")]);
    let rows = [
        (
            FleetOptions {
                credentials: Vec::new(),
                ..base.clone()
            },
            "no vehicles",
        ),
        (
            FleetOptions {
                interval: Duration::from_millis(1),
                ..base.clone()
            },
            "10 ms",
        ),
        (
            FleetOptions {
                speed: Speed::Max,
                ..base.clone()
            },
            "no end",
        ),
        (
            FleetOptions {
                speed: Speed::Times(2.0),
                ..base.clone()
            },
            "needs a duration",
        ),
        (
            FleetOptions {
                connects_per_second: 0,
                ..base.clone()
            },
            "nobody ever connects",
        ),
    ];
    for (options, expected) in rows {
        match Fleet::new(options) {
            Err(FleetError::Options { problem }) => assert!(problem.contains(expected)),
            other => panic!("{expected}: {:?}", other.map(|_| ())),
        }
    }
}

#[tokio::test]
async fn a_simulation_provisions_drives_and_reports() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let ca = Arc::new(TestCa::new());
    let mut api = Api::start(Arc::clone(&ca), 0).await;
    let mut broker = Broker::start_tls(Script::default(), &ca).await;
    let server = Server::from(broker.address);
    let simulation = Simulation::prepare(
        SimulateOptions {
            // Enough for each to set out on a slow machine.
            duration: Some(Duration::from_secs(2)),
            ..SimulateOptions::new(server.clone(), &api.url, 3)
        },
        |_, _| {},
    )
    .await
    .unwrap();
    let report = simulation.run(CancellationToken::new()).await.unwrap();
    assert_eq!(
        report.totals.acknowledged as usize,
        messages(&mut broker, 3).await.len()
    );
    assert_eq!(report.vehicles[2].vehicle, "vehicle-0003");

    // The same with a recording: the model goes first, its vehicles are of it.
    let dir = tempfile::tempdir().unwrap();
    let dbc = "VERSION \"\"\n\nBU_: X\n\nBO_ 37 STEER: 8 X\n SG_ ANGLE : 7|12@0- (1.5,0) [-500|500] \"deg\" X\n";
    let files = RecordingFiles {
        recording: write(dir.path(), "a.candump", "(1.0) can0 025#00001000C00000FD\n"),
        dbc: Some(write(dir.path(), "my_car.dbc", dbc)),
        mapping: Some(write(
            dir.path(),
            "map.toml",
            "[[signal]]\ndbc = \"STEER.ANGLE\"\nvss = \"Vehicle.Chassis.SteeringWheel.Angle\"\n",
        )),
        gnss: None,
    };
    let recorded = SimulateOptions {
        recording: Some(files.clone()),
        speed: Speed::Max,
        ..SimulateOptions::new(server.clone(), &api.url, 1)
    };
    let simulation = Simulation::prepare(recorded.clone(), |_, _| {})
        .await
        .unwrap();
    let report = simulation.run(CancellationToken::new()).await.unwrap();
    assert_eq!(report.totals.acknowledged, 1);
    assert_eq!(report.vehicles[0].vehicle, "my_car-0001");
    let mut put = None;
    while let Ok((line, body)) = api.requests.try_recv() {
        if line == "PUT /api/v1/models/my_car" {
            put = Some(body);
        }
    }
    let put: serde_json::Value = serde_json::from_str(&put.unwrap()).unwrap();
    assert_eq!(put["dbc"], dbc);
    assert!(put["mapping"].as_str().unwrap().contains("STEER.ANGLE"));

    // Broken files are found before anything is asked of anybody.
    let broken = |files: RecordingFiles| SimulateOptions {
        recording: Some(files),
        ..SimulateOptions::new(server.clone(), "http://127.0.0.1:1", 1)
    };
    let bad_dbc = RecordingFiles {
        dbc: Some(write(dir.path(), "bad.dbc", "BO_ what\n")),
        ..files.clone()
    };
    let bad_mapping = RecordingFiles {
        mapping: Some(write(dir.path(), "bad.toml", "[[signal]]\n")),
        ..files.clone()
    };
    let lone_mapping = RecordingFiles { dbc: None, ..files };
    for (files, check) in [
        (
            bad_dbc,
            (|e| matches!(e, SimulateError::Dbc { .. })) as fn(&SimulateError) -> bool,
        ),
        (bad_mapping, |e| matches!(e, SimulateError::Mapping { .. })),
        (lone_mapping, |e| matches!(e, SimulateError::Options { .. })),
    ] {
        let error = Simulation::prepare(broken(files), |_, _| {})
            .await
            .err()
            .unwrap();
        assert!(check(&error), "{error}");
    }
}
