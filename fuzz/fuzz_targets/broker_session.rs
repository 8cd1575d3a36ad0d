//! Clients that say anything at all, to a broker that crashes and is late: see
//! `broker::simulation::strangers`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| broker::fuzzing::session(data));
