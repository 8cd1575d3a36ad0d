//! Who comes too often is held off for a while: bad credentials, and clients that flap.
//!
//! *Bad credentials.* Counted by who can be told apart without trusting what they say:
//!
//! - a client certificate, whose key TLS has proven: held off wherever it comes from;
//! - else the client identifier it claims, *from this address*: held off there only, as anybody can claim
//!   the identifier of another car, and must not be able to lock that one out;
//! - the address (for IPv6 its /64), by the number of *different* clients that failed there; each good
//!   connect from it excuses as many as it takes. So one bad car does not lock out the fleet that shares
//!   its address, and somebody who tries one identifier after the other does lock out himself.
//!
//! *Bad certificates.* A TLS handshake that fails for want of a good client certificate has cost us the
//! expensive part, the key exchange and our signature, before the certificate is even seen. To hold off the
//! certificate would save next to nothing; only its address, where nothing is taken from it, does. But an
//! address may be that of a fleet, of which some certificates have expired and their cars try for ever. So
//! an address is held off for this only if nothing good comes from it:
//!
//! - ten times as many handshakes failed as of other failures, which costs us next to nothing in a minute;
//! - more failed than succeeded with a certificate, HTTPS included;
//! - and no client from there is connected, over any listener.
//!
//! Price: who has one good certificate may show bad ones as often as it likes; rates bound that
//! ([`Limits::connect_rate`](crate::Limits::connect_rate)). And a good car alone with a bad one behind an
//! address waits, once it has gone, for up to [`HoldOff::lasts`].
//!
//! *Flapping.* Counted by principal and client identifier after authentication, takeovers included: two
//! devices with one identifier that throw each other out are found like this.
//!
//! In memory only: a restart forgives.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::bans::BanTarget;
use super::watchlist::{Begun, Held, Watchlist};
use super::{Fingerprint, network_of};
use crate::address_range::AddressRange;
use crate::machine::Moment;
use crate::machine::exchange::hash;

/// When somebody is held off, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldOff {
    /// Failed authentications; at this many, whoever failed is held off: closed before the handshake, or
    /// 0x9F in CONNACK. 10: a person mistyping gives up before. Handshakes that fail for want of a good
    /// client certificate count a tenth, and against an address from which nobody is connected. 0: nobody
    /// is.
    pub failures: u32,
    /// Connections of one client that broke: ended without DISCONNECT, or taken over by another; at this
    /// many it is held off: 0x9F in CONNACK. 30: a car on the worst of links needs some seconds for each.
    /// Whoever says goodbye may come as often as it likes. 0: nobody is.
    pub connects: u32,
    /// The time within which both are counted. 60 s.
    pub within: Duration,
    /// How long it lasts. 5 minutes.
    pub lasts: Duration,
    /// Clients, certificates and addresses counted at a time, and as many held, of either kind; the
    /// oldest go. 16,384: some 20 MiB at most.
    pub max_entries: usize,
}

impl Default for HoldOff {
    fn default() -> HoldOff {
        HoldOff {
            failures: 10,
            connects: 30,
            within: Duration::from_secs(60),
            lasts: Duration::from_secs(300),
            max_entries: 16_384,
        }
    }
}

/// Somebody who is held off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldOff {
    /// Who. A client of whom only the identifier it claims is known is held off at one address only.
    pub target: BanTarget,
    /// Why.
    pub why: HoldOffReason,
    /// Until when: microseconds since the Unix epoch.
    pub until_us: i64,
    /// How often it had happened when it was held off.
    pub count: u32,
}

/// Why somebody is held off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldOffReason {
    /// Too many failed authentications.
    BadCredentials,
    /// Too many connections that broke.
    Flapping,
}

/// Who wants to connect, as far as it is known before it is known who it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applicant<'a> {
    pub(crate) address: IpAddr,
    pub(crate) certificate: Option<&'a Fingerprint>,
    /// What it claims to be.
    pub(crate) client_id: &'a str,
}

