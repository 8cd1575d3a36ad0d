//! Recorded drives through the whole system: `milepost simulate` replays raw CAN frames of a registered
//! vehicle, the server decodes them with the model's DBC, SQL answers on the recorded timestamps.

mod harness;

use std::{
    fs,
    path::{Path, PathBuf},
};

use harness::{Serving, config_with_sql, milepost};
use serde_json::json;

fn serving(folder: &Path) -> Serving {
    Serving::start(
        &folder.join("data"),
        &config_with_sql("max_rows = 1000000", ""),
    )
}

/// Runs `milepost simulate` to its end; what it reports with `--json`.
fn simulate(serving: &Serving, arguments: &[&str]) -> serde_json::Value {
    let server = serving.mqtt.to_string();
    let output = milepost()
        .args([
            "simulate",
            "--server",
            &server,
            "--api",
            &serving.api,
            "--speed",
            "max",
            "--json",
        ])
        .args(arguments)
        .output()
        .expect("it runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Waits until everything that was acknowledged is decoded.
fn settled(serving: &Serving, report: &serde_json::Value) {
    let acknowledged = report["acknowledged"].as_f64().expect("a number");
    assert!(acknowledged > 0.0, "{report}");
    serving.until("SELECT count(*) FROM messages", |n| n >= acknowledged);
}

#[test]
fn a_small_drive_comes_out_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let dbc = folder.path().join("small.dbc");
    // One Motorola and one Intel signal, one of them signed; one has no VSS mapping.
    fs::write(
        &dbc,
        "VERSION \"\"\n\nBU_: ECU\n\n\
         BO_ 180 SPEED: 8 ECU\n SG_ SPEED : 47|16@0+ (0.01,0) [0|250] \"km/h\" ECU\n\n\
         BO_ 291 ODDITY: 8 ECU\n SG_ LEAN : 0|12@1- (0.5,-10) [0|0] \"deg\" ECU\n",
    )
    .expect("written");
    let recording = folder.path().join("drive.candump");
    fs::write(
        &recording,
        "(1700000000.000000) can0 0B4#0000000000223300\n\
         (1700000000.250000) can0 123#FF0F000000000000\n\
         (1700000001.000001) can0 0B4#0000000000010000\n\
         (1700000001.500000) can0 7FF#00\n\
         not a frame\n",
    )
    .expect("written");
    let gnss = folder.path().join("gnss.csv");
    fs::write(
        &gnss,
        "unix_time_s,latitude_deg,longitude_deg,speed_m_s,altitude_m,bearing_deg\n\
         1700000000.500,48.5,9.25,24.3,300.0,90.0\n",
    )
    .expect("written");
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();

    let serving = serving(folder.path());
    let report = simulate(
        &serving,
        &[
            "--vehicle",
            "small",
            "--recording",
            &path(&recording),
            "--dbc",
            &path(&dbc),
            "--gnss",
            &path(&gnss),
        ],
    );
    assert_eq!(report["bad_lines"], 1, "{report}");
    settled(&serving, &report);

    let rows = serving.sql("SELECT signal, value, unit, time FROM signals WHERE signal IN ('Vehicle.Speed', 'ODDITY.LEAN', 'Vehicle.CurrentLocation.Latitude') ORDER BY time");
    assert_eq!(
        rows,
        vec![
            json!({"signal": "Vehicle.Speed", "value": 87.55, "unit": "km/h", "time": "2023-11-14T22:13:20Z"}),
            json!({"signal": "ODDITY.LEAN", "value": -10.5, "unit": null, "time": "2023-11-14T22:13:20.25Z"}),
            json!({"signal": "Vehicle.CurrentLocation.Latitude", "value": 48.5, "unit": "degrees", "time": "2023-11-14T22:13:20.5Z"}),
            json!({"signal": "Vehicle.Speed", "value": 2.56, "unit": "km/h", "time": "2023-11-14T22:13:21.000001Z"}),
        ]
    );
    // The frame that no DBC describes is still there, in the message as it came.
    assert_eq!(
        serving.number(
            "SELECT count(*) FROM messages WHERE content_type = 'application/vnd.milepost.can'"
        ),
        report["acknowledged"].as_f64().expect("a number") - 1.0
    );
}

/// The recordings beside a checkout; `None`, said aloud, where they are not.
fn shared_data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the checkout");
    let data = root.join("../shared/data");
    if data.join("comma2k19-rav4").is_dir() {
        return Some(data);
    }
    eprintln!("skipped: no recordings at {}", data.display());
    None
}

