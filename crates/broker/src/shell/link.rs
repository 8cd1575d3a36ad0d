//! One connection between its transport and the shard: bytes in, packets decoded, bytes out.
//!
//! A future written by hand, because it is there once per connection and mostly idle: it holds no
//! buffer unless a packet is incomplete or the socket is full. Per turn it writes what
//! is due, up to a chunk, in as few writes as possible, reads what is there, decodes all packets in it, and hands
//! them to the shard as one batch.
//!
//! Reading pauses (TCP then slows the client down) while the connection waits for admission, while
//! too many answers are unread by the client, while an MQTT 3.1.1 client has too many messages
//! unacknowledged, while another worker is too far behind with deliveries, and while the client, its
//! listener or all together are faster than they may be. Messages pause in the other direction while the
//! client has had as many as it may; answers do not.
//!
//! Only a client that is served, with packets of a few reads, has the worker whenever it is ready. What comes
//! before and after that, large packets and retained messages have [`turns`](super::turns).

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use mqtt::{Decoder, Packet};
use tokio::io::AsyncReadExt;
use tokio::time::Sleep;

use super::acceptor::Place;
use super::discard;
use super::leftover::Leftover;
use super::partial::Partial;
use super::socket::{Movable, Widened};
use super::turns::{Ticket, Turn};
use super::worker::{READ_BUFFER, Worker};
use crate::admission::gate::Entrance;
use crate::admission::memory::{Fits, Standing};
use crate::admission::meter::{Came, Outbound};
use crate::machine::connection::Appetite;
use crate::machine::departure::Departure;
use crate::machine::exchange::Exchange;
use crate::machine::shard::Shard;
use crate::machine::slots::ConnectionId;
use crate::machine::tenants::{Farewell, Origin, Rest};
use crate::websocket::frame::Violation;

/// Bytes read in one turn; more would make others on this worker wait. 300 messages of 200 bytes.
const BYTES_PER_TURN: usize = 64 * 1024;

/// Room below which a read buffer is replaced: a smaller read would cost a system call for little.
const MIN_READ: usize = 4 * 1024;

/// Most by which the buffer of an incomplete packet grows at once. It doubles up to here, so that
/// a client pays with bytes sent, not with a length claimed.
const MAX_GROWTH: usize = 256 * 1024;

/// Bytes encoded between two writes, and written in one turn.
const WRITE_CHUNK: usize = 64 * 1024;

/// How long a publisher waits before it looks again whether another worker caught up.
const CONGESTION_PAUSE: Duration = Duration::from_millis(1);

/// The same while the store has more to write than it may, which lasts as long as a disk is full.
const STORE_PAUSE: Duration = Duration::from_millis(50);

/// The task of one connection.
pub(crate) struct Link<S> {
    worker: Rc<Worker>,
    id: ConnectionId,
    /// `None` once it moved to another worker.
    transport: Option<S>,
    decoder: Decoder,
    /// Received, and not a whole packet yet or not wanted yet.
    partial: Partial,
    /// Encoded, and refused by the full socket.
    unsent: Leftover,
    flushing: Flushing,
    stage: Stage,
    /// There if the client has rates out.
    outbound: Option<Box<Sending>>,
    /// Set while the link closes or is held up.
    timer: Option<Pin<Box<Sleep>>>,
    place: Option<Place>,
    /// Held while it waits for its turn.
    ticket: Ticket,
    /// The transport failed, which waits for its turn.
    broken: Option<io::Error>,
}

/// What a client has had of its rates out.
struct Sending {
    rates: Outbound,
    /// Set while no message is to be sent.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Sending {
    fn new(exchange: &Exchange) -> Option<Box<Sending>> {
        let rates = Outbound::new(&exchange.admission.paces)?;
        Some(Box::new(Sending { rates, timer: None }))
    }

    /// Whether no message is to be sent now; if so, the task is woken when that is over.
    fn is_held(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.timer = None;
        }
        self.timer.is_some()
    }
}

/// A connection between two workers.
pub(crate) struct Parcel<S> {
    departure: Departure,
    transport: S,
    decoder: Decoder,
    partial: Partial,
    unsent: Leftover,
    place: Option<Place>,
}

