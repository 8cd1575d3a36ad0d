//! From processed records to Arrow batches, column by column.
//!
//! One pass over the readings, nothing copied that is not a value of a column: repetitive strings
//! become dictionary keys, one hash lookup each, and the unit of a signal is looked up once per
//! batch, not once per row. This is the hottest loop of the lake.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Date32Array, DictionaryArray, Float64Builder, Int32Array, Int64Array,
    RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::Int32Type;
use arrow::error::ArrowError;
use pipeline::Processed;
use signals::{Catalogue, Value};

use crate::columns::RowTable;

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// 0001-01-01T00:00:00Z to 9999-12-30T22:00:00.999999Z: between them every engine, in every time
/// zone, can show a time.
const SHOWABLE: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_207_200_999_999;

/// A time that every engine can show: what lies outside of [`SHOWABLE`] is set to its bound.
pub(crate) fn shown(time_us: i64) -> i64 {
    time_us.clamp(*SHOWABLE.start(), *SHOWABLE.end())
}

/// Microseconds since the epoch, by this machine's clock.
pub(crate) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

fn day_of(received_us: i64) -> i32 {
    // Between -719,162 and 2,932,896: the years 1 to 9999.
    i32::try_from(shown(received_us).div_euclid(MICROS_PER_DAY)).unwrap_or_default()
}

/// `bronze.messages` rows, one for each record.
pub(crate) fn messages<'a>(
    records: impl Iterator<Item = &'a Processed> + Clone,
) -> Result<RecordBatch, ArrowError> {
    let rows = records.clone().count();
    let payload_bytes = records
        .clone()
        .map(|record| record.message.payload.len())
        .sum();
    let mut id = StringBuilder::with_capacity(rows, rows * 36);
    let mut source = Repeated::with_capacity(rows);
    let mut kind = Repeated::with_capacity(rows);
    let mut topic = Repeated::with_capacity(rows);
    let mut vehicle = Repeated::with_capacity(rows);
    let mut device = Repeated::with_capacity(rows);
    let mut time = Vec::with_capacity(rows);
    let mut received = Vec::with_capacity(rows);
    let mut content_type = Repeated::with_capacity(rows);
    let mut content_encoding = Repeated::with_capacity(rows);
    let mut payload = BinaryBuilder::with_capacity(rows, payload_bytes);
    let mut partition = Vec::with_capacity(rows);
    let mut offset = Vec::with_capacity(rows);
    let mut date = Vec::with_capacity(rows);

    for Processed { message, .. } in records {
        id.append_value(&*message.id);
        source.push(&message.source);
        kind.push(&message.kind);
        topic.push(&message.topic);
        vehicle.push(&message.vehicle_id);
        device.push_optional(known(&message.device_id));
        time.push(shown(message.time_us));
        received.push(shown(message.received_us));
        content_type.push_optional(message.content_type.as_deref());
        content_encoding.push_optional(message.content_encoding.as_deref());
        payload.append_value(&message.payload);
        partition.push(i32::from(message.partition));
        offset.push(signed(message.offset.get()));
        date.push(day_of(message.received_us));
    }

    let columns: Vec<ArrayRef> = vec![
        Arc::new(id.finish()),
        source.finish()?,
        kind.finish()?,
        topic.finish()?,
        vehicle.finish()?,
        device.finish()?,
        utc(time),
        utc(received),
        content_type.finish()?,
        content_encoding.finish()?,
        Arc::new(payload.finish()),
        Arc::new(Int32Array::from(partition)),
        Arc::new(Int64Array::from(offset)),
        Arc::new(Date32Array::from(date)),
    ];
    RecordBatch::try_new(RowTable::Messages.hot_schema(), columns)
}

