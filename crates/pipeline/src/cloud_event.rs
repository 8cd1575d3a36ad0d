//! Names of the headers that make a stream record a CloudEvent (CloudEvents 1.0, Kafka protocol binding, binary
//! content mode). Extension names have no underscores or dashes, as the specification asks.

pub(crate) const SPEC_VERSION: &str = "ce_specversion";
pub(crate) const ID: &str = "ce_id";
pub(crate) const SOURCE: &str = "ce_source";
pub(crate) const TYPE: &str = "ce_type";
pub(crate) const SUBJECT: &str = "ce_subject";
pub(crate) const TIME: &str = "ce_time";
/// Of `datacontenttype`: the one attribute without prefix in the Kafka binding.
pub(crate) const CONTENT_TYPE: &str = "content-type";
/// Not a CloudEvents attribute: the payload is stored as it came, so whoever reads it must know.
pub(crate) const CONTENT_ENCODING: &str = "content-encoding";
pub(crate) const VEHICLE_ID: &str = "ce_vehicleid";
pub(crate) const DEVICE_ID: &str = "ce_deviceid";
pub(crate) const RECEIVED_TIME: &str = "ce_receivedtime";
pub(crate) const PRIORITY: &str = "ce_priority";
/// Distributed tracing extension of CloudEvents: W3C Trace Context.
pub(crate) const TRACE_PARENT: &str = "ce_traceparent";
