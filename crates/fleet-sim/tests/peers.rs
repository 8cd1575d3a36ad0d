//! The measuring client against a broker that only moves bytes: what it counts is what happened.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleet_sim::peers::echo::{Echo, Tamper};
use fleet_sim::peers::{
    Access, Common, Door, Flow, Idle, Keeping, Processes, Report, Requests, Shape, Storm,
};
use mqtt::{QoS, Version};

const ALL: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// Runs `work` with the door of an echo that tampers like this.
fn beside_an_echo<T>(tamper: Tamper, version: Version, work: impl FnOnce(&Door) -> T) -> T {
    let echo = Echo::bind(tamper).unwrap();
    let server = echo.address().unwrap().into();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let thread = std::thread::spawn(move || echo.serve(&told));
    let done = work(&Door::new(&server, version, Access::Plain).unwrap());
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap().unwrap();
    done
}

fn common(qos: QoS) -> Common {
    Common {
        qos,
        payload: 200,
        root: "bench".into(),
        warm_up: Duration::ZERO,
        lasts: Duration::from_millis(200),
        patience: Duration::from_secs(30),
        processes: Processes(vec![std::process::id()]),
    }
}

fn flow(shape: Shape, qos: QoS) -> Flow {
    let (publishers, readers) = match shape {
        Shape::FanIn => (20, 3),
        Shape::FanOut => (1, 20),
        Shape::Pairs => (10, 10),
    };
    Flow {
        common: common(qos),
        shape,
        publishers,
        readers,
        burst: 4,
        depth: 2,
        outstanding: 1_000,
        rate: None,
        requests: None,
        subscriptions: 0,
        keeping: Keeping::Clean,
    }
}

#[track_caller]
fn sound(report: &Report, qos: QoS) {
    assert!(report.sound(qos), "{report:?}");
    assert!(
        report.rate(qos).is_some_and(|rate| rate > 0.0),
        "{report:?}"
    );
    let tally = &report.tally;
    assert_eq!((tally.lost(), tally.duplicated, tally.alien), (0, 0, 0));
    assert_eq!(tally.received, tally.due);
    if qos != QoS::AtMostOnce {
        assert_eq!(tally.acknowledged, tally.sent);
    }
}

#[test]
fn what_is_moved_is_counted_once_in_every_shape_and_quality() {
    for shape in [Shape::FanIn, Shape::FanOut, Shape::Pairs] {
        for qos in ALL {
            for version in [Version::V311, Version::V5] {
                let flow = flow(shape, qos);
                let report =
                    beside_an_echo(Tamper::Nothing, version, |door| flow.run(door).unwrap());
                sound(&report, qos);
                let fan = if shape == Shape::FanOut { 20 } else { 1 };
                assert_eq!(report.tally.due, report.tally.sent * fan);
            }
        }
    }
}

#[test]
fn payloads_larger_than_the_sockets_buffers_come_whole() {
    let mut flow = flow(Shape::Pairs, QoS::AtLeastOnce);
    flow.common.payload = 200 * 1024;
    flow.burst = 8;
    let report = beside_an_echo(Tamper::Nothing, Version::V5, |door| flow.run(door).unwrap());
    sound(&report, QoS::AtLeastOnce);
}

#[test]
fn a_dropped_message_is_lost_and_there_is_no_rate() {
    for shape in [Shape::FanIn, Shape::FanOut, Shape::Pairs] {
        let mut flow = flow(shape, QoS::AtMostOnce);
        // What is lost never comes: this is how long it is waited for.
        flow.common.patience = Duration::from_secs(1);
        let tamper = Tamper::Drop { every: 97 };
        let report = beside_an_echo(tamper, Version::V311, |door| flow.run(door).unwrap());
        assert!(report.tally.lost() > 0, "{report:?}");
        assert_eq!(report.tally.duplicated, 0);
        assert_eq!(
            report.tally.lost() + report.tally.received,
            report.tally.due
        );
        assert_eq!(
            (
                report.rate(QoS::AtMostOnce),
                report.per_cpu_second(QoS::AtMostOnce)
            ),
            (None, None)
        );
    }
}

