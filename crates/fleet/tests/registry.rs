//! Stories of vehicles, devices and models.

mod garage;

use std::{collections::BTreeMap, time::Duration};

use fleet::{
    Actor, Change, Denied, DirectoryCounts, FleetError, Kind, NewDevice, NewModel, NewVehicle,
    PageRequest, Patch, VehiclePatch,
};
use garage::{Garage, der, now_us};
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

const VIN: &str = "1HGCM82633A004352";

fn drain(changes: &mut Receiver<Change>) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match changes.try_recv() {
            Ok(Change::AccessLost { device_id }) => seen.push(format!("lost {device_id}")),
            Ok(Change::VehicleChanged { id }) => seen.push(format!("vehicle {id}")),
            Ok(Change::DeviceChanged { id }) => seen.push(format!("device {id}")),
            Ok(Change::ModelChanged { name }) => seen.push(format!("model {name}")),
            Err(TryRecvError::Empty) => return seen,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_vehicle_from_registration_to_deletion() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    let mut changes = fleet.subscribe_changes();

    fleet
        .put_model(
            anna,
            NewModel {
                name: "rav4".into(),
                ..NewModel::default()
            },
            None,
        )
        .await
        .unwrap();
    let new = NewVehicle {
        id: Some("car-1".into()),
        vin: Some(VIN.to_lowercase()),
        model: Some("rav4".into()),
        attributes: BTreeMap::from([("region".into(), "eu".into())]),
    };
    let created = fleet.create_vehicle(anna, new).await.unwrap();
    assert_eq!(created.version, 1);
    assert_eq!(created.vin.as_ref().unwrap().as_str(), VIN);
    assert!(created.enabled);
    assert_eq!(fleet.get_vehicle("car-1").await.unwrap(), created);
    assert_eq!(fleet.directory().model_of("car-1").unwrap(), "rav4");

    let patch = VehiclePatch {
        model: Patch::Clear,
        ..VehiclePatch::default()
    };
    let updated = fleet
        .update_vehicle(anna, "car-1", patch, Some(1))
        .await
        .unwrap();
    assert_eq!((updated.version, &updated.model), (2, &None));
    assert_eq!(
        (&updated.vin, &updated.attributes),
        (&created.vin, &created.attributes)
    );
    assert_eq!(fleet.directory().model_of("car-1"), None);

    garage.device("tcu-1", "car-1").await;
    garage.device("ivi-1", "car-1").await;
    let certificate = garage.certificate("tcu-1").await;
    fleet.delete_vehicle(anna, "car-1", Some(2)).await.unwrap();

    assert!(matches!(
        fleet.get_vehicle("car-1").await,
        Err(FleetError::NotFound {
            kind: Kind::Vehicle,
            ..
        })
    ));
    assert!(matches!(
        fleet.get_device("tcu-1").await,
        Err(FleetError::NotFound {
            kind: Kind::Device,
            ..
        })
    ));
    let left = fleet
        .list_certificates("tcu-1", &PageRequest::default())
        .await
        .unwrap()
        .items;
    assert_eq!(left.len(), 1);
    assert!(left[0].revoked_us.is_some());
    assert!(matches!(
        fleet.directory().identify(&der(&certificate.pem), now_us()),
        Err(Denied::Revoked { .. })
    ));
    assert_eq!(
        fleet.directory().counts(),
        DirectoryCounts {
            vehicles: 0,
            devices: 0,
            certificates: 1
        }
    );

    assert_eq!(
        drain(&mut changes),
        [
            "model rav4",
            "vehicle car-1",
            "vehicle car-1",
            "device tcu-1",
            "device ivi-1",
            "device tcu-1",
            "lost ivi-1",
            "device ivi-1",
            "lost tcu-1",
            "device tcu-1",
            "vehicle car-1",
        ]
    );
    let audit = garage.audit().await;
    assert!(
        audit[0].starts_with("system authority.create authority "),
        "{}",
        audit[0]
    );
    assert_eq!(
        audit[1..],
        [
            "person:anna model.put model rav4 done",
            "person:anna vehicle.create vehicle car-1 done",
            "person:anna vehicle.update vehicle car-1 done",
            "person:anna device.create device tcu-1 done",
            "person:anna device.create device ivi-1 done",
            "person:anna certificate.issue device tcu-1 done",
            "person:anna vehicle.delete vehicle car-1 done",
        ]
    );
}

