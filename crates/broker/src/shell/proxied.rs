//! Reads the header of a proxy from a socket, and nothing behind it.
//!
//! What follows the header is TLS or MQTT, read by others that know nothing of headers. So the bytes are
//! looked at first and taken only as far as they belong to the header; a header that comes at once
//! costs two system calls.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::acceptor::Place;
use super::door::Door;
use super::socket::Socket;
use super::worker::Worker;
use crate::machine::tenants::Origin;
use crate::proxy::{self, Header, MAX_HEADER, Malformed, Parse, Proxied};

/// Why no header came.
#[derive(Debug, thiserror::Error)]
enum HeaderError {
    #[error("the connection ended before its PROXY header did")]
    Closed,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("reading failed")]
    Io(#[from] io::Error),
}

/// Takes the header from `socket` and notes in `origin` who the client is; `None` if there is no good one
/// by `deadline`, and the connection is to be closed.
pub(crate) async fn introduce(
    worker: &Worker,
    socket: &mut Socket,
    origin: &mut Origin,
    deadline: Instant,
) -> Option<()> {
    let read = tokio::time::timeout_at(deadline, read(socket)).await;
    let proxy = origin.peer;
    let refused = |reason: &str, detail: &dyn std::fmt::Display| {
        let listener = &origin.listener;
        tracing::warn!(event = "proxy.refused", %proxy, %listener, reason, %detail);
    };
    let shard = worker.shard.borrow();
    let counters = shard.counters();
    match read {
        Ok(Ok(header)) => {
            let Header {
                source,
                certificate_name,
                server_name,
                tls_version,
            } = header;
            origin.peer = source.unwrap_or(proxy);
            origin.proxied = Some(Box::new(Proxied {
                proxy,
                certificate_name,
                server_name,
                tls_version,
            }));
            return Some(());
        }
        Ok(Err(HeaderError::Malformed(malformed))) => {
            counters.proxy_malformed.one();
            refused("malformed", &malformed);
        }
        // The proxy looks whether the port is open.
        Ok(Err(error @ (HeaderError::Closed | HeaderError::Io(_)))) => {
            counters.proxy_closed.one();
            let listener = &origin.listener;
            tracing::debug!(event = "proxy.refused", %proxy, %listener, reason = "closed", %error);
        }
        Err(_) => {
            counters.proxy_timeouts.one();
            let timeout = worker.exchange.limits.handshake_timeout;
            refused(
                "timeout",
                &format_args!("no whole PROXY header after {timeout:?}"),
            );
        }
    }
    None
}

/// Whether somebody may go on whose address only the header told: what is asked of others when they are
/// accepted. Behind TLS only; who speaks MQTT at once is told in CONNACK that it is banned.
pub(crate) fn may_enter(worker: &Worker, door: &Door, origin: &Origin, place: &mut Place) -> bool {
    let Some(address) = origin.address() else {
        return true;
    };
    let exchange = &worker.exchange;
    let unwanted = match &door.tls {
        Some(_) => exchange.admission.unwanted(worker.clock.now(), address),
        None => Ok(()),
    };
    let most = exchange.limits.max_pending_per_address;
    let Err(refused) = unwanted.and_then(|()| place.comes_from(address, most)) else {
        return true;
    };
    worker.shard.borrow().counters().refused(refused);
    let (peer, listener) = (origin.peer, &origin.listener);
    tracing::debug!(event = "socket.refused", %peer, %listener, why = ?refused);
    false
}

async fn read(socket: &mut Socket) -> Result<Header, HeaderError> {
    // On the heap for the moment it takes: the future is part of the TLS handshake's.
    let mut bytes = vec![0; MAX_HEADER];
    let mut taken = 0;
    loop {
        let seen = taken + socket.peek(&mut bytes[taken..]).await?;
        if seen == taken {
            return Err(HeaderError::Closed);
        }
        let (ours, header) = match proxy::parse(&bytes[..seen]) {
            Parse::Incomplete => (seen, None),
            Parse::Done { header, len } => (len, Some(header)),
            Parse::Malformed(malformed) => return Err(malformed.into()),
        };
        socket.read_exact(&mut bytes[taken..ours]).await?;
        taken = ours;
        if let Some(header) = header {
            return Ok(header);
        }
    }
}
