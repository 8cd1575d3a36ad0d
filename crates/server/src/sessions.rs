//! Sessions that outlive the server: where they are kept, and what a start found there.
//!
//! The broker writes and reads them (`broker::Store`); here is what the operator sees of it.

use std::path::{Path, PathBuf};

use broker::{Recovery, Store, StoreConfig};

use crate::config::{Config, Durability};

/// Below the data folder.
const FOLDER: &str = "sessions";

/// From so much on, reading takes a moment that a person watching would wonder about.
const WORTH_ANNOUNCING: u64 = 64 << 20;

/// The folder of the sessions, messages queued for them, and retained messages.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// Where the broker keeps its sessions.
pub fn store(config: &Config) -> Store {
    Store::Directory(StoreConfig {
        durability: match config.mqtt.durability {
            Durability::Fsync => broker::Durability::Fsync,
            Durability::None => broker::Durability::None,
        },
        ..StoreConfig::new(folder(&config.data_dir))
    })
}

/// Says beforehand that reading what is there will take a moment.
pub fn announce(data_dir: &Path) {
    let bytes = bytes_in(&folder(data_dir));
    if bytes >= WORTH_ANNOUNCING {
        tracing::info!(
            event = "sessions.reading",
            bytes,
            "reading stored sessions; clients are served when they are in place"
        );
    }
}

/// Bytes of the files in a folder; what cannot be read counts nothing, the broker will say why.
fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

/// One event with what was there, for the operator's log.
pub fn report(recovery: &Recovery) {
    if recovery.torn_bytes > 0 {
        tracing::warn!(
            event = "sessions.torn_tail_cut",
            bytes = recovery.torn_bytes,
            "an unfinished write was cut off; nothing acknowledged is lost"
        );
    }
    if *recovery == Recovery::default() {
        return;
    }
    tracing::info!(
        event = "sessions.restored",
        sessions = recovery.sessions,
        subscriptions = recovery.subscriptions,
        queued = recovery.deliveries,
        retained = recovery.retained,
        messages = recovery.messages,
        message_bytes = recovery.message_bytes,
        expired_sessions = recovery.expired_sessions,
        disk_bytes = recovery.disk_bytes,
        took_ms = recovery.took.as_millis() as u64,
    );
}
