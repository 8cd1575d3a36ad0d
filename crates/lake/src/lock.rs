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
    _file: File,
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
            Ok(()) => Ok(DirLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LakeError::Locked {
                dir: dir.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(io("lock", &path)(source)),
        }
    }
}
