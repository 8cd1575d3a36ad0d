//! rumqttc, an MQTT client that shares no code with this repository, over tcp: MQTT 3.1.1 and 5.
//!
//! A client program of the tests in `crates/milepost/tests/clients.rs`; arguments and output as in
//! `clients/story.py` there. It stands in this crate because its dependencies, in the ones that link
//! DataFusion, would have that built twice. No TLS: rumqttc pins a version of webpki with known faults.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Parser;
use rumqttc::{QoS, v5};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// One answer of the server. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// All steps together.
const WHOLE: Duration = Duration::from_secs(30);
/// What may wait between rumqttc and a step; more than any step has under way.
const QUEUE: usize = 1024;
const MAX_PACKET: usize = 1 << 20;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    transport: String,
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    version: String,
    #[arg(long)]
    run: String,
    #[arg(long)]
    vehicle: String,
}

/// What came in, in the words of both versions.
enum News {
    Connected {
        session_present: bool,
    },
    /// The reason code of the one filter.
    Subscribed(u8),
    Unsubscribed,
    /// The reason code of the last word about a message of ours, QoS 1 or 2.
    Acknowledged(u8),
    Message(Message),
    Ended(String),
}

struct Message {
    topic: String,
    payload: Bytes,
    qos: u8,
    retain: bool,
    properties: Option<v5::mqttbytes::v5::PublishProperties>,
}

enum Handle {
    Three(rumqttc::AsyncClient),
    Five(v5::AsyncClient),
}

struct Peer {
    name: &'static str,
    handle: Handle,
    control: mpsc::Receiver<News>,
    messages: mpsc::Receiver<Message>,
    task: JoinHandle<()>,
}

/// How a peer connects.
#[derive(Default)]
struct Manner {
    keeps_session: bool,
    will: Option<(String, &'static str)>,
}

struct Story {
    arguments: Arguments,
    five: bool,
}

impl Story {
    fn topic(&self, name: &str) -> String {
        let Arguments { run, vehicle, .. } = &self.arguments;
        format!("dt/clients/{run}/{vehicle}/{name}")
    }

    async fn peer(&self, name: &'static str, manner: Manner) -> anyhow::Result<(Peer, bool)> {
        let Arguments {
            host, port, run, ..
        } = &self.arguments;
        let id = format!("{run}-{name}");
        let (tell, control) = mpsc::channel(QUEUE);
        let (pass_on, messages) = mpsc::channel(QUEUE);
        let (handle, task) = if self.five {
            let mut options = v5::MqttOptions::new(id, host, *port);
            options.set_keep_alive(Duration::from_secs(60));
            options.set_clean_start(!manner.keeps_session);
            options.set_session_expiry_interval(manner.keeps_session.then_some(600));
            options.set_max_packet_size(Some(MAX_PACKET as u32));
            if let Some((topic, payload)) = manner.will {
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                let will = v5::mqttbytes::v5::LastWill::new(topic, payload, qos, false, None);
                options.set_last_will(will);
            }
            let (client, mut events) = v5::AsyncClient::new(options, QUEUE);
            let task = tokio::spawn(async move {
                loop {
                    match events.poll().await {
                        Ok(v5::Event::Incoming(packet)) => {
                            spread(from_five(packet), &tell, &pass_on).await;
                        }
                        Ok(v5::Event::Outgoing(_)) => {}
                        // It would connect again with the next `poll`.
                        Err(error) => break ended(error.to_string(), &tell).await,
                    }
                }
            });
            (Handle::Five(client), task)
        } else {
            let mut options = rumqttc::MqttOptions::new(id, host, *port);
            options.set_keep_alive(Duration::from_secs(60));
            options.set_clean_session(!manner.keeps_session);
            options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
            if let Some((topic, payload)) = manner.will {
                let will = rumqttc::LastWill::new(topic, payload, QoS::AtLeastOnce, false);
                options.set_last_will(will);
            }
            let (client, mut events) = rumqttc::AsyncClient::new(options, QUEUE);
            let task = tokio::spawn(async move {
                loop {
                    match events.poll().await {
                        Ok(rumqttc::Event::Incoming(packet)) => {
                            spread(from_three(packet), &tell, &pass_on).await;
                        }
                        Ok(rumqttc::Event::Outgoing(_)) => {}
                        Err(error) => break ended(error.to_string(), &tell).await,
                    }
                }
            });
            (Handle::Three(client), task)
        };
        let mut peer = Peer {
            name,
            handle,
            control,
            messages,
            task,
        };
        match peer.news("CONNACK").await? {
            News::Connected { session_present } => Ok((peer, session_present)),
            other => bail!("{name}: wanted CONNACK, got {}", other.name()),
        }
    }

