//! Subscription index: finds everyone a topic is for.
//!
//! Filters without wildcards live in one hash map, keyed by the whole filter: one lookup per
//! message, however many millions there are. Filters with wildcards live in a trie of levels: a
//! topic of `n` levels visits the nodes that match its levels, so the cost depends on the topic and
//! on how many *matching* wildcard prefixes exist, not on how many subscriptions there are.
//!
//! The trie is an arena addressed by numbers, walked with an explicit stack: a filter of 30,000
//! levels costs memory, never the thread's stack, neither in matching nor in dropping.
//!
//! Not here: who may subscribe (hooks), sharing between threads (`exchange.rs`).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mqtt::Version;

use super::frame::SubscriptionIds;
use super::slots::SessionId;
use super::subscriber::{OwnMessages, Placed, Subscriber, Subscribers};

/// All subscriptions of the broker.
#[derive(Debug, Default)]
pub(crate) struct FilterIndex {
    exact: HashMap<Arc<str>, Subscribers>,
    wild: Trie,
    count: usize,
    /// Sessions that are gone and of which something may be left here; mostly none. Ordered, not hashed:
    /// few, and looked up for every receiver while there are some.
    departing: BTreeSet<SessionId>,
}

/// Memory that matching needs, kept by the caller so that no match allocates.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    /// Who gets the message, each once.
    found: Vec<Subscriber>,
    /// Those in `found`, by position, whose subscriptions have more than one identifier.
    several: Vec<(usize, SubscriptionIds)>,
    /// Nodes still to visit, with the position in the topic of the level to compare next.
    stack: Vec<(u32, usize)>,
}

impl Matches {
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Who gets the message, each once, with the identifiers of all its subscriptions that match
    /// [MQTT-3.3.4-4].
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Subscriber, SubscriptionIds)> {
        let mut several = self.several.iter().peekable();
        (0..).zip(&self.found).map(move |(place, subscriber)| {
            let ids = match several.next_if(|(at, _)| *at == place) {
                Some((_, ids)) => ids.clone(),
                None => SubscriptionIds::one(subscriber.id),
            };
            (*subscriber, ids)
        })
    }
}

impl FilterIndex {
    /// Number of subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Adds a subscription, or replaces the options of the one this connection has on `filter`.
    /// `filter` has been checked (`mqtt::TopicFilter`).
    pub(crate) fn subscribe(&mut self, filter: &Arc<str>, subscriber: Subscriber) -> Placed {
        let placed = if has_wildcards(filter) {
            self.wild.place(filter).insert(subscriber)
        } else {
            match self.exact.get_mut(filter) {
                Some(set) => set.insert(subscriber),
                None => {
                    let set = Subscribers::One(subscriber);
                    self.exact.insert(Arc::clone(filter), set);
                    Placed::New
                }
            }
        };
        self.count += usize::from(placed == Placed::New);
        placed
    }

    /// The session's client speaks another version now.
    pub(crate) fn set_version(&mut self, filter: &str, who: SessionId, version: Version) {
        let set = match has_wildcards(filter) {
            true => Some(self.wild.place(filter)),
            false => self.exact.get_mut(filter),
        };
        if let Some(subscriber) = set.and_then(|set| set.get_mut(who)) {
            subscriber.version = version;
        }
    }

    /// The subscription of one session on `filter`.
    pub(crate) fn get(&self, filter: &str, who: SessionId) -> Option<Subscriber> {
        let set = match has_wildcards(filter) {
            true => self.wild.get(filter),
            false => self.exact.get(filter),
        };
        set?.get(who)
    }

    /// Removes a subscription; says whether it existed.
    pub(crate) fn unsubscribe(&mut self, filter: &str, who: SessionId) -> bool {
        let removed = if has_wildcards(filter) {
            self.wild.remove(filter, who)
        } else {
            match self.exact.get_mut(filter) {
                None => false,
                Some(set) => {
                    let removed = set.remove(who);
                    if set.is_empty() {
                        self.exact.remove(filter);
                    }
                    removed
                }
            }
        };
        if !self.departing.contains(&who) {
            self.count -= usize::from(removed);
        }
        removed
    }

