//! Open files: a connection is one, and the usual limit of 1,024 is fewer than a fleet has.

use rustix::process::{Resource, getrlimit, setrlimit};

/// The system does not allow as many open files as are needed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{wanted} open files are needed, the hard limit is {limit}; raise it (`ulimit -Hn`, or LimitNOFILE of the service) or use fewer connections"
)]
pub struct OpenFilesError {
    /// How many are needed.
    pub wanted: u64,
    /// How many are allowed.
    pub limit: u64,
}

/// Files a process has open besides connections: a generous guess.
const OTHERS: u64 = 100;

/// Raises this process's limit so that `connections` fit, if the hard limit allows.
///
/// # Errors
/// [`OpenFilesError`] if it does not.
pub fn allow_open_files(connections: usize) -> Result<(), OpenFilesError> {
    let wanted = connections as u64 + OTHERS;
    let mut limit = getrlimit(Resource::Nofile);
    // `None` is unlimited. Twice, for the other end of the connections if it is here too.
    if limit.current.is_none_or(|current| current >= 2 * wanted) {
        return Ok(());
    }
    if let Some(hard) = limit.maximum
        && hard < wanted
    {
        return Err(OpenFilesError {
            wanted,
            limit: hard,
        });
    }
    // All that is allowed, not only what we need: a server in the same process needs as many again.
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).map_err(|_| OpenFilesError {
        wanted,
        limit: limit.maximum.unwrap_or(u64::MAX),
    })
}
