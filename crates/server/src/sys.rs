//! The broker's own figures as MQTT messages: the `$SYS/broker/…` topics, named as Mosquitto names them
//! wherever the meaning is the same, so that dashboards made for it work.
//!
//! Every interval all topics are published, retained, with an expiry of three intervals: figures of a
//! server that has stopped publishing them do not stay as if they were true. The broker keeps them in
//! memory alone: a server that has nothing to do writes nothing. Devices may not subscribe to them; who
//! has access to everything may.

use std::time::{Duration, Instant};

use broker::{BrokerHandle, Publish, QoS, Stats};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

/// Publishes until `stop`. `retained` as the configuration lets messages be retained at all.
pub async fn publish(
    broker: BrokerHandle,
    interval: Duration,
    retained: broker::Retain,
    stop: CancellationToken,
) {
    let mut clock = tokio::time::interval(interval);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut figures = Figures::new(Instant::now());
    let expiry = u32::try_from(interval.as_secs().saturating_mul(3)).unwrap_or(u32::MAX);
    loop {
        tokio::select! {
            () = stop.cancelled() => return, // cancel-safe: waiting on the token changes nothing
            _ = clock.tick() => {} // cancel-safe: a tick is taken or stays
        }
        let stats = broker.stats();
        let retain = retained == broker::Retain::Available;
        let topics = figures.topics(&stats, Instant::now());
        for (name, value) in topics {
            let mut message = Publish {
                dup: false,
                qos: QoS::AtMostOnce,
                retain,
                topic: format!("$SYS/broker/{name}").into(),
                packet_id: None,
                properties: Default::default(),
                payload: Bytes::from(value),
            };
            message.properties.message_expiry_interval = Some(expiry);
            broker.publish(&message);
        }
    }
}

/// Minutes of Mosquitto's load averages.
const MINUTES: [(&str, f64); 3] = [("1min", 1.0), ("5min", 5.0), ("15min", 15.0)];

/// A number that only grows.
type Counter = fn(&Stats) -> u64;

/// What is kept from one interval to the next.
struct Figures {
    began: Instant,
    before: Instant,
    maximum: u64,
    loads: Vec<Load>,
}

/// The averages of one counter: how much a minute, over one, five and fifteen minutes.
struct Load {
    name: &'static str,
    read: Counter,
    last: u64,
    averages: [f64; 3],
}

impl Figures {
    fn new(began: Instant) -> Self {
        let dropped = |stats: &Stats| stats.dropped().iter().map(|(_, count)| count).sum();
        let counters: [(&'static str, Counter); 8] = [
            ("messages/received", |stats| stats.packets_in),
            ("messages/sent", |stats| stats.packets_out),
            ("publish/received", Stats::messages_in),
            ("publish/sent", Stats::messages_out),
            ("publish/dropped", dropped),
            ("bytes/received", |stats| stats.bytes_in),
            ("bytes/sent", |stats| stats.bytes_out),
            ("connections", |stats| stats.connects_accepted),
        ];
        let loads = counters.map(|(name, read)| Load {
            name,
            read,
            last: 0,
            averages: [0.0; 3],
        });
        Self {
            began,
            before: began,
            maximum: 0,
            loads: loads.into(),
        }
    }

    /// Names below `$SYS/broker/` and their values.
    fn topics(&mut self, stats: &Stats, now: Instant) -> Vec<(String, String)> {
        let elapsed = now.duration_since(self.before).as_secs_f64();
        self.before = now;
        self.maximum = self.maximum.max(stats.connections);
        let disconnected = stats.sessions.saturating_sub(stats.connections);
        let dropped: u64 = stats.dropped().iter().map(|(_, count)| count).sum();
        let uptime = now.duration_since(self.began).as_secs();
        let numbers = [
            ("clients/total", stats.sessions),
            ("clients/connected", stats.connections),
            ("clients/active", stats.connections),
            ("clients/disconnected", disconnected),
            ("clients/inactive", disconnected),
            ("clients/maximum", self.maximum),
            ("clients/expired", stats.sessions_expired),
            ("messages/received", stats.packets_in),
            ("messages/sent", stats.packets_out),
            ("publish/messages/received", stats.messages_in()),
            ("publish/messages/sent", stats.messages_out()),
            ("publish/messages/dropped", dropped),
            ("bytes/received", stats.bytes_in),
            ("bytes/sent", stats.bytes_out),
            ("retained messages/count", stats.retained),
            ("subscriptions/count", stats.subscriptions),
            ("store/messages/count", stats.messages_kept),
            ("store/messages/bytes", stats.messages_kept_bytes),
        ];
        let mut topics: Vec<(String, String)> = numbers
            .into_iter()
            .map(|(name, number)| (name.to_owned(), number.to_string()))
            .collect();
        let version = concat!("milepost version ", env!("CARGO_PKG_VERSION"));
        topics.push(("version".to_owned(), version.to_owned()));
        topics.push(("uptime".to_owned(), format!("{uptime} seconds")));
        for load in &mut self.loads {
            load.advance((load.read)(stats), elapsed);
            for ((minutes, _), average) in MINUTES.iter().zip(load.averages) {
                topics.push((
                    format!("load/{}/{minutes}", load.name),
                    format!("{average:.2}"),
                ));
            }
        }
        topics
    }
}

impl Load {
    /// An exponential moving average, as the load of a Unix system is one.
    fn advance(&mut self, count: u64, elapsed_s: f64) {
        let new = count.saturating_sub(self.last) as f64;
        self.last = count;
        if elapsed_s <= 0.0 {
            return;
        }
        let per_minute = new * 60.0 / elapsed_s;
        for ((_, minutes), average) in MINUTES.iter().zip(&mut self.averages) {
            let keep = (-elapsed_s / (60.0 * minutes)).exp();
            *average = *average * keep + per_minute * (1.0 - keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_mosquitto() {
        let began = Instant::now();
        let mut figures = Figures::new(began);
        let stats = Stats::default();
        let topics = figures.topics(&stats, began + Duration::from_secs(75));
        let value = |name: &str| {
            let found = topics.iter().find(|(it, _)| it == name);
            found.map(|(_, value)| value.as_str())
        };
        for (name, expected) in [
            ("uptime", "75 seconds"),
            ("clients/connected", "0"),
            ("retained messages/count", "0"),
            ("publish/messages/dropped", "0"),
            ("load/messages/received/1min", "0.00"),
            ("load/bytes/sent/15min", "0.00"),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        assert!(value("version").is_some_and(|it| it.starts_with("milepost version ")));
        assert!(topics.iter().all(|(name, _)| !name.contains(['+', '#'])));
    }

    #[test]
    fn a_steady_load_is_what_all_averages_come_to() {
        let mut load = Load {
            name: "x",
            read: |_| 0,
            last: 0,
            averages: [0.0; 3],
        };
        for tick in 1..=1000 {
            load.advance(tick * 100, 10.0);
        }
        for average in load.averages {
            assert!((average - 600.0).abs() < 1.0, "{average} a minute");
        }
        // And then nothing: the short one forgets first.
        load.advance(load.last, 60.0);
        assert!(load.averages[0] < load.averages[1] && load.averages[1] < load.averages[2]);
    }
}
