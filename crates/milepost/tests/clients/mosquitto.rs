//! The steps of `mosquitto_pub`, `mosquitto_sub` and `mosquitto_rr`, which are programs already.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use super::{Door, Run, World, both_versions, message, run, within_limit};

/// One run: its name, how it connects, what it published.
struct Story<'a> {
    world: &'a World,
    run: Run,
    title: String,
    said: super::Messages,
}

/// `mosquitto_sub` that is subscribed.
struct Subscriber {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Subscriber {
    fn next(&mut self) -> String {
        let mut line = String::new();
        // It ends itself after a while (`-W`).
        let bytes = self.lines.read_line(&mut line).expect("UTF-8");
        assert!(bytes > 0, "mosquitto_sub ended");
        line.trim_end().to_owned()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // It may have ended itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Story<'_> {
    fn topic(&self, name: &str) -> String {
        format!("dt/clients/{}/{}/{name}", self.title, super::VEHICLE)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let version = match self.run.version {
            "5" => "mqttv5",
            _ => "mqttv311",
        };
        command.args(["-h", "127.0.0.1", "-p", self.world.port(self.run.door)]);
        command.args(["-V", version]);
        if self.run.door.knows_certificates() {
            for (argument, file) in [
                ("--cafile", "ca.pem"),
                ("--cert", "cert.pem"),
                ("--key", "key.pem"),
            ] {
                command.arg(argument).arg(self.world.certificate(file));
            }
        }
        if self.run.transport.starts_with("ws") {
            command.arg("--ws");
        }
        command.args(self.run.more).args(arguments);
        command
    }

    /// What it printed; it must succeed.
    fn done(&self, program: &str, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = within_limit(&mut self.command(program, arguments));
        let title = &self.title;
        assert!(
            status.success(),
            "{title}: {program} {arguments:?}: {status}\n{stdout}{stderr}"
        );
        stdout
    }

    fn keep(&mut self, topic: &str, payload: &str, more: &[&str]) {
        let message = ["-t", topic, "-m", payload];
        self.done("mosquitto_pub", &[&message, more].concat());
        self.note(topic, payload);
    }

    fn note(&mut self, topic: &str, payload: &str) {
        let head: String = payload
            .bytes()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect();
        let head = if head.is_empty() { "-" } else { &head };
        self.said
            .push(message(topic, &payload.len().to_string(), head));
    }

    /// Prints topic, QoS, retained and payload of what comes, once it is subscribed. What it says about
    /// that itself waits in a buffer; a retained message for its last filter comes at once.
    fn subscriber(&self, topic: &str, more: &[&str]) -> Subscriber {
        let marker = self.topic("marker");
        let common = [
            "-W",
            "20",
            "-t",
            topic,
            "-t",
            &*marker,
            "-q",
            "2",
            "-F",
            "%t %q %r %p",
        ];
        let mut child = self
            .command("mosquitto_sub", &[&common, more].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto_sub starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut subscriber = Subscriber { child, lines };
        assert!(subscriber.next().ends_with("ready"));
        subscriber
    }
}

pub fn steps(mut world: World) {
    let mut runs = both_versions(&[
        (Door::Tcp, "mqtt"),
        (Door::Tls, "mqtts"),
        (Door::OnePort, "mqtts"),
    ]);
    runs.extend([
        run(Door::Tls, "mqtts", "5").with(&["--tls-version", "tlsv1.2"]),
        run(Door::Tls, "mqtts", "5").with(&["--tls-version", "tlsv1.3"]),
        run(Door::OnePort, "mqtts", "5").with(&["--tls-alpn", "mqtt"]),
        run(Door::OnePort, "mqtts", "3.1.1").with(&["--tls-alpn", "x-amzn-mqtt-ca"]),
    ]);
    let (_, help, _) = within_limit(Command::new("mosquitto_pub").arg("--help"));
    if help.contains("--ws") {
        // It knows no other path than `/mqtt`.
        runs.extend(both_versions(&[
            (Door::WebSocket, "ws"),
            (Door::OnePort, "wss"),
        ]));
    } else {
        let version = help.lines().nth(1).unwrap_or("this mosquitto_pub");
        eprintln!("skipped: no WebSocket in {version}; it came with 2.1");
    }
    for run in runs {
        let (door, more) = (run.door, run.more.concat());
        let title = format!("mosquitto-{door:?}-{}-{}{more}", run.transport, run.version);
        let mut story = Story {
            world: &world,
            run,
            title,
            said: Vec::new(),
        };
        story.tell();
        let said = story.said;
        world.said.extend(said);
    }
    world.everything_is_in_the_lake();
}

impl Story<'_> {
    fn tell(&mut self) {
        let five = self.run.version == "5";
        let marker = self.topic("marker");
        self.keep(&marker, "ready", &["-q", "1", "-r"]);

        let topic = self.topic("live");
        let mut subscriber = self.subscriber(&topic, &[]);
        for qos in ["0", "1", "2"] {
            let payload = format!("at {qos}");
            self.keep(&topic, &payload, &["-q", qos]);
            assert_eq!(subscriber.next(), format!("{topic} {qos} 0 {payload}"));
        }
        drop(subscriber);

        let topic = self.topic("retained");
        self.keep(&topic, "kept", &["-q", "1", "-r"]);
        let first = [
            "-t", &*topic, "-q", "1", "-C", "1", "-W", "20", "-F", "%r %p",
        ];
        assert_eq!(self.done("mosquitto_sub", &first), "1 kept\n");
        self.done("mosquitto_pub", &["-t", &topic, "-q", "1", "-r", "-n"]);
        self.note(&topic, "");
        let mut subscriber = self.subscriber(&topic, &[]);
        self.keep(&topic, "live", &["-q", "1"]);
        assert_eq!(subscriber.next(), format!("{topic} 1 0 live"));
        drop(subscriber);

        let (topic, id) = (self.topic("asleep"), format!("{}-sleeper", self.title));
        let session: &[&str] = match five {
            true => &["-c", "-x", "600"],
            false => &["-c"],
        };
        let session = [session, &["-i", &id, "-q", "2", "-t", &topic]].concat();
        self.done("mosquitto_sub", &[&session[..], &["-E"]].concat());
        for number in ["1", "2", "3"] {
            self.keep(&topic, number, &["-q", "2"]);
        }
        let resume = [&session[..], &["-C", "3", "-W", "20"]].concat();
        assert_eq!(self.done("mosquitto_sub", &resume), "1\n2\n3\n");

        let topic = self.topic("will");
        let mut watcher = self.subscriber(&topic, &[]);
        let will = [
            "--will-topic",
            &*topic,
            "--will-payload",
            "gone",
            "--will-qos",
            "1",
        ];
        // Dropped is killed: no DISCONNECT.
        drop(self.subscriber(&self.topic("nothing"), &will));
        assert_eq!(watcher.next(), format!("{topic} 1 0 gone"));
        self.note(&topic, "gone");
        drop(watcher);

        if five {
            self.request_and_response();
        }
        if self.run.door.knows_certificates() {
            self.refusals(five);
        }
    }

    fn request_and_response(&mut self) {
        let (requests, answers) = (self.topic("requests"), self.topic("answers"));
        let words = ["-F", "%R %D %C %P %p"];
        let mut responder = self.subscriber(&requests, &words);
        let properties = [
            ["-D", "publish", "correlation-data", "seven"],
            ["-D", "publish", "content-type", "text/plain"],
        ];
        let user = ["-D", "publish", "user-property", "colour", "red"];
        let request = [
            "-t", &*requests, "-e", &*answers, "-m", "ping", "-q", "1", "-W", "20",
        ];
        let request = [&request[..], &properties.concat(), &user].concat();
        let requester = self
            .command("mosquitto_rr", &request)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mosquitto_rr starts");
        assert_eq!(
            responder.next(),
            format!("{answers} seven text/plain colour:red ping")
        );
        self.note(&requests, "ping");
        self.keep(&answers, "pong", &properties[0]);
        let output = requester.wait_with_output().expect("it ends itself");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "pong\n");
    }

    fn refusals(&self, five: bool) {
        let foreign = format!("dt/clients/{}/{}/x", self.title, super::FOREIGN);
        let subscribe = ["-d", "-t", &*foreign, "-q", "1", "-W", "20"];
        let refused = match five {
            true => "135",
            false => "128",
        };
        let (_, stdout, stderr) = within_limit(&mut self.command("mosquitto_sub", &subscribe));
        let said = stdout + &stderr;
        assert!(
            said.contains(&format!("Subscribed (mid: 1): {refused}")),
            "{said}"
        );
        if five {
            for qos in ["1", "2"] {
                let publish = ["-t", &*foreign, "-m", "no", "-q", qos];
                let (_, stdout, stderr) =
                    within_limit(&mut self.command("mosquitto_pub", &publish));
                let said = stdout + &stderr;
                assert!(said.contains("Not authorized"), "QoS {qos}: {said}");
            }
        }
    }
}
