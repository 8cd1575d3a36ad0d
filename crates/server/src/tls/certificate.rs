//! Certificates and keys as files, PEM: read whole, checked, and every complaint names the file.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet::ServerCertificate;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate, X509Version},
};

use super::provider;
use crate::config::listener::CertificateFiles;

/// Larger than any bundle of CAs that somebody trusts for vehicles (the web's has 200 KB).
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A file that does not hold what it should. Never quotes its content: it may be a key.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{} {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Each is good, but they do not belong together.
    #[error("{} does not hold the key of the certificate in {}", key.display(), chain.display())]
    NotAPair {
        /// The certificate's file.
        chain: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

impl FileError {
    /// The file to look into.
    pub fn path(&self) -> &Path {
        match self {
            Self::Unreadable { path, .. } | Self::Unusable { path, .. } => path,
            Self::NotAPair { key, .. } => key,
        }
    }
}

/// A server certificate with its key, ready to be shown.
#[derive(Debug, Clone)]
pub struct ServerPair {
    pub(super) key: Arc<CertifiedKey>,
    /// DNS names in it, lower case, `*.` in front of wildcards.
    pub(super) names: Vec<String>,
    /// Its end, microseconds since the Unix epoch.
    pub(super) not_after_us: i64,
}

/// Reads a certificate with its chain, and its key.
///
/// # Errors
/// See [`FileError`].
pub fn server_pair(files: &CertificateFiles) -> Result<ServerPair, FileError> {
    let (chain, key) = (&files.chain, &files.key);
    let certificates = certificates(chain)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| unusable(key, "holds no PEM private key without a passphrase"))?;
    let (names, not_after_us) = {
        // `certificates` gives at least one.
        let (_, leaf) = X509Certificate::from_der(&certificates[0])
            .map_err(|_| unusable(chain, "holds no X.509 certificate"))?;
        (dns_names(&leaf), end(&leaf))
    };
    let pair =
        CertifiedKey::from_der(certificates, private, &provider()).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => FileError::NotAPair {
                    chain: chain.clone(),
                    key: key.clone(),
                },
                _ => unusable(
                    key,
                    "holds a key of an unsupported kind; use ECDSA P-256 or P-384, Ed25519 or RSA",
                ),
            },
        )?;
    Ok(ServerPair {
        key: Arc::new(pair),
        names,
        not_after_us,
    })
}

/// The certificate that the fleet CA gave this server.
pub(super) fn fleet_pair(certificate: ServerCertificate) -> Result<ServerPair, rustls::Error> {
    let names = certificate.chain.first().map_or_else(Vec::new, |leaf| {
        X509Certificate::from_der(leaf).map_or_else(|_| Vec::new(), |(_, leaf)| dns_names(&leaf))
    });
    let pair = CertifiedKey::from_der(certificate.chain, certificate.key, &provider())?;
    Ok(ServerPair {
        key: Arc::new(pair),
        names,
        not_after_us: certificate.not_after_us,
    })
}

/// Reads the CA certificates of a file, at least one.
///
/// # Errors
/// See [`FileError`].
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let all = certificates(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &all {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_| unusable(path, "holds no X.509 certificate"))?;
        // Roots of version 1 could not say that they are one.
        if !parsed.is_ca() && parsed.version() != X509Version::V1 {
            let subject = parsed.subject();
            return Err(unusable(
                path,
                &format!("holds a certificate that is no CA's: {subject}"),
            ));
        }
        roots.add(certificate.clone()).map_err(|error| {
            unusable(
                path,
                &format!("holds a CA certificate that cannot be used: {error}"),
            )
        })?;
    }
    Ok(all)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let all = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| unusable(path, "is not PEM"))?;
    match all.is_empty() {
        true => Err(unusable(
            path,
            "holds no PEM block `-----BEGIN CERTIFICATE-----`",
        )),
        false => Ok(all),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let read = || {
        let mut content = Vec::new();
        let file = File::open(path)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
        Ok(content)
    };
    let content = read().map_err(|source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    match content.len() as u64 > MAX_FILE_BYTES {
        true => Err(unusable(
            path,
            "is larger than 4 MiB, so it holds no certificates",
        )),
        false => Ok(content),
    }
}

fn unusable(path: &Path, reason: &str) -> FileError {
    FileError::Unusable {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn end(certificate: &X509Certificate<'_>) -> i64 {
    let not_after = certificate.validity().not_after;
    not_after.timestamp().saturating_mul(1_000_000)
}
