//! What one connection has used of its rates, and what it charges to those that it shares.
//!
//! In: counted once a batch is decoded, and then the next read waits; what has been read is served. Who
//! comes without a connection asks first ([`Inbound::reserve`]). What a client owes outlives its connection
//! ([`debts`](super::debts)). Out: messages wait, answers do not.

use super::Admission;
use super::gate::Entrance;
use super::rate::{Gcra, Pace, nanoseconds};
use crate::limits::Limits;
use crate::stats::Counters;

/// The rates of every client.
#[derive(Debug)]
pub(crate) struct Paces {
    messages_in: Option<Pace>,
    bytes_in: Option<Pace>,
    messages_out: Option<Pace>,
    bytes_out: Option<Pace>,
}

impl Paces {
    pub(crate) fn new(limits: &Limits) -> Paces {
        Paces {
            messages_in: limits.client_messages_in.map(Pace::from),
            bytes_in: limits.client_bytes_in.map(Pace::from),
            messages_out: limits.client_messages_out.map(Pace::from),
            bytes_out: limits.client_bytes_out.map(Pace::from),
        }
    }

    /// Whether clients have rates in.
    pub(crate) fn limit_inbound(&self) -> bool {
        self.messages_in.is_some() || self.bytes_in.is_some()
    }
}

/// What a client has used of its rates in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Inbound {
    messages: Gcra,
    bytes: Gcra,
}

/// What came with one read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Came {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// A client would have to wait for longer than it is ready to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong {
    /// The rate that it has to wait for longest.
    pub(crate) rate: ClientRate,
    /// Until it may come, milliseconds.
    pub(crate) wait: u64,
}

/// A rate in of every client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientRate {
    Messages,
    Bytes,
}

impl Inbound {
    /// Bytes that may be read at once, if that is less than `most`: so that a client with little credit
    /// waits often and shortly, and its PINGREQ does not wait behind a megabyte.
    pub(crate) fn room(&self, paces: &Paces, tick: u64, most: usize) -> usize {
        /// Less would be a system call for nothing.
        const LEAST: usize = 1024;
        match paces.bytes_in {
            None => most,
            Some(pace) => {
                let room = self.bytes.room(pace, nanoseconds(tick));
                usize::try_from(room).unwrap_or(most).clamp(LEAST, most)
            }
        }
    }

    /// Counts what came. Returns the milliseconds for which nothing is to be read, if any.
    pub(crate) fn charge(
        &mut self,
        paces: &Paces,
        tick: u64,
        came: Came,
        counters: &Counters,
    ) -> Option<u64> {
        let now = nanoseconds(tick);
        let messages = paces.messages_in.map_or(0, |pace| match came.messages {
            0 => self.messages.wait(pace, now),
            count => self.messages.charge(pace, now, count),
        });
        let bytes = paces.bytes_in.map_or(0, |pace| match came.bytes {
            0 => self.bytes.wait(pace, now),
            count => self.bytes.charge(pace, now, count),
        });
        let wait = messages.max(bytes);
        if wait == 0 {
            return None;
        }
        if messages > 0 && came.messages > 0 {
            counters.throttled_client_messages_in.one();
        }
        if bytes > 0 && came.bytes > 0 {
            counters.throttled_client_bytes_in.one();
        }
        Some(wait.div_ceil(1_000_000))
    }

    /// Counts what wants to come, and returns the milliseconds after which it may: whoever asks later has
    /// its turn behind it.
    ///
    /// # Errors
    /// When that is longer than `patience`; nothing is counted then.
    pub(crate) fn reserve(
        &mut self,
        paces: &Paces,
        tick: u64,
        came: Came,
        patience: u64,
        counters: &Counters,
    ) -> Result<u64, TooLong> {
        let now = nanoseconds(tick);
        let wait = |used: Gcra, pace: Option<Pace>| pace.map_or(0, |pace| used.wait(pace, now));
        let messages = wait(self.messages, paces.messages_in).div_ceil(1_000_000);
        let bytes = wait(self.bytes, paces.bytes_in).div_ceil(1_000_000);
        if messages > 0 {
            counters.throttled_client_messages_in.one();
        }
        if bytes > 0 {
            counters.throttled_client_bytes_in.one();
        }
        let (rate, wait) = match messages >= bytes {
            true => (ClientRate::Messages, messages),
            false => (ClientRate::Bytes, bytes),
        };
        if wait > patience {
            return Err(TooLong { rate, wait });
        }
        if let Some(pace) = paces.messages_in {
            self.messages.charge(pace, now, came.messages);
        }
        if let Some(pace) = paces.bytes_in {
            self.bytes.charge(pace, now, came.bytes);
        }
        Ok(wait)
    }