#[test]
fn a_recorded_rav4_agrees_with_its_own_satellite_receiver() {
    let Some(data) = shared_data() else { return };
    let drive = data.join("comma2k19-rav4");
    let path = |file: &str| drive.join(file).to_str().expect("UTF-8").to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let serving = serving(folder.path());
    let report = simulate(
        &serving,
        &[
            "--vehicle",
            "rav4",
            "--recording",
            &path("drive.candump.log"),
            "--dbc",
            &path("toyota_new_mc_pt.dbc"),
            "--gnss",
            &path("gnss.csv"),
        ],
    );
    settled(&serving, &report);

    // The receiver's own speed column, on the same clock, against the car's.
    let text = fs::read_to_string(drive.join("gnss.csv")).expect("readable");
    let fixes: Vec<Vec<f64>> = text
        .lines()
        .skip(1)
        .map(|line| {
            line.split(',')
                .map(|cell| cell.parse().expect("a number"))
                .collect()
        })
        .collect();
    let mean_kmh = fixes.iter().map(|fix| fix[3] * 3.6).sum::<f64>() / fixes.len() as f64;
    let speed = serving
        .number("SELECT avg(value) FROM signals WHERE signal = 'Vehicle.Speed' AND unit = 'km/h'");
    assert!(
        (speed / mean_kmh - 1.0).abs() < 0.03,
        "car {speed} km/h, receiver {mean_kmh} km/h"
    );
    for wheel in [
        "Row1.Wheel.Left",
        "Row1.Wheel.Right",
        "Row2.Wheel.Left",
        "Row2.Wheel.Right",
    ] {
        let mean = serving.number(&format!(
            "SELECT avg(value) FROM signals WHERE signal = 'Vehicle.Chassis.Axle.{wheel}.Speed'"
        ));
        assert!((mean / mean_kmh - 1.0).abs() < 0.03, "{wheel}: {mean} km/h");
    }
    let steering = serving.number("SELECT max(abs(value)) FROM signals WHERE signal = 'Vehicle.Chassis.SteeringWheel.Angle' AND unit = 'degrees'");
    assert!(
        (1.0..10.0).contains(&steering),
        "an almost straight road: {steering} degrees"
    );
    let brakes = serving.number("SELECT count(*) FROM signals WHERE signal LIKE 'Vehicle.Chassis.Brake%' OR signal LIKE '%Lights.Brake%'");
    assert!(brakes > 0.0);
    // Every fix, at its place and its time.
    assert_eq!(
        serving.number(
            "SELECT count(*) FROM signals WHERE signal = 'Vehicle.CurrentLocation.Latitude'"
        ),
        fixes.len() as f64
    );
    let first = serving.number("SELECT value FROM signals WHERE signal = 'Vehicle.CurrentLocation.Latitude' ORDER BY time LIMIT 1");
    assert_eq!(first, fixes[0][1]);
    let minute = serving.sql("SELECT min(time) AS first, max(time) AS last FROM signals");
    assert_eq!(
        minute,
        vec![
            json!({"first": "2018-08-02T16:14:48.230547Z", "last": "2018-08-02T16:15:48.223246Z"})
        ]
    );
    // What has no place in the VSS is kept under its DBC name.
    assert!(
        serving
            .number("SELECT count(DISTINCT signal) FROM signals WHERE signal NOT LIKE 'Vehicle.%'")
            > 50.0
    );
}

#[test]
fn drive_cycles_and_truck_signals_replay_too() {
    let Some(data) = shared_data() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let serving = serving(folder.path());
    let cycle = data.join("drive-cycles/4114555_1_2007-05-31.csv");
    let truck = data.join("truck-fms/signalsFmsRecording.csv");
    let mut sent = 0.0;
    for (vehicle, file) in [("cycle", &cycle), ("truck", &truck)] {
        let report = simulate(
            &serving,
            &[
                "--vehicle",
                vehicle,
                "--recording",
                file.to_str().expect("UTF-8"),
            ],
        );
        sent += report["acknowledged"].as_f64().expect("a number");
    }
    serving.until("SELECT count(*) FROM messages", |n| n == sent);
    let text = fs::read_to_string(&cycle).expect("readable");
    let mph: Vec<f64> = text
        .lines()
        .skip(1)
        .map(|line| {
            line.split(',')
                .nth(3)
                .expect("a cell")
                .parse()
                .expect("a number")
        })
        .collect();
    let top = mph.iter().fold(0.0_f64, |top, mph| top.max(*mph)) * 1.609_344;
    let speed = serving.number(
        "SELECT max(value) FROM signals WHERE vehicle_id = 'cycle' AND signal = 'Vehicle.Speed'",
    );
    assert!(
        (speed - top).abs() < 0.01,
        "{speed} km/h, {top} km/h in the file"
    );
    assert_eq!(
        serving.number(
            "SELECT count(*) FROM signals WHERE vehicle_id = 'cycle' AND signal = 'Vehicle.Speed'"
        ),
        mph.len() as f64
    );
    let rows = fs::read_to_string(&truck)
        .expect("readable")
        .lines()
        .count()
        - 1;
    let kept = serving.number("SELECT count(*) FROM signals WHERE vehicle_id = 'truck'");
    assert_eq!(kept, rows as f64);
    let vin = serving.sql("SELECT text FROM last_known_state WHERE vehicle_id = 'truck' AND signal = 'Vehicle.VehicleIdentification.VIN'");
    assert_eq!(vin.len(), 1);
}
