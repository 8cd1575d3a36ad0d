//! TLS of the MQTT listeners: the server shows a certificate of the fleet CA and takes clients that
//! show one of the same CA.
//!
//! The handshake checks chain, validity and use. Whether the certificate is registered, enabled and
//! not revoked is asked of the fleet directory at every CONNECT: a resumed session skips the
//! handshake's checks, so they can not be the ones that keep a revoked device out.

use std::sync::Arc;

use fleet::{Fleet, FleetError};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{VerifierBuilderError, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

/// Sessions that can be resumed, so that a fleet behind flapping radio links saves handshakes:
/// 10,000 at about 1 KiB.
const RESUMABLE_SESSIONS: usize = 10_000;

/// The listener can not speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No server certificate.
    #[error("the server certificate could not be made")]
    Certificate(#[from] FleetError),
    /// The CA certificate is not usable for checking clients.
    #[error("clients cannot be checked against the fleet CA")]
    Verifier(#[from] VerifierBuilderError),
    /// rustls refused the set-up.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// The configuration of a listener known by `names` (host names and addresses).
pub async fn server_config(fleet: &Fleet, names: &[String]) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificate = fleet.issue_server_certificate(names).await?;
    let mut roots = RootCertStore::empty();
    roots.add(fleet.ca().cert_der().clone())?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate.chain, certificate.key)?;
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(RESUMABLE_SESSIONS);
    // One ticket is enough for one reconnect; the second would be sent to every client for nothing.
    config.send_tls13_tickets = 1;
    Ok(config)
}
