//! Retained messages by topic: one each, found by topic or by filter.
//!
//! An ordered map of whole topics. A filter without wildcards is one lookup. For a filter with
//! wildcards a [`Walk`] goes through the map in order and leaps over what cannot match: at `a/x/b`,
//! looking for `a/+/c`, the next place to look is `a/x/c`, and after that whatever comes after all
//! topics below `a/x`. So the cost depends on the topics that match the filter's front, as in a
//! trie.
//!
//! A trie was refused for the sake of the walk, which must be cut into pieces: a new subscription to
//! `#` over half a million messages may not hold up everybody else. In an ordered map the state of a
//! walk is the topic to look at next, and it stays right whatever is set and removed in between; in
//! a trie it is a path of nodes, each of which may be gone. Price: each topic is stored whole.
//!
//! Memory for each topic: its text; 16 bytes and `size_of::<T>()`, times 1.5 (twice, if topics come
//! in alphabetical order) for the room B-tree nodes keep free; and what the value owns. Time, over
//! half a million topics: a microsecond to set one, up to half a millisecond for a budget of 700.

use std::collections::BTreeMap;
use std::ops::Bound;

/// A value for each topic.
#[derive(Debug)]
pub(crate) struct Retained<T> {
    topics: BTreeMap<Box<str>, T>,
}

impl<T> Default for Retained<T> {
    fn default() -> Retained<T> {
        Retained {
            topics: BTreeMap::new(),
        }
    }
}

impl<T> Retained<T> {
    /// How many topics have a value.
    pub(crate) fn len(&self) -> usize {
        self.topics.len()
    }

    /// The value of exactly this topic.
    pub(crate) fn get(&self, topic: &str) -> Option<&T> {
        self.topics.get(topic)
    }

    /// Gives a topic a value; returns the one it had. `topic` has been checked (`mqtt::TopicName`).
    pub(crate) fn set(&mut self, topic: &str, value: T) -> Option<T> {
        match self.topics.get_mut(topic) {
            Some(old) => Some(std::mem::replace(old, value)),
            None => self.topics.insert(topic.into(), value),
        }
    }

    /// Looks at up to `budget` topics from `place` on, in their order, and takes away those that `goes`
    /// says; leaves `place` where to go on, and begins anew at the end.
    pub(crate) fn sweep(
        &mut self,
        place: &mut String,
        budget: usize,
        mut goes: impl FnMut(&T) -> bool,
    ) -> Vec<T> {
        let from = (Bound::Included(place.as_str()), Bound::Unbounded);
        let mut topics = self.topics.range::<str, _>(from);
        let going: Vec<Box<str>> = topics
            .by_ref()
            .take(budget)
            .filter(|(_, value)| goes(value))
            .map(|(topic, _)| topic.clone())
            .collect();
        let next = topics.next().map(|(topic, _)| topic.to_string());
        *place = next.unwrap_or_default();
        going
            .iter()
            .filter_map(|topic| self.topics.remove(topic))
            .collect()
    }

    /// Takes the value of a topic away.
    pub(crate) fn remove(&mut self, topic: &str) -> Option<T> {
        self.topics.remove(topic)
    }
}

/// Bytes of a topic that count as one more topic looked at: comparing costs by length, and a topic,
/// or a level of the filter, may have 65,535 bytes.
const LONG: usize = 1024;

/// Goes through all topics that match a filter (section 4.7), in pieces.
///
/// It borrows nothing in between. A topic that is there from the first piece to the last is visited
/// exactly once, one that is set or removed meanwhile at most once.
#[derive(Debug)]
pub(crate) struct Walk {
    filter: Box<str>,
    /// The next topic to look at is the first one not before this; `None` when there is none left.
    from: Option<String>,
}

/// How far a [`Walk`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The budget is used up; there may be more.
    More,
    /// Everything has been visited.
    Done,
}

