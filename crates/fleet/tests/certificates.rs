//! Stories of certificates: what is in them, who takes them, who does not.

mod garage;

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use fleet::{Actor, Change, Denied, Fleet, FleetError, FleetOptions, PageRequest};
use garage::{Garage, der, now_us, request, request_for};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{FromDer, X509Certificate},
};

fn root_of(fleet: &Fleet) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(fleet.ca().cert_der().clone()).unwrap();
    Arc::new(roots)
}

fn client_verifier(fleet: &Fleet) -> Arc<dyn ClientCertVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(root_of(fleet), provider)
        .build()
        .unwrap()
}

fn server_verifier(fleet: &Fleet) -> Arc<dyn ServerCertVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiServerVerifier::builder_with_provider(root_of(fleet), provider)
        .build()
        .unwrap()
}

fn at(time_us: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_micros(time_us.try_into().unwrap()))
}

/// Extensions by OID, each with its criticality.
fn extensions(certificate: &X509Certificate<'_>) -> Vec<(String, bool)> {
    let mut extensions: Vec<_> = certificate
        .extensions()
        .iter()
        .map(|extension| (extension.oid.to_id_string(), extension.critical))
        .collect();
    extensions.sort();
    extensions
}

const AUTHORITY_KEY_ID: &str = "2.5.29.35";
const SUBJECT_KEY_ID: &str = "2.5.29.14";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const KEY_USAGE: &str = "2.5.29.15";
const EXTENDED_KEY_USAGE: &str = "2.5.29.37";

#[tokio::test]
async fn a_request_that_asks_for_a_ca_gets_a_device_certificate() {
    let garage = Garage::open().await;
    garage.vehicle("car-1").await;
    garage.device("tcu-1", "car-1").await;

    let key = KeyPair::generate().unwrap();
    let mut wishes =
        CertificateParams::new(["evil.example".to_owned(), "10.0.0.1".into()]).unwrap();
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::KeyAgreement,
    ];
    wishes.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::CodeSigning,
    ];
    wishes.distinguished_name.push(DnType::CommonName, "tcu-2");
    wishes
        .distinguished_name
        .push(DnType::OrganizationName, "Somebody Else");
    let csr = wishes.serialize_request(&key).unwrap().pem().unwrap();

    let before = now_us();
    let issued = garage
        .fleet
        .issue_certificate(&garage.anna, "tcu-1", &csr)
        .await
        .unwrap();
    let leaf = der(&issued.pem);
    let (rest, certificate) = X509Certificate::from_der(&leaf).unwrap();
    assert!(rest.is_empty());

    assert_eq!(certificate.version().0, 2, "X.509 v3");
    assert_eq!(certificate.subject().to_string(), "CN=tcu-1");
    assert_eq!(
        *certificate.public_key().subject_public_key.data,
        *key.public_key_raw()
    );
    assert_eq!(
        extensions(&certificate),
        [
            (SUBJECT_KEY_ID.to_owned(), false),
            (KEY_USAGE.to_owned(), true),
            (BASIC_CONSTRAINTS.to_owned(), true),
            (AUTHORITY_KEY_ID.to_owned(), false),
            (EXTENDED_KEY_USAGE.to_owned(), false),
        ],
        "and no other"
    );
    let constraints = certificate.basic_constraints().unwrap().unwrap().value;
    assert!(!constraints.ca && constraints.path_len_constraint.is_none());
    assert_eq!(
        certificate.key_usage().unwrap().unwrap().value.flags,
        1,
        "digitalSignature only"
    );
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.other.is_empty());
    assert!(
        !(usage.any
            || usage.server_auth
            || usage.code_signing
            || usage.email_protection
            || usage.time_stamping
            || usage.ocsp_signing)
    );

    let ca_der = garage.fleet.ca().cert_der().clone();
    let (_, ca) = X509Certificate::from_der(&ca_der).unwrap();
    assert_eq!(certificate.issuer(), ca.subject());
    certificate.verify_signature(Some(ca.public_key())).unwrap();
    let key_id = |certificate: &X509Certificate<'_>, authority: bool| {
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) if !authority => Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) if authority => {
                    Some(id.key_identifier.as_ref()?.0.to_vec())
                }
                _ => None,
            })
    };
    assert_eq!(
        key_id(&certificate, true).unwrap(),
        key_id(&ca, false).unwrap()
    );

    let serial = certificate.raw_serial();
    assert_eq!(serial.len(), 16);
    assert_eq!(
        serial
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
        issued.serial
    );
    let [from, to] = [
        certificate.validity().not_before,
        certificate.validity().not_after,
    ]
    .map(|time| time.timestamp() * 1_000_000);
    assert_eq!((from, to), (issued.not_before_us, issued.not_after_us));
    let minute = 60_000_000;
    assert!(
        (before - 5 * minute - from).abs() < minute,
        "backdated five minutes"
    );
    assert!((before + 365 * 1440 * minute - to).abs() < minute, "a year");
    assert_eq!(der(&issued.chain_pem), ca_der);
}

