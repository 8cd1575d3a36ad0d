//! The few system calls an append makes, and the places where tests make them fail.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The file a partition is writing to.
#[derive(Debug)]
pub(crate) struct ActiveFile {
    file: File,
    #[cfg(test)]
    faults: faults::Faults,
}

impl ActiveFile {
    /// Makes a new file; it must not exist.
    pub(crate) fn create(path: &Path) -> io::Result<ActiveFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(ActiveFile::new(file, path))
    }

    /// Opens the file to go on with.
    pub(crate) fn open(path: &Path) -> io::Result<ActiveFile> {
        Ok(ActiveFile::new(
            OpenOptions::new().read(true).write(true).open(path)?,
            path,
        ))
    }

    #[cfg_attr(
        not(test),
        expect(
            unused_variables,
            reason = "tests find the faults of a file by its directory"
        )
    )]
    fn new(file: File, path: &Path) -> ActiveFile {
        ActiveFile {
            file,
            #[cfg(test)]
            faults: faults::Faults::of(path),
        }
    }

    /// Writes all of it, or an unknown part of it and an error.
    pub(crate) fn write(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(error) = self.faults.write.take() {
            self.file
                .write_all_at(&bytes[..bytes.len() / 2], position)?;
            return Err(error);
        }
        self.file.write_all_at(bytes, position)
    }

    /// `fdatasync`: data, and of the metadata what reading it back needs (the length).
    pub(crate) fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(error) = self.faults.sync.take() {
            return Err(error);
        }
        self.file.sync_data()
    }

    /// Cuts off what is behind `length`.
    pub(crate) fn truncate(&self, length: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(error) = self.faults.truncate.take() {
            return Err(error);
        }
        self.file.set_len(length)
    }

    /// A second handle, for reading. What the page cache believes about the file is dropped if
    /// possible: reading shall see what the disk has.
    pub(crate) fn for_verification(&self) -> io::Result<File> {
        let file = self.file.try_clone()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(file)
    }
}

/// Makes a directory and what is missing above it, durably: a log that a power cut takes away with
/// its directory has lost everything it acknowledged.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    create_dir(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_dir(parent)
}

/// Makes names in a directory durable: files created, renamed or removed.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
pub(crate) mod faults {
    use std::collections::HashMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, LazyLock, Mutex};

    /// Errors that the next calls on the files of one directory return instead of working.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Faults {
        pub(crate) write: Fault,
        pub(crate) sync: Fault,
        pub(crate) truncate: Fault,
    }

    #[derive(Debug, Clone, Default)]
    pub(crate) struct Fault(Arc<Mutex<Vec<i32>>>);

    impl Fault {
        /// The next call fails with this error number.
        pub(crate) fn inject(&self, errno: i32) {
            self.0.lock().unwrap().push(errno);
        }

        pub(super) fn take(&self) -> Option<io::Error> {
            self.0
                .lock()
                .unwrap()
                .pop()
                .map(io::Error::from_raw_os_error)
        }
    }

    static BY_DIRECTORY: LazyLock<Mutex<HashMap<PathBuf, Faults>>> = LazyLock::new(Mutex::default);

    impl Faults {
        pub(crate) fn of(file: &Path) -> Faults {
            let dir = file.parent().expect("segment files lie in a directory");
            BY_DIRECTORY
                .lock()
                .unwrap()
                .entry(dir.to_owned())
                .or_default()
                .clone()
        }
    }
}
