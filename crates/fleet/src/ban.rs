//! Bans: who is kept out of the broker whatever credentials they have, until when, and why.
//!
//! Kept here because they must survive a restart and be audited; what a target means (a client, an
//! address range, a certificate) is the broker's, which parses and enforces it. A ban whose time is over
//! stays listed until it is replaced, lifted, or room is needed: the operator reads when it ended.

use serde_json::json;
use sqlx::{AnyConnection, Row, any::AnyRow};

use crate::{
    Actor, Fleet, FleetError, Kind,
    audit::{self, Act},
    fleet::{now_us, unbroken},
};

/// Most bans at once. Every connection is held against them, and a list that a person keeps is shorter.
pub const MAX_BANS: usize = 10_000;
const MAX_TARGET_BYTES: usize = 1024;
const MAX_REASON_BYTES: usize = 1024;

/// A ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Whom it keeps out, in the broker's words.
    pub target: String,
    /// Why, for the operator.
    pub reason: String,
    /// Until when, in microseconds since the Unix epoch; `None`: until it is lifted.
    pub until_us: Option<i64>,
    /// Since when, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Who banned.
    pub created_by: String,
}

/// A ban to set, as the caller wrote it.
#[derive(Clone, Debug)]
pub struct NewBan {
    /// Whom it keeps out, in the one spelling the broker has for it.
    pub target: String,
    /// Why.
    pub reason: String,
    /// Until when, in microseconds since the Unix epoch; `None`: until it is lifted.
    pub until_us: Option<i64>,
}

impl Fleet {
    /// Bans `new.target`, in place of an earlier ban of the same.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for a text that is too long, a time that is over, or one ban more than
    /// [`MAX_BANS`]; [`FleetError::Storage`].
    pub async fn set_ban(&self, actor: &Actor, new: NewBan) -> Result<Ban, FleetError> {
        let now = now_us();
        for (field, text, limit) in [
            ("ban target", &new.target, MAX_TARGET_BYTES),
            ("ban reason", &new.reason, MAX_REASON_BYTES),
        ] {
            if text.len() > limit || text.contains('\0') {
                let length = text.len();
                let reason = format!("has {length} bytes; allowed are {limit}, none of them NUL");
                return Err(FleetError::invalid(field, reason));
            }
        }
        if new.until_us.is_some_and(|until| until <= now) {
            return Err(FleetError::invalid(
                "ban end",
                "is over already; name a time to come, or none",
            ));
        }
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let mut turn = fleet.store().write().await?;
            make_room(turn.connection(), &new.target, now).await?;
            let ban = Ban {
                target: new.target,
                reason: new.reason,
                until_us: new.until_us,
                created_us: now,
                created_by: actor.as_str().to_owned(),
            };
            sqlx::query(
                "INSERT INTO bans (target, reason, until_us, created_us, created_by) \
                 VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(ban.target.as_str())
            .bind(ban.reason.as_str())
            .bind(ban.until_us)
            .bind(ban.created_us)
            .bind(ban.created_by.as_str())
            .execute(turn.connection())
            .await
            .map_err(FleetError::storage("keep a ban"))?;
            let details = json!({ "reason": ban.reason, "until_us": ban.until_us });
            let act = Act::done("ban.set", Kind::Ban, &ban.target, details);
            audit::record(turn.connection(), &actor, act).await?;
            fleet.conclude(turn, |_| {}, []).await?;
            Ok(ban)
        })
        .await
    }

    /// Lifts a ban.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Storage`].
    pub async fn lift_ban(&self, actor: &Actor, target: &str) -> Result<(), FleetError> {
        let (fleet, actor, target) = (self.clone(), actor.clone(), target.to_owned());
        unbroken(async move {
            let mut turn = fleet.store().write().await?;
            let lifted = sqlx::query("DELETE FROM bans WHERE target = $1")
                .bind(target.as_str())
                .execute(turn.connection())
                .await
                .map_err(FleetError::storage("lift a ban"))?;
            if lifted.rows_affected() == 0 {
                return Err(FleetError::not_found(Kind::Ban, &target));
            }
            let act = Act::done("ban.lift", Kind::Ban, &target, json!({}));
            audit::record(turn.connection(), &actor, act).await?;
            fleet.conclude(turn, |_| {}, []).await
        })
        .await
    }

    /// All bans, by target, those whose time is over among them.
    ///
    /// # Errors
    /// [`FleetError::Storage`].
    pub async fn list_bans(&self) -> Result<Vec<Ban>, FleetError> {
        let rows = sqlx::query("SELECT * FROM bans ORDER BY target")
            .fetch_all(self.store().pool())
            .await
            .map_err(FleetError::storage("list bans"))?;
        let bans = rows.iter().map(read).collect::<Result<_, _>>();
        bans.map_err(FleetError::storage("list bans"))
    }
}

/// Removes the earlier ban of this target and, when the list is full, those whose time is over.
async fn make_room(
    connection: &mut AnyConnection,
    target: &str,
    now_us: i64,
) -> Result<(), FleetError> {
    let failed = FleetError::storage;
    sqlx::query("DELETE FROM bans WHERE target = $1")
        .bind(target)
        .execute(&mut *connection)
        .await
        .map_err(failed("replace a ban"))?;
    let count = "SELECT COUNT(*) FROM bans";
    let full = |count: i64| count >= MAX_BANS as i64;
    let there: i64 = sqlx::query_scalar(count)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("count bans"))?;
    if !full(there) {
        return Ok(());
    }
    let over = sqlx::query("DELETE FROM bans WHERE until_us <= $1")
        .bind(now_us)
        .execute(connection)
        .await
        .map_err(failed("remove bans whose time is over"))?;
    match full(there - i64::try_from(over.rows_affected()).unwrap_or_default()) {
        false => Ok(()),
        true => Err(FleetError::invalid(
            "ban target",
            format!(
                "would be one more than the {MAX_BANS} bans there may be; lift some, or ban an address range"
            ),
        )),
    }
}

fn read(row: &AnyRow) -> Result<Ban, sqlx::Error> {
    Ok(Ban {
        target: row.try_get("target")?,
        reason: row.try_get("reason")?,
        until_us: row.try_get("until_us")?,
        created_us: row.try_get("created_us")?,
        created_by: row.try_get("created_by")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_list_makes_room_of_what_is_over_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::open(dir.path()).await.unwrap();
        let clerk = Actor::system();
        let mut turn = fleet.store().write().await.unwrap();
        // One of them ended in 1970, the others do not end.
        let fill = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) \
                    INSERT INTO bans SELECT 'client:' || i, '', CASE i WHEN 1 THEN 1 END, 0, 'x' FROM n";
        sqlx::query(fill)
            .bind(MAX_BANS as i64)
            .execute(turn.connection())
            .await
            .unwrap();
        turn.commit().await.unwrap();

        let ban = |target: &str| NewBan {
            target: target.into(),
            reason: String::new(),
            until_us: None,
        };
        // In place of an earlier one there is always room.
        fleet.set_ban(&clerk, ban("client:2")).await.unwrap();
        fleet.set_ban(&clerk, ban("client:new")).await.unwrap();
        let bans = fleet.list_bans().await.unwrap();
        assert_eq!(bans.len(), MAX_BANS);
        assert!(bans.iter().all(|ban| ban.until_us.is_none()));
        let full = fleet.set_ban(&clerk, ban("client:more")).await;
        assert!(full.unwrap_err().to_string().contains("10000 bans"));
        assert_eq!(fleet.list_bans().await.unwrap().len(), MAX_BANS);
    }
}
