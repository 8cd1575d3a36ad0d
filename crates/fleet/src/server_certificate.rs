//! The server's own certificate, from the fleet CA, for the names that devices and people use.
//!
//! Kept with its key in one file, `{data_dir}/tls/server.pem` (mode 0600): one rename replaces
//! both, so a crash never pairs a new key with an old certificate. At each start the stored one is
//! used again if it is for the same names, fits its key, comes from this CA and has more than a
//! third of its life left; otherwise a new one takes its place. A server that runs for months asks
//! again after [`ServerCertificate::renew_after_us`].

use std::{collections::BTreeSet, fmt, fs, net::IpAddr, path::Path, time::Duration};

use rcgen::{KeyPair, SanType};
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, pem::PemObject};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::{
    Actor, Authority, Fleet, FleetError, Kind,
    audit::{self, Act},
    durable_file::{self, PRIVATE},
    fleet::{now_us, unbroken},
};

/// A year and a month: the longest that TLS clients accept without complaint (398 days).
const LIFETIME: Duration = Duration::from_secs(397 * 86_400);
/// More names than this in one certificate is a mistake in the configuration.
const MAX_NAMES: usize = 100;

/// What a TLS listener needs. Shows no key in its debug output.
pub struct ServerCertificate {
    /// The certificate. The CA is not sent along: whoever trusts it has it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// When it ends, in microseconds since the Unix epoch.
    pub not_after_us: i64,
    /// When only a third of its life is left: from then on a new one is issued when asked.
    pub renew_after_us: i64,
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("not_after_us", &self.not_after_us)
            .field("renew_after_us", &self.renew_after_us)
            .finish_non_exhaustive()
    }
}

impl Fleet {
    /// The certificate of this server for exactly these names (DNS names, `*.example.com`, IP
    /// addresses): the stored one, or a new one (which is audited) as the module says.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for no, too many or bad names; file and CA errors.
    pub async fn issue_server_certificate(
        &self,
        names: &[String],
    ) -> Result<ServerCertificate, FleetError> {
        let names = ServerNames::parse(names)?;
        let fleet = self.clone();
        unbroken(async move {
            let directory = fleet.data_dir().join("tls");
            let file = directory.join("server.pem");
            let now = now_us();
            match stored(&file, fleet.ca(), &names, now) {
                Ok(certificate) => return Ok(certificate),
                Err(why) => {
                    tracing::info!(file = %file.display(), %why, "issuing a server certificate")
                }
            }
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(FleetError::certify("make the server's key"))?;
            let signed = fleet
                .ca()
                .sign_server(names.alternative_names()?, &key, LIFETIME, now)?;

            let mut turn = fleet.store().write().await?;
            let details = serde_json::json!({
                "names": names.0,
                "not_after_us": signed.not_after_us,
            });
            let act = Act::done(
                "server-certificate.issue",
                Kind::ServerCertificate,
                &signed.serial,
                details,
            );
            audit::record(turn.connection(), &Actor::system(), act).await?;
            turn.commit().await?;

            durable_file::private_directory(&directory)?;
            let content = format!("{}{}", key.serialize_pem(), signed.certificate.pem());
            durable_file::replace(&file, content.as_bytes(), PRIVATE)?;
            Ok(ServerCertificate {
                chain: vec![signed.certificate.der().clone()],
                key: key.into(),
                not_after_us: signed.not_after_us,
                renew_after_us: renew_after(signed.not_before_us, signed.not_after_us),
            })
        })
        .await
    }
}

/// The stored certificate, or why it will not do.
fn stored(
    file: &Path,
    authority: &Authority,
    names: &ServerNames,
    now_us: i64,
) -> Result<ServerCertificate, &'static str> {
    let text = fs::read(file).map_err(|_| "there is none yet")?;
    if durable_file::mode_of(file).map_or(true, durable_file::is_exposed) {
        return Err("others could read the stored key");
    }
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| "the stored key is damaged")?;
    let pair = KeyPair::try_from(&key).map_err(|_| "the stored key is damaged")?;
    let der =
        CertificateDer::from_pem_slice(&text).map_err(|_| "the stored certificate is damaged")?;
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|_| "the stored certificate is damaged")?;
    if *certificate.public_key().subject_public_key.data != *pair.public_key_raw() {
        return Err("the stored certificate does not belong to its key");
    }
    if !authority.has_signed(&certificate) {
        return Err("the stored certificate is of another CA");
    }
    if ServerNames::of(&certificate) != Some(names.0.clone()) {
        return Err("the names have changed");
    }
    let validity = certificate.validity();
    let [not_before_us, not_after_us] = [validity.not_before, validity.not_after]
        .map(|time| time.timestamp().saturating_mul(1_000_000));
    let renew_after_us = renew_after(not_before_us, not_after_us);
    if now_us >= renew_after_us {
        return Err("less than a third of the stored certificate's life is left");
    }
    Ok(ServerCertificate {
        chain: vec![der.clone()],
        key,
        not_after_us,
        renew_after_us,
    })
}