/// Whether the transport still holds bytes of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flushing {
    Clean,
    Needed,
    /// It was tried, and the socket is full: what the transport may hold is counted.
    Stuck {
        holds: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody we serve yet. Everything in [`turns`](super::turns), as in the stages after `Open`.
    New,
    /// Serving.
    Open,
    /// Ended; the last bytes go out.
    Flush(Farewell),
    /// The last bytes are out; tell the other side.
    Shutdown(Farewell),
    /// Wait for the other side to close, so that it can read what we said.
    Linger,
}

impl<S> Link<S>
where
    S: Movable,
{
    /// Enters the connection at the shard; `None` if it takes nobody.
    pub(crate) fn open(
        worker: Rc<Worker>,
        transport: S,
        origin: Origin,
        place: Place,
    ) -> Option<Link<S>> {
        let max_packet_size = worker.exchange.limits.max_packet_size;
        let mut shard = worker.shard.borrow_mut();
        shard.set_time(worker.clock.now());
        let id = shard.open(origin)?;
        drop(shard);
        let outbound = Sending::new(&worker.exchange);
        Some(Link {
            worker,
            id,
            transport: Some(transport),
            decoder: Decoder::for_server(max_packet_size),
            partial: Partial::default(),
            unsent: Leftover::default(),
            flushing: Flushing::Clean,
            stage: Stage::New,
            outbound,
            timer: None,
            place: Some(place),
            ticket: Ticket::default(),
            broken: None,
        })
    }

    /// Goes on with a connection from another worker; `None` if the shard takes nobody.
    pub(crate) fn unpack(worker: Rc<Worker>, parcel: Parcel<S>) -> io::Result<Option<Link<S>>> {
        let Parcel {
            departure,
            mut transport,
            decoder,
            partial,
            unsent,
            place,
        } = parcel;
        transport.attach()?;
        let mut shard = worker.shard.borrow_mut();
        shard.set_time(worker.clock.now());
        let Some(id) = shard.arrive(departure) else {
            return Ok(None);
        };
        // It stood there before, and is counted there no more.
        let _ = shard.count_unsent(unsent.room() as isize);
        drop(shard);
        let outbound = Sending::new(&worker.exchange);
        let mut link = Link {
            worker,
            id,
            transport: Some(transport),
            decoder,
            partial,
            unsent,
            flushing: Flushing::Needed,
            stage: Stage::New,
            outbound,
            timer: None,
            place,
            ticket: Ticket::default(),
            broken: None,
        };
        // It may owe for what it sent over an earlier connection.
        link.charge(Came::default());
        Ok(Some(link))
    }

    /// Moves to the worker of the session, if that is another one. Says whether it did.
    fn depart(&mut self) -> io::Result<bool> {
        let mut shard = self.worker.shard.borrow_mut();
        let Some(departure) = shard.departure(self.id) else {
            return Ok(false);
        };
        let unsent = std::mem::take(&mut self.unsent);
        // Less always fits.
        let _ = shard.count_unsent(-(unsent.room() as isize));
        drop(shard);
        self.unstuck();
        let Some(mut transport) = self.transport.take() else {
            return Ok(false);
        };
        transport.detach()?;
        let to = departure.to();
        let parcel = Parcel {
            departure,
            transport,
            decoder: std::mem::replace(&mut self.decoder, Decoder::for_server(1)),
            partial: std::mem::take(&mut self.partial),
            unsent,
            place: self.place.take(),
        };
        self.worker.remove_to(to, parcel.into());
        Ok(true)
    }

    fn transport(&mut self) -> io::Result<Pin<&mut S>> {
        match &mut self.transport {
            Some(transport) => Ok(Pin::new(transport)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Runs until there is nothing to do but wait, or the transport fails.
    fn run(&mut self, cx: &mut Context<'_>, turn: &mut Option<Turn>) -> Poll<io::Result<()>> {
        let mut taken = 0;
        loop {
            let sent = self.send(cx, turn)?;
            if self.stage == Stage::New {
                if self.depart()? {
                    return Poll::Ready(Ok(()));
                }
                if self.worker.shard.borrow_mut().standing(self.id) == Standing::Client {
                    self.stage = Stage::Open;
                }
            }
            match self.stage {
                Stage::New | Stage::Open => {}
                Stage::Flush(farewell) => {
                    if sent.is_pending() {
                        return self.time_out(cx);
                    }
                    if self.worker.shard.borrow().is_closing() {
                        self.transport()?.going_away();
                    }
                    self.stage = Stage::Shutdown(farewell);
                    continue;
                }
                Stage::Shutdown(farewell) => {
                    let shut = self.transport()?.poll_shutdown(cx)?;
                    if shut.is_pending() {
                        return self.time_out(cx);
                    }
                    if farewell != Farewell::Linger {
                        return Poll::Ready(Ok(()));
                    }
                    self.stage = Stage::Linger;
                    continue;
                }
                Stage::Linger => {
                    return match self.discard(cx) {
                        Poll::Ready(result) => Poll::Ready(result),
                        Poll::Pending => self.time_out(cx),
                    };
                }
            }
            if let Some(farewell) = self.worker.shard.borrow_mut().farewell(self.id) {
                if farewell == Farewell::Drop {
                    return Poll::Ready(Ok(()));
                }
                let close_timeout = self.worker.exchange.limits.close_timeout;
                self.timer = Some(Box::pin(tokio::time::sleep(close_timeout)));
                self.partial = Partial::default();
                self.stage = Stage::Flush(farewell);
                continue;
            }
            if taken >= BYTES_PER_TURN || self.worker.shard.borrow().is_pressed() {
                // To the end of the queue.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.partial.is_empty() {
                // What came with the CONNECT of a client that owes waits like what it has not sent yet.
                ready!(self.hold_up(cx));
                if self.decode_partial() {
                    continue;
                }
            }
            if self.worker.shard.borrow_mut().appetite(self.id) != Appetite::Hungry {
                return Poll::Pending;
            }
            ready!(self.pause(cx));
            if self.partial.is_large() {
                ready!(self.poll_turn(cx, turn));
            }
            match ready!(self.receive(cx)) {
                Ok(count) => taken += count,
                Err(error) => self.failed(error)?,
            }
        }
    }

    /// Waits for its turn, unless it has it.
    fn poll_turn(&mut self, cx: &mut Context<'_>, turn: &mut Option<Turn>) -> Poll<()> {
        if turn.is_none() {
            *turn = Some(ready!(self.worker.turns.poll_turn(&mut self.ticket, cx)));
        }
        Poll::Ready(())
    }

    /// Looks up a few of the retained messages that are to be sent, if its turn has come. Says whether it
    /// did: then there may be something to write, and more to look up.
    fn walk(&mut self, cx: &mut Context<'_>, turn: &mut Option<Turn>) -> Poll<()> {
        let held = self.outbound.as_ref().is_some_and(|o| o.timer.is_some());
        if held || !self.worker.shard.borrow_mut().can_walk(self.id) {
            return Poll::Pending;
        }
        ready!(self.poll_turn(cx, turn));
        self.worker.shard.borrow_mut().walk_on(self.id);
        Poll::Ready(())
    }

    /// Writes what is due, up to a turn's worth of it. Pending while the transport does not take it, or
    /// there is more: a quick reader of a million retained messages is not to have the worker for itself.
    fn send(
        &mut self,
        cx: &mut Context<'_>,
        turn: &mut Option<Turn>,
    ) -> Result<Poll<()>, io::Error> {
        let mut sent = 0;
        let mut walked = Poll::Pending;
        let is_stuck = matches!(self.flushing, Flushing::Stuck { .. });
        if is_stuck && self.unsent.is_empty() && self.flush(cx)?.is_pending() {
            return Ok(Poll::Pending);
        }
        if self.unsent.is_empty()
            && self.flushing == Flushing::Clean
            && self.outbound.as_ref().is_none_or(|it| it.timer.is_none())
            && !self.worker.shard.borrow_mut().has_output(self.id)
        {
            return Ok(Poll::Ready(()));
        }
        let chunk = self.worker.shard.borrow().room_to_write(WRITE_CHUNK);
        while sent < WRITE_CHUNK {
            while !self.unsent.is_empty() {
                let Some(transport) = &mut self.transport else {
                    return Err(io::ErrorKind::NotConnected.into());
                };
                match Pin::new(transport).poll_write(cx, self.unsent.bytes())? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(written) => {
                        self.unstuck();
                        let freed = self.unsent.advance(written);
                        if freed > 0 {
                            let mut shard = self.worker.shard.borrow_mut();
                            let _ = shard.count_unsent(-(freed as isize));
                        }
                        self.flushing = Flushing::Needed;
                    }
                    Poll::Pending => {
                        self.stuck(cx)?;
                        return Ok(Poll::Pending);
                    }
                }
            }
            let worker = Rc::clone(&self.worker);
            let mut scratch = worker.scratch.borrow_mut();
            scratch.write.clear();
            let mut shard = worker.shard.borrow_mut();
            match &mut self.outbound {
                Some(sending) if matches!(self.stage, Stage::New | Stage::Open) => {
                    let out = &mut scratch.write;
                    sending.write(cx, &worker, &mut shard, self.id, chunk, out);
                }
                _ => {
                    shard.write(self.id, &mut scratch.write, chunk);
                }
            }
            if scratch.write.is_empty() {
                drop((scratch, shard));
                if walked.is_pending() {
                    walked = self.walk(cx, turn);
                    if walked.is_ready() {
                        continue;
                    }
                }
                break;
            }
            sent += scratch.write.len();
            shard.count_written(self.id, scratch.write.len());
            drop(shard);
            // The common case: all of it goes at once, and nothing is kept.
            let written = match self.transport()?.poll_write(cx, &scratch.write)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => written,
                Poll::Pending => 0,
            };
            self.flushing = Flushing::Needed;
            if written < scratch.write.len() {
                self.unsent = Leftover::of(&scratch.write[written..]);
                drop(scratch);
                self.count_unsent(self.unsent.room())?;
                scratch = worker.scratch.borrow_mut();
            }
            if scratch.write.capacity() > 4 * WRITE_CHUNK {
                // One huge message passed through; do not keep its room for ever.
                scratch.write = BytesMut::with_capacity(WRITE_CHUNK);
            }
        }
        if self.flushing != Flushing::Clean && self.flush(cx)?.is_pending() {
            return Ok(Poll::Pending);
        }
        if sent >= WRITE_CHUNK {
            cx.waker().wake_by_ref();
            return Ok(Poll::Pending);
        }
        if walked.is_ready() {
            // There may be more to look up.
            cx.waker().wake_by_ref();
        }
        Ok(Poll::Ready(()))
    }

    /// Makes the transport pass on what it took.
    fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        if self.transport()?.poll_flush(cx)?.is_pending() {
            self.stuck(cx)?;
            return Ok(Poll::Pending);
        }
        self.unstuck();
        self.flushing = Flushing::Clean;
        Ok(Poll::Ready(()))
    }

    /// The transport takes no more for now: counts what it may hold.
    ///
    /// # Errors
    /// As for [`count_unsent`](Link::count_unsent).
    fn stuck(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.widen() == Widened::Yes {
            cx.waker().wake_by_ref();
        }
        if matches!(self.flushing, Flushing::Stuck { .. }) {
            return Ok(());
        }
        let holds = self.transport()?.holds();
        self.flushing = Flushing::Stuck { holds };
        self.count_unsent(holds as usize)
    }

    /// The transport takes bytes again: what it may hold is counted no more.
    fn unstuck(&mut self) {
        if let Flushing::Stuck { holds } = self.flushing {
            self.flushing = Flushing::Needed;
            let mut shard = self.worker.shard.borrow_mut();
            let _ = shard.count_unsent(-(holds as isize));
        }
    }

    /// Counts bytes that are held for a full socket.
    ///
    /// # Errors
    /// When there is no memory for them: the connection is over.
    fn count_unsent(&mut self, bytes: usize) -> io::Result<()> {
        let mut shard = self.worker.shard.borrow_mut();
        if shard.count_unsent(bytes as isize) == Fits::Yes {
            return Ok(());
        }
        shard.set_time(self.worker.clock.now());
        shard.out_of_queue_memory(self.id);
        shard.settle();
        Err(io::ErrorKind::OutOfMemory.into())
    }

    /// Lets the transport hold more, if its client is known.
    fn widen(&mut self) -> Widened {
        let worker = &self.worker;
        match (
            &mut self.transport,
            worker.shard.borrow_mut().standing(self.id),
        ) {
            (Some(transport), Standing::Client) => {
                transport.widen(&worker.exchange.admission.window_memory)
            }
            _ => Widened::No,
        }
    }

    /// Reads once and hands in all packets that are complete. Returns the bytes read, frames included.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let worker = Rc::clone(&self.worker);
        let most = worker.shard.borrow_mut().room_in(self.id, READ_BUFFER);
        if let Some(partial) = self.partial.bytes() {
            let growth = partial.len().clamp(MIN_READ, MAX_GROWTH);
            partial.reserve(growth);
            let who = worker.shard.borrow_mut().standing(self.id);
            if self.partial.recount(who) == Fits::No {
                self.out_of_memory();
                return Poll::Ready(Ok(0));
            }
        }
        if let Some(partial) = self.partial.bytes() {
            let Some(transport) = &mut self.transport else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let mut room = partial.limit(most);
            let read = pin!(transport.read_buf(&mut room)).poll(cx);
            let (count, all) = ready!(self.came(read))?;
            self.received(&worker, count)?;
            self.charge(Came {
                messages: 0,
                bytes: all as u64,
            });
            self.decode_partial();
            return Poll::Ready(Ok(all));
        }
        let mut scratch = worker.scratch.borrow_mut();
        let buffer = &mut scratch.read;
        if buffer.capacity() < MIN_READ {
            buffer.reserve(READ_BUFFER);
        }
        let mut transport = self.transport()?;
        let mut room = (&mut *buffer).limit(most);
        let read = pin!(transport.read_buf(&mut room)).poll(cx);
        let (count, all) = ready!(self.came(read))?;
        self.received(&worker, count)?;
        let messages = decode(&worker, self.id, &mut self.decoder, buffer);
        let mut fits = Fits::Yes;
        if !buffer.is_empty() {
            let who = worker.shard.borrow_mut().standing(self.id);
            fits = self.partial.keep(&worker.exchange, buffer, who);
            buffer.clear();
        }
        drop(scratch);
        self.charge(Came {
            messages,
            bytes: all as u64,
        });
        if fits == Fits::No {
            self.out_of_memory();
        }
        Poll::Ready(Ok(all))
    }

    /// What a read brought: bytes of MQTT, and all bytes with the frames around them. Frames without MQTT
    /// bring nothing and are charged here.
    fn came(&mut self, read: Poll<io::Result<usize>>) -> Poll<io::Result<(usize, usize)>> {
        let overhead = self.transport.as_mut().map_or(0, S::take_overhead);
        if read.is_pending() && overhead > 0 {
            let now = self.worker.clock.now();
            self.worker.shard.borrow_mut().set_time(now);
            self.charge(Came {
                messages: 0,
                bytes: overhead as u64,
            });
        }
        read.map_ok(|count| (count, count + overhead))
    }

    /// The client broke the protocol of the transport, which is still there to tell it so: the connection
    /// ends in order. After any other failure there is nobody to tell.
    fn failed(&mut self, error: io::Error) -> io::Result<()> {
        if !error.get_ref().is_some_and(|inner| inner.is::<Violation>()) {
            return Err(error);
        }
        let mut shard = self.worker.shard.borrow_mut();
        shard.set_time(self.worker.clock.now());
        shard.violated(self.id, error.to_string());
        shard.settle();
        Ok(())
    }

    /// There is no memory for what was received: the connection ends.
    fn out_of_memory(&mut self) {
        self.partial = Partial::default();
        let mut shard = self.worker.shard.borrow_mut();
        shard.out_of_read_memory(self.id);
        shard.settle();
    }

    /// Counts what came against the rates; when one is exceeded, the next read waits.
    fn charge(&mut self, came: Came) {
        let admission = &self.worker.exchange.admission;
        let mut shard = self.worker.shard.borrow_mut();
        let tick = shard.now().tick;
        let place = self.place.as_ref().map(|place| &**place.entrance());
        if admission.shares_rates() || place.is_some_and(Entrance::shares_rates) {
            // Whether anybody waits for these is looked at before each read.
            admission.charge_shared(place, self.worker.number, tick, came);
        }
        if let Some(wait) = shard.charge(self.id, came) {
            self.timer = Some(Box::pin(tokio::time::sleep(Duration::from_millis(wait))));
        }
    }

    fn received(&mut self, worker: &Worker, count: usize) -> io::Result<()> {
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut shard = worker.shard.borrow_mut();
        shard.set_time(worker.clock.now());
        shard.count_read(self.id, count);
        let tick = shard.now().tick;
        drop(shard);
        if let Some(transport) = &mut self.transport
            && transport.is_narrow(tick, count)
        {
            // Where there is no room, it stays as slow as it is.
            let _ = self.widen();
        }
        Ok(())
    }

    /// Decodes what was kept. Says whether that led to anything that may need more than waiting.
    fn decode_partial(&mut self) -> bool {
        let Some(bytes) = self.partial.bytes() else {
            return false;
        };
        let before = bytes.len();
        let messages = decode(&self.worker, self.id, &mut self.decoder, bytes);
        let progress = bytes.len() < before;
        // Less than before: it fits.
        if progress && bytes.len() <= MIN_READ {
            // What is left of a large packet's buffer holds on to all of it.
            *bytes = BytesMut::from(&bytes[..]);
        }
        let _ = self.partial.recount(Standing::Client);
        if progress {
            self.charge(Came { messages, bytes: 0 });
        }
        progress || self.worker.shard.borrow_mut().farewell(self.id).is_some()
    }

    /// Holds a publisher up while another worker cannot follow, and while it is too fast.
    fn pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.hold_up(cx));
            let wait = match self.worker.exchange.is_congested() {
                true => self.congestion_wait(),
                false => match self.shared_wait() {
                    Some(wait) => wait,
                    None => return Poll::Ready(()),
                },
            };
            self.timer = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    /// Holds it up for as long as was found out before.
    fn hold_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
        }
        Poll::Ready(())
    }

    /// How long to wait because another worker, or the disk, is behind. The client is not to be taken for
    /// silent meanwhile.
    fn congestion_wait(&self) -> Duration {
        let wait = match self.worker.exchange.is_store_full() {
            false => CONGESTION_PAUSE,
            true => STORE_PAUSE,
        };
        let mut shard = self.worker.shard.borrow_mut();
        shard.set_time(self.worker.clock.now());
        let tick = shard.now().tick;
        shard.not_read_before(self.id, tick + wait.as_millis() as u64);
        wait
    }

    /// How long to wait because all together are too fast.
    fn shared_wait(&self) -> Option<Duration> {
        let admission = &self.worker.exchange.admission;
        let place = self.place.as_ref().map(|place| &**place.entrance());
        if !admission.is_closed(place) {
            return None;
        }
        let mut shard = self.worker.shard.borrow_mut();
        shard.set_time(self.worker.clock.now());
        let tick = shard.now().tick;
        let wait = admission.shared_wait(place, tick, shard.counters())?;
        shard.not_read_before(self.id, tick + wait);
        Some(Duration::from_millis(wait))
    }

    /// Reads and forgets a turn's worth, until the other side closes.
    fn discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let worker = Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        let buffer = &mut scratch.read;
        if buffer.capacity() < MIN_READ {
            buffer.reserve(READ_BUFFER);
        }
        discard::poll(self.transport()?, buffer, BYTES_PER_TURN, cx)
    }

    /// Waits for the transport, but not for ever.
    fn time_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Sending {
    /// Appends what there is to send: of messages as many as there may be now, of answers all.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        shard: &mut Shard,
        id: ConnectionId,
        chunk: usize,
        out: &mut BytesMut,
    ) {
        if self.is_held(cx) {
            return shard.write_answers(id, out);
        }
        shard.set_time(worker.clock.now());
        let tick = shard.now().tick;
        let paces = &worker.exchange.admission.paces;
        // A worker writes for one connection at a time: what it counts meanwhile is this one's.
        let before = shard.counters().messages_out();
        shard.write(id, out, self.rates.room(paces, tick, chunk));
        let messages = shard.counters().messages_out() - before;
        if messages == 0 {
            return;
        }
        let went = Came {
            messages,
            bytes: out.len() as u64,
        };
        if let Some(wait) = self.rates.charge(paces, tick, went, shard.counters()) {
            let wait = Duration::from_millis(wait);
            self.timer = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }
}

