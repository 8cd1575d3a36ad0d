//! A client as the specification wants it: what it remembers over connections, what it answers, and
//! what it does of its own accord.
//!
//! It knows nothing of the judge. It is handed packets and says what its application got; what it
//! has to say waits in two queues, acknowledgements and everything else, so that a slow client can
//! hold the former back without falling silent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use mqtt::{
    Connect, Decoder, Disconnect, Packet, PacketId, PubAck, PubComp, PubRec, PubRel, Publish, QoS,
    ReasonCode, RetainHandling, Subscribe, SubscribeProperties, Subscription, SubscriptionId,
    TopicName, Unsubscribe, UnsubscribeProperties, Utf8, Version, Will, WillProperties,
};

use super::dice::Dice;
use super::ledger::{self, Kind, Ledger};
use super::plan::{Character, WillHabit};
use super::topics::{self, TOPICS};

/// Packet identifiers are taken from a few, so that they come round soon.
const IDS: u16 = 40;
/// Exchanges a client keeps open at most; less than [`IDS`].
const FLIGHTS: usize = 25;

pub(super) struct Client {
    pub(super) number: usize,
    pub(super) character: Character,
    /// The connection it believes in.
    pub(super) line: Option<Line>,
    /// Its QoS 1 and 2 messages that are not complete, oldest first.
    flights: Vec<Flight>,
    /// Packet identifiers of QoS 2 messages it has and waits for PUBREL of.
    inbound: BTreeMap<u16, u32>,
    last_id: u16,
    last_subscribe: Option<Subscribe>,
    /// The session that its last CONNACK was about, in the numbers of the judge.
    pub(super) session: u64,
    /// It has forgotten its session, and nobody has confirmed that the broker has, too.
    starts_clean: bool,
}

struct Flight {
    id: PacketId,
    number: u32,
    publish: Publish,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Published,
    /// PUBREC came; PUBREL is said.
    Released,
}

/// One connection, from the client's side.
pub(super) struct Line {
    pub(super) conn: usize,
    decoder: Decoder,
    pub(super) heard: BytesMut,
    pub(super) phase: Phase,
    pub(super) reads: bool,
    acks: VecDeque<Packet>,
    says: VecDeque<Packet>,
    /// The broker's Receive Maximum.
    window: usize,
    /// Aliases the broker takes, and what they stand for.
    aliases: Vec<Option<usize>>,
    /// Topics of the aliases the broker uses.
    heard_aliases: BTreeMap<u16, Utf8>,
    /// Requests without answer.
    requests: BTreeSet<u16>,
    expiry: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// CONNECT is said.
    Greeting,
    Up,
    /// DISCONNECT is said.
    Leaving,
}

/// What a client makes of a packet.
#[derive(Debug)]
pub(super) enum Heard {
    /// Its application got a message.
    Delivered { number: u32, publish: Box<Publish> },
    /// It has an unfinished QoS 2 exchange of this identifier with another message.
    Confused { id: u16, had: u32, got: u32 },
    /// A message of its own will never be sent again.
    Done { number: u32 },
    /// The broker wants no more of it.
    Dismissed,
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Publish,
    Subscribe,
    Unsubscribe,
    Ping,
    Disconnect,
    Drop,
    Repeat,
    Pause,
}

const ACTS: [Act; 8] = [
    Act::Publish,
    Act::Subscribe,
    Act::Unsubscribe,
    Act::Ping,
    Act::Disconnect,
    Act::Drop,
    Act::Repeat,
    Act::Pause,
];

impl Client {
    pub(super) fn new(number: usize, character: Character) -> Client {
        Client {
            number,
            character,
            line: None,
            flights: Vec::new(),
            inbound: BTreeMap::new(),
            last_id: 0,
            last_subscribe: None,
            session: 0,
            starts_clean: false,
        }
    }

    pub(super) fn version(&self) -> Version {
        self.character.version
    }