/// Of whom failures are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Suspect {
    Address(IpAddr),
    ClientAt(IpAddr, Arc<str>),
    Certificate(Fingerprint),
    /// An address, for its TLS handshakes: only counted. Who is held off for them is the address.
    Handshakes(IpAddr),
}

/// Handshakes without a good certificate that weigh as much as one other failure.
const HANDSHAKES_PER_FAILURE: u32 = 10;

/// Of whom broken connections are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Flapper {
    principal: Arc<str>,
    client_id: Arc<str>,
}

impl Flapper {
    fn new(principal: &Arc<str>, client_id: &Arc<str>) -> Flapper {
        Flapper {
            principal: short(principal),
            client_id: short(client_id),
        }
    }
}

/// Who is watched and who is held off.
pub(crate) struct HoldOffs {
    rules: HoldOff,
    /// Whether anybody failed, and whether anybody is held off for it: most brokers need not look.
    failed: AtomicBool,
    holds: AtomicBool,
    suspects: Mutex<Watchlist<Suspect>>,
    flappers: Mutex<Watchlist<Flapper>>,
}

impl HoldOffs {
    pub(crate) fn new(rules: HoldOff) -> HoldOffs {
        HoldOffs {
            rules,
            failed: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            suspects: Mutex::new(Watchlist::new(rules.max_entries)),
            flappers: Mutex::new(Watchlist::new(rules.max_entries)),
        }
    }

    /// Whether nothing is taken from this address.
    pub(crate) fn is_address_held(&self, now: Moment, address: IpAddr) -> bool {
        let suspect = || Suspect::Address(network_of(address));
        self.holds.load(Ordering::Relaxed) && self.suspects().is_held(&suspect(), now.tick)
    }

    /// Whether somebody who failed too often comes again.
    pub(crate) fn is_held(&self, now: Moment, who: &Applicant<'_>) -> bool {
        if !self.holds.load(Ordering::Relaxed) {
            return false;
        }
        let mut suspects = self.suspects();
        if suspects.all(now.tick).next().is_none() {
            self.holds.store(false, Ordering::Relaxed);
            return false;
        }
        let address = Suspect::Address(network_of(who.address));
        suspects.is_held(&address, now.tick) || suspects.is_held(&suspect(who), now.tick)
    }

    /// Somebody failed to authenticate. Says who is held off from now on.
    pub(crate) fn failed(&self, now: Moment, who: &Applicant<'_>) -> Option<BanTarget> {
        if self.rules.failures == 0 {
            return None;
        }
        let within = self.rules.within.as_millis() as u64;
        let most = self.rules.failures;
        self.failed.store(true, Ordering::Relaxed);
        let mut suspects = self.suspects();
        let suspect = suspect(who);
        let (tally, begun) = suspects.tally(&suspect, now.tick, within);
        tally.bad += 1;
        let own = tally.bad;
        let mut held = None;
        if own >= most {
            held = self.hold(&mut suspects, now, &suspect, own);
        }
        // Certificates cannot be made up one after the other: each is held off by itself. Names can, and
        // who gives none is a different one each time.
        if who.certificate.is_none() && (begun == Begun::Now || who.client_id.is_empty()) {
            let address = Suspect::Address(network_of(who.address));
            let (tally, _) = suspects.tally(&address, now.tick, within);
            tally.bad += 1;
            let (bad, good) = (tally.bad, tally.good);
            if bad >= most.saturating_mul(good.saturating_add(1)) {
                held = self.hold(&mut suspects, now, &address, bad);
            }
        }
        held
    }

    /// A TLS handshake failed for want of a good client certificate, at an address from which so many
    /// clients are connected. Says who is held off from now on.
    pub(crate) fn bad_certificate(
        &self,
        now: Moment,
        address: IpAddr,
        clients: usize,
    ) -> Option<BanTarget> {
        if self.rules.failures == 0 {
            return None;
        }
        let network = network_of(address);
        let within = self.rules.within.as_millis() as u64;
        let most = self.rules.failures.saturating_mul(HANDSHAKES_PER_FAILURE);
        self.failed.store(true, Ordering::Relaxed);
        let mut suspects = self.suspects();
        let (tally, _) = suspects.tally(&Suspect::Handshakes(network), now.tick, within);
        tally.bad = tally.bad.saturating_add(1);
        let bad = tally.bad;
        if bad < most || bad <= tally.good || clients > 0 {
            return None;
        }
        // Or one more would do, once it is released.
        tally.bad = 0;
        self.hold(&mut suspects, now, &Suspect::Address(network), bad)
    }