    /// Whether more may come only later.
    pub(crate) fn is_held(&self, paces: &Paces, tick: u64) -> bool {
        let now = nanoseconds(tick);
        let held = |used: Gcra, pace: Option<Pace>| pace.is_some_and(|p| used.wait(p, now) > 0);
        held(self.messages, paces.messages_in) || held(self.bytes, paces.bytes_in)
    }

    /// The time, in nanoseconds, from which on it is as if nothing had come.
    pub(crate) fn clear_at(&self) -> u64 {
        self.messages.time().max(self.bytes.time())
    }

    /// Takes on what another one has used.
    pub(crate) fn take_on(&mut self, other: Inbound, tick: u64) {
        let now = nanoseconds(tick);
        let sum = |one: Gcra, other: Gcra| {
            let ahead = other.time().saturating_sub(now);
            Gcra::at(one.time().max(now).saturating_add(ahead))
        };
        self.messages = sum(self.messages, other.messages);
        self.bytes = sum(self.bytes, other.bytes);
    }
}

impl Admission {
    /// Counts what came without a connection against the rates that all share.
    pub(crate) fn charge_visit(&self, entrance: Option<&Entrance>, tick: u64, came: Came) {
        let of_all = [
            (&self.messages_in, came.messages),
            (&self.bytes_in, came.bytes),
        ];
        let of_listener = entrance.map(|entrance| {
            [
                (&entrance.messages_in, came.messages),
                (&entrance.bytes_in, came.bytes),
            ]
        });
        for (rate, count) in of_all.into_iter().chain(of_listener.into_iter().flatten()) {
            if let Some(rate) = rate {
                rate.charge_at_once(tick, count);
            }
        }
    }

    /// Counts what came against the rates that connections share. Says whether they may have to wait.
    pub(crate) fn charge_shared(
        &self,
        entrance: Option<&Entrance>,
        worker: usize,
        tick: u64,
        came: Came,
    ) -> bool {
        let mut closed = false;
        let mut charge = |rate: &Option<super::SharedRate>, count| {
            if let Some(rate) = rate {
                closed |= rate.charge(worker, tick, count);
            }
        };
        charge(&self.messages_in, came.messages);
        charge(&self.bytes_in, came.bytes);
        if let Some(entrance) = entrance {
            charge(&entrance.messages_in, came.messages);
            charge(&entrance.bytes_in, came.bytes);
        }
        closed
    }

    /// Whether shared rates may keep a connection waiting. A glance.
    pub(crate) fn is_closed(&self, entrance: Option<&Entrance>) -> bool {
        let closed =
            |rate: &Option<super::SharedRate>| rate.as_ref().is_some_and(|r| r.is_closed());
        self.shares_rates() && (closed(&self.messages_in) || closed(&self.bytes_in))
            || entrance.is_some_and(|e| closed(&e.messages_in) || closed(&e.bytes_in))
    }

    /// Milliseconds until shared rates keep nobody waiting any more.
    pub(crate) fn closed_for(&self, entrance: Option<&Entrance>, tick: u64) -> u64 {
        let of_listener = entrance.map(|e| [&e.messages_in, &e.bytes_in]);
        let rates = [&self.messages_in, &self.bytes_in].into_iter();
        let rates = rates.chain(of_listener.into_iter().flatten()).flatten();
        rates.map(|rate| rate.closed_for(tick)).max().unwrap_or(0)
    }

    /// Milliseconds that shared rates keep a connection waiting, if at all.
    pub(crate) fn shared_wait(
        &self,
        entrance: Option<&Entrance>,
        tick: u64,
        counters: &Counters,
    ) -> Option<u64> {
        let dice = self.dice();
        let mut longest = None;
        let mut wait = |rate: Option<&super::SharedRate>, counter: &crate::stats::Counter| {
            if let Some(wait) = rate.and_then(|rate| rate.wait(tick, dice)) {
                counter.one();
                longest = longest.max(Some(wait));
            }
        };
        wait(self.messages_in.as_ref(), &counters.throttled_messages_in);
        wait(self.bytes_in.as_ref(), &counters.throttled_bytes_in);
        if let Some(entrance) = entrance {
            wait(
                entrance.messages_in.as_ref(),
                &counters.throttled_listener_messages_in,
            );
            wait(
                entrance.bytes_in.as_ref(),
                &counters.throttled_listener_bytes_in,
            );
        }
        longest
    }
}

/// What a client has used of its rates out; there only if there are any.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    messages: Gcra,
    bytes: Gcra,
}

