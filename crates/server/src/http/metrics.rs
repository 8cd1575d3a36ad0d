//! `/metrics` in the OpenMetrics text format, read from each part's own counters when asked.
//!
//! Names and labels are an outside promise: dashboards hold on to them.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use broker::Stats;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::problem::Problem;
use crate::state::AppState;

mod protection;

pub fn routes() -> Router<Arc<AppState>> {
    Router::new().route("/metrics", get(metrics))
}

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn metrics(State(app): State<Arc<AppState>>) -> Result<impl IntoResponse, Problem> {
    let mut registry = Registry::with_prefix("milepost");
    registry.register_collector(Box::new(Snapshot(app)));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| Problem::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

struct Snapshot(Arc<AppState>);

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot")
    }
}

/// Writes one metric without labels, or with one label per row.
struct Writer<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Writer<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauge_in(name, help, None, value)
    }

    fn gauge_in(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// One gauge with a label, a row per value of it.
    fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        rows: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let metric_type = ConstGauge::new(0i64).metric_type();
        let mut encoder = self.0.encode_descriptor(name, help, unit, metric_type)?;
        for (value, number) in rows {
            let labels = [(label, value)];
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            ConstGauge::new(number).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        rows: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let metric_type = ConstCounter::new(0u64).metric_type();
        let mut encoder = self.0.encode_descriptor(name, help, None, metric_type)?;
        for (value, count) in rows {
            let labels = [(label, value)];
            ConstCounter::new(count).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let app = &self.0;
        let mut out = Writer(&mut encoder);

        let counts = app.fleet.directory().counts();
        out.gauge(
            "fleet_vehicles",
            "Registered vehicles",
            counts.vehicles as u64,
        )?;
        out.gauge("fleet_devices", "Registered devices", counts.devices as u64)?;

        let broker = app.broker_stats();
        out.gauge("mqtt_connections", "Connected clients", broker.connections)?;
        out.gauge(
            "mqtt_pending_connections",
            "Open sockets that are not connected clients",
            broker.pending_connections,
        )?;
        out.gauge(
            "mqtt_subscriptions",
            "Subscriptions in place",
            broker.subscriptions,
        )?;
        session_gauges(&mut out, &broker)?;
        protection::write(&mut out, app, &broker)?;
        out.counter(
            "mqtt_connects_accepted",
            "CONNECTs accepted",
            broker.connects_accepted,
        )?;
        let refused: Vec<(String, u64)> = broker
            .connects_refused
            .iter()
            .map(|(code, n)| (format!("{code:?}"), *n))
            .collect();
        out.counters(
            "mqtt_connects_refused",
            "CONNECTs refused, by reason",
            "reason",
            refused.iter().map(|(code, n)| (code.as_str(), *n)),
        )?;
        let ended: Vec<(String, u64)> = broker
            .disconnects
            .iter()
            .map(|(code, n)| (format!("{code:?}"), *n))
            .collect();
        out.counters(
            "mqtt_disconnects",
            "Connections ended, by reason",
            "reason",
            ended.iter().map(|(code, n)| (code.as_str(), *n)),
        )?;
        let plain = [
            (
                "mqtt_handshake_failures",
                "TLS handshakes that failed",
                broker.handshake_failures,
            ),
            (
                "mqtt_handshake_timeouts",
                "TLS handshakes that took too long",
                broker.handshake_timeouts,
            ),
            (
                "mqtt_connect_timeouts",
                "Connections without a CONNECT in time",
                broker.connect_timeouts,
            ),
            (
                "mqtt_received_bytes",
                "Bytes read from clients",
                broker.bytes_in,
            ),
            (
                "mqtt_sent_bytes",
                "Bytes written to clients",
                broker.bytes_out,
            ),
            (
                "mqtt_received_messages",
                "PUBLISH packets received",
                broker.messages_in(),
            ),
            (
                "mqtt_accept_failures",
                "Connections that the system did not hand over, for want of file descriptors mostly",
                broker.accept_failures,
            ),
            (
                "mqtt_overloaded_accepts",
                "Sockets closed unheard because too many others were pending",
                broker.overloaded_accepts,
            ),
            (
                "mqtt_unmatched_messages",
                "Messages that nobody had subscribed to and nothing kept",
                broker.messages_unmatched,
            ),
            (
                "mqtt_repeated_messages",
                "PUBLISH packets of QoS 2 that had come before; not passed on again",
                broker.messages_repeated,
            ),
            (
                "mqtt_delivered_messages",
                "Messages handed to receivers",
                broker.messages_out(),
            ),
            (
                "mqtt_resent_messages",
                "Messages handed to a receiver again after it came back",
                broker.messages_resent,
            ),
            (
                "mqtt_stored_deliveries",
                "Deliveries queued for stored sessions",
                broker.deliveries_stored,
            ),
            (
                "mqtt_shared_redelivered_messages",
                "Messages of shared subscriptions given to another member because the first one went",
                broker.share_redelivered,
            ),
            (
                "mqtt_pubacks_sent",
                "Messages of QoS 1 acknowledged to publishers",
                broker.pubacks_sent,
            ),
            (
                "mqtt_pubacks_sent_failed",
                "Messages of QoS 1 refused to publishers",
                broker.pubacks_sent_failed,
            ),
            (
                "mqtt_pubrecs_sent",
                "Messages of QoS 2 acknowledged to publishers",
                broker.pubrecs_sent,
            ),
            (
                "mqtt_pubrecs_sent_failed",
                "Messages of QoS 2 refused to publishers",
                broker.pubrecs_sent_failed,
            ),
            (
                "mqtt_pubacks_received",
                "Deliveries of QoS 1 acknowledged by receivers",
                broker.pubacks_received,
            ),
            (
                "mqtt_pubcomps_received",
                "Deliveries of QoS 2 completed by receivers",
                broker.pubcomps_received,
            ),
            (
                "mqtt_sessions_created",
                "Sessions begun",
                broker.sessions_created,
            ),
            (
                "mqtt_sessions_resumed",
                "Sessions taken up again by a connection",
                broker.sessions_resumed,
            ),
            (
                "mqtt_sessions_expired",
                "Stored sessions to which nobody came back in time",
                broker.sessions_expired,
            ),
            (
                "mqtt_subscriptions_revoked",
                "Subscriptions removed because access to them was lost",
                broker.subscriptions_revoked,
            ),
            (
                "mqtt_slow_consumers",
                "Connections closed for a full queue",
                broker.slow_consumers,
            ),
            ("mqtt_takeovers", "Connections taken over", broker.takeovers),
            (
                "mqtt_keep_alive_timeouts",
                "Connections that fell silent",
                broker.keep_alive_timeouts,
            ),
            ("mqtt_wills", "Wills published", broker.wills_published),
            (
                "mqtt_wills_cancelled",
                "Wills not published because their client came back in time",
                broker.wills_cancelled,
            ),
            (
                "mqtt_store_syncs",
                "Group commits of the stored sessions",
                broker.store.syncs,
            ),
        ];
        for (name, help, value) in plain {
            out.counter(name, help, value)?;
        }
        out.counters(
            "mqtt_received_messages_by_qos",
            "PUBLISH packets received, by quality of service",
            "qos",
            [
                ("0", broker.messages_in_qos0),
                ("1", broker.messages_in_qos1),
                ("2", broker.messages_in_qos2),
            ],
        )?;
        out.counters(
            "mqtt_delivered_messages_by_qos",
            "Messages handed to receivers, by quality of service",
            "qos",
            [
                ("0", broker.messages_out_qos0),
                ("1", broker.messages_out_qos1),
                ("2", broker.messages_out_qos2),
            ],
        )?;
        out.counters(
            "mqtt_subscribes",
            "Filters of SUBSCRIBE packets, by what became of them",
            "outcome",
            [
                ("granted", broker.subscribes_granted),
                ("refused", broker.subscribes_refused),
            ],
        )?;
        out.counters(
            "mqtt_dropped_messages",
            "Messages dropped, by reason",
            "reason",
            broker.dropped(),
        )?;

        let streams = app.log.stats();
        let totals: Vec<(&str, eventlog::PartitionStats)> = streams
            .iter()
            .map(|stream| (stream.stream.as_str(), stream.total()))
            .collect();
        let by_stream = |value: fn(&eventlog::PartitionStats) -> u64| {
            totals
                .iter()
                .map(move |(name, total)| (*name, value(total)))
                .collect::<Vec<_>>()
        };
        out.counters(
            "log_appended_records",
            "Records made durable",
            "stream",
            by_stream(|t| t.appended_records),
        )?;
        out.counters(
            "log_appended_bytes",
            "Bytes made durable",
            "stream",
            by_stream(|t| t.appended_bytes),
        )?;
        out.counters(
            "log_fsyncs",
            "fdatasync calls",
            "stream",
            by_stream(|t| t.fsyncs),
        )?;
        out.counters(
            "log_refused_records",
            "Records refused: queue or stream full, disk failed",
            "stream",
            by_stream(|t| t.refused_busy + t.refused_full + t.failed),
        )?;

        let ingest = &app.ingest;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        out.counter(
            "ingest_records",
            "Records taken from the log",
            read(&ingest.records),
        )?;
        out.counter(
            "ingest_readings",
            "Readings decoded",
            read(&ingest.readings),
        )?;
        out.counter(
            "ingest_dead_letters",
            "Records that could not be decoded",
            read(&ingest.dead),
        )?;
        out.counter(
            "ingest_overtaken_records",
            "Records lost to retention before they were read",
            read(&ingest.overtaken),
        )?;
        out.counter(
            "ingest_corrupt_batches",
            "Batches on disk that can not be read",
            read(&ingest.corrupt),
        )?;

        let lake = app.lake.metrics();
        out.gauge(
            "lake_hot_rows",
            "Rows not yet in Delta",
            lake.hot_messages + lake.hot_signals,
        )?;
        out.gauge_in(
            "lake_hot",
            "Memory of rows not yet in Delta",
            Some(&Unit::Bytes),
            lake.hot_bytes,
        )?;
        out.counters(
            "lake_committed_rows",
            "Rows committed to Delta",
            "table",
            [
                ("bronze.messages", lake.committed_messages),
                ("silver.signals", lake.committed_signals),
            ],
        )?;
        out.counter("lake_commits", "Commits to Delta", lake.commits)?;
        out.counter(
            "lake_commit_failures",
            "Commits that failed and are tried again",
            lake.commit_failures,
        )?;
        out.counter(
            "lake_compactions",
            "Merges of small files",
            lake.compactions,
        )?;
        out.counters(
            "sql_queries",
            "Queries, by how they ended",
            "outcome",
            lake.queries.iter().copied(),
        )?;
        Ok(())
    }
}

/// What is kept for MQTT clients, in memory and on disk.
fn session_gauges(out: &mut Writer<'_, '_>, broker: &Stats) -> fmt::Result {
    out.gauge(
        "mqtt_sessions",
        "Sessions, connected or not",
        broker.sessions,
    )?;
    out.gauge(
        "mqtt_stored_sessions",
        "Sessions that outlive their connection",
        broker.sessions_stored,
    )?;
    out.gauge(
        "mqtt_retained_messages",
        "Topics with a retained message",
        broker.retained,
    )?;
    let store = &broker.store;
    out.gauge(
        "mqtt_kept_messages",
        "Messages kept for stored sessions or retained, each once",
        broker.messages_kept,
    )?;
    out.gauge(
        "mqtt_store_live_records",
        "Records on disk that count: sessions, subscriptions, messages, deliveries",
        store.live_records,
    )?;
    out.gauge(
        "mqtt_store_stalled",
        "1 while nothing can be written for sessions (disk full, for one): publishers and sessions wait",
        store.stalled,
    )?;
    for (name, help, bytes) in [
        (
            "mqtt_retained",
            "Memory of retained messages",
            broker.retained_bytes,
        ),
        (
            "mqtt_kept",
            "Memory of messages kept for stored sessions or retained",
            broker.messages_kept_bytes,
        ),
        (
            "mqtt_store_live",
            "Bytes on disk that count",
            store.live_bytes,
        ),
        (
            "mqtt_store_disk",
            "Bytes of the files of the stored sessions",
            store.disk_bytes,
        ),
        (
            "mqtt_store_pending",
            "Bytes on their way to disk",
            store.pending_bytes,
        ),
    ] {
        out.gauge_in(name, help, Some(&Unit::Bytes), bytes)?;
    }
    Ok(())
}
