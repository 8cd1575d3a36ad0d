//! Mapping: which DBC signal is which VSS signal, and how its number becomes the VSS unit.
//!
//! ```toml
//! [[signal]]
//! dbc = "SPEED.SPEED"            # MESSAGE.SIGNAL
//! vss = "Vehicle.Speed"
//! unit = "km/h"                  # optional: only where the DBC states this unit
//! plus = ["SPEED.FRACTION"]      # optional: signals of the same message to add first, where the DBC has them
//! scale = 1.0                    # optional: value × scale + offset
//! offset = 0.0
//!
//! [[signal]]
//! dbc = "GEAR_PACKET.GEAR"
//! vss = "Vehicle.Powertrain.Transmission.SelectedGear"
//! values = { 0 = 127, 8 = 0, 16 = -1, 32 = 126 }   # instead of scale and offset: number → number, flag or text
//! otherwise = 0                  # optional; without it, numbers not listed make no reading
//! ```
//!
//! A DBC signal may be named several times, for several VSS signals; it then no longer appears under its DBC
//! name, nor do the signals added to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use crate::json::MAX_NAME_BYTES;
use crate::reading::Value;

/// Rules one mapping may hold: the VSS has 1,367 signals.
const MAX_RULES: usize = 16_384;

/// From DBC signals to VSS signals.
#[derive(Debug, Clone, Default)]
pub struct Mapping {
    /// By `MESSAGE.SIGNAL`.
    rules: HashMap<String, Vec<Rule>>,
}

/// One VSS signal out of one DBC signal.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) vss: Arc<str>,
    /// Names of signals of the same message.
    pub(crate) plus: Vec<String>,
    unit: Option<String>,
    pub(crate) convert: Convert,
}

impl Rule {
    /// Whether the rule is meant for a signal of this unit.
    pub(crate) fn applies(&self, unit: &str) -> bool {
        self.unit.as_deref().is_none_or(|wanted| wanted == unit)
    }
}

/// What becomes of a signal's number.
#[derive(Debug, Clone)]
pub(crate) enum Convert {
    AsItIs,
    Linear {
        scale: f64,
        offset: f64,
    },
    Table {
        rows: Vec<(f64, Value)>,
        otherwise: Option<Value>,
    },
}

impl Convert {
    #[inline]
    pub(crate) fn apply(&self, number: f64) -> Option<Value> {
        match self {
            Convert::AsItIs => Some(Value::Number(number)),
            Convert::Linear { scale, offset } => Some(Value::Number(number * scale + offset)),
            Convert::Table { rows, otherwise } => rows
                .iter()
                .find(|(from, _)| *from == number)
                .map(|(_, to)| to)
                .or(otherwise.as_ref())
                .cloned(),
        }
    }
}

/// Why a mapping is refused.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// Not TOML, or with keys and types a mapping does not have.
    #[error("the mapping cannot be read; it is `[[signal]]` tables with `dbc` and `vss`")]
    Toml {
        /// Line, column and what was expected there.
        source: Box<toml::de::Error>,
    },
    /// More rules than a vehicle can need.
    #[error("the mapping has {0} signals, more than {MAX_RULES}; remove those that are not needed")]
    TooMany(usize),
    /// A rule that contradicts itself.
    #[error("[[signal]] number {number} (dbc = \"{dbc}\"): {problem}")]
    Signal {
        /// Which one, from 1.
        number: usize,
        /// Its DBC name as written.
        dbc: String,
        /// What is wrong with it.
        problem: MappingProblem,
    },
}

