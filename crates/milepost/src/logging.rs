//! The log of the server: stable event names on stderr, one line each.
//!
//! Lines go through a bounded queue to a thread of their own. Whoever reads stderr may be slow or gone (a
//! full pipe, a stopped terminal), and a vehicle must not wait for that: what does not fit is dropped, and
//! the number of dropped lines is the next line that fits.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter,
    fmt::{self, MakeWriter},
};

/// Lines that may wait: a connect storm of a few thousand, at some 200 bytes a line under 1 MiB.
const QUEUED_LINES: usize = 4096;

/// Bytes written at once at most, about: so much of a log may be in nobody's hands but ours.
const CHUNK: usize = 64 * 1024;

/// How long the writing thread sleeps when it has written all there was. In a storm it takes what came in
/// this time together: one write for many lines, and nobody has to wake it for each.
const PAUSE: Duration = Duration::from_millis(2);

/// How long the end of the program waits for lines to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The log of the commands that talk to a person themselves: faults only. The Delta kernel reports a
/// table that is about to be made as an error, which it is not.
pub const QUIET: &str = "error,buoyant_kernel=off";

/// Of the libraries, rustls warns of what any stranger may send (an address for a server name): that would
/// let them fill the log before anybody knows who they are.
const SERVER: &str = "warn,buoyant_kernel=off,deltalake_core=error,rustls=error,milepost=info,server=info,\
                      broker=info,eventlog=info,fleet=info,lake=info,pipeline=info";

static LOG: OnceLock<Lines> = OnceLock::new();

/// Starts it. `MILEPOST_LOG` sets what is logged (`debug`, `broker=trace`, …; default `info`, with the
/// libraries at `warn`), `MILEPOST_LOG_FORMAT=json` writes JSON lines.
pub fn start() {
    start_at(SERVER);
}

/// As [`start`], with another default.
pub fn start_at(default: &str) {
    let filter =
        EnvFilter::try_from_env("MILEPOST_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = LOG.get_or_init(|| Lines::to(io::stderr())).clone();
    let builder = fmt::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(lines);
    let json = std::env::var("MILEPOST_LOG_FORMAT").is_ok_and(|format| format == "json");
    // A second start (a test in this process) keeps the first.
    let _ = match json {
        true => builder.json().try_init(),
        false => builder.try_init(),
    };
}

/// Waits until what was logged is written, within reason. The last thing a process does.
pub fn finish() {
    if let Some(lines) = LOG.get() {
        lines.finish();
    }
}

/// The way of a line to the writing thread.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

enum Item {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Mark(SyncSender<()>),
}

impl Lines {
    fn to(out: impl Write + Send + 'static) -> Self {
        let (queue, items) = sync_channel(QUEUED_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        let spawned = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&items, out, &lost));
        if let Err(error) = spawned {
            eprintln!("warning: nothing will be logged, its thread did not start: {error}");
        }
        Self { queue, dropped }
    }

    fn finish(&self) {
        let (answer, written) = sync_channel(1);
        if self.queue.try_send(Item::Mark(answer)).is_ok() {
            // Late or not: the process ends now.
            let _ = written.recv_timeout(LAST_LINES);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "to let lines gather, not to wait for one"
)]
fn write_lines(items: &Receiver<Item>, mut out: impl Write, dropped: &AtomicU64) {
    let mut chunk = Vec::with_capacity(CHUNK);
    while let Ok(first) = items.recv() {
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Item::Line(line)) => chunk.extend_from_slice(&line),
                Ok(Item::Mark(answer)) => {
                    write_chunk(&mut chunk, &mut out, dropped);
                    let _ = out.flush();
                    let _ = answer.send(());
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            if chunk.len() >= CHUNK {
                write_chunk(&mut chunk, &mut out, dropped);
            }
            next = items.try_recv();
        }
        write_chunk(&mut chunk, &mut out, dropped);
        std::thread::sleep(PAUSE);
    }
}

/// Writes the lines, and how many were lost behind them. There is no other place to report that stderr
/// does not take them.
fn write_chunk(chunk: &mut Vec<u8>, out: &mut impl Write, dropped: &AtomicU64) {
    let lost = dropped.swap(0, Ordering::Relaxed);
    if lost > 0 {
        // Into memory.
        let _ = writeln!(chunk, "WARN milepost: event=\"log.dropped\" lines={lost}");
    }
    let _ = out.write_all(chunk);
    chunk.clear();
    // One line may be long; it is not to be kept for.
    chunk.shrink_to(CHUNK);
}

/// One line being put together; queued when it is dropped.
struct Line<'a> {
    lines: &'a Lines,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = Item::Line(std::mem::take(&mut self.bytes));
        if let Err(TrySendError::Full(_)) = self.lines.queue.try_send(line) {
            self.lines.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            lines: self,
            bytes: Vec::with_capacity(256),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    /// Takes nothing until it is let go, as a full pipe does.
    struct Stuck {
        go: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Ends with an error when the test lets go.
            let _ = self.go.recv();
            self.written
                .lock()
                .expect("no panic")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_takes_nothing_holds_nobody_up_and_the_loss_is_said() {
        let (let_go, go) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let lines = Lines::to(Stuck {
            go,
            written: written.clone(),
        });
        // More than the queue and what the writer has in its hands; returns all the same.
        const WIDTH: usize = 64;
        for number in 0..QUEUED_LINES + CHUNK / WIDTH + 100 {
            writeln!(lines.make_writer(), "line {number:<WIDTH$}").expect("memory");
        }
        drop(let_go);
        // The mark may find the queue still full.
        while !String::from_utf8_lossy(&written.lock().expect("no panic")).contains("log.dropped") {
            lines.finish();
        }
        let text = String::from_utf8(written.lock().expect("no panic").clone()).expect("UTF-8");
        assert!(text.starts_with("line 0 "), "the first lines are kept");
        assert!(text.contains("lines="), "{text}");
    }
}
