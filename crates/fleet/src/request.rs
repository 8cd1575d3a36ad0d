//! A device's certificate signing request (PKCS #10, RFC 2986), reduced to what we take from it:
//! the public key, after the request's signature has proved that the sender has the private one.
//!
//! Subject, extensions and attributes of a request are wishes; a request may wish to be a CA.
//! Nothing of them reaches the certificate because nothing of them leaves this file. Taking the
//! request as a template and overwriting field by field was refused: one forgotten field is a
//! forged authority. (It would also label a P-384 key that signed with SHA-256 as P-256.)

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA},
    prelude::FromDer,
    public_key::PublicKey,
    x509,
};

use crate::FleetError;

/// Far above any real request (an RSA-8192 one has 3 KB).
const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// RFC 8446 and every current baseline ask for at least this.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A key whose owner asked for a certificate and proved to have it.
#[derive(Debug)]
pub(crate) struct CertificateRequest {
    pub(crate) public_key: SubjectPublicKeyInfo,
}

impl CertificateRequest {
    /// Reads one PEM `CERTIFICATE REQUEST` and checks signature and key.
    pub(crate) fn parse(pem: &str) -> Result<Self, FleetError> {
        if pem.len() > MAX_REQUEST_BYTES {
            let length = pem.len();
            return Err(refused(format!(
                "has {length} bytes; allowed are {MAX_REQUEST_BYTES}"
            )));
        }
        if pem.contains("PRIVATE KEY-----") {
            return Err(refused(
                "holds a private key, which must never leave its device; make a new key there and send the request only",
            ));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| refused("is not a PEM block `-----BEGIN CERTIFICATE REQUEST-----`"))?;
        let (rest, request) = X509CertificationRequest::from_der(&der)
            .map_err(|_| refused("is not a PKCS #10 certificate request"))?;
        if !rest.is_empty() {
            return Err(refused("has bytes after the end of the request"));
        }
        let algorithm = &request.signature_algorithm.algorithm;
        if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
            return Err(refused(
                "is signed with SHA-1; sign it with SHA-256 or better",
            ));
        }
        let public_key = usable_key(&request.certification_request_info.subject_pki)?;
        request.verify_signature().map_err(|_| {
            refused(
                "has a signature that does not fit its public key: it was changed after signing or signed with another key",
            )
        })?;
        Ok(Self { public_key })
    }
}

/// P-256, P-384, Ed25519 or RSA of decent length, encoded the one way TLS peers accept.
fn usable_key(info: &x509::SubjectPublicKeyInfo<'_>) -> Result<SubjectPublicKeyInfo, FleetError> {
    let unsupported = || {
        refused(
            "has a key of an unsupported kind; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more",
        )
    };
    let key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| unsupported())?;
    let point_length = key.der_bytes().len();
    let algorithm = key.algorithm();
    let sound = if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
        point_length == 65
    } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
        point_length == 97
    } else if algorithm == &rcgen::PKCS_ED25519 {
        point_length == 32
    } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
        let Ok(PublicKey::RSA(rsa)) = info.parsed() else {
            return Err(refused("has a damaged RSA key"));
        };
        let bits = rsa.key_size();
        if !RSA_BITS.contains(&bits) {
            return Err(refused(format!(
                "has an RSA key of {bits} bits; allowed are 2048 to 8192"
            )));
        }
        true
    } else {
        return Err(unsupported());
    };
    if sound {
        Ok(key)
    } else {
        Err(refused("has a damaged or compressed public key"))
    }
}

