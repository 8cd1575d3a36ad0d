//! The newest reading of every signal of every vehicle, in memory.
//!
//! Flow: ingest -> [`LastKnown::observe`] -> `last_known_state` and `vehicles` in SQL. At start it
//! is loaded from a file written now and then, and what the tables got since is replayed on top.
//!
//! "Newest" is by the time of the reading, but not later than its reception: a device whose clock
//! stands in 2099 counts as of when we heard it, so it cannot freeze its own state for decades.
//! Of equal times the later record wins. Taking the maximum of such keys can be repeated in any
//! order, so replaying too much does no harm.
//!
//! Bound: `LakeOptions::last_known_entries` pairs of vehicle and signal, about 200 bytes each.
//! When they are used up, or while loading, [`LastKnown::is_complete`] is false and SQL computes
//! the same answer from `signals` instead, slower but exact.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{
    Array as _, ArrayRef, AsArray as _, Float64Builder, Int32Builder, Int64Builder, RecordBatch,
    StringBuilder, StringDictionaryBuilder, TimestampMicrosecondBuilder,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Field, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit,
    TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use pipeline::Processed;
use signals::{Catalogue, Value};

use crate::batch::{shown, unit_in};
use crate::columns::RowTable;
use crate::options::QueryLimits;
use crate::query::{Engine, QueryError};
use crate::saved_state;
use crate::tables::NextOffsets;

/// Vehicles are spread over so many locks, so that a query over all of them holds up ingest of one
/// at a time.
const SHARDS: usize = 64;

/// Vehicles by id.
type Shard = Mutex<HashMap<Arc<str>, Vehicle>>;

/// See the module.
pub(crate) struct LastKnown {
    shards: Box<[Shard]>,
    hasher: RandomState,
    entries: AtomicUsize,
    limit: usize,
    loaded: AtomicBool,
    overflowed: AtomicBool,
}

#[derive(Default)]
struct Vehicle {
    seen_us: i64,
    signals: HashMap<Arc<str>, Latest>,
}

struct Latest {
    order: Order,
    time_us: i64,
    received_us: i64,
    device: Arc<str>,
    value: Value,
}

impl Latest {
    fn device(&self) -> Option<&str> {
        (!self.device.is_empty()).then_some(&*self.device)
    }
}

/// What "newest" compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    heard_us: i64,
    offset: i64,
    seq: i32,
}

impl LastKnown {
    pub(crate) fn new(limit: usize) -> LastKnown {
        LastKnown {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            entries: AtomicUsize::new(0),
            limit,
            loaded: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
        }
    }

    /// True if this holds the newest reading of everything in the lake.
    pub(crate) fn is_complete(&self) -> bool {
        self.loaded.load(Ordering::Acquire) && !self.overflowed.load(Ordering::Acquire)
    }

    /// To be called once what the tables hold has been replayed.
    pub(crate) fn set_loaded(&self) {
        self.loaded.store(true, Ordering::Release);
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    fn shard(&self, vehicle: &str) -> MutexGuard<'_, HashMap<Arc<str>, Vehicle>> {
        let index = self.hasher.hash_one(vehicle) as usize % SHARDS;
        lock(&self.shards[index])
    }

