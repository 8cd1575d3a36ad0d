//! The configuration: `milepost.toml` and `MILEPOST__SECTION__KEY`, checked before a port opens.
//!
//! Flow: text → [`document`] (a tree with places) → `reading` (typed values, ranges, unknown keys)
//! → [`Config`] (what it means). All problems are reported at once, each with its place and its
//! remedy. An empty file is safe: loopback only, TLS with certificates, everybody else denied.

mod access;
pub mod document;
pub mod listener;
mod mqtt;
pub mod problem;
mod protection;
pub mod quantity;
pub mod rate;
mod reading;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

pub use access::Anonymous;
pub use listener::Listener;
pub use mqtt::MqttConfig;
pub use protection::{HoldOffConfig, OverloadConfig};

use document::Place;
use listener::{Port, Taken};
use problem::Problems;
use quantity::ByteSize;
use reading::Section;

/// The name looked for in the working directory when `--config` is not given.
pub const DEFAULT_FILE: &str = "milepost.toml";

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything that Milepost keeps lies below this folder.
    pub data_dir: PathBuf,
    /// Where MQTT clients connect.
    pub listeners: Vec<Listener>,
    /// The HTTP API.
    pub http: HttpConfig,
    /// The PostgreSQL wire port and the bounds of a query.
    pub sql: SqlConfig,
    /// Limits of MQTT connections and sessions.
    pub mqtt: MqttConfig,
    /// When new connections are refused for the sake of those that stand.
    pub overload: OverloadConfig,
    /// Who is not listened to for a while.
    pub hold_off: HoldOffConfig,
    /// The broker's own figures as MQTT messages.
    pub sys: SysConfig,
    /// The event log.
    pub log: LogConfig,
    /// The lake.
    pub lake: LakeConfig,
}

/// `[http]`.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Address of API, metrics and health.
    pub bind: SocketAddr,
}

/// `[sql]`.
#[derive(Debug, Clone)]
pub struct SqlConfig {
    /// Address of the PostgreSQL wire protocol.
    pub bind: SocketAddr,
    /// Rows one query may return.
    pub max_rows: u64,
    /// Wall time one query may take, planning included.
    pub max_time: Duration,
    /// Memory one query may use for sorting, grouping and joining.
    pub max_memory: ByteSize,
}

/// `[sys]`.
#[derive(Debug, Clone)]
pub struct SysConfig {
    /// How often the `$SYS` topics are published; `None`: not at all.
    pub interval: Option<Duration>,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Partitions of a stream, fixed when the stream is first made.
    pub partitions: u16,
    /// Records older than this may go.
    pub max_age: Duration,
    /// Bytes one stream keeps per partition.
    pub max_bytes: ByteSize,
    /// Whether a publish is acknowledged only once it is on disk.
    pub durability: Durability,
}

/// `log.durability` and `mqtt.durability`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged after fsync.
    Fsync,
    /// Acknowledged once written to the operating system: for measuring what durability costs.
    None,
}

/// `[lake]`.
#[derive(Debug, Clone)]
pub struct LakeConfig {
    /// Rows go from the hot tables to Delta at least this often.
    pub commit_every: Duration,
    /// Memory the hot tables may hold before the consumer waits.
    pub max_hot: ByteSize,
}

/// A configuration could not be read at all, or is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not readable.
    #[error("cannot read the configuration file {}: {source}; name an existing file with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It says something that can not be meant.
    #[error("{0}")]
    Wrong(#[from] Problems),
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// `--config`; without it [`DEFAULT_FILE`] is read if it is there.
    pub file: Option<PathBuf>,
    /// `--data-dir`, stronger than file and environment.
    pub data_dir: Option<PathBuf>,
}

