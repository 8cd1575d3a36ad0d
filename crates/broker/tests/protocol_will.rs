//! Wills: when they are published, when they wait and when they are forgotten (MQTT 5 sections
//! 3.1.2.5, 3.1.3.2, 3.14.4; MQTT 3.1.1 sections 3.1.2.5, 3.14.4).

mod common;

use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{
    Access, Client, QUALITIES, Setup, Site, VERSIONS, delayed, elapse, qos1, start_tcp, stored,
    text, with_will,
};
use mqtt::{Connect, Disconnect, PayloadFormat, QoS, ReasonCode, TopicName, Version};

const V3: Version = Version::V311;
const V5: Version = Version::V5;
const LEAST: QoS = QoS::AtLeastOnce;

/// Hears every will, and whatever comes after.
fn mourner(setup: &Setup) -> Client {
    let mut app = setup.client(V5, "mourner");
    app.subscribe("gone/#", QoS::ExactlyOnce);
    app.subscribe("the/end", LEAST);
    app
}

/// Whatever was to be published has been: the mourner hears nothing before this.
fn nothing_more(setup: &Setup, mourner: &mut Client) {
    setup.client(V5, "herald").publish(qos1(1, "the/end", ""));
    assert_eq!(mourner.text(), "the/end: ");
}

fn doomed(version: Version) -> Connect {
    with_will(Connect::new(version, "car"), "gone/car", "bye")
}

#[test]
fn the_will_of_a_broken_connection_is_published() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        setup.enter(doomed(version)).reset();
        assert_eq!(app.text(), "gone/car: bye");
        drop(setup.enter(doomed(version)));
        assert_eq!(app.text(), "gone/car: bye");
        let car = setup.enter(doomed(version));
        car.stream.shutdown(Shutdown::Write).expect("possible");
        assert_eq!(app.text(), "gone/car: bye");
    }
    setup.settled(1);
    nothing_more(&setup, &mut app);
    assert_eq!(setup.handle.stats().wills_published, 6);
}

#[test]
fn the_will_is_published_when_the_broker_ends_the_connection() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        // A protocol error, a malformed packet, an operator, and silence.
        let mut car = setup.enter(doomed(version));
        car.send(Connect::new(version, "car"));
        assert_eq!(app.text(), "gone/car: bye");
        let mut car = setup.enter(doomed(version));
        car.raw(b"\x00\x00");
        assert_eq!(app.text(), "gone/car: bye");
        let _car = setup.enter(doomed(version));
        let reason = ReasonCode::AdministrativeAction;
        assert_eq!(setup.handle.disconnect_principal("car", reason), 1);
        assert_eq!(app.text(), "gone/car: bye");
        let mut connect = doomed(version);
        connect.keep_alive = 1;
        let _car = setup.enter(connect);
        assert_eq!(app.text(), "gone/car: bye");
    }
}

#[test]
fn the_will_is_forgotten_when_the_client_says_goodbye() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        setup.enter(doomed(version)).leave();
        // Also that of a session that goes on, and later connections without a will.
        let connect = with_will(stored(version, "car"), "gone/car", "bye");
        setup.enter(connect).leave();
        setup.resume(stored(version, "car")).reset();
        setup.settled(1);
    }
    nothing_more(&setup, &mut app);
    assert_eq!(setup.handle.stats().wills_published, 0);
}

#[test]
fn every_other_reason_in_disconnect_publishes_the_will() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    let reasons = [
        ReasonCode::DisconnectWithWill,
        ReasonCode::UnspecifiedError,
        ReasonCode::MalformedPacket,
        ReasonCode::ImplementationSpecificError,
        ReasonCode::QuotaExceeded,
    ];
    for reason in reasons {
        setup.enter(doomed(V5)).leave_with(Disconnect::new(reason));
        assert_eq!(app.text(), "gone/car: bye", "{reason}");
    }
}

