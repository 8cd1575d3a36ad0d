//! TLS handshakes: with which configuration, how many at once, for how long, and what became of them.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::ConnectionError;
use rustls::pki_types::CertificateDer;
use rustls::{Error, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::acceptor::Place;
use super::door::Inside;
use super::socket::Socket;
use super::worker::Worker;
use crate::admission::Refused;
use crate::machine::Moment;
use crate::machine::exchange::Exchange;
use crate::machine::tenants::Origin;
use crate::stats::{Counter, Counters};
use crate::transport::{ClientCertificate, Tls, TlsSettings};

/// What clients ask for by ALPN (RFC 7301): MQTT as registered with IANA, MQTT as AWS IoT device SDKs
/// ask for it, HTTP.
const MQTT: &[u8] = b"mqtt";
const AMAZON_MQTT: &[u8] = b"x-amzn-mqtt-ca";
pub(crate) const HTTP: &[u8] = b"http/1.1";

/// Encrypted bytes that rustls holds for a socket that does not take them: one record. Its own default is
/// four times that, for each connection that is stuck.
pub(crate) const SENDABLE: usize = 16 * 1024;

/// The TLS layer of a listener.
#[derive(Debug)]
pub(crate) struct Handshakes {
    settings: TlsSettings,
    client_certificate: ClientCertificate,
    alpn: Vec<Vec<u8>>,
    fitted: Mutex<Fitted>,
}

/// The settings as this listener uses them.
#[derive(Debug)]
struct Fitted {
    /// What they were made of: once that is replaced, they are made again.
    from: Arc<ServerConfig>,
    config: Arc<ServerConfig>,
}

impl Handshakes {
    pub(crate) fn new(tls: &Tls, inside: &Inside) -> Handshakes {
        let alpn: &[&[u8]] = match inside {
            Inside::Mqtt => &[MQTT, AMAZON_MQTT],
            Inside::Web(_) => &[HTTP],
            Inside::Either(_) => &[MQTT, AMAZON_MQTT, HTTP],
        };
        let alpn = alpn.iter().map(|name| name.to_vec()).collect::<Vec<_>>();
        let fitted = Mutex::new(Fitted::new(tls.settings.current(), &alpn));
        Handshakes {
            settings: tls.settings.clone(),
            client_certificate: tls.client_certificate,
            alpn,
            fitted,
        }
    }

    /// What the next handshake uses.
    fn config(&self) -> Arc<ServerConfig> {
        let current = self.settings.current();
        let mut fitted = self.fitted.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&fitted.from, &current) {
            *fitted = Fitted::new(current, &self.alpn);
        }
        Arc::clone(&fitted.config)
    }
}

impl Fitted {
    fn new(from: Arc<ServerConfig>, alpn: &[Vec<u8>]) -> Fitted {
        let mut config = ServerConfig::clone(&from);
        config.alpn_protocols = alpn.to_vec();
        // A CONNECT or PUBLISH in early data could be replayed by whoever recorded it.
        config.max_early_data_size = 0;
        Fitted {
            from,
            config: Arc::new(config),
        }
    }
}

/// Makes a TLS connection of a socket, and notes the client's certificates; `None` if nothing came of it.
///
/// A step may be half a millisecond of arithmetic: to be run in [`turns`](super::turns).
pub(crate) async fn shake(
    worker: &Worker,
    socket: Socket,
    handshakes: &Handshakes,
    origin: &mut Origin,
    place: &Place,
    deadline: Instant,
) -> Option<TlsStream<Socket>> {
    let Some(_handshake) = place.entrance().handshake() else {
        let shard = worker.shard.borrow();
        shard.counters().refused(Refused::Handshakes);
        return None;
    };
    let shaken = tokio::time::timeout_at(deadline, async {
        // Who has said nothing has no turn to wait in: silent sockets are not to keep others out.
        socket.wait_for_bytes().await?;
        // Waiting for one's turn counts: who waits that long has given up or will try again.
        let _turn = worker.handshakes.take(place.network()).await;
        TlsAcceptor::from(handshakes.config())
            .accept_with(socket, |session| session.set_buffer_limit(Some(SENDABLE)))
            .await
    })
    .await;
    let failed = |failure: Failure, detail: &dyn std::fmt::Display| {
        let (peer, listener, reason) = (origin.peer, &origin.listener, failure.name());
        failure.count(worker.shard.borrow().counters());
        let (exchange, now) = (&worker.exchange, worker.clock.now());
        failure.hold_off(exchange, now, origin.address(), place);
        match failure {
            // Somebody looks whether the port is open.
            Failure::Closed => {
                tracing::debug!(event = "tls.handshake_failed", %peer, %listener, reason, %detail);
            }
            _ => {
                tracing::warn!(event = "tls.handshake_failed", %peer, %listener, reason, %detail);
            }
        }
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            failed(Failure::of(&error), &error);
            return None;
        }
        Err(_) => {
            let timeout = worker.exchange.limits.handshake_timeout;
            failed(
                Failure::Timeout,
                &format_args!("not done after {timeout:?}"),
            );
            return None;
        }
    };
    let session = stream.get_ref().1;
    let certificates = session.peer_certificates().unwrap_or(&[]);
    if certificates.is_empty() && handshakes.client_certificate == ClientCertificate::Required {
        failed(Failure::NoCertificate, &"the client showed no certificate");
        return None;
    }
    succeeded(session, worker.shard.borrow().counters()).one();
    if let Some(address) = origin.address().filter(|_| !certificates.is_empty()) {
        let hold_offs = &worker.exchange.admission.hold_offs;
        hold_offs.good_certificate(worker.clock.now(), address);
    }
    origin.certificates = certificates
        .iter()
        .map(CertificateDer::clone)
        .map(CertificateDer::into_owned)
        .collect();
    Some(stream)
}

