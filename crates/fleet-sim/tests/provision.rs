//! The factory against an HTTP API like the server's.

mod support;

use std::sync::{Arc, Mutex};

use fleet_sim::provision::{Factory, Order, ProvisionError};
use support::{Api, TestCa};

fn provider() {
    // The first test to come installs it; that it is there is what counts.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn orders(count: usize) -> Vec<Order> {
    (1..=count)
        .map(|n| Order {
            vin: Some(format!("ZZZ{n:014}")),
            attributes: [("powertrain".to_owned(), "electric".to_owned())].into(),
            ..Order::vehicle(&format!("car-{n}"))
        })
        .collect()
}

#[tokio::test]
async fn vehicles_get_certificates_of_the_fleet_and_the_key_stays_home() {
    provider();
    let mut api = Api::start(Arc::new(TestCa::new()), 0).await;
    let factory = Factory::new(&format!("{}/", api.url)).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let made = factory
        .provision(&orders(30), None, move |done, total| {
            tell.lock().unwrap().push((done, total));
        })
        .await
        .unwrap();
    let ids: Vec<_> = made.iter().map(|c| c.vehicle_id.as_str()).collect();
    assert_eq!(&ids[..3], ["car-1", "car-2", "car-3"]);
    for credentials in &made {
        assert_eq!(
            credentials.device_id,
            format!("{}-tcu", credentials.vehicle_id)
        );
        assert_eq!(credentials.ca_pem, api.ca.pem());
        credentials.client_config().unwrap();
    }
    let mut told = told.lock().unwrap().clone();
    told.sort_unstable();
    assert_eq!(told, (0..=30).map(|done| (done, 30)).collect::<Vec<_>>());

    api.requests.close();
    let mut seen = Vec::new();
    while let Some((line, body)) = api.requests.recv().await {
        assert!(!body.contains("PRIVATE"), "{line}");
        seen.push(line);
    }
    for expected in [
        "GET /api/v1/ca",
        "POST /api/v1/vehicles",
        "POST /api/v1/vehicles/car-7/devices",
        "POST /api/v1/devices/car-7-tcu/certificates",
    ] {
        assert!(
            seen.iter().any(|line| line == expected),
            "{expected}: {seen:?}"
        );
    }
}

#[tokio::test]
async fn a_second_run_uses_what_is_there_and_a_new_fleet_ca_starts_over() {
    provider();
    let api = Api::start(Arc::new(TestCa::new()), 0).await;
    let dir = tempfile::tempdir().unwrap();
    let factory = Factory::new(&api.url).unwrap();
    let provision = async |factory: &Factory, count| {
        let orders = orders(count);
        let made = factory.provision(&orders, Some(dir.path()), |_, _| {});
        made.await.unwrap()
    };
    let first = provision(&factory, 3).await;
    assert_eq!(api.certified(), 3);
    let second = provision(&factory, 4).await;
    assert_eq!(api.certified(), 4, "only the new one needs a certificate");
    assert_eq!(first[0].key_pem, second[0].key_pem);

    let other = Api::start(Arc::new(TestCa::new()), 0).await;
    let third = provision(&Factory::new(&other.url).unwrap(), 3).await;
    assert_eq!(other.certified(), 3);
    assert_ne!(first[0].key_pem, third[0].key_pem);

    // A certificate that is about to expire is renewed.
    let mut old = third[0].clone();
    old.not_after_us = 0;
    old.save(dir.path()).unwrap();
    provision(&Factory::new(&other.url).unwrap(), 3).await;
    assert_eq!(other.certified(), 4);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    provider();
    let api = Api::start(Arc::new(TestCa::new()), 2).await;
    let factory = Factory::new(&api.url).unwrap();
    let made = factory
        .provision(&orders(1), None, |_, _| {})
        .await
        .unwrap();
    assert_eq!(made.len(), 1);
}

#[tokio::test]
async fn problems_are_told_as_the_server_tells_them() {
    provider();
    let api = Api::start(Arc::new(TestCa::new()), 0).await;
    let factory = Factory::new(&api.url).unwrap();
    let order = |order: Order| [order];
    let quiet = |_, _| {};

    let forbidden = order(Order::vehicle("forbidden"));
    let error = factory
        .provision(&forbidden, None, quiet)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused to register vehicle `forbidden` (403): this vehicle is not yours"
    );

    factory.provision(&orders(1), None, quiet).await.unwrap();
    let elsewhere = order(Order {
        device: "car-1-tcu".into(),
        ..Order::vehicle("car-2")
    });
    let error = factory
        .provision(&elsewhere, None, quiet)
        .await
        .unwrap_err();
    assert!(matches!(error, ProvisionError::Elsewhere { .. }), "{error}");

    let remodelled = order(Order {
        model: Some("rav4".into()),
        ..Order::vehicle("car-1")
    });
    let error = factory
        .provision(&remodelled, None, quiet)
        .await
        .unwrap_err();
    assert!(matches!(error, ProvisionError::Model { .. }), "{error}");

    factory
        .put_model("rav4", Some("VERSION \"\""), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_the_address() {
    provider();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Factory::new(&url).unwrap().ca().await.unwrap_err();
    assert!(error.to_string().contains(&url), "{error}");
}
