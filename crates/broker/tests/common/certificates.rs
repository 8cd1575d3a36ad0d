//! An authority and what it issues: TLS for both ends.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::{default_provider, sign};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    SupportedProtocolVersion,
};

use super::dial;

/// Both versions.
pub const TLS_VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// A certificate chain and its key.
pub type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client's end of a TLS connection.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a server says about client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    Insists,
    Accepts,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Authority {
            issuer: CertifiedIssuer::self_signed(params, key).expect("an authority"),
        }
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        roots
    }

    pub fn issue(&self, name: &str) -> Credentials {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        (vec![certificate.der().clone()], key)
    }

    /// A server called `localhost` whose clients are of the same authority.
    pub fn server(&self, asks: Asks) -> ServerConfig {
        self.server_trusting(self, asks)
    }

    /// The same with clients of another authority.
    pub fn server_trusting(&self, clients: &Authority, asks: Asks) -> ServerConfig {
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(clients.roots()),
            Arc::clone(&provider),
        );
        let verifier = match asks {
            Asks::Insists => verifier,
            Asks::Accepts => verifier.allow_unauthenticated(),
        };
        let (chain, key) = self.issue("localhost");
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(chain, key)
            .expect("a certificate")
    }

    /// A server of several names, each with a certificate of its own, that asks for none.
    pub fn server_of(&self, names: &[&str]) -> ServerConfig {
        let mut resolver = ResolvesServerCertUsingSni::new();
        for name in names {
            let (chain, key) = self.issue(name);
            let key = sign::any_supported_type(&key).expect("a key");
            resolver
                .add(name, CertifiedKey::new(chain, key))
                .expect("its name");
        }
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver))
    }

    /// A client that trusts this authority.
    pub fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        own: Option<Credentials>,
        alpn: &[&str],
    ) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(self.roots());
        let mut config = match own {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("usable"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Begins a TLS connection; the handshake is done with the first bytes.
pub fn secure(stream: TcpStream, config: &Arc<ClientConfig>, name: &str) -> Tls {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
    StreamOwned::new(connection, stream)
}

/// The same to a server called `localhost`.
pub fn dial_tls(addr: SocketAddr, config: &Arc<ClientConfig>) -> Tls {
    secure(dial(addr), config, "localhost")
}
