//! Bad credentials: TLS clients that show no certificate, or one of a stranger's CA, as fast as they can.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::prelude::*;
use crate::credentials::anonymous_client_config;
use crate::private_ca::PrivateCa;

const CLIENTS: usize = 20;

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let secure = scene.place.secure.as_ref();
    let ca_pem = secure
        .map(|secure| secure.ca_pem.as_str())
        .unwrap_or_default();
    let nobody = anonymous_client_config(ca_pem).map_err(|e| StormError::Tls(e.into()))?;
    let stranger = stranger(ca_pem).map_err(StormError::Tls)?;
    let connectors = [TlsConnector::from(nobody), TlsConnector::from(stranger)];
    scene.prepared().await;
    let count = scene.share(CLIENTS);
    let connectors = &connectors;
    let tried = crowd(count, |number| async move {
        let mut tried = 0;
        while !scene.is_over() {
            let visit = async {
                let tcp = scene.secure(Receives::Usual).await?;
                tried += 1;
                let name = ServerName::try_from("localhost").map_err(|_| Turned::Tls)?;
                let tls = connectors[number % 2].connect(name, tcp).await?;
                // With TLS 1.3 the verdict comes after our side is done.
                Visitor::arrive(tls, &format!("bad-{number}")).await?;
                Ok::<_, Turned>(())
            };
            let who = ["without", "stranger's"][number % 2];
            match scene.while_it_lasts(visit).await {
                None => {}
                Some(Ok(())) => scene.tally.count(format!("{who}: LET IN")),
                Some(Err(turned)) => {
                    scene.tally.count(format!("{who}: {turned}"));
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
        tried
    })
    .await;
    Ok(format!(
        "{tried} handshakes of {count} clients with bad credentials"
    ))
}

/// Trusts the server, and is of another fleet.
fn stranger(ca_pem: &str) -> Result<Arc<ClientConfig>, Box<dyn std::error::Error + Send + Sync>> {
    let credentials = PrivateCa::new()?.vehicle("car-1", ca_pem.to_owned())?;
    Ok(credentials.client_config()?)
}
