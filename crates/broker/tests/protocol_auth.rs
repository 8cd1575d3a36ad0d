//! Enhanced authentication: the AUTH exchange in CONNECT, and again on an open connection (MQTT 5
//! sections 3.15, 4.12). The mechanisms are those of the outside in `common`.

mod common;

use std::time::Duration;

use broker::Limits;
use common::{Client, Setup, dial, qos0, qos1, start_tcp, start_with, stored, with_will};
use mqtt::{Auth, AuthProperties, ConnAck, Connect, Packet, QoS, ReasonCode, Version};

const V5: Version = Version::V5;

fn connect(name: &str, method: &str, data: Option<&str>) -> Connect {
    let mut connect = Connect::new(V5, name);
    connect.properties.authentication_method = Some(method.into());
    connect.properties.authentication_data = data.map(Into::into);
    connect
}

fn auth(reason: ReasonCode, method: &str, data: &str) -> Auth {
    Auth {
        reason,
        properties: AuthProperties {
            authentication_method: Some(method.into()),
            authentication_data: Some(data.into()),
            ..AuthProperties::default()
        },
    }
}

fn answer(data: &str) -> Auth {
    auth(ReasonCode::ContinueAuthentication, "riddle", data)
}

/// The broker's next AUTH.
fn asked(client: &mut Client) -> Auth {
    client.find("AUTH", |packet| match packet {
        Packet::Auth(auth) => Some(auth.clone()),
        _ => None,
    })
}

fn data(auth: &Auth) -> &[u8] {
    let method = auth.properties.authentication_method.as_deref();
    assert_eq!(method, Some("riddle"), "every AUTH names the method");
    // Nothing that could make it too large: the exchange is the mechanism's.
    assert_eq!(auth.properties.reason_string, None);
    assert_eq!(auth.properties.user_properties, []);
    auth.properties
        .authentication_data
        .as_ref()
        .map_or(&[], |data| data.as_bytes())
}

/// A client that has passed the riddle.
fn riddled(setup: &Setup, connect: Connect) -> (Client, ConnAck) {
    let mut car = Client::open(dial(setup.addr), connect);
    assert_eq!(asked(&mut car).reason, ReasonCode::ContinueAuthentication);
    car.send(answer("answer"));
    let ack = car.connack();
    assert_eq!(ack.reason, ReasonCode::Success);
    (car, ack)
}

#[test]
fn who_answers_the_challenge_is_let_in() {
    let setup = start_tcp();
    let mut car = Client::open(dial(setup.addr), connect("car", "riddle", Some("me")));
    let question = asked(&mut car);
    assert_eq!(question.reason, ReasonCode::ContinueAuthentication);
    assert_eq!(data(&question), b"riddle for me");
    car.send(answer("answer"));
    let ack = car.connack();
    assert_eq!(ack.reason, ReasonCode::Success);
    let said = ack.properties;
    assert_eq!(said.authentication_method.as_deref(), Some("riddle"));
    let last_word = said.authentication_data.expect("from the mechanism");
    assert_eq!(last_word.as_bytes(), b"welcome");
    car.subscribe("a", QoS::AtLeastOnce);
    car.publish(qos1(1, "a", "x"));
    assert_eq!(car.text(), "a: x");
}

#[test]
fn a_mechanism_may_be_content_with_connect() {
    let setup = start_tcp();
    let (mut car, ack) = setup.join(connect("car", "nod", None));
    assert_eq!(ack.reason, ReasonCode::Success);
    let said = ack.properties;
    assert_eq!(said.authentication_method.as_deref(), Some("nod"));
    assert_eq!(said.authentication_data, None);
    car.ping();
}

#[test]
fn who_answers_wrong_is_refused_and_closed() {
    let setup = start_tcp();
    let mut car = Client::open(dial(setup.addr), connect("car", "riddle", None));
    assert_eq!(data(&asked(&mut car)), b"riddle for ");
    car.send(answer("no idea"));
    let ack = car.connack();
    assert_eq!(ack.reason, ReasonCode::NotAuthorized);
    assert_eq!(car.next(), None);
    assert_eq!(setup.handle.stats().connections, 0);
}

#[test]
fn a_method_nobody_knows_is_refused() {
    let setup = start_tcp();
    let (mut car, ack) = setup.join(connect("car", "SCRAM-SHA-1", Some("n,,n=user")));
    assert_eq!(ack.reason, ReasonCode::BadAuthenticationMethod);
    assert_eq!(car.next(), None);
}

#[test]
fn another_method_in_the_middle_is_refused() {
    let setup = start_tcp();
    let mut car = Client::open(dial(setup.addr), connect("car", "riddle", None));
    asked(&mut car);
    car.send(auth(ReasonCode::ContinueAuthentication, "nod", "answer"));
    // Not DISCONNECT: that comes after a CONNACK with success only.
    let reason = car.connack().reason;
    let allowed = [
        ReasonCode::BadAuthenticationMethod,
        ReasonCode::ProtocolError,
    ];
    assert!(allowed.contains(&reason), "{reason}");
    assert_eq!(car.next(), None);
}

