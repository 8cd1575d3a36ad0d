//! Credentials: what a device needs to connect, in memory and kept in a directory.
//!
//! Kept as PEM files that other MQTT clients read too: `{device}.key.pem`, `{device}.cert.pem`
//! (leaf first) and `{device}.ca.pem`, all mode 0600, and `{device}.json`, written last: without it
//! the others are leftovers of a run that was cut off, and are made anew.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};

/// A device's identity: its key never left this machine.
#[derive(Clone)]
pub struct Credentials {
    /// The vehicle the device belongs to.
    pub vehicle_id: String,
    /// The device.
    pub device_id: String,
    /// Its certificate and those between it and the CA, PEM, leaf first.
    pub chain_pem: String,
    /// Its private key, PKCS#8 PEM.
    pub key_pem: String,
    /// The CA by which it trusts the server, PEM.
    pub ca_pem: String,
    /// When the certificate expires, microseconds since the Unix epoch.
    pub not_after_us: i64,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("vehicle_id", &self.vehicle_id)
            .field("device_id", &self.device_id)
            .field("not_after_us", &self.not_after_us)
            .finish_non_exhaustive() // the key stays out of logs
    }
}

/// Why credentials cannot be kept, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The id cannot be part of a file name.
    #[error("`{id}` cannot name credentials; ids have 1 to 128 characters of A-Z a-z 0-9 . _ : -")]
    Id {
        /// The id.
        id: String,
    },
    /// A file or the directory.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Key, certificate and CA do not make a TLS configuration.
    #[error("the credentials of device `{device}` cannot be used for TLS")]
    Tls {
        /// The device.
        device: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// None were kept for a device that is expected to have some.
    #[error("there are no credentials of device `{device}` in {dir}; make them first", dir = dir.display())]
    Missing {
        /// The device.
        device: String,
        /// Where they should be.
        dir: PathBuf,
    },
    /// A CA alone does not make a TLS configuration.
    #[error("the CA cannot be used for TLS")]
    Ca {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Servers whose tickets a device keeps.
const TICKETS: usize = 4;

/// What `{device}.json` holds.
#[derive(Serialize, Deserialize)]
struct Note {
    vehicle_id: String,
    device_id: String,
    not_after_us: i64,
}

impl Credentials {
    /// Writes them below `dir`, which is made if need be.
    ///
    /// # Errors
    /// [`CredentialsError::Io`]; [`CredentialsError::Id`] for ids that are no file names.
    pub fn save(&self, dir: &Path) -> Result<(), CredentialsError> {
        check_id(&self.device_id)?;
        fs::create_dir_all(dir).map_err(|source| failed("make directory", dir, source))?;
        let note = serde_json::json!(Note {
            vehicle_id: self.vehicle_id.clone(),
            device_id: self.device_id.clone(),
            not_after_us: self.not_after_us,
        });
        let note_path = file(dir, &self.device_id, "json");
        match fs::remove_file(&note_path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace", &note_path, source));
            }
            _ => {}
        }
        write_private(&file(dir, &self.device_id, "key.pem"), &self.key_pem)?;
        write_private(&file(dir, &self.device_id, "cert.pem"), &self.chain_pem)?;
        write_private(&file(dir, &self.device_id, "ca.pem"), &self.ca_pem)?;
        write_private(&note_path, &note.to_string())
    }

    /// Reads the credentials of a device from `dir`; `None` if there are none, or only parts.
    ///
    /// # Errors
    /// [`CredentialsError::Io`] if files are there but cannot be read.
    pub fn load(dir: &Path, device_id: &str) -> Result<Option<Self>, CredentialsError> {
        check_id(device_id)?;
        let read = |kind: &str| {
            let path = file(dir, device_id, kind);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(failed("read", &path, source)),
            }
        };
        let (Some(note), Some(key_pem), Some(chain_pem), Some(ca_pem)) = (
            read("json")?,
            read("key.pem")?,
            read("cert.pem")?,
            read("ca.pem")?,
        ) else {
            return Ok(None);
        };
        let Ok(note) = serde_json::from_str::<Note>(&note) else {
            return Ok(None); // torn by a crash: as good as not there
        };
        let credentials = Self {
            vehicle_id: note.vehicle_id,
            device_id: note.device_id,
            chain_pem,
            key_pem,
            ca_pem,
            not_after_us: note.not_after_us,
        };
        Ok(
            (credentials.device_id == device_id && credentials.client_config().is_ok())
                .then_some(credentials),
        )
    }

    /// The TLS configuration of a connection with this identity: the server is checked against the
    /// fleet CA, TLS 1.2 or 1.3.
    ///
    /// Without session resumption: a device that reconnects shows its certificate again, and
    /// thousands of devices in one process do not keep tickets.
    ///
    /// # Errors
    /// [`CredentialsError::Tls`] if a PEM text is broken or the key does not fit the certificate.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, CredentialsError> {
        self.try_client_config()
            .map_err(|source| CredentialsError::Tls {
                device: self.device_id.clone(),
                source,
            })
    }

    /// The same with session resumption: a device that reconnects shows the ticket the server gave it
    /// last time, and neither side signs anything.
    ///
    /// # Errors
    /// [`CredentialsError::Tls`], as for [`Credentials::client_config`].
    pub fn resuming_client_config(&self) -> Result<Arc<ClientConfig>, CredentialsError> {
        let mut config = (*self.client_config()?).clone();
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        Ok(Arc::new(config))
    }

    fn try_client_config(
        &self,
    ) -> Result<Arc<ClientConfig>, Box<dyn std::error::Error + Send + Sync>> {
        let chain = CertificateDer::pem_slice_iter(self.chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(&self.ca_pem)?)
            .with_client_auth_cert(chain, key)?;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// The TLS configuration of a client without a certificate: the server is checked against this CA, TLS
/// 1.2 or 1.3, without session resumption.
///
/// # Errors
/// [`CredentialsError::Ca`] if the PEM text is broken or has no certificate.
pub fn anonymous_client_config(ca_pem: &str) -> Result<Arc<ClientConfig>, CredentialsError> {
    let make = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(ca_pem)?)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    };
    make().map_err(|source| CredentialsError::Ca { source })
}