/// `silver.signals` rows of all readings of the records.
pub(crate) fn signals<'a>(
    records: impl Iterator<Item = &'a Processed> + Clone,
    catalogue: &Catalogue,
) -> Result<RecordBatch, ArrowError> {
    let rows = records.clone().map(|record| record.readings.len()).sum();
    let mut vehicle = Repeated::with_capacity(rows);
    let mut device = Repeated::with_capacity(rows);
    let mut signal = Repeated::with_capacity(rows);
    let mut time = Vec::with_capacity(rows);
    let mut value = Float64Builder::with_capacity(rows);
    let mut text = StringBuilder::new();
    let mut unit = Repeated::with_capacity(rows);
    // The unit's key for each key of `signal`.
    let mut unit_of: Vec<Option<i32>> = Vec::new();
    let mut received = Vec::with_capacity(rows);
    let mut partition = Vec::with_capacity(rows);
    let mut offset = Vec::with_capacity(rows);
    let mut seq = Vec::with_capacity(rows);
    let mut date = Vec::with_capacity(rows);

    for Processed {
        message, readings, ..
    } in records
    {
        let count = readings.len();
        if count == 0 {
            continue;
        }
        vehicle.push_many(Some(&message.vehicle_id), count);
        device.push_many(known(&message.device_id), count);
        received.resize(received.len() + count, shown(message.received_us));
        partition.resize(partition.len() + count, i32::from(message.partition));
        offset.resize(offset.len() + count, signed(message.offset.get()));
        date.resize(date.len() + count, day_of(message.received_us));
        for (index, reading) in (0_i32..).zip(readings) {
            let key = signal.push(&reading.signal);
            if signal.len_distinct() > unit_of.len() {
                unit_of.push(unit_in(catalogue, &reading.signal).map(|name| unit.key(name)));
            }
            unit.push_key(unit_of.get(key).copied().flatten());
            time.push(shown(reading.time_us));
            seq.push(index);
            match &reading.value {
                Value::Number(number) => {
                    value.append_value(*number);
                    text.append_null();
                }
                Value::Flag(flag) => {
                    value.append_value(f64::from(u8::from(*flag)));
                    text.append_null();
                }
                Value::Text(word) => {
                    value.append_null();
                    text.append_value(word);
                }
            }
        }
    }

    let columns: Vec<ArrayRef> = vec![
        vehicle.finish()?,
        device.finish()?,
        signal.finish()?,
        utc(time),
        Arc::new(value.finish()),
        Arc::new(text.finish()),
        unit.finish()?,
        utc(received),
        Arc::new(Int32Array::from(partition)),
        Arc::new(Int64Array::from(offset)),
        Arc::new(Int32Array::from(seq)),
        Arc::new(Date32Array::from(date)),
    ];
    RecordBatch::try_new(RowTable::Signals.hot_schema(), columns)
}

/// A record that another program wrote into the log may lack its device.
fn known(device: &str) -> Option<&str> {
    (!device.is_empty()).then_some(device)
}

/// Offsets start at 0 and grow by one a record: 2^63 records are out of reach.
pub(crate) fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// The unit of a signal, if the catalogue knows it.
pub(crate) fn unit_in<'a>(catalogue: &'a Catalogue, signal: &str) -> Option<&'a str> {
    catalogue.get(signal)?.unit.as_deref()
}

fn utc(times: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
}

/// A dictionary column under construction.
struct Repeated<'a> {
    keys: Vec<i32>,
    valid: Vec<bool>,
    has_nulls: bool,
    words: Vec<&'a str>,
    index: HashMap<&'a str, i32>,
}

impl<'a> Repeated<'a> {
    fn with_capacity(rows: usize) -> Repeated<'a> {
        Repeated {
            keys: Vec::with_capacity(rows),
            valid: Vec::new(),
            has_nulls: false,
            words: Vec::new(),
            index: HashMap::new(),
        }
    }

    fn len_distinct(&self) -> usize {
        self.words.len()
    }

    fn key(&mut self, word: &'a str) -> i32 {
        let words = &mut self.words;
        *self.index.entry(word).or_insert_with(|| {
            words.push(word);
            // A batch has fewer than 2^31 rows, so it has fewer words.
            i32::try_from(words.len() - 1).unwrap_or(i32::MAX)
        })
    }

    /// Appends `word` and returns its place in the dictionary.
    fn push(&mut self, word: &'a str) -> usize {
        let key = self.key(word);
        self.push_key(Some(key));
        usize::try_from(key).unwrap_or_default()
    }

    fn push_optional(&mut self, word: Option<&'a str>) {
        let key = word.map(|word| self.key(word));
        self.push_key(key);
    }

    fn push_many(&mut self, word: Option<&'a str>, count: usize) {
        let key = word.map(|word| self.key(word));
        self.note_null(key);
        self.keys
            .resize(self.keys.len() + count, key.unwrap_or_default());
        if self.has_nulls {
            self.valid.resize(self.keys.len(), key.is_some());
        }
    }

    /// Most columns never have a null and then need no mask.
    fn note_null(&mut self, key: Option<i32>) {
        if key.is_none() && !self.has_nulls {
            self.has_nulls = true;
            self.valid.resize(self.keys.len(), true);
        }
    }

    fn push_key(&mut self, key: Option<i32>) {
        self.note_null(key);
        self.keys.push(key.unwrap_or_default());
        if self.has_nulls {
            self.valid.push(key.is_some());
        }
    }

    fn finish(self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.has_nulls.then(|| NullBuffer::from(self.valid));
        let keys = Int32Array::try_new(self.keys.into(), nulls)?;
        let words: Arc<StringArray> = Arc::new(StringArray::from(self.words));
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(
            keys, words,
        )?))
    }
}
