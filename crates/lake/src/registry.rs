//! The registry of vehicles and devices as SQL sees it.
//!
//! The lake does not own these rows; whoever does hands in a source that is asked when a query needs
//! them. The answer is kept for a second, so a dashboard with ten queries asks once.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, BooleanArray, RecordBatch, StringViewArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use futures::future::BoxFuture;
use tokio::sync::Mutex;

use crate::batch::shown;
use crate::last_known::LastKnown;

/// How long an answer of the source serves further queries.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// A registered vehicle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetVehicle {
    /// Its id, as in `signals.vehicle_id`.
    pub id: String,
    /// Vehicle identification number.
    pub vin: Option<String>,
    /// Name of its model.
    pub model: Option<String>,
    /// False if it is locked out.
    pub enabled: bool,
    /// Free attributes; SQL shows them as one JSON object.
    pub attributes: BTreeMap<String, String>,
    /// When it was registered, microseconds since the epoch.
    pub created_us: i64,
}

/// A registered device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetDevice {
    /// Its id, as in `signals.device_id`.
    pub id: String,
    /// The vehicle it belongs to.
    pub vehicle_id: String,
    /// "tcu", "ivi", "phone" …
    pub kind: String,
    /// False if it is locked out.
    pub enabled: bool,
    /// When it was registered, microseconds since the epoch.
    pub created_us: i64,
}

/// Everything registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetRows {
    /// All vehicles, in any order.
    pub vehicles: Vec<FleetVehicle>,
    /// All devices, in any order.
    pub devices: Vec<FleetDevice>,
}

/// Asks the owner of the registry for its rows.
pub type FleetSource = Arc<
    dyn Fn() -> BoxFuture<'static, Result<FleetRows, Box<dyn Error + Send + Sync>>> + Send + Sync,
>;

/// The source with its last answer. Without a source the registry is empty.
#[derive(Default)]
pub(crate) struct Registry {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    source: Option<FleetSource>,
    answer: Option<(Instant, Arc<FleetRows>)>,
}

impl Registry {
    pub(crate) async fn set_source(&self, source: FleetSource) {
        *self.state.lock().await = State {
            source: Some(source),
            answer: None,
        };
    }

    /// Rows at most [`FRESH_FOR`] old. Queries that come while the source is asked wait for its
    /// answer instead of asking again.
    pub(crate) async fn rows(&self) -> Result<Arc<FleetRows>, Box<dyn Error + Send + Sync>> {
        let mut state = self.state.lock().await;
        if let Some((at, rows)) = &state.answer
            && at.elapsed() < FRESH_FOR
        {
            return Ok(Arc::clone(rows));
        }
        let Some(source) = state.source.clone() else {
            return Ok(Arc::default());
        };
        let rows = Arc::new(source().await?);
        state.answer = Some((Instant::now(), Arc::clone(&rows)));
        Ok(rows)
    }
}

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn vehicle_fields() -> Vec<Field> {
    vec![
        Field::new("vehicle_id", DataType::Utf8View, false),
        Field::new("vin", DataType::Utf8View, true),
        Field::new("model", DataType::Utf8View, true),
        Field::new("enabled", DataType::Boolean, false),
        Field::new("attributes", DataType::Utf8View, false),
        Field::new("created_time", utc(), false),
    ]
}

/// Columns of `fleet.vehicles`.
pub(crate) fn vehicles_schema() -> SchemaRef {
    Arc::new(Schema::new(vehicle_fields()))
}

/// Columns of the view `vehicles`: the registry, and when each was last heard of.
pub(crate) fn vehicles_view_schema() -> SchemaRef {
    let mut fields = vehicle_fields();
    fields.push(Field::new("last_seen_time", utc(), true));
    Arc::new(Schema::new(fields))
}

/// Columns of `fleet.devices`.
pub(crate) fn devices_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8View, false),
        Field::new("vehicle_id", DataType::Utf8View, false),
        Field::new("kind", DataType::Utf8View, false),
        Field::new("enabled", DataType::Boolean, false),
        Field::new("created_time", utc(), false),
    ]))
}

fn vehicle_columns(vehicles: &[FleetVehicle]) -> Vec<ArrayRef> {
    let attributes = vehicles.iter().map(|vehicle| {
        let members = vehicle
            .attributes
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().into()));
        serde_json::Value::Object(members.collect()).to_string()
    });
    vec![
        Arc::new(StringViewArray::from_iter_values(
            vehicles.iter().map(|v| &v.id),
        )),
        Arc::new(
            vehicles
                .iter()
                .map(|v| v.vin.as_deref())
                .collect::<StringViewArray>(),
        ),
        Arc::new(
            vehicles
                .iter()
                .map(|v| v.model.as_deref())
                .collect::<StringViewArray>(),
        ),
        Arc::new(
            vehicles
                .iter()
                .map(|v| Some(v.enabled))
                .collect::<BooleanArray>(),
        ),
        Arc::new(StringViewArray::from_iter_values(attributes)),
        times(vehicles.iter().map(|v| Some(v.created_us))),
    ]
}

fn times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    let values: TimestampMicrosecondArray = values.map(|value| value.map(shown)).collect();
    Arc::new(values.with_timezone("UTC"))
}

/// `fleet.vehicles`.
pub(crate) fn vehicles(rows: &FleetRows) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(vehicles_schema(), vehicle_columns(&rows.vehicles))
}

/// `vehicles`.
pub(crate) fn vehicles_view(
    rows: &FleetRows,
    last_known: &LastKnown,
) -> Result<RecordBatch, ArrowError> {
    let mut columns = vehicle_columns(&rows.vehicles);
    columns.push(times(
        rows.vehicles.iter().map(|v| last_known.last_seen(&v.id)),
    ));
    RecordBatch::try_new(vehicles_view_schema(), columns)
}

/// `fleet.devices`.
pub(crate) fn devices(rows: &FleetRows) -> Result<RecordBatch, ArrowError> {
    let devices = &rows.devices;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringViewArray::from_iter_values(
            devices.iter().map(|d| &d.id),
        )),
        Arc::new(StringViewArray::from_iter_values(
            devices.iter().map(|d| &d.vehicle_id),
        )),
        Arc::new(StringViewArray::from_iter_values(
            devices.iter().map(|d| &d.kind),
        )),
        Arc::new(
            devices
                .iter()
                .map(|d| Some(d.enabled))
                .collect::<BooleanArray>(),
        ),
        times(devices.iter().map(|d| Some(d.created_us))),
    ];
    RecordBatch::try_new(devices_schema(), columns)
}
