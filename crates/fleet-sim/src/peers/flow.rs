//! Flow: messages from publishers to readers, as fast as they go or at a fixed rate.
//!
//! ```text
//! closed loop:  a publisher writes a burst ─► the broker ─► readers ─► it may write the next
//! fixed rate:   publishers take turns; latency counts from when a message was due
//! ```
//! In the closed loop a publisher has few messages under way, and all publishers together at most
//! `outstanding`. A message is under way until its readers have it and, at QoS 1 and 2, until it is
//! acknowledged. At a fixed rate nobody waits: a broker that stalls answers for all that became due.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use mqtt::{QoS, Version};

use super::engine::{Engine, Wait, refuse_goodbye};
use super::frame::{self, Frame, Keeping, PUBACK, PUBCOMP, PUBREC, PUBREL, Retain, Topics};
use super::ledger::{Arrival, Lane, Tally};
use super::meter::{Meter, Report, Window};
use super::process::sharpen_timers;
use super::scanner::{Found, Kind};
use super::stamp::Stamp;
use super::{Common, Door, PeersError};
use crate::histogram::Histogram;
use crate::open_files::allow_open_files;

/// Connections being made at the same time, fewer than any broker's backlog.
pub(super) const AT_ONCE: usize = 64;
/// Filters in one SUBSCRIBE.
const FILTERS: usize = 50;
/// Filters of one client: what Milepost allows by default.
const FILTERS_EACH: usize = 1_000;
/// Bursts sent between two looks at what came.
const TURNS: usize = 1_024;
/// At a fixed rate: behind by so much, the generator or the broker's sockets cannot keep up.
const FAR_BEHIND: Duration = Duration::from_secs(2);

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// All publishers to one group of readers that share a subscription.
    FanIn,
    /// Every publisher to all readers.
    FanOut,
    /// Each publisher to a reader of its own.
    Pairs,
}

/// Requests, each answered by its receiver, beside everything else. Their round trips are the latency.
#[derive(Debug, Clone, Copy)]
pub struct Requests {
    /// Pairs of a client that asks and one that answers.
    pub pairs: usize,
    /// Requests per second of all of them together.
    pub rate: f64,
}

/// Messages that flow.
#[derive(Debug, Clone)]
pub struct Flow {
    /// What all scenarios have.
    pub common: Common,
    /// Who sends to whom.
    pub shape: Shape,
    /// How many send.
    pub publishers: usize,
    /// How many receive; for [`Shape::Pairs`] as many as send.
    pub readers: usize,
    /// Messages a publisher writes at once.
    pub burst: usize,
    /// Bursts of one publisher under way at most.
    pub depth: usize,
    /// Messages of all publishers under way at most.
    pub outstanding: usize,
    /// Messages per second of all publishers together, one at a time; as fast as possible without.
    pub rate: Option<f64>,
    /// Requests beside them, with `rate`.
    pub requests: Option<Requests>,
    /// Subscriptions that match none of the messages, in place before they flow.
    pub subscriptions: usize,
    /// Whether the broker keeps the sessions of readers.
    pub keeping: Keeping,
}

