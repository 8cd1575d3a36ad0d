//! Strangers: clients that say anything at all, to a broker that may crash, forget and be late.
//!
//! Driven by the bytes of a fuzzer ([`crate::fuzzing`]) instead of by dice, and without the judge, who
//! needs clients that keep to the protocol. Demanded is what holds for everybody:
//!
//! - no panic, and nothing grows beyond its limit;
//! - what the broker sends is MQTT in the client's version, in packets the client takes, within its Receive
//!   Maximum and its topic aliases;
//! - an answer is sent only for a request, and nothing after a refusal or DISCONNECT;
//! - when all are gone and time has passed, nothing of them is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use bytes::BytesMut;
use journal::Batch;
use mqtt::{Decoder, Packet, Publish, QoS, ReasonCode, Version};

use super::babble::{NAMES, Tape};
use super::dice::Dice;
use super::life::Life;
use super::link::BrokerEnd;
use super::outside::Outside;
use super::plan::Plan;
use super::store::SimStore;
use super::topics::{Area, TOPICS};
use crate::limits::Limits;
use crate::machine::Moment;
use crate::machine::connection::Appetite;
use crate::machine::outbox::More;
use crate::machine::tenants::{Farewell, Rest};

/// Transports at once.
const LINES: usize = 6;

/// Steps of one meeting: what a fuzzer shows in a few thousand bytes it shows in a few hundred.
const STEPS: usize = 1_500;

/// The wall clock at the beginning.
const BEGINNING_US: i64 = 1_700_000_000_000_000;

/// Lets strangers meet a broker, as the bytes of a fuzzer say.
///
/// # Panics
/// If the broker does what it must not; and if it panics itself.
pub fn meet(data: &[u8]) {
    let mut tape = Tape(data);
    let mut meeting = Meeting::new(&mut tape);
    for _ in 0..STEPS {
        if tape.is_over() {
            break;
        }
        meeting.step(&mut tape);
    }
    meeting.end();
}

struct Meeting {
    plan: Arc<Plan>,
    outside: Arc<Outside>,
    store: Arc<SimStore>,
    life: Life,
    lines: Vec<Line>,
    dice: Dice,
    ms: u64,
    born_ms: u64,
    wall_offset_us: i64,
}

/// One transport.
struct Line {
    end: BrokerEnd,
    /// Arrived at the broker and not taken in.
    inbox: BytesMut,
    decoder: Decoder,
    stranger: Stranger,
}

/// What a stranger knows of its connection.
struct Stranger {
    /// Made when the broker first speaks: the version is that of the CONNECT, if there was one.
    decoder: Option<Decoder>,
    heard: BytesMut,
    is_greeted: bool,
    /// The broker has said its last word.
    is_over: bool,
    max_packet: usize,
    receive_maximum: usize,
    alias_maximum: u16,
    /// Aliases the broker introduced.
    aliases: Vec<u16>,
    /// Messages sent to it and not answered.
    unanswered: BTreeMap<u16, QoS>,
    requests: Requests,
}

/// Requests the broker may still answer.
#[derive(Debug, Default)]
struct Requests {
    publishes: [usize; 2],
    releases: usize,
    subscribes: usize,
    unsubscribes: usize,
    pings: usize,
}

fn limits(limits: Limits) -> Limits {
    Limits {
        max_packet_size: 4096,
        max_queued: limits.max_queued.min(12),
        max_queued_bytes: limits.max_queued_bytes.clamp(4096, 16 * 1024),
        max_connections: LINES - 1,
        max_sessions: LINES,
        max_subscriptions: 10,
        max_filter_levels: 8,
        max_retained: 4,
        max_retained_bytes: 8 * 1024,
        max_stored_bytes: 32 * 1024,
        ..limits
    }
}

impl Meeting {
    fn new(tape: &mut Tape<'_>) -> Meeting {
        let mut dice = Dice::new(u64::from(tape.byte()));
        let mut plan = Plan::draw(&mut dice);
        plan.limits = limits(plan.limits);
        let plan = Arc::new(plan);
        let store = Arc::new(SimStore::default());
        let outside = Arc::new(Outside::new(
            Dice::new(dice.next()),
            plan.weather.tap,
            plan.weather.wildcards,
        ));
        let now = Moment {
            tick: 0,
            wall_us: BEGINNING_US,
        };
        let life = Life::begin(&plan, &outside, &store, Vec::new(), now, None);
        Meeting {
            plan,
            outside,
            store,
            life,
            lines: Vec::new(),
            dice,
            ms: 0,
            born_ms: 0,
            wall_offset_us: 0,
        }
    }

