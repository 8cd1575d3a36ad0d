//! Access rules: which topics a device may publish to and which filters it may subscribe to.
//!
//! The words are those of Event Grid: a topic space is a set of topic templates, a binding grants
//! a group of clients publish or subscribe on a space, and there is no deny rule: what no template
//! allows is refused. There are two bindings, for every device, in the code:
//!
//! - publisher and subscriber on its own vehicle's topics, `dt/+/+/${vehicle}/#`;
//! - subscriber on what is said to all, `bc/#`.
//!
//! A topic must *match* a template; a filter must be *covered* by one, which means that every topic
//! the filter matches is matched by the template too. Both are decided level by level, without
//! allocating, because the broker asks for every message.

/// One level of a template.
enum Level {
    /// This very text.
    Text(&'static str),
    /// Any one level (`+`).
    Any,
    /// The id of the client's vehicle.
    Vehicle,
    /// All the rest, and the level before it (`#`). Only at the end.
    Rest,
}

/// `dt/{application}/{context}/{vehicle}/{type…}`: the topics of one vehicle.
const OWN: &[Level] = &[
    Level::Text("dt"),
    Level::Any,
    Level::Any,
    Level::Vehicle,
    Level::Rest,
];
/// `bc/{subject…}`: what is said to all.
const BROADCAST: &[Level] = &[Level::Text("bc"), Level::Rest];

/// Whether a device of `vehicle` may publish to `topic`: below `dt/{application}/{context}/{vehicle}/`,
/// with a type and no empty level, so that the topic is one the router understands.
pub(crate) fn may_publish(vehicle: &str, topic: &str) -> bool {
    if topic.contains(['+', '#', '\0']) {
        return false;
    }
    let mut levels = topic.split('/');
    let tree = levels.next() == Some("dt");
    let application = levels.next().is_some_and(|level| !level.is_empty());
    let context = levels.next().is_some_and(|level| !level.is_empty());
    let own = levels.next() == Some(vehicle);
    if !(tree && application && context && own) {
        return false;
    }
    let mut kind = levels.peekable();
    kind.peek().is_some() && kind.all(|level| !level.is_empty())
}

/// Whether a device of `vehicle` may subscribe to `filter`: its own vehicle's topics and
/// broadcasts, or any part of either. Of a shared subscription the filter is what follows the share
/// name; `$share/…` itself is no filter.
pub(crate) fn may_subscribe(vehicle: &str, filter: &str) -> bool {
    is_filter(filter)
        && [OWN, BROADCAST]
            .iter()
            .any(|template| covers(template, vehicle, filter))
}

/// Whether a device of `vehicle` may be given a message on `topic`, a topic that was published to.
pub(crate) fn may_receive(vehicle: &str, topic: &str) -> bool {
    [OWN, BROADCAST]
        .iter()
        .any(|template| covers(template, vehicle, topic))
}

/// Wildcards stand alone in their level and `#` is last (MQTT 5, 4.7.1).
fn is_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.contains('\0') {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let whole = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            text => !text.contains(['+', '#']),
        };
        if !whole {
            return false;
        }
    }
    true
}

