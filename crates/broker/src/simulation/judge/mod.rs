//! Says whether a run keeps its promises.
//!
//! ```text
//! client ──bytes──► broker's edge ─► handed_in   ┐
//!                   broker's edge ◄─ said        ├─► what each session must get, may get, has got
//!                   tap asked about a message    │
//! application of a client got a message          ┘
//! ```
//! The judge stands at the broker's edge, where there is no doubt about what came before what: a
//! message counts as acknowledged when its PUBACK leaves the broker, not when the client reads it.
//! From there it keeps, for every client, the session the broker must have.
//!
//! Where the edge cannot know (a CONNECT that was handed in and never answered; a session that ended
//! just before a crash) it is *unsure*, and then demands nothing and allows both. Everything it
//! demands is therefore safe to demand; how much that is, is shown by the planted faults
//! ([`Fault`](crate::simulation::Fault)).

mod access;
mod connection;
mod delivery;
mod obligations;
mod retained;
mod session;
mod subscriptions;
mod wills;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mqtt::{Packet, Publish, QoS};

use self::access::Access;
use self::connection::Conn;
use self::obligations::SharedDebt;
use self::retained::Put;
use self::session::Session;
use self::wills::Will;
use super::invariants::{Invariant, Verdict, Violation};
use super::ledger::{Ledger, TapCopy, UNNAMED, When};
use super::outside::{Asked, Outcome};
use super::plan::{Plan, Room};
use super::topics::TOPICS;

/// Milliseconds within which the broker may be late or early with what time demands: its timers turn
/// once a second, and remaining lifetimes are whole seconds.
const SLACK: u64 = 2_100;

pub(super) struct Judge {
    plan: Arc<Plan>,
    pub(super) ledger: Ledger,
    now: When,
    conns: Vec<Conn>,
    /// By client.
    sessions: Vec<Session>,
    /// By topic, in the order the broker took them in.
    retained: Vec<Vec<Put>>,
    wills: Vec<Will>,
    access: Access,
    /// Messages that some member of a shared subscription must get, by filter (`$share/...`).
    shared: BTreeMap<(String, u32), SharedDebt>,
    /// Shared subscriptions, and when they last had a member that may lose what it is given.
    risky: BTreeMap<String, u64>,
    /// When the session of a member last ended, or a member unsubscribed.
    deserted: BTreeMap<String, u64>,
    /// Messages that some member of a shared subscription got.
    served: BTreeSet<(String, u32)>,
    /// Who got a message first that can only have come by one shared subscription.
    shared_receipts: BTreeMap<(String, u32), (usize, QoS)>,
    /// All that happened before this was durable at some time.
    safe: u64,
    /// When the broker crashed.
    crashes: Vec<u64>,
    /// By how much times that went through a restart may be wrong, in milliseconds: the clock was set
    /// before. Within a life of the broker it may be set as it likes.
    clock_error: u64,
    /// By how much the wall clock was set since the last restart.
    clock_steps: u64,
    /// Every shard has looked at its timers since.
    turned: u64,
    /// Messages that did not come and that only a full queue explains.
    missing: Vec<String>,
    /// What the broker counted as dropped from full queues, in all its lives.
    counted_losses: u64,
}

impl Judge {
    pub(super) fn new(plan: &Arc<Plan>) -> Judge {
        Judge {
            plan: Arc::clone(plan),
            ledger: Ledger::default(),
            now: When::default(),
            conns: Vec::new(),
            sessions: plan.characters.iter().map(|_| Session::default()).collect(),
            retained: TOPICS.iter().map(|_| Vec::new()).collect(),
            wills: Vec::new(),
            access: Access::default(),
            shared: BTreeMap::new(),
            risky: BTreeMap::new(),
            deserted: BTreeMap::new(),
            served: BTreeSet::new(),
            shared_receipts: BTreeMap::new(),
            safe: 0,
            crashes: Vec::new(),
            clock_error: 0,
            clock_steps: 0,
            turned: 0,
            missing: Vec::new(),
            counted_losses: 0,
        }
    }

    /// Where the run is; two packets never have the same place.
    pub(super) fn seq(&self) -> u64 {
        self.now.seq
    }

