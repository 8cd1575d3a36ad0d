//! What a configuration says and what it may not say.

use std::{path::Path, time::Duration};

use broker::{Overflow, Retain, ShareStrategy};

use super::{
    listener::{Auth, TlsVersion, Transport},
    rate::Rate,
    *,
};

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
    assert!(matches!(
        listener.transport,
        Transport::Mqtts { path: None, .. }
    ));
    assert_eq!(listener.auth, Auth::Certificate);
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
        ("[mqtt]\nclient_message_rate_in = 500", "must be a string"),
        (
            "[mqtt]\nconnect_rate = \"500\"",
            "write \"500/s\" or \"500/s burst 2000\", or \"off\"",
        ),
        (
            "[mqtt]\nbyte_rate_in = \"500/s\"",
            "is not a size per second",
        ),
        (
            "[mqtt]\nmax_read_memory = \"512KiB\"",
            "512KiB is less than four times mqtt.max_packet_size, 4MiB",
        ),
        (
            "[mqtt]\nmax_session_memory = \"1MiB\"",
            "1MiB is less than twice mqtt.max_packet_size, 2MiB",
        ),
        (
            "[mqtt]\nmax_queue_memory = \"4MiB\"",
            "4MiB is less than mqtt.max_queued_bytes, 8MiB",
        ),
        (
            "[overload]\nmax_loop_delay = \"1ms\"",
            "outside of 20ms to 1m",
        ),
        ("[overload]\nretry_spread = \"off\"", "is not a duration"),
        ("[hold_off]\nfailures = 0", "outside of 1 to"),
        ("[hold_off]\nlast = \"1m\"", "did you mean `lasts`?"),
        ("[sys]\ninterval = \"100ms\"", "outside of 1s to 1h"),
        ("[mqtt]\ndurability = \"some\"", "is not a durability"),
    ];
    for (text, expected) in rows {
        let problems = parse(text).expect_err(text).to_string();
        assert!(problems.contains(expected), "{text}\n→ {problems}");
        assert!(problems.starts_with("milepost.toml:"), "{problems}");
    }
}

#[test]
fn a_listener_says_only_what_fits_together() {
    let rows = [
        (
            "protocol = \"tcp\"",
            "\"mqtt\", \"mqtts\", \"ws\", \"wss\" or \"quic\"",
        ),
        ("protocol = \"quic\"\npath = \"/mqtt\"", "has no WebSocket"),
        ("protocol = \"mqtt\"\npath = \"/mqtt\"", "has no WebSocket"),
        ("protocol = \"wss\"\npath = \"mqtt\"", "is not a path"),
        ("protocol = \"wss\"\npath = \"/a?b\"", "is not a path"),
        ("protocol = \"ws\"\nnames = [\"a\"]", "has no TLS"),
        ("protocol = \"mqtt\"\nmax_handshakes = 5", "has no TLS"),
        (
            "protocol = \"mqtt\"\n[[listener.certificate]]\nchain = \"a\"",
            "has no TLS",
        ),
        ("tls_min = \"1.1\"", "write \"1.2\" or \"1.3\""),
        (
            "protocol = \"quic\"\ntls_min = \"1.2\"",
            "is not what QUIC speaks",
        ),
        ("auth = [\"anonymous\", \"x509\"]", "is no order"),
        ("auth = []", "is no order"),
        (
            "protocol = \"ws\"\nauth = [\"x509\"]",
            "put a proxy in front",
        ),
        ("proxies = [\"10.0.0.0/8\"]", "write proxy_protocol = true"),
        (
            "bind = \"0.0.0.0:8883\"\nproxy_protocol = true",
            "listener[0].proxies: is needed",
        ),
        (
            "proxy_protocol = true\nproxies = []",
            "listener[0].proxies: is needed",
        ),
        (
            "proxy_protocol = true\nproxies = [\"10.1.0.0/8\"]",
            "10.0.0.0/8",
        ),
        (
            "protocol = \"quic\"\nproxy_protocol = true",
            "not spoken over QUIC",
        ),
        ("max_connections = 0", "outside of 1 to 10000000"),
        (
            "connect_rate = \"fast\"",
            "listener[0].connect_rate: \"fast\" is not a number per second",
        ),
        ("client_ca = [\"\"]", "holds an empty path"),
        (
            "[[listener.certificate]]\nchain = \"a.pem\"",
            "listener[0].certificate[0].key: is missing",
        ),
        (
            "[listener.certificate]\nchain = \"a.pem\"",
            "write `[[listener.certificate]]`",
        ),
        (
            "protocol = \"ws\"\nbind = \"0.0.0.0:80\"",
            "danger_plaintext",
        ),
    ];
    for (text, expected) in rows {
        let text = format!("[[listener]]\n{text}");
        let problems = parse(&text).expect_err(&text).to_string();
        assert!(problems.contains(expected), "{text}\n→ {problems}");
    }
    // A proxy on this machine brings people from elsewhere.
    let open = "[access]\nanonymous = \"allow-all\"\n[[listener]]\nprotocol = \"ws\"\n";
    parse(open).expect("a trial on loopback");
    let problems = parse(&format!("{open}proxy_protocol = true")).expect_err("open");
    assert!(
        problems.to_string().contains("danger_allow_open"),
        "{problems}"
    );
}

