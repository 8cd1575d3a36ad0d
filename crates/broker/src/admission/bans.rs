//! Whom an operator does not want: clients, principals, addresses, certificates.
//!
//! The list is set as a whole, by whoever keeps it; here it is only looked up. A ban ends connections
//! that stand and refuses new ones. Its end is given as a wall clock time and measured from the moment it
//! is set, so that a clock that jumps lifts nothing.
//!
//! Clients, principals and certificates are found by hash, however many there are. Ranges of addresses
//! are compared one by one, 5 ns each: ten thousand of them are 50 µs for each new socket.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Fingerprint;
use crate::address_range::{AddressRange, AddressRangeError};
use crate::machine::Moment;

/// Whom a ban, or a hold-off, is about. Written and read as `client:…`, `principal:…`,
/// `address:10.0.0.0/8`, `certificate:` and the SHA-256 of the leaf certificate in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BanTarget {
    /// A client identifier, as the broker knows it ([`Identity::client_id`](crate::Identity)).
    Client(Arc<str>),
    /// An authenticated subject ([`Identity::principal`](crate::Identity)).
    Principal(Arc<str>),
    /// Addresses that connections come from.
    Addresses(AddressRange),
    /// A client certificate: SHA-256 of its DER form.
    Certificate([u8; 32]),
}

/// Text that names no target of a ban.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BanTargetError {
    /// It does not begin with one of the four words.
    #[error(
        "`{0}` names nobody; write `client:ID`, `principal:NAME`, `address:10.0.0.0/8` or `certificate:SHA256`"
    )]
    Kind(String),
    /// Nothing follows the word.
    #[error("`{0}` names nobody; write who it is behind the colon")]
    Empty(String),
    /// What follows `address:` is no range.
    #[error(transparent)]
    Address(#[from] AddressRangeError),
    /// What follows `certificate:` is no SHA-256.
    #[error(
        "`{0}` is no fingerprint; write the SHA-256 of the certificate as 64 hexadecimal digits, with or without colons"
    )]
    Certificate(String),
}

impl fmt::Display for BanTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BanTarget::Client(id) => write!(f, "client:{id}"),
            BanTarget::Principal(name) => write!(f, "principal:{name}"),
            BanTarget::Addresses(range) => write!(f, "address:{range}"),
            BanTarget::Certificate(fingerprint) => {
                f.write_str("certificate:")?;
                fingerprint.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}

impl FromStr for BanTarget {
    type Err = BanTargetError;

    fn from_str(text: &str) -> Result<BanTarget, BanTargetError> {
        let (kind, who) = text
            .split_once(':')
            .ok_or_else(|| BanTargetError::Kind(text.to_owned()))?;
        if who.is_empty() {
            return Err(BanTargetError::Empty(text.to_owned()));
        }
        match kind {
            "client" => Ok(BanTarget::Client(who.into())),
            "principal" => Ok(BanTarget::Principal(who.into())),
            "address" => Ok(BanTarget::Addresses(who.parse()?)),
            "certificate" => fingerprint(who)
                .map(BanTarget::Certificate)
                .ok_or_else(|| BanTargetError::Certificate(who.to_owned())),
            _ => Err(BanTargetError::Kind(text.to_owned())),
        }
    }
}

/// 64 hexadecimal digits, as `openssl x509 -fingerprint` writes them or without its colons.
fn fingerprint(text: &str) -> Option<Fingerprint> {
    let mut digits = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16));
    let mut fingerprint = [0; 32];
    for byte in &mut fingerprint {
        let (high, low) = (digits.next()??, digits.next()??);
        *byte = (high << 4 | low) as u8;
    }
    digits.next().is_none().then_some(fingerprint)
}

/// One entry of the ban list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// Who is banned.
    pub target: BanTarget,
    /// Why, for operators; the client is not told.
    pub reason: String,
    /// When it ends: microseconds since the Unix epoch; `None` for never.
    pub until_us: Option<i64>,
}

