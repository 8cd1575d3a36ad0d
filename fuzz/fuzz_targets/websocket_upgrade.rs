//! What a WebSocket client sends: see `check_upgrade`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/broker/tests/support/websocket_oracle.rs"]
#[allow(dead_code)]
mod oracle;

fuzz_target!(|data: &[u8]| {
    oracle::check_upgrade(data);
});
