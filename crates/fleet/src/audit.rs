//! Who did what: every change of the registry, and every refused certificate, is a row.
//!
//! The row is written in the same transaction as the change, so neither exists without the other.
//! Refusals that change nothing (a wrong id, a lost race) are answers and not acts; asking for a
//! certificate one may not have is an act, so those are kept with outcome `refused`.

use std::{fmt, sync::Arc};

use serde_json::Value;
use sqlx::{AnyConnection, Row, any::AnyRow};
use uuid::Uuid;

use crate::{Fleet, FleetError, Kind, Page, PageRequest, fleet::now_us};

/// Who acts: a person, a service, a job. Given by the caller, who has authenticated them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(Arc<str>);

impl Actor {
    /// For example `person:anna` or `service:factory-line-2`; 1 to 200 printable characters.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] when empty, too long or with control characters.
    pub fn new(name: &str) -> Result<Self, FleetError> {
        let length = name.chars().count();
        if !(1..=200).contains(&length) {
            return Err(FleetError::invalid(
                "actor",
                format!("has {length} characters; allowed are 1 to 200"),
            ));
        }
        if name.chars().any(char::is_control) {
            return Err(FleetError::invalid("actor", "holds a control character"));
        }
        Ok(Self(name.into()))
    }

    /// Milepost itself, for what it does without being asked.
    pub fn system() -> Self {
        Self("system".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How an act ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, and is on disk.
    Done,
    /// It was refused; `details.reason` says why.
    Refused,
}

impl Outcome {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// One row of the audit log.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    /// Unique; later entries have larger ids.
    pub id: String,
    /// When, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// Who.
    pub actor: String,
    /// What, for example `vehicle.create`.
    pub action: String,
    /// On what kind of thing, in the words of [`Kind::as_str`].
    pub object_kind: String,
    /// On which one.
    pub object_id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What else there is to say, an object.
    pub details: Value,
}

/// An act about to be recorded.
pub(crate) struct Act<'a> {
    pub(crate) action: &'static str,
    pub(crate) kind: Kind,
    pub(crate) id: &'a str,
    pub(crate) outcome: Outcome,
    pub(crate) details: Value,
}

impl<'a> Act<'a> {
    pub(crate) fn done(action: &'static str, kind: Kind, id: &'a str, details: Value) -> Self {
        Self {
            action,
            kind,
            id,
            outcome: Outcome::Done,
            details,
        }
    }
}

pub(crate) async fn record(
    connection: &mut AnyConnection,
    actor: &Actor,
    act: Act<'_>,
) -> Result<(), FleetError> {
    sqlx::query(
        "INSERT INTO audit (id, time_us, actor, action, object_kind, object_id, outcome, details) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(now_us())
    .bind(actor.as_str())
    .bind(act.action)
    .bind(act.kind.as_str())
    .bind(act.id)
    .bind(act.outcome.as_str())
    .bind(act.details.to_string())
    .execute(connection)
    .await
    .map_err(FleetError::storage("write the audit log"))?;
    Ok(())
}

const LIST: &str = "audit";
/// Above every id: ids begin with a hexadecimal digit, and letters sort above digits everywhere.
const ABOVE_ALL: &str = "g";

impl Fleet {
    /// Records what an operator is about to do with something that is not kept here, a client of the
    /// broker for one. Before the act, so that none is missing.
    ///
    /// # Errors
    /// [`FleetError::Storage`]; then the act should not happen.
    pub async fn record(
        &self,
        actor: &Actor,
        action: &'static str,
        kind: Kind,
        id: &str,
        details: Value,
    ) -> Result<(), FleetError> {
        let mut turn = self.store().write().await?;
        record(
            turn.connection(),
            actor,
            Act::done(action, kind, id, details),
        )
        .await?;
        turn.commit().await?;
        Ok(())
    }

    /// The audit log, newest first: all of it, or what happened to one thing.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for a foreign cursor, [`FleetError::Storage`].
    pub async fn list_audit(
        &self,
        about: Option<(Kind, &str)>,
        request: &PageRequest,
    ) -> Result<Page<AuditEntry>, FleetError> {
        let below = request.after(LIST)?.unwrap_or_else(|| ABOVE_ALL.to_owned());
        let query = match about {
            None => sqlx::query("SELECT * FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2")
                .bind(below)
                .bind(request.fetch_limit()),
            Some((kind, id)) => sqlx::query(
                "SELECT * FROM audit WHERE id < $1 AND object_kind = $3 AND object_id = $4 \
                 ORDER BY id DESC LIMIT $2",
            )
            .bind(below)
            .bind(request.fetch_limit())
            .bind(kind.as_str())
            .bind(id),
        };
        let rows = query
            .fetch_all(self.store().pool())
            .await
            .map_err(FleetError::storage("read the audit log"))?;
        let entries = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(request.page(LIST, entries, |entry: &AuditEntry| &entry.id))
    }
}

fn read(row: &AnyRow) -> Result<AuditEntry, FleetError> {
    let fields = || {
        Ok::<_, sqlx::Error>((
            AuditEntry {
                id: row.try_get("id")?,
                time_us: row.try_get("time_us")?,
                actor: row.try_get("actor")?,
                action: row.try_get("action")?,
                object_kind: row.try_get("object_kind")?,
                object_id: row.try_get("object_id")?,
                outcome: Outcome::Done,
                details: Value::Null,
            },
            row.try_get::<String, _>("outcome")?,
            row.try_get::<String, _>("details")?,
        ))
    };
    let (mut entry, outcome, details) =
        fields().map_err(FleetError::storage("read the audit log"))?;
    let damaged = |reason: String| FleetError::Damaged {
        table: "audit",
        id: entry.id.clone(),
        reason,
    };
    entry.outcome = match outcome.as_str() {
        "done" => Outcome::Done,
        "refused" => Outcome::Refused,
        other => return Err(damaged(format!("unknown outcome `{other}`"))),
    };
    entry.details = serde_json::from_str(&details).map_err(|cause| damaged(cause.to_string()))?;
    Ok(entry)
}
