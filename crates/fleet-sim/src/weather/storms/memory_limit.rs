//! Memory limit: everything that a server keeps for its clients is filled at the same time: queues of
//! clients that do not read (TCP and TLS) or do not acknowledge, sessions that nobody fetches from,
//! retained messages, wills; after a third of the time packets of which the rest never comes (whoever
//! needs memory to be read is turned away from then on), in the last quarter the number of sessions.
//!
//! Started with small limits (`bench/weather.py` has them) a server reaches all of them within seconds,
//! and its resident memory can be compared with a bound that is small, too. What a message costs beside
//! its bytes is where such bounds go wrong, so small messages are sent wherever small ones fill more.

use std::cell::Cell;
use std::num::NonZeroU16;

use bytes::Bytes;
use mqtt::{Connect, TopicName, Version, Will, WillProperties};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::prelude::*;
use super::unfinished;
use super::volley::{Shot, volley};
use crate::client::transport::Wire;
use crate::credentials::anonymous_client_config;

/// Subscribers that read nothing, over each of TCP and TLS.
const STUCK: usize = 16;
/// Subscribers that take one message and never acknowledge it.
const SILENT: usize = 64;
/// Connections that begin a packet, every third of them over TLS.
const UNFINISHED: usize = 300;
/// Sessions that were left behind.
const STORED: usize = 200;
/// Sessions that were left behind with a will; half of these wills are published at once, and retained.
const WILLS: usize = 200;

/// Of one message for those who do not read: the system's buffers are to be full soon.
const LARGE: usize = 60_000;
/// Of one message where it is the number that counts.
const SMALL: usize = 16;
const RETAINED: usize = 2_048;
const STORED_SIZE: usize = 256;
const WILL: usize = 60_000;
/// Seconds that sessions and wills are kept: longer than any storm.
const KEPT: u32 = 3_600;
/// Messages of a volley.
const VOLLEY: usize = 200;
/// Who publish to those who do not take it: more than one, for each may send only so fast.
const PUBLISHERS: usize = 5;
/// Making sessions at the same time.
const AT_ONCE: usize = 20;
/// After a refusal.
const PAUSE: Duration = Duration::from_millis(20);
/// Before somebody who was sent away comes again.
const AWAY: Duration = Duration::from_millis(500);
/// Before a reader looks what became of it, and comes again.
const STUBBORN: Duration = Duration::from_secs(3);
/// For it to learn that.
const LOOK: Duration = Duration::from_secs(1);

/// What a subscriber neglects to do with the messages it asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Neglects {
    Reading,
    ReadingOverTls,
    Acknowledging,
}

pub(in crate::weather) async fn blow(scene: &Scene) -> Result<String, StormError> {
    let ca_pem = scene.place.secure.as_ref().map(|secure| &*secure.ca_pem);
    let config = anonymous_client_config(ca_pem.unwrap_or_default())
        .map_err(|e| StormError::Tls(e.into()))?;
    let storm = Storm {
        scene,
        tls: TlsConnector::from(config),
        unfinished: unfinished::beginning(),
    };
    scene.prepared().await;
    let (stuck, silent) = (scene.share(STUCK), scene.share(SILENT));
    let sum = |parts: [u64; 2]| parts.iter().sum::<u64>();
    let (_, pushed, begun, stored, retained, wills, sessions) = tokio::join!(
        crowd(2 * stuck + silent, |number| storm.subscriber(number, stuck)),
        crowd(PUBLISHERS, |number| storm.push(number, stuck, silent)),
        crowd(scene.share(UNFINISHED), |number| storm
            .begin_packets(number)),
        storm.fill_sessions(scene.share(STORED)),
        async {
            sum(tokio::join!(
                storm.retain("small", SMALL),
                storm.retain("large", RETAINED)
            )
            .into())
        },
        storm.leave_wills(scene.share(WILLS)),
        storm.crowd_sessions(),
    );
    Ok(format!(
        "{pushed} messages taken for {} readers that take nothing, {begun} packets begun, {stored} messages \
         taken for sessions that are away, {retained} retained, {wills} wills left, {sessions} further sessions",
        2 * stuck + silent
    ))
}

/// What all parts of it need.
struct Storm<'a> {
    scene: &'a Scene,
    tls: TlsConnector,
    unfinished: unfinished::Beginning,
}

