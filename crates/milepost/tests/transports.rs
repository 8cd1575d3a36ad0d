//! Ways into the real binary beyond plain TLS: behind a proxy, several names, one port for all. What
//! client libraries make of the transports themselves is in `clients.rs`.

mod harness;
mod wire;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use harness::Serving;
use mqtt::{Connect, ReasonCode, Version};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use wire::{Car, TlsClient, Wire, address, metric, tcp};

const REST: &str = "[http]\nbind = \"127.0.0.1:0\"\n[sql]\nbind = \"127.0.0.1:0\"\n\
     [overload]\nmax_loop_delay = \"1m\"\n";

/// PROXY protocol version 2, section 2.2: 203.0.113.9 connected to us over TLS, and its certificate, if
/// it showed one, was verified and has this common name.
fn proxy_header(common_name: Option<&str>) -> Vec<u8> {
    let mut tlvs = Vec::new();
    if let Some(name) = common_name {
        // PP2_TYPE_SSL: client flags (SSL, certificate in this connection), verify = 0, sub-TLV CN.
        let mut ssl = vec![0x01 | 0x02, 0, 0, 0, 0, 0x22];
        ssl.extend((name.len() as u16).to_be_bytes());
        ssl.extend(name.as_bytes());
        tlvs.push(0x20);
        tlvs.extend((ssl.len() as u16).to_be_bytes());
        tlvs.extend(ssl);
    }
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x21, 0x11]);
    header.extend((12 + tlvs.len() as u16).to_be_bytes());
    header.extend([203, 0, 113, 9, 10, 0, 0, 1]);
    header.extend(40_000u16.to_be_bytes());
    header.extend(8883u16.to_be_bytes());
    header.extend(tlvs);
    header
}

#[test]
fn behind_a_proxy_the_device_is_whom_the_proxy_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "[[listener]]\nprotocol = \"mqtt\"\nbind = \"127.0.0.1:0\"\nproxy_protocol = true\nauth = [\"x509\"]\n\
         [[listener]]\nprotocol = \"mqtt\"\nbind = \"127.0.0.1:0\"\nproxy_protocol = true\n\
         proxies = [\"192.0.2.0/24\"]\nauth = [\"x509\"]\n{REST}"
    );
    let serving = Serving::start(&folder.path().join("data"), &config);
    Car::register(&serving, 1);
    let through = |common_name: Option<&str>| {
        let mut stream = tcp(serving.mqtt);
        stream
            .write_all(&proxy_header(common_name))
            .expect("written");
        Wire::connect(stream, Connect::new(Version::V5, "app"))
    };
    for (common_name, reason) in [
        (Some("car-2-tcu"), ReasonCode::NotAuthorized),
        (None, ReasonCode::NotAuthorized),
        (Some("car-1-tcu"), ReasonCode::Success),
    ] {
        let (mut wire, answer) = through(common_name);
        assert_eq!(answer.reason, reason, "{common_name:?}");
        if reason == ReasonCode::Success {
            // As itself, from where it really is, with its own access and no other.
            let shown = serving.client_ok(&["client", "show", "car-1-tcu/app", "--json"]);
            let shown: Value = serde_json::from_str(&shown).expect("JSON");
            assert_eq!(shown["peer"], "203.0.113.9:40000");
            assert_eq!(shown["vehicle"], "car-1");
            assert_eq!(wire.publish("dt/a/b/car-1/c", "x"), ReasonCode::Success);
            assert_eq!(wire.subscribe("dt/+/+/car-2/#"), ReasonCode::NotAuthorized);
        }
    }
    // Disabled, the proxy's word is worth nothing.
    serving.client_ok(&["device", "disable", "car-1-tcu"]);
    assert_eq!(
        through(Some("car-1-tcu")).1.reason,
        ReasonCode::NotAuthorized
    );

    // Without a header, and from an address that is no proxy, nobody is heard.
    let closed = |mut stream: TcpStream, bytes: &[u8]| {
        // It may be closed before everything is written.
        let _ = stream.write_all(bytes);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    };
    closed(
        tcp(serving.mqtt),
        b"\x10\x10\0\x04MQTT\x05\x02\0\0\0\0\x03app",
    );
    let mut urls = serving.start_up.iter();
    let second = urls.rfind(|line| line.starts_with("listening on mqtt://"));
    let (_, second) = second
        .expect("a listener")
        .split_once("://")
        .expect("a URL");
    let second = second.parse().expect("an address");
    closed(tcp(second), &proxy_header(Some("car-1-tcu")));
    for reason in ["malformed", "stranger"] {
        let series = format!("milepost_mqtt_proxy_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(&serving, &series), Some(1.0), "{series}");
    }
}

