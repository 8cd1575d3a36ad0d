//! Text that shares a record's bytes instead of copying them.

use std::fmt;
use std::ops::Deref;
use std::str;

use bytes::Bytes;

/// UTF-8 text in shared bytes. Cheap to clone; keeps the whole chunk that it is a slice of in memory.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Bytes);

impl From<Bytes> for Text {
    /// Bytes that are not UTF-8 (a record that another program wrote) have them replaced by U+FFFD.
    fn from(bytes: Bytes) -> Text {
        match String::from_utf8_lossy(&bytes) {
            std::borrow::Cow::Borrowed(_) => Text(bytes),
            std::borrow::Cow::Owned(text) => Text(Bytes::from(text)),
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // Checked when it was made, so this never is the default; checking again costs less than a copy did.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
