//! The configuration: `milepost.toml` and `MILEPOST__SECTION__KEY`, checked before a port opens.
//!
//! Flow: text → [`document`] (a tree with places) → `reading` (typed values, ranges, unknown keys)
//! → [`Config`] (what it means). All problems are reported at once, each with its place and its
//! remedy. An empty file is safe: loopback only, TLS with certificates, everybody else denied.

pub mod document;
pub mod problem;
pub mod quantity;
mod reading;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use broker::{Overflow, Retain, ShareStrategy};
use document::Place;
use problem::Problems;
use quantity::ByteSize;
use reading::{Placed, Section};

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
    /// The event log.
    pub log: LogConfig,
    /// The lake.
    pub lake: LakeConfig,
}

/// One `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens. Port 0 lets the system choose.
    pub bind: SocketAddr,
    /// How clients are known there.
    pub protocol: Protocol,
}

/// What a listener speaks, with what only that protocol needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// Plain TCP. Without certificates the only clients are anonymous ones.
    Mqtt {
        /// Whether a client without credentials is let in, with access to everything.
        anonymous: Anonymous,
    },
    /// TLS 1.2 or 1.3 with a client certificate of the fleet CA.
    Mqtts {
        /// Names and addresses in the server certificate besides the bound address and `localhost`.
        names: Vec<String>,
    },
}

/// `access.anonymous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Refused.
    Deny,
    /// Let in with access to everything: for benchmarks and trials on loopback.
    AllowAll,
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

/// `[mqtt]`.
#[derive(Debug, Clone)]
pub struct MqttConfig {
    /// Largest packet either way.
    pub max_packet_size: ByteSize,
    /// Unacknowledged QoS 1 and 2 messages one connection may have, each way.
    pub max_inflight: u16,
    /// Messages that wait for one receiver, connected or not.
    pub max_queued: u32,
    /// Bytes of these; not below `max_packet_size`.
    pub max_queued_bytes: ByteSize,
    /// What happens to a message for a stored session whose queue is full.
    pub overflow: Overflow,
    /// Longest keep-alive; a client that asks for more is told this one.
    pub keep_alive_max: Duration,
    /// Longest time a session outlives its connection; a client that asks for more is told this one.
    pub session_expiry_max: Duration,
    /// Connections at once over all listeners.
    pub max_connections: u32,
    /// Sessions, connected or not.
    pub max_sessions: u32,
    /// Subscriptions of one session.
    pub max_subscriptions: u32,
    /// Memory for messages that stored sessions wait for, each message once; not below
    /// `max_packet_size`.
    pub max_stored_bytes: ByteSize,
    /// Which member of a shared subscription gets a message.
    pub share_strategy: ShareStrategy,
    /// Whether messages may be retained.
    pub retain: Retain,
    /// Retained messages.
    pub max_retained: u32,
    /// Bytes of these.
    pub max_retained_bytes: ByteSize,
    /// Topic aliases one client may use towards the server.
    pub topic_alias_maximum: u16,
    /// Topic aliases the server uses towards one client at most.
    pub topic_alias_maximum_out: u16,
    /// Whether what sessions are told is kept for them is on disk by then.
    pub durability: Durability,
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
    let access = read_access(root.section("access"));
    let mut binds = Vec::new();
    let listeners = root
        .sections("listener", |section| {
            read_listener(section, &access, &mut binds)
        })
        .unwrap_or_else(|| {
            let bind = loopback(8883);
            binds.push(Placed {
                value: bind,
                place: Place::Default,
            });
            vec![Listener {
                bind,
                protocol: Protocol::Mqtts { names: Vec::new() },
            }]
        });
    let http = read_http(root.section("http"), &mut binds);
    let sql = read_sql(root.section("sql"), &mut binds);
    root.not_yet("kafka", "the Kafka wire protocol");
    let mqtt = read_mqtt(root.section("mqtt"));
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
        log,
        lake,
    }
}

struct Access {
    anonymous: Placed<Anonymous>,
    danger_allow_open: bool,
}