    /// Begins a connection; CONNECT is the first thing it says. `clean` forces a clean start.
    pub(super) fn dial(
        &mut self,
        conn: usize,
        clean: bool,
        dice: &mut Dice,
        ledger: &mut Ledger,
    ) -> Vec<Heard> {
        let c = &self.character;
        let mut connect = Connect::new(c.version, c.name.as_str());
        let expiry = match dice.chance(4) {
            true => 0,
            false => c.expiry,
        };
        connect.clean_start = clean
            || dice.chance(c.clean)
            || self.starts_clean
            || (c.version == Version::V311 && expiry == 0);
        connect.keep_alive = c.keep_alive;
        connect.username = Some(c.name.as_str().into());
        if c.version == Version::V5 {
            connect.properties.session_expiry_interval = (expiry > 0).then_some(expiry);
            connect.properties.receive_maximum = c.receive_maximum.and_then(|n| n.try_into().ok());
            connect.properties.maximum_packet_size = c.max_packet.and_then(|n| n.try_into().ok());
            connect.properties.topic_alias_maximum =
                (c.aliases_taken > 0).then_some(c.aliases_taken);
        }
        if let Some(habit) = c.will
            && dice.chance(80)
        {
            connect.will = Some(draw_will(self.number, c.version, habit, dice, ledger));
        }
        let mut heard = Vec::new();
        if connect.clean_start {
            heard = self.forget();
            self.starts_clean = true;
        }
        self.line = Some(Line {
            conn,
            decoder: Decoder::for_client(self.character.version, u32::MAX),
            heard: BytesMut::new(),
            phase: Phase::Greeting,
            reads: true,
            acks: VecDeque::new(),
            says: VecDeque::from([connect.into()]),
            window: usize::MAX,
            aliases: Vec::new(),
            heard_aliases: BTreeMap::new(),
            requests: BTreeSet::new(),
            expiry,
        });
        heard
    }

    /// Its session is over: nothing of it is remembered.
    pub(super) fn forget(&mut self) -> Vec<Heard> {
        self.inbound.clear();
        self.flights
            .drain(..)
            .map(|flight| Heard::Done {
                number: flight.number,
            })
            .collect()
    }

    /// Takes the next packet out of what it has read. The error is in words.
    pub(super) fn next_packet(&mut self) -> Result<Option<Packet>, String> {
        let Some(line) = &mut self.line else {
            return Ok(None);
        };
        line.decoder
            .decode(&mut line.heard)
            .map_err(|error| error.to_string())
    }

    /// Handles a packet.
    pub(super) fn hear(&mut self, packet: Packet) -> Vec<Heard> {
        let Some(line) = &mut self.line else {
            return Vec::new();
        };
        match packet {
            Packet::ConnAck(ack) => {
                if ack.reason.is_error() {
                    return vec![Heard::Dismissed];
                }
                line.phase = Phase::Up;
                self.starts_clean = false;
                line.window = ack
                    .properties
                    .receive_maximum
                    .map_or(usize::MAX, |n| usize::from(n.get()));
                let aliases = ack.properties.topic_alias_maximum.unwrap_or(0);
                line.aliases = vec![None; usize::from(aliases)];
                if let Some(expiry) = ack.properties.session_expiry_interval {
                    line.expiry = expiry;
                }
                if !ack.session_present {
                    return self.forget();
                }
                for flight in &self.flights {
                    line.says.push_back(match flight.stage {
                        Stage::Published => Publish {
                            dup: true,
                            ..flight.publish.clone()
                        }
                        .into(),
                        Stage::Released => PubRel::success(flight.id).into(),
                    });
                }
                Vec::new()
            }
            Packet::Publish(publish) => self.hear_publish(publish),
            Packet::PubAck(ack) => self.finish(ack.packet_id, QoS::AtLeastOnce),
            Packet::PubRec(ack) if ack.reason.is_error() => {
                self.finish(ack.packet_id, QoS::ExactlyOnce)
            }
            Packet::PubRec(ack) => {
                let flight = self
                    .flights
                    .iter_mut()
                    .find(|f| f.id == ack.packet_id && f.publish.qos == QoS::ExactlyOnce);
                if let Some(flight) = flight {
                    flight.stage = Stage::Released;
                    line.acks.push_back(PubRel::success(ack.packet_id).into());
                }
                Vec::new()
            }
            Packet::PubRel(release) => {
                self.inbound.remove(&release.packet_id.get());
                line.acks
                    .push_back(PubComp::success(release.packet_id).into());
                Vec::new()
            }
            Packet::PubComp(ack) => self.finish(ack.packet_id, QoS::ExactlyOnce),
            Packet::SubAck(ack) => {
                line.requests.remove(&ack.packet_id.get());
                Vec::new()
            }
            Packet::UnsubAck(ack) => {
                line.requests.remove(&ack.packet_id.get());
                Vec::new()
            }
            Packet::Disconnect(_) => vec![Heard::Dismissed],
            _ => Vec::new(),
        }
    }