/// The ban list in force.
#[derive(Default)]
pub(crate) struct Bans {
    /// Whether there is any: most brokers need not look.
    any: AtomicBool,
    list: RwLock<Arc<BanList>>,
}

/// A ban list, ready to be looked up. Each entry with the tick at which it ends.
#[derive(Debug, Default)]
pub(crate) struct BanList {
    pub(crate) clients: HashMap<Arc<str>, u64>,
    pub(crate) principals: HashMap<Arc<str>, u64>,
    pub(crate) certificates: HashMap<Fingerprint, u64>,
    pub(crate) addresses: Vec<(AddressRange, u64)>,
    bans: Vec<(Ban, u64)>,
}

impl BanList {
    fn new(now: Moment, bans: Vec<Ban>) -> BanList {
        let mut list = BanList::default();
        for ban in bans {
            let ends = match ban.until_us {
                None => u64::MAX,
                Some(until) => {
                    let left_us = until.saturating_sub(now.wall_us).max(0);
                    now.tick + left_us as u64 / 1000
                }
            };
            if ends <= now.tick {
                continue;
            }
            let longest = |known: &mut u64| *known = (*known).max(ends);
            match &ban.target {
                BanTarget::Client(id) => longest(list.clients.entry(Arc::clone(id)).or_default()),
                BanTarget::Principal(name) => {
                    longest(list.principals.entry(Arc::clone(name)).or_default());
                }
                BanTarget::Certificate(print) => {
                    longest(list.certificates.entry(*print).or_default());
                }
                BanTarget::Addresses(range) => list.addresses.push((*range, ends)),
            }
            list.bans.push((ban, ends));
        }
        list
    }

    /// What of this list was not in `earlier`.
    fn beyond(&self, now: Moment, earlier: &BanList) -> BanList {
        let in_force = earlier.bans.iter().filter(|(_, ends)| *ends > now.tick);
        let known: HashSet<&BanTarget> = in_force.map(|(ban, _)| &ban.target).collect();
        let new = self.bans.iter();
        let new = new.filter(|(ban, _)| !known.contains(&ban.target));
        BanList::new(now, new.map(|(ban, _)| ban.clone()).collect())
    }

    /// Whether connections have to be looked at one by one to find those it is about.
    pub(crate) fn needs_search(&self) -> bool {
        !self.certificates.is_empty() || !self.addresses.is_empty()
    }

    pub(crate) fn has_address(&self, tick: u64, address: IpAddr) -> bool {
        self.addresses
            .iter()
            .any(|(range, ends)| *ends > tick && range.contains(address))
    }

    pub(crate) fn has_certificate(&self, tick: u64, certificate: &Fingerprint) -> bool {
        self.certificates
            .get(certificate)
            .is_some_and(|e| *e > tick)
    }
}

impl Bans {
    /// Puts a list in the place of the one there was. Returns what is new in it.
    pub(crate) fn set(&self, now: Moment, bans: Vec<Ban>) -> BanList {
        let list = Arc::new(BanList::new(now, bans));
        let mut current = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let earlier = std::mem::replace(&mut *current, Arc::clone(&list));
        self.any.store(!list.bans.is_empty(), Ordering::Release);
        drop(current);
        list.beyond(now, &earlier)
    }

    /// The bans that have not ended, in the order in which they were given.
    pub(crate) fn all(&self, now: Moment) -> Vec<Ban> {
        let list = self.list();
        let bans = list.bans.iter().filter(|(_, ends)| *ends > now.tick);
        bans.map(|(ban, _)| ban.clone()).collect()
    }

