//! Echo: a broker that only moves the bytes, for the floor: what reading and writing cost with nothing in
//! between.
//!
//! ```text
//! epoll ─► one read of each socket that has something ─► where each packet goes ─► one write to each of these
//! ```
//! It does what no broker gets around: a read per socket and turn, framing, the acknowledgements of QoS 1
//! and 2, and a write per receiver and turn. It keeps nothing, checks nothing, bounds nothing and looks
//! a topic up only when a publisher changes it; it is no broker. What it is told to drop or double is how the
//! generator's counting is tested.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mqtt::Version;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::PeersError;
use super::flow::{acknowledge, answer};
use super::frame::{PUBCOMP, PUBREL};
use super::scanner::{Found, Kind, Scanner, text, variable};

const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 1024;
const READ_ROOM: usize = 256 * 1024;
/// How often it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(100);

/// What it does wrong, and to every how many deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tamper {
    /// Nothing.
    #[default]
    Nothing,
    /// It drops one.
    Drop {
        /// Every so many.
        every: u64,
    },
    /// It delivers one twice.
    Double {
        /// Every so many.
        every: u64,
    },
    /// It changes the number of one to one that was not sent.
    Forge {
        /// Every so many.
        every: u64,
    },
}

/// A broker that only moves the bytes.
pub struct Echo {
    listener: TcpListener,
    tamper: Tamper,
}

impl Echo {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(tamper: Tamper) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, tamper })
    }

    /// Where.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// What the system says of the listener. A connection that breaks is closed.
    pub fn serve(self, stop: &AtomicBool) -> io::Result<()> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let data = EventData::new_u64(LISTENER);
        epoll::add(&epoll, &self.listener, data, EventFlags::IN)?;
        let mut hub = Hub {
            epoll,
            ends: Vec::new(),
            filters: Vec::new(),
            changes: 0,
            dirty: Vec::new(),
            tamper: self.tamper,
            deliveries: 0,
        };
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let mut scratch = vec![0; READ_ROOM];
        let look = Timespec::try_from(LOOK).unwrap_or_default();
        while !stop.load(Ordering::Relaxed) {
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&hub.epoll, room, Some(&look)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let (number, flags) = (event.data.u64(), event.flags);
                if number == LISTENER {
                    hub.accept(&self.listener)?;
                } else if flags.contains(EventFlags::OUT) {
                    hub.dirty.push(number as usize);
                }
                if number != LISTENER && flags.intersects(EventFlags::IN | EventFlags::HUP) {
                    hub.read(number as usize, &mut scratch);
                }
            }
            hub.flush();
        }
        Ok(())
    }
}

/// One connection.
struct End {
    socket: TcpStream,
    scanner: Scanner,
    version: Version,
    outbox: Vec<u8>,
    written: usize,
    dirty: bool,
    wants_room: bool,
    /// The last topic published to and where it goes, as of so many changes of subscriptions.
    topic: Vec<u8>,
    route: Vec<Target>,
    route_as_of: u64,
}

/// Where a message goes.
#[derive(Clone)]
enum Target {
    One(usize),
    /// To each in turn.
    Turn {
        members: Vec<usize>,
        next: usize,
    },
}

/// A subscription.
struct Filter {
    /// With whom it is shared, if it is.
    group: Option<Vec<u8>>,
    levels: Vec<u8>,
    who: usize,
}

struct Hub {
    epoll: OwnedFd,
    ends: Vec<Option<End>>,
    filters: Vec<Filter>,
    changes: u64,
    dirty: Vec<usize>,
    tamper: Tamper,
    deliveries: u64,
}

