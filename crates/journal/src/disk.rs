//! The few system calls that change a journal's directory, and the places where tests make them fail.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{OpenError, StallError};
use crate::options::Durability;

/// A system call that failed: on what, and why.
#[derive(Debug)]
pub(crate) struct Failure {
    action: &'static str,
    file: PathBuf,
    source: io::Error,
}

impl Failure {
    pub(crate) fn new(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Failure {
        move |source| Failure {
            action,
            file: file.to_owned(),
            source,
        }
    }
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> OpenError {
        OpenError::Io {
            action: failure.action,
            file: failure.file,
            source: failure.source,
        }
    }
}

impl From<Failure> for StallError {
    fn from(failure: Failure) -> StallError {
        let Failure {
            action,
            file,
            source,
        } = failure;
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StallError::DiskFull { file, source }
            }
            _ => StallError::Io {
                action,
                file,
                source,
            },
        }
    }
}

/// A journal's directory. With [`Durability::None`] syncs do nothing, here and nowhere else.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    dir: PathBuf,
    durability: Durability,
    #[cfg(test)]
    pub(crate) faults: faults::Faults,
}

impl Disk {
    /// Makes the directory and what is missing above it, durably: a journal that a power cut takes
    /// away with its directory has lost everything.
    pub(crate) fn open(dir: &Path, durability: Durability) -> Result<Disk, Failure> {
        make_dir(dir).map_err(Failure::new("creating", dir))?;
        Ok(Disk {
            dir: dir.to_owned(),
            durability,
            #[cfg(test)]
            faults: faults::Faults::default(),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a file that must not exist.
    pub(crate) fn create(&self, path: &Path) -> Result<SegmentFile, Failure> {
        #[cfg(test)]
        self.faults
            .step(faults::Call::Create)
            .map_err(Failure::new("creating", path))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(Failure::new("creating", path))?;
        Ok(self.segment_file(path, file))
    }

    /// Opens a file to go on with.
    pub(crate) fn open_file(&self, path: &Path) -> Result<SegmentFile, Failure> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Failure::new("opening", path))?;
        Ok(self.segment_file(path, file))
    }

    fn segment_file(&self, path: &Path, file: File) -> SegmentFile {
        SegmentFile {
            path: path.to_owned(),
            file,
            durability: self.durability,
            #[cfg(test)]
            faults: self.faults.clone(),
        }
    }

    /// Deletes a file, which may be gone already.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), Failure> {
        #[cfg(test)]
        if self
            .faults
            .remove(path)
            .map_err(Failure::new("deleting", path))?
        {
            return Ok(());
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(Failure::new("deleting", path)),
        }
    }

    /// Makes names in the directory durable: files created and deleted.
    pub(crate) fn sync_names(&self) -> Result<(), Failure> {
        #[cfg(test)]
        if self
            .faults
            .sync_names(&self.dir)
            .map_err(Failure::new("syncing", &self.dir))?
        {
            return Ok(());
        }
        match self.durability {
            Durability::Fsync => sync_dir(&self.dir).map_err(Failure::new("syncing", &self.dir)),
            Durability::None => Ok(()),
        }
    }
}

/// The file that is being written.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    path: PathBuf,
    file: File,
    durability: Durability,
    #[cfg(test)]
    faults: faults::Faults,
}

impl SegmentFile {
    /// Writes all of it, or an unknown part of it and an error.
    pub(crate) fn write(&self, bytes: &[u8], at: u64) -> Result<(), Failure> {
        #[cfg(test)]
        if let Err(error) = self.faults.step(faults::Call::Write) {
            let half = &bytes[..bytes.len() / 2];
            self.file.write_all_at(half, at).expect("the real disk");
            return Err(Failure::new("writing", &self.path)(error));
        }
        self.file
            .write_all_at(bytes, at)
            .map_err(Failure::new("writing", &self.path))
    }

