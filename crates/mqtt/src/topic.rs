//! Topic names, topic filters and how they match (section 4.7), shared subscriptions (section 4.8.2).

use std::{fmt, ops::Deref};

use crate::utf8::{Utf8, Utf8Error};

/// Why a text is no topic name or topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Must have at least one character `[MQTT-4.7.3-1]`.
    #[error("is empty")]
    Empty,
    /// U+0000 `[MQTT-4.7.3-2]` or more than 65,535 bytes `[MQTT-4.7.3-3]`.
    #[error(transparent)]
    Text(#[from] Utf8Error),
    /// A topic name has no wildcards `[MQTT-4.7.0-1]`, `[MQTT-3.3.2-2]`, nor has a response topic `[MQTT-3.3.2-14]`.
    #[error("contains a wildcard (`+` or `#`)")]
    WildcardInName,
    /// `#` stands alone in the last level `[MQTT-4.7.1-1]` (`v3.1.1` `[MQTT-4.7.1-2]`).
    #[error("has a `#` that is not alone in the last level")]
    MisplacedHash,
    /// `+` stands alone in its level `[MQTT-4.7.1-2]` (`v3.1.1` `[MQTT-4.7.1-3]`).
    #[error("has a `+` that is not alone in its level")]
    MisplacedPlus,
    /// `$share/` is followed by a name of at least one character without wildcards
    /// `[MQTT-4.8.2-1]`, `[MQTT-4.8.2-2]`.
    #[error("has no valid share name; expected `$share/name/filter`")]
    ShareName,
    /// The share name is followed by `/` and a topic filter `[MQTT-4.8.2-2]`.
    #[error("names a share but no filter; expected `$share/name/filter`")]
    ShareWithoutFilter,
}

/// A topic a message is published to: not empty, no wildcards.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Utf8);

impl TopicName {
    /// Copies and checks `text`.
    ///
    /// # Errors
    /// [`TopicError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        Self::try_from(Utf8::from(text))
    }

    /// The topic.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The topic as MQTT string.
    pub fn as_utf8(&self) -> &Utf8 {
        &self.0
    }
}

impl TryFrom<Utf8> for TopicName {
    type Error = TopicError;

    fn try_from(text: Utf8) -> Result<Self, TopicError> {
        check_name(&text)?;
        Ok(Self(text))
    }
}

/// What [`TopicName`] promises, for a text that stays a string.
pub(crate) fn check_name(text: &Utf8) -> Result<(), TopicError> {
    // Every message passes here. One look at all bytes, without leaving early, is what the compiler can
    // do many bytes at a time; which rule was broken is asked only when one was.
    let broken = text
        .as_bytes()
        .iter()
        .fold(false, |broken, b| broken | matches!(b, 0 | b'+' | b'#'));
    if text.is_empty() {
        Err(TopicError::Empty)
    } else if broken || text.len() > Utf8::MAX_LEN {
        text.check()?;
        Err(TopicError::WildcardInName)
    } else {
        Ok(())
    }
}

impl From<TopicName> for Utf8 {
    fn from(name: TopicName) -> Self {
        name.0
    }
}

impl Deref for TopicName {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

const SHARE_PREFIX: &str = "$share/";

/// A topic filter: `+` and `#` stand in legal places, and `$share/` is followed by a name and a filter.
///
/// `$share/` is taken for a shared subscription in 3.1.1 too, which leaves topics that begin with `$`
/// to the server (`v3.1.1` section 4.7.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter {
    text: Utf8,
    /// Where the filter proper begins: after `$share/name/`, else 0.
    begin: u16,
}

