//! Synthetic drives obey physics, whatever the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;

use fleet_sim::message::{Channel, Message};
use fleet_sim::synthetic::{
    BOLDEST, City, Doing, HARSHEST_BRAKING, Place, Powertrain, STRONGEST_ACCELERATION,
    VirtualVehicle,
};
use proptest::prelude::*;
use signals::{Reading, Value};

const START: i64 = 1_760_000_000_000_000;

fn readings(message: &Message) -> Vec<Reading> {
    let mut readings = Vec::new();
    signals::decode_json(&message.payload, 0, &mut readings).unwrap();
    readings
}

fn number(readings: &[Reading], path: &str) -> Option<f64> {
    readings
        .iter()
        .find(|r| &*r.signal == path)
        .map(|r| match r.value {
            Value::Number(number) => number,
            ref other => panic!("{path} is {other:?}"),
        })
}

fn metres_between(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (dlat, dlon) = ((b.0 - a.0).to_radians(), (b.1 - a.1).to_radians());
    let h = (dlat / 2.0).sin().powi(2)
        + a.0.to_radians().cos() * b.0.to_radians().cos() * (dlon / 2.0).sin().powi(2);
    2.0 * 6_371_009.0 * h.sqrt().asin()
}

fn stored(vehicle: &VirtualVehicle) -> f64 {
    match vehicle.powertrain() {
        Powertrain::Electric(battery) => battery.energy,
        Powertrain::Combustion(engine) => engine.fuel,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn twenty_minutes_of_any_vehicle_are_possible(seed in 0_u64..1_000, id in "[a-z]{1,8}") {
        let city = City::new(Place::STUTTGART, seed % 5);
        let mut vehicle = city.vehicle(&id, START);
        let network = city.network();
        let mut last: Option<(f64, (f64, f64), f64)> = None;
        let mut last_edge = None;
        for second in 0..1_200 {
            let (before, odometer) = (stored(&vehicle), vehicle.odometer());
            let mut out = Vec::new();
            vehicle.advance(START + second * 1_000_000, &mut out);
            let report = out.iter().rfind(|m| m.channel == Channel::Drive).unwrap();
            prop_assert_eq!(report.time_us, START + second * 1_000_000);
            let readings = readings(report);
            let get = |path: &str| number(&readings, path).unwrap();

            // On a road, and only on roads that hang together.
            let position = vehicle.position();
            let edge = network.edge(position.edge);
            prop_assert!((0.0..=edge.length).contains(&position.offset));
            if let Some(last_edge) = last_edge.replace(position.edge)
                && last_edge != position.edge
            {
                // Within a second at most two corners of short streets are passed.
                let from = network.edge(last_edge).to;
                let near = from == edge.from
                    || network.leaving(from).iter().any(|e| network.edge(*e).to == edge.from);
                prop_assert!(near, "from {:?} to {:?}", last_edge, position.edge);
            }

            let speed = get("Vehicle.Speed") / 3.6;
            prop_assert!(speed >= 0.0);
            prop_assert!(speed <= edge.limit * BOLDEST + 1.5, "{speed} of {}", edge.limit);
            let a = get("Vehicle.Acceleration.Longitudinal");
            prop_assert!((-HARSHEST_BRAKING - 0.01..=STRONGEST_ACCELERATION + 0.01).contains(&a));
            prop_assert!((0.0..360.0).contains(&get("Vehicle.CurrentLocation.Heading")));

            // The way on the ground is the way on the clock: never longer, shorter only in corners.
            let place = (get("Vehicle.CurrentLocation.Latitude"), get("Vehicle.CurrentLocation.Longitude"));
            let driven = vehicle.odometer() - odometer;
            prop_assert!(driven >= 0.0);
            if let Some((speed_before, place_before, _)) = last {
                let moved = metres_between(place_before, place);
                prop_assert!(moved <= driven * 1.005 + 0.05, "{moved} m seen, {driven} m driven");
                // Within a second the speed changes by at most the hardest braking.
                let fastest = speed_before.max(speed) + STRONGEST_ACCELERATION;
                prop_assert!(driven <= fastest + 0.05);
            }
            last = Some((speed, place, get("Vehicle.TraveledDistance")));

            // Energy comes only from braking (battery) or from a charger or pump.
            let gained = stored(&vehicle) - before;
            match (vehicle.doing(), vehicle.powertrain()) {
                (Doing::Replenishing, _) => prop_assert!(gained >= 0.0),
                (_, Powertrain::Combustion(_)) => prop_assert!(gained <= 0.0, "{gained} l"),
                // At most 70 kW for a second, downhill or braking.
                (_, Powertrain::Electric(_)) => prop_assert!(gained <= 70.0 / 3_600.0 * 1.01),
            }
            if second > 0 && driven > 0.0 && a >= 0.0 && edge.grade >= 0.0 && speed > 1.0 {
                prop_assert!(vehicle.powertrain().level() < 100.0);
            }
        }
    }

    #[test]
    fn a_seed_repeats_every_byte(seed in 0_u64..50, id in "[a-z]{1,8}") {
        let drive = || {
            let mut vehicle = City::new(Place::STUTTGART, seed).vehicle(&id, START);
            let mut out = Vec::new();
            for second in 0..300 {
                vehicle.advance(START + second * 1_000_000, &mut out);
            }
            out
        };
        prop_assert_eq!(drive(), drive());
    }
}

/// Everything some vehicles say in three hours.
static THREE_HOURS: LazyLock<Vec<(String, Vec<Message>)>> = LazyLock::new(|| {
    let city = City::new(Place::STUTTGART, 1);
    (0..12)
        .map(|n| {
            let id = format!("vehicle-{n:04}");
            let mut vehicle = city.vehicle(&id, START);
            let mut out = Vec::new();
            for second in 0..10_800 {
                vehicle.advance(START + second * 1_000_000, &mut out);
            }
            (id, out)
        })
        .collect()
});

#[test]
fn a_fleet_has_trips_faults_harsh_brakings_and_open_doors() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut trips = BTreeSet::new();
    for (id, messages) in &*THREE_HOURS {
        let mut under_way: Option<String> = None;
        for message in messages {
            let readings = readings(message);
            if message.channel == Channel::Trip {
                let text = |path: &str| {
                    readings
                        .iter()
                        .find(|r| &*r.signal == path)
                        .map(|r| match &r.value {
                            Value::Text(text) => text.to_string(),
                            other => panic!("{path} is {other:?}"),
                        })
                };
                let trip = text("Milepost.Trip.Id").unwrap();
                let duration = number(&readings, "Vehicle.TripDuration").unwrap();
                match text("Milepost.Trip.State").as_deref() {
                    Some("STARTED") => {
                        assert_eq!(under_way.replace(trip.clone()), None, "{id}");
                        assert_eq!(duration, 0.0);
                        assert!(trips.insert(trip), "{id}: the same trip twice");
                    }
                    Some("ENDED") => {
                        assert_eq!(under_way.take(), Some(trip), "{id}");
                        let metres = number(&readings, "Vehicle.TraveledDistanceSinceStart");
                        assert!(metres.unwrap() > 1_500.0);
                        assert!((60.0..3_600.0).contains(&duration), "{duration} s");
                    }
                    other => panic!("{other:?}"),
                }
                continue;
            }
            for reading in &readings {
                let what = match (&*reading.signal, &reading.value) {
                    ("Vehicle.Diagnostics.DTCCount", Value::Number(n)) if *n > 0.0 => "fault",
                    (
                        "Vehicle.Chassis.Brake.IsDriverEmergencyBrakingDetected",
                        Value::Flag(true),
                    ) => "harsh",
                    ("Vehicle.Cabin.Door.Row1.DriverSide.IsOpen", Value::Flag(true)) => "open door",
                    ("Vehicle.Cabin.Door.Row1.DriverSide.IsLocked", Value::Flag(false)) => {
                        "unlocked"
                    }
                    _ => continue,
                };
                *seen.entry(what).or_default() += 1;
            }
        }
    }
    assert!(trips.len() > 60, "{} trips", trips.len());
    for what in ["fault", "harsh", "open door", "unlocked"] {
        assert!(seen.contains_key(what), "no {what}: {seen:?}");
    }
}

