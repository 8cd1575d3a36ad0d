//! One run: a world drawn from a seed, driven step by step, judged all along.
//!
//! Each step does one thing that could happen next, drawn by weight: a client does or says something,
//! bytes move, a shard works through its mail, the store gets on, time passes, the broker dies. Now
//! and then everything is allowed to come to rest, which is when the judge can say what is missing. A
//! run ends with all obstacles removed, all clients back, and then with everything taken down again,
//! which must leave nothing behind.

use std::sync::Arc;

use bytes::BytesMut;
use mqtt::{Packet, Publish, QoS};

use super::client::{Act, Client, Heard, Phase};
use super::dice::Dice;
use super::faults::Fault;
use super::invariants::{Invariant, Verdict, Violation};
use super::judge::Judge;
use super::life::Life;
use super::link::{BrokerEnd, Link};
use super::outside::Outside;
use super::plan::{Plan, Room, StoreWeather};
use super::store::SimStore;
use super::topics::{Area, TOPICS};
use super::trace::{Detail, Short, Trace};
use crate::machine::Moment;
use crate::machine::connection::Appetite;
use crate::machine::format::Record;
use crate::machine::mailbox::Mail;
use crate::machine::outbox::More;
use crate::machine::tenants::{Farewell, Rest};

/// The wall clock at the beginning of every run.
const BEGINNING_US: i64 = 1_700_000_000_000_000;

/// Rounds within which everything must have come to rest.
const ROUNDS: usize = 3_000;

pub(super) struct Run {
    dice: Dice,
    plan: Arc<Plan>,
    fault: Option<Fault>,
    pub(super) judge: Judge,
    pub(super) trace: Trace,
    clients: Vec<Client>,
    links: Vec<Link>,
    store: Arc<SimStore>,
    outside: Arc<Outside>,
    life: Life,
    pub(super) step: usize,
    /// Simulated time, and what the wall clock says beyond it.
    ms: u64,
    wall_offset_ms: i64,
    /// When this life of the broker began.
    born_ms: u64,
    /// Clients whose access changed and of whom the broker has not been told, or not everywhere.
    untold: Vec<usize>,
    telling: Vec<usize>,
    pub(super) crashes: usize,
    /// Batches whose content was noted.
    seen: usize,
    /// Nothing is lost or delayed any more.
    is_calm: bool,
}

impl Run {
    pub(super) fn new(seed: u64, detail: Detail, fault: Option<Fault>) -> Run {
        let mut dice = Dice::new(seed);
        let plan = Arc::new(Plan::draw(&mut dice));
        let mut trace = Trace::new(detail);
        trace.note(0, || format!("{plan:#?}"));
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
        let life = Life::begin(&plan, &outside, &store, Vec::new(), now, fault);
        Run {
            judge: Judge::new(&plan),
            trace,
            clients: plan
                .characters
                .iter()
                .enumerate()
                .map(|(number, character)| Client::new(number, character.clone()))
                .collect(),
            links: Vec::new(),
            store,
            outside,
            life,
            step: 0,
            ms: 0,
            wall_offset_ms: 0,
            born_ms: 0,
            untold: Vec::new(),
            telling: Vec::new(),
            crashes: 0,
            seen: 0,
            is_calm: false,
            dice,
            plan,
            fault,
        }
    }

    /// Runs `steps` steps, then to the end.
    pub(super) fn run(&mut self, steps: usize) -> Verdict {
        for _ in 0..steps {
            self.step()?;
        }
        self.finish()
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        self.trace.note(self.step, text);
    }

    fn now(&self) -> Moment {
        Moment {
            tick: self.ms - self.born_ms,
            wall_us: self.wall_us(),
        }
    }

    /// What the wall clock says; 0 where the real one does, too: before 1970, and when it cannot be
    /// counted.
    fn wall_us(&self) -> i64 {
        let ms = self.ms as i64 + self.wall_offset_ms;
        let us = ms.checked_mul(1000).map(|us| BEGINNING_US.checked_add(us));
        us.flatten().unwrap_or(0).max(0)
    }

