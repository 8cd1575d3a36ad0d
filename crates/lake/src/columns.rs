//! The columns of `bronze.messages` and `silver.signals`, in the three shapes they live in: in the
//! Delta log, in a Parquet file, and in memory before that.
//!
//! Hot rows keep repetitive strings as dictionaries (4 bytes a row instead of 16 and more); a query
//! casts the columns it asks for to what a scan of the Delta table yields, so both halves of a
//! union have one type.
//!
//! Both tables are partitioned by `date`, the UTC day the broker *received* the record, not the day
//! a reading claims: device clocks stand at 1970 or 2099 after a battery change, and a car back
//! from a garage without reception uploads last month. Partitioned by reading time each commit would
//! scatter over such days, one tiny file each, without bound; by reception a commit touches one
//! day (two at midnight). Queries over `time` lose little: every file carries the minimum and maximum
//! of its `time` in the Delta log and is skipped by it.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use deltalake::kernel::{PrimitiveType, StructField};

/// One of the two tables that rows are ingested into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RowTable {
    /// `bronze.messages`: every record as it came.
    Messages,
    /// `silver.signals`: one row per reading.
    Signals,
}

impl RowTable {
    pub(crate) const ALL: [RowTable; 2] = [RowTable::Messages, RowTable::Signals];

    /// As written in SQL.
    pub(crate) fn qualified_name(self) -> &'static str {
        match self {
            RowTable::Messages => "bronze.messages",
            RowTable::Signals => "silver.signals",
        }
    }

    /// Folder below the lake's folder.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            RowTable::Messages => "bronze/messages",
            RowTable::Signals => "silver/signals",
        }
    }

    /// What the Delta transaction identifier of a log partition starts with. Stored; never change.
    pub(crate) fn application(self) -> &'static str {
        match self {
            RowTable::Messages => "bronze",
            RowTable::Signals => "silver",
        }
    }

    /// Columns whose minimum and maximum per file go into the Delta log: those one filters by.
    pub(crate) fn statistics_columns(self) -> &'static [&'static str] {
        match self {
            RowTable::Messages => &[
                "type",
                "topic",
                "vehicle_id",
                "time",
                "received_time",
                "partition",
                "offset",
            ],
            RowTable::Signals => &[
                "vehicle_id",
                "signal",
                "time",
                "value",
                "received_time",
                "partition",
                "offset",
            ],
        }
    }

    fn columns(self) -> &'static [Column] {
        match self {
            RowTable::Messages => MESSAGES,
            RowTable::Signals => SIGNALS,
        }
    }

    /// Rows in memory.
    pub(crate) fn hot_schema(self) -> SchemaRef {
        static SCHEMAS: LazyLock<[SchemaRef; 2]> =
            LazyLock::new(|| RowTable::ALL.map(|table| schema_of(table, |kind| kind.hot_type())));
        Arc::clone(&SCHEMAS[self as usize])
    }

    /// Rows in files: plain types every Parquet reader knows.
    pub(crate) fn file_schema(self) -> SchemaRef {
        static SCHEMAS: LazyLock<[SchemaRef; 2]> =
            LazyLock::new(|| RowTable::ALL.map(|table| schema_of(table, |kind| kind.file_type())));
        Arc::clone(&SCHEMAS[self as usize])
    }

    /// Columns for the Delta log.
    pub(crate) fn delta_columns(self) -> Vec<StructField> {
        self.columns()
            .iter()
            .map(|column| StructField::new(column.name, column.kind.delta_type(), column.nullable))
            .collect()
    }
}

fn schema_of(table: RowTable, data_type: impl Fn(Kind) -> DataType) -> SchemaRef {
    Arc::new(Schema::new(
        table
            .columns()
            .iter()
            .map(|column| Field::new(column.name, data_type(column.kind), column.nullable))
            .collect::<Vec<_>>(),
    ))
}

struct Column {
    name: &'static str,
    kind: Kind,
    nullable: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    /// A string that returns in many rows.
    Repeated,
    /// A string that differs in nearly every row.
    Text,
    Bytes,
    Time,
    Date,
    Double,
    Int,
    Long,
}

impl Kind {
    fn hot_type(self) -> DataType {
        match self {
            Kind::Repeated => {
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
            }
            other => other.file_type(),
        }
    }

    fn file_type(self) -> DataType {
        match self {
            Kind::Repeated | Kind::Text => DataType::Utf8,
            Kind::Bytes => DataType::Binary,
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Kind::Date => DataType::Date32,
            Kind::Double => DataType::Float64,
            Kind::Int => DataType::Int32,
            Kind::Long => DataType::Int64,
        }
    }

    fn delta_type(self) -> PrimitiveType {
        match self {
            Kind::Repeated | Kind::Text => PrimitiveType::String,
            Kind::Bytes => PrimitiveType::Binary,
            Kind::Time => PrimitiveType::Timestamp,
            Kind::Date => PrimitiveType::Date,
            Kind::Double => PrimitiveType::Double,
            Kind::Int => PrimitiveType::Integer,
            Kind::Long => PrimitiveType::Long,
        }
    }
}

const fn required(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        nullable: false,
    }
}

const fn optional(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        nullable: true,
    }
}

/// The column both tables are partitioned by.
pub(crate) const PARTITION_COLUMN: &str = "date";

const MESSAGES: &[Column] = &[
    required("id", Kind::Text),
    required("source", Kind::Repeated),
    required("type", Kind::Repeated),
    required("topic", Kind::Repeated),
    required("vehicle_id", Kind::Repeated),
    optional("device_id", Kind::Repeated),
    required("time", Kind::Time),
    required("received_time", Kind::Time),
    optional("content_type", Kind::Repeated),
    optional("content_encoding", Kind::Repeated),
    required("payload", Kind::Bytes),
    required("partition", Kind::Int),
    required("offset", Kind::Long),
    required(PARTITION_COLUMN, Kind::Date),
];

const SIGNALS: &[Column] = &[
    required("vehicle_id", Kind::Repeated),
    optional("device_id", Kind::Repeated),
    required("signal", Kind::Repeated),
    required("time", Kind::Time),
    optional("value", Kind::Double),
    optional("text", Kind::Text),
    optional("unit", Kind::Repeated),
    required("received_time", Kind::Time),
    required("partition", Kind::Int),
    required("offset", Kind::Long),
    required("seq", Kind::Int),
    required(PARTITION_COLUMN, Kind::Date),
];

/// Positions in `silver.signals` that the sort order is made of.
pub(crate) const SIGNALS_VEHICLE: usize = 0;
/// See [`SIGNALS_VEHICLE`].
pub(crate) const SIGNALS_SIGNAL: usize = 2;
/// See [`SIGNALS_VEHICLE`].
pub(crate) const SIGNALS_TIME: usize = 3;
