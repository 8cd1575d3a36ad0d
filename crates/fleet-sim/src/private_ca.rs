//! Private CA: certificates for a server that signs none itself, as other brokers are, so that both
//! are measured with the same keys. The folder it is kept in is laid out as [`Credentials::save`] does
//! it, with the server's own files beside:
//!
//! ```text
//! ca.pem  server.pem  server.key.pem  {device}.key.pem  {device}.cert.pem  …
//! ```
//! Keys are ECDSA P-256, as those of the fleet CA. The key of the CA itself is forgotten.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::credentials::{Credentials, CredentialsError};
use crate::provision::Order;

/// Name of the CA's certificate in its folder.
pub const CA_FILE: &str = "ca.pem";
/// Name of the server's certificate.
pub const SERVER_FILE: &str = "server.pem";
/// Name of the server's key.
pub const SERVER_KEY_FILE: &str = "server.key.pem";

/// A CA of its own, for as long as it is needed.
pub struct PrivateCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PrivateCaError {
    /// The cryptography said no.
    #[error("cannot make a key and certificate for {whom}")]
    Make {
        /// For whom.
        whom: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// A file could not be written.
    #[error("cannot write {file}")]
    Write {
        /// Which.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A device's files could not be written.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl PrivateCa {
    /// A new one.
    ///
    /// # Errors
    /// [`PrivateCaError::Make`].
    pub fn new() -> Result<Self, PrivateCaError> {
        let make = || {
            let mut ca = CertificateParams::new(Vec::new())?;
            ca.distinguished_name = rcgen::DistinguishedName::new();
            ca.distinguished_name
                .push(DnType::CommonName, "private CA of a bench");
            ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            CertifiedIssuer::self_signed(ca, KeyPair::generate()?)
        };
        Ok(Self {
            issuer: make().map_err(|source| failed("a CA", source))?,
        })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key, PEM, of a server with this host name.
    ///
    /// # Errors
    /// [`PrivateCaError::Make`], also for a name that is none.
    pub fn server(&self, name: &str) -> Result<(String, String), PrivateCaError> {
        self.leaf(
            name,
            vec![name.to_owned()],
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    /// What the telematics unit of this vehicle needs; it trusts the servers of the CA in `ca_pem`,
    /// which need not be this one.
    ///
    /// # Errors
    /// [`PrivateCaError::Make`].
    pub fn vehicle(&self, vehicle: &str, ca_pem: String) -> Result<Credentials, PrivateCaError> {
        let device_id = Order::vehicle(vehicle).device;
        let (chain_pem, key_pem) =
            self.leaf(&device_id, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(Credentials {
            vehicle_id: vehicle.to_owned(),
            device_id,
            chain_pem,
            key_pem,
            ca_pem,
            not_after_us: i64::MAX,
        })
    }

    /// Writes its certificate, and those of a server `localhost` and of these vehicles, below `folder`.
    ///
    /// # Errors
    /// [`PrivateCaError`].
    pub fn keep(
        &self,
        folder: &Path,
        vehicles: impl IntoIterator<Item = String>,
    ) -> Result<(), PrivateCaError> {
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            fs::write(&file, text).map_err(|source| PrivateCaError::Write {
                file: file.display().to_string(),
                source,
            })
        };
        for vehicle in vehicles {
            self.vehicle(&vehicle, self.pem())?.save(folder)?;
        }
        let (certificate, key) = self.server("localhost")?;
        write(SERVER_FILE, &certificate)?;
        write(SERVER_KEY_FILE, &key)?;
        write(CA_FILE, &self.pem())
    }

    fn leaf(
        &self,
        common_name: &str,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String), PrivateCaError> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(DnType::CommonName, common_name);
            params.extended_key_usages = vec![usage];
            Ok((
                params.signed_by(&key, &self.issuer)?.pem(),
                key.serialize_pem(),
            ))
        };
        make().map_err(|source| failed(common_name, source))
    }
}

/// The credentials of these vehicles that were kept in `folder`, by [`PrivateCa::keep`] or a factory.
///
/// # Errors
/// [`CredentialsError`]; [`CredentialsError::Missing`] if a vehicle has none.
pub fn kept_vehicles(
    folder: &Path,
    vehicles: impl IntoIterator<Item = String>,
) -> Result<Vec<Credentials>, CredentialsError> {
    let load = |vehicle: String| {
        let device = Order::vehicle(&vehicle).device;
        let found = Credentials::load(folder, &device)?;
        found.ok_or_else(|| CredentialsError::Missing {
            device,
            dir: folder.to_owned(),
        })
    };
    vehicles.into_iter().map(load).collect()
}

/// The certificate of the CA that was kept in `folder`, PEM.
///
/// # Errors
/// [`CredentialsError::Io`].
pub fn kept_pem(folder: &Path) -> Result<String, CredentialsError> {
    let path = folder.join(CA_FILE);
    fs::read_to_string(&path).map_err(|source| CredentialsError::Io {
        action: "read",
        path,
        source,
    })
}

impl std::fmt::Debug for PrivateCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivateCa").finish_non_exhaustive() // the key stays out of logs
    }
}

fn failed(whom: &str, source: rcgen::Error) -> PrivateCaError {
    PrivateCaError::Make {
        whom: whom.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConnection, RootCertStore, ServerConfig, ServerConnection};

    use super::*;

    /// What server and client think of each other, with what was kept.
    fn handshake(folder: &Path, client: &Credentials) -> Result<(), rustls::Error> {
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&read(CA_FILE)).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(&read(SERVER_FILE)).unwrap()],
                PrivateKeyDer::from_pem_slice(&read(SERVER_KEY_FILE)).unwrap(),
            )
            .unwrap();
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(client.client_config().unwrap(), name).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_client_that_was_kept_and_the_server_trust_each_other_and_a_stranger_is_not_let_in() {
        let folder = tempfile::tempdir().unwrap();
        let ca = PrivateCa::new().unwrap();
        ca.keep(folder.path(), ["car-1".to_owned()]).unwrap();
        let known = kept_vehicles(folder.path(), ["car-1".to_owned()]).unwrap();
        assert_eq!(kept_pem(folder.path()).unwrap(), known[0].ca_pem);
        handshake(folder.path(), &known[0]).unwrap();
        let unknown = kept_vehicles(folder.path(), ["car-2".to_owned()]).unwrap_err();
        assert!(unknown.to_string().contains("car-2-tcu"), "{unknown}");
        let others = PrivateCa::new().unwrap();
        let stranger = others.vehicle("car-1", ca.pem()).unwrap();
        assert!(handshake(folder.path(), &stranger).is_err());
    }
}
