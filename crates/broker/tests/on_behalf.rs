//! Publishing in somebody's name without a connection.

mod common;

use broker::{Denied, Limits, Retain, Visitor};
use common::{
    Access, Client, Setup, Site, qos0, qos1, qos2, retained, start_tcp, start_with, stored, text,
    visitor, wait,
};
use mqtt::{Publish, QoS, ReasonCode, Version};

const V5: Version = Version::V5;

fn car(setup: &Setup) -> Visitor {
    visitor(setup, "http/car", "car").expect("let in")
}

/// What became of a message, in the words of PUBACK.
fn publish(setup: &Setup, message: &Publish) -> Result<(), ReasonCode> {
    wait(setup.handle.publish_as(&car(setup), message)).map_err(|denied| match denied {
        Denied::Reason(reason) => reason,
        other => panic!("{other}"),
    })
}

#[test]
fn goes_the_road_of_a_publish() {
    let setup = start_tcp();
    let mut app = Client::new(&setup, V5, "app");
    app.subscribe("#", QoS::AtLeastOnce);
    setup.outside.deny(Access::Publish, "car", "others/");
    let publish = |message| publish(&setup, &message);

    for message in [
        qos0("own/a", "1"),
        qos1(1, "own/a", "2"),
        qos2(1, "own/a", "3"),
    ] {
        assert_eq!(publish(message), Ok(()));
    }
    assert_eq!(app.texts(3), ["own/a: 1", "own/a: 2", "own/a: 3"]);
    for (topic, reason) in [
        ("others/a", ReasonCode::NotAuthorized),
        ("sour/a", ReasonCode::PayloadFormatInvalid),
        ("own/+", ReasonCode::TopicNameInvalid),
        ("", ReasonCode::TopicNameInvalid),
    ] {
        assert_eq!(publish(qos1(1, topic, "no")), Err(reason), "{topic}");
    }
    assert_eq!(publish(retained(qos1(1, "own/state", "kept"))), Ok(()));
    assert_eq!(
        app.text(),
        "own/state: kept",
        "nothing that was refused came before it"
    );
    assert_eq!(setup.handle.stats().dropped_unauthorized, 1);
}

#[test]
fn is_answered_when_the_tap_has_its_copy_and_with_what_it_says() {
    let setup = start_tcp();
    for (outcome, answer) in [
        (Ok(()), Ok(())),
        (
            Err(ReasonCode::QuotaExceeded),
            Err(ReasonCode::QuotaExceeded),
        ),
    ] {
        let (setup, outside) = (setup.again(), setup.outside.clone());
        let asked = std::thread::spawn(move || publish(&setup, &qos1(1, "log/a", "x")));
        for done in outside.tapped(1) {
            assert!(!asked.is_finished(), "answered before it is durable");
            done.done(outcome);
        }
        assert_eq!(asked.join().expect("no panic"), answer);
    }
    let outside = setup.outside.clone();
    let asked = std::thread::spawn(move || publish(&setup, &qos1(1, "log/a", "x")));
    drop(outside.tapped(1));
    let answer = asked.join().expect("no panic");
    assert_eq!(
        answer,
        Err(ReasonCode::UnspecifiedError),
        "a receipt was dropped"
    );
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let site = Site::new();
    let setup = site.open();
    let mut keeper = setup.enter(stored(V5, "keeper"));
    keeper.subscribe("own/#", QoS::AtLeastOnce);
    keeper.leave();
    let message = qos1(1, "own/a", "kept");
    assert_eq!(publish(&setup, &message), Ok(()));
    let setup = site.restart(setup);
    let mut keeper = setup.resume(stored(V5, "keeper"));
    assert_eq!(text(&keeper.take()), "own/a: kept");
}

#[test]
fn nothing_is_retained_where_nothing_is() {
    let setup = start_with(Limits {
        retain: Retain::Unavailable,
        ..Limits::default()
    });
    let mut app = Client::new(&setup, V5, "app");
    app.subscribe("#", QoS::AtMostOnce);
    // Below `log/` it would be tapped, and nobody says that it is durable.
    for topic in ["own/a", "log/a"] {
        for message in [retained(qos1(1, topic, "x")), retained(qos1(1, topic, ""))] {
            let answer = publish(&setup, &message);
            assert_eq!(answer, Err(ReasonCode::RetainNotSupported), "{topic}");
            assert_eq!(setup.handle.publish(&message), 0);
        }
    }
    assert_eq!(setup.handle.publish(&qos0("own/a", "end")), 1);
    assert_eq!(app.text(), "own/a: end");
}
