//! One process per lake.
//!
//! Two writers of the same Delta tables would both write checkpoints, which corrupts them. The lock
//! is the kernel's, on an open file, so it ends with the process however that ends.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::durable;
use crate::error::LakeError;

/// The lake's folder is ours while this lives.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // By name: a child process that is being started holds our open files until its `exec`, and with
        // the last of them only would the lock end by itself.
        let _ = self.file.unlock();
    }
}

impl DirLock {
    pub(crate) fn take(dir: &Path) -> Result<DirLock, LakeError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LakeError::Io {
                action,
                path,
                source,
            }
        };
        durable::create_folder(dir).map_err(io("create", dir))?;
        let path = dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock { file }),
            Err(TryLockError::WouldBlock) => Err(LakeError::Locked {
                dir: dir.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(io("lock", &path)(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_open_file_in_a_child_process_keeps_nobody_out() {
        let dir = tempfile::tempdir().expect("temp dir");
        let lock = DirLock::take(dir.path()).expect("free");
        let _of_child = lock.file.try_clone().expect("a copy");
        assert!(DirLock::take(dir.path()).is_err());
        drop(lock);
        assert!(DirLock::take(dir.path()).is_ok());
    }
}