#[tokio::test]
async fn the_fleet_ca_signs_leaves_and_nothing_else() {
    let garage = Garage::open().await;
    let ca_der = garage.fleet.ca().cert_der().clone();
    let (_, ca) = X509Certificate::from_der(&ca_der).unwrap();
    let name = ca.subject().to_string();
    let short_id = name.strip_prefix("CN=Milepost fleet CA ").unwrap();
    assert!(short_id.len() == 8 && short_id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(
        extensions(&ca),
        [
            (SUBJECT_KEY_ID.to_owned(), false),
            (KEY_USAGE.to_owned(), true),
            (BASIC_CONSTRAINTS.to_owned(), true)
        ]
    );
    let constraints = ca.basic_constraints().unwrap().unwrap().value;
    assert_eq!(
        (constraints.ca, constraints.path_len_constraint),
        (true, Some(0))
    );
    let usage = ca.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    assert_eq!(
        ca.public_key()
            .algorithm
            .parameters
            .as_ref()
            .unwrap()
            .as_oid()
            .unwrap()
            .to_id_string(),
        "1.2.840.10045.3.1.7"
    );
    let days =
        (ca.validity().not_after.timestamp() - ca.validity().not_before.timestamp()) / 86_400;
    assert_eq!(days, 3652);
    assert_eq!(ca.raw_serial().len(), 16);
    assert_ne!(
        Garage::open().await.fleet.ca().fingerprint(),
        garage.fleet.ca().fingerprint()
    );
}

#[tokio::test]
async fn tls_takes_our_devices_and_nobody_elses() {
    let (ours, theirs) = (Garage::open().await, Garage::open().await);
    let (mine, foreign) = (ours.car(1).await, theirs.car(1).await);
    let verifier = client_verifier(&ours.fleet);
    let verify = |pem: &str, time_us| verifier.verify_client_cert(&der(pem), &[], at(time_us));
    verify(&mine.pem, now_us()).unwrap();
    assert!(verify(&foreign.pem, now_us()).is_err());
    assert!(
        verify(&mine.pem, mine.not_after_us + 1_000_000).is_err(),
        "expired"
    );
    assert!(
        verify(&mine.pem, mine.not_before_us - 1_000_000).is_err(),
        "not yet valid"
    );
    // The CA itself is no client, and a device cannot vouch for another key.
    assert!(verify(ours.fleet.ca().cert_pem(), now_us()).is_err());

    let directory = ours.fleet.directory();
    let principal = directory.identify(&der(&mine.pem), now_us()).unwrap();
    assert_eq!(
        (
            principal.device_id().as_str(),
            principal.vehicle_id().as_str()
        ),
        ("tcu-1", "car-1")
    );
    assert_eq!(principal.certificate_serial(), mine.serial);
    assert!(directory.may_publish(&principal, "dt/telemetry/drive/car-1/signals"));
    assert!(!directory.may_publish(&principal, "dt/telemetry/drive/car-2/signals"));
    assert!(matches!(
        directory.identify(&der(&foreign.pem), now_us()),
        Err(Denied::UnknownCertificate { fingerprint }) if fingerprint == foreign.fingerprint_sha256
    ));
    assert!(matches!(
        directory.identify(b"not even DER", now_us()),
        Err(Denied::UnknownCertificate { .. })
    ));
}

/// A device that signs another key with its own certificate makes nothing that TLS accepts.
#[tokio::test]
async fn a_device_is_no_authority() {
    let garage = Garage::open().await;
    garage.vehicle("car-1").await;
    garage.device("tcu-1", "car-1").await;
    let key = KeyPair::generate().unwrap();
    let issued = garage
        .fleet
        .issue_certificate(&garage.anna, "tcu-1", &request_for(&key))
        .await
        .unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&issued.pem, key).unwrap();
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params
        .signed_by(&KeyPair::generate().unwrap(), &issuer)
        .unwrap();
    let chain = [der(&issued.pem)];
    assert!(
        client_verifier(&garage.fleet)
            .verify_client_cert(forged.der(), &chain, at(now_us()))
            .is_err()
    );
}

