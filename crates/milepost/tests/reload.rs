//! Certificates change while the real binary runs, and nobody who is connected notices.

mod harness;
mod wire;

use std::{fs, path::Path};

use harness::{Serving, UNHURRIED, config_on_free_ports, signal};
use mqtt::{Connect, ReasonCode, Version};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use wire::{Car, Pair, TlsClient, Wire, address, metric};

/// A CA of somebody else's.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

/// A server's certificate for `name` and its key, PEM.
fn server_pair(by: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, by).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

fn device_pair(by: &CertifiedIssuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, by).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .expect("PEM")
        .to_vec()
}

/// A configuration whose listener shows the files `server.pem` and `server.key` of a folder.
fn config(folder: &Path, more: &str) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!(
        "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\n{more}\n\
         [[listener.certificate]]\nchain = {:?}\nkey = {:?}\n\
         [http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n{UNHURRIED}",
        file("server.pem"),
        file("server.key")
    )
}

fn write(folder: &Path, pair: &(String, String)) {
    fs::write(folder.join("server.pem"), &pair.0).expect("written");
    fs::write(folder.join("server.key"), &pair.1).expect("written");
}

#[test]
fn a_new_certificate_is_shown_and_nobody_is_disconnected() {
    let folder = tempfile::tempdir().expect("a folder");
    let public = authority("public");
    let (first, second) = (
        server_pair(&public, "localhost"),
        server_pair(&public, "localhost"),
    );
    write(folder.path(), &first);
    let serving = Serving::start(&folder.path().join("data"), &config(folder.path(), ""));
    let car = Car::register(&serving, 1);
    let client = TlsClient::new(&public.pem(), "localhost", Some(car.pair()));
    let at = address(&serving, "mqtts");
    assert_eq!(client.shown(at), der(&first.0));
    let mut standing = Wire::open(client.dial(at).expect("a handshake"), "standing");

    // Half of it first: nothing is used, and the file is named.
    fs::write(folder.path().join("server.pem"), &second.0).expect("written");
    let refused = serving.client(&["cert", "reload"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("server.key does not hold the key"), "{said}");
    assert_eq!(client.shown(at), der(&first.0));
    let failed = metric(&serving, "milepost_tls_reloads_total{outcome=\"failed\"}");
    assert!(failed.is_some_and(|count| count >= 1.0), "{failed:?}");

    fs::write(folder.path().join("server.key"), &second.1).expect("written");
    let reloaded = serving.client_ok(&["cert", "reload", "--json"]);
    assert!(reloaded.contains("mqtts-0"), "{reloaded}");
    serving.says("tls.reloaded");
    assert_eq!(client.shown(at), der(&second.0));
    let topic = "dt/a/b/car-1/c";
    assert_eq!(standing.publish(topic, "still here"), ReasonCode::Success);

    // SIGHUP does the same, and so does time.
    for wake in [Some("HUP"), None] {
        let next = server_pair(&public, "localhost");
        write(folder.path(), &next);
        if let Some(name) = wake {
            signal(serving.pid(), name);
        }
        serving.says("tls.reloaded");
        assert_eq!(client.shown(at), der(&next.0), "{wake:?}");
        assert_eq!(standing.publish(topic, "still here"), ReasonCode::Success);
    }
    standing.leave();
}

#[test]
fn a_ca_of_clients_comes_and_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (public, maker) = (authority("public"), authority("maker"));
    write(folder.path(), &server_pair(&public, "localhost"));
    let ca_file = folder.path().join("clients.pem");
    fs::write(&ca_file, public.pem()).expect("written");
    let more = format!("client_ca = [{:?}]", ca_file.display().to_string());
    let serving = Serving::start(&folder.path().join("data"), &config(folder.path(), &more));
    let car = Car::register(&serving, 1);
    let (certificate, key) = device_pair(&maker);
    let pair = Pair {
        certificate: &certificate,
        key: &key,
    };
    let client = TlsClient::new(&public.pem(), "localhost", Some(pair));
    let at = address(&serving, "mqtts");
    let file = folder.path().join("device.pem");
    fs::write(&file, &certificate).expect("written");
    let file = file.to_str().expect("UTF-8");
    let register = ["cert", "register", "car-1-tcu", "--cert", file];

    // Its CA is not trusted: neither registered nor let through the handshake.
    let refused = serving.client(&register);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("add its CA to client_ca"), "{said}");
    // TLS 1.3 tells a client of its refused certificate after the handshake.
    let connects = || {
        let connect = Connect::new(Version::V5, "app");
        let answered = Wire::try_connect(client.dial(at).ok()?, connect);
        answered.map(|(_, answer)| answer.reason)
    };
    assert_eq!(connects(), None);

    // Trusted, it passes the handshake and is nobody yet.
    fs::write(&ca_file, format!("{}{}", public.pem(), maker.pem())).expect("written");
    serving.client_ok(&["cert", "reload"]);
    assert_eq!(connects(), Some(ReasonCode::NotAuthorized));
    let registered = serving.client_ok(&register);
    assert!(registered.contains("fingerprint"), "{registered}");
    assert_eq!(connects(), Some(ReasonCode::Success));
    let again = serving.client(&register);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("is already registered"), "{said}");

    // And out again: a session that could be resumed does not help, for the tickets are new too.
    fs::write(&ca_file, public.pem()).expect("written");
    serving.client_ok(&["cert", "reload"]);
    assert_eq!(connects(), None);
    // The fleet's own devices never noticed.
    let own = TlsClient::new(&public.pem(), "localhost", Some(car.pair()));
    Wire::open(own.dial(at).expect("a handshake"), "app").leave();
}

#[test]
fn a_certificate_that_does_not_fit_is_found_by_check() {
    let folder = tempfile::tempdir().expect("a folder");
    let public = authority("public");
    let (one, other) = (server_pair(&public, "a"), server_pair(&public, "b"));
    write(folder.path(), &(one.0, other.1));
    let file = folder.path().join("milepost.toml");
    fs::write(&file, config(folder.path(), "")).expect("written");
    let checked = harness::milepost()
        .args(["check", "--config"])
        .arg(&file)
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .output()
        .expect("it runs");
    assert_eq!(checked.status.code(), Some(1));
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(said.contains("listener[0].certificate[0].key"), "{said}");
}

#[test]
fn without_files_the_fleet_ca_certifies_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Serving::start(&folder.path().join("data"), &config_on_free_ports(""));
    let car = Car::register(&serving, 1);
    car.open(serving.mqtt, "app").leave();
    let end = metric(
        &serving,
        "milepost_tls_certificate_expiry_timestamp_seconds{listener=\"mqtts-0\"}",
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs_f64();
    assert!(
        end.is_some_and(|end| end > now + 300.0 * 86_400.0),
        "{end:?}"
    );
}
