//! What is seen of bad weather: that good servers look good, and bad ones bad.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use fleet_sim::weather::{
    self, Place, Storm, Subject, WeatherError, WeatherOptions, WeatherReport,
};
use mqtt::{
    ConnAck, Decoder, Packet, PubAck, Publish, ReasonCode, SubAck, SubAckProperties, Version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What the server does when a client of a storm comes.
#[derive(Clone, Copy, PartialEq)]
enum Manners {
    /// Serves everybody.
    Good,
    /// Serves nobody for a while.
    Stalls,
    /// Turns it away.
    Refuses,
    /// Turns it away, and closes the connection of one good client.
    HitsOthers,
    /// Loses a message of somebody else.
    Loses,
}

const STALL: Duration = Duration::from_millis(600);

type Subscribers = HashMap<String, Vec<mpsc::UnboundedSender<Option<Publish>>>>;

/// A server that knows topics, and no wildcards.
#[derive(Default)]
struct Switchboard {
    subscribers: Subscribers,
    misdeed_due: bool,
    misdeed_done: bool,
}

async fn server(manners: Manners) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let board = Arc::new(Mutex::new(Switchboard::default()));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, Arc::clone(&board), manners));
        }
    });
    address
}

async fn serve(mut socket: TcpStream, board: Arc<Mutex<Switchboard>>, manners: Manners) {
    let mut decoder = Decoder::for_server(1 << 20);
    let (mut inbox, mut out) = (BytesMut::new(), BytesMut::new());
    let (tell, mut told) = mpsc::unbounded_channel::<Option<Publish>>();
    loop {
        while let Ok(Some(packet)) = decoder.decode(&mut inbox) {
            let answer: Packet = match packet {
                Packet::Connect(connect) if connect.client_id.starts_with("flapping") => {
                    board.lock().unwrap().misdeed_due = true;
                    if matches!(manners, Manners::Refuses | Manners::HitsOthers) {
                        ConnAck::refusal(ReasonCode::ServerBusy).into()
                    } else {
                        ConnAck::refusal(ReasonCode::Success).into()
                    }
                }
                Packet::Connect(_) => ConnAck::refusal(ReasonCode::Success).into(),
                Packet::Subscribe(subscribe) => {
                    for subscription in &subscribe.subscriptions {
                        let filter = subscription.filter.to_string();
                        let mut board = board.lock().unwrap();
                        let subscribers = board.subscribers.entry(filter).or_default();
                        subscribers.push(tell.clone());
                    }
                    let reasons = subscribe.subscriptions.iter();
                    SubAck {
                        packet_id: subscribe.packet_id,
                        reasons: reasons.map(|s| ReasonCode::granted(s.qos)).collect(),
                        properties: SubAckProperties::default(),
                    }
                    .into()
                }
                Packet::Publish(publish) => {
                    let id = publish.packet_id.unwrap();
                    route(&mut board.lock().unwrap(), *publish, manners);
                    PubAck::success(id).into()
                }
                Packet::Disconnect(_) => return,
                _ => continue, // acknowledgements
            };
            mqtt::encode(&answer, Version::V5, &mut out).unwrap();
        }
        if socket.write_all_buf(&mut out).await.is_err() {
            return;
        }
        tokio::select! {
            read = socket.read_buf(&mut inbox) => if !matches!(read, Ok(1..)) {
                return;
            },
            message = told.recv() => match message {
                Some(Some(publish)) => mqtt::encode(&publish.into(), Version::V5, &mut out).unwrap(),
                _ => return,
            },
        }
    }
}

fn route(board: &mut Switchboard, publish: Publish, manners: Manners) {
    let misdeed = board.misdeed_due && !board.misdeed_done;
    let subscribers = board.subscribers.get(&*publish.topic);
    for subscriber in subscribers.into_iter().flatten() {
        let message = match manners {
            Manners::HitsOthers if misdeed => None,
            Manners::Loses if misdeed => continue,
            _ => Some(publish.clone()),
        };
        let _ = subscriber.send(message);
    }
    if misdeed {
        board.misdeed_done = true;
        if manners == Manners::Stalls {
            // The whole runtime of the server, with the lock held: as bad as it gets.
            let (_kept, never) = std::sync::mpsc::channel::<()>();
            let _ = never.recv_timeout(STALL);
        }
    }
}

fn weather(manners: Manners) -> WeatherReport {
    watched_weather(manners, Subject::default())
}