impl Config {
    /// Reads file and environment.
    pub fn load(source: &Source) -> Result<Self, ConfigError> {
        let (path, text) = match &source.file {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
                        path: path.clone(),
                        source: error,
                    })?;
                (path.clone(), text)
            }
            None => {
                let path = PathBuf::from(DEFAULT_FILE);
                match std::fs::read_to_string(&path) {
                    Ok(text) => (path, text),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        (path, String::new())
                    }
                    Err(source) => return Err(ConfigError::Unreadable { path, source }),
                }
            }
        };
        let mut config = Self::parse(&path, &text, std::env::vars())?;
        if let Some(data_dir) = &source.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        Ok(config)
    }

    /// As [`Config::load`], from text and variables at hand.
    pub fn parse(
        path: &Path,
        text: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let mut document =
            document::parse(path, text).map_err(|problem| Problems(vec![problem]))?;
        let mut problems = document::overlay(&mut document, variables);
        let config = read(Section::root(document, &mut problems));
        match problems.is_empty() {
            true => Ok(config),
            false => Err(Problems(problems)),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn read(mut root: Section<'_>) -> Config {
    let data_dir = root
        .path("data_dir")
        .map_or_else(|| PathBuf::from("milepost-data"), |placed| placed.value);
    let access = access::read(root.section("access"));
    let mut binds = Vec::new();
    let listeners = root
        .sections("listener", |section| {
            listener::read(section, &access, &mut binds)
        })
        .unwrap_or_else(|| listener::by_default(&mut binds));
    let http = read_http(root.section("http"), &mut binds);
    let sql = read_sql(root.section("sql"), &mut binds);
    root.not_yet("kafka", "the Kafka wire protocol");
    let mqtt = mqtt::read(root.section("mqtt"));
    let overload = protection::read_overload(root.section("overload"));
    let hold_off = protection::read_hold_off(root.section("hold_off"));
    let sys = read_sys(root.section("sys"));
    let log = read_log(root.section("log"));
    let lake = read_lake(root.section("lake"));
    refuse_shared_ports(&mut root, &binds);
    root.finish();
    Config {
        data_dir,
        listeners,
        http,
        sql,
        mqtt,
        overload,
        hold_off,
        sys,
        log,
        lake,
    }
}

fn read_http(mut section: Section<'_>, binds: &mut Vec<Taken>) -> HttpConfig {
    let bind = section.address("bind", loopback(8080));
    let danger_allow_open = section.flag("danger_allow_open", false);
    // The API has no sign-in yet: whoever reaches the port may do everything.
    if !bind.value.ip().is_loopback() && !danger_allow_open {
        section.problem(
            &bind.place,
            "bind",
            format!(
                "{} would let everybody in, for this port asks for no sign-in",
                bind.value
            ),
            "bind to 127.0.0.1 behind a proxy that authenticates, or accept it with \
             danger_allow_open = true"
                .into(),
        );
    }
    let address = bind.value;
    binds.push(Taken {
        bind,
        port: Port::Tcp,
    });
    section.finish();
    HttpConfig { bind: address }
}

fn read_sql(mut section: Section<'_>, binds: &mut Vec<Taken>) -> SqlConfig {
    let bind = section.address("bind", loopback(5433));
    // Without passwords and TLS the lake serves nobody beyond this machine.
    if !bind.value.ip().is_loopback() {
        section.problem(
            &bind.place,
            "bind",
            format!(
                "{} is not a loopback address; this port has neither passwords nor TLS in this version",
                bind.value
            ),
            "bind to 127.0.0.1 and reach it through a tunnel, or ask over HTTP".into(),
        );
    }
    let address = bind.value;
    binds.push(Taken {
        bind,
        port: Port::Tcp,
    });
    let config = SqlConfig {
        bind: address,
        max_rows: section.integer("max_rows", 100_000, 1..=100_000_000),
        max_time: section.duration(
            "max_time",
            Duration::from_secs(30),
            Duration::from_millis(10)..=Duration::from_secs(86_400),
        ),
        max_memory: section.size(
            "max_memory",
            ByteSize(256 << 20),
            ByteSize(16 << 20)..=ByteSize(1 << 40),
        ),
    };
    section.finish();
    config
}

fn read_durability(section: &mut Section<'_>) -> Durability {
    section
        .text(
            "durability",
            Durability::Fsync,
            "write \"fsync\", or \"none\" to measure what durability costs",
            |text| match text {
                "fsync" => Ok(Durability::Fsync),
                "none" => Ok(Durability::None),
                other => Err(format!("\"{other}\" is not a durability")),
            },
        )
        .value
}

fn read_sys(mut section: Section<'_>) -> SysConfig {
    let second = Duration::from_secs(1);
    let config = SysConfig {
        interval: section.duration_or_off("interval", 10 * second, second..=3600 * second),
    };
    section.finish();
    config
}

fn read_log(mut section: Section<'_>) -> LogConfig {
    let day = Duration::from_secs(86_400);
    let config = LogConfig {
        partitions: section.integer("partitions", 4, 1..=256) as u16,
        max_age: section.duration("max_age", 7 * day, Duration::from_secs(60)..=3650 * day),
        max_bytes: section.size(
            "max_bytes",
            ByteSize(16 << 30),
            ByteSize(64 << 20)..=ByteSize(1 << 50),
        ),
        durability: read_durability(&mut section),
    };
    section.finish();
    config
}

fn read_lake(mut section: Section<'_>) -> LakeConfig {
    let config = LakeConfig {
        commit_every: section.duration(
            "commit_every",
            Duration::from_secs(10),
            Duration::from_millis(100)..=Duration::from_secs(3600),
        ),
        max_hot: section.size(
            "max_hot",
            ByteSize(256 << 20),
            ByteSize(8 << 20)..=ByteSize(1 << 40),
        ),
    };
    section.finish();
    config
}

fn refuse_shared_ports(root: &mut Section<'_>, binds: &[Taken]) {
    let mut taken: HashMap<(SocketAddr, Port), &Place> = HashMap::new();
    for Taken { bind, port } in binds.iter().filter(|taken| taken.bind.value.port() != 0) {
        if let Some(first) = taken.insert((bind.value, *port), &bind.place) {
            root.problem(
                &bind.place,
                "bind",
                format!("{} is given twice, first at {first}", bind.value),
                "give each listener a port of its own".into(),
            );
        }
    }
}
