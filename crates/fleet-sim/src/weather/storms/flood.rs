//! Flood: a few clients publish as fast as they can, and one reads it all.

use bytes::BytesMut;
use mqtt::{PacketId, Publish, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::prelude::*;

const CLIENTS: usize = 4;
const PAYLOAD: usize = 200;
/// Messages per write.
const BATCH: u16 = 256;
const PUBACK_LEAST: usize = 4;

pub(in crate::weather) async fn blow(scene: &Scene, qos: QoS) -> Result<String, StormError> {
    let tcp = scene.plain(Receives::Usual).await?;
    let mut reader = Visitor::arrive(tcp, "flood-reader").await?;
    reader
        .subscribe(&["weather/flood/+".to_owned()], qos)
        .await?;
    let count = scene.share(CLIENTS);
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        let tcp = scene.plain(Receives::Usual).await?;
        clients.push(Some(
            Visitor::arrive(tcp, &format!("flood-{number}")).await?,
        ));
    }
    scene.prepared().await;

    let flood = crowd(count, |number| {
        let client = clients[number].take();
        async move {
            let Some(client) = client else { return 0 };
            match pour(scene, client, number, qos).await {
                Ok(sent) => sent,
                Err((sent, turned)) => {
                    scene.tally.count(format!("publisher: {turned}"));
                    sent
                }
            }
        }
    });
    let (sent, received) = tokio::join!(flood, read(scene, reader, qos));
    Ok(format!(
        "{sent} messages poured by {count} clients, {received} of them delivered to one reader"
    ))
}

/// Reads and acknowledges until the time is over.
async fn read<W>(scene: &Scene, mut reader: Visitor<W>, qos: QoS) -> u64
where
    W: crate::client::transport::Wire,
{
    let mut received = 0;
    loop {
        match scene.while_it_lasts(reader.next()).await {
            None => return received,
            Some(Err(turned)) => {
                scene.tally.count(format!("reader: {turned}"));
                return received;
            }
            Some(Ok(Packet::Publish(publish))) => {
                received += 1;
                let said = match publish.packet_id.filter(|_| qos != QoS::AtMostOnce) {
                    Some(id) => reader.say(mqtt::PubAck::success(id)),
                    None => Ok(()),
                };
                if said.is_err() || (!reader.has_read_more() && reader.flush().await.is_err()) {
                    return received;
                }
            }
            Some(Ok(_)) => {}
        }
    }
}

/// Writes batches; at QoS 1 a batch is acknowledged before the next one goes.
async fn pour<W>(
    scene: &Scene,
    mut client: Visitor<W>,
    number: usize,
    qos: QoS,
) -> Result<u64, (u64, Turned)>
where
    W: crate::client::transport::Wire,
{
    let mut sent = 0;
    let batch = BATCH.min(client.receive_maximum).max(1);
    let mut bytes = BytesMut::new();
    for id in 1..=batch {
        let publish = Publish {
            qos,
            packet_id: PacketId::new(id).filter(|_| qos != QoS::AtMostOnce),
            topic: format!("weather/flood/{number}").into(),
            payload: vec![b'f'; PAYLOAD].into(),
            ..Publish::default()
        };
        mqtt::encode(&publish.into(), Version::V5, &mut bytes).map_err(|e| (sent, e.into()))?;
    }
    let mut answers = BytesMut::new();
    while !scene.is_over() {
        let round = async {
            client.wire.write_all(&bytes).await?;
            client.wire.flush().await?;
            let mut open = if qos == QoS::AtMostOnce { 0 } else { batch };
            while open > 0 {
                if client.wire.read_buf(&mut answers).await? == 0 {
                    return Err(Turned::Closed);
                }
                open -= acknowledged(scene, &mut answers)?;
            }
            Ok(())
        };
        match scene.while_it_lasts(round).await {
            None => break,
            Some(Ok(())) => sent += u64::from(batch),
            Some(Err(turned)) => return Err((sent, turned)),
        }
        // One thread for all: the others want to pour, too.
        tokio::task::yield_now().await;
    }
    Ok(sent)
}

/// Takes whole PUBACKs off the front; counts refusals.
fn acknowledged(scene: &Scene, answers: &mut BytesMut) -> Result<u16, Turned> {
    let mut count = 0;
    while answers.len() >= PUBACK_LEAST {
        let length = 2 + usize::from(answers[1]);
        if answers[0] >> 4 == 14 {
            let code = answers.get(2).copied().unwrap_or(0);
            let code = mqtt::ReasonCode::from_u8(code).unwrap_or_default();
            return Err(Turned::Disconnected(code));
        }
        if answers.len() < length {
            break;
        }
        let answer = answers.split_to(length);
        let code = answer.get(4).copied().unwrap_or(0);
        if let Some(code) = mqtt::ReasonCode::from_u8(code).filter(|code| code.is_error()) {
            scene.tally.count(format!("PUBACK {}", Code(code)));
        }
        count += 1;
    }
    Ok(count)
}
