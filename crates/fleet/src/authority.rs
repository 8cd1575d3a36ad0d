//! The fleet CA: the root that devices and this server are known by.
//!
//! Made on first start in `{data_dir}/ca` (mode 0700): `ca.pem` for everybody, `ca.key` for the
//! owner only. Both are written in a directory beside and appear together by one rename, so a
//! crash leaves either no CA or a whole one, never a key without its certificate.
//!
//! What it signs is decided here and nowhere else: a device certificate authenticates a client,
//! a server certificate a server, neither can sign anything (path length 0 in the CA, no CA flag
//! in the leaf), and neither outlives the CA.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    DeviceId, Fingerprint, FleetError,
    durable_file::{self, PRIVATE, PUBLIC},
    fingerprint::write_hex,
    request::CertificateRequest,
};

/// Ten years: longer than most vehicles keep one TCU; a successor is introduced before.
const CA_LIFETIME: Duration = Duration::from_secs(3652 * 86_400);
/// Clocks of vehicles and servers disagree by minutes.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
const SERIAL_BYTES: usize = 16;

/// Where a CA came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Made just now.
    Made,
    /// Read from its files.
    Found,
}

/// The fleet CA. Shows no key in its debug output and gives none out.
pub struct Authority {
    cert_pem: String,
    cert_der: CertificateDer<'static>,
    not_after_us: i64,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate just signed, and what was put into it.
pub(crate) struct Signed {
    pub(crate) certificate: Certificate,
    pub(crate) serial: String,
    pub(crate) not_before_us: i64,
    pub(crate) not_after_us: i64,
}

impl Authority {
    /// The CA's certificate, PEM: what devices and clients trust this server by.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's certificate, DER: the trust anchor for client certificates.
    pub fn cert_der(&self) -> &CertificateDer<'static> {
        &self.cert_der
    }

