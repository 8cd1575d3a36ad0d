//! The state store: one SQLite file, spoken to in SQL that PostgreSQL understands too.
//!
//! Readers use any connection of the pool and see what is committed. Writers take turns: a
//! [`WriteTurn`] holds the only right to write from `BEGIN IMMEDIATE` until the change has also
//! reached the in-memory directory, so the directory sees changes in the order of their commits.
//! SQLite has one writer anyway; queueing for it here instead of inside SQLite costs nothing and
//! makes "database is locked" impossible within the process.
//!
//! Commit means on disk: WAL with `synchronous=FULL` syncs the log before `COMMIT` returns.

use std::{fs, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use futures::future::BoxFuture;
use sqlx::{
    Any, AnyConnection, AnyPool, Executor, SqlSafeStr, Transaction,
    any::AnyPoolOptions,
    migrate::{Migration, MigrationType, Migrator},
};
use tokio::sync::{Mutex, MutexGuard};

use crate::FleetError;

/// One writer and a handful of readers: a reader holds its connection for one short query, and
/// each idle connection costs a thread and a page cache (2 MB).
const CONNECTIONS: u32 = 6;

pub(crate) struct Store {
    pool: AnyPool,
    writing: Mutex<()>,
}

impl Store {
    /// Opens or creates the database and brings its schema up to date.
    pub(crate) async fn open(file: &Path) -> Result<Self, FleetError> {
        sqlx::any::install_default_drivers();
        // SQLite gives its -wal and -shm files the mode of the database: registry data is personal.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(file)
            .map_err(FleetError::io("open", file))?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(30))
            // A local file does not hang up: no ping per use, no recycling.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(|connection, _| prepare(connection))
            .connect(&sqlite_url(file)?)
            .await
            .map_err(FleetError::storage("open fleet.db"))?;
        Migrator::with_migrations(migrations())
            .run(&pool)
            .await
            .map_err(|source| FleetError::Migrate {
                path: file.to_owned(),
                source,
            })?;
        Ok(Self {
            pool,
            writing: Mutex::new(()),
        })
    }

    /// For reads: each statement sees everything committed before it.
    pub(crate) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Waits for the turn to write and begins a transaction. Dropped without
    /// [`WriteTurn::commit`], it leaves no trace.
    pub(crate) async fn write(&self) -> Result<WriteTurn<'_>, FleetError> {
        let turn = self.writing.lock().await;
        let transaction = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(FleetError::storage("begin a change"))?;
        Ok(WriteTurn { transaction, turn })
    }

    /// Finishes what is running and closes every connection.
    pub(crate) async fn close(&self) {
        let _turn = self.writing.lock().await;
        self.pool.close().await;
    }
}

/// The right to write, with an open transaction.
pub(crate) struct WriteTurn<'s> {
    // Field order matters: a dropped transaction rolls back before the next writer's turn.
    transaction: Transaction<'static, Any>,
    turn: MutexGuard<'s, ()>,
}

impl<'s> WriteTurn<'s> {
    pub(crate) fn connection(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }

    /// Makes the change durable. Whoever mirrors it in memory keeps the returned guard until done.
    pub(crate) async fn commit(self) -> Result<Committed<'s>, FleetError> {
        self.transaction
            .commit()
            .await
            .map_err(FleetError::storage("commit a change"))?;
        Ok(Committed { _turn: self.turn })
    }
}

/// Proof that a change is on disk, and the right to mirror it before the next one.
pub(crate) struct Committed<'s> {
    _turn: MutexGuard<'s, ()>,
}

/// `Any` passes no SQLite options, so they are set on every new connection.
fn prepare(connection: &mut AnyConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
    Box::pin(async move {
        for pragma in [
            "PRAGMA busy_timeout = 10000",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = ON",
        ] {
            connection.execute(pragma).await?;
        }
        Ok(())
    })
}

/// In order; one that was released is never changed again.
fn migrations() -> Vec<Migration> {
    let steps = [
        ("registry", include_str!("../migrations/0001_registry.sql")),
        (
            "foreign certificates",
            include_str!("../migrations/0002_foreign_certificates.sql"),
        ),
        ("bans", include_str!("../migrations/0003_bans.sql")),
    ];
    let migrations = (1..).zip(steps).map(|(version, (name, text))| {
        let text = text.into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, text, false)
    });
    migrations.collect()
}

/// The URL `Any` wants for a file; every byte that could mean something in a URL is escaped.
fn sqlite_url(file: &Path) -> Result<String, FleetError> {
    let Some(path) = file.to_str() else {
        return Err(FleetError::invalid(
            "data_dir",
            format!(
                "{} is not UTF-8, which the database driver needs",
                file.display()
            ),
        ));
    };
    let mut url = String::from("sqlite://");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~') {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str("?mode=rw");
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_turn_leaves_no_trace_and_lets_the_next_one_in() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("fleet.db")).await.unwrap();
        let insert =
            "INSERT INTO models (name, version, created_us, updated_us) VALUES ($1, 1, 0, 0)";
        {
            let mut turn = store.write().await.unwrap();
            sqlx::query(insert)
                .bind("lost")
                .execute(turn.connection())
                .await
                .unwrap();
        }
        let mut turn = store.write().await.unwrap();
        sqlx::query(insert)
            .bind("kept")
            .execute(turn.connection())
            .await
            .unwrap();
        turn.commit().await.unwrap();
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM models")
            .fetch_all(store.pool())
            .await
            .unwrap();
        assert_eq!(names, ["kept"]);
    }

    /// A register of the first version is brought up to date with what is in it.
    #[tokio::test]
    async fn certificates_of_the_first_schema_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fleet.db");
        sqlx::any::install_default_drivers();
        fs::write(&file, "").unwrap();
        let old = AnyPool::connect(&sqlite_url(&file).unwrap()).await.unwrap();
        let first = migrations().into_iter().take(1).collect();
        Migrator::with_migrations(first).run(&old).await.unwrap();
        let row = "INSERT INTO certificates \
                   (id, serial, device_id, fingerprint, not_before_us, not_after_us, pem) \
                   VALUES ($1, '0a', 'tcu-1', $2, 0, 1, 'PEM')";
        let insert = |pool: AnyPool, id: &'static str| async move {
            sqlx::query(row).bind(id).bind(id).execute(&pool).await
        };
        insert(old.clone(), "one").await.unwrap();
        insert(old.clone(), "two")
            .await
            .expect_err("a serial once only");
        old.close().await;

        let store = Store::open(&file).await.unwrap();
        let chain: Option<String> = sqlx::query_scalar("SELECT chain FROM certificates")
            .fetch_one(store.pool())
            .await
            .unwrap();
        assert_eq!(chain, None, "the fleet CA's");
        insert(store.pool().clone(), "two")
            .await
            .expect("another CA counts from the same number");
        insert(store.pool().clone(), "two")
            .await
            .expect_err("a fingerprint once only");
    }

    #[tokio::test]
    async fn every_connection_syncs_on_commit() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("fleet.db")).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = store.pool().acquire().await.unwrap();
            let sync: i64 = sqlx::query_scalar("PRAGMA synchronous")
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            assert_eq!((sync, journal.as_str()), (2, "wal"));
            held.push(connection);
        }
    }

    #[tokio::test]
    async fn paths_need_no_care() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["plain", "with space", "100%?mode=memory#x", "ärger"] {
            let file = dir.path().join(name);
            let store = Store::open(&file).await.unwrap();
            store.close().await;
            assert!(
                fs::metadata(&file).unwrap().len() > 0,
                "{name} is the database"
            );
        }
    }
}