    fn step(&mut self) -> Verdict {
        self.step += 1;
        let weather = &self.plan.weather;
        let weights = [
            200, // a client does something
            60,  // the broker looks at a connection
            40,  // a client reads
            30,  // a shard works through its mail
            match weather.store {
                StoreWeather::Fast => 80,
                StoreWeather::Slow => 20,
                StoreWeather::Stalling => 12,
            },
            8, // the tap answers
            weather.pause,
            weather.access,
            weather.clock.weight(),
            weather.crash,
            weather.lull,
            3, // the network breaks
        ];
        match self.dice.weighted(&weights) {
            0 => self.client_turn()?,
            1 => {
                if !self.links.is_empty() {
                    let place = self.dice.below(self.links.len());
                    self.visit(place)?;
                }
            }
            2 => {
                let client = self.dice.below(self.clients.len());
                self.client_reads(client)?;
            }
            3 => {
                let shard = self.dice.below(self.life.shards.len());
                self.mail(shard)?;
            }
            4 => self.store_gets_on()?,
            5 => self.tap_answers()?,
            6 => self.time_passes()?,
            7 => self.access_changes()?,
            8 => self.clock_steps(),
            9 => {
                // Mostly when there is something to lose.
                let at_stake = self.store.durable_batches() < self.store.submitted();
                if at_stake || self.dice.chance(30) {
                    self.crash()?;
                }
            }
            10 => self.lull()?,
            _ => self.network_breaks()?,
        }
        self.look_around()
    }

    /// After every step: what can be seen of the whole.
    fn look_around(&mut self) -> Verdict {
        if self.store.durable_batches() == self.store.submitted() && self.life.is_quiet() {
            self.judge.all_is_safe();
            let told = std::mem::take(&mut self.telling);
            for client in told {
                if !self.untold.contains(&client) {
                    self.judge.access_applied(client);
                }
            }
        }
        self.links
            .retain(|link| !(link.is_gone() && link.client_gone));
        match self.plan.room {
            Room::Tight => self.life.check_bounds(&self.plan.limits),
            Room::Roomy => Ok(()),
        }
    }

    // ----- clients -----

    /// A client does something, and mostly some of what follows happens at once.
    fn client_turn(&mut self) -> Verdict {
        let client = self.dice.below(self.clients.len());
        if self.dice.chance(50) {
            self.client_reads(client)?;
        }
        self.client_acts(client)?;
        if self.dice.chance(70)
            && let Some(place) = self
                .links
                .iter()
                .position(|l| l.client == client && !l.client_gone)
        {
            self.visit(place)?;
        }
        Ok(())
    }

    fn client_acts(&mut self, client: usize) -> Verdict {
        if self.clients[client].line.is_none() {
            if self.dice.chance(70) {
                self.dial(client)?;
            }
            return Ok(());
        }
        let wish = match self.dice.chance(85) {
            true => self.clients[client].wish(&mut self.dice),
            false => None,
        };
        match wish {
            Some(Act::Drop) => {
                self.client_drops(client);
                return Ok(());
            }
            Some(act) => {
                self.clients[client].act(act, &mut self.dice, &mut self.judge.ledger);
            }
            None => {}
        }
        let slow = self.clients[client].character.slow;
        let acks = match self.dice.chance(slow) {
            true => 0,
            false => self.dice.between(1, 4),
        };
        self.speak(client, acks);
        Ok(())
    }