#[test]
fn only_auth_and_disconnect_may_come_before_connack() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    let mut car = Client::open(dial(setup.addr), connect("car", "riddle", None));
    asked(&mut car);
    car.send(qos0("a", "smuggled"));
    while let Some(packet) = car.next() {
        assert!(
            matches!(&packet, Packet::ConnAck(ack) if ack.reason.is_error()),
            "{packet:?}"
        );
    }
    // Giving up is allowed.
    let mut car = Client::open(dial(setup.addr), connect("car", "riddle", None));
    asked(&mut car);
    car.leave();
    setup.client(V5, "honest").publish(qos1(1, "a", "end"));
    assert_eq!(app.text(), "a: end");
    assert_eq!(setup.handle.stats().wills_published, 0);
}

#[test]
fn a_client_without_a_method_hears_and_says_no_auth() {
    let setup = start_tcp();
    let (mut car, ack) = setup.join(Connect::new(V5, "car"));
    assert_eq!(ack.properties.authentication_method, None);
    assert_eq!(ack.properties.authentication_data, None);
    car.send(auth(ReasonCode::ReAuthenticate, "riddle", ""));
    assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
    let mut car = setup.client(V5, "car");
    car.send(answer("answer"));
    assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
}

#[test]
fn a_connected_client_authenticates_again_and_is_served_meanwhile() {
    let setup = start_tcp();
    let (mut car, _) = riddled(&setup, connect("car", "riddle", None));
    car.subscribe("a", QoS::AtLeastOnce);
    for round in 0..3 {
        car.send(auth(ReasonCode::ReAuthenticate, "riddle", "again"));
        let question = asked(&mut car);
        assert_eq!(question.reason, ReasonCode::ContinueAuthentication);
        assert_eq!(data(&question), b"riddle for again");
        let payload = round.to_string();
        car.publish(qos1(1, "a", &payload));
        assert_eq!(car.text(), format!("a: {payload}"));
        car.send(answer("answer"));
        let done = asked(&mut car);
        assert_eq!(done.reason, ReasonCode::Success);
        assert_eq!(data(&done), b"welcome");
    }
    car.ping();
}

#[test]
fn who_fails_to_authenticate_again_is_closed_and_its_will_published() {
    let setup = start_tcp();
    let mut app = setup.client(V5, "app");
    app.subscribe("gone", QoS::AtMostOnce);
    for wrong in ["no idea", "impostor"] {
        let connect = with_will(connect("car", "riddle", None), "gone", wrong);
        let (mut car, _) = riddled(&setup, connect);
        car.send(auth(ReasonCode::ReAuthenticate, "riddle", ""));
        asked(&mut car);
        car.send(answer(wrong));
        let reason = car.farewell().expect("a reason");
        assert!(reason.is_error(), "{reason}");
        assert_eq!(app.text(), format!("gone: {wrong}"));
    }
}

#[test]
fn authenticating_again_needs_the_same_method() {
    let setup = start_tcp();
    let (mut car, _) = riddled(&setup, connect("car", "riddle", None));
    car.send(auth(ReasonCode::ReAuthenticate, "nod", ""));
    let reason = car.farewell().expect("a reason");
    let allowed = [
        ReasonCode::BadAuthenticationMethod,
        ReasonCode::ProtocolError,
    ];
    assert!(allowed.contains(&reason), "{reason}");
}

#[test]
fn an_answer_nobody_asked_for_ends_the_connection() {
    let setup = start_tcp();
    let (mut car, _) = riddled(&setup, connect("car", "riddle", None));
    car.send(answer("answer"));
    assert_eq!(car.farewell(), Some(ReasonCode::ProtocolError));
}

#[test]
fn a_client_that_never_answers_runs_out_of_time() {
    let setup = start_with(Limits {
        // Enough for the broker to ask on a slow machine.
        connect_timeout: Duration::from_secs(3),
        ..Limits::default()
    });
    let mut car = Client::open(dial(setup.addr), connect("car", "riddle", None));
    asked(&mut car);
    while let Some(packet) = car.next() {
        assert!(
            matches!(&packet, Packet::ConnAck(ack) if ack.reason.is_error()),
            "{packet:?}"
        );
    }
    setup.settled(0);
}

#[test]
fn a_session_is_resumed_and_taken_over_by_who_authenticates() {
    let setup = start_tcp();
    let persistent = || {
        let mut connect = connect("car", "riddle", None);
        let stored = stored(V5, "car");
        connect.clean_start = false;
        connect.properties.session_expiry_interval = stored.properties.session_expiry_interval;
        connect
    };
    let (mut first, ack) = riddled(&setup, persistent());
    assert!(!ack.session_present);
    first.subscribe("a", QoS::AtLeastOnce);
    // A challenge that is not answered throws nobody out.
    let mut stranger = Client::open(dial(setup.addr), persistent());
    asked(&mut stranger);
    first.ping();
    let (mut second, ack) = riddled(&setup, persistent());
    assert!(ack.session_present);
    assert_eq!(first.farewell(), Some(ReasonCode::SessionTakenOver));
    second.publish(qos1(1, "a", "x"));
    assert_eq!(second.text(), "a: x");
}

#[test]
fn several_clients_authenticate_side_by_side() {
    let setup = start_tcp();
    let mut cars: Vec<Client> = (0..6)
        .map(|n| {
            let name = format!("car {n}");
            Client::open(dial(setup.addr), connect(&name, "riddle", Some(&name)))
        })
        .collect();
    for (n, car) in cars.iter_mut().enumerate() {
        assert_eq!(data(&asked(car)), format!("riddle for car {n}").as_bytes());
    }
    for car in cars.iter_mut().rev() {
        car.send(answer("answer"));
        assert_eq!(car.connack().reason, ReasonCode::Success);
    }
}
