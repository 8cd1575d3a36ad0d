//! Lines of a recording, and what is wrong with some of them.
//!
//! A recording of a day has a broken line somewhere. It is passed over and reported with its number
//! and reason; only a recording without any good line is an error.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::RecordingError;

/// Longest line that is read: the longest legal one (a CAN FD frame) has about 180 bytes.
const LONGEST_LINE: u64 = 4_096;
/// Reports kept word for word; the rest is counted.
const REPORTS_KEPT: usize = 20;

/// A line that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// The file's name.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.reason)
    }
}

/// All lines that were passed over: the first 20 in words, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadLines {
    /// The first of them.
    pub first: Vec<BadLine>,
    /// How many there were.
    pub count: u64,
}

/// Where readers report bad lines to. Shared by the readers of one replay.
#[derive(Debug, Clone, Default)]
pub(super) struct Reports {
    kept: Arc<Mutex<BadLines>>,
}

impl Reports {
    fn add(&self, path: &Path, line: u64, reason: String) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.count += 1;
        if kept.first.len() < REPORTS_KEPT {
            let file = path.file_name().unwrap_or(path.as_os_str());
            kept.first.push(BadLine {
                file: file.to_string_lossy().into_owned(),
                line,
                reason,
            });
        }
    }

    pub(super) fn so_far(&self) -> BadLines {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Reads a file line by line.
pub(super) struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    number: u64,
    bytes: Vec<u8>,
    reports: Reports,
}

impl Lines {
    pub(super) fn open(path: &Path, reports: Reports) -> Result<Self, RecordingError> {
        let file = File::open(path).map_err(|source| unreadable(path, source))?;
        Ok(Self {
            reader: BufReader::with_capacity(64 * 1024, file),
            path: path.to_owned(),
            number: 0,
            bytes: Vec::new(),
            reports,
        })
    }

    /// Hands the next lines to `read` until it makes something of one; `None` at the end. What it
    /// says about a line it cannot use (`Err`) is reported; `Ok(None)` passes a line over silently.
    pub(super) fn find<T>(
        &mut self,
        mut read: impl FnMut(&str) -> Result<Option<T>, String>,
    ) -> Result<Option<T>, RecordingError> {
        while self.fill()? {
            let text = match std::str::from_utf8(&self.bytes) {
                Ok(text) => text.trim_end_matches(['\r', '\n']),
                Err(_) => {
                    self.complain("is not UTF-8 text".into());
                    continue;
                }
            };
            if text.trim().is_empty() {
                continue;
            }
            match read(text) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(reason) => self.complain(reason),
            }
        }
        Ok(None)
    }

    /// The places of these columns in the file's header, which is its first line.
    pub(super) fn header<const N: usize>(
        &mut self,
        columns: [&'static str; N],
    ) -> Result<[usize; N], RecordingError> {
        let header = self
            .find(|line| Ok(Some(line.to_owned())))?
            .unwrap_or_default();
        // A byte order mark is how some spreadsheets begin a file.
        let header = header.trim_start_matches('\u{feff}');
        let mut places = [0; N];
        for (place, column) in places.iter_mut().zip(columns) {
            *place = header
                .split(',')
                .position(|name| name.trim() == column)
                .ok_or_else(|| RecordingError::Column {
                    path: self.path.clone(),
                    column,
                    expected: columns.join(","),
                })?;
        }
        Ok(places)
    }

    fn complain(&self, reason: String) {
        self.reports.add(&self.path, self.number, reason);
    }

    /// Reads one line into `bytes`; longer ones than allowed are reported and passed over.
    fn fill(&mut self) -> Result<bool, RecordingError> {
        loop {
            self.bytes.clear();
            let failed = |source| unreadable(&self.path, source);
            let mut limited = (&mut self.reader).take(LONGEST_LINE);
            let read = limited.read_until(b'\n', &mut self.bytes).map_err(failed)?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if self.bytes.ends_with(b"\n") || (read as u64) < LONGEST_LINE {
                return Ok(true);
            }
            self.reader.skip_until(b'\n').map_err(failed)?;
            self.complain(format!("is longer than {LONGEST_LINE} bytes"));
        }
    }
}

pub(super) fn unreadable(path: &Path, source: io::Error) -> RecordingError {
    RecordingError::Read {
        path: path.to_owned(),
        source,
    }
}

/// The columns of a CSV line at these places.
pub(super) fn columns<const N: usize>(line: &str, places: [usize; N]) -> Result<[&str; N], String> {
    let mut found = [""; N];
    let mut count = 0;
    let mut seen = [false; N];
    for (index, text) in line.split(',').enumerate() {
        count += 1;
        for (which, place) in places.iter().enumerate() {
            if *place == index {
                found[which] = text.trim();
                seen[which] = true;
            }
        }
    }
    if seen.contains(&false) {
        return Err(format!("has only {count} columns"));
    }
    Ok(found)
}

/// A finite number in a column.
pub(super) fn number(text: &str, column: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|number| number.is_finite())
        .ok_or_else(|| format!("`{column}` is `{}`, not a number", excerpt(text)))
}

/// A number within a range.
pub(super) fn number_in(
    text: &str,
    column: &str,
    range: std::ops::RangeInclusive<f64>,
) -> Result<f64, String> {
    let number = number(text, column)?;
    if range.contains(&number) {
        Ok(number)
    } else {
        let (low, high) = (range.start(), range.end());
        Err(format!("`{column}` is {number}, outside {low} to {high}"))
    }
}

/// The beginning of a text from outside, fit for a message.
pub(super) fn excerpt(text: &str) -> String {
    text.chars()
        .take(40)
        .flat_map(char::escape_default)
        .collect()
}
