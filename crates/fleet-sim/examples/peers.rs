//! One measurement of one broker, for `bench/peers.py`.
//! ```text
//! peers measure fan-in --server 127.0.0.1:1883 --pid 4711 --qos 1 --seconds 10
//! peers measure storm --server localhost:8883 --ca ca.pem --pid 4711
//! peers echo                      # the floor: a broker that only moves bytes, until stdin ends
//! peers certificates --dir DIR    # a CA, a server and a client certificate
//! ```
//! Prints one line of JSON for every report.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use fleet_sim::client::Server;
use fleet_sim::peers::echo::{Echo, Tamper};
use fleet_sim::peers::{
    Access, Common, Door, Flow, Idle, Keeping, Offline, Own, Processes, Report, Requests, Retained,
    Shape, Storm,
};
use fleet_sim::provision::{Factory, Order};
use mqtt::{QoS, Version};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Measures a broker
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    errand: Errand,
}

#[derive(Subcommand)]
enum Errand {
    /// Runs one scenario
    Measure(Box<Measure>),
    /// Serves as a broker that only moves bytes, until stdin ends
    Echo,
    /// Makes a CA, and certificates for `localhost` and for a client
    Certificates {
        /// Where they go
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(clap::Args)]
struct Measure {
    #[arg(value_enum)]
    scenario: Scenario,
    /// HOST:PORT
    #[arg(long)]
    server: Server,
    /// TLS, trusting this CA (PEM)
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Show this certificate (PEM), with --key
    #[arg(long, requires = "ca", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long)]
    key: Option<PathBuf>,
    /// TLS, each client with a certificate from this Milepost API
    #[arg(long, conflicts_with = "ca")]
    api: Option<String>,
    /// Directory that keeps these for the next time
    #[arg(long, requires = "api")]
    credentials: Option<PathBuf>,
    /// Offer X25519MLKEM768 too: brokers that know it are then measured with more work than others
    #[arg(long)]
    hybrid: bool,
    /// Check no certificate of the server: a handshake then costs the generator less than the broker
    #[arg(long)]
    blind: bool,
    /// A process of the broker; may be given several times
    #[arg(long)]
    pid: Vec<u32>,
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// MQTT version
    #[arg(long, value_enum, default_value_t = Protocol::V311)]
    mqtt: Protocol,
    /// Bytes of a payload
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// What topics begin with
    #[arg(long, default_value = "bench")]
    root: String,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds before that, with the same work
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds of silence after which what is under way counts as lost
    #[arg(long, default_value_t = 5.0)]
    patience: f64,
    /// Publishers, pairs, clients of `storm`, sessions of `offline`, connections of `idle`
    #[arg(long, default_value_t = 1_000)]
    publishers: usize,
    /// Readers of `fan-in`, `fan-out` and `retained`
    #[arg(long, default_value_t = 4)]
    readers: usize,
    /// Messages a publisher writes at once
    #[arg(long, default_value_t = 1)]
    burst: usize,
    /// Bursts of one publisher under way
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// Messages of all publishers under way
    #[arg(long, default_value_t = 1_000_000)]
    outstanding: usize,
    /// Messages per second of all publishers together
    #[arg(long)]
    rate: Option<f64>,
    /// Requests per second beside them, whose round trips are the latency
    #[arg(long, requires = "rate")]
    requests: Option<f64>,
    /// Pairs that make these
    #[arg(long, default_value_t = 10)]
    request_pairs: usize,
    /// Subscriptions in place that match nothing
    #[arg(long, default_value_t = 0)]
    subscriptions: usize,
    /// The broker keeps the readers' sessions
    #[arg(long)]
    stored: bool,
    /// Retained messages, or messages for each session of `offline`
    #[arg(long, default_value_t = 10_000)]
    messages: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    FanIn,
    FanOut,
    Pairs,
    Storm,
    Idle,
    Retained,
    Offline,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    #[value(name = "3.1.1")]
    V311,
    #[value(name = "5")]
    V5,
}

fn main() -> anyhow::Result<()> {
    // The process's default; a second installation is impossible here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Arguments::parse().errand {
        Errand::Measure(measure) => run(&measure),
        Errand::Echo => echo(),
        Errand::Certificates { dir } => certificates(&dir),
    }
}

