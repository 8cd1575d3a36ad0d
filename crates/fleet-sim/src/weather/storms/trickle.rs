//! Trickle: a byte per second, of a CONNECT or of a PUBLISH, and then again.

use bytes::BytesMut;
use mqtt::{Connect, PacketId, Publish, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::prelude::*;

const CLIENTS: usize = 1_000;
const BEAT: Duration = Duration::from_secs(1);

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let (mut connect, mut publish) = (BytesMut::new(), BytesMut::new());
    let greeting = Packet::Connect(Box::new(Connect::new(Version::V5, "trickle")));
    let message = Publish {
        qos: QoS::AtLeastOnce,
        packet_id: Some(PacketId::FIRST),
        topic: "weather/trickle".into(),
        payload: vec![b't'; 60_000].into(),
        ..Publish::default()
    };
    mqtt::encode(&greeting, Version::V5, &mut connect).map_err(Turned::from)?;
    mqtt::encode(&message.into(), Version::V5, &mut publish).map_err(Turned::from)?;
    scene.prepared().await;
    let count = scene.share(CLIENTS);
    let (connect, publish) = (&connect[..], &publish[..]);
    let written = crowd(count, |number| async move {
        let mut written = 0;
        while !scene.is_over() {
            let drip = async {
                let tcp = scene.plain(Receives::Usual).await?;
                // Half of them are let in before they begin.
                let (mut tcp, bytes) = if number % 2 == 0 {
                    (tcp, connect)
                } else {
                    let visitor = Visitor::arrive(tcp, &format!("trickle-{number}")).await?;
                    (visitor.wire, publish)
                };
                let mut answer = [0; 64];
                for byte in bytes {
                    tcp.write_all(&[*byte]).await?;
                    written += 1;
                    if let Ok(read) = tokio::time::timeout(BEAT, tcp.read(&mut answer)).await {
                        return match (read?, &answer) {
                            (0, _) => Err(Turned::Closed),
                            (3.., [0xE0, _, code, ..]) => Err(Turned::Disconnected(
                                mqtt::ReasonCode::from_u8(*code).unwrap_or_default(),
                            )),
                            _ => Ok(()), // a CONNACK after all
                        };
                    }
                }
                Ok(())
            };
            match scene.while_it_lasts(drip).await {
                None => break,
                Some(Ok(())) => scene.tally.count("finished"),
                Some(Err(turned)) => scene.tally.count(turned),
            }
            sleep(BEAT).await;
        }
        written
    })
    .await;
    Ok(format!("{written} bytes trickled by {count} clients"))
}
