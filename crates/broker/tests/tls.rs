//! The broker over TLS: only clients with a certificate of the right authority get in.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use broker::{Limits, Transport};
use common::{Client, Setup, dial, qos1, start, until};
use mqtt::{Connect, QoS, ReasonCode, Version};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    SupportedProtocolVersion,
};

type Tls = StreamOwned<ClientConnection, TcpStream>;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Authority {
            issuer: CertifiedIssuer::self_signed(params, key).expect("an authority"),
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        roots
    }

    fn issue(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        (vec![certificate.der().clone()], key)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()),
            Arc::clone(&provider),
        )
        .build()
        .expect("a verifier");
        let (chain, key) = self.issue("localhost");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .expect("a certificate");
        Arc::new(config)
    }
}

fn tls(
    setup: &Setup,
    trusted: &Authority,
    version: &'static SupportedProtocolVersion,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Tls {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .expect("versions")
        .with_root_certificates(trusted.roots());
    let config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("usable"),
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    StreamOwned::new(connection, dial(setup.addr))
}

#[test]
fn a_client_with_a_certificate_gets_in_with_tls_1_2_and_1_3() {
    let authority = Authority::new();
    let setup = start(Transport::Tls(authority.server()), Limits::default());
    assert_eq!(setup.handle.listeners()[0].protocol, "mqtts");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (chain, key) = authority.issue("car.example");
        let leaf = chain[0].to_vec();
        let stream = tls(&setup, &authority, version, Some((chain, key)));
        let mut car = Client::open(stream, Connect::new(Version::V5, "car"));
        assert_eq!(car.connack().reason, ReasonCode::Success);
        assert_eq!(
            setup.outside.last_certificate.lock().unwrap().as_ref(),
            Some(&leaf),
            "the hooks see the certificate"
        );
        car.subscribe("#", QoS::AtMostOnce);
        // Larger than a TLS record in both directions.
        let payload: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        car.send(qos1(1, "log/a", &payload));
        assert!(car.message().payload == payload);
        for done in setup.outside.tapped(1) {
            done.done(Ok(()));
        }
        assert_eq!(car.puback(), (1, ReasonCode::Success));
        assert_eq!(
            setup
                .handle
                .disconnect_principal("car", ReasonCode::AdministrativeAction),
            1
        );
        assert_eq!(car.farewell(), Some(ReasonCode::AdministrativeAction));
    }
}

#[test]
fn who_shows_no_certificate_or_one_of_a_stranger_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let setup = start(Transport::Tls(authority.server()), Limits::default());
    let rows = [None, Some(stranger.issue("car.example"))];
    for (n, own) in rows.into_iter().enumerate() {
        let mut stream = tls(&setup, &authority, &rustls::version::TLS13, own);
        // With TLS 1.3 the client is done before the server has looked at the certificate.
        let _ = stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a");
        let mut answer = Vec::new();
        assert!(stream.read_to_end(&mut answer).is_err(), "an alert");
        assert_eq!(answer, b"");
        until("it is counted", || {
            setup.handle.stats().handshake_failures == n as u64 + 1
        });
    }
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

#[test]
fn plain_mqtt_and_silence_on_a_tls_port_are_closed() {
    let authority = Authority::new();
    let limits = Limits {
        handshake_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let setup = start(Transport::Tls(authority.server()), limits);
    let silent = dial(setup.addr);
    let mut plain = dial(setup.addr);
    plain
        .write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
        .expect("taken");
    for mut stream in [silent, plain] {
        let mut answer = Vec::new();
        // The alert, an end or a reset: anything but MQTT.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"\x20"), "{answer:?}");
    }
    until("both are gone", || {
        setup.handle.stats().pending_connections == 0
    });
    let stats = setup.handle.stats();
    assert_eq!((stats.handshake_timeouts, stats.handshake_failures), (1, 1));
}
