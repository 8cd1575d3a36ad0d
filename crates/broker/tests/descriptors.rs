//! A process without file descriptors left. A test binary of its own: the bound holds for all of it.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::{Client, start_tcp, until};
use mqtt::{QoS, Version};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

#[test]
fn without_descriptors_the_new_are_turned_away_and_the_old_are_served() {
    let setup = start_tcp();
    let mut app = Client::new(&setup, Version::V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    let mut car = Client::new(&setup, Version::V5, "car");
    // Our own ends of the connections to come have theirs already.
    let dialling: Vec<Socket> = (0..3)
        .map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket"))
        .collect();
    let before = getrlimit(Resource::Nofile);
    let free = File::open("/dev/null").expect("there").as_raw_fd();
    let none_left = Rlimit {
        current: u64::try_from(free).ok(),
        ..before
    };
    setrlimit(Resource::Nofile, none_left).expect("may be lowered");
    // Whatever else is free is taken.
    let taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    for mut socket in &dialling {
        socket
            .connect(&setup.addr.into())
            .expect("the kernel takes it");
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("settable");
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert_eq!(answer, b"", "closed without a word");
        car.send(common::qos0("a", "still here"));
        assert_eq!(&app.message().payload[..], b"still here");
    }
    setrlimit(Resource::Nofile, before).expect("may be raised again");
    drop(taken);
    let stats = setup.handle.stats();
    assert_eq!(stats.refused_sockets, 3);
    assert!(stats.accept_failures >= 3);
    until("new ones are let in again", || {
        setup.handle.stats().pending_connections == 0
    });
    Client::new(&setup, Version::V5, "new").ping();
}