    pub(super) fn set_time(&mut self, ms: u64) {
        self.now.ms = ms;
    }

    /// The wall clock was set to another time.
    pub(super) fn clock_stepped(&mut self, by_ms: u64) {
        self.clock_steps = self.clock_steps.saturating_add(by_ms);
    }

    /// All shards have looked at their timers.
    pub(super) fn turned(&mut self) {
        self.turned = self.now.ms;
        self.end_expired();
    }

    fn tick(&mut self) -> When {
        self.now.seq += 1;
        self.now
    }

    fn slack(&self) -> u64 {
        SLACK.saturating_add(self.clock_error)
    }

    fn is_roomy(&self) -> bool {
        self.plan.room == Room::Roomy
    }

    /// Crashes since a point of the run.
    fn crashes_since(&self, seq: u64) -> usize {
        self.crashes.iter().filter(|crash| **crash >= seq).count()
    }

    /// A transport stands.
    pub(super) fn opened(&mut self, client: usize) -> usize {
        self.conns.push(Conn::new(client));
        self.conns.len() - 1
    }

    /// A packet is handed to the broker.
    pub(super) fn handed_in(&mut self, conn: usize, packet: &Packet) -> Verdict {
        self.tick();
        match packet {
            Packet::Connect(connect) => self.connect_in(conn, connect),
            Packet::Publish(publish) => self.publish_in(conn, publish),
            Packet::PubAck(ack) => self.puback_in(conn, ack.packet_id.get()),
            Packet::PubRec(ack) => self.pubrec_in(conn, ack.packet_id.get(), ack.reason),
            Packet::PubRel(release) => {
                self.conns[conn].releases.push(release.packet_id.get());
                Ok(())
            }
            Packet::PubComp(ack) => self.pubcomp_in(conn, ack.packet_id.get()),
            Packet::Subscribe(subscribe) => self.subscribe_in(conn, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe_in(conn, unsubscribe),
            Packet::PingReq => {
                self.conns[conn].pings += 1;
                Ok(())
            }
            Packet::Disconnect(disconnect) => self.disconnect_in(conn, disconnect),
            _ => Ok(()),
        }
    }

    /// A packet of `len` bytes has left the broker; its first byte did at `begun`.
    pub(super) fn said(&mut self, conn: usize, packet: &Packet, len: usize, begun: u64) -> Verdict {
        self.tick();
        let max = self.conns[conn].max_packet;
        if len > max {
            return Err(Violation::new(
                Invariant::PacketSizeHeld,
                format!(
                    "{} of {len} bytes to a client that takes {max}",
                    packet.packet_type()
                ),
            ));
        }
        match packet {
            Packet::ConnAck(ack) => self.connack_out(conn, ack),
            Packet::Publish(publish) => self.publish_out(conn, publish, begun),
            Packet::PubAck(ack) => self.puback_out(conn, ack.packet_id.get(), ack.reason),
            Packet::PubRec(ack) => self.pubrec_out(conn, ack.packet_id.get(), ack.reason),
            Packet::PubRel(release) => self.pubrel_out(conn, release.packet_id.get()),
            Packet::PubComp(ack) => self.pubcomp_out(conn, ack.packet_id.get()),
            Packet::SubAck(ack) => self.suback_out(conn, ack),
            Packet::UnsubAck(ack) => self.unsuback_out(conn, ack),
            Packet::PingResp => {
                let pings = &mut self.conns[conn].pings;
                match pings.checked_sub(1) {
                    Some(left) => *pings = left,
                    None => {
                        return Err(Violation::new(
                            Invariant::AnswersInOrder,
                            "PINGRESP without PINGREQ",
                        ));
                    }
                }
                Ok(())
            }
            Packet::Disconnect(_) | Packet::Auth(_) => Ok(()),
            other => Err(Violation::new(
                Invariant::BrokerSpeaksMqtt,
                format!("{} from a broker", other.packet_type()),
            )),
        }
    }

    /// The broker holds a connection for over.
    pub(super) fn ended(&mut self, conn: usize) -> Verdict {
        let now = self.tick();
        if self.conns[conn].ended.is_some() {
            return Ok(());
        }
        self.conns[conn].ended = Some(now);
        self.session_lost_connection(conn)
    }

    /// The broker asked the tap about a message: it has taken it in, if the tap does not refuse.
    /// What the store is too full or too slow for, is not kept, and nobody is told of a will.
    pub(super) fn taken(&mut self, asked: Asked, stalled: bool) -> Verdict {
        let now = self.tick();
        let Asked {
            number,
            accepted,
            wanted,
        } = asked;
        self.will_published(number, stalled || !accepted)?;
        let Some(message) = self.ledger.get_mut(number) else {
            return Ok(());
        };
        if !accepted {
            message.has_failed = true;
            return Ok(());
        }
        if wanted {
            message.copy = message.copy.max(TapCopy::Wanted);
        }
        message.taken.push(now);
        message.may_be_refused |= stalled;
        message.first_in.get_or_insert(now);
        if message.publish.retain {
            let (topic, deletes) = (message.topic, message.deletes());
            // At QoS 2 a second time may concern nothing but the tap, whose first copy a crash took.
            let is_sure = message.qos() < QoS::ExactlyOnce || message.taken.len() == 1;
            self.retained[topic].push(Put {
                number,
                deletes,
                is_sure,
                acknowledged: false,
            });
        }
        Ok(())
    }

    /// All that happened so far is durable.
    pub(super) fn all_is_safe(&mut self) {
        let now = self.tick();
        self.safe = now.seq;
        // Nobody is told of a will; it is as good as acknowledged from here.
        let published: Vec<u32> = self
            .wills
            .iter_mut()
            .filter(|will| will.published > 0 && !will.is_safe)
            .map(|will| {
                will.is_safe = true;
                will.number
            })
            .collect();
        for number in published {
            if self.ledger.get(number).is_some_and(|m| !m.taken.is_empty()) {
                self.acknowledged(number);
            }
        }
    }

    /// The tap says what became of a copy.
    pub(super) fn copied(&mut self, outcome: Outcome) {
        if let Some(message) = self.ledger.get_mut(outcome.number) {
            match outcome.is_durable {
                true => message.copy = TapCopy::Durable,
                false => message.has_failed = true,
            }
        }
    }

    /// The publisher will not send a message again.
    pub(super) fn done(&mut self, number: u32) {
        if let Some(message) = self.ledger.get_mut(number) {
            message.done = true;
        }
    }

    /// An unfinished QoS 2 exchange of the client had the packet identifier of another message.
    pub(super) fn confused(&self, client: usize, id: u16, had: u32, got: u32) -> Verdict {
        Err(Violation::new(
            Invariant::PacketIdOnce,
            format!(
                "{}: packet id {id} names m{got} while the client waits for PUBREL of m{had}",
                self.name(client)
            ),
        ))
    }

    /// The broker died. Of what it had submitted to the store, everything was kept if `whole`.
    pub(super) fn crashed(&mut self, whole: bool, counted: u64) {
        if whole {
            self.safe = self.now.seq;
        }
        let now = self.tick();
        self.counted_losses += counted;
        self.clock_error = self
            .clock_error
            .saturating_add(std::mem::take(&mut self.clock_steps));
        self.crashes.push(now.seq);
        for conn in &mut self.conns {
            conn.ended.get_or_insert(now);
        }
        self.shared_crashed();
        for client in 0..self.sessions.len() {
            self.session_crashed(client);
        }
        self.wills_crashed();
        self.tick();
    }

    fn name(&self, client: usize) -> &str {
        &self.plan.characters[client].name
    }

    /// What the edge knows of a packet's message; `None` if it was never published.
    fn identify(&self, publish: &Publish, topic: &str) -> Option<u32> {
        let number = super::ledger::number_of(publish)?;
        if number == UNNAMED {
            let deletes = |m: &super::ledger::Message| m.deletes() && m.topic() == topic;
            return self
                .ledger
                .all()
                .iter()
                .any(|m| deletes(m) && m.first_in.is_some())
                .then_some(UNNAMED);
        }
        self.ledger
            .get(number)
            .filter(|message| message.first_in.is_some())
            .map(|message| message.number)
    }
}