    /// Published below `dt/` and acknowledged: the lake must have it.
    async fn keep(
        &self,
        peer: &mut Peer,
        name: &str,
        payload: impl Into<Bytes>,
        qos: u8,
        retain: bool,
    ) -> anyhow::Result<()> {
        let (topic, payload) = (self.topic(name), payload.into());
        peer.send(&topic, payload.clone(), qos, retain).await?;
        if qos > 0 {
            peer.acknowledged(&topic).await?;
        }
        self.kept(&topic, &payload);
        Ok(())
    }

    #[allow(clippy::print_stdout)] // What the test reads.
    fn kept(&self, topic: &str, payload: &[u8]) {
        let head: String = payload
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect();
        let head = if head.is_empty() { "-" } else { &head };
        println!("kept {topic} {} {head}", payload.len());
    }

    #[allow(clippy::print_stdout)] // What the test reads.
    fn ok(&self, step: &str) {
        println!("ok {step}");
    }
}

async fn spread(news: Option<News>, tell: &mpsc::Sender<News>, pass_on: &mpsc::Sender<Message>) {
    // Nobody listens any more once a step dropped its peer.
    match news {
        Some(News::Message(message)) => {
            let _ = pass_on.send(message).await;
        }
        Some(news) => {
            let _ = tell.send(news).await;
        }
        None => {}
    }
}

async fn ended(error: String, tell: &mpsc::Sender<News>) {
    let _ = tell.send(News::Ended(error)).await;
}

fn from_three(packet: rumqttc::Packet) -> Option<News> {
    use rumqttc::{Packet, SubscribeReasonCode};
    Some(match packet {
        Packet::ConnAck(connack) => News::Connected {
            session_present: connack.session_present,
        },
        Packet::SubAck(suback) => News::Subscribed(match suback.return_codes.first() {
            Some(SubscribeReasonCode::Success(qos)) => *qos as u8,
            _ => 0x80,
        }),
        Packet::UnsubAck(_) => News::Unsubscribed,
        Packet::PubAck(_) | Packet::PubComp(_) => News::Acknowledged(0),
        Packet::Publish(publish) => News::Message(Message {
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos as u8,
            retain: publish.retain,
            properties: None,
        }),
        _ => return None,
    })
}

fn from_five(packet: v5::Incoming) -> Option<News> {
    use v5::mqttbytes::v5::{Packet, PubAckReason, PubCompReason, SubscribeReasonCode};
    Some(match packet {
        Packet::ConnAck(connack) => News::Connected {
            session_present: connack.session_present,
        },
        Packet::SubAck(suback) => News::Subscribed(match suback.return_codes.first() {
            Some(SubscribeReasonCode::Success(qos)) => *qos as u8,
            _ => 0x80,
        }),
        Packet::UnsubAck(_) => News::Unsubscribed,
        Packet::PubAck(puback) => News::Acknowledged(match puback.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => 0,
            _ => 0x80,
        }),
        Packet::PubComp(pubcomp) => News::Acknowledged(match pubcomp.reason {
            PubCompReason::Success => 0,
            _ => 0x92,
        }),
        Packet::Publish(publish) => News::Message(Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload,
            qos: publish.qos as u8,
            retain: publish.retain,
            properties: publish.properties,
        }),
        _ => return None,
    })
}

impl News {
    fn name(&self) -> String {
        match self {
            Self::Connected { .. } => "CONNACK".into(),
            Self::Subscribed(_) => "SUBACK".into(),
            Self::Unsubscribed => "UNSUBACK".into(),
            Self::Acknowledged(_) => "an acknowledgement".into(),
            Self::Message(message) => format!("a message on {}", message.topic),
            Self::Ended(error) => format!("the end of the connection ({error})"),
        }
    }
}

