//! The log: a directory of streams and consumer groups, held by one process.
//!
//! ```text
//! {dir}/lock                                          held while open; names the holder
//! {dir}/streams/{stream}/stream.meta                  format version, number of partitions
//! {dir}/streams/{stream}/{partition}/{offset}.log     segments, with {offset}.index beside them
//! {dir}/groups/{group}.offsets                        a consumer group's offsets
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::disk;
use crate::error::OpenError;
use crate::group::Group;
use crate::marker;
use crate::name;
use crate::partition::Partition;
use crate::queue::Queue;
use crate::recovery::{self, Recovered, RecoveryReport, TornGroup};
use crate::stats::StreamStats;
use crate::stream::{Shared, Stream, StreamConfig};
use crate::writer::Writer;

/// Options of a whole log. There are none yet; streams have theirs ([`StreamConfig`]).
#[derive(Debug, Clone, Default)]
pub struct LogOptions {}

/// An open log. Cheap to clone; closed by [`Log::close`] or when the last clone goes. Streams,
/// readers and groups do not keep it open.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
}

/// `None` inside means closed.
type State = Option<Open>;

struct Open {
    streams: HashMap<String, OpenStream>,
    /// Found on opening, not yet asked for.
    recovered: HashMap<String, Vec<Recovered>>,
    groups: HashMap<String, Group>,
    /// Shared with the writer threads: the last one of them lets go of the directory.
    lock: Arc<DirLock>,
}

/// The directory is this process's while this lives.
pub(crate) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // By name: a child process that is being started holds our open files until its `exec`, and with
        // the last of them only would the lock end by itself.
        let _ = self.0.unlock();
    }
}

struct OpenStream {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

impl Log {
    /// Opens the log in `dir`, making the directory if needed, and repairs what a crash left.
    ///
    /// Fails if another process has it open, if something in it is of another format, or if the
    /// operating system refuses; each error names the file.
    pub fn open(dir: &Path, options: LogOptions) -> Result<(Log, RecoveryReport), OpenError> {
        let LogOptions {} = options;
        let (streams, groups) = (dir.join("streams"), dir.join("groups"));
        for dir in [&streams, &groups] {
            disk::create_dir(dir).map_err(io("creating", dir))?;
        }
        let lock = lock(dir)?;

        let mut open = Open {
            streams: HashMap::new(),
            recovered: HashMap::new(),
            groups: HashMap::new(),
            lock: Arc::new(lock),
        };
        let mut report = RecoveryReport::default();
        for name in names(&streams, "")? {
            let dir = streams.join(&name);
            let Some(partitions) = marker::read(&dir)? else {
                continue;
            };
            let recovered = (0..partitions).map(|partition| {
                let dir = marker::partition_dir(&dir, partition);
                recovery::recover(&name, partition, &dir, &mut report).map_err(|(file, source)| {
                    OpenError::Io {
                        action: "recovering",
                        file,
                        source,
                    }
                })
            });
            let recovered = recovered.collect::<Result<_, _>>()?;
            report.streams += 1;
            open.recovered.insert(name, recovered);
        }
        for name in names(&groups, ".offsets")? {
            let (group, bytes) = open_group(&name, &groups)?;
            if bytes > 0 {
                report.torn_groups.push(TornGroup {
                    group: name.clone(),
                    bytes,
                });
            }
            open.groups.insert(name, group);
        }
        let inner = Inner {
            dir: dir.to_owned(),
            state: Mutex::new(Some(open)),
        };
        Ok((
            Log {
                inner: Arc::new(inner),
            },
            report,
        ))
    }

    /// Opens a stream, making it if needed. A second call returns the same stream, and the
    /// configuration of the first call stays.
    pub fn stream(&self, name: &str, config: StreamConfig) -> Result<Stream, OpenError> {
        if !name::is_allowed(name) {
            return Err(OpenError::Name {
                what: "stream",
                name: name.to_owned(),
            });
        }
        config.check(name)?;
        let asked = config.partitions;
        let fits = |on_disk: u16| {
            if on_disk == asked {
                Ok(())
            } else {
                Err(OpenError::Partitions {
                    stream: name.to_owned(),
                    on_disk,
                    asked,
                })
            }
        };
        let mut state = self.state();
        let open = state.as_mut().ok_or(OpenError::Closed)?;
        if let Some(stream) = open.streams.get(name) {
            fits(stream.shared.config.partitions)?;
            return Ok(Stream::new(stream.shared.clone()));
        }
        let dir = self.inner.dir.join("streams").join(name);
        let recovered = match open.recovered.entry(name.to_owned()) {
            Entry::Occupied(found) => {
                fits(found.get().len() as u16)?;
                found.remove()
            }
            Entry::Vacant(_) => {
                marker::create(&dir, asked)?;
                (0..asked).map(|_| Recovered::empty()).collect()
            }
        };
        let name: Arc<str> = name.into();
        let partitions = (0u16..).zip(recovered).map(|(index, found)| {
            let queue = Queue::new(
                name.clone(),
                index,
                config.queue_records,
                config.queue_bytes,
            );
            let dir = marker::partition_dir(&dir, index);
            Arc::new(Partition::new(
                name.clone(),
                index,
                dir,
                queue,
                found.segments,
                found.end,
            ))
        });
        let partitions = partitions.collect();
        let shared = Arc::new(Shared::new(name.clone(), config, partitions));
        let mut stream = OpenStream {
            shared: shared.clone(),
            writers: Vec::new(),
        };
        for partition in &shared.partitions {
            match Writer::start(shared.clone(), partition.clone(), open.lock.clone()) {
                Ok(writer) => stream.writers.push(writer),
                Err(error) => {
                    stream.close();
                    // A second attempt finds what is on disk now.
                    let mut report = RecoveryReport::default();
                    let again: Result<_, _> = shared
                        .partitions
                        .iter()
                        .map(|p| recovery::recover(&name, p.index, &p.dir, &mut report))
                        .collect();
                    if let Ok(again) = again {
                        open.recovered.insert(name.to_string(), again);
                    }
                    return Err(error);
                }
            }
        }
        open.streams.insert(name.to_string(), stream);
        Ok(Stream::new(shared))
    }