    /// A session is gone, and `subscriptions` of it are still here: nothing is found for it any more. They
    /// are to be removed, and then [`departed`](FilterIndex::departed) to be called.
    pub(crate) fn depart(&mut self, who: SessionId, subscriptions: usize) {
        if self.departing.insert(who) {
            self.count -= subscriptions;
        }
    }

    /// Nothing of a session is left here.
    pub(crate) fn departed(&mut self, who: SessionId) {
        self.departing.remove(&who);
    }

    /// Whether nothing is left, not even of those who are gone.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty()
            && self.wild.nodes.len() == self.wild.free.len() + 1
            && self.wild.nodes[0].is_bare()
            && self.departing.is_empty()
    }

    /// Finds everyone who gets a message on `topic`, published by `from`.
    ///
    /// A session with several matching subscriptions gets one copy with the best granted QoS
    /// [MQTT-3.3.4-2] and all their identifiers.
    pub(crate) fn find(&self, topic: &str, from: Option<SessionId>, matches: &mut Matches) {
        let Matches {
            found,
            several,
            stack,
        } = matches;
        found.clear();
        several.clear();
        let mut sets = 0;
        if let Some(set) = self.exact.get(topic) {
            found.extend_from_slice(set.as_slice());
            sets += 1;
        }
        self.wild.find(topic, stack, |set| {
            found.extend_from_slice(set.as_slice());
            sets += 1;
        });
        if !self.departing.is_empty() {
            found.retain(|s| !self.departing.contains(&s.to));
        }
        if let Some(from) = from {
            found.retain(|s| s.own == OwnMessages::Deliver || s.to != from);
        }
        if sets > 1 && found.len() > 1 {
            merge(found, several);
        }
    }
}

/// Leaves one entry per session.
fn merge(found: &mut Vec<Subscriber>, several: &mut Vec<(usize, SubscriptionIds)>) {
    found.sort_unstable_by_key(|s| (s.to, s.id));
    let mut kept = 0;
    for next in 1..found.len() {
        let subscriber = found[next];
        let last = &mut found[kept];
        if last.to != subscriber.to {
            kept += 1;
            found[kept] = subscriber;
            continue;
        }
        last.granted = last.granted.max(subscriber.granted);
        last.retain = last.retain.max(subscriber.retain);
        if last.id == 0 {
            last.id = subscriber.id;
        } else if subscriber.id != last.id {
            match several.last_mut() {
                Some((place, ids)) if *place == kept => ids.add(subscriber.id),
                _ => {
                    let mut ids = SubscriptionIds::one(last.id);
                    ids.add(subscriber.id);
                    several.push((kept, ids));
                }
            }
        }
    }
    found.truncate(kept + 1);
}

fn has_wildcards(filter: &str) -> bool {
    filter.bytes().any(|b| matches!(b, b'+' | b'#'))
}

const ROOT: u32 = 0;

#[derive(Debug)]
struct Trie {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, u32>,
    /// The child for `+`.
    plus: Option<u32>,
    /// Filters that end here.
    here: Subscribers,
    /// Filters that end here with `/#`: they match this level and all below.
    below: Subscribers,
}

impl Node {
    fn is_bare(&self) -> bool {
        self.children.is_empty()
            && self.plus.is_none()
            && self.here.is_empty()
            && self.below.is_empty()
    }
}

impl Default for Trie {
    fn default() -> Trie {
        Trie {
            nodes: vec![Node::default()],
            free: Vec::new(),
        }
    }
}

