//! Ways in for the fuzzers (`fuzz/fuzz_targets`), each a function of bytes that panics when something is
//! wrong. Not a public interface.

pub use crate::simulation::strangers::meet as session;
