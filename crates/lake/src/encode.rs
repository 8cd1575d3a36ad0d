//! Answers as bytes: JSON rows and Arrow IPC.

use std::io::Write as _;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::query::QueryResult;

/// Media type of [`QueryResult::to_arrow_ipc`].
pub const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";

/// Name and type of a column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// As selected; need not be unique.
    pub name: String,
    /// SQL's name for it: `bigint`, `double`, `text`, `timestamp`, `boolean`, `bytes`, `date` …
    pub data_type: String,
}

impl QueryResult {
    /// The columns of the answer.
    pub fn columns(&self) -> Vec<Column> {
        self.schema
            .fields()
            .iter()
            .map(|field| Column {
                name: field.name().clone(),
                data_type: sql_type(field.data_type()),
            })
            .collect()
    }

    /// The rows as a JSON array of arrays, in the order of the columns.
    ///
    /// Numbers are numbers (64-bit ones too: read them with a parser that keeps them exact), times
    /// RFC 3339 in UTC, dates `YYYY-MM-DD`, bytes base64, lists arrays, structs objects. What JSON
    /// has no number for (NaN, infinity) is null.
    ///
    /// # Errors
    /// If a value of a rare type cannot be shown.
    pub fn to_json_rows(&self) -> Result<Vec<u8>, ArrowError> {
        let mut out = Vec::with_capacity(self.rows() * 32 + 2);
        out.push(b'[');
        let mut first = true;
        for batch in &self.batches {
            for row in 0..batch.num_rows() {
                out.extend_from_slice(if first { b"[" } else { b",[" });
                first = false;
                for (index, column) in batch.columns().iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    write_value(&mut out, column, row)?;
                }
                out.push(b']');
            }
        }
        out.push(b']');
        Ok(out)
    }

    /// The whole answer as one JSON object: `columns` (name, type), `rows`, `row_count`,
    /// `elapsed_ms`.
    ///
    /// # Errors
    /// As [`QueryResult::to_json_rows`].
    pub fn to_json(&self) -> Result<Vec<u8>, ArrowError> {
        let mut out = b"{\"columns\":[".to_vec();
        for (index, column) in self.columns().iter().enumerate() {
            out.extend_from_slice(if index > 0 {
                b",{\"name\":"
            } else {
                b"{\"name\":"
            });
            write_text(&mut out, &column.name);
            out.extend_from_slice(b",\"type\":");
            write_text(&mut out, &column.data_type);
            out.push(b'}');
        }
        out.extend_from_slice(b"],\"rows\":");
        out.append(&mut self.to_json_rows()?);
        write!(
            out,
            ",\"row_count\":{},\"elapsed_ms\":{}}}",
            self.rows(),
            self.elapsed.as_millis()
        )?;
        Ok(out)
    }

    /// The answer as an Arrow IPC stream, see [`ARROW_STREAM`].
    ///
    /// # Errors
    /// If Arrow cannot encode a type.
    pub fn to_arrow_ipc(&self) -> Result<Vec<u8>, ArrowError> {
        let mut writer = StreamWriter::try_new(Vec::new(), &self.schema)?;
        for batch in &self.batches {
            writer.write(batch)?;
        }
        writer.into_inner()
    }
}

fn sql_type(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => "bigint",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "bytes",
        DataType::Timestamp(..) => "timestamp",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Interval(_) | DataType::Duration(_) => "interval",
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => "decimal",
        DataType::Null => "null",
        DataType::Struct(_) => "struct",
        DataType::Map(..) => "map",
        DataType::Dictionary(_, values) => return sql_type(values),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            return format!("{}[]", sql_type(item.data_type()));
        }
        other => return other.to_string(),
    };
    name.to_owned()
}

