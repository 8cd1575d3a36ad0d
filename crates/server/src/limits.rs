//! The limits of the configuration in the broker's words.

use broker::{HoldOff, Limits};

use crate::config::{Config, listener, quantity::ByteSize, rate};

/// Bounds of the broker. `max_sockets` is what the process may open ([`crate::open_files`]).
pub fn of(config: &Config, max_sockets: usize) -> Limits {
    let (mqtt, overload, hold_off) = (&config.mqtt, &config.overload, &config.hold_off);
    let defaults = Limits::default();
    Limits {
        // Within 256 MiB by the configuration's own range.
        max_packet_size: u32::try_from(mqtt.max_packet_size.0).unwrap_or(u32::MAX),
        max_inflight: mqtt.max_inflight,
        max_queued: mqtt.max_queued as usize,
        max_queued_bytes: bytes(mqtt.max_queued_bytes),
        overflow: mqtt.overflow,
        keep_alive_max: mqtt.keep_alive_max,
        session_expiry_max: mqtt.session_expiry_max,
        max_connections: mqtt.max_connections as usize,
        max_sessions: mqtt.max_sessions as usize,
        max_subscriptions: mqtt.max_subscriptions as usize,
        max_stored_bytes: bytes(mqtt.max_stored_bytes),
        share_strategy: mqtt.share_strategy,
        retain: mqtt.retain,
        max_retained: mqtt.max_retained as usize,
        max_retained_bytes: bytes(mqtt.max_retained_bytes),
        topic_alias_maximum: mqtt.topic_alias_maximum,
        topic_alias_maximum_out: mqtt.topic_alias_maximum_out,
        connect_rate: mqtt.connect_rate.map(rate),
        max_handshakes: mqtt.max_handshakes as usize,
        max_pending_per_address: mqtt.max_pending_per_address as usize,
        client_messages_in: mqtt.client_message_rate_in.map(rate),
        client_messages_out: mqtt.client_message_rate_out.map(rate),
        client_bytes_in: mqtt.client_byte_rate_in.map(rate),
        client_bytes_out: mqtt.client_byte_rate_out.map(rate),
        messages_in: mqtt.message_rate_in.map(rate),
        bytes_in: mqtt.byte_rate_in.map(rate),
        max_topic_levels: mqtt.max_topic_levels as usize,
        max_sockets,
        max_read_memory: bytes(mqtt.max_read_memory),
        max_queue_memory: bytes(mqtt.max_queue_memory),
        max_session_memory: bytes(mqtt.max_session_memory),
        max_window_memory: bytes(mqtt.max_window_memory),
        max_loop_delay: overload.max_loop_delay,
        retry_spread: overload.retry_spread,
        hold_off: match hold_off.lasts {
            Some(lasts) => HoldOff {
                failures: hold_off.failures,
                connects: hold_off.connects,
                within: hold_off.within,
                lasts,
                ..defaults.hold_off
            },
            // 0 of either is never reached.
            None => HoldOff {
                failures: 0,
                connects: 0,
                ..defaults.hold_off
            },
        },
        ..defaults
    }
}

/// Bounds of one listener.
pub fn of_listener(limits: &listener::ListenerLimits) -> broker::ListenerLimits {
    broker::ListenerLimits {
        max_connections: limits.max_connections.map(|number| number as usize),
        connect_rate: limits.connect_rate.map(rate),
        max_handshakes: limits.max_handshakes.map(|number| number as usize),
        messages_in: limits.message_rate_in.map(rate),
        bytes_in: limits.byte_rate_in.map(rate),
    }
}

fn rate(rate: rate::Rate) -> broker::Rate {
    broker::Rate::new(rate.per_second, rate.burst.get())
}

fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What nobody configured is what the broker would do by itself, so its documentation holds.
    #[test]
    fn the_defaults_of_both_sides_are_the_same() {
        let config = Config::parse(Path::new("t.toml"), "", std::iter::empty()).expect("empty");
        let defaults = Limits::default();
        let limits = Limits {
            // The server carries a whole fleet by default.
            max_connections: defaults.max_connections,
            max_sessions: defaults.max_sessions,
            ..of(&config, defaults.max_sockets)
        };
        assert_eq!(format!("{limits:#?}"), format!("{defaults:#?}"));
    }

    #[test]
    fn off_holds_nobody_off() {
        let text = "[hold_off]\nlasts = \"off\"";
        let config = Config::parse(Path::new("t.toml"), text, std::iter::empty()).expect("valid");
        let hold_off = of(&config, 1).hold_off;
        assert_eq!((hold_off.failures, hold_off.connects), (0, 0));
    }
}
