//! Who is let in, and how much of them at once: rates, bans, hold-offs, overload, memory.
//!
//! ```text
//! socket ─► sockets, bans, hold-offs, listener, overload, rates ─► handshake ─► CONNECT
//! CONNECT ─► bans and hold-offs again (the address may be a proxy's word) ─► overload ─► who is it?
//!         ─► ban of client or principal ─► flapping? ─► session
//! HTTP    ─► bans and hold-offs, who is it?, ban, flapping? ─► rates in ─► ban again
//! served  ─► rates in and out, memory for incomplete packets, memory for what waits to be read
//! ```
//! Everything here is state and arithmetic: the time is handed in, nothing is read or waited for. Each
//! refusal has a name of its own ([`Refused`]) under which it is counted, whoever says it and however.
//!
//! The order is by cost: what needs no handshake is decided before one, what needs no authentication
//! before that. And it is by whom it harms: nothing here ever ends a connection that stands, except a
//! ban, which an operator asked for, and memory that would run out.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(crate) mod account;
pub(crate) mod bans;
pub(crate) mod debts;
pub(crate) mod gate;
pub(crate) mod hold_off;
pub(crate) mod memory;
pub(crate) mod meter;
pub(crate) mod neighbours;
pub(crate) mod overload;
pub(crate) mod rate;
pub(crate) mod shared_rate;
pub(crate) mod watchlist;

use account::Account;
use bans::{BanTarget, Bans};
use hold_off::{Applicant, HoldOffs};
use memory::{QueueMemory, ReadMemory};
use meter::Paces;
use mqtt::ReasonCode;
use overload::LoopDelays;
use shared_rate::SharedRate;

use crate::limits::Limits;
use crate::machine::Moment;

/// SHA-256 of a certificate in DER: by what it is banned, or held off.
pub(crate) type Fingerprint = [u8; 32];

/// Why a connection was refused: the name it is counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    BannedAddress,
    BannedClient,
    BannedPrincipal,
    BannedCertificate,
    /// Its address, client or certificate failed to authenticate too often.
    HeldOff,
    /// It connects again and again.
    Flapping,
    ConnectRate,
    ListenerConnectRate,
    ListenerFull,
    /// Too many TLS handshakes of its listener at once.
    Handshakes,
    /// Too many sockets, or file descriptors.
    Sockets,
    /// Too many sockets of its network that are not clients yet.
    PendingAddress,
    Overload,
    /// Its incomplete packet would have taken more memory than there is for all of them.
    ReadMemory,
}

/// The state of admission, shared by all threads of a broker.
pub(crate) struct Admission {
    pub(crate) bans: Bans,
    pub(crate) hold_offs: HoldOffs,
    pub(crate) delays: LoopDelays,
    pub(crate) read_memory: ReadMemory,
    pub(crate) queue_memory: QueueMemory,
    /// What sessions hold of their clients' choosing.
    pub(crate) session_memory: Arc<Account>,
    /// What QUIC connections may hold in wide windows.
    pub(crate) window_memory: Arc<Account>,
    pub(crate) paces: Paces,
    connect_rate: Option<SharedRate>,
    pub(crate) messages_in: Option<SharedRate>,
    pub(crate) bytes_in: Option<SharedRate>,
    /// Connections that wait to be told that the broker is overloaded.
    put_off: Arc<AtomicUsize>,
    max_put_off: usize,
    retry_spread_ms: u64,
    dice: AtomicU64,
}

/// A place among those that wait to be refused; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct PutOff {
    places: Arc<AtomicUsize>,
    /// How long to wait, milliseconds.
    pub(crate) wait_ms: u64,
}

