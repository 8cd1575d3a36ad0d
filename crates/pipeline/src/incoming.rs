//! A publish as the broker hands it over: who sent what, and what MQTT said about it.

use bytes::Bytes;

/// A publish on its way into the log.
#[derive(Debug, Clone)]
pub struct Incoming<'a> {
    /// Topic it was published to.
    pub topic: &'a str,
    /// The vehicle of the device that sent it, as its certificate says, not as the topic claims.
    pub vehicle_id: &'a str,
    /// The device that sent it.
    pub device_id: &'a str,
    /// Content type (MQTT 5 property).
    pub content_type: Option<&'a str>,
    /// User property `content-encoding`: `gzip` or `zstd`.
    pub content_encoding: Option<&'a str>,
    /// User property `id`: the sender's own id for the message, by which repetitions can be told.
    pub message_id: Option<&'a str>,
    /// User property `time`: when it happened (RFC 3339).
    pub time: Option<&'a str>,
    /// User property `priority`.
    pub priority: Priority,
    /// User property `traceparent` (W3C Trace Context).
    pub traceparent: Option<&'a str>,
    /// The payload as it came.
    pub payload: Bytes,
    /// When the broker received it, in microseconds since the Unix epoch.
    pub received_us: i64,
}

/// How much of a hurry a message is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// May wait.
    #[default]
    Low,
    /// Somebody is waiting for it.
    High,
}

impl Priority {
    /// As it stands in header `ce_priority`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::High => "high",
        }
    }
}

impl<'a> Incoming<'a> {
    /// A publish of which MQTT says nothing further, as in version 3.1.1.
    #[must_use]
    pub fn new(
        topic: &'a str,
        vehicle_id: &'a str,
        device_id: &'a str,
        payload: Bytes,
        received_us: i64,
    ) -> Incoming<'a> {
        Incoming {
            topic,
            vehicle_id,
            device_id,
            content_type: None,
            content_encoding: None,
            message_id: None,
            time: None,
            priority: Priority::Low,
            traceparent: None,
            payload,
            received_us,
        }
    }

    /// Takes from the user properties of MQTT 5 those that mean something here; the first of a name counts.
    #[must_use]
    pub fn with_user_properties(
        mut self,
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Incoming<'a> {
        for (name, value) in properties {
            match name {
                "id" => _ = self.message_id.get_or_insert(value),
                "time" => _ = self.time.get_or_insert(value),
                "content-encoding" => _ = self.content_encoding.get_or_insert(value),
                "traceparent" => _ = self.traceparent.get_or_insert(value),
                "priority" if value == "high" => self.priority = Priority::High,
                _ => {}
            }
        }
        self
    }
}