impl Hub {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let free = self.ends.iter().position(Option::is_none);
            let number = free.unwrap_or(self.ends.len());
            epoll::add(
                &self.epoll,
                &socket,
                EventData::new_u64(number as u64),
                EventFlags::IN,
            )?;
            let end = Some(End {
                socket,
                scanner: Scanner::default(),
                version: Version::V311,
                outbox: Vec::new(),
                written: 0,
                dirty: false,
                wants_room: false,
                topic: Vec::new(),
                route: Vec::new(),
                route_as_of: 0,
            });
            match free {
                Some(number) => self.ends[number] = end,
                None => self.ends.push(end),
            }
        }
    }

    fn read(&mut self, number: usize, scratch: &mut [u8]) {
        let Some(end) = &mut self.ends[number] else {
            return;
        };
        let count = match end.socket.read(scratch) {
            Ok(0) => return self.close(number),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.close(number),
        };
        let mut scanner = std::mem::take(&mut end.scanner);
        let mut over = false;
        let heard = scanner.feed(&scratch[..count], |found| {
            over |= found.kind == Kind::Disconnect;
            self.hear(number, found)
        });
        if let Some(end) = &mut self.ends[number] {
            end.scanner = scanner;
        }
        if over || heard.is_err() {
            self.close(number);
        }
    }

    fn hear(&mut self, number: usize, found: Found<'_>) -> Result<(), PeersError> {
        let Some(end) = &mut self.ends[number] else {
            return Ok(());
        };
        match found.kind {
            Kind::Publish => {
                let message = found.message(end.version)?;
                if let Some(id) = message.id {
                    acknowledge(message.qos, id, &mut end.outbox);
                    self.mark(number);
                }
                self.deliver(number, message.topic, &found);
            }
            Kind::PubRec => self.answer(number, PUBREL, found.id()?),
            Kind::PubRel => self.answer(number, PUBCOMP, found.id()?),
            Kind::Connect => {
                let level = text(found.body).and_then(|(_, rest)| rest.first().copied());
                let hello: &[u8] = match level {
                    Some(5) => {
                        end.version = Version::V5;
                        &[0x20, 3, 0, 0, 0]
                    }
                    _ => &[0x20, 2, 0, 0],
                };
                end.outbox.extend_from_slice(hello);
                self.mark(number);
            }
            Kind::Subscribe => {
                let id = found.id()?.to_be_bytes();
                let mut rest = &found.body[2..];
                let properties: &[u8] = match end.version {
                    Version::V5 => {
                        let (length, size) = variable(rest)?.unwrap_or((0, 1));
                        rest = rest.get(size + length..).unwrap_or_default();
                        &[0]
                    }
                    Version::V311 => &[],
                };
                let mut granted = Vec::new();
                while let Some((filter, behind)) = text(rest) {
                    let Some((options, behind)) = behind.split_first() else {
                        break;
                    };
                    rest = behind;
                    granted.push(options & 3);
                    let (group, filter) = match filter.strip_prefix(b"$share/") {
                        Some(shared) => {
                            let slash = shared.iter().position(|byte| *byte == b'/');
                            let (group, filter) = shared.split_at(slash.unwrap_or(0));
                            (Some(group.to_vec()), filter.get(1..).unwrap_or_default())
                        }
                        None => (None, filter),
                    };
                    self.filters.push(Filter {
                        group,
                        levels: filter.to_vec(),
                        who: number,
                    });
                }
                self.changes += 1;
                let length = 2 + properties.len() + granted.len();
                end.outbox.extend_from_slice(&[0x90, length as u8]);
                end.outbox.extend_from_slice(&id);
                end.outbox.extend_from_slice(properties);
                end.outbox.extend_from_slice(&granted);
                self.mark(number);
            }
            Kind::PingReq => {
                end.outbox.extend_from_slice(&[0xD0, 0]);
                self.mark(number);
            }
            _ => {} // acknowledgements of readers, and DISCONNECT
        }
        Ok(())
    }

    fn answer(&mut self, number: usize, first: u8, id: u16) {
        if let Some(end) = &mut self.ends[number] {
            answer(first, id, &mut end.outbox);
            self.mark(number);
        }
    }

    fn deliver(&mut self, from: usize, topic: &[u8], found: &Found<'_>) {
        let Some(end) = &mut self.ends[from] else {
            return;
        };
        if end.route_as_of != self.changes || end.topic != topic {
            end.topic = topic.to_vec();
            end.route_as_of = self.changes;
            end.route = route(&self.filters, topic, from);
        }
        let mut route = std::mem::take(&mut end.route);
        for target in &mut route {
            let to = match target {
                Target::One(to) => *to,
                Target::Turn { members, next } => {
                    *next = (*next + 1) % members.len();
                    members[*next]
                }
            };
            self.deliveries += 1;
            let due = |every: u64| self.deliveries.is_multiple_of(every.max(1));
            let (times, forged) = match self.tamper {
                Tamper::Drop { every } if due(every) => (0, false),
                Tamper::Double { every } if due(every) => (2, false),
                Tamper::Forge { every } if due(every) => (1, true),
                _ => (1, false),
            };
            for _ in 0..times {
                self.give(to, found, forged);
            }
        }
        if let Some(end) = &mut self.ends[from] {
            end.route = route;
        }
    }

    fn give(&mut self, to: usize, found: &Found<'_>, forged: bool) {
        let Some(end) = &mut self.ends[to] else {
            return;
        };
        end.outbox.extend_from_slice(found.whole);
        if forged && let Ok(message) = found.message(end.version) {
            let number_at = end.outbox.len() - message.payload.len() + 4;
            end.outbox[number_at..number_at + 4].fill(0xff);
        }
        self.mark(to);
    }

    fn mark(&mut self, number: usize) {
        if let Some(end) = &mut self.ends[number]
            && !end.dirty
        {
            end.dirty = true;
            self.dirty.push(number);
        }
    }

    fn flush(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            let Some(end) = &mut self.ends[number] else {
                continue;
            };
            end.dirty = false;
            let mut broken = false;
            while end.written < end.outbox.len() {
                match end.socket.write(&end.outbox[end.written..]) {
                    Ok(count) => end.written += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => {
                        broken = true;
                        break;
                    }
                }
            }
            if end.written == end.outbox.len() {
                end.outbox.clear();
                end.written = 0;
            }
            let waiting = !end.outbox.is_empty();
            if waiting != end.wants_room {
                end.wants_room = waiting;
                let mut flags = EventFlags::IN;
                flags.set(EventFlags::OUT, waiting);
                let data = EventData::new_u64(number as u64);
                broken |= epoll::modify(&self.epoll, &end.socket, data, flags).is_err();
            }
            if broken {
                self.close(number);
            }
        }
    }

    fn close(&mut self, number: usize) {
        self.ends[number] = None;
        let before = self.filters.len();
        self.filters.retain(|filter| filter.who != number);
        if self.filters.len() != before {
            self.changes += 1;
        }
    }
}