    fn now(&self) -> Moment {
        Moment {
            tick: self.ms - self.born_ms,
            wall_us: BEGINNING_US
                .saturating_add(self.ms as i64 * 1000)
                .saturating_add(self.wall_offset_us),
        }
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(32) {
            0..=2 => self.dial(tape),
            3..=12 => self.speak(tape),
            13..=18 => {
                let (line, limit) = (tape.below(LINES), tape.byte());
                self.visit(line, usize::from(limit) * 16 + 1);
            }
            19..=21 => {
                let shard = tape.below(self.life.shards.len());
                let now = self.now();
                self.life.mail(shard, now);
            }
            22 | 23 => {
                let count = tape.below(8);
                self.sync(count);
            }
            24 => {
                let ms = *tape.pick(&[1, 700, 1_000, 20_000, 100_000, 700_000_000]);
                self.advance(ms);
            }
            25 => self.hang_up(tape.below(LINES)),
            26 => self.access(tape),
            27 => {
                self.outside.tell(&mut self.dice, 20);
            }
            28 => self.crash(tape),
            29 => {
                let years = i64::from(tape.byte()) - 128;
                self.wall_offset_us = years * 365 * 24 * 3600 * 1_000_000;
            }
            30 => self.store.set_stalled(tape.one_in(2)),
            _ => self.publish_from_outside(tape),
        }
        self.look_around();
    }

    fn dial(&mut self, tape: &mut Tape<'_>) {
        let place = match self.lines.iter().position(Line::is_gone) {
            Some(place) => place,
            None if self.lines.len() < LINES => self.lines.len(),
            None => return,
        };
        let shard = tape.below(self.life.shards.len());
        let now = self.now();
        let Some(id) = self.life.open(shard, now) else {
            return;
        };
        let mut line = Line {
            end: BrokerEnd::Here(id),
            inbox: BytesMut::new(),
            decoder: Decoder::for_server(self.plan.limits.max_packet_size),
            stranger: Stranger::new(),
        };
        if !tape.one_in(8) {
            let connect = tape.connect();
            let version = connect.version;
            // What cannot be said is not said.
            let _ = mqtt::encode(&connect.into(), version, &mut line.inbox);
        }
        match self.lines.get_mut(place) {
            Some(gone) => *gone = line,
            None => self.lines.push(line),
        }
        self.visit(place, usize::MAX);
    }

    /// Bytes arrive from a stranger.
    fn speak(&mut self, tape: &mut Tape<'_>) {
        let place = tape.below(LINES);
        let how = tape.byte();
        let Some(line) = self.lines.get_mut(place) else {
            return;
        };
        if line.inbox.len() > 8 * 1024 || line.is_gone() {
            return;
        }
        let start = line.inbox.len();
        if how.is_multiple_of(16) {
            let count = usize::from(tape.byte());
            line.inbox.extend_from_slice(&tape.take(count));
        } else {
            let version = line.decoder.version().unwrap_or(Version::V5);
            let packet = tape.packet(version);
            if mqtt::encode(&packet, version, &mut line.inbox).is_err() {
                line.inbox.truncate(start);
            }
            let len = line.inbox.len() - start;
            match how % 16 {
                // One byte is another.
                1 if len > 0 => {
                    let at = start + tape.below(len);
                    line.inbox[at] = tape.byte();
                }
                // The end is missing.
                2 => line.inbox.truncate(start + tape.below(len + 1)),
                _ => {}
            }
        }
        if how < 160 {
            self.visit(place, usize::MAX);
        }
    }

