//! Stories of stopping, dying, and coming back to files that somebody has touched.

mod garage;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use fleet::{Denied, Fleet, FleetError, NewModel, NewVehicle, PageRequest};
use garage::{Garage, der, now_us, request};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let garage = Garage::open().await;
    let (one, two, three) = (
        garage.car(1).await,
        garage.car(2).await,
        garage.car(3).await,
    );
    let anna = garage.anna.clone();
    let model = NewModel {
        name: "rav4".into(),
        dbc: Some("VERSION".into()),
        mapping: None,
    };
    garage.fleet.put_model(&anna, model, None).await.unwrap();
    let modelled = NewVehicle {
        id: Some("car-4".into()),
        model: Some("rav4".into()),
        ..NewVehicle::default()
    };
    garage.fleet.create_vehicle(&anna, modelled).await.unwrap();
    garage
        .fleet
        .set_vehicle_enabled(&anna, "car-2", false, None)
        .await
        .unwrap();
    garage
        .fleet
        .revoke_certificate(&anna, &three.serial)
        .await
        .unwrap();
    garage.device("gone", "car-1").await;
    let gone = garage.certificate("gone").await;
    garage
        .fleet
        .delete_device(&anna, "gone", None)
        .await
        .unwrap();

    let all = PageRequest::new(1000, None).unwrap();
    let vehicles = garage.fleet.list_vehicles(&all).await.unwrap().items;
    let devices = garage.fleet.list_devices(None, &all).await.unwrap().items;
    let certificates = garage
        .fleet
        .list_certificates("tcu-3", &all)
        .await
        .unwrap()
        .items;
    let (counts, audit) = (garage.fleet.directory().counts(), garage.audit().await);
    let authority = garage.fleet.ca().fingerprint();

    let garage = garage.reopen().await;
    let fleet = &garage.fleet;
    assert_eq!(fleet.list_vehicles(&all).await.unwrap().items, vehicles);
    assert_eq!(fleet.list_devices(None, &all).await.unwrap().items, devices);
    assert_eq!(
        fleet.list_certificates("tcu-3", &all).await.unwrap().items,
        certificates
    );
    assert_eq!(
        fleet.get_model("rav4").await.unwrap().dbc.as_deref(),
        Some("VERSION")
    );
    assert_eq!(fleet.ca().fingerprint(), authority);
    assert_eq!(garage.audit().await, audit, "and no second CA");
    let directory = fleet.directory();
    assert_eq!(directory.counts(), counts);
    assert_eq!(directory.model_of("car-4").unwrap(), "rav4");
    directory.identify(&der(&one.pem), now_us()).unwrap();
    for (certificate, refusal) in [
        (&two, "vehicle `car-2` of device `tcu-2` is disabled"),
        (&three, "was revoked at"),
        (&gone, "was revoked at"),
    ] {
        let denied = directory
            .identify(&der(&certificate.pem), now_us())
            .unwrap_err()
            .to_string();
        assert!(denied.contains(refusal), "{denied}");
    }
}

/// The files as a killed process leaves them: taken while everything is open, after each answer.
#[tokio::test]
async fn what_was_answered_survives_a_kill() {
    let garage = Garage::open().await;
    let image = tempfile::tempdir().unwrap();
    for n in 1..=5 {
        let certificate = garage.car(n).await;
        let copy = image.path().join(n.to_string());
        copy_tree(garage.path(), &copy);
        let reborn = Fleet::open(&copy).await.unwrap();
        assert_eq!(reborn.directory().counts().certificates, n as usize);
        reborn
            .directory()
            .identify(&der(&certificate.pem), now_us())
            .unwrap();

        garage
            .fleet
            .set_vehicle_enabled(&garage.anna, &format!("car-{n}"), false, None)
            .await
            .unwrap();
        let copy = image.path().join(format!("{n}-disabled"));
        copy_tree(garage.path(), &copy);
        let reborn = Fleet::open(&copy).await.unwrap();
        assert!(matches!(
            reborn
                .directory()
                .identify(&der(&certificate.pem), now_us()),
            Err(Denied::VehicleDisabled { .. })
        ));
    }
}

/// Power cut in the middle of writing the log: the torn change is gone, all before it are there.
#[tokio::test]
async fn a_torn_log_loses_only_what_was_not_answered() {
    let garage = Garage::open().await;
    garage.vehicle("car-1").await;
    let wal = garage.path().join("fleet.db-wal");
    let answered = fs::metadata(&wal).unwrap().len();
    garage.vehicle("car-2").await;
    let full = fs::metadata(&wal).unwrap().len();
    assert!(full > answered);
    let image = tempfile::tempdir().unwrap();
    for cut in [answered, answered + 1, (answered + full) / 2, full - 1] {
        let copy = image.path().join(cut.to_string());
        copy_tree(garage.path(), &copy);
        let torn = fs::OpenOptions::new()
            .write(true)
            .open(copy.join("fleet.db-wal"))
            .unwrap();
        torn.set_len(cut).unwrap();
        fs::remove_file(copy.join("fleet.db-shm")).unwrap();
        let reborn = Fleet::open(&copy).await.unwrap();
        reborn.get_vehicle("car-1").await.unwrap();
        assert!(matches!(
            reborn.get_vehicle("car-2").await,
            Err(FleetError::NotFound { .. })
        ));
        assert_eq!(reborn.directory().counts().vehicles, 1);
    }
}

#[tokio::test]
async fn two_processes_do_not_share_a_directory() {
    let garage = Garage::open().await;
    let second = Fleet::open(garage.path()).await.unwrap_err();
    assert!(matches!(second, FleetError::InUse { .. }), "{second}");
    garage.reopen().await;
}

