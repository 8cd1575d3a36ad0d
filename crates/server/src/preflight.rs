//! What can be known to be wrong before anything starts: ports in use, folders that can not be
//! written, certificates that can not be read or do not fit their keys.
//!
//! All sockets are bound first and listen only when every one of them could be: nobody can connect
//! to half a server, and one run reports every port that is taken.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
};

use broker::Bind;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    config::{
        Config, Listener,
        document::Place,
        listener::Transport,
        problem::{Problem, Problems},
    },
    sessions,
    tls::{self, FileError},
};

/// Connections the kernel holds until we accept them: a second of the largest connect storm we
/// serve. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Every socket of the server, listening.
pub struct Sockets {
    /// One for each configured MQTT listener, in order.
    pub mqtt: Vec<Bind>,
    /// The HTTP API.
    pub http: TcpListener,
    /// The PostgreSQL wire port.
    pub sql: TcpListener,
}

/// Would this configuration start here? Opens no port and leaves nothing behind.
pub fn check(config: &Config) -> Result<(), Problems> {
    reserve(config).map(drop)
}

/// Every address taken, none of them listening yet: a connection is still refused.
pub struct Reserved(Vec<(String, SocketAddr, Taken)>);

/// A socket that has its address.
enum Taken {
    Stream(Socket),
    /// Has no state in which it listens: what comes early waits in its buffer.
    Datagrams(UdpSocket),
}

/// Checks data folder and certificates and takes every address; on any problem none is kept.
pub fn reserve(config: &Config) -> Result<Reserved, Problems> {
    let mut problems = Vec::new();
    problems.extend(folder_problem(
        &config.data_dir,
        "choose another with data_dir or --data-dir, or correct its owner and mode",
    ));
    // A part of it that somebody put there or made unwritable by hand.
    let sessions = sessions::folder(&config.data_dir);
    if problems.is_empty() && sessions.exists() {
        problems.extend(folder_problem(
            &sessions,
            "move it away, or correct its owner and mode",
        ));
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        problems.extend(certificate_problems(index, listener));
    }
    let bound = bind_all(config, &mut problems);
    match problems.is_empty() {
        true => Ok(Reserved(bound)),
        false => Err(Problems(problems)),
    }
}

impl Reserved {
    /// Opens the ports.
    pub fn listen(self) -> Result<Sockets, Problems> {
        let mut problems = Vec::new();
        let (mut mqtt, mut others) = (Vec::with_capacity(self.0.len()), Vec::new());
        for (key, address, taken) in self.0 {
            let opened = match taken {
                Taken::Datagrams(socket) => {
                    mqtt.push(socket.into());
                    Ok(())
                }
                Taken::Stream(socket) => listen(socket).map(|socket| match key.as_str() {
                    HTTP | SQL => others.push(socket),
                    _ => mqtt.push(socket.into()),
                }),
            };
            if let Err(error) = opened {
                problems.push(socket_problem(&key, address, &error));
            }
        }
        // bind_all gives SQL last.
        match (others.pop(), others.pop()) {
            (Some(sql), Some(http)) if problems.is_empty() => Ok(Sockets { mqtt, http, sql }),
            _ => Err(Problems(problems)),
        }
    }
}

const HTTP: &str = "http.bind";
const SQL: &str = "sql.bind";

fn bind_all(config: &Config, problems: &mut Vec<Problem>) -> Vec<(String, SocketAddr, Taken)> {
    let listeners = config
        .listeners
        .iter()
        .enumerate()
        .map(|(index, listener)| {
            let key = format!("listener[{index}].bind");
            let is_quic = matches!(listener.transport, Transport::Quic { .. });
            (
                key,
                listener.bind,
                if is_quic { bind_datagrams } else { bind },
            )
        });
    let others = [
        (HTTP.to_owned(), config.http.bind, bind as fn(_) -> _),
        (SQL.to_owned(), config.sql.bind, bind),
    ];
    let mut bound = Vec::new();
    for (key, address, bind) in listeners.chain(others) {
        match bind(address) {
            Ok(taken) => bound.push((key, address, taken)),
            Err(error) => problems.push(socket_problem(&key, address, &error)),
        }
    }
    bound
}

fn bind(address: SocketAddr) -> io::Result<Taken> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A server that restarts must not wait for connections of its former life to time out.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(Taken::Stream(socket))
}

fn bind_datagrams(address: SocketAddr) -> io::Result<Taken> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(Taken::Datagrams(socket))
}

/// Each file that a listener's TLS needs, tried as the start will.
fn certificate_problems(index: usize, listener: &Listener) -> Vec<Problem> {
    let Some(tls) = listener.transport.tls() else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    let mut found = |key: String, error: &FileError| {
        problems.push(Problem {
            place: Place::Machine,
            key: format!("listener[{index}].{key}"),
            message: error.to_string(),
            remedy: "correct the file or its mode, or name another".to_owned(),
        });
    };
    for (number, files) in tls.certificates.iter().enumerate() {
        if let Err(error) = tls::server_pair(files) {
            let key = match error.path() == files.key {
                true => "key",
                false => "chain",
            };
            found(format!("certificate[{number}].{key}"), &error);
        }
    }
    for file in &tls.client_ca {
        if let Err(error) = tls::authorities(file) {
            found("client_ca".to_owned(), &error);
        }
    }
    problems
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn socket_problem(key: &str, address: SocketAddr, error: &io::Error) -> Problem {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "stop the program that has it, or choose another port",
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up",
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine",
        _ => "choose another address",
    };
    Problem {
        place: Place::Machine,
        key: key.to_owned(),
        message: format!("cannot listen on {address}: {error}"),
        remedy: remedy.to_owned(),
    }
}

