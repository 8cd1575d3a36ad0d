//! Catalogue: what is known about a signal besides its values. Ours is the part of the VSS (COVESA Vehicle
//! Signal Specification) that the built-in mappings and the simulator send; the whole tree, or an OEM's overlay
//! of it, is read from the JSON that COVESA's tools export.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

/// What is known about signals, by path.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    signals: BTreeMap<Arc<str>, SignalInfo>,
}

/// What is known about one signal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SignalInfo {
    /// Type in the words of the VSS: `float`, `uint8`, `boolean`, `string[]`, …
    pub datatype: String,
    /// Unit in the words of the VSS (`km/h`, `percent`, `Celsius`) or of the DBC.
    pub unit: Option<String>,
    /// One sentence.
    pub description: String,
    /// The only values a VSS signal may have; empty if any.
    pub allowed: Vec<String>,
    /// What single numbers of a DBC signal mean (`VAL_`); empty for VSS signals.
    pub words: BTreeMap<i64, String>,
}

/// Why a catalogue is refused.
#[derive(Debug, thiserror::Error)]
#[error("this is not a VSS tree as COVESA's vss-tools export it (`vspec export json`)")]
pub struct CatalogueError {
    /// Line, column and what was expected there.
    #[source]
    source: serde_json::Error,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Node {
    Branch {
        #[serde(default)]
        children: BTreeMap<String, Node>,
    },
    Sensor(Leaf),
    Actuator(Leaf),
    Attribute(Leaf),
    /// A struct type and its members: describe values, are none.
    Struct {},
    Property {},
}

#[derive(Deserialize)]
struct Leaf {
    datatype: String,
    unit: Option<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    allowed: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    signal: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    path: String,
    datatype: String,
    unit: Option<String>,
    description: String,
    #[serde(default)]
    allowed: Vec<String>,
}

impl Catalogue {
    /// The signals that the built-in mappings and the simulator send.
    #[must_use]
    pub fn builtin() -> &'static Catalogue {
        static BUILTIN: LazyLock<Catalogue> = LazyLock::new(|| {
            let table: Table = toml::from_str(include_str!("catalogue.toml"))
                .expect("part of the program, read in a test");
            let rows = table.signal.into_iter().map(|row| {
                let info = SignalInfo {
                    datatype: row.datatype,
                    unit: row.unit,
                    description: row.description,
                    allowed: row.allowed,
                    words: BTreeMap::new(),
                };
                (Arc::from(row.path), info)
            });
            Catalogue {
                signals: rows.collect(),
            }
        });
        &BUILTIN
    }

    /// Reads the tree that COVESA's vss-tools export as JSON.
    ///
    /// # Errors
    /// [`CatalogueError`] when it is none.
    pub fn from_vss_json(text: &str) -> Result<Catalogue, CatalogueError> {
        let roots: BTreeMap<String, Node> =
            serde_json::from_str(text).map_err(|source| CatalogueError { source })?;
        let mut catalogue = Catalogue::default();
        for (name, root) in roots {
            catalogue.take(name, root);
        }
        Ok(catalogue)
    }

    /// What is known about a signal.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&SignalInfo> {
        self.signals.get(path)
    }

    /// All signals in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SignalInfo)> {
        self.signals.iter().map(|(path, info)| (&**path, info))
    }

    /// Number of signals.
    #[must_use]
    pub fn len(&self) -> usize {
        self.signals.len()
    }

    /// Whether there is no signal in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signals.is_empty()
    }

    /// Adds a signal, or replaces what was known about it.
    pub fn insert(&mut self, path: Arc<str>, info: SignalInfo) {
        self.signals.insert(path, info);
    }

    /// The depth of the recursion is that of the JSON, which the parser bounds.
    fn take(&mut self, path: String, node: Node) {
        match node {
            Node::Branch { children } => {
                for (name, child) in children {
                    self.take(format!("{path}.{name}"), child);
                }
            }
            Node::Sensor(leaf) | Node::Actuator(leaf) | Node::Attribute(leaf) => {
                let word = |value: serde_json::Value| match value {
                    serde_json::Value::String(word) => word,
                    other => other.to_string(),
                };
                let info = SignalInfo {
                    datatype: leaf.datatype,
                    unit: leaf.unit,
                    description: leaf.description,
                    allowed: leaf.allowed.into_iter().map(word).collect(),
                    words: BTreeMap::new(),
                };
                self.insert(Arc::from(path), info);
            }
            Node::Struct {} | Node::Property {} => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_reads() {
        let speed = Catalogue::builtin().get("Vehicle.Speed").expect("speed");
        assert_eq!(speed.unit.as_deref(), Some("km/h"));
        assert_eq!(speed.datatype, "float");
        for (path, info) in Catalogue::builtin().iter() {
            assert!(path.starts_with("Vehicle."), "{path}");
            assert!(info.description.ends_with('.'), "{path}");
        }
    }

    #[test]
    fn a_vss_tree_becomes_paths() {
        let tree = r#"{"Vehicle": {"type": "branch", "description": "", "children": {
            "Speed": {"type": "sensor", "datatype": "float", "unit": "km/h", "description": "How fast.", "min": 0},
            "Door": {"type": "branch", "description": "", "children": {
                "IsOpen": {"type": "actuator", "datatype": "boolean", "description": "Open?"}}},
            "Levels": {"type": "attribute", "datatype": "uint8", "description": "", "allowed": [1, 2]}
        }}}"#;
        let catalogue = Catalogue::from_vss_json(tree).expect("reads");
        let paths: Vec<_> = catalogue.iter().map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            ["Vehicle.Door.IsOpen", "Vehicle.Levels", "Vehicle.Speed"]
        );
        let speed = catalogue.get("Vehicle.Speed").expect("speed");
        assert_eq!(
            (speed.unit.as_deref(), speed.datatype.as_str()),
            (Some("km/h"), "float")
        );
        assert_eq!(
            catalogue.get("Vehicle.Levels").expect("levels").allowed,
            ["1", "2"]
        );
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        for text in [
            "",
            "[]",
            "{\"Vehicle\": 1}",
            "{\"Vehicle\": {\"type\": \"twig\"}}",
        ] {
            assert!(Catalogue::from_vss_json(text).is_err(), "{text}");
        }
    }
}