#[test]
fn the_name_a_client_asks_for_decides_what_it_is_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let public = CertifiedIssuer::self_signed(params, key).expect("a CA");
    let mut shown = Vec::new();
    let mut files = String::new();
    for (number, name) in ["one.example", "*.fleet.example"].iter().enumerate() {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![(*name).to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &public).expect("signed");
        let file = |end: &str| folder.path().join(format!("{number}.{end}"));
        fs::write(file("pem"), certificate.pem()).expect("written");
        fs::write(file("key"), key.serialize_pem()).expect("written");
        let path = |end: &str| file(end).display().to_string();
        files.push_str(&format!(
            "[[listener.certificate]]\nchain = {:?}\nkey = {:?}\n",
            path("pem"),
            path("key")
        ));
        shown.push(certificate.der().to_vec());
    }
    let config = format!(
        "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\nauth = [\"anonymous\"]\n\
         names = [\"own.example\"]\ntls_min = \"1.3\"\n{files}{REST}"
    );
    let serving = Serving::start(&folder.path().join("data"), &config);
    let ca = serving.client_ok(&["cert", "ca"]);
    let at = address(&serving, "mqtts");
    let asking = |name: &str| TlsClient::new(&public.pem(), name, None).shown(at);
    assert_eq!(asking("one.example"), shown[0]);
    assert_eq!(asking("truck.fleet.example"), shown[1]);
    // The fleet CA's own is shown for its names beside those of the files.
    let own = TlsClient::new(&ca, "own.example", None).shown(at);
    assert!(!shown.contains(&own));
    let own = CertificateDer::from(own);
    let root = CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM");
    assert_ne!(own, root);
    // Unknown names get the first, which does not fit: the client refuses, not the server.
    let error = TlsClient::new(&public.pem(), "other.example", None).dial(at);
    let error = error.expect_err("not its name").to_string();
    assert!(error.contains("not valid for name"), "{error}");
    // Below 1.3 nobody speaks here.
    let old = TlsClient::speaking(&ca, "own.example", None, &[&rustls::version::TLS12]);
    let error = old.dial(at).expect_err("too old").to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[test]
fn one_port_serves_mqtt_and_tells_balancers_that_it_is_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\npath = \"/mqtt\"\n\
         auth = [\"x509\", \"anonymous\"]\n{REST}"
    );
    let serving = Serving::start(&folder.path().join("data"), &config);
    let car = Car::register(&serving, 1);
    let at = serving.mqtt;
    for protocol in ["mqtt", "x-amzn-mqtt-ca"] {
        let client = car.tls().asking_for(protocol);
        let wire = Wire::open(client.dial(at).expect("a handshake"), protocol);
        wire.leave();
    }
    let nobody = TlsClient::new(&car.ca, "localhost", None);
    let connect = Connect::new(Version::V5, "app");
    let (_, answer) = Wire::connect(nobody.dial(at).expect("a handshake"), connect);
    assert_eq!(
        answer.reason,
        ReasonCode::NotAuthorized,
        "anonymous is denied by default"
    );

    let get = |path: &str| {
        let client = TlsClient::new(&car.ca, "localhost", None).asking_for("http/1.1");
        let mut stream = client.dial(at).expect("a handshake");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let well = get("/healthz");
    assert!(
        well.starts_with("HTTP/1.1 200") && well.ends_with("ok\n"),
        "{well}"
    );
    assert!(get("/readyz").ends_with("ready\n"));
    // The API asks for no sign-in, so it is not here.
    for path in ["/api/v1/vehicles", "/metrics", "/"] {
        let answer = get(path);
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
}

/// The same port, for a device that speaks HTTP alone: as AWS IoT's HTTPS interface has it.
#[test]
fn a_device_publishes_over_https_with_its_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\npath = \"/mqtt\"\n\
         auth = [\"x509\", \"anonymous\"]\n[lake]\ncommit_every = \"500ms\"\n{REST}"
    );
    let serving = Serving::start(&folder.path().join("data"), &config);
    let car = Car::register(&serving, 1);
    let nobody = TlsClient::new(&car.ca, "localhost", None).asking_for("http/1.1");
    let device = car.tls().asking_for("http/1.1");
    let post = |client: &TlsClient, target: &str, more: &str| {
        let mut stream = client.dial(serving.mqtt).expect("a handshake");
        let body = "{\"time\": 1, \"signals\": {\"Vehicle.Speed\": 7}}";
        let request = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let own = "/topics/dt%2Fa%2Fb%2Fcar-1%2Ftelemetry";
    // [{"id":"over-https"}]
    let named = "x-amz-mqtt5-user-properties: W3siaWQiOiJvdmVyLWh0dHBzIn1d\r\n";
    let answer = post(&device, &format!("{own}?qos=1"), named);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"message\":\"OK\""), "{answer}");
    for (client, target, more, status, kind) in [
        (&nobody, own, "", "401", "UnauthorizedException"),
        (
            &device,
            "/topics/dt/a/b/car-2/telemetry",
            "",
            "403",
            "ForbiddenException",
        ),
        (
            &device,
            "/topics/dt/a/b/car-1/telemetry?qos=2",
            "",
            "400",
            "InvalidRequestException",
        ),
        (
            &device,
            own,
            "x-amz-mqtt5-user-properties: !\r\n",
            "400",
            "InvalidRequestException",
        ),
        (
            &device,
            "/topics/dt/a/+/car-1/telemetry",
            "",
            "400",
            "InvalidRequestException",
        ),
    ] {
        let answer = post(client, target, more);
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&expected), "{target}: {answer}");
        assert!(
            answer.contains(&format!("x-amzn-errortype: {kind}")),
            "{answer}"
        );
    }
    let kept =
        "SELECT count(*) FROM bronze.messages WHERE id = 'over-https' AND device_id = 'car-1-tcu'";
    serving.until(kept, |rows| rows == 1.0);
    let speed =
        "SELECT count(*) FROM signals WHERE signal = 'Vehicle.Speed' AND vehicle_id = 'car-1'";
    serving.until(speed, |rows| rows == 1.0);
}