    /// A TLS handshake succeeded, with a client certificate.
    pub(crate) fn good_certificate(&self, now: Moment, address: IpAddr) {
        self.excuse(now, &Suspect::Handshakes(network_of(address)));
    }

    fn hold(
        &self,
        suspects: &mut Watchlist<Suspect>,
        now: Moment,
        who: &Suspect,
        count: u32,
    ) -> Option<BanTarget> {
        let until = now.tick + self.rules.lasts.as_millis() as u64;
        suspects.hold(who, Held { until, count }, now.tick);
        self.holds.store(true, Ordering::Relaxed);
        Some(who.target())
    }

    /// Somebody authenticated.
    pub(crate) fn succeeded(&self, now: Moment, address: IpAddr) {
        self.excuse(now, &Suspect::Address(network_of(address)));
    }

    fn excuse(&self, now: Moment, suspect: &Suspect) {
        if !self.failed.load(Ordering::Relaxed) {
            return;
        }
        let within = self.rules.within.as_millis() as u64;
        if let Some(tally) = self.suspects().known(suspect, now.tick, within) {
            tally.good = tally.good.saturating_add(1);
        }
    }

    /// Whether somebody who authenticated is held off for flapping.
    pub(crate) fn is_flapping(
        &self,
        now: Moment,
        principal: &Arc<str>,
        client_id: &Arc<str>,
    ) -> bool {
        if self.rules.connects == 0 {
            return false;
        }
        let who = Flapper::new(principal, client_id);
        let flappers = self.flappers();
        flappers.holds_any() && flappers.is_held(&who, now.tick)
    }

    /// A connection ended without a goodbye: the link broke, or another connection took its session.
    /// Counts it.
    pub(crate) fn broke(&self, now: Moment, principal: &Arc<str>, client_id: &Arc<str>) {
        if self.rules.connects == 0 {
            return;
        }
        let who = Flapper::new(principal, client_id);
        let within = self.rules.within.as_millis() as u64;
        let mut flappers = self.flappers();
        let (tally, _) = flappers.tally(&who, now.tick, within);
        tally.bad += 1;
        let count = tally.bad;
        if count >= self.rules.connects {
            let until = now.tick + self.rules.lasts.as_millis() as u64;
            flappers.hold(&who, Held { until, count }, now.tick);
        }
    }

    /// Milliseconds until somebody who failed to authenticate too often is let in again.
    pub(crate) fn held_for(&self, now: Moment, who: &Applicant<'_>) -> Option<u64> {
        let suspects = self.suspects();
        let address = Suspect::Address(network_of(who.address));
        let until = |suspect| suspects.held_until(suspect, now.tick);
        let until = until(&address).max(until(&suspect(who)))?;
        Some(until - now.tick)
    }

    /// Milliseconds until somebody whose connections broke too often is let in again.
    pub(crate) fn flaps_for(
        &self,
        now: Moment,
        principal: &Arc<str>,
        client_id: &Arc<str>,
    ) -> Option<u64> {
        let who = Flapper::new(principal, client_id);
        let until = self.flappers().held_until(&who, now.tick)?;
        Some(until - now.tick)
    }