    /// Takes in what the records say.
    pub(crate) fn observe<'a>(&self, records: impl Iterator<Item = &'a Processed>) {
        for Processed {
            message, readings, ..
        } in records
        {
            let mut shard = self.shard(&message.vehicle_id);
            let vehicle = vehicle_of(&mut shard, Arc::from(&*message.vehicle_id));
            let received_us = shown(message.received_us);
            vehicle.seen_us = vehicle.seen_us.max(received_us);
            let mut device = None;
            for (seq, reading) in (0_i32..).zip(readings) {
                let time_us = shown(reading.time_us);
                let order = Order {
                    heard_us: time_us.min(received_us),
                    offset: i64::try_from(message.offset.get()).unwrap_or(i64::MAX),
                    seq,
                };
                self.update(vehicle, &reading.signal, order, || Latest {
                    order,
                    time_us,
                    received_us,
                    device: Arc::clone(
                        device.get_or_insert_with(|| Arc::from(&*message.device_id)),
                    ),
                    value: reading.value.clone(),
                });
            }
        }
    }

    fn update(
        &self,
        vehicle: &mut Vehicle,
        signal: &Arc<str>,
        order: Order,
        latest: impl FnOnce() -> Latest,
    ) {
        if let Some(known) = vehicle.signals.get_mut(signal) {
            if known.order <= order {
                *known = latest();
            }
        } else if self.entries.fetch_add(1, Ordering::Relaxed) < self.limit {
            vehicle.signals.insert(Arc::clone(signal), latest());
        } else {
            self.entries.fetch_sub(1, Ordering::Relaxed);
            if !self.overflowed.swap(true, Ordering::AcqRel) {
                tracing::warn!(
                    limit = self.limit,
                    "more vehicle × signal pairs than are kept in memory: last_known_state is \
                     computed from the tables from now on; raise `last_known_entries`"
                );
            }
        }
    }

    /// When each vehicle was last heard of, microseconds since the epoch.
    pub(crate) fn last_seen(&self, vehicle: &str) -> Option<i64> {
        self.shard(vehicle).get(vehicle).map(|known| known.seen_us)
    }

    /// The state of one vehicle or of all, one row per signal, in the columns of [`schema`].
    pub(crate) fn rows(
        &self,
        only: Option<&str>,
        catalogue: &Catalogue,
    ) -> Result<RecordBatch, ArrowError> {
        let mut rows = Rows::default();
        match only {
            Some(id) => {
                if let Some((id, vehicle)) = self.shard(id).get_key_value(id) {
                    rows.push(id, vehicle, catalogue)?;
                }
            }
            None => {
                for shard in &self.shards {
                    for (id, vehicle) in lock(shard).iter() {
                        rows.push(id, vehicle, catalogue)?;
                    }
                }
            }
        }
        rows.finish()
    }

    /// Everything, one batch for each shard, in the columns of [`saved_schema`]. A row without a
    /// signal says when the vehicle was last heard of.
    pub(crate) fn save(&self) -> Result<Vec<RecordBatch>, ArrowError> {
        self.shards
            .iter()
            .map(|shard| {
                let mut saved = Saved::default();
                for (id, vehicle) in lock(shard).iter() {
                    saved.push(id, vehicle);
                }
                saved.finish()
            })
            .collect()
    }

    /// Takes in rows that [`LastKnown::save`] returned, or the same columns of `silver.signals`.
    pub(crate) fn load(&self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let column = |name: &str, data_type: &DataType| -> Result<ArrayRef, ArrowError> {
            cast(batch.column(batch.schema().index_of(name)?), data_type)
        };
        let vehicles = column("vehicle_id", &DataType::Utf8)?;
        let vehicles = vehicles.as_string::<i32>();
        let devices = column("device_id", &DataType::Utf8)?;
        let devices = devices.as_string::<i32>();
        let names = column("signal", &DataType::Utf8)?;
        let names = names.as_string::<i32>();
        let times = column("time", &utc())?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let received = column("received_time", &utc())?;
        let received = received.as_primitive::<TimestampMicrosecondType>();
        let values = column("value", &DataType::Float64)?;
        let values = values.as_primitive::<Float64Type>();
        let texts = column("text", &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let offsets = column("offset", &DataType::Int64)?;
        let offsets = offsets.as_primitive::<Int64Type>();
        let seqs = column("seq", &DataType::Int32)?;
        let seqs = seqs.as_primitive::<Int32Type>();

        let mut words: HashMap<&str, Arc<str>> = HashMap::new();
        let mut word = |text| Arc::clone(words.entry(text).or_insert_with(|| Arc::from(text)));
        for row in 0..batch.num_rows() {
            let id = word(vehicles.value(row));
            let mut shard = self.shard(&id);
            let vehicle = vehicle_of(&mut shard, Arc::clone(&id));
            let received_us = received.value(row);
            vehicle.seen_us = vehicle.seen_us.max(received_us);
            if names.is_null(row) {
                continue;
            }
            let time_us = times.value(row);
            let order = Order {
                heard_us: time_us.min(received_us),
                offset: offsets.value(row),
                seq: seqs.value(row),
            };
            let name = word(names.value(row));
            let device = word(devices.value(row));
            self.update(vehicle, &name, order, || Latest {
                order,
                time_us,
                received_us,
                device,
                value: if texts.is_null(row) {
                    Value::Number(values.value(row))
                } else {
                    Value::Text(Arc::from(texts.value(row)))
                },
            });
        }
        Ok(())
    }

    /// Takes in that vehicles were heard of: columns `vehicle_id`, `received_time`.
    fn load_seen(&self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let vehicles = cast(batch.column(0), &DataType::Utf8)?;
        let vehicles = vehicles.as_string::<i32>();
        let received = cast(batch.column(1), &utc())?;
        let received = received.as_primitive::<TimestampMicrosecondType>();
        for (row, &received_us) in received.values().iter().enumerate() {
            let id = vehicles.value(row);
            let mut shard = self.shard(id);
            let known = vehicle_of(&mut shard, Arc::from(id));
            known.seen_us = known.seen_us.max(received_us);
        }
        Ok(())
    }
}

/// A poisoned lock means a panic while a map was being updated; each update is one insert, so what
/// is there is still right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn vehicle_of(shard: &mut HashMap<Arc<str>, Vehicle>, id: Arc<str>) -> &mut Vehicle {
    match shard.entry(id) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Vehicle {
            seen_us: i64::MIN,
            ..Vehicle::default()
        }),
    }
}

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Columns of `last_known_state`.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("vehicle_id", DataType::Utf8View, false),
        Field::new("signal", DataType::Utf8View, false),
        Field::new("time", utc(), false),
        Field::new("value", DataType::Float64, true),
        Field::new("text", DataType::Utf8View, true),
        Field::new("unit", DataType::Utf8View, true),
        Field::new("device_id", DataType::Utf8View, true),
        Field::new("received_time", utc(), false),
    ]))
}