impl Walk {
    /// A walk that has not begun. `filter` has been checked (`mqtt::TopicFilter`) and has no
    /// `$share/name/` before it: a shared subscription gets no retained messages.
    pub(crate) fn new(filter: &str) -> Walk {
        // All topics that match begin like the filter does, up to its first wildcard. `a/#` matches
        // `a` as well, so the `/` before a `#` is no part of that.
        let front = match filter.find(['+', '#']) {
            None => filter,
            Some(at) if filter[at..].starts_with('#') => {
                filter[..at].strip_suffix('/').unwrap_or("")
            }
            Some(at) => &filter[..at],
        };
        Walk {
            filter: filter.into(),
            from: Some(front.to_owned()),
        }
    }

    /// The filter whose topics it goes through.
    pub(crate) fn filter(&self) -> &str {
        &self.filter
    }

    /// Looks at up to `budget` topics, at least at one, and calls `visit` with those that match.
    /// Topics of more than a KiB count more than once.
    pub(crate) fn next<T>(
        &mut self,
        retained: &Retained<T>,
        budget: usize,
        mut visit: impl FnMut(&str, &T),
    ) -> Progress {
        let Some(mut place) = self.from.take() else {
            return Progress::Done;
        };
        if !self.filter.contains(['+', '#']) {
            if let Some(value) = retained.get(&self.filter) {
                visit(&self.filter, value);
            }
            return Progress::Done;
        }
        let starting_at = |place: &str| {
            let bounds = (Bound::Included(place), Bound::Unbounded);
            retained.topics.range::<str, _>(bounds)
        };
        let mut left = budget.max(1);
        let mut topics = starting_at(&place);
        let mut candidate = topics.next();
        while let Some((topic, value)) = candidate {
            if left == 0 {
                place.clear();
                place.push_str(topic);
                self.from = Some(place);
                return Progress::More;
            }
            let look = compare(&self.filter, topic, &mut place);
            left = left.saturating_sub(1 + topic.len().max(place.len()) / LONG);
            if look.matches {
                visit(topic, value);
            }
            candidate = match look.next {
                Next::Neighbour => topics.next(),
                // Most leaps are short: the neighbour is tried before the way is searched anew.
                Next::Leap => match topics.next() {
                    Some((neighbour, _)) if **neighbour < *place => {
                        topics = starting_at(&place);
                        topics.next()
                    }
                    neighbour => neighbour,
                },
                Next::Nothing => None,
            };
        }
        Progress::Done
    }
}

/// What a look at one topic says.
struct Look {
    matches: bool,
    next: Next,
}

/// Where the next topic that can match is.
enum Next {
    /// Anywhere after this one.
    Neighbour,
    /// Not before the place that was written down.
    Leap,
    /// Nowhere.
    Nothing,
}

