//! Engine: all connections on one thread, with one epoll and one buffer to read into.
//!
//! ```text
//! wait ─► for each socket that has something: one read ─► packets ─► the scenario ─► its answers, one write
//! ```
//! The generator shares the machine with what it measures, so what it costs itself matters more than
//! how it looks: a read per socket that has something, a write per socket that is answered, no task, no
//! allocation and no lock per message.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::PeersError;
use super::door::{Door, Guest};
use super::line::{Line, Pulled};
use super::scanner::{Found, Kind};

/// Bytes read at once, of one connection.
const READ_ROOM: usize = 256 * 1024;
/// Events taken at once.
const EVENTS: usize = 1024;
/// For everything that a broker answers at once when it is not busy, and that is asked of it before
/// anything is measured.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What a scenario does with a packet: which connection, the packet, and the answer to it.
pub(super) trait Hear:
    FnMut(usize, Found<'_>, &mut Vec<u8>) -> Result<(), PeersError>
{
}
impl<F: FnMut(usize, Found<'_>, &mut Vec<u8>) -> Result<(), PeersError>> Hear for F {}

/// How long to wait at most.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// To a millisecond: epoll's own.
    About(Duration),
    /// To what the system's timers can do, with a system call more.
    Exactly(Duration),
}

struct Slot {
    line: Line,
    /// Whether epoll tells when there is room to write.
    wants_room: bool,
}

/// Connections, by number.
pub(super) struct Engine {
    epoll: OwnedFd,
    slots: Vec<Option<Slot>>,
    events: Vec<Event>,
    scratch: Box<[u8]>,
    answers: Vec<u8>,
    /// Connections that ended since this was last emptied, and why.
    pub(super) ended: Vec<(usize, Option<PeersError>)>,
}

impl Engine {
    pub(super) fn new() -> Result<Self, PeersError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(system)?;
        Ok(Self {
            epoll,
            slots: Vec::new(),
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; READ_ROOM].into(),
            answers: Vec::new(),
            ended: Vec::new(),
        })
    }

    /// Adds a connection; its number.
    pub(super) fn add(&mut self, line: Line) -> Result<usize, PeersError> {
        self.slots.push(None);
        let number = self.slots.len() - 1;
        self.place(number, line)?;
        Ok(number)
    }

    /// Puts a connection where another was.
    pub(super) fn place(&mut self, number: usize, line: Line) -> Result<(), PeersError> {
        let waiting = EventFlags::IN | EventFlags::OUT;
        let data = EventData::new_u64(number as u64);
        epoll::add(&self.epoll, &line, data, waiting).map_err(system)?;
        self.slots[number] = Some(Slot {
            line,
            wants_room: true,
        });
        Ok(())
    }

    /// Closes a connection.
    pub(super) fn close(&mut self, number: usize) {
        // Closing the only descriptor of a socket takes it out of the epoll.
        self.slots[number] = None;
    }

    /// Sends on a connection; nothing happens if it has ended.
    pub(super) fn send(&mut self, number: usize, bytes: &[u8]) -> Result<(), PeersError> {
        let Some(slot) = &mut self.slots[number] else {
            return Ok(());
        };
        match slot.line.send(bytes) {
            Ok(()) => settle(&self.epoll, number, slot),
            Err(source) => {
                self.end(number, Some(PeersError::Broken { source }));
                Ok(())
            }
        }
    }

    /// Waits for something to come, then reads once of every connection that has something. Ended
    /// connections are in `ended`.
    pub(super) fn turn(&mut self, wait: Wait, hear: &mut impl Hear) -> Result<(), PeersError> {
        self.events.clear();
        let timeout = match wait {
            Wait::About(wait) => Timespec::try_from(wait).unwrap_or_default(),
            Wait::Exactly(wait) => {
                let wait = Timespec::try_from(wait).unwrap_or_default();
                let mut fds = [PollFd::new(&self.epoll, PollFlags::IN)];
                match poll(&mut fds, Some(&wait)) {
                    Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
                    Ok(_) => Timespec::default(),
                    Err(error) => return Err(system(error)),
                }
            }
        };
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(system(error)),
        }
        for place in 0..self.events.len() {
            let event = self.events[place];
            let (number, flags) = (event.data.u64() as usize, event.flags);
            if flags.contains(EventFlags::OUT) {
                self.flush(number)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.hear(number, hear)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, number: usize) -> Result<(), PeersError> {
        let Some(slot) = &mut self.slots[number] else {
            return Ok(());
        };
        match slot.line.flush() {
            Ok(()) => settle(&self.epoll, number, slot),
            Err(source) => {
                self.end(number, Some(PeersError::Broken { source }));
                Ok(())
            }
        }
    }

    fn hear(&mut self, number: usize, hear: &mut impl Hear) -> Result<(), PeersError> {
        let Some(slot) = &mut self.slots[number] else {
            return Ok(());
        };
        let answers = &mut self.answers;
        answers.clear();
        let pulled = slot
            .line
            .read(&mut self.scratch, |found| hear(number, found, answers));
        match pulled {
            Ok(Pulled::More) if self.answers.is_empty() => settle(&self.epoll, number, slot),
            Ok(Pulled::More) => {
                let answers = std::mem::take(&mut self.answers);
                let sent = self.send(number, &answers);
                self.answers = answers;
                sent
            }
            Ok(Pulled::End) => {
                self.end(number, None);
                Ok(())
            }
            Err(error @ (PeersError::Broken { .. } | PeersError::Disconnected { .. })) => {
                self.end(number, Some(error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn end(&mut self, number: usize, why: Option<PeersError>) {
        self.close(number);
        self.ended.push((number, why));
    }

    /// An error if a connection ended that should not have.
    pub(super) fn all_stand(&mut self) -> Result<(), PeersError> {
        match self.ended.pop() {
            None => Ok(()),
            Some((_, Some(error))) => Err(error),
            Some((_, None)) => Err(PeersError::Closed),
        }
    }

    /// Connects these guests, so many at once, each to CONNACK. Their numbers follow each other from
    /// the first, which is returned.
    pub(super) fn connect(
        &mut self,
        door: &Door,
        guests: &[Guest],
        at_once: usize,
    ) -> Result<usize, PeersError> {
        let first = self.slots.len();
        let (mut begun, mut done) = (0, 0);
        while done < guests.len() {
            while begun < guests.len() && begun - done < at_once {
                self.add(door.open(&guests[begun])?)?;
                self.send(first + begun, &door.connect(&guests[begun])?)?;
                begun += 1;
            }
            let before = done;
            self.wait_for("CONNACK", |number, found, _| {
                if found.kind == Kind::ConnAck {
                    accepted(&found)?;
                    debug_assert!(number >= first);
                    done += 1;
                }
                Ok(done > before)
            })?;
        }
        Ok(first)
    }

    /// Sends each of these connections its SUBSCRIBEs, one after the other, so many connections at once.
    pub(super) fn subscribe(
        &mut self,
        wishes: &[(usize, Vec<Vec<u8>>)],
        at_once: usize,
    ) -> Result<(), PeersError> {
        for some in wishes.chunks(at_once.max(1)) {
            let rounds = some.iter().map(|(_, packets)| packets.len()).max();
            for round in 0..rounds.unwrap_or(0) {
                let mut asked = 0;
                for (number, packets) in some {
                    if let Some(packet) = packets.get(round) {
                        self.send(*number, packet)?;
                        asked += 1;
                    }
                }
                self.wait_for("SUBACK", |_, found, _| {
                    if found.kind == Kind::SubAck {
                        granted(&found)?;
                        asked -= 1;
                    }
                    Ok(asked == 0)
                })?;
            }
        }
        Ok(())
    }

    /// Turns until `over` says so of a packet.
    pub(super) fn wait_for(
        &mut self,
        what: &'static str,
        mut over: impl FnMut(usize, Found<'_>, &mut Vec<u8>) -> Result<bool, PeersError>,
    ) -> Result<(), PeersError> {
        let give_up = Instant::now() + PATIENCE;
        let mut done = false;
        while !done {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PeersError::Silent { what });
            }
            self.turn(
                Wait::About(left),
                &mut |number, found: Found<'_>, answers: &mut Vec<u8>| {
                    refuse_goodbye(&found)?;
                    done |= over(number, found, answers)?;
                    Ok(())
                },
            )?;
            self.all_stand()?;
        }
        Ok(())
    }

    /// Waits until the broker has answered a PINGREQ on each of these connections; `hear` takes what comes
    /// before. Who does not answer in time is left alone.
    pub(super) fn barrier(
        &mut self,
        numbers: std::ops::Range<usize>,
        patience: Duration,
        hear: &mut impl Hear,
    ) -> Result<(), PeersError> {
        let mut missing = numbers
            .clone()
            .filter(|number| self.slots[*number].is_some())
            .count();
        for number in numbers {
            self.send(number, &super::frame::PINGREQ)?;
        }
        let give_up = Instant::now() + patience;
        while missing > 0 {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.turn(
                Wait::About(left),
                &mut |number, found: Found<'_>, answers: &mut Vec<u8>| {
                    if found.kind == Kind::PingResp {
                        missing -= 1;
                        return Ok(());
                    }
                    hear(number, found, answers)
                },
            )?;
            missing = missing.saturating_sub(self.ended.len());
            if !self.ended.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// Asks epoll to tell about room to write only while something waits for it.
fn settle(epoll: &OwnedFd, number: usize, slot: &mut Slot) -> Result<(), PeersError> {
    let waiting = slot.line.waiting();
    if waiting == slot.wants_room {
        return Ok(());
    }
    slot.wants_room = waiting;
    let mut flags = EventFlags::IN;
    flags.set(EventFlags::OUT, waiting);
    let data = EventData::new_u64(number as u64);
    epoll::modify(epoll, &slot.line, data, flags).map_err(system)
}

/// An error if this is a DISCONNECT.
pub(super) fn refuse_goodbye(found: &Found<'_>) -> Result<(), PeersError> {
    match found.kind {
        Kind::Disconnect => Err(PeersError::Disconnected {
            code: found.body.first().copied().unwrap_or(0),
        }),
        _ => Ok(()),
    }
}

/// Whether CONNACK says that there was a session; an error if it refuses.
pub(super) fn accepted(found: &Found<'_>) -> Result<bool, PeersError> {
    match found.body {
        [flags, 0, ..] => Ok(flags & 1 != 0),
        [_, code, ..] => Err(PeersError::Refused {
            what: "CONNECT",
            code: *code,
        }),
        _ => Err(PeersError::Nonsense {
            what: "a CONNACK".into(),
        }),
    }
}

/// An error if the last filter of a SUBSCRIBE was refused.
fn granted(found: &Found<'_>) -> Result<(), PeersError> {
    match found.body.last() {
        Some(code) if *code >= 0x80 => Err(PeersError::Refused {
            what: "SUBSCRIBE",
            code: *code,
        }),
        _ => Ok(()),
    }
}

fn system(error: rustix::io::Errno) -> PeersError {
    PeersError::System {
        source: io::Error::from(error),
    }
}