    fn dial(&mut self, client: usize) -> Verdict {
        // A CONNECT of its own that is still under way may yet change what the broker has.
        let unsure = self.judge.is_unsure(client, self.clients[client].session)
            || self.links.iter().any(|link| {
                link.client == client && !link.is_gone() && self.judge.is_greeting(link.conn)
            });
        let shard = self.dice.below(self.life.shards.len());
        let now = self.now();
        let Some(id) = self.life.open(shard, now) else {
            return Ok(());
        };
        let conn = self.judge.opened(client);
        self.note(|| format!("client-{client} dials shard {shard}: connection {conn}"));
        let version = self.clients[client].version();
        let max = self.plan.limits.max_packet_size;
        self.links.push(Link::new(client, conn, id, version, max));
        let heard = self.clients[client].dial(conn, unsure, &mut self.dice, &mut self.judge.ledger);
        self.settle_heard(client, conn, heard)?;
        self.speak(client, 0);
        Ok(())
    }

    /// What a client has to say goes on its way.
    fn speak(&mut self, client: usize, acks: usize) {
        let Some(conn) = self.clients[client].line.as_ref().map(|line| line.conn) else {
            return;
        };
        let version = self.clients[client].version();
        let packets = self.clients[client].speak(acks);
        let Some(link) = self.links.iter_mut().find(|link| link.conn == conn) else {
            return;
        };
        if link.is_gone() {
            return;
        }
        for packet in packets {
            mqtt::encode(&packet, version, &mut link.up).expect("clients say what can be said");
        }
    }

    fn client_drops(&mut self, client: usize) {
        let Some(line) = self.clients[client].line.take() else {
            return;
        };
        let half_open = match self.is_calm {
            true => 0,
            false => 35,
        };
        if let Some(link) = self.links.iter_mut().find(|link| link.conn == line.conn) {
            link.abandon(&mut self.dice, half_open);
            let closes = link.closes;
            let conn = line.conn;
            self.note(|| format!("client-{client} drops connection {conn}; noticed: {closes}"));
        }
    }

    fn client_reads(&mut self, client: usize) -> Verdict {
        let Some(line) = &mut self.clients[client].line else {
            return Ok(());
        };
        if !line.reads && !self.is_calm {
            return Ok(());
        }
        let conn = line.conn;
        let Some(link) = self.links.iter_mut().find(|link| link.conn == conn) else {
            // Its broker died, and it has read what was left.
            self.clients[client].line = None;
            return Ok(());
        };
        let amount = draw_amount(
            &mut self.dice,
            self.plan.weather.choppy,
            link.down.len(),
            self.is_calm,
        );
        let bytes = link.down.split_to(amount);
        line.heard.extend_from_slice(&bytes);
        let is_over = link.down.is_empty() && link.is_gone();
        loop {
            let packet = self.clients[client]
                .next_packet()
                .map_err(|error| Violation::new(Invariant::BrokerSpeaksMqtt, error))?;
            let Some(packet) = packet else { break };
            if let Packet::ConnAck(_) = &packet {
                self.clients[client].session = self.judge.epoch(client);
            }
            let heard = self.clients[client].hear(packet);
            self.settle_heard(client, conn, heard)?;
        }
        if is_over && self.clients[client].line.is_some() {
            self.note(|| format!("client-{client} finds connection {conn} closed"));
            self.hang_up(client);
        }
        Ok(())
    }

    fn hang_up(&mut self, client: usize) {
        if let Some(line) = self.clients[client].line.take()
            && let Some(link) = self.links.iter_mut().find(|link| link.conn == line.conn)
        {
            link.client_gone = true;
            link.closes = true;
            link.down.clear();
        }
    }

    fn settle_heard(&mut self, client: usize, conn: usize, heard: Vec<Heard>) -> Verdict {
        for heard in heard {
            match heard {
                Heard::Delivered { number, publish } => {
                    self.note(|| {
                        format!(
                            "client-{client} got m{number} q{}{}",
                            publish.qos.as_u8(),
                            if publish.retain { " RETAIN" } else { "" }
                        )
                    });
                    self.judge.arrived(client, conn, number, &publish)?;
                }
                Heard::Confused { id, had, got } => self.judge.confused(client, id, had, got)?,
                Heard::Done { number } => self.judge.done(number),
                Heard::Dismissed => {
                    self.note(|| format!("client-{client} is dismissed"));
                    self.hang_up(client);
                }
            }
        }
        Ok(())
    }