    /// Opens a consumer group, making it if needed (its file comes with its first commit).
    pub fn group(&self, name: &str) -> Result<Group, OpenError> {
        if !name::is_allowed(name) {
            return Err(OpenError::Name {
                what: "group",
                name: name.to_owned(),
            });
        }
        let mut state = self.state();
        let open = state.as_mut().ok_or(OpenError::Closed)?;
        if let Some(group) = open.groups.get(name) {
            return Ok(group.clone());
        }
        let (group, _) = open_group(name, &self.inner.dir.join("groups"))?;
        open.groups.insert(name.to_owned(), group.clone());
        Ok(group)
    }

    /// Blocks until everything queued before this call is durable (or has failed). Never call it
    /// from a completion.
    pub fn flush(&self) {
        for stream in self.open_streams() {
            stream.flush();
        }
    }

    /// Refuses new appends, makes durable what is queued, ends the writer threads and lets go of
    /// the directory. Readers still open come to the end of the log. A second call does nothing.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Counters of all open streams, by name.
    pub fn stats(&self) -> Vec<StreamStats> {
        let mut stats: Vec<_> = self.open_streams().iter().map(Stream::stats).collect();
        stats.sort_by(|a, b| a.stream.cmp(&b.stream));
        stats
    }

    fn open_streams(&self) -> Vec<Stream> {
        let state = self.state();
        state
            .iter()
            .flat_map(|open| open.streams.values())
            .map(|stream| Stream::new(stream.shared.clone()))
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state()
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.inner.dir)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        // Taken out first: a completion may use the log while its writer is being joined.
        let Some(open) = self.state().take() else {
            return;
        };
        for group in open.groups.values() {
            group.close();
        }
        for stream in open.streams.values() {
            stream.refuse();
        }
        for (_, stream) in open.streams {
            stream.close();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl OpenStream {
    fn refuse(&self) {
        for partition in &self.shared.partitions {
            partition.queue.close();
            partition.wake_readers();
        }
    }

    fn close(self) {
        self.refuse();
        for writer in self.writers {
            // A completion that drops the last handle to the log closes it on a writer thread,
            // which cannot wait for itself; it ends right after.
            if writer.thread().id() != thread::current().id() {
                // A panic has been reported by the thread itself.
                let _ = writer.join();
            }
        }
    }
}

fn lock(dir: &Path) -> Result<DirLock, OpenError> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let named = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if named {
                format!("process {}", holder.trim())
            } else {
                "another process".to_owned()
            };
            return Err(OpenError::InUse {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => {
            return Err(OpenError::Io {
                action: "locking",
                file: path,
                source,
            });
        }
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io("writing", &path))?;
    Ok(DirLock(file))
}

fn open_group(name: &str, dir: &Path) -> Result<(Group, u64), OpenError> {
    Group::open(name, dir).map_err(|(file, source)| OpenError::Io {
        action: "recovering",
        file,
        source,
    })
}

/// Allowed names of the entries of `dir` that end with `suffix`, without it; sorted.
fn names(dir: &Path, suffix: &str) -> Result<Vec<String>, OpenError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io("listing", dir))? {
        let entry = entry.map_err(io("listing", dir))?;
        let file = entry.file_name();
        if let Some(name) = file.to_str().and_then(|name| name.strip_suffix(suffix))
            && name::is_allowed(name)
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn io(action: &'static str, file: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let file = file.to_owned();
    move |source| OpenError::Io {
        action,
        file,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_open_file_in_a_child_process_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let _of_child = held.0.try_clone().unwrap();
        assert!(lock(dir.path()).is_err());
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }
}
