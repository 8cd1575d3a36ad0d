//! The fleet: the one handle to registry, CA, directory and change feed.
//!
//! ```text
//! caller ──► check input ──► write turn: rows + audit row ──► commit (on disk)
//!                                                              │ same turn
//!                                     change feed ◄── directory ◄┘
//! ```
//! A change runs to its end once begun, even if its caller goes away (an HTTP client that hangs
//! up): otherwise a vehicle could be disabled on disk and still be let in by the directory.

use std::{
    fmt, fs,
    future::Future,
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::json;
use tokio::{sync::broadcast, task::JoinHandle};

use crate::{
    Actor, Authority, CHANGES_BUFFERED, Change, Directory, FleetError, Kind,
    audit::{self, Act},
    authority::Origin,
    load::load,
    store::{Store, WriteTurn},
};

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// How long a device's certificate is valid; one hour to ten years, default one year.
    pub device_certificate_lifetime: Duration,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            device_certificate_lifetime: Duration::from_secs(365 * 86_400),
        }
    }
}

impl FleetOptions {
    fn check(&self) -> Result<(), FleetError> {
        let allowed = Duration::from_secs(3600)..=Duration::from_secs(3652 * 86_400);
        if allowed.contains(&self.device_certificate_lifetime) {
            return Ok(());
        }
        Err(FleetError::invalid(
            "device certificate lifetime",
            format!(
                "is {:?}; allowed are one hour to ten years",
                self.device_certificate_lifetime
            ),
        ))
    }
}

/// Vehicles, devices, certificates, models, audit. Cheap to clone; all clones are one.
///
/// All times are microseconds since the Unix epoch. `if_match` is the version the caller has seen:
/// with `Some`, a change made in between is answered with [`FleetError::Conflict`].
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    data_dir: PathBuf,
    options: FleetOptions,
    authority: Authority,
    store: Store,
    directory: Arc<Directory>,
    changes: broadcast::Sender<Change>,
    /// Held as long as the fleet is open; the system lets go of it when the process ends.
    _lock: fs::File,
}

impl Fleet {
    /// Opens the fleet of a data directory with default options; on first start makes the
    /// directory, the CA (`ca/ca.pem`, `ca/ca.key`) and the state store (`fleet.db`).
    ///
    /// # Errors
    /// See [`Fleet::open_with`].
    pub async fn open(data_dir: &Path) -> Result<Self, FleetError> {
        Self::open_with(data_dir, FleetOptions::default()).await
    }

    /// Opens the fleet of a data directory.
    ///
    /// # Errors
    /// [`FleetError::InUse`] while another process has it open; [`FleetError::KeyExposed`],
    /// [`FleetError::AuthorityIncomplete`], [`FleetError::AuthorityUnusable`] for the CA's files;
    /// [`FleetError::Migrate`], [`FleetError::Storage`], [`FleetError::Damaged`] for the store.
    pub async fn open_with(data_dir: &Path, options: FleetOptions) -> Result<Self, FleetError> {
        options.check()?;
        fs::create_dir_all(data_dir).map_err(FleetError::io("make directory", data_dir))?;
        // One spelling: the working directory may change, and the database URL knows no `..`.
        let data_dir =
            fs::canonicalize(data_dir).map_err(FleetError::io("find directory", data_dir))?;
        let lock = lock(&data_dir.join("fleet.lock"))?;
        let (authority, origin) = Authority::open_or_make(&data_dir, now_us())?;
        let store = Store::open(&data_dir.join("fleet.db")).await?;
        let directory = Arc::new(load(&store).await?);
        let (changes, _) = broadcast::channel(CHANGES_BUFFERED);
        let fleet = Self(Arc::new(Inner {
            data_dir,
            options,
            authority,
            store,
            directory,
            changes,
            _lock: lock,
        }));
        if origin == Origin::Made {
            fleet.record_new_authority().await?;
        }
        Ok(fleet)
    }

    async fn record_new_authority(&self) -> Result<(), FleetError> {
        let fingerprint = self.ca().fingerprint().to_string();
        tracing::info!(%fingerprint, "made a new fleet CA");
        let mut turn = self.store().write().await?;
        let details = json!({ "not_after_us": self.ca().not_after_us() });
        let act = Act::done("authority.create", Kind::Authority, &fingerprint, details);
        audit::record(turn.connection(), &Actor::system(), act).await?;
        turn.commit().await?;
        Ok(())
    }

    /// The fleet CA.
    pub fn ca(&self) -> &Authority {
        &self.0.authority
    }

