//! The built-in mapping against a recorded drive (one minute of a Toyota RAV4) and the catalogue against the VSS.
//! The recordings are not part of the project: without `../shared/data` beside the checkout these tests say so
//! and pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use signals::can::dbc_text;
use signals::{CanDecoder, Catalogue, Mapping, Reading, Value, candump};

fn shared(file: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(file);
    let bytes = fs::read(&path).ok();
    if bytes.is_none() {
        eprintln!("skipped: {} is not there", path.display());
    }
    bytes
}

#[derive(Default)]
struct Series(Vec<(i64, f64)>);

impl Series {
    fn at(&self, time_us: i64) -> f64 {
        let next = self.0.partition_point(|&(time, _)| time < time_us);
        self.0[next.min(self.0.len() - 1)].1
    }

    fn min_max_mean(&self) -> (f64, f64, f64) {
        let values = || self.0.iter().map(|&(_, value)| value);
        let min = values().fold(f64::INFINITY, f64::min);
        let max = values().fold(f64::NEG_INFINITY, f64::max);
        (min, max, values().sum::<f64>() / self.0.len() as f64)
    }
}

fn series(readings: &[Reading]) -> BTreeMap<&str, Series> {
    let mut all: BTreeMap<&str, Series> = BTreeMap::new();
    for reading in readings {
        if let Value::Number(number) = reading.value {
            let series = all.entry(&reading.signal).or_default();
            series.0.push((reading.time_us, number));
        }
    }
    all
}

#[test]
fn a_recorded_drive_comes_out_right() {
    let (Some(log), Some(dbc), Some(gnss)) = (
        shared("comma2k19-rav4/drive.candump.log"),
        shared("comma2k19-rav4/toyota_new_mc_pt.dbc"),
        shared("comma2k19-rav4/gnss.csv"),
    ) else {
        return;
    };
    let decoder = CanDecoder::new(&dbc_text(&dbc), Some(Mapping::builtin())).expect("a good DBC");
    let log = String::from_utf8(log).expect("candump logs are ASCII");
    let frames: Vec<_> = candump::frames(&log)
        .collect::<Result<_, _>>()
        .expect("a good log");
    let mut readings = Vec::new();
    let summary = decoder.decode_all(&frames, &mut readings);
    // 16,060 frames belong to messages that the DBC does not describe.
    assert_eq!((summary.frames, summary.unknown), (53_800, 16_060));
    assert_eq!(summary.cut_short, 0);

    let all = series(&readings);
    let wheel = |row: u8, side: &str| format!("Vehicle.Chassis.Axle.Row{row}.Wheel.{side}.Speed");
    let (fl, fr, rl, rr) = (
        wheel(1, "Left"),
        wheel(1, "Right"),
        wheel(2, "Left"),
        wheel(2, "Right"),
    );
    // Minimum, maximum and mean, worked out from the log with other means.
    let rows = [
        ("Vehicle.Speed", 2_487, 29.38, 73.05, 61.52),
        (&fl, 4_974, 28.83, 71.77, 60.30),
        (&fr, 4_974, 28.72, 71.49, 60.30),
        (&rl, 4_974, 28.46, 71.58, 60.19),
        (&rr, 4_974, 28.65, 71.43, 60.16),
        (
            "Vehicle.Chassis.SteeringWheel.Angle",
            4_974,
            -4.6,
            2.5,
            -0.212,
        ),
        (
            "Vehicle.Chassis.Accelerator.PedalPosition",
            1_890,
            0.0,
            39.0,
            4.41,
        ),
        (
            "Vehicle.Powertrain.CombustionEngine.Speed",
            2_547,
            954.69,
            2_543.75,
            1_659.88,
        ),
        (
            "Vehicle.Powertrain.Transmission.SelectedGear",
            66,
            127.0,
            127.0,
            127.0,
        ),
    ];
    for (signal, count, min, max, mean) in rows {
        let series = &all[signal];
        let found = series.min_max_mean();
        eprintln!(
            "{signal}: {} readings, min, max, mean {found:.3?}",
            series.0.len()
        );
        assert_eq!(series.0.len(), count, "{signal}");
        assert!((found.0 - min).abs() < 0.01, "{signal}: {found:?}");
        assert!((found.1 - max).abs() < 0.01, "{signal}: {found:?}");
        assert!((found.2 - mean).abs() < 0.01, "{signal}: {found:?}");
    }

    // The driver never braked (cruise control did).
    let lamps = readings
        .iter()
        .filter(|reading| &*reading.signal == "Vehicle.Body.Lights.Brake.IsActive");
    assert_eq!(lamps.clone().count(), 2_487);
    assert!(
        lamps
            .clone()
            .all(|lamp| lamp.value == Value::from("INACTIVE"))
    );
    // Not mapped, so under their DBC names.
    assert_eq!(all["STEER_ANGLE_SENSOR.STEER_RATE"].0.len(), 4_974);
    assert!(
        !all.contains_key("STEER_ANGLE_SENSOR.STEER_FRACTION"),
        "part of the angle"
    );
    assert!(!all.contains_key("SPEED.SPEED"), "has its VSS name");
    // Timestamps are the recorder's.
    assert_eq!(all["Vehicle.Speed"].0[0].0, 1_533_226_488_230_570);

    speed_agrees_with_the_satellites(
        &all["Vehicle.Speed"],
        &String::from_utf8(gnss).expect("ASCII"),
    );
    acceleration_has_the_sign_of_the_change_of_speed(&all);
}