/// What can be wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingProblem {
    /// Not `MESSAGE.SIGNAL`.
    #[error("`{0}` is not MESSAGE.SIGNAL")]
    Dbc(String),
    /// Not a path.
    #[error(
        "`vss` must be a path of 1 to {MAX_NAME_BYTES} bytes without spaces, like Vehicle.Speed"
    )]
    Vss,
    /// A signal to add from another message, which arrives at another time.
    #[error("`plus` names {0}, which is in another message")]
    Plus(String),
    /// `values` beside `scale` or `offset`.
    #[error(
        "`values` cannot stand beside `scale` or `offset`; write the wanted numbers into `values`"
    )]
    ValuesAndScale,
    /// `otherwise` without `values`.
    #[error("`otherwise` needs `values`")]
    OtherwiseAlone,
    /// A key of `values` that is no number.
    #[error("`values` has the key `{0}`, which is not a number")]
    Key(String),
    /// Not a finite number.
    #[error("`scale` must be finite and not 0, all other numbers finite")]
    Number,
    /// The same pair of names again.
    #[error("mapped to this `vss` before; remove one")]
    Twice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMapping {
    #[serde(default)]
    signal: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    dbc: String,
    vss: String,
    #[serde(default)]
    plus: Vec<String>,
    unit: Option<String>,
    scale: Option<f64>,
    offset: Option<f64>,
    values: Option<BTreeMap<String, RawValue>>,
    otherwise: Option<RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawValue {
    Flag(bool),
    Number(f64),
    Text(String),
}

impl Mapping {
    /// Reads a mapping from TOML.
    ///
    /// # Errors
    /// [`MappingError`] names the place, what is wrong there and the remedy.
    pub fn parse(text: &str) -> Result<Mapping, MappingError> {
        let raw: RawMapping = toml::from_str(text).map_err(|source| MappingError::Toml {
            source: Box::new(source),
        })?;
        if raw.signal.len() > MAX_RULES {
            return Err(MappingError::TooMany(raw.signal.len()));
        }
        let mut mapping = Mapping::default();
        for (index, raw) in raw.signal.into_iter().enumerate() {
            let dbc = raw.dbc.clone();
            mapping.add(raw).map_err(|problem| MappingError::Signal {
                number: index + 1,
                dbc,
                problem,
            })?;
        }
        Ok(mapping)
    }

    /// The names of opendbc's Toyota files and of common J1939 files. A DBC that happens to use the same name
    /// for something else is mostly told apart by its unit; give a model its own mapping where that is not enough.
    #[must_use]
    pub fn builtin() -> &'static Mapping {
        static BUILTIN: LazyLock<Mapping> = LazyLock::new(|| {
            let mut all = Mapping::default();
            for text in [
                include_str!("mapping/toyota.toml"),
                include_str!("mapping/j1939.toml"),
            ] {
                let part = Mapping::parse(text).expect("part of the program, read in a test");
                all.rules.extend(part.rules);
            }
            all
        });
        &BUILTIN
    }

    /// Every VSS path this mapping can produce, with repetitions.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.rules.values().flatten().map(|rule| &*rule.vss)
    }

    pub(crate) fn rules(&self, message: &str, signal: &str) -> &[Rule] {
        let name = format!("{message}.{signal}");
        self.rules.get(&name).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, raw: RawRule) -> Result<(), MappingProblem> {
        let (message, _) = message_and_signal(&raw.dbc)?;
        let vss_is_path = (1..=MAX_NAME_BYTES).contains(&raw.vss.len())
            && !raw.vss.chars().any(|c| c.is_whitespace() || c.is_control());
        if !vss_is_path {
            return Err(MappingProblem::Vss);
        }
        let mut plus = Vec::with_capacity(raw.plus.len());
        for name in &raw.plus {
            let (other, signal) = message_and_signal(name)?;
            if other != message {
                return Err(MappingProblem::Plus(name.clone()));
            }
            plus.push(signal.to_owned());
        }
        let convert = match (raw.values, raw.otherwise, raw.scale, raw.offset) {
            (Some(rows), otherwise, None, None) => Convert::Table {
                rows: rows.into_iter().map(row).collect::<Result<_, _>>()?,
                otherwise: otherwise.map(value).transpose()?,
            },
            (Some(_), ..) => return Err(MappingProblem::ValuesAndScale),
            (None, Some(_), ..) => return Err(MappingProblem::OtherwiseAlone),
            (None, None, None, None) => Convert::AsItIs,
            (None, None, scale, offset) => {
                let (scale, offset) = (scale.unwrap_or(1.0), offset.unwrap_or(0.0));
                if !scale.is_finite() || scale == 0.0 || !offset.is_finite() {
                    return Err(MappingProblem::Number);
                }
                Convert::Linear { scale, offset }
            }
        };
        let rules = self.rules.entry(raw.dbc).or_default();
        if rules.iter().any(|rule| *rule.vss == *raw.vss) {
            return Err(MappingProblem::Twice);
        }
        rules.push(Rule {
            vss: Arc::from(raw.vss),
            plus,
            unit: raw.unit,
            convert,
        });
        Ok(())
    }
}

fn message_and_signal(name: &str) -> Result<(&str, &str), MappingProblem> {
    name.split_once('.')
        .filter(|(message, signal)| {
            !message.is_empty() && !signal.is_empty() && !signal.contains('.')
        })
        .ok_or_else(|| MappingProblem::Dbc(name.to_owned()))
}

fn row((key, raw): (String, RawValue)) -> Result<(f64, Value), MappingProblem> {
    match key.parse::<f64>() {
        Ok(from) if from.is_finite() => Ok((from, value(raw)?)),
        _ => Err(MappingProblem::Key(key)),
    }
}

