//! The broker over TLS: who gets in, with which certificate and protocol, and what can change while it
//! runs.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use broker::{ClientCertificate, Limits, Stats, TlsSettings, Transport};
use common::certificates::{Asks, Authority, TLS_VERSIONS, Tls, dial_tls, secure};
use common::{Client, Setup, dial, qos1, start, until};
use mqtt::{Connect, QoS, ReasonCode, Version};
use rustls::HandshakeKind;

/// A listener that insists on a client certificate, and its settings.
fn start_mutual(authority: &Authority) -> (Setup, TlsSettings) {
    let settings = TlsSettings::new(authority.server(Asks::Insists));
    let transport = Transport::Tls(broker::Tls::new(settings.clone()));
    (start(transport, Limits::default()), settings)
}

/// A listener for clients with and without a certificate.
fn start_open(config: rustls::ServerConfig) -> Setup {
    let tls = broker::Tls {
        client_certificate: ClientCertificate::Optional,
        ..broker::Tls::new(TlsSettings::new(config))
    };
    start(Transport::Tls(tls), Limits::default())
}

fn enter(stream: Tls, name: &str) -> Client<Tls> {
    let mut client = Client::open(stream, Connect::new(Version::V5, name));
    assert_eq!(client.connack().reason, ReasonCode::Success);
    client
}

/// Sends CONNECT, and sees the connection end without MQTT.
fn expect_refusal(mut stream: Tls) {
    // With TLS 1.3 the client is done before the server has looked at its certificate.
    let _ = stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"");
}

fn failed(stats: &Stats, kind: &str) -> u64 {
    let kinds = stats.handshakes_failed();
    let (_, count) = kinds.iter().find(|(name, _)| *name == kind).expect(kind);
    *count
}

#[test]
fn a_client_with_a_certificate_gets_in_with_tls_1_2_and_1_3() {
    let authority = Authority::new();
    let (setup, _) = start_mutual(&authority);
    assert_eq!(setup.handle.listeners()[0].protocol, "mqtts");
    for version in TLS_VERSIONS {
        let own = authority.issue("car.example");
        let leaf = own.0[0].to_vec();
        let config = authority.client(&[version], Some(own), &[]);
        let mut car = enter(dial_tls(setup.addr, &config), "car");
        assert_eq!(
            setup.outside.last_certificate.lock().unwrap().as_ref(),
            Some(&leaf),
            "the hooks see the certificate"
        );
        car.subscribe("#", QoS::AtMostOnce);
        // Larger than a TLS record in both directions.
        let payload: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        car.send(qos1(1, "log/a", &payload));
        assert!(car.message().payload == payload);
        for done in setup.outside.tapped(1) {
            done.done(Ok(()));
        }
        assert_eq!(car.puback(), (1, ReasonCode::Success));
        assert_eq!(
            setup
                .handle
                .disconnect_principal("car", ReasonCode::AdministrativeAction),
            1
        );
        assert_eq!(car.farewell(), Some(ReasonCode::AdministrativeAction));
    }
    let counted = [
        ("tls12_full", 1),
        ("tls12_resumed", 0),
        ("tls13_full", 1),
        ("tls13_resumed", 0),
    ];
    assert_eq!(setup.handle.stats().handshakes(), counted);
}

#[test]
fn who_shows_no_certificate_or_one_of_a_stranger_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (setup, _) = start_mutual(&authority);
    let rows = [
        (None, "no_certificate"),
        (Some(stranger.issue("car.example")), "bad_certificate"),
    ];
    for (n, (own, kind)) in rows.into_iter().enumerate() {
        let config = authority.client(&[&rustls::version::TLS13], own, &[]);
        expect_refusal(dial_tls(setup.addr, &config));
        until("it is counted", || {
            setup.handle.stats().handshake_failures == n as u64 + 1
        });
        assert_eq!(failed(&setup.handle.stats(), kind), 1, "{kind}");
    }
    assert_eq!(setup.handle.stats().connects_accepted, 0);
}

#[test]
fn a_listener_that_requires_a_certificate_does_not_rely_on_its_settings() {
    let authority = Authority::new();
    let lax = TlsSettings::new(authority.server(Asks::Accepts));
    let setup = start(Transport::Tls(broker::Tls::new(lax)), Limits::default());
    for version in TLS_VERSIONS {
        expect_refusal(dial_tls(
            setup.addr,
            &authority.client(&[version], None, &[]),
        ));
    }
    until("both are counted", || {
        failed(&setup.handle.stats(), "no_certificate") == 2
    });
}