impl Drop for PutOff {
    fn drop(&mut self) {
        self.places.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(limits: &Limits, shards: usize, seed: u64) -> Admission {
        let shared = |rate| Some(SharedRate::new(rate?, shards));
        Admission {
            bans: Bans::default(),
            hold_offs: HoldOffs::new(limits.hold_off),
            delays: LoopDelays::new(shards, limits.max_loop_delay),
            read_memory: ReadMemory::new(limits.max_read_memory),
            queue_memory: QueueMemory::new(limits.max_queue_memory),
            session_memory: Account::new(limits.max_session_memory),
            window_memory: Account::new(limits.max_window_memory),
            paces: Paces::new(limits),
            connect_rate: shared(limits.connect_rate),
            messages_in: shared(limits.messages_in),
            bytes_in: shared(limits.bytes_in),
            put_off: Arc::default(),
            // Those who wait hold a socket each: a part of what may be pending anyway, so that there is
            // room to find out that the overload is over.
            max_put_off: limits.max_pending_connections / 4,
            retry_spread_ms: limits.retry_spread.as_millis() as u64,
            dice: AtomicU64::new(seed),
        }
    }

    /// Whether a client that said CONNECT may go on, as far as that is known before it is known who it
    /// is. Also asked for the address, which was let in once: behind a proxy it is not known earlier.
    pub(crate) fn connect(&self, now: Moment, applicant: &Applicant<'_>) -> Result<(), Refused> {
        self.banned(now, applicant)?;
        match self.hold_offs.is_held(now, applicant) {
            true => Err(Refused::HeldOff),
            false => Ok(()),
        }
    }

    /// Whether where a client comes from, or its certificate, is banned.
    pub(crate) fn banned(&self, now: Moment, applicant: &Applicant<'_>) -> Result<(), Refused> {
        if self.bans.address(now, applicant.address) {
            return Err(Refused::BannedAddress);
        }
        if let Some(certificate) = applicant.certificate
            && self.bans.certificate(now, certificate)
        {
            return Err(Refused::BannedCertificate);
        }
        Ok(())
    }

    /// The outside did not believe somebody, for this reason. Counted; says who is held off for it.
    pub(crate) fn disbelieved(
        &self,
        now: Moment,
        who: &Applicant<'_>,
        reason: ReasonCode,
    ) -> Option<BanTarget> {
        // What says nothing about credentials (moved, busy) is nobody's fault.
        match reason {
            ReasonCode::NotAuthorized | ReasonCode::BadUserNameOrPassword => {
                self.hold_offs.failed(now, who)
            }
            _ => None,
        }
    }

    /// Whether a client that authenticated may take its session.
    pub(crate) fn client(
        &self,
        now: Moment,
        principal: &Arc<str>,
        client_id: &Arc<str>,
    ) -> Result<(), Refused> {
        if self.bans.client(now, client_id) {
            return Err(Refused::BannedClient);
        }
        if self.bans.principal(now, principal) {
            return Err(Refused::BannedPrincipal);
        }
        match self.hold_offs.is_flapping(now, principal, client_id) {
            false => Ok(()),
            true => Err(Refused::Flapping),
        }
    }

    /// A place to wait in, for a random time, before a refusal is said: refused all at once, they would
    /// all be back at once. `None` when too many wait already: say it now.
    pub(crate) fn put_off(&self) -> Option<PutOff> {
        if self.retry_spread_ms == 0 {
            return None;
        }
        let before = self.put_off.fetch_add(1, Ordering::Relaxed);
        let place = PutOff {
            places: Arc::clone(&self.put_off),
            wait_ms: self.dice() % self.retry_spread_ms,
        };
        // Dropped, it is counted out again.
        (before < self.max_put_off).then_some(place)
    }

    /// A number that nobody outside foresees; good enough to spread what would happen at once.
    pub(crate) fn dice(&self) -> u64 {
        // SplitMix64.
        let step = self
            .dice
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (step ^ (step >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Whether there are rates that all connections of the broker share.
    pub(crate) fn shares_rates(&self) -> bool {
        self.messages_in.is_some() || self.bytes_in.is_some()
    }
}

/// An address as it is counted and held off: an IPv4 address, or the /64 that one IPv6 host has to
/// itself, any address of which it can choose.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        v4 => v4,
    }
}
