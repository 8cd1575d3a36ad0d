//! One connection of the load: connects, waits for the others, publishes or stays, takes leave.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use mqtt::{ReasonCode, Subscribe, SubscribeProperties, Subscription, TopicFilter, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Barrier, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::template::{Round, Template};
use super::{LoadLive, Subscribed, Topics, Work};
use crate::client::connection::{Accepted, handshake};
use crate::client::transport::Wire;
use crate::client::{ClientError, ClientOptions, Delivery};
use crate::histogram::Histogram;

const PINGREQ: [u8; 2] = [0xC0, 0];
/// First bytes of what a server sends; the low bits are flags where a packet has any.
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBCOMP: u8 = 0x70;
const PINGRESP: u8 = 0xD0;
const DISCONNECT: u8 = 0xE0;
/// First byte of a PUBREL, with its flags.
const PUBREL: u8 = 0x62;
/// Bytes read at once: the acknowledgements of 500 messages.
const READ_ROOM: usize = 2 * 1024;

/// What the connections of one thread share.
pub(super) struct Share {
    pub(super) work: Work,
    pub(super) duration: Duration,
    pub(super) drain: Duration,
    /// Of all threads.
    pub(super) connections: usize,
    pub(super) together: Arc<Barrier>,
    pub(super) slots: Semaphore,
    pub(super) live: Arc<LoadLive>,
    pub(super) stop: CancellationToken,
    pub(super) begin: Instant,
    pub(super) latency: RefCell<Histogram>,
}

/// What came of a connection.
pub(super) enum Outcome {
    NotConnected(ClientError),
    Done(Done),
}

#[derive(Default)]
pub(super) struct Done {
    pub(super) connecting: Duration,
    /// Since the very first connection began.
    pub(super) connected_after: Duration,
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    pub(super) refused: u64,
    pub(super) working: Duration,
    pub(super) broken: Option<ClientError>,
}

impl Share {
    pub(super) async fn serve(
        &self,
        index: usize,
        options: ClientOptions,
        vehicle: &str,
    ) -> Result<Outcome, mqtt::EncodeError> {
        let made = self.connect(&options).await;
        // Whoever could not connect is waited for all the same: the barrier counts everybody.
        self.together.wait().await;
        let (accepted, mut done) = match made {
            Ok(made) => made,
            Err(error) => return Ok(Outcome::NotConnected(error)),
        };
        let live = &self.live.connected;
        live.fetch_add(1, Ordering::Relaxed);
        let begin = Instant::now();
        let mut line = Line::new(accepted);
        let result = match self.work {
            Work::Publish {
                delivery,
                payload,
                window,
                rate,
                count,
                topics,
            } => {
                let round = match topics {
                    Topics::Own => Round::Topic(format!("dt/load/bench/{vehicle}/x")),
                    Topics::Sessions { count } => Round::part(count, self.connections, index),
                };
                // Per topic, where there are many.
                let left = count.map(|count| count * round.topics() as u64);
                let template = Template::new(round, delivery, payload, options.version)?;
                let mut publisher = Publisher {
                    share: self,
                    template,
                    window: usize::from(line.receive_maximum.min(window)),
                    rhythm: rate.map(|rate| Rhythm::new(rate, self.connections, index, begin)),
                    left: left.unwrap_or(u64::MAX),
                    begin,
                    number: 0,
                    done: &mut done,
                };
                match delivery {
                    Delivery::AtLeastOnce | Delivery::ExactlyOnce => {
                        publisher.acknowledged(&mut line).await
                    }
                    Delivery::AtMostOnce => publisher.unacknowledged(&mut line).await,
                }
            }
            Work::Idle { subscribed } => self.idle(&mut line, &options, vehicle, subscribed).await,
        };
        match result {
            Ok(()) => line.leave(options.version).await,
            Err(error) => done.broken = Some(error),
        }
        live.fetch_sub(1, Ordering::Relaxed);
        Ok(Outcome::Done(done))
    }