#[test]
fn every_transport_is_read_with_what_it_has() {
    let config = parse(
        "[[listener]]\nprotocol = \"mqtts\"\npath = \"/mqtt\"\nauth = [\"x509\", \"anonymous\"]\n\
         client_ca = [\"maker.pem\"]\ntls_min = \"1.3\"\n\
         [[listener.certificate]]\nchain = \"a.pem\"\nkey = \"a.key\"\n\
         [[listener.certificate]]\nchain = \"b.pem\"\nkey = \"b.key\"\n\
         [[listener]]\nprotocol = \"wss\"\nauth = [\"anonymous\"]\n\
         [[listener]]\nprotocol = \"ws\"\npath = \"/socket\"\n\
         [[listener]]\nprotocol = \"quic\"\nbind = \"127.0.0.1:8883\"\n\
         [[listener]]\nprotocol = \"mqtt\"\nproxy_protocol = true\nauth = [\"x509\"]\n\
         max_connections = 10\nconnect_rate = \"5/s\"\nbyte_rate_in = \"1MiB/s\"",
    )
    .expect("valid: TCP and UDP have ports of their own");
    let [mqtts, wss, ws, quic, mqtt] = &config.listeners[..] else {
        panic!("five listeners")
    };
    let Transport::Mqtts { tls, path } = &mqtts.transport else {
        panic!("mqtts")
    };
    assert_eq!(path.as_deref(), Some("/mqtt"));
    assert_eq!((tls.certificates.len(), tls.client_ca.len()), (2, 1));
    assert_eq!(tls.certificates[1].key, Path::new("b.key"));
    assert_eq!(tls.minimum, TlsVersion::V13);
    assert!(!tls.shows_fleet_certificate());
    assert_eq!(mqtts.auth, Auth::CertificateOrAnonymous);
    assert!(matches!(&wss.transport, Transport::Wss { path, .. } if path == "/mqtt"));
    assert_eq!(wss.auth, Auth::Anonymous);
    assert!(wss.transport.tls().expect("TLS").shows_fleet_certificate());
    assert_eq!(
        ws.transport,
        Transport::Ws {
            path: "/socket".into()
        }
    );
    assert!(matches!(&quic.transport, Transport::Quic { tls } if tls.minimum == TlsVersion::V13));
    assert_eq!(mqtt.auth, Auth::Certificate);
    let proxies = mqtt.proxies.as_ref().expect("proxies");
    let shown: Vec<String> = proxies.iter().map(ToString::to_string).collect();
    assert_eq!(shown.join(" "), "127.0.0.0/8 ::1");
    assert_eq!(mqtt.limits.max_connections, Some(10));
    assert_eq!(
        mqtt.limits.connect_rate.map(|rate| rate.burst.get()),
        Some(5)
    );
    assert_eq!(
        mqtt.limits.byte_rate_in.map(|rate| rate.per_second.get()),
        Some(1 << 20)
    );
    for (listener, port) in config.listeners.iter().zip([8883, 8084, 8083, 8883, 1883]) {
        assert_eq!(listener.bind.port(), port);
    }
}

#[test]
fn off_means_none() {
    let config = parse(
        "[mqtt]\nclient_message_rate_in = \"off\"\n[hold_off]\nlasts = \"off\"\n[sys]\ninterval = \"off\"",
    )
    .expect("valid");
    assert_eq!(config.mqtt.client_message_rate_in, None);
    assert_eq!(config.hold_off.lasts, None);
    assert_eq!(config.sys.interval, None);
    let config = parse("").expect("valid");
    let burst = |rate: Option<Rate>| rate.map(|rate| rate.burst.get());
    assert_eq!(burst(config.mqtt.client_message_rate_in), Some(100_000));
    assert_eq!(config.hold_off.lasts, Some(Duration::from_secs(300)));
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
    assert_eq!(config.listeners[0].transport, Transport::Mqtt);
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
        (
            "listener.certificate.",
            "[[listener]]\n[[listener.certificate]]\n",
        ),
        ("mqtt.", "[mqtt]\n"),
        ("overload.", "[overload]\n"),
        ("hold_off.", "[hold_off]\n"),
        ("sys.", "[sys]\n"),
        ("log.", "[log]\n"),
        ("lake.", "[lake]\n"),
    ] {
        let problems = parse(&format!("{header}qqqqqqqqqqqqqqqqqqqqqqqqqqqq = 1"));
        let problems = problems.expect_err("unknown").to_string();
        let (_, keys) = problems.split_once("the keys here are ").expect("a list");
        let keys = keys.lines().next().expect("a line");
        let refused = ["kafka"];
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
    assert!(compared > 40, "only {compared} rows were found");
}

/// What one client may have, all together must have room for: else the broker would not start.
#[test]
fn memory_of_all_clients_grows_with_that_of_one() {
    let config = parse("[mqtt]\nmax_packet_size = \"200MiB\"\nmax_queued_bytes = \"2GiB\"");
    let mqtt = config.expect("nothing is wrong").mqtt;
    assert_eq!(mqtt.max_read_memory.0, 800 << 20);
    assert_eq!(mqtt.max_session_memory.0, 1 << 30);
    assert_eq!(mqtt.max_queue_memory.0, 2 << 30);
}
