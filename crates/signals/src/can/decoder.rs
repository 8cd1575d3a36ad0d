//! From frames to readings, by a DBC and a [`Mapping`] to VSS.
//!
//! All the thinking is done once, when a model's DBC is put in: every message becomes a plan of outputs, each
//! with its final name, where its bits are and what to do with the number. Decoding a frame is then one look-up
//! and, per output, a few shifts; it allocates nothing but the readings' place in `out`.
//!
//! J1939 (SAE J1939-21): in a 29-bit identifier of that protocol, priority, source and, for PDU1 formats, the
//! destination vary while the parameter group stays. Messages that the DBC marks so (`VFrameFormat` is
//! `J1939PG`, or `ProtocolType` is `J1939`) are found by exact identifier first, then by group and source, then
//! by group. Values that J1939-71 reserves for "error" and "not available" make no reading.
//!
//! The bus of a frame is not looked at: a DBC describes one bus, and a recorder that mixes buses with clashing
//! identifiers needs a model per bus.

use std::collections::HashMap;
use std::sync::Arc;

use can_dbc::{
    AttributeValue, ByteOrder, Dbc, Message, MessageId, MultiplexIndicator, Signal,
    SignalExtendedValueType, ValueType,
};

use super::bits::{Bits, Order};
use super::dbc::{DbcError, DbcProblem, MAX_DBC_BYTES, unflagged_identifier};
use super::{CanFrame, CanId};
use crate::catalogue::{Catalogue, SignalInfo};
use crate::mapping::{Convert, Mapping};
use crate::reading::Reading;

/// Decodes the frames of one vehicle model. Make it once, share it behind an `Arc`.
#[derive(Debug)]
pub struct CanDecoder {
    messages: Vec<Plan>,
    by_id: HashMap<CanId, usize>,
    /// J1939 messages by parameter group number.
    by_group: HashMap<u32, Vec<Group>>,
    catalogue: Catalogue,
    passed_over: Vec<String>,
}

/// What became of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// The DBC knows the message.
    Known {
        /// Readings made.
        readings: usize,
        /// Signals whose bits lie beyond the end of this frame.
        cut_short: usize,
    },
    /// The DBC does not know the message; nothing was read.
    UnknownMessage,
}

/// What became of many frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CanSummary {
    /// Frames seen.
    pub frames: usize,
    /// Of these, frames whose message the DBC does not know.
    pub unknown: usize,
    /// Signals that were not in a frame because it was too short.
    pub cut_short: usize,
}

/// A J1939 message and the source address it was defined with.
#[derive(Debug)]
struct Group {
    source: u8,
    message: usize,
}

/// A message, made ready.
#[derive(Debug)]
struct Plan {
    protocol: Protocol,
    fields: Vec<Field>,
    outputs: Vec<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Plain,
    J1939,
}

/// A signal of the DBC.
#[derive(Debug)]
struct Field {
    bits: Bits,
    number: Number,
    factor: f64,
    offset: f64,
    selected: Option<Selection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Unsigned,
    Signed,
    Float,
    Double,
}

/// A multiplexed signal is there only while its multiplexor has one of these values.
#[derive(Debug)]
struct Selection {
    /// Index of the multiplexor among the message's fields.
    multiplexor: usize,
    ranges: Vec<(u64, u64)>,
}

/// A reading to make.
#[derive(Debug)]
struct Output {
    signal: Arc<str>,
    field: usize,
    /// Fields to add to it.
    plus: Vec<usize>,
    convert: Convert,
}

/// What a field of a frame holds.
enum Content {
    Number(f64),
    /// Not selected, "not available" of J1939, or not a number.
    Nothing,
    BeyondTheEnd,
}