fn roots(ca_pem: &str) -> Result<RootCertStore, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in the CA's PEM text".into());
    }
    Ok(roots)
}

fn check_id(id: &str) -> Result<(), CredentialsError> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b':' | b'-');
    if (1..=128).contains(&id.len()) && id.bytes().all(legal) {
        Ok(())
    } else {
        Err(CredentialsError::Id { id: id.to_owned() })
    }
}

fn file(dir: &Path, device: &str, kind: &str) -> PathBuf {
    dir.join(format!("{device}.{kind}"))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> CredentialsError {
    CredentialsError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Writes a file only its owner can read, in one step: a reader sees the old text or the new.
fn write_private(path: &Path, text: &str) -> Result<(), CredentialsError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&fresh)?.write_all(text.as_bytes())?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| failed("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(device: &str) -> Credentials {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![device.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Credentials {
            vehicle_id: "car-1".into(),
            device_id: device.into(),
            chain_pem: certificate.clone(),
            key_pem: key.serialize_pem(),
            ca_pem: certificate,
            not_after_us: 1_900_000_000_000_000,
        }
    }

    #[test]
    fn what_is_kept_is_found_again_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = made("car-1-tcu");
        credentials.save(dir.path()).unwrap();
        let back = Credentials::load(dir.path(), "car-1-tcu").unwrap().unwrap();
        assert_eq!(back.key_pem, credentials.key_pem);
        assert_eq!(back.chain_pem, credentials.chain_pem);
        assert_eq!(
            (back.vehicle_id.as_str(), back.not_after_us),
            ("car-1", 1_900_000_000_000_000)
        );
        #[cfg(unix)]
        for entry in fs::read_dir(dir.path()).unwrap() {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(Credentials::load(dir.path(), "other").unwrap().is_none());
    }

    #[test]
    fn whatever_a_cut_off_run_leaves_counts_as_nothing() {
        for kind in ["json", "key.pem", "cert.pem", "ca.pem"] {
            let dir = tempfile::tempdir().unwrap();
            made("tcu").save(dir.path()).unwrap();
            fs::remove_file(file(dir.path(), "tcu", kind)).unwrap();
            assert!(
                Credentials::load(dir.path(), "tcu").unwrap().is_none(),
                "{kind}"
            );

            made("tcu").save(dir.path()).unwrap();
            let path = file(dir.path(), "tcu", kind);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, &text[..text.len() / 2]).unwrap();
            assert!(
                Credentials::load(dir.path(), "tcu").unwrap().is_none(),
                "{kind}"
            );
        }
        // A new key beside the old certificate.
        let dir = tempfile::tempdir().unwrap();
        made("tcu").save(dir.path()).unwrap();
        fs::write(file(dir.path(), "tcu", "key.pem"), made("tcu").key_pem).unwrap();
        assert!(Credentials::load(dir.path(), "tcu").unwrap().is_none());
    }

    #[test]
    fn ids_do_not_leave_the_directory_and_keys_do_not_reach_logs() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["", "../x", "a/b", "a b", &"x".repeat(129)] {
            assert!(matches!(
                Credentials::load(dir.path(), id),
                Err(CredentialsError::Id { .. })
            ));
        }
        assert!(!format!("{:?}", made("tcu")).contains("PRIVATE"));
    }
}
