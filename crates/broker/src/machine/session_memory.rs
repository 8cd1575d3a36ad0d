//! What a session holds of its client's choosing: how much of it counts for how much memory.
//!
//! One client may choose a will of a megabyte, or a thousand filters of 64 KiB; a fleet of them would take
//! any machine. So all of it is counted over all sessions ([`Limits::max_session_memory`]), and refused
//! beyond that. The weights are measured, and rounded up: what a record costs beside its text depends on
//! how full the tables around it are.
//!
//! [`Limits::max_session_memory`]: crate::Limits::max_session_memory

use std::mem::size_of;

use mqtt::{Publish, Utf8};

/// A subscription beside its text: in its session, in the index, in the set of those who have the same
/// filter.
const SUBSCRIPTION: usize = 288;

/// A level of a filter with wildcards: a node of the index and its entry in the node above.
const LEVEL: usize = 384;

/// An identifier of a QoS 2 message.
pub(crate) const RECEIVED: usize = 96;

/// A will beside its text.
const WILL: usize = 384;

/// What a text of its own costs beside its letters.
const TEXT: usize = 32;

/// Of a subscription. The filter is there twice: once for the session, and once for the index, which keeps
/// the text of whoever subscribed first.
pub(crate) fn of_subscription(filter: &str) -> usize {
    let levels = match filter.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
        // Those of a shared subscription are fewer by two.
        true => filter.split('/').count(),
        false => 0,
    };
    SUBSCRIPTION + 2 * filter.len() + levels * LEVEL
}

/// Of a will.
pub(crate) fn of_will(publish: &Publish) -> usize {
    let properties = &publish.properties;
    let texts = [
        properties
            .response_topic
            .as_ref()
            .map(|text| text.as_str().len()),
        properties.correlation_data.as_ref().map(|data| data.len()),
        properties.content_type.as_ref().map(|text| text.len()),
    ];
    let texts: usize = texts.into_iter().flatten().sum();
    let pairs: usize = properties
        .user_properties
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2 * (size_of::<Utf8>() + TEXT))
        .sum();
    WILL + publish.topic.len() + publish.payload.len() + texts + pairs
}

/// Of the names of a session.
pub(crate) fn of_names(client_id: &str, principal: &str) -> usize {
    client_id.len() + principal.len()
}
