//! Which certificate a client is shown: the one for the name it asks for (RFC 6066 section 3), exact before
//! wildcard; where none fits, or it asks for none, the first of the configuration. Of several for one name
//! the first whose key the client can check, so that an old client gets RSA where others get ECDSA.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificate::ServerPair;

/// The certificates of a listener.
#[derive(Debug)]
pub(super) struct ShownCertificates {
    all: Vec<Arc<CertifiedKey>>,
    /// Places in `all` by name; a wildcard by what follows `*.`.
    exact: HashMap<String, Vec<usize>>,
    wildcard: HashMap<String, Vec<usize>>,
}

impl ShownCertificates {
    pub(super) fn new(pairs: Vec<ServerPair>) -> Self {
        let mut shown = Self {
            all: Vec::with_capacity(pairs.len()),
            exact: HashMap::new(),
            wildcard: HashMap::new(),
        };
        for (place, pair) in pairs.into_iter().enumerate() {
            for name in pair.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut shown.wildcard, parent.to_owned()),
                    None => (&mut shown.exact, name),
                };
                map.entry(name).or_default().push(place);
            }
            shown.all.push(pair.key);
        }
        shown
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let none = Vec::new();
        let exact = self.exact.get(&name).unwrap_or(&none);
        // A wildcard stands for one label (RFC 9525 section 6.3).
        let parent = name.split_once('.').map_or("", |(_, parent)| parent);
        let wildcard = self.wildcard.get(parent).unwrap_or(&none);
        let named = exact.iter().chain(wildcard).map(|place| &self.all[*place]);
        named
            .chain(&self.all)
            .find(|pair| pair.key.choose_scheme(schemes).is_some())
            .cloned()
    }
}

impl ResolvesServerCert for ShownCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn pair(names: &[&str], algorithm: &'static SignatureAlgorithm) -> ServerPair {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let list: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(list.clone())
            .and_then(|params| params.self_signed(&key))
            .expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let chain = vec![certificate.der().clone()];
        let certified = CertifiedKey::from_der(chain, key, &super::super::provider());
        ServerPair {
            key: Arc::new(certified.expect("a pair")),
            names: list,
            not_after_us: 0,
        }
    }

    #[test]
    fn the_name_decides_then_the_key() {
        let ecdsa = &rcgen::PKCS_ECDSA_P256_SHA256;
        let pairs = vec![
            pair(&["first.example"], ecdsa),
            pair(&["*.fleet.example"], ecdsa),
            pair(&["mqtt.fleet.example"], &rcgen::PKCS_ED25519),
            pair(&["mqtt.fleet.example"], ecdsa),
        ];
        let all: Vec<_> = pairs.iter().map(|pair| pair.key.clone()).collect();
        let shown = ShownCertificates::new(pairs);
        let old = [SignatureScheme::ECDSA_NISTP256_SHA256];
        let new = [
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
        ];
        let rows: [(Option<&str>, &[SignatureScheme], Option<usize>); 8] = [
            (Some("mqtt.fleet.example"), &new, Some(2)),
            (Some("MQTT.Fleet.Example"), &old, Some(3)),
            (Some("other.fleet.example"), &old, Some(1)),
            (Some("a.b.fleet.example"), &old, Some(0)),
            (Some("fleet.example"), &old, Some(0)),
            (Some("unknown"), &old, Some(0)),
            (None, &new, Some(0)),
            (None, &[SignatureScheme::RSA_PSS_SHA256], None),
        ];
        for (name, schemes, expected) in rows {
            let chosen = shown.choose(name, schemes);
            let place =
                chosen.and_then(|chosen| all.iter().position(|it| Arc::ptr_eq(it, &chosen)));
            assert_eq!(place, expected, "{name:?}");
        }
    }
}
