//! Topic aliases towards one client (MQTT 5 section 3.3.2.3.4): which topics are worth a number.
//!
//! A topic is introduced when it is sent the second time, so one that is sent once costs nothing.
//! When all numbers are taken, a topic that was not used since the last time round makes room. Two
//! things keep a client that listens to a thousand vehicles, in turn, from paying for a new
//! introduction with each message: the second time must follow soon after the first, and whoever is
//! used in between stays.
//!
//! Memory: 16 bytes while idle or without aliases. From the first topic on about 150 bytes and 8 for
//! each alias there may be, and for each that was introduced its topic, at most [`LONGEST`] bytes,
//! and about 100 bytes beside it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Longer topics are sent as they are: this bounds the memory of a connection. Usual are 40 bytes.
pub(crate) const LONGEST: usize = 256;

/// Shorter topics are sent as they are: the property takes as many bytes.
const SHORTEST: usize = 4;

/// The aliases of one connection.
#[derive(Debug)]
pub(crate) struct Aliases {
    /// Most aliases.
    max: u16,
    /// Made for the first topic.
    table: Option<Box<Table>>,
}

#[derive(Debug)]
struct Table {
    /// Topics by alias, beginning with 1.
    known: Vec<Known>,
    aliases: HashMap<Arc<str>, NonZeroU16>,
    /// Where in `known` room is looked for next.
    hand: usize,
    /// Fingerprints of topics sent once, each at the place its hash gives; 0 is none. Mistaking one
    /// topic for another costs the three bytes of a needless introduction.
    once: Box<[u32]>,
    /// Decides, as if by tossing it, which of two topics keeps a place in `once`. If always the new
    /// one did, topics that share a place and come in turn would never find their own fingerprint.
    coin: u32,
}

#[derive(Debug)]
struct Known {
    topic: Arc<str>,
    /// Whether it was used since the hand last passed.
    used: bool,
}

/// How a topic is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alias {
    /// As it is.
    None,
    /// Along with this alias, which from here on stands for it.
    Introduce(NonZeroU16),
    /// As this alias.
    Use(NonZeroU16),
}

impl Aliases {
    /// For a client that allows `max` aliases (its Topic Alias Maximum), or of which no more are
    /// wanted.
    pub(crate) fn new(max: u16) -> Aliases {
        Aliases { max, table: None }
    }

    /// How to send `topic` now. Ask only for a packet that will be sent: if one with an introduction
    /// is not, the client does not know what the alias stands for. So ask when the client surely
    /// takes it, that is, has room for `PublishFrame::MAX_ALIAS_GROWTH` bytes more.
    pub(crate) fn of(&mut self, topic: &str) -> Alias {
        if self.max == 0 || !(SHORTEST..=LONGEST).contains(&topic.len()) {
            return Alias::None;
        }
        let max = usize::from(self.max);
        let table = self.table.get_or_insert_with(|| Table::new(max).into());
        if let Some(alias) = table.find(topic) {
            Alias::Use(alias)
        } else if table.is_second(topic) {
            Alias::Introduce(table.introduce(topic, max))
        } else {
            Alias::None
        }
    }
}

impl Table {
    fn new(max: usize) -> Table {
        Table {
            known: Vec::new(),
            aliases: HashMap::new(),
            hand: 0,
            // Twice as many places as aliases: as many topics as aliases mostly find one each, while
            // of many times as many, in turn, none is there any more when it comes again.
            once: vec![0; 2 * max].into(),
            coin: 0,
        }
    }

    /// The alias of a topic, which thereby is used.
    fn find(&mut self, topic: &str) -> Option<NonZeroU16> {
        let alias = *self.aliases.get(topic)?;
        self.known[usize::from(alias.get()) - 1].used = true;
        Some(alias)
    }

    /// Whether `topic` was sent lately; mostly remembers that now it was.
    fn is_second(&mut self, topic: &str) -> bool {
        let mut hasher = DefaultHasher::new(); // the same in every run: simulations repeat
        topic.hash(&mut hasher);
        let hash = hasher.finish();
        let place = (hash % self.once.len() as u64) as usize;
        let place = &mut self.once[place];
        let fingerprint = (hash >> 32) as u32 | 1;
        if *place == fingerprint {
            *place = 0;
            return true;
        }
        // The generator of Numerical Recipes; its high bit is the good one.
        self.coin = self
            .coin
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        if *place == 0 || self.coin >> 31 == 1 {
            *place = fingerprint;
        }
        false
    }