fn three(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

fn five(qos: u8) -> v5::mqttbytes::QoS {
    match qos {
        0 => v5::mqttbytes::QoS::AtMostOnce,
        1 => v5::mqttbytes::QoS::AtLeastOnce,
        _ => v5::mqttbytes::QoS::ExactlyOnce,
    }
}

impl Peer {
    async fn news(&mut self, what: &str) -> anyhow::Result<News> {
        let news = timeout(PATIENCE, self.control.recv()).await;
        let news = news.with_context(|| format!("{}: {what} did not come", self.name))?;
        news.with_context(|| format!("{}: ended before {what}", self.name))
    }

    async fn subscribe(&mut self, filter: &str, qos: u8) -> anyhow::Result<()> {
        match &self.handle {
            Handle::Three(client) => client.subscribe(filter, three(qos)).await?,
            Handle::Five(client) => client.subscribe(filter, five(qos)).await?,
        }
        match self.news("SUBACK").await? {
            News::Subscribed(granted) if granted == qos => Ok(()),
            News::Subscribed(code) => bail!("{filter}: wanted {qos} granted, got {code:#04x}"),
            other => bail!("{filter}: wanted SUBACK, got {}", other.name()),
        }
    }

    async fn unsubscribe(&mut self, filter: &str) -> anyhow::Result<()> {
        match &self.handle {
            Handle::Three(client) => client.unsubscribe(filter).await?,
            Handle::Five(client) => client.unsubscribe(filter).await?,
        }
        match self.news("UNSUBACK").await? {
            News::Unsubscribed => Ok(()),
            other => bail!("{filter}: wanted UNSUBACK, got {}", other.name()),
        }
    }

    async fn send(&self, topic: &str, payload: Bytes, qos: u8, retain: bool) -> anyhow::Result<()> {
        match &self.handle {
            Handle::Three(client) => {
                client
                    .publish(topic, three(qos), retain, Vec::from(payload))
                    .await?;
            }
            Handle::Five(client) => client.publish(topic, five(qos), retain, payload).await?,
        }
        Ok(())
    }

    async fn acknowledged(&mut self, topic: &str) -> anyhow::Result<()> {
        match self.news("an acknowledgement").await? {
            News::Acknowledged(0) => Ok(()),
            News::Acknowledged(code) => bail!("{topic}: refused with {code:#04x}"),
            other => bail!("{topic}: wanted an acknowledgement, got {}", other.name()),
        }
    }

    async fn expect(
        &mut self,
        topic: &str,
        payload: &[u8],
        qos: u8,
        retain: bool,
    ) -> anyhow::Result<Message> {
        let message = timeout(PATIENCE, self.messages.recv()).await;
        let message = message
            .with_context(|| format!("{}: nothing came on {topic}", self.name))?
            .with_context(|| format!("{}: ended before a message on {topic}", self.name))?;
        let got = (&*message.topic, message.qos, message.retain);
        ensure!(
            got == (topic, qos, retain) && message.payload == payload,
            "{}: wanted {:?} with {} bytes, got {got:?} with {} bytes",
            self.name,
            (topic, qos, retain),
            payload.len(),
            message.payload.len(),
        );
        Ok(message)
    }

    fn silent(&mut self) -> anyhow::Result<()> {
        match self.messages.try_recv() {
            Ok(message) => bail!("{}: {} is too much", self.name, message.topic),
            Err(_) => Ok(()),
        }
    }

    async fn disconnect(mut self) -> anyhow::Result<()> {
        match &self.handle {
            Handle::Three(client) => client.disconnect().await?,
            Handle::Five(client) => client.disconnect().await?,
        }
        // The server closes, rumqttc sees it.
        self.news("the end of the connection").await?;
        Ok(())
    }

    /// The connection ends as when a car drives into a tunnel: no DISCONNECT.
    async fn vanish(self) {
        self.task.abort();
        // An aborted task has dropped its socket only once it is joined.
        let _ = self.task.await;
    }
}

async fn steps(story: &Story) -> anyhow::Result<()> {
    let (mut watcher, present) = story.peer("watcher", Manner::default()).await?;
    ensure!(!present, "a session is present that nobody left");
    let (mut car, _) = story.peer("car", Manner::default()).await?;
    story.ok("connect");

    let large: Vec<u8> = (0..75_000_u32).flat_map(u32::to_be_bytes).collect();
    let every_byte: Vec<u8> = (0..=255).collect();
    for qos in 0..3 {
        let name = format!("qos{qos}");
        watcher.subscribe(&story.topic(&name), qos).await?;
        for payload in [&b"{}"[..], &every_byte, b"", &large] {
            let bytes = Bytes::copy_from_slice(payload);
            story.keep(&mut car, &name, bytes, qos, false).await?;
            let topic = story.topic(&name);
            watcher.expect(&topic, payload, qos, false).await?;
        }
    }
    story.ok("publish and subscribe at every QoS");

    watcher.subscribe(&story.topic("many/+"), 1).await?;
    let topic = story.topic("many/one");
    for number in 0..200 {
        let payload = format!("number {number}");
        story.kept(&topic, payload.as_bytes());
        car.send(&topic, payload.into(), 1, false).await?;
    }
    for number in 0..200 {
        let payload = format!("number {number}");
        watcher.expect(&topic, payload.as_bytes(), 1, false).await?;
        car.acknowledged(&topic).await?;
    }
    story.ok("many in flight, in order");

    let topic = story.topic("retained");
    story.keep(&mut car, "retained", "kept", 1, true).await?;
    watcher.subscribe(&topic, 1).await?;
    watcher.expect(&topic, b"kept", 1, true).await?;
    watcher.unsubscribe(&topic).await?;
    story.keep(&mut car, "retained", "", 1, true).await?;
    watcher.subscribe(&topic, 1).await?;
    story.keep(&mut car, "retained", "live", 1, false).await?;
    watcher.expect(&topic, b"live", 1, false).await?;
    story.ok("retained message, and its removal");

    let topic = story.topic("will");
    watcher.subscribe(&topic, 1).await?;
    let mortal = || Manner {
        will: Some((topic.clone(), "gone")),
        ..Manner::default()
    };
    let (polite, _) = story.peer("mortal", mortal()).await?;
    polite.disconnect().await?;
    let (hasty, _) = story.peer("mortal", mortal()).await?;
    hasty.vanish().await;
    watcher.expect(&topic, b"gone", 1, false).await?;
    story.kept(&topic, b"gone");
    story.keep(&mut car, "will", "after", 1, false).await?;
    watcher.expect(&topic, b"after", 1, false).await?;
    story.ok("will, but not after DISCONNECT");

    let keeps = || Manner {
        keeps_session: true,
        ..Manner::default()
    };
    let (mut sleeper, _) = story.peer("sleeper", keeps()).await?;
    sleeper.subscribe(&story.topic("asleep/+"), 1).await?;
    sleeper.vanish().await;
    let topic = story.topic("asleep/a");
    for number in 0..5 {
        let payload = format!("while asleep {number}");
        story.keep(&mut car, "asleep/a", payload, 1, false).await?;
    }
    let (mut sleeper, present) = story.peer("sleeper", keeps()).await?;
    ensure!(present, "the session is not present");
    for number in 0..5 {
        let payload = format!("while asleep {number}");
        sleeper.expect(&topic, payload.as_bytes(), 1, false).await?;
    }
    sleeper.disconnect().await?;
    let (sleeper, present) = story.peer("sleeper", Manner::default()).await?;
    ensure!(!present, "a session is present after a clean start");
    sleeper.disconnect().await?;
    story.ok("a session is resumed, and given up");

    let (mut first, _) = story.peer("twin", Manner::default()).await?;
    let (second, _) = story.peer("twin", Manner::default()).await?;
    match first.news("the end of the first").await? {
        News::Ended(_) => {}
        other => bail!("the first twin: wanted its end, got {}", other.name()),
    }
    second.disconnect().await?;
    story.ok("a second connection with the same client id takes over");

    if let Handle::Five(client) = &car.handle {
        let topic = story.topic("properties");
        watcher.subscribe(&topic, 1).await?;
        let sent = v5::mqttbytes::v5::PublishProperties {
            content_type: Some("application/json".into()),
            payload_format_indicator: Some(1),
            response_topic: Some(story.topic("answers")),
            correlation_data: Some(every_byte.into()),
            user_properties: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            ..Default::default()
        };
        client
            .publish_with_properties(&topic, five(1), false, "{}", sent.clone())
            .await?;
        car.acknowledged(&topic).await?;
        story.kept(&topic, b"{}");
        let message = watcher.expect(&topic, b"{}", 1, false).await?;
        ensure!(
            message.properties.as_ref() == Some(&sent),
            "wanted {sent:?}, got {:?}",
            message.properties
        );
        story.ok("properties arrive as they were sent");
    }

    watcher.silent()?;
    watcher.disconnect().await?;
    car.disconnect().await?;
    story.ok("disconnect");
    Ok(())
}

#[tokio::main]
#[allow(clippy::print_stdout)] // What the test reads.
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let five = match (&*arguments.transport, &*arguments.version) {
        ("mqtt", "3.1.1") => false,
        ("mqtt", "5") => true,
        (transport, version) => {
            eprintln!("error: no {transport} with MQTT {version} here; mqtt with 3.1.1 or 5");
            return ExitCode::from(2);
        }
    };
    let story = Story { arguments, five };
    let outcome = timeout(WHOLE, steps(&story)).await;
    match outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("not done after {WHOLE:?}"))) {
        Ok(()) => {
            println!("done");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
