//! What presence events look like: the record of the stream, the messages and their topics.

use std::{
    fmt::Write as _,
    hash::{DefaultHasher, Hash, Hasher},
};

use broker::{DisconnectedBy, ReasonCode};
use bytes::Bytes;
use eventlog::{Header, NewRecord};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{
    event::{Event, What},
    version_text,
};
use crate::http::timestamp;

/// In place of a device where it is not known who a client is.
const NOBODY: &str = "~";

impl Event {
    /// The message below `$milepost/events/`, and the value of the record.
    pub(super) fn to_json(&self, name: &str) -> Vec<u8> {
        json(&Own { event: self, name })
    }

    /// The message in the shape of AWS IoT's lifecycle events.
    pub(super) fn to_aws(&self, name: &str) -> Vec<u8> {
        json(&Aws { event: self, name })
    }

    /// Where the message goes.
    pub(super) fn topic(&self, group: &str, name: &str) -> String {
        let device = self.principal.as_deref().unwrap_or(NOBODY);
        let client = escaped(&self.chosen, |c| !matches!(c, '/' | '+' | '#' | '%' | '\0'));
        format!("$milepost/events/{group}/{name}/{device}/{client}")
    }

    /// Where the one in AWS's shape goes, if it can go anywhere.
    pub(super) fn aws_topic(&self, group: &str, name: &str) -> Option<String> {
        (!self.chosen.contains(['+', '#', '\0']))
            .then(|| format!("$aws/events/{group}/{name}/{}", self.chosen))
    }

    /// The same in all events of a connection, another for each connection of each client.
    fn session_identifier(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.client_id.hash(&mut hasher);
        format!("{:016x}{:016x}", hasher.finish(), self.connection)
    }

    /// The record of the stream: a CloudEvent whose value is `body`.
    pub(super) fn record(&self, name: &str, body: Bytes) -> NewRecord {
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
            value: body,
        }
    }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    // Into memory, and no key is anything but text: it cannot fail.
    serde_json::to_vec(body).unwrap_or_default()
}

/// In Milepost's shape.
struct Own<'a> {
    event: &'a Event,
    name: &'a str,
}

impl Serialize for Own<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.event;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("event", self.name)?;
        map.serialize_entry("time", &timestamp(event.at_us))?;
        map.serialize_entry("sequence", &event.sequence)?;
        map.serialize_entry("connection", &event.connection)?;
        map.serialize_entry("client_id", &event.client_id)?;
        map.serialize_entry("client", &event.chosen)?;
        map.serialize_entry("device", &event.principal.as_deref())?;
        map.serialize_entry("vehicle", &event.vehicle.as_deref())?;
        map.serialize_entry("peer", &event.peer)?;
        map.serialize_entry("listener", &event.listener)?;
        match &event.what {
            What::Connected {
                version,
                clean_start,
                keep_alive,
                session_present,
                transport,
            } => {
                map.serialize_entry("transport", transport)?;
                map.serialize_entry("mqtt_version", version_text(*version))?;
                map.serialize_entry("clean_start", clean_start)?;
                map.serialize_entry("keep_alive", keep_alive)?;
                map.serialize_entry("session_present", session_present)?;
            }
            What::Disconnected {
                reason,
                by,
                will_published,
                since_us,
                traffic,
            } => {
                map.serialize_entry("reason", reason.name())?;
                map.serialize_entry("reason_code", &reason.as_u8())?;
                map.serialize_entry("by", by.name())?;
                map.serialize_entry("will_published", will_published)?;
                map.serialize_entry("connected_since", &timestamp(*since_us))?;
                map.serialize_entry("messages_in", &traffic.messages_in)?;
                map.serialize_entry("messages_out", &traffic.messages_out)?;
                map.serialize_entry("bytes_in", &traffic.bytes_in)?;
                map.serialize_entry("bytes_out", &traffic.bytes_out)?;
            }
            What::ConnectFailed { reason, detail } => {
                map.serialize_entry("reason", reason.name())?;
                map.serialize_entry("reason_code", &reason.as_u8())?;
                map.serialize_entry("detail", detail)?;
            }
            What::Subscribed(filters) | What::Unsubscribed(filters) => {
                map.serialize_entry("filters", filters)?;
            }
            What::Other => {}
        }
        map.end()
    }
}

/// In AWS IoT's shape.
struct Aws<'a> {
    event: &'a Event,
    name: &'a str,
}

impl Serialize for Aws<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.event;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("clientId", &event.chosen)?;
        map.serialize_entry("timestamp", &(event.at_us / 1000))?;
        map.serialize_entry("eventType", self.name)?;
        map.serialize_entry("sessionIdentifier", &event.session_identifier())?;
        map.serialize_entry("principalIdentifier", &event.principal.as_deref())?;
        match &event.what {
            What::Connected { .. } => {
                map.serialize_entry("ipAddress", &event.peer.ip())?;
                map.serialize_entry("versionNumber", &event.connection)?;
            }
            What::Disconnected { by, .. } => {
                let by_client = *by == DisconnectedBy::Client;
                map.serialize_entry("clientInitiatedDisconnect", &by_client)?;
                map.serialize_entry("disconnectReason", aws_reason(*by))?;
                map.serialize_entry("versionNumber", &event.connection)?;
            }
            What::ConnectFailed { reason, .. } => {
                map.serialize_entry("ipAddress", &event.peer.ip())?;
                map.serialize_entry("connectFailureReason", aws_failure(*reason))?;
            }
            What::Subscribed(filters) | What::Unsubscribed(filters) => {
                map.serialize_entry("topics", filters)?;
            }
            What::Other => {}
        }
        map.end()
    }
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
    use broker::PresenceEvent;
    use serde_json::{Value, json};

    use super::{super::event::tests::*, *};

    impl Event {
        fn aws(&self, name: &str) -> Value {
            serde_json::from_slice(&self.to_aws(name)).expect("JSON")
        }

        fn recorded(&self, name: &str) -> NewRecord {
            self.record(name, self.to_json(name).into())
        }
    }

    #[test]
    fn a_connect_and_its_end_are_a_pair_in_the_shape_of_aws() {
        let car = car();
        let one = event(Some(&car), "tcu-1/app", connected()).aws("connected");
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
        let end = event(Some(&car), "tcu-1/app", end).aws("disconnected");
        assert_eq!(end["sessionIdentifier"], one["sessionIdentifier"]);
        assert_eq!(end["versionNumber"], one["versionNumber"]);
        assert_eq!(end["disconnectReason"], "DUPLICATE_CLIENTID");
        assert_eq!(end["clientInitiatedDisconnect"], false);
        assert_eq!(end.get("ipAddress"), None);
        let other = event(Some(&car), "tcu-1/other", connected()).aws("connected");
        assert_ne!(other["sessionIdentifier"], one["sessionIdentifier"]);
    }

    #[test]
    fn a_record_is_a_cloud_event_of_the_vehicle() {
        let car = car();
        let filters = ["bc/#", "dt/+/+/car-1/#"];
        let what = PresenceEvent::Subscribed { filters: &filters };
        let record = event(Some(&car), "tcu-1/app", what).recorded("subscribed");
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
        let record = failed.recorded("connect_failed");
        assert_eq!(record.key, "a b/ü");
        let (_, source) = &record.headers[2];
        assert_eq!(source, "/clients/a%20b/%C3%BC");
        assert_eq!(
            failed.aws("connect_failed")["connectFailureReason"],
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
}