/// What holds for connections of MQTT holds for requests, however long their connection stands already.
#[test]
fn over_https_too_the_banned_the_held_off_and_the_hasty_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "[[listener]]\nprotocol = \"mqtts\"\nbind = \"127.0.0.1:0\"\npath = \"/mqtt\"\n\
         [mqtt]\nclient_byte_rate_in = \"1B/s burst 100B\"\n{REST}"
    );
    let serving = Serving::start(&folder.path().join("data"), &config);
    let dial = |car: &Car| {
        let client = car.tls().asking_for("http/1.1");
        client.dial(serving.mqtt).expect("a handshake")
    };
    /// Publishes 100 bytes; the head of the answer, and its body.
    fn post(stream: &mut (impl Read + Write), number: u32) -> (String, Value) {
        let body = "x".repeat(100);
        let request = format!(
            "POST /topics/own%2Fcar-{number}%2Fx HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            head.extend(byte);
        }
        let head = String::from_utf8(head).expect("text");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok());
        let mut body = vec![0; length.expect("a length")];
        stream.read_exact(&mut body).expect("a body");
        (head, serde_json::from_slice(&body).expect("JSON"))
    }
    let retry_after = |head: &str| {
        let value = head
            .lines()
            .find_map(|line| line.strip_prefix("retry-after: "));
        value.and_then(|seconds| seconds.parse::<u64>().ok())
    };

    // A hundred seconds of its rate beyond the burst; others do not pay for it.
    let cars = [1, 2, 3].map(|number| Car::register(&serving, number));
    let mut hasty = dial(&cars[0]);
    post(&mut hasty, 1);
    let (head, body) = post(&mut hasty, 1);
    assert!(head.starts_with("HTTP/1.1 429"), "{head}");
    assert!(
        head.contains("x-amzn-errortype: ThrottlingException"),
        "{head}"
    );
    assert!(
        retry_after(&head).is_some_and(|seconds| seconds <= 120),
        "{head}"
    );
    let message = body["message"].as_str().expect("a message");
    assert!(message.contains("1 bytes per second"), "{message}");
    let series = "milepost_mqtt_throttled_total{rate=\"client_bytes_in\"}";
    assert_eq!(metric(&serving, series), Some(1.0));

    // Its connection stood before the ban came.
    let mut stolen = dial(&cars[1]);
    let (head, _) = post(&mut stolen, 2);
    assert!(!head.starts_with("HTTP/1.1 429"), "{head}");
    serving.client_ok(&["client", "ban", "address:127.0.0.1", "--reason", "stolen"]);
    let (head, body) = post(&mut stolen, 2);
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let message = body["message"].as_str().expect("a message");
    assert!(message.contains("address is banned"), "{message}");
    serving.client_ok(&["client", "unban", "address:127.0.0.1"]);

    // Ten attempts, then it is not asked any more; over MQTT neither.
    serving.client_ok(&["device", "disable", "car-3-tcu"]);
    let mut expelled = dial(&cars[2]);
    for _ in 0..10 {
        let (head, _) = post(&mut expelled, 3);
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    }
    let (head, body) = post(&mut expelled, 3);
    assert!(head.starts_with("HTTP/1.1 429"), "{head}");
    assert!(
        retry_after(&head).is_some_and(|seconds| seconds <= 300),
        "{head}"
    );
    let message = body["message"].as_str().expect("a message");
    assert!(message.contains("10 or more attempts"), "{message}");
    let stream = cars[2].tls().dial(serving.mqtt).expect("a handshake");
    let (_, answer) = Wire::connect(stream, Connect::new(Version::V5, "app"));
    assert_eq!(answer.reason, ReasonCode::ConnectionRateExceeded);
}