    async fn connect(&self, options: &ClientOptions) -> Result<(Accepted, Done), ClientError> {
        // Never closed, so a slot always comes.
        let _slot = self.slots.acquire().await.ok();
        if self.stop.is_cancelled() {
            return Err(ClientError::Stopped);
        }
        let begin = Instant::now();
        let limit = options.connect_timeout;
        let accepted = match timeout(limit, Box::pin(handshake(options))).await {
            Ok(result) => result?,
            Err(_) => {
                return Err(ClientError::TimedOut {
                    what: "connection",
                    after: limit,
                });
            }
        };
        let done = Done {
            connecting: begin.elapsed(),
            connected_after: self.begin.elapsed(),
            ..Done::default()
        };
        Ok((accepted, done))
    }

    async fn idle(
        &self,
        line: &mut Line,
        options: &ClientOptions,
        vehicle: &str,
        subscribed: Subscribed,
    ) -> Result<(), ClientError> {
        if subscribed == Subscribed::Yes {
            let filter = format!("dt/load/bench/{vehicle}/command");
            let parsed = TopicFilter::parse(&filter)
                .map_err(|source| ClientError::Filter { filter, source })?;
            let subscribe = Subscribe {
                packet_id: mqtt::PacketId::FIRST,
                subscriptions: vec![Subscription::new(parsed, mqtt::QoS::AtLeastOnce)],
                properties: SubscribeProperties::default(),
            };
            let mut out = BytesMut::new();
            mqtt::encode(&subscribe.into(), options.version, &mut out)?;
            line.write(&out).await?;
        }
        let keep_alive = line.keep_alive.unwrap_or(options.keep_alive);
        let beat = keep_alive / 2;
        let end = sleep_until(Instant::now() + self.duration);
        tokio::pin!(end);
        let mut next_ping = Instant::now() + beat;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()), // cancel-safe: waiting changes nothing
                () = &mut end => return Ok(()),              // cancel-safe: waiting changes nothing
                // Cancel-safe: waiting changes nothing.
                () = sleep_until(next_ping), if !beat.is_zero() => {
                    line.write(&PINGREQ).await?;
                    next_ping += beat;
                }
                // Cancel-safe: reads into the buffer or reads nothing.
                read = line.read() => {
                    read?;
                    line.answers(|_, _, _| {})?;
                }
            }
        }
    }
}

/// When a connection's messages are due.
struct Rhythm {
    interval: Duration,
    next: Instant,
}

impl Rhythm {
    /// `rate` messages per second over all connections; they take turns.
    fn new(rate: f64, connections: usize, index: usize, begin: Instant) -> Self {
        let interval = Duration::from_secs_f64(connections as f64 / rate);
        let turn = index as f64 / connections as f64;
        Self {
            interval,
            next: begin + interval.mul_f64(turn),
        }
    }
}

/// Publishes over one connection.
struct Publisher<'a> {
    share: &'a Share,
    template: Template,
    window: usize,
    rhythm: Option<Rhythm>,
    left: u64,
    begin: Instant,
    number: u64,
    done: &'a mut Done,
}