/// Runs the storm against a server on a thread of its own.
fn watched_weather(manners: Manners, subject: Subject) -> WeatherReport {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tell.send(server(manners).await).unwrap();
            let _ = stopped.await;
        });
    });
    let options = WeatherOptions {
        pairs: 5,
        subject,
        ..options(told.recv().unwrap())
    };
    let report = weather::run(&options, |_| {}).unwrap();
    drop(stop);
    thread.join().unwrap();
    report
}

fn options(server: SocketAddr) -> WeatherOptions {
    WeatherOptions {
        place: Place {
            plain: server.into(),
            secure: None,
        },
        storm: Storm::Flapping,
        pairs: 1,
        rate: 50.0,
        quiet: Duration::from_millis(500),
        lasts: Duration::from_millis(1_000),
        after: Duration::from_millis(200),
        scale: 0.1,
        subject: Subject::default(),
    }
}

#[test]
fn a_good_server_looks_good() {
    let report = weather(Manners::Good);
    assert_eq!((report.lost, report.disconnected), (0, 0), "{report}");
    let (quiet, during) = (&report.quiet.latency, &report.during.latency);
    assert!(quiet.count() > 0 && during.count() > 0, "{report}");
    let seen = quiet.count() + during.count() + report.after.latency.count();
    let late = report.quiet.late.count() + report.during.late.count() + report.after.late.count();
    assert_eq!(late, report.sent, "{report}");
    assert_eq!(seen, report.sent, "{report}");
    assert_eq!(report.turned_away, 0, "{report}");
    assert!(!report.did.starts_with('0'), "{report}");
}

#[test]
fn a_stall_is_seen_by_all_messages_that_wait_for_it() {
    let report = weather(Manners::Stalls);
    assert_eq!((report.lost, report.disconnected), (0, 0), "{report}");
    let during = &report.during.latency;
    assert!(during.longest() >= STALL, "{report}");
    // 5 pairs at 50 messages a second were due meanwhile: 150 messages, and not the one that was open.
    assert!(during.quantile(0.8) > STALL / 10, "{report}");
}

#[test]
fn what_the_storm_is_told_is_counted() {
    let report = weather(Manners::Refuses);
    let told = report.met.iter().map(|(what, _)| what.as_str());
    assert_eq!(told.collect::<Vec<_>>(), ["CONNACK 0x89 Server busy"]);
    assert!(report.met[0].1 > 0);
    assert_eq!((report.lost, report.disconnected), (0, 0), "{report}");
}

#[test]
fn a_pair_that_is_cut_off_and_a_message_that_is_lost_are_seen() {
    let report = weather(Manners::HitsOthers);
    assert_eq!(report.disconnected, 1, "{report}");
    let report = weather(Manners::Loses);
    assert_eq!((report.lost, report.disconnected), (1, 0), "{report}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_that_uses_more_memory_than_it_promised_did_harm() {
    for (bound, broken) in [(1 << 20, true), (1 << 50, false)] {
        let subject = Subject {
            pid: Some(std::process::id()), // the server is a thread of it
            bound: Some(bound),
            ..Subject::default()
        };
        let report = watched_weather(Manners::Good, subject);
        let resident = report.resident.unwrap();
        assert!(resident.highest >= resident.quiet, "{resident:?}");
        assert_eq!(report.exceeds_bound(), broken, "{report}");
        assert_eq!(report.shows_harm(), broken, "{report}");
        assert_eq!(report.to_string().contains("EXCEEDS"), broken, "{report}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_at_once() {
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for options in [
        WeatherOptions {
            pairs: 0,
            ..options(nobody)
        },
        WeatherOptions {
            rate: f64::NAN,
            ..options(nobody)
        },
        WeatherOptions {
            scale: 2.0,
            ..options(nobody)
        },
        WeatherOptions {
            storm: Storm::BadCredentials,
            ..options(nobody)
        },
    ] {
        let error = weather::run(&options, |_| {}).unwrap_err();
        assert!(matches!(error, WeatherError::Options { .. }), "{error}");
    }
    // A storm that cannot be prepared says so, and nothing waits for it.
    let options = WeatherOptions {
        storm: Storm::SlowReaders,
        ..options(nobody)
    };
    let error = weather::run(&options, |_| {}).unwrap_err();
    assert!(matches!(error, WeatherError::Storm { .. }), "{error}");
    assert!("hail".parse::<Storm>().is_err());
}
