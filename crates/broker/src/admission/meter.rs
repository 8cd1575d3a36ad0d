//! What one connection has used of its rates, and what it charges to those that it shares.
//!
//! In: counted once a batch is decoded, and then the next read waits; what has been read is served. Out:
//! messages wait, answers do not.

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
}

/// What a client has used of its rates in.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    messages: Gcra,
    bytes: Gcra,
}

/// What came with one read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
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
}

impl Admission {
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
