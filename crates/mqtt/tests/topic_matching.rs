//! Topic filters: which are legal, and what they match (sections 4.7 and 4.8.2).

mod support;

use mqtt::{TopicError as E, TopicFilter, TopicName, Utf8Error};
use proptest::prelude::*;

#[test]
fn filters_match_as_the_specification_says() {
    for (filter, topic, expected) in [
        // Section 4.7.1.2.
        ("sport/tennis/player1/#", "sport/tennis/player1", true),
        (
            "sport/tennis/player1/#",
            "sport/tennis/player1/ranking",
            true,
        ),
        (
            "sport/tennis/player1/#",
            "sport/tennis/player1/score/wimbledon",
            true,
        ),
        ("sport/tennis/player1/#", "sport/tennis/player10", false),
        ("sport/#", "sport", true),
        ("sport/#", "sports", false),
        ("#", "a", true),
        ("#", "/", true),
        ("#", "a/b/c", true),
        // Section 4.7.1.3.
        ("sport/tennis/+", "sport/tennis/player1", true),
        ("sport/tennis/+", "sport/tennis/player1/ranking", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("+/+", "/finance", true),
        ("/+", "/finance", true),
        ("+", "/finance", false),
        ("+", "finance", true),
        ("+/tennis/#", "sport/tennis", true),
        ("+/tennis/#", "sport/golf", false),
        ("sport/+/player1", "sport/tennis/player1", true),
        ("sport/+/player1", "sport//player1", true),
        ("sport/+/player1", "sport/player1", false),
        ("+/+/#", "a", false),
        ("+/+/#", "a/b", true),
        // Section 4.7.2.
        ("#", "$SYS/x", false),
        ("+/monitor/Clients", "$SYS/monitor/Clients", false),
        ("+", "$SYS", false),
        ("+/#", "$SYS/x", false),
        ("$SYS/#", "$SYS/x", true),
        ("$SYS/#", "$SYS", true),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
        ("a/#", "a/$b", true),
        ("a/+", "a/$b", true),
        // Section 4.7.3.
        ("ACCOUNTS", "Accounts", false),
        ("/finance", "finance", false),
        ("finance/", "finance", false),
        ("a//b", "a//b", true),
        ("a//b", "a/b", false),
        ("/", "/", true),
        (" ", " ", true),
        ("Accounts payable", "Accounts payable", true),
        ("é/+", "é/ü", true),
        // Section 4.8.2.
        ("$share/g/a/+", "a/b", true),
        ("$share/g/a/+", "$share/g/a/b", false),
        ("$share/g//a", "/a", true),
        ("$share/g/#", "a/b", true),
        ("$share/g/#", "$SYS/x", false),
        ("$share/g/$SYS/#", "$SYS/x", true),
        // Not shares.
        ("$share", "$share", true),
        ("$shared/g/a", "$shared/g/a", true),
        ("a/$share/g", "a/$share/g", true),
    ] {
        let parsed = TopicFilter::parse(filter).unwrap_or_else(|e| panic!("{filter} {e}"));
        assert_eq!(parsed.matches(topic), expected, "{filter} on {topic}");
        support::oracle::check_match(&format!("{filter}\n{topic}"));
    }
}

#[test]
fn illegal_filters_are_refused() {
    let long = "x".repeat(65_536);
    for (filter, expected) in [
        ("", E::Empty),
        ("a#", E::MisplacedHash),
        ("#a", E::MisplacedHash),
        ("##", E::MisplacedHash),
        ("#/", E::MisplacedHash),
        ("#/a", E::MisplacedHash),
        ("a/#/b", E::MisplacedHash),
        ("sport/tennis#", E::MisplacedHash),
        ("sport/tennis/#/ranking", E::MisplacedHash),
        ("sport+", E::MisplacedPlus),
        ("+a", E::MisplacedPlus),
        ("a/++", E::MisplacedPlus),
        ("a/b+/c", E::MisplacedPlus),
        ("$share/", E::ShareName),
        ("$share//", E::ShareName),
        ("$share//a", E::ShareName),
        ("$share/+/a", E::ShareName),
        ("$share/#", E::ShareName),
        ("$share/g#/a", E::ShareName),
        ("$share/g", E::ShareWithoutFilter),
        ("$share/g/", E::ShareWithoutFilter),
        ("$share/g/a+", E::MisplacedPlus),
        ("$share/g/#/a", E::MisplacedHash),
        ("a\0b", E::Text(Utf8Error::NullCharacter)),
        (long.as_str(), E::Text(Utf8Error::TooLong { len: 65_536 })),
    ] {
        assert_eq!(TopicFilter::parse(filter), Err(expected), "{filter:.40}");
    }
}

#[test]
fn illegal_names_are_refused() {
    for (name, expected) in [
        ("", Err(E::Empty)),
        ("a/+", Err(E::WildcardInName)),
        ("#", Err(E::WildcardInName)),
        ("a+b", Err(E::WildcardInName)),
        ("\0", Err(E::Text(Utf8Error::NullCharacter))),
        ("/", Ok(())),
        ("$SYS/x", Ok(())),
        ("a b", Ok(())),
    ] {
        assert_eq!(TopicName::parse(name).map(|_| ()), expected, "{name:?}");
    }
}

#[test]
fn a_shared_subscription_shows_its_parts() {
    let shared = TopicFilter::parse("$share/consumers/dt/+/speed").expect("is legal");
    assert_eq!(shared.share_name(), Some("consumers"));
    assert_eq!(shared.filter(), "dt/+/speed");
    assert_eq!(shared.levels().collect::<Vec<_>>(), ["dt", "+", "speed"]);
    assert_eq!(shared.as_str(), "$share/consumers/dt/+/speed");
    assert!(shared.is_shared() && shared.has_wildcards());

    let plain = TopicFilter::parse("$shared/x").expect("is legal");
    assert_eq!(plain.share_name(), None);
    assert_eq!(plain.filter(), "$shared/x");
    assert!(!plain.is_shared() && !plain.has_wildcards());
}

proptest! {
    #[test]
    fn matching_agrees_with_the_plain_reading(text in "[ab$+#/]{1,8}\n[ab$/]{1,8}") {
        support::oracle::check_match(&text);
    }

    #[test]
    fn a_topic_matches_itself_and_what_stands_above_it(topic in "[ab$/]{1,8}") {
        let own = TopicFilter::parse(&topic);
        prop_assume!(own.is_ok()); // not `$share/…`
        let own = own.expect("was checked");
        prop_assert_eq!(own.matches(own.filter()), true);
        if !own.is_shared() {
            let below = TopicFilter::parse(&format!("{topic}/#")).expect("is legal");
            prop_assert!(below.matches(&topic));
        }
    }
}
