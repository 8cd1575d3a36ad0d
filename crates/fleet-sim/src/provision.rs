//! Provisioning, as a factory does it: through the public HTTP API and nothing else.
//!
//! For every vehicle on the list: register it, register its device, let the device make a key and
//! a certificate request, have that signed. What exists already is used again, so a factory that
//! was interrupted simply starts over. The key never crosses the wire.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, DnType, KeyPair};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::credentials::{Credentials, CredentialsError};

/// Vehicles provisioned at once. Signing is the server's work and takes a core; more at once only
/// queue there.
const AT_ONCE: usize = 8;
/// Tries for a request that the server was too busy for or that did not reach it.
const TRIES: u32 = 4;
/// A certificate with less left is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(24 * 3600);

/// Why a vehicle could not be provisioned.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// No answer.
    #[error("no answer from {url}; is the server running, and is this its HTTP API?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The server said no.
    #[error("the server refused to {task} ({status}): {detail}")]
    Refused {
        /// What was to be done.
        task: String,
        /// HTTP status.
        status: u16,
        /// What the server said.
        detail: String,
    },
    /// An answer that is none of this API.
    #[error("the answer to `{task}` is not what this API answers; does {url} belong to Milepost?")]
    Answer {
        /// What was to be done.
        task: String,
        /// Whom we asked.
        url: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A vehicle exists, but is of another model than the recording.
    #[error(
        "vehicle `{vehicle}` is registered as model `{is}`, not `{wanted}`; name another vehicle or change its model"
    )]
    Model {
        /// The vehicle.
        vehicle: String,
        /// Its model.
        is: String,
        /// The model asked for.
        wanted: String,
    },
    /// A device exists, but in another vehicle.
    #[error("device `{device}` belongs to vehicle `{is}`, not `{wanted}`; name another vehicle")]
    Elsewhere {
        /// The device.
        device: String,
        /// Its vehicle.
        is: String,
        /// The vehicle asked for.
        wanted: String,
    },
    /// No key or request could be made.
    #[error("cannot make a key and certificate request for device `{device}`")]
    Key {
        /// The device.
        device: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// Credentials could not be kept or read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// A fresh key and the request to certify it.
pub struct KeyRequest {
    /// Private key, PKCS#8 PEM. Stays with the device.
    pub key_pem: String,
    /// Certificate request, PEM. Goes to the server.
    pub csr_pem: String,
}

impl KeyRequest {
    /// A new ECDSA P-256 key for a device, and a request with its id as common name.
    ///
    /// # Errors
    /// [`ProvisionError::Key`].
    pub fn new(device: &str) -> Result<Self, ProvisionError> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(Vec::<String>::new())?;
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, device);
            Ok(Self {
                csr_pem: params.serialize_request(&key)?.pem()?,
                key_pem: key.serialize_pem(),
            })
        };
        make().map_err(|source| ProvisionError::Key {
            device: device.to_owned(),
            source,
        })
    }
}

/// A vehicle to be provisioned with one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Vehicle id.
    pub vehicle: String,
    /// Its VIN.
    pub vin: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// What else is known of it.
    pub attributes: BTreeMap<String, String>,
    /// Device id.
    pub device: String,
}

impl Order {
    /// A vehicle with a telematics unit named after it.
    pub fn vehicle(id: &str) -> Self {
        Self {
            vehicle: id.to_owned(),
            vin: None,
            model: None,
            attributes: BTreeMap::new(),
            device: format!("{id}-tcu"),
        }
    }
}

#[derive(Deserialize)]
struct VehicleAnswer {
    id: String,
    model: Option<String>,
}

#[derive(Deserialize)]
struct DeviceAnswer {
    id: String,
    vehicle_id: String,
}

#[derive(Deserialize)]
struct CertificateAnswer {
    certificate: String,
    chain: String,
    /// RFC 3339.
    not_after: String,
}

/// A factory: a client of one server's API.
#[derive(Debug, Clone)]
pub struct Factory {
    http: reqwest::Client,
    base: Arc<str>,
}

