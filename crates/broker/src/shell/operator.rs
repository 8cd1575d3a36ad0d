//! What an operator asks of a running broker: pages of clients, one client, its end; and live traces.
//!
//! Flow: a question goes by mail to the workers that own the sessions (`machine/inspecting.rs`) and is
//! answered through a one-shot channel. Should the broker stop first, the answer is the one of a broker
//! without clients.
//!
//! Bound: [`INQUIRIES`] questions at once, others wait for their turn; so what is on its way is at most
//! that many pages from each worker. Purges have a bound of their own ([`MAX_PURGES`]): they wait for the
//! disk, and just while that is stalled an operator wants to see who is there.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mqtt::ReasonCode;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::broker::BrokerHandle;
use crate::clients::{
    ClientDetail, ClientPage, ClientQuery, MAX_CLIENTS_PER_PAGE, PurgeError, Purged,
};
use crate::machine::exchange::Exchange;
use crate::machine::inspecting::{Inquiry, Listing, Part, Reply};
use crate::machine::mailbox::Mail;
use crate::machine::tracer::TraceOrder;
use crate::trace::{MAX_TRACES, Sink, TraceError, TraceEvent, TraceFilter, TraceOptions};

/// Questions of operators that the workers are at work on at once.
pub(super) const INQUIRIES: usize = 16;

impl BrokerHandle {
    /// Clients in the order of their identifiers, over all workers. A client that is there, and fits,
    /// during the whole call is in it; one that comes or goes meanwhile may be.
    ///
    /// Costs a look at every session there is, in steps of well under a millisecond between which the
    /// workers serve their clients. Empty once the broker has stopped.
    pub async fn clients(&self, query: ClientQuery) -> ClientPage {
        let limit = query.limit.clamp(1, MAX_CLIENTS_PER_PAGE);
        let query = Arc::new(ClientQuery { limit, ..query });
        let _turn = self.inner.inquiries.acquire().await;
        let exchange = &self.inner.exchange;
        let mut answers = Vec::with_capacity(exchange.shards());
        for shard in 0..exchange.shards() {
            let (reply, answer) = reply(None);
            let listing = Listing::new(Arc::clone(&query), reply);
            let mail = Mail::Inquiry(Inquiry::List(listing));
            exchange.mailbox(shard).post(mail);
            answers.push(answer);
        }
        let mut parts = Vec::with_capacity(answers.len());
        for answer in answers {
            parts.extend(self.answer(answer).await);
        }
        merge(parts, limit)
    }

    /// Everything about one client; `None` if there is none of this name, connected or stored.
    pub async fn client(&self, client_id: &str) -> Option<ClientDetail> {
        let ask = |client_id, reply| Inquiry::Show(client_id, reply);
        self.ask(client_id, ask).await.flatten()
    }

    /// Disconnects a client with `reason`, which is what an MQTT 5 client is told if a server may say
    /// it in DISCONNECT. Its will is published as its session has it. Says whether it was connected.
    pub async fn disconnect_client(&self, client_id: &str, reason: ReasonCode) -> bool {
        let ask = |client_id, reply| Inquiry::Disconnect(client_id, reason, reply);
        self.ask(client_id, ask).await.unwrap_or(false)
    }

    /// Ends a client's connection (0x98) and its session with everything that waits for it and all its
    /// subscriptions; its will is published. Answers once that is in the store: a crash does not bring
    /// it back. `None` if there is no such client.
    ///
    /// Nothing keeps the client from coming back and beginning anew. Who stops waiting for the answer
    /// stops nothing.
    ///
    /// # Errors
    /// [`PurgeError`], if so many wait for the store already; then nothing was done.
    pub async fn purge_client(&self, client_id: &str) -> Result<Option<Purged>, PurgeError> {
        // It goes with the purge, whoever still waits for the answer.
        let place = Arc::clone(&self.inner.purges)
            .try_acquire_owned()
            .map_err(|_| PurgeError::TooMany)?;
        let answer = self.post(client_id, Some(place), Inquiry::Purge);
        Ok(self.answer(answer).await.flatten())
    }