impl Trie {
    /// The set of subscribers for `filter`, if there is one.
    fn get(&self, filter: &str) -> Option<&Subscribers> {
        let mut at = ROOT;
        for level in filter.split('/') {
            let node = &self.nodes[at as usize];
            at = match level {
                "#" => return Some(&node.below),
                "+" => node.plus?,
                name => *node.children.get(name)?,
            };
        }
        Some(&self.nodes[at as usize].here)
    }

    /// The set of subscribers for `filter`, made if need be.
    fn place(&mut self, filter: &str) -> &mut Subscribers {
        let mut at = ROOT;
        for level in filter.split('/') {
            let next = match level {
                "#" => return &mut self.nodes[at as usize].below,
                "+" => self.nodes[at as usize].plus,
                name => self.nodes[at as usize].children.get(name).copied(),
            };
            at = match next {
                Some(child) => child,
                None => {
                    let child = self.free.pop().unwrap_or_else(|| {
                        self.nodes.push(Node::default());
                        (self.nodes.len() - 1) as u32
                    });
                    let node = &mut self.nodes[at as usize];
                    if level == "+" {
                        node.plus = Some(child);
                    } else {
                        node.children.insert(level.into(), child);
                    }
                    child
                }
            };
        }
        &mut self.nodes[at as usize].here
    }

    fn remove(&mut self, filter: &str, who: SessionId) -> bool {
        let mut path = vec![ROOT];
        let mut at = ROOT;
        let mut removed = None;
        for level in filter.split('/') {
            let node = &mut self.nodes[at as usize];
            let next = match level {
                "#" => {
                    removed = Some(node.below.remove(who));
                    break;
                }
                "+" => node.plus,
                name => node.children.get(name).copied(),
            };
            let Some(child) = next else { return false };
            path.push(child);
            at = child;
        }
        let removed = removed.unwrap_or_else(|| self.nodes[at as usize].here.remove(who));
        if removed {
            self.prune(&path, filter);
        }
        removed
    }

    /// Gives back the nodes at the end of a path that hold nothing any more.
    fn prune(&mut self, path: &[u32], filter: &str) {
        let levels: Vec<&str> = filter.split('/').collect();
        for depth in (1..path.len()).rev() {
            let at = path[depth];
            if !self.nodes[at as usize].is_bare() {
                return;
            }
            self.nodes[at as usize] = Node::default();
            self.free.push(at);
            let parent = &mut self.nodes[path[depth - 1] as usize];
            match levels[depth - 1] {
                "+" => parent.plus = None,
                name => {
                    parent.children.remove(name);
                    if parent.children.is_empty() {
                        parent.children = HashMap::new();
                    }
                }
            }
        }
    }