/// Signals outside the VSS that we send on purpose.
const OWN: [&str; 2] = ["Milepost.Trip.Id", "Milepost.Trip.State"];

#[test]
fn signals_are_those_of_the_vss_with_its_types_and_ranges() {
    let vss = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/vss/vss.json");
    let Ok(text) = std::fs::read_to_string(&vss) else {
        eprintln!("skipped: {} is not there", vss.display());
        return;
    };
    let tree = serde_json::json!({
        "children": serde_json::from_str::<serde_json::Value>(&text).unwrap()
    });
    let mut checked = BTreeSet::new();
    for (_, messages) in &*THREE_HOURS {
        for reading in messages.iter().flat_map(readings) {
            if OWN.contains(&&*reading.signal) {
                continue;
            }
            let mut path = reading.signal.split('.');
            let node = path
                .by_ref()
                .fold(&tree, |node, part| &node["children"][part]);
            let datatype = node["datatype"]
                .as_str()
                .unwrap_or_else(|| panic!("{} is not in the VSS", reading.signal));
            match (&reading.value, datatype) {
                (Value::Flag(_), "boolean") => {}
                (Value::Text(_), "string" | "string[]") => {}
                (Value::Number(_), "float" | "double") => {}
                (Value::Number(n), "uint8") => {
                    assert!((0.0..=255.0).contains(n) && n.fract() == 0.0)
                }
                (Value::Number(n), "uint16") => {
                    assert!((0.0..=65_535.0).contains(n) && n.fract() == 0.0);
                }
                (Value::Number(n), "uint32") => {
                    assert!((0.0..=4_294_967_295.0).contains(n) && n.fract() == 0.0);
                }
                (Value::Number(n), "int8") => {
                    assert!((-128.0..=127.0).contains(n) && n.fract() == 0.0);
                }
                other => panic!("{}: {other:?}", reading.signal),
            }
            if let (Value::Number(n), Some(max)) = (&reading.value, node["max"].as_f64()) {
                assert!(*n <= max, "{} is {n}", reading.signal);
            }
            if let (Value::Text(text), Some(allowed)) = (&reading.value, node["allowed"].as_array())
            {
                assert!(
                    allowed.iter().any(|word| word == &**text),
                    "{}",
                    reading.signal
                );
            }
            checked.insert(reading.signal.to_string());
        }
    }
    assert!(checked.len() > 35, "{checked:?}");
}
