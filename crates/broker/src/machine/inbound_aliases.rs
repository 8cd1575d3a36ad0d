//! Topic aliases of one client (MQTT 5 section 3.3.2.3.4): which topic each stands for.
//!
//! There is one once a client uses an alias. A topic may have 64 KiB, so their text is counted with what
//! sessions hold ([`Admission::session_memory`](crate::admission::Admission)).

use std::mem::size_of;
use std::sync::Arc;

use mqtt::Utf8;

use crate::admission::account::{Account, Holding};
use crate::admission::memory::Fits;

/// What a topic costs beside its letters.
const TOPIC: usize = 32;

/// Topics by alias.
#[derive(Debug, Default)]
pub(crate) struct InboundAliases {
    /// Alias 1 first.
    topics: Vec<Option<Utf8>>,
    /// Bytes of the topics.
    text: usize,
    counted: usize,
    memory: Option<Holding>,
}

impl InboundAliases {
    /// The topic at a place, alias 1 being at 0.
    pub(crate) fn get(&self, place: usize) -> Option<&Utf8> {
        self.topics.get(place)?.as_ref()
    }

    /// Remembers a topic. To be followed by [`recount`](InboundAliases::recount).
    pub(crate) fn set(&mut self, place: usize, topic: &Utf8) {
        if self.topics.len() <= place {
            self.topics.resize(place + 1, None);
        }
        // Kept for long: not as a slice of the read buffer.
        let before = self.topics[place].replace(topic.detached());
        self.text += topic.len() + TOPIC;
        self.text -= before.map_or(0, |before| before.len() + TOPIC);
    }

    /// Counts what there is now. Says whether there is memory for it; it counts either way.
    pub(crate) fn recount(&mut self, account: &Arc<Account>) -> Fits {
        let now = self.text + self.topics.capacity() * size_of::<Option<Utf8>>();
        let before = std::mem::replace(&mut self.counted, now);
        if now == before {
            return Fits::Yes;
        }
        let memory = self.memory.get_or_insert_with(|| Holding::none(account));
        if now < before {
            memory.remove(before - now);
            return Fits::Yes;
        }
        let fits = memory.fits(now - before);
        memory.add(now - before);
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn their_text_is_counted_and_given_back() {
        let account = Account::new(100_000);
        let mut aliases = InboundAliases::default();
        aliases.set(2, &"a".repeat(30_000).as_str().into());
        assert_eq!(aliases.recount(&account), Fits::Yes);
        assert!(account.used() > 30_000);
        aliases.set(2, &"short".into());
        assert_eq!(aliases.recount(&account), Fits::Yes);
        assert!(account.used() < 1_000, "{}", account.used());
        assert_eq!(aliases.get(2).map(|topic| &**topic), Some("short"));
        assert_eq!((aliases.get(0), aliases.get(3)), (None, None));
        for place in 0..4 {
            aliases.set(place, &"b".repeat(30_000).as_str().into());
        }
        assert_eq!(aliases.recount(&account), Fits::No);
        drop(aliases);
        assert_eq!(account.used(), 0);
    }
}
