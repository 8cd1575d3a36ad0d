//! The file that [`LastKnown`] starts from.
//!
//! Without it a restart would read all of `silver.signals`. It is an Arrow IPC file with the offsets
//! both tables had *committed* when it was written; what has a higher offset is replayed from the
//! tables. It is only a shortcut: if it is missing, torn or of another version, everything is
//! replayed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};

use crate::columns::RowTable;
use crate::durable;
use crate::last_known::LastKnown;
use crate::tables::NextOffsets;

const VERSION: &str = "1";
const VERSION_KEY: &str = "milepost.last_known.version";

fn offsets_key(table: RowTable) -> String {
    format!("milepost.last_known.{}", table.application())
}

/// Where the file is, below the folder of the lake.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("live").join("last_known_state.arrow")
}

/// Writes the state, durably and at once. `committed` must have been taken before.
pub(crate) fn write(
    dir: &Path,
    last_known: &LastKnown,
    committed: &NextOffsets,
) -> Result<(), ArrowError> {
    let mut metadata = HashMap::from([(VERSION_KEY.to_owned(), VERSION.to_owned())]);
    for table in RowTable::ALL {
        let offsets: Vec<String> = committed.0[table as usize]
            .iter()
            .map(u64::to_string)
            .collect();
        metadata.insert(offsets_key(table), offsets.join(","));
    }
    let schema = last_known_schema(metadata);
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD))?;
    let mut writer = FileWriter::try_new_with_options(Vec::new(), &schema, options)?;
    for batch in last_known.save()? {
        writer.write(&batch)?;
    }
    let bytes = writer.into_inner()?;
    Ok(durable::replace_file(&path(dir), bytes)?)
}

fn last_known_schema(metadata: HashMap<String, String>) -> Schema {
    let plain = crate::last_known::saved_schema();
    Schema::new_with_metadata(plain.fields().clone(), metadata)
}

/// Loads the file into `last_known` and returns what its rows cover; zeros if there is none.
pub(crate) fn read(dir: &Path, last_known: &LastKnown, partitions: u16) -> NextOffsets {
    let nothing = || {
        NextOffsets([
            vec![0; usize::from(partitions)],
            vec![0; usize::from(partitions)],
        ])
    };
    match try_read(&path(dir), last_known, partitions) {
        Ok(covered) => covered,
        Err(ArrowError::IoError(_, error)) if error.kind() == io::ErrorKind::NotFound => nothing(),
        Err(error) => {
            // What was loaded of it is true all the same, only not complete.
            tracing::warn!(%error, "the saved last known state is unusable; reading the tables");
            nothing()
        }
    }
}

fn try_read(
    path: &Path,
    last_known: &LastKnown,
    partitions: u16,
) -> Result<NextOffsets, ArrowError> {
    let file = File::open(path)?;
    let reader = FileReader::try_new(BufReader::new(file), None)?;
    let schema = reader.schema();
    let unusable = |what: &str| ArrowError::IpcError(format!("{what} in {}", path.display()));
    if schema.metadata().get(VERSION_KEY).map(String::as_str) != Some(VERSION) {
        return Err(unusable("unknown version"));
    }
    let offsets = |table| -> Result<Vec<u64>, ArrowError> {
        let text = schema
            .metadata()
            .get(&offsets_key(table))
            .ok_or_else(|| unusable("no offsets"))?;
        let mut offsets = text
            .split(',')
            .map(|offset| offset.parse().map_err(|_| unusable("a broken offset")))
            .collect::<Result<Vec<u64>, _>>()?;
        offsets.resize(usize::from(partitions), 0);
        Ok(offsets)
    };
    let covered = NextOffsets([offsets(RowTable::Messages)?, offsets(RowTable::Signals)?]);
    for batch in reader {
        last_known.load(&batch?)?;
    }
    Ok(covered)
}

/// SQL for the rows that `covered` does not cover: they are replayed on top of the file.
pub(crate) fn uncovered(covered: &[u64]) -> String {
    covered
        .iter()
        .enumerate()
        .map(|(partition, offset)| {
            format!("(\"partition\" = {partition} and \"offset\" >= {offset})")
        })
        .collect::<Vec<_>>()
        .join(" or ")
}
