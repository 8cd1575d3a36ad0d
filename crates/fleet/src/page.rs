//! Pages of lists. A cursor is opaque to its holder: it names the list it belongs to and the last
//! key seen, so a page continues in the right place however much was added or removed meanwhile.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::FleetError;

/// Largest page: keeps one answer within about a megabyte.
pub const MAX_PAGE: u32 = 1000;

/// Which part of a list is wanted.
#[derive(Clone, Debug)]
pub struct PageRequest {
    limit: u32,
    cursor: Option<String>,
}

impl PageRequest {
    /// At most `limit` items (1 to 1000), continuing where `cursor` (from [`Page::next`]) ended.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for a limit out of range. A bad cursor is found by the list call.
    pub fn new(limit: u32, cursor: Option<String>) -> Result<Self, FleetError> {
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(FleetError::invalid(
                "limit",
                format!("is {limit}; allowed are 1 to {MAX_PAGE}"),
            ));
        }
        Ok(Self { limit, cursor })
    }

    /// The key to continue after, if this request's cursor was made for `list`.
    pub(crate) fn after(&self, list: &'static str) -> Result<Option<String>, FleetError> {
        let Some(cursor) = &self.cursor else {
            return Ok(None);
        };
        let decoded = URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|raw| String::from_utf8(raw).ok());
        match decoded.as_deref().and_then(|text| text.split_once('\n')) {
            Some((made_for, key)) if made_for == list => Ok(Some(key.to_owned())),
            _ => Err(FleetError::invalid(
                "cursor",
                "was not made by this list; pass the `next` of a page of the same list, or none to start",
            )),
        }
    }

    /// One more than asked for: whether there is a next page is known without counting.
    pub(crate) fn fetch_limit(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Cuts what was fetched with [`Self::fetch_limit`] down to the page.
    pub(crate) fn page<T>(
        &self,
        list: &'static str,
        mut items: Vec<T>,
        key: impl Fn(&T) -> &str,
    ) -> Page<T> {
        let limit = self.limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = match items.last() {
            Some(last) if more => Some(URL_SAFE_NO_PAD.encode(format!("{list}\n{}", key(last)))),
            _ => None,
        };
        Page { items, next }
    }
}

impl Default for PageRequest {
    /// The first hundred.
    fn default() -> Self {
        Self {
            limit: 100,
            cursor: None,
        }
    }
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The items, at most as many as asked for.
    pub items: Vec<T>,
    /// The cursor of the next page; `None` at the end of the list.
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked() {
        for (limit, fine) in [
            (0, false),
            (1, true),
            (1000, true),
            (1001, false),
            (u32::MAX, false),
        ] {
            assert_eq!(PageRequest::new(limit, None).is_ok(), fine, "{limit}");
        }
    }

    #[test]
    fn a_cursor_belongs_to_its_list() {
        let request = PageRequest::new(2, None).unwrap();
        let page = request.page("vehicles", vec!["a", "b", "c"], |item| item);
        assert_eq!(page.items, ["a", "b"]);
        let next = PageRequest::new(2, page.next).unwrap();
        assert_eq!(next.after("vehicles").unwrap().as_deref(), Some("b"));
        assert!(matches!(
            next.after("devices"),
            Err(FleetError::Invalid {
                field: "cursor",
                ..
            })
        ));
        assert!(
            request
                .page("vehicles", vec!["a", "b"], |item| item)
                .next
                .is_none()
        );
    }

    #[test]
    fn a_forged_cursor_is_refused() {
        for cursor in ["", "!", "dmVoaWNsZXM", "\u{fffd}", "////"] {
            let request = PageRequest::new(1, Some(cursor.to_owned())).unwrap();
            assert!(
                matches!(request.after("vehicles"), Err(FleetError::Invalid { .. })),
                "{cursor}"
            );
        }
    }
}