fn value(raw: RawValue) -> Result<Value, MappingProblem> {
    match raw {
        RawValue::Flag(flag) => Ok(Value::Flag(flag)),
        RawValue::Number(number) if number.is_finite() => Ok(Value::Number(number)),
        RawValue::Number(_) => Err(MappingProblem::Number),
        RawValue::Text(text) => Ok(Value::Text(Arc::from(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_mapping_reads_and_its_paths_are_in_the_catalogue() {
        let catalogue = crate::Catalogue::builtin();
        let mut count = 0;
        for path in Mapping::builtin().paths() {
            assert!(
                catalogue.get(path).is_some(),
                "{path} is not in catalogue.toml"
            );
            count += 1;
        }
        assert!(count > 40, "{count}");
    }

    #[test]
    fn rules_become_conversions() {
        let mapping = Mapping::parse(
            r#"
            [[signal]]
            dbc = "A.B"
            vss = "X.Scaled"
            scale = 2
            offset = -1
            [[signal]]
            dbc = "A.B"
            vss = "X.Word"
            values = { 0 = "OFF", "1.5" = true, -2 = 7 }
            otherwise = "OTHER"
            [[signal]]
            dbc = "A.C"
            vss = "X.Listed"
            unit = "km/h"
            values = { 0 = false }
            "#,
        )
        .expect("reads");
        let [scaled, word] = mapping.rules("A", "B") else {
            panic!("two rules for A.B");
        };
        assert_eq!(scaled.convert.apply(4.0), Some(Value::Number(7.0)));
        assert_eq!(word.convert.apply(0.0), Some(Value::from("OFF")));
        assert_eq!(word.convert.apply(1.5), Some(Value::Flag(true)));
        assert_eq!(word.convert.apply(-2.0), Some(Value::Number(7.0)));
        assert_eq!(word.convert.apply(9.0), Some(Value::from("OTHER")));
        let [listed] = mapping.rules("A", "C") else {
            panic!("one rule for A.C");
        };
        assert_eq!(listed.convert.apply(1.0), None);
        assert!(listed.applies("km/h") && !listed.applies("mph"));
        assert!(mapping.rules("A", "D").is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rows = [
            (
                "dbc = \"SPEED\"\nvss = \"V.S\"",
                "`SPEED` is not MESSAGE.SIGNAL",
            ),
            (
                "dbc = \"A.B.C\"\nvss = \"V.S\"",
                "`A.B.C` is not MESSAGE.SIGNAL",
            ),
            ("dbc = \"A.B\"\nvss = \"\"", "`vss` must be a path"),
            ("dbc = \"A.B\"\nvss = \"V S\"", "`vss` must be a path"),
            (
                "dbc = \"A.B\"\nvss = \"V\"\nplus = [\"C.D\"]",
                "`plus` names C.D",
            ),
            (
                "dbc = \"A.B\"\nvss = \"V\"\nscale = 2\nvalues = { 1 = 1 }",
                "`values` cannot stand beside",
            ),
            (
                "dbc = \"A.B\"\nvss = \"V\"\notherwise = 1",
                "`otherwise` needs `values`",
            ),
            (
                "dbc = \"A.B\"\nvss = \"V\"\nvalues = { one = 1 }",
                "the key `one`",
            ),
            (
                "dbc = \"A.B\"\nvss = \"V\"\nvalues = { nan = 1 }",
                "the key `nan`",
            ),
            (
                "dbc = \"A.B\"\nvss = \"V\"\nscale = 0",
                "`scale` must be finite and not 0",
            ),
            (
                "dbc = \"A.B\"\nvss = \"V\"\noffset = inf",
                "`scale` must be finite and not 0",
            ),
        ];
        for (rule, expected) in rows {
            let text = format!("[[signal]]\ndbc = \"OK.OK\"\nvss = \"V\"\n[[signal]]\n{rule}\n");
            let error = Mapping::parse(&text).expect_err(rule).to_string();
            assert!(error.starts_with("[[signal]] number 2"), "{rule}: {error}");
            assert!(error.contains(expected), "{rule}: {error}");
        }
        let twice = "[[signal]]\ndbc = \"A.B\"\nvss = \"V\"\n".repeat(2);
        let error = Mapping::parse(&twice).expect_err("twice").to_string();
        assert!(error.contains("mapped to this `vss` before"), "{error}");
        for text in [
            "[[signal]]\ndbc = \"A.B\"\nvss = \"V\"\nscales = 2",
            "[[signal]]\ndbc = 1",
            "[signal",
        ] {
            assert!(
                matches!(Mapping::parse(text), Err(MappingError::Toml { .. })),
                "{text}"
            );
        }
    }
}