    /// `fdatasync`: data, and of the metadata what reading it back needs (the length).
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        #[cfg(test)]
        if self
            .faults
            .sync(&self.path, &self.file)
            .map_err(Failure::new("syncing", &self.path))?
        {
            return Ok(());
        }
        match self.durability {
            Durability::Fsync => self
                .file
                .sync_data()
                .map_err(Failure::new("syncing", &self.path)),
            Durability::None => Ok(()),
        }
    }

    /// Cuts off what is behind `length`.
    pub(crate) fn truncate(&self, length: u64) -> Result<(), Failure> {
        #[cfg(test)]
        self.faults
            .step(faults::Call::Truncate)
            .map_err(Failure::new("truncating", &self.path))?;
        self.file
            .set_len(length)
            .map_err(Failure::new("truncating", &self.path))
    }

    /// Forgets what the page cache believes about the file, if possible: after a failed `fdatasync`
    /// it may hold pages that never reached the disk.
    pub(crate) fn drop_cache(&self) {
        // Advice only. Without it a crash of the process during a disk error is trusted too far.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = match dir.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    make_dir(above)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        // Somebody else was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    sync_dir(above)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
pub(crate) mod faults {
    //! A disk whose calls fail on demand, and which can lose what was not synced.

    use std::collections::{HashMap, HashSet};
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, MutexGuard};

    pub(crate) const EIO: i32 = 5;
    pub(crate) const ENOSPC: i32 = 28;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Call {
        Create,
        Write,
        Sync,
        Truncate,
        Remove,
        SyncNames,
    }

    /// What a power cut does to bytes that were written and not synced.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum PowerCut {
        /// No power cut: the process was killed.
        Spared,
        /// They are gone, and so are unsynced changes of names.
        Lost,
        /// They are gone, and of the unsynced deletions the first one too.
        Reordered,
        /// Half of them are there; names changed.
        Half,
        /// The file is as long as it was, the second half of them is zeros.
        Zeroed,
        /// The file is as long as it was, the first half of them is zeros.
        ZeroedAhead,
    }

    #[derive(Debug, Default)]
    struct State {
        /// Calls so far.
        steps: Vec<Call>,
        /// The next calls of a kind that fail, and with which error.
        planned: Vec<(Call, i32)>,
        /// Calls of this kind fail until further notice.
        broken: Option<(Call, i32)>,
        /// From this step on everything fails.
        crash_at: Option<usize>,
        /// Syncs are noted, not done, and removed files kept until names are synced.
        simulated: bool,
        synced: HashMap<PathBuf, u64>,
        names: HashSet<PathBuf>,
        removed: Vec<PathBuf>,
    }

    #[derive(Debug, Clone, Default)]
    pub(crate) struct Faults(Arc<Mutex<State>>);

    impl Faults {
        fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap()
        }

        /// The next call of this kind fails.
        pub(crate) fn fail(&self, call: Call, errno: i32) {
            self.state().planned.push((call, errno));
        }

        /// All calls of this kind fail, or none.
        pub(crate) fn break_down(&self, broken: Option<(Call, i32)>) {
            self.state().broken = broken;
        }

        /// Nothing fails any more.
        pub(crate) fn recover(&self) {
            let mut state = self.state();
            state.planned.clear();
            state.broken = None;
        }

        /// Syncs are only noted from now on, and removed files kept until names are synced.
        pub(crate) fn simulate(&self) {
            self.state().simulated = true;
        }

        /// From step `at` on, counted from now, every call fails.
        pub(crate) fn crash_at(&self, at: usize) {
            let mut state = self.state();
            state.crash_at = Some(at);
            state.steps.clear();
        }

        pub(crate) fn steps(&self) -> Vec<Call> {
            self.state().steps.clone()
        }

        pub(super) fn step(&self, call: Call) -> io::Result<()> {
            let mut state = self.state();
            state.steps.push(call);
            if state.crash_at.is_some_and(|at| state.steps.len() > at) {
                return Err(io::Error::from_raw_os_error(EIO));
            }
            if let Some((_, errno)) = state.broken.filter(|(broken, _)| *broken == call) {
                return Err(io::Error::from_raw_os_error(errno));
            }
            match state
                .planned
                .iter()
                .position(|(planned, _)| *planned == call)
            {
                Some(at) => {
                    let (_, errno) = state.planned.remove(at);
                    Err(io::Error::from_raw_os_error(errno))
                }
                None => Ok(()),
            }
        }

        /// `true`: done, in simulation.
        pub(super) fn sync(&self, path: &Path, file: &File) -> io::Result<bool> {
            self.step(Call::Sync)?;
            let mut state = self.state();
            let length = file.metadata()?.len();
            state.synced.insert(path.to_owned(), length);
            Ok(state.simulated)
        }

        pub(super) fn remove(&self, path: &Path) -> io::Result<bool> {
            self.step(Call::Remove)?;
            let mut state = self.state();
            if state.simulated && path.exists() {
                fs::rename(path, path.with_extension("removed"))?;
                state.removed.push(path.to_owned());
            }
            Ok(state.simulated)
        }

        pub(super) fn sync_names(&self, dir: &Path) -> io::Result<bool> {
            self.step(Call::SyncNames)?;
            let mut state = self.state();
            for path in std::mem::take(&mut state.removed) {
                fs::remove_file(path.with_extension("removed"))?;
            }
            state.names = segments(dir).into_iter().collect();
            Ok(state.simulated)
        }

        /// What is on disk after the crash.
        pub(crate) fn cut_power(&self, dir: &Path, how: PowerCut) {
            let state = self.state();
            let edit = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
            if how == PowerCut::Spared {
                return;
            }
            for path in segments(dir) {
                let length = fs::metadata(&path).unwrap().len();
                let synced = state.synced.get(&path).copied().unwrap_or(0).min(length);
                let middle = synced + (length - synced) / 2;
                match how {
                    PowerCut::Spared => {}
                    PowerCut::Lost if !state.names.contains(&path) => {
                        fs::remove_file(&path).unwrap();
                    }
                    PowerCut::Lost | PowerCut::Reordered => edit(&path).set_len(synced).unwrap(),
                    PowerCut::Half => edit(&path).set_len(middle).unwrap(),
                    PowerCut::Zeroed => {
                        let zeros = vec![0; (length - middle) as usize];
                        edit(&path).write_all_at(&zeros, middle).unwrap();
                    }
                    PowerCut::ZeroedAhead => {
                        let zeros = vec![0; (middle - synced) as usize];
                        edit(&path).write_all_at(&zeros, synced).unwrap();
                    }
                }
            }
            let back = match how {
                PowerCut::Lost => state.removed.len(),
                PowerCut::Reordered => state.removed.len().min(1),
                _ => 0,
            };
            for path in &state.removed[..back] {
                fs::rename(path.with_extension("removed"), path).unwrap();
            }
        }
    }

    pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "segment"))
            .collect();
        paths.sort();
        paths
    }
}
