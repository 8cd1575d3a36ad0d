//! What can go wrong at the boundary of the journal: one variant per thing a caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another [`Journal`](crate::Journal) in this one) holds the directory.
    #[error(
        "journal directory {dir} is in use by {holder}; stop it first, or give this one another directory",
        dir = .dir.display()
    )]
    InUse {
        /// The journal's directory.
        dir: PathBuf,
        /// Who holds it, as far as the lock file tells.
        holder: String,
    },
    /// An option outside its range.
    #[error("journal: {key} = {value} is out of range; allowed is {allowed}")]
    Option {
        /// Field of [`Options`](crate::Options).
        key: &'static str,
        /// What was asked for.
        value: u64,
        /// The range.
        allowed: &'static str,
    },
    /// Written by a newer program.
    #[error(
        "{file} has format version {found}, this program reads version 1; \
         open the directory with the program that wrote it, or move it away",
        file = .file.display()
    )]
    Version {
        /// The segment.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Bytes that were durable are not what was written.
    #[error(
        "{file} is damaged at byte {at}: {reason}; durable records behind it would be lost, so nothing was changed: \
         restore the whole directory from a backup, or move it away to start empty",
        file = .file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in the file.
        at: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// A segment between others is not there.
    #[error(
        "{file} is missing, files before and after it are there; \
         restore the whole directory from a backup, or move it away to start empty",
        file = .file.display()
    )]
    Missing {
        /// The segment.
        file: PathBuf,
    },
    /// The operating system refused.
    #[error("{action} {file} failed; check that the directory exists, is writable and has space", file = .file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> OpenError {
        move |source| OpenError::Io {
            action,
            file: file.to_owned(),
            source,
        }
    }
}

/// Why recovered records cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file was good when it was opened and is not any more.
    #[error(
        "{file} is damaged at byte {at}: {reason}; check the disk (dmesg, SMART), then start again",
        file = .file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in the file.
        at: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The journal was closed before its records were read.
    #[error("the journal is closed; open it again to read its records")]
    Closed,
    /// The operating system refused.
    #[error("reading {file} failed; check the disk and the file's owner and mode", file = .file.display())]
    Io {
        /// The segment.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why nothing becomes durable at present. The journal keeps what was submitted and tries again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StallError {
    /// The disk is full.
    #[error("no space left to write {file}; free disk space", file = .file.display())]
    DiskFull {
        /// The segment.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk failed.
    #[error("{action} {file} failed; check the disk (dmesg, SMART) and the file's owner and mode", file = .file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The segment or the directory.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A defect of the journal: its writer thread panicked, and nothing becomes durable any more.
    #[error(
        "the journal's writer has panicked; restart the program, and report the panic it logged"
    )]
    Panicked,
}

/// What was submitted did not all become durable before the journal was closed.
#[derive(Debug, thiserror::Error)]
#[error(
    "the journal was closed with {batches} batches ({bytes} bytes) that could not be made durable"
)]
pub struct CloseError {
    /// Batches that are lost; the last ones submitted.
    pub batches: u64,
    /// Their bytes.
    pub bytes: usize,
    /// What kept them from the disk.
    pub source: Arc<StallError>,
}