impl Flow {
    fn check(&self, door: &Door) -> Result<(), PeersError> {
        self.common.check()?;
        let problem = if door.most().is_some() {
            "messages flow between clients without certificates of their own"
        } else if self.publishers == 0 || self.readers == 0 {
            "0 publishers or readers: ask for at least one of each"
        } else if self.shape == Shape::Pairs && self.publishers != self.readers {
            "pairs have as many readers as publishers"
        } else if self.burst == 0 || self.depth == 0 || self.burst * self.depth > 60_000 {
            "a burst has 1 message at least, and a publisher at most 60,000 under way"
        } else if self.outstanding < self.burst {
            "fewer messages may be under way than there are in one burst"
        } else if self.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e6)) {
            "the rate: choose more than 0 and at most 1,000,000 per second"
        } else if self.requests.is_some() && self.rate.is_none() {
            "requests are made beside a fixed rate: give one"
        } else {
            return Ok(());
        };
        Err(PeersError::Options {
            problem: problem.to_owned(),
        })
    }

    /// Connects, lets messages flow, and counts.
    ///
    /// # Errors
    /// [`PeersError`] before there was anything to measure; what happens later is in the report.
    pub fn run(&self, door: &Door) -> Result<Report, PeersError> {
        self.check(door)?;
        sharpen_timers();
        let mut engine = Engine::new()?;
        let mut traffic = self.prepare(door, &mut engine)?;
        let mut report = Report {
            unit: "deliveries",
            ..Report::default()
        };
        match traffic.measure(self, &mut engine) {
            Ok(window) => report.window = window,
            Err(error) => report.troubles.push(error.in_words()),
        }
        report.tally = traffic.tally;
        if self.rate.is_some() {
            report.latency = Some(traffic.latency);
        }
        report.troubles.extend(traffic.trouble);
        report.peak_bytes = self.common.processes.peak();
        Ok(report)
    }

    fn topics(&self) -> Topics {
        let what = match self.shape {
            Shape::FanIn => "in",
            Shape::FanOut => "out",
            Shape::Pairs => "pair",
        };
        Topics::below(&format!("{}/{what}/", self.common.root))
    }

    fn filter(&self, topics: &Topics, reader: usize) -> String {
        match self.shape {
            Shape::FanIn => format!("$share/readers/{}", topics.all()),
            Shape::FanOut => topics.all(),
            Shape::Pairs => topics.number(reader),
        }
    }

    /// Everybody connects and subscribes.
    fn prepare(&self, door: &Door, engine: &mut Engine) -> Result<Traffic, PeersError> {
        let Common {
            qos, payload, root, ..
        } = &self.common;
        let (qos, payload, version) = (*qos, *payload, door.version);
        let asking = self.requests.map_or(0, |requests| requests.pairs);
        let holders = self.subscriptions.div_ceil(FILTERS_EACH);
        allow_open_files(self.publishers + self.readers + 2 * asking + holders)?;

        let (topics, questions, answers) = (
            self.topics(),
            Topics::below(&format!("{root}/ask/")),
            Topics::below(&format!("{root}/answer/")),
        );
        let mut wishes = Vec::new();
        let group = |engine: &mut Engine, role, count, keeping| {
            let first = engine.connect(door, &door.guests(role, count, keeping), AT_ONCE)?;
            Ok::<_, PeersError>(first..first + count)
        };
        // Those in the way first, as they would be.
        for (number, line) in group(engine, "holder", holders, Keeping::Clean)?.enumerate() {
            let last = self.subscriptions.min((number + 1) * FILTERS_EACH);
            let filters: Vec<_> = (number * FILTERS_EACH..last)
                .map(|filter| standing(root, filter))
                .collect();
            let packets = filters
                .chunks(FILTERS)
                .map(|some| frame::subscribe(version, qos, some));
            wishes.push((line, packets.collect::<Result<_, _>>()?));
        }
        let readers = group(engine, "reader", self.readers, self.keeping)?;
        for (number, line) in readers.clone().enumerate() {
            let filter = self.filter(&topics, number);
            wishes.push((line, vec![frame::subscribe(version, qos, &[filter])?]));
        }
        let publishers = group(engine, "publisher", self.publishers, Keeping::Clean)?;
        let askers = group(engine, "asker", asking, Keeping::Clean)?;
        for (number, line) in askers.clone().enumerate() {
            let filter = answers.number(number);
            wishes.push((line, vec![frame::subscribe(version, qos, &[filter])?]));
        }
        let answerers = group(engine, "answerer", asking, Keeping::Clean)?;
        for (number, line) in answerers.clone().enumerate() {
            let filter = questions.number(number);
            wishes.push((line, vec![frame::subscribe(version, qos, &[filter])?]));
        }
        engine.subscribe(&wishes, AT_ONCE)?;

        let frame = |topics, burst| Frame::new(version, qos, topics, payload, burst, Retain::No);
        let lanes = match self.shape {
            Shape::FanOut => self.publishers * self.readers,
            _ => self.publishers,
        };
        let people = publishers.clone().chain(askers.clone());
        Ok(Traffic {
            version,
            qos,
            shape: self.shape,
            begun: Instant::now(),
            fan: match self.shape {
                Shape::FanOut => self.readers as u64,
                _ => 1,
            },
            room: ((self.depth - 1) * self.burst) as u64,
            frame: frame(&topics, self.burst)?,
            question: frame(&questions, 1)?,
            answer: frame(&answers, 1)?,
            lanes: vec![Lane::default(); lanes],
            answered: vec![Lane::default(); asking],
            publishers: people.map(Publisher::new).collect(),
            ready: VecDeque::new(),
            readers,
            lines: publishers,
            askers,
            answer_ids: vec![1; asking],
            answerers,
            tally: Tally::default(),
            unacknowledged: 0,
            latency: Histogram::default(),
            timed: match (self.rate, self.requests) {
                (None, _) => Timed::Nothing,
                (_, None) => Timed::Messages,
                (_, Some(_)) => Timed::Requests,
            },
            trouble: None,
        })
    }
}

