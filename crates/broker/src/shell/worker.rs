//! A worker: one thread, one single-threaded runtime, one shard, and the tasks of its connections.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, watch};

use super::acceptor::{Arrival, Caller, Place};
use super::broker::StartError;
use super::clock::Clock;
use super::entrance;
use super::handshake_turns::HandshakeTurns;
use super::link::{Link, Parcel};
use super::socket::{Movable, Socket};
use super::turns::{self, Turns};
use crate::admission::overload::PROBE;
use crate::machine::exchange::Exchange;
use crate::machine::mailbox::Mail;
use crate::machine::shard::Shard;
use crate::machine::tenants::Origin;

/// Connections waiting for a worker to take them: the depth of a connect burst it may be late for.
const ARRIVALS: usize = 1024;

/// Size of the shared read buffer. What one read brings at most; sixteen full TLS records would be
/// more than a fair turn.
pub(crate) const READ_BUFFER: usize = 64 * 1024;

/// What all tasks of a worker share. Borrowed for a moment at a time, never across an await.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) shard: RefCell<Shard>,
    pub(crate) scratch: RefCell<Scratch>,
    pub(crate) clock: Clock,
    pub(crate) exchange: Arc<Exchange>,
    /// One for each worker.
    removals: Vec<mpsc::UnboundedSender<Removal>>,
    pub(crate) handshakes: Arc<HandshakeTurns>,
    /// Whose turn it is of those who can wait.
    pub(crate) turns: Rc<Turns>,
}

/// A connection on its way to the worker of its session. How many there can be at once is bounded by
/// the sockets that are not connected clients yet.
///
/// Whatever its transport is: this happens once in the life of a connection, so it may cost a call by
/// reference.
pub(crate) struct Removal(Box<dyn Arrive>);

/// Buffers that all connections of a worker use in turn, so that an idle one holds none.
///
/// `read` is consumed from the front: each read takes the room behind the one before, packets are
/// slices of it, and a new buffer begins when it is used up. So a payload that is kept for a while
/// (by the tap) keeps alive a buffer that is full of other messages, not one of its own.
pub(crate) struct Scratch {
    pub(crate) read: BytesMut,
    pub(crate) write: BytesMut,
}

/// How connections get from one worker to another.
pub(crate) struct Ways {
    /// To each worker.
    pub(crate) removals: Vec<mpsc::UnboundedSender<Removal>>,
    /// To this one.
    pub(crate) arrivals: mpsc::UnboundedReceiver<Removal>,
}

/// Starts worker `number`. It ends once the broker stops and its last connection is gone.
pub(crate) fn spawn(
    number: usize,
    shard: Shard,
    exchange: Arc<Exchange>,
    clock: Clock,
    ways: Ways,
    running: watch::Sender<()>,
) -> Result<(JoinHandle<()>, mpsc::Sender<Arrival>), StartError> {
    let name = format!("mqtt-worker-{number}");
    let (sender, arrivals) = mpsc::channel(ARRIVALS);
    let (started, start) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            let _running = running;
            // A local runtime must be built where it runs.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            let turns = Turns::new(turns::SHARE);
            let worker = Worker::new(number, shard, exchange, clock, ways.removals, turns);
            runtime.block_on(work(number, Rc::new(worker), arrivals, ways.arrivals));
            // Dropping the runtime drops what is left of the tasks, and with them their sockets.
        })
        .map_err(|source| StartError::Thread {
            name: name.clone(),
            source,
        })?;
    match start.recv() {
        Ok(Ok(())) => Ok((thread, sender)),
        Ok(Err(source)) => Err(StartError::Thread { name, source }),
        Err(_) => Err(StartError::Thread {
            name,
            source: std::io::Error::other("the thread died before it started"),
        }),
    }
}

impl Worker {
    pub(super) fn new(
        number: usize,
        shard: Shard,
        exchange: Arc<Exchange>,
        clock: Clock,
        removals: Vec<mpsc::UnboundedSender<Removal>>,
        turns: Rc<Turns>,
    ) -> Worker {
        let handshakes = exchange.limits.max_handshakes.div_ceil(exchange.shards());
        Worker {
            number,
            shard: RefCell::new(shard),
            scratch: RefCell::new(Scratch {
                read: BytesMut::with_capacity(READ_BUFFER),
                write: BytesMut::with_capacity(READ_BUFFER),
            }),
            clock,
            exchange,
            removals,
            handshakes: HandshakeTurns::new(handshakes),
            turns,
        }
    }

