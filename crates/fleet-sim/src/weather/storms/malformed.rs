//! Malformed: noise instead of a CONNECT, noise after it, and good packets with a bit turned over.

use bytes::BytesMut;
use mqtt::{
    Connect, PacketId, Publish, Subscribe, SubscribeProperties, Subscription, TopicFilter, Version,
};
use tokio::io::AsyncWriteExt;

use super::prelude::*;
use crate::dice::Dice;

const CLIENTS: usize = 50;
const NOISE: usize = 256;
/// Noise may look like the beginning of something long, and then nobody answers.
const PATIENCE: Duration = Duration::from_millis(200);

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    scene.prepared().await;
    let count = scene.share(CLIENTS);
    let tried = crowd(count, |number| async move {
        let mut dice = Dice::for_thing(1, &format!("malformed-{number}"));
        let mut tried = 0;
        while !scene.is_over() {
            tried += 1;
            let visit = spoil(scene, &mut dice, number);
            if let Some(Err(turned)) = scene.while_it_lasts(Box::pin(visit)).await {
                scene.tally.count(turned);
            }
        }
        tried
    })
    .await;
    Ok(format!(
        "{tried} visits of {count} clients that speak no MQTT"
    ))
}

async fn spoil(scene: &Scene, dice: &mut Dice, number: usize) -> Result<(), Turned> {
    let mut tcp = scene.plain(Receives::Usual).await?;
    let noise: Vec<u8> = (0..NOISE).map(|_| dice.bits() as u8).collect();
    if dice.chance(0.3) {
        tcp.write_all(&noise).await?;
        let mut answer = [0; 256];
        let read = tokio::io::AsyncReadExt::read(&mut tcp, &mut answer);
        return match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(0)) => Err(Turned::Closed),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Ok(()), // it waits for more, within its time limit
        };
    }
    let mut visitor = Visitor::arrive(tcp, &format!("malformed-{number}")).await?;
    if dice.chance(0.3) {
        visitor.spit(&noise);
    } else {
        let mut bytes = BytesMut::new();
        mqtt::encode(&packet(dice), Version::V5, &mut bytes)?;
        for _ in 0..=dice.below(3) {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
        visitor.spit(&bytes);
    }
    visitor.flush().await?;
    match tokio::time::timeout(PATIENCE, visitor.linger()).await {
        Ok(turned) => Err(turned),
        Err(_) => Ok(()), // it made sense after all, or waits for more
    }
}

fn packet(dice: &mut Dice) -> Packet {
    let subscribe = TopicFilter::parse("weather/malformed/+").map(|filter| Subscribe {
        packet_id: PacketId::FIRST,
        subscriptions: vec![Subscription::new(filter, QoS::AtLeastOnce)],
        properties: SubscribeProperties::default(),
    });
    match (dice.below(3), subscribe) {
        (0, Ok(subscribe)) => subscribe.into(),
        (1, _) => Packet::Connect(Box::new(Connect::new(Version::V5, "twice"))),
        _ => Publish {
            qos: QoS::AtLeastOnce,
            packet_id: Some(PacketId::FIRST),
            topic: "weather/malformed".into(),
            payload: vec![b'm'; 100].into(),
            ..Publish::default()
        }
        .into(),
    }
}