/// Whether every topic that `filter` matches is matched by `template`.
fn covers(template: &[Level], vehicle: &str, filter: &str) -> bool {
    let mut levels = filter.split('/');
    for wanted in template {
        let fits = match (wanted, levels.next()) {
            (Level::Rest, _) => return true,
            (_, None | Some("#")) => false,
            (Level::Any, Some(_)) => true,
            (Level::Text(text), Some(level)) => *text == level,
            (Level::Vehicle, Some(level)) => vehicle == level,
        };
        if !fits {
            return false;
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    #[test]
    fn a_device_publishes_below_its_own_vehicle_only() {
        for (topic, allowed) in [
            ("dt/telemetry/drive/car-1/signals", true),
            ("dt/telemetry/drive/car-1/can/0/raw", true),
            ("dt/telemetry/drive/car-1", false),
            ("dt/telemetry/drive/car-1/", false),
            ("dt/telemetry/drive/car-1//x", false),
            ("dt/telemetry/drive/car-1/x/", false),
            ("dt/telemetry/drive/car-2/signals", false),
            ("dt/telemetry/drive/car-10/signals", false),
            ("dt/telemetry/drive/Car-1/signals", false),
            ("dt//drive/car-1/signals", false),
            ("dt/telemetry//car-1/signals", false),
            ("dt/telemetry/car-1/signals", false),
            ("dt/car-1/car-1/car-2/car-1", false),
            ("/dt/telemetry/drive/car-1/signals", false),
            ("DT/telemetry/drive/car-1/signals", false),
            ("dt/+/drive/car-1/signals", false),
            ("dt/telemetry/drive/car-1/#", false),
            ("dt/telemetry/drive/car-1/a\0b", false),
            ("bc/all", false),
            ("$milepost/x", false),
            ("$aws/things/car-1/shadow/update", false),
            ("", false),
            ("/", false),
        ] {
            assert_eq!(may_publish("car-1", topic), allowed, "{topic}");
        }
    }

    #[test]
    fn a_device_subscribes_to_its_own_vehicle_and_to_broadcasts_only() {
        for (filter, allowed) in [
            ("dt/+/+/car-1/#", true),
            ("dt/+/+/car-1", true),
            ("dt/a/b/car-1/c", true),
            ("dt/a/+/car-1/+", true),
            ("dt/a/b/car-1/+/x/#", true),
            ("bc/#", true),
            ("bc", true),
            ("bc/weather/+", true),
            ("#", false),
            ("+", false),
            ("+/#", false),
            ("+/a/b/car-1/#", false),
            ("dt/#", false),
            ("dt/a/#", false),
            ("dt/a/b/#", false),
            ("dt/a/b/+", false),
            ("dt/a/b/+/x", false),
            ("dt/a/b/car-2/#", false),
            ("dt/a/car-1/#", false),
            ("dt/a/b/car-1/x#", false),
            ("dt/a/b/car-1/#/x", false),
            ("dt/a/b+/car-1/x", false),
            ("bcx/#", false),
            ("$SYS/#", false),
            ("$share/g/dt/+/+/car-1/#", false),
            ("$share/g/bc/#", false),
            ("$milepost/#", false),
            ("", false),
            ("bc/\0", false),
        ] {
            assert_eq!(may_subscribe("car-1", filter), allowed, "{filter}");
        }
    }

    /// MQTT 5, 4.7: the plainest possible matcher, to judge the cover test by.
    fn matches(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#", ..], _) | ([], []) => true,
            (["+", filter @ ..], [_, topic @ ..]) => matches(filter, topic),
            ([level, filter @ ..], [same, topic @ ..]) => level == same && matches(filter, topic),
            ([], _) | (_, []) => false,
        }
    }

    fn split(text: &str) -> Vec<&str> {
        text.split('/').collect()
    }

    fn filter_matches(filter: &str, topic: &str) -> bool {
        let wild = filter.starts_with(['+', '#']);
        !(wild && topic.starts_with('$')) && matches(&split(filter), &split(topic))
    }

    /// What a device of `car-1` may read, said in topics instead of filters.
    fn may_read(topic: &str) -> bool {
        filter_matches("dt/+/+/car-1/#", topic) || filter_matches("bc/#", topic)
    }

    /// Levels that make near misses likely.
    fn level() -> impl Strategy<Value = &'static str> {
        select(vec![
            "dt", "bc", "car-1", "car-2", "a", "", "$share", "$SYS", "+", "#", "a+", "#b",
        ])
    }

    /// Mostly the shape of an own topic, so that a good part of the filters is allowed.
    fn filter() -> impl Strategy<Value = String> {
        let free = proptest::collection::vec(level(), 1..7);
        let shaped = (
            select(vec!["dt", "dt", "dt", "bc", "+"]),
            select(vec!["a", "+", "", "#"]),
            select(vec!["a", "+", "", "#"]),
            select(vec!["car-1", "car-1", "car-1", "car-2", "+", "#"]),
            proptest::collection::vec(level(), 0..3),
        )
            .prop_map(|(tree, application, context, vehicle, kind)| {
                let mut levels = vec![tree, application, context, vehicle];
                levels.extend(kind);
                levels
            });
        prop_oneof![free, shaped].prop_map(|levels| levels.join("/"))
    }

    /// A topic made from the filter by filling its wildcards in, so that it matches most times.
    fn topic_of(filter: &str, fill: &[&'static str]) -> String {
        let mut fill = fill.iter().copied().cycle();
        let mut levels = Vec::new();
        for level in filter.split('/') {
            match level {
                "+" => levels.extend(fill.next()),
                "#" => levels.extend(fill.by_ref().take(filter.len() % 3)),
                text => levels.push(text),
            }
        }
        levels.join("/")
    }

    fn plain_level() -> impl Strategy<Value = &'static str> {
        select(vec!["dt", "bc", "car-1", "car-2", "a", "", "$SYS"])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn an_allowed_filter_matches_readable_topics_only(
            filter in filter(),
            fill in proptest::collection::vec(plain_level(), 1..8),
            other in proptest::collection::vec(plain_level(), 1..7),
        ) {
            if may_subscribe("car-1", &filter) {
                for topic in [topic_of(&filter, &fill), other.join("/")] {
                    if filter_matches(&filter, &topic) {
                        prop_assert!(may_read(&topic), "{} reaches {}", filter, topic);
                    }
                }
            }
        }

        /// The other direction: a filter is refused only if it is malformed or if some topic that
        /// it matches is not readable (a witness: every wildcard filled with a stranger).
        #[test]
        fn a_refused_filter_reaches_something_unreadable(filter in filter()) {
            if is_filter(&filter) && !may_subscribe("car-1", &filter) {
                let reached = [&["stranger"][..], &["bc", "stranger"]]
                    .iter()
                    .map(|fill| topic_of(&filter, fill))
                    .chain([filter.replace(['+', '#'], "stranger")])
                    .any(|topic| filter_matches(&filter, &topic) && !may_read(&topic));
                prop_assert!(reached, "{} was refused for nothing", filter);
            }
        }

        #[test]
        fn whatever_may_be_published_is_readable_by_the_same_vehicle(
            levels in proptest::collection::vec(plain_level(), 1..8),
        ) {
            let topic = levels.join("/");
            if may_publish("car-1", &topic) {
                prop_assert!(may_read(&topic));
            }
        }

        #[test]
        fn a_topic_is_received_if_and_only_if_it_may_be_read(
            levels in proptest::collection::vec(plain_level(), 1..8),
        ) {
            let topic = levels.join("/");
            prop_assert_eq!(may_receive("car-1", &topic), may_read(&topic), "{}", topic);
        }
    }
}
