//! Presence: who connected, left, failed to connect, subscribed, unsubscribed; as records and as messages.
//!
//! ```text
//! broker worker ─ hook ─► bounded queue ─► one thread ─┬► stream events.presence   (CloudEvents, durable)
//!                          full: counted               ├► $milepost/events/…       (this shape)
//!                                                      └► $aws/events/…            (AWS IoT's shape)
//! ```
//!
//! One queue (bounded in number and in bytes) and one thread, so events of a client stay in order; over all clients, `sequence` puts them in
//! order. A worker never waits: what does not fit is dropped and counted, and the gap is seen by nobody
//! but the counter, for sequence numbers may skip. The messages are QoS 1, so a service with a stored
//! session gets what happened while it was away.
//!
//! Topics. A client is kept under `{device}/{the client id it chose}`. `$milepost/events/…` ends in these
//! two as two levels; in the second, `/ + # %` are written `%2F %2B %23 %25`, so that it is always one.
//! Who failed to connect before anybody knew who it is has `~` for a device, which no device is called.
//! `$aws/events/…` ends in the chosen id as it is, and as with AWS a client whose id holds `+` or `#` makes
//! no event there.

use std::{
    fmt::Write as _,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use broker::{
    BrokerHandle, DisconnectedBy, Presence, PresenceEvent, Publish, QoS, ReasonCode, Traffic,
    Version,
};
use bytes::Bytes;
use eventlog::{Header, NewRecord, Stream};
use mqtt::TopicName;
use serde_json::{Map, Value, json};

use crate::http::timestamp;

/// The stream of presence events.
pub const STREAM: &str = "events.presence";

/// Events that can wait: all clients of a busy server coming back within a second.
const WAITING: usize = 16_384;
/// Bytes of these together. An ordinary event has 400; one of a client with long names has as many as it
/// likes, so they are bounded apart.
pub const MEMORY: u64 = 64 << 20;

/// In place of a device where it is not known who a client is.
const NOBODY: &str = "~";

/// The way of events to their thread. Clones are the same way.
#[derive(Clone)]
pub struct PresenceQueue {
    events: SyncSender<Item>,
    counters: Arc<PresenceCounters>,
}

/// Bytes that an event will take while it waits: itself, and its texts, each with its allocation.
fn weight(presence: &Presence<'_>) -> u64 {
    let texts = |texts: &[&str]| texts.iter().map(|text| text.len() + 32).sum();
    // The client id is kept whole and as the client chose it.
    let id = 2 * presence.client_id.len() + presence.requested_client_id.map_or(0, str::len);
    let more: usize = match presence.what {
        PresenceEvent::Subscribed { filters } | PresenceEvent::Unsubscribed { filters } => {
            texts(filters)
        }
        PresenceEvent::ConnectFailed { detail, .. } => detail.len(),
        _ => 0,
    };
    (size_of::<Event>() + 100 + id + more) as u64
}

/// What became of events.
#[derive(Debug, Default)]
pub struct PresenceCounters {
    /// Published and handed to the log.
    pub published: AtomicU64,
    /// Dropped because the queue was full.
    pub dropped: AtomicU64,
    /// Published, but not in the stream: the log was full or failed.
    pub not_logged: AtomicU64,
    /// Bytes that wait now.
    waiting_bytes: AtomicU64,
}

enum Item {
    /// With the bytes it counts for.
    Event(Box<Event>, u64),
    /// Nothing comes behind it.
    End,
}

/// The other end of the queue.
pub struct PresenceEvents(Receiver<Item>);

/// A queue and its end.
pub fn queue() -> (PresenceQueue, PresenceEvents) {
    let (events, receiver) = sync_channel(WAITING);
    let queue = PresenceQueue {
        events,
        counters: Arc::default(),
    };
    (queue, PresenceEvents(receiver))
}

impl PresenceQueue {
    /// Takes an event, or counts it as dropped. Never waits.
    pub fn push(&self, presence: &Presence<'_>) {
        let counters = &self.counters;
        let bytes = weight(presence);
        let waiting = counters.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = waiting <= MEMORY && {
            let event = Box::new(Event::of(presence));
            // Full, or the thread has ended with the server.
            self.events.try_send(Item::Event(event, bytes)).is_ok()
        };
        if !fits {
            counters.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of events so far.
    pub fn counters(&self) -> &PresenceCounters {
        &self.counters
    }

    /// Lets the thread end behind everything that was pushed before. Waits while the queue is full.
    pub fn end(&self) {
        // The thread may have ended already.
        let _ = self.events.send(Item::End);
    }
}

impl PresenceEvents {
    /// Starts the thread that publishes.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn publish(
        self,
        queue: &PresenceQueue,
        stream: Stream,
        broker: BrokerHandle,
    ) -> io::Result<JoinHandle<()>> {
        let counters = Arc::clone(&queue.counters);
        let thread = std::thread::Builder::new().name("presence".into());
        thread.spawn(move || {
            while let Ok(Item::Event(event, bytes)) = self.0.recv() {
                event.log(&stream, &counters);
                event.announce(&broker);
                counters.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
                counters.published.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}

/// An event as it waits: its own, for the broker's is borrowed.
struct Event {
    at_us: i64,
    sequence: u64,
    connection: u64,
    client_id: String,
    /// What the client calls itself.
    chosen: String,
    principal: Option<Arc<str>>,
    vehicle: Option<Arc<str>>,
    peer: SocketAddr,
    listener: String,
    what: What,
}

enum What {
    Connected {
        version: Version,
        clean_start: bool,
        keep_alive: u16,
        session_present: bool,
        transport: &'static str,
    },
    Disconnected {
        reason: ReasonCode,
        by: DisconnectedBy,
        will_published: bool,
        since_us: i64,
        traffic: Traffic,
    },
    ConnectFailed {
        reason: ReasonCode,
        detail: String,
    },
    Subscribed(Vec<String>),
    Unsubscribed(Vec<String>),
    /// Of a newer broker than this file knows.
    Other,
}

impl Event {
    fn of(presence: &Presence<'_>) -> Self {
        let principal = presence.identity.map(|identity| identity.principal.clone());
        // The broker's client id is `{principal}/{chosen}`, see `hooks`.
        let chosen = presence.requested_client_id.or_else(|| {
            let rest = presence.client_id.strip_prefix(principal.as_deref()?)?;
            rest.strip_prefix('/')
        });
        let own = |filters: &[&str]| filters.iter().map(|&filter| filter.to_owned()).collect();
        Self {
            at_us: presence.at_us,
            sequence: presence.sequence,
            connection: presence.connection,
            client_id: presence.client_id.to_owned(),
            chosen: chosen.unwrap_or(presence.client_id).to_owned(),
            principal,
            vehicle: presence
                .identity
                .and_then(|identity| identity.group.clone()),
            peer: presence.peer,
            listener: presence.listener.to_owned(),
            what: match presence.what {
                PresenceEvent::Connected {
                    version,
                    clean_start,
                    keep_alive,
                    session_present,
                    transport,
                } => What::Connected {
                    version,
                    clean_start,
                    keep_alive,
                    session_present,
                    transport,
                },
                PresenceEvent::Disconnected {
                    reason,
                    by,
                    will_published,
                    since_us,
                    traffic,
                } => What::Disconnected {
                    reason,
                    by,
                    will_published,
                    since_us,
                    traffic,
                },
                PresenceEvent::ConnectFailed { reason, detail } => What::ConnectFailed {
                    reason,
                    detail: detail.to_owned(),
                },
                PresenceEvent::Subscribed { filters } => What::Subscribed(own(filters)),
                PresenceEvent::Unsubscribed { filters } => What::Unsubscribed(own(filters)),
                _ => What::Other,
            },
        }
    }

    /// `presence` or `subscriptions`, and the event's name; as in the topics.
    fn kind(&self) -> Option<(&'static str, &'static str)> {
        Some(match self.what {
            What::Connected { .. } => ("presence", "connected"),
            What::Disconnected { .. } => ("presence", "disconnected"),
            What::ConnectFailed { .. } => ("presence", "connect_failed"),
            What::Subscribed(_) => ("subscriptions", "subscribed"),
            What::Unsubscribed(_) => ("subscriptions", "unsubscribed"),
            What::Other => return None,
        })
    }

    /// As a message below `$milepost/events/`, and the value of the record.
    fn to_json(&self, name: &str) -> Value {
        let mut body = Map::new();
        let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
        put("event", json!(name));
        put("time", json!(timestamp(self.at_us)));
        put("sequence", json!(self.sequence));
        put("connection", json!(self.connection));
        put("client_id", json!(self.client_id));
        put("client", json!(self.chosen));
        put("device", json!(self.principal));
        put("vehicle", json!(self.vehicle));
        put("peer", json!(self.peer.to_string()));
        put("listener", json!(self.listener));
        match &self.what {
            What::Connected {
                version,
                clean_start,
                keep_alive,
                session_present,
                transport,
            } => {
                put("transport", json!(transport));
                put("mqtt_version", json!(version_text(*version)));
                put("clean_start", json!(clean_start));
                put("keep_alive", json!(keep_alive));
                put("session_present", json!(session_present));
            }
            What::Disconnected {
                reason,
                by,
                will_published,
                since_us,
                traffic,
            } => {
                put("reason", json!(reason.name()));
                put("reason_code", json!(reason.as_u8()));
                put("by", json!(by.name()));
                put("will_published", json!(will_published));
                put("connected_since", json!(timestamp(*since_us)));
                put("messages_in", json!(traffic.messages_in));
                put("messages_out", json!(traffic.messages_out));
                put("bytes_in", json!(traffic.bytes_in));
                put("bytes_out", json!(traffic.bytes_out));
            }
            What::ConnectFailed { reason, detail } => {
                put("reason", json!(reason.name()));
                put("reason_code", json!(reason.as_u8()));
                put("detail", json!(detail));
            }
            What::Subscribed(filters) | What::Unsubscribed(filters) => {
                put("filters", json!(filters));
            }
            What::Other => {}
        }
        Value::Object(body)
    }

    /// In the shape of AWS IoT's lifecycle events.
    fn to_aws(&self, name: &str) -> Value {
        let mut body = json!({
            "clientId": self.chosen,
            "timestamp": self.at_us / 1000,
            "eventType": name,
            "sessionIdentifier": self.session_identifier(),
            "principalIdentifier": self.principal,
        });
        match &self.what {
            What::Connected { .. } => {
                body["ipAddress"] = json!(self.peer.ip().to_string());
                body["versionNumber"] = json!(self.connection);
            }
            What::Disconnected { by, .. } => {
                body["clientInitiatedDisconnect"] = json!(*by == DisconnectedBy::Client);
                body["disconnectReason"] = json!(aws_reason(*by));
                body["versionNumber"] = json!(self.connection);
            }
            What::ConnectFailed { reason, .. } => {
                body["ipAddress"] = json!(self.peer.ip().to_string());
                body["connectFailureReason"] = json!(aws_failure(*reason));
            }
            What::Subscribed(filters) | What::Unsubscribed(filters) => {
                body["topics"] = json!(filters);
            }
            What::Other => {}
        }
        body
    }

    /// The same in all events of a connection, another for each connection of each client.
    fn session_identifier(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.client_id.hash(&mut hasher);
        format!("{:016x}{:016x}", hasher.finish(), self.connection)
    }

    /// Appends the record.
    fn log(&self, stream: &Stream, counters: &Arc<PresenceCounters>) {
        let Some((_, name)) = self.kind() else {
            return;
        };
        let record = self.record(name);
        let partition = stream.partition_for(&record.key);
        let failed = Arc::clone(counters);
        let appended = stream.append(partition, record, move |outcome| {
            if outcome.is_err() {
                failed.not_logged.fetch_add(1, Ordering::Relaxed);
            }
        });
        if appended.is_err() {
            counters.not_logged.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn record(&self, name: &str) -> NewRecord {
        let source = match (&self.vehicle, &self.principal) {
            (Some(vehicle), Some(device)) => format!("/vehicles/{vehicle}/devices/{device}"),
            _ => format!("/clients/{}", escaped(&self.client_id, is_plain_in_uri)),
        };
        let header = |name: &'static str, value: String| -> Header {
            (Bytes::from_static(name.as_bytes()), Bytes::from(value))
        };
        let mut headers = vec![
            header("ce_specversion", "1.0".into()),
            header("ce_id", self.sequence.to_string()),
            header("ce_source", source),
            header("ce_type", format!("com.milepost.client.{name}")),
            header("ce_subject", self.client_id.clone()),
            header("ce_time", timestamp(self.at_us)),
            header("content-type", "application/json".into()),
            // Extension "sequence" of CloudEvents.
            header("ce_sequence", format!("{:020}", self.sequence)),
        ];
        if let Some(vehicle) = &self.vehicle {
            headers.push(header("ce_vehicleid", vehicle.to_string()));
        }
        if let (Some(device), Some(_)) = (&self.principal, &self.vehicle) {
            headers.push(header("ce_deviceid", device.to_string()));
        }
        let key = self.vehicle.as_deref().unwrap_or(&self.client_id);
        NewRecord {
            key: Bytes::copy_from_slice(key.as_bytes()),
            time_us: self.at_us,
            headers,
            value: Bytes::from(self.to_json(name).to_string()),
        }
    }

    /// Publishes the messages.
    fn announce(&self, broker: &BrokerHandle) {
        let Some((group, name)) = self.kind() else {
            return;
        };
        let device = self.principal.as_deref().unwrap_or(NOBODY);
        let client = escaped(&self.chosen, |c| !matches!(c, '/' | '+' | '#' | '%' | '\0'));
        let topic = format!("$milepost/events/{group}/{name}/{device}/{client}");
        publish(broker, &topic, &self.to_json(name));
        if !self.chosen.contains(['+', '#', '\0']) {
            let topic = format!("$aws/events/{group}/{name}/{}", self.chosen);
            publish(broker, &topic, &self.to_aws(name));
        }
    }
}

fn publish(broker: &BrokerHandle, topic: &str, body: &Value) {
    // A topic has 65,535 bytes at most, and a client id may have as many: then it is in the stream only.
    let Ok(topic) = TopicName::parse(topic) else {
        return;
    };
    broker.publish(&Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: topic.into(),
        packet_id: None,
        properties: Default::default(),
        payload: Bytes::from(body.to_string()),
    });
}

/// Everything that is not plain as `%` and two hexadecimal digits per byte.
fn escaped(text: &str, is_plain: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            escaped.push(c);
            continue;
        }
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// Of a path in a URI reference (RFC 3986 section 3.3), the slash among them.
fn is_plain_in_uri(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '.' | '_' | '~' | ':' | '@')
}

/// The version as people write it.
pub fn version_text(version: Version) -> &'static str {
    match version {
        Version::V311 => "3.1.1",
        Version::V5 => "5",
    }
}

fn aws_reason(by: DisconnectedBy) -> &'static str {
    match by {
        DisconnectedBy::Client => "CLIENT_INITIATED_DISCONNECT",
        DisconnectedBy::ClientError => "CLIENT_ERROR",
        DisconnectedBy::Network => "CONNECTION_LOST",
        DisconnectedBy::KeepAlive => "MQTT_KEEP_ALIVE_TIMEOUT",
        DisconnectedBy::Takeover => "DUPLICATE_CLIENTID",
        DisconnectedBy::Authentication => "AUTH_ERROR",
        DisconnectedBy::Access => "FORBIDDEN_ACCESS",
        DisconnectedBy::Throttled => "THROTTLED",
        DisconnectedBy::Operator => "API_INITIATED_DISCONNECT",
        DisconnectedBy::Shutdown => "SERVER_INITIATED_DISCONNECT",
        DisconnectedBy::Server => "SERVER_ERROR",
        _ => "UNKNOWN",
    }
}

fn aws_failure(reason: ReasonCode) -> &'static str {
    match reason {
        ReasonCode::NotAuthorized | ReasonCode::Banned => "AUTHORIZATION_FAILED",
        ReasonCode::BadUserNameOrPassword | ReasonCode::BadAuthenticationMethod => {
            "AUTHENTICATION_FAILED"
        }
        ReasonCode::QuotaExceeded
        | ReasonCode::ServerBusy
        | ReasonCode::ConnectionRateExceeded
        | ReasonCode::MessageRateTooHigh => "THROTTLED",
        ReasonCode::ServerUnavailable
        | ReasonCode::ServerShuttingDown
        | ReasonCode::UnspecifiedError
        | ReasonCode::ImplementationSpecificError => "SERVER_ERROR",
        _ => "CLIENT_ERROR",
    }
}

#[cfg(test)]
mod tests {
    use broker::Identity;

    use super::*;

    fn event(identity: Option<&Identity>, client_id: &str, what: PresenceEvent<'_>) -> Event {
        Event::of(&Presence {
            identity,
            client_id,
            requested_client_id: identity.is_none().then_some(client_id),
            peer: ([192, 0, 2, 7], 4711).into(),
            listener: "mqtts-0",
            at_us: 1_800_000_000_123_456,
            sequence: 41,
            connection: 7,
            what,
        })
    }

    fn car() -> Identity {
        Identity::new("tcu-1/app", "tcu-1").with_group("car-1")
    }

    fn connected() -> PresenceEvent<'static> {
        PresenceEvent::Connected {
            version: Version::V5,
            clean_start: true,
            keep_alive: 30,
            session_present: false,
            transport: "mqtts",
        }
    }

    fn disconnected(by: DisconnectedBy) -> PresenceEvent<'static> {
        PresenceEvent::Disconnected {
            reason: ReasonCode::SessionTakenOver,
            by,
            will_published: true,
            since_us: 1_800_000_000_000_000,
            traffic: Traffic::default(),
        }
    }

    #[test]
    fn a_connect_and_its_end_are_a_pair_in_the_shape_of_aws() {
        let car = car();
        let one = event(Some(&car), "tcu-1/app", connected()).to_aws("connected");
        assert_eq!(
            one,
            json!({
                "clientId": "app",
                "timestamp": 1_800_000_000_123_i64,
                "eventType": "connected",
                "sessionIdentifier": one["sessionIdentifier"],
                "principalIdentifier": "tcu-1",
                "ipAddress": "192.0.2.7",
                "versionNumber": 7,
            })
        );
        let end = disconnected(DisconnectedBy::Takeover);
        let end = event(Some(&car), "tcu-1/app", end).to_aws("disconnected");
        assert_eq!(end["sessionIdentifier"], one["sessionIdentifier"]);
        assert_eq!(end["versionNumber"], one["versionNumber"]);
        assert_eq!(end["disconnectReason"], "DUPLICATE_CLIENTID");
        assert_eq!(end["clientInitiatedDisconnect"], false);
        assert_eq!(end.get("ipAddress"), None);
        let other = event(Some(&car), "tcu-1/other", connected()).to_aws("connected");
        assert_ne!(other["sessionIdentifier"], one["sessionIdentifier"]);
    }

    #[test]
    fn a_record_is_a_cloud_event_of_the_vehicle() {
        let car = car();
        let filters = ["bc/#", "dt/+/+/car-1/#"];
        let what = PresenceEvent::Subscribed { filters: &filters };
        let record = event(Some(&car), "tcu-1/app", what).record("subscribed");
        assert_eq!(record.key, "car-1");
        let header = |name: &str| {
            let found = record.headers.iter().find(|(it, _)| it == name.as_bytes());
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        for (name, value) in [
            ("ce_specversion", "1.0"),
            ("ce_id", "41"),
            ("ce_source", "/vehicles/car-1/devices/tcu-1"),
            ("ce_type", "com.milepost.client.subscribed"),
            ("ce_subject", "tcu-1/app"),
            ("ce_sequence", "00000000000000000041"),
            ("ce_vehicleid", "car-1"),
            ("ce_deviceid", "tcu-1"),
            ("content-type", "application/json"),
        ] {
            assert_eq!(header(name).as_deref(), Some(value), "{name}");
        }
        let body: Value = serde_json::from_slice(&record.value).expect("JSON");
        assert_eq!(body["filters"], json!(filters));
        assert_eq!(body["client"], "app");

        // Who it was is not known.
        let failed = PresenceEvent::ConnectFailed {
            reason: ReasonCode::NotAuthorized,
            detail: "no credentials",
        };
        let failed = event(None, "a b/ü", failed);
        let record = failed.record("connect_failed");
        assert_eq!(record.key, "a b/ü");
        let (_, source) = &record.headers[2];
        assert_eq!(source, "/clients/a%20b/%C3%BC");
        assert_eq!(
            failed.to_aws("connect_failed")["connectFailureReason"],
            "AUTHORIZATION_FAILED"
        );
    }

    #[test]
    fn a_chosen_client_id_is_one_level() {
        let plain = |text: &str| escaped(text, |c| !matches!(c, '/' | '+' | '#' | '%' | '\0'));
        assert_eq!(plain("app"), "app");
        assert_eq!(plain("a/+/#%"), "a%2F%2B%2F%23%25");
        assert_eq!(plain("ärger"), "ärger");
    }

    #[test]
    fn a_full_queue_holds_nobody_up_and_is_counted() {
        let (queue, events) = queue();
        let car = car();
        let presence = Presence {
            identity: Some(&car),
            client_id: "tcu-1/app",
            requested_client_id: None,
            peer: ([192, 0, 2, 7], 4711).into(),
            listener: "mqtts-0",
            at_us: 0,
            sequence: 1,
            connection: 1,
            what: connected(),
        };
        for _ in 0..WAITING + 3 {
            queue.push(&presence);
        }
        assert_eq!(queue.counters().dropped.load(Ordering::Relaxed), 3);
        drop(events);
    }

    #[test]
    fn long_names_fill_the_queue_by_their_bytes() {
        let (queue, events) = queue();
        let car = car();
        let long = "x".repeat(65_000);
        let filters = vec![long.as_str(); broker::FILTERS_PER_EVENT];
        let presence = Presence {
            identity: Some(&car),
            client_id: "tcu-1/app",
            requested_client_id: None,
            peer: ([192, 0, 2, 7], 4711).into(),
            listener: "mqtts-0",
            at_us: 0,
            sequence: 1,
            connection: 1,
            what: PresenceEvent::Subscribed { filters: &filters },
        };
        let fit = MEMORY / (65_000 * filters.len() as u64);
        for _ in 0..fit + 5 {
            queue.push(&presence);
        }
        assert_eq!(queue.counters().dropped.load(Ordering::Relaxed), 5);
        assert!(queue.counters().waiting_bytes.load(Ordering::Relaxed) <= MEMORY);
        drop(events);
    }
}
