//! The order of rows within a file.
//!
//! `silver.signals` is sorted by vehicle, signal and time: "this signal of this vehicle in that
//! week" then reads a few pages, equal neighbours compress to almost nothing, and times become small
//! differences. `bronze.messages` keeps the order of arrival, which is that of its offsets.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::interleave;
use arrow::datatypes::{Int32Type, TimestampMicrosecondType};
use arrow::error::ArrowError;

use crate::columns::{RowTable, SIGNALS_SIGNAL, SIGNALS_TIME, SIGNALS_VEHICLE};
use crate::delta::to_file_types;

/// Rows that are gathered and encoded at a time: bounds the copy beside the hot rows.
const CHUNK: usize = 65_536;

/// Yields the rows of `batches` as they go into a file.
pub(crate) fn for_files(
    kind: RowTable,
    batches: &[Arc<RecordBatch>],
) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + '_>, ArrowError> {
    match kind {
        RowTable::Messages => Ok(Box::new(
            batches.iter().map(move |batch| to_file_types(kind, batch)),
        )),
        RowTable::Signals => {
            let order = sorted(batches)?;
            let chunks = order.len().div_ceil(CHUNK);
            Ok(Box::new((0..chunks).map(move |chunk| {
                let from = chunk * CHUNK;
                let to = (from + CHUNK).min(order.len());
                to_file_types(kind, &gather(batches, &order[from..to])?)
            })))
        }
    }
}

/// Where a row sorts, and where it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    vehicle: u32,
    signal: u32,
    time: i64,
    batch: u32,
    row: u32,
}

fn sorted(batches: &[Arc<RecordBatch>]) -> Result<Vec<Place>, ArrowError> {
    let vehicles = Ranks::of(batches, SIGNALS_VEHICLE);
    let signals = Ranks::of(batches, SIGNALS_SIGNAL);
    let mut places = Vec::with_capacity(batches.iter().map(|batch| batch.num_rows()).sum());
    for (batch, rows) in (0_u32..).zip(batches) {
        let vehicle_ranks = vehicles.by_key(rows, SIGNALS_VEHICLE);
        let signal_ranks = signals.by_key(rows, SIGNALS_SIGNAL);
        let vehicle_keys = keys(rows, SIGNALS_VEHICLE);
        let signal_keys = keys(rows, SIGNALS_SIGNAL);
        let times = rows
            .column(SIGNALS_TIME)
            .as_primitive::<TimestampMicrosecondType>()
            .values();
        let rank = |ranks: &[u32], key: i32| {
            usize::try_from(key)
                .ok()
                .and_then(|key| ranks.get(key).copied())
                .unwrap_or(u32::MAX)
        };
        for (row, ((&vehicle, &signal), &time)) in
            (0_u32..).zip(vehicle_keys.iter().zip(signal_keys).zip(times))
        {
            places.push(Place {
                vehicle: rank(&vehicle_ranks, vehicle),
                signal: rank(&signal_ranks, signal),
                time,
                batch,
                row,
            });
        }
    }
    places.sort_unstable();
    Ok(places)
}

fn gather(batches: &[Arc<RecordBatch>], places: &[Place]) -> Result<RecordBatch, ArrowError> {
    let schema = RowTable::Signals.hot_schema();
    let indices: Vec<(usize, usize)> = places
        .iter()
        .map(|place| (place.batch as usize, place.row as usize))
        .collect();
    let columns = (0..schema.fields().len())
        .map(|column| {
            let arrays: Vec<_> = batches
                .iter()
                .map(|batch| batch.column(column).as_ref())
                .collect();
            interleave(&arrays, &indices)
        })
        .collect::<Result<Vec<ArrayRef>, _>>()?;
    RecordBatch::try_new(schema, columns)
}

/// The alphabetical rank of every word of a dictionary column over all batches, so that sorting
/// compares numbers.
struct Ranks<'a> {
    rank: HashMap<&'a str, u32>,
}

impl<'a> Ranks<'a> {
    fn of(batches: &'a [Arc<RecordBatch>], column: usize) -> Ranks<'a> {
        let mut words: Vec<&str> = batches
            .iter()
            .flat_map(|batch| words(batch, column))
            .collect();
        words.sort_unstable();
        words.dedup();
        Ranks {
            rank: words.into_iter().zip(0_u32..).collect(),
        }
    }

    fn by_key(&self, batch: &RecordBatch, column: usize) -> Vec<u32> {
        words(batch, column)
            .map(|word| self.rank.get(word).copied().unwrap_or(u32::MAX))
            .collect()
    }
}

fn words(batch: &RecordBatch, column: usize) -> impl Iterator<Item = &str> {
    let values = batch
        .column(column)
        .as_dictionary::<Int32Type>()
        .values()
        .as_string::<i32>();
    (0..values.len()).map(|index| values.value(index))
}

fn keys(batch: &RecordBatch, column: usize) -> &[i32] {
    batch
        .column(column)
        .as_dictionary::<Int32Type>()
        .keys()
        .values()
}