fn speed_agrees_with_the_satellites(speed: &Series, gnss: &str) {
    let mut ratios = Vec::new();
    for line in gnss.lines().skip(1) {
        let columns: Vec<f64> = line
            .split(',')
            .map(|column| column.parse().expect("a number"))
            .collect();
        let time_us = (columns[0] * 1e6) as i64;
        ratios.push(speed.at(time_us) / (columns[3] * 3.6));
    }
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    let worst = ratios
        .iter()
        .map(|ratio| (ratio - 1.0).abs())
        .fold(0.0, f64::max);
    eprintln!(
        "speed against GNSS: {} points, mean ratio {mean:.4}, worst error {worst:.3}",
        ratios.len()
    );
    assert!(ratios.len() > 500);
    assert!((mean - 1.0).abs() < 0.03, "{mean}");
    assert!(worst < 0.10, "{worst}");
}

fn acceleration_has_the_sign_of_the_change_of_speed(all: &BTreeMap<&str, Series>) {
    let speed = &all["Vehicle.Speed"];
    let felt = &all["Vehicle.Acceleration.Longitudinal"];
    let start = speed.0[0].0;
    let products: f64 = (2..115)
        .map(|half_seconds| {
            let at = start + half_seconds * 500_000;
            let change = (speed.at(at + 250_000) - speed.at(at - 250_000)) / 3.6 / 0.5;
            change * felt.at(at)
        })
        .sum();
    assert!(products > 0.0, "{products}");
}

#[test]
fn the_j1939_demo_file_is_read_by_parameter_group() {
    let Some(dbc) = shared("can-mf4/j1939-demo.dbc") else {
        return;
    };
    let decoder = CanDecoder::new(&dbc_text(&dbc), Some(Mapping::builtin())).expect("a good DBC");
    let line = "(1.0) can0 0CF00400#FFFFFF401FFFFFFF\n(2.0) can0 18FEF121#FF0050FFFFFFFFFF";
    let mut readings = Vec::new();
    for frame in candump::frames(line) {
        decoder.decode(&frame.expect("a good line"), &mut readings);
    }
    let found: Vec<_> = readings
        .iter()
        .map(|reading| (&*reading.signal, reading.value.clone()))
        .collect();
    assert_eq!(
        found,
        [
            (
                "Vehicle.Powertrain.CombustionEngine.Speed",
                Value::Number(1_000.0)
            ),
            ("Vehicle.Speed", Value::Number(80.0)),
        ]
    );
}

#[test]
fn our_catalogue_says_what_the_vss_says() {
    let Some(tree) = shared("vss/vss.json") else {
        return;
    };
    let tree = String::from_utf8(tree).expect("JSON is UTF-8");
    let vss = Catalogue::from_vss_json(&tree).expect("a VSS tree");
    assert!(vss.len() > 1_000, "{}", vss.len());
    for (path, ours) in Catalogue::builtin().iter() {
        let theirs = vss
            .get(path)
            .unwrap_or_else(|| panic!("{path} is not in the VSS"));
        assert_eq!(ours.unit, theirs.unit, "{path}");
        assert_eq!(ours.datatype, theirs.datatype, "{path}");
        assert_eq!(ours.allowed, theirs.allowed, "{path}");
    }
}