#[tokio::test]
async fn secrets_have_modes() {
    let garage = Garage::open().await;
    let at = |name: &str| garage.path().join(name);
    garage.car(1).await;
    assert_eq!(mode(&at("ca")), 0o700);
    assert_eq!(mode(&at("ca/ca.key")), 0o600);
    assert_eq!(mode(&at("ca/ca.pem")), 0o644);
    assert_eq!(mode(&at("fleet.db")), 0o600);
    assert_eq!(mode(&at("fleet.db-wal")), 0o600);
    assert!(!at("ca.new").exists());
    let key = fs::read_to_string(at("ca/ca.key")).unwrap();
    let shown = format!("{:?} {:?}", garage.fleet, garage.fleet.ca());
    assert!(!key.lines().any(|line| shown.contains(line)));
}

#[tokio::test]
async fn a_key_that_others_can_read_is_not_used() {
    let garage = Garage::open().await;
    let (dir, key) = (garage.dir, "ca/ca.key");
    drop(garage.fleet);
    let path = dir.path().join(key);
    for (bits, refused) in [
        (0o640, true),
        (0o604, true),
        (0o660, true),
        (0o610, true),
        (0o400, false),
        (0o600, false),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        match Fleet::open(dir.path()).await {
            Ok(_) => assert!(!refused, "{bits:o}"),
            Err(error @ FleetError::KeyExposed { .. }) => {
                assert!(refused, "{bits:o}");
                let text = error.to_string();
                assert!(
                    text.contains("ca/ca.key") && text.contains(&format!("{bits:o}")),
                    "{text}"
                );
            }
            Err(other) => panic!("{bits:o}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_ca_in_pieces_is_refused_and_not_replaced() {
    let (garage, other) = (Garage::open().await, Garage::open().await);
    let dir = garage.dir;
    drop(garage.fleet);
    let (certificate, key) = (dir.path().join("ca/ca.pem"), dir.path().join("ca/ca.key"));
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let (certificate_text, key_text) = (read(&certificate), read(&key));
    let foreign = read(&other.path().join("ca/ca.pem"));
    let leaf = other.car(1).await.pem;
    let own_leaf_key = key_text.clone();

    for (what, pem, secret, says) in [
        (
            "no key",
            Some(certificate_text.as_str()),
            None,
            "ca/ca.key does not exist",
        ),
        (
            "no certificate",
            None,
            Some(key_text.as_str()),
            "ca/ca.pem does not exist",
        ),
        (
            "foreign",
            Some(&foreign),
            Some(&key_text),
            "does not belong to the key",
        ),
        (
            "leaf",
            Some(&leaf),
            Some(&own_leaf_key),
            "does not belong to the key",
        ),
        (
            "bad key",
            Some(&certificate_text),
            Some("hello"),
            "not a PEM private key",
        ),
        (
            "torn key",
            Some(&certificate_text),
            Some(&key_text[..90]),
            "not a PEM private key",
        ),
        (
            "bad certificate",
            Some("hello"),
            Some(&key_text),
            "not a PEM certificate",
        ),
        (
            "swapped",
            Some(&key_text),
            Some(&certificate_text),
            "not a PEM private key",
        ),
    ] {
        for (path, text, bits) in [(&certificate, pem, 0o644), (&key, secret, 0o600)] {
            match text {
                Some(text) => {
                    fs::write(path, text).unwrap();
                    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
                }
                None => fs::remove_file(path).unwrap(),
            }
        }
        let refusal = Fleet::open(dir.path()).await.unwrap_err().to_string();
        assert!(refusal.contains(says), "{what}: {refusal}");
        let secret_line = key_text.lines().nth(1).unwrap();
        assert!(!refusal.contains(secret_line), "{what}: {refusal}");
    }
    fs::write(&certificate, &certificate_text).unwrap();
    fs::write(&key, &key_text).unwrap();
    let fleet = Fleet::open(dir.path()).await.unwrap();
    assert_eq!(fleet.ca().cert_pem(), certificate_text);
}

#[tokio::test]
async fn a_crash_while_the_ca_is_made_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let leftover = dir.path().join("ca.new");
    fs::create_dir_all(&leftover).unwrap();
    fs::write(leftover.join("ca.key"), "half a k").unwrap();
    let fleet = Fleet::open(dir.path()).await.unwrap();
    assert!(!leftover.exists());
    let vehicle = fleet
        .create_vehicle(&fleet::Actor::system(), NewVehicle::default())
        .await;
    vehicle.unwrap();
}

#[tokio::test]
async fn a_damaged_row_is_named() {
    let garage = Garage::open().await;
    let certificate = garage.car(1).await;
    let dir = garage.dir;
    garage.fleet.close().await;
    drop(garage.fleet);
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}", dir.path().join("fleet.db").display());
    let pool = sqlx::AnyPool::connect(&url).await.unwrap();
    sqlx::query("UPDATE certificates SET fingerprint = 'xyz'")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    let refusal = Fleet::open(dir.path()).await.unwrap_err().to_string();
    assert!(
        refusal.contains(&format!("certificates `{}` is damaged", certificate.serial)),
        "{refusal}"
    );
}

#[tokio::test]
async fn after_closing_changes_fail_and_the_directory_still_answers() {
    let garage = Garage::open().await;
    let certificate = garage.car(1).await;
    garage.fleet.close().await;
    let refusal = garage
        .fleet
        .issue_certificate(&garage.anna, "tcu-1", &request())
        .await;
    assert!(matches!(refusal, Err(FleetError::Storage { .. })));
    garage
        .fleet
        .directory()
        .identify(&der(&certificate.pem), now_us())
        .unwrap();
}
