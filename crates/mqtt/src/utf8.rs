//! MQTT's strings: UTF-8, at most 65,535 bytes, no U+0000 (section 1.5.4).

use std::{borrow::Borrow, cmp::Ordering, fmt, hash, ops::Deref, str};

use bytes::Bytes;

/// Why bytes are no MQTT string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Utf8Error {
    /// Not well-formed UTF-8: stray or overlong bytes, or a surrogate `[MQTT-1.5.4-1]`
    /// (`v3.1.1` `[MQTT-1.5.3-1]`).
    #[error("is not well-formed UTF-8")]
    Invalid,
    /// Contains U+0000 `[MQTT-1.5.4-2]` (`v3.1.1` `[MQTT-1.5.3-2]`).
    #[error("contains the character U+0000")]
    NullCharacter,
    /// Longer than the two-byte length prefix can say.
    #[error("has {len} bytes, more than the 65535 of an MQTT string")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
}

/// An MQTT string: a slice of the buffer it was read from, or bytes of its own.
///
/// Always well-formed UTF-8. One that was decoded also has no U+0000 and fits its length prefix;
/// one made from a `&str` is checked for these two when it is encoded. Control characters and
/// non-characters, which the specification only discourages, pass.
#[derive(Clone, Default)]
pub struct Utf8(Bytes);

impl Utf8 {
    /// Longest MQTT string in bytes.
    pub const MAX_LEN: usize = u16::MAX as usize;

    /// The empty string.
    pub const EMPTY: Self = Self(Bytes::new());

    /// A string that lives as long as the program; nothing is copied.
    pub const fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // The check is repeated rather than skipped: it takes a few nanoseconds for a topic, and
        // skipping it needs `unsafe`.
        str::from_utf8(&self.0).expect("checked by every constructor")
    }

    /// The text as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no character at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A copy with memory of its own. A decoded string keeps the whole read buffer alive, so use
    /// this for what outlives the packet: client ids, topic filters, retained topics.
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// The bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Checks what MQTT asks beyond well-formed UTF-8.
    pub(crate) fn check(&self) -> Result<(), Utf8Error> {
        check_beyond_utf8(&self.0)
    }
}

fn check_beyond_utf8(bytes: &[u8]) -> Result<(), Utf8Error> {
    if bytes.len() > Utf8::MAX_LEN {
        return Err(Utf8Error::TooLong { len: bytes.len() });
    }
    if bytes.contains(&0) {
        return Err(Utf8Error::NullCharacter);
    }
    Ok(())
}

impl TryFrom<Bytes> for Utf8 {
    type Error = Utf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, Utf8Error> {
        check_beyond_utf8(&bytes)?;
        str::from_utf8(&bytes).map_err(|_| Utf8Error::Invalid)?;
        Ok(Self(bytes))
    }
}

impl From<&str> for Utf8 {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Utf8 {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl Deref for Utf8 {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Utf8 {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for Utf8 {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Utf8 {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Utf8 {}

impl PartialEq<str> for Utf8 {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Utf8 {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialOrd for Utf8 {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Utf8 {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl hash::Hash for Utf8 {
    // As `str` hashes, because of `Borrow<str>`.
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for Utf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Utf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}