#[test]
fn a_will_goes_out_with_its_quality_and_properties_and_once() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        for qos in QUALITIES {
            let mut connect = doomed(version);
            let will = connect.will.as_mut().expect("set");
            will.qos = qos;
            will.payload = b"\x00\xff"[..].into();
            if version == V5 {
                let said = &mut will.properties;
                said.payload_format = Some(PayloadFormat::Unspecified);
                said.message_expiry_interval = Some(3600);
                said.content_type = Some("bytes".into());
                said.response_topic = Some(TopicName::parse("answers").expect("valid"));
                said.correlation_data = Some(b"c"[..].into());
                said.user_properties = vec![("b".into(), "1".into()), ("a".into(), "2".into())];
            }
            let sent = will.properties.clone();
            setup.enter(connect).reset();
            let got = app.take();
            assert_eq!((got.qos, got.retain, got.dup), (qos, false, false));
            assert_eq!(&got.payload[..], b"\x00\xff");
            let said = got.properties;
            assert_eq!(said.content_type, sent.content_type);
            assert_eq!(said.response_topic, sent.response_topic);
            assert_eq!(said.correlation_data, sent.correlation_data);
            assert_eq!(said.user_properties, sent.user_properties);
            assert_eq!(
                said.message_expiry_interval.is_some(),
                sent.message_expiry_interval.is_some()
            );
        }
    }
    setup.settled(1);
    nothing_more(&setup, &mut app);
}

#[test]
fn an_empty_will_is_a_will() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        let connect = with_will(Connect::new(version, "car"), "gone/car", "");
        setup.enter(connect).reset();
        assert_eq!(app.text(), "gone/car: ");
    }
}

#[test]
fn a_delayed_will_waits_its_time() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    let connect = with_will(stored(V5, "car"), "gone/car", "late");
    // More than the second by which the broker may be late.
    let car = setup.enter(delayed(connect, 3));
    let connected = Instant::now();
    car.reset();
    assert_eq!(app.text(), "gone/car: late");
    let waited = connected.elapsed();
    assert!(waited > Duration::from_millis(2900), "{waited:?}");
    assert_eq!(setup.handle.stats().wills_published, 1);
}

#[test]
fn coming_back_in_time_cancels_a_delayed_will() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    let connect = with_will(stored(V5, "car"), "gone/car", "late");
    setup.enter(delayed(connect, 4)).reset();
    setup.settled(1);
    let _car = setup.resume(stored(V5, "car"));
    elapse(Duration::from_secs(5));
    nothing_more(&setup, &mut app);
}

#[test]
fn a_delayed_will_does_not_outlast_its_session() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    // The session ends with the connection.
    setup.enter(delayed(doomed(V5), 3600)).reset();
    assert_eq!(app.text(), "gone/car: bye");
    // It expires before the delay is over.
    let mut connect = delayed(with_will(stored(V5, "car"), "gone/car", "expired"), 3600);
    connect.properties.session_expiry_interval = Some(1);
    setup.enter(connect).reset();
    assert_eq!(app.text(), "gone/car: expired");
    // It is thrown away by a clean start.
    let connect = delayed(with_will(stored(V5, "car"), "gone/car", "cleaned"), 3600);
    setup.enter(connect).reset();
    setup.settled(1);
    let _car = setup.client(V5, "car");
    assert_eq!(app.text(), "gone/car: cleaned");
}

#[test]
fn the_new_connection_brings_its_own_will() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        let first = with_will(stored(version, "car"), "gone/car", "first");
        setup.enter(first).leave();
        let second = with_will(stored(version, "car"), "gone/car", "second");
        setup.resume(second).reset();
        assert_eq!(app.text(), "gone/car: second");
        setup.settled(1);
    }
    nothing_more(&setup, &mut app);
}

#[test]
fn a_takeover_publishes_the_will_of_the_connection_that_ends() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    for version in VERSIONS {
        let _older = setup.enter(with_will(stored(version, "car"), "gone/car", "older"));
        let newer = setup.resume(with_will(stored(version, "car"), "gone/car", "newer"));
        assert_eq!(app.text(), "gone/car: older");
        newer.leave();
        setup.client(version, "car").leave();
    }
    setup.settled(1);
    nothing_more(&setup, &mut app);
}

#[test]
fn a_takeover_that_resumes_the_session_cancels_a_delayed_will() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    let connect = delayed(with_will(stored(V5, "car"), "gone/car", "late"), 2);
    let mut older = setup.enter(connect);
    let _newer = setup.resume(stored(V5, "car"));
    assert_eq!(older.farewell(), Some(ReasonCode::SessionTakenOver));
    elapse(Duration::from_secs(3));
    nothing_more(&setup, &mut app);
}