    /// Gives `topic` an alias that is free, or that of a topic not used lately.
    fn introduce(&mut self, topic: &str, max: usize) -> NonZeroU16 {
        let topic: Arc<str> = topic.into();
        let new = Known {
            topic: Arc::clone(&topic),
            used: false,
        };
        let place = if self.known.len() < max {
            self.known.push(new);
            self.known.len() - 1
        } else {
            // Ends: after one round all are unused.
            while mem::take(&mut self.known[self.hand].used) {
                self.hand = (self.hand + 1) % max;
            }
            let place = self.hand;
            self.hand = (self.hand + 1) % max;
            let old = mem::replace(&mut self.known[place], new);
            self.aliases.remove(&old.topic);
            place
        };
        // `place` is below `max`, a u16: nothing is cut off, and nothing overflows.
        let alias = NonZeroU16::MIN.saturating_add(place as u16);
        self.aliases.insert(topic, alias);
        alias
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a client knows, and how often it was told.
    #[derive(Default)]
    struct Client {
        topics: HashMap<NonZeroU16, String>,
        introductions: usize,
    }

    impl Client {
        fn receives(&mut self, aliases: &mut Aliases, topic: &str) -> Alias {
            let alias = aliases.of(topic);
            match alias {
                Alias::None => {}
                Alias::Introduce(alias) => {
                    assert!(alias.get() <= aliases.max, "{alias} of {}", aliases.max);
                    self.topics.insert(alias, topic.to_owned());
                    self.introductions += 1;
                }
                Alias::Use(alias) => {
                    assert_eq!(self.topics.get(&alias).map(String::as_str), Some(topic));
                }
            }
            if let Some(table) = &aliases.table {
                assert!(table.known.len() <= usize::from(aliases.max));
                assert_eq!(table.known.len(), table.aliases.len());
            }
            alias
        }
    }

    fn number(alias: u16) -> NonZeroU16 {
        NonZeroU16::new(alias).expect("is not 0")
    }

    #[test]
    fn the_second_time_introduces_and_the_third_uses() {
        let mut aliases = Aliases::new(2);
        assert_eq!(aliases.of("topic"), Alias::None);
        assert_eq!(aliases.of("topic"), Alias::Introduce(number(1)));
        for _ in 0..3 {
            assert_eq!(aliases.of("topic"), Alias::Use(number(1)));
        }
    }

    #[test]
    fn without_aliases_nothing_is_remembered() {
        let mut aliases = Aliases::new(0);
        for _ in 0..3 {
            assert_eq!(aliases.of("topic"), Alias::None);
        }
        assert!(aliases.table.is_none());
    }

    #[test]
    fn topics_too_short_to_gain_and_too_long_to_keep_are_sent_as_they_are() {
        for (len, expected) in [
            (SHORTEST - 1, Alias::None),
            (SHORTEST, Alias::Use(number(1))),
            (LONGEST, Alias::Use(number(1))),
            (LONGEST + 1, Alias::None),
        ] {
            let mut aliases = Aliases::new(2);
            let topic = "t".repeat(len);
            aliases.of(&topic);
            aliases.of(&topic);
            assert_eq!(aliases.of(&topic), expected, "{len}");
        }
    }

    #[test]
    fn when_all_are_taken_the_one_not_used_makes_room() {
        let mut aliases = Aliases::new(3);
        for (topic, alias) in [("one/", 1), ("two/", 2), ("three/", 3)] {
            aliases.of(topic);
            assert_eq!(aliases.of(topic), Alias::Introduce(number(alias)));
        }
        assert_eq!(aliases.of("one/"), Alias::Use(number(1)));
        assert_eq!(aliases.of("three/"), Alias::Use(number(3)));
        aliases.of("four/");
        assert_eq!(aliases.of("four/"), Alias::Introduce(number(2)));
        assert_eq!(aliases.of("one/"), Alias::Use(number(1)));
        assert_eq!(aliases.of("three/"), Alias::Use(number(3)));
    }

    #[test]
    fn a_few_topics_among_many_keep_their_aliases_and_the_many_do_not_churn() {
        let mut aliases = Aliases::new(16);
        let mut client = Client::default();
        for round in 0..1000 {
            for own in 0..8 {
                client.receives(&mut aliases, &format!("own/topic/{own}"));
            }
            for vehicle in 0..100 {
                let n = (round * 100 + vehicle) % 1000;
                client.receives(&mut aliases, &format!("vehicle/{n}/status"));
            }
        }
        assert!(client.introductions < 100, "{}", client.introductions);
        for own in 0..8 {
            let alias = client.receives(&mut aliases, &format!("own/topic/{own}"));
            assert!(matches!(alias, Alias::Use(_)), "{own}: {alias:?}");
        }
    }

    #[test]
    fn as_many_topics_as_aliases_all_get_one() {
        for max in [1, 16, 1000, u16::MAX] {
            let mut aliases = Aliases::new(max);
            let mut client = Client::default();
            for _ in 0..60 {
                for n in 0..max {
                    client.receives(&mut aliases, &format!("topic/{n}"));
                }
                if client.introductions == usize::from(max) {
                    break;
                }
            }
            assert_eq!(client.introductions, usize::from(max), "each once");
            assert_eq!(client.topics.len(), usize::from(max));
        }
    }

    proptest! {
        /// Whatever is sent, the client always knows what an alias stands for (checked on receipt),
        /// and nothing is introduced while it is known.
        #[test]
        fn the_client_knows_every_alias_used(
            max in 0..8_u16,
            topics in prop::collection::vec(0..20_u16, 0..400),
        ) {
            let mut aliases = Aliases::new(max);
            let mut client = Client::default();
            for topic in topics {
                let topic = format!("topic/{topic}");
                let known = client.topics.values().any(|known| *known == topic);
                let alias = client.receives(&mut aliases, &topic);
                prop_assert_eq!(matches!(alias, Alias::Use(_)), known, "{}", topic);
            }
        }
    }
}
