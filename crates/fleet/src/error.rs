//! What can go wrong, sorted by what the caller can do about it.
//!
//! The first five variants are answers to a request (an edge turns them into 404, 409, 422, 412,
//! 409); the rest is the operator's: files, modes, disk, database. No variant ever carries a
//! private key or the text of a certificate request.

use std::{fmt, io, path::PathBuf};

/// The kinds of things this crate keeps, as named in errors and in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A vehicle.
    Vehicle,
    /// A vehicle identification number, unique over all vehicles.
    Vin,
    /// A device of a vehicle.
    Device,
    /// A device's certificate, named by its serial.
    Certificate,
    /// A vehicle model.
    Model,
    /// The fleet's own certificate authority.
    Authority,
    /// A certificate of this server.
    ServerCertificate,
    /// A ban, named by its target.
    Ban,
    /// An MQTT client, named as the broker names it. Kept by the broker, here only in the audit log.
    Client,
}

impl Kind {
    /// The word used in texts and in the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vehicle => "vehicle",
            Self::Vin => "VIN",
            Self::Device => "device",
            Self::Certificate => "certificate",
            Self::Model => "model",
            Self::Authority => "authority",
            Self::ServerCertificate => "server certificate",
            Self::Ban => "ban",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything an operation of this crate can fail with.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Nothing of that kind has this id.
    #[error("{kind} `{id}` does not exist")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// The id that was asked for.
        id: String,
    },
    /// The id, or the VIN, is taken.
    #[error("{kind} `{id}` is already registered; read or update the existing one")]
    AlreadyExists {
        /// What is taken.
        kind: Kind,
        /// The taken id.
        id: String,
    },
    /// An input breaks a rule; `reason` names the limit and the remedy.
    #[error("{field}: {reason}")]
    Invalid {
        /// The offending input.
        field: &'static str,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// The caller's `if_match` is not the version the row has now.
    #[error(
        "{kind} `{id}` is at version {current}, the change was made for version {expected}; read it again, then repeat the change"
    )]
    Conflict {
        /// What was to be changed.
        kind: Kind,
        /// Its id.
        id: String,
        /// The version the caller named.
        expected: u64,
        /// The version it has.
        current: u64,
    },
    /// The operation needs the vehicle or device to be enabled.
    #[error("{kind} `{id}` is disabled; enable it first")]
    Disabled {
        /// What is disabled.
        kind: Kind,
        /// Its id.
        id: String,
    },
    /// Another process works on this data directory.
    #[error(
        "{path} is locked: another process uses this data directory; stop it first or choose another directory"
    )]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// A private key can be read by others than its owner.
    #[error(
        "{path} holds a private key but has mode {mode:03o}; make it private with `chmod 600` and consider who may have read it"
    )]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// One half of the fleet CA is there, the other is not.
    #[error(
        "the fleet CA is incomplete: {missing} does not exist; restore it from a backup, or move {present} away to start a new CA (every device then needs a new certificate)"
    )]
    AuthorityIncomplete {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// The files of the fleet CA are there but cannot serve as one.
    #[error(
        "{path} cannot be used as the fleet CA: {reason}; restore ca.pem and ca.key together from one backup"
    )]
    AuthorityUnusable {
        /// The offending file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The fleet CA is past its end and signs nothing any more.
    #[error("the fleet CA ended at {not_after}; it signs nothing any more, a new CA is needed")]
    AuthorityExpired {
        /// Its end.
        not_after: jiff::Timestamp,
    },
    /// Making or signing a certificate failed.
    #[error("{doing}")]
    Certify {
        /// What was being made.
        doing: &'static str,
        /// The cause.
        source: rcgen::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system's random generator gives nothing; no certificate can be made")]
    NoEntropy,
    /// The database refused or failed.
    #[error("state store: {doing}")]
    Storage {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        source: sqlx::Error,
    },
    /// The database's schema could not be brought up to date.
    #[error("state store {path}: bring the schema up to date")]
    Migrate {
        /// The database.
        path: PathBuf,
        /// The cause.
        source: sqlx::migrate::MigrateError,
    },
    /// A stored row does not hold what this program writes.
    #[error("state store: {table} `{id}` is damaged: {reason}; restore fleet.db from a backup")]
    Damaged {
        /// The table.
        table: &'static str,
        /// The row.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl FleetError {
    pub(crate) fn not_found(kind: Kind, id: impl fmt::Display) -> Self {
        Self::NotFound {
            kind,
            id: id.to_string(),
        }
    }

    pub(crate) fn already_exists(kind: Kind, id: impl fmt::Display) -> Self {
        Self::AlreadyExists {
            kind,
            id: id.to_string(),
        }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            reason: reason.into(),
        }
    }

    pub(crate) fn disabled(kind: Kind, id: impl fmt::Display) -> Self {
        Self::Disabled {
            kind,
            id: id.to_string(),
        }
    }

    /// For `map_err` on database calls: keeps the cause and says what was being done.
    pub(crate) fn storage(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Storage { doing, source }
    }

    /// For `map_err` on file calls.
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing,
            path: path.into(),
            source,
        }
    }

    /// For `map_err` on certificate making.
    pub(crate) fn certify(doing: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Certify { doing, source }
    }
}