/// A subscription that is only there: half of them exact, half with a wildcard where messages differ.
fn standing(root: &str, number: usize) -> String {
    match number % 2 {
        0 => format!("{root}/pair/car-{number:07}/command"),
        _ => format!("{root}/+/{number:07}/alarm/#"),
    }
}

/// Someone who sends.
struct Publisher {
    line: usize,
    sent: u32,
    undelivered: u64,
    unacknowledged: u64,
    next_id: u16,
    queued: bool,
}

impl Publisher {
    fn new(line: usize) -> Self {
        Self {
            line,
            sent: 0,
            undelivered: 0,
            unacknowledged: 0,
            next_id: 1,
            queued: false,
        }
    }
}

/// What latency is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Timed {
    Nothing,
    Messages,
    Requests,
}

/// All that changes while messages flow.
struct Traffic {
    version: Version,
    qos: QoS,
    shape: Shape,
    begun: Instant,
    /// Deliveries of a message.
    fan: u64,
    /// Messages of one publisher that may be under way when it writes the next burst.
    room: u64,
    frame: Frame,
    question: Frame,
    answer: Frame,
    lanes: Vec<Lane>,
    /// Answers, by who asked.
    answered: Vec<Lane>,
    /// Those of messages, then those who ask.
    publishers: Vec<Publisher>,
    ready: VecDeque<usize>,
    readers: Range<usize>,
    lines: Range<usize>,
    askers: Range<usize>,
    answerers: Range<usize>,
    answer_ids: Vec<u16>,
    tally: Tally,
    unacknowledged: u64,
    latency: Histogram,
    timed: Timed,
    trouble: Option<String>,
}

/// Messages at a fixed rate: who is next, and when.
struct Rhythm {
    every: Duration,
    next: Instant,
    turn: usize,
    among: Range<usize>,
}

impl Rhythm {
    fn new(rate: f64, begin: Instant, among: Range<usize>) -> Self {
        Self {
            every: Duration::from_secs_f64(1.0 / rate),
            next: begin,
            turn: 0,
            among,
        }
    }
}