#[tokio::test]
async fn registering_again_names_what_is_taken_and_changes_nothing() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    let with_vin = |id: &str, vin: Option<&str>| NewVehicle {
        id: Some(id.into()),
        vin: vin.map(str::to_owned),
        ..NewVehicle::default()
    };
    let first = fleet
        .create_vehicle(anna, with_vin("car-1", Some(VIN)))
        .await
        .unwrap();
    garage.device("tcu-1", "car-1").await;
    fleet
        .create_vehicle(anna, with_vin("car-2", None))
        .await
        .unwrap();
    fleet
        .create_vehicle(anna, with_vin("car-3", None))
        .await
        .unwrap();
    let before = garage.audit().await;

    let again = fleet
        .create_vehicle(anna, with_vin("car-1", None))
        .await
        .unwrap_err();
    assert_eq!(
        again.to_string(),
        "vehicle `car-1` is already registered; read or update the existing one"
    );
    let same_vin = fleet
        .create_vehicle(anna, with_vin("car-9", Some(VIN)))
        .await
        .unwrap_err();
    assert!(
        matches!(&same_vin, FleetError::AlreadyExists { kind: Kind::Vin, id } if id == VIN),
        "{same_vin}"
    );
    let patch = VehiclePatch {
        vin: Patch::Set(VIN.into()),
        ..VehiclePatch::default()
    };
    let taken = fleet
        .update_vehicle(anna, "car-2", patch, None)
        .await
        .unwrap_err();
    assert!(
        matches!(
            taken,
            FleetError::AlreadyExists {
                kind: Kind::Vin,
                ..
            }
        ),
        "{taken}"
    );
    let new = NewDevice {
        id: Some("tcu-1".into()),
        vehicle_id: "car-2".into(),
        kind: "tcu".into(),
    };
    let device = fleet.create_device(anna, new).await.unwrap_err();
    assert!(
        matches!(
            device,
            FleetError::AlreadyExists {
                kind: Kind::Device,
                ..
            }
        ),
        "{device}"
    );

    assert_eq!(fleet.get_vehicle("car-1").await.unwrap(), first);
    assert_eq!(fleet.get_device("tcu-1").await.unwrap().vehicle_id, "car-1");
    assert_eq!(fleet.get_vehicle("car-2").await.unwrap().vin, None);
    assert_eq!(garage.audit().await, before);
}

