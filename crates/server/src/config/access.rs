//! `[access]`: what clients without credentials may do.

use super::reading::{Placed, Section};

/// `access.anonymous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Refused.
    Deny,
    /// Let in with access to everything: for benchmarks and trials on loopback.
    AllowAll,
}

/// The section, for the listeners to be held against.
pub(super) struct Access {
    pub(super) anonymous: Placed<Anonymous>,
    pub(super) danger_allow_open: bool,
}

pub(super) fn read(mut section: Section<'_>) -> Access {
    let anonymous = section.text(
        "anonymous",
        Anonymous::Deny,
        "write \"deny\", or \"allow-all\" for a trial on loopback",
        |text| match text {
            "deny" => Ok(Anonymous::Deny),
            "allow-all" => Ok(Anonymous::AllowAll),
            other => Err(format!("\"{other}\" is not a rule")),
        },
    );
    let danger_allow_open = section.flag("danger_allow_open", false);
    section.finish();
    Access {
        anonymous,
        danger_allow_open,
    }
}
