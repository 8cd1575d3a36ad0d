//! `docs/mqtt-conformance.md` says which test shows which statement of the specifications. Here it is
//! held to that: no statement is missing, and every test it names exists.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

/// The sections of a specification with the numbers of their statements.
type Sections = [(&'static str, RangeInclusive<u32>)];

/// Appendix B of MQTT 5.0 (OASIS standard, 7 March 2019): 251 statements.
const V5: &Sections = &[
    ("1.5.4", 1..=3),
    ("1.5.5", 1..=1),
    ("1.5.7", 1..=1),
    ("2.1.3", 1..=1),
    ("2.2.1", 2..=6),
    ("2.2.2", 1..=1),
    ("3.1.0", 1..=2),
    ("3.1.2", 1..=30),
    ("3.1.3", 1..=12),
    ("3.1.4", 1..=6),
    ("3.2.0", 1..=2),
    ("3.2.2", 1..=22),
    ("3.3.1", 1..=13),
    ("3.3.2", 1..=20),
    ("3.3.4", 1..=10),
    ("3.4.2", 1..=3),
    ("3.5.2", 1..=3),
    ("3.6.1", 1..=1),
    ("3.6.2", 1..=3),
    ("3.7.2", 1..=3),
    ("3.8.1", 1..=1),
    ("3.8.3", 1..=5),
    ("3.8.4", 1..=8),
    ("3.9.2", 1..=2),
    ("3.9.3", 1..=2),
    ("3.10.1", 1..=1),
    ("3.10.3", 1..=2),
    ("3.10.4", 1..=6),
    ("3.11.2", 1..=2),
    ("3.11.3", 1..=2),
    ("3.12.4", 1..=1),
    ("3.14.0", 1..=1),
    ("3.14.1", 1..=1),
    ("3.14.2", 1..=4),
    ("3.14.4", 1..=3),
    ("3.15.1", 1..=1),
    ("3.15.2", 1..=3),
    ("4.1.0", 1..=2),
    ("4.2.0", 1..=1),
    ("4.3.1", 1..=1),
    ("4.3.2", 1..=5),
    ("4.3.3", 1..=13),
    ("4.4.0", 1..=2),
    ("4.5.0", 1..=2),
    ("4.6.0", 1..=6),
    ("4.7.0", 1..=1),
    ("4.7.1", 1..=2),
    ("4.7.2", 1..=1),
    ("4.7.3", 1..=4),
    ("4.8.2", 1..=6),
    ("4.9.0", 1..=3),
    ("4.12.0", 1..=7),
    ("4.12.1", 1..=2),
    ("4.13.1", 1..=1),
    ("4.13.2", 1..=1),
    ("6.0.0", 1..=4),
];

/// Appendix B of MQTT 3.1.1 (OASIS standard, 29 October 2014): 141 statements.
const V311: &Sections = &[
    ("1.5.3", 1..=3),
    ("2.2.2", 1..=2),
    ("2.3.1", 1..=7),
    ("3.1.0", 1..=2),
    ("3.1.2", 1..=24),
    ("3.1.3", 1..=11),
    ("3.1.4", 1..=5),
    ("3.2.0", 1..=1),
    ("3.2.2", 1..=6),
    ("3.3.1", 1..=12),
    ("3.3.2", 1..=3),
    ("3.3.4", 1..=1),
    ("3.3.5", 1..=2),
    ("3.6.1", 1..=1),
    ("3.8.1", 1..=1),
    ("3.8.3", 1..=4),
    ("3.8.4", 1..=6),
    ("3.9.3", 1..=2),
    ("3.10.1", 1..=1),
    ("3.10.3", 1..=2),
    ("3.10.4", 1..=6),
    ("3.12.4", 1..=1),
    ("3.14.1", 1..=1),
    ("3.14.4", 1..=3),
    ("4.1.0", 1..=2),
    ("4.3.1", 1..=1),
    ("4.3.2", 1..=2),
    ("4.3.3", 1..=2),
    ("4.4.0", 1..=1),
    ("4.5.0", 1..=2),
    ("4.6.0", 1..=6),
    ("4.7.1", 1..=3),
    ("4.7.2", 1..=1),
    ("4.7.3", 1..=4),
    ("4.8.0", 1..=2),
    ("6.0.0", 1..=4),
    ("7.0.0", 1..=2),
    ("7.1.1", 1..=1),
    ("7.1.2", 1..=1),
];

fn numbers(sections: &Sections) -> BTreeSet<String> {
    let number = |section: &str, n: u32| format!("MQTT-{section}-{n}");
    sections
        .iter()
        .flat_map(|(section, range)| range.clone().map(|n| number(section, n)))
        .collect()
}

/// Everything that is wrong with a part of the document. `exists` says whether a test exists.
fn complaints(part: &str, sections: &Sections, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut missing = numbers(sections);
    let mut seen = BTreeSet::new();
    let mut complaints = Vec::new();
    for line in part.lines().filter(|line| line.starts_with("| MQTT-")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, statement, binds, shown] = cells[..] else {
            complaints.push(format!("not four cells: {line}"));
            continue;
        };
        if !seen.insert(number) {
            complaints.push(format!("{number} is listed twice"));
        } else if !missing.remove(number) {
            complaints.push(format!("{number} is no statement of this version"));
        }
        if statement.is_empty() || !["server", "client", "both"].contains(&binds) {
            complaints.push(format!("{number} does not say what it asks of whom"));
        }
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        let reason = shown.strip_prefix("Not tested: ");
        if tests.is_empty() && reason.is_none_or(str::is_empty) {
            complaints.push(format!("{number} has neither a test nor a reason"));
        }
        for test in tests.into_iter().filter(|test| !exists(test)) {
            complaints.push(format!("{number} names a test that does not exist: {test}"));
        }
    }
    complaints.extend(missing.iter().map(|number| format!("{number} is missing")));
    complaints
}

/// Whether `crate/path.rs::name` is a test that runs, below `crates/`.
fn exists(test: &str) -> bool {
    let Some((path, name)) = test.split_once(".rs::") else {
        return false;
    };
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match fs::read_to_string(crates.join(format!("{path}.rs"))) {
        Ok(source) => has_test(&source, name.trim_start_matches("tests::")),
        Err(_) => false,
    }
}

/// Whether `source` has a function of this name that is a test and not ignored.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let head = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        let attributes: Vec<&&str> = lines[..at]
            .iter()
            .rev()
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
            .collect();
        line.starts_with(&head)
            && attributes.iter().any(|a| a.starts_with("#[test]"))
            && !attributes.iter().any(|a| a.starts_with("#[ignore"))
    })
}