fn read_access(mut section: Section<'_>) -> Access {
    let anonymous = section.text(
        "anonymous",
        Anonymous::Deny,
        "write \"deny\", or \"allow-all\" for a trial on loopback",
        |text| match text {
            "deny" => Ok(Anonymous::Deny),
            "allow-all" => Ok(Anonymous::AllowAll),
            other => Err(format!("\"{other}\" is not a rule")),
        },
    );
    let danger_allow_open = section.flag("danger_allow_open", false);
    section.finish();
    Access {
        anonymous,
        danger_allow_open,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Auth {
    X509,
    Anonymous,
}

fn read_listener(
    mut section: Section<'_>,
    access: &Access,
    binds: &mut Vec<Placed<SocketAddr>>,
) -> Option<Listener> {
    let tls = section.text(
        "protocol",
        true,
        "write \"mqtts\" (TLS) or \"mqtt\" (plain TCP)",
        |text| match text {
            "mqtts" => Ok(true),
            "mqtt" => Ok(false),
            "ws" | "wss" | "quic" => Err(format!("\"{text}\" is not in this version")),
            other => Err(format!("\"{other}\" is not a protocol")),
        },
    );
    let bind = section.address("bind", loopback(if tls.value { 8883 } else { 1883 }));
    let auth = section.list(
        "auth",
        "write [\"x509\"] with mqtts, [\"anonymous\"] with mqtt",
        |text| match text {
            "x509" => Ok(Auth::X509),
            "anonymous" => Ok(Auth::Anonymous),
            "jwt" | "password" => Err(format!("\"{text}\" is not in this version")),
            other => Err(format!("\"{other}\" is not a way to authenticate")),
        },
    );
    let danger_plaintext = section.flag("danger_plaintext", false);
    let names = section
        .list(
            "names",
            "write the names clients connect to, such as [\"mqtt.example.com\"]",
            |name| match name.is_empty() || name.len() > 253 {
                true => Err("holds an empty name or one beyond 253 characters".into()),
                false => Ok(name.to_owned()),
            },
        )
        .map_or_else(Vec::new, |placed| placed.value);
    section.not_yet("path", "WebSocket");
    section.not_yet("proxy_protocol", "the PROXY protocol");

    let is_loopback = bind.value.ip().is_loopback();
    let protocol = if tls.value {
        if let Some(auth) = &auth
            && auth.value != [Auth::X509]
        {
            section.problem(
                &auth.place,
                "auth",
                "an mqtts listener authenticates by certificate only in this version".into(),
                "write [\"x509\"] or leave the key out".into(),
            );
        }
        Protocol::Mqtts { names }
    } else {
        if let Some(auth) = &auth
            && auth.value != [Auth::Anonymous]
        {
            section.problem(
                &auth.place,
                "auth",
                "a plain mqtt listener sees no certificates".into(),
                "write [\"anonymous\"], or make the protocol \"mqtts\"".into(),
            );
        }
        if !is_loopback && !danger_plaintext {
            section.problem(
                &bind.place,
                "bind",
                format!("{} would carry plain text beyond this machine", bind.value),
                "bind to 127.0.0.1, use \"mqtts\", or accept it with danger_plaintext = true"
                    .into(),
            );
        }
        if access.anonymous.value == Anonymous::AllowAll
            && !is_loopback
            && !access.danger_allow_open
        {
            section.problem(
                &bind.place,
                "bind",
                format!(
                    "{} with access.anonymous = \"allow-all\" lets everybody in",
                    bind.value
                ),
                "bind to 127.0.0.1, or accept it with access.danger_allow_open = true".into(),
            );
        }
        Protocol::Mqtt {
            anonymous: access.anonymous.value,
        }
    };
    let listener = Listener {
        bind: bind.value,
        protocol,
    };
    binds.push(bind);
    section.finish();
    Some(listener)
}

fn read_http(mut section: Section<'_>, binds: &mut Vec<Placed<SocketAddr>>) -> HttpConfig {
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
    binds.push(bind);
    section.finish();
    HttpConfig { bind: address }
}

fn read_sql(mut section: Section<'_>, binds: &mut Vec<Placed<SocketAddr>>) -> SqlConfig {
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
    binds.push(bind);
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

fn read_mqtt(mut section: Section<'_>) -> MqttConfig {
    let day = Duration::from_secs(86_400);
    let max_packet_size = section.size(
        "max_packet_size",
        ByteSize(1 << 20),
        ByteSize(1 << 10)..=ByteSize(256 << 20),
    );
    let config = MqttConfig {
        max_packet_size,
        max_inflight: section.integer("max_inflight", 1024, 1..=65_535) as u16,
        max_queued: section.integer("max_queued", 10_000, 1..=10_000_000) as u32,
        // By default a few of the largest packets fit.
        max_queued_bytes: room_for_a_packet(
            &mut section,
            "max_queued_bytes",
            ByteSize((8 << 20).max(4 * max_packet_size.0)),
            max_packet_size,
        ),
        overflow: section.word(
            "overflow",
            Overflow::RefuseNew,
            &[
                ("refuse_new", Overflow::RefuseNew),
                ("drop_oldest", Overflow::DropOldest),
                ("drop_lowest_priority", Overflow::DropLowestPriority),
            ],
        ),
        keep_alive_max: section.duration(
            "keep_alive_max",
            Duration::from_secs(20 * 60),
            Duration::from_secs(1)..=Duration::from_secs(65_535),
        ),
        session_expiry_max: section.duration(
            "session_expiry_max",
            7 * day,
            Duration::ZERO..=3650 * day,
        ),
        max_connections: section.integer("max_connections", 500_000, 1..=10_000_000) as u32,
        max_sessions: section.integer("max_sessions", 500_000, 1..=10_000_000) as u32,
        max_subscriptions: section.integer("max_subscriptions", 1_000, 1..=1_000_000) as u32,
        max_stored_bytes: room_for_a_packet(
            &mut section,
            "max_stored_bytes",
            ByteSize(4 << 30),
            max_packet_size,
        ),
        share_strategy: section.word(
            "share_strategy",
            ShareStrategy::RoundRobin,
            &[
                ("round_robin", ShareStrategy::RoundRobin),
                ("least_in_flight", ShareStrategy::LeastInFlight),
                ("sticky_by_publisher", ShareStrategy::StickyByPublisher),
            ],
        ),
        retain: match section.flag("retain", true) {
            true => Retain::Available,
            false => Retain::Unavailable,
        },
        max_retained: section.integer("max_retained", 1_000_000, 1..=100_000_000) as u32,
        max_retained_bytes: room_for_a_packet(
            &mut section,
            "max_retained_bytes",
            ByteSize(1 << 30),
            max_packet_size,
        ),
        topic_alias_maximum: section.integer("topic_alias_maximum", 16, 0..=65_535) as u16,
        topic_alias_maximum_out: section.integer("topic_alias_maximum_out", 16, 0..=65_535) as u16,
        durability: read_durability(&mut section),
    };
    section.finish();
    config
}

/// Bytes for messages, of which the largest must fit, or it could never be kept.
fn room_for_a_packet(
    section: &mut Section<'_>,
    name: &'static str,
    default: ByteSize,
    max_packet_size: ByteSize,
) -> ByteSize {
    let placed = section.size_and_place(name, default, ByteSize(64 << 10)..=ByteSize(1 << 40));
    if placed.value < max_packet_size {
        section.problem(
            &placed.place,
            name,
            format!(
                "{} is less than mqtt.max_packet_size, {max_packet_size}: the largest message would \
                 never fit",
                placed.value
            ),
            "raise this one or lower max_packet_size".into(),
        );
    }
    placed.value
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

fn refuse_shared_ports(root: &mut Section<'_>, binds: &[Placed<SocketAddr>]) {
    let mut taken: HashMap<SocketAddr, &Place> = HashMap::new();
    for bind in binds.iter().filter(|bind| bind.value.port() != 0) {
        if let Some(first) = taken.insert(bind.value, &bind.place) {
            root.problem(
                &bind.place,
                "bind",
                format!("{} is given twice, first at {first}", bind.value),
                "give each listener a port of its own".into(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Problems> {
        Config::parse(Path::new("milepost.toml"), text, std::iter::empty())
    }

    fn with_variables(text: &str, variables: &[(&str, &str)]) -> Result<Config, Problems> {
        let variables = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::parse(Path::new("milepost.toml"), text, variables)
    }

    #[test]
    fn an_empty_file_listens_on_loopback_with_certificates_only() {
        let config = parse("").expect("empty is valid");
        let [listener] = &config.listeners[..] else {
            panic!("one listener")
        };
        assert!(matches!(listener.protocol, Protocol::Mqtts { .. }));
        assert!(listener.bind.ip().is_loopback());
        assert!(config.http.bind.ip().is_loopback());
        assert!(config.sql.bind.ip().is_loopback());
        assert_eq!(config.log.durability, Durability::Fsync);
    }

    #[test]
    fn every_wrong_value_is_reported_at_once_with_its_line_and_remedy() {
        let text = "data_dir = \"x\"\n\
                    [mqtt]\n\
                    max_inflght = 3\n\
                    max_packet_size = \"1 parsec\"\n\
                    max_queued = 0\n\
                    [http]\n\
                    bind = \"127.0.0.1\"\n\
                    [htttp]\n";
        let problems = parse(text).expect_err("wrong").to_string();
        let expected = [
            "milepost.toml:3: mqtt.max_inflght: unknown key; did you mean `max_inflight`?",
            "milepost.toml:4: mqtt.max_packet_size: \"1 parsec\" is not a size with a unit",
            "milepost.toml:5: mqtt.max_queued: 0 is outside of 1 to 10000000",
            "milepost.toml:7: http.bind: \"127.0.0.1\" is not an address with a port",
            "milepost.toml:8: htttp: unknown key; did you mean `http`?",
        ];
        for line in expected {
            assert!(problems.contains(line), "missing {line:?} in\n{problems}");
        }
        assert_eq!(problems.lines().count(), expected.len(), "{problems}");
    }

    #[test]
    fn each_row_is_refused_and_names_its_key() {
        let rows = [
            (
                "[[listener]]\nprotocol = \"mqtt\"\nbind = \"0.0.0.0:1883\"",
                "danger_plaintext",
            ),
            (
                "[access]\nanonymous = \"allow-all\"\n[[listener]]\nprotocol = \"mqtt\"\nbind = \"0.0.0.0:1883\"\ndanger_plaintext = true",
                "danger_allow_open",
            ),
            ("[http]\nbind = \"0.0.0.0:8080\"", "danger_allow_open"),
            ("[sql]\nbind = \"0.0.0.0:5433\"", "not a loopback address"),
            ("[[listener]]\nprotocol = \"wss\"", "not in this version"),
            (
                "[[listener]]\nprotocol = \"mqtts\"\nauth = [\"jwt\"]",
                "not in this version",
            ),
            (
                "[[listener]]\nprotocol = \"mqtt\"\nauth = [\"x509\"]",
                "sees no certificates",
            ),
            ("[kafka]\nbind = \"127.0.0.1:9092\"", "not in this version"),
            (
                "[http]\nbind = \"127.0.0.1:7000\"\n[sql]\nbind = \"127.0.0.1:7000\"",
                "given twice",
            ),
            ("[mqtt]\nkeep_alive_max = 20", "must be a string"),
            ("mqtt = 3", "must be a section"),
            ("listener = 3", "must be a list"),
            ("data_dir = ", "not valid TOML"),
            ("[access]\nanonymous = \"maybe\"", "is not a rule"),
            (
                "[mqtt]\noverflow = \"drop\"",
                "\"drop\" is none of the choices; write \"refuse_new\", \"drop_oldest\" or \
                 \"drop_lowest_priority\"",
            ),
            ("[mqtt]\nshare_strategy = 3", "must be a string"),
            ("[mqtt]\nretain = \"yes\"", "must be true or false"),
            (
                "[mqtt]\nmax_packet_size = \"2MiB\"\nmax_queued_bytes = \"1MiB\"",
                "milepost.toml:3: mqtt.max_queued_bytes: 1MiB is less than mqtt.max_packet_size, 2MiB",
            ),
            (
                "[mqtt]\nmax_stored_bytes = \"64KiB\"",
                "raise this one or lower max_packet_size",
            ),
            ("[mqtt]\nmax_sessions = 0", "outside of 1 to 10000000"),
            ("[mqtt]\ndurability = \"some\"", "is not a durability"),
        ];
        for (text, expected) in rows {
            let problems = parse(text).expect_err(text).to_string();
            assert!(problems.contains(expected), "{text}\n→ {problems}");
            assert!(problems.starts_with("milepost.toml:"), "{problems}");
        }
    }

    #[test]
    fn variables_lie_over_the_file_and_are_named_when_wrong() {
        let config = with_variables(
            "[http]\nbind = \"127.0.0.1:1\"",
            &[
                ("MILEPOST__HTTP__BIND", "127.0.0.1:2"),
                ("MILEPOST__MQTT__MAX_INFLIGHT", "7"),
                ("MILEPOST__LISTENER__0__PROTOCOL", "mqtt"),
                ("MILEPOST__LISTENER__0__AUTH", "[\"anonymous\"]"),
                ("MILEPOST__DATA_DIR", "elsewhere"),
                ("OTHER", "x"),
            ],
        )
        .expect("valid");
        assert_eq!(config.http.bind.port(), 2);
        assert_eq!(config.mqtt.max_inflight, 7);
        assert!(matches!(
            config.listeners[0].protocol,
            Protocol::Mqtt { .. }
        ));
        assert_eq!(config.data_dir, Path::new("elsewhere"));

        let problems = with_variables("", &[("MILEPOST__HTTP__BINDD", "x")])
            .expect_err("unknown key")
            .to_string();
        assert!(
            problems.contains("environment variable MILEPOST__HTTP__BINDD: http.bindd: unknown key; did you mean `bind`?"),
            "{problems}"
        );
    }

    #[test]
    fn the_words_of_a_choice_mean_what_they_say() {
        let config = with_variables(
            "[mqtt]\noverflow = \"drop_lowest_priority\"\nretain = false",
            &[("MILEPOST__MQTT__SHARE_STRATEGY", "least_in_flight")],
        )
        .expect("valid");
        assert_eq!(config.mqtt.overflow, Overflow::DropLowestPriority);
        assert_eq!(config.mqtt.retain, Retain::Unavailable);
        assert_eq!(config.mqtt.share_strategy, ShareStrategy::LeastInFlight);
    }

    #[test]
    fn room_for_one_receiver_grows_with_the_largest_packet() {
        let room = |text: &str| parse(text).expect(text).mqtt.max_queued_bytes.to_string();
        assert_eq!(room(""), "8MiB");
        assert_eq!(room("[mqtt]\nmax_packet_size = \"16MiB\""), "64MiB");
    }

    /// Every key of `docs/configuration.md`, with its default as written there.
    fn documented() -> Vec<(&'static str, &'static str)> {
        let rows = include_str!("../../../../docs/configuration.md").lines();
        let rows = rows.filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let key = cells.next()?.strip_suffix('`')?;
            Some((key, cells.next()?))
        });
        rows.collect()
    }

    #[test]
    fn the_documentation_has_every_key() {
        let documented = documented();
        // What a section says when nothing is like a wrong key: all it knows.
        for (section, header) in [
            ("", ""),
            ("listener.", "[[listener]]\n"),
            ("access.", "[access]\n"),
            ("http.", "[http]\n"),
            ("sql.", "[sql]\n"),
            ("mqtt.", "[mqtt]\n"),
            ("log.", "[log]\n"),
            ("lake.", "[lake]\n"),
        ] {
            let problems = parse(&format!("{header}qqqqqqqqqqqqqqqqqqqqqqqqqqqq = 1"));
            let problems = problems.expect_err("unknown").to_string();
            let (_, keys) = problems.split_once("the keys here are ").expect("a list");
            let refused = ["path", "proxy_protocol", "kafka"];
            for key in keys.trim().split(", ").filter(|key| !refused.contains(key)) {
                let whole = format!("{section}{key}");
                assert!(
                    documented.iter().any(|(known, _)| {
                        *known == whole
                            || known.starts_with(&format!("{whole}."))
                            || *known == format!("[[{whole}]]")
                    }),
                    "`{whole}` is not in docs/configuration.md"
                );
            }
        }
    }

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let expected = format!("{:?}", parse("").expect("empty is valid"));
        let mut compared = 0;
        for (key, default) in documented() {
            let written = default.strip_prefix('`').and_then(|d| d.strip_suffix('`'));
            let (Some(written), Some((section, name))) = (written, key.split_once('.')) else {
                continue; // a list, or words about the default
            };
            if section == "listener" {
                continue; // they depend on the protocol
            }
            let written = match name {
                "bind" => format!("\"{written}\""),
                _ => written.to_owned(),
            };
            let text = format!("[{section}]\n{name} = {written}");
            let config = parse(&text).unwrap_or_else(|problems| panic!("{text}: {problems}"));
            assert_eq!(format!("{config:?}"), expected, "{text}");
            compared += 1;
        }
        assert!(compared > 25, "only {compared} rows were found");
    }
}