impl CanDecoder {
    /// Makes a decoder of a DBC's text (see [`dbc_text`](super::dbc_text)). Signals that `mapping` knows get
    /// their VSS path and unit, all others are named `MESSAGE.SIGNAL` and keep the DBC's unit.
    ///
    /// # Errors
    /// [`DbcError`] names the line, message or signal and what to change.
    pub fn new(dbc: &str, mapping: Option<&Mapping>) -> Result<CanDecoder, DbcError> {
        if dbc.len() > MAX_DBC_BYTES {
            return Err(DbcError::TooLarge(dbc.len()));
        }
        if let Some((message, id)) = unflagged_identifier(dbc) {
            return Err(DbcError::Identifier { message, id });
        }
        let dbc = Dbc::try_from(dbc).map_err(|source| DbcError::Syntax { source })?;
        let mut decoder = CanDecoder {
            messages: Vec::with_capacity(dbc.messages.len()),
            by_id: HashMap::with_capacity(dbc.messages.len()),
            by_group: HashMap::new(),
            catalogue: Catalogue::default(),
            passed_over: Vec::new(),
        };
        let mut names: Vec<&str> = Vec::with_capacity(dbc.messages.len());
        for message in &dbc.messages {
            // Where Vector's tools keep signals that belong to no message.
            if message.name == "VECTOR__INDEPENDENT_SIG_MSG" {
                continue;
            }
            let id = match message.id {
                MessageId::Standard(id) => CanId::Standard(id),
                MessageId::Extended(id) => CanId::Extended(id),
            };
            let index = decoder.messages.len();
            if let Some(earlier) = decoder.by_id.insert(id, index) {
                return Err(DbcError::Duplicate {
                    first: names[earlier].to_owned(),
                    second: message.name.clone(),
                    id,
                });
            }
            let protocol = protocol(&dbc, message);
            if let (Protocol::J1939, CanId::Extended(id)) = (protocol, id) {
                decoder.by_group.entry(group(id)).or_default().push(Group {
                    source: id as u8,
                    message: index,
                });
            }
            let plan = decoder.plan(&dbc, message, protocol, mapping)?;
            decoder.messages.push(plan);
            names.push(&message.name);
        }
        if decoder.messages.is_empty() {
            return Err(DbcError::NoMessages);
        }
        Ok(decoder)
    }

    /// Appends the readings of a frame to `out`.
    #[inline]
    pub fn decode(&self, frame: &CanFrame, out: &mut Vec<Reading>) -> Decoded {
        let Some(plan) = self.find(frame.id) else {
            return Decoded::UnknownMessage;
        };
        let before = out.len();
        let mut cut_short = 0;
        for output in &plan.outputs {
            match plan.content(output, &frame.data) {
                Content::Number(number) => {
                    if let Some(value) = output.convert.apply(number) {
                        out.push(Reading {
                            signal: Arc::clone(&output.signal),
                            time_us: frame.time_us,
                            value,
                        });
                    }
                }
                Content::Nothing => {}
                Content::BeyondTheEnd => cut_short += 1,
            }
        }
        Decoded::Known {
            readings: out.len() - before,
            cut_short,
        }
    }

    /// Appends the readings of many frames to `out`, in their order.
    pub fn decode_all(&self, frames: &[CanFrame], out: &mut Vec<Reading>) -> CanSummary {
        let mut summary = CanSummary {
            frames: frames.len(),
            ..CanSummary::default()
        };
        for frame in frames {
            match self.decode(frame, out) {
                Decoded::Known { cut_short, .. } => summary.cut_short += cut_short,
                Decoded::UnknownMessage => summary.unknown += 1,
            }
        }
        summary
    }

    /// The signals that keep their DBC name: unit, comment, and the words of their value table.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Signals of the DBC that no frame can carry (parts of J1939 transport messages beyond 64 bytes) and that
    /// are therefore never decoded, as `MESSAGE.SIGNAL`.
    #[must_use]
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    fn find(&self, id: CanId) -> Option<&Plan> {
        let index = match (self.by_id.get(&id), id) {
            (Some(&index), _) => index,
            (None, CanId::Extended(id)) if !self.by_group.is_empty() => {
                let group = self.by_group.get(&group(id))?;
                let same_source = group.iter().find(|member| member.source == id as u8);
                same_source.or(group.first())?.message
            }
            _ => return None,
        };
        self.messages.get(index)
    }

    fn plan(
        &mut self,
        dbc: &Dbc,
        message: &Message,
        protocol: Protocol,
        mapping: Option<&Mapping>,
    ) -> Result<Plan, DbcError> {
        // Index of each signal among the fields; none for those that no frame can carry.
        let mut index: HashMap<&str, usize> = HashMap::with_capacity(message.signals.len());
        let mut fields = Vec::with_capacity(message.signals.len());
        for signal in &message.signals {
            let wrong = |problem| wrong(message, signal, problem);
            if !(1..=64).contains(&signal.size) {
                return Err(wrong(DbcProblem::Length(signal.size)));
            }
            let number = number(dbc, message, signal).map_err(wrong)?;
            if !(signal.factor.is_finite() && signal.offset.is_finite()) {
                return Err(wrong(DbcProblem::Scale));
            }
            let order = match signal.byte_order {
                ByteOrder::LittleEndian => Order::Intel,
                ByteOrder::BigEndian => Order::Motorola,
            };
            let Some(bits) = Bits::new(order, signal.start_bit, signal.size) else {
                let name = format!("{}.{}", message.name, signal.name);
                self.passed_over.push(name);
                continue;
            };
            index.insert(&signal.name, fields.len());
            fields.push(Field {
                bits,
                number,
                factor: signal.factor,
                offset: signal.offset,
                selected: None,
            });
        }
        for signal in &message.signals {
            if let Some(&field) = index.get(signal.name.as_str()) {
                fields[field].selected = selection(dbc, message, signal, &index)
                    .map_err(|problem| wrong(message, signal, problem))?;
            }
        }
        for signal in &message.signals {
            if index
                .get(signal.name.as_str())
                .is_some_and(|&field| in_a_circle(&fields, field))
            {
                return Err(wrong(message, signal, DbcProblem::Circle));
            }
        }
        let outputs = self.outputs(dbc, message, mapping, &index);
        Ok(Plan {
            protocol,
            fields,
            outputs,
        })
    }

