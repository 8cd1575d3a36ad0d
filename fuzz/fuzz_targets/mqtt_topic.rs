//! A topic filter, a line feed and a topic: see `check_match`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/mqtt/tests/support/oracle.rs"]
#[allow(dead_code)]
mod oracle;

fuzz_target!(|text: &str| oracle::check_match(text));
