//! Recordings: what each format means, what is wrong with a line, and the real files if they are
//! there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleet_sim::message::{Channel, Message};
use fleet_sim::recording::{BadLines, Recording, RecordingError, ReplayOptions};
use signals::{Reading, Value};

const START: i64 = 1_700_000_000_000_000;

fn write(name: &str, text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn replay(recording: &Recording) -> Result<(Vec<Message>, BadLines), RecordingError> {
    let mut messages = recording.messages(ReplayOptions {
        window: Duration::from_secs(1),
        start_us: START,
    })?;
    let all = (&mut messages).collect::<Result<_, _>>()?;
    Ok((all, messages.bad_lines()))
}

fn readings(messages: &[Message]) -> Vec<Reading> {
    let mut readings = Vec::new();
    for message in messages {
        signals::decode_json(&message.payload, 0, &mut readings).unwrap();
    }
    readings
}

/// `time in ms after the start: signal = value` for every reading.
fn rows(messages: &[Message], start_us: i64) -> Vec<String> {
    readings(messages)
        .iter()
        .map(|r| {
            let name = r.signal.trim_start_matches("Vehicle.");
            let value = match &r.value {
                Value::Number(number) => format!("{number:.3}"),
                Value::Flag(flag) => flag.to_string(),
                Value::Text(text) => format!("{text:?}"),
            };
            format!("{}: {name} = {value}", (r.time_us - start_us) / 1_000)
        })
        .collect()
}

#[test]
fn truck_delays_come_after_their_row() {
    let (_dir, path) = write(
        "truck.csv",
        "field,signal,value,delay\n\
         current,Vehicle.CurrentLocation.Latitude,43.4,0\n\
         current,Vehicle.Speed,22.5,0.998\n\
         current,Vehicle.IsMoving,True,0\n\
         current,Vehicle.Speed,28,2.5\n\
         current,Vehicle.Tachograph.Driver.Driver1.WorkingState,DRIVE,0\n\
         current,Vehicle.VehicleIdentification.VIN,NAN,0\n",
    );
    let (messages, bad) = replay(&Recording::open(&path, None).unwrap()).unwrap();
    assert_eq!(bad.count, 0);
    assert_eq!(
        rows(&messages, START),
        [
            "0: CurrentLocation.Latitude = 43.400",
            "0: Speed = 22.500",
            "998: IsMoving = true",
            "998: Speed = 28.000",
            "3498: Tachograph.Driver.Driver1.WorkingState = \"DRIVE\"",
            "3498: VehicleIdentification.VIN = \"NAN\"",
        ]
    );
    // The first second, and what came later.
    assert_eq!(messages.len(), 2);
    assert!(messages.iter().all(|m| m.channel == Channel::Drive));
}

#[test]
fn drive_cycles_are_utc_kilometres_per_hour_and_metres() {
    let (_dir, path) = write(
        "cycle.csv",
        "timestamp,cycle_sec,timestep,speed_mph,accel_meters_ps\r\n\
         2007-08-22 07:14:25,0,50352,0.0,0.0\r\n\
         2007-08-22 07:14:26,1,1,10.0,10.0\r\n\
         2007-08-22 09:14:26,1,7200,20.0,10.0\r\n",
    );
    let (messages, _) = replay(&Recording::open(&path, None).unwrap()).unwrap();
    let start = "2007-08-22T07:14:25Z".parse::<jiff::Timestamp>().unwrap();
    assert_eq!(
        rows(&messages, start.as_microsecond()),
        [
            "0: Speed = 0.000",
            "1000: Speed = 16.093",
            "1000: Acceleration.Longitudinal = 4.470",
            "7201000: Speed = 32.187", // no acceleration across a gap of two hours
        ]
    );
}

#[test]
fn bad_lines_are_reported_by_number_and_reason_and_the_rest_is_replayed() {
    let long = format!("(1.0) can0 {}", "1".repeat(10_000));
    /// The number of a bad line and a word of the reason.
    type Bad = &'static [(u64, &'static str)];
    let rows: [(&str, String, Bad); 3] = [
        (
            "a.candump",
            format!(
                "(1.000000) can0 025#00\nnonsense\n\n(1.1) can0 XYZ#00\n{long}\n(1.2) can0 025#01\n(1.3) ca"
            ),
            &[
                (2, "time"),
                (4, "identifier"),
                (5, "longer than 4096"),
                (7, "columns"),
            ],
        ),
        (
            "b.csv",
            "timestamp,cycle_sec,timestep,speed_mph,accel_meters_ps\n\
             2007-08-22 07:14:25,0,1,0.0,0.0\n\
             yesterday,0,1,0.0,0.0\n\
             2007-08-22 07:14:26,0,1,fast,0.0\n\
             2007-08-22 07:14:27,0,1,900,0.0\n\
             2007-08-22 07:14:28,0\n"
                .into(),
            &[
                (3, "`timestamp` is `yesterday`"),
                (4, "`fast`"),
                (5, "outside"),
                (6, "only 2 columns"),
            ],
        ),
        (
            "c.csv",
            "field,signal,value,delay\n\
             current,Vehicle.Speed,1,0\n\
             target,Vehicle.Speed,1,0\n\
             current,,1,0\n\
             current,Vehicle.Speed,1,-5\n\
             current,Vehicle.Speed,1,inf\n"
                .into(),
            &[
                (3, "target"),
                (4, "`signal` is empty"),
                (5, "outside"),
                (6, "not a number"),
            ],
        ),
    ];
    for (name, text, expected) in rows {
        let (_dir, path) = write(name, text);
        let (messages, bad) = replay(&Recording::open(&path, None).unwrap()).unwrap();
        assert!(!messages.is_empty(), "{name}");
        let found: Vec<_> = bad.first.iter().map(|bad| bad.line).collect();
        let lines: Vec<_> = expected.iter().map(|(line, _)| *line).collect();
        assert_eq!(found, lines, "{name}: {bad:?}");
        for (bad, (_, reason)) in bad.first.iter().zip(expected) {
            assert!(bad.reason.contains(reason), "{bad}");
            assert_eq!(bad.file, name);
        }
    }
}