    /// The broker's task of a connection runs, as `shell::link` does.
    fn visit(&mut self, place: usize, limit: usize) {
        let now = self.now();
        let Some(line) = self.lines.get_mut(place) else {
            return;
        };
        if let BrokerEnd::Moving(_) = line.end {
            let BrokerEnd::Moving(departure) = std::mem::replace(&mut line.end, BrokerEnd::Gone)
            else {
                return;
            };
            match self.life.arrive(departure, now) {
                Some(id) => line.end = BrokerEnd::Here(id),
                None => return,
            }
        }
        let Some(id) = line.id() else { return };
        let shard = id.shard();
        self.life.shards[shard].set_time(now);
        self.life.shards[shard].awake(id);
        loop {
            if self.life.is_held_up(shard) {
                break;
            }
            let machine = &mut self.life.shards[shard];
            match machine.appetite(id) {
                Appetite::Hungry => {}
                Appetite::Waiting => break,
                Appetite::Over => {
                    line.inbox.clear();
                    break;
                }
            }
            match line.decoder.decode(&mut line.inbox) {
                Ok(Some(packet)) => {
                    line.stranger.said(&packet);
                    machine.packet(id, packet);
                }
                Ok(None) => break,
                Err(error) => {
                    machine.malformed(id, error, line.decoder.version());
                    line.inbox.clear();
                    break;
                }
            }
            if let Some(departure) = machine.departure(id) {
                machine.settle();
                line.end = BrokerEnd::Moving(departure);
                return;
            }
        }
        let machine = &mut self.life.shards[shard];
        machine.settle();
        let mut bytes = BytesMut::new();
        let mut more = machine.write(id, &mut bytes, limit);
        while more == More::No && bytes.len() < limit && machine.walk_on(id) {
            more = machine.write(id, &mut bytes, limit);
        }
        let version = line.decoder.version().unwrap_or(Version::V311);
        line.stranger.hear(&bytes, version);
        let rest = match more {
            More::Yes => Rest::Blocked,
            More::No => Rest::Asleep,
        };
        machine.sleep(id, rest, Waker::noop());
        machine.settle();
        if let Some(farewell) = machine.farewell(id)
            && (more == More::No || farewell == Farewell::Drop)
        {
            let mut bytes = BytesMut::new();
            machine.write(id, &mut bytes, usize::MAX);
            line.stranger.hear(&bytes, version);
            machine.release(id);
            machine.settle();
            line.end = BrokerEnd::Gone;
        }
    }

    fn hang_up(&mut self, place: usize) {
        let now = self.now();
        let Some(line) = self.lines.get_mut(place) else {
            return;
        };
        if let BrokerEnd::Here(id) = line.end {
            let machine = &mut self.life.shards[id.shard()];
            machine.set_time(now);
            machine.lost(id, "the stranger is gone".to_owned());
            machine.settle();
            machine.release(id);
            machine.settle();
        }
        line.end = BrokerEnd::Gone;
    }

    fn sync(&mut self, count: usize) {
        if !self.store.is_stalled() && self.store.sync(count) {
            self.life.stored(self.store.durable_batches());
        }
    }

    fn advance(&mut self, ms: u64) {
        self.ms += ms;
        let now = self.now();
        for shard in 0..self.life.shards.len() {
            self.life.turn(shard, now);
        }
    }

    fn access(&mut self, tape: &mut Tape<'_>) {
        let name = *tape.pick(&NAMES);
        let area = *tape.pick(&Area::ALL);
        match tape.below(4) {
            0 => self.outside.grant(name, area),
            1 => self.outside.deny(name, area),
            2 => {
                let reason = ReasonCode::AdministrativeAction;
                self.life.exchange.disconnect_principal(name, reason);
            }
            _ => self.life.exchange.access_changed_for_all(),
        }
        self.life.exchange.access_changed(name);
    }