#[test]
fn every_statement_has_a_test_that_exists_or_a_reason() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/mqtt-conformance.md");
    let document = fs::read_to_string(path).expect("the document is there");
    let (_, parts) = document
        .split_once("\n## MQTT 5.0\n")
        .expect("a part for MQTT 5");
    let (v5, v311) = parts
        .split_once("\n## MQTT 3.1.1\n")
        .expect("a part for MQTT 3.1.1");
    let mut all = complaints(v5, V5, exists);
    let old = complaints(v311, V311, exists);
    all.extend(
        old.into_iter()
            .map(|complaint| format!("v3.1.1 {complaint}")),
    );
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn the_lists_have_as_many_statements_as_the_standards() {
    assert_eq!((numbers(V5).len(), numbers(V311).len()), (251, 141));
}

#[test]
fn mistakes_in_the_document_are_found() {
    const SECTIONS: &Sections = &[("1.0.0", 1..=2)];
    let first = "| MQTT-1.0.0-1 | Says a | both | `a.rs::a` |\n";
    let second = "| MQTT-1.0.0-2 | Says b | client | Not tested: for a reason. |\n";
    let check = |lines: &[&str]| complaints(&lines.concat(), SECTIONS, |test| test == "a.rs::a");
    assert_eq!(check(&[first, second]), [""; 0]);
    let rows = [
        (vec![first], "MQTT-1.0.0-2 is missing"),
        (vec![first, first, second], "MQTT-1.0.0-1 is listed twice"),
        (
            vec![first, second, "| MQTT-9.9.9-9 | c | both | `a.rs::a` |\n"],
            "MQTT-9.9.9-9 is no statement of this version",
        ),
        (
            vec![first, "| MQTT-1.0.0-2 | b | client | |\n"],
            "MQTT-1.0.0-2 has neither a test nor a reason",
        ),
        (
            vec![first, "| MQTT-1.0.0-2 | b | client | `a.rs::b` |\n"],
            "MQTT-1.0.0-2 names a test that does not exist: a.rs::b",
        ),
        (
            vec![first, "| MQTT-1.0.0-2 | b | nobody | `a.rs::a` |\n"],
            "MQTT-1.0.0-2 does not say what it asks of whom",
        ),
    ];
    for (lines, expected) in rows {
        assert_eq!(check(&lines), [expected]);
    }
}

#[test]
fn only_functions_that_run_as_tests_count() {
    let source = "
        #[test]
        // with a remark
        fn real() {}
        fn helper() {}
        #[test]
        #[ignore]
        fn ignored() {}
        proptest! {
            #[test]
            fn generated(n in 0..3) {}
        }";
    for (name, expected) in [
        ("real", true),
        ("rea", false),
        ("helper", false),
        ("ignored", false),
        ("generated", true),
    ] {
        assert_eq!(has_test(source, name), expected, "{name}");
    }
    assert!(!exists("broker/tests/conformance.rs::exists"));
    assert!(exists(
        "broker/tests/conformance.rs::only_functions_that_run_as_tests_count"
    ));
}