fn run(arguments: &Measure) -> anyhow::Result<()> {
    let version = match arguments.mqtt {
        Protocol::V311 => Version::V311,
        Protocol::V5 => Version::V5,
    };
    let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(arguments.qos)];
    let door = Door::new(&arguments.server, version, access(arguments)?)?;
    let common = Common {
        qos,
        payload: arguments.payload,
        root: arguments.root.clone(),
        warm_up: seconds(arguments.warm_up)?,
        lasts: seconds(arguments.seconds)?,
        patience: seconds(arguments.patience)?,
        processes: Processes(arguments.pid.clone()),
    };
    let (publishers, readers) = (arguments.publishers, arguments.readers);
    let reports = match arguments.scenario {
        Scenario::Storm => vec![
            Storm {
                common,
                clients: publishers,
            }
            .run(&door)?,
        ],
        Scenario::Idle => vec![
            Idle {
                common,
                connections: publishers,
            }
            .run(&door)?,
        ],
        Scenario::Retained => {
            let messages = arguments.messages;
            vec![
                Retained {
                    common,
                    messages,
                    readers,
                }
                .run(&door)?,
            ]
        }
        Scenario::Offline => Offline {
            common,
            sessions: publishers,
            each: arguments.messages,
            depth: arguments.burst * arguments.depth,
        }
        .run(&door)?,
        Scenario::FanIn | Scenario::FanOut | Scenario::Pairs => {
            let (shape, readers) = match arguments.scenario {
                Scenario::FanIn => (Shape::FanIn, readers),
                Scenario::FanOut => (Shape::FanOut, readers),
                _ => (Shape::Pairs, publishers),
            };
            let flow = Flow {
                common,
                shape,
                publishers,
                readers,
                burst: arguments.burst,
                depth: arguments.depth,
                outstanding: arguments.outstanding,
                rate: arguments.rate,
                requests: arguments.requests.map(|rate| Requests {
                    pairs: arguments.request_pairs,
                    rate,
                }),
                subscriptions: arguments.subscriptions,
                keeping: match arguments.stored {
                    true => Keeping::Stored,
                    false => Keeping::Clean,
                },
            };
            vec![flow.run(&door)?]
        }
    };
    for report in reports {
        writeln!(std::io::stdout().lock(), "{}", in_json(&report, qos))?;
    }
    Ok(())
}

fn in_json(report: &Report, qos: QoS) -> serde_json::Value {
    let (window, tally) = (&report.window, &report.tally);
    serde_json::json!({
        "part": report.part,
        "unit": report.unit,
        "seconds": window.seconds,
        "count": window.count,
        "per_s": report.rate(qos),
        "per_cpu_s": report.per_cpu_second(qos),
        "broker_cpu_s": window.broker_cpu_seconds,
        "generator_cpu_s": window.own_cpu_seconds,
        "generator_us_each": 1e6 * window.own_cpu_seconds / window.count.max(1) as f64,
        "sent": tally.sent,
        "due": tally.due,
        "received": tally.received,
        "lost": tally.lost(),
        "duplicated": tally.duplicated,
        "alien": tally.alien,
        "acknowledged": tally.acknowledged,
        "refused": tally.refused,
        "latency": report.latency.as_ref().map(|latency| {
            let ms = |share| latency.quantile(share).as_secs_f64() * 1e3;
            serde_json::json!({
                "count": latency.count(), "p50_ms": ms(0.5), "p99_ms": ms(0.99), "p999_ms": ms(0.999),
                "max_ms": latency.longest().as_secs_f64() * 1e3,
            })
        }),
        "memory": report.memory.map(|memory| serde_json::json!({
            "connections": memory.connections, "before": memory.before, "after": memory.after,
            "each": memory.each(),
        })),
        "peak_bytes": report.peak_bytes,
        "troubles": report.troubles,
    })
}

fn seconds(seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= Duration::from_secs(3_600))
        .with_context(|| format!("{seconds} s: choose 0 to 3600"))
}

fn access(arguments: &Measure) -> anyhow::Result<Access> {
    if let Some(api) = &arguments.api {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let orders: Vec<_> = (0..arguments.publishers)
            .map(|number| Order::vehicle(&format!("peer-{number:05}")))
            .collect();
        let factory = Factory::new(api)?;
        let made = factory.provision(&orders, arguments.credentials.as_deref(), |_, _| {});
        return runtime
            .block_on(made)?
            .into_iter()
            .map(|one| {
                let proof = Some((one.chain_pem.as_bytes(), one.key_pem.as_bytes()));
                let config = tls(one.ca_pem.as_bytes(), proof, arguments)?;
                Ok(Own {
                    client_id: one.device_id,
                    vehicle: one.vehicle_id,
                    config,
                })
            })
            .collect::<anyhow::Result<_>>()
            .map(Access::Own);
    }
    let Some(ca) = &arguments.ca else {
        return Ok(Access::Plain);
    };
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let proof = match (&arguments.certificate, &arguments.key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    let proof = proof.as_ref().map(|(chain, key)| (&chain[..], &key[..]));
    Ok(Access::Tls(tls(&read(ca)?, proof, arguments)?))
}

/// Full handshakes, and the same key exchange with every broker unless asked otherwise.
fn tls(
    ca: &[u8],
    proof: Option<(&[u8], &[u8])>,
    arguments: &Measure,
) -> anyhow::Result<Arc<ClientConfig>> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if !arguments.hybrid {
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    }
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?;
    let config = match arguments.blind {
        false => config.with_root_certificates(roots),
        true => config
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Blind { schemes })),
    };
    let mut config = match proof {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes any server for the right one: its broker's handshakes are measured, and not its own.
#[derive(Debug)]
struct Blind {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// Says where on stdout, and serves until stdin ends.
fn echo() -> anyhow::Result<()> {
    fleet_sim::allow_open_files(10_000)?;
    let echo = Echo::bind(Tamper::Nothing)?;
    writeln!(std::io::stdout().lock(), "{}", echo.address()?)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    Ok(echo.serve(&stop)?)
}

/// P-256, as most fleets have.
fn certificates(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "bench CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca.pem"), ca.pem())?;
    for (name, host) in [("server", "localhost"), ("client", "client")] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, host);
        let certificate = params.signed_by(&key, &ca)?;
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
