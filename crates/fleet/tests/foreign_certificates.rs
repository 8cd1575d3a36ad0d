//! Stories of certificates that another CA issued.

mod garage;

use fleet::{Denied, FleetError, Kind};
use garage::{Garage, der, now_us};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;

/// A CA of somebody else's.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn root(authority: &CertifiedIssuer<'static, KeyPair>) -> CertificateDer<'static> {
    authority.der().clone()
}

fn device_params(serial: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&[serial]));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn signed(params: CertificateParams, by: &CertifiedIssuer<'static, KeyPair>) -> String {
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, by).unwrap().pem()
}

#[tokio::test]
async fn a_device_is_let_in_with_the_certificate_it_has_had_for_years() {
    let garage = Garage::open().await;
    garage.car(1).await;
    let maker = authority("maker root");
    let plant = CertifiedIssuer::signed_by(
        authority_params("plant 7"),
        KeyPair::generate().unwrap(),
        &maker,
    )
    .unwrap();
    let leaf = signed(device_params(0x8f), &plant);
    let sent = format!("{leaf}{}", plant.pem());

    let unknown = garage.fleet.directory().identify(&der(&leaf), now_us());
    assert!(matches!(unknown, Err(Denied::UnknownCertificate { .. })));
    let registered = garage
        .fleet
        .register_certificate(&garage.anna, "tcu-1", &sent, &[root(&maker)])
        .await
        .unwrap();
    assert_eq!(registered.serial, "8f", "no zero byte before it");
    assert_eq!(der(&registered.pem), der(&leaf));
    assert_eq!(der(&registered.chain_pem), *plant.der());

    let garage = garage.reopen().await;
    let directory = garage.fleet.directory();
    let principal = directory.identify(&der(&leaf), now_us()).unwrap();
    assert_eq!(principal.device_id(), &"tcu-1");
    let page = fleet::PageRequest::new(10, None).unwrap();
    let listed = garage
        .fleet
        .list_certificates("tcu-1", &page)
        .await
        .unwrap();
    assert_eq!(listed.items.last(), Some(&registered));

    garage
        .fleet
        .revoke_certificate(&garage.anna, "8F")
        .await
        .unwrap();
    let revoked = directory.identify(&der(&leaf), now_us());
    assert!(matches!(revoked, Err(Denied::Revoked { .. })));
    let again = garage
        .fleet
        .register_certificate(&garage.anna, "tcu-1", &sent, &[root(&maker)])
        .await;
    assert!(
        matches!(
            again,
            Err(FleetError::AlreadyExists {
                kind: Kind::Certificate,
                ..
            })
        ),
        "revoked is for good: {again:?}"
    );
    let audit = garage.audit().await;
    let said = |line: &str| audit.iter().any(|entry| entry == line);
    assert!(
        said("person:anna certificate.register device tcu-1 done"),
        "{audit:#?}"
    );
    assert!(said(
        "person:anna certificate.register device tcu-1 refused"
    ));
}

#[tokio::test]
async fn two_cas_may_count_from_the_same_number() {
    let garage = Garage::open().await;
    garage.car(1).await;
    let (one, other) = (authority("one"), authority("other"));
    let roots = [root(&one), root(&other)];
    let mut prints = Vec::new();
    for by in [&one, &other] {
        let registered = garage
            .fleet
            .register_certificate(&garage.anna, "tcu-1", &signed(device_params(1), by), &roots)
            .await
            .unwrap();
        prints.push(registered.fingerprint_sha256);
    }
    let fleet = &garage.fleet;
    let ambiguous = fleet.revoke_certificate(&garage.anna, "01").await;
    let text = ambiguous.unwrap_err().to_string();
    assert!(text.contains("name one by its fingerprint"), "{text}");
    let revoked = fleet
        .revoke_certificate(&garage.anna, &prints[1].to_string())
        .await
        .unwrap();
    assert_eq!(revoked.fingerprint_sha256, prints[1]);
    assert!(revoked.revoked_us.is_some());
    let page = fleet::PageRequest::new(10, None).unwrap();
    let standing = fleet.list_certificates("tcu-1", &page).await.unwrap().items;
    let revoked = standing.iter().filter(|it| it.revoked_us.is_some());
    assert_eq!(revoked.count(), 1, "the other one stays");
}

#[tokio::test]
async fn what_the_handshake_would_refuse_is_not_registered() {
    let garage = Garage::open().await;
    garage.car(1).await;
    let maker = authority("maker");
    let mut expired = device_params(1);
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    let mut server = device_params(1);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let with_key = format!(
        "{}{}",
        device_params(1).signed_by(&key, &maker).unwrap().pem(),
        key.serialize_pem()
    );
    let rows = [
        (signed(expired, &maker), "ended at"),
        (signed(authority_params("sub"), &maker), "is a CA's"),
        (maker.pem(), "is a CA's"),
        (signed(server, &maker), "is not a client certificate"),
        (
            signed(device_params(1), &authority("stranger")),
            "is not a client certificate",
        ),
        (with_key, "comes with a private key"),
        ("hello".to_owned(), "has no PEM block"),
        ("x".repeat(64 * 1024 + 1), "allowed are 65536"),
    ];
    for (pem, says) in rows {
        let refusal = garage
            .fleet
            .register_certificate(&garage.anna, "tcu-1", &pem, &[root(&maker)])
            .await
            .expect_err(says);
        assert!(matches!(refusal, FleetError::Invalid { .. }), "{refusal}");
        assert!(refusal.to_string().contains(says), "{refusal}");
    }
    let good = signed(device_params(1), &maker);
    let nobody_trusted = garage
        .fleet
        .register_certificate(&garage.anna, "tcu-1", &good, &[])
        .await;
    let text = nobody_trusted.unwrap_err().to_string();
    assert!(text.contains("no listener has client_ca"), "{text}");
    // A device that is shut out gets no way in.
    let fleet = &garage.fleet;
    let disabled = fleet.set_device_enabled(&garage.anna, "tcu-1", false, None);
    disabled.await.unwrap();
    let refused = fleet
        .register_certificate(&garage.anna, "tcu-1", &good, &[root(&maker)])
        .await;
    assert!(matches!(refused, Err(FleetError::Disabled { .. })));
    assert_eq!(fleet.directory().counts().certificates, 1, "its own only");
}
