//! The local file system as an object store whose writes survive power loss.
//!
//! `object_store`'s own local store renames a finished file into place without syncing it. After a
//! power cut such a file can be empty, and an empty file in `_delta_log` makes the whole table
//! unreadable. Here every file is synced *before* it gets its name and the folder after, so a name
//! that exists always has its content.
//!
//! Reads, listings and deletions are the inner store's. Half-written files are called `name#1`,
//! which the inner store never lists and Delta never references.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct DurableFiles {
    inner: LocalFileSystem,
}

impl DurableFiles {
    /// The whole local file system, as delta-rs expects of a root store.
    pub(crate) fn new() -> DurableFiles {
        DurableFiles {
            inner: LocalFileSystem::new(),
        }
    }
}

impl fmt::Display for DurableFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableFiles({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for DurableFiles {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let path = self.inner.path_to_filesystem(location)?;
        let mode = options.mode;
        if matches!(mode, PutMode::Update(_)) {
            return Err(Error::NotImplemented {
                operation: "conditional update of a file".into(),
                implementer: self.to_string(),
            });
        }
        blocking(move || {
            write_new(&path, &payload, &mode).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => Error::AlreadyExists {
                    path: path.display().to_string(),
                    source: Box::new(source),
                },
                _ => failed(&path, source),
            })
        })
        .await?;
        Ok(PutResult {
            e_tag: None,
            version: None,
        })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.inner.path_to_filesystem(location)?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(DurableUpload { inner, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        let path = self.inner.path_to_filesystem(to)?;
        blocking(move || sync_in_place(&path).map_err(|source| failed(&path, source))).await
    }
}

/// A large data file, written in parts. Nothing refers to it before the commit that follows, so it
/// is enough that it is synced when [`MultipartUpload::complete`] returns.
#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    path: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let done = self.inner.complete().await?;
        let path = self.path.clone();
        blocking(move || sync_in_place(&path).map_err(|source| failed(&path, source))).await?;
        Ok(done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

fn failed(path: &FsPath, source: io::Error) -> Error {
    Error::Generic {
        store: "DurableFiles",
        source: format!("{}: {source}", path.display()).into(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| Error::Generic {
            store: "DurableFiles",
            source: Box::new(source),
        })?
}

/// Writes `path` so that it either has all of `payload` or does not exist.
fn write_new(path: &FsPath, payload: &PutPayload, mode: &PutMode) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    create_folder(folder)?;
    let (mut file, staging) = stage(path)?;
    let written = (|| {
        for chunk in payload.iter() {
            file.write_all(chunk)?;
        }
        file.sync_all()?;
        match mode {
            // A link fails when the name is taken: that is what makes a commit atomic.
            PutMode::Create => std::fs::hard_link(&staging, path),
            PutMode::Overwrite | PutMode::Update(_) => std::fs::rename(&staging, path),
        }
    })();
    if written.is_err() || matches!(mode, PutMode::Create) {
        // The staging name is of no more use; left behind it is never listed nor read.
        let _ = std::fs::remove_file(&staging);
    }
    written?;
    sync_folder(folder)
}

fn stage(path: &FsPath) -> io::Result<(File, PathBuf)> {
    for attempt in 1..=u32::MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{attempt}"));
        let staging = PathBuf::from(name);
        match File::create_new(&staging) {
            // Left by a crash, or in use: take the next number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(file) => return Ok((file, staging)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn sync_in_place(path: &FsPath) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    path.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(folder: &FsPath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes `folder` with all above it, each entry durable in its parent.
pub(crate) fn create_folder(folder: &FsPath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folder(parent)?;
    }
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) if !folder.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
        _ => {}
    }
    folder.parent().map_or(Ok(()), sync_folder)
}

/// Replaces `path` by `bytes`, durably and at once.
pub(crate) fn replace_file(path: &FsPath, bytes: Vec<u8>) -> io::Result<()> {
    write_new(path, &PutPayload::from(bytes), &PutMode::Overwrite)
}

/// The store as delta-rs takes it.
pub(crate) fn shared() -> Arc<dyn ObjectStore> {
    Arc::new(DurableFiles::new())
}