    /// Follows clients live, from now on and until the [`Trace`] is dropped: those connected as well as
    /// those that come later. No more than [`MAX_TRACES`] at once.
    ///
    /// # Errors
    /// [`TraceError`] names the limit that is in the way.
    pub fn trace(&self, filter: TraceFilter, options: TraceOptions) -> Result<Trace, TraceError> {
        let names = filter.principals.len() + filter.clients.len();
        let sink = Arc::new(Sink::new(filter, options)?);
        let exchange = Arc::clone(&self.inner.exchange);
        let more = |running| (running < MAX_TRACES).then_some(running + 1);
        exchange
            .traces
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| TraceError::TooMany)?;
        exchange.post_to_all(|| Mail::Trace(TraceOrder::Begin(Arc::clone(&sink))));
        tracing::info!(event = "trace.begun", names, payload = ?options.payload);
        Ok(Trace {
            sink,
            exchange,
            stopped: self.inner.stopped.clone(),
        })
    }

    /// Asks the worker on which the session of a client lives.
    async fn ask<T: Send + 'static>(
        &self,
        client_id: &str,
        ask: impl FnOnce(Arc<str>, Reply<T>) -> Inquiry,
    ) -> Option<T> {
        let _turn = self.inner.inquiries.acquire().await;
        let answer = self.post(client_id, None, ask);
        self.answer(answer).await
    }

    /// Posts a question about a client; `place` is given back once it is answered or can no longer be.
    fn post<T: Send + 'static>(
        &self,
        client_id: &str,
        place: Option<OwnedSemaphorePermit>,
        ask: impl FnOnce(Arc<str>, Reply<T>) -> Inquiry,
    ) -> oneshot::Receiver<T> {
        let exchange = &self.inner.exchange;
        let (reply, answer) = reply(place);
        let home = exchange.home(client_id);
        let mail = Mail::Inquiry(ask(client_id.into(), reply));
        exchange.mailbox(home).post(mail);
        answer
    }

    /// Waits for an answer; `None` if the broker stopped before it came.
    pub(super) async fn answer<T>(&self, answer: oneshot::Receiver<T>) -> Option<T> {
        let mut stopped = self.inner.stopped.clone();
        tokio::select! {
            biased;
            // Dropping either loses nothing: nobody else will ask for this answer.
            answer = answer => answer.ok(),
            _ = stopped.changed() => None,
        }
    }
}

/// A way for an answer, and where it comes out. A place is given back with the answer.
pub(super) fn reply<T: Send + 'static>(
    place: Option<OwnedSemaphorePermit>,
) -> (Reply<T>, oneshot::Receiver<T>) {
    let (sender, receiver) = oneshot::channel();
    let reply = Reply::new(move |answer| {
        drop(place);
        // Whoever asked may have stopped waiting.
        let _ = sender.send(answer);
    });
    (reply, receiver)
}

/// One page of what the workers have.
fn merge(parts: Vec<Part>, limit: usize) -> ClientPage {
    // Beyond this one some worker has not looked.
    let covers = parts.iter().filter_map(|part| part.covers.clone()).min();
    let mut items: Vec<_> = parts.into_iter().flat_map(|part| part.items).collect();
    items.sort_unstable_by(|a, b| a.client_id.cmp(&b.client_id));
    if let Some(covers) = &covers {
        items.retain(|item| item.client_id <= *covers);
    }
    let next = match items.len() > limit {
        true => {
            items.truncate(limit);
            items.last().map(|item| Arc::clone(&item.client_id))
        }
        false => covers,
    };
    ClientPage { items, next }
}

/// A live view of some clients; ends when it is dropped. See [`BrokerHandle::trace`].
pub struct Trace {
    sink: Arc<Sink>,
    exchange: Arc<Exchange>,
    /// Errors once every thread of the broker has ended.
    stopped: watch::Receiver<()>,
}

impl Trace {
    /// The next event; `None` once the broker has stopped and all events were taken. Cancel-safe.
    pub async fn next(&mut self) -> Option<TraceEvent> {
        tokio::select! {
            biased;
            // Takes an event or takes nothing.
            event = poll_fn(|cx| self.sink.poll(cx)) => Some(event),
            _ = self.stopped.changed() => self.sink.pop(),
        }
    }

