//! Recordings: real drives, replayed with their own times.
//!
//! A [`Recording`] is one of three kinds, told apart by its first line: a candump log (raw CAN
//! frames, perhaps with a CSV of positions beside it), a drive cycle, recorded truck signals.
//! [`Recording::messages`] turns it into the messages its vehicle sends, in the order of their
//! time; pacing them is [`Pace`]'s work, sending them the caller's. Files are read as they are
//! replayed, never as a whole.

mod can;
mod cycle;
mod gnss;
mod lines;
mod moments;
mod pace;
mod truck;

use std::io;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::message::{Channel, Message};

use lines::{Lines, Reports};
use moments::Gathered;

pub use lines::{BadLine, BadLines};
pub use pace::{Pace, Speed, SpeedError};

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The first line is that of none of the formats.
    #[error(
        "{} is no recording we know: it should begin like a candump log `(1533226488.301000) can0 025#00`, a drive cycle `{}` or truck signals `{}`",
        path.display(), cycle::COLUMNS.join(","), truck::COLUMNS.join(",")
    )]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// A column is missing.
    #[error("{} has no column `{column}`; its first line should name {expected}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// All columns.
        expected: String,
    },
    /// Positions beside something that is no candump log.
    #[error("positions ({}) go with a candump log only; {} has its own", gnss.display(), path.display())]
    GnssBeside {
        /// The recording.
        path: PathBuf,
        /// The file with positions.
        gnss: PathBuf,
    },
    /// Frames that fit into no message.
    #[error("frames cannot be sent")]
    Frames {
        /// Why not.
        source: signals::can::FramingError,
    },
    /// Not one line was good.
    #[error("{} has no line that can be replayed ({} were passed over, the first: {})", path.display(), bad.count, first_of(bad))]
    Nothing {
        /// The recording.
        path: PathBuf,
        /// What was passed over.
        bad: BadLines,
    },
}

fn first_of(bad: &BadLines) -> String {
    bad.first
        .first()
        .map_or_else(|| "none".to_owned(), ToString::to_string)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Candump,
    Cycle,
    Truck,
}

/// A recording on disk.
#[derive(Debug, Clone)]
pub struct Recording {
    path: PathBuf,
    gnss: Option<PathBuf>,
    kind: Kind,
}

/// How a recording becomes messages.
#[derive(Debug, Clone, Copy)]
pub struct ReplayOptions {
    /// How much time one message may span.
    pub window: Duration,
    /// When recordings without absolute times start, microseconds since the Unix epoch.
    pub start_us: i64,
}

impl Recording {
    /// Looks at the beginning of a file (and of the positions beside it) and knows what it is.
    ///
    /// # Errors
    /// [`RecordingError`], before anything is sent.
    pub fn open(path: &Path, gnss: Option<&Path>) -> Result<Self, RecordingError> {
        let mut lines = Lines::open(path, Reports::default())?;
        let first = lines.find(|line| Ok(Some(line.to_owned())))?;
        let first = first.unwrap_or_default();
        let has = |columns: &[&str]| {
            let names: Vec<_> = first
                .trim_start_matches('\u{feff}')
                .split(',')
                .map(str::trim)
                .collect();
            columns.iter().all(|column| names.contains(column))
        };
        let kind = if first.trim_start().starts_with('(') {
            Kind::Candump
        } else if has(&cycle::COLUMNS) {
            Kind::Cycle
        } else if has(&truck::COLUMNS) {
            Kind::Truck
        } else {
            return Err(RecordingError::Unknown {
                path: path.to_owned(),
            });
        };
        if let Some(gnss) = gnss {
            if kind != Kind::Candump {
                return Err(RecordingError::GnssBeside {
                    path: path.to_owned(),
                    gnss: gnss.to_owned(),
                });
            }
            gnss::Fixes::new(Lines::open(gnss, Reports::default())?)?;
        }
        Ok(Self {
            path: path.to_owned(),
            gnss: gnss.map(Path::to_owned),
            kind,
        })
    }

    /// Whether its frames need a DBC to be understood.
    pub fn is_raw_can(&self) -> bool {
        self.kind == Kind::Candump
    }

    /// Its messages from the beginning, in the order of their time.
    ///
    /// # Errors
    /// [`RecordingError`] if a file cannot be opened any more.
    pub fn messages(&self, options: ReplayOptions) -> Result<Messages, RecordingError> {
        let reports = Reports::default();
        let window_us = options.window.as_micros().clamp(1, i64::MAX as u128) as i64;
        let lines = Lines::open(&self.path, reports.clone())?;
        let main: MessageSource = match self.kind {
            Kind::Candump => Box::new(can::Batches::new(lines, window_us)),
            Kind::Cycle => Box::new(Gathered::new(
                cycle::Rows::new(lines)?,
                Channel::Drive,
                window_us,
            )),
            Kind::Truck => Box::new(Gathered::new(
                truck::Rows::new(lines, options.start_us)?,
                Channel::Drive,
                window_us,
            )),
        };
        let beside: MessageSource = match &self.gnss {
            None => Box::new(std::iter::empty()),
            Some(gnss) => Box::new(Gathered::new(
                gnss::Fixes::new(Lines::open(gnss, reports.clone())?)?,
                Channel::Gnss,
                window_us,
            )),
        };
        Ok(Messages {
            path: self.path.clone(),
            main: main.peekable(),
            beside: beside.peekable(),
            reports,
            sent: 0,
            over: false,
        })
    }
}

type MessageSource = Box<dyn Iterator<Item = Result<Message, RecordingError>> + Send>;

/// The messages of a recording. Ends after an error.
pub struct Messages {
    path: PathBuf,
    main: Peekable<MessageSource>,
    beside: Peekable<MessageSource>,
    reports: Reports,
    sent: u64,
    over: bool,
}

impl Messages {
    /// The lines passed over so far.
    pub fn bad_lines(&self) -> BadLines {
        self.reports.so_far()
    }

    fn earliest(&mut self) -> Option<Result<Message, RecordingError>> {
        let time = |next: Option<&Result<Message, RecordingError>>| match next {
            Some(Ok(message)) => Some(message.time_us),
            Some(Err(_)) => Some(i64::MIN), // out with it
            None => None,
        };
        match (time(self.main.peek()), time(self.beside.peek())) {
            (Some(main), Some(beside)) if beside < main => self.beside.next(),
            (Some(_), _) => self.main.next(),
            (None, _) => self.beside.next(),
        }
    }
}

impl Iterator for Messages {
    type Item = Result<Message, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.earliest();
        self.over = !matches!(next, Some(Ok(_)));
        if next.is_none() && self.sent == 0 {
            return Some(Err(RecordingError::Nothing {
                path: self.path.clone(),
                bad: self.bad_lines(),
            }));
        }
        self.sent += 1;
        next
    }
}