#[test]
fn session_expiry_0_in_disconnect_ends_the_wait_of_the_will() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    let connect = delayed(with_will(stored(V5, "car"), "gone/car", "now"), 3600);
    let mut disconnect = Disconnect::new(ReasonCode::DisconnectWithWill);
    disconnect.properties.session_expiry_interval = Some(0);
    setup.enter(connect).leave_with(disconnect);
    assert_eq!(app.text(), "gone/car: now");
}

#[test]
fn the_expiry_of_a_will_begins_when_it_is_published() {
    let setup = start_tcp();
    let mut connect = delayed(with_will(stored(V5, "car"), "gone/car", "late"), 4);
    let will = connect.will.as_mut().expect("set");
    will.properties.message_expiry_interval = Some(3600);
    let mut app = mourner(&setup);
    let car = setup.enter(connect);
    let connected = Instant::now();
    car.reset();
    let left = app.take().properties.message_expiry_interval;
    let left = left.expect("it expires");
    // Published after the delay; what it then waited in a slow broker is taken off.
    let since = connected
        .elapsed()
        .saturating_sub(Duration::from_millis(3990));
    let least = 3600 - 1 - since.as_secs() as u32;
    assert!((least..=3600).contains(&left), "{left} after {since:?}");
}

#[test]
fn a_will_that_may_not_be_published_is_not() {
    let setup = start_tcp();
    let mut app = mourner(&setup);
    // Allowed when the client came, forbidden when it goes.
    for version in VERSIONS {
        let principal = format!("car {version}");
        let car = setup.enter(with_will(
            Connect::new(version, principal.as_str()),
            "gone/car",
            "bye",
        ));
        setup.outside.deny(Access::Publish, &principal, "gone/");
        car.reset();
        setup.settled(1);
    }
    nothing_more(&setup, &mut app);
    assert_eq!(setup.handle.stats().wills_published, 0);
}

#[test]
fn a_will_reaches_sessions_that_are_away() {
    let setup = start_tcp();
    for version in VERSIONS {
        let mut app = setup.enter(stored(version, "app"));
        app.subscribe("gone/#", LEAST);
        app.leave();
        let mut connect = doomed(version);
        connect.will.as_mut().expect("set").qos = LEAST;
        setup.enter(connect).reset();
        setup.settled(0);
        let mut app = setup.resume(stored(version, "app"));
        assert_eq!(app.text(), "gone/car: bye");
        app.leave();
        setup.client(version, "app").leave();
        setup.settled(0);
    }
}

#[test]
fn the_will_of_a_stored_session_is_published_after_a_restart() {
    let site = Site::new();
    let setup = site.open();
    let mut app = setup.enter(stored(V5, "app"));
    app.subscribe("gone/#", LEAST);
    app.leave();
    let mut connect = delayed(with_will(stored(V5, "car"), "gone/car", "late"), 2);
    connect.will.as_mut().expect("set").qos = LEAST;
    setup.enter(connect).reset();
    setup.settled(0);
    let setup = site.restart(setup);
    let mut app = setup.resume(stored(V5, "app"));
    let got = app.take();
    assert_eq!((text(&got).as_str(), got.qos), ("gone/car: late", LEAST));
    // Once is enough.
    app.leave();
    let setup = site.restart(setup);
    let mut app = setup.resume(stored(V5, "app"));
    setup.client(V3, "herald").publish(qos1(1, "gone/end", ""));
    assert_eq!(app.text(), "gone/end: ");
}

#[test]
fn a_will_forgotten_before_a_restart_stays_forgotten() {
    let site = Site::new();
    let setup = site.open();
    let mut app = setup.enter(stored(V5, "app"));
    app.subscribe("gone/#", LEAST);
    app.leave();
    // Said goodbye; resumed without one.
    let connect = with_will(stored(V5, "polite"), "gone/polite", "bye");
    setup.enter(connect).leave();
    let connect = delayed(with_will(stored(V5, "back"), "gone/back", "late"), 3600);
    setup.enter(connect).reset();
    setup.settled(0);
    setup.resume(stored(V5, "back")).leave();
    let setup = site.restart(setup);
    let mut app = setup.resume(stored(V5, "app"));
    setup.client(V5, "herald").publish(qos1(1, "gone/end", ""));
    assert_eq!(app.text(), "gone/end: ");
}