    fn outputs(
        &mut self,
        dbc: &Dbc,
        message: &Message,
        mapping: Option<&Mapping>,
        index: &HashMap<&str, usize>,
    ) -> Vec<Output> {
        let mut outputs = Vec::with_capacity(message.signals.len());
        // Fields that are part of a VSS signal, and so need no name of their own.
        let mut spoken_for = vec![false; index.len()];
        for signal in &message.signals {
            let Some(&field) = index.get(signal.name.as_str()) else {
                continue;
            };
            let rules = mapping.map_or(&[][..], |mapping| {
                mapping.rules(&message.name, &signal.name)
            });
            for rule in rules.iter().filter(|rule| rule.applies(&signal.unit)) {
                let plus: Vec<usize> = rule
                    .plus
                    .iter()
                    .filter_map(|name| index.get(name.as_str()).copied())
                    .collect();
                spoken_for[field] = true;
                plus.iter().for_each(|&part| spoken_for[part] = true);
                outputs.push(Output {
                    signal: Arc::clone(&rule.vss),
                    field,
                    plus,
                    convert: rule.convert.clone(),
                });
            }
        }
        for signal in &message.signals {
            let Some(&field) = index.get(signal.name.as_str()) else {
                continue;
            };
            if spoken_for[field] {
                continue;
            }
            let name: Arc<str> = Arc::from(format!("{}.{}", message.name, signal.name));
            self.catalogue
                .insert(Arc::clone(&name), info(dbc, message, signal));
            outputs.push(Output {
                signal: name,
                field,
                plus: Vec::new(),
                convert: Convert::AsItIs,
            });
        }
        outputs
    }
}

impl Plan {
    #[inline]
    fn content(&self, output: &Output, data: &[u8]) -> Content {
        let mut sum = match self.field(output.field, data) {
            Content::Number(number) => number,
            other => return other,
        };
        for &part in &output.plus {
            match self.field(part, data) {
                Content::Number(number) => sum += number,
                other => return other,
            }
        }
        // A float signal may hold NaN, which no table needs.
        if sum.is_finite() {
            Content::Number(sum)
        } else {
            Content::Nothing
        }
    }

    #[inline]
    fn field(&self, index: usize, data: &[u8]) -> Content {
        let field = &self.fields[index];
        if !self.is_selected(field, data) {
            return Content::Nothing;
        }
        let Some(raw) = field.bits.read(data) else {
            return Content::BeyondTheEnd;
        };
        let number = match field.number {
            Number::Unsigned
                if self.protocol == Protocol::J1939 && is_reserved(raw, field.bits) =>
            {
                return Content::Nothing;
            }
            Number::Unsigned => raw as f64,
            Number::Signed => field.bits.sign_extend(raw) as f64,
            Number::Float => f64::from(f32::from_bits(raw as u32)),
            Number::Double => f64::from_bits(raw),
        };
        Content::Number(number * field.factor + field.offset)
    }

    /// Whether the multiplexors above a field select it. Their bits are read anew for each field: a few shifts,
    /// against keeping a table of them per frame.
    fn is_selected(&self, field: &Field, data: &[u8]) -> bool {
        let Some(selection) = &field.selected else {
            return true;
        };
        let multiplexor = &self.fields[selection.multiplexor];
        let Some(value) = multiplexor.bits.read(data) else {
            return false;
        };
        let in_range = |&(from, to): &(u64, u64)| (from..=to).contains(&value);
        selection.ranges.iter().any(in_range) && self.is_selected(multiplexor, data)
    }
}

/// Parameter group number of a J1939 identifier: without the destination address that PDU1 formats carry.
fn group(id: u32) -> u32 {
    let format = id >> 16 & 0xFF;
    let number = id >> 8 & 0x3_FFFF;
    if format < 240 { number & !0xFF } else { number }
}

