//! What [`admission`](crate::admission) decides, carried out on connections: refusals at CONNECT, and bans
//! that come into force.

use std::sync::Arc;

use mqtt::{Connect, ReasonCode};
use sha2::{Digest, Sha256};

use super::connection::OVERLOADED;
use super::mailbox::Mail;
use super::shard::Shard;
use super::slots::{ConnectionId, SessionId};
use super::tenants::{Joiner, Tenant};
use crate::admission::bans::BanList;
use crate::admission::hold_off::Applicant;
use crate::admission::{Fingerprint, Refused};
use crate::hooks::{Identity, Refusal};

/// Connections looked at in one piece when a ban came into force: a millisecond or so.
const SEARCHED: usize = if cfg!(test) { 16 } else { 4096 };

/// Bans that came into force, on their way through the connections of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    pub(crate) bans: Arc<BanList>,
    /// Slots up to this one have been looked at.
    pub(crate) from: usize,
}

impl Shard {
    /// Whether a client that said CONNECT may go on to say who it is. If not, it has been told, or will
    /// be.
    pub(super) fn admits(&mut self, id: ConnectionId, connect: &Connect) -> bool {
        let Some(tenant) = self.tenants.get(id) else {
            return false;
        };
        tenant.fingerprint = tenant.origin.certificates.first().map(|leaf| {
            let fingerprint: Fingerprint = Sha256::digest(leaf.as_ref()).into();
            Box::new(fingerprint)
        });
        let applicant = applicant(tenant, &connect.client_id);
        let admission = &self.exchange.admission;
        if let Err(refused) = admission.connect(self.now, &applicant) {
            self.turn_away(id, refused);
            return false;
        }
        if !admission.delays.refuses(self.now.tick) {
            return true;
        }
        self.counters.refused(Refused::Overload);
        let Some(place) = admission.put_off() else {
            self.refuse(id, Refusal::new(ReasonCode::ServerBusy, OVERLOADED));
            return false;
        };
        // For whoever is told that it was refused, when that is said. What else it asked for is forgotten.
        tenant.joiner = Some(Box::new(Joiner {
            connect: Box::new(Connect::new(connect.version, connect.client_id.detached())),
            assigned: None,
            known: None,
            auth_data: None,
        }));
        let until = self.now.tick + place.wait_ms;
        tenant.connection.put_off(until, place);
        self.file(id, Some(until));
        false
    }

    /// Whether a client that authenticated may take its session. If not, it has been told.
    pub(super) fn admits_client(&mut self, id: ConnectionId, identity: &Identity) -> bool {
        let admission = &self.exchange.admission;
        let verdict = admission.client(self.now, &identity.principal, &identity.client_id);
        let refused = verdict.and_then(|()| {
            let Some(tenant) = self.tenants.get(id) else {
                return Ok(());
            };
            // Again: bans that came into force while it was on its way here were looked for elsewhere.
            admission.banned(self.now, &applicant(tenant, ""))
        });
        match refused {
            Ok(()) => true,
            Err(refused) => {
                self.turn_away(id, refused);
                false
            }
        }
    }

    fn turn_away(&mut self, id: ConnectionId, refused: Refused) {
        self.counters.refused(refused);
        let (reason, log) = match refused {
            Refused::BannedAddress => (ReasonCode::Banned, "its address is banned"),
            Refused::BannedClient => (ReasonCode::Banned, "the client is banned"),
            Refused::BannedPrincipal => (ReasonCode::Banned, "the principal is banned"),
            Refused::BannedCertificate => (ReasonCode::Banned, "the certificate is banned"),
            Refused::HeldOff => (
                ReasonCode::ConnectionRateExceeded,
                "held off: it failed to authenticate too often",
            ),
            Refused::Flapping => (
                ReasonCode::ConnectionRateExceeded,
                "held off: it connects again and again",
            ),
            // Not decided at CONNECT.
            Refused::ConnectRate
            | Refused::ListenerConnectRate
            | Refused::ListenerFull
            | Refused::Handshakes
            | Refused::Sockets
            | Refused::PendingAddress
            | Refused::Overload
            | Refused::ReadMemory => (ReasonCode::ServerBusy, "the broker is busy"),
        };
        self.refuse(id, Refusal::new(reason, log));
    }