    // ----- the broker's connections -----

    /// The broker's task of a connection runs.
    fn visit(&mut self, place: usize) -> Verdict {
        let now = self.now();
        let link = &mut self.links[place];
        if let BrokerEnd::Moving(_) = link.end {
            let BrokerEnd::Moving(departure) = std::mem::replace(&mut link.end, BrokerEnd::Gone)
            else {
                return Ok(());
            };
            let to = departure.to();
            match self.life.arrive(departure, now) {
                Some(id) => self.links[place].end = BrokerEnd::Here(id),
                None => self.links[place].close(),
            }
            let conn = self.links[place].conn;
            self.note(|| format!("connection {conn} arrives at shard {to}"));
            self.after_machine()?;
        }
        let Some(id) = self.links[place].id() else {
            return Ok(());
        };
        let shard = id.shard();
        self.life.shards[shard].set_time(now);
        self.life.shards[shard].awake(id);
        self.hand_in(place)?;
        if self.links[place].id().is_none() {
            return Ok(());
        }
        let link = &self.links[place];
        let noticed = link.client_gone && (link.closes || self.is_calm) && link.up.is_empty();
        if noticed {
            let conn = self.links[place].conn;
            self.note(|| format!("the broker loses connection {conn}"));
            let shard = &mut self.life.shards[shard];
            shard.lost(id, "the client is gone".to_owned());
            self.after_machine()?;
            self.life.shards[id.shard()].settle();
            self.after_machine()?;
            self.life.shards[id.shard()].release(id);
            self.links[place].close();
            return self.after_machine();
        }
        self.life.shards[shard].settle();
        self.after_machine()?;
        self.write(place)?;
        if self.links[place].client_gone && self.dice.chance(4) {
            // The network finds out at last.
            self.links[place].closes = true;
        }
        Ok(())
    }

    /// Bytes arrive at the broker, packets are handed to the machine.
    fn hand_in(&mut self, place: usize) -> Verdict {
        let link = &mut self.links[place];
        let Some(id) = link.id() else { return Ok(()) };
        let shard = id.shard();
        let amount = draw_amount(
            &mut self.dice,
            self.plan.weather.choppy,
            link.up.len(),
            self.is_calm,
        );
        let bytes = link.up.split_to(amount);
        link.inbox.extend_from_slice(&bytes);
        let conn = link.conn;
        let most = match self.is_calm {
            true => 1_000,
            false => self.dice.between(1, 12),
        };
        for _ in 0..most {
            if self.life.is_held_up(shard)
                || self.life.shards[shard].appetite(id) != Appetite::Hungry
            {
                break;
            }
            let link = &mut self.links[place];
            let packet = match link.decoder.decode(&mut link.inbox) {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(error) => panic!("a client said something malformed: {error}"),
            };
            self.note(|| format!("  -> {conn}: {}", Short(&packet)));
            self.judge.handed_in(conn, &packet)?;
            self.life.shards[shard].packet(id, packet);
            self.after_machine()?;
            if let Some(departure) = self.life.shards[shard].departure(id) {
                self.note(|| format!("connection {conn} moves to shard {}", departure.to()));
                self.links[place].end = BrokerEnd::Moving(departure);
                self.life.shards[shard].settle();
                return self.after_machine();
            }
        }
        Ok(())
    }