/// What a handshake that succeeded counts as.
fn succeeded<'a>(session: &ServerConnection, counters: &'a Counters) -> &'a Counter {
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    match (session.protocol_version(), resumed) {
        (Some(ProtocolVersion::TLSv1_3), false) => &counters.handshakes_tls13_full,
        (Some(ProtocolVersion::TLSv1_3), true) => &counters.handshakes_tls13_resumed,
        // rustls speaks these two.
        (_, false) => &counters.handshakes_tls12_full,
        (_, true) => &counters.handshakes_tls12_resumed,
    }
}

/// Why a handshake did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Timeout,
    NoCertificate,
    BadCertificate,
    Incompatible,
    NoProtocol,
    RefusedByClient,
    Malformed,
    Closed,
    Other,
}

impl Failure {
    fn of(error: &io::Error) -> Failure {
        let Some(inner) = error.get_ref() else {
            return Failure::Closed;
        };
        match inner.downcast_ref::<Error>() {
            // The socket, not TLS.
            None => Failure::Closed,
            Some(Error::NoCertificatesPresented) => Failure::NoCertificate,
            Some(Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_)) => {
                Failure::BadCertificate
            }
            Some(Error::PeerIncompatible(_)) => Failure::Incompatible,
            Some(Error::NoApplicationProtocol) => Failure::NoProtocol,
            Some(Error::AlertReceived(_)) => Failure::RefusedByClient,
            Some(
                Error::InvalidMessage(_)
                | Error::PeerMisbehaved(_)
                | Error::InappropriateMessage { .. }
                | Error::InappropriateHandshakeMessage { .. }
                | Error::DecryptError
                | Error::PeerSentOversizedRecord,
            ) => Failure::Malformed,
            Some(_) => Failure::Other,
        }
    }

    /// Of a handshake over QUIC, where TLS alerts are error codes (RFC 9001, section 4.8) and that is all
    /// there is to see.
    pub(crate) fn of_quic(error: &ConnectionError) -> Failure {
        /// The first code of an alert.
        const ALERTS: u64 = 0x100;
        match error {
            ConnectionError::TransportError(ours) => {
                match u64::from(ours.code).checked_sub(ALERTS) {
                    // handshake_failure, protocol_version, insufficient_security, missing_extension
                    Some(40 | 70 | 71 | 109) => Failure::Incompatible,
                    // bad_, unsupported_, revoked, expired, unknown; unknown_ca, access_denied; the
                    // signature that proves the key
                    Some(42..=46 | 48 | 49 | 51) => Failure::BadCertificate,
                    Some(116) => Failure::NoCertificate,
                    Some(120) => Failure::NoProtocol,
                    Some(_) => Failure::Other,
                    None => Failure::Malformed,
                }
            }
            ConnectionError::ConnectionClosed(_) => Failure::RefusedByClient,
            ConnectionError::TimedOut => Failure::Timeout,
            ConnectionError::VersionMismatch => Failure::Incompatible,
            ConnectionError::ApplicationClosed(_)
            | ConnectionError::Reset
            | ConnectionError::LocallyClosed => Failure::Closed,
            ConnectionError::CidsExhausted => Failure::Other,
        }
    }

    /// Holds off the address of a client without a good certificate, if nothing but that comes from it.
    pub(crate) fn hold_off(
        self,
        exchange: &Exchange,
        now: Moment,
        address: Option<IpAddr>,
        place: &Place,
    ) {
        let (Failure::BadCertificate | Failure::NoCertificate, Some(address)) = (self, address)
        else {
            return;
        };
        let hold_offs = &exchange.admission.hold_offs;
        if let Some(target) = hold_offs.bad_certificate(now, address, place.clients_beside()) {
            tracing::warn!(
                event = "client.held_off",
                %target,
                "its TLS handshakes failed too often: no good client certificate"
            );
        }
    }

    /// The same names as in [`Stats::handshakes_failed`](crate::Stats::handshakes_failed).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::NoCertificate => "no_certificate",
            Failure::BadCertificate => "bad_certificate",
            Failure::Incompatible => "incompatible",
            Failure::NoProtocol => "no_protocol",
            Failure::RefusedByClient => "refused_by_client",
            Failure::Malformed => "malformed",
            Failure::Closed => "closed",
            Failure::Other => "other",
        }
    }

    pub(crate) fn count(self, counters: &Counters) {
        let kind = match self {
            Failure::Timeout => return counters.handshake_timeouts.one(),
            Failure::NoCertificate => &counters.handshakes_no_certificate,
            Failure::BadCertificate => &counters.handshakes_bad_certificate,
            Failure::Incompatible => &counters.handshakes_incompatible,
            Failure::NoProtocol => &counters.handshakes_no_protocol,
            Failure::RefusedByClient => &counters.handshakes_refused_by_client,
            Failure::Malformed => &counters.handshakes_malformed,
            Failure::Closed => &counters.handshakes_closed,
            Failure::Other => &counters.handshakes_other,
        };
        kind.one();
        counters.handshake_failures.one();
    }
}
