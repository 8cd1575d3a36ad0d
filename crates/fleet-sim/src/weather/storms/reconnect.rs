//! Reconnect: a network comes back, and all cars at once.
//!
//! Who is refused or gets no connection tries again after a random while, as cars do.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::prelude::*;
use crate::client::transport::Wire;
use crate::dice::Dice;

/// Over TCP.
pub(in crate::weather) const CLIENTS: usize = 5_000;
/// With certificates.
pub(in crate::weather) const DEVICES: usize = 500;
/// Longest wait before another try, seconds.
const SPREAD: f64 = 2.0;
/// Connecting at once while it is quiet.
const POLITE: usize = 32;
/// Between two times that the network goes.
const AGAIN: Duration = Duration::from_secs(5);

/// Who connects.
enum Fleet {
    Tcp,
    Mtls(Vec<(TlsConnector, String)>),
}

pub(in crate::weather) async fn blow_tcp(scene: &Scene) -> Result<String, StormError> {
    blow(scene, Fleet::Tcp, scene.share(CLIENTS)).await
}

pub(in crate::weather) async fn blow_mtls(scene: &Scene) -> Result<String, StormError> {
    let secure = scene.place.secure.as_ref();
    let credentials = secure.map_or(&[][..], |secure| &secure.credentials);
    let fleet = credentials
        .iter()
        .take(scene.share(DEVICES))
        .map(|device| {
            let config = device
                .client_config()
                .map_err(|e| StormError::Tls(e.into()))?;
            Ok((TlsConnector::from(config), device.device_id.clone()))
        })
        .collect::<Result<Vec<_>, StormError>>()?;
    let count = fleet.len();
    blow(scene, Fleet::Mtls(fleet), count).await
}

async fn blow(scene: &Scene, fleet: Fleet, count: usize) -> Result<String, StormError> {
    let fleet = &fleet;
    let cars: RefCell<Vec<Option<Visitor>>> = RefCell::new((0..count).map(|_| None).collect());
    let polite = Arc::new(Semaphore::new(POLITE));
    let first_trouble = RefCell::new(None);
    crowd(count, |number| {
        let (polite, cars, trouble) = (Arc::clone(&polite), &cars, &first_trouble);
        async move {
            // Never closed, so a turn always comes.
            let _turn = polite.acquire_owned().await.ok();
            match connect(scene, fleet, number).await {
                Ok(car) => cars.borrow_mut()[number] = Some(car),
                Err(turned) => *trouble.borrow_mut() = Some(turned),
            }
            0
        }
    })
    .await;
    if let Some(turned) = first_trouble.take() {
        return Err(turned.into());
    }
    scene.prepared().await;

    let mut waves = Vec::new();
    // A wave that begins late is no wave.
    while waves.is_empty() || Instant::now() + AGAIN < scene.until() {
        // The network is gone, for all at once.
        cars.borrow_mut().iter_mut().for_each(|car| *car = None);
        let (wave, begin) = (waves.len() as u64, Instant::now());
        let last = Cell::new(begin);
        let back = crowd(count, |number| {
            let (cars, last) = (&cars, &last);
            async move {
                // Another for each wave, so that the same cars do not always wait alike.
                let mut dice = Dice::for_thing(wave, &number.to_string());
                loop {
                    match scene.while_it_lasts(connect(scene, fleet, number)).await {
                        None => return 0,
                        Some(Ok(car)) => {
                            last.set(Instant::now());
                            cars.borrow_mut()[number] = Some(car);
                            return 1;
                        }
                        Some(Err(turned)) => scene.tally.count(turned),
                    }
                    sleep(Duration::from_secs_f64(dice.between(0.1, SPREAD))).await;
                }
            }
        })
        .await;
        let took = last.get() - begin;
        waves.push(format!("{back} in {:.1} s", took.as_secs_f64()));
        let _ = scene.while_it_lasts(sleep(AGAIN)).await;
    }
    Ok(format!(
        "{count} clients came back at once: {}",
        waves.join(", ")
    ))
}

async fn connect(scene: &Scene, fleet: &Fleet, number: usize) -> Result<Visitor, Turned> {
    let (wire, id): (Box<dyn Wire>, String) = match fleet {
        Fleet::Tcp => (
            Box::new(scene.plain(Receives::Usual).await?),
            format!("back-{number}"),
        ),
        Fleet::Mtls(devices) => {
            let (connector, id) = &devices[number];
            let tcp = scene.secure(Receives::Usual).await?;
            let name = ServerName::try_from("localhost").map_err(|_| Turned::Tls)?;
            (Box::new(connector.connect(name, tcp).await?), id.clone())
        }
    };
    let mut car = Visitor::arrive(wire, &id).await?;
    let filter = format!("cmd/{id}/#");
    // Allowed or not is not the question here; the work is done either way.
    car.subscribe(&[filter], QoS::AtLeastOnce).await?;
    Ok(car)
}