    /// Calls `visit` with every non-empty set of subscribers whose filter matches `topic`.
    fn find<'a>(
        &'a self,
        topic: &str,
        stack: &mut Vec<(u32, usize)>,
        mut visit: impl FnMut(&'a Subscribers),
    ) {
        if self.nodes.len() == self.free.len() + 1 && self.nodes[0].below.is_empty() {
            return;
        }
        let mut emit = |set: &'a Subscribers| {
            if !set.is_empty() {
                visit(set);
            }
        };
        // Wildcards at the first level do not match topics that begin with `$` [MQTT-4.7.2-1].
        let reserved = topic.starts_with('$');
        let end = topic.len() + 1;
        stack.clear();
        stack.push((ROOT, 0));
        while let Some((at, from)) = stack.pop() {
            let node = &self.nodes[at as usize];
            let wildcards_count = at != ROOT || !reserved;
            if wildcards_count {
                emit(&node.below);
            }
            if from == end {
                emit(&node.here);
                continue;
            }
            let rest = &topic[from..];
            let level = rest.split_once('/').map_or(rest, |(level, _)| level);
            let next = from + level.len() + 1;
            if let Some(&child) = node.children.get(level) {
                stack.push((child, next));
            }
            if let Some(child) = node.plus.filter(|_| wildcards_count) {
                stack.push((child, next));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mqtt::{QoS, TopicFilter};
    use proptest::prelude::*;

    use super::super::subscriber::{RetainFlag, TRANSIENT};
    use super::*;

    fn who(slot: u32) -> SessionId {
        SessionId::new(0, slot, 0)
    }

    fn subscriber(slot: u32) -> Subscriber {
        Subscriber {
            to: who(slot),
            session: TRANSIENT,
            id: 0,
            granted: QoS::AtMostOnce,
            version: Version::V5,
            own: OwnMessages::Deliver,
            retain: RetainFlag::Clear,
        }
    }

    fn index(filters: &[&str]) -> FilterIndex {
        let mut index = FilterIndex::default();
        for (slot, filter) in (0..).zip(filters) {
            index.subscribe(&Arc::from(*filter), subscriber(slot));
        }
        index
    }

    fn found(index: &FilterIndex, topic: &str) -> Vec<u32> {
        let mut matches = Matches::default();
        index.find(topic, None, &mut matches);
        let mut slots: Vec<u32> = matches.found.iter().map(|s| s.to.slot()).collect();
        slots.sort_unstable();
        slots
    }

    #[test]
    fn the_examples_of_the_specification() {
        // MQTT 5 sections 4.7.1.2, 4.7.1.3, 4.7.2
        let rows: &[(&str, &[&str], &[&str])] = &[
            (
                "sport/tennis/player1/#",
                &[
                    "sport/tennis/player1",
                    "sport/tennis/player1/ranking",
                    "sport/tennis/player1/score/wimbledon",
                ],
                &["sport/tennis", "sport/tennis/player2"],
            ),
            ("sport/#", &["sport"], &["sports"]),
            (
                "sport/tennis/+",
                &["sport/tennis/player1", "sport/tennis/"],
                &["sport/tennis/player1/ranking", "sport/tennis"],
            ),
            ("sport/+", &["sport/"], &["sport"]),
            ("+/+", &["/finance"], &["$SYS/x"]),
            ("/+", &["/finance"], &["finance"]),
            ("+", &["finance"], &["/finance", "$SYS"]),
            ("#", &["a", "a/b", "/"], &["$SYS", "$SYS/monitor"]),
            ("$SYS/#", &["$SYS", "$SYS/monitor"], &["SYS"]),
            ("$SYS/monitor/+", &["$SYS/monitor/Clients"], &[]),
            ("a//b", &["a//b"], &["a/b"]),
            ("a/+/b", &["a//b", "a/x/b"], &["a/b"]),
        ];
        for (filter, matching, others) in rows {
            let index = index(&[filter]);
            for topic in *matching {
                assert_eq!(found(&index, topic), [0], "{filter} should match {topic}");
            }
            for topic in *others {
                assert!(
                    found(&index, topic).is_empty(),
                    "{filter} should not match {topic}"
                );
            }
        }
    }

    #[test]
    fn overlapping_subscriptions_give_one_copy_with_the_best_qos() {
        let mut index = FilterIndex::default();
        for (filter, granted) in [
            ("a/b", QoS::AtMostOnce),
            ("a/+", QoS::AtLeastOnce),
            ("#", QoS::AtMostOnce),
        ] {
            let mut one = subscriber(1);
            one.granted = granted;
            index.subscribe(&Arc::from(filter), one);
        }
        let mut matches = Matches::default();
        index.find("a/b", None, &mut matches);
        assert_eq!(matches.found.len(), 1);
        assert_eq!(matches.found[0].granted, QoS::AtLeastOnce);
    }

    #[test]
    fn one_copy_carries_the_identifiers_of_all_subscriptions_that_match() {
        let mut index = FilterIndex::default();
        for (filter, id) in [("a/b", 9), ("a/+", 7), ("a/#", 0), ("+/b", 9), ("#", 8)] {
            let mut one = subscriber(1);
            one.id = id;
            index.subscribe(&Arc::from(filter), one);
        }
        for (filter, id) in [("a/b", 0), ("a/+", 3), ("#", 3)] {
            let mut other = subscriber(2);
            other.id = id;
            index.subscribe(&Arc::from(filter), other);
        }
        let mut matches = Matches::default();
        index.find("a/b", None, &mut matches);
        let found: Vec<(u32, Vec<u32>)> = matches
            .iter()
            .map(|(s, ids)| (s.to.slot(), ids.as_slice().to_vec()))
            .collect();
        assert_eq!(found, [(1, vec![7, 8, 9]), (2, vec![3])]);
    }

    #[test]
    fn no_local_skips_the_publisher_only() {
        let mut index = FilterIndex::default();
        for slot in [1, 2] {
            let mut one = subscriber(slot);
            one.own = OwnMessages::Skip;
            index.subscribe(&Arc::from("a"), one);
        }
        let mut matches = Matches::default();
        index.find("a", Some(who(1)), &mut matches);
        assert_eq!(matches.found.len(), 1);
        assert_eq!(matches.found[0].to, who(2));
    }

    #[test]
    fn a_filter_as_deep_as_a_packet_allows_is_matched_and_dropped() {
        let deep = "a/".repeat(32_000) + "+";
        let mut index = index(&[&deep]);
        assert_eq!(found(&index, &("a/".repeat(32_000) + "b")), [0]);
        assert!(index.unsubscribe(&deep, who(0)));
        assert_eq!(index.wild.nodes.len(), index.wild.free.len() + 1);
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "a", "b", "$c", "ä"])
    }

