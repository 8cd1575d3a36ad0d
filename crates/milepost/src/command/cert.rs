//! `milepost cert`: certificates of devices.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    api::{Api, ApiArgs},
    output,
};

/// Issue, register, list and revoke the certificates devices connect with
#[derive(clap::Subcommand)]
pub enum Cert {
    /// Print the fleet CA certificate, by which clients know the server
    Ca {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Sign a device's certificate request; prints the certificate
    Issue {
        /// The device
        #[arg(long)]
        device: String,
        /// The request (PEM), made by the device with its own key
        #[arg(long, value_name = "FILE")]
        csr: PathBuf,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Register a certificate that a device has already, of a CA in listener.client_ca
    Register {
        /// The device
        device: String,
        /// The certificate (PEM), behind it those between it and its CA
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Make a key here, have it certified, and write key.pem, cert.pem and ca.pem
    New {
        /// The device
        #[arg(long)]
        device: String,
        /// The folder to write into
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Have the server read its certificate, key and CA files again, now
    Reload {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List a device's certificates
    List {
        /// The device
        device: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Revoke a certificate: its connections end at once
    Revoke {
        /// Its serial number or its fingerprint (hexadecimal)
        serial: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl Cert {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Ca { api } => {
                let pem = Api::new(&api.api)?.get_text("/ca").await?;
                output::line(pem.trim_end())?;
            }
            Self::Issue { device, csr, api } => {
                let csr = fs::read_to_string(&csr)
                    .with_context(|| format!("cannot read {}", csr.display()))?;
                let issued = issue(&Api::new(&api.api)?, &device, &csr).await?;
                match api.json {
                    true => output::json(&issued)?,
                    false => output::line(output::cell(&issued["certificate"]).trim_end())?,
                }
            }
            Self::Register { device, cert, api } => {
                let pem = fs::read_to_string(&cert)
                    .with_context(|| format!("cannot read {}", cert.display()))?;
                let path = format!("/devices/{device}/certificates");
                let registered = Api::new(&api.api)?
                    .post(&path, &json!({ "pem": pem }))
                    .await?;
                let told = json!({
                    "serial": registered["serial"],
                    "fingerprint": registered["fingerprint"],
                    "not_after": registered["not_after"],
                });
                output::object(if api.json { &registered } else { &told }, api.json)?;
            }
            Self::New { device, out, api } => {
                let client = Api::new(&api.api)?;
                let request = fleet_sim::provision::KeyRequest::new(&device)?;
                let issued = issue(&client, &device, &request.csr_pem).await?;
                let ca = client.get_text("/ca").await?;
                fs::create_dir_all(&out)
                    .with_context(|| format!("cannot make {}", out.display()))?;
                write_private(&out.join("key.pem"), &request.key_pem)?;
                fs::write(out.join("cert.pem"), output::cell(&issued["certificate"]))?;
                fs::write(out.join("ca.pem"), ca)?;
                eprintln!("wrote key.pem, cert.pem and ca.pem to {}", out.display());
                output::object(
                    &json!({ "serial": issued["serial"], "not_after": issued["not_after"] }),
                    api.json,
                )?;
            }
            Self::Reload { api } => {
                let answer = Api::new(&api.api)?.post("/reload", &json!({})).await?;
                output::object(&answer, api.json)?;
            }
            Self::List { device, api } => {
                let path = format!("/devices/{device}/certificates");
                let certificates = Api::new(&api.api)?.list(&path).await?;
                let fields = [
                    "serial",
                    "fingerprint",
                    "not_before",
                    "not_after",
                    "revoked_at",
                ];
                output::list(&certificates, &fields, api.json)?;
            }
            Self::Revoke { serial, api } => {
                let path = format!("/certificates/{serial}/revoke");
                Api::new(&api.api)?.post(&path, &json!({})).await?;
                eprintln!("certificate {serial} revoked");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn issue(api: &Api, device: &str, csr: &str) -> anyhow::Result<Value> {
    let path = format!("/devices/{device}/certificates");
    api.post(&path, &json!({ "csr": csr })).await
}

/// A key is readable by its owner only, from the first byte on, and is never overwritten.
fn write_private(path: &Path, pem: &str) -> anyhow::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(pem.as_bytes()))
        .with_context(|| {
            format!(
                "cannot write {} (a key is never overwritten)",
                path.display()
            )
        })
}