impl Traffic {
    /// Lets them flow until the window is over, then waits for what is under way.
    fn measure(&mut self, flow: &Flow, engine: &mut Engine) -> Result<Window, PeersError> {
        let (common, asking) = (&flow.common, self.askers.len());
        let senders = self.publishers.len() - asking;
        self.begun = Instant::now();
        let opens = self.begun + common.warm_up;
        // Counted from when the window did open, late or not.
        let mut closes = None;
        let mut rhythms = Vec::new();
        if let Some(rate) = flow.rate {
            rhythms.push(Rhythm::new(rate, self.begun, 0..senders));
            if let Some(requests) = flow.requests {
                let among = senders..senders + asking;
                rhythms.push(Rhythm::new(requests.rate, self.begun, among));
            }
        } else {
            self.ready.extend(0..senders);
            self.publishers.iter_mut().for_each(|one| one.queued = true);
        }
        let most = flow.outstanding as u64 * self.fan;
        let (mut meter, mut seen, mut progress) = (None, 0, self.begun);
        loop {
            let now = Instant::now();
            if meter.is_none() && now >= opens {
                self.latency = Histogram::default();
                meter = Some(Meter::start(&common.processes, self.tally.received));
                closes = Some(now + common.lasts);
            }
            if closes.is_some_and(|closes| now >= closes) {
                break;
            }
            if self.tally.received + self.tally.acknowledged != seen {
                (seen, progress) = (self.tally.received + self.tally.acknowledged, now);
            } else if now - progress > common.patience {
                self.trouble = Some(format!(
                    "nothing came for {} s",
                    common.patience.as_secs_f64()
                ));
                break;
            }
            let mut next = closes.unwrap_or(opens);
            for rhythm in &mut rhythms {
                self.keep(rhythm, now, engine)?;
                next = next.min(rhythm.next);
            }
            let mut turns = TURNS;
            while turns > 0
                && self.tally.under_way() + flow.burst as u64 * self.fan <= most
                && let Some(one) = self.ready.pop_front()
            {
                self.publishers[one].queued = false;
                let at = now - self.begun;
                self.publish(one, flow.burst, at, engine)?;
                self.queue_if_ready(one);
                turns -= 1;
            }
            if turns == 0 {
                next = now; // more may be sent, after a look at what came
            }
            let wait = next.saturating_duration_since(now);
            let wait = match self.timed {
                Timed::Nothing => Wait::About(wait.min(common.patience)),
                _ => Wait::Exactly(wait.saturating_sub(now.elapsed())),
            };
            engine.turn(
                wait,
                &mut |number, found: Found<'_>, answers: &mut Vec<u8>| {
                    self.hear(number, found, answers)
                },
            )?;
            engine.all_stand()?;
        }
        let window = match &meter {
            Some(meter) => meter.stop(&common.processes, self.tally.received),
            None => Window::default(),
        };
        self.drain(flow, engine)?;
        Ok(window)
    }

    /// Sends what is due.
    fn keep(
        &mut self,
        rhythm: &mut Rhythm,
        now: Instant,
        engine: &mut Engine,
    ) -> Result<(), PeersError> {
        if now.saturating_duration_since(rhythm.next) > FAR_BEHIND {
            self.trouble = Some(format!("behind the rate by {FAR_BEHIND:?}"));
        }
        while rhythm.next <= now {
            let one = rhythm.among.start + rhythm.turn;
            rhythm.turn = (rhythm.turn + 1) % rhythm.among.len();
            self.publish(one, 1, rhythm.next - self.begun, engine)?;
            rhythm.next += rhythm.every;
        }
        Ok(())
    }

    fn publish(
        &mut self,
        one: usize,
        count: usize,
        at: Duration,
        engine: &mut Engine,
    ) -> Result<(), PeersError> {
        let senders = self.publishers.len() - self.askers.len();
        let publisher = &mut self.publishers[one];
        let (frame, topic, fan) = match one.checked_sub(senders) {
            None => (&mut self.frame, one, self.fan),
            Some(asker) => (&mut self.question, asker, 1),
        };
        for place in 0..count {
            let stamp = Stamp {
                publisher: one as u32,
                number: publisher.sent,
                at_ns: at.as_nanos() as u64,
            };
            frame.patch(place, topic, publisher.next_id, stamp);
            publisher.sent += 1;
            publisher.next_id = following(publisher.next_id);
        }
        publisher.undelivered += count as u64 * fan;
        self.tally.sent += count as u64;
        self.tally.due += count as u64 * fan;
        if self.qos != QoS::AtMostOnce {
            publisher.unacknowledged += count as u64;
            self.unacknowledged += count as u64;
        }
        engine.send(publisher.line, frame.first(count))
    }

    fn queue_if_ready(&mut self, one: usize) {
        let publisher = &mut self.publishers[one];
        if self.timed == Timed::Nothing
            && !publisher.queued
            && publisher.undelivered <= self.room * self.fan
            && publisher.unacknowledged <= self.room
        {
            publisher.queued = true;
            self.ready.push_back(one);
        }
    }

    fn hear(
        &mut self,
        number: usize,
        found: Found<'_>,
        answers: &mut Vec<u8>,
    ) -> Result<(), PeersError> {
        match found.kind {
            Kind::Publish => {
                let message = found.message(self.version)?;
                if let Some(id) = message.id {
                    acknowledge(message.qos, id, answers);
                }
                let stamp = message.stamp();
                if self.answerers.contains(&number) {
                    return self.reply(number - self.answerers.start, stamp, answers);
                }
                self.arrived(number, stamp);
            }
            Kind::PubRel => answer(PUBCOMP, found.id()?, answers),
            Kind::PubRec if found.reason() < 0x80 => answer(PUBREL, found.id()?, answers),
            Kind::PubAck | Kind::PubComp | Kind::PubRec => {
                let one = if self.lines.contains(&number) {
                    number - self.lines.start
                } else if self.askers.contains(&number) {
                    self.lines.len() + number - self.askers.start
                } else {
                    return Ok(()); // of an answer: it is counted by who asked
                };
                match found.reason() {
                    0x80.. => self.tally.refused += 1,
                    _ => self.tally.acknowledged += 1,
                }
                let publisher = &mut self.publishers[one];
                publisher.unacknowledged = publisher.unacknowledged.saturating_sub(1);
                self.unacknowledged = self.unacknowledged.saturating_sub(1);
                self.queue_if_ready(one);
            }
            _ => refuse_goodbye(&found)?,
        }
        Ok(())
    }

    /// A message came where it belongs, or elsewhere.
    fn arrived(&mut self, number: usize, stamp: Option<Stamp>) {
        let Some((stamp, one)) = stamp
            .map(|stamp| (stamp, stamp.publisher as usize))
            .filter(|(_, one)| *one < self.publishers.len())
        else {
            return self.tally.count(Arrival::Alien);
        };
        let sent = self.publishers[one].sent;
        let senders = self.lines.len();
        let reader = number.wrapping_sub(self.readers.start);
        let lane = if one >= senders {
            let asker = one - senders;
            (number == self.askers.start + asker).then(|| &mut self.answered[asker])
        } else if !self.readers.contains(&number) {
            None
        } else {
            match self.shape {
                Shape::FanIn => self.lanes.get_mut(one),
                Shape::FanOut => self.lanes.get_mut(one * self.readers.len() + reader),
                Shape::Pairs => (reader == one).then(|| &mut self.lanes[one]),
            }
        };
        let arrival = lane.map_or(Arrival::Alien, |lane| lane.take(stamp.number, sent));
        self.tally.count(arrival);
        if arrival == Arrival::New {
            self.publishers[one].undelivered -= 1;
            match self.timed {
                Timed::Nothing => self.queue_if_ready(one),
                Timed::Requests if one < senders => {}
                _ => {
                    let took = self.begun.elapsed().as_nanos() as u64;
                    self.latency
                        .add_us(took.saturating_sub(stamp.at_ns) / 1_000);
                }
            }
        }
    }

    /// A request came: its answer is the same stamp.
    fn reply(
        &mut self,
        who: usize,
        stamp: Option<Stamp>,
        answers: &mut Vec<u8>,
    ) -> Result<(), PeersError> {
        match stamp {
            Some(stamp) => {
                let id = &mut self.answer_ids[who];
                self.answer.patch(0, who, *id, stamp);
                *id = following(*id);
                answers.extend_from_slice(self.answer.first(1));
            }
            None => self.tally.count(Arrival::Alien),
        }
        Ok(())
    }

    /// Takes what is under way, until it has all come or nothing comes any more.
    fn drain(&mut self, flow: &Flow, engine: &mut Engine) -> Result<(), PeersError> {
        self.ready.clear();
        let patience = flow.common.patience;
        let (mut seen, mut progress) = (0, Instant::now());
        while self.tally.under_way() + self.unacknowledged > 0 {
            let now = Instant::now();
            let count = self.tally.received + self.tally.acknowledged;
            if count != seen {
                (seen, progress) = (count, now);
            }
            let left = patience.saturating_sub(now - progress);
            if left.is_zero() {
                break;
            }
            engine.turn(
                Wait::About(left),
                &mut |number, found: Found<'_>, out: &mut Vec<u8>| self.hear(number, found, out),
            )?;
            engine.all_stand()?;
        }
        // What comes a second time is behind the first, but before the answer to this.
        engine.barrier(
            self.readers.clone(),
            patience,
            &mut |number, found: Found<'_>, out: &mut Vec<u8>| self.hear(number, found, out),
        )?;
        if self.tally.lost() == 0 && self.unacknowledged > 0 {
            self.trouble = Some(format!("{} not acknowledged", self.unacknowledged));
        }
        engine.all_stand()
    }
}

/// The packet identifier after this one.
pub(super) fn following(id: u16) -> u16 {
    id.checked_add(1).unwrap_or(1)
}

/// The first answer to a message at QoS 1 or 2.
pub(super) fn acknowledge(qos: u8, id: u16, out: &mut Vec<u8>) {
    answer(if qos == 1 { PUBACK } else { PUBREC }, id, out);
}

pub(super) fn answer(first: u8, id: u16, out: &mut Vec<u8>) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[first, 2, high, low]);
}