impl Factory {
    /// A factory at the API of `base`, such as `http://127.0.0.1:8080`. The process must have
    /// installed a rustls provider.
    ///
    /// # Errors
    /// [`ProvisionError::Unreachable`] if no HTTP client can be set up.
    pub fn new(base: &str) -> Result<Self, ProvisionError> {
        let base = base.trim_end_matches('/');
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|source| unreachable(base, source))?;
        Ok(Self {
            http,
            base: base.into(),
        })
    }

    /// The fleet CA's certificate, PEM.
    ///
    /// # Errors
    /// [`ProvisionError::Unreachable`], [`ProvisionError::Refused`].
    pub async fn ca(&self) -> Result<String, ProvisionError> {
        let answer = self
            .send(Method::GET, "/ca", None, "hand out its CA certificate")
            .await?;
        answer.into_success("hand out its CA certificate")
    }

    /// Stores a vehicle model: the DBC of its CAN frames, if it sends any, and perhaps a mapping of
    /// their signals to VSS.
    ///
    /// # Errors
    /// As [`Self::ca`].
    pub async fn put_model(
        &self,
        model: &str,
        dbc: Option<&str>,
        mapping: Option<&str>,
    ) -> Result<(), ProvisionError> {
        let task = format!("store model `{model}`");
        let body = json!({ "dbc": dbc, "mapping": mapping });
        let answer = self
            .send(Method::PUT, &format!("/models/{model}"), Some(&body), &task)
            .await?;
        answer.into_success(&task).map(drop)
    }

    /// Provisions every order; the result has their order. Credentials kept in `keep` are used
    /// again while they are valid for this server; new ones are kept there. `progress` hears how
    /// many of how many are done, first of all (0, all).
    ///
    /// # Errors
    /// The first [`ProvisionError`]; the rest is then abandoned, and a next call goes on.
    pub async fn provision(
        &self,
        orders: &[Order],
        keep: Option<&Path>,
        progress: impl Fn(usize, usize) + Send + Sync + 'static,
    ) -> Result<Vec<Credentials>, ProvisionError> {
        let total = orders.len();
        progress(0, total);
        let ca: Arc<str> = self.ca().await?.into();
        let keep: Option<Arc<Path>> = keep.map(Arc::from);
        let (done, progress) = (Arc::new(AtomicUsize::new(0)), Arc::new(progress));
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for (index, order) in orders.iter().cloned().enumerate() {
            let (factory, ca, keep) = (self.clone(), Arc::clone(&ca), keep.clone());
            let (done, progress) = (Arc::clone(&done), Arc::clone(&progress));
            let slots = Arc::clone(&slots);
            tasks.spawn(async move {
                // Never closed, so a permit always comes; without one the work is merely unbounded.
                let _slot = slots.acquire().await.ok();
                let credentials = factory.provision_one(&order, &ca, keep.as_deref()).await?;
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                Ok::<_, ProvisionError>((index, credentials))
            });
        }
        let mut made: Vec<Option<Credentials>> = vec![None; total];
        while let Some(joined) = tasks.join_next().await {
            let (index, credentials) = match joined {
                Ok(result) => result?, // dropping the set abandons the others
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            made[index] = Some(credentials);
        }
        Ok(made.into_iter().flatten().collect())
    }

    async fn provision_one(
        &self,
        order: &Order,
        ca: &str,
        keep: Option<&Path>,
    ) -> Result<Credentials, ProvisionError> {
        self.ensure_vehicle(order).await?;
        self.ensure_device(order).await?;
        if let Some(dir) = keep
            && let Some(kept) = load(dir.to_owned(), order.device.clone()).await?
            && kept.ca_pem == ca
            && kept.vehicle_id == order.vehicle
            && is_fresh(&kept)
        {
            return Ok(kept);
        }
        let request = KeyRequest::new(&order.device)?;
        let task = format!("certify device `{}`", order.device);
        let answer = self
            .send(
                Method::POST,
                &format!("/devices/{}/certificates", order.device),
                Some(&json!({ "csr": request.csr_pem })),
                &task,
            )
            .await?;
        let answer: CertificateAnswer = answer.into_json(&task, &self.base)?;
        let not_after: jiff::Timestamp =
            answer
                .not_after
                .parse()
                .map_err(|source: jiff::Error| ProvisionError::Answer {
                    task: task.clone(),
                    url: self.base.to_string(),
                    source: source.into(),
                })?;
        let credentials = Credentials {
            vehicle_id: order.vehicle.clone(),
            device_id: order.device.clone(),
            chain_pem: leaf_first(&answer.certificate, &answer.chain),
            key_pem: request.key_pem,
            ca_pem: ca.to_owned(),
            not_after_us: not_after.as_microsecond(),
        };
        credentials.client_config()?; // a broken answer shows here, not in every connection
        if let Some(dir) = keep {
            save(dir.to_owned(), credentials.clone()).await?;
        }
        Ok(credentials)
    }

    async fn ensure_vehicle(&self, order: &Order) -> Result<(), ProvisionError> {
        let task = format!("register vehicle `{}`", order.vehicle);
        let body = json!({
            "id": order.vehicle,
            "vin": order.vin,
            "model": order.model,
            "attributes": order.attributes,
        });
        let made = self
            .send(Method::POST, "/vehicles", Some(&body), &task)
            .await?;
        let answer: VehicleAnswer = if made.status == StatusCode::CONFLICT {
            let path = format!("/vehicles/{}", order.vehicle);
            let found = self.send(Method::GET, &path, None, &task).await?;
            match found.status {
                // The conflict was about something else, such as the VIN: the first answer says it.
                StatusCode::NOT_FOUND => made.into_json(&task, &self.base)?,
                _ => found.into_json(&task, &self.base)?,
            }
        } else {
            made.into_json(&task, &self.base)?
        };
        match (&order.model, answer.model) {
            (Some(wanted), is) if is.as_ref() != Some(wanted) => Err(ProvisionError::Model {
                vehicle: answer.id,
                is: is.unwrap_or_default(),
                wanted: wanted.clone(),
            }),
            _ => Ok(()),
        }
    }

    async fn ensure_device(&self, order: &Order) -> Result<(), ProvisionError> {
        let task = format!("register device `{}`", order.device);
        let path = format!("/vehicles/{}/devices", order.vehicle);
        let body = json!({ "id": order.device, "kind": "tcu" });
        let made = self.send(Method::POST, &path, Some(&body), &task).await?;
        if made.status != StatusCode::CONFLICT {
            return made.into_json::<DeviceAnswer>(&task, &self.base).map(drop);
        }
        let path = format!("/devices/{}", order.device);
        let found = self.send(Method::GET, &path, None, &task).await?;
        let device: DeviceAnswer = found.into_json(&task, &self.base)?;
        if device.vehicle_id == order.vehicle {
            Ok(())
        } else {
            Err(ProvisionError::Elsewhere {
                device: device.id,
                is: device.vehicle_id,
                wanted: order.vehicle.clone(),
            })
        }
    }

    /// One request, repeated while the server is too busy or its connection breaks. Repeating a
    /// registration is safe: it then exists. Repeating a certification makes a second certificate
    /// that nobody holds the answer to; it expires unused.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        task: &str,
    ) -> Result<Answer, ProvisionError> {
        let url = format!("{}/api/v1{path}", self.base);
        let mut tried = 0;
        loop {
            tried += 1;
            let mut request = self.http.request(method.clone(), &url);
            if let Some(body) = body {
                request = request.json(body);
            }
            let outcome = async {
                let response = request.send().await?;
                let status = response.status();
                Ok::<_, reqwest::Error>(Answer {
                    status,
                    text: response.text().await?,
                })
            };
            let again = match outcome.await {
                Ok(answer) if !is_busy(answer.status) => return Ok(answer),
                Ok(answer) => Ok(answer),
                Err(source) => Err(unreachable(&url, source)),
            };
            if tried == TRIES {
                return again;
            }
            tracing::debug!(task, tried, "trying again");
            tokio::time::sleep(Duration::from_millis(100) * 3_u32.pow(tried - 1)).await;
        }
    }
}

