//! TLS of the MQTT listeners: which certificates the server shows, and which clients' it lets through the
//! handshake. Read from files at the start, and again while the server runs.
//!
//! ```text
//! files ([[listener.certificate]], client_ca) ─┐
//! fleet CA: server certificate, trust anchor ──┴─► read everything ─► one rustls set-up per listener ─► replace
//! ```
//!
//! The handshake checks chain, validity and use. Whether a certificate is registered, enabled and not
//! revoked is asked of the fleet directory at every CONNECT: a resumed session skips the handshake's
//! checks, so they can not be the ones that keep a revoked device out. For the same reason every set-up
//! has session storage and ticket keys of its own: who resumes was checked under the trust that holds now.

mod certificate;
mod renewal;
mod shown;

pub use certificate::{FileError, authorities, server_pair};
pub(crate) use renewal::with_causes;
pub use renewal::{Renewal, Renewed};

use std::sync::Arc;

use fleet::FleetError;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::CertificateDer,
    server::{
        NoClientAuth, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    version::{TLS12, TLS13},
};

use crate::config::listener::{Auth, TlsVersion};
use certificate::ServerPair;
use shown::ShownCertificates;

/// Sessions of TLS 1.2 clients that can not keep a ticket: 10,000 at about 1.5 KiB per listener. All others
/// keep their session themselves, so any number of them can resume.
pub const RESUMABLE_SESSIONS: usize = 10_000;

/// A listener can not speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate, key or CA file is not usable.
    #[error(transparent)]
    File(#[from] FileError),
    /// No server certificate.
    #[error("the server certificate could not be made")]
    Certificate(#[from] FleetError),
    /// The CA certificates are not usable for checking clients.
    #[error("clients cannot be checked against the fleet CA and client_ca")]
    Verifier(#[from] VerifierBuilderError),
    /// rustls refused the set-up.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// The one provider of this program, so that no set-up depends on which was installed first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The set-up of one listener: it shows the best of `pairs` and lets through clients of `trusted`.
fn server_config(
    pairs: Vec<ServerPair>,
    trusted: &[CertificateDer<'static>],
    auth: Auth,
    minimum: TlsVersion,
) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let versions: &[&SupportedProtocolVersion] = match minimum {
        TlsVersion::V12 => &[&TLS13, &TLS12],
        TlsVersion::V13 => &[&TLS13],
    };
    let verifier = client_verifier(trusted, auth, provider.clone())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(ShownCertificates::new(pairs)));
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(RESUMABLE_SESSIONS);
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // One ticket is enough for one reconnect; the second would be sent to every client for nothing.
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn client_verifier(
    trusted: &[CertificateDer<'static>],
    auth: Auth,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    if !auth.by_certificate() {
        return Ok(Arc::new(NoClientAuth));
    }
    let mut roots = RootCertStore::empty();
    for authority in trusted {
        roots.add(authority.clone())?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match auth.without_certificate() {
        true => builder.allow_unauthenticated(),
        false => builder,
    };
    Ok(builder.build()?)
}
