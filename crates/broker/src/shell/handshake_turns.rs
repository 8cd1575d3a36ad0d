//! Whose turn it is to have a handshake: so many at once, and half of them at most for one network.
//!
//! A turn is a thing of seconds for a client on a bad link, and for one that sends a single byte and waits
//! for the end of its time: a thousand such sockets would be all the turns there are. So a network has a
//! share. Who is beyond it waits for one of its own network to be done, and only then in the queue of all,
//! in which no network has more than its share either. A fleet behind one address is served, if nobody else
//! is there, half as many at once as may be; that is no slower, as the processors are busy with a few.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::neighbours::Network;

/// HandshakeTurns of a worker, or of all QUIC listeners.
#[derive(Debug)]
pub(crate) struct HandshakeTurns {
    all: Arc<Semaphore>,
    count: usize,
    /// Of one network at most.
    share: usize,
    /// Networks that have a turn or wait for one: no more than there are sockets pending.
    networks: Mutex<HashMap<Network, Own>>,
}

/// The share of one network.
#[derive(Debug)]
struct Own {
    free: Arc<Semaphore>,
    /// Who has something of it or waits for it.
    users: usize,
}

/// A turn; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _all: Option<OwnedSemaphorePermit>,
    _share: Option<Share>,
}

/// What a turn takes of the share of its network.
#[derive(Debug)]
pub(crate) struct Share {
    // Before the user, whose end may be that of the semaphore.
    _free: OwnedSemaphorePermit,
    _user: User,
}

/// Keeps the share of a network in the table.
#[derive(Debug)]
struct User {
    turns: Arc<HandshakeTurns>,
    network: Network,
}

impl Drop for User {
    fn drop(&mut self) {
        let mut networks = self.turns.networks();
        if let Some(own) = networks.get_mut(&self.network) {
            own.users -= 1;
            if own.users == 0 {
                networks.remove(&self.network);
            }
        }
    }
}

impl HandshakeTurns {
    /// So many turns.
    pub(crate) fn new(count: usize) -> Arc<HandshakeTurns> {
        let count = count.min(Semaphore::MAX_PERMITS);
        Arc::new(HandshakeTurns {
            all: Arc::new(Semaphore::new(count)),
            count,
            share: count.div_ceil(2),
            networks: Mutex::default(),
        })
    }

    /// Waits for a turn. `None` is for a proxy that speaks for nobody: it has no network.
    pub(crate) async fn take(self: &Arc<HandshakeTurns>, network: Option<Network>) -> Turn {
        let share = match network {
            None => None,
            Some(network) => {
                let (user, free) = self.user(network);
                // Nobody closes it.
                let free = free.acquire_owned().await.ok();
                free.map(|_free| Share { _free, _user: user })
            }
        };
        Turn {
            _all: self.any().await,
            _share: share,
        }
    }

    /// Waits for a turn of whoever it will be.
    pub(crate) async fn any(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        Arc::clone(&self.all).acquire_owned().await.ok()
    }

    /// What a turn takes of the share of `network`, if there is something left of it.
    pub(crate) fn share(self: &Arc<HandshakeTurns>, network: Network) -> Option<Share> {
        let (user, free) = self.user(network);
        let free = free.try_acquire_owned().ok()?;
        Some(Share {
            _free: free,
            _user: user,
        })
    }

    /// HandshakeTurns that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.count.saturating_sub(self.all.available_permits())
    }

    fn user(self: &Arc<HandshakeTurns>, network: Network) -> (User, Arc<Semaphore>) {
        let mut networks = self.networks();
        let own = networks.entry(network).or_insert_with(|| Own {
            free: Arc::new(Semaphore::new(self.share)),
            users: 0,
        });
        own.users += 1;
        let user = User {
            turns: Arc::clone(self),
            network,
        };
        (user, Arc::clone(&own.free))
    }

    fn networks(&self) -> MutexGuard<'_, HashMap<Network, Own>> {
        // Nothing that can panic runs under the lock.
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn network(n: u32) -> Network {
        Network::of(std::net::IpAddr::V4(n.into()))
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_network_waits_for_itself_while_others_have_their_turn() {
        let turns = HandshakeTurns::new(4);
        let take = |n| poll(pin!(turns.take(Some(network(n)))));
        let mut greedy = vec![take(1).expect("free"), take(1).expect("free")];
        let mut third = pin!(turns.take(Some(network(1))));
        assert!(poll(third.as_mut()).is_none(), "beyond its share");
        let other = take(2).expect("others have the rest");
        assert!(turns.share(network(1)).is_none());
        assert!(turns.share(network(3)).is_some());
        drop(greedy.pop());
        let third = poll(third.as_mut()).expect("one of its own is done");
        assert_eq!(turns.taken(), 3);
        drop((greedy, other, third));
        assert_eq!(turns.taken(), 0);
    }

    #[test]
    fn who_gives_up_waiting_leaves_nothing_behind() {
        let turns = HandshakeTurns::new(1);
        let first = poll(pin!(turns.take(Some(network(1))))).expect("free");
        {
            let mut same = pin!(turns.take(Some(network(1))));
            let mut other = pin!(turns.take(Some(network(2))));
            let mut nobody = pin!(turns.take(None));
            assert!(poll(same.as_mut()).is_none());
            assert!(poll(other.as_mut()).is_none());
            assert!(poll(nobody.as_mut()).is_none());
            assert_eq!(turns.networks().len(), 2);
        }
        assert_eq!(turns.networks().len(), 1);
        drop(first);
        assert_eq!((turns.networks().len(), turns.taken()), (0, 0));
        assert!(poll(pin!(turns.take(None))).is_some());
    }
}