fn write_value(out: &mut Vec<u8>, array: &ArrayRef, row: usize) -> Result<(), ArrowError> {
    if array.is_null(row) {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    macro_rules! number {
        ($kind:ty) => {
            write!(out, "{}", array.as_primitive::<$kind>().value(row))?
        };
    }
    match array.data_type() {
        DataType::Null => out.extend_from_slice(b"null"),
        DataType::Boolean => write!(out, "{}", array.as_boolean().value(row))?,
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => {
            write_float(
                out,
                f64::from(array.as_primitive::<Float32Type>().value(row)),
            );
        }
        DataType::Float64 => write_float(out, array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => write_text(out, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => write_text(out, array.as_string::<i64>().value(row)),
        DataType::Utf8View => write_text(out, array.as_string_view().value(row)),
        DataType::Binary => write_bytes(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => write_bytes(out, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => write_bytes(out, array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => write_bytes(out, array.as_fixed_size_binary().value(row)),
        DataType::Timestamp(unit, _) => {
            let nanos = match unit {
                TimeUnit::Second => {
                    i128::from(array.as_primitive::<TimestampSecondType>().value(row))
                        * 1_000_000_000
                }
                TimeUnit::Millisecond => {
                    i128::from(array.as_primitive::<TimestampMillisecondType>().value(row))
                        * 1_000_000
                }
                TimeUnit::Microsecond => {
                    i128::from(array.as_primitive::<TimestampMicrosecondType>().value(row)) * 1_000
                }
                TimeUnit::Nanosecond => {
                    i128::from(array.as_primitive::<TimestampNanosecondType>().value(row))
                }
            };
            match jiff::Timestamp::from_nanosecond(nanos) {
                Ok(time) => write!(out, "\"{time}\"")?,
                // Beyond the years -9999 to 9999 there is no RFC 3339.
                Err(_) => out.extend_from_slice(b"null"),
            }
        }
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().value(row);
            let date = jiff::civil::Date::constant(1970, 1, 1)
                .checked_add(jiff::Span::new().try_days(days).unwrap_or_default());
            match date {
                Ok(date) => write!(out, "\"{date}\"")?,
                Err(_) => out.extend_from_slice(b"null"),
            }
        }
        DataType::Dictionary(_, values) => {
            write_value(out, &cast(&array.slice(row, 1), values)?, 0)?;
        }
        DataType::List(_) => write_list(out, &array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => write_list(out, &array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(..) => {
            write_list(out, &array.as_fixed_size_list().value(row))?;
        }
        DataType::Struct(fields) => {
            let members = array.as_struct();
            out.push(b'{');
            for (index, (field, member)) in fields.iter().zip(members.columns()).enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(out, field.name());
                out.push(b':');
                write_value(out, member, row)?;
            }
            out.push(b'}');
        }
        // Decimals (exact, so not a float), intervals and other rare ones: as text.
        _ => {
            let options = FormatOptions::default();
            let text = ArrayFormatter::try_new(array, &options)?
                .value(row)
                .try_to_string()?;
            write_text(out, &text);
        }
    }
    Ok(())
}

fn write_list(out: &mut Vec<u8>, items: &ArrayRef) -> Result<(), ArrowError> {
    out.push(b'[');
    for index in 0..items.len() {
        if index > 0 {
            out.push(b',');
        }
        write_value(out, items, index)?;
    }
    out.push(b']');
    Ok(())
}

fn write_float(out: &mut Vec<u8>, number: f64) {
    // serde_json writes null for what JSON has no number for; writing to a Vec cannot fail.
    let _ = serde_json::to_writer(out, &number);
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let _ = serde_json::to_writer(out, text);
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(BASE64.encode(bytes).as_bytes());
    out.push(b'"');
}

/// Bytes the rows of `batch` say, not what their buffers hold: views of a large page share it, and
/// counting it once for each batch would refuse small answers.
pub(crate) fn logical_bytes(batch: &RecordBatch) -> usize {
    batch
        .columns()
        .iter()
        .map(|column| column_bytes(column.as_ref()))
        .sum()
}

fn column_bytes(array: &dyn Array) -> usize {
    const VIEW: usize = 16;
    let rows = array.len();
    match array.data_type() {
        DataType::Utf8View => {
            rows * VIEW
                + array
                    .as_string_view()
                    .lengths()
                    .map(|length| length as usize)
                    .sum::<usize>()
        }
        DataType::BinaryView => {
            rows * VIEW
                + array
                    .as_binary_view()
                    .lengths()
                    .map(|length| length as usize)
                    .sum::<usize>()
        }
        _ => array
            .to_data()
            .get_slice_memory_size()
            .unwrap_or_else(|_| array.get_array_memory_size()),
    }
}
