//! Half handshakes: TLS that stops in the middle of the first message, or after it, when the server has
//! made its keys and signed.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::prelude::*;
use crate::credentials::anonymous_client_config;

/// At the same time.
const SOCKETS: usize = 1_000;
/// Before a socket that was closed is opened again.
const PAUSE: Duration = Duration::from_secs(1);

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let hello = hello(scene)?;
    scene.prepared().await;
    let count = scene.share(SOCKETS);
    let opened = crowd(count, |number| {
        // Half of them stop in the middle, half when the server has answered.
        let bytes = &hello[..if number % 2 == 0 {
            hello.len() / 2
        } else {
            hello.len()
        }];
        async move {
            let mut opened = 0;
            while !scene.is_over() {
                let visit = async {
                    let mut tcp = scene.secure(Receives::Usual).await?;
                    opened += 1;
                    tcp.write_all(bytes).await?;
                    let mut answer = [0; 4_096];
                    while tcp.read(&mut answer).await? > 0 {}
                    std::io::Result::Ok(())
                };
                match scene.while_it_lasts(visit).await {
                    None => break,
                    Some(Ok(())) => scene.tally.count(Turned::Closed),
                    Some(Err(error)) => scene.tally.count(Turned::from(error)),
                }
                sleep(PAUSE).await;
            }
            opened
        }
    })
    .await;
    Ok(format!(
        "{opened} handshakes begun, at most {count} at a time"
    ))
}

/// The first message of a TLS client.
fn hello(scene: &Scene) -> Result<Vec<u8>, StormError> {
    let make = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let secure = scene
            .place
            .secure
            .as_ref()
            .ok_or("there is no TLS listener")?;
        let config = anonymous_client_config(&secure.ca_pem)?;
        let name = rustls::pki_types::ServerName::try_from("localhost")?;
        let mut connection = rustls::ClientConnection::new(config, name)?;
        let mut hello = Vec::new();
        connection.write_tls(&mut hello)?;
        Ok(hello)
    };
    make().map_err(StormError::Tls)
}
