//! One thing that is wrong with a configuration: where, what, and what to do about it.

use std::fmt;

use super::document::Place;

/// A reason not to start.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// The key, as `section.key`; empty when the whole file is meant.
    pub key: String,
    /// What is wrong, with the value that was given.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

/// Everything that is wrong, in the order of the document. Never empty.
#[derive(Debug, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