#[test]
fn a_certificate_can_be_optional_but_not_bad() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let setup = start_open(authority.server(Asks::Accepts));
    for version in TLS_VERSIONS {
        let own = authority.issue("car.example");
        let leaf = own.0[0].to_vec();
        for (own, seen) in [(Some(own), Some(leaf)), (None, None)] {
            let config = authority.client(&[version], own, &[]);
            enter(dial_tls(setup.addr, &config), "car").leave();
            assert_eq!(*setup.outside.last_certificate.lock().unwrap(), seen);
        }
        let own = Some(stranger.issue("car.example"));
        expect_refusal(dial_tls(
            setup.addr,
            &authority.client(&[version], own, &[]),
        ));
    }
    until("both strangers are counted", || {
        failed(&setup.handle.stats(), "bad_certificate") == 2
    });
}

#[test]
fn plain_mqtt_and_silence_on_a_tls_port_are_closed() {
    let authority = Authority::new();
    let limits = Limits {
        // Enough for the one that speaks to be heard on a slow machine.
        handshake_timeout: Duration::from_secs(3),
        ..Limits::default()
    };
    let settings = TlsSettings::new(authority.server(Asks::Insists));
    let setup = start(Transport::Tls(broker::Tls::new(settings)), limits);
    let silent = dial(setup.addr);
    let mut plain = dial(setup.addr);
    plain
        .write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
        .expect("taken");
    for mut stream in [silent, plain] {
        let mut answer = Vec::new();
        // The alert, an end or a reset: anything but MQTT.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"\x20"), "{answer:?}");
    }
    until("both are gone", || {
        setup.handle.stats().pending_connections == 0
    });
    let stats = setup.handle.stats();
    assert_eq!((stats.handshake_timeouts, stats.handshake_failures), (1, 1));
    assert_eq!(
        (failed(&stats, "timeout"), failed(&stats, "malformed")),
        (1, 1)
    );
}

#[test]
fn silent_sockets_do_not_take_the_turns_of_those_who_speak() {
    let authority = Authority::new();
    let settings = TlsSettings::new(authority.server(Asks::Insists));
    let limits = Limits {
        max_handshakes: 2,
        // None of the silent ones is closed for it while this test runs.
        handshake_timeout: Duration::from_secs(600),
        ..Limits::default()
    };
    let setup = start(Transport::Tls(broker::Tls::new(settings)), limits);
    let silent: Vec<_> = (0..20).map(|_| dial(setup.addr)).collect();
    until("they are in", || {
        setup.handle.stats().pending_connections == 20
    });
    let own = authority.issue("car.example");
    let config = authority.client(&TLS_VERSIONS, Some(own), &[]);
    enter(dial_tls(setup.addr, &config), "car").ping();
    assert_eq!(setup.handle.stats().handshake_timeouts, 0);
    drop(silent);
}

#[test]
fn certificate_key_and_trust_are_replaced_and_nobody_notices() {
    let (old, new) = (Authority::new(), Authority::new());
    let (setup, settings) = start_mutual(&old);
    let of_old = old.client(&TLS_VERSIONS, Some(old.issue("car-1.example")), &[]);
    let mut first = enter(dial_tls(setup.addr, &of_old), "car-1");
    first.subscribe("#", QoS::AtMostOnce);

    settings.replace(new.server(Asks::Insists));

    let of_new = new.client(&TLS_VERSIONS, Some(new.issue("car-2.example")), &[]);
    let mut second = enter(dial_tls(setup.addr, &of_new), "car-2");
    let shown = |client: &Client<Tls>| {
        let chain = client.stream.conn.peer_certificates();
        chain.expect("a certificate")[0].to_vec()
    };
    assert_ne!(shown(&first), shown(&second));
    // The client of the old certificate is where it was, and is served.
    second.send(qos1(1, "from/second", "to first"));
    assert_eq!(second.puback(), (1, ReasonCode::Success));
    assert_eq!(first.text(), "from/second: to first");
    first.send(qos1(2, "from/first", "still here"));
    assert_eq!(first.puback(), (2, ReasonCode::Success));
    assert_eq!(setup.handle.stats().connections, 2);

    // Its session is not resumed under the new trust: it is verified anew, and does not pass.
    let stranger = new.client(&TLS_VERSIONS, Some(old.issue("car-1.example")), &[]);
    expect_refusal(dial_tls(setup.addr, &stranger));
    expect_refusal(dial_tls(setup.addr, &of_old));
    until("both are counted, one by either end", || {
        let stats = setup.handle.stats();
        (
            failed(&stats, "bad_certificate"),
            failed(&stats, "refused_by_client"),
        ) == (1, 1)
    });
    first.ping();
}