fn refused(reason: impl Into<String>) -> FleetError {
    FleetError::invalid("certificate request", reason)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, RsaKeySize, SignatureAlgorithm};

    use super::*;

    fn request_with(key: &KeyPair) -> String {
        CertificateParams::default()
            .serialize_request(key)
            .unwrap()
            .pem()
            .unwrap()
    }

    fn why_not(pem: &str) -> String {
        CertificateRequest::parse(pem).unwrap_err().to_string()
    }

    #[test]
    fn the_usual_keys_are_taken() {
        let algorithms: [&'static SignatureAlgorithm; 3] = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ];
        for algorithm in algorithms {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateRequest::parse(&request_with(&key)).unwrap();
            assert_eq!(request.public_key.der_bytes(), key.public_key_raw());
            assert_eq!(request.public_key.algorithm(), algorithm);
        }
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let request = CertificateRequest::parse(&request_with(&rsa)).unwrap();
        assert_eq!(request.public_key.der_bytes(), rsa.public_key_raw());
    }

    #[test]
    fn other_keys_are_not() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert!(why_not(&request_with(&key)).contains("unsupported kind"));
        // openssl req -new -newkey rsa:1024 -nodes -subj /CN=short -sha256
        assert!(
            why_not(include_str!("../tests/requests/rsa-1024.pem"))
                .contains("RSA key of 1024 bits; allowed are 2048 to 8192")
        );
        // openssl req -new -newkey rsa:2048 -nodes -subj /CN=old -sha1
        assert!(
            why_not(include_str!("../tests/requests/rsa-2048-sha1.pem"))
                .contains("signed with SHA-1")
        );
    }

    /// A P-384 key that signs its request with SHA-256 keeps its own kind.
    #[test]
    fn the_kind_of_the_key_comes_from_the_key() {
        // openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj /CN=x -sha256
        let request =
            CertificateRequest::parse(include_str!("../tests/requests/p384-sha256.pem")).unwrap();
        assert_eq!(
            request.public_key.algorithm(),
            &rcgen::PKCS_ECDSA_P384_SHA384
        );
    }

    /// Everything in the signed part counts. Outside of it are the frame around it, where a lenient
    /// parser may shrug, and the signature: neither can change what we take.
    #[test]
    fn no_flipped_bit_gets_into_a_certificate() {
        let key = KeyPair::generate().unwrap();
        let der = CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .der()
            .to_vec();
        let pem = |der: &[u8]| {
            use base64::{Engine, engine::general_purpose::STANDARD};
            let body = STANDARD.encode(der);
            format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"
            )
        };
        assert!(CertificateRequest::parse(&pem(&der)).is_ok());
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        let signed = request.certification_request_info.raw;
        let begin = der
            .windows(signed.len())
            .position(|window| window == signed)
            .unwrap();
        let signed = begin..begin + signed.len();
        for bit in 0..der.len() * 8 {
            let mut bent = der.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            if let Ok(request) = CertificateRequest::parse(&pem(&bent)) {
                assert!(!signed.contains(&(bit / 8)), "bit {bit} is signed");
                assert_eq!(
                    request.public_key.der_bytes(),
                    key.public_key_raw(),
                    "bit {bit}"
                );
            }
        }
        for length in 0..der.len() {
            assert!(
                CertificateRequest::parse(&pem(&der[..length])).is_err(),
                "cut at {length}"
            );
        }
        let mut longer = der;
        longer.push(0);
        assert!(why_not(&pem(&longer)).contains("bytes after the end"));
    }

    #[test]
    fn what_is_no_request_is_refused_without_repeating_it() {
        let key = KeyPair::generate().unwrap();
        let secret = key.serialize_pem();
        let certificate = CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .pem();
        for (text, says) in [
            (String::new(), "is not a PEM block"),
            ("hello".into(), "is not a PEM block"),
            (certificate, "is not a PEM block"),
            (secret.clone(), "holds a private key"),
            (
                format!("{}{secret}", request_with(&key)),
                "holds a private key",
            ),
            (
                "x".repeat(MAX_REQUEST_BYTES + 1),
                "has 16385 bytes; allowed are 16384",
            ),
        ] {
            let refusal = why_not(&text);
            assert!(refusal.contains(says), "{refusal}");
            assert!(
                !secret.lines().any(|line| refusal.contains(line)),
                "{refusal}"
            );
        }
    }
}