    /// All who are held off now.
    pub(crate) fn all(&self, now: Moment) -> Vec<HeldOff> {
        let until_us = |held: Held| {
            let left = held.until.saturating_sub(now.tick);
            now.wall_us.saturating_add(left.saturating_mul(1000) as i64)
        };
        let mut all = Vec::new();
        for (who, held) in self.suspects().all(now.tick) {
            all.push(HeldOff {
                target: who.target(),
                why: HoldOffReason::BadCredentials,
                until_us: until_us(held),
                count: held.count,
            });
        }
        for (who, held) in self.flappers().all(now.tick) {
            all.push(HeldOff {
                target: BanTarget::Client(Arc::clone(&who.client_id)),
                why: HoldOffReason::Flapping,
                until_us: until_us(held),
                count: held.count,
            });
        }
        all.sort_unstable_by(|a, b| (&a.target, a.until_us).cmp(&(&b.target, b.until_us)));
        all
    }

    /// Lets go of whoever `target` names. Says whether there was anybody.
    pub(crate) fn release(&self, now: Moment, target: &BanTarget) -> bool {
        let suspects = self.suspects().release(|who| who.is_of(target), now.tick);
        let flappers = self.flappers().release(
            |who| match target {
                BanTarget::Client(id) => who.client_id == short(id),
                BanTarget::Principal(name) => who.principal == short(name),
                BanTarget::Addresses(_) | BanTarget::Certificate(_) => false,
            },
            now.tick,
        );
        suspects + flappers > 0
    }

    fn suspects(&self) -> MutexGuard<'_, Watchlist<Suspect>> {
        // Nothing that can panic runs under the lock.
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flappers(&self) -> MutexGuard<'_, Watchlist<Flapper>> {
        self.flappers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Suspect {
    fn target(&self) -> BanTarget {
        match self {
            Suspect::Address(address) | Suspect::Handshakes(address) => {
                BanTarget::Addresses(range(*address))
            }
            Suspect::ClientAt(_, id) => BanTarget::Client(Arc::clone(id)),
            Suspect::Certificate(fingerprint) => BanTarget::Certificate(*fingerprint),
        }
    }

    fn is_of(&self, target: &BanTarget) -> bool {
        match (self, target) {
            (Suspect::Address(address), BanTarget::Addresses(range)) => range.contains(*address),
            (Suspect::ClientAt(_, id), BanTarget::Client(named)) => *id == short(named),
            (Suspect::Certificate(print), BanTarget::Certificate(named)) => print == named,
            _ => false,
        }
    }
}

fn suspect(who: &Applicant<'_>) -> Suspect {
    match who.certificate {
        Some(fingerprint) => Suspect::Certificate(*fingerprint),
        None => Suspect::ClientAt(network_of(who.address), short(&who.client_id.into())),
    }
}

/// The range that [`network_of`] stands for.
fn range(address: IpAddr) -> AddressRange {
    match address {
        IpAddr::V4(_) => address.into(),
        // The lower half is 0, so it is a range.
        IpAddr::V6(_) => format!("{address}/64")
            .parse()
            .unwrap_or_else(|_| address.into()),
    }
}

/// A name that is kept for its own sake, and may be 64 KiB long: of a long one the beginning, and a hash
/// of all of it.
fn short(name: &Arc<str>) -> Arc<str> {
    const LONG: usize = 128;
    if name.len() <= LONG {
        return Arc::clone(name);
    }
    let start = &name[..name.floor_char_boundary(LONG - 20)];
    format!("{start}…{:016x}", hash(0, name.as_bytes())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: HoldOff = HoldOff {
        failures: 3,
        connects: 4,
        within: Duration::from_secs(60),
        lasts: Duration::from_secs(300),
        max_entries: 100,
    };

    fn at(seconds: u64) -> Moment {
        Moment {
            tick: seconds * 1000,
            wall_us: seconds as i64 * 1_000_000,
        }
    }

    fn from<'a>(address: &str, client_id: &'a str) -> Applicant<'a> {
        Applicant {
            address: address.parse().expect("an address"),
            certificate: None,
            client_id,
        }
    }