/// An HTTP answer.
struct Answer {
    status: StatusCode,
    text: String,
}

impl Answer {
    fn into_success(self, task: &str) -> Result<String, ProvisionError> {
        if self.status.is_success() {
            return Ok(self.text);
        }
        // A problem document (RFC 9457) says it best; anything else is quoted in part.
        let problem = serde_json::from_str::<Value>(&self.text).unwrap_or_default();
        let detail = match problem["detail"].as_str().or(problem["title"].as_str()) {
            Some(detail) => detail.to_owned(),
            None => self.text.chars().take(200).collect(),
        };
        Err(ProvisionError::Refused {
            task: task.to_owned(),
            status: self.status.as_u16(),
            detail,
        })
    }

    fn into_json<T: serde::de::DeserializeOwned>(
        self,
        task: &str,
        url: &str,
    ) -> Result<T, ProvisionError> {
        let text = self.into_success(task)?;
        serde_json::from_str(&text).map_err(|source| ProvisionError::Answer {
            task: task.to_owned(),
            url: url.to_owned(),
            source: source.into(),
        })
    }
}

fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE
    )
}

fn unreachable(url: &str, source: reqwest::Error) -> ProvisionError {
    ProvisionError::Unreachable {
        url: url.to_owned(),
        source,
    }
}

fn is_fresh(kept: &Credentials) -> bool {
    let now = jiff::Timestamp::now().as_microsecond();
    kept.not_after_us - now > RENEW_BEFORE.as_micros() as i64
}

/// The certificate and its issuers, whether or not the server's chain begins with the certificate.
fn leaf_first(certificate: &str, chain: &str) -> String {
    let (certificate, chain) = (certificate.trim(), chain.trim());
    if chain.is_empty() || chain.starts_with(certificate) {
        format!("{}\n", if chain.is_empty() { certificate } else { chain })
    } else {
        format!("{certificate}\n{chain}\n")
    }
}

async fn load(dir: PathBuf, device: String) -> Result<Option<Credentials>, CredentialsError> {
    blocking(move || Credentials::load(&dir, &device)).await
}

async fn save(dir: PathBuf, credentials: Credentials) -> Result<(), CredentialsError> {
    blocking(move || credentials.save(&dir)).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_the_device_and_not_the_key() {
        let request = KeyRequest::new("car-1-tcu").unwrap();
        assert!(
            request
                .csr_pem
                .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
        );
        assert!(request.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"));
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
        let name = &parsed.params.distinguished_name;
        assert!(format!("{:?}", name.get(&DnType::CommonName)).contains("car-1-tcu"));
        let other = KeyRequest::new("car-1-tcu").unwrap();
        assert_ne!(request.key_pem, other.key_pem);
    }

    #[test]
    fn the_leaf_comes_first_and_once() {
        for (certificate, chain, expected) in [
            ("leaf\n", "", "leaf\n"),
            ("leaf\n", "ca\n", "leaf\nca\n"),
            ("leaf\n", "leaf\nca\n", "leaf\nca\n"),
        ] {
            assert_eq!(leaf_first(certificate, chain), expected);
        }
    }
}