#[test]
fn a_doubled_message_is_seen_and_counted_once() {
    for shape in [Shape::FanIn, Shape::FanOut, Shape::Pairs] {
        let flow = flow(shape, QoS::AtLeastOnce);
        let tamper = Tamper::Double { every: 97 };
        let report = beside_an_echo(tamper, Version::V5, |door| flow.run(door).unwrap());
        let tally = &report.tally;
        assert_eq!(tally.duplicated, tally.due / 97, "{report:?}");
        assert_eq!((tally.lost(), tally.received), (0, tally.due));
        // Allowed by QoS 1, and by nothing else.
        assert!(report.rate(QoS::AtLeastOnce).is_some());
        assert_eq!(report.rate(QoS::ExactlyOnce), None);
    }
}

#[test]
fn a_message_that_nobody_sent_is_no_delivery() {
    let mut flow = flow(Shape::Pairs, QoS::AtMostOnce);
    flow.common.patience = Duration::from_secs(1);
    let tamper = Tamper::Forge { every: 97 };
    let report = beside_an_echo(tamper, Version::V311, |door| flow.run(door).unwrap());
    assert!(report.tally.alien > 0, "{report:?}");
    assert_eq!(report.tally.lost(), report.tally.alien);
    assert_eq!(report.rate(QoS::AtMostOnce), None);
}

#[test]
fn at_a_fixed_rate_every_message_and_every_answer_is_timed() {
    for qos in ALL {
        let mut flow = flow(Shape::Pairs, qos);
        flow.rate = Some(1_000.0);
        let report = beside_an_echo(Tamper::Nothing, Version::V5, |door| flow.run(door).unwrap());
        sound(&report, qos);
        let timed = report.latency.map(|latency| latency.count());
        assert_eq!(timed, Some(report.tally.received));

        flow.requests = Some(Requests {
            pairs: 3,
            rate: 500.0,
        });
        let report = beside_an_echo(Tamper::Nothing, Version::V5, |door| flow.run(door).unwrap());
        sound(&report, qos);
        let timed = report.latency.map(|latency| latency.count());
        assert!(timed.is_some_and(|timed| timed > 0 && timed < report.tally.received));
    }
}

#[test]
fn a_lost_answer_is_a_lost_request() {
    let mut flow = flow(Shape::Pairs, QoS::AtMostOnce);
    flow.common.patience = Duration::from_secs(1);
    flow.rate = Some(500.0);
    flow.requests = Some(Requests {
        pairs: 3,
        rate: 500.0,
    });
    let tamper = Tamper::Drop { every: 11 };
    let report = beside_an_echo(tamper, Version::V311, |door| flow.run(door).unwrap());
    assert!(report.tally.lost() > 0 && report.rate(QoS::AtMostOnce).is_none());
}

#[test]
fn clients_come_and_go_and_others_stay() {
    beside_an_echo(Tamper::Nothing, Version::V5, |door| {
        let storm = Storm {
            common: common(QoS::AtMostOnce),
            clients: 8,
        };
        let report = storm.run(door).unwrap();
        assert!(report.rate(QoS::AtMostOnce).is_some(), "{report:?}");
        assert_eq!(report.latency.unwrap().count(), report.window.count);
        let idle = Idle {
            common: common(QoS::AtLeastOnce),
            connections: 150,
        };
        let memory = idle.run(door).unwrap().memory.unwrap();
        assert_eq!(memory.connections, 150);
        assert!(memory.before > 0 && memory.after > 0);
    });
}

#[test]
fn options_that_make_no_sense_are_refused_before_anybody_connects() {
    let server = "127.0.0.1:9".parse().unwrap(); // nobody is there
    let door = Door::new(&server, Version::V5, Access::Plain).unwrap();
    let good = flow(Shape::Pairs, QoS::AtMostOnce);
    for (problem, bad) in [
        ("16 to", {
            let mut flow = good.clone();
            flow.common.payload = 15;
            flow
        }),
        ("topics below", {
            let mut flow = good.clone();
            flow.common.root = "a/+".into();
            flow
        }),
        (
            "as many readers",
            Flow {
                readers: 3,
                ..good.clone()
            },
        ),
        (
            "0 publishers",
            Flow {
                publishers: 0,
                readers: 0,
                ..good.clone()
            },
        ),
        (
            "a burst",
            Flow {
                burst: 0,
                ..good.clone()
            },
        ),
        (
            "one burst",
            Flow {
                outstanding: 3,
                ..good.clone()
            },
        ),
        (
            "the rate",
            Flow {
                rate: Some(0.0),
                ..good.clone()
            },
        ),
        (
            "fixed rate",
            Flow {
                requests: Some(Requests {
                    pairs: 1,
                    rate: 1.0,
                }),
                ..good
            },
        ),
    ] {
        let error = bad.run(&door).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}
