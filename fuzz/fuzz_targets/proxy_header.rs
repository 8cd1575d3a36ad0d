//! PROXY protocol headers, versions 1 and 2: no panic, bounded, and the same however the bytes come.
#![no_main]

use broker::proxy::{MAX_HEADER, Parse, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    match &whole {
        Parse::Incomplete => assert!(bytes.len() < MAX_HEADER, "waits for more than the bound"),
        Parse::Done { len, .. } => {
            assert!(*len <= bytes.len().min(MAX_HEADER), "beyond its bytes");
            assert_eq!(parse(&bytes[..*len]), whole, "what follows does not matter");
            for cut in 0..*len {
                assert_eq!(parse(&bytes[..cut]), Parse::Incomplete, "cut at {cut}");
            }
        }
        Parse::Malformed(_) => {
            // Whoever waits for more never sees a header in it.
            assert!(!matches!(parse(&[bytes, b"\r\n"].concat()), Parse::Done { .. }));
        }
    }
});
