//! Drives the real binary: start it on free ports, talk to it as its users do, kill it.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use fleet_sim::Dice;
use serde_json::Value;

/// How long anything may take before a test calls it hung. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn milepost() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_milepost"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILEPOST")) {
        command.env_remove(name);
    }
    command
}

/// Lets a server that comes late to its clients take new ones all the same: the machine may be busy with
/// other tests.
pub const UNHURRIED: &str = "[overload]\nmax_loop_delay = \"1m\"\n";

/// A configuration on free ports; `more` goes behind it.
pub fn config_on_free_ports(more: &str) -> String {
    config_with_sql("", more)
}

/// As [`config_on_free_ports`], with further keys for `[sql]`.
pub fn config_with_sql(sql: &str, more: &str) -> String {
    format!(
        "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\n\
         [http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n{sql}\n\
         {UNHURRIED}[lake]\ncommit_every = \"500ms\"\n{more}"
    )
}

/// A running `milepost serve`.
pub struct Serving {
    child: Child,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// The first MQTT listener.
    pub mqtt: SocketAddr,
    /// All MQTT listeners as printed, `mqtts://127.0.0.1:…`.
    pub mqtt_urls: Vec<String>,
    /// `http://127.0.0.1:…`
    pub api: String,
    /// The PostgreSQL wire port.
    pub sql: SocketAddr,
    /// What it said before `ready`.
    pub start_up: Vec<String>,
    lines: mpsc::Receiver<String>,
}

impl Serving {
    /// Starts it on `data_dir` and waits for `ready`.
    pub fn start(data_dir: &Path, config: &str) -> Serving {
        Serving::start_by(milepost(), data_dir, config)
    }

    /// As [`Serving::start`]; `command` is [`milepost`], or becomes it by `exec`.
    pub fn start_by(mut command: Command, data_dir: &Path, config: &str) -> Serving {
        let file = data_dir.with_extension("toml");
        fs::write(&file, config).expect("the configuration is written");
        let mut child = command
            .args(["serve", "--config"])
            .arg(&file)
            .arg("--data-dir")
            .arg(data_dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if std::env::var_os("MILEPOST_TEST_SHOW_LOG").is_some() {
                    eprintln!("server: {line}");
                }
                // Nobody listens any more once the test is over; reading on keeps the pipe open.
                let _ = send.send(line);
            }
        });
        let mut start_up = Vec::new();
        loop {
            let line = lines.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                let _ = child.kill();
                panic!(
                    "the server did not get ready; it said:\n{}",
                    start_up.join("\n")
                )
            });
            if line == "ready" {
                break;
            }
            start_up.push(line);
        }
        let urls = |scheme: &str| -> Vec<String> {
            start_up
                .iter()
                .filter_map(|line| line.strip_prefix("listening on "))
                .filter(|url| url.starts_with(scheme))
                .map(str::to_owned)
                .collect()
        };
        let address = |url: &str| -> SocketAddr {
            let (_, address) = url.split_once("://").expect("a URL");
            address.parse().expect("an address")
        };
        let mqtt_urls = urls("mqtt");
        Serving {
            mqtt: address(&mqtt_urls[0]),
            mqtt_urls,
            api: urls("http://").remove(0),
            sql: address(&urls("postgresql://")[0]),
            data_dir: data_dir.to_owned(),
            child,
            start_up,
            lines,
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it is gone");
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(mut self) -> ExitStatus {
        signal(self.child.id(), "TERM");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the server did not stop after SIGTERM"
            );
            // Waits for the end of its stderr, which is the end of the process.
            let _ = self.lines.recv_timeout(Duration::from_millis(50));
        }
    }

    /// Waits for a line of its log that holds `text`.
    pub fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return,
                Ok(_) => {}
                Err(_) => panic!("the server did not say `{text}`"),
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a client command of the same binary against it.
    pub fn client(&self, arguments: &[&str]) -> Output {
        milepost()
            .args(arguments)
            .args(["--api", &self.api])
            .output()
            .expect("the command runs")
    }

    /// As [`Serving::client`], which must succeed; its stdout.
    pub fn client_ok(&self, arguments: &[&str]) -> String {
        let output = self.client(arguments);
        assert!(
            output.status.success(),
            "{arguments:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The rows of a query, through the command line.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        let text = self.client_ok(&["sql", query, "--json"]);
        match serde_json::from_str(&text).expect("JSON") {
            Value::Array(rows) => rows,
            other => panic!("not a list of rows: {other}"),
        }
    }

    /// The one number that a query answers with.
    pub fn number(&self, query: &str) -> f64 {
        let rows = self.sql(query);
        let [Value::Object(row)] = &rows[..] else {
            panic!("not one row: {rows:?}")
        };
        let value = row.values().next().expect("a column");
        value
            .as_f64()
            .unwrap_or_else(|| panic!("not a number: {value}"))
    }

    /// Asks again until `done` or patience ends.
    pub fn until(&self, query: &str, done: impl Fn(f64) -> bool) -> f64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let number = self.number(query);
            if done(number) {
                return number;
            }
            assert!(
                Instant::now() < deadline,
                "`{query}` still answers {number}"
            );
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that this test started. By the shell's own `kill`: a small machine has no
/// other.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status();
    assert!(status.expect("sh runs").success());
}

/// Whether a program is there; a test that needs it and has it not says so and passes.
pub fn have(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: {program} is not installed (`make test` installs it)");
    }
    found
}

/// The newest file with this extension in each folder below `root`; files are named in their order.
pub fn newest_files(root: &Path, extension: &str) -> Vec<PathBuf> {
    let mut newest: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .expect("a folder")
            .map(|e| e.expect("an entry"))
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == extension) {
                let slot = newest.entry(folder.clone()).or_insert_with(|| path.clone());
                *slot = path.clone().max(slot.clone());
            }
        }
    }
    newest.into_values().collect()
}

/// What a power cut leaves behind the last acknowledged byte: garbage, or the beginning of a write.
pub fn tear(file: &Path, dice: &mut Dice) {
    let bytes = fs::read(file).expect("a file");
    let tail: Vec<u8> = match dice.below(3) {
        0 => vec![0; 1 + dice.below(4096)],
        1 => (0..1 + dice.below(300))
            .map(|n| (n * 37 % 251) as u8)
            .collect(),
        // A write that lies there already, cut short: right magic, wrong length and place.
        _ => bytes[..bytes.len().min(20 + dice.below(200))].to_vec(),
    };
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(file)
        .expect("a file");
    file.write_all(&tail).expect("written");
}