    /// Events lost so far because the queue was full.
    pub fn missed(&self) -> u64 {
        self.sink.missed()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trace").field(&self.sink).finish()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.sink.close();
        self.exchange.traces.fetch_sub(1, Ordering::Relaxed);
        self.exchange
            .post_to_all(|| Mail::Trace(TraceOrder::End(Arc::clone(&self.sink))));
        tracing::info!(event = "trace.ended", missed = self.sink.missed());
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::clients::{ClientSummary, MAX_PURGES};
    use crate::hooks::{ConnectAttempt, Decision, Hooks, Identity, Refusal, Tap};
    use crate::shell::broker::{Broker, BrokerConfig};
    use crate::transport::{ListenerConfig, Transport};

    /// No client comes.
    struct Nobody;

    impl Hooks for Nobody {
        fn authenticate(&self, _: &ConnectAttempt<'_>) -> Result<Identity, Refusal> {
            Err(Refusal::new(ReasonCode::NotAuthorized, "nobody comes"))
        }

        fn may_publish(&self, _: &Identity, _: &str) -> Decision {
            Decision::Deny
        }

        fn may_subscribe(&self, _: &Identity, _: &str) -> Decision {
            Decision::Deny
        }

        fn tap(
            &self,
            _: &Identity,
            _: &mqtt::Publish,
            _: i64,
            _: crate::acknowledge::Acknowledge,
        ) -> Tap {
            Tap::NotWanted
        }
    }

    fn part(names: &[&str], covers: Option<&str>) -> Part {
        let item = |name: &&str| ClientSummary {
            client_id: (*name).into(),
            principal: (*name).into(),
            group: None,
            connection: None,
            disconnected_us: None,
            subscriptions: 0,
            queued: 0,
            queued_bytes: 0,
        };
        Part {
            items: names.iter().map(item).collect(),
            covers: covers.map(Into::into),
        }
    }

    fn merged(parts: Vec<Part>, limit: usize) -> (Vec<String>, Option<String>) {
        let page = merge(parts, limit);
        let names = page.items.iter().map(|item| item.client_id.to_string());
        (names.collect(), page.next.map(|next| next.to_string()))
    }

    #[test]
    fn pages_of_workers_become_one_without_gaps() {
        let all = vec![part(&["b", "d"], None), part(&["a", "c"], None)];
        let expected = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!(merged(all, 4), (expected, None));
        let more = vec![part(&["b", "d", "e"], Some("e")), part(&["a", "c"], None)];
        let expected = ["a", "b"].map(str::to_owned).to_vec();
        assert_eq!(merged(more, 2), (expected, Some("b".to_owned())));
        // The first worker looked up to `d`, where two have gone since: `x` may not be the next one.
        let gone = vec![part(&["b"], Some("d")), part(&["a", "x"], None)];
        let expected = ["a", "b"].map(str::to_owned).to_vec();
        assert_eq!(merged(gone, 2), (expected, Some("d".to_owned())));
    }

    /// A worker that is busy until the returned sender is dropped.
    fn busy(handle: &BrokerHandle, worker: usize) -> std::sync::mpsc::Sender<()> {
        let (until, free) = std::sync::mpsc::channel();
        let reply = Reply::new(move |_: bool| {
            // An error: it was dropped.
            let _ = free.recv();
        });
        let nobody = Inquiry::Disconnect("".into(), ReasonCode::Success, reply);
        let exchange = &handle.inner.exchange;
        exchange.mailbox(worker).post(Mail::Inquiry(nobody));
        until
    }

    #[test]
    fn purges_that_wait_hold_up_no_questions() {
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = ListenerConfig::new("test", loopback, Transport::Tcp);
        let mut config = BrokerConfig::new(vec![listener]);
        config.workers = 2.try_into().ok();
        let handle = Broker::start(config, Arc::new(Nobody)).expect("it starts");
        let home = |name: &String| handle.inner.exchange.home(name);
        let name = |worker| {
            (0..)
                .map(|n| format!("car-{n}"))
                .find(|name| home(name) == worker)
        };
        let (there, here) = (name(0).expect("one"), name(1).expect("one"));

        let until = busy(&handle, 0);
        let mut cx = Context::from_waker(Waker::noop());
        let mut purges: Vec<_> = (0..MAX_PURGES)
            .map(|_| Box::pin(handle.purge_client(&there)))
            .collect();
        for purge in &mut purges {
            assert!(purge.as_mut().poll(&mut cx).is_pending());
        }
        // Who hangs up does not make room: what it asked for is still to be done.
        purges.truncate(1);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let refused = handle.purge_client(&here).await;
            assert_eq!(refused, Err(PurgeError::TooMany));
            let patience = std::time::Duration::from_secs(30);
            let asked = tokio::time::timeout(patience, handle.client(&here)).await;
            assert_eq!(asked.expect("answered meanwhile"), None);
            drop(until);
            for purge in purges {
                assert_eq!(purge.await, Ok(None));
            }
            // Answered in their order: all others are, too, once a question behind them is.
            assert_eq!(handle.client(&there).await, None);
            assert_eq!(handle.purge_client(&here).await, Ok(None));
        });
        assert_eq!(handle.inner.purges.available_permits(), MAX_PURGES);
    }
}
