//! What SQL shows of what was sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use lake::{FleetDevice, FleetRows, FleetVehicle};
use serde_json::json;

use crate::world::{NOON, SECOND, drives, number, open, reading, received_at, record, rows};

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_looks_the_same_before_and_after_its_commit() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let readings = vec![
        reading("Vehicle.Speed", NOON, 87.25),
        reading("Vehicle.IsMoving", NOON + 1, true),
        reading("Vehicle.CurrentLocation.Text", NOON + 2, "garage \"7\" ü"),
    ];
    lake.ingest(vec![record(2, 7, "car-1", readings)])
        .await
        .expect("ingests");
    let all = "select * from signals order by seq";
    let message = "select id, source, type, topic, vehicle_id, device_id, time, received_time, \
                   content_type, content_encoding, payload, \"partition\", \"offset\", date \
                   from messages";
    let hot = (rows(&lake, all).await, rows(&lake, message).await);
    assert_eq!(
        hot.0,
        json!([
            [
                "car-1",
                "car-1-tcu",
                "Vehicle.Speed",
                "2026-11-20T10:00:00Z",
                87.25,
                null,
                "km/h",
                "2026-11-20T10:00:01Z",
                2,
                7,
                0,
                "2026-11-20"
            ],
            [
                "car-1",
                "car-1-tcu",
                "Vehicle.IsMoving",
                "2026-11-20T10:00:00.000001Z",
                1.0,
                null,
                null,
                "2026-11-20T10:00:01Z",
                2,
                7,
                1,
                "2026-11-20"
            ],
            [
                "car-1",
                "car-1-tcu",
                "Vehicle.CurrentLocation.Text",
                "2026-11-20T10:00:00.000002Z",
                null,
                "garage \"7\" ü",
                null,
                "2026-11-20T10:00:01Z",
                2,
                7,
                2,
                "2026-11-20"
            ],
        ])
    );
    assert_eq!(
        hot.1,
        json!([[
            "2-7",
            "/vehicles/car-1/devices/car-1-tcu",
            "telemetry",
            "dt/demo/fleet/car-1/telemetry",
            "car-1",
            "car-1-tcu",
            "2026-11-20T10:00:00Z",
            "2026-11-20T10:00:01Z",
            "application/json",
            null,
            "eyJuIjo3fQ==",
            2,
            7,
            "2026-11-20"
        ]])
    );
    assert_eq!(
        number(&lake, "select count(*) from silver.signals").await,
        0
    );
    lake.flush().await.expect("commits");
    assert_eq!((rows(&lake, all).await, rows(&lake, message).await), hot);
    assert_eq!(number(&lake, "select count(*) from live.signals").await, 0);
    assert_eq!(
        rows(&lake, "select * from silver.signals order by seq").await,
        hot.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_groups_work_across_hot_and_cold() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    lake.ingest(drives(0, 0..100)).await.expect("ingests");
    lake.flush().await.expect("commits");
    lake.ingest(drives(0, 100..130)).await.expect("ingests");
    lake.ingest(drives(1, 0..10)).await.expect("ingests");
    let by_vehicle = "select vehicle_id, count(*), sum(value) from signals \
                      where signal = 'Vehicle.Speed' group by vehicle_id order by 1";
    assert_eq!(
        rows(&lake, by_vehicle).await,
        json!([["car-0", 130, 8385.0], ["car-1", 10, 45.0]])
    );
    let window = "select count(*) from signals where vehicle_id = 'car-0' and \
                  time >= timestamptz '2026-11-20T10:01:35Z' and \
                  time < timestamptz '2026-11-20T10:01:45Z'";
    assert_eq!(number(&lake, window).await, 20);
    assert_eq!(
        number(
            &lake,
            "select count(*) from signals where signal = 'nothing'"
        )
        .await,
        0
    );
    // Names are not case-sensitive, as in PostgreSQL.
    assert_eq!(
        number(
            &lake,
            "SELECT COUNT(*) FROM Signals WHERE Vehicle_Id = 'car-1'"
        )
        .await,
        20
    );
    // A correlated subquery is answered, not replaced by NULL.
    assert_eq!(
        rows(
            &lake,
            "select v.vehicle_id, (select max(s.value) from signals s \
             where s.vehicle_id = v.vehicle_id and s.signal = 'Vehicle.Speed') \
             from (select distinct vehicle_id from signals) v order by 1",
        )
        .await,
        json!([["car-0", 129.0], ["car-1", 9.0]])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn late_and_absurd_times_are_kept_without_scattering_files() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let day = 86_400 * SECOND;
    let times = [
        0,
        NOON - 300 * day,
        NOON - day,
        NOON,
        NOON + 40_000 * day,
        i64::MAX,
        i64::MIN,
    ];
    let records = (0_u64..)
        .zip(times)
        .map(|(offset, time)| {
            received_at(
                NOON,
                0,
                offset,
                "car-0",
                vec![reading("Vehicle.Speed", time, 1.0)],
            )
        })
        .collect();
    lake.ingest(records).await.expect("ingests");
    let all = "select time, date from signals order by time";
    let hot = rows(&lake, all).await;
    lake.flush().await.expect("commits");
    assert_eq!(rows(&lake, all).await, hot);
    assert_eq!(hot[0], json!(["0001-01-01T00:00:00Z", "2026-11-20"]));
    assert_eq!(hot[6], json!(["9999-12-30T22:00:00.999999Z", "2026-11-20"]));
    assert_eq!(hot[3], json!(["2026-11-19T10:00:00Z", "2026-11-20"]));
    let days: Vec<_> = std::fs::read_dir(dir.path().join("silver/signals"))
        .expect("lists")
        .map(|entry| {
            entry
                .expect("lists")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .filter(|name| name.starts_with("date="))
        .collect();
    assert_eq!(days, ["date=2026-11-20"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn vehicles_join_the_registry_with_when_they_were_heard() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    assert_eq!(rows(&lake, "select * from vehicles").await, json!([]));
    lake.set_fleet_source(Arc::new(|| {
        let vehicle = |id: &str, vin: Option<&str>| FleetVehicle {
            id: id.to_owned(),
            vin: vin.map(str::to_owned),
            model: Some("rav4".to_owned()),
            enabled: id == "car-0",
            attributes: BTreeMap::from([("depot".to_owned(), "Köln \"Süd\"".to_owned())]),
            created_us: NOON,
        };
        let device = FleetDevice {
            id: "car-0-tcu".to_owned(),
            vehicle_id: "car-0".to_owned(),
            kind: "tcu".to_owned(),
            enabled: true,
            created_us: NOON,
        };
        Box::pin(async move {
            Ok(FleetRows {
                vehicles: vec![vehicle("car-0", Some("JTM123")), vehicle("car-9", None)],
                devices: vec![device],
            })
        })
    }))
    .await;
    lake.ingest(vec![record(
        0,
        0,
        "car-0",
        vec![reading("Vehicle.Speed", NOON, 1.0)],
    )])
    .await
    .expect("ingests");
    assert_eq!(
        rows(&lake, "select * from vehicles order by vehicle_id").await,
        json!([
            [
                "car-0",
                "JTM123",
                "rav4",
                true,
                "{\"depot\":\"Köln \\\"Süd\\\"\"}",
                "2026-11-20T10:00:00Z",
                "2026-11-20T10:00:01Z"
            ],
            [
                "car-9",
                null,
                "rav4",
                false,
                "{\"depot\":\"Köln \\\"Süd\\\"\"}",
                "2026-11-20T10:00:00Z",
                null
            ],
        ])
    );
    assert_eq!(
        rows(
            &lake,
            "select v.vin, d.device_id, s.value from fleet.vehicles v \
             join fleet.devices d using (vehicle_id) join signals s using (vehicle_id)",
        )
        .await,
        json!([["JTM123", "car-0-tcu", 1.0]])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_says_what_there_is() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = open(dir.path()).await;
    let tables = "select table_schema || '.' || table_name from information_schema.tables \
                  where table_schema not in ('information_schema', 'pg_catalog') order by 1";
    assert_eq!(
        rows(&lake, tables).await,
        json!([
            ["bronze.messages"],
            ["fleet.devices"],
            ["fleet.vehicles"],
            ["live.messages"],
            ["live.signals"],
            ["public.last_known_state"],
            ["public.messages"],
            ["public.signals"],
            ["public.vehicles"],
            ["silver.signals"]
        ])
    );
    let columns = rows(&lake, "describe silver.signals").await;
    assert_eq!(columns.as_array().map(Vec::len), Some(12));
    assert!(rows(&lake, "explain select * from signals").await[0].is_array());
    assert!(
        rows(&lake, "show tables")
            .await
            .as_array()
            .is_some_and(|all| all.len() >= 10)
    );
}
