//! Rates: so much per second, and how much of it may come at once: `"500/s"`, `"500/s burst 2_000"`,
//! `"1MiB/s"`; `"off"` for none.

use std::{fmt, num::NonZeroU32};

use super::quantity::ByteSize;

/// A rate that is kept to over time, with what may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Over a longer time.
    pub per_second: NonZeroU32,
    /// At once, after a rest. One second's worth unless given.
    pub burst: NonZeroU32,
}

/// What is counted, which decides how a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Connections, messages.
    Things,
    /// Bytes, with a unit.
    Bytes,
}

impl Rate {
    /// `per_second`, and `burst` at once.
    pub const fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self { per_second, burst }
    }

    /// Reads what [`Rate::show`] writes; the reason when it can not.
    pub fn parse(text: &str, counted: Counted) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let (rate, word, burst, end) = (words.next(), words.next(), words.next(), words.next());
        let per_second = rate
            .and_then(|rate| rate.strip_suffix("/s"))
            .and_then(|number| amount(number, counted));
        let burst = match (word, burst, end) {
            (None, ..) => per_second,
            (Some("burst"), Some(burst), None) => amount(burst, counted),
            _ => None,
        };
        let (Some(per_second), Some(burst)) = (per_second, burst) else {
            let kind = match counted {
                Counted::Things => "a number per second",
                Counted::Bytes => "a size per second, with a unit and below 4GiB",
            };
            return Err(format!("\"{text}\" is not {kind}"));
        };
        if burst < per_second {
            return Err(format!(
                "\"{text}\" has a burst below what comes in a second, so the rate could never be used"
            ));
        }
        Ok(Self { per_second, burst })
    }

    /// As it is written in a configuration.
    pub fn show(self, counted: Counted) -> impl fmt::Display {
        let number = move |number: NonZeroU32| match counted {
            Counted::Things => number.to_string(),
            Counted::Bytes => ByteSize(u64::from(number.get())).to_string(),
        };
        let burst = match self.burst == self.per_second {
            true => String::new(),
            false => format!(" burst {}", number(self.burst)),
        };
        format!("{}/s{burst}", number(self.per_second))
    }
}

fn amount(text: &str, counted: Counted) -> Option<NonZeroU32> {
    let number = match counted {
        Counted::Things => {
            let digits = text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'_');
            digits
                .then(|| text.replace('_', "").parse().ok())
                .flatten()?
        }
        Counted::Bytes => ByteSize::parse(text)?.0,
    };
    NonZeroU32::new(u32::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_back_as_they_print() {
        for (text, counted, per_second, burst) in [
            ("500/s", Counted::Things, 500, 500),
            ("500/s burst 2000", Counted::Things, 500, 2000),
            ("1MiB/s", Counted::Bytes, 1 << 20, 1 << 20),
            ("64KiB/s burst 1MiB", Counted::Bytes, 64 << 10, 1 << 20),
        ] {
            let rate = Rate::parse(text, counted).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(
                (rate.per_second.get(), rate.burst.get()),
                (per_second, burst),
                "{text}"
            );
            assert_eq!(rate.show(counted).to_string(), text);
        }
        let grouped = Rate::parse("20_000/s burst 100_000", Counted::Things);
        assert_eq!(grouped.map(|rate| rate.burst.get()), Ok(100_000));
    }

    #[test]
    fn what_is_no_rate_says_why() {
        for (text, counted, why) in [
            ("500", Counted::Things, "a number per second"),
            ("0/s", Counted::Things, "a number per second"),
            ("-1/s", Counted::Things, "a number per second"),
            ("500/m", Counted::Things, "a number per second"),
            ("1MiB/s", Counted::Things, "a number per second"),
            ("500/s burst", Counted::Things, "a number per second"),
            (
                "500/s burst 600 more",
                Counted::Things,
                "a number per second",
            ),
            ("", Counted::Things, "a number per second"),
            ("500/s", Counted::Bytes, "a size per second"),
            ("4GiB/s", Counted::Bytes, "a size per second"),
            ("500/s burst 10", Counted::Things, "has a burst below"),
        ] {
            let refused = Rate::parse(text, counted).expect_err(text);
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