pub(crate) fn saved_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("vehicle_id", DataType::Utf8, false),
        Field::new("device_id", DataType::Utf8, true),
        Field::new("signal", DataType::Utf8, true),
        Field::new("time", utc(), true),
        Field::new("value", DataType::Float64, true),
        Field::new("text", DataType::Utf8, true),
        Field::new("received_time", utc(), false),
        Field::new("offset", DataType::Int64, true),
        Field::new("seq", DataType::Int32, true),
    ]))
}

type Words = StringDictionaryBuilder<Int32Type>;

#[derive(Default)]
struct Rows {
    vehicle: Words,
    signal: Words,
    time: TimestampMicrosecondBuilder,
    value: Float64Builder,
    text: StringBuilder,
    unit: Words,
    device: Words,
    received: TimestampMicrosecondBuilder,
}

impl Rows {
    fn push(
        &mut self,
        id: &str,
        vehicle: &Vehicle,
        catalogue: &Catalogue,
    ) -> Result<(), ArrowError> {
        for (signal, latest) in &vehicle.signals {
            self.vehicle.append(id)?;
            self.signal.append(signal)?;
            self.time.append_value(latest.time_us);
            append(&latest.value, &mut self.value, &mut self.text);
            self.unit.append_option(unit_in(catalogue, signal));
            self.device.append_option(latest.device());
            self.received.append_value(latest.received_us);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let schema = schema();
        let columns: [ArrayRef; 8] = [
            Arc::new(self.vehicle.finish()),
            Arc::new(self.signal.finish()),
            Arc::new(self.time.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.unit.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.received.finish()),
        ];
        let columns = columns
            .iter()
            .zip(schema.fields())
            .map(|(column, field)| cast(column, field.data_type()))
            .collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(schema, columns)
    }
}

#[derive(Default)]
struct Saved {
    vehicle: StringBuilder,
    device: StringBuilder,
    signal: StringBuilder,
    time: TimestampMicrosecondBuilder,
    value: Float64Builder,
    text: StringBuilder,
    received: TimestampMicrosecondBuilder,
    offset: Int64Builder,
    seq: Int32Builder,
}

impl Saved {
    fn push(&mut self, id: &str, vehicle: &Vehicle) {
        self.vehicle.append_value(id);
        self.device.append_null();
        self.signal.append_null();
        self.time.append_null();
        self.value.append_null();
        self.text.append_null();
        self.received.append_value(vehicle.seen_us);
        self.offset.append_null();
        self.seq.append_null();
        for (signal, latest) in &vehicle.signals {
            self.vehicle.append_value(id);
            self.device.append_option(latest.device());
            self.signal.append_value(signal);
            self.time.append_value(latest.time_us);
            append(&latest.value, &mut self.value, &mut self.text);
            self.received.append_value(latest.received_us);
            self.offset.append_value(latest.order.offset);
            self.seq.append_value(latest.order.seq);
        }
    }

    fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.vehicle.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.signal.finish()),
            Arc::new(self.time.finish().with_timezone("UTC")),
            Arc::new(self.value.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.received.finish().with_timezone("UTC")),
            Arc::new(self.offset.finish()),
            Arc::new(self.seq.finish()),
        ];
        RecordBatch::try_new(saved_schema(), columns)
    }
}

fn append(value: &Value, numbers: &mut Float64Builder, texts: &mut StringBuilder) {
    match value {
        Value::Number(number) => {
            numbers.append_value(*number);
            texts.append_null();
        }
        Value::Flag(flag) => {
            numbers.append_value(f64::from(u8::from(*flag)));
            texts.append_null();
        }
        Value::Text(word) => {
            numbers.append_null();
            texts.append_value(word);
        }
    }
}

/// Feeds `last_known` the rows of the Delta tables that `covered` does not cover.
///
/// Bounded in memory by the map itself: rows stream through.
pub(crate) async fn replay(
    engine: &Arc<Engine>,
    last_known: &LastKnown,
    covered: &NextOffsets,
) -> Result<(), QueryError> {
    let limits = QueryLimits {
        // As good as none, and still a number that fits wherever the engine puts it.
        rows: 1 << 62,
        time: Duration::from_secs(24 * 3_600),
        ..QueryLimits::default()
    };
    let rows = |columns: &str, table: RowTable| {
        let sql = format!(
            "select {columns} from {} where {}",
            table.qualified_name(),
            saved_state::uncovered(&covered.0[table as usize])
        );
        engine.rows_of(sql, limits)
    };
    let unusable = |source: ArrowError| QueryError::Internal {
        source: Box::new(source.into()),
    };

    let columns =
        "vehicle_id, device_id, signal, time, value, text, received_time, \"offset\", seq";
    let mut signals = rows(columns, RowTable::Signals).await?;
    while let Some(batch) = signals.next().await {
        last_known.load(&batch?).map_err(unusable)?;
    }
    let mut messages = rows("vehicle_id, received_time", RowTable::Messages).await?;
    while let Some(batch) = messages.next().await {
        last_known.load_seen(&batch?).map_err(unusable)?;
    }
    Ok(())
}
