//! Bytes to packets and back: see `check_stream`. The first byte selects side, version and phase.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/mqtt/tests/support/oracle.rs"]
#[allow(dead_code)]
mod oracle;

fuzz_target!(|data: &[u8]| {
    oracle::check_stream(data);
});