    fn topic() -> impl Strategy<Value = String> {
        prop::collection::vec(level(), 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("topics are not empty", |topic| !topic.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let levels = prop::collection::vec(prop_oneof![3 => level(), 1 => Just("+")], 1..5);
        (levels, any::<bool>())
            .prop_map(|(mut levels, hash)| {
                if hash {
                    let last = levels.len() - 1;
                    levels[last] = "#";
                }
                levels.join("/")
            })
            .prop_filter("filters are not empty", |filter| !filter.is_empty())
    }

    proptest! {
        /// The index agrees with the plain matcher of the codec, whatever was subscribed and
        /// unsubscribed before, and an emptied index holds nothing.
        #[test]
        fn agrees_with_the_plain_matcher(
            steps in prop::collection::vec((filter(), 0u32..6, prop::bool::weighted(0.7)), 1..60),
            topics in prop::collection::vec(topic(), 1..20),
        ) {
            let mut index = FilterIndex::default();
            let mut model: Vec<(TopicFilter, u32)> = Vec::new();
            for (filter, slot, subscribe) in steps {
                let parsed = TopicFilter::parse(&filter).expect("strategy makes valid filters");
                let known = model.iter().position(|(f, s)| (f, s) == (&parsed, &slot));
                if subscribe {
                    let placed = index.subscribe(&Arc::from(&*filter), subscriber(slot));
                    prop_assert_eq!(placed == Placed::New, known.is_none());
                    if known.is_none() {
                        model.push((parsed, slot));
                    }
                } else {
                    prop_assert_eq!(index.unsubscribe(&filter, who(slot)), known.is_some());
                    if let Some(known) = known {
                        model.swap_remove(known);
                    }
                }
                prop_assert_eq!(index.len(), model.len());
            }
            for topic in topics {
                let mut expected: Vec<u32> = model
                    .iter()
                    .filter(|(filter, _)| filter.matches(&topic))
                    .map(|(_, slot)| *slot)
                    .collect();
                expected.sort_unstable();
                expected.dedup();
                prop_assert_eq!(found(&index, &topic), expected, "topic {:?}", topic);
            }
            for (filter, slot) in model {
                prop_assert!(index.unsubscribe(filter.as_str(), who(slot)));
            }
            prop_assert!(index.exact.is_empty());
            prop_assert!(index.wild.nodes[0].is_bare());
            prop_assert_eq!(index.wild.nodes.len(), index.wild.free.len() + 1);
        }
    }
}
