//! What registering costs: one car after another as a factory does, a hundred thousand at start,
//! and the hot path's questions. `cargo bench -p fleet` prints one line per scenario on stderr.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use fleet::{Actor, Fleet, NewDevice, NewVehicle};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject};

const FLEET: u32 = 100_000;

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let fleet = Fleet::open(dir.path()).await.expect("a new fleet opens");
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .expect("a request");
    let clerk = Actor::system();

    let begin = Instant::now();
    let mut leaf = String::new();
    for n in 0..50 {
        register(&fleet, &clerk, n).await;
        let certificate = fleet
            .issue_certificate(&clerk, &format!("tcu-{n}"), &csr)
            .await;
        leaf = certificate.expect("a certificate").pem;
    }
    report(
        "50 vehicles, devices and certificates, one by one",
        begin.elapsed(),
        150,
    );

    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).expect("PEM");
    let (directory, now) = (fleet.directory(), jiff::Timestamp::now().as_microsecond());
    let begin = Instant::now();
    for _ in 0..100_000 {
        black_box(directory.identify(black_box(&leaf), now)).expect("known");
    }
    report("identify", begin.elapsed(), 100_000);
    let who = directory.identify(&leaf, now).expect("known");
    let begin = Instant::now();
    for _ in 0..1_000_000 {
        black_box(directory.may_publish(&who, black_box("dt/telemetry/drive/car-49/signals")));
    }
    report("may_publish", begin.elapsed(), 1_000_000);

    // Straight into the tables: this is about loading, and one by one is measured above.
    fleet.close().await;
    drop((fleet, who, directory));
    fill(dir.path()).await;
    let begin = Instant::now();
    let fleet = Fleet::open(dir.path()).await.expect("it opens again");
    report(
        "open with 100,000 vehicles, devices, certificates",
        begin.elapsed(),
        FLEET,
    );

    let begin = Instant::now();
    for n in 0..50 {
        register(&fleet, &clerk, FLEET + n).await;
        let device = format!("tcu-{}", FLEET + n);
        fleet
            .issue_certificate(&clerk, &device, &csr)
            .await
            .expect("a certificate");
    }
    report("50 more on top of 100,000", begin.elapsed(), 150);
}

fn report(what: &str, took: Duration, count: u32) {
    eprintln!("{what}: {took:.2?} ({:.2?} each)", took / count);
}

async fn register(fleet: &Fleet, clerk: &Actor, n: u32) {
    let id = format!("car-{n}");
    let new = NewVehicle {
        id: Some(id.clone()),
        ..NewVehicle::default()
    };
    fleet.create_vehicle(clerk, new).await.expect("a vehicle");
    let new = NewDevice {
        id: Some(format!("tcu-{n}")),
        vehicle_id: id,
        kind: "tcu".into(),
    };
    fleet.create_device(clerk, new).await.expect("a device");
}

async fn fill(data_dir: &Path) {
    let url = format!("sqlite://{}", data_dir.join("fleet.db").display());
    let pool = sqlx::AnyPool::connect(&url)
        .await
        .expect("the database opens");
    let sequence = format!(
        "WITH RECURSIVE n (i) AS (SELECT 50 UNION ALL SELECT i + 1 FROM n WHERE i < {})",
        FLEET - 1
    );
    for insert in [
        "INSERT INTO vehicles SELECT 'car-' || i, NULL, NULL, '{}', 1, 1, 0, 0 FROM n WHERE true",
        "INSERT INTO devices SELECT 'tcu-' || i, 'car-' || i, 'tcu', 1, 1, 0, 0 FROM n WHERE true",
        "INSERT INTO certificates SELECT 'id' || i, printf('%032x', i), 'tcu-' || i, \
         printf('%064x', i), 0, 4102444800000000, NULL, 'pem' FROM n WHERE true",
    ] {
        let statement = sqlx::AssertSqlSafe(format!("{sequence} {insert}"));
        sqlx::query(statement).execute(&pool).await.expect("rows");
    }
    pool.close().await;
}