    /// SHA-256 of the CA's certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.cert_der)
    }

    /// When the CA ends, in microseconds since the Unix epoch.
    pub fn not_after_us(&self) -> i64 {
        self.not_after_us
    }

    /// Reads the CA of this data directory, or makes one if there is none.
    pub(crate) fn open_or_make(data_dir: &Path, now_us: i64) -> Result<(Self, Origin), FleetError> {
        let files = Files::of(data_dir);
        match (exists(&files.certificate)?, exists(&files.key)?) {
            (true, true) => Ok((Self::read(&files)?, Origin::Found)),
            (false, false) => {
                make(data_dir, &files, now_us)?;
                Ok((Self::read(&files)?, Origin::Made))
            }
            (true, false) => Err(FleetError::AuthorityIncomplete {
                present: files.certificate,
                missing: files.key,
            }),
            (false, true) => Err(FleetError::AuthorityIncomplete {
                present: files.key,
                missing: files.certificate,
            }),
        }
    }

    fn read(files: &Files) -> Result<Self, FleetError> {
        let mode = durable_file::mode_of(&files.key)?;
        if durable_file::is_exposed(mode) {
            return Err(FleetError::KeyExposed {
                path: files.key.clone(),
                mode,
            });
        }
        let text = |path: &Path| fs::read_to_string(path).map_err(FleetError::io("read", path));
        let (cert_pem, key_pem) = (text(&files.certificate)?, text(&files.key)?);

        let unusable = |path: &Path, reason: &str| FleetError::AuthorityUnusable {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        // The parser's own words are left out: they could quote the key.
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|_| unusable(&files.key, "it is not a PEM private key (PKCS #8)"))?;
        let bad = |reason: &str| unusable(&files.certificate, reason);
        let cert_der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|_| bad("it is not a PEM certificate"))?;
        let not_after_us = {
            let (_, certificate) = X509Certificate::from_der(&cert_der)
                .map_err(|_| bad("it is not an X.509 certificate"))?;
            if *certificate.public_key().subject_public_key.data != *key.public_key_raw() {
                return Err(bad("it does not belong to the key in ca.key"));
            }
            if !certificate.is_ca() {
                return Err(bad("it is not a CA certificate"));
            }
            certificate
                .validity()
                .not_after
                .timestamp()
                .saturating_mul(1_000_000)
        };
        let issuer = Issuer::from_ca_cert_der(&cert_der, key)
            .map_err(FleetError::certify("read the fleet CA's certificate"))?;
        Ok(Self {
            cert_pem,
            cert_der,
            not_after_us,
            issuer,
        })
    }

    /// A certificate with which this device authenticates as an MQTT client. Only the public key
    /// comes from the request.
    pub(crate) fn sign_device(
        &self,
        device: &DeviceId,
        request: &CertificateRequest,
        lifetime: Duration,
        now_us: i64,
    ) -> Result<Signed, FleetError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(device.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(
            params,
            &request.public_key,
            lifetime,
            now_us,
            "sign a device's certificate",
        )
    }

    /// A certificate with which a server proves to be one of `names`.
    pub(crate) fn sign_server(
        &self,
        names: Vec<SanType>,
        key: &KeyPair,
        lifetime: Duration,
        now_us: i64,
    ) -> Result<Signed, FleetError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Milepost server");
        params.subject_alt_names = names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(
            params,
            key,
            lifetime,
            now_us,
            "sign the server's certificate",
        )
    }

    /// Whether this CA signed the certificate.
    pub(crate) fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        X509Certificate::from_der(&self.cert_der)
            .is_ok_and(|(_, ca)| certificate.verify_signature(Some(ca.public_key())).is_ok())
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        public_key: &impl PublicKeyData,
        lifetime: Duration,
        now_us: i64,
        doing: &'static str,
    ) -> Result<Signed, FleetError> {
        if now_us >= self.not_after_us {
            let not_after = jiff::Timestamp::from_microsecond(self.not_after_us)
                .unwrap_or(jiff::Timestamp::MAX);
            return Err(FleetError::AuthorityExpired { not_after });
        }
        let serial = random_serial()?;
        let not_before_us = whole_seconds(now_us - micros(BACKDATED));
        let not_after_us =
            whole_seconds(now_us.saturating_add(micros(lifetime))).min(self.not_after_us);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        set_validity(&mut params, not_before_us, not_after_us);
        let certificate = params
            .signed_by(public_key, &self.issuer)
            .map_err(FleetError::certify(doing))?;
        Ok(Signed {
            certificate,
            serial: hex(&serial),
            not_before_us,
            not_after_us,
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

struct Files {
    directory: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(data_dir: &Path) -> Self {
        Self::within(data_dir.join("ca"))
    }

    fn within(directory: PathBuf) -> Self {
        let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
        Self {
            directory,
            certificate,
            key,
        }
    }
}

fn exists(path: &Path) -> Result<bool, FleetError> {
    path.try_exists().map_err(FleetError::io("look for", path))
}

/// Makes a CA beside its place and moves it there whole.
fn make(data_dir: &Path, place: &Files, now_us: i64) -> Result<(), FleetError> {
    let doing = "make the fleet CA";
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("Milepost fleet CA {}", hex(&serial[..4])));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    set_validity(
        &mut params,
        now_us - micros(BACKDATED),
        now_us.saturating_add(micros(CA_LIFETIME)),
    );
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(FleetError::certify(doing))?;
    let certificate = params
        .self_signed(&key)
        .map_err(FleetError::certify(doing))?;

    let unfinished = Files::within(data_dir.join("ca.new"));
    if exists(&unfinished.directory)? {
        // Of a crash before the rename: nobody has ever trusted it.
        fs::remove_dir_all(&unfinished.directory)
            .map_err(FleetError::io("remove leftover", &unfinished.directory))?;
    }
    durable_file::private_directory(&unfinished.directory)?;
    durable_file::write_new(&unfinished.key, key.serialize_pem().as_bytes(), PRIVATE)?;
    durable_file::write_new(
        &unfinished.certificate,
        certificate.pem().as_bytes(),
        PUBLIC,
    )?;
    durable_file::sync_directory(&unfinished.directory)?;
    fs::rename(&unfinished.directory, &place.directory)
        .map_err(FleetError::io("move the new fleet CA to", &place.directory))?;
    durable_file::sync_directory(data_dir)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// 126 random bits in 16 bytes: the first bit is clear (serials are positive), the second is set
/// (so that every serial has the same length).
fn random_serial() -> Result<[u8; SERIAL_BYTES], FleetError> {
    let mut serial = [0; SERIAL_BYTES];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut serial)
        .map_err(|_| FleetError::NoEntropy)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    // Writing to a String does not fail.
    let _ = write_hex(&mut text, bytes);
    text
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// X.509 knows no fractions of a second.
fn whole_seconds(us: i64) -> i64 {
    us.div_euclid(1_000_000) * 1_000_000
}

/// The last second of the year 9999, where X.509 dates end.
const LAST_SECOND: u64 = 253_402_300_799;

fn set_validity(params: &mut CertificateParams, not_before_us: i64, not_after_us: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |us: i64| {
        let seconds = u64::try_from(us / 1_000_000).unwrap_or(0);
        Duration::from_secs(seconds.min(LAST_SECOND))
    };
    params.not_before = epoch + since(not_before_us);
    params.not_after = epoch + since(not_after_us);
}