fn renew_after(not_before_us: i64, not_after_us: i64) -> i64 {
    not_after_us - (not_after_us - not_before_us) / 3
}

/// The names of a server, in one spelling and order.
struct ServerNames(BTreeSet<String>);

impl ServerNames {
    fn parse(names: &[String]) -> Result<Self, FleetError> {
        let invalid = |reason: String| FleetError::invalid("server names", reason);
        if names.is_empty() || names.len() > MAX_NAMES {
            return Err(invalid(format!(
                "are {}; allowed are 1 to {MAX_NAMES}",
                names.len()
            )));
        }
        let parsed = names.iter().map(|name| {
            if let Ok(ip) = name.parse::<IpAddr>() {
                return Ok(ip.to_string());
            }
            let lower = name.to_ascii_lowercase();
            match DnsName::try_from(lower.strip_prefix("*.").unwrap_or(&lower)) {
                Ok(_) => Ok(lower),
                Err(_) => Err(invalid(format!(
                    "{name:?} is neither a DNS name nor an IP address; give the names devices connect to, without scheme and port"
                ))),
            }
        });
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// The names in a certificate; `None` if it holds one of another kind.
    fn of(certificate: &X509Certificate<'_>) -> Option<BTreeSet<String>> {
        let names = certificate.subject_alternative_name().ok()??;
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(raw) => match raw.len() {
                4 => Some(IpAddr::from(<[u8; 4]>::try_from(*raw).ok()?).to_string()),
                16 => Some(IpAddr::from(<[u8; 16]>::try_from(*raw).ok()?).to_string()),
                _ => None,
            },
            _ => None,
        };
        names.value.general_names.iter().map(name).collect()
    }

    fn alternative_names(&self) -> Result<Vec<SanType>, FleetError> {
        self.0
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => name.as_str().try_into().map(SanType::DnsName),
            })
            .collect::<Result<_, _>>()
            .map_err(FleetError::certify("write the server's names"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> ServerNames {
        ServerNames::parse(
            &names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap()
    }

    #[test]
    fn names_are_checked_and_normalised() {
        assert_eq!(
            names(&["LocalHost", "::1", "0:0:0:0:0:0:0:1", "127.0.0.1"])
                .0
                .len(),
            3
        );
        assert!(names(&["*.Fleet.example"]).0.contains("*.fleet.example"));
        for bad in [
            "",
            "https://a",
            "a:8883",
            "a b",
            "*",
            "*.*.a",
            "-a-.",
            "ä.example",
        ] {
            assert!(ServerNames::parse(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(ServerNames::parse(&[]).is_err());
        assert!(ServerNames::parse(&vec!["a".to_owned(); MAX_NAMES + 1]).is_err());
    }

    /// What makes a stored certificate unfit, each with its reason.
    #[test]
    fn a_stored_certificate_is_used_only_while_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        let now = 1_800_000_000_000_000;
        let (authority, _) = Authority::open_or_make(dir.path(), now).unwrap();
        let other_dir = tempfile::tempdir().unwrap();
        let (other_authority, _) = Authority::open_or_make(other_dir.path(), now).unwrap();
        let file = dir.path().join("server.pem");
        let here = names(&["localhost", "127.0.0.1", "::1"]);

        let key = KeyPair::generate().unwrap();
        let signed = authority
            .sign_server(here.alternative_names().unwrap(), &key, LIFETIME, now)
            .unwrap();
        let content = format!("{}{}", key.serialize_pem(), signed.certificate.pem());
        let why_not = |authority: &Authority, names: &ServerNames, now| match stored(
            &file, authority, names, now,
        ) {
            Ok(certificate) => {
                assert_eq!(certificate.chain, [signed.certificate.der().clone()]);
                "fits"
            }
            Err(why) => why,
        };

        assert_eq!(why_not(&authority, &here, now), "there is none yet");
        durable_file::replace(&file, content.as_bytes(), PRIVATE).unwrap();
        assert_eq!(why_not(&authority, &here, now), "fits");
        let later = |days: i64| now + days * 86_400_000_000;
        assert_eq!(why_not(&authority, &here, later(264)), "fits");
        assert!(why_not(&authority, &here, later(265)).contains("less than a third"));
        assert!(why_not(&other_authority, &here, now).contains("another CA"));
        assert!(why_not(&authority, &names(&["localhost"]), now).contains("names have changed"));

        let stranger = KeyPair::generate().unwrap().serialize_pem();
        let mixed = format!("{stranger}{}", signed.certificate.pem());
        durable_file::replace(&file, mixed.as_bytes(), PRIVATE).unwrap();
        assert!(why_not(&authority, &here, now).contains("does not belong to its key"));
        durable_file::replace(&file, &content.as_bytes()[..100], PRIVATE).unwrap();
        assert!(why_not(&authority, &here, now).contains("damaged"));
        durable_file::replace(&file, content.as_bytes(), 0o640).unwrap();
        assert!(why_not(&authority, &here, now).contains("others could read"));
    }
}