impl Publisher<'_> {
    /// When the next message may go, if not now; `None` when the last has gone.
    fn due(&self, end: Instant) -> Option<Instant> {
        let due = self.rhythm.as_ref().map_or(self.begin, |r| r.next);
        (self.left > 0 && due < end && !self.share.stop.is_cancelled()).then_some(due)
    }

    /// QoS 1 and 2: as many in flight as the window allows.
    async fn acknowledged(&mut self, line: &mut Line) -> Result<(), ClientError> {
        let end = self.begin + self.share.duration;
        let give_up = end + self.share.drain;
        let mut free: Vec<u16> = (1..=self.window as u16).rev().collect();
        let mut sent_at: Vec<Option<Instant>> = vec![None; self.window + 1];
        let mut out = Vec::new();
        let mut last = self.begin;
        loop {
            let now = Instant::now();
            let mut batch = 0;
            let mut wait = None;
            while let Some(due) = self.due(end).filter(|_| now < end) {
                if due > now {
                    wait = Some(due);
                    break;
                }
                let Some(id) = free.pop() else { break };
                sent_at[usize::from(id)] = Some(if self.rhythm.is_some() { due } else { now });
                self.template.append(id, self.number, &mut out);
                self.next();
                batch += 1;
            }
            if !out.is_empty() {
                // The PUBRELs of the last wake-up, and new messages.
                line.write(&out).await?;
                out.clear();
                self.done.sent += batch;
                self.share.live.sent.fetch_add(batch, Ordering::Relaxed);
            }
            if free.len() == self.window && self.due(end).filter(|_| now < end).is_none() {
                self.done.working = last - self.begin;
                return Ok(());
            }
            // Something is in flight, or due later: wait for whichever comes first.
            let wake = if free.is_empty() { None } else { wait };
            let wake = wake.unwrap_or(if now < end { end } else { give_up });
            tokio::select! {
                // Cancel-safe: reads into the buffer or reads nothing.
                read = line.read() => read?,
                // Cancel-safe: waiting changes nothing.
                () = sleep_until(wake) => {
                    if Instant::now() >= give_up {
                        self.done.working = last - self.begin;
                        return Ok(()); // what is open now is lost
                    }
                    continue;
                }
                // Cancel-safe; looked at once, then `due` says that nothing more is to be sent.
                () = self.share.stop.cancelled(), if now < end && self.left > 0 => {
                    self.left = 0;
                    continue;
                }
            }
            last = Instant::now();
            let mut histogram = self.share.latency.borrow_mut();
            let mut acknowledged = 0;
            let mut stray = None;
            line.answers(|answer, id, reason| {
                let Some(slot) = sent_at
                    .get_mut(usize::from(id))
                    .filter(|slot| slot.is_some())
                else {
                    stray = Some(id);
                    return;
                };
                if answer == PUBREC && reason < 0x80 {
                    out.extend_from_slice(&[PUBREL, 2]);
                    out.extend_from_slice(&id.to_be_bytes());
                    return;
                }
                let sent = slot.take();
                free.push(id);
                if answer != PUBCOMP && reason >= 0x80 {
                    self.done.refused += 1;
                } else if let Some(sent) = sent {
                    acknowledged += 1;
                    histogram.add(last.saturating_duration_since(sent));
                }
            })?;
            if let Some(id) = stray {
                return Err(ClientError::Unexpected {
                    what: format!("an acknowledgement for {id}, which is not open"),
                });
            }
            self.done.acknowledged += acknowledged;
            let live = &self.share.live.acknowledged;
            live.fetch_add(acknowledged, Ordering::Relaxed);
        }
    }

    /// QoS 0: `window` messages per write. A PINGREQ behind the last one shows that all were read.
    async fn unacknowledged(&mut self, line: &mut Line) -> Result<(), ClientError> {
        let end = self.begin + self.share.duration;
        let mut out = Vec::new();
        loop {
            let now = Instant::now();
            let Some(due) = self.due(end).filter(|_| now < end) else {
                break;
            };
            if due > now {
                tokio::select! {
                    () = self.share.stop.cancelled() => break, // cancel-safe: only waits
                    () = sleep_until(due.min(end)) => continue, // cancel-safe: only waits
                }
            }
            out.clear();
            let mut batch = 0;
            while batch < self.window as u64 && self.due(end).is_some_and(|due| due <= now) {
                self.template.append(0, self.number, &mut out);
                self.next();
                batch += 1;
            }
            line.write(&out).await?;
            self.done.sent += batch;
            self.share.live.sent.fetch_add(batch, Ordering::Relaxed);
        }
        line.write(&PINGREQ).await?;
        let answered = async {
            while !line.pinged {
                line.read().await?;
                line.answers(|_, _, _| {})?;
            }
            Ok::<_, ClientError>(())
        };
        if let Ok(result) = timeout(self.share.drain, answered).await {
            result?;
            self.done.acknowledged = self.done.sent;
            let live = &self.share.live.acknowledged;
            live.fetch_add(self.done.sent, Ordering::Relaxed);
        }
        self.done.working = self.begin.elapsed();
        Ok(())
    }

    fn next(&mut self) {
        self.number += 1;
        self.left -= 1;
        if let Some(rhythm) = &mut self.rhythm {
            rhythm.next += rhythm.interval;
        }
    }
}

