//! The streams of the event log that the server keeps, and what opening them found.

use eventlog::{Log, LogOptions, OpenError, RecoveryReport, Retention, Stream, StreamConfig};

use crate::{
    config::{Config, Durability},
    ingest, presence,
};

/// The log and its streams.
pub struct Streams {
    /// All of it.
    pub log: Log,
    /// What devices sent.
    pub raw: Stream,
    /// What of it could not be decoded.
    pub dead: Stream,
    /// Who came and went.
    pub presence: Stream,
}

/// Opens them, or makes them on first start.
///
/// # Errors
/// See [`OpenError`].
pub fn open(config: &Config) -> Result<Streams, OpenError> {
    let (log, recovery) = Log::open(&config.data_dir.join("log"), LogOptions::default())?;
    let stream_config = StreamConfig {
        partitions: config.log.partitions,
        retention: Retention {
            max_age: Some(config.log.max_age),
            max_bytes: Some(config.log.max_bytes.0),
        },
        durability: match config.log.durability {
            Durability::Fsync => eventlog::Durability::Fsync,
            Durability::None => eventlog::Durability::None,
        },
        ..StreamConfig::default()
    };
    let raw = log.stream(pipeline::RAW_TELEMETRY, stream_config.clone())?;
    let dead = StreamConfig {
        partitions: 1,
        max_append_bytes: ingest::DEAD_APPEND_BYTES,
        ..stream_config.clone()
    };
    let dead = log.stream(pipeline::DEAD_TELEMETRY, dead)?;
    // One partition: then the records stand in the order of their sequence numbers.
    let presence_config = StreamConfig {
        partitions: 1,
        ..stream_config
    };
    let presence = log.stream(presence::STREAM, presence_config)?;
    report(&recovery);
    Ok(Streams {
        log,
        raw,
        dead,
        presence,
    })
}

fn report(recovery: &RecoveryReport) {
    for torn in &recovery.torn_tails {
        tracing::warn!(
            event = "log.torn_tail_cut",
            stream = torn.stream,
            partition = torn.partition,
            segment = %torn.segment.display(),
            bytes = torn.bytes,
            next_offset = torn.offset.get(),
            "an unfinished write was cut off; nothing acknowledged is lost"
        );
    }
    for damage in &recovery.damaged {
        tracing::error!(
            event = "log.damaged",
            stream = damage.stream,
            partition = damage.partition,
            segment = %damage.segment.display(),
            from_offset = damage.from.get(),
            to_offset = damage.to.get(),
            "records on disk cannot be read; they are skipped, the segment is kept"
        );
    }
    for group in &recovery.torn_groups {
        tracing::warn!(
            event = "log.torn_group_cut",
            group = group.group,
            bytes = group.bytes
        );
    }
}