    fn publish_from_outside(&mut self, tape: &mut Tape<'_>) {
        let publish = Publish {
            qos: *tape.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]),
            retain: tape.one_in(3),
            topic: (*tape.pick(TOPICS)).into(),
            payload: vec![b'o'; *tape.pick(&[0, 5, 500])].into(),
            ..Publish::default()
        };
        let now = self.now();
        // A message that is refused for want of room is as good.
        let _ = self.life.exchange.publish_from_outside(&publish, now);
    }

    fn crash(&mut self, tape: &mut Tape<'_>) {
        let (durable, submitted) = (self.store.durable_batches(), self.store.submitted());
        let kept = durable + tape.below(submitted - durable + 1);
        for line in &mut self.lines {
            line.end = BrokerEnd::Gone;
        }
        self.outside.forget_untold();
        let records = self.store.crash(kept);
        self.born_ms = self.ms;
        let now = self.now();
        self.life = Life::begin(&self.plan, &self.outside, &self.store, records, now, None);
    }

    /// After every step.
    fn look_around(&mut self) {
        let limits = &self.plan.limits;
        if let Err(violation) = self.life.check_bounds(limits) {
            panic!("{violation:?}");
        }
        let _ = (self.outside.take_asked(), self.outside.take_outcomes());
        let stats = self.life.exchange.stats();
        let kept = limits.max_stored_bytes
            + limits.max_retained_bytes
            + limits.max_sessions * limits.max_queued_bytes;
        let rows = [
            ("connections", stats.connections, limits.max_connections + 1),
            ("sessions", stats.sessions, limits.max_sessions),
            ("retained", stats.retained, limits.max_retained),
            (
                "retained bytes",
                stats.retained_bytes,
                limits.max_retained_bytes,
            ),
            ("bytes of messages kept", stats.messages_kept_bytes, kept),
        ];
        for (what, count, limit) in rows {
            assert!(count <= limit as u64, "{count} {what}, {limit} at most");
        }
    }

    /// Everybody leaves and everything ends; nothing of it may be left but what is retained.
    fn end(&mut self) {
        self.store.set_stalled(false);
        self.outside.heal();
        for place in 0..self.lines.len() {
            self.hang_up(place);
        }
        self.come_to_rest();
        // Sessions last a week at most; wills and what they lead to, a little longer.
        for ms in [1_000, 60_000, 30 * 24 * 3600 * 1000, 1_000, 1_000] {
            self.advance(ms);
            self.come_to_rest();
        }
        // What nobody refers to any more goes with the next batch, whatever that is.
        self.life.exchange.submit(&mut Batch::default());
        let stats = self.life.exchange.stats();
        let left = [
            ("connections", stats.connections),
            ("sessions", stats.sessions),
            ("stored sessions", stats.sessions_stored),
            ("subscriptions", stats.subscriptions),
            (
                "messages kept beside those retained",
                stats.messages_kept.abs_diff(stats.retained),
            ),
            (
                "records beside those of retained messages",
                (self.store.records().len() as u64).abs_diff(2 * stats.retained),
            ),
        ];
        for (what, count) in left {
            assert_eq!(count, 0, "{what} are left: {:?}", self.store.records());
        }
    }

    fn come_to_rest(&mut self) {
        for _ in 0..1_000 {
            self.sync(usize::MAX / 2);
            while self.outside.tell(&mut self.dice, 0) {}
            let now = self.now();
            for shard in 0..self.life.shards.len() {
                self.life.mail(shard, now);
            }
            let is_stored = self.store.durable_batches() == self.store.submitted();
            if is_stored && self.life.is_quiet() {
                return;
            }
        }
        panic!("the broker does not come to rest");
    }
}

impl Line {
    fn id(&self) -> Option<crate::machine::slots::ConnectionId> {
        match self.end {
            BrokerEnd::Here(id) => Some(id),
            BrokerEnd::Moving(_) | BrokerEnd::Gone => None,
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self.end, BrokerEnd::Gone)
    }
}

impl Stranger {
    fn new() -> Stranger {
        Stranger {
            decoder: None,
            heard: BytesMut::new(),
            is_greeted: false,
            is_over: false,
            max_packet: usize::MAX,
            receive_maximum: usize::from(u16::MAX),
            alias_maximum: 0,
            aliases: Vec::new(),
            unanswered: BTreeMap::new(),
            requests: Requests::default(),
        }
    }

    /// A packet of its own reached the broker.
    fn said(&mut self, packet: &Packet) {
        let requests = &mut self.requests;
        match packet {
            Packet::Connect(connect) => {
                let properties = &connect.properties;
                self.max_packet = properties
                    .maximum_packet_size
                    .map_or(usize::MAX, |size| size.get() as usize);
                self.receive_maximum = properties
                    .receive_maximum
                    .map_or(usize::from(u16::MAX), |max| usize::from(max.get()));
                self.alias_maximum = properties.topic_alias_maximum.unwrap_or(0);
            }
            Packet::Publish(publish) => match publish.qos {
                QoS::AtMostOnce => {}
                QoS::AtLeastOnce => requests.publishes[0] += 1,
                QoS::ExactlyOnce => requests.publishes[1] += 1,
            },
            Packet::PubRel(_) => requests.releases += 1,
            Packet::Subscribe(_) => requests.subscribes += 1,
            Packet::Unsubscribe(_) => requests.unsubscribes += 1,
            Packet::PingReq => requests.pings += 1,
            Packet::PubAck(ack) => {
                self.unanswered.remove(&ack.packet_id.get());
            }
            Packet::PubRec(ack) if ack.reason.is_error() => {
                self.unanswered.remove(&ack.packet_id.get());
            }
            Packet::PubComp(ack) => {
                self.unanswered.remove(&ack.packet_id.get());
            }
            _ => {}
        }
    }