#[tokio::test]
async fn a_writer_with_an_old_version_is_told_the_current_one() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    garage.car(1).await;
    fleet
        .set_vehicle_enabled(anna, "car-1", false, Some(1))
        .await
        .unwrap();
    fleet
        .set_vehicle_enabled(anna, "car-1", true, Some(2))
        .await
        .unwrap();
    fleet
        .set_device_enabled(anna, "tcu-1", false, None)
        .await
        .unwrap();
    let model = || NewModel {
        name: "m".into(),
        ..NewModel::default()
    };
    fleet.put_model(anna, model(), None).await.unwrap();

    let patch = || VehiclePatch {
        attributes: Some(BTreeMap::from([("a".into(), "b".into())])),
        ..VehiclePatch::default()
    };
    for (what, refusal, now) in [
        (
            "update",
            fleet
                .update_vehicle(anna, "car-1", patch(), Some(1))
                .await
                .err(),
            3,
        ),
        (
            "disable",
            fleet
                .set_vehicle_enabled(anna, "car-1", false, Some(2))
                .await
                .err(),
            3,
        ),
        // Even where nothing would change: the caller saw something else.
        (
            "enable",
            fleet
                .set_vehicle_enabled(anna, "car-1", true, Some(9))
                .await
                .err(),
            3,
        ),
        (
            "delete",
            fleet.delete_vehicle(anna, "car-1", Some(2)).await.err(),
            3,
        ),
        (
            "device",
            fleet
                .set_device_enabled(anna, "tcu-1", true, Some(1))
                .await
                .err(),
            2,
        ),
        (
            "delete device",
            fleet.delete_device(anna, "tcu-1", Some(1)).await.err(),
            2,
        ),
        (
            "model",
            fleet.put_model(anna, model(), Some(7)).await.err(),
            1,
        ),
    ] {
        match refusal {
            Some(FleetError::Conflict { current, .. }) => assert_eq!(current, now, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    fleet
        .update_vehicle(anna, "car-1", patch(), Some(3))
        .await
        .unwrap();
    let unchanged = fleet
        .update_vehicle(anna, "car-1", patch(), Some(4))
        .await
        .unwrap();
    assert_eq!(unchanged.version, 4);
}

#[tokio::test]
async fn of_many_writers_with_one_version_one_wins() {
    let garage = Garage::open().await;
    garage.vehicle("car-1").await;
    let race = (0..16).map(|n| {
        let (fleet, anna) = (garage.fleet.clone(), garage.anna.clone());
        tokio::spawn(async move {
            let attributes = BTreeMap::from([("winner".into(), n.to_string())]);
            let patch = VehiclePatch {
                attributes: Some(attributes),
                ..VehiclePatch::default()
            };
            fleet.update_vehicle(&anna, "car-1", patch, Some(1)).await
        })
    });
    let mut wins = 0;
    for attempt in race.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            Ok(_) => wins += 1,
            Err(FleetError::Conflict { current: 2, .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(wins, 1);
    assert_eq!(garage.fleet.get_vehicle("car-1").await.unwrap().version, 2);
}

#[tokio::test]
async fn bad_input_is_refused_with_the_field_and_the_limit() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    garage.vehicle("car-1").await;
    let attributes = |name: &str, value: String| NewVehicle {
        attributes: BTreeMap::from([(name.to_owned(), value)]),
        ..NewVehicle::default()
    };
    let vehicles = [
        (
            NewVehicle {
                id: Some("a/b".into()),
                ..NewVehicle::default()
            },
            "vehicle id: '/'",
        ),
        (
            NewVehicle {
                vin: Some("short".into()),
                ..NewVehicle::default()
            },
            "vin: has 5",
        ),
        (
            NewVehicle {
                model: Some("none".into()),
                ..NewVehicle::default()
            },
            "model: `none` does not exist; put the model first",
        ),
        (
            attributes("a-b", String::new()),
            "attributes: the name \"a-b\"",
        ),
        (attributes("", String::new()), "attributes: the name \"\""),
        (
            attributes("a", "x".repeat(4096)),
            "attributes: have 4097 bytes; allowed are 4096",
        ),
    ];
    for (new, says) in vehicles {
        let refusal = fleet
            .create_vehicle(anna, new)
            .await
            .unwrap_err()
            .to_string();
        assert!(refusal.starts_with(says), "{refusal}");
    }
    let device = |vehicle_id: &str, kind: &str| NewDevice {
        id: None,
        vehicle_id: vehicle_id.into(),
        kind: kind.into(),
    };
    for (new, says) in [
        (device("car-1", ""), "kind: must be 1 to 64"),
        (device("car-1", "a b"), "kind: must be 1 to 64"),
        (device("#", "tcu"), "vehicle id: '#'"),
        (device("car-2", "tcu"), "vehicle `car-2` does not exist"),
    ] {
        let refusal = fleet
            .create_device(anna, new)
            .await
            .unwrap_err()
            .to_string();
        assert!(refusal.starts_with(says), "{refusal}");
    }
    let dbc = Some("x".repeat(8 * 1024 * 1024 + 1));
    let too_large = NewModel {
        name: "m".into(),
        dbc,
        mapping: None,
    };
    let refusal = fleet
        .put_model(anna, too_large, None)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(refusal, "dbc: has 8388609 bytes; allowed are 8388608");
    for name in ["", "a\nb", &"x".repeat(201)] {
        assert!(Actor::new(name).is_err());
    }
    assert_eq!(fleet.directory().counts().vehicles, 1);
}

#[tokio::test]
async fn lists_are_paged_to_the_end_without_gap_or_repeat() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    for n in 0..7 {
        garage.vehicle(&format!("car-{n}")).await;
        garage.device(&format!("tcu-{n}"), "car-0").await;
    }
    garage.device("other", "car-1").await;
    let mut cursor = None;
    let mut seen = Vec::new();
    loop {
        let page = fleet
            .list_vehicles(&PageRequest::new(3, cursor.take()).unwrap())
            .await
            .unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items.iter().map(|vehicle| vehicle.id.to_string()));
        // What happens before the cursor is not seen, what happens behind it is.
        if seen.len() == 3 {
            fleet.delete_vehicle(anna, "car-6", None).await.unwrap();
            garage.vehicle("car-00").await;
            garage.vehicle("car-55").await;
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(
        seen,
        [
            "car-0", "car-1", "car-2", "car-3", "car-4", "car-5", "car-55"
        ]
    );

    let of_one = PageRequest::new(7, None).unwrap();
    let page = fleet.list_devices(Some("car-0"), &of_one).await.unwrap();
    assert_eq!((page.items.len(), page.next), (7, None));
    let all = PageRequest::new(1000, None).unwrap();
    assert_eq!(fleet.list_devices(None, &all).await.unwrap().items.len(), 8);
    assert!(matches!(
        fleet.list_devices(Some("nobody"), &all).await,
        Err(FleetError::NotFound {
            kind: Kind::Vehicle,
            ..
        })
    ));
    let foreign = fleet
        .list_vehicles(&PageRequest::new(1, None).unwrap())
        .await
        .unwrap()
        .next;
    let foreign = PageRequest::new(1, foreign).unwrap();
    assert!(matches!(
        fleet.list_devices(None, &foreign).await,
        Err(FleetError::Invalid {
            field: "cursor",
            ..
        })
    ));

    for _ in 0..3 {
        garage.certificate("tcu-0").await;
    }
    let two = PageRequest::new(2, None).unwrap();
    let first = fleet.list_certificates("tcu-0", &two).await.unwrap();
    let rest = PageRequest::new(2, first.next).unwrap();
    let second = fleet.list_certificates("tcu-0", &rest).await.unwrap();
    assert_eq!(
        (first.items.len(), second.items.len(), second.next),
        (2, 1, None)
    );
}

#[tokio::test]
async fn the_audit_log_reads_backwards_and_by_object() {
    let garage = Garage::open().await;
    let fleet = &garage.fleet;
    garage.car(1).await;
    garage.car(2).await;
    let about = fleet
        .list_audit(Some((Kind::Device, "tcu-2")), &PageRequest::default())
        .await
        .unwrap()
        .items;
    let actions: Vec<_> = about.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["certificate.issue", "device.create"]);
    assert_eq!(
        about[1].details,
        serde_json::json!({ "vehicle": "car-2", "kind": "tcu" })
    );
    assert!((now_us() - about[0].time_us).abs() < 60_000_000);

    let mut cursor = None;
    let mut seen = Vec::new();
    loop {
        let request = PageRequest::new(2, cursor).unwrap();
        let page = fleet.list_audit(None, &request).await.unwrap();
        seen.extend(page.items.into_iter().map(|entry| entry.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 7);
    assert!(seen.is_sorted_by(|newer, older| newer > older));
}

#[tokio::test]
async fn models_are_put_read_and_listed() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    let model = |dbc: &str, mapping: Option<&str>| NewModel {
        name: "rav4".into(),
        dbc: Some(dbc.into()),
        mapping: mapping.map(str::to_owned),
    };
    let mut changes = fleet.subscribe_changes();
    let first = fleet
        .put_model(anna, model("VERSION \"1\"", None), Some(0))
        .await
        .unwrap();
    let same = fleet
        .put_model(anna, model("VERSION \"1\"", None), None)
        .await
        .unwrap();
    assert_eq!(first, same);
    assert_eq!(drain(&mut changes), ["model rav4"]);
    let second = fleet
        .put_model(anna, model("VERSION \"2\"", Some("[[signal]]")), Some(1))
        .await;
    let second = second.unwrap();
    assert_eq!((second.version, second.created_us), (2, first.created_us));
    assert_eq!(fleet.get_model("rav4").await.unwrap(), second);
    let listed = fleet
        .list_models(&PageRequest::default())
        .await
        .unwrap()
        .items;
    assert_eq!(
        (listed.len(), listed[0].has_dbc, listed[0].has_mapping),
        (1, true, true)
    );
    assert!(matches!(
        fleet.get_model("other").await,
        Err(FleetError::NotFound {
            kind: Kind::Model,
            ..
        })
    ));
}

#[tokio::test]
async fn an_id_is_made_where_none_is_given() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    let one = fleet
        .create_vehicle(anna, NewVehicle::default())
        .await
        .unwrap();
    let two = fleet
        .create_vehicle(anna, NewVehicle::default())
        .await
        .unwrap();
    assert!(one.id < two.id, "ids sort by age");
    let new = NewDevice {
        id: None,
        vehicle_id: one.id.to_string(),
        kind: "ivi".into(),
    };
    let device = fleet.create_device(anna, new).await.unwrap();
    assert_eq!(fleet.get_device(device.id.as_str()).await.unwrap(), device);
}

/// An HTTP client may hang up while its request is worked on, at any of its steps.
#[tokio::test]
async fn a_change_whose_caller_goes_away_is_whole() {
    let garage = Garage::open().await;
    let fleet = &garage.fleet;
    let leaf = der(&garage.car(1).await.pem);
    let mut changes = fleet.subscribe_changes();
    for steps in 1..=40 {
        let enabled = steps % 2 == 0;
        let mut change = Box::pin(fleet.set_vehicle_enabled(&garage.anna, "car-1", enabled, None));
        for _ in 0..steps {
            if futures::poll!(&mut change).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(change);
        // It is the only change under way, so the next notice about the vehicle is its own.
        let noticed = async {
            while !matches!(changes.recv().await.unwrap(), Change::VehicleChanged { .. }) {}
        };
        tokio::time::timeout(Duration::from_secs(60), noticed)
            .await
            .unwrap_or_else(|_| panic!("the change was lost after {steps} steps"));
        assert_eq!(fleet.get_vehicle("car-1").await.unwrap().enabled, enabled);
        assert_eq!(fleet.directory().identify(&leaf, now_us()).is_ok(), enabled);
    }
}