#[test]
fn a_thousand_bad_lines_are_counted_and_twenty_kept() {
    let text = "(1.0) can0 025#00\n".to_owned() + &"rubbish\n".repeat(1_000);
    let (_dir, path) = write("a.candump", text);
    let (_, bad) = replay(&Recording::open(&path, None).unwrap()).unwrap();
    assert_eq!((bad.count, bad.first.len()), (1_000, 20));
}

#[test]
fn what_is_no_recording_is_refused_with_a_reason() {
    let (_dir, other) = write("a.txt", "hello\n");
    let (_dir2, empty) = write("b.txt", "");
    let (_dir3, hopeless) = write("c.candump", b"(1.0) nothing good\n\xff\xfe\n");
    let (_dir4, truck) = write("d.csv", "field,signal,value,delay\ncurrent,a,1,0\n");
    let (_dir5, gnss) = write("e.csv", "unix_time_s,latitude_deg\n1,2\n");
    let (_dir6, can) = write("f.candump", "(1.0) can0 025#00\n");
    for path in [&other, &empty] {
        let error = Recording::open(path, None).unwrap_err();
        assert!(matches!(error, RecordingError::Unknown { .. }), "{error}");
    }
    let error = replay(&Recording::open(&hopeless, None).unwrap()).unwrap_err();
    assert!(error.to_string().contains("2 were passed over"), "{error}");
    let error = Recording::open(&truck, Some(&gnss)).unwrap_err();
    assert!(
        matches!(error, RecordingError::GnssBeside { .. }),
        "{error}"
    );
    let error = Recording::open(&can, Some(&gnss)).unwrap_err();
    assert!(
        error.to_string().contains("no column `longitude_deg`"),
        "{error}"
    );
    let error = Recording::open(Path::new("/nowhere/x"), None).unwrap_err();
    assert!(matches!(error, RecordingError::Read { .. }), "{error}");
}

#[test]
fn a_clock_that_goes_back_begins_a_new_message_and_loses_nothing() {
    let (_dir, path) = write(
        "a.candump",
        "(10.0) can0 025#00\n(10.1) can0 025#01\n(5.0) can0 025#02\n(5.1) can0 025#03\n",
    );
    let (messages, _) = replay(&Recording::open(&path, None).unwrap()).unwrap();
    let times: Vec<_> = messages.iter().map(|m| m.time_us).collect();
    assert_eq!(times, [10_100_000, 5_100_000]);
}

/// A recording beside the checkout, if it is there.
fn real(path: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("../shared/data").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there", path.display());
    None
}

#[test]
fn the_real_drive_comes_out_whole_with_its_own_times() {
    let (Some(log), Some(gnss)) = (
        real("comma2k19-rav4/drive.candump.log"),
        real("comma2k19-rav4/gnss.csv"),
    ) else {
        return;
    };
    let (messages, bad) = replay(&Recording::open(&log, Some(&gnss)).unwrap()).unwrap();
    assert_eq!(bad, BadLines::default());
    assert!(messages.is_sorted_by_key(|m| m.time_us));
    let (can, gnss): (Vec<_>, Vec<_>) = messages
        .into_iter()
        .partition(|m| m.channel == Channel::Can);
    let frames: usize = can
        .iter()
        .map(|m| signals::can::decode_frames(&m.payload).unwrap().len())
        .sum();
    assert_eq!(frames, 53_800);
    let latitudes: Vec<_> = readings(&gnss)
        .into_iter()
        .filter(|r| &*r.signal == "Vehicle.CurrentLocation.Latitude")
        .collect();
    assert_eq!(latitudes[0].time_us, 1_533_226_488_301_000);
    assert_eq!(latitudes[0].value, Value::Number(37.720_997_7));
    let lines = fs::read_to_string(real("comma2k19-rav4/gnss.csv").unwrap()).unwrap();
    assert_eq!(latitudes.len(), lines.lines().count() - 1);
}

#[test]
fn the_real_drive_cycles_and_trucks_replay_without_a_bad_line() {
    let mut counts = BTreeMap::new();
    for folder in ["drive-cycles", "truck-fms"] {
        let Some(folder) = real(folder) else { return };
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|kind| kind != "csv") {
                continue;
            }
            let (messages, bad) = replay(&Recording::open(&path, None).unwrap()).unwrap();
            assert_eq!(bad, BadLines::default(), "{}", path.display());
            let readings = readings(&messages);
            for reading in &readings {
                if let ("Vehicle.Acceleration.Longitudinal", Value::Number(a)) =
                    (&*reading.signal, &reading.value)
                {
                    assert!(a.abs() < 15.0, "{}: {a} m/s²", path.display());
                }
            }
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            counts.insert(name, readings.len());
        }
    }
    assert_eq!(counts["signalsFmsRecording.csv"], 3_989);
    assert_eq!(counts["signalsCovesaCvRecording.csv"], 1_885);
    assert_eq!(counts.len(), 8);
}