/// Compares a topic with a filter that has wildcards. For [`Next::Leap`], `place` is where to.
///
/// Topics are ordered by their bytes. `/` is not the lowest: `a-b` stands between `a` and `a/b`. But
/// whatever begins with `a/` stands together, and ends before `a0`, as `0` is the byte after `/`.
fn compare(filter: &str, topic: &str, place: &mut String) -> Look {
    let leap = |matches| Look {
        matches,
        next: Next::Leap,
    };
    place.clear();
    // Wildcards at the first level do not match topics that begin with `$` [MQTT-4.7.2-1].
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        place.push('%'); // the character after `$`
        return leap(false);
    }
    // After everything below the last level that a `+` took: what it takes is the only choice.
    let past = |plus_end: Option<usize>, place: &mut String, matches| {
        place.clear();
        let next = match plus_end {
            None => Next::Nothing,
            Some(end) if end == topic.len() => Next::Neighbour,
            Some(end) => {
                place.push_str(&topic[..end]);
                place.push('0');
                Next::Leap
            }
        };
        Look { matches, next }
    };
    let mut plus_end = None;
    let mut at = 0; // where in the topic the level to compare begins; beyond its end after the last
    let mut wanted_levels = filter.split('/').peekable();
    while let Some(wanted) = wanted_levels.next() {
        if wanted == "#" {
            return Look {
                matches: true, // also when the topic has ended: it is the parent level
                next: Next::Neighbour,
            };
        }
        if at > topic.len() {
            // An ancestor of what could match. If a `+` took its last level, `a-b/c` may come before
            // `a/c`; if not, the next one is below this one.
            if plus_end == Some(topic.len()) {
                return Look {
                    matches: false,
                    next: Next::Neighbour,
                };
            }
            place.push_str(topic);
            place.push('/');
            if wanted != "+" {
                place.push_str(wanted);
            }
            return leap(false);
        }
        let rest = &topic[at..];
        let level = rest.split_once('/').map_or(rest, |(level, _)| level);
        if wanted == "+" {
            plus_end = Some(at + level.len());
        } else if wanted != level {
            // With these levels in front, only `wanted` and what is below it can follow.
            place.push_str(&topic[..at]);
            place.push_str(wanted);
            if topic > place.as_str() && wanted_levels.peek().is_some() {
                place.push('/');
            }
            if topic < place.as_str() {
                return leap(false);
            }
            return past(plus_end, place, false);
        }
        at += level.len() + 1;
    }
    let matches = at > topic.len();
    past(plus_end, place, matches)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mqtt::TopicFilter;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sweep_sees_every_topic_in_pieces_and_begins_anew() {
        let mut retained = Retained::default();
        for n in 0..10 {
            retained.set(&format!("t/{n}"), n);
        }
        let mut place = String::new();
        let mut gone = Vec::new();
        for _ in 0..4 {
            gone.extend(retained.sweep(&mut place, 3, |n| n % 2 == 0));
        }
        assert_eq!(gone, [0, 2, 4, 6, 8]);
        assert_eq!((retained.len(), place.as_str()), (5, ""));
    }

    fn retained<S: AsRef<str>>(topics: impl IntoIterator<Item = S>) -> Retained<String> {
        let mut retained = Retained::default();
        for topic in topics {
            let topic = topic.as_ref();
            retained.set(topic, format!("value of {topic}"));
        }
        retained
    }

    fn matching<T>(retained: &Retained<T>, filter: &str) -> Vec<String> {
        let mut found = Vec::new();
        let progress = Walk::new(filter).next(retained, usize::MAX, |topic, _| {
            found.push(topic.to_owned());
        });
        assert_eq!(progress, Progress::Done);
        found
    }

    /// How many topics a walk looks at.
    fn looks<T>(retained: &Retained<T>, filter: &str) -> usize {
        let mut walk = Walk::new(filter);
        let mut looks = 1;
        while walk.next(retained, 1, |_, _| {}) == Progress::More {
            looks += 1;
        }
        looks
    }

    #[test]
    fn a_topic_has_one_value() {
        let mut retained = Retained::default();
        assert_eq!(retained.set("a", 1), None);
        assert_eq!(retained.set("a", 2), Some(1));
        assert_eq!(retained.set("a/b", 3), None);
        assert_eq!((retained.len(), retained.get("a")), (2, Some(&2)));
        assert_eq!(retained.remove("a"), Some(2));
        assert_eq!(retained.remove("a"), None);
        assert_eq!((retained.len(), retained.get("a")), (1, None));
    }

    #[test]
    fn filters_find_what_the_specification_says() {
        // MQTT 5 sections 4.7.1.2, 4.7.1.3, 4.7.2; and topics that stand between others in the map.
        let retained = retained([
            "$SYS/monitor/Clients",
            "$SYS",
            "/finance",
            "a",
            "a-b",
            "a-b/c",
            "a/b",
            "a/b/",
            "a/b/c",
            "a/x",
            "a/x-y/c",
            "a/x/b",
            "a/x/c",
            "a/x/c/d",
            "a/x0/c",
            "a//c",
            "a0",
            "b/x/c",
        ]);
        let rows: &[(&str, &[&str])] = &[
            ("a", &["a"]),
            ("a/b/", &["a/b/"]),
            ("nothing", &[]),
            ("+", &["a", "a-b", "a0"]),
            ("+/+", &["/finance", "a-b/c", "a/b", "a/x"]),
            ("/+", &["/finance"]),
            ("+/c", &["a-b/c"]),
            ("a/+", &["a/b", "a/x"]),
            ("a/+/c", &["a//c", "a/b/c", "a/x-y/c", "a/x/c", "a/x0/c"]),
            ("a/x/#", &["a/x", "a/x/b", "a/x/c", "a/x/c/d"]),
            (
                "+/+/c",
                &["a//c", "a/b/c", "a/x-y/c", "a/x/c", "a/x0/c", "b/x/c"],
            ),
            ("+/x/#", &["a/x", "a/x/b", "a/x/c", "a/x/c/d", "b/x/c"]),
            ("$SYS/#", &["$SYS", "$SYS/monitor/Clients"]),
            ("$SYS/monitor/+", &["$SYS/monitor/Clients"]),
            ("+/monitor/Clients", &[]),
        ];
        for (filter, topics) in rows {
            assert_eq!(matching(&retained, filter), *topics, "{filter}");
        }
        assert_eq!(matching(&retained, "#").len(), retained.len() - 2);
    }

    #[test]
    fn what_cannot_match_is_leapt_over() {
        let mut topics: Vec<String> = Vec::new();
        for vehicle in 0..100 {
            for signal in 0..100 {
                topics.push(format!("fleet/{vehicle}/signal/{signal}"));
            }
        }
        let retained = retained(&topics);
        // Looks at a handful of topics for each vehicle, or for the one, not at all 10,000.
        for (filter, found, at_most) in [
            ("fleet/7/signal/#", 100, 101),
            ("fleet/7/signal/8", 1, 1),
            ("fleet/+/signal/8", 100, 400),
            ("+/7/signal/+", 100, 110),
            ("fleet/+/other/8", 0, 200),
            ("fleet/+", 0, 200),
            ("other/#", 0, 1),
        ] {
            assert_eq!(matching(&retained, filter).len(), found, "{filter}");
            let looks = looks(&retained, filter);
            assert!(looks <= at_most, "{filter}: {looks}");
        }
    }

    #[test]
    fn a_walk_goes_on_where_it_stopped_whatever_changed() {
        let mut retained = retained(["a", "b", "c", "d"]);
        let mut walk = Walk::new("#");
        let mut seen = Vec::new();
        let mut step = |walk: &mut Walk, retained: &Retained<String>| {
            walk.next(retained, 1, |topic, value| {
                assert_eq!(value, &format!("value of {topic}"));
                seen.push(topic.to_owned());
            })
        };
        assert_eq!(step(&mut walk, &retained), Progress::More);
        retained.remove("b"); // where it stands
        retained.remove("a");
        retained.set("a0", "value of a0".into()); // behind it: not seen
        retained.set("bb", "value of bb".into()); // ahead of it
        while step(&mut walk, &retained) == Progress::More {}
        assert_eq!(step(&mut walk, &retained), Progress::Done);
        assert_eq!(seen, ["a", "bb", "c", "d"]);
    }

    #[test]
    fn the_budget_bounds_what_is_looked_at_and_long_topics_count_for_more() {
        let short = retained((0..1000).map(|n| format!("t/{n:04}")));
        let long = retained((0..1000).map(|n| format!("{}/{n:04}", "t".repeat(10 * LONG))));
        for (retained, filter, visits) in [
            (&short, "#", 100),
            (&short, "+/nothing", 0),
            (&long, "#", 10), // the tenth goes over the budget of 100
        ] {
            let mut walk = Walk::new(filter);
            let mut visited = 0;
            let progress = walk.next(retained, 100, |_, _| visited += 1);
            assert_eq!(progress == Progress::More, visits > 0, "{filter}");
            assert_eq!(visited, visits, "{filter}");
        }
    }

    #[test]
    fn topics_and_filters_as_deep_as_a_packet_allows() {
        const LEVELS: usize = 32_000;
        let deep = "a/".repeat(LEVELS) + "b";
        let mut retained = retained([&deep, "a/a", "a"]);
        let ancestors: Vec<String> = (1..400).map(|n| "a/".repeat(n * 80) + "x").collect();
        for topic in &ancestors {
            retained.set(topic, String::new());
        }
        for (filter, found) in [
            ("a/".repeat(LEVELS) + "+", 1),
            ("+/".repeat(LEVELS) + "b", 1),
            ("+/".repeat(LEVELS) + "#", 1),
            ("a/".repeat(LEVELS) + "#", 1),
            ("+/".repeat(LEVELS - 1) + "c", 0),
            ("a/".repeat(80) + "#", 1 + ancestors.len()),
            ("#".to_owned(), 3 + ancestors.len()),
        ] {
            assert_eq!(matching(&retained, &filter).len(), found);
        }
        assert!(retained.remove(&deep).is_some());
    }

    /// Levels around `/` in the order of bytes, and around `$`.
    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "", "a", "b", "a-", "a.b", "a0", "-", "0", "!", "$", "$c", "%", "ä",
        ])
    }

    fn topic() -> impl Strategy<Value = String> {
        prop::collection::vec(level(), 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("topics are not empty", |topic| !topic.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let levels = prop::collection::vec(prop_oneof![2 => level(), 1 => Just("+")], 1..5);
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

    fn changes() -> impl Strategy<Value = Vec<(String, bool)>> {
        prop::collection::vec((topic(), any::<bool>()), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Finds what the plain matcher of the codec finds among all topics.
        #[test]
        fn agrees_with_the_plain_matcher(
            topics in prop::collection::btree_set(topic(), 0..60),
            filters in prop::collection::vec(filter(), 1..6),
        ) {
            let retained = retained(&topics);
            for filter in filters {
                let plain = TopicFilter::parse(&filter).expect("strategy makes valid filters");
                let expected: Vec<_> = topics.iter().filter(|t| plain.matches(t)).cloned().collect();
                prop_assert_eq!(matching(&retained, &filter), expected, "{}", filter);
                prop_assert!(looks(&retained, &filter) <= topics.len().max(1));
            }
        }

        /// What is there all the while is visited once, however the walk is cut and whatever is set
        /// and removed between the pieces.
        #[test]
        fn walks_survive_changes(
            topics in prop::collection::btree_set(topic(), 0..40),
            filter in filter(),
            pieces in prop::collection::vec((1..4_usize, changes()), 1..20),
        ) {
            let plain = TopicFilter::parse(&filter).expect("strategy makes valid filters");
            let mut retained = retained(&topics);
            let mut always = topics.clone();
            let mut ever = topics;
            let mut walk = Walk::new(&filter);
            let mut visited = BTreeSet::new();
            let mut pieces = pieces.into_iter();
            loop {
                let (budget, changes) = pieces.next().unwrap_or((usize::MAX, Vec::new()));
                let mut twice = None;
                let mut looked = 0;
                let progress = walk.next(&retained, budget, |topic, _| {
                    looked += 1;
                    if !visited.insert(topic.to_owned()) {
                        twice = Some(topic.to_owned());
                    }
                });
                prop_assert_eq!(twice, None);
                prop_assert!(looked <= budget);
                if progress == Progress::Done {
                    break;
                }
                for (topic, set) in changes {
                    if set {
                        retained.set(&topic, String::new());
                        ever.insert(topic);
                    } else {
                        retained.remove(&topic);
                        always.remove(&topic);
                    }
                }
            }
            for topic in always.iter().filter(|topic| plain.matches(topic)) {
                prop_assert!(visited.contains(topic), "{} was missed by {}", topic, filter);
            }
            for topic in &visited {
                prop_assert!(plain.matches(topic) && ever.contains(topic), "{} for {}", topic, filter);
            }
        }
    }
}
