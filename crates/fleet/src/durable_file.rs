//! Small files that must be there whole or not at all, with an exact mode.
//!
//! Write under another name, sync, rename, sync the directory: whoever opens the final name finds
//! the old content or the new one, also after a power cut.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use crate::FleetError;

/// Readable by its owner only.
pub(crate) const PRIVATE: u32 = 0o600;
/// Readable by everybody.
pub(crate) const PUBLIC: u32 = 0o644;

/// Writes a new file and syncs its content, not its name: see [`sync_directory`].
pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), FleetError> {
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        // The mode above is a ceiling (umask); this makes it exact before the content is there.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(FleetError::io("write", path))
}

/// Puts `content` in the place of whatever `path` holds.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FleetError> {
    let mut unfinished = OsString::from(path);
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    remove_if_there(unfinished)?;
    write_new(unfinished, content, mode)?;
    fs::rename(unfinished, path).map_err(FleetError::io("rename the finished file to", path))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FleetError> {
    fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(FleetError::io("sync directory", path))
}

/// Makes a directory that only its owner may enter. An existing one is left as it is.
pub(crate) fn private_directory(path: &Path) -> Result<(), FleetError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FleetError::io("make directory", path))
}

/// The permission bits of a file.
pub(crate) fn mode_of(path: &Path) -> Result<u32, FleetError> {
    let metadata = fs::metadata(path).map_err(FleetError::io("read", path))?;
    Ok(metadata.permissions().mode() & 0o7777)
}

/// Whether a file with this mode can be read or changed by anybody but its owner.
pub(crate) fn is_exposed(mode: u32) -> bool {
    mode & 0o077 != 0
}

fn remove_if_there(path: &Path) -> Result<(), FleetError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(FleetError::io("remove leftover", path)(cause))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_of_a_crash_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.pem");
        fs::write(dir.path().join("server.pem.new"), "torn").unwrap();
        replace(&path, b"one", PRIVATE).unwrap();
        replace(&path, b"two", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode_of(&path).unwrap(), PRIVATE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_existing_file_is_not_overwritten_by_write_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.key");
        write_new(&path, b"first", PRIVATE).unwrap();
        assert!(matches!(
            write_new(&path, b"second", PRIVATE),
            Err(FleetError::Io { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }
}