    /// Bytes leave the broker.
    fn write(&mut self, place: usize) -> Verdict {
        let link = &mut self.links[place];
        let Some(id) = link.id() else { return Ok(()) };
        let (shard, conn) = (id.shard(), link.conn);
        let room = link.room();
        let limit = match self.is_calm || !self.dice.chance(self.plan.weather.choppy) {
            true => room,
            false => room.min(self.dice.between(1, 200)),
        };
        if limit > 0 {
            let mut bytes = BytesMut::new();
            let farewell = self.life.shards[shard].farewell(id);
            while farewell != Some(Farewell::Drop) {
                let more = self.life.shards[shard].write(id, &mut bytes, limit);
                let serving = farewell.is_none();
                if bytes.len() >= limit && serving {
                    break;
                }
                if more == More::No && !(serving && self.life.shards[shard].walk_on(id)) {
                    break;
                }
            }
            let link = &mut self.links[place];
            let begins = self.judge.seq();
            if link.watched.is_empty() {
                link.begun = begins;
            }
            link.watched.extend_from_slice(&bytes);
            if !link.client_gone {
                link.down.extend_from_slice(&bytes);
            }
            self.after_machine()?;
            self.watch(place, begins)?;
        }
        let link = &mut self.links[place];
        let rest = match link.room() {
            0 => Rest::Blocked,
            _ => Rest::Asleep,
        };
        let shard = &mut self.life.shards[shard];
        shard.sleep(id, rest, std::task::Waker::noop());
        shard.settle();
        if let Some(farewell) = shard.farewell(id) {
            let flushed = farewell == Farewell::Drop || rest == Rest::Asleep;
            if flushed && (self.is_calm || self.dice.chance(70)) {
                shard.release(id);
                link.close();
                self.note(|| format!("the broker closes connection {conn} ({farewell:?})"));
            }
        }
        self.after_machine()
    }

    /// The judge reads along.
    fn watch(&mut self, place: usize, begins: u64) -> Verdict {
        let link = &mut self.links[place];
        let conn = link.conn;
        loop {
            let link = &mut self.links[place];
            let before = link.watched.len();
            let packet = link.watch.decode(&mut link.watched).map_err(|error| {
                Violation::new(
                    Invariant::BrokerSpeaksMqtt,
                    format!("connection {conn}: {error}"),
                )
            })?;
            let Some(packet) = packet else { return Ok(()) };
            let len = before - link.watched.len();
            let begun = std::mem::replace(&mut link.begun, begins);
            self.note(|| format!("  <- {conn}: {}", Short(&packet)));
            self.judge.said(conn, &packet, len, begun)?;
        }
    }

    /// After every call of the machine: which connections are over, what the tap was asked.
    fn after_machine(&mut self) -> Verdict {
        for place in 0..self.links.len() {
            let link = &self.links[place];
            if link.is_reported {
                continue;
            }
            let is_over = match &link.end {
                BrokerEnd::Here(id) => {
                    let id = *id;
                    self.life.shards[id.shard()].farewell(id).is_some()
                }
                BrokerEnd::Moving(_) => false,
                BrokerEnd::Gone => true,
            };
            if is_over {
                let conn = self.links[place].conn;
                self.links[place].is_reported = true;
                self.note(|| format!("connection {conn} is over for the broker"));
                self.judge.ended(conn)?;
            }
        }
        self.note_stored();
        for asked in self.outside.take_asked() {
            self.note(|| format!("the broker takes m{} in: {}", asked.number, asked.accepted));
            let stalled = self.store.is_stalled();
            self.judge.taken(asked, stalled)?;
        }
        for outcome in self.outside.take_outcomes() {
            self.note(|| format!("the tap has m{}: {}", outcome.number, outcome.is_durable));
            self.judge.copied(outcome);
        }
        Ok(())
    }

    /// What the machine gives to the store.
    fn note_stored(&mut self) {
        if !self.trace.is_on() {
            return;
        }
        for (id, value) in self.store.since(self.seen) {
            self.note(|| match &value {
                Some(value) => match Record::read(value) {
                    Ok(record) => format!("     put {id} {record:?}"),
                    Err(error) => format!("     put {id}, unreadable: {error}"),
                },
                None => format!("     delete {id}"),
            });
        }
        self.seen = self.store.submitted();
    }