    /// The outside did not believe a client. Counted; it may be held off for it.
    pub(super) fn failed_to_authenticate(&mut self, id: ConnectionId, reason: ReasonCode) {
        let Some(tenant) = self.tenants.get(id) else {
            return;
        };
        let claimed = tenant.joiner.as_ref().map(|j| &*j.connect.client_id);
        let applicant = applicant(tenant, claimed.unwrap_or_default());
        let admission = &self.exchange.admission;
        let held = admission.disbelieved(self.now, &applicant, reason);
        if let Some(target) = held {
            tracing::warn!(
                event = "client.held_off",
                %target,
                peer = %tenant.origin.peer,
                "it failed to authenticate too often"
            );
        }
    }

    /// The outside knows a client.
    pub(super) fn authenticated(&mut self, id: ConnectionId) {
        if let Some(tenant) = self.tenants.get(id) {
            let address = tenant.origin.peer.ip();
            self.exchange
                .admission
                .hold_offs
                .succeeded(self.now, address);
        }
    }

    /// Ends the connections that bans are about which came into force.
    pub(super) fn enforce(&mut self, search: Search) {
        let Search { bans, from } = search;
        if from == 0 {
            let clients = bans.clients.keys();
            let mut sessions: Vec<SessionId> = clients
                .filter_map(|client| self.clients.get(client).copied())
                .collect();
            for principal in bans.principals.keys() {
                sessions.extend(self.principals.of(principal));
            }
            for session in sessions {
                if let Some(connection) = self.sessions.get(session).and_then(|s| s.connection()) {
                    self.ban(connection);
                }
            }
        }
        if !bans.needs_search() {
            return;
        }
        let tick = self.now.tick;
        let (ids, next) = self.tenants.some(self.number, from, SEARCHED);
        for id in ids {
            let Some(tenant) = self.tenants.get(id) else {
                continue;
            };
            let print = tenant.fingerprint.as_ref();
            if bans.has_address(tick, tenant.origin.peer.ip())
                || print.is_some_and(|print| bans.has_certificate(tick, print))
            {
                self.ban(id);
            }
        }
        if let Some(from) = next {
            // Behind what others want: their turn comes in between.
            self.mailbox.post(Mail::Ban(Search { bans, from }));
        }
    }

    fn ban(&mut self, id: ConnectionId) {
        self.close(id, ReasonCode::Banned, "banned by an operator");
    }

    /// A connection would hold more incomplete packets than there is memory for.
    pub(crate) fn out_of_read_memory(&mut self, id: ConnectionId) {
        self.counters.refused(Refused::ReadMemory);
        self.close(
            id,
            ReasonCode::QuotaExceeded,
            "no memory for its incomplete packet (`max_read_memory`)",
        );
    }

    /// What a connection's full socket did not take is more than there is memory for.
    pub(crate) fn out_of_queue_memory(&mut self, id: ConnectionId) {
        self.counters.slow_consumers.one();
        self.close(
            id,
            ReasonCode::QuotaExceeded,
            "slow consumer: no memory for what its full socket does not take (`max_queue_memory`)",
        );
    }

    /// A connection is not read from before this tick: until then its silence is not its own.
    pub(crate) fn not_read_before(&mut self, id: ConnectionId, tick: u64) {
        if let Some(tenant) = self.tenants.get(id) {
            tenant.connection.not_read_before(tick);
        }
    }
}