impl Outbound {
    /// For a client that has rates out.
    pub(crate) fn new(paces: &Paces) -> Option<Outbound> {
        (paces.messages_out.is_some() || paces.bytes_out.is_some()).then(Outbound::default)
    }

    /// Bytes to write at once, of `most`.
    pub(crate) fn room(&self, paces: &Paces, tick: u64, most: usize) -> usize {
        /// Twenty messages of 200 bytes: how many fit into a write is not known before.
        const WITH_MESSAGES: usize = 4 * 1024;
        let most = match paces.messages_out {
            Some(_) => most.min(WITH_MESSAGES),
            None => most,
        };
        match paces.bytes_out {
            None => most,
            Some(pace) => {
                let room = self.bytes.room(pace, nanoseconds(tick));
                // One message goes, however long it is.
                usize::try_from(room).unwrap_or(most).clamp(1, most)
            }
        }
    }

    /// Counts what was written. Returns the milliseconds for which no message is to be, if any.
    pub(crate) fn charge(
        &mut self,
        paces: &Paces,
        tick: u64,
        went: Came,
        counters: &Counters,
    ) -> Option<u64> {
        let now = nanoseconds(tick);
        let messages = paces
            .messages_out
            .map_or(0, |pace| self.messages.charge(pace, now, went.messages));
        let bytes = paces
            .bytes_out
            .map_or(0, |pace| self.bytes.charge(pace, now, went.bytes));
        let wait = messages.max(bytes);
        if wait == 0 {
            return None;
        }
        if messages > 0 {
            counters.throttled_client_messages_out.one();
        }
        if bytes > 0 {
            counters.throttled_client_bytes_out.one();
        }
        Some(wait.div_ceil(1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::super::rate::Rate;
    use super::*;

    fn paces(limits: Limits) -> Paces {
        Paces::new(&limits)
    }

    #[test]
    fn the_slower_of_two_rates_decides_and_both_are_counted() {
        let paces = paces(Limits {
            client_messages_in: Some(Rate::of(10, 10)),
            client_bytes_in: Some(Rate::of(1_000, 5_000)),
            ..Limits::default()
        });
        let counters = Counters::default();
        let mut inbound = Inbound::default();
        let came = |messages, bytes| Came { messages, bytes };
        let mut charge = |tick, came| inbound.charge(&paces, tick, came, &counters);
        assert_eq!(charge(1_000, came(5, 100)), None);
        assert_eq!(charge(1_000, came(15, 100)), Some(1_100));
        // A second later that is paid, and 8,000 bytes come.
        assert_eq!(charge(2_100, came(0, 7_801)), Some(2_802));
        let mut stats = crate::Stats::default();
        stats.add(&counters);
        assert_eq!(stats.throttled_client_messages_in, 1);
        assert_eq!(stats.throttled_client_bytes_in, 1);
    }

    #[test]
    fn who_asks_first_waits_behind_those_who_asked_before_or_is_told_for_how_long() {
        let paces = paces(Limits {
            client_messages_in: Some(Rate::of(10, 2)),
            client_bytes_in: Some(Rate::of(1_000, 1_000)),
            ..Limits::default()
        });
        let counters = Counters::default();
        let mut inbound = Inbound::default();
        let mut reserve = |tick, bytes| {
            let came = Came { messages: 1, bytes };
            inbound.reserve(&paces, tick, came, 250, &counters)
        };
        let too_long = |rate, wait| Err(TooLong { rate, wait });
        let one_by_one = [0, 0, 100, 200].map(Ok);
        for expected in one_by_one {
            assert_eq!(reserve(1_000, 1), expected);
        }
        // What is refused is not counted: the next one is told the same.
        for _ in 0..2 {
            assert_eq!(reserve(1_000, 1), too_long(ClientRate::Messages, 300));
        }
        assert_eq!(reserve(2_000, 2_000), Ok(0));
        assert_eq!(reserve(2_000, 1), too_long(ClientRate::Bytes, 1_001));
        let mut stats = crate::Stats::default();
        stats.add(&counters);
        assert_eq!(stats.throttled_client_messages_in, 4);
        assert_eq!(stats.throttled_client_bytes_in, 1);
    }

    #[test]
    fn no_rate_costs_and_delays_nothing() {
        let paces = paces(Limits {
            client_messages_in: None,
            client_bytes_in: None,
            ..Limits::default()
        });
        let came = Came {
            messages: u64::MAX,
            bytes: u64::MAX,
        };
        let mut inbound = Inbound::default();
        let counters = Counters::default();
        assert_eq!(inbound.charge(&paces, 1, came, &counters), None);
        assert_eq!(inbound.room(&paces, 1, 65_536), 65_536);
        assert!(Outbound::new(&paces).is_none());
    }
}