    /// Handles mail, as far as the shard takes it now, and whatever is due by now. Breaks when there
    /// is nothing left to wait for.
    fn look_after(&self, mail: &mut VecDeque<Mail>) -> ControlFlow<()> {
        let mut shard = self.shard.borrow_mut();
        shard.set_time(self.clock.now());
        shard.mail(mail);
        shard.turn();
        shard.settle();
        // What is at hand is stored and waited for: it must not be dropped before the trash is closed.
        match shard.is_done() && mail.is_empty() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Why a worker looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// Mail, or time.
    Work,
    /// Whoever can wait: what they bring is handled by their tasks.
    Newcomers,
}

/// Mail, arrivals and time, until there is nothing left to do.
pub(super) async fn work(
    number: usize,
    worker: Rc<Worker>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut removals: mpsc::UnboundedReceiver<Removal>,
) {
    let mailbox = Arc::clone(worker.exchange.mailbox(number));
    let mut mail = VecDeque::new();
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut probes = tokio::time::interval(PROBE);
    probes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first probe comes a moment later: one that hangs before it would never be found late.
    let delays = &worker.exchange.admission.delays;
    delays.looked(number, worker.clock.now().tick, Duration::ZERO);
    loop {
        let came = poll_fn(|cx| {
            // All are looked at each time: however much there is of one, the others get on.
            let left = !mail.is_empty();
            let mail_came = !left && mailbox.take(&mut mail, cx.waker());
            let ticked = seconds.poll_tick(cx).is_ready();
            // Asked for until it says that there is nothing, or it would not wake us.
            while let Poll::Ready(due) = probes.poll_tick(cx) {
                let tick = worker.clock.now().tick;
                let delays = &worker.exchange.admission.delays;
                delays.looked(number, tick, due.elapsed());
            }
            let round = worker.turns.poll_round(cx).is_ready();
            let mut taken = false;
            // What the round has no room for is taken in the next one, which is sure to come.
            while worker.turns.has_room()
                && let Poll::Ready(Some(removal)) = removals.poll_recv(cx)
            {
                let _turn = worker.turns.begin();
                taken = true;
                removal.0.arrive(&worker);
            }
            while worker.turns.has_room()
                && let Poll::Ready(Some(arrival)) = arrivals.poll_recv(cx)
            {
                let _turn = worker.turns.begin();
                taken = true;
                serve(Rc::clone(&worker), arrival);
            }
            match () {
                () if left || mail_came || ticked => Poll::Ready(Came::Work),
                () if round || taken => Poll::Ready(Came::Newcomers),
                // Nothing, or the acceptor is gone because the broker stops.
                () => Poll::Pending,
            }
        })
        .await;
        if came == Came::Work && worker.look_after(&mut mail).is_break() {
            worker.exchange.admission.delays.ended(number);
            return;
        }
        // Mail may be long and newcomers many: connections get their turn in between.
        tokio::task::yield_now().await;
    }
}

/// Begins with a connection from the acceptor.
fn serve(worker: Rc<Worker>, arrival: Arrival) {
    let Arrival {
        caller,
        peer,
        door,
        place,
    } = arrival;
    let mut origin = Origin {
        listener: Arc::clone(&door.name),
        protocol: door.protocol,
        peer,
        certificates: Vec::new(),
        proxied: None,
    };
    let socket = match caller {
        Caller::Tcp(socket) => socket,
        Caller::Quic(arrived) => {
            origin.certificates = arrived.certificates;
            return connect(worker, arrived.stream, origin, place);
        }
    };
    let socket = match Socket::new(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(event = "client.socket_failed", %peer, %error);
            return;
        }
    };
    match door.is_plain() {
        true => connect(worker, socket, origin, place),
        // A task that is large, and gone once the connection stands.
        false => {
            let turns = Rc::clone(&worker.turns);
            let entering = entrance::enter(worker, socket, door, origin, place);
            drop(tokio::task::spawn_local(turns.step_by_step(entering)));
        }
    }
}

/// Makes a connection of a transport that stands, as a task of its own that is no larger than needed.
pub(crate) fn connect<S: Movable>(worker: Rc<Worker>, transport: S, origin: Origin, place: Place) {
    if let Some(link) = Link::open(worker, transport, origin, place) {
        drop(tokio::task::spawn_local(link));
    }
}

/// Goes on with a connection from another worker.
fn unpack<S: Movable>(worker: &Rc<Worker>, parcel: Parcel<S>) {
    match Link::unpack(Rc::clone(worker), parcel) {
        Ok(Some(link)) => drop(tokio::task::spawn_local(link)),
        // The broker stops.
        Ok(None) => {}
        Err(error) => tracing::warn!(event = "client.socket_failed", %error),
    }
}

impl Worker {
    /// Sends a connection to another worker; if that one is gone, the broker stops, and the connection
    /// is closed.
    pub(crate) fn remove_to(&self, worker: usize, removal: Removal) {
        let _ = self.removals[worker].send(removal);
    }
}

impl<S: Movable> From<Parcel<S>> for Removal {
    fn from(parcel: Parcel<S>) -> Removal {
        Removal(Box::new(parcel))
    }
}

/// What a connection of any transport does on arrival.
trait Arrive: Send {
    fn arrive(self: Box<Self>, worker: &Rc<Worker>);
}

impl<S: Movable> Arrive for Parcel<S> {
    fn arrive(self: Box<Self>, worker: &Rc<Worker>) {
        unpack(worker, *self);
    }
}