    /// Bytes come from the broker.
    fn hear(&mut self, bytes: &[u8], version: Version) {
        if bytes.is_empty() {
            return;
        }
        assert!(!self.is_over, "{bytes:02x?} after the last word");
        self.heard.extend_from_slice(bytes);
        let mut decoder = self
            .decoder
            .take()
            .unwrap_or_else(|| Decoder::for_client(version, u32::MAX));
        loop {
            let before = self.heard.len();
            match decoder.decode(&mut self.heard) {
                Ok(Some(packet)) => {
                    assert!(!self.is_over, "{packet:?} after the last word");
                    let len = before - self.heard.len();
                    let max = self.max_packet;
                    assert!(len <= max, "{len} bytes, {max} at most: {packet:?}");
                    self.take(packet);
                }
                Ok(None) => break,
                Err(error) => panic!("not MQTT: {error}: {:02x?}", &self.heard[..]),
            }
        }
        assert!(
            self.heard.is_empty(),
            "half a packet: {:02x?}",
            &self.heard[..]
        );
        self.decoder = Some(decoder);
    }

    fn take(&mut self, packet: Packet) {
        let requests = &mut self.requests;
        let answers = |open: &mut usize| match open.checked_sub(1) {
            Some(left) => *open = left,
            None => panic!("an answer nobody asked for"),
        };
        match packet {
            Packet::ConnAck(ack) => {
                assert!(!self.is_greeted, "CONNACK twice");
                self.is_greeted = true;
                self.is_over = ack.reason != ReasonCode::Success;
            }
            Packet::Disconnect(_) => self.is_over = true,
            Packet::PubAck(_) => answers(&mut requests.publishes[0]),
            Packet::PubRec(_) => answers(&mut requests.publishes[1]),
            Packet::PubComp(_) => answers(&mut requests.releases),
            Packet::SubAck(_) => answers(&mut requests.subscribes),
            Packet::UnsubAck(_) => answers(&mut requests.unsubscribes),
            Packet::PingResp => answers(&mut requests.pings),
            Packet::Publish(publish) => self.take_message(&publish),
            Packet::PubRel(_) | Packet::Auth(_) => {}
            other => panic!("{other:?} from a broker"),
        }
    }

    fn take_message(&mut self, publish: &Publish) {
        if let Some(alias) = publish.properties.topic_alias {
            let alias = alias.get();
            assert!(alias <= self.alias_maximum, "topic alias {alias}");
            let is_known = self.aliases.contains(&alias);
            assert!(
                is_known || !publish.topic.is_empty(),
                "alias {alias}: what?"
            );
            if !is_known {
                self.aliases.push(alias);
            }
        }
        if let Some(id) = publish.packet_id {
            let before = self.unanswered.insert(id.get(), publish.qos);
            assert!(before.is_none(), "packet id {id:?} twice on one connection");
            let (open, max) = (self.unanswered.len(), self.receive_maximum);
            assert!(open <= max, "{open} messages unanswered, {max} at most");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::meet;

    /// What fuzzing found worth keeping, on a stable compiler. See `fuzz/README.md`.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let folder =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/broker_session");
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut paths: Vec<PathBuf> = files
            .map(|file| file.expect("folder is readable").path())
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} is empty", folder.display());
        for path in paths {
            // Names what the panic below belongs to.
            eprintln!("{}", path.display());
            meet(&fs::read(&path).expect("file is readable"));
        }
    }

    /// Without a fuzzer: bytes that steer well on the average.
    #[test]
    fn strangers_drawn_by_dice_do_no_harm() {
        for seed in 0..150 {
            let mut dice = super::Dice::new(seed);
            let bytes: Vec<u8> = (0..1_200).map(|_| dice.next() as u8).collect();
            meet(&bytes);
        }
    }
}
