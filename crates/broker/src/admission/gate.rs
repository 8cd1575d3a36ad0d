//! What is decided about a socket before anything is read from it, and what a listener counts.
//!
//! In the order in which it costs us: file descriptors first, as without them nothing else works; then
//! whom we do not want; then for whom there is no room; then how fast. A rate is taken last, so that
//! nobody uses it up who is refused anyway.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::rate::Rate;
use super::shared_rate::SharedRate;
use super::{Admission, Refused};
use crate::limits::Limits;
use crate::listener_limits::ListenerLimits;
use crate::machine::Moment;

/// A listener as admission sees it: its bounds and how much of them is used.
#[derive(Debug)]
pub(crate) struct Entrance {
    max_connections: usize,
    max_handshakes: usize,
    connect_rate: Option<SharedRate>,
    pub(crate) messages_in: Option<SharedRate>,
    pub(crate) bytes_in: Option<SharedRate>,
    sockets: AtomicUsize,
    handshakes: AtomicUsize,
}

/// A handshake of a listener under way; counted out when dropped.
#[derive(Debug)]
pub(crate) struct Handshake(Arc<Entrance>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Entrance {
    pub(crate) fn new(limits: &ListenerLimits, workers: usize) -> Entrance {
        let shared = |rate: Option<Rate>| Some(SharedRate::new(rate?, workers));
        Entrance {
            max_connections: limits.max_connections.unwrap_or(usize::MAX),
            max_handshakes: limits.max_handshakes.unwrap_or(usize::MAX),
            connect_rate: shared(limits.connect_rate),
            messages_in: shared(limits.messages_in),
            bytes_in: shared(limits.bytes_in),
            sockets: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
        }
    }

    /// Counts a socket in.
    pub(crate) fn enter(&self) {
        self.sockets.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a socket out.
    pub(crate) fn leave(&self) {
        self.sockets.fetch_sub(1, Ordering::Relaxed);
    }

    /// Begins a handshake, or waits for the turn to; `None` if there are as many as may be.
    pub(crate) fn handshake(self: &Arc<Entrance>) -> Option<Handshake> {
        let before = self.handshakes.fetch_add(1, Ordering::Relaxed);
        let handshake = Handshake(Arc::clone(self));
        // Dropped, it is counted out again.
        (before < self.max_handshakes).then_some(handshake)
    }

    /// Whether it takes only so many connections in a time.
    pub(crate) fn has_connect_rate(&self) -> bool {
        self.connect_rate.is_some()
    }

    /// Whether it has rates that its connections share.
    pub(crate) fn shares_rates(&self) -> bool {
        self.messages_in.is_some() || self.bytes_in.is_some()
    }
}

/// When a refusal can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overloaded {
    /// A handshake comes first, and costs too much for a refusal: now.
    CloseNow,
    /// CONNECT comes next and is answered.
    TellLater,
}

impl Admission {
    /// Whether a new socket is let in, and the place that `place` finds for it. `open` is how many there
    /// are; no address if it is a proxy's.
    #[expect(
        clippy::too_many_arguments,
        reason = "all that is known of a socket, asked in one place"
    )]
    pub(crate) fn socket<T>(
        &self,
        now: Moment,
        address: Option<IpAddr>,
        entrance: &Entrance,
        open: usize,
        limits: &Limits,
        overloaded: Overloaded,
        place: impl FnOnce() -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        if open >= limits.max_sockets {
            return Err(Refused::Sockets);
        }
        if let Some(address) = address {
            self.unwanted(now, address)?;
        }
        if entrance.sockets.load(Ordering::Relaxed) >= entrance.max_connections {
            return Err(Refused::ListenerFull);
        }
        if overloaded == Overloaded::CloseNow && self.delays.refuses(now.tick) {
            return Err(Refused::Overload);
        }
        // Given back if a rate says no.
        let place = place()?;
        let takes = |rate: &Option<SharedRate>| rate.as_ref().is_none_or(|r| r.take(now.tick));
        if !takes(&entrance.connect_rate) {
            return Err(Refused::ListenerConnectRate);
        }
        match takes(&self.connect_rate) {
            true => Ok(place),
            false => Err(Refused::ConnectRate),
        }
    }

    /// Whether nothing is taken from an address.
    pub(crate) fn unwanted(&self, now: Moment, address: IpAddr) -> Result<(), Refused> {
        if self.bans.address(now, address) {
            return Err(Refused::BannedAddress);
        }
        match self.hold_offs.is_address_held(now, address) {
            true => Err(Refused::HeldOff),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bans::{Ban, BanTarget};
    use super::*;

    fn now(tick: u64) -> Moment {
        Moment { tick, wall_us: 0 }
    }

    #[test]
    fn each_refusal_has_its_name() {
        let limits = Limits {
            max_sockets: 100,
            connect_rate: Some(Rate::of(1, 4)),
            ..Limits::default()
        };
        let admission = Admission::new(&limits, 1, 7);
        let own = ListenerLimits {
            max_connections: Some(10),
            connect_rate: Some(Rate::of(1, 2)),
            ..ListenerLimits::default()
        };
        let entrance = Entrance::new(&own, 1);
        let wide = Entrance::new(&ListenerLimits::default(), 1);
        admission.bans.set(
            now(0),
            vec![Ban {
                target: BanTarget::Addresses("192.0.2.0/24".parse().expect("a range")),
                reason: "test".to_owned(),
                until_us: None,
            }],
        );
        let good: IpAddr = "203.0.113.5".parse().expect("an address");
        let banned: IpAddr = "192.0.2.5".parse().expect("an address");
        let ask = |address: IpAddr, entrance: &Entrance, open| {
            let when = Overloaded::CloseNow;
            let place = || Ok(());
            admission.socket(now(0), Some(address), entrance, open, &limits, when, place)
        };
        assert_eq!(ask(good, &entrance, 100), Err(Refused::Sockets));
        assert_eq!(ask(banned, &entrance, 0), Err(Refused::BannedAddress));
        assert_eq!(ask(good, &entrance, 0), Ok(()));
        assert_eq!(ask(good, &entrance, 0), Ok(()));
        assert_eq!(ask(good, &entrance, 0), Err(Refused::ListenerConnectRate));
        assert_eq!(ask(good, &wide, 0), Ok(()));
        assert_eq!(ask(good, &wide, 0), Ok(()));
        assert_eq!(ask(good, &wide, 0), Err(Refused::ConnectRate));
        for _ in 0..10 {
            entrance.enter();
        }
        assert_eq!(ask(good, &entrance, 0), Err(Refused::ListenerFull));
        entrance.leave();
        assert_ne!(ask(good, &entrance, 0), Err(Refused::ListenerFull));
    }

    #[test]
    fn handshakes_of_a_listener_are_counted_out_when_they_end() {
        let limits = ListenerLimits {
            max_handshakes: Some(2),
            ..ListenerLimits::default()
        };
        let entrance = Arc::new(Entrance::new(&limits, 1));
        let first = entrance.handshake();
        let _second = entrance.handshake();
        assert!(entrance.handshake().is_none());
        assert!(entrance.handshake().is_none());
        drop(first);
        assert!(entrance.handshake().is_some());
    }

    #[test]
    fn only_some_wait_to_be_refused_and_not_all_equally_long() {
        let limits = Limits {
            max_pending_connections: 8,
            ..Limits::default()
        };
        let admission = Admission::new(&limits, 1, 7);
        let waiting: Vec<_> = (0..2).filter_map(|_| admission.put_off()).collect();
        assert_eq!(waiting.len(), 2);
        assert_ne!(waiting[0].wait_ms, waiting[1].wait_ms);
        assert!(admission.put_off().is_none());
        drop(waiting);
        assert!(admission.put_off().is_some());
    }
}
