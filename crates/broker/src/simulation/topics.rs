//! The topics and filters of a run: few enough that everything meets everything.
//!
//! The first level of a topic is its *area*. Access is given and taken by area, and what the tap does
//! depends on it. Area `s` is where shared subscriptions live, `$z` what wildcards must not find.

use mqtt::TopicFilter;

use super::dice::Dice;

/// Every topic that is published to.
pub(super) const TOPICS: &[&str] = &[
    "a/1", "a/2", "a/1/x", "b/1", "b//x", "s/1", "s/2", "s/1/x", "w/1", "$z/1",
];

const FILTERS: &[&str] = &[
    "a/1", "a/2", "a/1/x", "b/1", "b//x", "s/1", "w/1", "$z/1", "a/#", "a/+", "+/1", "#", "b/#",
    "s/#", "$z/#", "a/1/#", "+/1/x", "w/+",
];

const SHARED: &[&str] = &[
    "$share/g/s/#",
    "$share/g/s/+",
    "$share/h/s/1",
    "$share/h/+/1",
    "$share/h/s/#",
];

/// What access says about filters that begin with a wildcard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wildcards {
    /// Denied as soon as one area is.
    Judged,
    /// Always allowed.
    Open,
}

/// The first level of topics, as access knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Area {
    A,
    B,
    S,
    W,
    Hidden,
}

impl Area {
    pub(super) const ALL: [Area; 5] = [Area::A, Area::B, Area::S, Area::W, Area::Hidden];

    /// The area of a topic of [`TOPICS`].
    pub(super) fn of(topic: &str) -> Area {
        match topic.split('/').next() {
            Some("a") => Area::A,
            Some("b") => Area::B,
            Some("s") => Area::S,
            Some("w") => Area::W,
            _ => Area::Hidden,
        }
    }

    /// Whether a filter (without its share name) is denied with this area. With [`Wildcards::Open`] a
    /// filter that begins with a wildcard never is: what it lets through is decided topic by topic.
    pub(super) fn is_met_by(self, filter: &str, wildcards: Wildcards) -> bool {
        match filter.split('/').next() {
            Some("+" | "#") => self != Area::Hidden && wildcards == Wildcards::Judged,
            Some(_) => Area::of(filter) == self,
            None => false,
        }
    }
}

/// The place of a topic in [`TOPICS`].
pub(super) fn place(topic: &str) -> Option<usize> {
    TOPICS.iter().position(|known| *known == topic)
}

/// The topics of a run, as places in [`TOPICS`]: few, so that messages meet subscriptions.
pub(super) fn draw_topics(dice: &mut Dice) -> Vec<usize> {
    let count = *dice.pick(&[1, 2, 3, 5, TOPICS.len()]);
    (0..count).map(|_| dice.below(TOPICS.len())).collect()
}

/// A filter that matches one of `topics`, most of the time.
pub(super) fn draw_filter(dice: &mut Dice, topics: &[usize], shared_percent: u32) -> TopicFilter {
    let table = match dice.chance(shared_percent) {
        true => SHARED,
        false => FILTERS,
    };
    let mut filter = *dice.pick(table);
    for _ in 0..6 {
        let parsed = TopicFilter::parse(filter).expect("the table has valid filters only");
        if topics.iter().any(|topic| parsed.matches(TOPICS[*topic])) {
            return parsed;
        }
        filter = *dice.pick(table);
    }
    TopicFilter::parse(filter).expect("the table has valid filters only")
}