/// The folder must be there and writable, or be one that we can make.
fn folder_problem(folder: &Path, remedy: &str) -> Option<Problem> {
    let existing = folder
        .ancestors()
        .find(|path| path.exists() || path.as_os_str().is_empty())?;
    let existing = match existing.as_os_str().is_empty() {
        true => Path::new("."),
        false => existing,
    };
    let reason = match fs::metadata(existing) {
        Ok(metadata) if !metadata.is_dir() => "is not a folder".to_owned(),
        Ok(_) => match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
            Ok(()) => return None,
            Err(error) => format!("cannot be written: {error}"),
        },
        Err(error) => format!("cannot be read: {error}"),
    };
    Some(Problem {
        place: Place::Machine,
        key: "data_dir".to_owned(),
        message: format!("{} {reason}", existing.display()),
        remedy: remedy.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("t.toml"), text, std::iter::empty()).expect("valid")
    }

    #[test]
    fn every_port_in_use_is_named_and_no_other_port_is_opened() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address");
        let folder = tempfile::tempdir().expect("a folder");
        // The HTTP port is free, but must not be opened, for the SQL port is taken.
        let free = {
            let probe = TcpListener::bind("127.0.0.1:0").expect("a port");
            probe.local_addr().expect("its address")
        };
        let config = config(&format!(
            "data_dir = {:?}\n[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\n\
             [http]\nbind = \"{free}\"\n[sql]\nbind = \"{address}\"",
            folder.path().join("new").display().to_string()
        ));
        for result in [check(&config), reserve(&config).map(drop)] {
            let problems = result.expect_err("in use").to_string();
            assert!(
                problems.contains(&format!("sql.bind: cannot listen on {address}")),
                "{problems}"
            );
            assert!(problems.contains("choose another port"), "{problems}");
            assert_eq!(problems.lines().count(), 1, "{problems}");
        }
        std::net::TcpStream::connect(free).expect_err("nobody listens there");
    }

    #[test]
    fn certificates_are_read_and_held_against_their_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let write = |name: &str, text: &str| fs::write(path(name), text).expect("written");
        let (one, other) = (pair(), pair());
        write("one.pem", &one.0);
        write("one.key", &one.1);
        write("other.key", &other.1);
        write("leaf-as-ca.pem", &one.0);
        let text = |certificate: &str, more: &str| {
            format!(
                "data_dir = {:?}\n[http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n\
                 [[listener]]\nprotocol = \"wss\"\nbind = \"127.0.0.1:0\"\n{more}\n\
                 [[listener.certificate]]\nchain = {:?}\nkey = {:?}",
                path("data"),
                path("one.pem"),
                path(certificate)
            )
        };
        check(&config(&text("one.key", ""))).expect("a pair");
        let ca = format!("client_ca = [{:?}]", path("leaf-as-ca.pem"));
        for (certificate, more, key, says) in [
            (
                "other.key",
                "",
                "certificate[0].key",
                "does not hold the key of the certificate",
            ),
            ("missing.key", "", "certificate[0].key", "cannot read"),
            (
                "one.pem",
                "",
                "certificate[0].key",
                "holds no PEM private key",
            ),
            (
                "one.key",
                ca.as_str(),
                "client_ca",
                "holds a certificate that is no CA's",
            ),
        ] {
            let problems = check(&config(&text(certificate, more))).expect_err(says);
            let problems = problems.to_string();
            assert!(
                problems.contains(&format!("listener[0].{key}: ")),
                "{problems}"
            );
            assert!(problems.contains(says), "{problems}");
            assert_eq!(problems.lines().count(), 1, "{problems}");
        }
    }

    /// A certificate and its key, PEM.
    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]);
        let certificate = params.and_then(|params| params.self_signed(&key));
        (certificate.expect("signed").pem(), key.serialize_pem())
    }

    #[test]
    fn quic_takes_a_port_of_udp() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = |protocol: &str, address: SocketAddr| {
            format!(
                "data_dir = {:?}\n[http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n\
                 [[listener]]\nprotocol = \"{protocol}\"\nbind = \"{address}\"",
                folder.path().join("data").display().to_string()
            )
        };
        // The TCP port of the same number is anybody's: another test may take it at any time, but not that
        // of every try.
        let tries = (0..100).find_map(|_| {
            let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
            let address = taken.local_addr().expect("its address");
            let tcp_is_free = check(&config(&text("mqtts", address))).is_ok();
            tcp_is_free.then_some((taken, address))
        });
        let (_taken, address) = tries.expect("a taken port of UDP is none of TCP");
        let problems = check(&config(&text("quic", address)))
            .expect_err("in use")
            .to_string();
        assert!(
            problems.contains(&format!("listener[0].bind: cannot listen on {address}")),
            "{problems}"
        );
    }

    #[test]
    fn a_data_dir_below_a_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "x").expect("written");
        let config = config(&format!(
            "data_dir = {:?}\n[http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n\
             [[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"",
            file.join("data").display().to_string()
        ));
        let problems = check(&config).expect_err("a file").to_string();
        assert!(problems.contains("data_dir"), "{problems}");
        assert!(problems.contains("is not a folder"), "{problems}");
    }

    #[test]
    fn sessions_that_can_not_be_kept_are_found_before_the_start() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("sessions"), "x").expect("written");
        let config = config(&format!(
            "data_dir = {:?}\n[http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n\
             [[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"",
            folder.path().display().to_string()
        ));
        let problems = check(&config).expect_err("a file").to_string();
        assert!(problems.contains("sessions is not a folder"), "{problems}");
        assert!(problems.contains("move it away"), "{problems}");
    }
}