#[tokio::test]
async fn refused_requests_leave_a_trace_and_no_certificate() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    garage.vehicle("car-1").await;
    garage.device("tcu-1", "car-1").await;

    let good = request();
    let mut lines: Vec<&str> = good.lines().collect();
    let bent = lines[2].replace(['A', 'B', 'C', 'D'], "e");
    lines[2] = &bent;
    let tampered = lines.join("\n");
    let refusal = fleet
        .issue_certificate(anna, "tcu-1", &tampered)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refusal,
            FleetError::Invalid {
                field: "certificate request",
                ..
            }
        ),
        "{refusal}"
    );
    let refusal = fleet
        .issue_certificate(anna, "tcu-9", &good)
        .await
        .unwrap_err();
    assert!(matches!(
        refusal,
        FleetError::NotFound {
            kind: fleet::Kind::Device,
            ..
        }
    ));
    fleet
        .set_device_enabled(anna, "tcu-1", false, None)
        .await
        .unwrap();
    let refusal = fleet
        .issue_certificate(anna, "tcu-1", &good)
        .await
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "device `tcu-1` is disabled; enable it first"
    );
    fleet
        .set_device_enabled(anna, "tcu-1", true, None)
        .await
        .unwrap();
    fleet
        .set_vehicle_enabled(anna, "car-1", false, None)
        .await
        .unwrap();
    let refusal = fleet
        .issue_certificate(anna, "tcu-1", &good)
        .await
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vehicle `car-1` is disabled; enable it first"
    );

    let listed = fleet
        .list_certificates("tcu-1", &PageRequest::default())
        .await
        .unwrap();
    assert!(listed.items.is_empty());
    assert_eq!(fleet.directory().counts().certificates, 0);
    let audit = garage.audit().await;
    let refused: Vec<_> = audit
        .iter()
        .filter(|line| line.ends_with("refused"))
        .collect();
    assert_eq!(
        refused,
        [
            "person:anna certificate.issue device tcu-1 refused",
            "person:anna certificate.issue device tcu-9 refused",
            "person:anna certificate.issue device tcu-1 refused",
            "person:anna certificate.issue device tcu-1 refused",
        ]
    );
}

#[tokio::test]
async fn expired_revoked_and_disabled_each_say_so() {
    let garage = Garage::open().await;
    let (fleet, anna) = (&garage.fleet, &garage.anna);
    let certificate = garage.car(1).await;
    let successor = garage.certificate("tcu-1").await;
    let directory = fleet.directory();
    let leaf = der(&certificate.pem);
    let why = |now| directory.identify(&leaf, now).unwrap_err().to_string();

    assert!(why(certificate.not_after_us + 1).contains("expired at"));
    assert!(why(certificate.not_before_us - 1).contains("is not valid before"));

    let principal = directory.identify(&leaf, now_us()).unwrap();
    let mut changes = fleet.subscribe_changes();
    let lost = |changes: &mut tokio::sync::broadcast::Receiver<Change>| matches!(changes.try_recv(), Ok(Change::AccessLost { device_id }) if device_id == "tcu-1");

    fleet
        .set_device_enabled(anna, "tcu-1", false, None)
        .await
        .unwrap();
    assert!(lost(&mut changes));
    assert_eq!(why(now_us()), "device `tcu-1` is disabled");
    assert!(!directory.may_publish(&principal, "dt/a/b/car-1/x"));
    fleet
        .set_device_enabled(anna, "tcu-1", true, None)
        .await
        .unwrap();
    directory.check(&principal, now_us()).unwrap();

    changes = fleet.subscribe_changes();
    fleet
        .set_vehicle_enabled(anna, "car-1", false, None)
        .await
        .unwrap();
    assert!(lost(&mut changes));
    assert_eq!(
        why(now_us()),
        "vehicle `car-1` of device `tcu-1` is disabled"
    );
    fleet
        .set_vehicle_enabled(anna, "car-1", true, None)
        .await
        .unwrap();
    directory.check(&principal, now_us()).unwrap();

    changes = fleet.subscribe_changes();
    let serial = certificate.serial.to_uppercase();
    let revoked = fleet.revoke_certificate(anna, &serial).await.unwrap();
    assert!(lost(&mut changes));
    assert!(
        why(now_us()).contains("was revoked at"),
        "{}",
        why(now_us())
    );
    assert!(!directory.may_subscribe(&principal, "bc/#"));
    let again = fleet
        .revoke_certificate(anna, &certificate.serial)
        .await
        .unwrap();
    assert_eq!(again.revoked_us, revoked.revoked_us);
    // The device comes back with its other certificate.
    directory.identify(&der(&successor.pem), now_us()).unwrap();

    assert!(matches!(
        fleet.revoke_certificate(anna, "00").await,
        Err(FleetError::NotFound {
            kind: fleet::Kind::Certificate,
            ..
        })
    ));
    let revocations = garage
        .audit()
        .await
        .iter()
        .filter(|line| line.contains("revoke"))
        .count();
    assert_eq!(revocations, 1, "the second time nothing happened");
}