    #[test]
    fn one_bad_car_does_not_lock_out_the_fleet_behind_its_address() {
        let holds = HoldOffs::new(RULES);
        let bad = from("203.0.113.7", "bad");
        for second in 0..2 {
            assert_eq!(holds.failed(at(second), &bad), None);
        }
        let held = holds.failed(at(2), &bad);
        assert_eq!(held, Some(BanTarget::Client("bad".into())));
        assert!(holds.is_held(at(2), &bad));
        assert!(!holds.is_held(at(2), &from("203.0.113.7", "good")));
        assert!(!holds.is_address_held(at(2), bad.address));
        // Who claims its name elsewhere locks nobody out.
        assert!(!holds.is_held(at(2), &from("198.51.100.1", "bad")));
        assert!(!holds.is_held(at(302), &bad), "it is over");
        assert!(holds.all(at(302)).is_empty());
    }

    #[test]
    fn an_address_where_one_after_the_other_fails_is_held_off() {
        let holds = HoldOffs::new(RULES);
        for name in ["a", "b"] {
            assert_eq!(holds.failed(at(0), &from("203.0.113.7", name)), None);
        }
        let target = holds.failed(at(0), &from("203.0.113.7", "c"));
        let range = "203.0.113.7".parse().expect("a range");
        assert_eq!(target, Some(BanTarget::Addresses(range)));
        let good = from("203.0.113.7", "good");
        assert!(holds.is_held(at(1), &good) && holds.is_address_held(at(1), good.address));
        let all = holds.all(at(1));
        assert_eq!(
            (all.len(), all[0].count, all[0].until_us),
            (1, 3, 300_000_000)
        );
        assert!(holds.release(
            at(1),
            &BanTarget::Addresses("203.0.113.0/24".parse().expect("a range"))
        ));
        assert!(!holds.release(at(1), &BanTarget::Addresses(range)));
        assert!(!holds.is_held(at(1), &good));
    }

    #[test]
    fn good_connects_excuse_an_address() {
        let holds = HoldOffs::new(RULES);
        holds.failed(at(0), &from("203.0.113.7", "a"));
        holds.succeeded(at(0), "203.0.113.7".parse().expect("an address"));
        for name in ["b", "c", "d", "e"] {
            assert_eq!(holds.failed(at(0), &from("203.0.113.7", name)), None);
        }
        assert!(holds.failed(at(0), &from("203.0.113.7", "f")).is_some());
    }

    #[test]
    fn who_gives_no_name_is_another_one_each_time() {
        let holds = HoldOffs::new(RULES);
        let nobody = from("2001:db8:0:1::5", "");
        holds.failed(at(0), &nobody);
        holds.failed(at(0), &from("2001:db8:0:1::6", ""));
        let target = holds.failed(at(0), &from("2001:db8:0:1::7", ""));
        let range = "2001:db8:0:1::/64".parse().expect("a range");
        assert_eq!(target, Some(BanTarget::Addresses(range)));
    }

    #[test]
    fn a_certificate_is_held_off_wherever_it_comes_from() {
        let holds = HoldOffs::new(RULES);
        let print = [7; 32];
        for address in ["203.0.113.1", "203.0.113.2", "203.0.113.3"] {
            let mut who = from(address, "x");
            who.certificate = Some(&print);
            holds.failed(at(0), &who);
        }
        let mut elsewhere = from("198.51.100.1", "y");
        elsewhere.certificate = Some(&print);
        assert!(holds.is_held(at(1), &elsewhere));
        assert!(holds.release(at(1), &BanTarget::Certificate(print)));
        assert!(!holds.is_held(at(1), &elsewhere));
    }

    /// Ten new cars in a depot that are not registered yet must not keep the others out.
    #[test]
    fn proven_certificates_do_not_speak_against_their_address() {
        let holds = HoldOffs::new(RULES);
        for number in 0..20 {
            let print = [number; 32];
            let mut who = from("203.0.113.1", "x");
            who.certificate = Some(&print);
            assert_eq!(holds.failed(at(0), &who), None);
        }
        assert!(!holds.is_address_held(at(0), from("203.0.113.1", "x").address));
    }