fn applicant<'a>(tenant: &'a Tenant, client_id: &'a str) -> Applicant<'a> {
    Applicant {
        address: tenant.origin.peer.ip(),
        certificate: tenant.fingerprint.as_deref(),
        client_id,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mqtt::{Connect, PubAck, PubRec, QoS, ReasonCode, Version};

    use super::super::tenants::Origin;
    use super::super::world::{World, qos0, qos1, with_will};
    use super::*;
    use crate::admission::bans::{Ban, BanTarget};
    use crate::limits::Limits;
    use crate::transport::Protocol;

    const V5: Version = Version::V5;
    const V311: Version = Version::V311;

    impl World {
        fn bans(&mut self, targets: &[BanTarget]) {
            let bans = targets.iter().cloned().map(|target| Ban {
                target,
                reason: "test".to_owned(),
                until_us: None,
            });
            self.exchange.set_bans(bans.collect(), self.now);
            self.deliver_mail();
        }

        /// A client over TLS with this for a certificate, at an address.
        fn with_certificate(&mut self, leaf: &[u8], peer: &str, name: &str) -> ConnectionId {
            let origin = Origin {
                listener: "test".into(),
                peer: peer.parse().expect("an address"),
                protocol: Protocol::Mqtts,
                certificates: vec![leaf.to_vec().into()],
                proxied: None,
            };
            let id = self.shards[0].open(origin).expect("there is room");
            let decoder = mqtt::Decoder::for_client(V5, u32::MAX);
            self.decoders.insert(id, decoder);
            self.send(id, Connect::new(V5, name));
            self.settle_in(id)
        }

        fn refused(&self) -> Vec<(&'static str, u64)> {
            let refused = self.exchange.stats().refused().into_iter();
            refused.filter(|(_, count)| *count > 0).collect()
        }
    }

    fn is_open(world: &mut World, id: ConnectionId) -> bool {
        !world.look(id).closed
    }

    #[test]
    fn a_banned_certificate_is_out_and_does_not_come_in_again() {
        let mut world = World::new();
        let stolen = world.with_certificate(b"stolen", "192.0.2.7:1", "stolen");
        let other = world.with_certificate(b"other", "192.0.2.7:2", "other");
        assert_eq!(world.connack(stolen).reason, ReasonCode::Success);
        assert_eq!(world.connack(other).reason, ReasonCode::Success);
        let print: Fingerprint = Sha256::digest(b"stolen").into();
        world.bans(&[BanTarget::Certificate(print)]);
        let told = world.closed_with(stolen);
        // 0x8A is for CONNACK alone.
        assert_eq!(told, Some(ReasonCode::AdministrativeAction));
        assert!(is_open(&mut world, other));
        let again = world.with_certificate(b"stolen", "198.51.100.1:1", "another name");
        assert_eq!(world.closed_with(again), Some(ReasonCode::Banned));
        assert_eq!(world.refused(), [("banned_certificate", 1)]);
        world.bans(&[]);
        let free = world.with_certificate(b"stolen", "192.0.2.7:3", "stolen");
        assert_eq!(world.connack(free).reason, ReasonCode::Success);
    }

    #[test]
    fn a_banned_range_ends_all_connections_from_it_and_no_other() {
        let mut world = World::new();
        // More than are looked at in one piece.
        let inside: Vec<_> = (0..SEARCHED + 10)
            .map(|n| world.with_certificate(b"x", "192.0.2.7:1", &format!("in-{n}")))
            .collect();
        let outside = world.with_certificate(b"x", "203.0.113.7:1", "out");
        world.connack(outside);
        let range = "192.0.2.0/24".parse().expect("a range");
        world.bans(&[BanTarget::Addresses(range)]);
        for id in inside {
            assert!(!is_open(&mut world, id));
        }
        assert!(is_open(&mut world, outside));
        // A proxy would tell an address that was not known when its socket was let in.
        let late = world.with_certificate(b"x", "192.0.2.9:1", "late");
        assert_eq!(world.closed_with(late), Some(ReasonCode::Banned));
        assert_eq!(world.refused(), [("banned_address", 1)]);
    }

    #[test]
    fn a_ban_that_comes_while_a_client_is_on_its_way_is_not_missed() {
        let mut world = World::new();
        for n in 0..20 {
            let name = format!("car-{n}");
            let id = world.dial(0);
            let decoder = mqtt::Decoder::for_client(V5, u32::MAX);
            world.decoders.insert(id, decoder);
            world.put(id, Connect::new(V5, &*name));
            // Authenticated, and on its way to another shard, or there.
            world.bans(&[BanTarget::Client(name.as_str().into())]);
            let id = world.settle_in(id);
            let told = world.closed_with(id);
            let expected = [ReasonCode::Banned, ReasonCode::AdministrativeAction];
            assert!(told.is_some_and(|t| expected.contains(&t)), "{n}: {told:?}");
        }
    }

    #[test]
    fn in_overload_the_new_are_put_off_and_the_old_are_served() {
        let mut world = World::with(Limits {
            max_pending_connections: 8,
            retry_spread: Duration::from_secs(10),
            ..Limits::default()
        });
        let mut old = world.subscriber(0, V5, "old", "a", QoS::AtMostOnce);
        let late = Duration::from_secs(100);
        let delays = |world: &World, late| {
            let tick = world.now.tick;
            world.exchange.admission.delays.looked(0, tick, late);
        };
        delays(&world, late);
        let new: Vec<_> = ["a", "b", "c"]
            .map(|name| world.connect(1, Connect::new(V5, name)))
            .into();
        // Two wait; for the third there is no place to.
        let mut told = Vec::new();
        for id in &new {
            let seen = world.look(*id);
            told.push(seen.closed);
        }
        assert_eq!(told, [false, false, true]);
        world.send(old, qos0("a", "still served"));
        assert_eq!(world.messages(old), ["a: still served"]);
        for _ in 0..11 {
            world.wait(1);
        }
        for id in &new[..2] {
            assert_eq!(world.closed_with(*id), Some(ReasonCode::ServerBusy));
        }
        assert_eq!(world.refused(), [("overload", 3)]);
        for _ in 0..200 {
            delays(&world, Duration::ZERO);
        }
        old = world.client(1, V5, "old");
        assert!(is_open(&mut world, old));
    }

    #[test]
    fn who_flaps_is_held_off_while_others_with_its_name_elsewhere_are_not() {
        let mut limits = Limits::default();
        limits.hold_off.connects = 2;
        let mut world = World::with(limits);
        let mut last = None;
        for _ in 0..3 {
            last = Some(world.client(0, V5, "twin"));
        }
        let fourth = world.connect(1, Connect::new(V5, "twin"));
        let told = world.closed_with(fourth);
        assert_eq!(told, Some(ReasonCode::ConnectionRateExceeded));
        assert!(is_open(&mut world, last.expect("connected")), "it stays");
        world.client(0, V5, "other");
        let old = world.connect(0, Connect::new(V311, "twin"));
        let told = world.closed_with(old);
        assert_eq!(
            told,
            Some(ReasonCode::ServerUnavailable),
            "the nearest of 3.1.1"
        );
        assert_eq!(world.refused(), [("flapping", 2)]);
        world.wait(301);
        world.client(0, V5, "twin");
    }

    #[test]
    fn a_topic_with_too_many_levels_is_refused_in_the_words_of_its_packet() {
        let mut world = World::new();
        let deepest = ["a"; 128].join("/");
        let deeper = ["a"; 129].join("/");
        let absurd = "/".repeat(65_000);
        let mut app = world.subscriber(0, V5, "app", "#", QoS::AtMostOnce);
        let car = world.client(1, V5, "car");
        world.send(car, qos0(&deepest, "x"));
        assert_eq!(world.messages(app).len(), 1);
        for topic in [&deeper, &absurd] {
            world.send(car, qos0(topic, "x"));
            world.send(car, qos1(1, topic, "x"));
            let mut exactly = qos1(2, topic, "x");
            exactly.qos = QoS::ExactlyOnce;
            world.send(car, exactly);
            let answers = world.look(car).packets;
            let invalid = ReasonCode::TopicNameInvalid;
            assert!(
                matches!(&answers[..], [
                    mqtt::Packet::PubAck(PubAck { reason: first, .. }),
                    mqtt::Packet::PubRec(PubRec { reason: second, .. }),
                ] if (*first, *second) == (invalid, invalid)),
                "{answers:?}"
            );
        }
        assert_eq!(world.exchange.stats().dropped_topic_levels, 2);
        let old = world.client(1, V311, "old");
        world.send(old, qos1(1, &deeper, "x"));
        assert!(!is_open(&mut world, old), "3.1.1 is told by closing");
        let with_will = world.connect(0, with_will(Connect::new(V5, "dying"), &deeper));
        let told = world.closed_with(with_will);
        assert_eq!(told, Some(ReasonCode::TopicNameInvalid));
        assert_eq!(world.messages(app), Vec::<String>::new());
        app = world.client(0, V5, "app");
        assert!(is_open(&mut world, app));
    }

    #[test]
    fn when_queues_take_too_much_together_each_takes_less() {
        let limits = Limits {
            max_queue_memory: 300_000,
            max_queued_bytes: 200_000,
            max_packet_size: 100_000,
            ..Limits::default()
        };
        let mut world = World::with(limits);
        let exactly = |world: &mut World| {
            // What a shard keeps to itself is booked every second.
            world.wait(1);
            world.exchange.stats().queue_memory_bytes
        };
        let often = world.subscriber(0, V5, "often", "a/#", QoS::AtMostOnce);
        let car = world.client(1, V5, "car");
        let payload = "x".repeat(10_000);
        for _ in 0..15 {
            world.send(car, qos0("a/b", &payload));
        }
        assert_eq!(world.exchange.stats().dropped_memory, 0);
        let slow = world.subscriber(2, V5, "slow", "a/#", QoS::AtLeastOnce);
        let mut id = 0;
        while world.exchange.stats().slow_consumers == 0 && id < 100 {
            id += 1;
            world.send(car, qos1(id, "a/b", &payload));
        }
        // Its own bound is 200,000 bytes: it met the smaller one.
        let used = exactly(&mut world);
        assert!(
            id < 35 && used <= 300_000 + 75_000,
            "{id} messages, {used} bytes"
        );
        assert!(!is_open(&mut world, slow));
        assert!(world.exchange.stats().dropped_memory > 0);
        // What is written, and what ends, is given back.
        assert!(is_open(&mut world, often));
        assert_eq!(exactly(&mut world), 0);
        world.send(car, qos0("a/b", "short"));
        assert_eq!(world.messages(often), ["a/b: short"]);
    }
}