    fn hear_publish(&mut self, mut publish: Box<Publish>) -> Vec<Heard> {
        let line = self.line.as_mut().expect("checked by the caller");
        if let Some(alias) = publish.properties.topic_alias {
            match publish.topic.is_empty() {
                // The judge has said what is wrong with an alias nobody set.
                true => {
                    publish.topic = line
                        .heard_aliases
                        .get(&alias.get())
                        .cloned()
                        .unwrap_or_default()
                }
                false => {
                    line.heard_aliases
                        .insert(alias.get(), publish.topic.clone());
                }
            }
        }
        let number = ledger::number_of(&publish).unwrap_or(ledger::UNNAMED);
        let mut heard = Vec::new();
        match (publish.qos, publish.packet_id) {
            (QoS::AtLeastOnce, Some(id)) => line.acks.push_back(PubAck::success(id).into()),
            (QoS::ExactlyOnce, Some(id)) => {
                line.acks.push_back(PubRec::success(id).into());
                if let Some(had) = self.inbound.insert(id.get(), number) {
                    if had != number {
                        heard.push(Heard::Confused {
                            id: id.get(),
                            had,
                            got: number,
                        });
                    }
                    return heard;
                }
            }
            _ => {}
        }
        heard.push(Heard::Delivered { number, publish });
        heard
    }

    fn finish(&mut self, id: PacketId, qos: QoS) -> Vec<Heard> {
        let found = self
            .flights
            .iter()
            .position(|f| f.id == id && f.publish.qos == qos);
        match found {
            Some(place) => vec![Heard::Done {
                number: self.flights.remove(place).number,
            }],
            None => Vec::new(),
        }
    }