    #[test]
    fn an_address_of_bad_certificates_alone_is_held_off_and_can_be_released() {
        let holds = HoldOffs::new(RULES);
        let address: IpAddr = "203.0.113.7".parse().expect("an address");
        for _ in 0..29 {
            assert_eq!(holds.bad_certificate(at(0), address, 0), None);
        }
        let target = holds.bad_certificate(at(0), address, 0).expect("held off");
        assert_eq!(target, BanTarget::Addresses(address.into()));
        assert!(holds.is_address_held(at(1), address));
        assert_eq!(holds.all(at(1))[0].count, 30);
        assert!(holds.release(at(1), &target));
        assert!(!holds.is_address_held(at(1), address));
        assert_eq!(holds.bad_certificate(at(1), address, 0), None, "anew");
    }

    /// Some cars of a fleet behind one address have certificates that expired, and try for ever.
    #[test]
    fn an_address_from_which_good_comes_is_not_held_off_for_bad_certificates() {
        let holds = HoldOffs::new(RULES);
        let [fleet, depot, slow] = ["203.0.113.7", "203.0.113.8", "203.0.113.9"]
            .map(|text| text.parse::<IpAddr>().expect("an address"));
        for n in 0..1000 {
            // Connected all the while, and nothing new.
            assert_eq!(holds.bad_certificate(at(0), fleet, 1), None);
            // Come and go, more of them than fail.
            assert_eq!(holds.bad_certificate(at(0), depot, 0), None);
            holds.good_certificate(at(0), depot);
            holds.good_certificate(at(0), depot);
            // Three seconds between two: twenty in a minute.
            assert_eq!(holds.bad_certificate(at(3 * n), slow, 0), None);
        }
        assert!(holds.all(at(0)).is_empty());
    }

    #[test]
    fn failures_that_lie_far_apart_do_not_add_up() {
        let holds = HoldOffs::new(RULES);
        for minute in 0..20 {
            assert_eq!(
                holds.failed(at(minute * 31), &from("203.0.113.7", "a")),
                None
            );
        }
    }

    #[test]
    fn a_client_that_flaps_is_held_off_and_others_are_not() {
        let holds = HoldOffs::new(RULES);
        let (principal, client): (Arc<str>, Arc<str>) = ("p".into(), "c".into());
        for second in 0..4 {
            assert!(!holds.is_flapping(at(second), &principal, &client));
            holds.broke(at(second), &principal, &client);
        }
        assert!(holds.is_flapping(at(4), &principal, &client));
        assert!(holds.is_flapping(at(200), &principal, &client));
        assert!(!holds.is_flapping(at(4), &"other".into(), &client));
        assert!(!holds.is_flapping(at(4), &principal, &"d".into()));
        let all = holds.all(at(4));
        assert_eq!((all.len(), all[0].why), (1, HoldOffReason::Flapping));
        assert!(holds.release(at(4), &BanTarget::Client(client.clone())));
        assert!(!holds.is_flapping(at(4), &principal, &client));
    }

    #[test]
    fn switched_off_nobody_is_held_off() {
        let holds = HoldOffs::new(HoldOff {
            failures: 0,
            connects: 0,
            ..RULES
        });
        for _ in 0..100 {
            assert_eq!(holds.failed(at(0), &from("203.0.113.7", "a")), None);
            let address = from("203.0.113.7", "a").address;
            assert_eq!(holds.bad_certificate(at(0), address, 0), None);
            holds.broke(at(0), &"p".into(), &"c".into());
            assert!(!holds.is_flapping(at(0), &"p".into(), &"c".into()));
        }
    }

    #[test]
    fn a_long_name_costs_no_more_than_a_short_one() {
        let long: Arc<str> = "ä".repeat(30_000).into();
        let kept = short(&long);
        assert!(kept.len() < 160, "{}", kept.len());
        assert_eq!(kept, short(&long));
        assert_ne!(kept, short(&format!("{long}b").into()));
        let holds = HoldOffs::new(RULES);
        for _ in 0..3 {
            holds.failed(at(0), &from("203.0.113.7", &long));
        }
        assert!(holds.is_held(at(0), &from("203.0.113.7", &long)));
        assert!(holds.release(at(0), &BanTarget::Client(long)));
    }
}
