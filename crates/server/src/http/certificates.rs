//! `/devices/{device}/certificates`, `/certificates/{serial}/revoke` and `/ca`: by what devices and
//! server know each other.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use fleet::Certificate;
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    PageBody, PageQuery, actor,
    body::{Body, Query},
    problem::{Problem, ProblemBody, ProblemType},
    timestamp,
};
use crate::state::AppState;

pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(list_certificates, issue_certificate))
        .routes(routes!(revoke_certificate))
        .routes(routes!(get_ca))
}

/// A certificate of a device.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct CertificateBody {
    /// The device it names.
    device_id: String,
    /// Its serial number, hexadecimal.
    serial: String,
    /// SHA-256 of its DER form, hexadecimal.
    fingerprint: String,
    /// Valid from.
    not_before: String,
    /// Valid until.
    not_after: String,
    /// When it was revoked, if it was.
    revoked_at: Option<String>,
    /// The certificate, PEM.
    certificate: String,
    /// What the device presents behind its certificate, PEM: the issuing CA.
    chain: String,
}

impl From<Certificate> for CertificateBody {
    fn from(certificate: Certificate) -> Self {
        Self {
            device_id: certificate.device_id.to_string(),
            serial: certificate.serial,
            fingerprint: certificate.fingerprint_sha256.to_string(),
            not_before: timestamp(certificate.not_before_us),
            not_after: timestamp(certificate.not_after_us),
            revoked_at: certificate.revoked_us.map(timestamp),
            certificate: certificate.pem,
            chain: certificate.chain_pem,
        }
    }
}

/// A certificate request to sign, or a certificate to register: one of the two.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct RequestBody {
    /// PKCS#10, PEM, signed with the device's own key. Subject and extensions in it are not taken
    /// over.
    #[schema(example = "-----BEGIN CERTIFICATE REQUEST-----…")]
    csr: Option<String>,
    /// A certificate that the device has already, of a CA that a listener trusts for clients
    /// (`listener.client_ca`), PEM; behind it those between it and that CA.
    #[schema(example = "-----BEGIN CERTIFICATE-----…")]
    pem: Option<String>,
}

/// Lists a device's certificates
#[utoipa::path(get, path = "/devices/{device}/certificates", tag = "fleet",
    params(("device" = String, Path, description = "The device's id"), PageQuery),
    responses((status = 200, body = PageBody<CertificateBody>), (status = 404, body = ProblemBody)))]
async fn list_certificates(
    State(app): State<Arc<AppState>>,
    Path(device): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<PageBody<CertificateBody>>, Problem> {
    let page = app
        .fleet
        .list_certificates(&device, &page.request()?)
        .await?;
    Ok(Json(PageBody::new(page, CertificateBody::from)))
}

/// Signs a device's certificate request, or registers a certificate of another CA
#[utoipa::path(post, path = "/devices/{device}/certificates", tag = "fleet", request_body = RequestBody,
    params(("device" = String, Path, description = "The device's id")),
    responses((status = 201, body = CertificateBody), (status = 400, body = ProblemBody),
              (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
async fn issue_certificate(
    State(app): State<Arc<AppState>>,
    Path(device): Path<String>,
    Body(body): Body<RequestBody>,
) -> Result<impl IntoResponse, Problem> {
    let certificate = match (body.csr, body.pem) {
        (Some(csr), None) => app.fleet.issue_certificate(&actor(), &device, &csr).await?,
        (None, Some(pem)) => {
            let trusted = app.tls.authorities();
            app.fleet
                .register_certificate(&actor(), &device, &pem, &trusted)
                .await?
        }
        _ => {
            return Err(Problem::new(
                ProblemType::Invalid,
                "send either `csr`, a request to sign, or `pem`, a certificate to register",
            ));
        }
    };
    Ok((
        StatusCode::CREATED,
        Json(CertificateBody::from(certificate)),
    ))
}

/// Revokes a certificate; its connections end at once
#[utoipa::path(post, path = "/certificates/{serial}/revoke", tag = "fleet",
    params(("serial" = String, Path, description = "Its serial number or its fingerprint, hexadecimal")),
    responses((status = 200, body = CertificateBody), (status = 404, body = ProblemBody)))]
async fn revoke_certificate(
    State(app): State<Arc<AppState>>,
    Path(serial): Path<String>,
) -> Result<Json<CertificateBody>, Problem> {
    let certificate = app.fleet.revoke_certificate(&actor(), &serial).await?;
    Ok(Json(certificate.into()))
}

/// The fleet CA's certificate, by which clients know the server
#[utoipa::path(get, path = "/ca", tag = "fleet",
    responses((status = 200, body = String, content_type = "application/x-pem-file")))]
async fn get_ca(State(app): State<Arc<AppState>>) -> impl IntoResponse {
    let pem = app.fleet.ca().cert_pem().to_owned();
    ([(header::CONTENT_TYPE, "application/x-pem-file")], pem)
}
