//! What can be known to be wrong before anything starts: ports in use, folders that can not be
//! written.
//!
//! All sockets are bound first and listen only when every one of them could be: nobody can connect
//! to half a server, and one run reports every port that is taken.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    config::{
        Config,
        document::Place,
        problem::{Problem, Problems},
    },
    sessions,
};

/// Connections the kernel holds until we accept them: a second of the largest connect storm we
/// serve. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Every socket of the server, listening.
pub struct Sockets {
    /// One for each configured MQTT listener, in order.
    pub mqtt: Vec<TcpListener>,
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
pub struct Reserved(Vec<(String, SocketAddr, Socket)>);

/// Checks the data folder and takes every address; on any problem none is kept.
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
        let mut listening = Vec::with_capacity(self.0.len());
        for (key, address, socket) in self.0 {
            match listen(socket) {
                Ok(listener) => listening.push(listener),
                Err(error) => problems.push(socket_problem(&key, address, &error)),
            }
        }
        // bind_all gives the HTTP and SQL sockets last.
        match (listening.pop(), listening.pop()) {
            (Some(sql), Some(http)) if problems.is_empty() => Ok(Sockets {
                mqtt: listening,
                http,
                sql,
            }),
            _ => Err(Problems(problems)),
        }
    }
}

fn bind_all(config: &Config, problems: &mut Vec<Problem>) -> Vec<(String, SocketAddr, Socket)> {
    let listeners = config
        .listeners
        .iter()
        .enumerate()
        .map(|(index, listener)| (format!("listener[{index}].bind"), listener.bind));
    let others = [
        ("http.bind".to_owned(), config.http.bind),
        ("sql.bind".to_owned(), config.sql.bind),
    ];
    let mut bound = Vec::new();
    for (key, address) in listeners.chain(others) {
        match bind(address) {
            Ok(socket) => bound.push((key, address, socket)),
            Err(error) => problems.push(socket_problem(&key, address, &error)),
        }
    }
    bound
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A server that restarts must not wait for connections of its former life to time out.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
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