    fn network_breaks(&mut self) -> Verdict {
        if self.links.is_empty() {
            return Ok(());
        }
        let place = self.dice.below(self.links.len());
        let Some(id) = self.links[place].id() else {
            return Ok(());
        };
        let conn = self.links[place].conn;
        self.note(|| format!("the network breaks connection {conn}"));
        let now = self.now();
        let shard = &mut self.life.shards[id.shard()];
        shard.set_time(now);
        shard.lost(id, "the network broke".to_owned());
        self.after_machine()?;
        self.life.shards[id.shard()].settle();
        self.after_machine()?;
        self.life.shards[id.shard()].release(id);
        self.links[place].cut(&mut self.dice);
        self.after_machine()
    }

    // ----- shards, store, tap -----

    fn mail(&mut self, shard: usize) -> Verdict {
        let now = self.now();
        self.life.mail(shard, now);
        self.after_machine()
    }

    fn store_gets_on(&mut self) -> Verdict {
        let stalling = self.plan.weather.store == StoreWeather::Stalling;
        if stalling && self.dice.chance(10) {
            let stalled = !self.store.is_stalled();
            self.store.set_stalled(stalled);
            self.note(|| format!("the store is stalled: {stalled}"));
            if stalled {
                self.life.exchange.post_to_all(|| Mail::Stalled);
            }
        }
        if self.store.is_stalled() {
            return Ok(());
        }
        let count = match self.dice.chance(60) {
            true => usize::MAX / 2,
            false => self.dice.between(1, 3),
        };
        self.sync(count);
        Ok(())
    }

    fn sync(&mut self, count: usize) {
        if self.store.sync(count) {
            let durable = self.store.durable_batches();
            self.note(|| format!("the store has {durable} batches"));
            self.life.stored(durable);
        }
    }

    fn tap_answers(&mut self) -> Verdict {
        self.outside.tell(&mut self.dice, 12);
        self.after_machine()
    }

    fn time_passes(&mut self) -> Verdict {
        let longest = self.plan.weather.longest_pause;
        let ms = *self.dice.pick(&[10, 200, 1_000, 1_000, longest * 1_000]);
        self.advance(ms)
    }

    fn advance(&mut self, ms: u64) -> Verdict {
        self.ms += ms;
        self.judge.set_time(self.ms);
        let now = self.now();
        self.note(|| format!("time passes: {} ms", now.tick));
        for shard in 0..self.life.shards.len() {
            self.life.turn(shard, now);
            self.after_machine()?;
        }
        self.judge.turned();
        Ok(())
    }

    fn clock_steps(&mut self) {
        let by = self.plan.weather.clock.step(&mut self.dice);
        let before_us = self.wall_us();
        self.wall_offset_ms += by;
        let stepped_us = self.wall_us().abs_diff(before_us);
        self.judge.clock_stepped(stepped_us.div_ceil(1000));
        self.note(|| format!("the wall clock steps by {by} ms"));
    }

    fn access_changes(&mut self) -> Verdict {
        let client = self.dice.below(self.clients.len());
        let name = self.plan.characters[client].name.clone();
        if self.untold.contains(&client) {
            self.tell_access(client);
            return Ok(());
        }
        let denied = self.outside.denied();
        let area = *self.dice.pick(&Area::ALL);
        match denied.contains(&(name.clone(), area)) {
            true => {
                self.outside.grant(&name, area);
                self.judge.granted(client, area);
                self.note(|| format!("{name} may have {area:?} again"));
            }
            false => {
                self.outside.deny(&name, area);
                self.judge.denied(client, area);
                self.note(|| format!("{name} may not have {area:?} any more"));
            }
        }
        self.untold.push(client);
        if self.dice.chance(70) {
            self.tell_access(client);
        }
        Ok(())
    }

    fn tell_access(&mut self, client: usize) {
        self.untold.retain(|other| *other != client);
        let name = self.plan.characters[client].name.clone();
        self.life.exchange.access_changed(&name);
        self.telling.push(client);
        self.note(|| format!("the broker is told that the access of {name} changed"));
    }