/// Hands in the packets at the front of `buffer`, as many as are complete and wanted. Returns how many of
/// them were messages.
fn decode(worker: &Worker, id: ConnectionId, decoder: &mut Decoder, buffer: &mut BytesMut) -> u64 {
    let mut messages = 0;
    let mut shard = worker.shard.borrow_mut();
    while !shard.is_pressed() {
        match shard.appetite(id) {
            Appetite::Hungry => {}
            Appetite::Waiting => break,
            Appetite::Over => {
                buffer.clear();
                break;
            }
        }
        match decoder.decode(buffer) {
            Ok(Some(packet)) => {
                messages += u64::from(matches!(packet, Packet::Publish(_)));
                let may_join = matches!(packet, Packet::Connect(_) | Packet::Auth(_));
                shard.packet(id, packet);
                if may_join && shard.owes(id) {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                shard.malformed(id, error, decoder.version());
                buffer.clear();
                break;
            }
        }
    }
    shard.settle_among_many();
    messages
}

impl<S> Future for Link<S>
where
    S: Movable,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let link = &mut *self;
        let mut turn = None;
        if link.stage != Stage::Open {
            ready!(link.poll_turn(cx, &mut turn));
        }
        link.worker.shard.borrow_mut().awake(link.id);
        let ran = match link.broken.take() {
            None => link.run(cx, &mut turn),
            Some(error) => Poll::Ready(Err(error)),
        };
        match ran {
            Poll::Pending => {
                let held = link.outbound.as_ref().is_some_and(|o| o.timer.is_some());
                // TLS takes some of what the socket does not.
                let taken = link.unsent.is_empty() && link.flushing == Flushing::Clean;
                let rest = match (taken, held) {
                    (true, false) => Rest::Asleep,
                    (true, true) => Rest::Throttled,
                    (false, _) => Rest::Blocked,
                };
                let mut shard = link.worker.shard.borrow_mut();
                if let Some(place) = link.place.as_mut().filter(|place| place.is_strangers())
                    && shard.standing(link.id) == Standing::Client
                {
                    place.let_in();
                }
                shard.sleep(link.id, rest, cx.waker());
                Poll::Pending
            }
            Poll::Ready(result) => {
                if let Err(error) = result {
                    if link.poll_turn(cx, &mut turn).is_pending() {
                        link.broken = Some(error);
                        let mut shard = link.worker.shard.borrow_mut();
                        shard.sleep(link.id, Rest::Blocked, cx.waker());
                        return Poll::Pending;
                    }
                    let mut shard = link.worker.shard.borrow_mut();
                    shard.set_time(link.worker.clock.now());
                    shard.lost(link.id, error.to_string());
                    shard.settle();
                }
                Poll::Ready(())
            }
        }
    }
}

impl<S> Drop for Link<S> {
    fn drop(&mut self) {
        // Also after a panic in the task, or when the runtime goes: nobody may stay registered whose
        // transport is gone. Should the shard itself be what panicked, there is nothing to tell it.
        if let Ok(mut shard) = self.worker.shard.try_borrow_mut() {
            let holds = match self.flushing {
                Flushing::Stuck { holds } => holds as usize,
                Flushing::Clean | Flushing::Needed => 0,
            };
            let _ = shard.count_unsent(-((self.unsent.room() + holds) as isize));
            shard.release(self.id);
            shard.settle();
        }
    }
}