    /// Who is who, for the hot path: no database, no waiting.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.0.directory)
    }

    /// What changes from now on. See [`Change`] for what a receiver that falls behind must do.
    pub fn subscribe_changes(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    /// Lets running changes finish and closes the store. Not needed for safety: what was answered
    /// is on disk. Later calls on any clone fail with [`FleetError::Storage`]; the directory keeps
    /// answering. The data directory is free for another process once every clone is dropped.
    pub async fn close(&self) {
        self.store().close().await;
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.0.data_dir
    }

    pub(crate) fn options(&self) -> &FleetOptions {
        &self.0.options
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// Commits, then mirrors the change in the directory, then tells about it; all before the next
    /// change gets its turn.
    pub(crate) async fn conclude(
        &self,
        turn: WriteTurn<'_>,
        mirror: impl FnOnce(&Directory),
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<(), FleetError> {
        let _committed = turn.commit().await?;
        mirror(&self.0.directory);
        for change in changes {
            // An error means that nobody listens, which is fine.
            let _ = self.0.changes.send(change);
        }
        Ok(())
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("data_dir", &self.0.data_dir)
            .field("directory", &self.0.directory.counts())
            .finish_non_exhaustive()
    }
}

/// Two processes with one data directory would each have a directory that misses the other's
/// changes.
fn lock(path: &Path) -> Result<fs::File, FleetError> {
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(FleetError::io("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(FleetError::InUse {
            path: path.to_owned(),
        }),
        Err(fs::TryLockError::Error(cause)) => Err(FleetError::io("lock", path)(cause)),
    }
}

/// Now, in microseconds since the Unix epoch.
pub(crate) fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// Runs a change to its end even if whoever waits for it goes away.
pub(crate) async fn unbroken<T: Send + 'static>(
    change: impl Future<Output = T> + Send + 'static,
) -> T {
    joined(tokio::spawn(change)).await
}

/// What a task gives; its panic becomes the caller's.
pub(crate) async fn joined<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(result) => result,
        Err(failure) => match failure.try_into_panic() {
            Ok(payload) => panic::resume_unwind(payload),
            // The runtime is being torn down, and this very task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Holds the caller's version against the row's.
pub(crate) fn check_version(
    kind: Kind,
    id: impl fmt::Display,
    if_match: Option<u64>,
    current: u64,
) -> Result<(), FleetError> {
    match if_match {
        Some(expected) if expected != current => Err(FleetError::Conflict {
            kind,
            id: id.to_string(),
            expected,
            current,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;
    use crate::{DeviceId, NewDevice, NewVehicle};

    /// One change more than are buffered: the receiver must learn that it missed something.
    #[tokio::test]
    async fn a_receiver_that_sleeps_is_told_that_it_missed_something() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::open(dir.path()).await.unwrap();
        let mut changes = fleet.subscribe_changes();
        let turn = fleet.store().write().await.unwrap();
        let device_id = DeviceId::parse("tcu-1").unwrap();
        let flood = (0..=CHANGES_BUFFERED).map(|_| Change::AccessLost {
            device_id: device_id.clone(),
        });
        fleet.conclude(turn, |_| {}, flood).await.unwrap();
        assert_eq!(changes.try_recv(), Err(TryRecvError::Lagged(1)));
    }

    /// Whoever hears of a change finds it in the directory and in the store.
    #[tokio::test]
    async fn a_change_is_told_after_it_is_true() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::open(dir.path()).await.unwrap();
        let mut changes = fleet.subscribe_changes();
        let listener = {
            let fleet = fleet.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    let Ok(Change::VehicleChanged { id }) = changes.recv().await else {
                        panic!("a vehicle was expected")
                    };
                    assert!(fleet.directory().counts().vehicles > n);
                    fleet.get_vehicle(id.as_str()).await.unwrap();
                }
            })
        };
        for _ in 0..20 {
            fleet
                .create_vehicle(&Actor::system(), NewVehicle::default())
                .await
                .unwrap();
        }
        listener.await.unwrap();
    }

    /// The store and the directory agree after many hands have worked on both at once.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_directory_after_a_rush_is_the_one_a_restart_loads() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::open(dir.path()).await.unwrap();
        let rush = (0..8).map(|hand| {
            let fleet = fleet.clone();
            tokio::spawn(async move {
                let clerk = Actor::system();
                for n in 0..10 {
                    let id = format!("car-{}", (hand * 3 + n) % 12);
                    let new = NewVehicle {
                        id: Some(id.clone()),
                        ..NewVehicle::default()
                    };
                    // Many of these lose against another hand, which is the point.
                    let _ = fleet.create_vehicle(&clerk, new).await;
                    let new = NewDevice {
                        id: None,
                        vehicle_id: id.clone(),
                        kind: "tcu".into(),
                    };
                    let _ = fleet.create_device(&clerk, new).await;
                    let _ = fleet
                        .set_vehicle_enabled(&clerk, &id, n % 2 == 0, None)
                        .await;
                    if n % 4 == 3 {
                        let _ = fleet.delete_vehicle(&clerk, &id, None).await;
                    }
                }
            })
        });
        for hand in rush.collect::<Vec<_>>() {
            hand.await.unwrap();
        }
        let loaded = load(fleet.store()).await.unwrap();
        assert_eq!(fleet.directory().counts(), loaded.counts());
        assert_eq!(fleet.directory().standings(), loaded.standings());
    }
}