    // ----- crashes -----

    fn crash(&mut self) -> Verdict {
        self.crashes += 1;
        let (durable, submitted) = (self.store.durable_batches(), self.store.submitted());
        let kept = match self.dice.below(3) {
            0 => durable,
            1 => submitted,
            _ => self.dice.between(durable, submitted),
        };
        self.note(|| {
            format!("CRASH: {durable} batches durable, {submitted} submitted, {kept} kept")
        });
        let dropped = self.life.exchange.stats().dropped();
        self.note(|| format!("  dropped in this life: {dropped:?}"));
        let whole = kept == submitted && self.life.is_quiet();
        let counted = self.life.counted_losses();
        for link in &mut self.links {
            link.cut(&mut self.dice);
            link.is_reported = true;
        }
        self.outside.forget_untold();
        let _ = self.outside.take_asked();
        self.judge.crashed(whole, counted);
        self.telling.clear();
        let mut records = self.store.crash(kept);
        self.seen = 0;
        for (id, value) in &records {
            self.note(|| format!("  found: {} {:?}", id.0, Record::read(value)));
        }
        self.born_ms = self.ms;
        let now = self.now();
        let begin = |records| {
            Life::begin(
                &self.plan,
                &self.outside,
                &self.store,
                records,
                now,
                self.fault,
            )
        };
        self.life = begin(records);
        while self.dice.chance(15) {
            // It dies again while it starts.
            let kept = self.dice.between(0, self.store.submitted());
            records = self.store.crash(kept);
            self.seen = 0;
            self.life = begin(records);
        }
        // What was denied meanwhile it asks for itself.
        let told: Vec<usize> = std::mem::take(&mut self.untold);
        for client in told {
            self.tell_access(client);
        }
        self.after_machine()
    }

    // ----- rest -----

    /// Everything under way gets where it goes; nothing new happens. Then the judge compares.
    fn lull(&mut self) -> Verdict {
        self.note(|| "everything comes to rest".to_owned());
        self.is_calm = true;
        self.store.set_stalled(false);
        for client in self.untold.clone() {
            self.tell_access(client);
        }
        self.come_to_rest()?;
        for _ in 0..3 {
            self.advance(1_000)?;
            self.come_to_rest()?;
        }
        self.is_calm = false;
        self.look_around()?;
        self.judge.at_rest()?;
        self.life.check_gauges()?;
        self.judge.losses_are_counted(self.life.counted_losses())
    }

    fn come_to_rest(&mut self) -> Verdict {
        for _ in 0..ROUNDS {
            let mut moved = false;
            if self.store.durable_batches() < self.store.submitted() {
                self.sync(usize::MAX / 2);
                moved = true;
            }
            for shard in 0..self.life.shards.len() {
                if self.life.has_mail(shard) {
                    self.mail(shard)?;
                    moved = true;
                }
            }
            while self.outside.tell(&mut self.dice, 0) {
                moved = true;
            }
            for place in 0..self.links.len() {
                let before = self.traffic(place);
                self.visit(place)?;
                moved |= before != self.traffic(place);
            }
            for client in 0..self.clients.len() {
                moved |= self.clients[client].has_something_to_say();
                self.speak(client, usize::MAX);
                let waiting = self.waiting_for(client);
                self.client_reads(client)?;
                moved |= waiting;
                let leaving = self.clients[client]
                    .line
                    .as_ref()
                    .is_some_and(|line| line.phase == Phase::Leaving);
                if leaving {
                    // It has said DISCONNECT; the broker closes.
                    moved |= self
                        .links
                        .iter()
                        .any(|l| l.client == client && !l.up.is_empty());
                }
            }
            self.links
                .retain(|link| !(link.is_gone() && link.client_gone));
            let is_stored = self.store.durable_batches() == self.store.submitted();
            if !moved && is_stored && self.life.is_quiet() {
                return Ok(());
            }
        }
        Err(Violation::new(
            Invariant::ComesToRest,
            format!("still moving after {ROUNDS} rounds"),
        ))
    }

