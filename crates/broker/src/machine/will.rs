//! The will of a client: the message for the time after it (section 3.1.2.5).

use bytes::Bytes;
use mqtt::{Publish, PublishProperties, TopicName, Utf8, Will};

/// The message a will becomes, with memory of its own: a will lives as long as its connection and
/// must not keep a read buffer alive.
pub(crate) fn message(will: &Will) -> Publish {
    let properties = &will.properties;
    Publish {
        dup: false,
        qos: will.qos,
        retain: will.retain,
        topic: will.topic.as_utf8().detached(),
        packet_id: None,
        properties: PublishProperties {
            payload_format: properties.payload_format,
            message_expiry_interval: properties.message_expiry_interval,
            response_topic: properties.response_topic.as_ref().map(detached),
            correlation_data: properties
                .correlation_data
                .as_deref()
                .map(Bytes::copy_from_slice),
            user_properties: properties
                .user_properties
                .iter()
                .map(|(name, value)| (name.detached(), value.detached()))
                .collect(),
            content_type: properties.content_type.as_ref().map(Utf8::detached),
            ..PublishProperties::default()
        },
        payload: Bytes::copy_from_slice(&will.payload),
    }
}

fn detached(topic: &TopicName) -> TopicName {
    // A topic that was one stays one; were it not, the slice would do.
    TopicName::try_from(topic.as_utf8().detached()).unwrap_or_else(|_| topic.clone())
}
