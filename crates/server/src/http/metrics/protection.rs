//! Figures of who was refused, slowed down or kept out, and of what that protects: memory, files,
//! certificates.

use std::{fmt, sync::atomic::Ordering};

use broker::Stats;
use prometheus_client::{encoding::EncodeMetric, metrics::gauge::ConstGauge, registry::Unit};

use super::Writer;
use crate::state::AppState;

pub(super) fn write(out: &mut Writer<'_, '_>, app: &AppState, broker: &Stats) -> fmt::Result {
    refused(out, app, broker)?;
    handshakes(out, app, broker)?;
    bounds(out, app, broker)?;
    let presence = app.presence.counters();
    out.counters(
        "presence_events",
        "Events of clients that came, went or subscribed, by what became of them",
        "outcome",
        [
            ("published", presence.published.load(Ordering::Relaxed)),
            ("dropped", presence.dropped.load(Ordering::Relaxed)),
            ("not_logged", presence.not_logged.load(Ordering::Relaxed)),
        ],
    )
}

fn refused(out: &mut Writer<'_, '_>, app: &AppState, broker: &Stats) -> fmt::Result {
    out.counters(
        "mqtt_refused",
        "Sockets and CONNECTs refused by a limit, a ban, a hold-off or overload, by reason",
        "reason",
        broker.refused(),
    )?;
    out.counters(
        "mqtt_throttled",
        "Times somebody had to wait because of a rate; nothing is lost by it",
        "rate",
        broker.throttled(),
    )?;
    out.counters(
        "mqtt_proxy_refused",
        "Connections refused on listeners behind proxies, by reason",
        "reason",
        broker.proxy_refused(),
    )?;
    out.gauge("mqtt_bans", "Bans in force", app.broker.bans().len() as u64)?;
    out.gauge(
        "mqtt_held_off",
        "Clients, addresses and certificates that are not listened to for a while",
        app.broker.held_off().len() as u64,
    )?;
    let overload = app.broker.overload();
    out.gauge(
        "mqtt_overloaded",
        "1 while new connections are refused because a worker is late",
        u64::from(overload.refusing),
    )?;
    // Seconds with a fraction, which the other gauges do not need.
    let delay = ConstGauge::new(overload.delay_us as f64 / 1e6);
    let help = "How late the latest worker is with what is due";
    let encoder = out.0.encode_descriptor(
        "mqtt_loop_delay",
        help,
        Some(&Unit::Seconds),
        delay.metric_type(),
    )?;
    delay.encode(encoder)
}

fn handshakes(out: &mut Writer<'_, '_>, app: &AppState, broker: &Stats) -> fmt::Result {
    out.counters(
        "mqtt_tls_handshakes",
        "TLS handshakes that succeeded, by version and kind",
        "kind",
        broker.handshakes(),
    )?;
    out.counters(
        "mqtt_tls_handshakes_failed",
        "TLS handshakes that failed, by reason",
        "reason",
        broker.handshakes_failed(),
    )?;
    let status = app.tls.status();
    out.counters(
        "tls_reloads",
        "Times certificates were read again, by outcome",
        "outcome",
        [("done", status.succeeded), ("failed", status.failed)],
    )?;
    let ends = status.ends.iter().map(|(listener, end)| {
        let seconds = u64::try_from(end / 1_000_000).unwrap_or_default();
        (&**listener, seconds)
    });
    out.gauges(
        "tls_certificate_expiry_timestamp",
        "When the first certificate of a listener ends, since 1970",
        Some(&Unit::Seconds),
        "listener",
        ends,
    )?;
    out.counter(
        "mqtt_upgrades_refused",
        "Connections to a WebSocket listener that were not upgraded",
        broker.upgrades_refused,
    )?;
    out.gauge(
        "mqtt_web_connections",
        "HTTP connections on MQTT ports",
        broker.web_connections,
    )?;
    out.counter(
        "mqtt_web_refused",
        "HTTP connections on MQTT ports refused because too many others were open",
        broker.web_refused,
    )
}

fn bounds(out: &mut Writer<'_, '_>, app: &AppState, broker: &Stats) -> fmt::Result {
    for (name, help, bytes) in [
        (
            "mqtt_read_memory",
            "Memory of packets of which not everything has come yet",
            broker.read_memory_bytes,
        ),
        (
            "mqtt_queue_memory",
            "Memory of messages that wait for connected clients",
            broker.queue_memory_bytes,
        ),
        (
            "mqtt_session_memory",
            "Memory of what sessions hold of their clients' choosing: wills, subscriptions, names",
            broker.session_memory_bytes,
        ),
        (
            "mqtt_stored_memory",
            "Memory of messages kept for sessions and of their deliveries",
            broker.stored_memory_bytes,
        ),
        (
            "mqtt_window_memory",
            "Memory that wide windows of QUIC connections may hold",
            broker.window_memory_bytes,
        ),
        (
            "machine_memory",
            "Memory of this machine or container; 0 if it does not say",
            app.memory.machine.unwrap_or_default(),
        ),
    ] {
        out.gauge_in(name, help, Some(&Unit::Bytes), bytes)?;
    }
    out.gauges(
        "memory_bound",
        "Memory the server may use at most, by part",
        Some(&Unit::Bytes),
        "part",
        app.memory.parts.iter().copied(),
    )?;
    out.gauges(
        "open_files",
        "Files this process may have open, and how many of these may be MQTT sockets",
        None,
        "bound",
        [("limit", app.files.limit), ("sockets", app.files.sockets)],
    )
}