#[tokio::test]
async fn the_lifetime_is_the_operators_choice_within_the_cas() {
    let dir = tempfile::tempdir().unwrap();
    let options = |days: u64| FleetOptions {
        device_certificate_lifetime: Duration::from_secs(days * 86_400),
    };
    assert!(matches!(
        Fleet::open_with(dir.path(), options(0)).await,
        Err(FleetError::Invalid { .. })
    ));
    let fleet = Fleet::open_with(dir.path(), options(3652)).await.unwrap();
    let anna = Actor::system();
    let garage = Garage { dir, fleet, anna };
    let certificate = garage.car(1).await;
    assert!(certificate.not_after_us <= garage.fleet.ca().not_after_us());
    client_verifier(&garage.fleet)
        .verify_client_cert(&der(&certificate.pem), &[], at(certificate.not_after_us))
        .unwrap();
}

#[tokio::test]
async fn the_server_shows_a_certificate_for_its_names_and_keeps_it() {
    let garage = Garage::open().await;
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let here = names(&["localhost", "127.0.0.1", "::1", "*.fleet.example"]);
    let first = garage.fleet.issue_server_certificate(&here).await.unwrap();
    let verifier = server_verifier(&garage.fleet);
    let verify = |chain: &[CertificateDer<'_>], name: &str| {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], at(now_us()))
            .is_ok()
    };
    for name in ["localhost", "127.0.0.1", "::1", "a.fleet.example"] {
        assert!(verify(&first.chain, name), "{name}");
    }
    assert!(!verify(&first.chain, "other.example"));
    assert!(
        client_verifier(&garage.fleet)
            .verify_client_cert(&first.chain[0], &[], at(now_us()))
            .is_err(),
        "a server is no client"
    );
    // The key fits: rustls refuses a pair that does not.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    rustls::sign::CertifiedKey::from_der(first.chain.clone(), first.key.clone_key(), &provider)
        .unwrap();

    let file = garage.path().join("tls/server.pem");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let reordered = names(&["::1", "LOCALHOST", "127.0.0.1", "*.fleet.example"]);
    let garage = garage.reopen().await;
    let same = garage
        .fleet
        .issue_server_certificate(&reordered)
        .await
        .unwrap();
    assert_eq!(same.chain, first.chain);
    assert_eq!(same.renew_after_us, first.renew_after_us);
    let other = garage
        .fleet
        .issue_server_certificate(&names(&["localhost"]))
        .await
        .unwrap();
    assert_ne!(other.chain, first.chain);
    let issues = garage
        .audit()
        .await
        .iter()
        .filter(|line| line.starts_with("system server-certificate.issue"))
        .count();
    assert_eq!(issues, 2);
    assert!(!format!("{other:?}").contains("key"));
    assert!(matches!(
        garage
            .fleet
            .issue_server_certificate(&names(&["https://x"]))
            .await,
        Err(FleetError::Invalid {
            field: "server names",
            ..
        })
    ));
}