/// The bytes of a connection.
struct Line {
    wire: Box<dyn Wire>,
    inbox: BytesMut,
    receive_maximum: u16,
    keep_alive: Option<Duration>,
    pinged: bool,
}

impl Line {
    fn new(accepted: Accepted) -> Self {
        let properties = &accepted.hello.properties;
        Self {
            receive_maximum: properties
                .receive_maximum
                .map_or(u16::MAX, |most| most.get()),
            keep_alive: properties
                .server_keep_alive
                .map(|seconds| Duration::from_secs(seconds.into())),
            wire: accepted.wire,
            inbox: accepted.inbox,
            pinged: false,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let written = async {
            self.wire.write_all(bytes).await?;
            self.wire.flush().await
        };
        written
            .await
            .map_err(|source| ClientError::Broken { source })
    }

    async fn read(&mut self) -> Result<(), ClientError> {
        self.inbox.reserve(READ_ROOM);
        match self.wire.read_buf(&mut self.inbox).await {
            Ok(0) => Err(ClientError::Broken {
                source: std::io::ErrorKind::UnexpectedEof.into(),
            }),
            Ok(_) => Ok(()),
            Err(source) => Err(ClientError::Broken { source }),
        }
    }

    /// Goes through the whole packets that were read; hands the kind of each acknowledgement, its
    /// identifier and its reason code to `acknowledged`.
    fn answers(&mut self, mut acknowledged: impl FnMut(u8, u16, u8)) -> Result<(), ClientError> {
        while let Some((kind, header, length)) = front(&self.inbox)? {
            let body = &self.inbox[header..header + length];
            match kind {
                PUBACK | PUBREC | PUBCOMP if length >= 2 => {
                    let id = u16::from_be_bytes([body[0], body[1]]);
                    acknowledged(kind, id, body.get(2).copied().unwrap_or(0));
                }
                PINGRESP => self.pinged = true,
                DISCONNECT => {
                    let code = body.first().copied().unwrap_or(0);
                    return Err(ClientError::Disconnected {
                        reason: ReasonCode::from_u8(code).unwrap_or(ReasonCode::UnspecifiedError),
                        text: None,
                    });
                }
                _ => {} // SUBACK, and messages nobody asked for here
            }
            self.inbox.advance(header + length);
        }
        Ok(())
    }

    async fn leave(mut self, version: Version) {
        let mut out = BytesMut::new();
        let goodbye = mqtt::Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        // The work is done; a goodbye that gets lost changes nothing.
        if mqtt::encode(&goodbye.into(), version, &mut out).is_ok()
            && self.write(&out).await.is_ok()
        {
            let _ = self.wire.shutdown().await;
        }
    }
}

/// Kind, header length and remaining length of the packet at the front, if it is whole.
fn front(bytes: &[u8]) -> Result<Option<(u8, usize, usize)>, ClientError> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let mut length = 0;
    for (place, &byte) in bytes[1..].iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            let header = place + 2;
            let whole = bytes.len() >= header + length;
            return Ok(whole.then_some((first & 0xf0, header, length)));
        }
    }
    if bytes.len() > 4 {
        return Err(ClientError::Unexpected {
            what: "a remaining length of more than four bytes".into(),
        });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_found_only_when_whole() {
        for (bytes, expected) in [
            (&[][..], None),
            (&[0x40], None),
            (&[0x40, 2, 0], None),
            (&[0x40, 2, 0, 1], Some((0x40, 2, 2))),
            (&[0x40, 3, 0, 1, 0x87, 9], Some((0x40, 2, 3))),
            (&[0xD0, 0], Some((0xD0, 2, 0))),
            (&[0x32, 0x80, 0x01], None),
        ] {
            assert_eq!(front(bytes).unwrap(), expected, "{bytes:?}");
        }
        assert!(front(&[0x40, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_take_turns_and_keep_the_rate_together() {
        let begin = Instant::now();
        let first = Rhythm::new(1_000.0, 100, 0, begin);
        let second = Rhythm::new(1_000.0, 100, 1, begin);
        assert_eq!(first.interval, Duration::from_millis(100));
        assert_eq!(second.next - first.next, Duration::from_millis(1));
    }
}
