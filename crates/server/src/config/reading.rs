//! Taking typed values out of a section, each with its default and its allowed range.
//!
//! A section remembers every key it was asked for. What is left over at the end is unknown, and the
//! remembered names are what a misspelling is compared with: a key can not be added to the
//! configuration without becoming known here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    document::{Entry, Node, Place},
    problem::Problem,
    quantity::{ByteSize, format_duration, parse_duration},
    rate::{Counted, Rate},
};

/// A section being read: values are taken out of it, problems gather in it.
pub struct Section<'a> {
    path: String,
    place: Place,
    entries: BTreeMap<String, Entry>,
    asked: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
}

/// A value with the place a complaint about it should name.
#[derive(Debug, Clone)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it was written, or [`Place::Default`].
    pub place: Place,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub fn root(entry: Entry, problems: &'a mut Vec<Problem>) -> Self {
        Self::new(String::new(), entry, problems)
    }

    fn new(path: String, entry: Entry, problems: &'a mut Vec<Problem>) -> Self {
        let mut section = Self {
            path,
            place: entry.place.clone(),
            entries: BTreeMap::new(),
            asked: Vec::new(),
            problems,
        };
        match entry.node {
            Node::Table(entries) => section.entries = entries,
            other => section.problems.push(Problem {
                place: entry.place,
                key: section.path.clone(),
                message: format!("is {}, but must be a section", other.kind()),
                remedy: format!("write `[{}]` and its keys below", section.path),
            }),
        }
        section
    }

    fn key(&self, name: &str) -> String {
        match self.path.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.path),
        }
    }

    /// Records a problem with a key of this section.
    pub fn problem(&mut self, place: &Place, name: &str, message: String, remedy: String) {
        let key = self.key(name);
        self.problems.push(Problem {
            place: place.clone(),
            key,
            message,
            remedy,
        });
    }

    fn take(&mut self, name: &'static str) -> Option<Entry> {
        self.asked.push(name);
        self.entries.remove(name)
    }

    /// A section below this one; absent means empty.
    pub fn section(&mut self, name: &'static str) -> Section<'_> {
        let entry = self.take(name).unwrap_or(Entry {
            node: Node::Table(BTreeMap::new()),
            place: Place::Default,
        });
        let path = self.key(name);
        Section::new(path, entry, self.problems)
    }

    /// The sections of a list such as `[[listener]]`, each handed to `read`; `None` when absent.
    pub fn sections<T>(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(Section<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let entry = self.take(name)?;
        let Node::Array(items) = entry.node else {
            let message = format!("is {}, but must be a list", entry.node.kind());
            let parent = self.path.split('[').next().unwrap_or_default();
            let dot = if parent.is_empty() { "" } else { "." };
            let remedy = format!("write `[[{parent}{dot}{name}]]`, once per entry");
            self.problem(&entry.place, name, message, remedy);
            return Some(Vec::new());
        };
        let path = self.key(name);
        let read_one = items.into_iter().enumerate().filter_map(|(index, item)| {
            read(Section::new(
                format!("{path}[{index}]"),
                item,
                self.problems,
            ))
        });
        Some(read_one.collect())
    }

    /// A value made from a string by `parse`, which gives the reason when it can not.
    pub fn text<T>(
        &mut self,
        name: &'static str,
        default: T,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Placed<T> {
        match self.optional_text(name, remedy, parse) {
            Some(placed) => placed,
            None => Placed {
                value: default,
                place: Place::Default,
            },
        }
    }

    /// As [`Section::text`] where there is no default.
    pub fn optional_text<T>(
        &mut self,
        name: &'static str,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Placed<T>> {
        let entry = self.take(name)?;
        let parsed = match &entry.node {
            Node::Text(text) => parse(text),
            other => Err(format!("is {}, but must be a string", other.kind())),
        };
        match parsed {
            Ok(value) => Some(Placed {
                value,
                place: entry.place,
            }),
            Err(reason) => {
                self.problem(&entry.place, name, reason, remedy.to_owned());
                None
            }
        }
    }

    /// An address such as `127.0.0.1:8080`.
    pub fn address(&mut self, name: &'static str, default: SocketAddr) -> Placed<SocketAddr> {
        let remedy = format!("write an address and a port, such as \"{default}\"");
        self.text(name, default, &remedy, |text| {
            text.replacen("localhost:", "127.0.0.1:", 1)
                .parse()
                .map_err(|_| format!("\"{text}\" is not an address with a port"))
        })
    }

    /// A file or folder that must be named.
    pub fn required_path(&mut self, name: &'static str, what: &str) -> Option<PathBuf> {
        let is_there = self.entries.contains_key(name);
        let path = self.path(name);
        if !is_there {
            let place = self.place.clone();
            self.problem(&place, name, "is missing".into(), format!("name {what}"));
        }
        path.map(|placed| placed.value)
    }

    /// A file or folder.
    pub fn path(&mut self, name: &'static str) -> Option<Placed<PathBuf>> {
        self.optional_text(name, "write a path", |text| match text {
            "" => Err("is empty".into()),
            text => Ok(Path::new(text).to_owned()),
        })
    }

    /// One of a few words, each with what it means.
    pub fn word<T: Copy>(&mut self, name: &'static str, default: T, words: &[(&str, T)]) -> T {
        let quoted: Vec<String> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let remedy = match &quoted[..] {
            [others @ .., last] if !others.is_empty() => {
                format!("write {} or {last}", others.join(", "))
            }
            all => format!("write {}", all.concat()),
        };
        let placed = self.text(name, default, &remedy, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found
                .map(|(_, meaning)| *meaning)
                .ok_or_else(|| format!("\"{text}\" is none of the choices"))
        });
        placed.value
    }

    /// A size with its unit, within a range.
    pub fn size(
        &mut self,
        name: &'static str,
        default: ByteSize,
        range: RangeInclusive<ByteSize>,
    ) -> ByteSize {
        self.size_and_place(name, default, range).value
    }

    /// As [`Section::size`], for a value that others are compared with.
    pub fn size_and_place(
        &mut self,
        name: &'static str,
        default: ByteSize,
        range: RangeInclusive<ByteSize>,
    ) -> Placed<ByteSize> {
        let allowed = format!("{} to {}", range.start(), range.end());
        let remedy = format!("write a size from {allowed}, such as \"{default}\"");
        self.text(name, default, &remedy, |text| {
            let size = ByteSize::parse(text)
                .ok_or_else(|| format!("\"{text}\" is not a size with a unit (KiB, MiB, GiB)"))?;
            match range.contains(&size) {
                true => Ok(size),
                false => Err(format!("\"{text}\" is outside of {allowed}")),
            }
        })
    }

    /// A duration with its unit, within a range.
    pub fn duration(
        &mut self,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let allowed = format!(
            "{} to {}",
            format_duration(*range.start()),
            format_duration(*range.end())
        );
        let example = format_duration(default);
        let remedy = format!("write a duration from {allowed}, such as \"{example}\"");
        let placed = self.text(name, default, &remedy, |text| {
            let duration = parse_duration(text).ok_or_else(|| {
                format!("\"{text}\" is not a duration with a unit (ms, s, m, h, d)")
            })?;
            match range.contains(&duration) {
                true => Ok(duration),
                false => Err(format!("\"{text}\" is outside of {allowed}")),
            }
        });
        placed.value
    }

    /// As [`Section::duration`], where `"off"` means none.
    pub fn duration_or_off(
        &mut self,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        match self.is_off(name) {
            true => None,
            false => Some(self.duration(name, default, range)),
        }
    }

    /// A rate, `"off"` for none.
    pub fn rate(
        &mut self,
        name: &'static str,
        default: Option<Rate>,
        counted: Counted,
    ) -> Option<Rate> {
        if self.is_off(name) {
            return None;
        }
        let example = match counted {
            Counted::Things => "\"500/s\" or \"500/s burst 2000\"",
            Counted::Bytes => "\"1MiB/s\" or \"1MiB/s burst 8MiB\"",
        };
        let remedy = format!("write {example}, or \"off\"");
        self.text(name, default, &remedy, |text| {
            Rate::parse(text, counted).map(Some)
        })
        .value
    }

    /// Whether a key says `"off"`; if so it is taken.
    fn is_off(&mut self, name: &'static str) -> bool {
        let off = matches!(
            self.entries.get(name),
            Some(Entry { node: Node::Text(text), .. }) if text == "off"
        );
        if off {
            self.take(name);
        }
        off
    }

    /// An integer within a range, if it is there.
    pub fn optional_integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let is_there = self.entries.contains_key(name);
        let value = self.integer(name, *range.start(), range);
        is_there.then_some(value)
    }

    /// An integer within a range.
    pub fn integer(&mut self, name: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(entry) = self.take(name) else {
            return default;
        };
        let (low, high) = (*range.start(), *range.end());
        let reason = match &entry.node {
            Node::Integer(value) => match u64::try_from(*value) {
                Ok(value) if range.contains(&value) => return value,
                _ => format!("{value} is outside of {low} to {high}"),
            },
            other => format!("is {}, but must be an integer", other.kind()),
        };
        let remedy = format!("write a number from {low} to {high}, such as {default}");
        self.problem(&entry.place, name, reason, remedy);
        default
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.flag_and_place(name, default).value
    }

    /// As [`Section::flag`], for a value that others depend on.
    pub fn flag_and_place(&mut self, name: &'static str, default: bool) -> Placed<bool> {
        let (value, place) = match self.take(name) {
            None => (default, Place::Default),
            Some(entry) => match entry.node {
                Node::Flag(flag) => (flag, entry.place),
                other => {
                    let message = format!("is {}, but must be true or false", other.kind());
                    self.problem(&entry.place, name, message, format!("write {default}"));
                    (default, entry.place)
                }
            },
        };
        Placed { value, place }
    }

    /// A list of strings, each turned into a value by `parse`.
    pub fn list<T>(
        &mut self,
        name: &'static str,
        remedy: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Placed<Vec<T>>> {
        let entry = self.take(name)?;
        let Node::Array(items) = entry.node else {
            let message = format!("is {}, but must be a list", entry.node.kind());
            self.problem(&entry.place, name, message, remedy.to_owned());
            return None;
        };
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            let parsed = match &item.node {
                Node::Text(text) => parse(text),
                other => Err(format!("holds {}, but must hold strings", other.kind())),
            };
            match parsed {
                Ok(value) => values.push(value),
                Err(reason) => self.problem(&item.place, name, reason, remedy.to_owned()),
            }
        }
        Some(Placed {
            value: values,
            place: entry.place,
        })
    }

    /// Refuses a key that the contract has and this version does not.
    pub fn not_yet(&mut self, name: &'static str, what: &str) {
        self.refuse(name, &format!("{what} is not in this version"), "remove it");
    }

    /// Refuses a key that makes no sense beside the others.
    pub fn refuse(&mut self, name: &'static str, why: &str, remedy: &str) {
        if let Some(entry) = self.take(name) {
            self.problem(&entry.place, name, why.to_owned(), remedy.to_owned());
        }
    }

    /// Reports every key that nobody asked for, with the nearest that exists.
    pub fn finish(mut self) {
        for (name, entry) in std::mem::take(&mut self.entries) {
            let nearest = self
                .asked
                .iter()
                .map(|known| (strsim::damerau_levenshtein(&name, known), known))
                .min()
                .filter(|(distance, known)| *distance <= 1 + known.len() / 3);
            let remedy = match nearest {
                Some((_, known)) => format!("did you mean `{known}`?"),
                None => {
                    self.asked.sort_unstable();
                    self.asked.dedup();
                    format!("the keys here are {}", self.asked.join(", "))
                }
            };
            self.problem(&entry.place, &name, "unknown key".into(), remedy);
        }
    }
}