/// Where messages to this topic go. Members of a group begin with another one for each publisher.
fn route(filters: &[Filter], topic: &[u8], publisher: usize) -> Vec<Target> {
    let mut route = Vec::new();
    let mut groups: HashMap<(&[u8], &[u8]), Vec<usize>> = HashMap::new();
    for Filter { group, levels, who } in filters {
        if !matches(levels, topic) {
            continue;
        }
        match group {
            None => route.push(Target::One(*who)),
            Some(group) => groups.entry((group, levels)).or_default().push(*who),
        }
    }
    route.extend(groups.into_values().map(|members| Target::Turn {
        next: publisher % members.len(),
        members,
    }));
    route
}

/// Whether a filter matches, by its levels.
fn matches(filter: &[u8], topic: &[u8]) -> bool {
    let (mut filter, mut topic) = (
        filter.split(|byte| *byte == b'/'),
        topic.split(|byte| *byte == b'/'),
    );
    loop {
        match (filter.next(), topic.next()) {
            (Some(b"#"), _) | (None, None) => return true,
            (Some(b"+"), Some(_)) => {}
            (Some(level), Some(name)) if level == name => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_by_levels() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/c", false),
            ("a/+/c", "a/b/c", true),
            ("a/+", "a/b/c", false),
            ("a/#", "a/b/c", true),
            ("a/#", "b", false),
        ] {
            assert_eq!(
                matches(filter.as_bytes(), topic.as_bytes()),
                expected,
                "{filter} {topic}"
            );
        }
    }
}