#[test]
fn a_session_is_resumed_and_its_client_is_still_asked_who_it_is() {
    let authority = Authority::new();
    for (version, full) in TLS_VERSIONS.into_iter().zip(["tls12", "tls13"]) {
        let (setup, settings) = start_mutual(&authority);
        let own = authority.issue("car.example");
        let leaf = own.0[0].to_vec();
        let config = authority.client(&[version], Some(own), &[]);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            *setup.outside.last_certificate.lock().unwrap() = None;
            let client = enter(dial_tls(setup.addr, &config), "car");
            kinds.push(client.stream.conn.handshake_kind());
            client.leave();
            let seen = setup.outside.last_certificate.lock().unwrap().take();
            assert_eq!(seen.as_ref(), Some(&leaf), "with its certificate");
        }
        let resumed = Some(HandshakeKind::Resumed);
        assert_eq!(kinds, [Some(HandshakeKind::Full), resumed, resumed]);

        // A device that lost its access stays out, however it comes.
        setup.outside.barred.lock().unwrap().push("car".to_owned());
        let connect = Connect::new(Version::V5, "car");
        let mut client = Client::open(dial_tls(setup.addr, &config), connect);
        assert_eq!(client.connack().reason, ReasonCode::NotAuthorized);
        assert_eq!(client.stream.conn.handshake_kind(), resumed);

        // Settings with a storage of their own know no old session.
        settings.replace(authority.server(Asks::Insists));
        setup.outside.barred.lock().unwrap().clear();
        let client = enter(dial_tls(setup.addr, &config), "car");
        assert_eq!(
            client.stream.conn.handshake_kind(),
            Some(HandshakeKind::Full)
        );

        let expected = setup.handle.stats().handshakes().map(|(name, _)| {
            let count = match name.strip_prefix(full) {
                Some("_full") => 2,
                Some("_resumed") => 3,
                _ => 0,
            };
            (name, count)
        });
        assert_eq!(setup.handle.stats().handshakes(), expected);
    }
}

#[test]
fn a_new_certificate_of_the_same_trust_may_take_the_sessions_over() {
    let authority = Authority::new();
    let (setup, settings) = start_mutual(&authority);
    let config = authority.client(&TLS_VERSIONS, Some(authority.issue("car.example")), &[]);
    enter(dial_tls(setup.addr, &config), "car").leave();
    let mut renewed = authority.server(Asks::Insists);
    renewed.session_storage = settings.current().session_storage.clone();
    settings.replace(renewed);
    let client = enter(dial_tls(setup.addr, &config), "car");
    let kind = client.stream.conn.handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::Resumed));
}

#[test]
fn the_name_a_client_asks_for_chooses_the_certificate() {
    let authority = Authority::new();
    let names = ["mqtt.example", "cars.example"];
    let setup = start_open(authority.server_of(&names));
    let config = authority.client(&TLS_VERSIONS, None, &[]);
    for name in names {
        // The client checks that the certificate is of that name.
        enter(secure(dial(setup.addr), &config, name), "car").leave();
    }
    expect_refusal(secure(dial(setup.addr), &config, "other.example"));
    until("it is counted", || {
        failed(&setup.handle.stats(), "other") == 1
    });
}

#[test]
fn a_port_for_mqtt_alone_serves_who_asks_for_mqtt_or_for_nothing() {
    let authority = Authority::new();
    let setup = start_open(authority.server(Asks::Accepts));
    let rows: [(&[&str], Option<&[u8]>); 5] = [
        (&[], None),
        (&["mqtt"], Some(b"mqtt")),
        (&["x-amzn-mqtt-ca"], Some(b"x-amzn-mqtt-ca")),
        (&["h2", "mqtt"], Some(b"mqtt")),
        (&["x-amzn-mqtt-ca", "mqtt"], Some(b"mqtt")),
    ];
    for version in TLS_VERSIONS {
        for (asked, got) in rows {
            let config = authority.client(&[version], None, asked);
            let client = enter(dial_tls(setup.addr, &config), "car");
            assert_eq!(client.stream.conn.alpn_protocol(), got, "{asked:?}");
            client.leave();
        }
    }
    for (n, asked) in [&["http/1.1"][..], &["h2", "http/1.1"], &["MQTT"]]
        .iter()
        .enumerate()
    {
        expect_refusal(dial_tls(
            setup.addr,
            &authority.client(&TLS_VERSIONS, None, asked),
        ));
        until("it is counted", || {
            failed(&setup.handle.stats(), "no_protocol") == n as u64 + 1
        });
    }
}

#[test]
fn versions_are_what_the_settings_say() {
    let authority = Authority::new();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (chain, key) = authority.issue("localhost");
    let strict = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let setup = start_open(strict);
    enter(
        dial_tls(setup.addr, &authority.client(&[TLS_VERSIONS[1]], None, &[])),
        "car",
    )
    .leave();
    expect_refusal(dial_tls(
        setup.addr,
        &authority.client(&[TLS_VERSIONS[0]], None, &[]),
    ));
    until("it is counted", || {
        failed(&setup.handle.stats(), "incompatible") == 1
    });
}