    /// A number that changes when something moves on a link.
    fn traffic(&self, place: usize) -> (usize, usize, usize, bool, u64) {
        self.links.get(place).map_or((0, 0, 0, false, 0), |link| {
            (
                link.up.len(),
                link.inbox.len(),
                link.down.len(),
                link.id().is_some(),
                self.judge.seq(),
            )
        })
    }

    /// Whether there is something for a client to read, be it the end.
    fn waiting_for(&self, client: usize) -> bool {
        let Some(line) = &self.clients[client].line else {
            return false;
        };
        match self.links.iter().find(|link| link.conn == line.conn) {
            Some(link) => !link.down.is_empty() || link.is_gone(),
            None => true,
        }
    }

    /// All obstacles go, all clients that have a session come back, and the judge compares. Then
    /// everything is taken down.
    fn finish(&mut self) -> Verdict {
        self.note(|| "the end begins: everything heals".to_owned());
        self.outside.heal();
        for client in 0..self.clients.len() {
            for area in Area::ALL {
                self.judge.granted(client, area);
            }
            self.tell_access(client);
        }
        self.untold.clear();
        self.lull()?;
        // Twice: what a first connection is too broken for, a second one is not.
        for _ in 0..2 {
            for client in 0..self.clients.len() {
                if self.clients[client].line.is_none() {
                    self.clients[client].character.clean = 0;
                    self.dial(client)?;
                }
            }
            self.lull()?;
        }
        // Long enough for all wills, too short for most sessions.
        self.advance(10_000)?;
        self.lull()?;
        self.take_down()
    }

    /// Every session ends, everything retained is deleted; nothing may be left.
    fn take_down(&mut self) -> Verdict {
        self.note(|| "the end: everything is taken down".to_owned());
        for client in 0..self.clients.len() {
            if self.clients[client].line.is_some() {
                self.clients[client].leave_for_good();
            }
        }
        self.is_calm = true;
        self.come_to_rest()?;
        let years = 10 * 365 * 24 * 3600;
        self.advance(years * 1000)?;
        for client in 0..self.clients.len() {
            // Whoever has a session that does not expire takes it up to end it.
            let five = self.clients[client].version() == mqtt::Version::V5;
            self.clients[client].character.will = None;
            self.clients[client].character.expiry = if five { 1 } else { 0 };
            self.clients[client].character.max_packet = None;
            if self.clients[client].line.is_none() {
                self.dial(client)?;
            }
        }
        self.is_calm = true;
        self.come_to_rest()?;
        let Some(cleaner) = (0..self.clients.len()).find(|client| self.clients[*client].is_up())
        else {
            return Err(Violation::new(
                Invariant::EverythingAnswered,
                "nobody can connect any more",
            ));
        };
        for (topic, name) in TOPICS.iter().enumerate() {
            let publish = Publish {
                qos: QoS::AtMostOnce,
                retain: true,
                topic: (*name).into(),
                ..Publish::default()
            };
            self.clients[cleaner].send(topic, publish, &mut self.dice, &mut self.judge.ledger);
        }
        self.come_to_rest()?;
        for client in 0..self.clients.len() {
            self.clients[client].leave_for_good();
        }
        self.come_to_rest()?;
        // The wills and sessions of the last connections, too.
        for _ in 0..3 {
            self.advance(3_600_000)?;
            self.come_to_rest()?;
        }
        self.advance(years * 1000)?;
        self.come_to_rest()?;
        self.life.is_empty(&self.store)
    }
}

/// How many of `there` bytes arrive now.
fn draw_amount(dice: &mut Dice, choppy: u32, there: usize, all: bool) -> usize {
    match there {
        0 => 0,
        _ if all || !dice.chance(choppy) => there,
        _ => dice.between(1, there),
    }
}
