//! Certificates of devices: issued for a request (or registered, `foreign_certificate`), kept as a row
//! each, revoked for good.
//!
//! A device may have several at once, so that it can change over without a gap. Rows stay after
//! revocation and after the end of the device: "revoked" must remain tellable from "never seen".

use serde_json::json;
use sqlx::{AnyConnection, Row, any::AnyRow};
use uuid::Uuid;

use crate::{
    Actor, Change, DeviceId, Fingerprint, Fleet, FleetError, Kind, Page, PageRequest,
    audit::{self, Act, Outcome},
    authority::Signed,
    device,
    directory::Credentials,
    fleet::{now_us, unbroken},
    request::CertificateRequest,
    store::WriteTurn,
    vehicle,
};

/// A certificate of a device. Holds nothing secret: the private key never was here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The device it was issued for, which is its subject's common name.
    pub device_id: DeviceId,
    /// Its serial number, lower-case hexadecimal: 32 digits for those of the fleet CA. Unique per issuer.
    pub serial: String,
    /// SHA-256 over its DER.
    pub fingerprint_sha256: Fingerprint,
    /// Valid from, in microseconds since the Unix epoch.
    pub not_before_us: i64,
    /// Valid to, in microseconds since the Unix epoch, inclusive.
    pub not_after_us: i64,
    /// When it was revoked, in microseconds since the Unix epoch.
    pub revoked_us: Option<i64>,
    /// The certificate itself, PEM.
    pub pem: String,
    /// The certificates above it, PEM: the fleet CA, by which the device also knows the server; for one
    /// that another CA issued, what was registered with it.
    pub chain_pem: String,
}

const LIST: &str = "certificates";

