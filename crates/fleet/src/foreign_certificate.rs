//! Certificates that another CA issued: a maker's own, a supplier's, one from a former platform. The
//! device keeps key and certificate; here it only gets its row, so that the directory knows it.
//!
//! Flow: PEM (leaf, then what stands above it) → is it a device's certificate, in time, and does it lead
//! to a CA that the operator trusts for clients? → the same row and directory entry as an issued one.
//!
//! The path is checked by the verifier that also serves the TLS handshake: what is registered here is
//! let in there. Subject and names in it are not looked at: what a certificate is worth is its row, and a
//! foreign CA cannot be asked to use our ids.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    Actor, Certificate, DeviceId, Fingerprint, Fleet, FleetError, Kind,
    certificate::must_be_enabled,
    fingerprint::write_hex,
    fleet::{now_us, unbroken},
};

/// A leaf and its chain are some 2 KB each.
const MAX_PEM_BYTES: usize = 64 * 1024;
/// More certificates than this between a device and its root exist on paper only.
const MAX_CHAIN: usize = 8;

impl Fleet {
    /// Registers a certificate that a device has already, PEM, with the intermediate certificates that
    /// the device sends behind it. `authorities` are the CAs whose clients the server's listeners let
    /// through the handshake; the fleet CA is not one of them here, for it keeps what it issues.
    /// Refusals are audited.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] when it is no usable client certificate of one of `authorities`,
    /// [`FleetError::AlreadyExists`] when it is registered, revoked or not, [`FleetError::NotFound`],
    /// [`FleetError::Disabled`], [`FleetError::Storage`].
    pub async fn register_certificate(
        &self,
        actor: &Actor,
        device_id: &str,
        pem: &str,
        authorities: &[CertificateDer<'static>],
    ) -> Result<Certificate, FleetError> {
        let id = DeviceId::parse(device_id)?;
        let presented = Presented::check(pem, authorities, now_us());
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let registered = match presented {
                Ok(presented) => fleet.keep_foreign(&actor, &id, presented).await,
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = &registered {
                let action = "certificate.register";
                fleet.record_refusal(&actor, action, &id, refusal).await?;
            }
            registered
        })
        .await
    }

    async fn keep_foreign(
        &self,
        actor: &Actor,
        id: &DeviceId,
        presented: Presented,
    ) -> Result<Certificate, FleetError> {
        let mut turn = self.store().write().await?;
        must_be_enabled(turn.connection(), id).await?;
        let fingerprint = presented.fingerprint.to_string();
        let known = sqlx::query("SELECT id FROM certificates WHERE fingerprint = $1")
            .bind(fingerprint.as_str())
            .fetch_optional(turn.connection())
            .await
            .map_err(FleetError::storage("look for a certificate"))?;
        if known.is_some() {
            return Err(FleetError::already_exists(Kind::Certificate, fingerprint));
        }
        let certificate = Certificate {
            device_id: id.clone(),
            serial: presented.serial,
            fingerprint_sha256: presented.fingerprint,
            not_before_us: presented.not_before_us,
            not_after_us: presented.not_after_us,
            revoked_us: None,
            pem: presented.pem,
            chain_pem: presented.chain_pem.clone(),
        };
        let chain = Some(presented.chain_pem.as_str());
        self.keep(turn, actor, "certificate.register", certificate, chain)
            .await
    }
}

/// A certificate that stood every check but the one against the register.
struct Presented {
    serial: String,
    fingerprint: Fingerprint,
    not_before_us: i64,
    not_after_us: i64,
    pem: String,
    chain_pem: String,
}

impl Presented {
    fn check(
        pem: &str,
        authorities: &[CertificateDer<'static>],
        now_us: i64,
    ) -> Result<Self, FleetError> {
        if pem.len() > MAX_PEM_BYTES {
            let length = pem.len();
            return Err(refused(format!(
                "has {length} bytes; allowed are {MAX_PEM_BYTES}"
            )));
        }
        if pem.contains("PRIVATE KEY-----") {
            return Err(refused(
                "comes with a private key, which must never leave its device; send the certificate only",
            ));
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| refused("is not PEM"))?;
        let Some((leaf, above)) = chain.split_first() else {
            return Err(refused("has no PEM block `-----BEGIN CERTIFICATE-----`"));
        };
        if above.len() > MAX_CHAIN {
            return Err(refused(format!(
                "has {} certificates behind it; allowed are {MAX_CHAIN}",
                above.len()
            )));
        }
        let (rest, certificate) =
            X509Certificate::from_der(leaf).map_err(|_| refused("is not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(refused("has bytes after its end"));
        }
        if certificate.is_ca() {
            return Err(refused(
                "is a CA's; send the device's own first, those above it behind",
            ));
        }
        let validity = certificate.validity();
        let [not_before_us, not_after_us] = [validity.not_before, validity.not_after]
            .map(|time| time.timestamp().saturating_mul(1_000_000));
        if now_us > not_after_us {
            return Err(refused(format!(
                "ended at {}; give the device a new one",
                validity.not_after
            )));
        }
        check_path(leaf, above, authorities, now_us)?;
        let fingerprint = Fingerprint::of(leaf);
        Ok(Self {
            serial: serial(&certificate),
            fingerprint,
            not_before_us,
            not_after_us,
            pem: to_pem(std::slice::from_ref(leaf)),
            chain_pem: to_pem(above),
        })
    }
}

/// As the TLS handshake will.
fn check_path(
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    authorities: &[CertificateDer<'static>],
    now_us: i64,
) -> Result<(), FleetError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    if roots.is_empty() {
        return Err(refused(
            "cannot be of a CA trusted here: no listener has client_ca; name its CA there first",
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| refused(format!("cannot be checked: {error}")))?;
    // One that begins tomorrow is registered today.
    let now = u64::try_from(now_us / 1_000_000).unwrap_or_default();
    let begins = X509Certificate::from_der(leaf)
        .map_or(0, |(_, leaf)| leaf.validity().not_before.timestamp());
    let at = now.max(u64::try_from(begins).unwrap_or_default());
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
    match verifier.verify_client_cert(leaf, above, at) {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(format!(
            "is not a client certificate of a CA in client_ca: {error}; send it with those between it \
             and that CA, or add its CA to client_ca"
        ))),
    }
}

/// Lower-case hexadecimal without the zero byte that keeps an ASN.1 integer positive.
fn serial(certificate: &X509Certificate<'_>) -> String {
    let raw = certificate.raw_serial();
    let digits = match raw {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    let mut text = String::with_capacity(2 * digits.len());
    // Writing to a string cannot fail.
    let _ = write_hex(&mut text, digits);
    text
}

fn to_pem(chain: &[CertificateDer<'_>]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut pem = String::new();
    for certificate in chain {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let body = STANDARD.encode(certificate);
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

fn refused(reason: impl Into<String>) -> FleetError {
    FleetError::invalid("certificate", reason)
}