/// J1939-71, table 1: of whole bytes, everything from `0xFB…` up is reserved, an error or not available; of
/// shorter ones only "all ones" means the same everywhere.
fn is_reserved(raw: u64, bits: Bits) -> bool {
    match bits.len() {
        1 => false,
        len @ (8 | 16 | 24 | 32) => raw >> (len - 8) >= 0xFB,
        len => raw == u64::MAX >> (64 - len),
    }
}

fn protocol(dbc: &Dbc, message: &Message) -> Protocol {
    /// Place of `J1939PG` in Vector's enumeration of `VFrameFormat`.
    const J1939PG: u64 = 3;
    let is_group = match dbc.resolved_message_attribute(message.id, "VFrameFormat") {
        Some(AttributeValue::String(format)) => format == "J1939PG",
        Some(AttributeValue::Uint(index)) => *index == J1939PG,
        Some(AttributeValue::Int(index)) => u64::try_from(*index) == Ok(J1939PG),
        Some(AttributeValue::Double(index)) => *index == J1939PG as f64,
        None => dbc.attribute_values_database.iter().any(|attribute| {
            attribute.name == "ProtocolType"
                && matches!(&attribute.value, AttributeValue::String(name) if name == "J1939")
        }),
    };
    match message.id {
        MessageId::Extended(_) if is_group => Protocol::J1939,
        _ => Protocol::Plain,
    }
}

fn number(dbc: &Dbc, message: &Message, signal: &Signal) -> Result<Number, DbcProblem> {
    let float = |number, needed: u8| {
        if signal.size == u64::from(needed) {
            Ok(number)
        } else {
            Err(DbcProblem::Float {
                needed,
                found: signal.size,
            })
        }
    };
    match dbc.extended_value_type_for_signal(message.id, &signal.name) {
        Some(SignalExtendedValueType::IEEEfloat32Bit) => float(Number::Float, 32),
        Some(SignalExtendedValueType::IEEEdouble64bit) => float(Number::Double, 64),
        Some(SignalExtendedValueType::SignedOrUnsignedInteger) | None => {
            Ok(match signal.value_type {
                ValueType::Signed => Number::Signed,
                ValueType::Unsigned => Number::Unsigned,
            })
        }
    }
}

fn selection(
    dbc: &Dbc,
    message: &Message,
    signal: &Signal,
    index: &HashMap<&str, usize>,
) -> Result<Option<Selection>, DbcProblem> {
    let value = match signal.multiplexer_indicator {
        MultiplexIndicator::Plain | MultiplexIndicator::Multiplexor => return Ok(None),
        MultiplexIndicator::MultiplexedSignal(value)
        | MultiplexIndicator::MultiplexorAndMultiplexedSignal(value) => value,
    };
    let extended = dbc
        .extended_multiplex
        .iter()
        .find(|line| line.message_id == message.id && line.signal_name == signal.name);
    let (name, ranges) = if let Some(line) = extended {
        let ranges = line.mappings.iter();
        let ranges = ranges.map(|range| (range.min_value, range.max_value));
        (line.multiplexor_signal_name.as_str(), ranges.collect())
    } else {
        let mut multiplexors = message
            .signals
            .iter()
            .filter(|signal| signal.multiplexer_indicator == MultiplexIndicator::Multiplexor);
        let only = multiplexors.next().ok_or(DbcProblem::NoMultiplexor)?;
        if multiplexors.next().is_some() {
            return Err(DbcProblem::WhichMultiplexor);
        }
        (only.name.as_str(), vec![(value, value)])
    };
    let multiplexor = *index
        .get(name)
        .ok_or_else(|| DbcProblem::UnknownMultiplexor(name.to_owned()))?;
    Ok(Some(Selection {
        multiplexor,
        ranges,
    }))
}

fn in_a_circle(fields: &[Field], field: usize) -> bool {
    let mut at = field;
    for _ in 0..fields.len() {
        match &fields[at].selected {
            None => return false,
            Some(selection) => at = selection.multiplexor,
        }
    }
    true
}

fn info(dbc: &Dbc, message: &Message, signal: &Signal) -> SignalInfo {
    let words = dbc.value_descriptions_for_signal(message.id, &signal.name);
    SignalInfo {
        datatype: "double".to_owned(),
        unit: (!signal.unit.is_empty()).then(|| signal.unit.clone()),
        description: dbc
            .signal_comment(message.id, &signal.name)
            .unwrap_or_default()
            .to_owned(),
        allowed: Vec::new(),
        words: words
            .unwrap_or_default()
            .iter()
            .map(|word| (word.id, word.description.clone()))
            .collect(),
    }
}

fn wrong(message: &Message, signal: &Signal, problem: DbcProblem) -> DbcError {
    DbcError::Signal {
        message: message.name.clone(),
        signal: signal.name.clone(),
        problem,
    }
}