impl Storm<'_> {
    /// How much of it is left.
    fn lasts(&self) -> Duration {
        self.scene.until() - Instant::now()
    }

    async fn wire(&self, neglects: Neglects) -> Result<Box<dyn Wire>, Turned> {
        Ok(match neglects {
            Neglects::Acknowledging => Box::new(self.scene.plain(Receives::Usual).await?),
            Neglects::Reading => Box::new(self.scene.plain(Receives::Little).await?),
            Neglects::ReadingOverTls => self.encrypted(Receives::Little).await?,
        })
    }

    async fn encrypted(&self, receives: Receives) -> Result<Box<dyn Wire>, Turned> {
        let tcp = self.scene.secure(receives).await?;
        let name = ServerName::try_from("localhost").map_err(|_| Turned::Tls)?;
        Ok(Box::new(self.tls.connect(name, tcp).await?))
    }

    /// Comes again and again until the time is over; each visit ends with how it was turned away.
    async fn again<F: Future<Output = Result<(), Turned>>>(
        &self,
        who: &str,
        mut visit: impl FnMut() -> F,
    ) {
        while !self.scene.is_over() {
            if let Some(Err(turned)) = self.scene.while_it_lasts(visit()).await {
                self.scene.tally.count(format!("{who}: {turned}"));
                let _ = self.scene.while_it_lasts(sleep(AWAY)).await;
            }
        }
    }

    /// One of those for whom messages wait.
    async fn subscriber(&self, number: usize, stuck: usize) -> u64 {
        let (neglects, who) = match number {
            n if n < stuck => (Neglects::Reading, "stuck"),
            n if n < 2 * stuck => (Neglects::ReadingOverTls, "stuck, TLS"),
            _ => (Neglects::Acknowledging, "silent"),
        };
        self.again(who, || async move {
            let mut connect = Connect::new(Version::V5, format!("full-reader-{number}").as_str());
            if neglects == Neglects::Acknowledging {
                connect.properties.receive_maximum = NonZeroU16::new(1);
            }
            let mut reader = Visitor::arrive_as(self.wire(neglects).await?, connect).await?;
            let filter = reader_topic(number);
            for code in reader.subscribe(&[filter], QoS::AtLeastOnce).await? {
                if code.is_error() {
                    self.scene
                        .tally
                        .count(format!("{who}: SUBACK {}", Code(code)));
                }
            }
            sleep(STUBBORN).await;
            match tokio::time::timeout(LOOK, reader.linger()).await {
                Ok(turned) => Err(turned),
                Err(_) => Ok(()), // still served
            }
        })
        .await;
        0
    }

    /// Publishes to them: number 0 large messages to those who do not read, the others small ones to
    /// those who do not acknowledge.
    async fn push(&self, number: usize, stuck: usize, silent: usize) -> u64 {
        let (readers, size, each) = match number {
            0 => (0..2 * stuck, LARGE, VOLLEY / 50),
            _ => (2 * stuck..2 * stuck + silent, SMALL, VOLLEY),
        };
        // Each begins elsewhere.
        let mut turn = readers
            .clone()
            .cycle()
            .skip(number * readers.len() / PUBLISHERS);
        self.publish("readers", || {
            let reader = turn.next().unwrap_or(readers.start);
            shots((0..each).map(move |_| reader_topic(reader)), size, false)
        })
        .await
    }

    /// Begins packets, over TCP and TLS.
    async fn begin_packets(&self, number: usize) -> u64 {
        sleep(self.lasts().mul_f64(0.33)).await;
        let begun = Cell::new(0);
        let count = &begun;
        self.again("incomplete", || async move {
            let wire: Box<dyn Wire> = match number % 3 {
                0 => self.encrypted(Receives::Usual).await?,
                _ => Box::new(self.scene.plain(Receives::Usual).await?),
            };
            let mut visitor = Visitor::arrive(wire, &format!("full-begun-{number}")).await?;
            visitor.spit(self.unfinished.with_a_quarter());
            count.set(count.get() + 1);
            // Refused in the middle of it: what the server said is still to be read.
            let _ = visitor.flush().await;
            Err(visitor.linger().await)
        })
        .await;
        begun.get()
    }

    /// Leaves sessions behind, and publishes to them.
    async fn fill_sessions(&self, count: usize) -> u64 {
        self.in_turns(count, |number| async move {
            let id = format!("full-stored-{number}");
            let leave = async {
                let mut session = self.keeping(&id, None).await?;
                let filter = stored_topic(number);
                session.subscribe(&[filter], QoS::AtLeastOnce).await?;
                session.leave().await;
                Ok(())
            };
            self.settle("stored", leave).await
        })
        .await;
        crowd(2, |first| async move {
            let mut turn = (0..count).cycle().skip(first * count / 2);
            self.publish("stored", || {
                let number = turn.next().unwrap_or(0);
                shots(
                    (0..VOLLEY).map(move |_| stored_topic(number)),
                    STORED_SIZE,
                    false,
                )
            })
            .await
        })
        .await
    }

    /// Retains messages of this size, each on a topic of its own.
    async fn retain(&self, name: &'static str, size: usize) -> u64 {
        let mut next = 0_u64;
        self.publish("retained", || {
            let first = next;
            next += VOLLEY as u64;
            let topics = (first..next).map(move |n| format!("weather/full/retained/{name}/{n}"));
            shots(topics, size, true)
        })
        .await
    }

    /// Leaves sessions with wills, without a goodbye.
    async fn leave_wills(&self, count: usize) -> u64 {
        self.in_turns(count, |number| async move {
            let topic = TopicName::parse(&format!("weather/full/will/{number}"));
            let Ok(topic) = topic else { return 0 }; // never: there is no wildcard in it
            let will = Will {
                qos: QoS::AtLeastOnce,
                retain: number % 2 == 1,
                topic,
                payload: vec![b'w'; WILL].into(),
                properties: WillProperties {
                    will_delay_interval: (number % 2 == 0).then_some(KEPT),
                    ..WillProperties::default()
                },
            };
            let id = format!("full-will-{number}");
            let leave = async {
                drop(self.keeping(&id, Some(will)).await?);
                Ok(())
            };
            self.settle("wills", leave).await
        })
        .await
    }

    /// Does something for 0 to `count`, a few at a time; returns for how many it worked.
    async fn in_turns<F: Future<Output = u64>>(
        &self,
        count: usize,
        each: impl Fn(usize) -> F,
    ) -> u64 {
        let next = Cell::new(0..count);
        let take = || {
            let mut rest = next.take();
            let number = rest.next();
            next.set(rest);
            number
        };
        crowd(AT_ONCE.min(count), |_| async {
            let mut worked = 0;
            while let (Some(number), false) = (take(), self.scene.is_over()) {
                worked += each(number).await;
            }
            worked
        })
        .await
    }

    /// 1 if it works, else it is counted why not.
    async fn settle(&self, who: &str, visit: impl Future<Output = Result<(), Turned>>) -> u64 {
        match self.scene.while_it_lasts(visit).await {
            None => 0,
            Some(Ok(())) => 1,
            Some(Err(turned)) => {
                self.scene.tally.count(format!("{who}: {turned}"));
                sleep(PAUSE).await;
                0
            }
        }
    }

    /// Makes sessions, in the last quarter of the time, until there may be no more.
    async fn crowd_sessions(&self) -> u64 {
        sleep(self.lasts().mul_f64(0.75)).await;
        let next = &Cell::new(0_u64);
        crowd(AT_ONCE, |_| async move {
            let mut made = 0;
            while !self.scene.is_over() {
                let number = next.replace(next.get() + 1);
                let id = format!("full-session-{number}");
                match self.scene.while_it_lasts(self.keeping(&id, None)).await {
                    None => {}
                    Some(Ok(session)) => {
                        session.leave().await;
                        made += 1;
                    }
                    Some(Err(turned)) => {
                        self.scene.tally.count(format!("sessions: {turned}"));
                        sleep(PAUSE).await;
                    }
                }
            }
            made
        })
        .await
    }

    /// A client whose session outlives its connection.
    async fn keeping(&self, id: &str, will: Option<Will>) -> Result<Visitor, Turned> {
        let mut connect = Connect::new(Version::V5, id);
        connect.properties.session_expiry_interval = Some(KEPT);
        connect.will = will;
        let wire: Box<dyn Wire> = Box::new(self.scene.plain(Receives::Usual).await?);
        Visitor::arrive_as(wire, connect).await
    }

    /// Publishes volley after volley, and counts what was taken.
    async fn publish<V: Iterator<Item = Shot>>(
        &self,
        who: &'static str,
        mut next: impl FnMut() -> V,
    ) -> u64 {
        let taken = Cell::new(0);
        while !self.scene.is_over() {
            let visit = async {
                let tcp = self.scene.plain(Receives::Usual).await?;
                let id = format!("full-{who}-{}", next_number());
                let mut publisher = Visitor::arrive(tcp, &id).await?;
                loop {
                    let answers = volley(&mut publisher, next()).await?;
                    taken.set(taken.get() + answers.taken);
                    if let Some(reason) = answers.reason {
                        let what = format!("{who}: PUBACK {}", Code(reason));
                        self.scene.tally.add(what, answers.refused);
                        sleep(PAUSE).await;
                    }
                }
            };
            if let Some(Err::<(), Turned>(turned)) = self.scene.while_it_lasts(visit).await {
                self.scene.tally.count(format!("{who}: {turned}"));
                sleep(AWAY).await;
            }
        }
        taken.get()
    }
}

/// Messages to these topics.
fn shots(
    topics: impl Iterator<Item = String>,
    size: usize,
    retain: bool,
) -> impl Iterator<Item = Shot> {
    let payload = Bytes::from(vec![b'x'; size]);
    topics.map(move |topic| Shot {
        topic,
        payload: payload.clone(),
        retain,
    })
}

fn reader_topic(number: usize) -> String {
    format!("weather/full/reader/{number}")
}

fn stored_topic(number: usize) -> String {
    format!("weather/full/stored/{number}")
}

/// Publishers of one kind are several, and each has a name of its own.
fn next_number() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