    /// What it would like to do now; `None` if it has no connection that is up.
    pub(super) fn wish(&self, dice: &mut Dice) -> Option<Act> {
        match self.line.as_ref()?.phase {
            Phase::Up if self.last_subscribe.is_none() && dice.chance(50) => Some(Act::Subscribe),
            Phase::Up => Some(ACTS[dice.weighted(&self.character.habits)]),
            Phase::Greeting => dice.chance(3).then_some(Act::Drop),
            Phase::Leaving => dice.chance(30).then_some(Act::Drop),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.line
            .as_ref()
            .is_some_and(|line| line.phase == Phase::Up)
    }

    /// Carries out what concerns nobody but itself and the broker.
    pub(super) fn act(&mut self, act: Act, dice: &mut Dice, ledger: &mut Ledger) {
        match act {
            Act::Publish => self.publish(dice, ledger),
            Act::Subscribe => self.subscribe(dice),
            Act::Unsubscribe => self.unsubscribe(dice),
            Act::Ping => self.say(Packet::PingReq),
            Act::Repeat => self.repeat(dice),
            Act::Disconnect => self.disconnect(dice),
            Act::Pause => {
                if let Some(line) = &mut self.line {
                    line.reads = !line.reads;
                }
            }
            Act::Drop => self.line = None,
        }
    }

    fn say(&mut self, packet: impl Into<Packet>) {
        if let Some(line) = &mut self.line {
            line.says.push_back(packet.into());
        }
    }

    /// Takes up to `acks` acknowledgements, then all else it has to say.
    pub(super) fn speak(&mut self, acks: usize) -> Vec<Packet> {
        let Some(line) = &mut self.line else {
            return Vec::new();
        };
        let acks = acks.min(line.acks.len());
        line.acks.drain(..acks).chain(line.says.drain(..)).collect()
    }

    pub(super) fn has_something_to_say(&self) -> bool {
        self.line
            .as_ref()
            .is_some_and(|line| !line.acks.is_empty() || !line.says.is_empty())
    }

    fn free_id(&mut self) -> Option<PacketId> {
        let line = self.line.as_ref()?;
        for _ in 0..IDS {
            self.last_id = self.last_id % IDS + 1;
            let id = PacketId::new(self.last_id)?;
            if !line.requests.contains(&id.get()) && self.flights.iter().all(|f| f.id != id) {
                return Some(id);
            }
        }
        None
    }

    fn publish(&mut self, dice: &mut Dice, ledger: &mut Ledger) {
        let Some(line) = &self.line else { return };
        let window = line.window.min(FLIGHTS);
        let mut qos = QoS::from_u8(dice.weighted(&self.character.qos) as u8).unwrap_or_default();
        if self.flights.len() >= window {
            qos = QoS::AtMostOnce;
        }
        let topic = *dice.pick(&self.character.topics);
        let mut publish = draw_message(&self.character, dice, ledger.next_number());
        publish.qos = qos;
        publish.topic = TOPICS[topic].into();
        self.send(topic, publish, dice, ledger);
    }

    /// Publishes a message of the caller's making.
    pub(super) fn send(
        &mut self,
        topic: usize,
        mut publish: Publish,
        dice: &mut Dice,
        ledger: &mut Ledger,
    ) {
        if publish.qos > QoS::AtMostOnce {
            publish.packet_id = self.free_id();
            if publish.packet_id.is_none() {
                return;
            }
        }
        let number = ledger.enter(self.number, Kind::Published, topic, publish.clone());
        if let Some(id) = publish.packet_id {
            self.flights.push(Flight {
                id,
                number,
                publish: publish.clone(),
                stage: Stage::Published,
            });
        }
        let Some(line) = &mut self.line else { return };
        if !line.aliases.is_empty() && dice.chance(self.character.aliases_used) {
            let alias = dice.below(line.aliases.len());
            publish.properties.topic_alias = u16::try_from(alias + 1)
                .ok()
                .and_then(|alias| alias.try_into().ok());
            if line.aliases[alias] == Some(topic) {
                publish.topic = Utf8::EMPTY;
            }
            line.aliases[alias] = Some(topic);
        }
        line.says.push_back(publish.into());
    }

    fn subscribe(&mut self, dice: &mut Dice) {
        let Some(packet_id) = self.free_id() else {
            return;
        };
        let five = self.version() == Version::V5;
        let count = dice.between(1, 2);
        let mut subscriptions: Vec<Subscription> = Vec::new();
        for _ in 0..count {
            let filter = topics::draw_filter(dice, &self.character.topics, self.character.shared);
            if subscriptions
                .iter()
                .any(|s| s.filter.as_str() == filter.as_str())
            {
                continue;
            }
            let shared = filter.is_shared();
            // With one member at QoS 0 nothing is promised to a share.
            let lowest = match shared && dice.chance(80) {
                true => QoS::AtLeastOnce,
                false => QoS::AtMostOnce,
            };
            let qos = *dice.pick(&[
                lowest,
                QoS::AtLeastOnce,
                QoS::AtLeastOnce,
                QoS::ExactlyOnce,
                QoS::ExactlyOnce,
            ]);
            let mut subscription = Subscription::new(filter, qos);
            if five {
                subscription.no_local = !shared && dice.chance(15);
                subscription.retain_as_published = dice.chance(25);
                subscription.retain_handling = *dice.pick(&[
                    RetainHandling::AtSubscribe,
                    RetainHandling::AtSubscribe,
                    RetainHandling::AtNewSubscription,
                    RetainHandling::Never,
                ]);
            }
            subscriptions.push(subscription);
        }
        let properties = SubscribeProperties {
            subscription_id: match five && dice.chance(40) {
                true => SubscriptionId::new(dice.between(1, 9) as u32),
                false => None,
            },
            ..SubscribeProperties::default()
        };
        self.ask(Subscribe {
            packet_id,
            subscriptions,
            properties,
        });
    }

    fn ask(&mut self, subscribe: Subscribe) {
        if let Some(line) = &mut self.line {
            line.requests.insert(subscribe.packet_id.get());
            self.last_subscribe = Some(subscribe.clone());
            line.says.push_back(subscribe.into());
        }
    }

    fn unsubscribe(&mut self, dice: &mut Dice) {
        let Some(packet_id) = self.free_id() else {
            return;
        };
        let mut filters = vec![topics::draw_filter(
            dice,
            &self.character.topics,
            self.character.shared,
        )];
        if let Some(last) = &self.last_subscribe
            && dice.chance(70)
        {
            filters = last
                .subscriptions
                .iter()
                .map(|s| s.filter.clone())
                .collect();
        }
        if let Some(line) = &mut self.line {
            line.requests.insert(packet_id.get());
        }
        self.say(Unsubscribe {
            packet_id,
            filters,
            properties: UnsubscribeProperties::default(),
        });
    }

    /// Says again what may be said again.
    fn repeat(&mut self, dice: &mut Dice) {
        let released: Vec<PacketId> = self
            .flights
            .iter()
            .filter(|f| f.stage == Stage::Released)
            .map(|f| f.id)
            .collect();
        if !released.is_empty() && dice.chance(60) {
            let id = *dice.pick(&released);
            // Behind the first, which may still wait among the acknowledgements.
            if let Some(line) = &mut self.line {
                line.acks.push_back(PubRel::success(id).into());
            }
        } else if let Some(mut subscribe) = self.last_subscribe.clone()
            && let Some(id) = self.free_id()
        {
            subscribe.packet_id = id;
            self.ask(subscribe);
        }
    }

    fn disconnect(&mut self, dice: &mut Dice) {
        let Some(line) = &mut self.line else { return };
        let mut disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        if self.character.version == Version::V5 {
            if dice.chance(25) {
                disconnect.reason = ReasonCode::DisconnectWithWill;
            }
            if line.expiry > 0 && dice.chance(30) {
                disconnect.properties.session_expiry_interval = Some(*dice.pick(&[0, 15, 300]));
            }
        }
        line.says.push_back(disconnect.into());
        line.phase = Phase::Leaving;
    }

    /// Leaves for good: the session ends with the connection, where that can be said.
    pub(super) fn leave_for_good(&mut self) {
        let Some(line) = &mut self.line else { return };
        let mut disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        if self.character.version == Version::V5 && line.expiry > 0 {
            disconnect.properties.session_expiry_interval = Some(0);
        }
        line.says.push_back(disconnect.into());
        line.phase = Phase::Leaving;
    }
}

/// A message without topic and QoS.
fn draw_message(character: &Character, dice: &mut Dice, number: u32) -> Publish {
    let five = character.version == Version::V5;
    let len = match dice.chance(8) {
        true => dice.between(150, 400),
        false => 8,
    };
    let mut publish = Publish {
        retain: dice.chance(character.retain),
        payload: ledger::payload(number, len).into(),
        ..Publish::default()
    };
    let properties = &mut publish.properties;
    if five {
        if publish.retain && dice.chance(25) {
            publish.payload = bytes::Bytes::new();
            properties
                .user_properties
                .push(("n".into(), number.to_string().as_str().into()));
        }
        if dice.chance(character.expiring) {
            properties.message_expiry_interval = Some(*dice.pick(&[1, 3, 10, 60, 600]));
        }
        if dice.chance(30) {
            let priority = *dice.pick(&["high", "low"]);
            properties
                .user_properties
                .push(("priority".into(), priority.into()));
        }
        if dice.chance(10) {
            properties.content_type = Some("application/json".into());
            properties.correlation_data = Some(bytes::Bytes::from_static(b"c"));
            properties.response_topic = TopicName::parse("a/2").ok();
        }
    }
    publish
}

fn draw_will(
    client: usize,
    version: Version,
    habit: WillHabit,
    dice: &mut Dice,
    ledger: &mut Ledger,
) -> Will {
    let number = ledger.next_number();
    let mut properties = WillProperties::default();
    if version == Version::V5 && (habit.delay > 0 || dice.chance(20)) {
        properties.will_delay_interval = Some(habit.delay);
    }
    let publish = Publish {
        qos: habit.qos,
        retain: habit.retain,
        topic: TOPICS[habit.topic].into(),
        payload: ledger::payload(number, 0).into(),
        ..Publish::default()
    };
    let will = Will {
        qos: publish.qos,
        retain: publish.retain,
        topic: TopicName::parse(&publish.topic).expect("a topic of the table"),
        payload: publish.payload.clone(),
        properties,
    };
    ledger.enter(client, Kind::Will, habit.topic, publish);
    will
}
