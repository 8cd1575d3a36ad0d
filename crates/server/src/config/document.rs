//! A configuration as it was typed: a tree of values, each with the place it came from.
//!
//! The file is read first, then `MILEPOST__SECTION__KEY` variables are laid over it, so that every
//! later complaint can say where the value stands: a line of the file or the name of a variable.
//! What the values mean is decided in `super::reading`.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::Problem;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of a file, counted from 1.
    Line {
        /// The file as the user named it.
        file: Arc<str>,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Variable(Arc<str>),
    /// Nowhere: the key is absent and its default is meant.
    Default,
    /// Not in the text: what it asks for is not to be had on this machine.
    Machine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Default => write!(f, "default"),
            Self::Machine => write!(f, "this machine"),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What was typed.
    pub node: Node,
    /// Where.
    pub place: Place,
}

/// A typed value, before anybody asked what it should be.
#[derive(Debug, Clone)]
pub enum Node {
    /// A section.
    Table(BTreeMap<String, Entry>),
    /// A list, `[[listener]]` among them.
    Array(Vec<Entry>),
    /// A string.
    Text(String),
    /// An integer.
    Integer(i64),
    /// A flag.
    Flag(bool),
    /// A kind of value that no key of this configuration takes (a float, a date).
    Other(&'static str),
}

impl Node {
    /// The kind of value in the words of the TOML specification.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Table(_) => "a section",
            Self::Array(_) => "a list",
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Flag(_) => "true or false",
            Self::Other(kind) => kind,
        }
    }
}

/// Reads TOML text; `file` names it in problems.
pub fn parse(file: &Path, text: &str) -> Result<Entry, Problem> {
    let file: Arc<str> = file.display().to_string().into();
    let place = |offset: usize| Place::Line {
        file: file.clone(),
        line: 1 + text.bytes().take(offset).filter(|&b| b == b'\n').count(),
    };
    let table = DeTable::parse(text).map_err(|error| Problem {
        place: place(error.span().map_or(0, |span| span.start)),
        key: String::new(),
        message: format!("not valid TOML: {}", error.message()),
        remedy: "correct the syntax of this line".into(),
    })?;
    Ok(Entry {
        node: convert_table(table.get_ref(), &place),
        place: place(0),
    })
}

fn convert_table(table: &DeTable<'_>, place: &impl Fn(usize) -> Place) -> Node {
    let entries = table.iter().map(|(key, value)| {
        let mut entry = convert(value, place);
        // The line of the key, not of a value that may start further down.
        entry.place = place(key.span().start);
        (key.get_ref().to_string(), entry)
    });
    Node::Table(entries.collect())
}

fn convert(value: &Spanned<DeValue<'_>>, place: &impl Fn(usize) -> Place) -> Entry {
    let node = match value.get_ref() {
        DeValue::String(text) => Node::Text(text.to_string()),
        DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
            .map_or(Node::Other("an integer beyond 64 bits"), Node::Integer),
        DeValue::Boolean(flag) => Node::Flag(*flag),
        DeValue::Array(items) => {
            Node::Array(items.iter().map(|item| convert(item, place)).collect())
        }
        DeValue::Table(table) => convert_table(table, place),
        DeValue::Float(_) => Node::Other("a float"),
        DeValue::Datetime(_) => Node::Other("a date"),
    };
    Entry {
        node,
        place: place(value.span().start),
    }
}

/// Prefix of the variables that overlay the file.
pub const VARIABLE_PREFIX: &str = "MILEPOST__";

/// Lays `MILEPOST__SECTION__KEY` variables over the document. A number addresses an entry of a list:
/// `MILEPOST__LISTENER__0__BIND`.
pub fn overlay(
    document: &mut Entry,
    variables: impl Iterator<Item = (String, String)>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut variables: Vec<_> = variables
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
        .collect();
    variables.sort();
    for (name, value) in variables {
        let place = Place::Variable(name.as_str().into());
        let path = name[VARIABLE_PREFIX.len()..].to_lowercase();
        let path: Vec<&str> = path.split("__").collect();
        let entry = Entry {
            node: variable_node(&value),
            place: place.clone(),
        };
        if let Err(reason) = set(document, &path, entry) {
            problems.push(Problem {
                place,
                key: path.join("."),
                message: reason,
                remedy: "name a key as MILEPOST__SECTION__KEY, a list entry by its number".into(),
            });
        }
    }
    problems
}

/// `true`, `1024` and `["x509"]` as TOML has them; anything else is the string itself.
fn variable_node(value: &str) -> Node {
    let looks_typed = value == "true"
        || value == "false"
        || value.starts_with('[')
        || (!value.is_empty() && value.bytes().all(|b| b.is_ascii_digit() || b == b'_'));
    let typed = looks_typed
        .then(|| DeValue::parse(value).ok())
        .flatten()
        .map(|parsed| convert(&parsed, &|_| Place::Default).node);
    typed.unwrap_or_else(|| Node::Text(value.to_owned()))
}

fn set(at: &mut Entry, path: &[&str], value: Entry) -> Result<(), String> {
    let Some((head, rest)) = path.split_first() else {
        *at = value;
        return Ok(());
    };
    match &mut at.node {
        Node::Table(table) => {
            let place = value.place.clone();
            let next = table.entry((*head).to_owned()).or_insert_with(|| {
                let is_list = rest.first().is_some_and(|n| n.parse::<usize>().is_ok());
                let node = match is_list {
                    true => Node::Array(Vec::new()),
                    false => Node::Table(BTreeMap::new()),
                };
                Entry { node, place }
            });
            set(next, rest, value)
        }
        Node::Array(items) => {
            let index: usize = head
                .parse()
                .map_err(|_| format!("`{head}` is not a number, but this is a list"))?;
            if index > items.len() {
                return Err(format!(
                    "entry {index} is beyond the list, which has {} entries",
                    items.len()
                ));
            }
            if index == items.len() {
                items.push(Entry {
                    node: Node::Table(BTreeMap::new()),
                    place: value.place.clone(),
                });
            }
            set(&mut items[index], rest, value)
        }
        other => Err(format!("`{head}` lies below {}", other.kind())),
    }
}