impl TopicFilter {
    /// Copies and checks `text`.
    ///
    /// # Errors
    /// [`TopicError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        Self::try_from(Utf8::from(text))
    }

    /// The whole text, share name included.
    pub fn as_str(&self) -> &str {
        self.text.as_str()
    }

    /// The whole text as MQTT string.
    pub fn as_utf8(&self) -> &Utf8 {
        &self.text
    }

    /// What topics are matched with: the text without `$share/name/`.
    pub fn filter(&self) -> &str {
        &self.text.as_str()[usize::from(self.begin)..]
    }

    /// The levels of [`filter`](Self::filter), share name left out.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.filter().split('/')
    }

    /// Whether this is a shared subscription (section 4.8.2).
    pub fn is_shared(&self) -> bool {
        self.begin > 0
    }

    /// The share name of a shared subscription.
    pub fn share_name(&self) -> Option<&str> {
        self.is_shared()
            .then(|| &self.text.as_str()[SHARE_PREFIX.len()..usize::from(self.begin) - 1])
    }

    /// Whether `+` or `#` occurs, so that more than one topic can match.
    pub fn has_wildcards(&self) -> bool {
        self.filter().bytes().any(|b| matches!(b, b'+' | b'#'))
    }

    /// Whether a message on `topic` belongs to this filter. A wildcard in the first level matches no
    /// topic that begins with `$` `[MQTT-4.7.2-1]`.
    pub fn matches(&self, topic: &str) -> bool {
        let filter = self.filter();
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let mut topic_levels = topic.split('/');
        for wanted in filter.split('/') {
            if wanted == "#" {
                return true; // also the parent level, which `topic_levels` has then used up
            }
            match topic_levels.next() {
                Some(level) if wanted == "+" || wanted == level => {}
                _ => return false,
            }
        }
        topic_levels.next().is_none()
    }

    /// A copy with memory of its own, see [`Utf8::detached`].
    pub fn detached(&self) -> Self {
        Self {
            text: self.text.detached(),
            begin: self.begin,
        }
    }
}

impl TryFrom<Utf8> for TopicFilter {
    type Error = TopicError;

    fn try_from(text: Utf8) -> Result<Self, TopicError> {
        text.check()?;
        let begin = match text.as_str().strip_prefix(SHARE_PREFIX) {
            None => 0,
            Some(shared) => {
                let (name, filter) = shared.split_once('/').unwrap_or((shared, ""));
                if name.is_empty() || name.contains(['+', '#']) {
                    return Err(TopicError::ShareName);
                }
                if filter.is_empty() {
                    return Err(TopicError::ShareWithoutFilter);
                }
                text.len() - filter.len()
            }
        };
        check_wildcards(&text.as_str()[begin..])?;
        let begin = u16::try_from(begin).map_err(|_| Utf8Error::TooLong { len: text.len() })?;
        Ok(Self { text, begin })
    }
}

fn check_wildcards(filter: &str) -> Result<(), TopicError> {
    if filter.is_empty() {
        return Err(TopicError::Empty);
    }
    // By bytes, not by levels: of those there may be 65,536.
    let bytes = filter.as_bytes();
    if !bytes
        .iter()
        .fold(false, |any, b| any | matches!(b, b'+' | b'#'))
    {
        return Ok(());
    }
    let mut before = b'/';
    for (at, byte) in bytes.iter().enumerate() {
        let after = bytes.get(at + 1);
        match byte {
            // A level of its own, and the last one.
            b'#' if before != b'/' || after.is_some() => return Err(TopicError::MisplacedHash),
            b'+' if before != b'/' || after.is_some_and(|b| *b != b'/') => {
                return Err(TopicError::MisplacedPlus);
            }
            _ => before = *byte,
        }
    }
    Ok(())
}

impl From<TopicFilter> for Utf8 {
    fn from(filter: TopicFilter) -> Self {
        filter.text
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every short filter against what the rules say of its levels.
    #[test]
    fn wildcards_stand_alone_in_their_level_and_a_hash_in_the_last() {
        let mut filters = vec![String::new()];
        for _ in 0..6 {
            let longer = |filter: &String| {
                "a/+#"
                    .chars()
                    .map(|c| format!("{filter}{c}"))
                    .collect::<Vec<_>>()
            };
            filters = filters.iter().flat_map(longer).collect();
            for filter in &filters {
                let levels: Vec<&str> = filter.split('/').collect();
                let legal = levels.iter().enumerate().all(|(at, level)| match *level {
                    "#" => at + 1 == levels.len(),
                    "+" => true,
                    level => !level.contains(['+', '#']),
                });
                assert_eq!(TopicFilter::parse(filter).is_ok(), legal, "{filter}");
            }
        }
    }
}