    fn list(&self) -> Arc<BanList> {
        Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn any(&self, check: impl FnOnce(&BanList) -> bool) -> bool {
        self.any.load(Ordering::Acquire) && check(&self.list())
    }

    pub(crate) fn address(&self, now: Moment, address: IpAddr) -> bool {
        self.any(|list| list.has_address(now.tick, address))
    }

    pub(crate) fn certificate(&self, now: Moment, certificate: &Fingerprint) -> bool {
        self.any(|list| list.has_certificate(now.tick, certificate))
    }

    pub(crate) fn client(&self, now: Moment, client_id: &str) -> bool {
        self.any(|list| list.clients.get(client_id).is_some_and(|e| *e > now.tick))
    }

    pub(crate) fn principal(&self, now: Moment, principal: &str) -> bool {
        self.any(|list| {
            list.principals
                .get(principal)
                .is_some_and(|e| *e > now.tick)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_as_it_is_read() {
        let hex = "0123456789abcdef".repeat(4);
        let certificate = format!("certificate:{hex}");
        let rows = [
            "client:tcu-1/app",
            "client:a:b",
            "principal:device 7",
            "address:10.0.0.0/8",
            "address:2001:db8::1",
            &certificate,
        ];
        for text in rows {
            let target: BanTarget = text.parse().expect(text);
            assert_eq!(target.to_string(), text);
        }
        let pairs: Vec<String> = hex
            .to_uppercase()
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).into_owned())
            .collect();
        let openssl = format!("certificate:{}", pairs.join(":"));
        assert_eq!(openssl.parse(), certificate.parse::<BanTarget>());
    }

    #[test]
    fn what_names_nobody_says_what_would() {
        let rows = [
            ("car-1", "write `client:ID`"),
            ("vehicle:1", "write `client:ID`"),
            ("client:", "behind the colon"),
            ("address:10.0.0.1/8", "10.0.0.0/8"),
            ("certificate:abc", "64 hexadecimal digits"),
            ("certificate:zz", "64 hexadecimal digits"),
        ];
        for (text, says) in rows {
            let error = text.parse::<BanTarget>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    fn ban(target: &str, until_us: Option<i64>) -> Ban {
        Ban {
            target: target.parse().expect("a target"),
            reason: "stolen".to_owned(),
            until_us,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment {
            tick: seconds * 1000,
            wall_us: 1_700_000_000_000_000 + seconds as i64 * 1_000_000,
        }
    }

    #[test]
    fn a_ban_ends_when_it_was_said_to_whatever_the_wall_clock_does() {
        let bans = Bans::default();
        let until = at(60).wall_us;
        bans.set(
            at(0),
            vec![ban("client:a", Some(until)), ban("client:b", None)],
        );
        assert!(bans.client(at(59), "a"));
        let jumped = Moment {
            wall_us: until * 2,
            ..at(59)
        };
        assert!(bans.client(jumped, "a"));
        assert!(!bans.client(at(60), "a"));
        assert!(bans.client(at(60), "b"));
        assert_eq!(bans.all(at(60)), [ban("client:b", None)]);
        // One that is over already is none.
        bans.set(at(60), vec![ban("client:c", Some(until))]);
        assert!(!bans.client(at(60), "c"));
        assert!(bans.all(at(60)).is_empty());
    }

    #[test]
    fn only_what_is_new_concerns_connections_that_stand() {
        let bans = Bans::default();
        let first = vec![ban("principal:p", None), ban("address:10.0.0.0/8", None)];
        let new = bans.set(at(0), first.clone());
        assert!(new.needs_search() && new.principals.len() == 1);
        let mut second = first;
        second.push(ban("client:c", None));
        let new = bans.set(at(1), second);
        assert!(!new.needs_search() && new.principals.is_empty());
        assert_eq!(new.clients.len(), 1);
        bans.set(at(2), Vec::new());
        assert!(!bans.principal(at(2), "p"));
        assert!(!bans.address(at(2), "10.1.2.3".parse().expect("an address")));
    }

    #[test]
    fn the_longer_of_two_bans_holds() {
        let bans = Bans::default();
        let soon = Some(at(10).wall_us);
        bans.set(at(0), vec![ban("client:a", None), ban("client:a", soon)]);
        assert!(bans.client(at(20), "a"));
    }
}
