//! What a payload is: its content type, and its bytes without compression.

use std::borrow::Cow;
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use signals::CAN_CONTENT_TYPE;

/// Bytes a payload may have once decompressed, unless set otherwise: sixteen times the largest MQTT packet.
pub const MAX_DECOMPRESSED: usize = 16 << 20;

/// The largest window a zstd frame may ask memory for: 2^24, as much as [`MAX_DECOMPRESSED`].
const ZSTD_WINDOW_LOG: u32 = 24;

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// JSON telemetry.
    Json,
    /// Raw CAN frames.
    Can,
    /// Anything else: kept, not looked into.
    Opaque,
}

/// Why a payload cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Not an encoding we read.
    #[error("content-encoding `{0}` is unknown; send gzip, zstd or none")]
    Unknown(String),
    /// Not what the encoding says, or cut short.
    #[error("the payload is not {encoding}, or cut short")]
    Damaged {
        /// The encoding it should have.
        encoding: &'static str,
        /// What the decompressor met.
        source: io::Error,
    },
    /// More bytes than allowed.
    #[error(
        "the payload has more than {limit} bytes once decompressed ({encoding}); send it in parts"
    )]
    TooLarge {
        /// Its encoding.
        encoding: &'static str,
        /// Bytes allowed.
        limit: usize,
    },
}

/// What the sender says it is; `None` if it says nothing.
pub(crate) fn declared(content_type: Option<&str>) -> Option<Content> {
    // Without parameters: `application/json; charset=utf-8` is JSON.
    let media_type = content_type?.split(';').next().unwrap_or_default().trim();
    if media_type.is_empty() {
        return None;
    }
    let is = |name: &str| media_type.eq_ignore_ascii_case(name);
    Some(if is("application/json") || is("text/json") {
        Content::Json
    } else if is(CAN_CONTENT_TYPE) {
        Content::Can
    } else {
        Content::Opaque
    })
}

/// What it looks like.
pub(crate) fn sniffed(payload: &[u8]) -> Content {
    match payload.trim_ascii_start().first() {
        Some(b'{' | b'[') => Content::Json,
        _ => Content::Opaque,
    }
}

/// The payload without its compression, of at most `limit` bytes.
pub(crate) fn decompressed<'a>(
    payload: &'a [u8],
    encoding: Option<&str>,
    limit: usize,
) -> Result<Cow<'a, [u8]>, ContentError> {
    let encoding = encoding.unwrap_or_default().trim();
    let is = |name: &str| encoding.eq_ignore_ascii_case(name);
    if encoding.is_empty() || is("identity") {
        Ok(Cow::Borrowed(payload))
    } else if is("gzip") {
        inflate("gzip", MultiGzDecoder::new(payload), payload.len(), limit).map(Cow::Owned)
    } else if is("zstd") {
        let damaged = |source| ContentError::Damaged {
            encoding: "zstd",
            source,
        };
        let mut decoder = zstd::stream::read::Decoder::with_buffer(payload).map_err(damaged)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(damaged)?;
        inflate("zstd", decoder, payload.len(), limit).map(Cow::Owned)
    } else {
        Err(ContentError::Unknown(encoding.chars().take(32).collect()))
    }
}

fn inflate(
    encoding: &'static str,
    decoder: impl Read,
    compressed: usize,
    limit: usize,
) -> Result<Vec<u8>, ContentError> {
    let mut bytes = Vec::with_capacity(compressed.saturating_mul(4).min(limit));
    // One byte more than allowed is enough to know that there is more; a bomb unpacks no further.
    decoder
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ContentError::Damaged { encoding, source })?;
    if bytes.len() > limit {
        return Err(ContentError::TooLarge { encoding, limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).expect("to memory")
    }

    #[test]
    fn content_is_what_the_sender_says_or_what_it_looks_like() {
        let rows = [
            (None, None),
            (Some(""), None),
            (Some("application/json"), Some(Content::Json)),
            (Some("Application/JSON; charset=utf-8"), Some(Content::Json)),
            (Some("text/json"), Some(Content::Json)),
            (Some("application/vnd.milepost.can"), Some(Content::Can)),
            (Some("application/octet-stream"), Some(Content::Opaque)),
            (Some("application/jsonish"), Some(Content::Opaque)),
        ];
        for (content_type, expected) in rows {
            assert_eq!(declared(content_type), expected, "{content_type:?}");
        }
        let rows: [(&[u8], Content); 6] = [
            (b"{}", Content::Json),
            (b" \r\n\t[1]", Content::Json),
            (b"", Content::Opaque),
            (b"  ", Content::Opaque),
            (b"12", Content::Opaque),
            (b"\x01\x02", Content::Opaque),
        ];
        for (payload, expected) in rows {
            assert_eq!(sniffed(payload), expected, "{payload:?}");
        }
    }

    #[test]
    fn payloads_are_decompressed_up_to_the_limit_and_not_beyond() {
        let plain = vec![b'x'; 1_000];
        for (encoding, packed) in [
            ("gzip", gzip(&plain)),
            ("GZIP", gzip(&plain)),
            (" zstd", zstd(&plain)),
        ] {
            let found = decompressed(&packed, Some(encoding), 1_000).expect(encoding);
            assert_eq!(*found, *plain, "{encoding}");
            let error = decompressed(&packed, Some(encoding), 999).expect_err("a byte too many");
            assert!(
                matches!(error, ContentError::TooLarge { limit: 999, .. }),
                "{error}"
            );
            let error =
                decompressed(&packed[..packed.len() - 1], Some(encoding), 1_000).expect_err("cut");
            assert!(matches!(error, ContentError::Damaged { .. }), "{error}");
            let error = decompressed(&plain, Some(encoding), 1_000).expect_err("not packed");
            assert!(matches!(error, ContentError::Damaged { .. }), "{error}");
        }
        for encoding in [None, Some(""), Some("identity")] {
            let found = decompressed(&plain, encoding, 10).expect("as it is");
            assert!(matches!(found, Cow::Borrowed(_)));
        }
        let error = decompressed(&plain, Some("br"), 10)
            .expect_err("unknown")
            .to_string();
        assert_eq!(
            error,
            "content-encoding `br` is unknown; send gzip, zstd or none"
        );
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = zstd(&vec![0; 64 << 20]);
        assert!(bomb.len() < 10_000);
        let error = decompressed(&bomb, Some("zstd"), MAX_DECOMPRESSED).expect_err("64 MiB");
        assert!(
            matches!(
                error,
                ContentError::TooLarge { .. } | ContentError::Damaged { .. }
            ),
            "{error}"
        );
        let bomb = gzip(&vec![0; 64 << 20]);
        let error = decompressed(&bomb, Some("gzip"), MAX_DECOMPRESSED).expect_err("64 MiB");
        assert!(
            error
                .to_string()
                .contains("more than 16777216 bytes once decompressed (gzip)"),
            "{error}"
        );
    }
}