impl Fleet {
    /// Signs a device's certificate request (PEM, PKCS #10). From the request comes the public key
    /// only; the certificate names the device, authenticates clients and does nothing else.
    /// Refusals are audited like issues.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for a bad request (unreadable, signature that does not fit, weak or
    /// unsupported key), [`FleetError::NotFound`], [`FleetError::Disabled`] for a disabled device
    /// or vehicle, [`FleetError::AuthorityExpired`], [`FleetError::Storage`].
    pub async fn issue_certificate(
        &self,
        actor: &Actor,
        device_id: &str,
        csr_pem: &str,
    ) -> Result<Certificate, FleetError> {
        let id = DeviceId::parse(device_id)?;
        let request = CertificateRequest::parse(csr_pem);
        let (fleet, actor) = (self.clone(), actor.clone());
        unbroken(async move {
            let issued = match request {
                Ok(request) => fleet.sign_and_keep(&actor, &id, &request).await,
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = &issued {
                let action = "certificate.issue";
                fleet.record_refusal(&actor, action, &id, refusal).await?;
            }
            issued
        })
        .await
    }

    async fn sign_and_keep(
        &self,
        actor: &Actor,
        id: &DeviceId,
        request: &CertificateRequest,
    ) -> Result<Certificate, FleetError> {
        let mut turn = self.store().write().await?;
        must_be_enabled(turn.connection(), id).await?;
        let lifetime = self.options().device_certificate_lifetime;
        let signed = self.ca().sign_device(id, request, lifetime, now_us())?;
        let certificate = certificate_of(id, &signed, self.ca().cert_pem());
        self.keep(turn, actor, "certificate.issue", certificate, None)
            .await
    }

    /// Writes the row and its audit entry, and lets the certificate in. `chain` is `None` for the fleet CA.
    pub(crate) async fn keep(
        &self,
        mut turn: WriteTurn<'_>,
        actor: &Actor,
        action: &'static str,
        certificate: Certificate,
        chain: Option<&str>,
    ) -> Result<Certificate, FleetError> {
        let id = certificate.device_id.clone();
        insert(turn.connection(), &certificate, chain).await?;
        let details = json!({
            "serial": certificate.serial,
            "fingerprint": certificate.fingerprint_sha256.to_string(),
            "not_after_us": certificate.not_after_us,
        });
        let act = Act::done(action, Kind::Device, id.as_str(), details);
        audit::record(turn.connection(), actor, act).await?;
        self.conclude(
            turn,
            |directory| {
                directory.put_certificate(Credentials {
                    fingerprint: certificate.fingerprint_sha256,
                    serial: &certificate.serial,
                    device_id: &id,
                    not_before_us: certificate.not_before_us,
                    not_after_us: certificate.not_after_us,
                    revoked_us: None,
                });
            },
            [Change::DeviceChanged { id: id.clone() }],
        )
        .await?;
        Ok(certificate)
    }

    pub(crate) async fn record_refusal(
        &self,
        actor: &Actor,
        action: &'static str,
        id: &DeviceId,
        refusal: &FleetError,
    ) -> Result<(), FleetError> {
        // A store that fails cannot keep a row about it either.
        if matches!(
            refusal,
            FleetError::Storage { .. } | FleetError::Damaged { .. }
        ) {
            return Ok(());
        }
        let mut turn = self.store().write().await?;
        let act = Act {
            action,
            kind: Kind::Device,
            id: id.as_str(),
            outcome: Outcome::Refused,
            details: json!({ "reason": refusal.to_string() }),
        };
        audit::record(turn.connection(), actor, act).await?;
        turn.commit().await?;
        Ok(())
    }

    /// Revokes a certificate for good: it is refused from its next message on, and
    /// [`Change::AccessLost`] is sent. A revoked one stays as it is. `name` is its serial, or its
    /// fingerprint, which is needed where certificates of two CAs have the same serial.
    ///
    /// # Errors
    /// [`FleetError::NotFound`], [`FleetError::Invalid`] for a serial that several certificates have,
    /// [`FleetError::Storage`].
    pub async fn revoke_certificate(
        &self,
        actor: &Actor,
        name: &str,
    ) -> Result<Certificate, FleetError> {
        let (fleet, actor, name) = (self.clone(), actor.clone(), name.to_ascii_lowercase());
        unbroken(async move {
            let now = now_us();
            let mut turn = fleet.store().write().await?;
            let rows = sqlx::query(
                "SELECT * FROM certificates WHERE serial = $1 OR fingerprint = $1 LIMIT 2",
            )
            .bind(name.as_str())
            .fetch_all(turn.connection())
            .await
            .map_err(FleetError::storage("read a certificate"))?;
            let row = match &rows[..] {
                [] => return Err(FleetError::not_found(Kind::Certificate, &name)),
                [row] => row,
                _ => {
                    return Err(FleetError::invalid(
                        "certificate serial",
                        format!("`{name}` is the serial of several certificates; name one by its fingerprint"),
                    ));
                }
            };
            let mut certificate = read(row, fleet.ca().cert_pem())?;
            if certificate.revoked_us.is_some() {
                return Ok(certificate);
            }
            certificate.revoked_us = Some(now);
            sqlx::query("UPDATE certificates SET revoked_us = $2 WHERE fingerprint = $1")
                .bind(certificate.fingerprint_sha256.to_string())
                .bind(now)
                .execute(turn.connection())
                .await
                .map_err(FleetError::storage("revoke a certificate"))?;
            let id = certificate.device_id.clone();
            let details = json!({ "device": id.as_str() });
            let serial = &certificate.serial;
            let act = Act::done("certificate.revoke", Kind::Certificate, serial, details);
            audit::record(turn.connection(), &actor, act).await?;
            let fingerprint = certificate.fingerprint_sha256;
            fleet
                .conclude(
                    turn,
                    |directory| directory.revoke_certificate(&fingerprint, now),
                    [
                        Change::AccessLost {
                            device_id: id.clone(),
                        },
                        Change::DeviceChanged { id },
                    ],
                )
                .await?;
            Ok(certificate)
        })
        .await
    }

    /// The certificates of a device, oldest first, revoked and expired ones too; also those of a
    /// device that was deleted.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] for a foreign cursor or an impossible id, [`FleetError::Storage`].
    pub async fn list_certificates(
        &self,
        device_id: &str,
        request: &PageRequest,
    ) -> Result<Page<Certificate>, FleetError> {
        let rows = sqlx::query(
            "SELECT * FROM certificates WHERE device_id = $3 AND id > $1 ORDER BY id LIMIT $2",
        )
        .bind(request.after(LIST)?.unwrap_or_default())
        .bind(request.fetch_limit())
        .bind(DeviceId::parse(device_id)?.as_str())
        .fetch_all(self.store().pool())
        .await
        .map_err(FleetError::storage("list certificates"))?;
        let keyed = rows
            .iter()
            .map(|row| {
                let key: String = row
                    .try_get("id")
                    .map_err(FleetError::storage("list certificates"))?;
                Ok((key, read(row, self.ca().cert_pem())?))
            })
            .collect::<Result<Vec<_>, FleetError>>()?;
        let page = request.page(LIST, keyed, |(key, _)| key);
        let items = page
            .items
            .into_iter()
            .map(|(_, certificate)| certificate)
            .collect();
        Ok(Page {
            items,
            next: page.next,
        })
    }
}

/// A device that may get a certificate: it and its vehicle are enabled.
pub(crate) async fn must_be_enabled(
    connection: &mut AnyConnection,
    id: &DeviceId,
) -> Result<(), FleetError> {
    let device = device::must_find(&mut *connection, id).await?;
    if !device.enabled {
        return Err(FleetError::disabled(Kind::Device, id));
    }
    let vehicle = vehicle::must_find(connection, &device.vehicle_id).await?;
    match vehicle.enabled {
        true => Ok(()),
        false => Err(FleetError::disabled(Kind::Vehicle, &device.vehicle_id)),
    }
}

fn certificate_of(device_id: &DeviceId, signed: &Signed, ca_pem: &str) -> Certificate {
    Certificate {
        device_id: device_id.clone(),
        serial: signed.serial.clone(),
        fingerprint_sha256: Fingerprint::of(signed.certificate.der()),
        not_before_us: signed.not_before_us,
        not_after_us: signed.not_after_us,
        revoked_us: None,
        pem: signed.certificate.pem(),
        chain_pem: ca_pem.to_owned(),
    }
}

async fn insert(
    connection: &mut AnyConnection,
    certificate: &Certificate,
    chain: Option<&str>,
) -> Result<(), FleetError> {
    // No conflict clause: ours is new, and of a foreign one it was asked whether it is there already.
    sqlx::query(
        "INSERT INTO certificates \
         (id, serial, device_id, fingerprint, not_before_us, not_after_us, revoked_us, pem, chain) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(certificate.serial.as_str())
    .bind(certificate.device_id.as_str())
    .bind(certificate.fingerprint_sha256.to_string())
    .bind(certificate.not_before_us)
    .bind(certificate.not_after_us)
    .bind(certificate.revoked_us)
    .bind(certificate.pem.as_str())
    .bind(chain)
    .execute(connection)
    .await
    .map_err(FleetError::storage("keep a certificate"))?;
    Ok(())
}

/// Revokes what is not revoked yet; returns serial and fingerprint of each.
pub(crate) async fn revoke_all_of(
    connection: &mut AnyConnection,
    device_id: &DeviceId,
    now_us: i64,
) -> Result<Vec<(String, Fingerprint)>, FleetError> {
    let rows = sqlx::query(
        "UPDATE certificates SET revoked_us = $2 WHERE device_id = $1 AND revoked_us IS NULL \
         RETURNING serial, fingerprint",
    )
    .bind(device_id.as_str())
    .bind(now_us)
    .fetch_all(connection)
    .await
    .map_err(FleetError::storage("revoke a device's certificates"))?;
    rows.iter()
        .map(|row| {
            let serial: String = row
                .try_get("serial")
                .map_err(FleetError::storage("read a certificate"))?;
            let fingerprint = read_fingerprint(row, &serial)?;
            Ok((serial, fingerprint))
        })
        .collect()
}

fn read(row: &AnyRow, ca_pem: &str) -> Result<Certificate, FleetError> {
    let failed = FleetError::storage;
    let serial: String = row
        .try_get("serial")
        .map_err(failed("read a certificate"))?;
    let fingerprint_sha256 = read_fingerprint(row, &serial)?;
    let fields = || {
        Ok(Certificate {
            device_id: DeviceId::stored(row.try_get("device_id")?),
            serial,
            fingerprint_sha256,
            not_before_us: row.try_get("not_before_us")?,
            not_after_us: row.try_get("not_after_us")?,
            revoked_us: row.try_get("revoked_us")?,
            pem: row.try_get("pem")?,
            chain_pem: row
                .try_get::<Option<String>, _>("chain")?
                .unwrap_or_else(|| ca_pem.to_owned()),
        })
    };
    fields().map_err(failed("read a certificate"))
}

fn read_fingerprint(row: &AnyRow, serial: &str) -> Result<Fingerprint, FleetError> {
    let text: String = row
        .try_get("fingerprint")
        .map_err(FleetError::storage("read a certificate"))?;
    Fingerprint::parse(&text).ok_or_else(|| FleetError::Damaged {
        table: "certificates",
        id: serial.to_owned(),
        reason: "its fingerprint is not 64 hexadecimal digits".to_owned(),
    })
}
